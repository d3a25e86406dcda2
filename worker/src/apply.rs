//! From events to what is written: pure, inside one transaction of the store.
//!
//! | step | what is durable after it | a crash there |
//! |---|---|---|
//! | lock the references that the work speaks of and that lead nowhere yet, then the orders that the others lead to, each sorted | nothing | rolled back; the deliveries come again |
//! | read known keys, orders, parked events | nothing | the same |
//! | [`plan`]: resolve, join, judge | nothing | the same |
//! | write bodies, events, orders, transitions, links, checks, what was learned, books; commit | everything | before: rolled back; after: the deliveries come again and are duplicates; during: see [`StoreError::Unknown`](crate::store::StoreError) |
//! | mark seen, acknowledge | | a marker is missing: one look at the database more |
//!
//! The reference rows are what keeps a parked event from missing its order's registration: whoever speaks of a reference
//! holds its row, so parking and registration happen one after the other. Once it leads to an order, the order's row
//! takes its place: only a replay leads it elsewhere, and for that the replay's transaction is alone.

mod learning;
mod replay;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{EventKey, PaymentEvent, ReferenceKind, Source};

use crate::ids::Ids;
use crate::inbox::{Content, InboxRow, Outcome};
use crate::order::{self, AccountKey, Registers};
use crate::schedule;
use crate::store::{
    ActionKind, ActionWrite, BodyWrite, BookKey, CheckReason, CheckWrite, Decision, EventWrite, Expiry, KnownEvent, Learned,
    OrderRow, OrderWrite, Plan, ReferenceKey, Registered, Registration, RegistrationConflict, Review, Reviewed, Snapshot,
    StoredOrder, Together, Transition, UnaskedWrite, Wanted, WokenEvent, Work,
};

const HOUR_MS: i64 = 3_600_000;

/// Stands for PSP and account where a reference is the merchant's own.
static MERCHANT: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// Who it is that finds an order expired, in its timeline.
const OURSELVES: &str = "paybell";

/// From a webhook that contradicts what is known to the question what is true: what ends the doubt may be on its way.
const DOUBT_DELAY: Duration = Duration::from_secs(2);

/// The keys and references that the store must look up and lock before [`plan`] can decide.
#[must_use]
pub fn wanted(work: &Work<'_>) -> Wanted {
    let mut wanted = replay::wanted(work.replays);
    for row in work.arrivals.iter().flat_map(|arrival| &arrival.rows) {
        wanted.keys.insert(row.key.clone());
        if let Content::Fact { event, .. } = &row.content {
            let references: Vec<ReferenceKey> = references(event).collect();
            wanted.references.extend(references.iter().cloned());
            let named = references.iter().find(|key| key.kind == ReferenceKind::Order);
            let named = named.filter(|_| work.policy.events_create_orders).map(|key| key.value.clone());
            wanted.together.push(Together { references, named });
        }
    }
    for registration in work.registrations {
        wanted.references.extend(registration_references(registration));
    }
    wanted.references.extend(work.reviews.iter().map(|review| order_reference(&review.order_id)));
    wanted.references.extend(work.expiries.iter().map(|expiry| order_reference(&expiry.order_id)));
    wanted.references.extend(work.wake.iter().cloned());
    wanted.parked_led = work.arrivals.is_empty() && work.registrations.is_empty();
    wanted
}

/// Decides what becomes of every event and order of the work.
#[must_use]
pub fn plan(work: &Work<'_>, snapshot: &Snapshot, ids: &Ids) -> Decision {
    if !work.replays.is_empty() {
        return replay::plan(work, snapshot, ids);
    }
    let mut planner = Planner::new(work, snapshot, ids);
    planner.registrations();
    planner.reviews();
    planner.expiries();
    planner.arrivals();
    planner.resolve();
    planner.finish()
}

/// The names that an event carries.
pub fn references(event: &PaymentEvent) -> impl Iterator<Item = ReferenceKey> {
    event.references.iter().map(|reference| reference_key(&event.key.psp, &event.key.account, reference.kind, &reference.value))
}

