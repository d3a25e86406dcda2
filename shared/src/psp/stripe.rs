//! Stripe: payment intents, charges, refunds, disputes, Checkout.
//!
//! Sources: docs.stripe.com/webhooks, /api, and what Stripe's SDKs do (stripe-python 16, stripe-node 23), where they are
//! not laxer than their own documentation.
//!
//! **Signature.** `Stripe-Signature: t=<seconds>,v1=<64 lowercase hex>[,…]`; HMAC-SHA256 over the literal `t`, a dot and
//! the raw body; the key is the whole secret as text, with its `whsec_`. Stricter than the SDKs: two `t` are refused, a
//! time in the future is refused like one in the past, `t` has no leading zero.
//!
//! **Amounts** pass through as Stripe's minor units. For display only: Stripe counts ISK and UGX with two decimals, the
//! last two always `00`, although ISO 4217 gives them none.
//!
//! **Versions.** Stripe's objects carry no version number. A fact from an event has the event's `created`, a fact from an
//! answer has the answer's `Date`; both count seconds. Within one second the published ranks of the states decide.
//!
//! **Payments** are payment intents. A charge's events repeat its intent's and are ignored, unless no intent made it (the
//! older API): then the charge is the payment, and its id the payment's id.
//!
//! **Refunds** are told twice: `charge.refunded` as a cumulative figure, `refund.*` singly. Each event gives one fact.
//! From an answer, the figure comes with the list of the single refunds (`expand[]=data.charge`), from its last page, so
//! that no single refund in the list is newer than the figure that it is part of.

mod endpoint;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq as _};

use super::json::{self, Node, Problem};
use super::signature::{self, Matching, SIGNATURES_MAX};
use super::{
    Abilities, Account, Answer, AskError, Asked, ChangedEndpoint, Endpoint, EndpointChange, EndpointList, Keys, LateChanges,
    Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WantedEndpoint,
    WebhookRequest, Window, answer, ask, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    ANSWER_PREFIX, DisputeState, EventKey, Fact, FactVersion, Failure, Mode, PaymentEvent, PaymentFact, PaymentState, Reference,
    ReferenceKind, RefundState, Source,
};

/// The adapter.
pub struct Stripe;

const SIGNATURE: &str = "stripe-signature";
const API: &str = "https://api.stripe.com";
/// The version that the SDKs of 2026 pin: answers keep this shape whatever the account's default becomes.
const API_VERSION: &str = "2026-10-28.endive";
/// Stripe's largest page.
const PAGE: usize = 100;
/// The longest of Stripe's ids (docs.stripe.com/upgrades: at most 255 characters).
const ID_BYTES_MAX: usize = 255;

static PROFILE: Profile = Profile {
    name: "Stripe",
    translate_headers: &[],
    // Not published: "quickly"; the plan is for 5 s.
    timeout: Duration::from_secs(5),
    retry_window: Duration::from_hours(3 * 24),
    usual_delay: Duration::from_mins(1),
    // Of 25 that an endpoint of its API takes.
    asks_per_second: 20,
    mapping_version: 1,
    schemes: &[Scheme::signed("stripe-v1")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::All, endpoint_list: true },
    // docs.stripe.com/api/events: of the last 30 days.
    list: Some(Listing {
        reach: Some(Duration::from_hours(30 * 24)),
        every: Duration::from_mins(5),
        is_log: true,
        ..Listing::USUAL
    }),
    // https://stripe.com/files/ips/ips_webhooks.txt as of 2026-05-15; changes are announced seven days ahead.
    sources: &[
        "3.18.12.63/32",
        "3.69.109.8/32",
        "3.120.168.93/32",
        "3.130.192.231/32",
        "13.235.14.237/32",
        "13.235.122.149/32",
        "18.211.135.69/32",
        "35.154.171.200/32",
        "35.157.207.129/32",
        "52.15.183.38/32",
        "54.88.130.119/32",
        "54.88.130.237/32",
        "54.187.174.169/32",
        "54.187.205.235/32",
        "54.187.216.72/32",
    ],
};

/// What the sweep asks for: Stripe takes at most 20 types. Left out are those that only say "still pending"
/// (`payment_intent.{processing,requires_action,partially_funded}`, `charge.{pending,updated}`), a failure that the older API
/// tells (`charge.failed`), and `charge.dispute.funds_*`, which say no more than the dispute's other events. Of charges there
/// are two, for payments that no intent made.
const SWEPT_TYPES: [&str; 20] = [
    "payment_intent.created",
    "payment_intent.amount_capturable_updated",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "charge.expired",
    "charge.refunded",
    "charge.refund.updated",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.succeeded",
    "charge.captured",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
];

