//! What is kept of an order or an event.
//!
//! A page of a timeline is read in two kinds, in one snapshot: the moments of the order, sorted, without what tells of them;
//! then the rows of those on the page, by their keys.

use std::collections::HashMap;
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, Reference, ReferenceKind};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Row as _};
use time::OffsetDateTime;

use super::errors::classify;
use super::read::{self, timestamp};
use super::stream;
use crate::order::AccountKey;
use crate::store::inspect::EventColumns;
use crate::store::rows::inconsistent;
use crate::store::{
    Action, Change, CheckState, InboxEntry, Moment, MomentKind, MomentRow, NoticeState, OVERDUE_COUNTED_MAX, Place, StoreError,
    StoredEvent,
};

/// The numbers are those of [`MomentKind`]. Every part finds its rows by the order's id; what is still to be told is found by the
/// destinations of its changes, because the outbox is sorted by destination (OFFSET: the planner would read all of it).
const MOMENTS: &str = "\
    SELECT at, version, kind, key, psp, account, id FROM (
        SELECT at, 0::bigint AS version, 0 AS kind, id::text AS key, '' AS psp, '' AS account, id::text AS id
        FROM actions WHERE order_id = $1
        UNION ALL
        SELECT received_at, 0, 1, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = $1
        UNION ALL
        SELECT parked_at, 0, 2, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = $1 AND parked_at IS NOT NULL
        UNION ALL
        SELECT applied_at, coalesce(order_version, 0), 3, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = $1
        UNION ALL
        SELECT at, version, 4, '', '', '', '' FROM transitions WHERE order_id = $1
        UNION ALL
        SELECT at, version, 5, destination, '', '', destination FROM notices WHERE order_id = $1
        UNION ALL
        SELECT o.next_attempt_at, o.version, 6, o.destination, '', '', o.destination
        FROM (SELECT DISTINCT UNNEST(destinations) AS destination FROM transitions WHERE order_id = $1) AS d
        CROSS JOIN LATERAL (SELECT * FROM outbox WHERE destination = d.destination AND order_id = $1 OFFSET 0) AS o
        UNION ALL
        SELECT c.last_checked_at, 0, 7, c.psp || '/' || c.account || '/' || c.payment_id, c.psp, c.account, c.payment_id
        FROM UNNEST($2::text[], $3::text[], $4::text[]) AS p(psp, account, payment_id)
        JOIN checks c ON c.psp = p.psp AND c.account = p.account AND c.payment_id = p.payment_id
        WHERE c.last_checked_at IS NOT NULL
        UNION ALL
        SELECT c.next_check_at, 0, 8, c.psp || '/' || c.account || '/' || c.payment_id, c.psp, c.account, c.payment_id
        FROM UNNEST($2::text[], $3::text[], $4::text[]) AS p(psp, account, payment_id)
        JOIN checks c ON c.psp = p.psp AND c.account = p.account AND c.payment_id = p.payment_id
        WHERE c.next_check_at IS NOT NULL
    ) AS moments
    WHERE (at, version, kind, key COLLATE \"C\") > ($5, $6, $7, $8)
    ORDER BY at, version, kind, key COLLATE \"C\"
    LIMIT $9";

const EVENTS: &str = "\
    SELECT e.psp, e.account, e.event_id, event_type, source, facts::text AS facts, mapping_version, outcome, reason, fingerprint,
        order_id, order_version, body_id, secret_name, received_at, taken_at, parked_at, applied_at
    FROM UNNEST($1::text[], $2::text[], $3::text[]) AS w(psp, account, event_id)
    JOIN events e ON e.psp = w.psp AND e.account = w.account AND e.event_id = w.event_id";

const CHANGES: &str = "\
    SELECT id, order_id, version, from_status, at, view::text AS view, review_since
    FROM transitions WHERE order_id = $1 AND version = ANY($2::bigint[])";

const ACTIONS: &str = "\
    SELECT id::text AS id, kind, operator, reason, detail FROM actions WHERE id = ANY($1::text[]::uuid[])";

const NOTICES: &str = "\
    SELECT version, destination, outcome, attempts, last_error FROM notices
    WHERE order_id = $1 AND (version, destination) IN (SELECT * FROM UNNEST($2::bigint[], $3::text[]))";

const NOTICES_DUE: &str = "\
    SELECT o.version, o.destination, NULL::text AS outcome, o.attempts, o.last_error
    FROM UNNEST($2::bigint[], $3::text[]) AS w(version, destination)
    JOIN outbox o ON o.destination = w.destination AND o.order_id = $1 AND o.version = w.version";

const CHECKS: &str = "\
    SELECT c.psp, c.account, c.payment_id, looks, last_result, last_checked_at, next_check_at
    FROM UNNEST($1::text[], $2::text[], $3::text[]) AS p(psp, account, payment_id)
    JOIN checks c ON c.psp = p.psp AND c.account = p.account AND c.payment_id = p.payment_id";

const EVENT: &str = "\
    SELECT psp, account, event_id, event_type, source, facts::text AS facts, mapping_version, outcome, reason, fingerprint,
        order_id, order_version, body_id, secret_name, received_at, taken_at, parked_at, applied_at,
        EXISTS (SELECT 1 FROM bodies b WHERE b.received_at = e.received_at AND b.id = e.body_id) AS body_kept
    FROM events e WHERE psp = $1 AND account = $2 AND event_id = $3";

const PARKED: &str = "\
    SELECT psp, account, event_id, event_type, source, facts::text AS facts, mapping_version, outcome, reason, fingerprint,
        order_id, order_version, body_id, secret_name, received_at, taken_at, parked_at, applied_at,
        EXISTS (SELECT 1 FROM bodies b WHERE b.received_at = e.received_at AND b.id = e.body_id) AS body_kept
    FROM events e
    WHERE outcome = 'parked' AND received_at < $1 AND (received_at, psp, account, event_id) > ($2, $3, $4, $5)
    ORDER BY received_at, psp, account, event_id
    LIMIT $6";

const PARKED_COUNT: &str = "\
    SELECT count(*) FROM (SELECT 1 FROM events WHERE outcome = 'parked' AND received_at < $1 LIMIT $2) AS overdue";

const WAITS_UNDER: &str = "\
    SELECT p.psp, p.account, p.event_id, p.ref_kind, p.ref_value
    FROM UNNEST($1::text[], $2::text[], $3::text[]) AS w(psp, account, event_id)
    JOIN parkings p ON p.psp = w.psp AND p.account = w.account AND p.event_id = w.event_id
    ORDER BY p.ref_kind, p.ref_value";

pub(super) async fn timeline(
    connection: &mut PgConnection,
    order_id: &str,
    after: Option<&Place>,
    limit: u32,
) -> Result<Option<Vec<Moment>>, StoreError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut transaction = connection.begin_with(begin).await.map_err(classify)?;
    let Some(order) = read::order(&mut transaction, order_id).await? else { return Ok(None) };
    let payments = Keys::of(order.view.payments.iter().map(|payment| {
        let AccountKey { psp, account } = &payment.account;
        (&**psp, &**account, &*payment.payment_id)
    }));
    let marks: Vec<Mark> = sqlx::query(MOMENTS)
        .bind(order_id)
        .bind(&payments.psps)
        .bind(&payments.accounts)
        .bind(&payments.ids)
        .bind(OffsetDateTime::from(after.map_or(Timestamp::from_millis(i64::MIN), |place| place.at)))
        .bind(after.map_or(0, |place| place.version))
        .bind(after.map_or(-1, |place| i32::from(place.kind.number())))
        .bind(after.map_or("", |place| &*place.key))
        .bind(i64::from(limit))
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?
        .iter()
        .map(Mark::of)
        .collect::<Result<_, _>>()?;
    let moments = Rows::read(&mut transaction, order_id, &marks).await?.onto(marks)?;
    transaction.commit().await.map_err(classify)?;
    Ok(Some(moments))
}

