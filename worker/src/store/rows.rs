//! What rows say, in both backends: the text in the columns and back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, PaymentEvent, ReferenceKind, Source};
use paybell_shared::psp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    AskedFirst, BodyPlace, Change, KeptEvent, KnownEvent, LATENESS_S, Notice, OrderRow, ParkedEvent, Plan, ReferenceKey, Said,
    Selection, StoreError, StoredBody, StoredOrder,
};
use crate::inbox::{Body, Content, InboxRow, Outcome};
use crate::manners::Manners;
use crate::order::{AccountKey, OrderStatus};
use crate::sweep::course::Course;

/// An event's columns that depend on whether it was understood.
pub(super) struct ContentColumns<'a> {
    /// The [`PaymentEvent`] as JSON.
    pub facts: Option<String>,
    pub foreign_mode: bool,
    pub reason: Option<&'a str>,
    pub fingerprint: Option<&'a str>,
}

pub(super) fn content_columns(content: &Content) -> Result<ContentColumns<'_>, StoreError> {
    Ok(match content {
        Content::Fact { event, foreign_mode } => {
            ContentColumns { facts: Some(to_json(&**event)?), foreign_mode: *foreign_mode, reason: None, fingerprint: None }
        }
        Content::Ignored { reason } => {
            ContentColumns { facts: None, foreign_mode: false, reason: Some(reason), fingerprint: None }
        }
        Content::Quarantined { reason, fingerprint } => {
            ContentColumns { facts: None, foreign_mode: false, reason: Some(reason), fingerprint: Some(fingerprint) }
        }
    })
}

pub(super) const fn source_name(source: Source) -> &'static str {
    match source {
        Source::Webhook => "webhook",
        Source::Reconciliation => "reconciliation",
    }
}

/// What a body's hash is over: all that a replay reads of it.
pub(super) struct BodyColumns<'a> {
    pub psp: &'a str,
    pub account: &'a str,
    pub webhook_id: &'a str,
    pub received_at: Timestamp,
    pub content_type: Option<&'a str>,
    /// As they are stored.
    pub headers: &'a str,
    pub bytes: &'a [u8],
}

/// SHA-256 over the columns, each behind its length, so that none can pass for another's end.
pub(super) fn body_sha256(body: &BodyColumns<'_>) -> [u8; 32] {
    let BodyColumns { psp, account, webhook_id, received_at, content_type, headers, bytes } = body;
    let millis = received_at.millis().to_be_bytes();
    let content_type = content_type.map_or(Vec::new(), |text| [b"=", text.as_bytes()].concat());
    let mut hash = Sha256::new();
    let columns: [&[u8]; 7] =
        [psp.as_bytes(), account.as_bytes(), webhook_id.as_bytes(), &millis, &content_type, headers.as_bytes(), bytes];
    for column in columns {
        hash.update((column.len() as u64).to_be_bytes());
        hash.update(column);
    }
    hash.finalize().into()
}

/// What is written of a body beside its own columns: its headers as JSON, and the hash.
pub(super) fn body_columns(body: &Body) -> Result<(String, [u8; 32]), StoreError> {
    let headers = to_json(&body.headers)?;
    let columns = BodyColumns {
        psp: &body.psp,
        account: &body.account,
        webhook_id: &body.webhook_id,
        received_at: body.received_at,
        content_type: body.content_type.as_deref(),
        headers: &headers,
        bytes: &body.bytes,
    };
    let sha256 = body_sha256(&columns);
    Ok((headers, sha256))
}

/// An order's columns, as they were read.
pub(super) struct OrderColumns {
    pub id: String,
    pub view: String,
    pub version: i64,
    pub review_since: Option<Timestamp>,
    pub updated_at: Timestamp,
}

impl OrderColumns {
    pub fn read(self) -> Result<StoredOrder, StoreError> {
        let view = from_json(&self.view, "orders", "view", &self.id)?;
        let Self { id, version, review_since, updated_at, .. } = self;
        Ok(StoredOrder { id, view, review_since, version, updated_at })
    }

