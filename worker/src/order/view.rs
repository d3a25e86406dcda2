//! What the registers amount to: amounts and statuses.
//!
//! Captured of a payment = the larger of two figures: the single captures that stand; and the total told, less the single
//! captures that failed after it was first told (but for one that was still pending after it, which it cannot have
//! counted). Refunded = the single refunds that succeeded + what the latest total says beyond the singles that it counts:
//! those made by its version that had not failed by then. So a total and the singles that it sums up are one truth and
//! never add up twice. Version numbers of two objects say nothing about each other: there a total is taken to count all
//! refunds that stand, and every failed capture to be later. Of a payment that was given up with nothing captured, nothing
//! is refunded.
//!
//! A payment has one currency: that of the money that came in. Amounts in another are never added to it; the payment then
//! does not fit any order (`currency_mismatch`).
//!
//! The order's status: `under_review` while a review stands, else the first of [`OrderStatus`] that holds; but what an
//! operator decided comes first, as `order/review.rs` says, and an order whose time is over does not wait, as `order/expiry.rs`
//! says.

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{CaptureState, DisputeState, FactVersion, PaymentState, RefundState};
use paybell_shared::money::{Currency, Money};
use serde::{Deserialize, Serialize};

use super::history::{History, Observation, Progress};
use super::review::ReviewReason;
use super::{AccountKey, Attempt, CapturedTotal, PaymentRegisters, Refund, Registers, Rules};

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

    /// It waits for money that may still come.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Authorized | Self::PartiallyPaid)
    }
}

impl Registers {
    /// Statuses, amounts and review, from the registers and the settings alone.
    #[must_use]
    pub fn view(&self, rules: &Rules) -> View {
        let judgement = self.judge(rules);
        let open: Vec<ReviewReason> = self.undecided(&judgement).map(|saw| saw.reason).collect();
        let review = open.first().copied();
        let sums = &judgement.sums;
        let status = if review.is_some() { OrderStatus::UnderReview } else { self.settled_status(&judgement) };
        let (authorized, captured, refunded, disputed) = (sums.authorized, sums.captured, sums.refunded, sums.disputed);
        let currency = judgement.currency;
        let payments: Vec<PaymentView> = judgement.into_payments(&open).collect();
        View {
            status,
            expected: self.expected,
            authorized,
            captured,
            refunded,
            disputed,
            currency,
            last_failure: payments
                .iter()
                .filter_map(|payment| payment.last_failure.clone())
                .max_by(|a, b| (a.at, a).cmp(&(b.at, b))),
            review,
            payments,
        }
    }
}

impl PaymentRegisters {
    /// The state of the payment over all its attempts. A failed attempt hides behind one that is still open, if the PSP
    /// tells them apart. What was captured and then failed is not captured.
    pub(super) fn state(&self) -> PaymentState {
        let undone = self.is_undone().then(|| self.undone_state());
        let state = |attempt: &Attempt| match (attempt.state, undone) {
            (PaymentState::Captured, Some(undone)) => attempt.given_up.unwrap_or(undone),
            (state, _) => state,
        };
        let highest = self.attempts.values().map(state).max().or(undone).unwrap_or(PaymentState::Pending);
        let is_open = self.attempts.iter().any(|(id, attempt)| !id.is_empty() && attempt.state == PaymentState::Pending);
        if highest == PaymentState::Failed && is_open { PaymentState::Pending } else { highest }
    }

    /// Of what was captured and then failed: its authorisation, if there was one, still holds the money.
    fn undone_state(&self) -> PaymentState {
        if self.authorized.is_some_and(|held| held.value.minor > 0) {
            PaymentState::Authorized
        } else if self.has_capture(CaptureState::Pending) {
            PaymentState::Pending
        } else {
            PaymentState::Failed
        }
    }

    /// What of its authorisation is not captured was released, or the PSP said that it will take no more.
    pub(super) fn is_final(&self) -> bool {
        self.capture_final
            || self.attempts.values().any(|attempt| attempt.state == PaymentState::Captured && attempt.given_up.is_some())
    }

    /// Some capture failed, and nothing is captured.
    fn is_undone(&self) -> bool {
        self.has_capture(CaptureState::Failed) && self.currency().is_none_or(|currency| self.captured(currency) == 0)
    }

    fn has_capture(&self, state: CaptureState) -> bool {
        self.captures.values().any(|capture| capture.latest().state == state)
    }