pub(super) async fn event(connection: &mut PgConnection, key: &EventKey) -> Result<Option<InboxEntry>, StoreError> {
    let row = sqlx::query(EVENT).bind(&*key.psp).bind(&*key.account).bind(&*key.event_id);
    let found = row.fetch_optional(&mut *connection).await.map_err(classify)?;
    let mut entries = entries(connection, found.as_slice()).await?;
    Ok(entries.pop())
}

pub(super) async fn parked(
    connection: &mut PgConnection,
    before: Timestamp,
    after: Option<&(Timestamp, EventKey)>,
    limit: u32,
) -> Result<Vec<InboxEntry>, StoreError> {
    let rows = sqlx::query(PARKED)
        .bind(OffsetDateTime::from(before))
        .bind(OffsetDateTime::from(after.map_or(Timestamp::from_millis(i64::MIN), |(at, _)| *at)))
        .bind(after.map_or("", |(_, key)| &*key.psp))
        .bind(after.map_or("", |(_, key)| &*key.account))
        .bind(after.map_or("", |(_, key)| &*key.event_id))
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    entries(connection, &rows).await
}

pub(super) async fn overdue(connection: &mut PgConnection, before: Timestamp) -> Result<u32, StoreError> {
    let count = sqlx::query_scalar(PARKED_COUNT).bind(OffsetDateTime::from(before)).bind(i64::from(OVERDUE_COUNTED_MAX));
    let count: i64 = count.fetch_one(connection).await.map_err(classify)?;
    Ok(u32::try_from(count).unwrap_or(OVERDUE_COUNTED_MAX))
}

