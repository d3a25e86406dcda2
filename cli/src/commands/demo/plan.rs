//! What will happen in the demo: little stories, written into the PSPs' ledgers first, then cut into webhooks and shuffled.
//!
//! The stories lie in the past when the demo starts, as if the PSPs were catching up after an outage: so the ledgers are the
//! truth from the first webhook to the last, whatever Paybell asks in between.

use std::collections::HashSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::simulator::dialect::Scene;
use crate::simulator::ledger::{DisputeState, Ledger, Truth};
use crate::simulator::story::Story;
use crate::simulator::{Dialect, Forgery, Situation, Webhook};

/// The pace: so many orders' stories begin each second, with five webhooks each: 500 orders take a quarter of a minute, and
/// a busy laptop keeps up.
const ORDERS_PER_S: u32 = 40;
/// The webhooks of one order come in any order within this time.
const SPREAD_MS: u64 = 1_500;
/// How much later a delayed webhook comes.
const DELAY_MS: std::ops::Range<u64> = 1_000..4_000;
const DUPLICATED_PERCENT: u32 = 5;
const DELAYED_PERCENT: u32 = 5;
/// Orders of which no webhook ever comes, where the PSP can be asked instead.
const LOST_PERCENT: u32 = 5;
/// Orders whose registration comes in the midst of their webhooks or after them.
const LATE_REGISTRATION_PERCENT: u32 = 10;
/// One forged webhook for so many orders, and one of each kind for each PSP at least.
const ORDERS_PER_FORGERY: usize = 20;

/// Everything that the demo will do.
pub struct Plan {
    pub orders: Vec<PlannedOrder>,
    /// Registered before any webhook.
    pub registered_first: Vec<usize>,
    /// Sorted by time.
    pub jobs: Vec<Job>,
}

pub struct PlannedOrder {
    pub id: String,
    /// Its PSP's place in the cast.
    pub psp: usize,
    pub amount: i64,
    pub currency: &'static str,
    pub truth: Truth,
    /// The order service knows the payment's id at the registration.
    pub payment_id: Option<String>,
    /// By webhooks alone, the order cannot come to the truth before these jobs are done.
    pub telling: usize,
    /// Its webhooks are lost, all of them.
    pub lost: bool,
    /// The truth differs from what the registration alone says, so that a lag can be measured.
    pub changes: bool,
}

pub struct Job {
    /// From the start.
    pub at: Duration,
    pub order: usize,
    pub work: Work,
}

pub enum Work {
    Register,
    Send { webhook: Webhook, telling: bool, duplicate: bool },
    Forge { webhook: Webhook, forgery: Forgery },
}

/// One PSP's part: whether it can be asked is the reader's to say, as its account decides it.
pub struct Role {
    pub dialect: &'static dyn Dialect,
    pub can_be_asked: bool,
}

impl Plan {
    /// Writes the stories of so many orders into the ledgers of the cast, one for each, in turn. `now` in Unix seconds.
    #[must_use]
    pub fn new(cast: &[Role], count: usize, seed: u64, now: i64) -> (Self, Vec<Ledger>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ledgers: Vec<Ledger> = cast.iter().map(|role| Ledger::new(role.dialect, false, rng.random())).collect();
        let mut parts: Vec<_> = cast
            .iter()
            .enumerate()
            .map(|(psp, role)| {
                let share = count / cast.len() + usize::from(psp < count % cast.len());
                stories(role.dialect, share, &mut rng).into_iter()
            })
            .collect();
        let mut plan = Self { orders: Vec::with_capacity(count), registered_first: Vec::new(), jobs: Vec::new() };
        for index in 0..count {
            let psp = index % cast.len();
            if let Some(story) = parts[psp].next() {
                plan.add_order(psp, &cast[psp], story, &mut ledgers[psp], &mut rng, now);
            }
        }
        plan.add_forgeries(cast, &mut rng, now);
        plan.jobs.sort_by_key(|job| job.at);
        (plan, ledgers)
    }

