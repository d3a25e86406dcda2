//! What a PSP is to the simulator: how it names, tells, signs, repeats and answers.

use std::collections::HashSet;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use paybell_shared::psp::{self, Proof};

use super::account::Account;
use super::ledger::{Cancellation, DECLINES, DisputeState, Event, Ledger, Object, RefundState, Step};
use super::seed::Seed;
use super::story::Story;

/// One PSP, or one of several ways in which a PSP signs: a unit struct, one file, one line in [`ALL`](super::ALL).
///
/// Written from the PSP's documentation and not from the adapter that reads it: the two share test vectors, no code, so that
/// an error of one side cannot hide behind the same error of the other. `stripe.rs` (with `stripe_api.rs`) is the example of
/// a PSP with an API, `standard_webhooks.rs` of one without. In the order in which one writes it:
///
/// 1. [`object_id`](Dialect::object_id): the PSP's forms of ids, cut from a [`Seed`].
/// 2. [`told`](Dialect::told): the [`Ledger`] records what happened; this words it. Each step becomes the events that the
///    PSP sends of it, with the payment as it stands then: often one, two of PSPs that tell things twice, none of what the
///    PSP keeps to itself. Ids of events come from [`Step::event_seed`].
/// 3. [`event_types`](Dialect::event_types): the table behind `paybell send`: each type with the [`Scene`] in which `told`
///    tells it. Types that no scene tells (other products, doubles) override [`staged`](Dialect::staged).
/// 4. [`sign`](Dialect::sign), [`secret`](Dialect::secret), [`settings`](Dialect::settings), and what a forger cannot do:
///    [`token_in_path`](Dialect::token_in_path), [`signs_time`](Dialect::signs_time), [`signs_body`](Dialect::signs_body),
///    [`refused_with`](Dialect::refused_with).
/// 5. [`api`](Dialect::api), where the PSP can be asked, and only the routes that it has.
/// 6. [`retries`](Dialect::retries); [`plays`](Dialect::plays) says no to stories whose end the PSP neither tells nor can be
///    asked about, [`tells_when_asked`](Dialect::tells_when_asked) to those whose end only webhooks tell;
///    [`currencies`](Dialect::currencies) where the PSP has not the usual ones.
///
/// Shared parts: `mac` (HMACs over parts), `decimal` (amounts in major units), `http` (keys, queries and answers of APIs), and
/// `Timestamp::from_seconds(at)`, which shows itself as `2026-09-21T13:33:10Z`. `cli/tests/signatures.rs` holds every dialect
/// against its adapter.
pub trait Dialect: Send + Sync {
    /// The name in `paybell send` and `paybell demo`: the PSP's id, with something behind it where this is not the PSP's usual
    /// way.
    fn id(&self) -> &'static str;

