//! Changes in the order in which they were committed.

use super::Change;

/// A place in the stream of changes. On PostgreSQL a transaction and a place in it, because identities become visible out of
/// order; on SQLite, which has one writer, `xid` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub xid: u64,
    pub place: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positioned {
    pub position: Position,
    pub change: Change,
}
