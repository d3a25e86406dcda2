//! Leasing the payments that are due, and ending a look at one; how much an account may be asked.
//!
//! Rows of checks are locked before their account's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, PgTransaction, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::errors::classify;
use super::{learning, write};
use crate::manners::{BUSY_MAX, Ended, Leave, Manners, News};
use crate::order::{AccountKey, Standing};
use crate::store::{DUE_COUNTED_MAX, Due, DueCheck, Lease, LeasedChecks, Looked, StoreError, rows};

/// As [`write::ASK_ABOUT`]; of the webhooks that no look has answered, the first counts.
const HINTED: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, first_seen_at, hint_seq, hinted_at)
    SELECT psp, account, payment_id, $5, $5, 1, hinted_at
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS w(psp, account, payment_id, hinted_at)
    ORDER BY psp, account, payment_id
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        hint_seq = c.hint_seq + 1,
        hinted_at = coalesce(c.hinted_at, excluded.hinted_at),
        next_check_at = LEAST(
            CASE WHEN c.lease_token IS NULL THEN c.next_check_at END,
            GREATEST(excluded.next_check_at, c.last_checked_at + interval '2 seconds'))";

/// A row that another worker is leasing at this moment is passed over.
const DUE: &str = "\
    SELECT payment_id, hint_seq, hint_seq > answered_seq AS is_hinted, looks, standing, standing_since, first_seen_at, missing_since,
        unanswered_since, hinted_at
    FROM checks
    WHERE account = $1 AND psp = $2 AND next_check_at <= $3 AND (lease_until IS NULL OR lease_until <= $3)
    ORDER BY next_check_at
    LIMIT $4
    FOR UPDATE SKIP LOCKED";

const LEASE: &str = "\
    UPDATE checks SET lease_token = $4, lease_until = $5, last_checked_at = $6
    WHERE account = $1 AND psp = $2 AND payment_id = ANY($3)";

/// Whoever lost the lease changes nothing. What was planned meanwhile stays: by a hint, or because it stands otherwise now. What
/// a look denies was so when it began; without an answer a payment is since its look was due. A row from before version 3 of the
/// schema begins to age here, or it would be asked about as one that is new for ever.
const FINISH: &str = "\
    UPDATE checks SET
        lease_token = NULL,
        lease_until = NULL,
        looks = looks + 1,
        last_result = $6,
        first_seen_at = coalesce(first_seen_at, $10),
        answered_seq = CASE WHEN $9 = 'nothing' THEN answered_seq ELSE greatest(answered_seq, $7) END,
        answered_at = CASE WHEN $9 = 'nothing' THEN answered_at ELSE $10 END,
        denied_before_at = CASE $9 WHEN 'no_money' THEN denied_at WHEN 'money' THEN NULL ELSE denied_before_at END,
        denied_at = CASE $9 WHEN 'no_money' THEN last_checked_at WHEN 'money' THEN NULL ELSE denied_at END,
        missing_since = CASE $9 WHEN 'unknown' THEN coalesce(missing_since, $10) WHEN 'nothing' THEN missing_since END,
        unanswered_since = CASE $9 WHEN 'nothing' THEN coalesce(unanswered_since, LEAST(next_check_at, $10)) END,
        hinted_at = CASE WHEN $9 IN ('nothing', 'unknown') OR hint_seq > $7 THEN hinted_at END,
        next_check_at = LEAST($11, CASE
            WHEN hint_seq > $7 OR standing_since IS DISTINCT FROM $8 THEN next_check_at
            ELSE $5 END)
    WHERE psp = $1 AND account = $2 AND payment_id = $3 AND lease_token = $4";

