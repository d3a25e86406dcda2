//! Names of metrics and fields, in one place; set-up of logs and of the metrics' recorder.
//!
//! Names carry their base unit last; label values come from closed sets or from the configuration, never from a stranger.
//! Every webhook ends in one line `webhook.received`. Its fields, here and in the worker's lines, are spelled the same:
//! `psp`, `account`, `event_id`, `outcome`, `reason`, `duration_ms`, `trace_id`. Never bodies, signatures or secrets.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Webhooks by [`PSP`], [`ACCOUNT`], [`OUTCOME`] and [`REASON`]; the first two are empty where the route is of no account.
pub const WEBHOOKS_TOTAL: &str = "paybell_webhooks_total";
/// Verified webhooks by [`PSP`], [`ACCOUNT`] and [`SECRET`], the name of the secret that matched.
pub const WEBHOOKS_VERIFIED_TOTAL: &str = "paybell_webhooks_verified_total";
/// From a webhook's head to its acknowledgement, by [`PSP`].
pub const WEBHOOK_ACKNOWLEDGE_SECONDS: &str = "paybell_webhook_acknowledge_seconds";
/// From the hand-over to the queue to its confirmation, by [`PSP`].
pub const WEBHOOK_PUBLISH_SECONDS: &str = "paybell_webhook_publish_seconds";
/// Webhooks between their last byte and their answer.
pub const WEBHOOKS_IN_FLIGHT: &str = "paybell_webhooks_in_flight";
/// Webhooks that the queue did not take, by [`OUTCOME`]: spooled, or why not (full, failed, busy, late).
pub const SPOOL_WEBHOOKS_TOTAL: &str = "paybell_spool_webhooks_total";
/// Spooled webhooks that were put on the queue; after a crash some of them twice.
pub const SPOOL_DRAINED_TOTAL: &str = "paybell_spool_drained_total";
/// What the spool holds. Not zero for long: the queue takes nothing.
pub const SPOOL_BYTES: &str = "paybell_spool_bytes";
/// Bytes of the spool that belong to no whole record.
pub const SPOOL_DAMAGED_BYTES_TOTAL: &str = "paybell_spool_damaged_bytes_total";
/// 1 while the ingress can put webhooks on the queue, else 0.
pub const INGRESS_QUEUE_UP: &str = "paybell_ingress_queue_up";
/// Fetches of the certificates that webhooks are signed by, by [`PSP`], [`ACCOUNT`] and [`OUTCOME`]: fetched, failed, or not
/// tried because there were too many (`over_limit`).
pub const CERTIFICATE_FETCHES_TOTAL: &str = "paybell_certificate_fetches_total";
/// Open connections by [`SERVER`].
pub const HTTP_CONNECTIONS: &str = "paybell_http_connections";
/// Requests that ended in a panic, by [`SERVER`].
pub const HTTP_PANICS_TOTAL: &str = "paybell_http_panics_total";

/// What HTTP refused before a handler saw it, by [`SERVER`] and [`REASON`].
pub const HTTP_REFUSALS_TOTAL: &str = "paybell_http_refusals_total";

