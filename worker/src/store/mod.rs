//! The database: one port, two backends, whole transactions only.
//!
//! A transaction locks and reads a [`Snapshot`], [`crate::apply::plan`] decides in pure code, and the [`Plan`] is
//! written before the commit (design decision 5). No SQL, row or transaction appears outside this folder.

mod audit;
mod expiry;
mod inspect;
mod learning;
mod letters;
mod outbox;
pub mod postgres;
mod replay;
mod retention;
mod rows;
pub mod sqlite;
mod stream;
mod sweeps;
mod unsettled;
mod watch;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, PaymentEvent, ReferenceKind, Source, compare_shared};
use paybell_shared::money::Money;
use paybell_shared::psp::{Hinted, Window};
use serde::Serialize;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use uuid::Uuid;

pub use self::audit::{AuditReport, Finding, Scope};
pub use self::expiry::{Agreed, Attended, DueOrder, Expiry, Looks, UnaskedWrite};
pub use self::inspect::{Action, CheckState, InboxEntry, Moment, MomentKind, MomentRow, NoticeState, Place, StoredEvent};
pub use self::learning::{AccountState, AskedFirst, EXPECTED_COUNTED_MAX, Expected, LATENESS_S, Learned};
pub use self::letters::{DeadLetter, Decided, LETTERS_COUNTED_MAX, LetterDecision, LetterHead};
pub use self::outbox::{Backlog, Notice, NoticeKey, NoticeOutcome};
pub use self::replay::{
    BodyPlace, EventChange, EventState, KeptEvent, OrderChange, ReplacedEvent, Replay, Replayed, Selection, StoredBody,
};
pub use self::retention::Kept;
pub use self::stream::{Position, Positioned};
pub use self::sweeps::{DuePage, LeasedPage, ReadPage};
pub use self::unsettled::{Reason, UNSETTLED_COUNTED_MAX, Unsettled, UnsettledPlace};
pub use self::watch::{LeasedWatch, WatchKey, WatchKind, WatchLease, WatchState};
use crate::ids::Ids;
use crate::inbox::{Arrival, Body, InboxRow, Outcome};
use crate::manners::{Ended, Leave, Manners, News};
use crate::order::{AccountKey, OrderStatus, Registers, Rules, Standing, Verdict, View};
use crate::schedule::Habits;
use crate::sweep::course::Course;

/// So many parked events are counted; that there are more says the same.
pub const OVERDUE_COUNTED_MAX: u32 = 10_000;
/// So many due payments of an account are counted: at five a second they take five hours.
pub const DUE_COUNTED_MAX: u32 = 100_000;
/// So many events are looked at to find one that a webhook told of an account within a time: a few milliseconds' reading. That
/// none is found among them proves nothing.
pub const TOLD_LOOKED_AT_MAX: u32 = 5_000;

/// The order's truth and the inbox.
#[async_trait]
pub trait Store: Send + Sync {
    /// The random id of this database's history. A restore renews it, so that no marker in Redis outlives what it marks.
    ///
    /// # Errors
    /// The database does not answer.
    async fn epoch(&self) -> Result<Uuid, StoreError>;

