//! Paybell's own event, in JSON: what Standard Webhooks, Svix, the generic adapter and its presets carry.
//!
//! **Body.** `{"type", "timestamp": RFC 3339, "data": {…}}`, with in `data`:
//!
//! | field | | meaning |
//! |---|---|---|
//! | `payment_id` | required | the PSP's id of the payment |
//! | `order_id` | optional | the merchant's order; elsewhere by the setting `order_reference`, a path below `data` |
//! | `amount`, `currency` | for `payment.authorized`, `payment.captured`, `refund.*`, `dispute.*` | of a payment all that is authorised or captured so far, gross |
//! | `attempt_id` | optional | the attempt that a `payment.*` is about |
//! | `final` | optional, `false` | `payment.captured`: more of it may be captured |
//! | `failure_code`, `failure_message` | optional | `payment.failed`: about the payment, never about the person |
//! | `refund_id`, `dispute_id` | for `refund.*`, `dispute.*` | the PSP's id of the one refund or dispute |
//! | `version` | optional | integer that grows with every change of the object (payment, refund, dispute); without it the `timestamp` stands in. Number all events of an object or none |
//! | `mode` | optional | `live` or `test` |
//!
//! Types: `payment.{pending,authorized,captured,failed,canceled,expired}`, `refund.{pending,succeeded,failed}`,
//! `dispute.{opened,won,lost}`. `payment.expired` says that nobody paid in time; an authorisation that lapsed is
//! `payment.canceled`. Other types are ignored.
//!
//! **Amounts** are integers in minor units (`4999`) or decimal strings in major units (`"49.99"`), by the digits of the
//! currency. A number with a fraction is refused: a writer who drops a `.0` would change the amount a hundredfold.
//!
//! **Pointers.** Each of the settings `generic.{id,type,order,payment,amount,currency}` is a JSON pointer that moves one field
//! of the above to another place; what has none stays in its own. With any of them the document is another's: `timestamp` and
//! `data` may be missing, ids may be numbers. The *values* of `type` stay the ones above, there is no table that maps others.
//! Without a `timestamp` a payment's state and amounts merge by rank and size alone; a refund or a dispute needs it, or a
//! `version`, since without either nobody could say which of two states is the later.

use std::borrow::Cow;

use serde::Deserialize;

use super::json::{self, Node, Pointer, Problem};
use super::{Account, Keys, SettingError, TranslateError, telling};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::{
    ANSWER_PREFIX, DisputeState, Fact, FactVersion, Mode, PaymentEvent, PaymentFact, PaymentState, RefundState, Source,
};

/// Where fields stand that do not stand in their own place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pointers {
    pub id: Option<Pointer>,
    pub event_type: Option<Pointer>,
    pub order: Option<Pointer>,
    pub payment: Option<Pointer>,
    pub amount: Option<Pointer>,
    pub currency: Option<Pointer>,
}

static IN_PLACE: Pointers = Pointers { id: None, event_type: None, order: None, payment: None, amount: None, currency: None };

impl Pointers {
    pub(super) fn of(keys: &Keys) -> &Self {
        keys.generic.as_ref().map_or(&IN_PLACE, |rules| &rules.pointers)
    }

    fn move_something(&self) -> bool {
        *self != IN_PLACE
    }
}

/// Refuses settings of which one would silence the other.
pub(super) fn check(account: &Account) -> Result<(), SettingError> {
    if Pointers::of(&account.keys).order.is_some() && account.order_reference.is_some() {
        let problem = "says where the order stands, and so does order_reference: one of them".to_owned();
        return Err(SettingError { setting: "generic.order", problem });
    }
    Ok(())
}

/// The type that an authentic body names.
pub(super) fn event_type(body: &[u8], keys: &Keys) -> Option<String> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, rename = "type")]
        event_type: Cow<'a, str>,
    }
    if let Some(pointer) = &Pointers::of(keys).event_type {
        let value = json::read(body).ok()?;
        return Node::root(&value).at(pointer).and_then(Node::into_name).ok().map(str::to_owned);
    }
    // Every other field is skipped.
    let head: Head<'_> = serde_json::from_slice(body).ok()?;
    Some(head.event_type).filter(|text| json::is_name(text)).map(Cow::into_owned)
}

