//! Adyen: standard webhooks, whose items are signed one by one, and platform webhooks, which are signed in a header
//! (`adyen/platform.rs`).
//!
//! Sources: docs.adyen.com (webhooks, HMAC signatures, disputes, Management API v3), github.com/Adyen/adyen-openapi
//! (Webhooks-v1, ManagementService-v3), and what Adyen's SDKs do (Adyen 16 for Python, @adyen/api-library 32), where they
//! are not laxer than this page.
//!
//! **Signature** of a standard item: `additionalData.hmacSignature`, the padded base64 of an HMAC-SHA256 under the key's
//! bytes (the setting is its hex) over eight fields of the item, joined by `:` without any escaping; what is absent or null
//! is an empty text: `pspReference, originalReference, merchantAccountCode, merchantReference, amount.value,
//! amount.currency, eventCode, success`. So the body must be read before it is believed: strictly (no key twice, bounded
//! depth, at most [`ITEMS_MAX`] items), and by the same reader that later translates it. Stricter than the SDKs: **every**
//! item must hold, or the whole call is refused (Python's looks at the first only); an item without a signature is refused;
//! `success` must be a string; a `:` is allowed in `merchantReference` alone, since otherwise one signature could be read as
//! two different items.
//!
//! **What is not signed** (`reason`, `eventDate`, `paymentMethod`, `operations`, `live`, and all of `additionalData`: metadata,
//! `modification.action`, references of captures) could be anybody's, so no fact comes from it: keys, references and facts
//! are a function of the eight signed fields and the account's settings alone, which a test asserts. Used are
//! - `live`: an item that says the other mode than the account's is quarantined. It can withhold an item, for a person to
//!   look at, never make one count; the mode itself follows from the key, of which each endpoint has its own.
//! - `eventDate`: when it happened, for people. Not a version: duplicates may differ in it.
//!
//! `reason` is not kept: of a success it is card data (approval code, last four digits, expiry), of a refusal it may differ
//! between two refusals of one payment, which are one event here. `order_reference` may only name `merchantReference`.
//!
//! **Keys.** There is no event id. An event is `eventCode:pspReference:success:merchantAccountCode`: the same payment may
//! be refused and then authorised under one `pspReference`. A call is named by its body.
//!
//! **Versions.** Neither numbers nor signed times. What may follow what is fixed by the event codes, which are signed: a
//! refund is refused, or accepted and then perhaps failed; a dispute goes from inquiry to chargeback, reversal, second
//! chargeback, arbitration. These stages are the versions. Of several adjusted amounts the largest is shown as authorised.
//!
//! **Payments** are named by the `pspReference` of their authorisation, which is the `originalReference` of all that follows,
//! but for `EXPIRE` and `OFFER_CLOSED`, which may leave it out; another event without it names no payment and is
//! quarantined. `merchantReference` is the order on what Adyen tells of the payment itself and of disputes; on what the shop
//! asked for (captures, cancels, refunds) it is the shop's reference of that request, if it gave one: there the payment leads
//! to the order, unless `order_reference = "merchantReference"` says that the shop repeats its order's id.
//!
//! **Captures.** Whether Adyen captures by itself is the merchant account's (`capture` in the settings, `manual` by default):
//! no signed field says it. Then an `AUTHORISATION` is the capture, too, named by the payment's own reference, and whatever
//! gives the payment up undoes it. Methods that are captured at once in an account that captures by hand (iDEAL, say) stay
//! `authorized` here: only unsigned fields would tell. A capture that Adyen repeats after it failed ("Transaction
//! Recaptured") counts if it has a reference of its own; else all that is signed is the same as in the first, and a replay
//! of that one would count as well.
//!
//! **Reversals** (`CANCEL_OR_REFUND`) cancel what is not captured and refund what is; only the unsigned
//! `modification.action` says which it was. So both are told: the payment is given up, and its amount is refunded; an order of
//! which nothing was captured takes the former only.
//!
//! **Nobody can be asked** about a payment: no API gives its status by `pspReference`.

mod platform;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Acknowledgement, AskError, Capture, Endpoint, EndpointList, Keys, LateChanges, Profile, Proof, Psp,
    ReadError, Rejection, Scheme, SettingError, TranslateError, Verified, WantedEndpoint, WebhookRequest, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};
use crate::money::Money;
use crate::secret::Secret;

/// The adapter.
pub struct Adyen;