    /// Carries out a piece of work in one transaction: all of it or nothing. If more than [`PARKED_MAX`] events are parked
    /// under its names, it goes on in further transactions until none is left that has an order; should these fail, the
    /// rest is [`Store::unwoken`].
    ///
    /// # Errors
    /// Nothing was done, but for [`StoreError::Unknown`].
    async fn apply(&self, work: &Work<'_>) -> Result<Applied, StoreError>;

    /// # Errors
    /// The database does not answer.
    async fn order(&self, id: &str) -> Result<Option<StoredOrder>, StoreError>;

    /// A page of orders by id, from behind `after`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn orders(&self, status: Option<OrderStatus>, after: Option<&str>, limit: u32) -> Result<Vec<StoredOrder>, StoreError>;

    /// The books, read in one snapshot.
    ///
    /// # Errors
    /// The database does not answer.
    async fn balance(&self) -> Result<Balance, StoreError>;

    /// The books' lines of the hours that begin from `since` on and before `until`, by hour.
    ///
    /// # Errors
    /// The database does not answer.
    async fn hours(&self, since: Timestamp, until: Timestamp) -> Result<Vec<HourTotal>, StoreError>;

    /// Makes payments due now, but not within two seconds of their last look; those that are not known yet too. A look that
    /// is under way does not answer this.
    ///
    /// # Errors
    /// The database does not answer: nothing was done.
    async fn ask_about(&self, now: Timestamp, payments: &BTreeSet<(AccountKey, String)>) -> Result<(), StoreError>;

    /// As [`Store::ask_about`], because of webhooks that prove nothing by themselves, each with the time when it came: what the
    /// answers tell was told by them.
    ///
    /// # Errors
    /// The database does not answer: nothing was done.
    async fn hinted(&self, now: Timestamp, hints: &BTreeMap<(AccountKey, String), Timestamp>) -> Result<(), StoreError>;

    /// Leases an account's payments that are due, oldest first, as many as its manners allow now; committing the lease: whoever
    /// dies with one loses it at `until`. A payment with a live lease is not due.
    ///
    /// # Errors
    /// The database does not answer.
    async fn lease_checks(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedChecks, StoreError>;

    /// Ends a look: sets the next one, if the lease is still held, and says how the PSP behaved. What was planned since the
    /// lease began (a hint came, or the payment stands otherwise now) stays planned.
    ///
    /// # Errors
    /// The database does not answer.
    async fn finish_check(&self, check: &DueCheck, looked: &Looked) -> Result<Option<News>, StoreError>;

    /// Begins up to `wanted` conversations with an account's PSP, as many as its manners allow now.
    ///
    /// # Errors
    /// The database does not answer.
    async fn begin_asking(&self, account: &AccountKey, lease: &Lease, wanted: u32) -> Result<Leave, StoreError>;

    /// Ends one of them.
    ///
    /// # Errors
    /// The database does not answer: the conversation counts as under way until its lease ends.
    async fn end_asking(
        &self,
        account: &AccountKey,
        now: Timestamp,
        token: Uuid,
        ended: Ended,
    ) -> Result<Option<News>, StoreError>;

    /// How many payments of each account are due, counted up to [`DUE_COUNTED_MAX`], and since when the first of them is.
    ///
    /// # Errors
    /// The database does not answer.
    async fn due(&self, now: Timestamp, accounts: &[&AccountKey]) -> Result<Vec<Due>, StoreError>;

    /// Leases orders whose time is over, or of which a version before this one did not write when that is; committing the lease:
    /// they are due again at `until`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn lease_orders(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueOrder>, StoreError>;

    /// Ends the attendance of orders, in one transaction; whoever lost its lease, or whose order changed meanwhile, changes
    /// nothing of it.
    ///
    /// # Errors
    /// The database does not answer: the orders are due again when the lease ends.
    async fn attend_orders(&self, attended: &[Attended]) -> Result<(), StoreError>;

    /// How many payments were first decided within a time, by account.
    ///
    /// # Errors
    /// The database does not answer.
    async fn learned(&self, since: Timestamp, until: Timestamp) -> Result<Vec<(AccountKey, u64)>, StoreError>;

    /// For each of the accounts (with how long its PSP sends a webhook again): the payments of which asking told first, within
    /// that time, what they came to; by what had become of their webhooks at `now`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn asked_first(
        &self,
        since: Timestamp,
        until: Timestamp,
        now: Timestamp,
        accounts: &[(AccountKey, Duration)],
    ) -> Result<Vec<AskedFirst>, StoreError>;

    /// What is kept of every account.
    ///
    /// # Errors
    /// The database does not answer.
    async fn account_states(&self) -> Result<Vec<AccountState>, StoreError>;

    /// How many payments of an account became due for a webhook after `since` and by `until`, and had none; each counted up to
    /// [`EXPECTED_COUNTED_MAX`].
    ///
    /// # Errors
    /// The database does not answer.
    async fn expected(&self, account: &AccountKey, since: Timestamp, until: Timestamp) -> Result<Expected, StoreError>;

    /// Open orders that are not settled for this reason since before `before`, oldest first, from behind `after`; where the
    /// reason is an account's, of these accounts.
    ///
    /// # Errors
    /// The database does not answer.
    async fn unsettled(
        &self,
        reason: Reason,
        accounts: &[AccountKey],
        before: Timestamp,
        after: Option<&UnsettledPlace>,
        limit: u32,
    ) -> Result<Vec<Unsettled>, StoreError>;

    /// How many there are, counted up to [`UNSETTLED_COUNTED_MAX`].
    ///
    /// # Errors
    /// The database does not answer.
    async fn count_unsettled(&self, reason: Reason, accounts: &[AccountKey], before: Timestamp) -> Result<u32, StoreError>;

    /// Keeps messages that nobody could apply, in one transaction. One that is kept already is not kept twice; if somebody had
    /// decided on it, it waits anew.
    ///
    /// # Errors
    /// The database does not answer, or does not take one of them.
    async fn bury(&self, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Dead letters that wait for somebody, in the order of their deaths; from behind `after`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn dead_letters(&self, after: Option<(Timestamp, Uuid)>, limit: u32) -> Result<Vec<LetterHead>, StoreError>;

    /// One of them, decided on or not.
    ///
    /// # Errors
    /// The database does not answer.
    async fn letter_head(&self, id: Uuid) -> Result<Option<LetterHead>, StoreError>;

    /// The same with its message, exactly.
    ///
    /// # Errors
    /// The database does not answer.
    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError>;

    /// Keeps what somebody decided. `false`: it does not wait (any more), and nothing is kept.
    ///
    /// # Errors
    /// The database does not answer.
    async fn decide_letter(&self, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError>;

    /// How many wait, counted up to [`LETTERS_COUNTED_MAX`].
    ///
    /// # Errors
    /// The database does not answer.
    async fn count_letters(&self) -> Result<u32, StoreError>;

    /// Leases what one worker of many looks after, committing the lease; `None`: it is not due, or another worker has it.
    ///
    /// # Errors
    /// The database does not answer.
    async fn lease_watch(&self, key: &WatchKey, lease: &WatchLease) -> Result<Option<LeasedWatch>, StoreError>;

    /// Keeps what was found, and when it is due again. `false`: the lease was lost, and nothing is kept.
    ///
    /// # Errors
    /// The database does not answer: it is due when the lease ends.
    async fn finish_watch(&self, key: &WatchKey, token: Uuid, next_at: Timestamp, state: &str) -> Result<bool, StoreError>;

    /// What was found last, of every account that was looked after in this way.
    ///
    /// # Errors
    /// The database does not answer.
    async fn watch_states(&self, kind: WatchKind) -> Result<Vec<WatchState>, StoreError>;

    /// Leases the next page of an account's list, if one is due and the account's manners allow to ask for it now; committing
    /// the lease: whoever dies with it loses it at `until`. An account that was never swept begins now.
    ///
    /// # Errors
    /// The database does not answer, or what it says is of a newer version.
    async fn lease_page(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedPage, StoreError>;

    /// Ends a page: keeps how far the list is read, if the lease is still held, and says how the PSP behaved.
    ///
    /// # Errors
    /// The database does not answer: the page is read again when the lease ends.
    async fn finish_page(&self, page: &DuePage, read: &ReadPage) -> Result<Option<News>, StoreError>;

    /// How far an account's list is read; `None`: it never was.
    ///
    /// # Errors
    /// The database does not answer, or what it says is of a newer version.
    async fn course(&self, account: &AccountKey) -> Result<Option<Course>, StoreError>;

    /// Whether a webhook of the account told something that happened within this window, as far as the first
    /// [`TOLD_LOOKED_AT_MAX`] events say that were received since it began.
    ///
    /// # Errors
    /// The database does not answer.
    async fn told_within(&self, account: &AccountKey, window: Window) -> Result<bool, StoreError>;

    /// The payments that no look was answered about which began at the time of the hint or later.
    ///
    /// # Errors
    /// The database does not answer.
    async fn unanswered(&self, account: &AccountKey, hints: &[Hinted]) -> Result<BTreeSet<String>, StoreError>;

    /// Leases, of every order that has something to tell this destination, the lowest version that it was not told, if
    /// that is due; committing the lease.
    ///
    /// # Errors
    /// The database does not answer.
    async fn lease_notices(
        &self,
        destination: &str,
        now: Timestamp,
        lease: Duration,
        token: Uuid,
        limit: u32,
    ) -> Result<Vec<Notice>, StoreError>;

    /// Ends attempts, in one transaction; whoever lost its lease changes nothing.
    ///
    /// # Errors
    /// The database does not answer: the notices are told again when the lease ends.
    async fn finish_notices(&self, now: Timestamp, token: Uuid, ended: &[(NoticeKey, NoticeOutcome)]) -> Result<(), StoreError>;

    /// What is still to be told, by destination.
    ///
    /// # Errors
    /// The database does not answer.
    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError>;

    /// The end of what is committed, for a stream that begins now.
    ///
    /// # Errors
    /// The database does not answer.
    async fn position(&self) -> Result<Position, StoreError>;

    /// Changes behind a position, in the order of positions: all orders', or one's. None will ever appear before one that
    /// was returned.
    ///
    /// # Errors
    /// The database does not answer.
    async fn changes_after(&self, order_id: Option<&str>, after: Position, limit: u32) -> Result<Vec<Positioned>, StoreError>;

    /// The change that made an order what it is; `None`: no such order. What comes after it in the stream is what becomes of
    /// the order later.
    ///
    /// # Errors
    /// The database does not answer.
    async fn latest_change(&self, order_id: &str) -> Result<Option<Positioned>, StoreError>;

    /// A page of an order's moments in the order of their places, from behind `after`, read in one snapshot; `None`: no such
    /// order.
    ///
    /// # Errors
    /// The database does not answer.
    async fn timeline(&self, order_id: &str, after: Option<&Place>, limit: u32) -> Result<Option<Vec<Moment>>, StoreError>;

    /// # Errors
    /// The database does not answer.
    async fn event(&self, key: &EventKey) -> Result<Option<InboxEntry>, StoreError>;

    /// Parked events received before `before`, oldest first, from behind `after`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn parked(
        &self,
        before: Timestamp,
        after: Option<&(Timestamp, EventKey)>,
        limit: u32,
    ) -> Result<Vec<InboxEntry>, StoreError>;

    /// Names that lead to an order and under which events are parked all the same, from behind `after`: what a crash between
    /// two transactions left.
    ///
    /// # Errors
    /// The database does not answer.
    async fn unwoken(&self, after: Option<&ReferenceKey>, limit: u32) -> Result<Vec<ReferenceKey>, StoreError>;

    /// How many parked events were received before `before`, counted up to [`OVERDUE_COUNTED_MAX`].
    ///
    /// # Errors
    /// The database does not answer.
    async fn overdue(&self, before: Timestamp) -> Result<u32, StoreError>;

    /// Holds every row against the others in one snapshot (invariant I11); `progress` is told how many rows were looked at,
    /// of about how many.
    ///
    /// # Errors
    /// The database does not answer.
    async fn audit(&self, scope: Scope<'_>, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<AuditReport, StoreError>;

    /// Kept bodies that a selection means, in the order of their places, from behind `after`.
    ///
    /// # Errors
    /// The database does not answer.
    async fn bodies(&self, selection: &Selection, after: Option<&BodyPlace>, limit: u32) -> Result<Vec<StoredBody>, StoreError>;

    /// Drops bodies older than `keep`, and makes room for those of the next days. A part of the work at a time.
    ///
    /// # Errors
    /// The database does not answer.
    async fn retain(&self, now: Timestamp, keep: Duration) -> Result<Kept, StoreError>;

    /// Ends the connections.
    async fn close(&self);
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, full, read-only, or overrun: nobody's fault who is in the batch. Pause and try again.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Deadlock, serialisation failure or lock time-out, again and again.
    #[error("the transaction lost against others {0} times")]
    Contended(u32),
    /// The connection broke during the commit, and the database cannot say what became of it.
    #[error("the outcome of the commit is not known")]
    Unknown(#[source] sqlx::Error),
    /// The database refuses this data: somebody in the batch is poison.
    #[error("the database refuses the data")]
    Refused(#[source] sqlx::Error),
    /// What is stored cannot be read: written by a newer version, or damaged.
    #[error("{table}.{column} of {key} cannot be read: {problem}")]
    Inconsistent { table: &'static str, column: &'static str, key: String, problem: String },
}

/// What one transaction is to do.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    pub arrivals: &'a [Arrival],
    pub registrations: &'a [Registration],
    pub reviews: &'a [Review],
    pub expiries: &'a [Expiry],
    /// These come alone.
    pub replays: &'a [Replay],
    /// Names that lead to an order, under which parked events are to be woken.
    pub wake: &'a [ReferenceKey],
    /// Nothing is written: what would be done.
    pub dry_run: bool,
    pub now: Timestamp,
    /// Makes the random ids that are written.
    pub ids: &'a Ids,
    pub policy: &'a Policy,
}

impl<'a> Work<'a> {
    /// Nothing to do yet.
    #[must_use]
    pub const fn new(policy: &'a Policy, ids: &'a Ids, now: Timestamp) -> Self {
        Self {
            arrivals: &[],
            registrations: &[],
            reviews: &[],
            expiries: &[],
            replays: &[],
            wake: &[],
            dry_run: false,
            now,
            ids,
            policy,
        }
    }
}

impl Work<'_> {
    /// The same without anything to do but to wake.
    const fn waking(&self) -> Self {
        Self { dry_run: self.dry_run, ..Self::new(self.policy, self.ids, self.now) }
    }
}

/// What the configuration says about every piece of work.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// An event may bring an order into being (`[orders] registration = "optional"`).
    pub events_create_orders: bool,
    /// When a payment is asked about, by PSP and account; absent where nobody can be asked.
    pub asking: HashMap<AccountKey, Habits>,
    /// Who is told of every change of an order.
    pub destinations: Vec<Arc<str>>,
    /// What an order is judged by.
    pub rules: Rules,
}

/// The shop's word about an order: `PUT /v1/orders/{id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub order_id: String,
    pub account: AccountKey,
    pub payment_id: Option<String>,
    pub expected: Money,
    pub expires_at: Option<Timestamp>,
    /// The name of the API token.
    pub operator: String,
}

/// A person's word about an order under review: `POST /v1/orders/{id}/review`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    pub order_id: String,
    pub verdict: Verdict,
    pub reason: String,
    /// The name of the API token.
    pub operator: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// It is decided; the order may still be under review for another reason.
    Decided(Box<StoredOrder>),
    NotUnderReview,
    NoSuchOrder,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The order did not exist.
    Created(Box<StoredOrder>),
    /// It existed; something may have been added.
    Updated(Box<StoredOrder>),
    Refused(RegistrationConflict),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationConflict {
    #[error("the order is registered with {0}")]
    OtherAmount(Money),
    #[error("the payment belongs to the order {0}")]
    PaymentTaken(String),
}

/// What a transaction did.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// By event, in no order; `None`: a duplicate, nothing was done.
    pub events: Vec<(EventKey, Option<Outcome>)>,
    /// In the order of the work.
    pub registrations: Vec<Registered>,
    /// In the order of the work.
    pub reviews: Vec<Reviewed>,
    pub replayed: Replayed,
    /// The orders that the work was about, and where they stand now.
    pub orders: Vec<(String, OrderStatus)>,
    /// Payments of changed orders whose facts contradict each other.
    pub in_doubt: BTreeSet<(AccountKey, String)>,
    /// Parked events that found their order.
    pub woken: usize,
    /// The orders that were found expired.
    pub expired: Vec<String>,
    pub transitions: usize,
}

impl Applied {
    /// Adds what a transaction did that woke the rest of the parked events.
    fn and_woke(&mut self, woke: Self) {
        self.woken += woke.woken;
        self.transitions += woke.transitions;
        for (id, status) in woke.orders {
            match self.orders.iter_mut().find(|(known, _)| *known == id) {
                Some((_, before)) => *before = status,
                None => self.orders.push((id, status)),
            }
        }
    }

