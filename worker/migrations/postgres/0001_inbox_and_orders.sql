-- The inbox (events, bodies), the orders that it amounts to, and what leads from one to the other.
--
-- Keys are compared byte by byte (COLLATE "C"): ids mean bytes, both backends page orders alike, and no upgrade of the
-- machine's locale can reorder an index. No foreign keys: whoever writes a row holds the locks that make it right
-- (worker/src/apply.rs), and their checks would lock orders once more for every event. JSON is json, not jsonb: it is read
-- whole, and jsonb refuses the \u0000 that a PSP may send inside a text. Indexes are few, because every event is an insert:
-- each one names its reader. Later migrations only add (N-1 works on N's schema).

-- One row. A restore renews the epoch, so that no marker in Redis outlives what it marks.
CREATE TABLE meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO meta DEFAULT VALUES;

-- The idempotency keys and what became of each. One plain table: a unique key of a partitioned one would have to hold the
-- time, and then the same event could be stored twice. The hour of the books is that of received_at.
CREATE TABLE events (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    event_type text NOT NULL,
    source text NOT NULL,
    -- The PaymentEvent; null where there is none (ignored, quarantined before translation).
    facts json,
    foreign_mode boolean NOT NULL,
    facts_sha256 bytea NOT NULL CHECK (octet_length(facts_sha256) = 32),
    mapping_version bigint NOT NULL,
    outcome text NOT NULL,
    reason text,
    fingerprint text,
    order_id text COLLATE "C",
    -- With received_at the key of its body; null for an answer of the PSP.
    body_id uuid,
    received_at timestamptz NOT NULL,
    -- When it got its outcome.
    applied_at timestamptz NOT NULL,
    PRIMARY KEY (psp, account, event_id)
);
-- An order's timeline, and its rebuilding from facts.
CREATE INDEX events_by_order ON events (order_id) WHERE order_id IS NOT NULL;

-- The exact bytes, for replay. In time partitions, because they go long before their keys do; the default one takes what
-- has no partition, so that no webhook is ever refused for its date.
CREATE TABLE bodies (
    id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    secret_name text NOT NULL,
    content_type text,
    -- [[name, value], …] in the adapter's order.
    headers json NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (id, received_at)
) PARTITION BY RANGE (received_at);
CREATE TABLE bodies_default PARTITION OF bodies DEFAULT;

-- What the facts amount to. Rows are rewritten with every fact, in place where the status stays: room is left for that
-- (HOT updates).
CREATE TABLE orders (
    id text COLLATE "C" PRIMARY KEY,
    status text COLLATE "C" NOT NULL,
    view json NOT NULL,
    registers json NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    review_since timestamptz,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 70);
-- Pages of one status, and the balance by an index-only scan.
CREATE INDEX orders_by_status ON orders (status, id);

-- The names of orders at the PSPs: the rows that serialise all who speak of a name. A row without an order is a name that
-- parked events wait under, or that was only looked at. The merchant's own ids (kind 'order') have neither PSP nor account.
CREATE TABLE refs (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    order_id text COLLATE "C",
    PRIMARY KEY (psp, account, kind, value)
) WITH (fillfactor = 80);

-- Which parked event waits under which names. Small: rows leave when their event wakes.
CREATE TABLE parkings (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    ref_psp text COLLATE "C" NOT NULL,
    ref_account text COLLATE "C" NOT NULL,
    ref_kind text COLLATE "C" NOT NULL,
    ref_value text COLLATE "C" NOT NULL,
    -- A woken event leaves by its key.
    PRIMARY KEY (psp, account, event_id, ref_psp, ref_account, ref_kind, ref_value)
);
-- Who waits under a name that now leads to an order.
CREATE INDEX parkings_by_ref ON parkings (ref_psp, ref_account, ref_kind, ref_value);

-- Every visible change of an order, with what it looked like after it. An order at version n has n of them: the key.
-- Identity values become visible out of order; a reader that must miss nothing reads up to the oldest transaction still
-- open (xid < pg_snapshot_xmin) and sorts by (xid, position).
CREATE TABLE transitions (
    order_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    -- What downstream deduplicates by.
    id uuid NOT NULL,
    from_status text,
    to_status text NOT NULL,
    at timestamptz NOT NULL,
    view json NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    position bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (order_id, version)
);

-- When to ask a PSP about a payment: one row each, so there is one outstanding request a payment.
CREATE TABLE checks (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    -- Null: nothing is left to ask.
    next_check_at timestamptz,
    lease_token uuid,
    lease_until timestamptz,
    -- Counts hints; a look answers only those that it had read when it began.
    hint_seq bigint NOT NULL DEFAULT 0,
    looks integer NOT NULL DEFAULT 0,
    last_result text,
    -- When the last look began.
    last_checked_at timestamptz,
    PRIMARY KEY (psp, account, payment_id)
) WITH (fillfactor = 80);
-- What is due, oldest first.
CREATE INDEX checks_due ON checks (next_check_at) WHERE next_check_at IS NOT NULL;

-- How many events of an hour ended how, kept in the transactions that decide it: they must equal a recount of events.
CREATE TABLE books (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (psp, account, hour, outcome)
) WITH (fillfactor = 50);
