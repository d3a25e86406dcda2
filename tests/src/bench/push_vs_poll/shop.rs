//! The shop's side: how it comes to know what the PSP knows, in each of the three ways.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use paybell_shared::clock::{Clock, Timestamp};
use paybell_shared::config::Config;
use paybell_shared::event::{Fact, PaymentState};
use paybell_shared::psp::{Account, Asked};
use paybell_shared::queue::{self, ConsumeError, Consumer, Delivery, Disposition, Health, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_worker::asking::Asker;
use paybell_worker::consume::{self, BatchLimits, Context};
use paybell_worker::inbox::Arrival;
use paybell_worker::policy;
use paybell_worker::reconcile::{self, Reconciler};
use paybell_worker::store::{self, Registration, Work};
use paybell_worker::sweep::{self, Sweeper};
use paybell_worker::transport::HttpTransport;
use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Way;
use super::clock::LeapingClock;
use super::plan::Planned;
use super::psp::{Post, Psp};
use crate::conformance::store::eur;
use crate::servers::{Postgres, RabbitMq};
use crate::worker::{config, context, key_of};

/// Between two questions about an open payment.
pub const POLL_EVERY: Duration = Duration::from_secs(30);
/// Questions at a time.
const POLLS_AT_ONCE: usize = 16;
/// As the worker's loop waits if nothing is due, or nobody may be asked.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// As `[limits]` has it, but that nobody waits for company: it would only lengthen the run.
const LIMITS: BatchLimits = BatchLimits { deliveries_max: 512, linger: Duration::ZERO };
const DUE: &str = "SELECT least((SELECT min(next_check_at) FROM checks), (SELECT min(due_at) FROM sweeps))";
/// For what must come and does not; the whole would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A shop with a database of its own.
pub struct Shop {
    pub context: Arc<Context>,
    account: Arc<Account>,
    clock: Arc<LeapingClock>,
    part: Part,
    shutdown: Shutdown,
}

enum Part {
    Polling(Poller),
    Hearing(Hearing),
    Reconciled { hearing: Hearing, reconciler: Reconciler, sweeper: Sweeper, due: Due, looked_at: Timestamp },
}

/// Ingress, queue and consumer.
struct Hearing {
    post: Post,
    sent: usize,
    settled: watch::Receiver<usize>,
}

/// Asks about every open payment, every so often, until it is paid or given up.
struct Poller {
    asker: Asker,
    /// By the payment's id: its order.
    open: BTreeMap<String, String>,
    next: Timestamp,
    asked: usize,
}

/// When the next look, or page of the list, is due, by the database; read on the PSP's threads, since no worker does so.
struct Due {
    pool: PgPool,
    runtime: Handle,
}

impl Shop {
    /// # Errors
    /// Something cannot be started.
    pub async fn open(
        way: Way,
        psp: &Psp,
        clock: &Arc<LeapingClock>,
        runtime: &Handle,
        servers: (&Postgres, &RabbitMq),
    ) -> anyhow::Result<Self> {
        let (database, broker) = (servers.0.database().await, servers.1.vhost().await);
        let text = format!(
            "[ingress]\nlisten = \"127.0.0.1:0\"\n{}api_url = \"http://{}\"\napi_key = {:?}\n",
            crate::shop::configuration(&broker, &database, "memory:"),
            psp.api.address,
            super::psp::API_KEY,
        );
        let (config, shutdown) = (config(&text), Shutdown::new());
        let account = Arc::clone(&config.accounts[0].account);
        let time: Arc<dyn Clock> = Arc::<LeapingClock>::clone(clock);
        let mut context = context(store::connect(&database).await?, time, vec![Arc::clone(&account)]).await;
        context.policy.asking = if way == Way::Reconciled { policy(&config).asking } else { HashMap::new() };
        let context = Arc::new(context);
        let part = match way {
            Way::Polling => {
                let asker = Asker::new(Arc::clone(&context), Arc::new(HttpTransport::new()?));
                Part::Polling(Poller { asker, open: BTreeMap::new(), next: clock.now(), asked: 0 })
            }
            Way::Webhooks => Part::Hearing(Hearing::begin(&config, &context, psp, &shutdown).await?),
            Way::Reconciled => {
                let asker = Asker::new(Arc::clone(&context), Arc::new(HttpTransport::new()?));
                Part::Reconciled {
                    hearing: Hearing::begin(&config, &context, psp, &shutdown).await?,
                    reconciler: Reconciler { asker: asker.clone() },
                    sweeper: Sweeper::new(asker),
                    due: Due::new(&database, runtime).await?,
                    looked_at: clock.now(),
                }
            }
        };
        Ok(Self { context, account, clock: Arc::clone(clock), part, shutdown })
    }

    /// Registers an order whose payment was just made.
    ///
    /// # Errors
    /// The database is away.
    pub async fn register(&mut self, planned: &Planned) -> anyhow::Result<()> {
        let registrations = [Registration {
            order_id: planned.order_id.clone(),
            account: key_of(&self.account),
            payment_id: Some(planned.payment_id.clone()),
            expected: eur(planned.amount),
            expires_at: None,
            operator: "bench".to_owned(),
        }];
        self.context.store.apply(&Work { registrations: &registrations, ..self.context.work() }).await?;
        if let Part::Polling(poller) = &mut self.part {
            if poller.open.is_empty() {
                poller.next = self.clock.now().plus(POLL_EVERY);
            }
            poller.open.insert(planned.payment_id.clone(), planned.order_id.clone());
        }
        Ok(())
    }

    /// Takes what the PSP sends; nothing of it, if nobody listens.
    ///
    /// # Errors
    /// A webhook is not acknowledged, or not applied.
    pub async fn hear(&mut self, webhooks: Vec<paybell::simulator::Webhook>) -> anyhow::Result<()> {
        match &mut self.part {
            Part::Polling(_) => Ok(()),
            Part::Hearing(hearing) | Part::Reconciled { hearing, .. } => hearing.hear(webhooks).await,
        }
    }

    /// When this shop has something to do of itself.
    ///
    /// # Errors
    /// The database is away.
    pub async fn next(&self) -> anyhow::Result<Option<Timestamp>> {
        match &self.part {
            Part::Polling(poller) => Ok((!poller.open.is_empty()).then_some(poller.next)),
            Part::Hearing(_) => Ok(None),
            Part::Reconciled { due, looked_at, .. } => Ok(due.next().await?.map(|next| next.max(looked_at.plus(LOOK_PAUSE)))),
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The PSP or the database is away.
    pub async fn work(&mut self) -> anyhow::Result<()> {
        let (account, now) = (Arc::clone(&self.account), self.clock.now());
        match &mut self.part {
            Part::Polling(poller) if !poller.open.is_empty() && now >= poller.next => poller.poll(&account, now).await,
            Part::Reconciled { reconciler, sweeper, looked_at, .. } if now >= looked_at.plus(LOOK_PAUSE) => {
                // As the worker's loops do: again at once, as long as something is due and may be asked.
                loop {
                    let (looks, sweep) = (reconcile::step(reconciler).await?, sweep::step(sweeper).await?);
                    ensure!(looks.failed + sweep.failed == 0, "the simulated PSP did not answer");
                    if looks.asked + sweep.pages == 0 {
                        break;
                    }
                }
                *looked_at = self.clock.now();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends all that runs.
    ///
    /// # Errors
    /// A part crashed.
    pub async fn close(self) -> anyhow::Result<()> {
        let crashed = self.shutdown.has_crashed();
        self.shutdown.finish().await;
        self.context.store.close().await;
        ensure!(!crashed, "a part of Paybell crashed");
        Ok(())
    }
}

impl Poller {
    async fn poll(&mut self, account: &Account, now: Timestamp) -> anyhow::Result<()> {
        let asks = self.open.keys().cloned().zip(self.asked..).map(|(payment_id, number)| {
            let asker = &self.asker;
            async move { anyhow::Ok((ask(asker, account, &payment_id, number).await?, payment_id)) }
        });
        let answers: Vec<_> = stream::iter(asks).buffer_unordered(POLLS_AT_ONCE).collect().await;
        self.asked += answers.len();
        for answer in answers {
            if let (true, payment_id) = answer? {
                self.open.remove(&payment_id);
            }
        }
        self.next = now.plus(POLL_EVERY);
        Ok(())
    }
}

/// One question, by the adapter's own reader and the worker's own write path; whether the payment has come to its end. Only how
/// the payment itself stands: a shop that polls does not page through refunds that it does not expect.
async fn ask(asker: &Asker, account: &Account, payment_id: &str, number: usize) -> anyhow::Result<bool> {
    let context = &asker.context;
    let (key, at) = (key_of(account), context.clock.now());
    let request = account.psp.status_request(payment_id, None, account)?;
    let response = asker.send(&key, account, request).await?;
    let look_id = format!("{}-{number}", at.millis());
    let question = Asked { payment_id, cursor: None, at, look_id: &look_id };
    let answer = account.psp.read_status(&question, &response, account)?;
    let is_end = answer.events.iter().any(|event| match &event.fact {
        Fact::Payment(fact) => matches!(
            fact.state,
            PaymentState::Captured | PaymentState::Canceled | PaymentState::Expired | PaymentState::AuthorizationExpired
        ),
        _ => false,
    });
    let now = context.clock.now();
    let arrivals = [Arrival::of_answer(answer.events, answer.unread, account, now)];
    context.store.apply(&Work { arrivals: &arrivals, now, ..context.work() }).await?;
    Ok(is_end)
}

impl Hearing {
    async fn begin(config: &Config, context: &Arc<Context>, psp: &Psp, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let queue = queue::connect(config.queue_settings("bench")).await?;
        let publisher = queue.publisher(shutdown);
        let mut health = publisher.health();
        let clock = Arc::clone(&context.clock);
        let ingress = paybell_ingress::start_with(config, publisher, clock, shutdown)?;
        timeout(PATIENCE, health.wait_for(|health| *health == Health::Up)).await.context("no connection to RabbitMQ")??;
        let (settle, settled) = watch::channel(0);
        let consumer = Box::new(Counted { consumer: queue.consumer(), settled: settle });
        shutdown.spawn("consume", consume::run(Arc::clone(context), consumer, LIMITS, shutdown.clone()));
        Ok(Self { post: psp.post(ingress.address).await?, sent: 0, settled })
    }

    async fn hear(&mut self, webhooks: Vec<paybell::simulator::Webhook>) -> anyhow::Result<()> {
        self.sent += webhooks.len();
        self.post.send(webhooks).await?;
        let all = self.sent;
        timeout(PATIENCE, self.settled.wait_for(|settled| *settled >= all)).await.context("a webhook is not applied")??;
        Ok(())
    }
}

impl Shop {
    /// Webhooks received, and bytes of them and of their answers.
    #[must_use]
    pub fn heard(&self) -> (usize, u64, u64) {
        match &self.part {
            Part::Polling(_) => (0, 0, 0),
            Part::Hearing(hearing) | Part::Reconciled { hearing, .. } => {
                (hearing.sent, hearing.post.meter.forth(), hearing.post.meter.back())
            }
        }
    }
}

/// The queue's consumer, which says how much is settled.
struct Counted {
    consumer: Box<dyn Consumer>,
    settled: watch::Sender<usize>,
}

#[async_trait]
impl Consumer for Counted {
    async fn next_batch(&mut self, max: usize, linger: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        self.consumer.next_batch(max, linger).await
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        let done = settlements.iter().filter(|(_, disposition)| *disposition == Disposition::Done).count();
        self.consumer.settle(settlements).await?;
        self.settled.send_modify(|settled| *settled += done);
        Ok(())
    }

    async fn close(&mut self) {
        self.consumer.close().await;
    }
}

impl Due {
    async fn new(url: &str, runtime: &Handle) -> anyhow::Result<Self> {
        let url = url.to_owned();
        let pool = runtime.spawn(async move { PgPool::connect(&url).await }).await??;
        Ok(Self { pool, runtime: runtime.clone() })
    }

    async fn next(&self) -> anyhow::Result<Option<Timestamp>> {
        let pool = self.pool.clone();
        let next = self.runtime.spawn(async move { sqlx::query_scalar::<_, Option<OffsetDateTime>>(DUE).fetch_one(&pool).await });
        Ok(next.await??.map(Timestamp::from))
    }
}
