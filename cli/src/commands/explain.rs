//! `paybell explain`: what became of an order or an event, from a running Paybell.

use anyhow::anyhow;
use paybell_shared::event::EventKey;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::api::{Api, ApiError};
use crate::output::{self, Exit, Failure, Outcome};

use super::reading::{Reading, failure};

/// As many as the API gives at once.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell explain demo-1\n  paybell explain stripe/default/evt_1N2b3c\n  \
                  paybell explain demo-1 --api http://127.0.0.1:8081 --token env:API_TOKEN\n\n\
                  What is named is taken for an order. Where there is none of that name and the name has the form\n\
                  psp/account/event, it is taken for an event; an event's own id may hold slashes. --order and --event\n\
                  leave no choice.\n\
                  Exit: 0 found, 1 not found, 2 wrong usage or configuration (or token), 3 the API could not be asked.")]
pub struct Args {
    /// The order's id, or an event as psp/account/event.
    name: String,
    /// It is an order.
    #[arg(long, conflicts_with = "event")]
    order: bool,
    /// It is an event.
    #[arg(long)]
    event: bool,
    /// The most lines of an order's timeline, from its beginning.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    reading: Reading,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    let key = event_key(&args.name);
    if args.name.is_empty() {
        return Err(Failure::usage(anyhow!("the name of the order or event is empty")));
    }
    if args.event && key.is_none() {
        return Err(Failure::usage(anyhow!(
            "{:?} does not name an event: that takes psp/account/event, such as stripe/default/evt_1N2b3c",
            args.name
        )));
    }
    let (api, url) = args.reading.api().map_err(Failure::usage)?;
    let failed = |error| failure(error, &url);
    if !args.event
        && let Some(order) = api.order_as_told(&args.name).await.or_else(absent("order")).map_err(failed)?
    {
        let (lines, more) = timeline(&api, &args).await.map_err(failed)?;
        show_order(&args, &order, &lines, more);
        return Ok(Exit::Yes);
    }
    if let Some(key) = key.as_ref().filter(|_| !args.order)
        && let Some(event) = api.event(key).await.or_else(absent("event")).map_err(failed)?
    {
        show_event(&args, &event);
        return Ok(Exit::Yes);
    }
    let advice = advice(&args, key.as_ref());
    if args.json {
        output::json(&json!({ "kind": null, "name": args.name, "advice": advice }));
    } else {
        output::line(format_args!("{}", output::printable(&advice)));
    }
    Ok(Exit::No)
}

/// `psp/account/event`, whose last part may hold slashes.
fn event_key(name: &str) -> Option<EventKey> {
    let (psp, rest) = name.split_once('/')?;
    let (account, event_id) = rest.split_once('/')?;
    let all_there = ![psp, account, event_id].contains(&"");
    all_there.then(|| EventKey { psp: psp.into(), account: account.into(), event_id: event_id.to_owned() })
}

/// Its own word that there is none is an answer; another 404 comes from something else that listens there.
fn absent<T>(what: &'static str) -> impl FnOnce(ApiError) -> Result<Option<T>, ApiError> {
    move |error| match error {
        ApiError::Refused { status: StatusCode::NOT_FOUND, detail } if detail == format!("no such {what}") => Ok(None),
        error => Err(error),
    }
}

/// The lines, and whether there are more.
async fn timeline(api: &Api, args: &Args) -> Result<(Vec<Value>, bool), ApiError> {
    let mut lines: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let left = args.limit.saturating_sub(u32::try_from(lines.len()).unwrap_or(u32::MAX));
        let page = api.timeline(&args.name, cursor.as_deref(), left.min(PAGE)).await?;
        lines.extend(page.items);
        match page.next_cursor {
            Some(next) if lines.len() < args.limit as usize => cursor = Some(next),
            next => return Ok((lines, next.is_some())),
        }
    }
}

