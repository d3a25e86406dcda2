//! Checkout.com: payments, their refunds, disputes.
//!
//! Sources: checkout.com/docs (configure-your-webhook-server as of 2025-11), the API as Checkout.com's SDKs call it
//! (checkout-sdk 4.8.1 for Python, checkout-sdk-node 5.2.1), recorded events. No SDK verifies webhooks; the rule is the
//! documented one.
//!
//! **Signature.** `Cko-Signature`: hex of HMAC-SHA256 over the raw body; the key is the webhook's signature key. A webhook may
//! be set up without one and with an `Authorization` header instead, which proves nothing about the body: here it does not
//! exist. No time is signed. Some genuine bodies are no JSON (`authentication_failed`, with U+FFFD in them): they are taken, and
//! the worker quarantines them.
//!
//! **Payments** are `pay_…`. `balances` are cumulative: what they say of captures and refunds counts, however many events came
//! before. An event without them tells its own action alone, by `action_id`. A payment is captured in part as long as
//! `available_to_capture` is not zero. An authorisation that expires is the payer's again; a payment that expires without one
//! was never paid. A void of a part leaves the rest authorised.
//!
//! **Refunds** are told twice by `payment_refunded`: singly by `action_id`, and as the balance `total_refunded`. Of a pending or
//! declined refund the single one alone is told, since what the balance counts then is not said.
//!
//! **Disputes** are `dsp_…`; the fields of their events are \[uncertain\]. The older `payment_chargeback` and
//! `payment_retrieval` have the payment's data and no such id: there it is `action_id`.
//!
//! **Versions.** Objects have none: a fact from an event has the event's `created_on`, in seconds, a fact from an answer the
//! answer's `Date`, a dispute from an answer its `last_update`. Test or live is not said: the two have other keys and hosts.
//!
//! **The order** is `reference` (of a dispute `payment_reference`), else `metadata.order_id`.
//!
//! **Asking.** `api_url` is for accounts with a host of their own (`https://{prefix}.api.checkout.com`); without it, the mode
//! says which host. Payments are listed by a search, newest first \[uncertain\], for which the key needs the scope
//! `payments:search`; a page in another order is refused rather than followed. They stand there by when they were requested,
//! disputes by when they were received: refunds of old payments show in neither, nor what becomes of a dispute. Both lists are
//! read until nothing is left, since a short page need not be the last. How a webhook is retried is \[uncertain\], too:
//! the profile has what is generally known.

mod endpoint;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::Telling;
use super::{
    Abilities, Account, Answer, AskError, Asked, ChangedEndpoint, Endpoint, EndpointChange, EndpointList, Keys, LateChanges,
    Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WantedEndpoint,
    WebhookRequest, Window, answer, ask, signature, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};
use crate::money::{Currency, Money};

/// The adapter.
pub struct Checkoutcom;

const SIGNATURE: &str = "cko-signature";
const API: &str = "https://api.checkout.com";
const SANDBOX: &str = "https://api.sandbox.checkout.com";
/// Items of a page.
const PAGE: usize = 100;
/// The longest id that is read, in bytes; Checkout.com's have 26 characters after their prefix.
const ID_BYTES_MAX: usize = 64;
/// How far a list may be followed, in items.
const SKIP_MAX: usize = 1_000_000;
/// Checkout.com allows 100 webhooks.
const WORKFLOWS_MAX: usize = 200;

static PROFILE: Profile = Profile {
    name: "Checkout.com",
    translate_headers: &[],
    // Not published [uncertain].
    timeout: Duration::from_secs(10),
    // Eight retries, after about 5, 10, 15, 30 minutes, 1, 4, 12 and 24 hours [uncertain].
    retry_window: Duration::from_hours(42),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("checkoutcom-hex")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Unlisted, endpoint_list: true },
    list: Some(Listing::USUAL),
    // Published as checkout.com/docs/public/files/ip-lists/webhooks-live.txt; which they are is not known here.
    sources: &[],
};

