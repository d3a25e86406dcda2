//! An order against the books of a PSP that made up its history.
//!
//! The books are written forwards, one operation after the other, and nothing in them merges: they share no idea with
//! what they judge. The PSP tells each operation by webhooks, which may be lost, doubled and out of order, and answers
//! when asked, now and then in part and in the end in full. Whatever arrived, and in whatever order: with the full answer
//! the order is what the books say.

use proptest::prelude::*;

use super::*;
use CaptureState as C;
use DisputeState as D;
use PaymentState as P;
use RefundState as R;

/// What somebody may do with a payment. What is not possible as it stands is not done.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Try,
    Decline,
    Authorize(i64),
    /// Without an authorisation before.
    Sell(i64),
    Capture {
        minor: i64,
        pending: bool,
        last: bool,
    },
    SettleCapture(C),
    GiveUp(P),
    Refund {
        minor: i64,
        pending: bool,
    },
    SettleRefund(R),
    Dispute(D),
    MoveDispute(D),
    /// Somebody asks about a part of it.
    Ask(Part),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Payment,
    Captures,
    Refunds,
    Disputes,
}

/// A PSP's way of telling things.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// Captures singly, beside what is captured in all. If not, they never wait and never fail.
    names_captures: bool,
    refunds: RefundHabit,
    /// Versions are numbers, not times.
    numbers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefundHabit {
    Singles,
    /// In all: what succeeded.
    Total,
    /// Both, as Stripe does: what waits is in the total as well.
    Both,
}

impl Habits {
    fn can_be_compared(self) -> bool {
        !(self.numbers && self.refunds == RefundHabit::Both)
    }
}

#[derive(Clone)]
struct Books {
    habits: Habits,
    now_s: i64,
    payments: BTreeMap<&'static str, Payment>,
    /// What was told so far: by webhooks, and by answers.
    webhooks: Vec<PaymentEvent>,
    answers: Vec<PaymentEvent>,
}

#[derive(Clone, Default)]
struct Payment {
    /// Each attempt's state: pending, failed, authorised or captured.
    attempts: Vec<P>,
    held: i64,
    given_up: Option<P>,
    no_more_captures: bool,
    captures: Vec<(C, i64)>,
    refunds: Vec<(R, i64, i64)>,
    disputes: Vec<(D, i64)>,
}

impl Payment {
    /// Before its first attempt the PSP knows nothing of it.
    fn is_known(&self) -> bool {
        !self.attempts.is_empty()
    }

    fn captured(&self) -> i64 {
        self.captures.iter().filter(|(state, _)| *state == C::Succeeded).map(|(_, minor)| minor).sum()
    }

    fn refunded(&self, states: &[R]) -> i64 {
        self.refunds.iter().filter(|(state, ..)| states.contains(state)).map(|(_, minor, _)| minor).sum()
    }

    fn disputed(&self) -> i64 {
        self.disputes.iter().filter(|(state, _)| matches!(state, D::Open | D::Lost)).map(|(_, minor)| minor).sum()
    }

    fn authorized(&self) -> i64 {
        if self.given_up.is_some() && self.captured() == 0 { 0 } else { self.held.max(self.captured()) }
    }

    fn state(&self) -> P {
        if self.captured() > 0 {
            P::Captured
        } else if let Some(end) = self.given_up {
            end
        } else if self.held > 0 {
            P::Authorized
        } else if self.attempts.contains(&P::Pending) || self.attempts.is_empty() {
            P::Pending
        } else {
            P::Failed
        }
    }

    fn may_bring_more(&self) -> bool {
        match self.state() {
            P::Pending | P::Authorized => true,
            P::Captured => !self.no_more_captures && self.given_up.is_none() && self.captured() < self.held,
            _ => false,
        }
    }

    /// The attempt that goes on, or a new one.
    fn open_attempt(&mut self) -> usize {
        self.attempts.iter().position(|state| *state == P::Pending).unwrap_or_else(|| {
            self.attempts.push(P::Pending);
            self.attempts.len() - 1
        })
    }

    fn about_attempt(&self, number: usize) -> Fact {
        let state = self.attempts[number];
        let is_last = number == self.attempts.len() - 1;
        let captured = Some(self.captured()).filter(|minor| is_last && *minor > 0).map(eur);
        let state = if captured.is_some() { P::Captured } else { self.given_up.filter(|_| is_last).unwrap_or(state) };
        Fact::Payment(PaymentFact {
            state,
            attempt: Some(format!("ch_{number}")),
            authorized: Some(self.held).filter(|minor| is_last && *minor > 0).map(eur),
            captured,
            capture_final: captured.is_some() && (self.no_more_captures || self.given_up.is_some()),
            failure: None,
        })
    }

