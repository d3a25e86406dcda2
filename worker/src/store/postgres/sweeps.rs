//! Leasing the next page of an account's list, and ending it. A sweep's row is locked before its account's.

use std::collections::BTreeSet;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Hinted, Window};
use sqlx::{Connection as _, PgConnection, Row as _};
use time::OffsetDateTime;

use super::checks::{end_in, lock_manners, write_manners};
use super::errors::classify;
use crate::manners::{Leave, News};
use crate::order::AccountKey;
use crate::store::{DuePage, Lease, LeasedPage, ReadPage, StoreError, TOLD_LOOKED_AT_MAX, rows};
use crate::sweep::course::Course;

const LOCK: &str = "\
    SELECT course::text, greatest(due_at, lease_until) AS not_before FROM sweeps WHERE psp = $1 AND account = $2 FOR UPDATE";

const INSERT: &str = "\
    INSERT INTO sweeps (psp, account, course, due_at) VALUES ($1, $2, $3::json, $4) ON CONFLICT DO NOTHING";

const LEASE: &str = "UPDATE sweeps SET lease_token = $3, lease_until = $4 WHERE psp = $1 AND account = $2";

/// Whoever lost the lease changes nothing.
const FINISH: &str = "\
    UPDATE sweeps SET course = $4::json, due_at = $5, lease_token = NULL, lease_until = NULL
    WHERE psp = $1 AND account = $2 AND lease_token = $3";

/// What webhooks told, among the first events that were received from then on.
const TOLD: &str = "\
    SELECT facts::text FROM (
        SELECT psp, account, source, foreign_mode, facts FROM events WHERE received_at >= $3 ORDER BY received_at LIMIT $4
    ) AS received
    WHERE psp = $1 AND account = $2 AND source = 'webhook' AND NOT foreign_mode AND facts IS NOT NULL";

const UNANSWERED: &str = "\
    SELECT DISTINCT payment_id FROM UNNEST($3::text[], $4::timestamptz[]) AS w(payment_id, at)
    WHERE NOT EXISTS (
        SELECT 1 FROM checks c
        WHERE c.payment_id = w.payment_id AND c.account = $2 AND c.psp = $1
            AND c.last_checked_at >= w.at AND c.answered_at >= c.last_checked_at)";

pub(super) async fn lease(connection: &mut PgConnection, account: &AccountKey, lease: &Lease) -> Result<LeasedPage, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let lock = || sqlx::query(LOCK).bind(&*account.psp).bind(&*account.account);
    let mut row = lock().fetch_optional(&mut *transaction).await.map_err(classify)?;
    if row.is_none() {
        let insert = sqlx::query(INSERT).bind(&*account.psp).bind(&*account.account);
        let insert = insert.bind(rows::to_json(&Course::first(lease.now))?).bind(OffsetDateTime::from(lease.now));
        insert.execute(&mut *transaction).await.map_err(classify)?;
        row = lock().fetch_optional(&mut *transaction).await.map_err(classify)?;
    }
    // It was inserted, by this transaction or by another.
    let row = row.ok_or_else(|| classify(sqlx::Error::RowNotFound))?;
    let not_before = Timestamp::from(row.try_get::<OffsetDateTime, _>("not_before").map_err(classify)?);
    if not_before > lease.now {
        return Ok(LeasedPage::NotBefore(not_before));
    }
    let course = rows::course(row.try_get("course").map_err(classify)?, account)?;
    let mut manners = lock_manners(&mut transaction, account).await?;
    let granted = manners.begin_in_turn(lease.now, lease.per_second, 1, lease.token, lease.until);
    write_manners(&mut transaction, account, &manners).await?;
    if let Leave::Go(_) = granted {
        let leased = sqlx::query(LEASE).bind(&*account.psp).bind(&*account.account);
        let leased = leased.bind(lease.token).bind(OffsetDateTime::from(lease.until));
        leased.execute(&mut *transaction).await.map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)?;
    Ok(match granted {
        Leave::Go(_) => LeasedPage::Page(DuePage { account: account.clone(), lease_token: lease.token, course }),
        Leave::NotBefore(at) => LeasedPage::NotBefore(at),
    })
}

pub(super) async fn finish(connection: &mut PgConnection, page: &DuePage, read: &ReadPage) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    sqlx::query(FINISH)
        .bind(&*page.account.psp)
        .bind(&*page.account.account)
        .bind(page.lease_token)
        .bind(rows::to_json(&read.course)?)
        .bind(OffsetDateTime::from(read.due_at))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    let news = end_in(&mut transaction, &page.account, read.at, page.lease_token, read.ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn course(connection: &mut PgConnection, account: &AccountKey) -> Result<Option<Course>, StoreError> {
    let course = sqlx::query_scalar::<_, String>("SELECT course::text FROM sweeps WHERE psp = $1 AND account = $2");
    let course = course.bind(&*account.psp).bind(&*account.account).fetch_optional(connection).await.map_err(classify)?;
    course.map(|text| rows::course(&text, account)).transpose()
}

pub(super) async fn told_within(connection: &mut PgConnection, account: &AccountKey, window: Window) -> Result<bool, StoreError> {
    let told = sqlx::query_scalar::<_, String>(TOLD).bind(&*account.psp).bind(&*account.account);
    let told = told.bind(OffsetDateTime::from(window.since)).bind(i64::from(TOLD_LOOKED_AT_MAX));
    let told = told.fetch_all(connection).await.map_err(classify)?;
    Ok(told.iter().any(|facts| rows::tells_within(facts, window)))
}

pub(super) async fn unanswered(
    connection: &mut PgConnection,
    account: &AccountKey,
    hints: &[Hinted],
) -> Result<BTreeSet<String>, StoreError> {
    let (ids, times): (Vec<&str>, Vec<OffsetDateTime>) =
        hints.iter().map(|hint| (&*hint.payment_id, OffsetDateTime::from(hint.at))).unzip();
    let unanswered = sqlx::query_scalar(UNANSWERED).bind(&*account.psp).bind(&*account.account).bind(ids).bind(times);
    Ok(unanswered.fetch_all(connection).await.map_err(classify)?.into_iter().collect())
}
