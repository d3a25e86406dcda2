//! Leasing the payments that are due, and ending a look at one; how much an account may be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::{classify, learning, write};
use crate::manners::{BUSY_MAX, Ended, Leave, Manners, News};
use crate::order::{AccountKey, Standing};
use crate::store::{DUE_COUNTED_MAX, Due, DueCheck, Lease, LeasedChecks, Looked, StoreError, rows};

/// As [`write::ASK_ABOUT`]; of the webhooks that no look has answered, the first counts.
const HINTED: &str = "\
    INSERT INTO checks (psp, account, payment_id, next_check_at, first_seen_at, hint_seq, hinted_at)
    VALUES (?1, ?2, ?3, ?4, ?4, 1, ?5)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        hint_seq = hint_seq + 1,
        hinted_at = coalesce(hinted_at, excluded.hinted_at),
        next_check_at = min(
            coalesce(CASE WHEN lease_token IS NULL THEN next_check_at END, 9223372036854775807),
            max(excluded.next_check_at, coalesce(last_checked_at, 0) + 2000))";

pub(super) async fn ask_about(
    connection: &mut SqliteConnection,
    now: Timestamp,
    payments: &BTreeSet<(AccountKey, String)>,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for (account, payment_id) in payments {
        let check = sqlx::query(write::ASK_ABOUT).bind(&*account.psp).bind(&*account.account).bind(payment_id);
        check.bind(now.millis()).bind(now.millis()).execute(&mut *transaction).await.map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn hinted(
    connection: &mut SqliteConnection,
    now: Timestamp,
    hints: &BTreeMap<(AccountKey, String), Timestamp>,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for ((account, payment_id), at) in hints {
        let check = sqlx::query(HINTED).bind(&*account.psp).bind(&*account.account).bind(payment_id);
        check.bind(now.millis()).bind(at.millis()).execute(&mut *transaction).await.map_err(classify)?;
        learning::webhooks(&mut transaction, &BTreeMap::from([(account.clone(), *at)])).await?;
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn nothing_is_due(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let is_due = "SELECT EXISTS (SELECT 1 FROM checks WHERE account = ?1 AND psp = ?2 AND next_check_at <= ?3)";
    let is_due = sqlx::query_scalar::<_, bool>(is_due).bind(&*account.account).bind(&*account.psp).bind(now.millis());
    Ok(!is_due.fetch_one(connection).await.map_err(classify)?)
}

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    lease: &Lease,
) -> Result<LeasedChecks, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let due = sqlx::query(
        "SELECT payment_id, hint_seq, hint_seq > answered_seq AS is_hinted, looks, standing, standing_since, first_seen_at,
             missing_since, unanswered_since, hinted_at
         FROM checks
         WHERE account = ?1 AND psp = ?2 AND next_check_at <= ?3 AND (lease_until IS NULL OR lease_until <= ?3)
         ORDER BY next_check_at, payment_id
         LIMIT ?4",
    );
    let due = due.bind(&*account.account).bind(&*account.psp).bind(lease.now.millis()).bind(BUSY_MAX);
    let due = due.fetch_all(&mut *transaction).await.map_err(classify)?;
    let mut checks = due.iter().map(|row| due_check(row, account, lease.token)).collect::<Result<Vec<_>, _>>()?;
    if checks.is_empty() {
        return Ok(LeasedChecks::default());
    }
    let mut manners = manners(&mut transaction, account).await?;
    let wanted = u32::try_from(checks.len()).unwrap_or(BUSY_MAX);
    let granted = match manners.begin(lease.now, lease.per_second, wanted, lease.token, lease.until) {
        Leave::Go(granted) => granted,
        Leave::NotBefore(at) => return Ok(LeasedChecks { checks: Vec::new(), not_before: Some(at) }),
    };
    checks.truncate(granted as usize);
    for check in &checks {
        sqlx::query(
            "UPDATE checks SET lease_token = ?4, lease_until = ?5, last_checked_at = ?6
             WHERE psp = ?1 AND account = ?2 AND payment_id = ?3",
        )
        .bind(&*account.psp)
        .bind(&*account.account)
        .bind(&*check.payment_id)
        .bind(lease.token)
        .bind(lease.until.millis())
        .bind(lease.now.millis())
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    }
    write_manners(&mut transaction, account, &manners).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(LeasedChecks { checks, not_before: None })
}

/// Whoever lost the lease changes nothing. What was planned meanwhile stays: by a hint, or because it stands otherwise now. What
/// a look denies was so when it began; without an answer a payment is since its look was due. A row from before version 3 of the
/// schema begins to age here, or it would be asked about as one that is new for ever.
pub(super) async fn finish(
    connection: &mut SqliteConnection,
    check: &DueCheck,
    looked: &Looked,
) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    sqlx::query(
        "UPDATE checks SET
             lease_token = NULL,
             lease_until = NULL,
             looks = looks + 1,
             last_result = ?6,
             first_seen_at = coalesce(first_seen_at, ?10),
             answered_seq = CASE WHEN ?9 = 'nothing' THEN answered_seq ELSE max(answered_seq, ?7) END,
             answered_at = CASE WHEN ?9 = 'nothing' THEN answered_at ELSE ?10 END,
             denied_before_at = CASE ?9 WHEN 'no_money' THEN denied_at WHEN 'money' THEN NULL ELSE denied_before_at END,
             denied_at = CASE ?9 WHEN 'no_money' THEN last_checked_at WHEN 'money' THEN NULL ELSE denied_at END,
             missing_since = CASE ?9 WHEN 'unknown' THEN coalesce(missing_since, ?10) WHEN 'nothing' THEN missing_since END,
             unanswered_since = CASE ?9 WHEN 'nothing' THEN coalesce(unanswered_since, min(next_check_at, ?10), ?10) END,
             hinted_at = CASE WHEN ?9 IN ('nothing', 'unknown') OR hint_seq > ?7 THEN hinted_at END,
             next_check_at = nullif(min(
                 coalesce(?11, 9223372036854775807),
                 coalesce(CASE WHEN hint_seq > ?7 OR standing_since IS NOT ?8 THEN next_check_at ELSE ?5 END, 9223372036854775807)
             ), 9223372036854775807)
         WHERE psp = ?1 AND account = ?2 AND payment_id = ?3 AND lease_token = ?4",
    )
    .bind(&*check.account.psp)
    .bind(&*check.account.account)
    .bind(&check.payment_id)
    .bind(check.lease_token)
    .bind(looked.next_check_at.map(Timestamp::millis))
    .bind(looked.result)
    .bind(check.hint_seq)
    .bind(check.standing_since.map(Timestamp::millis))
    .bind(rows::said(looked.said))
    .bind(looked.at.millis())
    .bind(looked.in_doubt_until.map(Timestamp::millis))
    .execute(&mut *transaction)
    .await
    .map_err(classify)?;
    let news = end_in(&mut transaction, &check.account, looked.at, check.lease_token, looked.ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn begin_asking(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    lease: &Lease,
    wanted: u32,
) -> Result<Leave, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let mut manners = manners(&mut transaction, account).await?;
    let granted = manners.begin_in_turn(lease.now, lease.per_second, wanted, lease.token, lease.until);
    write_manners(&mut transaction, account, &manners).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(granted)
}

pub(super) async fn end_asking(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    now: Timestamp,
    token: Uuid,
    ended: Ended,
) -> Result<Option<News>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let news = end_in(&mut transaction, account, now, token, ended).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(news)
}

pub(super) async fn due(
    connection: &mut SqliteConnection,
    now: Timestamp,
    accounts: &[&AccountKey],
) -> Result<Vec<Due>, StoreError> {
    let mut all = Vec::with_capacity(accounts.len());
    for account in accounts {
        let row = sqlx::query(
            "SELECT count(*) AS payments, min(next_check_at) AS since FROM (
                 SELECT next_check_at FROM checks WHERE account = ?1 AND psp = ?2 AND next_check_at <= ?3
                 ORDER BY next_check_at LIMIT ?4
             )",
        );
        let row = row.bind(&*account.account).bind(&*account.psp).bind(now.millis()).bind(DUE_COUNTED_MAX);
        let row = row.fetch_one(&mut *connection).await.map_err(classify)?;
        let payments: i64 = row.try_get("payments").map_err(classify)?;
        all.push(Due {
            account: (*account).clone(),
            payments: u32::try_from(payments).unwrap_or(DUE_COUNTED_MAX),
            since: moment(&row, "since")?,
            manners: manners(connection, account).await?,
        });
    }
    Ok(all)
}

