//! Dead letters.

use paybell_shared::clock::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::checks::moment;
use super::errors::classify;
use super::write::array;
use crate::store::letters::{self, Envelope};
use crate::store::{DeadLetter, Decided, LETTERS_COUNTED_MAX, LetterDecision, LetterHead, StoreError, rows};

/// One that is there and was decided on has died again, or comes again: it waits anew.
const BURY: &str = "\
    INSERT INTO dead_letters (id, message_id, envelope, body, attempts, reason, died_at)
    SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::json[], $4::bytea[], $5::integer[], $6::text[], $7::timestamptz[])
    ON CONFLICT (id) DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, died_at = excluded.died_at,
        decided = NULL, decided_at = NULL, decided_by = NULL, note = NULL";

const HEAD: &str = "\
    SELECT id, message_id, octet_length(body)::bigint AS body_bytes, attempts, reason, died_at, decided, decided_at, decided_by, note
    FROM dead_letters";

/// `letters`: no two of one id.
pub(super) async fn bury(connection: &mut PgConnection, letters: &[&DeadLetter]) -> Result<(), StoreError> {
    let envelopes = letters.iter().map(|letter| rows::to_json(&Envelope::of(&letter.message)));
    sqlx::query(BURY)
        .bind(array(letters, |letter| letter.id()))
        .bind(array(letters, |letter| letters::text(&letter.message.id)))
        .bind(envelopes.collect::<Result<Vec<_>, _>>()?)
        .bind(array(letters, |letter| letter.message.body.to_vec()))
        .bind(array(letters, |letter| i32::try_from(letter.attempts).unwrap_or(i32::MAX)))
        .bind(array(letters, |letter| letters::text(&letter.reason)))
        .bind(array(letters, |letter| OffsetDateTime::from(letter.died_at)))
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

pub(super) async fn waiting(
    connection: &mut PgConnection,
    after: Option<(Timestamp, Uuid)>,
    limit: u32,
) -> Result<Vec<LetterHead>, StoreError> {
    let (at, id) = after.map_or((None, None), |(at, id)| (Some(OffsetDateTime::from(at)), Some(id)));
    let sql = sqlx::AssertSqlSafe(format!(
        "{HEAD} WHERE decided IS NULL AND ($1::timestamptz IS NULL OR (died_at, id) > ($1, $2::uuid)) ORDER BY died_at, id LIMIT $3"
    ));
    let found = sqlx::query(sql).bind(at).bind(id).bind(i64::from(limit)).fetch_all(connection).await.map_err(classify)?;
    found.iter().map(head).collect()
}

pub(super) async fn one(connection: &mut PgConnection, id: Uuid) -> Result<Option<LetterHead>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{HEAD} WHERE id = $1"));
    let found = sqlx::query(sql).bind(id).fetch_optional(connection).await.map_err(classify)?;
    found.as_ref().map(head).transpose()
}

pub(super) async fn whole(connection: &mut PgConnection, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
    let sql = "SELECT envelope::text AS envelope, body, attempts, reason, died_at FROM dead_letters WHERE id = $1";
    let Some(row) = sqlx::query(sql).bind(id).fetch_optional(connection).await.map_err(classify)? else { return Ok(None) };
    let envelope: Envelope =
        rows::from_json(row.try_get("envelope").map_err(classify)?, "dead_letters", "envelope", &id.to_string())?;
    Ok(Some(DeadLetter {
        message: envelope.with(row.try_get("body").map_err(classify)?),
        attempts: attempts(&row)?,
        reason: row.try_get("reason").map_err(classify)?,
        died_at: Timestamp::from(row.try_get::<OffsetDateTime, _>("died_at").map_err(classify)?),
    }))
}

pub(super) async fn decide(connection: &mut PgConnection, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError> {
    let decided = sqlx::query(
        "UPDATE dead_letters SET decided = $2, decided_at = $3, decided_by = $4, note = $5 WHERE id = $1 AND decided IS NULL",
    );
    let decided = decided.bind(id).bind(decision.decided.as_str()).bind(OffsetDateTime::from(decision.at));
    let decided = decided.bind(&decision.operator).bind(&decision.note).execute(connection).await.map_err(classify)?;
    Ok(decided.rows_affected() == 1)
}

pub(super) async fn count(connection: &mut PgConnection) -> Result<u32, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE decided IS NULL ORDER BY died_at, id LIMIT $1) AS waiting";
    let count: i64 =
        sqlx::query_scalar(sql).bind(i64::from(LETTERS_COUNTED_MAX)).fetch_one(connection).await.map_err(classify)?;
    Ok(u32::try_from(count).unwrap_or(LETTERS_COUNTED_MAX))
}

fn attempts(row: &PgRow) -> Result<u32, StoreError> {
    Ok(u32::try_from(row.try_get::<i32, _>("attempts").map_err(classify)?).unwrap_or_default())
}

fn head(row: &PgRow) -> Result<LetterHead, StoreError> {
    let id: Uuid = row.try_get("id").map_err(classify)?;
    let decided: Option<String> = row.try_get("decided").map_err(classify)?;
    let decision = match decided {
        None => None,
        Some(text) => Some(LetterDecision {
            decided: Decided::parse(&text).ok_or_else(|| rows::inconsistent("dead_letters", "decided", id, &text))?,
            at: moment(row, "decided_at")?.unwrap_or_default(),
            operator: row.try_get::<Option<String>, _>("decided_by").map_err(classify)?.unwrap_or_default(),
            note: row.try_get::<Option<String>, _>("note").map_err(classify)?.unwrap_or_default(),
        }),
    };
    Ok(LetterHead {
        id,
        message_id: row.try_get("message_id").map_err(classify)?,
        attempts: attempts(row)?,
        reason: row.try_get("reason").map_err(classify)?,
        died_at: Timestamp::from(row.try_get::<OffsetDateTime, _>("died_at").map_err(classify)?),
        body_bytes: u64::try_from(row.try_get::<i64, _>("body_bytes").map_err(classify)?).unwrap_or_default(),
        decision,
    })
}
