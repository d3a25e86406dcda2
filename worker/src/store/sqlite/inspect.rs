//! What is kept of an order or an event: the moments of an order, sorted, then the row that tells of each.

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, Reference, ReferenceKind};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use super::read::{self, timestamp};
use super::{classify, stream};
use crate::order::AccountKey;
use crate::store::inspect::EventColumns;
use crate::store::rows::{self, inconsistent};
use crate::store::{
    Action, CheckState, InboxEntry, Moment, MomentKind, MomentRow, NoticeState, OVERDUE_COUNTED_MAX, Place, StoreError,
    StoredEvent,
};

/// The numbers are those of [`MomentKind`]. Every part finds its rows by the order's id; what is still to be told is found by the
/// destinations of its changes, because the outbox is sorted by destination.
const MOMENTS: &str = "\
    SELECT at, version, kind, key, psp, account, id FROM (
        SELECT at, 0 AS version, 0 AS kind, lower(hex(id)) AS key, '' AS psp, '' AS account, lower(hex(id)) AS id
        FROM actions WHERE order_id = ?1
        UNION ALL
        SELECT received_at, 0, 1, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = ?1
        UNION ALL
        SELECT parked_at, 0, 2, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = ?1 AND parked_at IS NOT NULL
        UNION ALL
        SELECT applied_at, coalesce(order_version, 0), 3, psp || '/' || account || '/' || event_id, psp, account, event_id
        FROM events WHERE order_id = ?1
        UNION ALL
        SELECT at, version, 4, '', '', '', '' FROM transitions WHERE order_id = ?1
        UNION ALL
        SELECT at, version, 5, destination, '', '', destination FROM notices WHERE order_id = ?1
        UNION ALL
        SELECT o.next_attempt_at, o.version, 6, o.destination, '', '', o.destination
        FROM (SELECT DISTINCT j.value AS destination FROM transitions t, json_each(t.destinations) j WHERE t.order_id = ?1) d
        CROSS JOIN outbox o ON o.destination = d.destination AND o.order_id = ?1
        UNION ALL
        SELECT c.last_checked_at, 0, 7, c.psp || '/' || c.account || '/' || c.payment_id, c.psp, c.account, c.payment_id
        FROM json_each(?2) p
        JOIN checks c ON c.psp = p.value ->> 0 AND c.account = p.value ->> 1 AND c.payment_id = p.value ->> 2
        WHERE c.last_checked_at IS NOT NULL
        UNION ALL
        SELECT c.next_check_at, 0, 8, c.psp || '/' || c.account || '/' || c.payment_id, c.psp, c.account, c.payment_id
        FROM json_each(?2) p
        JOIN checks c ON c.psp = p.value ->> 0 AND c.account = p.value ->> 1 AND c.payment_id = p.value ->> 2
        WHERE c.next_check_at IS NOT NULL
    )
    WHERE (at, version, kind, key) > (?3, ?4, ?5, ?6)
    ORDER BY at, version, kind, key
    LIMIT ?7";

const EVENT: &str = "\
    SELECT psp, account, event_id, event_type, source, facts, mapping_version, outcome, reason, fingerprint, order_id,
        order_version, body_id, secret_name, received_at, taken_at, parked_at, applied_at,
        EXISTS (SELECT 1 FROM bodies b WHERE b.id = e.body_id) AS body_kept
    FROM events e WHERE psp = ?1 AND account = ?2 AND event_id = ?3";

const PARKED: &str = "\
    SELECT psp, account, event_id, event_type, source, facts, mapping_version, outcome, reason, fingerprint, order_id,
        order_version, body_id, secret_name, received_at, taken_at, parked_at, applied_at,
        EXISTS (SELECT 1 FROM bodies b WHERE b.id = e.body_id) AS body_kept
    FROM events e
    WHERE outcome = 'parked' AND received_at < ?1 AND received_at >= ?2
        AND (received_at, psp, account, event_id) > (?2, ?3, ?4, ?5)
    ORDER BY received_at, psp, account, event_id
    LIMIT ?6";

