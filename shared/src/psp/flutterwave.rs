//! Flutterwave, in its two generations: v3 and v4 are two ids, and an account is one of them by configuration, never either.
//!
//! Sources: developer.flutterwave.com (openings of pages; most of it is blocked), `PyPI` and npm packages, code that cites
//! documentation. There is no official verifier. What is uncertain is said where it stands.
//!
//! **v3: a hint.** `verif-hash` holds the dashboard's secret hash verbatim, on every call: whoever sees one call can make any
//! other, and nothing binds it to the body. So nothing of the body is believed but the transaction's id, and that only to ask
//! about it. The header is itself a secret: it is compared as a digest, in constant time, and goes nowhere.
//! - A payment is a *transaction*, by `data.id` (a number); `tx_ref` is the merchant's, and the order's reference. Attempts under
//!   one `tx_ref` are transactions of their own, and so payments of their own.
//! - Asked are `GET /v3/transactions/{id}/verify` and, for the sweep, `GET /v3/transactions`, whose days are of an unknown
//!   time zone: asked is from the day before to the day after. The outer `status` says only that the call worked.
//! - Refunds and chargebacks show in neither; hints of other things than charges are ignored.
//!
//! **v4: signed.** `flutterwave-signature`: base64 of the HMAC-SHA256 of the raw body by the secret hash. Some live traffic is
//! said to carry v3's header instead [U]: `scheme = "flutterwave-plain-hash"` takes that and nothing else, as a hint.
//! - A payment is a *charge* (`chg_…`), `reference` its order's; a failure comes as `charge.completed`, too: `data.status` decides.
//! - A refund names its charge, and its currency only perhaps [U]: one without is quarantined, not guessed.
//! - Names and forms of chargeback events are unverified [U]: they are quarantined, so that somebody looks.
//! - The event's id is `webhook_id` (the guide writes `id`), else the body's SHA-256; its time is `timestamp` in milliseconds, else
//!   the object's `created_datetime`.
//! - The API wants a token by OAuth 2: `client_id` and, as `api_key`, the client's secret.
//!
//! **Amounts** are JSON numbers in major units (`49.99`), read as the decimal text that they are. What has more digits than the
//! currency is quarantined: nothing is rounded. `charged_amount` has fees on top and is not what the shop gets.
//!
//! **States.** `successful`, `succeeded`: captured. `failed`: the attempt failed. All others are pending. No refund, dispute or
//! payment carries a version: an event's time, an answer's `Date`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, AccessToken, Account, Answer, AskError, Asked, Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError,
    Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source};
use crate::money::Money;
use crate::secret::Secret;

/// The adapter of v3.
pub struct FlutterwaveV3;

/// The adapter of v4.
pub struct FlutterwaveV4;

/// Is a secret (invariant I12).
const HASH: &str = "verif-hash";
const SIGNATURE: &str = "flutterwave-signature";

const PLAIN: &str = "flutterwave-plain-hash";
const SIGNED: &str = "flutterwave-base64-sha256";

const API_V3: &str = "https://api.flutterwave.com";
const API_V4: &str = "https://api.flutterwave.cloud/f4b/production";
/// Not in the catalogue; in several code bases that cite the documentation. `api_url` stands in for it.
const SANDBOX_V4: &str = "https://developersandbox-api.flutterwave.com";
const IDENTITY_V4: &str = "https://idp.flutterwave.com";
const TOKEN_PATH: &str = "/realms/flutterwave/protocol/openid-connect/token";

/// The longest that a token is believed to live, whatever is said of it; theirs live ten minutes.
const TOKEN_LIVES_MAX: Duration = Duration::from_hours(24);

/// The most pages of one list that are followed; at ten a page that is 100,000 transactions since the last sweep.
const PAGES_MAX: u32 = 10_000;

/// The end of the year 9999, in milliseconds.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

static V3: Profile = Profile {
    name: "Flutterwave v3",
    // None, above all not the hash.
    translate_headers: &[],
    // [U]: 60 s by one source, 5 s by another. The less is the safer.
    timeout: Duration::from_secs(5),
    // [U], and a switch in the dashboard: three times, half an hour apart.
    retry_window: Duration::from_mins(90),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme { name: PLAIN, proof: Proof::Hint, token_in_path: false }],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Unlisted, endpoint_list: false },
    // Asked for are whole days and those around them, ten transactions a page: seldom, and many days at once.
    list: Some(Listing { every: Duration::from_hours(1), slice: Some(Duration::from_hours(7 * 24)), ..Listing::USUAL }),
    sources: &[],
};

