//! What every [`Store`] must do. A behaviour is defined here, or it is not defined.
//!
//! `store_suite!` makes a test of each function for one backend. What the port does not show is read beside it, by SQL that
//! both backends understand.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{
    EventKey, Fact, FactVersion, Failure, PaymentEvent, PaymentFact, PaymentState, Reference, ReferenceKind, RefundState, Source,
};
use paybell_shared::money::{Currency, Money};
use paybell_shared::psp::LateChanges;
use paybell_worker::ids::Ids;
use paybell_worker::inbox::{Arrival, Body, Content, InboxRow, Outcome};
use paybell_worker::order::{AccountKey, OrderStatus, ReviewReason, Rules, Verdict};
use paybell_worker::schedule::Habits;
use paybell_worker::store::{
    Applied, Backlog, Expiry, Notice, NoticeKey, NoticeOutcome, Policy, Registered, Registration, RegistrationConflict, Review,
    Reviewed, Store, StoreError, StoredOrder, Work, connect,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

/// Expands to one test for each behaviour. `$bench` names an `async fn() -> Bench` of an empty database.
#[macro_export]
macro_rules! store_suite {
    ($bench:path) => {
        $crate::store_suite!($bench:
            an_event_is_applied_once,
            the_same_id_with_other_facts_is_kept_beside,
            a_parked_event_wakes_when_its_order_is_registered,
            a_repeated_registration_changes_nothing,
            a_registration_in_conflict_is_refused,
            an_event_that_names_its_order_creates_it,
            an_event_that_names_its_order_waits_where_orders_must_be_registered,
            a_refund_finds_its_order_by_its_payment_whichever_comes_first,
            a_chain_of_references_wakes_to_its_end,
            more_parked_events_than_a_transaction_reads_wake_at_once,
            a_rest_of_parked_events_leads_one_another,
            what_a_crash_left_parked_is_found_and_woken,
            references_to_two_orders_are_quarantined,
            what_only_a_quarantined_event_names_leads_nowhere,
            the_books_equal_a_recount,
            an_order_at_version_n_has_n_transitions,
            the_epoch_is_the_databases,
            orders_come_in_pages,
            a_body_keeps_its_exact_bytes,
            old_bodies_go_and_keys_stay,
            a_nul_inside_facts_is_kept,
            what_is_told_is_what_was_committed,
            an_orders_changes_are_told_one_after_the_other,
            each_destination_is_told_apart,
            a_failed_attempt_holds_its_order_back,
            giving_up_lets_the_next_change_go,
            a_lapsed_lease_is_the_next_ones,
            many_changes_of_one_order_hold_no_other_back,
            what_cannot_be_read_holds_no_other_back,
            what_waits_is_counted,
            many_relays_tell_each_change_once_in_order,
            a_review_is_decided_on_what_was_seen,
            more_than_expected_is_paid_where_the_account_allows_it,
            one_key_met_by_many_at_once_is_written_once,
            a_big_batch_is_one_transaction,
            many_workers_agree_with_one,
            a_call_given_up_does_all_or_nothing,
            many_start_at_once
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::store::$behaviour(&bench).await;
                bench.check_invariants().await;
                bench.store.close().await;
            }
        )+
    };
}

/// A backend under test on a database of its own, and that database.
pub struct Bench {
    pub store: Arc<dyn Store>,
    pub url: String,
    pub database: Database,
    pub ids: Ids,
    policy: Policy,
    /// Goes with the bench.
    _folder: Option<TemporaryFolder>,
}

/// The database beside the port.
pub enum Database {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// When a payment's first look is due after it was first seen.
pub const FIRST_LOOK: Duration = Duration::from_mins(1);
const LEASE: Duration = Duration::from_secs(30);
/// No list shows what becomes of a settled payment.
pub const HABITS: Habits = Habits { usual_delay: FIRST_LOOK, lists_late_changes: LateChanges::Unlisted };

/// 2026-09-21T14:13:20.123Z.
pub const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_123);

impl Bench {
    /// Connects, which creates the schema.
    ///
    /// # Panics
    /// When the database cannot be used.
    pub async fn new(url: String) -> Self {
        let store = connect(&url).await.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        let database = if url.starts_with("sqlite:") {
            Database::Sqlite(SqlitePool::connect(&url).await.unwrap())
        } else {
            Database::Postgres(PgPool::connect(&url).await.unwrap())
        };
        let policy = Policy { asking: HashMap::from([(account(), HABITS)]), ..Policy::default() };
        Self { store, url, database, ids: Ids::seeded(7), policy, _folder: None }
    }

