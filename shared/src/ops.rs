//! For operators: `/livez`, `/readyz`, `/metrics`, on an address of their own.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::serve::{self, Limits};
use crate::shutdown::Shutdown;

/// For probes and a few scrapers.
const LIMITS: Limits = Limits {
    connections_max: 64,
    headers_max: serve::HEADERS_MAX,
    header_bytes_max: 16 * 1024,
    header_timeout: Duration::from_secs(15),
};

/// How often what histograms collected is folded into their buckets, also if nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How long [`ask_ready`] waits, for each step: below the 5 s or so that container runtimes give a health check.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The most that [`ask_ready`] reads: the status line and some.
const ANSWER_BYTES_MAX: u64 = 1024;

/// One part's word on whether traffic may come.
pub type Check = Arc<dyn Fn() -> Report + Send + Sync>;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub part: &'static str,
    pub ready: bool,
    /// For a person; also where a ready part is degraded.
    pub detail: String,
}

/// Answers for as long as the process lives; not ready from the beginning of the stop.
pub fn serve(listener: TcpListener, checks: Vec<Check>, metrics: PrometheusHandle, shutdown: &Shutdown) {
    let upkeep = metrics.clone();
    let finished = shutdown.finished_token();
    shutdown.watch("metrics upkeep", async move {
        while tokio::time::timeout(UPKEEP_EVERY, finished.cancelled()).await.is_err() {
            upkeep.run_upkeep();
        }
        Ok(())
    });
    let routes = serve::routed(router(checks, metrics, shutdown.clone()));
    shutdown.watch("ops", serve::accept("ops", listener, LIMITS, routes, shutdown.finished_token()));
}

/// Asks a process on this machine for its `/readyz`: the health check of an image that has neither shell nor curl.
///
/// # Errors
/// Nobody answers there, or not in time.
pub fn ask_ready(ops_listen: SocketAddr) -> io::Result<bool> {
    let ip = match ops_listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, ops_listen.port()), ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

#[derive(Clone)]
struct Ops {
    checks: Arc<[Check]>,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    stopping: bool,
    parts: Vec<Report>,
}

fn router(checks: Vec<Check>, metrics: PrometheusHandle, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(exposition))
        .with_state(Ops { checks: checks.into(), metrics, shutdown })
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let parts: Vec<Report> = ops.checks.iter().map(|check| check()).collect();
    let stopping = ops.shutdown.is_stopping();
    let ready = !stopping && parts.iter().all(|part| part.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, stopping, parts })).into_response()
}

async fn exposition(State(ops): State<Ops>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], ops.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn tells_the_truth_to_the_end_of_the_stop() {
        let shutdown = Shutdown::new();
        let listener = serve::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let is_ready = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_ready);
        let check: Check =
            Arc::new(move || Report { part: "the part", ready: seen.load(Ordering::Relaxed), detail: "as it is".to_owned() });
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("paybell_tests_total").increment(7));
        super::serve(listener, vec![check], handle, &shutdown);
        let ask = || tokio::task::spawn_blocking(move || ask_ready(address).unwrap());

        let starting = get(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503 ") && starting.contains(r#""part":"the part""#), "{starting}");
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200 "));
        assert!(!ask().await.unwrap());
        is_ready.store(true, Ordering::Relaxed);
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200 ") && ready.contains(r#""detail":"as it is""#), "{ready}");
        assert!(ask().await.unwrap());
        assert!(get(address, "/metrics").await.contains("\npaybell_tests_total 7\n"));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404 "));

        // A task that is still busy: the stop lasts, and is told.
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        shutdown.spawn("busy", async move { Ok(released.await?) });
        let stop = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.finish().await }
        });
        shutdown.stopping().await;
        let stopping = get(address, "/readyz").await;
        assert!(stopping.starts_with("HTTP/1.1 503 ") && stopping.contains(r#""stopping":true"#), "{stopping}");
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200 "));
        release.send(()).unwrap();
        assert!(stop.await.unwrap());
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn nobody_there_is_an_error() {
        // Bound and not listening: nobody else gets the port meanwhile.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        assert!(ask_ready(socket.local_addr().unwrap().as_socket().unwrap()).is_err());
    }
}