impl Psp for Stripe {
    fn id(&self) -> &'static str {
        "stripe"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Developers, Webhooks (Workbench: Webhooks tab)"
    }

    fn wanted_endpoint(&self, _account: &Account) -> Option<WantedEndpoint> {
        Some(endpoint::WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        for secret in &account.keys.secrets {
            if ["sk_", "rk_", "pk_"].iter().any(|prefix| secret.expose().starts_with(prefix)) {
                let problem = format!("{} is an API key; the signing secret begins with whsec_", secret.name());
                return Err(SettingError { setting: "secrets", problem });
            }
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let header = SignatureHeader::read(signature::exactly_one(request.headers, SIGNATURE)?)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let mut matching = Matching::new();
        for (position, secret) in keys.active(now) {
            let mac = signature::hmac_sha256(secret.expose().as_bytes(), &[header.time.as_bytes(), b".", request.body]);
            let equal = header.signatures().fold(Choice::from(0), |equal, offered| equal | offered.ct_eq(&mac));
            matching.note(position, equal);
        }
        let secret_name = matching.secret_name(keys)?;
        signature::within_tolerance(header.seconds, now, keys.tolerance_s)?;

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

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        translate_event(&Node::root(&value), account, Source::Webhook).map(|event| vec![event])
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let payment = Payment::of(payment_id).ok_or_else(|| AskError::MalformedId(payment_id.to_owned()))?;
        match StatusStep::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))? {
            StatusStep::Payment => get(account, &format!("/v1/{}/{payment_id}", payment.path)),
            StatusStep::Refunds { after } => {
                let query = format!("{}={payment_id}&expand[]=data.charge&limit={PAGE}", payment.filter);
                get(account, &format!("/v1/refunds?{query}{}", starting_after(after)))
            }
            StatusStep::Disputes { after } => {
                let query = format!("{}={payment_id}&limit={PAGE}", payment.filter);
                get(account, &format!("/v1/disputes?{query}{}", starting_after(after)))
            }
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        match step {
            StatusStep::Payment => look.payment(&Node::root(&value)),
            StatusStep::Refunds { after } => look.refunds(&Page::read(&Node::root(&value), after)?),
            StatusStep::Disputes { after } => look.disputes(&Page::read(&Node::root(&value), after)?),
        }
    }

    /// Newest first, which is all that `starting_after` can do; 30 days back at most.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let types: String = SWEPT_TYPES.iter().flat_map(|name| ["&types[]=", name]).collect();
        let ((since_s, until_s), after) = (window.seconds(), starting_after(checked_cursor(cursor)?));
        get(account, &format!("/v1/events?created[gte]={since_s}&created[lte]={until_s}{types}&limit={PAGE}{after}"))
    }

    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), asked.cursor)?;
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: page.next.map(str::to_owned) };
        for (event, id) in page.items.iter().zip(&page.ids) {
            telling::not_before(window, &telling::unix_time(event, "created"), event)?;
            match translate_event(event, account, Source::Reconciliation) {
                Ok(event) => found.events.push(event),
                Err(TranslateError::Ignored(_)) => {}
                Err(error) => found.unread.push(Unread { event_id: (*id).to_owned(), error }),
            }
        }
        Ok(found)
    }

    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        get(account, &format!("/v1/webhook_endpoints?limit={PAGE}{}", starting_after(checked_cursor(cursor)?)))
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let page = Page::read(&Node::root(&value), None)?;
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

/// The header, its grammar checked, nothing of it copied.
struct SignatureHeader<'h> {
    text: &'h str,
    /// The literal `t`, which is what was signed.
    time: &'h str,
    seconds: i64,
}

impl<'h> SignatureHeader<'h> {
    fn read(text: &'h str) -> Result<Self, Rejection> {
        let malformed = |problem| Rejection::MalformedHeader { header: SIGNATURE, problem };
        if text.contains(' ') {
            return Err(malformed("it has spaces"));
        }
        let (mut time, mut offered) = (None, 0);
        for element in text.split(',') {
            match element.split_once('=').ok_or_else(|| malformed("an element is no key=value"))? {
                ("t", _) if time.is_some() => return Err(malformed("it has two times")),
                ("t", value) => time = Some(value),
                ("v1", _) => offered += 1,
                ("", _) => return Err(malformed("an element has no key")),
                _ => {}
            }
        }
        let time = time.ok_or_else(|| malformed("it has no time"))?;
        let seconds = signature::seconds(time).ok_or_else(|| malformed("its time is no plain number of seconds"))?;
        let header = Self { text, time, seconds };
        match offered {
            // `v0` is for Stripe's own tests: taking it would be a downgrade.
            0 => Err(Rejection::NoUsableSignature("only v1 is accepted")),
            1..=SIGNATURES_MAX if header.signatures().next().is_some() => Ok(header),
            1..=SIGNATURES_MAX => Err(malformed("a v1 is not 64 lowercase hex digits")),
            _ => Err(malformed("it has too many signatures")),
        }
    }

    /// The well-formed `v1` signatures; an ill-formed one beside them can match nothing.
    fn signatures(&self) -> impl Iterator<Item = [u8; 32]> + 'h {
        self.text.split(',').filter_map(|element| element.strip_prefix("v1=")).filter_map(signature::lower_hex)
    }
}

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    // Not `Option<Cow>`, which serde would copy.
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

    fn id(&self) -> Option<&str> {
        Some(self.id.as_ref()).filter(|id| json::is_name(id))
    }

    fn event_type(&self) -> Option<&str> {
        Some(self.event_type.as_ref()).filter(|event_type| json::is_name(event_type))
    }
}

// ------------------------------------------------------------------------------------------------------ translation

/// An event object, from a webhook or from the list of events: the same event gives the same facts.
fn translate_event(event: &Node<'_>, account: &Account, source: Source) -> Result<PaymentEvent, TranslateError> {
    if event.text("object").is_some_and(|object| object.starts_with("v2.")) {
        return Err(TranslateError::Ignored("a thin event: it carries no object, only a notice".to_owned()));
    }
    let event_type = event.name("type")?;
    let Some(family) = Family::of(event_type) else {
        return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
    };
    let created = telling::unix_time(event, "created")?;
    let data = event.object("data")?;
    let object = data.object("object")?;
    if object.text("object").is_some_and(|name| name != family.object()) {
        return Err(object.required("object")?.problem("contradicts the event's type").into());
    }
    let (payment_id, fact) = match family {
        Family::Intent => (object.name("id")?, intent_fact(event_type, &object)?),
        Family::Charge => {
            if object.optional("payment_intent").is_some() {
                return Err(TranslateError::Ignored("duplicate of the payment intent's event".to_owned()));
            }
            (object.name("id")?, Fact::Payment(charge_fact(&object)?))
        }
        Family::ChargeExpired => (payment_of_charge(&object)?, expired_charge(&object)?),
        Family::ChargeRefunded => {
            if object.optional_bool("captured")? == Some(false) {
                return Err(TranslateError::Ignored("the release of an authorisation: nothing was captured".to_owned()));
            }
            (payment_of_charge(&object)?, refund_total(&object)?)
        }
        Family::Refund => {
            let payment_id = payment_behind(&object)?
                .ok_or_else(|| TranslateError::Ignored("a refund of no payment (it pays out a customer's balance)".to_owned()))?;
            (payment_id, refund_fact(&object, event_type == "refund.failed")?)
        }
        Family::Dispute => {
            let payment_id = payment_behind(&object)?.ok_or_else(|| object.problem("names neither payment nor charge"))?;
            (payment_id, dispute_fact(&object)?)
        }
        Family::Session => session_fact(event_type, &object)?,
    };
    Ok(PaymentEvent {
        key: key(account, event.name("id")?.to_owned()),
        event_type: event_type.to_owned(),
        occurred_at: created,
        source,
        mode: mode(event)?,
        references: references(&object, payment_id, account)?,
        payment_id: payment_id.to_owned(),
        version: FactVersion::Time(created.millis()),
        fact,
    })
}