pub(super) async fn end_in(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    now: Timestamp,
    token: Uuid,
    ended: Ended,
) -> Result<Option<News>, StoreError> {
    let mut manners = manners(connection, account).await?;
    let news = manners.end(now, token, ended);
    write_manners(connection, account, &manners).await?;
    Ok(news)
}

pub(super) async fn manners(connection: &mut SqliteConnection, account: &AccountKey) -> Result<Manners, StoreError> {
    let known = sqlx::query_scalar::<_, Option<String>>("SELECT manners FROM accounts WHERE psp = ?1 AND account = ?2");
    let known = known.bind(&*account.psp).bind(&*account.account).fetch_optional(connection).await.map_err(classify)?;
    rows::manners(known.flatten().as_deref(), account)
}

pub(super) async fn write_manners(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    manners: &Manners,
) -> Result<(), StoreError> {
    let write = sqlx::query(
        "INSERT INTO accounts (psp, account, manners) VALUES (?1, ?2, ?3)
         ON CONFLICT (psp, account) DO UPDATE SET manners = excluded.manners",
    );
    let write = write.bind(&*account.psp).bind(&*account.account).bind(rows::to_json(manners)?);
    write.execute(connection).await.map_err(classify)?;
    Ok(())
}

fn due_check(row: &SqliteRow, account: &AccountKey, lease_token: Uuid) -> Result<DueCheck, StoreError> {
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

pub(super) fn moment(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let at = row.try_get::<Option<i64>, _>(column).map_err(classify)?;
    Ok(at.map(Timestamp::from_millis))
}