impl Psp for Checkoutcom {
    fn id(&self) -> &'static str {
        "checkoutcom"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Developers, Webhooks"
    }

    fn wanted_endpoint(&self, _account: &Account) -> Option<WantedEndpoint> {
        Some(endpoint::WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        for secret in &account.keys.secrets {
            if ["sk_", "pk_"].iter().any(|prefix| secret.expose().starts_with(prefix)) {
                let problem = format!("{} is an API key; the signature key is the webhook's own", secret.name());
                return Err(SettingError { setting: "secrets", problem });
            }
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let malformed = Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not 64 lowercase hex digits" };
        let offered: [u8; 32] = signature::lower_hex(signature::exactly_one(request.headers, SIGNATURE)?).ok_or(malformed)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let secret_name = signature::matching_secret(keys, now, |secret| {
            signature::hmac_sha256(secret.expose().as_bytes(), &[request.body]).ct_eq(&offered)
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

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        let event_type = event.name("type")?;
        let Some(family) = Family::of(event_type) else {
            return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
        };
        let (event_id, created) = (id(&event, "id")?, telling::time(&event, "created_on")?);
        let data = event.object("data")?;
        let at = if data.optional("processed_on").is_some() { telling::time(&data, "processed_on")? } else { created };
        let payment_id = if let Family::Dispute(_) = family { payment_of_dispute(&data)? } else { id(&data, "id")? };
        let facts = family.facts(&data)?;
        let event = |(index, fact): (usize, Fact)| {
            let part = if index == 0 { "" } else { ":total" };
            let telling = Telling {
                event_id: format!("{event_id}{part}"),
                event_type,
                at,
                mode: None,
                order: order_of(&data, account),
                payment_id,
                others: Vec::new(),
                version: FactVersion::Time(created.millis()),
                fact,
            };
            telling.event(account, Source::Webhook)
        };
        Ok(facts.into_iter().enumerate().map(event).collect())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_payment_id(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        match StatusStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))? {
            StatusStep::Payment => get(account, &format!("/payments/{payment_id}")),
            StatusStep::Actions { .. } => get(account, &format!("/payments/{payment_id}/actions")),
            StatusStep::Disputes { skip } => get(account, &format!("/disputes?payment_id={payment_id}&limit={PAGE}&skip={skip}")),
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        let value = read_answer(response, asked, matches!(step, StatusStep::Disputes { .. }))?;
        match step {
            StatusStep::Payment => look.asked_payment(&Node::root(&value)),
            StatusStep::Actions { currency } => look.asked_actions(&Node::root(&value), currency),
            StatusStep::Disputes { skip } => look.asked_disputes(&Node::root(&value), skip),
        }
    }

    /// Payments by when they were requested, then disputes.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let Window { since, until: end } = window.in_seconds();
        match ListStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))? {
            ListStep::Payments { until } => {
                let until = until.unwrap_or(end);
                let body = format!(r#"{{"query":"","limit":{PAGE},"from":"{since}","to":"{until}"}}"#);
                let request = begin(account, "/payments/search")?.method(Method::POST).header(CONTENT_TYPE, "application/json");
                request.body(body.into()).map_err(|_| AskError::Missing("api_url"))
            }
            ListStep::Disputes { skip } => get(account, &format!("/disputes?from={since}&to={end}&limit={PAGE}&skip={skip}")),
        }
    }

    fn read_events(
        &self,
        _window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let step = ListStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        let value = read_answer(response, asked, true)?;
        match step {
            ListStep::Payments { until } => look.found_payments(&Node::root(&value), until),
            ListStep::Disputes { skip } => look.listed_disputes(&Node::root(&value), skip),
        }
    }

    /// The list names the workflows; each of them says by itself what it sends, and where. The cursor: those yet to be asked.
    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let Some(cursor) = cursor else { return get(account, "/workflows") };
        let first =
            cursor.split(',').next().filter(|_| cursor.split(',').all(is_id)).ok_or_else(|| malformed_cursor(Some(cursor)))?;
        get(account, &format!("/workflows/{first}"))
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        self.read_endpoints_at(None, response)
    }

    fn read_endpoints_at(&self, cursor: Option<&str>, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let answer = Node::root(&value);
        let Some(cursor) = cursor else {
            let workflows = answer.array("data")?;
            if workflows.len() > WORKFLOWS_MAX {
                return Err(answer.problem("more workflows than there may be").into());
            }
            let ids = workflows.iter().map(|workflow| id(workflow, "id")).collect::<Result<Vec<_>, _>>()?;
            return Ok(EndpointList { endpoints: Vec::new(), next: Some(ids.join(",")).filter(|ids| !ids.is_empty()) });
        };
        let (first, rest) = cursor.split_once(',').map_or((cursor, None), |(first, rest)| (first, Some(rest)));
        if id(&answer, "id")? != first {
            return Err(answer.required("id")?.problem("another workflow than was asked for").into());
        }
        Ok(EndpointList { endpoints: endpoints(&answer)?, next: rest.map(str::to_owned) })
    }

    fn change_endpoint_request(&self, change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
        endpoint::request(change, account)
    }

    fn read_changed_endpoint(&self, response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
        endpoint::read(response)
    }
}

// ---------------------------------------------------------------------------------------------------- verification

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

/// What an event speaks of.
#[derive(Clone, Copy)]
enum Family {
    Pending,
    Approved,
    Captured,
    CaptureDeclined,
    Failed,
    Canceled,
    Voided,
    Expired,
    Refund(RefundState),
    Dispute(DisputeState),
    /// The older events of a dispute, about the payment.
    PaymentDispute(DisputeState),
}

impl Family {
    /// `None` for what is none of our business: payouts, a void that was declined.
    fn of(event_type: &str) -> Option<Self> {
        let family = match event_type {
            "payment_pending" | "payment_capture_pending" => Self::Pending,
            "payment_approved" => Self::Approved,
            "payment_captured" => Self::Captured,
            "payment_capture_declined" => Self::CaptureDeclined,
            "payment_declined" | "payment_authentication_failed" => Self::Failed,
            "payment_canceled" => Self::Canceled,
            "payment_voided" => Self::Voided,
            "payment_expired" => Self::Expired,
            "payment_refund_pending" => Self::Refund(RefundState::Pending),
            "payment_refunded" => Self::Refund(RefundState::Succeeded),
            "payment_refund_declined" => Self::Refund(RefundState::Failed),
            "dispute_received" | "dispute_evidence_required" => Self::Dispute(DisputeState::Open),
            "dispute_won" | "dispute_canceled" | "dispute_resolved" => Self::Dispute(DisputeState::Won),
            "dispute_lost" | "dispute_expired" | "dispute_accepted" => Self::Dispute(DisputeState::Lost),
            "payment_retrieval" => Self::PaymentDispute(DisputeState::Inquiry),
            "payment_chargeback" => Self::PaymentDispute(DisputeState::Open),
            _ => return None,
        };
        Some(family)
    }

