//! For operators: `/livez`, `/readyz`, `/metrics`, on an address of their own.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::shutdown::Shutdown;

/// One part's word on whether traffic may come.
pub type Check = Arc<dyn Fn() -> Report + Send + Sync>;

#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub part: &'static str,
    pub ready: bool,
    /// For a person; also where a ready part is degraded.
    pub detail: String,
}

/// Answers until the stop; not ready from its beginning.
pub fn serve(listener: TcpListener, checks: Vec<Check>, metrics: PrometheusHandle, shutdown: &Shutdown) {
    let _ = (listener, checks, metrics, shutdown);
}
