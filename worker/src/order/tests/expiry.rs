//! An order whose time is over: what shows, what stands above it, and that it merges like everything else.

use proptest::prelude::*;

use super::laws::{any_event, any_events, joined, registered};
use super::*;

const END: Timestamp = Timestamp::from_seconds(100);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

/// An order that ends at [`END`], after these facts, found expired at a second.
fn expired(facts: &[Fact], by_s: i64) -> Registers {
    let events: Vec<PaymentEvent> = facts.iter().zip(1..).map(|(fact, second)| event(second, "a", fact.clone())).collect();
    let mut registers = Registers { expires_at: Some(END), ..after(&events) };
    assert!(registers.expire(at(by_s)));
    assert!(!registers.expire(at(by_s)), "once");
    registers
}

#[test]
fn it_shows_in_place_of_waiting_and_of_failure_and_of_nothing_else() {
    use OrderStatus as S;
    use PaymentState as P;
    for (facts, shows) in [
        (vec![], S::Expired),
        (vec![payment(P::Pending)], S::Expired),
        (vec![failed("x", "no_money")], S::Expired),
        (vec![payment(P::Expired)], S::Expired),
        (vec![payment(P::Canceled)], S::Canceled),
        (vec![authorized(4999)], S::Authorized),
        (vec![captured(4999)], S::Paid),
        (vec![captured_of(2000, 4999)], S::PartiallyPaid),
        (vec![captured(4999), refund("r", RefundState::Succeeded, 4999)], S::Refunded),
        (vec![captured(4999), dispute(DisputeState::Open, 4999)], S::Disputed),
        (vec![captured(5000)], S::UnderReview),
    ] {
        assert_eq!(status(&expired(&facts, 100)), shows, "{facts:?}");
    }
}

#[test]
fn a_late_success_wins() {
    let mut registers = expired(&[payment(PaymentState::Pending)], 100);
    registers.join(&event(200, "a", authorized(4999)), false);
    assert_eq!(status(&registers), OrderStatus::Authorized);
    registers.join(&event(201, "a", captured(4999)), false);
    assert_eq!(status(&registers), OrderStatus::Paid);
}

#[test]
fn an_end_that_moves_behind_it_makes_it_live_again() {
    let mut registers = expired(&[payment(PaymentState::Pending)], 130);
    for (end, shows) in [(Some(131), OrderStatus::Pending), (Some(130), OrderStatus::Expired), (Some(1), OrderStatus::Expired)] {
        registers.expires_at = end.map(at);
        assert_eq!(status(&registers), shows, "{end:?}");
    }
    registers.expires_at = Some(at(200));
    assert!(registers.expire(at(200)));
    assert_eq!(status(&registers), OrderStatus::Expired, "and it expires again");
    assert!(!registers.expire(at(150)), "which an earlier one does not undo");
}

#[test]
fn an_order_ends_unless_money_is_promised_or_moves() {
    use PaymentState as P;
    let ends = |facts: &[Fact]| {
        let events: Vec<PaymentEvent> = facts.iter().map(|fact| event(1, "a", fact.clone())).collect();
        let registers = Registers { expires_at: Some(END), ..after(&events) };
        registers.ends_at(status(&registers)).is_some()
    };
    for facts in [vec![], vec![payment(P::Pending)], vec![payment(P::Failed)]] {
        assert!(ends(&facts), "{facts:?}");
    }
    for facts in [
        vec![authorized(4999)],
        vec![capture("c", CaptureState::Pending, 4999)],
        vec![captured(4999)],
        vec![captured(5000)],
        vec![payment(P::Canceled)],
        vec![payment(P::Expired)],
    ] {
        assert!(!ends(&facts), "{facts:?}");
    }
    let no_end = after(&[event(1, "a", payment(P::Pending))]);
    assert_eq!(no_end.ends_at(status(&no_end)), None);
    let expired = expired(&[], 100);
    assert_eq!(expired.ends_at(status(&expired)), None, "it has come to its end");
}

