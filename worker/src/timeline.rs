//! What became of an order or an event, in lines that a person reads: from the rows that are kept, and nothing else.
//!
//! | line | its row | its time |
//! |---|---|---|
//! | registered, reviewed, replayed, other | an action of the shop or an operator | by the worker's clock |
//! | expired | that its time was over, found by us | the same |
//! | accepted | a webhook in the inbox | by the ingress's clock |
//! | answered | an answer of the PSP in the inbox | by the worker's clock, as all below |
//! | parked | an event that did not find its order | since when it waited |
//! | woken | an event that found its order later | when it did |
//! | applied, superseded, `set_aside` | any other event in the inbox | when it got its outcome |
//! | changed | a version of the order | |
//! | told, `given_up` | a notice of a version to a destination | |
//! | waiting | one that is still to be sent | when it is due |
//! | asked | a payment that the PSP was asked about | the last look |
//! | `next_look` | one that it will be asked about | when it is due |

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{Fact, PaymentEvent, Source};
use paybell_shared::money::{Currency, Money};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::inbox::Outcome;
use crate::order::{OrderStatus, ReviewReason, View};
use crate::store::{Action, Change, CheckState, Moment, MomentKind, MomentRow, NoticeState, StoredEvent};

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LineKind {
    Registered,
    Reviewed,
    Replayed,
    /// Its time was over.
    Expired,
    /// Done by a newer version, which has a word for it.
    Other,
    Accepted,
    Answered,
    Parked,
    Woken,
    Applied,
    Superseded,
    /// Ignored, quarantined, or parked.
    SetAside,
    Changed,
    Told,
    GivenUp,
    Waiting,
    Asked,
    NextLook,
}

/// One line of a timeline. Members that do not concern its kind are absent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub struct Line {
    /// When it happened; of `waiting` and `next_look`, when it is due.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub kind: LineKind,
    /// The line in words.
    pub text: String,
    #[serde(flatten)]
    pub event: Option<EventNamed>,
    #[serde(flatten)]
    pub payment: Option<PaymentAsked>,
    #[serde(flatten)]
    pub change: Option<Changed>,
    #[serde(flatten)]
    pub notice: Option<Noticed>,
    #[serde(flatten)]
    pub action: Option<Acted>,
}

/// The event that a line tells of.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventNamed {
    pub psp: String,
    pub account: String,
    pub event_id: String,
    /// The PSP's name of it.
    pub event_type: String,
    /// The name of the secret that proved it; null for an answer.
    pub secret: Option<String>,
    /// When the worker took it from the queue.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub taken_at: Option<Timestamp>,
    pub outcome: &'static str,
    /// Why it was ignored or quarantined.
    pub reason: Option<String>,
    /// The version at which the order stood after it.
    pub order_version: Option<i64>,
}

/// The payment that was or will be asked about.
#[derive(Debug, Serialize, ToSchema)]
pub struct PaymentAsked {
    pub psp: String,
    pub account: String,
    pub payment_id: String,
    /// Looks so far.
    pub looks: i32,
    pub last_result: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_check_at: Option<Timestamp>,
}

/// A version of the order. Amounts are in minor units of `currency`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Changed {
    pub version: i64,
    /// What those who are told of the change deduplicate by.
    #[schema(value_type = String)]
    pub change_id: Uuid,
    pub from: Option<OrderStatus>,
    pub to: OrderStatus,
    pub currency: Option<String>,
    pub authorized: i64,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    /// Why a person must look.
    pub review: Option<ReviewReason>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub review_since: Option<Timestamp>,
}

/// A destination that is told of a version.
#[derive(Debug, Serialize, ToSchema)]
pub struct Noticed {
    pub version: i64,
    pub destination: String,
    pub attempts: i32,
    pub last_error: Option<String>,
}

/// What the shop or an operator did.
#[derive(Debug, Serialize, ToSchema)]
pub struct Acted {
    /// The name of the API token, or of the operator at the command line.
    pub operator: String,
    pub reason: Option<String>,
    /// What was said, as it was said.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

impl Line {
    fn new(at: Timestamp, kind: LineKind, text: String) -> Self {
        Self { at, kind, text, event: None, payment: None, change: None, notice: None, action: None }
    }

