//! Payment service providers: one pure file each.
//!
//! Nothing here does I/O or reads a clock, and nothing panics, whatever the input (invariant I7). An adapter verifies
//! and translates webhooks, and builds and reads the requests of reconciliation; the worker does the I/O.
//!
//! To add one: a file with a unit struct that implements [`Psp`], its fixtures beside it, one line in [`ALL`].

pub mod adyen;
mod answer;
mod ask;
pub mod braintree;
pub mod checkoutcom;
pub mod coinbase_commerce;
pub mod flutterwave;
pub mod generic;
pub mod github;
pub mod gocardless;
mod json;
pub mod klarna;
pub mod mollie;
mod normalised;
pub mod paypal;
pub mod paystack;
pub mod razorpay;
pub mod shopify;
mod signature;
pub mod square;
pub mod standard_webhooks;
pub mod stripe;
pub mod svix;
mod telling;
#[cfg(test)]
mod tests;
mod xml;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{Fact, Mode, PaymentEvent};
use crate::secret::Secret;

/// Every adapter. The order is the order of tables that people read.
pub static ALL: &[&dyn Psp] = &[
    &stripe::Stripe,
    &adyen::Adyen,
    &paypal::PayPal,
    &square::Square,
    &razorpay::Razorpay,
    &mollie::Mollie,
    &checkoutcom::Checkoutcom,
    &gocardless::GoCardless,
    &paystack::Paystack,
    &flutterwave::FlutterwaveV3,
    &flutterwave::FlutterwaveV4,
    &braintree::Braintree,
    &coinbase_commerce::CoinbaseCommerce,
    &klarna::Klarna,
    &standard_webhooks::StandardWebhooks,
    &svix::Svix,
    &shopify::Shopify,
    &github::Github,
    &generic::Generic,
];

/// The adapter of a PSP id.
#[must_use]
pub fn find(id: &str) -> Option<&'static dyn Psp> {
    ALL.iter().copied().find(|psp| psp.id() == id)
}

/// One payment service provider.
pub trait Psp: Send + Sync {
    /// The id in URLs, keys and metrics.
    fn id(&self) -> &'static str;

    /// What is known of the PSP's habits and abilities.
    fn profile(&self) -> &'static Profile;

    /// Refuses, at start, an account whose settings could never verify anything.
    ///
    /// # Errors
    /// The setting that is missing or malformed.
    fn check(&self, account: &Account) -> Result<(), SettingError>;

    /// Proves that the PSP sent these bytes, as far as the PSP makes that possible. Every active secret is tried.
    ///
    /// # Errors
    /// Why it is not proven. The sender is told no more than the status.
    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection>;