    /// The orders that were registered, as they were then.
    fn registered_mut(&mut self) -> impl Iterator<Item = &mut StoredOrder> {
        self.registrations.iter_mut().filter_map(|registered| match registered {
            Registered::Created(order) | Registered::Updated(order) => Some(&mut **order),
            Registered::Refused(_) => None,
        })
    }
}

/// An order with what depends on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOrder {
    pub id: String,
    pub view: View,
    /// When the review that stands began.
    pub review_since: Option<Timestamp>,
    /// Raised by one with every change of the view.
    pub version: i64,
    pub updated_at: Timestamp,
}

/// A name of an order at a PSP's account: the row that serialises all who speak of it. For the merchant's own order id,
/// PSP and account are empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReferenceKey {
    pub psp: Arc<str>,
    pub account: Arc<str>,
    pub kind: ReferenceKind,
    pub value: String,
}

impl Ord for ReferenceKey {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_shared(&self.psp, &other.psp)
            .then_with(|| compare_shared(&self.account, &other.account))
            .then_with(|| self.kind.cmp(&other.kind))
            .then_with(|| self.value.cmp(&other.value))
    }
}

impl PartialOrd for ReferenceKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a transaction has locked and read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The keys that were looked up.
    pub keys_read: BTreeSet<EventKey>,
    /// Of these, those that are stored.
    pub known: HashMap<EventKey, KnownEvent>,
    /// Every reference of the work; the order that it leads to, if that is known: if not, locked.
    pub references: BTreeMap<ReferenceKey, Option<String>>,
    /// Of these, those that lead nowhere and were written ahead of the plan, with the order that they most likely come to lead
    /// to: nobody else has seen them yet.
    pub ahead: BTreeMap<ReferenceKey, String>,
    /// Every order that a reference leads to or names, locked, if it exists.
    pub orders: HashMap<String, OrderRow>,
    /// Events parked under these references, if they may be woken: the first [`PARKED_MAX`] by key.
    pub parked: Vec<ParkedEvent>,
    /// The events of every body that was looked up.
    pub body_events: BTreeMap<BodyPlace, Vec<KeptEvent>>,
    /// All events of every order that was to be read whole, as they were received.
    pub order_events: BTreeMap<String, Vec<KeptEvent>>,
}

