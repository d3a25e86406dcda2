//! `push-vs-poll`: the same payments at a simulated Stripe, known to the shop in three ways: it asks every 30 seconds; it is told by
//! webhooks alone, of which 2 % are lost for good; it has Paybell, which asks about payments and reads the PSP's list, with the same
//! 2 % lost.
//!
//! **What is played**: when things happen ([`plan`]: payments take from seconds to days), that a webhook leaves the PSP 0.3 to 3 s
//! after the change, which webhooks are lost. The [`clock`] runs as the machine's does and leaps over the time in which nothing
//! happens, so a fortnight takes a minute. **What is real**: the PSP's API and the webhooks are HTTP on the loopback, signed and
//! verified; ingress, consumer, reconciliation, sweep and both write paths are the product's, on RabbitMQ and PostgreSQL with fsync;
//! bytes are counted on the wire (HTTP without TLS), CPU by the kernel. Not counted: the CPU of PSP, database and broker.
//!
//! **Polling** is done as shops do it that have nothing else: every open payment every 30 seconds until it is paid, canceled or
//! expired. It is given the adapter's reader and the worker's write path, one request a question, and no limit to its rate. What
//! comes after the end, it cannot see: refunds and disputes. **Webhooks** that are lost are lost: the PSP sends again what is not
//! answered 2xx, and each that arrives is.
//!
//! **Time to know** is from the change in the PSP's books to the first commit that shows it, or shows what came after it. What is
//! never shown, nor anything after it, is counted apart; what an order shows already, since the change before it was missed, is not
//! counted. **Wrong** is an order that differs from the PSP's books on the last day: status, captured, refunded, disputed.

mod clock;
mod plan;
mod psp;
mod shop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use paybell::simulator::Webhook;
use paybell::simulator::ledger::Truth;
use paybell_shared::clock::{Clock as _, SystemClock, Timestamp};
use paybell_worker::order::View;
use paybell_worker::store::Position;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::{Builder, Handle};

use self::clock::LeapingClock;
use self::plan::{Move, Plan};
use self::psp::Psp;
use self::shop::{POLL_EVERY, Shop};
use crate::servers::{Postgres, RabbitMq};

const SEED: u64 = 20_261_124;
/// Of a thousand webhooks, so many never arrive.
const LOST_PER_MILLE: u64 = 20;
/// From a change to when its webhooks leave the PSP.
const SENT_AFTER_MS: std::ops::Range<u64> = 300..3_000;
/// The payments are watched for so long: the last change is in the eighth day, and what nobody told may be learned late.
const WATCHED: Duration = Duration::from_hours(14 * 24);
/// Changes that are read at a time.
const PAGE: u32 = 1_000;
/// Jiffies a second, as the kernel tells them to programs on every architecture that Rust's standard library runs on.
const JIFFIES: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Polling,
    Webhooks,
    Reconciled,
}

/// The three ways, and what they were given.
#[derive(Debug, Serialize)]
pub struct Report {
    pub payments: usize,
    /// What happened to them that an order must show.
    pub changes: usize,
    /// Told of it by the PSP.
    pub webhooks: usize,
    pub ways: Vec<Measured>,
}

/// What one way came to. All but the last two groups: by payment.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub way: Way,
    pub requests: f64,
    pub webhooks: f64,
    pub bytes_to_psp: f64,
    pub bytes_from_psp: f64,
    pub cpu_ms: f64,
    pub known_after_median_s: f64,
    pub known_after_p99_s: f64,
    pub known: u64,
    pub never_known: u64,
    pub orders_wrong: usize,
    pub took_s: f64,
}

/// Runs the three ways one after the other, on servers of their own.
///
/// # Errors
/// Something cannot be started or reached.
pub async fn run(payments: usize) -> anyhow::Result<Report> {
    let (rabbitmq, postgres) = tokio::join!(RabbitMq::start_private(), Postgres::start_durable());
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(psp::THREADS).enable_all().build()?;
    let plan = Plan::new(payments, SEED);
    let (mut ways, mut changes, mut webhooks) = (Vec::new(), 0, 0);
    for way in [Way::Polling, Way::Webhooks, Way::Reconciled] {
        let run = Run::begin(way, &plan, runtime.handle(), (&postgres, &rabbitmq)).await?;
        let (measured, told) = run.until_the_end().await?;
        (changes, webhooks) = told;
        ways.push(measured);
    }
    runtime.shutdown_background();
    Ok(Report { payments, changes, webhooks, ways })
}

