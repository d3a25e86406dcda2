//! The laws of the join, over generated facts (invariant I4).

use proptest::prelude::*;

use super::*;

fn any_money() -> BoxedStrategy<Money> {
    let amount = prop::sample::select(vec![1, 500, 2000, 4999, 5000]).prop_map(eur);
    prop_oneof![9 => amount, 1 => Just(yen(4999))].boxed()
}

fn any_id() -> BoxedStrategy<String> {
    prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned).boxed()
}

fn any_payment() -> impl Strategy<Value = Fact> {
    let state = prop::sample::select(vec![
        PaymentState::Pending,
        PaymentState::Failed,
        PaymentState::Expired,
        PaymentState::Authorized,
        PaymentState::AuthorizationExpired,
        PaymentState::Canceled,
        PaymentState::Captured,
    ]);
    let failure = prop::sample::select(vec!["a", "b"]).prop_map(|code| Failure { code: code.into(), message: String::new() });
    let (attempt, failure) = (prop::option::of(any_id()), prop::option::of(failure));
    let amounts = (prop::option::of(any_money()), prop::option::of(any_money()));
    (state, attempt, amounts, any::<bool>(), failure).prop_map(
        |(state, attempt, (authorized, captured), capture_final, failure)| {
            Fact::Payment(PaymentFact { state, attempt, authorized, captured, capture_final, failure })
        },
    )
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let capture_state = prop::sample::select(vec![CaptureState::Pending, CaptureState::Succeeded, CaptureState::Failed]);
    let refund_state = prop::sample::select(vec![RefundState::Pending, RefundState::Succeeded, RefundState::Failed]);
    let dispute_state =
        prop::sample::select(vec![DisputeState::Inquiry, DisputeState::Open, DisputeState::Won, DisputeState::Lost]);
    let created = prop::option::of((0_i64..5).prop_map(Timestamp::from_seconds));
    prop_oneof![
        4 => any_payment(),
        2 => (any_id(), capture_state, any_money()).prop_map(|(id, state, amount)| Fact::Capture { id, state, amount }),
        2 => (any_id(), refund_state, any_money(), created)
            .prop_map(|(id, state, amount, created)| Fact::Refund { id, state, amount, created }),
        1 => any_money().prop_map(|amount| Fact::RefundTotal { amount }),
        1 => (any_id(), dispute_state, any_money()).prop_map(|(id, state, amount)| Fact::Dispute { id, state, amount }),
    ]
}

/// A fact, and whether its mode is foreign.
pub(super) fn any_event() -> impl Strategy<Value = (PaymentEvent, bool)> {
    let told = prop::sample::select(vec![event, event, answer, numbered]);
    let payment_id = prop::sample::select(vec!["a", "b"]);
    (0_i64..5, payment_id, any_fact(), told, prop::bool::weighted(0.05))
        .prop_map(|(at_s, payment_id, fact, told, foreign_mode)| (told(at_s, payment_id, fact), foreign_mode))
}

pub(super) fn any_events() -> impl Strategy<Value = Vec<(PaymentEvent, bool)>> {
    prop::collection::vec(any_event(), 0..10)
}

/// An order of arrival with some arrivals doubled, beside the events in their own order.
fn any_arrival() -> impl Strategy<Value = (Vec<(PaymentEvent, bool)>, Vec<usize>)> {
    any_events().prop_flat_map(|events| {
        let all: Vec<usize> = (0..events.len()).collect();
        let doubled = if all.is_empty() { Just(Vec::new()).boxed() } else { prop::collection::vec(0..all.len(), 0..6).boxed() };
        let arrival = doubled.prop_map(move |doubled| [all.clone(), doubled].concat()).prop_shuffle();
        (Just(events), arrival)
    })
}

pub(super) fn joined<'a>(registers: &Registers, events: impl IntoIterator<Item = &'a (PaymentEvent, bool)>) -> Registers {
    let mut registers = registers.clone();
    for (event, foreign_mode) in events {
        registers.join(event, *foreign_mode);
    }
    registers
}

