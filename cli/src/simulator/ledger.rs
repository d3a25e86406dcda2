//! A simulated PSP's books: what happened to its payments, in the order in which it happened, in no PSP's words.
//!
//! This is the reference that `paybell demo` compares orders with. It is written forwards, one step after the other, by
//! whoever moves the money; nothing here merges, so it shares no idea with the worker that it judges. The account's
//! [`Dialect`] names the objects and says what the PSP tells of each step.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::dialect::Dialect;
use super::seed::Seed;

/// Everything that a simulated account knows.
pub struct Ledger {
    dialect: &'static dyn Dialect,
    live: bool,
    /// Makes the ids of events differ between ledgers.
    salt: u64,
    payments: BTreeMap<String, Payment>,
    steps: usize,
    events: Vec<Event>,
    acknowledged: HashSet<String>,
}

/// One thing that happened, and the payment as it stands after it.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub happened: Happened,
    pub payment: &'a Payment,
    /// Unix seconds.
    pub at: i64,
    pub live: bool,
    salt: u64,
    /// Among all steps of the ledger, from 1.
    number: usize,
}

/// What happened to a payment. The numbers say which of [`Payment::refunds`] or [`Payment::disputes`] it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The merchant has made the payment at the PSP; nobody has paid yet.
    Opened,
    /// The payer must do something first.
    ActionRequired,
    /// The payer's bank takes its time.
    Processing,
    /// The last attempt is refused; the payment may be tried again.
    Declined,
    /// The payer's money is held, to be captured later.
    Authorized,
    /// The money is taken: what was authorised before, or at once. What is not captured is released for good.
    Captured { was_authorized: bool },
    /// The merchant or the payer gives the payment up: an authorised one is voided.
    Canceled { was_authorized: bool },
    /// The PSP gives the payment up, since its time is over.
    Expired { was_authorized: bool },
    /// A refund is made, in the state that it stands in. `before`: what was refunded until then, pending refunds included.
    Refunded { number: usize, before: i64 },
    /// A refund comes to its end: the payer has the money, or it is back with the merchant.
    RefundSettled { number: usize },
    /// The payer's bank claims money back.
    Disputed { number: usize },
    /// The dispute is decided.
    DisputeClosed { number: usize },
    /// Something about the payment changed that changes nothing for the merchant.
    Noted,
}

/// One event, as it would be sent: the same bytes each time.
#[derive(Clone, Debug)]
pub struct Event {
    /// The PSP's id of it, or one that stands for it where the PSP gives none.
    pub id: String,
    /// The PSP's name of it.
    pub event_type: &'static str,
    /// Unix seconds.
    pub created: i64,
    pub payment_id: String,
    /// The id of the object that the event shows.
    pub object_id: String,
    pub body: Bytes,
}

/// What kinds of objects have ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    Payment,
    Attempt,
    Capture,
    Refund,
    Dispute,
    Event,
}

impl Object {
    const fn word(self) -> &'static str {
        match self {
            Self::Payment => "payment",
            Self::Attempt => "attempt",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
            Self::Event => "event",
        }
    }
}

/// The PSP's object for an order and what hangs on it. Ids are the PSP's; amounts are in minor units; times are Unix seconds.
#[derive(Clone, Debug)]
pub struct Payment {
    pub id: String,
    pub order_id: String,
    pub amount: i64,
    /// Upper case.
    pub currency: String,
    pub created: i64,
    /// Of the last step.
    pub changed: i64,
    /// How many steps the payment has taken: a version for PSPs that count.
    pub version: u32,
    pub manual_capture: bool,
    pub state: State,
    /// The last one is the one that stands.
    pub attempts: Vec<Attempt>,
    pub captures: Vec<Capture>,
    pub refunds: Vec<Refund>,
    pub disputes: Vec<Dispute>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    ActionRequired,
    Processing,
    Declined(Decline),
    Authorized,
    Captured,
    Canceled(Cancellation),
    Expired,
}

/// One attempt at a payment.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub id: String,
    pub created: i64,
    pub decline: Option<Decline>,
    /// It was authorised, and the authorisation lapsed.
    pub expired: bool,
}

/// The usual reasons why a card is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    InsufficientFunds,
    /// The bank says no and nothing else.
    Generic,
    ExpiredCard,
}

pub const DECLINES: [Decline; 3] = [Decline::InsufficientFunds, Decline::Generic, Decline::ExpiredCard];

/// Why a payment is given up by people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    Requested,
    Abandoned,
    Duplicate,
    Fraudulent,
}

