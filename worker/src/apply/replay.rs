//! What a replay changes: pure, inside one transaction of the store.
//!
//! | step | what happens |
//! |---|---|
//! | compare | each event of a replayed webhook with what its webhook says now: the same, skipped, or changed |
//! | undo | the snapshot as it would be if the changed events had never come: their orders rebuilt from all other facts, what only they led to an order unlinked |
//! | apply | the changed events look for their order anew, and with them those that only the undone facts had led to theirs |
//!
//! So replaying wrong facts comes to the same as never having had them (invariant I4). What leads an event to its order is
//! grounded in the order's own id or in a payment that the shop named: an event that nothing of its order's other events
//! connects to either is loose, and goes where its references lead now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use paybell_shared::event::{EventKey, Fact, PaymentEvent, ReferenceKind};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Origin, Planner, Seeker, Target, account_of, conflict_fingerprint, order_reference, reference_key, references,
    same_id_fingerprint,
};
use crate::ids::Ids;
use crate::inbox::{Content, InboxRow, Outcome};
use crate::order::{Registers, Rules};
use crate::store::{
    ActionKind, ActionWrite, Applied, BodyPlace, Decision, EventChange, EventState, EventWrite, KeptEvent, OrderChange, Plan,
    ReferenceKey, ReplacedEvent, Replay, Replayed, Snapshot, Wanted, Work,
};

/// Events that an order's timeline shows of one replay: the rest is counted.
const DETAIL_EVENTS_MAX: usize = 100;

pub(super) fn wanted(replays: &[Replay]) -> Wanted {
    Wanted {
        keys: replays.iter().flat_map(|replay| &replay.rows).map(|row| row.key.clone()).collect(),
        bodies: replays.iter().map(|replay| replay.place).collect(),
        ..Wanted::default()
    }
}

pub(super) fn plan(work: &Work<'_>, snapshot: &Snapshot, ids: &Ids) -> Decision {
    let Compared { changes, skipped } = compare(work.replays, snapshot);
    let mut more = locks(&changes, snapshot);
    if !more.is_empty() {
        return Decision::ReadMore(more);
    }
    let undone = undo(&changes, snapshot, &mut more);
    if !more.is_empty() {
        return Decision::ReadMore(more);
    }
    let before = undone.snapshot;
    let mut planner = Planner::new(work, &before, ids);
    planner.orders = undone.rebuilt;
    let looking = changes.iter().map(Looking::Changed).chain(undone.loose.iter().copied().map(Looking::Loose));
    let looking: Vec<Looking<'_>> = looking.collect();
    for event in &looking {
        seek(&mut planner, *event);
    }
    planner.arrivals(); // None, but those that are parked.
    planner.resolve();
    if !planner.more.is_empty() {
        return Decision::ReadMore(planner.more);
    }
    if !work.replays.iter().all(|replay| replay.concluded) {
        match companions(&planner, &looking, snapshot) {
            Companions::Unread(orders) => {
                return Decision::ReadMore(Wanted { order_events: orders, ..Wanted::default() });
            }
            Companions::Needed(needed) if !needed.is_empty() => {
                let replayed = Replayed { needed: needed.into_iter().collect(), ..Replayed::default() };
                return Decision::Write(Box::new(Plan {
                    applied: Applied { replayed, ..Applied::default() },
                    ..Plan::default()
                }));
            }
            Companions::Needed(_) => {}
        }
    }
    replace(&mut planner, &looking);
    let mut plan = match planner.finish() {
        Decision::Write(plan) => plan,
        more @ Decision::ReadMore(_) => return more,
    };
    unlink(&mut plan, undone.unlinked);
    plan.applied.replayed = replayed(work, snapshot, &plan, &looking, skipped);
    record(&mut plan, work, ids);
    Decision::Write(plan)
}

/// One event of a replayed webhook that becomes another row.
struct Change<'a> {
    replay: &'a Replay,
    /// `None`: it is new.
    was: Option<&'a KeptEvent>,
    row: InboxRow,
}

