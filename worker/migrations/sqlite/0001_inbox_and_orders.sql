-- The inbox (events, bodies), the orders that it amounts to, and what leads from one to the other: the same tables as in
-- ../postgres, where each is explained. What differs: one writer at a time, so no row has to exist to be locked; times are
-- integer milliseconds since 1970 UTC; ids of our own making are 16 bytes; positions are commit-ordered by themselves;
-- tables whose key is most of the row keep it once (WITHOUT ROWID). STRICT, so that a column holds what it says.

CREATE TABLE meta (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch BLOB NOT NULL CHECK (length(epoch) = 16)
) STRICT;
INSERT INTO meta (only_row, epoch) VALUES (1, randomblob(16));

CREATE TABLE events (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    source TEXT NOT NULL,
    facts TEXT,
    foreign_mode INTEGER NOT NULL,
    facts_sha256 BLOB NOT NULL CHECK (length(facts_sha256) = 32),
    mapping_version INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT,
    fingerprint TEXT,
    order_id TEXT,
    body_id BLOB,
    received_at INTEGER NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (psp, account, event_id)
) STRICT;
CREATE INDEX events_by_order ON events (order_id) WHERE order_id IS NOT NULL;

CREATE TABLE bodies (
    id BLOB PRIMARY KEY,
    received_at INTEGER NOT NULL,
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    webhook_id TEXT NOT NULL,
    secret_name TEXT NOT NULL,
    content_type TEXT,
    headers TEXT NOT NULL,
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    view TEXT NOT NULL,
    registers TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    review_since INTEGER,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX orders_by_status ON orders (status, id);

CREATE TABLE refs (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    order_id TEXT,
    PRIMARY KEY (psp, account, kind, value)
) STRICT, WITHOUT ROWID;

CREATE TABLE parkings (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    event_id TEXT NOT NULL,
    ref_psp TEXT NOT NULL,
    ref_account TEXT NOT NULL,
    ref_kind TEXT NOT NULL,
    ref_value TEXT NOT NULL,
    PRIMARY KEY (psp, account, event_id, ref_psp, ref_account, ref_kind, ref_value)
) STRICT, WITHOUT ROWID;
CREATE INDEX parkings_by_ref ON parkings (ref_psp, ref_account, ref_kind, ref_value);

CREATE TABLE transitions (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    order_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    id BLOB NOT NULL,
    from_status TEXT,
    to_status TEXT NOT NULL,
    at INTEGER NOT NULL,
    view TEXT NOT NULL,
    UNIQUE (order_id, version)
) STRICT;

CREATE TABLE checks (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    payment_id TEXT NOT NULL,
    next_check_at INTEGER,
    lease_token BLOB,
    lease_until INTEGER,
    hint_seq INTEGER NOT NULL DEFAULT 0,
    looks INTEGER NOT NULL DEFAULT 0,
    last_result TEXT,
    last_checked_at INTEGER,
    PRIMARY KEY (psp, account, payment_id)
) STRICT;
CREATE INDEX checks_due ON checks (next_check_at) WHERE next_check_at IS NOT NULL;

CREATE TABLE books (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    hour INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (psp, account, hour, outcome)
) STRICT, WITHOUT ROWID;
