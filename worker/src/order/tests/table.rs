//! The module's table of merges, row by row.

use super::*;
use DisputeState as D;
use PaymentState as P;
use RefundState as R;

/// Two facts of one register, and what is shown once both are known, whichever came first.
struct Row {
    register: &'static str,
    first: PaymentEvent,
    second: PaymentEvent,
    shows: fn(&Registers) -> String,
    expected: &'static str,
}

fn row(
    register: &'static str,
    first: PaymentEvent,
    second: PaymentEvent,
    shows: fn(&Registers) -> String,
    expected: &'static str,
) -> Row {
    Row { register, first, second, shows, expected }
}

fn state(registers: &Registers) -> String {
    format!("{:?}", registers.payments[0].state())
}

fn failure(registers: &Registers) -> String {
    let failure = view(registers).last_failure.unwrap();
    format!("{} at {}", failure.code, failure.at.seconds())
}

fn held(registers: &Registers) -> String {
    view(registers).authorized.to_string()
}

fn taken(registers: &Registers) -> String {
    view(registers).captured.to_string()
}

fn first_told(registers: &Registers) -> String {
    format!("{:?}", registers.payments[0].captured.unwrap().first_told.unwrap().0)
}

fn standing(registers: &Registers) -> String {
    format!("{:?}", status(registers))
}

fn returned(registers: &Registers) -> String {
    view(registers).refunded.to_string()
}

fn claimed(registers: &Registers) -> String {
    view(registers).disputed.to_string()
}

fn doubtful(registers: &Registers) -> String {
    registers.in_doubt().len().to_string()
}

fn made_at(registers: &Registers) -> String {
    registers.payments[0].refunds["re_1"].created.unwrap().seconds().to_string()
}

fn refund_made(at_s: i64) -> Fact {
    let created = Some(Timestamp::from_seconds(at_s));
    Fact::Refund { id: "re_1".into(), state: R::Succeeded, amount: eur(1000), created }
}

fn rows() -> Vec<Row> {
    let on = |at_s, fact| event(at_s, "a", fact);
    let told = |at_s, fact| answer(at_s, "a", fact);
    let count = |number, fact| numbered(number, "a", fact);
    let taking = |state| capture("c", state, 4999);
    let giving = |state| refund("re_1", state, 7);
    let attempt_state = "attempt at a payment";
    let (failures, given_up) = ("attempt: failures", "attempt: given up");
    let authorised = "payment: authorised";
    let captured_total = "payment: captured in all";
    let history = "capture, refund, dispute";
    let refund_total = "payment: refunded in all";
    vec![
        row(attempt_state, on(1, captured(4999)), on(2, payment(P::Failed)), state, "Captured"),
        row(attempt_state, on(1, payment(P::Failed)), on(2, payment(P::Authorized)), state, "Authorized"),
        row(attempt_state, on(1, payment(P::Pending)), on(1, payment(P::Failed)), state, "Failed"),
        row(attempt_state, on(1, payment(P::Expired)), on(2, payment(P::Authorized)), state, "Authorized"),
        row(attempt_state, on(2, authorized(1)), on(1, payment(P::Canceled)), state, "Canceled"),
        row(attempt_state, on(1, attempt("x", P::Failed)), on(1, attempt("y", P::Pending)), state, "Pending"),
        row(attempt_state, on(1, attempt("x", P::Pending)), on(2, attempt("y", P::Captured)), state, "Captured"),
        row(failures, on(1, failed("x", "one")), on(2, failed("x", "two")), failure, "two at 2"),
        row(failures, on(1, failed("x", "one")), told(2, failed("x", "one")), failure, "one at 1"),
        row(failures, on(1, failed("x", "one")), on(1, failed("y", "two")), failure, "two at 1"),
        row(given_up, on(1, captured_of(2000, 4999)), on(2, payment(P::Canceled)), standing, "UnderReview"),
        row(given_up, on(1, captured_of(2000, 4999)), on(2, attempt("other", P::Canceled)), standing, "PartiallyPaid"),
        row(given_up, on(1, payment(P::AuthorizationExpired)), on(1, payment(P::Canceled)), standing, "Canceled"),
        row(authorised, on(1, authorized(4999)), on(2, authorized(3000)), held, "3000"),
        row(authorised, on(1, authorized(4999)), on(1, authorized(3000)), held, "4999"),
        row(authorised, count(1, authorized(4999)), on(9, authorized(3000)), held, "4999"),
        row(captured_total, on(1, captured(4999)), on(2, captured(3000)), taken, "4999"),
        row(captured_total, on(1, captured(3000)), on(2, captured(4999)), first_told, "Time(2000)"),
        row(captured_total, on(1, captured(4999)), on(2, captured(4999)), first_told, "Time(1000)"),
        row("payment: capture final", on(1, captured(2000)), on(2, captured_of(2000, 4999)), standing, "UnderReview"),
        row(history, on(1, taking(CaptureState::Succeeded)), on(2, taking(CaptureState::Failed)), taken, "0"),
        row(history, on(1, taking(CaptureState::Succeeded)), on(1, taking(CaptureState::Pending)), taken, "4999"),
        row(history, on(1, giving(R::Pending)), on(2, giving(R::Succeeded)), returned, "7"),
        row(history, on(1, giving(R::Failed)), on(1, giving(R::Succeeded)), returned, "0"),
        row(history, on(1, giving(R::Succeeded)), on(1, refund("re_1", R::Succeeded, 8)), returned, "8"),
        row(history, on(1, giving(R::Succeeded)), on(2, refund("re_2", R::Succeeded, 8)), returned, "15"),
        row(history, on(1, dispute(D::Won, 9)), on(2, dispute(D::Open, 9)), claimed, "9"),
        row(history, on(1, dispute(D::Lost, 9)), on(1, dispute(D::Open, 9)), standing, "ChargedBack"),
        row(history, count(2, dispute(D::Won, 9)), count(1, dispute(D::Lost, 9)), claimed, "0"),
        row(history, on(2, giving(R::Failed)), on(3, giving(R::Succeeded)), doubtful, "1"),
        row(history, on(2, giving(R::Failed)), told(3, giving(R::Succeeded)), doubtful, "0"),
        row(history, on(3, giving(R::Failed)), told(3, giving(R::Failed)), doubtful, "0"),
        row("refund: made at", on(3, refund_made(2)), on(4, refund_made(1)), made_at, "1"),
        row(refund_total, on(1, total(1000)), on(2, total(500)), returned, "500"),
        row(refund_total, on(1, total(1000)), on(1, total(500)), returned, "1000"),
        row(refund_total, on(1, total(1000)), told(1, total(1000)), doubtful, "0"),
        row(refund_total, on(2, total(1000)), told(1, total(1000)), doubtful, "1"),
    ]
}

