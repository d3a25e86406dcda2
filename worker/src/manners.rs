//! Good manners to a PSP: how much one account may be asked, and when. Pure; one state an account, shared by all workers
//! through the database.
//!
//! | what the PSP does | what follows |
//! |---|---|
//! | answers | up to its rate, and [`BUSY_MAX`] conversations at a time |
//! | 429 | nothing until its `Retry-After`, within [`PAUSE_MIN`] and [`PAUSE_MAX`]; without one, ever longer |
//! | no answer, 5xx, again and again | the circuit opens: nothing for a while, then one probe, until one is answered |
//! | was not heard, as nothing was asked | nothing: a probe that asks nothing proves nothing |
//! | refuses our credentials | said once; a probe now and then, since only a person can mend it |
//!
//! Many payments are asked about, and now and then something else is (a list is read): who asks for that and finds no place is
//! next, so that a backlog of payments does not keep it waiting for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Conversations at a time with one account.
pub const BUSY_MAX: u32 = 4;
/// Requests that may be sent at once after a pause, in seconds of the rate.
const BURST_S: i64 = 2;
/// Failures in a row that open the circuit.
const OPENING_FAILURES: u32 = 5;
/// Pauses between a failure and the next request: doubled from the shortest to the longest.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);
pub const PAUSE_MAX: Duration = Duration::from_hours(1);
/// The first pause of an open circuit.
const OPEN_MIN: Duration = Duration::from_secs(30);
/// The longest: so late, at most, an account is found well again.
const OPEN_MAX: Duration = Duration::from_mins(10);
/// Between probes whether our credentials are accepted again.
const REFUSED_PAUSE: Duration = Duration::from_mins(15);
/// So long a place is kept for who found none: it comes again within that time, or not at all.
const TURN: Duration = Duration::from_secs(10);
/// So far apart the clocks of workers may be. What lies further ahead was written by a clock that was wrong, and silences
/// nobody.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_mins(5);

/// What is known of an account's patience.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manners {
    /// Requests that may be sent now, in thousandths. Below zero: more were sent than the rate allows.
    allowance_m: i64,
    /// When the allowance was last raised; `None`: never, so that it is full.
    refilled_at: Option<Timestamp>,
    /// Conversations under way, by the token of who began them, and until when they are believed to be.
    busy: BTreeMap<Uuid, Busy>,
    not_before: Option<Timestamp>,
    /// Failures since the last answer.
    failures: u32,
    refused_since: Option<Timestamp>,
    /// Until then one place is kept for who asks in turn.
    #[serde(default)]
    turn_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Busy {
    conversations: u32,
    until: Timestamp,
}

/// Whether an account may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// So many conversations may begin.
    Go(u32),
    /// None before then.
    NotBefore(Timestamp),
}

/// A conversation that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Sent in it.
    pub requests: u32,
    pub manner: Manner,
}

/// How the PSP behaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It answered, whatever it said of the payment.
    Answered,
    /// It was not asked, or we did not wait for its answer.
    Unheard,
    /// It did not, or not sensibly.
    Failed { retry_after: Option<Duration> },
    /// It answered that we ask too often.
    SlowDown { retry_after: Option<Duration> },
    /// It does not accept our credentials.
    Refused,
    /// It does not answer this question for our credentials, which says nothing about other questions.
    Withheld,
    /// It answered something else than was asked for, which tells nothing of the rest of its API.
    Unclear,
}

/// What a person should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing is asked for a while.
    CircuitOpened,
    CredentialsRefused,
    /// It answers again.
    Recovered,
}

impl Manners {
    /// Begins up to `wanted` conversations, each with one request at least; they are over at `until`, whatever happens.
    pub fn begin(&mut self, now: Timestamp, per_second: u32, wanted: u32, token: Uuid, until: Timestamp) -> Leave {
        let kept = u32::from(self.turn_until.is_some_and(|turn_until| is_ahead(turn_until, now)));
        self.grant(now, per_second, wanted, kept, token, until)
    }

