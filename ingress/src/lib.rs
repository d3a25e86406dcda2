//! HTTP to queue: route, limit, verify, publish, acknowledge.
//!
//! In the order of one webhook: [`route`] (whose it is) → [`source`] (who calls) → [`body`] (its bytes, under a limit) →
//! [`webhook`] (the walk: verify, publish) → [`refusal`] (what becomes of all others) → [`record`] (its one line and its
//! counts). [`spool`] keeps what the queue does not take, where an account wants that. [`limit`] is what two of them share; [`certificate`] fetches what some PSPs sign by.

mod body;
mod certificate;
mod limit;
mod record;
mod refusal;
mod route;
mod source;
mod spool;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use hyper::service::service_fn;
use paybell_shared::clock::Clock;
use paybell_shared::config::{Config, OnQueueDown};
use paybell_shared::ops::{Check, Report};
use paybell_shared::queue::{Health, Publisher, Queue};
use paybell_shared::serve::{self, Limits};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::INGRESS_QUEUE_UP;
use tokio::sync::watch;

use crate::spool::Spool;
use crate::webhook::Ingress;

/// A running ingress.
pub struct Started {
    /// Where it listens, with the port that it got.
    pub address: SocketAddr,
    /// Whether load balancers may send webhooks.
    pub check: Check,
}

/// Listens, and publishes to `queue`, until the stop. A broker that is down is no error: until it is there, the ingress is
/// not ready and answers 503. Metrics go to the recorder that is installed by now.
///
/// # Errors
/// The address cannot be had, or the spool's folder cannot be used.
#[expect(clippy::unused_async, reason = "to start is to wait, elsewhere and perhaps here; callers need not know")]
pub async fn start(config: &Config, queue: &Queue, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> anyhow::Result<Started> {
    start_with(config, queue.publisher(shutdown), clock, shutdown)
}

/// As [`start`], with a publisher that is there already.
///
/// # Errors
/// As [`start`].
pub fn start_with(
    config: &Config,
    publisher: Arc<dyn Publisher>,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<Started> {
    let listen = config.ingress.listen;
    let listener = serve::bind(listen).with_context(|| format!("[ingress] listen: {listen} cannot be had"))?;
    let address = listener.local_addr()?;
    let spools = config.accounts.iter().any(|configured| configured.on_queue_down == OnQueueDown::Spool);
    let spool = config.ingress.spool_dir.as_deref().filter(|_| spools);
    let spool = spool.map(|folder| {
        let opened = Spool::open(folder, config.limits.spool_bytes_max, Arc::clone(&publisher), shutdown);
        opened.with_context(|| format!("[ingress] spool_dir: {} cannot be used", folder.display()))
    });
    let spool = spool.transpose()?;
    let check = follow(publisher.health(), spool.is_some(), shutdown);
    // The connections hold the ingress, and it holds the publisher: when the last of them has ended, so may its tasks.
    let ingress = Arc::new(Ingress::new(config, publisher, spool, clock, shutdown));
    let service = move |peer: SocketAddr| {
        let ingress = Arc::clone(&ingress);
        service_fn(move |request| webhook::answer(Arc::clone(&ingress), peer, request))
    };
    serve::run_with("webhooks", listener, Limits::from(&config.limits), service, shutdown);
    tracing::info!(%address, accounts = config.accounts.len(), "webhooks are received");
    Ok(Started { address, check })
}

/// Follows the publisher's health, into the log and a gauge. The check is ready from the first connection on, whatever
/// comes after: if all replicas left the load balancer at once, PSPs would be answered by something that is not ours.
fn follow(mut health: watch::Receiver<Health>, spools: bool, shutdown: &Shutdown) -> Check {
    // Whoever can keep webhooks is ready at once.
    let connected_once = Arc::new(AtomicBool::new(spools));
    let seen = health.clone();
    let task = (Arc::clone(&connected_once), shutdown.clone());
    shutdown.spawn("ingress health", async move {
        let (connected_once, shutdown) = task;
        let up = metrics::gauge!(INGRESS_QUEUE_UP);
        loop {
            let now = health.borrow_and_update().clone();
            up.set(if now == Health::Up { 1.0 } else { 0.0 });
            match &now {
                Health::Starting => {}
                Health::Up => tracing::info!("the queue takes webhooks"),
                Health::Blocked(_) | Health::Down(_) => {
                    tracing::warn!(problem = describe(&now, spools), "the queue takes no webhooks");
                }
            }
            if matches!(now, Health::Up | Health::Blocked(_)) {
                connected_once.store(true, Ordering::Relaxed);
            }
            tokio::select! {
                () = shutdown.stopping() => return Ok(()),
                changed = health.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    });
    Arc::new(move || {
        let now = seen.borrow().clone();
        let connected = now == Health::Up || connected_once.load(Ordering::Relaxed);
        Report { part: "ingress", ready: connected, detail: describe(&now, spools) }
    })
}

fn describe(health: &Health, spools: bool) -> String {
    let refused = if spools { "spooled, where their account is set so, or answered 503" } else { "answered 503" };
    match health {
        Health::Starting => "no connection to the queue yet".to_owned(),
        Health::Up => "the queue takes webhooks".to_owned(),
        Health::Blocked(reason) => format!("degraded, webhooks are {refused}: the broker blocks publishers: {reason}"),
        Health::Down(reason) => format!("degraded, webhooks are {refused}: no connection to the queue: {reason}"),
    }
}
