-- What an order's change sets off (outbox, notices), what people did (actions), and what it takes to say why.

-- When the worker took it from the queue or read it in an answer; null in rows of version 1.
ALTER TABLE events ADD COLUMN taken_at timestamptz;
-- Since when it waited for its order; stays when it woke.
ALTER TABLE events ADD COLUMN parked_at timestamptz;
-- The name of the secret that proved it: outlives the body.
ALTER TABLE events ADD COLUMN secret_name text;
-- The version at which its order stood after it.
ALTER TABLE events ADD COLUMN order_version bigint;
-- Parked ones by their age: who waits too long.
CREATE INDEX events_parked ON events (received_at) WHERE outcome = 'parked';
-- The events of a body, which has the same time. Inserts go to one end of it.
CREATE INDEX events_by_time ON events (received_at);
-- Replay of one cause.
CREATE INDEX events_by_fingerprint ON events (fingerprint) WHERE fingerprint IS NOT NULL;

-- What tells rows apart comes first: nearly all are of the same few accounts, and a search down the tree compared those ahead
-- of each id (a sixth of the server's work under load). Nobody reads by account.
ALTER TABLE events DROP CONSTRAINT events_pkey;
ALTER TABLE events ADD PRIMARY KEY (event_id, account, psp);
ALTER TABLE refs DROP CONSTRAINT refs_pkey;
ALTER TABLE refs ADD PRIMARY KEY (value, kind, account, psp);
ALTER TABLE checks DROP CONSTRAINT checks_pkey;
ALTER TABLE checks ADD PRIMARY KEY (payment_id, account, psp);

-- By time first: inserts go to one end of the index, and a replay reads a range.
ALTER TABLE bodies DROP CONSTRAINT bodies_pkey;
ALTER TABLE bodies ADD PRIMARY KEY (received_at, id);

-- Over everything that a replay reads: an altered byte is found. Null in rows of version 1.
ALTER TABLE bodies ADD COLUMN sha256 bytea CHECK (octet_length(sha256) = 32);

-- The stream: see transitions in version 1.
CREATE INDEX transitions_by_position ON transitions (xid, position);
-- Whom this change was to be told to, when it was made.
ALTER TABLE transitions ADD COLUMN destinations text[];
ALTER TABLE transitions ADD COLUMN review_since timestamptz;

-- What is still to be told: one row a change and destination; the content is the transition's. A row goes when it is told
-- or given up, in the transaction that writes its notice, so this table is as small as the backlog.
CREATE TABLE outbox (
    destination text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    -- When the change was made.
    at timestamptz NOT NULL,
    -- Not to be touched before: when the next attempt is due; under a lease, when that ends; behind a lower version of its
    -- order that was found unsent, when that one is due.
    next_attempt_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    lease_token uuid,
    -- An order's lowest version at a destination goes first.
    PRIMARY KEY (order_id, destination, version)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX outbox_due ON outbox (destination, next_attempt_at);

-- What was told, or given up after the last attempt.
CREATE TABLE notices (
    order_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    destination text COLLATE "C" NOT NULL,
    outcome text NOT NULL,
    at timestamptz NOT NULL,
    attempts integer NOT NULL,
    last_error text,
    PRIMARY KEY (order_id, version, destination)
);

-- What the shop and operators did to an order: registered, reviewed, replayed.
CREATE TABLE actions (
    id uuid PRIMARY KEY,
    order_id text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    -- The name of the API token, or of the operator at the command line.
    operator text NOT NULL,
    reason text,
    at timestamptz NOT NULL,
    detail json NOT NULL
);
CREATE INDEX actions_by_order ON actions (order_id);
