//! How complete webhooks are: of every payment that was decided, whether its webhook told it first, or asking did, and then what
//! became of its webhook.
//!
//! A payment is *decided* by the first fact that says what it [came to](crate::order::CameTo): that money was captured, if any
//! ever is; else that it failed, was canceled or expired. [`apply`](crate::apply) keeps one row of it, with when a webhook that
//! said so came, and when asking told it.
//!
//! | a payment is | if |
//! |---|---|
//! | by webhook | a webhook with that fact, or one that had its PSP asked, came before asking told it |
//! | pending | asking told it, and its webhook has not come; the PSP may still send it |
//! | late | asking told it first, and its webhook came within the PSP's retry window after that |
//! | missed | asking told it, and no webhook came within that window |
//!
//! Asking is all that is not a webhook: looks at single payments, and the PSP's list. Of a webhook that proves nothing, only the
//! payment is known that it is about: what the answer to it tells, it told, and nothing that a later look finds. A webhook that is
//! not understood has told nothing, until its replay. What a PSP sends no webhook of (Paystack: failures) is
//! not counted, unless one told it all the same.
//!
//! A payment is *due for a webhook* a usual delay after asking told what it came to; or, where nobody can be asked, after its
//! order was registered. So an endpoint that fell silent shows by our own payments, however few they are: by how many became
//! due since the last webhook came, whatever it was about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{self, Profile};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{
    ACCOUNT, BASIS, LE, OUTCOME, PAYMENTS_LEARNED, PSP, WEBHOOK_LATENESS_BUCKET, WEBHOOK_SILENCE_SECONDS, WEBHOOKS_EXPECTED,
};

use crate::consume::Context;
use crate::order::AccountKey;
use crate::store::{AskedFirst, Expected, LATENESS_S, Store, StoreError};

/// What the metrics count: longer than most PSPs send a webhook again, so that what is missed shows.
pub const METRICS_SPAN: Duration = Duration::from_hours(24 * 7);
/// Between two counts for the metrics.
const WATCH_PERIOD: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
/// An hour is counted anew until it is over by so much: a transaction bears the time when it was begun.
const SETTLED_AFTER: Duration = Duration::from_mins(15);
/// From a payment to its webhook, and for how long that is sent again, of a PSP that this version does not know.
const UNKNOWN: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(72));

/// An account's payments that were decided within a time, by who told it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completeness {
    pub account: AccountKey,
    pub by_webhook: u64,
    pub asked_first: AskedFirst,
    /// For how long its PSP sends a webhook again.
    pub retry_window: Duration,
    pub last_webhook_at: Option<Timestamp>,
    /// Since the last webhook.
    pub expected: Expected,
}

impl Completeness {
    /// All that were decided.
    #[must_use]
    pub const fn payments(&self) -> u64 {
        let AskedFirst { late, missed, pending, .. } = self.asked_first;
        self.by_webhook + late + missed + pending
    }

    /// The share of `count` among those of which it is known what became of their webhook; `None`: there are none.
    #[must_use]
    pub fn ratio(&self, count: u64) -> Option<f64> {
        let known = self.payments() - self.asked_first.pending;
        #[expect(clippy::cast_precision_loss, reason = "a share is read to a few digits")]
        (known > 0).then(|| count as f64 / known as f64)
    }
}

/// Every account that is configured or has payments, as it stands now.
///
/// # Errors
/// The database does not answer.
pub async fn report(context: &Context, since: Timestamp, until: Timestamp) -> Result<Vec<Completeness>, StoreError> {
    let learned = context.store.learned(since, until).await?.into_iter().collect();
    completed(context, since, until, &learned).await
}

