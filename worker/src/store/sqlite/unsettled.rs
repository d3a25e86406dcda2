//! The operator's list: found by what is wrong, along an index of that, and then held against the order.

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection, query};

use super::checks::moment;
use super::{classify, read};
use crate::order::AccountKey;
use crate::store::rows::{self, OPEN};
use crate::store::{Reason, StoreError, UNSETTLED_COUNTED_MAX, Unsettled, UnsettledPlace};

/// Of one account (`?1`, `?2`), where the reason is an account's; since before `?3`, behind a place (`?4` to `?7`), so many (`?8`).
fn sql(reason: Reason) -> String {
    let shown = "o.id AS order_id, o.view AS view, o.version AS version, o.review_since AS review_since,
        o.updated_at AS updated_at";
    // One that has an end comes to it by itself.
    let endless = "AND o.due_at IS NULL";
    let of_payment = |since: &str, condition: &str, order_condition: &str| {
        format!(
            "SELECT c.{since} AS since, c.payment_id AS id, c.account AS account, c.psp AS psp, {shown}
             FROM checks c
             JOIN refs r ON r.psp = c.psp AND r.account = c.account AND r.kind = 'payment' AND r.value = c.payment_id
             JOIN orders o ON o.id = r.order_id AND o.status IN {OPEN} {order_condition}
             WHERE {condition} AND c.{since} <= ?3 AND (c.{since}, c.payment_id, c.account, c.psp) > (?4, ?5, ?6, ?7)"
        )
    };
    let of_account = "c.account = ?1 AND c.psp = ?2";
    let all = match reason {
        Reason::CredentialsRefused | Reason::NoAnswer => {
            let unanswered = of_payment("unanswered_since", of_account, "");
            // It was to be asked about, and was not.
            let waiting = of_payment("next_check_at", &format!("{of_account} AND c.unanswered_since IS NULL"), "");
            format!("{unanswered} UNION ALL {waiting}")
        }
        Reason::UnknownToPsp => of_payment("missing_since", "c.missing_since IS NOT NULL", ""),
        Reason::NoMoney => of_payment("standing_since", DENIED, endless),
        Reason::CannotBeAsked => format!(
            "SELECT u.since AS since, u.order_id AS id, u.account AS account, u.psp AS psp, {shown}
             FROM unasked u JOIN orders o ON o.id = u.order_id AND o.status IN {OPEN} {endless}
             WHERE u.since <= ?3 AND (u.since, u.order_id, u.account, u.psp) > (?4, ?5, ?6, ?7)"
        ),
    };
    format!("SELECT * FROM ({all}) ORDER BY since, id, account, psp LIMIT ?8")
}

/// As the index has it: told twice, or not to be asked any more.
const DENIED: &str = "c.standing = 'open' AND (c.denied_before_at IS NOT NULL OR c.next_check_at IS NULL)";

pub(super) async fn unsettled(
    connection: &mut SqliteConnection,
    reason: Reason,
    accounts: &[AccountKey],
    before: Timestamp,
    after: Option<&UnsettledPlace>,
    limit: u32,
) -> Result<Vec<Unsettled>, StoreError> {
    let of_any = [None];
    let of_each: Vec<Option<&AccountKey>> = accounts.iter().map(Some).collect();
    let mut found = Vec::new();
    for account in if reason.is_of_account() { &of_each[..] } else { &of_any } {
        let rows = query(AssertSqlSafe(sql(reason)))
            .bind(account.map(|account| &*account.account))
            .bind(account.map(|account| &*account.psp))
            .bind(before.millis())
            .bind(after.map_or(i64::MIN, |place| place.since.millis()))
            .bind(after.map_or("", |place| &*place.id))
            .bind(after.map_or("", |place| &*place.account.account))
            .bind(after.map_or("", |place| &*place.account.psp))
            .bind(limit)
            .fetch_all(&mut *connection)
            .await
            .map_err(classify)?;
        found.extend(rows.iter().map(read_one).collect::<Result<Vec<_>, _>>()?);
    }
    found.sort_by(|one, other| key(&one.place).cmp(&key(&other.place)));
    found.truncate(limit as usize);
    Ok(found)
}

pub(super) async fn count(
    connection: &mut SqliteConnection,
    reason: Reason,
    accounts: &[AccountKey],
    before: Timestamp,
) -> Result<u32, StoreError> {
    let found = unsettled(connection, reason, accounts, before, None, UNSETTLED_COUNTED_MAX).await?;
    // An order is held up by each of its payments, and counted once.
    let orders: std::collections::BTreeSet<&str> = found.iter().map(|unsettled| &*unsettled.order.id).collect();
    Ok(u32::try_from(orders.len()).unwrap_or(UNSETTLED_COUNTED_MAX))
}

/// As SQL sorts them.
fn key(place: &UnsettledPlace) -> (Timestamp, &str, &str, &str) {
    (place.since, &place.id, &place.account.account, &place.account.psp)
}

fn read_one(row: &SqliteRow) -> Result<Unsettled, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(classify);
    let account = AccountKey { psp: text("psp")?.into(), account: text("account")?.into() };
    let order = rows::OrderColumns {
        id: text("order_id")?,
        view: text("view")?,
        version: row.try_get("version").map_err(classify)?,
        review_since: moment(row, "review_since")?,
        updated_at: read::timestamp(row, "updated_at").map_err(classify)?,
    };
    let since = read::timestamp(row, "since").map_err(classify)?;
    Ok(Unsettled { place: UnsettledPlace { since, id: text("id")?, account }, order: order.read()? })
}