    /// The PSP's id, in URLs and configurations.
    fn psp(&self) -> &'static str {
        self.id()
    }

    /// Whether it is in this dialect that the PSP speaks to an account of this scheme (`None`: the PSP's default).
    fn speaks(&self, scheme: Option<&str>) -> bool {
        self.settings().scheme == scheme
    }

    /// An id of an object, in the PSP's form. [`Seed::of`] is the order's id, for PSPs that name payments by the merchant's
    /// reference. Must be another for another seed.
    fn object_id(&self, object: Object, seed: &Seed) -> String;

    /// What it can send, in the order in which people read it.
    fn event_types(&self) -> &'static [EventType];

    /// The events that the PSP sends of a step, in the order in which it makes them.
    fn told(&self, step: &Step<'_>) -> Vec<Event>;

    /// One webhook about an order, with what must have happened before it; `None`: no such event. All ids but the event's own
    /// follow from the order.
    fn staged(&self, event_type: &str, situation: &Situation<'_>) -> Option<Webhook> {
        let known = self.event_types().iter().find(|known| known.name == event_type)?;
        let ledger = situation.played(super::find(self.id())?, known.scene(situation.ending)?);
        Some(ledger.events().iter().rfind(|event| event.event_type == event_type)?.into())
    }

    /// Of the events of one order, those without which its truth cannot be told by webhooks alone, by their ids. The demo
    /// measures from the last of them.
    fn telling<'a>(&self, events: &'a [Event]) -> HashSet<&'a str> {
        events.iter().map(|event| event.id.as_str()).collect()
    }

    /// The call that carries the webhook at `at` (Unix seconds): each sending signs anew.
    ///
    /// # Errors
    /// These settings cannot sign.
    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError>;

    /// A secret in the PSP's form. Default: 32 bytes in hexadecimal digits.
    fn secret(&self, seed: &Seed) -> String {
        seed.hex(64)
    }

    /// An account that exists in the simulator only: all that its `[[psp]]` table must say for webhooks to verify and for the
    /// API to let it in. `api_url` is filled in by who serves the API.
    fn settings(&self) -> Settings;

    /// The certificate, in PEM, that lies where [`Dialect::sign`] says, for PSPs that sign so.
    fn certificate(&self) -> Option<&'static str> {
        None
    }

    /// The PSP signs nothing: [`SignedCall::token`] is all there is.
    fn token_in_path(&self) -> bool {
        false
    }

    /// The signature covers a time, so that an old one can be refused.
    fn signs_time(&self) -> bool {
        false
    }

    /// The signature covers the body, so that an altered one can be refused.
    fn signs_body(&self) -> bool {
        !self.token_in_path()
    }

    /// The status by which forgeries are refused.
    fn refused_with(&self) -> u16 {
        if self.token_in_path() { 404 } else { 401 }
    }

    /// A webhook of somebody who is not the PSP; `None`: such a forgery cannot be told from the PSP's own, as the PSP does not
    /// sign what would show it. Overridden where a byte of the body may be altered that is not signed.
    ///
    /// # Errors
    /// As [`Dialect::sign`].
    fn forge(&self, settings: &Settings, webhook: &Webhook, forgery: Forgery, at: i64) -> Result<Option<SignedCall>, SignError> {
        match forgery {
            Forgery::WrongSecret => {
                let wrong = Settings { secret: self.secret(&Seed::new("secret", "of somebody else", 0)), ..settings.clone() };
                self.sign(&wrong, webhook, at).map(Some)
            }
            Forgery::AlteredByte if self.signs_body() => {
                let mut call = self.sign(settings, webhook, at)?;
                call.body = altered(&call.body);
                Ok(Some(call))
            }
            Forgery::Stale if self.signs_time() => self.sign(settings, webhook, at - STALE_S).map(Some),
            Forgery::AlteredByte | Forgery::Stale => Ok(None),
        }
    }

    /// When the PSP sends a webhook again that was not acknowledged, counted each from the try before.
    fn retries(&self) -> &'static [Duration];

    /// The part of the PSP's API that reconciliation asks, answered from the account's ledger; `None`: it has none.
    fn api(&self, _account: &Account) -> Option<Router> {
        None
    }

    /// Whether a story comes to the same end with this PSP, by what it tells and by what it can be asked.
    fn plays(&self, _story: Story) -> bool {
        true
    }

    /// Whether webhooks alone lead to the end of the story. If not, the demo's shop names the payment's id at the registration,
    /// so that it is asked about.
    fn tells(&self, story: Story) -> bool {
        self.plays(story)
    }

    /// Whether asking alone leads to the end of the story, with no webhook at all: asked where [`Dialect::api`] is there. A PSP
    /// whose webhooks are hints plays only such stories.
    fn tells_when_asked(&self, _story: Story) -> bool {
        true
    }

    /// What its merchants are paid in; one without a minor unit among them where the PSP has one.
    fn currencies(&self) -> &'static [&'static str] {
        &["EUR", "USD", "GBP", "JPY"]
    }
}

impl dyn Dialect {
    /// Its webhooks prove nothing by themselves: Paybell asks about what they are about. By the adapter's word.
    #[must_use]
    pub fn hints(&self) -> bool {
        let schemes = psp::find(self.psp()).map_or(&[][..], |psp| psp.profile().schemes);
        let named = self.settings().scheme;
        let scheme = schemes.iter().find(|scheme| named.is_none_or(|named| named == scheme.name));
        scheme.is_some_and(|scheme| scheme.proof == Proof::Hint)
    }
}

impl std::fmt::Debug for dyn Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id())
    }
}

/// A webhook before its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Of the event, as in [`Event::id`]; some PSPs send it in a header.
    pub id: String,
    pub event_type: String,
    pub body: Bytes,
}

impl From<&Event> for Webhook {
    fn from(event: &Event) -> Self {
        Self { id: event.id.clone(), event_type: event.event_type.to_owned(), body: event.body.clone() }
    }
}