static V4: Profile = Profile {
    name: "Flutterwave v4",
    translate_headers: &[],
    timeout: Duration::from_secs(5),
    retry_window: Duration::from_mins(90),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed(SIGNED), Scheme { name: PLAIN, proof: Proof::Hint, token_in_path: false }],
    // There is a list of charges, but of how it filters and pages nothing is known.
    can: Abilities { payment_status: true, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for FlutterwaveV3 {
    fn id(&self) -> &'static str {
        "flutterwave-v3"
    }

    fn profile(&self) -> &'static Profile {
        &V3
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Settings, Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let secret_name = matching_hash(request, keys, now)?;
        Ok(Verified {
            webhook_id: signature::body_id(request.body),
            event_type: Head::read(request.body).name(),
            subject: None,
            secret_name,
            proof: Proof::Hint,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let call = Node::root(&value);
        let event = call.name("event")?;
        if !event.starts_with("charge.") {
            return Err(TranslateError::Ignored(format!("{event} is about no charge")));
        }
        let id = call.object("data")?.required("id")?;
        let problem = id.problem("no id of a transaction");
        let id = id.into_id()?;
        if is_transaction(&id) { Ok(vec![id.into_owned()]) } else { Err(problem.into()) }
    }

    fn translate(&self, _envelope: &Envelope, _account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        Err(only_a_hint())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        no_cursor(cursor)?;
        if !is_transaction(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        ask::finish(ask::get(account, API_V3, &format!("/v3/transactions/{payment_id}/verify"), ask::bearer(account)?))
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        if is_unknown(response) {
            return Err(ReadError::NotFound);
        }
        let bytes = answer::body(response, Some(asked.at))?;
        let value = json::read(bytes)?;
        let data = answered(&Node::root(&value))?;
        let amount = |data: &Node<'_>| major(bytes, &["data", "amount"], data);
        let transaction = Transaction::read(&data, amount)?;
        if transaction.id != asked.payment_id {
            return Err(data.required("id")?.problem("another transaction than was asked for").into());
        }
        let at = answer::date(response).unwrap_or(asked.at);
        let told = transaction.telling(&data, account, "poll:transaction", at, transaction.id.to_string());
        Ok(Answer { events: vec![told.answer(account, asked)], unread: Vec::new(), next: None })
    }

    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        const DAY: Duration = Duration::from_hours(24);
        let page = page_number(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        // To the day, and one more for the time zone.
        let (from, to) = (day(window.since.minus(DAY)), day(window.until.plus(DAY)));
        let path = format!("/v3/transactions?from={from}&to={to}&page={page}");
        ask::finish(ask::get(account, API_V3, &path, ask::bearer(account)?))
    }

    /// The transactions as they stand. Of one transaction each state is one event, however often a list shows it.
    fn read_events(
        &self,
        _window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let bytes = answer::body(response, Some(asked.at))?;
        let value = json::read(bytes)?;
        let list = Node::root(&value);
        worked(&list)?;
        let next = next_page(&list, asked.cursor)?;
        let literals = json::literal_at(bytes, &["data"]).and_then(json::literals);
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        for literal in literals.ok_or_else(|| list.member("data").problem("not an array"))? {
            // Each for itself: the amounts' text is found from the object downwards.
            let value = json::read(literal.as_bytes())?;
            let data = Node::root(&value);
            match listed(&data, literal.as_bytes(), account) {
                Ok(event) => found.events.push(event),
                Err(problem) => {
                    let id = data.required("id").and_then(Node::into_id).ok().filter(|id| is_transaction(id));
                    let event_id = id.map_or_else(|| signature::body_id(literal.as_bytes()), Cow::into_owned);
                    found.unread.push(Unread { event_id, error: problem.into() });
                }
            }
        }
        Ok(found)
    }
}

impl Psp for FlutterwaveV4 {
    fn id(&self) -> &'static str {
        "flutterwave-v4"
    }

    fn profile(&self) -> &'static Profile {
        &V4
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Settings, Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        if account.api.key.is_some() && account.api.client_id.is_none() {
            let problem = "is missing: api_key is the secret of this client".to_owned();
            return Err(SettingError { setting: "client_id", problem });
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let (secret_name, proof) = if keys.scheme == PLAIN {
            (matching_hash(request, keys, now)?, Proof::Hint)
        } else {
            let malformed = Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not the base64 of 32 bytes" };
            let offered: [u8; 32] = signature::base64(signature::exactly_one(request.headers, SIGNATURE)?).ok_or(malformed)?;
            if request.body.is_empty() {
                return Err(Rejection::EmptyBody);
            }
            let equal = |secret: &Secret| signature::hmac_sha256(secret.expose().as_bytes(), &[request.body]).ct_eq(&offered);
            (signature::matching_secret(keys, now, equal)?, Proof::Proven)
        };
        let head = Head::read(request.body);
        Ok(Verified {
            // A hint has no event's id: its body is anybody's.
            webhook_id: match head.id() {
                Some(id) if proof == Proof::Proven => id,
                _ => signature::body_id(request.body),
            },
            event_type: head.name(),
            subject: None,
            secret_name,
            proof,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    fn hinted(&self, envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        if envelope.proof == Proof::Proven {
            // It says all that the API could add.
            return Ok(Vec::new());
        }
        let value = json::read(&envelope.body)?;
        let call = Node::root(&value);
        let key = match Family::of(call.name("type")?)? {
            Family::Charge => "id",
            Family::Refund => "charge_id",
        };
        let data = call.object("data")?;
        let id = data.name(key)?;
        if is_charge(id) { Ok(vec![id.to_owned()]) } else { Err(data.member(key).problem("no id of a charge").into()) }
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        if envelope.proof == Proof::Hint {
            return Err(only_a_hint());
        }
        let value = json::read(&envelope.body)?;
        let call = Node::root(&value);
        let event_type = call.name("type")?;
        let family = Family::of(event_type)?;
        let data = call.object("data")?;
        let at = time_of(&call, &data)?;
        let (payment_id, fact) = match family {
            Family::Charge => {
                let amount = |data: &Node<'_>| major(&envelope.body, &["data", "amount"], data);
                (data.name("id")?, Fact::Payment(charge_fact(&data, amount)?))
            }
            Family::Refund => (data.name("charge_id")?, refund_fact(&data, &envelope.body)?),
        };
        let told = Telling {
            event_id: envelope.webhook_id.clone(),
            event_type,
            at,
            mode: None,
            order: telling::order(&data, account, &[&["reference"]]),
            payment_id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact,
        };
        Ok(vec![told.event(account, Source::Webhook)])
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        no_cursor(cursor)?;
        if !is_charge(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        let host = if account.mode == Mode::Test { SANDBOX_V4 } else { API_V4 };
        ask::finish(ask::get_with_token(account, host, &format!("/charges/{payment_id}")))
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let bytes = answer::body(response, Some(asked.at))?;
        let value = json::read(bytes)?;
        let data = answered(&Node::root(&value))?;
        let id = data.name("id")?;
        if id != asked.payment_id {
            return Err(data.required("id")?.problem("another charge than was asked for").into());
        }
        let at = answer::date(response).unwrap_or(asked.at);
        let told = Telling {
            event_id: id.to_owned(),
            event_type: "poll:charge",
            at,
            mode: None,
            order: telling::order(&data, account, &[&["reference"]]),
            payment_id: id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact: Fact::Payment(charge_fact(&data, |data| major(bytes, &["data", "amount"], data))?),
        };
        Ok(Answer { events: vec![told.answer(account, asked)], unread: Vec::new(), next: None })
    }

    /// As a form, which is the only way that the documentation shows: the secret is in the body.
    fn token_request(&self, account: &Account) -> Option<Result<Request<Bytes>, AskError>> {
        Some(token_request(account))
    }

    fn read_token(&self, response: &Response<Bytes>) -> Result<AccessToken, ReadError> {
        let unintelligible = |why: &str| ReadError::Unintelligible(why.to_owned());
        let value = json::read(answer::body(response, None)?)?;
        let given = Node::root(&value);
        let token = given.text("access_token").filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.filter(|token| !token.is_empty()).ok_or_else(|| unintelligible("no access token"))?;
        let lives = u64::try_from(given.integer("expires_in")?).map_err(|_| unintelligible("a token that never lived"))?;
        Ok(AccessToken { secret: Secret::new("access_token", token), lives: Duration::from_secs(lives).min(TOKEN_LIVES_MAX) })
    }
}

// ------------------------------------------------------------------------------------------------------ verification

/// The name of the secret that stands in the header. Digests are compared: of equal length, whatever was sent.
fn matching_hash(request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Arc<str>, Rejection> {
    let offered = Sha256::digest(signature::exactly_one(request.headers, HASH)?);
    if request.body.is_empty() {
        return Err(Rejection::EmptyBody);
    }
    signature::matching_secret(keys, now, |secret| Sha256::digest(secret.expose()).ct_eq(&offered))
}

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    // Not `Option<Cow>`, which serde would copy.
    #[serde(borrow)]
    webhook_id: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// What is no such JSON is kept, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn id(&self) -> Option<String> {
        [&self.webhook_id, &self.id].into_iter().find(|id| json::is_name(id)).map(|id| id.clone().into_owned())
    }

    /// v4 calls it `type`, v3 `event`.
    fn name(&self) -> Option<String> {
        [&self.event_type, &self.event].into_iter().find(|name| json::is_name(name)).map(|name| name.clone().into_owned())
    }
}

fn only_a_hint() -> TranslateError {
    TranslateError::Ignored("a hint: it changes nothing by itself".to_owned())
}

// ------------------------------------------------------------------------------------------------------- translation

/// What a v4 event is about.
#[derive(Clone, Copy)]
enum Family {
    Charge,
    Refund,
}

impl Family {
    fn of(event_type: &str) -> Result<Self, TranslateError> {
        match event_type.split_once('.').map_or(event_type, |(family, _)| family) {
            "charge" => Ok(Self::Charge),
            "refund" => Ok(Self::Refund),
            "chargeback" => Err(TranslateError::Unintelligible {
                reason: "a chargeback, of which no form is published",
                pointer: "/type".to_owned(),
            }),
            _ => Err(TranslateError::Ignored(format!("{event_type} says nothing about a charge"))),
        }
    }
}

/// The state alone decides, not the type: a failure comes as `charge.completed`.
fn charge_fact<'a>(charge: &Node<'a>, amount: impl Fn(&Node<'a>) -> Result<Money, Problem>) -> Result<PaymentFact, Problem> {
    let mut fact = PaymentFact::new(state_of(charge.name("status")?));
    match fact.state {
        PaymentState::Captured => {
            fact.captured = Some(amount(charge)?);
            fact.capture_final = true;
        }
        PaymentState::Failed => {
            let response = charge.member("processor_response");
            // v4: an object; v3: a text. Other than that is left out: it decides nothing.
            let code = response.text("code").or(Some("failed"));
            fact.failure = Some(telling::failure(code, response.text("type").or(response.as_text())));
        }
        _ => {}
    }
    Ok(fact)
}

fn state_of(status: &str) -> PaymentState {
    match status {
        "successful" | "succeeded" => PaymentState::Captured,
        "failed" => PaymentState::Failed,
        // pending, and what is new to us
        _ => PaymentState::Pending,
    }
}

fn refund_fact(refund: &Node<'_>, bytes: &[u8]) -> Result<Fact, Problem> {
    let state = match refund.name("status")? {
        "completed" | "succeeded" | "successful" => RefundState::Succeeded,
        "failed" => RefundState::Failed,
        _ => RefundState::Pending,
    };
    let key = if refund.optional("amount_refunded").is_some() { "amount_refunded" } else { "amount" };
    let amount = major(bytes, &["data", key], refund)?;
    Ok(Fact::Refund { id: refund.name("id")?.to_owned(), state, amount, created: None })
}

/// The amount at `path` of the document, whose last key is `object`'s own: a JSON number (or a string) in major units.
fn major(bytes: &[u8], path: &[&str], object: &Node<'_>) -> Result<Money, Problem> {
    let amount = object.required(path.last().copied().unwrap_or_default())?;
    let currency = object.required("currency")?.into_currency()?;
    let text = amount.as_text().or_else(|| json::literal_at(bytes, path)).unwrap_or_default();
    json::decimal(text, currency).map_err(|reason| amount.problem(reason))
}

/// When a v4 event happened.
fn time_of(call: &Node<'_>, data: &Node<'_>) -> Result<Timestamp, Problem> {
    const MILLISECOND: i64 = 1;
    const SECOND: i64 = 1000;
    if let Some(timestamp) = call.optional("timestamp") {
        return instant(timestamp, MILLISECOND);
    }
    match data.optional("created_datetime") {
        Some(created) => instant(created, SECOND),
        None => Err(call.member("timestamp").problem("missing")),
    }
}

/// A number of units of so many milliseconds, or a time of RFC 3339.
fn instant(time: Node<'_>, unit_ms: i64) -> Result<Timestamp, Problem> {
    let problem = time.problem("not a time");
    let told = match time.as_text() {
        Some(text) => Timestamp::parse_rfc3339(text).ok(),
        None => time.into_integer()?.checked_mul(unit_ms).map(Timestamp::from_millis),
    };
    told.filter(|at| (0..=TIME_MAX_MS).contains(&at.millis())).ok_or(problem)
}

// ---------------------------------------------------------------------------------------------------- reconciliation

/// A transaction of v3, as an answer shows it.
struct Transaction<'a> {
    id: Cow<'a, str>,
    fact: PaymentFact,
}

impl<'a> Transaction<'a> {
    fn read(data: &Node<'a>, amount: impl Fn(&Node<'a>) -> Result<Money, Problem>) -> Result<Self, Problem> {
        let id = data.required("id")?;
        let problem = id.problem("no id of a transaction");
        let id = id.into_id()?;
        if !is_transaction(&id) {
            return Err(problem);
        }
        Ok(Self { id, fact: charge_fact(data, amount)? })
    }

    fn telling<'t>(
        &'t self,
        data: &Node<'t>,
        account: &Account,
        event_type: &'t str,
        at: Timestamp,
        event_id: String,
    ) -> Telling<'t> {
        Telling {
            event_id,
            event_type,
            at,
            mode: None,
            order: telling::order(data, account, &[&["tx_ref"]]),
            payment_id: &self.id,
            others: Vec::new(),
            version: FactVersion::Time(at.millis()),
            fact: Fact::Payment(self.fact.clone()),
        }
    }
}

