//! The embedded queue: one SQLite file, one writer.
//!
//! A publish is answered after its commit, in WAL mode with `synchronous=FULL` (invariant I1), which is read back from
//! the connection before it is used. All writes go through one task: it takes what waits, up to a bound, commits it as
//! one transaction and answers all of it, so that one fsync serves many. A consumer's claims, moves and deletions ride
//! in the same transactions.
//!
//! One process has the file (a lock file beside it says so), so what was claimed when it is opened was claimed by a
//! process that died: it is delivered again.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    ConnectError, ConsumeError, Consumer, Delivery, Disposition, Health, Message, PublishError, Publisher, QueueSettings,
    REASON_HEADER, Tag, bounded,
};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::shutdown::Shutdown;

/// Publishes that wait for the writer.
pub const INBOX_MAX: usize = 2_048;

/// Publishes in one transaction. From 100 on an fsync no longer shows; 512 keeps a transaction within milliseconds.
pub const COMMIT_MAX: usize = 512;

/// Consumers' requests that wait for the writer; each consumer has one at a time.
const REQUESTS_MAX: usize = 64;

/// What the queue may hold, dead letters included; above it publishes are refused, as a full queue of a broker does.
const MESSAGES_MAX: u64 = 1_000_000;
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// What a row takes beside its texts and body, with its index entry; rounded up.
const ROW_BYTES: u64 = 128;

/// A consumer looks again after this long even if nobody called it: due times are of the wall clock, which may jump.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an opening process waits for one that is about to end.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long a transaction waits for a stranger, such as a backup, that holds the file's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// After a failed transaction, such as on a full disk.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The largest that the log of commits stays on disk, in bytes.
const LOG_BYTES_MAX: &str = "67108864";

/// What the writer's health says once it has ended as it should.
const ENDED: &str = "the embedded queue was closed";

const PUBLISHED: &str = "paybell_queue_published_total";
const SETTLED: &str = "paybell_queue_settled_total";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/queue");

/// An open embedded queue. It is closed when its last handle goes.
#[derive(Clone)]
pub struct Sqlite(Arc<Handles>);

struct Handles {
    publishes: mpsc::Sender<Publish>,
    requests: mpsc::Sender<Request>,
    health: watch::Receiver<Health>,
    /// Raised whenever there may be something new to claim.
    arrivals: watch::Receiver<u64>,
    generations: AtomicU64,
    /// Tells of a consumer that was dropped, by its generation; as many as there are consumers.
    gone: mpsc::UnboundedSender<u64>,
    settings: QueueSettings,
    _tasks: TaskTracker,
}

struct Publish {
    message: Message,
    verdict: oneshot::Sender<Result<(), PublishError>>,
}

/// What a consumer asks the writer.
enum Request {
    Claim { generation: u64, dead: bool, max: usize, answer: Answer<Claim> },
    Settle { generation: u64, dead: bool, settlements: Vec<(u64, Disposition)>, answer: Answer<()> },
    Release { generation: u64, answer: Answer<()> },
}

type Answer<T> = oneshot::Sender<Result<T, ConsumeError>>;

struct Claim {
    deliveries: Vec<Delivery>,
    /// When the next one that is not due yet will be.
    next_in: Option<Duration>,
}

