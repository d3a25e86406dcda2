//! What users of such systems complained about: orders that went wrong although every webhook was there. One test each,
//! named after what went wrong.

use super::*;
use OrderStatus as O;
use PaymentState as P;

/// Checks that the events end with this status and captured amount, heard forwards and backwards.
#[track_caller]
fn always(events: &[PaymentEvent], expected: OrderStatus, captured: i64) {
    let reversed: Vec<PaymentEvent> = events.iter().rev().cloned().collect();
    for events in [events, &reversed] {
        let view = view(&after(events));
        assert_eq!((view.status, view.captured), (expected, captured), "{events:#?}");
    }
}

/// statamic-cargo#190, adyen-magento#205, lago-api#1373.
#[test]
fn the_webhook_came_before_the_order_and_nobody_paid_it() {
    let mut registers = Registers::default();
    registers.join(&event(1, "pi_1", captured(4999)), false);
    registers.expected = Some(eur(4999));
    registers.add_account(&"stripe".into(), &"default".into());
    assert_eq!(status(&registers), O::Paid);
    registers.expected = Some(eur(9999));
    assert_eq!(view(&registers).review, Some(ReviewReason::AmountMismatch), "but not with another amount");
}

/// woocommerce-gateway-stripe#5691: charged, yet the order was auto-cancelled.
#[test]
fn a_charged_order_was_cancelled_when_its_time_ran_out() {
    let session_expired = event(9, "pi_1", payment(P::Expired));
    always(&[event(1, "pi_1", captured(4999)), session_expired], O::Paid, 4999);
    let mut registers = after(&[event(9, "pi_1", captured(4999))]);
    registers.expires_at = Some(Timestamp::from_seconds(5));
    assert_eq!(status(&registers), O::Paid);
}

/// adyen-magento2#2726: return page and webhook raced, and the order went back from processing to pending.
#[test]
fn the_order_went_back_from_processing_to_pending() {
    let (held, return_page) = (event(1, "pi_1", authorized(4999)), event(2, "pi_1", payment(P::Pending)));
    always(&[held, return_page], O::Authorized, 0);
}

/// adyen-magento2#607, #1631.
#[test]
fn a_failed_attempt_cancelled_an_order_that_was_paid_minutes_later() {
    let refused = |attempt| failed(attempt, "refused");
    always(&[event(1, "pi_1", refused("ch_1")), event(300, "pi_1", captured(4999))], O::Paid, 4999);
    // by a PSP that does not tell attempts apart
    always(&[event(1, "pi_1", payment(P::Failed)), event(300, "pi_1", captured(4999))], O::Paid, 4999);
    // the failure minutes after the success, of another attempt or of another payment
    always(&[event(1, "pi_1", captured(4999)), event(300, "pi_1", refused("ch_2"))], O::Paid, 4999);
    always(&[event(1, "pi_1", captured(4999)), event(300, "pi_2", refused("ch_2"))], O::Paid, 4999);
}

/// mirakl-hyperwallet-connector#35.
#[test]
fn an_older_event_that_was_delivered_late_overwrote_the_newer_one() {
    let older = event(1, "pi_1", refund("re_1", RefundState::Pending, 4999));
    let newer = event(2, "pi_1", refund("re_1", RefundState::Succeeded, 4999));
    always(&[event(0, "pi_1", captured(4999)), newer, older], O::Refunded, 4999);
}

/// stripe-cli#418: "updated" before "created", with the same second on both.
#[test]
fn updated_came_before_created_with_the_same_timestamp() {
    let created = event(1, "pi_1", dispute(DisputeState::Open, 4999));
    let closed = event(1, "pi_1", dispute(DisputeState::Won, 4999));
    always(&[event(1, "pi_1", captured(4999)), closed, created], O::Paid, 4999);
    let created = event(1, "pi_1", refund("re_1", RefundState::Pending, 4999));
    let updated = event(1, "pi_1", refund("re_1", RefundState::Succeeded, 4999));
    always(&[event(1, "pi_1", captured(4999)), updated, created], O::Refunded, 4999);
}