/// The event's id, where a pointer leads to it in an authentic body.
pub(super) fn event_id(body: &[u8], keys: &Keys) -> Option<String> {
    let pointer = Pointers::of(keys).id.as_ref()?;
    let value = json::read(body).ok()?;
    Node::root(&value).at(pointer).and_then(Node::into_id).ok().map(Cow::into_owned)
}

/// What the body says. The event's key is the webhook's id, or what the pointer `id` leads to.
pub(super) fn translate(envelope: &Envelope, account: &Account) -> Result<PaymentEvent, TranslateError> {
    let pointers = Pointers::of(&account.keys);
    let value = json::read(&envelope.body)?;
    let body = Node::root(&value);
    let event_type = match &pointers.event_type {
        Some(pointer) => body.at(pointer)?.into_name()?,
        None => body.name("type")?,
    };
    let Some(kind) = Kind::of(event_type) else {
        return Err(TranslateError::Ignored(format!("{event_type} is no type of a payment event")));
    };
    let time = time(kind, &body, pointers)?;
    let data = if pointers.move_something() { body.member("data") } else { body.object("data")? };
    let fields = Fields { body: &body, data: &data, pointers };
    let payment_id = fields.payment_id()?;
    let fact = fields.fact(kind)?;
    let version = data.optional_integer("version")?.map(FactVersion::Number);
    let version = version.or(time.map(|at| FactVersion::Time(at.millis())));
    if version.is_none() && !matches!(kind, Kind::Payment(_)) {
        return Err(body.member("timestamp").problem("missing").into());
    }
    let order = fields.order(account);
    let told = telling::Telling {
        event_id: fields.event_id(envelope)?,
        event_type,
        at: time.unwrap_or(envelope.received_at),
        mode: mode(&data)?,
        order: order.as_deref(),
        payment_id: &payment_id,
        others: Vec::new(),
        // Below every time: of an undated payment only rank and size count, and no retry may tell another version.
        version: version.unwrap_or(FactVersion::Time(0)),
        fact,
    };
    Ok(told.event(account, Source::Webhook))
}

#[derive(Clone, Copy)]
enum Kind {
    Payment(PaymentState),
    Refund(RefundState),
    Dispute(DisputeState),
}

impl Kind {
    fn of(event_type: &str) -> Option<Self> {
        Some(match event_type {
            "payment.pending" => Self::Payment(PaymentState::Pending),
            "payment.authorized" => Self::Payment(PaymentState::Authorized),
            "payment.captured" => Self::Payment(PaymentState::Captured),
            "payment.failed" => Self::Payment(PaymentState::Failed),
            "payment.canceled" => Self::Payment(PaymentState::Canceled),
            "payment.expired" => Self::Payment(PaymentState::Expired),
            "refund.pending" => Self::Refund(RefundState::Pending),
            "refund.succeeded" => Self::Refund(RefundState::Succeeded),
            "refund.failed" => Self::Refund(RefundState::Failed),
            "dispute.opened" => Self::Dispute(DisputeState::Open),
            "dispute.won" => Self::Dispute(DisputeState::Won),
            "dispute.lost" => Self::Dispute(DisputeState::Lost),
            _ => return None,
        })
    }
}

/// When it happened. Another's document may say nothing, or in a form of its own.
fn time(kind: Kind, body: &Node<'_>, pointers: &Pointers) -> Result<Option<Timestamp>, Problem> {
    let told = telling::time(body, "timestamp");
    if pointers.move_something() && matches!(kind, Kind::Payment(_)) { Ok(told.ok()) } else { told.map(Some) }
}

/// The fields, each in its own place or where its pointer leads.
struct Fields<'n, 'a> {
    body: &'n Node<'a>,
    data: &'n Node<'a>,
    pointers: &'n Pointers,
}

