//! Access tokens of PSPs whose APIs want one (OAuth 2, client credentials): kept, and renewed once for all who wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
pub struct Access(HashMap<AccountKey, Place>);

#[derive(Default)]
struct Place {
    token: Mutex<Option<Held>>,
    /// Requests for a token that got none.
    failures: AtomicU64,
}

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
    #[error("another look asked for a token, and got none")]
    NoneForAnother,
}

impl Access {
    #[must_use]
    pub fn new<'a>(accounts: impl Iterator<Item = &'a AccountKey>) -> Self {
        Self(accounts.map(|key| (key.clone(), Place::default())).collect())
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
        let failures = place.failures.load(Ordering::Relaxed);
        // Held while the PSP is asked, which its time-outs bound: all others wait for this one answer, whatever it is.
        let mut held = place.token.lock().await;
        if let Some(held) = held.as_ref().filter(|held| now < held.renew_at) {
            return Ok(Some(held.credentials.clone()));
        }
        if place.failures.load(Ordering::Relaxed) != failures {
            return Err(AccessError::NoneForAnother);
        }
        let asked = ask(account, request?, transport).await;
        let outcome = if asked.is_ok() { "ok" } else { "failed" };
        metrics::counter!(ACCESS_TOKENS_TOTAL, PSP => Arc::clone(&key.psp), OUTCOME => outcome).increment(1);
        place.failures.fetch_add(u64::from(asked.is_err()), Ordering::Relaxed);
        let (credentials, lives) = asked?;
        *held = Some(Held { credentials: credentials.clone(), renew_at: now.plus(lives.min(LIVES_MAX).saturating_sub(MARGIN)) });
        Ok(Some(credentials))
    }

    /// Forgets a token that the PSP did not take, unless it was renewed meanwhile.
    pub async fn refused(&self, key: &AccountKey, credentials: &HeaderValue) {
        if let Some(place) = self.0.get(key) {
            let mut held = place.token.lock().await;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{Request, Response};
    use paybell_shared::envelope::Envelope;
    use paybell_shared::event::{Mode, PaymentEvent};
    use paybell_shared::psp::{
        AccessToken, Api, Capture, Keys, Profile, Psp, Rejection, SettingError, TranslateError, Verified, WebhookRequest,
        stripe::Stripe,
    };
    use paybell_shared::secret::Secret;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    /// A PSP whose API wants tokens; the rest of it is never called.
    struct Tokened;

    impl Psp for Tokened {
        fn id(&self) -> &'static str {
            "tokened"
        }

        fn profile(&self) -> &'static Profile {
            Stripe.profile()
        }

        fn check(&self, _: &Account) -> Result<(), SettingError> {
            Ok(())
        }

        fn verify(&self, _: &WebhookRequest<'_>, _: &Keys, _: Timestamp) -> Result<Verified, Rejection> {
            Err(Rejection::EmptyBody)
        }

        fn translate(&self, _: &Envelope, _: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
            Ok(Vec::new())
        }

        fn token_request(&self, _: &Account) -> Option<Result<Request<Bytes>, AskError>> {
            Some(Ok(Request::new(Bytes::new())))
        }

        fn read_token(&self, response: &Response<Bytes>) -> Result<AccessToken, ReadError> {
            let text = String::from_utf8_lossy(response.body()).into_owned();
            Ok(AccessToken { secret: Secret::new("token", text), lives: Duration::from_hours(1) })
        }
    }

    /// Gives a new token each time.
    struct Office(AtomicU32);

    #[async_trait]
    impl PspTransport for Office {
        async fn send(&self, _: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
            tokio::task::yield_now().await;
            Ok(Response::new(format!("token-{}", self.0.fetch_add(1, Ordering::Relaxed)).into()))
        }
    }

    /// Gives none, and counts who asks.
    struct Closed(AtomicU32);

    #[async_trait]
    impl PspTransport for Closed {
        async fn send(&self, _: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
            tokio::task::yield_now().await;
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(TransportError::TooLarge)
        }
    }

    fn parts() -> (AccountKey, Account, Office) {
        let key = AccountKey { psp: "tokened".into(), account: "default".into() };
        let account = Account {
            psp: &Tokened,
            psp_id: "tokened".into(),
            name: "default".into(),
            mode: Mode::Test,
            keys: Keys::default(),
            api: Api::default(),
            order_reference: None,
            capture: Capture::default(),
        };
        (key, account, Office(AtomicU32::new(0)))
    }

    #[tokio::test]
    async fn one_token_serves_all_until_it_ends_or_is_refused() {
        let (key, account, office) = parts();
        let access = Access::new([&key].into_iter());
        let ask = async |now| access.credentials(&key, &account, &office, now).await.unwrap().unwrap();
        let (one, two) = tokio::join!(ask(NOW), ask(NOW));
        assert_eq!((&one, &two), (&HeaderValue::from_static("Bearer token-0"), &one), "asked for once");
        assert!(one.is_sensitive());
        let last = NOW.plus(Duration::from_mins(59)).minus(Duration::from_millis(1));
        assert_eq!(ask(last).await, one);
        let renewed = ask(NOW.plus(Duration::from_mins(59))).await;
        assert_eq!(renewed, "Bearer token-1");
        access.refused(&key, &one).await;
        assert_eq!(ask(NOW.plus(Duration::from_mins(59))).await, renewed, "an older one was refused");
        access.refused(&key, &renewed).await;
        assert_eq!(ask(NOW.plus(Duration::from_mins(59))).await, "Bearer token-2");
    }

    #[tokio::test]
    async fn one_request_that_gets_no_token_stands_for_all_who_wait_for_it() {
        let (key, account, office) = parts();
        let (access, closed) = (Access::new([&key].into_iter()), Closed(AtomicU32::new(0)));
        let ask = || access.credentials(&key, &account, &closed, NOW);
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        assert!(matches!(one, Err(AccessError::Transport(_))));
        assert!(matches!((two, three), (Err(AccessError::NoneForAnother), Err(AccessError::NoneForAnother))));
        assert!(matches!(ask().await, Err(AccessError::Transport(_))), "the next one asks");
        assert_eq!(closed.0.load(Ordering::Relaxed), 2);
        assert!(access.credentials(&key, &account, &office, NOW).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_psp_without_tokens_needs_none() {
        let (key, account, office) = parts();
        let account = Account { psp: &Stripe, ..account };
        let access = Access::new([&key].into_iter());
        assert!(access.credentials(&key, &account, &office, NOW).await.unwrap().is_none());
        assert_eq!(office.0.load(Ordering::Relaxed), 0);
    }
}