    /// One fact, or two, of which the second is a total.
    fn facts(self, data: &Node<'_>) -> Result<Vec<Fact>, Problem> {
        let payment = match self {
            Self::Pending => PaymentFact::new(PaymentState::Pending),
            // That of an authorisation a part was not captured does not end it.
            Self::Approved | Self::CaptureDeclined => authorized(data)?,
            Self::Captured => return captured(data).map(|fact| vec![fact]),
            Self::Failed => failed(data),
            Self::Canceled => PaymentFact::new(PaymentState::Canceled),
            Self::Voided => voided(data)?,
            Self::Expired => expired(data)?,
            Self::Refund(state) => return refunds(data, state),
            Self::Dispute(state) => {
                return Ok(vec![Fact::Dispute { id: id(data, "id")?.to_owned(), state, amount: data.money("amount")? }]);
            }
            Self::PaymentDispute(state) => {
                let own = if data.optional("action_id").is_some() { "action_id" } else { "id" };
                return Ok(vec![Fact::Dispute { id: id(data, own)?.to_owned(), state, amount: data.money("amount")? }]);
            }
        };
        Ok(vec![Fact::Payment(payment)])
    }
}

/// One of the balances, in the payment's currency.
fn balance(payment: &Node<'_>, name: &str) -> Result<Option<Money>, Problem> {
    let balances = payment.optional("balances").filter(|balances| balances.optional(name).is_some());
    balances.map(|balances| balances.minor_units(name, payment)).transpose()
}

/// Of what is authorised the voided part is gone.
fn authorized(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    let mut held = match balance(payment, "total_authorized")? {
        Some(held) => held,
        None => payment.money("amount")?,
    };
    if let Some(voided) = balance(payment, "total_voided")? {
        held.minor = held.minor.saturating_sub(voided.minor).max(0);
    }
    Ok(PaymentFact { authorized: Some(held), ..PaymentFact::new(PaymentState::Authorized) })
}

/// All that is captured so far, by the balance; without it, this capture alone.
fn captured(data: &Node<'_>) -> Result<Fact, Problem> {
    if let Some(total) = balance(data, "total_captured")? {
        return Ok(Fact::Payment(captured_in_all(data, total)?));
    }
    let amount = data.money("amount")?;
    if data.optional("action_id").is_some() {
        return Ok(Fact::Capture { id: id(data, "action_id")?.to_owned(), state: CaptureState::Succeeded, amount });
    }
    Ok(Fact::Payment(PaymentFact { captured: Some(amount), ..PaymentFact::new(PaymentState::Captured) }))
}

fn captured_in_all(payment: &Node<'_>, total: Money) -> Result<PaymentFact, Problem> {
    let is_final = balance(payment, "available_to_capture")?.is_some_and(|rest| rest.minor == 0);
    Ok(PaymentFact {
        authorized: balance(payment, "total_authorized")?,
        captured: Some(total),
        capture_final: is_final,
        ..PaymentFact::new(PaymentState::Captured)
    })
}

fn failed(payment: &Node<'_>) -> PaymentFact {
    let failure = Some(telling::failure(payment.text("response_code"), payment.text("response_summary")));
    PaymentFact { failure, ..PaymentFact::new(PaymentState::Failed) }
}

/// What is still there to be captured is still authorised.
fn voided(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    if balance(payment, "available_to_capture")?.is_some_and(|rest| rest.minor > 0) {
        return authorized(payment);
    }
    Ok(PaymentFact::new(PaymentState::Canceled))
}

fn expired(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    let was_authorized = balance(payment, "total_authorized")?.is_some_and(|held| held.minor > 0);
    Ok(PaymentFact::new(if was_authorized { PaymentState::AuthorizationExpired } else { PaymentState::Expired }))
}

fn refunds(data: &Node<'_>, state: RefundState) -> Result<Vec<Fact>, Problem> {
    let single = Fact::Refund { id: id(data, "action_id")?.to_owned(), state, amount: data.money("amount")?, created: None };
    let total = if state == RefundState::Succeeded { balance(data, "total_refunded")? } else { None };
    Ok([single].into_iter().chain(total.map(|amount| Fact::RefundTotal { amount })).collect())
}

/// Of a payment as it stands. An unknown status is pending: it is never a failure and never money. So is `Paid`, which is a
/// payout's, and `Card Verified`, for which nothing is paid.
fn payment_by_status(payment: &Node<'_>) -> Result<PaymentFact, Problem> {
    match payment.name("status")? {
        "Authorized" => authorized(payment),
        status @ ("Captured" | "Partially Captured" | "Refunded" | "Partially Refunded") => {
            match balance(payment, "total_captured")? {
                Some(total) => captured_in_all(payment, total),
                None if matches!(status, "Captured" | "Refunded") => {
                    let captured = Some(payment.money("amount")?);
                    Ok(PaymentFact { captured, capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
                }
                // How much is not said.
                None => Ok(PaymentFact::new(PaymentState::Captured)),
            }
        }
        "Declined" => Ok(failed(payment)),
        "Canceled" => Ok(PaymentFact::new(PaymentState::Canceled)),
        "Voided" => voided(payment),
        "Expired" => expired(payment),
        _ => Ok(PaymentFact::new(PaymentState::Pending)),
    }
}

/// Of the events of a dispute the last word.
fn dispute_by_status(dispute: &Node<'_>) -> Result<Fact, Problem> {
    let state = match dispute.name("status")? {
        "won" | "canceled" | "resolved" => DisputeState::Won,
        "lost" | "expired" | "accepted" => DisputeState::Lost,
        _ => DisputeState::Open,
    };
    Ok(Fact::Dispute { id: id(dispute, "id")?.to_owned(), state, amount: dispute.money("amount")? })
}

fn payment_of_dispute<'a>(dispute: &Node<'a>) -> Result<&'a str, Problem> {
    id(dispute, "payment_id")
}

fn order_of<'a>(data: &Node<'a>, account: &Account) -> Option<&'a str> {
    telling::order(data, account, &[&["payment_reference"], &["reference"], &["metadata", "order_id"]])
}

