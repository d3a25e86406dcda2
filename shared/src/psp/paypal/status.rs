//! How a payment stands at PayPal: the questions, one after the other, and what their answers amount to.
//!
//! | asked about | first question | if PayPal does not know it |
//! |---|---|---|
//! | `<id>`, a payment | the order of that id | the capture of that id, then the authorisation |
//! | `capture:<id>`, `capture:<id>:<refund>` | the capture | |
//! | `authorization:<id>` | the authorisation | |
//!
//! A capture or authorisation that names its order leads to the order, which tells all but disputes; if PayPal no longer shows
//! that order, the capture or authorisation itself is read for it. What has no order is told by itself: there a refund that
//! was hinted at is asked for by its id, since a capture does not list its refunds. Then come the disputes of each capture,
//! first their ids, then each one, for only that has its outcome.
//!
//! | PayPal says | fact |
//! |---|---|
//! | order `CREATED`, `SAVED`, `APPROVED`, `PAYER_ACTION_REQUIRED`, or unknown | pending |
//! | order `VOIDED` | canceled |
//! | order `COMPLETED` | as its authorisations and captures say: captured, else authorized, pending, failed, canceled |
//! | authorisation `CREATED`, `PARTIALLY_CAPTURED`, `CAPTURED` | authorized |
//! | authorisation `DENIED`, `VOIDED`, `EXPIRED`; other | failed, canceled, lapsed; pending |
//! | capture `COMPLETED`, `PARTIALLY_REFUNDED`, `REFUNDED`, `REVERSED` | captured |
//! | capture `DECLINED`, `FAILED`; other | failed; pending |
//! | capture `REFUNDED`, `REVERSED` | refunded in all, also where no refund is listed (a reversal is PayPal's, not ours) |
//! | refund `COMPLETED`; `FAILED`, `CANCELLED`; other | succeeded; failed; pending |
//! | dispute `RESOLVED`, by its outcome: seller's favour, canceled by the buyer, denied, payout | won; closed, if it was an inquiry |
//! | 〃 buyer's favour, accepted | lost |
//! | dispute in the stage `INQUIRY`; any other | inquiry; open |
//!
//! **Versions** are the `update_time` of the object, but never later than the answer's `Date`; what sums up several objects has
//! the `Date` itself.
//!
//! **Disputes** may be hidden from the app ("Disputes" is one of its features in PayPal's dashboard): then PayPal answers 403,
//! and the look ends without them.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use http::Response;

use super::super::json::{self, Node, Problem};
use super::super::telling::{self, Telling};
use super::super::{Account, Answer, Asked, ReadError, answer};
use super::{id_at, is_id, linked, refunded_capture, related};
use crate::clock::Timestamp;
use crate::event::{
    CaptureState, DisputeState, Fact, FactVersion, Failure, PaymentEvent, PaymentFact, PaymentState, Reference, ReferenceKind,
    RefundState,
};
use crate::money::Money;

/// Captures of one payment. PayPal allows ten of an authorisation and ten purchase units of an order; nobody does both.
const CAPTURES_MAX: usize = 32;
/// Disputes of one capture in one page: PayPal's largest.
const DISPUTES_MAX: usize = 50;

const ORDER: &str = "order";
const CAPTURE: &str = "capture";
const AUTHORIZATION: &str = "authorization";
const REFUND: &str = "refund";
const DISPUTES: &str = "disputes";
const DISPUTE: &str = "dispute";

/// What is asked about, by the id that the worker knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    Payment(&'a str),
    /// Of which a refund is to be looked at, too.
    Capture {
        id: &'a str,
        refund: Option<&'a str>,
    },
    Authorization(&'a str),
}

impl<'a> Subject<'a> {
    pub(super) fn of(payment_id: &'a str) -> Option<Self> {
        let mut parts = payment_id.split(':');
        let subject = match (parts.next()?, parts.next(), parts.next()) {
            (id, None, None) => Self::Payment(id),
            (CAPTURE, Some(id), refund) => Self::Capture { id, refund },
            (AUTHORIZATION, Some(id), None) => Self::Authorization(id),
            _ => return None,
        };
        let refund = if let Self::Capture { refund, .. } = subject { refund } else { None };
        (parts.next().is_none() && is_id(subject.id()) && refund.is_none_or(is_id)).then_some(subject)
    }

    const fn id(&self) -> &'a str {
        match self {
            Self::Payment(id) | Self::Capture { id, .. } | Self::Authorization(id) => id,
        }
    }

    const fn refund(&self) -> Option<&'a str> {
        if let Self::Capture { refund, .. } = self { *refund } else { None }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payment(id) => f.write_str(id),
            Self::Capture { id, refund: None } => write!(f, "{CAPTURE}:{id}"),
            Self::Capture { id, refund: Some(refund) } => write!(f, "{CAPTURE}:{id}:{refund}"),
            Self::Authorization(id) => write!(f, "{AUTHORIZATION}:{id}"),
        }
    }
}

/// What an order was found by, if it was not asked about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Capture,
    Authorization,
}

/// Where a look stands: the next question. Its text is the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Order {
        id: &'a str,
        of: Option<Part>,
    },
    /// The capture that was asked about; told under `payment`, if PayPal shows that order no longer.
    Capture {
        id: &'a str,
        payment: Option<&'a str>,
    },
    Authorization {
        id: &'a str,
        payment: Option<&'a str>,
    },
    /// The refund that was asked about, of a capture without an order.
    Refund {
        id: &'a str,
        payment: &'a str,
    },
    /// Those of the first capture; the others are still to come.
    Disputes {
        payment: &'a str,
        captures: Vec<&'a str>,
    },
    /// The first of them, all of the first capture.
    Dispute {
        payment: &'a str,
        captures: Vec<&'a str>,
        disputes: Vec<&'a str>,
    },
}

