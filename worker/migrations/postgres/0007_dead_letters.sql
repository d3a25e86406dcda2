-- Messages that nobody could apply (dead_letters): exactly as the queue held them, until somebody decides, and after it.

CREATE TABLE dead_letters (
    -- Of its id and its body: the same however often it comes.
    id uuid PRIMARY KEY,
    message_id text NOT NULL,
    -- Its id, content type and headers, exactly.
    envelope json NOT NULL,
    body bytea NOT NULL,
    attempts integer NOT NULL,
    -- Why it died; the last time, if more than once.
    reason text NOT NULL,
    died_at timestamptz NOT NULL,
    -- Null: it waits for somebody. 'replayed', 'discarded'.
    decided text COLLATE "C",
    decided_at timestamptz,
    decided_by text,
    note text
);
CREATE INDEX dead_letters_waiting ON dead_letters (died_at, id) WHERE decided IS NULL;
