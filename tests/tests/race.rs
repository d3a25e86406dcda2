//! Webhooks and looks race on one order, in any interleaving: of ledger, webhook, question, answer and commit each may come
//! first. Whatever comes of it, the order ends as the PSP's own books say, each fact once.
//!
//! Answers are held between the PSP and the worker, so that what was true when the PSP was asked is old by the time that it is
//! stored. Time is virtual, and a seed repeats what is tried, if not how threads meet.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use paybell::simulator::Webhook;
use paybell::simulator::ledger::{Cancellation, DECLINES, DisputeState, Ledger, RefundState};
use paybell_shared::clock::Clock as _;
use paybell_tests::conformance::store::Bench;
use paybell_tests::scene::{PAID, Scene, scene, scene_with};
use paybell_tests::servers;
use paybell_tests::worker::{context, delivery, message, register};
use paybell_worker::consume;
use paybell_worker::reconcile::{Reconciler, StepReport, step};
use paybell_worker::transport::{HttpTransport, PspTransport, TransportError};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Semaphore;

/// Two answers that agree end any doubt, and two days apart every payment is due again.
const LAST_LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_hours(48);

/// Asks at once, and keeps the answer until it may go on.
struct Held {
    transport: HttpTransport,
    answers: Semaphore,
}

#[async_trait]
impl PspTransport for Held {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, TransportError> {
        let response = self.transport.send(request).await;
        self.answers.acquire().await.unwrap().forget();
        response
    }
}

/// One thing that happens to the payment at the PSP.
type Move = Box<dyn FnOnce(&mut Ledger, &str, i64) + Send>;

fn to(step: impl FnOnce(&mut Ledger, &str, i64) + Send + 'static) -> Move {
    Box::new(step)
}

/// What happens to a payment, in this order.
fn story(random: &mut StdRng) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    for _ in 0..random.random_range(0..=2) {
        moves.push(to(|ledger, id, at| ledger.decline(id, DECLINES[0], at)));
    }
    match random.random_range(0..8) {
        0 => {
            moves.push(to(|ledger, id, at| ledger.cancel(id, Cancellation::Requested, at)));
            return moves;
        }
        1 => return moves,
        2 => moves.push(to(Ledger::process)),
        _ => {}
    }
    moves.push(to(|ledger, id, at| ledger.capture(id, PAID, at)));
    if random.random_bool(0.3) {
        moves.push(to(Ledger::note));
    }
    for number in 0..random.random_range(0..=2) {
        let ending = if random.random_bool(0.7) { RefundState::Succeeded } else { RefundState::Failed };
        moves.push(to(|ledger, id, at| {
            ledger.refund(id, 1000, RefundState::Pending, at);
        }));
        moves.push(to(move |ledger, id, at| ledger.settle_refund(id, number, ending, at)));
    }
    if random.random_bool(0.3) {
        let ending = if random.random_bool(0.5) { DisputeState::Won } else { DisputeState::Lost };
        moves.push(to(|ledger, id, at| {
            ledger.dispute(id, PAID, at);
        }));
        moves.push(to(move |ledger, id, at| ledger.close_dispute(id, 0, ending, at)));
    }
    moves
}

/// A PSP, two workers that ask it, and a third one that consumes.
struct Race {
    scene: Scene,
    held: Arc<Held>,
    workers: [Arc<Reconciler>; 2],
}

impl Race {
    async fn new(scene: Scene) -> Self {
        let held = Arc::new(Held { transport: HttpTransport::new().unwrap(), answers: Semaphore::new(0) });
        let worker = async || {
            let context = context(Arc::clone(&scene.bench.store), scene.clock.clone(), vec![Arc::clone(&scene.account)]).await;
            Arc::new(Reconciler::new(Arc::new(context), Arc::<Held>::clone(&held) as Arc<dyn PspTransport>))
        };
        let workers = [worker().await, worker().await];
        Self { scene, held, workers }
    }

    async fn is_due(&self, payment_id: &str) {
        let now = self.scene.written_now();
        self.scene.bench.execute(&format!("UPDATE checks SET next_check_at = {now} WHERE payment_id = '{payment_id}'")).await;
    }

