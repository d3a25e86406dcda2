//! Rows for `COPY … FROM STDIN (FORMAT binary)`, for a table to which rows are only appended: the server adds them by the page,
//! each page with one record in its log, where an `INSERT` adds them one by one.

use paybell_shared::clock::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

/// Signature, no flags, no extension: the format's header.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// PostgreSQL's zero, 2000-01-01, in milliseconds of ours.
const ZERO_MS: i64 = 946_684_800_000;
const NULL: i32 = -1;

/// Rows of so many columns each. The columns of a row are added in the order in which the statement names them.
pub(super) struct Rows {
    bytes: Vec<u8>,
    columns: i16,
}

impl Rows {
    pub fn of(columns: i16) -> Self {
        Self { bytes: HEADER.to_vec(), columns }
    }

    /// Begins a row.
    pub fn row(&mut self) {
        self.bytes.extend(self.columns.to_be_bytes());
    }

    pub fn uuid(&mut self, uuid: Uuid) {
        self.bytes(uuid.as_bytes());
    }

    /// `timestamptz`, in microseconds.
    pub fn timestamp(&mut self, at: Timestamp) {
        self.bytes(&at.millis().saturating_sub(ZERO_MS).saturating_mul(1000).to_be_bytes());
    }

    /// `text` or `json`, which the server checks.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn bool(&mut self, bool: bool) {
        self.bytes(&[bool.into()]);
    }

    pub fn bigint(&mut self, bigint: i64) {
        self.bytes(&bigint.to_be_bytes());
    }

    /// A column that may be empty.
    pub fn or_null<T>(&mut self, value: Option<T>, column: fn(&mut Self, T)) {
        match value {
            Some(value) => column(self, value),
            None => self.bytes.extend(NULL.to_be_bytes()),
        }
    }

    /// `bytea`, and what else is there in binary.
    pub fn bytes(&mut self, bytes: &[u8]) {
        // One longer than a message of the protocol can be cannot come this far, and would be refused there.
        self.bytes.extend(i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_be_bytes());
        self.bytes.extend(bytes);
    }

    /// Runs the statement over the rows; how many were written. Where this is given up, the connection is of no use any more.
    pub async fn copy(mut self, connection: &mut PgConnection, statement: &'static str) -> Result<u64, sqlx::Error> {
        self.bytes.extend((-1_i16).to_be_bytes());
        let mut copy = connection.copy_in_raw(statement).await?;
        copy.send(self.bytes).await?;
        copy.finish().await
    }
}