const STANDARD: &str = "adyen-standard-item";
const PLATFORM: &str = "adyen-platform-header";

/// Items in one call: Adyen sends one in JSON, up to six in SOAP.
const ITEMS_MAX: usize = 64;

/// Bytes of an HMAC key: Adyen's has 32; others are none of its making.
const KEY_BYTES: usize = 32;

/// What `translate` reads, where a webhook is not for all codes.
const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "AUTHORISATION",
        "AUTHORISATION_ADJUSTMENT",
        "CAPTURE",
        "CAPTURE_FAILED",
        "CANCELLATION",
        "TECHNICAL_CANCEL",
        "CANCEL_OR_REFUND",
        "EXPIRE",
        "OFFER_CLOSED",
        "REFUND",
        "REFUND_FAILED",
        "REFUNDED_REVERSED",
        "NOTIFICATION_OF_FRAUD",
        "REQUEST_FOR_INFORMATION",
        "NOTIFICATION_OF_CHARGEBACK",
        "CHARGEBACK",
        "DISPUTE_DEFENSE_PERIOD_ENDED",
        "CHARGEBACK_REVERSED",
        "PREARBITRATION_OPEN",
        "SECOND_CHARGEBACK",
        "PREARBITRATION_WON",
        "PREARBITRATION_LOST",
        "ISSUER_RESPONSE_TIMEFRAME_EXPIRED",
        "SCHEME_ARBITRATION_WON",
        "SCHEME_ARBITRATION_LOST",
    ],
    api_version: None,
    tells_secret: false,
};

/// Where an account's webhooks are listed, by mode.
const MANAGEMENT_LIVE: &str = "https://management-live.adyen.com";
const MANAGEMENT_TEST: &str = "https://management-test.adyen.com";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Adyen's largest page.
const PAGE: usize = 100;
/// More webhooks than this at one merchant account are not looked through.
const PAGES_MAX: u32 = 100;

static PROFILE: Profile = Profile {
    name: "Adyen",
    translate_headers: &[],
    timeout: Duration::from_secs(10),
    // At once three times, then after 2, 5, 10, 15, 30 min, 1, 2, 4, 8 h and so on; the earliest holds up all behind it.
    retry_window: Duration::from_hours(30 * 24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed(STANDARD), Scheme::signed(PLATFORM)],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: true },
    list: None,
    // https://docs.adyen.com/ip-ranges.json as of 2026-08-01; the name out.adyen.com holds fewer, and changes.
    sources: &[
        "62.146.248.0/21",
        "82.199.87.128/26",
        "82.199.90.136/29",
        "82.199.90.160/27",
        "85.184.228.0/22",
        "91.212.42.0/24",
        "135.84.148.0/22",
        "145.63.64.0/18",
        "147.12.16.0/20",
        "185.101.196.0/22",
        "213.52.172.0/25",
    ],
};

