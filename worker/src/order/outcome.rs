//! What a payment came to, as far as its PSP said: the one thing about it that a webhook must tell.

use paybell_shared::event::{CaptureState, Fact, PaymentState};
use serde::{Deserialize, Serialize};

use super::{AccountKey, Attempt, PaymentRegisters, Registers};

/// What decides a payment. Money counts more, whichever was told first: a failed attempt does not end a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameTo {
    /// It failed, was canceled, or expired.
    Nothing,
    /// Some was captured.
    Money,
}

impl CameTo {
    /// What a fact says of it; `None`: it leaves it open.
    #[must_use]
    pub fn of(fact: &Fact) -> Option<Self> {
        match fact {
            Fact::Payment(fact) if fact.captured.is_some_and(|money| money.minor > 0) => Some(Self::Money),
            Fact::Payment(fact) => Self::of_state(fact.state),
            Fact::Capture { state: CaptureState::Succeeded, .. } => Some(Self::Money),
            // A capture that failed leaves the authorisation; the others presuppose what they follow.
            Fact::Capture { .. } | Fact::Refund { .. } | Fact::RefundTotal { .. } | Fact::Dispute { .. } => None,
        }
    }

    const fn of_state(state: PaymentState) -> Option<Self> {
        match state {
            PaymentState::Captured => Some(Self::Money),
            PaymentState::Failed | PaymentState::Expired | PaymentState::AuthorizationExpired | PaymentState::Canceled => {
                Some(Self::Nothing)
            }
            PaymentState::Pending | PaymentState::Authorized => None,
        }
    }
}

impl Registers {
    /// What was heard of a payment so far; `None`: nothing that decides it.
    #[must_use]
    pub fn came_to(&self, account: &AccountKey, payment_id: &str) -> Option<CameTo> {
        let wanted = (&*account.psp, &*account.account, payment_id);
        let place = self.payments.binary_search_by(|other| other.key().cmp(&wanted)).ok()?;
        self.payments[place].came_to()
    }
}

impl PaymentRegisters {
    fn came_to(&self) -> Option<CameTo> {
        let taken = self.captured.is_some_and(|total| total.money.minor > 0)
            || self.captures.values().any(|capture| capture.was(CaptureState::Succeeded));
        let of_attempt = |attempt: &Attempt| {
            let failed = !attempt.failures.is_empty() || attempt.given_up.is_some();
            CameTo::of_state(attempt.state).max(failed.then_some(CameTo::Nothing))
        };
        self.attempts.values().filter_map(of_attempt).chain(taken.then_some(CameTo::Money)).max()
    }
}
