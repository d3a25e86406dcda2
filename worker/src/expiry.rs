//! Orders whose time is over and that nobody paid become `expired`.
//!
//! [`step`] leases the orders that are past their end, [`judge`] says what each comes to, and what it found is applied through the
//! one write path, under the order's lock: an order that changed meanwhile is left, and seen to again. So any number of workers
//! share the work, and two that meet at an order do no more than one. [`run`] only waits and steps.
//!
//! | its payments | nothing was paid, by |
//! |---|---|
//! | whose PSP can be asked | two looks in a row found no money, began after the end, and lie apart by the PSP's usual delay: by the first |
//! | whose PSP cannot, or none is known | the clock alone: now, once a webhook of the last moment would have come |
//!
//! The looks are planned here and made where all are ([`reconcile`](crate::reconcile)). A PSP that does not answer, or does not
//! know the payment, does not agree: the order stays as it is, and is on the list of what is [`unsettled`](crate::unsettled).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use paybell_shared::clock::Timestamp;
use paybell_shared::psp::Account;
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry::{BASIS, ORDERS_EXPIRED_TOTAL};

use crate::consume::Context;
use crate::order::AccountKey;
use crate::schedule::Habits;
use crate::store::{Agreed, Attended, DueOrder, Expiry, Looks, Policy, StoreError, UnaskedWrite, Work};

/// So long nobody else attends to an order.
const LEASE: Duration = Duration::from_mins(1);
/// Orders of a step.
const ORDERS_MAX: u32 = 100;
/// How long to wait if none is due.
const IDLE: Duration = Duration::from_secs(1);
/// From a planned look to what it said.
const AFTER_LOOK: Duration = Duration::from_secs(5);
/// An order that cannot be ended is seen to again after a quarter of the time that it is over, within these bounds.
const AGAIN_MIN: Duration = Duration::from_secs(10);
const AGAIN_MAX: Duration = Duration::from_mins(10);
const AGAIN_FRACTION: u32 = 4;
/// From a payment to its webhook, of an account that is not configured here.
const DELAY_DEFAULT: Duration = Duration::from_mins(1);

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    pub attended: usize,
    pub expired: usize,
    /// Looks that were planned.
    pub looks: usize,
}

/// What an order comes to that is past its end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Expired(Expiry),
    Again {
        at: Timestamp,
        looks: Vec<(AccountKey, String, Timestamp)>,
    },
    /// Its end is no matter any more, until it changes.
    Never,
}

/// Attends to the orders that are due, as many as a step takes.
///
/// # Errors
/// The database is away.
pub async fn step(context: &Context) -> Result<StepReport, StoreError> {
    let now = context.clock.now();
    let due = context.store.lease_orders(now, now.plus(LEASE), ORDERS_MAX).await?;
    let mut report = StepReport { attended: due.len(), ..StepReport::default() };
    let (mut expiries, mut attended) = (Vec::new(), Vec::new());
    for order in &due {
        let asking = &context.policy.asking;
        let (due_at, looks) = match judge(order, &context.policy, &context.accounts, now) {
            Next::Expired(expiry) => {
                expiries.push(expiry);
                continue;
            }
            Next::Again { at, looks } => (Some(at), looks),
            Next::Never => (None, Vec::new()),
        };
        report.looks += looks.len();
        let (order_id, version, leased_until) = (order.stored.id.clone(), order.stored.version, order.leased_until);
        let account = order.registers.unasked(order.stored.view.status, |account| asking.contains_key(account)).cloned();
        let unasked = UnaskedWrite { order_id: order_id.clone(), account, since: order.stored.updated_at };
        attended.push(Attended { order_id, version, leased_until, due_at, looks, unasked });
    }
    if !attended.is_empty() {
        context.store.attend_orders(&attended).await?;
    }
    report.expired = expire(context, &expiries).await?;
    Ok(report)
}

