//! Mollie: payments, refunds, captures, chargebacks; by webhooks of both kinds.
//!
//! Sources: docs.mollie.com/reference (webhooks, webhooks-new, payments, refunds, chargebacks, captures, webhooks-api), the
//! API's formal description of 2026-08, and what Mollie's SDKs do (mollie-api-py 1.10, mollie-api-typescript 1.12), where they
//! are not laxer than their own documentation. Mollie publishes addresses, but advises against filtering by them.
//!
//! **Signature**, next-gen: `X-Mollie-Signature: sha256=<64 lowercase hex>`, HMAC-SHA256 over the raw body; the key is the
//! secret as text. The prefix may be missing, as in Mollie's own examples. While a secret is rotated the header comes once for
//! each secret, for 24 hours, and proxies may join them with commas: any match is one. No time is signed. Without the header
//! the SDKs take a webhook for a classic one; here it is refused.
//!
//! **Classic** webhooks are the form `id=tr_…`, unsigned and the same for every change of the payment: a token in the path, and
//! a hint.
//!
//! **Notices**: a next-gen webhook may come without its object (the "simple payload"), or as the object alone, as some of
//! Mollie's pages show it, without the time at which it was so. Either is authentic and tells too little: it is recorded as
//! ignored, and its payment is asked for.
//!
//! **Payments** are attempts: one that was canceled, expired or failed stays so, and the order is paid by another. The status
//! stays `paid` whatever is refunded or charged back. `amountCaptured` is there only where there can be several captures. One
//! that ends after it was authorised gives the money back: it lapsed, or was given up.
//!
//! **Chargebacks** take the money at once, so they are lost from the beginning; one that is reversed was won.
//!
//! **Versions.** Mollie's objects carry none. A fact from an event has the event's `createdAt`, one from an answer has the
//! answer's `Date`; both count seconds.
//!
//! **The order** is `metadata.order_id` of the payment (metadata is any JSON; `order_reference = "metadata"` reads a string).
//! Metadata of refunds and captures are their own, and not read.
//!
//! **The list** of payments cannot be asked by time, only from the newest downwards. Refunds and chargebacks come long after
//! their payment was made, so their lists are read, too. All are by time of creation: that a refund fails later, or a chargeback
//! is reversed, is in none of them.
//!
//! **Keys** `test_…` and `live_…` have their mode in them. Organisation tokens (`access_…`), which alone may list webhooks, are
//! told it by `testmode`, and the profile by the setting `merchant_id`.

mod endpoint;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq as _};

use super::json::{self, Node, Problem};
use super::signature::{self, HEADER_BYTES_MAX, SIGNATURES_MAX};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Answer, AskError, Asked, ChangedEndpoint, Endpoint, EndpointChange, EndpointList, Keys, LateChanges,
    Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WantedEndpoint,
    WebhookRequest, Window, answer, ask,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Failure, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};
use crate::money::Money;

/// The adapter.
pub struct Mollie;

const SIGNATURE: &str = "x-mollie-signature";
/// Case-sensitive.
const SIGNATURE_PREFIX: &str = "sha256=";
const NEXT_GEN: &str = "mollie-nextgen";
const CLASSIC: &str = "mollie-classic-unsigned";
const API: &str = "https://api.mollie.com";
/// Mollie's largest page.
const PAGE: usize = 250;
/// With this begin the keys of organisations, of both modes.
const ORGANISATION_KEY: &str = "access_";

static PROFILE: Profile = Profile {
    name: "Mollie",
    translate_headers: &[],
    timeout: Duration::from_secs(15),
    // Ten times: after 1, 2, 4, 8, 16, 29 minutes, 1, 2 and 22 hours.
    retry_window: Duration::from_hours(26),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed(NEXT_GEN), Scheme { name: CLASSIC, proof: Proof::Hint, token_in_path: true }],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Begun, endpoint_list: true },
    list: Some(Listing { slice: None, ..Listing::USUAL }),
    sources: &[],
};

