//! Mollie: payments, refunds, captures, chargebacks; by webhooks of both kinds.
//!
//! Sources: docs.mollie.com/reference (webhooks, webhooks-new, payments, refunds, chargebacks, captures, webhooks-api), the
//! OpenAPI description of 2026-08, and what Mollie's SDKs do (mollie-api-py 1.10, mollie-api-typescript 1.12), where they are
//! not laxer than their own documentation. Mollie publishes addresses, but advises against filtering by them.
//!
//! **Signature**, next-gen: `X-Mollie-Signature: sha256=<64 lowercase hex>`, HMAC-SHA256 over the raw body; the key is the
//! secret as text. The prefix may be missing, as in Mollie's own examples. While a secret is rotated the header comes once for
//! each secret, for 24 hours, and proxies may join them with commas: any match is one. No time is signed. Without the header
//! the SDKs take a webhook for a classic one; here it is refused.
//!
//! **Classic** webhooks are the form `id=tr_…`, unsigned and the same for every change of the payment: a token in the path, and
//! a hint. So is, though it is signed, a next-gen webhook without the object (the "simple payload"), or with the object alone,
//! as some of Mollie's pages show it: it tells of which payment to ask.
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
//! their payment was made, so their lists are read, too.
//!
//! **Keys** `test_…` and `live_…` have their mode in them. Organisation tokens (`access_…`), which alone may list webhooks, are
//! told it by `testmode`, and the profile by the setting `merchant_id`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use serde::Deserialize;
use serde::de::IgnoredAny;
use subtle::{Choice, ConstantTimeEq as _};

use super::json::{self, Node, Problem};
use super::signature::{self, HEADER_BYTES_MAX, SIGNATURES_MAX};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Answer, AskError, Asked, Endpoint, EndpointList, Keys, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, answer, ask,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    ANSWER_PREFIX, CaptureState, DisputeState, Fact, FactVersion, Failure, Mode, PaymentEvent, PaymentFact, PaymentState,
    RefundState, Source,
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
    mapping_version: 1,
    schemes: &[Scheme::signed(NEXT_GEN), Scheme { name: CLASSIC, proof: Proof::Hint, token_in_path: true }],
    can: Abilities { payment_status: true, event_list: true, endpoint_list: true },
    sources: &[],
};

impl Psp for Mollie {
    fn id(&self) -> &'static str {
        "mollie"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
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
            proof: if head.is_notice() { Proof::Hint } else { Proof::Proven },
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        // A form never begins so, and of what is still on its way the account's scheme may have changed.
        let payment_id = if envelope.body.starts_with(b"{") {
            let value = json::read(&envelope.body)?;
            noticed_payment(&Node::root(&value))?.to_owned()
        } else {
            payment_of_form(&envelope.body)?.to_owned()
        };
        Ok(vec![payment_id])
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
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

    /// Newest first: payments, then refunds, then chargebacks, each until they were made before `since`.
    fn events_request(&self, since: Timestamp, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let place = Place::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        let (list, from, limit) = match (place.after, place.list.next_swept()) {
            // All that is left in this list is older still.
            (Some((_, seen_to)), Some(next)) if seen_to < since => (next, None, PAGE),
            // So is all in the last one; by a page of a single object the reader, who does not know `since`, sees the end.
            (Some((from, seen_to)), None) if seen_to < since => (place.list, Some(from), 1),
            (after, _) => (place.list, after.map(|(from, _)| from), PAGE),
        };
        get(account, &format!("/v2/{}?limit={limit}{}", list.list(), from_item(from)), &profile(account))
    }

    fn read_events(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let root = Node::root(&value);
        let embedded = root.object("_embedded")?;
        // By what is in it, since the request may have passed over the rest of a list.
        let swept = [Kind::Payment, Kind::Refund, Kind::Chargeback];
        let Some(kind) = swept.into_iter().find(|kind| embedded.optional(kind.list()).is_some()) else {
            return Err(embedded.problem("none of the lists that are asked for").into());
        };
        let page = Page::read(&root, kind.list())?;
        let at = answer::date(response).unwrap_or(asked.at);
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: None };
        for (object, id) in page.items.iter().zip(&page.ids) {
            match kind.findings(object, account) {
                Ok(findings) => found.events.extend(findings.into_iter().map(|finding| finding.answer(asked, at, account))),
                Err(problem) => {
                    let event_id = format!("{ANSWER_PREFIX}{id}:{}", asked.look_id);
                    found.unread.push(Unread { event_id, error: problem.into() });
                }
            }
        }
        found.next = match (page.next, page.items.last()) {
            // A single one was asked for, to see the end.
            (Some(_), Some(_)) if page.ids.len() == 1 && kind.next_swept().is_none() => None,
            (Some(from), Some(last)) => {
                let made = telling::time(last, "createdAt")?;
                Some(format!("{}:{from}:{}", kind.list(), made.millis()))
            }
            _ => kind.next_swept().map(|next| next.list().to_owned()),
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
    #[serde(rename = "_embedded")]
    embedded: Option<Embedded>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Embedded {
    entity: Option<IgnoredAny>,
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

    /// An event that names its object without showing it, or an object of which no event tells when it was so.
    fn is_notice(&self) -> bool {
        let shown = self.embedded.as_ref().is_some_and(|embedded| embedded.entity.is_some());
        self.is_bare_object() || (!shown && Kind::of_event(&self.event_type).is_some())
    }

    fn is_bare_object(&self) -> bool {
        self.event_type.is_empty() && Kind::of_resource(&self.resource).is_some()
    }
}

// ----------------------------------------------------------------------------------------------------------- hints

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
        let order =
            if self == Self::Payment { telling::order(object, account, &[&["metadata", "order_id"]]) } else { None };
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
    /// The object to go on with, and when the last one before it was made.
    after: Option<(&'a str, Timestamp)>,
}

impl<'a> Place<'a> {
    /// Reads a cursor: none, `<list>`, `<list>:<id>:<milliseconds>`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { list: Kind::Payment, after: None }) };
        let mut parts = cursor.split(':');
        let name = parts.next()?;
        let list = [Kind::Payment, Kind::Refund, Kind::Chargeback].into_iter().find(|kind| kind.list() == name)?;
        let after = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(from), Some(millis), None) if ask::is_id(from, b"_") => {
                Some((from, Timestamp::from_millis(millis.parse().ok()?)))
            }
            _ => return None,
        };
        Some(Self { list, after })
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
