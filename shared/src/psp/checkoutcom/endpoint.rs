//! Registering a workflow that sends webhooks at Checkout.com, and switching one on: `POST /workflows`, `PATCH …/{id}`.
//!
//! The signature key is ours to choose: the first of the account's secrets. URL and events of a workflow that is there are
//! changed by hand: its API replaces a condition or an action as a whole, with headers and conditions of others in it that it
//! does not show.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::super::json::{self, Node};
use super::super::{Account, AskError, ChangedEndpoint, EndpointChange, ReadError, WantedEndpoint, answer, ask};
use super::{API, SANDBOX, is_id};
use crate::event::Mode;

/// What `translate` reads, without the names of older accounts (`payment_chargeback`, `payment_retrieval`).
pub(super) const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "payment_pending",
        "payment_approved",
        "payment_captured",
        "payment_capture_pending",
        "payment_capture_declined",
        "payment_declined",
        "payment_canceled",
        "payment_voided",
        "payment_expired",
        "payment_refund_pending",
        "payment_refunded",
        "payment_refund_declined",
        "dispute_received",
        "dispute_evidence_required",
        "dispute_won",
        "dispute_canceled",
        "dispute_resolved",
        "dispute_lost",
        "dispute_expired",
        "dispute_accepted",
    ],
    api_version: None,
    tells_secret: false,
};

pub(super) fn request(change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
    let (method, path, document) = match change {
        EndpointChange::Create { url, wanted } => {
            let key = account.keys.secrets.first().ok_or(AskError::Missing("secrets"))?;
            let (disputes, gateway): (Vec<&str>, Vec<&str>) =
                wanted.events.iter().partition(|event| event.starts_with("dispute_"));
            let document = json!({
                "name": "Paybell",
                "active": true,
                "conditions": [{ "type": "event", "events": { "gateway": gateway, "dispute": disputes } }],
                "actions": [{
                    "type": "webhook", "url": url, "headers": {}, "signature": { "method": "HMACSHA256", "key": key.expose() },
                }],
            });
            (Method::POST, "/workflows".to_owned(), document)
        }
        EndpointChange::Update { id, url: None, events: None, enable: true } => {
            let (workflow, _) = id.split_once('/').ok_or_else(|| AskError::MalformedId((*id).to_owned()))?;
            if !is_id(workflow) {
                return Err(AskError::MalformedId((*id).to_owned()));
            }
            (Method::PATCH, format!("/workflows/{workflow}"), json!({ "active": true }))
        }
        EndpointChange::Update { .. } => return Err(AskError::Unsupported),
    };
    let host = if account.mode == Mode::Test { SANDBOX } else { API };
    ask::finish_json(ask::begin(method, account, host, &path, Some(ask::bearer(account)?)), &document)
}

/// The answer to a creation has an id, that to a change may have none.
pub(super) fn read(response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
    let value = json::read(answer::changed(response)?)?;
    let id = Node::root(&value).optional_name("id")?.unwrap_or_default().to_owned();
    Ok(ChangedEndpoint { id, secret: None })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{changed, changes};
    use super::super::{Checkoutcom, Family};
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_read() {
        assert!(WANTED.events.iter().all(|event| Family::of(event).is_some()));
    }

    #[test]
    fn changes_are_workflows() {
        insta::assert_snapshot!("checkoutcom-endpoint-changes", changes(&Checkoutcom, WANTED, "wf_c7svxlvo/wfa_1"));
        assert_eq!(changed(&Checkoutcom, 201, r#"{"id":"wf_1","_links":{}}"#).unwrap().id, "wf_1");
        assert_eq!(changed(&Checkoutcom, 200, r#"{"name":"Paybell","active":true}"#).unwrap().id, "");
        let refused = changed(&Checkoutcom, 422, r#"{"error_codes":["workflow_url_invalid"]}"#).unwrap_err();
        assert!(refused.to_string().contains("workflow_url_invalid"), "{refused}");
    }
}