    /// What a moment tells.
    #[must_use]
    pub fn of(moment: Moment) -> Self {
        let at = moment.place.at;
        match moment.row {
            MomentRow::Action(action) => acted(at, action),
            MomentRow::Event(event) => match moment.place.kind {
                MomentKind::Received => received(at, &event),
                MomentKind::Parked => parked(at, &event),
                _ => settled(at, &event),
            },
            MomentRow::Change(change) => changed(at, *change),
            MomentRow::Notice(notice) => noticed(at, notice),
            MomentRow::Check(check) if moment.place.kind == MomentKind::LookDue => look_due(at, check),
            MomentRow::Check(check) => asked(at, check),
        }
    }
}

/// What became of one event.
#[must_use]
pub fn of_event(event: &StoredEvent) -> Vec<Line> {
    let parked_line = event.parked_at.map(|at| parked(at, event));
    let settled_line = (event.outcome != Outcome::Parked).then(|| settled(event.applied_at, event));
    std::iter::once(received(event.received_at, event)).chain(parked_line).chain(settled_line).collect()
}

fn named(event: &StoredEvent) -> EventNamed {
    EventNamed {
        psp: event.key.psp.to_string(),
        account: event.key.account.to_string(),
        event_id: event.key.event_id.clone(),
        event_type: event.event_type.clone(),
        secret: event.secret_name.clone(),
        taken_at: event.taken_at,
        outcome: event.outcome.as_str(),
        reason: event.reason.clone(),
        order_version: event.order_version,
    }
}

fn received(at: Timestamp, event: &StoredEvent) -> Line {
    let (psp, account, id) = (&event.key.psp, &event.key.account, &event.key.event_id);
    let fact = event.facts.as_ref().map_or_else(String::new, |facts| format!(": {}", says(facts)));
    let (kind, text) = match event.source {
        Source::Webhook => {
            let proof = event.secret_name.as_ref().map_or_else(String::new, |name| format!("; proven by {name}"));
            (LineKind::Accepted, format!("{psp}/{account} sent {} {id}{fact}{proof}", event.event_type))
        }
        Source::Reconciliation => (LineKind::Answered, format!("{psp}/{account} answered{fact}")),
    };
    Line { event: Some(named(event)), ..Line::new(at, kind, text) }
}

fn parked(at: Timestamp, event: &StoredEvent) -> Line {
    let text = format!("{} found no order, and waited", event.key.event_id);
    Line { event: Some(named(event)), ..Line::new(at, LineKind::Parked, text) }
}

fn settled(at: Timestamp, event: &StoredEvent) -> Line {
    let id = &event.key.event_id;
    let version = event.order_version.map_or_else(|| "the order".to_owned(), |version| format!("version {version}"));
    let came_to = match event.outcome {
        Outcome::Applied => format!("is part of the order since {version}"),
        Outcome::Superseded => format!("adds nothing to {version}"),
        other => {
            let reason = event.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            format!("was {}{reason}", other.as_str())
        }
    };
    let (kind, text) = match (event.outcome, event.parked_at) {
        (Outcome::Applied | Outcome::Superseded, Some(since)) => {
            (LineKind::Woken, format!("{id} found its order after {}: it {came_to}", lasted(at, since)))
        }
        (Outcome::Applied, None) => (LineKind::Applied, format!("{id} {came_to}")),
        (Outcome::Superseded, None) => (LineKind::Superseded, format!("{id} {came_to}")),
        _ => (LineKind::SetAside, format!("{id} {came_to}")),
    };
    Line { event: Some(named(event)), ..Line::new(at, kind, text) }
}

fn changed(at: Timestamp, change: Change) -> Line {
    let order = change.order;
    let (version, to) = (order.version, order.view.status);
    let step = match change.from {
        None => format!("version {version}: {}", words(&to)),
        Some(from) if from == to => format!("version {version}: still {}", words(&to)),
        Some(from) => format!("version {version}: {} → {}", words(&from), words(&to)),
    };
    let review = order.view.review.map_or_else(String::new, |reason| {
        let since = order.review_since.map_or_else(String::new, |since| format!(" since {since}"));
        format!("; a person must look{since}: {}", words(&reason))
    });
    let text = format!("{step}{}{review}", amounts(&order.view));
    let view = order.view;
    let change = Changed {
        version,
        change_id: change.id,
        from: change.from,
        to,
        currency: view.currency.map(|currency| currency.to_string()),
        authorized: view.authorized,
        captured: view.captured,
        refunded: view.refunded,
        disputed: view.disputed,
        review: view.review,
        review_since: order.review_since,
    };
    Line { change: Some(change), ..Line::new(at, LineKind::Changed, text) }
}

/// The amounts that are not zero, and what is expected.
fn amounts(view: &View) -> String {
    let shown = |minor: i64, currency: Currency| Money::new(minor, currency).to_string();
    let Some(currency) = view.currency else { return String::new() };
    let parts =
        [("authorized", view.authorized), ("captured", view.captured), ("refunded", view.refunded), ("disputed", view.disputed)];
    let mut parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, minor)| *minor != 0)
        .map(|(name, minor)| format!("{name} {}", shown(minor, currency)))
        .collect();
    if let Some(expected) = view.expected {
        parts.push(format!("of {expected}"));
    }
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

fn noticed(at: Timestamp, notice: NoticeState) -> Line {
    let NoticeState { version, destination, outcome, attempts, last_error } = notice;
    let error = last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    let times = if attempts == 1 { "attempt" } else { "attempts" };
    let (kind, text) = match outcome.as_deref() {
        Some("told") => (LineKind::Told, format!("{destination} was told of version {version}, in {attempts} {times}")),
        Some(_) => {
            let text = format!("{destination} was not told of version {version}: given up after {attempts} {times}{error}");
            (LineKind::GivenUp, text)
        }
        None if attempts == 0 => (LineKind::Waiting, format!("{destination} is due to be told of version {version}")),
        None => {
            let text = format!("{destination} is due to be told of version {version} again, after {attempts} {times}{error}");
            (LineKind::Waiting, text)
        }
    };
    Line { notice: Some(Noticed { version, destination, attempts, last_error }), ..Line::new(at, kind, text) }
}