    /// An `SQLite` database in a folder that goes with the bench. The folder does not exist: the store makes it.
    ///
    /// # Panics
    /// When the file cannot be used.
    pub async fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(format!("paybell-store-{:016x}", rand::random::<u64>()));
        let url = format!("sqlite:{}", folder.join("a folder").join("paybell.db").display());
        let bench = Self::new(url).await;
        Self { _folder: Some(TemporaryFolder(folder)), ..bench }
    }

    /// One transaction at [`NOW`].
    ///
    /// # Errors
    /// The store's.
    pub async fn try_apply(
        &self,
        arrivals: &[Arrival],
        registrations: &[Registration],
        events_create_orders: bool,
    ) -> Result<Applied, StoreError> {
        let policy = Policy { events_create_orders, ..self.policy.clone() };
        self.store.apply(&Work { arrivals, registrations, ..Work::new(&policy, &self.ids, NOW) }).await
    }

    /// Events under `registration = "optional"`: the outcome of each, by id, in the order of the ids.
    ///
    /// # Panics
    /// On any error of the store.
    pub async fn apply(&self, events: &[PaymentEvent]) -> Vec<(String, Option<Outcome>)> {
        outcomes(self.try_apply(&arrivals(events), &[], true).await.unwrap())
    }

    /// The same at another time.
    ///
    /// # Panics
    /// On any error of the store.
    pub async fn apply_at(&self, now: Timestamp, events: &[PaymentEvent]) {
        let policy = Policy { events_create_orders: true, ..self.policy.clone() };
        self.store.apply(&Work { arrivals: &arrivals(events), ..Work::new(&policy, &self.ids, now) }).await.unwrap();
    }

    /// One transaction, under `registration = "optional"`.
    ///
    /// # Panics
    /// On any error of the store.
    pub async fn apply_arrivals_at(&self, now: Timestamp, arrivals: &[Arrival]) {
        let policy = Policy { events_create_orders: true, ..self.policy.clone() };
        self.store.apply(&Work { arrivals, ..Work::new(&policy, &self.ids, now) }).await.unwrap();
    }

    /// The shop registers an order, then.
    ///
    /// # Panics
    /// On any error of the store.
    pub async fn register_at(&self, now: Timestamp, registration: Registration) {
        let work = Work::new(&self.policy, &self.ids, now);
        self.store.apply(&Work { registrations: &[registration], ..work }).await.unwrap();
    }

    /// Orders are found expired, then.
    ///
    /// # Panics
    /// On any error of the store.
    pub async fn expire_at(&self, now: Timestamp, expiries: &[Expiry]) -> Vec<String> {
        let work = Work::new(&self.policy, &self.ids, now);
        self.store.apply(&Work { expiries, ..work }).await.unwrap().expired
    }

    #[must_use]
    pub const fn is_postgres(&self) -> bool {
        matches!(self.database, Database::Postgres(_))
    }

    /// # Panics
    /// On any error of the store.
    pub async fn register(&self, registration: Registration) -> Registered {
        self.try_apply(&[], &[registration], true).await.unwrap().registrations.remove(0)
    }

    async fn review(&self, order_id: &str, verdict: Verdict) -> Reviewed {
        let (reason, operator) = ("as they said".to_owned(), "night shift".to_owned());
        let reviews = [Review { order_id: order_id.to_owned(), verdict, reason, operator }];
        let work = Work { reviews: &reviews, ..Work::new(&self.policy, &self.ids, NOW) };
        self.store.apply(&work).await.unwrap().reviews.remove(0)
    }

    /// # Panics
    /// There is none.
    pub async fn order(&self, id: &str) -> StoredOrder {
        self.store.order(id).await.unwrap().unwrap_or_else(|| panic!("there is no order {id}"))
    }

    async fn status(&self, id: &str) -> OrderStatus {
        self.order(id).await.view.status
    }

    /// The number that a statement of ours answers.
    ///
    /// # Panics
    /// When it answers something else.
    pub async fn count(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.database {
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
        }
    }

    /// The texts that a statement of ours answers.
    ///
    /// # Panics
    /// When it answers something else.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.database {
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
        }
    }

    /// All rows of a table, each as one text.
    ///
    /// # Panics
    /// There is no such table.
    pub async fn rows(&self, table: &str) -> Vec<String> {
        if let Database::Postgres(_) = &self.database {
            return self.texts(&format!("SELECT CAST(t AS text) FROM {table} t ORDER BY 1")).await;
        }
        let columns = self.texts(&format!("SELECT 'quote(' || name || ')' FROM pragma_table_info('{table}')")).await;
        self.texts(&format!("SELECT {} FROM {table} ORDER BY 1", columns.join(" || ' ' || "))).await
    }

    async fn bytes(&self, sql: &str) -> Vec<u8> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.database {
            Database::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
        }
    }

    /// # Panics
    /// When the statement fails.
    pub async fn execute(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &self.database {
            Database::Postgres(pool) => drop(sql.execute(pool).await.unwrap()),
            Database::Sqlite(pool) => drop(sql.execute(pool).await.unwrap()),
        }
    }

    /// The registers of every order, by id.
    ///
    /// # Panics
    /// When they cannot be read.
    pub async fn registers(&self) -> BTreeMap<String, serde_json::Value> {
        let ids = self.texts("SELECT id FROM orders ORDER BY id").await;
        let registers = self.texts("SELECT CAST(registers AS text) FROM orders ORDER BY id").await;
        ids.into_iter().zip(registers.iter().map(|text| serde_json::from_str(text).unwrap())).collect()
    }

    /// What holds after whatever happened (invariant I11).
    ///
    /// # Panics
    /// When it does not.
    pub async fn check_invariants(&self) {
        let recount: BTreeMap<String, i64> = self.recount().await;
        let balance = self.store.balance().await.unwrap();
        let books = balance.events.iter().map(|total| (total.outcome.clone(), total.count)).collect();
        assert_eq!(recount, books, "the books do not equal a recount");
        let none = [
            (
                "an order has another number of transitions than its version",
                "SELECT count(*) FROM orders o WHERE version <> (SELECT count(*) FROM transitions t WHERE t.order_id = o.id)",
            ),
            (
                "an order's last transition does not show its view",
                "SELECT count(*) FROM orders o JOIN transitions t ON t.order_id = o.id AND t.version = o.version
                 WHERE CAST(t.view AS text) <> CAST(o.view AS text) OR t.to_status <> o.status",
            ),
            (
                "an applied event has no order, or another event has one",
                "SELECT count(*) FROM events e LEFT JOIN orders o ON o.id = e.order_id
                 WHERE (e.outcome IN ('applied', 'superseded')) <> (o.id IS NOT NULL)",
            ),
            (
                "an event waits that is not parked",
                "SELECT count(*) FROM parkings p JOIN events e
                 ON e.psp = p.psp AND e.account = p.account AND e.event_id = p.event_id WHERE e.outcome <> 'parked'",
            ),
            (
                "a parked event waits under no name",
                "SELECT count(*) FROM events e WHERE outcome = 'parked' AND facts IS NOT NULL AND NOT EXISTS (
                 SELECT 1 FROM parkings p WHERE p.psp = e.psp AND p.account = e.account AND p.event_id = e.event_id)",
            ),
            (
                "a parked event waits under a name that leads to an order",
                "SELECT count(*) FROM parkings p JOIN refs r ON r.psp = p.ref_psp AND r.account = p.ref_account
                 AND r.kind = p.ref_kind AND r.value = p.ref_value WHERE r.order_id IS NOT NULL",
            ),
            (
                "a body has no event",
                "SELECT count(*) FROM bodies b WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.body_id = b.id)",
            ),
        ];
        for (problem, sql) in none {
            assert_eq!(self.count(sql).await, 0, "{problem}");
        }
    }

    async fn recount(&self) -> BTreeMap<String, i64> {
        let mut recount = BTreeMap::new();
        for outcome in Outcome::ALL.map(Outcome::as_str) {
            let count = self.count(&format!("SELECT count(*) FROM events WHERE outcome = '{outcome}'")).await;
            if count > 0 {
                recount.insert(outcome.to_owned(), count);
            }
        }
        recount
    }
}

/// Whoever calls may be cancelled at any await: what it had begun is undone, and the next to get its connection meets
/// nothing of it.
pub async fn a_call_given_up_does_all_or_nothing(bench: &Bench) {
    const POLLS_MAX: usize = 200;
    let mut finished = false;
    for polls in 0..POLLS_MAX {
        let id = format!("evt_{polls}");
        let events = arrivals(&[captured(&id, &format!("pi_{polls}"), Some(&format!("order-{polls}")), 4999)]);
        finished = poll_at_most(polls, bench.try_apply(&events, &[], true)).await.is_some();
        bench.check_invariants().await;
        let known = bench.count(&format!("SELECT count(*) FROM events WHERE event_id = '{id}'")).await;
        let outcome = bench.try_apply(&events, &[], true).await.unwrap().events.remove(0).1;
        // Given up at the commit, it may come through between the two questions.
        assert!(outcome.is_none() || known == 0, "{id} was there and was applied again");
        assert_eq!(bench.status(&format!("order-{polls}")).await, OrderStatus::Paid);
        if finished {
            break;
        }
    }
    assert!(finished, "never got through in {POLLS_MAX} polls");
}

/// An accepted review ends, is known by whom and why, and stands again when more money comes.
pub async fn a_review_is_decided_on_what_was_seen(bench: &Bench) {
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    bench.apply(&[captured("evt_1", "pi_1", None, 5999)]).await;
    let before = bench.order("order-1").await;
    assert_eq!((before.view.status, before.view.review), (OrderStatus::UnderReview, Some(ReviewReason::AmountMismatch)));
    assert_eq!(before.review_since, Some(NOW));

    assert_eq!(bench.review("nobody", Verdict::Accept).await, Reviewed::NoSuchOrder);
    let Reviewed::Decided(decided) = bench.review("order-1", Verdict::Accept).await else { panic!("it is under review") };
    assert_eq!((decided.view.status, decided.view.review, decided.review_since), (OrderStatus::Paid, None, None));
    assert_eq!(decided.version, before.version + 1);
    assert_eq!(bench.order("order-1").await, *decided);
    assert_eq!(bench.review("order-1", Verdict::Reject).await, Reviewed::NotUnderReview);
    let actions = "SELECT kind || ' ' || operator || ' ' || reason FROM actions WHERE kind = 'reviewed'";
    assert_eq!(bench.texts(actions).await, ["reviewed night shift as they said"]);

    bench.apply(&[captured("evt_2", "pi_1", None, 6999)]).await;
    assert_eq!(bench.status("order-1").await, OrderStatus::UnderReview, "nobody saw 69.99");
    let Reviewed::Decided(decided) = bench.review("order-1", Verdict::Reject).await else { panic!("it is under review") };
    assert_eq!(decided.view.status, OrderStatus::Canceled);
}

