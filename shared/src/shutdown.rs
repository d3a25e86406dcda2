//! One owner of the life cycle: two-phase stop, and a crash of any task ends the process.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a stop may take in all. Above what is usually in flight (a publish budget of 2 s, a body's time-out, a batch's
/// transaction of milliseconds; one that fights for locks may take longer, and is then rolled back and comes again), below
/// the 60 s after which operators set SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(45);

/// How long those who watch the stop may take to end after it.
const WATCHERS_DEADLINE: Duration = Duration::from_secs(2);

/// Told to every task: when to stop, and who is still busy. Clones share one life.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stopping: CancellationToken,
    tasks: TaskTracker,
    finished: CancellationToken,
    watchers: TaskTracker,
    crashed: Arc<AtomicBool>,
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the stop: take nothing new, finish what is in flight.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Resolves when the stop has begun.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// [`Shutdown::stopping`] for those who need a token.
    pub(crate) fn stopping_token(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled when all tasks have ended: the end of those who [`Shutdown::watch`].
    pub(crate) fn finished_token(&self) -> CancellationToken {
        self.finished.clone()
    }

    /// Runs a task that the process cannot live without: if it fails or panics, the process stops with a non-zero exit.
    /// `name` is for the log.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn_on(&self.tasks, name, task);
    }

    /// As [`Shutdown::spawn`], for a task that goes on through the stop, until all others have ended: for those who tell
    /// operators how the stop goes.
    pub(crate) fn watch<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn_on(&self.watchers, name, task);
    }

    fn spawn_on<F>(&self, tracker: &TaskTracker, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let shutdown = self.clone();
        let handle = tracker.spawn(task);
        tracker.spawn(async move {
            let problem = match handle.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => error.to_string(),
            };
            tracing::error!(task = name, error = problem, "a task crashed, the process stops");
            shutdown.crashed.store(true, Ordering::SeqCst);
            shutdown.stop();
        });
    }

    /// Waits for SIGTERM, SIGINT or a crash, then for all tasks. A second signal, or the deadline, ends the wait.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub async fn run(self) -> std::io::Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            () = self.stopping() => {}
        }
        let second_signal = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        let finished = self.finish();
        tokio::select! {
            in_time = finished => if !in_time {
                tracing::error!(deadline_s = STOP_DEADLINE.as_secs(), "tasks did not finish in time, the process is aborted");
                return Ok(ExitCode::FAILURE);
            },
            () = second_signal => {
                tracing::warn!("second signal: aborted");
                return Ok(ExitCode::FAILURE);
            }
        }
        Ok(if self.crashed.load(Ordering::SeqCst) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Stops and waits for all tasks; `false` if they did not end by the deadline.
    pub async fn finish(&self) -> bool {
        self.stop();
        self.tasks.close();
        let in_time = tokio::time::timeout(STOP_DEADLINE, self.tasks.wait()).await.is_ok();
        self.finished.cancel();
        self.watchers.close();
        // Whoever watches has nothing to lose.
        let _ = tokio::time::timeout(WATCHERS_DEADLINE, self.watchers.wait()).await;
        in_time
    }

    /// A task crashed.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_sees_the_stop_to_its_end() {
        let shutdown = Shutdown::new();
        let (done, mut is_done) = tokio::sync::oneshot::channel();
        let (task, watcher) = (shutdown.clone(), shutdown.finished_token());
        shutdown.watch("watcher", async move {
            watcher.cancelled().await;
            assert_eq!(is_done.try_recv(), Ok("done"), "the watcher ended before the task");
            Ok(())
        });
        shutdown.spawn("task", async move {
            task.stopping().await;
            tokio::task::yield_now().await;
            let _ = done.send("done");
            Ok(())
        });
        assert!(shutdown.finish().await);
        assert!(!shutdown.has_crashed());
    }

    #[tokio::test]
    async fn a_crash_or_panic_of_any_task_stops_the_rest() {
        for panics in [false, true] {
            let shutdown = Shutdown::new();
            let other = shutdown.clone();
            shutdown.spawn("other", async move {
                other.stopping().await;
                Ok(())
            });
            shutdown.spawn("crashing", async move {
                assert!(!panics, "a planted panic");
                anyhow::bail!("a planted error")
            });
            shutdown.stopping().await;
            assert!(shutdown.finish().await);
            assert!(shutdown.has_crashed());
        }
    }
}