    /// The same for who asks seldom: if there is no place now, the next one is kept for it.
    pub fn begin_in_turn(&mut self, now: Timestamp, per_second: u32, wanted: u32, token: Uuid, until: Timestamp) -> Leave {
        let leave = self.grant(now, per_second, wanted, 0, token, until);
        let is_paused = self.pauses_until(now).is_some();
        self.turn_until = match leave {
            Leave::Go(_) => None,
            Leave::NotBefore(_) if is_paused => self.turn_until,
            Leave::NotBefore(_) => Some(now.plus(TURN)),
        };
        leave
    }

    /// `kept`: places that are left free.
    fn grant(&mut self, now: Timestamp, per_second: u32, wanted: u32, kept: u32, token: Uuid, until: Timestamp) -> Leave {
        self.busy.retain(|_, busy| is_ahead(busy.until, now));
        if let Some(not_before) = self.pauses_until(now) {
            return Leave::NotBefore(not_before);
        }
        self.refill(now, per_second);
        let under_way: u32 = self.busy.values().map(|busy| busy.conversations).sum();
        let at_once = if self.is_open() { 1 } else { BUSY_MAX };
        let places = at_once.saturating_sub(under_way).min(u32::try_from(self.allowance_m / 1000).unwrap_or(0));
        let granted = wanted.min(places.saturating_sub(kept));
        if granted == 0 {
            let missing_m = (i64::from(1 + kept) * 1000 - self.allowance_m).max(0);
            let refilled_in = Duration::from_millis(u64::try_from(missing_m).unwrap_or(0).div_ceil(per_second.max(1).into()));
            return Leave::NotBefore(now.plus(refilled_in.max(PAUSE_MIN)));
        }
        self.allowance_m -= i64::from(granted) * 1000;
        self.busy.insert(token, Busy { conversations: granted, until });
        Leave::Go(granted)
    }

    /// Ends one conversation of those that were begun under this token.
    pub fn end(&mut self, now: Timestamp, token: Uuid, ended: Ended) -> Option<News> {
        if let Some(busy) = self.busy.get_mut(&token) {
            busy.conversations -= 1;
            if busy.conversations == 0 {
                self.busy.remove(&token);
            }
        }
        self.allowance_m -= i64::from(ended.requests.saturating_sub(1)) * 1000;
        let (was_open, was_refused) = (self.is_open(), self.refused_since.is_some());
        // Whoever was under way when the pause began says nothing new: four that fail at once are no four pauses.
        let counts = self.pauses_until(now).is_none();
        match ended.manner {
            Manner::Unheard | Manner::Withheld | Manner::Unclear => return None,
            Manner::Answered => {
                self.failures = 0;
                self.refused_since = None;
                return (was_open || was_refused).then_some(News::Recovered);
            }
            Manner::Failed { retry_after } => {
                self.failures = self.failures.saturating_add(u32::from(counts));
                let beyond = self.failures.checked_sub(OPENING_FAILURES);
                let pause = beyond.map(|beyond| doubled(OPEN_MIN, beyond).min(OPEN_MAX));
                self.pause(now, pause.max(retry_after));
            }
            Manner::SlowDown { retry_after } => {
                self.failures = self.failures.saturating_add(u32::from(counts));
                self.pause(now, Some(retry_after.unwrap_or_else(|| doubled(PAUSE_MIN, self.failures))));
            }
            Manner::Refused => {
                self.failures = self.failures.max(OPENING_FAILURES);
                self.refused_since.get_or_insert(now);
                self.pause(now, Some(REFUSED_PAUSE));
                return (!was_refused).then_some(News::CredentialsRefused);
            }
        }
        (self.is_open() && !was_open).then_some(News::CircuitOpened)
    }

