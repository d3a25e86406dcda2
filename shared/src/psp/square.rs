//! Square: payments, refunds, disputes.
//!
//! Sources: developer.squareup.com (webhooks, Payments, Refunds and Disputes APIs), the API specification
//! square/connect-api-specification of 2025-08-20, and what Square's SDKs do (squareup 46 for Python, square 46 for Node).
//!
//! **Signature.** `x-square-hmacsha256-signature`: the padded base64 of an HMAC-SHA256 under the signature key as text, over
//! the notification URL and the raw body. The URL is the registered one, byte for byte, from the configuration: scheme,
//! host and path as they arrive here may be a proxy's. There is no time in it, and a retry has the same signature. An empty
//! body is refused, though Node's SDK would take it; the older header of SHA-1 is not looked at.
//!
//! **Mode.** The body does not say it, and the header `square-environment` is not signed: it follows from the key, of which
//! each environment has its own. A body's `merchant_id` must be the account's, if that is set.
//!
//! **Keys.** One event in a call, named by `event_id`, the same on every retry.
//!
//! **Versions.** `updated_at` of the object, in milliseconds, by webhook as by answer. (Webhooks of refunds and disputes have
//! a number, too, which the answers about refunds lack: two kinds of versions for one object would not merge.)
//!
//! **Amounts** are Square's minor units; what counts of a payment is `total_money`, which has the tip in it.
//!
//! **Refunds** are told twice: singly, and as `refunded_money` of a payment, all that went back so far.
//!
//! **Orders.** A payment's `reference_id` is the shop's. Square's own `order_id` is not taken for it, unless
//! `order_reference` says so. Refunds and disputes lead to the order by their payment.
//!
//! **Lists.** There is no list of one payment's disputes: they come by webhook and by the sweep, which looks through the
//! payments of the seller's main location that changed, the refunds of all locations, and all disputes. (Square's log of
//! events is off by default, so it is not used.) Payments and refunds are listed by their last change, oldest first: what
//! changes while they are read moves to the end, and everything behind it up by one. So a page is not followed by Square's
//! cursor, but by the time of its last item, as long as there are different times.

mod endpoint;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use super::json::{self, Node, Problem};
use super::telling::{self, Telling};
use super::{
    Abilities, Account, Answer, AskError, Asked, ChangedEndpoint, Endpoint, EndpointChange, EndpointList, Keys, LateChanges,
    Listing, Profile, Proof, Psp, ReadError, Rejection, Scheme, SettingError, TranslateError, Unread, Verified, WantedEndpoint,
    WebhookRequest, Window, answer, ask, signature,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    ANSWER_PREFIX, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};

/// The adapter.
pub struct Square;

const SIGNATURE: &str = "x-square-hmacsha256-signature";

const API_LIVE: &str = "https://connect.squareup.com";
const API_TEST: &str = "https://connect.squareupsandbox.com";
/// Answers keep the shape of this version whatever the application's default becomes.
const API_VERSION: &str = "2025-08-20";
/// The largest page of payments, refunds and subscriptions.
const PAGE: usize = 100;
/// The longest cursor that is followed, in bytes; Square's have some hundred.
const CURSOR_BYTES_MAX: usize = 2048;
/// Single refunds of one payment that are asked for. Beyond them the payment's `refunded_money` counts.
const REFUNDS_MAX: usize = 16;

static PROFILE: Profile = Profile {
    name: "Square",
    translate_headers: &[],
    timeout: Duration::from_secs(10),
    // By the current page; an older copy said 72 h.
    retry_window: Duration::from_hours(24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("square-url-body")],
    can: Abilities { payment_status: true, event_list: true, late_changes: LateChanges::All, endpoint_list: true },
    list: Some(Listing::USUAL),
    // Production, then sandbox; from secondary sources of 2026, no page of Square's own lists them.
    sources: &["34.202.99.168/32", "54.245.1.154/32", "54.212.177.79/32", "107.20.218.8/32"],
};