#[derive(Clone, Debug)]
pub struct Capture {
    pub id: String,
    pub created: i64,
    pub amount: i64,
}

#[derive(Clone, Debug)]
pub struct Refund {
    pub id: String,
    pub created: i64,
    pub changed: i64,
    pub amount: i64,
    pub state: RefundState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundState {
    Pending,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug)]
pub struct Dispute {
    pub id: String,
    pub created: i64,
    pub changed: i64,
    pub amount: i64,
    pub state: DisputeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisputeState {
    NeedsResponse,
    Won,
    Lost,
}

/// What an order must come to, in the words of the orders' API.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Truth {
    pub status: &'static str,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
}

/// The payment of an order always has the same id, so that events sent one by one concern one payment.
#[must_use]
pub fn payment_id(dialect: &dyn Dialect, order_id: &str) -> String {
    dialect.object_id(Object::Payment, &Seed::new(Object::Payment.word(), order_id, 0))
}

impl Ledger {
    #[must_use]
    pub fn new(dialect: &'static dyn Dialect, live: bool, salt: u64) -> Self {
        Self { dialect, live, salt, payments: BTreeMap::new(), steps: 0, events: Vec::new(), acknowledged: HashSet::new() }
    }

    #[must_use]
    pub const fn live(&self) -> bool {
        self.live
    }

    /// All that the PSP told, oldest first.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// All payments, by id.
    pub fn payments(&self) -> impl Iterator<Item = &Payment> {
        self.payments.values()
    }

    #[must_use]
    pub fn payment(&self, id: &str) -> Option<&Payment> {
        self.payments.get(id)
    }

    /// A payment is made for an order; returns its id, by which every other step names it.
    pub fn open(&mut self, order_id: &str, amount: i64, currency: &str, manual_capture: bool, at: i64) -> String {
        let id = payment_id(self.dialect, order_id);
        let payment = Payment {
            id: id.clone(),
            order_id: order_id.to_owned(),
            amount,
            currency: currency.to_ascii_uppercase(),
            created: at,
            changed: at,
            version: 0,
            manual_capture,
            state: State::Open,
            attempts: Vec::new(),
            captures: Vec::new(),
            refunds: Vec::new(),
            disputes: Vec::new(),
        };
        self.payments.insert(id.clone(), payment);
        self.step(&id, at, |_, _| Happened::Opened);
        id
    }

    /// The payer must do something first.
    pub fn require_action(&mut self, id: &str, at: i64) {
        self.step(id, at, |payment, _| {
            payment.state = State::ActionRequired;
            Happened::ActionRequired
        });
    }

    /// The payer's bank takes its time.
    pub fn process(&mut self, id: &str, at: i64) {
        self.step(id, at, |payment, _| {
            payment.state = State::Processing;
            Happened::Processing
        });
    }

    /// An attempt is refused; the payment may be tried again.
    pub fn decline(&mut self, id: &str, decline: Decline, at: i64) {
        self.step(id, at, |payment, dialect| {
            payment.attempt(Some(decline), at, dialect);
            payment.state = State::Declined(decline);
            Happened::Declined
        });
    }

    /// The payer's money is held, to be captured later.
    pub fn authorize(&mut self, id: &str, at: i64) {
        self.step(id, at, |payment, dialect| {
            payment.attempt(None, at, dialect);
            payment.state = State::Authorized;
            Happened::Authorized
        });
    }

    /// The money is taken: at once, or what was authorised. What is not captured is released for good.
    pub fn capture(&mut self, id: &str, amount: i64, at: i64) {
        self.step(id, at, |payment, dialect| {
            let was_authorized = payment.state == State::Authorized;
            if !was_authorized {
                payment.attempt(None, at, dialect);
            }
            let id = payment.object_id(Object::Capture, payment.captures.len(), dialect);
            payment.captures.push(Capture { id, created: at, amount });
            payment.state = State::Captured;
            Happened::Captured { was_authorized }
        });
    }

    /// The merchant or the payer gives the payment up.
    pub fn cancel(&mut self, id: &str, reason: Cancellation, at: i64) {
        self.step(id, at, |payment, _| {
            let was_authorized = payment.state == State::Authorized;
            payment.state = State::Canceled(reason);
            Happened::Canceled { was_authorized }
        });
    }

    /// The payment's time is over: nobody paid, or an authorisation lapses uncaptured.
    pub fn expire(&mut self, id: &str, at: i64) {
        self.step(id, at, |payment, _| {
            let was_authorized = payment.state == State::Authorized;
            if let Some(attempt) = payment.attempts.last_mut().filter(|_| was_authorized) {
                attempt.expired = true;
            }
            payment.state = State::Expired;
            Happened::Expired { was_authorized }
        });
    }

