//! Stories of orders as Stripe tells them: created, processed, refused, captured, refunded, disputed; shuffled, with
//! duplicates among them. The same seed tells the same stories.

use std::sync::Arc;

use paybell::simulator::Webhook;
use paybell::simulator::ledger::{self, DECLINES, DisputeState, Event, Ledger, RefundState};
use paybell::simulator::stripe::Stripe;
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::psp::Account;
use paybell_shared::queue::Message;
use paybell_worker::store::Registration;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::conformance::store::eur;
use crate::worker::{key_of, message};

/// How long a story takes, in seconds.
const STORY_S: i64 = 3_600;

/// Orders and what is to be heard of them.
pub struct Stories {
    pub registrations: Vec<Registration>,
    /// As the ingress puts them on the queue.
    pub messages: Vec<Message>,
    /// How many of these repeat another one.
    pub duplicates: usize,
}

impl Stories {
    /// So many orders and so many messages about them; what the stories do not fill is filled with duplicates (8 % of ten
    /// messages an order).
    #[must_use]
    pub fn new(account: &Arc<Account>, orders: usize, messages: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let at = SystemClock.now().seconds() - STORY_S;
        let mut events = Vec::with_capacity(messages);
        let mut registrations = Vec::with_capacity(orders);
        for number in 0..orders {
            let (order_id, amount) = (format!("order-{number:08}"), random.random_range(500..50_000));
            registrations.push(Registration {
                order_id: order_id.clone(),
                account: key_of(account),
                payment_id: Some(ledger::payment_id(&Stripe, &order_id)),
                expected: eur(amount),
                expires_at: None,
                operator: "bench".to_owned(),
            });
            events.extend(story(&order_id, amount, at, number as u64, &mut random));
        }
        events.truncate(messages);
        let duplicates = messages - events.len();
        events.extend((0..duplicates).map(|_| events[random.random_range(0..events.len())].clone()).collect::<Vec<_>>());
        events.shuffle(&mut random);
        let messages = events.into_iter().map(|event| {
            let webhook = Webhook { id: event.id, event_type: event.event_type.to_owned(), body: event.body };
            message(account, &webhook)
        });
        Self { registrations, messages: messages.collect(), duplicates }
    }
}

fn story(order_id: &str, amount: i64, at: i64, salt: u64, random: &mut StdRng) -> Vec<Event> {
    let mut ledger = Ledger::new(&Stripe, false, salt);
    let id = ledger.open(order_id, amount, "EUR", false, at);
    if random.random_bool(0.5) {
        ledger.decline(&id, DECLINES[random.random_range(0..DECLINES.len())], at + 60);
    }
    ledger.process(&id, at + 120);
    ledger.capture(&id, amount, at + 180);
    ledger.note(&id, at + 181);
    if random.random_bool(0.6) {
        let number = ledger.refund(&id, random.random_range(1..amount), RefundState::Pending, at + 600);
        let ending = if random.random_bool(0.9) { RefundState::Succeeded } else { RefundState::Failed };
        ledger.settle_refund(&id, number, ending, at + 900);
    }
    if random.random_bool(0.2) {
        let number = ledger.dispute(&id, amount, at + 1_200);
        let ending = if random.random_bool(0.5) { DisputeState::Won } else { DisputeState::Lost };
        ledger.close_dispute(&id, number, ending, at + STORY_S);
    }
    ledger.events().to_vec()
}