/// Tips: `over_capture_percent` of the account.
pub async fn more_than_expected_is_paid_where_the_account_allows_it(bench: &Bench) {
    let rules = Rules { over_capture_percent: HashMap::from([(account(), 20)]) };
    let policy = Policy { events_create_orders: true, rules, ..bench.policy.clone() };
    for (order, minor, status) in [("order-1", 5998, OrderStatus::Paid), ("order-2", 5999, OrderStatus::UnderReview)] {
        let (registrations, payment) = ([registration(order, None, 4999)], format!("pi_{order}"));
        let arrivals = arrivals(&[captured(&format!("evt_{order}"), &payment, Some(order), minor)]);
        let work = Work::new(&policy, &bench.ids, NOW);
        bench.store.apply(&Work { registrations: &registrations, arrivals: &arrivals, ..work }).await.unwrap();
        assert_eq!(bench.status(order).await, status, "{minor} of 4999");
    }
}

/// Every process migrates at its start, and a deploy starts many.
pub async fn many_start_at_once(bench: &Bench) {
    bench.execute("DROP TABLE meta").await;
    let tables = if bench.is_postgres() {
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    } else {
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    };
    for table in bench.texts(tables).await {
        bench.execute(&format!("DROP TABLE {table}")).await;
    }
    let stores = join_all((0..6).map(|_| connect(&bench.url))).await;
    let mut epochs = BTreeSet::new();
    for store in stores {
        let store = store.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        epochs.insert(store.epoch().await.unwrap());
        store.close().await;
    }
    assert_eq!(epochs.len(), 1);
}

async fn poll_at_most<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub async fn an_event_is_applied_once(bench: &Bench) {
    let event = captured("evt_1", "pi_1", Some("order-1"), 4999);
    assert_eq!(bench.apply(std::slice::from_ref(&event)).await, [("evt_1".to_owned(), Some(Outcome::Applied))]);
    let before = bench.order("order-1").await;
    assert_eq!((before.view.status, before.view.captured, before.version), (OrderStatus::Paid, 4999, 1));
    assert_eq!((before.updated_at, before.review_since), (NOW, None));

    assert_eq!(bench.apply(std::slice::from_ref(&event)).await, [("evt_1".to_owned(), None)]);
    assert_eq!(bench.order("order-1").await, before);

    // Twice in one batch, and the same facts under another key.
    let again = captured("evt_2", "pi_1", Some("order-1"), 4999);
    let outcomes = bench.apply(&[event, again.clone(), again]).await;
    assert_eq!(
        outcomes,
        [("evt_1".to_owned(), None), ("evt_2".to_owned(), None), ("evt_2".to_owned(), Some(Outcome::Superseded))]
    );
    assert_eq!(bench.order("order-1").await, before);
    assert_eq!(bench.count("SELECT count(*) FROM events").await, 2);
}

pub async fn the_same_id_with_other_facts_is_kept_beside(bench: &Bench) {
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
    let before = bench.texts("SELECT CAST(facts AS text) FROM events").await;
    let other = captured("evt_1", "pi_1", Some("order-1"), 1);
    let outcomes = bench.apply(std::slice::from_ref(&other)).await;
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].1, Some(Outcome::Quarantined));
    assert!(outcomes[0].0.starts_with("evt_1~"), "{}", outcomes[0].0);
    assert_eq!(bench.order("order-1").await.view.captured, 4999);
    assert_eq!(bench.texts("SELECT CAST(facts AS text) FROM events WHERE event_id = 'evt_1'").await, before);
    assert_eq!(bench.apply(&[other]).await, [("evt_1".to_owned(), None)], "a second time it is nothing new");
    assert_eq!(bench.texts("SELECT fingerprint FROM events WHERE outcome = 'quarantined'").await, ["stripe:same_id_other_facts"]);
}

pub async fn a_parked_event_wakes_when_its_order_is_registered(bench: &Bench) {
    let event = captured("evt_1", "pi_1", None, 4999);
    assert_eq!(bench.apply(std::slice::from_ref(&event)).await, [("evt_1".to_owned(), Some(Outcome::Parked))]);
    assert_eq!(bench.apply(&[event]).await, [("evt_1".to_owned(), None)]);
    bench.check_invariants().await;

    let applied = bench.try_apply(&[], &[registration("order-1", Some("pi_1"), 4999)], true).await.unwrap();
    assert_eq!((applied.woken, applied.transitions), (1, 1));
    let Registered::Created(order) = &applied.registrations[0] else { panic!("{:?}", applied.registrations) };
    assert_eq!(order.view.status, OrderStatus::Paid);
    assert_eq!(bench.order("order-1").await, **order);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 0);
    assert_eq!(bench.texts("SELECT order_id FROM events WHERE outcome = 'applied'").await, ["order-1"]);
}

pub async fn a_repeated_registration_changes_nothing(bench: &Bench) {
    let put = registration("order-1", Some("pi_1"), 4999);
    let Registered::Created(first) = bench.register(put.clone()).await else { panic!("it did not exist") };
    assert_eq!((first.view.status, first.version), (OrderStatus::Pending, 1));
    let Registered::Updated(second) = bench.register(put).await else { panic!("it existed") };
    assert_eq!(first, second);
    let Registered::Updated(third) = bench.register(registration("order-1", Some("pi_2"), 4999)).await else { panic!() };
    assert_eq!((third.version, third.view.payments.len()), (2, 2));
}

pub async fn a_registration_in_conflict_is_refused(bench: &Bench) {
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    let amount = bench.register(registration("order-1", Some("pi_2"), 5000)).await;
    assert_eq!(amount, Registered::Refused(RegistrationConflict::OtherAmount(eur(4999))));
    let taken = bench.register(registration("order-2", Some("pi_1"), 4999)).await;
    assert_eq!(taken, Registered::Refused(RegistrationConflict::PaymentTaken("order-1".to_owned())));
    assert_eq!(bench.store.order("order-2").await.unwrap(), None);
    assert_eq!(bench.order("order-1").await.view.payments.len(), 1);
    // Beside one that is fine, each has its own answer.
    let both = [registration("order-3", Some("pi_3"), 1), registration("order-4", Some("pi_1"), 1)];
    let answers = bench.try_apply(&[], &both, true).await.unwrap().registrations;
    assert!(matches!(&answers[..], [Registered::Created(_), Registered::Refused(_)]), "{answers:?}");
}

pub async fn an_event_that_names_its_order_creates_it(bench: &Bench) {
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
    assert_eq!(bench.order("order-1").await.view.expected, None);
    let Registered::Updated(order) = bench.register(registration("order-1", Some("pi_1"), 5000)).await else { panic!() };
    assert_eq!(order.view.status, OrderStatus::UnderReview, "judged again by what is expected");
    assert_eq!(order.review_since, Some(NOW));
    assert_eq!(bench.order("order-1").await, *order);
}

pub async fn an_event_that_names_its_order_waits_where_orders_must_be_registered(bench: &Bench) {
    let event = captured("evt_1", "pi_1", Some("order-1"), 4999);
    let applied = bench.try_apply(&arrivals(&[event]), &[], false).await.unwrap();
    assert_eq!(outcomes(applied), [("evt_1".to_owned(), Some(Outcome::Parked))]);
    assert_eq!(bench.store.order("order-1").await.unwrap(), None);
    // The order's own name leads to it; the payment need not be told.
    let applied = bench.try_apply(&[], &[registration("order-1", None, 4999)], false).await.unwrap();
    assert_eq!(applied.woken, 1);
    assert_eq!(bench.status("order-1").await, OrderStatus::Paid);
}