struct Compared<'a> {
    changes: Vec<Change<'a>>,
    skipped: Vec<(EventKey, String)>,
}

fn compare<'a>(replays: &'a [Replay], snapshot: &'a Snapshot) -> Compared<'a> {
    let mut compared = Compared { changes: Vec::new(), skipped: Vec::new() };
    let mut met = HashSet::new();
    for replay in replays {
        let kept = snapshot.body_events.get(&replay.place).map_or(&[][..], Vec::as_slice);
        let mut problems = Vec::new();
        for row in &replay.rows {
            match kept.iter().find(|kept| kept.row.key == row.key) {
                Some(was) => match judge(was, row, replay.forced) {
                    Judgement::Same => {}
                    Judgement::Other => compared.changes.push(Change { replay, was: Some(was), row: row.clone() }),
                    Judgement::Skip(problem) => problems.push(problem),
                },
                // Another webhook brought it first: a duplicate.
                None if snapshot.known.contains_key(&row.key) || !met.insert(&row.key) => {}
                None => compared.changes.push(Change { replay, was: None, row: row.clone() }),
            }
        }
        let left_over = kept.iter().filter(|kept| replay.rows.iter().all(|row| row.key != kept.row.key));
        for was in left_over {
            match left_over_row(was, replay) {
                Ok(Some(row)) => compared.changes.push(Change { replay, was: Some(was), row }),
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            compared.skipped.push((replay.webhook.clone(), problems.join("; ")));
        }
    }
    compared
}

enum Judgement {
    Same,
    Other,
    Skip(String),
}

fn judge(was: &KeptEvent, now: &InboxRow, forced: bool) -> Judgement {
    let same_facts = was.row.facts_sha256 == now.facts_sha256;
    let same = match (&was.row.content, &now.content) {
        (Content::Fact { foreign_mode: before, .. }, Content::Fact { foreign_mode, .. }) => same_facts && before == foreign_mode,
        (before, now) => before == now,
    };
    // Understood, and led to different orders: where that is mended, it finds its own.
    let looks_again = same_facts && matches!(now.content, Content::Fact { .. });
    if same {
        Judgement::Same
    } else if looks_again && matches!(was.row.content, Content::Quarantined { .. }) {
        Judgement::Other
    } else {
        may_replace(was, now.mapping_version, forced).map_or_else(Judgement::Skip, |()| Judgement::Other)
    }
}

fn may_replace(was: &KeptEvent, mapping_version: u32, forced: bool) -> Result<(), String> {
    let (key, kept) = (&was.row.key, was.row.mapping_version);
    if kept > mapping_version {
        Err(format!("{key} was translated by the newer mapping {kept}, this is {mapping_version}"))
    } else if kept == mapping_version && !forced {
        Err(format!("{key} says something else by the same mapping {kept}: its account's settings are others now; force it"))
    } else {
        Ok(())
    }
}

/// What becomes of an event under whose key its webhook says nothing any more.
fn left_over_row(was: &KeptEvent, replay: &Replay) -> Result<Option<InboxRow>, String> {
    let key = &was.row.key;
    match &was.row.content {
        Content::Ignored { .. } => return Ok(None),
        Content::Quarantined { fingerprint, .. } if *fingerprint == same_id_fingerprint(&key.psp) => {
            return Err(format!("{key} is kept beside an event of the same id: which of them is true, a person decides"));
        }
        Content::Quarantined { .. } | Content::Fact { .. } => {}
    }
    // A webhook always says something, and all of it by one mapping.
    let mapping_version = replay.rows.first().map_or(was.row.mapping_version, |row| row.mapping_version);
    may_replace(was, mapping_version, replay.forced)?;
    Ok(Some(InboxRow {
        facts_sha256: Sha256::digest([]).into(),
        mapping_version,
        content: Content::Ignored { reason: format!("its webhook says something else by the mapping {mapping_version}") },
        ..was.row.clone()
    }))
}

fn fact_of(row: &InboxRow) -> Option<&PaymentEvent> {
    if let Content::Fact { event, .. } = &row.content { Some(event) } else { None }
}

fn keys_of(row: &InboxRow) -> impl Iterator<Item = ReferenceKey> {
    fact_of(row).into_iter().flat_map(references)
}

/// What the changes concern and is not locked and read yet.
fn locks(changes: &[Change<'_>], snapshot: &Snapshot) -> Wanted {
    let mut more = Wanted::default();
    let mut lock = |reference| {
        if !snapshot.references.contains_key(&reference) {
            more.references.insert(reference);
        }
    };
    for Change { was, row, .. } in changes {
        keys_of(row).for_each(&mut lock);
        was.iter().flat_map(|was| keys_of(&was.row)).for_each(&mut lock);
        was.iter().filter_map(|was| was.order_id.as_deref()).map(order_reference).for_each(&mut lock);
    }
    let orders = changes.iter().filter_map(|change| change.was?.order_id.as_ref());
    more.order_events = orders.filter(|id| !snapshot.order_events.contains_key(*id)).cloned().collect();
    more
}

/// The state without the changed events.
struct Undone<'a> {
    snapshot: Snapshot,
    rebuilt: BTreeMap<String, Registers>,
    loose: Vec<&'a KeptEvent>,
    /// What led there and does no more.
    unlinked: BTreeMap<ReferenceKey, String>,
}

fn undo<'a>(changes: &[Change<'a>], snapshot: &'a Snapshot, more: &mut Wanted) -> Undone<'a> {
    let replaced: HashSet<&EventKey> = changes.iter().map(|change| &change.row.key).collect();
    let mut by_order: BTreeMap<&str, Vec<&Change<'_>>> = BTreeMap::new();
    for change in changes {
        if let Some(order_id) = change.was.and_then(|was| was.order_id.as_deref()) {
            by_order.entry(order_id).or_default().push(change);
        }
    }
    let mut undone = Undone {
        snapshot: Snapshot {
            references: snapshot.references.clone(),
            orders: snapshot.orders.clone(),
            parked: snapshot.parked.iter().filter(|parked| !replaced.contains(&parked.event.key)).cloned().collect(),
            ..Snapshot::default()
        },
        rebuilt: BTreeMap::new(),
        loose: Vec::new(),
        unlinked: BTreeMap::new(),
    };
    for (order_id, changes) in by_order {
        // Both were asked for by `locks`; an event of an order that is not there is the audit's business.
        let (Some(order), Some(events)) = (snapshot.orders.get(order_id), snapshot.order_events.get(order_id)) else { continue };
        let bare = order.registers.without_facts();
        let others: Vec<&KeptEvent> = events.iter().filter(|event| !replaced.contains(&event.row.key)).collect();
        let (stay, leave): (Vec<&Change<'_>>, Vec<&Change<'_>>) = changes.into_iter().partition(|change| keeps_its_place(change));
        let loose = if leave.is_empty() {
            HashSet::new()
        } else {
            let named = bare.view(&Rules::default()).payments;
            let named = named.iter().map(|payment| {
                let (psp, account) = (&payment.account.psp, &payment.account.account);
                reference_key(psp, account, ReferenceKind::Payment, &payment.payment_id)
            });
            let ground = named.chain([order_reference(order_id)]);
            let held = others.iter().map(|event| &event.row).chain(stay.iter().map(|change| &change.row));
            let grounded = grounded(ground, held);
            let loose: Vec<&KeptEvent> =
                others.iter().copied().filter(|event| !keys_of(&event.row).any(|key| grounded.contains(&key))).collect();
            let left = leave.iter().filter_map(|change| Some(&change.was?.row));
            for key in left.chain(loose.iter().map(|event| &event.row)).flat_map(keys_of) {
                match snapshot.references.get(&key) {
                    None => drop(more.references.insert(key)),
                    Some(Some(led)) if led == order_id && !grounded.contains(&key) => {
                        undone.snapshot.references.insert(key.clone(), None);
                        undone.unlinked.insert(key, order_id.to_owned());
                    }
                    Some(_) => {}
                }
            }
            undone.loose.extend(&loose);
            loose.into_iter().map(|event| &event.row.key).collect()
        };
        let mut registers = bare;
        for event in others.iter().filter(|event| !loose.contains(&event.row.key)) {
            if let Content::Fact { event, foreign_mode } = &event.row.content {
                registers.join(event, *foreign_mode);
            }
        }
        undone.rebuilt.insert(order_id.to_owned(), registers);
    }
    undone
}

