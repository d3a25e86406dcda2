//! PayPal: orders of Checkout (v2), their authorisations, captures and refunds, disputes.
//!
//! Sources: developer.paypal.com/api/rest/webhooks, PayPal's published API specifications of 2024-02 (notifications v1, orders v2,
//! payments v2, disputes v1), PayPal's Python SDK (paypalrestsdk 1.13), where it is not laxer than that.
//!
//! **Signature.** RSA (PKCS #1 v1.5, SHA-256) over `<transmission id>|<transmission time>|<webhook id>|<CRC-32 of the body>`, by
//! a certificate whose URL the call names (`paypal/certificate.rs`). The webhook's id is our setting `webhook_id`: what PayPal
//! verifies by instead of a secret. `SHA1withRSA`, which the SDK knows too, is refused. The time is signed, but PayPal
//! documents no tolerance and sends for three days, perhaps with the first time: any age is accepted. The simulator of PayPal's
//! dashboard signs with the id `WEBHOOK_ID`, which anyone can have it do: in `mode = "test"` only.
//!
//! **A CRC-32 binds nothing**: whoever has seen one delivery can write another body under its signature. So every webhook
//! is a hint: of its body we read which payment to ask about, and the rest PayPal's API tells. The list of events is
//! PayPal's own word, but its events are copies of what was sent, of any age: they are hints too.
//!
//! **The certificate's place** is one of PayPal's four API hosts, byte for byte, and one path; of a live account one of the
//! two live hosts; in `mode = "test"` an `api_url` stands in for all of them.
//!
//! **Payments.** A payment is PayPal's order, by whose id the shop began it: it shows its authorisations, captures and refunds.
//! Refunds and disputes name nothing but the capture; so what is asked about may be a capture or an authorisation, and the
//! first answer then says whose it is. Facts stand under the order's id, whatever was asked. What has no order (subscriptions,
//! and all of the older API) stands under its authorisation's id, or else under its capture's. So no money stands under two
//! ids. `paypal/status.rs` has the steps.
//!
//! **The shop's order** is `custom_id`, else `invoice_id`, of the purchase unit or of the capture; the setting
//! `order_reference` is a path from there.
//!
//! **Amounts** are decimal strings with the digits of their currency.

mod certificate;
mod endpoint;
mod status;

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Request, Response};
use serde::Deserialize;

use self::status::{Look, Step, Subject};
use super::json::{self, Node, Problem};
use super::{
    Abilities, AccessToken, Account, Answer, AskError, Asked, ChangedEndpoint, Endpoint, EndpointChange, EndpointList, Hinted,
    Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError, TranslateError, Unread,
    Verified, WEBHOOK_ID, WantedEndpoint, WebhookRequest, Window, answer, ask, signature, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{Mode, PaymentEvent};
use crate::secret::Secret;

/// The adapter.
pub struct PayPal;

const TRANSMISSION_ID: &str = "paypal-transmission-id";
const TRANSMISSION_TIME: &str = "paypal-transmission-time";
const TRANSMISSION_SIG: &str = "paypal-transmission-sig";
const CERT_URL: &str = "paypal-cert-url";
const AUTH_ALGO: &str = "paypal-auth-algo";

const ALGORITHM: &str = "SHA256withRSA";
/// What the simulator of PayPal's dashboard signs with, instead of a webhook's id.
const SIMULATORS_WEBHOOK_ID: &str = "WEBHOOK_ID";

const LIVE_API: &str = "https://api-m.paypal.com";
const SANDBOX_API: &str = "https://api-m.sandbox.paypal.com";
/// Where certificates may lie: the live hosts first.
const CERTIFICATE_HOSTS: [&str; 4] =
    ["https://api.paypal.com", "https://api-m.paypal.com", "https://api.sandbox.paypal.com", "https://api-m.sandbox.paypal.com"];
const LIVE_HOSTS: usize = 2;
const CERTIFICATES: &str = "/v1/notifications/certs/";
const EVENTS: &str = "/v1/notifications/webhooks-events";

/// PayPal documents only the default, 10.
const PAGE: usize = 100;
/// The longest of PayPal's ids: 50 by its specification, and room.
const ID_BYTES_MAX: usize = 64;
/// The longest query of a next page.
const QUERY_BYTES_MAX: usize = 1024;

static PROFILE: Profile = Profile {
    name: "PayPal",
    translate_headers: &[],
    // Not published; the plan is for 5 s.
    timeout: Duration::from_secs(5),
    // Up to 25 times over three days (secondary source).
    retry_window: Duration::from_hours(3 * 24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme { name: "paypal-cert-rsa", proof: Proof::Hint, token_in_path: false }],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::All, endpoint_list: true },
    // The specification of webhooks-events: of the last 30 days. Its events are hints, so webhooks leave nothing to compare.
    list: Some(Listing { reach: Some(Duration::from_hours(30 * 24)), ..Listing::USUAL }),
    // None published.
    sources: &[],
};

