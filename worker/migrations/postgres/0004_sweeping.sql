-- How far the PSPs' lists are read: one row an account, shared by all workers.
CREATE TABLE sweeps (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    -- worker/src/sweep/course.rs: what was read, and the page that comes next.
    course json NOT NULL,
    -- When that is to be asked for.
    due_at timestamptz NOT NULL,
    lease_token uuid,
    lease_until timestamptz,
    PRIMARY KEY (psp, account)
) WITH (fillfactor = 50);