fn registration_references(registration: &Registration) -> impl Iterator<Item = ReferenceKey> {
    let AccountKey { psp, account } = &registration.account;
    let key = |kind, value: &str| reference_key(psp, account, kind, value);
    let payment = registration.payment_id.as_deref().map(|id| key(ReferenceKind::Payment, id));
    std::iter::once(key(ReferenceKind::Order, &registration.order_id)).chain(payment)
}

fn order_reference(order_id: &str) -> ReferenceKey {
    let owner = || Arc::clone(&MERCHANT);
    ReferenceKey { psp: owner(), account: owner(), kind: ReferenceKind::Order, value: order_id.to_owned() }
}

/// The merchant's own order ids are one space for all accounts, so that all who name an order meet at one row.
pub(crate) fn reference_key(psp: &Arc<str>, account: &Arc<str>, kind: ReferenceKind, value: &str) -> ReferenceKey {
    let of_merchant = kind == ReferenceKind::Order;
    let owner = |name: &Arc<str>| Arc::clone(if of_merchant { &MERCHANT } else { name });
    ReferenceKey { psp: owner(psp), account: owner(account), kind, value: value.to_owned() }
}

/// An event that looks for its order.
struct Seeker<'a> {
    event: &'a PaymentEvent,
    foreign_mode: bool,
    received_at: Timestamp,
    /// When the webhook came that had its PSP asked.
    heard_at: Option<Timestamp>,
    origin: Origin,
}

enum Origin {
    /// The place of its [`EventWrite`] in the plan.
    New(usize),
    /// The same, of one that a replay takes out of its order.
    Loose(usize),
    Parked,
}

/// What resolving a seeker comes to.
enum Target {
    Order(String),
    /// No reference leads anywhere yet.
    Unknown,
    /// Its references lead to different orders.
    Conflict,
}

struct Planner<'a> {
    work: &'a Work<'a>,
    snapshot: &'a Snapshot,
    ids: &'a Ids,
    plan: Plan,
    more: Wanted,
    seekers: Vec<Seeker<'a>>,
    /// Orders as they become, by id; sorted, so that they are written in the order in which they are locked.
    orders: BTreeMap<String, Registers>,
    links: BTreeMap<ReferenceKey, String>,
    /// Keys of this work that were met before, with what they say.
    met: HashMap<&'a EventKey, KnownEvent>,
    refused: Vec<Option<RegistrationConflict>>,
    /// In the order of the work; `None`: decided.
    reviewed: Vec<Option<Reviewed>>,
    unplaced: HashSet<(AccountKey, String)>,
    /// Places of answers that left everything as it was: a payment is asked about for months, and each time the same is no
    /// event. As a duplicate, it is counted and not kept.
    idle: BTreeSet<usize>,
    /// What payments came to, and who told it first.
    learned: BTreeMap<(AccountKey, String), Learned>,
}

impl<'a> Planner<'a> {
    fn new(work: &'a Work<'a>, snapshot: &'a Snapshot, ids: &'a Ids) -> Self {
        Self {
            work,
            snapshot,
            ids,
            plan: Plan { now: work.now, ..Plan::default() },
            more: Wanted::default(),
            seekers: Vec::new(),
            orders: BTreeMap::new(),
            links: BTreeMap::new(),
            met: HashMap::new(),
            refused: Vec::new(),
            reviewed: Vec::new(),
            unplaced: HashSet::new(),
            idle: BTreeSet::new(),
            learned: BTreeMap::new(),
        }
    }

    fn registrations(&mut self) {
        for registration in self.work.registrations {
            let refused = self.register(registration).err();
            self.refused.push(refused);
        }
    }

