//! The internal API: the shop registers orders and asks where they stand.
//!
//! One file a subject, one function a route; their description (`GET /v1/openapi.json`) is generated from them. Here is what
//! all have in common: the bearer token that every request carries, the size of a page.

mod balance;
mod completeness;
mod dead_letters;
pub mod endpoints;
mod events;
mod orders;
mod problem;
mod replays;
mod review;
mod stream;
mod sweeps;
mod timeline;
mod unsettled;
pub(crate) mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json, Router};
use paybell_shared::config::{ApiToken, Config, FINISH_MAX, Scope};
use paybell_shared::shutdown::Shutdown;
use tokio::time::timeout;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::endpoints::Inspectors;
use self::problem::Problem;
use self::stream::Streams;
pub(crate) use self::wire::Order;
use crate::consume::Context;
use crate::tail::Tail;
use crate::transport::PspTransport;

/// A registration is a few hundred bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// From a request's head to the head of its answer, its body included. A stop waits no longer for anybody.
const ANSWER_MAX: Duration = FINISH_MAX;
/// Items of a page, where the caller does not say.
const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 500;
/// Clients that may follow the stream of changes: a shop has few servers, and each may hold one for every page that waits.
pub const STREAM_CLIENTS_MAX: usize = 1024;

/// What the API answers from, once the database is there.
pub type Answering = Arc<OnceLock<Arc<Context>>>;

/// What the API is told at its start.
pub struct Settings {
    pub tokens: Vec<ApiToken>,
    /// How long an event may wait for its order.
    pub parked_max: Duration,
    /// How far back a stream may be resumed.
    pub stream_kept: Duration,
    /// More clients of the stream are refused.
    pub stream_clients_max: usize,
    /// The way to PSPs, for checks and lists that somebody asks for.
    pub transport: Arc<dyn PspTransport>,
}

impl Settings {
    #[must_use]
    pub fn of(config: &Config, transport: Arc<dyn PspTransport>) -> Self {
        Self {
            tokens: config.api.tokens.clone(),
            parked_max: Duration::from_secs(config.limits.parked_max_s),
            stream_kept: Duration::from_secs(u64::from(config.retention.stream_days) * 24 * 60 * 60),
            stream_clients_max: STREAM_CLIENTS_MAX,
            transport,
        }
    }
}

#[derive(Clone)]
struct ApiState {
    context: Answering,
    tokens: Arc<[ApiToken]>,
}

/// The name of the token that a request came with.
#[derive(Clone)]
struct Caller(String);

/// How long an event may wait for its order.
#[derive(Clone, Copy)]
struct Patience {
    parked_max: Duration,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Paybell internal API", description = "Register orders, and ask where they stand."),
    modifiers(&BearerToken),
    security(("bearer" = []))
)]
struct Description;

struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The API's routes; 503 until `context` is set. Streams end when the stop begins.
pub fn router(context: Answering, settings: Settings, tail: Arc<Tail>, shutdown: &Shutdown) -> Router {
    let Settings { tokens, parked_max, stream_kept, stream_clients_max, transport } = settings;
    let state = ApiState { context, tokens: tokens.into() };
    let streams = Arc::new(Streams::new(tail, stream_clients_max, stream_kept, shutdown.clone()));
    let (router, description) = documented().split_for_parts();
    let description = Arc::new(description);
    router
        .route("/v1/openapi.json", axum::routing::get(move || std::future::ready(Json((*description).clone()))))
        .fallback(|| std::future::ready(Problem::new(StatusCode::NOT_FOUND, "there is no such route")))
        .method_not_allowed_fallback(|| {
            std::future::ready(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the route has other methods"))
        })
        .layer(Extension(Patience { parked_max }))
        .layer(Extension(streams))
        .layer(Extension(Arc::new(sweeps::Asking::new(Arc::clone(&transport)))))
        .layer(Extension(Arc::new(Inspectors::new(transport))))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state, authorize))
}

/// The API's description, without a server.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

fn documented() -> OpenApiRouter {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(orders::register_order, orders::get_order))
        .routes(routes!(orders::list_orders))
        .routes(routes!(review::decide_review))
        .routes(routes!(timeline::get_timeline))
        .routes(routes!(stream::stream_order))
        .routes(routes!(stream::stream_all))
        .routes(routes!(events::get_event))
        .routes(routes!(events::list_parked))
        .routes(routes!(balance::get_balance))
        .routes(routes!(completeness::get_completeness))
        .routes(routes!(unsettled::list_unsettled))
        .routes(routes!(replays::replay_webhooks))
        .routes(routes!(endpoints::list_endpoints))
        .routes(routes!(endpoints::check_endpoint))
        .routes(routes!(sweeps::sweep_list))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::get_dead_letter))
        .routes(routes!(dead_letters::replay_dead_letter))
        .routes(routes!(dead_letters::discard_dead_letter))
}

