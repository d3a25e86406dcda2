//! What a PSP may still do with a payment: by this it is decided when to ask again.

use serde::{Deserialize, Serialize};

use super::{AccountKey, History, PaymentRegisters, Registers};
use paybell_shared::event::{CaptureState, DisputeState, PaymentState, RefundState};

/// Where a payment stands between its PSP and us. The first that holds, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// A capture, a refund or a dispute is on its way.
    Moving,
    /// Money came in, and nothing more is on its way. It may still be refunded or disputed.
    Settled,
    /// Settled, and some of it went back, or was to: what was decided of a refund or dispute may be undone.
    Returned,
    /// Money is promised, and not captured yet.
    Authorized,
    /// Nobody paid yet; the payer may.
    Open,
    /// The last attempt failed; a later one may pay.
    Failed,
    /// Canceled or expired. PSPs are known to bring money after that all the same.
    GivenUp,
}

impl Standing {
    pub const ALL: [Self; 7] =
        [Self::Moving, Self::Settled, Self::Returned, Self::Authorized, Self::Open, Self::Failed, Self::GivenUp];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Moving => "moving",
            Self::Settled => "settled",
            Self::Returned => "returned",
            Self::Authorized => "authorized",
            Self::Open => "open",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }

    /// The standing of a stored name; `None` for one that a newer version wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|standing| standing.as_str() == text)
    }
}

impl Registers {
    /// Every payment with where it stands, by key.
    pub fn standings(&self) -> impl Iterator<Item = (&AccountKey, &str, Standing)> {
        self.payments.iter().map(|payment| (&payment.account, &*payment.payment_id, payment.standing()))
    }

    /// Where a payment stands; `None`: the order has no such payment.
    #[must_use]
    pub fn standing(&self, account: &AccountKey, payment_id: &str) -> Option<Standing> {
        let wanted = (&*account.psp, &*account.account, payment_id);
        let place = self.payments.binary_search_by(|other| other.key().cmp(&wanted)).ok()?;
        Some(self.payments[place].standing())
    }
}

impl PaymentRegisters {
    fn standing(&self) -> Standing {
        let mut captures = self.captures.values().map(History::latest);
        let mut refunds = self.refunds.values().map(|refund| refund.history.latest());
        let mut disputes = self.disputes.values().map(History::latest);
        let is_moving = captures.any(|capture| capture.state == CaptureState::Pending)
            || refunds.any(|refund| refund.state == RefundState::Pending)
            || disputes.any(|dispute| matches!(dispute.state, DisputeState::Inquiry | DisputeState::Open));
        let has_money = self.amounts().is_some_and(|(captured, _)| captured > 0);
        let paid = if self.was_returned() { Standing::Returned } else { Standing::Settled };
        match self.state() {
            _ if is_moving => Standing::Moving,
            // A part of it: the rest may come.
            PaymentState::Captured if !self.is_all() => Standing::Authorized,
            _ if has_money => paid,
            PaymentState::Captured => paid,
            PaymentState::Authorized => Standing::Authorized,
            PaymentState::Pending => Standing::Open,
            PaymentState::Failed => Standing::Failed,
            PaymentState::Expired | PaymentState::AuthorizationExpired | PaymentState::Canceled => Standing::GivenUp,
        }
    }

    /// Some of its money went back, or was to go.
    fn was_returned(&self) -> bool {
        let is_refunded = self.refund_total.is_some_and(|total| total.value.minor > 0);
        is_refunded || !self.refunds.is_empty() || !self.disputes.is_empty()
    }

    /// Nothing of what was authorised is still to be captured.
    fn is_all(&self) -> bool {
        let view = self.view();
        self.is_final() || view.captured >= view.authorized
    }
}
