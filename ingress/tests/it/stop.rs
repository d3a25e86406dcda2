//! Readiness, the limit of connections, and the stop.

use std::sync::Arc;

use paybell_shared::queue::Health;
use tokio::net::TcpStream;

use crate::support::{Rig, Verdict, genuine, until};

#[tokio::test]
async fn ready_from_the_first_connection_on_whatever_comes_after() {
    let rig = Rig::start();
    let ready = || (rig.check)().ready;
    assert!(!ready());
    assert!(rig.metric("paybell_ingress_queue_up", &[]).abs() < f64::EPSILON);
    // Not ready is a word to the load balancer; who calls all the same is told whether it worked.
    assert_eq!(rig.exchange(genuine()).await.status, 200);

    rig.publisher.becomes(Health::Up);
    until("ready", ready).await;
    until("the gauge is up", || rig.metric("paybell_ingress_queue_up", &[]) > 0.5).await;

    rig.publisher.becomes(Health::Down("refused".to_owned()));
    until("the gauge is down", || rig.metric("paybell_ingress_queue_up", &[]) < 0.5).await;
    let report = (rig.check)();
    assert!(report.ready && report.detail.contains("degraded") && report.detail.contains("refused"), "{report:?}");

    rig.publisher.becomes(Health::Blocked("low on disk".to_owned()));
    let report = (rig.check)();
    assert!(report.ready && report.detail.contains("low on disk"), "{report:?}");
}

#[tokio::test]
async fn a_broker_that_was_never_reached_is_not_ready() {
    let rig = Rig::start();
    rig.publisher.becomes(Health::Down("refused".to_owned()));
    until("the log says so", || rig.log.text().contains("refused")).await;
    assert!(!(rig.check)().ready);
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_a_free_place() {
    let rig = Rig::start_with("", |config| config.limits.connections_max = 1);
    let mut first = rig.client().await;
    first.send(genuine()).await;
    assert_eq!(first.answer().await.status, 200);
    let mut second = rig.client().await;
    second.send(genuine()).await;
    for served in 2..5 {
        first.send(genuine()).await;
        assert_eq!(first.answer().await.status, 200);
        assert_eq!(rig.publisher.published().len(), served, "the second connection was served beside the first");
    }
    assert!((rig.metric("paybell_http_connections", &["server=\"webhooks\""]) - 1.0).abs() < f64::EPSILON);
    drop(first);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_takes_nothing_new() {
    let rig = Rig::start();
    rig.publisher.will(Verdict::Wait);
    let (mut idle, mut busy) = (rig.client().await, rig.client().await);
    busy.send(genuine()).await;
    rig.publisher.began().await;

    let finished = tokio::spawn({
        let shutdown = rig.shutdown.clone();
        async move { shutdown.finish().await }
    });
    assert!(idle.next_answer().await.is_none(), "an idle connection is closed at once");
    drop(idle);
    while TcpStream::connect(rig.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!finished.is_finished(), "the stop does not wait for the webhook in flight");

    rig.publisher.release();
    let answer = busy.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(busy.next_answer().await.is_none());
    drop(busy);
    assert!(finished.await.unwrap(), "the stop ran into its deadline");
    assert!(!rig.shutdown.has_crashed());
    assert_eq!(rig.publisher.published().len(), 1);
    assert_eq!(Arc::strong_count(&rig.publisher), 1, "somebody still holds the publisher, so its tasks would not end");
}

#[tokio::test]
async fn who_has_sent_its_webhook_before_the_stop_is_answered() {
    let rig = Rig::start();
    // Connected and written, but no task of the ingress has run yet: all of it waits in the kernel.
    let stream = std::net::TcpStream::connect(rig.address).unwrap();
    std::io::Write::write_all(&mut &stream, &genuine()).unwrap();
    rig.shutdown.stop();
    let (read, finished) = tokio::join!(
        tokio::task::spawn_blocking(move || {
            let mut answer = [0; 12];
            std::io::Read::read_exact(&mut &stream, &mut answer).map(|()| answer)
        }),
        rig.shutdown.finish()
    );
    assert_eq!(&read.unwrap().unwrap(), b"HTTP/1.1 200");
    assert!(finished);
}