    fn register(&mut self, registration: &Registration) -> Result<(), RegistrationConflict> {
        let id = &registration.order_id;
        let references: Vec<ReferenceKey> = registration_references(registration).collect();
        if let Some(other) = references.iter().filter_map(|key| self.leads_to(key)).find(|other| *other != id) {
            return Err(RegistrationConflict::PaymentTaken(other.to_owned()));
        }
        let known = self.orders.get(id).or_else(|| self.snapshot.orders.get(id).map(|row| &row.registers));
        if let Some(expected) = known.and_then(|registers| registers.expected)
            && expected != registration.expected
        {
            return Err(RegistrationConflict::OtherAmount(expected));
        }
        let before = known.cloned();
        let registers = self.order_mut(id);
        registers.expected = Some(registration.expected);
        registers.expires_at = registration.expires_at.or(registers.expires_at);
        let AccountKey { psp, account } = &registration.account;
        registers.add_account(psp, account);
        if let Some(payment_id) = &registration.payment_id {
            registers.add_payment(psp, account, payment_id);
        }
        let is_news = before.as_ref() != Some(&*registers);
        if is_news {
            self.plan.actions.push(ActionWrite {
                id: self.ids.next(),
                order_id: id.clone(),
                kind: ActionKind::Registered,
                operator: registration.operator.clone(),
                reason: None,
                at: self.work.now,
                detail: registration_detail(registration),
            });
        }
        for reference in references {
            self.links.insert(reference, id.clone());
        }
        Ok(())
    }

    /// A decision is a fact of its own, tied to the picture that it was made on: the one that stands now, under the lock.
    fn reviews(&mut self) {
        for review in self.work.reviews {
            let reviewed = self.review(review).err();
            self.reviewed.push(reviewed);
        }
    }

    /// The answer, if nothing is decided.
    fn review(&mut self, review: &Review) -> Result<(), Reviewed> {
        let Review { order_id, verdict, reason, operator } = review;
        if !self.exists(order_id) {
            return Err(Reviewed::NoSuchOrder);
        }
        let (at, rules) = (self.work.now, &self.work.policy.rules);
        let registers = self.order_mut(order_id);
        let saw = registers.open_review(rules).ok_or(Reviewed::NotUnderReview)?;
        let detail = serde_json::json!({ "decision": verdict, "saw": saw });
        let (verdict, reason, operator) = (*verdict, reason.clone(), operator.clone());
        registers.decide(order::Decision { at, verdict, reason: reason.clone(), operator: operator.clone(), saw });
        let (id, order_id, kind) = (self.ids.next(), order_id.clone(), ActionKind::Reviewed);
        self.plan.actions.push(ActionWrite { id, order_id, kind, operator, reason: Some(reason), at, detail });
        Ok(())
    }

    fn expiries(&mut self) {
        for expiry in self.work.expiries {
            self.expire(expiry);
        }
    }

    /// Nothing, if the order is not any more as it was when it was found expired: it is looked at again.
    fn expire(&mut self, expiry: &Expiry) {
        let Expiry { order_id, ends_at, by, asked } = expiry;
        let (at, rules, asking) = (self.work.now, &self.work.policy.rules, &self.work.policy.asking);
        if !self.exists(order_id) {
            return;
        }
        let registers = self.order_mut(order_id);
        let is_asked = |account: &AccountKey, payment_id: &str| {
            asked.iter().any(|agreed| agreed.account == *account && agreed.payment_id == payment_id)
        };
        let stands = registers.ends_at(registers.view(rules).status) == Some(*ends_at)
            && registers.payment_keys().all(|(account, id)| !asking.contains_key(account) || is_asked(account, id));
        if stands && registers.expire(*by) {
            self.plan.applied.expired.push(order_id.clone());
            self.plan.actions.push(ActionWrite {
                id: self.ids.next(),
                order_id: order_id.clone(),
                kind: ActionKind::Expired,
                operator: OURSELVES.to_owned(),
                reason: None,
                at,
                detail: serde_json::json!({ "ends_at": ends_at, "by": by, "asked": asked }),
            });
        }
    }

