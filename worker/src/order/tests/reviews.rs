//! Reviews, what operators decide about them, tips, and doubts about what a PSP says.

use super::*;
use DisputeState as D;
use OrderStatus as O;
use RefundState as R;
use Verdict::{Accept, Reject};

fn allowing(percent: u8) -> Rules {
    let account = AccountKey { psp: "stripe".into(), account: "default".into() };
    Rules { over_capture_percent: HashMap::from([(account, percent)]) }
}

/// The order as it stands once the open review is decided so.
fn decided(registers: &Registers, verdict: Verdict) -> Registers {
    let mut decided = registers.clone();
    assert!(decided.decide(decision_on(registers, 1_000, verdict)));
    assert_eq!(decided.open_review(&Rules::default()), None);
    assert!(view(&decided).payments.iter().all(|payment| payment.review.is_none()));
    decided
}

fn review(registers: &Registers) -> Option<ReviewReason> {
    let review = view(registers).review;
    assert_eq!(review.is_some(), status(registers) == O::UnderReview);
    assert_eq!(review, registers.open_review(&Rules::default()).map(|saw| saw.reason));
    review
}

#[test]
fn a_tip_within_the_settings_percent_is_paid() {
    let paid = |minor, percent| order_of(&[("a", captured(minor))]).view(&allowing(percent)).status;
    // 10 % of 49.99 EUR, rounded down to cents: 4.99 EUR
    assert_eq!([paid(5498, 10), paid(5499, 10)], [O::Paid, O::UnderReview]);
    assert_eq!([paid(4999, 0), paid(5000, 0)], [O::Paid, O::UnderReview]);
    assert_eq!([paid(5047, 1), paid(5048, 1), paid(5049, 1)], [O::Paid, O::Paid, O::UnderReview]);
    assert_eq!(paid(4998, 100), O::UnderReview, "less is less");
    let huge = Registers { expected: Some(eur(i64::MAX)), ..order_of(&[("a", captured(i64::MAX))]) };
    assert_eq!(huge.view(&allowing(255)).status, O::Paid, "without overflow");
}

#[test]
fn the_most_generous_account_that_captured_says_what_a_tip_may_be() {
    let mut registers = order_of(&[("a", captured(5200))]);
    let mut other = event(9, "b", captured(1));
    other.key.account = "other".into();
    let strict = AccountKey { psp: "stripe".into(), account: "other".into() };
    let mut rules = allowing(10);
    rules.over_capture_percent.insert(strict, 0);
    registers.join(&other, false);
    assert_eq!(registers.view(&rules).status, O::Paid);
    // an account that captured nothing has no say
    let mut registers = after(&[PaymentEvent { payment_id: "b".into(), ..other.clone() }]);
    registers.join(&PaymentEvent { fact: captured(5200), ..other }, false);
    registers.join(&event(9, "a", payment(PaymentState::Failed)), false);
    assert_eq!(registers.view(&rules).status, O::UnderReview);
}

#[test]
fn an_accepted_amount_pays_and_a_rejected_one_cancels() {
    let refunded = |minor| ("a", refund("re_1", R::Succeeded, minor));
    let disputed = |state| ("a", dispute(state, 5000));
    for (more, accepted, rejected) in [
        (None, O::Paid, O::Canceled),
        (Some(refunded(1)), O::PartiallyRefunded, O::PartiallyRefunded),
        (Some(refunded(5000)), O::Refunded, O::Refunded),
        (Some(disputed(D::Open)), O::Disputed, O::Disputed),
        (Some(disputed(D::Lost)), O::ChargedBack, O::ChargedBack),
        (Some(disputed(D::Won)), O::Paid, O::Canceled),
    ] {
        for minor in [5000, 3000] {
            let facts: Vec<_> = [("a", captured(minor))].into_iter().chain(more.clone()).collect();
            let registers = order_of(&facts);
            assert_eq!(review(&registers), Some(ReviewReason::AmountMismatch));
            assert_eq!(status(&decided(&registers, Accept)), accepted, "{minor} {more:?}");
            assert_eq!(status(&decided(&registers, Reject)), rejected, "{minor} {more:?}");
        }
    }
}

