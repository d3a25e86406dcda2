//! Proving invariant I11: the books balance, and every row is where the others say it is.
//!
//! The laws are said once, for both backends, over rows that come in the order of what they belong to: [`events`] walks the
//! inbox, [`orders`] everything about one order after the other, [`bodies`] the exact bytes, [`books`] the totals. So each row
//! is read once or twice, whatever their number, and no more than one order's small rows are held at a time. A backend
//! freezes the database (one snapshot) and hands out rows.

mod bodies;
mod books;
mod events;
mod orders;
mod row;

use std::collections::BTreeMap;

use paybell_shared::clock::Timestamp;
use serde::Serialize;
use sqlx::{PgConnection, SqliteConnection};

pub(super) use self::row::{Cell, Row};
use super::{Policy, StoreError};

/// Findings of one check that are listed; a broken disk would fill any report.
const LISTED_MAX: usize = 20;
/// Rows between two words of progress.
const PROGRESS_EVERY: u64 = 1000;

/// What the database's rows are held against, beside each other.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// By which the orders were judged, and payments got their first look.
    pub policy: &'a Policy,
    /// Since when the exact bytes must still be there; `None`: they need not be there at all.
    pub bodies_kept_since: Option<Timestamp>,
}

/// The books against the rows, in one snapshot (invariant I11).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Rows that were looked at, by table.
    pub looked_at: Vec<(&'static str, u64)>,
    /// The first of each check, up to a limit; sorted.
    pub findings: Vec<Finding>,
    /// Findings beyond those that are listed.
    pub unlisted: u64,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Which law does not hold, in words that do not change.
    pub check: &'static str,
    /// The row, by its key.
    pub key: String,
    pub problem: String,
}

impl AuditReport {
    /// No law is broken.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.findings.is_empty() && self.unlisted == 0
    }
}

/// A database as it was when its transaction began to read.
pub(super) enum Frozen<'a> {
    Postgres(&'a mut PgConnection),
    Sqlite(&'a mut SqliteConnection),
}

/// How a backend writes what the two write differently.
#[derive(Clone, Copy)]
enum Dialect {
    Postgres,
    Sqlite,
}

impl Frozen<'_> {
    const fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Hands out the rows of a statement one after the other, as they arrive. Its columns are texts, integers and bytes.
    async fn each(&mut self, sql: String, see: &mut (dyn FnMut(&Row) + Send)) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => super::postgres::audit_rows(connection, sql, see).await,
            Self::Sqlite(connection) => super::sqlite::audit_rows(connection, sql, see).await,
        }
    }
}

impl Dialect {
    /// A time as milliseconds since 1970 UTC.
    fn millis(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("CAST(floor(extract(epoch FROM {column}) * 1000) AS bigint)"),
            Self::Sqlite => column.to_owned(),
        }
    }

    /// Bytes as text.
    fn hex(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("encode({column}, 'hex')"),
            Self::Sqlite => format!("lower(hex({column}))"),
        }
    }

    /// An id of our own making as text, of 32 or 36 letters; null if it is.
    fn id(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("CAST({column} AS text)"),
            // `hex` of null is empty, not null.
            Self::Sqlite => format!("CASE WHEN {column} IS NOT NULL THEN hex({column}) END"),
        }
    }

    /// A list of texts as JSON.
    fn list(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("CAST(to_json({column}) AS text)"),
            Self::Sqlite => column.to_owned(),
        }
    }
}

/// What was found so far, and how far the audit is.
struct Audit<'a> {
    scope: Scope<'a>,
    listed: BTreeMap<&'static str, Vec<Finding>>,
    unlisted: u64,
    done: u64,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Send + Sync),
}

impl Audit<'_> {
    fn find(&mut self, check: &'static str, key: impl Into<String>, problem: impl Into<String>) {
        let listed = self.listed.entry(check).or_default();
        if listed.len() < LISTED_MAX {
            listed.push(Finding { check, key: key.into(), problem: problem.into() });
        } else {
            self.unlisted += 1;
        }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(self.done, self.total.max(self.done));
        }
    }
}

/// Every table that a law speaks of, and how often its rows are walked past.
const TABLES: [(&str, u64); 13] = [
    ("events", 3),
    ("parkings", 1),
    ("bodies", 1),
    ("orders", 1),
    ("refs", 1),
    ("transitions", 1),
    ("outbox", 1),
    ("notices", 1),
    ("actions", 1),
    ("unasked", 1),
    ("checks", 0),
    ("books", 0),
    ("meta", 0),
];

/// Holds every row against the others.
pub(super) async fn run(
    mut frozen: Frozen<'_>,
    scope: Scope<'_>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<AuditReport, StoreError> {
    let mut audit = Audit { scope, listed: BTreeMap::new(), unlisted: 0, done: 0, total: 0, progress };
    let mut looked_at = Vec::new();
    for (table, walks) in TABLES {
        let mut count = 0;
        frozen.each(format!("SELECT count(*) FROM {table}"), &mut |row| count = row.integer(0).unwrap_or_default()).await?;
        let count = u64::try_from(count).unwrap_or_default();
        audit.total += count * walks;
        looked_at.push((table, count));
    }
    if looked_at.iter().any(|(table, count)| *table == "meta" && *count != 1) {
        audit.find("epoch", "meta", "it has not exactly one row: markers in Redis may outlive what they mark");
    }
    progress(0, audit.total);
    books::walk(&mut frozen, &mut audit).await?;
    events::walk(&mut frozen, &mut audit).await?;
    orders::walk(&mut frozen, &mut audit).await?;
    bodies::walk(&mut frozen, &mut audit).await?;
    progress(audit.total, audit.total);
    let mut findings: Vec<Finding> = audit.listed.into_values().flatten().collect();
    findings.sort();
    Ok(AuditReport { looked_at, findings, unlisted: audit.unlisted })
}

/// One kind of rows among those of a walk: its sort keys, what kind it is, and its columns, filled up to the number that the
/// walk's widest kind has, so that all can stand in one `UNION ALL`.
fn arm(keys: &str, part: usize, texts: &[&str], integers: &[&str], (texts_max, integers_max): (usize, usize)) -> String {
    let filled = |given: &[&str], nothing: &str, max: usize| -> String {
        let columns = given.iter().copied().chain(std::iter::repeat(nothing)).take(max);
        columns.fold(String::new(), |columns, column| columns + ", " + column)
    };
    let texts = filled(texts, "CAST(NULL AS text)", texts_max);
    let integers = filled(integers, "CAST(NULL AS bigint)", integers_max);
    format!("SELECT {keys}, {part} AS part{texts}{integers}")
}