/// What kind of object an event type speaks of.
#[derive(Clone, Copy)]
enum Family {
    Intent,
    Charge,
    ChargeExpired,
    ChargeRefunded,
    Refund,
    Dispute,
    Session,
}

impl Family {
    /// `None` for what is none of our business.
    fn of(event_type: &str) -> Option<Self> {
        let family = match event_type {
            "payment_intent.created"
            | "payment_intent.processing"
            | "payment_intent.requires_action"
            | "payment_intent.partially_funded"
            | "payment_intent.amount_capturable_updated"
            | "payment_intent.succeeded"
            | "payment_intent.payment_failed"
            | "payment_intent.canceled" => Self::Intent,
            "charge.expired" => Self::ChargeExpired,
            "charge.refunded" => Self::ChargeRefunded,
            "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => Self::Refund,
            "charge.dispute.created"
            | "charge.dispute.updated"
            | "charge.dispute.closed"
            | "charge.dispute.funds_withdrawn"
            | "charge.dispute.funds_reinstated" => Self::Dispute,
            "checkout.session.completed"
            | "checkout.session.async_payment_succeeded"
            | "checkout.session.async_payment_failed"
            | "checkout.session.expired" => Self::Session,
            "charge.succeeded" | "charge.captured" | "charge.failed" | "charge.pending" | "charge.updated" => Self::Charge,
            _ => return None,
        };
        Some(family)
    }

    /// What Stripe calls the object.
    const fn object(self) -> &'static str {
        match self {
            Self::Intent => "payment_intent",
            Self::Charge | Self::ChargeExpired | Self::ChargeRefunded => "charge",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
            Self::Session => "checkout.session",
        }
    }
}

/// The type decides, since a status may be new to us; where both speak of an end, they must not disagree.
fn intent_fact(event_type: &str, intent: &Node<'_>) -> Result<Fact, TranslateError> {
    let ended_as = |expected: &str| match intent.optional("status") {
        Some(status) if status.as_text() != Some(expected) => Err(status.problem("contradicts the event's type")),
        _ => Ok(()),
    };
    let fact = match event_type {
        "payment_intent.succeeded" => {
            ended_as("succeeded")?;
            captured_intent(intent)?
        }
        "payment_intent.canceled" => {
            ended_as("canceled")?;
            canceled_intent(intent)?
        }
        "payment_intent.payment_failed" => failed_intent(intent)?,
        "payment_intent.amount_capturable_updated" => intent_by_status(intent)?,
        _ => open_intent(intent)?,
    };
    Ok(Fact::Payment(fact))
}

/// Of a payment intent as it stands. An unknown status is pending: it is never a failure and never money.
fn intent_by_status(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    match intent.name("status")? {
        "requires_payment_method" if intent.optional("last_payment_error").is_some() => failed_intent(intent),
        "requires_capture" => capturable_intent(intent),
        "succeeded" => captured_intent(intent),
        "canceled" => canceled_intent(intent),
        _ => open_intent(intent),
    }
}

/// Open. A charge that is on its way is an attempt of its own, so that an earlier one that failed does not hide it.
fn open_intent(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    Ok(PaymentFact { attempt: latest_charge(intent)?.map(str::to_owned), ..PaymentFact::new(PaymentState::Pending) })
}

/// The PSP will take no more: what of the amount is not received was released.
fn captured_intent(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    Ok(PaymentFact {
        attempt: latest_charge(intent)?.map(str::to_owned),
        captured: Some(intent.money("amount_received")?),
        capture_final: true,
        ..PaymentFact::new(PaymentState::Captured)
    })
}

/// Authorised; with multicapture, part of it may be captured already, and the rest still can be.
fn capturable_intent(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    let mut authorized = intent.money("amount_capturable")?;
    let received = intent.optional("amount_received").map(|_| intent.money("amount_received")).transpose()?;
    let captured = received.filter(|received| received.minor > 0);
    if let Some(captured) = captured {
        authorized.minor += captured.minor;
    }
    Ok(PaymentFact {
        attempt: latest_charge(intent)?.map(str::to_owned),
        authorized: Some(authorized),
        captured,
        ..PaymentFact::new(if captured.is_some() { PaymentState::Captured } else { PaymentState::Authorized })
    })
}

fn failed_intent(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    let error = intent.optional("last_payment_error");
    // The error names the charge that failed; authentication can fail before there is a charge.
    let charge = error.as_ref().map(|error| id_of(error, "charge")).transpose()?.flatten();
    let attempt = if charge.is_some() { charge } else { latest_charge(intent)? };
    Ok(PaymentFact {
        attempt: attempt.map(str::to_owned),
        failure: error.as_ref().map(failure),
        ..PaymentFact::new(PaymentState::Failed)
    })
}

/// `automatic` and `expired`: Stripe gave up what nobody captured in time.
fn canceled_intent(intent: &Node<'_>) -> Result<PaymentFact, Problem> {
    let state = match intent.text("cancellation_reason") {
        Some("expired" | "automatic") => PaymentState::AuthorizationExpired,
        _ => PaymentState::Canceled,
    };
    Ok(PaymentFact { attempt: latest_charge(intent)?.map(str::to_owned), ..PaymentFact::new(state) })
}

/// The issuer's reason says more than Stripe's own code. Other than strings are left out: they decide nothing.
fn failure(error: &Node<'_>) -> Failure {
    let code = ["decline_code", "code", "type"].iter().find_map(|key| error.text(key).filter(|code| json::is_name(code)));
    telling::failure(code, error.text("message"))
}

/// Of a charge that no payment intent made, as the older API does: it is the whole payment.
fn charge_fact(charge: &Node<'_>) -> Result<PaymentFact, Problem> {
    let mut fact = PaymentFact::new(PaymentState::Pending);
    match charge.name("status")? {
        "succeeded" if charge.optional_bool("captured")? == Some(true) => {
            fact.state = PaymentState::Captured;
            fact.captured = Some(charge.money("amount_captured")?);
            fact.capture_final = true;
        }
        // An authorisation that was released shows as refunded although nothing was captured.
        "succeeded" if charge.optional_bool("refunded")? == Some(true) => fact.state = PaymentState::Canceled,
        "succeeded" => {
            fact.state = PaymentState::Authorized;
            fact.authorized = Some(charge.money("amount")?);
        }
        "failed" => {
            fact.state = PaymentState::Failed;
            fact.failure = Some(telling::failure(charge.optional_name("failure_code")?, charge.text("failure_message")));
        }
        _ => {}
    }
    fact.attempt = Some(charge.name("id")?.to_owned());
    Ok(fact)
}

