//! The simulated Stripe's books: what happened, in the order in which it happened, and the event of each step.
//!
//! This is the reference that `paybell demo` compares orders with. It is written forwards, one step after the other, by
//! whoever moves the money; nothing here merges, so it shares no idea with the worker that it judges.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::stripe;

/// Everything that a simulated Stripe account knows.
#[derive(Debug)]
pub struct Ledger {
    livemode: bool,
    /// Makes the ids of events differ between ledgers.
    salt: u64,
    payments: BTreeMap<String, Payment>,
    events: Vec<Event>,
    acknowledged: HashSet<String>,
}

/// One event, as it would be sent: the same bytes each time.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    /// Stripe's name of it.
    pub event_type: &'static str,
    /// Unix seconds.
    pub created: i64,
    pub payment_id: String,
    /// The id of the object that the event shows.
    pub object_id: String,
    pub body: Bytes,
}

/// A payment intent and what hangs on it. Amounts are in minor units.
#[derive(Clone, Debug)]
pub struct Payment {
    pub id: String,
    pub order_id: String,
    pub amount: i64,
    /// Lower case, as Stripe writes it.
    pub currency: String,
    pub created: i64,
    pub manual_capture: bool,
    pub state: State,
    pub received: i64,
    pub cancellation_reason: Option<&'static str>,
    pub charges: Vec<Charge>,
    pub refunds: Vec<Refund>,
    pub disputes: Vec<Dispute>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    RequiresPaymentMethod,
    RequiresAction,
    Processing,
    RequiresCapture,
    Succeeded,
    Canceled,
}

/// One attempt at a payment.
#[derive(Clone, Debug)]
pub struct Charge {
    pub id: String,
    pub created: i64,
    pub captured: i64,
    pub decline: Option<Decline>,
    pub expired: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Decline {
    pub code: &'static str,
    pub message: &'static str,
}

#[derive(Clone, Debug)]
pub struct Refund {
    pub id: String,
    pub created: i64,
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
pub fn payment_id(order_id: &str) -> String {
    derived_id("pi", order_id, 0)
}

/// The usual reasons why a card is refused.
pub const DECLINES: [Decline; 3] = [
    Decline { code: "insufficient_funds", message: "Your card has insufficient funds." },
    Decline { code: "generic_decline", message: "Your card was declined." },
    Decline { code: "expired_card", message: "Your card has expired." },
];

impl Ledger {
    #[must_use]
    pub fn new(livemode: bool, salt: u64) -> Self {
        Self { livemode, salt, payments: BTreeMap::new(), events: Vec::new(), acknowledged: HashSet::new() }
    }

    #[must_use]
    pub const fn livemode(&self) -> bool {
        self.livemode
    }

    /// Oldest first.
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

    /// A payment intent is created for an order.
    pub fn open(&mut self, order_id: &str, amount: i64, currency: &str, manual_capture: bool, at: i64) -> String {
        let id = payment_id(order_id);
        let payment = Payment {
            id: id.clone(),
            order_id: order_id.to_owned(),
            amount,
            currency: currency.to_ascii_lowercase(),
            created: at,
            manual_capture,
            state: State::RequiresPaymentMethod,
            received: 0,
            cancellation_reason: None,
            charges: Vec::new(),
            refunds: Vec::new(),
            disputes: Vec::new(),
        };
        self.payments.insert(id.clone(), payment);
        self.show_payment(&id, "payment_intent.created", at);
        id
    }

    /// The payer must do something first.
    pub fn require_action(&mut self, id: &str, at: i64) {
        self.change(id, |payment| payment.state = State::RequiresAction);
        self.show_payment(id, "payment_intent.requires_action", at);
    }

    /// The payer's bank takes its time.
    pub fn process(&mut self, id: &str, at: i64) {
        self.change(id, |payment| payment.state = State::Processing);
        self.show_payment(id, "payment_intent.processing", at);
    }

    /// An attempt is refused; the payment may be tried again.
    pub fn decline(&mut self, id: &str, decline: Decline, at: i64) {
        self.change(id, |payment| {
            payment.attempt(at).decline = Some(decline);
            payment.state = State::RequiresPaymentMethod;
        });
        self.show_charge(id, "charge.failed", at, None);
        self.show_payment(id, "payment_intent.payment_failed", at);
    }

    /// The payer's money is held, to be captured later.
    pub fn authorize(&mut self, id: &str, at: i64) {
        self.change(id, |payment| {
            payment.attempt(at);
            payment.state = State::RequiresCapture;
        });
        self.show_charge(id, "charge.succeeded", at, None);
        self.show_payment(id, "payment_intent.amount_capturable_updated", at);
    }

    /// The money is taken: at once, or what was authorised. What is not captured is released for good.
    pub fn capture(&mut self, id: &str, amount: i64, at: i64) {
        let mut was_authorized = false;
        self.change(id, |payment| {
            was_authorized = payment.state == State::RequiresCapture;
            let charge = if was_authorized { payment.charges.last_mut() } else { Some(payment.attempt(at)) };
            if let Some(charge) = charge {
                charge.captured = amount;
            }
            payment.received = amount;
            payment.state = State::Succeeded;
        });
        self.show_charge(id, if was_authorized { "charge.captured" } else { "charge.succeeded" }, at, None);
        self.show_payment(id, "payment_intent.succeeded", at);
    }

