//! The simulated PSP, on threads of its own, and what goes over the wire between it and us.

use std::future::IntoFuture as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::ensure;
use axum::extract::{Request, State};
use axum::http::header::DATE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures_util::future::join_all;
use paybell::simulator::ledger::Ledger;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{Account, Dialect as _, Sender, Settings, Webhook, http_client};
use paybell_shared::clock::Clock;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::clock::LeapingClock;
use crate::scene::http_date;
use crate::shop::STRIPE_SECRET;

/// Of the PSP's threads: their time is not ours.
pub const THREADS: &str = "psp";
pub const API_KEY: &str = "sk_test_of_the_bench_only";

/// A simulated Stripe with its API.
pub struct Psp {
    pub account: Account,
    /// In front of the API.
    pub api: Meter,
    requests: Arc<AtomicUsize>,
    runtime: Handle,
    clock: Arc<LeapingClock>,
    _server: AbortOnDropHandle<io::Result<()>>,
}

/// What every request to the API meets.
#[derive(Clone)]
struct Door {
    requests: Arc<AtomicUsize>,
    clock: Arc<LeapingClock>,
}

/// Counts, and dates the answer by the time that is played.
async fn pass(State(door): State<Door>, request: Request, next: Next) -> Response {
    door.requests.fetch_add(1, Ordering::Relaxed);
    let mut answer = next.run(request).await;
    if let Ok(date) = http_date(door.clock.now()).parse() {
        answer.headers_mut().insert(DATE, date);
    }
    answer
}

impl Psp {
    /// With empty books; `salt` makes the ids of its events.
    ///
    /// # Errors
    /// No port is free.
    pub async fn new(runtime: &Handle, clock: &Arc<LeapingClock>, salt: u64) -> anyhow::Result<Self> {
        let settings = Settings { api_key: Some(API_KEY.to_owned()), secret: STRIPE_SECRET.to_owned(), ..Stripe.settings() };
        let account = Account::new(&Stripe, settings, Ledger::new(&Stripe, false, salt));
        let door = Door { requests: Arc::default(), clock: Arc::clone(clock) };
        let requests = Arc::clone(&door.requests);
        let router = account.api().unwrap_or_default().layer(from_fn_with_state(door, pass));
        let (server, api) = runtime
            .spawn(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let api = Meter::before(listener.local_addr()?).await?;
                io::Result::Ok((tokio::spawn(axum::serve(listener, router).into_future()), api))
            })
            .await??;
        let server = AbortOnDropHandle::new(server);
        Ok(Self { account, api, requests, runtime: runtime.clone(), clock: Arc::clone(clock), _server: server })
    }

    /// Requests to the API so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Who sends this account's webhooks to an ingress, with the meter between the two.
    ///
    /// # Errors
    /// No port is free.
    pub async fn post(&self, ingress: SocketAddr) -> anyhow::Result<Post> {
        let (settings, clock) = (Arc::clone(&self.account.settings), Arc::<LeapingClock>::clone(&self.clock));
        let (meter, sender) = self
            .runtime
            .spawn(async move {
                let meter = Meter::before(ingress).await?;
                let url = format!("http://{}/webhooks/stripe", meter.address);
                let sender = Sender::new(http_client()?, &Stripe, url, settings, clock);
                anyhow::Ok((meter, sender))
            })
            .await??;
        Ok(Post { meter, sender, runtime: self.runtime.clone() })
    }
}

/// Sends webhooks.
pub struct Post {
    pub meter: Meter,
    sender: Sender,
    runtime: Handle,
}

impl Post {
    /// All at once, each once.
    ///
    /// # Errors
    /// One of them is not acknowledged: then the PSP would send it again, and the figures were others.
    pub async fn send(&self, webhooks: Vec<Webhook>) -> anyhow::Result<()> {
        let sender = self.sender.clone();
        let sent = self.runtime.spawn(async move { join_all(webhooks.iter().map(|webhook| sender.send(webhook))).await });
        for answered in sent.await? {
            let status = answered?.status;
            ensure!(status.is_success(), "a webhook was answered {status}");
        }
        Ok(())
    }
}

/// Stands between two who talk by TCP: passes on and counts.
pub struct Meter {
    pub address: SocketAddr,
    forth: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    _relay: AbortOnDropHandle<io::Result<()>>,
}

impl Meter {
    async fn before(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (forth, back) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (Arc::clone(&forth), Arc::clone(&back));
        let relay = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await?;
                let far = TcpStream::connect(target).await?;
                near.set_nodelay(true)?;
                far.set_nodelay(true)?;
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::spawn(pump(from_near, to_far, Arc::clone(&counters.0)));
                tokio::spawn(pump(from_far, to_near, Arc::clone(&counters.1)));
            }
        });
        Ok(Self { address, forth, back, _relay: AbortOnDropHandle::new(relay) })
    }

    /// Bytes from who calls.
    #[must_use]
    pub fn forth(&self) -> u64 {
        self.forth.load(Ordering::Relaxed)
    }

    /// Bytes from who is called.
    #[must_use]
    pub fn back(&self) -> u64 {
        self.back.load(Ordering::Relaxed)
    }
}

/// One direction, until it ends.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, counter: Arc<AtomicU64>) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        counter.fetch_add(read as u64, Ordering::Relaxed);
        to.write_all(&buffer[..read]).await?;
    }
}
