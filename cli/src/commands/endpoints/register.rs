//! `paybell endpoints register`: makes or mends an endpoint at its PSP.
//!
//! This process asks the PSP itself, by the worker's code and within the manners that all workers share in the database, and
//! not the internal API: a new endpoint's signing secret comes in the PSP's answer, and so it goes from there into a file of
//! whoever gave the command, over no other connection and through no other process.

use std::fs::File;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use paybell_shared::clock::SystemClock;
use paybell_shared::config::{Config, DEFAULT_ACCOUNT};
use paybell_shared::psp::{Account, AskError, Endpoint, WantedEndpoint};
use paybell_shared::secret::Secret;
use paybell_worker::consume::Context;
use paybell_worker::endpoints::compare::{Ours, compare};
use paybell_worker::endpoints::finding::Finding;
use paybell_worker::endpoints::plan::{Plan, Step, Update, plan};
use paybell_worker::endpoints::{Inspector, UnlistedError, ours};
use paybell_worker::ids::Ids;
use paybell_worker::order::AccountKey;
use paybell_worker::store::{self, Store};
use paybell_worker::transport::HttpTransport;
use paybell_worker::{policy, seen};
use serde_json::json;

use super::{Target, target};
use crate::commands::config::effective_path;
use crate::output::{self, Exit, Failure, Outcome};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell endpoints register stripe --secret-file /run/secrets/stripe\n  paybell endpoints register square/shop --yes\n  \
                  paybell endpoints register stripe --endpoint we_1NY   # this one is ours, whatever its URL\n\n\
                  It shows the difference, and asks. What is already right is left alone: repeating it changes nothing. Nothing is \
                  ever removed, and no endpoint is touched that is not ours: by our URL, another spelling of it, webhook_id, or \
                  --endpoint.\nA PSP tells a new endpoint's signing secret once: it goes into --secret-file (which must not be there \
                  yet; mode 0600), and nowhere else.\n\
                  Exit: 0 it is as it must be, 1 it is not (nobody said yes, or something is left to do by hand), 2 wrong usage, \
                  3 it could not be told or done."
)]
pub struct Args {
    /// The account: `stripe/shop`; `stripe` means its account `default`, or its only one.
    #[arg(value_name = "PSP[/ACCOUNT]", value_parser = target)]
    target: Target,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Where a new endpoint's signing secret goes: a file that is not there yet.
    #[arg(long, value_name = "PATH")]
    secret_file: Option<PathBuf>,
    /// The id, at the PSP, of an endpoint that is ours: it is changed in place of making one.
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// The configuration, of which it takes account, API key and database; default: `PAYBELL_CONFIG`, else
    /// paybell-data/paybell.toml.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is missing, or who does not answer.
pub async fn run(args: Args) -> Outcome {
    let config = Config::load(effective_path(args.config.clone()).as_deref()).map_err(Failure::usage)?;
    let account = account(&config, &args.target).map_err(Failure::usage)?;
    let (psp, by_hand) = (account.psp, account.psp.endpoint_by_hand());
    let Some(url) = account.keys.url.clone() else {
        return Err(Failure::usage(anyhow!(
            "where PSPs call us is not configured: set [ingress] public_url, or url of this account"
        )));
    };
    let Some(wanted) = psp.wanted_endpoint(&account) else {
        let name = psp.profile().name;
        output::line(format_args!(
            "No API of {name} registers this account's webhooks. By hand, register\n  {url}\nin: {by_hand}"
        ));
        return Ok(Exit::No);
    };
    if psp.api_key(&account).is_none() {
        return Err(Failure::usage(anyhow!("api_key of this account is missing. By hand, register\n  {url}\nin: {by_hand}")));
    }
    let store = open(&config.store.url).await?;
    let outcome = register(&args, &config, &account, &url, wanted, &store).await;
    store.close().await;
    outcome
}

fn account(config: &Config, target: &Target) -> anyhow::Result<Arc<Account>> {
    let of_psp: Vec<&Arc<Account>> =
        config.accounts.iter().map(|configured| &configured.account).filter(|account| *account.psp_id == *target.psp).collect();
    let name = target.account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
    let named = of_psp.iter().find(|account| &*account.name == name);
    let only = of_psp.first().filter(|_| of_psp.len() == 1 && target.account.is_none());
    let known: Vec<String> =
        config.accounts.iter().map(|configured| format!("{}/{}", configured.account.psp_id, configured.account.name)).collect();
    let found = named.or(only).with_context(|| format!("{target} is not configured; there are: {}", known.join(", ")))?;
    Ok(Arc::clone(found))
}

/// The database as it is: a command brings no schema up to date while workers run on it.
async fn open(url: &str) -> Result<Arc<dyn Store>, Failure> {
    let refused =
        |error: store::ConnectError| if error.is_permanent(url) { Failure::usage(error) } else { Failure::unknown(error) };
    // Refuses a database that is not there, or of another version, before the other way to open one would mend that.
    store::open_to_read(url).await.map_err(refused)?.close().await;
    store::connect(url).await.map_err(refused)
}

async fn inspector(config: &Config, store: &Arc<dyn Store>) -> anyhow::Result<Inspector> {
    let keyed = |account: &Arc<Account>| {
        let key = AccountKey { psp: Arc::clone(&account.psp_id), account: Arc::clone(&account.name) };
        (key, Arc::clone(account))
    };
    let context = Context {
        epoch: store.epoch().await?,
        store: Arc::clone(store),
        seen: seen::connect("memory:")?,
        accounts: config.accounts.iter().map(|configured| keyed(&configured.account)).collect(),
        clock: Arc::new(SystemClock),
        ids: Ids::random(),
        policy: policy(config),
    };
    Ok(Inspector::new(Arc::new(context), Arc::new(HttpTransport::new()?)))
}

async fn register(
    args: &Args,
    config: &Config,
    account: &Account,
    url: &str,
    wanted: WantedEndpoint,
    store: &Arc<dyn Store>,
) -> Outcome {
    let inspector = inspector(config, store).await.map_err(Failure::unknown)?;
    let key = AccountKey { psp: Arc::clone(&account.psp_id), account: Arc::clone(&account.name) };
    let (name, others) = (format!("{}/{}", key.psp, key.account), inspector.other_urls(&key));
    let ours = ours(&name, account, url, wanted, args.endpoint.as_deref(), &others);
    let listed = inspector.list(&key, account).await.map_err(unlisted)?;
    if let Some(id) = args.endpoint.as_ref().filter(|id| !listed.iter().any(|endpoint| endpoint.id == **id)) {
        return Err(Failure::usage(anyhow!("--endpoint {id}: the PSP lists no such endpoint")));
    }
    let plan = plan(&listed, &ours);
    let steps = plan.steps(&ours, account).map_err(|error| match error {
        AskError::Unsupported => Failure::usage(anyhow!("the PSP's API does not do this; by hand: {}", ours.by_hand)),
        error => Failure::usage(error),
    })?;
    let mut sheet = Sheet { json: args.json, ours: &ours, made: None, secret_file: None, by_hand: Vec::new() };
    sheet.show(&plan, &listed);
    if plan == Plan::Nothing {
        return Ok(sheet.finish("nothing", &compare(&listed, &ours)));
    }
    let sends = steps.iter().any(|step| matches!(step, Step::Send(_)));
    let tells_secret = plan == Plan::Create && wanted.tells_secret;
    if tells_secret && args.secret_file.is_none() {
        return Err(Failure::usage(anyhow!("--secret-file is needed: the PSP makes up the signing secret and tells it once")));
    }
    if sends && !args.yes && !is_agreed(args.json).map_err(Failure::unknown)? {
        return Ok(sheet.finish("not_agreed", &compare(&listed, &ours)));
    }
    // Before anything is made: a secret that cannot be kept is lost.
    let file =
        args.secret_file.as_deref().filter(|_| tells_secret).map(SecretFile::create).transpose().map_err(Failure::usage)?;
    let mut secret = None;
    for step in steps {
        match step {
            Step::ByHand(what) => sheet.by_hand.push(what),
            Step::Send(request) => {
                let changed = inspector.change(&key, account, *request).await.map_err(|error| not_changed(error, &plan))?;
                if plan == Plan::Create {
                    sheet.made = Some(changed.id);
                    secret = changed.secret;
                }
            }
        }
    }
    if let Some(file) = file {
        sheet.secret_file = keep(file, secret.as_ref(), sheet.made.as_deref().unwrap_or_default()).map_err(Failure::unknown)?;
    }
    let listed = inspector.list(&key, account).await.map_err(unlisted)?;
    Ok(sheet.finish("changed", &compare(&listed, &ours)))
}

fn unlisted(error: UnlistedError) -> Failure {
    Failure::unknown(anyhow!(error).context("what is registered is not known"))
}

fn not_changed(error: UnlistedError, plan: &Plan) -> Failure {
    // Without an answer it may be there, with a secret that nobody has.
    let left = match (&error, plan) {
        (UnlistedError::Asking(_), Plan::Create) => {
            "the PSP did not say that it made the endpoint; if it did, its dashboard shows the secret, and the same command goes on"
        }
        _ => "the PSP did not say that it changed the endpoint; the same command tries again",
    };
    Failure::unknown(anyhow!(error).context(left))
}

/// Asks, if somebody is there to answer.
fn is_agreed(json: bool) -> std::io::Result<bool> {
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Change this at the PSP? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A file of nobody else's, empty until the secret is there; without one it goes away.
struct SecretFile {
    path: PathBuf,
    file: Option<File>,
}

impl SecretFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("--secret-file {} cannot be made; it must not be there yet", path.display()))?;
        Ok(Self { path, file: Some(file) })
    }

    fn write(mut self, secret: &Secret) -> std::io::Result<PathBuf> {
        if let Some(mut file) = self.file.take() {
            file.write_all(secret.expose().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
        }
        Ok(self.path.clone())
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn keep(file: SecretFile, secret: Option<&Secret>, id: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(secret) = secret else {
        eprintln!("warning: the PSP made {id} and did not tell its secret: its dashboard shows it");
        return Ok(None);
    };
    let kept = file.write(secret).with_context(|| {
        format!("the PSP made {id}, and its secret could not be written: take it from the PSP's dashboard, or remove {id} there")
    });
    kept.map(Some)
}

/// What is said, to a person or a program.
struct Sheet<'a> {
    json: bool,
    ours: &'a Ours<'a>,
    /// The id of a new endpoint.
    made: Option<String>,
    secret_file: Option<PathBuf>,
    by_hand: Vec<&'static str>,
}

impl Sheet<'_> {
    /// The difference, before anything is done.
    fn show(&self, plan: &Plan, listed: &[Endpoint]) {
        let rows: Vec<[String; 3]> = match plan {
            Plan::Nothing => return,
            Plan::Create => vec![
                ["endpoint".to_owned(), format!("none of {} is ours", listed.len()), "a new one".to_owned()],
                ["URL".to_owned(), "–".to_owned(), self.ours.url.to_owned()],
                ["events".to_owned(), "–".to_owned(), self.ours.wanted.events.join(", ")],
                ["version".to_owned(), "–".to_owned(), self.ours.wanted.api_version.unwrap_or("(the PSP's)").to_owned()],
            ],
            Plan::Update(Update { endpoint, url, events, enable }) => {
                let url = url.as_ref().map(|url| ["URL".to_owned(), endpoint.url.clone(), url.clone()]);
                let added = |events: &Vec<String>| {
                    let added = events.iter().filter(|event| !endpoint.events.contains(event));
                    format!("as well: {}", added.cloned().collect::<Vec<_>>().join(", "))
                };
                let events = events.as_ref().map(|events| ["events".to_owned(), endpoint.events.join(", "), added(events)]);
                let enable = enable.then(|| ["enabled".to_owned(), "no".to_owned(), "yes".to_owned()]);
                let endpoint = ["endpoint".to_owned(), endpoint.id.clone(), String::new()];
                [Some(endpoint), url, events, enable].into_iter().flatten().collect()
            }
        };
        if self.json {
            let rows = rows.into_iter().map(|[what, is, wanted]| json!({ "what": what, "is": is, "wanted": wanted }));
            output::json(&json!({ "account": self.ours.name, "difference": rows.collect::<Vec<_>>() }));
        } else {
            output::line(output::table([self.ours.name, "is", "must be"], rows));
        }
    }

    /// What was done, what is to be configured, and what is left to do.
    fn finish(self, outcome: &'static str, left: &[Finding]) -> Exit {
        let exit = if left.is_empty() && self.by_hand.is_empty() && outcome != "not_agreed" { Exit::Yes } else { Exit::No };
        let secrets = self.secret_file.as_ref().map(|path| format!("secrets = [\"file:{}\"]", path.display()));
        if self.json {
            output::json(&json!({
                "account": self.ours.name, "outcome": outcome, "endpoint": self.made, "secret_file": self.secret_file,
                "configure": secrets, "by_hand": self.by_hand, "findings": left,
            }));
            return exit;
        }
        output::line(match outcome {
            "nothing" => "Nothing is to be changed.",
            "not_agreed" => "Nothing was changed: nobody said yes (--yes).",
            _ => "It is changed.",
        });
        if let Some(id) = &self.made {
            output::line(format_args!("The PSP made the endpoint {id}."));
        }
        if let Some(setting) = secrets {
            output::line(format_args!(
                "Its signing secret is in that file alone. Configure it, beside the secrets that are there, and start ingress and \
                 worker anew:\n  # {}\n  {setting}",
                self.ours.name
            ));
        }
        for what in &self.by_hand {
            output::line(format_args!("By hand, since the PSP's API does not change it: {what}, in: {}", self.ours.by_hand));
        }
        if !left.is_empty() {
            let rows =
                left.iter().map(|finding| [finding.finding.as_str().to_owned(), finding.says.clone(), finding.remedy.clone()]);
            output::line(output::table(["left", "what", "what to do"], rows));
        }
        exit
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_secret_goes_into_a_new_file_of_its_owner_or_nothing_is_left() {
        let folder = std::env::temp_dir().join(format!("paybell-secret-file-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("secret");
        drop(SecretFile::create(&path).unwrap());
        assert!(!path.exists(), "one that was not needed");
        let written = SecretFile::create(&path).unwrap().write(&Secret::new("it", "whsec_hush")).unwrap();
        let metadata = written.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, std::fs::read_to_string(&written).unwrap().as_str()), (0o600, "whsec_hush\n"));
        let refused = SecretFile::create(&path).err().unwrap();
        assert!(format!("{refused:#}").contains("must not be there yet"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whsec_hush\n", "it is not touched");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
