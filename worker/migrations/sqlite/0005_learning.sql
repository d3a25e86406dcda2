-- Who told first what became of payments (learned), orders whose time comes to an end (orders.due_at), and orders about which
-- nobody can be asked (unasked): as in ../postgres.

CREATE TABLE learned (
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    payment_id TEXT NOT NULL,
    money INTEGER NOT NULL,
    learned_at INTEGER NOT NULL,
    webhook_at INTEGER,
    asked_at INTEGER,
    PRIMARY KEY (payment_id, account, psp),
    CHECK (webhook_at IS NOT NULL OR asked_at IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX learned_by_time ON learned (learned_at, account, psp);
CREATE INDEX learned_by_asking ON learned (account, psp, asked_at) WHERE asked_at IS NOT NULL;

ALTER TABLE orders ADD COLUMN due_at INTEGER DEFAULT 0;
CREATE INDEX orders_due ON orders (due_at)
    WHERE due_at IS NOT NULL AND status IN ('pending', 'failed', 'authorized', 'partially_paid');

CREATE TABLE unasked (
    order_id TEXT NOT NULL PRIMARY KEY,
    psp TEXT NOT NULL,
    account TEXT NOT NULL,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX unasked_by_time ON unasked (since, order_id);
CREATE INDEX unasked_by_account ON unasked (account, psp, since);

ALTER TABLE checks ADD COLUMN hinted_at INTEGER;
CREATE INDEX checks_unknown ON checks (missing_since, payment_id) WHERE missing_since IS NOT NULL;
CREATE INDEX checks_unanswered ON checks (account, psp, unanswered_since) WHERE unanswered_since IS NOT NULL;
CREATE INDEX checks_denied ON checks (standing_since, payment_id)
    WHERE standing = 'open' AND (denied_before_at IS NOT NULL OR next_check_at IS NULL);
