//! `paybell endpoints check`: the running worker looks now, and this shows what it saw.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paybell_shared::config::{Config, Scope};
use paybell_shared::secret::SecretSource;
use serde_json::{Value, json};

use super::{Target, target};
use crate::api::{Api, ApiError};
use crate::commands::config::effective_path;
use crate::commands::send::reachable;
use crate::output::{self, Exit, Failure, Outcome};
use crate::simulator::http_client;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell endpoints check\n  paybell endpoints check stripe --json\n  paybell endpoints check stripe/shop\n\n\
                  Of each account: what its PSP has registered (URL byte for byte, enabled, events, version, mode), and the way that \
                  leads to us (name, certificate, who answers). A canary is sent where an account `canary` of standard-webhooks is \
                  configured. Nothing is changed.\n\
                  Exit: 0 all is right, 1 something is wrong, 2 wrong usage, 3 something could not be told."
)]
pub struct Args {
    /// One account (`stripe/shop`) or those of one PSP (`stripe`); default: all.
    #[arg(value_name = "PSP[/ACCOUNT]", value_parser = target)]
    target: Option<Target>,
    /// The configuration to take address and token from; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// Where the internal API is; default: what the configuration says.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// The internal API's token: `env:NAME`, `file:PATH`, or the token itself; default: the configuration's.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// Print JSON: a line for each account.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    let api = api(&args).map_err(Failure::usage)?;
    let all = api.endpoints().await.map_err(refused)?;
    let all: Vec<(&str, &str)> = all.iter().filter_map(|item| Some((item["psp"].as_str()?, item["account"].as_str()?))).collect();
    let is_meant = |(psp, account): &&(&str, &str)| args.target.as_ref().is_none_or(|target| target.means(psp, account));
    let meant: Vec<_> = all.iter().filter(is_meant).collect();
    if meant.is_empty() {
        let known: Vec<String> = all.iter().map(|(psp, account)| format!("{psp}/{account}")).collect();
        let which = args.target.map(|target| format!("{target}: ")).unwrap_or_default();
        return Err(Failure::usage(anyhow!("{which}no such account is configured; there are: {}", known.join(", "))));
    }
    let bar = bar(meant.len() as u64, args.json);
    let mut looked = Vec::with_capacity(meant.len());
    for (psp, account) in &meant {
        bar.set_message(format!("{psp}/{account}"));
        looked.push(api.check_endpoint(psp, account).await.map_err(refused)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let verdict = looked.iter().map(verdict).max_by_key(|verdict| *verdict as u8).unwrap_or(Verdict::Right);
    if args.json {
        for mut item in looked {
            item["verdict"] = json!(self::verdict(&item).as_str());
            output::json(&item);
        }
    } else {
        let rows = looked.iter().flat_map(rows);
        output::line(output::table(["account", "", "what", "what to do"], rows));
        let flies = all.iter().any(|(psp, account)| (*psp, *account) == ("standard-webhooks", "canary"));
        if !flies {
            output::line(NO_CANARY);
        }
    }
    Ok(match verdict {
        Verdict::Right => Exit::Yes,
        Verdict::Wrong => Exit::No,
        Verdict::Unknown => Exit::Unknown,
    })
}

const NO_CANARY: &str = "No canary flies: whether a webhook comes through queue and worker is not tried. To have one, add\n\
                         [[psp]]\nid = \"standard-webhooks\"\naccount = \"canary\"\nmode = \"live\"\nsecrets = [\"env:CANARY_SECRET\"]   \
                         # whsec_ and base64 of 32 random bytes";

fn api(args: &Args) -> anyhow::Result<Api> {
    let config = effective_path(args.config.clone()).map(|path| Config::load(Some(&path))).transpose()?;
    let url = match (&args.api, &config) {
        (Some(url), _) => url.clone(),
        (None, Some(config)) => format!("http://{}", reachable(config.api.listen)),
        (None, None) => bail!("where is the internal API? name --config or --api"),
    };
    let operators = |config: &Config| config.api.tokens.iter().find(|token| token.scopes.contains(&Scope::Operate)).cloned();
    let token = match (&args.token, config.as_ref().and_then(operators)) {
        (Some(text), _) => SecretSource::parse(text).read("--token")?,
        (None, Some(token)) => token.secret,
        (None, None) => bail!("the internal API needs a token with the scope `operate`: name --config or --token"),
    };
    let http = http_client().context("no HTTP client can be made")?;
    Ok(Api::new(http, &url, token.expose()))
}

fn refused(error: ApiError) -> Failure {
    let is_of_us = matches!(&error, ApiError::Refused { status, .. } if !status.is_server_error());
    if is_of_us { Failure::usage(error) } else { Failure::unknown(error) }
}

fn bar(accounts: u64, json: bool) -> ProgressBar {
    let is_seen = std::io::stderr().is_terminal() && !json;
    let target = if is_seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(accounts), target);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} accounts, {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Of one account; the greater is what counts among several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Unknown,
    Wrong,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Unknown => "unknown",
            Self::Wrong => "wrong",
        }
    }
}

fn verdict(item: &Value) -> Verdict {
    let some = |name: &str| item["report"][name].as_array().is_some_and(|list| !list.is_empty());
    match (some("findings"), some("doubts")) {
        (true, _) => Verdict::Wrong,
        (false, true) => Verdict::Unknown,
        (false, false) => Verdict::Right,
    }
}

fn rows(item: &Value) -> Vec<[String; 4]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |name: &str| item["report"][name].as_array().cloned().unwrap_or_default();
    let mut name = format!("{}/{}", text(&item["psp"]), text(&item["account"]));
    let mut rows = Vec::new();
    for finding in list("findings") {
        let kind = if finding["severity"] == "warning" { "warning" } else { "wrong" };
        rows.push([String::new(), kind.to_owned(), text(&finding["says"]), text(&finding["remedy"])]);
    }
    for doubt in list("doubts") {
        rows.push([String::new(), "not known".to_owned(), text(&doubt["says"]), String::new()]);
    }
    if rows.is_empty() {
        rows.push([String::new(), "right".to_owned(), text(&item["report"]["url"]), String::new()]);
    }
    rows.extend(list("notes").iter().map(|note| [String::new(), "note".to_owned(), text(note), String::new()]));
    if let Some(round_trip) = item["report"]["canary"]["round_trip_ms"].as_u64()
        && item["report"]["canary"]["lost_since"].is_null()
    {
        let says = format!("a canary came through in {round_trip} ms");
        rows.push([String::new(), "right".to_owned(), says, String::new()]);
    }
    if let Some(ends) = item["report"]["certificate_ends_at"].as_str() {
        rows.push([String::new(), "note".to_owned(), format!("the certificate ends on {ends}"), String::new()]);
    }
    rows[0][0] = std::mem::take(&mut name);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_counts_more_than_what_is_not_known() {
        let item = |findings: usize, doubts: usize| {
            let many = |count| (0..count).map(|_| json!({ "says": "it", "severity": "error" })).collect::<Vec<_>>();
            json!({ "psp": "p", "account": "a", "report": { "url": "u", "findings": many(findings), "doubts": many(doubts) } })
        };
        for (findings, doubts, expected) in
            [(0, 0, Verdict::Right), (0, 1, Verdict::Unknown), (1, 0, Verdict::Wrong), (1, 1, Verdict::Wrong)]
        {
            assert_eq!(verdict(&item(findings, doubts)), expected);
            assert_eq!(rows(&item(findings, doubts)).len(), (findings + doubts).max(1));
        }
        assert_eq!(rows(&item(0, 0))[0][..2], ["p/a".to_owned(), "right".to_owned()]);
    }
}
