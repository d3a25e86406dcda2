//! `paybell demo`: the whole system on one machine, against a simulated Stripe whose own books judge the result.
//!
//! [`plan`] (what will happen) → this file (start, register, send, wait) → [`sheet`] (what came of it).

mod plan;
mod sheet;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paybell_shared::clock::{Clock, SystemClock};
use paybell_shared::config::Config;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry;
use rand::RngExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::api::{Api, Order, Registration};
use crate::output::{Exit, Failure};
use crate::simulator::ledger::Truth;
use crate::simulator::stripe::Stripe;
use crate::simulator::{Account, Dialect as _, Sender, Settings, http_client};

use super::serve::{self, Addresses};
use plan::{Job, Plan, PlannedOrder, Work};
use sheet::{Counts, Difference, Durations, Sheet};

/// Requests at once: PUTs before the start, webhooks after it.
const IN_FLIGHT_MAX: usize = 64;
/// After how long a webhook that is not acknowledged is sent again: Stripe's manner, in a demo's time.
const RETRIES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// An order is looked at after so long, and again after an eighth of the time that it has taken, until it agrees. So the lag
/// is measured to 5 ms or an eighth, and looking is no load on a system that is behind.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_FRACTION: u32 = 8;
/// Embedded databases open in less, on any disk.
const READY_MAX: Duration = Duration::from_secs(15);
const READY_EVERY: Duration = Duration::from_millis(20);
/// After the last answer, orders have so long to come to the truth.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Between two comparisons of all orders.
const COMPARE_EVERY: Duration = Duration::from_millis(100);
/// Orders on a page of the list.
const PAGE: usize = 100;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell demo\n  paybell demo --orders 2000 --seed 7\n  paybell demo --keep\n\n\
                  Exit: 0 every order agrees with the simulated Stripe's ledger, 1 one differs, 3 it could not run.")]
pub struct Args {
    /// How many orders to register and pay.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    orders: u32,
    /// Repeats what another run did; default: a new one.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Leave everything running afterwards, to try by hand; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the demo.
///
/// # Errors
/// The system cannot be started.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let folder = TemporaryFolder::new().map_err(Failure::unknown)?;
    log_to(&folder.path.join("demo.log")).map_err(Failure::unknown)?;
    let shutdown = Shutdown::new();
    let finished = tokio::select! {
        finished = play(&args, &folder.path, &shutdown) => finished.map(Some),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    let exit = match finished {
        Ok(Some((sheet, stage))) => {
            if args.json {
                sheet.print_json();
            } else {
                sheet.print();
            }
            if args.keep {
                stage.introduce();
                shutdown.clone().run().await.map_err(Failure::unknown)?;
            }
            if sheet.agrees() { Exit::Yes } else { Exit::No }
        }
        Ok(None) => Exit::Unknown,
        Err(error) => {
            shutdown.finish().await;
            let log = folder.keep().join("demo.log");
            return Err(Failure::unknown(error.context(format!("the demo could not run; its log is {}", log.display()))));
        }
    };
    shutdown.finish().await;
    if exit == Exit::No {
        eprintln!("The databases and the log are kept in {}", folder.keep().display());
    }
    Ok(exit.into())
}

/// A folder that goes when it is dropped, unless somebody should look into it.
struct TemporaryFolder {
    path: PathBuf,
    keep: std::cell::Cell<bool>,
}

impl TemporaryFolder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("paybell-demo-{:016x}", rand::rng().random::<u64>()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self { path, keep: std::cell::Cell::new(false) })
    }

    fn keep(&self) -> &Path {
        self.keep.set(true);
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if !self.keep.get()
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Logs go into a file: the terminal shows the progress.
fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
    let filter = std::env::var(tracing_subscriber::EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    let filter =
        tracing_subscriber::EnvFilter::try_new(&filter).context("RUST_LOG is not a filter such as info,paybell=debug")?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(file));
    lines.try_init().map_err(|error| anyhow::anyhow!(error))
}

/// What runs, and where.
struct Stage {
    stripe: Account,
    sender: Sender,
    api: Api,
    addresses: Addresses,
    simulator: std::net::SocketAddr,
    config: PathBuf,
}