impl Sqlite {
    /// Opens the file, creating it and its folder if they are missing. Runs on a tokio runtime.
    ///
    /// # Errors
    /// The file cannot be opened, is open elsewhere, is of a newer version, or would not be durable.
    pub async fn open(settings: QueueSettings) -> Result<Self, ConnectError> {
        let options = SqliteConnectOptions::from_str(&settings.url)
            .map_err(|error| ConnectError::Url(error.to_string()))?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // On macOS an fsync alone stops at the disk's cache.
            .pragma("fullfsync", "1")
            .pragma("journal_size_limit", LOG_BYTES_MAX);
        let path = options.get_filename().to_owned();
        if path.as_os_str().is_empty() || path.to_string_lossy().starts_with("file:") || path == Path::new(":memory:") {
            return Err(ConnectError::Url(format!("{:?} names no file: the embedded queue must be durable", settings.url)));
        }
        let lock = lock(&path).await?;
        let mut connection = connect(&options).await?;
        MIGRATIONS.run(&mut connection).await?;
        // Whoever had claims is gone: this process has the lock.
        sqlx::query("UPDATE messages SET claimed = 0, redelivered = 1 WHERE claimed <> 0").execute(&mut connection).await?;
        let held = Held::recount(&mut connection).await?;

        let (publishes, inbox) = mpsc::channel(INBOX_MAX);
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let (health_writer, health) = watch::channel(Health::Up);
        let (arrivals_writer, arrivals) = watch::channel(0);
        let (gone, left) = mpsc::unbounded_channel();
        let writer = Writer {
            options,
            connection: Some(connection),
            held,
            inbox,
            asked,
            health: health_writer,
            arrivals: arrivals_writer,
            gone: left,
            abandoned: Vec::new(),
            settings: settings.clone(),
            clock: SystemClock,
            _lock: lock,
        };
        // It ends with the last handle; `publisher` has it watched.
        let tasks = TaskTracker::new();
        tasks.spawn(writer.run());
        let generations = AtomicU64::new(1);
        Ok(Self(Arc::new(Handles { publishes, requests, health, arrivals, generations, gone, settings, _tasks: tasks })))
    }

    #[must_use]
    pub fn publisher(&self, shutdown: &Shutdown) -> Arc<dyn Publisher> {
        shutdown.spawn("embedded queue", watch_writer(self.0.health.clone(), shutdown.clone()));
        Arc::new(self.clone())
    }

    #[must_use]
    pub fn consumer(&self) -> Box<dyn Consumer> {
        Box::new(SqliteConsumer::new(Arc::clone(&self.0), false))
    }

    #[must_use]
    pub fn dead_letters(&self) -> Box<dyn Consumer> {
        Box::new(SqliteConsumer::new(Arc::clone(&self.0), true))
    }

    async fn commit(&self, message: Message) -> Result<(), PublishError> {
        let closed = || PublishError::Closed(ENDED.to_owned());
        let (verdict, receiver) = oneshot::channel();
        self.0.publishes.try_send(Publish { message, verdict }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        let budget = self.0.settings.publish_budget;
        match timeout(budget, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(PublishError::Late(budget)),
        }
    }
}

#[async_trait]
impl Publisher for Sqlite {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let result = self.commit(message).await;
        let outcome = result.as_ref().map_or_else(PublishError::reason, |()| "confirmed");
        metrics::counter!(PUBLISHED, "outcome" => outcome).increment(1);
        result
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.health.clone()
    }
}

/// Fails, and so ends the process, if the writer is gone without having ended as it should.
async fn watch_writer(mut health: watch::Receiver<Health>, shutdown: Shutdown) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.stopping() => return Ok(()),
        () = async { while health.changed().await.is_ok() {} } => {}
    }
    let ended = matches!(&*health.borrow(), Health::Down(reason) if reason == ENDED);
    anyhow::ensure!(ended, "the writer of the embedded queue crashed");
    Ok(())
}

/// Makes sure that no other process has the queue. The lock goes with the returned file, also when the process dies.
async fn lock(path: &Path) -> Result<File, ConnectError> {
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let failed = |source| ConnectError::File { path: lock_path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(failed)?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(Duration::from_millis(20)).await,
            Err(TryLockError::WouldBlock) => return Err(ConnectError::InUse(path.display().to_string())),
        }
    }
}

/// A connection that is known to be durable.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, ConnectError> {
    let mut connection = options.connect().await?;
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await?;
    if journal != "wal" {
        return Err(ConnectError::NotDurable { pragma: "journal_mode", found: journal });
    }
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await?;
    // 2 is FULL, 3 EXTRA.
    if synchronous < 2 {
        return Err(ConnectError::NotDurable { pragma: "synchronous", found: synchronous.to_string() });
    }
    Ok(connection)
}

/// What is in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    messages: u64,
    bytes: u64,
}

