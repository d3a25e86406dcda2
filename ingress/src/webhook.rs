//! The walk of one webhook (`design.md`, "The way of one webhook", 1 to 5).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use ipnet::IpNet;
use metrics::Gauge;
use paybell_shared::clock::Clock;
use paybell_shared::config::Config;
use paybell_shared::envelope::Envelope;
use paybell_shared::psp::{Acknowledgement, Rejection, WebhookRequest};
use paybell_shared::queue::{Message, PublishError, Publisher};
use paybell_shared::serve::Counted;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::WEBHOOKS_IN_FLIGHT;

use crate::body;
use crate::certificate::Certificates;
use crate::limit::Limit;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::route::{Route, Routes};
use crate::source;
use crate::spool::Spool;

/// Most bytes of bodies that are held at once, from their first byte to their answer: a body's limit alone, times the
/// connections that are allowed, would be all of a machine's memory.
const BODIES_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The longest query that an adapter sees, in bytes: of PSPs', an id or a challenge of less than a hundred. What is longer is
/// none of theirs, and counts as none.
const QUERY_BYTES_MAX: usize = 1024;

/// What every webhook needs.
pub(crate) struct Ingress {
    routes: Routes,
    publisher: Arc<dyn Publisher>,
    spool: Option<Spool>,
    certificates: Certificates,
    clock: Arc<dyn Clock>,
    trusted_proxies: Vec<IpNet>,
    body_bytes_max: usize,
    body_timeout: Duration,
    publish_budget: Duration,
    bodies: Limit,
    in_flight: Limit,
    in_flight_gauge: Gauge,
}

impl Ingress {
    pub(crate) fn new(
        config: &Config,
        publisher: Arc<dyn Publisher>,
        spool: Option<Spool>,
        clock: Arc<dyn Clock>,
        shutdown: &Shutdown,
    ) -> Self {
        let limits = &config.limits;
        Self {
            routes: Routes::new(config),
            publisher,
            spool,
            certificates: Certificates::new(shutdown),
            clock,
            trusted_proxies: config.ingress.trusted_proxies.clone(),
            body_bytes_max: limits.body_bytes_max,
            body_timeout: Duration::from_secs(limits.body_timeout_s),
            publish_budget: limits.publish_budget(),
            bodies: Limit::new(BODIES_BYTES_MAX),
            in_flight: Limit::new(limits.in_flight_max),
            in_flight_gauge: metrics::gauge!(WEBHOOKS_IN_FLIGHT),
        }
    }
}

pub(crate) async fn answer(
    ingress: Arc<Ingress>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut record = Record::begin();
    Ok(match receive(&ingress, peer, request, &mut record).await {
        Ok(Reply::Acknowledged(acknowledgement)) => {
            record.accepted();
            response(acknowledgement.status, acknowledgement.content_type, Bytes::from_static(acknowledgement.body.as_bytes()))
        }
        Ok(Reply::Spooled(acknowledgement, queue)) => {
            record.spooled(&queue);
            response(acknowledgement.status, acknowledgement.content_type, Bytes::from_static(acknowledgement.body.as_bytes()))
        }
        Ok(Reply::Challenged(answer)) => {
            record.challenged();
            response(StatusCode::OK, Some("text/plain"), Bytes::from(answer))
        }
        Err(refusal) => {
            let response = refusal.response();
            record.refused(refusal);
            response
        }
    })
}

/// What a PSP is told that was not refused.
enum Reply {
    /// The webhook is durable.
    Acknowledged(Acknowledgement),
    /// The webhook is durable on our disk, since the queue did not take it.
    Spooled(Acknowledgement, PublishError),
    /// It only tried whether somebody is here, by a GET.
    Challenged(String),
}