impl Psp for Adyen {
    fn id(&self) -> &'static str {
        "adyen"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Customer Area: Developers, Webhooks, a standard webhook of the merchant account, with an HMAC key"
    }

    /// Those of the platform are listed by another API.
    fn wanted_endpoint(&self, account: &Account) -> Option<WantedEndpoint> {
        (account.keys.scheme != PLATFORM).then_some(WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        let refuse = |setting, problem: String| Err(SettingError { setting, problem });
        for secret in &account.keys.secrets {
            if key(secret).is_none() {
                return refuse("secrets", format!("{} is not the hex of an HMAC key: 64 hex digits", secret.name()));
            }
        }
        if account.api.merchant_id.as_deref().is_some_and(|id| !is_merchant_id(id)) {
            return refuse("merchant_id", "is no merchant account: letters, digits, '-' and '_'".to_owned());
        }
        let unsigned = |path: &[String]| !matches!(path, [name] if name == "merchantReference");
        if account.keys.scheme != PLATFORM && account.order_reference.as_deref().is_some_and(unsigned) {
            return refuse("order_reference", "may only be merchantReference: Adyen signs no other reference".to_owned());
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        if keys.scheme == PLATFORM {
            return platform::verify(request, keys, now);
        }
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let malformed = |problem: Problem| Rejection::MalformedBody(problem.reason);
        let value = json::read(request.body).map_err(malformed)?;
        let items = items(&Node::root(&value)).map_err(malformed)?;
        let mut secret_name = None;
        for item in &items {
            let offered = item.signature.ok_or(Rejection::NoUsableSignature("an item has none"))?;
            let offered = signature::base64::<32>(offered)
                .ok_or(Rejection::MalformedBody("the signature of an item is not the base64 of 32 bytes"))?;
            let signed = item.signed();
            secret_name = Some(signature::matching_secret(keys, now, |secret| {
                key(secret).map_or(Choice::from(0), |key| signature::hmac_sha256(&*key, &[signed.as_bytes()]).ct_eq(&offered))
            })?);
        }
        let event_type = items
            .first()
            .map(|item| item.event_code)
            .filter(|code| json::is_name(code) && items.iter().all(|item| item.event_code == *code));
        Ok(Verified {
            // Not by what is signed: another body around the same items must not pass for this one.
            webhook_id: signature::body_id(request.body),
            event_type: event_type.map(str::to_owned),
            subject: None,
            secret_name: secret_name.ok_or(Rejection::MalformedBody("no items"))?,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    /// The status is what counts; webhooks of older settings look for the text.
    fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement { status: StatusCode::OK, content_type: Some("text/plain"), body: "[accepted]" }
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let root = Node::root(&value);
        if account.keys.scheme == PLATFORM {
            return platform::translate(&root, account).map(|event| vec![event]);
        }
        if let Some(live) = root.optional("live") {
            match (live.as_text(), account.mode) {
                (Some("true"), Mode::Live) | (Some("false"), Mode::Test) => {}
                (Some("true" | "false"), _) => return Err(live.problem("of the other mode than the account's").into()),
                _ => return Err(live.problem("neither true nor false").into()),
            }
        }
        let (mut events, mut ignored) = (Vec::new(), None);
        for item in &items(&root)? {
            match item.translate(account) {
                Ok(told) => events.extend(told),
                Err(TranslateError::Ignored(reason)) => ignored = Some(reason),
                Err(error) => return Err(error),
            }
        }
        match ignored {
            Some(reason) if events.is_empty() => Err(TranslateError::Ignored(reason)),
            _ => Ok(events),
        }
    }

    /// Webhooks of the merchant account `merchant_id`; those of its company account are not in the list.
    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let merchant = account.api.merchant_id.as_deref().ok_or(AskError::Missing("merchant_id"))?;
        if !is_merchant_id(merchant) {
            return Err(AskError::MalformedId(merchant.to_owned()));
        }
        let number = match cursor {
            None => 1,
            Some(cursor) => page_number(cursor).ok_or_else(|| AskError::MalformedId(cursor.to_owned()))?,
        };
        let host = if account.mode == Mode::Live { MANAGEMENT_LIVE } else { MANAGEMENT_TEST };
        let path = format!("/v3/merchants/{merchant}/webhooks?pageSize={PAGE}&pageNumber={number}");
        ask::finish(ask::get_with_token(account, host, &path).header(API_KEY, ask::plain_key(account)?))
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(EndpointList { endpoints: Vec::new(), next: None });
        }
        let value = json::read(answer::body(response, None)?)?;
        let list = Node::root(&value);
        let items = list.optional("data").map(|_| list.array("data")).transpose()?.unwrap_or_default();
        if items.len() > PAGE {
            return Err(list.problem("a page larger than was asked for").into());
        }
        let next = next_page(&list)?;
        if next.is_some() && items.is_empty() {
            return Err(list.problem("an empty page with more to come").into());
        }
        let endpoints = items.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(EndpointList { endpoints, next: next.map(|number| number.to_string()) })
    }
}

/// The bytes of an HMAC key, wiped after use; `None` for what is none.
fn key(secret: &Secret) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    hex::decode_to_slice(secret.expose(), &mut *key).ok().map(|()| key)
}

// ------------------------------------------------------------------------------------------------------------ items

/// The signed fields of an item, as they are signed: what is absent is empty.
struct Item<'a> {
    psp_reference: &'a str,
    original_reference: &'a str,
    merchant_account: &'a str,
    merchant_reference: &'a str,
    value: Option<i64>,
    currency: &'a str,
    event_code: &'a str,
    success: &'a str,
    signature: Option<&'a str>,
    node: Node<'a>,
}