impl Held {
    async fn recount(connection: &mut SqliteConnection) -> sqlx::Result<Self> {
        let statement = "SELECT count(*), coalesce(sum(length(body) + length(CAST(headers AS BLOB))), 0) FROM messages";
        let (messages, bytes): (i64, i64) = sqlx::query_as(statement).fetch_one(connection).await?;
        let messages = u64::try_from(messages).unwrap_or(0);
        Ok(Self { messages, bytes: u64::try_from(bytes).unwrap_or(0) + messages * ROW_BYTES })
    }

    const fn is_full(self) -> bool {
        self.messages >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    const fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes + ROW_BYTES;
    }

    const fn remove(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes + ROW_BYTES);
    }
}

/// The one that writes.
struct Writer {
    options: SqliteConnectOptions,
    /// `None` after a transaction that failed.
    connection: Option<SqliteConnection>,
    held: Held,
    inbox: mpsc::Receiver<Publish>,
    asked: mpsc::Receiver<Request>,
    health: watch::Sender<Health>,
    arrivals: watch::Sender<u64>,
    gone: mpsc::UnboundedReceiver<u64>,
    /// Gone, and their claims not given back yet.
    abandoned: Vec<u64>,
    settings: QueueSettings,
    clock: SystemClock,
    /// Released after the connection is closed, in the order of the fields.
    _lock: File,
}

/// What a committed transaction has to say: to each publish, and to each request, in their order.
struct Outcome {
    published: Vec<Result<(), PublishError>>,
    replies: Vec<Reply>,
    /// There may be something new to claim.
    arrived: bool,
}

enum Reply {
    Claimed(Claim),
    Settled,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let mut publishes = Vec::new();
            let mut requests = Vec::new();
            tokio::select! {
                biased;
                generation = self.gone.recv() => match generation {
                    Some(generation) => self.abandoned.push(generation),
                    None => break,
                },
                request = self.asked.recv() => requests.extend(request),
                publish = self.inbox.recv() => publishes.extend(publish),
            }
            while let Ok(request) = self.asked.try_recv() {
                requests.push(request);
            }
            while publishes.len() < COMMIT_MAX {
                let Ok(publish) = self.inbox.try_recv() else { break };
                publishes.push(publish);
            }
            let before = self.held;
            match self.transact(&publishes, &requests).await {
                Ok(outcome) => {
                    self.tell(Health::Up);
                    self.answer(outcome, publishes, requests);
                }
                Err(error) => {
                    let reason = chain(&error);
                    self.held = before;
                    // A new one is surely in no transaction.
                    self.connection = None;
                    refuse(&reason, publishes, requests);
                    self.tell(Health::Down(reason));
                    sleep(FAILURE_PAUSE).await;
                }
            }
        }
        if let Some(connection) = self.connection.take() {
            // The last connection's close moves the log into the file; if it cannot, the next start does.
            let _ = connection.close().await;
        }
        self.health.send_replace(Health::Down(ENDED.to_owned()));
    }

    fn tell(&self, health: Health) {
        self.health.send_if_modified(|old| {
            let changed = *old != health;
            if changed {
                if let Health::Down(reason) = &health {
                    tracing::error!(error = reason, "the embedded queue cannot write");
                }
                *old = health;
            }
            changed
        });
    }

    fn answer(&mut self, outcome: Outcome, publishes: Vec<Publish>, requests: Vec<Request>) {
        self.abandoned.clear();
        // Nobody may be waiting any more, anywhere below: a late publisher, a consumer that was dropped, whose claims
        // are given back when `gone` tells of it.
        for (publish, result) in publishes.into_iter().zip(outcome.published) {
            let _ = publish.verdict.send(result);
        }
        for (request, reply) in requests.into_iter().zip(outcome.replies) {
            match (request, reply) {
                (Request::Claim { answer, .. }, Reply::Claimed(claim)) => drop(answer.send(Ok(claim))),
                (Request::Settle { answer, .. } | Request::Release { answer, .. }, _) => drop(answer.send(Ok(()))),
                (Request::Claim { .. }, Reply::Settled) => {}
            }
        }
        if outcome.arrived {
            self.arrivals.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// One transaction for all of it.
    async fn transact(&mut self, publishes: &[Publish], requests: &[Request]) -> Result<Outcome, ConnectError> {
        let now = self.clock.now();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.options).await?,
        };
        let mut outcome = Outcome { published: Vec::new(), replies: Vec::new(), arrived: !publishes.is_empty() };
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for &generation in &self.abandoned {
            outcome.arrived |= release(&mut transaction, generation).await?;
        }
        for publish in publishes {
            outcome.published.push(if publish.verdict.is_closed() {
                // It waited longer than its budget and was told so. Written all the same, it would hold up those who wait.
                Err(PublishError::Late(self.settings.publish_budget))
            } else if self.held.is_full() {
                Err(PublishError::Nacked)
            } else {
                self.held.add(insert(&mut transaction, &publish.message, now).await?);
                Ok(())
            });
        }
        for request in requests {
            outcome.replies.push(match request {
                // Its consumer was dropped; what it would claim, nobody would give back.
                Request::Claim { answer, .. } if answer.is_closed() => Reply::Settled,
                Request::Claim { generation, dead, max, .. } => {
                    Reply::Claimed(claim(&mut transaction, *generation, *dead, *max, now).await?)
                }
                Request::Settle { generation, dead, settlements, .. } => {
                    let mut settling =
                        Settling { transaction: &mut transaction, generation: *generation, now, settings: &self.settings };
                    outcome.arrived |= settling.settle(*dead, settlements, &mut self.held).await?;
                    Reply::Settled
                }
                Request::Release { generation, .. } => {
                    outcome.arrived |= release(&mut transaction, *generation).await?;
                    Reply::Settled
                }
            });
        }
        transaction.commit().await?;
        self.connection = Some(connection);
        Ok(outcome)
    }
}