/// Steps until the stop.
///
/// # Errors
/// None so far: a database that is away is waited for.
pub async fn run(context: Arc<Context>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let stepped = tokio::select! {
            stepped = step(&context) => stepped,
            () = shutdown.stopping() => return Ok(()),
        };
        match stepped {
            Ok(report) if report.attended > 0 => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "orders do not expire for a while");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(IDLE) => {}
            () = shutdown.stopping() => return Ok(()),
        }
    }
}

/// All in one transaction; if the database refuses that, each in its own, so that one costs only itself.
async fn expire(context: &Context, expiries: &[Expiry]) -> Result<usize, StoreError> {
    if expiries.is_empty() {
        return Ok(0);
    }
    match context.store.apply(&Work { expiries, ..context.work() }).await {
        Ok(applied) => {
            for expiry in expiries.iter().filter(|expiry| applied.expired.contains(&expiry.order_id)) {
                tracing::info!(event = "order.expired", order_id = expiry.order_id, by = %expiry.by, "its time was over");
                let basis = if expiry.asked.is_empty() { "clock" } else { "looks" };
                metrics::counter!(ORDERS_EXPIRED_TOTAL, BASIS => basis).increment(1);
            }
            Ok(applied.expired.len())
        }
        Err(error @ (StoreError::Refused(_) | StoreError::Inconsistent { .. })) => match expiries {
            [expiry] => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(event = "order.expired", order_id = expiry.order_id, error, "not stored");
                Ok(0)
            }
            several => {
                let mut expired = 0;
                for expiry in several {
                    expired += Box::pin(expire(context, std::slice::from_ref(expiry))).await?;
                }
                Ok(expired)
            }
        },
        Err(error) => Err(error),
    }
}

