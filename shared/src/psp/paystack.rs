//! Paystack: transactions, refunds, disputes.
//!
//! Sources: paystack.com/docs (payments/webhooks, api), github.com/PaystackOSS/openapi as of 2025-10. No SDK of Paystack's
//! verifies webhooks; the rule is the documented one.
//!
//! **Signature.** `x-paystack-signature`: lowercase hex of HMAC-SHA512 over the raw body; the key is the API's secret key
//! (`sk_…`), so that a rotation of the one is a rotation of the other, and `api_key` may be left out: it then is the first of
//! the secrets. No time is signed.
//!
//! **Events have no id.** The key is the event's name, the id of what it is about, and of a dispute its status and resolution:
//! its reminders say nothing new.
//!
//! **Payments** are transactions, and a payment's id is the transaction's reference, which the merchant chose and by which the
//! API is asked. There is no webhook of a failure: `failed` and `abandoned` are found by asking. `abandoned` is what every
//! transaction is that nobody has paid yet; it still can be paid, so it is an attempt that failed. `reversed` is one of which
//! all was refunded. An unknown status is pending.
//!
//! **Refunds and disputes** carry neither a time nor a number in their webhooks. Their version is the place of their status in
//! their life, from webhooks and answers alike: pending, processing, needs-attention, processed, failed; undecided, resolved.
//! So whichever comes first, the later place counts. A refund without its `id` cannot be told from another, since
//! `refund_reference` is not in the list: it is quarantined, and the list of refunds tells it.
//!
//! **Amounts** are subunits, in refunds sometimes as a string \[uncertain\]: both are read. **Mode** is `domain`.
//!
//! **The order** is `metadata.order_id`, else the reference; `metadata` is an object, a string or null. Refunds, and disputes
//! without metadata, have the reference alone, and say nothing about the order but through their payment: had the shop named
//! the order in `metadata`, the reference would lead to another.
//!
//! **Resolutions** of a dispute: `merchant-accepted` is lost, `declined` is won \[uncertain\]; any other leaves it open.
//!
//! **Lists** are by time of creation: a later change of an old transaction, refund or dispute is in none of them. They are read
//! until a page is empty. There is one webhook URL, in the dashboard, and no API for it.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::Telling;
use super::{
    Abilities, Account, Answer, AskError, Asked, Keys, LateChanges, Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme,
    SettingError, TranslateError, Unread, Verified, WebhookRequest, Window, answer, ask, signature, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source};
use crate::secret::Secret;

/// The adapter.
pub struct Paystack;

const SIGNATURE: &str = "x-paystack-signature";
const API: &str = "https://api.paystack.co";
/// Items of a page; Paystack's default is 50.
const PAGE: usize = 100;
/// How far a list may be followed, in pages: more than anybody has, and few enough digits for a cursor.
const PAGES_MAX: i64 = 100_000;
/// The longest of Paystack's statuses that enters a key, in bytes; the longest known has 26.
const WORD_BYTES_MAX: usize = 64;
/// The most digits that an id has: those of the largest `i64`.
const NUMBER_DIGITS_MAX: usize = 19;
/// What may stand in a path as it is, of a reference: Paystack allows `-`, `.`, `=` and letters and digits, older ones more.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

static PROFILE: Profile = Profile {
    name: "Paystack",
    translate_headers: &[],
    // Not published; about 30 s [uncertain].
    timeout: Duration::from_secs(30),
    // Every 3 minutes for the first 4 tries, then hourly.
    retry_window: Duration::from_hours(72),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("paystack-hex-sha512")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::Begun, endpoint_list: false },
    list: Some(Listing::USUAL),
    // paystack.com/docs/payments/webhooks as of 2025-10, for test and live.
    sources: &["52.31.139.75/32", "52.49.173.169/32", "52.214.14.220/32"],
};

impl Psp for Paystack {
    fn id(&self) -> &'static str {
        "paystack"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Dashboard: Settings, API Keys & Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        for secret in &account.keys.secrets {
            let refuse = |problem: &str| {
                let problem = format!("{} is {problem}", secret.name());
                Err(SettingError { setting: "secrets", problem })
            };
            match (secret.expose(), account.mode) {
                (key, _) if key.starts_with("pk_") => {
                    return refuse("a public key; webhooks are signed with the secret key, sk_…");
                }
                (key, Mode::Test) if key.starts_with("sk_live_") => return refuse("a live key, the mode is test"),
                (key, Mode::Live) if key.starts_with("sk_test_") => return refuse("a test key, the mode is live"),
                _ => {}
            }
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let malformed = Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not 128 lowercase hex digits" };
        let offered: [u8; 64] = signature::lower_hex(signature::exactly_one(request.headers, SIGNATURE)?).ok_or(malformed)?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let secret_name = signature::matching_secret(keys, now, |secret| {
            signature::hmac_sha512(secret.expose().as_bytes(), &[request.body]).ct_eq(&offered)
        })?;
        Ok(Verified {
            webhook_id: signature::body_id(request.body),
            event_type: Head::read(request.body).event_type(),
            subject: None,
            secret_name,
            proof: Proof::Proven,
            content_type: signature::content_type(request.headers),
            headers: Vec::new(),
        })
    }