/// An id, which may become part of a key or a URL.
fn id<'a>(object: &Node<'a>, key: &str) -> Result<&'a str, Problem> {
    let text = object.name(key)?;
    if is_id(text) { Ok(text) } else { Err(object.required(key)?.problem("not an id")) }
}

fn is_id(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && ask::is_id(text, b"_")
}

fn is_payment_id(text: &str) -> bool {
    is_id(text) && text.strip_prefix("pay_").is_some_and(|rest| !rest.is_empty())
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the payment, then its actions, then its disputes, page by page. Actions do not say their
/// currency.
enum StatusStep {
    Payment,
    Actions { currency: Currency },
    Disputes { skip: usize },
}

const ACTIONS: &str = "actions";
const PAYMENTS: &str = "payments";
const DISPUTES: &str = "disputes";

impl StatusStep {
    /// Reads a cursor: none, `actions:<currency>`, `disputes:<skip>`.
    fn of(cursor: Option<&str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payment) };
        match cursor.split_once(':')? {
            (ACTIONS, currency) => Currency::parse(currency).ok().map(|currency| Self::Actions { currency }),
            (DISPUTES, skip) => Some(Self::Disputes { skip: skip_of(skip)? }),
            _ => None,
        }
    }
}

/// Where a sweep stands.
enum ListStep {
    /// `until`: what was requested later was read.
    Payments {
        until: Option<Timestamp>,
    },
    Disputes {
        skip: usize,
    },
}

impl ListStep {
    /// Reads a cursor: none, `payments:<until, in Unix seconds>`, `disputes:<skip>`.
    fn of(cursor: Option<&str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payments { until: None }) };
        match cursor.split_once(':')? {
            (PAYMENTS, until) => Some(Self::Payments { until: Some(until_of(until)?) }),
            (DISPUTES, skip) => Some(Self::Disputes { skip: skip_of(skip)? }),
            _ => None,
        }
    }
}

fn skip_of(text: &str) -> Option<usize> {
    let skip = usize::try_from(signature::seconds(text)?).ok()?;
    (skip <= SKIP_MAX).then_some(skip)
}

fn until_of(text: &str) -> Option<Timestamp> {
    /// The end of the year 9999: what is beyond it cannot be written as a date.
    const UNTIL_MAX_S: i64 = 253_402_300_799;
    signature::seconds(text).filter(|seconds| *seconds <= UNTIL_MAX_S).map(Timestamp::from_seconds)
}

/// One answer to one question.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn asked_payment(&self, payment: &Node<'_>) -> Result<Answer, ReadError> {
        if payment.name("id")? != self.asked.payment_id {
            return Err(payment.required("id")?.problem("another payment than was asked for").into());
        }
        let events = self.payment(payment)?;
        // Only what was captured can be refunded or disputed: the open and the failed cost one request.
        let captured = events.iter().find_map(|event| match &event.fact {
            Fact::Payment(PaymentFact { captured, state: PaymentState::Captured, .. }) => Some(*captured),
            _ => None,
        });
        let currency = match captured {
            None => None,
            Some(Some(money)) => Some(money.currency),
            Some(None) => Some(payment.money("amount")?.currency),
        };
        Ok(Answer { events, unread: Vec::new(), next: currency.map(|currency| format!("{ACTIONS}:{currency}")) })
    }

    fn asked_actions(&self, answer: &Node<'_>, currency: Currency) -> Result<Answer, ReadError> {
        let mut events = Vec::new();
        for action in answer.elements()?.iter().filter(|action| action.text("type") == Some("Refund")) {
            // Whether it succeeded is said once that is known.
            let state = match action.optional_bool("approved")? {
                None => RefundState::Pending,
                Some(true) => RefundState::Succeeded,
                Some(false) => RefundState::Failed,
            };
            let action_id = id(action, "id")?;
            let amount = action.minor_money("amount", currency)?;
            let created = action.optional("processed_on").map(|_| telling::time(action, "processed_on")).transpose()?;
            let fact = Fact::Refund { id: action_id.to_owned(), state, amount, created };
            events.push(self.event(action_id.to_owned(), self.asked.payment_id, None, self.at, fact));
        }
        Ok(Answer { events, unread: Vec::new(), next: Some(format!("{DISPUTES}:0")) })
    }

    fn asked_disputes(&self, answer: &Node<'_>, skip: usize) -> Result<Answer, ReadError> {
        let disputes = items(answer)?;
        let mut events = Vec::new();
        for dispute in &disputes {
            if dispute.name("payment_id")? != self.asked.payment_id {
                return Err(dispute.problem("of another payment than was asked for").into());
            }
            events.push(self.dispute(dispute)?);
        }
        let next = (disputes.len() == PAGE).then(|| format!("{DISPUTES}:{}", skip + PAGE));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    /// Those of the page's last second are left to the next page, which begins with that second: so none is told twice, and none
    /// is lost. A page of one second is the last one, unless it is full: then nobody knows how many more that second has. So is
    /// one that is in another order, which cannot be followed.
    fn found_payments(&self, answer: &Node<'_>, until: Option<Timestamp>) -> Result<Answer, ReadError> {
        let payments = items(answer)?;
        let times = payments.iter().map(|payment| telling::time(payment, "requested_on")).collect::<Result<Vec<_>, _>>()?;
        let is_ordered = times.is_sorted_by(|newer, older| newer >= older);
        if !is_ordered && payments.len() == PAGE {
            return Err(answer.problem("a page that is not newest first").into());
        }
        let behind = |at: Timestamp| Timestamp::from_seconds(at.seconds().saturating_add(1));
        let was_told = |at: Timestamp| until.is_some_and(|until| at >= until);
        let oldest = times.last().filter(|_| is_ordered).map(|oldest| behind(*oldest));
        // Otherwise all that is not told yet is of the last second.
        let from = oldest.filter(|from| times.iter().any(|at| !was_told(*at) && at >= from));
        let is_told = |at: Timestamp| !was_told(at) && from.is_none_or(|from| at >= from);
        if from.is_none() && payments.len() == PAGE {
            return Err(answer.problem("a page that leads nowhere").into());
        }
        let next = match from {
            Some(from) => format!("{PAYMENTS}:{}", from.seconds()),
            None => format!("{DISPUTES}:0"),
        };
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: Some(next) };
        for (payment, _) in payments.iter().zip(&times).filter(|(_, at)| is_told(**at)) {
            match self.payment(payment) {
                Ok(events) => found.events.extend(events.into_iter().filter(|event| !telling::is_no_refund(event))),
                Err(problem) => found.unread.push(unread(payment, problem)?),
            }
        }
        Ok(found)
    }

    fn listed_disputes(&self, answer: &Node<'_>, skip: usize) -> Result<Answer, ReadError> {
        let disputes = items(answer)?;
        let next = (!disputes.is_empty()).then(|| format!("{DISPUTES}:{}", skip + disputes.len()));
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        for dispute in &disputes {
            match self.dispute(dispute) {
                Ok(event) => found.events.push(event),
                Err(problem) => found.unread.push(unread(dispute, problem)?),
            }
        }
        Ok(found)
    }

    /// The payment, and of a captured one what is refunded of it in all.
    fn payment(&self, payment: &Node<'_>) -> Result<Vec<PaymentEvent>, Problem> {
        let payment_id = id(payment, "id")?;
        let order = order_of(payment, self.account);
        let fact = payment_by_status(payment)?;
        let total = if fact.state == PaymentState::Captured { balance(payment, "total_refunded")? } else { None };
        let total = total.map(|amount| (format!("{payment_id}:total"), Fact::RefundTotal { amount }));
        let facts = [(payment_id.to_owned(), Fact::Payment(fact))].into_iter().chain(total);
        Ok(facts.map(|(event_id, fact)| self.event(event_id, payment_id, order, self.at, fact)).collect())
    }

    fn dispute(&self, dispute: &Node<'_>) -> Result<PaymentEvent, Problem> {
        let updated = dispute.optional("last_update").map(|_| telling::time(dispute, "last_update")).transpose()?;
        let (dispute_id, order) = (id(dispute, "id")?.to_owned(), order_of(dispute, self.account));
        let fact = dispute_by_status(dispute)?;
        Ok(self.event(dispute_id, payment_of_dispute(dispute)?, order, updated.unwrap_or(self.at), fact))
    }

    fn event(&self, event_id: String, payment_id: &str, order: Option<&str>, version: Timestamp, fact: Fact) -> PaymentEvent {
        let event_type = match &fact {
            Fact::Refund { .. } => "poll:refund",
            Fact::Dispute { .. } => "poll:dispute",
            _ => "poll:payment",
        };
        let version = FactVersion::Time(version.millis());
        let (at, others) = (self.at, Vec::new());
        let telling = Telling { event_id, event_type, at, mode: None, order, payment_id, others, version, fact };
        telling.answer(self.account, self.asked)
    }
}

