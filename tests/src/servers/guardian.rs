//! A process that ends with the test that started it, however the test ends.
//!
//! A test process that is killed runs no destructor, and Rust's statics never do, so the process is owned by a shell
//! script (`guardian.sh`) that holds one end of a pipe: when the kernel closes the other end, the script kills what it
//! started, with everything below it, and removes its folder.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

const SCRIPT: &str = include_str!("guardian.sh");

/// How much of a log a failing test shows.
const LOG_TAIL_BYTES: usize = 4 * 1024;

/// One command in a folder of its own. Dropped: killed, and its folder removed, before `drop` returns.
#[derive(Debug)]
pub struct Guarded {
    folder: PathBuf,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    guardian: Child,
    /// Closed by taking it.
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Zero before the first start.
    pid: u32,
}

impl Guarded {
    /// A guardian for `command`, which runs in `folder` from [`Guarded::start`] on.
    ///
    /// # Errors
    /// No shell.
    pub fn new(folder: PathBuf, command: &Command) -> Result<Self> {
        let mut guardian = Command::new("sh");
        guardian.arg("-c").arg(SCRIPT).arg("guardian").arg(&folder).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => guardian.env(name, value),
                None => guardian.env_remove(name),
            };
        }
        // A group of its own: what a terminal or a CI runner sends to the tests' group does not reach it.
        guardian.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut guardian = guardian.spawn().context("sh cannot be started")?;
        let words = guardian.stdin.take();
        let answers = BufReader::new(guardian.stdout.take().context("the guardian has no standard output")?);
        Ok(Self { folder, line: Mutex::new(Line { guardian, words, answers, pid: 0 }) })
    }

    /// Runs the command, for the first time or again.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn start(&self) -> Result<()> {
        let mut line = self.lock();
        line.pid = line.ask("START")?.parse().context("the guardian answered with something else than a process id")?;
        Ok(())
    }

    /// Kills the process and everything below it by SIGKILL; returns when nothing of it is left.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn kill9(&self) -> Result<()> {
        self.lock().ask("KILL").map(drop)
    }

    /// Sends SIGTERM to the process, and waits for nothing.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn terminate(&self) -> Result<()> {
        self.lock().ask("TERM").map(drop)
    }

    /// Freezes everything by SIGSTOP: connections stay open and nobody answers.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn stop(&self) -> Result<()> {
        self.lock().ask("STOP").map(drop)
    }

    /// Thaws what [`Guarded::stop`] froze.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn cont(&self) -> Result<()> {
        self.lock().ask("CONT").map(drop)
    }

    /// Whether the process runs (a frozen one does).
    #[must_use]
    pub fn is_running(&self) -> bool {
        is_running(self.lock().pid)
    }

    /// The exit status of a process that no longer runs; 128 and the signal's number if a signal ended it.
    ///
    /// # Errors
    /// It still runs, or the guardian is gone.
    pub fn exit_status(&self) -> Result<i32> {
        let mut line = self.lock();
        // The guardian waits for it and hears nothing meanwhile, so it is asked only for what has ended.
        ensure!(!is_running(line.pid), "process {} still runs", line.pid);
        line.ask("WAIT")?.parse().context("the guardian answered with something else than an exit status")
    }

    /// The process's id; 0 before the first start.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock().pid
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The end of what the process wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut line = self.lock();
        line.words.take();
        // It has nothing else to do than to end; an error here would only hide the test's own.
        let _ = line.guardian.wait();
    }
}

impl Line {
    fn ask(&mut self, word: &str) -> Result<String> {
        let words = self.words.as_mut().context("the guardian was let go")?;
        writeln!(words, "{word}").context("the guardian is gone")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).context("the guardian is gone")?;
        ensure!(!answer.is_empty(), "the guardian is gone");
        Ok(answer.trim().to_owned())
    }
}

/// Whether a process exists and is more than a zombie.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `pid (name) state …`, where the name may hold brackets.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