    fn about_capture(&self, number: usize) -> Fact {
        let (state, minor) = self.captures[number];
        capture(&format!("c_{number}"), state, minor)
    }

    fn about_refund(&self, number: usize) -> Fact {
        let (state, minor, created_s) = self.refunds[number];
        let created = Some(Timestamp::from_seconds(created_s));
        Fact::Refund { id: format!("re_{number}"), state, amount: eur(minor), created }
    }

    fn about_dispute(&self, number: usize) -> Fact {
        let (state, minor) = self.disputes[number];
        Fact::Dispute { id: format!("dp_{number}"), state, amount: eur(minor) }
    }

    fn about_refunds_in_all(&self, habit: RefundHabit) -> Option<Fact> {
        match habit {
            RefundHabit::Singles => None,
            RefundHabit::Total => Some(total(self.refunded(&[R::Succeeded]))),
            RefundHabit::Both => Some(total(self.refunded(&[R::Pending, R::Succeeded]))),
        }
    }

    fn about(&self, part: Part, habits: Habits) -> Vec<Fact> {
        match part {
            Part::Payment => (0..self.attempts.len()).map(|number| self.about_attempt(number)).collect(),
            Part::Captures if habits.names_captures => {
                (0..self.captures.len()).map(|number| self.about_capture(number)).collect()
            }
            Part::Captures => Vec::new(),
            Part::Refunds => {
                let named = if habits.refunds == RefundHabit::Total { 0 } else { self.refunds.len() };
                (0..named).map(|number| self.about_refund(number)).chain(self.about_refunds_in_all(habits.refunds)).collect()
            }
            Part::Disputes => (0..self.disputes.len()).map(|number| self.about_dispute(number)).collect(),
        }
    }
}

impl Books {
    fn new(habits: Habits) -> Self {
        Self { habits, now_s: 1_000, payments: BTreeMap::new(), webhooks: Vec::new(), answers: Vec::new() }
    }

    /// Does it, if it is possible, and tells it.
    fn operate(&mut self, id: &'static str, operation: Operation) {
        self.now_s += 1;
        let (now_s, habits) = (self.now_s, self.habits);
        let payment = self.payments.entry(id).or_default();
        if let Operation::Ask(part) = operation {
            let facts = payment.about(part, habits);
            self.answer(id, facts);
            return;
        }
        let facts = done(payment, operation, habits, now_s);
        let told = facts.into_iter().map(|fact| self.told(event, id, fact)).collect::<Vec<_>>();
        self.webhooks.extend(told);
    }

