//! The books, as totals and by hour.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paybell_shared::clock::Timestamp;

use super::problem::Problem;
use super::wire::BalanceQuery;
use crate::consume::Context;
use crate::store::Balance;

const HOUR_MS: i64 = 3_600_000;
const SPAN_DEFAULT: Duration = Duration::from_hours(24);
/// A week: 840 lines an account.
const SPAN_MAX: Duration = Duration::from_hours(24 * 7);

/// The books: events by outcome, orders by status.
#[utoipa::path(
    get, path = "/v1/balance", tag = "books",
    params(BalanceQuery),
    responses(
        (status = 200, description = "The totals, read in one snapshot; the hours, if they are asked for", body = Balance),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_balance(
    Extension(context): Extension<Arc<Context>>,
    query: Result<Query<BalanceQuery>, QueryRejection>,
) -> Result<Json<Balance>, Problem> {
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let span = span(&query, context.clock.now())?;
    let mut balance = context.store.balance().await?;
    if let Some((since, until)) = span {
        balance.hours = Some(context.store.hours(since, until).await?);
    }
    Ok(Json(balance))
}

/// The hours that are asked for, if any are.
fn span(query: &BalanceQuery, now: Timestamp) -> Result<Option<(Timestamp, Timestamp)>, Problem> {
    let BalanceQuery { by, since, until } = query;
    if by.is_none() {
        let needless = since.is_some() || until.is_some();
        return if needless { Err(bad("since, until: only with by=hour".to_owned())) } else { Ok(None) };
    }
    let read = |name: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match Timestamp::parse_rfc3339(text) {
            Ok(at) => Ok(Some(at)),
            Err(_) => Err(bad(format!("{name}: {text:?} is not RFC 3339"))),
        },
    };
    let until = read("until", until)?.unwrap_or(now);
    let since = read("since", since)?.unwrap_or_else(|| until.minus(SPAN_DEFAULT));
    let since = Timestamp::from_millis(since.millis().div_euclid(HOUR_MS).saturating_mul(HOUR_MS));
    if until <= since || until.since(since) > SPAN_MAX.saturating_add(Duration::from_hours(1)) {
        return Err(bad(format!("since, until: from one to the other, at most {} hours", SPAN_MAX.as_secs() / 3600)));
    }
    Ok(Some((since, until)))
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

#[cfg(test)]
mod tests {
    use super::super::wire::Period;
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    fn span_of(by: Option<Period>, since: Option<&str>, until: Option<&str>) -> Result<Option<[String; 2]>, ()> {
        let query = BalanceQuery { by, since: since.map(str::to_owned), until: until.map(str::to_owned) };
        span(&query, NOW).map_err(drop).map(|span| span.map(|(since, until)| [since.to_string(), until.to_string()]))
    }

    #[test]
    fn hours_are_whole_and_not_too_many() {
        let by = Some(Period::Hour);
        let is = |since: &str, until: &str| Ok(Some([since.to_owned(), until.to_owned()]));
        assert_eq!(span_of(None, None, None), Ok(None));
        assert_eq!(span_of(by, None, None), is("2026-09-20T14:00:00Z", "2026-09-21T14:13:20Z"));
        let until = Some("2026-09-21T00:00:00Z");
        assert_eq!(span_of(by, Some("2026-09-20T23:59:59+00:00"), until), is("2026-09-20T23:00:00Z", "2026-09-21T00:00:00Z"));
        assert_eq!(span_of(by, Some("2026-09-14T00:00:00Z"), until), is("2026-09-14T00:00:00Z", "2026-09-21T00:00:00Z"));
        for (by, since, until) in [
            (by, Some("2026-09-13T22:59:59Z"), until),
            (by, until, until),
            (by, Some("yesterday"), None),
            (by, Some("0000-01-01T00:00:00Z"), Some("9999-12-31T23:59:59Z")),
            (None, None, until),
        ] {
            assert_eq!(span_of(by, since, until), Err(()), "{since:?} {until:?}");
        }
    }
}
