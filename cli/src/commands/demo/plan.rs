//! What will happen in the demo: 500 little stories, written into the ledger first, then cut into webhooks and shuffled.
//!
//! The stories lie in the past when the demo starts, as if Stripe were catching up after an outage: so the ledger is the
//! truth from the first webhook to the last, whatever Paybell asks in between.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::simulator::ledger::Ledger;
use crate::simulator::story::Story;
use crate::simulator::stripe::Stripe;
use crate::simulator::{Dialect as _, Forgery, Situation, Webhook};

/// The pace: so many orders' stories begin each second, with five webhooks each: 500 orders take a quarter of a minute, and
/// a busy laptop keeps up.
const ORDERS_PER_S: u32 = 40;
/// The webhooks of one order come in any order within this time.
const SPREAD_MS: u64 = 1_500;
/// How much later a delayed webhook comes.
const DELAY_MS: std::ops::Range<u64> = 1_000..4_000;
const DUPLICATED_PERCENT: u32 = 5;
const DELAYED_PERCENT: u32 = 5;
/// Orders whose registration comes in the midst of their webhooks or after them.
const LATE_REGISTRATION_PERCENT: u32 = 10;
/// One forged webhook for so many orders, and three at least: one of each kind.
const ORDERS_PER_FORGERY: usize = 20;

/// How often each story happens, of [`STORIES_TOTAL`]; the first ones alone where there are few orders.
const STORIES: [(Story, usize); 17] = [
    (Story::Paid, 14),
    (Story::FailedThenPaid, 5),
    (Story::AuthorizedThenCaptured, 4),
    (Story::Failed, 3),
    (Story::Canceled, 3),
    (Story::PartlyRefunded, 3),
    (Story::Refunded, 3),
    (Story::RefundFailed, 2),
    (Story::RefundedInTwoParts, 2),
    (Story::DisputeWon, 2),
    (Story::Authorized, 2),
    (Story::Pending, 2),
    (Story::Disputed, 1),
    (Story::DisputeLost, 1),
    (Story::RefundFailedThenRefunded, 1),
    (Story::AuthorizedThenCanceled, 1),
    (Story::AuthorizationExpired, 1),
];
const STORIES_TOTAL: usize = 50;

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
    pub amount: i64,
    pub currency: &'static str,
    /// The order service knows the payment's id at the registration.
    pub payment_id: Option<String>,
    /// Without these jobs the order cannot come to the truth.
    pub telling: usize,
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

