//! Replaying kept webhooks, a page at a time: translated again from their exact bytes, applied in the store alone.
//!
//! Never through queue or Redis: no marker swallows a replay, and none is written. Whoever stops between two pages, or in
//! one, repeats it: what is replaced already says what it says.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use paybell_shared::envelope::Envelope;
use paybell_shared::event::EventKey;
use paybell_shared::psp::Proof;
use paybell_shared::telemetry::{EVENTS_WOKEN_TOTAL, ORDER_TRANSITIONS_TOTAL};

use crate::consume::Context;
use crate::inbox::Arrival;
use crate::order::AccountKey;
use crate::store::{BodyPlace, Replay, Replayed, Selection, StoreError, StoredBody, Work};

/// Webhooks of one page, and so of one transaction.
pub const PAGE_MAX: u32 = 500;
/// Bodies in memory at a time: of the largest, 8 MiB.
const READ_MAX: usize = 16;
/// Webhooks of one transaction, with those that must be replayed with a page's ([`Replayed::needed`]).
const TOGETHER_MAX: usize = 2 * PAGE_MAX as usize;

/// What is asked of a page.
#[derive(Clone, Debug)]
pub struct Request {
    pub selection: Selection,
    /// Where the page before ended.
    pub after: Option<BodyPlace>,
    /// Webhooks, at most [`PAGE_MAX`].
    pub limit: u32,
    pub dry_run: bool,
    /// Also replace what was translated by the same mapping version.
    pub forced: bool,
    pub operator: String,
    pub reason: String,
}

/// What a page did, or would do.
#[derive(Debug, Default)]
pub struct Page {
    /// How many were looked at.
    pub webhooks: usize,
    /// The page's last, if there may be more.
    pub next: Option<BodyPlace>,
    pub replayed: Replayed,
}

/// Replays a page of the webhooks that are meant. All in one transaction, so that an order whose webhooks one bug has
/// mistranslated goes from wrong to right in one step, and nobody is told of states in between.
///
/// # Errors
/// The database is away, or cannot say whether it committed: the page may be repeated.
pub async fn page(context: &Context, request: &Request) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let limit = request.limit.clamp(1, PAGE_MAX) as usize;
    let mut replays = Vec::with_capacity(limit);
    let mut after = request.after;
    while page.webhooks < limit {
        let wanted = READ_MAX.min(limit - page.webhooks);
        // At most READ_MAX.
        let bodies = context.store.bodies(&request.selection, after.as_ref(), u32::try_from(wanted).unwrap_or(1)).await?;
        let found = bodies.len();
        page.webhooks += found;
        after = bodies.last().map(|stored| stored.place).or(after);
        page.next = after.filter(|_| found == wanted);
        replays.extend(translated(context, request, bodies, &mut page.replayed.skipped));
        if found < wanted {
            break;
        }
    }
    apply(context, request, replays, &mut page).await?;
    let Replayed { events, orders, skipped, unchanged, .. } = &page.replayed;
    tracing::info!(
        event = "webhooks.replayed",
        operator = request.operator,
        dry_run = request.dry_run,
        forced = request.forced,
        webhooks = page.webhooks,
        events = events.len(),
        orders = orders.len(),
        skipped = skipped.len(),
        unchanged
    );
    Ok(page)
}

/// What the webhooks say now.
fn translated(
    context: &Context,
    request: &Request,
    bodies: Vec<StoredBody>,
    skipped: &mut Vec<(EventKey, String)>,
) -> Vec<Replay> {
    let replays = bodies.into_iter().filter_map(|stored| {
        let webhook = EventKey {
            psp: Arc::clone(&stored.body.psp),
            account: Arc::clone(&stored.body.account),
            event_id: stored.body.webhook_id.clone(),
        };
        match translate(context, request, stored, webhook.clone()) {
            Ok(replay) => Some(replay),
            Err(problem) => {
                skipped.push((webhook, problem));
                None
            }
        }
    });
    replays.collect()
}

