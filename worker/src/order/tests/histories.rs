//! Recorded histories of up to six events: every order of arrival, with every subset of them arriving twice, ends the same.

use bytes::Bytes;
use paybell_shared::envelope::Envelope;
use paybell_shared::event::Mode;
use paybell_shared::psp::{self, Account, Api, Asked, Capture, Keys, Proof};

use super::*;
use CaptureState as C;
use DisputeState as D;
use RefundState as R;

/// So many orders of arrival a history of six has; more events would cost too many.
const EVENTS_MAX: usize = 6;

/// Every history's name, its events, and what it comes to.
type History = (&'static str, Vec<PaymentEvent>, OrderStatus);

/// Walks through every order of arrival of the events. After each arrival all that arrived so far arrives again, and
/// must change nothing: so a duplicate changes nothing wherever it comes, and with it any subset of duplicates, in any
/// places. What is known once all arrived is handed to `ends`.
fn every_arrival(events: &[PaymentEvent], ends: &mut impl FnMut(&Registers)) {
    fn walk(events: &[PaymentEvent], arrived: &mut Vec<usize>, known: &Registers, ends: &mut impl FnMut(&Registers)) {
        for next in 0..events.len() {
            if arrived.contains(&next) {
                continue;
            }
            let mut registers = known.clone();
            registers.join(&events[next], false);
            arrived.push(next);
            let before = registers.clone();
            for again in &*arrived {
                assert!(!registers.join(&events[*again], false), "{:?} adds something when it comes again", events[*again]);
            }
            assert_eq!(registers, before, "a duplicate changes something after {arrived:?} of {events:#?}");
            if arrived.len() == events.len() {
                ends(&registers);
            } else {
                walk(events, arrived, &registers, ends);
            }
            arrived.pop();
        }
    }
    assert!(events.len() <= EVENTS_MAX);
    walk(events, &mut Vec::new(), &after(&[]), ends);
}

/// Checks that every order of arrival ends the same; returns it.
fn the_one_end(name: &str, events: &[PaymentEvent]) -> Registers {
    let expected = after(events);
    let (seen, doubts) = (view(&expected), expected.in_doubt());
    let mut arrivals = 0;
    every_arrival(events, &mut |registers| {
        assert_eq!(*registers, expected, "{name}");
        assert_eq!((view(registers), registers.in_doubt()), (seen.clone(), doubts.clone()), "{name}");
        arrivals += 1;
    });
    let expected_arrivals = if events.is_empty() { 0 } else { (1..=events.len()).product::<usize>() };
    assert_eq!(arrivals, expected_arrivals, "{name}");
    expected
}

fn account(id: &str) -> Account {
    let psp = psp::find(id).unwrap();
    Account {
        psp,
        psp_id: id.into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys::default(),
        api: Api::default(),
        order_reference: None,
        capture: Capture::default(),
    }
}

/// The events of a recorded webhook; none if it says nothing of ours.
fn translated(psp: &str, name: &str, body: &str) -> Vec<PaymentEvent> {
    let account = account(psp);
    // As the ingress would have put it on the queue, without its proof: that is the adapters' matter.
    let envelope = Envelope {
        psp: psp.into(),
        account: "default".into(),
        webhook_id: name.to_owned(),
        event_type: None,
        subject: None,
        received_at: Timestamp::from_seconds(0),
        secret_name: "secrets[0]".into(),
        proof: Proof::Proven,
        content_type: None,
        headers: Vec::new(),
        traceparent: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    account.psp.translate(&envelope, &account).unwrap_or_default()
}

/// All that the recorded webhooks of a PSP say about its most frequent payment, oldest first.
fn recorded(psp: &str) -> Vec<(String, PaymentEvent)> {
    let translated = |(name, body): (String, String)| {
        translated(psp, &name, &body).into_iter().map(move |event| (name.clone(), event)).collect::<Vec<_>>()
    };
    let mut events: Vec<(String, PaymentEvent)> = fixtures(psp).into_iter().flat_map(translated).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, event) in &events {
        *counts.entry(event.payment_id.clone()).or_default() += 1;
    }
    // Of a PSP whose webhooks are hints there are none.
    let Some((most, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return Vec::new() };
    events.retain(|(_, event)| event.payment_id == most);
    events.sort_by_key(|(name, event)| (event.occurred_at, name.clone()));
    events
}

/// What Stripe answers about the recorded payment: itself, its refunds with their total, its disputes.
fn stripe_answers() -> Vec<PaymentEvent> {
    let account = account("stripe");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/src/psp/fixtures/stripe/answers");
    let answers = [(None, "intent"), (Some("refunds"), "refunds"), (Some("disputes"), "disputes")];
    let read = |(cursor, name): (Option<&str>, &str)| {
        let body = std::fs::read(folder.join(name).with_extension("json")).unwrap();
        let at = Timestamp::from_seconds(1_790_000_005);
        let asked = Asked { payment_id: "pi_3PbA", cursor, at, look_id: "look" };
        account.psp.read_status(&asked, &http::Response::new(Bytes::from(body)), &account).unwrap().events
    };
    answers.into_iter().flat_map(read).collect()
}

/// Recorded webhooks by name, in the order in which they happened.
fn stripe(names: &[&str]) -> Vec<PaymentEvent> {
    let recorded = recorded("stripe");
    let find = |name: &&str| recorded.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}")).1.clone();
    names.iter().map(find).collect()
}

fn stripes_histories() -> Vec<History> {
    let answers = stripe_answers();
    let answered = |names: &[&str], wanted: fn(&Fact) -> bool| {
        let wanted = answers.iter().filter(|event| wanted(&event.fact)).cloned();
        stripe(names).into_iter().chain(wanted).collect::<Vec<_>>()
    };
    vec![
        (
            "paid at the second try",
            stripe(&[
                "payment_intent.created",
                "payment_intent.processing",
                "payment_intent.requires_action",
                "payment_intent.payment_failed",
                "payment_intent.succeeded",
                "checkout.session.completed.paid",
            ]),
            OrderStatus::Paid,
        ),
        (
            "authorised and lapsed",
            stripe(&[
                "payment_intent.created",
                "payment_intent.amount_capturable_updated",
                "payment_intent.canceled.automatic",
                "charge.expired",
            ]),
            OrderStatus::Expired,
        ),
        (
            "captured in two parts",
            stripe(&[
                "payment_intent.created",
                "payment_intent.amount_capturable_updated",
                "payment_intent.amount_capturable_updated.multicapture",
                "payment_intent.succeeded",
            ]),
            OrderStatus::Paid,
        ),
        (
            "a refund that failed in the end",
            stripe(&["payment_intent.succeeded", "refund.created", "refund.updated", "charge.refund.updated", "refund.failed"]),
            OrderStatus::Paid,
        ),
        (
            "refunds by webhooks and by answers",
            answered(&["payment_intent.succeeded", "charge.refunded.partial", "refund.created"], |fact| {
                matches!(fact, Fact::Refund { .. } | Fact::RefundTotal { .. })
            }),
            OrderStatus::PartiallyRefunded,
        ),
        (
            "an inquiry that became a dispute and was lost",
            stripe(&[
                "payment_intent.succeeded",
                "charge.dispute.created",
                "charge.dispute.updated",
                "charge.dispute.funds_withdrawn",
                "charge.dispute.closed.won",
                "charge.dispute.closed.lost",
            ]),
            OrderStatus::ChargedBack,
        ),
        (
            "a dispute that an answer shows open again",
            answered(
                &[
                    "payment_intent.succeeded",
                    "charge.dispute.created",
                    "charge.dispute.closed.won",
                    "charge.dispute.funds_reinstated",
                ],
                |fact| matches!(fact, Fact::Dispute { .. } | Fact::Payment(_)),
            ),
            OrderStatus::Disputed,
        ),
        (
            "a yen among euros",
            stripe(&["payment_intent.created", "payment_intent.succeeded.live_yen", "payment_intent.payment_failed"]),
            OrderStatus::UnderReview,
        ),
    ]
}

fn invented_histories() -> Vec<History> {
    let on = |at_s, fact| event(at_s, "a", fact);
    let told = |at_s, fact| answer(at_s, "a", fact);
    let count = |number, fact| numbered(number, "a", fact);
    vec![
        (
            "captures of which one failed and was made up for",
            vec![
                on(1, authorized(4999)),
                on(2, capture("c_1", C::Succeeded, 2000)),
                on(2, captured_of(2000, 4999)),
                on(3, capture("c_1", C::Failed, 2000)),
                on(4, capture("c_2", C::Succeeded, 4999)),
                on(4, captured_of(4999, 4999)),
            ],
            OrderStatus::Paid,
        ),
        (
            "a capture that failed after the total",
            vec![
                on(1, authorized(4999)),
                on(2, captured(4999)),
                on(2, capture("c_1", C::Succeeded, 4999)),
                on(5, capture("c_1", C::Failed, 4999)),
                told(4, captured(4999)),
                told(6, captured(4999)),
            ],
            OrderStatus::Authorized,
        ),
        (
            "all in one second",
            vec![
                on(1, payment(PaymentState::Pending)),
                on(1, failed("ch_1", "refused")),
                on(1, captured(4999)),
                on(1, refund("re_1", R::Pending, 4999)),
                on(1, total(4999)),
                on(1, refund("re_1", R::Succeeded, 4999)),
            ],
            OrderStatus::Refunded,
        ),
        (
            "versions that are numbers",
            vec![
                count(1, captured(4999)),
                count(1, refund("re_1", R::Succeeded, 1000)),
                count(2, refund("re_1", R::Failed, 1000)),
                count(1, dispute(D::Open, 4999)),
                count(2, dispute(D::Lost, 4999)),
                count(3, dispute(D::Won, 4999)),
            ],
            OrderStatus::Paid,
        ),
        (
            "a PSP that contradicts itself",
            vec![
                on(1, captured(4999)),
                on(2, refund("re_1", R::Succeeded, 4999)),
                told(3, refund("re_1", R::Succeeded, 4999)),
                on(4, refund("re_1", R::Pending, 4999)),
                told(5, refund("re_1", R::Pending, 4999)),
                told(5, total(4999)),
            ],
            OrderStatus::UnderReview,
        ),
        (
            "two payments at once",
            vec![
                event(1, "a", authorized(4999)),
                event(2, "a", payment(PaymentState::Canceled)),
                event(1, "b", captured(4999)),
                event(3, "b", refund("re_1", R::Succeeded, 4999)),
                event(3, "b", total(4999)),
                event(1, "b", failed("ch_1", "refused")),
            ],
            OrderStatus::Refunded,
        ),
        (
            "two currencies in one payment",
            vec![
                on(1, capture("c_1", C::Succeeded, 4999)),
                on(1, captured_in_yen()),
                on(2, refund("re_1", R::Succeeded, 1000)),
                on(2, Fact::RefundTotal { amount: yen(1000) }),
            ],
            OrderStatus::UnderReview,
        ),
    ]
}

#[test]
fn a_history_ends_the_same_in_every_order_with_any_duplicates() {
    for (name, events, expected) in stripes_histories().into_iter().chain(invented_histories()) {
        assert_eq!(status(&the_one_end(name, &events)), expected, "{name}: {:#?}", view(&after(&events)));
    }
}

/// Neighbours in time among everything recorded: stories that nobody thought of.
#[test]
fn any_six_recorded_events_end_the_same_in_every_order_with_any_duplicates() {
    let mut long = 0;
    for psp in psp::ALL {
        let events: Vec<PaymentEvent> = recorded(psp.id()).into_iter().map(|(_, event)| event).collect();
        if events.len() <= EVENTS_MAX {
            the_one_end(psp.id(), &events);
            continue;
        }
        long += 1;
        for (number, six) in events.windows(EVENTS_MAX).enumerate() {
            the_one_end(&format!("{} from {number}", psp.id()), six);
        }
    }
    assert!(long >= 8, "most PSPs that say what they say have more recorded webhooks than one history takes: {long}");
}
