//! Whose fault an error of PostgreSQL is, by its SQLSTATE (appendix A of its manual).

use crate::store::StoreError;
use crate::store::rows::inconsistent;

/// Serialisation failure, deadlock, lock time-out: another transaction was first, and the same work may win the next time.
const CONTENTION: [&str; 3] = ["40001", "40P01", "55P03"];

/// Classes of errors about the data itself: exceptions of data (22: a NUL in a text, a time out of range), violated
/// constraints (23), limits of a row or an index (54: a key of more than 2.7 kB).
const REFUSALS: [&str; 3] = ["22", "23", "54"];

/// Why a transaction did not get through.
#[derive(Debug)]
pub(super) enum Failure {
    /// Others were first: the same again.
    Lost,
    Store(StoreError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        match classify(error) {
            StoreError::Contended(_) => Self::Lost,
            error => Self::Store(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What is not known to be about the data is the database's own trouble: pausing loses nothing, refusing might.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(ref database) => {
            let code = database.code().unwrap_or_default();
            if CONTENTION.contains(&&*code) {
                StoreError::Contended(1)
            } else if code.get(..2).is_some_and(|class| REFUSALS.contains(&class)) {
                StoreError::Refused(error)
            } else {
                StoreError::Unavailable(error)
            }
        }
        sqlx::Error::Encode(_) => StoreError::Refused(error),
        sqlx::Error::ColumnDecode { index, source } => inconsistent("a query", "its column", index, source),
        sqlx::Error::Decode(source) => inconsistent("a query", "a column", "a row", source),
        sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnIndexOutOfBounds { .. } | sqlx::Error::RowNotFound => {
            inconsistent("a query", "its columns", "a row", error)
        }
        _ => StoreError::Unavailable(error),
    }
}

/// The database did not answer in time.
pub(super) fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}