fn unread(item: &Node<'_>, problem: Problem) -> Result<Unread, Problem> {
    Ok(Unread { event_id: id(item, "id")?.to_owned(), error: problem.into() })
}

/// The items of a list, as many as were asked for at most.
fn items<'a>(answer: &Node<'a>) -> Result<Vec<Node<'a>>, Problem> {
    let items = if answer.optional("data").is_some() { answer.array("data")? } else { answer.elements()? };
    if items.len() > PAGE {
        return Err(answer.problem("a page larger than was asked for"));
    }
    Ok(items)
}

/// A list without items may be 204.
fn read_answer<'a>(response: &'a Response<Bytes>, asked: &Asked<'_>, may_be_empty: bool) -> Result<json::Value<'a>, ReadError> {
    if may_be_empty && response.status() == StatusCode::NO_CONTENT {
        return Ok(json::Value::Array(Vec::new()));
    }
    Ok(json::read(answer::body(response, Some(asked.at))?)?)
}

/// Of a workflow: each of its webhooks.
fn endpoints(workflow: &Node<'_>) -> Result<Vec<Endpoint>, Problem> {
    let enabled = workflow.optional_bool("active")? == Some(true);
    let mut events = Vec::new();
    for condition in workflow.optional("conditions").map(|_| workflow.array("conditions")).transpose()?.unwrap_or_default() {
        if condition.text("type") != Some("event") {
            continue;
        }
        let by_source = condition.object("events")?;
        for source in by_source.keys() {
            for event in by_source.array(source)? {
                events.push(event.as_text().ok_or_else(|| event.problem("not a string"))?.to_owned());
            }
        }
    }
    // Without a condition about events it is about all of them.
    let events = if events.is_empty() { vec!["*".to_owned()] } else { events };
    let actions = workflow.array("actions")?;
    let webhooks = actions.iter().filter(|action| action.text("type") == Some("webhook"));
    let endpoint = |action: &Node<'_>| {
        let url = action.required("url")?;
        Ok(Endpoint {
            id: format!("{}/{}", id(workflow, "id")?, id(action, "id")?),
            url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
            enabled,
            events: events.clone(),
            api_version: None,
            mode: None,
        })
    };
    webhooks.map(endpoint).collect()
}

fn malformed_cursor(cursor: Option<&str>) -> AskError {
    AskError::MalformedId(cursor.unwrap_or_default().to_owned())
}

fn unknown_cursor() -> ReadError {
    ReadError::Unintelligible("an unknown cursor".to_owned())
}

