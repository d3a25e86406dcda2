//! An order is a join of facts. No async, no clock, no I/O (design decision 4).
//!
//! Each object of a PSP has one register; facts merge into it commutatively, associatively and idempotently, so the
//! order depends on the *set* of facts known, never on their order, number or route (invariant I4). Here are the
//! registers and how they join; what they amount to is in `order/view.rs`, what a person must decide and what the PSP
//! must be asked in `order/review.rs`, the histories of captures, refunds and disputes in `order/history.rs`.
//!
//! | register | holds | two facts merge by |
//! |---|---|---|
//! | attempt at a payment | state | rank of [`PaymentState`]: success after failure wins, failure after success does not |
//! | attempt: failures | each with its time | the earliest time that it was told, so that to hear of it again (from a poll, above all) changes nothing; the latest is shown |
//! | attempt: given up | canceled or lapsed | rank; once said it stays, also behind what was captured before |
//! | payment: authorised | amount at a version | the PSP's version, then the larger amount |
//! | payment: captured in all | gross amount, and when it was first told | the larger amount: refunds do not lower it, and a lagging answer must not; of one amount the earliest version |
//! | payment: capture final | yes or no | once said, it stays |
//! | capture, refund, dispute | all observed (version, state, amount, asked) | union; the highest version counts, ties by the state's rank, then the larger amount; the same from an event and from an answer is one, from an answer |
//! | refund: made at | time | the earliest |
//! | payment: refunded in all | amount at a version, asked | the PSP's version, then the larger amount; the same from an event and from an answer is from an answer |
//! | payment: test or live | fits the account or not | once it did not fit, it does not |
//! | payment: named | the shop named it or not | once named, it stays |
//! | decisions of operators | each with the picture that it was made on | union; of those on the picture of now the latest counts, of two at one time the refusal |
//! | order: found expired | the time by which nothing had been paid | the latest; it counts while the order ends no later |
//!
//! "Asked" means: told by an answer about how the object stands, not by an event, which may be late whatever its route.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{CaptureState, DisputeState, Fact, FactVersion, Failure, PaymentEvent, PaymentState, RefundState};
use paybell_shared::money::Money;
use serde::{Deserialize, Serialize};

use self::history::{History, Observation, Progress};
pub use self::outcome::CameTo;
pub use self::review::{Contradicted, Decision, ReviewReason, Saw, SeenPayment, Verdict};
pub use self::standing::Standing;
pub use self::view::{LastFailure, OrderStatus, PaymentView, View};

mod expiry;
mod history;
mod outcome;
mod review;
mod standing;
#[cfg(test)]
mod tests;
mod view;

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
    /// Sorted, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    decisions: Vec<Decision>,
    /// By then nothing had been paid, as was found when the order's time was over: see `order/expiry.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expired: Option<Timestamp>,
}

/// Names an account of a PSP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountKey {
    pub psp: Arc<str>,
    pub account: Arc<str>,
}

/// The settings by which an order is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// How much more than expected may be captured by an account, in percent of what is expected; absent: nothing.
    pub over_capture_percent: HashMap<AccountKey, u8>,
}

/// All that is known of one payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PaymentRegisters {
    #[serde(flatten)]
    account: AccountKey,
    payment_id: String,
    /// The shop named it.
    #[serde(default, skip_serializing_if = "is_false")]
    named: bool,
    /// By the attempt's id; empty where the PSP does not tell attempts apart.
    #[serde(default)]
    attempts: BTreeMap<String, Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorized: Option<Versioned>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    captured: Option<CapturedTotal>,
    #[serde(default)]
    capture_final: bool,
    #[serde(default)]
    captures: BTreeMap<String, History<CaptureState>>,
    #[serde(default)]
    refunds: BTreeMap<String, Refund>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refund_total: Option<Versioned>,
    #[serde(default)]
    disputes: BTreeMap<String, History<DisputeState>>,
    /// A test event on a live account, or the other way round.
    #[serde(default)]
    foreign_mode: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    state: PaymentState,
    /// Canceled or lapsed. The state says it, too, unless something was captured before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_up: Option<PaymentState>,
    /// Sorted by failure, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failures: Vec<(Failure, Timestamp)>,
}

/// An amount of which the latest counts. The order of the fields is the order of the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Versioned {
    version: FactVersion,
    value: Money,
    /// Told by an answer.
    #[serde(default, skip_serializing_if = "is_false")]
    asked: bool,
}

/// An amount of which the largest counts. The order of the fields is the order of the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct CapturedTotal {
    #[serde(flatten)]
    money: Money,
    /// `None` only where it was stored before this was kept: below every version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_told: Option<Reverse<FactVersion>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refund {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    history: History<RefundState>,
}