pub async fn a_refund_finds_its_order_by_its_payment_whichever_comes_first(bench: &Bench) {
    // First the payment.
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999)]).await;
    bench.apply(&[refund("evt_2", "pi_1", "re_1", 999)]).await;
    assert_eq!(bench.order("order-1").await.view.refunded, 999);
    // First the refund.
    assert_eq!(bench.apply(&[refund("evt_3", "pi_2", "re_2", 4999)]).await[0].1, Some(Outcome::Parked));
    bench.apply(&[captured("evt_4", "pi_2", Some("order-2"), 4999)]).await;
    assert_eq!(bench.status("order-2").await, OrderStatus::Refunded);
    // Both at once, the refund first.
    bench.apply(&[refund("evt_5", "pi_3", "re_3", 1), captured("evt_6", "pi_3", Some("order-3"), 4999)]).await;
    assert_eq!(bench.status("order-3").await, OrderStatus::PartiallyRefunded);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 0);
}

pub async fn a_chain_of_references_wakes_to_its_end(bench: &Bench) {
    // Each link is known to its neighbours only: the end is found by locking more, again and again.
    let named = |id: &str, references: &[(ReferenceKind, &str)]| {
        let mut event = refund(id, "pi_1", id, 1);
        event.references = references.iter().map(|(kind, value)| Reference::new(*kind, *value)).collect();
        event
    };
    let chain = [
        named("evt_1", &[(ReferenceKind::Dispute, "dp_1")]),
        named("evt_2", &[(ReferenceKind::Dispute, "dp_1"), (ReferenceKind::Charge, "ch_1")]),
        named("evt_3", &[(ReferenceKind::Charge, "ch_1"), (ReferenceKind::Session, "cs_1")]),
        named("evt_4", &[(ReferenceKind::Session, "cs_1"), (ReferenceKind::Payment, "pi_1")]),
    ];
    for event in chain {
        assert_eq!(bench.apply(&[event]).await[0].1, Some(Outcome::Parked));
    }
    let end = captured("evt_5", "pi_1", Some("order-1"), 4999);
    let applied = bench.try_apply(&arrivals(&[end]), &[], true).await.unwrap();
    assert_eq!(applied.woken, 4);
    assert_eq!(bench.order("order-1").await.view.refunded, 4);
    assert_eq!(bench.count("SELECT count(*) FROM refs WHERE order_id = 'order-1'").await, 5);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 0);
}

/// Whoever registers an order is told how it stands, however many events waited for it.
pub async fn more_parked_events_than_a_transaction_reads_wake_at_once(bench: &Bench) {
    const PARKED: i64 = 1_200;
    let mut events = vec![captured("evt_paid", "pi_1", None, 4999)];
    events.extend((1..PARKED).map(|n| refund(&format!("evt_{n}"), "pi_1", &format!("re_{n}"), 1)));
    for batch in events.chunks(400) {
        bench.apply(batch).await;
    }
    // Others wait for another order, before and behind these.
    bench.apply(&[captured("evt_0", "pi_0", None, 1), captured("evt_z", "pi_2", None, 1)]).await;
    let applied = bench.try_apply(&[], &[registration("order-1", Some("pi_1"), 4999)], true).await.unwrap();
    assert_eq!(i64::try_from(applied.woken).unwrap(), PARKED);
    let [Registered::Created(order)] = &applied.registrations[..] else { panic!("{applied:?}") };
    assert_eq!((order.view.status, order.view.refunded), (OrderStatus::PartiallyRefunded, PARKED - 1));
    assert_eq!(**order, bench.order("order-1").await);
    assert_eq!(applied.orders, [("order-1".to_owned(), OrderStatus::PartiallyRefunded)]);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 2);
}

/// Of 1,000 parked events only the last by key names the order, so that all others are passed over before it leads them.
pub async fn a_rest_of_parked_events_leads_one_another(bench: &Bench) {
    let mut events: Vec<_> = (0..1_000).map(|n| refund(&format!("evt_{n:04}"), "pi_1", &format!("re_{n}"), 1)).collect();
    events.push(captured("evt_z", "pi_1", Some("order-1"), 4999));
    // More that wait under the order's name, and hide the one that leads.
    events.extend((0..1_000).map(|n| state(&format!("evt_o{n:04}"), "pi_2", Some("order-1"), PaymentState::Pending)));
    for batch in events.chunks(400) {
        bench.try_apply(&arrivals(batch), &[], false).await.unwrap();
    }
    let applied = bench.try_apply(&[], &[registration("order-1", None, 4999)], false).await.unwrap();
    assert_eq!(applied.woken, 2_001);
    let view = bench.order("order-1").await.view;
    assert_eq!((view.captured, view.refunded), (4999, 1_000));
}

/// Between two of the transactions that wake, the process ends: the order exists, and some of its events still wait.
pub async fn what_a_crash_left_parked_is_found_and_woken(bench: &Bench) {
    bench.register(registration("order-1", Some("pi_0"), 4999)).await;
    for payment in ["pi_1", "pi_2", "pi_3"] {
        bench.apply(&[captured(&format!("evt_{payment}"), payment, None, 1)]).await;
    }
    assert_eq!(bench.store.unwoken(None, 10).await.unwrap(), []);
    bench.execute("UPDATE refs SET order_id = 'order-1' WHERE value IN ('pi_1', 'pi_2')").await;
    // SQLite has rows only for names that lead somewhere.
    if let Database::Sqlite(_) = &bench.database {
        let link = "INSERT INTO refs (psp, account, kind, value, order_id) VALUES ('stripe', 'default', 'payment'";
        bench.execute(&format!("{link}, 'pi_1', 'order-1'); {link}, 'pi_2', 'order-1')")).await;
    }
    let first = bench.store.unwoken(None, 1).await.unwrap();
    assert_eq!(first.iter().map(|name| &*name.value).collect::<Vec<_>>(), ["pi_1"]);
    let second = bench.store.unwoken(first.last(), 10).await.unwrap();
    assert_eq!(second.iter().map(|name| &*name.value).collect::<Vec<_>>(), ["pi_2"]);
    let names = [first, second].concat();
    let applied = bench.store.apply(&Work { wake: &names, ..Work::new(&bench.policy, &bench.ids, NOW) }).await.unwrap();
    assert_eq!(applied.woken, 2);
    assert_eq!(bench.store.unwoken(None, 10).await.unwrap(), []);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 1);
    assert_eq!(bench.order("order-1").await.view.captured, 2);
}

/// A webhook with a body, received then.
#[must_use]
pub fn received(event: &PaymentEvent, at: Timestamp) -> Arrival {
    let body = Some(Body { received_at: at, ..body(b"{}") });
    Arrival { body, rows: vec![InboxRow { received_at: at, ..row(event) }], asks: Vec::new(), heard_at: None }
}

pub async fn old_bodies_go_and_keys_stay(bench: &Bench) {
    const DAY: Duration = Duration::from_hours(24);
    const KEEP: Duration = Duration::from_hours(90 * 24);
    let events: Vec<_> =
        (0..1_300).map(|n| captured(&format!("evt_{n}"), &format!("pi_{n}"), Some(&format!("order-{n}")), 1)).collect();
    // Too old by a millisecond, and just young enough.
    let (old, young) = (NOW.minus(KEEP).minus(Duration::from_millis(1)), NOW.minus(KEEP));
    let mut batch: Vec<Arrival> = events.iter().map(|event| received(event, old)).collect();
    for arrival in batch.iter_mut().skip(1_290) {
        *arrival = Arrival { body: Some(Body { received_at: young, ..arrival.body.clone().unwrap() }), ..arrival.clone() };
        arrival.rows[0].received_at = young;
    }
    bench.try_apply(&batch, &[], true).await.unwrap();
    let mut deleted = 0;
    loop {
        let kept = bench.store.retain(NOW, KEEP).await.unwrap();
        deleted += kept.bodies_deleted;
        if !kept.more {
            break;
        }
    }
    assert_eq!(deleted, 1_290);
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 10);
    assert_eq!(bench.count("SELECT count(*) FROM events").await, 1_300);
    let again = bench.try_apply(&batch, &[], true).await.unwrap();
    assert!(again.events.iter().all(|(_, outcome)| outcome.is_none()), "a key was forgotten with its body");
    let next = [received(&captured("evt_next", "pi_next", Some("order-next"), 1), NOW.plus(DAY))];
    bench.try_apply(&next, &[], true).await.unwrap();
    assert_eq!(bench.store.retain(NOW, KEEP).await.unwrap().bodies_deleted, 0);
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 11);
}