impl Psp for Mollie {
    fn id(&self) -> &'static str {
        "mollie"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Developers, Webhooks; a classic webhook is the `webhookUrl` of each payment that is made"
    }

    /// Classic webhooks are no endpoints: each payment names its URL.
    fn wanted_endpoint(&self, account: &Account) -> Option<WantedEndpoint> {
        (account.keys.scheme != CLASSIC).then_some(endpoint::WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        ask::check(account)?;
        let key = account.api.key.as_ref().map_or("", |key| key.expose());
        for (prefix, mode) in [("live_", Mode::Live), ("test_", Mode::Test)] {
            if key.starts_with(prefix) && account.mode != mode {
                let problem = format!("is a key for {}, and the account's mode is {}", mode.as_str(), account.mode.as_str());
                return Err(SettingError { setting: "api_key", problem });
            }
        }
        if account.api.merchant_id.as_ref().is_some_and(|profile| !ask::is_id(profile, b"_")) {
            let problem = "is no id of a profile such as pfl_QkEhN94Ba".to_owned();
            return Err(SettingError { setting: "merchant_id", problem });
        }
        Ok(())
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        if keys.scheme == CLASSIC {
            return verify_classic(request, keys, now);
        }
        let offered = offered_signatures(request.headers)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let secret_name = signature::matching_secret(keys, now, |secret| {
            let mac = signature::hmac_sha256(secret.expose().as_bytes(), &[request.body]);
            offered.iter().fold(Choice::from(0), |equal, offered| equal | offered.ct_eq(&mac))
        })?;
        let head = Head::read(request.body);
        Ok(Verified {
            webhook_id: head.id().map_or_else(|| signature::body_id(request.body), str::to_owned),
            event_type: head.event_type().map(str::to_owned),
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        // The account's scheme may have changed since.
        if envelope.proof == Proof::Hint {
            return Ok(vec![payment_of_form(&envelope.body)?.to_owned()]);
        }
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        Ok(if is_notice(&event) { vec![noticed_payment(&event)?.to_owned()] } else { Vec::new() })
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        if is_notice(&event) {
            noticed_payment(&event)?;
            return Err(TranslateError::Ignored("a notice without its object: the payment is asked for".to_owned()));
        }
        let event_type = event.name("type")?;
        let Some(kind) = Kind::of_event(event_type) else {
            return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
        };
        let (event_id, at) = (event.name("id")?, telling::time(&event, "createdAt")?);
        let entity = event.object("_embedded")?.object("entity")?;
        if event.text("entityId").is_some_and(|id| entity.text("id") != Some(id)) {
            return Err(entity.problem("another object than the event names").into());
        }
        let mut found = kind.findings(&entity, account)?;
        if event_type == "chargeback.reversed" {
            for finding in &mut found {
                if let Fact::Dispute { state, .. } = &mut finding.fact {
                    *state = DisputeState::Won;
                }
            }
        }
        let event = |finding: Finding<'_>| {
            let event_id = format!("{event_id}{}", finding.part);
            finding.telling(event_id, event_type, at).event(account, Source::Webhook)
        };
        Ok(found.into_iter().map(event).collect())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_payment_id(payment_id) || cursor.is_some() {
            return Err(AskError::MalformedId(cursor.unwrap_or(payment_id).to_owned()));
        }
        get(account, &format!("/v2/payments/{payment_id}?embed=refunds,chargebacks,captures"), "")
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let payment = Node::root(&value);
        if payment.name("id")? != asked.payment_id {
            return Err(payment.required("id")?.problem("another payment than was asked for").into());
        }
        let mut found = Kind::Payment.findings(&payment, account)?;
        let order = found.first().and_then(|finding| finding.order);
        let embedded = payment.optional("_embedded");
        for kind in [Kind::Refund, Kind::Chargeback, Kind::Capture] {
            let listed = embedded.as_ref().filter(|embedded| embedded.optional(kind.list()).is_some());
            for object in listed.map(|embedded| embedded.array(kind.list())).transpose()?.unwrap_or_default() {
                // The full amount, which the payment tells.
                if kind == Kind::Capture && object.optional("amount").is_none() {
                    continue;
                }
                for finding in kind.findings(&object, account)? {
                    if finding.payment_id != asked.payment_id {
                        return Err(object.problem("of another payment than was asked for").into());
                    }
                    found.push(Finding { order, ..finding });
                }
            }
        }
        let at = answer::date(response).unwrap_or(asked.at);
        let events = found.into_iter().map(|finding| finding.answer(asked, at, account));
        Ok(Answer { events: events.collect(), unread: Vec::new(), next: None })
    }

    /// Newest first: payments, then refunds, then chargebacks, each until they were made before the window.
    fn events_request(&self, _window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let place = Place::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        get(account, &format!("/v2/{}?limit={PAGE}{}", place.list.list(), from_item(place.from)), &profile(account))
    }

    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let kind = Place::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?.list;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), kind.list())?;
        let at = answer::date(response).unwrap_or(asked.at);
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: None };
        let mut times = Vec::with_capacity(page.items.len());
        for (object, id) in page.items.iter().zip(&page.ids) {
            if let Ok(made) = telling::time(object, "createdAt") {
                times.push(made);
                if made < window.in_seconds().since {
                    continue;
                }
            }
            match kind.findings(object, account) {
                Ok(findings) => found.events.extend(findings.into_iter().map(|finding| finding.answer(asked, at, account))),
                Err(problem) => found.unread.push(Unread { event_id: (*id).to_owned(), error: problem.into() }),
            }
        }
        // In another order, an old one would not say that all behind it are older.
        let is_ended = times.last().is_some_and(|oldest| *oldest < window.in_seconds().since)
            && times.is_sorted_by(|newer, older| newer >= older);
        found.next = match page.next.filter(|_| !is_ended) {
            Some(from) => Some(format!("{}:{from}", kind.list())),
            None => kind.next_swept().map(|next| next.list().to_owned()),
        };
        Ok(found)
    }

    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if cursor.is_some_and(|from| !ask::is_id(from, b"_")) {
            return Err(AskError::MalformedId(cursor.unwrap_or_default().to_owned()));
        }
        get(account, &format!("/v2/webhooks?limit={PAGE}{}", from_item(cursor)), "")
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let page = Page::read(&Node::root(&value), "webhooks")?;
        let endpoints = page.items.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(EndpointList { endpoints, next: page.next.map(str::to_owned) })
    }

    fn change_endpoint_request(&self, change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
        endpoint::request(change, account)
    }

    fn read_changed_endpoint(&self, response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
        endpoint::read(response)
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// Who knows the token may hint; what the body says is for the worker.
fn verify_classic(request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
    let secret_name = signature::matching_token(keys, now, request.token)?;
    if request.body.is_empty() {
        return Err(Rejection::EmptyBody);
    }
    Ok(Verified {
        webhook_id: signature::body_id(request.body),
        event_type: None,
        subject: None,
        secret_name,
        proof: Proof::Hint,
        content_type: signature::content_type(request.headers),
        headers: Vec::new(),
    })
}

/// The well-formed signatures of all the header's lines; an ill-formed one beside them can match nothing.
fn offered_signatures(headers: &HeaderMap) -> Result<Vec<[u8; 32]>, Rejection> {
    let malformed = |problem| Rejection::MalformedHeader { header: SIGNATURE, problem };
    let (mut bytes, mut offered, mut signatures) = (0, 0, Vec::new());
    for value in headers.get_all(SIGNATURE) {
        let text = value.to_str().map_err(|_| malformed("it is not ASCII text"))?;
        bytes += text.len();
        if bytes > HEADER_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        for element in text.split(',').map(|element| element.trim_matches(' ')) {
            offered += 1;
            signatures.extend(signature::lower_hex(element.strip_prefix(SIGNATURE_PREFIX).unwrap_or(element)));
        }
    }
    match offered {
        0 => Err(Rejection::MissingHeader(SIGNATURE)),
        1..=SIGNATURES_MAX if !signatures.is_empty() => Ok(signatures),
        1..=SIGNATURES_MAX => Err(malformed("it is not sha256= and 64 lowercase hex digits")),
        _ => Err(malformed("it has too many signatures")),
    }
}

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    // Not `Option<Cow>`, which serde would copy.
    #[serde(borrow)]
    resource: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads an authentic body. What is no such JSON is still authentic: it is kept, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// An object's own id names no webhook: the next one about it has the same.
    fn id(&self) -> Option<&str> {
        Some(self.id.as_ref()).filter(|id| !self.is_bare_object() && json::is_name(id))
    }

    fn event_type(&self) -> Option<&str> {
        Some(self.event_type.as_ref()).filter(|event_type| json::is_name(event_type))
    }

    fn is_bare_object(&self) -> bool {
        self.event_type.is_empty() && Kind::of_resource(&self.resource).is_some()
    }
}

