//! What the simulated PSPs' HTTP APIs share: who asks, what for, and answers in JSON.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Lets in only whom the value of `Authorization` names, and answers everybody else as the PSP does.
pub(super) fn only_for<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    authorization: String,
    refusal: (StatusCode, Value),
) -> Router<S> {
    only_with(router, header::AUTHORIZATION, authorization, refusal)
}

/// The same for PSPs that have a header of their own for their keys.
pub(super) fn only_with<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    name: HeaderName,
    key: String,
    refusal: (StatusCode, Value),
) -> Router<S> {
    router.layer(middleware::from_fn(move |headers: HeaderMap, request: Request, next: Next| {
        let is_known = headers.get(&name).is_some_and(|value| value == key.as_str());
        let refusal = (!is_known).then(|| json(refusal.0, &refusal.1));
        async move {
            match refusal {
                Some(refusal) => refusal,
                None => next.run(request).await,
            }
        }
    }))
}

/// `Authorization` with a key as a bearer token.
pub(super) fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// `Authorization` with a name and a password.
pub(super) fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// The parameters of a query, decoded.
pub(super) fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

/// The first parameter of this name.
pub(super) fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

pub(super) fn json(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