#[test]
fn money_that_does_not_fit_counts_only_once_a_person_accepts_it() {
    let mut registers = order_of(&[("b", captured_in_yen())]);
    assert_eq!(review(&registers), Some(ReviewReason::CurrencyMismatch));
    assert_eq!(view(&registers).payments[0].review, Some(ReviewReason::CurrencyMismatch));
    assert_eq!((status(&decided(&registers, Accept)), view(&decided(&registers, Accept)).captured), (O::Paid, 0));
    assert_eq!(status(&decided(&registers, Reject)), O::Canceled, "there is no other payment");
    // what becomes of an accepted payment becomes of the order
    let mut accepted = decided(&registers, Accept);
    accepted.join(&event(9, "b", Fact::Dispute { id: "dp_1".into(), state: D::Open, amount: yen(3000) }), false);
    assert_eq!(status(&accepted), O::Disputed);
    // beside a payment that fits
    registers.join(&event(9, "a", authorized(4999)), false);
    assert_eq!(review(&registers), Some(ReviewReason::CurrencyMismatch));
    assert_eq!(status(&decided(&registers, Reject)), O::Authorized);
    registers.join(&event(10, "a", captured(4999)), false);
    assert_eq!(status(&decided(&registers, Reject)), O::Paid);
    registers.join(&event(11, "a", refund("re_1", R::Succeeded, 1)), false);
    assert_eq!(status(&decided(&registers, Accept)), O::PartiallyRefunded);
}

#[test]
fn a_decision_holds_as_long_as_the_amounts_that_it_saw() {
    let registers = order_of(&[("a", captured(5000))]);
    let mut accepted = decided(&registers, Accept);
    // gross is what was judged: a refund changes nothing of it
    accepted.join(&event(9, "a", refund("re_1", R::Succeeded, 5000)), false);
    assert_eq!((review(&accepted), status(&accepted)), (None, O::Refunded));
    for more in [event(10, "a", captured(5001)), event(10, "b", captured(1)), event(10, "b", captured_in_yen())] {
        let mut changed = accepted.clone();
        changed.join(&more, false);
        assert_eq!(review(&changed), Some(ReviewReason::AmountMismatch), "{more:?}");
        assert_eq!(review(&decided(&changed, Reject)), None, "and is decided anew");
    }
    let mut dearer = accepted.clone();
    dearer.expected = Some(eur(4000));
    assert_eq!(review(&dearer), Some(ReviewReason::AmountMismatch));
    let mut of_test_mode = accepted.clone();
    of_test_mode.join(&event(10, "a", captured(5000)), true);
    assert_eq!(review(&of_test_mode), Some(ReviewReason::ModeMismatch));
    // facts that remove the cause leave nothing to decide
    accepted.expected = Some(eur(5000));
    assert_eq!((review(&accepted), status(&accepted)), (None, O::Refunded));
}

#[test]
fn of_several_reasons_the_first_is_told_and_all_are_seen() {
    let mut registers = order_of(&[("a", captured(1)), ("b", captured_in_yen())]);
    registers.join(&event(5, "c", captured(4999)), true);
    assert_eq!(review(&registers), Some(ReviewReason::AmountMismatch));
    let saw = registers.open_review(&Rules::default()).unwrap();
    let seen: Vec<_> = saw.payments.iter().map(|payment| (&*payment.payment_id, payment.captured, payment.misfit)).collect();
    let misfits = [("b", 3000, Some(ReviewReason::CurrencyMismatch)), ("c", 4999, Some(ReviewReason::ModeMismatch))];
    assert_eq!(seen, [&[("a", 1, None)], misfits.as_slice()].concat());
    registers.join(&event(9, "a", captured(4999)), false);
    assert_eq!(review(&registers), Some(ReviewReason::CurrencyMismatch));
    let shown: Vec<_> = view(&registers).payments.into_iter().map(|payment| payment.review).collect();
    assert_eq!(shown, [None, Some(ReviewReason::CurrencyMismatch), Some(ReviewReason::ModeMismatch)]);
}

