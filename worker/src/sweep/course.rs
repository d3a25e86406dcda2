//! How far an account's list is read, and what is read next. Pure; one course an account, shared by all workers through the
//! database.
//!
//! Time is read window by window. A window begins by the list's lag before the place where the last one ended, so that what
//! shows late, and what shares a second with the end, is read by the next one:
//!
//! ```text
//!        lag      slice at most, until now
//!      |------|===========================|
//!    since  position                    until      → position, if the list says nothing else
//! ```
//!
//! | | the window begins |
//! |---|---|
//! | of an account that is new | an hour before it was configured |
//! | after an outage | where the list was read to, as far as the list reaches back; what lies before that is said to be lost |
//! | once a day | a day before: what a list skipped, or showed too late, is read then |
//!
//! A window ends where its list is believed to end: not behind the time at which the PSP wrote its first page, and, of a log of
//! events, not behind its last event if webhooks tell of later ones, as long as that is less than a day ago. The place only
//! moves when all pages of a window are read; a page that cannot be read leaves it.

use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::{Listing, Window};
use serde::{Deserialize, Serialize};

use super::walk::{Lost, Page, Walk};

/// An account is set up within an hour: payments that were made meanwhile are found.
const FIRST_BACK: Duration = Duration::from_hours(1);
/// How often what was read is read again, and how far back: an hour more, so that nothing lies between two readings.
const REREAD_EVERY: Duration = Duration::from_hours(24);
const REREAD_BACK: Duration = Duration::from_hours(25);
/// The longest that a list is waited for which says less than webhooks. Behind it the place goes on: reading ever more each
/// time would help nobody.
const DOUBT_BACK: Duration = Duration::from_hours(24);
/// Failures at one page, after which the window is begun anew: its cursor may be what is wrong.
const CURSOR_FAILURES: u32 = 3;
/// Pauses after a failure: doubled from the shortest to the longest.
const PAUSE_MIN: Duration = Duration::from_mins(1);
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// How far a list is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// All that the list shows of the time before was read.
    swept_until: Timestamp,
    /// Where the next window begins, but for the lag; before `swept_until` while a day is read again.
    position: Timestamp,
    /// When a day was last read again.
    reread_at: Timestamp,
    /// The window that is being read.
    #[serde(default)]
    walk: Option<Walk>,
    /// Since the last page.
    #[serde(default)]
    failures: u32,
    /// Since when the list says less than webhooks.
    #[serde(default)]
    doubted_since: Option<Timestamp>,
}

/// What is asked for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    pub walk: Walk,
    /// The list does not reach back to it: what happened then is not learned from it.
    pub lost: Option<Window>,
}

/// What a page came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    /// When the next page is due.
    pub due_at: Timestamp,
    /// The list is found to say less than webhooks.
    pub doubted: bool,
}

/// What went wrong at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no answer: the same page is asked for again.
    NoAnswer,
    /// The answer cannot be read, or not be stored.
    Unreadable,
    /// The cursor leads nowhere: the window is read from its beginning.
    Lost,
}

impl From<Lost> for Failure {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

impl Course {
    /// Of an account that nobody swept before.
    #[must_use]
    pub fn first(now: Timestamp) -> Self {
        let begin = now.minus(FIRST_BACK);
        Self { swept_until: begin, position: begin, reread_at: now, walk: None, failures: 0, doubted_since: None }
    }

    /// All that the list shows of the time before was read.
    #[must_use]
    pub const fn swept_until(&self) -> Timestamp {
        self.swept_until
    }

    /// Since when the list says less than webhooks.
    #[must_use]
    pub const fn doubted_since(&self) -> Option<Timestamp> {
        self.doubted_since
    }

    /// The page to ask for: of the window that is being read, else the first one of the next.
    #[must_use]
    pub fn ahead(&mut self, listing: &Listing, now: Timestamp) -> Ahead {
        if let Some(walk) = &self.walk {
            return Ahead { walk: walk.clone(), lost: None };
        }
        if now.since(self.reread_at) >= REREAD_EVERY {
            self.reread_at = now;
            self.position = self.position.min(now.minus(REREAD_BACK));
        }
        let earliest = listing.reach.map(|reach| now.minus(reach));
        let lost = earliest.filter(|earliest| self.position < *earliest);
        let lost = lost.map(|earliest| Window { since: self.position, until: earliest });
        let since = earliest.map_or(self.position.minus(listing.lag), |earliest| self.position.minus(listing.lag).max(earliest));
        let until = listing.slice.map_or(now, |slice| now.min(since.plus(slice)));
        let walk = Walk::new(Window { since, until: until.max(self.position) });
        Ahead { walk, lost }
    }