/// The items of a call, of which there is at least one.
fn items<'a>(root: &Node<'a>) -> Result<Vec<Item<'a>>, Problem> {
    let wrappers = root.array("notificationItems")?;
    if wrappers.is_empty() || wrappers.len() > ITEMS_MAX {
        return Err(root.required("notificationItems")?.problem("no items, or too many"));
    }
    wrappers.iter().map(|wrapper| Item::read(wrapper.object("NotificationRequestItem")?)).collect()
}

impl<'a> Item<'a> {
    fn read(node: Node<'a>) -> Result<Self, Problem> {
        let amount = node.optional("amount").map(|_| node.object("amount")).transpose()?;
        let (value, currency) = match &amount {
            Some(amount) => (amount.optional_integer("value")?, unambiguous(amount, "currency")?),
            None => (None, ""),
        };
        node.required("success")?;
        let additional = node.optional("additionalData").map(|_| node.object("additionalData")).transpose()?;
        let signature = additional.map(|additional| text(&additional, "hmacSignature")).transpose()?;
        Ok(Self {
            psp_reference: unambiguous(&node, "pspReference")?,
            original_reference: unambiguous(&node, "originalReference")?,
            merchant_account: unambiguous(&node, "merchantAccountCode")?,
            merchant_reference: text(&node, "merchantReference")?,
            value,
            currency,
            event_code: unambiguous(&node, "eventCode")?,
            success: unambiguous(&node, "success")?,
            signature: signature.filter(|signature| !signature.is_empty()),
            node,
        })
    }

    /// The text that is signed.
    fn signed(&self) -> String {
        let value = self.value.map(|value| value.to_string()).unwrap_or_default();
        let Self { psp_reference, original_reference, merchant_account, merchant_reference, .. } = self;
        let Self { currency, event_code, success, .. } = self;
        format!(
            "{psp_reference}:{original_reference}:{merchant_account}:{merchant_reference}:{value}:{currency}:{event_code}:{success}"
        )
    }

    fn translate(&self, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let Some(code) = Code::of(self.event_code) else {
            return Err(TranslateError::Ignored(format!("{} says nothing about a payment's money", self.event_code)));
        };
        let name = |key| self.node.name(key);
        if account.api.merchant_id.as_deref().is_some_and(|expected| expected != self.merchant_account) {
            return Err(self.node.required("merchantAccountCode")?.problem("another account than merchant_id").into());
        }
        let succeeded = match self.success {
            "true" => true,
            "false" => false,
            _ => return Err(self.node.required("success")?.problem("neither true nor false").into()),
        };
        let (own, account_code) = (name("pspReference")?, name("merchantAccountCode")?);
        let names_itself = self.original_reference.is_empty() && code.names_its_payment();
        let payment_id = if names_itself { own } else { name("originalReference")? };
        let at = telling::time(&self.node, "eventDate")?;
        let money = self.node.object("amount")?.money("value")?;
        let facts = code.facts(succeeded, own, payment_id, money, account.capture)?;
        let is_order = !code.was_asked_for() || account.order_reference.is_some();
        let order = Some(self.merchant_reference).filter(|order| is_order && json::is_name(order));
        let event_id = format!("{}:{own}:{}:{account_code}", self.event_code, self.success);
        let told = facts.into_iter().map(|Told { suffix, stage, fact }| {
            let event_id = format!("{event_id}{suffix}");
            if !json::is_name(&event_id) {
                return Err(self.node.required("pspReference")?.problem("too long for a key"));
            }
            let telling = Telling {
                event_id,
                event_type: self.event_code,
                at,
                mode: None,
                order,
                payment_id,
                others: Vec::new(),
                version: FactVersion::Number(stage),
                fact,
            };
            Ok(telling.event(account, Source::Webhook))
        });
        Ok(told.collect::<Result<_, _>>()?)
    }
}

/// The text at `key`; empty if it is absent.
fn text<'a>(object: &Node<'a>, key: &str) -> Result<&'a str, Problem> {
    object.optional(key).map_or(Ok(""), |member| member.as_text().ok_or_else(|| member.problem("not a string")))
}

/// The same, of a field that could pass for two if it had a colon.
fn unambiguous<'a>(object: &Node<'a>, key: &str) -> Result<&'a str, Problem> {
    let text = text(object, key)?;
    if text.contains(':') {
        return Err(object.required(key)?.problem("a colon, which separates what is signed"));
    }
    Ok(text)
}

// ------------------------------------------------------------------------------------------------------ translation

