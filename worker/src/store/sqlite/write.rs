//! Writing a plan, row by row.

use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Sqlite, query};

use super::{classify, expiry, learning};
use crate::order::OrderStatus;
use crate::store::rows::{self, ContentColumns};
use crate::store::{
    ActionWrite, BodyWrite, BookKey, CheckReason, CheckWrite, EventWrite, OrderWrite, Plan, ReferenceKey, ReplacedEvent,
    StoreError, WokenEvent,
};

const INSERT_CHECK: &str = "\
    INSERT INTO checks (psp, account, payment_id, next_check_at, first_seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT DO NOTHING";

/// What was planned for it as it stood before is replaced; but a hint that no look has answered yet is answered.
const STAND_CHECK: &str = "\
    INSERT INTO checks (psp, account, payment_id, next_check_at, standing, standing_since, first_seen_at)
    VALUES (?1, ?2, ?3, ?4, ?6, ?5, ?5)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        standing = excluded.standing,
        standing_since = excluded.standing_since,
        first_seen_at = coalesce(first_seen_at, excluded.first_seen_at),
        next_check_at = CASE
            WHEN hint_seq > answered_seq
                THEN min(coalesce(next_check_at, excluded.next_check_at), coalesce(excluded.next_check_at, next_check_at))
            ELSE excluded.next_check_at END";

/// A hint's number too, so that a look under way does not end this question. Not within two seconds of the last look.
pub(super) const ASK_ABOUT: &str = "\
    INSERT INTO checks (psp, account, payment_id, next_check_at, first_seen_at, hint_seq) VALUES (?1, ?2, ?3, ?4, ?5, 1)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        hint_seq = hint_seq + 1,
        next_check_at = min(
            coalesce(CASE WHEN lease_token IS NULL THEN next_check_at END, 9223372036854775807),
            max(excluded.next_check_at, coalesce(last_checked_at, 0) + 2000))";

pub(super) async fn plan(connection: &mut SqliteConnection, plan: &Plan) -> Result<(), StoreError> {
    for write in &plan.bodies {
        body(connection, write).await?;
    }
    for write in &plan.events {
        event(connection, write).await?;
    }
    for event in &plan.replaced {
        replace(connection, event).await?;
    }
    for write in &plan.orders {
        order(connection, write, &plan.destinations).await?;
    }
    for write in &plan.actions {
        action(connection, write).await?;
    }
    for (reference, order_id) in &plan.unlinks {
        unlink(connection, reference, order_id).await?;
    }
    for (reference, order_id) in &plan.links {
        link(connection, reference, order_id).await?;
    }
    for (key, reference) in &plan.parkings {
        let parking = query("INSERT INTO parkings VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING")
            .bind(&*key.psp)
            .bind(&*key.account)
            .bind(&*key.event_id)
            .bind(&*reference.psp)
            .bind(&*reference.account)
            .bind(reference.kind.as_str())
            .bind(&*reference.value);
        run(connection, parking).await?;
    }
    for write in &plan.woken {
        wake(connection, write).await?;
    }
    for write in &plan.unasked {
        expiry::unasked(connection, write).await?;
    }
    for CheckWrite { account, payment_id, reason } in &plan.checks {
        let (sql, next_check_at, standing) = match *reason {
            CheckReason::Unplaced { next_check_at } => (INSERT_CHECK, Some(next_check_at), None),
            CheckReason::Stands { as_, next_check_at } => (STAND_CHECK, next_check_at, Some(as_)),
            CheckReason::InDoubt { next_check_at } => (ASK_ABOUT, Some(next_check_at), None),
        };
        let check = query(sql).bind(&*account.psp).bind(&*account.account).bind(&**payment_id);
        let check = check.bind(next_check_at.map(Timestamp::millis)).bind(plan.now.millis());
        let check = if let Some(standing) = standing { check.bind(standing.as_str()) } else { check };
        run(connection, check).await?;
    }
    for row in &plan.learned {
        learning::learn(connection, row, plan.now).await?;
    }
    learning::webhooks(connection, &plan.webhooks).await?;
    for (BookKey { account, hour, outcome }, count) in &plan.books {
        let line = query(
            "INSERT INTO books (psp, account, hour, outcome, count) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (psp, account, hour, outcome) DO UPDATE SET count = count + excluded.count",
        );
        let line = line.bind(&*account.psp).bind(&*account.account).bind(hour.millis()).bind(outcome.as_str()).bind(count);
        run(connection, line).await?;
    }
    Ok(())
}