impl Psp for Square {
    fn id(&self) -> &'static str {
        "square"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Developer Console: the application, Webhooks, Subscriptions"
    }

    fn wanted_endpoint(&self, _account: &Account) -> Option<WantedEndpoint> {
        Some(endpoint::WANTED)
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        telling::check_secrets(account)?;
        if account.keys.url.is_none() {
            let problem = "is missing: Square signs the URL under which the webhook is registered".to_owned();
            return Err(SettingError { setting: "url", problem });
        }
        ask::check(account)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let offered = signature::exactly_one(request.headers, SIGNATURE)?;
        let offered: [u8; 32] = signature::base64(offered)
            .ok_or(Rejection::MalformedHeader { header: SIGNATURE, problem: "it is not the base64 of 32 bytes" })?;
        if request.body.is_empty() {
            return Err(Rejection::EmptyBody);
        }
        let url = keys.url.as_deref().ok_or(Rejection::Setting("url"))?;
        let secret_name = signature::matching_secret(keys, now, |secret| {
            signature::hmac_sha256(secret.expose().as_bytes(), &[url.as_bytes(), request.body]).ct_eq(&offered)
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

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        let value = json::read(&envelope.body)?;
        let event = Node::root(&value);
        let event_type = event.name("type")?;
        let Some(kind) = Kind::of(event_type) else {
            return Err(TranslateError::Ignored(format!("{event_type} says nothing about a payment")));
        };
        if let (Some(expected), Some(merchant)) = (&account.api.merchant_id, event.optional_name("merchant_id")?)
            && expected != merchant
        {
            return Err(event.required("merchant_id")?.problem("another merchant than merchant_id").into());
        }
        let id = event.name("event_id")?;
        let told = kind.tell(&event.object("data")?.object("object")?.object(kind.object())?, account)?;
        if told.is_empty() {
            return Err(TranslateError::Ignored("a refund that belongs to no payment".to_owned()));
        }
        // An id of this form would pass for an answer's; Square's are UUIDs.
        if id.starts_with(ANSWER_PREFIX) {
            return Err(event.required("event_id")?.problem("an id of an answer").into());
        }
        Ok(told.into_iter().map(|told| told.event(id, event_type, account)).collect::<Result<_, _>>()?)
    }

    fn status_request(&self, payment_id: &str, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        if !is_square_id(payment_id) {
            return Err(AskError::MalformedId(payment_id.to_owned()));
        }
        match StatusStep::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))? {
            StatusStep::Payment => get(account, &format!("/v2/payments/{payment_id}")),
            StatusStep::Refund { id, .. } => get(account, &format!("/v2/refunds/{id}")),
        }
    }

    fn read_status(&self, asked: &Asked<'_>, response: &Response<Bytes>, account: &Account) -> Result<Answer, ReadError> {
        let step = StatusStep::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let body = Node::root(&value);
        let (kind, object, next) = match step {
            StatusStep::Payment => {
                let payment = body.object("payment")?;
                let next = refund_ids(&payment)?;
                (Kind::Payment, payment, next)
            }
            StatusStep::Refund { id, rest } => {
                let refund = body.object("refund")?;
                if refund.name("id")? != id {
                    return Err(refund.required("id")?.problem("another refund than was asked for").into());
                }
                (Kind::Refund, refund, rest.map(str::to_owned))
            }
        };
        let told = kind.tell(&object, account)?;
        if told.is_empty() || told.iter().any(|told| told.payment_id != asked.payment_id) {
            return Err(object.problem("of another payment than was asked for").into());
        }
        let events = told.into_iter().map(|told| told.answer(account, asked)).collect::<Result<_, _>>()?;
        Ok(Answer { events, unread: Vec::new(), next: next.map(|ids| format!("{REFUNDS}:{ids}")) })
    }

    /// What changed since, oldest first: payments, then refunds; then all disputes, which Square cannot list by time.
    fn events_request(&self, window: Window, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let place = Place::of(cursor).ok_or_else(|| AskError::MalformedId(cursor.unwrap_or_default().to_owned()))?;
        let after = place.after.map(|after| format!("&cursor={}", encoded(after))).unwrap_or_default();
        let (since, until) = (place.since.unwrap_or(window.since), window.until);
        let changed = format!("updated_at_begin_time={since}&updated_at_end_time={until}&sort_field=UPDATED_AT&sort_order=ASC");
        let changed = format!("{changed}&limit={PAGE}");
        let list = place.list;
        match list {
            List::Payments | List::Refunds => get(account, &format!("/v2/{}?{changed}{after}", list.name())),
            List::Disputes => get(account, &format!("/v2/disputes?{}", after.trim_start_matches('&'))),
        }
    }

    fn read_events(
        &self,
        window: Window,
        asked: &Asked<'_>,
        response: &Response<Bytes>,
        account: &Account,
    ) -> Result<Answer, ReadError> {
        let place = Place::of(asked.cursor).ok_or_else(|| ReadError::Unintelligible("an unknown cursor".to_owned()))?;
        let value = json::read(answer::body(response, Some(asked.at))?)?;
        let page = Page::read(&Node::root(&value), place.list.name(), place.after)?;
        let list = place.list;
        let (next, left) = place.next(&page);
        let mut found = Answer { events: Vec::new(), unread: Vec::new(), next };
        for object in &page.items {
            let changed = telling::time(object, "updated_at");
            match list {
                List::Payments | List::Refunds => telling::not_before(window, &changed, object)?,
                // All are listed, again and again.
                List::Disputes if changed.as_ref().is_ok_and(|at| *at < window.in_seconds().since) => continue,
                List::Disputes => {}
            }
            if left.is_some_and(|left| changed.is_ok_and(|at| at >= left)) {
                continue;
            }
            let told = list
                .kind()
                .tell(object, account)
                .and_then(|told| told.into_iter().map(|told| told.answer(account, asked)).collect::<Result<Vec<_>, _>>());
            match told {
                Ok(events) => found.events.extend(events),
                Err(problem) => {
                    let id = object.name("id").or_else(|_| object.name("dispute_id"))?;
                    found.unread.push(Unread { event_id: id.to_owned(), error: problem.into() });
                }
            }
        }
        Ok(found)
    }

    fn endpoints_request(&self, cursor: Option<&str>, account: &Account) -> Result<Request<Bytes>, AskError> {
        let after = match cursor {
            None => String::new(),
            Some(cursor) if is_cursor(cursor) => format!("&cursor={}", encoded(cursor)),
            Some(cursor) => return Err(AskError::MalformedId(cursor.to_owned())),
        };
        get(account, &format!("/v2/webhooks/subscriptions?include_disabled=true&limit={PAGE}{after}"))
    }

    fn read_endpoints(&self, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        let value = json::read(answer::body(response, None)?)?;
        let page = Page::read(&Node::root(&value), "subscriptions", None)?;
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

/// What the ingress needs of an authentic body: borrowed, and every other field skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    event_id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
}