/// It carries the references that it carried: what they led to its order, they lead still.
fn keeps_its_place(change: &Change<'_>) -> bool {
    let before: BTreeSet<ReferenceKey> = change.was.iter().flat_map(|was| keys_of(&was.row)).collect();
    let now: BTreeSet<ReferenceKey> = keys_of(&change.row).collect();
    !now.is_empty() && before == now
}

/// The references that are connected to the ground by events that carry both.
fn grounded<'a>(ground: impl Iterator<Item = ReferenceKey>, held: impl Iterator<Item = &'a InboxRow>) -> HashSet<ReferenceKey> {
    let carried: Vec<Vec<ReferenceKey>> = held.map(|row| keys_of(row).collect()).collect();
    let mut carriers: HashMap<&ReferenceKey, Vec<usize>> = HashMap::new();
    for (event, keys) in carried.iter().enumerate() {
        for key in keys {
            carriers.entry(key).or_default().push(event);
        }
    }
    let mut reached: HashSet<ReferenceKey> = ground.collect();
    let mut next: Vec<ReferenceKey> = reached.iter().cloned().collect();
    while let Some(key) = next.pop() {
        for event in carriers.remove(&key).into_iter().flatten() {
            next.extend(carried[event].iter().filter(|key| reached.insert((*key).clone())).cloned());
        }
    }
    reached
}