/// Events by [`PSP`] and [`OUTCOME`]; `duplicate` is none of the inbox's outcomes.
pub const EVENTS_TOTAL: &str = "paybell_events_total";
/// From a webhook's acceptance at the ingress to the commit of what it says.
pub const EVENT_LAG_SECONDS: &str = "paybell_event_lag_seconds";
/// Parked events that found their order.
pub const EVENTS_WOKEN_TOTAL: &str = "paybell_events_woken_total";
/// Visible changes of orders.
pub const ORDER_TRANSITIONS_TOTAL: &str = "paybell_order_transitions_total";
/// Deliveries in a batch.
pub const BATCH_DELIVERIES: &str = "paybell_batch_deliveries";
/// Stages of a batch's way from the queue to its commit, by [`STAGE`].
pub const APPLY_SECONDS: &str = "paybell_apply_seconds";
/// Pauses of consumption because the database was away.
pub const CONSUME_PAUSES_TOTAL: &str = "paybell_consume_pauses_total";
/// Deliveries looked up among those seen before, by [`OUTCOME`]: hit or miss.
pub const SEEN_TOTAL: &str = "paybell_seen_total";
/// Requests to Redis by [`OUTCOME`]: ok, failed, or skipped while it is left alone.
pub const SEEN_REQUESTS_TOTAL: &str = "paybell_seen_requests_total";
/// Payments that webhooks gave reason to ask about, by [`PSP`].
pub const HINTS_TOTAL: &str = "paybell_hints_total";
/// Access tokens that were asked for, by [`PSP`] and [`OUTCOME`]: ok or failed.
pub const ACCESS_TOKENS_TOTAL: &str = "paybell_access_tokens_total";
/// Payments asked about, by [`PSP`] and [`OUTCOME`]: changed, same, missing (the PSP does not know it) or failed.
pub const RECONCILE_LOOKS_TOTAL: &str = "paybell_reconcile_looks_total";
/// Payments whose look is due, by [`PSP`] and [`ACCOUNT`]; counted up to 100,000.
pub const RECONCILE_DUE: &str = "paybell_reconcile_due";
/// Since when the first of them is due, by [`PSP`] and [`ACCOUNT`]; 0: none is.
pub const RECONCILE_OLDEST_SECONDS: &str = "paybell_reconcile_oldest_seconds";
/// How long it takes to ask about all that are due at the account's rate, by [`PSP`] and [`ACCOUNT`].
pub const RECONCILE_ETA_SECONDS: &str = "paybell_reconcile_eta_seconds";
/// Pages of PSPs' lists that were read, by [`PSP`].
pub const SWEEP_PAGES_TOTAL: &str = "paybell_sweep_pages_total";
/// What they told, by [`PSP`] and [`OUTCOME`]: new (no webhook had told it yet), known, hint (a payment is asked about), or
/// quarantined.
pub const SWEEP_EVENTS_TOTAL: &str = "paybell_sweep_events_total";
/// Pages that were not read, by [`PSP`] and [`REASON`]: `no_answer`, refused, unreadable, lost (it leads nowhere), `not_stored`;
/// and lists that say less than webhooks did (incomplete), or do not reach back far enough (`beyond_reach`).
pub const SWEEP_FAILURES_TOTAL: &str = "paybell_sweep_failures_total";
/// How long ago the time lies up to which a list is read, by [`PSP`] and [`ACCOUNT`].
pub const SWEEP_BEHIND_SECONDS: &str = "paybell_sweep_behind_seconds";
/// Dead letters that wait for somebody.
pub const DEAD_LETTERS: &str = "paybell_dead_letters";
/// Messages that became dead letters in the database; one that dies again counts again.
pub const DEAD_LETTERS_TOTAL: &str = "paybell_dead_letters_total";
/// 1 while a PSP that does not answer is left alone but for single probes, by [`PSP`] and [`ACCOUNT`].
pub const PSP_CIRCUIT_OPEN: &str = "paybell_psp_circuit_open";
/// 1 while a PSP refuses our credentials, by [`PSP`] and [`ACCOUNT`].
pub const PSP_CREDENTIALS_REFUSED: &str = "paybell_psp_credentials_refused";

/// 1 while something is wrong with an account's endpoint, by [`PSP`], [`ACCOUNT`] and [`FINDING`].
pub const ENDPOINT_FINDINGS: &str = "paybell_endpoint_findings";
/// When an account's PSP last told what is registered there, by [`PSP`] and [`ACCOUNT`]; 0: never.
pub const ENDPOINT_TOLD_TIMESTAMP_SECONDS: &str = "paybell_endpoint_told_timestamp_seconds";
/// When the certificate of an account's public URL ends, as a Unix time, by [`PSP`] and [`ACCOUNT`].
pub const PUBLIC_CERTIFICATE_EXPIRY_SECONDS: &str = "paybell_public_certificate_expiry_seconds";
/// From sending the last canary that came back to the commit of its event.
pub const CANARY_ROUND_TRIP_SECONDS: &str = "paybell_canary_round_trip_seconds";
/// When that was; 0: none ever came back.
pub const CANARY_LAST_SUCCESS_TIMESTAMP_SECONDS: &str = "paybell_canary_last_success_timestamp_seconds";
/// 1 while canaries do not come back.
pub const CANARY_LOST: &str = "paybell_canary_lost";

