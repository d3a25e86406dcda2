//! Queue and clock to database: consume, apply, reconcile, tell, internal API.
//!
//! In the order of one webhook: [`consume`] (a batch of deliveries) → [`seen`] (was it committed before?) → [`inbox`] (a
//! delivery becomes rows) → [`apply`] (rows become writes; pure) → [`order`] (what facts amount to; pure) → [`store`] (one
//! transaction; two backends) → [`outbox`] (who is told of it: [`change`] is what, [`notify`] how subscribers are called).
//! Beside it: [`reconcile`] asks PSPs about payments, when the [`schedule`] says so and as much as is good [`manners`], and
//! [`sweep`] reads their lists, both by
//! [`asking`] through [`transport`] with tokens that `access` keeps; [`api`] is the shop's door; [`replay`] translates kept
//! webhooks again; [`endpoints`] sees whether what PSPs have registered leads to us, by their lists, by the way from [`outside`],
//! and by a [`canary`]; [`tail`] reads what changed for those who follow; [`timeline`] puts rows into words (pure); [`overdue`]
//! counts who waits too long; [`expiry`] ends orders whose time is over; [`unsettled`] lists those that nothing ends;
//! [`completeness`] holds webhooks against payments; [`retention`] drops what is old; [`pulse`] says whether the database is
//! there; [`pace`] where a
//! batch's time goes; [`ids`] makes random ids.

mod access;
pub mod api;
pub mod apply;
pub mod asking;
pub mod canary;
pub mod change;
pub mod completeness;
pub mod consume;
pub mod dead_letters;
pub mod endpoints;
pub mod expiry;
pub mod ids;
pub mod inbox;
pub mod manners;
pub mod notify;
pub mod order;
pub mod outbox;
pub mod outside;
pub mod overdue;
pub mod pace;
pub mod pulse;
pub mod reconcile;
pub mod replay;
pub mod retention;
pub mod schedule;
pub mod seen;
pub mod store;
pub mod sweep;
pub mod tail;
pub mod timeline;
pub mod transport;
pub mod unsettled;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use paybell_shared::clock::Clock;
use paybell_shared::config::{Config, ConfigError, Registration};
use paybell_shared::ops::Check;
use paybell_shared::psp::{Account, Profile};
use paybell_shared::queue::Queue;
use paybell_shared::serve::{self, Limits};
use paybell_shared::shutdown::Shutdown;
use uuid::Uuid;

use crate::asking::Asker;
use crate::consume::{BatchLimits, Context};
use crate::endpoints::Inspector;
use crate::ids::Ids;
use crate::notify::Notifier;
use crate::order::{AccountKey, Rules};
use crate::outbox::Relay;
use crate::pulse::Pulse;
use crate::reconcile::Reconciler;
use crate::schedule::Habits;
use crate::store::{ConnectError, Policy, Store, StoreError};
use crate::sweep::Sweeper;
use crate::tail::Tail;
use crate::transport::HttpTransport;

/// Between attempts to reach a database that is not there at the start: doubled from the shortest to the longest.
const CONNECT_PAUSE_MIN: Duration = Duration::from_millis(250);
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_hours(24);

/// A running worker.
pub struct Started {
    /// Where the internal API listens, with the port that it got.
    pub api: SocketAddr,
    /// Whether it does its work.
    pub check: Check,
}

