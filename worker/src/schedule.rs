//! When to ask next about a payment. Pure.
//!
//! The time to the next look is the time since the payment came to stand where it stands: so it doubles from look to look,
//! without counting them. Within these bounds:
//!
//! | standing | first look after | at the latest every | until, since it stood so |
//! |---|---|---|---|
//! | open | the PSP's usual delay | 6 hours, after a week each day | half a year |
//! | moving | 1 hour | day | half a year |
//! | authorized | 1 hour | day | half a year |
//! | failed, given up | ten times the usual delay | – | half a year: late success |
//! | settled | a day; never where the PSP's list shows what comes later | 2 weeks | half a year: refunds, disputes |
//! | settled, and some of it returned | the same; never where the list shows also what is undone | 2 weeks | half a year |
//! | without an order | the usual delay | day | 30 days |
//!
//! Half a year is longer than any scheme gives a payer to dispute (120 days, 180 with some). A look without an answer is
//! repeated as long after the first of them as it is old, from a minute to an hour; the account's manners stand above it.
//! A payment that its PSP does not know is asked about from every five minutes to every day.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::LateChanges;
use uuid::Uuid;

use crate::order::Standing;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const HALF_A_YEAR: Duration = Duration::from_hours(183 * 24);

/// What an account's payments are asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// From a payment to its webhook.
    pub usual_delay: Duration,
    /// What the sweep of its list brings of settled payments.
    pub lists_late_changes: LateChanges,
}

/// What the last look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The PSP answered.
    Answer,
    /// It does not know the payment; since when.
    Missing(Timestamp),
    /// There was no answer; since when.
    Nothing(Timestamp),
}

/// The first look at a payment that has just come to stand like this; `None`: there is nothing to ask.
#[must_use]
pub fn first_look(standing: Option<Standing>, habits: Habits, now: Timestamp) -> Option<Timestamp> {
    bounds(standing, habits).map(|bounds| now.plus(bounds.first))
}

/// The next look at a payment that has stood like this since then; `None`: its PSP can no longer change it, or the list shows it
/// if it does. `random` spreads what began together, by a tenth.
#[must_use]
pub fn next_look(
    standing: Option<Standing>,
    since: Timestamp,
    habits: Habits,
    after: After,
    now: Timestamp,
    random: Uuid,
) -> Option<Timestamp> {
    let bounds = bounds(standing, habits)?;
    if now.since(since) >= bounds.until {
        return None;
    }
    let age = now.since(since);
    let pause = match after {
        After::Answer => age.clamp(bounds.first, if age < bounds.rarely_after { bounds.often } else { bounds.rarely }),
        After::Missing(since) => now.since(since).clamp(5 * MINUTE, DAY),
        After::Nothing(since) => now.since(since).clamp(MINUTE, HOUR),
    };
    Some(now.plus(spread(pause, random)))
}

struct Bounds {
    first: Duration,
    often: Duration,
    rarely_after: Duration,
    rarely: Duration,
    until: Duration,
}

fn bounds(standing: Option<Standing>, habits: Habits) -> Option<Bounds> {
    let of = |first, longest| Bounds { first, often: longest, rarely_after: Duration::MAX, rarely: longest, until: HALF_A_YEAR };
    Some(match standing {
        Some(Standing::Open) => {
            Bounds { rarely_after: 7 * DAY, rarely: DAY.max(habits.usual_delay), ..of(habits.usual_delay, 6 * HOUR) }
        }
        Some(Standing::Moving | Standing::Authorized) => of(HOUR, DAY),
        Some(Standing::Failed | Standing::GivenUp) => of(habits.usual_delay * 10, HALF_A_YEAR),
        Some(Standing::Settled) if habits.lists_late_changes != LateChanges::Unlisted => return None,
        Some(Standing::Returned) if habits.lists_late_changes == LateChanges::All => return None,
        Some(Standing::Settled | Standing::Returned) => of(DAY, 14 * DAY),
        None => Bounds { until: 30 * DAY, ..of(habits.usual_delay, DAY) },
    })
}