/// Admits a request whose bearer token has the scope that its method needs, and hands it the context.
async fn authorize(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let needed = if request.method().is_safe() { Scope::Read } else { Scope::Operate };
    let offered = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let offered = offered.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // Every token is compared, so that the time tells nothing of which one matched.
    let matched = offered.and_then(|(_, token)| {
        state.tokens.iter().fold(None, |found, known| if known.secret.matches(token.trim()) { Some(known) } else { found })
    });
    let Some(token) = matched else {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "a bearer token of [api] token or tokens is needed");
        return ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response();
    };
    if !token.scopes.contains(&needed) {
        let detail = format!("the token {:?} lacks the scope {}", token.name, scope_name(needed));
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    let Some(context) = state.context.get() else {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database was not reached yet").into_response();
    };
    request.extensions_mut().insert(Arc::clone(context));
    request.extensions_mut().insert(Caller(token.name.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match timeout(ANSWER_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, too_long()).into_response(),
    };
    if needed == Scope::Operate {
        tracing::info!(event = "api.change", token = token.name, %method, path, status = response.status().as_u16());
    }
    response
}

fn too_long() -> String {
    format!("reading or answering the request took more than {} s: repeat it, it is safe to repeat", ANSWER_MAX.as_secs())
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Operate => "operate",
    }
}

/// Leaves of what was found, which is one more than was asked for if there is more, a page; and the cursor of the next one.
fn cut<T>(found: &mut Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Option<String> {
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    if more { found.last().map(cursor) } else { None }
}

/// How many items a page may have.
fn page_limit(asked: Option<u32>) -> Result<u32, Problem> {
    let limit = asked.unwrap_or(PAGE_DEFAULT);
    let bad = || Problem::new(StatusCode::BAD_REQUEST, format!("limit: must be 1 to {PAGE_MAX}"));
    if (1..=PAGE_MAX).contains(&limit) { Ok(limit) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use axum::body::{Body, Bytes};
    use paybell_shared::clock::SystemClock;
    use paybell_shared::secret::Secret;
    use tower::ServiceExt as _;

    use super::*;
    use crate::ids::Ids;
    use crate::seen::memory::Memory;
    use crate::store::{self, Policy};

    #[tokio::test]
    async fn a_request_whose_body_never_ends_is_answered_all_the_same() {
        let folder = std::env::temp_dir().join(format!("paybell-api-{}", Ids::random().next()));
        let store = store::connect(&format!("sqlite:{}", folder.join("store.db").display())).await.unwrap();
        let context = Context {
            epoch: store.epoch().await.unwrap(),
            store: Arc::clone(&store),
            seen: Arc::new(Memory::default()),
            accounts: HashMap::new(),
            clock: Arc::new(SystemClock),
            ids: Ids::seeded(1),
            policy: Policy::default(),
        };
        let answering = Answering::default();
        assert!(answering.set(Arc::new(context)).is_ok());
        let scopes = HashSet::from([Scope::Operate]);
        let token = ApiToken { name: "test".to_owned(), secret: Secret::new("token", "hush"), scopes };
        let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let request =
            Request::put("/v1/orders/o").header("authorization", "Bearer hush").header("content-type", "application/json");
        tokio::time::pause();
        let settings = Settings {
            tokens: vec![token],
            parked_max: Duration::ZERO,
            stream_kept: Duration::ZERO,
            stream_clients_max: 0,
            transport: Arc::new(crate::transport::HttpTransport::new().unwrap()),
        };
        let router = router(answering, settings, Arc::new(Tail::new(1)), &Shutdown::new());
        let answer = router.oneshot(request.body(body).unwrap()).await.unwrap();
        tokio::time::resume();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"));
        store.close().await;
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_description_names_every_route_and_the_token() {
        let json = serde_json::to_value(openapi()).unwrap();
        let paths: HashSet<&str> = json["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "/v1/orders",
            "/v1/orders/{id}",
            "/v1/orders/{id}/review",
            "/v1/orders/{id}/timeline",
            "/v1/orders/{id}/stream",
            "/v1/stream",
            "/v1/events/{psp}/{account}/{event_id}",
            "/v1/parked",
            "/v1/balance",
            "/v1/completeness",
            "/v1/unsettled",
            "/v1/replays",
            "/v1/endpoints",
            "/v1/endpoints/{psp}/{account}/check",
            "/v1/sweeps",
            "/v1/dead-letters",
            "/v1/dead-letters/{id}",
            "/v1/dead-letters/{id}/replay",
            "/v1/dead-letters/{id}/discard",
        ];
        assert_eq!(paths, HashSet::from(expected));
        assert_eq!(json["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }
}
