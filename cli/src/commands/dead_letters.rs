//! `paybell dead-letters`: messages that nobody could apply: list, look, try again, discard.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::door::Door;
use super::reading::{Reading, failure};
use crate::api::{Api, ApiError};
use crate::output::{self, Exit, Failure, Outcome};

/// As many as the API gives at once.
const PAGE: u32 = 500;

#[derive(Debug, clap::Subcommand)]
pub enum LettersCommand {
    /// List those that wait for somebody
    #[command(
        after_help = "Exit: 0 there is none, 1 there are some, 2 wrong usage or configuration (or token), 3 the API could \
                            not be asked."
    )]
    List(ListArgs),
    /// Show one, decided on or not
    #[command(
        after_help = "Exit: 0 it is applied or discarded, 1 it waits, 2 wrong usage, or there is no such letter, 3 the API \
                            could not be asked."
    )]
    Show(ShowArgs),
    /// Try some, or all, again: once what they died of is mended
    #[command(
        after_help = "Examples:\n  paybell dead-letters replay 0f8c2a…\n  paybell dead-letters replay --all --of /psp/stripe/\n\n\
                            Each is applied as if it came from the queue now: what was applied before changes nothing, so it may \
                            be interrupted and repeated. What dies again waits as before, with its new reason.\n\
                            Exit: 0 all of them are applied, 1 some died again, 2 wrong usage, or there is no such letter, 3 the \
                            API could not be asked."
    )]
    Replay(ReplayArgs),
    /// Discard one: it is not to be applied. It stays to be looked up
    #[command(
        after_help = "Exit: 0 discarded, 2 wrong usage, there is no such letter, or somebody has decided on it, 3 the API \
                            could not be asked."
    )]
    Discard(DiscardArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The most that are listed.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    reading: Reading,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Its id, as `list` shows it.
    id: String,
    #[command(flatten)]
    reading: Reading,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "all"])))]
pub struct ReplayArgs {
    /// Their ids, as `list` shows them.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that wait now.
    #[arg(long)]
    all: bool,
    /// With --all: only those whose message's id begins so, such as /psp/stripe/default.
    #[arg(long, value_name = "PREFIX", requires = "all", default_value = "")]
    of: String,
    #[command(flatten)]
    door: Door,
    /// Print JSON: a line for each letter.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct DiscardArgs {
    /// Its id, as `list` shows it.
    id: String,
    /// Why; kept with it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    door: Door,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(command: LettersCommand) -> Outcome {
    match command {
        LettersCommand::List(args) => list(args).await,
        LettersCommand::Show(args) => show(args).await,
        LettersCommand::Replay(args) => replay(args).await,
        LettersCommand::Discard(args) => discard(args).await,
    }
}

async fn list(args: ListArgs) -> Outcome {
    let (api, url) = args.reading.api().map_err(Failure::usage)?;
    let (items, more) = waiting(&api, args.limit).await.map_err(|error| failure(error, &url))?;
    if args.json {
        output::json(&json!({ "items": items, "more": more }));
    } else if items.is_empty() {
        output::line("No dead letter waits.");
    } else {
        output::line(output::table(["id", "message", "attempts", "died", "reason"], items.iter().map(row)));
        if more {
            output::line(format_args!("There are more: ask with --limit above {}.", args.limit));
        }
    }
    Ok(if items.is_empty() { Exit::Yes } else { Exit::No })
}

/// Up to so many, and whether there are more.
async fn waiting(api: &Api, limit: u32) -> Result<(Vec<Value>, bool), ApiError> {
    let mut items: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let left = limit.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX));
        let page = api.dead_letters(cursor.as_deref(), left.min(PAGE)).await?;
        items.extend(page.items);
        match page.next_cursor {
            Some(next) if items.len() < limit as usize => cursor = Some(next),
            next => return Ok((items, next.is_some())),
        }
    }
}

fn text(item: &Value, member: &str) -> String {
    item[member].as_str().map_or_else(|| item[member].to_string(), output::printable)
}

fn row(item: &Value) -> [String; 5] {
    ["id", "message_id", "attempts", "died_at", "reason"].map(|member| text(item, member))
}

async fn show(args: ShowArgs) -> Outcome {
    let (api, url) = args.reading.api().map_err(Failure::usage)?;
    let letter = match api.dead_letter(&args.id).await {
        Err(error @ ApiError::Refused { status: reqwest::StatusCode::NOT_FOUND, .. }) => {
            return Err(Failure::usage(anyhow::Error::new(error)));
        }
        answer => answer.map_err(|error| failure(error, &url))?,
    };
    if args.json {
        output::json(&letter);
    } else {
        for member in ["id", "message_id", "attempts", "died_at", "reason", "body_bytes"] {
            output::line(format_args!("{:<12}{}", member.replace('_', " "), text(&letter, member)));
        }
        let decision = &letter["decision"];
        let decided = match decision["decided"].as_str() {
            None => "nothing: it waits".to_owned(),
            Some(decided) => {
                let reason = text(decision, "reason");
                let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                format!("{decided}, {} by {}{why}", text(decision, "at"), text(decision, "operator"))
            }
        };
        output::line(format_args!("{:<12}{decided}", "decided"));
    }
    Ok(if letter["decision"].is_null() { Exit::No } else { Exit::Yes })
}

async fn replay(args: ReplayArgs) -> Outcome {
    let api = args.door.open().map_err(Failure::usage)?;
    let ids = if args.all {
        let (items, _) = waiting(&api, u32::MAX).await.map_err(of_api)?;
        let of = |item: &&Value| item["message_id"].as_str().is_some_and(|id| id.starts_with(&args.of));
        items.iter().filter(of).map(|item| text(item, "id")).collect()
    } else {
        args.ids
    };
    let target =
        if std::io::stderr().is_terminal() && !args.json { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(ids.len() as u64), target);
    let (mut applied, mut died) = (0_u64, BTreeMap::<String, u64>::new());
    for id in &ids {
        let answer = match api.replay_dead_letter(id).await {
            Ok(answer) => answer,
            // Another one was faster.
            Err(ApiError::Refused { status: reqwest::StatusCode::CONFLICT, .. }) if args.all => continue,
            Err(error) => {
                bar.finish_and_clear();
                return Err(of_api(error));
            }
        };
        if answer["applied"] == true {
            applied += 1;
        } else {
            *died.entry(text(&answer["letter"], "reason")).or_default() += 1;
        }
        if args.json {
            output::json(&answer);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !args.json {
        output::line(format_args!("{applied} of {} are applied.", ids.len()));
        for (reason, count) in &died {
            output::line(format_args!("{count} died again: {reason}"));
        }
    }
    Ok(if died.is_empty() { Exit::Yes } else { Exit::No })
}

async fn discard(args: DiscardArgs) -> Outcome {
    let api = args.door.open().map_err(Failure::usage)?;
    let letter = api.discard_dead_letter(&args.id, &args.reason).await.map_err(of_api)?;
    if args.json {
        output::json(&letter);
    } else {
        output::line(format_args!("{} is discarded.", text(&letter, "message_id")));
    }
    Ok(Exit::Yes)
}

/// What the API refuses, the caller did wrong; else nobody knows.
fn of_api(error: ApiError) -> Failure {
    let is_refused = matches!(&error, ApiError::Refused { status, .. } if !status.is_server_error());
    let error = anyhow::Error::new(error);
    if is_refused { Failure::usage(error) } else { Failure::unknown(error) }
}