pub async fn references_to_two_orders_are_quarantined(bench: &Bench) {
    bench.apply(&[captured("evt_1", "pi_1", Some("order-1"), 4999), captured("evt_2", "pi_2", Some("order-2"), 4999)]).await;
    assert_eq!(bench.apply(&[captured("evt_3", "pi_1", Some("order-2"), 4999)]).await[0].1, Some(Outcome::Quarantined));
    assert_eq!(bench.texts("SELECT fingerprint FROM events WHERE event_id = 'evt_3'").await, ["stripe:reference_conflict"]);
}

pub async fn what_only_a_quarantined_event_names_leads_nowhere(bench: &Bench) {
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    // Its payment is order-1's, but it names an order that is not registered yet: it is of neither.
    let mut event = captured("evt_1", "pi_1", Some("order-2"), 4999);
    event.references.push(Reference::new(ReferenceKind::Charge, "ch_1"));
    let applied = bench.try_apply(&arrivals(&[event]), &[], false).await.unwrap();
    assert_eq!(outcomes(applied), [("evt_1".to_owned(), Some(Outcome::Quarantined))]);
    assert_eq!(bench.count("SELECT count(*) FROM refs WHERE order_id IS NOT NULL").await, 2, "order-1 and pi_1");
    let registered = bench.try_apply(&[], &[registration("order-2", None, 100)], false).await.unwrap().registrations;
    assert!(matches!(registered[..], [Registered::Created(_)]), "{registered:?}");
}

pub async fn the_books_equal_a_recount(bench: &Bench) {
    let mut rows = vec![
        captured("evt_1", "pi_1", Some("order-1"), 4999),
        captured("evt_2", "pi_1", Some("order-1"), 4999),
        captured("evt_3", "pi_3", None, 1),
        captured("evt_4", "pi_4", None, 1),
    ];
    bench.apply(&rows).await;
    rows[0].fact = Fact::RefundTotal { amount: eur(1) };
    bench.apply(&rows).await;
    bench.try_apply(&[ignored("evt_5")], &[], true).await.unwrap();
    bench.register(registration("order-3", Some("pi_3"), 1)).await;
    let expected: BTreeMap<String, i64> = [("applied", 2), ("ignored", 1), ("parked", 1), ("quarantined", 1), ("superseded", 1)]
        .map(|(name, n)| (name.to_owned(), n))
        .into();
    assert_eq!(bench.recount().await, expected);
    // The rest is in the invariants, that every test checks at its end; here also the hour and the orders.
    assert_eq!(bench.count("SELECT count(DISTINCT hour) FROM books").await, 1);
    let orders = bench.store.balance().await.unwrap().orders;
    assert_eq!(orders.iter().map(|total| (total.status, total.count)).collect::<Vec<_>>(), [(OrderStatus::Paid, 2)]);
}