pub(super) async fn timeline(
    connection: &mut SqliteConnection,
    order_id: &str,
    after: Option<&Place>,
    limit: u32,
) -> Result<Option<Vec<Moment>>, StoreError> {
    // In one transaction: all reads see the same commit.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let Some(order) = read::order(&mut transaction, order_id).await? else { return Ok(None) };
    let payments = order.view.payments.iter().map(|payment| {
        let AccountKey { psp, account } = &payment.account;
        (&**psp, &**account, &*payment.payment_id)
    });
    let marks = sqlx::query(MOMENTS)
        .bind(order_id)
        .bind(rows::to_json(&payments.collect::<Vec<_>>())?)
        .bind(after.map_or(i64::MIN, |place| place.at.millis()))
        .bind(after.map_or(0, |place| place.version))
        .bind(after.map_or(-1, |place| i64::from(place.kind.number())))
        .bind(after.map_or("", |place| &*place.key))
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?;
    let mut moments = Vec::with_capacity(marks.len());
    for row in &marks {
        moments.push(moment(&mut transaction, order_id, row).await?);
    }
    transaction.commit().await.map_err(classify)?;
    Ok(Some(moments))
}

pub(super) async fn event(connection: &mut SqliteConnection, key: &EventKey) -> Result<Option<InboxEntry>, StoreError> {
    let row = sqlx::query(EVENT).bind(&*key.psp).bind(&*key.account).bind(&*key.event_id);
    match row.fetch_optional(&mut *connection).await.map_err(classify)? {
        Some(row) => entry(connection, &row).await.map(Some),
        None => Ok(None),
    }
}

pub(super) async fn parked(
    connection: &mut SqliteConnection,
    before: Timestamp,
    after: Option<&(Timestamp, EventKey)>,
    limit: u32,
) -> Result<Vec<InboxEntry>, StoreError> {
    // In one transaction: an event that wakes meanwhile keeps its names.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let rows = sqlx::query(PARKED)
        .bind(before.millis())
        .bind(after.map_or(i64::MIN, |(at, _)| at.millis()))
        .bind(after.map_or("", |(_, key)| &*key.psp))
        .bind(after.map_or("", |(_, key)| &*key.account))
        .bind(after.map_or("", |(_, key)| &*key.event_id))
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in &rows {
        entries.push(entry(&mut transaction, row).await?);
    }
    transaction.commit().await.map_err(classify)?;
    Ok(entries)
}

pub(super) async fn overdue(connection: &mut SqliteConnection, before: Timestamp) -> Result<u32, StoreError> {
    let count =
        sqlx::query_scalar("SELECT count(*) FROM (SELECT 1 FROM events WHERE outcome = 'parked' AND received_at < ?1 LIMIT ?2)");
    count.bind(before.millis()).bind(OVERDUE_COUNTED_MAX).fetch_one(connection).await.map_err(classify)
}

async fn entry(connection: &mut SqliteConnection, row: &SqliteRow) -> Result<InboxEntry, StoreError> {
    let event = columns(row).map_err(classify)?.read()?;
    let waiting = sqlx::query(
        "SELECT ref_kind, ref_value FROM parkings WHERE psp = ?1 AND account = ?2 AND event_id = ?3 ORDER BY ref_kind, ref_value",
    );
    let EventKey { psp, account, event_id } = &event.key;
    let waiting = waiting.bind(&**psp).bind(&**account).bind(event_id).fetch_all(connection).await.map_err(classify)?;
    let reference = |row: &SqliteRow| {
        let (kind, value): (String, String) =
            (row.try_get("ref_kind").map_err(classify)?, row.try_get("ref_value").map_err(classify)?);
        let kind = ReferenceKind::parse(&kind).ok_or_else(|| inconsistent("parkings", "ref_kind", &kind, "it is no kind"))?;
        Ok(Reference::new(kind, value))
    };
    let waits_under = waiting.iter().map(reference).collect::<Result<_, StoreError>>()?;
    Ok(InboxEntry { event, waits_under, body_kept: row.try_get("body_kept").map_err(classify)? })
}

