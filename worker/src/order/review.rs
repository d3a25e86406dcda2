//! What a person must decide, what was decided, and what the PSP must be asked.
//!
//! A review stands for the first [`ReviewReason`] that holds, in that type's order: money that is not what was expected
//! before a PSP that contradicts itself, since a decision about the money says what the order is worth whatever the PSP
//! says next. A decision is tied to the picture on which it was made ([`Saw`]) and counts as long as that is the picture
//! of the facts: any change of an amount that it shows brings the review back. An amount is judged by what was captured,
//! gross, so a refund neither begins nor ends such a review, nor does it undo a decision.
//!
//! | decision | on | the order is |
//! |---|---|---|
//! | accept | `amount_mismatch`, or money that does not fit | the first, in the order of [`OrderStatus`], of: what the payments that fit say, what the payments that do not fit say by themselves, `paid` |
//! | accept | `contradiction` | as the facts of the highest version say |
//! | reject | `amount_mismatch`, `contradiction` | `charged_back`, `disputed`, `refunded` or `partially_refunded` if the facts say so, else `canceled` |
//! | reject | money that does not fit | as the payments that fit say; `canceled` if there is none |
//!
//! Amounts always are those of the payments that fit: money that does not fit is seen at its payment.

use paybell_shared::clock::Timestamp;
use paybell_shared::money::{Currency, Money};
use serde::{Deserialize, Serialize};

use super::history::{Doubt, History};
use super::view::{OrderStatus, PaymentView, Sums};
use super::{AccountKey, PaymentRegisters, Registers, Rules};

/// Why a person must look. Of several reasons the first in this order is told.
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
    /// The PSP's answers contradict each other.
    Contradiction,
}

/// An operator's answer to a review.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Decision {
    pub at: Timestamp,
    pub verdict: Verdict,
    /// The operator's words.
    pub reason: String,
    pub operator: String,
    pub saw: Saw,
}

/// The later one is the more cautious one: it counts if both were said at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The money in question pays the order.
    Accept,
    /// It does not.
    Reject,
}

/// The picture on which a decision is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Saw {
    pub reason: ReviewReason,
    pub expected: Option<Money>,
    /// Those with captured money, and for a contradiction those that it concerns; sorted by account and id.
    pub payments: Vec<SeenPayment>,
}

/// A payment in a [`Saw`]. Amounts are in minor units of `currency`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeenPayment {
    #[serde(flatten)]
    pub account: AccountKey,
    pub payment_id: String,
    pub captured: i64,
    pub currency: Option<Currency>,
    /// Why it does not fit the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfit: Option<ReviewReason>,
    /// What else it says, where that is in question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<Contradicted>,
}

/// What a payment that contradicts itself says last. Amounts are in minor units of the payment's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Contradicted {
    pub refunded: i64,
    pub disputed: i64,
}

/// What the facts alone say, before any decision.
pub(super) struct Judgement<'r> {
    expected: Option<Money>,
    pub currency: Option<Currency>,
    /// Of the payments that fit.
    pub sums: Sums,
    payments: Vec<Judged<'r>>,
    /// The money is not what it should be.
    mismatch: Option<ReviewReason>,
}

struct Judged<'r> {
    registers: &'r PaymentRegisters,
    view: PaymentView,
    misfit: Option<ReviewReason>,
    contradicts_itself: bool,
}

impl Registers {
    /// What a person who decides now would decide on; `None`: no review stands.
    #[must_use]
    pub fn open_review(&self, rules: &Rules) -> Option<Saw> {
        self.undecided(&self.judge(rules)).next()
    }