fn expired_charge(charge: &Node<'_>) -> Result<Fact, Problem> {
    let attempt = Some(charge.name("id")?.to_owned());
    Ok(Fact::Payment(PaymentFact { attempt, ..PaymentFact::new(PaymentState::AuthorizationExpired) }))
}

/// Of a captured charge. Stripe books what a partial capture releases as refunded, too (`amount_refunded` 375 of a charge of
/// 20675 captured for 20300: woocommerce-gateway-stripe#1073): only what is beyond that went back of captured money.
fn refund_total(charge: &Node<'_>) -> Result<Fact, Problem> {
    let mut amount = charge.money("amount_refunded")?;
    if charge.optional("amount_captured").is_some() && charge.optional("amount").is_some() {
        let released = charge.money("amount")?.minor - charge.money("amount_captured")?.minor;
        amount.minor = (amount.minor - released.max(0)).max(0);
    }
    Ok(Fact::RefundTotal { amount })
}

fn refund_fact(refund: &Node<'_>, failed: bool) -> Result<Fact, Problem> {
    let state = match refund.text("status") {
        _ if failed => RefundState::Failed,
        Some("succeeded") => RefundState::Succeeded,
        Some("failed" | "canceled") => RefundState::Failed,
        // pending, requires_action, none yet, and what is new to us
        _ => RefundState::Pending,
    };
    let created = refund.optional_integer("created")?.map(Timestamp::from_seconds);
    Ok(Fact::Refund { id: refund.name("id")?.to_owned(), state, amount: refund.money("amount")?, created })
}

/// By the status alone: `funds_withdrawn` and `funds_reinstated` move money within the state that the status names.
fn dispute_fact(dispute: &Node<'_>) -> Result<Fact, Problem> {
    let state = match dispute.name("status")? {
        // `prevented`: settled with the issuer before any money was withdrawn.
        "warning_closed" | "prevented" => DisputeState::InquiryClosed,
        status if status.starts_with("warning_") => DisputeState::Inquiry,
        "won" => DisputeState::Won,
        "lost" => DisputeState::Lost,
        // needs_response, under_review, appeal_*, and what is new to us: undecided.
        _ => DisputeState::Open,
    };
    Ok(Fact::Dispute { id: dispute.name("id")?.to_owned(), state, amount: dispute.money("amount")? })
}

/// A session is about its payment intent; without one (subscriptions, or nothing tried yet) about itself.
fn session_fact<'a>(event_type: &str, session: &Node<'a>) -> Result<(&'a str, Fact), TranslateError> {
    let payment_id = match id_of(session, "payment_intent")? {
        Some(intent) => intent,
        None => session.name("id")?,
    };
    let captured = || -> Result<PaymentFact, Problem> {
        let captured = Some(session.money("amount_total")?);
        Ok(PaymentFact { captured, capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
    };
    let fact = match (event_type, session.text("payment_status")) {
        ("checkout.session.async_payment_succeeded", _) | ("checkout.session.completed", Some("paid")) => captured()?,
        ("checkout.session.completed", Some("no_payment_required")) => {
            return Err(TranslateError::Ignored("a session in which nothing is paid".to_owned()));
        }
        ("checkout.session.async_payment_failed", _) => PaymentFact::new(PaymentState::Failed),
        ("checkout.session.expired", _) => PaymentFact::new(PaymentState::Expired),
        _ => PaymentFact::new(PaymentState::Pending),
    };
    Ok((payment_id, Fact::Payment(fact)))
}

/// Every name under which the object's order may be known.
fn references(object: &Node<'_>, payment_id: &str, account: &Account) -> Result<Vec<Reference>, Problem> {
    let order =
        account.order_reference.as_ref().map_or_else(|| object.name_at(&["metadata", "order_id"]), |path| object.name_at(path));
    let mut references: Vec<Reference> = order.map(|order| Reference::new(ReferenceKind::Order, order)).into_iter().collect();
    references.push(Reference::new(ReferenceKind::Payment, payment_id));
    let own = match object.text("object") {
        Some("charge") => Some(ReferenceKind::Charge),
        Some("refund") => Some(ReferenceKind::Refund),
        Some("dispute") => Some(ReferenceKind::Dispute),
        Some("checkout.session") => Some(ReferenceKind::Session),
        _ => None,
    };
    if let Some(own) = own {
        references.push(Reference::new(own, object.name("id")?));
    }
    for charge in [id_of(object, "charge")?, latest_charge(object)?].into_iter().flatten() {
        references.push(Reference::new(ReferenceKind::Charge, charge));
    }
    Ok(references)
}

/// The payment intent of a charge, or the charge itself, as older integrations make it.
fn payment_of_charge<'a>(charge: &Node<'a>) -> Result<&'a str, Problem> {
    match id_of(charge, "payment_intent")? {
        Some(intent) => Ok(intent),
        None => charge.name("id"),
    }
}

/// The payment intent or charge that a refund or dispute is about.
fn payment_behind<'a>(object: &Node<'a>) -> Result<Option<&'a str>, Problem> {
    match id_of(object, "payment_intent")? {
        Some(intent) => Ok(Some(intent)),
        None => id_of(object, "charge"),
    }
}

/// The charge of the latest attempt. Before API version 2022-11-15 an intent listed its charges instead, newest first.
fn latest_charge<'a>(intent: &Node<'a>) -> Result<Option<&'a str>, Problem> {
    if let Some(charge) = id_of(intent, "latest_charge")? {
        return Ok(Some(charge));
    }
    let listed = intent.optional("charges").map(|charges| charges.array("data")).transpose()?;
    listed.and_then(|charges| charges.into_iter().next()).map(|charge| charge.name("id")).transpose()
}