    /// Of failures and of what a payer leaves there is no event.
    fn announces(&self, fact: &Fact) -> bool {
        matches!(fact, Fact::Payment(fact) if fact.state == PaymentState::Captured)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        let event_type = event.name("event")?;
        let Some(family) = Family::of(event_type) else {
            return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
        };
        let data = event.object("data")?;
        let told = match family {
            Family::Charge => {
                if let Some(status) = data.optional("status").filter(|status| status.as_text() != Some("success")) {
                    return Err(status.problem("contradicts the event's name").into());
                }
                charge(&data, account, paid_at(&data)?, captured(&data)?)?
            }
            // When it happened is not said: when it came must do, for people to see. It does not enter the merge.
            Family::Refund(status) => refund(&data, reference_behind(&data, None)?, status, envelope.received_at)?,
            Family::Dispute { is_resolved } => dispute(&data, account, is_resolved, envelope.received_at)?,
        };
        let key = format!("{event_type}:{}", told.key);
        Ok(vec![Telling { event_id: key, event_type, ..told.telling }.event(account, Source::Webhook)])
    }

    /// `api_key`, or else the first of the secrets, which is the same key.
    fn api_key<'a>(&self, account: &'a Account) -> Option<&'a Secret> {
        account.api.key.as_ref().or_else(|| account.keys.secrets.first())
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        match StatusStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))? {
            StatusStep::Transaction => {
                let reference = path_segment(payment_id).ok_or_else(|| AskError::MalformedId(payment_id.to_owned()))?;
                get(account, &format!("/transaction/verify/{reference}"))
            }
            StatusStep::Refunds { transaction, page } => {
                get(account, &format!("/refund?transaction={transaction}&perPage={PAGE}&page={page}"))
            }
            StatusStep::Disputes { transaction, page } => {
                get(account, &format!("/dispute?transaction={transaction}&perPage={PAGE}&page={page}"))
            }
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let value = read_answer(response, asked)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        match step {
            StatusStep::Transaction => look.asked_transaction(&Node::root(&value)),
            StatusStep::Refunds { transaction, page } => look.asked_refunds(&Node::root(&value), transaction, page),
            StatusStep::Disputes { transaction, page } => look.asked_disputes(&Node::root(&value), transaction, page),
        }
    }

    /// Transactions, then refunds, then disputes, by their creation. What is made meanwhile is beyond the window, and so moves
    /// no page.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let ListStep { list, page } = ListStep::of(cursor).ok_or_else(|| malformed_cursor(cursor))?;
        let Window { since, until } = window.in_seconds();
        get(account, &format!("/{}?from={since}&to={until}&perPage={PAGE}&page={page}", list.path()))
    }

    fn read_events(
        &self,
        _window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let step = ListStep::of(asked.cursor).ok_or_else(unknown_cursor)?;
        let value = read_answer(response, asked)?;
        let look = Look { asked, account, at: answer::date(response).unwrap_or(asked.at) };
        look.listed(&Node::root(&value), &step)
    }
}

// ---------------------------------------------------------------------------------------------------- verification

/// What the ingress needs of the body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads an authentic body. What is no such JSON is still authentic: it is kept, and the worker quarantines it.
    fn read(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn event_type(&self) -> Option<String> {
        Some(self.event.as_ref()).filter(|event| json::is_name(event)).map(str::to_owned)
    }
}

// ------------------------------------------------------------------------------------------------------ translation

/// What an event speaks of.
#[derive(Clone, Copy)]
enum Family {
    Charge,
    /// With the status that the event's name says.
    Refund(&'static str),
    Dispute {
        is_resolved: bool,
    },
}

impl Family {
    /// `None` for what is none of our business.
    fn of(event_type: &str) -> Option<Self> {
        let family = match event_type {
            "charge.success" => Self::Charge,
            "refund.pending" => Self::Refund("pending"),
            "refund.processing" => Self::Refund("processing"),
            "refund.processed" => Self::Refund("processed"),
            "refund.failed" => Self::Refund("failed"),
            "charge.dispute.create" | "charge.dispute.remind" => Self::Dispute { is_resolved: false },
            "charge.dispute.resolve" => Self::Dispute { is_resolved: true },
            _ => return None,
        };
        Some(family)
    }
}

/// A fact, and what names it among the facts of its kind.
struct Told<'a> {
    key: String,
    telling: Telling<'a>,
}

/// A transaction.
fn charge<'a>(data: &Node<'a>, account: &Account, at: Timestamp, fact: PaymentFact) -> Result<Told<'a>, Problem> {
    let reference = data.name("reference")?;
    let order = telling::order(data, account, &[&["metadata", "order_id"], &["reference"]]);
    Ok(told(number_at(data, "id")?, data, at, order, reference, FactVersion::Time(at.millis()), Fact::Payment(fact)))
}

/// `status`: where the refund is in its life, by the event's name or by the answer.
fn refund<'a>(data: &Node<'_>, reference: &'a str, status: &str, at: Timestamp) -> Result<Told<'a>, Problem> {
    let id = number_at(data, "id")?;
    let (place, state) = match status {
        "processing" => (2, RefundState::Pending),
        "needs-attention" => (3, RefundState::Pending),
        "processed" => (4, RefundState::Succeeded),
        "failed" => (5, RefundState::Failed),
        // pending, and what is new to us
        _ => (1, RefundState::Pending),
    };
    let created = created_at(data)?;
    let fact = Fact::Refund { id: id.clone(), state, amount: data.minor_units("amount", data)?, created };
    Ok(told(id, data, at, None, reference, FactVersion::Number(place), fact))
}