async fn body(connection: &mut SqliteConnection, BodyWrite { id, body }: &BodyWrite) -> Result<(), StoreError> {
    let (headers, sha256) = rows::body_columns(body)?;
    let insert = query(
        "INSERT INTO bodies (id, received_at, psp, account, webhook_id, secret_name, content_type, headers, bytes, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .bind(id)
    .bind(body.received_at.millis())
    .bind(&*body.psp)
    .bind(&*body.account)
    .bind(&*body.webhook_id)
    .bind(&*body.secret_name)
    .bind(body.content_type.as_deref())
    .bind(headers)
    .bind(&*body.bytes)
    .bind(&sha256[..]);
    run(connection, insert).await.map(drop)
}

async fn event(connection: &mut SqliteConnection, write: &EventWrite) -> Result<(), StoreError> {
    let ContentColumns { facts, foreign_mode, reason, fingerprint } = rows::content_columns(&write.row.content)?;
    let insert = query(
        "INSERT INTO events (psp, account, event_id, event_type, source, facts, foreign_mode, facts_sha256, mapping_version,
             outcome, reason, fingerprint, order_id, body_id, received_at, applied_at, taken_at, parked_at, secret_name,
             order_version)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?16,
             CASE ?10 WHEN 'parked' THEN ?16 END, ?17, ?18)",
    )
    .bind(&*write.row.key.psp)
    .bind(&*write.row.key.account)
    .bind(&*write.row.key.event_id)
    .bind(&*write.row.event_type)
    .bind(rows::source_name(write.row.source))
    .bind(facts)
    .bind(foreign_mode)
    .bind(&write.row.facts_sha256[..])
    .bind(write.row.mapping_version)
    .bind(write.outcome.as_str())
    .bind(reason)
    .bind(fingerprint)
    .bind(write.order_id.as_deref())
    .bind(write.body_id)
    .bind(write.row.received_at.millis())
    .bind(write.at.millis())
    .bind(write.secret_name.as_deref())
    .bind(write.order_version);
    run(connection, insert).await.map(drop)
}

/// Whoever waited as what it was waits no more.
async fn replace(connection: &mut SqliteConnection, ReplacedEvent { was, write }: &ReplacedEvent) -> Result<(), StoreError> {
    let ContentColumns { facts, foreign_mode, reason, fingerprint } = rows::content_columns(&write.row.content)?;
    let key = &was.row.key;
    let update = query(
        "UPDATE events SET event_type = ?4, facts = ?5, foreign_mode = ?6, facts_sha256 = ?7, mapping_version = ?8,
             outcome = ?9, reason = ?10, fingerprint = ?11, order_id = ?12, order_version = ?13, applied_at = ?14,
             parked_at = CASE WHEN ?9 = 'parked' AND outcome <> 'parked' THEN ?14 ELSE parked_at END
         WHERE psp = ?1 AND account = ?2 AND event_id = ?3",
    )
    .bind(&*key.psp)
    .bind(&*key.account)
    .bind(&*key.event_id)
    .bind(&*write.row.event_type)
    .bind(facts)
    .bind(foreign_mode)
    .bind(&write.row.facts_sha256[..])
    .bind(write.row.mapping_version)
    .bind(write.outcome.as_str())
    .bind(reason)
    .bind(fingerprint)
    .bind(write.order_id.as_deref())
    .bind(write.order_version)
    .bind(write.at.millis());
    // Read in this transaction, and nobody else writes.
    run(connection, update).await?;
    let delete = query("DELETE FROM parkings WHERE psp = ?1 AND account = ?2 AND event_id = ?3");
    run(connection, delete.bind(&*key.psp).bind(&*key.account).bind(&*key.event_id)).await.map(drop)
}

