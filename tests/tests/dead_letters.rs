//! Dead letters: kept exactly and once, listed, tried again, discarded; what is away loses none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use paybell_shared::clock::SystemClock;
use paybell_shared::psp::Account;
use paybell_shared::queue::{self, Delivery, Disposition, Health, Message, REASON_HEADER};
use paybell_shared::shutdown::Shutdown;
use paybell_tests::conformance::store::Bench;
use paybell_tests::servers;
use paybell_tests::servers::process::Service;
use paybell_tests::shop::{Shop, configuration, webhook};
use paybell_tests::worker::{accounts, config, context, delivery, message};
use paybell_worker::consume::Context;
use paybell_worker::dead_letters::{Tried, bury, try_again};
use paybell_worker::order::OrderStatus;
use paybell_worker::store::Decided;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

async fn each() -> [Bench; 2] {
    [Bench::sqlite().await, Bench::new(servers::postgres().await.database().await).await]
}

fn account() -> Arc<Account> {
    accounts(&configuration("sqlite:q", "sqlite:s", "memory:")).remove(0)
}

/// A worker that serves the account, or none.
async fn worker(bench: &Bench, account: Option<Arc<Account>>) -> Context {
    context(Arc::clone(&bench.store), Arc::new(SystemClock), account.into_iter().collect()).await
}

/// As the queue of dead letters delivers it.
fn dead(number: u64, mut message: Message, reason: &str) -> Delivery {
    message.headers.push((REASON_HEADER.into(), reason.to_owned()));
    Delivery { attempt: 4, ..delivery(number, message) }
}

