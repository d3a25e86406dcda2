//! An order is what its facts and the shop say, shows it at its version, and every change of it is told once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use paybell_shared::clock::Timestamp;
use paybell_shared::event::{PaymentEvent, ReferenceKind};
use paybell_shared::money::{Currency, Money};
use serde::Deserialize;

use super::{Audit, Dialect, Frozen, Row, StoreError, arm};
use crate::apply::{reference_key, references};
use crate::inbox::Outcome;
use crate::order::{Decision, PaymentView, Registers, Saw, Verdict, View};
use crate::store::{ActionKind, Agreed, ReferenceKey};

// What belongs to an order, in the order in which it is read.
const ORDER: usize = 0;
const NAME: usize = 1;
const ACTION: usize = 2;
const EVENT: usize = 3;
const TRANSITION: usize = 4;
const WAITING: usize = 5;
const TOLD: usize = 6;
const UNASKED: usize = 7;

pub(super) async fn walk(frozen: &mut Frozen<'_>, audit: &mut Audit<'_>) -> Result<(), StoreError> {
    let mut group: Option<Group> = None;
    let sql = sql(frozen.dialect());
    frozen
        .each(sql, &mut |row| {
            audit.step();
            if group.as_ref().is_none_or(|group| group.id != row.key(0))
                && let Some(ended) = group.replace(Group::new(row.key(0)))
            {
                ended.end(audit);
            }
            let Some(group) = &mut group else { return };
            match row.part(1) {
                ORDER => group.order(row, audit),
                NAME => group.name(row, audit),
                ACTION => group.action(row, audit),
                EVENT => group.event(row, audit),
                TRANSITION => group.transition(row, audit),
                WAITING => group.tell(row, "waits to be told", audit),
                TOLD => group.tell(row, "was told", audit),
                _ => group.unasked(row, audit),
            }
        })
        .await?;
    if let Some(last) = group {
        last.end(audit);
    }
    let twice = format!(
        "SELECT order_id, version, {} FROM (
             SELECT order_id, version, id, count(*) OVER (PARTITION BY id) AS uses FROM transitions
         ) t WHERE uses > 1 ORDER BY order_id, version",
        frozen.dialect().id("id")
    );
    frozen
        .each(twice, &mut |row| {
            let key = format!("{} v{}", row.key(0), row.integer(1).unwrap_or_default());
            audit.find("transitions", key, "another transition has its id");
        })
        .await
}

fn sql(dialect: Dialect) -> String {
    let millis = |column| dialect.millis(column);
    let (width, one) = ((5, 4), |part, texts: &[&str], integers: &[&str]| arm("order_id", part, texts, integers, (5, 4)));
    let (review_since, updated_at, at) = (millis("review_since"), millis("updated_at"), millis("at"));
    let due_at = millis("due_at");
    let view = "CAST(view AS text)";
    let has_check = "CASE WHEN c.payment_id IS NOT NULL THEN 1 ELSE 0 END";
    let arms = [
        arm(
            "id AS order_id",
            ORDER,
            &["status", view, "CAST(registers AS text)"],
            &["version", &review_since, &updated_at, &due_at],
            width,
        ) + " FROM orders",
        arm("r.order_id", NAME, &["r.psp", "r.account", "r.kind", "r.value"], &["CAST(0 AS bigint)", has_check], width)
            + " FROM refs r LEFT JOIN checks c
                ON r.kind = 'payment' AND c.psp = r.psp AND c.account = r.account AND c.payment_id = r.value
                WHERE r.order_id IS NOT NULL",
        one(ACTION, &["kind", "CAST(detail AS text)", &dialect.id("id"), "operator", "reason"], &[&at]) + " FROM actions",
        one(
            EVENT,
            &["psp", "account", "event_id", "CAST(facts AS text)", "outcome"],
            &["order_version", "CAST(foreign_mode AS integer)"],
        ) + " FROM events WHERE order_id IS NOT NULL",
        one(TRANSITION, &["from_status", "to_status", view, &dialect.list("destinations")], &["version", &at, &review_since])
            + " FROM transitions",
        one(WAITING, &["destination"], &["version"]) + " FROM outbox",
        one(TOLD, &["destination"], &["version"]) + " FROM notices",
        one(UNASKED, &["psp", "account"], &[]) + " FROM unasked",
    ];
    // The version is the first integer.
    let names = "order_id, part, a, b, c, d, e, n, o, p, q";
    format!("WITH w ({names}) AS ({}) SELECT {names} FROM w ORDER BY order_id, part, n", arms.join(" UNION ALL "))
}

