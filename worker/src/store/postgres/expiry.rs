//! Leasing the orders whose time is over, and ending their attendance.

use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Row as _};
use time::OffsetDateTime;

use super::checks::moment;
use super::errors::classify;
use super::read;
use super::write::array;
use crate::order::AccountKey;
use crate::store::{Attended, DueOrder, Looks, OrderRow, StoreError, UnaskedWrite, rows};

/// An order that somebody writes or leases at this moment is passed over.
const LEASE: &str = "\
    WITH due AS (
        SELECT id FROM orders
        WHERE due_at <= $1 AND due_at IS NOT NULL AND status IN ('pending', 'failed', 'authorized', 'partially_paid')
        ORDER BY due_at
        LIMIT $3
        FOR UPDATE SKIP LOCKED
    )
    UPDATE orders o SET due_at = $2 FROM due WHERE o.id = due.id
    RETURNING o.id, o.view::text AS view, o.registers::text AS registers, o.version, o.review_since, o.updated_at";

const LOOKS: &str = "\
    SELECT w.order_n, w.psp, w.account, w.payment_id, c.denied_at, c.denied_before_at,
        c.missing_since IS NOT NULL OR c.unanswered_since IS NOT NULL AS is_in_vain, c.next_check_at, c.lease_until
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[]) AS w(psp, account, payment_id, order_n)
    CROSS JOIN LATERAL (
        SELECT * FROM checks WHERE psp = w.psp AND account = w.account AND payment_id = w.payment_id LIMIT 1
    ) c";

const ATTENDED: &str = "\
    UPDATE orders o SET due_at = w.due_at
    FROM UNNEST($1::text[], $2::bigint[], $3::timestamptz[], $4::timestamptz[]) AS w(id, version, leased_until, due_at)
    WHERE o.id = w.id AND o.version = w.version AND o.due_at = w.leased_until";

/// Sooner only. A look that is under way plans anew when it ends, and the order is attended to again after it.
const LOOK_BY: &str = "\
    INSERT INTO checks AS c (psp, account, payment_id, next_check_at, first_seen_at)
    SELECT psp, account, payment_id, next_check_at, next_check_at
    FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS w(psp, account, payment_id, next_check_at)
    ORDER BY psp, account, payment_id
    ON CONFLICT (psp, account, payment_id) DO UPDATE SET next_check_at = LEAST(c.next_check_at, excluded.next_check_at)";

/// Since when stays.
const INSERT_UNASKED: &str = "\
    INSERT INTO unasked (order_id, psp, account, since)
    SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS w(order_id, psp, account, since)
    ORDER BY order_id
    ON CONFLICT DO NOTHING";

const DELETE_UNASKED: &str = "DELETE FROM unasked u USING UNNEST($1::text[]) AS w(order_id) WHERE u.order_id = w.order_id";

pub(super) async fn lease(
    connection: &mut PgConnection,
    now: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<DueOrder>, StoreError> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let leased = sqlx::query(LEASE).bind(OffsetDateTime::from(now)).bind(OffsetDateTime::from(until)).bind(i64::from(limit));
    let leased = leased.fetch_all(&mut *transaction).await.map_err(classify)?;
    let row = |row: &PgRow| -> Result<OrderRow, StoreError> {
        let registers: String = row.try_get("registers").map_err(classify)?;
        read::columns(row).map_err(classify)?.read_row(&registers)
    };
    let orders = leased.iter().filter_map(|found| rows::attendable(row(found)));
    let due = |OrderRow { registers, stored }| DueOrder { registers, stored, leased_until: until, looks: Vec::new() };
    let mut orders: Vec<DueOrder> = orders.map(due).collect();
    let payments = orders.iter().zip(0_i64..).flat_map(|(order, n)| order.registers.payment_keys().map(move |key| (key, n)));
    let payments: Vec<((&AccountKey, &str), i64)> = payments.collect();
    let looks = sqlx::query(LOOKS)
        .bind(array(&payments, |((account, _), _)| &*account.psp))
        .bind(array(&payments, |((account, _), _)| &*account.account))
        .bind(array(&payments, |((_, payment_id), _)| *payment_id))
        .bind(array(&payments, |(_, n)| *n))
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?;
    for found in &looks {
        let n: i64 = found.try_get("order_n").map_err(classify)?;
        if let Some(order) = usize::try_from(n).ok().and_then(|n| orders.get_mut(n)) {
            order.looks.push(self::looks(found)?);
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(orders)
}

/// Orders first, as everywhere.
pub(super) async fn attended(connection: &mut PgConnection, attended: &[Attended]) -> Result<(), StoreError> {
    let mut sorted: Vec<&Attended> = attended.iter().collect();
    sorted.sort_by(|one, other| one.order_id.cmp(&other.order_id));
    let mut transaction = connection.begin().await.map_err(classify)?;
    sqlx::query(ATTENDED)
        .bind(array(&sorted, |order| &*order.order_id))
        .bind(array(&sorted, |order| order.version))
        .bind(array(&sorted, |order| OffsetDateTime::from(order.leased_until)))
        .bind(array(&sorted, |order| order.due_at.map(OffsetDateTime::from)))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    write_unasked(&mut transaction, sorted.iter().map(|order| &order.unasked)).await.map_err(classify)?;
    let looks: Vec<&(AccountKey, String, Timestamp)> = sorted.iter().flat_map(|order| &order.looks).collect();
    if !looks.is_empty() {
        sqlx::query(LOOK_BY)
            .bind(array(&looks, |(account, ..)| &*account.psp))
            .bind(array(&looks, |(account, ..)| &*account.account))
            .bind(array(&looks, |(_, payment_id, _)| &**payment_id))
            .bind(array(&looks, |(.., at)| OffsetDateTime::from(*at)))
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn write_unasked(
    connection: &mut PgConnection,
    writes: impl Iterator<Item = &UnaskedWrite>,
) -> Result<(), sqlx::Error> {
    let (come, gone): (Vec<&UnaskedWrite>, Vec<&UnaskedWrite>) = writes.partition(|write| write.account.is_some());
    if !come.is_empty() {
        let account = |write: &&UnaskedWrite, of: fn(&AccountKey) -> &Arc<str>| write.account.as_ref().map(of).cloned();
        sqlx::query(INSERT_UNASKED)
            .bind(array(&come, |write| &*write.order_id))
            .bind(array(&come, |write| account(write, |key| &key.psp).map(|psp| psp.to_string())))
            .bind(array(&come, |write| account(write, |key| &key.account).map(|account| account.to_string())))
            .bind(array(&come, |write| OffsetDateTime::from(write.since)))
            .execute(&mut *connection)
            .await?;
    }
    if !gone.is_empty() {
        sqlx::query(DELETE_UNASKED).bind(array(&gone, |write| &*write.order_id)).execute(connection).await?;
    }
    Ok(())
}

fn looks(row: &PgRow) -> Result<Looks, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(classify);
    Ok(Looks {
        account: AccountKey { psp: text("psp")?.into(), account: text("account")?.into() },
        payment_id: text("payment_id")?,
        denied_at: moment(row, "denied_at")?,
        denied_before_at: moment(row, "denied_before_at")?,
        is_in_vain: row.try_get("is_in_vain").map_err(classify)?,
        next_check_at: moment(row, "next_check_at")?,
        lease_until: moment(row, "lease_until")?,
    })
}
