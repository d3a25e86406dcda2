//! The worker's parts in this process: what a step needs, deliveries as the ingress makes them, and parts that fail when
//! told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use paybell::simulator::{self, Dialect as _, Settings, Webhook};
use paybell_shared::clock::{Clock, SystemClock, Timestamp};
use paybell_shared::config::Config;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::{EventKey, PaymentEvent};
use paybell_shared::money::{Currency, Money};
use paybell_shared::psp::stripe::Stripe;
use paybell_shared::psp::{
    Account, Answer, AskError, Asked, Hinted, Keys, LateChanges, Profile, Psp, ReadError, Rejection, SettingError,
    TranslateError, Verified, WebhookRequest, Window,
};
use paybell_shared::queue::{Delivery, Message, Tag};
use paybell_worker::consume::Context;
use paybell_worker::ids::Ids;
use paybell_worker::manners::{Ended, Leave, News};
use paybell_worker::order::{AccountKey, OrderStatus};
use paybell_worker::schedule::Habits;
use paybell_worker::store::{
    AccountState, Applied, AskedFirst, Attended, AuditReport, Backlog, Balance, BodyPlace, DeadLetter, Due, DueCheck, DueOrder,
    DuePage, Expected, HourTotal, InboxEntry, Kept, Lease, LeasedChecks, LeasedPage, LeasedWatch, LetterDecision, LetterHead,
    Looked, Moment, Notice, NoticeKey, NoticeOutcome, Place, Policy, Position, Positioned, ReadPage, Reason, ReferenceKey,
    Registered, Registration, Scope, Selection, Store, StoreError, StoredBody, StoredOrder, Unsettled, UnsettledPlace, WatchKey,
    WatchKind, WatchLease, WatchState, Work,
};
use paybell_worker::sweep::course::Course;
use paybell_worker::{seen, store};
use uuid::Uuid;

use crate::shop::STRIPE_SECRET;