async fn moment(connection: &mut SqliteConnection, order_id: &str, mark: &SqliteRow) -> Result<Moment, StoreError> {
    let text = |column| mark.try_get::<String, _>(column).map_err(classify);
    let number: i64 = mark.try_get("kind").map_err(classify)?;
    let kind = u8::try_from(number).ok().and_then(MomentKind::of_number);
    let place = Place {
        at: timestamp(mark, "at").map_err(classify)?,
        version: mark.try_get("version").map_err(classify)?,
        // The numbers are those of the statement.
        kind: kind.ok_or_else(|| inconsistent("a query", "kind", number, "it is no kind of moment"))?,
        key: text("key")?,
    };
    let (psp, account, id) = (text("psp")?, text("account")?, text("id")?);
    let row = match place.kind {
        MomentKind::Acted => {
            let bytes = Uuid::try_parse(&id).map_err(|error| inconsistent("actions", "id", &id, error))?;
            let found = sqlx::query("SELECT kind, operator, reason, detail FROM actions WHERE id = ?1").bind(bytes);
            MomentRow::Action(action(&found.fetch_one(connection).await.map_err(classify)?)?)
        }
        MomentKind::Received | MomentKind::Parked | MomentKind::Settled => {
            let found = sqlx::query(EVENT).bind(psp).bind(account).bind(id).fetch_one(connection).await.map_err(classify)?;
            let event: StoredEvent = columns(&found).map_err(classify)?.read()?;
            MomentRow::Event(Box::new(event))
        }
        MomentKind::Changed => {
            let found = sqlx::query(
                "SELECT id, order_id, version, from_status, at, view, review_since FROM transitions
                 WHERE order_id = ?1 AND version = ?2",
            );
            let found = found.bind(order_id).bind(place.version).fetch_one(connection).await.map_err(classify)?;
            MomentRow::Change(Box::new(stream::columns(&found).map_err(classify)?.read()?))
        }
        MomentKind::Noticed | MomentKind::NoticeDue => {
            let found = sqlx::query(if place.kind == MomentKind::Noticed {
                "SELECT version, destination, outcome, attempts, last_error FROM notices
                 WHERE order_id = ?1 AND version = ?2 AND destination = ?3"
            } else {
                "SELECT version, destination, NULL AS outcome, attempts, last_error FROM outbox
                 WHERE order_id = ?1 AND version = ?2 AND destination = ?3"
            });
            let found = found.bind(order_id).bind(place.version).bind(id).fetch_one(connection).await.map_err(classify)?;
            MomentRow::Notice(notice(&found).map_err(classify)?)
        }
        MomentKind::Asked | MomentKind::LookDue => {
            let found = sqlx::query(
                "SELECT psp, account, payment_id, looks, last_result, last_checked_at, next_check_at FROM checks
                 WHERE psp = ?1 AND account = ?2 AND payment_id = ?3",
            );
            let found = found.bind(psp).bind(account).bind(id).fetch_one(connection).await.map_err(classify)?;
            MomentRow::Check(check(&found).map_err(classify)?)
        }
    };
    Ok(Moment { place, row })
}

fn action(row: &SqliteRow) -> Result<Action, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(classify);
    let kind = text("kind")?;
    Ok(Action {
        detail: rows::from_json(&text("detail")?, "actions", "detail", &kind)?,
        kind,
        operator: text("operator")?,
        reason: row.try_get("reason").map_err(classify)?,
    })
}

fn notice(row: &SqliteRow) -> Result<NoticeState, sqlx::Error> {
    Ok(NoticeState {
        version: row.try_get("version")?,
        destination: row.try_get("destination")?,
        outcome: row.try_get("outcome")?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}

fn check(row: &SqliteRow) -> Result<CheckState, sqlx::Error> {
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

fn columns(row: &SqliteRow) -> Result<EventColumns, sqlx::Error> {
    let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
    Ok(EventColumns {
        key: EventKey { psp: psp.into(), account: account.into(), event_id: row.try_get("event_id")? },
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

fn optional_timestamp(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_millis))
}