impl<'a> Step<'a> {
    pub(super) fn of(subject: &Subject<'a>, cursor: Option<&'a str>) -> Option<Self> {
        let Some(cursor) = cursor else {
            return Some(match *subject {
                Subject::Payment(id) => Self::Order { id, of: None },
                Subject::Capture { id, .. } => Self::Capture { id, payment: None },
                Subject::Authorization(id) => Self::Authorization { id, payment: None },
            });
        };
        let parts: Vec<&str> = cursor.split(':').collect();
        // Never empty: what is split has a first part.
        let ids = |text: &'a str| {
            let ids: Vec<&str> = text.split(',').collect();
            (ids.len() <= DISPUTES_MAX && ids.iter().all(|id| is_id(id))).then_some(ids)
        };
        let step = match parts[..] {
            [ORDER, id, CAPTURE] => Self::Order { id, of: Some(Part::Capture) },
            [ORDER, id, AUTHORIZATION] => Self::Order { id, of: Some(Part::Authorization) },
            [CAPTURE] => Self::Capture { id: subject.id(), payment: None },
            [CAPTURE, payment] => Self::Capture { id: subject.id(), payment: Some(payment) },
            [AUTHORIZATION] => Self::Authorization { id: subject.id(), payment: None },
            [AUTHORIZATION, payment] => Self::Authorization { id: subject.id(), payment: Some(payment) },
            [REFUND, payment] => Self::Refund { id: subject.refund()?, payment },
            [DISPUTES, payment, captures] => Self::Disputes { payment, captures: ids(captures)? },
            [DISPUTE, payment, captures, disputes] => {
                Self::Dispute { payment, captures: ids(captures)?, disputes: ids(disputes)? }
            }
            _ => return None,
        };
        parts.get(1).is_none_or(|id| is_id(id)).then_some(step)
    }

    /// What is asked for, below PayPal's host. All of it is checked.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Order { id, .. } => format!("/v2/checkout/orders/{id}"),
            Self::Capture { id, .. } => format!("/v2/payments/captures/{id}"),
            Self::Authorization { id, .. } => format!("/v2/payments/authorizations/{id}"),
            Self::Refund { id, .. } => format!("/v2/payments/refunds/{id}"),
            Self::Disputes { captures, .. } => {
                let capture = captures.first().copied().unwrap_or_default();
                format!("/v1/customer/disputes?disputed_transaction_id={capture}&page_size={DISPUTES_MAX}")
            }
            Self::Dispute { disputes, .. } => format!("/v1/customer/disputes/{}", disputes.first().copied().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The first question has no cursor; as one, it is that of a capture's order.
            Self::Order { id, of: None | Some(Part::Capture) } => write!(f, "{ORDER}:{id}:{CAPTURE}"),
            Self::Order { id, of: Some(Part::Authorization) } => write!(f, "{ORDER}:{id}:{AUTHORIZATION}"),
            Self::Capture { payment: None, .. } => f.write_str(CAPTURE),
            Self::Capture { payment: Some(payment), .. } => write!(f, "{CAPTURE}:{payment}"),
            Self::Authorization { payment: None, .. } => f.write_str(AUTHORIZATION),
            Self::Authorization { payment: Some(payment), .. } => write!(f, "{AUTHORIZATION}:{payment}"),
            Self::Refund { payment, .. } => write!(f, "{REFUND}:{payment}"),
            Self::Disputes { payment, captures } => write!(f, "{DISPUTES}:{payment}:{}", captures.join(",")),
            Self::Dispute { payment, captures, disputes } => {
                write!(f, "{DISPUTE}:{payment}:{}:{}", captures.join(","), disputes.join(","))
            }
        }
    }
}

/// One answer to one question.
pub(super) struct Look<'a> {
    pub asked: &'a Asked<'a>,
    pub account: &'a Account,
    /// When the answer was true.
    pub at: Timestamp,
    pub subject: Subject<'a>,
}