impl Snapshot {
    /// The last of the parked events, if there may be more behind it.
    fn parked_up_to(&self) -> Option<&EventKey> {
        self.parked.last().filter(|_| self.parked.len() >= PARKED_MAX).map(|parked| &parked.event.key)
    }
}

/// Transactions that wake for one piece of work: 100,000 events. The rest is [`Store::unwoken`].
const WAKING_MAX: usize = 200;

/// Parked events that one transaction reads. An order seldom has ten; somebody who sends thousands ahead of its
/// registration must not make a transaction of any size.
pub const PARKED_MAX: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownEvent {
    pub facts_sha256: [u8; 32],
    pub mapping_version: u32,
    /// Who told it first.
    pub source: Source,
}

impl KnownEvent {
    /// Whoever tells it.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        (self.facts_sha256, self.mapping_version) == (other.facts_sha256, other.mapping_version)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRow {
    pub registers: Registers,
    pub stored: StoredOrder,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedEvent {
    pub event: PaymentEvent,
    pub foreign_mode: bool,
    pub received_at: Timestamp,
}

/// The references of one event.
#[derive(Clone, Debug)]
pub struct Together {
    pub references: Vec<ReferenceKey>,
    /// The order that they name, if it may come into being by that.
    pub named: Option<String>,
}

/// What a transaction must look up and lock.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub keys: BTreeSet<EventKey>,
    pub references: BTreeSet<ReferenceKey>,
    /// The references that one event carries together: where one leads, the others will most likely.
    pub together: Vec<Together>,
    /// Parked events only behind this one: a transaction before read those up to it.
    pub parked_after: Option<EventKey>,
    /// Also the events parked under names that lead to an order already: what another transaction left.
    pub parked_led: bool,
    /// Bodies whose events are asked for.
    pub bodies: BTreeSet<BodyPlace>,
    /// Orders of which all events are asked for; [`ReferenceKey`]s that name them are wanted too.
    pub order_events: BTreeSet<String>,
}

