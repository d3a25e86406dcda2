//! Reading the PSPs' lists of events or payments, so that what no webhook told is learned all the same: refunds and disputes made
//! in a PSP's dashboard, payments that we never heard of, and whatever happened while we were away.
//!
//! [`step`] reads the next page of every account's list, where one is due and the account's [`manners`](crate::manners) allow
//! it; [`run`] only waits and steps. Which page that is, a [`Course`] says, one row an account, shared by all workers:
//!
//! | step | what is durable after it | a crash there |
//! |---|---|---|
//! | lease the page | nobody else reads it for two minutes | the lease ends |
//! | ask the PSP | | the page is read again |
//! | ask about payments that are hinted at; apply what is told, as webhooks are applied | all of the page | it is read again, and known |
//! | keep the course behind the page | the place | |
//!
//! A list is distrusted: what it says adds facts, and what it does not say proves nothing. A page that cannot be read, leads in a
//! circle, goes on for ever or tells of another time moves nothing; see [`course`] for what a whole list is believed.
//!
//! [`fill`] reads a time again on demand, beside the course.

pub mod course;
pub mod fill;
mod page;
pub mod walk;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Account, Listing, Window};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    ACCOUNT, OUTCOME, PSP, REASON, SWEEP_BEHIND_SECONDS, SWEEP_EVENTS_TOTAL, SWEEP_FAILURES_TOTAL, SWEEP_PAGES_TOTAL,
};

use self::course::{Course, Failure};
pub use self::page::Counts;
use self::page::{Stored, Trouble};
use self::walk::Walk;
use crate::asking::Asker;
use crate::consume::Context;
use crate::manners::{Ended, Manner};
use crate::order::AccountKey;
use crate::reconcile;
use crate::store::{DuePage, Lease, LeasedPage, ReadPage, StoreError};

/// So long nobody else reads a page. What outlasts it changes nothing of the course.
const LEASE: Duration = Duration::from_mins(2);
/// The longest between two steps of an account: another worker may have left it a page.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Between two looks at how far the lists are read.
const WATCH_PERIOD: Duration = Duration::from_secs(30);

const _: () = assert!(page::TIME_MAX.as_secs() < LEASE.as_secs());

/// What the sweep needs beside the write path.
pub struct Sweeper {
    pub asker: Asker,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Read and stored.
    pub pages: usize,
    pub failed: usize,
    pub counts: Counts,
}

/// A step of one account, and when the next one may do something.
struct Stepped {
    report: StepReport,
    not_before: Timestamp,
}

impl Sweeper {
    #[must_use]
    pub const fn new(asker: Asker) -> Self {
        Self { asker }
    }

    #[must_use]
    pub fn context(&self) -> &Context {
        &self.asker.context
    }
}

/// The accounts whose list can be read.
fn accounts(context: &Context) -> impl Iterator<Item = (&AccountKey, &Arc<Account>, Listing)> {
    context.accounts.iter().filter_map(|(key, account)| Some((key, account, listing(account)?)))
}

/// How an account's list is read; `None`: the PSP has none, or cannot be asked with what is configured.
#[must_use]
pub fn listing(account: &Account) -> Option<Listing> {
    let listing = account.psp.profile().list?;
    let window = Window { since: Timestamp::default(), until: Timestamp::default() };
    let can_ask = account.psp.api_key(account).is_some() && account.psp.events_request(window, None, account).is_ok();
    can_ask.then_some(listing)
}

/// Reads the next page of every account's list, where one is due.
///
/// # Errors
/// The database is away.
pub async fn step(sweeper: &Sweeper) -> Result<StepReport, StoreError> {
    let mut steps: FuturesUnordered<_> =
        accounts(sweeper.context()).map(|(key, account, listing)| step_account(sweeper, key, account, listing)).collect();
    let mut all = StepReport::default();
    while let Some(stepped) = steps.next().await {
        let StepReport { pages, failed, counts } = stepped?.report;
        all.pages += pages;
        all.failed += failed;
        all.counts += counts;
    }
    Ok(all)
}

/// Steps until the stop, each account for itself.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(sweeper: Sweeper, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut loops: FuturesUnordered<_> =
        accounts(sweeper.context()).map(|(key, account, listing)| run_account(&sweeper, key, account, listing)).collect();
    tokio::select! {
        // A page that is cut off loses nothing: its lease ends, and it is read again.
        () = shutdown.stopping() => {}
        // They never end; without any there is only the stop to wait for.
        Some(()) = loops.next() => {}
        else => shutdown.stopping().await,
    }
    Ok(())
}

