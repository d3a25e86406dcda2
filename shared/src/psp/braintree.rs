//! Braintree: transactions, refunds, partial settlements, disputes, local payments.
//!
//! Sources: developer.paypal.com/braintree/docs, and what its SDKs do (braintree 4.48 for Python, 3.40 for Node).
//!
//! **Form.** `bt_signature=…&bt_payload=…`, form-encoded; the payload is XML in base64 with newlines. The scheme signs the
//! *decoded* payload text, so the form is the one thing that is parsed before the signature holds, and strictly: every byte
//! is visible ASCII or a whole `%XX`, `+` is a space (so that a payload in which plus signs were not encoded is refused as
//! one that has spaces), neither field is there twice, and what is no base64 or newline is refused, as the SDKs refuse it.
//!
//! **Signature.** `<public key>|<40 lowercase hex>`, several joined by `&`, of which ours is the one with our public key (a
//! pair per key of the merchant account, so that keys rotate one by one). HMAC-SHA1; the key is the SHA-1 of the private
//! key's text; over the payload text with its newlines. As the SDKs do, a payload whose last newline was lost on the way is
//! accepted under the signature that has it. The time in it is not judged: the SDKs do not, and retries repeat it.
//!
//! **Challenge.** `GET ?bt_challenge=<20 to 32 lowercase hex>` is answered `<public key>|<the challenge signed>`, by the same
//! key. So anyone can have such a text signed; a payload that is one is refused. (Whether Braintree still asks is uncertain;
//! answering costs nothing.)
//!
//! **Keys of events.** A notification has no id: (kind, subject's id, timestamp).
//!
//! **Payments** are sales, by the transaction's id. A credit is a refund of the transaction that it names; a partial settlement
//! is a transaction of its own that names the one that was authorised: a capture of it. Amounts are decimal strings.
//!
//! **A settlement that was declined** ends the transaction. If it had been authorised (its status history says so), that
//! authorisation is spent, which only "canceled" says against an authorisation that is known; else it is a failed attempt. The
//! failure's code and text are there in both.
//!
//! **Notifications say little**: an ordinary card's authorisation has none, `transaction_disbursed` may have no currency and
//! then says "captured" of no amount, `local_payment_completed` is as its transaction's status says (the money is not there
//! while that is `authorizing`), `local_payment_reversed` names no transaction: the local payment is given up. Where the
//! transaction itself would say more, [`Psp::hinted`] names it.
//!
//! **Versions** are the timestamp of a notification, an object's `updated-at` in an answer, else the answer's `Date`.
//!
//! **API** (as the SDKs speak it): XML, `Basic <public key>:<private key>`, with the path of the merchant (`merchant_id`);
//! `api_key` is the private key that belongs to `public_key`. The sweep searches transactions by the times at which they were
//! made, settled, voided, lapsed or disputed; that a dispute is decided, or a refund fails, has no such time.
//!
//! **Uncertain**: the time-out (30 s, second hand) and the retries (hourly for 24 h, second hand).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use sha1::{Digest as _, Sha1};
use subtle::ConstantTimeEq as _;

use super::json::Problem;
use super::signature::{self, SIGNATURES_MAX};
use super::telling::{self, Telling};
use super::xml::{self, Element};
use super::{
    Abilities, Account, Answer, AskError, Asked, Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Failure, Mode, PaymentEvent, PaymentFact, PaymentState, Reference,
    ReferenceKind, RefundState, Source,
};
use crate::money::Money;
use crate::secret::Secret;

/// The adapter.
pub struct Braintree;

const LIVE_API: &str = "https://api.braintreegateway.com";
const TEST_API: &str = "https://api.sandbox.braintreegateway.com";
/// What the SDKs send.
const API_VERSION: &str = "6";
const XML: HeaderValue = HeaderValue::from_static("application/xml");

/// Fields of a form; Braintree sends two.
const FIELDS_MAX: usize = 8;
/// The longest of Braintree's ids that is taken, in bytes; they have up to 36. A key of an event holds one and a kind.
const ID_BYTES_MAX: usize = 100;
/// Transactions in one page of a search, as the SDKs ask for them.
const PAGE: usize = 50;
/// Refunds and partial settlements of one transaction that are looked at: as many pages as a look may have.
const RELATED_MAX: usize = 400;
/// Transactions that one search of the sweep may find: Braintree's searches find no more than 50,000, and leave out the rest.
const SWEPT_MAX: usize = 50_000;
/// Of these, so many are kept in mind; then it is searched again for those behind them.
const CARRIED_MAX: usize = 250;
/// The times by which the sweep searches. No search knows when a transaction was last changed.
const SWEPT_BY: [&str; 5] = ["created_at", "settled_at", "voided_at", "authorization_expired_at", "dispute_date"];

static PROFILE: Profile = Profile {
    name: "Braintree",
    translate_headers: &[],
    timeout: Duration::from_secs(30),
    // In production; the sandbox gives up after three hours.
    retry_window: Duration::from_hours(24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("braintree-form")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Begun, endpoint_list: false },
    // A search finds a limited number of transactions.
    list: Some(Listing { slice: Some(Duration::from_hours(1)), ..Listing::USUAL }),
    sources: &[],
};

