//! An ingress on a free port, a publisher that does as it is told, and a client that writes raw bytes.
//!
//! Every test runs on one thread (`#[tokio::test]`), so the recorder and the log of a test are its own.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit as _, Mac as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use paybell_ingress::Started;
use paybell_shared::clock::{ManualClock, Timestamp};
use paybell_shared::config::Config;
use paybell_shared::ops::Check;
use paybell_shared::queue::{Health, Message, PublishError, Publisher};
use paybell_shared::shutdown::Shutdown;
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

pub const SECRET: &str = "whsec_the_default_account";
pub const SHOP_SECRET: &str = "whsec_the_account_shop";
pub const NOW_S: i64 = 1_790_000_000;
pub const BODY: &str = r#"{"id":"evt_1","object":"event","type":"payment_intent.succeeded"}"#;
pub const BODY_BYTES_MAX: usize = 4096;

/// A test that hangs fails here; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Rig {
    pub address: SocketAddr,
    pub check: Check,
    pub publisher: Arc<FakePublisher>,
    pub shutdown: Shutdown,
    pub log: Log,
    metrics: PrometheusHandle,
    _on_this_thread: (metrics::LocalRecorderGuard<'static>, tracing::subscriber::DefaultGuard),
}

impl Rig {
    pub fn start() -> Self {
        Self::start_with("", |_| {})
    }

    /// `extra` is appended to the configuration's text: tables beyond the two Stripe accounts.
    pub fn start_with(extra: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::try_start(extra, change).unwrap()
    }

    pub fn try_start(extra: &str, change: impl FnOnce(&mut Config)) -> anyhow::Result<Self> {
        let text = format!(
            "[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['{SECRET}']\n\
             [[psp]]\nid = 'stripe'\naccount = 'shop'\nmode = 'test'\nsecrets = ['whsec_old', '{SHOP_SECRET}']\n{extra}"
        );
        let mut config = Config::parse(&text, "the test", std::iter::empty()).unwrap();
        config.ingress.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.limits.body_bytes_max = BODY_BYTES_MAX;
        config.limits.publish_budget_ms = 4_000;
        change(&mut config);

        let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        let metrics = recorder.handle();
        let log = Log::default();
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(log.clone()).with_ansi(false);
        let on_this_thread = (metrics::set_default_local_recorder(recorder), tracing::subscriber::set_default(lines.finish()));
        let (publisher, shutdown) = (Arc::new(FakePublisher::new()), Shutdown::new());
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(NOW_S)));
        let Started { address, check } =
            paybell_ingress::start_with(&config, Arc::clone(&publisher) as Arc<dyn Publisher>, clock, &shutdown)?;
        Ok(Self { address, check, publisher, shutdown, log, metrics, _on_this_thread: on_this_thread })
    }

    pub async fn client(&self) -> Client {
        Client { stream: BufReader::new(TcpStream::connect(self.address).await.unwrap()) }
    }

    /// Sends bytes on a connection of their own and reads one answer.
    pub async fn exchange(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer().await
    }

    /// All of them, as they are scraped.
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }

    /// The sum of a metric over all series that have these labels; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.render();
        let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    pub fn counted(&self, outcome: &str, reason: &str) -> f64 {
        let labels = [format!("outcome=\"{outcome}\""), format!("reason=\"{reason}\"")];
        self.metric("paybell_webhooks_total", &[&labels[0], &labels[1]])
    }
}

/// Waits for something that other tasks bring about.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let turns = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, turns).await.is_ok(), "{what}: waited in vain");
}

pub fn signature(secret: &str, at_s: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at_s}.").as_bytes());
    mac.update(body);
    format!("stripe-signature: t={at_s},v1={}\r\n", hex::encode(mac.finalize().into_bytes()))
}

/// A request with any headers, and the length of its body.
pub fn request(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("POST {path} HTTP/1.1\r\nhost: paybell\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A genuine webhook of the default account.
pub fn genuine() -> Vec<u8> {
    signed(BODY)
}

pub fn signed(body: impl AsRef<[u8]>) -> Vec<u8> {
    request("/webhooks/stripe", &signature(SECRET, NOW_S, body.as_ref()), body)
}

pub struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    /// An ingress that has heard enough may be gone already; what it said is to be read all the same.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    pub async fn answer(&mut self) -> Answer {
        self.next_answer().await.expect("an answer, not the end of the connection")
    }

    /// The next answer, or `None` at the connection's end.
    pub async fn next_answer(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.expect("an answer or the end in time")
    }

    async fn read_answer(&mut self) -> Option<Answer> {
        let status_line = self.line().await?;
        let status = status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).expect(&status_line).parse().unwrap();
        let mut headers = Vec::new();
        while let Some(line) = self.line().await.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").expect(&line);
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |value| value.parse().unwrap());
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body).await.unwrap();
        Some(answer)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line).await.expect("no reset: the answer would be lost with it");
        (length > 0).then(|| line.trim_end().to_owned())
    }
}

/// A publisher that does as it is told.
pub struct FakePublisher {
    verdict: Mutex<Verdict>,
    published: Mutex<Vec<Message>>,
    began: Semaphore,
    gate: Semaphore,
    health: watch::Sender<Health>,
}

#[derive(Clone)]
pub enum Verdict {
    Confirm,
    Fail(PublishError),
    /// Waits until it is released, then confirms.
    Wait,
    Hang,
}

impl FakePublisher {
    fn new() -> Self {
        Self {
            verdict: Mutex::new(Verdict::Confirm),
            published: Mutex::new(Vec::new()),
            began: Semaphore::new(0),
            gate: Semaphore::new(0),
            health: watch::Sender::new(Health::Starting),
        }
    }

    pub fn will(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap() = verdict;
    }

    pub fn release(&self) {
        self.gate.add_permits(1);
    }

    pub fn becomes(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// Resolves once for each publish that has begun.
    pub async fn began(&self) {
        let began = tokio::time::timeout(PATIENCE, self.began.acquire()).await.expect("a publish in time");
        began.unwrap().forget();
    }

    /// How many have begun that nobody waited for yet.
    pub fn began_so_far(&self) -> usize {
        self.began.available_permits()
    }

    pub fn published(&self) -> Vec<Message> {
        self.published.lock().unwrap().clone()
    }
}

#[async_trait]
impl Publisher for FakePublisher {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.began.add_permits(1);
        let verdict = self.verdict.lock().unwrap().clone();
        match verdict {
            Verdict::Confirm => {}
            Verdict::Fail(error) => return Err(error),
            Verdict::Wait => self.gate.acquire().await.unwrap().forget(),
            Verdict::Hang => std::future::pending().await,
        }
        self.published.lock().unwrap().push(message);
        Ok(())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
}

/// What a test's ingress logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines of webhooks.
    pub fn webhooks(&self) -> Vec<String> {
        self.text().lines().filter(|line| line.contains("webhook.received")).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
