//! Leasing the next page of an account's list, and ending it.

use std::collections::BTreeSet;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Hinted, Window};
use sqlx::{Connection as _, SqliteConnection};

use super::checks::{end_in, manners, write_manners};
use super::classify;
use crate::manners::{Leave, News};
use crate::order::AccountKey;
use crate::store::{DuePage, Lease, LeasedPage, ReadPage, StoreError, TOLD_LOOKED_AT_MAX, rows};
use crate::sweep::course::Course;

/// Before when nothing is to be asked for; `None`: it is due, or nobody ever asked.
pub(super) async fn not_before(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    now: Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    let not_before = sqlx::query_scalar::<_, i64>(
        "SELECT max(due_at, coalesce(lease_until, due_at)) FROM sweeps WHERE psp = ?1 AND account = ?2",
    );
    let not_before = not_before.bind(&*account.psp).bind(&*account.account).fetch_optional(connection).await.map_err(classify)?;
    Ok(not_before.map(Timestamp::from_millis).filter(|not_before| *not_before > now))
}

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    lease: &Lease,
) -> Result<LeasedPage, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    if let Some(not_before) = not_before(&mut transaction, account, lease.now).await? {
        return Ok(LeasedPage::NotBefore(not_before));
    }
    let course = course(&mut transaction, account).await?.unwrap_or_else(|| Course::first(lease.now));
    let mut manners = manners(&mut transaction, account).await?;
    let granted = manners.begin_in_turn(lease.now, lease.per_second, 1, lease.token, lease.until);
    write_manners(&mut transaction, account, &manners).await?;
    if let Leave::Go(_) = granted {
        let leased = sqlx::query(
            "INSERT INTO sweeps (psp, account, course, due_at, lease_token, lease_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (psp, account) DO UPDATE SET lease_token = excluded.lease_token, lease_until = excluded.lease_until",
        );
        let leased = leased.bind(&*account.psp).bind(&*account.account).bind(rows::to_json(&course)?);
        let leased = leased.bind(lease.now.millis()).bind(lease.token).bind(lease.until.millis());
        leased.execute(&mut *transaction).await.map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)?;
    Ok(match granted {
        Leave::Go(_) => LeasedPage::Page(DuePage { account: account.clone(), lease_token: lease.token, course }),
        Leave::NotBefore(at) => LeasedPage::NotBefore(at),
    })
}

/// Whoever lost the lease changes nothing.
pub(super) async fn finish(
    connection: &mut SqliteConnection,
    page: &DuePage,
    read: &ReadPage,
) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let finish = sqlx::query(
        "UPDATE sweeps SET course = ?4, due_at = ?5, lease_token = NULL, lease_until = NULL
         WHERE psp = ?1 AND account = ?2 AND lease_token = ?3",
    );
    let finish = finish.bind(&*page.account.psp).bind(&*page.account.account).bind(page.lease_token);
    let finish = finish.bind(rows::to_json(&read.course)?).bind(read.due_at.millis());
    finish.execute(&mut *transaction).await.map_err(classify)?;
    let news = end_in(&mut transaction, &page.account, read.at, page.lease_token, read.ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn course(connection: &mut SqliteConnection, account: &AccountKey) -> Result<Option<Course>, StoreError> {
    let course = sqlx::query_scalar::<_, String>("SELECT course FROM sweeps WHERE psp = ?1 AND account = ?2");
    let course = course.bind(&*account.psp).bind(&*account.account).fetch_optional(connection).await.map_err(classify)?;
    course.map(|text| rows::course(&text, account)).transpose()
}

/// What webhooks told, among the first events that were received from then on.
pub(super) async fn told_within(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    window: Window,
) -> Result<bool, StoreError> {
    let told = sqlx::query_scalar::<_, String>(
        "SELECT facts FROM (
             SELECT psp, account, source, foreign_mode, facts FROM events WHERE received_at >= ?3 ORDER BY received_at LIMIT ?4
         )
         WHERE psp = ?1 AND account = ?2 AND source = 'webhook' AND NOT foreign_mode AND facts IS NOT NULL",
    );
    let told = told.bind(&*account.psp).bind(&*account.account).bind(window.since.millis()).bind(TOLD_LOOKED_AT_MAX);
    let told = told.fetch_all(connection).await.map_err(classify)?;
    Ok(told.iter().any(|facts| rows::tells_within(facts, window)))
}

pub(super) async fn unanswered(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    hints: &[Hinted],
) -> Result<BTreeSet<String>, StoreError> {
    let mut unanswered = BTreeSet::new();
    for Hinted { payment_id, at } in hints {
        let is_answered = sqlx::query_scalar::<_, bool>(
            "SELECT EXISTS (SELECT 1 FROM checks WHERE psp = ?1 AND account = ?2 AND payment_id = ?3
             AND last_checked_at >= ?4 AND answered_at >= last_checked_at)",
        );
        let is_answered = is_answered.bind(&*account.psp).bind(&*account.account).bind(payment_id).bind(at.millis());
        if !is_answered.fetch_one(&mut *connection).await.map_err(classify)? {
            unanswered.insert(payment_id.clone());
        }
    }
    Ok(unanswered)
}
