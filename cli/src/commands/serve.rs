//! `paybell serve`: ingress and worker in one process; on `SQLite`, unless the configuration's URLs say otherwise.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use metrics_exporter_prometheus::PrometheusHandle;
use paybell_shared::clock::{Clock, SystemClock};
use paybell_shared::config::{Config, DEFAULT_ACCOUNT};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::{ops, queue, telemetry};
use rand::RngExt as _;
use tokio::net::TcpListener;

use crate::output::{self, Failure};

use super::DEVELOPMENT_CONFIG;
use super::send::reachable;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell serve\n  paybell serve --config /etc/paybell.toml\n  PAYBELL_QUEUE_URL=amqp://127.0.0.1 paybell serve\n\n\
                  Without any configuration, the first start writes paybell-data/paybell.toml, with random secrets, for development.\n\
                  Exit: 0 stopped by a signal, 1 a part failed, 2 the configuration cannot be used."
)]
pub struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
}

/// Where the parts of a running Paybell listen.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub ingress: SocketAddr,
    pub api: SocketAddr,
    pub ops: SocketAddr,
}

/// Runs until a signal, or until a part fails.
///
/// # Errors
/// It cannot start.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let path = match args.config {
        Some(path) => path,
        None => development_config(Path::new(DEVELOPMENT_CONFIG)).map_err(Failure::usage)?,
    };
    let config = Config::load(Some(&path)).map_err(Failure::usage)?;
    let metrics = telemetry::init().map_err(Failure::usage)?;
    config.warn();
    let shutdown = Shutdown::new();
    let addresses = match start(&config, Arc::new(SystemClock), metrics, &shutdown).await {
        Ok(addresses) => addresses,
        Err(error) => {
            shutdown.finish().await;
            return Err(Failure::usage(error));
        }
    };
    introduce(&config, &path, addresses);
    shutdown.run().await.map_err(Failure::unknown)
}

/// Starts everything in this process.
///
/// # Errors
/// A part cannot start; the error names its setting. What did start ends with `shutdown`.
pub async fn start(
    config: &Config,
    clock: Arc<dyn Clock>,
    metrics: PrometheusHandle,
    shutdown: &Shutdown,
) -> anyhow::Result<Addresses> {
    let ops_setting = || format!("[ingress] ops_listen = {:?} cannot be listened on", config.ingress.ops_listen.to_string());
    let ops_listener = TcpListener::bind(config.ingress.ops_listen).await.with_context(ops_setting)?;
    let ops = ops_listener.local_addr().with_context(ops_setting)?;
    let queue = queue::connect(config.queue_settings("paybell serve")).await?;
    // The worker first: it brings the database to its schema, and a webhook is better refused than left waiting.
    let worker = paybell_worker::start(config, &queue, Arc::clone(&clock), shutdown).await.context("the worker cannot start")?;
    let ingress = paybell_ingress::start(config, &queue, clock, shutdown).await.context("the ingress cannot start")?;
    ops::serve(ops_listener, vec![ingress.check, worker.check], metrics, shutdown);
    Ok(Addresses { ingress: ingress.address, api: worker.api, ops })
}

/// The path of the configuration for development, which is written if it is not there.
fn development_config(path: &Path) -> anyhow::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let cannot = || format!("{} cannot be written; name a configuration by --config", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(cannot)?;
    if path.exists() {
        return Ok(path.to_owned());
    }
    // Written under another name first: a start that is killed leaves no half a configuration.
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).with_context(cannot)?;
    file.write_all(development_text(folder).as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)?;
    // A second start at the same moment must not replace what the first may have read.
    match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).with_context(cannot),
        _ => {}
    }
    std::fs::remove_file(&unfinished).with_context(cannot)?;
    Ok(path.to_owned())
}

fn development_text(folder: &Path) -> String {
    let data = folder.display();
    let token = hex::encode(rand::rng().random::<[u8; 24]>());
    let secret = || format!("whsec_{}", STANDARD.encode(rand::rng().random::<[u8; 32]>()));
    format!(
        r#"# Written by the first `paybell serve` here, for development on this machine: its secrets are random, and stand in
# the file. For production write your own, name secrets as env:NAME or file:PATH, and start with --config.

[ingress]
listen = "127.0.0.1:8080"
ops_listen = "127.0.0.1:9080"

[api]
listen = "127.0.0.1:8081"
token = "{token}"

[queue]
url = "sqlite:{data}/queue.db"

[store]
url = "sqlite:{data}/store.db"

[seen]
url = "memory:"

[[psp]]
id = "stripe"
mode = "test"
secrets = ["{stripe}"]

[[psp]]
id = "standard-webhooks"
mode = "test"
secrets = ["{standard}"]
"#,
        stripe = secret(),
        standard = secret(),
    )
}

fn introduce(config: &Config, path: &Path, addresses: Addresses) {
    let public = config.ingress.public_url.as_deref().map(|url| url.trim_end_matches('/').to_owned());
    let public = public.unwrap_or_else(|| format!("http://{}", reachable(addresses.ingress)));
    output::line(format_args!("Paybell runs, configured by {}.", path.display()));
    output::line(format_args!("  internal API  http://{}/v1/orders", reachable(addresses.api)));
    output::line(format_args!("  operators     http://{}/readyz and /metrics", reachable(addresses.ops)));
    for configured in &config.accounts {
        let account = &configured.account;
        let name = if &*account.name == "default" { String::new() } else { format!("/{}", account.name) };
        output::line(format_args!("  webhooks      {public}/webhooks/{}{name} ({})", account.psp_id, account.mode.as_str()));
    }
    if config.account("stripe", "default").is_some() {
        output::line("Try it:");
        output::line(format_args!("  {}", send_line(path, "stripe", "payment_intent.succeeded", DEFAULT_ACCOUNT)));
    }
}

/// A line to copy that sends a first webhook, with this very program.
pub(super) fn send_line(config: &Path, psp: &str, event: &str, account: &str) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "paybell".to_owned());
    let config = if config == Path::new(DEVELOPMENT_CONFIG) {
        String::new()
    } else {
        format!(" --config {}", shell_word(&config.display().to_string()))
    };
    let account = if account == DEFAULT_ACCOUNT { String::new() } else { format!(" --account {account}") };
    format!("{} send {psp} {} --order try-1 --register{account}{config}", shell_word(&program), shell_word(event))
}

/// A text as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_first_start_writes_what_later_starts_read() {
        let folder = std::env::temp_dir().join(format!("paybell-serve-test-{:016x}", rand::rng().random::<u64>()));
        let path = folder.join("paybell.toml");
        assert_eq!(development_config(&path).unwrap(), path);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        development_config(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "a second start reuses it");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
        let config = Config::parse(&text, "development", std::iter::empty()).unwrap();
        assert!(config.account("stripe", "default").is_some() && config.account("standard-webhooks", "default").is_some());
        assert!(config.ingress.listen.ip().is_loopback());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn two_first_starts_have_different_secrets() {
        let secrets = |text: String| text.lines().filter(|line| line.contains("whsec_")).map(str::to_owned).collect::<Vec<_>>();
        let (one, two) = (secrets(development_text(Path::new("x"))), secrets(development_text(Path::new("x"))));
        assert_eq!(one.len(), 2);
        assert!(one[0] != one[1] && one != two);
    }

    #[test]
    fn odd_paths_stay_one_word() {
        assert_eq!(shell_word("/tmp/a.toml"), "/tmp/a.toml");
        assert_eq!(shell_word("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