    pub fn read_row(self, registers: &str) -> Result<OrderRow, StoreError> {
        let registers = from_json(registers, "orders", "registers", &self.id)?;
        Ok(OrderRow { registers, stored: self.read()? })
    }
}

pub(super) fn reference_key(psp: &str, account: &str, kind: &str, value: String) -> Result<ReferenceKey, StoreError> {
    let known = ReferenceKind::parse(kind);
    let kind = known.ok_or_else(|| inconsistent("parkings", "ref_kind", &value, format!("{kind:?} is no kind")))?;
    Ok(ReferenceKey { psp: psp.into(), account: account.into(), kind, value })
}

/// A change's columns, as they were read.
pub(super) struct ChangeColumns {
    pub id: Uuid,
    pub from: Option<String>,
    pub order: OrderColumns,
}

impl ChangeColumns {
    pub fn read(self) -> Result<Change, StoreError> {
        let from = self.from.map(|from| status(&from, &self.order.id)).transpose()?;
        Ok(Change { id: self.id, from, order: self.order.read()? })
    }
}

/// What cannot be read was written by a newer version, or is damaged: it must not keep all others from being told.
pub(super) fn readable(notice: Result<Notice, StoreError>, destination: &str) -> Option<Notice> {
    notice
        .inspect_err(|error| tracing::error!(destination, %error, "a change cannot be told by this version: it cannot be read"))
        .ok()
}

pub(super) fn status(text: &str, key: &str) -> Result<OrderStatus, StoreError> {
    let found = OrderStatus::ALL.into_iter().find(|status| status.as_str() == text);
    found.ok_or_else(|| inconsistent("orders", "status", key, format!("{text:?} is no status")))
}

pub(super) fn known_event(
    key: &EventKey,
    facts_sha256: &[u8],
    mapping_version: i64,
    source: &str,
) -> Result<KnownEvent, StoreError> {
    let bad = |column, problem| inconsistent("events", column, key, problem);
    let known = [Source::Webhook, Source::Reconciliation].into_iter().find(|known| source_name(*known) == source);
    Ok(KnownEvent {
        source: known.ok_or_else(|| bad("source", "it is no source"))?,
        facts_sha256: facts_sha256.try_into().map_err(|_| bad("facts_sha256", "it has not 32 bytes"))?,
        mapping_version: u32::try_from(mapping_version).map_err(|_| bad("mapping_version", "it is out of range"))?,
    })
}

pub(super) fn parked_event(facts: Option<&str>, foreign_mode: bool, received_at: Timestamp) -> Result<ParkedEvent, StoreError> {
    let facts = facts.ok_or_else(|| inconsistent("events", "facts", "a parked event", "it has none"))?;
    let event: PaymentEvent = from_json(facts, "events", "facts", "a parked event")?;
    Ok(ParkedEvent { event, foreign_mode, received_at })
}

/// An event's columns, as a replay reads them.
pub(super) struct KeptColumns {
    pub key: EventKey,
    pub event_type: String,
    pub source: String,
    pub facts: Option<String>,
    pub foreign_mode: bool,
    pub facts_sha256: Vec<u8>,
    pub mapping_version: i64,
    pub outcome: String,
    pub reason: Option<String>,
    pub fingerprint: Option<String>,
    pub order_id: Option<String>,
    pub body_id: Option<Uuid>,
    pub received_at: Timestamp,
}

