//! Reading what a transaction decides by, and the reads of the API.

use std::collections::BTreeSet;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::classify;
use crate::order::OrderStatus;
use crate::store::rows::{self, KeptColumns, OrderColumns, REBUILD_EVENTS_MAX, too_many_events};
use crate::store::{
    Balance, BodyPlace, EventTotal, HourTotal, KeptEvent, OrderRow, OrderTotal, PARKED_MAX, ParkedEvent, ReferenceKey, Snapshot,
    StoreError, StoredOrder, Wanted,
};

pub(super) async fn snapshot(connection: &mut SqliteConnection, wanted: &Wanted) -> Result<Snapshot, StoreError> {
    let mut snapshot = Snapshot { keys_read: wanted.keys.clone(), ..Snapshot::default() };
    for reference in &wanted.references {
        let order_id = order_of(connection, reference).await?;
        snapshot.references.insert(reference.clone(), order_id);
    }
    for id in rows::order_ids(&snapshot.references) {
        if let Some(order) = order_row(connection, &id).await? {
            snapshot.orders.insert(id, order);
        }
    }
    let mut waiting = BTreeSet::new();
    for (reference, order_id) in &snapshot.references {
        // Nobody parks under a name that leads to an order, and whoever led it there woke those who had.
        if order_id.is_none() || wanted.parked_led {
            waiting.extend(parked_under(connection, reference, wanted.parked_after.as_ref()).await?);
        }
    }
    // The first of each name hold the first of all.
    for key in waiting.into_iter().take(PARKED_MAX) {
        snapshot.parked.push(parked_event(connection, &key).await?);
    }
    for key in &wanted.keys {
        let row = sqlx::query(
            "SELECT facts_sha256, mapping_version, source FROM events WHERE psp = ?1 AND account = ?2 AND event_id = ?3",
        )
        .bind(&*key.psp)
        .bind(&*key.account)
        .bind(&*key.event_id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(classify)?;
        if let Some(row) = row {
            let facts_sha256: Vec<u8> = row.try_get(0).map_err(classify)?;
            let (version, source): (i64, String) = (row.try_get(1).map_err(classify)?, row.try_get(2).map_err(classify)?);
            snapshot.known.insert(key.clone(), rows::known_event(key, &facts_sha256, version, &source)?);
        }
    }
    for place in &wanted.bodies {
        snapshot.body_events.insert(*place, body_events(connection, place).await?);
    }
    let mut left = REBUILD_EVENTS_MAX;
    for id in &wanted.order_events {
        let events = order_events(connection, id, left).await?;
        left = left.checked_sub(events.len()).ok_or_else(too_many_events)?;
        snapshot.order_events.insert(id.clone(), events);
    }
    Ok(snapshot)
}

async fn body_events(connection: &mut SqliteConnection, place: &BodyPlace) -> Result<Vec<KeptEvent>, StoreError> {
    let query = sqlx::query("SELECT * FROM events WHERE received_at = ?1 AND body_id = ?2 ORDER BY psp, account, event_id");
    let rows = query.bind(place.received_at.millis()).bind(place.id).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(kept_event).collect()
}

/// One more than `limit` tells that there are more.
async fn order_events(connection: &mut SqliteConnection, id: &str, limit: usize) -> Result<Vec<KeptEvent>, StoreError> {
    let query = sqlx::query("SELECT * FROM events WHERE order_id = ?1 ORDER BY received_at, psp, account, event_id LIMIT ?2");
    let limit = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let rows = query.bind(id).bind(limit).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(kept_event).collect()
}

fn kept_event(row: &SqliteRow) -> Result<KeptEvent, StoreError> {
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

async fn order_of(connection: &mut SqliteConnection, reference: &ReferenceKey) -> Result<Option<String>, StoreError> {
    let ReferenceKey { psp, account, kind, value } = reference;
    let found = sqlx::query_scalar("SELECT order_id FROM refs WHERE psp = ?1 AND account = ?2 AND kind = ?3 AND value = ?4")
        .bind(&**psp)
        .bind(&**account)
        .bind(kind.as_str())
        .bind(value)
        .fetch_optional(connection)
        .await
        .map_err(classify)?;
    Ok(found.flatten())
}

async fn order_row(connection: &mut SqliteConnection, id: &str) -> Result<Option<OrderRow>, StoreError> {
    let row = sqlx::query("SELECT id, view, registers, version, review_since, updated_at FROM orders WHERE id = ?1")
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(classify)?;
    let Some(row) = row else { return Ok(None) };
    let registers: String = row.try_get("registers").map_err(classify)?;
    columns(&row).map_err(classify)?.read_row(&registers).map(Some)
}

async fn parked_under(
    connection: &mut SqliteConnection,
    reference: &ReferenceKey,
    after: Option<&EventKey>,
) -> Result<Vec<EventKey>, StoreError> {
    let ReferenceKey { psp, account, kind, value } = reference;
    // Nothing stands before three empty texts: there is no such event.
    let rows = sqlx::query(
        "SELECT psp, account, event_id FROM parkings
         WHERE ref_psp = ?1 AND ref_account = ?2 AND ref_kind = ?3 AND ref_value = ?4
             AND (psp, account, event_id) > (?5, ?6, ?7)
         ORDER BY psp, account, event_id
         LIMIT ?8",
    )
    .bind(&**psp)
    .bind(&**account)
    .bind(kind.as_str())
    .bind(value)
    .bind(after.map_or("", |key| &*key.psp))
    .bind(after.map_or("", |key| &*key.account))
    .bind(after.map_or("", |key| &*key.event_id))
    .bind(i64::try_from(PARKED_MAX).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await
    .map_err(classify)?;
    let key = |row: &SqliteRow| {
        let (psp, account): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(EventKey { psp: psp.into(), account: account.into(), event_id: row.try_get(2)? })
    };
    rows.iter().map(key).collect::<Result<_, _>>().map_err(classify)
}

/// Of these names, those that lead to an order and under which events are parked.
pub(super) async fn awaited(
    connection: &mut SqliteConnection,
    references: &BTreeSet<ReferenceKey>,
) -> Result<BTreeSet<ReferenceKey>, StoreError> {
    let mut awaited = BTreeSet::new();
    for reference in references {
        let leads = order_of(connection, reference).await?.is_some();
        if leads && !parked_under(connection, reference, None).await?.is_empty() {
            awaited.insert(reference.clone());
        }
    }
    Ok(awaited)
}

pub(super) async fn unwoken(
    connection: &mut SqliteConnection,
    after: Option<&ReferenceKey>,
    limit: u32,
) -> Result<Vec<ReferenceKey>, StoreError> {
    // Nothing stands before four empty texts: there is no such kind.
    let found = sqlx::query(
        "SELECT DISTINCT p.ref_psp, p.ref_account, p.ref_kind, p.ref_value
         FROM parkings p
         JOIN refs r ON r.psp = p.ref_psp AND r.account = p.ref_account AND r.kind = p.ref_kind AND r.value = p.ref_value
         WHERE r.order_id IS NOT NULL AND (p.ref_psp, p.ref_account, p.ref_kind, p.ref_value) > (?1, ?2, ?3, ?4)
         ORDER BY p.ref_psp, p.ref_account, p.ref_kind, p.ref_value
         LIMIT ?5",
    )
    .bind(after.map_or("", |key| &*key.psp))
    .bind(after.map_or("", |key| &*key.account))
    .bind(after.map_or("", |key| key.kind.as_str()))
    .bind(after.map_or("", |key| &*key.value))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(classify)?;
    let text = |row: &SqliteRow, column| row.try_get::<String, _>(column).map_err(classify);
    found.iter().map(|row| rows::reference_key(&text(row, 0)?, &text(row, 1)?, &text(row, 2)?, text(row, 3)?)).collect()
}

async fn parked_event(connection: &mut SqliteConnection, key: &EventKey) -> Result<ParkedEvent, StoreError> {
    let row =
        sqlx::query("SELECT facts, foreign_mode, received_at FROM events WHERE psp = ?1 AND account = ?2 AND event_id = ?3")
            .bind(&*key.psp)
            .bind(&*key.account)
            .bind(&*key.event_id)
            .fetch_optional(connection)
            .await
            .map_err(classify)?;
    let row = row.ok_or_else(|| rows::inconsistent("parkings", "event_id", key, "there is no such event"))?;
    let facts: Option<String> = row.try_get(0).map_err(classify)?;
    let received_at = timestamp(&row, "received_at").map_err(classify)?;
    rows::parked_event(facts.as_deref(), row.try_get(1).map_err(classify)?, received_at)
}

pub(super) async fn order(connection: &mut SqliteConnection, id: &str) -> Result<Option<StoredOrder>, StoreError> {
    let row = sqlx::query("SELECT id, view, version, review_since, updated_at FROM orders WHERE id = ?1")
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(classify)?;
    row.map(|row| columns(&row).map_err(classify)?.read()).transpose()
}

pub(super) async fn orders(
    connection: &mut SqliteConnection,
    status: Option<OrderStatus>,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<StoredOrder>, StoreError> {
    // `>=` and `IS NOT` instead of one `OR`: so the index leads to the page.
    let rows = match status {
        None => sqlx::query(
            "SELECT id, view, version, review_since, updated_at FROM orders
             WHERE id >= ?1 AND id IS NOT ?2 ORDER BY id LIMIT ?3",
        )
        .bind(after.unwrap_or_default())
        .bind(after)
        .bind(limit),
        Some(status) => sqlx::query(
            "SELECT id, view, version, review_since, updated_at FROM orders
             WHERE id >= ?1 AND id IS NOT ?2 AND status = ?4 ORDER BY id LIMIT ?3",
        )
        .bind(after.unwrap_or_default())
        .bind(after)
        .bind(limit)
        .bind(status.as_str()),
    };
    let rows = rows.fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(|row| columns(row).map_err(classify)?.read()).collect()
}

pub(super) async fn balance(connection: &mut SqliteConnection) -> Result<Balance, StoreError> {
    // In one transaction: both reads see the same commit.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let events = sqlx::query(
        "SELECT psp, account, outcome, sum(count) AS count FROM books
         GROUP BY psp, account, outcome HAVING sum(count) <> 0 ORDER BY psp, account, outcome",
    );
    let events = events.fetch_all(&mut *transaction).await.map_err(classify)?;
    let orders = sqlx::query("SELECT status, count(*) AS count FROM orders GROUP BY status ORDER BY status");
    let orders = orders.fetch_all(&mut *transaction).await.map_err(classify)?;
    transaction.commit().await.map_err(classify)?;
    let total = |row: &SqliteRow| {
        Ok(EventTotal {
            psp: row.try_get("psp")?,
            account: row.try_get("account")?,
            outcome: row.try_get("outcome")?,
            count: row.try_get("count")?,
        })
    };
    let by_status = |row: &SqliteRow| {
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
    connection: &mut SqliteConnection,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<HourTotal>, StoreError> {
    let lines = sqlx::query(
        "SELECT hour, psp, account, outcome, count FROM books
         WHERE hour >= ?1 AND hour < ?2 AND count <> 0 ORDER BY hour, psp, account, outcome",
    );
    let lines = lines.bind(since.millis()).bind(until.millis()).fetch_all(connection).await.map_err(classify)?;
    let line = |row: &SqliteRow| {
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

pub(super) fn timestamp(row: &SqliteRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get(column).map(Timestamp::from_millis)
}

pub(super) fn columns(row: &SqliteRow) -> Result<OrderColumns, sqlx::Error> {
    Ok(OrderColumns {
        id: row.try_get("id")?,
        view: row.try_get("view")?,
        version: row.try_get("version")?,
        review_since: row.try_get::<Option<i64>, _>("review_since")?.map(Timestamp::from_millis),
        updated_at: timestamp(row, "updated_at")?,
    })
}