impl Psp for PayPal {
    fn id(&self) -> &'static str {
        "paypal"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Developer Dashboard: Apps & Credentials, the app, Webhooks"
    }

    fn wanted_endpoint(&self, _account: &Account) -> Option<WantedEndpoint> {
        Some(endpoint::WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        let refuse = |setting, problem: &str| Err(SettingError { setting, problem: problem.to_owned() });
        if !account.keys.secrets.is_empty() {
            return refuse(
                "secrets",
                "must be empty: PayPal's webhooks are verified by webhook_id and a certificate of PayPal's",
            );
        }
        match account.keys.webhook_id.as_deref() {
            None => {
                return refuse(
                    "webhook_id",
                    "is missing: the id that PayPal gave the registered webhook is part of what it signs",
                );
            }
            Some(SIMULATORS_WEBHOOK_ID) if account.mode == Mode::Live => {
                return refuse(
                    "webhook_id",
                    "is the simulator's, with which anyone can have PayPal sign: for mode = \"test\" only",
                );
            }
            Some(SIMULATORS_WEBHOOK_ID) => {}
            Some(id) if is_id(id) => {}
            Some(_) => return refuse("webhook_id", "is no id of a webhook: letters and digits"),
        }
        if let Some(root) = &account.keys.trusted_root {
            if account.mode == Mode::Live {
                return refuse("trusted_root", "is for mode = \"test\" only");
            }
            if !certificate::is_trust_anchor(root) {
                return refuse("trusted_root", "is no PEM of one to eight certificates");
            }
        }
        match &account.api.client_id {
            Some(id) if id.is_empty() || id.contains(':') || !id.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return refuse("client_id", "is no client id: it is empty, or has a colon or a space");
            }
            None if account.api.key.is_some() => return refuse("client_id", "is missing: it goes with api_key"),
            _ => {}
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let headers = Headers::read(request.headers)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let webhook_id = keys.webhook_id.as_deref().ok_or(Rejection::Setting("webhook_id"))?;
        let certificate = request.certificate.ok_or(Rejection::NoCertificate)?;
        let message = format!("{}|{}|{webhook_id}|{}", headers.id, headers.time, crc32fast::hash(request.body));
        certificate::verify(certificate, keys.trusted_root.as_deref(), now, message.as_bytes(), &headers.signature)?;

        let head = Head::read(request.body);
        Ok(Verified {
            webhook_id: head.id().map_or_else(|| signature::body_id(request.body), str::to_owned),
            event_type: head.event_type().map(str::to_owned),
            subject: None,
            secret_name: WEBHOOK_ID.into(),
            proof: Proof::Hint,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    /// Of a call that could be verified, but for its certificate: nothing is fetched for any other.
    fn certificate_url(&self, request: &WebhookRequest<'_>, account: &Account) -> Result<Option<String>, Rejection> {
        let headers = Headers::read(request.headers)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let (hosts, stand_in) = match (account.mode, &account.api.url) {
            (Mode::Live, _) => (&CERTIFICATE_HOSTS[..LIVE_HOSTS], None),
            (Mode::Test, None) => (&CERTIFICATE_HOSTS[..], None),
            (Mode::Test, Some(url)) => (&CERTIFICATE_HOSTS[..0], Some(url.as_str())),
        };
        // Compared as text, so that nothing is left for parsers to disagree on: no user, port, query, fragment or `..`.
        let is_there = |host: &str| {
            let id = headers.cert_url.strip_prefix(host).and_then(|path| path.strip_prefix(CERTIFICATES));
            id.is_some_and(|id| id.len() <= ID_BYTES_MAX && ask::is_id(id, b"-_"))
        };
        if hosts.iter().copied().chain(stand_in).any(is_there) {
            return Ok(Some(headers.cert_url.to_owned()));
        }
        Err(Rejection::MalformedHeader { header: CERT_URL, problem: "it is no place of PayPal's certificates" })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        let value = json::read(&envelope.body)?;
        hinted_by(&Node::root(&value))
    }

    /// Never called: there is nothing that a hint proves.
    fn translate(&self, _envelope: &Envelope, _account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        Err(TranslateError::Ignored("a hint: PayPal's signature does not cover the body".to_owned()))
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let malformed = |text: &str| AskError::MalformedId(text.to_owned());
        let subject = Subject::of(payment_id).ok_or_else(|| malformed(payment_id))?;
        let step = Step::of(&subject, cursor).ok_or_else(|| malformed(cursor.unwrap_or_default()))?;
        get(account, &step.path())
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let subject = Subject::of(asked.payment_id).ok_or_else(|| ReadError::Unintelligible("an unknown id".to_owned()))?;
        let step = Step::of(&subject, asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let at = answer::date(response).unwrap_or(asked.at);
        Look { asked, account, at, subject }.read(step, response)
    }

    /// Newest first, as PayPal lists them; 30 days back at most.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let query = match cursor {
            Some(query) if is_query(query) => query.to_owned(),
            Some(query) => return Err(AskError::MalformedId(query.to_owned())),
            None => {
                let Window { since, until } = window.in_seconds();
                // Whether the end belongs to it is not said.
                format!("start_time={since}&end_time={}&page_size={PAGE}", until.plus(Duration::from_secs(1)))
            }
        };
        get(account, &format!("{EVENTS}?{query}"))
    }

    /// The events are hints: [`PayPal::read_hints`] has what they are about.
    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        _account: &Account,
    ) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let list = Node::root(&value);
        let events = list.array("events")?;
        let next = next_query(&list)?;
        if next.is_some_and(|next| events.is_empty() || Some(next) == asked.cursor) {
            return Err(list.problem("a page that leads nowhere").into());
        }
        let mut unread = Vec::new();
        for event in &events {
            telling::not_before(window, &telling::time(event, "create_time"), event)?;
            if let Err(error @ TranslateError::Unintelligible { .. }) = hinted_by(event) {
                unread.push(Unread { event_id: event.name("id")?.to_owned(), error });
            }
        }
        Ok(Answer { events: Vec::new(), unread, next: next.map(str::to_owned) })
    }

    fn read_hints(&self, response: &Response<Bytes>, _account: &Account) -> Result<Vec<Hinted>, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let mut hints = Vec::new();
        for event in Node::root(&value).array("events")? {
            // Without a time, no look that was before is late enough.
            let at = telling::time(&event, "create_time").unwrap_or(Timestamp::from_millis(i64::MAX));
            let payments = hinted_by(&event).unwrap_or_default();
            hints.extend(payments.into_iter().map(|payment_id| Hinted { payment_id, at }));
        }
        Ok(hints)
    }

    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        match cursor {
            None => get(account, "/v1/notifications/webhooks"),
            Some(cursor) => Err(AskError::MalformedId(cursor.to_owned())),
        }
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let webhooks = Node::root(&value).array("webhooks")?;
        let endpoints = webhooks.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(EndpointList { endpoints, next: None })
    }

    fn token_request(&self, account: &Account) -> Option<Result<Request<Bytes>, AskError>> {
        Some(token_request(account))
    }

    fn read_token(&self, response: &Response<Bytes>) -> Result<AccessToken, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let token = Node::root(&value);
        if !token.text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
            return Err(token.problem("no bearer token").into());
        }
        let text = token.required("access_token")?;
        let secret = text.as_text().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
        let secret = secret.ok_or_else(|| text.problem("not a token"))?;
        let lives = u64::try_from(token.integer("expires_in")?).map_err(|_| token.problem("a token of the past"))?;
        Ok(AccessToken { secret: Secret::new("access_token", secret), lives: Duration::from_secs(lives) })
    }

    fn change_endpoint_request(&self, change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
        endpoint::request(change, account)
    }

    fn read_changed_endpoint(&self, response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
        endpoint::read(response)
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// The headers, their grammar checked.
struct Headers<'h> {
    id: &'h str,
    time: &'h str,
    signature: Vec<u8>,
    cert_url: &'h str,
}

