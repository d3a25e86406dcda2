//! What an account with `on_queue_down = "spool"` is answered while the queue takes nothing, and what becomes of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use paybell_shared::config::{Config, OnQueueDown};
use paybell_shared::queue::{Health, PublishError};

use crate::support::{BODY, NOW_S, Rig, SHOP_SECRET, Verdict, genuine, request, signature, signed, until};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("paybell-spool-{:016x}", rand::random::<u64>())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Of the two accounts, the default one spools.
fn spooling(folder: &Path, bytes_max: u64) -> impl FnOnce(&mut Config) {
    let folder = folder.to_owned();
    move |config| {
        config.ingress.spool_dir = Some(folder);
        config.limits.spool_bytes_max = bytes_max;
        config.accounts[0].on_queue_down = OnQueueDown::Spool;
    }
}

fn down() -> Verdict {
    Verdict::Fail(PublishError::Closed("refused".to_owned()))
}

fn event(number: u32) -> String {
    BODY.replace("evt_1", &format!("evt_{number}"))
}

#[tokio::test]
async fn what_the_queue_does_not_take_is_acknowledged_and_put_on_it_later() {
    let folder = Folder::new();
    let rig = Rig::start_with("", spooling(&folder.0, u64::MAX));
    assert!((rig.check)().ready, "it can keep webhooks");
    rig.publisher.will(down());
    for number in 1..=20 {
        assert_eq!(rig.exchange(signed(event(number))).await.status, 200);
    }
    let shop = request("/webhooks/stripe/shop", &signature(SHOP_SECRET, NOW_S, BODY.as_bytes()), BODY);
    let refused = rig.exchange(shop).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "the other account does not spool");
    assert!((rig.counted("spooled", "closed") - 20.0).abs() < f64::EPSILON);

    rig.publisher.will(Verdict::Confirm);
    rig.publisher.becomes(Health::Up);
    until("the spool is drained", || rig.publisher.published().len() == 20).await;
    let bodies: BTreeSet<Vec<u8>> = rig.publisher.published().iter().map(|message| message.body.to_vec()).collect();
    assert_eq!(bodies, (1..=20).map(|number| event(number).into_bytes()).collect(), "the exact bytes");
    until("its files are gone", || std::fs::read_dir(&folder.0).unwrap().count() == 1).await;
}

#[tokio::test]
async fn what_was_spooled_outlives_the_process() {
    let folder = Folder::new();
    let rig = Rig::start_with("", spooling(&folder.0, u64::MAX));
    rig.publisher.will(down());
    assert_eq!(rig.exchange(genuine()).await.status, 200);
    assert!(rig.shutdown.finish().await);
    drop(rig);

    let rig = Rig::start_with("", spooling(&folder.0, u64::MAX));
    rig.publisher.becomes(Health::Up);
    until("it is drained", || !rig.publisher.published().is_empty()).await;
    assert_eq!(rig.publisher.published()[0].body, BODY.as_bytes());
    // As it was accepted then, not as it is put on the queue now.
    assert!(rig.publisher.published()[0].header("ce-time").is_some());
}

#[tokio::test]
async fn a_full_spool_refuses_again() {
    let folder = Folder::new();
    let rig = Rig::start_with("", spooling(&folder.0, 2_000));
    rig.publisher.will(down());
    let mut statuses = Vec::new();
    for number in 1..=10 {
        statuses.push(rig.exchange(signed(event(number))).await.status);
    }
    let kept = statuses.iter().take_while(|status| **status == 200).count();
    assert!(kept >= 1 && statuses[kept..].iter().all(|status| *status == 503) && kept < 10, "{statuses:?}");
    assert!(rig.log.text().contains("the spool is full"));
    assert!(rig.counted("unavailable", "closed") > 0.0);
}

#[tokio::test]
async fn a_draining_spool_lets_live_webhooks_by() {
    let folder = Folder::new();
    let rig = Rig::start_with("", spooling(&folder.0, u64::MAX));
    rig.publisher.will(down());
    for number in 1..=40 {
        assert_eq!(rig.exchange(signed(event(number))).await.status, 200);
    }
    // The queue takes spooled ones, and confirms none of them.
    rig.publisher.will(Verdict::Hang);
    while rig.publisher.began_so_far() > 0 {
        rig.publisher.began().await;
    }
    rig.publisher.becomes(Health::Up);
    for _ in 0..16 {
        rig.publisher.began().await;
    }
    rig.publisher.will(Verdict::Confirm);
    assert_eq!(rig.exchange(signed(event(99))).await.status, 200);
    assert_eq!(rig.publisher.published().len(), 1, "the live one alone: the others are still under way");
}

#[test]
fn a_folder_that_cannot_be_written_stops_the_start() {
    let folder = Folder::new();
    std::fs::write(&folder.0, "a file").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _within = runtime.enter();
    let error = Rig::try_start("", spooling(&folder.0, 1_000_000)).err().expect("it must not start");
    assert!(format!("{error:#}").starts_with("[ingress] spool_dir: "), "{error:#}");
    std::fs::remove_file(&folder.0).unwrap();
}

#[tokio::test]
async fn two_processes_do_not_share_a_spool() {
    let folder = Folder::new();
    let _first = Rig::start_with("", spooling(&folder.0, u64::MAX));
    let error = Rig::try_start("", spooling(&folder.0, u64::MAX)).err().expect("it must not start");
    assert!(format!("{error:#}").contains("another process"), "{error:#}");
}
