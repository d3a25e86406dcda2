-- How payments stand with their PSPs (checks), and how much a PSP may be asked (accounts): as in ../postgres.

ALTER TABLE checks ADD COLUMN standing TEXT;
ALTER TABLE checks ADD COLUMN standing_since INTEGER;
ALTER TABLE checks ADD COLUMN first_seen_at INTEGER;
ALTER TABLE checks ADD COLUMN answered_at INTEGER;
ALTER TABLE checks ADD COLUMN denied_at INTEGER;
ALTER TABLE checks ADD COLUMN denied_before_at INTEGER;
ALTER TABLE checks ADD COLUMN missing_since INTEGER;
ALTER TABLE checks ADD COLUMN unanswered_since INTEGER;
ALTER TABLE checks ADD COLUMN answered_seq INTEGER NOT NULL DEFAULT 0;

DROP INDEX checks_due;
CREATE INDEX checks_due ON checks (account, psp, next_check_at) WHERE next_check_at IS NOT NULL;

CREATE TABLE accounts (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    manners TEXT,
    last_webhook_at INTEGER,
    PRIMARY KEY (psp, account)
) STRICT, WITHOUT ROWID;
