//! The yardstick of `apply`: what a plain worker does, one transaction for each event, on the same tables and indexes.
//!
//! It is given the best of its kind: prepared statements, eight connections that never wait for a pool, translation and
//! merge by the same code, and no looking for what nobody needs: each of these events finds its order by its payment, so no
//! reference is read or locked, nothing is parked, and no row of what was learned is looked up again, since every event is a
//! webhook. It leaves the same rows as the worker, which `apply` checks; but for the time of the account's last webhook, at whose
//! row all of its transactions would meet (the worker writes it every ten seconds).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::envelope::Envelope;
use paybell_shared::psp::Account;
use paybell_shared::queue::Message;
use paybell_worker::apply::references;
use paybell_worker::inbox::{Arrival, Body, Content, InboxRow, Outcome};
use paybell_worker::order::{CameTo, Registers, Rules, View};
use paybell_worker::schedule::{self, Habits};
use paybell_worker::store::ReferenceKey;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgConnectOptions;
use sqlx::types::Uuid;
use sqlx::types::time::OffsetDateTime;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::task::JoinSet;

use crate::worker::key_of;

pub const CONNECTIONS: usize = 8;

const LOCK: &str = "\
    SELECT o.id, o.view::text AS view, o.registers::text AS registers, o.version
    FROM refs r JOIN orders o ON o.id = r.order_id
    WHERE r.psp = $1 AND r.account = $2 AND r.kind = 'payment' AND r.value = $3
    FOR UPDATE OF o";
const KEY: &str = "\
    INSERT INTO events (psp, account, event_id, event_type, source, facts, foreign_mode, facts_sha256, mapping_version,
        outcome, reason, order_id, body_id, received_at, applied_at, taken_at, secret_name, order_version)
    VALUES ($1, $2, $3, $4, 'webhook', $5::json, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, $16)
    ON CONFLICT DO NOTHING";
const BODY: &str = "\
    INSERT INTO bodies (id, received_at, psp, account, webhook_id, secret_name, content_type, headers, bytes, sha256)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8::json, $9, $10)";
const ORDER: &str = "\
    UPDATE orders SET status = $2, view = $3::json, registers = $4::json, version = $5, updated_at = $6,
        review_since = CASE WHEN $7 THEN coalesce(review_since, $6) END, due_at = $8
    WHERE id = $1";
const TRANSITION: &str = "\
    INSERT INTO transitions (order_id, version, id, from_status, to_status, at, view, destinations, review_since)
    VALUES ($1, $2, $3, $4, $5, $6, $7::json, $8, CASE WHEN $9 THEN $6 END)";
const OUTBOX: &str = "INSERT INTO outbox (destination, order_id, version, at, next_attempt_at) VALUES ($1, $2, $3, $4, $4)";
const REFERENCES: &str = "\
    INSERT INTO refs (psp, account, kind, value, order_id)
    SELECT psp, account, kind, value, $5
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[]) AS w(psp, account, kind, value)
    ON CONFLICT DO NOTHING";
const STAND: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, standing, standing_since, first_seen_at)
    VALUES ($1, $2, $3, $4, $5, $6, $6)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        standing = excluded.standing,
        standing_since = excluded.standing_since,
        next_check_at = CASE
            WHEN c.hint_seq > c.answered_seq THEN LEAST(c.next_check_at, excluded.next_check_at)
            ELSE excluded.next_check_at END";
const LOOK_NOW: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, hint_seq) VALUES ($1, $2, $3, $4, 1)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        hint_seq = c.hint_seq + 1,
        next_check_at = LEAST(c.next_check_at, GREATEST(excluded.next_check_at, c.last_checked_at + interval '2 seconds'))";
/// Only where the payment was not known to have come to that.
const LEARN: &str = "\
    INSERT INTO learned AS l (psp, account, payment_id, money, learned_at, webhook_at) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET money = true, webhook_at = excluded.webhook_at
    WHERE l.money < excluded.money";
const BOOKS: &str = "\
    INSERT INTO books (psp, account, hour, outcome, count) VALUES ($1, $2, date_trunc('hour', $3), $4, 1)
    ON CONFLICT (psp, account, hour, outcome) DO UPDATE SET count = books.count + 1";

/// As the worker's.
const DOUBT_DELAY: Duration = Duration::from_secs(2);

/// What the yardstick is to do.
#[derive(Clone)]
pub struct Work {
    pub account: Arc<Account>,
    pub messages: Vec<Message>,
    pub destination: String,
    pub habits: Habits,
    /// Whether it keeps the books too. All of its transactions meet at their few rows, and so commit one after the other.
    pub books: bool,
}

/// Applies all messages, each in a transaction of its own; how long that took.
///
/// # Errors
/// The database refuses something.
pub async fn measure(url: &str, work: Work) -> anyhow::Result<Duration> {
    let options: PgConnectOptions = url.parse()?;
    let (work, next) = (Arc::new(work), Arc::new(AtomicUsize::new(0)));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(options.connect().await?);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(apply(connection, Arc::clone(&work), Arc::clone(&next)));
    }
    while let Some(applied) = tasks.join_next().await {
        applied??;
    }
    Ok(started.elapsed())
}

async fn apply(mut connection: PgConnection, work: Arc<Work>, next: Arc<AtomicUsize>) -> anyhow::Result<()> {
    while let Some(message) = work.messages.get(next.fetch_add(1, Ordering::Relaxed)) {
        let envelope = Envelope::try_from(message.clone())?;
        let Arrival { body, rows, .. } = Arrival::of_webhook(&envelope, &work.account);
        for row in rows {
            transact(&mut connection, &work, row, body.as_ref()).await?;
        }
    }
    connection.close().await?;
    Ok(())
}