fn refuse(reason: &str, publishes: Vec<Publish>, requests: Vec<Request>) {
    for publish in publishes {
        let _ = publish.verdict.send(Err(PublishError::Closed(reason.to_owned())));
    }
    let error = || ConsumeError::Backend(reason.into());
    for request in requests {
        match request {
            Request::Claim { answer, .. } => drop(answer.send(Err(error()))),
            Request::Settle { answer, .. } | Request::Release { answer, .. } => drop(answer.send(Err(error()))),
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Returns what the row holds, in bytes.
async fn insert(connection: &mut SqliteConnection, message: &Message, now: Timestamp) -> Result<u64, ConnectError> {
    let headers = serde_json::to_string(&message.headers).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let bytes = (message.body.len() + headers.len()) as u64;
    sqlx::query("INSERT INTO messages (visible_at, message_id, content_type, headers, body) VALUES (?1, ?2, ?3, ?4, ?5)")
        .bind(now.millis())
        .bind(&message.id)
        .bind(&message.content_type)
        .bind(headers)
        .bind(message.body.as_ref())
        .execute(connection)
        .await?;
    Ok(bytes)
}

async fn claim(
    connection: &mut SqliteConnection,
    generation: u64,
    dead: bool,
    max: usize,
    now: Timestamp,
) -> sqlx::Result<Claim> {
    let rows = sqlx::query(
        "UPDATE messages SET claimed = ?1
         WHERE id IN (SELECT id FROM messages WHERE claimed = 0 AND dead = ?2 AND visible_at <= ?3 ORDER BY visible_at, id LIMIT ?4)
         RETURNING id, attempt, redelivered, reason, message_id, content_type, headers, body",
    )
    .bind(signed(generation))
    .bind(dead)
    .bind(now.millis())
    .bind(signed(max as u64))
    .fetch_all(&mut *connection)
    .await?;
    let deliveries: Vec<Delivery> = rows.iter().map(|row| delivery(row, generation, dead)).collect::<Result<_, _>>()?;
    let next: Option<i64> = sqlx::query_scalar("SELECT min(visible_at) FROM messages WHERE claimed = 0 AND dead = ?1")
        .bind(dead)
        .fetch_one(connection)
        .await?;
    Ok(Claim { deliveries, next_in: next.map(|at| Timestamp::from_millis(at).since(now)) })
}

fn delivery(row: &SqliteRow, generation: u64, dead: bool) -> sqlx::Result<Delivery> {
    let headers: String = row.try_get("headers")?;
    let headers: Vec<(String, String)> = serde_json::from_str(&headers).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let mut headers: Vec<(Cow<'static, str>, String)> = headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
    if dead {
        let reason: Option<String> = row.try_get("reason")?;
        headers.extend(reason.map(|reason| (REASON_HEADER.into(), reason)));
    }
    let body: Vec<u8> = row.try_get("body")?;
    Ok(Delivery {
        tag: Tag { generation, number: u64::try_from(row.try_get::<i64, _>("id")?).unwrap_or(0) },
        attempt: u32::try_from(row.try_get::<i64, _>("attempt")?).unwrap_or(u32::MAX),
        redelivered: row.try_get("redelivered")?,
        message: Message {
            id: row.try_get("message_id")?,
            content_type: row.try_get("content_type")?,
            headers,
            body: body.into(),
        },
    })
}

/// Gives back everything that a consumer has; says whether that was anything.
async fn release(connection: &mut SqliteConnection, generation: u64) -> sqlx::Result<bool> {
    let released = sqlx::query("UPDATE messages SET claimed = 0, redelivered = 1 WHERE claimed = ?1")
        .bind(signed(generation))
        .execute(connection)
        .await?;
    Ok(released.rows_affected() > 0)
}

/// SQLite's integers are signed. Generations, row ids and limits stay far below the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Settles for one consumer. A row that is not claimed by it is not touched.
struct Settling<'a> {
    transaction: &'a mut SqliteConnection,
    generation: u64,
    now: Timestamp,
    settings: &'a QueueSettings,
}

impl Settling<'_> {
    /// Says whether there is something new to claim.
    async fn settle(&mut self, dead: bool, settlements: &[(u64, Disposition)], held: &mut Held) -> sqlx::Result<bool> {
        let mut done = Vec::with_capacity(settlements.len());
        for (id, disposition) in settlements {
            metrics::counter!(SETTLED, "disposition" => disposition.as_str()).increment(1);
            match disposition {
                Disposition::Done => done.push(*id),
                Disposition::Release => self.release(*id).await?,
                Disposition::Retry { .. } | Disposition::DeadLetter { .. } if dead => self.release(*id).await?,
                Disposition::Retry { reason } => self.retry(*id, reason).await?,
                Disposition::DeadLetter { reason } => self.bury(*id, &bounded(reason)).await?,
            }
        }
        let arrived = done.len() < settlements.len();
        for bytes in self.delete(&done).await? {
            held.remove(u64::try_from(bytes).unwrap_or(0));
        }
        Ok(arrived)
    }

    async fn delete(&mut self, ids: &[u64]) -> sqlx::Result<Vec<i64>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = serde_json::to_string(ids).map_err(|error| sqlx::Error::Encode(error.into()))?;
        sqlx::query_scalar(
            "DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?1)) AND claimed = ?2
             RETURNING length(body) + length(CAST(headers AS BLOB))",
        )
        .bind(ids)
        .bind(signed(self.generation))
        .fetch_all(&mut *self.transaction)
        .await
    }

    async fn release(&mut self, id: u64) -> sqlx::Result<()> {
        let statement = "UPDATE messages SET claimed = 0, redelivered = 1 WHERE id = ?1 AND claimed = ?2";
        sqlx::query(statement).bind(signed(id)).bind(signed(self.generation)).execute(&mut *self.transaction).await.map(drop)
    }

    async fn retry(&mut self, id: u64, reason: &str) -> sqlx::Result<()> {
        let statement = "SELECT attempt FROM messages WHERE id = ?1 AND claimed = ?2";
        let attempt: Option<i64> = sqlx::query_scalar(statement)
            .bind(signed(id))
            .bind(signed(self.generation))
            .fetch_optional(&mut *self.transaction)
            .await?;
        let Some(attempt) = attempt else { return Ok(()) };
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let delay = match self.settings.after_failure(attempt, reason) {
            Ok(step) => self.settings.retry_steps[step],
            Err(reason) => return self.bury(id, &reason).await,
        };
        sqlx::query(
            "UPDATE messages SET claimed = 0, redelivered = 0, attempt = attempt + 1, visible_at = ?3, reason = ?4
             WHERE id = ?1 AND claimed = ?2",
        )
        .bind(signed(id))
        .bind(signed(self.generation))
        .bind(self.now.plus(delay).millis())
        .bind(bounded(reason))
        .execute(&mut *self.transaction)
        .await
        .map(drop)
    }

    async fn bury(&mut self, id: u64, reason: &str) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE messages SET claimed = 0, redelivered = 0, dead = 1, visible_at = ?3, reason = ?4
             WHERE id = ?1 AND claimed = ?2",
        )
        .bind(signed(id))
        .bind(signed(self.generation))
        .bind(self.now.millis())
        .bind(reason)
        .execute(&mut *self.transaction)
        .await
        .map(drop)
    }
}

