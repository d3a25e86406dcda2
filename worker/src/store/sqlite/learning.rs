//! Who told first what became of payments, and when the last webhook of an account came.

use std::collections::BTreeMap;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection, query};

use super::checks::moment;
use super::classify;
use super::write::run;
use crate::order::{AccountKey, CameTo};
use crate::store::rows;
use crate::store::{AccountState, AskedFirst, EXPECTED_COUNTED_MAX, Expected, Learned, StoreError};

/// A row that is not the first of its payment only adds to one that is there.
const LEARN: &str = "\
    INSERT INTO learned (psp, account, payment_id, money, learned_at, webhook_at, asked_at)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
    WHERE ?8 OR EXISTS (SELECT 1 FROM learned WHERE psp = ?1 AND account = ?2 AND payment_id = ?3 AND money = ?4)
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        money = excluded.money,
        webhook_at = excluded.webhook_at,
        asked_at = CASE
            WHEN money <> excluded.money THEN excluded.asked_at
            WHEN excluded.webhook_at > asked_at THEN asked_at END
    WHERE money < excluded.money OR (
        money = excluded.money AND asked_at IS NOT NULL
        AND excluded.webhook_at < coalesce(webhook_at, 9223372036854775807))";

/// Every ten seconds at the most.
const CAME_IN: &str = "\
    INSERT INTO accounts (psp, account, last_webhook_at) VALUES (?1, ?2, ?3)
    ON CONFLICT (psp, account) DO UPDATE SET last_webhook_at = excluded.last_webhook_at
    WHERE coalesce(last_webhook_at, 0) < excluded.last_webhook_at - 10000";

pub(super) async fn learn(connection: &mut SqliteConnection, row: &Learned, now: Timestamp) -> Result<(), StoreError> {
    let insert = query(LEARN)
        .bind(&*row.account.psp)
        .bind(&*row.account.account)
        .bind(&*row.payment_id)
        .bind(row.came_to == CameTo::Money)
        .bind(now.millis())
        .bind(row.webhook_at.map(Timestamp::millis))
        .bind(row.asked_at.map(Timestamp::millis))
        .bind(row.is_first);
    run(connection, insert).await.map(drop)
}

pub(super) async fn webhooks(
    connection: &mut SqliteConnection,
    webhooks: &BTreeMap<AccountKey, Timestamp>,
) -> Result<(), StoreError> {
    for (account, at) in webhooks {
        run(connection, query(CAME_IN).bind(&*account.psp).bind(&*account.account).bind(at.millis())).await?;
    }
    Ok(())
}

pub(super) async fn count(
    connection: &mut SqliteConnection,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<(AccountKey, u64)>, StoreError> {
    let counted = query(
        "SELECT psp, account, count(*) AS payments FROM learned
         WHERE learned_at >= ?1 AND learned_at < ?2
         GROUP BY psp, account ORDER BY psp, account",
    );
    let counted = counted.bind(since.millis()).bind(until.millis()).fetch_all(connection).await.map_err(classify)?;
    let line = |row: &SqliteRow| {
        let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
        let payments: i64 = row.try_get("payments")?;
        Ok((AccountKey { psp: psp.into(), account: account.into() }, u64::try_from(payments).unwrap_or_default()))
    };
    counted.iter().map(line).collect::<Result<_, _>>().map_err(classify)
}

pub(super) async fn asked_first(
    connection: &mut SqliteConnection,
    since: Timestamp,
    until: Timestamp,
    now: Timestamp,
    accounts: &[(AccountKey, Duration)],
) -> Result<Vec<AskedFirst>, StoreError> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE webhook_at <= asked_at + ?6) AS late,
             count(*) FILTER (WHERE webhook_at IS NULL AND asked_at >= ?5 - ?6) AS pending,
             count(*) AS all_of_them, count(webhook_at) AS came {}
         FROM learned
         WHERE account = ?1 AND psp = ?2 AND asked_at >= ?3 AND asked_at < ?4",
        rows::lateness_columns("(webhook_at - asked_at) / 1000.0")
    );
    let mut all = Vec::with_capacity(accounts.len());
    for (account, kept) in accounts {
        let row = query(AssertSqlSafe(sql.clone()))
            .bind(&*account.account)
            .bind(&*account.psp)
            .bind(since.millis())
            .bind(until.millis())
            .bind(now.millis())
            .bind(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
            .fetch_one(&mut *connection)
            .await
            .map_err(classify)?;
        all.push(rows::asked_first(account, |column| row.try_get(column).map_err(classify))?);
    }
    Ok(all)
}

pub(super) async fn account_states(connection: &mut SqliteConnection) -> Result<Vec<AccountState>, StoreError> {
    let all = query("SELECT psp, account, manners, last_webhook_at FROM accounts ORDER BY psp, account");
    let all = all.fetch_all(connection).await.map_err(classify)?;
    let state = |row: &SqliteRow| {
        let text = |column| row.try_get::<String, _>(column).map_err(classify);
        let account = AccountKey { psp: text("psp")?.into(), account: text("account")?.into() };
        let manners: Option<String> = row.try_get("manners").map_err(classify)?;
        let manners = rows::manners(manners.as_deref(), &account)?;
        Ok(AccountState { account, manners, last_webhook_at: moment(row, "last_webhook_at")? })
    };
    all.iter().map(state).collect()
}

pub(super) async fn expected(
    connection: &mut SqliteConnection,
    account: &AccountKey,
    since: Timestamp,
    until: Timestamp,
) -> Result<Expected, StoreError> {
    let decided = "SELECT count(*) FROM (
        SELECT 1 FROM learned
        WHERE account = ?1 AND psp = ?2 AND asked_at > ?3 AND asked_at <= ?4 AND webhook_at IS NULL
        LIMIT ?5)";
    let registered =
        "SELECT count(*) FROM (SELECT 1 FROM unasked WHERE account = ?1 AND psp = ?2 AND since > ?3 AND since <= ?4 LIMIT ?5)";
    let mut counts = [0; 2];
    for (sql, place) in [decided, registered].into_iter().zip(&mut counts) {
        let count = sqlx::query_scalar(sql).bind(&*account.account).bind(&*account.psp).bind(since.millis()).bind(until.millis());
        *place = count.bind(EXPECTED_COUNTED_MAX).fetch_one(&mut *connection).await.map_err(classify)?;
    }
    let [decided, registered] = counts;
    Ok(Expected { decided, registered })
}