    /// A refund is made; returns its number within the payment.
    pub fn refund(&mut self, id: &str, amount: i64, state: RefundState, at: i64) -> usize {
        let mut number = 0;
        self.step(id, at, |payment, dialect| {
            number = payment.refunds.len();
            let before = payment.refunded();
            let id = payment.object_id(Object::Refund, number, dialect);
            payment.refunds.push(Refund { id, created: at, changed: at, amount, state });
            Happened::Refunded { number, before }
        });
        number
    }

    /// A refund comes to its end: the payer has the money, or it is back with the merchant.
    pub fn settle_refund(&mut self, id: &str, number: usize, state: RefundState, at: i64) {
        self.step(id, at, |payment, _| {
            if let Some(refund) = payment.refunds.get_mut(number) {
                (refund.state, refund.changed) = (state, at);
            }
            Happened::RefundSettled { number }
        });
    }

    /// The payer's bank claims money back; returns the dispute's number within the payment.
    pub fn dispute(&mut self, id: &str, amount: i64, at: i64) -> usize {
        let mut number = 0;
        self.step(id, at, |payment, dialect| {
            number = payment.disputes.len();
            let id = payment.object_id(Object::Dispute, number, dialect);
            payment.disputes.push(Dispute { id, created: at, changed: at, amount, state: DisputeState::NeedsResponse });
            Happened::Disputed { number }
        });
        number
    }

    /// The dispute is decided.
    pub fn close_dispute(&mut self, id: &str, number: usize, state: DisputeState, at: i64) {
        self.step(id, at, |payment, _| {
            if let Some(dispute) = payment.disputes.get_mut(number) {
                (dispute.state, dispute.changed) = (state, at);
            }
            Happened::DisputeClosed { number }
        });
    }

    /// Something about the payment changes that changes nothing for the merchant.
    pub fn note(&mut self, id: &str, at: i64) {
        self.step(id, at, |_, _| Happened::Noted);
    }

    /// An event was answered with a 2xx.
    pub fn acknowledge(&mut self, event_id: &str) {
        self.acknowledged.insert(event_id.to_owned());
    }

    #[must_use]
    pub fn is_acknowledged(&self, event_id: &str) -> bool {
        self.acknowledged.contains(event_id)
    }

    /// What the order must come to; `None`: nothing was ever paid or tried for it.
    #[must_use]
    pub fn truth(&self, order_id: &str) -> Option<Truth> {
        let payment = self.payments.get(&payment_id(self.dialect, order_id))?;
        let any_dispute = |state| payment.disputes.iter().any(|dispute| dispute.state == state);
        let succeeded = payment.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
        let refunded = succeeded.map(|refund| refund.amount).sum();
        let captured = payment.captured();
        let status = if any_dispute(DisputeState::Lost) {
            "charged_back"
        } else if any_dispute(DisputeState::NeedsResponse) {
            "disputed"
        } else {
            match payment.state {
                State::Captured if refunded >= captured => "refunded",
                State::Captured if refunded > 0 => "partially_refunded",
                // What was released will not come any more, and a person must look.
                State::Captured if captured != payment.amount => "under_review",
                State::Captured => "paid",
                State::Authorized => "authorized",
                State::Expired => "expired",
                State::Canceled(_) => "canceled",
                State::Declined(_) => "failed",
                State::Open | State::ActionRequired | State::Processing => "pending",
            }
        };
        let standing = payment.disputes.iter().filter(|dispute| dispute.state != DisputeState::Won);
        Some(Truth { status, captured, refunded, disputed: standing.map(|dispute| dispute.amount).sum() })
    }

    /// Changes the payment and lets the dialect tell of it. An id that is not there is a mistake of the caller's that the
    /// comparison of truths would show: nothing happens.
    fn step(&mut self, id: &str, at: i64, change: impl FnOnce(&mut Payment, &dyn Dialect) -> Happened) {
        let Some(payment) = self.payments.get_mut(id) else { return };
        let happened = change(payment, self.dialect);
        payment.version += 1;
        payment.changed = at;
        self.steps += 1;
        let step = Step { happened, payment, at, live: self.live, salt: self.salt, number: self.steps };
        self.events.extend(self.dialect.told(&step));
    }
}

