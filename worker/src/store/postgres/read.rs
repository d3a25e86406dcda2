//! Locking and reading what a transaction decides by, and the reads of the API.
//!
//! Tables are looked up key by key (`LATERAL … LIMIT`), which leaves the planner no other way: with a join it reads them whole
//! where it believes them empty, and one vacuumed before its first row is believed empty until it is analysed (measured:
//! 780 events/s instead of thousands).

use std::collections::{BTreeMap, BTreeSet};

use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, PgTransaction, Row as _};
use time::OffsetDateTime;

use super::errors::{Failure, classify};
use crate::order::OrderStatus;
use crate::pace::Pace;
use crate::store::rows::{self, KeptColumns, OrderColumns, REBUILD_EVENTS_MAX, inconsistent, too_many_events};
use crate::store::{
    Balance, EventTotal, HourTotal, KeptEvent, OrderTotal, PARKED_MAX, ReferenceKey, Snapshot, StoreError, StoredOrder, Together,
    Wanted,
};

/// Begins: all together, with the id of the transaction, by which its commit can be asked for later.
const ENTER: &str = "SELECT pg_current_xact_id()::text, pg_advisory_xact_lock_shared($1)";

/// Begins alone, when all others have ended: for what takes references away from orders.
const ENTER_ALONE: &str = "SELECT pg_current_xact_id()::text, pg_advisory_xact_lock($1)";

/// Names the references among the advisory locks: "refs" in ASCII.
const REFERENCES_LOCK: i64 = 0x7265_6673;

/// The references that lead to an order. Nobody but a replay, which is alone, leads them elsewhere, so they need no lock:
/// whoever speaks of one meets the others at the order's row. In a running system these are nine of ten, and each lock is a
/// row written.
const READ_REFERENCES: &str = "\
    SELECT w.n, r.order_id
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS w(psp, account, kind, value, n)
    CROSS JOIN LATERAL (
        SELECT order_id FROM refs
        WHERE psp = w.psp AND account = w.account AND kind = w.kind AND value = w.value
        LIMIT 1
    ) r
    WHERE r.order_id IS NOT NULL";

/// Makes sure that every other reference has a row, and says which it made: these are ours until the commit, and as nobody
/// knew them, nobody is parked under them. They are written with the order that they most likely come to lead to, so that one
/// write is enough for each. An insert of the same row by another transaction is waited for.
const INSERT_REFERENCES: &str = "\
    INSERT INTO refs (psp, account, kind, value, order_id)
    SELECT psp, account, kind, value, order_id
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
        AS w(psp, account, kind, value, order_id, n)
    ORDER BY n
    ON CONFLICT DO NOTHING
    RETURNING psp, account, kind, value";

/// Another transaction may have led one meanwhile.
const LOCK_REFERENCES: &str = "\
    SELECT w.n, r.order_id
    FROM (
        SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS w(psp, account, kind, value, n)
        ORDER BY n
    ) w
    CROSS JOIN LATERAL (
        SELECT order_id FROM refs
        WHERE psp = w.psp AND account = w.account AND kind = w.kind AND value = w.value
        LIMIT 1
        FOR UPDATE
    ) r";

const LOCK_ORDERS: &str = "\
    SELECT id, view::text AS view, registers::text AS registers, version, review_since, updated_at
    FROM orders WHERE id = ANY($1::text[])
    ORDER BY id
    FOR UPDATE";

const READ_KEYS: &str = "\
    SELECT w.n, e.facts_sha256, e.mapping_version, e.source
    FROM UNNEST($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w(psp, account, event_id, n)
    CROSS JOIN LATERAL (
        SELECT facts_sha256, mapping_version, source FROM events
        WHERE psp = w.psp AND account = w.account AND event_id = w.event_id
        LIMIT 1
    ) e";

/// Behind a key (`$5` to `$7`, or all), so many.
const READ_PARKED: &str = "\
    SELECT e.facts::text AS facts, e.foreign_mode, e.received_at
    FROM (
        SELECT DISTINCT p.psp, p.account, p.event_id
        FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[]) AS w(psp, account, kind, value)
        CROSS JOIN LATERAL (
            SELECT psp, account, event_id FROM parkings
            WHERE ref_psp = w.psp AND ref_account = w.account AND ref_kind = w.kind AND ref_value = w.value
                AND ($5 IS NULL OR (psp, account, event_id) > ($5, $6, $7))
            ORDER BY psp, account, event_id
            LIMIT $8
        ) p
        ORDER BY p.psp, p.account, p.event_id
        LIMIT $8
    ) parked
    JOIN events e ON e.psp = parked.psp AND e.account = parked.account AND e.event_id = parked.event_id
    ORDER BY e.psp, e.account, e.event_id";

