//! Several workers ask one PSP: each due payment once, within its limits, as one; and what a dead one began, another one ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use paybell::simulator::paypal::PayPal;
use paybell_shared::clock::{Clock, ManualClock, SystemClock, Timestamp};
use paybell_shared::psp::Account;
use paybell_tests::conformance::store::{Bench, eur};
use paybell_tests::liar::{self, Liar, Line, Question};
use paybell_tests::played::Played;
use paybell_tests::scene::{PAID, Scene, account_at, scene_with};
use paybell_tests::servers;
use paybell_tests::servers::process::Service;
use paybell_tests::shop::configuration;
use paybell_tests::worker::{context, key_of, register};
use paybell_worker::manners::BUSY_MAX;
use paybell_worker::order::OrderStatus;
use paybell_worker::reconcile::{Reconciler, step};
use paybell_worker::store::{self, Registration, Work};
use paybell_worker::transport::PspTransport;
use serde_json::json;
use tokio::sync::Notify;

const SECOND: Duration = Duration::from_secs(1);
/// The lease of a look, after which it is another worker's.
const LEASE: Duration = Duration::from_mins(5);

async fn postgres() -> Bench {
    Bench::new(servers::postgres().await.database().await).await
}

/// A worker as another process would be: with a pool, a memory and tokens of its own.
async fn worker(bench: &Bench, clock: &Arc<ManualClock>, account: &Arc<Account>, psp: &Arc<Liar>) -> Reconciler {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    let context = context(store::connect(&bench.url).await.unwrap(), clock, vec![Arc::clone(account)]).await;
    Reconciler::new(Arc::new(context), Arc::<Liar>::clone(psp) as Arc<dyn PspTransport>)
}

/// So many open payments, all due now.
async fn due(scene: &Scene, payments: usize) {
    let context = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
    let registration = |number: usize| Registration {
        order_id: format!("order-{number}"),
        account: key_of(&scene.account),
        payment_id: Some(format!("pi_{number}")),
        expected: eur(PAID),
        expires_at: None,
        operator: "test".to_owned(),
    };
    let registrations: Vec<Registration> = (0..payments).map(registration).collect();
    for registrations in registrations.chunks(500) {
        context.store.apply(&Work { registrations, ..context.work() }).await.unwrap();
    }
    scene.first_look_is_due();
}

/// What every worker does, over and over, each time that the clock has been moved.
async fn pass(workers: &[Reconciler], clock: &ManualClock, time: Duration, pause: Duration) {
    let end = clock.now().plus(time);
    while clock.now() < end {
        for stepped in join_all(workers.iter().map(step)).await {
            stepped.unwrap();
        }
        clock.advance(pause);
    }
}