impl<'h> Headers<'h> {
    fn read(headers: &'h HeaderMap) -> Result<Self, Rejection> {
        let malformed = |header, problem| Rejection::MalformedHeader { header, problem };
        let [id, time, signature, cert_url, algorithm] = [
            signature::exactly_one(headers, TRANSMISSION_ID)?,
            signature::exactly_one(headers, TRANSMISSION_TIME)?,
            signature::exactly_one(headers, TRANSMISSION_SIG)?,
            signature::exactly_one(headers, CERT_URL)?,
            signature::exactly_one(headers, AUTH_ALGO)?,
        ];
        // Neither can hold the `|` that parts them in what is signed.
        if !ask::is_id(id, b"-") {
            return Err(malformed(TRANSMISSION_ID, "it is not of letters, digits and '-'"));
        }
        if !time.bytes().all(|byte| byte.is_ascii_digit() || b"TZ:.+-".contains(&byte)) {
            return Err(malformed(TRANSMISSION_TIME, "it is no time"));
        }
        if algorithm != ALGORITHM {
            return Err(Rejection::NoUsableSignature("only SHA256withRSA is accepted"));
        }
        // Padded, and with no bits left over; of a length that the key decides.
        let signature = STANDARD.decode(signature).map_err(|_| malformed(TRANSMISSION_SIG, "it is not base64"))?;
        Ok(Self { id, time, signature, cert_url })
    }
}

/// What names the webhook, for people: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    // Not `Option<Cow>`, which serde would copy.
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// What is no such JSON is kept all the same, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn id(&self) -> Option<&str> {
        Some(self.id.as_ref()).filter(|id| is_id(id))
    }

    fn event_type(&self) -> Option<&str> {
        Some(self.event_type.as_ref()).filter(|event_type| json::is_name(event_type))
    }
}

// ------------------------------------------------------------------------------------------------------------ hints

/// What an event gives reason to ask about.
fn hinted_by(event: &Node<'_>) -> Result<Vec<String>, TranslateError> {
    let event_type = event.name("event_type")?;
    let family = match event_type.rsplit_once('.').map_or("", |(family, _)| family) {
        "CHECKOUT.ORDER" | "CHECKOUT.PAYMENT-APPROVAL" => Family::Order,
        "PAYMENT.AUTHORIZATION" => Family::Authorization,
        "PAYMENT.CAPTURE" | "PAYMENT.REFUND" | "PAYMENT.SALE" => Family::Capture,
        "CUSTOMER.DISPUTE" => Family::Dispute,
        _ => return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment"))),
    };
    let resource = event.object("resource")?;
    let order = related(&resource, "order_id")?;
    Ok(match (family, order) {
        (Family::Order, _) => {
            // The reversal of an approval has no object of its own.
            let key = if resource.optional("order_id").is_some() { "order_id" } else { "id" };
            vec![id_at(&resource, key)?.to_owned()]
        }
        (Family::Authorization | Family::Capture, Some(order)) => vec![order.to_owned()],
        (Family::Authorization, None) => vec![Subject::Authorization(id_at(&resource, "id")?).to_string()],
        (Family::Capture, None) if event.text("resource_type") == Some("refund") => {
            let refund = Some(id_at(&resource, "id")?);
            vec![Subject::Capture { id: refunded_capture(&resource)?, refund }.to_string()]
        }
        (Family::Capture, None) => vec![Subject::Capture { id: id_at(&resource, "id")?, refund: None }.to_string()],
        (Family::Dispute, _) => {
            let transactions = resource.array("disputed_transactions")?;
            let captures = transactions.iter().map(|transaction| id_at(transaction, "seller_transaction_id"));
            let captures = captures.take(TRANSACTIONS_MAX).collect::<Result<Vec<_>, _>>()?;
            if captures.is_empty() {
                return Err(resource.problem("a dispute of nothing").into());
            }
            captures.into_iter().map(|id| Subject::Capture { id, refund: None }.to_string()).collect()
        }
    })
}

