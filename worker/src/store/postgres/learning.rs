//! Who told first what became of payments, and when the last webhook of an account came.

use std::collections::BTreeMap;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;

use super::checks::moment;
use super::errors::classify;
use super::write::array;
use crate::order::{AccountKey, CameTo};
use crate::store::rows;
use crate::store::{AccountState, AskedFirst, EXPECTED_COUNTED_MAX, Expected, Plan, StoreError};

/// Looked up first, so that a row that learns nothing is not locked, let alone written.
const LEARN: &str = "\
    INSERT INTO learned AS l (psp, account, payment_id, money, learned_at, webhook_at, asked_at)
    SELECT w.psp, w.account, w.payment_id, w.money, $8, w.webhook_at, w.asked_at
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::boolean[], $5::boolean[], $6::timestamptz[], $7::timestamptz[])
        AS w(psp, account, payment_id, money, is_first, webhook_at, asked_at)
    LEFT JOIN LATERAL (
        SELECT money, webhook_at, asked_at FROM learned
        WHERE psp = w.psp AND account = w.account AND payment_id = w.payment_id
        LIMIT 1
    ) known ON true
    WHERE CASE
        WHEN known.money IS NULL OR known.money < w.money THEN w.is_first
        ELSE known.money = w.money AND known.asked_at IS NOT NULL AND w.webhook_at < coalesce(known.webhook_at, 'infinity') END
    ORDER BY w.psp, w.account, w.payment_id
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET
        money = excluded.money,
        webhook_at = excluded.webhook_at,
        asked_at = CASE
            WHEN l.money <> excluded.money THEN excluded.asked_at
            WHEN excluded.webhook_at > l.asked_at THEN l.asked_at END
    WHERE l.money < excluded.money OR (
        l.money = excluded.money AND l.asked_at IS NOT NULL AND excluded.webhook_at < coalesce(l.webhook_at, 'infinity'))";

/// Every ten seconds at the most: all that comes in meets at these rows.
const CAME_IN: &str = "\
    INSERT INTO accounts AS a (psp, account, last_webhook_at)
    SELECT w.psp, w.account, w.at
    FROM UNNEST($1::text[], $2::text[], $3::timestamptz[]) AS w(psp, account, at)
    LEFT JOIN LATERAL (
        SELECT last_webhook_at FROM accounts WHERE psp = w.psp AND account = w.account LIMIT 1
    ) known ON true
    WHERE known.last_webhook_at IS NULL OR known.last_webhook_at < w.at - interval '10 seconds'
    ORDER BY w.psp, w.account
    ON CONFLICT (psp, account) DO UPDATE SET last_webhook_at = GREATEST(a.last_webhook_at, excluded.last_webhook_at)";

const LEARNED: &str = "\
    SELECT psp, account, count(*) AS payments FROM learned
    WHERE learned_at >= $1 AND learned_at < $2
    GROUP BY psp, account ORDER BY psp, account";

const DECIDED: &str = "\
    SELECT count(*) FROM (
        SELECT 1 FROM learned
        WHERE account = $1 AND psp = $2 AND asked_at > $3 AND asked_at <= $4 AND asked_at IS NOT NULL AND webhook_at IS NULL
        LIMIT $5
    ) AS decided";

const REGISTERED: &str = "\
    SELECT count(*) FROM (
        SELECT 1 FROM unasked WHERE account = $1 AND psp = $2 AND since > $3 AND since <= $4 LIMIT $5
    ) AS registered";