    fn arrivals(&mut self) {
        for arrival in self.work.arrivals {
            let mut body_id = None;
            for row in &arrival.rows {
                let Some(write) = self.admit(row) else {
                    self.plan.applied.events.push((row.key.clone(), None));
                    continue;
                };
                if row.source == Source::Webhook {
                    self.came_in(row);
                }
                if let Some(body) = &arrival.body {
                    let id = *body_id.get_or_insert_with(|| {
                        let id = self.ids.next();
                        self.plan.bodies.push(BodyWrite { id, body: body.clone() });
                        id
                    });
                    let secret_name = Some(Arc::clone(&body.secret_name));
                    self.plan.events.push(EventWrite { body_id: Some(id), secret_name, ..write });
                } else {
                    self.plan.events.push(write);
                }
                if let Content::Fact { event, foreign_mode } = &row.content
                    && self.plan.events.last().is_some_and(|write| write.outcome == Outcome::Parked)
                {
                    let origin = Origin::New(self.plan.events.len() - 1);
                    let (foreign_mode, received_at, heard_at) = (*foreign_mode, row.received_at, arrival.heard_at);
                    self.seekers.push(Seeker { event, foreign_mode, received_at, heard_at, origin });
                }
            }
        }
        for parked in &self.snapshot.parked {
            self.seekers.push(Seeker {
                event: &parked.event,
                foreign_mode: parked.foreign_mode,
                received_at: parked.received_at,
                heard_at: None,
                origin: Origin::Parked,
            });
        }
    }

    /// The row to write for an event, as parked until it finds its order; `None` for a duplicate. The same key with other
    /// facts is kept beside the first one, under a key of its own, and looked at by a person.
    fn admit(&mut self, row: &'a InboxRow) -> Option<EventWrite> {
        let says = KnownEvent { facts_sha256: row.facts_sha256, mapping_version: row.mapping_version, source: row.source };
        let known = self.snapshot.known.get(&row.key).or_else(|| self.met.get(&row.key)).copied();
        let write = |row: InboxRow, outcome| EventWrite {
            row,
            body_id: None,
            outcome,
            order_id: None,
            order_version: None,
            secret_name: None,
            at: self.work.now,
        };
        match known {
            None => {
                self.met.insert(&row.key, says);
                let outcome = match row.content {
                    Content::Fact { .. } => Outcome::Parked,
                    Content::Ignored { .. } => Outcome::Ignored,
                    Content::Quarantined { .. } => Outcome::Quarantined,
                };
                Some(write(row.clone(), outcome))
            }
            Some(known) if known.says_as(&says) || known.mapping_version != says.mapping_version => {
                self.told_again(row, known.source);
                None
            }
            Some(_) => {
                let beside = beside(row);
                if !self.snapshot.keys_read.contains(&beside.key) {
                    self.more.keys.insert(beside.key);
                    return None;
                }
                let is_new = !self.snapshot.known.contains_key(&beside.key)
                    && !self.plan.events.iter().any(|other| other.row.key == beside.key);
                is_new.then(|| write(beside, Outcome::Quarantined))
            }
        }
    }

    /// Leads every seeker to its order. What one event links may lead another, so this goes on while it gets anywhere;
    /// each round settles at least one seeker, so it ends.
    fn resolve(&mut self) {
        let mut waiting = std::mem::take(&mut self.seekers);
        loop {
            let before = waiting.len();
            waiting.retain(|seeker| !self.settle(seeker));
            if waiting.len() == before || waiting.is_empty() {
                break;
            }
        }
        for seeker in waiting {
            if let Origin::New(_) | Origin::Loose(_) = seeker.origin {
                let key = &seeker.event.key;
                self.learn(&seeker, None);
                self.plan.parkings.extend(references(seeker.event).map(|reference| (key.clone(), reference)));
                self.unplaced(&account_of(key), &seeker.event.payment_id);
            }
        }
    }

    fn settle(&mut self, seeker: &Seeker<'a>) -> bool {
        match self.target(seeker.event) {
            Target::Unknown => false,
            Target::Conflict => {
                // Others are parked, or become so: their references are what a person needs to see.
                let Origin::New(index) = seeker.origin else { return false };
                if seeker.event.source == Source::Webhook {
                    self.learn(seeker, None);
                }
                self.plan.events[index].outcome = Outcome::Quarantined;
                let reason = "its references lead to different orders".to_owned();
                let fingerprint = conflict_fingerprint(&seeker.event.key.psp);
                self.plan.events[index].row.content = Content::Quarantined { reason, fingerprint };
                true
            }
            Target::Order(order_id) => {
                let unlocked: Vec<ReferenceKey> =
                    references(seeker.event).filter(|key| !self.snapshot.references.contains_key(key)).collect();
                self.more.references.extend(unlocked);
                self.join(seeker, &order_id);
                true
            }
        }
    }