/// What was registered, as an action keeps it.
#[derive(Deserialize)]
struct Registered {
    psp: Arc<str>,
    account: Arc<str>,
    payment_id: Option<String>,
    amount: i64,
    currency: String,
    expires_at: Option<Timestamp>,
}

/// What was decided, as an action keeps it.
#[derive(Deserialize)]
struct Reviewed {
    decision: Verdict,
    saw: Saw,
}

/// That its time was over, as an action keeps it.
#[derive(Deserialize)]
struct Expired {
    ends_at: Timestamp,
    by: Timestamp,
    asked: Vec<Agreed>,
}

/// An order's own row.
struct Shown {
    status: String,
    version: i64,
    review_since: Option<i64>,
    updated_at: Option<i64>,
    /// 0: a version before this was kept wrote it, and nobody has seen to it yet.
    due_at: Option<i64>,
    /// As it is stored; `None` where it cannot be read.
    view: Option<View>,
    registers: Option<Registers>,
}

/// An order and everything that belongs to it.
struct Group {
    id: String,
    order: Option<Shown>,
    /// The names that lead to it, and whether each has a row among the checks.
    names: HashMap<ReferenceKey, bool>,
    /// What the actions amount to, and when they say that the order expires; `None` where some cannot be read.
    said: Option<Registers>,
    expiries: Vec<Timestamp>,
    /// What the facts amount to; `None` where some cannot be read.
    rebuilt: Option<Registers>,
    transitions: i64,
    last: Option<Last>,
    /// Made before a transition kept whom it is told to (version 1 of the schema, which also kept no actions).
    is_old: bool,
    /// By version and destination: how often it is told, or waits to be.
    told: BTreeMap<(i64, String), u32>,
    /// It is among those about which nobody can be asked.
    is_unasked: bool,
}

/// The last transition so far.
struct Last {
    version: i64,
    to: Option<String>,
    view: Option<View>,
    at: Option<i64>,
    review_since: Option<i64>,
}

