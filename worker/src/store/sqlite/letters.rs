//! Dead letters.

use paybell_shared::clock::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::classify;
use crate::store::letters::{self, Envelope};
use crate::store::{DeadLetter, Decided, LETTERS_COUNTED_MAX, LetterDecision, LetterHead, StoreError, rows};

/// One that is there and was decided on has died again, or comes again: it waits anew.
const BURY: &str = "\
    INSERT INTO dead_letters (id, message_id, envelope, body, attempts, reason, died_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (id) DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, died_at = excluded.died_at,
        decided = NULL, decided_at = NULL, decided_by = NULL, note = NULL";

const HEAD: &str = "\
    SELECT id, message_id, length(body) AS body_bytes, attempts, reason, died_at, decided, decided_at, decided_by, note
    FROM dead_letters";

pub(super) async fn bury(connection: &mut SqliteConnection, letters: &[&DeadLetter]) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
    for letter in letters {
        sqlx::query(BURY)
            .bind(letter.id())
            .bind(letters::text(&letter.message.id))
            .bind(rows::to_json(&Envelope::of(&letter.message))?)
            .bind(&letter.message.body[..])
            .bind(letter.attempts)
            .bind(letters::text(&letter.reason))
            .bind(letter.died_at.millis())
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)
}

pub(super) async fn waiting(
    connection: &mut SqliteConnection,
    after: Option<(Timestamp, Uuid)>,
    limit: u32,
) -> Result<Vec<LetterHead>, StoreError> {
    let (at, id) = after.map_or((None, None), |(at, id)| (Some(at.millis()), Some(id)));
    let sql = sqlx::AssertSqlSafe(format!(
        "{HEAD} WHERE decided IS NULL AND (?1 IS NULL OR (died_at, id) > (?1, ?2)) ORDER BY died_at, id LIMIT ?3"
    ));
    let found = sqlx::query(sql).bind(at).bind(id).bind(limit).fetch_all(connection).await.map_err(classify)?;
    found.iter().map(head).collect()
}

pub(super) async fn one(connection: &mut SqliteConnection, id: Uuid) -> Result<Option<LetterHead>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{HEAD} WHERE id = ?1"));
    let found = sqlx::query(sql).bind(id).fetch_optional(connection).await.map_err(classify)?;
    found.as_ref().map(head).transpose()
}

pub(super) async fn whole(connection: &mut SqliteConnection, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
    let sql = "SELECT envelope, body, attempts, reason, died_at FROM dead_letters WHERE id = ?1";
    let Some(row) = sqlx::query(sql).bind(id).fetch_optional(connection).await.map_err(classify)? else { return Ok(None) };
    let envelope: Envelope =
        rows::from_json(row.try_get("envelope").map_err(classify)?, "dead_letters", "envelope", &id.to_string())?;
    Ok(Some(DeadLetter {
        message: envelope.with(row.try_get("body").map_err(classify)?),
        attempts: row.try_get("attempts").map_err(classify)?,
        reason: row.try_get("reason").map_err(classify)?,
        died_at: Timestamp::from_millis(row.try_get("died_at").map_err(classify)?),
    }))
}

pub(super) async fn decide(connection: &mut SqliteConnection, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError> {
    let decided = sqlx::query(
        "UPDATE dead_letters SET decided = ?2, decided_at = ?3, decided_by = ?4, note = ?5 WHERE id = ?1 AND decided IS NULL",
    );
    let decided = decided.bind(id).bind(decision.decided.as_str()).bind(decision.at.millis());
    let decided = decided.bind(&decision.operator).bind(&decision.note).execute(connection).await.map_err(classify)?;
    Ok(decided.rows_affected() == 1)
}

pub(super) async fn count(connection: &mut SqliteConnection) -> Result<u32, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE decided IS NULL LIMIT ?1)";
    sqlx::query_scalar(sql).bind(LETTERS_COUNTED_MAX).fetch_one(connection).await.map_err(classify)
}

fn head(row: &SqliteRow) -> Result<LetterHead, StoreError> {
    let id: Uuid = row.try_get("id").map_err(classify)?;
    let decided: Option<String> = row.try_get("decided").map_err(classify)?;
    let decision = match decided {
        None => None,
        Some(text) => Some(LetterDecision {
            decided: Decided::parse(&text).ok_or_else(|| rows::inconsistent("dead_letters", "decided", id, &text))?,
            at: Timestamp::from_millis(row.try_get("decided_at").map_err(classify)?),
            operator: row.try_get::<Option<String>, _>("decided_by").map_err(classify)?.unwrap_or_default(),
            note: row.try_get::<Option<String>, _>("note").map_err(classify)?.unwrap_or_default(),
        }),
    };
    Ok(LetterHead {
        id,
        message_id: row.try_get("message_id").map_err(classify)?,
        attempts: row.try_get("attempts").map_err(classify)?,
        reason: row.try_get("reason").map_err(classify)?,
        died_at: Timestamp::from_millis(row.try_get("died_at").map_err(classify)?),
        body_bytes: u64::try_from(row.try_get::<i64, _>("body_bytes").map_err(classify)?).unwrap_or_default(),
        decision,
    })
}
