//! Is our URL right and alive? What each account's PSP has registered against what must be, and the way that leads to us.
//!
//! [`Inspector::inspect`] looks at one account now: it asks the PSP for its list ([`compare`] says what is wrong with it, pure),
//! and goes the PSP's way to us ([`outside`]). [`step`] does that for every account that is due, under a lease in the database,
//! so that one worker of many does it; [`run`] only waits and steps, [`watch`] shows what was found. [`plan`] is how
//! `paybell endpoints register` mends what is registered.
//!
//! A PSP that does not answer, refuses us, or leads in a circle says nothing about the endpoint: then it could not be told,
//! and what was known to be wrong stays so.

pub mod compare;
pub mod finding;
pub mod plan;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::Mode;
use paybell_shared::psp::{Account, ChangedEndpoint, Endpoint, ReadError, WantedEndpoint};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    ACCOUNT, ENDPOINT_FINDINGS, ENDPOINT_TOLD_TIMESTAMP_SECONDS, FINDING, PSP, PUBLIC_CERTIFICATE_EXPIRY_SECONDS,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use self::compare::{Named, Ours, compare};
use self::finding::{Doubt, Finding, Kind, Severity, Side};
use crate::asking::{Asker, AskingError};
use crate::canary::{self, Flights};
use crate::consume::Context;
use crate::manners::{Ended, Leave, Manner};
use crate::order::AccountKey;
use crate::outside;
use crate::reconcile;
use crate::store::{Lease, StoreError, WatchKey, WatchKind, WatchLease};
use crate::transport::PspTransport;

/// Between two looks at an account.
pub const PERIOD: Duration = Duration::from_hours(1);
/// After a look at which something could not be told.
const PERIOD_IN_DOUBT: Duration = Duration::from_mins(10);
/// How often it is seen whether one is due, and what was found is shown.
const TICK: Duration = Duration::from_secs(15);
/// So long nobody else looks at an account, or counts as talking with its PSP.
const LEASE: Duration = Duration::from_mins(2);
/// For a PSP's list with all its pages.
const LIST_MAX: Duration = Duration::from_secs(20);
/// Pages of a list: Checkout.com has one a workflow, and allows 100.
const PAGES_MAX: usize = 128;

const _: () = assert!(LIST_MAX.as_secs() < LEASE.as_secs() && outside::LOOK_MAX.as_secs() < LEASE.as_secs());

