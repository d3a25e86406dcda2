//! `paybell audit`: every row of the database against the others, in one snapshot; beside running services, or without.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::config::Config;
use paybell_worker::store::{self, AuditReport, ConnectError, Finding, Scope};
use serde_json::json;

use crate::output::{self, Exit, Failure, Outcome};

use super::config::effective_path;

/// Bodies go by the clock of the worker that drops them, and it may be ahead of this one.
const CLOCKS_APART: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell audit\n  paybell audit --config /etc/paybell.toml --json\n\n\
                  It reads [store] url, beside running services or without; it writes nothing.\n\
                  Exit: 0 the books balance, 1 they do not, 2 the configuration cannot be used, 3 the database did not answer.")]
pub struct Args {
    /// The configuration file; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml if it is there, else the defaults.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The configuration cannot be used, or the database does not answer.
pub async fn run(args: Args) -> Outcome {
    let config = Config::load(effective_path(args.config).as_deref()).map_err(Failure::usage)?;
    let url = &config.store.url;
    let store = store::open_to_read(url).await.map_err(|error| refused(error, url))?;
    let keep = DAY * config.retention.bodies_days;
    let scope = Scope {
        policy: &paybell_worker::policy(&config),
        bodies_kept_since: Some(SystemClock.now().minus(keep).plus(CLOCKS_APART)),
    };
    let bar = bar();
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let report = store.audit(scope, &progress).await;
    bar.finish_and_clear();
    store.close().await;
    let report = report.map_err(Failure::unknown)?;
    if args.json {
        output::json(&as_json(&report));
    } else {
        show(&report);
    }
    Ok(if report.is_balanced() { Exit::Yes } else { Exit::No })
}

fn refused(error: ConnectError, url: &str) -> Failure {
    if error.is_permanent(url) { Failure::usage(error) } else { Failure::unknown(error) }
}

fn bar() -> ProgressBar {
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template("rows {wide_bar} {human_pos}/{human_len} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn as_json(report: &AuditReport) -> serde_json::Value {
    let AuditReport { looked_at, findings, unlisted } = report;
    let looked_at: serde_json::Map<_, _> = looked_at.iter().map(|(table, rows)| ((*table).to_owned(), (*rows).into())).collect();
    json!({ "balanced": report.is_balanced(), "looked_at": looked_at, "findings": findings, "unlisted": unlisted })
}

fn show(report: &AuditReport) {
    let rows = report.looked_at.iter().map(|(table, rows)| [(*table).to_owned(), rows.to_string()]);
    output::line(output::table(["table", "rows"], rows));
    if report.is_balanced() {
        output::line("The books balance: every row agrees with the others.");
        return;
    }
    let findings = report.findings.iter().cloned();
    let rows = findings.map(|Finding { check, key, problem }| [check.to_owned(), key, problem]);
    output::line(output::table(["check", "key", "problem"], rows));
    let found = report.findings.len() as u64 + report.unlisted;
    output::line(format_args!("The books do not balance: {found} differences, {} of them not listed.", report.unlisted));
}