async fn play(args: &Args, folder: &Path, shutdown: &Shutdown) -> anyhow::Result<(Sheet, Stage)> {
    let started = Instant::now();
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let (plan, ledger) = Plan::new(args.orders as usize, seed, SystemClock.now().seconds());
    let truths: BTreeMap<String, Truth> =
        plan.orders.iter().filter_map(|order| Some((order.id.clone(), ledger.truth(&order.id)?))).collect();
    let stage = Stage::set(Account::new(&Stripe, Stripe.settings(), ledger), folder, shutdown).await?;
    let progress = Progress::new(args.json, plan.registered_first.len() + plan.jobs.len());
    let registered_late = plan.orders.len() - plan.registered_first.len();

    progress.say("starting");
    stage.wait_until_ready(shutdown).await?;
    let performance = Arc::new(Performance::new(&stage, plan.orders, truths)?);
    performance.register_first(&plan.registered_first, &progress).await?;
    performance.send_all(plan.jobs, &progress).await;
    progress.say("waiting for the last orders");
    let (differences, balance, statuses) = performance.settle().await?;
    progress.finish();

    let record = performance.take_record()?;
    let mut problems = record.problems;
    if shutdown.has_crashed() {
        problems.push("a part of Paybell crashed: see the log".to_owned());
    }
    let sheet = Sheet {
        seed,
        took: started.elapsed(),
        counts: record.counts,
        acknowledgement: record.acknowledgement,
        lag: record.lag,
        statuses,
        orders: performance.orders.len(),
        registered_late,
        balance,
        differences,
        problems,
    };
    Ok((sheet, stage))
}