    fn join(&mut self, seeker: &Seeker<'a>, order_id: &str) {
        let key = &seeker.event.key;
        let before = self.if_idle(seeker);
        let order = self.order_mut(order_id);
        let before = before.then(|| order.clone());
        let came_to = order.came_to(&account_of(key), &seeker.event.payment_id);
        let added = order.join(seeker.event, seeker.foreign_mode);
        self.learn(seeker, came_to);
        let order = &self.orders[order_id];
        if before.is_some_and(|before| before == *order)
            && let Origin::New(index) = seeker.origin
        {
            self.idle.insert(index);
        }
        let outcome = if added { Outcome::Applied } else { Outcome::Superseded };
        for reference in references(seeker.event) {
            self.links.entry(reference).or_insert_with(|| order_id.to_owned());
        }
        match seeker.origin {
            Origin::New(index) | Origin::Loose(index) => {
                self.plan.events[index].outcome = outcome;
                self.plan.events[index].order_id = Some(order_id.to_owned());
            }
            Origin::Parked => {
                let order_id = order_id.to_owned();
                let woken = WokenEvent { key: key.clone(), outcome, order_id, order_version: 0, at: self.work.now };
                self.plan.woken.push(woken);
                self.book(&account_of(key), seeker.received_at, Outcome::Parked, -1);
                self.book(&account_of(key), seeker.received_at, outcome, 1);
            }
        }
    }

    /// An answer that may say nothing new: all its names lead somewhere already.
    fn if_idle(&self, seeker: &Seeker<'a>) -> bool {
        seeker.event.is_answer() && references(seeker.event).all(|reference| self.leads_to(&reference).is_some())
    }

    fn target(&self, event: &PaymentEvent) -> Target {
        let mut target: Option<String> = None;
        let mut unregistered: Option<String> = None;
        for reference in references(event) {
            let order_id = match reference.kind {
                // The merchant's own id is the order, once it exists or may come into being.
                ReferenceKind::Order if self.exists(&reference.value) || self.work.policy.events_create_orders => reference.value,
                ReferenceKind::Order => {
                    unregistered = Some(reference.value);
                    continue;
                }
                _ => match self.leads_to(&reference) {
                    Some(order_id) => order_id.to_owned(),
                    None => continue,
                },
            };
            match &target {
                Some(other) if *other != order_id => return Target::Conflict,
                _ => target = Some(order_id),
            }
        }
        match (target, unregistered) {
            // As it would be if that order were registered already: which of the two comes first must not decide.
            (Some(order_id), Some(named)) if named != order_id => Target::Conflict,
            (Some(order_id), _) => Target::Order(order_id),
            (None, _) => Target::Unknown,
        }
    }

    fn exists(&self, order_id: &str) -> bool {
        self.orders.contains_key(order_id) || self.snapshot.orders.contains_key(order_id)
    }

    fn leads_to(&self, reference: &ReferenceKey) -> Option<&str> {
        let stored = || self.snapshot.references.get(reference).and_then(Option::as_ref);
        self.links.get(reference).or_else(stored).map(String::as_str)
    }