impl Psp for Braintree {
    fn id(&self) -> &'static str {
        "braintree"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Control Panel: Settings, API, Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        let refuse = |setting, problem: &str| Err(SettingError { setting, problem: problem.to_owned() });
        match &account.keys.public_key {
            None => return refuse("public_key", "is missing: a notification is signed once for each key, and this names ours"),
            Some(key) if !is_id(key) => return refuse("public_key", "is no public key of Braintree"),
            Some(_) => {}
        }
        match &account.api.merchant_id {
            None if account.api.key.is_some() => return refuse("merchant_id", "is missing: the API's paths have it"),
            Some(id) if !is_id(id) => return refuse("merchant_id", "is no id of Braintree"),
            _ => {}
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let public_key = keys.public_key.as_deref().ok_or(Rejection::Setting("public_key"))?;
        let form = Form::read(request.body)?;
        let offered = form.signature_of(public_key)?;
        let payload = form.payload.as_bytes();
        let secret_name = signature::matching_secret(keys, now, |secret| {
            let key = signing_key(secret);
            let whole = signature::hmac_sha1(&key, &[payload]).ct_eq(&offered);
            whole | signature::hmac_sha1(&key, &[payload, b"\n"]).ct_eq(&offered)
        })?;
        Ok(Verified {
            webhook_id: signature::body_id(request.body),
            event_type: form.kind(),
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn challenge(&self, query: &str, keys: &Keys) -> Option<String> {
        let mut asked = query.split('&').filter_map(|field| field.strip_prefix("bt_challenge="));
        let challenge = asked.next().filter(|challenge| is_challenge(challenge))?;
        if asked.next().is_some() {
            return None;
        }
        let mac = signature::hmac_sha1(&signing_key(keys.secrets.first()?), &[challenge.as_bytes()]);
        Some(format!("{}|{}", keys.public_key.as_deref()?, hex::encode(mac)))
    }

    /// Of settlements; of a transaction that was refused, voided, or lapsed, there is no event.
    fn announces(&self, fact: &Fact) -> bool {
        matches!(fact, Fact::Payment(fact) if fact.state == PaymentState::Captured)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let xml = Form::read(&envelope.body).ok().and_then(|form| form.xml());
        let xml = xml.ok_or_else(|| Problem { reason: "not base64", pointer: String::new() })?;
        let document = xml::read(&xml)?;
        translate_notification(&Element::root(&document, "notification")?, account).map(|event| vec![event])
    }

    fn hinted(&self, envelope: &Envelope, account: &Account) -> Result<Vec<String>, TranslateError> {
        let ended = [PaymentState::Canceled, PaymentState::Expired, PaymentState::AuthorizationExpired];
        let says_too_little = |event: &PaymentEvent| match &event.fact {
            Fact::Payment(fact) => fact.captured.is_none() && fact.authorized.is_none() && !ended.contains(&fact.state),
            _ => false,
        };
        let events = self.translate(envelope, account)?;
        Ok(events.into_iter().filter(says_too_little).map(|event| event.payment_id).collect())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_id(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        match StatusStep::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))? {
            StatusStep::Payment => ask(account, &format!("/transactions/{payment_id}"), None),
            StatusStep::Related { ids } => search_by_ids(account, &ids),
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let document = xml::read(answer::body(response, Some(asked.at))?)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at), about: "" };
        match step {
            StatusStep::Payment => look.payment(&Element::root(&document, "transaction")?),
            StatusStep::Related { ids } => look.related(&Element::root(&document, "credit_card_transactions")?, &ids),
        }
    }

    /// Transactions found by each of [`SWEPT_BY`] in turn: first their ids, then themselves, page by page.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        match SweepStep::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))? {
            SweepStep { by, place: Search::Begin | Search::Behind(_) } => {
                let Window { since, until } = window.in_seconds();
                let time = format!("<min type=\"datetime\">{since}</min><max type=\"datetime\">{until}</max>");
                let criterion = format!("<{0}>{time}</{0}>", SWEPT_BY[by]);
                ask(account, "/transactions/advanced_search_ids", Some(format!("<search>{criterion}</search>")))
            }
            SweepStep { place: Search::Found { ids, .. }, .. } => search_by_ids(account, &ids),
        }
    }

    fn read_events(
        &self,
        _window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let step = SweepStep::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let document = xml::read(answer::body(response, Some(asked.at))?)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at), about: SWEPT_BY[step.by] };
        match &step.place {
            Search::Begin => step.found(&Element::root(&document, "search_results")?, None),
            Search::Behind(last) => step.found(&Element::root(&document, "search_results")?, Some(*last)),
            Search::Found { ids, more } => {
                let next = step.after(&ids[ids.len().min(PAGE)..], ids.last().filter(|_| *more).copied());
                look.swept(&Element::root(&document, "credit_card_transactions")?, &ids[..ids.len().min(PAGE)], next)
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// The form's two fields, decoded, their grammar checked.
struct Form {
    /// Pairs of a public key and a signature.
    signature: String,
    /// Base64 with newlines: what is signed.
    payload: String,
}

impl Form {
    fn read(body: &[u8]) -> Result<Self, Rejection> {
        let (mut signature, mut payload) = (None, None);
        for (number, field) in body.split(|byte| *byte == b'&').enumerate() {
            if number == FIELDS_MAX {
                return Err(Rejection::MalformedBody("the form has too many fields"));
            }
            let equals = field.iter().position(|byte| *byte == b'=');
            let (name, value) = field.split_at(equals.ok_or(Rejection::MalformedBody("a field is no name=value"))?);
            let wanted = match name {
                b"bt_signature" => &mut signature,
                b"bt_payload" => &mut payload,
                _ => continue,
            };
            if wanted.replace(decoded(&value[1..])?).is_some() {
                return Err(Rejection::MalformedBody("a field is there twice"));
            }
        }
        let signature = signature.ok_or(Rejection::MalformedBody("it has no bt_signature"))?;
        let payload = payload.ok_or(Rejection::MalformedBody("it has no bt_payload"))?;
        if !payload.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'\n')) {
            return Err(Rejection::MalformedBody("its payload has characters that no base64 has"));
        }
        if payload.is_empty() || is_challenge(payload.trim_end_matches('\n')) {
            return Err(Rejection::MalformedBody("its payload is empty, or a challenge, which anyone can have signed"));
        }
        Ok(Self { signature, payload })
    }

    /// What was signed under our public key.
    fn signature_of(&self, public_key: &str) -> Result<[u8; 20], Rejection> {
        if self.signature.split('&').count() > SIGNATURES_MAX {
            return Err(Rejection::MalformedBody("it has too many signatures"));
        }
        let pairs = self.signature.split('&').filter_map(|pair| pair.split_once('|'));
        let mut ours = pairs.filter(|(key, _)| *key == public_key).map(|(_, signature)| signature);
        let signature = ours.next().ok_or(Rejection::NoUsableSignature("none of our public key"))?;
        if ours.next().is_some() {
            return Err(Rejection::MalformedBody("it has two signatures of our public key"));
        }
        signature::lower_hex(signature).ok_or(Rejection::MalformedBody("our signature is not 40 lowercase hex digits"))
    }

    fn xml(&self) -> Option<Vec<u8>> {
        let text: Vec<u8> = self.payload.bytes().filter(|byte| *byte != b'\n').collect();
        STANDARD.decode(text).ok()
    }

    /// The kind of an authentic notification. What is no such XML is still authentic: the worker quarantines it.
    fn kind(&self) -> Option<String> {
        let xml = self.xml()?;
        let document = xml::read(&xml).ok()?;
        Element::root(&document, "notification").ok()?.name("kind").ok().map(str::to_owned)
    }
}

/// A field's value. Only ASCII comes out, since nothing else has a place in either field.
fn decoded(value: &[u8]) -> Result<String, Rejection> {
    let malformed = Rejection::MalformedBody("a field is not form-encoded ASCII");
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut text = String::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(malformed),
            },
            b'+' => b' ',
            byte if byte.is_ascii_graphic() => *byte,
            _ => return Err(malformed),
        };
        if !byte.is_ascii() {
            return Err(malformed);
        }
        text.push(char::from(byte));
    }
    Ok(text)
}

fn signing_key(secret: &Secret) -> [u8; 20] {
    Sha1::digest(secret.expose().as_bytes()).into()
}

fn is_challenge(text: &str) -> bool {
    (20..=32).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

// ------------------------------------------------------------------------------------------------------ translation

/// What a notification speaks of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Of a transaction, whose status is known by the kind, or else stands in it.
    Transaction {
        status: Option<&'static str>,
    },
    RefundFailed,
    /// Of a local payment and its transaction.
    LocalPayment {
        element: &'static str,
        status: Option<&'static str>,
    },
    /// Of a local payment that comes to nothing.
    LocalPaymentEnded {
        element: &'static str,
        state: PaymentState,
    },
    Dispute {
        status: &'static str,
    },
}

impl Family {
    /// `None` for what is none of our business.
    fn of(kind: &str) -> Option<Self> {
        let family = match kind {
            "transaction_settled" | "transaction_disbursed" => Self::Transaction { status: Some("settled") },
            "transaction_settlement_declined" => Self::Transaction { status: Some("settlement_declined") },
            "transaction_retried" => Self::Transaction { status: None },
            "refund_failed" => Self::RefundFailed,
            "local_payment_completed" => Self::LocalPayment { element: "local_payment", status: None },
            "local_payment_funded" => Self::LocalPayment { element: "local_payment_funded", status: Some("settled") },
            "local_payment_expired" => Self::LocalPaymentEnded { element: "local_payment_expired", state: PaymentState::Expired },
            "local_payment_reversed" => {
                Self::LocalPaymentEnded { element: "local_payment_reversed", state: PaymentState::Canceled }
            }
            "dispute_opened" | "dispute_under_review" | "dispute_disputed" => Self::Dispute { status: "open" },
            "dispute_won" => Self::Dispute { status: "won" },
            "dispute_lost" | "dispute_accepted" | "dispute_auto_accepted" | "dispute_expired" => Self::Dispute { status: "lost" },
            _ => return None,
        };
        Some(family)
    }
}

