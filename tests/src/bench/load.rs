//! Closed-loop load: so many connections, each sending its next signed webhook when the last one is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use paybell::simulator::stripe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Measured;

/// An answer of the ingress has a few short headers and no body.
const ANSWER_BYTES_MAX: usize = 4096;

/// Signed Stripe webhooks with distinct ids.
pub struct Webhooks {
    secret: String,
    body: String,
    next: AtomicU64,
}

impl Webhooks {
    /// `body_bytes` is met by padding the metadata.
    #[must_use]
    pub fn new(secret: &str, body_bytes: usize) -> Self {
        let before = concat!(
            r#"{"id":"evt_################","object":"event","api_version":"2026-10-28.endive","created":1789999990,"#,
            r#""livemode":false,"pending_webhooks":1,"type":"payment_intent.succeeded","data":{"object":{"#,
            r#""id":"pi_################","object":"payment_intent","amount":4999,"amount_received":4999,"currency":"eur","#,
            r#""latest_charge":"ch_################","livemode":false,"status":"succeeded","#,
            r#""metadata":{"order_id":"ord-################","note":""#,
        );
        let after = r#""}}}}"#;
        let padding = "n".repeat(body_bytes.saturating_sub(before.len() + after.len()));
        Self { secret: secret.to_owned(), body: format!("{before}{padding}{after}"), next: AtomicU64::new(0) }
    }

    /// The next webhook as the bytes of a request.
    fn request(&self) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let body = self.body.replace("################", &format!("{number:016}"));
        let signature = stripe::signature(&self.secret, now_s(), body.as_bytes());
        let length = body.len();
        format!(
            "POST /webhooks/stripe HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json; charset=utf-8\r\n\
             stripe-signature: {signature}\r\nuser-agent: Stripe/1.0\r\naccept: */*\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Sends for `duration` over `connections`.
///
/// # Errors
/// A connection cannot be made, or is closed.
pub async fn measure(
    address: SocketAddr,
    webhooks: &Arc<Webhooks>,
    connections: usize,
    duration: Duration,
) -> anyhow::Result<Measured> {
    let started = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..connections {
        senders.spawn(send(address, Arc::clone(webhooks), started, duration));
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut failed = 0;
    while let Some(sent) = senders.join_next().await {
        let (its_latencies, its_failed) = sent??;
        latencies.add(its_latencies)?;
        failed += its_failed;
    }
    Ok(Measured::new(&latencies, failed, started.elapsed()))
}

async fn send(
    address: SocketAddr,
    webhooks: Arc<Webhooks>,
    started: Instant,
    duration: Duration,
) -> anyhow::Result<(Histogram<u64>, u64)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut failed = 0;
    let mut answer = Vec::with_capacity(ANSWER_BYTES_MAX);
    while started.elapsed() < duration {
        let request = webhooks.request();
        let began = Instant::now();
        stream.write_all(&request).await?;
        answer.clear();
        while !answer.ends_with(b"\r\n\r\n") {
            let read = stream.read_buf(&mut answer).await?;
            ensure!(read > 0 && answer.len() <= ANSWER_BYTES_MAX, "the ingress closed the connection, or its answer has a body");
        }
        if answer.get(9..12).context("an answer without a status")?.starts_with(b"2") {
            latencies.record(u64::try_from(began.elapsed().as_micros())?)?;
        } else {
            failed += 1;
        }
    }
    Ok((latencies, failed))
}

#[expect(clippy::disallowed_methods, reason = "signs for a real ingress, which has a real clock")]
fn now_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