impl Look<'_> {
    pub(super) fn read(&self, step: Step<'_>, response: &Response<Bytes>) -> Result<Answer, ReadError> {
        let body = match answer::body(response, Some(self.asked.at)) {
            Ok(body) => body,
            Err(error) => return self.unanswered(&step, error),
        };
        let value = json::read(body)?;
        let object = Node::root(&value);
        match step {
            Step::Order { id, .. } => {
                is_about(&object, "id", id)?;
                self.order(&object, id)
            }
            Step::Capture { id, payment } => {
                is_about(&object, "id", id)?;
                match (payment, related(&object, "order_id")?) {
                    (None, Some(order)) => Ok(go_on(Vec::new(), &Step::Order { id: order, of: Some(Part::Capture) })),
                    (payment, _) => self.capture(&object, payment),
                }
            }
            Step::Authorization { id, payment } => {
                is_about(&object, "id", id)?;
                match (payment, related(&object, "order_id")?) {
                    (None, Some(order)) => Ok(go_on(Vec::new(), &Step::Order { id: order, of: Some(Part::Authorization) })),
                    (payment, _) => self.authorization(&object, payment),
                }
            }
            Step::Refund { id, payment } => {
                is_about(&object, "id", id)?;
                if refunded_capture(&object)? != self.subject.id() {
                    return Err(object.problem("of another capture than was asked for").into());
                }
                let telling = Teller { look: self, payment, order: None };
                Ok(go_on(vec![telling.refund(&object)?], &Step::Disputes { payment, captures: vec![self.subject.id()] }))
            }
            Step::Disputes { payment, captures } => disputes(&object, payment, captures),
            Step::Dispute { payment, captures, disputes } => {
                is_about(&object, "dispute_id", disputes.first().copied().unwrap_or_default())?;
                let telling = Teller { look: self, payment, order: None };
                let event = telling.dispute(&object, captures.first().copied().unwrap_or_default())?;
                let left = disputes[1..].to_vec();
                Ok(Answer { next: after(payment, captures, left).map(|step| step.to_string()), ..answer_of(vec![event]) })
            }
        }
    }

    /// What is not there may be something else, or belong to what is no longer there.
    fn unanswered(&self, step: &Step<'_>, error: ReadError) -> Result<Answer, ReadError> {
        let next = match (step, &error) {
            (Step::Order { of: None, id }, ReadError::NotFound) => Step::Capture { id, payment: None },
            (Step::Order { of: Some(Part::Capture), id }, ReadError::NotFound) => {
                Step::Capture { id: self.subject.id(), payment: Some(id) }
            }
            (Step::Order { of: Some(Part::Authorization), id }, ReadError::NotFound) => {
                Step::Authorization { id: self.subject.id(), payment: Some(id) }
            }
            (Step::Capture { id, payment: None }, ReadError::NotFound) if self.subject == Subject::Payment(id) => {
                Step::Authorization { id, payment: None }
            }
            // 403: hidden from this app. 404: there is none.
            (Step::Disputes { .. }, ReadError::NotFound | ReadError::Unauthorized(403)) => return Ok(answer_of(Vec::new())),
            _ => return Err(error),
        };
        Ok(go_on(Vec::new(), &next))
    }

    fn order(&self, order: &Node<'_>, payment: &str) -> Result<Answer, ReadError> {
        let units = list(order, "purchase_units")?;
        let reference = units.iter().find_map(|unit| self.shops_order(unit));
        let (mut tally, mut paid) = (Tally::default(), Vec::new());
        let mut shown = Vec::new();
        for unit in &units {
            let Some(made) = unit.optional("payments") else { continue };
            let part = Unit {
                authorizations: list(&made, "authorizations")?,
                captures: list(&made, "captures")?,
                refunds: list(&made, "refunds")?,
            };
            tally.add(&part)?;
            shown.push(part);
        }
        let captures: Vec<&Node<'_>> = shown.iter().flat_map(|unit| &unit.captures).collect();
        if captures.len() > CAPTURES_MAX {
            return Err(order.problem("more captures than a payment has").into());
        }
        let reference = reference.or_else(|| captures.iter().find_map(|capture| self.shops_order(capture)));
        let teller = Teller { look: self, payment, order: reference };
        let state = match order.name("status")? {
            "COMPLETED" => tally.completed(),
            "VOIDED" if !tally.is_captured() => PaymentState::Canceled,
            _ => tally.open(),
        };
        let mut events = vec![teller.payment(order, state, &tally)?];
        for capture in &captures {
            events.push(teller.capture(capture)?);
            if capture_state(capture) == CaptureState::Succeeded {
                paid.push(id_at(capture, "id")?);
            }
        }
        for refund in shown.iter().flat_map(|unit| &unit.refunds) {
            events.push(teller.refund(refund)?);
        }
        if let Some(amount) = refunded_in_all(&shown)? {
            events.push(teller.refund_total(amount));
        }
        let next = (!paid.is_empty()).then(|| Step::Disputes { payment, captures: paid }.to_string());
        Ok(Answer { next, ..answer_of(events) })
    }

    /// A capture by itself.
    fn capture(&self, capture: &Node<'_>, payment: Option<&str>) -> Result<Answer, ReadError> {
        let id = id_at(capture, "id")?;
        let authorization = match related(capture, "authorization_id")? {
            Some(authorization) => Some(authorization),
            None => linked(capture, "up", "/authorizations/")?,
        };
        let payment = payment.or(authorization).unwrap_or(id);
        let teller = Teller { look: self, payment, order: self.shops_order(capture) };
        let unit = Unit { authorizations: Vec::new(), captures: vec![capture.clone()], refunds: Vec::new() };
        let mut tally = Tally::default();
        tally.add(&unit)?;
        // Of an authorisation there may be more captures: PayPal does not say by the capture alone.
        tally.more_to_come |= authorization.is_some() && capture.optional_bool("final_capture")? != Some(true);
        let mut events = vec![teller.payment(capture, tally.completed(), &tally)?, teller.capture(capture)?];
        if capture.text("status") != Some("PARTIALLY_REFUNDED")
            && authorization.is_none()
            && let Some(amount) = refunded_in_all(&[unit])?
        {
            events.push(teller.refund_total(amount));
        }
        if capture_state(capture) != CaptureState::Succeeded {
            return Ok(answer_of(events));
        }
        let next = match self.subject.refund() {
            Some(refund) => Step::Refund { id: refund, payment },
            None => Step::Disputes { payment, captures: vec![id] },
        };
        Ok(go_on(events, &next))
    }

    /// An authorisation by itself.
    fn authorization(&self, authorization: &Node<'_>, payment: Option<&str>) -> Result<Answer, ReadError> {
        let payment = payment.unwrap_or(id_at(authorization, "id")?);
        let teller = Teller { look: self, payment, order: self.shops_order(authorization) };
        let mut tally = Tally::default();
        tally.add(&Unit { authorizations: vec![authorization.clone()], captures: Vec::new(), refunds: Vec::new() })?;
        Ok(answer_of(vec![teller.payment(authorization, tally.completed(), &tally)?]))
    }

    fn shops_order<'a>(&self, object: &Node<'a>) -> Option<&'a str> {
        telling::order(object, self.account, &[&["custom_id"], &["invoice_id"]])
    }

    /// When an object was changed last. Of what PayPal gives no time, when it said so.
    fn changed(&self, object: &Node<'_>) -> Result<Timestamp, Problem> {
        let Some(_) = object.optional("update_time") else { return Ok(self.at) };
        Ok(telling::time(object, "update_time")?.min(self.at))
    }
}

/// Tells of one payment.
struct Teller<'t> {
    look: &'t Look<'t>,
    payment: &'t str,
    order: Option<&'t str>,
}

impl Teller<'_> {
    /// The payment as a whole; `of` is what PayPal showed.
    fn payment(&self, of: &Node<'_>, state: PaymentState, tally: &Tally) -> Result<PaymentEvent, Problem> {
        let (failure, failed_at) = tally.failure.as_ref().map_or((None, None), |(failure, of)| (Some(failure.clone()), *of));
        let fact = PaymentFact {
            authorized: tally.held,
            capture_final: tally.is_captured() && !tally.more_to_come,
            failure,
            ..PaymentFact::new(state)
        };
        // A failure is told with the time of what failed, so that to hear of it again changes nothing.
        let at = match failed_at {
            Some(at) => at.min(self.look.at),
            None => self.look.changed(of)?,
        };
        let version = self.look.at;
        Ok(self.tell("payment", self.payment, (at, version), Vec::new(), Fact::Payment(fact)))
    }

    fn capture(&self, capture: &Node<'_>) -> Result<PaymentEvent, Problem> {
        let id = id_at(capture, "id")?;
        let amount = money(capture, "amount")?;
        let fact = Fact::Capture { id: id.to_owned(), state: capture_state(capture), amount };
        Ok(self.tell(CAPTURE, id, self.once(capture)?, Vec::new(), fact))
    }

    fn refund(&self, refund: &Node<'_>) -> Result<PaymentEvent, Problem> {
        let id = id_at(refund, "id")?;
        let created = refund.optional("create_time").map(|_| telling::time(refund, "create_time")).transpose()?;
        let capture = linked(refund, "up", "/captures/")?.map(|capture| Reference::new(ReferenceKind::Capture, capture));
        let fact = Fact::Refund { id: id.to_owned(), state: refund_state(refund), amount: money(refund, "amount")?, created };
        Ok(self.tell(REFUND, id, self.once(refund)?, capture.into_iter().collect(), fact))
    }

    fn refund_total(&self, amount: Money) -> PaymentEvent {
        self.tell("refunds", self.payment, (self.look.at, self.look.at), Vec::new(), Fact::RefundTotal { amount })
    }

    /// The dispute, as far as it is about this capture: of several transactions each has its own amount.
    fn dispute(&self, dispute: &Node<'_>, capture: &str) -> Result<PaymentEvent, Problem> {
        let id = id_at(dispute, "dispute_id")?;
        let transactions = list(dispute, "disputed_transactions")?;
        let own = transactions.iter().find(|transaction| transaction.text("seller_transaction_id") == Some(capture));
        let several = transactions.len() > 1;
        let amount = match own.filter(|own| several && own.optional("gross_amount").is_some()) {
            Some(own) => money(own, "gross_amount")?,
            None => money(dispute, "dispute_amount")?,
        };
        let name = if several { format!("{id}:{capture}") } else { id.to_owned() };
        let others = vec![Reference::new(ReferenceKind::Capture, capture)];
        let fact = Fact::Dispute { id: name.clone(), state: dispute_state(dispute), amount };
        Ok(self.tell(DISPUTE, &name, self.once(dispute)?, others, fact))
    }

    /// The object's own time, as the fact's time and its version.
    fn once(&self, object: &Node<'_>) -> Result<(Timestamp, Timestamp), Problem> {
        self.look.changed(object).map(|at| (at, at))
    }

    fn tell(
        &self,
        kind: &'static str,
        id: &str,
        (at, version): (Timestamp, Timestamp),
        mut others: Vec<Reference>,
        fact: Fact,
    ) -> PaymentEvent {
        // A shop may have named the payment by its capture.
        if let Subject::Payment(asked) = self.look.subject {
            others.push(Reference::new(ReferenceKind::Payment, asked));
        }
        Telling {
            event_id: format!("{kind}:{id}"),
            event_type: &format!("poll:{kind}"),
            at,
            mode: None,
            order: self.order,
            payment_id: self.payment,
            others,
            version: FactVersion::Time(version.millis()),
            fact,
        }
        .answer(self.look.account, self.look.asked)
    }
}