/// A transaction of a list. Its time is its making's: what it became is told by its state alone, which no list has twice.
fn listed(data: &Node<'_>, bytes: &[u8], account: &Account) -> Result<PaymentEvent, Problem> {
    let transaction = Transaction::read(data, |data| major(bytes, &["amount"], data))?;
    let state = match transaction.fact.state {
        PaymentState::Captured => "captured",
        PaymentState::Failed => "failed",
        _ => "pending",
    };
    let event_id = format!("{}:{state}", transaction.id);
    let made = telling::time(data, "created_at")?;
    Ok(transaction.telling(data, account, "transaction", made, event_id).event(account, Source::Reconciliation))
}

/// The outer status: whether the call worked, and nothing more.
fn worked(root: &Node<'_>) -> Result<(), Problem> {
    match root.text("status") {
        Some("success") => Ok(()),
        _ => Err(root.member("status").problem("not success: the call did not work")),
    }
}

/// v3 answers 400 where others answer 404. Of its words only the beginning is taken for settled.
fn is_unknown(response: &Response<Bytes>) -> bool {
    let says = |value: &json::Value<'_>| {
        Node::root(value).text("message").is_some_and(|message| message.starts_with("No transaction was found"))
    };
    response.status() == StatusCode::BAD_REQUEST && json::read(response.body()).is_ok_and(|value| says(&value))
}