/// One way, while it is played.
struct Run<'a> {
    way: Way,
    plan: &'a Plan,
    start: Timestamp,
    clock: Arc<LeapingClock>,
    psp: Psp,
    shop: Shop,
    /// When the next webhooks leave the PSP.
    mail: BTreeMap<(Timestamp, usize), Vec<Webhook>>,
    /// By order: what it must show, since when.
    truths: BTreeMap<String, Vec<(Timestamp, Truth)>>,
    told: usize,
}

impl<'a> Run<'a> {
    async fn begin(way: Way, plan: &'a Plan, runtime: &Handle, servers: (&Postgres, &RabbitMq)) -> anyhow::Result<Self> {
        let (start, clock) = (SystemClock.now(), Arc::new(LeapingClock::default()));
        let psp = Psp::new(runtime, &clock, SEED).await?;
        let shop = Shop::open(way, &psp, &clock, runtime, servers).await?;
        Ok(Self { way, plan, start, clock, psp, shop, mail: BTreeMap::new(), truths: BTreeMap::new(), told: 0 })
    }

    async fn until_the_end(mut self) -> anyhow::Result<(Measured, (usize, usize))> {
        let (plan, end) = (self.plan, self.start.plus(WATCHED));
        let (began, cpu_before) = (SystemClock.now(), cpu_s()?);
        let mut moves = plan.moves.iter().peekable();
        loop {
            let next_move = moves.peek().map(|(after, ..)| self.start.plus(*after));
            let next_mail = self.mail.keys().next().map(|(at, _)| *at);
            let next = [next_move, next_mail, self.shop.next().await?].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next < end) else { break };
            self.clock.leap_to(next);
            while let Some((_, number, step)) = moves.next_if(|(after, ..)| self.start.plus(*after) <= self.clock.now()) {
                self.happens(*number, *step).await?;
            }
            while let Some(entry) = self.mail.first_entry().filter(|entry| entry.key().0 <= self.clock.now()) {
                let webhooks = entry.remove();
                self.shop.hear(webhooks).await?;
            }
            self.shop.work().await?;
        }
        let (cpu_s, took_s) = (cpu_s()? - cpu_before, SystemClock.now().since(began).as_secs_f64());
        let measured = self.measure(cpu_s, took_s).await?;
        let changes = self.truths.values().map(|truths| truths.len() - 1).sum();
        self.shop.close().await?;
        Ok((measured, (changes, self.told)))
    }

    /// One move: in the books, then on its way to the shop.
    async fn happens(&mut self, number: usize, step: Move) -> anyhow::Result<()> {
        let (planned, now) = (&self.plan.payments[number], self.clock.now());
        let (truth, told) = {
            let ledger = &mut self.psp.account.ledger_mut();
            let before = ledger.events().len();
            step.play(ledger, planned, now.seconds());
            let told: Vec<Webhook> = ledger.events()[before..].iter().map(Webhook::from).collect();
            (ledger.truth(&planned.order_id).context("a payment is not in the books")?, told)
        };
        let truths = self.truths.entry(planned.order_id.clone()).or_default();
        if truths.last().is_none_or(|(_, before)| *before != truth) {
            truths.push((now, truth));
        }
        if let Move::Open { .. } = step {
            self.shop.register(planned).await?;
        }
        if let Some(first) = told.first() {
            let range = SENT_AFTER_MS.end - SENT_AFTER_MS.start;
            let after = SENT_AFTER_MS.start + chance(&format!("sent {}", first.id)) % range;
            let key = (now.plus(Duration::from_millis(after)), self.told);
            self.told += told.len();
            let arrive = told.into_iter().filter(|webhook| chance(&format!("lost {}", webhook.id)) % 1000 >= LOST_PER_MILLE);
            self.mail.insert(key, arrive.collect());
        }
        Ok(())
    }

    async fn measure(&self, cpu_s: f64, took_s: f64) -> anyhow::Result<Measured> {
        let shown = self.shown().await?;
        let (mut known, mut never_known, mut orders_wrong) = (Histogram::<u64>::new(3)?, 0, 0);
        for (order_id, truths) in &self.truths {
            let shown = shown.get(order_id).map_or(&[][..], Vec::as_slice);
            for (place, (at, truth)) in truths.iter().enumerate().skip(1) {
                let until_then = shown.partition_point(|(shown_at, _)| shown_at < at);
                if until_then.checked_sub(1).is_some_and(|before| shows(&shown[before].1, truth)) {
                    continue;
                }
                // What came after it says as much.
                let later = &truths[place..];
                let first = shown[until_then..]
                    .iter()
                    .find(|(shown_at, view)| later.iter().any(|(since, truth)| since <= shown_at && shows(view, truth)));
                match first {
                    Some((shown_at, _)) => known.record(u64::try_from(shown_at.since(*at).as_millis())?)?,
                    None => never_known += 1,
                }
            }
            let is_right = shown.last().zip(truths.last()).is_some_and(|((_, view), (_, truth))| shows(view, truth));
            orders_wrong += usize::from(!is_right);
        }
        let (heard, heard_forth, heard_back) = self.shop.heard();
        #[expect(clippy::cast_precision_loss, reason = "a benchmark's counts stay far below 2^52")]
        let (each, seconds) = (
            |count: u64| count as f64 / self.plan.payments.len() as f64,
            |quantile| known.value_at_quantile(quantile) as f64 / 1000.0,
        );
        Ok(Measured {
            way: self.way,
            requests: each(self.psp.requests() as u64),
            webhooks: each(heard as u64),
            bytes_to_psp: each(self.psp.api.forth() + heard_back),
            bytes_from_psp: each(self.psp.api.back() + heard_forth),
            cpu_ms: 1000.0 * cpu_s * each(1),
            known_after_median_s: seconds(0.5),
            known_after_p99_s: seconds(0.99),
            known: known.len(),
            never_known,
            orders_wrong,
            took_s,
        })
    }

    /// By order: what it showed, since when.
    async fn shown(&self) -> anyhow::Result<BTreeMap<String, Vec<(Timestamp, View)>>> {
        let mut shown: BTreeMap<String, Vec<(Timestamp, View)>> = BTreeMap::new();
        let mut after = Position::default();
        loop {
            let page = self.shop.context.store.changes_after(None, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(shown) };
            after = last.position;
            for positioned in page {
                let order = positioned.change.order;
                shown.entry(order.id).or_default().push((order.updated_at, order.view));
            }
        }
    }
}

