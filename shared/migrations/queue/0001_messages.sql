-- One row a message: waiting for a consumer, for its next attempt, or, as a dead letter, for the operator.
CREATE TABLE messages (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    dead         INTEGER NOT NULL DEFAULT 0,
    -- Milliseconds since the epoch: not before.
    visible_at   INTEGER NOT NULL,
    attempt      INTEGER NOT NULL DEFAULT 1,
    -- The consumer that has it, 0: none.
    claimed      INTEGER NOT NULL DEFAULT 0,
    redelivered  INTEGER NOT NULL DEFAULT 0,
    reason       TEXT,
    message_id   TEXT NOT NULL,
    content_type TEXT,
    -- [[name, value], …]
    headers      TEXT NOT NULL,
    body         BLOB NOT NULL
);

CREATE INDEX messages_ready ON messages (dead, visible_at, id) WHERE claimed = 0;
CREATE INDEX messages_claimed ON messages (claimed) WHERE claimed <> 0;