impl Wanted {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { keys, references, bodies, order_events, together: _, parked_after: _, parked_led: _ } = self;
        keys.is_empty() && references.is_empty() && bodies.is_empty() && order_events.is_empty()
    }

    /// Adds what a plan asked for. Under new names parked events may wait that stand before those that were read; while the rest
    /// is woken these have their turn when a name was led ([`Rest::of`]): from the beginning again and again, the events that
    /// stay parked would hide for ever the one that leads them.
    pub fn extend(&mut self, more: Self) {
        let Self { keys, references, bodies, order_events, together: _, parked_after: _, parked_led: _ } = more;
        if !references.is_empty() && !self.parked_led {
            self.parked_after = None;
        }
        self.keys.extend(keys);
        self.references.extend(references);
        self.bodies.extend(bodies);
        self.order_events.extend(order_events);
    }

    /// For a transaction that wakes more of the events parked under these names, all of which lead to an order.
    fn to_wake(names: BTreeSet<ReferenceKey>, Rest { after }: Rest) -> Self {
        Self { references: names, parked_after: after, parked_led: true, ..Self::default() }
    }
}

/// Parked events that a transaction did not read, although they may have an order now.
#[derive(Debug)]
struct Rest {
    after: Option<EventKey>,
}

impl Rest {
    /// What is left to wake when this is written.
    fn of(plan: &Plan, snapshot: &Snapshot, wanted: &Wanted) -> Option<Self> {
        // What was just linked may lead one that was passed over.
        if wanted.parked_led && !plan.links.is_empty() {
            return Some(Self { after: None });
        }
        snapshot.parked_up_to().map(|key| Self { after: Some(key.clone()) })
    }
}