pub async fn an_order_at_version_n_has_n_transitions(bench: &Bench) {
    bench.apply(&[state("evt_1", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    bench.apply(&[state("evt_2", "pi_1", Some("order-1"), PaymentState::Failed)]).await;
    bench.apply(&[state("evt_3", "pi_1", Some("order-1"), PaymentState::Pending)]).await;
    bench.apply(&[captured("evt_4", "pi_1", Some("order-1"), 4999)]).await;
    assert_eq!(bench.order("order-1").await.version, 3);
    let steps = bench.texts("SELECT coalesce(from_status, '') || '>' || to_status FROM transitions ORDER BY version").await;
    assert_eq!(steps, [">pending", "pending>failed", "failed>paid"]);
    assert_eq!(bench.count("SELECT count(DISTINCT id) FROM transitions").await, 3);
    assert_eq!(
        bench
            .count("SELECT count(*) FROM transitions a JOIN transitions b ON a.version < b.version AND a.position > b.position")
            .await,
        0
    );
}

pub async fn the_epoch_is_the_databases(bench: &Bench) {
    let epoch = bench.store.epoch().await.unwrap();
    let again = connect(&bench.url).await.unwrap();
    assert_eq!(again.epoch().await.unwrap(), epoch);
    assert!(!epoch.is_nil());
    again.close().await;
    // A newer version's migration does not keep this one from starting (design decision 13).
    bench
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (999999, 'of a newer version', true, '', 0)",
        )
        .await;
    let older = connect(&bench.url).await.unwrap();
    assert_eq!(older.epoch().await.unwrap(), epoch);
    older.close().await;
}

pub async fn orders_come_in_pages(bench: &Bench) {
    // Ids in the order of their bytes, in both backends: capitals before small letters, then what is not ASCII.
    let ids = ["A", "Z", "a", "a b", "z", "ß", "漢"];
    let mut events: Vec<_> = ids.iter().map(|id| captured(&format!("evt_{id}"), &format!("pi_{id}"), Some(id), 1)).collect();
    events.push(state("evt_b", "pi_b", Some("b"), PaymentState::Pending));
    bench.apply(&events).await;
    let page = async |status, after: Option<&str>, limit| -> Vec<String> {
        bench.store.orders(status, after, limit).await.unwrap().into_iter().map(|order| order.id).collect()
    };
    assert_eq!(page(None, None, 3).await, ["A", "Z", "a"]);
    assert_eq!(page(None, Some("a"), 3).await, ["a b", "b", "z"]);
    assert_eq!(page(None, Some("z"), 3).await, ["ß", "漢"]);
    assert_eq!(page(None, Some("漢"), 3).await, [""; 0]);
    assert_eq!(page(Some(OrderStatus::Paid), Some("a b"), 2).await, ["z", "ß"]);
    assert_eq!(page(Some(OrderStatus::Pending), None, 10).await, ["b"]);
    assert_eq!(page(Some(OrderStatus::Refunded), None, 10).await, [""; 0]);
    assert_eq!(bench.store.orders(None, Some("b"), 1).await.unwrap()[0], bench.order("z").await);
    assert_eq!(bench.store.order("a\0").await.unwrap(), None);
}

pub async fn a_body_keeps_its_exact_bytes(bench: &Bench) {
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(70_000).collect();
    let mut arrival = arrival(&captured("evt_1", "pi_1", Some("order-1"), 4999));
    arrival.rows.push(row(&captured("evt_2", "pi_1", Some("order-1"), 4999)));
    arrival.body = Some(body(&bytes));
    bench.try_apply(&[arrival.clone()], &[], true).await.unwrap();
    assert_eq!(bench.bytes("SELECT bytes FROM bodies").await, bytes);
    assert_eq!(
        bench.count("SELECT count(*) FROM events e JOIN bodies b ON b.id = e.body_id AND b.received_at = e.received_at").await,
        2
    );
    let headers = bench.texts("SELECT CAST(headers AS text) FROM bodies").await;
    assert_eq!(headers, [r#"[["x-two","2"],["x-one","a \u0000 \" b"]]"#]);
    // A duplicate keeps no second body.
    bench.try_apply(&[arrival], &[], true).await.unwrap();
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 1);
}

pub async fn a_nul_inside_facts_is_kept(bench: &Bench) {
    let mut event = state("evt_1", "pi_1", None, PaymentState::Failed);
    let Fact::Payment(fact) = &mut event.fact else { unreachable!() };
    fact.failure = Some(Failure { code: "odd\0code".to_owned(), message: "\u{1}\0\u{10ffff}".to_owned() });
    let says = fact.failure.clone().unwrap();
    bench.apply(&[event]).await;
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    let shown = bench.order("order-1").await.view.last_failure.unwrap();
    assert_eq!((shown.code, shown.message, shown.at), (says.code, says.message, NOW));
}

/// An order with so many changes that each of the destinations is to be told.
async fn change(bench: &Bench, order: &str, changes: usize, destinations: &[&str]) {
    let destinations = destinations.iter().map(|name| Arc::from(*name)).collect();
    let policy = Policy { events_create_orders: true, destinations, ..bench.policy.clone() };
    let before = bench.store.order(order).await.unwrap().map_or(0, |order| order.version);
    for n in (before..).take(changes) {
        let payment = format!("pi_{order}");
        let event = match n {
            0 => captured(&format!("evt_{order}"), &payment, Some(order), 4999),
            n => refund(&format!("evt_{order}_{n}"), &payment, &format!("re_{order}_{n}"), 1),
        };
        let work = Work { arrivals: &arrivals(&[event]), ..Work::new(&policy, &bench.ids, NOW) };
        assert_eq!(bench.store.apply(&work).await.unwrap().transitions, 1);
    }
}

impl Bench {
    async fn lease(&self, destination: &str, now: Timestamp, limit: u32) -> Vec<Notice> {
        self.store.lease_notices(destination, now, LEASE, self.ids.next(), limit).await.unwrap()
    }

    async fn end(&self, now: Timestamp, notice: &Notice, outcome: NoticeOutcome) {
        self.store.finish_notices(now, notice.lease_token, &[(key_of(notice), outcome)]).await.unwrap();
    }

    /// Destination, order, version, outcome, attempts, error of what was told or given up.
    async fn notices(&self) -> Vec<String> {
        let sql = "SELECT destination || ' ' || order_id || ' ' || version || ' ' || outcome || ' ' || attempts || ' '
             || coalesce(last_error, '-') FROM notices ORDER BY 1";
        self.texts(sql).await
    }
}

fn key_of(notice: &Notice) -> NoticeKey {
    let order = &notice.change.order;
    NoticeKey { destination: Arc::clone(&notice.destination), order_id: order.id.clone(), version: order.version }
}

/// By order and version, sorted.
fn leased(notices: &[Notice]) -> Vec<(&str, i64)> {
    let mut leased: Vec<_> = notices.iter().map(|notice| (&*notice.change.order.id, notice.change.order.version)).collect();
    leased.sort_unstable();
    leased
}

fn again(at: Timestamp) -> NoticeOutcome {
    NoticeOutcome::Again { at, error: "no answer".to_owned() }
}

pub async fn what_is_told_is_what_was_committed(bench: &Bench) {
    let mut committed = Vec::new();
    for _ in 0..3 {
        change(bench, "order-1", 1, &["shop"]).await;
        committed.push(bench.order("order-1").await);
    }
    // The order went on meanwhile: each change is told as it was.
    let mut ids = BTreeSet::new();
    let mut from = None;
    for committed in committed {
        let notices = bench.lease("shop", NOW, 10).await;
        let [notice] = &notices[..] else { panic!("{notices:?}") };
        assert_eq!((&*notice.destination, notice.attempts), ("shop", 0));
        assert_eq!((&notice.change.order, notice.change.from), (&committed, from));
        from = Some(committed.view.status);
        assert!(ids.insert(notice.change.id), "the id is another change's");
        // Told again, it is the same.
        bench.end(NOW, notice, again(NOW)).await;
        let repeated = bench.lease("shop", NOW, 10).await;
        assert_eq!((&repeated[0].change, repeated[0].attempts), (&notice.change, 1));
        bench.end(NOW, &repeated[0], NoticeOutcome::Told).await;
    }
    assert_eq!(bench.count("SELECT count(*) FROM outbox").await, 0);
}

pub async fn an_orders_changes_are_told_one_after_the_other(bench: &Bench) {
    change(bench, "order-1", 3, &["shop"]).await;
    change(bench, "order-2", 1, &["shop"]).await;
    let first = bench.lease("shop", NOW, 10).await;
    assert_eq!(leased(&first), [("order-1", 1), ("order-2", 1)]);
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), [], "they are leased");
    // One that is made meanwhile waits behind them.
    change(bench, "order-1", 1, &["shop"]).await;
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), []);
    let ended: Vec<_> = first.iter().map(|notice| (key_of(notice), NoticeOutcome::Told)).collect();
    bench.store.finish_notices(NOW, first[0].lease_token, &ended).await.unwrap();
    for version in 2..=4 {
        let next = bench.lease("shop", NOW, 10).await;
        assert_eq!(leased(&next), [("order-1", version)], "at once");
        bench.end(NOW, &next[0], NoticeOutcome::Told).await;
    }
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), []);
    let told = ["order-1 1", "order-1 2", "order-1 3", "order-1 4", "order-2 1"].map(|change| format!("shop {change} told 1 -"));
    assert_eq!(bench.notices().await, told);
}

pub async fn each_destination_is_told_apart(bench: &Bench) {
    change(bench, "order-1", 2, &["amqp", "shop"]).await;
    change(bench, "order-1", 1, &["shop"]).await;
    let (amqp, shop) = (bench.lease("amqp", NOW, 10).await, bench.lease("shop", NOW, 10).await);
    assert_eq!((leased(&amqp), leased(&shop)), (vec![("order-1", 1)], vec![("order-1", 1)]));
    assert_eq!(amqp[0].change, shop[0].change, "one change, one id");
    bench.end(NOW, &shop[0], again(NOW.plus(LEASE))).await;
    bench.end(NOW, &amqp[0], NoticeOutcome::Told).await;
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), []);
    let amqp = bench.lease("amqp", NOW, 10).await;
    assert_eq!(leased(&amqp), [("order-1", 2)]);
    bench.end(NOW, &amqp[0], NoticeOutcome::Told).await;
    assert_eq!(leased(&bench.lease("amqp", NOW, 10).await), []);
    assert_eq!(bench.count("SELECT count(*) FROM outbox").await, 3);
}

pub async fn a_failed_attempt_holds_its_order_back(bench: &Bench) {
    change(bench, "order-1", 2, &["shop"]).await;
    change(bench, "order-2", 1, &["shop"]).await;
    let later = NOW.plus(Duration::from_hours(6));
    let notices = bench.lease("shop", NOW, 10).await;
    let ended: Vec<_> = notices
        .iter()
        .map(|notice| (key_of(notice), if notice.change.order.id == "order-1" { again(later) } else { NoticeOutcome::Told }))
        .collect();
    bench.store.finish_notices(NOW, notices[0].lease_token, &ended).await.unwrap();
    change(bench, "order-1", 1, &["shop"]).await;
    for now in [NOW, NOW.plus(LEASE), later.minus(Duration::from_millis(1))] {
        assert_eq!(leased(&bench.lease("shop", now, 10).await), [], "its order waits for its next attempt");
    }
    for version in 1..=3 {
        let notices = bench.lease("shop", later, 10).await;
        assert_eq!(leased(&notices), [("order-1", version)]);
        assert_eq!(notices[0].attempts, u32::from(version == 1));
        bench.end(later, &notices[0], NoticeOutcome::Told).await;
    }
    let told = ["order-1 1 told 2", "order-1 2 told 1", "order-1 3 told 1", "order-2 1 told 1"];
    assert_eq!(bench.notices().await, told.map(|told| format!("shop {told} -")));
}