/// Of these names, those that lead to an order and under which events are parked.
const AWAITED: &str = "\
    SELECT w.n
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS w(psp, account, kind, value, n)
    JOIN refs r ON r.psp = w.psp AND r.account = w.account AND r.kind = w.kind AND r.value = w.value
    WHERE r.order_id IS NOT NULL AND EXISTS (
        SELECT FROM parkings p
        WHERE p.ref_psp = w.psp AND p.ref_account = w.account AND p.ref_kind = w.kind AND p.ref_value = w.value)";

const UNWOKEN: &str = "\
    SELECT DISTINCT p.ref_psp, p.ref_account, p.ref_kind, p.ref_value
    FROM parkings p
    JOIN refs r ON r.psp = p.ref_psp AND r.account = p.ref_account AND r.kind = p.ref_kind AND r.value = p.ref_value
    WHERE r.order_id IS NOT NULL AND (p.ref_psp, p.ref_account, p.ref_kind, p.ref_value) > ($1, $2, $3, $4)
    ORDER BY p.ref_psp, p.ref_account, p.ref_kind, p.ref_value
    LIMIT $5";

const READ_BODY_EVENTS: &str = "\
    SELECT e.psp, e.account, e.event_id, e.event_type, e.source, e.facts::text AS facts, e.foreign_mode, e.facts_sha256,
        e.mapping_version, e.outcome, e.reason, e.fingerprint, e.order_id, e.body_id, e.received_at
    FROM UNNEST($1::timestamptz[], $2::uuid[]) AS w(received_at, id)
    JOIN events e ON e.received_at = w.received_at AND e.body_id = w.id
    ORDER BY e.psp, e.account, e.event_id";

const READ_ORDER_EVENTS: &str = "\
    SELECT e.psp, e.account, e.event_id, e.event_type, e.source, e.facts::text AS facts, e.foreign_mode, e.facts_sha256,
        e.mapping_version, e.outcome, e.reason, e.fingerprint, e.order_id, e.body_id, e.received_at
    FROM events e WHERE e.order_id = ANY($1::text[])
    ORDER BY e.received_at, e.psp, e.account, e.event_id
    LIMIT $2";

/// Locks and reads what is wanted. Everything is read by statements that start after the locks are held.
pub(super) async fn snapshot(
    transaction: &mut PgTransaction<'_>,
    wanted: &Wanted,
    alone: bool,
    pace: &mut Pace,
) -> Result<(String, Snapshot), Failure> {
    let enter = sqlx::query(if alone { ENTER_ALONE } else { ENTER }).bind(REFERENCES_LOCK);
    let xid = enter.fetch_one(&mut **transaction).await?.try_get(0)?;
    pace.lap("enter");
    let mut snapshot = Snapshot { keys_read: wanted.keys.clone(), ..Snapshot::default() };
    let keys: Vec<&ReferenceKey> = wanted.references.iter().collect();
    let references = ReferenceArrays::of(keys.iter().copied());
    if !wanted.references.is_empty() {
        for row in &references.bind(sqlx::query(READ_REFERENCES)).fetch_all(&mut **transaction).await? {
            let key = *wanted_at(&keys, row, "refs")?;
            snapshot.references.insert(key.clone(), row.try_get("order_id")?);
        }
        pace.lap("references");
        insert_references(transaction, wanted, &mut snapshot).await?;
        let others: Vec<&ReferenceKey> = keys.iter().copied().filter(|key| !snapshot.references.contains_key(key)).collect();
        let arrays = ReferenceArrays::of(others.iter().copied());
        if !others.is_empty() {
            for row in &arrays.bind(sqlx::query(LOCK_REFERENCES)).fetch_all(&mut **transaction).await? {
                let key = *wanted_at(&others, row, "refs")?;
                snapshot.references.insert(key.clone(), row.try_get("order_id")?);
            }
        }
        pace.lap("lock references");
        let order_ids = rows::order_ids(&snapshot.references);
        if !order_ids.is_empty() {
            for row in sqlx::query(LOCK_ORDERS).bind(order_ids).fetch_all(&mut **transaction).await? {
                let registers: String = row.try_get("registers")?;
                let order = columns(&row)?.read_row(&registers)?;
                snapshot.orders.insert(order.stored.id.clone(), order);
            }
        }
        pace.lap("lock orders");
        // Nobody parks under a name that leads to an order, and whoever led it there woke those who had.
        let names = if wanted.parked_led { &references } else { &arrays };
        parked(transaction, names, wanted, &mut snapshot).await?;
        pace.lap("parked");
    }
    if !wanted.keys.is_empty() {
        let keys: Vec<_> = wanted.keys.iter().collect();
        let known = sqlx::query(READ_KEYS)
            .bind(keys.iter().map(|key| &*key.psp).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| &*key.account).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| &*key.event_id).collect::<Vec<_>>());
        for row in known.fetch_all(&mut **transaction).await? {
            let key = *wanted_at(&keys, &row, "events")?;
            let (facts_sha256, version): (Vec<u8>, i64) = (row.try_get("facts_sha256")?, row.try_get("mapping_version")?);
            let source: String = row.try_get("source")?;
            snapshot.known.insert(key.clone(), rows::known_event(key, &facts_sha256, version, &source)?);
        }
        pace.lap("keys");
    }
    kept_events(transaction, wanted, &mut snapshot).await?;
    Ok((xid, snapshot))
}

