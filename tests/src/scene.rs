//! A worker without its loops, and a simulated Stripe account behind HTTP that it asks, by a clock that the test moves.

use std::collections::HashMap;
use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use paybell::simulator::ledger::Ledger;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{Account as SimulatedAccount, Dialect as _, Settings, Webhook};
use paybell_shared::clock::{Clock, ManualClock, SystemClock, Timestamp};
use paybell_shared::psp::Account;
use paybell_worker::reconcile::Reconciler;
use paybell_worker::store::{Registration, StoredOrder};
use paybell_worker::transport::HttpTransport;
use paybell_worker::{consume, expiry, reconcile};
use tokio_util::task::AbortOnDropHandle;

use crate::conformance::store::Bench;
use crate::shop::configuration;
use crate::worker::{accounts, context, delivery, message_at, put, register, registration};

const API_KEY: &str = "sk_test_of_the_tests_only";
/// What every order costs.
pub const PAID: i64 = 4999;

/// A worker without its loops, and the Stripe account that it asks.
pub struct Scene {
    pub bench: Bench,
    pub clock: Arc<ManualClock>,
    pub account: Arc<Account>,
    pub stripe: SimulatedAccount,
    pub api: Arc<Api>,
    /// When what happens at the PSP began: before any answer, by its own clock.
    pub start: i64,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

/// What the test knows of a PSP's API.
pub struct Api {
    /// By which its answers are dated.
    clock: Arc<dyn Clock>,
    /// So far ahead its clock is.
    pub ahead: Mutex<Duration>,
    /// So much further ahead each answer is than the one before it.
    pub ticks: Mutex<Duration>,
    /// Every path that was asked for, in order.
    pub paths: Mutex<Vec<String>>,
    /// How often each path was asked for.
    pub asked: Mutex<HashMap<String, usize>>,
    /// Answers in place of the account.
    pub instead: Mutex<Option<Instead>>,
}

/// An answer that the account did not give.
#[derive(Clone, Debug)]
pub struct Instead {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: String,
}

impl Instead {
    #[must_use]
    pub fn of(status: u16, body: impl Into<String>) -> Self {
        Self { status, retry_after: None, body: body.into() }
    }
}

impl Api {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            ahead: Mutex::default(),
            ticks: Mutex::default(),
            paths: Mutex::default(),
            asked: Mutex::default(),
            instead: Mutex::default(),
        })
    }
}

/// Notes what is asked, answers what the test wants, and dates each answer.
pub(crate) async fn watch(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    api.paths.lock().unwrap().push(path.clone());
    *api.asked.lock().unwrap().entry(path).or_default() += 1;
    let instead = api.instead.lock().unwrap().clone();
    let mut answer = match instead {
        Some(Instead { status, retry_after, body }) => {
            let status = StatusCode::from_u16(status).unwrap();
            let headers = retry_after.map(|text| [(header::RETRY_AFTER, text)]);
            headers
                .map_or_else(|| (status, body.clone()).into_response(), |headers| (status, headers, body.clone()).into_response())
        }
        None => next.run(request).await,
    };
    let ahead = {
        let (mut ahead, ticks) = (api.ahead.lock().unwrap(), *api.ticks.lock().unwrap());
        *ahead += ticks;
        *ahead
    };
    answer.headers_mut().insert("date", http_date(api.clock.now().plus(ahead)).parse().unwrap());
    answer
}

/// As RFC 9110 writes it.
pub(crate) fn http_date(at: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = at.to_string();
    let (date, time) = text.split_once('T').unwrap();
    let parts: Vec<&str> = date.split('-').collect();
    let weekday = DAYS[usize::try_from(at.seconds().div_euclid(86_400).rem_euclid(7)).unwrap()];
    format!("{weekday}, {} {} {} {} GMT", parts[2], MONTHS[parts[1].parse::<usize>().unwrap() - 1], parts[0], &time[..8])
}

/// A scene whose database is SQLite.
///
/// # Panics
/// When nothing can be set up.
pub async fn scene() -> Scene {
    scene_with(Bench::sqlite().await).await
}

