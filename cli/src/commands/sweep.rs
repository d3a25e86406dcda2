//! `paybell sweep`: a time of a PSP's list of events or payments read again, by the running worker.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paybell_shared::clock::{Clock as _, SystemClock, Timestamp};
use paybell_shared::psp;
use reqwest::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::door::Door;
use crate::api::{ApiError, SweepPage};
use crate::output::{self, Exit, Failure, Outcome};

/// Pauses before a page that the PSP or the API did not answer is asked for again.
const PAUSES: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15), Duration::from_mins(1)];
/// The longest wait between two pages, whatever the API says: the PSP's patience may end sooner.
const WAIT_MAX: Duration = Duration::from_mins(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell sweep stripe --since 2026-09-01\n  \
                  paybell sweep mollie --account shop2 --since 2026-09-01T00:00:00Z --until 2026-09-02T00:00:00Z --json\n\n\
                  What the list shows is applied as webhooks are: what is known stays as it is, so it may be interrupted and \
                  repeated. The worker sweeps by itself all the time; this is for a time before the account was configured, or \
                  for what was not understood and is now. How far back a list reaches: paybell psps.\n\
                  Exit: 0 all of it was read; 1 some of it was not understood, or contradicts what is known; 2 wrong usage, or a \
                  list that does not show this time; 3 the internal API or the PSP does not answer.")]
pub struct Args {
    /// Whose list: an id of `paybell psps`.
    psp: String,
    /// Which of its accounts.
    #[arg(long, default_value = "default")]
    account: String,
    /// What happened then or later: RFC 3339, or a date in UTC.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Timestamp,
    /// Up to then; default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    door: Door,
    /// Print JSON: a line for each page, and a last one with the totals.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Timestamp, String> {
    let whole = if text.len() == "2026-09-01".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    Timestamp::parse_rfc3339(&whole).map_err(|_| "a time is RFC 3339, such as 2026-09-01T12:00:00Z, or a date".to_owned())
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    if psp::find(&args.psp).is_none() {
        let known: Vec<&str> = psp::ALL.iter().filter(|psp| psp.profile().list.is_some()).map(|psp| psp.id()).collect();
        let error = anyhow!("there is no PSP {:?}; lists have {}", args.psp, known.join(", "));
        return Err(Failure::usage(error));
    }
    let api = args.door.open().map_err(Failure::usage)?;
    let mut sheet = Sheet::new(&args);
    let (mut cursor, mut failures) = (None::<String>, 0);
    loop {
        match api.sweep(&request(&args, cursor.as_deref())).await {
            Ok(page) => {
                failures = 0;
                let wait = page.retry_after_s.map(Duration::from_secs);
                sheet.add(&page);
                match (page.next_cursor, wait) {
                    (None, _) => break,
                    (next, None) => cursor = next,
                    // Nothing was read: the same page again.
                    (next, Some(wait)) => {
                        cursor = next;
                        sheet.wait(wait);
                        sleep(wait.min(WAIT_MAX)).await;
                    }
                }
            }
            Err(error) if may_pass(&error) && failures < PAUSES.len() => {
                sheet.wait(PAUSES[failures]);
                sleep(PAUSES[failures]).await;
                failures += 1;
            }
            Err(error) => return Err(sheet.stopped(error)),
        }
    }
    Ok(sheet.finish())
}

/// Whether the same request may be answered later: the PSP or the database is away, or the process is being replaced.
fn may_pass(error: &ApiError) -> bool {
    match error {
        ApiError::Refused { status, .. } => matches!(*status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE),
        ApiError::Unreachable { .. } => true,
        ApiError::Unintelligible(_) => false,
    }
}

fn request(args: &Args, cursor: Option<&str>) -> Value {
    let mut request = Map::new();
    request.insert("psp".to_owned(), json!(args.psp));
    request.insert("account".to_owned(), json!(args.account));
    request.insert("since".to_owned(), json!(args.since));
    request.extend(args.until.map(|until| ("until".to_owned(), json!(until))));
    request.extend(cursor.map(|cursor| ("cursor".to_owned(), json!(cursor))));
    Value::Object(request)
}

/// What was read so far.
struct Sheet {
    json: bool,
    bar: ProgressBar,
    since: Timestamp,
    /// The beginning of the part that is being read.
    part: Timestamp,
    pages: u64,
    events: u64,
    new: u64,
    known: u64,
    hints: u64,
    quarantined: u64,
}

impl Sheet {
    fn new(args: &Args) -> Self {
        let target = if std::io::stderr().is_terminal() && !args.json {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let until = args.until.unwrap_or_else(|| SystemClock.now());
        // By the time that is read: how many pages there are is not known before the last one.
        let bar = ProgressBar::with_draw_target(Some(until.since(args.since).as_secs()), target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {percent}% of the time, {elapsed}  {msg}") {
            bar.set_style(style);
        }
        let (since, part) = (args.since, args.since);
        Self { json: args.json, bar, since, part, pages: 0, events: 0, new: 0, known: 0, hints: 0, quarantined: 0 }
    }

    fn add(&mut self, page: &SweepPage) {
        self.part = Timestamp::parse_rfc3339(&page.window.since).unwrap_or(self.part);
        if page.retry_after_s.is_some() {
            return;
        }
        let totals = &page.totals;
        self.pages += 1;
        self.events += totals.events;
        self.new += totals.new;
        self.known += totals.known;
        self.hints += totals.hints;
        self.quarantined += totals.quarantined;
        self.bar.set_position(self.part.since(self.since).as_secs());
        self.bar.set_message(format!("{} pages, {} events, {} new", self.pages, self.events, self.new));
        if self.json {
            output::json(&json!({ "window": page.window, "totals": page.totals }));
        }
    }

    fn wait(&self, wait: Duration) {
        self.bar.set_message(format!("{} events, {} new; the PSP is left alone for {} s", self.events, self.new, wait.as_secs()));
    }

    /// What was read before stays read: it is shown, and how to go on.
    fn stopped(&self, error: ApiError) -> Failure {
        self.show();
        let refused = matches!(&error, ApiError::Refused { status, .. } if !status.is_server_error());
        let error = match self.pages {
            0 => anyhow!(error),
            _ => anyhow!(error).context(format!("it stopped half-way; --since {} goes on", self.part)),
        };
        if refused { Failure::usage(error) } else { Failure::unknown(error) }
    }

    fn finish(&self) -> Exit {
        self.show();
        if self.quarantined > 0 { Exit::No } else { Exit::Yes }
    }

    fn show(&self) {
        self.bar.finish_and_clear();
        let Self { pages, events, new, known, hints, quarantined, .. } = self;
        if self.json {
            output::json(&json!({ "totals": {
                "pages": pages, "events": events, "new": new, "known": known, "hints": hints, "quarantined": quarantined,
            } }));
            return;
        }
        output::line(format_args!(
            "{events} events on {pages} pages: {new} new, {known} known, {quarantined} not understood; {hints} payments are asked \
             about."
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_date() {
        let midnight = Timestamp::parse_rfc3339("2026-09-01T00:00:00Z").unwrap();
        for text in ["2026-09-01", "2026-09-01T00:00:00Z", "2026-09-01T02:00:00+02:00"] {
            assert_eq!(time(text), Ok(midnight), "{text}");
        }
        for text in ["", "yesterday", "2026-13-01", "1790000000", "2026-09-01T00:00:00"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