impl Registers {
    /// Joins one fact. `foreign_mode`: the event's mode is not its account's. `true` if it added what was not known: a
    /// later confirmation is kept, but adds nothing.
    pub fn join(&mut self, event: &PaymentEvent, foreign_mode: bool) -> bool {
        let payment = self.payment_mut(&event.key.psp, &event.key.account, &event.payment_id);
        let (was_new, amounts) = (payment.is_blank(), payment.amounts());
        let mode_changed = foreign_mode && !std::mem::replace(&mut payment.foreign_mode, true);
        let (version, asked) = (event.version, event.is_answer());
        let changed = match &event.fact {
            Fact::Payment(fact) => {
                let attempt = fact.attempt.clone().unwrap_or_default();
                let failure = fact.failure.clone().map(|failure| (failure, event.occurred_at));
                let state_changed = payment.join_attempt(attempt, fact.state, failure);
                let told = fact.authorized.map(|value| Versioned { version, value, asked: false });
                let authorized_changed = told.is_some_and(|told| latest(&mut payment.authorized, told));
                let captured_changed = fact.captured.is_some_and(|money| payment.join_captured(money, version));
                let final_changed = fact.capture_final && !std::mem::replace(&mut payment.capture_final, true);
                state_changed | authorized_changed | captured_changed | final_changed
            }
            Fact::Capture { id, state, amount } => {
                observe(&mut payment.captures, id, Observation { version, state: *state, amount: *amount, asked })
            }
            Fact::Refund { id, state, amount, created } => {
                payment.join_refund(id, Observation { version, state: *state, amount: *amount, asked }, *created)
            }
            Fact::RefundTotal { amount } => latest(&mut payment.refund_total, Versioned { version, value: *amount, asked }),
            Fact::Dispute { id, state, amount } => {
                observe(&mut payment.disputes, id, Observation { version, state: *state, amount: *amount, asked })
            }
        };
        // A confirmation, too, may show what a total counts and what it does not.
        was_new | mode_changed | changed || payment.amounts() != amounts
    }

    /// Joins an operator's decision. `true` if it was not known.
    pub fn decide(&mut self, decision: Decision) -> bool {
        let place = self.decisions.binary_search(&decision);
        place.is_err_and(|place| {
            self.decisions.insert(place, decision);
            true
        })
    }

    /// Makes the payment known, as one that the shop named.
    pub fn add_payment(&mut self, psp: &Arc<str>, account: &Arc<str>, payment_id: &str) {
        self.payment_mut(psp, account, payment_id).named = true;
    }

    /// Names an account by which the shop expects to be paid.
    pub fn add_account(&mut self, psp: &Arc<str>, account: &Arc<str>) {
        let key = AccountKey { psp: Arc::clone(psp), account: Arc::clone(account) };
        if let Err(place) = self.accounts.binary_search(&key) {
            self.accounts.insert(place, key);
        }
    }

    /// What the shop and the operators said, and that its time was over, without what any PSP said: joining all its facts again
    /// rebuilds the order.
    #[must_use]
    pub fn without_facts(&self) -> Self {
        // A payment without facts is there because the shop named it, also where it was stored before that was kept.
        let named = self.payments.iter().filter(|payment| payment.named || payment.is_blank());
        let bare = named.map(|payment| PaymentRegisters {
            named: payment.named,
            ..PaymentRegisters::new(&payment.account.psp, &payment.account.account, &payment.payment_id)
        });
        Self {
            expected: self.expected,
            expires_at: self.expires_at,
            accounts: self.accounts.clone(),
            payments: bare.collect(),
            decisions: self.decisions.clone(),
            expired: self.expired,
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
            named: false,
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

    /// No PSP said anything of it.
    fn is_blank(&self) -> bool {
        self.attempts.is_empty()
            && self.captures.is_empty()
            && self.refunds.is_empty()
            && self.disputes.is_empty()
            && self.refund_total.is_none()
    }

    fn join_attempt(&mut self, attempt: String, state: PaymentState, failure: Option<(Failure, Timestamp)>) -> bool {
        let given_up = Some(state).filter(|state| matches!(state, PaymentState::AuthorizationExpired | PaymentState::Canceled));
        match self.attempts.get_mut(&attempt) {
            None => {
                self.attempts.insert(attempt, Attempt { state, given_up, failures: failure.into_iter().collect() });
                true
            }
            Some(known) => {
                let state_changed = state > known.state || given_up > known.given_up;
                known.state = known.state.max(state);
                known.given_up = known.given_up.max(given_up);
                state_changed | failure.is_some_and(|failure| known.join_failure(failure))
            }
        }
    }

    fn join_captured(&mut self, money: Money, version: FactVersion) -> bool {
        let before = self.captured;
        self.captured = before.max(Some(CapturedTotal { money, first_told: Some(Reverse(version)) }));
        self.captured.map(|now| now.money) != before.map(|before| before.money)
    }

    fn join_refund(&mut self, id: &str, seen: Observation<RefundState>, created: Option<Timestamp>) -> bool {
        let Some(refund) = self.refunds.get_mut(id) else {
            self.refunds.insert(id.to_owned(), Refund { created, history: History::new(seen) });
            return true;
        };
        let earlier = created.is_some_and(|created| refund.created.is_none_or(|known| created < known));
        if earlier {
            refund.created = created;
        }
        refund.history.add(seen) | earlier
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

/// `true` if the amount is another one now.
fn latest(register: &mut Option<Versioned>, told: Versioned) -> bool {
    let before = *register;
    *register = before.max(Some(told));
    register.map(|now| now.value) != before.map(|before| before.value)
}

fn observe<S: Progress>(histories: &mut BTreeMap<String, History<S>>, id: &str, seen: Observation<S>) -> bool {
    if let Some(history) = histories.get_mut(id) {
        return history.add(seen);
    }
    histories.insert(id.to_owned(), History::new(seen));
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}