    /// What the PSP wants to hear once the webhook is durable.
    fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement { status: StatusCode::OK, content_type: None, body: "" }
    }

    /// What the PSP wants to hear if `verify` refuses.
    fn rejection_status(&self) -> StatusCode {
        StatusCode::UNAUTHORIZED
    }

    /// The answer to a GET by which the PSP tries an endpoint; `query` is the URL's, undecoded. `None`: there is no such
    /// question, or this is not it.
    fn challenge(&self, _query: &str, _keys: &Keys) -> Option<String> {
        None
    }

    /// Where the certificate lies that this call says it is signed by, for PSPs that sign so: it is fetched, off the
    /// request's path, and comes as [`WebhookRequest::certificate`].
    ///
    /// # Errors
    /// The call names a place that is not the PSP's.
    fn certificate_url(&self, _request: &WebhookRequest<'_>, _account: &Account) -> Result<Option<String>, Rejection> {
        Ok(None)
    }

    /// The payments that a webhook gives reason to ask about, by the ids that [`Psp::status_request`] takes, each of them
    /// within the PSP's grammar. Of a [`Proof::Hint`] it is all that counts; of a proven webhook it is asked beside
    /// [`Psp::translate`], for those that say less than an order needs.
    ///
    /// # Errors
    /// As [`Psp::translate`], which is not called for a hint.
    fn hinted(&self, _envelope: &Envelope, _account: &Account) -> Result<Vec<String>, TranslateError> {
        Ok(Vec::new())
    }

    /// What the webhook says.
    ///
    /// # Errors
    /// It says nothing of ours ([`TranslateError::Ignored`]), or cannot be understood ([`TranslateError::Unintelligible`]).
    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError>;

    /// Whether it sends a webhook of such a fact, of those that decide a payment: money that was captured, a failure, a
    /// cancellation, an expiry. What it never sends is told by asking alone, and is not missed.
    fn announces(&self, _fact: &Fact) -> bool {
        true
    }

    /// The key by which the account asks the PSP's API; `None`: it was given none, and cannot ask.
    fn api_key<'a>(&self, account: &'a Account) -> Option<&'a Secret> {
        account.api.key.as_ref()
    }

    /// A request that asks for a payment's state; `cursor` is what the previous answer's [`Answer::next`] said.
    ///
    /// # Errors
    /// The PSP has no such API, or the account lacks what it needs.
    fn status_request(&self, _payment_id: &str, _cursor: Option<&str>, _account: &Account) -> Result<Request<Bytes>, AskError> {
        Err(AskError::Unsupported)
    }

    /// Reads the answer to [`Psp::status_request`].
    ///
    /// # Errors
    /// The answer is no answer: refused, broken, or not about this payment.
    fn read_status(&self, _asked: &Asked<'_>, _response: &Response<Bytes>, _account: &Account) -> Result<Answer, ReadError> {
        Err(never_asked())
    }

    /// A request for a page of what happened within a window, by the PSP's [`Listing`]. What lies outside may be answered too,
    /// where the PSP cannot be asked more exactly.
    ///
    /// # Errors
    /// As [`Psp::status_request`].
    fn events_request(&self, _window: Window, _cursor: Option<&str>, _account: &Account) -> Result<Request<Bytes>, AskError> {
        Err(AskError::Unsupported)
    }

    /// Reads the answer to [`Psp::events_request`] for the same window.
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_events(
        &self,
        _window: Window,
        _asked: &Asked<'_>,
        _response: &Response<Bytes>,
        _account: &Account,
    ) -> Result<Answer, ReadError> {
        Err(never_asked())
    }

    /// The payments that a page of [`Psp::events_request`] gives reason to ask about: for PSPs whose listed events say less
    /// than an order needs, as their webhooks do.
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_hints(&self, _response: &Response<Bytes>, _account: &Account) -> Result<Vec<Hinted>, ReadError> {
        Ok(Vec::new())
    }

    /// A request for the webhook endpoints that are registered at the PSP.
    ///
    /// # Errors
    /// As [`Psp::status_request`].
    fn endpoints_request(&self, _cursor: Option<&str>, _account: &Account) -> Result<Request<Bytes>, AskError> {
        Err(AskError::Unsupported)
    }

    /// Reads the answer to [`Psp::endpoints_request`].
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_endpoints(&self, _response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        Err(never_asked())
    }

    /// As [`Psp::read_endpoints`], which it is unless a page must be read together with the cursor that it was asked by.
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_endpoints_at(&self, _cursor: Option<&str>, response: &Response<Bytes>) -> Result<EndpointList, ReadError> {
        self.read_endpoints(response)
    }

    /// What an endpoint for this account's webhooks must be like; `None`: the PSP lists no endpoints for this scheme, or the URL
    /// goes with each payment.
    fn wanted_endpoint(&self, _account: &Account) -> Option<WantedEndpoint> {
        None
    }

    /// Where in the PSP's own pages a person registers the webhook.
    fn endpoint_by_hand(&self) -> &'static str {
        "where the sender keeps the URLs that it calls"
    }

    /// A request that registers an endpoint at the PSP, or changes one.
    ///
    /// # Errors
    /// As [`Psp::status_request`]; [`AskError::Unsupported`] also of a single change that the API does not make: a person must.
    fn change_endpoint_request(&self, _change: &EndpointChange<'_>, _account: &Account) -> Result<Request<Bytes>, AskError> {
        Err(AskError::Unsupported)
    }

    /// Reads the answer to [`Psp::change_endpoint_request`].
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_changed_endpoint(&self, _response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
        Err(never_asked())
    }

    /// The request for a short-lived token (OAuth 2, client credentials), where the API wants one: the worker keeps it, renews
    /// it, and adds it as `Authorization: Bearer` to every other request. `None`: requests carry their credentials themselves.
    ///
    /// # Errors
    /// As [`Psp::status_request`].
    fn token_request(&self, _account: &Account) -> Option<Result<Request<Bytes>, AskError>> {
        None
    }

    /// Reads the answer to [`Psp::token_request`].
    ///
    /// # Errors
    /// As [`Psp::read_status`].
    fn read_token(&self, _response: &Response<Bytes>) -> Result<AccessToken, ReadError> {
        Err(never_asked())
    }
}