// ------------------------------------------------------------------------------------------------- hints and notices

/// The payment of a classic webhook: a form of which only the id counts.
fn payment_of_form(body: &[u8]) -> Result<&str, TranslateError> {
    let problem = |reason| TranslateError::Unintelligible { reason, pointer: String::new() };
    let text = std::str::from_utf8(body).map_err(|_| problem("not a form"))?;
    let mut ids = text.split('&').filter_map(|field| field.strip_prefix("id="));
    match (ids.next(), ids.next()) {
        (Some(id), None) if is_payment_id(id) => Ok(id),
        (Some(_), None) => Err(problem("an id that is no payment's")),
        (None, _) => Err(problem("a form without an id")),
        (Some(_), Some(_)) => Err(problem("a form with two ids")),
    }
}

/// An event that names its object without showing it, or an object of which no event tells when it was so.
fn is_notice(event: &Node<'_>) -> bool {
    match event.text("type") {
        Some(event_type) => {
            let shown = event.optional("_embedded").is_some_and(|embedded| embedded.optional("entity").is_some());
            !shown && Kind::of_event(event_type).is_some()
        }
        None => event.text("resource").and_then(Kind::of_resource).is_some(),
    }
}

/// The payment that a notice is about: its object, or the one that the object belongs to.
fn noticed_payment<'a>(notice: &Node<'a>) -> Result<&'a str, Problem> {
    let named = ["entityId", "id", "paymentId"].iter().find_map(|key| notice.text(key).filter(|id| is_payment_id(id)));
    let linked = || {
        // Of a refund: `https://api.mollie.com/v2/payments/tr_…/refunds/re_…`.
        let link = notice.name_at(&["_links", "entity", "href"])?;
        link.split('/').skip_while(|segment| *segment != "payments").nth(1).filter(|id| is_payment_id(id))
    };
    named.or_else(linked).ok_or_else(|| notice.problem("names no payment"))
}

fn is_payment_id(text: &str) -> bool {
    text.len() <= 255 && text.strip_prefix("tr_").is_some_and(|rest| ask::is_id(rest, b""))
}

// ----------------------------------------------------------------------------------------------------- translation

/// The objects that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Payment,
    Refund,
    Chargeback,
    Capture,
}

impl Kind {
    /// `None` for what is none of our business: payouts, invoices, transfers, and payment links, whose payments have events
    /// of their own.
    fn of_event(event_type: &str) -> Option<Self> {
        Self::of_resource(event_type.split_once('.')?.0)
    }

    fn of_resource(name: &str) -> Option<Self> {
        [Self::Payment, Self::Refund, Self::Chargeback, Self::Capture].into_iter().find(|kind| kind.resource() == name)
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Payment => "payment",
            Self::Refund => "refund",
            Self::Chargeback => "chargeback",
            Self::Capture => "capture",
        }
    }

    /// The name of lists of it.
    const fn list(self) -> &'static str {
        match self {
            Self::Payment => "payments",
            Self::Refund => "refunds",
            Self::Chargeback => "chargebacks",
            Self::Capture => "captures",
        }
    }

    const fn poll(self) -> &'static str {
        match self {
            Self::Payment => "poll:payment",
            Self::Refund => "poll:refund",
            Self::Chargeback => "poll:chargeback",
            Self::Capture => "poll:capture",
        }
    }

    /// The list that the sweep reads after this one. Captures have none; payments tell of them.
    const fn next_swept(self) -> Option<Self> {
        match self {
            Self::Payment => Some(Self::Refund),
            Self::Refund => Some(Self::Chargeback),
            Self::Chargeback | Self::Capture => None,
        }
    }

    /// What an object of this kind says, whoever shows it.
    fn findings<'a>(self, object: &Node<'a>, account: &Account) -> Result<Vec<Finding<'a>>, Problem> {
        if object.text("resource").is_some_and(|resource| resource != self.resource()) {
            return Err(object.required("resource")?.problem("another kind of object"));
        }
        let object_id = object.name("id")?;
        let payment_id = if self == Self::Payment { object_id } else { object.name("paymentId")? };
        let order = if self == Self::Payment { telling::order(object, account, &[&["metadata", "order_id"]]) } else { None };
        let mode = mode(object)?;
        let finding = |part, fact| Finding { kind: self, object_id, part, payment_id, order, mode, fact };
        Ok(match self {
            Self::Payment => {
                let fact = Fact::Payment(payment_fact(object)?);
                let total = refund_total(object)?.map(|amount| finding(":refunded", Fact::RefundTotal { amount }));
                [finding("", fact)].into_iter().chain(total).collect()
            }
            Self::Refund => vec![finding("", refund_fact(object)?)],
            Self::Chargeback => vec![finding("", dispute_fact(object)?)],
            Self::Capture => vec![finding("", capture_fact(object)?)],
        })
    }
}