    /// Only one probe at a time may go.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.failures >= OPENING_FAILURES
    }

    /// Since when our credentials are refused.
    #[must_use]
    pub const fn refused_since(&self) -> Option<Timestamp> {
        self.refused_since
    }

    fn pause(&mut self, now: Timestamp, pause: Option<Duration>) {
        let until = pause.map(|pause| now.plus(pause.clamp(PAUSE_MIN, PAUSE_MAX)));
        self.not_before = self.pauses_until(now).max(until);
    }

    /// The end of a pause that lasts.
    fn pauses_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.not_before.filter(|not_before| is_ahead(*not_before, now))
    }

    fn refill(&mut self, now: Timestamp, per_second: u32) {
        let full_m = i64::from(per_second.max(1)) * 1000 * BURST_S;
        let waited_ms = self.refilled_at.map_or(i64::MAX, |before| now.millis().saturating_sub(before.millis()).max(0));
        let refilled_m = waited_ms.saturating_mul(per_second.max(1).into());
        self.allowance_m = self.allowance_m.saturating_add(refilled_m).min(full_m);
        let by_right_clock = self.refilled_at.filter(|before| *before <= now.plus(CLOCKS_DIFFER_MAX));
        self.refilled_at = by_right_clock.max(Some(now));
    }
}

/// It is still to come, and nobody means more: no pause and no conversation lasts longer.
fn is_ahead(at: Timestamp, now: Timestamp) -> bool {
    now < at && at <= now.plus(PAUSE_MAX + CLOCKS_DIFFER_MAX)
}

