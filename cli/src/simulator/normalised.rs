//! Paybell's normalised event, as in-house senders write it: what Standard Webhooks, Svix and the generic signature carry.

use paybell_shared::clock::Timestamp;
use serde_json::json;

use super::dialect::{Dialect, EventType, Scene};
use super::ledger::{Cancellation, Decline, DisputeState, Event, Happened, Object, RefundState, State, Step};
use super::seed::Seed;
use super::story::Story;

/// Every normalised type.
pub(super) const EVENT_TYPES: [EventType; 12] = [
    EventType::new("payment.pending", Scene::Processing),
    EventType::new("payment.authorized", Scene::Authorized),
    EventType::new("payment.captured", Scene::Captured),
    EventType::new("payment.failed", Scene::Declined),
    EventType::new("payment.canceled", Scene::Canceled(Cancellation::Requested)),
    EventType::new("payment.expired", Scene::Expired),
    EventType::new("refund.pending", Scene::Refunded(RefundState::Pending)),
    EventType::new("refund.succeeded", Scene::Refunded(RefundState::Succeeded)),
    EventType::new("refund.failed", Scene::RefundSettled(RefundState::Failed)),
    EventType::new("dispute.opened", Scene::Disputed),
    EventType::new("dispute.won", Scene::DisputeClosed(DisputeState::Won)),
    EventType::new("dispute.lost", Scene::DisputeClosed(DisputeState::Lost)),
];

/// An id with a word before it.
pub(super) fn object_id(object: Object, seed: &Seed) -> String {
    let prefix = match object {
        Object::Payment => "pay",
        Object::Attempt => "att",
        Object::Capture => "cap",
        Object::Refund => "ref",
        Object::Dispute => "dis",
        Object::Event => "msg",
    };
    format!("{prefix}_{}", seed.hex(24))
}

/// The event of a step, if it is one. Its id stands in the body, too, for senders that name it nowhere else.
pub(super) fn told(dialect: &dyn Dialect, step: &Step<'_>) -> Vec<Event> {
    let payment = step.payment;
    let refund = |number: usize| payment.refunds.get(number).map(|refund| (refund.state, refund.amount, &refund.id));
    let dispute = |number: usize| payment.disputes.get(number).map(|dispute| (dispute.state, dispute.amount, &dispute.id));
    let (event_type, amount, object_id) = match step.happened {
        Happened::Opened | Happened::ActionRequired | Happened::Processing => ("payment.pending", payment.amount, &payment.id),
        Happened::Declined => ("payment.failed", payment.amount, &payment.id),
        Happened::Authorized => ("payment.authorized", payment.amount, &payment.id),
        Happened::Captured { .. } => ("payment.captured", payment.captured(), &payment.id),
        Happened::Canceled { .. } | Happened::Expired { was_authorized: true } => {
            ("payment.canceled", payment.amount, &payment.id)
        }
        Happened::Expired { was_authorized: false } => ("payment.expired", payment.amount, &payment.id),
        Happened::Refunded { number, .. } | Happened::RefundSettled { number } => {
            let Some((state, amount, id)) = refund(number) else { return Vec::new() };
            let event_type = match state {
                RefundState::Pending => "refund.pending",
                RefundState::Succeeded => "refund.succeeded",
                RefundState::Failed => "refund.failed",
            };
            (event_type, amount, id)
        }
        Happened::Disputed { number } | Happened::DisputeClosed { number } => {
            let Some((state, amount, id)) = dispute(number) else { return Vec::new() };
            let event_type = match state {
                DisputeState::NeedsResponse => "dispute.opened",
                DisputeState::Won => "dispute.won",
                DisputeState::Lost => "dispute.lost",
            };
            (event_type, amount, id)
        }
        Happened::Noted => return Vec::new(),
    };
    let mut data = json!({
        "order_id": payment.order_id, "payment_id": payment.id, "amount": amount, "currency": payment.currency,
    });
    if event_type.starts_with("refund") {
        data["refund_id"] = object_id.as_str().into();
    } else if event_type.starts_with("dispute") {
        data["dispute_id"] = object_id.as_str().into();
    } else if let State::Declined(decline) = payment.state {
        let (code, message) = decline_words(decline);
        data["failure_code"] = code.into();
        data["failure_message"] = message.into();
    }
    let id = dialect.object_id(Object::Event, &step.event_seed(0));
    let body = json!({ "id": id, "type": event_type, "timestamp": Timestamp::from_seconds(step.at), "data": data });
    vec![Event {
        id,
        event_type,
        created: step.at,
        payment_id: payment.id.clone(),
        object_id: object_id.clone(),
        body: body.to_string().into(),
    }]
}

/// `payment.expired` says that nobody paid in time; an authorisation that lapses ends as canceled.
pub(super) fn plays(story: Story) -> bool {
    story != Story::AuthorizationExpired
}

const fn decline_words(decline: Decline) -> (&'static str, &'static str) {
    match decline {
        Decline::InsufficientFunds => ("insufficient_funds", "The account has insufficient funds."),
        Decline::Generic => ("declined", "The bank declined."),
        Decline::ExpiredCard => ("expired_card", "The card has expired."),
    }
}