#[test]
fn nobody_can_be_asked_about_an_order_without_a_payment_that_can_be() {
    let account = |psp: &str| AccountKey { psp: psp.into(), account: "default".into() };
    let can_be_asked = |key: &AccountKey| &*key.psp == "stripe";
    let of = |registers: &Registers| registers.unasked(status(registers), can_be_asked).map(|key| key.psp.to_string());
    let mut registers = Registers { expected: Some(eur(4999)), ..Registers::default() };
    registers.add_account(&"stripe".into(), &"default".into());
    assert_eq!(of(&registers).as_deref(), Some("stripe"), "no payment of it is known");
    registers.add_payment(&"adyen".into(), &"default".into(), "x");
    assert_eq!(of(&registers).as_deref(), Some("adyen"));
    registers.add_payment(&"stripe".into(), &"default".into(), "a");
    assert_eq!(of(&registers), None);
    let mut paid = Registers { expected: Some(eur(4999)), ..Registers::default() };
    let of_adyen = |fact| {
        let event = event(1, "x", fact);
        PaymentEvent { key: EventKey { psp: "adyen".into(), ..event.key.clone() }, ..event }
    };
    paid.join(&of_adyen(authorized(4999)), false);
    assert_eq!(paid.unasked(status(&paid), can_be_asked), Some(&account("adyen")), "it may still be captured, or not");
    paid.join(&of_adyen(captured(4999)), false);
    assert_eq!(of(&paid), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// With facts and with another of its kind, in any order, any number of times.
    #[test]
    fn it_commutes_with_facts_and_is_joined_once(
        events in any_events(), more in any_events(), end_s in 0_i64..6, one in 0_i64..6, other in 0_i64..6,
    ) {
        let known = Registers { expires_at: Some(at(end_s)), ..joined(&registered(), &events) };
        let mut first = known.clone();
        first.expire(at(one));
        first.expire(at(other));
        let first = joined(&first, &more);
        let mut last = joined(&known, &more);
        for by in [other, one, other] {
            last.expire(at(by));
        }
        prop_assert_eq!(view(&first), view(&last));
        prop_assert_eq!(first, last);
    }

    #[test]
    fn rebuilding_from_facts_keeps_it(events in any_events(), end_s in 0_i64..6, by in 0_i64..6) {
        let mut registers = Registers { expires_at: Some(at(end_s)), ..joined(&registered(), &events) };
        registers.expire(at(by));
        prop_assert_eq!(joined(&registers.without_facts(), &events), registers.clone());
        let stored = serde_json::to_string(&registers).unwrap();
        prop_assert_eq!(serde_json::from_str::<Registers>(&stored).unwrap(), registers);
    }

    #[test]
    fn it_changes_nothing_but_what_waits_or_failed(events in any_events(), end_s in 0_i64..6, by in 0_i64..6) {
        let live = Registers { expires_at: Some(at(end_s)), ..joined(&registered(), &events) };
        let mut over = live.clone();
        over.expire(at(by));
        let (before, after) = (view(&live), view(&over));
        let gives_way = matches!(before.status, OrderStatus::Pending | OrderStatus::Failed) && end_s <= by;
        let expected = if gives_way { OrderStatus::Expired } else { before.status };
        prop_assert_eq!(&after, &View { status: expected, ..before });
        if live.ends_at(after.status).is_some() {
            prop_assert_eq!(after.captured, 0);
        }
    }

    /// Nothing that is told later takes it away.
    #[test]
    fn money_that_was_told_of_stays_what_a_payment_came_to(events in any_events(), (one, foreign) in any_event(), more in any_events()) {
        let mut registers = joined(&registered(), &events);
        registers.join(&one, foreign);
        if CameTo::of(&one.fact) == Some(CameTo::Money) {
            let account = AccountKey { psp: one.key.psp.clone(), account: one.key.account.clone() };
            let came_to = |registers: &Registers| registers.came_to(&account, &one.payment_id);
            prop_assert_eq!(came_to(&registers), Some(CameTo::Money));
            prop_assert_eq!(came_to(&joined(&registers, &more)), Some(CameTo::Money));
        }
    }
}

#[test]
fn a_payment_is_decided_by_money_or_by_its_end() {
    use PaymentState as P;
    for (facts, came_to) in [
        (vec![payment(P::Pending)], None),
        (vec![authorized(4999)], None),
        (vec![capture("c", CaptureState::Pending, 4999)], None),
        (vec![refund("r", RefundState::Succeeded, 1)], None),
        (vec![failed("x", "no_money")], Some(CameTo::Nothing)),
        (vec![failed("x", "no_money"), attempt("y", P::Pending)], Some(CameTo::Nothing)),
        (vec![payment(P::Expired)], Some(CameTo::Nothing)),
        (vec![payment(P::AuthorizationExpired)], Some(CameTo::Nothing)),
        (vec![payment(P::Canceled)], Some(CameTo::Nothing)),
        (vec![captured(4999)], Some(CameTo::Money)),
        (vec![captured_of(2000, 4999)], Some(CameTo::Money)),
        (vec![capture("c", CaptureState::Succeeded, 4999)], Some(CameTo::Money)),
        (vec![capture("c", CaptureState::Succeeded, 4999), capture("c", CaptureState::Failed, 4999)], Some(CameTo::Money)),
        (vec![failed("x", "no_money"), captured(4999)], Some(CameTo::Money)),
    ] {
        let events: Vec<PaymentEvent> = facts.iter().zip(1..).map(|(fact, second)| event(second, "a", fact.clone())).collect();
        let account = AccountKey { psp: "stripe".into(), account: "default".into() };
        assert_eq!(after(&events).came_to(&account, "a"), came_to, "{facts:?}");
    }
}