fn doubled(shortest: Duration, times: u32) -> Duration {
    shortest.saturating_mul(2_u32.saturating_pow(times.min(16)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);
    const RATE: u32 = 5;

    fn token(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn at(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    /// Begins one conversation; the time before which it may not.
    fn begin(manners: &mut Manners, now: Timestamp, n: u128) -> Result<(), Timestamp> {
        match manners.begin(now, RATE, 1, token(n), now.plus(Duration::from_mins(5))) {
            Leave::Go(granted) => {
                assert_eq!(granted, 1);
                Ok(())
            }
            Leave::NotBefore(not_before) => {
                assert!(not_before > now);
                Err(not_before)
            }
        }
    }

    fn end(manners: &mut Manners, now: Timestamp, n: u128, manner: Manner) -> Option<News> {
        manners.end(now, token(n), Ended { requests: 1, manner })
    }

    /// Fails until the circuit is open.
    fn opened() -> Manners {
        let mut manners = Manners::default();
        for n in 1..=OPENING_FAILURES {
            begin(&mut manners, NOW, n.into()).unwrap();
            let news = end(&mut manners, NOW, n.into(), Manner::Failed { retry_after: None });
            assert_eq!(news, (n == OPENING_FAILURES).then_some(News::CircuitOpened));
        }
        manners
    }

    #[test]
    fn conversations_at_a_time_are_few_and_the_dead_ones_are_forgotten() {
        let mut manners = Manners::default();
        let until = at(300);
        assert_eq!(manners.begin(NOW, RATE, 100, token(1), until), Leave::Go(BUSY_MAX));
        assert_eq!(manners.begin(NOW, RATE, 100, token(2), until), Leave::NotBefore(NOW.plus(PAUSE_MIN)));
        manners.end(NOW, token(1), Ended { requests: 1, manner: Manner::Answered });
        assert_eq!(manners.begin(NOW, RATE, 100, token(2), until), Leave::Go(1));
        assert_eq!(manners.begin(at(300), RATE, 100, token(3), at(600)), Leave::Go(BUSY_MAX), "nobody ended the others");
    }

    #[test]
    fn requests_beyond_the_rate_are_a_debt() {
        let mut manners = Manners::default();
        begin(&mut manners, NOW, 1).unwrap();
        // 32 pages: 10 were there, so 22 are owed; at 5 a second the 23rd is due after 4.6 s.
        manners.end(NOW, token(1), Ended { requests: 32, manner: Manner::Answered });
        assert_eq!(begin(&mut manners, NOW, 2), Err(NOW.plus(Duration::from_millis(4600))));
        assert!(begin(&mut manners, NOW.plus(Duration::from_millis(4599)), 2).is_err());
        begin(&mut manners, NOW.plus(Duration::from_millis(4600)), 2).unwrap();
    }

    #[test]
    fn what_retry_after_says_is_kept_within_caps() {
        for (said, kept) in [(0, PAUSE_MIN), (7, Duration::from_secs(7)), (999_999, PAUSE_MAX)] {
            for slow_down in [true, false] {
                let mut manners = Manners::default();
                begin(&mut manners, NOW, 1).unwrap();
                let retry_after = Some(Duration::from_secs(said));
                let manner = if slow_down { Manner::SlowDown { retry_after } } else { Manner::Failed { retry_after } };
                end(&mut manners, NOW, 1, manner);
                assert_eq!(begin(&mut manners, NOW, 2), Err(NOW.plus(kept)));
                begin(&mut manners, NOW.plus(kept), 2).unwrap();
            }
        }
    }

    #[test]
    fn without_retry_after_the_pauses_grow() {
        let (mut manners, mut now, mut pauses) = (Manners::default(), NOW, Vec::new());
        for n in 0..20 {
            begin(&mut manners, now, n).unwrap();
            end(&mut manners, now, n, Manner::SlowDown { retry_after: None });
            let until = begin(&mut manners, now, n + 100).unwrap_err();
            pauses.push(until.since(now));
            now = until;
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[5] && pauses[19] == PAUSE_MAX, "{pauses:?}");
    }

    #[test]
    fn an_open_circuit_lets_one_probe_through_at_a_time() {
        let mut manners = opened();
        assert_eq!(begin(&mut manners, NOW, 10), Err(NOW.plus(OPEN_MIN)));
        let probing = NOW.plus(OPEN_MIN);
        assert_eq!(manners.begin(probing, RATE, 4, token(11), at(600)), Leave::Go(1));
        assert!(begin(&mut manners, probing, 12).is_err(), "one is under way");
        assert_eq!(end(&mut manners, probing, 11, Manner::Failed { retry_after: None }), None, "it is known");
        assert_eq!(begin(&mut manners, probing, 12), Err(probing.plus(OPEN_MIN * 2)));
        let probing = probing.plus(OPEN_MIN * 2);
        begin(&mut manners, probing, 12).unwrap();
        assert_eq!(end(&mut manners, probing, 12, Manner::Answered), Some(News::Recovered));
        assert_eq!(manners.begin(probing, RATE, 4, token(13), at(600)), Leave::Go(4));
    }

    /// The circuit opens at the fifth failure, and the three that were under way with it fail as well.
    #[test]
    fn those_under_way_when_the_circuit_opens_do_not_lengthen_its_pause() {
        let mut manners = Manners::default();
        for round in 0..2 {
            assert_eq!(manners.begin(NOW, RATE, 4, token(round), at(300)), Leave::Go(4));
            for _ in 0..4 {
                end(&mut manners, NOW, round, Manner::Failed { retry_after: None });
            }
        }
        assert_eq!(begin(&mut manners, NOW, 10), Err(NOW.plus(OPEN_MIN)));
        let mut manners = Manners::default();
        assert_eq!(manners.begin(NOW, RATE, 4, token(1), at(300)), Leave::Go(4));
        for _ in 0..4 {
            end(&mut manners, NOW, 1, Manner::SlowDown { retry_after: None });
        }
        assert_eq!(begin(&mut manners, NOW, 10), Err(NOW.plus(PAUSE_MIN * 2)));
    }

    /// The payment's id was malformed, a setting was missing, or we stopped in the middle of it.
    #[test]
    fn a_probe_that_asks_nothing_closes_no_circuit() {
        let mut manners = opened();
        let probing = NOW.plus(OPEN_MIN);
        begin(&mut manners, probing, 11).unwrap();
        assert_eq!(end(&mut manners, probing, 11, Manner::Unheard), None);
        assert!(manners.is_open());
        begin(&mut manners, probing, 12).unwrap();
        assert!(begin(&mut manners, probing, 13).is_err(), "still one at a time");
        end(&mut manners, probing, 12, Manner::Refused);
        let probing = probing.plus(REFUSED_PAUSE);
        begin(&mut manners, probing, 14).unwrap();
        assert_eq!(end(&mut manners, probing, 14, Manner::Unheard), None);
        assert!(manners.refused_since().is_some());
    }

    #[test]
    fn refused_credentials_are_said_once_and_tried_seldom() {
        let (mut manners, mut now) = (Manners::default(), NOW);
        for n in 0..5 {
            begin(&mut manners, now, n).unwrap();
            let news = end(&mut manners, now, n, Manner::Refused);
            assert_eq!(news, (n == 0).then_some(News::CredentialsRefused));
            assert_eq!(manners.refused_since(), Some(NOW));
            assert_eq!(begin(&mut manners, now, 99), Err(now.plus(REFUSED_PAUSE)));
            now = now.plus(REFUSED_PAUSE);
        }
        begin(&mut manners, now, 9).unwrap();
        assert_eq!(end(&mut manners, now, 9, Manner::Answered), Some(News::Recovered));
        assert_eq!(manners.refused_since(), None);
    }

    /// A backlog takes all that there is, again and again; so does who reads a list, if nobody minds.
    #[test]
    fn who_asks_seldom_has_its_turn_and_takes_no_more_than_that() {
        let mut manners = Manners::default();
        let (mut now, mut payments, mut lists, mut waits) = (NOW, 0, 0, Vec::new());
        let mut asked_at = NOW;
        for n in 0..2000_u128 {
            let token = token(n);
            if let Leave::Go(granted) = manners.begin(now, RATE, 4, token, at(9999)) {
                payments += granted;
                for _ in 0..granted {
                    manners.end(now, token, Ended { requests: 1, manner: Manner::Answered });
                }
            }
            // Once a second, as one that was told to wait does.
            if n % 10 == 9 {
                let token = self::token(n + 10_000);
                if manners.begin_in_turn(now, RATE, 1, token, at(9999)) == Leave::Go(1) {
                    lists += 1;
                    manners.end(now, token, Ended { requests: 1, manner: Manner::Answered });
                    waits.push(now.since(asked_at));
                    asked_at = now;
                }
            }
            now = now.plus(Duration::from_millis(100));
        }
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(2)), "{waits:?}");
        assert!(lists >= 100 && payments >= 700, "{lists} and {payments} of 1000");
        // Who went away keeps nobody waiting for long.
        let mut idle = Manners { turn_until: Some(NOW.plus(TURN)), ..Manners::default() };
        assert_eq!(idle.begin(NOW, RATE, 9, token(3), at(300)), Leave::Go(BUSY_MAX - 1));
        let mut idle = Manners { turn_until: Some(NOW), ..Manners::default() };
        assert_eq!(idle.begin(NOW, RATE, 9, token(3), at(300)), Leave::Go(BUSY_MAX));
    }

    #[test]
    fn an_unclear_answer_neither_opens_the_circuit_nor_closes_it() {
        let mut manners = Manners::default();
        for n in 0..20 {
            begin(&mut manners, at(n), n.into()).unwrap();
            assert_eq!(end(&mut manners, at(n), n.into(), Manner::Unclear), None);
        }
        assert!(!manners.is_open());
        let mut manners = opened();
        begin(&mut manners, NOW.plus(OPEN_MIN), 9).unwrap();
        assert_eq!(end(&mut manners, NOW.plus(OPEN_MIN), 9, Manner::Unclear), None);
        assert!(manners.is_open());
    }

    #[test]
    fn a_question_that_is_withheld_says_nothing_about_others() {
        let mut manners = opened();
        let before = manners.clone();
        let probing = NOW.plus(OPEN_MIN);
        begin(&mut manners, probing, 10).unwrap();
        assert_eq!(end(&mut manners, probing, 10, Manner::Withheld), None);
        assert_eq!((manners.failures, manners.refused_since, manners.is_open()), (before.failures, None, true));
        begin(&mut manners, probing, 11).unwrap();
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_takes_nothing() {
        let mut manners = Manners::default();
        for n in 0..10 {
            begin(&mut manners, at(100), n).unwrap();
            end(&mut manners, at(100), n, Manner::Answered);
        }
        assert!(begin(&mut manners, at(50), 11).is_err());
        assert!(begin(&mut manners, at(100), 11).is_err());
        begin(&mut manners, at(101), 11).unwrap();
    }

    /// A worker whose clock is a year ahead asks, fails, and dies in the middle of its next questions.
    #[test]
    fn a_clock_that_was_ahead_silences_nobody() {
        let year = at(365 * 24 * 3600);
        let mut manners = Manners::default();
        for n in 1..=OPENING_FAILURES {
            begin(&mut manners, year, n.into()).unwrap();
            end(&mut manners, year, n.into(), Manner::Failed { retry_after: None });
        }
        let probing = year.plus(OPEN_MIN);
        begin(&mut manners, probing, 10).unwrap();
        begin(&mut manners, NOW, 11).unwrap();
        assert_eq!(end(&mut manners, NOW, 11, Manner::Answered), Some(News::Recovered));
        assert_eq!(manners.begin(NOW, RATE, 4, token(12), at(300)), Leave::Go(4));
        for _ in 0..4 {
            end(&mut manners, NOW, 12, Manner::Answered);
        }
        // The rate is the true clock's again.
        for n in 13..20 {
            let _ = begin(&mut manners, NOW, n);
            end(&mut manners, NOW, n, Manner::Answered);
        }
        assert!(begin(&mut manners, NOW, 20).is_err());
        begin(&mut manners, at(1), 21).unwrap();
        // Workers whose clocks differ a little keep each other's pauses.
        end(&mut manners, at(2), 21, Manner::SlowDown { retry_after: Some(PAUSE_MAX) });
        assert_eq!(begin(&mut manners, at(1), 22), Err(at(2).plus(PAUSE_MAX)));
    }

    proptest! {
        /// Whatever is asked for and however it ends, no more requests go in any time than the rate and one burst allow.
        #[test]
        fn the_rate_is_kept(steps in prop::collection::vec((0_u64..3000, 1_u32..6, 1_u32..4), 1..200)) {
            let (mut manners, mut now, mut sent) = (Manners::default(), NOW, 0_u64);
            for (n, (wait_ms, wanted, requests)) in steps.into_iter().enumerate() {
                now = now.plus(Duration::from_millis(wait_ms));
                let token = token(n as u128);
                if let Leave::Go(granted) = manners.begin(now, RATE, wanted, token, now.plus(Duration::from_mins(5))) {
                    for _ in 0..granted {
                        sent += u64::from(requests);
                        manners.end(now, token, Ended { requests, manner: Manner::Answered });
                    }
                }
                // What a conversation sends beyond its first request is known when it ends: a debt of at most that.
                let debt = u64::from(BUSY_MAX) * 2;
                let allowed = u64::from(RATE) * (now.since(NOW).as_secs() + 1 + BURST_S.unsigned_abs()) + debt;
                prop_assert!(sent <= allowed, "{sent} of {allowed}");
            }
        }

        #[test]
        fn what_is_kept_in_the_database_comes_back(failures in 0_u32..9, not_before in any::<Option<u32>>(), busy in 0_u32..4) {
            let mut manners = Manners { failures, not_before: not_before.map(|s| Timestamp::from_seconds(s.into())), ..Manners::default() };
            let _ = manners.begin(NOW, RATE, busy, token(1), at(10));
            let text = serde_json::to_string(&manners).unwrap();
            prop_assert_eq!(serde_json::from_str::<Manners>(&text).unwrap(), manners);
        }
    }
}
