//! How it was learned what became of payments, and what is known of accounts.

use paybell_shared::clock::Timestamp;

use crate::manners::Manners;
use crate::order::{AccountKey, CameTo};

/// Upper bounds of the classes of lateness, in seconds; what is later has a class of its own.
pub const LATENESS_S: [u32; 6] = [10, 60, 600, 3_600, 21_600, 86_400];
/// So many payments that are due for a webhook are counted: that there are more says the same.
pub const EXPECTED_COUNTED_MAX: u32 = 1_000;

/// What a payment came to, and who told it first. One row a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub account: AccountKey,
    pub payment_id: String,
    pub came_to: CameTo,
    /// When the first webhook came that says so, or that had its PSP asked, by the ingress's clock.
    pub webhook_at: Option<Timestamp>,
    /// When asking told it, if no webhook had come by then.
    pub asked_at: Option<Timestamp>,
    /// It was not known before. Else it only concerns a row that is there.
    pub is_first: bool,
}

/// An account's payments that asking told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedFirst {
    pub account: AccountKey,
    /// Their webhook came after all, while the PSP would still send it.
    pub late: u64,
    /// It did not come by then.
    pub missed: u64,
    /// It may still come.
    pub pending: u64,
    /// Of all whose webhook came: how many by each bound of [`LATENESS_S`] after asking had told it, and then all; each counts
    /// those before it.
    pub came_by: [u64; LATENESS_S.len() + 1],
}

/// What is kept of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountState {
    pub account: AccountKey,
    pub manners: Manners,
    /// When its last webhook came, to ten seconds.
    pub last_webhook_at: Option<Timestamp>,
}

/// Payments that a webhook should have told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Asking told what they came to.
    pub decided: u32,
    /// They were registered, wait for money, and nobody can be asked about them.
    pub registered: u32,
}