async fn entries(connection: &mut PgConnection, rows: &[PgRow]) -> Result<Vec<InboxEntry>, StoreError> {
    let entry = |row: &PgRow| {
        let body_kept = row.try_get("body_kept").map_err(classify)?;
        Ok(InboxEntry { event: columns(row).map_err(classify)?.read()?, waits_under: Vec::new(), body_kept })
    };
    let mut entries = rows.iter().map(entry).collect::<Result<Vec<_>, StoreError>>()?;
    let keys = Keys::of(entries.iter().map(|entry| {
        let EventKey { psp, account, event_id } = &entry.event.key;
        (&**psp, &**account, &**event_id)
    }));
    let waiting = keys.bind(sqlx::query(WAITS_UNDER)).fetch_all(connection).await.map_err(classify)?;
    let mut under: HashMap<EventKey, Vec<Reference>> = HashMap::new();
    for row in &waiting {
        let kind: String = row.try_get("ref_kind").map_err(classify)?;
        let kind = ReferenceKind::parse(&kind).ok_or_else(|| inconsistent("parkings", "ref_kind", &kind, "it is no kind"))?;
        let value: String = row.try_get("ref_value").map_err(classify)?;
        under.entry(key(row).map_err(classify)?).or_default().push(Reference::new(kind, value));
    }
    for entry in &mut entries {
        entry.waits_under = under.remove(&entry.event.key).unwrap_or_default();
    }
    Ok(entries)
}

/// A moment without what tells of it.
struct Mark {
    place: Place,
    psp: String,
    account: String,
    id: String,
}

impl Mark {
    fn of(row: &PgRow) -> Result<Self, StoreError> {
        let text = |column| row.try_get::<String, _>(column).map_err(classify);
        let number: i32 = row.try_get("kind").map_err(classify)?;
        let kind = u8::try_from(number).ok().and_then(MomentKind::of_number);
        Ok(Self {
            place: Place {
                at: timestamp(row, "at").map_err(classify)?,
                version: row.try_get("version").map_err(classify)?,
                // The numbers are those of the statement.
                kind: kind.ok_or_else(|| inconsistent("a query", "kind", number, "it is no kind of moment"))?,
                key: text("key")?,
            },
            psp: text("psp")?,
            account: text("account")?,
            id: text("id")?,
        })
    }