/// Writes the references that have no row yet.
async fn insert_references(transaction: &mut PgTransaction<'_>, wanted: &Wanted, snapshot: &mut Snapshot) -> Result<(), Failure> {
    let likely = likely(wanted, &snapshot.references);
    let unled: Vec<&ReferenceKey> = wanted.references.iter().filter(|key| !snapshot.references.contains_key(key)).collect();
    if unled.is_empty() {
        return Ok(());
    }
    let orders: Vec<Option<&str>> = unled.iter().map(|key| likely.get(key).map(String::as_str)).collect();
    let arrays = ReferenceArrays::of(unled.iter().copied());
    let made = arrays.bind(sqlx::query(INSERT_REFERENCES)).bind(orders).fetch_all(&mut **transaction).await?;
    for row in &made {
        let text = |column| row.try_get::<String, _>(column);
        let key = rows::reference_key(&text("psp")?, &text("account")?, &text("kind")?, text("value")?)?;
        if let Some(order_id) = likely.get(&key) {
            snapshot.ahead.insert(key.clone(), order_id.clone());
        }
        snapshot.references.insert(key, None);
    }
    Ok(())
}

/// Where unled references most likely come to lead: to the one order that those beside them lead to or name.
fn likely(wanted: &Wanted, led: &BTreeMap<ReferenceKey, Option<String>>) -> BTreeMap<ReferenceKey, String> {
    let mut likely = BTreeMap::new();
    for Together { references, named } in &wanted.together {
        let mut orders: BTreeSet<&String> = references.iter().filter_map(|key| led.get(key)?.as_ref()).collect();
        orders.extend(named);
        if let (Some(order), 1) = (orders.first(), orders.len()) {
            let unled = references.iter().filter(|key| !led.contains_key(key));
            likely.extend(unled.map(|key| (key.clone(), (*order).clone())));
        }
    }
    likely
}

/// The first events parked under these names.
async fn parked(
    transaction: &mut PgTransaction<'_>,
    names: &ReferenceArrays<'_>,
    wanted: &Wanted,
    snapshot: &mut Snapshot,
) -> Result<(), Failure> {
    if names.values.is_empty() {
        return Ok(());
    }
    let after = wanted.parked_after.as_ref();
    let parked = names
        .bind(sqlx::query(READ_PARKED))
        .bind(after.map(|key| &*key.psp))
        .bind(after.map(|key| &*key.account))
        .bind(after.map(|key| &*key.event_id))
        .bind(i64::try_from(PARKED_MAX).unwrap_or(i64::MAX));
    for row in parked.fetch_all(&mut **transaction).await? {
        let (facts, foreign_mode): (Option<String>, bool) = (row.try_get("facts")?, row.try_get("foreign_mode")?);
        snapshot.parked.push(rows::parked_event(facts.as_deref(), foreign_mode, timestamp(&row, "received_at")?)?);
    }
    Ok(())
}

pub(super) async fn awaited(
    connection: &mut PgConnection,
    references: &BTreeSet<ReferenceKey>,
) -> Result<BTreeSet<ReferenceKey>, StoreError> {
    let keys: Vec<&ReferenceKey> = references.iter().collect();
    let rows = ReferenceArrays::of(references).bind(sqlx::query(AWAITED)).fetch_all(connection).await.map_err(classify)?;
    let awaited = rows.iter().map(|row| match wanted_at(&keys, row, "refs") {
        Ok(key) => Ok((*key).clone()),
        Err(Failure::Store(error)) => Err(error),
        Err(Failure::Lost) => Err(StoreError::Contended(1)),
    });
    awaited.collect()
}