/// What [`crate::apply::plan`] decided: what to write, or what more to read first.
#[derive(Debug)]
pub enum Decision {
    Write(Box<Plan>),
    /// More was found that must be locked too. Locks are taken in sorted order, so the transaction begins again with these
    /// as well.
    ReadMore(Wanted),
}

/// What a transaction writes.
#[derive(Debug, Default)]
pub struct Plan {
    /// The time of the work.
    pub now: Timestamp,
    pub bodies: Vec<BodyWrite>,
    pub events: Vec<EventWrite>,
    pub replaced: Vec<ReplacedEvent>,
    pub woken: Vec<WokenEvent>,
    pub orders: Vec<OrderWrite>,
    /// References that no longer lead to this order.
    pub unlinks: Vec<(ReferenceKey, String)>,
    /// References that now lead to an order.
    pub links: Vec<(ReferenceKey, String)>,
    /// Names under which a parked event waits.
    pub parkings: Vec<(EventKey, ReferenceKey)>,
    pub unasked: Vec<UnaskedWrite>,
    pub checks: Vec<CheckWrite>,
    /// What payments came to, sorted by key.
    pub learned: Vec<Learned>,
    /// When the last webhook of each account came.
    pub webhooks: BTreeMap<AccountKey, Timestamp>,
    pub books: BTreeMap<BookKey, i64>,
    pub actions: Vec<ActionWrite>,
    /// Who is told of the orders' transitions.
    pub destinations: Vec<Arc<str>>,
    pub applied: Applied,
}

impl Plan {
    /// Leaves out the links that were written ahead, and takes back those that it does not make.
    fn settle_ahead(&mut self, mut ahead: BTreeMap<ReferenceKey, String>) {
        self.links.retain(|(reference, order_id)| {
            let is_written = ahead.get(reference) == Some(order_id);
            if is_written {
                ahead.remove(reference);
            }
            !is_written
        });
        self.unlinks.extend(ahead);
    }
}

/// What the shop or an operator did.
#[derive(Debug)]
pub struct ActionWrite {
    pub id: Uuid,
    pub order_id: String,
    pub kind: ActionKind,
    pub operator: String,
    pub reason: Option<String>,
    pub at: Timestamp,
    pub detail: serde_json::Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    Registered,
    Reviewed,
    Replayed,
    /// Its time was over: not by a person.
    Expired,
}

impl ActionKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Reviewed => "reviewed",
            Self::Replayed => "replayed",
            Self::Expired => "expired",
        }
    }
}

#[derive(Debug)]
pub struct BodyWrite {
    pub id: Uuid,
    pub body: Body,
}

#[derive(Debug)]
pub struct EventWrite {
    pub row: InboxRow,
    pub body_id: Option<Uuid>,
    pub outcome: Outcome,
    pub order_id: Option<String>,
    /// The version at which its order stands after it.
    pub order_version: Option<i64>,
    /// The name of the secret that proved it; `None` for an answer.
    pub secret_name: Option<Arc<str>>,
    /// When it was taken and, but for parked ones, applied.
    pub at: Timestamp,
}

#[derive(Debug)]
pub struct WokenEvent {
    pub key: EventKey,
    pub outcome: Outcome,
    pub order_id: String,
    pub order_version: i64,
    pub at: Timestamp,
}

