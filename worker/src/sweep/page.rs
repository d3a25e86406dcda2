//! One page of a list: asked for, read, and applied by the one write path.

use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::PaymentEvent;
use paybell_shared::psp::{Account, AskError, Asked, Hinted, ReadError, TranslateError, Unread, answered_at};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use uuid::Uuid;

use super::course::{Failure, pass};
use super::walk::{Lost, Page, Walk};
use crate::asking::{Asker, AskingError};
use crate::consume::Context;
use crate::inbox::{Arrival, Outcome};
use crate::manners::Manner;
use crate::order::AccountKey;
use crate::reconcile::{AHEAD_MAX, latest_of};
use crate::store::{Applied, StoreError, Work};

/// For a page: a token, two tries with it, each of which has its own limit (15 s) in [`crate::transport`].
pub(super) const TIME_MAX: Duration = Duration::from_mins(1);
/// What lies further ahead of our clock than clocks differ, and no further than this, is waited for with its whole page. What
/// lies beyond will not come true in a time that a list can be held up for: it is set aside.
const AHEAD_AWAITED_MAX: Duration = Duration::from_hours(24);
/// A look so long after what is hinted at has the answer: a PSP's payments may lag behind its list.
const HINT_GRACE: Duration = Duration::from_mins(2);

/// What a page told of, by what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that nobody had told before, and answers that added something.
    pub new: usize,
    pub known: usize,
    /// Payments that are asked about.
    pub hints: usize,
    /// Not understood, or contradicting what is known: a person must look.
    pub quarantined: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        let Self { new, known, hints, quarantined } = more;
        self.new += new;
        self.known += known;
        self.hints += hints;
        self.quarantined += quarantined;
    }
}

/// What a page says.
pub(super) struct Told {
    events: Vec<PaymentEvent>,
    unread: Vec<Unread>,
    hints: Vec<Hinted>,
    page: Page,
}

/// A page that is in the database.
pub(super) struct Stored {
    pub counts: Counts,
    /// As it stands behind the page.
    pub walk: Walk,
    pub is_last: bool,
}

/// Why a page is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{}", chain(.0))]
    Asking(#[from] AskingError),
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A part of it; the rest is in the database.
    #[error("{0} of its events cannot be stored")]
    NotStored(usize),
}

/// An error with its causes.
fn chain(error: &AskingError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Trouble {
    /// As a metric label: a closed set.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Lost(_) => "lost",
            Self::NotStored(_) => "not_stored",
            Self::Asking(AskingError::Read(ReadError::Unauthorized(_))) => "refused",
            Self::Asking(error) => match failure(error) {
                Failure::NoAnswer => "no_answer",
                Failure::Unreadable => "unreadable",
                Failure::Lost => "lost",
            },
        }
    }

    pub(super) const fn failure(&self) -> Failure {
        match self {
            Self::Asking(error) => failure(error),
            Self::Lost(_) => Failure::Lost,
            // Not the cursor's fault: it is tried as it is.
            Self::NotStored(_) => Failure::NoAnswer,
        }
    }
}

const fn failure(error: &AskingError) -> Failure {
    match error {
        // A cursor of another version, or one that the PSP gave out and takes no more.
        AskingError::Ask(AskError::MalformedId(_)) | AskingError::Loop | AskingError::Endless(_) => Failure::Lost,
        AskingError::Read(ReadError::NotFound | ReadError::Unintelligible(_))
        | AskingError::Panicked
        | AskingError::Future { .. } => Failure::Unreadable,
        AskingError::Ask(_)
        | AskingError::Read(_)
        | AskingError::Transport(_)
        | AskingError::Access(_)
        | AskingError::Slow(_)
        | AskingError::NoAccount
        | AskingError::Stopped => Failure::NoAnswer,
    }
}

/// How the PSP behaved. That a list is forbidden, or odd, says nothing of the account's payments: these are asked about as before.
pub(super) const fn manner(error: &AskingError) -> Manner {
    match error {
        AskingError::Read(ReadError::Unauthorized(401)) => error.manner(),
        AskingError::Read(ReadError::NotFound | ReadError::Unauthorized(_) | ReadError::Unintelligible(_))
        | AskingError::Ask(_)
        | AskingError::Panicked
        | AskingError::Future { .. } => Manner::Unclear,
        _ => error.manner(),
    }
}

