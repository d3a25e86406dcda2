-- Who told first what became of payments (learned), orders whose time comes to an end (orders.due_at), and orders about which
-- nobody can be asked (unasked).

-- One row a payment, once it is decided; worker/src/apply/learning.rs says by what. Nearly all are written once.
CREATE TABLE learned (
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    payment_id text COLLATE "C" NOT NULL,
    -- It came to money; else it failed, was canceled or expired, and no money came so far.
    money boolean NOT NULL,
    -- When it was first decided; stays.
    learned_at timestamptz NOT NULL,
    -- The first webhook that said so, or that had the PSP asked, by the ingress's clock.
    webhook_at timestamptz,
    -- Asking told it, and no webhook had come by then.
    asked_at timestamptz,
    PRIMARY KEY (payment_id, account, psp),
    CHECK (webhook_at IS NOT NULL OR asked_at IS NOT NULL)
);
-- How many in a time, read from the index alone. Inserts go to one end of it.
CREATE INDEX learned_by_time ON learned (learned_at, account, psp);
-- The few that asking told first.
CREATE INDEX learned_by_asking ON learned (account, psp, asked_at) WHERE asked_at IS NOT NULL;

-- When somebody must see whether its time is over; null: it has no end, or has come to one. The first moment of all is said of
-- orders of earlier versions, and by the version before this one, which does not know the column: those are seen to at once.
ALTER TABLE orders ADD COLUMN due_at timestamptz DEFAULT '1970-01-01 00:00:00+00';
-- Only of orders that may still change by it, so that the many old ones are not in it.
CREATE INDEX orders_due ON orders (due_at)
    WHERE due_at IS NOT NULL AND status IN ('pending', 'failed', 'authorized', 'partially_paid');

-- Orders that wait for money, and no payment is known that its PSP could be asked about: only a webhook of this account can
-- tell. Rows go when one did.
CREATE TABLE unasked (
    order_id text COLLATE "C" PRIMARY KEY,
    psp text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    since timestamptz NOT NULL
);
-- The operator's list, oldest first.
CREATE INDEX unasked_by_time ON unasked (since, order_id);
-- How many since an account's last webhook.
CREATE INDEX unasked_by_account ON unasked (account, psp, since);

-- The first webhook that made us ask, since a look was last answered.
ALTER TABLE checks ADD COLUMN hinted_at timestamptz;
-- The operator's list, oldest first: unknown to the PSP, without an answer, without money.
CREATE INDEX checks_unknown ON checks (missing_since, payment_id) WHERE missing_since IS NOT NULL;
CREATE INDEX checks_unanswered ON checks (account, psp, unanswered_since) WHERE unanswered_since IS NOT NULL;
CREATE INDEX checks_denied ON checks (standing_since, payment_id)
    WHERE standing = 'open' AND (denied_before_at IS NOT NULL OR next_check_at IS NULL);
