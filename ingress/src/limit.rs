//! A limit on what is held at once, without a lock and without waiting.

use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Limit {
    held: AtomicUsize,
    max: usize,
}

/// A share of a [`Limit`], given back when it is dropped.
pub(crate) struct Held<'a> {
    limit: &'a Limit,
    amount: usize,
}

impl Limit {
    pub(crate) const fn new(max: usize) -> Self {
        Self { held: AtomicUsize::new(0), max }
    }

    /// `amount` of it, or `None` if that much is not left.
    pub(crate) fn hold(&self, amount: usize) -> Option<Held<'_>> {
        let mut held = Held { limit: self, amount: 0 };
        held.grow(amount).then_some(held)
    }
}

impl Held<'_> {
    /// Takes `more`; `false`, and nothing is taken, if that much is not left.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let before = self.limit.held.fetch_add(more, Ordering::Relaxed);
        let fits = before.checked_add(more).is_some_and(|after| after <= self.limit.max);
        if fits {
            self.amount += more;
        } else {
            self.limit.held.fetch_sub(more, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.limit.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_up_to_the_limit_and_takes_back() {
        let limit = Limit::new(10);
        let mut first = limit.hold(6).unwrap();
        assert!(limit.hold(5).is_none());
        let second = limit.hold(4).unwrap();
        assert!(!first.grow(1));
        drop(second);
        assert!(first.grow(4));
        assert!(limit.hold(1).is_none());
        drop(first);
        assert!(limit.hold(10).is_some());
    }
}
