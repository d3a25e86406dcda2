//! Leasing the payments that are due, and ending a look at one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::{classify, write};
use crate::order::AccountKey;
use crate::store::{DueCheck, StoreError, rows};

pub(super) async fn ask_about(
    connection: &mut SqliteConnection,
    now: Timestamp,
    payments: &BTreeSet<(AccountKey, String)>,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for (account, payment_id) in payments {
        let check = sqlx::query(write::ASK_ABOUT).bind(&*account.psp).bind(&*account.account).bind(payment_id);
        check.bind(now.millis()).execute(&mut *transaction).await.map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    now: Timestamp,
    lease: Duration,
    token: Uuid,
    limit: u32,
) -> Result<Vec<DueCheck>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let due = sqlx::query(
        "SELECT c.psp, c.account, c.payment_id, c.hint_seq, c.looks, o.status
         FROM checks c
         LEFT JOIN refs r ON r.psp = c.psp AND r.account = c.account AND r.kind = 'payment' AND r.value = c.payment_id
         LEFT JOIN orders o ON o.id = r.order_id
         WHERE c.next_check_at <= ?1 AND (c.lease_until IS NULL OR c.lease_until <= ?1)
         ORDER BY c.next_check_at, c.psp, c.account, c.payment_id
         LIMIT ?2",
    )
    .bind(now.millis())
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await
    .map_err(classify)?;
    let due = due.iter().map(|row| due_check(row, token)).collect::<Result<Vec<_>, _>>()?;
    for check in &due {
        sqlx::query(
            "UPDATE checks SET lease_token = ?4, lease_until = ?5, last_checked_at = ?6
             WHERE psp = ?1 AND account = ?2 AND payment_id = ?3",
        )
        .bind(&*check.account.psp)
        .bind(&*check.account.account)
        .bind(&*check.payment_id)
        .bind(token)
        .bind(now.plus(lease).millis())
        .bind(now.millis())
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)?;
    Ok(due)
}

/// Whoever lost the lease changes nothing. A hint that came meanwhile has made the payment due again, and leaves it so.
pub(super) async fn finish(
    connection: &mut SqliteConnection,
    check: &DueCheck,
    next_check_at: Option<Timestamp>,
    result: &str,
) -> Result<(), StoreError> {
    let DueCheck { account: AccountKey { psp, account }, payment_id, lease_token, hint_seq, looks: _, order_status: _ } = check;
    sqlx::query(
        "UPDATE checks SET lease_token = NULL, lease_until = NULL, looks = looks + 1, last_result = ?6,
             next_check_at = CASE WHEN hint_seq > ?7 THEN next_check_at ELSE ?5 END
         WHERE psp = ?1 AND account = ?2 AND payment_id = ?3 AND lease_token = ?4",
    )
    .bind(&**psp)
    .bind(&**account)
    .bind(payment_id)
    .bind(lease_token)
    .bind(next_check_at.map(Timestamp::millis))
    .bind(result)
    .bind(hint_seq)
    .execute(connection)
    .await
    .map_err(classify)?;
    Ok(())
}

fn due_check(row: &SqliteRow, lease_token: Uuid) -> Result<DueCheck, StoreError> {
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