/// An id that may be expanded to the object that it names.
fn id_of<'a>(object: &Node<'a>, key: &str) -> Result<Option<&'a str>, Problem> {
    match object.optional(key) {
        Some(member) if member.as_text().is_none() => object.object(key)?.name("id").map(Some),
        _ => object.optional_name(key),
    }
}

fn mode(object: &Node<'_>) -> Result<Option<Mode>, Problem> {
    Ok(object.optional_bool("livemode")?.map(|live| if live { Mode::Live } else { Mode::Test }))
}

fn key(account: &Account, event_id: String) -> EventKey {
    EventKey { psp: account.psp_id.clone(), account: account.name.clone(), event_id }
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// What kind of object a payment's id names: how to ask for it, and how to ask for what belongs to it.
struct Payment {
    path: &'static str,
    filter: &'static str,
}

impl Payment {
    fn of(id: &str) -> Option<Self> {
        let (prefix, _) = id.split_once('_').filter(|_| is_stripe_id(id))?;
        match prefix {
            "pi" => Some(Self { path: "payment_intents", filter: "payment_intent" }),
            // `py`: a charge of a bank payment.
            "ch" | "py" => Some(Self { path: "charges", filter: "charge" }),
            _ => None,
        }
    }
}

/// Where a look at a payment stands: the payment, then its refunds, then its disputes, page by page.
enum StatusStep<'a> {
    Payment,
    Refunds { after: Option<&'a str> },
    Disputes { after: Option<&'a str> },
}

const REFUNDS: &str = "refunds";
const DISPUTES: &str = "disputes";

impl<'a> StatusStep<'a> {
    /// Reads a cursor: none, `refunds`, `refunds:<id>`, `disputes`, `disputes:<id>`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payment) };
        let (list, after) = cursor.split_once(':').map_or((cursor, None), |(list, after)| (list, Some(after)));
        if after.is_some_and(|after| !is_stripe_id(after)) {
            return None;
        }
        match list {
            REFUNDS => Some(Self::Refunds { after }),
            DISPUTES => Some(Self::Disputes { after }),
            _ => None,
        }
    }
}

/// One answer to one question about one payment.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn payment(&self, payment: &Node<'_>) -> Result<Answer, ReadError> {
        if payment.name("id")? != self.asked.payment_id {
            return Err(payment.required("id")?.problem("another payment than was asked for").into());
        }
        let fact = if payment.text("object") == Some("charge") {
            // The intent's payment is asked for by the intent's id: the same money must not stand under two.
            if payment.optional("payment_intent").is_some() {
                return Err(payment.required("payment_intent")?.problem("a charge that belongs to a payment intent").into());
            }
            charge_fact(payment)?
        } else {
            intent_by_status(payment)?
        };
        // Only what was captured can be refunded or disputed: the open and the failed cost one request.
        let next = fact.captured.is_some_and(|captured| captured.minor > 0).then(|| REFUNDS.to_owned());
        let event = self.event(payment, Fact::Payment(fact))?;
        Ok(Answer { events: vec![event], unread: Vec::new(), next })
    }

    fn refunds(&self, page: &Page<'_>) -> Result<Answer, ReadError> {
        let mut events = self.facts(page, |refund| refund_fact(refund, false))?;
        let next = page.next.map(|last| format!("{REFUNDS}:{last}"));
        if next.is_none() {
            // One payment intent succeeds with one charge: any refund's charge is the one that the figure is about.
            let charge = page.items.iter().find_map(|refund| refund.optional("charge"));
            if let Some(charge) = charge.filter(|charge| charge.as_text().is_none()) {
                events.push(self.event(&charge, refund_total(&charge)?)?);
            }
        }
        Ok(Answer { events, unread: Vec::new(), next: next.or_else(|| Some(DISPUTES.to_owned())) })
    }

    fn disputes(&self, page: &Page<'_>) -> Result<Answer, ReadError> {
        let events = self.facts(page, dispute_fact)?;
        Ok(Answer { events, unread: Vec::new(), next: page.next.map(|last| format!("{DISPUTES}:{last}")) })
    }

    fn facts(&self, page: &Page<'_>, fact: impl Fn(&Node<'_>) -> Result<Fact, Problem>) -> Result<Vec<PaymentEvent>, ReadError> {
        let read = |object: &Node<'_>| {
            if payment_behind(object)? != Some(self.asked.payment_id) {
                return Err(object.problem("of another payment than was asked for"));
            }
            self.event(object, fact(object)?)
        };
        Ok(page.items.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// The key names the object and the look: one look sees an object once.
    fn event(&self, object: &Node<'_>, fact: Fact) -> Result<PaymentEvent, Problem> {
        let id = object.name("id")?;
        Ok(PaymentEvent {
            key: key(self.account, format!("{ANSWER_PREFIX}{id}:{}", self.asked.look_id)),
            event_type: format!("poll:{}", object.optional_name("object")?.unwrap_or("object")),
            occurred_at: self.at,
            source: Source::Reconciliation,
            mode: mode(object)?,
            references: references(object, self.asked.payment_id, self.account)?,
            payment_id: self.asked.payment_id.to_owned(),
            version: FactVersion::Time(self.at.millis()),
            fact,
        })
    }
}

/// A page of any of Stripe's lists.
struct Page<'a> {
    items: Vec<Node<'a>>,
    /// The items' ids.
    ids: Vec<&'a str>,
    /// There is more after this id.
    next: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// Refuses a page that would lead nowhere: empty with more to come, or beginning before where it was asked to.
    fn read(list: &Node<'a>, after: Option<&str>) -> Result<Self, Problem> {
        let items = list.array("data")?;
        if items.len() > PAGE {
            return Err(list.problem("a page larger than was asked for"));
        }
        let ids = items.iter().map(|item| item.name("id")).collect::<Result<Vec<_>, _>>()?;
        if after.is_some_and(|after| ids.contains(&after)) {
            return Err(list.problem("a page that repeats its cursor"));
        }
        let more = list.optional_bool("has_more")?.ok_or_else(|| list.problem("a list that does not say whether it ends"))?;
        let next = match ids.last().copied() {
            None if more => return Err(list.problem("an empty page with more to come")),
            Some(id) if more && !is_stripe_id(id) => return Err(list.problem("an id that is no cursor")),
            id => id.filter(|_| more),
        };
        Ok(Self { items, ids, next })
    }
}