    fn add_order(&mut self, psp: usize, role: &Role, story: Story, ledger: &mut Ledger, rng: &mut StdRng, now: i64) {
        let index = self.orders.len();
        let id = format!("demo-{:04}", index + 1);
        let currencies = role.dialect.currencies();
        let currency = currencies[rng.random_range(0..currencies.len())];
        let amount = rng.random_range(200..50_000);
        let first = ledger.events().len();
        let payment_id = story.play(ledger, &id, amount, currency, rng, now);
        // A payment was opened for it.
        let Some(truth) = ledger.truth(&id) else { return };
        let events = &ledger.events()[first..];
        let asking_tells = role.can_be_asked && role.dialect.tells_when_asked(story);
        let lost = asking_tells && chance(rng, LOST_PERCENT);
        let telling = if lost || !role.dialect.tells(story) { HashSet::new() } else { role.dialect.telling(events) };

        let start = u64::try_from(index).unwrap_or(u64::MAX).saturating_mul(1_000) / u64::from(ORDERS_PER_S);
        let soon = |rng: &mut StdRng| {
            let delay = if chance(rng, DELAYED_PERCENT) { rng.random_range(DELAY_MS) } else { 0 };
            Duration::from_millis(start + rng.random_range(0..SPREAD_MS) + delay)
        };
        for event in events.iter().filter(|_| !lost) {
            let webhook = Webhook::from(event);
            let is_telling = telling.contains(event.id.as_str());
            if chance(rng, DUPLICATED_PERCENT) {
                let work = Work::Send { webhook: webhook.clone(), telling: false, duplicate: true };
                self.jobs.push(Job { at: soon(rng), order: index, work });
            }
            let work = Work::Send { webhook, telling: is_telling, duplicate: false };
            self.jobs.push(Job { at: soon(rng), order: index, work });
        }
        // What the PSP keeps to itself can only be asked about, and only by who knows the payment.
        let untold = lost || events.is_empty() || !role.dialect.tells(story);
        let mut telling = telling.len();
        if !untold && chance(rng, LATE_REGISTRATION_PERCENT) {
            telling += 1;
            self.jobs.push(Job { at: soon(rng), order: index, work: Work::Register });
        } else {
            self.registered_first.push(index);
        }
        let knows_payment = untold || rng.random();
        let payment_id = Some(payment_id).filter(|_| knows_payment);
        let changes = story != Story::Pending;
        self.orders.push(PlannedOrder { id, psp, amount, currency, truth, payment_id, telling, lost, changes });
    }

    /// Forged webhooks that would do harm if they were believed.
    fn add_forgeries(&mut self, cast: &[Role], rng: &mut StdRng, now: i64) {
        let end = self.jobs.iter().map(|job| job.at).max().unwrap_or_default();
        for (psp, role) in cast.iter().enumerate() {
            let orders: Vec<usize> = (0..self.orders.len()).filter(|order| self.orders[*order].psp == psp).collect();
            let count = (orders.len() / ORDERS_PER_FORGERY).max(Forgery::ALL.len());
            for number in 0..count {
                if orders.is_empty() {
                    break;
                }
                let index = orders[rng.random_range(0..orders.len())];
                let Some(webhook) = harmful(role.dialect, &self.orders[index], now, rng.random()) else { continue };
                let forgery = Forgery::ALL[number % Forgery::ALL.len()];
                self.jobs.push(Job { at: end.mul_f64(rng.random()), order: index, work: Work::Forge { webhook, forgery } });
            }
        }
    }
}

/// Says that what is paid is lost to the payer, and that what is not paid is.
fn harmful(dialect: &'static dyn Dialect, order: &PlannedOrder, now: i64, salt: u64) -> Option<Webhook> {
    let situation = Situation {
        order_id: &order.id,
        amount: order.amount,
        currency: order.currency,
        part: None,
        ending: None,
        live: false,
        at: now,
        salt,
    };
    let told = |scene: Scene| situation.played(dialect, scene).events().last().map(Webhook::from);
    let lost = (order.truth.captured > 0).then(|| told(Scene::DisputeClosed(DisputeState::Lost))).flatten();
    lost.or_else(|| told(Scene::Captured))
}

fn chance(rng: &mut StdRng, percent: u32) -> bool {
    rng.random_ratio(percent, 100)
}