    fn event_key(&self) -> EventKey {
        EventKey { psp: Arc::from(&*self.psp), account: Arc::from(&*self.account), event_id: self.id.clone() }
    }

    fn payment(&self) -> (AccountKey, String) {
        (AccountKey { psp: Arc::from(&*self.psp), account: Arc::from(&*self.account) }, self.id.clone())
    }
}

/// The rows that a page's moments are about.
#[derive(Default)]
struct Rows {
    actions: HashMap<String, Action>,
    events: HashMap<EventKey, StoredEvent>,
    changes: HashMap<i64, Change>,
    told: HashMap<(i64, String), NoticeState>,
    to_tell: HashMap<(i64, String), NoticeState>,
    checks: HashMap<(AccountKey, String), CheckState>,
}

impl Rows {
    async fn read(connection: &mut PgConnection, order_id: &str, marks: &[Mark]) -> Result<Self, StoreError> {
        let of = |kinds: &'static [MomentKind]| marks.iter().filter(move |mark| kinds.contains(&mark.place.kind));
        let keys = |kinds| Keys::of(of(kinds).map(|mark| (&*mark.psp, &*mark.account, &*mark.id)));
        let mut rows = Self::default();
        let actions: Vec<&str> = of(&[MomentKind::Acted]).map(|mark| &*mark.id).collect();
        if !actions.is_empty() {
            for row in sqlx::query(ACTIONS).bind(actions).fetch_all(&mut *connection).await.map_err(classify)? {
                rows.actions.insert(row.try_get("id").map_err(classify)?, action(&row).map_err(classify)?);
            }
        }
        let events = keys(&[MomentKind::Received, MomentKind::Parked, MomentKind::Settled]);
        if !events.ids.is_empty() {
            for row in events.bind(sqlx::query(EVENTS)).fetch_all(&mut *connection).await.map_err(classify)? {
                let event = columns(&row).map_err(classify)?.read()?;
                rows.events.insert(event.key.clone(), event);
            }
        }
        let versions: Vec<i64> = of(&[MomentKind::Changed]).map(|mark| mark.place.version).collect();
        if !versions.is_empty() {
            let changes = sqlx::query(CHANGES).bind(order_id).bind(versions);
            for row in changes.fetch_all(&mut *connection).await.map_err(classify)? {
                let change = stream::columns(&row).map_err(classify)?.read()?;
                rows.changes.insert(change.order.version, change);
            }
        }
        for (kinds, sql, found) in
            [(&[MomentKind::Noticed], NOTICES, &mut rows.told), (&[MomentKind::NoticeDue], NOTICES_DUE, &mut rows.to_tell)]
        {
            let versions: Vec<i64> = of(kinds).map(|mark| mark.place.version).collect();
            if versions.is_empty() {
                continue;
            }
            let destinations: Vec<&str> = of(kinds).map(|mark| &*mark.id).collect();
            let notices = sqlx::query(sql).bind(order_id).bind(versions).bind(destinations);
            for row in notices.fetch_all(&mut *connection).await.map_err(classify)? {
                let state = notice(&row).map_err(classify)?;
                found.insert((state.version, state.destination.clone()), state);
            }
        }
        let payments = keys(&[MomentKind::Asked, MomentKind::LookDue]);
        if !payments.ids.is_empty() {
            for row in payments.bind(sqlx::query(CHECKS)).fetch_all(&mut *connection).await.map_err(classify)? {
                let state = check(&row).map_err(classify)?;
                rows.checks.insert((state.account.clone(), state.payment_id.clone()), state);
            }
        }
        Ok(rows)
    }

