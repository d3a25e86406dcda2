//! The way through the pages of a list, from the first to the last. Pure.
//!
//! Pages are followed by the PSP's cursors, which may lead in a circle or never end. A circle is noticed without keeping all
//! cursors: one is kept, and replaced by the present one after 1, 2, 4, 8 … pages (Brent), so that the walk goes through a
//! circle three times at most.

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::Window;
use serde::{Deserialize, Serialize};

/// Pages of one window. At 100 a page these are a million events; of more than that a window never has, or its list lies.
pub const PAGES_MAX: u32 = 10_000;

/// How far a window is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    pub window: Window,
    /// The page that comes next; `None`: the first.
    pub cursor: Option<String>,
    /// Read so far.
    pages: u32,
    /// A cursor that was passed: to come to it again is to walk in a circle.
    #[serde(default)]
    mark: Option<String>,
    /// The latest that a page told of.
    #[serde(default)]
    newest: Option<Timestamp>,
    /// When the first page was written, by the PSP's clock.
    #[serde(default)]
    answered_at: Option<Timestamp>,
}

/// What of a page matters for the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub next: Option<String>,
    /// The latest that it tells of.
    pub newest: Option<Timestamp>,
    /// By the PSP's clock; `None` where it does not say.
    pub answered_at: Option<Timestamp>,
}

/// Why a walk comes to no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the list leads back to a page that was read")]
    Circle,
    #[error("the list goes on for more than {PAGES_MAX} pages")]
    Endless,
}

impl Walk {
    #[must_use]
    pub const fn new(window: Window) -> Self {
        Self { window, cursor: None, pages: 0, mark: None, newest: None, answered_at: None }
    }

    /// Goes on behind a page; `true`: it was the last one.
    ///
    /// # Errors
    /// It leads nowhere.
    pub fn pass(&mut self, page: Page) -> Result<bool, Lost> {
        if self.pages == 0 {
            self.answered_at = page.answered_at;
        }
        self.pages += 1;
        self.newest = self.newest.max(page.newest);
        let Some(next) = page.next else {
            self.cursor = None;
            return Ok(true);
        };
        if self.mark.as_ref() == Some(&next) {
            return Err(Lost::Circle);
        }
        if self.pages >= PAGES_MAX {
            return Err(Lost::Endless);
        }
        if self.pages.is_power_of_two() {
            self.mark = Some(next.clone());
        }
        self.cursor = Some(next);
        Ok(false)
    }

    /// From the first page again.
    pub fn restart(&mut self) {
        *self = Self::new(self.window);
    }

    /// Pages read so far.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// The latest that the pages told of.
    #[must_use]
    pub const fn newest(&self) -> Option<Timestamp> {
        self.newest
    }

    /// Up to when the list was true when its first page was written: a page of an earlier time (from a cache, or by a clock that
    /// is slow) says nothing of what came later.
    #[must_use]
    pub fn believed_until(&self) -> Timestamp {
        self.answered_at.map_or(self.window.until, |answered_at| answered_at.min(self.window.until))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Window =
        Window { since: Timestamp::from_seconds(1_790_000_000), until: Timestamp::from_seconds(1_790_003_600) };

    fn page(next: Option<u32>) -> Page {
        Page { next: next.map(|next| next.to_string()), newest: None, answered_at: None }
    }

    #[test]
    fn a_list_that_never_ends_is_left() {
        let mut walk = Walk::new(WINDOW);
        let lost = (1..).find_map(|number| walk.pass(page(Some(number))).err());
        assert_eq!((lost, walk.pages()), (Some(Lost::Endless), PAGES_MAX));
    }

    #[test]
    fn the_first_page_says_until_when_the_list_is_true() {
        let at = |seconds: i64| Timestamp::from_seconds(1_790_000_000 + seconds);
        for (dates, until) in [
            ([None, None], 3600),
            ([Some(at(9000)), None], 3600),
            ([Some(at(60)), Some(at(9000))], 60),
            ([None, Some(at(60))], 3600),
        ] {
            let mut walk = Walk::new(WINDOW);
            for (number, answered_at) in (1..).zip(dates) {
                walk.pass(Page { answered_at, ..page(Some(number)) }).unwrap();
            }
            assert_eq!(walk.believed_until(), at(until), "{dates:?}");
        }
    }

    proptest! {
        /// A circle of any length, entered after any number of pages, is noticed; what is no circle never is.
        #[test]
        fn a_circle_is_noticed(before in 0_u32..200, length in 1_u32..200) {
            let mut walk = Walk::new(WINDOW);
            let next = |number: u32| if number < before + length { number + 1 } else { before + 1 };
            let (mut number, mut passed) = (0, 0);
            let lost = loop {
                number = next(number);
                passed += 1;
                if let Err(lost) = walk.pass(page(Some(number))) {
                    break lost;
                }
            };
            prop_assert_eq!(lost, Lost::Circle);
            prop_assert!(passed >= before + length && passed <= 3 * (before + length) + 2, "{} of {}+{}", passed, before, length);
        }

        #[test]
        fn what_ends_is_read_to_its_end(pages in 1_u32..3000) {
            let mut walk = Walk::new(WINDOW);
            for number in 1..pages {
                prop_assert_eq!(walk.pass(page(Some(number))), Ok(false));
            }
            prop_assert_eq!(walk.pass(page(None)), Ok(true));
            prop_assert_eq!(walk.pages(), pages);
            let text = serde_json::to_string(&walk).unwrap();
            prop_assert_eq!(serde_json::from_str::<Walk>(&text).unwrap(), walk);
        }
    }
}
