//! An order is a join of facts. No async, no clock, no I/O (design decision 4).
//!
//! Each object of a PSP has one register; facts merge into it commutatively, associatively and idempotently, so the
//! order depends on the *set* of facts known, never on their order, number or route (invariant I4). Statuses, amounts
//! and review are a pure function of the registers ([`Registers::view`]).
//!
//! | register | holds | two facts merge by |
//! |---|---|---|
//! | attempt at a payment | state | rank of [`PaymentState`]: success after failure wins, failure after success does not |
//! | attempt: failures | each with its time | the earliest time that it was told, so that to hear of it again (from a poll, above all) changes nothing; the latest is shown |
//! | payment: authorised | amount | the PSP's version, then the larger amount |
//! | payment: captured in all | gross amount | the larger amount: refunds do not lower it, and a lagging answer must not |
//! | payment: capture final | yes or no | once said, it stays |
//! | capture, refund, dispute | all observed (version, state, amount) | union; the highest version counts, ties by the state's rank, then the larger amount |
//! | refund: made at | time | the earliest |
//! | payment: refunded in all | amount at a version | the PSP's version, then the larger amount |
//! | payment: test or live | fits the account or not | once it did not fit, it does not |
//!
//! Captured of a payment = the larger of the total and the sum of the single captures that stand. Refunded = the single
//! refunds that succeeded + what the latest total says beyond the singles that it counts: those made by its version that had
//! not failed by then. So a total and the singles that it sums up are one truth and never add up twice.
//!
//! The order's status: `under_review` while a review stands, else the first of [`OrderStatus`] that holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{CaptureState, DisputeState, Fact, FactVersion, Failure, PaymentEvent, PaymentState, RefundState};
use paybell_shared::money::{Currency, Money};
use serde::{Deserialize, Serialize};

/// All that is known of one order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// What the shop expects; `None` until it registers the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Money>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The accounts by which the shop said the order is paid; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<AccountKey>,
    /// Sorted by key.
    #[serde(default)]
    payments: Vec<PaymentRegisters>,
}

/// Names an account of a PSP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    pub psp: Arc<str>,
    pub account: Arc<str>,
}

/// All that is known of one payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PaymentRegisters {
    #[serde(flatten)]
    account: AccountKey,
    payment_id: String,
    /// By the attempt's id; empty where the PSP does not tell attempts apart.
    #[serde(default)]
    attempts: BTreeMap<String, Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorized: Option<Versioned<Money>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    captured: Option<Money>,
    #[serde(default)]
    capture_final: bool,
    #[serde(default)]
    captures: BTreeMap<String, History<CaptureState>>,
    #[serde(default)]
    refunds: BTreeMap<String, Refund>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refund_total: Option<Versioned<Money>>,
    #[serde(default)]
    disputes: BTreeMap<String, History<DisputeState>>,
    /// A test event on a live account, or the other way round.
    #[serde(default)]
    foreign_mode: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    state: PaymentState,
    /// Sorted by failure, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failures: Vec<(Failure, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Versioned<T> {
    version: FactVersion,
    value: T,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refund {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    history: History<RefundState>,
}

/// Everything observed of one capture, refund or dispute, sorted by version. Never empty: made with its first observation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct History<S>(Vec<Observation<S>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Observation<S> {
    version: FactVersion,
    state: S,
    amount: Money,
}

/// The order as the shop sees it, but for what depends on arrival (version, times).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub status: OrderStatus,
    pub expected: Option<Money>,
    pub authorized: i64,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    pub currency: Option<Currency>,
    pub last_failure: Option<LastFailure>,
    pub review: Option<ReviewReason>,
    pub payments: Vec<PaymentView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentView {
    #[serde(flatten)]
    pub account: AccountKey,
    pub payment_id: String,
    pub status: OrderStatus,
    pub currency: Option<Currency>,
    pub authorized: i64,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    pub last_failure: Option<LastFailure>,
    pub review: Option<ReviewReason>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastFailure {
    /// The PSP's code.
    pub code: String,
    /// The PSP's words.
    pub message: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Where an order stands. The first that holds, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    UnderReview,
    /// A dispute is lost.
    ChargedBack,
    /// A dispute is open.
    Disputed,
    /// All that was captured is refunded.
    Refunded,
    PartiallyRefunded,
    /// All that is expected is captured.
    Paid,
    PartiallyPaid,
    Authorized,
    /// An attempt is open, or none was made yet.
    Pending,
    /// The last attempt known failed; a later one may still pay.
    Failed,
    Canceled,
    Expired,
}

impl OrderStatus {
    pub const ALL: [Self; 12] = [
        Self::UnderReview,
        Self::ChargedBack,
        Self::Disputed,
        Self::Refunded,
        Self::PartiallyRefunded,
        Self::Paid,
        Self::PartiallyPaid,
        Self::Authorized,
        Self::Pending,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnderReview => "under_review",
            Self::ChargedBack => "charged_back",
            Self::Disputed => "disputed",
            Self::Refunded => "refunded",
            Self::PartiallyRefunded => "partially_refunded",
            Self::Paid => "paid",
            Self::PartiallyPaid => "partially_paid",
            Self::Authorized => "authorized",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
        }
    }
}