/// An account at the PSP, as the merchant's configuration has it. It holds secrets, so it is not [`Debug`].
#[derive(Clone, Default)]
pub struct Settings {
    /// The name of the scheme where it is not the PSP's default.
    pub scheme: Option<&'static str>,
    /// What webhooks are signed with, or the token in the path; empty where the PSP needs none of ours.
    pub secret: String,
    /// The webhook's URL as it is registered at the PSP, for PSPs that sign it: not necessarily where it is sent to.
    pub url: Option<String>,
    pub webhook_id: Option<String>,
    pub public_key: Option<String>,
    pub trusted_root: Option<String>,
    pub api_key: Option<String>,
    pub api_url: Option<String>,
    pub client_id: Option<String>,
    pub merchant_id: Option<String>,
    /// How the sender signs, where the configuration says it. Of an account of this process, for as long as it runs.
    pub generic: Option<&'static psp::generic::Settings>,
}

impl From<&psp::Account> for Settings {
    /// The first secret signs.
    fn from(account: &psp::Account) -> Self {
        let default = account.psp.profile().schemes.first().map_or("", |scheme| scheme.name);
        Self {
            scheme: Some(account.keys.scheme).filter(|scheme| !scheme.is_empty() && *scheme != default),
            secret: account.keys.secrets.first().map(|secret| secret.expose().to_owned()).unwrap_or_default(),
            url: account.keys.url.clone(),
            webhook_id: account.keys.webhook_id.clone(),
            public_key: account.keys.public_key.clone(),
            trusted_root: account.keys.trusted_root.clone(),
            api_key: account.api.key.as_ref().map(|key| key.expose().to_owned()),
            api_url: account.api.url.clone(),
            client_id: account.api.client_id.clone(),
            merchant_id: account.api.merchant_id.clone(),
            generic: account.keys.generic.as_ref().map(|rules| {
                let lower = |name: &Option<String>| name.as_ref().map(|name| name.to_ascii_lowercase());
                let mut rules = rules.settings.clone();
                (rules.header, rules.timestamp_header) = (lower(&rules.header), lower(&rules.timestamp_header));
                // Headers have the names of constants; one command sends for one account, once.
                &*Box::leak(Box::new(rules))
            }),
        }
    }
}

/// What goes over the wire.
#[derive(Clone)]
pub struct SignedCall {
    pub headers: Headers,
    /// Not the webhook's where the signature stands inside.
    pub body: Bytes,
    /// Goes behind the URL's path, for PSPs that sign nothing. Never printed.
    pub token: Option<String>,
}

/// Names in lower case.
pub type Headers = Vec<(&'static str, String)>;

impl SignedCall {
    /// The signature is in the headers.
    #[must_use]
    pub fn by_headers(webhook: &Webhook, headers: Headers) -> Self {
        Self { headers, body: webhook.body.clone(), token: None }
    }
}

/// Why nothing can be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the secret cannot sign: {0}")]
    Secret(String),
    #[error("the account's setting {0} is missing: this PSP signs it")]
    Missing(&'static str),
}

/// What is wrong with a forged webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forgery {
    /// Signed with a secret that is not ours.
    WrongSecret,
    /// One byte is another than the one that was signed.
    AlteredByte,
    /// A genuine signature, but of an hour ago.
    Stale,
}

impl Forgery {
    pub const ALL: [Self; 3] = [Self::WrongSecret, Self::AlteredByte, Self::Stale];
}

/// How far a stale signature lies back: far beyond any tolerance that a configuration sets for comfort.
const STALE_S: i64 = 3_600;

/// With the last digit another one, so that it stays what the PSP might have sent.
pub(super) fn altered(body: &[u8]) -> Bytes {
    let mut body = body.to_vec();
    if let Some(digit) = body.iter_mut().rfind(|byte| byte.is_ascii_digit()) {
        *digit = if *digit == b'9' { b'1' } else { b'9' };
    }
    body.into()
}

/// A type of event, and what must happen for the PSP to tell it.
#[derive(Clone, Copy, Debug)]
pub struct EventType {
    /// The PSP's name of it.
    pub name: &'static str,
    scene: Scene,
    /// Where the name leaves the ending open: each ending in the PSP's word, the usual one first.
    pub endings: &'static [(&'static str, Scene)],
}

impl EventType {
    #[must_use]
    pub const fn new(name: &'static str, scene: Scene) -> Self {
        Self { name, scene, endings: &[] }
    }

