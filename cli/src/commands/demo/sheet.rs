//! The demo's balance sheet: what was sent, what came of it, and whether it agrees with the ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

use crate::api::Order;
use crate::output;
use crate::simulator::Forgery;
use crate::simulator::ledger::Truth;

/// More differing orders than these are counted, not listed.
const DIFFERENCES_SHOWN: usize = 20;
/// The longest duration that is told apart, in microseconds: the demo ends before.
const LONGEST_US: u64 = 120_000_000;

/// What happened to webhooks, counted by who sent them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Requests, repeats and forgeries included.
    pub sent: u64,
    /// Genuine webhooks that were answered 2xx.
    pub acknowledged: u64,
    /// Of these, copies of events that had been acknowledged before.
    pub duplicates: u64,
    /// Requests that were sent again because the answer was no 2xx, or none.
    pub retried: u64,
    /// Genuine webhooks that were never acknowledged.
    pub undelivered: u64,
    /// Forged webhooks that were refused, by what was wrong with them.
    pub rejected: BTreeMap<Forgery, u64>,
    /// Forged webhooks that were not refused with 401, by what was wrong with them.
    pub forgeries_not_refused: BTreeMap<Forgery, u64>,
}

/// An order that is not as the ledger has it.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub order: String,
    /// `None`: nobody made this order.
    pub psp: Option<&'static str>,
    /// No webhook about it was sent.
    pub lost: bool,
    pub ledger: Option<Truth>,
    pub paybell: Option<Order>,
}

/// What became of one PSP's part.
#[derive(Clone, Debug, Serialize)]
pub struct PspLine {
    pub psp: &'static str,
    /// `proven`, or `hint`.
    pub proof: &'static str,
    pub orders: usize,
    /// Of these, how many are as the ledger has them.
    pub agree: usize,
    /// Orders of which no webhook was sent.
    pub lost: usize,
    /// Webhooks that were answered 2xx.
    pub acknowledged: u64,
    /// Of these, copies.
    pub duplicates: u64,
    pub told: Told,
}

/// Who told first what payments came to, as `/v1/completeness` has it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Told {
    pub by_webhook: u64,
    /// Asking was first; the webhook came after all.
    pub late: u64,
    /// Asking told it, and no webhook came.
    pub by_asking_alone: u64,
}

/// Everything that is said at the end.
pub struct Sheet {
    pub seed: u64,
    pub took: Duration,
    pub psps: Vec<PspLine>,
    pub counts: Counts,
    pub acknowledgement: Durations,
    pub lag: Durations,
    /// Orders by status: the ledgers' count, Paybell's count.
    pub statuses: BTreeMap<String, (usize, usize)>,
    pub orders: usize,
    pub registered_late: usize,
    /// `/v1/balance`.
    pub balance: Value,
    pub differences: Vec<Difference>,
    /// What went wrong beside that, for people.
    pub problems: Vec<String>,
}

/// Durations, to read percentiles from.
pub struct Durations(Histogram<u64>);

impl Durations {
    /// # Errors
    /// Never with these bounds; the library cannot know.
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Histogram::new_with_bounds(1, LONGEST_US, 3).map(Self)
    }

    pub fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(LONGEST_US).max(1));
    }

    fn ms(&self, quantile: f64) -> f64 {
        Duration::from_micros(self.0.value_at_quantile(quantile)).as_secs_f64() * 1e3
    }

    fn json(&self) -> Value {
        serde_json::json!({ "p50_ms": self.ms(0.5), "p99_ms": self.ms(0.99), "count": self.0.len() })
    }

    fn text(&self) -> String {
        if self.0.is_empty() {
            return "none measured".to_owned();
        }
        format!("p50 {:.1} ms, p99 {:.1} ms ({} measured)", self.ms(0.5), self.ms(0.99), self.0.len())
    }
}

