//! What a simulated PSP's API answers is what its adapter reads: payments, lists and endpoints, over real HTTP.

use std::collections::BTreeSet;
use std::future::IntoFuture as _;

use bytes::Bytes;
use http::{Request, Response, header};
use paybell::simulator::story::Story;
use paybell::simulator::{self, Dialect, Settings, ledger, ledger::DECLINES, ledger::DisputeState, ledger::RefundState};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::{Fact, Mode, PaymentEvent, PaymentState, RefundState as Told};
use paybell_shared::psp::{self, Account, Answer, Api, Asked, ChangedEndpoint, Endpoint, Keys, ReadError, Window};
use paybell_shared::secret::Secret;
use paybell_worker::endpoints::compare::{Ours, compare};
use paybell_worker::endpoints::plan::{Plan, Step, plan};

const NOW: i64 = 1_790_000_000;
/// More pages than any list here has.
const PAGES_MAX: usize = 500;

/// A simulated PSP that is served, and our account there.
struct Served {
    account: Account,
    simulated: simulator::Account,
    http: reqwest::Client,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    async fn new(dialect: &'static dyn Dialect, ledger: ledger::Ledger) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let settings = Settings { api_url: Some(url.clone()), ..dialect.settings() };
        let simulated = simulator::Account::new(dialect, settings.clone(), ledger);
        let server = tokio::spawn(axum::serve(listener, simulated.api().unwrap()).into_future());
        Self { account: account(dialect, settings, url), simulated, http: simulator::http_client().unwrap(), server }
    }

