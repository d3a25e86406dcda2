-- What one worker of many looks after now and then (watches): as in ../postgres.

CREATE TABLE watches (
    kind TEXT NOT NULL,
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    next_at INTEGER,
    lease_token BLOB,
    lease_until INTEGER,
    state TEXT,
    PRIMARY KEY (kind, psp, account)
) STRICT, WITHOUT ROWID;
