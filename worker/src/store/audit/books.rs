//! The totals that were kept beside the events, against a recount.

use paybell_shared::clock::Timestamp;

use super::{Audit, Dialect, Frozen, StoreError};

pub(super) async fn walk(frozen: &mut Frozen<'_>, audit: &mut Audit<'_>) -> Result<(), StoreError> {
    let sql = sql(frozen.dialect());
    frozen
        .each(sql, &mut |row| {
            let (account, outcome) = (format_args!("{}/{}", row.key(0), row.key(1)).to_string(), row.key(3));
            let hour = Timestamp::from_millis(row.integer(2).unwrap_or_default());
            let (books, recount) = (row.integer(4).unwrap_or_default(), row.integer(5).unwrap_or_default());
            let key = format!("{account} {hour} {outcome}");
            audit.find("books", key, format!("the books say {books} events, a recount finds {recount}"));
        })
        .await
}

/// Lines that differ. The hour of an event is that of its arrival, in UTC, also before 1970.
fn sql(dialect: Dialect) -> String {
    let received_at = dialect.millis("received_at");
    let hour = dialect.millis("hour");
    format!(
        "SELECT coalesce(b.psp, r.psp) AS psp, coalesce(b.account, r.account) AS account, coalesce(b.hour, r.hour) AS hour,
             coalesce(b.outcome, r.outcome) AS outcome, coalesce(b.count, 0) AS kept, coalesce(r.count, 0) AS recount
         FROM (SELECT psp, account, {hour} AS hour, outcome, count FROM books) b
         FULL JOIN (
             SELECT psp, account, ms - ((ms % 3600000 + 3600000) % 3600000) AS hour, outcome, count(*) AS count
             FROM (SELECT psp, account, {received_at} AS ms, outcome FROM events) e
             GROUP BY psp, account, ms - ((ms % 3600000 + 3600000) % 3600000), outcome
         ) r ON r.psp = b.psp AND r.account = b.account AND r.hour = b.hour AND r.outcome = b.outcome
         WHERE coalesce(b.count, 0) <> coalesce(r.count, 0)
         ORDER BY psp, account, hour, outcome"
    )
}