    /// The merchant or Stripe gives the payment up. `reason` is one of Stripe's.
    pub fn cancel(&mut self, id: &str, reason: &'static str, at: i64) {
        self.change(id, |payment| {
            payment.state = State::Canceled;
            payment.cancellation_reason = Some(reason);
        });
        self.show_payment(id, "payment_intent.canceled", at);
    }

    /// An authorisation lapses uncaptured.
    pub fn expire(&mut self, id: &str, at: i64) {
        self.change(id, |payment| {
            if let Some(charge) = payment.charges.last_mut() {
                charge.expired = true;
            }
        });
        self.show_charge(id, "charge.expired", at, None);
        self.cancel(id, "automatic", at);
    }

    /// A refund is made; returns its number within the payment.
    pub fn refund(&mut self, id: &str, amount: i64, state: RefundState, at: i64) -> usize {
        let (mut number, mut before) = (0, 0);
        self.change(id, |payment| {
            before = payment.refunded();
            number = payment.refunds.len();
            let refund = Refund { id: derived_id("re", &payment.order_id, number), created: at, amount, state };
            payment.refunds.push(refund);
        });
        self.show_refund(id, number, "refund.created", at);
        self.show_charge(id, "charge.refunded", at, Some(before));
        number
    }

    /// A refund comes to its end: the payer has the money, or it is back with the merchant.
    pub fn settle_refund(&mut self, id: &str, number: usize, state: RefundState, at: i64) {
        self.change(id, |payment| {
            if let Some(refund) = payment.refunds.get_mut(number) {
                refund.state = state;
            }
        });
        self.show_refund(id, number, "charge.refund.updated", at);
        self.show_refund(id, number, "refund.updated", at);
        if state == RefundState::Failed {
            self.show_refund(id, number, "refund.failed", at);
        }
    }

    /// The payer's bank claims money back; returns the dispute's number within the payment.
    pub fn dispute(&mut self, id: &str, amount: i64, at: i64) -> usize {
        let mut number = 0;
        self.change(id, |payment| {
            number = payment.disputes.len();
            let id = derived_id("dp", &payment.order_id, number);
            payment.disputes.push(Dispute { id, created: at, amount, state: DisputeState::NeedsResponse });
        });
        self.show_dispute(id, number, "charge.dispute.created", at);
        self.show_dispute(id, number, "charge.dispute.funds_withdrawn", at);
        number
    }

    /// The dispute is decided.
    pub fn close_dispute(&mut self, id: &str, number: usize, state: DisputeState, at: i64) {
        self.change(id, |payment| {
            if let Some(dispute) = payment.disputes.get_mut(number) {
                dispute.state = state;
            }
        });
        self.show_dispute(id, number, "charge.dispute.closed", at);
        if state == DisputeState::Won {
            self.show_dispute(id, number, "charge.dispute.funds_reinstated", at);
        }
    }

    /// An event that shows the payment intent as it stands.
    pub fn show_payment(&mut self, id: &str, event_type: &'static str, at: i64) {
        if let Some(payment) = self.payments.get(id) {
            let object = stripe::payment_intent(payment, self.livemode);
            self.record(id, event_type, at, &object, None);
        }
    }

    /// An event that shows the payment's last charge as it stands. `refunded_before`: what the charge's cumulative
    /// figure was, where it has just changed.
    pub fn show_charge(&mut self, id: &str, event_type: &'static str, at: i64, refunded_before: Option<i64>) {
        if let Some((payment, charge)) = self.payments.get(id).and_then(|payment| Some((payment, payment.charges.last()?))) {
            let object = stripe::charge(payment, charge, self.livemode);
            let previous = refunded_before.map(|amount| serde_json::json!({ "amount_refunded": amount }));
            self.record(id, event_type, at, &object, previous);
        }
    }

    /// An event that shows a checkout session for the payment.
    pub fn show_session(&mut self, id: &str, event_type: &'static str, at: i64) {
        if let Some(payment) = self.payments.get(id) {
            let object = stripe::checkout_session(payment, event_type, self.livemode);
            self.record(id, event_type, at, &object, None);
        }
    }