/// pay#371, vendure-plugins#620, dj-stripe#1239.
#[test]
fn one_webhook_that_came_three_times_was_settled_three_times() {
    let (paid, returned) = (event(1, "pi_1", captured(4999)), event(2, "pi_1", refund("re_1", RefundState::Succeeded, 1000)));
    let once = after(&[paid.clone(), returned.clone()]);
    let thrice = after(&[paid.clone(), paid.clone(), returned.clone(), paid, returned.clone(), returned]);
    assert_eq!(thrice, once);
    assert_eq!((view(&thrice).captured, view(&thrice).refunded), (4999, 1000));
}

/// killbill#573: a repeated notification threw "invalid transition".
#[test]
fn a_repeated_notification_was_an_invalid_transition() {
    let mut registers = after(&[event(1, "pi_1", captured(4999)), event(2, "pi_1", dispute(DisputeState::Won, 4999))]);
    let before = registers.clone();
    for repeated in [captured(4999), payment(P::Captured), payment(P::Failed), payment(P::Pending)] {
        assert!(!registers.join(&event(1, "pi_1", repeated), false), "it adds nothing");
    }
    assert!(!registers.join(&event(3, "pi_1", dispute(DisputeState::Won, 4999)), false), "it only confirms");
    assert_eq!(view(&registers), view(&before));
}

/// saleor#19220: webhook and checkout made two payment intents for one order, and both were captured.
#[test]
fn two_payments_of_one_checkout_passed_for_one() {
    let (one, other) = (event(1, "pi_1", captured(4999)), event(1, "pi_2", captured(4999)));
    always(&[one.clone(), other.clone()], O::UnderReview, 9998);
    // and giving one back does not hide that it was captured
    let returned = event(2, "pi_2", refund("re_1", RefundState::Succeeded, 4999));
    always(&[one, other, returned], O::UnderReview, 9998);
}

/// The same by two events: a webhook and a poll, a cumulative figure and its single refund.
#[test]
fn one_refund_that_was_heard_of_twice_was_counted_twice() {
    let all = [
        event(1, "pi_1", captured(4999)),
        event(2, "pi_1", refund("re_1", RefundState::Succeeded, 1000)),
        event(2, "pi_1", total(1000)),
        answer(9, "pi_1", refund("re_1", RefundState::Succeeded, 1000)),
        answer(9, "pi_1", total(1000)),
    ];
    always(&all, O::PartiallyRefunded, 4999);
    assert_eq!(view(&after(&all)).refunded, 1000);
}

/// Signed does not mean right: another amount, currency, mode or account than the order's.
#[test]
fn money_that_does_not_fit_paid_an_order() {
    let foreign = |change: &dyn Fn(&mut PaymentEvent), foreign_mode| {
        let mut registers = after(&[]);
        registers.add_account(&"stripe".into(), &"default".into());
        let mut event = event(1, "a", captured(4999));
        change(&mut event);
        registers.join(&event, foreign_mode);
        let view = view(&registers);
        (view.status, view.review, view.captured)
    };
    let under_review = |reason| (O::UnderReview, Some(reason), 0);
    assert_eq!(foreign(&|_| {}, false), (O::Paid, None, 4999));
    assert_eq!(foreign(&|_| {}, true), under_review(ReviewReason::ModeMismatch));
    assert_eq!(foreign(&|event| event.key.account = "other".into(), false), under_review(ReviewReason::AccountMismatch));
    assert_eq!(foreign(&|event| event.fact = captured_in_yen(), false), under_review(ReviewReason::CurrencyMismatch));
    let another_amount = (O::UnderReview, Some(ReviewReason::AmountMismatch), 4998);
    assert_eq!(foreign(&|event| event.fact = captured(4998), false), another_amount);
}