impl Group {
    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            order: None,
            names: HashMap::new(),
            said: Some(Registers::default()),
            expiries: Vec::new(),
            rebuilt: None,
            transitions: 0,
            last: None,
            is_old: false,
            told: BTreeMap::new(),
            is_unasked: false,
        }
    }

    fn order(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let view = self.view(row.key(3), audit);
        let registers: Option<Registers> = match serde_json::from_str(row.key(4)) {
            Ok(registers) => Some(registers),
            Err(error) => {
                audit.find("order", &self.id, format!("its registers cannot be read ({:?} error)", error.classify()));
                None
            }
        };
        self.rebuilt = registers.as_ref().map(Registers::without_facts);
        self.order = Some(Shown {
            status: row.key(2).to_owned(),
            version: row.integer(7).unwrap_or_default(),
            review_since: row.integer(8),
            updated_at: row.integer(9),
            due_at: row.integer(10),
            view,
            registers,
        });
    }

    fn view(&self, text: &str, audit: &mut Audit<'_>) -> Option<View> {
        let problem = |error: &serde_json::Error| format!("a view of it cannot be read ({:?} error)", error.classify());
        serde_json::from_str(text).inspect_err(|error| audit.find("order", &self.id, problem(error))).ok()
    }

    fn name(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let (psp, account, kind, value) = (row.key(2), row.key(3), row.key(4), row.key(5));
        let shown = if psp.is_empty() { format!("{kind} {value}") } else { format!("{psp}/{account} {kind} {value}") };
        if self.order.is_none() {
            audit.find("names", &shown, format!("it leads to {}, which does not exist", self.id));
        }
        let Some(kind) = ReferenceKind::parse(kind) else {
            audit.find("names", &shown, "it is of no kind that is known");
            return;
        };
        if kind == ReferenceKind::Order && value != self.id {
            audit.find("names", &shown, format!("it leads to {}, which has another name", self.id));
        }
        let key = ReferenceKey { psp: psp.into(), account: account.into(), kind, value: value.to_owned() };
        self.names.insert(key, row.integer(8) == Some(1));
    }

    fn action(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let (kind, detail) = (row.key(2), row.key(3));
        let key = format!("{}: action {}", self.id, uuid::Uuid::parse_str(row.key(4)).unwrap_or_default());
        if self.order.is_none() {
            audit.find("said", key, "its order does not exist");
            return;
        }
        let read = if kind == ActionKind::Registered.as_str() {
            serde_json::from_str(detail).ok().and_then(|registered| self.registered(&registered, &key, audit))
        } else if kind == ActionKind::Reviewed.as_str() {
            serde_json::from_str(detail).ok().map(|reviewed| self.reviewed(reviewed, row))
        } else if kind == ActionKind::Replayed.as_str() {
            Some(())
        } else if kind == ActionKind::Expired.as_str() {
            serde_json::from_str(detail).ok().map(|expired| self.expired(&expired, &key, audit))
        } else {
            audit.find("said", key, format!("{kind:?} is no kind of action"));
            return;
        };
        if read.is_none() {
            audit.find("said", key, "what was done cannot be read");
            self.said = None;
        }
    }

    fn registered(&mut self, registered: &Registered, key: &str, audit: &mut Audit<'_>) -> Option<()> {
        let Registered { psp, account, payment_id, amount, currency, expires_at } = registered;
        let expected = Money::new(*amount, Currency::parse(currency).ok()?);
        let payment = payment_id.as_deref().map(|id| (ReferenceKind::Payment, id));
        for (kind, value) in payment.into_iter().chain([(ReferenceKind::Order, &*self.id)]) {
            self.leads_here(&reference_key(psp, account, kind, value), key, audit);
        }
        let expects = self.order.as_ref().and_then(|order| order.registers.as_ref()).map(|registers| registers.expected);
        if expects.is_some_and(|expects| expects != Some(expected)) {
            audit.find("said", key, format!("{expected} was registered, and the order expects something else"));
        }
        self.expiries.extend(*expires_at);
        if let Some(said) = &mut self.said {
            said.expected = Some(expected);
            said.add_account(psp, account);
            if let Some(payment_id) = payment_id {
                said.add_payment(psp, account, payment_id);
            }
        }
        Some(())
    }

    fn reviewed(&mut self, Reviewed { decision: verdict, saw }: Reviewed, row: &Row) {
        let (operator, reason) = (row.key(5).to_owned(), row.key(6).to_owned());
        let at = Timestamp::from_millis(row.integer(7).unwrap_or_default());
        if let Some(said) = &mut self.said {
            said.decide(Decision { at, verdict, reason, operator, saw });
        }
    }

    fn expired(&mut self, Expired { ends_at, by, asked }: &Expired, key: &str, audit: &mut Audit<'_>) {
        let looks = || asked.iter().flat_map(|agreed| agreed.looks);
        if by < ends_at || looks().any(|look| look < *by) {
            audit.find("said", key, "what showed that its time was over was seen before that");
        }
        if let Some(said) = &mut self.said {
            said.expire(*by);
        }
    }

    fn leads_here(&self, name: &ReferenceKey, key: &str, audit: &mut Audit<'_>) {
        if !self.names.contains_key(name) {
            let of = if name.psp.is_empty() { String::new() } else { format!("{}/{} ", name.psp, name.account) };
            let problem = format!("its name {of}{} {} does not lead to {}", name.kind.as_str(), name.value, self.id);
            audit.find("names", key, problem);
        }
    }

    fn event(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let key = format!("{}/{}/{}", row.key(2), row.key(3), row.key(4));
        let Some(order) = &self.order else {
            audit.find("outcome", key, format!("its order {} does not exist", self.id));
            return;
        };
        let version = row.integer(7);
        if version.is_some_and(|version| !(1..=order.version).contains(&version)) {
            let problem = format!("its order {} was never at version {}", self.id, version.unwrap_or_default());
            audit.find("outcome", &key, problem);
        }
        let is_fact = row.text(6).and_then(Outcome::parse).is_some_and(|o| matches!(o, Outcome::Applied | Outcome::Superseded));
        let Some(event) = row.text(5).and_then(|facts| serde_json::from_str::<PaymentEvent>(facts).ok()) else {
            // Named by the walk over the events.
            self.rebuilt = None;
            return;
        };
        if !is_fact {
            return;
        }
        for name in references(&event) {
            self.leads_here(&name, &key, audit);
        }
        if let Some(rebuilt) = &mut self.rebuilt {
            rebuilt.join(&event, row.integer(8) == Some(1));
        }
    }

    fn transition(&mut self, row: &Row, audit: &mut Audit<'_>) {
        let version = row.integer(7).unwrap_or_default();
        let key = format!("{} v{version}", self.id);
        if self.order.is_none() {
            if self.last.is_none() {
                audit.find("transitions", &self.id, "it has transitions, and does not exist");
            }
        } else if version != self.transitions + 1 {
            audit.find("transitions", format!("{} v{}", self.id, self.transitions + 1), "it is not there");
        }
        let (from, to) = (row.text(2), row.text(3));
        let before = self.last.as_ref().and_then(|last| last.to.as_deref());
        // After a gap, who stood there is not known.
        if version == self.transitions + 1 && from != before {
            let (from, before) = (from.unwrap_or("nothing"), before.unwrap_or("nothing"));
            audit.find("transitions", &key, format!("it comes from {from}, where {before} was before"));
        }
        let view = self.view(row.key(4), audit);
        let review_since = row.integer(9);
        if let Some(view) = &view {
            if Some(view.status.as_str()) != to {
                audit.find("transitions", &key, "it leads to another status than its view shows");
            }
            if row.text(5).is_some() && view.review.is_some() != review_since.is_some() {
                audit.find("transitions", &key, "its review and since when it stands do not agree");
            }
        }
        match row.text(5).map(serde_json::from_str::<Vec<String>>) {
            None => self.is_old = true,
            Some(Ok(destinations)) => self.told.extend(destinations.into_iter().map(|name| ((version, name), 0))),
            Some(Err(_)) => audit.find("told", &key, "whom it is told to cannot be read"),
        }
        self.transitions = version;
        self.last = Some(Last { version, to: to.map(str::to_owned), view, at: row.integer(8), review_since });
    }

    fn tell(&mut self, row: &Row, how: &str, audit: &mut Audit<'_>) {
        let (version, destination) = (row.integer(7).unwrap_or_default(), row.key(2).to_owned());
        let key = format!("{} v{version} → {destination}", self.id);
        if let Some(times) = self.told.get_mut(&(version, destination)) {
            *times += 1;
        } else {
            audit.find("told", key, format!("it {how}, and no transition is to be told there"));
        }
    }

    fn unasked(&mut self, row: &Row, audit: &mut Audit<'_>) {
        self.is_unasked = true;
        if self.order.is_none() {
            let at = format!("{}/{}", row.key(2), row.key(3));
            audit.find("unasked", &self.id, format!("a webhook of {at} is waited for, and it does not exist"));
        }
    }

    fn end(self, audit: &mut Audit<'_>) {
        for ((version, destination), times) in &self.told {
            let key = format!("{} v{version} → {destination}", self.id);
            match times {
                1 => {}
                0 => audit.find("told", key, "it was not told, and does not wait to be"),
                _ => audit.find("told", key, "it was told, and still waits to be"),
            }
        }
        let Some(order) = &self.order else { return };
        self.end_of_transitions(order, audit);
        self.end_of_facts(order, audit);
        self.end_of_time(order, audit);
        self.end_of_actions(order, audit);
    }

    fn end_of_transitions(&self, order: &Shown, audit: &mut Audit<'_>) {
        let version = order.version;
        let Some(last) = self.last.as_ref().filter(|last| last.version == version) else {
            let found = self.last.as_ref().map_or(0, |last| last.version);
            audit.find("transitions", format!("{} v{version}", self.id), format!("it is not there; the last one is v{found}"));
            return;
        };
        let key = format!("{} v{version}", self.id);
        if last.view.is_some() && order.view.is_some() && last.view != order.view {
            audit.find("transitions", &key, "it does not show the order as the order's own row does");
        }
        if last.at != order.updated_at {
            audit.find("transitions", &key, "the order was not changed when it happened");
        }
        if !self.is_old && last.review_since != order.review_since {
            audit.find("transitions", &key, "its review and the order's do not stand since the same time");
        }
    }

    fn end_of_facts(&self, order: &Shown, audit: &mut Audit<'_>) {
        if let Some(view) = &order.view {
            if view.status.as_str() != order.status {
                audit.find("order", &self.id, format!("its status is {}, its view shows {}", order.status, view.status.as_str()));
            }
            if view.review.is_some() != order.review_since.is_some() {
                audit.find("order", &self.id, "its review and since when it stands do not agree");
            }
        }
        let (Some(rebuilt), Some(stored)) = (&self.rebuilt, &order.registers) else { return };
        let view = rebuilt.view(&audit.scope.policy.rules);
        if rebuilt != stored {
            audit.find("order", &self.id, "its registers are not what its facts amount to");
        } else if order.view.as_ref().is_some_and(|shown| *shown != view) {
            audit.find("order", &self.id, "it is not shown as its facts, judged by this configuration, amount to");
        }
        for PaymentView { account: of, payment_id, .. } in &view.payments {
            let name = reference_key(&of.psp, &of.account, ReferenceKind::Payment, payment_id);
            if audit.scope.policy.asking.contains_key(of) && self.names.get(&name) == Some(&false) {
                let key = format!("{}/{}/{payment_id}", of.psp, of.account);
                audit.find("checks", key, "its PSP can be asked about it, and never will be");
            }
        }
    }

    /// Somebody sees to it when its time is over, and knows if nobody can be asked about it.
    fn end_of_time(&self, order: &Shown, audit: &mut Audit<'_>) {
        let (Some(registers), Some(view)) = (&order.registers, &order.view) else { return };
        if order.due_at == Some(0) {
            return;
        }
        if registers.ends_at(view.status).is_some() && order.due_at.is_none() {
            audit.find("due", &self.id, "its time comes to an end, and nobody will see to it");
        }
        let asking = &audit.scope.policy.asking;
        match (registers.unasked(view.status, |account| asking.contains_key(account)).is_some(), self.is_unasked) {
            (true, false) => audit.find("unasked", &self.id, "nobody can be asked about it, and it is on no list of such"),
            (false, true) => audit.find("unasked", &self.id, "it waits for a webhook as if nobody could be asked about it"),
            _ => {}
        }
    }

    /// What the shop and the operators said, as the order holds it, and as its actions do.
    fn end_of_actions(&self, order: &Shown, audit: &mut Audit<'_>) {
        let (Some(said), Some(stored)) = (&self.said, &order.registers) else { return };
        if self.is_old {
            return;
        }
        let mut stored = stored.without_facts();
        if stored.expires_at.is_some_and(|at| !self.expiries.contains(&at)) {
            audit.find("said", &self.id, "nobody registered when it expires");
        }
        stored.expires_at = None;
        if stored.expected != said.expected {
            audit.find("said", &self.id, "what it expects is not what was registered");
        } else if stored.accounts != said.accounts {
            audit.find("said", &self.id, "the accounts that it expects are not those that were registered");
        } else if stored != *said {
            audit.find("said", &self.id, "its payments or decisions are not those that were registered or decided");
        }
    }
}
