//! Reading a PSP's list: what no webhook told is learned all the same, once, and a list that lies changes nothing.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use paybell::simulator::ledger::{Ledger, RefundState, payment_id};
use paybell::simulator::story::Story;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{self, Account as SimulatedAccount, Dialect as _, Settings, Webhook};
use paybell_shared::clock::{Clock as _, ManualClock, SystemClock, Timestamp};
use paybell_shared::money::{Currency, Money};
use paybell_shared::psp::{self, LateChanges};
use paybell_tests::conformance::store::Bench;
use paybell_tests::liar::{Liar, Line, page};
use paybell_tests::played::Played;
use paybell_tests::scene::{Instead, PAID, Scene, scene_with};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, http_client, temporary_folder};
use paybell_tests::shop::{Shop, TOKEN, configuration};
use paybell_tests::worker::{context, key_of, register_over};
use paybell_worker::asking::Asker;
use paybell_worker::reconcile;
use paybell_worker::store::{Lease, LeasedPage};
use paybell_worker::sweep::course::Course;
use paybell_worker::sweep::{self, StepReport, Sweeper, step};
use paybell_worker::transport::PspTransport;
use serde_json::{Value, json};
use uuid::Uuid;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);
/// Stripe's list is read so often.
const EVERY: Duration = Duration::from_mins(5);
/// By so much each reading overlaps with the one before.
const LAG: Duration = Duration::from_mins(15);
/// So long nobody else reads a page.
const LEASE: Duration = Duration::from_mins(2);
const EVENTS: &str = "/v1/events";

/// A scene whose list is swept.
struct Swept {
    scene: Scene,
    sweeper: Sweeper,
}

impl Swept {
    async fn on(bench: Bench) -> Self {
        let scene = scene_with(bench).await;
        let sweeper = Sweeper::new(scene.reconciler().await.asker);
        Self { scene, sweeper }
    }

    /// The same account, but that this one answers in place of it.
    async fn at(&self, liar: &Arc<Liar>) -> Sweeper {
        let store = Arc::clone(&self.scene.bench.store);
        let context = context(store, self.scene.clock.clone(), vec![Arc::clone(&self.scene.account)]).await;
        Sweeper::new(Asker::new(Arc::new(context), Arc::<Liar>::clone(liar) as Arc<dyn PspTransport>))
    }

    fn now_s(&self) -> i64 {
        self.scene.clock.now().seconds()
    }

    /// What happens at the PSP now.
    fn books<T>(&self, write: impl FnOnce(&mut Ledger, i64) -> T) -> T {
        write(&mut self.scene.stripe.ledger_mut(), self.now_s())
    }

    /// Reads on, as long as a page is due within seconds.
    async fn read_on(&self) -> StepReport {
        self.read_on_by(&self.sweeper).await
    }

    async fn read_on_by(&self, sweeper: &Sweeper) -> StepReport {
        let mut all = StepReport::default();
        loop {
            let report = step(sweeper).await.unwrap();
            all.pages += report.pages;
            all.failed += report.failed;
            all.counts += report.counts;
            if report.pages == 0 {
                return all;
            }
            self.scene.clock.advance(Duration::from_secs(1));
        }
    }

    /// Lets time pass, in which the list is read whenever it is due.
    async fn pass(&self, time: Duration) {
        let end = self.scene.clock.now().plus(time);
        while self.scene.clock.now() < end {
            self.read_on().await;
            self.scene.clock.advance(EVERY);
        }
    }

    async fn course(&self) -> Course {
        self.scene.bench.store.course(&key_of(&self.scene.account)).await.unwrap().unwrap()
    }

    /// Of the list.
    fn requests(&self) -> usize {
        self.scene.api.asked.lock().unwrap().get(EVENTS).copied().unwrap_or_default()
    }

    /// The order is as the PSP's books have it.
    async fn assert_true(&self, order_id: &str) {
        self.scene.assert_true(order_id).await;
    }
}