    async fn run(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let (scene, context) = (&self.scene, self.workers[0].context());
        let order_id = format!("order-{seed}");
        let mut number = 0;
        let id = scene.stripe.ledger_mut().open(&order_id, PAID, "EUR", false, scene.clock.now().seconds());
        let mut moves = story(&mut random).into_iter();
        let mut told = scene.stripe.ledger().events().len();
        let mut on_the_way: Vec<Webhook> = Vec::new();
        let mut looks = tokio::task::JoinSet::new();
        let mut is_registered = false;
        // Until all has happened and nothing is on its way; what is lost never comes.
        loop {
            match random.random_range(0..10) {
                0..3 => match moves.next() {
                    Some(step) => {
                        let mut ledger = scene.stripe.ledger_mut();
                        step(&mut ledger, &id, scene.clock.now().seconds());
                        let new: Vec<Webhook> = ledger.events()[told..].iter().map(Webhook::from).collect();
                        told = ledger.events().len();
                        drop(ledger);
                        for webhook in new {
                            // Some are lost, some come twice.
                            let copies = [0, 1, 1, 1, 2][random.random_range(0..5)];
                            on_the_way.extend(std::iter::repeat_n(webhook, copies));
                        }
                        on_the_way.shuffle(&mut random);
                    }
                    None if on_the_way.is_empty() && is_registered => break,
                    None => {}
                },
                3 if !is_registered => {
                    register(context, &scene.account, &order_id, &id, PAID).await;
                    is_registered = true;
                }
                // The answer goes on in the middle of whatever comes next.
                4..6 => self.held.answers.add_permits(random.random_range(1..=3)),
                6 => {
                    self.is_due(&id).await;
                    let worker = Arc::clone(&self.workers[random.random_range(0..2)]);
                    looks.spawn(async move { step(&worker).await.unwrap() });
                }
                7 => scene.clock.advance(Duration::from_millis(random.random_range(0..90_000))),
                8 => tokio::task::yield_now().await,
                _ => {
                    let batch: Vec<_> = on_the_way
                        .drain(..random.random_range(0..=on_the_way.len()))
                        .map(|webhook| {
                            number += 1;
                            delivery(number, message(&scene.account, &webhook))
                        })
                        .collect();
                    for (_, disposition) in consume::step(context, &batch).await.unwrap() {
                        assert_eq!(disposition.as_str(), "done", "seed {seed}");
                    }
                }
            }
        }
        self.held.answers.add_permits(1000);
        looks.join_all().await;
        for _ in 0..LAST_LOOKS {
            scene.clock.advance(BETWEEN_LOOKS);
            self.is_due(&id).await;
            loop {
                let StepReport { asked, failed, .. } = step(&self.workers[0]).await.unwrap();
                assert_eq!(failed, 0, "seed {seed}");
                if asked == 0 {
                    break;
                }
            }
        }
        self.held.answers.forget_permits(usize::MAX);
        let truth = scene.stripe.ledger().truth(&order_id).unwrap();
        let order = scene.order(&order_id).await;
        let view = &order.view;
        let came_to = (view.status.as_str(), view.captured, view.refunded, view.disputed);
        assert_eq!(came_to, (truth.status, truth.captured, truth.refunded, truth.disputed), "seed {seed}: {view:#?}");
        // Done with: the next order is alone.
        scene.bench.execute("UPDATE checks SET next_check_at = NULL").await;
    }
}

async fn races(scene: Scene, seeds: std::ops::Range<u64>) {
    let race = Race::new(scene).await;
    for seed in seeds {
        race.run(seed).await;
    }
    let bench = &race.scene.bench;
    assert_eq!(bench.count("SELECT count(*) FROM events WHERE outcome = 'quarantined'").await, 0);
    assert_eq!(bench.count("SELECT count(*) FROM events WHERE outcome = 'parked'").await, 0);
    bench.check_invariants().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_and_looks_that_race_end_in_the_psps_truth() {
    races(scene().await, 0..60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_and_looks_that_race_on_postgres_end_in_the_psps_truth() {
    races(scene_with(Bench::new(servers::postgres().await.database().await).await).await, 1000..1060).await;
}