    /// Captured and refunded, in the payment's currency.
    pub(super) fn amounts(&self) -> Option<(i64, i64)> {
        self.currency().map(|currency| (self.captured(currency), self.refunded(currency)))
    }

    fn captured(&self, currency: Currency) -> i64 {
        let standing = sum(self.captures.values().filter_map(|capture| amount_in(capture, CaptureState::Succeeded, currency)));
        let total = self.captured.filter(|total| total.money.currency == currency).map_or(0, |total| {
            let undone = self.captures.values().filter(|capture| total.lost(capture));
            let undone = undone.filter_map(|capture| amount_in(capture, CaptureState::Failed, currency));
            total.money.minor.saturating_sub(sum(undone))
        });
        standing.max(total)
    }

    /// What is given up with nothing captured gave nothing back, even if a PSP calls the release of its authorisation a refund
    /// (Adyen's reversal does not say, signed, which of the two it was).
    fn refunded(&self, currency: Currency) -> i64 {
        let is_given_up = self.attempts.values().any(|attempt| attempt.given_up.is_some());
        if is_given_up && self.captured(currency) == 0 {
            return 0;
        }
        let singles = self.refunds.values().filter_map(|refund| amount_in(&refund.history, RefundState::Succeeded, currency));
        let beyond = self.refund_total.filter(|total| total.value.currency == currency).map_or(0, |_| self.unattributed());
        sum(singles).saturating_add(beyond)
    }

    /// What the refunds' total says beyond the single refunds that it counts.
    pub(super) fn unattributed(&self) -> i64 {
        self.refund_total.map_or(0, |total| {
            let counted = self.refunds.values().filter_map(|refund| refund.counted_by(total.version));
            let counted = counted.filter(|money| money.currency == total.value.currency).map(|money| money.minor);
            total.value.minor.saturating_sub(sum(counted)).max(0)
        })
    }

    fn disputed(&self, currency: Currency) -> i64 {
        let claimed = |dispute| {
            amount_in(dispute, DisputeState::Open, currency).or_else(|| amount_in(dispute, DisputeState::Lost, currency))
        };
        sum(self.disputes.values().filter_map(claimed))
    }

    fn has_dispute(&self, state: DisputeState) -> bool {
        self.disputes.values().any(|dispute| dispute.latest().state == state)
    }

    /// Money that came in says the payment's currency, before money that was promised, intended or went out; of several
    /// the first by the alphabet, so that all orders of arrival agree.
    fn currency(&self) -> Option<Currency> {
        let captures = || self.captures.values().map(|capture| capture.latest().amount);
        let refunds = || self.refunds.values().map(|refund| refund.history.latest().amount);
        let disputes = || self.disputes.values().map(|dispute| dispute.latest().amount);
        let came_in = self.money_in().map(|money| money.currency).min();
        let promised = || self.authorized.map(|held| held.value.currency);
        let intended = || captures().chain(self.captured.map(|total| total.money)).map(|money| money.currency).min();
        let went_out = || {
            let total = self.refund_total.map(|total| total.value);
            refunds().chain(total).chain(disputes()).map(|money| money.currency).min()
        };
        came_in.or_else(promised).or_else(intended).or_else(went_out)
    }

    fn money_in(&self) -> impl Iterator<Item = Money> {
        let singles = self.captures.values().map(History::latest).filter(|capture| capture.state == CaptureState::Succeeded);
        let total = self.captured.map(|total| total.money);
        singles.map(|capture| capture.amount).chain(total).filter(|money| money.minor > 0)
    }

    /// Money moved in more than one currency.
    pub(super) fn mixes_currencies(&self) -> bool {
        let refunds = self.refunds.values().map(|refund| refund.history.latest());
        let refunds = refunds.filter(|refund| refund.state == RefundState::Succeeded).map(|refund| refund.amount);
        let total = self.refund_total.map(|total| total.value).filter(|money| money.minor > 0);
        let disputes = self.disputes.values().map(History::latest);
        let claimed = disputes.filter(|dispute| matches!(dispute.state, DisputeState::Open | DisputeState::Lost));
        let moved = self.money_in().chain(refunds).chain(total).chain(claimed.map(|dispute| dispute.amount));
        let currency = self.currency();
        moved.into_iter().any(|money| Some(money.currency) != currency)
    }

