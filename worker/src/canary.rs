//! A canary: a webhook of our own, signed as a PSP would, sent to the public URL, that must come back through queue and worker.
//!
//! It flies where an account named `canary` of `standard-webhooks` is configured. Its type, [`EVENT_TYPE`], is none that the
//! adapter knows, so that it becomes an event that is ignored: a row of the inbox, which is what is waited for, and nothing
//! else. It touches no order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use paybell_shared::clock::Timestamp;
use paybell_shared::event::EventKey;
use paybell_shared::psp::Account;
use paybell_shared::psp::standard_webhooks::Signer;
use paybell_shared::telemetry::{CANARY_LAST_SUCCESS_TIMESTAMP_SECONDS, CANARY_LOST, CANARY_ROUND_TRIP_SECONDS};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use crate::consume::Context;
use crate::endpoints::finding::{Finding, Kind};
use crate::order::AccountKey;
use crate::outside::{LOOK_MAX, Way};
use crate::store::{StoreError, WatchKey, WatchKind, WatchLease};

/// Whose account it is.
pub const PSP: &str = "standard-webhooks";
pub const ACCOUNT: &str = "canary";
pub const EVENT_TYPE: &str = "paybell.canary";

/// Between two flights. Each leaves a row in the inbox for ever: 100,000 a year.
pub const PERIOD: Duration = Duration::from_mins(5);
/// So long one that was acknowledged may be on its way. A batch takes milliseconds, a worker that starts anew seconds.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked for: so far, at most, the measure is off.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// So long nobody else sends one.
const LEASE: Duration = Duration::from_mins(2);

const _: () = assert!(LOOK_MAX.as_secs() + PATIENCE.as_secs() < LEASE.as_secs());

/// How canaries fared; as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flights {
    /// When the last one was sent.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub sent_at: Option<Timestamp>,
    /// When the last one came back.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub came_back_at: Option<Timestamp>,
    /// How long that one took, from sending to the commit of its event.
    pub round_trip_ms: Option<u64>,
    /// Since when none comes back; null: the last one did.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub lost_since: Option<Timestamp>,
    /// What became of the last one, if it did not.
    pub problem: Option<String>,
}

/// Why a canary did not come back.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("where PSPs call us is not configured: set [ingress] public_url")]
    NoUrl,
    #[error("no secret of the account is valid now, or it cannot sign: it must be whsec_…")]
    NoSecret,
    #[error("no way to go: {0}")]
    NoWay(String),
    #[error("the ingress was not reached by the public URL: {0}")]
    Unreached(String),
    #[error("the public URL answered {0}")]
    Answered(u16),
    #[error("it was acknowledged, and is not in the database after {0} s: the queue or the worker holds it up")]
    NotCommitted(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The account of canaries, if there is one.
#[must_use]
pub fn account(context: &Context) -> Option<(AccountKey, Arc<Account>)> {
    let key = key();
    let account = context.accounts.get(&key)?;
    Some((key, Arc::clone(account)))
}

#[must_use]
pub fn key() -> AccountKey {
    AccountKey { psp: PSP.into(), account: ACCOUNT.into() }
}

/// Sends one, and waits until its event is committed: how long that took.
///
/// # Errors
/// Where it got lost.
pub async fn fly(context: &Context, account: &Account, patience: Duration) -> Result<Duration, Lost> {
    let url = account.keys.url.as_deref().ok_or(Lost::NoUrl)?;
    let now = context.clock.now();
    let secret = account.keys.active(now).next().map(|(_, secret)| secret.clone()).ok_or(Lost::NoSecret)?;
    let signer = Signer::new(&[secret]).map_err(|_| Lost::NoSecret)?;
    let way = Way::new(account, now, None).map_err(|error| Lost::NoWay(format!("{:#}", anyhow::Error::new(error))))?;
    let id = format!("canary-{}", context.ids.next().simple());
    let body = Bytes::from(json!({ "type": EVENT_TYPE, "timestamp": now, "data": {} }).to_string());
    let request = way.client.post(url).header(CONTENT_TYPE, "application/json");
    let headers = signer.headers(&id, now, &body);
    let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    let began = Instant::now();
    let unreached = |error: reqwest::Error| Lost::Unreached(format!("{:#}", anyhow::Error::new(error.without_url())));
    let answer = request.body(body).send().await.map_err(unreached)?;
    if !answer.status().is_success() {
        return Err(Lost::Answered(answer.status().as_u16()));
    }
    let event = EventKey { psp: Arc::clone(&account.psp_id), account: Arc::clone(&account.name), event_id: id };
    let deadline = Instant::now() + patience;
    loop {
        if context.store.event(&event).await?.is_some() {
            return Ok(began.elapsed());
        }
        if Instant::now() >= deadline {
            return Err(Lost::NotCommitted(patience.as_secs()));
        }
        sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
    }
}

/// Sends one if it is due, or (`only_if_due` = false) because somebody asks, and keeps how it fared. `None`: not due, or
/// another worker's.
///
/// # Errors
/// The database is away.
pub async fn step(
    context: &Context,
    account: &Account,
    patience: Duration,
    only_if_due: bool,
) -> Result<Option<Flights>, StoreError> {
    let now = context.clock.now();
    let watch = WatchKey { kind: WatchKind::Canary, account: key() };
    let lease = WatchLease { now, until: now.plus(LEASE), token: context.ids.next(), only_if_due };
    let Some(leased) = context.store.lease_watch(&watch, &lease).await? else { return Ok(None) };
    let before = read(leased.state.as_deref());
    let flown = match fly(context, account, patience).await {
        // The database being away is said by the pulse; that canaries do not come back while it is, is true all the same.
        Err(Lost::Store(error)) => return Err(error),
        flown => flown,
    };
    let flights = after(&before, now, context.clock.now(), flown);
    report(&before, &flights);
    let state = serde_json::to_string(&flights).unwrap_or_default();
    context.store.finish_watch(&watch, lease.token, now.plus(PERIOD), &state).await?;
    Ok(Some(flights))
}

/// Sends one now, because somebody asks. If another one is under way, this one is told of and not kept.
///
/// # Errors
/// The database is away.
pub async fn send(context: &Context, account: &Account, patience: Duration) -> Result<Flights, StoreError> {
    if let Some(flights) = step(context, account, patience, false).await? {
        return Ok(flights);
    }
    let (before, sent_at) = (flights(context).await?.unwrap_or_default(), context.clock.now());
    match fly(context, account, patience).await {
        Err(Lost::Store(error)) => Err(error),
        flown => Ok(after(&before, sent_at, context.clock.now(), flown)),
    }
}

fn after(before: &Flights, sent_at: Timestamp, now: Timestamp, flown: Result<Duration, Lost>) -> Flights {
    match flown {
        Ok(round_trip) => Flights {
            sent_at: Some(sent_at),
            came_back_at: Some(now),
            round_trip_ms: Some(u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX)),
            lost_since: None,
            problem: None,
        },
        Err(error) => Flights {
            sent_at: Some(sent_at),
            lost_since: before.lost_since.or(Some(sent_at)),
            problem: Some(error.to_string()),
            ..before.clone()
        },
    }
}