fn endpoint(endpoint: &Node<'_>) -> Result<Endpoint, Problem> {
    let event = |event: Node<'_>| event.as_text().map(str::to_owned).ok_or_else(|| event.problem("not a string"));
    let url = endpoint.required("url")?;
    Ok(Endpoint {
        id: endpoint.name("id")?.to_owned(),
        url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
        enabled: endpoint.name("status")? == "enabled",
        events: endpoint.array("enabled_events")?.into_iter().map(event).collect::<Result<_, _>>()?,
        api_version: endpoint.optional_name("api_version")?.map(str::to_owned),
        mode: mode(endpoint)?,
    })
}

/// Letters, digits and underscores: nothing that could leave its place in a URL.
fn is_stripe_id(text: &str) -> bool {
    let prefixed = text.split_once('_').is_some_and(|(prefix, rest)| !prefix.is_empty() && !rest.is_empty());
    prefixed && text.len() <= ID_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn checked_cursor(cursor: Option<&str>) -> Result<Option<&str>, AskError> {
    match cursor {
        Some(cursor) if !is_stripe_id(cursor) => Err(AskError::MalformedId(cursor.to_owned())),
        _ => Ok(cursor),
    }
}

fn starting_after(id: Option<&str>) -> String {
    id.map(|id| format!("&starting_after={id}")).unwrap_or_default()
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    ask::finish(ask::get(account, API, path_and_query, ask::bearer(account)?).header("stripe-version", API_VERSION))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen, account};
    use super::*;
    use crate::event::Fact;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Stripe,
            scheme: "stripe-v1",
            secret: SECRET,
            other_secret: "whsec_TestOther1mZx0aVYtqk3RjU2eNw5pLs8dHf",
            settings: |_| {},
            sign: |secret, time_s, body| {
                let mac = signature::hmac_sha256(secret.as_bytes(), &[time_s.to_string().as_bytes(), b".", body]);
                (tests::headers([(SIGNATURE, format!("t={time_s},v1={}", hex::encode(mac)))]), body.to_vec())
            },
            body: BODY,
            event_type: Some("payment_intent.created"),
            timed: true,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    const SECRET: &str = "whsec_Test7Qb1mZx0aVYtqk3RjU2eNw5pLs8dHfGc";
    const BODY: &[u8] = br#"{"id":"evt_1","type":"payment_intent.created"}"#;
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn verify(signature: &str) -> Result<Verified, Rejection> {
        let headers =
            [(http::HeaderName::from_static(SIGNATURE), http::HeaderValue::from_str(signature).unwrap())].into_iter().collect();
        super::super::tests::verify(&Stripe, &[SECRET], &headers, BODY)
    }

    fn mac(time: &str) -> String {
        hex::encode(signature::hmac_sha256(SECRET.as_bytes(), &[time.as_bytes(), b".", BODY]))
    }

    #[test]
    fn the_header_has_one_grammar() {
        let good = mac("1790000000");
        let other = "0".repeat(64);
        for header in [
            format!("t=1790000000,v1={good}"),
            format!("v1={good},t=1790000000"),
            format!("t=1790000000,v1={other},v1={good}"),
            format!("t=1790000000,v1={good},v1={other},v0={other},v9=anything"),
            format!("t=1790000000,v1=short,v1={good}"),
        ] {
            assert!(verify(&header).is_ok(), "{header}");
        }
        let many = format!(",v1={good}").repeat(SIGNATURES_MAX + 1);
        for (header, reason) in [
            (format!("t=1790000000,t=1790000000,v1={good}"), "malformed_header"),
            (format!("t=01790000000,v1={}", mac("01790000000")), "malformed_header"),
            (format!("t=+1790000000,v1={}", mac("+1790000000")), "malformed_header"),
            (format!("t=,v1={}", mac("")), "malformed_header"),
            (format!("v1={good}"), "malformed_header"),
            (format!("t=1790000000, v1={good}"), "malformed_header"),
            (format!("t=1790000000,v1={good},"), "malformed_header"),
            (format!("t=1790000000,v1={good},x"), "malformed_header"),
            (format!("t=1790000000,v1={good},=x"), "malformed_header"),
            (format!("t=1790000000,v1={}", good.to_uppercase()), "malformed_header"),
            (format!("t=1790000000,v1={good}00"), "malformed_header"),
            (format!("t=1790000000{many}"), "malformed_header"),
            (format!("t=1790000000,v0={good}"), "no_usable_signature"),
            (format!("t=1790000000,V1={good}"), "no_usable_signature"),
            ("t=1790000000".to_owned(), "no_usable_signature"),
            (format!("t=1790000000,v1={other}"), "signature_mismatch"),
            (format!("t=1790000001,v1={good}"), "signature_mismatch"),
        ] {
            assert_eq!(verify(&header).unwrap_err().reason(), reason, "{header}");
        }
    }

    #[test]
    fn a_webhook_without_a_usable_id_is_named_by_its_body() {
        for (body, id, event_type) in [
            (r#"{"id":"evt_1","type":"x.y","data":{"id":"other"}}"#, Some("evt_1"), Some("x.y")),
            (r#"{"type":"x.y"}"#, None, Some("x.y")),
            (r#"{"id":"","type":"x.y"}"#, None, Some("x.y")),
            (r#"{"id":"a\u0007","type":"x.y"}"#, None, Some("x.y")),
            (r#"{"id":7,"type":"x.y"}"#, None, None),
            (r#"{"id":"evt_1","id":"evt_2","type":"x.y"}"#, None, None),
            (r#"{"id":"evt_1""#, None, None),
            ("not json", None, None),
        ] {
            let head = Head::read(body.as_bytes());
            assert_eq!((head.id(), head.event_type()), (id, event_type), "{body}");
            let envelope = super::super::tests::envelope(&Stripe, body.as_bytes());
            let expected = id.map_or_else(|| signature::body_id(body.as_bytes()), str::to_owned);
            assert_eq!(envelope.webhook_id, expected, "{body}");
        }
    }

    #[test]
    fn the_swept_types_are_those_that_are_translated() {
        for swept in SWEPT_TYPES {
            assert!(Family::of(swept).is_some(), "{swept}");
        }
    }

    #[test]
    fn an_api_key_or_a_broken_url_is_refused_at_start() {
        let setting = |change: fn(&mut Account)| {
            let mut account = account(&Stripe, &[SECRET]);
            change(&mut account);
            Stripe.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting(|_| ()), Ok(()));
        assert_eq!(setting(|account| account.keys.secrets.push(crate::secret::Secret::new("x", "sk_test_1"))), Err("secrets"));
        assert_eq!(setting(|account| account.api.key = Some(crate::secret::Secret::new("x", "a b"))), Err("api_key"));
        assert_eq!(setting(|account| account.api.url = Some("http://127.0.0.1:4242/stripe".to_owned())), Ok(()));
        for bad in ["", "api.stripe.com", "ftp://api.stripe.com", "https://x?y=", "/v1"] {
            let mut account = account(&Stripe, &[SECRET]);
            account.api.url = Some(bad.to_owned());
            assert_eq!(Stripe.check(&account).map_err(|error| error.setting), Err("api_url"), "{bad}");
        }
    }

    // ------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_stripe_reads_them() {
        let mut account = account(&Stripe, &[SECRET]);
        let asked = |request: Result<Request<Bytes>, AskError>| request.unwrap().uri().to_string();
        let status = |cursor| asked(Stripe.status_request("pi_3PbA", cursor, &account));
        assert_eq!(status(None), "https://api.stripe.com/v1/payment_intents/pi_3PbA");
        assert_eq!(
            status(Some("refunds:re_9")),
            "https://api.stripe.com/v1/refunds?payment_intent=pi_3PbA&expand[]=data.charge&limit=100&starting_after=re_9"
        );
        assert_eq!(status(Some("disputes")), "https://api.stripe.com/v1/disputes?payment_intent=pi_3PbA&limit=100");
        let charge = |cursor| asked(Stripe.status_request("ch_1", cursor, &account));
        assert_eq!(charge(None), "https://api.stripe.com/v1/charges/ch_1");
        assert_eq!(charge(Some("disputes")), "https://api.stripe.com/v1/disputes?charge=ch_1&limit=100");
        let events =
            asked(Stripe.events_request(tests::since(Timestamp::from_millis(1_789_999_999_999)), Some("evt_9"), &account));
        let window = "created[gte]=1789999999&created[lte]=1790000000";
        assert!(events.starts_with(&format!("https://api.stripe.com/v1/events?{window}&types[]=payment_intent.created&")));
        assert!(events.ends_with("&limit=100&starting_after=evt_9"));
        assert_eq!(events.matches("types[]=").count(), 20);

        account.api.url = Some("http://127.0.0.1:4242".to_owned());
        let request = Stripe.endpoints_request(None, &account).unwrap();
        assert_eq!(request.uri(), "http://127.0.0.1:4242/v1/webhook_endpoints?limit=100");
        assert_eq!(request.headers()["stripe-version"], API_VERSION);
        assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
        assert!(!format!("{request:?}").contains("sk_test_invented"), "the key shows in a log");

        account.api.key = None;
        assert_eq!(Stripe.status_request("pi_1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = account(&Stripe, &[SECRET]);
        let long = format!("pi_{}", "a".repeat(253));
        for id in ["", "pi_", "cs_1", "xpi_1", "pi_1/../x", "pi_1?x", "pi_1%2e", "pi_é", "pi_1 ", &long] {
            assert_eq!(Stripe.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "refunds:", "refunds:x", "refunds:re_1&x=y", "disputes:dp_1#", "charges", "refunds:re_1:re_2"] {
            assert_eq!(
                Stripe.status_request("pi_1", Some(cursor), &account).unwrap_err(),
                AskError::MalformedId(cursor.to_owned())
            );
        }
        for cursor in ["", "evt", "evt_1&x"] {
            assert!(Stripe.events_request(tests::WHOLE, Some(cursor), &account).is_err());
            assert!(Stripe.endpoints_request(Some(cursor), &account).is_err());
        }
    }

    // -------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "pi_3PbA", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Stripe.read_status(&asked(cursor), &response(body), &account(&Stripe, &[SECRET]))
    }

    #[test]
    fn answers_read_as_recorded() {
        let intent = read_status(None, include_bytes!("fixtures/stripe/answers/intent.json")).unwrap();
        let refunds = read_status(Some("refunds"), include_bytes!("fixtures/stripe/answers/refunds.json")).unwrap();
        let disputes = read_status(Some("disputes"), include_bytes!("fixtures/stripe/answers/disputes.json")).unwrap();
        for (name, answer, next) in
            [("intent", intent, Some("refunds")), ("refunds", refunds, Some("disputes")), ("disputes", disputes, None)]
        {
            assert_eq!(answer.next.as_deref(), next, "{name}");
            insta::assert_json_snapshot!(format!("stripe-answer-{name}"), answer.events);
        }
        let endpoints = Stripe.read_endpoints(&response(include_bytes!("fixtures/stripe/answers/endpoints.json"))).unwrap();
        assert_eq!(endpoints.next, None);
        insta::assert_json_snapshot!("stripe-answer-endpoints", endpoints.endpoints);
    }

    #[test]
    fn listed_events_are_the_webhooks_events() {
        let account = account(&Stripe, &[SECRET]);
        let body = include_bytes!("fixtures/stripe/answers/events.json");
        let answer = Stripe.read_events(tests::WHOLE, &asked(None), &response(body), &account).unwrap();
        let listed: Vec<&str> = answer.events.iter().map(|event| event.event_type.as_str()).collect();
        assert_eq!(listed, ["charge.refunded", "payment_intent.succeeded"]);
        assert_eq!(answer.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
        assert_eq!(
            answer.unread[0].error,
            TranslateError::Unintelligible {
                reason: "not an integer",
                pointer: "/data/2/data/object/amount_received".to_owned()
            }
        );
        assert_eq!(answer.next.as_deref(), Some(answer.events[1].key.event_id.as_str()));

        let sent = super::super::tests::fixtures(&Stripe);
        let (_, sent) = sent.iter().find(|(name, _)| name == "charge.refunded.partial").unwrap();
        let sent = &Stripe.translate(&super::super::tests::envelope(&Stripe, sent), &account).unwrap()[0];
        assert_eq!((&sent.key, sent.facts_sha256()), (&answer.events[0].key, answer.events[0].facts_sha256()));
        assert_eq!((sent.source, answer.events[0].source), (Source::Webhook, Source::Reconciliation));
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        let error = json!({"code": "card_declined", "decline_code": "insufficient_funds", "message": "No.", "charge": "ch_1"});
        for (status, more, state, next) in [
            ("requires_payment_method", json!({}), PaymentState::Pending, None),
            ("requires_payment_method", json!({ "last_payment_error": error }), PaymentState::Failed, None),
            ("requires_confirmation", json!({}), PaymentState::Pending, None),
            ("requires_action", json!({ "last_payment_error": error }), PaymentState::Pending, None),
            ("processing", json!({}), PaymentState::Pending, None),
            ("requires_capture", json!({ "amount_capturable": 4999 }), PaymentState::Authorized, None),
            (
                "requires_capture",
                json!({ "amount_capturable": 1, "amount_received": 2 }),
                PaymentState::Captured,
                Some("refunds"),
            ),
            ("succeeded", json!({ "amount_received": 4999 }), PaymentState::Captured, Some("refunds")),
            ("canceled", json!({}), PaymentState::Canceled, None),
            ("canceled", json!({ "cancellation_reason": "abandoned" }), PaymentState::Canceled, None),
            ("canceled", json!({ "cancellation_reason": "expired" }), PaymentState::AuthorizationExpired, None),
            ("canceled", json!({ "cancellation_reason": "automatic" }), PaymentState::AuthorizationExpired, None),
            ("requires_patience", json!({ "last_payment_error": error }), PaymentState::Pending, None),
        ] {
            let mut intent = json!({"id": "pi_3PbA", "object": "payment_intent", "currency": "eur", "status": status});
            intent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = read_status(None, intent.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, answer.next.as_deref()), (state, next), "{intent}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    #[test]
    fn a_charge_of_no_intent_is_a_payment_of_its_own() {
        let read = |charge: serde_json::Value| {
            let asked = Asked { payment_id: "ch_1", ..asked(None) };
            Stripe.read_status(&asked, &response(charge.to_string().as_bytes()), &account(&Stripe, &[SECRET]))
        };
        let charge = |status: &str, captured: bool, refunded: bool| {
            json!({"id": "ch_1", "object": "charge", "status": status, "captured": captured, "refunded": refunded, "amount": 5,
                "amount_captured": 4, "currency": "eur", "failure_code": "card_declined", "failure_message": "No."})
        };
        for (status, captured, refunded, state) in [
            ("succeeded", true, false, PaymentState::Captured),
            ("succeeded", true, true, PaymentState::Captured),
            ("succeeded", false, false, PaymentState::Authorized),
            ("succeeded", false, true, PaymentState::Canceled),
            ("failed", false, false, PaymentState::Failed),
            ("pending", false, false, PaymentState::Pending),
            ("dreaming", false, false, PaymentState::Pending),
        ] {
            let answer = read(charge(status, captured, refunded)).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, fact.attempt.as_deref(), answer.next.is_some()), (state, Some("ch_1"), captured), "{status}");
        }
        let mut of_intent = charge("succeeded", true, false);
        of_intent["payment_intent"] = "pi_3PbA".into();
        assert!(matches!(read(of_intent), Err(ReadError::Unintelligible(_))));
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let unintelligible =
            |cursor: Option<&str>, body: serde_json::Value| match read_status(cursor, body.to_string().as_bytes()) {
                Err(ReadError::Unintelligible(why)) => why,
                other => panic!("{other:?}"),
            };
        let refund = |id: &str, intent: &str| json!({"id": id, "object": "refund", "amount": 1, "currency": "eur", "payment_intent": intent});
        let mine = refund("re_1", "pi_3PbA");
        assert!(unintelligible(None, json!({"id": "pi_other", "status": "succeeded"})).contains("another payment"));
        for (cursor, body) in [
            (None, json!({"object": "list", "data": [], "has_more": false})),
            (Some("charges"), json!({})),
            (Some("refunds"), json!({"data": [refund("re_1", "pi_other")], "has_more": false})),
            (Some("refunds"), json!({"data": [], "has_more": true})),
            (Some("refunds"), json!({"data": [mine]})),
            (Some("refunds:re_1"), json!({"data": [mine], "has_more": true})),
            (Some("refunds"), json!({"data": vec![mine.clone(); PAGE + 1], "has_more": false})),
            (Some("disputes"), json!({"data": {}, "has_more": false})),
        ] {
            unintelligible(cursor, body);
        }
        let account = account(&Stripe, &[SECRET]);
        let empty = response(br#"{"data":[],"has_more":true}"#);
        assert!(matches!(Stripe.read_events(tests::WHOLE, &asked(None), &empty, &account), Err(ReadError::Unintelligible(_))));
        assert!(matches!(Stripe.read_endpoints(&empty), Err(ReadError::Unintelligible(_))));
        assert!(matches!(read_status(None, b"<html>"), Err(ReadError::Unintelligible(_))));
    }

    #[test]
    fn lists_are_followed_to_their_end() {
        let page = |ids: &[&str], more: bool| {
            let refund = |id: &&str| {
                json!({"id": id, "object": "refund", "amount": 1, "currency": "eur", "payment_intent": "pi_3PbA",
                "charge": {"id": "ch_1", "object": "charge", "amount_refunded": 3, "currency": "eur"}})
            };
            json!({"data": ids.iter().map(refund).collect::<Vec<_>>(), "has_more": more}).to_string()
        };
        let first = read_status(Some("refunds"), page(&["re_3", "re_2"], true).as_bytes()).unwrap();
        assert_eq!((first.next.as_deref(), first.events.len()), (Some("refunds:re_2"), 2));
        let last = read_status(Some("refunds:re_2"), page(&["re_1"], false).as_bytes()).unwrap();
        assert_eq!(last.next.as_deref(), Some("disputes"));
        let total = &last.events.last().unwrap();
        assert!(matches!(total.fact, Fact::RefundTotal { amount } if amount.minor == 3), "the figure comes with the last page");
        assert_eq!(total.key.event_id, "poll:ch_1:look-7");
        assert_eq!(total.version, last.events[0].version);
    }
}
