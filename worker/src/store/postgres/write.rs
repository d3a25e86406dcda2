//! Writing a plan: one statement for each table, in one order for all transactions, rows sorted.
//!
//! So whoever waits for a row waits for one who is at least as far, and nobody waits in a circle. The books come last: their
//! rows are those that most transactions share.

use paybell_shared::clock::Timestamp;
use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;

use super::copy::Rows;
use super::errors::Failure;
use super::{expiry, learning};
use crate::inbox::Outcome;
use crate::order::OrderStatus;
use crate::pace::Pace;
use crate::store::rows::{self, ContentColumns};
use crate::store::{
    ActionWrite, BodyWrite, BookKey, CheckReason, CheckWrite, EventWrite, OrderWrite, Plan, ReferenceKey, ReplacedEvent,
    StoreError, WokenEvent,
};

const COPY_BODIES: &str = "\
    COPY bodies (id, received_at, psp, account, webhook_id, secret_name, content_type, headers, bytes, sha256)
    FROM STDIN (FORMAT binary)";

const COPY_EVENTS: &str = "\
    COPY events (psp, account, event_id, event_type, source, facts, foreign_mode, facts_sha256, mapping_version, outcome, reason,
        fingerprint, order_id, body_id, received_at, applied_at, taken_at, parked_at, secret_name, order_version)
    FROM STDIN (FORMAT binary)";

/// Only over what was read: a row without references has no lock.
const REPLACE_EVENTS: &str = "\
    UPDATE events e SET event_type = w.event_type, facts = w.facts::json, foreign_mode = w.foreign_mode,
        facts_sha256 = w.facts_sha256, mapping_version = w.mapping_version, outcome = w.outcome, reason = w.reason,
        fingerprint = w.fingerprint, order_id = w.order_id, order_version = w.order_version, applied_at = w.at,
        parked_at = CASE WHEN w.outcome = 'parked' AND e.outcome <> 'parked' THEN w.at ELSE e.parked_at END
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::boolean[], $11::bytea[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::text[], $17::bigint[],
            $18::timestamptz[])
        AS w(psp, account, event_id, sha256_before, mapping_before, outcome_before, order_before, event_type, facts,
            foreign_mode, facts_sha256, mapping_version, outcome, reason, fingerprint, order_id, order_version, at)
    WHERE e.psp = w.psp AND e.account = w.account AND e.event_id = w.event_id AND e.facts_sha256 = w.sha256_before
        AND e.mapping_version = w.mapping_before AND e.outcome = w.outcome_before AND e.order_id IS NOT DISTINCT FROM w.order_before";

const INSERT_ORDERS: &str = "\
    INSERT INTO orders (id, status, view, registers, version, review_since, updated_at, due_at)
    SELECT id, status, view::json, registers::json, version, review_since, updated_at, due_at
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[])
        AS w(id, status, view, registers, version, review_since, updated_at, due_at)
    ORDER BY id
    ON CONFLICT DO NOTHING";

const UPDATE_ORDERS: &str = "\
    UPDATE orders o SET status = w.status, view = w.view::json, registers = w.registers::json, version = w.version,
        review_since = w.review_since, updated_at = w.updated_at, due_at = w.due_at
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[],
            $8::timestamptz[], $9::bigint[])
        AS w(id, status, view, registers, version, review_since, updated_at, due_at, previous_version)
    WHERE o.id = w.id AND o.version = w.previous_version";

