//! Every event has exactly one outcome, and what belongs to that; its facts are those that were hashed; a parked one waits
//! under every name that it carries, and nobody else waits.

use std::collections::BTreeSet;
use std::fmt;

use paybell_shared::event::{PaymentEvent, ReferenceKind};

use super::{Audit, Dialect, Frozen, Row, StoreError, arm};
use crate::apply::references;
use crate::inbox::Outcome;
use crate::store::ReferenceKey;
use crate::store::rows::source_name;

const EVENT: usize = 0;
const PARKING: usize = 1;

pub(super) async fn walk(frozen: &mut Frozen<'_>, audit: &mut Audit<'_>) -> Result<(), StoreError> {
    let mut group: Option<Group> = None;
    let sql = sql(frozen.dialect());
    frozen
        .each(sql, &mut |row| {
            audit.step();
            let key = format!("{}/{}/{}", row.key(0), row.key(1), row.key(2));
            if group.as_ref().is_none_or(|group| group.key != key)
                && let Some(ended) = group.replace(Group::new(key))
            {
                ended.end(audit);
            }
            let Some(group) = &mut group else { return };
            match row.part(3) {
                EVENT => group.event(row, audit),
                _ => group.parking(row, audit),
            }
        })
        .await?;
    if let Some(last) = group {
        last.end(audit);
    }
    Ok(())
}

fn sql(dialect: Dialect) -> String {
    let keys = "psp, account, event_id";
    let (sha256, body_id) = (dialect.hex("facts_sha256"), dialect.id("body_id"));
    let (taken_at, parked_at) = (dialect.millis("taken_at"), dialect.millis("parked_at"));
    let texts = [
        "event_type",
        "source",
        "CAST(facts AS text)",
        &sha256,
        "outcome",
        "reason",
        "fingerprint",
        "order_id",
        &body_id,
        "secret_name",
    ];
    let integers = [&*taken_at, &parked_at, "order_version"];
    let width = (texts.len(), integers.len());
    let events = arm(keys, EVENT, &texts, &integers, width);
    let parkings = arm(keys, PARKING, &["ref_psp", "ref_account", "ref_kind", "ref_value"], &[], width);
    format!("{events} FROM events UNION ALL {parkings} FROM parkings ORDER BY {keys}, part")
}

/// An event and where it waits.
struct Group {
    key: String,
    is_there: bool,
    is_parked: bool,
    carries: BTreeSet<Name>,
    waits_under: BTreeSet<Name>,
}

/// A [`ReferenceKey`] as it is stored: also one of a kind that this version does not know.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name([String; 4]);

impl From<ReferenceKey> for Name {
    fn from(key: ReferenceKey) -> Self {
        Self([key.psp.to_string(), key.account.to_string(), key.kind.as_str().to_owned(), key.value])
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([psp, account, kind, value]) = self;
        if kind == ReferenceKind::Order.as_str() {
            write!(f, "order {value}")
        } else {
            write!(f, "{psp}/{account} {kind} {value}")
        }
    }
}

impl Group {
    const fn new(key: String) -> Self {
        Self { key, is_there: false, is_parked: false, carries: BTreeSet::new(), waits_under: BTreeSet::new() }
    }

    fn event(&mut self, row: &Row, audit: &mut Audit<'_>) {
        self.is_there = true;
        let [event_type, source, facts, sha256, outcome, reason, fingerprint, order_id, body_id, secret_name] =
            [4, 5, 6, 7, 8, 9, 10, 11, 12, 13].map(|place| row.text(place));
        let [taken_at, parked_at, order_version] = [14, 15, 16].map(|place| row.integer(place));
        let event = facts.and_then(|facts| self.facts(facts, [event_type, source, sha256], audit));
        let Some(outcome) = outcome.and_then(Outcome::parse) else {
            audit.find("outcome", &self.key, format!("{:?} is no outcome", outcome.unwrap_or_default()));
            return;
        };
        let mut must = |holds: bool, problem: &str| {
            if !holds {
                audit.find("outcome", &self.key, format!("it is {}, and {problem}", outcome.as_str()));
            }
        };
        // Rows of version 1 were written without these.
        let is_of_now = taken_at.is_some();
        must(is_of_now || (secret_name.is_none() && parked_at.is_none()), "it is not said when it was taken");
        must(!is_of_now || body_id.is_some() == secret_name.is_some(), "only one of its body and its secret's name is there");
        match outcome {
            Outcome::Applied | Outcome::Superseded => {
                must(facts.is_some(), "it has no facts");
                must(order_id.is_some(), "it has no order");
                must(!is_of_now || order_version.is_some(), "its order's version is not said");
                must(reason.is_none() && fingerprint.is_none(), "it has a reason not to be");
            }
            Outcome::Parked => {
                self.is_parked = true;
                must(facts.is_some(), "it has no facts");
                must(order_id.is_none() && order_version.is_none(), "it has an order");
                must(!is_of_now || parked_at.is_some(), "it is not said since when");
                must(reason.is_none() && fingerprint.is_none(), "it has a reason not to be");
                self.carries = event.iter().flat_map(references).map(Name::from).collect();
            }
            Outcome::Ignored | Outcome::Quarantined => {
                must(facts.is_none(), "it has facts");
                must(order_id.is_none() && order_version.is_none(), "it has an order");
                must(reason.is_some(), "it has no reason");
                must(fingerprint.is_some() == (outcome == Outcome::Quarantined), "its fingerprint does not fit");
            }
        }
    }

    /// The facts, if they can be read; held against their hash and the columns beside them.
    fn facts(&self, facts: &str, columns: [Option<&str>; 3], audit: &mut Audit<'_>) -> Option<PaymentEvent> {
        let event: PaymentEvent = match serde_json::from_str(facts) {
            Ok(event) => event,
            Err(error) => {
                audit.find("facts", &self.key, format!("they cannot be read ({:?} error)", error.classify()));
                return None;
            }
        };
        let sha256 = event.facts_sha256().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let [event_type, source, stored_sha256] = columns;
        for (fits, problem) in [
            (event.key.to_string() == self.key, "they are of another event"),
            (Some(&*event.event_type) == event_type, "they are of another type than the event"),
            (Some(source_name(event.source)) == source, "they are of another source than the event"),
            (Some(&*sha256) == stored_sha256, "they are not those that were hashed when it came"),
        ] {
            if !fits {
                audit.find("facts", &self.key, problem);
            }
        }
        Some(event)
    }

    fn parking(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let name = Name([4, 5, 6, 7].map(|place| row.key(place).to_owned()));
        if !self.is_there {
            audit.find("parking", &self.key, format!("it waits under {name}, and does not exist"));
        } else if !self.is_parked {
            audit.find("parking", &self.key, format!("it waits under {name}, and is not parked"));
        } else if !self.carries.contains(&name) {
            audit.find("parking", &self.key, format!("it waits under {name}, which is no name that it carries"));
        } else {
            self.waits_under.insert(name);
        }
    }

    fn end(self, audit: &mut Audit<'_>) {
        if self.is_parked && self.carries.is_empty() {
            audit.find("parking", &self.key, "it is parked, and no name leads to it");
        }
        for name in self.carries.difference(&self.waits_under) {
            audit.find("parking", &self.key, format!("it does not wait under {name}, which it carries"));
        }
    }
}