fn dispute<'a>(data: &Node<'a>, account: &Account, is_resolved: bool, at: Timestamp) -> Result<Told<'a>, Problem> {
    let id = number_at(data, "id")?;
    let transaction = data.object("transaction")?;
    let (place, state) = match (is_resolved, data.text("resolution")) {
        (true, Some("merchant-accepted")) => (2, DisputeState::Lost),
        (true, Some("declined")) => (2, DisputeState::Won),
        (true, _) => (2, DisputeState::Open),
        (false, _) => (1, DisputeState::Open),
    };
    let amount = match data.optional("refund_amount") {
        Some(_) => data.minor_units("refund_amount", if data.optional("currency").is_some() { data } else { &transaction })?,
        None => transaction.minor_units("amount", &transaction)?,
    };
    let fact = Fact::Dispute { id: id.clone(), state, amount };
    let order = telling::order(&transaction, account, &[&["metadata", "order_id"]]);
    let words =
        ["status", "resolution"].map(|key| data.text(key).filter(|text| text.len() <= WORD_BYTES_MAX).unwrap_or_default());
    let key = format!("{id}:{}", words.join(":"));
    Ok(told(key, data, at, order, transaction.name("reference")?, FactVersion::Number(place), fact))
}

fn told<'a>(
    key: String,
    data: &Node<'_>,
    at: Timestamp,
    order: Option<&'a str>,
    payment_id: &'a str,
    version: FactVersion,
    fact: Fact,
) -> Told<'a> {
    let mode = match data.text("domain") {
        Some("live") => Some(Mode::Live),
        Some("test") => Some(Mode::Test),
        _ => None,
    };
    let telling =
        Telling { event_id: String::new(), event_type: "", at, mode, order, payment_id, others: Vec::new(), version, fact };
    Told { key, telling }
}