/// A fact about an object, before it is known who told it, and when.
struct Finding<'a> {
    kind: Kind,
    object_id: &'a str,
    /// What of the object it is, where that is not the object itself; the end of its event's key.
    part: &'static str,
    payment_id: &'a str,
    order: Option<&'a str>,
    mode: Option<Mode>,
    fact: Fact,
}

impl<'a> Finding<'a> {
    fn telling(self, event_id: String, event_type: &'a str, at: Timestamp) -> Telling<'a> {
        Telling {
            event_id,
            event_type,
            at,
            mode: self.mode,
            order: self.order,
            payment_id: self.payment_id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact: self.fact,
        }
    }

    /// The event, of an answer that was true at this time.
    fn answer(self, asked: &Asked<'_>, at: Timestamp, account: &Account) -> PaymentEvent {
        let (event_id, event_type) = (format!("{}{}", self.object_id, self.part), self.kind.poll());
        self.telling(event_id, event_type, at).answer(account, asked)
    }
}

/// An unknown status is pending: it is never a failure and never money.
fn payment_fact(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    let amount = amount(payment, "amount")?;
    // Nothing captured says nothing, as where there is one capture only.
    let captured = optional_amount(payment, "amountCaptured")?.filter(|captured| captured.minor > 0);
    let was_authorized = payment.optional("authorizedAt").is_some();
    let state = match payment.name("status")? {
        "paid" => PaymentState::Captured,
        "authorized" if captured.is_some() => PaymentState::Captured,
        "authorized" => PaymentState::Authorized,
        "expired" if was_authorized => PaymentState::AuthorizationExpired,
        "expired" => PaymentState::Expired,
        // A failure of what was held already: it will not be tried again.
        "failed" if was_authorized => PaymentState::Canceled,
        "failed" => PaymentState::Failed,
        "canceled" => PaymentState::Canceled,
        _ => PaymentState::Pending,
    };
    let mut fact = PaymentFact::new(state);
    match state {
        PaymentState::Captured => {
            let captured = captured.unwrap_or(amount);
            fact.captured = Some(captured);
            fact.capture_final = captured.minor >= amount.minor;
            // Where more can be captured, the amount is what is held.
            fact.authorized = (!fact.capture_final).then_some(amount);
        }
        PaymentState::Authorized => fact.authorized = Some(amount),
        _ => {}
    }
    fact.failure = (payment.text("status") == Some("failed")).then(|| failure(payment));
    Ok(fact)
}

/// `statusReason` at terminals, `details` for cards and for banks. Other than strings are left out: they decide nothing.
fn failure(payment: &Node<'_>) -> Failure {
    let first = |places: [[&str; 2]; 3]| places.iter().find_map(|[object, key]| payment.optional(object)?.text(key));
    let code = first([["statusReason", "code"], ["details", "failureReason"], ["details", "bankReasonCode"]]);
    let message = first([["statusReason", "message"], ["details", "failureMessage"], ["details", "bankReason"]]);
    telling::failure(code, message)
}

/// All that went back. Also if it is nothing, where refunds are shown that must have failed.
fn refund_total(payment: &Node<'_>) -> Result<Option<Money>, Problem> {
    let embedded = payment.optional("_embedded").filter(|embedded| embedded.optional("refunds").is_some());
    let has_refunds = embedded.map(|embedded| embedded.array("refunds")).transpose()?.is_some_and(|refunds| !refunds.is_empty());
    Ok(optional_amount(payment, "amountRefunded")?.filter(|total| total.minor > 0 || has_refunds))
}

fn refund_fact(refund: &Node<'_>) -> Result<Fact, Problem> {
    let state = match refund.name("status")? {
        "refunded" => RefundState::Succeeded,
        "failed" | "canceled" => RefundState::Failed,
        // queued, pending, processing, and what is new to us
        _ => RefundState::Pending,
    };
    let created = refund.optional("createdAt").map(|_| telling::time(refund, "createdAt")).transpose()?;
    Ok(Fact::Refund { id: refund.name("id")?.to_owned(), state, amount: amount(refund, "amount")?, created })
}

fn dispute_fact(chargeback: &Node<'_>) -> Result<Fact, Problem> {
    let state = if chargeback.optional("reversedAt").is_some() { DisputeState::Won } else { DisputeState::Lost };
    Ok(Fact::Dispute { id: chargeback.name("id")?.to_owned(), state, amount: amount(chargeback, "amount")? })
}

fn capture_fact(capture: &Node<'_>) -> Result<Fact, Problem> {
    let state = match capture.name("status")? {
        "succeeded" => CaptureState::Succeeded,
        "failed" => CaptureState::Failed,
        _ => CaptureState::Pending,
    };
    Ok(Fact::Capture { id: capture.name("id")?.to_owned(), state, amount: amount(capture, "amount")? })
}

fn amount(object: &Node<'_>, key: &str) -> Result<Money, Problem> {
    object.object(key)?.decimal_money("value", "currency")
}

fn optional_amount(object: &Node<'_>, key: &str) -> Result<Option<Money>, Problem> {
    object.optional(key).map(|_| amount(object, key)).transpose()
}

fn mode(object: &Node<'_>) -> Result<Option<Mode>, Problem> {
    match object.optional_name("mode")? {
        None => Ok(None),
        Some("live") => Ok(Some(Mode::Live)),
        Some("test") => Ok(Some(Mode::Test)),
        Some(_) => Err(object.required("mode")?.problem("neither live nor test")),
    }
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a sweep stands.
struct Place<'a> {
    list: Kind,
    /// The object to go on with.
    from: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Reads a cursor: none, `<list>`, `<list>:<id>`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { list: Kind::Payment, from: None }) };
        let (name, from) = cursor.split_once(':').map_or((cursor, None), |(name, from)| (name, Some(from)));
        let list = [Kind::Payment, Kind::Refund, Kind::Chargeback].into_iter().find(|kind| kind.list() == name)?;
        from.is_none_or(|from| ask::is_id(from, b"_")).then_some(Self { list, from })
    }
}

