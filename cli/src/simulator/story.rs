//! How payments go: little stories, from the first step to the last, in no PSP's words.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::ledger::{Cancellation, DECLINES, DisputeState, Ledger, RefundState};

/// The oldest story begins so long before now, in seconds.
const PAST_S: i64 = 7_200;
/// The longest time between two steps of a story, in seconds. The longest story has 8 steps, so all end before now.
const STEP_S: i64 = 90;

/// How an order's payment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Story {
    Paid,
    FailedThenPaid,
    Failed,
    AuthorizedThenCaptured,
    Authorized,
    Canceled,
    AuthorizedThenCanceled,
    AuthorizationExpired,
    Pending,
    PartlyRefunded,
    RefundedInTwoParts,
    Refunded,
    RefundFailed,
    RefundFailedThenRefunded,
    Disputed,
    DisputeWon,
    DisputeLost,
}

impl Story {
    /// The most usual ones first.
    pub const ALL: [Self; 17] = [
        Self::Paid,
        Self::FailedThenPaid,
        Self::AuthorizedThenCaptured,
        Self::Failed,
        Self::Canceled,
        Self::PartlyRefunded,
        Self::Refunded,
        Self::RefundFailed,
        Self::RefundedInTwoParts,
        Self::DisputeWon,
        Self::Authorized,
        Self::Pending,
        Self::Disputed,
        Self::DisputeLost,
        Self::RefundFailedThenRefunded,
        Self::AuthorizedThenCanceled,
        Self::AuthorizationExpired,
    ];

    /// How often it happens among fifty.
    #[must_use]
    pub const fn often(self) -> usize {
        match self {
            Self::Paid => 14,
            Self::FailedThenPaid => 5,
            Self::AuthorizedThenCaptured => 4,
            Self::Failed | Self::Canceled | Self::PartlyRefunded | Self::Refunded => 3,
            Self::RefundFailed | Self::RefundedInTwoParts | Self::DisputeWon | Self::Authorized | Self::Pending => 2,
            Self::Disputed
            | Self::DisputeLost
            | Self::RefundFailedThenRefunded
            | Self::AuthorizedThenCanceled
            | Self::AuthorizationExpired => 1,
        }
    }

    /// Plays it in the ledger, in the two hours before `now` (Unix seconds); returns the payment's id.
    pub fn play(self, ledger: &mut Ledger, order: &str, amount: i64, currency: &str, rng: &mut StdRng, now: i64) -> String {
        let mut at = now - PAST_S + rng.random_range(0..PAST_S / 2);
        let mut next = |rng: &mut StdRng| {
            at += rng.random_range(1..=STEP_S);
            at
        };
        let manual = matches!(
            self,
            Story::AuthorizedThenCaptured | Story::Authorized | Story::AuthorizedThenCanceled | Story::AuthorizationExpired
        );
        let id = ledger.open(order, amount, currency, manual, next(rng));
        match self {
            Story::Pending if rng.random() => ledger.require_action(&id, next(rng)),
            Story::Pending => ledger.process(&id, next(rng)),
            Story::Failed => {
                for _ in 0..rng.random_range(1..=3) {
                    ledger.decline(&id, DECLINES[rng.random_range(0..DECLINES.len())], next(rng));
                }
            }
            Story::FailedThenPaid => {
                for _ in 0..rng.random_range(1..=2) {
                    ledger.decline(&id, DECLINES[rng.random_range(0..DECLINES.len())], next(rng));
                }
                ledger.capture(&id, amount, next(rng));
            }
            Story::Canceled => {
                let reason = if rng.random() { Cancellation::Requested } else { Cancellation::Abandoned };
                ledger.cancel(&id, reason, next(rng));
            }
            Story::Authorized => ledger.authorize(&id, next(rng)),
            Story::AuthorizedThenCaptured => {
                ledger.authorize(&id, next(rng));
                ledger.capture(&id, amount, next(rng));
            }
            Story::AuthorizedThenCanceled => {
                ledger.authorize(&id, next(rng));
                ledger.cancel(&id, Cancellation::Requested, next(rng));
            }
            Story::AuthorizationExpired => {
                ledger.authorize(&id, next(rng));
                ledger.expire(&id, next(rng));
            }
            Story::Paid
            | Story::PartlyRefunded
            | Story::RefundedInTwoParts
            | Story::Refunded
            | Story::RefundFailed
            | Story::RefundFailedThenRefunded
            | Story::Disputed
            | Story::DisputeWon
            | Story::DisputeLost => {
                ledger.capture(&id, amount, next(rng));
                self.after_payment(&id, amount, ledger, || next(rng));
            }
        }
        id
    }

    /// What happens to money that was captured.
    fn after_payment(self, id: &str, amount: i64, ledger: &mut Ledger, mut next: impl FnMut() -> i64) {
        let part = amount / 3;
        match self {
            Story::PartlyRefunded => drop(ledger.refund(id, part, RefundState::Succeeded, next())),
            Story::Refunded => {
                let number = ledger.refund(id, amount, RefundState::Pending, next());
                ledger.settle_refund(id, number, RefundState::Succeeded, next());
            }
            Story::RefundedInTwoParts => {
                ledger.refund(id, part, RefundState::Succeeded, next());
                ledger.refund(id, amount - part, RefundState::Succeeded, next());
            }
            Story::RefundFailed | Story::RefundFailedThenRefunded => {
                let number = ledger.refund(id, part, RefundState::Succeeded, next());
                ledger.settle_refund(id, number, RefundState::Failed, next());
                if self == Story::RefundFailedThenRefunded {
                    ledger.refund(id, amount, RefundState::Succeeded, next());
                }
            }
            Story::Disputed => drop(ledger.dispute(id, amount, next())),
            Story::DisputeWon | Story::DisputeLost => {
                let number = ledger.dispute(id, amount, next());
                let state = if self == Story::DisputeWon { DisputeState::Won } else { DisputeState::Lost };
                ledger.close_dispute(id, number, state, next());
            }
            _ => {}
        }
    }
}