    /// The time of which the list says nothing, although webhooks may: behind its last event, and long enough ago for a list that
    /// lags. `None`: there is none, or the list is no log. To be asked of a walk that is at its end.
    #[must_use]
    pub fn silence(listing: &Listing, walk: &Walk) -> Option<Window> {
        // So far apart two events of one payment may be of which the list shows but the first.
        let since = walk.newest().map_or(walk.window.since, |newest| newest.plus(listing.every));
        let until = walk.believed_until().minus(listing.lag.saturating_sub(listing.every));
        (listing.is_log && since < until).then_some(Window { since, until })
    }

    /// Goes on behind a page that was read and stored. `walk`: as it stands behind it. `told`: webhooks told something within the
    /// [silence](Course::silence).
    #[must_use]
    pub fn read(&mut self, listing: &Listing, walk: Walk, is_last: bool, told: bool, pace: Duration, now: Timestamp) -> Onward {
        self.failures = 0;
        if !is_last {
            self.walk = Some(walk);
            return Onward { due_at: now.plus(pace), doubted: false };
        }
        self.walk = None;
        let believed = walk.believed_until();
        let was_cut = listing.slice.is_some_and(|slice| walk.window.until.since(walk.window.since) >= slice);
        let (end, doubted) = if told {
            let seen = walk.newest().unwrap_or(walk.window.since);
            let end = seen.max(now.minus(DOUBT_BACK)).min(believed);
            let is_news = self.doubted_since.is_none();
            self.doubted_since.get_or_insert(now);
            (end, is_news)
        } else {
            self.doubted_since = None;
            (believed, false)
        };
        self.position = self.position.max(end);
        self.swept_until = self.swept_until.max(self.position);
        let goes_on = was_cut && end == walk.window.until;
        Onward { due_at: now.plus(if goes_on { pace } else { listing.every }), doubted }
    }

    /// Notes that a page was not read; when it is tried again.
    #[must_use]
    pub fn failed(&mut self, walk: Walk, failure: Failure, now: Timestamp) -> Timestamp {
        self.failures = self.failures.saturating_add(1);
        let walk = self.walk.insert(walk);
        let gives_up = match failure {
            Failure::NoAnswer => false,
            Failure::Unreadable => self.failures.is_multiple_of(CURSOR_FAILURES),
            Failure::Lost => true,
        };
        if gives_up {
            walk.restart();
        }
        let doubled = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(1).min(16)));
        now.plus(doubled.min(PAUSE_MAX))
    }
}