/// Why a person must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReviewReason {
    /// Captured is not what the shop expects.
    AmountMismatch,
    /// Money was captured in another currency.
    CurrencyMismatch,
    /// Test money on a live account, or the other way round.
    ModeMismatch,
    /// Money was captured by an account that the shop did not name.
    AccountMismatch,
}

impl Registers {
    /// Joins one fact. `foreign_mode`: the event's mode is not its account's. `true` if it added what was not known.
    pub fn join(&mut self, event: &PaymentEvent, foreign_mode: bool) -> bool {
        let payment = self.payment_mut(&event.key.psp, &event.key.account, &event.payment_id);
        let was_new = payment.is_blank();
        let mode_changed = foreign_mode && !std::mem::replace(&mut payment.foreign_mode, true);
        let version = event.version;
        let changed = match &event.fact {
            Fact::Payment(fact) => {
                let attempt = fact.attempt.clone().unwrap_or_default();
                let failure = fact.failure.clone().map(|failure| (failure, event.occurred_at));
                let state_changed = payment.join_attempt(attempt, fact.state, failure);
                let authorized = fact.authorized.map(|value| Versioned { version, value });
                let authorized_changed = raise(&mut payment.authorized, authorized);
                let captured_changed = raise(&mut payment.captured, fact.captured);
                let final_changed = fact.capture_final && !std::mem::replace(&mut payment.capture_final, true);
                state_changed | authorized_changed | captured_changed | final_changed
            }
            Fact::Capture { id, state, amount } => observe(&mut payment.captures, id, version, *state, *amount),
            Fact::Refund { id, state, amount, created } => payment.join_refund(id, version, *state, *amount, *created),
            Fact::RefundTotal { amount } => raise(&mut payment.refund_total, Some(Versioned { version, value: *amount })),
            Fact::Dispute { id, state, amount } => observe(&mut payment.disputes, id, version, *state, *amount),
        };
        was_new | mode_changed | changed
    }

    /// Makes the payment known, of which nothing has happened yet.
    pub fn add_payment(&mut self, psp: &Arc<str>, account: &Arc<str>, payment_id: &str) {
        self.payment_mut(psp, account, payment_id);
    }

    /// Names an account by which the shop expects to be paid.
    pub fn add_account(&mut self, psp: &Arc<str>, account: &Arc<str>) {
        let key = AccountKey { psp: Arc::clone(psp), account: Arc::clone(account) };
        if let Err(place) = self.accounts.binary_search(&key) {
            self.accounts.insert(place, key);
        }
    }

    /// Statuses, amounts and review, from the registers alone.
    #[must_use]
    pub fn view(&self) -> View {
        let payments: Vec<(PaymentView, &PaymentRegisters)> =
            self.payments.iter().map(|payment| (payment.view(), payment)).collect();
        let currency = self.currency(&payments);
        let mut sums = Sums::default();
        let mut review = None;
        let mut shown = Vec::with_capacity(payments.len());
        for (mut view, registers) in payments {
            let misfit = self.misfit(&view, registers, currency);
            match misfit {
                None => sums.add(&view, registers),
                Some(reason) if view.captured > 0 => {
                    view.review = Some(reason);
                    review = review.max(Some(reason));
                }
                Some(_) => {}
            }
            shown.push(view);
        }
        if self.expected.is_some_and(|expected| sums.misses(expected.minor)) {
            review = Some(ReviewReason::AmountMismatch);
        }
        let status = if review.is_some() { OrderStatus::UnderReview } else { sums.status(self.expected) };
        View {
            status,
            expected: self.expected,
            authorized: sums.authorized,
            captured: sums.captured,
            refunded: sums.refunded,
            disputed: sums.disputed,
            currency,
            last_failure: shown
                .iter()
                .filter_map(|payment| payment.last_failure.clone())
                .max_by(|a, b| (a.at, a).cmp(&(b.at, b))),
            review,
            payments: shown,
        }
    }