/// A page of any of Mollie's lists.
struct Page<'a> {
    items: Vec<Node<'a>>,
    /// The items' ids.
    ids: Vec<&'a str>,
    /// There is more, beginning with this id.
    next: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// Refuses a page that would lead nowhere: empty with more to come, or going on with what it has.
    fn read(page: &Node<'a>, list: &str) -> Result<Self, Problem> {
        let items = page.object("_embedded")?.array(list)?;
        if items.len() > PAGE {
            return Err(page.problem("a page larger than was asked for"));
        }
        let ids = items.iter().map(|item| item.name("id")).collect::<Result<Vec<_>, _>>()?;
        let Some(link) = page.optional("_links").and_then(|links| links.optional("next")) else {
            return Ok(Self { items, ids, next: None });
        };
        let href = link.text("href").unwrap_or_default();
        let query = href.split_once('?').map_or("", |(_, query)| query);
        let next = query.split('&').find_map(|field| field.strip_prefix("from=")).filter(|id| ask::is_id(id, b"_"));
        let next = next.ok_or_else(|| link.problem("a link that says not where to go on"))?;
        if ids.is_empty() {
            return Err(page.problem("an empty page with more to come"));
        }
        if ids.contains(&next) {
            return Err(link.problem("a page that repeats itself"));
        }
        Ok(Self { items, ids, next: Some(next) })
    }
}

fn endpoint(webhook: &Node<'_>) -> Result<Endpoint, Problem> {
    let event = |event: Node<'_>| event.as_text().map(str::to_owned).ok_or_else(|| event.problem("not a string"));
    let url = webhook.required("url")?;
    Ok(Endpoint {
        id: webhook.name("id")?.to_owned(),
        url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
        // Not: blocked, disabled, deleted.
        enabled: webhook.name("status")? == "enabled",
        events: webhook.array("eventTypes")?.into_iter().map(event).collect::<Result<_, _>>()?,
        api_version: None,
        mode: mode(webhook)?,
    })
}

fn from_item(id: Option<&str>) -> String {
    id.map(|id| format!("&from={id}")).unwrap_or_default()
}

fn is_of_organisation(account: &Account) -> bool {
    account.api.key.as_ref().is_some_and(|key| key.expose().starts_with(ORGANISATION_KEY))
}

/// Whose objects are listed, where the key does not say it.
fn profile(account: &Account) -> String {
    let profile = account.api.merchant_id.as_ref().filter(|profile| is_of_organisation(account) && ask::is_id(profile, b"_"));
    profile.map(|profile| format!("&profileId={profile}")).unwrap_or_default()
}

/// `path` has a query already.
fn get(account: &Account, path: &str, more: &str) -> Result<Request<Bytes>, AskError> {
    let testmode = if account.mode == Mode::Test && is_of_organisation(account) { "&testmode=true" } else { "" };
    ask::finish(ask::get(account, API, &format!("{path}{more}{testmode}"), ask::bearer(account)?))
}

#[cfg(test)]
pub(super) mod tests {
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;
    use crate::event::{Reference, ReferenceKind};
    use crate::secret::Secret;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Mollie,
            scheme: NEXT_GEN,
            secret: SECRET,
            other_secret: "VpQ3TestOtherPac3GyNEj0002",
            settings: |_| {},
            sign: |secret, _, body| (tests::headers([(SIGNATURE, format!("sha256={}", mac(secret, body)))]), body.to_vec()),
            body: BODY,
            event_type: Some("payment.paid"),
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    /// Of the body only its bytes are known to be there: the token proves no more.
    pub(in super::super) fn classic_specimen() -> Specimen {
        Specimen {
            scheme: CLASSIC,
            secret: TOKEN,
            other_secret: "another-token-0123456789abcdef",
            sign: |_, _, body| (HeaderMap::new(), body.to_vec()),
            body: b"id=tr_5B8cwTestPayment",
            event_type: None,
            any_body: false,
            ..specimen()
        }
    }

    const SECRET: &str = "VpQ3TestSecretPac3GyNEj0001";
    const TOKEN: &str = "token-in-the-path-0123456789abcdef";
    const BODY: &[u8] =
        br#"{"resource":"event","id":"event_1","type":"payment.paid","_embedded":{"entity":{"resource":"payment"}}}"#;
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn mac(secret: &str, body: &[u8]) -> String {
        hex::encode(signature::hmac_sha256(secret.as_bytes(), &[body]))
    }

    fn account() -> Account {
        tests::account(&Mollie, &[SECRET])
    }

    // -------------------------------------------------------------------------------------------------- webhooks