    /// Asks about everything at once.
    fn answered_in_full(mut self) -> Self {
        self.now_s += 1;
        let parts = [Part::Payment, Part::Captures, Part::Refunds, Part::Disputes];
        let about = |payment: &Payment| parts.iter().flat_map(|part| payment.about(*part, self.habits)).collect();
        let all: Vec<(&'static str, Vec<Fact>)> = self.payments.iter().map(|(id, payment)| (*id, about(payment))).collect();
        for (id, facts) in all {
            self.answer(id, facts);
        }
        self
    }

    fn answer(&mut self, id: &'static str, facts: Vec<Fact>) {
        if !self.payments[id].is_known() {
            return;
        }
        let told = facts.into_iter().map(|fact| self.told(answer, id, fact)).collect::<Vec<_>>();
        self.answers.extend(told);
    }

    fn told(&self, by: fn(i64, &str, Fact) -> PaymentEvent, id: &str, fact: Fact) -> PaymentEvent {
        let event = by(self.now_s, id, fact);
        let version = if self.habits.numbers { FactVersion::Number(self.now_s) } else { event.version };
        PaymentEvent { version, ..event }
    }

    /// What the order must be: status, authorised, captured, refunded, disputed.
    fn truth(&self, expected: i64) -> (OrderStatus, [i64; 4]) {
        let all = || self.payments.values().filter(|payment| payment.is_known());
        let sum = |of: &dyn Fn(&Payment) -> i64| all().map(of).sum::<i64>();
        let (captured, refunded) = (sum(&Payment::captured), sum(&|payment| payment.refunded(&[R::Succeeded])));
        let any_dispute = |wanted| all().any(|payment| payment.disputes.iter().any(|(state, _)| *state == wanted));
        let any_state = |wanted| all().any(|payment| payment.state() == wanted);
        let may_bring_more = all().any(Payment::may_bring_more);
        let status = if captured > expected || (captured > 0 && captured < expected && !may_bring_more) {
            OrderStatus::UnderReview
        } else if any_dispute(D::Lost) {
            OrderStatus::ChargedBack
        } else if any_dispute(D::Open) {
            OrderStatus::Disputed
        } else if refunded > 0 {
            if refunded == captured { OrderStatus::Refunded } else { OrderStatus::PartiallyRefunded }
        } else if captured > 0 {
            if captured == expected { OrderStatus::Paid } else { OrderStatus::PartiallyPaid }
        } else if any_state(P::Authorized) {
            OrderStatus::Authorized
        } else if any_state(P::Pending) || all().next().is_none() {
            OrderStatus::Pending
        } else if any_state(P::Failed) {
            OrderStatus::Failed
        } else if any_state(P::Canceled) {
            OrderStatus::Canceled
        } else {
            OrderStatus::Expired
        };
        (status, [sum(&Payment::authorized), captured, refunded, sum(&Payment::disputed)])
    }
}

/// Does the operation; returns what its webhooks say, nothing if it was not possible.
fn done(payment: &mut Payment, operation: Operation, habits: Habits, now_s: i64) -> Vec<Fact> {
    let is_open = payment.given_up.is_none() && payment.held == 0 && payment.captured() == 0;
    let about_capture = |payment: &Payment, number: usize| {
        let single = habits.names_captures.then(|| payment.about_capture(number));
        let in_all = (payment.captured() > 0).then(|| payment.about_attempt(payment.attempts.len() - 1));
        single.into_iter().chain(in_all).collect::<Vec<_>>()
    };
    let about_refund = |payment: &Payment, number: usize, is_new: bool| {
        let single = (habits.refunds != RefundHabit::Total).then(|| payment.about_refund(number));
        // Stripe tells the total when a refund is made, not when it comes to its end.
        let in_all = payment.about_refunds_in_all(habits.refunds).filter(|_| is_new || habits.refunds == RefundHabit::Total);
        single.into_iter().chain(in_all).collect::<Vec<_>>()
    };
    match operation {
        Operation::Try if is_open => {
            let number = payment.open_attempt();
            vec![payment.about_attempt(number)]
        }
        Operation::Decline if is_open => {
            let number = payment.open_attempt();
            payment.attempts[number] = P::Failed;
            vec![payment.about_attempt(number)]
        }
        Operation::Authorize(minor) if is_open => {
            let number = payment.open_attempt();
            payment.attempts[number] = P::Authorized;
            payment.held = minor;
            vec![payment.about_attempt(number)]
        }
        Operation::Sell(minor) if is_open => {
            let number = payment.open_attempt();
            payment.attempts[number] = P::Captured;
            payment.no_more_captures = true;
            payment.captures.push((C::Succeeded, minor));
            about_capture(payment, payment.captures.len() - 1)
        }
        Operation::Capture { minor, pending, last } if payment.given_up.is_none() && !payment.no_more_captures => {
            let taken: i64 = payment.captures.iter().filter(|(state, _)| *state != C::Failed).map(|(_, minor)| minor).sum();
            let minor = minor.min(payment.held - taken);
            if minor <= 0 {
                return Vec::new();
            }
            let state = if pending && habits.names_captures { C::Pending } else { C::Succeeded };
            payment.captures.push((state, minor));
            payment.no_more_captures |= last && state == C::Succeeded;
            about_capture(payment, payment.captures.len() - 1)
        }
        // A capture may fail after it succeeded, if the money was not given back before.
        Operation::SettleCapture(end) if habits.names_captures && payment.refunds.is_empty() => {
            let may_end = |state: C| state < end && (end == C::Failed || state == C::Pending);
            let Some(number) = payment.captures.iter().position(|(state, _)| may_end(*state)) else { return Vec::new() };
            payment.captures[number].0 = end;
            if end == C::Failed { vec![payment.about_capture(number)] } else { about_capture(payment, number) }
        }
        // Also of what is captured in part, and of what was captured and failed.
        Operation::GiveUp(end)
            if payment.held > 0
                && payment.given_up.is_none()
                && !payment.captures.iter().any(|(state, _)| *state == C::Pending) =>
        {
            payment.given_up = Some(end);
            vec![attempt(&format!("ch_{}", payment.attempts.len() - 1), end)]
        }
        Operation::Refund { minor, pending } => {
            let minor = minor.min(payment.captured() - payment.refunded(&[R::Pending, R::Succeeded]));
            if minor <= 0 {
                return Vec::new();
            }
            payment.refunds.push((if pending { R::Pending } else { R::Succeeded }, minor, now_s));
            about_refund(payment, payment.refunds.len() - 1, true)
        }
        Operation::SettleRefund(end) => {
            let Some(number) = payment.refunds.iter().position(|(state, ..)| *state < end) else { return Vec::new() };
            payment.refunds[number].0 = end;
            about_refund(payment, number, false)
        }
        Operation::Dispute(state) if payment.captured() > 0 => {
            payment.disputes.push((state, payment.captured()));
            vec![payment.about_dispute(payment.disputes.len() - 1)]
        }
        Operation::MoveDispute(state) => {
            let Some(number) = payment.disputes.len().checked_sub(1) else { return Vec::new() };
            // From an inquiry anywhere, never back to one; otherwise back and forth.
            let before = payment.disputes[number].0;
            if before == state || (before > D::Inquiry && state <= D::InquiryClosed) {
                return Vec::new();
            }
            payment.disputes[number].0 = state;
            vec![payment.about_dispute(number)]
        }
        _ => Vec::new(),
    }
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let minor = || prop::sample::select(vec![1_i64, 999, 2000, 2999, 4999, 4999, 4999, 5000]);
    let part = prop::sample::select(vec![Part::Payment, Part::Captures, Part::Refunds, Part::Disputes]);
    let dispute = prop::sample::select(vec![D::Inquiry, D::InquiryClosed, D::Open, D::Won, D::Lost]);
    prop_oneof![
        1 => Just(Operation::Try),
        2 => Just(Operation::Decline),
        3 => minor().prop_map(Operation::Authorize),
        2 => minor().prop_map(Operation::Sell),
        5 => (minor(), any::<bool>(), any::<bool>())
            .prop_map(|(minor, pending, last)| Operation::Capture { minor, pending, last }),
        3 => prop::sample::select(vec![C::Succeeded, C::Failed]).prop_map(Operation::SettleCapture),
        1 => prop::sample::select(vec![P::Canceled, P::AuthorizationExpired]).prop_map(Operation::GiveUp),
        4 => (minor(), any::<bool>()).prop_map(|(minor, pending)| Operation::Refund { minor, pending }),
        3 => prop::sample::select(vec![R::Succeeded, R::Failed]).prop_map(Operation::SettleRefund),
        1 => prop::sample::select(vec![D::Inquiry, D::Open]).prop_map(Operation::Dispute),
        3 => dispute.prop_map(Operation::MoveDispute),
        2 => part.prop_map(Operation::Ask),
    ]
}

fn any_habits() -> impl Strategy<Value = Habits> {
    let refunds = prop::sample::select(vec![RefundHabit::Singles, RefundHabit::Total, RefundHabit::Both]);
    (any::<bool>(), refunds, prop::bool::weighted(0.2)).prop_map(|(names_captures, refunds, numbers)| Habits {
        names_captures,
        refunds,
        numbers,
    })
}

fn any_books() -> impl Strategy<Value = Books> {
    let payment = prop::sample::select(vec!["a", "a", "a", "b"]);
    (any_habits(), prop::collection::vec((payment, any_operation()), 1..24)).prop_map(|(habits, operations)| {
        let mut books = Books::new(habits);
        for (id, operation) in operations {
            books.operate(id, operation);
        }
        books
    })
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = |event: &PaymentEvent| format!("{} {}: {:?}", event.key.event_id, event.payment_id, event.fact);
        let lists = [&self.webhooks, &self.answers].map(|events| events.iter().map(told).collect::<Vec<_>>());
        write!(f, "{:?} {lists:#?}", self.habits)
    }
}