/// An event that looks for its order again.
#[derive(Clone, Copy)]
enum Looking<'a> {
    Changed(&'a Change<'a>),
    Loose(&'a KeptEvent),
}

impl<'a> Looking<'a> {
    const fn row(self) -> &'a InboxRow {
        match self {
            Self::Changed(change) => &change.row,
            Self::Loose(kept) => &kept.row,
        }
    }

    const fn was(self) -> Option<&'a KeptEvent> {
        match self {
            Self::Changed(change) => change.was,
            Self::Loose(kept) => Some(kept),
        }
    }
}

/// Its place among the plan's events is that among those who look.
fn seek<'a>(planner: &mut Planner<'a>, looking: Looking<'a>) {
    let place = planner.plan.events.len();
    let row = looking.row();
    let (outcome, body_id, secret_name, origin) = match looking {
        Looking::Changed(Change { replay, .. }) => {
            let outcome = match row.content {
                Content::Fact { .. } => Outcome::Parked,
                Content::Ignored { .. } => Outcome::Ignored,
                Content::Quarantined { .. } => Outcome::Quarantined,
            };
            (outcome, Some(replay.place.id), Some(std::sync::Arc::clone(&replay.secret_name)), Origin::New(place))
        }
        Looking::Loose(kept) => (Outcome::Parked, kept.body.map(|body| body.id), None, Origin::Loose(place)),
    };
    let (row_now, at) = (row.clone(), planner.work.now);
    let write = EventWrite { row: row_now, body_id, outcome, order_id: None, order_version: None, secret_name, at };
    planner.plan.events.push(write);
    if let Content::Fact { event, foreign_mode } = &row.content {
        planner.seekers.push(Seeker { event, foreign_mode: *foreign_mode, received_at: row.received_at, heard_at: None, origin });
    }
}