fn answered<'a>(root: &Node<'a>) -> Result<Node<'a>, Problem> {
    worked(root)?;
    root.object("data")
}

fn token_request(account: &Account) -> Result<Request<Bytes>, AskError> {
    let secret = account.api.key.as_ref().ok_or(AskError::Missing("api_key"))?;
    let client = account.api.client_id.as_deref().ok_or(AskError::Missing("client_id"))?;
    let base = account.api.url.as_deref().unwrap_or(IDENTITY_V4);
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let form = format!("client_id={}&client_secret={}&grant_type=client_credentials", encoded(client), encoded(secret.expose()));
    Request::post(format!("{base}{TOKEN_PATH}"))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(form.into())
        .map_err(|_| AskError::Missing("api_url"))
}

/// The page that a cursor names; the first, without one.
fn page_number(cursor: Option<&str>) -> Option<u32> {
    let Some(cursor) = cursor else { return Some(1) };
    let plain = cursor.starts_with(|first: char| first.is_ascii_digit() && first != '0');
    let page = plain.then(|| cursor.parse().ok()).flatten()?;
    (1..=PAGES_MAX).contains(&page).then_some(page)
}

/// The cursor of the page after this one. A list that says nothing of pages is one page.
fn next_page(list: &Node<'_>, cursor: Option<&str>) -> Result<Option<String>, ReadError> {
    let page = page_number(cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
    let empty = list.array("data")?.is_empty();
    let info = list.member("meta").member("page_info");
    let Some(pages) = info.optional_integer("total_pages")? else { return Ok(None) };
    if info.optional_integer("current_page")?.is_some_and(|current| current != i64::from(page)) {
        return Err(info.member("current_page").problem("another page than was asked for").into());
    }
    if pages <= i64::from(page) {
        return Ok(None);
    }
    if empty {
        return Err(info.problem("an empty page with more to come").into());
    }
    if page >= PAGES_MAX {
        return Err(info.problem("more pages than are followed").into());
    }
    Ok(Some((page + 1).to_string()))
}

fn no_cursor(cursor: Option<&str>) -> Result<(), AskError> {
    cursor.map_or(Ok(()), |cursor| Err(AskError::MalformedId(cursor.to_owned())))
}

/// `2026-09-21`, in UTC.
fn day(at: Timestamp) -> String {
    let date = OffsetDateTime::from(at).date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// Of v3: a plain number.
fn is_transaction(id: &str) -> bool {
    (1..=19).contains(&id.len()) && !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Of v4: `chg_…`.
fn is_charge(id: &str) -> bool {
    ask::is_id(id, b"_-")
}

#[cfg(test)]
pub(super) mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;

    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    pub(in super::super) fn specimen_v3() -> Specimen {
        Specimen {
            psp: &FlutterwaveV3,
            scheme: PLAIN,
            secret: "my-secret-hash-1",
            other_secret: "my-secret-hash-OLD",
            settings: |_| {},
            sign: |secret, _, body| (tests::headers([(HASH, secret.to_owned())]), body.to_vec()),
            body: br#"{"event":"charge.completed","data":{"id":285959875}}"#,
            event_type: Some("charge.completed"),
            timed: false,
            any_body: false,
            unsigned_headers: &[],
        }
    }

    pub(in super::super) fn specimen_v4() -> Specimen {
        Specimen {
            psp: &FlutterwaveV4,
            scheme: SIGNED,
            secret: "flw_secret_hash_Test01",
            other_secret: "flw_secret_hash_OLD",
            settings: |account| account.api.client_id = Some("client-1".to_owned()),
            sign: |secret, _, body| {
                let mac = signature::hmac_sha256(secret.as_bytes(), &[body]);
                (tests::headers([(SIGNATURE, STANDARD.encode(mac))]), body.to_vec())
            },
            body: br#"{"webhook_id":"wbk_1","type":"charge.completed"}"#,
            event_type: Some("charge.completed"),
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    pub(in super::super) fn specimen_v4_plain() -> Specimen {
        Specimen {
            psp: &FlutterwaveV4,
            scheme: PLAIN,
            body: specimen_v4().body,
            ..Specimen { settings: specimen_v4().settings, ..specimen_v3() }
        }
    }

    fn v3_account() -> Account {
        specimen_v3().account(&["my-secret-hash-1"])
    }

    fn v4_account() -> Account {
        specimen_v4().account(&["flw_secret_hash_Test01"])
    }

    // --------------------------------------------------------------------------------------------------------- hints

    #[test]
    fn the_hash_goes_nowhere() {
        for specimen in [specimen_v3(), specimen_v4_plain()] {
            let (headers, body) = (specimen.sign)(specimen.secret, NOW_S, specimen.body);
            let verified = specimen.verify(&[specimen.secret], &headers, &body).unwrap();
            assert!(!format!("{verified:?}").contains(specimen.secret), "{verified:?}");
            assert!(!specimen.psp.profile().translate_headers.contains(&HASH));
            let rejected = specimen.verify(&["another"], &headers, &body).unwrap_err();
            assert!(!format!("{rejected:?} {rejected}").contains(specimen.secret), "{rejected}");
        }
    }

    #[test]
    fn a_header_of_the_other_generation_proves_nothing() {
        let body = br#"{"type":"charge.completed"}"#;
        let reason = |verdict: Result<Verified, Rejection>| verdict.map_or_else(|rejection| rejection.reason(), |_| "accepted");
        let (v3, v4) = (specimen_v3(), specimen_v4());
        let (hash, _) = (v3.sign)(v4.secret, NOW_S, body);
        let (signed, _) = (v4.sign)(v3.secret, NOW_S, body);
        assert_eq!(reason(v4.verify(&[v4.secret], &hash, body)), "missing_header");
        assert_eq!(reason(v3.verify(&[v3.secret], &signed, body)), "missing_header");
        assert_eq!(reason(specimen_v4_plain().verify(&[v4.secret], &(v4.sign)(v4.secret, 0, body).0, body)), "missing_header");
        let mut both = hash;
        both.extend((v4.sign)("another", 0, body).0);
        assert_eq!(reason(v4.verify(&[v4.secret], &both, body)), "signature_mismatch", "the hash does not stand in");
    }

    fn hinted(specimen: &Specimen, body: &str) -> Result<Vec<String>, TranslateError> {
        let envelope = specimen.envelope(body.as_bytes());
        assert!(matches!(specimen.psp.translate(&envelope, &specimen.account(&["x"])), Err(TranslateError::Ignored(_))));
        specimen.psp.hinted(&envelope, &specimen.account(&["x"]))
    }

    #[test]
    fn a_hint_names_an_id_and_nothing_else_of_it_is_read() {
        let v3 = specimen_v3();
        let of =
            |id: &str| hinted(&v3, &format!(r#"{{"event":"charge.completed","data":{{"id":{id},"status":[],"amount":{{}}}}}}"#));
        assert_eq!(of("285959875"), Ok(vec!["285959875".to_owned()]));
        assert_eq!(of("\"285959875\""), Ok(vec!["285959875".to_owned()]));
        for bad in ["0", "-1", "1.5", "1e9", "\"../1\"", "\"1?x\"", "\"\"", "null", "[1]", "99999999999999999999"] {
            assert!(matches!(of(bad), Err(TranslateError::Unintelligible { .. })), "{bad}");
        }
        for (event, ignored) in [("transfer.completed", true), ("refund.completed", true), ("charge.failed", false)] {
            let heard = hinted(&v3, &format!(r#"{{"event":"{event}","data":{{"id":1}}}}"#));
            assert_eq!(matches!(heard, Err(TranslateError::Ignored(_))), ignored, "{event}");
        }
        let v4 = specimen_v4_plain();
        let heard = |kind: &str| hinted(&v4, &format!(r#"{{"type":"{kind}","data":{{"id":"chg_1","charge_id":"chg_2"}}}}"#));
        assert_eq!(heard("charge.completed"), Ok(vec!["chg_1".to_owned()]));
        assert_eq!(heard("refund.completed"), Ok(vec!["chg_2".to_owned()]));
        assert!(matches!(heard("chargeback.created"), Err(TranslateError::Unintelligible { .. })));
        assert!(matches!(heard("transfer.completed"), Err(TranslateError::Ignored(_))));
        let odd = hinted(&v4, r#"{"type":"charge.completed","data":{"id":"chg/../x"}}"#);
        assert!(matches!(odd, Err(TranslateError::Unintelligible { .. })));
    }

    #[test]
    fn odd_hints_are_not_understood() {
        for specimen in [specimen_v3(), specimen_v4_plain()] {
            for body in [
                "null",
                "[]",
                "{",
                "not json",
                r#"{"event":7}"#,
                r#"{"event":"charge.completed","data":[]}"#,
                &"[".repeat(100_000),
            ] {
                let envelope = specimen.envelope(body.as_bytes());
                assert_eq!(envelope.webhook_id, signature::body_id(body.as_bytes()));
                assert!(matches!(hinted(&specimen, body), Err(TranslateError::Unintelligible { .. })), "{body}");
            }
        }
    }

    #[test]
    fn a_proven_webhook_gives_no_reason_to_ask() {
        let envelope = specimen_v4().envelope(br#"{"type":"charge.completed","data":{"id":"chg_1"}}"#);
        assert_eq!(FlutterwaveV4.hinted(&envelope, &v4_account()), Ok(Vec::new()));
    }

    #[test]
    fn the_secret_of_a_client_needs_its_name() {
        let mut account = v4_account();
        account.api.client_id = None;
        assert_eq!(FlutterwaveV4.check(&account).map_err(|error| error.setting), Err("client_id"));
        account.api.key = None;
        assert_eq!(FlutterwaveV4.check(&account), Ok(()), "signed webhooks need no API");
    }

    // ------------------------------------------------------------------------------------------------------- amounts

    #[test]
    fn amounts_are_the_decimal_text_that_stands_there() {
        let captured = |amount: &str, currency: &str| {
            let body = format!(
                r#"{{"type":"charge.completed","timestamp":1,"data":{{"id":"chg_1","status":"succeeded","amount":{amount},"currency":"{currency}"}}}}"#
            );
            let envelope = specimen_v4().envelope(body.as_bytes());
            FlutterwaveV4.translate(&envelope, &v4_account()).map(|events| match &events[0].fact {
                Fact::Payment(fact) => fact.captured.unwrap().minor,
                other => panic!("{other:?}"),
            })
        };
        for (amount, currency, minor) in [
            ("49.99", "NGN", 4999),
            ("0.07", "NGN", 7),
            ("50", "NGN", 5000),
            ("49.990", "NGN", 4999),
            ("\"49.99\"", "ngn", 4999),
            ("500", "UGX", 500),
            ("500.00", "RWF", 500),
            ("1.234", "TND", 1234),
            // What a double cannot hold.
            ("70368744177664.03", "NGN", 7_036_874_417_766_403),
        ] {
            assert_eq!(captured(amount, currency), Ok(minor), "{amount} {currency}");
        }
        for bad in ["49.999", "-1", "-0.01", "1e3", "4.999e1", "null", "true", "[]", "99999999999999999999", "\"\""] {
            assert!(matches!(captured(bad, "NGN"), Err(TranslateError::Unintelligible { .. })), "{bad}");
        }
        assert!(captured("500.50", "UGX").is_err(), "a currency without minor units");
    }

    // ---------------------------------------------------------------------------------------------------- v4's events

    #[test]
    fn a_v4_event_is_named_by_whichever_id_it_has() {
        for (body, id) in [
            (r#"{"webhook_id":"wbk_1","id":"x","type":"charge.completed"}"#, Some("wbk_1")),
            (r#"{"id":"wbk_2","type":"charge.completed"}"#, Some("wbk_2")),
            (r#"{"type":"charge.completed"}"#, None),
            (r#"{"webhook_id":"","type":"charge.completed"}"#, None),
            (r#"{"webhook_id":7,"type":"charge.completed"}"#, None),
        ] {
            let envelope = specimen_v4().envelope(body.as_bytes());
            assert_eq!(envelope.webhook_id, id.map_or_else(|| signature::body_id(body.as_bytes()), str::to_owned), "{body}");
        }
    }

    #[test]
    fn a_v4_event_has_a_time_in_any_of_the_forms_that_are_told() {
        let at = |head: &str, tail: &str| {
            let body = format!(r#"{{"type":"charge.completed",{head}"data":{{"id":"chg_1","status":"pending"{tail}}}}}"#);
            let events = FlutterwaveV4.translate(&specimen_v4().envelope(body.as_bytes()), &v4_account());
            events.map(|events| events[0].occurred_at.millis())
        };
        assert_eq!(at(r#""timestamp":1789999990123,"#, r#","created_datetime":1"#), Ok(1_789_999_990_123));
        assert_eq!(at(r#""timestamp":"2026-09-21T14:13:10.123Z","#, ""), Ok(1_789_999_990_123));
        assert_eq!(at("", r#","created_datetime":1789999980"#), Ok(1_789_999_980_000));
        assert_eq!(at("", r#","created_datetime":"2026-09-21T14:13:00Z""#), Ok(1_789_999_980_000));
        for (head, tail) in [
            ("", ""),
            (r#""timestamp":-1,"#, ""),
            (r#""timestamp":9223372036854775807,"#, ""),
            (r#""timestamp":1.5,"#, ""),
            (r#""timestamp":"soon","#, ""),
            ("", r#","created_datetime":9223372036854775807"#),
        ] {
            assert!(matches!(at(head, tail), Err(TranslateError::Unintelligible { .. })), "{head} {tail}");
        }
    }

    // ------------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_flutterwave_reads_them() {
        let url = |request: Result<Request<Bytes>, AskError>| request.unwrap().uri().to_string();
        let mut v3 = v3_account();
        let request = FlutterwaveV3.status_request("285959875", None, &v3).unwrap();
        assert_eq!(request.uri(), "https://api.flutterwave.com/v3/transactions/285959875/verify");
        assert_eq!(request.headers()["authorization"], "Bearer sk_test_invented");
        assert!(!format!("{request:?}").contains("sk_test_invented"), "the key shows in a log");
        let since = Timestamp::from_seconds(NOW_S);
        assert_eq!(
            url(FlutterwaveV3.events_request(tests::since(since), None, &v3)),
            "https://api.flutterwave.com/v3/transactions?from=2026-09-20&to=2026-09-22&page=1"
        );
        v3.api.url = Some("http://127.0.0.1:4242".to_owned());
        assert_eq!(
            url(FlutterwaveV3.events_request(tests::since(since), Some("7"), &v3)),
            "http://127.0.0.1:4242/v3/transactions?from=2026-09-20&to=2026-09-22&page=7"
        );

        let mut v4 = v4_account();
        assert_eq!(
            url(FlutterwaveV4.status_request("chg_1", None, &v4)),
            "https://developersandbox-api.flutterwave.com/charges/chg_1"
        );
        v4.mode = Mode::Live;
        let request = FlutterwaveV4.status_request("chg_1", None, &v4).unwrap();
        assert_eq!(request.uri(), "https://api.flutterwave.cloud/f4b/production/charges/chg_1");
        assert!(!request.headers().contains_key("authorization"), "the worker adds the token");
    }

    #[test]
    fn nothing_but_an_id_enters_a_url() {
        for id in ["", "0", "01", "-1", "1/verify", "1?x", "chg_1", "12345678901234567890"] {
            assert_eq!(FlutterwaveV3.status_request(id, None, &v3_account()).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for id in ["", "_", "chg/1", "chg_1?", "chg 1", "chg_%2e"] {
            assert_eq!(FlutterwaveV4.status_request(id, None, &v4_account()).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "0", "-1", "+1", "01", "1 ", "10001", "x"] {
            let asked = FlutterwaveV3.events_request(tests::WHOLE, Some(cursor), &v3_account());
            assert_eq!(asked.unwrap_err(), AskError::MalformedId(cursor.to_owned()));
        }
        assert!(FlutterwaveV3.status_request("1", Some("2"), &v3_account()).is_err());
        let mut account = v3_account();
        account.api.key = None;
        assert_eq!(FlutterwaveV3.status_request("1", None, &account).unwrap_err(), AskError::Missing("api_key"));
    }

    #[test]
    fn a_token_is_asked_for_by_a_form_and_read() {
        let mut account = v4_account();
        account.api.key = Some(Secret::new("api_key", "s&c=r t"));
        let request = FlutterwaveV4.token_request(&account).unwrap().unwrap();
        assert_eq!(request.method(), http::Method::POST);
        assert_eq!(request.uri(), "https://idp.flutterwave.com/realms/flutterwave/protocol/openid-connect/token");
        assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(&request.body()[..], b"client_id=client%2D1&client_secret=s%26c%3Dr%20t&grant_type=client_credentials");
        account.api.client_id = None;
        assert_eq!(FlutterwaveV4.token_request(&account).unwrap().unwrap_err(), AskError::Missing("client_id"));

        let given = |body: &str| FlutterwaveV4.read_token(&response(body.as_bytes()));
        let token = given(r#"{"access_token":"eyJ.a.b","expires_in":600,"token_type":"Bearer"}"#).unwrap();
        assert_eq!((token.secret.expose(), token.lives), ("eyJ.a.b", Duration::from_mins(10)));
        assert_eq!(given(r#"{"access_token":"x","expires_in":9007199254740993}"#).unwrap().lives, TOKEN_LIVES_MAX);
        for bad in [
            "{}",
            r#"{"access_token":"","expires_in":1}"#,
            r#"{"access_token":"a b","expires_in":1}"#,
            r#"{"access_token":"x"}"#,
            r#"{"access_token":"x","expires_in":-1}"#,
        ] {
            assert!(matches!(given(bad), Err(ReadError::Unintelligible(_))), "{bad}");
        }
    }

    // -------------------------------------------------------------------------------------------------------- answers

    fn response(body: &[u8]) -> Response<Bytes> {
        Response::builder().header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked<'a>(payment_id: &'a str, cursor: Option<&'a str>) -> Asked<'a> {
        Asked { payment_id, cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn status_v3(body: &serde_json::Value) -> Result<Answer, ReadError> {
        FlutterwaveV3.read_status(&asked("285959875", None), &response(body.to_string().as_bytes()), &v3_account())
    }

    #[test]
    fn answers_read_as_recorded() {
        let v3 = FlutterwaveV3
            .read_status(
                &asked("285959875", None),
                &response(include_bytes!("fixtures/flutterwave-v3/answers/transaction.json")),
                &v3_account(),
            )
            .unwrap();
        insta::assert_json_snapshot!("flutterwave-v3-answer-transaction", v3.events);
        let v4 = FlutterwaveV4
            .read_status(
                &asked("chg_Test0001", None),
                &response(include_bytes!("fixtures/flutterwave-v4/answers/charge.json")),
                &v4_account(),
            )
            .unwrap();
        insta::assert_json_snapshot!("flutterwave-v4-answer-charge", v4.events);
        let list = FlutterwaveV3
            .read_events(
                tests::WHOLE,
                &asked("", None),
                &response(include_bytes!("fixtures/flutterwave-v3/answers/transactions.json")),
                &v3_account(),
            )
            .unwrap();
        insta::assert_json_snapshot!("flutterwave-v3-answer-transactions", list.events);
        assert_eq!(list.next.as_deref(), Some("2"));
        assert_eq!(list.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");
        assert_eq!(list.unread[0].event_id, "285959878");
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, state) in [
            ("successful", PaymentState::Captured),
            ("succeeded", PaymentState::Captured),
            ("failed", PaymentState::Failed),
            ("pending", PaymentState::Pending),
            ("SUCCESSFUL", PaymentState::Pending),
            ("dreaming", PaymentState::Pending),
        ] {
            let transaction =
                json!({"status": "success", "data": {"id": 285_959_875, "status": status, "amount": 1, "currency": "NGN"}});
            let answer = status_v3(&transaction).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, fact.failure.is_some()), (state, state == PaymentState::Failed), "{status}");
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the answer's own time");
            assert_eq!(answer.events[0].key.event_id, "poll:285959875:look-7");
        }
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let data = json!({"id": 285_959_875, "status": "successful", "amount": 1, "currency": "NGN"});
        assert!(status_v3(&json!({"status": "success", "data": data})).is_ok());
        let mut other = data.clone();
        other["id"] = 1.into();
        let mut priceless = data.clone();
        priceless["amount"] = serde_json::Value::Null;
        for body in [
            json!({"status": "error", "message": "No transaction was found for this id", "data": null}),
            json!({"status": "error", "data": data}),
            json!({"data": data}),
            json!({"status": "success", "data": other}),
            json!({"status": "success", "data": priceless}),
            json!({"status": "success", "data": [data]}),
        ] {
            assert!(matches!(status_v3(&body), Err(ReadError::Unintelligible(_))), "{body}");
        }
        let charge = |id: &str| {
            let body = json!({"status": "success", "data": {"id": id, "status": "pending"}}).to_string();
            FlutterwaveV4.read_status(&asked("chg_1", None), &response(body.as_bytes()), &v4_account())
        };
        assert!(charge("chg_1").is_ok() && matches!(charge("chg_2"), Err(ReadError::Unintelligible(_))));
    }

    #[test]
    fn a_transaction_that_nobody_knows_is_not_found_and_nothing_else_is() {
        let read = |status: u16, message: &str| {
            let body = json!({"status": "error", "message": message, "data": null}).to_string();
            let response = Response::builder().status(status).body(Bytes::from(body)).unwrap();
            FlutterwaveV3.read_status(&asked("1", None), &response, &v3_account()).unwrap_err()
        };
        assert_eq!(read(400, "No transaction was found for this id"), ReadError::NotFound);
        assert_eq!(read(404, "Not found"), ReadError::NotFound);
        assert!(matches!(read(400, "Invalid request"), ReadError::Unintelligible(_)));
        assert!(matches!(read(200, "No transaction was found for this id"), ReadError::Unintelligible(_)));
        assert_eq!(read(401, "No transaction was found for this id"), ReadError::Unauthorized(401));
    }

    #[test]
    fn lists_are_followed_to_their_end_and_lead_somewhere() {
        let read = |cursor: Option<&str>, info: serde_json::Value, data: serde_json::Value| {
            let body = json!({"status": "success", "meta": {"page_info": info}, "data": data}).to_string();
            let answer = FlutterwaveV3.read_events(tests::WHOLE, &asked("", cursor), &response(body.as_bytes()), &v3_account());
            answer.map(|answer| answer.next).map_err(|_| "refused")
        };
        let some = || json!([{"id": 1, "status": "pending", "created_at": "2026-09-21T13:33:09.000Z"}]);
        let page = |current: i64, total: i64| json!({"current_page": current, "total_pages": total});
        assert_eq!(read(None, page(1, 1), some()), Ok(None));
        assert_eq!(read(None, page(1, 3), some()), Ok(Some("2".to_owned())));
        assert_eq!(read(Some("2"), page(2, 3), some()), Ok(Some("3".to_owned())));
        assert_eq!(read(Some("3"), page(3, 3), some()), Ok(None));
        assert_eq!(read(Some("4"), page(4, 3), json!([])), Ok(None), "it became shorter");
        assert_eq!(read(None, page(1, 0), json!([])), Ok(None));
        assert_eq!(read(None, json!(null), some()), Ok(None));
        assert_eq!(read(Some("2"), page(1, 3), some()), Err("refused"), "the first page again");
        assert_eq!(read(None, page(1, 3), json!([])), Err("refused"));
        assert_eq!(read(Some("10000"), page(10_000, 10_001), some()), Err("refused"));
        assert_eq!(read(None, page(1, 1), json!({})), Err("refused"));
        assert_eq!(read(Some("x"), page(1, 1), some()), Err("refused"));
    }

    #[test]
    fn a_transaction_seen_again_is_the_same_event() {
        let listed = |status: &str, at_s: i64| {
            let body = json!({"status": "success", "data": [{"id": 1, "tx_ref": "A", "status": status, "amount": 49.99, "currency": "NGN",
                "created_at": "2026-09-21T13:33:09.000Z"}]});
            let look = Asked { at: Timestamp::from_seconds(at_s), look_id: "another", ..asked("", None) };
            FlutterwaveV3
                .read_events(tests::WHOLE, &look, &response(body.to_string().as_bytes()), &v3_account())
                .unwrap()
                .events
                .remove(0)
        };
        let (first, again) = (listed("successful", NOW_S), listed("successful", NOW_S + 900));
        assert_eq!((&first.key, first.facts_sha256()), (&again.key, again.facts_sha256()));
        assert_eq!(first.key.event_id, "1:captured");
        assert_ne!(listed("pending", NOW_S).key, first.key);
    }
}