async fn run_account(sweeper: &Sweeper, key: &AccountKey, account: &Account, listing: Listing) {
    loop {
        let pause = match step_account(sweeper, key, account, listing).await {
            Ok(Stepped { not_before, .. }) => not_before.since(sweeper.context().clock.now()).min(IDLE_MAX),
            Err(error) => {
                let (psp, account) = (&*key.psp, &*key.account);
                tracing::warn!(psp, account, error = format!("{:#}", anyhow::Error::new(error)), "the sweep pauses");
                IDLE_MAX
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Shows how far every account's list is read, until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, what was said last stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        show(&context).await;
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

async fn show(context: &Context) {
    for (key, ..) in accounts(context) {
        match context.store.course(key).await {
            Ok(Some(course)) => {
                let behind = context.clock.now().since(course.swept_until());
                let labels = [(PSP, key.psp.to_string()), (ACCOUNT, key.account.to_string())];
                metrics::gauge!(SWEEP_BEHIND_SECONDS, &labels).set(behind.as_secs_f64());
            }
            // It begins soon.
            Ok(None) => {}
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "a sweep's age is not known"),
        }
    }
}

async fn step_account(sweeper: &Sweeper, key: &AccountKey, account: &Account, listing: Listing) -> Result<Stepped, StoreError> {
    let context = sweeper.context();
    let (now, per_second) = (context.clock.now(), account.psp.profile().asks_per_second);
    let lease = Lease { now, until: now.plus(LEASE), token: context.ids.next(), per_second };
    let mut due = match context.store.lease_page(key, &lease).await? {
        LeasedPage::Page(due) => due,
        LeasedPage::NotBefore(not_before) => return Ok(Stepped { report: StepReport::default(), not_before }),
    };
    let ahead = due.course.ahead(&listing, now);
    if let Some(lost) = ahead.lost {
        say_lost(key, lost);
    }
    let asked = page::ask(&sweeper.asker, key, account, &ahead.walk, lease.token).await;
    let manner = asked.as_ref().map_or_else(page::manner, |_| Manner::Answered);
    let stored = match asked {
        Ok(told) => page::store(context, key, account, &ahead.walk, told).await?,
        Err(error) => Err(Trouble::from(error)),
    };
    let (report, due_at) = match stored {
        Ok(stored) => {
            // At most every other request is the sweep's: the rest is for payments.
            let pace = Duration::from_secs(2) / per_second.max(1);
            (report(key, &stored), go_on(context, &mut due, &listing, stored, pace).await?)
        }
        Err(trouble) => {
            say_trouble(key, &ahead.walk, &trouble);
            let due_at = due.course.failed(ahead.walk, trouble.failure(), context.clock.now());
            (StepReport { failed: 1, ..StepReport::default() }, due_at)
        }
    };
    let ended = Ended { requests: 1, manner };
    let read = ReadPage { at: context.clock.now(), course: due.course.clone(), due_at, ended };
    reconcile::report(key, context.store.finish_page(&due, &read).await?);
    Ok(Stepped { report, not_before: due_at })
}

/// Moves the course behind a page that is stored; when the next one is due.
async fn go_on(
    context: &Context,
    due: &mut DuePage,
    listing: &Listing,
    stored: Stored,
    pace: Duration,
) -> Result<Timestamp, StoreError> {
    let Stored { walk, is_last, .. } = stored;
    let told = match Course::silence(listing, &walk).filter(|_| is_last) {
        Some(silence) => context.store.told_within(&due.account, silence).await?,
        None => false,
    };
    let window = walk.window;
    let onward = due.course.read(listing, walk, is_last, told, pace, context.clock.now());
    if onward.doubted {
        let (psp, account) = (&*due.account.psp, &*due.account.account);
        let (since, until) = (window.since.to_string(), window.until.to_string());
        tracing::error!(event = "sweep.incomplete", psp, account, since, until, "the list says less than webhooks did");
    }
    if told {
        fail(&due.account, "incomplete");
    }
    Ok(onward.due_at)
}

fn report(key: &AccountKey, stored: &Stored) -> StepReport {
    let Counts { new, known, hints, quarantined } = stored.counts;
    metrics::counter!(SWEEP_PAGES_TOTAL, PSP => Arc::clone(&key.psp)).increment(1);
    for (outcome, count) in [("new", new), ("known", known), ("hint", hints), ("quarantined", quarantined)] {
        metrics::counter!(SWEEP_EVENTS_TOTAL, PSP => Arc::clone(&key.psp), OUTCOME => outcome).increment(count as u64);
    }
    StepReport { pages: 1, failed: 0, counts: stored.counts }
}

fn say_lost(key: &AccountKey, lost: Window) {
    let (psp, account) = (&*key.psp, &*key.account);
    let (since, until) = (lost.since.to_string(), lost.until.to_string());
    tracing::error!(event = "sweep.lost", psp, account, since, until, "the list does not reach back to where it was read to");
    fail(key, "beyond_reach");
}

fn say_trouble(key: &AccountKey, walk: &Walk, trouble: &Trouble) {
    let (psp, account, pages) = (&*key.psp, &*key.account, walk.pages());
    let (since, until) = (walk.window.since.to_string(), walk.window.until.to_string());
    let (error, reason) = (trouble.to_string(), trouble.reason());
    match trouble.failure() {
        Failure::NoAnswer => tracing::warn!(event = "sweep.failed", psp, account, since, until, pages, reason, error),
        Failure::Unreadable | Failure::Lost => {
            tracing::error!(event = "sweep.failed", psp, account, since, until, pages, reason, error);
        }
    }
    fail(key, reason);
}

fn fail(key: &AccountKey, reason: &'static str) {
    metrics::counter!(SWEEP_FAILURES_TOTAL, PSP => Arc::clone(&key.psp), REASON => reason).increment(1);
}