enum Companions {
    /// Orders that must be read first.
    Unread(BTreeSet<String>),
    Needed(BTreeSet<BodyPlace>),
}

/// Webhooks of older mappings in the orders that an event contradicts: one bug has led them all astray, and each alone would
/// hold the others where they are.
fn companions(planner: &Planner<'_>, looking: &[Looking<'_>], snapshot: &Snapshot) -> Companions {
    let replayed: HashSet<BodyPlace> = planner.work.replays.iter().map(|replay| replay.place).collect();
    let (mut unread, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for event in looking.iter().filter_map(|looking| fact_of(looking.row())) {
        if !matches!(planner.target(event), Target::Conflict) {
            continue;
        }
        let version_now = planner.work.replays.iter().flat_map(|replay| &replay.rows).map(|row| row.mapping_version).max();
        for order_id in references(event).filter_map(|key| led_to(planner, key)) {
            match snapshot.order_events.get(&order_id) {
                None if snapshot.orders.contains_key(&order_id) => drop(unread.insert(order_id)),
                None => {}
                Some(events) => {
                    let stale = events.iter().filter(|other| {
                        account_of(&other.row.key) == account_of(&event.key) && Some(other.row.mapping_version) < version_now
                    });
                    needed.extend(stale.filter_map(|other| other.body).filter(|body| !replayed.contains(body)));
                }
            }
        }
    }
    if unread.is_empty() { Companions::Needed(needed) } else { Companions::Unread(unread) }
}

fn led_to(planner: &Planner<'_>, key: ReferenceKey) -> Option<String> {
    if key.kind == ReferenceKind::Order { Some(key.value) } else { planner.leads_to(&key).map(str::to_owned) }
}

/// Takes what was there before out of the new rows: written over what it was, or left as it is.
fn replace(planner: &mut Planner<'_>, looking: &[Looking<'_>]) {
    for (write, looking) in std::mem::take(&mut planner.plan.events).into_iter().zip(looking) {
        let Some(was) = looking.was() else {
            planner.plan.events.push(write);
            continue;
        };
        let stays = match looking {
            // Which of the facts was the first to say what both say is history.
            Looking::Loose(_) => write.order_id.is_some() && write.order_id == was.order_id,
            Looking::Changed(_) => is_conflict(was) && write.row.content == was.row.content,
        };
        if stays {
            continue;
        }
        let account = account_of(&write.row.key);
        planner.book(&account, was.row.received_at, was.outcome, -1);
        planner.book(&account, write.row.received_at, write.outcome, 1);
        planner.plan.replaced.push(ReplacedEvent { was: was.clone(), write });
    }
}

fn is_conflict(kept: &KeptEvent) -> bool {
    let ours = conflict_fingerprint(&kept.row.key.psp);
    matches!(&kept.row.content, Content::Quarantined { fingerprint, .. } if *fingerprint == ours)
}

