//! What an audit finds.

use serde::Serialize;

/// The books against the rows, in one snapshot (invariant I11).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Rows that were looked at, by table.
    pub looked_at: Vec<(&'static str, u64)>,
    /// The first of each check, up to a limit.
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