fn translate(context: &Context, request: &Request, stored: StoredBody, webhook: EventKey) -> Result<Replay, String> {
    let StoredBody { place, body, event_type } = stored;
    let key = AccountKey { psp: Arc::clone(&webhook.psp), account: Arc::clone(&webhook.account) };
    let Some(account) = context.accounts.get(&key) else {
        return Err(format!("{}/{} is not configured here", key.psp, key.account));
    };
    let secret_name = Arc::clone(&body.secret_name);
    // As it came from the queue, but for the trace, which ended. Hints are not kept: their webhooks have no facts.
    let envelope = Envelope {
        psp: body.psp,
        account: body.account,
        webhook_id: body.webhook_id,
        event_type,
        subject: None,
        received_at: body.received_at,
        secret_name: body.secret_name,
        proof: Proof::Proven,
        content_type: body.content_type,
        headers: body.headers,
        traceparent: None,
        body: body.bytes,
    };
    // Adapters never panic (invariant I7); if one does, it costs its own webhook.
    let arrival = catch_unwind(AssertUnwindSafe(|| Arrival::of_webhook(&envelope, account)));
    let arrival = arrival.map_err(|_| "translating it panicked".to_owned())?;
    let (operator, reason) = (request.operator.clone(), request.reason.clone());
    let forced = request.forced;
    Ok(Replay { place, webhook, secret_name, rows: arrival.rows, forced, concluded: false, operator, reason })
}

/// If the database refuses the data, or so many orders at once, halves them until the culprit stands alone.
async fn apply(context: &Context, request: &Request, replays: Vec<Replay>, page: &mut Page) -> Result<(), StoreError> {
    let mut parts = vec![replays];
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match together(context, request, part.clone(), page).await {
            Ok(replayed) => {
                let Replayed { events, orders, skipped, unchanged, needed: _ } = replayed;
                page.replayed.events.extend(events);
                page.replayed.orders.extend(orders);
                page.replayed.skipped.extend(skipped);
                page.replayed.unchanged += unchanged;
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) if part.len() == 1 => {
                let webhook = part.remove(0).webhook;
                let told = match &error {
                    StoreError::Refused(sqlx::Error::Encode(problem)) => problem.to_string(),
                    StoreError::Refused(_) => "the database refuses it: see the log".to_owned(),
                    _ => "what is stored of it cannot be read: see the log".to_owned(),
                };
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(event = "webhooks.replayed", webhook = %webhook, error, "skipped");
                page.replayed.skipped.push((webhook, told));
            }
            Err(StoreError::Refused(_) | StoreError::Inconsistent { .. }) => {
                let half = part.split_off(part.len() / 2);
                parts.push(half);
                parts.push(part);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One transaction, with those webhooks of older mappings that would contradict it.
async fn together(context: &Context, request: &Request, mut part: Vec<Replay>, page: &mut Page) -> Result<Replayed, StoreError> {
    loop {
        let work = Work { replays: &part, dry_run: request.dry_run, ..context.work() };
        let applied = context.store.apply(&work).await?;
        if applied.replayed.needed.is_empty() {
            if !request.dry_run {
                metrics::counter!(ORDER_TRANSITIONS_TOTAL).increment(applied.transitions as u64);
                metrics::counter!(EVENTS_WOKEN_TOTAL).increment(applied.woken as u64);
            }
            return Ok(applied.replayed);
        }
        let known: HashSet<BodyPlace> = part.iter().map(|replay| replay.place).collect();
        let needed: Vec<BodyPlace> = applied.replayed.needed.into_iter().filter(|place| !known.contains(place)).collect();
        let before = part.len();
        if before + needed.len() <= TOGETHER_MAX {
            let unforced = Request { forced: false, ..request.clone() };
            for places in needed.chunks(READ_MAX) {
                let selection = Selection { places: Some(places.to_vec()), ..Selection::default() };
                let bodies = context.store.bodies(&selection, None, u32::try_from(places.len()).unwrap_or(1)).await?;
                page.webhooks += bodies.len();
                part.extend(translated(context, &unforced, bodies, &mut page.replayed.skipped));
            }
            part.sort_by_key(|replay| replay.place);
        }
        // Their bodies are gone, or they are too many: what contradicts is put aside for a person.
        if part.len() == before {
            for replay in &mut part {
                replay.concluded = true;
            }
        }
    }
}
