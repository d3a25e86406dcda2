//! Our own services as processes of their own: started, killed, frozen, and asked to stop, as their operators would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::time::{Instant, sleep};

use super::guardian::Guarded;
use super::{ASK_EVERY, free_port, http_client, said, shown, temporary_folder, until_ready};

/// For a process that was asked to end: above the 45 s after which it gives up waiting for what is in flight.
const END_LIMIT: Duration = Duration::from_mins(1);

/// A service of ours with a configuration, ports and a folder of its own. Dropped: killed, its folder removed, and the
/// end of its log shown if the test has failed.
#[derive(Debug)]
pub struct Service {
    name: String,
    webhooks: u16,
    api: u16,
    ops: u16,
    process: Guarded,
}

impl Service {
    /// Starts `paybell-ingress` and waits until it is ready. `configuration` is the TOML file's text, without addresses
    /// to listen on.
    ///
    /// # Panics
    /// When it is not built, or does not become ready.
    pub async fn ingress(configuration: &str) -> Self {
        Self::start("paybell-ingress", &[], configuration, &[]).await
    }

    /// Starts `paybell-worker` and waits until it is ready.
    ///
    /// # Panics
    /// As [`Service::ingress`].
    pub async fn worker(configuration: &str) -> Self {
        Self::start("paybell-worker", &[], configuration, &[]).await
    }

    /// Starts `paybell serve` and waits until it is ready.
    ///
    /// # Panics
    /// As [`Service::ingress`].
    pub async fn serve(configuration: &str) -> Self {
        Self::start("paybell", &["serve"], configuration, &[]).await
    }

    /// Starts a binary of ours with these arguments and variables, and waits until it is ready.
    ///
    /// # Panics
    /// As [`Service::ingress`].
    pub async fn start(binary: &str, arguments: &[&str], configuration: &str, environment: &[(&str, &str)]) -> Self {
        let service = Self::start_unready(binary, arguments, configuration, environment);
        service.ready().await;
        service
    }

    /// Starts a binary of ours and does not wait: for one that should not become ready, or not start at all.
    ///
    /// # Panics
    /// When it is not built.
    #[must_use]
    pub fn start_unready(binary: &str, arguments: &[&str], configuration: &str, environment: &[(&str, &str)]) -> Self {
        said(Self::launch(binary, arguments, configuration, environment))
    }

    fn launch(binary: &str, arguments: &[&str], configuration: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let program = built(binary)?;
        let folder = temporary_folder(binary)?;
        let file = folder.join("paybell.toml");
        std::fs::write(&file, configuration)?;
        let (webhooks, api, ops) = (free_port(), free_port(), free_port());
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(arguments);
        // What is set around the tests says nothing about the service under test.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PAYBELL_")) {
                command.env_remove(name);
            }
        }
        command.env("PAYBELL_CONFIG", shown(&file));
        command.env("PAYBELL_INGRESS_LISTEN", local(webhooks)).env("PAYBELL_API_LISTEN", local(api));
        // A process listens on one of the two: `serve` on the ingress's.
        command.env("PAYBELL_INGRESS_OPS_LISTEN", local(ops)).env("PAYBELL_WORKER_OPS_LISTEN", local(ops));
        command.envs(environment.iter().copied());
        let process = Guarded::new(folder, &command)?;
        process.start()?;
        Ok(Self { name: binary.to_owned(), webhooks, api, ops, process })
    }

    /// Where webhooks go: `http://127.0.0.1:port`.
    #[must_use]
    pub fn webhooks_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.webhooks)
    }

    /// The internal API: `http://127.0.0.1:port`.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api)
    }

    /// `/livez`, `/readyz`, `/metrics`: `http://127.0.0.1:port`.
    #[must_use]
    pub fn ops_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ops)
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// When the process ends, or is not ready in two minutes.
    pub async fn ready(&self) {
        let url = format!("{}/readyz", self.ops_url());
        let client = http_client();
        let question = || async {
            let answer = client.get(&url).send().await?;
            ensure!(answer.status().is_success(), "/readyz: {} {}", answer.status(), answer.text().await?);
            Ok(())
        };
        said(until_ready(&self.name, &self.process, question).await);
    }

    /// Kills it by SIGKILL.
    ///
    /// # Panics
    /// When its guardian was killed.
    pub fn kill9(&self) {
        said(self.process.kill9());
    }

    /// Sends SIGTERM; [`Service::exit_status`] waits for the end.
    ///
    /// # Panics
    /// When its guardian was killed.
    pub fn terminate(&self) {
        said(self.process.terminate());
    }

    /// Freezes it.
    ///
    /// # Panics
    /// When its guardian was killed.
    pub fn stop_process(&self) {
        said(self.process.stop());
    }

    /// Thaws it.
    ///
    /// # Panics
    /// When its guardian was killed.
    pub fn continue_process(&self) {
        said(self.process.cont());
    }

    /// Starts it after its end, on the same ports, in the same folder.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_again(&self) {
        said(self.process.start());
        self.ready().await;
    }

    /// Waits for its end: its exit status, or 128 and the signal's number if a signal ended it.
    ///
    /// # Panics
    /// When it has not ended after a minute.
    pub async fn exit_status(&self) -> i32 {
        let deadline = Instant::now() + END_LIMIT;
        while self.process.is_running() {
            assert!(Instant::now() < deadline, "{} has not ended after {END_LIMIT:?}:\n{}", self.name, self.process.log_tail());
            sleep(ASK_EVERY).await;
        }
        said(self.process.exit_status())
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// The most memory that it ever held, in bytes: the kernel's word.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn memory_peak(&self) -> u64 {
        said(self.read_memory_peak())
    }

    fn read_memory_peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel says no VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// All that it has logged, over its restarts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.folder().join("log")).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}:\n{}---", self.name, self.process.log_tail());
        }
    }
}

/// A binary of ours: beside the test's executable, or one folder up (tests lie in `target/<profile>/deps`). One that is
/// older than its sources is refused: the test would tell of a program that is no more.
///
/// # Errors
/// It is not built, or older than its sources.
pub fn built(name: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe().context("the test's own executable is unknown")?;
    let mut candidates = executable.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let program = candidates
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow!("{name} is not built: run tests/run, or cargo build --workspace --bins first"))?;
    let built = program.metadata()?.modified()?;
    for source in sources(&program) {
        let changed = source.metadata().and_then(|metadata| metadata.modified());
        ensure!(
            changed.is_ok_and(|changed| changed <= built),
            "{name} was built before {} changed: run tests/run, or cargo build --workspace --bins first",
            source.display()
        );
    }
    Ok(program)
}

/// The workspace's files that went into a program, which cargo lists beside it: `program: source source…`, where a blank
/// in a path has a backslash before it.
fn sources(program: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let Some((_, listed)) = listed.trim_end().split_once(": ") else { return Vec::new() };
    let listed = listed.replace("\\ ", "\0");
    listed.split(' ').map(|source| PathBuf::from(source.replace('\0', " "))).collect()
}
