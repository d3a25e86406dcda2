//! `retention::step` by a clock that is moved: partitions of bodies on PostgreSQL, and what a crash left asleep.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use paybell_shared::clock::{Clock as _, ManualClock};
use paybell_tests::conformance::store::{Bench, Database, NOW, captured, received};
use paybell_tests::servers;
use paybell_tests::worker::context;
use paybell_worker::consume::Context;
use paybell_worker::inbox::Outcome;
use paybell_worker::retention::{StepReport, step};
use paybell_worker::store::Work;

const DAY: Duration = Duration::from_hours(24);
const KEEP: Duration = Duration::from_hours(30 * 24);

struct House {
    bench: Bench,
    clock: Arc<ManualClock>,
    context: Context,
}

/// On 21 September 2026, at 14:13.
async fn house() -> House {
    let bench = Bench::new(servers::postgres().await.database().await).await;
    let clock = Arc::new(ManualClock::at(NOW));
    let context = context(Arc::clone(&bench.store), Arc::clone(&clock) as _, Vec::new()).await;
    House { bench, clock, context }
}

impl House {
    /// A webhook about an order of its own, received now.
    async fn receive(&self, id: &str) {
        let arrival = [received(&captured(id, &format!("pi_{id}"), Some(&format!("order-{id}")), 1), self.clock.now())];
        let applied = self.context.store.apply(&Work { arrivals: &arrival, ..self.context.work() }).await.unwrap();
        assert_eq!(applied.events[0].1, Some(Outcome::Applied));
    }

    /// Where the body of an event lies; empty if it is gone.
    async fn place(&self, id: &str) -> String {
        let sql = format!(
            "SELECT b.tableoid::regclass::text FROM bodies b JOIN events e ON e.body_id = b.id AND e.received_at = b.received_at
             WHERE e.event_id = '{id}'"
        );
        self.bench.texts(&sql).await.join(" ")
    }

    async fn partitions(&self) -> Vec<String> {
        let sql = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'bodies'::regclass ORDER BY 1";
        self.bench.texts(sql).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_lies_with_its_day_and_goes_with_it() {
    let house = house().await;
    house.receive("first").await;
    assert_eq!(house.place("first").await, "bodies_default");

    // Today's rows are in the default partition, and so is today.
    let report = step(&house.context, KEEP).await.unwrap();
    assert_eq!(report, StepReport { partitions_made: 4, ..StepReport::default() });
    let made = ["bodies_20260922", "bodies_20260923", "bodies_20260924", "bodies_20260925", "bodies_default"];
    assert_eq!(house.partitions().await, made);
    assert_eq!(step(&house.context, KEEP).await.unwrap(), StepReport::default(), "there is nothing more to do");
    house.receive("second").await;
    assert_eq!(house.place("second").await, "bodies_default");

    house.clock.advance(DAY);
    house.receive("third").await;
    assert_eq!(house.place("third").await, "bodies_20260922");
    assert_eq!(step(&house.context, KEEP).await.unwrap().partitions_made, 1);

    // The worker was away for a week: there is no partition, and no webhook is refused for that.
    house.clock.advance(7 * DAY);
    house.receive("fourth").await;
    assert_eq!(house.place("fourth").await, "bodies_default");

    // 22 October, 14:13: of 21 September all goes, and of the 22nd nothing, while some of it is still to be kept.
    house.clock.advance(23 * DAY);
    let report = step(&house.context, KEEP).await.unwrap();
    assert_eq!((report.bodies_deleted, report.partitions_dropped), (2, 0), "{report:?}");
    assert_eq!(house.place("third").await, "bodies_20260922");
    house.clock.advance(DAY);
    assert_eq!(step(&house.context, KEEP).await.unwrap().partitions_dropped, 1);
    assert_eq!((house.place("third").await, house.place("fourth").await), (String::new(), "bodies_default".to_owned()));
    assert_eq!(house.bench.count("SELECT count(*) FROM events").await, 4);
    house.receive("fifth").await;
    assert_eq!(house.place("fifth").await, "bodies_20261023");
    house.bench.check_invariants().await;
}

/// Webhooks go on while three workers keep the house.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_keep_the_house_while_webhooks_come() {
    let house = house().await;
    for n in 0..20 {
        house.receive(&format!("old{n}")).await;
    }
    house.clock.advance(KEEP + 2 * DAY);
    let keepers = join_all((0..3).map(|_| step(&house.context, KEEP)));
    let webhooks = async {
        for n in 0..50 {
            house.receive(&format!("new{n}")).await;
        }
    };
    let (reports, ()) = tokio::join!(keepers, webhooks);
    let mut sum = StepReport::default();
    for report in reports {
        let report = report.unwrap();
        sum.bodies_deleted += report.bodies_deleted;
        sum.partitions_made += report.partitions_made;
    }
    assert_eq!(sum.bodies_deleted, 20);
    // Today's, or not, as the first webhook was later or earlier.
    assert!([4, 5].contains(&sum.partitions_made), "{sum:?}");
    assert_eq!(house.bench.count("SELECT count(*) FROM bodies").await, 50);
    assert_eq!(house.bench.count("SELECT count(*) FROM events").await, 70);
    house.bench.check_invariants().await;
}

/// Somebody reads all bodies, for as long as that takes: neither does the step wait for it, nor a webhook for the step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_get_its_lock_is_left_for_later() {
    let house = house().await;
    step(&house.context, KEEP).await.unwrap();
    house.clock.advance(DAY);
    house.receive("first").await;
    house.clock.advance(KEEP + DAY);
    let Database::Postgres(pool) = &house.bench.database else { unreachable!() };
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM bodies").execute(&mut *reader).await.unwrap();
    let before = house.partitions().await;
    assert_eq!(step(&house.context, KEEP).await.unwrap(), StepReport::default());
    house.receive("second").await;
    assert_eq!(house.partitions().await, before);
    reader.rollback().await.unwrap();
    let report = step(&house.context, KEEP).await.unwrap();
    // With 21 and 22 September; of the 23rd a part is still to be kept.
    assert_eq!((report.partitions_dropped, report.partitions_made), (2, 4), "{report:?}");
    house.bench.check_invariants().await;
}
