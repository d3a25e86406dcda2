//! `paybell completeness`: how many webhooks were missed, from a running Paybell.

use anyhow::anyhow;
use paybell_shared::clock::Timestamp;
use serde_json::{Value, json};

use crate::output::{self, Exit, Failure, Outcome};

use super::reading::{Reading, failure};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell completeness\n  paybell completeness --since 2026-09-01T00:00:00Z --max-missed 0.5\n\n\
                  Of every payment that was decided (money was captured, or it failed, was canceled or expired): its webhook\n\
                  told it first; or asking the PSP did, and its webhook was late, is missed, or may still come (pending: the\n\
                  PSP still sends it). Due since: payments of which a webhook should have told since the last one came:\n\
                  decided ones, and orders that were registered and that nobody can be asked about, paid or not.\n\
                  Exit: 0 yes, 1 an account misses more than --max-missed, 2 wrong usage or configuration (or token),\n\
                  3 the API could not be asked."
)]
pub struct Args {
    /// Payments that were decided since then, in RFC 3339, at most 92 days ago; default: a week ago.
    #[arg(long, value_name = "T")]
    since: Option<String>,
    /// The most that may be missed at any account, in percent of those of which it is known.
    #[arg(long, value_name = "PERCENT")]
    max_missed: Option<f64>,
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
    if let Some(since) = &args.since
        && Timestamp::parse_rfc3339(since).is_err()
    {
        return Err(Failure::usage(anyhow!("--since {since:?} is not RFC 3339, such as 2026-09-01T00:00:00Z")));
    }
    if let Some(percent) = args.max_missed.filter(|percent| !(0.0..=100.0).contains(percent)) {
        return Err(Failure::usage(anyhow!("--max-missed {percent} is no percentage")));
    }
    let (api, url) = args.reading.api().map_err(Failure::usage)?;
    let report = api.completeness(args.since.as_deref()).await.map_err(|error| failure(error, &url))?;
    let accounts = report["accounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let too_many: Vec<String> = accounts.iter().filter(|line| misses_more(line, args.max_missed)).map(name).collect();
    if args.json {
        output::json(&json!({ "report": report, "misses_too_many": too_many }));
    } else {
        show(&report, accounts);
        for account in &too_many {
            let most = args.max_missed.unwrap_or_default();
            output::line(output::printable(&format!("{account} misses more than {most} % of its webhooks.")));
        }
    }
    Ok(if too_many.is_empty() { Exit::Yes } else { Exit::No })
}

fn misses_more(line: &Value, most_percent: Option<f64>) -> bool {
    most_percent.zip(line["missed_ratio"].as_f64()).is_some_and(|(most, ratio)| ratio * 100.0 > most)
}

fn name(line: &Value) -> String {
    let text = |member: &str| line[member].as_str().unwrap_or_default();
    format!("{}/{}", text("psp"), text("account"))
}

fn show(report: &Value, accounts: &[Value]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    output::line(output::printable(&format!("Payments decided since {}:", text(&report["since"]))));
    output::line(table(accounts));
    for line in accounts.iter().filter(|line| line["late"].as_u64() > Some(0)) {
        output::line(output::printable(&format!("{}: webhooks came {} after asking.", name(line), lateness(line))));
    }
}

fn table(accounts: &[Value]) -> impl std::fmt::Display {
    let header = ["account", "decided", "by webhook", "late", "missed", "pending", "missed %", "last webhook", "due since"];
    let rows = accounts.iter().map(|line| {
        let count = |member: &str| line[member].as_u64().unwrap_or_default().to_string();
        let expected = &line["expected"];
        [
            name(line),
            count("payments"),
            count("by_webhook"),
            count("late"),
            count("missed"),
            count("pending"),
            line["missed_ratio"].as_f64().map_or_else(|| "–".to_owned(), |ratio| format!("{:.2}", ratio * 100.0)),
            line["silence_s"].as_u64().map_or_else(|| "never".to_owned(), |silence_s| format!("{} ago", span(silence_s))),
            format!(
                "{} + {}",
                expected["decided"].as_u64().unwrap_or_default(),
                expected["registered"].as_u64().unwrap_or_default()
            ),
        ]
    });
    output::table(header, rows)
}

/// How many within which time, each class once.
fn lateness(line: &Value) -> String {
    let mut before = 0;
    let classes = line["lateness"].as_array().into_iter().flatten().filter_map(|class| {
        let (payments, within_s) = (class["payments"].as_u64()?, class["within_s"].as_u64());
        let more = payments.saturating_sub(std::mem::replace(&mut before, payments));
        let within = within_s.map_or_else(|| "later".to_owned(), |within_s| format!("within {}", span(within_s)));
        (more > 0).then(|| format!("{more} {within}"))
    });
    classes.collect::<Vec<_>>().join(", ")
}

/// A time in its largest whole unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_told_by_class() {
        let class = |within_s: Option<u32>, payments: u64| json!({ "within_s": within_s, "payments": payments });
        let line = json!({ "lateness": [class(Some(10), 2), class(Some(3_600), 2), class(Some(86_400), 5), class(None, 6)] });
        assert_eq!(lateness(&line), "2 within 10 s, 3 within 24 h, 1 later");
    }

    #[test]
    fn only_what_is_known_can_be_too_much() {
        let line = |ratio: Option<f64>| json!({ "missed_ratio": ratio });
        assert!(misses_more(&line(Some(0.011)), Some(1.0)));
        for (ratio, most) in [(Some(0.01), Some(1.0)), (None, Some(0.0)), (Some(1.0), None)] {
            assert!(!misses_more(&line(ratio), most), "{ratio:?} {most:?}");
        }
    }
}
