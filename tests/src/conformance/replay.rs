//! What a replay must do on every store.
//!
//! The PSP here writes into each webhook what each mapping makes of it: a bug is a mapping that makes something wrong.

#![expect(clippy::missing_panics_doc, reason = "a behaviour panics where it is missed: that is the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use paybell_shared::clock::{ManualClock, Timestamp};
use paybell_shared::envelope::Envelope;
use paybell_shared::event::{EventKey, Mode, PaymentEvent, PaymentState, Source};
use paybell_shared::psp::stripe::Stripe;
use paybell_shared::psp::{
    Account, Answer, Api, AskError, Asked, Capture, Keys, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError,
    TranslateError, Verified, WebhookRequest,
};
use paybell_worker::consume::Context;
use paybell_worker::inbox::{Arrival, Outcome};
use paybell_worker::order::{AccountKey, OrderStatus};
use paybell_worker::replay::{self, Page};
use paybell_worker::store::{Applied, BodyPlace, Replayed, Scope, Selection, Work};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::learning::learned;
use super::store::{Bench, NOW, account, arrival, captured, refund, registration, state};
use crate::worker;

/// Expands to one test for each behaviour. `$bench` names an `async fn() -> Bench` of an empty database.
#[macro_export]
macro_rules! replay_suite {
    ($bench:path) => {
        $crate::replay_suite!($bench:
            a_wrong_amount_is_mended_once,
            a_dry_run_writes_nothing,
            events_of_the_wrong_order_move_to_theirs,
            what_followed_a_wrong_event_follows_it_back,
            what_the_shop_named_stays,
            a_quarantined_webhook_is_applied,
            an_applied_event_becomes_ignored,
            one_webhook_becomes_many_and_one_again,
            a_parked_event_finds_its_order_and_loses_it,
            a_newer_mapping_is_not_overwritten,
            the_same_mapping_needs_force,
            what_is_kept_beside_stays,
            an_older_worker_changes_nothing_after_it,
            orders_that_contradict_stay_quarantined_until_one_is_mended,
            an_account_that_is_not_configured_is_skipped,
            a_webhook_that_panics_costs_only_itself,
            selections_find_what_they_mean,
            answers_of_the_psp_stay,
            who_told_first_stays_who_did,
            an_order_with_too_many_events_is_skipped,
            replaying_everything_is_as_if_it_had_been_right,
            it_agrees_with_webhooks_that_come_meanwhile
        );
    };
    ($bench:path: $($behaviour:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let bench = $bench().await;
                $crate::conformance::replay::$behaviour(&bench).await;
                bench.check_invariants().await;
                $crate::conformance::replay::is_balanced(&bench).await;
                bench.store.close().await;
            }
        )+
    };
}

/// What a mapping makes of a webhook.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Says {
    Events(Vec<PaymentEvent>),
    Ignored,
    Unintelligible,
    Panics,
}

/// A webhook: what the first mapping makes of it, the second, and the second with other settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    id: String,
    first: Says,
    second: Says,
    other: Says,
}

/// One that the first mapping gets wrong.
fn told(id: &str, first: Says, second: Says) -> Told {
    Told { id: id.to_owned(), first, other: second.clone(), second }
}

fn one(event: PaymentEvent) -> Says {
    Says::Events(vec![event])
}

/// One that was never wrong.
fn right(event: PaymentEvent) -> Told {
    let id = event.key.event_id.clone();
    told(&id, one(event.clone()), one(event))
}

/// One event, as each mapping reads it.
fn mended(first: PaymentEvent, second: PaymentEvent) -> Told {
    let id = second.key.event_id.clone();
    told(&id, one(first), one(second))
}

/// A reader of [`Told`].
struct Mapping {
    profile: Profile,
    read: fn(Told) -> Says,
}

const SCHEMES: &[Scheme] = &[Scheme::signed("a test's")];

const fn profile(mapping_version: u32) -> Profile {
    Profile {
        name: "a test's",
        translate_headers: &[],
        timeout: Duration::from_secs(1),
        retry_window: Duration::from_secs(1),
        usual_delay: Duration::from_mins(1),
        asks_per_second: 1,
        mapping_version,
        schemes: SCHEMES,
        can: paybell_shared::psp::Abilities {
            payment_status: false,
            event_list: false,
            late_changes: paybell_shared::psp::LateChanges::Unlisted,
            endpoint_list: false,
        },
        list: None,
        sources: &[],
    }
}

static FIRST: Mapping = Mapping { profile: profile(1), read: |told| told.first };
static SECOND: Mapping = Mapping { profile: profile(2), read: |told| told.second };
static OTHER_SETTINGS: Mapping = Mapping { profile: profile(2), read: |told| told.other };

impl Psp for Mapping {
    fn id(&self) -> &'static str {
        "stripe"
    }

    fn profile(&self) -> &'static Profile {
        match self.profile.mapping_version {
            1 => &FIRST.profile,
            _ => &SECOND.profile,
        }
    }

    fn check(&self, _: &Account) -> Result<(), SettingError> {
        Ok(())
    }

    fn verify(&self, _: &WebhookRequest<'_>, _: &Keys, _: Timestamp) -> Result<Verified, Rejection> {
        Err(Rejection::EmptyBody)
    }

    fn translate(&self, envelope: &Envelope, _: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        match (self.read)(serde_json::from_slice(&envelope.body).unwrap()) {
            Says::Events(events) => Ok(events),
            Says::Ignored => Err(TranslateError::Ignored("not a payment".to_owned())),
            Says::Unintelligible => Err(TranslateError::Unintelligible { reason: "odd", pointer: "/odd".to_owned() }),
            Says::Panics => panic!("an adapter panics, as a test wants it to"),
        }
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        Stripe.status_request(payment_id, cursor, account)
    }

    fn read_status(&self, _: &Asked<'_>, _: &Response<Bytes>, _: &Account) -> Result<Answer, ReadError> {
        Err(ReadError::NotFound)
    }
}

