//! `paybell psps`: what each PSP's adapter can do, from the adapters themselves.

use std::fmt::Write as _;
use std::time::Duration;

use paybell_shared::psp::{self, Proof, Psp, Scheme};
use serde_json::json;

use crate::output::{self, Exit, Outcome};
use crate::simulator;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell psps\n  paybell psps --json\n\nExit: 0.")]
pub struct Args {
    /// Print JSON, a line for each PSP.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table of the README.
    #[arg(long)]
    markdown: bool,
}

const HEADER: [&str; 7] =
    ["id", "its webhooks are, by scheme", "acknowledged by", "within", "sent again for", "can be asked for", "networks"];

/// Runs the command.
///
/// # Errors
/// None.
pub fn run(args: &Args) -> Outcome {
    if args.json {
        for psp in psp::ALL {
            output::json(&line(*psp));
        }
    } else if args.markdown {
        output::line(markdown().trim_end());
    } else {
        output::line(output::table(HEADER, psp::ALL.iter().map(|psp| row(*psp, "\n"))));
    }
    Ok(Exit::Yes)
}

fn line(psp: &dyn Psp) -> serde_json::Value {
    let (profile, acknowledgement) = (psp.profile(), psp.acknowledgement());
    let schemes = profile
        .schemes
        .iter()
        .map(|scheme| json!({ "name": scheme.name, "proof": scheme.proof.as_str(), "token_in_path": scheme.token_in_path }));
    json!({
        "id": psp.id(),
        "name": profile.name,
        "schemes": schemes.collect::<Vec<_>>(),
        "acknowledged_by": { "status": acknowledgement.status.as_u16(), "body": acknowledgement.body },
        "timeout_s": profile.timeout.as_secs_f64(),
        "retry_window_s": profile.retry_window.as_secs(),
        "can_be_asked": {
            "payment_status": profile.can.payment_status,
            "event_list": profile.can.event_list,
            "event_list_reaches_s": profile.list.and_then(|list| list.reach).map(|reach| reach.as_secs()),
            "endpoint_list": profile.can.endpoint_list,
        },
        "published_networks": profile.sources,
        "can_be_played": simulator::ALL.iter().any(|dialect| dialect.psp() == psp.id()),
    })
}

/// `between`: what separates several schemes.
fn row(psp: &dyn Psp, between: &str) -> [String; 7] {
    let (profile, acknowledgement) = (psp.profile(), psp.acknowledgement());
    let mut status = acknowledgement.status.as_u16().to_string();
    if !acknowledgement.body.is_empty() {
        // Writing to a String does not fail.
        let _ = write!(status, " {}", acknowledgement.body);
    }
    let can = profile.can;
    let reach = profile.list.and_then(|list| list.reach);
    let events = reach.map_or_else(|| "events".to_owned(), |reach| format!("events of {}", words(reach)));
    let questions = [(can.payment_status, "payments"), (can.event_list, &*events), (can.endpoint_list, "endpoints")];
    let questions: Vec<&str> = questions.into_iter().filter(|(can, _)| *can).map(|(_, question)| question).collect();
    [
        psp.id().to_owned(),
        profile.schemes.iter().map(scheme).collect::<Vec<_>>().join(between),
        status,
        words(profile.timeout),
        words(profile.retry_window),
        if questions.is_empty() { "nothing".to_owned() } else { questions.join(", ") },
        if profile.sources.is_empty() { "none published".to_owned() } else { profile.sources.len().to_string() },
    ]
}

fn scheme(scheme: &Scheme) -> String {
    let proof = match (scheme.proof, scheme.token_in_path) {
        (Proof::Proven, _) => "proven",
        (Proof::Hint, false) => "a hint",
        (Proof::Hint, true) => "a hint; a token in the path",
    };
    format!("{}: {proof}", scheme.name)
}

/// The table as the README has it.
fn markdown() -> String {
    let mut text = format!("| {} |\n|{}\n", HEADER.join(" | "), "---|".repeat(HEADER.len()));
    for psp in psp::ALL {
        let mut cells = row(*psp, "<br>");
        cells[0] = format!("`{}`", cells[0]);
        let _ = writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text
}

/// In the largest unit that divides it: "3 days", "26 h", "10 s"; hours with minutes where no hour does.
fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(24 * 3_600, "days"), (3_600, "h"), (60, "min")];
    match units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit)) {
        Some((unit, "days")) if seconds == unit => "1 day".to_owned(),
        // 75 h 35 min is more readable than 4535 min.
        Some((_, "min")) if seconds > 3_600 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_this_very_table() {
        let readme = include_str!("../../../README.md");
        let table = markdown();
        assert!(readme.contains(&table), "README.md, section PSPs, should have (paybell psps --markdown):\n{table}");
    }

    #[test]
    fn durations_are_in_their_largest_unit() {
        let cases = [
            (3 * 86_400, "3 days"),
            (86_400, "1 day"),
            (26 * 3_600, "26 h"),
            (90, "90 s"),
            (600, "10 min"),
            (4_535 * 60, "75 h 35 min"),
            (10, "10 s"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(words(Duration::from_secs(seconds)), expected);
        }
    }
}