    /// The payment by itself, but for its review.
    pub(super) fn view(&self) -> PaymentView {
        let currency = self.currency();
        let amount = |of: fn(&Self, Currency) -> i64| currency.map_or(0, |currency| of(self, currency));
        let captured = amount(Self::captured);
        let released = matches!(
            self.state(),
            PaymentState::AuthorizationExpired | PaymentState::Canceled | PaymentState::Expired | PaymentState::Failed
        );
        let held = self.authorized.map(|held| held.value).filter(|money| !released && Some(money.currency) == currency);
        let failures = self.attempts.values().flat_map(|attempt| &attempt.failures);
        let failure = failures.max_by(|(one, at), (other, other_at)| (at, one).cmp(&(other_at, other)));
        let mut view = PaymentView {
            account: self.account.clone(),
            payment_id: self.payment_id.clone(),
            status: OrderStatus::Pending,
            currency,
            authorized: held.map_or(0, |money| money.minor).max(captured),
            captured,
            refunded: amount(Self::refunded),
            disputed: amount(Self::disputed),
            last_failure: failure.map(|(failure, at)| LastFailure {
                code: failure.code.clone(),
                message: failure.message.clone(),
                at: *at,
            }),
            review: None,
        };
        let mut alone = Sums::default();
        alone.add(&view, self);
        view.status = alone.status(None);
        view
    }
}

impl CapturedTotal {
    /// Whether the total counted this capture, which failed later.
    fn lost(&self, capture: &History<CaptureState>) -> bool {
        let Some(told) = self.first_told.map(|told| told.0) else { return true };
        match (told, capture.since()) {
            (FactVersion::Time(told_at), FactVersion::Time(failed_at)) => {
                failed_at > told_at && !capture.was_later(CaptureState::Pending, told)
            }
            _ => true,
        }
    }
}

impl Refund {
    /// What a cumulative figure of `version` counts of this refund.
    fn counted_by(&self, version: FactVersion) -> Option<Money> {
        let (FactVersion::Time(at), FactVersion::Time(_)) = (version, self.history.latest().version) else {
            return counts(self.history.latest());
        };
        let made_by_then = || self.created.is_some_and(|created| created.millis() <= at);
        counts(self.history.at(version).or_else(|| made_by_then().then(|| self.history.first()))?)
    }
}

/// What the payments that fit an order amount to.
#[derive(Default)]
pub(super) struct Sums {
    pub authorized: i64,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    charged_back: bool,
    in_dispute: bool,
    /// Some payment may still bring money, or more of it.
    may_capture_more: bool,
    states: Vec<PaymentState>,
}

impl Sums {
    pub fn add(&mut self, view: &PaymentView, registers: &PaymentRegisters) {
        let state = registers.state();
        self.authorized = self.authorized.saturating_add(view.authorized);
        self.captured = self.captured.saturating_add(view.captured);
        self.refunded = self.refunded.saturating_add(view.refunded);
        self.disputed = self.disputed.saturating_add(view.disputed);
        self.charged_back |= registers.has_dispute(DisputeState::Lost);
        self.in_dispute |= registers.has_dispute(DisputeState::Open);
        self.may_capture_more |= match state {
            PaymentState::Pending | PaymentState::Authorized => true,
            PaymentState::Captured => !registers.is_final() && view.captured < view.authorized,
            // Of these only a new attempt could capture, and that would be a new fact.
            PaymentState::Failed | PaymentState::Expired | PaymentState::AuthorizationExpired | PaymentState::Canceled => false,
        };
        self.states.push(state);
    }

    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Captured money is not what is expected, and will not become it. What is more by up to `over_percent` of what is
    /// expected (a tip), rounded down to minor units, is as expected.
    pub fn misses(&self, expected: i64, over_percent: u8) -> bool {
        let most = i128::from(expected) * (100 + i128::from(over_percent)) / 100;
        i128::from(self.captured) > most || (self.captured > 0 && self.captured < expected && !self.may_capture_more)
    }

    pub fn status(&self, expected: Option<Money>) -> OrderStatus {
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

fn counts(refund: Observation<RefundState>) -> Option<Money> {
    (refund.state != RefundState::Failed).then_some(refund.amount)
}

/// The amount of what is in `state` now, if it is of the currency.
fn amount_in<S: Progress>(history: &History<S>, state: S, currency: Currency) -> Option<i64> {
    let latest = history.latest();
    (latest.state == state && latest.amount.currency == currency).then_some(latest.amount.minor)
}

fn sum(amounts: impl Iterator<Item = i64>) -> i64 {
    amounts.fold(0, i64::saturating_add)
}