/// One statement, and so one transaction; sorted by key, as every writer of these rows goes.
pub(super) async fn ask_about(
    connection: &mut PgConnection,
    now: Timestamp,
    payments: &BTreeSet<(AccountKey, String)>,
) -> Result<(), StoreError> {
    let column = |of: fn(&(AccountKey, String)) -> &str| payments.iter().map(of).collect::<Vec<_>>();
    sqlx::query(write::ASK_ABOUT)
        .bind(column(|(key, _)| &key.psp))
        .bind(column(|(key, _)| &key.account))
        .bind(column(|(_, payment_id)| payment_id))
        .bind(vec![OffsetDateTime::from(now); payments.len()])
        .bind(OffsetDateTime::from(now))
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

/// Of accounts, checks come first, as everywhere.
pub(super) async fn hinted(
    connection: &mut PgConnection,
    now: Timestamp,
    hints: &BTreeMap<(AccountKey, String), Timestamp>,
) -> Result<(), StoreError> {
    let column = |of: fn(&(AccountKey, String)) -> &str| hints.keys().map(of).collect::<Vec<_>>();
    let mut transaction = connection.begin().await.map_err(classify)?;
    sqlx::query(HINTED)
        .bind(column(|(key, _)| &key.psp))
        .bind(column(|(key, _)| &key.account))
        .bind(column(|(_, payment_id)| payment_id))
        .bind(hints.values().copied().map(OffsetDateTime::from).collect::<Vec<_>>())
        .bind(OffsetDateTime::from(now))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    let mut webhooks = BTreeMap::<AccountKey, Timestamp>::new();
    for ((account, _), at) in hints {
        let last = webhooks.entry(account.clone()).or_insert(*at);
        *last = (*last).max(*at);
    }
    learning::webhooks(&mut transaction, &webhooks).await.map_err(classify)?;
    transaction.commit().await.map_err(classify)
}

pub(super) async fn lease(
    connection: &mut PgConnection,
    account: &AccountKey,
    lease: &Lease,
) -> Result<LeasedChecks, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let due = sqlx::query(DUE)
        .bind(&*account.account)
        .bind(&*account.psp)
        .bind(OffsetDateTime::from(lease.now))
        .bind(i64::from(BUSY_MAX))
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?;
    let mut checks = due.iter().map(|row| due_check(row, account, lease.token)).collect::<Result<Vec<_>, _>>()?;
    if checks.is_empty() {
        return Ok(LeasedChecks::default());
    }
    let mut manners = lock_manners(&mut transaction, account).await?;
    let wanted = u32::try_from(checks.len()).unwrap_or(BUSY_MAX);
    let granted = match manners.begin(lease.now, lease.per_second, wanted, lease.token, lease.until) {
        Leave::Go(granted) => granted,
        Leave::NotBefore(at) => return Ok(LeasedChecks { checks: Vec::new(), not_before: Some(at) }),
    };
    checks.truncate(granted as usize);
    let payment_ids: Vec<&str> = checks.iter().map(|check| &*check.payment_id).collect();
    sqlx::query(LEASE)
        .bind(&*account.account)
        .bind(&*account.psp)
        .bind(payment_ids)
        .bind(lease.token)
        .bind(OffsetDateTime::from(lease.until))
        .bind(OffsetDateTime::from(lease.now))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    write_manners(&mut transaction, account, &manners).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(LeasedChecks { checks, not_before: None })
}

pub(super) async fn finish(connection: &mut PgConnection, check: &DueCheck, looked: &Looked) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    sqlx::query(FINISH)
        .bind(&*check.account.psp)
        .bind(&*check.account.account)
        .bind(&check.payment_id)
        .bind(check.lease_token)
        .bind(looked.next_check_at.map(OffsetDateTime::from))
        .bind(looked.result)
        .bind(check.hint_seq)
        .bind(check.standing_since.map(OffsetDateTime::from))
        .bind(rows::said(looked.said))
        .bind(OffsetDateTime::from(looked.at))
        .bind(looked.in_doubt_until.map(OffsetDateTime::from))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    let news = end_in(&mut transaction, &check.account, looked.at, check.lease_token, looked.ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn begin_asking(
    connection: &mut PgConnection,
    account: &AccountKey,
    lease: &Lease,
    wanted: u32,
) -> Result<Leave, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let mut manners = lock_manners(&mut transaction, account).await?;
    let granted = manners.begin_in_turn(lease.now, lease.per_second, wanted, lease.token, lease.until);
    write_manners(&mut transaction, account, &manners).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(granted)
}

