//! What the adapters ask, the simulated APIs answer, and the answers alone lead to the truth: two separate codes, one PSP.

use std::collections::BTreeSet;
use std::future::IntoFuture as _;
use std::sync::Arc;

use paybell::simulator::ledger::{Ledger, Truth};
use paybell::simulator::story::Story;
use paybell::simulator::{self, Dialect, Settings, http_client};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{Mode, PaymentEvent, ReferenceKind};
use paybell_shared::money::{Currency, Money};
use paybell_shared::psp::{self, Account, Answer, Api, Asked, Keys, Window};
use paybell_shared::secret::Secret;
use paybell_worker::order::{Registers, Rules};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const NOW: i64 = 1_790_000_000;
/// More pages than any of these answers has.
const PAGES_MAX: usize = 40;

/// A PSP that has lived through every story that it plays, each for an order of that name.
struct Played {
    dialect: &'static dyn Dialect,
    account: Account,
    /// Order, payment, truth.
    orders: Vec<(Story, String, String, Truth)>,
    server: tokio::task::JoinHandle<()>,
}

impl Played {
    async fn new(id: &str) -> Self {
        let dialect = simulator::find(id).unwrap();
        let mut ledger = Ledger::new(dialect, false, 1);
        let mut rng = StdRng::seed_from_u64(7);
        let mut orders = Vec::new();
        for story in Story::ALL.into_iter().filter(|story| dialect.plays(*story)) {
            let order = format!("{story:?}");
            let payment = story.play(&mut ledger, &order, 4999, "EUR", &mut rng, NOW);
            let truth = ledger.truth(&order).unwrap();
            orders.push((story, order, payment, truth));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings { api_url: Some(format!("http://{}", listener.local_addr().unwrap())), ..dialect.settings() };
        let account = account(dialect, &settings);
        let api = simulator::Account::new(dialect, settings, ledger).api().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, api).into_future().await.unwrap() });
        Self { dialect, account, orders, server }
    }

    /// All pages of an answer: what `step` asks and reads, given the cursor.
    async fn follow<F>(&self, mut step: F) -> Vec<PaymentEvent>
    where
        F: FnMut(Option<&str>, Option<&http::Response<bytes::Bytes>>) -> Result<http::Request<bytes::Bytes>, Answer>,
    {
        let client = http_client().unwrap();
        let (mut events, mut cursor) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let request = step(cursor.as_deref(), None).unwrap_or_else(|_| panic!("a request"));
            let response = client.execute(request.try_into().unwrap()).await.unwrap();
            let mut read = http::Response::builder().status(response.status());
            for (name, value) in response.headers() {
                read = read.header(name, value);
            }
            let read = read.body(response.bytes().await.unwrap()).unwrap();
            let Err(answer) = step(cursor.as_deref(), Some(&read)) else { panic!("an answer") };
            assert_eq!(answer.unread, [], "{}", self.dialect.id());
            events.extend(answer.events);
            match answer.next {
                Some(next) => cursor = Some(next),
                None => return events,
            }
        }
        panic!("{} answers without end", self.dialect.id());
    }

    async fn status(&self, payment_id: &str) -> Vec<PaymentEvent> {
        let psp = self.account.psp;
        let events = self.follow(|cursor, response| match response {
            None => Ok(psp.status_request(payment_id, cursor, &self.account).unwrap()),
            Some(response) => {
                let asked = Asked { payment_id, cursor, at: Timestamp::from_seconds(NOW), look_id: "look" };
                Err(psp.read_status(&asked, response, &self.account).unwrap())
            }
        });
        events.await
    }

    async fn sweep(&self) -> Vec<PaymentEvent> {
        let psp = self.account.psp;
        let window = Window { since: Timestamp::from_seconds(NOW - 86_400), until: Timestamp::from_seconds(NOW) };
        let events = self.follow(|cursor, response| match response {
            None => Ok(psp.events_request(window, cursor, &self.account).unwrap()),
            Some(response) => {
                let asked = Asked { payment_id: "", cursor, at: Timestamp::from_seconds(NOW), look_id: "look" };
                Err(psp.read_events(window, &asked, response, &self.account).unwrap())
            }
        });
        events.await
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn account(dialect: &dyn Dialect, settings: &Settings) -> Account {
    let psp = psp::find(dialect.psp()).unwrap();
    Account {
        psp,
        psp_id: psp.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys { public_key: settings.public_key.clone(), ..Keys::default() },
        api: Api {
            key: settings.api_key.as_ref().map(|key| Secret::new("api_key", key)),
            url: settings.api_url.clone(),
            client_id: settings.client_id.clone(),
            merchant_id: settings.merchant_id.clone(),
        },
        order_reference: None,
        capture: psp::Capture::default(),
    }
}

/// What an order comes to that was registered with the payment, and of which these events are all that is known.
fn comes_to(account: &Account, payment_id: &str, events: &[PaymentEvent]) -> (&'static str, i64, i64, i64) {
    let mut order = Registers::default();
    order.expected = Some(Money::new(4999, Currency::parse("EUR").unwrap()));
    order.add_payment(&Arc::clone(&account.psp_id), &Arc::clone(&account.name), payment_id);
    for event in events {
        order.join(event, false);
    }
    let view = order.view(&Rules::default());
    (view.status.as_str(), view.captured, view.refunded, view.disputed)
}

#[tokio::test]
async fn asking_about_a_payment_leads_to_its_truth() {
    for id in ["stripe", "gocardless", "braintree"] {
        let played = Played::new(id).await;
        for (story, order, payment_id, truth) in &played.orders {
            if !played.dialect.tells_when_asked(*story) {
                continue;
            }
            let events = played.status(payment_id).await;
            assert!(events.iter().all(|event| event.payment_id == *payment_id && event.is_answer()), "{id} {order}");
            let carried = events.iter().flat_map(|event| &event.references);
            let named: BTreeSet<&str> =
                carried.filter(|name| name.kind == ReferenceKind::Order).map(|name| name.value.as_str()).collect();
            assert_eq!(named, BTreeSet::from([order.as_str()]), "{id}");
            let found = comes_to(&played.account, payment_id, &events);
            assert_eq!(found, (truth.status, truth.captured, truth.refunded, truth.disputed), "{id} {order}");
        }
    }
}

#[tokio::test]
async fn the_sweep_finds_every_order_and_each_event_once() {
    for id in ["stripe", "gocardless", "braintree"] {
        let played = Played::new(id).await;
        let events = played.sweep().await;
        let keys: BTreeSet<&str> = events.iter().map(|event| event.key.event_id.as_str()).collect();
        assert_eq!(keys.len(), events.len(), "{id}");
        for (_, order, payment_id, _) in &played.orders {
            let is_found = events.iter().any(|event| event.payment_id == *payment_id);
            assert!(is_found, "{id} does not find {order}");
        }
    }
}

/// Braintree lists transactions, not events: what it lists is the truth, also of an order that took several transactions.
#[tokio::test]
async fn what_braintree_lists_is_the_truth() {
    let played = Played::new("braintree").await;
    let events = played.sweep().await;
    for (_, order, payment_id, truth) in &played.orders {
        let of =
            |event: &&PaymentEvent| event.references.iter().any(|name| name.kind == ReferenceKind::Order && name.value == *order);
        let events: Vec<PaymentEvent> = events.iter().filter(of).cloned().collect();
        let found = comes_to(&played.account, payment_id, &events);
        assert_eq!(found, (truth.status, truth.captured, truth.refunded, truth.disputed), "{order}");
    }
}

/// A bank debit that fails after it was confirmed takes the money back; tried again, it brings it again: whatever of this a
/// look saw, and in whatever order the looks are heard of.
#[tokio::test]
async fn a_late_failure_of_a_bank_debit_takes_the_money_back() {
    let dialect = simulator::find("gocardless").unwrap();
    let account = account(dialect, &dialect.settings());
    let look = |day: i64, status: &str, told: &[(i64, &str)]| {
        let at = Timestamp::from_seconds(NOW + day * 86_400);
        let event = |(day, action): &(i64, &str)| {
            let at = Timestamp::from_seconds(NOW + day * 86_400);
            serde_json::json!({"id": format!("EV{day}"), "created_at": at, "action": action, "resource_type": "payments",
                "links": {"payment": "PM1"}})
        };
        let listed: Vec<_> = told.iter().rev().map(event).collect();
        let cursors = serde_json::json!({"cursors": {"after": null}});
        let mut events = Vec::new();
        let mut cursor: Option<String> = None;
        for body in [
            serde_json::json!({"payments": {"id": "PM1", "status": status, "amount": 4999, "currency": "EUR"}}),
            serde_json::json!({"events": listed, "meta": cursors}),
            serde_json::json!({"refunds": [], "meta": cursors}),
        ] {
            let look_id = format!("look-{day}");
            let asked = Asked { payment_id: "PM1", cursor: cursor.as_deref(), at, look_id: &look_id };
            let response = http::Response::new(body.to_string().into());
            let answer = account.psp.read_status(&asked, &response, &account).unwrap();
            events.extend(answer.events);
            match answer.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        events
    };
    let mut told = vec![(1, "created"), (2, "submitted"), (4, "confirmed")];
    let confirmed = look(5, "confirmed", &told);
    told.push((6, "failed"));
    let failed = look(7, "failed", &told);
    told.extend([(8, "resubmission_requested"), (9, "submitted")]);
    let retried = look(10, "submitted", &told);
    told.push((12, "confirmed"));
    let paid = look(13, "confirmed", &told);

    let comes_to = |looks: &[&Vec<PaymentEvent>]| {
        let backwards: Vec<&Vec<PaymentEvent>> = looks.iter().rev().copied().collect();
        let results = [looks.to_vec(), backwards]
            .map(|looks| comes_to(&account, "PM1", &looks.into_iter().flatten().cloned().collect::<Vec<_>>()));
        assert_eq!(results[0], results[1], "the order of arrival counts");
        (results[0].0, results[0].1)
    };
    assert_eq!(comes_to(&[&confirmed]), ("paid", 4999));
    assert_eq!(comes_to(&[&failed]), ("failed", 0));
    assert_eq!(comes_to(&[&confirmed, &failed]), ("failed", 0));
    assert_eq!(comes_to(&[&confirmed, &retried]), ("failed", 0));
    for looks in [&[&paid][..], &[&failed, &paid], &[&confirmed, &paid], &[&confirmed, &failed, &retried, &paid]] {
        assert_eq!(comes_to(looks), ("paid", 4999));
    }
}