/// Bodies of webhooks that were deleted one by one for their age; those in a dropped partition are not counted.
pub const BODIES_DELETED_TOTAL: &str = "paybell_bodies_deleted_total";
/// Partitions of bodies, by [`OUTCOME`]: made or dropped.
pub const BODY_PARTITIONS_TOTAL: &str = "paybell_body_partitions_total";
/// Changes of orders that are still to be told, by [`DESTINATION`]: `amqp`, or a subscriber's name.
pub const OUTBOX_WAITING: &str = "paybell_outbox_waiting";
/// The age of the oldest of them, by [`DESTINATION`]; 0: none waits.
pub const OUTBOX_OLDEST_SECONDS: &str = "paybell_outbox_oldest_seconds";
/// Attempts to tell of a change, by [`DESTINATION`] and [`OUTCOME`]: told, failed, or given up after the last one.
pub const NOTICES_TOTAL: &str = "paybell_notices_total";
/// One attempt to tell, by [`DESTINATION`].
pub const NOTICE_SECONDS: &str = "paybell_notice_seconds";
/// Clients that follow the stream of changes.
pub const STREAM_CLIENTS: &str = "paybell_stream_clients";
/// Events that clients of the stream were sent.
pub const STREAM_EVENTS_TOTAL: &str = "paybell_stream_events_total";
/// Parked events past their deadline, in the whole database; counted up to 10,000.
pub const PARKED_OVERDUE: &str = "paybell_parked_overdue";

/// Orders that were found expired, by [`BASIS`]: looks at their PSPs, or the clock alone.
pub const ORDERS_EXPIRED_TOTAL: &str = "paybell_orders_expired_total";
/// Payments that were decided within the last week, by [`PSP`], [`ACCOUNT`] and [`OUTCOME`]: told first by their webhook, or by
/// asking, and their webhook was late, is missed, or may still come (pending).
pub const PAYMENTS_LEARNED: &str = "paybell_payments_learned";
/// Of those that asking told first and whose webhook came: how many came by each bound `le` after it, in seconds, by [`PSP`] and
/// [`ACCOUNT`].
pub const WEBHOOK_LATENESS_BUCKET: &str = "paybell_webhook_lateness_seconds_bucket";
/// Since an account's last webhook, by [`PSP`] and [`ACCOUNT`]; absent where none ever came.
pub const WEBHOOK_SILENCE_SECONDS: &str = "paybell_webhook_silence_seconds";
/// Payments that became due for a webhook since the last one came and had none, by [`PSP`], [`ACCOUNT`] and [`BASIS`]: decided,
/// as asking told, or registered where nobody can be asked; counted up to 1,000.
pub const WEBHOOKS_EXPECTED: &str = "paybell_webhooks_expected";
/// Open orders that will not be settled by themselves, by [`REASON`]; counted up to 10,000.
pub const ORDERS_UNSETTLED: &str = "paybell_orders_unsettled";

pub const PSP: &str = "psp";
pub const ACCOUNT: &str = "account";
pub const OUTCOME: &str = "outcome";
pub const REASON: &str = "reason";
pub const SECRET: &str = "secret";
pub const SERVER: &str = "server";
pub const STAGE: &str = "stage";
pub const DESTINATION: &str = "destination";
pub const BASIS: &str = "basis";
/// The label of histograms' buckets.
pub const LE: &str = "le";
pub const FINDING: &str = "finding";

/// Upper bounds of a histogram's buckets, in seconds. Milliseconds matter for an acknowledgement; 2 s is the publish
/// budget, 10 s what PSPs wait for; a lag may be hours.
const BUCKETS_S: [f64; 18] =
    [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0, 900.0, 7_200.0];

/// What is logged unless `RUST_LOG` says otherwise: lapin speaks of every lost connection, and so do we, with its reason.
pub const DEFAULT_LOG_FILTER: &str = "info,lapin=warn";

/// Sets up logs and metrics, once, for a service.
///
/// # Errors
/// `RUST_LOG` is malformed, or it was called before.
pub fn init() -> anyhow::Result<PrometheusHandle> {
    init_logs(DEFAULT_LOG_FILTER)?;
    init_metrics()
}

/// Logs to standard error, which leaves standard output to what a command prints: lines for people on a terminal, else
/// one JSON object a line. `RUST_LOG` stands above `default_filter`. A panic is logged too, by its place.
///
/// # Errors
/// `RUST_LOG` is malformed, or it was called before.
pub fn init_logs(default_filter: &str) -> anyhow::Result<()> {
    let filter = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let filter = if filter.is_empty() { default_filter } else { &filter };
    let filter = EnvFilter::try_new(filter).context("RUST_LOG is not a filter such as info,paybell=debug")?;
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    let started = if terminal { lines.try_init() } else { lines.json().flatten_event(true).try_init() };
    started.map_err(|error| anyhow::anyhow!(error)).context("logs were set up before")?;
    std::panic::set_hook(Box::new(|panic| {
        // A message with values in it may quote what a stranger sent; a fixed one cannot.
        let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(its message is not logged)");
        tracing::error!(location = panic.location().map(tracing::field::display), message, "panic");
    }));
    Ok(())
}