/// The ids of those that wait.
async fn waiting(context: &Context) -> Vec<Uuid> {
    context.store.dead_letters(None, 100).await.unwrap().into_iter().map(|head| head.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_kept_once_and_exactly_and_applied_once_its_cause_is_mended() {
    for bench in each().await {
        let account = account();
        let (without, with) = (worker(&bench, None).await, worker(&bench, Some(Arc::clone(&account))).await);
        let sent = message(&account, &webhook("payment_intent.succeeded", "order-1"));
        for _ in 0..2 {
            // Twice in a batch, and again: its acknowledgement was lost.
            let deliveries = [dead(1, sent.clone(), "no such\0account"), dead(2, sent.clone(), "no such\0account")];
            let (settled, failure) = bury(&without, &deliveries).await;
            assert!(failure.is_none() && settled.iter().all(|(_, disposition)| *disposition == Disposition::Done));
        }
        let [id] = waiting(&with).await[..] else { panic!("one waits") };
        let letter = bench.store.dead_letter(id).await.unwrap().unwrap();
        assert_eq!((&letter.message, letter.attempts, letter.id()), (&sent, 4, id));
        assert_eq!(bench.store.count_letters().await.unwrap(), 1);

        // At a worker that lacks the account it dies again.
        let tried = try_again(&without, id, "somebody".to_owned()).await.unwrap();
        assert!(matches!(&tried, Tried::Died { reason } if reason.contains("not configured")), "{tried:?}");
        let head = bench.store.letter_head(id).await.unwrap().unwrap();
        assert!(head.attempts == 5 && head.reason.contains("not configured") && head.decision.is_none(), "{head:?}");

        assert_eq!(try_again(&with, id, "somebody".to_owned()).await.unwrap(), Tried::Applied);
        assert_eq!(bench.order("order-1").await.view.status, OrderStatus::Paid);
        let decision = bench.store.letter_head(id).await.unwrap().unwrap().decision.unwrap();
        assert_eq!((decision.decided, decision.operator.as_str()), (Decided::Replayed, "somebody"));
        assert!(waiting(&with).await.is_empty());
        let version = bench.order("order-1").await.version;
        assert_eq!(try_again(&with, id, "another".to_owned()).await.unwrap(), Tried::Decided);
        // It comes once more all the same, and is tried: nothing changes.
        bury(&with, &[dead(3, sent.clone(), "again")]).await;
        assert_eq!(waiting(&with).await, [id]);
        assert_eq!(try_again(&with, id, "another".to_owned()).await.unwrap(), Tried::Applied);
        assert_eq!(bench.order("order-1").await.version, version);
        assert_eq!(try_again(&with, Uuid::from_u128(1), "somebody".to_owned()).await.unwrap(), Tried::Unknown);
        bench.check_invariants().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_come_in_pages_and_whatever_they_hold() {
    for bench in each().await {
        let worker = worker(&bench, None).await;
        let odd = |number: u8| Message {
            id: format!("odd\0{number}"),
            content_type: (number.is_multiple_of(2)).then(|| "text/\0".to_owned()),
            headers: vec![("a\0b".into(), "\0\u{1f514}".to_owned())],
            body: Bytes::from(vec![number; 300]),
        };
        let deliveries: Vec<Delivery> = (0..7).map(|number| dead(number.into(), odd(number), "odd")).collect();
        let (settled, failure) = bury(&worker, &deliveries).await;
        assert!(settled.len() == 7 && failure.is_none(), "{failure:?}");
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = bench.store.dead_letters(after, 3).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.iter().all(|head| head.body_bytes == 300 && head.reason == "odd"));
            after = Some((last.died_at, last.id));
            found.extend(page.into_iter().map(|head| head.id));
        }
        let mut messages = Vec::new();
        for id in &found {
            messages.push(bench.store.dead_letter(*id).await.unwrap().unwrap().message);
        }
        messages.sort_by_key(|message| message.body[0]);
        assert_eq!(messages, (0..7).map(odd).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_dead_letters_stay_in_the_queue() {
    let bench = Bench::sqlite().await;
    let worker = worker(&bench, None).await;
    bench.store.close().await;
    let (settled, failure) = bury(&worker, &[dead(1, Message::default(), "odd")]).await;
    assert!(failure.is_some() && settled.iter().all(|(_, disposition)| *disposition == Disposition::Release), "{settled:?}");
}

/// Through RabbitMQ and PostgreSQL, by the API and by the command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_read_is_listed_tried_again_and_discarded() {
    let (vhost, database) = (servers::rabbitmq().await.vhost().await, servers::postgres().await.database().await);
    let text = configuration(&vhost, &database, "memory:");
    let worker = Service::worker(&text).await;
    let (shop, api) = (Shop::of(&worker, &worker), worker.api_url());
    let command = async |arguments: &[&str]| {
        let listen = api.trim_start_matches("http://");
        let command = Service::start_unready("paybell", arguments, &text, &[("PAYBELL_API_LISTEN", listen)]);
        (command.exit_status().await, command.log())
    };
    let (code, said) = command(&["dead-letters", "list"]).await;
    assert!(code == 0 && said.contains("No dead letter waits"), "{code}: {said}");

    let shutdown = Shutdown::new();
    let publisher = queue::connect(config(&text).queue_settings("test")).await.unwrap().publisher(&shutdown);
    publisher.health().wait_for(|health| *health == Health::Up).await.unwrap();
    for number in 0..3 {
        let message =
            Message { id: format!("/psp/nobody/default evt_{number}"), body: Bytes::from_static(b"{}"), ..Message::default() };
        publisher.publish(message).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    let items = loop {
        let (status, page) = shop.get("/v1/dead-letters?limit=2").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let (_, all) = shop.get("/v1/dead-letters").await;
        if all["items"].as_array().unwrap().len() == 3 {
            assert!(page["items"].as_array().unwrap().len() == 2 && page["next_cursor"].is_string(), "{page}");
            break all["items"].as_array().unwrap().clone();
        }
        assert!(Instant::now() < deadline, "they are not moved: {all}");
        sleep(Duration::from_millis(50)).await;
    };
    let id = |number: usize| items[number]["id"].as_str().unwrap();
    assert!(items[0]["reason"].as_str().unwrap().contains("header") && items[0]["decision"].is_null(), "{:#}", items[0]);

    let (code, said) = command(&["dead-letters", "list"]).await;
    assert!(code == 1 && said.contains("evt_0") && said.contains(&id(0)[..8]), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "show", id(0)]).await;
    assert!(code == 1 && said.contains("it waits"), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "replay", id(0)]).await;
    assert!(code == 1 && said.contains("0 of 1 are applied") && said.contains("1 died again"), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "replay", "--all", "--of", "/psp/stripe"]).await;
    assert!(code == 0 && said.contains("0 of 0"), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "replay", "--all", "--json"]).await;
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(code == 1 && lines.len() == 3 && lines.iter().all(|line| line["applied"] == false), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "discard", id(0), "--reason", "not ours"]).await;
    assert!(code == 0 && said.contains("is discarded"), "{code}: {said}");
    let (code, said) = command(&["dead-letters", "show", id(0), "--json"]).await;
    let shown: Value = serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!((code, &shown["decision"]["decided"], &shown["decision"]["reason"]), (0, &"discarded".into(), &"not ours".into()));
    assert_eq!(shop.get("/v1/dead-letters").await.1["items"].as_array().unwrap().len(), 2);
    for (arguments, code) in [
        (&["dead-letters", "discard", id(0), "--reason", "twice"] as &[&str], 2),
        (&["dead-letters", "replay", id(0)], 2),
        (&["dead-letters", "discard", id(1), "--reason", " "], 2),
        (&["dead-letters", "discard", id(1)], 2),
        (&["dead-letters", "show", "nonsense"], 2),
        (&["dead-letters", "replay"], 2),
        (&["dead-letters", "replay", "00000000-0000-0000-0000-000000000000"], 2),
        (&["dead-letters", "list", "--api", "http://127.0.0.1:1"], 3),
    ] {
        let (is, said) = command(arguments).await;
        assert_eq!(is, code, "{arguments:?}: {said}");
    }
    assert_eq!(shop.get("/v1/dead-letters?cursor=x").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(shop.get("/v1/dead-letters?limit=0").await.0, StatusCode::BAD_REQUEST);
    shutdown.finish().await;
}
