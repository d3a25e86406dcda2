//! `paybell replay`: kept webhooks translated again, by the running worker.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};

use super::door::Door;
use crate::api::ApiError;
use crate::output::{self, Exit, Failure, Outcome};

/// Webhooks of one page, and so of one transaction, at the most.
const PAGE_MAX: u32 = 100;
/// Rows of the table: more is for `--json`.
const ROWS_MAX: usize = 1000;

#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("which").required(true).args(["order", "event", "psp", "fingerprint"])),
    after_help = "Examples:\n  paybell replay --order 4711\n  paybell replay --fingerprint 0f3a… --apply --reason 'mapping 3 knows it'\n  \
                  paybell replay --psp stripe --since 2026-09-01T00:00:00Z --until 2026-09-02T00:00:00Z --apply --reason PAY-12\n\n\
                  Without --apply, nothing changes: it shows what would. Each page is one transaction, and repeating it changes \
                  nothing more: it may be interrupted at any time.\n\
                  Exit: 0 done, and nothing was left; 1 a dry run found differences, or something was skipped; 2 wrong usage; \
                  3 the internal API is not reached."
)]
pub struct Args {
    /// The webhooks whose events the order has.
    #[arg(long, value_name = "ID", conflicts_with_all = ["event", "fingerprint"])]
    order: Option<String>,
    /// The webhook of an event: `stripe/default/evt_1`.
    #[arg(long, value_name = "PSP/ACCOUNT/ID", value_parser = event, conflicts_with = "fingerprint")]
    event: Option<Event>,
    /// The webhooks of a PSP.
    #[arg(long)]
    psp: Option<String>,
    /// The webhooks of one of its accounts.
    #[arg(long, requires = "psp")]
    account: Option<String>,
    /// Received at or after, in RFC 3339.
    #[arg(long, value_name = "T")]
    since: Option<String>,
    /// Received before, in RFC 3339.
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// The webhooks quarantined under this fingerprint.
    #[arg(long, value_name = "F")]
    fingerprint: Option<String>,
    /// Change what differs.
    #[arg(long, requires = "reason")]
    apply: bool,
    /// Why; kept with the orders that change.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Replace also what was translated by the same mapping version: the account's settings have changed.
    #[arg(long)]
    force: bool,
    /// Webhooks a second, at the most.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    #[command(flatten)]
    door: Door,
    /// Print JSON: a line for each item, and a last one with the totals.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Event {
    psp: String,
    account: String,
    id: String,
}

/// The last may have slashes in it.
fn event(text: &str) -> Result<Event, String> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(psp), Some(account), Some(id)) if ![&psp, &account, &id].iter().any(|part| part.is_empty()) => {
            Ok(Event { psp, account, id })
        }
        _ => Err("an event is PSP/ACCOUNT/ID, such as stripe/default/evt_1".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    let api = args.door.open().map_err(Failure::usage)?;
    let mut sheet = Sheet::new(&args);
    let mut cursor: Option<String> = None;
    loop {
        let started = Instant::now();
        let page =
            api.replay(&request(&args, cursor.as_deref())).await.map_err(|error| sheet.stopped(error, cursor.as_deref()))?;
        let looked_at = sheet.add(page.items, &page.totals);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
        // So many take so long, and a page that pulled others in takes longer.
        sleep_until(started + Duration::from_secs(looked_at) / args.rate).await;
    }
    Ok(sheet.finish())
}

fn request(args: &Args, cursor: Option<&str>) -> Value {
    let mut request = Map::new();
    let texts = [
        ("order_id", &args.order),
        ("psp", &args.psp),
        ("account", &args.account),
        ("since", &args.since),
        ("until", &args.until),
        ("fingerprint", &args.fingerprint),
        ("reason", &args.reason),
    ];
    for (name, text) in texts {
        request.extend(text.as_ref().map(|text| (name.to_owned(), json!(text))));
    }
    request.extend(
        args.event
            .as_ref()
            .map(|Event { psp, account, id }| ("event".to_owned(), json!({ "psp": psp, "account": account, "event_id": id }))),
    );
    request.extend(cursor.map(|cursor| ("cursor".to_owned(), json!(cursor))));
    request.insert("dry_run".to_owned(), json!(!args.apply));
    request.insert("force".to_owned(), json!(args.force));
    request.insert("limit".to_owned(), json!(args.rate.min(PAGE_MAX)));
    Value::Object(request)
}

/// What was found so far.
struct Sheet {
    apply: bool,
    json: bool,
    bar: ProgressBar,
    rows: Vec<[String; 3]>,
    left_out: usize,
    webhooks: u64,
    unchanged: u64,
    skipped: u64,
    events: u64,
    orders: u64,
}