/// Asks for the page where the walk stands. `token` makes the keys of answers unique to this page.
pub(super) async fn ask(
    asker: &Asker,
    key: &AccountKey,
    account: &Account,
    walk: &Walk,
    token: Uuid,
) -> Result<Told, AskingError> {
    let at = asker.context.clock.now();
    let request = account.psp.events_request(walk.window, walk.cursor.as_deref(), account)?;
    let response = timeout(TIME_MAX, asker.send(key, account, request)).await;
    let response = response.unwrap_or(Err(AskingError::Slow(TIME_MAX.as_secs())))?;
    let look_id = format!("{}-{}", at.millis(), &token.simple().to_string()[..8]);
    let question = Asked { payment_id: "", cursor: walk.cursor.as_deref(), at, look_id: &look_id };
    // Adapters never panic (invariant I7); if one does, it costs its own page and not the worker.
    let read = catch_unwind(AssertUnwindSafe(|| {
        let answer = account.psp.read_events(walk.window, &question, &response, account)?;
        Ok::<_, ReadError>((answer, account.psp.read_hints(&response, account)?))
    }));
    let (answer, hints) = read.map_err(|_| AskingError::Panicked)??;
    let (mut events, mut unread) = (answer.events, answer.unread);
    set_aside(&mut events, &mut unread, asker.context.clock.now())?;
    let newest = events.iter().map(|event| event.occurred_at).max();
    let page = Page { next: answer.next, newest, answered_at: Some(answered_at(&response).unwrap_or(at)) };
    Ok(Told { events, unread, hints, page })
}

/// A fact of a time to come would stand above all that is told later.
fn set_aside(events: &mut Vec<PaymentEvent>, unread: &mut Vec<Unread>, now: Timestamp) -> Result<(), AskingError> {
    let ahead = |event: &PaymentEvent| latest_of(event).since(now);
    let mut ahead_of_us = events.iter().map(ahead);
    if let Some(ahead) = ahead_of_us.find(|ahead| *ahead > AHEAD_MAX && *ahead <= AHEAD_AWAITED_MAX) {
        return Err(AskingError::Future { ahead_s: ahead.as_secs() });
    }
    for event in events.extract_if(.., |event| ahead(event) > AHEAD_MAX) {
        let error = TranslateError::Unintelligible { reason: "a time to come", pointer: String::new() };
        unread.push(Unread { event_id: event.key.event_id, error });
    }
    Ok(())
}

/// Applies what a page says, as webhooks are applied; and goes on behind it.
pub(super) async fn store(
    context: &Context,
    key: &AccountKey,
    account: &Account,
    walk: &Walk,
    told: Told,
) -> Result<Result<Stored, Trouble>, StoreError> {
    let Told { events, unread, hints, page } = told;
    let mut counts = Counts { hints: ask_about(context, key, hints).await?, ..Counts::default() };
    let now = context.clock.now();
    let events = events.into_iter().map(|event| Arrival::of_answer(vec![event], Vec::new(), account, now));
    let unread = unread.into_iter().map(|unread| Arrival::of_answer(Vec::new(), vec![unread], account, now));
    let arrivals: Vec<Arrival> = events.chain(unread).collect();
    let held = apply(context, key, account, &arrivals, &mut counts).await?;
    if held > 0 {
        return Ok(Err(Trouble::NotStored(held)));
    }
    Ok(pass(walk.clone(), page).map(|(walk, is_last)| Stored { counts, walk, is_last }).map_err(Trouble::Lost))
}

