//! What the readers of PSPs' HTTP answers share: what a status means, when the answer was true, how long to wait.

use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER};
use http::{HeaderName, Response, StatusCode};
use time::PrimitiveDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

use super::ReadError;
use crate::clock::Timestamp;

/// The longest wait that a PSP may impose on us; a mistaken header must not silence reconciliation for days.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Of the sentence that says why something is refused.
const REFUSAL_CHARS_MAX: usize = 200;

/// The date form that HTTP senders use (RFC 9110, 5.6.7).
const IMF_FIXDATE: StaticFormatDescription =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// The body of an answer that answers. `asked_at` stands in for a missing `Date`.
///
/// # Errors
/// The status says that it is no answer.
pub(super) fn body(response: &Response<Bytes>, asked_at: Option<Timestamp>) -> Result<&[u8], ReadError> {
    match response.status() {
        StatusCode::OK => Ok(response.body()),
        StatusCode::NOT_FOUND => Err(ReadError::NotFound),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(ReadError::Unauthorized(status.as_u16())),
        StatusCode::TOO_MANY_REQUESTS => Err(ReadError::TooManyRequests { retry_after: retry_after(response, asked_at) }),
        status if status.is_server_error() => {
            Err(ReadError::Unavailable { status: status.as_u16(), retry_after: retry_after(response, asked_at) })
        }
        status => Err(ReadError::Unintelligible(format!("status {}", status.as_u16()))),
    }
}

/// The body of an answer that says what was made or changed. What the PSP says of a refusal is kept: it is about a request
/// of ours, and a person must read it.
///
/// # Errors
/// Nothing was made or changed, as far as is known.
pub(super) fn changed(response: &Response<Bytes>) -> Result<&[u8], ReadError> {
    match response.status() {
        StatusCode::CREATED => Ok(response.body()),
        status if status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 404 | 429) => {
            let words = refusal(response.body()).map(|words| format!(": {words}")).unwrap_or_default();
            Err(ReadError::Unintelligible(format!("status {}{words}", status.as_u16())))
        }
        _ => body(response, None),
    }
}

/// The sentence in which a PSP says why it refuses: wherever PSPs have it, and no more than [`REFUSAL_CHARS_MAX`] of it.
fn refusal(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let places = ["/error/message", "/errors/0/detail", "/details/0/description", "/detail", "/message", "/error_codes/0"];
    let words = places.iter().find_map(|place| document.pointer(place)?.as_str())?;
    Some(words.chars().filter(|letter| !letter.is_control()).take(REFUSAL_CHARS_MAX).collect())
}

/// When the PSP wrote the answer, by its own clock.
pub(super) fn date(response: &Response<Bytes>) -> Option<Timestamp> {
    http_date(header(response, DATE)?)
}

fn retry_after(response: &Response<Bytes>, asked_at: Option<Timestamp>) -> Option<Duration> {
    let text = header(response, RETRY_AFTER)?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are longer than the most that is granted.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        http_date(text)?.since(date(response).or(asked_at)?)
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn header(response: &Response<Bytes>, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

fn http_date(text: &str) -> Option<Timestamp> {
    PrimitiveDateTime::parse(text, IMF_FIXDATE).ok().map(|at| at.assume_utc().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Bytes::new()).unwrap()
    }

    const NOW: &str = "Mon, 21 Sep 2026 14:13:20 GMT";

    #[test]
    fn a_status_has_one_meaning() {
        let read = |status, headers: &[(&str, &str)]| body(&response(status, headers), None).map(<[u8]>::len);
        assert_eq!(read(200, &[]), Ok(0));
        assert_eq!(read(404, &[]), Err(ReadError::NotFound));
        assert_eq!(read(401, &[]), Err(ReadError::Unauthorized(401)));
        assert_eq!(read(403, &[]), Err(ReadError::Unauthorized(403)));
        assert_eq!(read(429, &[]), Err(ReadError::TooManyRequests { retry_after: None }));
        assert_eq!(
            read(503, &[("retry-after", "7")]),
            Err(ReadError::Unavailable { status: 503, retry_after: Some(Duration::from_secs(7)) })
        );
        for odd in [204, 302, 400, 409] {
            assert!(matches!(read(odd, &[]), Err(ReadError::Unintelligible(_))), "{odd}");
        }
    }

    #[test]
    fn why_nothing_was_made_is_kept_in_the_psps_words() {
        let read = |status, body: &str| {
            let mut response = response(status, &[]);
            *response.body_mut() = Bytes::copy_from_slice(body.as_bytes());
            changed(&response).map(<[u8]>::len)
        };
        assert_eq!((read(200, "{}"), read(201, "{}")), (Ok(2), Ok(2)));
        let refused = |words: &str| Err(ReadError::Unintelligible(words.to_owned()));
        assert_eq!(read(400, r#"{"error":{"message":"Invalid\u001b URL"}}"#), refused("status 400: Invalid URL"));
        assert_eq!(read(422, r#"{"errors":[{"detail":"taken"}]}"#), refused("status 422: taken"));
        assert_eq!(read(409, "<html>"), refused("status 409"));
        assert_eq!(read(204, ""), refused("status 204"));
        assert_eq!(read(401, "{}"), Err(ReadError::Unauthorized(401)));
        assert_eq!(read(404, "{}"), Err(ReadError::NotFound));
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(5000));
        assert_eq!(read(400, &long), refused(&format!("status 400: {}", "x".repeat(REFUSAL_CHARS_MAX))));
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        let wait = |headers: &[(&str, &str)], asked_at| retry_after(&response(429, headers), asked_at).map(|wait| wait.as_secs());
        assert_eq!(wait(&[("retry-after", "0")], None), Some(0));
        assert_eq!(wait(&[("retry-after", "3601")], None), Some(3600));
        assert_eq!(wait(&[("retry-after", "99999999999999999999999")], None), Some(3600));
        let later = ("retry-after", "Mon, 21 Sep 2026 14:13:50 GMT");
        assert_eq!(wait(&[later, ("date", NOW)], None), Some(30));
        assert_eq!(wait(&[later], Some(Timestamp::from_seconds(1_790_000_020))), Some(10));
        assert_eq!(wait(&[later], None), None);
        for bad in ["", "soon", "-1", "1.5"] {
            assert_eq!(wait(&[("retry-after", bad)], None), None, "{bad:?}");
        }
    }

    #[test]
    fn dates_are_read_by_the_second() {
        assert_eq!(date(&response(200, &[("date", NOW)])), Some(Timestamp::from_seconds(1_790_000_000)));
        assert_eq!(date(&response(200, &[("date", "2026-09-21T14:13:20Z")])), None);
        assert_eq!(date(&response(200, &[])), None);
    }
}