struct SqliteConsumer {
    queue: Arc<Handles>,
    dead: bool,
    generation: u64,
    arrivals: watch::Receiver<u64>,
    /// A claim that was asked for; kept here, so that a caller that gives up waiting loses nothing.
    asked: Option<oneshot::Receiver<Result<Claim, ConsumeError>>>,
    /// Claimed and not returned yet.
    received: VecDeque<Delivery>,
}

impl SqliteConsumer {
    fn new(queue: Arc<Handles>, dead: bool) -> Self {
        let generation = queue.generations.fetch_add(1, Ordering::Relaxed);
        let arrivals = queue.arrivals.clone();
        Self { queue, dead, generation, arrivals, asked: None, received: VecDeque::new() }
    }

    /// Claims up to `max` more; says when the next will be due. Cancel-safe.
    async fn claim(&mut self, max: usize) -> Result<Option<Duration>, ConsumeError> {
        if self.asked.is_none() {
            let permit = self.queue.requests.reserve().await.map_err(|_| ended())?;
            let (answer, asked) = oneshot::channel();
            permit.send(Request::Claim { generation: self.generation, dead: self.dead, max, answer });
            self.asked = Some(asked);
        }
        let Some(asked) = &mut self.asked else { return Ok(None) };
        let claim = asked.await;
        self.asked = None;
        let claim = claim.map_err(|_| ended())??;
        self.received.extend(claim.deliveries);
        Ok(claim.next_in)
    }