/// Transactions of one dispute that are asked about; it has one, as a rule.
const TRANSACTIONS_MAX: usize = 16;

/// What kind of object an event type speaks of.
#[derive(Clone, Copy)]
enum Family {
    Order,
    Authorization,
    /// A capture or a sale, as the older API calls it; or a refund of one.
    Capture,
    Dispute,
}

/// The id of a related object, if it is named.
fn related<'a>(resource: &Node<'a>, key: &str) -> Result<Option<&'a str>, Problem> {
    let Some(data) = resource.optional("supplementary_data") else { return Ok(None) };
    let Some(ids) = data.optional("related_ids") else { return Ok(None) };
    ids.optional(key).map(|_| id_at(&ids, key)).transpose()
}

/// The capture behind a refund: the older API names it, the newer one links to it.
fn refunded_capture<'a>(refund: &Node<'a>) -> Result<&'a str, Problem> {
    for key in ["capture_id", "sale_id"] {
        if refund.optional(key).is_some() {
            return id_at(refund, key);
        }
    }
    linked(refund, "up", "/captures/")?.ok_or_else(|| refund.problem("a refund of nothing"))
}

/// The id of the object that a link of this relation leads to, if it leads to one of this kind.
fn linked<'a>(object: &Node<'a>, relation: &str, kind: &str) -> Result<Option<&'a str>, Problem> {
    if object.optional("links").is_none() {
        return Ok(None);
    }
    let links = object.array("links")?;
    let mut found = links.iter().filter(|link| link.text("rel") == Some(relation)).filter_map(|link| link.text("href"));
    let id = found.find_map(|href| href.split_once(kind).map(|(_, id)| id));
    Ok(id.filter(|id| is_id(id)))
}

/// The query of the link to the next page.
fn next_query<'a>(list: &Node<'a>) -> Result<Option<&'a str>, Problem> {
    if list.optional("links").is_none() {
        return Ok(None);
    }
    let links = list.array("links")?;
    let Some(next) = links.iter().find(|link| link.text("rel") == Some("next")) else { return Ok(None) };
    let query = next.text("href").and_then(|href| href.split_once('?')).map(|(_, query)| query).filter(|query| is_query(query));
    query.map(Some).ok_or_else(|| next.problem("a link to no page"))
}

fn endpoint(webhook: &Node<'_>) -> Result<Endpoint, Problem> {
    let url = webhook.required("url")?;
    let events = webhook.array("event_types")?;
    Ok(Endpoint {
        id: webhook.name("id")?.to_owned(),
        url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
        // PayPal has no way to switch one off.
        enabled: true,
        events: events.iter().map(|event| event.name("name").map(str::to_owned)).collect::<Result<_, _>>()?,
        api_version: None,
        mode: None,
    })
}

// --------------------------------------------------------------------------------------------------------- requests

/// Letters and digits, and the `-` of disputes' and events' ids: nothing that could leave its place in a URL or a cursor.
fn is_id(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && ask::is_id(text, b"-")
}

fn id_at<'a>(object: &Node<'a>, key: &str) -> Result<&'a str, Problem> {
    let id = object.name(key)?;
    if is_id(id) { Ok(id) } else { Err(object.required(key)?.problem("not an id of PayPal's")) }
}

fn is_query(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"=&%:.+~_-".contains(&byte);
    (1..=QUERY_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

const fn api(account: &Account) -> &'static str {
    match account.mode {
        Mode::Live => LIVE_API,
        Mode::Test => SANDBOX_API,
    }
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    ask::finish(ask::get_with_token(account, api(account), path_and_query))
}

fn token_request(account: &Account) -> Result<Request<Bytes>, AskError> {
    let client_id = account.api.client_id.as_deref().ok_or(AskError::Missing("client_id"))?;
    let key = account.api.key.as_ref().ok_or(AskError::Missing("api_key"))?;
    let credentials = ask::basic(client_id, key).ok_or(AskError::Missing("api_key"))?;
    let base = account.api.url.as_deref().unwrap_or(api(account));
    Request::post(format!("{base}/v1/oauth2/token"))
        .header(http::header::AUTHORIZATION, credentials)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from_static(b"grant_type=client_credentials"))
        .map_err(|_| AskError::Missing("api_url"))
}

#[cfg(test)]
pub(super) mod tests {
    use http::HeaderValue;
    use ring::rand::SystemRandom;
    use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use rustls_pki_types::pem::PemObject as _;
    use serde_json::json;

    use super::super::Api;
    use super::super::tests::{self, NOW_S, Specimen, account};
    use super::*;