    /// At least one ending; the first is the usual one.
    #[must_use]
    pub const fn open(name: &'static str, endings: &'static [(&'static str, Scene)]) -> Self {
        Self { name, scene: endings[0].1, endings }
    }

    pub(super) fn scene(&self, ending: Option<&str>) -> Option<Scene> {
        match ending {
            None => Some(self.scene),
            Some(ending) => self.endings.iter().find(|(name, _)| *name == ending).map(|(_, scene)| *scene),
        }
    }
}

/// What happens to a payment right now, with what must have happened before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    Opened,
    ActionRequired,
    Processing,
    Declined,
    Authorized,
    /// Paid at once.
    Captured,
    /// What was authorised before.
    CapturedLater,
    Canceled(Cancellation),
    /// An authorised payment is given up.
    Voided,
    /// Nobody paid in time.
    Expired,
    /// An authorised payment was not captured in time.
    Lapsed,
    /// A refund is made, and stands so from its beginning.
    Refunded(RefundState),
    /// A pending refund comes to this.
    RefundSettled(RefundState),
    Disputed,
    DisputeClosed(DisputeState),
    /// A paid payment changes in nothing that matters.
    Noted,
}

/// The circumstances of one webhook that is sent alone.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub order_id: &'a str,
    pub amount: i64,
    pub currency: &'a str,
    /// What is captured, refunded or disputed, where it is not all.
    pub part: Option<i64>,
    /// How the event ends, where its type leaves that open.
    pub ending: Option<&'a str>,
    pub live: bool,
    /// Unix seconds.
    pub at: i64,
    /// Makes the event's id new.
    pub salt: u64,
}

/// The story before a scene begins so long before it, in seconds; nobody gets those events.
const BEFORE_S: i64 = 60;

impl Situation<'_> {
    /// What ids are made of that belong to no order: another for another salt.
    #[must_use]
    pub fn seed(&self) -> Seed {
        Seed::new("staged", &self.salt.to_string(), 0)
    }

    /// Books in which nothing but this scene's story stands.
    #[must_use]
    pub fn played(&self, dialect: &'static dyn Dialect, scene: Scene) -> Ledger {
        let Self { order_id, amount, currency, at, .. } = *self;
        let part = self.part.unwrap_or(amount);
        let before = at - BEFORE_S;
        let manual = matches!(scene, Scene::Authorized | Scene::CapturedLater | Scene::Voided | Scene::Lapsed);
        let mut ledger = Ledger::new(dialect, self.live, self.salt);
        let id = ledger.open(order_id, amount, currency, manual, if scene == Scene::Opened { at } else { before });
        match scene {
            Scene::Opened => {}
            Scene::ActionRequired => ledger.require_action(&id, at),
            Scene::Processing => ledger.process(&id, at),
            Scene::Declined => ledger.decline(&id, DECLINES[0], at),
            Scene::Authorized => ledger.authorize(&id, at),
            Scene::Captured => ledger.capture(&id, part, at),
            Scene::Canceled(reason) => ledger.cancel(&id, reason, at),
            Scene::Expired => ledger.expire(&id, at),
            Scene::CapturedLater | Scene::Voided | Scene::Lapsed => {
                ledger.authorize(&id, before);
                match scene {
                    Scene::Voided => ledger.cancel(&id, Cancellation::Requested, at),
                    Scene::Lapsed => ledger.expire(&id, at),
                    _ => ledger.capture(&id, part, at),
                }
            }
            Scene::Refunded(_) | Scene::RefundSettled(_) | Scene::Disputed | Scene::DisputeClosed(_) | Scene::Noted => {
                ledger.capture(&id, amount, before);
                let between = before + BEFORE_S / 2;
                match scene {
                    Scene::Refunded(state) => drop(ledger.refund(&id, part, state, at)),
                    Scene::RefundSettled(state) => {
                        let number = ledger.refund(&id, part, RefundState::Pending, between);
                        ledger.settle_refund(&id, number, state, at);
                    }
                    Scene::Disputed => drop(ledger.dispute(&id, part, at)),
                    Scene::DisputeClosed(state) => {
                        let number = ledger.dispute(&id, part, between);
                        ledger.close_dispute(&id, number, state, at);
                    }
                    _ => ledger.note(&id, at),
                }
            }
        }
        ledger
    }
}
