//! Endpoints: what is registered at the PSPs, and the way that leads to us.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::canary;
use crate::consume::Context;
use crate::endpoints::{self, Inspector, Report};
use crate::order::AccountKey;
use crate::transport::PspTransport;

/// So long a canary that somebody asks for may be on its way: an answer must come within 30 s.
const CANARY_PATIENCE: Duration = Duration::from_secs(8);

/// Makes the inspector that looks when somebody asks, once: it keeps the PSPs' access tokens.
pub struct Inspectors {
    transport: Arc<dyn PspTransport>,
    made: OnceLock<Arc<Inspector>>,
}

impl Inspectors {
    #[must_use]
    pub fn new(transport: Arc<dyn PspTransport>) -> Self {
        Self { transport, made: OnceLock::new() }
    }

    fn inspector(&self, context: &Arc<Context>) -> &Inspector {
        self.made.get_or_init(|| Arc::new(Inspector::new(Arc::clone(context), Arc::clone(&self.transport))))
    }
}

/// Every account's endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointPage {
    items: Vec<EndpointItem>,
    /// Always null: there are as many as accounts.
    next_cursor: Option<String>,
}

/// An account's endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointItem {
    psp: String,
    account: String,
    mode: &'static str,
    /// What was seen last; null: nothing yet.
    report: Option<Report>,
}

/// What was seen of every account's endpoint last.
///
/// By the hourly check, or because somebody asked.
#[utoipa::path(
    get, path = "/v1/endpoints", tag = "endpoints",
    responses(
        (status = 200, description = "All accounts", body = EndpointPage),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `read`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_endpoints(Extension(context): Extension<Arc<Context>>) -> Result<Json<EndpointPage>, Problem> {
    let mut reports: std::collections::BTreeMap<AccountKey, Report> = endpoints::reports(&context).await?.into_iter().collect();
    let mut keys: Vec<&AccountKey> = context.accounts.keys().collect();
    keys.sort();
    let flights = canary::flights(&context).await?;
    let item = |key: &AccountKey| {
        let mut report = reports.remove(key);
        if *key == canary::key()
            && let Some(report) = report.as_mut()
        {
            add_flights(report, flights.clone());
        }
        EndpointItem {
            psp: key.psp.to_string(),
            account: key.account.to_string(),
            mode: context.accounts.get(key).map_or("", |account| account.mode.as_str()),
            report,
        }
    };
    Ok(Json(EndpointPage { items: keys.into_iter().map(item).collect(), next_cursor: None }))
}

/// Looks at an account's endpoint now.
///
/// Asks its PSP what is registered, goes the way that the PSP would take to us, and, of the account `canary`, sends one. What
/// is seen is kept, as that of the hourly check is. Nothing is changed.
#[utoipa::path(
    post, path = "/v1/endpoints/{psp}/{account}/check", tag = "endpoints",
    params(("psp" = String, Path), ("account" = String, Path)),
    responses(
        (status = 200, description = "What was seen", body = EndpointItem),
        (status = 401, description = "The token is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The token lacks the scope `operate`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such account", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The database is not available", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn check_endpoint(
    Extension(context): Extension<Arc<Context>>,
    Extension(inspectors): Extension<Arc<Inspectors>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<EndpointItem>, Problem> {
    let Path((psp, account)) = path.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let key = AccountKey { psp: psp.into(), account: account.into() };
    let Some(configured) = context.accounts.get(&key).map(Arc::clone) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("{}/{} is not configured", key.psp, key.account)));
    };
    let inspector = inspectors.inspector(&context);
    let looking = async {
        Ok(match endpoints::look(inspector, &key, &configured, false).await? {
            Some(report) => report,
            // Another worker is looking: what it finds is kept, what is found here is told.
            None => inspector.inspect(&key, &configured).await?,
        })
    };
    let flying = async {
        if key != canary::key() {
            return Ok(None);
        }
        canary::send(&context, &configured, CANARY_PATIENCE).await.map(Some)
    };
    let (report, flights): (Result<Report, crate::store::StoreError>, Result<_, crate::store::StoreError>) =
        tokio::join!(looking, flying);
    let mut report = report?;
    add_flights(&mut report, flights?);
    let mode = configured.mode.as_str();
    Ok(Json(EndpointItem { psp: key.psp.to_string(), account: key.account.to_string(), mode, report: Some(report) }))
}

fn add_flights(report: &mut Report, flights: Option<canary::Flights>) {
    report.findings.extend(flights.as_ref().and_then(canary::finding));
    report.canary = flights;
}