/// What was seen of an account's endpoint; as it is kept and told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What must be registered; null: it is not configured. Without the token, where one follows.
    pub url: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be told.
    pub doubts: Vec<Doubt>,
    /// What a person should know; nothing is wrong with it.
    pub notes: Vec<String>,
    /// When the PSP last told what is registered; null: never, or it has no API for that.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub told_at: Option<Timestamp>,
    /// The end of the certificate that the public URL shows.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub certificate_ends_at: Option<Timestamp>,
    /// Of the account `canary` only.
    pub canary: Option<Flights>,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum UnlistedError {
    #[error("the PSP is left alone until {0}")]
    NotNow(Timestamp),
    #[error(transparent)]
    Asking(#[from] AskingError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Looks at endpoints.
pub struct Inspector {
    pub asker: Asker,
}

impl Inspector {
    #[must_use]
    pub fn new(context: Arc<Context>, transport: Arc<dyn PspTransport>) -> Self {
        Self { asker: Asker::new(context, transport) }
    }

    #[must_use]
    pub fn context(&self) -> &Context {
        &self.asker.context
    }

    /// Looks at an account's endpoint from both sides.
    ///
    /// # Errors
    /// The database is away.
    pub async fn inspect(&self, key: &AccountKey, account: &Account) -> Result<Report, StoreError> {
        let now = self.context().clock.now();
        let mut report = Report { at: now, url: account.keys.url.clone(), ..Report::default() };
        let Some(url) = account.keys.url.as_deref() else {
            let says = "where PSPs call us is not configured: set [ingress] public_url, or url of this account";
            report.doubts.extend([Side::Registered, Side::Outside].map(|side| Doubt::new(side, says)));
            return Ok(report);
        };
        let (registered, seen) = tokio::join!(self.registered(key, account, url), outside::look(account, url, now));
        match registered? {
            Registered::Told(findings) => {
                report.told_at = Some(now);
                report.findings.extend(findings);
            }
            Registered::Doubt(says) => report.doubts.push(Doubt::new(Side::Registered, says)),
            Registered::NotListed(note) => report.notes.push(note),
        }
        report.findings.extend(seen.findings);
        report.doubts.extend(seen.doubts.into_iter().map(|says| Doubt::new(Side::Outside, says)));
        report.certificate_ends_at = seen.certificate_ends;
        if account.mode == Mode::Test && url.starts_with("http:") {
            report.notes.push("the public URL is http:, which is for tests only".to_owned());
        }
        Ok(report)
    }

    async fn registered(&self, key: &AccountKey, account: &Account, url: &str) -> Result<Registered, StoreError> {
        let by_hand = account.psp.endpoint_by_hand();
        let Some(wanted) = account.psp.wanted_endpoint(account) else {
            return Ok(Registered::NotListed(format!("no API lists what is registered: {by_hand}")));
        };
        if account.psp.api_key(account).is_none() {
            let doubt =
                format!("what is registered is not known without an api_key of this account; it is to be seen in: {by_hand}");
            return Ok(Registered::Doubt(doubt));
        }
        match self.list(key, account).await {
            Ok(listed) => {
                let others = self.other_urls(key);
                let name = format!("{}/{}", key.psp, key.account);
                Ok(Registered::Told(compare(&listed, &ours(&name, account, url, wanted, None, &others))))
            }
            Err(UnlistedError::Store(error)) => Err(error),
            Err(error) => Ok(Registered::Doubt(format!("what is registered is not known: {:#}", anyhow::Error::new(error)))),
        }
    }

    /// The URLs of this PSP's other accounts.
    #[must_use]
    pub fn other_urls(&self, key: &AccountKey) -> Vec<String> {
        let others = self.context().accounts.iter().filter(|(other, _)| other.psp == key.psp && *other != key);
        others.filter_map(|(_, account)| account.keys.url.clone()).collect()
    }

    /// Every endpoint that is registered at the account's PSP, all pages of them.
    ///
    /// # Errors
    /// It may not be asked now, does not answer, or its answer is none.
    pub async fn list(&self, key: &AccountKey, account: &Account) -> Result<Vec<Endpoint>, UnlistedError> {
        self.converse(key, account, LIST_MAX, async |requests| self.pages(key, account, requests).await).await
    }

    /// Sends a request that changes what is registered, and reads the answer.
    ///
    /// # Errors
    /// It may not be asked now, or refuses. Without an answer, the change may have been made.
    pub async fn change(
        &self,
        key: &AccountKey,
        account: &Account,
        request: http::Request<bytes::Bytes>,
    ) -> Result<ChangedEndpoint, UnlistedError> {
        let change = async |requests: &mut u32| {
            *requests += 1;
            let response = self.asker.send(key, account, request).await?;
            Ok(account.psp.read_changed_endpoint(&response)?)
        };
        self.converse(key, account, LIST_MAX, change).await
    }

    /// Talks with the account's PSP, within its manners and a time.
    async fn converse<T>(
        &self,
        key: &AccountKey,
        account: &Account,
        within: Duration,
        talk: impl AsyncFnOnce(&mut u32) -> Result<T, AskingError>,
    ) -> Result<T, UnlistedError> {
        let context = self.context();
        let (now, per_second) = (context.clock.now(), account.psp.profile().asks_per_second);
        let lease = Lease { now, until: now.plus(LEASE), token: context.ids.next(), per_second };
        if let Leave::NotBefore(at) = context.store.begin_asking(key, &lease, 1).await? {
            return Err(UnlistedError::NotNow(at));
        }
        let mut requests = 0;
        let talked = timeout(within, talk(&mut requests)).await;
        let talked = talked.unwrap_or(Err(AskingError::Slow(within.as_secs())));
        let ended = Ended { requests, manner: talked.as_ref().map_or_else(manner, |_| Manner::Answered) };
        let news = context.store.end_asking(key, context.clock.now(), lease.token, ended).await?;
        reconcile::report(key, news);
        Ok(talked?)
    }

    async fn pages(&self, key: &AccountKey, account: &Account, requests: &mut u32) -> Result<Vec<Endpoint>, AskingError> {
        let (mut listed, mut cursor, mut read) = (Vec::new(), None::<String>, BTreeSet::new());
        for _ in 0..PAGES_MAX {
            let request = account.psp.endpoints_request(cursor.as_deref(), account)?;
            *requests += 1;
            let response = self.asker.send(key, account, request).await?;
            // Adapters never panic (invariant I7); if one does, it costs its own look and not the worker.
            let page = catch_unwind(AssertUnwindSafe(|| account.psp.read_endpoints_at(cursor.as_deref(), &response)))
                .map_err(|_| AskingError::Panicked)??;
            listed.extend(page.endpoints);
            match page.next {
                Some(next) if !read.insert(next.clone()) => return Err(AskingError::Loop),
                Some(next) => cursor = Some(next),
                None => return Ok(listed),
            }
        }
        Err(AskingError::Endless(PAGES_MAX))
    }
}

/// How a PSP behaved that was asked about endpoints. Keys that may read payments often may not list endpoints: a refusal of
/// these says nothing about those.
fn manner(error: &AskingError) -> Manner {
    match error {
        AskingError::Read(ReadError::Unauthorized(_)) => Manner::Withheld,
        // It understood, and said no to our document.
        AskingError::Read(ReadError::Unintelligible(words)) if words.starts_with("status 4") => Manner::Withheld,
        error => error.manner(),
    }
}

/// What the PSP said.
enum Registered {
    Told(Vec<Finding>),
    /// It did not say.
    Doubt(String),
    /// It has no API for that.
    NotListed(String),
}

/// What an account wants to be registered; an operator may name the endpoint.
#[must_use]
pub fn ours<'a>(
    name: &'a str,
    account: &'a Account,
    url: &'a str,
    wanted: WantedEndpoint,
    operators: Option<&'a str>,
    others: &'a [String],
) -> Ours<'a> {
    let id = operators.map(Named::Operator).or(account.keys.webhook_id.as_deref().map(Named::Setting));
    Ours { name, mode: account.mode, url, id, wanted, others, by_hand: account.psp.endpoint_by_hand() }
}

