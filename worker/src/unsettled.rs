//! The operator's list: every open order that will not be settled by itself, by its deadline (invariant I10).
//!
//! | reason | since | it is on the list once that is |
//! |---|---|---|
//! | `credentials_refused` | its look was due | now, while the account's credentials are refused |
//! | `unknown_to_psp` | every answer was that the PSP does not know the payment | [`UNKNOWN_MAX`] ago |
//! | `no_answer` | its look was due, and was not made or got no answer | [`NO_ANSWER_MAX`] ago |
//! | `no_money` | the payment stands open, and two looks found no money, or all that there will be | [`SETTLE_MAX`] ago, if its order has no end |
//! | `cannot_be_asked` | the order waits, and no payment is known that its PSP could be asked about | the same |
//!
//! An order that has an end (`expires_at`) becomes `expired` instead of staying with the last two. All of it is read from what is,
//! so an order leaves the list as soon as its cause is gone. Events that wait for their order have a list of their own
//! (`/v1/parked`), and so have orders under review.

use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{ORDERS_UNSETTLED, REASON};

use crate::consume::Context;
use crate::order::AccountKey;
use crate::store::{Reason, StoreError, Unsettled, UnsettledPlace};

/// A PSP's own delay between making a payment and answering about it is seconds; a day is a mistake.
pub const UNKNOWN_MAX: Duration = Duration::from_hours(24);
/// As long as the longest pause between two looks without an answer.
pub const NO_ANSWER_MAX: Duration = Duration::from_hours(1);
/// Longer than the slowest usual ways to pay take: bank transfers, direct debits, vouchers that are paid in a shop.
pub const SETTLE_MAX: Duration = Duration::from_hours(24 * 14);
/// Between two counts.
const WATCH_PERIOD: Duration = Duration::from_secs(30);

/// What an operator can do about it.
#[must_use]
pub const fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::CredentialsRefused => {
            "Give this account an api_key that its PSP accepts, and start the workers anew: all that is due is asked about then."
        }
        Reason::UnknownToPsp => {
            "Look for the payment at the PSP: is its id another one, or another account's or mode's? Register the right one, or an \
             expires_at to let the order go."
        }
        Reason::NoAnswer => {
            "See whether the PSP is up, and reachable from the workers (paybell_psp_circuit_open). It is asked again by itself."
        }
        Reason::NoMoney => {
            "Nobody paid. Register the order with an expires_at, and it expires; a late payment counts all the same."
        }
        Reason::CannotBeAsked => {
            "Look the order up at the PSP, and have it send the webhook again. Register the payment's id and give the account an \
             api_key, so that it can be asked about; or an expires_at to let the order go."
        }
    }
}

/// Since before when something must be wrong to be on the list.
#[must_use]
pub fn deadline(reason: Reason, now: Timestamp) -> Timestamp {
    match reason {
        Reason::CredentialsRefused => now,
        Reason::UnknownToPsp => now.minus(UNKNOWN_MAX),
        Reason::NoAnswer => now.minus(NO_ANSWER_MAX),
        Reason::NoMoney | Reason::CannotBeAsked => now.minus(SETTLE_MAX),
    }
}

/// A page of the list, by reason in the order of [`Reason::ALL`], and then by age; from behind `after`.
///
/// # Errors
/// The database does not answer.
pub async fn page(
    context: &Context,
    only: Option<Reason>,
    after: Option<&(Reason, UnsettledPlace)>,
    limit: u32,
) -> Result<Vec<(Reason, Unsettled)>, StoreError> {
    let (now, accounts) = (context.clock.now(), Accounts::read(context).await?);
    let mut found = Vec::new();
    let first = after.map_or(Reason::ALL[0], |(reason, _)| *reason);
    for reason in Reason::ALL.into_iter().filter(|reason| *reason >= first && only.is_none_or(|only| only == *reason)) {
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(limit));
        if left == 0 {
            break;
        }
        let after = after.filter(|(of, _)| *of == reason).map(|(_, place)| place);
        let more = context.store.unsettled(reason, accounts.of(reason), deadline(reason, now), after, left).await?;
        found.extend(more.into_iter().map(|unsettled| (reason, unsettled)));
    }
    Ok(found)
}

/// Counts until the stop. Every worker does, and says the same.
///
/// # Errors
/// None: while the database is away, the last count stands.
pub async fn watch(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        match count(&context).await {
            Ok(counts) => {
                for (reason, count) in counts {
                    metrics::gauge!(ORDERS_UNSETTLED, REASON => reason.as_str()).set(f64::from(count));
                }
            }
            // The pulse says so.
            Err(error) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "unsettled orders are not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

/// How many orders there are of each reason.
///
/// # Errors
/// The database does not answer.
pub async fn count(context: &Context) -> Result<Vec<(Reason, u32)>, StoreError> {
    let (now, accounts) = (context.clock.now(), Accounts::read(context).await?);
    let mut counts = Vec::with_capacity(Reason::ALL.len());
    for reason in Reason::ALL {
        let count = context.store.count_unsettled(reason, accounts.of(reason), deadline(reason, now)).await?;
        counts.push((reason, count));
    }
    Ok(counts)
}

/// The accounts that are to be asked.
#[derive(Default)]
struct Accounts {
    /// Their PSPs refuse our credentials.
    refused: Vec<AccountKey>,
    others: Vec<AccountKey>,
}

impl Accounts {
    async fn read(context: &Context) -> Result<Self, StoreError> {
        let states = context.store.account_states().await?;
        let is_refused =
            |key: &&AccountKey| states.iter().any(|state| state.account == **key && state.manners.refused_since().is_some());
        let (mut refused, mut others): (Vec<AccountKey>, Vec<AccountKey>) = (Vec::new(), Vec::new());
        for key in context.policy.asking.keys() {
            if is_refused(&key) { &mut refused } else { &mut others }.push(key.clone());
        }
        Ok(Self { refused, others })
    }

    fn of(&self, reason: Reason) -> &[AccountKey] {
        match reason {
            Reason::CredentialsRefused => &self.refused,
            Reason::NoAnswer => &self.others,
            Reason::UnknownToPsp | Reason::NoMoney | Reason::CannotBeAsked => &[],
        }
    }
}
