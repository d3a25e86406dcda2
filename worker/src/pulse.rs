//! Whether the database is there, and still the same: asked every few seconds, told at `/readyz`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use paybell_shared::ops::{Check, Report};
use paybell_shared::shutdown::Shutdown;

use crate::consume::Context;

const PERIOD: Duration = Duration::from_secs(3);

/// What is known of the database.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<State>);

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Starting,
    Up,
    Down(String),
}

impl Pulse {
    /// The database does not answer.
    pub fn down(&self, problem: String) {
        self.set(State::Down(problem));
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn get(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The worker's word on its readiness.
#[must_use]
pub fn check(pulse: Arc<Pulse>) -> Check {
    Arc::new(move || {
        let (ready, detail) = match pulse.get() {
            State::Starting => (false, "the database was not reached yet".to_owned()),
            State::Up => (true, "the database answers".to_owned()),
            State::Down(problem) => (false, format!("the database does not answer: {problem}")),
        };
        Report { part: "worker", ready, detail }
    })
}

/// Asks until the stop.
///
/// # Errors
/// The database has another history than the one that this worker started with: it was restored.
pub async fn run(context: Arc<Context>, pulse: Arc<Pulse>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        match context.store.epoch().await {
            Ok(epoch) => {
                anyhow::ensure!(epoch == context.epoch, "the database has a new epoch: it was restored; start the worker anew");
                pulse.set(State::Up);
            }
            Err(error) => pulse.down(format!("{:#}", anyhow::Error::new(error))),
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}