    /// The order's currency: the expected one, else that of captured money, else of any payment; of several the first by
    /// the alphabet, so that all orders of arrival agree.
    fn currency(&self, payments: &[(PaymentView, &PaymentRegisters)]) -> Option<Currency> {
        let of = |captured_only: bool| {
            payments.iter().filter(|(view, _)| !captured_only || view.captured > 0).filter_map(|(view, _)| view.currency).min()
        };
        self.expected.map(|expected| expected.currency).or_else(|| of(true)).or_else(|| of(false))
    }

    fn misfit(&self, view: &PaymentView, registers: &PaymentRegisters, currency: Option<Currency>) -> Option<ReviewReason> {
        if registers.foreign_mode {
            Some(ReviewReason::ModeMismatch)
        } else if !self.accounts.is_empty() && self.accounts.binary_search(&registers.account).is_err() {
            Some(ReviewReason::AccountMismatch)
        } else if view.currency.is_some() && view.currency != currency {
            Some(ReviewReason::CurrencyMismatch)
        } else {
            None
        }
    }

    fn payment_mut(&mut self, psp: &Arc<str>, account: &Arc<str>, payment_id: &str) -> &mut PaymentRegisters {
        let wanted = (&**psp, &**account, payment_id);
        let place = self.payments.binary_search_by(|other| other.key().cmp(&wanted)).unwrap_or_else(|place| {
            self.payments.insert(place, PaymentRegisters::new(psp, account, payment_id));
            place
        });
        &mut self.payments[place]
    }
}

impl PaymentRegisters {
    fn new(psp: &Arc<str>, account: &Arc<str>, payment_id: &str) -> Self {
        Self {
            account: AccountKey { psp: Arc::clone(psp), account: Arc::clone(account) },
            payment_id: payment_id.to_owned(),
            attempts: BTreeMap::new(),
            authorized: None,
            captured: None,
            capture_final: false,
            captures: BTreeMap::new(),
            refunds: BTreeMap::new(),
            refund_total: None,
            disputes: BTreeMap::new(),
            foreign_mode: false,
        }
    }

    fn key(&self) -> (&str, &str, &str) {
        (&self.account.psp, &self.account.account, &self.payment_id)
    }

    fn is_blank(&self) -> bool {
        self.attempts.is_empty()
            && self.captures.is_empty()
            && self.refunds.is_empty()
            && self.disputes.is_empty()
            && self.refund_total.is_none()
    }

    fn join_attempt(&mut self, attempt: String, state: PaymentState, failure: Option<(Failure, Timestamp)>) -> bool {
        match self.attempts.get_mut(&attempt) {
            None => {
                self.attempts.insert(attempt, Attempt { state, failures: failure.into_iter().collect() });
                true
            }
            Some(known) => {
                let state_changed = state > known.state;
                known.state = known.state.max(state);
                state_changed | failure.is_some_and(|failure| known.join_failure(failure))
            }
        }
    }

    /// The state of the payment over all its attempts. A failed attempt hides behind one that is still open, if the PSP
    /// tells them apart.
    fn state(&self) -> PaymentState {
        let highest = self.attempts.values().map(|attempt| attempt.state).max().unwrap_or(PaymentState::Pending);
        let is_open = |(id, attempt): (&String, &Attempt)| !id.is_empty() && attempt.state == PaymentState::Pending;
        if highest == PaymentState::Failed && self.attempts.iter().any(is_open) { PaymentState::Pending } else { highest }
    }

    fn captured(&self) -> i64 {
        let singles = self.captures.values().map(History::latest);
        let standing =
            sum(singles.filter(|capture| capture.state == CaptureState::Succeeded).map(|capture| capture.amount.minor));
        self.captured.map_or(0, |total| total.minor).max(standing)
    }

    fn join_refund(
        &mut self,
        id: &str,
        version: FactVersion,
        state: RefundState,
        amount: Money,
        created: Option<Timestamp>,
    ) -> bool {
        let seen = Observation { version, state, amount };
        let Some(refund) = self.refunds.get_mut(id) else {
            self.refunds.insert(id.to_owned(), Refund { created, history: History(vec![seen]) });
            return true;
        };
        let earlier = created.is_some_and(|created| refund.created.is_none_or(|known| created < known));
        if earlier {
            refund.created = created;
        }
        refund.history.add(seen) | earlier
    }

