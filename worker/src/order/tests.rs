//! Facts of an invented PSP, in few words; the tests themselves are in the files of this folder.

use std::path::PathBuf;

use paybell_shared::event::{EventKey, PaymentFact, Source};
use paybell_shared::money::Currency;

use super::*;

mod complaints;
mod expiry;
mod histories;
mod laws;
mod ledger;
mod reviews;
mod table;

fn eur(minor: i64) -> Money {
    Money::new(minor, Currency::parse("EUR").unwrap())
}

fn yen(minor: i64) -> Money {
    Money::new(minor, Currency::parse("JPY").unwrap())
}

/// A webhook's event at a second.
fn event(at_s: i64, payment_id: &str, fact: Fact) -> PaymentEvent {
    PaymentEvent {
        key: EventKey { psp: "stripe".into(), account: "default".into(), event_id: format!("evt_{at_s}_{payment_id}") },
        event_type: String::new(),
        occurred_at: Timestamp::from_seconds(at_s),
        source: Source::Webhook,
        mode: None,
        references: Vec::new(),
        payment_id: payment_id.to_owned(),
        version: FactVersion::Time(at_s * 1000),
        fact,
    }
}

/// What the PSP answered at a second.
fn answer(at_s: i64, payment_id: &str, fact: Fact) -> PaymentEvent {
    let event = event(at_s, payment_id, fact);
    let key = EventKey { event_id: format!("poll:{payment_id}:{at_s}"), ..event.key };
    PaymentEvent { key, source: Source::Reconciliation, ..event }
}

/// The event of a PSP that numbers its objects' versions.
fn numbered(number: i64, payment_id: &str, fact: Fact) -> PaymentEvent {
    PaymentEvent { version: FactVersion::Number(number), ..event(number, payment_id, fact) }
}

fn payment(state: PaymentState) -> Fact {
    Fact::Payment(PaymentFact::new(state))
}

fn attempt(id: &str, state: PaymentState) -> Fact {
    Fact::Payment(PaymentFact { attempt: Some(id.to_owned()), ..PaymentFact::new(state) })
}

fn failed(attempt: &str, code: &str) -> Fact {
    Fact::Payment(PaymentFact {
        attempt: Some(attempt.to_owned()),
        failure: Some(Failure { code: code.to_owned(), message: String::new() }),
        ..PaymentFact::new(PaymentState::Failed)
    })
}

fn authorized(minor: i64) -> Fact {
    Fact::Payment(PaymentFact { authorized: Some(eur(minor)), ..PaymentFact::new(PaymentState::Authorized) })
}

