//! Who told first what a payment came to: the row by which it is known how complete webhooks are (`worker/src/completeness.rs`).
//!
//! | what comes | what the payment's row learns |
//! |---|---|
//! | a webhook with the deciding fact, whatever becomes of it: applied, superseded, parked, in conflict | that it came, when the ingress took it |
//! | an answer, or an event of the PSP's list, and no webhook had come | that asking told it first |
//! | the answer to a question that a webhook had us ask | that this webhook came |
//! | a webhook of an event that a list had told (a duplicate, which is written nowhere else) | that it came after all |
//! | money, after a failure, a cancellation or an expiry | begins anew: that is what the payment came to |
//! | by asking alone, what its PSP sends no webhook of ([`Psp::announces`](paybell_shared::psp::Psp::announces)) | nothing |
//! | anything else about a payment that was decided before | nothing |
//!
//! In the transaction of the effect, under the lock of the order or of its names. A row is written when the payment is decided,
//! and once more only if asking was first. So repetitions, replays and further workers find it as it is; of a payment that was
//! decided before this was kept, there is none.

use std::collections::btree_map::Entry;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{PaymentEvent, Source};
use paybell_shared::psp;

use super::{Planner, Seeker, account_of};
use crate::inbox::{Content, InboxRow};
use crate::order::CameTo;
use crate::store::Learned;

impl Planner<'_> {
    /// A webhook came: its account is alive.
    pub(super) fn came_in(&mut self, row: &InboxRow) {
        let last = self.plan.webhooks.entry(account_of(&row.key)).or_insert(row.received_at);
        *last = row.received_at.max(*last);
    }

    /// A known event is told once more.
    pub(super) fn told_again(&mut self, row: &InboxRow, first_by: Source) {
        if let Content::Fact { event, .. } = &row.content
            && (row.source, first_by) == (Source::Webhook, Source::Reconciliation)
            && let Some(came_to) = CameTo::of(&event.fact)
        {
            self.add(event, Learned { is_first: false, ..learned(event, came_to, row.received_at, None) });
        }
    }

    /// An event says what its payment came to; `before`: what was known of that.
    pub(super) fn learn(&mut self, seeker: &Seeker<'_>, before: Option<CameTo>) {
        let Seeker { event, received_at, heard_at, .. } = seeker;
        if let Some(came_to) = CameTo::of(&event.fact) {
            let is_first = before < Some(came_to);
            self.add(event, Learned { is_first, ..learned(event, came_to, *received_at, *heard_at) });
        }
    }

    fn add(&mut self, event: &PaymentEvent, new: Learned) {
        // Who tells by asking what was known adds nothing to it; and what no webhook tells, none could have told first.
        let is_announced = || psp::find(&event.key.psp).is_none_or(|psp| psp.announces(&event.fact));
        if new.webhook_at.is_none() && !(new.is_first && is_announced()) {
            return;
        }
        match self.learned.entry((account_of(&event.key), event.payment_id.clone())) {
            Entry::Vacant(place) => drop(place.insert(new)),
            Entry::Occupied(mut known) => known.get_mut().join(new),
        }
    }
}

fn learned(event: &PaymentEvent, came_to: CameTo, received_at: Timestamp, heard_at: Option<Timestamp>) -> Learned {
    let (webhook_at, asked_at) = match event.source {
        Source::Webhook => (Some(received_at), None),
        Source::Reconciliation => (heard_at, Some(received_at)),
    };
    let learned = Learned {
        account: account_of(&event.key),
        payment_id: event.payment_id.clone(),
        came_to,
        webhook_at,
        asked_at,
        is_first: true,
    };
    learned.in_order()
}

impl Learned {
    /// Asking was not first if a webhook had come before.
    fn in_order(self) -> Self {
        let was_first = self.webhook_at.is_none_or(|webhook| self.asked_at.is_some_and(|asked| webhook > asked));
        Self { asked_at: self.asked_at.filter(|_| was_first), ..self }
    }

    /// Both in one transaction.
    fn join(&mut self, new: Self) {
        if new.came_to > self.came_to {
            *self = new;
        } else if new.came_to == self.came_to {
            let webhook_at = match (self.webhook_at, new.webhook_at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            let asked_at = self.asked_at.or(new.asked_at.filter(|_| self.webhook_at.is_none()));
            let is_first = self.is_first || new.is_first;
            *self = Self { webhook_at, asked_at, is_first, ..new }.in_order();
        }
    }
}