/// A transaction that was numbered first may get its order last: the number that the stream sorts by is not below that of
/// the order's version before. It is of one that has ended, so nothing becomes visible behind a reader.
const INSERT_TRANSITIONS: &str = "\
    INSERT INTO transitions (order_id, version, id, from_status, to_status, at, view, review_since, destinations, xid)
    SELECT w.order_id, w.version, w.id, w.from_status, w.to_status, w.at, w.view::json, w.review_since, $9::text[],
        greatest(pg_current_xact_id(), earlier.xid)
    FROM UNNEST($1::text[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::timestamptz[])
        AS w(order_id, version, id, from_status, to_status, at, view, review_since)
    LEFT JOIN transitions AS earlier ON earlier.order_id = w.order_id AND earlier.version = w.version - 1
    ORDER BY w.order_id";

const INSERT_OUTBOX: &str = "\
    INSERT INTO outbox (destination, order_id, version, at, next_attempt_at)
    SELECT destination, order_id, version, at, at
    FROM UNNEST($1::text[], $2::bigint[], $3::timestamptz[]) AS w(order_id, version, at), UNNEST($4::text[]) AS d(destination)
    ORDER BY destination, order_id";

const INSERT_ACTIONS: &str = "\
    INSERT INTO actions (id, order_id, kind, operator, reason, at, detail)
    SELECT id, order_id, kind, operator, reason, at, detail::json
    FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
        AS w(id, order_id, kind, operator, reason, at, detail)";

const UNLINK_REFERENCES: &str = "\
    UPDATE refs r SET order_id = NULL
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS w(psp, account, kind, value, order_id)
    WHERE r.psp = w.psp AND r.account = w.account AND r.kind = w.kind AND r.value = w.value AND r.order_id = w.order_id";

const UPDATE_REFERENCES: &str = "\
    UPDATE refs r SET order_id = w.order_id
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS w(psp, account, kind, value, order_id)
    WHERE r.psp = w.psp AND r.account = w.account AND r.kind = w.kind AND r.value = w.value AND r.order_id IS NULL";

const INSERT_PARKINGS: &str = "\
    INSERT INTO parkings (psp, account, event_id, ref_psp, ref_account, ref_kind, ref_value)
    SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    ON CONFLICT DO NOTHING";

const UPDATE_WOKEN: &str = "\
    UPDATE events e SET outcome = w.outcome, order_id = w.order_id, applied_at = w.applied_at, order_version = w.order_version
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::bigint[])
        AS w(psp, account, event_id, outcome, order_id, applied_at, order_version)
    WHERE e.psp = w.psp AND e.account = w.account AND e.event_id = w.event_id AND e.outcome = 'parked'";

const DELETE_PARKINGS: &str = "\
    DELETE FROM parkings p
    USING UNNEST($1::text[], $2::text[], $3::text[]) AS w(psp, account, event_id)
    WHERE p.psp = w.psp AND p.account = w.account AND p.event_id = w.event_id";

const INSERT_CHECKS: &str = "\
    INSERT INTO checks (psp, account, payment_id, next_check_at, first_seen_at)
    SELECT psp, account, payment_id, next_check_at, $5
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS w(psp, account, payment_id, next_check_at)
    ORDER BY psp, account, payment_id
    ON CONFLICT DO NOTHING";

/// What was planned for it as it stood before is replaced; but a hint that no look has answered yet is answered.
const STAND_CHECKS: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, standing, standing_since, first_seen_at)
    SELECT psp, account, payment_id, next_check_at, standing, $5, $5
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[], $6::text[])
        AS w(psp, account, payment_id, next_check_at, standing)
    ORDER BY psp, account, payment_id
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        standing = excluded.standing,
        standing_since = excluded.standing_since,
        first_seen_at = coalesce(c.first_seen_at, excluded.first_seen_at),
        next_check_at = CASE
            WHEN c.hint_seq > c.answered_seq THEN LEAST(c.next_check_at, excluded.next_check_at)
            ELSE excluded.next_check_at END";

/// A hint's number too, so that a look under way does not end this question. Not within two seconds of the last look; for
/// the one under way, what was due is being answered.
pub(super) const ASK_ABOUT: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, first_seen_at, hint_seq)
    SELECT psp, account, payment_id, next_check_at, $5, 1
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS w(psp, account, payment_id, next_check_at)
    ORDER BY psp, account, payment_id
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        hint_seq = c.hint_seq + 1,
        next_check_at = LEAST(
            CASE WHEN c.lease_token IS NULL THEN c.next_check_at END,
            GREATEST(excluded.next_check_at, c.last_checked_at + interval '2 seconds'))";

