//! Dead letters: from the queue to the database, and from there to an order after all.
//!
//! A message that nobody can apply ends in the queue of dead letters (`paybell.dead.v1`). There it could only wait; so it is moved
//! to a table, which people can list, have tried again and discard. [`bury`] commits before the queue is told, so that a crash
//! between the two makes a repetition, and the same message is kept once however often it comes.

use std::sync::Arc;
use std::time::Duration;

use paybell_shared::queue::{Consumer, Delivery, Disposition, Message, REASON_HEADER, Tag};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{DEAD_LETTERS, DEAD_LETTERS_TOTAL};
use uuid::Uuid;

use crate::consume::{self, Context};
use crate::store::{DeadLetter, Decided, LetterDecision, StoreError};

/// Moved in one transaction; each may be as large as a webhook may be.
const BATCH_MAX: usize = 16;
/// Pause after the database, or the queue, was away.
const PAUSE: Duration = Duration::from_secs(5);
/// Between two counts of those that wait.
const WATCH_PERIOD: Duration = Duration::from_secs(30);

/// Moves dead letters until the stop.
///
/// # Errors
/// None so far: what is away is waited for.
pub async fn run(context: Arc<Context>, mut consumer: Box<dyn Consumer>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let batch = tokio::select! {
            () = shutdown.stopping() => break,
            batch = consumer.next_batch(BATCH_MAX, Duration::ZERO) => batch,
        };
        let failure = match batch {
            Ok(deliveries) => {
                let (settled, failure) = bury(&context, &deliveries).await;
                let unsettled = consumer.settle(settled).await.err().map(anyhow::Error::new);
                failure.map(anyhow::Error::new).or(unsettled)
            }
            Err(error) => Some(anyhow::Error::new(error)),
        };
        if let Some(error) = failure {
            tracing::warn!(error = format!("{error:#}"), "dead letters stay in the queue for now");
            tokio::select! {
                () = shutdown.stopping() => break,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
    consumer.close().await;
    Ok(())
}

/// Keeps dead letters in the database: what becomes of each delivery, and what went wrong with those that are released. What the
/// database does not take costs only itself.
pub async fn bury(context: &Context, deliveries: &[Delivery]) -> (Vec<(Tag, Disposition)>, Option<StoreError>) {
    let letters: Vec<DeadLetter> = deliveries.iter().map(|delivery| letter(context, delivery)).collect();
    let all = |disposition: Disposition| deliveries.iter().map(|delivery| (delivery.tag, disposition.clone())).collect();
    match context.store.bury(&letters).await {
        Ok(()) => {
            letters.iter().for_each(say);
            (all(Disposition::Done), None)
        }
        Err(StoreError::Refused(_)) if letters.len() > 1 => {
            let (mut settled, mut failure) = (Vec::new(), None);
            for (letter, delivery) in letters.iter().zip(deliveries) {
                let disposition = match context.store.bury(std::slice::from_ref(letter)).await {
                    Ok(()) => {
                        say(letter);
                        Disposition::Done
                    }
                    Err(error) => {
                        failure = Some(error);
                        Disposition::Release
                    }
                };
                settled.push((delivery.tag, disposition));
            }
            (settled, failure)
        }
        Err(error) => (all(Disposition::Release), Some(error)),
    }
}

fn letter(context: &Context, delivery: &Delivery) -> DeadLetter {
    let reason = delivery.message.header(REASON_HEADER).unwrap_or("the queue does not say why").to_owned();
    // As it was before it died: so it is the same message when it is tried again.
    let headers = delivery.message.headers.iter().filter(|(name, _)| name != REASON_HEADER).cloned().collect();
    let message = Message { headers, ..delivery.message.clone() };
    DeadLetter { message, attempts: delivery.attempt, reason, died_at: context.clock.now() }
}

fn say(letter: &DeadLetter) {
    let DeadLetter { message, attempts, reason, .. } = letter;
    tracing::error!(event = "letter.dead", id = %letter.id(), message = message.id, attempts, reason, "nobody could apply it");
    metrics::counter!(DEAD_LETTERS_TOTAL).increment(1);
}

/// What became of a letter that somebody had tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It is applied, or was before.
    Applied,
    /// It died again, and waits.
    Died {
        reason: String,
    },
    /// It does not wait: somebody has decided on it.
    Decided,
    Unknown,
}

/// Has a dead letter applied by the one write path, as if it came from the queue.
///
/// # Errors
/// The database is away; it may be tried again.
pub async fn try_again(context: &Context, id: Uuid, operator: String) -> Result<Tried, StoreError> {
    let Some(head) = context.store.letter_head(id).await? else { return Ok(Tried::Unknown) };
    if head.decision.is_some() {
        return Ok(Tried::Decided);
    }
    let Some(letter) = context.store.dead_letter(id).await? else { return Ok(Tried::Unknown) };
    let tag = Tag { generation: 0, number: 0 };
    let attempts = letter.attempts.saturating_add(1);
    let delivery = Delivery { tag, attempt: attempts, redelivered: true, message: letter.message.clone() };
    let mut settled = consume::step(context, &[delivery]).await?;
    match settled.pop().map(|(_, disposition)| disposition) {
        Some(Disposition::Done) => {
            let at = context.clock.now();
            let decision = LetterDecision { decided: Decided::Replayed, at, operator, note: String::new() };
            // If another one was faster, it is decided all the same, and applied once.
            context.store.decide_letter(id, &decision).await?;
            Ok(Tried::Applied)
        }
        Some(Disposition::Retry { reason } | Disposition::DeadLetter { reason }) => {
            let letter = DeadLetter { attempts, reason: reason.clone(), died_at: context.clock.now(), ..letter };
            context.store.bury(&[letter]).await?;
            Ok(Tried::Died { reason })
        }
        // The outcome of the commit is not known: asked again, it is.
        Some(Disposition::Release) | None => {
            Ok(Tried::Died { reason: "whether it was applied is not known: try again".to_owned() })
        }
    }
}

/// Shows how many wait, until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, the last count stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        match context.store.count_letters().await {
            Ok(count) => metrics::gauge!(DEAD_LETTERS).set(f64::from(count)),
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "dead letters are not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}