    /// Lets go of all claims, and of their tags: the writer gives them back as soon as it can write.
    fn abandon(&mut self) {
        self.received.clear();
        // First: a claim that is still asked for must not be granted after it was given back.
        self.asked = None;
        // The writer may have ended; then the next start gives back.
        let _ = self.queue.gone.send(self.generation);
        self.generation = self.queue.generations.fetch_add(1, Ordering::Relaxed);
    }

    async fn ask(&self, request: Request, asked: oneshot::Receiver<Result<(), ConsumeError>>) -> Result<(), ConsumeError> {
        self.queue.requests.send(request).await.map_err(|_| ended())?;
        asked.await.map_err(|_| ended())?
    }
}

fn ended() -> ConsumeError {
    ConsumeError::Closed(ENDED.to_owned())
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn next_batch(&mut self, max: usize, linger: Duration) -> Result<Vec<Delivery>, ConsumeError> {
        let max = max.max(1);
        while self.received.is_empty() {
            self.arrivals.mark_unchanged();
            let next_in = self.claim(max).await?;
            if self.received.is_empty() {
                let pause = next_in.map_or(LOOK_EVERY, |next| next.clamp(Duration::from_millis(1), LOOK_EVERY));
                tokio::select! {
                    arrived = self.arrivals.changed() => arrived.map_err(|_| ended())?,
                    () = sleep(pause) => {}
                }
            }
        }
        if self.received.len() < max {
            sleep(linger).await;
            if self.arrivals.has_changed().unwrap_or(false) {
                // What was claimed before is returned whatever becomes of this.
                if let Err(error) = self.claim(max - self.received.len()).await {
                    tracing::debug!(%error, "no more for this batch");
                }
            }
        }
        let count = self.received.len().min(max);
        Ok(self.received.drain(..count).collect())
    }

    async fn settle(&mut self, settlements: Vec<(Tag, Disposition)>) -> Result<(), ConsumeError> {
        let current = settlements.into_iter().filter(|(tag, _)| tag.generation == self.generation);
        let settlements = current.map(|(tag, disposition)| (tag.number, disposition)).collect();
        let (answer, asked) = oneshot::channel();
        let settled = self.ask(Request::Settle { generation: self.generation, dead: self.dead, settlements, answer }, asked).await;
        if settled.is_err() {
            self.abandon();
        }
        settled
    }

    async fn close(&mut self) {
        self.received.clear();
        self.asked = None;
        let (answer, asked) = oneshot::channel();
        if let Err(error) = self.ask(Request::Release { generation: self.generation, answer }, asked).await {
            tracing::warn!(%error, "claims could not be given back; they are when the queue is opened again");
        }
        // A tag from before settles nothing after.
        self.generation = self.queue.generations.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::FutureExt as _;

    use super::*;

    /// An open queue in a folder of its own, which goes with it.
    struct Ground {
        folder: PathBuf,
        url: String,
        queue: Sqlite,
        shutdown: Shutdown,
    }

    impl Ground {
        async fn open(name: &str) -> Self {
            let unique = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
            let folder = std::env::temp_dir().join(format!("paybell-queue-{name}-{unique}"));
            let url = format!("sqlite:{}/queue.db", folder.display());
            let queue = Sqlite::open(QueueSettings {
                url: url.clone(),
                publish_budget: Duration::from_secs(5),
                retry_steps: vec![Duration::from_secs(1)],
                connection_name: "test".to_owned(),
            });
            Self { queue: queue.await.unwrap(), folder, url, shutdown: Shutdown::new() }
        }

        async fn by_hand(&self, statement: &'static str) {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::query(statement).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }

        async fn count(&self) -> i64 {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            let count = sqlx::query_scalar("SELECT count(*) FROM messages").fetch_one(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            count
        }
    }

    impl Drop for Ground {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[tokio::test]
    async fn what_could_not_be_settled_comes_again() {
        let ground = Ground::open("settle").await;
        ground.queue.publisher(&ground.shutdown).publish(Message { id: "one".to_owned(), ..Message::default() }).await.unwrap();
        let mut consumer = ground.queue.consumer();
        let first = consumer.next_batch(1, Duration::ZERO).await.unwrap();
        ground.by_hand("CREATE TRIGGER planted BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'a planted error'); END").await;
        consumer.settle(vec![(first[0].tag, Disposition::Done)]).await.unwrap_err();
        ground.by_hand("DROP TRIGGER planted").await;
        let second = timeout(Duration::from_secs(30), consumer.next_batch(1, Duration::ZERO)).await.expect("it never came").unwrap();
        assert!(second[0].redelivered && second[0].message.id == "one");
        consumer.settle(vec![(first[0].tag, Disposition::Done)]).await.unwrap();
        assert_eq!(ground.count().await, 1, "a tag from before settles nothing");
        consumer.settle(vec![(second[0].tag, Disposition::Done)]).await.unwrap();
        assert_eq!(ground.count().await, 0);
    }

    /// One thread: when the writer runs, the publisher has stopped waiting already.
    #[tokio::test]
    async fn what_nobody_waits_for_is_not_written() {
        let ground = Ground::open("late").await;
        let publisher = ground.queue.publisher(&ground.shutdown);
        assert!(publisher.publish(Message::default()).now_or_never().is_none());
        // The writer answers in order: what came before this is done.
        ground.queue.consumer().close().await;
        assert_eq!(ground.count().await, 0);
    }
}