/// What belongs to one purchase unit.
struct Unit<'a> {
    authorizations: Vec<Node<'a>>,
    captures: Vec<Node<'a>>,
    refunds: Vec<Node<'a>>,
}

/// What authorisations and captures amount to.
#[derive(Default)]
struct Tally {
    /// Of each of them.
    states: BTreeSet<PaymentState>,
    /// Some unit may still be captured, or more of it.
    more_to_come: bool,
    /// All that is or was authorised.
    held: Option<Money>,
    /// The last that is listed, and when PayPal changed what failed.
    failure: Option<(Failure, Option<Timestamp>)>,
}

impl Tally {
    fn add(&mut self, unit: &Unit<'_>) -> Result<(), Problem> {
        let (mut held, mut may_capture): (Option<Money>, bool) = (None, false);
        for authorization in &unit.authorizations {
            match authorization.name("status")? {
                status @ ("CREATED" | "PARTIALLY_CAPTURED" | "CAPTURED") => {
                    self.states.insert(PaymentState::Authorized);
                    may_capture |= status != "CAPTURED";
                    // An authorisation that was renewed is listed twice; it is for the same money.
                    held = held.max(Some(money(authorization, "amount")?));
                }
                "DENIED" => self.fail(authorization)?,
                "VOIDED" => _ = self.states.insert(PaymentState::Canceled),
                "EXPIRED" => _ = self.states.insert(PaymentState::AuthorizationExpired),
                _ => {
                    self.states.insert(PaymentState::Pending);
                    may_capture = true;
                }
            }
        }
        let mut is_final = false;
        for capture in &unit.captures {
            match capture_state(capture) {
                CaptureState::Succeeded => {
                    self.states.insert(PaymentState::Captured);
                    is_final |= capture.optional_bool("final_capture")? == Some(true);
                }
                CaptureState::Pending => {
                    self.states.insert(PaymentState::Pending);
                    may_capture = true;
                }
                CaptureState::Failed => self.fail(capture)?,
            }
        }
        if let Some(held) = held {
            self.held = Some(sum(self.held, held).ok_or_else(|| unit.authorizations[0].problem("amounts that do not add up"))?);
        }
        let is_empty = unit.authorizations.is_empty() && unit.captures.is_empty();
        self.more_to_come |= is_empty || (may_capture && !is_final);
        Ok(())
    }

    fn fail(&mut self, object: &Node<'_>) -> Result<(), Problem> {
        let reason = object.optional("status_details").and_then(|details| details.text("reason"));
        let at = object.optional("update_time").map(|_| telling::time(object, "update_time")).transpose()?;
        self.states.insert(PaymentState::Failed);
        self.failure = Some((telling::failure(reason.or(object.text("status")), None), at));
        Ok(())
    }

    fn is_captured(&self) -> bool {
        self.states.contains(&PaymentState::Captured)
    }

    /// Of what is open: a failure may be followed by another try.
    fn open(&self) -> PaymentState {
        self.first_of(&[PaymentState::Captured, PaymentState::Authorized])
    }

    /// Of what PayPal did all with that it was told to.
    fn completed(&self) -> PaymentState {
        use PaymentState::{AuthorizationExpired, Authorized, Canceled, Captured, Failed, Pending};
        self.first_of(&[Captured, Authorized, Pending, Failed, Canceled, AuthorizationExpired])
    }

    fn first_of(&self, states: &[PaymentState]) -> PaymentState {
        states.iter().copied().find(|state| self.states.contains(state)).unwrap_or(PaymentState::Pending)
    }
}

/// Refunded so far, if anything was captured: of a capture that is refunded as a whole its amount, of all others the refunds
/// that stand.
fn refunded_in_all(units: &[Unit<'_>]) -> Result<Option<Money>, Problem> {
    let mut total: Option<Money> = None;
    for unit in units {
        let mut standing: Vec<(Option<&str>, Money)> = Vec::new();
        for refund in &unit.refunds {
            if refund_state(refund) != RefundState::Failed {
                standing.push((linked(refund, "up", "/captures/")?, money(refund, "amount")?));
            }
        }
        for capture in &unit.captures {
            if capture_state(capture) != CaptureState::Succeeded {
                continue;
            }
            let (id, amount) = (id_at(capture, "id")?, money(capture, "amount")?);
            let mut refunded = Money::new(0, amount.currency);
            standing.retain(|(of, money)| {
                let of_this = *of == Some(id) || of.is_none();
                if of_this && money.currency == amount.currency {
                    refunded.minor = refunded.minor.saturating_add(money.minor);
                }
                !of_this
            });
            if matches!(capture.text("status"), Some("REFUNDED" | "REVERSED")) {
                refunded.minor = refunded.minor.max(amount.minor);
            }
            total = Some(sum(total, refunded).ok_or_else(|| capture.problem("amounts that do not add up"))?);
        }
    }
    Ok(total)
}

/// The ids of a capture's disputes; then the first of them, else the disputes of the next capture.
fn disputes(page: &Node<'_>, payment: &str, captures: Vec<&str>) -> Result<Answer, ReadError> {
    let items = list(page, "items")?;
    if items.len() >= DISPUTES_MAX {
        return Err(page.problem("more disputes than a capture has").into());
    }
    let found = items.iter().map(|item| id_at(item, "dispute_id")).collect::<Result<Vec<_>, _>>()?;
    let next = after(payment, captures, found);
    Ok(Answer { next: next.map(|step| step.to_string()), ..answer_of(Vec::new()) })
}

/// The next of these disputes of the first capture, else the disputes of the next capture.
fn after<'a>(payment: &'a str, mut captures: Vec<&'a str>, disputes: Vec<&'a str>) -> Option<Step<'a>> {
    if !disputes.is_empty() {
        return Some(Step::Dispute { payment, captures, disputes });
    }
    captures.remove(0);
    (!captures.is_empty()).then_some(Step::Disputes { payment, captures })
}