impl Report {
    /// What is to be kept: of a side that could not be told now, what was known before stays.
    fn following(&self, before: Option<&Self>) -> Self {
        let mut kept = self.clone();
        let Some(before) = before else { return kept };
        let in_doubt = |side| self.doubts.iter().any(|doubt| doubt.about == side);
        let known = self.kinds();
        let stays = |finding: &&Finding| in_doubt(finding.finding.side()) && !known.contains(&finding.finding);
        kept.findings.extend(before.findings.iter().filter(stays).cloned());
        if in_doubt(Side::Registered) {
            kept.told_at = before.told_at;
        }
        if in_doubt(Side::Outside) {
            kept.certificate_ends_at = kept.certificate_ends_at.or(before.certificate_ends_at);
        }
        kept
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        self.findings.iter().map(|finding| finding.finding).collect()
    }

    /// Whether webhooks do not come, or not all of them.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Looks at an account if that is due, or (`only_if_due` = false) because somebody asks, and keeps what was seen. `None`: it is
/// not due, or another worker is looking.
///
/// # Errors
/// The database is away.
pub async fn look(
    inspector: &Inspector,
    key: &AccountKey,
    account: &Account,
    only_if_due: bool,
) -> Result<Option<Report>, StoreError> {
    let context = inspector.context();
    let now = context.clock.now();
    let watch = WatchKey { kind: WatchKind::Endpoint, account: key.clone() };
    let lease = WatchLease { now, until: now.plus(LEASE), token: context.ids.next(), only_if_due };
    let Some(leased) = context.store.lease_watch(&watch, &lease).await? else { return Ok(None) };
    let before = leased.state.as_deref().and_then(read);
    let report = inspector.inspect(key, account).await?;
    let kept = report.following(before.as_ref());
    let state = serde_json::to_string(&kept).unwrap_or_default();
    let next_at = now.plus(if report.doubts.is_empty() { PERIOD } else { PERIOD_IN_DOUBT });
    if context.store.finish_watch(&watch, lease.token, next_at, &state).await? {
        tell(key, before.as_ref(), &kept);
    }
    Ok(Some(report))
}

/// Says what a person should hear of, once: by the worker that found it.
fn tell(key: &AccountKey, before: Option<&Report>, after: &Report) {
    let (psp, account) = (&*key.psp, &*key.account);
    let known = before.map(Report::kinds).unwrap_or_default();
    for Finding { finding, severity, says, remedy } in after.findings.iter().filter(|new| !known.contains(&new.finding)) {
        let finding = finding.as_str();
        match severity {
            Severity::Error => tracing::error!(event = "endpoint.wrong", psp, account, finding, remedy, "{says}"),
            Severity::Warning => tracing::warn!(event = "endpoint.wrong", psp, account, finding, remedy, "{says}"),
        }
    }
    for gone in known.difference(&after.kinds()) {
        tracing::info!(event = "endpoint.mended", psp, account, finding = gone.as_str(), "the endpoint is as it must be in this");
    }
}

/// What was written by another version and cannot be read counts as nothing.
fn read(state: &str) -> Option<Report> {
    serde_json::from_str(state).ok()
}

/// Looks at every account that is due, and sends a canary if one is due.
///
/// # Errors
/// The database is away.
pub async fn step(inspector: &Inspector) -> Result<usize, StoreError> {
    let context = inspector.context();
    if let Some((_, account)) = canary::account(context) {
        canary::step(context, &account, canary::PATIENCE, true).await?;
    }
    let mut looked = 0;
    for (key, account) in &context.accounts {
        looked += usize::from(look(inspector, key, account, true).await?.is_some());
    }
    Ok(looked)
}

/// Steps until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(inspector: Arc<Inspector>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let stepped = tokio::select! {
            // A look that is cut off is done again when its lease ends.
            () = shutdown.stopping() => return Ok(()),
            stepped = step(&inspector) => stepped,
        };
        if let Err(error) = stepped {
            tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "endpoints are looked at later");
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