impl<'a> Fields<'_, 'a> {
    fn event_id(&self, envelope: &Envelope) -> Result<String, Problem> {
        let Some(pointer) = &self.pointers.id else { return Ok(envelope.webhook_id.clone()) };
        let id = self.body.at(pointer)?;
        let problem = id.problem("an id that begins as those of answers do");
        let id = id.into_id()?;
        if id.starts_with(ANSWER_PREFIX) { Err(problem) } else { Ok(id.into_owned()) }
    }

    fn payment_id(&self) -> Result<Cow<'a, str>, Problem> {
        match &self.pointers.payment {
            Some(pointer) => self.body.at(pointer)?.into_id(),
            None => self.data.name("payment_id").map(Cow::Borrowed),
        }
    }

    /// What is no name leads to no order.
    fn order(&self, account: &Account) -> Option<Cow<'a, str>> {
        match &self.pointers.order {
            Some(pointer) => self.body.at(pointer).and_then(Node::into_id).ok(),
            None => telling::order(self.data, account, &[&["order_id"]]).map(Cow::Borrowed),
        }
    }

    fn money(&self) -> Result<crate::money::Money, Problem> {
        let place = |pointer: &Option<Pointer>, key: &str| match pointer {
            Some(pointer) => self.body.at(pointer),
            None => self.data.required(key),
        };
        let amount = place(&self.pointers.amount, "amount")?;
        amount.into_money(place(&self.pointers.currency, "currency")?.into_currency()?)
    }

    fn fact(&self, kind: Kind) -> Result<Fact, Problem> {
        Ok(match kind {
            Kind::Payment(state) => Fact::Payment(self.payment_fact(state)?),
            Kind::Refund(state) => {
                Fact::Refund { id: self.data.name("refund_id")?.to_owned(), state, amount: self.money()?, created: None }
            }
            Kind::Dispute(state) => Fact::Dispute { id: self.data.name("dispute_id")?.to_owned(), state, amount: self.money()? },
        })
    }

    fn payment_fact(&self, state: PaymentState) -> Result<PaymentFact, Problem> {
        let attempt = self.data.optional_name("attempt_id")?.map(str::to_owned);
        let mut fact = PaymentFact { attempt, ..PaymentFact::new(state) };
        match state {
            PaymentState::Authorized => fact.authorized = Some(self.money()?),
            PaymentState::Captured => {
                fact.captured = Some(self.money()?);
                fact.capture_final = self.data.optional_bool("final")?.unwrap_or(true);
            }
            PaymentState::Failed => {
                let code = self.data.optional_name("failure_code")?;
                let message = self.data.text("failure_message");
                fact.failure = (code.is_some() || message.is_some()).then(|| telling::failure(code, message));
            }
            PaymentState::Pending | PaymentState::Expired | PaymentState::AuthorizationExpired | PaymentState::Canceled => {}
        }
        Ok(fact)
    }
}