impl Step<'_> {
    /// What the id of the `nth` event about this step is made of.
    #[must_use]
    pub fn event_seed(&self, nth: usize) -> Seed {
        Seed::new(Object::Event.word(), &format!("{} {}", self.salt, self.number), nth)
    }
}

impl Payment {
    /// All that was captured, gross.
    #[must_use]
    pub fn captured(&self) -> i64 {
        self.captures.iter().map(|capture| capture.amount).sum()
    }

    /// What PSPs' cumulative figures say: pending refunds are in it, failed ones are not any more.
    #[must_use]
    pub fn refunded(&self) -> i64 {
        self.refunds.iter().filter(|refund| refund.state != RefundState::Failed).map(|refund| refund.amount).sum()
    }

    /// What any further id of the payment is made of: a PSP's session, its order, its customer.
    #[must_use]
    pub fn seed(&self, of: &str) -> Seed {
        Seed::new(of, &self.order_id, 0)
    }

    fn object_id(&self, object: Object, number: usize, dialect: &dyn Dialect) -> String {
        dialect.object_id(object, &Seed::new(object.word(), &self.order_id, number))
    }

    fn attempt(&mut self, decline: Option<Decline>, at: i64, dialect: &dyn Dialect) {
        let id = self.object_id(Object::Attempt, self.attempts.len(), dialect);
        self.attempts.push(Attempt { id, created: at, decline, expired: false });
    }
}

#[cfg(test)]
mod tests {
    use super::super::stripe::Stripe;
    use super::*;

    fn paid(amount: i64) -> (Ledger, String) {
        let mut ledger = Ledger::new(&Stripe, false, 1);
        let id = ledger.open("o", amount, "EUR", false, 100);
        ledger.decline(&id, DECLINES[0], 110);
        assert_eq!(ledger.truth("o").unwrap().status, "failed");
        ledger.capture(&id, amount, 120);
        (ledger, id)
    }

    #[test]
    fn a_failed_refund_is_the_merchants_money_again() {
        let (mut ledger, id) = paid(4999);
        let first = ledger.refund(&id, 1000, RefundState::Succeeded, 200);
        assert_eq!(
            ledger.truth("o").unwrap(),
            Truth { status: "partially_refunded", captured: 4999, refunded: 1000, disputed: 0 }
        );
        ledger.settle_refund(&id, first, RefundState::Failed, 210);
        assert_eq!(ledger.truth("o").unwrap(), Truth { status: "paid", captured: 4999, refunded: 0, disputed: 0 });
        let second = ledger.refund(&id, 4999, RefundState::Pending, 220);
        assert_eq!(ledger.truth("o").unwrap().status, "paid");
        ledger.settle_refund(&id, second, RefundState::Succeeded, 230);
        assert_eq!(ledger.truth("o").unwrap().status, "refunded");
    }

    #[test]
    fn a_dispute_is_the_payers_until_it_is_decided() {
        for (state, status, disputed) in [(DisputeState::Won, "paid", 0), (DisputeState::Lost, "charged_back", 4999)] {
            let (mut ledger, id) = paid(4999);
            let number = ledger.dispute(&id, 4999, 200);
            assert_eq!(ledger.truth("o").unwrap(), Truth { status: "disputed", captured: 4999, refunded: 0, disputed: 4999 });
            ledger.close_dispute(&id, number, state, 300);
            assert_eq!(ledger.truth("o").unwrap(), Truth { status, captured: 4999, refunded: 0, disputed });
        }
    }

    #[test]
    fn an_uncaptured_rest_is_for_a_person() {
        let mut ledger = Ledger::new(&Stripe, false, 1);
        let id = ledger.open("o", 4999, "EUR", true, 100);
        ledger.authorize(&id, 110);
        ledger.capture(&id, 4000, 120);
        assert_eq!(ledger.truth("o").unwrap(), Truth { status: "under_review", captured: 4000, refunded: 0, disputed: 0 });
        assert!(ledger.truth("another").is_none());
    }

    #[test]
    fn no_id_of_an_event_comes_twice() {
        let (mut ledger, id) = paid(4999);
        ledger.refund(&id, 4999, RefundState::Pending, 200);
        let ids: HashSet<_> = ledger.events().iter().map(|event| &event.id).collect();
        assert_eq!(ids.len(), ledger.events().len());
        let (other, _) = paid(4999);
        assert!(ids.contains(&other.events()[0].id), "one salt, one history");
        let mut salted = Ledger::new(&Stripe, false, 2);
        salted.open("o", 4999, "EUR", false, 100);
        assert!(!ids.contains(&salted.events()[0].id));
    }
}