/// When the PSP wrote an answer, by its own clock.
#[must_use]
pub fn answered_at(response: &Response<Bytes>) -> Option<Timestamp> {
    answer::date(response)
}

fn never_asked() -> ReadError {
    ReadError::Unintelligible("nothing was asked: there is no such API".to_owned())
}

/// A token that lets requests in for a while.
#[derive(Clone, Debug)]
pub struct AccessToken {
    pub secret: Secret,
    /// From when it was given.
    pub lives: Duration,
}

/// A PSP's habits and abilities, from its documentation.
#[derive(Debug)]
pub struct Profile {
    /// For people.
    pub name: &'static str,
    /// Headers that `translate` reads, in lower case; they travel with the body, all others do not.
    pub translate_headers: &'static [&'static str],
    /// How long the PSP waits for our answer; our publish budget stays below it.
    pub timeout: Duration,
    /// For how long it sends a webhook again.
    pub retry_window: Duration,
    /// The usual time between a payment and its webhook, after which a first look at the PSP is due.
    pub usual_delay: Duration,
    /// Requests a second that its API is sent for one account: a part of what it allows, since others use it too.
    pub asks_per_second: u32,
    /// Raised whenever `translate` would say something else of the same bytes.
    pub mapping_version: u32,
    /// The ways in which it authenticates its webhooks, by the values of the setting `scheme`; the first is the default.
    pub schemes: &'static [Scheme],
    pub can: Abilities,
    /// How its list of events or payments is to be read; there where [`Abilities::event_list`] says so.
    pub list: Option<Listing>,
    /// Where its webhooks come from, as far as the PSP publishes it: networks, as of the date in the adapter.
    pub sources: &'static [&'static str],
}

impl Profile {
    /// The scheme of this name.
    #[must_use]
    pub fn scheme(&self, name: &str) -> Option<&'static Scheme> {
        self.schemes.iter().find(|scheme| scheme.name == name)
    }
}

/// One way of authenticating webhooks.
#[derive(Debug)]
pub struct Scheme {
    /// The value of the setting `scheme`.
    pub name: &'static str,
    /// How far it reaches.
    pub proof: Proof,
    /// The PSP signs nothing: the account's secrets are tokens, one of which stands in the path.
    pub token_in_path: bool,
}

impl Scheme {
    /// A signature over the body.
    #[must_use]
    pub const fn signed(name: &'static str) -> Self {
        Self { name, proof: Proof::Proven, token_in_path: false }
    }
}

/// Which questions the PSP answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abilities {
    pub payment_status: bool,
    pub event_list: bool,
    /// What that list shows of payments that were settled before.
    pub late_changes: LateChanges,
    pub endpoint_list: bool,
}

/// What a list shows of what becomes of settled payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LateChanges {
    /// Nothing: payments stand in it by when they were made.
    #[default]
    Unlisted,
    /// Refunds and disputes stand in it by when they were made: one that begins shows, and one that was decided and is undone
    /// does not.
    Begun,
    /// All of it, by when it happened.
    All,
}