/// How a page is passed: the walk behind it, and whether it was the last one.
///
/// # Errors
/// It leads nowhere.
pub fn pass(mut walk: Walk, page: Page) -> Result<(Walk, bool), Lost> {
    let is_last = walk.pass(page)?;
    Ok((walk, is_last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);
    const MINUTE: Duration = Duration::from_mins(1);
    const HOUR: Duration = Duration::from_hours(1);
    const DAY: Duration = Duration::from_hours(24);
    const PACE: Duration = Duration::from_millis(400);
    /// A log of events that goes back for 30 days.
    const LOG: Listing =
        Listing { reach: Some(Duration::from_hours(30 * 24)), every: Duration::from_mins(5), is_log: true, ..Listing::USUAL };

    fn page(newest: Option<Timestamp>, answered_at: Option<Timestamp>) -> Page {
        Page { next: None, newest, answered_at }
    }

    /// Reads a window in one page, which tells of `newest`.
    fn read(course: &mut Course, listing: &Listing, now: Timestamp, newest: Option<Timestamp>, told: bool) -> (Window, Onward) {
        let Ahead { walk, lost } = course.ahead(listing, now);
        assert_eq!(lost, None);
        let window = walk.window;
        let (walk, is_last) = pass(walk, page(newest, Some(now))).unwrap();
        (window, course.read(listing, walk, is_last, told, PACE, now))
    }

    #[test]
    fn a_new_account_begins_an_hour_ago_and_each_window_overlaps_with_the_one_before() {
        let mut course = Course::first(NOW);
        let (window, onward) = read(&mut course, &LOG, NOW, None, false);
        assert_eq!(window, Window { since: NOW.minus(HOUR + LOG.lag), until: NOW });
        assert_eq!(onward, Onward { due_at: NOW.plus(LOG.every), doubted: false });
        assert_eq!(course.swept_until(), NOW);
        let later = NOW.plus(5 * MINUTE);
        let (window, _) = read(&mut course, &LOG, later, None, false);
        assert_eq!(window, Window { since: NOW.minus(LOG.lag), until: later });
    }

    #[test]
    fn an_outage_is_caught_up_with_slice_by_slice() {
        let mut course = Course::first(NOW);
        let _ = read(&mut course, &LOG, NOW, None, false);
        let mut now = NOW.plus(10 * DAY);
        // The place goes back by a day at first, as it does each day: no further than it is.
        let mut windows = Vec::new();
        loop {
            let (window, onward) = read(&mut course, &LOG, now, Some(now), false);
            windows.push(window);
            if onward.due_at != now.plus(PACE) {
                break;
            }
            now = onward.due_at;
        }
        assert_eq!(windows[0].since, NOW.minus(LOG.lag));
        assert!(windows.windows(2).all(|pair| pair[1].since == pair[0].until.minus(LOG.lag)), "{windows:?}");
        assert!(windows[..windows.len() - 1].iter().all(|window| window.until.since(window.since) == DAY));
        assert_eq!((windows.len(), course.swept_until()), (11, now));
    }

    #[test]
    fn what_the_list_does_not_reach_is_said_to_be_lost_and_left() {
        let mut course = Course::first(NOW);
        let _ = read(&mut course, &LOG, NOW, None, false);
        let now = NOW.plus(40 * DAY);
        let Ahead { walk, lost } = course.ahead(&LOG, now);
        let earliest = now.minus(30 * DAY);
        assert_eq!(lost, Some(Window { since: NOW, until: earliest }));
        assert_eq!(walk.window, Window { since: earliest, until: earliest.plus(DAY) });
        let (walk, is_last) = pass(walk, page(None, None)).unwrap();
        let _ = course.read(&LOG, walk, is_last, false, PACE, now);
        assert_eq!(course.ahead(&LOG, now).lost, None, "it is said once");
        // One without a limit goes back to where it was read to.
        let endless = Listing { reach: None, slice: None, ..LOG };
        let mut course = Course::first(NOW);
        let Ahead { walk, lost } = course.ahead(&endless, now);
        assert_eq!((lost, walk.window), (None, Window { since: NOW.minus(HOUR + LOG.lag), until: now }));
    }

    #[test]
    fn a_day_is_read_again_each_day() {
        let mut course = Course::first(NOW);
        let (mut now, mut long) = (NOW, 0);
        while now < NOW.plus(5 * DAY) {
            let (window, onward) = read(&mut course, &LOG, now, Some(now), false);
            long += usize::from(window.until.since(window.since) > HOUR * 2);
            assert!(course.swept_until() >= now.minus(LOG.every), "what was read stays read");
            now = onward.due_at;
        }
        // Each in two slices: 25 hours do not fit into one.
        assert!((4..=9).contains(&long), "{long}");
    }

    /// Answered from a cache, or by a clock that is slow.
    #[test]
    fn the_place_is_not_behind_the_time_at_which_the_page_was_written() {
        let mut course = Course::first(NOW);
        let now = NOW.plus(HOUR);
        let walk = course.ahead(&LOG, now).walk;
        let (walk, is_last) = pass(walk, page(None, Some(NOW))).unwrap();
        let onward = course.read(&LOG, walk, is_last, false, PACE, now);
        assert_eq!((course.swept_until(), onward.due_at), (NOW, now.plus(LOG.every)));
        // Older than what was read: nothing is taken back.
        let walk = course.ahead(&LOG, now).walk;
        let (walk, is_last) = pass(walk, page(None, Some(NOW.minus(DAY)))).unwrap();
        let _ = course.read(&LOG, walk, is_last, false, PACE, now);
        assert_eq!(course.swept_until(), NOW);
    }

    #[test]
    fn a_log_that_says_less_than_webhooks_holds_the_place_for_a_day() {
        let mut course = Course::first(NOW);
        let _ = read(&mut course, &LOG, NOW, Some(NOW), false);
        let now = NOW.plus(HOUR);
        let newest = NOW.plus(10 * MINUTE);
        let (_, onward) = read(&mut course, &LOG, now, Some(newest), true);
        assert_eq!((onward.doubted, course.swept_until()), (true, newest), "as far as it shows something");
        let (window, onward) = read(&mut course, &LOG, now, None, true);
        assert_eq!(
            (window.since, onward.doubted, course.swept_until()),
            (newest.minus(LOG.lag), false, newest),
            "it is said once"
        );
        assert_eq!(course.doubted_since(), Some(now));
        let now = NOW.plus(2 * DAY);
        while read(&mut course, &LOG, now, None, true).1.due_at != now.plus(LOG.every) {}
        assert_eq!(course.swept_until(), now.minus(DAY), "no longer than that");
        let (window, _) = read(&mut course, &LOG, now, None, true);
        assert_eq!(window, Window { since: now.minus(DAY + LOG.lag), until: now.minus(LOG.lag) });
        let (_, onward) = read(&mut course, &LOG, NOW.plus(2 * DAY), Some(NOW.plus(2 * DAY)), false);
        assert_eq!((onward.doubted, course.doubted_since()), (false, None));
    }

    #[test]
    fn silence_is_what_lies_behind_the_last_event_and_is_old_enough() {
        let window = Window { since: NOW, until: NOW.plus(HOUR) };
        let silence = |newest: Option<Timestamp>, answered_at: Option<Timestamp>| {
            let (walk, _) = pass(Walk::new(window), page(newest, answered_at)).unwrap();
            Course::silence(&LOG, &walk)
        };
        let until = NOW.plus(50 * MINUTE);
        assert_eq!(silence(None, None), Some(Window { since: NOW, until }));
        assert_eq!(silence(Some(NOW.plus(MINUTE)), None), Some(Window { since: NOW.plus(6 * MINUTE), until }));
        assert_eq!(silence(Some(NOW.plus(45 * MINUTE)), None), None);
        assert_eq!(silence(None, Some(NOW.plus(10 * MINUTE))), None, "it did not claim more");
        let (walk, _) = pass(Walk::new(window), page(None, None)).unwrap();
        assert_eq!(Course::silence(&Listing { is_log: false, ..LOG }, &walk), None);
    }

    #[test]
    fn a_page_that_fails_is_tried_again_ever_more_rarely_and_its_cursor_not_for_ever() {
        let mut course = Course::first(NOW);
        let mut walk = course.ahead(&LOG, NOW).walk;
        walk.pass(Page { next: Some("2".to_owned()), newest: None, answered_at: None }).unwrap();
        let _ = course.read(&LOG, walk.clone(), false, false, PACE, NOW);
        let mut fail = |failure| {
            let pause = course.failed(walk.clone(), failure, NOW).since(NOW).as_secs() / 60;
            let ahead = course.ahead(&LOG, NOW.plus(2 * DAY)).walk;
            assert_eq!(ahead.window, walk.window, "the window stays");
            (pause, ahead.cursor)
        };
        let there = || Some("2".to_owned());
        assert_eq!(fail(Failure::NoAnswer), (1, there()));
        assert_eq!(fail(Failure::NoAnswer), (2, there()));
        assert_eq!(fail(Failure::NoAnswer), (4, there()));
        assert_eq!(fail(Failure::Unreadable), (8, there()));
        assert_eq!(fail(Failure::Unreadable), (16, there()));
        assert_eq!(fail(Failure::Unreadable), (32, None), "the sixth in a row");
        assert_eq!(fail(Failure::Lost), (60, None));
        assert_eq!(course.swept_until(), NOW.minus(HOUR));
        let walk = course.ahead(&LOG, NOW).walk;
        let _ = course.read(&LOG, walk, true, false, PACE, NOW);
        assert_eq!(course.failures, 0);
    }

    #[derive(Clone, Copy, Debug)]
    struct Turn {
        waits_s: u64,
        /// Where in the window the newest event lies, in per mille; beyond: there is none.
        newest: u16,
        told: bool,
        /// By how much the PSP's clock is slow.
        slow_s: u64,
        fails: bool,
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let waits_s = prop_oneof![8 => 0_u64..900, 1 => 0_u64..90_000, 1 => 0_u64..4_000_000];
        let turn = (waits_s, 0_u16..2000, prop::bool::weighted(0.1), prop_oneof![0_u64..20, 0_u64..20_000], any::<bool>());
        prop::collection::vec(
            turn.prop_map(|(waits_s, newest, told, slow_s, fails)| Turn { waits_s, newest, told, slow_s, fails: fails && told }),
            1..60,
        )
    }

    fn listing() -> impl Strategy<Value = Listing> {
        let reach = prop::option::of((2_u64..60).prop_map(|days| DAY * u32::try_from(days).unwrap()));
        let slice = prop::option::of(prop::sample::select(vec![HOUR, DAY, 7 * DAY]));
        (reach, slice, any::<bool>()).prop_map(|(reach, slice, is_log)| Listing { reach, slice, is_log, ..Listing::USUAL })
    }

    proptest! {
        /// Whatever happens, every moment from the beginning to the place where the course is lies within a window that was read
        /// whole (or was said to be lost), and the place never goes back, nor beyond now or the PSP's clock.
        #[test]
        fn nothing_lies_between_the_windows(listing in listing(), turns in turns()) {
            let (mut now, mut course) = (NOW, Course::first(NOW));
            let (begin, mut covered) = (course.swept_until(), course.swept_until());
            for turn in turns {
                now = now.plus(Duration::from_secs(turn.waits_s));
                let before = course.swept_until();
                let Ahead { walk, lost } = course.ahead(&listing, now);
                let window = walk.window;
                prop_assert!(window.since <= window.until);
                if let Some(lost) = lost {
                    prop_assert!(lost.since <= covered && lost.until == now.minus(listing.reach.unwrap()));
                    covered = covered.max(lost.until);
                }
                prop_assert!(window.since <= covered, "a gap: {:?} behind {:?}", window, covered);
                if turn.fails {
                    let due = course.failed(walk, Failure::Unreadable, now);
                    prop_assert!(due > now && course.swept_until() == before);
                    continue;
                }
                let span = window.until.since(window.since).as_millis();
                let newest = (turn.newest <= 1000)
                    .then(|| window.since.plus(Duration::from_millis(u64::try_from(span * u128::from(turn.newest) / 1000).unwrap())));
                let answered_at = now.minus(Duration::from_secs(turn.slow_s));
                let (walk, is_last) = pass(walk, page(newest, Some(answered_at))).unwrap();
                let believed = walk.believed_until();
                let onward = course.read(&listing, walk, is_last, turn.told, PACE, now);
                prop_assert!(onward.due_at > now);
                prop_assert!(course.swept_until() >= before, "it went back");
                prop_assert!(course.swept_until() <= before.max(believed), "beyond what was read");
                prop_assert!(course.swept_until() <= now.max(begin));
                covered = covered.max(course.swept_until());
            }
        }

        /// However long the outage and whatever the list's limits, a course that is stepped when it is due is up to date in the
        /// end, in no more windows than there are slices.
        #[test]
        fn an_outage_ends(listing in listing(), outage_h in 0_u32..2000) {
            let mut course = Course::first(NOW);
            let mut now = NOW.plus(HOUR * outage_h);
            let slices = listing.slice.map_or(1, |slice| (HOUR * (outage_h + 27)).as_secs() / slice.saturating_sub(listing.lag).as_secs() + 1);
            for _ in 0..=slices {
                if course.swept_until() >= now.minus(MINUTE) {
                    return Ok(());
                }
                let walk = course.ahead(&listing, now).walk;
                let (walk, is_last) = pass(walk, page(None, Some(now))).unwrap();
                now = course.read(&listing, walk, is_last, false, PACE, now).due_at.min(now.plus(PACE));
            }
            prop_assert!(course.swept_until() >= now.minus(MINUTE), "{:?} after {} windows", course, slices);
        }

        #[test]
        fn what_is_kept_in_the_database_comes_back(failures in 0_u32..9, pages in 0_u32..9, doubted in any::<bool>()) {
            let mut course = Course::first(NOW);
            let mut walk = course.ahead(&LOG, NOW).walk;
            for number in 0..pages {
                walk.pass(Page { next: Some(number.to_string()), newest: Some(NOW), answered_at: Some(NOW) }).unwrap();
            }
            let _ = course.read(&LOG, walk.clone(), false, false, PACE, NOW);
            for _ in 0..failures {
                let _ = course.failed(walk.clone(), Failure::NoAnswer, NOW);
            }
            course.doubted_since = doubted.then_some(NOW);
            let text = serde_json::to_string(&course).unwrap();
            prop_assert_eq!(serde_json::from_str::<Course>(&text).unwrap(), course);
        }
    }
}