// ------------------------------------------------------------------------------------------------------ translation

/// What an object is, by webhook as by answer.
#[derive(Clone, Copy)]
enum Kind {
    Payment,
    Refund,
    Dispute,
}

/// A fact that an object tells.
struct Told<'a> {
    /// Of the object.
    id: &'a str,
    /// Tells it from the object's other facts.
    suffix: &'static str,
    payment_id: &'a str,
    order: Option<&'a str>,
    updated: Timestamp,
    fact: Fact,
}

impl Kind {
    /// `None` for what is none of our business.
    fn of(event_type: &str) -> Option<Self> {
        Some(match event_type {
            "payment.created" | "payment.updated" => Self::Payment,
            "refund.created" | "refund.updated" => Self::Refund,
            // `changed`: until API version 2020-11-18.
            "dispute.created" | "dispute.state.updated" | "dispute.state.changed" => Self::Dispute,
            _ => return None,
        })
    }

    /// Its name in a webhook and in an answer.
    const fn object(self) -> &'static str {
        match self {
            Self::Payment => "payment",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
        }
    }

    /// Nothing, of a refund that belongs to no payment.
    fn tell<'a>(self, object: &Node<'a>, account: &Account) -> Result<Vec<Told<'a>>, Problem> {
        let updated = telling::time(object, "updated_at")?;
        let told = |id, suffix, payment_id, order, fact| Told { id, suffix, payment_id, order, updated, fact };
        match self {
            Self::Payment => {
                let id = object.name("id")?;
                let order = telling::order(object, account, &[&["reference_id"]]);
                let mut facts = vec![told(id, "", id, order, Fact::Payment(payment_fact(object, updated)?))];
                if object.optional("refunded_money").is_some() {
                    let amount = object.object("refunded_money")?.money("amount")?;
                    facts.push(told(id, ":refunded", id, order, Fact::RefundTotal { amount }));
                }
                Ok(facts)
            }
            Self::Refund => {
                let Some(payment_id) = object.optional_name("payment_id")? else { return Ok(Vec::new()) };
                Ok(vec![told(object.name("id")?, "", payment_id, None, refund_fact(object)?)])
            }
            Self::Dispute => {
                // `dispute_id`: until API version 2020-11-18.
                let id = object.optional_name("id")?.map_or_else(|| object.name("dispute_id"), Ok)?;
                let payment_id = object.object("disputed_payment")?.name("payment_id")?;
                Ok(vec![told(id, "", payment_id, None, dispute_fact(id, object)?)])
            }
        }
    }
}