pub(super) fn registered() -> Registers {
    Registers { expected: Some(eur(4999)), ..Registers::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_order_of_arrival_with_any_duplicates_ends_the_same((events, arrival) in any_arrival()) {
        let in_order = joined(&registered(), &events);
        let shuffled = joined(&registered(), arrival.iter().map(|index| &events[*index]));
        prop_assert_eq!(view(&in_order), view(&shuffled));
        prop_assert_eq!(in_order.in_doubt(), shuffled.in_doubt());
        prop_assert_eq!(in_order, shuffled);
    }

    #[test]
    fn the_join_is_commutative_and_idempotent(events in any_events(), one in any_event(), other in any_event()) {
        let known = joined(&registered(), &events);
        let both = joined(&known, [&one, &other]);
        prop_assert_eq!(&both, &joined(&known, [&other, &one]));
        prop_assert_eq!(&both, &joined(&both, [&one, &other]));
    }

    /// Whichever half of what is known came first.
    #[test]
    fn the_join_is_associative(first in any_events(), second in any_events(), third in any_events()) {
        let left = joined(&joined(&joined(&registered(), &first), &second), &third);
        let right = joined(&joined(&joined(&registered(), &second), &third), &first);
        prop_assert_eq!(left, right);
    }

    /// But that an answer confirms may end a review.
    #[test]
    fn what_adds_nothing_shows_nothing_new(events in any_events(), one in any_event()) {
        let mut registers = joined(&registered(), &events);
        let before = view(&registers);
        if !registers.join(&one.0, one.1) {
            let after = view(&registers);
            let amounts = |view: &View| [view.authorized, view.captured, view.refunded, view.disputed];
            prop_assert_eq!(amounts(&before), amounts(&after));
            prop_assert_eq!(before.last_failure, after.last_failure);
        }
    }

    #[test]
    fn a_decision_commutes_with_facts(events in any_events(), more in any_events(), at_s in 0_i64..3, accepts in any::<bool>()) {
        let known = joined(&registered(), &events);
        if let Some(saw) = known.open_review(&Rules::default()) {
            let verdict = if accepts { Verdict::Accept } else { Verdict::Reject };
            let at = Timestamp::from_seconds(at_s);
            let decision = Decision { at, verdict, reason: String::new(), operator: "Ada".into(), saw };
            let mut decided_first = known.clone();
            decided_first.decide(decision.clone());
            prop_assert_ne!(&decided_first.open_review(&Rules::default()), &Some(decision.saw.clone()), "it is decided");
            let decided_first = joined(&decided_first, &more);
            let mut decided_last = joined(&known, &more);
            prop_assert!(decided_last.decide(decision.clone()));
            prop_assert_eq!(&decided_first, &decided_last);
            prop_assert!(!decided_last.decide(decision), "once");
            prop_assert_eq!(decided_first, decided_last);
        }
    }

    #[test]
    fn joining_all_facts_again_rebuilds_the_order((events, arrival) in any_arrival(), names_b in any::<bool>()) {
        let mut registers = joined(&registered(), &events);
        if names_b {
            registers.add_payment(&"stripe".into(), &"default".into(), "b");
        }
        if registers.open_review(&Rules::default()).is_some() {
            registers.decide(decision_on(&registers, 9, Verdict::Accept));
        }
        let rebuilt = joined(&registers.without_facts(), arrival.iter().map(|index| &events[*index]));
        prop_assert_eq!(rebuilt, registers);
    }

    #[test]
    fn amounts_are_never_negative_and_reviews_are_what_stands(events in any_events()) {
        let registers = joined(&registered(), &events);
        let view = view(&registers);
        prop_assert!(view.captured >= 0 && view.refunded >= 0 && view.disputed >= 0 && view.authorized >= view.captured);
        prop_assert_eq!(view.review, registers.open_review(&Rules::default()).map(|saw| saw.reason));
        prop_assert_eq!(view.review.is_some(), view.status == OrderStatus::UnderReview);
    }

    #[test]
    fn any_registers_survive_storage(events in any_events()) {
        let registers = joined(&registered(), &events);
        let stored = serde_json::to_string(&registers).unwrap();
        prop_assert_eq!(serde_json::from_str::<Registers>(&stored).unwrap(), registers);
    }
}
