//! Orders whose time is over, and orders about which nobody can be asked.

use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoredOrder;
use crate::order::{AccountKey, Registers};

/// That an order's time was over and nothing had been paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub order_id: String,
    /// The end that it was held against.
    pub ends_at: Timestamp,
    /// By then nothing had been paid.
    pub by: Timestamp,
    /// Its payments whose PSP said so; about others nobody can be asked.
    pub asked: Vec<Agreed>,
}

/// Two looks that agree: the PSP knew of no money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    #[serde(flatten)]
    pub account: AccountKey,
    pub payment_id: String,
    /// When they began.
    pub looks: [Timestamp; 2],
}

/// An order that is to be attended to, under a lease.
#[derive(Clone, Debug)]
pub struct DueOrder {
    pub registers: Registers,
    pub stored: StoredOrder,
    /// It is due again then.
    pub leased_until: Timestamp,
    /// What is known of its payments from asking.
    pub looks: Vec<Looks>,
}

/// What asking about a payment said of its money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looks {
    pub account: AccountKey,
    pub payment_id: String,
    /// The last look that found none, and the one before it.
    pub denied_at: Option<Timestamp>,
    pub denied_before_at: Option<Timestamp>,
    /// The last look got no answer, or the PSP did not know the payment.
    pub is_in_vain: bool,
    pub next_check_at: Option<Timestamp>,
    /// A look is under way until then, at most.
    pub lease_until: Option<Timestamp>,
}

/// What became of a [`DueOrder`] that was not found expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attended {
    pub order_id: String,
    pub version: i64,
    pub leased_until: Timestamp,
    /// When it is to be attended to again; `None`: not before it changes.
    pub due_at: Option<Timestamp>,
    /// Payments that their PSP is to be asked about no later than then.
    pub looks: Vec<(AccountKey, String, Timestamp)>,
    pub unasked: UnaskedWrite,
}

/// Whether an order waits for money and nobody can be asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnaskedWrite {
    pub order_id: String,
    /// Whose webhook is the only one that can tell; `None`: it is not, or no longer, such an order.
    pub account: Option<AccountKey>,
    /// Since when, if it was not known before.
    pub since: Timestamp,
}
