//! Leasing the orders whose time is over, and ending their attendance.

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection, query};

use super::checks::moment;
use super::write::run;
use super::{classify, read};
use crate::order::AccountKey;
use crate::store::{Attended, DueOrder, Looks, OrderRow, StoreError, UnaskedWrite, rows};

pub(super) async fn nothing_is_due(connection: &mut SqliteConnection, now: Timestamp) -> Result<bool, StoreError> {
    let is_due = "SELECT EXISTS (
        SELECT 1 FROM orders WHERE due_at <= ?1 AND status IN ('pending', 'failed', 'authorized', 'partially_paid'))";
    let is_due: bool = sqlx::query_scalar(is_due).bind(now.millis()).fetch_one(connection).await.map_err(classify)?;
    Ok(!is_due)
}

pub(super) async fn lease(
    connection: &mut SqliteConnection,
    now: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<DueOrder>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    let due = query(
        "SELECT id, view, registers, version, review_since, updated_at FROM orders
         WHERE due_at <= ?1 AND status IN ('pending', 'failed', 'authorized', 'partially_paid')
         ORDER BY due_at LIMIT ?2",
    );
    let due = due.bind(now.millis()).bind(limit).fetch_all(&mut *transaction).await.map_err(classify)?;
    let mut orders = Vec::with_capacity(due.len());
    for found in &due {
        let id: String = found.try_get("id").map_err(classify)?;
        let lease = query("UPDATE orders SET due_at = ?2 WHERE id = ?1").bind(id).bind(until.millis());
        run(&mut transaction, lease).await?;
        let Some(OrderRow { registers, stored }) = rows::attendable(order_row(found)) else { continue };
        let mut looks = Vec::new();
        for (account, payment_id) in registers.payment_keys() {
            let check = query(
                "SELECT denied_at, denied_before_at, missing_since IS NOT NULL OR unanswered_since IS NOT NULL AS is_in_vain,
                     next_check_at, lease_until
                 FROM checks WHERE psp = ?1 AND account = ?2 AND payment_id = ?3",
            );
            let check = check.bind(&*account.psp).bind(&*account.account).bind(payment_id);
            if let Some(row) = check.fetch_optional(&mut *transaction).await.map_err(classify)? {
                looks.push(looks_of(&row, account, payment_id)?);
            }
        }
        orders.push(DueOrder { registers, stored, leased_until: until, looks });
    }
    transaction.commit().await.map_err(classify)?;
    Ok(orders)
}

pub(super) async fn attended(connection: &mut SqliteConnection, attended: &[Attended]) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for Attended { order_id, version, leased_until, due_at, looks, unasked: is_unasked } in attended {
        let update = query("UPDATE orders SET due_at = ?4 WHERE id = ?1 AND version = ?2 AND due_at = ?3");
        let update = update.bind(order_id).bind(version).bind(leased_until.millis()).bind(due_at.map(Timestamp::millis));
        run(&mut transaction, update).await?;
        unasked(&mut transaction, is_unasked).await?;
        for (account, payment_id, at) in looks {
            let look = query(
                "INSERT INTO checks (psp, account, payment_id, next_check_at, first_seen_at) VALUES (?1, ?2, ?3, ?4, ?4)
                 ON CONFLICT (psp, account, payment_id)
                 DO UPDATE SET next_check_at = min(coalesce(next_check_at, excluded.next_check_at), excluded.next_check_at)",
            );
            let look = look.bind(&*account.psp).bind(&*account.account).bind(payment_id).bind(at.millis());
            run(&mut transaction, look).await?;
        }
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn unasked(connection: &mut SqliteConnection, write: &UnaskedWrite) -> Result<(), StoreError> {
    let UnaskedWrite { order_id, account, since } = write;
    let write = match account {
        Some(AccountKey { psp, account }) => {
            query("INSERT INTO unasked (order_id, psp, account, since) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING")
                .bind(order_id)
                .bind(&**psp)
                .bind(&**account)
                .bind(since.millis())
        }
        None => query("DELETE FROM unasked WHERE order_id = ?1").bind(order_id),
    };
    run(connection, write).await.map(drop)
}

fn order_row(row: &SqliteRow) -> Result<OrderRow, StoreError> {
    let registers: String = row.try_get("registers").map_err(classify)?;
    read::columns(row).map_err(classify)?.read_row(&registers)
}

fn looks_of(row: &SqliteRow, account: &AccountKey, payment_id: &str) -> Result<Looks, StoreError> {
    Ok(Looks {
        account: account.clone(),
        payment_id: payment_id.to_owned(),
        denied_at: moment(row, "denied_at")?,
        denied_before_at: moment(row, "denied_before_at")?,
        is_in_vain: row.try_get("is_in_vain").map_err(classify)?,
        next_check_at: moment(row, "next_check_at")?,
        lease_until: moment(row, "lease_until")?,
    })
}