/// Due payments, two workers, and one that died in the middle of its questions.
async fn each_is_asked_once_and_the_dead_ones_too(bench: Bench, payments: usize) {
    let scene = scene_with(bench).await;
    let Scene { bench, clock, account, .. } = &scene;
    let psp = Liar::new(clock.clone(), |question: &Question| Line::Says(liar::open_intent(question.id())));
    let began = Arc::new(Notify::new());
    let tell = Arc::clone(&began);
    let silent = Liar::new(clock.clone(), move |_: &Question| {
        tell.notify_one();
        Line::Silence
    });
    due(&scene, payments).await;

    let dead = worker(bench, clock, account, &silent).await;
    tokio::select! {
        _ = step(&dead) => panic!("it is never answered"),
        () = began.notified() => {}
    }
    drop(dead);
    let orphans = silent.asked();
    assert!(!orphans.is_empty());
    let held = "SELECT count(*) FROM checks WHERE lease_token IS NOT NULL";
    assert_eq!(bench.count(held).await, i64::from(BUSY_MAX));

    // The dead one holds all conversations that the account may have at a time, and keeps them until its lease ends.
    let workers = [worker(bench, clock, account, &psp).await, worker(bench, clock, account, &psp).await];
    clock.advance(LEASE.saturating_sub(Duration::from_millis(1)));
    for stepped in join_all(workers.iter().map(step)).await {
        assert_eq!(stepped.unwrap().asked, 0);
    }
    clock.advance(Duration::from_millis(1));

    let left = "SELECT count(*) FROM checks WHERE looks = 0";
    let until_done = async |worker: &Reconciler| {
        loop {
            if step(worker).await.unwrap().asked == 0 {
                if bench.count(left).await == 0 {
                    break;
                }
                clock.advance(Duration::from_millis(500));
            }
        }
    };
    tokio::join!(until_done(&workers[0]), until_done(&workers[1]));
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for question in psp.asked() {
        *times.entry(question.id().to_owned()).or_default() += 1;
    }
    assert_eq!(times.len(), payments);
    assert!(orphans.iter().all(|orphan| times.contains_key(orphan.id())), "the dead one's, too");
    // Time goes on while so many are asked: some came due again.
    let again = bench.count("SELECT count(*) FROM checks WHERE looks > 1").await;
    let twice = times.values().filter(|times| **times > 1).count();
    assert_eq!(twice, usize::try_from(again).unwrap(), "nobody is asked about twice for one due time");
    let looks =
        bench.count(if bench.is_postgres() { "SELECT sum(looks)::bigint FROM checks" } else { "SELECT sum(looks) FROM checks" });
    assert_eq!(times.values().sum::<usize>(), usize::try_from(looks.await).unwrap());
    assert_eq!(bench.count(held).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_ask_about_ten_thousand_payments_once_each_and_take_over_from_the_dead() {
    each_is_asked_once_and_the_dead_ones_too(postgres().await, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_on_one_file_ask_about_each_payment_once_and_take_over_from_the_dead() {
    each_is_asked_once_and_the_dead_ones_too(Bench::sqlite().await, 1_000).await;
}

/// Three workers and 300 payments due at once, at a PSP that allows half of what we would send.
async fn the_limit_is_kept(bench: Bench) {
    const PAYMENTS: usize = 300;
    let scene = scene_with(bench).await;
    let Scene { bench, clock, account, .. } = &scene;
    let ours = account.psp.profile().asks_per_second as usize;
    let pause = 2 * SECOND;
    let (theirs, mut allowed, mut since) = (ours / 2, ours / 2, clock.now());
    let refused = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&refused);
    let psp = Liar::new(clock.clone(), move |question: &Question| {
        if question.at.since(since) >= SECOND {
            (allowed, since) = (theirs, question.at);
        }
        if allowed == 0 {
            note.lock().unwrap().push(question.at);
            return Line::Refuses(429, Some("2".to_owned()));
        }
        allowed -= 1;
        Line::Says(liar::open_intent(question.id()))
    });
    due(&scene, PAYMENTS).await;
    let workers = join_all((0..3).map(|_| worker(bench, clock, account, &psp))).await;
    pass(&workers, clock, Duration::from_mins(3), Duration::from_millis(50)).await;

    assert_eq!(bench.count("SELECT count(*) FROM checks WHERE answered_at IS NULL").await, 0, "all are answered in the end");
    let asked = psp.asked();
    for length in [1, 2, 10, 60] {
        let most = psp.most_within(Duration::from_secs(length));
        let allowed = ours * (usize::try_from(length).unwrap() + 2);
        assert!(most <= allowed, "{most} requests within {length} s, at {ours} a second and twice that at once");
    }
    let refused = refused.lock().unwrap().clone();
    assert!(!refused.is_empty());
    for at in &refused {
        let during = asked.iter().filter(|question| question.at > *at && question.at < at.plus(pause)).count();
        assert_eq!(during, 0, "asked although it had been told to wait");
        let with_it = asked.iter().filter(|question| question.at == *at).count();
        assert!(with_it <= ours * 2, "{with_it} at once");
    }
    // Whoever was under way when the first was refused, and no more.
    let waves = refused.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(refused.len() <= waves * BUSY_MAX as usize, "{} refused in {waves} waves", refused.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_psp_that_says_too_many_sees_its_limit_kept_by_all_workers_together() {
    the_limit_is_kept(postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_psp_that_says_too_many_sees_its_limit_kept_on_one_file() {
    the_limit_is_kept(Bench::sqlite().await).await;
}

/// Three workers, 500 payments, and a PSP that is down for two hours.
async fn no_herd_comes(bench: Bench) {
    const PAYMENTS: usize = 500;
    let scene = scene_with(bench).await;
    let Scene { bench, clock, account, .. } = &scene;
    let psp = Liar::new(clock.clone(), |_: &Question| Line::Refuses(503, None));
    due(&scene, PAYMENTS).await;
    let workers = join_all((0..3).map(|_| worker(bench, clock, account, &psp))).await;
    let began = clock.now();
    pass(&workers, clock, Duration::from_hours(2), 5 * SECOND).await;
    let times: Vec<Timestamp> = psp.asked().iter().map(|question| question.at).collect();
    // Five failures open the circuit; with the last of these, others may have been under way.
    let at_first = times.iter().filter(|at| at.since(began) < 30 * SECOND).count();
    assert!((5..=5 + BUSY_MAX as usize).contains(&at_first), "{at_first} requests before the circuit opened");
    let probes = &times[at_first - 1..];
    let pauses: Vec<u64> = probes.windows(2).map(|pair| pair[1].since(pair[0]).as_secs()).collect();
    assert!(pauses.iter().all(|pause| (30..=605).contains(pause)), "one probe at a time: {pauses:?}");
    assert_eq!(pauses[..5], [30, 60, 120, 240, 480]);
    assert!((10..=18).contains(&pauses.len()), "{pauses:?}");

    // Back again: one probe finds out, and only then the others come, at the account's rate.
    psp.turns_to(|question: &Question| Line::Says(liar::open_intent(question.id())));
    let before = psp.asked().len();
    pass(&workers, clock, Duration::from_mins(12), SECOND).await;
    let back = &psp.asked()[before..];
    let ours = account.psp.profile().asks_per_second as usize;
    let at_once = back.iter().filter(|question| question.at == back[0].at).count();
    assert!(at_once <= 2 * ours, "{at_once} with the probe");
    assert!(back.len() >= PAYMENTS, "{} of {PAYMENTS}", back.len());
    assert_eq!(bench.count("SELECT count(*) FROM checks WHERE answered_at IS NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_psp_that_is_down_sees_one_probe_at_a_time_of_all_workers_together() {
    no_herd_comes(postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_psp_that_is_down_sees_one_probe_at_a_time_on_one_file() {
    no_herd_comes(Bench::sqlite().await).await;
}

/// As many looks as may be under way, at a PSP whose tokens end, are refused, or are not to be had.
#[tokio::test]
async fn a_token_is_asked_for_once_by_all_looks_that_need_it() {
    let (bench, clock) = (Bench::sqlite().await, Arc::new(ManualClock::at(SystemClock.now())));
    let played = Played::new(&PayPal, clock.clone()).await;
    let valid = Arc::new(AtomicUsize::new(1));
    let now_valid = Arc::clone(&valid);
    let psp = Liar::new(clock.clone(), move |question: &Question| {
        let token = format!("token-{}", now_valid.load(Ordering::SeqCst));
        if question.path == "/v1/oauth2/token" {
            return Line::Says(json!({ "access_token": token, "token_type": "Bearer", "expires_in": 32_400 }));
        }
        if question.authorization != format!("Bearer {token}") {
            return Line::Refuses(401, None);
        }
        Line::Says(json!({ "id": question.id(), "status": "APPROVED", "purchase_units": [] }))
    });
    let reconciler = worker(&bench, &clock, &played.account, &psp).await;
    for number in 0..BUSY_MAX {
        let id = format!("5O190127TN36471{number}T");
        register(reconciler.context(), &played.account, &format!("order-{number}"), &id, PAID).await;
    }
    let asked_since = |before: usize| {
        let asked = psp.asked();
        let tokens = asked[before..].iter().filter(|question| question.path == "/v1/oauth2/token").count();
        (tokens, asked.len() - before - tokens)
    };
    let all_are_due = async || {
        clock.advance(Duration::from_mins(10));
        bench.execute("UPDATE checks SET next_check_at = 0").await;
        psp.asked().len()
    };
    let four = BUSY_MAX as usize;

    let before = all_are_due().await;
    let report = step(&reconciler).await.unwrap();
    assert_eq!((report.asked, report.failed), (four, 0));
    assert_eq!(asked_since(before), (1, four));

    let before = all_are_due().await;
    step(&reconciler).await.unwrap();
    assert_eq!(asked_since(before), (0, four), "it is kept");

    // PayPal takes it back: each look is refused once, and all go on with the next one.
    valid.fetch_add(1, Ordering::SeqCst);
    let before = all_are_due().await;
    assert_eq!(step(&reconciler).await.unwrap().failed, 0);
    assert_eq!(asked_since(before), (1, 2 * four));

    clock.advance(Duration::from_hours(9));
    let before = all_are_due().await;
    assert_eq!(step(&reconciler).await.unwrap().failed, 0);
    assert_eq!(asked_since(before), (1, four), "it has ended");

    // None to be had: one request stands for all.
    psp.turns_to(|_: &Question| Line::Refuses(503, None));
    clock.advance(Duration::from_hours(9));
    let before = all_are_due().await;
    assert_eq!(step(&reconciler).await.unwrap().failed, four);
    assert_eq!(asked_since(before), (1, 0));
    assert_eq!(bench.count("SELECT count(*) FROM orders WHERE status <> 'pending'").await, 0);
}

/// A worker as a process of its own, killed while PSPs owe it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_was_asking_about_is_another_ones_when_its_lease_ends() {
    const PAYMENTS: usize = 6;
    let (bench, clock) = (postgres().await, Arc::new(ManualClock::at(SystemClock.now())));
    // Takes questions and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, more) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let (note, tell) = (Arc::clone(&asked), Arc::clone(&more));
    let silence = Router::new().fallback(move |request: axum::extract::Request| {
        note.lock().unwrap().push(request.uri().path().to_owned());
        tell.notify_one();
        std::future::pending::<axum::http::StatusCode>()
    });
    let server = tokio::spawn(async move { axum::serve(listener, silence).await });

    let account = account_at(port);
    let psp = Liar::new(clock.clone(), |question: &Question| {
        Line::Says(match &*question.path {
            "/v1/refunds" | "/v1/disputes" => liar::page(&[], false),
            _ => liar::paid_intent(question.id(), PAID),
        })
    });
    let other = worker(&bench, &clock, &account, &psp).await;
    for number in 0..PAYMENTS {
        register(other.context(), &account, &format!("order-{number}"), &format!("pi_{number}"), PAID).await;
    }
    bench.execute("UPDATE checks SET next_check_at = now()").await;
    let queue = servers::rabbitmq().await.vhost().await;
    let api = format!("api_url = \"http://127.0.0.1:{port}\"\napi_key = \"sk_test_of_the_tests_only\"\n");
    let process = Service::worker(&(configuration(&queue, &bench.url, "memory:") + &api)).await;
    while asked.lock().unwrap().len() < BUSY_MAX as usize {
        more.notified().await;
    }
    process.kill9();
    server.abort();
    let orphans = asked.lock().unwrap().clone();
    assert_eq!(orphans.len(), BUSY_MAX as usize);

    // It asked just now, by the machine's clock.
    clock.advance(SystemClock.now().since(clock.now()));
    assert_eq!(step(&other).await.unwrap().asked, 0, "its leases live on");
    assert_eq!(bench.count("SELECT count(*) FROM checks WHERE lease_token IS NOT NULL").await, i64::from(BUSY_MAX));
    clock.advance(LEASE + SECOND);
    pass(&[other], &clock, 10 * SECOND, SECOND).await;
    for number in 0..PAYMENTS {
        let order = bench.order(&format!("order-{number}")).await;
        assert_eq!((order.view.status, order.version), (OrderStatus::Paid, 2));
    }
    let questions = psp.asked();
    for orphan in &orphans {
        assert_eq!(questions.iter().filter(|question| question.path == *orphan).count(), 1, "{orphan}");
    }
    assert_eq!(bench.count("SELECT count(*) FROM checks WHERE looks <> 1 OR lease_token IS NOT NULL").await, 0);
    bench.check_invariants().await;
}