/// Cheap checks first; nothing is believed before `verify`, and nothing is acknowledged before `publish`.
async fn receive<'a>(
    ingress: &'a Ingress,
    peer: SocketAddr,
    request: Request<Incoming>,
    record: &mut Record<'a>,
) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let (route, token) = ingress.routes.find(head.uri.path()).ok_or(Refusal::NoRoute)?;
    record.found(route);
    if !route.admits(token, &*ingress.clock) {
        return Err(Refusal::token());
    }
    let query = head.uri.query().filter(|query| query.len() <= QUERY_BYTES_MAX).unwrap_or_default();
    if head.method == Method::GET {
        let answer = route.account.psp.challenge(query, &route.account.keys).ok_or(Refusal::Method)?;
        let allowed = is_allowed(route, peer, &head.headers, &ingress.trusted_proxies);
        return if allowed { Ok(Reply::Challenged(answer)) } else { Err(Refusal::Source) };
    }
    if head.method != Method::POST {
        return Err(Refusal::Method);
    }
    if !is_uncompressed(&head.headers) {
        return Err(Refusal::Encoding);
    }
    if !is_allowed(route, peer, &head.headers, &ingress.trusted_proxies) {
        return Err(Refusal::Source);
    }
    let body = body::read(body, ingress.body_bytes_max, &ingress.bodies);
    let (body, _held) = tokio::time::timeout(ingress.body_timeout, body).await.map_err(|_| Refusal::SlowBody)??;

    let _one_more = ingress.in_flight.hold(1).ok_or(Refusal::Busy)?;
    let _counted = Counted::new(ingress.in_flight_gauge.clone());
    let (account, received_at) = (&route.account, ingress.clock.now());
    let rejected = |rejection| Refusal::Rejected { rejection, status: account.psp.rejection_status() };
    let request = WebhookRequest { headers: &head.headers, body: &body, token, query, certificate: None };
    let place = account.psp.certificate_url(&request, account).map_err(rejected)?;
    let certificate = place.as_deref().and_then(|url| ingress.certificates.get(url, account));
    let request = WebhookRequest { certificate: certificate.as_deref(), ..request };
    let verified = account.psp.verify(&request, &account.keys, received_at).map_err(|rejection| {
        if let (Rejection::Certificate(_), Some(url)) = (&rejection, &place) {
            ingress.certificates.refused(url);
        }
        rejected(rejection)
    })?;
    let traceparent = traceparent(&head.headers);
    record.verified(verified.secret_name(), verified.webhook_id(), traceparent);

    let envelope = Envelope::new(account, verified, received_at, body, traceparent.map(str::to_owned));
    let (message, acknowledgement) = (Message::from(envelope), account.psp.acknowledgement());
    let Some(spool) = ingress.spool.as_ref().filter(|_| route.spools) else {
        publish(ingress, route, message, ingress.publish_budget).await?;
        return Ok(Reply::Acknowledged(acknowledgement));
    };
    // Both within the time that the PSP waits.
    let budget = ingress.publish_budget / 2;
    let Err(queue) = publish(ingress, route, message.clone(), budget).await else {
        return Ok(Reply::Acknowledged(acknowledgement));
    };
    match spool.append(&message, budget).await {
        Ok(()) => Ok(Reply::Spooled(acknowledgement, queue)),
        Err(spool) => Err(Refusal::Unspooled { queue, spool }),
    }
}

async fn publish(ingress: &Ingress, route: &Route, message: Message, budget: Duration) -> Result<(), PublishError> {
    let began = Instant::now();
    // The publisher keeps to a budget itself; that it does is not left to it.
    let published = tokio::time::timeout(budget, ingress.publisher.publish(message)).await;
    route.publish_seconds.record(began.elapsed());
    published.unwrap_or(Err(PublishError::Late(budget)))
}

fn response(status: StatusCode, content_type: Option<&'static str>, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}

/// Signatures cover the bytes as sent; to expand what a stranger compressed is never ours to do.
fn is_uncompressed(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn is_allowed(route: &Route, peer: SocketAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> bool {
    route.allow_from.is_empty()
        || source::client(peer, headers, trusted_proxies).is_some_and(|client| source::within(client, &route.allow_from))
}

/// The caller's W3C trace context, if there is one and it is well formed (Trace Context, 3.2.2):
/// `version-traceid-parentid-flags`, 2, 32, 16 and 2 lower-case hex digits; no version `ff`, no id of zeros.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let text = value.to_str().ok()?;
    let is_hex = |part: &str, length| part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.split('-');
    let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let well_formed = parts.next().is_none()
        && is_hex(version, 2)
        && version != "ff"
        && is_hex(trace_id, 32)
        && !is_zero(trace_id)
        && is_hex(parent_id, 16)
        && !is_zero(parent_id)
        && is_hex(flags, 2);
    well_formed.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_contexts_pass() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let found = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", HeaderValue::from_str(value).unwrap());
            }
            traceparent(&headers).map(str::to_owned)
        };
        assert_eq!(found(&[good]).as_deref(), Some(good));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[good, good]), None);
        let bad = [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ];
        for text in bad {
            assert_eq!(found(&[text]), None, "{text}");
        }
    }

    #[test]
    fn identity_is_the_only_content_coding() {
        let check = |value: &'static str| {
            is_uncompressed(&HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(is_uncompressed(&HeaderMap::new()));
        assert!(check("identity") && check("Identity"));
        assert!(!check("gzip") && !check("") && !check("identity, gzip"));
    }
}
