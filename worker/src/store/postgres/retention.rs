//! Dropping bodies that are old enough, and making room for new ones.
//!
//! A day's bodies lie in a partition of their own, `bodies_YYYYMMDD`, which is made days ahead and dropped as a whole.
//! What has no partition (the first day, or when nobody made one in time) lies in the default one and goes row by row.
//!
//! Each call is one short transaction under an advisory lock, so any number of workers may call; who comes second does
//! nothing. Making a partition locks the default one, dropping one locks the table: webhooks wait behind both, so neither
//! waits for its lock longer than [`LOCK_TIMEOUT`]. What does not get its lock is left for the next round.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use time::{Date, OffsetDateTime};

use super::errors::classify;
use crate::store::{Kept, StoreError};

/// Partitions made ahead, today's not counted: no worker needs to run over a long weekend.
const DAYS_AHEAD: i64 = 4;
/// For locks that webhooks wait behind.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// For reading the default partition while it is locked, to see that a new one takes nothing from it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Rows of the default partition that are deleted at a time: some 20 ms.
const PORTION: i64 = 2_000;
/// Names this work among the advisory locks: "bodies" in ASCII.
const ADVISORY_LOCK: i64 = 0x0000_626f_6469_6573;

const PARTITIONS: &str = "\
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'bodies'::regclass ORDER BY c.relname";

pub(super) async fn retain(connection: &mut PgConnection, now: Timestamp, keep: Duration) -> Result<Kept, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(ADVISORY_LOCK);
    if !lock.fetch_one(&mut *transaction).await.map_err(classify)? {
        return Ok(Kept::default());
    }
    let partitions: Vec<String> = sqlx::query_scalar(PARTITIONS).fetch_all(&mut *transaction).await.map_err(classify)?;
    let kept = portion(&mut transaction, &partitions, now, now.minus(keep)).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(kept)
}

/// The first thing that is to be done.
async fn portion(
    transaction: &mut PgConnection,
    partitions: &[String],
    now: Timestamp,
    oldest: Timestamp,
) -> Result<Kept, StoreError> {
    let done = Kept { more: true, ..Kept::default() };
    for day in days_from(now) {
        let made = !partitions.contains(&name(day)) && make(transaction, day).await?;
        if made {
            return Ok(Kept { partitions_made: 1, ..done });
        }
    }
    for partition in partitions {
        let is_over = day_of(partition).and_then(Date::next_day).is_some_and(|next| start(next) <= OffsetDateTime::from(oldest));
        if is_over && tried(transaction, &format!("DROP TABLE {partition}")).await? {
            return Ok(Kept { partitions_dropped: 1, ..done });
        }
    }
    let deleted = sqlx::query(
        "DELETE FROM bodies_default
         WHERE ctid = ANY (ARRAY(SELECT ctid FROM bodies_default WHERE received_at < $1 ORDER BY received_at LIMIT $2))",
    )
    .bind(OffsetDateTime::from(oldest))
    .bind(PORTION)
    .execute(transaction)
    .await
    .map_err(classify)?
    .rows_affected();
    Ok(Kept { bodies_deleted: deleted, more: i64::try_from(deleted).is_ok_and(|deleted| deleted >= PORTION), ..Kept::default() })
}

/// Makes a day's partition, unless the default one holds rows of that day: they stay there, and so does the day.
async fn make(transaction: &mut PgConnection, day: Date) -> Result<bool, StoreError> {
    let Some(next) = day.next_day() else { return Ok(false) };
    let held = sqlx::query_scalar("SELECT EXISTS (SELECT FROM bodies_default WHERE received_at >= $1 AND received_at < $2)");
    let held = held.bind(start(day)).bind(start(next)).fetch_one(&mut *transaction).await.map_err(classify)?;
    if held {
        return Ok(false);
    }
    let name = name(day);
    // Attached rather than made as a partition: so only the default one is locked, and not the whole table.
    let sql = format!(
        "CREATE TABLE {name} (LIKE bodies INCLUDING ALL);
         ALTER TABLE bodies ATTACH PARTITION {name} FOR VALUES FROM ('{day} 00:00:00Z') TO ('{next} 00:00:00Z')"
    );
    tried(transaction, &sql).await
}

/// Carries out what waits for locks that others wait behind; `false`: it did not get them in time, and nothing was done.
async fn tried(transaction: &mut PgConnection, sql: &str) -> Result<bool, StoreError> {
    let mut inner = transaction.begin().await.map_err(classify)?;
    let limits = format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; {sql}",
        LOCK_TIMEOUT.as_millis(),
        LOOK_TIMEOUT.as_millis()
    );
    // Of numbers and of names that are letters, digits and underscores.
    match inner.execute(sqlx::raw_sql(AssertSqlSafe(limits))).await {
        Ok(_) => {
            inner.commit().await.map_err(classify)?;
            Ok(true)
        }
        Err(error)
            if error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .is_some_and(|code| LATER.contains(&&*code)) =>
        {
            tracing::info!(%error, "the bodies' partitions stay as they are for now");
            inner.rollback().await.map_err(classify)?;
            Ok(false)
        }
        Err(error) => Err(classify(error)),
    }
}

/// The lock was not to be had; looking took too long; a row of the day came into the default partition; another table has
/// the name.
const LATER: [&str; 4] = ["55P03", "57014", "23514", "42P07"];

fn days_from(now: Timestamp) -> impl Iterator<Item = Date> {
    let today = OffsetDateTime::from(now).date();
    (0..=DAYS_AHEAD).filter_map(move |ahead| today.checked_add(time::Duration::days(ahead)))
}

fn start(day: Date) -> OffsetDateTime {
    day.midnight().assume_utc()
}

fn name(day: Date) -> String {
    format!("bodies_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day())
}

/// The day of a partition; `None` for one that is not ours to drop.
fn day_of(partition: &str) -> Option<Date> {
    let digits = partition.strip_prefix("bodies_").filter(|digits| digits.len() == 8 && digits.is_ascii())?;
    let number = |range: std::ops::Range<usize>| digits[range].parse::<u16>().ok();
    let month = time::Month::try_from(u8::try_from(number(4..6)?).ok()?).ok()?;
    Date::from_calendar_date(i32::from(number(0..4)?), month, u8::try_from(number(6..8)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_says_its_day() {
        let now = Timestamp::parse_rfc3339("2026-12-30T23:59:59.999Z").unwrap();
        let names: Vec<String> = days_from(now).map(name).collect();
        assert_eq!(names, ["bodies_20261230", "bodies_20261231", "bodies_20270101", "bodies_20270102", "bodies_20270103"]);
        for (name, day) in names.iter().zip(days_from(now)) {
            assert_eq!(day_of(name), Some(day));
        }
        for other in ["bodies_default", "bodies_2026123", "bodies_20261331", "bodies_2026123x", "bodies_202612311", "x20261231"] {
            assert_eq!(day_of(other), None, "{other}");
        }
    }
}