    fn order_mut(&mut self, id: &str) -> &mut Registers {
        match self.orders.entry(id.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let stored = self.snapshot.orders.get(id).map(|row| row.registers.clone());
                place.insert(stored.unwrap_or_default())
            }
        }
    }

    /// A first look at a payment that is heard of and has no order yet.
    fn unplaced(&mut self, account: &AccountKey, payment_id: &str) {
        if let Some(habits) = self.work.policy.asking.get(account)
            && let Some(next_check_at) = schedule::first_look(None, *habits, self.work.now)
            && self.unplaced.insert((account.clone(), payment_id.to_owned()))
        {
            let (account, payment_id) = (account.clone(), payment_id.to_owned());
            self.plan.checks.push(CheckWrite { account, payment_id, reason: CheckReason::Unplaced { next_check_at } });
        }
    }

    /// Plans the first look at every payment of a changed order that stands otherwise than before.
    fn standings(&mut self, registers: &Registers, before: Option<&Registers>) {
        for (account, payment_id, standing) in registers.standings() {
            let Some(habits) = self.work.policy.asking.get(account) else { continue };
            if before.and_then(|before| before.standing(account, payment_id)) == Some(standing) {
                continue;
            }
            let next_check_at = schedule::first_look(Some(standing), *habits, self.work.now);
            let reason = CheckReason::Stands { as_: standing, next_check_at };
            self.plan.checks.push(CheckWrite { account: account.clone(), payment_id: payment_id.to_owned(), reason });
        }
    }

    /// Whether a changed order waits for money, and nobody can be asked about it.
    fn unasked(&mut self, write: &OrderWrite, before: Option<&OrderRow>) {
        let asking = &self.work.policy.asking;
        let unasked = |registers: &Registers, stored: &StoredOrder| {
            registers.unasked(stored.view.status, |account| asking.contains_key(account)).cloned()
        };
        let was = before.is_some_and(|row| unasked(&row.registers, &row.stored).is_some());
        let account = unasked(&write.registers, &write.stored);
        if account.is_some() != was {
            self.plan.unasked.push(UnaskedWrite { order_id: write.stored.id.clone(), account, since: self.work.now });
        }
    }

    /// Has the PSP asked about payments of a changed order whose facts are in doubt; but not by its own answer, which is
    /// followed by the next question in its time: two looks that agree must be apart.
    fn doubts(&mut self, registers: &Registers) {
        let next_check_at = self.work.now.plus(DOUBT_DELAY);
        for (account, payment_id) in registers.in_doubt() {
            if self.work.policy.asking.contains_key(&account) && !self.is_answered(&account, &payment_id) {
                let (account, payment_id) = (account.clone(), payment_id.clone());
                self.plan.checks.push(CheckWrite { account, payment_id, reason: CheckReason::InDoubt { next_check_at } });
            }
            self.plan.applied.in_doubt.insert((account, payment_id));
        }
    }

    /// This work holds the PSP's answer about the payment.
    fn is_answered(&self, account: &AccountKey, payment_id: &str) -> bool {
        let mut rows = self.work.arrivals.iter().flat_map(|arrival| &arrival.rows);
        rows.any(|row| row.answers(payment_id) && account_of(&row.key) == *account)
    }

    fn book(&mut self, account: &AccountKey, received_at: Timestamp, outcome: Outcome, count: i64) {
        let hour = Timestamp::from_millis(received_at.millis().div_euclid(HOUR_MS) * HOUR_MS);
        *self.plan.books.entry(BookKey { account: account.clone(), hour, outcome }).or_default() += count;
    }

    fn finish(mut self) -> Decision {
        if !self.more.is_empty() {
            return Decision::ReadMore(self.more);
        }
        let mut place = 0..;
        let (idle, known) = (&self.idle, &mut self.plan.applied.events);
        self.plan.events.retain(|write| {
            let is_idle = place.next().is_some_and(|place| idle.contains(&place));
            if is_idle {
                known.push((write.row.key.clone(), None));
            }
            !is_idle
        });
        for index in 0..self.plan.events.len() {
            let write = &self.plan.events[index];
            let (account, received_at, outcome) = (account_of(&write.row.key), write.row.received_at, write.outcome);
            self.plan.applied.events.push((write.row.key.clone(), Some(outcome)));
            self.book(&account, received_at, outcome, 1);
        }
        self.plan.books.retain(|_, count| *count != 0);
        let mut current: HashMap<String, StoredOrder> = HashMap::new();
        for (id, registers) in std::mem::take(&mut self.orders) {
            let known = self.snapshot.orders.get(&id);
            let write = order_write(&id, registers, known, self.work, self.ids);
            current.insert(id, write.stored.clone());
            if known.is_none_or(|known| known.registers != write.registers) {
                self.unasked(&write, known);
                self.standings(&write.registers, known.map(|known| &known.registers));
                self.doubts(&write.registers);
                self.plan.orders.push(write);
            }
        }
        let version_of = |order_id: &str| current.get(order_id).map(|stored: &StoredOrder| stored.version);
        let replaced = self.plan.replaced.iter_mut().map(|replaced| &mut replaced.write);
        for write in self.plan.events.iter_mut().chain(replaced) {
            write.order_version = write.order_id.as_deref().and_then(version_of);
        }
        for woken in &mut self.plan.woken {
            woken.order_version = version_of(&woken.order_id).unwrap_or_default();
        }
        self.plan.destinations.clone_from(&self.work.policy.destinations);
        self.plan.learned = std::mem::take(&mut self.learned).into_values().collect();
        let is_new = |(reference, _): &(ReferenceKey, String)| !matches!(self.snapshot.references.get(reference), Some(Some(_)));
        self.plan.links = self.links.into_iter().filter(is_new).collect();
        let answers = self.work.reviews.iter().zip(self.reviewed).filter_map(|(review, reviewed)| {
            // A decided order is always among those that became something.
            reviewed.or_else(|| Some(Reviewed::Decided(Box::new(current.get(&review.order_id)?.clone()))))
        });
        self.plan.applied.reviews = answers.collect();
        self.plan.applied.registrations = registered(self.work, self.snapshot, self.refused, &current);
        self.plan.applied.orders = current.iter().map(|(id, stored)| (id.clone(), stored.view.status)).collect();
        self.plan.applied.woken = self.plan.woken.len();
        self.plan.applied.transitions = self.plan.orders.iter().filter(|write| write.transition.is_some()).count();
        Decision::Write(Box::new(self.plan))
    }
}

