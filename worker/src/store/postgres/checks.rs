//! Leasing the payments that are due, and ending a look at one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::errors::classify;
use super::write;
use crate::order::AccountKey;
use crate::store::{DueCheck, StoreError, rows};

/// A row that another worker is leasing at this moment is passed over. The order is read beside it, unlocked: a look at an
/// order that has just changed costs nothing but the look.
const LEASE: &str = "\
    WITH due AS (
        SELECT psp, account, payment_id, next_check_at FROM checks
        WHERE next_check_at <= $1 AND (lease_until IS NULL OR lease_until <= $1)
        ORDER BY next_check_at
        LIMIT $4
        FOR UPDATE SKIP LOCKED
    ), leased AS (
        UPDATE checks c SET lease_token = $2, lease_until = $3, last_checked_at = $1
        FROM due WHERE c.psp = due.psp AND c.account = due.account AND c.payment_id = due.payment_id
        RETURNING c.psp, c.account, c.payment_id, c.hint_seq, c.looks, c.next_check_at
    )
    SELECT leased.psp, leased.account, leased.payment_id, leased.hint_seq, leased.looks, o.status
    FROM leased
    LEFT JOIN refs r
        ON r.psp = leased.psp AND r.account = leased.account AND r.kind = 'payment' AND r.value = leased.payment_id
    LEFT JOIN orders o ON o.id = r.order_id
    ORDER BY leased.next_check_at, leased.psp, leased.account, leased.payment_id";

/// Whoever lost the lease changes nothing. A hint that came meanwhile has made the payment due again, and leaves it so.
const FINISH: &str = "\
    UPDATE checks SET
        lease_token = NULL,
        lease_until = NULL,
        looks = looks + 1,
        last_result = $6,
        next_check_at = CASE WHEN hint_seq > $7 THEN next_check_at ELSE $5 END
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
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

pub(super) async fn lease(
    connection: &mut PgConnection,
    now: Timestamp,
    lease: Duration,
    token: Uuid,
    limit: u32,
) -> Result<Vec<DueCheck>, StoreError> {
    let rows = sqlx::query(LEASE)
        .bind(OffsetDateTime::from(now))
        .bind(token)
        .bind(OffsetDateTime::from(now.plus(lease)))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(|row| due_check(row, token)).collect()
}

pub(super) async fn finish(
    connection: &mut PgConnection,
    check: &DueCheck,
    next_check_at: Option<Timestamp>,
    result: &str,
) -> Result<(), StoreError> {
    let DueCheck { account: AccountKey { psp, account }, payment_id, lease_token, hint_seq, looks: _, order_status: _ } = check;
    sqlx::query(FINISH)
        .bind(&**psp)
        .bind(&**account)
        .bind(payment_id)
        .bind(lease_token)
        .bind(next_check_at.map(OffsetDateTime::from))
        .bind(result)
        .bind(hint_seq)
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

fn due_check(row: &PgRow, lease_token: Uuid) -> Result<DueCheck, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(classify);
    let payment_id = text("payment_id")?;
    let status: Option<String> = row.try_get("status").map_err(classify)?;
    Ok(DueCheck {
        account: AccountKey { psp: Arc::from(text("psp")?), account: Arc::from(text("account")?) },
        lease_token,
        hint_seq: row.try_get("hint_seq").map_err(classify)?,
        looks: row.try_get("looks").map_err(classify)?,
        // One that a newer version wrote must not keep all others from being looked at.
        order_status: status.and_then(|status| rows::status(&status, &payment_id).ok()),
        payment_id,
    })
}