impl Told<'_> {
    fn event(self, event_id: &str, event_type: &str, account: &Account) -> Result<PaymentEvent, Problem> {
        let event_id = format!("{event_id}{}", self.suffix);
        if !json::is_name(&event_id) {
            return Err(Problem { reason: "too long for a key", pointer: "/event_id".to_owned() });
        }
        Ok(self.telling(event_id, event_type).event(account, Source::Webhook))
    }

    fn answer(self, account: &Account, asked: &Asked<'_>) -> Result<PaymentEvent, Problem> {
        let event_id = format!("{}{}", self.id, self.suffix);
        answer_id(&event_id, asked)?;
        let event_type = match self.fact {
            Fact::Payment(_) | Fact::RefundTotal { .. } => "poll:payment",
            Fact::Refund { .. } | Fact::Capture { .. } => "poll:refund",
            Fact::Dispute { .. } => "poll:dispute",
        };
        Ok(self.telling(event_id, event_type).answer(account, asked))
    }
}

impl<'a> Told<'a> {
    fn telling(self, event_id: String, event_type: &'a str) -> Telling<'a> {
        Telling {
            event_id,
            event_type,
            at: self.updated,
            mode: None,
            order: self.order,
            payment_id: self.payment_id,
            others: Vec::new(),
            version: FactVersion::Time(self.updated.millis()),
            fact: self.fact,
        }
    }
}

/// The id of an answer's event, if that is a name.
fn answer_id(id: &str, asked: &Asked<'_>) -> Result<String, Problem> {
    let event_id = format!("{ANSWER_PREFIX}{id}:{}", asked.look_id);
    if json::is_name(&event_id) { Ok(event_id) } else { Err(Problem { reason: "too long for a key", pointer: "/id".to_owned() }) }
}

/// A payment as it stands. An unknown status is pending: it is never a failure and never money.
fn payment_fact(payment: &Node<'_>, updated: Timestamp) -> Result<PaymentFact, Problem> {
    let total = || payment.object("total_money")?.money("amount");
    Ok(match payment.name("status")? {
        "APPROVED" => PaymentFact { authorized: Some(total()?), ..PaymentFact::new(PaymentState::Authorized) },
        "COMPLETED" => PaymentFact { captured: Some(total()?), capture_final: true, ..PaymentFact::new(PaymentState::Captured) },
        "CANCELED" => PaymentFact::new(if has_lapsed(payment, updated) {
            PaymentState::AuthorizationExpired
        } else {
            PaymentState::Canceled
        }),
        "FAILED" => PaymentFact { failure: Some(failure(payment)), ..PaymentFact::new(PaymentState::Failed) },
        _ => PaymentFact::new(PaymentState::Pending),
    })
}

/// Whether Square gave the payment up because nobody completed it in time: it was so told, and the time had come. It decides
/// between two words for the same.
fn has_lapsed(payment: &Node<'_>, updated: Timestamp) -> bool {
    let until = payment.text("delayed_until").and_then(|text| Timestamp::parse_rfc3339(text).ok());
    payment.text("delay_action") == Some("CANCEL") && until.is_some_and(|until| updated >= until)
}

/// The card's first error. Other than strings are left out: they decide nothing.
fn failure(payment: &Node<'_>) -> crate::event::Failure {
    let errors = payment.optional("card_details").and_then(|card| card.array("errors").ok()).unwrap_or_default();
    let error = errors.first();
    telling::failure(error.and_then(|error| error.text("code")), error.and_then(|error| error.text("detail")))
}

fn refund_fact(refund: &Node<'_>) -> Result<Fact, Problem> {
    let state = match refund.name("status")? {
        "COMPLETED" => RefundState::Succeeded,
        "REJECTED" | "FAILED" => RefundState::Failed,
        _ => RefundState::Pending,
    };
    let created = refund.optional("created_at").map(|_| telling::time(refund, "created_at")).transpose()?;
    let amount = refund.object("amount_money")?.money("amount")?;
    Ok(Fact::Refund { id: refund.name("id")?.to_owned(), state, amount, created })
}

fn dispute_fact(id: &str, dispute: &Node<'_>) -> Result<Fact, Problem> {
    let state = match dispute.name("state")? {
        "INQUIRY_CLOSED" => DisputeState::InquiryClosed,
        state if state.starts_with("INQUIRY_") => DisputeState::Inquiry,
        "WON" => DisputeState::Won,
        "LOST" | "ACCEPTED" => DisputeState::Lost,
        // EVIDENCE_REQUIRED, PROCESSING, WAITING_THIRD_PARTY, and what is new to us: undecided.
        _ => DisputeState::Open,
    };
    let amount = dispute.object("amount_money")?.money("amount")?;
    Ok(Fact::Dispute { id: id.to_owned(), state, amount })
}

// --------------------------------------------------------------------------------------------------- reconciliation

/// Where a look at a payment stands: the payment, then its refunds, one by one.
enum StatusStep<'a> {
    Payment,
    Refund { id: &'a str, rest: Option<&'a str> },
}