    fn refunded(&self) -> i64 {
        let latest = self.refunds.values().map(|refund| refund.history.latest());
        let standing = sum(latest.filter(|refund| refund.state == RefundState::Succeeded).map(|refund| refund.amount.minor));
        let unattributed = self.refund_total.map_or(0, |total| {
            let counted = self.refunds.values().filter_map(|refund| refund.counted_by(total.version));
            total.value.minor.saturating_sub(sum(counted)).max(0)
        });
        standing.saturating_add(unattributed)
    }

    fn disputed_in(&self, wanted: &[DisputeState]) -> Option<i64> {
        let in_state: Vec<i64> = self
            .disputes
            .values()
            .map(History::latest)
            .filter(|dispute| wanted.contains(&dispute.state))
            .map(|dispute| dispute.amount.minor)
            .collect();
        (!in_state.is_empty()).then(|| sum(in_state.into_iter()))
    }

    fn currency(&self) -> Option<Currency> {
        let captured = self.captured.map(|money| money.currency).into_iter();
        let singles = self.captures.values().map(|capture| capture.latest().amount.currency);
        let authorized = self.authorized.map(|money| money.value.currency).into_iter();
        let refund_total = self.refund_total.map(|money| money.value.currency).into_iter();
        let refunds = self.refunds.values().map(|refund| refund.history.latest().amount.currency);
        // Money that came in says the payment's currency, before money that was promised or went out.
        captured.chain(singles).min().or_else(|| authorized.min()).or_else(|| refund_total.chain(refunds).min())
    }

    fn view(&self) -> PaymentView {
        let mut sums = Sums::default();
        let state = self.state();
        let captured = self.captured();
        let released = matches!(
            state,
            PaymentState::AuthorizationExpired | PaymentState::Canceled | PaymentState::Expired | PaymentState::Failed
        );
        let authorized = if released { 0 } else { self.authorized.map_or(0, |money| money.value.minor) };
        let failures = self.attempts.values().flat_map(|attempt| &attempt.failures);
        let failure = failures.max_by(|(one, at), (other, other_at)| (at, one).cmp(&(other_at, other)));
        let mut view = PaymentView {
            account: self.account.clone(),
            payment_id: self.payment_id.clone(),
            status: OrderStatus::Pending,
            currency: self.currency(),
            authorized: authorized.max(captured),
            captured,
            refunded: self.refunded(),
            disputed: self.disputed_in(&[DisputeState::Open, DisputeState::Lost]).unwrap_or(0),
            last_failure: failure.map(|(failure, at)| LastFailure {
                code: failure.code.clone(),
                message: failure.message.clone(),
                at: *at,
            }),
            review: None,
        };
        sums.add(&view, self);
        view.status = sums.status(None);
        view
    }
}

impl Attempt {
    fn join_failure(&mut self, (failure, at): (Failure, Timestamp)) -> bool {
        match self.failures.binary_search_by(|(known, _)| known.cmp(&failure)) {
            Err(place) => {
                self.failures.insert(place, (failure, at));
                true
            }
            Ok(place) => {
                let known_at = &mut self.failures[place].1;
                let is_earlier = at < *known_at;
                *known_at = (*known_at).min(at);
                is_earlier
            }
        }
    }
}

/// What the payments that fit an order amount to.
#[derive(Default)]
struct Sums {
    authorized: i64,
    captured: i64,
    refunded: i64,
    disputed: i64,
    charged_back: bool,
    in_dispute: bool,
    /// Some payment may still bring money, or more of it.
    may_capture_more: bool,
    states: Vec<PaymentState>,
}

impl Sums {
    fn add(&mut self, view: &PaymentView, registers: &PaymentRegisters) {
        let state = registers.state();
        self.authorized = self.authorized.saturating_add(view.authorized);
        self.captured = self.captured.saturating_add(view.captured);
        self.refunded = self.refunded.saturating_add(view.refunded);
        self.disputed = self.disputed.saturating_add(view.disputed);
        self.charged_back |= registers.disputed_in(&[DisputeState::Lost]).is_some();
        self.in_dispute |= registers.disputed_in(&[DisputeState::Open]).is_some();
        self.may_capture_more |= match state {
            PaymentState::Pending | PaymentState::Authorized => true,
            PaymentState::Captured => !registers.capture_final && view.captured < view.authorized,
            // Of these only a new attempt could capture, and that would be a new fact.
            PaymentState::Failed | PaymentState::Expired | PaymentState::AuthorizationExpired | PaymentState::Canceled => false,
        };
        self.states.push(state);
    }

    /// Captured money is not what is expected, and will not become it.
    fn misses(&self, expected: i64) -> bool {
        self.captured > expected || (self.captured > 0 && self.captured < expected && !self.may_capture_more)
    }

