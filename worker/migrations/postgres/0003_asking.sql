-- How payments stand with their PSPs (checks), and how much a PSP may be asked (accounts).

-- What its PSP may still do with it, as worker/src/order/standing.rs names it; null: it has no order yet.
ALTER TABLE checks ADD COLUMN standing text;
ALTER TABLE checks ADD COLUMN standing_since timestamptz;
ALTER TABLE checks ADD COLUMN first_seen_at timestamptz;
-- The last look that the PSP answered, whatever it said.
ALTER TABLE checks ADD COLUMN answered_at timestamptz;
-- The last look that found no money captured or promised, and the one before it; null once a look finds some.
ALTER TABLE checks ADD COLUMN denied_at timestamptz;
ALTER TABLE checks ADD COLUMN denied_before_at timestamptz;
-- Since when every answer said that the PSP does not know it.
ALTER TABLE checks ADD COLUMN missing_since timestamptz;
-- Since when no look got an answer.
ALTER TABLE checks ADD COLUMN unanswered_since timestamptz;

-- The last hint that a look answered.
ALTER TABLE checks ADD COLUMN answered_seq bigint NOT NULL DEFAULT 0;

-- What is due at an account, oldest first: one that may not be asked now must not stand before the others.
DROP INDEX checks_due;
CREATE INDEX checks_due ON checks (account, psp, next_check_at) WHERE next_check_at IS NOT NULL;

-- One row an account, shared by all workers.
CREATE TABLE accounts (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    -- worker/src/manners.rs: how much it may be asked, and when.
    manners json,
    -- When the last webhook was taken, by the ingress's clock; written now and then.
    last_webhook_at timestamptz,
    PRIMARY KEY (psp, account)
) WITH (fillfactor = 50);
