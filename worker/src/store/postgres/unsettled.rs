//! The operator's list: found by what is wrong, along an index of that, and then held against the order.

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;

use super::errors::classify;
use super::read;
use super::write::array;
use crate::order::AccountKey;
use crate::store::rows::{self, OPEN};
use crate::store::{Reason, StoreError, UNSETTLED_COUNTED_MAX, Unsettled, UnsettledPlace};

/// Since before `$1`, behind a place (`$2` to `$5`), so many (`$6`); where the reason is an account's, of those in `$7` and `$8`.
fn sql(reason: Reason) -> String {
    let order = |of: &str, condition: &str| {
        format!(
            "CROSS JOIN LATERAL (
                 SELECT id, view, version, review_since, updated_at FROM orders
                 WHERE id = {of} AND status IN {OPEN} {condition} LIMIT 1
             ) o"
        )
    };
    // One that has an end comes to it by itself.
    let endless = "AND due_at IS NULL";
    let order_of_payment = |condition: &str| {
        let name = "\
            CROSS JOIN LATERAL (
                SELECT order_id FROM refs
                WHERE psp = c.psp AND account = c.account AND kind = 'payment' AND value = c.payment_id AND order_id IS NOT NULL
                LIMIT 1
            ) r";
        format!("{name} {}", order("r.order_id", condition))
    };
    let shown = "o.id AS order_id, o.view::text AS view, o.version, o.review_since, o.updated_at";
    let of_payment = |since: &str, condition: &str, order_condition: &str| {
        format!(
            "SELECT c.{since} AS since, c.payment_id AS id, c.account, c.psp, {shown}
             FROM checks c {}
             WHERE {condition} AND c.{since} <= $1 AND (c.{since}, c.payment_id, c.account, c.psp) > ($2, $3, $4, $5)
             ORDER BY c.{since}, c.payment_id, c.account, c.psp
             LIMIT $6",
            order_of_payment(order_condition)
        )
    };
    match reason {
        Reason::CredentialsRefused | Reason::NoAnswer => format!(
            "SELECT found.* FROM UNNEST($7::text[], $8::text[]) AS a(psp, account)
             CROSS JOIN LATERAL (({}) UNION ALL ({})) AS found
             ORDER BY since, id, account, psp
             LIMIT $6",
            of_payment("unanswered_since", "c.account = a.account AND c.psp = a.psp", ""),
            // It was to be asked about, and was not.
            of_payment("next_check_at", "c.account = a.account AND c.psp = a.psp AND c.unanswered_since IS NULL", "")
        ),
        Reason::UnknownToPsp => of_payment("missing_since", "c.missing_since IS NOT NULL", ""),
        Reason::NoMoney => of_payment("standing_since", DENIED, endless),
        Reason::CannotBeAsked => format!(
            "SELECT u.since, u.order_id AS id, u.account, u.psp, {shown}
             FROM unasked u {}
             WHERE u.since <= $1 AND (u.since, u.order_id, u.account, u.psp) > ($2, $3, $4, $5)
             ORDER BY u.since, u.order_id, u.account, u.psp
             LIMIT $6",
            order("u.order_id", endless)
        ),
    }
}

/// As the index has it: told twice, or not to be asked any more.
const DENIED: &str = "c.standing = 'open' AND (c.denied_before_at IS NOT NULL OR c.next_check_at IS NULL)";

pub(super) async fn unsettled(
    connection: &mut PgConnection,
    reason: Reason,
    accounts: &[AccountKey],
    before: Timestamp,
    after: Option<&UnsettledPlace>,
    limit: u32,
) -> Result<Vec<Unsettled>, StoreError> {
    let found = bound(sqlx::query(AssertSqlSafe(sql(reason))), (reason, accounts), before, after, limit);
    let found = found.fetch_all(connection).await.map_err(classify)?;
    found.iter().map(read_one).collect()
}

pub(super) async fn count(
    connection: &mut PgConnection,
    reason: Reason,
    accounts: &[AccountKey],
    before: Timestamp,
) -> Result<u32, StoreError> {
    // An order is held up by each of its payments, and counted once.
    let counted = format!("SELECT count(DISTINCT order_id) AS orders FROM ({}) AS found", sql(reason));
    let counted = bound(sqlx::query(AssertSqlSafe(counted)), (reason, accounts), before, None, UNSETTLED_COUNTED_MAX);
    let count: i64 = counted.fetch_one(connection).await.map_err(classify)?.try_get("orders").map_err(classify)?;
    Ok(u32::try_from(count).unwrap_or(UNSETTLED_COUNTED_MAX))
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bound<'q>(
    query: Query<'q>,
    (reason, accounts): (Reason, &'q [AccountKey]),
    before: Timestamp,
    after: Option<&'q UnsettledPlace>,
    limit: u32,
) -> Query<'q> {
    let query = query
        .bind(OffsetDateTime::from(before))
        .bind(OffsetDateTime::from(after.map_or(Timestamp::from_millis(i64::MIN), |place| place.since)))
        .bind(after.map_or("", |place| &*place.id))
        .bind(after.map_or("", |place| &*place.account.account))
        .bind(after.map_or("", |place| &*place.account.psp))
        .bind(i64::from(limit));
    if reason.is_of_account() {
        query.bind(array(accounts, |account| &*account.psp)).bind(array(accounts, |account| &*account.account))
    } else {
        query
    }
}

fn read_one(row: &PgRow) -> Result<Unsettled, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(classify);
    let account = AccountKey { psp: text("psp")?.into(), account: text("account")?.into() };
    let since: OffsetDateTime = row.try_get("since").map_err(classify)?;
    let order = rows::OrderColumns {
        id: text("order_id")?,
        view: text("view")?,
        version: row.try_get("version").map_err(classify)?,
        review_since: super::checks::moment(row, "review_since")?,
        updated_at: read::timestamp(row, "updated_at").map_err(classify)?,
    };
    Ok(Unsettled { place: UnsettledPlace { since: since.into(), id: text("id")?, account }, order: order.read()? })
}
