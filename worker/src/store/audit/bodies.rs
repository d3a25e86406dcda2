//! A body that should be kept is, whole, and belongs to an event.

use paybell_shared::clock::Timestamp;

use super::{Audit, Dialect, Frozen, Row, StoreError, arm};
use crate::store::rows::{BodyColumns, body_sha256};

const BODY: usize = 0;
const EVENT: usize = 1;

pub(super) async fn walk(frozen: &mut Frozen<'_>, audit: &mut Audit<'_>) -> Result<(), StoreError> {
    let mut group: Option<Group> = None;
    let sql = sql(frozen.dialect());
    frozen
        .each(sql, &mut |row| {
            audit.step();
            let (received_at, id) = (Timestamp::from_millis(row.integer(0).unwrap_or_default()), row.key(1));
            if group.as_ref().is_none_or(|group| group.received_at != received_at || group.id != id) {
                let next = Group { received_at, id: id.to_owned(), body: None, has_event: false };
                if let Some(ended) = group.replace(next) {
                    ended.end(audit);
                }
            }
            let Some(group) = &mut group else { return };
            match row.part(2) {
                BODY => group.body(row, audit),
                _ => group.event(row, audit),
            }
        })
        .await?;
    if let Some(last) = group {
        last.end(audit);
    }
    Ok(())
}

fn sql(dialect: Dialect) -> String {
    let sha256 = format!("CASE WHEN sha256 IS NOT NULL THEN {} END", dialect.hex("sha256"));
    let texts = ["psp", "account", "webhook_id", "secret_name", "content_type", "CAST(headers AS text) AS headers", &sha256];
    let width = (texts.len(), 1);
    let bodies = arm("received_at, id", BODY, &texts, &["CAST(NULL AS bigint) AS taken_at"], width);
    let texts = ["psp", "account", "event_id", "secret_name"];
    let events = arm("received_at, body_id", EVENT, &texts, &[&dialect.millis("taken_at")], width);
    let nothing = match dialect {
        Dialect::Postgres => "CAST(NULL AS bytea)",
        Dialect::Sqlite => "NULL",
    };
    let names = "psp, account, name, secret_name, content_type, headers, sha256, taken_at, bytes";
    // In the order of the bodies' own key, so that the bytes need not be sorted.
    format!(
        "WITH w (received_at, id, part, {names}) AS (
             {bodies}, bytes FROM bodies UNION ALL {events}, {nothing} FROM events WHERE body_id IS NOT NULL
         ) SELECT {}, {}, part, {names} FROM w ORDER BY received_at, id, part",
        dialect.millis("received_at"),
        dialect.id("id"),
    )
}

/// A place for a body, and who says that it has one.
struct Group {
    received_at: Timestamp,
    id: String,
    body: Option<Kept>,
    has_event: bool,
}

struct Kept {
    psp: String,
    account: String,
    secret_name: String,
    has_digest: bool,
}

impl Group {
    fn key(&self) -> String {
        format!("body {} of {}", uuid::Uuid::parse_str(&self.id).unwrap_or_default(), self.received_at)
    }

    fn body(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let digest = row.text(9);
        let columns = BodyColumns {
            psp: row.key(3),
            account: row.key(4),
            webhook_id: row.key(5),
            received_at: self.received_at,
            content_type: row.text(7),
            headers: row.key(8),
            bytes: row.bytes(11).unwrap_or_default(),
        };
        let sha256 = body_sha256(&columns).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        if digest.is_some_and(|digest| digest != sha256) {
            audit.find("body", self.key(), "it is not what was received: bytes, headers or columns differ from its hash");
        }
        self.body = Some(Kept {
            psp: columns.psp.to_owned(),
            account: columns.account.to_owned(),
            secret_name: row.key(6).to_owned(),
            has_digest: digest.is_some(),
        });
    }

    fn event(&mut self, row: &Row, audit: &mut Audit<'_>) {
        self.has_event = true;
        let (psp, account) = (row.key(3), row.key(4));
        let key = format!("{psp}/{account}/{}", row.key(5));
        let Some(body) = &self.body else {
            if audit.scope.bodies_kept_since.is_some_and(|since| self.received_at >= since) {
                audit.find("body", key, format!("its {} is not there", self.key()));
            }
            return;
        };
        // Rows of version 1 were written without these.
        let is_of_now = row.integer(10).is_some();
        for (fits, problem) in [
            (body.psp == psp && body.account == account, "is another account's"),
            (!is_of_now || row.text(6) == Some(&*body.secret_name), "was proven by another secret"),
            (!is_of_now || body.has_digest, "has no hash"),
        ] {
            if !fits {
                audit.find("body", &key, format!("its {} {problem}", self.key()));
            }
        }
    }

    fn end(self, audit: &mut Audit<'_>) {
        if self.body.is_some() && !self.has_event {
            audit.find("body", self.key(), "it belongs to no event");
        }
    }
}