fn capture_state(capture: &Node<'_>) -> CaptureState {
    match capture.text("status") {
        Some("COMPLETED" | "PARTIALLY_REFUNDED" | "REFUNDED" | "REVERSED") => CaptureState::Succeeded,
        Some("DECLINED" | "FAILED" | "DENIED") => CaptureState::Failed,
        _ => CaptureState::Pending,
    }
}

fn refund_state(refund: &Node<'_>) -> RefundState {
    match refund.text("status") {
        Some("COMPLETED") => RefundState::Succeeded,
        Some("FAILED" | "CANCELLED") => RefundState::Failed,
        _ => RefundState::Pending,
    }
}

fn dispute_state(dispute: &Node<'_>) -> DisputeState {
    let is_inquiry = dispute.text("dispute_life_cycle_stage") == Some("INQUIRY");
    let outcome = dispute.optional("dispute_outcome").and_then(|outcome| outcome.text("outcome_code"));
    match (dispute.text("status"), outcome) {
        (Some("RESOLVED"), Some("RESOLVED_BUYER_FAVOUR" | "ACCEPTED")) => DisputeState::Lost,
        (Some("RESOLVED"), Some("RESOLVED_SELLER_FAVOUR" | "CANCELED_BY_BUYER" | "DENIED" | "RESOLVED_WITH_PAYOUT")) => {
            if is_inquiry {
                DisputeState::InquiryClosed
            } else {
                DisputeState::Won
            }
        }
        _ if is_inquiry => DisputeState::Inquiry,
        _ => DisputeState::Open,
    }
}

/// PayPal's amounts: an object of a decimal string and its currency.
fn money(object: &Node<'_>, key: &str) -> Result<Money, Problem> {
    object.object(key)?.decimal_money("value", "currency_code")
}

/// `None`: they are of two currencies, or too large.
fn sum(one: Option<Money>, other: Money) -> Option<Money> {
    let Some(one) = one else { return Some(other) };
    let minor = one.minor.checked_add(other.minor).filter(|_| one.currency == other.currency)?;
    Some(Money::new(minor, one.currency))
}

/// The elements of an array that may be absent.
fn list<'a>(object: &Node<'a>, key: &str) -> Result<Vec<Node<'a>>, Problem> {
    if object.optional(key).is_some() { object.array(key) } else { Ok(Vec::new()) }
}

fn is_about(object: &Node<'_>, key: &str, id: &str) -> Result<(), Problem> {
    if object.name(key)? == id {
        return Ok(());
    }
    Err(object.required(key)?.problem("another object than was asked for"))
}

fn answer_of(events: Vec<PaymentEvent>) -> Answer {
    Answer { events, unread: Vec::new(), next: None }
}