pub(super) async fn unwoken(
    connection: &mut PgConnection,
    after: Option<&ReferenceKey>,
    limit: u32,
) -> Result<Vec<ReferenceKey>, StoreError> {
    // Nothing stands before four empty texts: there is no such kind.
    let found = sqlx::query(UNWOKEN)
        .bind(after.map_or("", |key| &key.psp))
        .bind(after.map_or("", |key| &key.account))
        .bind(after.map_or("", |key| key.kind.as_str()))
        .bind(after.map_or("", |key| &key.value))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let text = |row: &PgRow, column| row.try_get::<String, _>(column).map_err(classify);
    found.iter().map(|row| rows::reference_key(&text(row, 0)?, &text(row, 1)?, &text(row, 2)?, text(row, 3)?)).collect()
}

/// What replays compare, and what orders are rebuilt from.
async fn kept_events(transaction: &mut PgTransaction<'_>, wanted: &Wanted, snapshot: &mut Snapshot) -> Result<(), Failure> {
    if !wanted.bodies.is_empty() {
        let (times, ids): (Vec<_>, Vec<_>) =
            wanted.bodies.iter().map(|place| (OffsetDateTime::from(place.received_at), place.id)).unzip();
        for row in sqlx::query(READ_BODY_EVENTS).bind(times).bind(ids).fetch_all(&mut **transaction).await? {
            let event = kept_event(&row)?;
            if let Some(place) = event.body {
                snapshot.body_events.entry(place).or_default().push(event);
            }
        }
    }
    if !wanted.order_events.is_empty() {
        snapshot.order_events = wanted.order_events.iter().map(|id| (id.clone(), Vec::new())).collect();
        let ids: Vec<&str> = wanted.order_events.iter().map(String::as_str).collect();
        // One more than fits tells that it does not fit.
        let query = sqlx::query(READ_ORDER_EVENTS).bind(ids).bind(i64::try_from(REBUILD_EVENTS_MAX + 1).unwrap_or(i64::MAX));
        let rows = query.fetch_all(&mut **transaction).await?;
        if rows.len() > REBUILD_EVENTS_MAX {
            return Err(too_many_events().into());
        }
        for row in &rows {
            let event = kept_event(row)?;
            if let Some(events) = event.order_id.as_ref().and_then(|id| snapshot.order_events.get_mut(id)) {
                events.push(event);
            }
        }
    }
    Ok(())
}

fn kept_event(row: &PgRow) -> Result<KeptEvent, StoreError> {
    let columns = || {
        let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
        Ok(KeptColumns {
            key: EventKey { psp: psp.into(), account: account.into(), event_id: row.try_get("event_id")? },
            event_type: row.try_get("event_type")?,
            source: row.try_get("source")?,
            facts: row.try_get("facts")?,
            foreign_mode: row.try_get("foreign_mode")?,
            facts_sha256: row.try_get("facts_sha256")?,
            mapping_version: row.try_get("mapping_version")?,
            outcome: row.try_get("outcome")?,
            reason: row.try_get("reason")?,
            fingerprint: row.try_get("fingerprint")?,
            order_id: row.try_get("order_id")?,
            body_id: row.try_get("body_id")?,
            received_at: timestamp(row, "received_at")?,
        })
    };
    columns().map_err(classify)?.read()
}

pub(super) async fn order(connection: &mut PgConnection, id: &str) -> Result<Option<StoredOrder>, StoreError> {
    let row = sqlx::query("SELECT id, view::text AS view, version, review_since, updated_at FROM orders WHERE id = $1")
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(classify)?;
    row.map(|row| columns(&row).map_err(classify)?.read()).transpose()
}

