//! What the builders of requests to PSPs share: where an API is, and credentials that no log shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Uri, request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Account, AskError, SettingError};
use crate::secret::Secret;

/// What a form keeps as it is, beside letters and digits.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A GET at the PSP's host, or at the account's `api_url`, with these credentials. `path_and_query` holds nothing that is
/// not ours or checked.
pub(super) fn get(account: &Account, host: &str, path_and_query: &str, credentials: HeaderValue) -> request::Builder {
    let base = account.api.url.as_deref().unwrap_or(host);
    Request::get(format!("{base}{path_and_query}")).header(AUTHORIZATION, credentials).header(ACCEPT, "application/json")
}

/// A GET without credentials: the worker adds a token.
pub(super) fn get_with_token(account: &Account, host: &str, path_and_query: &str) -> request::Builder {
    let base = account.api.url.as_deref().unwrap_or(host);
    Request::get(format!("{base}{path_and_query}")).header(ACCEPT, "application/json")
}

/// A request of another method at the same place; the worker adds a token where there are no credentials.
pub(super) fn begin(
    method: Method,
    account: &Account,
    host: &str,
    path_and_query: &str,
    credentials: Option<HeaderValue>,
) -> request::Builder {
    let base = account.api.url.as_deref().unwrap_or(host);
    let request = Request::builder().method(method).uri(format!("{base}{path_and_query}")).header(ACCEPT, "application/json");
    credentials.into_iter().fold(request, |request, value| request.header(AUTHORIZATION, value))
}

/// The request that was begun, with a document in JSON.
pub(super) fn finish_json(request: request::Builder, document: &serde_json::Value) -> Result<Request<Bytes>, AskError> {
    let body = Bytes::from(document.to_string());
    request.header(CONTENT_TYPE, "application/json").body(body).map_err(|_| AskError::Missing("api_url"))
}

/// The request that was begun, with a form.
pub(super) fn finish_form(request: request::Builder, fields: &[(&str, &str)]) -> Result<Request<Bytes>, AskError> {
    let encoded = |text: &str| utf8_percent_encode(text, FORM).to_string();
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    request.body(Bytes::from(fields.join("&"))).map_err(|_| AskError::Missing("api_url"))
}

/// The request that was begun, without a body.
pub(super) fn finish(request: request::Builder) -> Result<Request<Bytes>, AskError> {
    // Everything else in the request is ours or checked.
    request.body(Bytes::new()).map_err(|_| AskError::Missing("api_url"))
}

/// `Bearer` and the account's `api_key`.
pub(super) fn bearer(account: &Account) -> Result<HeaderValue, AskError> {
    account.api.key.as_ref().and_then(bearer_of).ok_or(AskError::Missing("api_key"))
}

/// `Bearer` and a key.
pub(super) fn bearer_of(key: &Secret) -> Option<HeaderValue> {
    credentials(&format!("Bearer {}", sane(key)?))
}

/// The account's `api_key` by itself, for a header of the PSP's own.
pub(super) fn api_key(account: &Account) -> Result<HeaderValue, AskError> {
    account.api.key.as_ref().and_then(sane).and_then(credentials).ok_or(AskError::Missing("api_key"))
}

/// The account's `api_key` as it is, for a header that takes it so.
pub(super) fn plain_key(account: &Account) -> Result<HeaderValue, AskError> {
    let key = account.api.key.as_ref().and_then(sane).ok_or(AskError::Missing("api_key"))?;
    credentials(key).ok_or(AskError::Missing("api_key"))
}

/// `Basic`, of a name and a secret.
pub(super) fn basic(name: &str, secret: &Secret) -> Option<HeaderValue> {
    credentials(&format!("Basic {}", STANDARD.encode(format!("{name}:{}", sane(secret)?))))
}

/// The two settings that any API needs, if they are there.
///
/// # Errors
/// One is there and cannot be used.
pub(super) fn check(account: &Account) -> Result<(), SettingError> {
    if account.api.key.as_ref().is_some_and(|key| sane(key).is_none()) {
        let problem = "is empty or has characters that no API key has".to_owned();
        return Err(SettingError { setting: "api_key", problem });
    }
    if let Some(url) = &account.api.url {
        let absolute = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
        if !url.parse::<Uri>().is_ok_and(|uri| absolute(&uri)) {
            return Err(SettingError { setting: "api_url", problem: format!("{url:?} is no http(s) URL without a query") });
        }
    }
    Ok(())
}

/// An id of letters, digits and a few signs that cannot leave its place in a URL.
pub(super) fn is_id(text: &str, signs: &[u8]) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || signs.contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(allowed) && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

fn sane(secret: &Secret) -> Option<&str> {
    let text = secret.expose();
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

/// Marked so that no log shows it.
fn credentials(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