fn go_on(events: Vec<PaymentEvent>, next: &Step<'_>) -> Answer {
    Answer { next: Some(next.to_string()), ..answer_of(events) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::tests::NOW_S;
    use super::super::super::{AskError, Psp as _};
    use super::super::PayPal;
    use super::super::tests::specimen;
    use super::*;

    const DATE: &str = "Mon, 21 Sep 2026 14:13:25 GMT";
    const ORDER_ID: &str = "5O190127TN364715T";
    const CAPTURE_ID: &str = "42311647XV020574X";
    const AUTHORIZATION_ID: &str = "24B76447NN600461P";
    const REFUND_ID: &str = "1Y107995YT783435V";

    fn read(payment_id: &str, cursor: Option<&str>, status: u16, body: &[u8]) -> Result<Answer, ReadError> {
        let response = Response::builder().status(status).header("date", DATE).body(Bytes::copy_from_slice(body)).unwrap();
        let asked = Asked { payment_id, cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-7" };
        PayPal.read_status(&asked, &response, &specimen().account(&["4JH86294D6297924G"]))
    }

    fn read_json(payment_id: &str, cursor: Option<&str>, body: &Value) -> Result<Answer, ReadError> {
        read(payment_id, cursor, 200, body.to_string().as_bytes())
    }

    fn not_found(payment_id: &str, cursor: Option<&str>) -> Result<Option<String>, ReadError> {
        read(payment_id, cursor, 404, br#"{"name":"RESOURCE_NOT_FOUND"}"#).map(|answer| {
            assert!(answer.events.is_empty(), "what is not found says nothing");
            answer.next
        })
    }

    fn of_state(answer: &Answer) -> (PaymentState, bool) {
        match &answer.events[0].fact {
            Fact::Payment(fact) => (fact.state, fact.capture_final),
            other => panic!("{other:?}"),
        }
    }

    fn refunded(answer: &Answer) -> Option<i64> {
        answer
            .events
            .iter()
            .find_map(|event| if let Fact::RefundTotal { amount } = event.fact { Some(amount.minor) } else { None })
    }

    fn amount(value: &str) -> Value {
        json!({"currency_code": "EUR", "value": value})
    }

    fn part(id: &str, status: &str) -> Value {
        json!({"id": id, "status": status, "amount": amount("50.00")})
    }

    fn order(status: &str, payments: &Value) -> Value {
        json!({"id": ORDER_ID, "status": status, "purchase_units": [{"custom_id": "ORD-1", "payments": payments}]})
    }

    #[test]
    fn answers_read_as_recorded() {
        macro_rules! recorded {
            ($name:literal, $payment:expr, $cursor:expr, $next:expr) => {
                let body = include_bytes!(concat!("../fixtures/paypal/answers/", $name, ".json"));
                let answer = read($payment, $cursor, 200, body).unwrap();
                assert_eq!(answer.next.as_deref(), $next, $name);
                insta::assert_json_snapshot!(concat!("paypal-answer-", $name), answer.events);
            };
        }
        recorded!("order.captured", ORDER_ID, None, Some("disputes:5O190127TN364715T:42311647XV020574X"));
        recorded!("order.authorized", ORDER_ID, None, Some("disputes:5O190127TN364715T:C2"));
        recorded!("order.declined", ORDER_ID, None, None);
        recorded!("capture.alone", "capture:42311647XV020574X:1Y107995YT783435V", None, Some("refund:42311647XV020574X"));
        recorded!(
            "refund",
            "capture:42311647XV020574X:1Y107995YT783435V",
            Some("refund:42311647XV020574X"),
            Some("disputes:42311647XV020574X:42311647XV020574X")
        );
        recorded!("authorization.alone", "authorization:24B76447NN600461P", None, None);
        recorded!(
            "disputes",
            ORDER_ID,
            Some("disputes:5O190127TN364715T:42311647XV020574X"),
            Some("dispute:5O190127TN364715T:42311647XV020574X:PP-D-4012,PP-D-4013")
        );
        recorded!(
            "dispute",
            ORDER_ID,
            Some("dispute:5O190127TN364715T:42311647XV020574X:PP-D-4012,PP-D-4013"),
            Some("dispute:5O190127TN364715T:42311647XV020574X:PP-D-4013")
        );
    }

    /// The same money stands under the order's id, whatever was asked about.
    #[test]
    fn whatever_is_asked_about_leads_to_the_order() {
        let capture = json!({"id": CAPTURE_ID, "status": "COMPLETED", "amount": amount("50.00"),
            "supplementary_data": {"related_ids": {"order_id": ORDER_ID, "authorization_id": AUTHORIZATION_ID}}});
        let held = json!({"id": AUTHORIZATION_ID, "status": "CREATED", "amount": amount("50.00"),
            "supplementary_data": {"related_ids": {"order_id": ORDER_ID}}});
        let whole = order("COMPLETED", &json!({"captures": [part(CAPTURE_ID, "COMPLETED")]}));
        let by_capture = format!("capture:{CAPTURE_ID}");
        let by_refund = format!("capture:{CAPTURE_ID}:{REFUND_ID}");
        let by_authorization = format!("authorization:{AUTHORIZATION_ID}");
        for (asked, cursor, first, kind) in [
            (by_capture.as_str(), None, &capture, "capture"),
            (&by_refund, None, &capture, "capture"),
            (CAPTURE_ID, Some("capture"), &capture, "capture"),
            (&by_authorization, None, &held, "authorization"),
            (AUTHORIZATION_ID, Some("authorization"), &held, "authorization"),
        ] {
            let answer = read_json(asked, cursor, first).unwrap();
            assert_eq!(answer.events, [], "{asked}: nothing is told before it is known of what");
            let next = format!("order:{ORDER_ID}:{kind}");
            assert_eq!(answer.next.as_ref(), Some(&next));
            let answer = read_json(asked, Some(&next), &whole).unwrap();
            assert!(answer.events.iter().all(|event| event.payment_id == ORDER_ID), "{asked}");
            assert_eq!(answer.next, Some(format!("disputes:{ORDER_ID}:{CAPTURE_ID}")));
            let named = Reference::new(ReferenceKind::Payment, asked);
            assert_eq!(answer.events[0].references.contains(&named), !asked.contains(':'), "{asked}: as the shop named it");
        }
    }

    #[test]
    fn what_is_not_found_may_be_something_else() {
        assert_eq!(not_found(ORDER_ID, None), Ok(Some("capture".to_owned())));
        assert_eq!(not_found(ORDER_ID, Some("capture")), Ok(Some("authorization".to_owned())));
        assert_eq!(not_found(ORDER_ID, Some("authorization")), Err(ReadError::NotFound));
        assert_eq!(not_found("capture:1", None), Err(ReadError::NotFound));
        assert_eq!(not_found("authorization:1", None), Err(ReadError::NotFound));
        assert_eq!(not_found("capture:1:2", Some("refund:1")), Err(ReadError::NotFound));
        // An order that PayPal no longer shows: its capture is told under its id.
        let cursor = format!("order:{ORDER_ID}:capture");
        assert_eq!(not_found("capture:1:2", Some(&cursor)), Ok(Some(format!("capture:{ORDER_ID}"))));
        let capture = json!({"id": "1", "status": "REFUNDED", "amount": amount("50.00"), "invoice_id": "INV-1",
            "supplementary_data": {"related_ids": {"order_id": ORDER_ID}}});
        let answer = read_json("capture:1:2", Some(&format!("capture:{ORDER_ID}")), &capture).unwrap();
        assert!(answer.events.iter().all(|event| event.payment_id == ORDER_ID));
        assert_eq!((refunded(&answer), answer.next), (Some(5000), Some(format!("refund:{ORDER_ID}"))));
        let cursor = format!("order:{ORDER_ID}:authorization");
        assert_eq!(not_found("authorization:1", Some(&cursor)), Ok(Some(format!("authorization:{ORDER_ID}"))));
        // Other errors are errors, and nobody's end.
        for (status, cursor) in [(500, None), (429, None), (401, None), (403, None), (403, Some("capture"))] {
            assert!(read(ORDER_ID, cursor, status, b"").is_err(), "{status}");
        }
    }

    #[test]
    fn without_an_order_the_authorisation_is_the_payment_and_else_the_capture() {
        let alone = part(CAPTURE_ID, "COMPLETED");
        let answer = read_json(CAPTURE_ID, Some("capture"), &alone).unwrap();
        assert!(answer.events.iter().all(|event| event.payment_id == CAPTURE_ID));
        assert_eq!((of_state(&answer), refunded(&answer)), ((PaymentState::Captured, true), Some(0)));
        let mut linked = part(CAPTURE_ID, "COMPLETED");
        linked["links"] = json!([{"rel": "up", "href": "https://api.paypal.com/v2/payments/authorizations/24B76447NN600461P"}]);
        let answer = read_json(&format!("capture:{CAPTURE_ID}"), None, &linked).unwrap();
        assert!(answer.events.iter().all(|event| event.payment_id == AUTHORIZATION_ID));
        // There may be other captures of it, with refunds of their own.
        assert_eq!((of_state(&answer), refunded(&answer)), ((PaymentState::Captured, false), None));
        let partly = part(CAPTURE_ID, "PARTIALLY_REFUNDED");
        assert_eq!(refunded(&read_json(CAPTURE_ID, Some("capture"), &partly).unwrap()), None, "how much, only the refunds say");
    }

    #[test]
    fn a_status_is_a_state_and_an_unknown_one_is_pending() {
        use PaymentState::{AuthorizationExpired, Authorized, Canceled, Captured, Failed, Pending};
        let captures = |statuses: &[&str]| {
            let all: Vec<Value> = statuses.iter().enumerate().map(|(n, status)| part(&format!("C{n}"), status)).collect();
            json!({ "captures": all })
        };
        let held = |status: &str| json!({"authorizations": [part(AUTHORIZATION_ID, status)]});
        let both = |status: &str, capture: &str, last: bool| {
            let mut capture = part(CAPTURE_ID, capture);
            capture["final_capture"] = last.into();
            json!({"authorizations": [part(AUTHORIZATION_ID, status)], "captures": [capture]})
        };
        for (status, payments, expected) in [
            ("CREATED", json!({}), (Pending, false)),
            ("SAVED", json!({}), (Pending, false)),
            ("APPROVED", json!({}), (Pending, false)),
            ("PAYER_ACTION_REQUIRED", json!({}), (Pending, false)),
            ("DREAMING", captures(&["DECLINED"]), (Pending, false)),
            ("VOIDED", json!({}), (Canceled, false)),
            ("COMPLETED", json!({}), (Pending, false)),
            ("COMPLETED", captures(&["COMPLETED"]), (Captured, true)),
            ("COMPLETED", captures(&["PARTIALLY_REFUNDED"]), (Captured, true)),
            ("COMPLETED", captures(&["REFUNDED"]), (Captured, true)),
            ("COMPLETED", captures(&["PENDING"]), (Pending, false)),
            ("COMPLETED", captures(&["DREAMING"]), (Pending, false)),
            ("COMPLETED", captures(&["DECLINED"]), (Failed, false)),
            ("COMPLETED", captures(&["FAILED"]), (Failed, false)),
            ("COMPLETED", captures(&["DECLINED", "COMPLETED"]), (Captured, true)),
            ("COMPLETED", captures(&["PENDING", "COMPLETED"]), (Captured, false)),
            ("COMPLETED", captures(&["DECLINED", "PENDING"]), (Pending, false)),
            ("APPROVED", captures(&["DECLINED"]), (Pending, false)),
            ("COMPLETED", held("CREATED"), (Authorized, false)),
            ("COMPLETED", held("PENDING"), (Pending, false)),
            ("COMPLETED", held("DREAMING"), (Pending, false)),
            ("COMPLETED", held("DENIED"), (Failed, false)),
            ("COMPLETED", held("VOIDED"), (Canceled, false)),
            ("COMPLETED", held("EXPIRED"), (AuthorizationExpired, false)),
            ("COMPLETED", both("CAPTURED", "COMPLETED", false), (Captured, true)),
            ("COMPLETED", both("PARTIALLY_CAPTURED", "COMPLETED", false), (Captured, false)),
            ("COMPLETED", both("PARTIALLY_CAPTURED", "COMPLETED", true), (Captured, true)),
            ("COMPLETED", both("VOIDED", "COMPLETED", false), (Captured, true)),
            ("COMPLETED", both("CAPTURED", "DECLINED", true), (Authorized, false)),
        ] {
            let answer = read_json(ORDER_ID, None, &order(status, &payments)).unwrap();
            assert_eq!(of_state(&answer), expected, "{status} {payments}");
            assert_eq!(answer.next.is_some(), expected.0 == Captured, "{status} {payments}");
        }
    }

    #[test]
    fn refunds_come_singly_and_in_all() {
        let refund = |id: &str, status: &str, value: &str, of: &str| {
            json!({"id": id, "status": status, "amount": amount(value),
                "links": [{"rel": "up", "href": format!("https://api.paypal.com/v2/payments/captures/{of}")}]})
        };
        let told = |captures: Value, refunds: Value| {
            let answer =
                read_json(ORDER_ID, None, &order("COMPLETED", &json!({"captures": captures, "refunds": refunds}))).unwrap();
            let singles: Vec<(String, RefundState)> = answer
                .events
                .iter()
                .filter_map(
                    |event| if let Fact::Refund { id, state, .. } = &event.fact { Some((id.clone(), *state)) } else { None },
                )
                .collect();
            (singles, refunded(&answer))
        };
        let single = |id: &str, state| (id.to_owned(), state);
        let (one, two) = (part("C1", "PARTIALLY_REFUNDED"), part("C2", "REFUNDED"));
        assert_eq!(told(json!([one]), json!([])), (vec![], Some(0)));
        assert_eq!(
            told(json!([one]), json!([refund("R1", "COMPLETED", "10.00", "C1"), refund("R2", "PENDING", "5.00", "C1")])),
            (vec![single("R1", RefundState::Succeeded), single("R2", RefundState::Pending)], Some(1500))
        );
        assert_eq!(
            told(json!([one]), json!([refund("R1", "FAILED", "10.00", "C1"), refund("R2", "CANCELLED", "5.00", "C1")])),
            (vec![single("R1", RefundState::Failed), single("R2", RefundState::Failed)], Some(0)),
            "the figure takes back what an earlier one counted"
        );
        assert_eq!(
            told(json!([one, two]), json!([refund("R1", "COMPLETED", "10.00", "C1")])),
            (vec![single("R1", RefundState::Succeeded)], Some(6000)),
            "a capture may be refunded by a refund that is not listed"
        );
        assert_eq!(told(json!([part("C1", "REVERSED")]), json!([])), (vec![], Some(5000)), "PayPal took it back");
        assert_eq!(told(json!([part("C1", "PENDING")]), json!([])), (vec![], None), "nothing was captured");
    }

    #[test]
    fn disputes_stand_as_their_outcome_and_stage_say() {
        use DisputeState::{Inquiry, InquiryClosed, Lost, Open, Won};
        let cursor = format!("dispute:{ORDER_ID}:{CAPTURE_ID}:PP-D-1");
        let dispute = |status: &str, stage: &str, outcome: Option<&str>| {
            json!({"dispute_id": "PP-D-1", "status": status, "dispute_life_cycle_stage": stage,
                "dispute_outcome": outcome.map(|code| json!({"outcome_code": code})), "dispute_amount": amount("50.00"),
                "disputed_transactions": [{"seller_transaction_id": CAPTURE_ID}]})
        };
        for (status, stage, outcome, expected) in [
            ("OPEN", "INQUIRY", None, Inquiry),
            ("WAITING_FOR_SELLER_RESPONSE", "CHARGEBACK", None, Open),
            ("UNDER_REVIEW", "PRE_ARBITRATION", None, Open),
            ("OTHER", "ARBITRATION", None, Open),
            ("OPEN", "DREAMING", None, Open),
            ("RESOLVED", "CHARGEBACK", Some("RESOLVED_SELLER_FAVOUR"), Won),
            ("RESOLVED", "CHARGEBACK", Some("CANCELED_BY_BUYER"), Won),
            ("RESOLVED", "CHARGEBACK", Some("DENIED"), Won),
            ("RESOLVED", "CHARGEBACK", Some("RESOLVED_WITH_PAYOUT"), Won),
            ("RESOLVED", "CHARGEBACK", Some("RESOLVED_BUYER_FAVOUR"), Lost),
            ("RESOLVED", "INQUIRY", Some("ACCEPTED"), Lost),
            ("RESOLVED", "INQUIRY", Some("CANCELED_BY_BUYER"), InquiryClosed),
            ("RESOLVED", "CHARGEBACK", Some("NONE"), Open),
            ("RESOLVED", "CHARGEBACK", None, Open),
        ] {
            let answer = read_json(ORDER_ID, Some(&cursor), &dispute(status, stage, outcome)).unwrap();
            let Fact::Dispute { id, state, amount } = &answer.events[0].fact else { panic!() };
            assert_eq!((id.as_str(), *state, amount.minor), ("PP-D-1", expected, 5000), "{status} {stage} {outcome:?}");
            assert_eq!(answer.next, None);
        }
        // Of several transactions each has its own amount, and its own place.
        let mut several = dispute("OPEN", "CHARGEBACK", None);
        several["disputed_transactions"] = json!([
            {"seller_transaction_id": "C9", "gross_amount": amount("20.00")},
            {"seller_transaction_id": CAPTURE_ID, "gross_amount": amount("30.00")}
        ]);
        let answer = read_json(ORDER_ID, Some(&cursor), &several).unwrap();
        let Fact::Dispute { id, amount, .. } = &answer.events[0].fact else { panic!() };
        assert_eq!((id.as_str(), amount.minor), ("PP-D-1:42311647XV020574X", 3000));
    }

    #[test]
    fn disputes_are_followed_capture_by_capture() {
        let list = |ids: &[&str]| json!({"items": ids.iter().map(|id| json!({ "dispute_id": id })).collect::<Vec<_>>()});
        let next = |cursor: &str, body: &Value| read_json(ORDER_ID, Some(cursor), body).map(|answer| answer.next);
        let after = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(next("disputes:P:C1,C2", &list(&["D1", "D2"])), after("dispute:P:C1,C2:D1,D2"));
        let dispute = json!({"dispute_id": "D2", "status": "OPEN", "dispute_amount": amount("1.00")});
        assert_eq!(next("dispute:P:C1,C2:D2", &dispute), after("disputes:P:C2"));
        assert_eq!(next("disputes:P:C2", &list(&[])), Ok(None));
        assert_eq!(next("disputes:P:C1,C2", &json!({})), after("disputes:P:C2"));
        assert!(matches!(next("dispute:P:C1:D1", &dispute), Err(ReadError::Unintelligible(_))), "another dispute");
        assert!(next("disputes:P:C1", &list(&["D"; DISPUTES_MAX])).is_err());
        for status in [403, 404] {
            let answer = read(ORDER_ID, Some("disputes:P:C1,C2"), status, b"").unwrap();
            assert_eq!((answer.events.len(), answer.next), (0, None), "hidden from this app, or none");
        }
        assert!(read(ORDER_ID, Some("disputes:P:C1"), 500, b"").is_err());
        assert!(read(ORDER_ID, Some("dispute:P:C1:D1"), 404, b"").is_err());
    }

    #[test]
    fn no_object_is_newer_than_the_answer() {
        let mut capture = part(CAPTURE_ID, "COMPLETED");
        for (update_time, version) in [
            (json!("2026-09-21T07:13:20-07:00"), 1_790_000_000_000),
            (json!("2099-01-01T00:00:00Z"), 1_790_000_005_000),
            (Value::Null, 1_790_000_005_000),
        ] {
            capture["update_time"] = update_time;
            let answer = read_json(ORDER_ID, None, &order("COMPLETED", &json!({"captures": [capture]}))).unwrap();
            let told = answer.events.iter().find(|event| matches!(event.fact, Fact::Capture { .. })).unwrap();
            assert_eq!(told.version, FactVersion::Time(version));
            assert_eq!(answer.events[0].version, FactVersion::Time(1_790_000_005_000), "the sum is as of the answer");
        }
    }

    #[test]
    fn an_answer_about_something_else_is_no_answer() {
        for (asked, cursor, body) in [
            (ORDER_ID, None, order("CREATED", &json!({})).to_string().replace(ORDER_ID, "9")),
            (ORDER_ID, None, "{}".to_owned()),
            (ORDER_ID, None, "<html>".to_owned()),
            (ORDER_ID, None, json!({ "id": ORDER_ID }).to_string()),
            ("capture:1", None, part("2", "COMPLETED").to_string()),
            ("authorization:1", None, part("2", "CREATED").to_string()),
            ("capture:1:2", Some("refund:1"), part("2", "COMPLETED").to_string()),
            (
                ORDER_ID,
                None,
                order("COMPLETED", &json!({"captures": vec![part("1", "COMPLETED"); CAPTURES_MAX + 1]})).to_string(),
            ),
            (ORDER_ID, None, order("COMPLETED", &json!({"captures": [{"id": "1", "status": "COMPLETED"}]})).to_string()),
            (ORDER_ID, None, order("COMPLETED", &json!({"captures": {}})).to_string()),
        ] {
            let answer = read(asked, cursor, 200, body.as_bytes());
            assert!(matches!(answer, Err(ReadError::Unintelligible(_))), "{body}: {answer:?}");
        }
    }

    #[test]
    fn steps_are_their_cursors() {
        for (asked, cursor) in [
            ("5O19", "capture"),
            ("5O19", "authorization"),
            ("capture:1", "order:5O19:capture"),
            ("authorization:1", "order:5O19:authorization"),
            ("capture:1", "capture:5O19"),
            ("authorization:1", "authorization:5O19"),
            ("capture:1:2", "refund:1"),
            ("5O19", "disputes:5O19:1,2"),
            ("5O19", "dispute:5O19:1,2:PP-D-1,PP-D-2"),
        ] {
            let subject = Subject::of(asked).unwrap();
            assert_eq!(subject.to_string(), asked);
            assert_eq!(Step::of(&subject, Some(cursor)).unwrap().to_string(), cursor);
        }
        assert_eq!(
            PayPal.status_request("5O19", Some("refund:1"), &specimen().account(&[])).unwrap_err(),
            AskError::MalformedId("refund:1".to_owned()),
            "no refund was asked about"
        );
    }
}
