//! Access tokens of PSPs whose APIs want one (OAuth 2, client credentials): kept, and renewed once for all who wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Account, AskError, ReadError};
use paybell_shared::telemetry::{ACCESS_TOKENS_TOTAL, OUTCOME, PSP};
use tokio::sync::Mutex;

use crate::order::AccountKey;
use crate::transport::{PspTransport, TransportError};

/// A token is renewed so long before it ends: longer than any request with it may take.
const MARGIN: Duration = Duration::from_mins(1);
/// The longest that a token is believed to live, whatever the PSP says: a day.
const LIVES_MAX: Duration = Duration::from_hours(24);

/// The tokens of all accounts.
pub struct Access(HashMap<AccountKey, Mutex<Option<Held>>>);

struct Held {
    credentials: HeaderValue,
    renew_at: Timestamp,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("asking for a token")]
    Ask(#[from] AskError),
    #[error("asking for a token")]
    Read(#[from] ReadError),
    #[error("asking for a token")]
    Transport(#[from] TransportError),
    #[error("the token has characters that no header takes")]
    Malformed,
}

impl Access {
    #[must_use]
    pub fn new<'a>(accounts: impl Iterator<Item = &'a AccountKey>) -> Self {
        Self(accounts.map(|key| (key.clone(), Mutex::new(None))).collect())
    }

    /// What the account's requests carry as `Authorization`; `None`: they carry their credentials themselves.
    ///
    /// # Errors
    /// The PSP gives no token.
    pub async fn credentials(
        &self,
        key: &AccountKey,
        account: &Account,
        transport: &dyn PspTransport,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, AccessError> {
        let Some(request) = account.psp.token_request(account) else { return Ok(None) };
        let Some(place) = self.0.get(key) else { return Ok(None) };
        // Held while the PSP is asked, which its time-outs bound: all others wait for this one answer.
        let mut held = place.lock().await;
        if let Some(held) = held.as_ref().filter(|held| now < held.renew_at) {
            return Ok(Some(held.credentials.clone()));
        }
        let asked = ask(account, request?, transport).await;
        let outcome = if asked.is_ok() { "ok" } else { "failed" };
        metrics::counter!(ACCESS_TOKENS_TOTAL, PSP => Arc::clone(&key.psp), OUTCOME => outcome).increment(1);
        let (credentials, lives) = asked?;
        *held = Some(Held { credentials: credentials.clone(), renew_at: now.plus(lives.min(LIVES_MAX).saturating_sub(MARGIN)) });
        Ok(Some(credentials))
    }

    /// Forgets a token that the PSP did not take, unless it was renewed meanwhile.
    pub async fn refused(&self, key: &AccountKey, credentials: &HeaderValue) {
        if let Some(place) = self.0.get(key) {
            let mut held = place.lock().await;
            if held.as_ref().is_some_and(|held| held.credentials == *credentials) {
                *held = None;
            }
        }
    }
}

async fn ask(
    account: &Account,
    request: http::Request<bytes::Bytes>,
    transport: &dyn PspTransport,
) -> Result<(HeaderValue, Duration), AccessError> {
    let response = transport.send(request).await?;
    let token = account.psp.read_token(&response)?;
    let mut credentials =
        HeaderValue::from_str(&format!("Bearer {}", token.secret.expose())).map_err(|_| AccessError::Malformed)?;
    // No log shows it.
    credentials.set_sensitive(true);
    Ok((credentials, token.lives))
}