/// # Panics
/// When nothing can be set up.
pub async fn scene_with(bench: Bench) -> Scene {
    let start = SystemClock.now();
    let stripe = SimulatedAccount::new(
        &Stripe,
        Settings { api_key: Some(API_KEY.to_owned()), ..Stripe.settings() },
        Ledger::new(&Stripe, false, 1),
    );
    let clock = Arc::new(ManualClock::at(start));
    let api = Api::new(clock.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let account = account_at(listener.local_addr().unwrap().port());
    let router = stripe.api().unwrap().layer(from_fn_with_state(Arc::clone(&api), watch));
    let server = AbortOnDropHandle::new(tokio::spawn(axum::serve(listener, router).into_future()));
    Scene { bench, clock, account, stripe, api, start: start.seconds() - 3600, _server: server }
}

/// Stripe's account, whose API is at this port of the loopback.
///
/// # Panics
/// Never.
#[must_use]
pub fn account_at(port: u16) -> Arc<Account> {
    let api = format!("api_url = \"http://127.0.0.1:{port}\"\napi_key = {API_KEY:?}\n");
    accounts(&(configuration("sqlite:q", "sqlite:s", "memory:") + &api)).remove(0)
}

impl Scene {
    /// One of the workers that share the database.
    ///
    /// # Panics
    /// The store does not answer.
    pub async fn reconciler(&self) -> Reconciler {
        let store = Arc::clone(&self.bench.store);
        let context = context(store, self.clock.clone(), vec![Arc::clone(&self.account)]).await;
        Reconciler::new(Arc::new(context), Arc::new(HttpTransport::new().unwrap()))
    }

    /// The shop registers an order with its payment, which is open at the PSP. No webhook ever comes by itself.
    ///
    /// # Panics
    /// The registration is refused.
    pub async fn open(&self, reconciler: &Reconciler, order_id: &str) -> String {
        let id = self.stripe.ledger_mut().open(order_id, PAID, "EUR", false, self.start);
        register(reconciler.context(), &self.account, order_id, &id, PAID).await;
        id
    }

    /// The same of an order that ends.
    ///
    /// # Panics
    /// The registration is refused.
    pub async fn open_until(&self, reconciler: &Reconciler, order_id: &str, expires_at: Timestamp) -> String {
        let id = self.stripe.ledger_mut().open(order_id, PAID, "EUR", false, self.start);
        let registration = registration(&self.account, order_id, Some(&id), PAID);
        put(reconciler.context(), Registration { expires_at: Some(expires_at), ..registration }).await;
        id
    }

    /// The webhook of what last happened at the PSP comes, and is applied.
    ///
    /// # Panics
    /// It is not.
    pub async fn webhook(&self, reconciler: &Reconciler) {
        let webhook = Webhook::from(self.stripe.ledger().events().last().unwrap());
        self.comes(reconciler, &webhook).await;
    }

    /// A webhook comes, and is applied.
    ///
    /// # Panics
    /// It is not.
    pub async fn comes(&self, reconciler: &Reconciler, webhook: &Webhook) {
        let message = message_at(&self.account, webhook, self.clock.now());
        let settled = consume::step(reconciler.context(), &[delivery(1, message)]).await.unwrap();
        assert_eq!(settled[0].1.as_str(), "done");
    }

    /// Lets time pass, in which all that is due is asked, and orders expire.
    ///
    /// # Panics
    /// The store does not answer.
    pub async fn pass(&self, reconciler: &Reconciler, time: Duration, pace: Duration) {
        let end = self.clock.now().plus(time);
        while self.clock.now() < end {
            while reconcile::step(reconciler).await.unwrap().asked > 0 {}
            expiry::step(reconciler.context()).await.unwrap();
            self.clock.advance(pace);
        }
    }

    /// # Panics
    /// There is no such order.
    pub async fn order(&self, order_id: &str) -> StoredOrder {
        self.bench.store.order(order_id).await.unwrap().unwrap()
    }

    /// Requests to the API so far.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.api.asked.lock().unwrap().values().sum()
    }

    /// From now on the API answers this; `None`: as the account would.
    ///
    /// # Panics
    /// Never.
    pub fn answers(&self, instead: Option<Instead>) {
        *self.api.instead.lock().unwrap() = instead;
    }

    /// Now, as the database writes a time.
    #[must_use]
    pub fn written_now(&self) -> String {
        let millis = self.clock.now().millis();
        if self.bench.is_postgres() { format!("to_timestamp({millis}::float8 / 1000)") } else { millis.to_string() }
    }

    pub fn first_look_is_due(&self) {
        self.clock.advance(self.account.psp.profile().usual_delay);
    }

    /// The order is what the PSP's own books say.
    ///
    /// # Panics
    /// It is not.
    pub async fn assert_true(&self, order_id: &str) {
        let truth = self.stripe.ledger().truth(order_id).unwrap();
        let view = self.order(order_id).await.view;
        let told = (view.status.as_str(), view.captured, view.refunded, view.disputed);
        assert_eq!(told, (truth.status, truth.captured, truth.refunded, truth.disputed));
        self.bench.check_invariants().await;
    }
}
