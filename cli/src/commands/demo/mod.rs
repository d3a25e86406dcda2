//! `paybell demo`: the whole system on one machine, against simulated PSPs whose own books judge the result.
//!
//! [`plan`] (what will happen) → [`stage`] (the simulated PSPs and Paybell, started) → this file (register, send, wait) →
//! [`sheet`] (what came of it).

mod plan;
mod sheet;
mod stage;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::psp;
use paybell_shared::shutdown::Shutdown;
use rand::RngExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::api::{Api, Order, Registration};
use crate::output::{Exit, Failure};
use crate::simulator::{self, Dialect};

use plan::{Job, Plan, PlannedOrder, Role, Work};
use sheet::{Counts, Difference, Durations, PspLine, Sheet};
use stage::{HastyClock, Player, Stage};

/// Requests at once: PUTs before the start, webhooks after it.
const IN_FLIGHT_MAX: usize = 64;
/// Retries in a demo's time: an hour of the PSP's is a second, within these bounds, and no more than so many.
const RETRY_HURRY: u32 = 3_600;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(4);
const RETRIES_MAX: usize = 6;
/// An order is looked at after so long, and again after an eighth of the time that it has taken, until it agrees. So the lag
/// is measured to 5 ms or an eighth, and looking is no load on a system that is behind.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_FRACTION: u32 = 8;
/// After the last answer, orders have so long to come to the truth.
const SETTLE_MAX: Duration = Duration::from_mins(1);
/// While orders differ whose PSP keeps silent, the demo's clock goes forward by an hour, so that Paybell asks: at once, and
/// again after so long.
const HOUR: Duration = Duration::from_hours(1);
const LEAP_EVERY: Duration = Duration::from_secs(5);
/// Between two comparisons of all orders.
const COMPARE_EVERY: Duration = Duration::from_millis(100);
/// Orders on a page of the list.
const PAGE: usize = 100;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell demo\n  paybell demo --psps all\n  \
                  paybell demo --orders 2000 --seed 7\n  paybell demo --keep\n\n\
                  Exit: 0 every order agrees with the simulated PSP's ledger, 1 one differs, 2 no such PSP, 3 it could not run.")]
