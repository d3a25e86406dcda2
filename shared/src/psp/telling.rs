//! What the adapters' translations share: the event around a fact, its names, times and messages.

use super::json::{Node, Problem};
use super::{Account, Asked, SettingError, Window};
use crate::clock::Timestamp;
use crate::event::{ANSWER_PREFIX, EventKey, Fact, FactVersion, Failure, Mode, PaymentEvent, Reference, ReferenceKind, Source};

/// The most of a failure's message that is kept, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

/// The end of the year 9999: a time beyond it is a mistake, and as a version it would stand above every later truth.
const TIME_MAX_S: i64 = 253_402_300_799;

/// Refuses an account without a secret, and secrets that are empty or have spaces or control characters.
pub(super) fn check_secrets(account: &Account) -> Result<(), SettingError> {
    let refuse = |problem| Err(SettingError { setting: "secrets", problem });
    if account.keys.secrets.is_empty() {
        return refuse("is empty: without a secret nothing can be verified".to_owned());
    }
    for secret in &account.keys.secrets {
        let text = secret.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(format!("{} is empty or has spaces, which no signing secret has", secret.name()));
        }
    }
    Ok(())
}

/// A fact and what a PSP says around it; the rest of the event is the same everywhere.
pub(super) struct Telling<'a> {
    pub event_id: String,
    pub event_type: &'a str,
    /// When it happened, by the PSP's clock.
    pub at: Timestamp,
    pub mode: Option<Mode>,
    pub order: Option<&'a str>,
    pub payment_id: &'a str,
    /// Other names: of the charge, the refund, the session.
    pub others: Vec<Reference>,
    pub version: FactVersion,
    pub fact: Fact,
}

impl Telling<'_> {
    /// The event, as a webhook tells it (or a list of events: it is the same).
    pub(super) fn event(self, account: &Account, source: Source) -> PaymentEvent {
        let order = self.order.map(|order| Reference::new(ReferenceKind::Order, order));
        let payment = Reference::new(ReferenceKind::Payment, self.payment_id);
        let mut references: Vec<Reference> = order.into_iter().chain([payment]).collect();
        let own = match &self.fact {
            Fact::Refund { id, .. } => Some(Reference::new(ReferenceKind::Refund, id.as_str())),
            Fact::Dispute { id, .. } => Some(Reference::new(ReferenceKind::Dispute, id.as_str())),
            Fact::Capture { id, .. } => Some(Reference::new(ReferenceKind::Capture, id.as_str())),
            Fact::Payment(_) | Fact::RefundTotal { .. } => None,
        };
        for reference in own.into_iter().chain(self.others) {
            if !references.contains(&reference) {
                references.push(reference);
            }
        }
        PaymentEvent {
            key: EventKey { psp: account.psp_id.clone(), account: account.name.clone(), event_id: self.event_id },
            event_type: self.event_type.to_owned(),
            occurred_at: self.at,
            source,
            mode: self.mode,
            references,
            payment_id: self.payment_id.to_owned(),
            version: self.version,
            fact: self.fact,
        }
    }

    /// The event, as the PSP tells it when it is asked how the object stands. `event_id` names the object within the answer.
    pub(super) fn answer(self, account: &Account, asked: &Asked<'_>) -> PaymentEvent {
        let event_id = format!("{ANSWER_PREFIX}{}:{}", self.event_id, asked.look_id);
        Telling { event_id, ..self }.event(account, Source::Reconciliation)
    }
}

/// Where the merchant's order id stands: by the setting `order_reference`, a path from `object` downwards, or else where
/// `default` says.
pub(super) fn order<'a>(object: &Node<'a>, account: &Account, default: &[&[&str]]) -> Option<&'a str> {
    match &account.order_reference {
        Some(path) => object.name_at(path),
        None => default.iter().find_map(|path| object.name_at(path)),
    }
}

/// A time of RFC 3339 at `key`.
pub(super) fn time(object: &Node<'_>, key: &str) -> Result<Timestamp, Problem> {
    let member = object.required(key)?;
    let parsed = member.as_text().and_then(|text| Timestamp::parse_rfc3339(text).ok());
    parsed.ok_or_else(|| member.problem("not a time of RFC 3339"))
}

/// A time in Unix seconds at `key`.
pub(super) fn unix_time(object: &Node<'_>, key: &str) -> Result<Timestamp, Problem> {
    let seconds = object.integer(key)?;
    if (0..=TIME_MAX_S).contains(&seconds) {
        Ok(Timestamp::from_seconds(seconds))
    } else {
        Err(object.required(key)?.problem("not a time"))
    }
}

/// Whether the event says that nothing is refunded. Of a payment in a list, which shows what was made lately, that is no news, and
/// it would be told each time that the list is read.
pub(super) fn is_no_refund(event: &PaymentEvent) -> bool {
    matches!(&event.fact, Fact::RefundTotal { amount } if amount.minor == 0)
}

/// Refuses what stands in a list although it is older than was asked for: a list of another window. What says no time is judged
/// by who reads it.
pub(super) fn not_before(window: Window, at: &Result<Timestamp, Problem>, item: &Node<'_>) -> Result<(), Problem> {
    match at {
        Ok(at) if *at < window.in_seconds().since => Err(item.problem("older than was asked for")),
        _ => Ok(()),
    }
}

/// Why an attempt failed: codes and messages about the card, never about the person.
pub(super) fn failure(code: Option<&str>, message: Option<&str>) -> Failure {
    let code = code.filter(|code| super::json::is_name(code)).unwrap_or("unknown");
    Failure { code: code.to_owned(), message: message.unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect() }
}