fn captured(transaction: &Node<'_>) -> Result<PaymentFact, Problem> {
    let captured = Some(transaction.minor_units("amount", transaction)?);
    Ok(PaymentFact { captured, capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
}

/// Of a transaction as it stands. An unknown status is pending: it is never a failure and never money.
fn transaction_by_status(transaction: &Node<'_>) -> Result<PaymentFact, Problem> {
    match transaction.name("status")? {
        "success" | "reversed" => captured(transaction),
        status @ ("failed" | "abandoned") => {
            let failure = Some(telling::failure(Some(status), transaction.text("gateway_response")));
            Ok(PaymentFact { failure, ..PaymentFact::new(PaymentState::Failed) })
        }
        _ => Ok(PaymentFact::new(PaymentState::Pending)),
    }
}

/// When it was paid, else when it was made.
fn paid_at(data: &Node<'_>) -> Result<Timestamp, Problem> {
    if data.optional("paid_at").is_some() { telling::time(data, "paid_at") } else { telling::time(data, "created_at") }
}

/// Spelled in two ways.
fn created_at(data: &Node<'_>) -> Result<Option<Timestamp>, Problem> {
    let key = ["created_at", "createdAt"].into_iter().find(|key| data.optional(key).is_some());
    key.map(|key| telling::time(data, key)).transpose()
}

/// An id at `key`: a number, or one as a string.
fn number_at(data: &Node<'_>, key: &str) -> Result<String, Problem> {
    let member = data.required(key)?;
    let number = match member.as_text() {
        Some(text) => Some(text.to_owned()).filter(|text| is_number(text)),
        None => data.optional_integer(key)?.filter(|number| *number >= 0).map(|number| number.to_string()),
    };
    number.ok_or_else(|| member.problem("not an id"))
}

fn is_number(text: &str) -> bool {
    (1..=NUMBER_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The reference of the transaction that a refund is about. A list may name the transaction by its number alone: then it is the
/// one that was asked for, `(number, reference)`, or none that is known.
fn reference_behind<'a>(refund: &Node<'a>, asked: Option<(&str, &'a str)>) -> Result<&'a str, Problem> {
    if let Some(reference) = refund.optional_name("transaction_reference")? {
        return Ok(reference);
    }
    let transaction = refund.required("transaction")?;
    if transaction.optional("reference").is_some() {
        return transaction.name("reference");
    }
    let number = number_at(refund, "transaction")?;
    let asked = asked.filter(|(asked, _)| *asked == number).map(|(_, reference)| reference);
    asked.ok_or_else(|| transaction.problem("names its transaction by number alone"))
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the transaction, then its refunds, then its disputes, page by page. The lists want the
/// transaction's id.
enum StatusStep<'a> {
    Transaction,
    Refunds { transaction: &'a str, page: i64 },
    Disputes { transaction: &'a str, page: i64 },
}

const TRANSACTIONS: &str = "transaction";
const REFUNDS: &str = "refund";
const DISPUTES: &str = "dispute";

impl<'a> StatusStep<'a> {
    /// Reads a cursor: none, `refund:<transaction>:<page>`, `dispute:<transaction>:<page>`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Transaction) };
        let (list, rest) = cursor.split_once(':')?;
        let (transaction, page) = rest.split_once(':')?;
        let page = page_of(page)?;
        match list {
            _ if !is_number(transaction) => None,
            REFUNDS => Some(Self::Refunds { transaction, page }),
            DISPUTES => Some(Self::Disputes { transaction, page }),
            _ => None,
        }
    }
}

/// Where a sweep stands.
struct ListStep {
    list: List,
    page: i64,
}

#[derive(Clone, Copy)]
enum List {
    Transactions,
    Refunds,
    Disputes,
}

impl List {
    const fn path(self) -> &'static str {
        match self {
            Self::Transactions => TRANSACTIONS,
            Self::Refunds => REFUNDS,
            Self::Disputes => DISPUTES,
        }
    }

    const fn after(self) -> Option<Self> {
        match self {
            Self::Transactions => Some(Self::Refunds),
            Self::Refunds => Some(Self::Disputes),
            Self::Disputes => None,
        }
    }
}

impl ListStep {
    /// Reads a cursor: none, or `<list>:<page>`.
    fn of(cursor: Option<&str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { list: List::Transactions, page: 1 }) };
        let (list, page) = cursor.split_once(':')?;
        let list = match list {
            TRANSACTIONS => List::Transactions,
            REFUNDS => List::Refunds,
            DISPUTES => List::Disputes,
            _ => return None,
        };
        Some(Self { list, page: page_of(page)? })
    }

    /// The cursor after a page of so many items.
    fn next(&self, items: usize) -> Option<String> {
        let (list, page) = if items > 0 { (self.list, self.page + 1) } else { (self.list.after()?, 1) };
        Some(format!("{}:{page}", list.path()))
    }
}

fn page_of(text: &str) -> Option<i64> {
    signature::seconds(text).filter(|page| (1..=PAGES_MAX).contains(page))
}

/// One answer to one question.
struct Look<'a> {
    asked: &'a Asked<'a>,
    account: &'a Account,
    /// When the answer was true.
    at: Timestamp,
}

impl Look<'_> {
    fn asked_transaction(&self, answer: &Node<'_>) -> Result<Answer, ReadError> {
        let transaction = answer.object("data")?;
        if transaction.name("reference")? != self.asked.payment_id {
            return Err(transaction.required("reference")?.problem("another payment than was asked for").into());
        }
        let events = self.transaction(&transaction)?;
        // Only what was captured can be refunded or disputed: the open and the failed cost one request.
        let is_captured = matches!(&events[0].fact, Fact::Payment(fact) if fact.captured.is_some());
        let next = if is_captured { Some(format!("{REFUNDS}:{}:1", number_at(&transaction, "id")?)) } else { None };
        Ok(Answer { events, unread: Vec::new(), next })
    }

    fn asked_refunds(&self, answer: &Node<'_>, transaction: &str, page: i64) -> Result<Answer, ReadError> {
        let refunds = items(answer)?;
        let events =
            refunds.iter().map(|item| self.of_asked(self.refund(item, Some((transaction, self.asked.payment_id)))?, item));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let next = if refunds.len() == PAGE {
            format!("{REFUNDS}:{transaction}:{}", page + 1)
        } else {
            format!("{DISPUTES}:{transaction}:1")
        };
        Ok(Answer { events, unread: Vec::new(), next: Some(next) })
    }

    fn asked_disputes(&self, answer: &Node<'_>, transaction: &str, page: i64) -> Result<Answer, ReadError> {
        let disputes = items(answer)?;
        let events = disputes.iter().map(|item| self.of_asked(self.dispute(item)?, item));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let next = (disputes.len() == PAGE).then(|| format!("{DISPUTES}:{transaction}:{}", page + 1));
        Ok(Answer { events, unread: Vec::new(), next })
    }

    fn of_asked(&self, event: PaymentEvent, item: &Node<'_>) -> Result<PaymentEvent, Problem> {
        if event.payment_id == self.asked.payment_id {
            Ok(event)
        } else {
            Err(item.problem("of another payment than was asked for"))
        }
    }

    fn listed(&self, answer: &Node<'_>, step: &ListStep) -> Result<Answer, ReadError> {
        let items = items(answer)?;
        is_whole(answer, step.page, items.len())?;
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next: step.next(items.len()) };
        for item in &items {
            let events = match step.list {
                List::Transactions => self.transaction(item),
                List::Refunds => self.refund(item, None).map(|event| vec![event]),
                List::Disputes => self.dispute(item).map(|event| vec![event]),
            };
            match events {
                Ok(events) => found.events.extend(events),
                Err(problem) => {
                    let event_id = format!("{}:{}", step.list.path(), number_at(item, "id")?);
                    found.unread.push(Unread { event_id, error: problem.into() });
                }
            }
        }
        Ok(found)
    }

    /// The transaction, and of a reversed one that all of it was refunded.
    fn transaction(&self, transaction: &Node<'_>) -> Result<Vec<PaymentEvent>, Problem> {
        let fact = transaction_by_status(transaction)?;
        let captured = fact.captured;
        let told = charge(transaction, self.account, self.at, fact)?;
        let mut events = vec![self.event(TRANSACTIONS, told)];
        if let Some(amount) = captured.filter(|_| transaction.text("status") == Some("reversed")) {
            let mut total = charge(transaction, self.account, self.at, PaymentFact::new(PaymentState::Captured))?;
            total.key.push_str(":total");
            total.telling.fact = Fact::RefundTotal { amount };
            events.push(self.event(TRANSACTIONS, total));
        }
        Ok(events)
    }

    fn refund(&self, item: &Node<'_>, asked: Option<(&str, &str)>) -> Result<PaymentEvent, Problem> {
        Ok(self.event(REFUNDS, refund(item, reference_behind(item, asked)?, item.name("status")?, self.at)?))
    }

    fn dispute(&self, item: &Node<'_>) -> Result<PaymentEvent, Problem> {
        Ok(self.event(DISPUTES, dispute(item, self.account, item.name("status")? == "resolved", self.at)?))
    }

    fn event(&self, list: &str, told: Told<'_>) -> PaymentEvent {
        let event_type = format!("poll:{list}");
        Telling { event_id: format!("{list}:{}", told.key), event_type: &event_type, ..told.telling }
            .answer(self.account, self.asked)
    }
}