fn account_of(mapping: &'static Mapping) -> Account {
    let AccountKey { psp, account } = account();
    Account {
        psp: mapping,
        psp_id: psp,
        name: account,
        mode: Mode::Test,
        keys: Keys::default(),
        api: Api::default(),
        order_reference: None,
        capture: Capture::default(),
    }
}

/// The bench with a worker of each mapping.
#[async_trait]
trait Workers {
    /// A worker with this mapping gets the webhooks, as one batch, a second apart.
    async fn deliver(&self, mapping: &'static Mapping, webhooks: &[Told]) -> Applied;
    async fn context(&self, mapping: &'static Mapping) -> Context;
    /// Replays all that is meant, in pages of `limit`.
    async fn replay(&self, mapping: &'static Mapping, how: How) -> Replayed;
    /// Every row of every table.
    async fn dump(&self) -> BTreeMap<&'static str, Vec<String>>;
}

#[derive(Clone)]
struct How {
    selection: Selection,
    limit: u32,
    dry_run: bool,
    forced: bool,
}

/// Everything, at once, for good.
fn all() -> How {
    How {
        selection: Selection { psp: Some("stripe".to_owned()), ..Selection::default() },
        limit: 500,
        dry_run: false,
        forced: false,
    }
}

#[async_trait]
impl Workers for Bench {
    async fn deliver(&self, mapping: &'static Mapping, webhooks: &[Told]) -> Applied {
        let (context, account) = (self.context(mapping).await, account_of(mapping));
        let arrivals: Vec<Arrival> = webhooks.iter().map(|told| Arrival::of_webhook(&envelope(told), &account)).collect();
        self.store.apply(&Work { arrivals: &arrivals, ..context.work() }).await.unwrap()
    }

    async fn context(&self, mapping: &'static Mapping) -> Context {
        let accounts = vec![Arc::new(account_of(mapping))];
        worker::context(Arc::clone(&self.store), Arc::new(ManualClock::at(NOW)), accounts).await
    }

    async fn replay(&self, mapping: &'static Mapping, how: How) -> Replayed {
        let context = self.context(mapping).await;
        let mut sum = Replayed::default();
        let mut after = None;
        loop {
            let Page { next, replayed, .. } = replay::page(&context, &request(&how, after)).await.unwrap();
            sum.events.extend(replayed.events);
            sum.orders.extend(replayed.orders);
            sum.skipped.extend(replayed.skipped);
            sum.unchanged += replayed.unchanged;
            if next.is_none() {
                return sum;
            }
            after = next;
        }
    }

    async fn dump(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mut dump = BTreeMap::new();
        let tables = [
            "events",
            "bodies",
            "orders",
            "refs",
            "parkings",
            "transitions",
            "checks",
            "books",
            "outbox",
            "notices",
            "actions",
            "learned",
            "unasked",
        ];
        for table in tables {
            dump.insert(table, self.rows(table).await);
        }
        dump
    }
}

fn request(how: &How, after: Option<BodyPlace>) -> replay::Request {
    replay::Request {
        selection: how.selection.clone(),
        after,
        limit: how.limit,
        dry_run: how.dry_run,
        forced: how.forced,
        operator: "ann".to_owned(),
        reason: "PAY-12".to_owned(),
    }
}

/// Webhooks come in the order of the numbers in their ids.
fn received_at(id: &str) -> Timestamp {
    let digits: String = id.chars().filter(char::is_ascii_digit).collect();
    NOW.plus(Duration::from_secs(digits.parse().unwrap_or(0)))
}

fn envelope(told: &Told) -> Envelope {
    let AccountKey { psp, account } = account();
    Envelope {
        psp,
        account,
        webhook_id: told.id.clone(),
        event_type: Some("payment.test".to_owned()),
        subject: None,
        received_at: received_at(&told.id),
        secret_name: Arc::from("first"),
        proof: Proof::Proven,
        content_type: None,
        headers: Vec::new(),
        traceparent: None,
        body: serde_json::to_vec(told).unwrap().into(),
    }
}

fn outcomes(replayed: &Replayed) -> Vec<(&str, Option<Outcome>, Outcome)> {
    let mut outcomes: Vec<_> = replayed
        .events
        .iter()
        .map(|change| (&*change.key.event_id, change.before.as_ref().map(|before| before.outcome), change.after.outcome))
        .collect();
    outcomes.sort_unstable();
    outcomes
}

fn nothing(unchanged: usize) -> Replayed {
    Replayed { unchanged, ..Replayed::default() }
}

pub async fn a_wrong_amount_is_mended_once(bench: &Bench) {
    let webhooks = [
        right(state("evt_1", "pi_1", Some("order-1"), PaymentState::Pending)),
        mended(captured("evt_2", "pi_1", Some("order-1"), 499_900), captured("evt_2", "pi_1", Some("order-1"), 4999)),
    ];
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    bench.deliver(&FIRST, &webhooks).await;
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::UnderReview);

    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(outcomes(&replayed), [("evt_2", Some(Outcome::Applied), Outcome::Applied)]);
    assert_eq!((replayed.unchanged, replayed.orders.len(), replayed.skipped.len()), (1, 1, 0));
    let change = &replayed.orders[0];
    let seen = |view: &paybell_worker::order::View| (view.status, view.captured);
    assert_eq!(change.before.as_ref().map(seen), Some((OrderStatus::UnderReview, 499_900)));
    assert_eq!(seen(&change.after), (OrderStatus::Paid, 4999));
    assert_eq!(bench.order("order-1").await.view, change.after);
    assert_eq!(bench.texts("SELECT to_status FROM transitions ORDER BY version").await, ["pending", "under_review", "paid"]);
    let actions = bench.texts("SELECT operator || ' ' || reason FROM actions WHERE kind = 'replayed'").await;
    assert_eq!(actions, ["ann PAY-12"]);

    let before = bench.dump().await;
    assert_eq!(bench.replay(&SECOND, all()).await, nothing(2), "a second time it is nothing new");
    for mapping in [&FIRST, &SECOND] {
        let again = bench.deliver(mapping, &webhooks).await;
        assert!(again.events.iter().all(|(_, outcome)| outcome.is_none()), "duplicates stay duplicates: {again:?}");
    }
    assert_eq!(bench.dump().await, before);
}

/// And a webhook that was not understood has told once it is.
pub async fn who_told_first_stays_who_did(bench: &Bench) {
    let paid = |id: &str, payment: &str, minor| captured(id, payment, Some(&format!("order-{payment}")), minor);
    let asked = NOW.plus(Duration::from_secs(30));
    let answers = ["pi_3", "pi_4"].map(|payment| {
        let mut answer = PaymentEvent { source: Source::Reconciliation, ..paid("", payment, 4999) };
        answer.key.event_id = format!("poll:{payment}:1");
        let mut arrival = arrival(&answer);
        arrival.rows[0].received_at = asked;
        arrival
    });
    bench.apply_arrivals_at(asked, &answers).await;
    let webhooks = [
        right(paid("evt_1", "pi_1", 4999)),
        mended(paid("evt_2", "pi_2", 1), paid("evt_2", "pi_2", 4999)),
        right(paid("evt_40", "pi_3", 4999)),
        told("evt_50", Says::Unintelligible, one(paid("evt_50", "pi_4", 4999))),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let others = ["pi_1 money 1 -", "pi_2 money 2 -", "pi_3 money 40 30"];
    assert_eq!(learned(bench).await, [&others[..], &["pi_4 money - 30"]].concat());
    bench.replay(&SECOND, all()).await;
    assert_eq!(learned(bench).await, [&others[..], &["pi_4 money 50 30"]].concat());
    let rows = bench.rows("learned").await;
    for mapping in [&SECOND, &OTHER_SETTINGS] {
        bench.replay(mapping, How { forced: true, ..all() }).await;
        assert_eq!(bench.rows("learned").await, rows);
    }
}

pub async fn a_dry_run_writes_nothing(bench: &Bench) {
    let webhooks = [
        mended(captured("evt_1", "pi_1", Some("order-2"), 1), captured("evt_1", "pi_1", Some("order-1"), 4999)),
        right(refund("evt_2", "pi_1", "re_1", 999)),
        told("evt_3", Says::Unintelligible, one(captured("evt_3", "pi_3", Some("order-3"), 1))),
        mended(captured("evt_4", "pi_4", Some("order-2"), 1), captured("evt_4", "pi_4", None, 1)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let before = bench.dump().await;
    let would = bench.replay(&SECOND, How { dry_run: true, ..all() }).await;
    assert_eq!(bench.dump().await, before);
    let did = bench.replay(&SECOND, all()).await;
    assert_eq!(would, did, "what it said is what it did");
    assert_eq!((did.events.len(), did.orders.len()), (4, 3));
}

pub async fn events_of_the_wrong_order_move_to_theirs(bench: &Bench) {
    let at = |order: &'static str| {
        [
            state("evt_1", "pi_1", Some(order), PaymentState::Pending),
            captured("evt_2", "pi_1", Some(order), 4999),
            refund("evt_3", "pi_1", "re_1", 999),
        ]
    };
    let webhooks: Vec<Told> = at("wrong").into_iter().zip(at("order-1")).map(|(first, second)| mended(first, second)).collect();
    bench.deliver(&FIRST, &webhooks).await;
    bench.deliver(&FIRST, &[right(captured("evt_4", "pi_4", Some("wrong"), 100))]).await;
    assert_eq!(bench.order("wrong").await.view.refunded, 999);

    // The smallest pages: each alone contradicts those that are still wrong, so they go together.
    bench.replay(&SECOND, How { limit: 1, ..all() }).await;
    let (order, wrong) = (bench.order("order-1").await, bench.order("wrong").await);
    assert_eq!((order.view.status, order.view.captured, order.view.refunded), (OrderStatus::PartiallyRefunded, 4999, 999));
    assert_eq!((wrong.view.captured, wrong.view.refunded, wrong.view.payments.len()), (100, 0, 1));
    assert_eq!(bench.texts("SELECT order_id FROM refs WHERE kind = 'payment' ORDER BY value").await, ["order-1", "wrong"]);
    assert_eq!(order.version, 1, "nobody was told of what it was in between");
    // What comes after finds the right one.
    bench.deliver(&SECOND, &[right(refund("evt_5", "pi_1", "re_2", 4000))]).await;
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Refunded);
    let told_of = bench.texts("SELECT DISTINCT order_id FROM actions WHERE kind = 'replayed' ORDER BY order_id").await;
    assert_eq!(told_of, ["order-1", "wrong"]);
}

pub async fn what_followed_a_wrong_event_follows_it_back(bench: &Bench) {
    // The refund says only its payment; it is not wrong, and went where the payment was.
    let webhooks = [
        mended(captured("evt_1", "pi_1", Some("wrong"), 4999), captured("evt_1", "pi_1", Some("order-1"), 4999)),
        right(refund("evt_2", "pi_1", "re_1", 999)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let only = |id: &str| Selection { event: Some(key(id)), ..Selection::default() };
    let replayed = bench.replay(&SECOND, How { selection: only("evt_1"), ..all() }).await;
    let moved: Vec<_> = replayed.events.iter().map(|change| (&*change.key.event_id, change.after.order_id.as_deref())).collect();
    assert_eq!(moved, [("evt_1", Some("order-1")), ("evt_2", Some("order-1"))]);
    assert_eq!(bench.order("order-1").await.view.refunded, 999);
    let wrong = bench.order("wrong").await;
    assert_eq!((wrong.view.status, wrong.view.payments.len(), wrong.version), (OrderStatus::Pending, 0, 2), "{wrong:?}");
    assert_eq!(bench.count("SELECT count(*) FROM transitions WHERE order_id = 'wrong'").await, 2, "its history stays");
}

pub async fn what_the_shop_named_stays(bench: &Bench) {
    // The shop said that this payment is this order's: an event that names another contradicts it, and is put aside.
    bench.register(registration("order-1", Some("pi_1"), 4999)).await;
    let webhooks = [
        mended(captured("evt_1", "pi_1", None, 4999), captured("evt_1", "pi_1", Some("order-2"), 4999)),
        right(refund("evt_2", "pi_1", "re_1", 999)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(outcomes(&replayed), [("evt_1", Some(Outcome::Applied), Outcome::Quarantined)]);
    let view = bench.order("order-1").await.view;
    assert_eq!((view.captured, view.refunded, view.expected.is_some(), view.payments.len()), (0, 999, true, 1));
    assert_eq!(bench.replay(&SECOND, all()).await, nothing(2), "a second time it is nothing new");
}

pub async fn a_quarantined_webhook_is_applied(bench: &Bench) {
    let webhooks = [
        told("evt_1", Says::Unintelligible, one(captured("evt_1", "pi_1", Some("order-1"), 4999))),
        told("evt_2", Says::Unintelligible, Says::Unintelligible),
        right(captured("evt_3", "pi_3", Some("order-3"), 1)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let fingerprint = bench.texts("SELECT DISTINCT fingerprint FROM events WHERE outcome = 'quarantined'").await.remove(0);
    let selection = Selection { fingerprint: Some(fingerprint.clone()), ..Selection::default() };
    let replayed = bench.replay(&SECOND, How { selection: selection.clone(), limit: 1, ..all() }).await;
    assert_eq!(
        outcomes(&replayed),
        [("evt_1", Some(Outcome::Quarantined), Outcome::Applied), ("evt_2", Some(Outcome::Quarantined), Outcome::Quarantined)]
    );
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Paid);
    // What is still not understood is so by the new mapping, under a fingerprint of its own.
    assert_eq!(bench.replay(&SECOND, How { selection, ..all() }).await, nothing(0));
    let now = bench.texts("SELECT fingerprint FROM events WHERE outcome = 'quarantined'").await;
    assert!(now.len() == 1 && now[0] != fingerprint);
}

pub async fn an_applied_event_becomes_ignored(bench: &Bench) {
    let webhooks = [
        right(state("evt_1", "pi_1", Some("order-1"), PaymentState::Pending)),
        told("evt_2", one(captured("evt_2", "pi_1", Some("order-1"), 4999)), Says::Ignored),
        told("evt_3", one(captured("evt_3", "pi_3", Some("order-3"), 1)), Says::Unintelligible),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(
        outcomes(&replayed),
        [("evt_2", Some(Outcome::Applied), Outcome::Ignored), ("evt_3", Some(Outcome::Applied), Outcome::Quarantined)]
    );
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Pending);
    let empty = bench.order("order-3").await.view;
    assert_eq!((empty.status, empty.payments.len()), (OrderStatus::Pending, 0), "it remains, with its history");
    assert_eq!(bench.count("SELECT count(*) FROM refs WHERE value = 'pi_3' AND order_id IS NOT NULL").await, 0);
    assert_eq!(bench.replay(&SECOND, all()).await, nothing(3));
}

pub async fn one_webhook_becomes_many_and_one_again(bench: &Bench) {
    let parts = vec![captured("part_1", "pi_1", Some("order-1"), 4999), refund("part_2", "pi_1", "re_1", 999)];
    let webhook = Told {
        id: "batch_1".to_owned(),
        first: Says::Unintelligible,
        second: Says::Events(parts),
        other: one(captured("part_1", "pi_1", Some("order-1"), 4999)),
    };
    bench.deliver(&FIRST, std::slice::from_ref(&webhook)).await;
    // One of the parts came by another webhook too.
    bench.deliver(&SECOND, &[right(refund("part_2", "pi_1", "re_1", 999))]).await;
    let selection = Selection { event: Some(key("batch_1")), ..Selection::default() };
    let replayed = bench.replay(&SECOND, How { selection: selection.clone(), ..all() }).await;
    assert_eq!(
        outcomes(&replayed),
        [
            ("batch_1", Some(Outcome::Quarantined), Outcome::Ignored),
            ("part_1", None, Outcome::Applied),
            ("part_2", Some(Outcome::Parked), Outcome::Applied)
        ]
    );
    assert_eq!(bench.order("order-1").await.view.status, OrderStatus::PartiallyRefunded);
    assert_eq!(bench.count("SELECT count(*) FROM bodies").await, 2);
    assert_eq!(bench.replay(&SECOND, How { selection: selection.clone(), ..all() }).await, nothing(1));
    // The second mapping with other settings makes less of it: only what its own webhook brought changes.
    let forced = How { selection, forced: true, ..all() };
    assert_eq!(bench.replay(&OTHER_SETTINGS, forced.clone()).await, nothing(1), "the refund is of another webhook");
    assert_eq!(bench.deliver(&SECOND, &[webhook]).await.events.iter().filter(|(_, outcome)| outcome.is_some()).count(), 0);
}

pub async fn a_parked_event_finds_its_order_and_loses_it(bench: &Bench) {
    let webhooks = [
        mended(captured("evt_1", "pi_1", None, 4999), captured("evt_1", "pi_1", Some("order-1"), 4999)),
        right(refund("evt_2", "pi_1", "re_1", 999)),
        mended(captured("evt_3", "pi_3", Some("order-3"), 1), captured("evt_3", "pi_3", None, 1)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(
        outcomes(&replayed),
        [
            ("evt_1", Some(Outcome::Parked), Outcome::Applied),
            ("evt_2", Some(Outcome::Parked), Outcome::Applied),
            ("evt_3", Some(Outcome::Applied), Outcome::Parked)
        ]
    );
    assert_eq!(bench.order("order-1").await.view.refunded, 999);
    // It waits under the name that it has now.
    bench.check_invariants().await;
    bench.register(registration("order-9", Some("pi_3"), 1)).await;
    assert_eq!(bench.order("order-9").await.view.status, OrderStatus::Paid);
}

pub async fn a_newer_mapping_is_not_overwritten(bench: &Bench) {
    let webhook = mended(captured("evt_1", "pi_1", Some("order-1"), 1), captured("evt_1", "pi_1", Some("order-1"), 4999));
    bench.deliver(&SECOND, &[webhook]).await;
    let before = bench.dump().await;
    for forced in [false, true] {
        let replayed = bench.replay(&FIRST, How { forced, ..all() }).await;
        assert_eq!((replayed.events.len(), replayed.unchanged), (0, 0));
        assert!(replayed.skipped.len() == 1 && replayed.skipped[0].1.contains("newer mapping 2"), "{replayed:?}");
    }
    assert_eq!(bench.dump().await, before);
}

pub async fn the_same_mapping_needs_force(bench: &Bench) {
    let event = |order| captured("evt_1", "pi_1", Some(order), 4999);
    let webhook = Told { other: one(event("order-1")), ..right(event("order-2")) };
    bench.deliver(&SECOND, &[webhook]).await;
    let before = bench.dump().await;
    let skipped = bench.replay(&OTHER_SETTINGS, all()).await;
    assert!(skipped.skipped.len() == 1 && skipped.skipped[0].1.contains("force"), "{skipped:?}");
    assert_eq!(bench.dump().await, before);
    bench.replay(&OTHER_SETTINGS, How { forced: true, ..all() }).await;
    assert_eq!(bench.order("order-1").await.view.captured, 4999);
    assert_eq!(bench.replay(&OTHER_SETTINGS, How { forced: true, ..all() }).await, nothing(1));
}

pub async fn what_is_kept_beside_stays(bench: &Bench) {
    let other = captured("evt_1", "pi_1", Some("order-1"), 1);
    bench.deliver(&FIRST, &[right(captured("evt_1", "pi_1", Some("order-1"), 4999))]).await;
    bench.deliver(&FIRST, &[right(other)]).await;
    let before = bench.dump().await;
    for forced in [false, true] {
        let replayed = bench.replay(&SECOND, How { forced, ..all() }).await;
        assert_eq!((replayed.events.len(), replayed.unchanged), (0, 0), "{replayed:?}");
        assert!(replayed.skipped.len() == 1 && replayed.skipped[0].1.contains("a person decides"), "{replayed:?}");
    }
    assert_eq!(bench.dump().await, before);
}

pub async fn an_older_worker_changes_nothing_after_it(bench: &Bench) {
    let webhooks = [
        mended(captured("evt_1", "pi_1", Some("wrong"), 1), captured("evt_1", "pi_1", Some("order-1"), 4999)),
        told("evt_2", one(captured("evt_2", "pi_2", Some("wrong"), 1)), Says::Ignored),
        told("evt_3", Says::Unintelligible, one(captured("evt_3", "pi_3", Some("order-1"), 1))),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    bench.replay(&SECOND, all()).await;
    let before = bench.dump().await;
    assert!(bench.deliver(&FIRST, &webhooks).await.events.iter().all(|(_, outcome)| outcome.is_none()));
    assert!(bench.replay(&FIRST, all()).await.events.is_empty());
    assert_eq!(bench.dump().await, before);
}

pub async fn orders_that_contradict_stay_quarantined_until_one_is_mended(bench: &Bench) {
    // Both mappings agree on these two: nobody but a person knows which is right.
    let contradiction =
        [right(captured("evt_1", "pi_1", Some("order-1"), 4999)), right(captured("evt_2", "pi_1", Some("order-2"), 4999))];
    bench.deliver(&FIRST, &contradiction).await;
    let before = bench.dump().await;
    for forced in [false, true] {
        assert_eq!(bench.replay(&SECOND, How { limit: 1, forced, ..all() }).await.events, []);
    }
    assert_eq!(bench.dump().await, before);

    // Of these two, the first is wrong, and put the second aside.
    let webhooks = [
        mended(captured("evt_3", "pi_3", Some("wrong"), 4999), captured("evt_3", "pi_3", Some("order-3"), 4999)),
        right(refund("evt_4", "pi_3", "re_3", 999)),
        right(captured("evt_5", "pi_3", Some("order-3"), 4999)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    assert_eq!(bench.texts("SELECT outcome FROM events WHERE event_id = 'evt_5'").await, ["quarantined"]);
    let only = Selection { event: Some(key("evt_5")), ..Selection::default() };
    // Looked at alone, it takes with it what held it off.
    bench.replay(&SECOND, How { selection: only, ..all() }).await;
    assert_eq!(bench.order("order-3").await.view.status, OrderStatus::PartiallyRefunded);
    assert_eq!(bench.texts("SELECT outcome FROM events WHERE event_id = 'evt_5'").await, ["superseded"]);
    assert_eq!(bench.order("wrong").await.view.payments, []);
}

pub async fn an_account_that_is_not_configured_is_skipped(bench: &Bench) {
    bench.deliver(&FIRST, &[right(captured("evt_1", "pi_1", Some("order-1"), 4999))]).await;
    let mut context = bench.context(&SECOND).await;
    context.accounts.clear();
    let page = replay::page(&context, &request(&all(), None)).await.unwrap();
    let problem = "stripe/default is not configured here".to_owned();
    assert_eq!(page.replayed, Replayed { skipped: vec![(key("evt_1"), problem)], ..Replayed::default() });
}

pub async fn a_webhook_that_panics_costs_only_itself(bench: &Bench) {
    let webhooks = [
        told("evt_1", one(captured("evt_1", "pi_1", Some("order-1"), 1)), Says::Panics),
        mended(captured("evt_2", "pi_2", Some("order-2"), 1), captured("evt_2", "pi_2", Some("order-2"), 4999)),
    ];
    bench.deliver(&FIRST, &webhooks).await;
    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(replayed.skipped, [(key("evt_1"), "translating it panicked".to_owned())]);
    assert_eq!(bench.order("order-2").await.view.captured, 4999);
}

pub async fn selections_find_what_they_mean(bench: &Bench) {
    let webhooks: Vec<Told> = (1..=40)
        .map(|n| right(captured(&format!("evt_{n:02}"), &format!("pi_{n}"), Some(&format!("order-{}", n % 2)), 1)))
        .chain([told("evt_41", Says::Unintelligible, Says::Ignored)])
        .collect();
    bench.deliver(&FIRST, &webhooks).await;
    let found = async |selection: Selection, limit| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = bench.store.bodies(&selection, after.as_ref(), limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            found.extend(page.iter().map(|stored| stored.body.webhook_id.clone()));
            let Some(last) = page.last() else { return found };
            assert_eq!((last.body.received_at, last.event_type.as_deref()), (last.place.received_at, Some("payment.test")));
            after = Some(last.place);
        }
    };
    let ids = |numbers: Vec<u32>| -> Vec<String> { numbers.iter().map(|n| format!("evt_{n:02}")).collect() };
    let none = Selection::default();
    let fingerprint = bench.texts("SELECT fingerprint FROM events WHERE outcome = 'quarantined'").await.remove(0);
    let nobody = AccountKey { psp: "stripe".into(), account: "nobody".into() };
    let since = Some(received_at("evt_10"));
    let until = Some(received_at("evt_13"));
    let cases = [
        (none.clone(), (1..=41).collect()),
        (Selection { psp: Some("stripe".to_owned()), ..none.clone() }, (1..=41).collect()),
        (Selection { psp: Some("other".to_owned()), ..none.clone() }, vec![]),
        (Selection { account: Some(account()), ..none.clone() }, (1..=41).collect()),
        (Selection { account: Some(nobody), ..none.clone() }, vec![]),
        (Selection { since, ..none.clone() }, (10..=41).collect()),
        (Selection { until, ..none.clone() }, (1..=12).collect()),
        (Selection { since, until, ..none.clone() }, vec![10, 11, 12]),
        (Selection { order_id: Some("order-1".to_owned()), ..none.clone() }, (1..=40).filter(|n| n % 2 == 1).collect()),
        (Selection { order_id: Some("order-1".to_owned()), since, until, ..none.clone() }, vec![11]),
        (Selection { order_id: Some("order-9".to_owned()), ..none.clone() }, vec![]),
        (Selection { event: Some(key("evt_07")), ..none.clone() }, vec![7]),
        (Selection { event: Some(key("evt_07")), order_id: Some("order-0".to_owned()), ..none.clone() }, vec![]),
        (Selection { fingerprint: Some(fingerprint), ..none.clone() }, vec![41]),
    ];
    for (selection, numbers) in cases {
        for limit in [1, 7, 100] {
            assert_eq!(found(selection.clone(), limit).await, ids(numbers.clone()), "{selection:?} in pages of {limit}");
        }
    }
    let bodies = bench.store.bodies(&none, None, 100).await.unwrap();
    let places: Vec<BodyPlace> = [3, 20].map(|place: usize| bodies[place].place).into();
    let gone = BodyPlace { id: uuid::Uuid::from_u128(7), ..places[0] };
    let these = Selection { places: Some([vec![gone], places].concat()), ..none };
    assert_eq!(found(these, 100).await, ids(vec![4, 21]));
    // Their bytes are the bytes.
    assert_eq!(bodies[3].body.bytes, envelope(&webhooks[3]).body);
}

pub async fn an_order_with_too_many_events_is_skipped(bench: &Bench) {
    let webhooks = [1, 2].map(|n| {
        let (id, payment, order) = (format!("evt_{n}"), format!("pi_{n}"), format!("order-{n}"));
        mended(captured(&id, &payment, Some(&order), 1), captured(&id, &payment, Some(&order), 4999))
    });
    bench.deliver(&FIRST, &webhooks).await;
    let columns =
        "event_type, source, facts, foreign_mode, facts_sha256, mapping_version, outcome, order_id, received_at, applied_at";
    let many = format!(
        "INSERT INTO events (psp, account, event_id, {columns})
         WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE n < 20000)
         SELECT psp, account, 'copy_' || n, {columns} FROM events, copies WHERE event_id = 'evt_1'"
    );
    bench.execute(&many).await;
    let replayed = bench.replay(&SECOND, all()).await;
    assert_eq!(outcomes(&replayed), [("evt_2", Some(Outcome::Applied), Outcome::Applied)], "it costs only itself");
    assert!(replayed.skipped.len() == 1 && replayed.skipped[0].1.contains("more than 20000 events"), "{:?}", replayed.skipped);
    bench.execute("DELETE FROM events WHERE event_id = 'copy_20000'").await;
    assert_eq!(bench.replay(&SECOND, all()).await.skipped, [], "so many it can");
    bench.execute("DELETE FROM events WHERE event_id LIKE 'copy_%'").await;
}

/// The audit finds nothing: every order is what all facts of its events amount to, every name leads where it should.
pub async fn is_balanced(bench: &Bench) {
    let policy = bench.context(&SECOND).await.policy;
    let report = bench.store.audit(Scope { policy: &policy, bodies_kept_since: None }, &|_, _| ()).await.unwrap();
    assert!(report.is_balanced(), "{report:#?}");
}

/// Mends one webhook after another, found in every way.
pub async fn selected_in_every_way(bench: &Bench, round: usize) {
    let id = format!("evt_{round}");
    let (payment, order) = (format!("pi_{round}"), format!("order-{round}"));
    let webhook = mended(captured(&id, &payment, Some(&order), 1), captured(&id, &payment, Some(&order), 4999));
    bench.deliver(&FIRST, &[webhook]).await;
    let none = Selection::default();
    let selections = [
        Selection { event: Some(key(&id)), ..none.clone() },
        Selection { order_id: Some(order.clone()), ..none.clone() },
        Selection { fingerprint: Some(order.clone()), ..none.clone() },
        Selection { since: Some(received_at(&id)), ..none },
    ];
    for selection in selections {
        bench.replay(&SECOND, How { selection, ..all() }).await;
    }
    assert_eq!(bench.order(&order).await.view.captured, 4999);
}

pub async fn answers_of_the_psp_stay(bench: &Bench) {
    // An answer has no body: its facts are joined again as they are.
    bench.apply(&[refund("poll:1", "pi_1", "re_1", 999)]).await;
    let webhook = mended(captured("evt_1", "pi_1", Some("wrong"), 1), captured("evt_1", "pi_1", Some("order-1"), 4999));
    bench.deliver(&FIRST, &[webhook]).await;
    assert_eq!(bench.order("wrong").await.view.refunded, 999);
    bench.replay(&SECOND, all()).await;
    assert_eq!(bench.order("order-1").await.view.refunded, 999);
    assert_eq!(bench.texts("SELECT order_id FROM events WHERE event_id = 'poll:1'").await, ["order-1"]);
    assert_eq!(bench.order("wrong").await.view.payments, []);
}

/// A history over few orders and payments, with what a buggy mapping makes of it.
struct History {
    registrations: Vec<paybell_worker::store::Registration>,
    webhooks: Vec<Told>,
}

impl History {
    fn random(case: u64, random: &mut StdRng) -> Self {
        const ORDERS: usize = 3;
        let order = |n: usize| format!("{case}-order-{n}");
        let payment = |order: usize, n: usize| format!("{case}-pi-{order}-{n}");
        let mut registrations = Vec::new();
        for n in 0..ORDERS {
            if random.random_bool(0.4) {
                let payment = random.random_bool(0.5).then(|| payment(n, 0));
                registrations.push(registration(&order(n), payment.as_deref(), 4999));
            }
        }
        let mut webhooks: Vec<Told> = (0..random.random_range(2..9))
            .map(|n| {
                let (of, id) = (random.random_range(0..ORDERS), format!("evt_{}", case * 1000 + n));
                let payment_id = payment(of, random.random_range(0..2));
                let names = random.random_bool(0.6).then(|| order(of));
                let kind = random.random_range(0..3);
                let event = |order: Option<&str>, minor: i64| match kind {
                    0 => state(&id, &payment_id, order, PaymentState::Pending),
                    1 => captured(&id, &payment_id, order, minor),
                    _ => refund(&id, &payment_id, &format!("re_{id}"), minor / 10),
                };
                let second = event(names.as_deref(), 4999);
                let first = match random.random_range(0..10) {
                    0 => Says::Ignored,
                    1 => Says::Unintelligible,
                    2 => one(event(names.as_deref(), 499_900)),
                    3 => one(event(None, 4999)),
                    4 | 5 => one(event(Some(&order(random.random_range(0..ORDERS))), 4999)),
                    6 => one(event(Some(&format!("{case}-wrong")), 4999)),
                    _ => one(second.clone()),
                };
                let second = if random.random_bool(0.1) { Says::Ignored } else { one(second) };
                told(&id, first, second)
            })
            .collect();
        webhooks.shuffle(random);
        Self { registrations, webhooks }
    }
}

/// Random histories, mistranslated, then replayed once in pages of any size: the orders are those of a database that never
/// knew the wrong facts.
pub async fn replaying_everything_is_as_if_it_had_been_right(bench: &Bench) {
    const CASES: u64 = 60;
    let clean = Bench::sqlite().await;
    let mut random = StdRng::seed_from_u64(11);
    for case in 1..=CASES {
        let history = History::random(case, &mut random);
        for registration in &history.registrations {
            bench.register(registration.clone()).await;
            clean.register(registration.clone()).await;
        }
        for batch in history.webhooks.chunks(random.random_range(1..5)) {
            bench.deliver(&FIRST, batch).await;
        }
        clean.deliver(&SECOND, &history.webhooks).await;
        let since = Some(received_at(&format!("evt_{}", case * 1000)));
        let selection = Selection { since, ..Selection::default() };
        let limit = random.random_range(1..6);
        bench.replay(&SECOND, How { selection: selection.clone(), limit, ..all() }).await;
        bench.check_invariants().await;
        same_orders(bench, &clean, case, &history).await;
        assert_eq!(bench.replay(&SECOND, How { selection, ..all() }).await.events, [], "case {case}: a second time changes");
    }
    clean.store.close().await;
}

async fn same_orders(bench: &Bench, clean: &Bench, case: u64, history: &History) {
    let of = |registers: BTreeMap<String, serde_json::Value>| -> BTreeMap<String, serde_json::Value> {
        registers.into_iter().filter(|(id, _)| id.starts_with(&format!("{case}-"))).collect()
    };
    let (replayed, expected) = (of(bench.registers().await), of(clean.registers().await));
    let empty = serde_json::to_value(paybell_worker::order::Registers::default()).unwrap();
    for (id, registers) in &replayed {
        assert_eq!(registers, expected.get(id).unwrap_or(&empty), "case {case}, {id}: {:#?}", history.webhooks);
    }
    assert!(expected.keys().all(|id| replayed.contains_key(id)), "case {case}: an order is missing");
    let sql = format!(
        "SELECT event_id || ' ' || CASE outcome WHEN 'superseded' THEN 'applied' ELSE outcome END || ' ' || coalesce(order_id, '')
         FROM events WHERE event_id LIKE 'evt_{case}0%' ORDER BY event_id"
    );
    let (now, right) = (bench.texts(&sql).await, clean.texts(&sql).await);
    assert_eq!(now, right, "case {case}: {:#?}", history.webhooks);
}

/// Workers of both mappings bring webhooks of few orders while two operators replay: when all is quiet and replayed once
/// more, nothing is left of the wrong facts.
pub async fn it_agrees_with_webhooks_that_come_meanwhile(bench: &Bench) {
    let mut random = StdRng::seed_from_u64(5);
    let webhooks: Vec<Told> = (1..=90)
        .map(|n| {
            let (of, id) = (n % 3, format!("evt_{n}"));
            let (order, payment) = (format!("order-{of}"), format!("pi_{of}_{}", n % 2));
            let event = |order: &str, minor: i64| match n % 5 {
                0 => refund(&id, &payment, &format!("re_{n}"), minor / 100),
                1 => state(&id, &payment, Some(order), PaymentState::Failed),
                _ => captured(&id, &payment, Some(order), minor),
            };
            let second = event(&order, 4999);
            let first = match random.random_range(0..4) {
                0 => event(["order-0", "order-1", "wrong"].choose(&mut random).unwrap(), 4999),
                1 => event(&order, 499_900),
                _ => second.clone(),
            };
            mended(first, second)
        })
        .collect();
    let traffic = (0..4_u64).map(|seed| {
        let mut mine = webhooks.clone();
        mine.shuffle(&mut StdRng::seed_from_u64(seed));
        async move {
            let mapping = if seed % 2 == 0 { &FIRST } else { &SECOND };
            for batch in mine.chunks(7) {
                bench.deliver(mapping, batch).await;
            }
        }
    });
    let operators = (0..2).map(|n| async move {
        for _ in 0..4 {
            bench.replay(&SECOND, How { limit: 10 + n, ..all() }).await;
        }
    });
    tokio::join!(join_all(traffic), join_all(operators));
    bench.check_invariants().await;
    bench.replay(&SECOND, How { limit: 20, ..all() }).await;

    let clean = Bench::sqlite().await;
    clean.deliver(&SECOND, &webhooks).await;
    let (mut replayed, expected) = (bench.registers().await, clean.registers().await);
    let empty = serde_json::to_value(paybell_worker::order::Registers::default()).unwrap();
    replayed.retain(|_, registers| *registers != empty);
    assert_eq!(replayed, expected);
    assert_eq!(bench.count("SELECT count(*) FROM events WHERE outcome NOT IN ('applied', 'superseded')").await, 0);
    clean.store.close().await;
}

fn key(id: &str) -> EventKey {
    let AccountKey { psp, account } = account();
    EventKey { psp, account, event_id: id.to_owned() }
}