impl Plan {
    /// Writes the stories of so many orders into a ledger. `now` in Unix seconds.
    #[must_use]
    pub fn new(count: usize, seed: u64, now: i64) -> (Self, Ledger) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ledger = Ledger::new(&Stripe, false, seed);
        let mut plan = Self { orders: Vec::with_capacity(count), registered_first: Vec::new(), jobs: Vec::new() };
        for (index, story) in stories(count, &mut rng).into_iter().enumerate() {
            plan.add_order(index, story, &mut ledger, &mut rng, now);
        }
        plan.add_forgeries(&ledger, &mut rng, now);
        plan.jobs.sort_by_key(|job| job.at);
        (plan, ledger)
    }

    fn add_order(&mut self, index: usize, story: Story, ledger: &mut Ledger, rng: &mut StdRng, now: i64) {
        let id = format!("demo-{:04}", index + 1);
        let (currency, amount) = match rng.random_range(0..4) {
            0 => ("USD", rng.random_range(200..50_000)),
            1 => ("GBP", rng.random_range(200..50_000)),
            // No minor unit.
            2 => ("JPY", rng.random_range(200..90_000)),
            _ => ("EUR", rng.random_range(200..50_000)),
        };
        let first = ledger.events().len();
        let payment_id = story.play(ledger, &id, amount, currency, rng, now);
        let events = &ledger.events()[first..];
        let telling = Stripe.telling(events);

        let start = u64::try_from(index).unwrap_or(u64::MAX).saturating_mul(1_000) / u64::from(ORDERS_PER_S);
        let soon = |rng: &mut StdRng| {
            let delay = if chance(rng, DELAYED_PERCENT) { rng.random_range(DELAY_MS) } else { 0 };
            Duration::from_millis(start + rng.random_range(0..SPREAD_MS) + delay)
        };
        for event in events {
            let webhook = Webhook::from(event);
            let is_telling = telling.contains(event.id.as_str());
            if chance(rng, DUPLICATED_PERCENT) {
                let work = Work::Send { webhook: webhook.clone(), telling: false, duplicate: true };
                self.jobs.push(Job { at: soon(rng), order: index, work });
            }
            let work = Work::Send { webhook, telling: is_telling, duplicate: false };
            self.jobs.push(Job { at: soon(rng), order: index, work });
        }
        let mut telling = telling.len();
        if chance(rng, LATE_REGISTRATION_PERCENT) {
            telling += 1;
            self.jobs.push(Job { at: soon(rng), order: index, work: Work::Register });
        } else {
            self.registered_first.push(index);
        }
        let knows_payment = rng.random();
        let payment_id = Some(payment_id).filter(|_| knows_payment);
        self.orders.push(PlannedOrder { id, amount, currency, payment_id, telling, changes: story != Story::Pending });
    }

    /// Forged webhooks that would do harm if they were believed.
    fn add_forgeries(&mut self, ledger: &Ledger, rng: &mut StdRng, now: i64) {
        let kinds = Forgery::ALL;
        let count = (self.orders.len() / ORDERS_PER_FORGERY).max(kinds.len());
        let end = self.jobs.iter().map(|job| job.at).max().unwrap_or_default();
        for number in 0..count {
            let index = rng.random_range(0..self.orders.len());
            let order = &self.orders[index];
            let is_paid = ledger.truth(&order.id).is_some_and(|truth| truth.captured > 0);
            let event_type = if is_paid { "charge.dispute.closed" } else { "payment_intent.succeeded" };
            let situation = Situation {
                order_id: &order.id,
                amount: order.amount,
                currency: order.currency,
                part: None,
                ending: None,
                live: false,
                at: now,
                salt: rng.random(),
            };
            let Some(webhook) = Stripe.staged(event_type, &situation) else { continue };
            let at = end.mul_f64(rng.random());
            self.jobs.push(Job { at, order: index, work: Work::Forge { webhook, forgery: kinds[number % kinds.len()] } });
        }
    }
}

fn chance(rng: &mut StdRng, percent: u32) -> bool {
    rng.random_ratio(percent, 100)
}

/// As many stories as orders, in any order, each as often as it should be.
fn stories(count: usize, rng: &mut StdRng) -> Vec<Story> {
    let mut stories: Vec<Story> = if count < STORIES_TOTAL {
        STORIES.iter().map(|(story, _)| *story).cycle().take(count).collect()
    } else {
        STORIES.iter().flat_map(|(story, often)| std::iter::repeat_n(*story, *often)).cycle().take(count).collect()
    };
    stories.shuffle(rng);
    stories
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NOW: i64 = 1_790_000_000;

    #[test]
    fn one_seed_is_one_plan() {
        let (one, first) = Plan::new(60, 7, NOW);
        let (two, second) = Plan::new(60, 7, NOW);
        let (_, other) = Plan::new(60, 8, NOW);
        let ids = |ledger: &Ledger| ledger.events().iter().map(|event| (event.id.clone(), event.created)).collect::<Vec<_>>();
        assert_eq!(ids(&first), ids(&second));
        assert_ne!(ids(&first), ids(&other));
        assert!(one.jobs.iter().zip(&two.jobs).all(|(one, two)| one.at == two.at && one.order == two.order));
    }

    #[test]
    fn five_hundred_orders_meet_everything_that_was_promised() {
        let (plan, ledger) = Plan::new(500, 1, NOW);
        let statuses: HashSet<&str> = plan.orders.iter().map(|order| ledger.truth(&order.id).unwrap().status).collect();
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
        assert_eq!(sends, ledger.events().len(), "each event is sent once, and some once more");
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
        let (plan, _) = Plan::new(100, 3, NOW);
        for (index, order) in plan.orders.iter().enumerate() {
            let telling = plan.jobs.iter().filter(|job| job.order == index);
            let telling = telling.filter(|job| matches!(job.work, Work::Register | Work::Send { telling: true, .. })).count();
            assert_eq!(telling, order.telling, "{}", order.id);
            assert!(telling > 0);
        }
    }

    #[test]
    fn few_orders_are_enough() {
        for count in [1, 2, 17] {
            assert_eq!(Plan::new(count, 1, NOW).0.orders.len(), count);
        }
    }
}
