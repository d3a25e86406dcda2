-- Messages that nobody could apply (dead_letters): as in ../postgres.

CREATE TABLE dead_letters (
    id BLOB PRIMARY KEY,
    message_id TEXT NOT NULL,
    envelope TEXT NOT NULL,
    body BLOB NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT NOT NULL,
    died_at INTEGER NOT NULL,
    decided TEXT,
    decided_at INTEGER,
    decided_by TEXT,
    note TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX dead_letters_waiting ON dead_letters (died_at, id) WHERE decided IS NULL;