/// The items of a list, as many as were asked for at most.
fn items<'a>(answer: &Node<'a>) -> Result<Vec<Node<'a>>, Problem> {
    let items = answer.array("data")?;
    if items.len() > PAGE {
        return Err(answer.problem("a page larger than was asked for"));
    }
    Ok(items)
}

/// Refuses a page with fewer items than it says that it has: what is missing stands on no other page.
fn is_whole(answer: &Node<'_>, page: i64, items: usize) -> Result<(), Problem> {
    let meta = answer.member("meta");
    // What it says otherwise, or not at all, proves nothing.
    let number = |key| meta.optional_integer(key).ok().flatten();
    let size = number("perPage").and_then(|size| usize::try_from(size).ok()).unwrap_or(PAGE);
    match number("pageCount") {
        Some(pages) if page < pages && items < size => Err(meta.problem("a page that is cut off")),
        _ => Ok(()),
    }
}

/// The body of an answer that answers: `status: true` says that the API was well, and nothing about a payment. For a reference
/// that it does not know, the API has 400 and a code of its own.
fn read_answer<'a>(response: &'a Response<Bytes>, asked: &Asked<'_>) -> Result<json::Value<'a>, ReadError> {
    if response.status() == StatusCode::BAD_REQUEST {
        let value = json::read(response.body())?;
        let answer = Node::root(&value);
        let is_unknown = answer.text("code") == Some("transaction_not_found")
            || answer.text("message") == Some("Transaction reference not found");
        return Err(if is_unknown { ReadError::NotFound } else { ReadError::Unintelligible("status 400".to_owned()) });
    }
    let value = json::read(answer::body(response, Some(asked.at))?)?;
    if Node::root(&value).optional_bool("status")? != Some(true) {
        return Err(ReadError::Unintelligible("the API says that it did not answer".to_owned()));
    }
    Ok(value)
}

fn malformed_cursor(cursor: Option<&str>) -> AskError {
    AskError::MalformedId(cursor.unwrap_or_default().to_owned())
}

fn unknown_cursor() -> ReadError {
    ReadError::Unintelligible("an unknown cursor".to_owned())
}