fn acted(at: Timestamp, action: Action) -> Line {
    let Action { kind, operator, reason, detail } = action;
    let because = reason.as_ref().map_or_else(String::new, |reason| format!(", because: {reason}"));
    let (kind, text) = match kind.as_str() {
        "registered" => (LineKind::Registered, format!("{operator} registered {}{because}", registered(&detail))),
        "reviewed" => {
            let decision = detail["decision"].as_str().map_or_else(String::new, |decision| format!(" ({decision})"));
            (LineKind::Reviewed, format!("{operator} reviewed the order{decision}{because}"))
        }
        "replayed" => (LineKind::Replayed, format!("{operator} replayed it from its exact bytes{because}")),
        "expired" => (LineKind::Expired, expired(&detail)),
        other => (LineKind::Other, format!("{operator} did something: {other}{because}")),
    };
    Line { action: Some(Acted { operator, reason, detail }), ..Line::new(at, kind, text) }
}

/// What a registration said.
fn registered(detail: &serde_json::Value) -> String {
    let text = |member: &str| detail[member].as_str();
    let currency = text("currency").and_then(|code| Currency::parse(code).ok());
    let money = detail["amount"].as_i64().zip(currency).map(|(minor, currency)| Money::new(minor, currency).to_string());
    let by = text("psp").zip(text("account")).map(|(psp, account)| format!("by {psp}/{account}"));
    let payment = text("payment_id").map(|id| format!("as {id}"));
    let expires = text("expires_at").map(|at| format!("until {at}"));
    let parts: Vec<String> = [money, by, payment, expires].into_iter().flatten().collect();
    if parts.is_empty() { "it".to_owned() } else { parts.join(" ") }
}

/// By what it was found that nobody had paid in time.
fn expired(detail: &serde_json::Value) -> String {
    let end = detail["ends_at"].as_str().map_or_else(String::new, |end| format!(" at {end}"));
    let asked = detail["asked"].as_array().map(Vec::as_slice).unwrap_or_default();
    let payments: Vec<&str> = asked.iter().filter_map(|agreed| agreed["payment_id"].as_str()).collect();
    if payments.is_empty() {
        format!("its time was over{end}, and no webhook had told of money; nobody could be asked")
    } else {
        format!("its time was over{end}; asked twice about {}, its PSP knew of no money", payments.join(", "))
    }
}

fn asked(at: Timestamp, check: CheckState) -> Line {
    let (psp, account) = (&check.account.psp, &check.account.account);
    let times = if check.looks == 1 { "look" } else { "looks" };
    let result = check.last_result.as_ref().map_or_else(String::new, |result| format!(", the last one: {result}"));
    let text = format!("{psp}/{account} was asked about {}: {} {times}{result}", check.payment_id, check.looks);
    Line { payment: Some(payment(check)), ..Line::new(at, LineKind::Asked, text) }
}

fn look_due(at: Timestamp, check: CheckState) -> Line {
    let text = format!("{}/{} is to be asked about {}", check.account.psp, check.account.account, check.payment_id);
    Line { payment: Some(payment(check)), ..Line::new(at, LineKind::NextLook, text) }
}

fn payment(check: CheckState) -> PaymentAsked {
    PaymentAsked {
        psp: check.account.psp.to_string(),
        account: check.account.account.to_string(),
        payment_id: check.payment_id,
        looks: check.looks,
        last_result: check.last_result,
        next_check_at: check.next_check_at,
    }
}

/// What an event claims, in words.
fn says(event: &PaymentEvent) -> String {
    let payment = &event.payment_id;
    match &event.fact {
        Fact::Payment(fact) => {
            let amount = fact.captured.or(fact.authorized).map_or_else(String::new, |money| format!(", {money}"));
            let failure = fact.failure.as_ref().map_or_else(String::new, |failure| format!(" ({})", failure.code));
            format!("payment {payment} {}{amount}{failure}", words(&fact.state))
        }
        Fact::Capture { id, state, amount, .. } => format!("capture {id} of {payment} {}, {amount}", words(state)),
        Fact::Refund { id, state, amount, .. } => format!("refund {id} of {payment} {}, {amount}", words(state)),
        Fact::RefundTotal { amount, .. } => format!("{amount} of {payment} refunded in all"),
        Fact::Dispute { id, state, amount, .. } => format!("dispute {id} about {payment} {}, {amount}", words(state)),
    }
}

/// The word that JSON has for a state, as people write it.
fn words(state: &impl Serialize) -> String {
    let word = serde_json::to_value(state).ok();
    word.as_ref().and_then(serde_json::Value::as_str).unwrap_or("?").replace('_', " ")
}

/// How long something lasted, to two units: `3.2 s`, `5 min 10 s`, `2 d 3 h`.
fn lasted(until: Timestamp, since: Timestamp) -> String {
    let duration = until.since(since);
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}