    fn status(&self, expected: Option<Money>) -> OrderStatus {
        let any = |wanted: PaymentState| self.states.contains(&wanted);
        if self.charged_back {
            OrderStatus::ChargedBack
        } else if self.in_dispute {
            OrderStatus::Disputed
        } else if self.refunded > 0 && self.captured > 0 && self.refunded >= self.captured {
            OrderStatus::Refunded
        } else if self.refunded > 0 {
            OrderStatus::PartiallyRefunded
        } else if self.captured > 0 {
            let short = expected.map_or(self.may_capture_more, |expected| self.captured < expected.minor);
            if short { OrderStatus::PartiallyPaid } else { OrderStatus::Paid }
        } else if any(PaymentState::Authorized) {
            OrderStatus::Authorized
        } else if self.states.is_empty() || any(PaymentState::Pending) || any(PaymentState::Captured) {
            OrderStatus::Pending
        } else if any(PaymentState::Failed) {
            OrderStatus::Failed
        } else if any(PaymentState::Canceled) {
            OrderStatus::Canceled
        } else {
            OrderStatus::Expired
        }
    }
}

impl Refund {
    /// What a cumulative figure of `version` counts of this refund.
    fn counted_by(&self, version: FactVersion) -> Option<i64> {
        let made_by_then = || match (self.created, version) {
            (Some(created), FactVersion::Time(at)) => created.millis() <= at,
            _ => false,
        };
        let then = self.history.at(version).or_else(|| made_by_then().then(|| self.history.first()))?;
        (then.state != RefundState::Failed).then_some(then.amount.minor)
    }
}

impl<S: Copy + Ord> History<S> {
    /// Adds an observation; `false` if it only confirms what was known at its version.
    fn add(&mut self, seen: Observation<S>) -> bool {
        let Err(place) = self.0.binary_search(&seen) else { return false };
        let before = place.checked_sub(1).and_then(|before| self.0.get(before));
        let confirms = before.is_some_and(|other| other.state == seen.state && other.amount == seen.amount);
        self.0.insert(place, seen);
        !confirms
    }

    fn first(&self) -> Observation<S> {
        self.0[0]
    }

    /// What counts now.
    fn latest(&self) -> Observation<S> {
        self.0[self.0.len() - 1]
    }

    /// What counted at `version`; `None` if nothing was known then.
    fn at(&self, version: FactVersion) -> Option<Observation<S>> {
        let until = self.0.partition_point(|seen| seen.version <= version);
        until.checked_sub(1).map(|index| self.0[index])
    }
}

fn observe<S: Copy + Ord>(
    histories: &mut BTreeMap<String, History<S>>,
    id: &str,
    version: FactVersion,
    state: S,
    amount: Money,
) -> bool {
    let seen = Observation { version, state, amount };
    if let Some(history) = histories.get_mut(id) {
        return history.add(seen);
    }
    histories.insert(id.to_owned(), History(vec![seen]));
    true
}

/// Raises a register to `value` if that is higher; `true` if it was.
fn raise<T: Ord>(register: &mut Option<T>, value: Option<T>) -> bool {
    let higher = value > *register;
    if higher {
        *register = value;
    }
    higher
}