async fn order(connection: &mut SqliteConnection, write: &OrderWrite, destinations: &[Arc<str>]) -> Result<(), StoreError> {
    let OrderWrite { registers, stored, previous_version, due_at, transition } = write;
    let view = rows::to_json(&stored.view)?;
    let registers = rows::to_json(registers)?;
    let sql = if *previous_version == 0 {
        "INSERT INTO orders (id, status, view, registers, version, review_since, updated_at, due_at)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9 WHERE ?8 = 0"
    } else {
        "UPDATE orders SET status = ?2, view = ?3, registers = ?4, version = ?5, review_since = ?6, updated_at = ?7, due_at = ?9
         WHERE id = ?1 AND version = ?8"
    };
    let upsert = query(sql)
        .bind(&*stored.id)
        .bind(stored.view.status.as_str())
        .bind(&*view)
        .bind(&*registers)
        .bind(stored.version)
        .bind(stored.review_since.map(Timestamp::millis))
        .bind(stored.updated_at.millis())
        .bind(previous_version)
        .bind(due_at.map(Timestamp::millis));
    if run(connection, upsert).await? != 1 {
        // Read in this transaction, and nobody else writes.
        return Err(rows::inconsistent("orders", "version", &stored.id, "it is not the one that was read"));
    }
    let Some(transition) = transition else { return Ok(()) };
    let insert = query(
        "INSERT INTO transitions (order_id, version, id, from_status, to_status, at, view, review_since, destinations)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(&*stored.id)
    .bind(stored.version)
    .bind(transition.id)
    .bind(transition.from.map(OrderStatus::as_str))
    .bind(transition.to.as_str())
    .bind(transition.at.millis())
    .bind(&*view)
    .bind(stored.review_since.map(Timestamp::millis))
    .bind(rows::to_json(&destinations)?);
    run(connection, insert).await?;
    for destination in destinations {
        let waiting =
            query("INSERT INTO outbox (destination, order_id, version, at, next_attempt_at) VALUES (?1, ?2, ?3, ?4, ?4)");
        let waiting = waiting.bind(&**destination).bind(&*stored.id).bind(stored.version).bind(transition.at.millis());
        run(connection, waiting).await?;
    }
    Ok(())
}

async fn action(connection: &mut SqliteConnection, write: &ActionWrite) -> Result<(), StoreError> {
    let insert =
        query("INSERT INTO actions (id, order_id, kind, operator, reason, at, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
    let insert = insert.bind(write.id).bind(&*write.order_id).bind(write.kind.as_str()).bind(&*write.operator);
    let insert = insert.bind(write.reason.as_deref()).bind(write.at.millis()).bind(write.detail.to_string());
    run(connection, insert).await.map(drop)
}

async fn link(connection: &mut SqliteConnection, reference: &ReferenceKey, order_id: &str) -> Result<(), StoreError> {
    let ReferenceKey { psp, account, kind, value } = reference;
    let link = query(
        "INSERT INTO refs (psp, account, kind, value, order_id) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (psp, account, kind, value) DO UPDATE SET order_id = excluded.order_id WHERE order_id IS NULL",
    );
    run(connection, link.bind(&**psp).bind(&**account).bind(kind.as_str()).bind(&**value).bind(order_id)).await.map(drop)
}

async fn unlink(connection: &mut SqliteConnection, reference: &ReferenceKey, order_id: &str) -> Result<(), StoreError> {
    let ReferenceKey { psp, account, kind, value } = reference;
    let unlink =
        query("UPDATE refs SET order_id = NULL WHERE psp = ?1 AND account = ?2 AND kind = ?3 AND value = ?4 AND order_id = ?5");
    run(connection, unlink.bind(&**psp).bind(&**account).bind(kind.as_str()).bind(&**value).bind(order_id)).await.map(drop)
}

async fn wake(connection: &mut SqliteConnection, woken: &WokenEvent) -> Result<(), StoreError> {
    let WokenEvent { key, outcome, order_id, order_version, at } = woken;
    let update = query(
        "UPDATE events SET outcome = ?4, order_id = ?5, applied_at = ?6, order_version = ?7
         WHERE psp = ?1 AND account = ?2 AND event_id = ?3 AND outcome = 'parked'",
    );
    let update = update.bind(&*key.psp).bind(&*key.account).bind(&*key.event_id);
    if run(connection, update.bind(outcome.as_str()).bind(&**order_id).bind(at.millis()).bind(order_version)).await? != 1 {
        return Err(rows::inconsistent("events", "outcome", key, "it was woken but is not parked"));
    }
    let delete = query("DELETE FROM parkings WHERE psp = ?1 AND account = ?2 AND event_id = ?3");
    run(connection, delete.bind(&*key.psp).bind(&*key.account).bind(&*key.event_id)).await.map(drop)
}

/// Rows written.
pub(super) async fn run(
    connection: &mut SqliteConnection,
    query: sqlx::query::Query<'_, Sqlite, SqliteArguments>,
) -> Result<u64, StoreError> {
    Ok(query.execute(connection).await.map_err(classify)?.rows_affected())
}