fn translate_notification<'d>(notification: &Element<'d>, account: &Account) -> Result<PaymentEvent, TranslateError> {
    let kind = notification.name("kind")?;
    let Some(family) = Family::of(kind) else {
        return Err(TranslateError::Ignored(match kind {
            "check" => "a test of the endpoint".to_owned(),
            kind => format!("{kind} says nothing about a payment"),
        }));
    };
    let at = notification.time("timestamp")?;
    let subject = notification.required("subject")?;
    let telling = |subject_id: &str, payment_id, order, others, fact| Telling {
        event_id: format!("{kind}:{subject_id}:{}", at.seconds()),
        event_type: kind,
        at,
        mode: None,
        order,
        payment_id,
        others,
        version: FactVersion::Time(at.millis()),
        fact,
    };
    let of_transaction = |transaction: Element<'d>, status, others| -> Result<PaymentEvent, TranslateError> {
        let told = transaction_fact(&transaction, status)?;
        let Some((payment_id, fact)) = told else {
            return Err(TranslateError::Ignored("a credit that refunds no transaction".to_owned()));
        };
        let event = telling(id(&transaction, "id")?, payment_id, order(&transaction, account), others, fact);
        Ok(event.event(account, Source::Webhook))
    };
    match family {
        Family::Transaction { status } => {
            let transaction = subject.required("transaction")?;
            let told = transaction.optional_name("status")?;
            // Settled and declined are ends: a document of the other end speaks of something else.
            if let (Some(status), Some(told)) = (status, told)
                && kind != "transaction_disbursed"
                && state_of(status) != state_of(told)
            {
                return Err(transaction.required("status")?.problem("contradicts the notification's kind").into());
            }
            of_transaction(transaction, status.or(told).unwrap_or_default(), Vec::new())
        }
        Family::RefundFailed => {
            let refund = subject.required("transaction")?;
            let payment_id = id(&refund, "refunded_transaction_id")?;
            let fact = refund_fact(&refund, RefundState::Failed)?;
            Ok(telling(id(&refund, "id")?, payment_id, order(&refund, account), Vec::new(), fact).event(account, Source::Webhook))
        }
        Family::LocalPayment { element, status } => {
            let local = subject.required(element)?;
            let Some(transaction) = local.optional("transaction")? else {
                return Err(TranslateError::Ignored("a local payment of which no transaction was made yet".to_owned()));
            };
            let local_id = local.optional_name("payment_id")?.map(|id| Reference::new(ReferenceKind::Session, id));
            let status = status.or(transaction.optional_name("status")?).unwrap_or_default();
            of_transaction(transaction, status, local_id.into_iter().collect())
        }
        Family::LocalPaymentEnded { element, state } => {
            let local_id = id(&subject.required(element)?, "payment_id")?;
            let others = vec![Reference::new(ReferenceKind::Session, local_id)];
            let fact = Fact::Payment(PaymentFact::new(state));
            Ok(telling(local_id, local_id, None, others, fact).event(account, Source::Webhook))
        }
        Family::Dispute { status } => {
            let dispute = subject.required("dispute")?;
            let transaction = dispute.required("transaction")?;
            let fact = dispute_fact(&dispute, status)?;
            let order = order(&transaction, account);
            Ok(telling(id(&dispute, "id")?, id(&transaction, "id")?, order, Vec::new(), fact).event(account, Source::Webhook))
        }
    }
}

/// What a transaction in this status says, and of which payment; `None` for a credit that refunds nothing.
fn transaction_fact<'d>(transaction: &Element<'d>, status: &str) -> Result<Option<(&'d str, Fact)>, Problem> {
    let state = state_of(status);
    if transaction.optional_name("type")? == Some("credit") {
        if transaction.optional_text("refunded_transaction_id")?.is_none() {
            return Ok(None);
        }
        let refund = refund_fact(
            transaction,
            match state {
                State::Settled => RefundState::Succeeded,
                State::Voided | State::Lapsed | State::Failed | State::Declined => RefundState::Failed,
                State::Open | State::Held => RefundState::Pending,
            },
        )?;
        return Ok(Some((id(transaction, "refunded_transaction_id")?, refund)));
    }
    if transaction.optional_text("authorized_transaction_id")?.is_some() {
        let state = match state {
            State::Settled => CaptureState::Succeeded,
            State::Voided | State::Lapsed | State::Failed | State::Declined => CaptureState::Failed,
            State::Open | State::Held => CaptureState::Pending,
        };
        let amount = transaction.money("amount", "currency_iso_code")?;
        let capture = Fact::Capture { id: id(transaction, "id")?.to_owned(), state, amount };
        return Ok(Some((id(transaction, "authorized_transaction_id")?, capture)));
    }
    let mut fact = PaymentFact::new(PaymentState::Pending);
    match state {
        State::Open => {}
        State::Held => {
            fact.state = PaymentState::Authorized;
            fact.authorized = money(transaction)?;
        }
        State::Settled => {
            fact.state = PaymentState::Captured;
            fact.captured = money(transaction)?;
            fact.capture_final = true;
        }
        State::Voided => fact.state = PaymentState::Canceled,
        State::Lapsed => fact.state = PaymentState::AuthorizationExpired,
        State::Failed => {
            fact.state = PaymentState::Failed;
            fact.failure = Some(failure(transaction, status)?);
        }
        State::Declined => {
            fact.state = if was_held(transaction)? { PaymentState::Canceled } else { PaymentState::Failed };
            fact.failure = Some(failure(transaction, status)?);
        }
    }
    Ok(Some((id(transaction, "id")?, Fact::Payment(fact))))
}

/// What a transaction's status amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Authorised, or on its way to be settled: the money is held, and not ours yet.
    Held,
    Settled,
    Voided,
    /// The authorisation expired.
    Lapsed,
    /// Refused before it was authorised.
    Failed,
    /// The settlement was refused.
    Declined,
}

fn state_of(status: &str) -> State {
    match status {
        "authorized" | "submitted_for_settlement" | "settling" => State::Held,
        "settled" | "settlement_confirmed" => State::Settled,
        "voided" => State::Voided,
        "authorization_expired" => State::Lapsed,
        "failed" | "gateway_rejected" | "processor_declined" => State::Failed,
        "settlement_declined" | "settlement_failed" => State::Declined,
        // authorizing; settlement_pending (of PayPal and bank debits, which hold nothing); and what is new to us
        _ => State::Open,
    }
}

fn was_held(transaction: &Element<'_>) -> Result<bool, Problem> {
    for event in transaction.items("status_history")? {
        if event.optional_text("status")?.is_some_and(|status| state_of(status) == State::Held) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The processor's reason, of the settlement where that was refused; the gateway's own where it asked no processor.
fn failure(transaction: &Element<'_>, status: &str) -> Result<Failure, Problem> {
    let (code, text) = match status {
        "gateway_rejected" => ("gateway_rejection_reason", "gateway_rejection_reason"),
        "settlement_declined" | "settlement_failed" => {
            ("processor_settlement_response_code", "processor_settlement_response_text")
        }
        _ => ("processor_response_code", "processor_response_text"),
    };
    let code = transaction.optional_text(code)?.unwrap_or(status);
    Ok(telling::failure(Some(code), transaction.optional_text(text)?))
}

fn refund_fact(refund: &Element<'_>, state: RefundState) -> Result<Fact, Problem> {
    let amount = refund.money("amount", "currency_iso_code")?;
    Ok(Fact::Refund { id: id(refund, "id")?.to_owned(), state, amount, created: refund.optional_time("created_at")? })
}

/// A retrieval is a question before a dispute: no money moves.
fn dispute_fact(dispute: &Element<'_>, status: &str) -> Result<Fact, Problem> {
    let state = match (dispute.optional_text("kind")?, status) {
        (Some("retrieval"), "open") => DisputeState::Inquiry,
        (Some("retrieval"), _) => DisputeState::InquiryClosed,
        (_, "won") => DisputeState::Won,
        (_, "lost") => DisputeState::Lost,
        _ => DisputeState::Open,
    };
    let amount = if dispute.optional_text("amount_disputed")?.is_some() { "amount_disputed" } else { "amount" };
    Ok(Fact::Dispute { id: id(dispute, "id")?.to_owned(), state, amount: dispute.money(amount, "currency_iso_code")? })
}

/// Open, won or lost, of any of a dispute's statuses. A dispute that the merchant accepted, or did not answer, is lost.
fn dispute_status(status: &str) -> &'static str {
    match status {
        "won" => "won",
        "lost" | "accepted" | "auto_accepted" | "expired" => "lost",
        // open, under_review, disputed, and what is new to us
        _ => "open",
    }
}

/// The amount, if the document says in which currency.
fn money(transaction: &Element<'_>) -> Result<Option<Money>, Problem> {
    let currency = transaction.optional_text("currency_iso_code")?;
    currency.map(|_| transaction.money("amount", "currency_iso_code")).transpose()
}

/// Where the setting says, a path of elements from the transaction downwards (`custom_fields.shop_ref`), else `order-id`.
fn order<'d>(transaction: &Element<'d>, account: &Account) -> Option<&'d str> {
    match &account.order_reference {
        Some(path) => transaction.name_at(path),
        None => transaction.name_at(&["order_id"]),
    }
}