    #[test]
    fn the_header_has_one_grammar_and_any_number_of_lines() {
        let (good, other) = (mac(SECRET, BODY), "0".repeat(64));
        let verify = |lines: &[&str]| {
            let line = |text: &&str| (HeaderName::from_static(SIGNATURE), HeaderValue::from_str(text).unwrap());
            let mut headers = HeaderMap::new();
            for (name, value) in lines.iter().map(line) {
                headers.append(name, value);
            }
            tests::verify(&Mollie, &[SECRET], &headers, BODY).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        for lines in [
            &[&*format!("sha256={good}")][..],
            &[&good],
            &[&format!("sha256={other}"), &format!("sha256={good}")],
            &[&format!("sha256={good}"), "sha256=short"],
            &[&format!("sha256={other}, sha256={good}")],
            &[&format!("sha256={good},sha256={other}")],
            &[&format!("{other},{good}"), ""],
        ] {
            assert_eq!(verify(lines), "accepted", "{lines:?}");
        }
        let many = format!("{good},").repeat(SIGNATURES_MAX);
        for (lines, reason) in [
            (&[][..], "missing_header"),
            (&[""], "malformed_header"),
            (&[&*format!("SHA256={good}")], "malformed_header"),
            (&[&format!("sha256={}", good.to_uppercase())], "malformed_header"),
            (&[&format!("sha256={good}00")], "malformed_header"),
            (&[&format!("sha256= {good}")], "malformed_header"),
            (&[&format!("sha256={good};sha256={good}")], "malformed_header"),
            (&[&format!("sha512={good}")], "malformed_header"),
            (&[&many], "malformed_header"),
            (&[&"a".repeat(HEADER_BYTES_MAX), &good], "malformed_header"),
            (&[&format!("sha256={other}")], "signature_mismatch"),
            (&[&format!("sha256={other}"), &other], "signature_mismatch"),
        ] {
            assert_eq!(verify(lines), reason, "{lines:?}");
        }
    }

    #[test]
    fn a_webhook_without_a_usable_id_is_named_by_its_body() {
        for (body, id) in [
            (r#"{"resource":"event","id":"event_1","type":"payment.paid"}"#, Some("event_1")),
            (r#"{"id":"event_1","type":"payout.sent"}"#, Some("event_1")),
            (r#"{"resource":"refund","id":"re_1","status":"refunded"}"#, None),
            (r#"{"type":"payment.paid"}"#, None),
            (r#"{"id":"event_1","id":"event_2","type":"payment.paid"}"#, None),
            ("not json", None),
        ] {
            let envelope = tests::envelope(&Mollie, body.as_bytes());
            assert_eq!(envelope.proof, Proof::Proven);
            let expected = id.map_or_else(|| signature::body_id(body.as_bytes()), str::to_owned);
            assert_eq!(envelope.webhook_id, expected, "{body}");
        }
    }

    #[test]
    fn a_notice_leads_to_its_payment_and_a_whole_event_does_not() {
        for (name, body) in tests::fixtures(&Mollie) {
            let hinted = Mollie.hinted(&tests::envelope(&Mollie, &body), &account());
            match name.strip_prefix("notice.") {
                None => assert_eq!(hinted, Ok(Vec::new()), "{name}"),
                Some("no_payment") => {
                    assert!(
                        matches!(hinted, Err(TranslateError::Unintelligible { reason: "names no payment", .. })),
                        "{hinted:?}"
                    );
                }
                Some(_) => assert_eq!(hinted, Ok(vec!["tr_5B8cwTestPayment".to_owned()]), "{name}"),
            }
        }
    }

    #[test]
    fn a_classic_webhook_says_no_more_than_an_id() {
        let read = |body: &str| payment_of_form(body.as_bytes()).map(str::to_owned);
        assert_eq!(read("id=tr_7UhSN1zuXS"), Ok("tr_7UhSN1zuXS".to_owned()));
        let long = format!("id=tr_{}", "a".repeat(253));
        for bad in
            ["id=", "id=tr_", "id=re_1", "id=tr_1 ", "id=tr_1\n", "id=tr_a_b", "id=tr_1/../2", "ID=tr_1", " id=tr_1", &long]
        {
            assert!(matches!(read(bad), Err(TranslateError::Unintelligible { .. })), "{bad:?}");
        }
        assert!(payment_of_form(b"id=tr_\xff").is_err());
    }

    #[test]
    fn the_order_stands_where_the_setting_says_and_refunds_have_none() {
        let orders = |path: Option<&str>, fixture: &str| {
            let order_reference = path.map(|path| path.split('.').map(str::to_owned).collect());
            let fixtures = tests::fixtures(&Mollie);
            let (_, body) = fixtures.iter().find(|(name, _)| name == fixture).unwrap();
            let account = Account { order_reference, ..account() };
            let events = Mollie.translate(&tests::envelope(&Mollie, body), &account).unwrap();
            let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
            orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(orders(None, "payment.paid"), ["ORD-1001"]);
        assert_eq!(orders(Some("description"), "payment.paid"), ["Order ORD-1001"]);
        assert_eq!(orders(Some("metadata"), "payment.paid.string_metadata"), ["ORD-1001"]);
        assert_eq!(orders(None, "payment.paid.string_metadata"), [""; 0]);
        assert_eq!(orders(Some("metadata"), "payment.paid"), [""; 0], "an object is no order's id");
        for path in [None, Some("metadata.order_id"), Some("description")] {
            assert_eq!(orders(path, "refund.refunded"), [""; 0], "{path:?}");
        }
    }

    #[test]
    fn a_key_of_the_other_mode_is_refused_at_start() {
        let setting = |change: &dyn Fn(&mut Account)| {
            let mut account = account();
            change(&mut account);
            Mollie.check(&account).map_err(|error| error.setting)
        };
        let key = |text: &'static str| move |account: &mut Account| account.api.key = Some(Secret::new("api_key", text));
        assert_eq!(setting(&key("test_invented")), Ok(()));
        assert_eq!(setting(&key("access_invented")), Ok(()));
        assert_eq!(setting(&key("live_invented")), Err("api_key"));
        let live = |text| {
            move |account: &mut Account| {
                key(text)(account);
                account.mode = Mode::Live;
            }
        };
        assert_eq!(setting(&live("live_invented")), Ok(()));
        assert_eq!(setting(&live("test_invented")), Err("api_key"));
        assert_eq!(setting(&|account| account.api.merchant_id = Some("pfl_QkEhN94Ba".to_owned())), Ok(()));
        assert_eq!(setting(&|account| account.api.merchant_id = Some("pfl_1&x=y".to_owned())), Err("merchant_id"));
    }

    // ------------------------------------------------------------------------------------------------- questions

    #[test]
    fn questions_are_asked_as_mollie_reads_them() {
        let mut account = account();
        let asked = |request: Result<Request<Bytes>, AskError>| request.unwrap().uri().to_string();
        assert_eq!(
            asked(Mollie.status_request("tr_1", None, &account)),
            "https://api.mollie.com/v2/payments/tr_1?embed=refunds,chargebacks,captures"
        );
        assert_eq!(asked(Mollie.endpoints_request(None, &account)), "https://api.mollie.com/v2/webhooks?limit=250");
        let request = Mollie.endpoints_request(Some("hook_1"), &account).unwrap();
        assert_eq!(request.uri(), "https://api.mollie.com/v2/webhooks?limit=250&from=hook_1");
        assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
        assert!(!format!("{request:?}").contains("sk_test_invented"), "the key shows in a log");

        account.api.key = Some(Secret::new("api_key", "access_invented"));
        account.api.merchant_id = Some("pfl_1".to_owned());
        account.api.url = Some("http://127.0.0.1:4242".to_owned());
        assert_eq!(
            asked(Mollie.status_request("tr_1", None, &account)),
            "http://127.0.0.1:4242/v2/payments/tr_1?embed=refunds,chargebacks,captures&testmode=true"
        );
        assert_eq!(
            asked(Mollie.events_request(tests::WHOLE, None, &account)),
            "http://127.0.0.1:4242/v2/payments?limit=250&profileId=pfl_1&testmode=true"
        );
        account.mode = Mode::Live;
        assert_eq!(asked(Mollie.endpoints_request(None, &account)), "http://127.0.0.1:4242/v2/webhooks?limit=250");
        account.api.key = None;
        assert_eq!(Mollie.status_request("tr_1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn a_sweep_goes_back_to_its_beginning_in_each_list() {
        let account = account();
        let asked_for = |cursor| {
            let request = Mollie.events_request(tests::WHOLE, cursor, &account).unwrap();
            request.uri().to_string().replace("https://api.mollie.com/v2/", "")
        };
        assert_eq!(asked_for(None), "payments?limit=250");
        assert_eq!(asked_for(Some("payments:tr_9")), "payments?limit=250&from=tr_9");
        assert_eq!(asked_for(Some("chargebacks")), "chargebacks?limit=250");

        let window = tests::since(Timestamp::parse_rfc3339("2026-09-21T12:00:00Z").unwrap());
        let refund = |id: &str, at: &str| {
            json!({"resource": "refund", "id": id, "paymentId": "tr_1", "status": "refunded", "mode": "test",
                "amount": {"value": "1.00", "currency": "EUR"}, "createdAt": at})
        };
        let read = |times: &[&str]| {
            let refunds: Vec<_> = times.iter().enumerate().map(|(number, at)| refund(&format!("re_{number}"), at)).collect();
            let next = json!({ "href": "https://api.mollie.com/v2/refunds?from=re_99&limit=250" });
            let body = json!({ "_embedded": { "refunds": refunds }, "_links": { "next": next } }).to_string();
            let answer = Mollie.read_events(window, &asked(Some("refunds")), &response(body.as_bytes()), &account).unwrap();
            (answer.events.len(), answer.next.unwrap())
        };
        let (late, early) = ("2026-09-21T12:00:00+00:00", "2026-09-21T11:59:59+00:00");
        assert_eq!(read(&[late, late]), (2, "refunds:re_99".to_owned()));
        assert_eq!(read(&[late, early]), (1, "chargebacks".to_owned()), "the rest was made before");
        assert_eq!(read(&[early, late, early]), (1, "refunds:re_99".to_owned()), "in no order: who knows what is behind");
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = account();
        for id in ["", "tr_", "re_1", "tr_1/../x", "tr_1?x", "tr_1%2e", "tr_é", "tr_1 ", "tr_1&embed=x"] {
            assert_eq!(Mollie.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        assert!(Mollie.status_request("tr_1", Some("x"), &account).is_err());
        for cursor in ["", "payments:", "captures", "payments:tr_1&x", "payments:tr_1:1", "tr_1"] {
            assert!(Mollie.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
        assert!(Mollie.endpoints_request(Some("hook_1#"), &account).is_err());
    }

    // --------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "tr_5B8cwTestPayment", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(body: &[u8]) -> Result<Answer, ReadError> {
        Mollie.read_status(&asked(None), &response(body), &account())
    }

    fn read_events(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Mollie.read_events(tests::WHOLE, &asked(cursor), &response(body), &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        let answer = read_status(include_bytes!("fixtures/mollie/answers/payment.json")).unwrap();
        assert_eq!((answer.next, answer.unread), (None, Vec::new()));
        insta::assert_json_snapshot!("mollie-answer-payment", answer.events);
        let order = Reference::new(ReferenceKind::Order, "ORD-1001");
        assert!(answer.events.iter().all(|event| event.is_answer() && event.references.contains(&order)));

        let endpoints = Mollie.read_endpoints(&response(include_bytes!("fixtures/mollie/answers/webhooks.json"))).unwrap();
        assert_eq!(endpoints.next, None);
        insta::assert_json_snapshot!("mollie-answer-webhooks", endpoints.endpoints);
    }

    #[test]
    fn lists_are_followed_to_their_end() {
        let payments = read_events(None, include_bytes!("fixtures/mollie/answers/payments.json")).unwrap();
        assert_eq!(payments.next.as_deref(), Some("payments:tr_older1"));
        let keys: Vec<&str> = payments.events.iter().map(|event| event.key.event_id.as_str()).collect();
        assert_eq!(keys, ["poll:tr_5B8cwTestPayment:look-7", "poll:tr_open1:look-7"]);
        let [unread] = &payments.unread[..] else { panic!("{:?}", payments.unread) };
        assert_eq!(unread.event_id, "tr_odd1", "it holds up no others, and is not lost");

        let refunds = include_bytes!("fixtures/mollie/answers/refunds.json");
        let refunds = read_events(Some("refunds"), refunds).unwrap();
        assert_eq!((refunds.events.len(), refunds.next.as_deref()), (1, Some("chargebacks")));
        let chargebacks = read_events(Some("chargebacks"), include_bytes!("fixtures/mollie/answers/chargebacks.json")).unwrap();
        assert_eq!((chargebacks.events.len(), chargebacks.next), (1, None));
    }

    #[test]
    fn a_page_that_leads_nowhere_is_refused() {
        let page = |ids: &[&str], next: serde_json::Value| {
            let webhook = |id: &&str| json!({"id": id, "url": "https://x", "status": "enabled", "eventTypes": [], "createdAt": "2026-01-01T00:00:00Z"});
            let items: Vec<_> = ids.iter().map(webhook).collect();
            response(json!({ "_embedded": { "webhooks": items }, "_links": { "next": next } }).to_string().as_bytes())
        };
        let next = |from: &str| json!({ "href": format!("https://api.mollie.com/v2/webhooks?limit=250{from}") });
        let good = Mollie.read_endpoints(&page(&["hook_1"], next("&from=hook_2"))).unwrap();
        assert_eq!((good.endpoints.len(), good.next.as_deref()), (1, Some("hook_2")));
        for (ids, next) in [
            (&[][..], next("&from=hook_2")),
            (&["hook_1", "hook_2"], next("&from=hook_2")),
            (&["hook_1"], next("")),
            (&["hook_1"], next("&from=")),
            (&["hook_1"], next("&from=a/b")),
            (&["hook_1"], json!("hook_2")),
        ] {
            assert!(matches!(Mollie.read_endpoints(&page(ids, next)), Err(ReadError::Unintelligible(_))), "{ids:?}");
        }
        let many = vec!["hook_1"; PAGE + 1];
        assert!(Mollie.read_endpoints(&page(&many, json!(null))).is_err());
        assert!(read_events(None, br#"{"_embedded":{"orders":[]}}"#).is_err());
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, more, state, captured, is_final) in [
            ("open", json!({}), PaymentState::Pending, None, false),
            ("pending", json!({}), PaymentState::Pending, None, false),
            ("authorized", json!({}), PaymentState::Authorized, None, false),
            (
                "authorized",
                json!({ "amountCaptured": { "currency": "EUR", "value": "1.00" } }),
                PaymentState::Captured,
                Some(100),
                false,
            ),
            ("paid", json!({}), PaymentState::Captured, Some(4999), true),
            (
                "paid",
                json!({ "amountCaptured": { "currency": "EUR", "value": "0.00" } }),
                PaymentState::Captured,
                Some(4999),
                true,
            ),
            (
                "paid",
                json!({ "amountCaptured": { "currency": "EUR", "value": "20.00" } }),
                PaymentState::Captured,
                Some(2000),
                false,
            ),
            (
                "paid",
                json!({ "amountRefunded": { "currency": "EUR", "value": "49.99" } }),
                PaymentState::Captured,
                Some(4999),
                true,
            ),
            ("canceled", json!({}), PaymentState::Canceled, None, false),
            ("expired", json!({}), PaymentState::Expired, None, false),
            ("expired", json!({ "authorizedAt": "2026-01-01T00:00:00Z" }), PaymentState::AuthorizationExpired, None, false),
            ("failed", json!({}), PaymentState::Failed, None, false),
            ("failed", json!({ "authorizedAt": "2026-01-01T00:00:00Z" }), PaymentState::Canceled, None, false),
            ("dreaming", json!({}), PaymentState::Pending, None, false),
        ] {
            let mut payment =
                json!({"id": "tr_5B8cwTestPayment", "status": status, "amount": {"currency": "EUR", "value": "49.99"}});
            payment.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = read_status(payment.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            let told = (fact.state, fact.captured.map(|money| money.minor), fact.capture_final);
            assert_eq!(told, (state, captured, is_final), "{payment}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let payment = |more: serde_json::Value| {
            let mut payment =
                json!({"id": "tr_5B8cwTestPayment", "status": "paid", "amount": {"currency": "EUR", "value": "49.99"}});
            payment.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read_status(payment.to_string().as_bytes())
        };
        assert!(payment(json!({})).is_ok());
        let refund =
            json!({"id": "re_1", "status": "refunded", "amount": {"currency": "EUR", "value": "1.00"}, "paymentId": "tr_2"});
        for more in [
            json!({ "id": "tr_2" }),
            json!({ "resource": "order" }),
            json!({ "_embedded": { "refunds": [refund] } }),
            json!({ "_embedded": { "refunds": {} } }),
            json!({ "amount": 4999 }),
        ] {
            assert!(matches!(payment(more.clone()), Err(ReadError::Unintelligible(_))), "{more}");
        }
        assert!(matches!(read_status(b"<html>"), Err(ReadError::Unintelligible(_))));
    }
}