/// A new state of an order. Written as an insert at version 1, as an update above.
#[derive(Debug)]
pub struct OrderWrite {
    pub registers: Registers,
    pub stored: StoredOrder,
    /// The version that was read; 0: the order is new.
    pub previous_version: i64,
    /// When its time is over.
    pub due_at: Option<Timestamp>,
    /// Present where the view changed.
    pub transition: Option<Transition>,
}

/// A change of an order, as it is told: the content is the committed row's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Random and stable: what downstream deduplicates by.
    pub id: Uuid,
    pub from: Option<OrderStatus>,
    /// As it was after the change.
    pub order: StoredOrder,
}

/// One visible change of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// Random and stable: what downstream deduplicates by.
    pub id: Uuid,
    pub from: Option<OrderStatus>,
    pub to: OrderStatus,
    pub at: Timestamp,
}

/// A payment that its PSP is to be asked about.
#[derive(Debug)]
pub struct CheckWrite {
    pub account: AccountKey,
    pub payment_id: String,
    pub reason: CheckReason,
}

/// Why a look is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckReason {
    /// It is heard of, and has no order yet. Nothing, if a look is planned already.
    Unplaced { next_check_at: Timestamp },
    /// It stands otherwise than before: what was planned for it is replaced, but for a question that is still open.
    Stands { as_: Standing, next_check_at: Option<Timestamp> },
    /// Its facts are in doubt: a look that is planned for later, or that is under way, does not answer this.
    InDoubt { next_check_at: Timestamp },
}

/// A line of the books: how many events of an hour ended how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BookKey {
    pub account: AccountKey,
    /// The hour in which the event was received, as its first millisecond.
    pub hour: Timestamp,
    pub outcome: Outcome,
}

/// The terms of a lease on an account's patience.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub now: Timestamp,
    /// It ends by itself then.
    pub until: Timestamp,
    pub token: Uuid,
    /// Requests that the account's PSP is sent, by all workers together.
    pub per_second: u32,
}

/// What a lease got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeasedChecks {
    pub checks: Vec<DueCheck>,
    /// Something is due, and may not be asked before.
    pub not_before: Option<Timestamp>,
}

/// A payment whose look is due, under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueCheck {
    pub account: AccountKey,
    pub payment_id: String,
    pub lease_token: Uuid,
    /// The hint that this look answers.
    pub hint_seq: i64,
    /// It is the first to answer it.
    pub is_hinted: bool,
    /// Looks so far.
    pub looks: i32,
    /// `None`: no order is known, or a newer version gave it a standing that this one does not know.
    pub standing: Option<Standing>,
    /// Since when it stands so; before version 3 of the schema, unknown.
    pub standing_since: Option<Timestamp>,
    pub first_seen_at: Option<Timestamp>,
    pub missing_since: Option<Timestamp>,
    pub unanswered_since: Option<Timestamp>,
    /// When the webhook came that had it asked; `None`: none did, or a look has answered it.
    pub hinted_at: Option<Timestamp>,
}

/// What became of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    pub at: Timestamp,
    /// What the timeline says of it: a closed set.
    pub result: &'static str,
    pub said: Said,
    /// If it stands as it did when the look began.
    pub next_check_at: Option<Timestamp>,
    /// Its facts contradict each other: not later than this, however it stands.
    pub in_doubt_until: Option<Timestamp>,
    pub ended: Ended,
}

/// What a look heard of the payment's money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Some is captured or promised.
    Money,
    /// None is.
    NoMoney,
    /// The PSP does not know the payment.
    Unknown,
    /// There was no answer.
    Nothing,
}

/// What is due at an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub account: AccountKey,
    pub payments: u32,
    /// `None`: nothing is due.
    pub since: Option<Timestamp>,
    pub manners: Manners,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Balance {
    /// Events by PSP, account and outcome, from the books.
    pub events: Vec<EventTotal>,
    /// Orders by status.
    pub orders: Vec<OrderTotal>,
    /// The books' own lines, if they were asked for; read after the totals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<Vec<HourTotal>>,
}

