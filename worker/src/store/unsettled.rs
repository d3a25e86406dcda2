//! Open orders that will not be settled by themselves.

use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::StoredOrder;
use crate::order::AccountKey;

/// So many orders of a reason are counted: that there are more says the same.
pub const UNSETTLED_COUNTED_MAX: u32 = 10_000;

/// Why an open order does not come to an end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The PSP refuses our credentials, so that nothing at this account can be asked about.
    CredentialsRefused,
    /// The PSP does not know the payment.
    UnknownToPsp,
    /// The PSP does not answer, or is not asked because it did not.
    NoAnswer,
    /// The PSP said twice that there is no money, and its time has no end.
    NoMoney,
    /// No payment is known that its PSP could be asked about, and no webhook told the end.
    CannotBeAsked,
}

impl Reason {
    /// In the order of the list.
    pub const ALL: [Self; 5] = [Self::CredentialsRefused, Self::UnknownToPsp, Self::NoAnswer, Self::NoMoney, Self::CannotBeAsked];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CredentialsRefused => "credentials_refused",
            Self::UnknownToPsp => "unknown_to_psp",
            Self::NoAnswer => "no_answer",
            Self::NoMoney => "no_money",
            Self::CannotBeAsked => "cannot_be_asked",
        }
    }

    /// It concerns all that is to be asked at an account.
    pub(super) const fn is_of_account(self) -> bool {
        matches!(self, Self::CredentialsRefused | Self::NoAnswer)
    }

    /// The reason of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// An open order and why it is not settled; once for each of its payments that hold it up.
#[derive(Clone, Debug)]
pub struct Unsettled {
    pub place: UnsettledPlace,
    pub order: StoredOrder,
}

/// Where one stands among all of its reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnsettledPlace {
    pub since: Timestamp,
    /// The payment's id; of [`Reason::CannotBeAsked`], the order's.
    pub id: String,
    pub account: AccountKey,
}