impl Stage {
    /// Starts the simulated Stripe, then Paybell, all on free ports.
    async fn set(stripe: Account, folder: &Path, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for the simulated Stripe")?;
        let simulator = listener.local_addr()?;
        let (router, stopping) = (stripe.api().context("Stripe has an API")?, shutdown.clone());
        shutdown.spawn("simulated Stripe", async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(async move { stopping.stopping().await });
            Ok(served.await?)
        });
        let settings = Arc::clone(&stripe.settings);
        let token = hex::encode(rand::rng().random::<[u8; 24]>());
        let any =
            Addresses { ingress: ([127, 0, 0, 1], 0).into(), api: ([127, 0, 0, 1], 0).into(), ops: ([127, 0, 0, 1], 0).into() };
        let text = configuration(folder, any, simulator, &token, &settings);
        // The environment is somebody else's configuration.
        let config = Config::parse(&text, "the demo's configuration", std::iter::empty())?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let addresses = serve::start(&config, Arc::clone(&clock), telemetry::init_metrics()?, shutdown).await?;
        let path = folder.join("paybell.toml");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut file, configuration(folder, addresses, simulator, &token, &settings).as_bytes())?;

        let url = format!("http://{}/webhooks/stripe", addresses.ingress);
        stripe.set_endpoint(&url);
        let http = http_client()?;
        let api = Api::new(http.clone(), &format!("http://{}", addresses.api), &token);
        let sender = Sender::new(http, &Stripe, url, Arc::clone(&stripe.settings), clock);
        Ok(Self { stripe, sender, api, addresses, simulator, config: path })
    }

    /// Waits for the databases to be open.
    async fn wait_until_ready(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.addresses.ops);
        let http = http_client()?;
        let deadline = Instant::now() + READY_MAX;
        loop {
            let answer = http.get(&url).send().await;
            let said = match answer {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            anyhow::ensure!(!shutdown.has_crashed(), "a part of Paybell crashed at its start");
            anyhow::ensure!(Instant::now() < deadline, "Paybell is not ready after {} s: {said}", READY_MAX.as_secs());
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    fn introduce(&self) {
        eprintln!("Everything stays up; Ctrl-C ends it.");
        eprintln!("  webhooks      http://{}/webhooks/stripe", self.addresses.ingress);
        eprintln!("  internal API  http://{}/v1/orders (its token is in {})", self.addresses.api, self.config.display());
        eprintln!("  operators     http://{}/readyz and /metrics", self.addresses.ops);
        eprintln!(
            "  Stripe's API  http://{}/v1/events (key {})",
            self.simulator,
            self.stripe.settings.api_key.as_deref().unwrap_or_default()
        );
        eprintln!("Try it:\n  {}", serve::send_line(&self.config));
    }
}

fn configuration(
    folder: &Path,
    addresses: Addresses,
    simulator: std::net::SocketAddr,
    token: &str,
    settings: &Settings,
) -> String {
    let database = |name: &str| toml::Value::String(format!("sqlite:{}", folder.join(name).display())).to_string();
    format!(
        r#"# The demo's; gone with it.
[ingress]
listen = "{ingress}"
ops_listen = "{ops}"

[api]
listen = "{api}"
token = "{token}"

[queue]
url = {queue}

[store]
url = {store}

[seen]
url = "memory:"

[[psp]]
id = "stripe"
mode = "test"
secrets = ["{secret}"]
api_key = "{api_key}"
api_url = "http://{simulator}"
"#,
        ingress = addresses.ingress,
        ops = addresses.ops,
        api = addresses.api,
        queue = database("queue.db"),
        store = database("store.db"),
        secret = settings.secret,
        api_key = settings.api_key.as_deref().unwrap_or_default(),
    )
}

/// The demo while it runs: what every request needs, and what has been counted so far.
struct Performance {
    stripe: Account,
    sender: Sender,
    api: Api,
    orders: Vec<PlannedOrder>,
    truths: BTreeMap<String, Truth>,
    /// By order: telling jobs that are not done yet.
    waiting_for: Vec<AtomicUsize>,
    record: Mutex<Option<Record>>,
}

struct Record {
    counts: Counts,
    acknowledgement: Durations,
    lag: Durations,
    problems: Vec<String>,
}

impl Performance {
    fn new(stage: &Stage, orders: Vec<PlannedOrder>, truths: BTreeMap<String, Truth>) -> anyhow::Result<Self> {
        let record = Record {
            counts: Counts::default(),
            acknowledgement: Durations::new()?,
            lag: Durations::new()?,
            problems: Vec::new(),
        };
        Ok(Self {
            stripe: stage.stripe.clone(),
            sender: stage.sender.clone(),
            api: stage.api.clone(),
            waiting_for: orders.iter().map(|order| AtomicUsize::new(order.telling)).collect(),
            orders,
            truths,
            record: Mutex::new(Some(record)),
        })
    }

    fn note(&self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = self.record.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            note(record);
        }
    }

    fn take_record(&self) -> anyhow::Result<Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).take().context("the record was taken before")
    }

    async fn register(&self, order: usize) -> anyhow::Result<()> {
        let planned = &self.orders[order];
        let registration = Registration {
            psp: Stripe.id().to_owned(),
            account: None,
            payment_id: planned.payment_id.clone(),
            amount: planned.amount,
            currency: planned.currency.to_owned(),
        };
        self.api.register(&planned.id, &registration).await.with_context(|| format!("{} was not registered", planned.id))
    }

    /// Registers what is known before the first webhook.
    async fn register_first(self: &Arc<Self>, orders: &[usize], progress: &Progress) -> anyhow::Result<()> {
        progress.say("registering orders");
        let mut tasks = JoinSet::new();
        for order in orders {
            if tasks.len() >= IN_FLIGHT_MAX
                && let Some(done) = tasks.join_next().await
            {
                done??;
            }
            let (performance, order) = (Arc::clone(self), *order);
            tasks.spawn(async move { performance.register(order).await });
            progress.step();
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Does every job when its time has come, and looks at each order once all is said about it.
    async fn send_all(self: &Arc<Self>, jobs: Vec<Job>, progress: &Progress) {
        progress.say("sending webhooks");
        let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let start = tokio::time::Instant::now();
        let mut tasks = JoinSet::new();
        let mut looks = JoinSet::new();
        for job in jobs {
            tokio::time::sleep_until(start + job.at).await;
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let performance = Arc::clone(self);
            tasks.spawn(async move {
                let _permit = permit;
                performance.perform(job).await
            });
            progress.step();
            while let Some(done) = tasks.try_join_next() {
                self.look_at(done, &mut looks);
            }
        }
        while let Some(done) = tasks.join_next().await {
            self.look_at(done, &mut looks);
        }
        let all_looked = async { while looks.join_next().await.is_some() {} };
        // An order that never agrees is told by the comparison that follows.
        let _ = tokio::time::timeout(SETTLE_MAX, all_looked).await;
    }

    fn look_at(self: &Arc<Self>, done: Result<Option<usize>, tokio::task::JoinError>, looks: &mut JoinSet<()>) {
        match done {
            Ok(Some(order)) => {
                let performance = Arc::clone(self);
                let acknowledged = Instant::now();
                looks.spawn(async move { performance.look(order, acknowledged).await });
            }
            Ok(None) => {}
            Err(error) => self.note(|record| record.problems.push(format!("the demo itself failed: {error}"))),
        }
    }

    /// Does one job; returns its order if all is said about it now.
    async fn perform(&self, job: Job) -> Option<usize> {
        let tells = match job.work {
            Work::Register => match self.register(job.order).await {
                Ok(()) => true,
                Err(error) => {
                    self.note(|record| record.problems.push(format!("{error:#}")));
                    false
                }
            },
            Work::Send { webhook, telling, duplicate } => {
                let (result, sent) = self.sender.deliver(&webhook, &RETRIES).await;
                let acknowledged = result.as_ref().is_ok_and(|answered| answered.status.is_success());
                self.note(|record| {
                    record.counts.sent += u64::from(sent);
                    record.counts.retried += u64::from(sent - 1);
                    match &result {
                        Ok(answered) if acknowledged => {
                            record.counts.acknowledged += 1;
                            record.counts.duplicates += u64::from(duplicate);
                            record.acknowledgement.record(answered.took);
                        }
                        Ok(_) | Err(_) => record.counts.undelivered += 1,
                    }
                });
                if acknowledged {
                    self.stripe.ledger_mut().acknowledge(&webhook.id);
                }
                telling && acknowledged
            }
            Work::Forge { webhook, forgery } => {
                let refused = self
                    .sender
                    .forge(&webhook, forgery)
                    .await
                    .is_ok_and(|answered| answered.is_some_and(|answered| answered.status.as_u16() == 401));
                self.note(|record| {
                    record.counts.sent += 1;
                    let counts = &mut record.counts;
                    let by_kind = if refused { &mut counts.rejected } else { &mut counts.forgeries_not_refused };
                    *by_kind.entry(forgery).or_default() += 1;
                });
                false
            }
        };
        (tells && self.waiting_for[job.order].fetch_sub(1, Ordering::AcqRel) == 1).then_some(job.order)
    }

    /// Looks at an order until it agrees with the ledger, and records how long that took.
    async fn look(&self, order: usize, acknowledged: Instant) {
        let planned = &self.orders[order];
        loop {
            if let Ok(Some(found)) = self.api.order(&planned.id).await
                && self.agrees(&found)
            {
                break;
            }
            tokio::time::sleep(LOOK_FIRST.max(acknowledged.elapsed() / LOOK_FRACTION)).await;
        }
        if planned.changes {
            self.note(|record| record.lag.record(acknowledged.elapsed()));
        }
    }

    fn agrees(&self, order: &Order) -> bool {
        self.truths.get(&order.id).is_some_and(|truth| {
            truth.status == order.status
                && (truth.captured, truth.refunded, truth.disputed) == (order.captured, order.refunded, order.disputed)
        })
    }

    /// Compares all orders until they agree and the books stand still, or the time is up.
    async fn settle(&self) -> anyhow::Result<(Vec<Difference>, serde_json::Value, BTreeMap<String, (usize, usize)>)> {
        let deadline = Instant::now() + SETTLE_MAX;
        let acknowledged = {
            let ledger = self.stripe.ledger();
            ledger.events().iter().filter(|event| ledger.is_acknowledged(&event.id)).count()
        };
        let mut before = serde_json::Value::Null;
        loop {
            let found = self.all_orders().await?;
            let balance = self.api.balance().await?;
            let booked: i64 = sheet::outcomes(&balance).values().sum();
            let differences = self.differences(&found);
            let stands_still = before == balance && usize::try_from(booked).is_ok_and(|booked| booked >= acknowledged);
            let is_late = Instant::now() >= deadline;
            if (differences.is_empty() && stands_still) || is_late {
                if !stands_still {
                    let problem = format!("the books hold {booked} events, {acknowledged} were acknowledged");
                    self.note(|record| record.problems.push(problem));
                }
                return Ok((differences, balance, self.statuses(&found)));
            }
            before = balance;
            tokio::time::sleep(COMPARE_EVERY).await;
        }
    }

    async fn all_orders(&self) -> anyhow::Result<BTreeMap<String, Order>> {
        let mut found = BTreeMap::new();
        let mut cursor = None;
        // More pages than orders would be a list that runs in a circle.
        for _ in 0..=self.orders.len() {
            let page = self.api.orders(cursor.as_deref(), PAGE).await?;
            found.extend(page.items.into_iter().map(|order| (order.id.clone(), order)));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(found);
            }
        }
        anyhow::bail!("the list of orders does not end")
    }

    fn differences(&self, found: &BTreeMap<String, Order>) -> Vec<Difference> {
        let differing = self.orders.iter().filter(|order| !found.get(&order.id).is_some_and(|found| self.agrees(found)));
        let planned = differing.map(|order| Difference {
            order: order.id.clone(),
            ledger: self.truths.get(&order.id).cloned(),
            paybell: found.get(&order.id).cloned(),
        });
        // Orders that nobody made.
        let strangers = found.values().filter(|order| !self.truths.contains_key(&order.id));
        let strangers = strangers.map(|order| Difference { order: order.id.clone(), ledger: None, paybell: Some(order.clone()) });
        planned.chain(strangers).collect()
    }

    fn statuses(&self, found: &BTreeMap<String, Order>) -> BTreeMap<String, (usize, usize)> {
        let mut statuses: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for truth in self.truths.values() {
            statuses.entry(truth.status.to_owned()).or_default().0 += 1;
        }
        for order in found.values() {
            statuses.entry(order.status.clone()).or_default().1 += 1;
        }
        statuses
    }
}

/// A bar on a terminal, else a line for each quarter; on standard error, so that the sheet can be piped.
struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    fn new(quiet: bool, steps: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal && !quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {elapsed}") {
            bar.set_style(style);
        }
        Self { bar, lines: !terminal && !quiet }
    }

    fn say(&self, what: &'static str) {
        self.bar.set_message(what);
        if self.lines {
            eprintln!("{what} …");
        }
    }

    fn step(&self) {
        self.bar.inc(1);
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if self.lines && all >= 4 && done.is_multiple_of(all / 4) && done < all {
            eprintln!("  {done} of {all}");
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
