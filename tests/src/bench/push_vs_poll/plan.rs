//! What happens to the payments, and when: the same for one seed.
//!
//! | of a hundred payments | |
//! |---|---|
//! | 62 | are paid within minutes |
//! | 10 | are declined once or twice, and paid then |
//! | 6 | are authorised, and captured within hours |
//! | 4 | are paid hours later: a voucher, a bank's app |
//! | 1 | is processed for most of a day by a bank |
//! | 3 | are declined and never paid, 14 never tried: given up after an hour |
//!
//! Of those that are paid, one of twelve is refunded, in one part or two, within three days; some refunds fail. One of a hundred is
//! disputed within a week, and decided on two days later.

use std::time::Duration;

use paybell::simulator::ledger::{Cancellation, DECLINES, DisputeState, Ledger, RefundState, payment_id};
use paybell::simulator::stripe::Stripe;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// The payments begin within so long.
const BEGIN_WITHIN_S: u64 = 12 * HOUR;
/// The shop gives up what is not paid by then.
const GIVEN_UP_S: u64 = HOUR;

/// Everything that will happen.
pub struct Plan {
    pub payments: Vec<Planned>,
    /// In the order in which it happens, from the start on.
    pub moves: Vec<(Duration, usize, Move)>,
}

/// A payment and its order.
pub struct Planned {
    pub order_id: String,
    pub payment_id: String,
    pub amount: i64,
}

/// Something that happens to a payment at the PSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Open { manual_capture: bool },
    Process,
    Decline,
    Authorize,
    Capture,
    GiveUp,
    Refund { amount: i64, state: RefundState },
    SettleRefund { number: usize, state: RefundState },
    Dispute,
    CloseDispute { state: DisputeState },
}

impl Plan {
    #[must_use]
    pub fn new(count: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut payments, mut moves) = (Vec::with_capacity(count), Vec::new());
        for number in 0..count {
            let order_id = format!("order-{number:05}");
            let amount = random.random_range(500..50_000);
            let story = story(amount, &mut random);
            moves.extend(story.into_iter().map(|(at, step)| (Duration::from_secs(at), number, step)));
            payments.push(Planned { payment_id: payment_id(&Stripe, &order_id), order_id, amount });
        }
        // Stable: what happens to one payment within one second keeps its order.
        moves.sort_by_key(|(at, ..)| *at);
        Self { payments, moves }
    }
}

/// One payment's moves, each with its second.
fn story(amount: i64, random: &mut StdRng) -> Vec<(u64, Move)> {
    let mut at = random.random_range(0..BEGIN_WITHIN_S);
    let begun = at;
    let kind = random.random_range(0..100);
    let mut moves = vec![(at, Move::Open { manual_capture: (72..78).contains(&kind) })];
    let mut after = |random: &mut StdRng, within: std::ops::Range<u64>, step: Move| {
        at += random.random_range(within);
        moves.push((at, step));
    };
    match kind {
        0..62 => after(random, 20..5 * MINUTE, Move::Capture),
        62..72 => {
            for _ in 0..random.random_range(1..=2) {
                after(random, 20..2 * MINUTE, Move::Decline);
            }
            after(random, 20..6 * MINUTE, Move::Capture);
        }
        72..78 => {
            after(random, 20..5 * MINUTE, Move::Authorize);
            after(random, HOUR..6 * HOUR, Move::Capture);
        }
        78..82 => after(random, HOUR..12 * HOUR, Move::Capture),
        82 => {
            after(random, 20..5 * MINUTE, Move::Process);
            after(random, 6 * HOUR..DAY, Move::Capture);
        }
        83..86 => {
            for _ in 0..random.random_range(1..=3) {
                after(random, 20..2 * MINUTE, Move::Decline);
            }
            moves.push((begun + GIVEN_UP_S, Move::GiveUp));
            return moves;
        }
        _ => {
            moves.push((begun + GIVEN_UP_S, Move::GiveUp));
            return moves;
        }
    }
    if random.random_ratio(1, 12) {
        let part = if random.random_bool(0.5) { amount } else { amount / 3 };
        match random.random_range(0..10) {
            0 => {
                after(random, HOUR..3 * DAY, Move::Refund { amount: part, state: RefundState::Succeeded });
                after(random, HOUR..DAY, Move::SettleRefund { number: 0, state: RefundState::Failed });
            }
            1..4 => {
                after(random, HOUR..3 * DAY, Move::Refund { amount: amount / 3, state: RefundState::Succeeded });
                after(random, HOUR..DAY, Move::Refund { amount: amount - amount / 3, state: RefundState::Succeeded });
            }
            _ => after(random, HOUR..3 * DAY, Move::Refund { amount: part, state: RefundState::Succeeded }),
        }
    } else if random.random_ratio(1, 100) {
        let state = if random.random_bool(0.5) { DisputeState::Won } else { DisputeState::Lost };
        after(random, DAY..7 * DAY, Move::Dispute);
        after(random, DAY..2 * DAY, Move::CloseDispute { state });
    }
    moves
}

impl Move {
    /// Does it in the PSP's books.
    pub fn play(self, ledger: &mut Ledger, planned: &Planned, at: i64) {
        let id = &planned.payment_id;
        match self {
            Self::Open { manual_capture } => drop(ledger.open(&planned.order_id, planned.amount, "EUR", manual_capture, at)),
            Self::Process => ledger.process(id, at),
            Self::Decline => ledger.decline(id, DECLINES[0], at),
            Self::Authorize => ledger.authorize(id, at),
            Self::Capture => ledger.capture(id, planned.amount, at),
            Self::GiveUp => ledger.cancel(id, Cancellation::Abandoned, at),
            Self::Refund { amount, state } => {
                ledger.refund(id, amount, state, at);
            }
            Self::SettleRefund { number, state } => ledger.settle_refund(id, number, state, at),
            Self::Dispute => {
                ledger.dispute(id, planned.amount, at);
            }
            Self::CloseDispute { state } => ledger.close_dispute(id, 0, state, at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_plan_and_all_of_it_happens_in_order() {
        let (one, same, other) = (Plan::new(500, 1), Plan::new(500, 1), Plan::new(500, 2));
        assert!(one.moves == same.moves && one.moves != other.moves);
        assert!(one.moves.is_sorted_by_key(|(at, ..)| *at));
        let opened = one.moves.iter().filter(|(.., step)| matches!(step, Move::Open { .. })).count();
        assert_eq!(opened, 500);
        for wanted in [Move::Process, Move::Decline, Move::Authorize, Move::Capture, Move::GiveUp, Move::Dispute] {
            assert!(one.moves.iter().any(|(.., step)| *step == wanted), "{wanted:?}");
        }
        assert!(one.moves.iter().any(|(.., step)| matches!(step, Move::SettleRefund { .. })));
    }
}
