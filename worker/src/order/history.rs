//! The history of one capture, refund or dispute: all that was observed of it, by version.
//!
//! These objects go back and forth, so a rank alone cannot merge them: what counts is the latest version.
//!
//! | object | ranks, lowest first | steps back that are daily life |
//! |---|---|---|
//! | capture | pending, succeeded, failed | none |
//! | refund | pending, succeeded, failed | none |
//! | dispute | inquiry, inquiry closed, open, won, lost | a dispute that was decided is opened again, or decided again |
//!
//! Any other step back, if only the times of events say that it is one, is doubtful, and so are two amounts for one state
//! at one version: see [`Doubt`].
//!
//! Confirmations are kept, also those of polls: what looks like an idle repetition within a run of equal observations
//! becomes the beginning of a new run once another observation of an earlier version is heard late. So no observation
//! can be dropped without making the order depend on the order of arrival: with A@1, A@5 and A@9 known, and B@3 heard
//! late, A holds at 7 only if A@5 was kept.

use paybell_shared::event::{CaptureState, DisputeState, FactVersion, RefundState};
use paybell_shared::money::Money;
use serde::{Deserialize, Serialize};

/// Sorted by version, state, amount; each of these once. Never empty: made with its first observation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History<S>(Vec<Observation<S>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Observation<S> {
    pub version: FactVersion,
    pub state: S,
    pub amount: Money,
    /// Told by an answer.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub asked: bool,
}

/// What is doubtful about the last change of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Only an event says it. An answer that confirms it, or that tells something newer, ends the doubt.
    Unconfirmed,
    /// An answer said the one, a later answer the other. A second answer that confirms the later one ends it.
    Contradiction,
}

/// States of an object, in the order of their ranks.
pub(super) trait Progress: Copy + Ord {
    /// Whether an object can come from this state to `later`, whatever was not heard of in between.
    fn leads_to(self, later: Self) -> bool {
        self <= later
    }
}

impl Progress for CaptureState {}

impl Progress for RefundState {}

impl Progress for DisputeState {
    fn leads_to(self, later: Self) -> bool {
        self <= later || later >= Self::Open
    }
}

impl<S: Progress> History<S> {
    pub fn new(first: Observation<S>) -> Self {
        Self(vec![first])
    }

    /// Adds an observation; `false` if it only confirms what was known at its version.
    pub fn add(&mut self, seen: Observation<S>) -> bool {
        let key = |seen: &Observation<S>| (seen.version, seen.state, seen.amount);
        match self.0.binary_search_by_key(&key(&seen), key) {
            Ok(place) => {
                self.0[place].asked |= seen.asked;
                false
            }
            Err(place) => {
                let before = place.checked_sub(1).and_then(|before| self.0.get(before));
                let confirms = before.is_some_and(|before| before.says_as(&seen));
                self.0.insert(place, seen);
                !confirms
            }
        }
    }

    pub fn first(&self) -> Observation<S> {
        self.0[0]
    }

    /// What counts now.
    pub fn latest(&self) -> Observation<S> {
        self.0[self.0.len() - 1]
    }

    /// What counted at `version`; `None` if nothing was known then.
    pub fn at(&self, version: FactVersion) -> Option<Observation<S>> {
        let until = self.0.partition_point(|seen| seen.version <= version);
        until.checked_sub(1).map(|index| self.0[index])
    }

    /// The version at which the present state was first told.
    pub fn since(&self) -> FactVersion {
        let state = self.latest().state;
        let run = self.0.iter().rev().take_while(|seen| seen.state == state);
        run.last().map_or(self.first().version, |seen| seen.version)
    }

    /// Whether it was told to be in `state` later than `version`.
    pub fn was_later(&self, state: S, version: FactVersion) -> bool {
        self.0.iter().rev().take_while(|seen| seen.version > version).any(|seen| seen.state == state)
    }

    /// Whether it was ever told to be in `state`.
    pub fn was(&self, state: S) -> bool {
        self.0.iter().any(|seen| seen.state == state)
    }

    pub fn doubt(&self) -> Option<Doubt> {
        let latest = self.latest();
        let start = self.0.iter().rposition(|seen| !seen.says_as(&latest))? + 1;
        let (earlier, run) = self.0.split_at(start);
        let (before, now) = (earlier[start - 1], run[0]);
        let is_torn = before.version == now.version && before.state == now.state;
        let by_time = matches!((before.version, now.version), (FactVersion::Time(_), FactVersion::Time(_)));
        let steps_back = by_time && !before.state.leads_to(now.state);
        if !is_torn && !steps_back {
            return None;
        }
        let answered_before = earlier.iter().rev().take_while(|seen| seen.says_as(&before)).any(|seen| seen.asked);
        // Each of these has a version of its own.
        match run.iter().filter(|seen| seen.asked).count() {
            0 => Some(Doubt::Unconfirmed),
            1 if answered_before => Some(Doubt::Contradiction),
            _ => None,
        }
    }
}

impl<S: PartialEq> Observation<S> {
    fn says_as(&self, other: &Self) -> bool {
        self.state == other.state && self.amount == other.amount
    }
}