pub(super) async fn end_asking(
    connection: &mut PgConnection,
    account: &AccountKey,
    now: Timestamp,
    token: Uuid,
    ended: Ended,
) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let news = end_in(&mut transaction, account, now, token, ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn due(connection: &mut PgConnection, now: Timestamp, accounts: &[&AccountKey]) -> Result<Vec<Due>, StoreError> {
    let mut all = Vec::with_capacity(accounts.len());
    for account in accounts {
        let row = sqlx::query(
            "SELECT count(*) AS payments, min(next_check_at) AS since FROM (
                 SELECT next_check_at FROM checks WHERE account = $1 AND psp = $2 AND next_check_at <= $3
                 ORDER BY next_check_at LIMIT $4
             ) AS due",
        );
        let row = row.bind(&*account.account).bind(&*account.psp).bind(OffsetDateTime::from(now));
        let row = row.bind(i64::from(DUE_COUNTED_MAX)).fetch_one(&mut *connection).await.map_err(classify)?;
        let payments: i64 = row.try_get("payments").map_err(classify)?;
        let manners =
            sqlx::query_scalar::<_, Option<String>>("SELECT manners::text FROM accounts WHERE psp = $1 AND account = $2");
        let manners = manners.bind(&*account.psp).bind(&*account.account);
        let manners = manners.fetch_optional(&mut *connection).await.map_err(classify)?.flatten();
        all.push(Due {
            account: (*account).clone(),
            payments: u32::try_from(payments).unwrap_or(DUE_COUNTED_MAX),
            since: moment(&row, "since")?,
            manners: rows::manners(manners.as_deref(), account)?,
        });
    }
    Ok(all)
}

pub(super) async fn end_in(
    transaction: &mut PgTransaction<'_>,
    account: &AccountKey,
    now: Timestamp,
    token: Uuid,
    ended: Ended,
) -> Result<Option<News>, StoreError> {
    let mut manners = lock_manners(transaction, account).await?;
    let news = manners.end(now, token, ended);
    write_manners(transaction, account, &manners).await?;
    Ok(news)
}

pub(super) async fn lock_manners(transaction: &mut PgTransaction<'_>, account: &AccountKey) -> Result<Manners, StoreError> {
    let lock = "SELECT manners::text FROM accounts WHERE psp = $1 AND account = $2 FOR UPDATE";
    let locked = async |transaction: &mut PgTransaction<'_>| {
        let row = sqlx::query_scalar::<_, Option<String>>(lock).bind(&*account.psp).bind(&*account.account);
        row.fetch_optional(&mut **transaction).await.map_err(classify)
    };
    if let Some(known) = locked(transaction).await? {
        return rows::manners(known.as_deref(), account);
    }
    let insert = "INSERT INTO accounts (psp, account) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let insert = sqlx::query(insert).bind(&*account.psp).bind(&*account.account);
    insert.execute(&mut **transaction).await.map_err(classify)?;
    rows::manners(locked(transaction).await?.flatten().as_deref(), account)
}

pub(super) async fn write_manners(
    transaction: &mut PgTransaction<'_>,
    account: &AccountKey,
    manners: &Manners,
) -> Result<(), StoreError> {
    let write = sqlx::query("UPDATE accounts SET manners = $3::json WHERE psp = $1 AND account = $2");
    let write = write.bind(&*account.psp).bind(&*account.account).bind(rows::to_json(manners)?);
    write.execute(&mut **transaction).await.map_err(classify)?;
    Ok(())
}

fn due_check(row: &PgRow, account: &AccountKey, lease_token: Uuid) -> Result<DueCheck, StoreError> {
    let standing: Option<String> = row.try_get("standing").map_err(classify)?;
    Ok(DueCheck {
        account: AccountKey { psp: Arc::clone(&account.psp), account: Arc::clone(&account.account) },
        payment_id: row.try_get("payment_id").map_err(classify)?,
        lease_token,
        hint_seq: row.try_get("hint_seq").map_err(classify)?,
        is_hinted: row.try_get("is_hinted").map_err(classify)?,
        looks: row.try_get("looks").map_err(classify)?,
        // One that a newer version wrote must not keep all others from being looked at.
        standing: standing.and_then(|standing| Standing::parse(&standing)),
        standing_since: moment(row, "standing_since")?,
        first_seen_at: moment(row, "first_seen_at")?,
        missing_since: moment(row, "missing_since")?,
        unanswered_since: moment(row, "unanswered_since")?,
        hinted_at: moment(row, "hinted_at")?,
    })
}

pub(super) fn moment(row: &PgRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let at = row.try_get::<Option<OffsetDateTime>, _>(column).map_err(classify)?;
    Ok(at.map(Timestamp::from))
}