/// Installs the recorder of metrics; [`ops::serve`](crate::ops::serve) shows them.
///
/// # Errors
/// It was called before.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_S)?;
    let handle = builder.install_recorder()?;
    describe_counter!(WEBHOOKS_TOTAL, "Webhooks by outcome; `reason` says why one was not accepted.");
    describe_counter!(WEBHOOKS_VERIFIED_TOTAL, "Verified webhooks by the name of the secret that matched.");
    describe_histogram!(WEBHOOK_ACKNOWLEDGE_SECONDS, Unit::Seconds, "From a webhook's head to its acknowledgement.");
    describe_histogram!(WEBHOOK_PUBLISH_SECONDS, Unit::Seconds, "From the hand-over to the queue to its confirmation.");
    describe_gauge!(WEBHOOKS_IN_FLIGHT, "Webhooks between their last byte and their answer.");
    describe_counter!(SPOOL_WEBHOOKS_TOTAL, "Webhooks that the queue did not take: spooled, or why not.");
    describe_counter!(SPOOL_DRAINED_TOTAL, "Spooled webhooks that were put on the queue.");
    describe_gauge!(SPOOL_BYTES, Unit::Bytes, "What the spool holds.");
    describe_counter!(SPOOL_DAMAGED_BYTES_TOTAL, Unit::Bytes, "Bytes of the spool that belong to no whole record.");
    describe_gauge!(INGRESS_QUEUE_UP, "1 while the ingress can put webhooks on the queue.");
    describe_counter!(
        CERTIFICATE_FETCHES_TOTAL,
        "Fetches of certificates that webhooks are signed by, by outcome: fetched, failed or over_limit."
    );
    describe_gauge!(HTTP_CONNECTIONS, "Open connections.");
    describe_counter!(HTTP_PANICS_TOTAL, "Requests that ended in a panic.");
    describe_counter!(HTTP_REFUSALS_TOTAL, "Requests that were refused before a handler saw them.");
    describe_counter!(EVENTS_TOTAL, "Events by PSP and outcome; duplicate is none of the inbox's outcomes.");
    describe_histogram!(
        EVENT_LAG_SECONDS,
        Unit::Seconds,
        "From a webhook's acceptance at the ingress to the commit of what it says."
    );
    describe_counter!(EVENTS_WOKEN_TOTAL, "Parked events that found their order.");
    describe_counter!(ORDER_TRANSITIONS_TOTAL, "Visible changes of orders.");
    describe_histogram!(BATCH_DELIVERIES, "Deliveries in a batch.");
    describe_histogram!(APPLY_SECONDS, Unit::Seconds, "Stages of a batch's way from the queue to its commit.");
    describe_counter!(CONSUME_PAUSES_TOTAL, "Pauses of consumption because the database was away.");
    describe_counter!(SEEN_TOTAL, "Deliveries looked up among those seen before, by outcome: hit or miss.");
    describe_counter!(SEEN_REQUESTS_TOTAL, "Requests to Redis by outcome: ok, failed, or skipped while it is left alone.");
    describe_counter!(BODIES_DELETED_TOTAL, "Bodies that were deleted one by one for their age.");
    describe_counter!(BODY_PARTITIONS_TOTAL, "Partitions of bodies, by outcome: made or dropped.");
    describe_counter!(RECONCILE_LOOKS_TOTAL, "Payments asked about, by PSP and outcome: changed, same, missing or failed.");
    describe_gauge!(RECONCILE_DUE, "Payments whose look is due; counted up to 100,000.");
    describe_gauge!(RECONCILE_OLDEST_SECONDS, Unit::Seconds, "Since when the first of the due payments is due.");
    describe_gauge!(RECONCILE_ETA_SECONDS, Unit::Seconds, "How long it takes to ask about all that are due.");
    describe_counter!(SWEEP_PAGES_TOTAL, "Pages of PSPs' lists that were read.");
    describe_counter!(
        SWEEP_EVENTS_TOTAL,
        "What they told, by outcome: new (no webhook had told it yet), known, hint, quarantined."
    );
    describe_counter!(
        SWEEP_FAILURES_TOTAL,
        "Pages that were not read, by reason; lists that are incomplete, or do not reach back far enough."
    );
    describe_gauge!(SWEEP_BEHIND_SECONDS, Unit::Seconds, "How long ago the time lies up to which a list is read.");
    describe_gauge!(DEAD_LETTERS, "Dead letters that wait for somebody.");
    describe_counter!(DEAD_LETTERS_TOTAL, "Messages that became dead letters.");
    describe_gauge!(PSP_CIRCUIT_OPEN, "1 while a PSP that does not answer is left alone but for single probes.");
    describe_gauge!(PSP_CREDENTIALS_REFUSED, "1 while a PSP refuses our credentials.");
    describe_gauge!(ENDPOINT_FINDINGS, "1 while something is wrong with an account's endpoint, by what is wrong.");
    describe_gauge!(
        ENDPOINT_TOLD_TIMESTAMP_SECONDS,
        Unit::Seconds,
        "When an account's PSP last told what is registered there; 0: never."
    );
    describe_gauge!(
        PUBLIC_CERTIFICATE_EXPIRY_SECONDS,
        Unit::Seconds,
        "When the certificate of an account's public URL ends, as a Unix time."
    );
    describe_gauge!(CANARY_ROUND_TRIP_SECONDS, Unit::Seconds, "From sending the last canary that came back to its commit.");
    describe_gauge!(
        CANARY_LAST_SUCCESS_TIMESTAMP_SECONDS,
        Unit::Seconds,
        "When the last canary came back, as a Unix time; 0: none ever did."
    );
    describe_gauge!(CANARY_LOST, "1 while canaries do not come back.");
    describe_gauge!(OUTBOX_WAITING, "Changes of orders that are still to be told.");
    describe_gauge!(OUTBOX_OLDEST_SECONDS, Unit::Seconds, "The age of the oldest change that is still to be told.");
    describe_counter!(NOTICES_TOTAL, "Attempts to tell of a change, by outcome: told, failed or given_up.");
    describe_histogram!(NOTICE_SECONDS, Unit::Seconds, "One attempt to tell of a change.");
    describe_counter!(BODIES_DELETED_TOTAL, "Bodies that were deleted one by one for their age.");
    describe_counter!(BODY_PARTITIONS_TOTAL, "Partitions of bodies, by outcome: made or dropped.");
    describe_gauge!(STREAM_CLIENTS, "Clients that follow the stream of changes.");
    describe_counter!(STREAM_EVENTS_TOTAL, "Events that clients of the stream were sent.");
    describe_gauge!(PARKED_OVERDUE, "Parked events past their deadline, in the whole database; counted up to 10,000.");
    describe_counter!(ORDERS_EXPIRED_TOTAL, "Orders that were found expired, by looks at their PSPs or by the clock alone.");
    describe_gauge!(
        PAYMENTS_LEARNED,
        "Payments decided within the last week, by who told it first: webhook; or asking, and the webhook is late, missed or pending."
    );
    describe_gauge!(WEBHOOK_LATENESS_BUCKET, "Webhooks of payments that asking told first, by how long after that they came.");
    describe_gauge!(WEBHOOK_SILENCE_SECONDS, Unit::Seconds, "Since an account's last webhook.");
    describe_gauge!(
        WEBHOOKS_EXPECTED,
        "Payments that became due for a webhook since the last one came and had none; counted up to 1,000."
    );
    describe_gauge!(ORDERS_UNSETTLED, "Open orders that will not be settled by themselves; counted up to 10,000.");
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_buckets_in_seconds() {
        let handle = init_metrics().unwrap();
        metrics::histogram!(WEBHOOK_ACKNOWLEDGE_SECONDS, PSP => "stripe").record(0.003);
        metrics::counter!(WEBHOOKS_TOTAL, PSP => "stripe", OUTCOME => "accepted").increment(1);
        let text = handle.render();
        assert!(text.contains(r#"paybell_webhook_acknowledge_seconds_bucket{psp="stripe",le="0.005"} 1"#), "{text}");
        assert!(text.contains(r#"paybell_webhook_acknowledge_seconds_bucket{psp="stripe",le="0.002"} 0"#), "{text}");
        assert!(text.contains(r#"paybell_webhooks_total{psp="stripe",outcome="accepted"} 1"#), "{text}");
    }

    #[test]
    fn the_default_filter_is_a_filter() {
        EnvFilter::try_new(DEFAULT_LOG_FILTER).unwrap();
    }
}
