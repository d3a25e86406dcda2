//! Adyen's platform webhooks: what happens on the balance platform, signed as a whole by a header.
//!
//! **Signature.** `HmacSignature`: the padded base64 of an HMAC-SHA256 over the raw body, the key as for standard items;
//! `Protocol`, if it is there, says `HmacSHA256`.
//!
//! **Transfers** (`balancePlatform.transfer.created`, `.updated`) of the category `platformPayment` move a payment's money:
//! by their status, one transfer is a capture, a refund or a chargeback of the payment `categoryData.pspPaymentReference`.
//! A payment may be split over several transfers, each of which tells its part: they are single captures and refunds that
//! add up, and none of them says how much was authorised in all. Versions are the transfer's `sequenceNumber`; events are
//! named by it, too, since a transfer's webhook carries no event id. All other types are ignored.
//!
//! Everything here is signed; the mode is the body's `environment`.

use std::borrow::Cow;

use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq as _};

use super::key;
use crate::clock::Timestamp;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};
use crate::psp::json::{self, Node, Problem};
use crate::psp::telling::{self, Telling};
use crate::psp::{Account, Keys, Proof, Rejection, TranslateError, Verified, WebhookRequest, signature};

pub(super) const SIGNATURE: &str = "hmacsignature";
const PROTOCOL: &str = "protocol";
const PROTOCOL_KNOWN: &str = "HmacSHA256";

pub(super) fn verify(request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
    let malformed = |header, problem| Rejection::MalformedHeader { header, problem };
    let offered = signature::exactly_one(request.headers, SIGNATURE)?;
    let offered = signature::base64::<32>(offered).ok_or_else(|| malformed(SIGNATURE, "it is not the base64 of 32 bytes"))?;
    if request.headers.contains_key(PROTOCOL) && signature::exactly_one(request.headers, PROTOCOL)? != PROTOCOL_KNOWN {
        return Err(malformed(PROTOCOL, "only HmacSHA256 is accepted"));
    }
    if request.body.is_empty() {
        return Err(Rejection::EmptyBody);
    }
    let secret_name = signature::matching_secret(keys, now, |secret| {
        key(secret).map_or(Choice::from(0), |key| signature::hmac_sha256(&*key, &[request.body]).ct_eq(&offered))
    })?;
    let head: Head<'_> = serde_json::from_slice(request.body).unwrap_or_default();
    let name = |text: &str| Some(text).filter(|text| json::is_name(text)).map(str::to_owned);
    Ok(Verified {
        webhook_id: name(&head.event_id).unwrap_or_else(|| signature::body_id(request.body)),
        event_type: name(&head.event_type),
        subject: None,
        secret_name,
        proof: Proof::Proven,
        content_type: signature::content_type(request.headers),
        headers: Vec::new(),
    })
}

/// What the ingress needs of an authentic body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow, rename = "eventId")]
    event_id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
}

pub(super) fn translate(body: &Node<'_>, account: &Account) -> Result<PaymentEvent, TranslateError> {
    let event_type = body.name("type")?;
    if !matches!(event_type, "balancePlatform.transfer.created" | "balancePlatform.transfer.updated") {
        return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
    }
    let data = body.object("data")?;
    let category = data.optional("categoryData").map(|_| data.object("categoryData")).transpose()?;
    let Some(category) = category.filter(|category| category.text("type") == Some("platformPayment")) else {
        return Err(TranslateError::Ignored("a transfer that is none of a payment".to_owned()));
    };
    let payment_id = category.name("pspPaymentReference")?;
    let at = telling::time(body, if body.optional("timestamp").is_some() { "timestamp" } else { "createdAt" })?;
    let id = data.name("id")?;
    let sequence = data.integer("sequenceNumber")?;
    let event_id = format!("transfer:{id}:{sequence}");
    if !json::is_name(&event_id) {
        return Err(data.required("id")?.problem("too long for a key").into());
    }
    let own_order = || category.name_at(&["paymentMerchantReference"]);
    let telling = Telling {
        event_id,
        event_type,
        at,
        mode: mode(body)?,
        order: account.order_reference.as_ref().map_or_else(own_order, |path| data.name_at(path)),
        payment_id,
        others: Vec::new(),
        version: FactVersion::Number(sequence),
        fact: fact(id, &data)?,
    };
    Ok(telling.event(account, Source::Webhook))
}

/// By the status of the transfer. One that is new to us is pending: never a failure, and never money.
fn fact(id: &str, transfer: &Node<'_>) -> Result<Fact, Problem> {
    let amount = transfer.object("amount")?.money("value")?;
    let id = id.to_owned();
    let payment = |state| Fact::Payment(PaymentFact::new(state));
    Ok(match transfer.name("status")? {
        "authorised" => payment(PaymentState::Authorized),
        "refused" | "error" | "failed" | "rejected" => {
            let failure = Some(telling::failure(transfer.text("reason"), None));
            Fact::Payment(PaymentFact { failure, ..PaymentFact::new(PaymentState::Failed) })
        }
        "cancelled" => payment(PaymentState::Canceled),
        "expired" => payment(PaymentState::AuthorizationExpired),
        "capturePending" => Fact::Capture { id, state: CaptureState::Pending, amount },
        "captured" | "capturedExternally" | "captureReversalPending" => {
            Fact::Capture { id, state: CaptureState::Succeeded, amount }
        }
        "captureReversed" => Fact::Capture { id, state: CaptureState::Failed, amount },
        "refundPending" => Fact::Refund { id, state: RefundState::Pending, amount, created: None },
        "refunded" | "refundedExternally" | "refundReversalPending" => {
            Fact::Refund { id, state: RefundState::Succeeded, amount, created: None }
        }
        "refundReversed" => Fact::Refund { id, state: RefundState::Failed, amount, created: None },
        "chargebackPending" | "chargeback" | "chargebackExternally" | "chargebackReversalPending" => {
            Fact::Dispute { id, state: DisputeState::Open, amount }
        }
        "chargebackReversed" => Fact::Dispute { id, state: DisputeState::Won, amount },
        "secondChargebackPending" | "secondChargeback" => Fact::Dispute { id, state: DisputeState::Lost, amount },
        _ => payment(PaymentState::Pending),
    })
}

fn mode(body: &Node<'_>) -> Result<Option<Mode>, Problem> {
    match body.optional("environment") {
        None => Ok(None),
        Some(environment) => match environment.as_text() {
            Some("live") => Ok(Some(Mode::Live)),
            Some("test" | "beta") => Ok(Some(Mode::Test)),
            _ => Err(environment.problem("neither live nor test")),
        },
    }
}