/// Counts for the metrics until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, the last count stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut hours = Hours::default();
    loop {
        match counted(&context, &mut hours).await {
            Ok(all) => all.iter().for_each(|one| show(one, context.clock.now())),
            // The pulse says so.
            Err(error) => {
                tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "webhooks are not counted");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

async fn counted(context: &Context, hours: &mut Hours) -> Result<Vec<Completeness>, StoreError> {
    let now = context.clock.now();
    let since = now.minus(METRICS_SPAN);
    let learned = hours.total(&*context.store, since, now).await?;
    completed(context, since, now, &learned).await
}

async fn completed(
    context: &Context,
    since: Timestamp,
    until: Timestamp,
    learned: &BTreeMap<AccountKey, u64>,
) -> Result<Vec<Completeness>, StoreError> {
    let now = context.clock.now();
    let states = context.store.account_states().await?;
    let mut keys: BTreeSet<&AccountKey> = context.accounts.keys().chain(learned.keys()).collect();
    keys.extend(states.iter().map(|state| &state.account));
    let habits = |key: &AccountKey| {
        let configured = context.accounts.get(key).map(|account| account.psp.profile());
        let profile = configured.or_else(|| psp::find(&key.psp).map(psp::Psp::profile));
        profile.map_or(UNKNOWN, |Profile { usual_delay, retry_window, .. }| (*usual_delay, *retry_window))
    };
    let windows: Vec<(AccountKey, Duration)> = keys.into_iter().map(|key| (key.clone(), habits(key).1)).collect();
    let asked_first = context.store.asked_first(since, until, now, &windows).await?;
    let mut all = Vec::with_capacity(windows.len());
    for ((account, retry_window), asked_first) in windows.into_iter().zip(asked_first) {
        let state = states.iter().find(|state| state.account == account);
        let last_webhook_at = state.and_then(|state| state.last_webhook_at);
        let due_by = now.minus(habits(&account).0);
        let expected = context.store.expected(&account, last_webhook_at.unwrap_or_default(), due_by).await?;
        let AskedFirst { late, missed, pending, .. } = asked_first;
        let by_webhook = learned.get(&account).copied().unwrap_or_default().saturating_sub(late + missed + pending);
        all.push(Completeness { account, by_webhook, asked_first, retry_window, last_webhook_at, expected });
    }
    Ok(all)
}

fn show(one: &Completeness, now: Timestamp) {
    let Completeness { account: AccountKey { psp, account }, by_webhook, asked_first, last_webhook_at, expected, .. } = one;
    let AskedFirst { late, missed, pending, came_by, .. } = asked_first;
    let labels = || (Arc::clone(psp), Arc::clone(account));
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    for (outcome, count) in [("webhook", by_webhook), ("late", late), ("missed", missed), ("pending", pending)] {
        let (psp, account) = labels();
        metrics::gauge!(PAYMENTS_LEARNED, PSP => psp, ACCOUNT => account, OUTCOME => outcome).set(*count as f64);
    }
    for (place, count) in came_by.iter().enumerate() {
        let (psp, account) = labels();
        let le = LATENESS_S.get(place).map_or_else(|| "+Inf".to_owned(), u32::to_string);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!(WEBHOOK_LATENESS_BUCKET, PSP => psp, ACCOUNT => account, LE => le).set(*count as f64);
    }
    for (basis, count) in [("decided", expected.decided), ("registered", expected.registered)] {
        let (psp, account) = labels();
        metrics::gauge!(WEBHOOKS_EXPECTED, PSP => psp, ACCOUNT => account, BASIS => basis).set(f64::from(count));
    }
    if let Some(last) = last_webhook_at {
        let (psp, account) = labels();
        metrics::gauge!(WEBHOOK_SILENCE_SECONDS, PSP => psp, ACCOUNT => account).set(now.since(*last).as_secs_f64());
    }
}

/// How many payments were decided, by hour: what is past is counted once, since nothing of it changes.
#[derive(Default)]
struct Hours(BTreeMap<Timestamp, Vec<(AccountKey, u64)>>);

impl Hours {
    /// By whole hours, from the one that `since` lies in.
    async fn total(
        &mut self,
        store: &dyn Store,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<BTreeMap<AccountKey, u64>, StoreError> {
        let length = i64::try_from(HOUR.as_millis()).unwrap_or(i64::MAX);
        let mut hour = Timestamp::from_millis(since.millis().div_euclid(length).saturating_mul(length));
        self.0 = self.0.split_off(&hour);
        let mut total = BTreeMap::new();
        while hour <= now {
            let end = hour.plus(HOUR);
            let counted = match self.0.get(&hour) {
                Some(counted) => counted.clone(),
                None => store.learned(hour, end).await?,
            };
            for (account, count) in &counted {
                *total.entry(account.clone()).or_default() += count;
            }
            if end.plus(SETTLED_AFTER) <= now {
                self.0.insert(hour, counted);
            }
            hour = end;
        }
        Ok(total)
    }
}