    /// An event that is not about a payment at all: a `customer`, a `payout`.
    pub fn show_stranger(&mut self, event_type: &'static str, object: &str, at: i64) {
        let id = derived_id(object, "stranger", self.events.len());
        let object = serde_json::json!({ "id": id, "object": object, "created": at, "livemode": self.livemode, "metadata": {} });
        self.record("", event_type, at, &object, None);
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
        let payment = self.payments.get(&payment_id(order_id))?;
        let any_dispute = |state| payment.disputes.iter().any(|dispute| dispute.state == state);
        let succeeded = payment.refunds.iter().filter(|refund| refund.state == RefundState::Succeeded);
        let refunded = succeeded.map(|refund| refund.amount).sum();
        let status = if any_dispute(DisputeState::Lost) {
            "charged_back"
        } else if any_dispute(DisputeState::NeedsResponse) {
            "disputed"
        } else {
            match payment.state {
                State::Succeeded if refunded >= payment.received => "refunded",
                State::Succeeded if refunded > 0 => "partially_refunded",
                // Stripe captures a payment once: what it released will not come any more, and a person must look.
                State::Succeeded if payment.received != payment.amount => "under_review",
                State::Succeeded => "paid",
                State::RequiresCapture => "authorized",
                State::Canceled if payment.cancellation_reason.is_some_and(stripe::is_expiry) => "expired",
                State::Canceled => "canceled",
                State::RequiresPaymentMethod if payment.charges.last().is_some_and(|charge| charge.decline.is_some()) => "failed",
                State::RequiresPaymentMethod | State::RequiresAction | State::Processing => "pending",
            }
        };
        let disputed =
            payment.disputes.iter().filter(|dispute| dispute.state != DisputeState::Won).map(|dispute| dispute.amount).sum();
        Some(Truth { status, captured: payment.received, refunded, disputed })
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Payment)) {
        if let Some(payment) = self.payments.get_mut(id) {
            change(payment);
        }
    }

    fn show_refund(&mut self, id: &str, number: usize, event_type: &'static str, at: i64) {
        if let Some((payment, refund)) = self.payments.get(id).and_then(|payment| Some((payment, payment.refunds.get(number)?))) {
            let object = stripe::refund(payment, refund);
            self.record(id, event_type, at, &object, None);
        }
    }

    /// An event that shows one of the payment's disputes as it stands.
    pub fn show_dispute(&mut self, id: &str, number: usize, event_type: &'static str, at: i64) {
        if let Some((payment, dispute)) = self.payments.get(id).and_then(|payment| Some((payment, payment.disputes.get(number)?)))
        {
            let object = stripe::dispute(payment, dispute, self.livemode);
            self.record(id, event_type, at, &object, None);
        }
    }

    fn record(&mut self, payment_id: &str, event_type: &'static str, at: i64, object: &Value, previous: Option<Value>) {
        let id = derived_id("evt", &self.salt.to_string(), self.events.len());
        let object_id = object["id"].as_str().unwrap_or_default().to_owned();
        let body = stripe::event(&id, event_type, at, object, previous, self.livemode);
        self.events.push(Event { id, event_type, created: at, payment_id: payment_id.to_owned(), object_id, body });
    }
}

impl Payment {
    /// What Stripe's `amount_refunded` says: pending refunds are in it, failed ones are not any more.
    #[must_use]
    pub fn refunded(&self) -> i64 {
        self.refunds.iter().filter(|refund| refund.state != RefundState::Failed).map(|refund| refund.amount).sum()
    }

    fn attempt(&mut self, at: i64) -> &mut Charge {
        let id = derived_id("ch", &self.order_id, self.charges.len());
        self.charges.push(Charge { id, created: at, captured: 0, decline: None, expired: false });
        let last = self.charges.len() - 1;
        &mut self.charges[last]
    }
}

/// An id in Stripe's form: a prefix and 24 letters and digits.
fn derived_id(prefix: &str, of: &str, number: usize) -> String {
    let digest = Sha256::digest(format!("{prefix}\n{of}\n{number}"));
    format!("{prefix}_{}", hex::encode(&digest[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid(amount: i64) -> (Ledger, String) {
        let mut ledger = Ledger::new(false, 1);
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
    fn a_dispute_is_the_payers_until_it_is_won() {
        let (mut ledger, id) = paid(4999);
        let number = ledger.dispute(&id, 4999, 200);
        assert_eq!(ledger.truth("o").unwrap(), Truth { status: "disputed", captured: 4999, refunded: 0, disputed: 4999 });
        let mut lost =
            Ledger { salt: 2, payments: ledger.payments.clone(), events: vec![], acknowledged: HashSet::new(), livemode: false };
        lost.close_dispute(&id, number, DisputeState::Lost, 300);
        assert_eq!(lost.truth("o").unwrap().status, "charged_back");
        ledger.close_dispute(&id, number, DisputeState::Won, 300);
        assert_eq!(ledger.truth("o").unwrap(), Truth { status: "paid", captured: 4999, refunded: 0, disputed: 0 });
    }

    #[test]
    fn each_step_has_its_event_and_no_id_comes_twice() {
        let (mut ledger, id) = paid(4999);
        ledger.refund(&id, 4999, RefundState::Pending, 200);
        let ids: HashSet<_> = ledger.events().iter().map(|event| &event.id).collect();
        assert_eq!(ids.len(), ledger.events().len());
        let types: Vec<_> = ledger.events().iter().map(|event| event.event_type).collect();
        assert_eq!(
            types,
            [
                "payment_intent.created",
                "charge.failed",
                "payment_intent.payment_failed",
                "charge.succeeded",
                "payment_intent.succeeded",
                "refund.created",
                "charge.refunded"
            ]
        );
    }
}