    /// Each moment with its row.
    fn onto(self, marks: Vec<Mark>) -> Result<Vec<Moment>, StoreError> {
        let moment = |mark: Mark| {
            let notice = || (mark.place.version, mark.id.clone());
            let row = match mark.place.kind {
                MomentKind::Acted => self.actions.get(&mark.id).cloned().map(MomentRow::Action),
                MomentKind::Received | MomentKind::Parked | MomentKind::Settled => {
                    self.events.get(&mark.event_key()).cloned().map(|event| MomentRow::Event(Box::new(event)))
                }
                MomentKind::Changed => {
                    self.changes.get(&mark.place.version).cloned().map(|change| MomentRow::Change(Box::new(change)))
                }
                MomentKind::Noticed => self.told.get(&notice()).cloned().map(MomentRow::Notice),
                MomentKind::NoticeDue => self.to_tell.get(&notice()).cloned().map(MomentRow::Notice),
                MomentKind::Asked | MomentKind::LookDue => self.checks.get(&mark.payment()).cloned().map(MomentRow::Check),
            };
            // Both were read in one snapshot.
            let row = row.ok_or_else(|| inconsistent("a timeline", "row", &mark.place.key, "it is gone"))?;
            Ok(Moment { place: mark.place, row })
        };
        marks.into_iter().map(moment).collect()
    }
}

fn action(row: &PgRow) -> Result<Action, sqlx::Error> {
    Ok(Action {
        kind: row.try_get("kind")?,
        operator: row.try_get("operator")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
    })
}

fn notice(row: &PgRow) -> Result<NoticeState, sqlx::Error> {
    Ok(NoticeState {
        version: row.try_get("version")?,
        destination: row.try_get("destination")?,
        outcome: row.try_get("outcome")?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}

fn check(row: &PgRow) -> Result<CheckState, sqlx::Error> {
    let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
    Ok(CheckState {
        account: AccountKey { psp: psp.into(), account: account.into() },
        payment_id: row.try_get("payment_id")?,
        looks: row.try_get("looks")?,
        last_result: row.try_get("last_result")?,
        last_checked_at: optional_timestamp(row, "last_checked_at")?,
        next_check_at: optional_timestamp(row, "next_check_at")?,
    })
}

fn key(row: &PgRow) -> Result<EventKey, sqlx::Error> {
    let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
    Ok(EventKey { psp: psp.into(), account: account.into(), event_id: row.try_get("event_id")? })
}

fn columns(row: &PgRow) -> Result<EventColumns, sqlx::Error> {
    Ok(EventColumns {
        key: key(row)?,
        event_type: row.try_get("event_type")?,
        source: row.try_get("source")?,
        facts: row.try_get("facts")?,
        mapping_version: row.try_get("mapping_version")?,
        outcome: row.try_get("outcome")?,
        reason: row.try_get("reason")?,
        fingerprint: row.try_get("fingerprint")?,
        order_id: row.try_get("order_id")?,
        order_version: row.try_get("order_version")?,
        body_id: row.try_get("body_id")?,
        secret_name: row.try_get("secret_name")?,
        received_at: timestamp(row, "received_at")?,
        taken_at: optional_timestamp(row, "taken_at")?,
        parked_at: optional_timestamp(row, "parked_at")?,
        applied_at: timestamp(row, "applied_at")?,
    })
}

fn optional_timestamp(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<OffsetDateTime>, _>(column)?.map(Timestamp::from))
}

/// Keys of three columns, as arrays.
struct Keys<'a> {
    psps: Vec<&'a str>,
    accounts: Vec<&'a str>,
    ids: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    /// Each once.
    fn of(keys: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
        let mut arrays = Self { psps: Vec::new(), accounts: Vec::new(), ids: Vec::new() };
        for (psp, account, id) in keys.collect::<std::collections::BTreeSet<_>>() {
            arrays.psps.push(psp);
            arrays.accounts.push(account);
            arrays.ids.push(id);
        }
        arrays
    }

    fn bind<'q>(&'q self, query: Query<'q>) -> Query<'q> {
        query.bind(&self.psps).bind(&self.accounts).bind(&self.ids)
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;