/// How many events that were received within an hour ended how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct HourTotal {
    /// The hour's beginning.
    #[schema(value_type = String, format = DateTime)]
    pub hour: Timestamp,
    pub psp: String,
    pub account: String,
    pub outcome: String,
    pub count: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct EventTotal {
    pub psp: String,
    pub account: String,
    pub outcome: String,
    pub count: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OrderTotal {
    pub status: OrderStatus,
    pub count: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("[store] url: {0:?} is neither postgres:// nor sqlite:")]
    Scheme(String),
    #[error("[store] url: {0}")]
    Url(String),
    #[error("[store] url: the folder {0} cannot be made")]
    Folder(PathBuf, #[source] std::io::Error),
    #[error("[store] url: the database cannot be opened")]
    Open(#[from] sqlx::Error),
    #[error("another process has been bringing the database to its schema for {0:?}")]
    Migrating(Duration),
    #[error("the database cannot be brought to this version's schema")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("[store] url: this is no database of Paybell's")]
    Foreign,
    #[error("the database's schema is version {found}, this program's is {wanted}: {}", if found < wanted { "a worker of this version would bring it up to date" } else { "use the program of that version" })]
    Schema { found: i64, wanted: i64 },
}

impl ConnectError {
    /// Waiting will not help: the setting is wrong, or the embedded database's file is.
    #[must_use]
    pub fn is_permanent(&self, url: &str) -> bool {
        url.starts_with("sqlite:") || self.is_of_setting()
    }

    /// Only another setting helps.
    #[must_use]
    pub const fn is_of_setting(&self) -> bool {
        matches!(self, Self::Scheme(_) | Self::Url(_) | Self::Foreign | Self::Schema { .. })
    }
}

/// Chooses the backend by the URL's scheme, and brings its schema up to date, under a lock.
///
/// # Errors
/// The URL is of no backend, the database is away, or its schema cannot be migrated.
#[must_use]
pub fn connect(url: &str) -> BoxFuture<'_, Result<Arc<dyn Store>, ConnectError>> {
    // Boxed, so that the compiler sees here, where it can, that what awaits it may be sent to another thread.
    Box::pin(async move {
        let scheme = url.split(':').next().unwrap_or_default();
        let store: Arc<dyn Store> = match scheme {
            "postgres" | "postgresql" => Arc::new(postgres::Postgres::connect(url).await?),
            "sqlite" => Arc::new(sqlite::Sqlite::open(url).await?),
            _ => return Err(ConnectError::Scheme(scheme.to_owned())),
        };
        Ok(store)
    })
}

/// Opens a database as it is, to read it: nothing is created, migrated or written.
///
/// # Errors
/// The URL is of no backend, the database is away, or its schema is of another version than this program.
#[must_use]
pub fn open_to_read(url: &str) -> BoxFuture<'_, Result<Arc<dyn Store>, ConnectError>> {
    Box::pin(async move {
        let scheme = url.split(':').next().unwrap_or_default();
        let store: Arc<dyn Store> = match scheme {
            "postgres" | "postgresql" => Arc::new(postgres::Postgres::open_to_read(url).await?),
            "sqlite" => Arc::new(sqlite::Sqlite::open_to_read(url).await?),
            _ => return Err(ConnectError::Scheme(scheme.to_owned())),
        };
        Ok(store)
    })
}

/// A step of the schema: version, name, SQL. A new one is a new file and one line; what was released is never edited.
type Step = (i64, &'static str, &'static str);

const POSTGRES_STEPS: [Step; 7] = [
    (1, "inbox and orders", include_str!("../../migrations/postgres/0001_inbox_and_orders.sql")),
    (2, "telling and asking why", include_str!("../../migrations/postgres/0002_telling_and_asking_why.sql")),
    (3, "asking", include_str!("../../migrations/postgres/0003_asking.sql")),
    (4, "sweeping", include_str!("../../migrations/postgres/0004_sweeping.sql")),
    (5, "learning", include_str!("../../migrations/postgres/0005_learning.sql")),
    (6, "endpoints", include_str!("../../migrations/postgres/0006_endpoints.sql")),
    (7, "dead letters", include_str!("../../migrations/postgres/0007_dead_letters.sql")),
];
const SQLITE_STEPS: [Step; 7] = [
    (1, "inbox and orders", include_str!("../../migrations/sqlite/0001_inbox_and_orders.sql")),
    (2, "telling and asking why", include_str!("../../migrations/sqlite/0002_telling_and_asking_why.sql")),
    (3, "asking", include_str!("../../migrations/sqlite/0003_asking.sql")),
    (4, "sweeping", include_str!("../../migrations/sqlite/0004_sweeping.sql")),
    (5, "learning", include_str!("../../migrations/sqlite/0005_learning.sql")),
    (6, "endpoints", include_str!("../../migrations/sqlite/0006_endpoints.sql")),
    (7, "dead letters", include_str!("../../migrations/sqlite/0007_dead_letters.sql")),
];

/// The last step that was taken, `None` if none ever was, must be this program's last one.
fn check_schema(found: Option<i64>, steps: &[Step]) -> Result<(), ConnectError> {
    let wanted = steps.iter().map(|(version, _, _)| *version).max().unwrap_or_default();
    match found {
        None => Err(ConnectError::Foreign),
        Some(found) if found != wanted => Err(ConnectError::Schema { found, wanted }),
        Some(_) => Ok(()),
    }
}

/// Where the migrator notes the steps that were taken.
const LAST_STEP: &str = "SELECT max(version) FROM _sqlx_migrations WHERE success";

/// Ignores steps that a newer version has taken: in a rolling deploy this version works on that schema (design decision 13).
fn migrator(steps: &[Step]) -> Migrator {
    let migrations = steps.iter().map(|(version, name, sql)| {
        Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_ignore_missing(true);
    migrator
}