    const ID: &str = "4JH86294D6297924G";
    const ROOT: &str = include_str!("fixtures/paypal/certificates/root.pem");
    const GOOD: &[u8] = include_bytes!("fixtures/paypal/certificates/good.pem");
    const BODY: &[u8] = br#"{"id":"WH-1","event_type":"PAYMENT.CAPTURE.COMPLETED","resource":{"id":"42311647XV020574X"}}"#;
    const PLACE: &str = "https://api.sandbox.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-1a5f47cb";

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &PayPal,
            scheme: "paypal-cert-rsa",
            secret: ID,
            other_secret: "1JE4291016473214C",
            settings: |account| {
                let ids: Vec<Secret> = account.keys.secrets.drain(..).collect();
                account.keys.webhook_id = ids.first().map(|id| id.expose().to_owned());
                account.keys.trusted_root = Some(ROOT.to_owned());
                account.api.client_id = Some("AeA1QIZXiflr1".to_owned());
            },
            sign: |webhook_id, time_s, body| {
                (signed(webhook_id, &Timestamp::from_seconds(time_s).to_string(), body), body.to_vec())
            },
            body: BODY,
            event_type: Some("PAYMENT.CAPTURE.COMPLETED"),
            timed: false,
            any_body: true,
            unsigned_headers: &[CERT_URL],
        }
    }

    fn signed(webhook_id: &str, time: &str, body: &[u8]) -> HeaderMap {
        let key = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("fixtures/paypal/certificates/leaf.key.pem")).unwrap();
        let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap();
        let id = "dfb3be50-fd74-11e4-8bf3-77339302725b";
        let message = format!("{id}|{time}|{webhook_id}|{}", crc32fast::hash(body));
        let mut made = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut made).unwrap();
        tests::headers([
            (TRANSMISSION_ID, id.to_owned()),
            (TRANSMISSION_TIME, time.to_owned()),
            (TRANSMISSION_SIG, STANDARD.encode(made)),
            (CERT_URL, PLACE.to_owned()),
            (AUTH_ALGO, ALGORITHM.to_owned()),
        ])
    }

    fn test_account() -> Account {
        specimen().account(&[ID])
    }

    fn verify(headers: &HeaderMap, certificate: Option<&[u8]>, now_s: i64) -> Result<Verified, Rejection> {
        let request = WebhookRequest { headers, body: BODY, token: None, query: "", certificate };
        PayPal.verify(&request, &test_account().keys, Timestamp::from_seconds(now_s))
    }

    // --------------------------------------------------------------------------------------------------- certificates

    #[test]
    fn a_certificate_must_be_paypals_and_valid_now() {
        let headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
        macro_rules! file {
            ($name:literal) => {
                &include_bytes!(concat!("fixtures/paypal/certificates/", $name, ".pem"))[..]
            };
        }
        assert!(verify(&headers, Some(GOOD), NOW_S).is_ok());
        // As PayPal's SDK: a common name is enough where there is nothing else.
        assert!(verify(&headers, Some(file!("no-alternative-name")), NOW_S).is_ok());
        for (name, certificate, problem) in [
            ("expired", file!("expired"), "it has expired, or one above it has"),
            ("not yet valid", file!("not-yet-valid"), "it is not valid yet"),
            ("no chain", file!("leaf-alone"), "it leads to no trusted root"),
            ("another common name", file!("other-common-name"), "its name is not PayPal's"),
            ("another alternative name", file!("other-alternative-name"), "its name is not PayPal's"),
            ("the domain itself", file!("apex"), "its name is not PayPal's"),
            ("for signing code", file!("code-signing"), "it is not sound"),
            ("the root itself", ROOT.as_bytes(), "it is not sound"),
            ("a key", file!("leaf.key"), "it is no PEM of a few certificates"),
            ("a page", b"<html>".as_slice(), "it is no PEM of a few certificates"),
            ("cut", &GOOD[..GOOD.len() / 3], "it is no PEM of a few certificates"),
            ("too many", &GOOD.repeat(5), "it is no PEM of a few certificates"),
        ] {
            assert_eq!(verify(&headers, Some(certificate), NOW_S), Err(Rejection::Certificate(problem)), "{name}");
        }
        // Under the bundled roots a home-made one is nobody's.
        let mut keys = test_account().keys;
        keys.trusted_root = None;
        let request = WebhookRequest { headers: &headers, body: BODY, token: None, query: "", certificate: Some(GOOD) };
        let verdict = PayPal.verify(&request, &keys, Timestamp::from_seconds(NOW_S));
        assert_eq!(verdict, Err(Rejection::Certificate("it leads to no trusted root")));
    }

    #[test]
    fn until_the_certificate_is_there_nothing_is_known() {
        let headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
        assert_eq!(verify(&headers, None, NOW_S), Err(Rejection::NoCertificate));
    }

    /// The one webhook that PayPal itself signed, against the roots and links that are bundled: what PayPal published is the
    /// leaf alone.
    #[test]
    fn the_genuine_certificate_leads_to_a_bundled_root() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("fixtures/vectors.json")).unwrap();
        let vectors = vectors.as_array().unwrap();
        let genuine = vectors.iter().find(|vector| vector["id"] == "paypal-genuine-simulator-valid").unwrap();
        let text = |key: &str| genuine[key].as_str().unwrap();
        let headers = genuine["headers"].as_object().unwrap();
        let header = |(name, value): (&String, &serde_json::Value)| {
            (name.parse::<http::HeaderName>().unwrap(), HeaderValue::from_str(value.as_str().unwrap()).unwrap())
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        let body = STANDARD.decode(text("body_base64")).unwrap();
        let certificate = text("cert_pem").as_bytes();
        let keys = Keys { webhook_id: Some(text("webhook_id").to_owned()), ..Keys::default() };
        let request = WebhookRequest { headers: &headers, body: &body, token: None, query: "", certificate: Some(certificate) };
        let at = |seconds| PayPal.verify(&request, &keys, Timestamp::from_seconds(seconds));
        assert!(at(genuine["verify_at"].as_i64().unwrap()).is_ok());
        assert_eq!(at(NOW_S), Err(Rejection::Certificate("it has expired, or one above it has")));
    }

    #[test]
    fn certificates_lie_at_paypals_and_nowhere_else() {
        let place = |account: &Account, url: &str| {
            let mut headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
            headers.insert(CERT_URL, HeaderValue::from_str(url).unwrap());
            let request = WebhookRequest { headers: &headers, body: BODY, token: None, query: "", certificate: None };
            PayPal.certificate_url(&request, account).map(Option::unwrap)
        };
        let test = test_account();
        let live = Account { mode: Mode::Live, ..test_account() };
        for host in ["api.paypal.com", "api-m.paypal.com", "api.sandbox.paypal.com", "api-m.sandbox.paypal.com"] {
            let url = format!("https://{host}/v1/notifications/certs/CERT-360caa42-fca2a594_1");
            assert_eq!(place(&test, &url), Ok(url.clone()));
            assert_eq!(place(&live, &url).is_ok(), !host.contains("sandbox"), "{host}");
        }
        let simulated = Api { url: Some("http://127.0.0.1:4242/paypal".to_owned()), ..test.api.clone() };
        let simulated = Account { api: simulated, ..test.clone() };
        let there = "http://127.0.0.1:4242/paypal/v1/notifications/certs/CERT-1";
        assert_eq!(place(&simulated, there), Ok(there.to_owned()));
        assert!(place(&simulated, PLACE).is_err(), "it stands in for the others");
        assert!(place(&Account { mode: Mode::Live, ..simulated.clone() }, there).is_err());
        for bad in [
            "",
            "http://api.paypal.com/v1/notifications/certs/CERT-1",
            "HTTPS://api.paypal.com/v1/notifications/certs/CERT-1",
            "https://API.paypal.com/v1/notifications/certs/CERT-1",
            "https://api.paypal.com:443/v1/notifications/certs/CERT-1",
            "https://me@api.paypal.com/v1/notifications/certs/CERT-1",
            "https://api.paypal.com.evil.example/v1/notifications/certs/CERT-1",
            "https://evil.example/https://api.paypal.com/v1/notifications/certs/CERT-1",
            "https://www.paypal.com/v1/notifications/certs/CERT-1",
            "https://api.paypal.com/v1/notifications/certs/",
            "https://api.paypal.com/v1/notifications/certs/..",
            "https://api.paypal.com/v1/notifications/certs/../../x",
            "https://api.paypal.com/v1/notifications/certs/CERT-1/x",
            "https://api.paypal.com/v1/notifications/certs/CERT-1?x",
            "https://api.paypal.com/v1/notifications/certs/CERT-1#x",
            "https://api.paypal.com/v1/notifications/certs/CERT-1%2e",
            "https://api.paypal.com/v1/notifications//certs/CERT-1",
            " https://api.paypal.com/v1/notifications/certs/CERT-1",
            "//api.paypal.com/v1/notifications/certs/CERT-1",
            &format!("https://api.paypal.com/v1/notifications/certs/{}", "a".repeat(65)),
        ] {
            assert_eq!(place(&test, bad).unwrap_err().reason(), "malformed_header", "{bad}");
        }
    }

    #[test]
    fn nothing_is_fetched_for_a_call_that_could_not_be_verified() {
        let genuine = signed(ID, "2026-09-21T13:33:10Z", BODY);
        for name in genuine.keys() {
            let mut headers = genuine.clone();
            headers.remove(name);
            let request = WebhookRequest { headers: &headers, body: BODY, token: None, query: "", certificate: None };
            assert_eq!(PayPal.certificate_url(&request, &test_account()).unwrap_err().reason(), "missing_header", "{name}");
        }
        let request = WebhookRequest { headers: &genuine, body: b"", token: None, query: "", certificate: None };
        assert_eq!(PayPal.certificate_url(&request, &test_account()), Err(Rejection::EmptyBody));
    }

    // --------------------------------------------------------------------------------------------------- verification

    #[test]
    fn the_time_is_signed_and_of_any_age() {
        for time in ["2026-09-21T13:33:10Z", "2026-09-18T01:00:00.123-07:00", "2015-01-01T00:00:00Z"] {
            assert!(verify(&signed(ID, time, BODY), Some(GOOD), NOW_S).is_ok(), "{time}");
        }
        let mut shifted = signed(ID, "2026-09-21T13:33:10Z", BODY);
        shifted.insert(TRANSMISSION_TIME, HeaderValue::from_static("2026-09-21T13:33:11Z"));
        assert_eq!(verify(&shifted, Some(GOOD), NOW_S), Err(Rejection::SignatureMismatch { secrets: 1 }));
    }

    #[test]
    fn only_one_algorithm_counts() {
        for algorithm in ["SHA1withRSA", "none", "SHA256WITHRSA", "SHA256withRSA,SHA1withRSA"] {
            let mut headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
            headers.insert(AUTH_ALGO, HeaderValue::from_static(algorithm));
            assert_eq!(verify(&headers, Some(GOOD), NOW_S).unwrap_err().reason(), "no_usable_signature", "{algorithm}");
        }
    }

    #[test]
    fn what_parts_the_fields_cannot_move_between_them() {
        let mut headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
        headers.insert(TRANSMISSION_ID, HeaderValue::from_static("dfb3be50|2026"));
        assert_eq!(verify(&headers, Some(GOOD), NOW_S).unwrap_err().reason(), "malformed_header");
    }

    #[test]
    fn a_body_of_the_same_checksum_is_a_hint_all_the_same() {
        let forged = tests::forged_to_the_same_crc32(BODY, br#"{"id":"WH-2","resource":{"id":"9"},"x":"????"}"#);
        let headers = signed(ID, "2026-09-21T13:33:10Z", BODY);
        let request = WebhookRequest { headers: &headers, body: &forged, token: None, query: "", certificate: Some(GOOD) };
        let verified = PayPal.verify(&request, &test_account().keys, Timestamp::from_seconds(NOW_S)).unwrap();
        assert_eq!(verified.proof(), Proof::Hint, "the signature holds, and proves nothing");
    }

    #[test]
    fn an_account_that_is_no_use_is_refused_at_start() {
        let setting = |change: fn(&mut Account)| {
            let mut account = test_account();
            change(&mut account);
            PayPal.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting(|_| ()), Ok(()));
        assert_eq!(setting(|account| account.keys.secrets.push(Secret::new("x", "whsec"))), Err("secrets"));
        assert_eq!(setting(|account| account.keys.webhook_id = None), Err("webhook_id"));
        assert_eq!(setting(|account| account.keys.webhook_id = Some("4JH/..".to_owned())), Err("webhook_id"));
        assert_eq!(setting(|account| account.api.client_id = None), Err("client_id"));
        assert_eq!(setting(|account| account.api.client_id = Some("a:b".to_owned())), Err("client_id"));
        assert_eq!(setting(|account| account.keys.trusted_root = Some("no root".to_owned())), Err("trusted_root"));
        assert_eq!(setting(|account| account.mode = Mode::Live), Err("trusted_root"));
        let live = |account: &mut Account| (account.mode, account.keys.trusted_root) = (Mode::Live, None);
        let mut account = test_account();
        live(&mut account);
        assert_eq!(PayPal.check(&account), Ok(()));
        account.keys.webhook_id = Some("WEBHOOK_ID".to_owned());
        assert_eq!(PayPal.check(&account).unwrap_err().setting, "webhook_id");
        account.mode = Mode::Test;
        assert_eq!(PayPal.check(&account), Ok(()), "the dashboard's simulator, for tests");
    }

    // ------------------------------------------------------------------------------------------------------ requests

    #[test]
    fn questions_are_asked_as_paypal_reads_them() {
        let mut account = test_account();
        let url = |account: &Account, id: &str, cursor: Option<&str>| {
            PayPal.status_request(id, cursor, account).unwrap().uri().to_string()
        };
        let host = "https://api-m.sandbox.paypal.com";
        for (id, cursor, path) in [
            ("5O19", None, "/v2/checkout/orders/5O19"),
            ("5O19", Some("capture"), "/v2/payments/captures/5O19"),
            ("5O19", Some("authorization"), "/v2/payments/authorizations/5O19"),
            ("capture:423", None, "/v2/payments/captures/423"),
            ("capture:423:1Y1", None, "/v2/payments/captures/423"),
            ("capture:423:1Y1", Some("order:5O19:capture"), "/v2/checkout/orders/5O19"),
            ("capture:423:1Y1", Some("capture:5O19"), "/v2/payments/captures/423"),
            ("capture:423:1Y1", Some("refund:423"), "/v2/payments/refunds/1Y1"),
            ("authorization:24B", None, "/v2/payments/authorizations/24B"),
            ("authorization:24B", Some("order:5O19:authorization"), "/v2/checkout/orders/5O19"),
            ("5O19", Some("disputes:5O19:423,424"), "/v1/customer/disputes?disputed_transaction_id=423&page_size=50"),
            ("5O19", Some("dispute:5O19:423:PP-D-1,PP-D-2"), "/v1/customer/disputes/PP-D-1"),
        ] {
            assert_eq!(url(&account, id, cursor), format!("{host}{path}"), "{id} {cursor:?}");
        }
        let since = Timestamp::from_millis(1_789_999_999_999);
        let events =
            |cursor| PayPal.events_request(tests::since(since), cursor, &account).map(|request| request.uri().to_string());
        assert_eq!(
            events(None).unwrap(),
            format!(
                "{host}/v1/notifications/webhooks-events?start_time=2026-09-21T14:13:19Z&end_time=2026-09-21T14:13:21Z&page_size=100"
            )
        );
        assert_eq!(events(Some("start_id=WH-9")).unwrap(), format!("{host}/v1/notifications/webhooks-events?start_id=WH-9"));
        assert!(events(Some("a b")).is_err() && events(Some("")).is_err() && events(Some("x#y")).is_err());
        assert_eq!(PayPal.endpoints_request(None, &account).unwrap().uri().path(), "/v1/notifications/webhooks");

        let token = PayPal.token_request(&account).unwrap().unwrap();
        assert_eq!(token.uri().to_string(), format!("{host}/v1/oauth2/token"));
        assert_eq!(token.headers()["authorization"], "Basic QWVBMVFJWlhpZmxyMTpza190ZXN0X2ludmVudGVk");
        assert!(!format!("{token:?}").contains("QWVB"), "the credentials show in a log");
        assert_eq!(&token.body()[..], b"grant_type=client_credentials");

        account.mode = Mode::Live;
        assert_eq!(url(&account, "5O19", None), "https://api-m.paypal.com/v2/checkout/orders/5O19");
        account.api = Api { url: Some("http://127.0.0.1:4242".to_owned()), ..Api::default() };
        assert_eq!(url(&account, "5O19", None), "http://127.0.0.1:4242/v2/checkout/orders/5O19");
        assert_eq!(PayPal.token_request(&account).unwrap().unwrap_err(), AskError::Missing("client_id"));
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = test_account();
        let long = "a".repeat(65);
        for id in [
            "",
            ":",
            "a/b",
            "a?b",
            "..",
            "a b",
            "é",
            "capture:",
            "capture:a:",
            "capture:a:b:c",
            "capture:a/b",
            "authorization:a:b",
            "refund:a",
            "order:a",
            "-",
            &long,
        ] {
            assert_eq!(PayPal.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()), "{id}");
        }
        for cursor in [
            "",
            "order",
            "order:a",
            "order:a/b:capture",
            "order:a:refund",
            "capture:a:b",
            "capture:",
            "refund:a",
            "disputes:a",
            "disputes:a:",
            "disputes:a:b,",
            "disputes:a:b/c",
            "dispute:a:b",
            "dispute:a:b:",
            "dispute:a:b:c:d",
            "payments",
        ] {
            let refused = PayPal.status_request("5O19", Some(cursor), &account);
            assert_eq!(refused.unwrap_err(), AskError::MalformedId(cursor.to_owned()), "{cursor}");
        }
        assert!(PayPal.endpoints_request(Some("x"), &account).is_err());
    }

    // ------------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", "Mon, 21 Sep 2026 14:13:25 GMT").body(Bytes::copy_from_slice(body)).unwrap()
    }

    #[test]
    fn lists_and_tokens_read_as_recorded() {
        let account = test_account();
        let list = response(include_bytes!("fixtures/paypal/answers/events.json"));
        let asked = Asked { payment_id: "", cursor: None, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" };
        let answer = PayPal.read_events(tests::WHOLE, &asked, &list, &account).unwrap();
        assert_eq!(answer.next.as_deref(), Some("start_time=2026-09-21T00:00:00Z&start_id=WH-9&page_size=100"));
        assert!(answer.events.is_empty(), "a copy of a webhook is no more than the webhook");
        assert_eq!(answer.unread.len(), 1, "what cannot be understood is not lost");
        let mut hints = PayPal.read_hints(&list, &account).unwrap();
        hints.sort();
        let ids: Vec<&str> = hints.iter().map(|hint| &*hint.payment_id).collect();
        assert_eq!(ids, ["5O190127TN364715T", "capture:42311647XV020574X:1Y107995YT783435V"]);
        assert!(hints.iter().all(|hint| hint.at < asked.at), "{hints:?}");
        PayPal.events_request(tests::WHOLE, answer.next.as_deref(), &account).unwrap();
        let again = Asked { cursor: answer.next.as_deref(), ..asked };
        assert!(
            matches!(PayPal.read_events(tests::WHOLE, &again, &list, &account), Err(ReadError::Unintelligible(_))),
            "it leads nowhere"
        );
        let empty = response(br#"{"events":[],"links":[{"rel":"next","href":"https://x/y?z"}]}"#);
        assert!(matches!(PayPal.read_events(tests::WHOLE, &asked, &empty, &account), Err(ReadError::Unintelligible(_))));
        assert_eq!(PayPal.read_events(tests::WHOLE, &asked, &response(br#"{"events":[]}"#), &account).unwrap().next, None);

        let endpoints = PayPal.read_endpoints(&response(include_bytes!("fixtures/paypal/answers/endpoints.json"))).unwrap();
        insta::assert_json_snapshot!("paypal-answer-endpoints", endpoints.endpoints);
        let token = PayPal.read_token(&response(include_bytes!("fixtures/paypal/answers/token.json"))).unwrap();
        assert_eq!((token.secret.expose(), token.lives), ("A21AAinvented-token_1.x", Duration::from_hours(9)));
        for bad in [
            json!({"access_token": "a", "expires_in": 1}),
            json!({"access_token": "a b", "token_type": "Bearer", "expires_in": 1}),
            json!({"access_token": "", "token_type": "Bearer", "expires_in": 1}),
            json!({"access_token": "a", "token_type": "Bearer", "expires_in": -1}),
            json!({"access_token": "a", "token_type": "mac", "expires_in": 1}),
        ] {
            assert!(PayPal.read_token(&response(bad.to_string().as_bytes())).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_hint_can_be_asked_about() {
        let account = account(&PayPal, &[]);
        for (name, body) in tests::fixtures(&PayPal) {
            let hinted = PayPal.hinted(&tests::envelope(&PayPal, &body), &account).unwrap_or_default();
            assert_eq!(hinted.is_empty(), name.starts_with("bad.") || name.starts_with("billing."), "{name}");
            for payment in hinted {
                PayPal.status_request(&payment, None, &account).unwrap();
            }
        }
    }
}