#[test]
fn two_facts_merge_as_the_table_says_in_both_orders() {
    for Row { register, first, second, shows, expected } in rows() {
        let (one, other) = (after(&[first.clone(), second.clone()]), after(&[second.clone(), first.clone()]));
        assert_eq!(shows(&one), expected, "{register}: {:?} and {:?}", first.fact, second.fact);
        assert_eq!(one, other, "{register}: {:?} and {:?}", first.fact, second.fact);
    }
}

/// Of all the facts above, whatever their registers.
#[test]
fn any_two_facts_merge_alike_in_both_orders() {
    let facts: Vec<PaymentEvent> = rows().into_iter().flat_map(|row| [row.first, row.second]).collect();
    for one in &facts {
        for other in &facts {
            let registers = after(&[one.clone(), other.clone()]);
            assert_eq!(registers, after(&[other.clone(), one.clone()]), "{:?} and {:?}", one.fact, other.fact);
            assert_eq!(registers, after(&[one.clone(), other.clone(), one.clone()]), "{:?} and {:?}", one.fact, other.fact);
        }
    }
}

#[test]
fn test_money_stays_test_money() {
    let (test, live) = (event(1, "a", captured(4999)), event(2, "a", captured(4999)));
    for order in [[(&test, true), (&live, false)], [(&live, false), (&test, true)]] {
        let mut registers = after(&[]);
        for (event, foreign_mode) in order {
            registers.join(event, foreign_mode);
        }
        assert_eq!(view(&registers).review, Some(ReviewReason::ModeMismatch));
    }
}

#[test]
fn a_named_payment_stays_named() {
    let (psp, account) = ("stripe".into(), "default".into());
    let mut named_first = after(&[]);
    named_first.add_payment(&psp, &account, "a");
    named_first.join(&event(1, "a", captured(4999)), false);
    let mut named_last = after(&[event(1, "a", captured(4999))]);
    named_last.add_payment(&psp, &account, "a");
    assert_eq!(named_first, named_last);
    assert_eq!(named_first.without_facts().payments.len(), 1);
}

#[test]
fn of_two_expiries_the_later_counts() {
    for [one, other] in [[10, 20], [20, 10]] {
        let mut registers = Registers { expires_at: Some(Timestamp::from_seconds(15)), ..after(&[]) };
        registers.expire(Timestamp::from_seconds(one));
        registers.expire(Timestamp::from_seconds(other));
        assert_eq!(registers.expired, Some(Timestamp::from_seconds(20)));
        assert_eq!(status(&registers), OrderStatus::Expired);
    }
}

#[test]
fn the_later_decision_counts_and_of_two_at_once_the_refusal() {
    use Verdict::{Accept, Reject};
    let reviewed = after(&[event(1, "a", captured(5000))]);
    for (first, second, expected) in [
        ((1, Accept), (2, Reject), OrderStatus::Canceled),
        ((1, Reject), (2, Accept), OrderStatus::Paid),
        ((1, Accept), (1, Reject), OrderStatus::Canceled),
    ] {
        for decisions in [[first, second], [second, first]] {
            let mut registers = reviewed.clone();
            for (at_s, verdict) in decisions {
                let decision = decision_on(&reviewed, at_s, verdict);
                assert!(registers.decide(decision.clone()));
                assert!(!registers.decide(decision), "the same again");
            }
            assert_eq!(status(&registers), expected);
        }
    }
}

/// The rows that the tests here go through are the rows of the module's table.
#[test]
fn every_row_of_the_table_is_tested() {
    let source = include_str!("../../order.rs");
    let table = source.lines().filter_map(|line| line.strip_prefix("//! | ")).skip(1);
    let documented: Vec<&str> = table.map(|line| line.split(" | ").next().unwrap()).collect();
    let mut tested: Vec<&str> = rows().iter().map(|row| row.register).collect();
    // No facts, or more than facts: these have tests of their own above.
    tested.extend(["payment: test or live", "payment: named", "decisions of operators", "order: found expired"]);
    tested.dedup();
    assert_eq!(documented, tested);
}
