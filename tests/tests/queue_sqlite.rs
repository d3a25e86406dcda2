//! The embedded queue: what both backends promise, and what is its own.

use std::sync::Arc;
use std::time::Duration;

use paybell_shared::queue::sqlite::{COMMIT_MAX, INBOX_MAX};
use paybell_shared::queue::{ConnectError, PublishError, QueueSettings};
use paybell_tests::conformance::queue::{Ground, message, messages, publish, take};
use sqlx::{Connection, SqliteConnection};

mod conformance {
    use paybell_tests::conformance::queue::Ground;

    paybell_tests::queue_conformance!(Ground::sqlite());
}

fn settings(url: &str) -> QueueSettings {
    QueueSettings {
        url: url.to_owned(),
        publish_budget: Duration::from_millis(200),
        retry_steps: vec![Duration::from_secs(1)],
        connection_name: "test".to_owned(),
    }
}

#[tokio::test]
async fn a_second_process_is_refused_and_a_successor_is_not() {
    let ground = Ground::sqlite();
    let opened = ground.open().await;
    let error = paybell_shared::queue::connect(settings(&ground.url)).await.err().expect("refused");
    assert!(matches!(error, ConnectError::InUse(_)), "{error}");
    opened.close().await;
    ground.open().await.close().await;
}

#[tokio::test]
async fn what_is_not_a_file_is_refused() {
    for url in ["sqlite::memory:", "sqlite:"] {
        let error = paybell_shared::queue::connect(settings(url)).await.err().expect("refused");
        assert!(matches!(error, ConnectError::Url(_)), "{url}: {error}");
    }
    let ground = Ground::sqlite();
    let error = paybell_shared::queue::connect(settings(&format!("{}?mode=memory", ground.url))).await.err().expect("refused");
    assert!(matches!(error, ConnectError::NotDurable { .. }), "{error}");
}

/// A stranger holds the file's lock: nothing can be committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_stuck_refuses_what_does_not_fit_and_heals() {
    let ground = Ground::sqlite();
    let opened = ground.open().await;
    let mut stranger = SqliteConnection::connect(&ground.url).await.unwrap();
    let held = stranger.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let over = 100;
    let publishing = messages(INBOX_MAX + 2 * COMMIT_MAX + over).into_iter().map(|message| {
        let publisher = Arc::clone(&opened.publisher);
        tokio::spawn(async move { publisher.publish(message).await })
    });
    let publishing: Vec<_> = publishing.collect();
    let mut full = 0;
    for task in publishing {
        match task.await.unwrap() {
            Err(PublishError::Full) => full += 1,
            Err(PublishError::Late(_)) => {}
            other => panic!("nothing can be durable now: {other:?}"),
        }
    }
    assert!(full >= over, "{full}");
    drop(held);
    stranger.close().await.unwrap();
    let last = message(1_000_000);
    publish(opened.publisher.as_ref(), &last).await;
    let mut consumer = opened.queue.consumer();
    let mut count = 0;
    while !take(consumer.as_mut(), 1).await.contains_key(&last.id) {
        count += 1;
        assert!(count < 10_000, "what was acknowledged never came");
    }
}