/// A configuration from its text.
///
/// # Panics
/// It is wrong.
#[must_use]
pub fn config(text: &str) -> Config {
    Config::parse(text, "a test's", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"))
}

/// What a step needs, with a memory of its own and all accounts of the configuration.
///
/// # Panics
/// The store does not answer.
pub async fn context(store: Arc<dyn store::Store>, clock: Arc<dyn Clock>, accounts: Vec<Arc<Account>>) -> Context {
    let epoch = store.epoch().await.expect("the store answers");
    let accounts: HashMap<AccountKey, Arc<Account>> = accounts.into_iter().map(|account| (key_of(&account), account)).collect();
    let habits =
        |account: &Account| Habits { usual_delay: account.psp.profile().usual_delay, lists_late_changes: LateChanges::Unlisted };
    let asking = accounts.iter().map(|(key, account)| (key.clone(), habits(account))).collect();
    Context {
        store,
        seen: seen::connect("memory:").expect("a memory needs nothing"),
        accounts,
        clock,
        ids: Ids::random(),
        epoch,
        policy: Policy { events_create_orders: true, asking, ..Policy::default() },
    }
}

#[must_use]
pub fn key_of(account: &Account) -> AccountKey {
    AccountKey { psp: Arc::clone(&account.psp_id), account: Arc::clone(&account.name) }
}

/// The accounts of a configuration.
#[must_use]
pub fn accounts(text: &str) -> Vec<Arc<Account>> {
    config(text).accounts.into_iter().map(|configured| configured.account).collect()
}

/// Registers an order over an amount in EUR, paid by this payment.
///
/// # Panics
/// It is refused.
pub async fn register(context: &Context, account: &Account, order_id: &str, payment_id: &str, amount: i64) -> StoredOrder {
    put(context, registration(account, order_id, Some(payment_id), amount)).await
}

/// Registers an order over an amount, paid by this payment.
///
/// # Panics
/// It is refused.
pub async fn register_over(
    context: &Context,
    account: &Account,
    order_id: &str,
    payment_id: &str,
    expected: Money,
) -> StoredOrder {
    put(context, Registration { expected, ..registration(account, order_id, Some(payment_id), 0) }).await
}

/// What the shop says of an order over an amount in EUR, which has no end.
///
/// # Panics
/// Never.
#[must_use]
pub fn registration(account: &Account, order_id: &str, payment_id: Option<&str>, amount: i64) -> Registration {
    Registration {
        order_id: order_id.to_owned(),
        account: key_of(account),
        payment_id: payment_id.map(str::to_owned),
        expected: Money::new(amount, Currency::parse("EUR").expect("a currency")),
        expires_at: None,
        operator: "test".to_owned(),
    }
}

/// Registers an order.
///
/// # Panics
/// It is refused.
pub async fn put(context: &Context, registration: Registration) -> StoredOrder {
    let order_id = registration.order_id.clone();
    let registrations = [registration];
    let work = Work { registrations: &registrations, ..context.work() };
    match context.store.apply(&work).await.expect("the store answers").registrations.remove(0) {
        Registered::Created(order) | Registered::Updated(order) => *order,
        Registered::Refused(conflict) => panic!("{order_id} is refused: {conflict}"),
    }
}

/// What the ingress puts on the queue for a webhook of Stripe's, signed now.
///
/// # Panics
/// It is not accepted.
#[must_use]
pub fn message(account: &Account, webhook: &Webhook) -> Message {
    message_at(account, webhook, SystemClock.now())
}

/// The same, signed and taken at another time.
///
/// # Panics
/// It is not accepted.
#[must_use]
pub fn message_at(account: &Account, webhook: &Webhook, now: Timestamp) -> Message {
    let mut headers = HeaderMap::new();
    let settings = Settings { secret: STRIPE_SECRET.to_owned(), ..Settings::default() };
    let call = simulator::stripe::Stripe.sign(&settings, webhook, now.seconds()).expect("a Stripe secret signs");
    for (name, value) in call.headers {
        headers.insert(name, HeaderValue::try_from(value).expect("a header"));
    }
    let request = WebhookRequest { headers: &headers, body: &webhook.body, token: None, query: "", certificate: None };
    let verified = account.psp.verify(&request, &account.keys, now).expect("what is signed is accepted");
    Envelope::new(account, verified, now, webhook.body.clone(), None).into()
}

/// The delivery of a message for the first time.
#[must_use]
pub fn delivery(number: u64, message: Message) -> Delivery {
    Delivery { tag: Tag { generation: 1, number }, attempt: 1, redelivered: false, message }
}

/// Tells which work a store fails, and how.
pub type Fault = Box<dyn Fn(&Work<'_>) -> Option<StoreError> + Send + Sync>;

/// A store that fails the work that it is told to, and does the rest.
pub struct FailingStore {
    store: Arc<dyn Store>,
    fault: Fault,
    works: AtomicUsize,
}

impl FailingStore {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, fault: Fault) -> Arc<Self> {
        Arc::new(Self { store, fault, works: AtomicUsize::new(0) })
    }

    /// How many pieces of work it was given, failed ones too.
    pub fn works(&self) -> usize {
        self.works.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Store for FailingStore {
    async fn epoch(&self) -> Result<Uuid, StoreError> {
        self.store.epoch().await
    }

    async fn apply(&self, work: &Work<'_>) -> Result<Applied, StoreError> {
        self.works.fetch_add(1, Ordering::SeqCst);
        match (self.fault)(work) {
            Some(error) => Err(error),
            None => self.store.apply(work).await,
        }
    }

    async fn order(&self, id: &str) -> Result<Option<StoredOrder>, StoreError> {
        self.store.order(id).await
    }

    async fn orders(&self, status: Option<OrderStatus>, after: Option<&str>, limit: u32) -> Result<Vec<StoredOrder>, StoreError> {
        self.store.orders(status, after, limit).await
    }

    async fn balance(&self) -> Result<Balance, StoreError> {
        self.store.balance().await
    }

    async fn hours(&self, since: Timestamp, until: Timestamp) -> Result<Vec<HourTotal>, StoreError> {
        self.store.hours(since, until).await
    }

    async fn ask_about(&self, now: Timestamp, payments: &BTreeSet<(AccountKey, String)>) -> Result<(), StoreError> {
        self.store.ask_about(now, payments).await
    }

    async fn hinted(&self, now: Timestamp, hints: &BTreeMap<(AccountKey, String), Timestamp>) -> Result<(), StoreError> {
        self.store.hinted(now, hints).await
    }

    async fn lease_checks(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedChecks, StoreError> {
        self.store.lease_checks(account, lease).await
    }

    async fn finish_check(&self, check: &DueCheck, looked: &Looked) -> Result<Option<News>, StoreError> {
        self.store.finish_check(check, looked).await
    }

    async fn begin_asking(&self, account: &AccountKey, lease: &Lease, wanted: u32) -> Result<Leave, StoreError> {
        self.store.begin_asking(account, lease, wanted).await
    }

    async fn end_asking(
        &self,
        account: &AccountKey,
        now: Timestamp,
        token: Uuid,
        ended: Ended,
    ) -> Result<Option<News>, StoreError> {
        self.store.end_asking(account, now, token, ended).await
    }

    async fn due(&self, now: Timestamp, accounts: &[&AccountKey]) -> Result<Vec<Due>, StoreError> {
        self.store.due(now, accounts).await
    }

    async fn lease_orders(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueOrder>, StoreError> {
        self.store.lease_orders(now, until, limit).await
    }

    async fn attend_orders(&self, attended: &[Attended]) -> Result<(), StoreError> {
        self.store.attend_orders(attended).await
    }

    async fn learned(&self, since: Timestamp, until: Timestamp) -> Result<Vec<(AccountKey, u64)>, StoreError> {
        self.store.learned(since, until).await
    }

    async fn asked_first(
        &self,
        since: Timestamp,
        until: Timestamp,
        now: Timestamp,
        accounts: &[(AccountKey, Duration)],
    ) -> Result<Vec<AskedFirst>, StoreError> {
        self.store.asked_first(since, until, now, accounts).await
    }

    async fn account_states(&self) -> Result<Vec<AccountState>, StoreError> {
        self.store.account_states().await
    }

    async fn expected(&self, account: &AccountKey, since: Timestamp, until: Timestamp) -> Result<Expected, StoreError> {
        self.store.expected(account, since, until).await
    }

    async fn unsettled(
        &self,
        reason: Reason,
        accounts: &[AccountKey],
        before: Timestamp,
        after: Option<&UnsettledPlace>,
        limit: u32,
    ) -> Result<Vec<Unsettled>, StoreError> {
        self.store.unsettled(reason, accounts, before, after, limit).await
    }

    async fn count_unsettled(&self, reason: Reason, accounts: &[AccountKey], before: Timestamp) -> Result<u32, StoreError> {
        self.store.count_unsettled(reason, accounts, before).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.store.bury(letters).await
    }

    async fn dead_letters(&self, after: Option<(Timestamp, Uuid)>, limit: u32) -> Result<Vec<LetterHead>, StoreError> {
        self.store.dead_letters(after, limit).await
    }

    async fn letter_head(&self, id: Uuid) -> Result<Option<LetterHead>, StoreError> {
        self.store.letter_head(id).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.store.dead_letter(id).await
    }

    async fn decide_letter(&self, id: Uuid, decision: &LetterDecision) -> Result<bool, StoreError> {
        self.store.decide_letter(id, decision).await
    }

    async fn count_letters(&self) -> Result<u32, StoreError> {
        self.store.count_letters().await
    }

    async fn lease_watch(&self, key: &WatchKey, lease: &WatchLease) -> Result<Option<LeasedWatch>, StoreError> {
        self.store.lease_watch(key, lease).await
    }

    async fn finish_watch(&self, key: &WatchKey, token: Uuid, next_at: Timestamp, state: &str) -> Result<bool, StoreError> {
        self.store.finish_watch(key, token, next_at, state).await
    }

    async fn watch_states(&self, kind: WatchKind) -> Result<Vec<WatchState>, StoreError> {
        self.store.watch_states(kind).await
    }

    async fn lease_page(&self, account: &AccountKey, lease: &Lease) -> Result<LeasedPage, StoreError> {
        self.store.lease_page(account, lease).await
    }

    async fn finish_page(&self, page: &DuePage, read: &ReadPage) -> Result<Option<News>, StoreError> {
        self.store.finish_page(page, read).await
    }

    async fn course(&self, account: &AccountKey) -> Result<Option<Course>, StoreError> {
        self.store.course(account).await
    }

    async fn told_within(&self, account: &AccountKey, window: Window) -> Result<bool, StoreError> {
        self.store.told_within(account, window).await
    }

    async fn unanswered(&self, account: &AccountKey, hints: &[Hinted]) -> Result<BTreeSet<String>, StoreError> {
        self.store.unanswered(account, hints).await
    }

    async fn lease_notices(
        &self,
        destination: &str,
        now: Timestamp,
        lease: Duration,
        token: Uuid,
        limit: u32,
    ) -> Result<Vec<Notice>, StoreError> {
        self.store.lease_notices(destination, now, lease, token, limit).await
    }

    async fn finish_notices(&self, now: Timestamp, token: Uuid, ended: &[(NoticeKey, NoticeOutcome)]) -> Result<(), StoreError> {
        self.store.finish_notices(now, token, ended).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.store.backlog().await
    }

    async fn position(&self) -> Result<Position, StoreError> {
        self.store.position().await
    }

    async fn changes_after(&self, order_id: Option<&str>, after: Position, limit: u32) -> Result<Vec<Positioned>, StoreError> {
        self.store.changes_after(order_id, after, limit).await
    }

    async fn latest_change(&self, order_id: &str) -> Result<Option<Positioned>, StoreError> {
        self.store.latest_change(order_id).await
    }

    async fn timeline(&self, order_id: &str, after: Option<&Place>, limit: u32) -> Result<Option<Vec<Moment>>, StoreError> {
        self.store.timeline(order_id, after, limit).await
    }

    async fn event(&self, key: &EventKey) -> Result<Option<InboxEntry>, StoreError> {
        self.store.event(key).await
    }

    async fn parked(
        &self,
        before: Timestamp,
        after: Option<&(Timestamp, EventKey)>,
        limit: u32,
    ) -> Result<Vec<InboxEntry>, StoreError> {
        self.store.parked(before, after, limit).await
    }

    async fn overdue(&self, before: Timestamp) -> Result<u32, StoreError> {
        self.store.overdue(before).await
    }

    async fn unwoken(&self, after: Option<&ReferenceKey>, limit: u32) -> Result<Vec<ReferenceKey>, StoreError> {
        self.store.unwoken(after, limit).await
    }

    async fn audit(&self, scope: Scope<'_>, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<AuditReport, StoreError> {
        self.store.audit(scope, progress).await
    }

    async fn bodies(&self, selection: &Selection, after: Option<&BodyPlace>, limit: u32) -> Result<Vec<StoredBody>, StoreError> {
        self.store.bodies(selection, after, limit).await
    }

    async fn retain(&self, now: Timestamp, keep: Duration) -> Result<Kept, StoreError> {
        self.store.retain(now, keep).await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// An adapter with the fault that none may have (invariant I7): what it should read, it panics on.
pub struct Panicking;

impl Psp for Panicking {
    fn id(&self) -> &'static str {
        "panicking"
    }

    fn profile(&self) -> &'static Profile {
        Stripe.profile()
    }

    fn check(&self, _: &Account) -> Result<(), SettingError> {
        Ok(())
    }

    fn verify(&self, _: &WebhookRequest<'_>, _: &Keys, _: Timestamp) -> Result<Verified, Rejection> {
        Err(Rejection::EmptyBody)
    }

    fn translate(&self, _: &Envelope, _: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        panic!("an adapter panics, as a test wants it to")
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        Stripe.status_request(payment_id, cursor, account)
    }

    fn read_status(&self, _: &Asked<'_>, _: &Response<Bytes>, _: &Account) -> Result<Answer, ReadError> {
        panic!("an adapter panics, as a test wants it to")
    }
}
