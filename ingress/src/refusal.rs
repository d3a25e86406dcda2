//! Why a webhook is not acknowledged, and what its sender is told: a status, never a detail.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use paybell_shared::psp::Rejection;
use paybell_shared::queue::PublishError;

use crate::spool::SpoolError;

/// When a sender may try again, in seconds. PSPs have their own schedules; what heeds this comes back soon.
const RETRY_AFTER_S: &str = "5";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the path is no configured account's")]
    NoRoute,
    #[error("the method is not POST")]
    Method,
    #[error("the body is compressed")]
    Encoding,
    #[error("the source address is not allowed")]
    Source,
    #[error("the body is too large")]
    TooLarge,
    #[error("the body did not come in time")]
    SlowBody,
    #[error("the body broke off, or is malformed in its transfer coding")]
    BrokenBody,
    #[error("too many bytes of bodies are held")]
    Crowded,
    #[error("too many webhooks are in flight")]
    Busy,
    #[error("{rejection}")]
    Rejected { rejection: Rejection, status: StatusCode },
    #[error(transparent)]
    Unpublished(#[from] PublishError),
    #[error("{queue}; and {spool}")]
    Unspooled { queue: PublishError, spool: SpoolError },
}

impl Refusal {
    /// Without a token that is needed, or with a wrong one.
    pub(crate) const fn token() -> Self {
        Self::Rejected { rejection: Rejection::Token, status: StatusCode::NOT_FOUND }
    }

    const fn status(&self) -> StatusCode {
        match self {
            // A wrong token is a wrong path, also if an adapter should say so: whoever guesses learns nothing.
            Self::NoRoute | Self::Rejected { rejection: Rejection::Token, .. } => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Source => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::Crowded
            | Self::Busy
            | Self::Unpublished(_)
            | Self::Unspooled { .. }
            | Self::Rejected { rejection: Rejection::NoCertificate, .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Rejected { status, .. } => *status,
        }
    }

    /// The outcome as a metric label: a closed set.
    pub(crate) const fn outcome(&self) -> &'static str {
        match self {
            Self::Crowded
            | Self::Busy
            | Self::Unpublished(_)
            | Self::Unspooled { .. }
            | Self::Rejected { rejection: Rejection::NoCertificate, .. } => "unavailable",
            Self::Rejected { .. } => "rejected",
            _ => "refused",
        }
    }

    /// The reason as a metric label: a closed set.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Method => "method",
            Self::Encoding => "encoding",
            Self::Source => "source",
            Self::TooLarge => "too_large",
            Self::SlowBody => "slow_body",
            Self::BrokenBody => "broken_body",
            Self::Crowded => "crowded",
            Self::Busy => "busy",
            Self::Rejected { rejection, .. } => rejection.reason(),
            Self::Unpublished(error) | Self::Unspooled { queue: error, .. } => error.reason(),
        }
    }

    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = self.status();
        let extra = match self {
            Self::Method => Some((header::ALLOW, "POST")),
            Self::Encoding => Some((header::ACCEPT_ENCODING, "identity")),
            // What remains of the body is not read.
            Self::TooLarge | Self::SlowBody | Self::BrokenBody => Some((header::CONNECTION, "close")),
            Self::Crowded
            | Self::Busy
            | Self::Unpublished(_)
            | Self::Unspooled { .. }
            | Self::Rejected { rejection: Rejection::NoCertificate, .. } => Some((header::RETRY_AFTER, RETRY_AFTER_S)),
            Self::NoRoute | Self::Source | Self::Rejected { .. } => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