async fn transact(connection: &mut PgConnection, work: &Work, row: InboxRow, body: Option<&Body>) -> anyhow::Result<()> {
    let now = OffsetDateTime::from(SystemClock.now());
    let received_at = OffsetDateTime::from(row.received_at);
    let (psp, account) = (&*row.key.psp, &*row.key.account);
    let mut transaction = connection.begin().await?;
    let key = key_of(&work.account);
    let (mut order, mut moved, mut learned) = (None, None, None);
    let (mut facts, mut foreign, mut reason, mut outcome) = (None, false, None, Outcome::Ignored);
    match &row.content {
        Content::Fact { event, foreign_mode } => {
            let lock = sqlx::query(LOCK).bind(psp).bind(account).bind(&event.payment_id);
            let locked = lock.fetch_one(&mut *transaction).await?;
            let mut registers: Registers = serde_json::from_str(locked.try_get("registers")?)?;
            let before: View = serde_json::from_str(locked.try_get("view")?)?;
            let stood = registers.standing(&key, &event.payment_id);
            learned = CameTo::of(&event.fact).filter(|now| registers.came_to(&key, &event.payment_id) < Some(*now));
            let added = registers.join(event, *foreign_mode);
            let stands = registers.standing(&key, &event.payment_id);
            moved = stands.filter(|stands| Some(*stands) != stood);
            outcome = if added { Outcome::Applied } else { Outcome::Superseded };
            (facts, foreign) = (Some(serde_json::to_string(event)?), *foreign_mode);
            let view = registers.view(&Rules::default());
            let version = locked.try_get::<i64, _>("version")? + i64::from(view != before);
            order = Some((locked.try_get::<String, _>("id")?, before, view, registers, version, added));
        }
        Content::Ignored { reason: why } | Content::Quarantined { reason: why, .. } => reason = Some(why),
    }
    let body_id = Uuid::from_u128(rand::random());
    let insert = sqlx::query(KEY).bind(psp).bind(account).bind(&row.key.event_id).bind(&row.event_type).bind(facts).bind(foreign);
    let insert = insert.bind(&row.facts_sha256[..]).bind(i64::from(row.mapping_version)).bind(outcome.as_str()).bind(reason);
    let insert = insert.bind(order.as_ref().map(|(id, ..)| id)).bind(body_id).bind(received_at).bind(now);
    let insert = insert.bind(body.map(|body| &*body.secret_name)).bind(order.as_ref().map(|(.., version, _)| *version));
    if insert.execute(&mut *transaction).await?.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(());
    }
    if let Some(body) = body {
        let insert = sqlx::query(BODY).bind(body_id).bind(received_at).bind(psp).bind(account).bind(&body.webhook_id);
        let insert = insert.bind(&*body.secret_name).bind(&body.content_type).bind(serde_json::to_string(&body.headers)?);
        let sha256 = Sha256::digest(&body.bytes);
        insert.bind(&*body.bytes).bind(&sha256[..]).execute(&mut *transaction).await?;
    }
    if let Some((id, before, view, registers, version, true)) = &order {
        let (status, shown) = (view.status.as_str(), serde_json::to_string(view)?);
        let update = sqlx::query(ORDER).bind(id).bind(status).bind(&shown).bind(serde_json::to_string(registers)?);
        let update = update.bind(version).bind(now).bind(view.review.is_some());
        let due_at = registers.ends_at(view.status).map(OffsetDateTime::from);
        let updated = update.bind(due_at).execute(&mut *transaction).await?;
        ensure!(updated.rows_affected() == 1, "the order {id} is gone");
        if view != before {
            let insert = sqlx::query(TRANSITION).bind(id).bind(version).bind(Uuid::from_u128(rand::random()));
            let insert = insert.bind(before.status.as_str()).bind(status).bind(now).bind(&shown).bind([&work.destination]);
            insert.bind(view.review.is_some()).execute(&mut *transaction).await?;
            let insert = sqlx::query(OUTBOX).bind(&work.destination).bind(id).bind(version).bind(now);
            insert.execute(&mut *transaction).await?;
        }
    }
    if let (Content::Fact { event, .. }, Some((id, .., registers, _, added))) = (&row.content, &order) {
        let references: Vec<ReferenceKey> = references(event).collect();
        let column = |of: fn(&ReferenceKey) -> &str| references.iter().map(of).collect::<Vec<_>>();
        let insert = sqlx::query(REFERENCES).bind(column(|key| &key.psp)).bind(column(|key| &key.account));
        let insert = insert.bind(column(|key| key.kind.as_str())).bind(column(|key| &key.value)).bind(id);
        insert.execute(&mut *transaction).await?;
        if let Some(standing) = moved {
            let next = schedule::first_look(Some(standing), work.habits, now.into()).map(OffsetDateTime::from);
            let check = sqlx::query(STAND).bind(psp).bind(account).bind(&event.payment_id).bind(next).bind(standing.as_str());
            check.bind(now).execute(&mut *transaction).await?;
        }
        if *added && !registers.in_doubt().is_empty() {
            let check = sqlx::query(LOOK_NOW).bind(psp).bind(account).bind(&event.payment_id).bind(now + DOUBT_DELAY);
            check.execute(&mut *transaction).await?;
        }
    }
    if let (Content::Fact { event, .. }, Some(came_to)) = (&row.content, learned) {
        let insert = sqlx::query(LEARN).bind(psp).bind(account).bind(&event.payment_id).bind(came_to == CameTo::Money);
        insert.bind(now).bind(received_at).execute(&mut *transaction).await?;
    }
    if work.books {
        let line = sqlx::query(BOOKS).bind(psp).bind(account).bind(received_at).bind(outcome.as_str());
        line.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}