/// Says what a person should hear of, once.
fn report(before: &Flights, after: &Flights) {
    match (&before.lost_since, &after.lost_since, &after.problem) {
        (None, Some(_), Some(problem)) => {
            tracing::error!(event = "canary.lost", problem, "a webhook of our own does not come through");
        }
        (Some(_), None, _) => {
            tracing::info!(event = "canary.back", round_trip_ms = after.round_trip_ms, "canaries come through again");
        }
        _ => {}
    }
}

/// What a newer version wrote counts as nothing.
fn read(state: Option<&str>) -> Flights {
    state.and_then(|state| serde_json::from_str(state).ok()).unwrap_or_default()
}

/// How canaries fared last, by any worker's word.
///
/// # Errors
/// The database does not answer.
pub async fn flights(context: &Context) -> Result<Option<Flights>, StoreError> {
    let states = context.store.watch_states(WatchKind::Canary).await?;
    Ok(states.iter().find(|state| state.key.account == key()).map(|state| read(Some(&state.state))))
}

/// What is wrong, if the last one did not come back.
#[must_use]
pub fn finding(flights: &Flights) -> Option<Finding> {
    let (since, problem) = (flights.lost_since?, flights.problem.as_deref()?);
    let says = format!("since {since} no webhook of our own comes through: {problem}");
    Some(Finding::new(Kind::CanaryLost, says, "PSPs' webhooks take the same way: see the ingress, the queue and the worker"))
}

/// Shows how canaries fare; every worker does, and says the same.
pub fn show(flights: &Flights) {
    metrics::gauge!(CANARY_LOST).set(f64::from(u8::from(flights.lost_since.is_some())));
    if let (Some(at), Some(round_trip_ms)) = (flights.came_back_at, flights.round_trip_ms) {
        metrics::gauge!(CANARY_LAST_SUCCESS_TIMESTAMP_SECONDS).set(millis(at.millis()));
        metrics::gauge!(CANARY_ROUND_TRIP_SECONDS).set(Duration::from_millis(round_trip_ms).as_secs_f64());
    } else {
        // None ever came back: older than any alert allows.
        metrics::gauge!(CANARY_LAST_SUCCESS_TIMESTAMP_SECONDS).set(0.0);
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact in a double for 280,000 years")]
pub(crate) fn millis(millis: i64) -> f64 {
    millis as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    #[test]
    fn canaries_are_lost_since_the_first_that_was() {
        let at = |minutes| NOW.plus(Duration::from_mins(minutes));
        let lost = || Err(Lost::Answered(503));
        let came = after(&Flights::default(), NOW, NOW, Ok(Duration::from_millis(120)));
        assert_eq!((came.came_back_at, came.round_trip_ms, finding(&came)), (Some(NOW), Some(120), None));
        let first = after(&came, at(5), at(6), lost());
        let second = after(&first, at(10), at(11), lost());
        assert_eq!((first.lost_since, second.lost_since, second.sent_at), (Some(at(5)), Some(at(5)), Some(at(10))));
        assert_eq!((second.came_back_at, second.round_trip_ms), (Some(NOW), Some(120)), "the last that came stays");
        assert!(finding(&second).unwrap().says.contains("503"));
        let back = after(&second, at(15), at(15), Ok(Duration::from_millis(80)));
        assert_eq!((back.lost_since, back.problem, back.round_trip_ms), (None, None, Some(80)));
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        assert_eq!(read(Some("{}")), Flights::default());
        assert_eq!(read(Some("no json")), Flights::default());
    }
}