fn show_order(args: &Args, order: &Value, lines: &[Value], more: bool) {
    if args.json {
        output::json(&json!({ "kind": "order", "order": order, "timeline": lines, "more": more }));
        return;
    }
    let text = |member: &str| order[member].as_str().unwrap_or_default().replace('_', " ");
    let review = order["review"]["reason"].as_str().map(|reason| format!(" ({})", reason.replace('_', " ")));
    output::line(output::printable(&format!(
        "Order {}: {}{}, version {}",
        order["id"].as_str().unwrap_or_default(),
        text("status"),
        review.unwrap_or_default(),
        order["version"]
    )));
    output::line(table(lines));
    if more {
        output::line(format_args!("There is more: ask with --limit above {}.", args.limit));
    }
}

fn show_event(args: &Args, event: &Value) {
    if args.json {
        output::json(&json!({ "kind": "event", "event": event }));
        return;
    }
    let text = |member: &str| event[member].as_str().unwrap_or_default();
    let order = event["order_id"].as_str().map_or_else(String::new, |order| format!(", order {order}"));
    output::line(output::printable(&format!(
        "Event {}/{}/{} ({}): {}{order}",
        text("psp"),
        text("account"),
        text("event_id"),
        text("event_type"),
        text("outcome")
    )));
    output::line(table(event["timeline"].as_array().map(Vec::as_slice).unwrap_or_default()));
    let names: Vec<String> = event["waits_under"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|name| format!("{} {}", name["kind"].as_str().unwrap_or_default(), name["value"].as_str().unwrap_or_default()))
        .collect();
    if let Some(deadline) = event["deadline"].as_str() {
        let late = if event["overdue"] == true { "; it waits too long: register the order" } else { "" };
        output::line(output::printable(&format!("It waits under: {}. Deadline {deadline}{late}.", names.join(", "))));
    }
    output::line(match text("body") {
        "kept" => "Its exact bytes are kept.",
        "gone" => "Its exact bytes are gone ([retention] bodies_days); what they said is kept.",
        _ => "It is an answer of the PSP: there are no bytes of a webhook.",
    });
}

fn table(lines: &[Value]) -> impl std::fmt::Display {
    let text = |line: &Value, member: &str| line[member].as_str().unwrap_or_default().to_owned();
    let rows = lines.iter().map(|line| [text(line, "at"), text(line, "kind").replace('_', " "), text(line, "text")]);
    output::table(["when", "what", "in words"], rows)
}

/// What to try next, where nothing was found.
fn advice(args: &Args, key: Option<&EventKey>) -> String {
    let name = &args.name;
    let what = match (args.order, args.event || key.is_some()) {
        (true, _) | (false, false) => "There is no order",
        (false, true) if args.event => "There is no event",
        (false, true) => "There is neither an order nor an event",
    };
    let hint = if name.trim() != name {
        " The name has blanks at its ends: are they meant?".to_owned()
    } else if args.order || key.is_some() {
        " Is it another environment's, or not received yet?".to_owned()
    } else if let Some((psp, event)) = name.split_once('/') {
        format!(" An event is named psp/account/event: {psp}/default/{event}?")
    } else {
        format!(" If it is an event, name it psp/account/event: stripe/default/{name}?")
    };
    format!("{what} {name:?}.{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_by_psp_account_and_its_id() {
        let key = |name| event_key(name).map(|key| key.to_string());
        assert_eq!(key("stripe/default/evt_1").as_deref(), Some("stripe/default/evt_1"));
        assert_eq!(event_key("adyen/shop/a/b/").unwrap().event_id, "a/b/");
        for no_event in ["", "order-1", "stripe/evt_1", "//", "stripe//evt_1", "/default/evt_1", "stripe/default/"] {
            assert_eq!(key(no_event), None, "{no_event}");
        }
    }

    #[test]
    fn only_the_apis_own_word_means_that_there_is_none() {
        let refused = |detail: &str| ApiError::Refused { status: StatusCode::NOT_FOUND, detail: detail.to_owned() };
        assert!(matches!(absent::<()>("order")(refused("no such order")), Ok(None)));
        for other in ["(no detail)", "there is no such route", "no such event"] {
            assert!(absent::<()>("order")(refused(other)).is_err(), "{other}");
        }
    }
}
