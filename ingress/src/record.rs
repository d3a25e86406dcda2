//! What is left of a webhook here: one line and its counts, whatever became of it.

use std::sync::Arc;
use std::time::Instant;

use metrics::counter;
use paybell_shared::psp::Rejection;
use paybell_shared::queue::PublishError;
use paybell_shared::telemetry::{ACCOUNT, OUTCOME, PSP, REASON, WEBHOOKS_TOTAL};

use crate::refusal::Refusal;
use crate::route::Route;

pub(crate) const ACCEPTED: &str = "accepted";

/// On our own disk, for the queue later.
const SPOOLED: &str = "spooled";

/// A PSP tried, by a GET, whether somebody is here.
const CHALLENGED: &str = "challenged";

/// The sender hung up before it was answered, or the walk panicked: a PSP sends again.
const ABORTED: &str = "aborted";

/// Unavailable, but anyone may be the reason; the fetch of the certificate has a line of its own.
const NO_CERTIFICATE: &str = Rejection::NoCertificate.reason();

/// Writes when it is dropped, so that no way out of the walk is without its line.
pub(crate) struct Record<'a> {
    began: Instant,
    route: Option<&'a Route>,
    /// The PSP's id of the webhook, once it is verified: before, it would be a stranger's text in our log.
    event_id: Option<String>,
    trace_id: Option<String>,
    outcome: &'static str,
    reason: &'static str,
    detail: Option<Refusal>,
}

impl<'a> Record<'a> {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), route: None, event_id: None, trace_id: None, outcome: ABORTED, reason: "", detail: None }
    }

    pub(crate) fn found(&mut self, route: &'a Route) {
        self.route = Some(route);
    }

    pub(crate) fn verified(&mut self, secret_name: &str, webhook_id: &str, traceparent: Option<&str>) {
        if let Some(route) = self.route {
            route.count_verified(secret_name);
        }
        if tracing::enabled!(tracing::Level::WARN) {
            self.event_id = Some(webhook_id.to_owned());
            self.trace_id = traceparent.and_then(|text| text.get(3..35)).map(str::to_owned);
        }
    }

    pub(crate) fn accepted(mut self) {
        self.outcome = ACCEPTED;
    }

    /// Acknowledged, although the queue did not take it.
    pub(crate) fn spooled(mut self, queue: &PublishError) {
        self.outcome = SPOOLED;
        self.reason = queue.reason();
    }

    pub(crate) fn challenged(mut self) {
        self.outcome = CHALLENGED;
    }

    pub(crate) fn refused(mut self, refusal: Refusal) {
        self.outcome = refusal.outcome();
        self.reason = refusal.reason();
        self.detail = Some(refusal);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        if self.outcome == ABORTED {
            self.reason = if std::thread::panicking() { "panic" } else { "hung_up" };
        }
        match (self.outcome, self.route) {
            (ACCEPTED, Some(route)) => {
                route.accepted.increment(1);
                route.acknowledge_seconds.record(took);
            }
            (outcome, route) => {
                let empty = || Arc::<str>::from("");
                let (psp, account) = route.map_or_else(
                    || (empty(), empty()),
                    |route| (Arc::clone(&route.account.psp_id), Arc::clone(&route.account.name)),
                );
                let labels = [(PSP, psp), (ACCOUNT, account), (OUTCOME, outcome.into()), (REASON, self.reason.into())];
                counter!(WEBHOOKS_TOTAL, &labels).increment(1);
            }
        }
        // What anyone can cause is at debug: a flood of forgeries is counted, and does not fill disks. What needs a look, or
        // what a PSP must send again, is at warn.
        let is_unavailable = self.outcome == "unavailable" && self.reason != NO_CERTIFICATE;
        let is_of_strangers = self.event_id.is_none() && !is_unavailable && self.reason != "panic";
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    psp = self.route.map(|route| &*route.account.psp_id),
                    account = self.route.map(|route| &*route.account.name),
                    event_id = self.event_id.as_deref(),
                    trace_id = self.trace_id,
                    outcome = self.outcome,
                    reason = (!self.reason.is_empty()).then_some(self.reason),
                    detail = self.detail.as_ref().map(tracing::field::display),
                    duration_ms = took.as_secs_f64() * 1e3,
                    "webhook.received"
                )
            };
        }
        if self.outcome == ACCEPTED {
            line!(info);
        } else if is_of_strangers {
            line!(debug);
        } else {
            line!(warn);
        }
    }
}