const REFUNDS: &str = "refunds";

impl<'a> StatusStep<'a> {
    /// Reads a cursor: none, or `refunds:<id>,<id>…`, those that are still to be asked for.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self::Payment) };
        let ids = cursor.strip_prefix(REFUNDS)?.strip_prefix(':')?;
        if ids.split(',').count() > REFUNDS_MAX || !ids.split(',').all(is_square_id) {
            return None;
        }
        let (id, rest) = ids.split_once(',').map_or((ids, None), |(id, rest)| (id, Some(rest)));
        Some(Self::Refund { id, rest })
    }
}

/// The ids of a payment's refunds, as a cursor has them: the latest, if there are many.
fn refund_ids(payment: &Node<'_>) -> Result<Option<String>, Problem> {
    if payment.optional("refund_ids").is_none() {
        return Ok(None);
    }
    let ids = payment.array("refund_ids")?;
    let latest = ids.iter().rev().take(REFUNDS_MAX).map(|id| match id.as_text() {
        Some(text) if is_square_id(text) => Ok(text),
        _ => Err(id.problem("no id of a refund")),
    });
    let latest = latest.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(latest.join(",")).filter(|ids| !ids.is_empty()))
}

/// A list that the sweep goes through.
#[derive(Clone, Copy)]
enum List {
    Payments,
    Refunds,
    Disputes,
}

impl List {
    const ALL: [Self; 3] = [Self::Payments, Self::Refunds, Self::Disputes];

    const fn name(self) -> &'static str {
        match self {
            Self::Payments => "payments",
            Self::Refunds => "refunds",
            Self::Disputes => "disputes",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Payments => Kind::Payment,
            Self::Refunds => Kind::Refund,
            Self::Disputes => Kind::Dispute,
        }
    }

    const fn following(self) -> Option<Self> {
        match self {
            Self::Payments => Some(Self::Refunds),
            Self::Refunds => Some(Self::Disputes),
            Self::Disputes => None,
        }
    }
}