/// Has the PSP asked about what its list only hints at. Before anything is applied, so that a failure in between loses no
/// question; and not what a look has answered since.
async fn ask_about(context: &Context, key: &AccountKey, hints: Vec<Hinted>) -> Result<usize, StoreError> {
    if hints.is_empty() || !context.policy.asking.contains_key(key) {
        return Ok(0);
    }
    let hints: Vec<Hinted> = hints.into_iter().map(|hint| Hinted { at: hint.at.plus(HINT_GRACE), ..hint }).collect();
    let unanswered = context.store.unanswered(key, &hints).await?;
    let payments: BTreeSet<_> = unanswered.into_iter().map(|payment_id| (key.clone(), payment_id)).collect();
    if !payments.is_empty() {
        context.store.ask_about(context.clock.now(), &payments).await?;
    }
    Ok(payments.len())
}

/// In one transaction; if the database refuses that, halved until the culprit stands alone. How many could not be stored, and may
/// be later: while a deploy rolls, a newer worker writes what this one cannot read.
async fn apply(
    context: &Context,
    key: &AccountKey,
    account: &Account,
    arrivals: &[Arrival],
    counts: &mut Counts,
) -> Result<usize, StoreError> {
    let mut held = 0;
    let all = 0..arrivals.len();
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        let arrivals = &arrivals[part.clone()];
        match context.store.apply(&Work { arrivals, ..context.work() }).await {
            Ok(applied) => {
                count(key, &applied, counts);
                ask_in_doubt(context, key, arrivals, applied).await?;
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Contended(_) | StoreError::Unknown(_))) => return Err(error),
            Err(error) if part.len() == 1 => {
                let is_poison = matches!(error, StoreError::Refused(_));
                let (psp, name, error) = (&*key.psp, &*key.account, format!("{:#}", anyhow::Error::new(error)));
                tracing::error!(event = "event.swept", psp, account = name, error, "not stored");
                if is_poison && note_refused(context, account, arrivals).await {
                    counts.quarantined += 1;
                } else {
                    held += 1;
                }
            }
            Err(_) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }
    Ok(held)
}

/// Keeps of an event that the database refuses that there was one: its own id may be what is refused.
async fn note_refused(context: &Context, account: &Account, arrivals: &[Arrival]) -> bool {
    let Some(row) = arrivals.first().and_then(|arrival| arrival.rows.first()) else { return false };
    let digest = Sha256::digest(&row.key.event_id);
    let event_id = digest[..16].iter().fold("refused-".to_owned(), |text, byte| text + &format!("{byte:02x}"));
    let error = TranslateError::Unintelligible { reason: "the database refuses it", pointer: String::new() };
    let note = Arrival::of_answer(Vec::new(), vec![Unread { event_id, error }], account, context.clock.now());
    context.store.apply(&Work { arrivals: &[note], ..context.work() }).await.is_ok()
}

fn count(key: &AccountKey, applied: &Applied, counts: &mut Counts) {
    for (event, outcome) in &applied.events {
        let (psp, account, event_id) = (&*key.psp, &*key.account, &*event.event_id);
        match outcome {
            None => counts.known += 1,
            Some(Outcome::Quarantined) => {
                counts.quarantined += 1;
                tracing::error!(event = "event.swept", psp, account, event_id, outcome = Outcome::Quarantined.as_str());
            }
            Some(outcome) => {
                counts.new += 1;
                tracing::info!(event = "event.swept", psp, account, event_id, outcome = outcome.as_str());
            }
        }
    }
}

/// Answers of a list leave the next question to whoever asked (see `apply.rs`), which nobody did: a payment that they leave in
/// doubt is asked about after its usual delay, since looks that agree must be apart.
async fn ask_in_doubt(context: &Context, key: &AccountKey, arrivals: &[Arrival], applied: Applied) -> Result<(), StoreError> {
    let Some(habits) = context.policy.asking.get(key) else { return Ok(()) };
    let is_answered = |payment_id: &str| arrivals.iter().flat_map(|arrival| &arrival.rows).any(|row| row.answers(payment_id));
    let in_doubt: BTreeSet<_> =
        applied.in_doubt.into_iter().filter(|(account, payment_id)| account == key && is_answered(payment_id)).collect();
    if in_doubt.is_empty() {
        return Ok(());
    }
    context.store.ask_about(context.clock.now().plus(habits.usual_delay), &in_doubt).await
}