/// Captured, and no more will be.
fn captured(minor: i64) -> Fact {
    Fact::Payment(PaymentFact { captured: Some(eur(minor)), capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
}

/// Captured of an authorisation, and more may be.
fn captured_of(minor: i64, authorized: i64) -> Fact {
    let (captured, authorized) = (Some(eur(minor)), Some(eur(authorized)));
    Fact::Payment(PaymentFact { captured, authorized, ..PaymentFact::new(PaymentState::Captured) })
}

fn captured_in_yen() -> Fact {
    Fact::Payment(PaymentFact { captured: Some(yen(3000)), ..PaymentFact::new(PaymentState::Captured) })
}

fn capture(id: &str, state: CaptureState, minor: i64) -> Fact {
    Fact::Capture { id: id.to_owned(), state, amount: eur(minor) }
}

fn refund(id: &str, state: RefundState, minor: i64) -> Fact {
    Fact::Refund { id: id.to_owned(), state, amount: eur(minor), created: None }
}

fn total(minor: i64) -> Fact {
    Fact::RefundTotal { amount: eur(minor) }
}

fn dispute(state: DisputeState, minor: i64) -> Fact {
    Fact::Dispute { id: "dp_1".to_owned(), state, amount: eur(minor) }
}

/// An order that expects 49.99 EUR, after these events.
fn after(events: &[PaymentEvent]) -> Registers {
    let mut registers = Registers { expected: Some(eur(4999)), ..Registers::default() };
    for event in events {
        registers.join(event, false);
    }
    registers
}

/// As [`after`], one fact a second.
fn order_of(facts: &[(&str, Fact)]) -> Registers {
    let at =
        |(second, (payment_id, fact)): (usize, &(&str, Fact))| event(i64::try_from(second).unwrap(), payment_id, fact.clone());
    after(&facts.iter().enumerate().map(at).collect::<Vec<_>>())
}

/// Under settings that allow nothing.
fn view(registers: &Registers) -> View {
    registers.view(&Rules::default())
}

fn status(registers: &Registers) -> OrderStatus {
    view(registers).status
}

/// Decides on what stands under review now.
fn decision_on(registers: &Registers, at_s: i64, verdict: Verdict) -> Decision {
    let saw = registers.open_review(&Rules::default()).unwrap();
    Decision { at: Timestamp::from_seconds(at_s), verdict, reason: String::new(), operator: "Ada".to_owned(), saw }
}

#[track_caller]
fn check(facts: &[(&str, Fact)], status: OrderStatus, amounts: (i64, i64, i64)) {
    let view = view(&order_of(facts));
    assert_eq!((view.status, (view.captured, view.refunded, view.disputed)), (status, amounts), "{view:#?}");
}

#[test]
fn what_facts_amount_to() {
    use DisputeState as D;
    use OrderStatus as O;
    use PaymentState as P;
    check(&[], O::Pending, (0, 0, 0));
    check(&[("a", payment(P::Pending))], O::Pending, (0, 0, 0));
    check(&[("a", payment(P::Failed))], O::Failed, (0, 0, 0));
    check(&[("a", failed("ch_1", "x")), ("a", captured(4999))], O::Paid, (4999, 0, 0));
    check(&[("a", captured(4999)), ("a", failed("ch_1", "x"))], O::Paid, (4999, 0, 0));
    check(&[("a", captured(4999)), ("b", failed("ch_2", "x"))], O::Paid, (4999, 0, 0));
    check(&[("a", payment(P::Failed)), ("b", payment(P::Pending))], O::Pending, (0, 0, 0));
    check(&[("a", payment(P::Authorized)), ("a", payment(P::Canceled))], O::Canceled, (0, 0, 0));
    check(&[("a", payment(P::Authorized)), ("a", payment(P::AuthorizationExpired))], O::Expired, (0, 0, 0));
    check(&[("a", payment(P::Expired)), ("a", captured(4999))], O::Paid, (4999, 0, 0));
    // a total and the single refund that it sums up are one truth, whichever comes first
    let single = refund("re_1", RefundState::Succeeded, 1000);
    check(&[("a", captured(4999)), ("a", single.clone()), ("a", total(1000))], O::PartiallyRefunded, (4999, 1000, 0));
    check(&[("a", captured(4999)), ("a", total(1000))], O::PartiallyRefunded, (4999, 1000, 0));
    check(&[("a", captured(4999)), ("a", single.clone()), ("a", total(4999))], O::Refunded, (4999, 4999, 0));
    // refund failed after it had succeeded: the money is the merchant's again
    let undone = refund("re_1", RefundState::Failed, 1000);
    check(&[("a", captured(4999)), ("a", single), ("a", total(1000)), ("a", undone)], O::Paid, (4999, 0, 0));
    // a pending refund is counted by the total, but not refunded
    let pending = refund("re_1", RefundState::Pending, 1000);
    check(&[("a", captured(4999)), ("a", pending), ("a", total(1000))], O::Paid, (4999, 0, 0));
    // a reversal cancels what is not captured and refunds what is, and its PSP need not say which it was
    let reversed = [("a", refund("re_1", RefundState::Succeeded, 4999)), ("a", payment(P::Canceled))];
    check(&[&[("a", authorized(4999))], reversed.as_slice()].concat(), O::Canceled, (0, 0, 0));
    check(
        &[&[("a", authorized(4999)), ("a", capture("c", CaptureState::Succeeded, 4999))], reversed.as_slice()].concat(),
        O::Refunded,
        (4999, 4999, 0),
    );
    // disputes
    check(&[("a", captured(4999)), ("a", dispute(D::Inquiry, 4999))], O::Paid, (4999, 0, 0));
    check(&[("a", captured(4999)), ("a", dispute(D::Open, 4999))], O::Disputed, (4999, 0, 4999));
    let won = [("a", captured(4999)), ("a", dispute(D::Open, 4999)), ("a", dispute(D::Won, 4999))];
    check(&won, O::Paid, (4999, 0, 0));
    let reopened = [won.as_slice(), &[("a", dispute(D::Open, 4999))]].concat();
    check(&reopened, O::Disputed, (4999, 0, 4999));
    let lost = [reopened.as_slice(), &[("a", dispute(D::Lost, 4999))]].concat();
    check(&lost, O::ChargedBack, (4999, 0, 4999));
    // less than expected: may still come, or not
    check(&[("a", captured_of(2000, 4999))], O::PartiallyPaid, (2000, 0, 0));
    check(&[("a", captured(2000))], O::UnderReview, (2000, 0, 0));
    check(&[("a", captured(2000)), ("b", captured(2999))], O::Paid, (4999, 0, 0));
    check(&[("a", captured(5000))], O::UnderReview, (5000, 0, 0));
}

#[test]
fn a_capture_that_failed_after_it_was_captured_is_not_money() {
    use CaptureState as C;
    use OrderStatus as O;
    let all = ("a", captured_of(4999, 4999));
    let undone = ("a", capture("c_1", C::Failed, 4999));
    // the authorisation still holds the money
    check(&[all.clone(), undone.clone()], O::Authorized, (0, 0, 0));
    check(&[("a", capture("c_1", C::Succeeded, 4999)), all.clone(), undone.clone()], O::Authorized, (0, 0, 0));
    // without one nothing is left
    check(&[("a", captured(4999)), undone.clone()], O::Failed, (0, 0, 0));
    check(&[("a", capture("c_1", C::Succeeded, 4999)), undone.clone()], O::Failed, (0, 0, 0));
    check(std::slice::from_ref(&undone), O::Failed, (0, 0, 0));
    // captured anew, or being captured anew
    check(&[all.clone(), undone.clone(), ("a", capture("c_2", C::Succeeded, 4999))], O::Paid, (4999, 0, 0));
    check(&[("a", captured(4999)), undone.clone(), ("a", capture("c_2", C::Pending, 4999))], O::Pending, (0, 0, 0));
    check(&[("a", captured(4999)), undone.clone(), ("a", attempt("ch_2", PaymentState::Pending))], O::Pending, (0, 0, 0));
    // one of two
    let (first, second) = (("a", capture("c_1", C::Succeeded, 2000)), ("a", capture("c_2", C::Succeeded, 2999)));
    let two = [first.clone(), second.clone(), all.clone()];
    check(&two, O::Paid, (4999, 0, 0));
    check(&[two.as_slice(), &[("a", capture("c_2", C::Failed, 2999))]].concat(), O::PartiallyPaid, (2000, 0, 0));
    // what failed before the total was told is no part of it
    let net = [("a", capture("c_0", C::Failed, 4999)), all.clone()];
    check(&net, O::Paid, (4999, 0, 0));
    // nor what was still pending after it, and was refused
    let refused =
        [("a", captured_of(2000, 4999)), ("a", capture("c_2", C::Pending, 2999)), ("a", capture("c_2", C::Failed, 2999))];
    check(&refused, O::PartiallyPaid, (2000, 0, 0));
    // a lagging answer repeats the old total
    let lagging = after(&[
        event(1, "a", captured_of(4999, 4999)),
        event(2, "a", capture("c_1", C::Failed, 4999)),
        answer(3, "a", captured_of(4999, 4999)),
    ]);
    assert_eq!((status(&lagging), view(&lagging).captured), (O::Authorized, 0));
}

#[test]
fn amounts_of_two_currencies_never_add_up() {
    let mixed = |facts: &[Fact]| {
        let facts: Vec<(&str, Fact)> = facts.iter().map(|fact| ("a", fact.clone())).collect();
        let view = view(&order_of(&facts));
        let payment = &view.payments[0];
        (view.review, view.captured, (payment.currency.map(|currency| currency.to_string()), payment.captured, payment.refunded))
    };
    let in_yen = |id: &str| Fact::Capture { id: id.into(), state: CaptureState::Succeeded, amount: yen(4999) };
    let in_euro = |id: &str, minor| capture(id, CaptureState::Succeeded, minor);
    let mismatch = Some(ReviewReason::CurrencyMismatch);
    let euro = || Some("EUR".to_owned());
    assert_eq!(mixed(&[in_euro("c_1", 4999), in_yen("c_2")]), (mismatch, 0, (euro(), 4999, 0)));
    assert_eq!(mixed(&[in_euro("c_1", 4999), captured_in_yen()]), (mismatch, 0, (euro(), 4999, 0)));
    let refund_in_yen = Fact::Refund { id: "re_1".into(), state: RefundState::Succeeded, amount: yen(4999), created: None };
    assert_eq!(mixed(&[captured(4999), refund_in_yen]), (mismatch, 0, (euro(), 4999, 0)));
    assert_eq!(mixed(&[captured(4999), Fact::RefundTotal { amount: yen(4999) }]), (mismatch, 0, (euro(), 4999, 0)));
    let dispute_in_yen = Fact::Dispute { id: "dp_1".into(), state: DisputeState::Open, amount: yen(4999) };
    assert_eq!(mixed(&[captured(4999), dispute_in_yen]), (mismatch, 0, (euro(), 4999, 0)));
    // a total says nothing beyond singles of its own currency
    let single_in_yen = Fact::Refund { id: "re_1".into(), state: RefundState::Failed, amount: yen(1000), created: None };
    assert_eq!(mixed(&[captured(4999), single_in_yen, total(1000)]), (None, 4999, (euro(), 4999, 1000)));
    // what was promised in another currency is not what is held of the money that came
    let promised = Fact::Payment(PaymentFact { authorized: Some(yen(9999)), ..PaymentFact::new(PaymentState::Authorized) });
    assert_eq!(view(&order_of(&[("a", promised), ("a", captured(4999))])).authorized, 4999);
}

#[test]
fn a_refund_heard_of_after_the_total_that_counts_it_is_not_added() {
    let mut registers = order_of(&[("a", captured(4999))]);
    registers.join(&event(10, "a", total(1000)), false);
    let created = Some(Timestamp::from_seconds(9));
    let late = Fact::Refund { id: "re_1".to_owned(), state: RefundState::Succeeded, amount: eur(1000), created };
    registers.join(&event(12, "a", late), false);
    assert_eq!(view(&registers).refunded, 1000);
    // one made after the total is not part of it
    let created = Some(Timestamp::from_seconds(11));
    let newer = Fact::Refund { id: "re_2".to_owned(), state: RefundState::Succeeded, amount: eur(500), created };
    registers.join(&event(13, "a", newer), false);
    assert_eq!(view(&registers).refunded, 1500);
}

#[test]
fn a_refund_that_failed_before_the_total_is_no_part_of_it() {
    // of the total's 5.00 nothing else is known
    let failed = refund("re_1", RefundState::Failed, 1000);
    check(&[("a", captured(4999)), ("a", failed), ("a", total(500))], OrderStatus::PartiallyRefunded, (4999, 500, 0));
}

#[test]
fn version_numbers_of_two_objects_are_not_compared() {
    let mut registers = after(&[numbered(7, "a", captured(4999))]);
    registers.join(&numbered(3, "a", total(1000)), false);
    registers.join(&numbered(9, "a", refund("re_1", RefundState::Succeeded, 1000)), false);
    assert_eq!(view(&registers).refunded, 1000, "the total counts the single refund whatever their numbers");
}

#[test]
fn the_last_failure_is_the_latest_by_the_psps_clock() {
    let (first, second) = (event(0, "a", failed("ch_1", "first")), event(1, "a", failed("ch_2", "second")));
    for events in [[&first, &second], [&second, &first]] {
        assert_eq!(view(&after(&events.map(Clone::clone))).last_failure.unwrap().code, "second");
    }
}

#[test]
fn a_failure_that_is_told_again_is_no_news() {
    let mut registers = order_of(&[("a", failed("ch_1", "first")), ("a", failed("ch_2", "second"))]);
    let before = view(&registers);
    assert!(!registers.join(&answer(100, "a", failed("ch_2", "second")), false));
    assert!(!registers.join(&answer(200, "a", failed("ch_1", "first")), false));
    assert_eq!(view(&registers), before, "what a poll repeats is no visible change");
}

#[test]
fn joining_says_whether_it_added_something() {
    let mut registers = Registers::default();
    assert!(registers.join(&event(1, "a", captured(4999)), false));
    assert!(!registers.join(&event(1, "a", captured(4999)), false), "the same again");
    assert!(!registers.join(&answer(0, "a", captured(4999)), false), "the same, but earlier");
    assert!(!registers.join(&event(0, "a", payment(PaymentState::Pending)), false), "a lower rank");
    assert!(registers.join(&event(1, "a", authorized(4999)), false));
    assert!(!registers.join(&answer(9, "a", authorized(4999)), false), "confirmed later");
    assert!(registers.join(&event(2, "a", refund("re_1", RefundState::Pending, 1)), false));
    assert!(!registers.join(&event(3, "a", refund("re_1", RefundState::Pending, 1)), false), "confirmed later");
    assert!(!registers.join(&answer(3, "a", refund("re_1", RefundState::Pending, 1)), false), "confirmed by an answer");
    assert!(registers.join(&event(4, "a", refund("re_1", RefundState::Succeeded, 1)), false));
    assert!(registers.join(&event(4, "a", total(2)), false));
    assert!(!registers.join(&answer(4, "a", total(2)), false), "confirmed by an answer");
    assert!(!registers.join(&answer(9, "a", total(2)), false), "confirmed later");
    assert!(registers.join(&event(5, "a", captured(4999)), true), "now of a foreign mode");
}

#[test]
fn what_the_shop_and_the_operators_said_stays_without_facts() {
    let mut registers = order_of(&[("a", captured(5000)), ("b", payment(PaymentState::Pending))]);
    registers.add_account(&"stripe".into(), &"default".into());
    registers.add_payment(&"stripe".into(), &"default".into(), "b");
    registers.add_payment(&"stripe".into(), &"default".into(), "c");
    assert!(registers.decide(decision_on(&registers, 9, Verdict::Accept)));
    let bare = registers.without_facts();
    assert_eq!((bare.expected, bare.accounts.len(), bare.decisions.len()), (registers.expected, 1, 1));
    let kept: Vec<_> = bare.payments.iter().map(|payment| (payment.payment_id.as_str(), payment.is_blank())).collect();
    assert_eq!(kept, [("b", true), ("c", true)]);
    assert_eq!(bare.without_facts(), bare);
}

#[test]
fn registers_survive_storage() {
    let mut registers = order_of(&[
        ("a", failed("ch_1", "x")),
        ("a", captured_of(5000, 5000)),
        ("a", refund("re_1", RefundState::Succeeded, 1)),
        ("a", dispute(DisputeState::Open, 1)),
    ]);
    for fact in [capture("c_1", CaptureState::Succeeded, 5000), refund("re_2", RefundState::Pending, 2), total(7)] {
        registers.join(&answer(9, "a", fact), false);
    }
    registers.add_payment(&"stripe".into(), &"default".into(), "b");
    registers.decide(decision_on(&registers, 9, Verdict::Reject));
    let stored = serde_json::to_string(&registers).unwrap();
    assert_eq!(serde_json::from_str::<Registers>(&stored).unwrap(), registers);
}

/// `registers.0.1.json` was written before answers, decisions and names were kept.
#[test]
fn registers_of_the_first_version_are_read() {
    let stored = include_str!("registers.0.1.json");
    let mut registers: Registers = serde_json::from_str(stored).unwrap();
    let view = view(&registers);
    assert_eq!((view.status, view.captured, view.refunded), (OrderStatus::PartiallyRefunded, 4999, 1500), "{view:#?}");
    assert_eq!(registers.without_facts().payments.len(), 1, "the payment of which only the shop spoke");
    let again = serde_json::to_value(&registers).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(stored).unwrap(), "and nothing is added before it is known");
    assert!(!registers.join(&event(2, "a", captured(4999)), false), "the total was known");
    registers.join(&event(9, "a", capture("c", CaptureState::Failed, 4999)), false);
    assert_eq!(registers.view(&Rules::default()).captured, 0);
}

/// The adapters' recorded bodies.
fn fixtures(psp: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/src/psp/fixtures").join(psp);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let read = |path: PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap());
    let mut fixtures: Vec<_> = paths.map(read).collect();
    fixtures.sort();
    fixtures
}
