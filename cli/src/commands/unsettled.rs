//! `paybell unsettled`: the open orders that will not be settled by themselves, from a running Paybell.

use std::collections::BTreeMap;

use paybell_worker::store::Reason;
use serde_json::{Value, json};

use crate::output::{self, Exit, Failure, Outcome};

use super::reading::{Reading, failure};

/// As many as the API gives at once.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell unsettled\n  paybell unsettled --reason no_answer --json\n\n\
                  Events that wait for their order: GET /v1/parked. Orders under review: GET /v1/orders?status=under_review.\n\
                  Exit: 0 there is none, 1 there are some, 2 wrong usage or configuration (or token), 3 the API could not be\n\
                  asked.")]
pub struct Args {
    /// Only those of this reason; a wrong one lists them.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<Reason>,
    /// The most that are listed.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    reading: Reading,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn reason(text: &str) -> Result<Reason, String> {
    let known = || Reason::ALL.map(Reason::as_str).join(", ");
    Reason::parse(text).ok_or_else(|| format!("it is any of {}", known()))
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    let (api, url) = args.reading.api().map_err(Failure::usage)?;
    let mut items: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    let more = loop {
        let left = args.limit.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX));
        let page = api.unsettled(args.reason.map(Reason::as_str), cursor.as_deref(), left.min(PAGE)).await;
        let page = page.map_err(|error| failure(error, &url))?;
        items.extend(page.items);
        match page.next_cursor {
            Some(next) if items.len() < args.limit as usize => cursor = Some(next),
            next => break next.is_some(),
        }
    };
    if args.json {
        output::json(&json!({ "items": items, "more": more }));
    } else {
        show(&items, more.then_some(args.limit));
    }
    Ok(if items.is_empty() { Exit::Yes } else { Exit::No })
}

fn show(items: &[Value], more: Option<u32>) {
    if items.is_empty() {
        output::line("Every open order can be settled by itself.");
        return;
    }
    let text = |item: &Value, member: &str| item[member].as_str().unwrap_or_default().to_owned();
    let rows = items.iter().map(|item| {
        let payment = item["payment_id"].as_str().map_or_else(String::new, |id| format!("/{id}"));
        [
            text(item, "order_id"),
            text(item, "status").replace('_', " "),
            text(item, "reason"),
            text(item, "since"),
            format!("{}/{}{payment}", text(item, "psp"), text(item, "account")),
        ]
    });
    output::line(output::table(["order", "status", "reason", "since", "payment"], rows));
    let advice: BTreeMap<String, String> = items.iter().map(|item| (text(item, "reason"), text(item, "what_to_do"))).collect();
    for (reason, what_to_do) in advice {
        output::line(output::printable(&format!("{reason}: {what_to_do}")));
    }
    if let Some(limit) = more {
        output::line(format_args!("There are more: ask with --limit above {limit}."));
    }
}
