//! Store and forward, by choice per PSP (`on_queue_down = "spool"`): what the queue does not take is kept on a disk of ours,
//! acknowledged, and put on the queue later.
//!
//! For PSPs that send again for a short time only, or that switch an endpoint off which answers 503. The price is a state of the
//! ingress' own: the folder must outlive the process, and be drained before it goes.
//!
//! One thread writes and syncs ([`log`], on [`disk`], in the form of [`record`]): what comes while it waits for the disk shares
//! the next fsync. Draining takes a segment at a time, with few publishes under way, so that live webhooks do not wait; what it
//! sends twice after a crash is a duplicate.

mod disk;
mod log;
#[cfg(test)]
mod power_cut;
mod record;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use paybell_shared::queue::{Health, Message, Publisher};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{OUTCOME, SPOOL_BYTES, SPOOL_DAMAGED_BYTES_TOTAL, SPOOL_DRAINED_TOTAL, SPOOL_WEBHOOKS_TOTAL};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use self::disk::{Disk, Folder};
use self::log::Log;
pub(crate) use self::log::SpoolError;

/// Webhooks that wait for the disk. One more is refused.
const INBOX_MAX: usize = 1024;
/// Records that one fsync answers.
const SYNCED_AT_ONCE_MAX: usize = 256;
/// Publishes under way while draining: a sixteenth of what one lane to the broker has in flight.
const DRAINING_AT_ONCE: usize = 16;
/// Between attempts to drain while the queue takes nothing.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// The spool of this process.
pub(crate) struct Spool {
    orders: mpsc::Sender<Order>,
    appended: Arc<Notify>,
}

enum Order {
    Append {
        record: Vec<u8>,
        verdict: oneshot::Sender<Result<(), SpoolError>>,
    },
    /// The segment to drain next, with what it holds.
    Oldest(oneshot::Sender<Option<(u64, Vec<Message>)>>),
    Remove(u64),
}

impl Spool {
    /// Takes over what is in the folder, and drains it whenever the queue takes webhooks.
    ///
    /// # Errors
    /// The folder cannot be written, or is another process'.
    pub fn open(folder: &Path, bytes_max: u64, publisher: Arc<dyn Publisher>, shutdown: &Shutdown) -> std::io::Result<Self> {
        let log = Log::open(Folder::open(folder)?, bytes_max)?;
        tracing::info!(folder = %folder.display(), bytes = log.bytes(), "the spool is open");
        let (orders, inbox) = mpsc::channel(INBOX_MAX);
        shutdown.spawn("spool", async move {
            tokio::task::spawn_blocking(move || write(log, inbox)).await?;
            Ok(())
        });
        let appended = Arc::new(Notify::new());
        let drain = Drain { orders: orders.clone(), appended: Arc::clone(&appended), publisher };
        let stop = shutdown.clone();
        shutdown.spawn("drain", async move {
            tokio::select! {
                () = drain.run() => {}
                // What is left stays on the disk.
                () = stop.stopping() => {}
            }
            Ok(())
        });
        Ok(Self { orders, appended })
    }

    /// Resolves with `Ok` once the webhook is on the disk, fsynced.
    ///
    /// # Errors
    /// It may or may not be there; the sender must send again.
    pub async fn append(&self, message: &Message, budget: Duration) -> Result<(), SpoolError> {
        let appended = self.try_append(message, budget).await;
        let outcome = match &appended {
            Ok(()) => "spooled",
            Err(SpoolError::Full) => "full",
            Err(SpoolError::Disk(_)) => "failed",
            Err(SpoolError::Busy) => "busy",
            Err(SpoolError::Late) => "late",
        };
        metrics::counter!(SPOOL_WEBHOOKS_TOTAL, OUTCOME => outcome).increment(1);
        appended
    }

    async fn try_append(&self, message: &Message, budget: Duration) -> Result<(), SpoolError> {
        let record = record::encode(message).map_err(SpoolError::Disk)?;
        let (verdict, answer) = oneshot::channel();
        self.orders.try_send(Order::Append { record, verdict }).map_err(|_| SpoolError::Busy)?;
        // Its thread may be gone only when the process is about to be.
        timeout(budget, answer).await.map_err(|_| SpoolError::Late)?.unwrap_or(Err(SpoolError::Busy))?;
        self.appended.notify_one();
        Ok(())
    }
}