impl Sheet {
    /// Every order agrees, nothing forged got in, nothing genuine stayed out.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.differences.is_empty()
            && self.problems.is_empty()
            && self.counts.undelivered == 0
            && self.counts.forgeries_not_refused.is_empty()
    }

    pub fn print_json(&self) {
        let statuses: BTreeMap<_, _> = self
            .statuses
            .iter()
            .map(|(status, (ledger, paybell))| (status, serde_json::json!({ "ledger": ledger, "paybell": paybell })))
            .collect();
        output::json(&serde_json::json!({
            "agrees": self.agrees(), "seed": self.seed, "took_s": self.took.as_secs_f64(),
            "orders": self.orders, "registered_late": self.registered_late, "psps": self.psps, "webhooks": self.counts,
            "inbox": outcomes(&self.balance), "orders_by_status": statuses,
            "acknowledgement": self.acknowledgement.json(), "lag_webhook_to_order": self.lag.json(),
            "differences_total": self.differences.len(),
            "differences": &self.differences[..self.differences.len().min(DIFFERENCES_SHOWN)],
            "problems": self.problems,
        }));
    }

    pub fn print(&self) {
        let counts = &self.counts;
        let mut rows = vec![
            [
                "orders".to_owned(),
                format!("{}, {} of them registered among or after their webhooks", self.orders, self.registered_late),
            ],
            [
                "orders without webhooks".to_owned(),
                format!(
                    "{}: all of theirs were lost, and their PSP was asked",
                    self.psps.iter().map(|line| line.lost).sum::<usize>()
                ),
            ],
            ["webhooks sent".to_owned(), format!("{} ({} sent again)", counts.sent, counts.retried)],
            ["acknowledged".to_owned(), counts.acknowledged.to_string()],
            ["of these duplicates".to_owned(), counts.duplicates.to_string()],
        ];
        for (forgery, count) in &counts.rejected {
            rows.push([format!("rejected: {}", words(*forgery)), count.to_string()]);
        }
        for (forgery, count) in &counts.forgeries_not_refused {
            rows.push([format!("NOT REJECTED: {}", words(*forgery)), count.to_string()]);
        }
        if counts.undelivered > 0 {
            rows.push(["NEVER ACKNOWLEDGED".to_owned(), counts.undelivered.to_string()]);
        }
        for (outcome, count) in outcomes(&self.balance) {
            rows.push([format!("inbox: {outcome}"), count.to_string()]);
        }
        let told = |count: fn(&Told) -> u64| self.psps.iter().map(|line| count(&line.told)).sum::<u64>();
        rows.push([
            "payments decided".to_owned(),
            format!(
                "{} told by their webhook, {} by asking before it came, {} by asking alone",
                told(|told| told.by_webhook),
                told(|told| told.late),
                told(|told| told.by_asking_alone)
            ),
        ]);
        rows.push(["acknowledgement".to_owned(), format!("{}; request to answer", self.acknowledgement.text())]);
        rows.push([
            "lag webhook to order".to_owned(),
            format!("{}; last needed acknowledgement until the API shows the ledger's truth, by polling", self.lag.text()),
        ]);
        output::line(output::table(["balance sheet", ""], rows));
        let lines = self.psps.iter().map(|line| {
            [
                line.psp.to_owned(),
                line.proof.to_owned(),
                line.orders.to_string(),
                line.agree.to_string(),
                line.lost.to_string(),
                line.acknowledged.to_string(),
                line.duplicates.to_string(),
                line.told.by_webhook.to_string(),
                line.told.late.to_string(),
                line.told.by_asking_alone.to_string(),
            ]
        });
        let header = [
            "PSP",
            "webhooks are",
            "orders",
            "that agree",
            "without webhooks",
            "acknowledged",
            "of these duplicates",
            "told by webhook",
            "late",
            "by asking alone",
        ];
        output::line(output::table(header, lines));
        let statuses =
            self.statuses.iter().map(|(status, (ledger, paybell))| [status.clone(), ledger.to_string(), paybell.to_string()]);
        output::line(output::table(["orders by status", "ledgers", "Paybell"], statuses));
        self.print_differences();
        for problem in &self.problems {
            output::line(format_args!("problem: {}", output::printable(problem)));
        }
        let verdict = if self.agrees() {
            format!("Every order agrees with {}: status, captured, refunded, disputed ({}).", self.ledgers(), self.orders)
        } else {
            format!("{} of {} orders differ from {}.", self.differences.len(), self.orders, self.ledgers())
        };
        output::line(format_args!("{verdict} Seed {}, {:.1} s.", self.seed, self.took.as_secs_f64()));
    }

    fn ledgers(&self) -> String {
        match &self.psps[..] {
            [line] => format!("the ledger of the simulated {}", line.psp),
            lines => format!("the ledgers of the {} simulated PSPs", lines.len()),
        }
    }

    fn print_differences(&self) {
        if self.differences.is_empty() {
            return;
        }
        let shown = |status: &str, captured: i64, refunded: i64, disputed: i64| {
            format!("{status}: captured {captured}, refunded {refunded}, disputed {disputed}")
        };
        let rows = self.differences.iter().take(DIFFERENCES_SHOWN).map(|difference| {
            let ledger = difference.ledger.as_ref();
            let paybell = difference.paybell.as_ref();
            [
                difference.order.clone(),
                format!("{}{}", difference.psp.unwrap_or("(nobody)"), if difference.lost { ", no webhooks" } else { "" }),
                ledger.map_or_else(|| "(unknown)".to_owned(), |it| shown(it.status, it.captured, it.refunded, it.disputed)),
                paybell.map_or_else(|| "(unknown)".to_owned(), |it| shown(&it.status, it.captured, it.refunded, it.disputed)),
            ]
        });
        output::line(output::table(["order that differs", "PSP", "ledger", "Paybell"], rows));
        if self.differences.len() > DIFFERENCES_SHOWN {
            output::line(format_args!("… and {} more", self.differences.len() - DIFFERENCES_SHOWN));
        }
    }
}

/// Events by outcome, over all accounts.
pub fn outcomes(balance: &Value) -> BTreeMap<String, i64> {
    let mut outcomes = BTreeMap::new();
    for total in balance["events"].as_array().into_iter().flatten() {
        if let (Some(outcome), Some(count)) = (total["outcome"].as_str(), total["count"].as_i64()) {
            *outcomes.entry(outcome.to_owned()).or_default() += count;
        }
    }
    outcomes
}

/// Events of one account, whatever their outcome.
pub fn booked(balance: &Value, psp: &str, account: &str) -> u64 {
    let lines = balance["events"].as_array().into_iter().flatten();
    let own = lines.filter(|line| line["psp"] == psp && line["account"] == account);
    own.filter_map(|line| line["count"].as_u64()).sum()
}

/// Who told first what an account's payments came to.
pub fn told(completeness: &Value, psp: &str, account: &str) -> Told {
    let lines = completeness["accounts"].as_array().into_iter().flatten();
    let own = lines.filter(|line| line["psp"] == psp && line["account"] == account);
    own.fold(Told::default(), |told, line| {
        let count = |member: &str| line[member].as_u64().unwrap_or_default();
        Told {
            by_webhook: told.by_webhook + count("by_webhook"),
            late: told.late + count("late"),
            by_asking_alone: told.by_asking_alone + count("missed") + count("pending"),
        }
    })
}

const fn words(forgery: Forgery) -> &'static str {
    match forgery {
        Forgery::WrongSecret => "another secret or token",
        Forgery::AlteredByte => "a byte altered",
        Forgery::Stale => "signed an hour ago",
    }
}