/// An event code that says something about a payment's money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Authorisation,
    Adjustment,
    Capture,
    CaptureFailed,
    Cancellation,
    Reversal,
    Expire,
    OfferClosed,
    Refund,
    RefundUndone,
    /// With its stage: the order in which a dispute can pass through them (docs.adyen.com, dispute flow).
    Dispute(i64, DisputeState),
}

/// A fact that an item tells.
struct Told {
    /// Tells it from the item's other facts.
    suffix: &'static str,
    /// How far its object has come: the fact's version.
    stage: i64,
    fact: Fact,
}

impl Code {
    /// `None` for what is none of our business.
    fn of(event_code: &str) -> Option<Self> {
        use DisputeState::{Inquiry, Lost, Open, Won};
        Some(match event_code {
            "AUTHORISATION" => Self::Authorisation,
            "AUTHORISATION_ADJUSTMENT" => Self::Adjustment,
            "CAPTURE" => Self::Capture,
            "CAPTURE_FAILED" => Self::CaptureFailed,
            "CANCELLATION" | "TECHNICAL_CANCEL" => Self::Cancellation,
            "CANCEL_OR_REFUND" => Self::Reversal,
            "EXPIRE" => Self::Expire,
            "OFFER_CLOSED" => Self::OfferClosed,
            "REFUND" => Self::Refund,
            "REFUND_FAILED" | "REFUNDED_REVERSED" => Self::RefundUndone,
            "NOTIFICATION_OF_FRAUD" => Self::Dispute(1, Inquiry),
            "REQUEST_FOR_INFORMATION" => Self::Dispute(2, Inquiry),
            "NOTIFICATION_OF_CHARGEBACK" => Self::Dispute(3, Open),
            "CHARGEBACK" => Self::Dispute(4, Open),
            "DISPUTE_DEFENSE_PERIOD_ENDED" => Self::Dispute(5, Lost),
            // Not final: the issuer may come back.
            "CHARGEBACK_REVERSED" => Self::Dispute(6, Won),
            "PREARBITRATION_OPEN" => Self::Dispute(7, Open),
            "SECOND_CHARGEBACK" => Self::Dispute(8, Lost),
            "PREARBITRATION_WON" => Self::Dispute(9, Won),
            "PREARBITRATION_LOST" => Self::Dispute(9, Lost),
            "ISSUER_RESPONSE_TIMEFRAME_EXPIRED" => Self::Dispute(10, Won),
            "SCHEME_ARBITRATION_WON" => Self::Dispute(11, Won),
            "SCHEME_ARBITRATION_LOST" => Self::Dispute(11, Lost),
            _ => return None,
        })
    }

    /// Its `pspReference` is the payment's, where it has no `originalReference`.
    const fn names_its_payment(self) -> bool {
        matches!(self, Self::Authorisation | Self::Expire | Self::OfferClosed)
    }

    /// The shop asked for it, and may have given it a reference of its own.
    const fn was_asked_for(self) -> bool {
        match self {
            Self::Authorisation | Self::Expire | Self::OfferClosed | Self::Dispute(..) => false,
            Self::Adjustment
            | Self::Capture
            | Self::CaptureFailed
            | Self::Cancellation
            | Self::Reversal
            | Self::Refund
            | Self::RefundUndone => true,
        }
    }

