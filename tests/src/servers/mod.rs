//! Real servers for tests: RabbitMQ, PostgreSQL and Redis, private to the tests, on free ports, with their data in a
//! temporary folder.
//!
//! [`rabbitmq`], [`postgres`] and [`redis`] are started once per test process (or, under `tests/run`, once per run) and
//! shared: every test takes a virtual host, a database, a key prefix of its own. A test that breaks its server takes
//! one for itself by `start_private`. Whatever happens to a test or its process, its servers end with it
//! ([`guardian`]).
//!
//! `PAYBELL_TEST_AMQP_URL`, `PAYBELL_TEST_POSTGRES_URL` and `PAYBELL_TEST_REDIS_URL` name servers that already run, to
//! be shared in place of private ones; tests leave what they made there. A server that is neither named nor installed
//! fails the test: nothing here skips.

pub mod guardian;
mod port;
mod postgres;
pub mod process;
mod rabbitmq;
mod redis;

use std::fmt::Display;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use guardian::Guarded;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

pub use port::free_port;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;

/// The environment's name for a RabbitMQ that already runs: `amqp://user:password@host:port`. Its management API is
/// taken to be `http://host:15672`, or what [`AMQP_MANAGEMENT_URL`] says.
pub const AMQP_URL: &str = "PAYBELL_TEST_AMQP_URL";
/// Goes with [`AMQP_URL`]: `http://host:port`.
pub const AMQP_MANAGEMENT_URL: &str = "PAYBELL_TEST_AMQP_MANAGEMENT_URL";
/// The environment's name for a PostgreSQL that already runs, by a role that may create databases.
pub const POSTGRES_URL: &str = "PAYBELL_TEST_POSTGRES_URL";
/// The environment's name for a Redis that already runs.
pub const REDIS_URL: &str = "PAYBELL_TEST_REDIS_URL";

/// For a server's start. RabbitMQ takes 9 s on two idle cores; compilers run beside it.
const START_LIMIT: Duration = Duration::from_mins(2);
/// For one answer of a server that starts.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Between two questions to a server that starts.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The RabbitMQ that tests share.
///
/// # Panics
/// When there is none and none can be started; the message says what to install.
pub async fn rabbitmq() -> &'static RabbitMq {
    static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
    shared(&SHARED, RabbitMq::shared()).await
}

/// The PostgreSQL that tests share.
///
/// # Panics
/// As [`rabbitmq`].
pub async fn postgres() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    shared(&SHARED, Postgres::shared()).await
}

/// The Redis that tests share.
///
/// # Panics
/// As [`rabbitmq`].
pub async fn redis() -> &'static Redis {
    static SHARED: OnceCell<Redis> = OnceCell::const_new();
    shared(&SHARED, Redis::shared()).await
}

async fn shared<T>(cell: &'static OnceCell<T>, start: impl Future<Output = Result<T>>) -> &'static T {
    match cell.get_or_try_init(|| start).await {
        Ok(server) => server,
        Err(error) => panic!("{error:#}"),
    }
}

/// A name that no other test has, in this run or another: lower-case letters and digits.
#[must_use]
pub fn unique_name() -> String {
    format!("t{:016x}", rand::random::<u64>())
}

/// An HTTP client for tests, with a limit on every wait.
///
/// # Panics
/// When the system has no certificates.
#[must_use]
pub fn http_client() -> reqwest::Client {
    // Fails only where another test of the process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match reqwest::Client::builder().timeout(ANSWER_LIMIT).no_proxy().build() {
        Ok(client) => client,
        Err(error) => panic!("no HTTP client: {error}"),
    }
}

fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A folder of its own under the system's temporary one; whoever makes it removes it, or has a guardian do so.
///
/// # Errors
/// It cannot be made.
pub fn temporary_folder(what: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("paybell-{what}-{}", unique_name()));
    std::fs::create_dir(&folder).map_err(|error| anyhow!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// The program in the first of `folders` that has it, else in `PATH`.
fn find_program(name: &str, folders: &[PathBuf], package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = folders.iter().cloned().chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    found.into_iter().find(|program| program.is_file()).ok_or_else(|| {
        anyhow!(
            "{name} is neither in PATH nor where Debian puts it: run tests/run, which installs it, or \
             apt-get install {package}, or name a server that runs by its PAYBELL_TEST_…_URL"
        )
    })
}

fn runs_as_root() -> bool {
    // The owner of a process's folder is the user that it runs as.
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Waits until `question` has a good answer; ends early if the process does.
async fn until_ready<F: Future<Output = Result<()>>>(name: &str, process: &Guarded, question: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let last: &dyn Display = match timeout(ANSWER_LIMIT, question()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => &format!("{error:#}"),
            Err(_) => &"no answer",
        };
        if !process.is_running() {
            bail!("{name} ended instead of starting; the end of its log:\n{}", process.log_tail());
        }
        if Instant::now() >= deadline {
            bail!("{name} is not ready after {START_LIMIT:?} ({last}); the end of its log:\n{}", process.log_tail());
        }
        sleep(ASK_EVERY).await;
    }
}

/// What breaks a server of a test's own. A server that tests share refuses: the others would fail for it.
#[derive(Debug)]
struct Owner {
    name: &'static str,
    /// None: somebody else's server, by its URL.
    process: Option<Guarded>,
    private: bool,
}

impl Owner {
    fn breakable(&self) -> &Guarded {
        match &self.process {
            Some(process) if self.private => process,
            _ => panic!("this {} is shared with other tests: take one by start_private() to break it", self.name),
        }
    }

    fn kill9(&self) {
        said(self.breakable().kill9());
    }

    fn stop(&self) {
        said(self.breakable().stop());
    }

    fn cont(&self) {
        said(self.breakable().cont());
    }
}

fn said<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
