-- What one worker of many looks after now and then (watches): an account's registered endpoint, the canary.

CREATE TABLE watches (
    -- As worker/src/store/watch.rs names it.
    kind text COLLATE "C" NOT NULL,
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    -- Null: it was never looked after.
    next_at timestamptz,
    lease_token uuid,
    lease_until timestamptz,
    -- What was found last, as its kind writes it. Holds no secret.
    state json,
    PRIMARY KEY (kind, psp, account)
) WITH (fillfactor = 50);