/// What the shop said, for the order's timeline.
fn registration_detail(registration: &Registration) -> serde_json::Value {
    serde_json::json!({
        "psp": registration.account.psp,
        "account": registration.account.account,
        "payment_id": registration.payment_id,
        "amount": registration.expected.minor,
        "currency": registration.expected.currency.to_string(),
        "expires_at": registration.expires_at.map(|at| at.to_string()),
    })
}

fn account_of(key: &EventKey) -> AccountKey {
    AccountKey { psp: Arc::clone(&key.psp), account: Arc::clone(&key.account) }
}

fn conflict_fingerprint(psp: &str) -> String {
    format!("{psp}:reference_conflict")
}

fn same_id_fingerprint(psp: &str) -> String {
    format!("{psp}:same_id_other_facts")
}

/// The row under which a second, different version of a known event is kept.
fn beside(row: &InboxRow) -> InboxRow {
    let tail = row.facts_sha256[..8].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    InboxRow {
        key: EventKey { event_id: format!("{}~{tail}", row.key.event_id), ..row.key.clone() },
        content: Content::Quarantined {
            reason: format!("the event {} is known with other facts", row.key.event_id),
            fingerprint: same_id_fingerprint(&row.key.psp),
        },
        ..row.clone()
    }
}

fn order_write(id: &str, registers: Registers, known: Option<&OrderRow>, work: &Work<'_>, ids: &Ids) -> OrderWrite {
    let (view, now) = (registers.view(&work.policy.rules), work.now);
    let due_at = registers.ends_at(view.status);
    let previous = known.map(|row| &row.stored);
    let previous_version = previous.map_or(0, |stored| stored.version);
    if let Some(stored) = previous
        && stored.view == view
    {
        return OrderWrite { registers, stored: stored.clone(), previous_version, due_at, transition: None };
    }
    let review_stood = previous.filter(|stored| stored.view.review == view.review).and_then(|stored| stored.review_since);
    let transition = Transition { id: ids.next(), from: previous.map(|stored| stored.view.status), to: view.status, at: now };
    let stored = StoredOrder {
        id: id.to_owned(),
        review_since: view.review.map(|_| review_stood.unwrap_or(now)),
        view,
        version: previous_version + 1,
        updated_at: now,
    };
    OrderWrite { registers, stored, previous_version, due_at, transition: Some(transition) }
}

