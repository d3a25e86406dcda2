//! The certificates that webhooks say they are signed by: fetched once, off the way of every webhook, and kept.
//!
//! This is the only call that the ingress makes to anyone but the queue. A stranger can cause it, by a webhook with a URL
//! that its adapter takes for the PSP's; so it is bounded from all sides, and no webhook waits for it: until the certificate is
//! here, its webhooks are answered 503, and the PSP sends them again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use metrics::counter;
use paybell_shared::psp::Account;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{ACCOUNT, CERTIFICATE_FETCHES_TOTAL, OUTCOME, PSP};

/// Certificates that are kept: a PSP has a handful at a time. Of more, the one that was needed least lately goes.
const KEPT_MAX: usize = 16;
/// Fetches for one account within a [`WINDOW`].
const FETCHES_MAX: usize = 6;
const WINDOW: Duration = Duration::from_mins(1);
/// For so long a URL that led to nothing is not tried again.
const FAILED_FOR: Duration = Duration::from_mins(1);
/// A chain of four certificates is a tenth of it.
const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For the whole exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

const PEM_MARK: &[u8] = b"-----BEGIN CERTIFICATE-----";

#[derive(Clone)]
pub(crate) struct Certificates {
    kept: Arc<Mutex<Shelf>>,
    shutdown: Shutdown,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no TLS")]
    Tls(#[source] reqwest::Error),
    #[error("it is not reached")]
    Unreached(#[source] reqwest::Error),
    #[error("the answer's status is {0}")]
    Status(StatusCode),
    #[error("it is larger than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is no certificate in PEM")]
    NoCertificate,
}

impl Certificates {
    pub(crate) fn new(shutdown: &Shutdown) -> Self {
        Self { kept: Arc::default(), shutdown: shutdown.clone() }
    }

    /// The certificate at `url`, in PEM, if it is here; if not, it is fetched, as far as that may be.
    pub(crate) fn get(&self, url: &str, account: &Account) -> Option<Bytes> {
        let found = self.kept().look(url, account, Instant::now());
        match found {
            Found::Here(pem) => return Some(pem),
            Found::NotYet => {}
            Found::OverLimit => count(account, "over_limit"),
            Found::ToFetch => self.fetch(url.to_owned(), account),
        }
        None
    }

    /// Says that what lies at `url` verified nothing: it is not tried again at once, but it is tried again.
    pub(crate) fn refused(&self, url: &str) {
        self.kept().put_away(url, Instant::now());
    }

    fn fetch(&self, url: String, account: &Account) {
        let (kept, shutdown) = (Arc::clone(&self.kept), self.shutdown.clone());
        let (psp, name) = (Arc::clone(&account.psp_id), Arc::clone(&account.name));
        let counts = account.clone();
        self.shutdown.spawn("certificate", async move {
            let began = Instant::now();
            let fetched = tokio::select! {
                () = shutdown.stopping() => return Ok(()),
                fetched = fetch(&url) => fetched,
            };
            let duration_ms = began.elapsed().as_secs_f64() * 1e3;
            let mut kept = lock(&kept);
            match fetched {
                Ok(pem) => {
                    count(&counts, "fetched");
                    tracing::info!(event = "certificate.fetched", %psp, account = %name, url, bytes = pem.len(), duration_ms);
                    kept.put(url, pem);
                }
                Err(error) => {
                    count(&counts, "failed");
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!(event = "certificate.fetched", %psp, account = %name, url, error, duration_ms, "no certificate");
                    kept.put_away(&url, Instant::now());
                }
            }
            Ok(())
        });
    }

    fn kept(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.kept)
    }
}

/// Nothing is left half done where it could panic.
fn lock(kept: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(account: &Account, outcome: &'static str) {
    let (psp, name) = (Arc::clone(&account.psp_id), Arc::clone(&account.name));
    counter!(CERTIFICATE_FETCHES_TOTAL, PSP => psp, ACCOUNT => name, OUTCOME => outcome).increment(1);
}

/// No redirect is followed, since it would lead where no adapter has looked, and no proxy is asked.
async fn fetch(url: &str) -> Result<Bytes, FetchError> {
    // An error means that there is a provider already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Made for the one call: there is one a year.
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXCHANGE_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent(concat!("paybell/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(FetchError::Tls)?;
    let unreached = |error: reqwest::Error| FetchError::Unreached(error.without_url());
    let mut answer = client.get(url).send().await.map_err(unreached)?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status(answer.status()));
    }
    let mut pem = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(unreached)? {
        if pem.len() + chunk.len() > CERTIFICATE_BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
        pem.extend_from_slice(&chunk);
    }
    if !pem.windows(PEM_MARK.len()).any(|window| window == PEM_MARK) {
        return Err(FetchError::NoCertificate);
    }
    Ok(pem.freeze())
}

/// What is known of each URL. Bounded by [`KEPT_MAX`], by [`FETCHES_MAX`] of each account, and by [`FAILED_FOR`].
#[derive(Default)]
struct Shelf {
    places: HashMap<String, Place>,
    /// When the latest fetches of each account began, oldest first.
    fetches: HashMap<(Arc<str>, Arc<str>), VecDeque<Instant>>,
    /// Counts looks, so that places know which was needed last.
    looks: u64,
}

enum Place {
    OnItsWay,
    Here { pem: Bytes, needed: u64 },
    Failed { until: Instant },
}

enum Found {
    Here(Bytes),
    NotYet,
    OverLimit,
    /// By the caller: others are told to wait for it.
    ToFetch,
}

impl Shelf {
    fn look(&mut self, url: &str, account: &Account, now: Instant) -> Found {
        self.looks += 1;
        match self.places.get_mut(url) {
            Some(Place::Here { pem, needed }) => {
                *needed = self.looks;
                return Found::Here(pem.clone());
            }
            Some(Place::OnItsWay) => return Found::NotYet,
            Some(Place::Failed { until }) if now < *until => return Found::NotYet,
            Some(Place::Failed { .. }) | None => {}
        }
        let fetches = self.fetches.entry((Arc::clone(&account.psp_id), Arc::clone(&account.name))).or_default();
        while fetches.front().is_some_and(|began| now.saturating_duration_since(*began) >= WINDOW) {
            fetches.pop_front();
        }
        if fetches.len() >= FETCHES_MAX {
            return Found::OverLimit;
        }
        fetches.push_back(now);
        self.places.retain(|_, place| !matches!(place, Place::Failed { until } if *until <= now));
        self.places.insert(url.to_owned(), Place::OnItsWay);
        Found::ToFetch
    }

    fn put(&mut self, url: String, pem: Bytes) {
        let here = |(url, place): (&String, &Place)| match place {
            Place::Here { needed, .. } => Some((*needed, url.clone())),
            Place::OnItsWay | Place::Failed { .. } => None,
        };
        let here: Vec<(u64, String)> = self.places.iter().filter_map(here).collect();
        if here.len() >= KEPT_MAX
            && let Some((_, least)) = here.into_iter().min()
        {
            self.places.remove(&least);
        }
        self.places.insert(url, Place::Here { pem, needed: self.looks });
    }

    fn put_away(&mut self, url: &str, now: Instant) {
        self.places.insert(url.to_owned(), Place::Failed { until: now + FAILED_FOR });
    }
}

#[cfg(test)]
mod tests {
    use paybell_shared::config::Config;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn account(name: &str) -> Arc<Account> {
        let text = format!("[[psp]]\nid = 'stripe'\naccount = '{name}'\nmode = 'test'\nsecrets = ['whsec_1']\n");
        let config = Config::parse(&text, "the test", std::iter::empty()).unwrap();
        Arc::clone(&config.accounts[0].account)
    }

    fn looks(shelf: &mut Shelf, url: &str, account: &Account, now: Instant) -> &'static str {
        match shelf.look(url, account, now) {
            Found::Here(_) => "here",
            Found::NotYet => "not yet",
            Found::OverLimit => "over the limit",
            Found::ToFetch => "to fetch",
        }
    }

    #[test]
    fn one_fetch_serves_all() {
        let (mut shelf, account, now) = (Shelf::default(), account("a"), Instant::now());
        assert_eq!(looks(&mut shelf, "u", &account, now), "to fetch");
        assert_eq!(looks(&mut shelf, "u", &account, now + 100 * SECOND), "not yet");
        shelf.put("u".to_owned(), Bytes::new());
        assert_eq!(looks(&mut shelf, "u", &account, now + 86_400 * 365 * SECOND), "here", "as long as it verifies");
    }

    #[test]
    fn a_failure_is_remembered_for_a_minute() {
        let (mut shelf, account, now) = (Shelf::default(), account("a"), Instant::now());
        assert_eq!(looks(&mut shelf, "u", &account, now), "to fetch");
        shelf.put_away("u", now);
        assert_eq!(looks(&mut shelf, "u", &account, now + 59 * SECOND), "not yet");
        assert_eq!(looks(&mut shelf, "u", &account, now + 60 * SECOND), "to fetch");
        shelf.put("u".to_owned(), Bytes::new());
        shelf.put_away("u", now);
        assert_eq!(looks(&mut shelf, "u", &account, now), "not yet", "what verified nothing is fetched anew, later");
    }

    #[test]
    fn an_account_has_six_fetches_a_minute_and_no_other_pays_for_them() {
        let (mut shelf, flooded, calm, now) = (Shelf::default(), account("flooded"), account("calm"), Instant::now());
        for number in 0..100 {
            let expected = if number < FETCHES_MAX { "to fetch" } else { "over the limit" };
            assert_eq!(looks(&mut shelf, &format!("u{number}"), &flooded, now + 5 * SECOND), expected);
        }
        assert_eq!(looks(&mut shelf, "v", &calm, now + 5 * SECOND), "to fetch");
        assert_eq!(looks(&mut shelf, "w", &flooded, now + 64 * SECOND), "over the limit");
        assert_eq!(looks(&mut shelf, "w", &flooded, now + 65 * SECOND), "to fetch");
        shelf.put("w".to_owned(), Bytes::new());
        assert_eq!(looks(&mut shelf, "w", &flooded, now + 65 * SECOND), "here");
    }

    #[test]
    fn a_flood_for_hours_holds_a_bounded_number() {
        let (mut shelf, account, now) = (Shelf::default(), account("a"), Instant::now());
        for second in 0..10_000_u32 {
            let (url, now) = (format!("u{second}"), now + second * SECOND);
            if looks(&mut shelf, &url, &account, now) == "to fetch" {
                if second % 2 == 0 { shelf.put_away(&url, now) } else { shelf.put(url, Bytes::new()) }
            }
            assert!(shelf.places.len() <= KEPT_MAX + 2 * FETCHES_MAX);
        }
        assert!(shelf.fetches[&(Arc::clone(&account.psp_id), Arc::clone(&account.name))].len() <= FETCHES_MAX);
    }

    #[test]
    fn the_one_that_was_needed_least_lately_goes() {
        let (mut shelf, account, now) = (Shelf::default(), account("a"), Instant::now());
        for number in 0..KEPT_MAX {
            shelf.put(format!("u{number}"), Bytes::new());
            looks(&mut shelf, &format!("u{number}"), &account, now);
        }
        assert_eq!(looks(&mut shelf, "u0", &account, now), "here");
        shelf.put("new".to_owned(), Bytes::new());
        assert_eq!(looks(&mut shelf, "u0", &account, now), "here");
        assert_eq!(looks(&mut shelf, "new", &account, now), "here");
        assert_eq!(looks(&mut shelf, "u1", &account, now), "to fetch");
    }
}