fn sum(amounts: impl Iterator<Item = i64>) -> i64 {
    amounts.fold(0, i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use paybell_shared::event::{EventKey, PaymentFact, Source};
    use proptest::prelude::*;

    use super::*;

    fn eur(minor: i64) -> Money {
        Money::new(minor, Currency::parse("EUR").unwrap())
    }

    fn event(at_s: i64, payment_id: &str, fact: Fact) -> PaymentEvent {
        PaymentEvent {
            key: EventKey { psp: "stripe".into(), account: "default".into(), event_id: format!("evt_{at_s}_{payment_id}") },
            event_type: String::new(),
            occurred_at: Timestamp::from_seconds(at_s),
            source: Source::Webhook,
            mode: None,
            references: Vec::new(),
            payment_id: payment_id.to_owned(),
            version: FactVersion::Time(at_s * 1000),
            fact,
        }
    }

    fn payment(state: PaymentState) -> Fact {
        Fact::Payment(PaymentFact::new(state))
    }

    fn captured(minor: i64) -> Fact {
        Fact::Payment(PaymentFact { captured: Some(eur(minor)), capture_final: true, ..PaymentFact::new(PaymentState::Captured) })
    }

    fn failed(attempt: &str, code: &str) -> Fact {
        Fact::Payment(PaymentFact {
            attempt: Some(attempt.to_owned()),
            failure: Some(Failure { code: code.to_owned(), message: String::new() }),
            ..PaymentFact::new(PaymentState::Failed)
        })
    }

    fn refund(id: &str, state: RefundState, minor: i64) -> Fact {
        Fact::Refund { id: id.to_owned(), state, amount: eur(minor), created: None }
    }

    fn dispute(state: DisputeState, minor: i64) -> Fact {
        Fact::Dispute { id: "dp_1".to_owned(), state, amount: eur(minor) }
    }

    /// An order that expects 49.99 EUR, after these facts, one a second.
    fn order_of(facts: &[(&str, Fact)]) -> Registers {
        let mut registers = Registers { expected: Some(eur(4999)), ..Registers::default() };
        for (second, (payment_id, fact)) in facts.iter().enumerate() {
            registers.join(&event(i64::try_from(second).unwrap(), payment_id, fact.clone()), false);
        }
        registers
    }

    #[track_caller]
    fn check(facts: &[(&str, Fact)], status: OrderStatus, amounts: (i64, i64, i64)) {
        let view = order_of(facts).view();
        assert_eq!((view.status, (view.captured, view.refunded, view.disputed)), (status, amounts), "{view:#?}");
    }

    #[test]
    fn what_facts_amount_to() {
        use OrderStatus as O;
        use PaymentState as P;
        let total = |minor| Fact::RefundTotal { amount: eur(minor) };
        check(&[], O::Pending, (0, 0, 0));
        check(&[("a", payment(P::Pending))], O::Pending, (0, 0, 0));
        check(&[("a", payment(P::Failed))], O::Failed, (0, 0, 0));
        check(&[("a", failed("ch_1", "x")), ("a", captured(4999))], O::Paid, (4999, 0, 0));
        check(&[("a", captured(4999)), ("a", failed("ch_1", "x"))], O::Paid, (4999, 0, 0));
        check(&[("a", captured(4999)), ("b", failed("ch_2", "x"))], O::Paid, (4999, 0, 0));
        check(&[("a", payment(P::Failed)), ("b", payment(P::Pending))], O::Pending, (0, 0, 0));
        check(&[("a", payment(P::Authorized)), ("a", payment(P::Canceled))], O::Canceled, (0, 0, 0));
        check(&[("a", payment(P::Authorized)), ("a", payment(P::AuthorizationExpired))], O::Expired, (0, 0, 0));
        check(&[("a", payment(P::Expired)), ("a", captured(4999))], O::Paid, (4999, 0, 0));
        // a total and the single refund that it sums up are one truth, whichever comes first
        let single = refund("re_1", RefundState::Succeeded, 1000);
        check(&[("a", captured(4999)), ("a", single.clone()), ("a", total(1000))], O::PartiallyRefunded, (4999, 1000, 0));
        check(&[("a", captured(4999)), ("a", total(1000))], O::PartiallyRefunded, (4999, 1000, 0));
        check(&[("a", captured(4999)), ("a", single.clone()), ("a", total(4999))], O::Refunded, (4999, 4999, 0));
        // refund failed after it had succeeded: the money is the merchant's again
        let undone = refund("re_1", RefundState::Failed, 1000);
        check(&[("a", captured(4999)), ("a", single), ("a", total(1000)), ("a", undone)], O::Paid, (4999, 0, 0));
        // a pending refund is counted by the total, but not refunded
        let pending = refund("re_1", RefundState::Pending, 1000);
        check(&[("a", captured(4999)), ("a", pending), ("a", total(1000))], O::Paid, (4999, 0, 0));
        // disputes
        check(&[("a", captured(4999)), ("a", dispute(DisputeState::Inquiry, 4999))], O::Paid, (4999, 0, 0));
        check(&[("a", captured(4999)), ("a", dispute(DisputeState::Open, 4999))], O::Disputed, (4999, 0, 4999));
        let won = [("a", captured(4999)), ("a", dispute(DisputeState::Open, 4999)), ("a", dispute(DisputeState::Won, 4999))];
        check(&won, O::Paid, (4999, 0, 0));
        let reopened = [won.as_slice(), &[("a", dispute(DisputeState::Open, 4999))]].concat();
        check(&reopened, O::Disputed, (4999, 0, 4999));
        let lost = [reopened.as_slice(), &[("a", dispute(DisputeState::Lost, 4999))]].concat();
        check(&lost, O::ChargedBack, (4999, 0, 4999));
        // less than expected: may still come, or not
        let open_capture = Fact::Payment(PaymentFact {
            authorized: Some(eur(4999)),
            captured: Some(eur(2000)),
            ..PaymentFact::new(P::Captured)
        });
        check(&[("a", open_capture)], O::PartiallyPaid, (2000, 0, 0));
        check(&[("a", captured(2000))], O::UnderReview, (2000, 0, 0));
        check(&[("a", captured(2000)), ("b", captured(2999))], O::Paid, (4999, 0, 0));
        check(&[("a", captured(5000))], O::UnderReview, (5000, 0, 0));
    }

    #[test]
    fn a_refund_heard_of_after_the_total_that_counts_it_is_not_added() {
        let mut registers = order_of(&[("a", captured(4999))]);
        registers.join(&event(10, "a", Fact::RefundTotal { amount: eur(1000) }), false);
        let created = Some(Timestamp::from_seconds(9));
        let late = Fact::Refund { id: "re_1".to_owned(), state: RefundState::Succeeded, amount: eur(1000), created };
        registers.join(&event(12, "a", late), false);
        assert_eq!(registers.view().refunded, 1000);
        // one made after the total is not part of it
        let created = Some(Timestamp::from_seconds(11));
        let newer = Fact::Refund { id: "re_2".to_owned(), state: RefundState::Succeeded, amount: eur(500), created };
        registers.join(&event(13, "a", newer), false);
        assert_eq!(registers.view().refunded, 1500);
    }

    #[test]
    fn money_that_does_not_fit_never_pays() {
        let foreign = |change: &dyn Fn(&mut PaymentEvent), foreign_mode| {
            let mut registers = Registers { expected: Some(eur(4999)), ..Registers::default() };
            registers.add_account(&"stripe".into(), &"default".into());
            let mut event = event(1, "a", captured(4999));
            change(&mut event);
            registers.join(&event, foreign_mode);
            let view = registers.view();
            (view.status, view.review, view.captured)
        };
        let under_review = |reason| (OrderStatus::UnderReview, Some(reason), 0);
        assert_eq!(foreign(&|_| {}, false), (OrderStatus::Paid, None, 4999));
        assert_eq!(foreign(&|_| {}, true), under_review(ReviewReason::ModeMismatch));
        assert_eq!(foreign(&|event| event.key.account = "other".into(), false), under_review(ReviewReason::AccountMismatch));
        let in_yen = |event: &mut PaymentEvent| {
            let yen = Money::new(4999, Currency::parse("JPY").unwrap());
            event.fact = Fact::Payment(PaymentFact { captured: Some(yen), ..PaymentFact::new(PaymentState::Captured) });
        };
        assert_eq!(foreign(&in_yen, false), under_review(ReviewReason::CurrencyMismatch));
    }

    #[test]
    fn the_last_failure_is_the_latest_by_the_psps_clock() {
        let facts = [("a", failed("ch_1", "first")), ("a", failed("ch_2", "second"))];
        assert_eq!(order_of(&facts).view().last_failure.unwrap().code, "second");
        let mut reversed = Registers::default();
        reversed.join(&event(1, "a", facts[1].1.clone()), false);
        reversed.join(&event(0, "a", facts[0].1.clone()), false);
        assert_eq!(reversed.view().last_failure.unwrap().code, "second");
    }

    #[test]
    fn a_failure_that_is_told_again_is_no_news() {
        let mut registers = order_of(&[("a", failed("ch_1", "first")), ("a", failed("ch_2", "second"))]);
        let before = registers.view();
        assert!(!registers.join(&event(100, "a", failed("ch_2", "second")), false));
        assert!(!registers.join(&event(200, "a", failed("ch_1", "first")), false));
        assert_eq!(registers.view(), before, "what a poll repeats is no visible change");
    }

    #[test]
    fn joining_says_whether_it_added_something() {
        let mut registers = Registers::default();
        assert!(registers.join(&event(1, "a", captured(4999)), false));
        assert!(!registers.join(&event(1, "a", captured(4999)), false), "the same again");
        assert!(!registers.join(&event(0, "a", payment(PaymentState::Pending)), false), "a lower rank");
        assert!(registers.join(&event(2, "a", refund("re_1", RefundState::Pending, 1)), false));
        assert!(!registers.join(&event(3, "a", refund("re_1", RefundState::Pending, 1)), false), "confirmed later");
        assert!(registers.join(&event(4, "a", refund("re_1", RefundState::Succeeded, 1)), false));
        assert!(registers.join(&event(5, "a", captured(4999)), true), "now of a foreign mode");
    }

    #[test]
    fn registers_survive_storage() {
        let registers = order_of(&[
            ("a", failed("ch_1", "x")),
            ("a", captured(4999)),
            ("a", refund("re_1", RefundState::Succeeded, 1)),
            ("a", dispute(DisputeState::Open, 1)),
        ]);
        let stored = serde_json::to_string(&registers).unwrap();
        assert_eq!(serde_json::from_str::<Registers>(&stored).unwrap(), registers);
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        let amount = prop::sample::select(vec![1, 500, 2000, 4999, 5000]).prop_map(eur);
        let yen = Just(Money::new(4999, Currency::parse("JPY").unwrap()));
        let money = prop_oneof![9 => amount, 1 => yen].boxed();
        let id = prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned).boxed();
        let state = prop::sample::select(vec![
            PaymentState::Pending,
            PaymentState::Failed,
            PaymentState::Expired,
            PaymentState::Authorized,
            PaymentState::AuthorizationExpired,
            PaymentState::Canceled,
            PaymentState::Captured,
        ]);
        let failure = prop::option::of(
            prop::sample::select(vec!["a", "b"]).prop_map(|code| Failure { code: code.into(), message: String::new() }),
        );
        let parts = (
            state,
            prop::option::of(id.clone()),
            prop::option::of(money.clone()),
            prop::option::of(money.clone()),
            any::<bool>(),
            failure,
        );
        let payment = parts.prop_map(|(state, attempt, authorized, captured, capture_final, failure)| {
            Fact::Payment(PaymentFact { state, attempt, authorized, captured, capture_final, failure })
        });
        let capture_state = prop::sample::select(vec![CaptureState::Pending, CaptureState::Succeeded, CaptureState::Failed]);
        let refund_state = prop::sample::select(vec![RefundState::Pending, RefundState::Succeeded, RefundState::Failed]);
        let dispute_state =
            prop::sample::select(vec![DisputeState::Inquiry, DisputeState::Open, DisputeState::Won, DisputeState::Lost]);
        let created = prop::option::of((0_i64..5).prop_map(Timestamp::from_seconds));
        prop_oneof![
            4 => payment,
            1 => (id.clone(), capture_state, money.clone()).prop_map(|(id, state, amount)| Fact::Capture { id, state, amount }),
            2 => (id.clone(), refund_state, money.clone(), created)
                .prop_map(|(id, state, amount, created)| Fact::Refund { id, state, amount, created }),
            1 => money.clone().prop_map(|amount| Fact::RefundTotal { amount }),
            1 => (id, dispute_state, money).prop_map(|(id, state, amount)| Fact::Dispute { id, state, amount }),
        ]
    }

    /// An order of arrival with some arrivals doubled, beside the events in their own order.
    fn any_history() -> impl Strategy<Value = (Vec<(PaymentEvent, bool)>, Vec<usize>)> {
        let one = (0_i64..5, prop::sample::select(vec!["a", "b"]), any_fact(), prop::bool::weighted(0.05));
        prop::collection::vec(one, 0..8).prop_flat_map(|parts| {
            let events: Vec<(PaymentEvent, bool)> =
                parts.into_iter().map(|(at_s, payment_id, fact, foreign)| (event(at_s, payment_id, fact), foreign)).collect();
            let all: Vec<usize> = (0..events.len()).collect();
            let doubled =
                if all.is_empty() { Just(Vec::new()).boxed() } else { prop::collection::vec(0..all.len(), 0..6).boxed() };
            let arrival = doubled.prop_map(move |doubled| [all.clone(), doubled].concat()).prop_shuffle();
            (Just(events), arrival)
        })
    }

    fn join_all<'a>(events: impl IntoIterator<Item = &'a (PaymentEvent, bool)>) -> Registers {
        let mut registers = Registers { expected: Some(eur(4999)), ..Registers::default() };
        for (event, foreign_mode) in events {
            registers.join(event, *foreign_mode);
        }
        registers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Invariant I4: the set decides, not order, number or route.
        #[test]
        fn any_order_of_arrival_with_any_duplicates_ends_the_same((events, arrival) in any_history()) {
            let in_order = join_all(&events);
            let shuffled = join_all(arrival.iter().map(|index| &events[*index]));
            prop_assert_eq!(in_order.view(), shuffled.view());
            prop_assert_eq!(in_order, shuffled);
        }

        #[test]
        fn amounts_are_never_negative((events, _) in any_history()) {
            let view = join_all(&events).view();
            prop_assert!(view.captured >= 0 && view.refunded >= 0 && view.disputed >= 0 && view.authorized >= view.captured);
        }
    }
}