/// Letters, digits, hyphens and underscores: nothing that could leave its place in a URL.
fn is_id(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && ask::is_id(text, b"-_")
}

/// The child of this name, which must be an id.
fn id<'d>(element: &Element<'d>, name: &str) -> Result<&'d str, Problem> {
    let text = element.name(name)?;
    if is_id(text) { Ok(text) } else { Err(element.required(name)?.problem("not an id")) }
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the transaction, then its refunds and partial settlements, page by page.
enum StatusStep<'a> {
    Payment,
    Related { ids: Vec<&'a str> },
}

const RELATED: &str = "related";

impl<'a> StatusStep<'a> {
    /// Reads a cursor: none, or `related:<id>,<id>…`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        match cursor.map(|cursor| cursor.split_once(':')) {
            None => Some(Self::Payment),
            Some(Some((RELATED, ids))) => Some(Self::Related { ids: ids_of(ids)? }),
            Some(_) => None,
        }
    }
}

/// Where a sweep stands: which time it searches by, and how far that has come.
struct SweepStep<'a> {
    /// Index into [`SWEPT_BY`].
    by: usize,
    place: Search<'a>,
}

/// A search answers with all ids at once, in no known order: they are sorted, and fetched [`CARRIED_MAX`] a search.
enum Search<'a> {
    Begin,
    /// Those that are greater than this id.
    Behind(&'a str),
    /// These are to be fetched; `more`: there were others behind them.
    Found {
        ids: Vec<&'a str>,
        more: bool,
    },
}

impl<'a> SweepStep<'a> {
    /// Reads a cursor: none, `<time>`, `<time>>` and an id, `<time>:` or (with more behind) `<time>+` and ids.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { by: 0, place: Search::Begin }) };
        let end = cursor.find([':', '+', '>']).unwrap_or(cursor.len());
        let by = SWEPT_BY.iter().position(|known| *known == &cursor[..end])?;
        let place = match (cursor.as_bytes().get(end), cursor.get(end + 1..)) {
            (None, _) => Search::Begin,
            (Some(b'>'), Some(id)) if is_id(id) => Search::Behind(id),
            (Some(sign @ (b':' | b'+')), Some(ids)) => Search::Found { ids: ids_of(ids)?, more: *sign == b'+' },
            _ => return None,
        };
        Some(Self { by, place })
    }

    /// The cursor to go on with: these, then those behind the last of them, else the next search.
    fn after(&self, ids: &[&str], behind: Option<&str>) -> Option<String> {
        let name = SWEPT_BY[self.by];
        match (ids, behind) {
            ([], None) => SWEPT_BY.get(self.by + 1).map(|name| (*name).to_owned()),
            ([], Some(last)) => Some(format!("{name}>{last}")),
            (ids, None) => Some(format!("{name}:{}", ids.join(","))),
            (ids, Some(_)) => Some(format!("{name}+{}", ids.join(","))),
        }
    }

    /// The answer to a search.
    fn found(&self, results: &Element<'_>, behind: Option<&str>) -> Result<Answer, ReadError> {
        let items = results.items("ids")?;
        if items.len() >= SWEPT_MAX {
            return Err(results.problem("as many transactions as a search finds: it may have left some out").into());
        }
        let mut ids = Vec::with_capacity(items.len());
        for item in &items {
            ids.push(Some(item.text()?).filter(|id| is_id(id)).ok_or_else(|| item.problem("not an id"))?);
        }
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| behind.is_none_or(|behind| *id > behind));
        let carried = &ids[..ids.len().min(CARRIED_MAX)];
        let next = self.after(carried, carried.last().filter(|_| carried.len() < ids.len()).copied());
        Ok(Answer { events: Vec::new(), unread: Vec::new(), next })
    }
}

/// One or more ids.
fn ids_of(text: &str) -> Option<Vec<&str>> {
    text.split(',').map(|id| Some(id).filter(|id| is_id(id))).collect()
}

/// One answer to one question.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
    /// Of a sweep: the search, since several may find one transaction.
    about: &'static str,
}

