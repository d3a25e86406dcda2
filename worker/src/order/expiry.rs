//! The end of an order's time.
//!
//! That an order expired is a fact that we find ourselves, once its time is over: by then nothing had been paid
//! (`worker/src/expiry.rs` says how that is found). It holds for every end that lies no later, so an end that the shop moves
//! behind it makes the order live again, and one that it moves forward changes nothing. It shows where nothing else does: an
//! order that would be `pending` or `failed` is `expired`. What a PSP says of money, also later, stands above it; so does its
//! word that the payment is canceled, which is final.

use paybell_shared::clock::Timestamp;

use super::{AccountKey, OrderStatus, Registers, Standing};

impl Registers {
    /// Joins that by this time nothing had been paid. `true` if it was not known.
    pub fn expire(&mut self, by: Timestamp) -> bool {
        let before = self.expired;
        self.expired = before.max(Some(by));
        self.expired != before
    }

    /// What an order that would stand so comes to by its expiry.
    pub(super) fn expired_status(&self, status: OrderStatus) -> OrderStatus {
        let has_expired = self.expires_at.zip(self.expired).is_some_and(|(end, by)| end <= by);
        if has_expired && matches!(status, OrderStatus::Pending | OrderStatus::Failed) { OrderStatus::Expired } else { status }
    }

    /// When the order, which stands so, is to expire unless somebody pays; `None`: it has no end, has come to one, or money is
    /// promised or on its way.
    #[must_use]
    pub fn ends_at(&self, status: OrderStatus) -> Option<Timestamp> {
        let is_unpaid = matches!(status, OrderStatus::Pending | OrderStatus::Failed);
        let is_idle = |standing| matches!(standing, Standing::Open | Standing::Failed | Standing::GivenUp);
        self.expires_at.filter(|_| is_unpaid && self.standings().all(|(.., standing)| is_idle(standing)))
    }

    /// Its payments, by key.
    pub fn payment_keys(&self) -> impl Iterator<Item = (&AccountKey, &str)> {
        self.payments.iter().map(|payment| (&payment.account, &*payment.payment_id))
    }

    /// The account of an order, which stands so, about which nobody can be asked: it waits for money, and no payment of it is
    /// known at an account that `can_be_asked`. `None`: it is not such an order.
    #[must_use]
    pub fn unasked(&self, status: OrderStatus, can_be_asked: impl Fn(&AccountKey) -> bool) -> Option<&AccountKey> {
        if !status.is_open() || self.payment_keys().any(|(account, _)| can_be_asked(account)) {
            return None;
        }
        self.payment_keys().map(|(account, _)| account).next().or_else(|| self.accounts.first())
    }
}