/// What leads to the same order again was never undone.
fn unlink(plan: &mut Plan, unlinked: BTreeMap<ReferenceKey, String>) {
    let linked: HashMap<&ReferenceKey, &String> = plan.links.iter().map(|(key, order_id)| (key, order_id)).collect();
    let (again, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
        unlinked.into_iter().partition(|(key, order_id)| linked.get(key) == Some(&order_id));
    plan.links.retain(|(key, _)| !again.contains_key(key));
    plan.unlinks = gone.into_iter().collect();
}

fn replayed(
    work: &Work<'_>,
    snapshot: &Snapshot,
    plan: &Plan,
    looking: &[Looking<'_>],
    skipped: Vec<(EventKey, String)>,
) -> Replayed {
    let replaced = plan.replaced.iter().map(|replaced| (Some(state_before(&replaced.was)), &replaced.write));
    let written = replaced.chain(plan.events.iter().map(|write| (None, write)));
    let mut events: Vec<EventChange> =
        written.map(|(before, write)| EventChange { key: write.row.key.clone(), before, after: state_after(write) }).collect();
    let facts: HashMap<&EventKey, &Fact> = snapshot.parked.iter().map(|parked| (&parked.event.key, &parked.event.fact)).collect();
    events.extend(plan.woken.iter().map(|woken| {
        let fact = facts.get(&woken.key).copied().cloned();
        EventChange {
            key: woken.key.clone(),
            before: Some(EventState { outcome: Outcome::Parked, order_id: None, fact: fact.clone() }),
            after: EventState { outcome: woken.outcome, order_id: Some(woken.order_id.clone()), fact },
        }
    }));
    let orders = plan.orders.iter().filter(|write| write.transition.is_some()).map(|write| OrderChange {
        id: write.stored.id.clone(),
        before: snapshot.orders.get(&write.stored.id).map(|row| row.stored.view.clone()),
        after: write.stored.view.clone(),
    });
    let orders = orders.collect();
    let changed: HashSet<&EventKey> = events.iter().map(|change| &change.key).collect();
    let changed: HashSet<BodyPlace> = looking
        .iter()
        .filter_map(|looking| if let Looking::Changed(change) = looking { Some(change) } else { None })
        .filter(|change| changed.contains(&change.row.key))
        .map(|change| change.replay.place)
        .collect();
    let unchanged = work.replays.iter().filter(|replay| !changed.contains(&replay.place));
    let unchanged = unchanged.filter(|replay| skipped.iter().all(|(webhook, _)| *webhook != replay.webhook)).count();
    Replayed { events, orders, skipped, unchanged, needed: Vec::new() }
}

fn state_before(was: &KeptEvent) -> EventState {
    let fact = fact_of(&was.row).map(|event| event.fact.clone());
    EventState { outcome: was.outcome, order_id: was.order_id.clone(), fact }
}

fn state_after(write: &EventWrite) -> EventState {
    let fact = fact_of(&write.row).map(|event| event.fact.clone());
    EventState { outcome: write.outcome, order_id: write.order_id.clone(), fact }
}

/// Who did it and what it did, in the timeline of every order that lost, won or changed facts.
fn record(plan: &mut Plan, work: &Work<'_>, ids: &Ids) {
    let Some(replay) = work.replays.first() else { return };
    let forced = work.replays.iter().any(|replay| replay.forced);
    let mappings: HashMap<&EventKey, (u32, u32)> = plan
        .replaced
        .iter()
        .map(|ReplacedEvent { was, write }| (&was.row.key, (was.row.mapping_version, write.row.mapping_version)))
        .collect();
    let mut by_order: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for change in &plan.applied.replayed.events {
        let state = |state: &EventState| json!({ "outcome": state.outcome, "order_id": state.order_id });
        let mapping = mappings.get(&change.key);
        let line = json!({
            "event": change.key.to_string(),
            "before": change.before.as_ref().map(state),
            "after": state(&change.after),
            "mapping_before": mapping.map(|(before, _)| before),
            "mapping": mapping.map(|(_, now)| now),
        });
        let before = change.before.as_ref().and_then(|before| before.order_id.as_ref());
        let orders: BTreeSet<&String> = before.into_iter().chain(&change.after.order_id).collect();
        for order_id in orders {
            by_order.entry(order_id.clone()).or_default().push(line.clone());
        }
    }
    for (order_id, mut events) in by_order {
        let left_out = events.len().saturating_sub(DETAIL_EVENTS_MAX);
        events.truncate(DETAIL_EVENTS_MAX);
        plan.actions.push(ActionWrite {
            id: ids.next(),
            order_id,
            kind: ActionKind::Replayed,
            operator: replay.operator.clone(),
            reason: Some(replay.reason.clone()),
            at: work.now,
            detail: json!({ "forced": forced, "events": events, "left_out": left_out }),
        });
    }
}