#[test]
fn money_that_fits_says_the_currency_of_an_order_that_nobody_registered() {
    let mut registers = Registers::default();
    let dollars = Money::new(100, paybell_shared::money::Currency::parse("USD").unwrap());
    let in_dollars = Fact::Payment(PaymentFact { captured: Some(dollars), ..PaymentFact::new(PaymentState::Captured) });
    registers.join(&event(1, "live", in_dollars), false);
    registers.join(&event(1, "test", captured(1)), true);
    let view = view(&registers);
    assert_eq!((view.currency, view.captured, view.review), (Some(dollars.currency), 100, Some(ReviewReason::ModeMismatch)));
}

/// Who was asked what: a step of a history, and whether it is doubted after it.
#[track_caller]
fn doubted(events: &[PaymentEvent]) -> (bool, Option<ReviewReason>) {
    let all = [&[event(0, "a", captured(4999))], events].concat();
    let registers = after(&all);
    let reversed: Vec<PaymentEvent> = all.into_iter().rev().collect();
    assert_eq!(registers, after(&reversed));
    (!registers.in_doubt().is_empty(), review(&registers))
}

const NO_DOUBT: (bool, Option<ReviewReason>) = (false, None);
const DOUBT: (bool, Option<ReviewReason>) = (true, None);
const CONTRADICTION: (bool, Option<ReviewReason>) = (true, Some(ReviewReason::Contradiction));

#[test]
fn a_step_back_on_event_time_alone_asks_the_psp() {
    let on = |at_s, state| event(at_s, "a", refund("re_1", state, 1000));
    let told = |at_s, state| answer(at_s, "a", refund("re_1", state, 1000));
    assert_eq!(doubted(&[on(1, R::Pending), on(2, R::Succeeded), on(3, R::Failed)]), NO_DOUBT);
    assert_eq!(doubted(&[on(1, R::Succeeded), on(2, R::Pending)]), DOUBT);
    assert_eq!(doubted(&[on(1, R::Failed), on(2, R::Succeeded)]), DOUBT);
    // confirmed by an answer, or overtaken by one, or by a further step
    assert_eq!(doubted(&[on(1, R::Succeeded), on(2, R::Pending), told(3, R::Pending)]), NO_DOUBT);
    assert_eq!(doubted(&[on(1, R::Succeeded), on(2, R::Pending), told(3, R::Succeeded)]), NO_DOUBT);
    assert_eq!(doubted(&[on(1, R::Succeeded), on(2, R::Pending), on(3, R::Succeeded)]), NO_DOUBT);
    // a PSP's own numbers are trusted
    let count = |number, state| numbered(number, "a", refund("re_1", state, 1000));
    assert_eq!(doubted(&[count(1, R::Succeeded), count(2, R::Pending)]), NO_DOUBT);
    // captures as refunds
    let taking = |at_s, state| event(at_s, "a", capture("c_1", state, 4999));
    assert_eq!(doubted(&[taking(1, CaptureState::Pending), taking(2, CaptureState::Succeeded)]), NO_DOUBT);
    assert!(doubted(&[taking(1, CaptureState::Succeeded), taking(2, CaptureState::Pending)]).0);
}

#[test]
fn a_dispute_goes_back_and_forth_in_daily_life() {
    let on = |at_s, state| event(at_s, "a", dispute(state, 4999));
    for later in [D::Open, D::Won, D::Lost] {
        for before in [D::Inquiry, D::InquiryClosed, D::Open, D::Won, D::Lost] {
            assert!(!doubted(&[on(1, before), on(2, later)]).0, "{before:?} then {later:?}");
        }
        for inquiry in [D::Inquiry, D::InquiryClosed] {
            assert!(doubted(&[on(1, later), on(2, inquiry)]).0, "{later:?} then {inquiry:?}");
        }
    }
}

