//! A subscriber's server: writes down what it is told, and answers as a test wants it to.

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// How long it may take until somebody is told. Not a promise about speed: a bound on a test that would hang. Longer than a
/// lease, since one that was lost must end first.
const PATIENCE: Duration = Duration::from_mins(2);
const ASK_EVERY: Duration = Duration::from_millis(20);
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    /// # Panics
    /// There is no such header.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_else(|| panic!("{name} is not there"))
    }

    /// # Panics
    /// It is no JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// What the receiver answers to its n-th request, counted from 0; `None`: nothing, ever.
pub type Script = Box<dyn Fn(usize) -> Option<Response> + Send + Sync>;

/// Ends with its drop.
pub struct Receiver {
    port: u16,
    state: Arc<Shared>,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

struct Shared {
    received: Mutex<Vec<Received>>,
    script: Script,
}

impl Receiver {
    /// # Panics
    /// There is no free port.
    pub async fn start(script: impl Fn(usize) -> Option<Response> + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound address").port();
        let state = Arc::new(Shared { received: Mutex::default(), script: Box::new(script) });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let server = AbortOnDropHandle::new(tokio::spawn(axum::serve(listener, router).into_future()));
        Self { port, state, _server: server }
    }

    /// One that answers 200.
    pub async fn willing() -> Self {
        Self::start(|_| Some(status(200))).await
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hooks/a-path-that-is-nobodys-business", self.port)
    }

    /// # Panics
    /// A request panicked.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().expect("no panic").clone()
    }

    /// Waits for so many requests.
    ///
    /// # Panics
    /// They do not come.
    pub async fn until(&self, count: usize) -> Vec<Received> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let received = self.received();
            if received.len() >= count {
                return received;
            }
            assert!(Instant::now() < deadline, "{} of {count} requests came", received.len());
            sleep(ASK_EVERY).await;
        }
    }
}

/// An empty answer.
///
/// # Panics
/// It is no status.
#[must_use]
pub fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).expect("a status")
}

async fn answer(State(state): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.expect("a small body");
    let number = {
        let mut received = state.received.lock().expect("no panic");
        received.push(Received { headers: head.headers, body });
        received.len() - 1
    };
    match (state.script)(number) {
        Some(response) => response,
        None => std::future::pending().await,
    }
}