const ADD_TO_BOOKS: &str = "\
    INSERT INTO books (psp, account, hour, outcome, count)
    SELECT psp, account, hour, outcome, count
    FROM UNNEST($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::bigint[]) AS w(psp, account, hour, outcome, count)
    ORDER BY psp, account, hour, outcome
    ON CONFLICT (psp, account, hour, outcome) DO UPDATE SET count = books.count + excluded.count";

/// Writes everything. A row that another transaction wrote first is a lost round.
pub(super) async fn plan(transaction: &mut PgTransaction<'_>, plan: &Plan, pace: &mut Pace) -> Result<(), Failure> {
    let connection: &mut PgConnection = transaction;
    bodies(connection, &plan.bodies).await?;
    pace.lap("bodies");
    events(connection, &plan.events).await?;
    replaced(connection, &plan.replaced).await?;
    pace.lap("events");
    orders(connection, &plan.orders).await?;
    pace.lap("orders");
    transitions(connection, plan).await?;
    pace.lap("transitions");
    actions(connection, &plan.actions).await?;
    references(connection, UNLINK_REFERENCES, &plan.unlinks).await?;
    references(connection, UPDATE_REFERENCES, &plan.links).await?;
    parkings(connection, plan).await?;
    woken(connection, &plan.woken).await?;
    pace.lap("links");
    expiry::write_unasked(connection, plan.unasked.iter()).await?;
    checks(connection, &plan.checks, plan.now).await?;
    pace.lap("checks");
    learning::learned(connection, plan).await?;
    learning::webhooks(connection, &plan.webhooks).await?;
    pace.lap("learned");
    books(connection, plan).await?;
    pace.lap("books");
    Ok(())
}

async fn bodies(connection: &mut PgConnection, bodies: &[BodyWrite]) -> Result<(), Failure> {
    if bodies.is_empty() {
        return Ok(());
    }
    let mut copied = Rows::of(10);
    for BodyWrite { id, body } in bodies {
        let (headers, sha256) = rows::body_columns(body)?;
        copied.row();
        copied.uuid(*id);
        copied.timestamp(body.received_at);
        copied.text(&body.psp);
        copied.text(&body.account);
        copied.text(&body.webhook_id);
        copied.text(&body.secret_name);
        copied.or_null(body.content_type.as_deref(), Rows::text);
        copied.text(&headers);
        copied.bytes(&body.bytes);
        copied.bytes(&sha256);
    }
    all_written(copied.copy(connection, COPY_BODIES).await?, bodies.len())
}

async fn events(connection: &mut PgConnection, events: &[EventWrite]) -> Result<(), Failure> {
    if events.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<&EventWrite> = events.iter().collect();
    sorted.sort_by(|one, other| one.row.key.cmp(&other.row.key));
    let mut copied = Rows::of(20);
    for write in sorted {
        let EventWrite { row, body_id, outcome, order_id, order_version, secret_name, at } = write;
        let ContentColumns { facts, foreign_mode, reason, fingerprint } = rows::content_columns(&row.content)?;
        copied.row();
        copied.text(&row.key.psp);
        copied.text(&row.key.account);
        copied.text(&row.key.event_id);
        copied.text(&row.event_type);
        copied.text(rows::source_name(row.source));
        copied.or_null(facts.as_deref(), Rows::text);
        copied.bool(foreign_mode);
        copied.bytes(&row.facts_sha256);
        copied.bigint(row.mapping_version.into());
        copied.text(outcome.as_str());
        copied.or_null(reason, Rows::text);
        copied.or_null(fingerprint, Rows::text);
        copied.or_null(order_id.as_deref(), Rows::text);
        copied.or_null(*body_id, Rows::uuid);
        copied.timestamp(row.received_at);
        copied.timestamp(*at);
        copied.timestamp(*at);
        copied.or_null((*outcome == Outcome::Parked).then_some(*at), Rows::timestamp);
        copied.or_null(secret_name.as_deref(), Rows::text);
        copied.or_null(*order_version, Rows::bigint);
    }
    match copied.copy(connection, COPY_EVENTS).await {
        // Two workers may meet at a key without references, which no lock keeps apart: the loser finds it known next time.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(Failure::Lost),
        copied => all_written(copied?, events.len()),
    }
}