async fn each() -> [Swept; 2] {
    [Swept::on(Bench::sqlite().await).await, Swept::on(Bench::new(servers::postgres().await.database().await).await).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_in_the_dashboard_arrives() {
    for swept in each().await {
        let reconciler = swept.scene.reconciler().await;
        let id = swept.scene.open(&reconciler, "order-1").await;
        swept.books(|ledger, now| ledger.capture(&id, PAID, now));
        swept.scene.webhook(&reconciler).await;
        assert_eq!(swept.scene.order("order-1").await.view.status.as_str(), "paid");
        swept.read_on().await;
        swept.scene.clock.advance(EVERY);
        swept.books(|ledger, now| ledger.refund(&id, 1000, RefundState::Succeeded, now));
        swept.scene.clock.advance(MINUTE);
        let report = swept.read_on().await;
        assert!(report.counts.new > 0, "{report:?}");
        assert_eq!(swept.scene.order("order-1").await.view.status.as_str(), "partially_refunded");
        swept.assert_true("order-1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_nobody_told_us_of_arrives() {
    for swept in each().await {
        swept.books(|ledger, now| {
            let id = ledger.open("unheard-of", PAID, "EUR", false, now);
            ledger.capture(&id, PAID, now);
        });
        swept.scene.clock.advance(MINUTE);
        swept.read_on().await;
        swept.assert_true("unheard-of").await;
        // The webhook that comes after it says nothing new.
        let version = swept.scene.order("unheard-of").await.version;
        let webhook = Webhook::from(swept.scene.stripe.ledger().events().last().unwrap());
        swept.scene.comes(&swept.scene.reconciler().await, &webhook).await;
        assert_eq!(swept.scene.order("unheard-of").await.version, version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_caught_up_with_as_far_as_the_list_reaches() {
    for swept in each().await {
        swept.read_on().await;
        let before = swept.course().await.swept_until();
        // Nobody reads, and no webhook comes, for forty days. Stripe's list reaches back thirty.
        let days: Vec<u32> = vec![1, 5, 9, 11, 20, 30, 39];
        let begun = swept.scene.clock.now();
        for day in &days {
            swept.scene.clock.advance(begun.plus(DAY * *day).since(swept.scene.clock.now()));
            swept.books(|ledger, now| {
                let id = ledger.open(&format!("day-{day}"), PAID, "EUR", false, now);
                ledger.capture(&id, PAID, now);
            });
        }
        swept.scene.clock.advance(DAY);
        swept.read_on().await;
        for day in days {
            let order_id = format!("day-{day}");
            if day < 10 {
                assert!(swept.scene.bench.store.order(&order_id).await.unwrap().is_none(), "{order_id}");
            } else {
                swept.assert_true(&order_id).await;
            }
        }
        let until = swept.course().await.swept_until();
        assert!(until > before && swept.scene.clock.now().since(until) < EVERY, "{until:?}");
    }
}

/// As if a worker had died between what a page told and the place behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_read_again_counts_once() {
    for swept in each().await {
        for number in 0..30 {
            swept.books(|ledger, now| {
                let id = ledger.open(&format!("order-{number}"), PAID, "EUR", false, now);
                ledger.capture(&id, PAID, now);
            });
        }
        swept.scene.clock.advance(MINUTE);
        let first = swept.read_on().await;
        let versions = versions(&swept).await;
        swept.scene.bench.execute("DELETE FROM sweeps").await;
        let again = swept.read_on().await;
        assert_eq!((again.counts.new, again.counts.known), (0, first.counts.new + first.counts.known));
        assert_eq!(self::versions(&swept).await, versions);
        swept.scene.bench.check_invariants().await;
    }
}

async fn versions(swept: &Swept) -> Vec<i64> {
    let mut versions = Vec::new();
    for number in 0..30 {
        versions.push(swept.scene.order(&format!("order-{number}")).await.version);
    }
    versions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_one_reads_and_a_dead_ones_page_is_the_others() {
    for swept in each().await {
        let other = Sweeper::new(swept.scene.reconciler().await.asker);
        let (one, two) = tokio::join!(step(&swept.sweeper), step(&other));
        assert_eq!((one.unwrap().pages + two.unwrap().pages, swept.requests()), (1, 1));

        swept.scene.clock.advance(EVERY);
        let now = swept.scene.clock.now();
        let lease = Lease { now, until: now.plus(LEASE), token: Uuid::from_u128(7), per_second: 5 };
        let leased = swept.scene.bench.store.lease_page(&key_of(&swept.scene.account), &lease).await.unwrap();
        assert!(matches!(leased, LeasedPage::Page(_)), "{leased:?}");
        // Whoever has it is dead now.
        assert_eq!(step(&other).await.unwrap(), StepReport::default());
        swept.scene.clock.advance(LEASE);
        assert_eq!(step(&other).await.unwrap().pages, 1);
        assert_eq!(swept.requests(), 2);
    }
}

/// What the list says instead of the truth, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_cannot_be_read_moves_nothing_and_is_read_once_it_can_be() {
    let event =
        |id: &str| json!({ "id": id, "object": "event", "type": "payment_intent.created", "created": 1, "livemode": false });
    let lies = [
        Instead::of(500, "{}"),
        Instead::of(404, "{}"),
        Instead::of(403, "{}"),
        Instead::of(200, "<html>"),
        Instead::of(200, "{}"),
        Instead::of(200, r#"{"object":"list","has_more":true,"data":[]}"#),
        // Of another time than was asked for.
        Instead::of(200, page(&[event("evt_1")], false).to_string()),
        // The same page for ever.
        Instead::of(200, page(&[event("evt_1")], true).to_string()),
    ];
    for swept in each().await {
        let reconciler = swept.scene.reconciler().await;
        let id = swept.scene.open(&reconciler, "order-1").await;
        swept.books(|ledger, now| ledger.capture(&id, PAID, now));
        swept.scene.webhook(&reconciler).await;
        swept.read_on().await;
        let (until, version) = (swept.course().await.swept_until(), swept.scene.order("order-1").await.version);
        swept.books(|ledger, now| ledger.refund(&id, PAID, RefundState::Succeeded, now));
        for lie in &lies {
            swept.scene.answers(Some(lie.clone()));
            for _ in 0..3 {
                swept.scene.clock.advance(Duration::from_hours(1));
                let report = step(&swept.sweeper).await.unwrap();
                assert_eq!((report.pages, report.counts.new), (0, 0), "{lie:?}");
                assert_eq!(swept.course().await.swept_until(), until, "{lie:?}");
            }
        }
        assert_eq!(swept.scene.order("order-1").await.version, version);
        swept.scene.answers(None);
        swept.scene.clock.advance(Duration::from_hours(1));
        swept.read_on().await;
        swept.assert_true("order-1").await;
        assert!(swept.course().await.swept_until() > until);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_forbidden_does_not_keep_payments_from_being_asked_about() {
    for swept in each().await {
        let reconciler = swept.scene.reconciler().await;
        let id = swept.scene.open(&reconciler, "order-1").await;
        swept.scene.answers(Some(Instead::of(403, "{}")));
        for _ in 0..10 {
            assert_eq!(step(&swept.sweeper).await.unwrap().pages, 0);
            swept.scene.clock.advance(Duration::from_hours(1));
        }
        swept.scene.answers(None);
        swept.books(|ledger, now| ledger.capture(&id, PAID, now));
        assert_eq!(reconcile::step(&reconciler).await.unwrap().changed, 1);
        swept.assert_true("order-1").await;
    }
}

/// Cut short, or read from a copy that lags: the place waits for what webhooks told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_says_less_than_webhooks_is_not_believed() {
    for swept in each().await {
        let reconciler = swept.scene.reconciler().await;
        let id = swept.scene.open(&reconciler, "told").await;
        swept.read_on().await;
        swept.scene.clock.advance(MINUTE);
        let told_at = swept.scene.clock.now();
        swept.books(|ledger, now| ledger.capture(&id, PAID, now));
        swept.scene.webhook(&reconciler).await;
        // What nobody told shows in the same list, later.
        swept.books(|ledger, now| {
            let id = ledger.open("untold", PAID, "EUR", false, now);
            ledger.capture(&id, PAID, now);
        });
        let empty = Liar::new(swept.scene.clock.clone(), |_| Line::Says(page(&[], false)));
        let lagging = swept.at(&empty).await;
        for _ in 0..12 {
            swept.scene.clock.advance(EVERY);
            swept.read_on_by(&lagging).await;
        }
        let course = swept.course().await;
        // No further than where the next reading begins before it.
        assert!(course.swept_until() <= told_at.plus(LAG) && course.doubted_since().is_some(), "{course:?}");
        swept.scene.clock.advance(EVERY);
        swept.read_on().await;
        swept.assert_true("untold").await;
        let course = swept.course().await;
        assert!(course.swept_until() > told_at.plus(LAG) && course.doubted_since().is_none(), "{course:?}");
    }
}

/// For days the list is read as it stands, in every way that it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_of_reading_learn_everything_once_and_lead_nowhere_else() {
    let swept = Swept::on(Bench::sqlite().await).await;
    for number in 0..24 {
        swept.books(|ledger, now| {
            let id = ledger.open(&format!("order-{number}"), PAID, "EUR", false, now);
            ledger.capture(&id, PAID, now);
            if number % 3 == 0 {
                ledger.refund(&id, PAID, RefundState::Succeeded, now);
            }
        });
        swept.pass(Duration::from_hours(3)).await;
    }
    for number in 0..24 {
        swept.assert_true(&format!("order-{number}")).await;
    }
}

/// Over running processes: by the API and by the command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_reads_a_time_again() {
    const KEY: &str = "sk_test_of_the_tests_only";
    let folder = temporary_folder("sweep").unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.join(name).display());
    let settings = Settings { api_key: Some(KEY.to_owned()), ..Stripe.settings() };
    let stripe = SimulatedAccount::new(&Stripe, settings, Ledger::new(&Stripe, false, 1));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, stripe.api().unwrap()).into_future());
    // Two days ago: the sweep of an account that is new begins an hour back.
    let now = SystemClock.now();
    let made_at = now.minus(2 * DAY).seconds();
    let id = stripe.ledger_mut().open("long-ago", PAID, "EUR", false, made_at);
    stripe.ledger_mut().capture(&id, PAID, made_at + 60);
    let text = configuration(&file("queue.db"), &file("store.db"), "memory:")
        + &format!("api_url = \"http://{address}\"\napi_key = {KEY:?}\n");
    let serve = Service::serve(&text).await;
    let (shop, api) = (Shop::of(&serve, &serve), serve.api_url());
    let command = async |arguments: &[&str]| {
        let listen = api.trim_start_matches("http://");
        let command = Service::start_unready("paybell", arguments, &text, &[("PAYBELL_API_LISTEN", listen)]);
        (command.exit_status().await, command.log())
    };
    let at = |back: Duration| now.minus(back).to_string();

    let (code, said) = command(&["sweep", "stripe", "--since", &at(3 * DAY), "--json"]).await;
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let totals = &lines.last().unwrap_or_else(|| panic!("{code}: {said}"))["totals"];
    assert!(code == 0 && totals["new"].as_u64().unwrap() >= 2 && totals["quarantined"] == 0, "{code}: {said}");
    shop.until("long-ago", "paid").await;
    let (code, said) = command(&["sweep", "stripe", "--since", &at(3 * DAY), "--until", &at(DAY)]).await;
    assert!(code == 0 && said.contains(" 0 new"), "repeated, it changes nothing: {code}: {said}");

    for (arguments, code, words) in [
        (&["sweep", "nobody", "--since", &at(DAY)] as &[&str], 2, "there is no PSP \"nobody\""),
        (&["sweep", "stripe", "--since", "yesterday"], 2, "RFC 3339"),
        (&["sweep", "stripe", "--since", &now.plus(DAY).to_string()], 2, "begins after now"),
        (&["sweep", "stripe", "--since", &at(60 * DAY)], 2, "reaches back to"),
        (&["sweep", "stripe", "--account", "other", "--since", &at(DAY)], 2, "there are stripe/default"),
        (&["sweep", "adyen", "--since", &at(DAY)], 2, "there is no account adyen/default"),
    ] {
        let (is, said) = command(arguments).await;
        assert!(is == code && said.contains(words), "{arguments:?}: {is}: {said}");
    }
    let wrong = json!({ "psp": "stripe", "since": at(DAY), "cursor": "{}" });
    let answer = http_client().post(format!("{api}/v1/sweeps")).bearer_auth(TOKEN).json(&wrong).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    drop(serve);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A time of the list is only believed up to when the PSP wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_in_the_future_is_set_aside() {
    for swept in each().await {
        let later: fn(Timestamp) -> i64 = |now| now.plus(3 * DAY).seconds();
        let (now, clock) = (swept.scene.clock.now(), swept.scene.clock.clone());
        let liar = Liar::new(clock, move |_| {
            let intent = json!({ "id": "pi_future", "object": "payment_intent", "status": "succeeded", "livemode": false,
                "currency": "eur", "amount": PAID, "amount_received": PAID, "metadata": { "order_id": "future" } });
            let event = json!({ "id": "evt_future", "object": "event", "type": "payment_intent.succeeded", "created": later(now),
                "livemode": false, "data": { "object": intent } });
            Line::Says(page(&[event], false))
        });
        let sweeper = swept.at(&liar).await;
        swept.read_on_by(&sweeper).await;
        assert!(swept.scene.bench.store.order("future").await.unwrap().is_none());
        swept.scene.bench.check_invariants().await;
    }
}

/// At every PSP whose list can be read: a payment of which no webhook came, and what becomes of it later, where the list is said to
/// show that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_list_shows_what_it_is_said_to_show() {
    let mut read = Vec::new();
    for dialect in simulator::ALL {
        let (bench, clock) = (Bench::sqlite().await, Arc::new(ManualClock::at(SystemClock.now())));
        let played = Played::new(*dialect, clock.clone()).await;
        if sweep::listing(&played.account).is_none() {
            continue;
        }
        read.push(dialect.id());
        let reconciler = played.reconciler(&bench.store, &clock).await;
        let sweeper = Sweeper::new(reconciler.asker.clone());
        let currency = Currency::parse(dialect.currencies()[0]).unwrap();
        let id = payment_id(*dialect, "order-1");
        register_over(reconciler.context(), &played.account, "order-1", &id, Money::new(PAID, currency)).await;
        let books = |write: &dyn Fn(&mut Ledger, i64)| write(&mut played.simulated.ledger_mut(), clock.now().seconds());
        // Until all that is in the books now was read, page by page.
        let swept = async || {
            let until = clock.now();
            loop {
                clock.advance(Duration::from_secs(2));
                let report = step(&sweeper).await.unwrap();
                assert_eq!(report.failed, 0, "{}", dialect.id());
                // Of what a list only hints at, the PSP is asked; of nothing else here.
                if report.counts.hints > 0 {
                    reconcile::step(&reconciler).await.unwrap();
                }
                let course = bench.store.course(&key_of(&played.account)).await.unwrap();
                if course.is_some_and(|course| course.swept_until() > until) {
                    break;
                }
                assert!(clock.now() < until.plus(DAY), "{}", dialect.id());
            }
        };
        let is_true = async || {
            let (view, truth) = (bench.order("order-1").await.view, played.simulated.ledger().truth("order-1").unwrap());
            let told = (view.status.as_str(), view.captured, view.refunded, view.disputed);
            assert_eq!(told, (truth.status, truth.captured, truth.refunded, truth.disputed), "{}", dialect.id());
        };
        books(&|ledger, now| {
            ledger.open("order-1", PAID, dialect.currencies()[0], false, now);
            ledger.capture(&id, PAID, now);
        });
        swept().await;
        is_true().await;
        let refunds = dialect.plays(Story::Refunded) && dialect.tells_when_asked(Story::Refunded);
        if refunds && played.account.psp.profile().can.late_changes != LateChanges::Unlisted {
            clock.advance(2 * DAY);
            books(&|ledger, now| {
                ledger.refund(&id, PAID, RefundState::Succeeded, now);
            });
            swept().await;
            is_true().await;
        }
        bench.check_invariants().await;
    }
    let listed: Vec<&str> = psp::ALL.iter().filter(|psp| psp.profile().list.is_some()).map(|psp| psp.id()).collect();
    assert!(listed.iter().all(|id| read.contains(id)), "{listed:?} have lists, and read were {read:?}");
}