/// Carries out orders until nobody can give any; what has gathered meanwhile shares one fsync.
fn write<D: Disk>(mut log: Log<D>, mut inbox: mpsc::Receiver<Order>) {
    let (mut records, mut verdicts) = (Vec::new(), Vec::new());
    while let Some(first) = inbox.blocking_recv() {
        let mut next = Some(first);
        let mut other = None;
        while let Some(order) = next.take() {
            match order {
                Order::Append { record, verdict } => {
                    records.push(record);
                    verdicts.push(verdict);
                    if records.len() < SYNCED_AT_ONCE_MAX {
                        next = inbox.try_recv().ok();
                    }
                }
                order => other = Some(order),
            }
        }
        append(&mut log, &mut records, &mut verdicts);
        match other {
            Some(Order::Oldest(answer)) => {
                let _ = answer.send(oldest(&mut log));
            }
            Some(Order::Remove(number)) => {
                if let Err(error) = log.remove(number) {
                    tracing::warn!(%error, "a drained segment of the spool cannot be removed: it is sent again");
                }
            }
            Some(Order::Append { .. }) | None => {}
        }
        // A spool's size is far below 2^52.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        metrics::gauge!(SPOOL_BYTES).set(log.bytes() as f64);
    }
}

fn append<D: Disk>(log: &mut Log<D>, records: &mut Vec<Vec<u8>>, verdicts: &mut Vec<oneshot::Sender<Result<(), SpoolError>>>) {
    if records.is_empty() {
        return;
    }
    let appended = log.append(records);
    if let Err(SpoolError::Disk(error)) = &appended {
        tracing::error!(%error, webhooks = records.len(), "the spool cannot be written: webhooks are refused");
    }
    for verdict in verdicts.drain(..) {
        let answer = match &appended {
            Ok(()) => Ok(()),
            Err(SpoolError::Disk(error)) => Err(SpoolError::Disk(error.kind().into())),
            // Alone, one of them might have fitted; the sender sends again.
            Err(_) => Err(SpoolError::Full),
        };
        // Whoever does not wait any more has told its sender to send again.
        let _ = verdict.send(answer);
    }
    records.clear();
}

fn oldest<D: Disk>(log: &mut Log<D>) -> Option<(u64, Vec<Message>)> {
    let number = log.oldest()?;
    match log.read(number) {
        Ok(scanned) => {
            if scanned.damaged_bytes > 0 {
                metrics::counter!(SPOOL_DAMAGED_BYTES_TOTAL).increment(scanned.damaged_bytes as u64);
                tracing::warn!(segment = number, bytes = scanned.damaged_bytes, "a part of the spool is torn or damaged");
            }
            Some((number, scanned.messages))
        }
        Err(error) => {
            tracing::error!(segment = number, %error, "a segment of the spool cannot be read");
            None
        }
    }
}

/// Puts on the queue what the spool holds.
struct Drain {
    orders: mpsc::Sender<Order>,
    appended: Arc<Notify>,
    publisher: Arc<dyn Publisher>,
}

impl Drain {
    async fn run(self) {
        let mut health = self.publisher.health();
        loop {
            // A publisher that is gone takes nothing more: the process stops.
            if health.wait_for(|health| *health == Health::Up).await.is_err() {
                return std::future::pending().await;
            }
            match self.oldest().await {
                Some((number, messages)) => {
                    self.forward(messages).await;
                    let _ = self.orders.send(Order::Remove(number)).await;
                }
                None => {
                    let _ = timeout(DRAIN_PAUSE, self.appended.notified()).await;
                }
            }
        }
    }

    async fn oldest(&self) -> Option<(u64, Vec<Message>)> {
        let (ask, answer) = oneshot::channel();
        self.orders.send(Order::Oldest(ask)).await.ok()?;
        answer.await.ok()?
    }

    /// Publishes until each of them is confirmed.
    async fn forward(&self, mut messages: Vec<Message>) {
        let count = messages.len();
        while !messages.is_empty() {
            let publishing = messages.into_iter().map(|message| async {
                let published = self.publisher.publish(message.clone()).await;
                published.err().map(|_| message)
            });
            messages = stream::iter(publishing).buffer_unordered(DRAINING_AT_ONCE).filter_map(std::future::ready).collect().await;
            if !messages.is_empty() {
                sleep(DRAIN_PAUSE).await;
            }
        }
        metrics::counter!(SPOOL_DRAINED_TOTAL).increment(count as u64);
        tracing::info!(webhooks = count, "spooled webhooks are on the queue");
    }
}