impl Sheet {
    fn new(args: &Args) -> Self {
        let target = if std::io::stderr().is_terminal() && !args.json {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        // How many there are is not known before the last page.
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} webhooks, {per_sec}, {elapsed}  {msg}") {
            bar.set_style(style);
        }
        let rows = Vec::new();
        Self {
            apply: args.apply,
            json: args.json,
            bar,
            rows,
            left_out: 0,
            webhooks: 0,
            unchanged: 0,
            skipped: 0,
            events: 0,
            orders: 0,
        }
    }

    /// How many webhooks the page looked at.
    fn add(&mut self, items: Vec<Value>, totals: &Value) -> u64 {
        let total = |name: &str| totals[name].as_u64().unwrap_or_default();
        let looked_at = total("webhooks");
        self.webhooks += looked_at;
        self.unchanged += total("unchanged");
        self.skipped += total("skipped");
        self.events += total("events");
        self.orders += total("orders");
        self.bar.set_position(self.webhooks);
        self.bar.set_message(format!("{} events, {} orders, {} skipped", self.events, self.orders, self.skipped));
        for item in items {
            if self.json {
                output::json(&item);
            } else if self.rows.len() < ROWS_MAX {
                self.rows.extend(rows_of(&item));
            } else {
                self.left_out += 1;
            }
        }
        looked_at
    }

    /// What was done before stays done: it is shown, and how to go on.
    fn stopped(&mut self, error: ApiError, cursor: Option<&str>) -> Failure {
        self.show();
        let refused = matches!(&error, ApiError::Refused { status, .. } if !status.is_server_error());
        let error = match cursor {
            None => anyhow!(error),
            Some(_) => anyhow!(error).context("it stopped half-way; the same command goes on, and changes nothing twice"),
        };
        if refused { Failure::usage(error) } else { Failure::unknown(error) }
    }

    fn finish(mut self) -> Exit {
        self.show();
        let differs = !self.apply && self.events + self.orders > 0;
        if differs && !self.json {
            output::line("Nothing was changed: --apply --reason TEXT does it.");
        }
        if differs || self.skipped > 0 { Exit::No } else { Exit::Yes }
    }

    fn show(&mut self) {
        self.bar.finish_and_clear();
        if self.json {
            output::json(&json!({ "totals": {
                "webhooks": self.webhooks, "unchanged": self.unchanged, "skipped": self.skipped,
                "events": self.events, "orders": self.orders,
            } }));
            return;
        }
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() {
            output::line(output::table(["what", "before", if self.apply { "now" } else { "would be" }], rows));
        }
        if self.left_out > 0 {
            output::line(format_args!("and {} more: --json shows all", self.left_out));
        }
        let (webhooks, unchanged, events, orders, skipped) =
            (self.webhooks, self.unchanged, self.events, self.orders, self.skipped);
        let verb = if self.apply { "changed" } else { "would change" };
        output::line(format_args!(
            "{webhooks} webhooks, {unchanged} say what they said; {events} events and {orders} orders {verb}, {skipped} webhooks \
             skipped."
        ));
    }
}

/// What an item changes, one row a difference.
fn rows_of(item: &Value) -> Vec<[String; 3]> {
    let text = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let names = match item["kind"].as_str() {
        Some("event") => &["outcome", "order_id", "fact"][..],
        Some("order") => &["status", "currency", "authorized", "captured", "refunded", "disputed", "review", "payments"][..],
        _ => {
            let webhook = format!("{}/{}/{}", text(&item["psp"]), text(&item["account"]), text(&item["webhook_id"]));
            return vec![[webhook, "skipped".to_owned(), text(&item["reason"])]];
        }
    };
    let what = match item["order_id"].as_str() {
        Some(order_id) => format!("order {order_id}"),
        None => format!("{}/{}/{}", text(&item["psp"]), text(&item["account"]), text(&item["event_id"])),
    };
    let (before, after) = (&item["before"], &item["after"]);
    let differing = names.iter().filter(|name| before[**name] != after[**name]);
    differing.map(|name| [format!("{what} {name}"), text(&before[*name]), text(&after[*name])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_by_its_three_parts() {
        let named = event("stripe/default/evt/1").unwrap();
        assert_eq!((&*named.psp, &*named.account, &*named.id), ("stripe", "default", "evt/1"));
        for wrong in ["", "stripe", "stripe/default", "stripe/default/", "/default/evt", "stripe//evt"] {
            assert!(event(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_shows_one_difference() {
        let item = json!({ "kind": "order", "order_id": "o", "before": { "status": "paid", "captured": 5, "payments": ["a"] },
            "after": { "status": "under_review", "captured": 5, "payments": ["a", "b"] } });
        let rows = [["order o status", "paid", "under_review"], ["order o payments", "a", "a, b"]];
        assert_eq!(rows_of(&item), rows.map(|row| row.map(str::to_owned)));
        let new = json!({ "kind": "event", "psp": "p", "account": "a", "event_id": "e", "before": null,
            "after": { "outcome": "parked", "order_id": null, "fact": null } });
        assert_eq!(rows_of(&new), [["p/a/e outcome", "–", "parked"].map(str::to_owned)]);
    }
}