impl Look<'_> {
    fn payment(&self, transaction: &Element<'_>) -> Result<Answer, ReadError> {
        if transaction.name("id")? != self.asked.payment_id {
            return Err(transaction.required("id")?.problem("another transaction than was asked for").into());
        }
        let events = self.facts(transaction)?;
        if events.first().is_none_or(|event| event.payment_id != self.asked.payment_id) {
            return Err(transaction.problem("a part of another payment: a refund, or a partial settlement").into());
        }
        let refunds = transaction.items("refund_ids")?;
        let related = refunds.into_iter().chain(transaction.items("partial_settlement_transaction_ids")?);
        let mut ids = Vec::new();
        for item in related {
            ids.push(Some(item.text()?).filter(|id| is_id(id)).ok_or_else(|| item.problem("not an id"))?);
        }
        if ids.len() > RELATED_MAX {
            return Err(transaction.problem("more refunds and settlements than are looked at").into());
        }
        let next = (!ids.is_empty()).then(|| format!("{RELATED}:{}", ids.join(",")));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    /// Refunds and partial settlements. One that the search does not find yet comes with a later look.
    fn related(&self, page: &Element<'_>, ids: &[&str]) -> Result<Answer, ReadError> {
        let mut events = Vec::new();
        for transaction in page.children("transaction") {
            let told = self.facts(&transaction)?;
            if told.iter().any(|event| event.payment_id != self.asked.payment_id) {
                return Err(transaction.problem("of another payment than was asked for").into());
            }
            events.extend(told);
        }
        let rest = &ids[ids.len().min(PAGE)..];
        let next = (!rest.is_empty()).then(|| format!("{RELATED}:{}", rest.join(",")));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    /// Transactions that were found by their ids: all of them, or the page is cut off.
    fn swept(&self, page: &Element<'_>, ids: &[&str], next: Option<String>) -> Result<Answer, ReadError> {
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        let mut missing: Vec<&str> = ids.to_vec();
        for transaction in page.children("transaction") {
            let transaction_id = id(&transaction, "id")?;
            missing.retain(|id| *id != transaction_id);
            match self.facts(&transaction) {
                Ok(events) => found.events.extend(events),
                Err(problem) => found.unread.push(Unread { event_id: transaction_id.to_owned(), error: problem.into() }),
            }
        }
        if !missing.is_empty() {
            return Err(page.problem("a page that is cut off: transactions that were found are missing").into());
        }
        Ok(found)
    }

    /// What a transaction says of itself and of its disputes.
    fn facts(&self, transaction: &Element<'_>) -> Result<Vec<PaymentEvent>, Problem> {
        let status = transaction.name("status")?;
        let Some((payment_id, fact)) = transaction_fact(transaction, status)? else { return Ok(Vec::new()) };
        let order = order(transaction, self.account);
        let mut events = vec![self.event(transaction, "poll:transaction", payment_id, order, fact)?];
        for dispute in transaction.items("disputes")? {
            let fact = dispute_fact(&dispute, dispute_status(dispute.name("status")?))?;
            events.push(self.event(&dispute, "poll:dispute", payment_id, order, fact)?);
        }
        Ok(events)
    }

    fn event(
        &self,
        object: &Element<'_>,
        event_type: &str,
        payment_id: &str,
        order: Option<&str>,
        fact: Fact,
    ) -> Result<PaymentEvent, Problem> {
        let object_id = id(object, "id")?;
        let at = object.optional_time("updated_at")?.unwrap_or(self.at);
        let separator = if self.about.is_empty() { "" } else { ":" };
        let telling = Telling {
            event_id: format!("{object_id}{separator}{}", self.about),
            event_type,
            at,
            mode: None,
            order,
            payment_id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact,
        };
        Ok(telling.answer(self.account, self.asked))
    }
}

/// Asks for a page of these transactions.
fn search_by_ids(account: &Account, ids: &[&str]) -> Result<Request<Bytes>, AskError> {
    let items: String = ids.iter().take(PAGE).flat_map(|id| ["<item>", id, "</item>"]).collect();
    ask(account, "/transactions/advanced_search", Some(format!("<search><ids type=\"array\">{items}</ids></search>")))
}

/// A GET, or a POST of XML; `path` is below the merchant's.
fn ask(account: &Account, path: &str, body: Option<String>) -> Result<Request<Bytes>, AskError> {
    let merchant = account.api.merchant_id.as_deref().filter(|id| is_id(id)).ok_or(AskError::Missing("merchant_id"))?;
    let public_key = account.keys.public_key.as_deref().ok_or(AskError::Missing("public_key"))?;
    let credentials = account.api.key.as_ref().and_then(|key| ask::basic(public_key, key)).ok_or(AskError::Missing("api_key"))?;
    let host = if account.mode == Mode::Live { LIVE_API } else { TEST_API };
    let path = format!("/merchants/{merchant}{path}");
    let mut request = ask::finish(ask::get(account, host, &path, credentials).header("x-apiversion", API_VERSION))?;
    request.headers_mut().insert(ACCEPT, XML);
    if let Some(body) = body {
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(CONTENT_TYPE, XML);
        *request.body_mut() = body.into();
    }
    Ok(request)
}

#[cfg(test)]
pub(super) mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::super::tests::{self, NOW_S, Specimen, envelope};
    use super::*;
    use crate::event::EventKey;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Braintree,
            scheme: "braintree-form",
            secret: SECRET,
            other_secret: "bt_private_test_key_2",
            settings: |account| {
                account.keys.public_key = Some(PUBLIC.to_owned());
                account.api.merchant_id = Some("merchant_1".to_owned());
            },
            sign: |secret, _, xml| (HeaderMap::new(), signed(secret, &payload_of(xml))),
            body: b"<notification><kind>transaction_settled</kind></notification>",
            event_type: Some("transaction_settled"),
            timed: false,
            // The form has a grammar, and what it carries is written in base64.
            any_body: false,
            unsigned_headers: &[],
        }
    }

    const SECRET: &str = "bt_private_test_key_1";
    const PUBLIC: &str = "bt_pub_test_key";

    fn account() -> Account {
        specimen().account(&[SECRET])
    }

    fn mac(secret: &str, text: &str) -> String {
        hex::encode(signature::hmac_sha1(&Sha1::digest(secret.as_bytes()), &[text.as_bytes()]))
    }

    /// Base64 in lines of 60, each with its newline.
    fn payload_of(xml: &[u8]) -> String {
        let text = STANDARD.encode(xml);
        text.as_bytes().chunks(60).flat_map(|line| [std::str::from_utf8(line).unwrap(), "\n"]).collect()
    }

    fn encoded(text: &str) -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    }

    fn form(signature: &str, payload: &str) -> Vec<u8> {
        format!("bt_signature={}&bt_payload={}", encoded(signature), encoded(payload)).into_bytes()
    }

    fn signed(secret: &str, payload: &str) -> Vec<u8> {
        form(&format!("{PUBLIC}|{}", mac(secret, payload)), payload)
    }

    fn verify(body: &[u8]) -> Result<Verified, Rejection> {
        specimen().verify(&[SECRET], &HeaderMap::new(), body)
    }

    fn reason(body: &[u8]) -> &'static str {
        verify(body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
    }

    // ------------------------------------------------------------------------------------------------ verification

    const XML_TEXT: &str = "<notification><kind>check</kind>???>>></notification>";

    #[test]
    fn the_form_has_one_grammar() {
        let payload = payload_of(XML_TEXT.as_bytes());
        assert!(payload.contains('+') || payload.contains('/'), "the payload must have signs that forms encode");
        let signature = format!("{PUBLIC}|{}", mac(SECRET, &payload));
        let (s, p) = (encoded(&signature), encoded(&payload));
        let lower = p.replace("%2B", "%2b").replace("%0A", "%0a").replace("%3D", "%3d");
        for body in [
            format!("bt_signature={s}&bt_payload={p}"),
            format!("bt_payload={p}&bt_signature={s}"),
            format!("bt_signature={s}&bt_payload={lower}"),
            format!("bt_signature={signature}&bt_payload={}", p.replace("%3D", "=").replace("%2F", "/")),
            format!("bt_signature={s}&bt_payload={p}&new_field=%00"),
        ] {
            assert_eq!(reason(body.as_bytes()), "accepted", "{body}");
        }
        for (body, why) in [
            (format!("bt_payload={p}"), "malformed_body"),
            (format!("bt_signature={s}"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload="), "malformed_body"),
            (format!("bt_signature=&bt_payload={p}"), "no_usable_signature"),
            (format!("bt_signature={s}&bt_signature={s}&bt_payload={p}"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}&bt_payload={p}"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}&"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}\n"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={}", p.replace("%0A", "\n")), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={}", p.replace("%0A", "")), "signature_mismatch"),
            (format!("bt_signature={s}&bt_payload={}", p.replace("%0A", "%0D%0A")), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={}", p.replace("%2B", "+").replace("%2F", "+")), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}%"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}%2"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}%zz"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}%C3%A9"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}é"), "malformed_body"),
            (format!("bt_signature={s}&bt_payload={p}{}", "&a=b".repeat(FIELDS_MAX)), "malformed_body"),
            (XML_TEXT.to_owned(), "malformed_body"),
            (format!("{{\"bt_signature\":\"{signature}\"}}"), "malformed_body"),
        ] {
            assert_eq!(reason(body.as_bytes()), why, "{body}");
        }
    }

    #[test]
    fn a_newline_that_was_lost_at_the_end_is_forgiven_and_no_other() {
        let payload = payload_of(XML_TEXT.as_bytes());
        let signature = format!("{PUBLIC}|{}", mac(SECRET, &payload));
        assert_eq!(reason(&form(&signature, payload.trim_end_matches('\n'))), "accepted");
        assert_eq!(reason(&form(&signature, &format!("{payload}\n"))), "signature_mismatch");
        assert_eq!(reason(&form(&signature, &payload.replacen('\n', "", 1))), "signature_mismatch");
    }

    #[test]
    fn our_signature_is_the_one_with_our_public_key() {
        let payload = payload_of(XML_TEXT.as_bytes());
        let (good, bad) = (mac(SECRET, &payload), "0".repeat(40));
        for (pairs, why) in [
            (format!("{PUBLIC}|{good}"), "accepted"),
            (format!("other|{bad}&{PUBLIC}|{good}"), "accepted"),
            (format!("{PUBLIC}|{good}&other|{bad}"), "accepted"),
            (format!("no pair&{PUBLIC}|{good}"), "accepted"),
            (format!("{PUBLIC}|{bad}&other|{good}"), "signature_mismatch"),
            (format!("{PUBLIC}|{good}&{PUBLIC}|{bad}"), "malformed_body"),
            (format!("{PUBLIC}|{good}&{PUBLIC}|{good}"), "malformed_body"),
            (format!("other|{good}"), "no_usable_signature"),
            (format!("{}|{good}", PUBLIC.to_uppercase()), "no_usable_signature"),
            (format!(" {PUBLIC}|{good}"), "no_usable_signature"),
            (PUBLIC.to_owned(), "no_usable_signature"),
            (good.clone(), "no_usable_signature"),
            (format!("{PUBLIC}|{}", good.to_uppercase()), "malformed_body"),
            (format!("{PUBLIC}|{good}00"), "malformed_body"),
            (format!("{PUBLIC}|{good}|{good}"), "malformed_body"),
            (format!("{PUBLIC}|"), "malformed_body"),
            (format!("{PUBLIC}|{good}{}", "&a|b".repeat(SIGNATURES_MAX)), "malformed_body"),
        ] {
            assert_eq!(reason(&form(&pairs, &payload)), why, "{pairs}");
        }
        let keyed_by_itself = hex::encode(signature::hmac_sha1(SECRET.as_bytes(), &[payload.as_bytes()]));
        assert_eq!(reason(&form(&format!("{PUBLIC}|{keyed_by_itself}"), &payload)), "signature_mismatch");
    }

    #[test]
    fn a_challenge_is_answered_and_its_answer_signs_no_webhook() {
        let keys = account().keys;
        let challenge = "20f9f8ed05f77439fe955c977e4c8a53";
        let answer = Braintree.challenge(&format!("bt_challenge={challenge}"), &keys).unwrap();
        assert_eq!(answer, format!("{PUBLIC}|{}", mac(SECRET, challenge)));
        assert!(Braintree.challenge(&format!("a=b&bt_challenge={challenge}&c"), &keys).is_some());
        for query in [
            String::new(),
            "bt_challenge=".to_owned(),
            format!("bt_challenge={}", &challenge[..19]),
            format!("bt_challenge={challenge}0"),
            format!("bt_challenge={}", challenge.to_uppercase()),
            format!("bt_challenge={challenge}%0A"),
            format!("bt_challenge={challenge}&bt_challenge={challenge}"),
            format!("challenge={challenge}"),
        ] {
            assert_eq!(Braintree.challenge(&query, &keys), None, "{query}");
        }
        assert_eq!(Braintree.challenge(&format!("bt_challenge={challenge}"), &Keys { public_key: None, ..keys }), None);

        assert_eq!(reason(&form(&answer, challenge)), "malformed_body");
        assert_eq!(reason(&form(&format!("{PUBLIC}|{}", mac(SECRET, &format!("{challenge}\n"))), challenge)), "malformed_body");
    }

    #[test]
    fn what_makes_an_account_useless_is_refused_at_start() {
        let setting = |change: fn(&mut Account)| {
            let mut account = account();
            change(&mut account);
            Braintree.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting(|_| ()), Ok(()));
        assert_eq!(setting(|account| account.keys.public_key = None), Err("public_key"));
        assert_eq!(setting(|account| account.keys.public_key = Some("a|b".to_owned())), Err("public_key"));
        assert_eq!(setting(|account| account.api.merchant_id = None), Err("merchant_id"));
        assert_eq!(setting(|account| account.api.merchant_id = Some("../x".to_owned())), Err("merchant_id"));
        let without_api = |account: &mut Account| (account.api.key, account.api.merchant_id) = (None, None);
        assert_eq!(setting(without_api), Ok(()), "webhooks alone need no API");

        let mut keys = account().keys;
        keys.public_key = None;
        let body = signed(SECRET, &payload_of(XML_TEXT.as_bytes()));
        let request = WebhookRequest { headers: &HeaderMap::new(), body: &body, token: None, query: "", certificate: None };
        assert_eq!(Braintree.verify(&request, &keys, Timestamp::from_seconds(NOW_S)), Err(Rejection::Setting("public_key")));
    }

    #[test]
    fn an_authentic_payload_that_is_no_notification_is_kept_and_quarantined() {
        for xml in ["not XML", "<other/>", "<notification/>", "<!DOCTYPE a><notification><kind>check</kind></notification>"] {
            let verified = verify(&signed(SECRET, &payload_of(xml.as_bytes()))).unwrap();
            assert_eq!(verified.event_type, None, "{xml}");
            let meant = Braintree.translate(&envelope(&Braintree, xml.as_bytes()), &account());
            assert!(matches!(meant, Err(TranslateError::Unintelligible { .. })), "{xml}: {meant:?}");
        }
        for payload in ["AAA\n", "A===", "=", "\n"] {
            assert_eq!(reason(&signed(SECRET, payload)), "accepted", "{payload:?}");
            assert_eq!(Form::read(&signed(SECRET, payload)).unwrap().kind(), None);
        }
    }

    proptest! {
        #[test]
        fn every_bit_of_payload_and_signature_counts(xml in prop::collection::vec(any::<u8>(), 30..200), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let payload = payload_of(&xml);
            let signature = format!("{PUBLIC}|{}", mac(SECRET, &payload));
            prop_assert_eq!(reason(&form(&signature, &payload)), "accepted");
            let flip = |text: &str| {
                let mut bytes = text.as_bytes().to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                // What is no ASCII cannot be written in the form at all.
                String::from_utf8(bytes).ok().filter(|text| text.is_ascii())
            };
            if let Some(altered) = flip(&payload) {
                prop_assert_ne!(reason(&form(&signature, &altered)), "accepted");
            }
            if let Some(altered) = flip(&signature) {
                prop_assert_ne!(reason(&form(&altered, &payload)), "accepted");
            }
        }

        #[test]
        fn every_bit_of_the_body_counts_but_for_how_it_is_written(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let body = signed(SECRET, &payload_of(XML_TEXT.as_bytes()));
            let mut altered = body.clone();
            let at = at.index(altered.len());
            altered[at] ^= 1 << bit;
            if let Ok(form) = Form::read(&altered) && verify(&altered).is_ok() {
                // `%2b` for `%2B`: the signature covers the text, not how the form writes it.
                prop_assert_eq!(form.payload, Form::read(&body).unwrap().payload);
                prop_assert!(altered.eq_ignore_ascii_case(&body));
            }
        }

        #[test]
        fn odd_notifications_never_panic_and_stay_within_bounds(
            name in prop::sample::select(super::super::tests::fixtures(&Braintree).into_iter().map(|(name, _)| name).collect::<Vec<_>>()),
            cut in any::<prop::sample::Index>(), length in 0..40_usize, odd in "[<>/&;a-z0-9 -]{0,30}",
        ) {
            let fixtures = super::super::tests::fixtures(&Braintree);
            let (_, xml) = fixtures.iter().find(|(known, _)| *known == name).unwrap();
            let start = cut.index(xml.len());
            let end = (start + length).min(xml.len());
            let altered = [&xml[..start], odd.as_bytes(), &xml[end..]].concat();
            let sent = envelope(&Braintree, &altered);
            prop_assert_eq!(Braintree.translate(&sent, &account()), Braintree.translate(&sent, &account()));
            for event in Braintree.translate(&sent, &account()).unwrap_or_default() {
                prop_assert!(event.key.event_id.len() <= 255 && is_id(&event.payment_id));
            }
            let _ = Braintree.hinted(&sent, &account());
            let answer = Response::new(Bytes::from(altered));
            for cursor in [None, Some("related:a"), Some("created_at"), Some("created_at:a,b")] {
                let _ = Braintree.read_status(&asked(cursor), &answer, &account());
                let _ = Braintree.read_events(tests::WHOLE, &asked(cursor), &answer, &account());
            }
        }
    }

    // ------------------------------------------------------------------------------------------------- translation

    fn translate(kind: &str, subject: &str) -> Result<Vec<PaymentEvent>, TranslateError> {
        let xml = notification(kind, subject);
        Braintree.translate(&envelope(&Braintree, xml.as_bytes()), &account())
    }

    fn notification(kind: &str, subject: &str) -> String {
        let time = "<timestamp type=\"datetime\">2026-09-21T13:33:10Z</timestamp>";
        format!("<notification>{time}<kind>{kind}</kind><subject>{subject}</subject></notification>")
    }

    fn transaction(status: &str, more: &str) -> String {
        let money = "<amount>49.99</amount><currency-iso-code>EUR</currency-iso-code>";
        format!("<transaction><id>bt1</id><status>{status}</status><type>sale</type>{money}{more}</transaction>")
    }

    #[test]
    fn what_is_not_about_a_payment_is_ignored() {
        for kind in ["check", "transaction_reviewed", "subscription_charged_successfully", "disbursement", "dispute_dreamt_of"] {
            assert!(matches!(translate(kind, "<x/>"), Err(TranslateError::Ignored(_))), "{kind}");
        }
        let credit = "<transaction><id>c1</id><type>credit</type><status>settled</status></transaction>";
        assert!(matches!(translate("transaction_settled", credit), Err(TranslateError::Ignored(_))));
    }

    #[test]
    fn amounts_are_exact_in_every_currency_or_refused() {
        let captured = |amount: &str, currency: &str| {
            let subject = format!(
                "<transaction><id>bt1</id><amount>{amount}</amount><currency-iso-code>{currency}</currency-iso-code></transaction>"
            );
            let events = translate("transaction_settled", &subject).map_err(|_| ())?;
            let Fact::Payment(fact) = &events[0].fact else { return Err(()) };
            Ok(fact.captured.map(|money| money.minor))
        };
        assert_eq!(captured("49.99", "EUR"), Ok(Some(4999)));
        assert_eq!(captured("100", "USD"), Ok(Some(10_000)));
        assert_eq!(captured("1000", "JPY"), Ok(Some(1000)));
        assert_eq!(captured("1.234", "KWD"), Ok(Some(1234)));
        assert_eq!(captured("1", ""), Ok(None), "a currency that is not told leaves the amount untold");
        for (amount, currency) in [("49.999", "EUR"), ("-1", "EUR"), ("1e2", "EUR"), ("", "EUR"), ("1.5", "JPY"), ("1", "EURO")] {
            assert_eq!(captured(amount, currency), Err(()), "{amount} {currency}");
        }
    }

    #[test]
    fn a_key_tells_kinds_subjects_and_times_apart() {
        let key = |kind: &str| translate(kind, &transaction("settled", "")).unwrap()[0].key.event_id.clone();
        assert_eq!(key("transaction_settled"), "transaction_settled:bt1:1789997590");
        assert_eq!(key("transaction_disbursed"), "transaction_disbursed:bt1:1789997590");
        let long = transaction("settled", "").replace("bt1", &"a".repeat(ID_BYTES_MAX));
        assert!(translate("transaction_settled", &long).unwrap()[0].key.event_id.len() <= 255);
        let longer = transaction("settled", "").replace("bt1", &"a".repeat(ID_BYTES_MAX + 1));
        assert!(translate("transaction_settled", &longer).is_err());
    }

    #[test]
    fn what_says_too_little_is_asked_about() {
        let hinted = |kind: &str, subject: &str| {
            Braintree.hinted(&envelope(&Braintree, notification(kind, subject).as_bytes()), &account()).unwrap_or_default()
        };
        let bare = "<transaction><id>bt1</id><amount>100</amount></transaction>";
        assert_eq!(hinted("transaction_disbursed", bare), ["bt1"]);
        assert_eq!(hinted("transaction_disbursed", &transaction("settled", "")), [""; 0]);
        assert_eq!(hinted("transaction_settled", &transaction("settled", "")), [""; 0]);
        assert_eq!(hinted("transaction_settlement_declined", &transaction("settlement_declined", "")), ["bt1"]);
        let local = format!("<local-payment>{}</local-payment>", transaction("authorizing", ""));
        assert_eq!(hinted("local_payment_completed", &local), ["bt1"]);
        let reversed = "<local-payment-reversed><payment-id>lp1</payment-id></local-payment-reversed>";
        assert_eq!(hinted("local_payment_reversed", reversed), [""; 0], "that is no transaction");
        assert_eq!(hinted("check", "<check/>"), [""; 0]);
    }

    #[test]
    fn the_order_stands_where_the_setting_says() {
        let subject = transaction("settled", "<order-id>A</order-id><custom-fields><shop-ref>B</shop-ref></custom-fields>");
        for (path, expected) in [(None, Some("A")), (Some("custom_fields.shop_ref"), Some("B")), (Some("nowhere"), None)] {
            let path = path.map(|path| path.split('.').map(str::to_owned).collect());
            let account = Account { order_reference: path, ..account() };
            let sent = envelope(&Braintree, notification("transaction_settled", &subject).as_bytes());
            let event = &Braintree.translate(&sent, &account).unwrap()[0];
            let order = event.references.iter().find(|reference| reference.kind == ReferenceKind::Order);
            assert_eq!(order.map(|reference| reference.value.as_str()), expected);
        }
    }

    // --------------------------------------------------------------------------------------------------- questions

    #[test]
    fn questions_are_asked_as_the_sdks_ask_them() {
        let mut account = account();
        let request = Braintree.status_request("bt1", None, &account).unwrap();
        assert_eq!(request.uri(), "https://api.sandbox.braintreegateway.com/merchants/merchant_1/transactions/bt1");
        assert_eq!((request.method(), request.body().len()), (&Method::GET, 0));
        assert_eq!(request.headers()["x-apiversion"], "6");
        assert_eq!(request.headers().get_all("accept").iter().collect::<Vec<_>>(), ["application/xml"]);
        let basic = format!("Basic {}", STANDARD.encode(format!("{PUBLIC}:sk_test_invented")));
        assert_eq!(request.headers()["authorization"], basic);

        account.mode = Mode::Live;
        let request = Braintree.status_request("bt1", Some("related:r1,r2"), &account).unwrap();
        assert_eq!(request.uri(), "https://api.braintreegateway.com/merchants/merchant_1/transactions/advanced_search");
        assert_eq!((request.method(), &request.headers()["content-type"]), (&Method::POST, &XML));
        assert_eq!(&request.body()[..], b"<search><ids type=\"array\"><item>r1</item><item>r2</item></ids></search>");
        account.api.url = Some("http://127.0.0.1:4242".to_owned());
        let since = Timestamp::from_millis(1_789_999_999_999);
        let request = Braintree.events_request(tests::since(since), Some("settled_at"), &account).unwrap();
        assert_eq!(request.uri(), "http://127.0.0.1:4242/merchants/merchant_1/transactions/advanced_search_ids");
        let time = "<min type=\"datetime\">2026-09-21T14:13:19Z</min><max type=\"datetime\">2026-09-21T14:13:20Z</max>";
        assert_eq!(&request.body()[..], format!("<search><settled_at>{time}</settled_at></search>").as_bytes());
        let again = Braintree.events_request(tests::since(since), Some("settled_at>bt1"), &account).unwrap();
        assert_eq!(again.body(), request.body());

        account.api.merchant_id = None;
        assert_eq!(Braintree.status_request("bt1", None, &account).unwrap_err(), AskError::Missing("merchant_id"));
        account.api.key = None;
        account.api.merchant_id = Some("merchant_1".to_owned());
        assert_eq!(Braintree.status_request("bt1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn nothing_but_an_id_enters_a_url_or_a_search() {
        let account = account();
        for id in ["", "bt1/../x", "bt1?x", "a b", "é", "--", &"a".repeat(ID_BYTES_MAX + 1)] {
            assert_eq!(Braintree.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "related", "related:", "related:a,", "related:a,<b>", "refunds:a"] {
            assert!(Braintree.status_request("bt1", Some(cursor), &account).is_err(), "{cursor}");
        }
        for cursor in [
            "",
            "updated_at",
            "created_at:",
            "created_at:a,,b",
            "created_at:<x/>",
            "created_at>",
            "created_at>a,b",
            "created_at+",
        ] {
            assert!(Braintree.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
    }

    // ----------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        let builder = Response::builder().header("date", "Mon, 21 Sep 2026 14:13:25 GMT");
        builder.body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "bt1", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &str) -> Result<Answer, ReadError> {
        Braintree.read_status(&asked(cursor), &response(body.as_bytes()), &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        let first = read_status(None, include_str!("fixtures/braintree/answers/transaction.xml")).unwrap();
        let cursor = first.next.clone();
        assert_eq!(cursor.as_deref(), Some("related:rf1,rf2"));
        let related = read_status(cursor.as_deref(), include_str!("fixtures/braintree/answers/related.xml")).unwrap();
        let parts = include_str!("fixtures/braintree/answers/partial_settlements.xml");
        let parts = read_status(Some("related:ps1,ps2"), parts).unwrap();
        for (name, answer) in [("transaction", first), ("related", related), ("partial_settlements", parts)] {
            let keys: std::collections::BTreeSet<&EventKey> = answer.events.iter().map(|event| &event.key).collect();
            assert_eq!(keys.len(), answer.events.len(), "{name}: each event has a key of its own");
            insta::assert_json_snapshot!(format!("braintree-answer-{name}"), answer.events);
        }
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, state) in [
            ("authorizing", PaymentState::Pending),
            ("authorized", PaymentState::Authorized),
            ("submitted_for_settlement", PaymentState::Authorized),
            ("settling", PaymentState::Authorized),
            ("settlement_pending", PaymentState::Pending),
            ("settled", PaymentState::Captured),
            ("settlement_confirmed", PaymentState::Captured),
            ("voided", PaymentState::Canceled),
            ("authorization_expired", PaymentState::AuthorizationExpired),
            ("failed", PaymentState::Failed),
            ("gateway_rejected", PaymentState::Failed),
            ("processor_declined", PaymentState::Failed),
            ("settlement_declined", PaymentState::Failed),
            ("settlement_failed", PaymentState::Failed),
            ("dreaming", PaymentState::Pending),
        ] {
            let answer = read_status(None, &transaction(status, "")).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, answer.next), (state, None), "{status}");
            assert_eq!(fact.captured.is_some(), state == PaymentState::Captured, "{status}");
            assert_eq!(fact.failure.is_some(), state == PaymentState::Failed, "{status}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
        }
    }

    #[test]
    fn a_declined_settlement_spends_the_authorisation_that_it_had() {
        let history = "<status-history type=\"array\"><status-event><status>authorized</status></status-event>\
            <status-event><status>settlement_declined</status></status-event></status-history>\
            <processor-settlement-response-code>4001</processor-settlement-response-code>\
            <processor-settlement-response-text>Settlement Declined</processor-settlement-response-text>";
        let answer = read_status(None, &transaction("settlement_declined", history)).unwrap();
        let told = translate("transaction_settlement_declined", &transaction("settlement_declined", history)).unwrap();
        for event in [&answer.events[0], &told[0]] {
            let Fact::Payment(fact) = &event.fact else { panic!("{:?}", event.fact) };
            let failure = fact.failure.as_ref().unwrap();
            assert_eq!(fact.state, PaymentState::Canceled);
            assert_eq!((&*failure.code, &*failure.message), ("4001", "Settlement Declined"));
        }
    }

    #[test]
    fn a_failure_has_the_reason_of_whoever_refused() {
        let code = |status: &str, more: &str| {
            let answer = read_status(None, &transaction(status, more)).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!() };
            fact.failure.as_ref().unwrap().code.clone()
        };
        let processor =
            "<processor-response-code>2000</processor-response-code><processor-response-text>No</processor-response-text>";
        let gateway = "<gateway-rejection-reason>cvv</gateway-rejection-reason>";
        assert_eq!(code("processor_declined", processor), "2000");
        assert_eq!(code("gateway_rejected", &format!("{processor}{gateway}")), "cvv");
        assert_eq!(code("settlement_declined", processor), "settlement_declined", "1000, approved, is no reason");
        assert_eq!(code("failed", ""), "failed");
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let other = transaction("settled", "").replace("bt1", "bt2");
        let page = |transaction: &str| format!("<credit-card-transactions>{transaction}</credit-card-transactions>");
        let refund = "<transaction><id>rf1</id><type>credit</type><status>settled</status><amount>1</amount>\
            <currency-iso-code>EUR</currency-iso-code><refunded-transaction-id>bt2</refunded-transaction-id></transaction>";
        for (cursor, body) in [
            (None, other),
            (None, transaction("settled", "").replace("<id>bt1</id>", "<id>bt1</id><id>bt1</id>")),
            (None, transaction("settled", "<refunded-transaction-id>bt0</refunded-transaction-id>").replace("sale", "credit")),
            (None, transaction("settled", "<authorized-transaction-id>bt0</authorized-transaction-id>")),
            (None, transaction("settled", "<refund-ids type=\"array\"><item>a/b</item></refund-ids>")),
            (None, page("")),
            (Some("related:rf1"), page(refund)),
            (Some("related:rf1"), transaction("settled", "")),
            (Some("elsewhere:rf1"), page("")),
            (None, "<api-error-response><message>No.</message></api-error-response>".to_owned()),
            (None, "{}".to_owned()),
        ] {
            let answer = read_status(cursor, &body);
            assert!(matches!(answer, Err(ReadError::Unintelligible(_))), "{cursor:?} {body}: {answer:?}");
        }
        let many = "<item>a</item>".repeat(RELATED_MAX + 1);
        assert!(read_status(None, &transaction("settled", &format!("<refund-ids>{many}</refund-ids>"))).is_err());
    }

    #[test]
    fn refunds_are_followed_to_their_end() {
        let ids: Vec<String> = (0..=PAGE).map(|number| format!("rf{number}")).collect();
        let cursor = format!("related:{}", ids.join(","));
        let empty = "<credit-card-transactions type=\"collection\"/>";
        let next = read_status(Some(&cursor), empty).unwrap().next;
        assert_eq!(next.as_deref(), Some("related:rf50"));
        assert_eq!(read_status(next.as_deref(), empty).unwrap().next, None);
        let request = Braintree.status_request("bt1", Some(&cursor), &account()).unwrap();
        assert_eq!(std::str::from_utf8(request.body()).unwrap().matches("<item>").count(), PAGE);
    }

    #[test]
    fn the_sweep_goes_through_every_time_and_every_page() {
        let read = |cursor: Option<&str>, body: &str| {
            Braintree.read_events(tests::WHOLE, &asked(cursor), &response(body.as_bytes()), &account())
        };
        let found = |ids: &[&str]| {
            let items: String = ids.iter().fold(String::new(), |items, id| format!("{items}<item>{id}</item>"));
            format!(
                "<search-results><page-size type=\"integer\">50</page-size><ids type=\"array\">{items}</ids></search-results>"
            )
        };
        let mut asked_for = vec![None];
        let mut cursor = read(None, &found(&[])).unwrap().next;
        while let Some(next) = cursor {
            cursor = read(Some(&next), &found(&[])).unwrap().next;
            asked_for.push(Some(next));
        }
        let expected: Vec<_> = SWEPT_BY.iter().enumerate().map(|(at, name)| (at > 0).then(|| (*name).to_owned())).collect();
        assert_eq!(asked_for, expected);

        assert_eq!(read(None, &found(&["bt1", "a"])).unwrap().next.as_deref(), Some("created_at:a,bt1"));
        let broken = transaction("settled", "").replace("bt1", "a").replace("49.99", "odd");
        let page = format!("<credit-card-transactions>{broken}{}</credit-card-transactions>", transaction("settled", ""));
        let answer = read(Some("created_at:a,bt1"), &page).unwrap();
        assert_eq!(answer.next.as_deref(), Some("settled_at"));
        assert_eq!(answer.events.iter().map(|event| &*event.key.event_id).collect::<Vec<_>>(), ["poll:bt1:created_at:look-7"]);
        assert_eq!(answer.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
        assert_eq!(read(Some("dispute_date:bt1"), &page).unwrap().next, None);
        assert!(read(Some("created_at:a,bt1,bt2"), &page).is_err(), "one is missing");
        assert!(read(None, &found(&["a b"])).is_err());
        assert!(read(None, &found(&vec!["a"; SWEPT_MAX])).is_err(), "there may be more");
    }

    /// However many a search finds, the cursor stays short, and each is fetched once.
    #[test]
    fn a_search_that_finds_many_is_repeated_behind_the_last() {
        let all: Vec<String> = (0..CARRIED_MAX * 2 + 7).map(|number| format!("t{number:04}")).collect();
        let items = all.iter().rev().fold(String::new(), |items, id| format!("{items}<item>{id}</item>"));
        let results = format!("<search-results><ids type=\"array\">{items}</ids></search-results>");
        let (mut cursor, mut fetched, mut searches) = (None::<String>, Vec::new(), 0);
        loop {
            let is_search = cursor.as_ref().is_none_or(|cursor| !cursor.contains([':', '+']));
            let body = if is_search {
                searches += 1;
                results.clone()
            } else {
                let (_, ids) = cursor.as_ref().unwrap().split_once([':', '+']).unwrap();
                let page: Vec<&str> = ids.split(',').take(PAGE).collect();
                fetched.extend(page.iter().map(|id| (*id).to_owned()));
                let found = page.iter().map(|id| transaction("settled", "").replace("bt1", id)).collect::<String>();
                format!("<credit-card-transactions>{found}</credit-card-transactions>")
            };
            let answer = Braintree.read_events(tests::WHOLE, &asked(cursor.as_deref()), &response(body.as_bytes()), &account());
            cursor = answer.unwrap().next;
            let text = cursor.as_deref().unwrap();
            assert!(text.len() < CARRIED_MAX * 10, "{} bytes", text.len());
            if text == "settled_at" {
                break;
            }
        }
        assert_eq!((fetched, searches), (all, 3));
    }
}
