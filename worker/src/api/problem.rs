//! Errors of the API as `application/problem+json` (RFC 9457). What went wrong inside is logged once and not told.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::store::StoreError;

/// What a caller is told of an error.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// What to do about it.
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status: status.as_u16(), detail: detail.into() }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let problem = match error {
            StoreError::Unavailable(_) | StoreError::Contended(_) | StoreError::Unknown(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the database is not available: repeat the request, it is safe to repeat",
            ),
            StoreError::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the database cannot hold this value"),
            StoreError::Inconsistent { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "what is stored cannot be read: see the log")
            }
        };
        tracing::error!(status = problem.status, error = format!("{:#}", anyhow::Error::new(error)), "the API could not answer");
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