pub async fn giving_up_lets_the_next_change_go(bench: &Bench) {
    change(bench, "order-1", 2, &["shop"]).await;
    let first = bench.lease("shop", NOW, 10).await;
    bench.end(NOW, &first[0], NoticeOutcome::GivenUp { error: "answered 410".to_owned() }).await;
    let next = bench.lease("shop", NOW, 10).await;
    assert_eq!(leased(&next), [("order-1", 2)]);
    bench.end(NOW, &next[0], NoticeOutcome::Told).await;
    assert_eq!(bench.notices().await, ["shop order-1 1 given_up 1 answered 410", "shop order-1 2 told 1 -"]);
}

pub async fn a_lapsed_lease_is_the_next_ones(bench: &Bench) {
    change(bench, "order-1", 2, &["shop"]).await;
    let lost = bench.lease("shop", NOW, 10).await;
    let lapsed = NOW.plus(LEASE);
    assert_eq!(leased(&bench.lease("shop", lapsed.minus(Duration::from_millis(1)), 10).await), []);
    let held = bench.lease("shop", lapsed, 10).await;
    assert_eq!(leased(&held), [("order-1", 1)]);
    assert_eq!(held[0].change, lost[0].change, "the same content under the same id");
    assert_ne!(held[0].lease_token, lost[0].lease_token);
    for outcome in [NoticeOutcome::Told, again(NOW), NoticeOutcome::GivenUp { error: "late".to_owned() }] {
        bench.end(lapsed, &lost[0], outcome).await;
    }
    assert_eq!(bench.notices().await, Vec::<String>::new());
    assert_eq!(leased(&bench.lease("shop", lapsed, 10).await), [], "it is still held");
    bench.end(lapsed, &held[0], NoticeOutcome::Told).await;
    assert_eq!(bench.notices().await, ["shop order-1 1 told 1 -"]);
    assert_eq!(leased(&bench.lease("shop", lapsed, 10).await), [("order-1", 2)]);
}

pub async fn many_changes_of_one_order_hold_no_other_back(bench: &Bench) {
    const LIMIT: u32 = 2;
    change(bench, "order-1", 30, &["shop"]).await;
    let first = bench.lease("shop", NOW, LIMIT).await;
    assert_eq!(leased(&first), [("order-1", 1)]);
    change(bench, "order-2", 1, &["shop"]).await;
    let mut claims = 0;
    while leased(&bench.lease("shop", NOW, LIMIT).await) != [("order-2", 1)] {
        claims += 1;
        assert!(claims < 2, "one claim gets past 30 changes");
    }
    // What was put off behind the first change comes when that is told, one by one.
    let mut held = first;
    for version in 2..=30 {
        bench.end(NOW, &held[0], NoticeOutcome::Told).await;
        held = bench.lease("shop", NOW, LIMIT).await;
        assert_eq!(leased(&held), [("order-1", version)]);
    }
}

pub async fn what_cannot_be_read_holds_no_other_back(bench: &Bench) {
    change(bench, "order-1", 2, &["shop"]).await;
    change(bench, "order-2", 1, &["shop"]).await;
    // A newer version's status, as it may be met in a rolling deploy.
    bench.execute("UPDATE transitions SET view = '{\"status\":\"settled\"}' WHERE order_id = 'order-1' AND version = 1").await;
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), [("order-2", 1)]);
    assert_eq!(leased(&bench.lease("shop", NOW, 10).await), [], "the order's next change waits");
}

pub async fn what_waits_is_counted(bench: &Bench) {
    assert_eq!(bench.store.backlog().await.unwrap(), []);
    change(bench, "order-1", 3, &["amqp", "shop"]).await;
    change(bench, "order-2", 1, &["shop"]).await;
    let line = |destination: &str, waiting| Backlog { destination: destination.to_owned(), waiting, oldest_at: NOW };
    assert_eq!(bench.store.backlog().await.unwrap(), [line("amqp", 3), line("shop", 4)]);
    let notices = bench.lease("amqp", NOW, 10).await;
    bench.end(NOW, &notices[0], again(NOW.plus(LEASE))).await;
    assert_eq!(bench.store.backlog().await.unwrap(), [line("amqp", 3), line("shop", 4)], "it still waits, and is as old");
    for notice in bench.lease("shop", NOW, 10).await {
        bench.end(NOW, &notice, NoticeOutcome::Told).await;
    }
    assert_eq!(bench.store.backlog().await.unwrap(), [line("amqp", 3), line("shop", 2)]);
}