/// A reference as one segment of a path; `None` for what cannot be one (`.` and `..` would leave it).
fn path_segment(reference: &str) -> Option<String> {
    let usable = json::is_name(reference) && reference.bytes().any(|byte| byte != b'.');
    usable.then(|| utf8_percent_encode(reference, UNRESERVED).to_string())
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    let credentials = Paystack.api_key(account).and_then(ask::bearer_of).ok_or(AskError::Missing("api_key"))?;
    ask::finish(ask::get(account, API, path_and_query, credentials))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::super::tests::{self, NOW_S, Specimen};
    use super::*;
    use crate::event::ReferenceKind;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Paystack,
            scheme: "paystack-hex-sha512",
            secret: SECRET,
            other_secret: "sk_test_paystack_secret_OLD",
            settings: |account| account.api.key = None,
            sign: |secret, _, body| {
                let mac = hex::encode(signature::hmac_sha512(secret.as_bytes(), &[body]));
                (tests::headers([(SIGNATURE, mac)]), body.to_vec())
            },
            body: br#"{"event":"charge.success","data":{}}"#,
            event_type: Some("charge.success"),
            timed: false,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    const SECRET: &str = "sk_test_paystack_secret_01";
    const ANSWERED: &str = "Mon, 21 Sep 2026 14:13:25 GMT";

    fn account() -> Account {
        specimen().account(&[SECRET])
    }

    fn translated(body: &serde_json::Value) -> Result<Vec<PaymentEvent>, TranslateError> {
        Paystack.translate(&specimen().envelope(body.to_string().as_bytes()), &account())
    }

    fn fixture(name: &str) -> serde_json::Value {
        let fixtures = tests::fixtures(&Paystack);
        serde_json::from_slice(&fixtures.into_iter().find(|(known, _)| known == name).unwrap().1).unwrap()
    }

    fn orders(event: &PaymentEvent) -> Vec<&str> {
        let orders = event.references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
        orders.map(|reference| reference.value.as_str()).collect()
    }

    #[test]
    fn the_header_is_128_lowercase_hex_digits() {
        let body = specimen().body;
        let mac = hex::encode(signature::hmac_sha512(SECRET.as_bytes(), &[body]));
        let reason = |header: &str| {
            let headers = tests::headers([(SIGNATURE, header.to_owned())]);
            tests::verify(&Paystack, &[SECRET], &headers, body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        assert_eq!(reason(&mac), "accepted");
        let sha256 = hex::encode(signature::hmac_sha256(SECRET.as_bytes(), &[body]));
        for bad in [mac.to_uppercase(), format!("{mac}0"), mac[1..].to_owned(), sha256, format!("sha512={mac}")] {
            assert_eq!(reason(&bad), "malformed_header", "{bad}");
        }
    }

    #[test]
    fn metadata_is_an_object_a_string_or_null() {
        for (metadata, order) in [
            (json!({"order_id": "A 7"}), "A 7"),
            (json!({"order_id": 7}), "ORD-1001"),
            (json!({}), "ORD-1001"),
            (json!(""), "ORD-1001"),
            (json!("{\"order_id\":\"A\"}"), "ORD-1001"),
            (json!(null), "ORD-1001"),
            (json!([]), "ORD-1001"),
        ] {
            let mut body = fixture("charge.success");
            body["data"]["metadata"] = metadata;
            assert_eq!(orders(&translated(&body).unwrap()[0]), [order], "{body}");
        }
        let mut body = fixture("charge.success");
        body["data"].as_object_mut().unwrap().remove("metadata");
        assert_eq!(orders(&translated(&body).unwrap()[0]), ["ORD-1001"]);

        let account = Account { order_reference: Some(vec!["metadata".into(), "cart".into()]), ..account() };
        let told = |cart: serde_json::Value| {
            let mut body = fixture("charge.success");
            body["data"]["metadata"]["cart"] = cart;
            Paystack.translate(&specimen().envelope(body.to_string().as_bytes()), &account).unwrap()
        };
        assert_eq!(orders(&told(json!("B"))[0]), ["B"]);
        assert_eq!(orders(&told(json!(null))[0]), [""; 0]);
    }

    #[test]
    fn a_refund_names_no_order_but_its_payment() {
        for name in ["refund.processed", "refund.pending", "dispute.create"] {
            let event = &translated(&fixture(name)).unwrap()[0];
            assert_eq!((event.payment_id.as_str(), orders(event)), ("ORD-1001", vec![]), "{name}");
        }
    }

    #[test]
    fn an_amount_may_be_a_string_of_subunits() {
        for (amount, minor) in [
            (json!(100_000), Some(100_000)),
            (json!("100000"), Some(100_000)),
            (json!("0"), Some(0)),
            (json!("1000.00"), None),
            (json!("-1"), None),
            (json!("1e3"), None),
            (json!(" 1"), None),
            (json!(""), None),
            (json!(1000.5), None),
            (json!(-1), None),
            (json!("99999999999999999999"), None),
            (json!("9007199254740993"), None),
            (json!(null), None),
        ] {
            let mut body = fixture("refund.processed");
            body["data"]["amount"] = amount;
            let told = translated(&body).ok().map(|events| match events[0].fact {
                Fact::Refund { amount, .. } => amount.minor,
                ref other => panic!("{other:?}"),
            });
            assert_eq!(told, minor, "{body}");
        }
    }

    #[test]
    fn a_refund_moves_forward_whatever_comes_first() {
        let version = |name: &str| {
            let event = translated(&fixture(name)).unwrap().remove(0);
            let Fact::Refund { state, .. } = event.fact else { panic!("{:?}", event.fact) };
            (event.version, state)
        };
        let life = ["refund.pending", "refund.processing", "refund.processed", "refund.failed"].map(version);
        assert!(life.is_sorted(), "{life:?}");
        let page = include_bytes!("fixtures/paystack/answers/refunds.json");
        let listed = read_status(Some("refund:302961001:1"), page).unwrap();
        assert_eq!(listed.events[1].version, version("refund.processed").0, "the same place, by webhook and by answer");
    }

    #[test]
    fn a_reminder_of_a_dispute_says_nothing_new() {
        let key = |body: &serde_json::Value| translated(body).unwrap()[0].key.event_id.clone();
        let body = fixture("dispute.remind");
        assert_eq!(key(&body), "charge.dispute.remind:358950:awaiting-merchant-feedback:");
        let mut later = body.clone();
        later["data"]["updatedAt"] = json!("2026-10-04T00:00:00.000Z");
        let (first, second) = (&translated(&body).unwrap()[0], &translated(&later).unwrap()[0]);
        assert_eq!((&first.key, first.facts_sha256()), (&second.key, second.facts_sha256()));
        let mut moved = body;
        moved["data"]["status"] = json!("awaiting-bank-feedback");
        assert_ne!(first.key.event_id, key(&moved));
    }

    #[test]
    fn a_key_of_the_other_mode_or_kind_is_refused_at_start() {
        let setting = |secret: &str, mode: Mode| {
            let mut account = account();
            (account.mode, account.keys.secrets) = (mode, vec![Secret::new("secrets[0]", secret)]);
            Paystack.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(setting("sk_test_1", Mode::Test), Ok(()));
        assert_eq!(setting("sk_live_1", Mode::Live), Ok(()));
        assert_eq!(setting("sk_live_1", Mode::Test), Err("secrets"));
        assert_eq!(setting("sk_test_1", Mode::Live), Err("secrets"));
        assert_eq!(setting("pk_test_1", Mode::Test), Err("secrets"));
    }

    // ------------------------------------------------------------------------------------------------ questions

    #[test]
    fn questions_are_asked_as_paystack_reads_them() {
        let mut account = account();
        let status = |id, cursor| Paystack.status_request(id, cursor, &account).unwrap().uri().to_string();
        assert_eq!(status("T.2026=9-x", None), "https://api.paystack.co/transaction/verify/T.2026%3D9-x");
        assert_eq!(status("ORD-Ü/1 ?#%", None), "https://api.paystack.co/transaction/verify/ORD-%C3%9C%2F1%20%3F%23%25");
        assert_eq!(status("x", Some("refund:7:2")), "https://api.paystack.co/refund?transaction=7&perPage=100&page=2");
        assert_eq!(status("x", Some("dispute:7:1")), "https://api.paystack.co/dispute?transaction=7&perPage=100&page=1");
        let since = Timestamp::from_seconds(1_789_999_999);
        let list = |cursor| Paystack.events_request(tests::since(since), cursor, &account).unwrap().uri().to_string();
        let window = "from=2026-09-21T14:13:19Z&to=2026-09-21T14:13:20Z";
        assert_eq!(list(None), format!("https://api.paystack.co/transaction?{window}&perPage=100&page=1"));
        assert_eq!(list(Some("refund:2")), format!("https://api.paystack.co/refund?{window}&perPage=100&page=2"));
        let bearer = |account: &Account| {
            let request = Paystack.status_request("x", None, account).unwrap();
            request.headers()["authorization"].to_str().unwrap().to_owned()
        };
        assert_eq!(bearer(&account), "Bearer sk_test_paystack_secret_01", "the signing secret is the API's key");
        account.api.key = Some(Secret::new("api_key", "sk_test_other"));
        assert_eq!(bearer(&account), "Bearer sk_test_other");
        assert_eq!(Paystack.endpoints_request(None, &account).unwrap_err(), AskError::Unsupported);
    }

    #[test]
    fn nothing_leaves_its_place_in_a_url() {
        let account = account();
        for id in ["", ".", "..", "a\u{0}", &"a".repeat(256)] {
            assert_eq!(Paystack.status_request(id, None, &account).unwrap_err(), AskError::MalformedId(id.to_owned()));
        }
        for cursor in ["", "refund", "refund:7", "refund:x:1", "refund:7:0", "refund:7:x", "refund::1", "transaction:7:1"] {
            assert!(Paystack.status_request("x", Some(cursor), &account).is_err(), "{cursor}");
        }
        for cursor in ["", "refund", "refund:x", "refund:0", "refund:999999", "refund:1:1", "transfer:1"] {
            assert!(Paystack.events_request(tests::WHOLE, Some(cursor), &account).is_err(), "{cursor}");
        }
    }

    // -------------------------------------------------------------------------------------------------- answers

    fn response(status: u16, body: &[u8]) -> Response<Bytes> {
        Response::builder().status(status).header("date", ANSWERED).body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn asked(cursor: Option<&str>) -> Asked<'_> {
        Asked { payment_id: "ORD-1001", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" }
    }

    fn read_status(cursor: Option<&str>, body: &[u8]) -> Result<Answer, ReadError> {
        Paystack.read_status(&asked(cursor), &response(200, body), &account())
    }

    #[test]
    fn answers_read_as_recorded() {
        for (name, body, cursor, next) in [
            ("success", &include_bytes!("fixtures/paystack/answers/success.json")[..], None, Some("refund:302961001:1")),
            ("abandoned", include_bytes!("fixtures/paystack/answers/abandoned.json"), None, None),
            ("reversed", include_bytes!("fixtures/paystack/answers/reversed.json"), None, Some("refund:302961001:1")),
            (
                "refunds",
                include_bytes!("fixtures/paystack/answers/refunds.json"),
                Some("refund:302961001:1"),
                Some("dispute:302961001:1"),
            ),
            ("disputes", include_bytes!("fixtures/paystack/answers/disputes.json"), Some("dispute:896467688:1"), None),
        ] {
            let answer = read_status(cursor, body).unwrap();
            assert_eq!(answer.next.as_deref(), next, "{name}");
            insta::assert_json_snapshot!(format!("paystack-answer-{name}"), answer.events);
        }
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        for (status, state) in [
            ("success", PaymentState::Captured),
            ("reversed", PaymentState::Captured),
            ("failed", PaymentState::Failed),
            ("abandoned", PaymentState::Failed),
            ("ongoing", PaymentState::Pending),
            ("pending", PaymentState::Pending),
            ("processing", PaymentState::Pending),
            ("queued", PaymentState::Pending),
            ("dreaming", PaymentState::Pending),
        ] {
            let mut body: serde_json::Value =
                serde_json::from_slice(include_bytes!("fixtures/paystack/answers/success.json")).unwrap();
            body["data"]["status"] = json!(status);
            let answer = read_status(None, body.to_string().as_bytes()).unwrap();
            let Fact::Payment(fact) = &answer.events[0].fact else { panic!("{:?}", answer.events[0].fact) };
            assert_eq!((fact.state, answer.next.is_some()), (state, state == PaymentState::Captured), "{status}");
            let totals = answer.events.iter().filter(|event| matches!(event.fact, Fact::RefundTotal { .. })).count();
            assert_eq!(totals, usize::from(status == "reversed"), "{status}");
        }
    }

    #[test]
    fn not_found_is_a_400_and_no_failure() {
        let body = include_bytes!("fixtures/paystack/answers/not_found.json");
        let read = |status, body: &[u8]| Paystack.read_status(&asked(None), &response(status, body), &account()).unwrap_err();
        assert_eq!(read(400, body), ReadError::NotFound);
        assert_eq!(read(404, body), ReadError::NotFound);
        assert!(matches!(read(400, br#"{"status":false,"message":"Invalid key"}"#), ReadError::Unintelligible(_)));
        assert!(matches!(read(400, b"<html>"), ReadError::Unintelligible(_)));
        // `status` says how the API is, and `data.status` how the payment is.
        assert!(matches!(read(200, br#"{"status":false,"data":{"status":"success"}}"#), ReadError::Unintelligible(_)));
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        let refund = |change: serde_json::Value| {
            let mut refund = json!({"id": 1, "transaction": 7, "amount": 1, "currency": "NGN", "status": "processed"});
            refund.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            refund
        };
        let mine = refund(json!({}));
        let read = |cursor: Option<&str>, data: serde_json::Value| {
            read_status(cursor, json!({"status": true, "data": data}).to_string().as_bytes())
        };
        assert_eq!(read(Some("refund:7:1"), json!([mine])).unwrap().events.len(), 1);
        for (cursor, data) in [
            (None, json!({"id": 1, "reference": "ORD-other", "status": "success", "amount": 1, "currency": "NGN"})),
            (None, json!({"id": 1, "reference": "ORD-1001", "status": "success"})),
            (None, json!([])),
            (Some("refund:8:1"), json!([mine])),
            (Some("refund:7:1"), json!([refund(json!({"transaction_reference": "ORD-other"}))])),
            (Some("refund:7:1"), json!([refund(json!({"id": "one"}))])),
            (Some("refund:7:1"), json!(vec![mine.clone(); PAGE + 1])),
            (
                Some("dispute:7:1"),
                json!([{"id": 1, "status": "pending", "transaction": {"reference": "x", "amount": 1, "currency": "NGN"}}]),
            ),
            (Some("charge:7:1"), json!([])),
        ] {
            assert!(matches!(read(cursor, data.clone()), Err(ReadError::Unintelligible(_))), "{cursor:?} {data}");
        }
    }

    #[test]
    fn lists_are_followed_to_their_end() {
        let transaction = |number: usize| json!({"id": number, "reference": format!("R{number}"), "status": "ongoing", "amount": 1, "currency": "NGN"});
        let read = |cursor: Option<&str>, body: &serde_json::Value| {
            Paystack.read_events(tests::WHOLE, &asked(cursor), &response(200, body.to_string().as_bytes()), &account()).unwrap()
        };
        let page = |items: usize| json!({"status": true, "data": (0..items).map(transaction).collect::<Vec<_>>()});
        let next = |cursor: Option<&str>, items: usize| read(cursor, &page(items)).next;
        assert_eq!(next(None, PAGE).as_deref(), Some("transaction:2"));
        assert_eq!(next(Some("transaction:2"), 3).as_deref(), Some("transaction:3"), "a short page need not be the last");
        assert_eq!(next(Some("transaction:3"), 0).as_deref(), Some("refund:1"));
        assert_eq!(next(Some("refund:1"), 0).as_deref(), Some("dispute:1"));
        assert_eq!(next(Some("dispute:3"), 0), None);
        let cut_off = |size: serde_json::Value| {
            let mut page = page(3);
            page["meta"] = json!({"total": 250, "perPage": size, "page": 1, "pageCount": 3});
            Paystack.read_events(tests::WHOLE, &asked(None), &response(200, page.to_string().as_bytes()), &account()).is_err()
        };
        assert!(cut_off(json!(100)) && cut_off(json!("many")), "what is missing stands on no other page");
        assert!(!cut_off(json!(3)), "its pages are smaller");

        let recorded = serde_json::from_slice(include_bytes!("fixtures/paystack/answers/transactions.json")).unwrap();
        let listed = read(None, &recorded);
        let keys: Vec<&str> = listed.events.iter().map(|event| event.key.event_id.as_str()).collect();
        assert_eq!(keys, ["poll:transaction:302961003:look-7", "poll:transaction:302961001:look-7"]);
        assert_eq!(listed.unread.len(), 1, "what cannot be understood holds up no others, and is not lost");

        let by_number =
            json!({"status": true, "data": [{"id": 9, "transaction": 7, "amount": 1, "currency": "NGN", "status": "processed"}]});
        let listed = read(Some("refund:1"), &by_number);
        assert_eq!((listed.events.len(), listed.unread[0].event_id.as_str()), (0, "refund:9"));
    }
}