/// What was seen of each account last, by any worker's word.
///
/// # Errors
/// The database does not answer.
pub async fn reports(context: &Context) -> Result<Vec<(AccountKey, Report)>, StoreError> {
    let states = context.store.watch_states(WatchKind::Endpoint).await?;
    Ok(states.into_iter().filter_map(|state| Some((state.key.account, read(&state.state)?))).collect())
}

/// Shows what was found, until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, what was found last stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        match show_all(&context).await {
            Ok(()) => {}
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "endpoints are not shown"),
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

async fn show_all(context: &Context) -> Result<(), StoreError> {
    for (key, report) in reports(context).await? {
        // One that is configured no more is shown no more.
        if let Some(account) = context.accounts.get(&key) {
            show(&key, account, &report);
        }
    }
    if canary::account(context).is_some()
        && let Some(flights) = canary::flights(context).await?
    {
        canary::show(&flights);
    }
    Ok(())
}

fn show(key: &AccountKey, account: &Account, report: &Report) {
    let kinds = report.kinds();
    for kind in Kind::ALL {
        let labels = [(PSP, Arc::clone(&key.psp)), (ACCOUNT, Arc::clone(&key.account)), (FINDING, Arc::from(kind.as_str()))];
        metrics::gauge!(ENDPOINT_FINDINGS, &labels).set(f64::from(u8::from(kinds.contains(kind))));
    }
    let set = |name: &'static str, at: Timestamp| {
        metrics::gauge!(name, PSP => Arc::clone(&key.psp), ACCOUNT => Arc::clone(&key.account)).set(canary::millis(at.millis()));
    };
    // Where nobody can be asked, nothing is overdue.
    if account.psp.wanted_endpoint(account).is_some() && account.psp.api_key(account).is_some() {
        set(ENDPOINT_TOLD_TIMESTAMP_SECONDS, report.told_at.unwrap_or_default());
    }
    if let Some(ends) = report.certificate_ends_at {
        set(PUBLIC_CERTIFICATE_EXPIRY_SECONDS, ends);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    fn report(kinds: &[Kind], doubts: &[Side]) -> Report {
        Report {
            at: NOW,
            findings: kinds.iter().map(|kind| Finding::new(*kind, "it", "mend it")).collect(),
            doubts: doubts.iter().map(|side| Doubt::new(*side, "silence")).collect(),
            told_at: (!doubts.contains(&Side::Registered)).then_some(NOW),
            ..Report::default()
        }
    }

    #[test]
    fn what_was_wrong_stays_wrong_until_somebody_says_otherwise() {
        let before = report(&[Kind::Disabled, Kind::CertificateExpiring], &[]);
        let after = |kinds: &[Kind], doubts: &[Side]| {
            let kept = report(kinds, doubts).following(Some(&before));
            assert_eq!(kept.told_at, Some(NOW));
            kept.kinds().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(after(&[], &[]), []);
        assert_eq!(after(&[], &[Side::Registered]), [Kind::Disabled], "the PSP is silent");
        assert_eq!(after(&[], &[Side::Outside]), [Kind::CertificateExpiring], "the way could not be gone");
        assert_eq!(after(&[], &[Side::Registered, Side::Outside]), [Kind::Disabled, Kind::CertificateExpiring]);
        assert_eq!(after(&[Kind::PlainHttp], &[Side::Outside]), [Kind::PlainHttp, Kind::CertificateExpiring]);
        assert_eq!(after(&[Kind::MissingEvents], &[]), [Kind::MissingEvents]);
        assert_eq!(report(&[], &[Side::Registered]).following(None).told_at, None);
    }

    #[test]
    fn a_refusal_to_list_says_nothing_about_payments() {
        let read = |error| manner(&AskingError::Read(error));
        assert_eq!(read(ReadError::Unauthorized(401)), Manner::Withheld);
        assert_eq!(read(ReadError::Unauthorized(403)), Manner::Withheld);
        assert_eq!(read(ReadError::Unintelligible("status 400: no".to_owned())), Manner::Withheld);
        assert_eq!(read(ReadError::Unavailable { status: 503, retry_after: None }), Manner::Failed { retry_after: None });
        assert_eq!(read(ReadError::TooManyRequests { retry_after: None }), Manner::SlowDown { retry_after: None });
    }
}
