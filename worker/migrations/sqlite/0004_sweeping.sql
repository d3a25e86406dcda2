-- How far the PSPs' lists are read: as in ../postgres.
CREATE TABLE sweeps (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    course TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    lease_token BLOB,
    lease_until INTEGER,
    PRIMARY KEY (psp, account)
) STRICT, WITHOUT ROWID;