/// Whoever waited as what it was waits no more; [`parkings`] come after.
async fn replaced(connection: &mut PgConnection, replaced: &[ReplacedEvent]) -> Result<(), Failure> {
    if replaced.is_empty() {
        return Ok(());
    }
    let psps = array(replaced, |event| &*event.was.row.key.psp);
    let accounts = array(replaced, |event| &*event.was.row.key.account);
    let event_ids = array(replaced, |event| &*event.was.row.key.event_id);
    let contents = replaced.iter().map(|event| rows::content_columns(&event.write.row.content));
    let contents = contents.collect::<Result<Vec<ContentColumns<'_>>, StoreError>>()?;
    let done = sqlx::query(REPLACE_EVENTS)
        .bind(&psps)
        .bind(&accounts)
        .bind(&event_ids)
        .bind(array(replaced, |event| &event.was.row.facts_sha256[..]))
        .bind(array(replaced, |event| i64::from(event.was.row.mapping_version)))
        .bind(array(replaced, |event| event.was.outcome.as_str()))
        .bind(array(replaced, |event| event.was.order_id.as_deref()))
        .bind(array(replaced, |event| &*event.write.row.event_type))
        .bind(array(&contents, |content| content.facts.as_deref()))
        .bind(array(&contents, |content| content.foreign_mode))
        .bind(array(replaced, |event| &event.write.row.facts_sha256[..]))
        .bind(array(replaced, |event| i64::from(event.write.row.mapping_version)))
        .bind(array(replaced, |event| event.write.outcome.as_str()))
        .bind(array(&contents, |content| content.reason))
        .bind(array(&contents, |content| content.fingerprint))
        .bind(array(replaced, |event| event.write.order_id.as_deref()))
        .bind(array(replaced, |event| event.write.order_version))
        .bind(array(replaced, |event| OffsetDateTime::from(event.write.at)))
        .execute(&mut *connection)
        .await?;
    all_written(done.rows_affected(), replaced.len())?;
    sqlx::query(DELETE_PARKINGS).bind(&psps).bind(&accounts).bind(&event_ids).execute(connection).await?;
    Ok(())
}

async fn orders(connection: &mut PgConnection, orders: &[OrderWrite]) -> Result<(), Failure> {
    let (new, known): (Vec<&OrderWrite>, Vec<&OrderWrite>) = orders.iter().partition(|write| write.previous_version == 0);
    for (sql, orders, is_update) in [(INSERT_ORDERS, new, false), (UPDATE_ORDERS, known, true)] {
        if orders.is_empty() {
            continue;
        }
        let views = orders.iter().map(|write| rows::to_json(&write.stored.view)).collect::<Result<Vec<_>, _>>()?;
        let registers = orders.iter().map(|write| rows::to_json(&write.registers)).collect::<Result<Vec<_>, _>>()?;
        let mut query = sqlx::query(sql)
            .bind(array(&orders, |write| &*write.stored.id))
            .bind(array(&orders, |write| write.stored.view.status.as_str()))
            .bind(views)
            .bind(registers)
            .bind(array(&orders, |write| write.stored.version))
            .bind(array(&orders, |write| write.stored.review_since.map(OffsetDateTime::from)))
            .bind(array(&orders, |write| OffsetDateTime::from(write.stored.updated_at)))
            .bind(array(&orders, |write| write.due_at.map(OffsetDateTime::from)));
        if is_update {
            query = query.bind(array(&orders, |write| write.previous_version));
        }
        all_written(query.execute(&mut *connection).await?.rows_affected(), orders.len())?;
    }
    Ok(())
}