/// What arrives of the books' events: each webhook never, once or twice; all answers; in any order.
fn any_arrival(books: Books) -> impl Strategy<Value = (Books, Vec<PaymentEvent>)> {
    let times = prop::collection::vec(0_usize..3, books.webhooks.len());
    let (webhooks, answers) = (books.webhooks.clone(), books.answers.clone());
    let arriving = times.prop_map(move |times| {
        let copies = webhooks.iter().zip(times).flat_map(|(event, times)| std::iter::repeat_n(event, times));
        copies.chain(&answers).cloned().collect::<Vec<_>>()
    });
    (Just(books), arriving.prop_shuffle())
}

fn seen(registers: &Registers) -> (OrderStatus, [i64; 4]) {
    let view = view(registers);
    (view.status, [view.authorized, view.captured, view.refunded, view.disputed])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn whatever_was_lost_a_full_answer_makes_the_order_what_the_books_say(
        (books, arrived) in any_books().prop_map(Books::answered_in_full).prop_flat_map(any_arrival)
    ) {
        let registers = after(&arrived);
        prop_assert_eq!(seen(&registers), books.truth(4999));
        prop_assert_eq!(registers.in_doubt(), [], "an honest PSP leaves no doubt");
    }

    /// But where only numbers that cannot be compared say whether a total counts a refund that failed: then it is asked.
    #[test]
    fn if_nothing_was_lost_no_answer_is_needed(
        (books, arrived) in any_books().prop_filter("incomparable", |books| books.habits.can_be_compared()).prop_flat_map(|books| (Just(books.clone()), Just(books.webhooks).prop_shuffle()))
    ) {
        prop_assert_eq!(seen(&after(&arrived)), books.truth(4999));
    }
}