fn registered(
    work: &Work<'_>,
    snapshot: &Snapshot,
    refused: Vec<Option<RegistrationConflict>>,
    current: &HashMap<String, StoredOrder>,
) -> Vec<Registered> {
    let mut created = BTreeSet::new();
    let answers = work.registrations.iter().zip(refused).filter_map(|(registration, refused)| {
        let id = &registration.order_id;
        if let Some(conflict) = refused {
            return Some(Registered::Refused(conflict));
        }
        // A registration that was not refused always has its order among those that became something.
        let stored = Box::new(current.get(id)?.clone());
        let is_new = !snapshot.orders.contains_key(id) && created.insert(id.clone());
        Some(if is_new { Registered::Created(stored) } else { Registered::Updated(stored) })
    });
    answers.collect()
}

#[cfg(test)]
mod tests {
    use paybell_shared::event::{Fact, FactVersion, PaymentFact, PaymentState, Reference, Source};
    use paybell_shared::money::{Currency, Money};

    use super::*;
    use crate::store::Policy;

    const NOW: Timestamp = Timestamp::from_seconds(1_790_000_000);

    fn plan_of(arrivals: &[crate::inbox::Arrival], registrations: &[Registration], snapshot: &Snapshot) -> Plan {
        let (ids, policy) = (Ids::seeded(1), Policy::default());
        let work = Work { arrivals, registrations, ..Work::new(&policy, &ids, NOW) };
        match plan(&work, snapshot, &ids) {
            Decision::Write(plan) => *plan,
            Decision::ReadMore(more) => panic!("{more:?}"),
        }
    }

    #[test]
    fn an_event_that_names_another_order_than_its_payments_joins_neither() {
        let account = AccountKey { psp: "stripe".into(), account: "default".into() };
        let (order, payment) = (Reference::new(ReferenceKind::Order, "other"), Reference::new(ReferenceKind::Payment, "pi_1"));
        let expected = Money::new(4999, Currency::parse("EUR").unwrap());
        let registration = Registration {
            order_id: "order".to_owned(),
            account: account.clone(),
            payment_id: Some("pi_1".to_owned()),
            expected,
            expires_at: None,
            operator: "test".to_owned(),
        };
        let registered = plan_of(&[], &[registration], &Snapshot::default()).orders.remove(0);
        let key = EventKey { psp: account.psp.clone(), account: account.account, event_id: "evt_1".to_owned() };
        let event = PaymentEvent {
            key: key.clone(),
            event_type: "payment_intent.succeeded".to_owned(),
            occurred_at: NOW,
            source: Source::Webhook,
            mode: None,
            references: vec![order.clone(), payment.clone()],
            payment_id: "pi_1".to_owned(),
            version: FactVersion::Time(NOW.millis()),
            fact: Fact::Payment(PaymentFact { captured: Some(expected), ..PaymentFact::new(PaymentState::Captured) }),
        };
        let of = |reference: &Reference| reference_key(&key.psp, &key.account, reference.kind, &reference.value);
        let snapshot = Snapshot {
            references: BTreeMap::from([(of(&order), None), (of(&payment), Some("order".to_owned()))]),
            orders: HashMap::from([(
                "order".to_owned(),
                OrderRow { registers: registered.registers, stored: registered.stored },
            )]),
            ..Snapshot::default()
        };
        let row = InboxRow {
            key: key.clone(),
            event_type: event.event_type.clone(),
            received_at: NOW,
            facts_sha256: event.facts_sha256(),
            mapping_version: 1,
            source: event.source,
            content: Content::Fact { event: Box::new(event), foreign_mode: false },
        };
        let plan =
            plan_of(&[crate::inbox::Arrival { body: None, rows: vec![row], asks: Vec::new(), heard_at: None }], &[], &snapshot);
        assert_eq!(plan.applied.events, [(key, Some(Outcome::Quarantined))]);
        assert!(plan.orders.is_empty() && plan.links.is_empty(), "{plan:?}");
    }
}