fn shows(view: &View, truth: &Truth) -> bool {
    (view.status.as_str(), view.captured, view.refunded, view.disputed)
        == (truth.status, truth.captured, truth.refunded, truth.disputed)
}

/// A number that is always the same for the same words.
fn chance(words: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(words)[..8]);
    u64::from_be_bytes(first)
}

/// Seconds of CPU that this process has used so far, but for the PSP's threads: the kernel's word.
fn cpu_s() -> anyhow::Result<f64> {
    // Behind the name, which may hold anything but ends with the last parenthesis, the 12th and 13th are time as a user and as
    // the system.
    let jiffies = |stat: &str| -> anyhow::Result<f64> {
        let (_, fields) = stat.rsplit_once(") ").context("the kernel says no such stat")?;
        let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        let (user, system) = (times.next().context("no user time")??, times.next().context("no system time")??);
        Ok(user + system)
    };
    let mut total = jiffies(&std::fs::read_to_string("/proc/self/stat")?)?;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end while they are read.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        if stat.contains(&format!("({})", psp::THREADS)) {
            total -= jiffies(&stat)?;
        }
    }
    Ok(total / JIFFIES)
}

impl Report {
    /// The report as lines for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let Self { payments, changes, webhooks, ways } = self;
        let head = format!(
            "push-vs-poll: {payments} payments, {changes} changes, {webhooks} webhooks\n{:<34}{:>9}{:>9}{:>10}{:>9}{:>7}{:>7}{:>13}\n",
            "a payment", "requests", "webhooks", "median", "p99", "never", "wrong", "kB, CPU ms"
        );
        let lines: Vec<String> = ways.iter().map(Measured::line).collect();
        let foot = "median, p99: from a change to the order's commit; never: changes never known; wrong: orders at the end\n";
        head + &lines.concat() + foot
    }
}

impl Measured {
    fn line(&self) -> String {
        let name = match self.way {
            Way::Polling => format!("polling every {} s", POLL_EVERY.as_secs()),
            Way::Webhooks => format!("webhooks, {} % lost", LOST_PER_MILLE / 10),
            Way::Reconciled => format!("webhooks, {} % lost, and Paybell", LOST_PER_MILLE / 10),
        };
        let Self { requests, webhooks, never_known, orders_wrong, .. } = self;
        let (median, p99) = (span(self.known_after_median_s), span(self.known_after_p99_s));
        let cost = format!("{:.1}, {:.1}", (self.bytes_to_psp + self.bytes_from_psp) / 1000.0, self.cpu_ms);
        format!("{name:<34}{requests:>9.1}{webhooks:>9.1}{median:>10}{p99:>9}{never_known:>7}{orders_wrong:>7}{cost:>13}\n")
    }
}

/// A time for people.
fn span(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("{seconds:.1} s")
    } else if seconds < 5_400.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.0} h", seconds / 3_600.0)
    }
}