/// How a PSP's list of events, or of payments and what belongs to them, is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How far back it goes; `None`: no limit is known.
    pub reach: Option<Duration>,
    /// Between two readings.
    pub every: Duration,
    /// So late at most, usually, something shows in it: by so much each reading overlaps with the one before.
    pub lag: Duration,
    /// The longest time that is asked for at once; `None`: it cannot be asked up to a time, and is read from now backwards.
    pub slice: Option<Duration>,
    /// A log of the events that webhooks tell: what a webhook told, it must show.
    pub is_log: bool,
}

impl Listing {
    /// As most PSPs have it.
    pub const USUAL: Self = Self {
        reach: None,
        every: Duration::from_mins(10),
        lag: Duration::from_mins(15),
        slice: Some(Duration::from_hours(24)),
        is_log: false,
    };
}

/// A time, both ends of which belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub since: Timestamp,
    pub until: Timestamp,
}

impl Window {
    /// In whole seconds, as PSPs count: of both ends the whole second belongs to it.
    #[must_use]
    pub const fn seconds(self) -> (i64, i64) {
        let begin = self.since.seconds();
        (if begin < 0 { 0 } else { begin }, self.until.seconds())
    }

    /// The same, as times.
    #[must_use]
    pub const fn in_seconds(self) -> Self {
        let (since, until) = self.seconds();
        Self { since: Timestamp::from_seconds(since), until: Timestamp::from_seconds(until) }
    }
}

/// One account at a PSP, as configured and checked: what an adapter may read beside the bytes.
#[derive(Clone)]
pub struct Account {
    pub psp: &'static dyn Psp,
    /// `psp.id()`, shared.
    pub psp_id: Arc<str>,
    /// The account's name in the configuration.
    pub name: Arc<str>,
    pub mode: Mode,
    pub keys: Keys,
    pub api: Api,
    /// Where in the event the merchant's order id stands, from the PSP's object downwards; `None`: the adapter's default.
    pub order_reference: Option<Vec<String>>,
    pub capture: Capture,
}

/// Who captures what an account authorises, for PSPs whose webhooks do not say it: the setting `capture`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// The shop, by a request of its own, which the PSP then tells of. The default: nothing counts as paid too early.
    #[default]
    Manual,
    /// The PSP, by itself: what is authorised is paid.
    Automatic,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ({})", self.psp_id, self.name, self.mode.as_str())
    }
}

/// What verification needs.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// All secrets; during a rotation, several.
    pub secrets: Vec<Secret>,
    /// How far a signed timestamp may lie from now, either way, in seconds; exactly this far is accepted.
    pub tolerance_s: u32,
    /// The name of the account's [`Scheme`]; empty stands for the default.
    pub scheme: &'static str,
    /// The webhook's URL as it is registered at the PSP, byte for byte, for PSPs that sign it.
    pub url: Option<String>,
    /// The webhook's id at the PSP, for PSPs that sign it.
    pub webhook_id: Option<String>,
    /// The name of our key at the PSP, where a signature says whose it is.
    pub public_key: Option<String>,
    /// PEM: stands in for the bundled root of the PSP's certificates; in `mode = "test"` only.
    pub trusted_root: Option<String>,
    /// Of the generic adapter.
    pub generic: Option<Arc<generic::Rules>>,
}

impl Keys {
    /// Everything that [`Verified::secret_name`] may say: the secrets' names, and what stands in for a secret.
    pub fn names(&self) -> impl Iterator<Item = Arc<str>> {
        let stand_in = self.webhook_id.as_ref().map(|_| WEBHOOK_ID.into());
        self.secrets.iter().map(|secret| Arc::clone(secret.name())).chain(stand_in)
    }

    /// The secrets that are valid at a time, with their positions.
    pub fn active(&self, now: Timestamp) -> impl Iterator<Item = (usize, &Secret)> {
        self.secrets.iter().enumerate().filter(move |(_, secret)| secret.is_valid(now))
    }

    /// Whether this is the token in the path of an account whose PSP signs nothing, in time that tells nothing of its secrets.
    #[must_use]
    pub fn admit(&self, token: Option<&str>, now: Timestamp) -> bool {
        signature::matching_token(self, now, token).is_ok()
    }
}