impl KeptColumns {
    pub fn read(self) -> Result<KeptEvent, StoreError> {
        let Self { key, event_type, facts, foreign_mode, order_id, received_at, .. } = self;
        let bad = |column, problem: &str| inconsistent("events", column, &key, problem);
        let KnownEvent { facts_sha256, mapping_version, source } =
            known_event(&key, &self.facts_sha256, self.mapping_version, &self.source)?;
        let outcome = Outcome::parse(&self.outcome).ok_or_else(|| bad("outcome", "it is no outcome"))?;
        let reason = self.reason.unwrap_or_default();
        let content = match (facts, outcome) {
            (Some(facts), _) => {
                Content::Fact { event: Box::new(from_json(&facts, "events", "facts", &key.to_string())?), foreign_mode }
            }
            (None, Outcome::Ignored) => Content::Ignored { reason },
            (None, Outcome::Quarantined) => Content::Quarantined { reason, fingerprint: self.fingerprint.unwrap_or_default() },
            (None, _) => return Err(bad("facts", "there are none")),
        };
        let row = InboxRow { key, event_type, received_at, facts_sha256, mapping_version, source, content };
        Ok(KeptEvent { row, outcome, order_id, body: self.body_id.map(|id| BodyPlace { received_at, id }) })
    }
}

/// A body's columns, as they were read.
pub(super) struct StoredBodyColumns {
    pub place: BodyPlace,
    pub psp: String,
    pub account: String,
    pub webhook_id: String,
    pub secret_name: String,
    pub content_type: Option<String>,
    pub headers: String,
    pub bytes: Vec<u8>,
    /// Empty where the call did not name it.
    pub event_type: Option<String>,
}

impl StoredBodyColumns {
    pub fn read(self) -> Result<StoredBody, StoreError> {
        let headers = from_json(&self.headers, "bodies", "headers", &self.webhook_id)?;
        let body = Body {
            psp: self.psp.into(),
            account: self.account.into(),
            webhook_id: self.webhook_id,
            received_at: self.place.received_at,
            secret_name: self.secret_name.into(),
            content_type: self.content_type,
            headers,
            bytes: self.bytes.into(),
        };
        Ok(StoredBody { place: self.place, body, event_type: self.event_type.filter(|name| !name.is_empty()) })
    }
}

/// The part of all bodies in which a page lies.
pub(super) struct Window {
    /// Behind this one. No body has the nil id, so that the first of a time is behind it.
    pub after: BodyPlace,
    pub until: Timestamp,
}

impl Window {
    pub fn of(selection: &Selection, after: Option<&BodyPlace>) -> Self {
        let since = selection.since.unwrap_or(EARLIEST);
        let first = BodyPlace { received_at: since, id: Uuid::nil() };
        Self { after: after.copied().map_or(first, |after| after.max(first)), until: selection.until.unwrap_or(LATEST) }
    }
}

/// 1970 and 9999: no webhook is older, and no database ends earlier.
const EARLIEST: Timestamp = Timestamp::from_millis(0);
const LATEST: Timestamp = Timestamp::from_seconds(253_402_300_799);

/// Events that one transaction reads to rebuild orders: some 20 MB of facts. A hot order has half of it.
pub(super) const REBUILD_EVENTS_MAX: usize = 20_000;

/// Whoever asked for so many orders asks for fewer.
pub(super) fn too_many_events() -> StoreError {
    let problem = format!("the orders to rebuild have more than {REBUILD_EVENTS_MAX} events together");
    StoreError::Refused(sqlx::Error::Encode(problem.into()))
}

/// The orders that locked references lead to or name, sorted: in this order they are locked.
pub(super) fn order_ids(references: &BTreeMap<ReferenceKey, Option<String>>) -> Vec<String> {
    let named = references.keys().filter(|key| key.kind == ReferenceKind::Order).map(|key| &key.value);
    let ids: BTreeSet<&String> = references.values().flatten().chain(named).collect();
    ids.into_iter().cloned().collect()
}

/// Nothing but duplicates and refusals.
pub(super) fn writes_nothing(plan: &Plan) -> bool {
    let Plan {
        now: _,
        bodies,
        events,
        replaced,
        woken,
        orders,
        unlinks,
        links,
        parkings,
        unasked,
        checks,
        learned,
        // That one came is not worth a transaction of its own.
        webhooks: _,
        books,
        actions,
        destinations: _,
        applied: _,
    } = plan;
    bodies.is_empty()
        && events.is_empty()
        && replaced.is_empty()
        && woken.is_empty()
        && orders.is_empty()
        && unlinks.is_empty()
        && links.is_empty()
        && parkings.is_empty()
        && unasked.is_empty()
        && checks.is_empty()
        && learned.is_empty()
        && books.is_empty()
        && actions.is_empty()
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Refused(sqlx::Error::Encode(error.into())))
}