async fn transitions(connection: &mut PgConnection, plan: &Plan) -> Result<(), Failure> {
    let changed = plan.orders.iter().filter_map(|write| write.transition.as_ref().map(|transition| (transition, &write.stored)));
    let changed: Vec<_> = changed.collect();
    if changed.is_empty() {
        return Ok(());
    }
    let views = changed.iter().map(|(_, stored)| rows::to_json(&stored.view)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(INSERT_TRANSITIONS)
        .bind(array(&changed, |(_, stored)| &*stored.id))
        .bind(array(&changed, |(_, stored)| stored.version))
        .bind(array(&changed, |(transition, _)| transition.id))
        .bind(array(&changed, |(transition, _)| transition.from.map(OrderStatus::as_str)))
        .bind(array(&changed, |(transition, _)| transition.to.as_str()))
        .bind(array(&changed, |(transition, _)| OffsetDateTime::from(transition.at)))
        .bind(views)
        .bind(array(&changed, |(_, stored)| stored.review_since.map(OffsetDateTime::from)))
        .bind(array(&plan.destinations, |destination| &**destination))
        .execute(&mut *connection)
        .await?;
    if plan.destinations.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT_OUTBOX)
        .bind(array(&changed, |(_, stored)| &*stored.id))
        .bind(array(&changed, |(_, stored)| stored.version))
        .bind(array(&changed, |(transition, _)| OffsetDateTime::from(transition.at)))
        .bind(array(&plan.destinations, |destination| &**destination))
        .execute(connection)
        .await?;
    Ok(())
}

async fn actions(connection: &mut PgConnection, actions: &[ActionWrite]) -> Result<(), Failure> {
    if actions.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT_ACTIONS)
        .bind(array(actions, |action| action.id))
        .bind(array(actions, |action| &*action.order_id))
        .bind(array(actions, |action| action.kind.as_str()))
        .bind(array(actions, |action| &*action.operator))
        .bind(array(actions, |action| action.reason.as_deref()))
        .bind(array(actions, |action| OffsetDateTime::from(action.at)))
        .bind(array(actions, |action| action.detail.to_string()))
        .execute(connection)
        .await?;
    Ok(())
}

async fn references(connection: &mut PgConnection, sql: &'static str, links: &[(ReferenceKey, String)]) -> Result<(), Failure> {
    if links.is_empty() {
        return Ok(());
    }
    let done = sqlx::query(sql)
        .bind(array(links, |(key, _)| &*key.psp))
        .bind(array(links, |(key, _)| &*key.account))
        .bind(array(links, |(key, _)| key.kind.as_str()))
        .bind(array(links, |(key, _)| &*key.value))
        .bind(array(links, |(_, order_id)| &**order_id))
        .execute(connection)
        .await?;
    all_written(done.rows_affected(), links.len())
}

async fn parkings(connection: &mut PgConnection, plan: &Plan) -> Result<(), Failure> {
    if plan.parkings.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT_PARKINGS)
        .bind(array(&plan.parkings, |(event, _)| &*event.psp))
        .bind(array(&plan.parkings, |(event, _)| &*event.account))
        .bind(array(&plan.parkings, |(event, _)| &*event.event_id))
        .bind(array(&plan.parkings, |(_, reference)| &*reference.psp))
        .bind(array(&plan.parkings, |(_, reference)| &*reference.account))
        .bind(array(&plan.parkings, |(_, reference)| reference.kind.as_str()))
        .bind(array(&plan.parkings, |(_, reference)| &*reference.value))
        .execute(connection)
        .await?;
    Ok(())
}