/// Eight relays, each of which now and then fails, while changes are made. Time stands still, so a change that was put off
/// and not fetched again is never told.
pub async fn many_relays_tell_each_change_once_in_order(bench: &Bench) {
    const ORDERS: usize = 6;
    const CHANGES: usize = 12;
    let made = std::sync::atomic::AtomicUsize::new(0);
    let told = std::sync::Mutex::new(Vec::new());
    let makers = (0..ORDERS).map(|order| {
        let made = &made;
        async move {
            for _ in 0..CHANGES {
                change(bench, &format!("order-{order}"), 1, &["shop"]).await;
            }
            made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let relays = (0..8_u64).map(|seed| {
        let (made, told) = (&made, &told);
        async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut looks = 0;
            loop {
                // Read before the claim: what it does not find was told or is another's.
                let all_made = made.load(std::sync::atomic::Ordering::SeqCst) == ORDERS;
                let limit = random.random_range(1..4);
                let notices = bench.lease("shop", NOW, limit).await;
                let mut ended = Vec::new();
                for notice in &notices {
                    let outcome = if random.random_bool(0.2) { again(NOW) } else { NoticeOutcome::Told };
                    if outcome == NoticeOutcome::Told {
                        told.lock().unwrap().push((notice.change.order.id.clone(), notice.change.order.version));
                    }
                    ended.push((key_of(notice), outcome));
                }
                if let [notice, ..] = &notices[..] {
                    bench.store.finish_notices(NOW, notice.lease_token, &ended).await.unwrap();
                } else if all_made && bench.count("SELECT count(*) FROM outbox").await == 0 {
                    return;
                } else {
                    looks += 1;
                    assert!(looks < 10_000, "something is never told");
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    tokio::join!(join_all(makers), join_all(relays));
    let told = told.into_inner().unwrap();
    for order in 0..ORDERS {
        let id = format!("order-{order}");
        let versions: Vec<i64> = told.iter().filter(|(told, _)| *told == id).map(|(_, version)| *version).collect();
        assert_eq!(versions, (1..).take(CHANGES).collect::<Vec<i64>>(), "{id}");
    }
    assert_eq!(bench.notices().await.len(), ORDERS * CHANGES);
}

pub async fn one_key_met_by_many_at_once_is_written_once(bench: &Bench) {
    // Without references: no row lock keeps these apart, only the key itself.
    const EVENTS: usize = 100;
    let arrivals: Vec<_> = (0..EVENTS).map(|n| ignored(&format!("evt_{n}"))).collect();
    let tasks = (0..8).map(|seed| {
        let mut mine = arrivals.clone();
        mine.shuffle(&mut StdRng::seed_from_u64(seed));
        async move { bench.try_apply(&mine, &[], true).await.unwrap().events }
    });
    let events = join_all(tasks).await.concat();
    assert_eq!(events.iter().filter(|(_, outcome)| *outcome == Some(Outcome::Ignored)).count(), EVENTS);
    assert_eq!(events.iter().filter(|(_, outcome)| outcome.is_none()).count(), 7 * EVENTS);
}

pub async fn a_big_batch_is_one_transaction(bench: &Bench) {
    let events: Vec<_> = (0..1000)
        .map(|n| {
            let (payment, order) = (format!("pi_{}", n % 200), format!("order-{}", n % 200));
            match n / 200 {
                0 => state(&format!("evt_{n}"), &payment, Some(&order), PaymentState::Failed),
                1 => captured(&format!("evt_{n}"), &payment, Some(&order), 4999),
                2 => captured(&format!("evt_{n}"), &payment, None, 4999),
                _ => refund(&format!("evt_{n}"), &payment, &format!("re_{n}"), 100),
            }
        })
        .collect();
    let with_bodies: Vec<_> =
        arrivals(&events).into_iter().map(|arrival| Arrival { body: Some(body(b"{}")), ..arrival }).collect();
    let applied = bench.try_apply(&with_bodies, &[], true).await.unwrap();
    assert_eq!((applied.events.len(), applied.transitions), (1000, 200));
    let totals = bench.store.balance().await.unwrap();
    assert_eq!(
        totals.orders.iter().map(|total| (total.status, total.count)).collect::<Vec<_>>(),
        [(OrderStatus::PartiallyRefunded, 200)]
    );
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 1000);
    let again = bench.try_apply(&with_bodies, &[], true).await.unwrap();
    assert!(again.events.iter().all(|(_, outcome)| outcome.is_none()));
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 1000);
}

/// Eight workers, each with all events, in its own order and batches, on few orders; half of them register meanwhile. What
/// remains is what one worker makes of them, in another order.
pub async fn many_workers_agree_with_one(bench: &Bench) {
    const ORDERS: usize = 5;
    let mut random = StdRng::seed_from_u64(42);
    let events: Vec<_> = (0..200)
        .map(|n| {
            let order = random.random_range(0..ORDERS);
            let payment = format!("pi_{order}_{}", random.random_range(0..2));
            let name = format!("order-{order}");
            // Most know only their payment, so that they park until another one leads them.
            let name = random.random_bool(0.2).then_some(name.as_str());
            match random.random_range(0..4) {
                0 => state(&format!("evt_{n}"), &payment, name, PaymentState::Failed),
                1 => captured(&format!("evt_{n}"), &payment, name, 4999),
                2 => state(&format!("evt_{n}"), &payment, name, PaymentState::Pending),
                _ => refund(&format!("evt_{n}"), &payment, &format!("re_{}", n % 30), 100 + n % 7),
            }
        })
        .collect();
    let registrations: Vec<_> = (0..ORDERS)
        .flat_map(|order| (0..2).map(move |n| registration(&format!("order-{order}"), Some(&format!("pi_{order}_{n}")), 9998)))
        .collect();

    let tasks = (0..8_u64).map(|seed| {
        let (mut mine, mut puts) = (arrivals(&events), registrations.clone());
        async move {
            let mut random = StdRng::seed_from_u64(seed);
            mine.shuffle(&mut random);
            puts.shuffle(&mut random);
            for batch in mine.chunks(17) {
                let put = if seed % 2 == 0 { puts.pop() } else { None };
                bench.try_apply(batch, put.as_slice(), true).await.unwrap();
            }
            bench.try_apply(&[], &puts, true).await.unwrap();
        }
    });
    join_all(tasks).await;
    assert_eq!(bench.count("SELECT count(*) FROM events").await, 200);
    assert_eq!(bench.count("SELECT count(*) FROM parkings").await, 0);
    let together = bench.registers().await;

    let alone = Bench::sqlite().await;
    alone.try_apply(&arrivals(&events), &registrations, true).await.unwrap();
    assert_eq!(together, alone.registers().await);
    alone.store.close().await;
}

/// The account of all events here.
#[must_use]
pub fn account() -> AccountKey {
    AccountKey { psp: Arc::from("stripe"), account: Arc::from("default") }
}

#[must_use]
pub fn eur(minor: i64) -> Money {
    Money::new(minor, Currency::parse("EUR").unwrap())
}

/// A payment in `state`, without an amount.
#[must_use]
pub fn state(id: &str, payment: &str, order: Option<&str>, state: PaymentState) -> PaymentEvent {
    event(id, payment, order, Fact::Payment(PaymentFact::new(state)))
}

/// A payment captured in full.
#[must_use]
pub fn captured(id: &str, payment: &str, order: Option<&str>, minor: i64) -> PaymentEvent {
    let fact = PaymentFact {
        authorized: Some(eur(minor)),
        captured: Some(eur(minor)),
        capture_final: true,
        ..PaymentFact::new(PaymentState::Captured)
    };
    event(id, payment, order, Fact::Payment(fact))
}

/// A refund that knows only its payment.
#[must_use]
pub fn refund(id: &str, payment: &str, refund: &str, minor: i64) -> PaymentEvent {
    let fact = Fact::Refund { id: refund.to_owned(), state: RefundState::Succeeded, amount: eur(minor), created: None };
    event(id, payment, None, fact)
}

fn event(id: &str, payment: &str, order: Option<&str>, fact: Fact) -> PaymentEvent {
    let order = order.map(|order| Reference::new(ReferenceKind::Order, order));
    let payment_reference = Reference::new(ReferenceKind::Payment, payment);
    let AccountKey { psp, account } = account();
    PaymentEvent {
        key: EventKey { psp, account, event_id: id.to_owned() },
        event_type: "payment.test".to_owned(),
        occurred_at: NOW,
        source: Source::Webhook,
        mode: None,
        references: order.into_iter().chain([payment_reference]).collect(),
        payment_id: payment.to_owned(),
        version: FactVersion::Time(NOW.millis()),
        fact,
    }
}

#[must_use]
pub fn row(event: &PaymentEvent) -> InboxRow {
    InboxRow {
        key: event.key.clone(),
        event_type: event.event_type.clone(),
        received_at: NOW,
        facts_sha256: event.facts_sha256(),
        mapping_version: 1,
        source: event.source,
        content: Content::Fact { event: Box::new(event.clone()), foreign_mode: false },
    }
}

#[must_use]
pub fn arrival(event: &PaymentEvent) -> Arrival {
    Arrival { body: None, rows: vec![row(event)], asks: Vec::new(), heard_at: None }
}

#[must_use]
pub fn arrivals(events: &[PaymentEvent]) -> Vec<Arrival> {
    events.iter().map(arrival).collect()
}

/// A webhook of which nothing is to be known.
#[must_use]
pub fn ignored(id: &str) -> Arrival {
    let content = Content::Ignored { reason: "not a payment".to_owned() };
    let bare = row(&captured(id, "pi_1", None, 1));
    Arrival { body: None, rows: vec![InboxRow { facts_sha256: [0; 32], content, ..bare }], asks: Vec::new(), heard_at: None }
}

#[must_use]
pub fn registration(order: &str, payment: Option<&str>, minor: i64) -> Registration {
    Registration {
        order_id: order.to_owned(),
        account: account(),
        payment_id: payment.map(str::to_owned),
        expected: eur(minor),
        expires_at: None,
        operator: "test".to_owned(),
    }
}

/// A webhook's bytes, received at [`NOW`].
#[must_use]
pub fn body(bytes: &[u8]) -> Body {
    let AccountKey { psp, account } = account();
    Body {
        psp,
        account,
        webhook_id: "evt_1".to_owned(),
        received_at: NOW,
        secret_name: Arc::from("first"),
        content_type: None,
        headers: vec![("x-two".to_owned(), "2".to_owned()), ("x-one".to_owned(), "a \0 \" b".to_owned())],
        bytes: Bytes::copy_from_slice(bytes),
    }
}

/// By id, duplicates first.
fn outcomes(applied: Applied) -> Vec<(String, Option<Outcome>)> {
    let mut outcomes: Vec<_> = applied.events.into_iter().map(|(key, outcome)| (key.event_id, outcome)).collect();
    outcomes.sort();
    outcomes
}