#[test]
fn two_amounts_for_one_state_at_one_version_ask_the_psp() {
    let on = |at_s, minor| event(at_s, "a", refund("re_1", R::Pending, minor));
    let told = |at_s, minor| answer(at_s, "a", refund("re_1", R::Pending, minor));
    assert_eq!(doubted(&[on(1, 1000), on(1, 2000)]), DOUBT);
    assert_eq!(doubted(&[on(1, 1000), on(2, 2000)]), NO_DOUBT, "it may change");
    assert_eq!(doubted(&[on(1, 1000), event(1, "a", refund("re_1", R::Succeeded, 2000))]), NO_DOUBT, "ranks decide");
    assert_eq!(doubted(&[on(1, 1000), on(1, 2000), told(2, 2000)]), NO_DOUBT);
    assert_eq!(doubted(&[on(1, 1000), on(1, 2000), told(2, 1000)]), NO_DOUBT);
    let count = |minor| numbered(1, "a", refund("re_1", R::Pending, minor));
    assert_eq!(doubted(&[count(1000), count(2000)]), DOUBT, "also where versions are numbers");
}

#[test]
fn a_psp_that_contradicts_itself_is_a_review_until_it_repeats_it() {
    let on = |at_s, state| event(at_s, "a", refund("re_1", state, 1000));
    let told = |at_s, state| answer(at_s, "a", refund("re_1", state, 1000));
    assert_eq!(doubted(&[told(1, R::Failed), on(2, R::Pending)]), DOUBT, "an event alone is asked about first");
    assert_eq!(doubted(&[told(1, R::Failed), told(2, R::Pending)]), CONTRADICTION);
    assert_eq!(doubted(&[told(1, R::Failed), on(2, R::Pending), told(3, R::Pending)]), CONTRADICTION);
    assert_eq!(doubted(&[told(1, R::Failed), told(2, R::Pending), on(3, R::Pending)]), CONTRADICTION);
    assert_eq!(doubted(&[told(1, R::Failed), told(2, R::Pending), told(2, R::Pending)]), CONTRADICTION, "the same answer");
    assert_eq!(doubted(&[told(1, R::Failed), told(2, R::Pending), told(3, R::Pending)]), NO_DOUBT);
    assert_eq!(doubted(&[told(1, R::Failed), told(2, R::Pending), told(3, R::Failed)]), NO_DOUBT);
}

#[test]
fn a_contradiction_is_decided_by_itself_after_the_money() {
    let told = |at_s, state| answer(at_s, "a", refund("re_1", state, 1000));
    let registers = after(&[event(0, "a", captured(5000)), told(1, R::Succeeded), told(2, R::Pending)]);
    assert_eq!(review(&registers), Some(ReviewReason::AmountMismatch));
    assert_eq!(view(&registers).payments[0].review, Some(ReviewReason::Contradiction));
    let mut accepted = registers.clone();
    accepted.decide(decision_on(&registers, 10, Accept));
    assert_eq!(review(&accepted), Some(ReviewReason::Contradiction));
    assert_eq!(status(&decided(&accepted, Accept)), O::Paid);
    assert_eq!(status(&decided(&accepted, Reject)), O::Canceled);
    // accepting what contradicts itself does not make money of nothing
    let nothing = |at_s, state| answer(at_s, "a", capture("c_1", state, 4999));
    let registers = after(&[nothing(1, CaptureState::Failed), nothing(2, CaptureState::Pending)]);
    assert_eq!(review(&registers), Some(ReviewReason::Contradiction));
    assert_eq!(status(&decided(&registers, Accept)), O::Pending);
}

#[test]
fn a_total_beyond_the_known_refunds_asks_for_the_list_once() {
    let single = event(1, "a", refund("re_1", R::Succeeded, 1000));
    assert!(doubted(&[event(2, "a", total(1000))]).0);
    assert!(!doubted(&[single.clone(), event(2, "a", total(1000))]).0);
    assert!(doubted(&[single.clone(), event(2, "a", total(1500))]).0);
    assert!(!doubted(&[single.clone(), event(2, "a", total(1500)), answer(3, "a", total(1500))]).0, "asked");
    assert!(doubted(&[single, event(4, "a", total(1600)), answer(3, "a", total(1500))]).0, "and asked anew");
}