    async fn send(&self, request: Request<Bytes>) -> Response<Bytes> {
        let mut request = request;
        if let Some(token) = self.account.psp.token_request(&self.account) {
            let answered = self.exchange(token.unwrap()).await;
            let token = self.account.psp.read_token(&answered).unwrap();
            let value = format!("Bearer {}", token.secret.expose());
            request.headers_mut().insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        self.exchange(request).await
    }

    async fn exchange(&self, request: Request<Bytes>) -> Response<Bytes> {
        let response = self.http.execute(request.try_into().unwrap()).await.unwrap();
        let mut answered = Response::builder().status(response.status());
        *answered.headers_mut().unwrap() = response.headers().clone();
        answered.body(response.bytes().await.unwrap()).unwrap()
    }

    /// All pages of what is registered.
    async fn endpoints(&self) -> Vec<Endpoint> {
        let (mut endpoints, mut cursor) = (Vec::new(), None::<String>);
        for _ in 0..PAGES_MAX {
            let request = self.account.psp.endpoints_request(cursor.as_deref(), &self.account).unwrap();
            let response = self.send(request).await;
            let page = self.account.psp.read_endpoints_at(cursor.as_deref(), &response).unwrap();
            endpoints.extend(page.endpoints);
            cursor = page.next;
            if cursor.is_none() {
                return endpoints;
            }
        }
        panic!("{} never ends", self.account.psp.id());
    }

    /// What the PSP says to each of a plan's requests.
    async fn carry_out(&self, plan: &Plan, ours: &Ours<'_>) -> Vec<ChangedEndpoint> {
        let mut said = Vec::new();
        for step in plan.steps(ours, &self.account).unwrap() {
            if let Step::Send(request) = step {
                let response = self.send(*request).await;
                said.push(self.account.psp.read_changed_endpoint(&response).unwrap());
            }
        }
        said
    }

    /// All pages of what is known of a payment.
    async fn status(&self, payment_id: &str) -> Result<Answer, ReadError> {
        let mut all = Answer { events: Vec::new(), unread: Vec::new(), next: None };
        for _ in 0..PAGES_MAX {
            let request = self.account.psp.status_request(payment_id, all.next.as_deref(), &self.account).unwrap();
            let response = self.send(request).await;
            let asked = Asked { payment_id, cursor: all.next.as_deref(), at: Timestamp::from_seconds(NOW), look_id: "look" };
            let page = self.account.psp.read_status(&asked, &response, &self.account)?;
            all.events.extend(page.events);
            all.unread.extend(page.unread);
            all.next = page.next;
            if all.next.is_none() {
                return Ok(all);
            }
        }
        panic!("{} never ends", self.account.psp.id());
    }

    /// All pages of what happened since, and the payments that it gives reason to ask about.
    async fn events(&self, since: i64) -> (Vec<PaymentEvent>, BTreeSet<String>) {
        let window = Window { since: Timestamp::from_seconds(since), until: Timestamp::from_seconds(NOW) };
        let (mut events, mut hints, mut cursor) = (Vec::new(), BTreeSet::new(), None::<String>);
        for _ in 0..PAGES_MAX {
            let request = self.account.psp.events_request(window, cursor.as_deref(), &self.account).unwrap();
            let response = self.send(request).await;
            let asked = Asked { payment_id: "", cursor: cursor.as_deref(), at: Timestamp::from_seconds(NOW), look_id: "sweep" };
            let page = self.account.psp.read_events(window, &asked, &response, &self.account).unwrap();
            assert!(page.unread.is_empty(), "{}: {:?}", self.account.psp.id(), page.unread);
            events.extend(page.events);
            let hinted = self.account.psp.read_hints(&response, &self.account).unwrap();
            hints.extend(hinted.into_iter().map(|hint| hint.payment_id));
            cursor = page.next;
            if cursor.is_none() {
                return (events, hints);
            }
        }
        panic!("{} never ends", self.account.psp.id());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn account(dialect: &dyn Dialect, settings: Settings, url: String) -> Account {
    let adapter = psp::find(dialect.psp()).unwrap();
    let scheme = settings.scheme.or_else(|| adapter.profile().schemes.first().map(|scheme| scheme.name));
    let secrets = Some(settings.secret).filter(|secret| !secret.is_empty());
    Account {
        psp: adapter,
        psp_id: adapter.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys {
            secrets: secrets.map(|secret| Secret::new("theirs", secret)).into_iter().collect(),
            scheme: scheme.unwrap(),
            url: settings.url,
            webhook_id: settings.webhook_id,
            public_key: settings.public_key,
            trusted_root: settings.trusted_root,
            ..Keys::default()
        },
        api: Api {
            key: settings.api_key.map(|key| Secret::new("api_key", key)),
            url: Some(url),
            client_id: settings.client_id,
            merchant_id: settings.merchant_id,
        },
        order_reference: None,
        capture: psp::Capture::default(),
    }
}

/// Whether all of a story can be learned by asking.
fn is_told(dialect: &dyn Dialect, story: Story) -> bool {
    dialect.plays(story) && dialect.tells_when_asked(story)
}

/// A paid order of which a part is refunded, and a part is disputed: as much of that as the PSP knows.
fn eventful(dialect: &'static dyn Dialect) -> (ledger::Ledger, String) {
    let mut ledger = ledger::Ledger::new(dialect, false, 1);
    let id = ledger.open("ORD-1001", 5000, dialect.currencies()[0], false, NOW - 100);
    if is_told(dialect, Story::FailedThenPaid) {
        ledger.decline(&id, DECLINES[0], NOW - 90);
    }
    ledger.capture(&id, 5000, NOW - 80);
    if is_told(dialect, Story::PartlyRefunded) {
        ledger.refund(&id, 1000, RefundState::Succeeded, NOW - 70);
    }
    if is_told(dialect, Story::RefundFailed) {
        let failing = ledger.refund(&id, 500, RefundState::Pending, NOW - 60);
        ledger.settle_refund(&id, failing, RefundState::Failed, NOW - 50);
    }
    if is_told(dialect, Story::DisputeWon) {
        let number = ledger.dispute(&id, 2000, NOW - 40);
        ledger.close_dispute(&id, number, DisputeState::Won, NOW - 30);
    }
    (ledger, id)
}

fn served() -> impl Iterator<Item = &'static dyn Dialect> {
    simulator::ALL.iter().copied().filter(|dialect| psp::find(dialect.psp()).unwrap().profile().can.payment_status)
}

#[tokio::test]
async fn a_look_at_a_payment_reads_its_money_and_its_refunds() {
    for dialect in served() {
        let (ledger, id) = eventful(dialect);
        let psp = Served::new(dialect, ledger).await;
        let answer = psp.status(&id).await.unwrap_or_else(|error| panic!("{}: {error}", dialect.id()));
        assert!(answer.unread.is_empty(), "{}: {:?}", dialect.id(), answer.unread);
        let keys: BTreeSet<&str> = answer.events.iter().map(|event| event.key.event_id.as_str()).collect();
        assert_eq!(keys.len(), answer.events.len(), "{}: {keys:?}", dialect.id());
        assert!(answer.events.iter().all(|event| event.payment_id == id && event.is_answer()), "{}", dialect.id());
        let captured: i64 = answer.events.iter().fold(0, |captured, event| match &event.fact {
            Fact::Payment(fact) if fact.state == PaymentState::Captured => {
                captured.max(fact.captured.map_or(0, |money| money.minor))
            }
            Fact::Capture { amount, .. } => captured.max(amount.minor),
            _ => captured,
        });
        assert_eq!(captured, 5000, "{}", dialect.id());
        let singles: i64 = answer.events.iter().fold(0, |refunded, event| match &event.fact {
            Fact::Refund { state: Told::Succeeded, amount, .. } => refunded + amount.minor,
            _ => refunded,
        });
        let totals = answer.events.iter().filter_map(|event| match &event.fact {
            Fact::RefundTotal { amount } => Some(amount.minor),
            _ => None,
        });
        let refunded = if is_told(dialect, Story::PartlyRefunded) { 1000 } else { 0 };
        assert_eq!(singles.max(totals.max().unwrap_or(0)), refunded, "{}", dialect.id());
    }
}

#[tokio::test]
async fn a_payment_that_nobody_knows_is_not_found() {
    for dialect in served() {
        let (ledger, _) = eventful(dialect);
        let unknown = ledger::payment_id(dialect, "another order");
        let psp = Served::new(dialect, ledger).await;
        assert_eq!(psp.status(&unknown).await, Err(ReadError::NotFound), "{}", dialect.id());
    }
}

#[tokio::test]
async fn a_sweep_reads_every_payment_once() {
    for dialect in served().filter(|dialect| psp::find(dialect.psp()).unwrap().profile().can.event_list) {
        let mut ledger = ledger::Ledger::new(dialect, false, 1);
        let mut paid = BTreeSet::new();
        // More than two pages of any PSP's, several within one second.
        for number in 0..210 {
            let at = NOW - 1000 + number / 3;
            let id = ledger.open(&format!("ORD-{number}"), 5000, dialect.currencies()[0], false, at);
            ledger.capture(&id, 5000, at);
            if number % 70 == 0 && is_told(dialect, Story::PartlyRefunded) {
                ledger.refund(&id, 1000, RefundState::Succeeded, at + 1);
            }
            if number % 70 == 0 && is_told(dialect, Story::Disputed) {
                ledger.dispute(&id, 2000, at + 2);
            }
            paid.insert(id);
        }
        let psp = Served::new(dialect, ledger).await;
        let (events, hints) = psp.events(NOW - 1000).await;
        // A hint may name a payment by one of its parts, which the status then leads on from.
        let whole = hints.into_iter().filter(|id| !id.contains(':'));
        let found: BTreeSet<String> = events.iter().map(|event| event.payment_id.clone()).chain(whole).collect();
        let missed: Vec<&String> = paid.symmetric_difference(&found).collect();
        assert!(missed.is_empty(), "{}: {} of {} differ, such as {:?}", dialect.id(), missed.len(), paid.len(), missed[0]);
        let keys: BTreeSet<&str> = events.iter().map(|event| event.key.event_id.as_str()).collect();
        assert_eq!(keys.len(), events.len(), "{}: told twice", dialect.id());
    }
}

#[tokio::test]
async fn the_endpoint_is_listed_as_it_is_registered() {
    for dialect in served().filter(|dialect| psp::find(dialect.psp()).unwrap().profile().can.endpoint_list) {
        let (ledger, _) = eventful(dialect);
        let psp = Served::new(dialect, ledger).await;
        psp.simulated.set_endpoint("https://shop.example/webhooks/here");
        let endpoints = psp.endpoints().await;
        assert_eq!(endpoints.len(), 1, "{}", dialect.id());
        assert_eq!((endpoints[0].url.as_str(), endpoints[0].enabled), ("https://shop.example/webhooks/here", true));
    }
}

/// What registering sends is what the PSP's API takes: made, changed and mended, until nothing is left to change.
#[tokio::test]
async fn an_endpoint_is_made_and_mended() {
    const URL: &str = "https://shop.example/webhooks/here";
    let makes = |dialect: &&dyn Dialect| psp::find(dialect.psp()).unwrap().profile().can.endpoint_list;
    for dialect in served().filter(makes) {
        let (ledger, _) = eventful(dialect);
        let psp = Served::new(dialect, ledger).await;
        let Some(wanted) = psp.account.psp.wanted_endpoint(&psp.account) else { continue };
        let named = |id| Ours { name: "it", mode: Mode::Test, url: URL, id, wanted, others: &[], by_hand: "here" };
        let ours = named(None);
        psp.simulated.endpoints_mut().clear();
        let plan_now = async || plan(&psp.endpoints().await, &ours);
        assert_eq!(plan_now().await, Plan::Create, "{}", dialect.id());
        let made = psp.carry_out(&Plan::Create, &ours).await.pop().unwrap();
        assert_eq!(made.secret.is_some(), wanted.tells_secret, "{}", dialect.id());
        assert_eq!(plan_now().await, Plan::Nothing, "{}", dialect.id());
        assert_eq!(compare(&psp.endpoints().await, &ours), [], "{}", dialect.id());
        // What somebody added stays, what somebody broke is mended, and what is another's is not touched.
        let other = simulator::Registered {
            number: 7,
            url: "https://other.example/hook".to_owned(),
            ..psp.simulated.endpoints()[0].clone()
        };
        psp.simulated.endpoints_mut().push(other.clone());
        {
            let mut endpoints = psp.simulated.endpoints_mut();
            endpoints[0].events = vec![wanted.events[0].to_owned(), "somebody.elses".to_owned()];
            endpoints[0].url += "/";
            // PayPal has no way to switch one off.
            endpoints[0].enabled = dialect.psp() == "paypal";
        }
        let broken = plan_now().await;
        let left = psp.carry_out(&broken, &ours).await;
        let by_hand = match dialect.psp() {
            "checkoutcom" => Some((true, true, false)),
            "mollie" => Some((false, false, true)),
            _ => None,
        };
        match (plan_now().await, by_hand) {
            (Plan::Nothing, None) => assert!(!left.is_empty(), "{}", dialect.id()),
            (Plan::Update(update), Some(by_hand)) => {
                assert_eq!((update.url.is_some(), update.events.is_some(), update.enable), by_hand, "{}", dialect.id());
            }
            (plan, _) => panic!("{}: {plan:?}", dialect.id()),
        }
        let endpoints = psp.simulated.endpoints();
        assert_eq!((endpoints.len(), &endpoints[1]), (2, &other), "{}", dialect.id());
        assert!(endpoints[0].events.contains(&"somebody.elses".to_owned()), "{}", dialect.id());
    }
}