pub struct Args {
    /// How many orders to register and pay.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    orders: u32,
    /// The PSPs to play, separated by commas, or `all`; a wrong one lists them.
    #[arg(long, value_name = "IDS", value_delimiter = ',', default_value = "stripe")]
    psps: Vec<String>,
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
    let cast = cast(&args.psps).map_err(Failure::usage)?;
    let folder = TemporaryFolder::new().map_err(Failure::unknown)?;
    log_to(&folder.path.join("demo.log")).map_err(Failure::unknown)?;
    let shutdown = Shutdown::new();
    let finished = tokio::select! {
        finished = play(&args, cast, &folder.path, &shutdown) => finished.map(Some),
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

/// Who plays.
fn cast(ids: &[String]) -> anyhow::Result<Vec<Role>> {
    let mut dialects: Vec<&'static dyn Dialect> = Vec::new();
    for id in ids {
        if id == "all" {
            dialects.extend(simulator::ALL);
        } else if let Some(dialect) = simulator::find(id) {
            dialects.push(dialect);
        } else {
            let known: Vec<&str> = simulator::ALL.iter().map(|dialect| dialect.id()).collect();
            bail!("--psps {id:?}: it is all, or any of {}", known.join(", "));
        }
    }
    let mut cast: Vec<Role> = Vec::new();
    for dialect in dialects {
        if !cast.iter().any(|role| role.dialect.id() == dialect.id()) {
            let can_be_asked = psp::find(dialect.psp()).is_some_and(|psp| psp.profile().can.payment_status);
            cast.push(Role { dialect, can_be_asked });
        }
    }
    Ok(cast)
}

async fn play(args: &Args, cast: Vec<Role>, folder: &Path, shutdown: &Shutdown) -> anyhow::Result<(Sheet, Stage)> {
    let started = Instant::now();
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let (plan, ledgers) = Plan::new(&cast, args.orders as usize, seed, SystemClock.now().seconds());
    let clock = Arc::new(HastyClock::default());
    let stage = Stage::set(cast.iter().map(|role| role.dialect).zip(ledgers).collect(), folder, &clock, shutdown).await?;
    let progress = Progress::new(args.json, plan.registered_first.len() + plan.jobs.len());
    let registered_late = plan.orders.len() - plan.registered_first.len();

    progress.say("starting");
    stage.wait_until_ready(shutdown).await?;
    let performance = Arc::new(Performance::new(&stage, plan.orders, &clock)?);
    performance.register_first(&plan.registered_first, &progress).await?;
    performance.send_all(plan.jobs, &progress).await;
    progress.say("waiting for the last orders");
    let settled = performance.settle().await;
    // Whoever goes on from here, by `--keep`, has no hours to lose.
    clock.be_right_again();
    let settled = settled?;
    progress.finish();

    let record = performance.take_record()?;
    let mut problems = record.problems;
    if shutdown.has_crashed() {
        problems.push("a part of Paybell crashed: see the log".to_owned());
    }
    let sheet = Sheet {
        seed,
        took: started.elapsed(),
        psps: performance.psp_lines(&settled, &record.by_psp),
        counts: record.counts,
        acknowledgement: record.acknowledgement,
        lag: record.lag,
        statuses: settled.statuses,
        orders: performance.orders.len(),
        registered_late,
        balance: settled.balance,
        differences: settled.differences,
        problems,
    };
    Ok((sheet, stage))
}

/// The demo while it runs: what every request needs, and what has been counted so far.
struct Performance {
    players: Vec<Player>,
    api: Api,
    orders: Vec<PlannedOrder>,
    /// By the order's id: its place in `orders`.
    places: BTreeMap<String, usize>,
    /// By order: telling jobs that are not done yet.
    waiting_for: Vec<AtomicUsize>,
    clock: Arc<HastyClock>,
    record: Mutex<Option<Record>>,
}

struct Record {
    counts: Counts,
    by_psp: Vec<PspCounts>,
    acknowledgement: Durations,
    lag: Durations,
    problems: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct PspCounts {
    acknowledged: u64,
    /// Of these, copies.
    duplicates: u64,
}

/// How everything ended.
struct Settled {
    differences: Vec<Difference>,
    balance: serde_json::Value,
    /// `/v1/completeness`, while the demo's clock is still ahead.
    completeness: serde_json::Value,
    /// Orders by status: the ledgers' count, Paybell's count.
    statuses: BTreeMap<String, (usize, usize)>,
}

impl Performance {
    fn new(stage: &Stage, orders: Vec<PlannedOrder>, clock: &Arc<HastyClock>) -> anyhow::Result<Self> {
        let record = Record {
            counts: Counts::default(),
            by_psp: vec![PspCounts::default(); stage.players.len()],
            acknowledgement: Durations::new()?,
            lag: Durations::new()?,
            problems: Vec::new(),
        };
        Ok(Self {
            players: stage.players.clone(),
            api: stage.api.clone(),
            waiting_for: orders.iter().map(|order| AtomicUsize::new(order.telling)).collect(),
            places: orders.iter().enumerate().map(|(place, order)| (order.id.clone(), place)).collect(),
            orders,
            clock: Arc::clone(clock),
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
        let player = &self.players[planned.psp];
        let registration = Registration {
            psp: player.account.dialect.psp().to_owned(),
            account: Some(player.name.to_owned()),
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
        let psp = self.orders[job.order].psp;
        let player = &self.players[psp];
        let tells = match job.work {
            Work::Register => match self.register(job.order).await {
                Ok(()) => true,
                Err(error) => {
                    self.note(|record| record.problems.push(format!("{error:#}")));
                    false
                }
            },
            Work::Send { webhook, telling, duplicate } => {
                let (result, sent) = player.sender.deliver(&webhook, &hurried(player.account.dialect.retries())).await;
                let acknowledged = result.as_ref().is_ok_and(|answered| answered.status.is_success());
                self.note(|record| {
                    record.counts.sent += u64::from(sent);
                    record.counts.retried += u64::from(sent - 1);
                    match &result {
                        Ok(answered) if acknowledged => {
                            record.counts.acknowledged += 1;
                            record.counts.duplicates += u64::from(duplicate);
                            record.by_psp[psp].acknowledged += 1;
                            record.by_psp[psp].duplicates += u64::from(duplicate);
                            record.acknowledgement.record(answered.took);
                        }
                        Ok(_) | Err(_) => record.counts.undelivered += 1,
                    }
                });
                if acknowledged {
                    player.account.ledger_mut().acknowledge(&webhook.id);
                }
                telling && acknowledged
            }
            Work::Forge { webhook, forgery } => {
                let mut status = None;
                // Not judged yet is not taken: a forger may try again, too.
                for wait in [Duration::ZERO].into_iter().chain(hurried(player.account.dialect.retries())) {
                    tokio::time::sleep(wait).await;
                    status = match player.sender.forge(&webhook, forgery).await {
                        Ok(Some(answered)) => Some(answered.status.as_u16()),
                        Ok(None) => return None,
                        Err(_) => None,
                    };
                    if status != Some(503) {
                        break;
                    }
                }
                let refused = status == Some(player.account.dialect.refused_with());
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
                && agrees(planned, &found)
            {
                break;
            }
            tokio::time::sleep(LOOK_FIRST.max(acknowledged.elapsed() / LOOK_FRACTION)).await;
        }
        if planned.changes {
            self.note(|record| record.lag.record(acknowledged.elapsed()));
        }
    }

    /// Compares all orders until they agree and the books stand still, or the time is up. Meanwhile hours pass, in which Paybell
    /// asks about what it was not told.
    async fn settle(&self) -> anyhow::Result<Settled> {
        let deadline = Instant::now() + SETTLE_MAX;
        let mut leaps = Instant::now();
        let mut before = serde_json::Value::Null;
        loop {
            let found = self.all_orders().await?;
            let balance = self.api.balance().await?;
            let unbooked = self.unbooked(&balance);
            let differences = self.differences(&found);
            let stands_still = before == balance && unbooked.is_none();
            let is_late = Instant::now() >= deadline;
            if (differences.is_empty() && stands_still) || is_late {
                if !stands_still {
                    let problem = unbooked.unwrap_or_else(|| "the books do not stand still".to_owned());
                    self.note(|record| record.problems.push(problem));
                }
                let completeness = self.api.completeness(None).await?;
                return Ok(Settled { differences, balance, completeness, statuses: self.statuses(&found) });
            }
            before = balance;
            if !differences.is_empty() && Instant::now() >= leaps {
                self.clock.leap(HOUR);
                leaps += LEAP_EVERY;
            }
            tokio::time::sleep(COMPARE_EVERY).await;
        }
    }

    /// Where the books hold fewer events than a PSP had acknowledged. Hints stand in no book.
    fn unbooked(&self, balance: &serde_json::Value) -> Option<String> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &record.as_ref()?.by_psp;
        let short = self.players.iter().zip(counts).filter(|(player, _)| !player.hints).find_map(|(player, counts)| {
            let booked = sheet::booked(balance, player.account.dialect.psp(), player.name);
            let told = counts.acknowledged.saturating_sub(counts.duplicates);
            (booked < told).then(|| (player.account.dialect.id(), booked, told))
        });
        short.map(|(psp, booked, told)| format!("{psp}: the books hold {booked} events, {told} were acknowledged"))
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
        let differing = self.orders.iter().filter(|order| !found.get(&order.id).is_some_and(|found| agrees(order, found)));
        let planned = differing.map(|order| Difference {
            order: order.id.clone(),
            psp: Some(self.players[order.psp].account.dialect.id()),
            lost: order.lost,
            ledger: Some(order.truth.clone()),
            paybell: found.get(&order.id).cloned(),
        });
        // Orders that nobody made.
        let strangers = found.values().filter(|order| !self.places.contains_key(&order.id));
        let strangers = strangers.map(|order| Difference {
            order: order.id.clone(),
            psp: None,
            lost: false,
            ledger: None,
            paybell: Some(order.clone()),
        });
        planned.chain(strangers).collect()
    }

    fn statuses(&self, found: &BTreeMap<String, Order>) -> BTreeMap<String, (usize, usize)> {
        let mut statuses: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for order in &self.orders {
            statuses.entry(order.truth.status.to_owned()).or_default().0 += 1;
        }
        for order in found.values() {
            statuses.entry(order.status.clone()).or_default().1 += 1;
        }
        statuses
    }

    fn psp_lines(&self, settled: &Settled, counts: &[PspCounts]) -> Vec<PspLine> {
        let players = self.players.iter().zip(counts).enumerate();
        let lines = players.map(|(psp, (player, counts))| {
            let id = player.account.dialect.id();
            let orders: Vec<&PlannedOrder> = self.orders.iter().filter(|order| order.psp == psp).collect();
            PspLine {
                psp: id,
                proof: if player.hints { "hint" } else { "proven" },
                orders: orders.len(),
                agree: orders.len() - settled.differences.iter().filter(|difference| difference.psp == Some(id)).count(),
                lost: orders.iter().filter(|order| order.lost).count(),
                acknowledged: counts.acknowledged,
                duplicates: counts.duplicates,
                told: sheet::told(&settled.completeness, player.account.dialect.psp(), player.name),
            }
        });
        lines.collect()
    }
}

fn agrees(planned: &PlannedOrder, found: &Order) -> bool {
    let truth = &planned.truth;
    truth.status == found.status
        && (truth.captured, truth.refunded, truth.disputed) == (found.captured, found.refunded, found.disputed)
}

/// A PSP's retries in a demo's time.
fn hurried(retries: &[Duration]) -> Vec<Duration> {
    retries.iter().take(RETRIES_MAX).map(|wait| (*wait / RETRY_HURRY).clamp(RETRY_MIN, RETRY_MAX)).collect()
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