/// Between nine and eleven tenths.
fn spread(pause: Duration, random: Uuid) -> Duration {
    let per_mille = 900 + u32::try_from(random.as_u128() % 201).unwrap_or(100);
    pause / 1000 * per_mille
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);
    const HABITS: Habits = Habits { usual_delay: MINUTE, lists_late_changes: LateChanges::Unlisted };
    /// Of which the spread makes ten tenths.
    const EVEN: Uuid = Uuid::from_u128(100);

    /// The looks at a payment that stays as it is, as times since it came to stand so.
    fn looks(standing: Option<Standing>, habits: Habits) -> Vec<Duration> {
        let mut times = Vec::new();
        let mut next = first_look(standing, habits, NOW);
        while let Some(at) = next {
            times.push(at.since(NOW));
            assert!(times.len() < 1000, "it goes on for ever");
            next = next_look(standing, NOW, habits, After::Answer, at, EVEN);
        }
        times
    }

    #[test]
    fn looks_grow_rarer_and_end() {
        for (standing, count, first, last) in [
            (Some(Standing::Open), 213, MINUTE, HALF_A_YEAR),
            (Some(Standing::Moving), 188, HOUR, HALF_A_YEAR),
            (Some(Standing::Authorized), 188, HOUR, HALF_A_YEAR),
            (Some(Standing::Failed), 16, 10 * MINUTE, HALF_A_YEAR),
            (Some(Standing::GivenUp), 16, 10 * MINUTE, HALF_A_YEAR),
            (Some(Standing::Settled), 17, DAY, HALF_A_YEAR),
            (Some(Standing::Returned), 17, DAY, HALF_A_YEAR),
            (None, 41, MINUTE, 30 * DAY),
        ] {
            let times = looks(standing, HABITS);
            assert_eq!(times[0], first, "{standing:?}");
            assert!(times.is_sorted(), "{standing:?}: {times:?}");
            assert!(*times.last().unwrap() >= last, "{standing:?}: {times:?}");
            let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
            assert!(pauses.is_sorted(), "{standing:?}: {pauses:?}");
            assert_eq!(times.len(), count, "{standing:?}");
        }
    }

    #[test]
    fn a_settled_payment_is_left_to_the_list_as_far_as_that_shows_what_becomes_of_it() {
        for (lists_late_changes, left) in [
            (LateChanges::Unlisted, &[][..]),
            (LateChanges::Begun, &[Standing::Settled]),
            (LateChanges::All, &[Standing::Settled, Standing::Returned]),
        ] {
            let habits = Habits { lists_late_changes, ..HABITS };
            for standing in Standing::ALL {
                let looks = (
                    first_look(Some(standing), habits, NOW).is_some(),
                    next_look(Some(standing), NOW, habits, After::Nothing(NOW), NOW, EVEN).is_some(),
                );
                let is_asked = !left.contains(&standing);
                assert_eq!(looks, (is_asked, is_asked), "{standing:?} {lists_late_changes:?}");
            }
        }
    }

    #[test]
    fn without_an_answer_the_next_look_is_within_the_hour() {
        let pause = |after, hours| {
            let now = NOW.plus(HOUR * hours);
            next_look(Some(Standing::Failed), NOW, HABITS, after, now, EVEN).unwrap().since(now)
        };
        assert_eq!(pause(After::Nothing(NOW), 0), MINUTE);
        assert_eq!(pause(After::Nothing(NOW), 1), HOUR);
        assert_eq!(pause(After::Nothing(NOW), 100), HOUR);
        assert_eq!(pause(After::Missing(NOW), 0), 5 * MINUTE);
        assert_eq!(pause(After::Missing(NOW), 10), 10 * HOUR);
        assert_eq!(pause(After::Missing(NOW), 100), DAY);
    }

    #[test]
    fn what_began_together_is_spread() {
        let at = |random| {
            let next = next_look(Some(Standing::Authorized), NOW, HABITS, After::Answer, NOW, Uuid::from_u128(random));
            next.unwrap().since(NOW)
        };
        assert_eq!((at(0), at(200)), (HOUR * 9 / 10, HOUR * 11 / 10));
        let many: std::collections::BTreeSet<Duration> = (0..1000).map(at).collect();
        assert_eq!(many.len(), 201);
    }
}