fn begin(account: &Account, path_and_query: &str) -> Result<request::Builder, AskError> {
    let host = if account.mode == Mode::Test { SANDBOX } else { API };
    let credentials: HeaderValue = ask::bearer(account)?;
    Ok(ask::get(account, host, path_and_query, credentials))
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    ask::finish(begin(account, path_and_query)?)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;
    use crate::event::ReferenceKind;
    use crate::secret::Secret;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Checkoutcom,
            scheme: "checkoutcom-hex",
            secret: SECRET,
            other_secret: "cko_signature_key_OLD",
            settings: |_| {},
            sign: |secret, _, body| {
                let mac = hex::encode(signature::hmac_sha256(secret.as_bytes(), &[body]));
                (tests::headers([(SIGNATURE, mac)]), body.to_vec())
            },
            body: br#"{"id":"evt_1","type":"payment_captured"}"#,
            event_type: Some("payment_captured"),
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    const SECRET: &str = "cko_signature_key_Test01";
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn account() -> Account {
        specimen().account(&[SECRET])
    }

    fn translated(account: &Account, event_type: &str, data: &serde_json::Value) -> Vec<PaymentEvent> {
        let body = json!({"id": "evt_1", "type": event_type, "created_on": "2026-09-21T13:33:10Z", "data": data}).to_string();
        Checkoutcom.translate(&specimen().envelope(body.as_bytes()), account).unwrap()
    }

    #[test]
    fn the_header_is_64_lowercase_hex_digits() {
        let body = specimen().body;
        let mac = hex::encode(signature::hmac_sha256(SECRET.as_bytes(), &[body]));
        let reason = |header: &str| {
            let headers = tests::headers([(SIGNATURE, header.to_owned())]);
            tests::verify(&Checkoutcom, &[SECRET], &headers, body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        assert_eq!(reason(&mac), "accepted");
        for bad in [mac.to_uppercase(), format!("{mac}0"), mac[1..].to_owned(), format!("1790000000:1:{mac}")] {
            assert_eq!(reason(&bad), "malformed_header", "{bad}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_is_taken_and_quarantined() {
        let body = "{\"id\":\"evt_1\",\"type\":\"payment_authentication_failed\",\"data\":{\"name\":\"\u{fffd}}".as_bytes();
        let envelope = specimen().envelope(body);
        assert_eq!((envelope.webhook_id.as_str(), envelope.event_type.as_deref()), (signature::body_id(body).as_str(), None));
        let translated = Checkoutcom.translate(&envelope, &account());
        assert!(matches!(translated, Err(TranslateError::Unintelligible { reason: "not JSON", .. })), "{translated:?}");
    }

    #[test]
    fn the_order_is_the_reference_else_in_the_metadata() {
        let orders = |path: Option<&str>, event_type: &str, data: serde_json::Value| {
            let order_reference = path.map(|path| path.split('.').map(str::to_owned).collect());
            let events = translated(&Account { order_reference, ..account() }, event_type, &data);
            let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
            orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        let both = json!({"id": "pay_1", "reference": "A", "metadata": {"order_id": "B", "cart": "C"}});
        let metadata = json!({"id": "pay_1", "reference": null, "metadata": {"order_id": "B"}});
        let dispute = json!({"id": "dsp_1", "payment_id": "pay_1", "payment_reference": "D", "amount": 1, "currency": "EUR"});
        assert_eq!(orders(None, "payment_pending", both.clone()), ["A"]);
        assert_eq!(orders(None, "payment_pending", metadata), ["B"]);
        assert_eq!(orders(Some("metadata.cart"), "payment_pending", both.clone()), ["C"]);
        assert_eq!(orders(Some("nowhere"), "payment_pending", both), [""; 0]);
        assert_eq!(orders(None, "dispute_received", dispute), ["D"]);
    }

    #[test]
    fn an_api_key_is_no_signature_key() {
        let mut account = account();
        account.keys.secrets.push(Secret::new("secrets[1]", "sk_sbox_1"));
        assert_eq!(Checkoutcom.check(&account).unwrap_err().setting, "secrets");
    }

    // ------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_checkout_reads_them() {
        let mut account = account();
        let status = |cursor| Checkoutcom.status_request("pay_1", cursor, &account).unwrap().uri().to_string();
        assert_eq!(status(None), "https://api.sandbox.checkout.com/payments/pay_1");
        assert_eq!(status(Some("actions:EUR")), "https://api.sandbox.checkout.com/payments/pay_1/actions");
        assert_eq!(status(Some("disputes:100")), "https://api.sandbox.checkout.com/disputes?payment_id=pay_1&limit=100&skip=100");
        let since = Timestamp::from_seconds(1_789_999_999);
        let search = |cursor| {
            let request = Checkoutcom.events_request(tests::since(since), cursor, &account).unwrap();
            assert_eq!(
                (request.method(), request.headers()["content-type"].as_bytes()),
                (&Method::POST, &b"application/json"[..])
            );
            assert_eq!(request.uri(), "https://api.sandbox.checkout.com/payments/search");
            serde_json::from_slice::<serde_json::Value>(request.body()).unwrap()
        };
        let expected = |to: &str| json!({"query": "", "limit": 100, "from": "2026-09-21T14:13:19Z", "to": to});
        assert_eq!(search(None), expected("2026-09-21T14:13:20Z"));
        assert_eq!(search(Some("payments:1789999999")), expected("2026-09-21T14:13:19Z"));
        let disputes = Checkoutcom.events_request(tests::since(since), Some("disputes:0"), &account).unwrap();
        assert_eq!(
            disputes.uri(),
            "https://api.sandbox.checkout.com/disputes?from=2026-09-21T14:13:19Z&to=2026-09-21T14:13:20Z&limit=100&skip=0"
        );
        account.mode = Mode::Live;
        let request = Checkoutcom.endpoints_request(None, &account).unwrap();
        assert_eq!(request.uri(), "https://api.checkout.com/workflows");
        assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
        account.api.url = Some("https://abc.api.checkout.com".to_owned());
        let request = Checkoutcom.endpoints_request(Some("wf_1,wf_2"), &account).unwrap();
        assert_eq!(request.uri(), "https://abc.api.checkout.com/workflows/wf_1");
        account.api.key = None;
        assert_eq!(Checkoutcom.status_request("pay_1", None, &account).unwrap_err(), AskError::Missing("api_key"));
        assert_eq!(Checkoutcom.events_request(tests::since(since), None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        let account = account();
        let long = format!("pay_{}", "a".repeat(61));
        for id in ["", "pay_", "src_1", "pay_1/../x", "pay_1?x", "pay_1%2e", "pay_é", "pay_1 ", &long] {
            assert_eq!(Checkoutcom.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "actions", "actions:", "actions:EURO", "disputes:", "disputes:x", "disputes:1:2", "payments:1"] {
            assert!(Checkoutcom.status_request("pay_1", Some(cursor), &account).is_err(), "{cursor}");
        }
        for cursor in ["", "payments:", "payments:x", "payments:999999999999999", "disputes:", "disputes:0:1", "actions:EUR"] {
            assert!(Checkoutcom.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
        for cursor in ["", "wf_1,", "wf_1,/x", "wf 1"] {
            assert!(Checkoutcom.endpoints_request(Some(cursor), &account).is_err(), "{cursor}");
        }
    }

    // -------------------------------------------------------------------------------------------------- answers

    fn response(status: u16, body: &[u8]) -> Response<Bytes> {
        Response::builder().status(status).header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "pay_waji", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Checkoutcom.read_status(&asked(cursor), &response(200, body), &account())
    }

    fn read_events(cursor: Option<&str>, body: &serde_json::Value) -> Result<Answer, ReadError> {
        Checkoutcom.read_events(tests::WHOLE, &asked(cursor), &response(200, body.to_string().as_bytes()), &account())
    }

    fn keys(answer: &Answer) -> Vec<&str> {
        answer.events.iter().map(|event| event.key.event_id.as_str()).collect()
    }

    #[test]
    fn answers_read_as_recorded() {
        for (name, body, cursor, next) in [
            ("payment", &include_bytes!("fixtures/checkoutcom/answers/payment.json")[..], None, Some("actions:EUR")),
            ("payment.declined", include_bytes!("fixtures/checkoutcom/answers/payment.declined.json"), None, None),
            ("actions", include_bytes!("fixtures/checkoutcom/answers/actions.json"), Some("actions:EUR"), Some("disputes:0")),
            ("disputes", include_bytes!("fixtures/checkoutcom/answers/disputes.json"), Some("disputes:0"), None),
        ] {
            let answer = read_status(cursor, body).unwrap();
            assert_eq!(answer.next.as_deref(), next, "{name}");
            insta::assert_json_snapshot!(format!("checkoutcom-answer-{name}"), answer.events);
        }
    }

    #[test]
    fn workflows_are_asked_one_by_one() {
        let read = |cursor: Option<&str>, body: &[u8]| Checkoutcom.read_endpoints_at(cursor, &response(200, body));
        let list = read(None, include_bytes!("fixtures/checkoutcom/answers/workflows.json")).unwrap();
        assert_eq!((list.endpoints.len(), list.next.as_deref()), (0, Some("wf_c7svxlvo2bbuva4f6s3xu4f7wm,wf_2")));
        let workflow = include_bytes!("fixtures/checkoutcom/answers/workflow.json");
        let one = read(list.next.as_deref(), workflow).unwrap();
        assert_eq!(one.next.as_deref(), Some("wf_2"));
        insta::assert_json_snapshot!("checkoutcom-answer-workflow", one.endpoints);
        let bare = json!({"id": "wf_2", "active": false, "actions": [{"id": "wfa_2", "type": "webhook", "url": "https://x"}]});
        let other = read(Some("wf_2"), bare.to_string().as_bytes()).unwrap();
        assert_eq!(
            (other.next, other.endpoints[0].enabled, &other.endpoints[0].events[..]),
            (None, false, &["*".to_owned()][..])
        );
        assert!(read(Some("wf_2"), workflow).is_err(), "another workflow than was asked for");
        assert_eq!(read(None, br#"{"data":[]}"#).unwrap().next, None);
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        let balances = |captured: i64, rest: i64| json!({"total_authorized": 10, "total_captured": captured, "available_to_capture": rest, "total_refunded": 0});
        for (status, balances, state, captured, is_final) in [
            ("Pending", json!(null), PaymentState::Pending, None, false),
            ("Authorized", balances(0, 10), PaymentState::Authorized, None, false),
            ("Card Verified", json!(null), PaymentState::Pending, None, false),
            ("Partially Captured", balances(4, 6), PaymentState::Captured, Some(4), false),
            ("Partially Captured", json!(null), PaymentState::Captured, None, false),
            ("Captured", balances(10, 0), PaymentState::Captured, Some(10), true),
            ("Captured", json!(null), PaymentState::Captured, Some(10), true),
            ("Partially Refunded", balances(4, 0), PaymentState::Captured, Some(4), true),
            ("Partially Refunded", json!(null), PaymentState::Captured, None, false),
            ("Refunded", json!(null), PaymentState::Captured, Some(10), true),
            ("Paid", balances(10, 0), PaymentState::Pending, None, false),
            ("Declined", json!(null), PaymentState::Failed, None, false),
            ("Canceled", json!(null), PaymentState::Canceled, None, false),
            ("Voided", balances(0, 0), PaymentState::Canceled, None, false),
            ("Voided", balances(0, 6), PaymentState::Authorized, None, false),
            ("Expired", json!(null), PaymentState::Expired, None, false),
            ("Expired", balances(0, 0), PaymentState::AuthorizationExpired, None, false),
            ("Retry Scheduled", json!(null), PaymentState::Pending, None, false),
            ("Dreaming", balances(10, 0), PaymentState::Pending, None, false),
        ] {
            let payment = json!({"id": "pay_waji", "status": status, "amount": 10, "currency": "EUR", "balances": balances});
            let answer = read_status(None, payment.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            let told = (fact.state, fact.captured.map(|money| money.minor), fact.capture_final);
            assert_eq!(told, (state, captured, is_final), "{payment}");
            assert_eq!(answer.next.is_some(), state == PaymentState::Captured, "{payment}");
        }
    }

    #[test]
    fn a_search_is_followed_without_telling_anything_twice() {
        let payment = |number: usize, second: usize| {
            json!({"id": format!("pay_{number}"), "requested_on": format!("2026-09-21T14:00:{second:02}.5Z"), "amount": 1, "currency": "EUR",
                "status": "Pending"})
        };
        // 100 payments, newest first, of which the last four were requested within one second.
        let seconds = |number: usize| 40 - number.min(96) / 4;
        let page: Vec<_> = (0..PAGE).map(|number| payment(number, seconds(number))).collect();
        let first = read_events(None, &json!({ "data": page })).unwrap();
        let boundary = Timestamp::parse_rfc3339("2026-09-21T14:00:17Z").unwrap().seconds();
        assert_eq!((first.events.len(), first.next.as_deref()), (96, Some(format!("payments:{boundary}").as_str())));
        let rest: Vec<_> = (92..103).map(|number| payment(number, seconds(number))).collect();
        let second = read_events(first.next.as_deref(), &json!({ "data": rest })).unwrap();
        assert_eq!(keys(&second).first(), Some(&"poll:pay_96:look-7"), "neither told twice nor lost");
        assert_eq!((second.events.len(), second.next.as_deref()), (7, Some("disputes:0")), "of one second, and so the last");

        let mut unsorted = page;
        unsorted.reverse();
        assert!(read_events(None, &json!({ "data": unsorted })).is_err(), "oldest first");
        let same: Vec<_> = (0..PAGE).map(|number| payment(number, 7)).collect();
        assert!(read_events(None, &json!({ "data": same })).is_err(), "a page that leads nowhere");

        let recorded: serde_json::Value =
            serde_json::from_slice(include_bytes!("fixtures/checkoutcom/answers/payments.json")).unwrap();
        let listed = read_events(None, &recorded).unwrap();
        assert_eq!(keys(&listed), ["poll:pay_waj3:look-7"]);
        assert_eq!(listed.unread[0].event_id, "pay_waj2");
        let rest = json!({ "data": [recorded["data"][2].clone()] });
        let listed = read_events(listed.next.as_deref(), &rest).unwrap();
        assert_eq!(keys(&listed), ["poll:pay_waji:look-7"]);
        // What cannot be followed is told whole, and nothing behind it.
        let odd = json!({ "data": [payment(1, 7), payment(2, 9)] });
        assert_eq!(read_events(None, &odd).map(|answer| (answer.events.len(), answer.next)), Ok((2, Some("disputes:0".into()))));
    }

    #[test]
    fn disputes_are_followed_to_their_end() {
        let dispute = |number: usize| json!({"id": format!("dsp_{number}"), "payment_id": "pay_waji", "amount": 1, "currency": "EUR", "status": "evidence_required"});
        let page = |items: usize| json!({ "data": (0..items).map(dispute).collect::<Vec<_>>() });
        assert_eq!(read_events(Some("disputes:100"), &page(PAGE)).unwrap().next.as_deref(), Some("disputes:200"));
        assert_eq!(read_events(Some("disputes:100"), &page(3)).unwrap().next.as_deref(), Some("disputes:103"));
        assert_eq!(read_events(Some("disputes:103"), &page(0)).unwrap().next, None);
        let status = |items: usize| read_status(Some("disputes:0"), page(items).to_string().as_bytes()).unwrap().next;
        assert_eq!((status(PAGE).as_deref(), status(1)), (Some("disputes:100"), None));
        let none = Checkoutcom.read_status(&asked(Some("disputes:0")), &response(204, b""), &account()).unwrap();
        assert_eq!((none.events.len(), none.next), (0, None));
        assert!(Checkoutcom.read_status(&asked(None), &response(204, b""), &account()).is_err(), "no payment is no answer");
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let dispute = json!({"id": "dsp_1", "payment_id": "pay_other", "amount": 1, "currency": "EUR", "status": "won"});
        for (cursor, body) in [
            (None, json!({"id": "pay_other", "status": "Captured", "amount": 1, "currency": "EUR"})),
            (None, json!({"id": "pay_waji", "status": "Captured"})),
            (None, json!([])),
            (Some("actions:EUR"), json!({})),
            (Some("actions:EUR"), json!([{"id": "act_1", "type": "Refund", "amount": 1.5}])),
            (Some("disputes:0"), json!({ "data": [dispute] })),
            (Some("disputes:0"), json!({ "data": vec![dispute.clone(); PAGE + 1] })),
            (Some("refunds:0"), json!([])),
        ] {
            let read = read_status(cursor, body.to_string().as_bytes());
            assert!(matches!(read, Err(ReadError::Unintelligible(_))), "{cursor:?} {body}");
        }
    }
}