/// As many stories as orders, of those that the PSP plays, in any order, each as often as it should be; where there are few
/// orders, the most usual ones alone.
fn stories(dialect: &dyn Dialect, count: usize, rng: &mut StdRng) -> Vec<Story> {
    let played: Vec<Story> = Story::ALL.into_iter().filter(|story| dialect.plays(*story)).collect();
    let total: usize = played.iter().map(|story| story.often()).sum();
    let mut stories: Vec<Story> = if count < total {
        played.into_iter().cycle().take(count).collect()
    } else {
        played.into_iter().flat_map(|story| std::iter::repeat_n(story, story.often())).cycle().take(count).collect()
    };
    stories.shuffle(rng);
    stories
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator;
    use crate::simulator::stripe::Stripe;

    const NOW: i64 = 1_790_000_000;

    fn planned(count: usize, seed: u64) -> (Plan, Ledger) {
        let (plan, mut ledgers) = Plan::new(&[Role { dialect: &Stripe, can_be_asked: true }], count, seed, NOW);
        (plan, ledgers.remove(0))
    }

    fn all() -> Vec<Role> {
        simulator::ALL.iter().map(|dialect| Role { dialect: *dialect, can_be_asked: false }).collect()
    }

    #[test]
    fn one_seed_is_one_plan() {
        let (one, first) = planned(60, 7);
        let (two, second) = planned(60, 7);
        let (_, other) = planned(60, 8);
        let ids = |ledger: &Ledger| ledger.events().iter().map(|event| (event.id.clone(), event.created)).collect::<Vec<_>>();
        assert_eq!(ids(&first), ids(&second));
        assert_ne!(ids(&first), ids(&other));
        assert!(one.jobs.iter().zip(&two.jobs).all(|(one, two)| one.at == two.at && one.order == two.order));
    }

    #[test]
    fn five_hundred_orders_meet_everything_that_was_promised() {
        let (plan, ledger) = planned(500, 1);
        let statuses: HashSet<&str> = plan.orders.iter().map(|order| order.truth.status).collect();
        for status in [
            "paid",
            "failed",
            "authorized",
            "canceled",
            "expired",
            "pending",
            "partially_refunded",
            "refunded",
            "disputed",
            "charged_back",
        ] {
            assert!(statuses.contains(status), "{status}");
        }
        let sends = plan.jobs.iter().filter(|job| matches!(job.work, Work::Send { duplicate: false, .. })).count();
        let lost: HashSet<&str> =
            plan.orders.iter().filter(|order| order.lost).filter_map(|order| order.payment_id.as_deref()).collect();
        assert!((10..50).contains(&lost.len()), "{} of 500 are lost", lost.len());
        let told = ledger.events().iter().filter(|event| !lost.contains(event.payment_id.as_str())).count();
        assert_eq!(sends, told, "each event is sent once, and some once more, but those that are lost");
        let duplicates = plan.jobs.iter().filter(|job| matches!(job.work, Work::Send { duplicate: true, .. })).count();
        assert!((sends * 3 / 100..sends * 7 / 100).contains(&duplicates), "{duplicates} of {sends}");
        let forgeries: HashSet<Forgery> = plan
            .jobs
            .iter()
            .filter_map(|job| if let Work::Forge { forgery, .. } = job.work { Some(forgery) } else { None })
            .collect();
        assert_eq!(forgeries.len(), 3);
        assert_eq!(plan.registered_first.len() + plan.jobs.iter().filter(|job| matches!(job.work, Work::Register)).count(), 500);
        assert!(plan.registered_first.len() < 500, "some webhooks come before their order");
        assert!(ledger.events().iter().all(|event| event.created <= NOW), "nothing happens in the future");
    }

    #[test]
    fn every_order_has_as_many_telling_jobs_as_it_waits_for() {
        let (plan, _) = planned(100, 3);
        for (index, order) in plan.orders.iter().enumerate() {
            let telling = plan.jobs.iter().filter(|job| job.order == index);
            let telling = telling.filter(|job| matches!(job.work, Work::Register | Work::Send { telling: true, .. })).count();
            assert_eq!(telling, order.telling, "{}", order.id);
            assert_eq!(telling == 0, order.lost);
        }
    }

    #[test]
    fn few_orders_are_enough() {
        for count in [1, 2, 17] {
            assert_eq!(planned(count, 1).0.orders.len(), count);
        }
    }

    #[test]
    fn every_psp_has_its_orders_and_nothing_is_lost_that_cannot_be_asked_about() {
        let cast = all();
        let (plan, ledgers) = Plan::new(&cast, cast.len() * 20, 5, NOW);
        for (psp, ledger) in ledgers.iter().enumerate() {
            assert_eq!(ledger.payments().count(), 20, "{}", cast[psp].dialect.id());
            assert_eq!(plan.orders.iter().filter(|order| order.psp == psp).count(), 20);
        }
        assert!(plan.orders.iter().all(|order| !order.lost));
    }
}
