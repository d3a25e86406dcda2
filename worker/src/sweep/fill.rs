//! A time of a list read again on demand, beside the course of the sweep, which it does not touch: after a mapping was mended, an
//! account was added, or webhooks are known to be lost.
//!
//! One page a call. What is left to do is in the [`Place`] that comes back with a page; whoever asks keeps it.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Account, Listing, Window};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::page::{self, Counts};
use super::walk::Walk;
use super::{LEASE, listing, report, say_trouble};
use crate::asking::{Asker, AskingError};
use crate::manners::{Ended, Leave, Manner};
use crate::order::AccountKey;
use crate::reconcile;
use crate::store::{Lease, StoreError};

/// Who asks for a page is answered within half a minute, or never.
const ASK_MAX: Duration = Duration::from_secs(20);

/// Where a filling stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The end of all that is to be read.
    until: Timestamp,
    walk: Walk,
}

/// A page of a filling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    pub counts: Counts,
    /// The part of the time that the page belongs to.
    pub window: Window,
    /// What is left; `None`: nothing.
    pub next: Option<Place>,
    /// Nothing was read: the account may not be asked before then.
    pub not_before: Option<Timestamp>,
}

/// Why a time cannot be read again.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("there is no account {0}/{1} here")]
    NoAccount(String, String),
    #[error("{0} has no list of events or payments that can be read")]
    NoList(&'static str),
    #[error("{0}/{1} cannot be asked with what is configured: its api_key, or what goes with it, is missing")]
    CannotAsk(String, String),
    #[error("{psp}'s list reaches back to {earliest}, not to {since}: ask from then on")]
    BeyondReach { psp: &'static str, earliest: Timestamp, since: Timestamp },
    #[error("the time ends before it begins, or begins after now")]
    NoTime,
    #[error("the page was not read ({reason}): {error}")]
    NotRead { reason: &'static str, error: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Place {
    /// The beginning of a filling.
    ///
    /// # Errors
    /// The account's list does not show this time.
    pub fn first(account: &Account, since: Timestamp, until: Option<Timestamp>, now: Timestamp) -> Result<Self, FillError> {
        let listing = usable(account)?;
        let until = until.unwrap_or(now).min(now);
        if since >= until {
            return Err(FillError::NoTime);
        }
        if let Some(earliest) = listing.reach.map(|reach| now.minus(reach)).filter(|earliest| since < *earliest) {
            return Err(FillError::BeyondReach { psp: account.psp.profile().name, earliest, since });
        }
        Ok(Self { until, walk: Walk::new(part(&listing, since, until)) })
    }

    /// Whether it is a place within such a request.
    #[must_use]
    pub fn is_of(&self, since: Timestamp, until: Option<Timestamp>) -> bool {
        let window = self.walk.window;
        since <= window.since
            && window.since <= window.until
            && window.until <= self.until
            && until.is_none_or(|until| self.until <= until)
    }

    /// The place behind a part that is read; `None`: that was all.
    fn after(self, listing: &Listing) -> Option<Self> {
        let read_until = self.walk.window.until;
        // What shares the last second with the end is read by the next part, too.
        (read_until < self.until).then(|| Self { walk: Walk::new(part(listing, read_until, self.until)), until: self.until })
    }
}

/// As much of a time as is asked for at once.
fn part(listing: &Listing, since: Timestamp, until: Timestamp) -> Window {
    Window { since, until: listing.slice.map_or(until, |slice| until.min(since.plus(slice))) }
}

fn usable(account: &Account) -> Result<Listing, FillError> {
    let profile = account.psp.profile();
    if profile.list.is_none() {
        return Err(FillError::NoList(profile.name));
    }
    listing(account).ok_or_else(|| FillError::CannotAsk(account.psp_id.to_string(), account.name.to_string()))
}

/// Reads one page.
///
/// # Errors
/// It cannot be read; nothing of it is lost, and the same place can be asked for again.
pub async fn read(asker: &Asker, key: &AccountKey, place: Place) -> Result<Filled, FillError> {
    let context = &asker.context;
    let no_account = || FillError::NoAccount(key.psp.to_string(), key.account.to_string());
    let account = context.accounts.get(key).ok_or_else(no_account)?;
    let listing = usable(account)?;
    let now = context.clock.now();
    let per_second = account.psp.profile().asks_per_second;
    let lease = Lease { now, until: now.plus(LEASE), token: context.ids.next(), per_second };
    let window = place.walk.window;
    if let Leave::NotBefore(not_before) = context.store.begin_asking(key, &lease, 1).await? {
        return Ok(Filled { counts: Counts::default(), window, next: Some(place), not_before: Some(not_before) });
    }
    let answer = timeout(ASK_MAX, page::ask(asker, key, account, &place.walk, lease.token)).await;
    let answer = answer.unwrap_or(Err(AskingError::Slow(ASK_MAX.as_secs())));
    let manner = answer.as_ref().map_or_else(page::manner, |_| Manner::Answered);
    // Before the page is stored, so that whatever becomes of that the account is not kept busy.
    let ended = Ended { requests: 1, manner };
    reconcile::report(key, context.store.end_asking(key, context.clock.now(), lease.token, ended).await?);
    let stored = match answer {
        Ok(told) => page::store(context, key, account, &place.walk, told).await?,
        Err(error) => Err(error.into()),
    };
    let stored = stored.map_err(|trouble| {
        say_trouble(key, &place.walk, &trouble);
        FillError::NotRead { reason: trouble.reason(), error: trouble.to_string() }
    })?;
    report(key, &stored);
    let counts = stored.counts;
    let behind = Place { walk: stored.walk, ..place };
    let next = if stored.is_last { behind.after(&listing) } else { Some(behind) };
    Ok(Filled { counts, window, next, not_before: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The parts of a time cover all of it, and each is a place within the request.
        #[test]
        fn parts_cover_the_whole(span_h in 1_u32..1000, slice_h in prop::option::of(1_u32..100)) {
            let hour = Duration::from_hours(1);
            let since = Timestamp::from_seconds(1_790_000_000);
            let until = since.plus(hour * span_h);
            let listing = Listing { slice: slice_h.map(|hours| hour * hours), ..Listing::USUAL };
            let (mut place, mut read_until) = (Place { until, walk: Walk::new(part(&listing, since, until)) }, since);
            loop {
                prop_assert!(place.is_of(since, Some(until)));
                prop_assert_eq!(place.walk.window.since, read_until);
                read_until = place.walk.window.until;
                prop_assert!(read_until > place.walk.window.since);
                match place.after(&listing) {
                    Some(next) => place = next,
                    None => break,
                }
            }
            prop_assert_eq!(read_until, until);
        }
    }
}
