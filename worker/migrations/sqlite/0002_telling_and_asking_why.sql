-- What an order's change sets off (outbox, notices), what people did (actions), and what it takes to say why: as in
-- ../postgres.

ALTER TABLE events ADD COLUMN taken_at INTEGER;
ALTER TABLE events ADD COLUMN parked_at INTEGER;
ALTER TABLE events ADD COLUMN secret_name TEXT;
ALTER TABLE events ADD COLUMN order_version INTEGER;
CREATE INDEX events_parked ON events (received_at) WHERE outcome = 'parked';
CREATE INDEX events_by_time ON events (received_at);
CREATE INDEX events_by_fingerprint ON events (fingerprint) WHERE fingerprint IS NOT NULL;

CREATE INDEX bodies_by_time ON bodies (received_at, id);
ALTER TABLE bodies ADD COLUMN sha256 BLOB CHECK (length(sha256) = 32);

-- A JSON array of names.
ALTER TABLE transitions ADD COLUMN destinations TEXT;
ALTER TABLE transitions ADD COLUMN review_since INTEGER;

CREATE TABLE outbox (
    destination TEXT NOT NULL,
    order_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    at INTEGER NOT NULL,
    next_attempt_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    lease_token BLOB,
    PRIMARY KEY (destination, order_id, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (destination, next_attempt_at);

CREATE TABLE notices (
    order_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    destination TEXT NOT NULL,
    outcome TEXT NOT NULL,
    at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    last_error TEXT,
    PRIMARY KEY (order_id, version, destination)
) STRICT, WITHOUT ROWID;

CREATE TABLE actions (
    id BLOB PRIMARY KEY,
    order_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    operator TEXT NOT NULL,
    reason TEXT,
    at INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX actions_by_order ON actions (order_id);