    /// The payments whose facts contradict each other, or do not add up, so that their PSP is to be asked.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<(AccountKey, String)> {
        let doubtful = self.payments.iter().filter(|payment| payment.is_in_doubt());
        doubtful.map(|payment| (payment.account.clone(), payment.payment_id.clone())).collect()
    }

    pub(super) fn judge(&self, rules: &Rules) -> Judgement<'_> {
        let mut payments: Vec<Judged<'_>> = self.payments.iter().map(|payment| self.judge_payment(payment)).collect();
        let currency = self.currency(&payments);
        for payment in &mut payments {
            let differs = payment.view.currency.is_some() && payment.view.currency != currency;
            if payment.misfit.is_none() && (differs || payment.registers.mixes_currencies()) {
                payment.misfit = Some(ReviewReason::CurrencyMismatch);
            }
        }
        let mut sums = Sums::default();
        let mut over_percent = 0;
        for payment in payments.iter().filter(|payment| payment.misfit.is_none()) {
            sums.add(&payment.view, payment.registers);
            if payment.view.captured > 0 {
                over_percent = over_percent.max(rules.over_capture_percent.get(&payment.view.account).copied().unwrap_or(0));
            }
        }
        let amount = self.expected.filter(|expected| sums.misses(expected.minor, over_percent));
        let misfits = payments.iter().filter(|payment| payment.view.captured > 0).filter_map(|payment| payment.misfit);
        let mismatch = amount.map(|_| ReviewReason::AmountMismatch).or_else(|| misfits.min());
        Judgement { expected: self.expected, currency, sums, payments, mismatch }
    }

    /// The questions that no decision answers yet.
    pub(super) fn undecided(&self, judgement: &Judgement<'_>) -> impl Iterator<Item = Saw> {
        judgement.questions().filter(|saw| self.verdict(saw).is_none())
    }

    /// Where the order stands if nothing is undecided.
    pub(super) fn settled_status(&self, judgement: &Judgement<'_>) -> OrderStatus {
        let facts = self.expired_status(judgement.sums.status(self.expected));
        judgement.questions().fold(facts, |status, saw| match (self.verdict(&saw), saw.reason) {
            (None, _) | (Some(Verdict::Accept), ReviewReason::Contradiction) => status,
            (Some(Verdict::Accept), _) => {
                judgement.unfitting().map(|payment| payment.view.status).fold(status, Ord::min).min(OrderStatus::Paid)
            }
            (Some(Verdict::Reject), ReviewReason::AmountMismatch | ReviewReason::Contradiction) => {
                if status <= OrderStatus::PartiallyRefunded { status } else { OrderStatus::Canceled }
            }
            (Some(Verdict::Reject), _) => {
                if judgement.sums.is_empty() {
                    OrderStatus::Canceled
                } else {
                    status
                }
            }
        })
    }

    fn verdict(&self, saw: &Saw) -> Option<Verdict> {
        let made_on_it = self.decisions.iter().filter(|decision| decision.saw == *saw);
        made_on_it.max_by_key(|decision| (decision.at, decision.verdict)).map(|decision| decision.verdict)
    }

    /// All but the currency, which is judged against the other payments'.
    fn judge_payment<'r>(&self, registers: &'r PaymentRegisters) -> Judged<'r> {
        let misfit = if registers.foreign_mode {
            Some(ReviewReason::ModeMismatch)
        } else if !self.accounts.is_empty() && self.accounts.binary_search(&registers.account).is_err() {
            Some(ReviewReason::AccountMismatch)
        } else {
            None
        };
        Judged { registers, view: registers.view(), misfit, contradicts_itself: registers.contradicts_itself() }
    }

    /// The order's currency: the expected one, else that of captured money, else of any payment, those first that fit;
    /// of several the first by the alphabet, so that all orders of arrival agree.
    fn currency(&self, payments: &[Judged<'_>]) -> Option<Currency> {
        let of = |fitting_only: bool, captured_only: bool| {
            let fitting = payments.iter().filter(|payment| !fitting_only || payment.misfit.is_none());
            let wanted = fitting.filter(|payment| !captured_only || payment.view.captured > 0);
            wanted.filter_map(|payment| payment.view.currency).min()
        };
        let expected = self.expected.map(|expected| expected.currency);
        expected.or_else(|| of(true, true)).or_else(|| of(true, false)).or_else(|| of(false, true)).or_else(|| of(false, false))
    }
}

impl Judgement<'_> {
    /// What a person would have to decide: about the money, and about what the PSP says.
    fn questions(&self) -> impl Iterator<Item = Saw> {
        let contradiction = self.payments.iter().any(|payment| payment.contradicts_itself);
        let contradiction = contradiction.then_some(ReviewReason::Contradiction);
        self.mismatch.into_iter().chain(contradiction).map(|reason| self.picture(reason))
    }

    fn picture(&self, reason: ReviewReason) -> Saw {
        let seen = self.payments.iter().filter_map(|Judged { view, misfit, contradicts_itself, .. }| {
            let contradicted = (reason == ReviewReason::Contradiction && *contradicts_itself)
                .then_some(Contradicted { refunded: view.refunded, disputed: view.disputed });
            (view.captured > 0 || contradicted.is_some()).then(|| SeenPayment {
                account: view.account.clone(),
                payment_id: view.payment_id.clone(),
                captured: view.captured,
                currency: view.currency,
                misfit: *misfit,
                contradiction: contradicted,
            })
        });
        Saw { reason, expected: self.expected, payments: seen.collect() }
    }

    /// The payments with captured money that does not fit.
    fn unfitting(&self) -> impl Iterator<Item = &Judged<'_>> {
        self.payments.iter().filter(|payment| payment.misfit.is_some() && payment.view.captured > 0)
    }

    /// The payments as they are shown; `open` are the reasons that are undecided.
    pub fn into_payments(self, open: &[ReviewReason]) -> impl Iterator<Item = PaymentView> {
        let contradiction_open = open.contains(&ReviewReason::Contradiction);
        let money_open = open.iter().any(|reason| *reason != ReviewReason::Contradiction);
        self.payments.into_iter().map(move |Judged { view, misfit, contradicts_itself, .. }| {
            let misfit = misfit.filter(|_| money_open && view.captured > 0);
            let contradiction = (contradiction_open && contradicts_itself).then_some(ReviewReason::Contradiction);
            PaymentView { review: misfit.or(contradiction), ..view }
        })
    }
}

impl PaymentRegisters {
    fn contradicts_itself(&self) -> bool {
        self.doubts().any(|doubt| doubt == Doubt::Contradiction)
    }

    fn is_in_doubt(&self) -> bool {
        let has_answer = self.refund_total.is_some_and(|total| total.asked);
        self.doubts().next().is_some() || (self.unattributed() > 0 && !has_answer)
    }

    fn doubts(&self) -> impl Iterator<Item = Doubt> {
        let captures = self.captures.values().filter_map(History::doubt);
        let refunds = self.refunds.values().filter_map(|refund| refund.history.doubt());
        let disputes = self.disputes.values().filter_map(History::doubt);
        captures.chain(refunds).chain(disputes)
    }
}