fn mode(data: &Node<'_>) -> Result<Option<Mode>, Problem> {
    match data.optional("mode") {
        None => Ok(None),
        Some(mode) => match mode.as_text() {
            Some("live") => Ok(Some(Mode::Live)),
            Some("test") => Ok(Some(Mode::Test)),
            _ => Err(mode.problem("neither live nor test")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::generic::{Generic, Rules, Settings};
    use super::super::tests::{NOW_S, account};
    use super::super::{Proof, Verified};
    use super::*;
    use crate::event::{Reference, ReferenceKind};

    /// The settings of a shop whose events have another shape.
    fn elsewhere() -> Settings {
        let pointer = |text: &str| Some(text.to_owned());
        Settings {
            id: pointer("/event/number"),
            r#type: pointer("/event/kind"),
            order: pointer("/attributes/0/value"),
            payment: pointer("/transaction/id"),
            amount: pointer("/transaction/sum"),
            currency: pointer("/transaction/iso"),
            ..Settings::default()
        }
    }

    fn translated(settings: Settings, body: &Value) -> Result<PaymentEvent, TranslateError> {
        let mut account = account(&Generic, &["x"]);
        account.keys.generic = Some(Arc::new(Rules::new(settings).unwrap()));
        let body = body.to_string();
        let verified = Verified {
            webhook_id: event_id(body.as_bytes(), &account.keys).unwrap_or_else(|| "the body's".to_owned()),
            event_type: event_type(body.as_bytes(), &account.keys),
            subject: None,
            secret_name: "secrets[0]".into(),
            proof: Proof::Proven,
            content_type: None,
            headers: Vec::new(),
        };
        let envelope = Envelope::new(&account, verified, Timestamp::from_seconds(NOW_S), body.into(), None);
        translate(&envelope, &account)
    }

    fn document(kind: &str) -> Value {
        json!({
            "event": {"number": 77, "kind": kind},
            "attributes": [{"name": "order", "value": "ORD-1001"}],
            "transaction": {"id": 4711, "sum": "49.99", "iso": "eur"},
        })
    }

    #[test]
    fn pointers_lead_to_every_field() {
        let event = translated(elsewhere(), &document("payment.captured")).unwrap();
        assert_eq!((event.key.event_id.as_str(), event.payment_id.as_str()), ("77", "4711"));
        assert_eq!(event.references[0], Reference::new(ReferenceKind::Order, "ORD-1001"));
        let Fact::Payment(fact) = event.fact else { panic!("{:?}", event.fact) };
        assert_eq!(fact.captured.map(|money| money.to_string()).as_deref(), Some("49.99 EUR"));
        assert!(fact.capture_final);
    }

    #[test]
    fn a_payment_without_a_time_has_one_version_whenever_it_is_told() {
        let event = translated(elsewhere(), &document("payment.captured")).unwrap();
        assert_eq!((event.version, event.occurred_at), (FactVersion::Time(0), Timestamp::from_seconds(NOW_S)));
        let mut dated = document("payment.captured");
        dated["timestamp"] = "2026-09-21T14:13:10Z".into();
        assert_eq!(translated(elsewhere(), &dated).unwrap().version, FactVersion::Time(1_790_000_000_000 - 10_000));
        dated["timestamp"] = 1_790_000_000.into();
        assert_eq!(translated(elsewhere(), &dated).unwrap().version, FactVersion::Time(0), "another's form of a time");
    }

    #[test]
    fn a_refund_without_time_or_version_is_not_understood() {
        let mut refund = document("refund.succeeded");
        refund["data"] = json!({"refund_id": "re_1"});
        let missing = |pointer: &str| TranslateError::Unintelligible { reason: "missing", pointer: pointer.to_owned() };
        assert_eq!(translated(elsewhere(), &refund).unwrap_err(), missing("/timestamp"));
        refund["timestamp"] = "2026-09-21T14:13:10Z".into();
        let event = translated(elsewhere(), &refund).unwrap();
        assert!(matches!(event.fact, Fact::Refund { amount, .. } if amount.minor == 4999));
        refund["data"] = Value::Null;
        assert_eq!(translated(elsewhere(), &refund).unwrap_err(), missing("/data/refund_id"));
    }

    #[test]
    fn types_keep_their_names_wherever_they_stand() {
        for kind in ["paid", "PAYMENT.CAPTURED", "payment.succeeded", "payment.captured "] {
            assert!(matches!(translated(elsewhere(), &document(kind)), Err(TranslateError::Ignored(_))), "{kind}");
        }
    }

    #[test]
    fn what_a_pointer_does_not_find_is_named_by_its_place() {
        for (pointer, reason) in [
            ("/event/number", "missing"),
            ("/event/kind", "missing"),
            ("/transaction/id", "missing"),
            ("/transaction/sum", "missing"),
            ("/transaction/iso", "missing"),
        ] {
            let mut body = document("payment.captured");
            *body.pointer_mut(pointer).unwrap() = Value::Null;
            let expected = TranslateError::Unintelligible { reason, pointer: pointer.to_owned() };
            assert_eq!(translated(elsewhere(), &body).unwrap_err(), expected);
        }
        let mut orderless = document("payment.captured");
        orderless["attributes"] = json!([]);
        let event = translated(elsewhere(), &orderless).unwrap();
        assert_eq!(event.references, [Reference::new(ReferenceKind::Payment, "4711")], "it is parked, not lost");
        let mut odd = document("payment.captured");
        odd["event"]["number"] = "poll:1:2".into();
        assert!(
            matches!(translated(elsewhere(), &odd), Err(TranslateError::Unintelligible { pointer, .. }) if pointer == "/event/number")
        );
        odd["event"]["number"] = "77".into();
        odd["transaction"]["sum"] = json!(49.99);
        assert!(
            matches!(translated(elsewhere(), &odd), Err(TranslateError::Unintelligible { pointer, .. }) if pointer == "/transaction/sum")
        );
    }

    #[test]
    fn one_pointer_moves_one_field() {
        let settings = Settings { payment: Some("/data/charge".to_owned()), ..Settings::default() };
        let body = json!({"type": "payment.captured", "timestamp": "2026-09-21T14:13:10Z",
            "data": {"charge": "ch_1", "order_id": "A", "amount": 5, "currency": "JPY", "mode": "test", "version": 3}});
        let event = translated(settings, &body).unwrap();
        assert_eq!((event.payment_id.as_str(), event.mode, event.version), ("ch_1", Some(Mode::Test), FactVersion::Number(3)));
        assert_eq!(event.key.event_id, "the body's");
    }
}