async fn woken(connection: &mut PgConnection, woken: &[WokenEvent]) -> Result<(), Failure> {
    if woken.is_empty() {
        return Ok(());
    }
    let psps = array(woken, |event| &*event.key.psp);
    let accounts = array(woken, |event| &*event.key.account);
    let event_ids = array(woken, |event| &*event.key.event_id);
    let done = sqlx::query(UPDATE_WOKEN)
        .bind(&psps)
        .bind(&accounts)
        .bind(&event_ids)
        .bind(array(woken, |event| event.outcome.as_str()))
        .bind(array(woken, |event| &*event.order_id))
        .bind(array(woken, |event| OffsetDateTime::from(event.at)))
        .bind(array(woken, |event| event.order_version))
        .execute(&mut *connection)
        .await?;
    all_written(done.rows_affected(), woken.len())?;
    sqlx::query(DELETE_PARKINGS).bind(&psps).bind(&accounts).bind(&event_ids).execute(connection).await?;
    Ok(())
}

async fn checks(connection: &mut PgConnection, checks: &[CheckWrite], now: Timestamp) -> Result<(), Failure> {
    let of = |wanted: fn(&CheckReason) -> bool| checks.iter().filter(|check| wanted(&check.reason)).collect::<Vec<_>>();
    let unplaced = of(|reason| matches!(reason, CheckReason::Unplaced { .. }));
    let stand = of(|reason| matches!(reason, CheckReason::Stands { .. }));
    let in_doubt = of(|reason| matches!(reason, CheckReason::InDoubt { .. }));
    for (sql, checks) in [(INSERT_CHECKS, unplaced), (STAND_CHECKS, stand), (ASK_ABOUT, in_doubt)] {
        if checks.is_empty() {
            continue;
        }
        let next = |check: &&CheckWrite| match check.reason {
            CheckReason::Unplaced { next_check_at } | CheckReason::InDoubt { next_check_at } => Some(next_check_at),
            CheckReason::Stands { next_check_at, .. } => next_check_at,
        };
        let mut query = sqlx::query(sql)
            .bind(array(&checks, |check| &*check.account.psp))
            .bind(array(&checks, |check| &*check.account.account))
            .bind(array(&checks, |check| &*check.payment_id))
            .bind(array(&checks, |check| next(check).map(OffsetDateTime::from)))
            .bind(OffsetDateTime::from(now));
        if sql == STAND_CHECKS {
            query = query.bind(array(&checks, |check| match check.reason {
                CheckReason::Stands { as_, .. } => as_.as_str(),
                CheckReason::Unplaced { .. } | CheckReason::InDoubt { .. } => "",
            }));
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

async fn books(connection: &mut PgConnection, plan: &Plan) -> Result<(), Failure> {
    if plan.books.is_empty() {
        return Ok(());
    }
    let lines: Vec<(&BookKey, &i64)> = plan.books.iter().collect();
    sqlx::query(ADD_TO_BOOKS)
        .bind(array(&lines, |(key, _)| &*key.account.psp))
        .bind(array(&lines, |(key, _)| &*key.account.account))
        .bind(array(&lines, |(key, _)| OffsetDateTime::from(key.hour)))
        .bind(array(&lines, |(key, _)| key.outcome.as_str()))
        .bind(array(&lines, |(_, count)| **count))
        .execute(connection)
        .await?;
    Ok(())
}

fn all_written(written: u64, planned: usize) -> Result<(), Failure> {
    if usize::try_from(written).is_ok_and(|written| written == planned) { Ok(()) } else { Err(Failure::Lost) }
}

/// One column of many rows.
pub(super) fn array<'a, T, U>(rows: &'a [T], column: impl Fn(&'a T) -> U) -> Vec<U> {
    rows.iter().map(column).collect()
}