pub(super) fn inconsistent(table: &'static str, column: &'static str, key: impl Display, problem: impl Display) -> StoreError {
    StoreError::Inconsistent { table, column, key: key.to_string(), problem: problem.to_string() }
}

pub(super) fn from_json<T: DeserializeOwned>(
    text: &str,
    table: &'static str,
    column: &'static str,
    key: &str,
) -> Result<T, StoreError> {
    // Not the parser's words alone: they would quote the facts. Its place and category say enough.
    let problem =
        |error: serde_json::Error| format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column());
    serde_json::from_str(text).map_err(|error| inconsistent(table, column, key, problem(error)))
}

/// An account's manners.
pub(super) fn manners(text: Option<&str>, account: &AccountKey) -> Result<Manners, StoreError> {
    let key = || format!("{}/{}", account.psp, account.account);
    text.map_or_else(|| Ok(Manners::default()), |text| from_json(text, "accounts", "manners", &key()))
}

/// How far an account's list is read.
pub(super) fn course(text: &str, account: &AccountKey) -> Result<Course, StoreError> {
    from_json(text, "sweeps", "course", &format!("{}/{}", account.psp, account.account))
}

/// Whether facts tell of something that happened within a window. The database cannot say: `PostgreSQL` takes no field out of a
/// JSON text that has a NUL anywhere.
pub(super) fn tells_within(facts: &str, window: psp::Window) -> bool {
    #[derive(Deserialize)]
    struct Happened {
        occurred_at: Timestamp,
    }
    serde_json::from_str(facts).is_ok_and(|Happened { occurred_at }| (window.since..=window.until).contains(&occurred_at))
}

/// How a look's answer is written.
pub(super) const fn said(said: Said) -> &'static str {
    match said {
        Said::Money => "money",
        Said::NoMoney => "no_money",
        Said::Unknown => "unknown",
        Said::Nothing => "nothing",
    }
}

/// The columns that count by each bound of lateness; `lateness` is an expression in seconds.
pub(super) fn lateness_columns(lateness: &str) -> String {
    let by = LATENESS_S.iter().enumerate();
    by.fold(String::new(), |sql, (place, bound)| sql + &format!(", count(*) FILTER (WHERE {lateness} <= {bound}) AS by_{place}"))
}

/// An account's payments that asking told first: `late`, `pending`, `all_of_them`, `came`, and [`lateness_columns`].
pub(super) fn asked_first(
    account: &AccountKey,
    count: impl Fn(&str) -> Result<i64, StoreError>,
) -> Result<AskedFirst, StoreError> {
    let count = |column: &str| {
        let count = count(column)?;
        u64::try_from(count).map_err(|_| inconsistent("learned", "a count", column, "it is negative"))
    };
    let (late, pending, all_of_them) = (count("late")?, count("pending")?, count("all_of_them")?);
    let mut came_by = [0; LATENESS_S.len() + 1];
    for (place, by) in came_by.iter_mut().enumerate() {
        *by = count(&if place < LATENESS_S.len() { format!("by_{place}") } else { "came".to_owned() })?;
    }
    Ok(AskedFirst { account: account.clone(), late, missed: all_of_them - late - pending, pending, came_by })
}

/// Orders of these statuses wait for money: [`OrderStatus::is_open`] in SQL.
pub(super) const OPEN: &str = "('pending', 'authorized', 'partially_paid')";

/// What cannot be read was written by a newer version, or is damaged: it must not keep all others from being attended to.
pub(super) fn attendable(order: Result<OrderRow, StoreError>) -> Option<OrderRow> {
    order.inspect_err(|error| tracing::error!(%error, "an order cannot be attended to by this version: it cannot be read")).ok()
}