/// The name of the setting, where an account is verified by it instead of by a secret.
const WEBHOOK_ID: &str = "webhook_id";

/// What asking the PSP needs.
#[derive(Clone, Debug, Default)]
pub struct Api {
    pub key: Option<Secret>,
    /// Stands in for the PSP's host, without a trailing slash: the simulator's, or a proxy's.
    pub url: Option<String>,
    /// The name that goes with the key, where the API wants one.
    pub client_id: Option<String>,
    /// Our account's id at the PSP, where its API's paths have it.
    pub merchant_id: Option<String>,
}

/// A webhook as it came in, before anything of it is believed.
#[derive(Debug)]
pub struct WebhookRequest<'a> {
    pub headers: &'a HeaderMap,
    /// The exact bytes on the wire.
    pub body: &'a [u8],
    /// The path's token, for PSPs that sign nothing.
    pub token: Option<&'a str>,
    /// The URL's query, undecoded; empty where there is none. For PSPs that say there what the call is about.
    pub query: &'a str,
    /// What lay at [`Psp::certificate_url`], in PEM.
    pub certificate: Option<&'a [u8]>,
}

/// A webhook that `verify` vouches for. It has no other constructor: outside `psp` it cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub(crate) webhook_id: String,
    pub(crate) event_type: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) secret_name: Arc<str>,
    pub(crate) proof: Proof,
    pub(crate) content_type: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Verified {
    #[must_use]
    pub fn webhook_id(&self) -> &str {
        &self.webhook_id
    }

    #[must_use]
    pub fn secret_name(&self) -> &str {
        &self.secret_name
    }

    #[must_use]
    pub const fn proof(&self) -> Proof {
        self.proof
    }
}

/// How far the PSP's proof reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The signature covers the body.
    Proven,
    /// It does not: the webhook only tells that there is something to ask about.
    Hint,
}

impl Proof {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Hint => "hint",
        }
    }
}

/// Why a webhook is refused. The sender never learns it; metrics, the log at debug, and `paybell verify` do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the header {0} is missing")]
    MissingHeader(&'static str),
    #[error("the header {0} is there more than once")]
    DuplicateHeader(&'static str),
    #[error("the header {header} is malformed: {problem}")]
    MalformedHeader { header: &'static str, problem: &'static str },
    #[error("the body is empty")]
    EmptyBody,
    #[error("the body is malformed: {0}")]
    MalformedBody(&'static str),
    #[error("no signature of a scheme that is accepted here ({0})")]
    NoUsableSignature(&'static str),
    #[error(
        "no configured secret made this signature: the secret is another endpoint's, mode's or account's, or the body is not the \
         bytes that were signed ({secrets} tried)"
    )]
    SignatureMismatch { secrets: usize },
    #[error("the signature holds, but its timestamp is {age_s} s old, {tolerance_s} s are allowed")]
    TooOld { age_s: i64, tolerance_s: u32 },
    #[error(
        "the signature holds, but its timestamp is {ahead_s} s in the future, {tolerance_s} s are allowed: compare the clocks"
    )]
    TooNew { ahead_s: i64, tolerance_s: u32 },
    #[error("the token in the path is missing or wrong")]
    Token,
    /// The one rejection that time may heal: what the sender sends again may find it.
    #[error("the certificate that the call says it is signed by is not here")]
    NoCertificate,
    #[error("the certificate that the call says it is signed by cannot be trusted: {0}")]
    Certificate(&'static str),
    #[error("the setting {0} cannot be used")]
    Setting(&'static str),
}

impl Rejection {
    /// The reason as a metric label: a closed set.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::MissingHeader(_) => "missing_header",
            Self::DuplicateHeader(_) => "duplicate_header",
            Self::MalformedHeader { .. } => "malformed_header",
            Self::EmptyBody => "empty_body",
            Self::MalformedBody(_) => "malformed_body",
            Self::NoUsableSignature(_) => "no_usable_signature",
            Self::SignatureMismatch { .. } => "signature_mismatch",
            Self::TooOld { .. } => "too_old",
            Self::TooNew { .. } => "too_new",
            Self::Token => "token",
            Self::NoCertificate => "no_certificate",
            Self::Certificate(_) => "certificate",
            Self::Setting(_) => "setting",
        }
    }
}