/// Where a sweep stands.
struct Place<'a> {
    list: List,
    /// What changed from then on is still to be read; `None`: from the window's beginning.
    since: Option<Timestamp>,
    /// Square's own cursor.
    after: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Reads a cursor: none, or `<list>[@<milliseconds>][:<Square's cursor>]`.
    fn of(cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else { return Some(Self { list: List::Payments, since: None, after: None }) };
        let (place, after) = cursor.split_once(':').map_or((cursor, None), |(place, after)| (place, Some(after)));
        if after.is_some_and(|after| !is_cursor(after)) {
            return None;
        }
        let (name, since) = place.split_once('@').map_or((place, None), |(name, since)| (name, Some(since)));
        let since = match since {
            Some(millis) => Some(Timestamp::from_millis(signature::seconds(millis)?)),
            None => None,
        };
        List::ALL.into_iter().find(|list| list.name() == name).map(|list| Self { list, since, after })
    }

    /// The cursor after a page; and the time from which on its items are left to the next page, so that none is told twice.
    fn next(&self, page: &Page<'_>) -> (Option<String>, Option<Timestamp>) {
        let name = self.list.name();
        let Some(cursor) = page.next else { return (self.list.following().map(|list| list.name().to_owned()), None) };
        let times: Vec<Timestamp> = page.items.iter().filter_map(|item| telling::time(item, "updated_at").ok()).collect();
        match (times.first(), times.last()) {
            (Some(first), Some(last)) if first < last && times.is_sorted() && !matches!(self.list, List::Disputes) => {
                (Some(format!("{name}@{}", last.millis())), Some(*last))
            }
            _ => {
                let since = self.since.map(|since| format!("@{}", since.millis())).unwrap_or_default();
                (Some(format!("{name}{since}:{cursor}")), None)
            }
        }
    }
}

/// A page of any of Square's lists.
struct Page<'a> {
    items: Vec<Node<'a>>,
    /// There is more after this.
    next: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// Refuses a page that would lead nowhere: empty with more to come, or with the cursor that was asked with. What is empty
    /// is left out by Square: a page without its list has no items.
    fn read(body: &Node<'a>, name: &str, after: Option<&str>) -> Result<Self, Problem> {
        let items = body.optional(name).map(|_| body.array(name)).transpose()?.unwrap_or_default();
        if items.len() > PAGE {
            return Err(body.problem("a page larger than was asked for"));
        }
        let next = match body.optional("cursor") {
            None => None,
            Some(cursor) => match cursor.as_text() {
                Some("") => None,
                Some(_) if items.is_empty() => return Err(cursor.problem("an empty page with more to come")),
                text if text == after => return Err(cursor.problem("a page that repeats its cursor")),
                Some(text) if is_cursor(text) => Some(text),
                _ => return Err(cursor.problem("no cursor")),
            },
        };
        Ok(Self { items, next })
    }
}

fn endpoint(subscription: &Node<'_>) -> Result<Endpoint, Problem> {
    let event = |event: Node<'_>| event.as_text().map(str::to_owned).ok_or_else(|| event.problem("not a string"));
    let url = subscription.required("notification_url")?;
    Ok(Endpoint {
        id: subscription.name("id")?.to_owned(),
        url: url.as_text().ok_or_else(|| url.problem("not a string"))?.to_owned(),
        enabled: subscription.optional_bool("enabled")?.unwrap_or(false),
        events: subscription.array("event_types")?.into_iter().map(event).collect::<Result<_, _>>()?,
        api_version: subscription.optional_name("api_version")?.map(str::to_owned),
        mode: None,
    })
}

/// Letters, digits, `-` and `_`: nothing that could leave its place in a URL or a cursor.
fn is_square_id(text: &str) -> bool {
    ask::is_id(text, b"-_")
}

/// Visible ASCII of a sane length; it enters a URL percent-encoded only.
fn is_cursor(text: &str) -> bool {
    (1..=CURSOR_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn encoded(cursor: &str) -> String {
    utf8_percent_encode(cursor, NON_ALPHANUMERIC).to_string()
}

fn get(account: &Account, path_and_query: &str) -> Result<Request<Bytes>, AskError> {
    let host = if account.mode == Mode::Live { API_LIVE } else { API_TEST };
    ask::finish(ask::get(account, host, path_and_query, ask::bearer(account)?).header("square-version", API_VERSION))
}

#[cfg(test)]
pub(super) mod tests;