/// What an order comes to, by what is known of it.
fn judge(order: &DueOrder, policy: &Policy, accounts: &HashMap<AccountKey, Arc<Account>>, now: Timestamp) -> Next {
    let DueOrder { registers, stored, looks: known, .. } = order;
    let Some(ends_at) = registers.ends_at(stored.view.status) else { return Next::Never };
    if now < ends_at {
        return Next::Again { at: ends_at, looks: Vec::new() };
    }
    let (mut asked, mut looks, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    let mut by_clock = registers.accounts.iter().collect::<Vec<_>>();
    for (account, payment_id) in registers.payment_keys() {
        let Some(habits) = policy.asking.get(account) else {
            by_clock.push(account);
            continue;
        };
        let known = known.iter().find(|looks| looks.account == *account && looks.payment_id == payment_id);
        match question(known, *habits, ends_at, now) {
            Question::Agreed(pair) => {
                asked.push(Agreed { account: account.clone(), payment_id: payment_id.to_owned(), looks: pair });
            }
            Question::Look(at) => {
                looks.push((account.clone(), payment_id.to_owned(), at));
                waits.push(at.plus(AFTER_LOOK));
            }
            Question::Wait(until) => waits.push(until.plus(AFTER_LOOK)),
        }
    }
    // Where all are asked, no webhook need be waited for.
    if asked.is_empty() && waits.is_empty() {
        let delay = |account: &&AccountKey| accounts.get(*account).map_or(DELAY_DEFAULT, |known| known.psp.profile().usual_delay);
        let told_by = ends_at.plus(by_clock.iter().map(delay).max().unwrap_or(DELAY_DEFAULT));
        waits.extend((now < told_by).then_some(told_by));
    }
    if let Some(first) = waits.into_iter().min() {
        let pause = (now.since(ends_at) / AGAIN_FRACTION).clamp(AGAIN_MIN, AGAIN_MAX);
        return Next::Again { at: first.max(now.plus(pause)), looks };
    }
    let by = asked.iter().map(|agreed| agreed.looks[0]).min().unwrap_or(now);
    Next::Expired(Expiry { order_id: stored.id.clone(), ends_at, by, asked })
}

/// Whether a payment's PSP agrees that there is no money.
enum Question {
    Agreed([Timestamp; 2]),
    /// A look is needed no later than then.
    Look(Timestamp),
    /// What is planned or under way comes first.
    Wait(Timestamp),
}

fn question(known: Option<&Looks>, habits: Habits, ends_at: Timestamp, now: Timestamp) -> Question {
    let Some(known) = known else { return Question::Look(now) };
    let last = known.denied_at.filter(|at| *at >= ends_at);
    if let (Some(before), Some(last)) = (known.denied_before_at.filter(|at| *at >= ends_at), last)
        && last.since(before) >= habits.usual_delay
    {
        return Question::Agreed([before, last]);
    }
    if known.lease_until.is_some_and(|until| until > now) {
        return Question::Wait(now);
    }
    // Its next look comes as soon as is good after one in vain.
    if let Some(planned) = known.next_check_at.filter(|_| known.is_in_vain) {
        return Question::Wait(planned);
    }
    let wanted = last.map_or(now, |last| last.plus(habits.usual_delay));
    match known.next_check_at {
        Some(planned) if planned <= wanted => Question::Wait(planned),
        _ => Question::Look(wanted),
    }
}

#[cfg(test)]
mod tests {
    use paybell_shared::psp::LateChanges;

    use super::*;

    const END: Timestamp = Timestamp::from_seconds(1_790_000_000);
    const HABITS: Habits = Habits { usual_delay: Duration::from_mins(1), lists_late_changes: LateChanges::Unlisted };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(END.seconds() + seconds)
    }

    /// What is known of a payment; times are seconds after the end.
    fn known(denied: [Option<i64>; 2], next: Option<i64>) -> Looks {
        Looks {
            account: AccountKey { psp: "stripe".into(), account: "default".into() },
            payment_id: "pi_1".to_owned(),
            denied_before_at: denied[0].map(at),
            denied_at: denied[1].map(at),
            is_in_vain: false,
            next_check_at: next.map(at),
            lease_until: None,
        }
    }

    /// At so many seconds after the end.
    fn asked(known: Option<&Looks>, seconds: i64) -> String {
        let second = |time: Timestamp| time.seconds() - END.seconds();
        match question(known, HABITS, END, at(seconds)) {
            Question::Agreed(looks) => format!("agreed {} {}", second(looks[0]), second(looks[1])),
            Question::Look(by) => format!("look {}", second(by)),
            Question::Wait(until) => format!("wait {}", second(until)),
        }
    }

    #[test]
    fn two_looks_after_the_end_and_apart_agree() {
        for (denied, next, seconds, expected) in [
            ([None, None], Some(3600), 0, "look 0"),
            ([None, None], Some(-5), 0, "wait -5"),
            ([None, None], None, 0, "look 0"),
            ([Some(-120), Some(-60)], Some(3600), 0, "look 0"),
            ([Some(-60), Some(0)], Some(3600), 1, "look 60"),
            ([Some(-60), Some(0)], Some(30), 1, "wait 30"),
            ([Some(0), Some(59)], Some(3600), 60, "look 119"),
            ([Some(-1), Some(60)], Some(3600), 61, "look 120"),
            ([Some(0), Some(60)], Some(3600), 61, "agreed 0 60"),
            ([Some(0), Some(7200)], None, 9999, "agreed 0 7200"),
        ] {
            assert_eq!(asked(Some(&known(denied, next)), seconds), expected, "{denied:?} {next:?}");
        }
        assert_eq!(asked(None, 7), "look 7", "it was never planned");
    }

    #[test]
    fn a_look_in_vain_or_under_way_is_not_hurried() {
        let in_vain = Looks { is_in_vain: true, ..known([None, None], Some(1800)) };
        assert_eq!(asked(Some(&in_vain), 5), "wait 1800");
        let agreed = Looks { is_in_vain: true, ..known([Some(0), Some(60)], Some(1800)) };
        assert_eq!(asked(Some(&agreed), 61), "agreed 0 60", "it agreed before");
        let leased = Looks { lease_until: Some(at(60)), ..known([None, None], Some(-5)) };
        assert_eq!(asked(Some(&leased), 5), "wait 5");
        assert_eq!(asked(Some(&leased), 60), "wait -5", "whoever asked is dead");
    }
}