/// The answer that a PSP takes for "received".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    pub status: StatusCode,
    pub content_type: Option<&'static str>,
    pub body: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// Authentic and understood, and none of our business; recorded as ignored.
    #[error("{0}")]
    Ignored(String),
    /// Authentic, but not understood; recorded as quarantined, under a fingerprint.
    #[error("{reason} at {pointer:?}")]
    Unintelligible {
        /// A closed set per adapter: it enters the fingerprint.
        reason: &'static str,
        /// JSON pointer to what was not understood; empty for the whole.
        pointer: String,
    },
}

/// A setting that makes an account useless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    pub setting: &'static str,
    pub problem: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("the PSP has no API for this question")]
    Unsupported,
    #[error("the setting {0} is missing")]
    Missing(&'static str),
    #[error("{0:?} is not an id of this PSP")]
    MalformedId(String),
}

/// What was asked, for the reader of the answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The payment, for a status; empty for lists.
    pub payment_id: &'a str,
    pub cursor: Option<&'a str>,
    /// When the request was sent, by our clock: stands in for the answer's `Date`.
    pub at: Timestamp,
    /// Makes the keys of the answer's events unique to this look, where the object has no version of its own.
    pub look_id: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub events: Vec<PaymentEvent>,
    /// Events of a list that could not be understood: they hold up no others, and must not be lost in silence.
    pub unread: Vec<Unread>,
    /// There is more: ask again with this cursor.
    pub next: Option<String>,
}

/// An event or object in an answer that could not be understood: to be recorded as quarantined, once, however often it is
/// listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The PSP's id of it.
    pub event_id: String,
    pub error: TranslateError,
}

/// A payment that there is reason to ask about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hinted {
    /// As [`Psp::status_request`] takes it.
    pub payment_id: String,
    /// When that happened which is the reason: a look after it has the answer.
    pub at: Timestamp,
}

/// Why an answer is no answer. None of them ever means that a payment failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the PSP does not know the object")]
    NotFound,
    #[error("the PSP refuses our credentials (status {0})")]
    Unauthorized(u16),
    #[error("the PSP asks us to slow down")]
    TooManyRequests { retry_after: Option<Duration> },
    #[error("the PSP is not available (status {status})")]
    Unavailable { status: u16, retry_after: Option<Duration> },
    #[error("the answer is not understood: {0}")]
    Unintelligible(String),
}

/// A webhook endpoint as registered at the PSP.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Endpoint {
    pub id: String,
    pub url: String,
    pub enabled: bool,
    /// The PSP's event names; `*` for all.
    pub events: Vec<String>,
    pub api_version: Option<String>,
    pub mode: Option<Mode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointList {
    pub endpoints: Vec<Endpoint>,
    pub next: Option<String>,
}

/// What an endpoint must be like beside its URL: what this adapter was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedEndpoint {
    /// The event types that `translate` reads, without those that only repeat what others tell; the PSP's names.
    pub events: &'static [&'static str],
    /// The version of the API that events must be written in, where the PSP's endpoints have one. Begins with its date.
    pub api_version: Option<&'static str>,
    /// The PSP makes up the signing secret of a new one and tells it once.
    pub tells_secret: bool,
}

/// A change of what is registered at the PSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointChange<'a> {
    Create {
        url: &'a str,
        wanted: WantedEndpoint,
    },
    /// Sets what is said and leaves the rest.
    Update {
        id: &'a str,
        url: Option<&'a str>,
        /// All of them, in place of those that are registered.
        events: Option<&'a [String]>,
        enable: bool,
    },
}

/// What the PSP says of an endpoint that was made or changed.
#[derive(Clone, Debug)]
pub struct ChangedEndpoint {
    pub id: String,
    /// What the PSP signs by; told when the endpoint is made, and never again.
    pub secret: Option<Secret>,
}