pub(super) async fn learned(connection: &mut PgConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let learned = &plan.learned;
    if learned.is_empty() {
        return Ok(());
    }
    sqlx::query(LEARN)
        .bind(array(learned, |row| &*row.account.psp))
        .bind(array(learned, |row| &*row.account.account))
        .bind(array(learned, |row| &*row.payment_id))
        .bind(array(learned, |row| row.came_to == CameTo::Money))
        .bind(array(learned, |row| row.is_first))
        .bind(array(learned, |row| row.webhook_at.map(OffsetDateTime::from)))
        .bind(array(learned, |row| row.asked_at.map(OffsetDateTime::from)))
        .bind(OffsetDateTime::from(plan.now))
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn webhooks(
    connection: &mut PgConnection,
    webhooks: &BTreeMap<AccountKey, Timestamp>,
) -> Result<(), sqlx::Error> {
    if webhooks.is_empty() {
        return Ok(());
    }
    sqlx::query(CAME_IN)
        .bind(webhooks.keys().map(|key| &*key.psp).collect::<Vec<_>>())
        .bind(webhooks.keys().map(|key| &*key.account).collect::<Vec<_>>())
        .bind(webhooks.values().copied().map(OffsetDateTime::from).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn count(
    connection: &mut PgConnection,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<(AccountKey, u64)>, StoreError> {
    let counted = sqlx::query(LEARNED).bind(OffsetDateTime::from(since)).bind(OffsetDateTime::from(until));
    let counted = counted.fetch_all(connection).await.map_err(classify)?;
    let line = |row: &sqlx::postgres::PgRow| {
        let (psp, account): (String, String) = (row.try_get("psp")?, row.try_get("account")?);
        let payments: i64 = row.try_get("payments")?;
        Ok((AccountKey { psp: psp.into(), account: account.into() }, u64::try_from(payments).unwrap_or_default()))
    };
    counted.iter().map(line).collect::<Result<_, _>>().map_err(classify)
}

pub(super) async fn asked_first(
    connection: &mut PgConnection,
    since: Timestamp,
    until: Timestamp,
    now: Timestamp,
    accounts: &[(AccountKey, Duration)],
) -> Result<Vec<AskedFirst>, StoreError> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE webhook_at <= asked_at + w.kept) AS late,
             count(*) FILTER (WHERE webhook_at IS NULL AND asked_at >= $5 - w.kept) AS pending,
             count(*) AS all_of_them, count(webhook_at) AS came {}
         FROM learned, LATERAL (SELECT $6::bigint * interval '1 millisecond' AS kept) AS w
         WHERE account = $1 AND psp = $2 AND asked_at >= $3 AND asked_at < $4 AND asked_at IS NOT NULL",
        rows::lateness_columns("extract(epoch FROM webhook_at - asked_at)")
    );
    let mut all = Vec::with_capacity(accounts.len());
    for (account, kept) in accounts {
        let row = sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(&*account.account)
            .bind(&*account.psp)
            .bind(OffsetDateTime::from(since))
            .bind(OffsetDateTime::from(until))
            .bind(OffsetDateTime::from(now))
            .bind(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
            .fetch_one(&mut *connection)
            .await
            .map_err(classify)?;
        all.push(rows::asked_first(account, |column| row.try_get(column).map_err(classify))?);
    }
    Ok(all)
}

pub(super) async fn account_states(connection: &mut PgConnection) -> Result<Vec<AccountState>, StoreError> {
    let all = "SELECT psp, account, manners::text AS manners, last_webhook_at FROM accounts ORDER BY psp, account";
    let all = sqlx::query(all).fetch_all(connection).await.map_err(classify)?;
    let state = |row: &sqlx::postgres::PgRow| {
        let text = |column| row.try_get::<String, _>(column).map_err(classify);
        let account = AccountKey { psp: text("psp")?.into(), account: text("account")?.into() };
        let manners: Option<String> = row.try_get("manners").map_err(classify)?;
        let manners = rows::manners(manners.as_deref(), &account)?;
        Ok(AccountState { account, manners, last_webhook_at: moment(row, "last_webhook_at")? })
    };
    all.iter().map(state).collect()
}

pub(super) async fn expected(
    connection: &mut PgConnection,
    account: &AccountKey,
    since: Timestamp,
    until: Timestamp,
) -> Result<Expected, StoreError> {
    let mut counts = [0; 2];
    for (sql, place) in [DECIDED, REGISTERED].into_iter().zip(&mut counts) {
        let count = sqlx::query_scalar(sql)
            .bind(&*account.account)
            .bind(&*account.psp)
            .bind(OffsetDateTime::from(since))
            .bind(OffsetDateTime::from(until))
            .bind(i64::from(EXPECTED_COUNTED_MAX));
        let count: i64 = count.fetch_one(&mut *connection).await.map_err(classify)?;
        *place = u32::try_from(count).unwrap_or(EXPECTED_COUNTED_MAX);
    }
    let [decided, registered] = counts;
    Ok(Expected { decided, registered })
}