pub(super) async fn orders(
    connection: &mut PgConnection,
    status: Option<OrderStatus>,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<StoredOrder>, StoreError> {
    // `>=` and `IS DISTINCT FROM` instead of one `OR`: so the index leads to the page also in a plan made without values.
    let rows = match status {
        None => sqlx::query(
            "SELECT id, view::text AS view, version, review_since, updated_at FROM orders
             WHERE id >= $1 AND id IS DISTINCT FROM $2 ORDER BY id LIMIT $3",
        )
        .bind(after.unwrap_or_default())
        .bind(after)
        .bind(i64::from(limit)),
        Some(status) => sqlx::query(
            "SELECT id, view::text AS view, version, review_since, updated_at FROM orders
             WHERE id >= $1 AND id IS DISTINCT FROM $2 AND status = $4 ORDER BY id LIMIT $3",
        )
        .bind(after.unwrap_or_default())
        .bind(after)
        .bind(i64::from(limit))
        .bind(status.as_str()),
    };
    let rows = rows.fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(|row| columns(row).map_err(classify)?.read()).collect()
}

pub(super) async fn balance(connection: &mut PgConnection) -> Result<Balance, StoreError> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(classify)?;
    let events = sqlx::query(
        "SELECT psp, account, outcome, sum(count)::bigint AS count FROM books
         GROUP BY psp, account, outcome HAVING sum(count) <> 0 ORDER BY psp, account, outcome",
    );
    let events = events.fetch_all(&mut *transaction).await.map_err(classify)?;
    let orders = sqlx::query("SELECT status, count(*) AS count FROM orders GROUP BY status ORDER BY status");
    let orders = orders.fetch_all(&mut *transaction).await.map_err(classify)?;
    transaction.commit().await.map_err(classify)?;
    let total = |row: &PgRow| {
        Ok(EventTotal {
            psp: row.try_get("psp")?,
            account: row.try_get("account")?,
            outcome: row.try_get("outcome")?,
            count: row.try_get("count")?,
        })
    };
    let by_status = |row: &PgRow| {
        let status: String = row.try_get("status").map_err(classify)?;
        Ok(OrderTotal { status: rows::status(&status, "the balance")?, count: row.try_get("count").map_err(classify)? })
    };
    Ok(Balance {
        events: events.iter().map(total).collect::<Result<_, _>>().map_err(classify)?,
        orders: orders.iter().map(by_status).collect::<Result<_, _>>()?,
        hours: None,
    })
}

pub(super) async fn hours(
    connection: &mut PgConnection,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<HourTotal>, StoreError> {
    let lines = sqlx::query(
        "SELECT hour, psp, account, outcome, count FROM books
         WHERE hour >= $1 AND hour < $2 AND count <> 0 ORDER BY hour, psp, account, outcome",
    );
    let lines = lines
        .bind(OffsetDateTime::from(since))
        .bind(OffsetDateTime::from(until))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let line = |row: &PgRow| {
        Ok(HourTotal {
            hour: timestamp(row, "hour")?,
            psp: row.try_get("psp")?,
            account: row.try_get("account")?,
            outcome: row.try_get("outcome")?,
            count: row.try_get("count")?,
        })
    };
    lines.iter().map(line).collect::<Result<_, _>>().map_err(classify)
}

pub(super) fn timestamp(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get::<OffsetDateTime, _>(column).map(Timestamp::from)
}

pub(super) fn columns(row: &PgRow) -> Result<OrderColumns, sqlx::Error> {
    Ok(OrderColumns {
        id: row.try_get("id")?,
        view: row.try_get("view")?,
        version: row.try_get("version")?,
        review_since: row.try_get::<Option<OffsetDateTime>, _>("review_since")?.map(Timestamp::from),
        updated_at: timestamp(row, "updated_at")?,
    })
}

/// The array element that a row answers: `WITH ORDINALITY` counts from 1.
fn wanted_at<'a, T>(wanted: &'a [T], row: &PgRow, table: &'static str) -> Result<&'a T, Failure> {
    let n: i64 = row.try_get("n")?;
    let place = n.checked_sub(1).and_then(|place| usize::try_from(place).ok());
    let found = place.and_then(|place| wanted.get(place));
    found.ok_or_else(|| inconsistent(table, "n", n, "it was not asked for").into())
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// References as arrays, in the order of the set: sorted.
struct ReferenceArrays<'a> {
    psps: Vec<&'a str>,
    accounts: Vec<&'a str>,
    kinds: Vec<&'static str>,
    values: Vec<&'a str>,
}

impl<'a> ReferenceArrays<'a> {
    fn of(references: impl IntoIterator<Item = &'a ReferenceKey>) -> Self {
        let mut arrays = Self { psps: Vec::new(), accounts: Vec::new(), kinds: Vec::new(), values: Vec::new() };
        for ReferenceKey { psp, account, kind, value } in references {
            arrays.psps.push(psp);
            arrays.accounts.push(account);
            arrays.kinds.push(kind.as_str());
            arrays.values.push(value);
        }
        arrays
    }

    fn bind(&'a self, query: Query<'a>) -> Query<'a> {
        query.bind(&self.psps).bind(&self.accounts).bind(&self.kinds).bind(&self.values)
    }
}