    /// What it says, from signed fields alone. `own` is the event's reference.
    fn facts(
        self,
        succeeded: bool,
        own: &str,
        payment_id: &str,
        money: Money,
        capture: Capture,
    ) -> Result<Vec<Told>, TranslateError> {
        let automatic = capture == Capture::Automatic;
        // The one capture of a payment that Adyen captures by itself is named like the payment, whatever tells of it.
        let captured_as = |state| {
            let id = if automatic { payment_id } else { own }.to_owned();
            Fact::Capture { id, state, amount: money }
        };
        let refund = |state| Fact::Refund { id: own.to_owned(), state, amount: money, created: None };
        let payment = |state| Fact::Payment(PaymentFact::new(state));
        let alone = |stage, fact| vec![Told { suffix: "", stage, fact }];
        let given_up = |state| {
            let mut told = alone(1, payment(state));
            if automatic {
                told.push(Told { suffix: ":capture", stage: 4, fact: captured_as(CaptureState::Failed) });
            }
            told
        };
        let told = match (self, succeeded) {
            // A card that is only checked pays nothing.
            (Self::Authorisation, true) if automatic && money.minor > 0 => {
                let fact =
                    PaymentFact { authorized: Some(money), capture_final: true, ..PaymentFact::new(PaymentState::Captured) };
                let captured = Told { suffix: ":capture", stage: 1, fact: captured_as(CaptureState::Succeeded) };
                vec![Told { suffix: "", stage: 1, fact: Fact::Payment(fact) }, captured]
            }
            (Self::Authorisation, true) => alone(1, authorized(money)),
            (Self::Authorisation, false) => {
                let failure = Some(telling::failure(Some("refused"), None));
                alone(1, Fact::Payment(PaymentFact { failure, ..PaymentFact::new(PaymentState::Failed) }))
            }
            (Self::Adjustment, true) => alone(2, authorized(money)),
            (Self::Capture, true) => alone(2, captured_as(CaptureState::Succeeded)),
            (Self::CaptureFailed, true) => alone(3, captured_as(CaptureState::Failed)),
            (Self::Cancellation, true) => given_up(PaymentState::Canceled),
            (Self::Expire, true) => given_up(PaymentState::AuthorizationExpired),
            (Self::OfferClosed, true) => alone(1, payment(PaymentState::Expired)),
            (Self::Refund, false) => alone(1, refund(RefundState::Failed)),
            (Self::Refund, true) => alone(2, refund(RefundState::Succeeded)),
            (Self::RefundUndone, true) => alone(3, refund(RefundState::Failed)),
            (Self::Reversal, true) => {
                let canceled = Told { suffix: ":cancel", stage: 1, fact: payment(PaymentState::Canceled) };
                vec![Told { suffix: "", stage: 2, fact: refund(RefundState::Succeeded) }, canceled]
            }
            (Self::Dispute(reached, state), true) => alone(reached, Fact::Dispute { id: own.to_owned(), state, amount: money }),
            (_, false) => return Err(TranslateError::Ignored("it did not succeed: the payment stays as it is".to_owned())),
        };
        Ok(told)
    }
}

fn authorized(money: Money) -> Fact {
    Fact::Payment(PaymentFact { authorized: Some(money), ..PaymentFact::new(PaymentState::Authorized) })
}

// -------------------------------------------------------------------------------------------------------- endpoints

/// The number of the page after this one. Refuses a list that leads back, or on without an end.
fn next_page(list: &Node<'_>) -> Result<Option<u32>, Problem> {
    let Some(links) = list.optional("_links") else { return Ok(None) };
    let number = |key: &str| -> Result<Option<u32>, Problem> {
        let Some(link) = links.optional(key) else { return Ok(None) };
        let href = link.required("href")?;
        let query = href.as_text().and_then(|url| url.split_once('?')).map(|(_, query)| query);
        let number = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("pageNumber=")));
        number.and_then(page_number).map(Some).ok_or_else(|| href.problem("names no page"))
    };
    match (number("self")?, number("next")?) {
        (Some(this), Some(next)) if next <= this => Err(links.problem("a page that leads back")),
        (_, next) => Ok(next),
    }
}

/// 1 to [`PAGES_MAX`], in plain digits.
fn page_number(text: &str) -> Option<u32> {
    let number = signature::seconds(text).and_then(|number| u32::try_from(number).ok())?;
    (1..=PAGES_MAX).contains(&number).then_some(number)
}

fn endpoint(webhook: &Node<'_>) -> Result<Endpoint, Problem> {
    let event = |event: Node<'_>| event.as_text().map(str::to_owned).ok_or_else(|| event.problem("not a string"));
    let settings = webhook.optional("additionalSettings").map(|_| webhook.object("additionalSettings")).transpose()?;
    let included = settings.filter(|settings| settings.optional("includeEventCodes").is_some());
    let included = included.map(|settings| settings.array("includeEventCodes")).transpose()?.unwrap_or_default();
    let mut events = included.into_iter().map(event).collect::<Result<Vec<_>, _>>()?;
    if events.is_empty() {
        events.push("*".to_owned());
    }
    let url = webhook.required("url")?;
    Ok(Endpoint {
        id: webhook.name("id")?.to_owned(),
        url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
        enabled: webhook.optional_bool("active")?.unwrap_or(false),
        events,
        api_version: None,
        mode: None,
    })
}

fn is_merchant_id(text: &str) -> bool {
    ask::is_id(text, b"-_")
}

#[cfg(test)]
pub(super) mod tests;