/// Serves the internal API and, unless `[worker] consume` is false, consumes, reconciles and tells, until the stop. A database or
/// queue that is down is no error: the worker is not ready, and waits for it.
///
/// # Errors
/// A setting cannot be used, or the API's address cannot be had.
pub async fn start(config: &Config, queue: &Queue, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> anyhow::Result<Started> {
    if config.api.tokens.is_empty() {
        let problem = "is missing; without one nobody could use the internal API".to_owned();
        return Err(ConfigError::Setting { setting: "[api] token".to_owned(), problem }.into());
    }
    let seen = seen::connect(&config.seen.url)?;
    let notifiers = notifiers(config)?;
    let listen = config.api.listen;
    let listener = serve::bind(listen).with_context(|| format!("[api] listen: {listen} cannot be had"))?;
    let api = listener.local_addr()?;
    let answering = api::Answering::default();
    let pulse = Arc::new(Pulse::default());
    let tail = Arc::new(Tail::new(tail::PAGES_KEPT));
    let settings = api::Settings::of(config, Arc::new(HttpTransport::new()?));
    let router = api::router(Arc::clone(&answering), settings, Arc::clone(&tail), shutdown);
    serve::run("api", listener, Limits::from(&config.limits), router, shutdown);

    let accounts: HashMap<AccountKey, Arc<Account>> =
        config.accounts.iter().map(|configured| keyed(&configured.account)).collect();
    let parts = Parts {
        seen,
        accounts,
        clock,
        policy: policy(config),
        consume: config.worker.consume.then(|| queue.clone()),
        keep_bodies: DAY * config.retention.bodies_days,
        notifiers,
        limits: BatchLimits {
            deliveries_max: config.limits.batch_max,
            linger: Duration::from_millis(config.limits.batch_linger_ms),
        },
        answering,
        tail,
        parked_max: Duration::from_secs(config.limits.parked_max_s),
        pulse: Arc::clone(&pulse),
        shutdown: shutdown.clone(),
    };
    let url = config.store.url.clone();
    let check = pulse::check(Arc::clone(&pulse));
    match reach(&url).await {
        Ok((store, epoch)) => parts.begin(store, epoch)?,
        Err(Unreached::Connect(error)) if error.is_permanent(&url) => return Err(error.into()),
        Err(error) => {
            report_unreached(&pulse, error);
            let waiting = shutdown.clone();
            shutdown.spawn("store", async move {
                match wait_for_store(&url, &pulse, &waiting).await? {
                    Some((store, epoch)) => parts.begin(store, epoch),
                    None => Ok(()),
                }
            });
        }
    }
    tracing::info!(address = %api, consume = config.worker.consume, "the internal API answers");
    Ok(Started { api, check })
}

/// Everything but the store, until that is there.
struct Parts {
    seen: Arc<dyn seen::SeenEvents>,
    accounts: HashMap<AccountKey, Arc<Account>>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    consume: Option<Queue>,
    keep_bodies: Duration,
    notifiers: Vec<Notifier>,
    limits: BatchLimits,
    answering: Arc<OnceLock<Arc<Context>>>,
    tail: Arc<Tail>,
    parked_max: Duration,
    pulse: Arc<Pulse>,
    shutdown: Shutdown,
}

impl Parts {
    fn begin(self, store: Arc<dyn Store>, epoch: Uuid) -> anyhow::Result<()> {
        let context = Arc::new(Context {
            store,
            seen: self.seen,
            accounts: self.accounts,
            clock: self.clock,
            ids: Ids::random(),
            epoch,
            policy: self.policy,
        });
        let shutdown = &self.shutdown;
        shutdown.spawn("pulse", pulse::run(Arc::clone(&context), self.pulse, shutdown.clone()));
        shutdown.spawn("tail", tail::run(Arc::clone(&context), self.tail, shutdown.clone()));
        shutdown.spawn("overdue", overdue::run(Arc::clone(&context), self.parked_max, shutdown.clone()));
        if let Some(queue) = self.consume {
            let asker = Asker::new(Arc::clone(&context), Arc::new(HttpTransport::new()?));
            let reconciler = Reconciler { asker: asker.clone() };
            shutdown.spawn("consume", consume::run(Arc::clone(&context), queue.consumer(), self.limits, shutdown.clone()));
            shutdown.spawn("reconcile", reconcile::run(reconciler, shutdown.clone()));
            let inspector = Arc::new(Inspector::new(Arc::clone(&context), Arc::new(HttpTransport::new()?)));
            shutdown.spawn("endpoints", endpoints::run(inspector, shutdown.clone()));
            shutdown.spawn("registered", endpoints::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("due", reconcile::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("expiry", expiry::run(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("completeness", completeness::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("unsettled", unsettled::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("dead letters", dead_letters::run(Arc::clone(&context), queue.dead_letters(), shutdown.clone()));
            shutdown.spawn("letters", dead_letters::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("sweep", sweep::run(Sweeper::new(asker), shutdown.clone()));
            shutdown.spawn("swept", sweep::watch(Arc::clone(&context), shutdown.clone()));
            shutdown.spawn("retention", retention::run(Arc::clone(&context), self.keep_bodies, shutdown.clone()));
            let exchange = queue.exchange().map(|broker| broker.orders_publisher(shutdown));
            let exchange = exchange.map(|publisher| Relay::to_exchange(Arc::clone(&context), publisher));
            let subscribers = self.notifiers.into_iter().map(|notifier| Relay::to_subscriber(Arc::clone(&context), notifier));
            for relay in exchange.into_iter().chain(subscribers) {
                shutdown.spawn("outbox", outbox::run(relay, shutdown.clone()));
            }
            shutdown.spawn("backlog", outbox::watch(Arc::clone(&context), shutdown.clone()));
        }
        // Never set before: a worker begins once.
        let _ = self.answering.set(context);
        Ok(())
    }
}

/// What a configuration says about every piece of work.
#[must_use]
pub fn policy(config: &Config) -> Policy {
    let accounts = config.accounts.iter().map(|configured| keyed(&configured.account));
    // The embedded queue has no exchange.
    let exchange = config.queue.url.starts_with("amqp").then(|| Arc::from(outbox::AMQP));
    let subscribers = config.subscribers.iter().map(|subscriber| Arc::clone(&subscriber.name));
    Policy {
        events_create_orders: config.orders.registration == Registration::Optional,
        asking: accounts.filter_map(|(key, account)| Some((key, habits(&account)?))).collect(),
        destinations: exchange.into_iter().chain(subscribers).collect(),
        rules: rules(config),
    }
}

/// What orders are judged by.
fn rules(config: &Config) -> Rules {
    let percents = config.accounts.iter().map(|configured| (keyed(&configured.account).0, configured.over_capture_percent));
    Rules { over_capture_percent: percents.filter(|(_, percent)| *percent > 0).collect() }
}

fn keyed(account: &Arc<Account>) -> (AccountKey, Arc<Account>) {
    let key = AccountKey { psp: Arc::clone(&account.psp_id), account: Arc::clone(&account.name) };
    (key, Arc::clone(account))
}

fn notifiers(config: &Config) -> Result<Vec<Notifier>, ConfigError> {
    let subscribers = config.subscribers.iter().enumerate();
    let notifiers = subscribers.map(|(index, subscriber)| {
        Notifier::new(subscriber).map_err(|error| {
            let problem = format!("{:#}", anyhow::Error::new(error));
            ConfigError::Setting { setting: format!("subscriber[{index}].url"), problem }
        })
    });
    notifiers.collect()
}

/// How its payments are asked about; `None` if the PSP cannot be asked with what is configured.
fn habits(account: &Account) -> Option<Habits> {
    let Profile { can, usual_delay, .. } = *account.psp.profile();
    let can_ask = can.payment_status && account.psp.api_key(account).is_some();
    can_ask.then_some(Habits { usual_delay, lists_late_changes: can.late_changes })
}

/// Why the database cannot be used yet.
#[derive(Debug, thiserror::Error)]
enum Unreached {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It let us in, and then did not answer.
    #[error(transparent)]
    Silent(#[from] StoreError),
}

/// The store, and the id of its history.
async fn reach(url: &str) -> Result<(Arc<dyn Store>, Uuid), Unreached> {
    let store = store::connect(url).await?;
    match store.epoch().await {
        Ok(epoch) => Ok((store, epoch)),
        Err(error) => {
            store.close().await;
            Err(error.into())
        }
    }
}

async fn wait_for_store(url: &str, pulse: &Pulse, shutdown: &Shutdown) -> anyhow::Result<Option<(Arc<dyn Store>, Uuid)>> {
    let mut pause = CONNECT_PAUSE_MIN;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.stopping() => return Ok(None),
        }
        pause = (pause * 2).min(CONNECT_PAUSE_MAX);
        match reach(url).await {
            Ok(reached) => return Ok(Some(reached)),
            Err(error) => report_unreached(pulse, error),
        }
    }
}

fn report_unreached(pulse: &Pulse, error: Unreached) {
    let problem = format!("{:#}", anyhow::Error::new(error));
    tracing::warn!(error = problem, "the database is not reached yet");
    pulse.down(problem);
}
