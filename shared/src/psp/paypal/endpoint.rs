//! Registering a webhook at PayPal, and changing one: `POST /v1/notifications/webhooks`, `PATCH …/{id}` (JSON Patch, `replace`
//! only).
//!
//! There is no secret: what is signed is the id that PayPal gives it, our setting `webhook_id`. There is no way to switch one
//! off or on.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::super::json::{self, Node};
use super::super::{Account, AskError, ChangedEndpoint, EndpointChange, ReadError, WantedEndpoint, answer, ask};
use super::{api, is_id};

/// What gives reason to ask. Left out: `CHECKOUT.ORDER.VOIDED` and sales, which are of older APIs.
pub(super) const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "CHECKOUT.ORDER.APPROVED",
        "CHECKOUT.ORDER.COMPLETED",
        "CHECKOUT.PAYMENT-APPROVAL.REVERSED",
        "PAYMENT.AUTHORIZATION.CREATED",
        "PAYMENT.AUTHORIZATION.VOIDED",
        "PAYMENT.CAPTURE.PENDING",
        "PAYMENT.CAPTURE.COMPLETED",
        // PayPal's pages have both names for one thing; which an account takes, its own list of types says.
        "PAYMENT.CAPTURE.DECLINED",
        "PAYMENT.CAPTURE.REFUNDED",
        "PAYMENT.CAPTURE.REVERSED",
        "CUSTOMER.DISPUTE.CREATED",
        "CUSTOMER.DISPUTE.UPDATED",
        "CUSTOMER.DISPUTE.RESOLVED",
    ],
    api_version: None,
    tells_secret: false,
};

pub(super) fn request(change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
    const WEBHOOKS: &str = "/v1/notifications/webhooks";
    let names = |events: &[&str]| events.iter().map(|event| json!({ "name": event })).collect::<serde_json::Value>();
    let (method, path, document) = match change {
        EndpointChange::Create { url, wanted } => {
            (Method::POST, WEBHOOKS.to_owned(), json!({ "url": url, "event_types": names(wanted.events) }))
        }
        EndpointChange::Update { enable: true, .. } => return Err(AskError::Unsupported),
        EndpointChange::Update { id, url, events, enable: false } => {
            if !is_id(id) {
                return Err(AskError::MalformedId((*id).to_owned()));
            }
            let replace = |path: &str, value| json!({ "op": "replace", "path": path, "value": value });
            let url = url.map(|url| replace("/url", json!(url)));
            let events = events.map(|events| events.iter().map(String::as_str).collect::<Vec<_>>());
            let events = events.map(|events| replace("/event_types", names(&events)));
            (Method::PATCH, format!("{WEBHOOKS}/{id}"), url.into_iter().chain(events).collect())
        }
    };
    ask::finish_json(ask::begin(method, account, api(account), &path, None), &document)
}

pub(super) fn read(response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
    let value = json::read(answer::changed(response)?)?;
    Ok(ChangedEndpoint { id: Node::root(&value).name("id")?.to_owned(), secret: None })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{changed, changes};
    use super::super::{PayPal, hinted_by};
    use super::*;
    use crate::psp::TranslateError;

    #[test]
    fn what_is_wanted_is_what_is_understood() {
        for event in WANTED.events {
            let document = format!(r#"{{"event_type":"{event}"}}"#);
            let value = json::read(document.as_bytes()).unwrap();
            // It lacks all that it needs, but it is none of those that say nothing about a payment.
            assert!(matches!(hinted_by(&Node::root(&value)), Err(TranslateError::Unintelligible { .. })), "{event}");
        }
    }

    #[test]
    fn changes_are_patches() {
        insta::assert_snapshot!("paypal-endpoint-changes", changes(&PayPal, WANTED, "4JH86294D6297924G"));
        let made = changed(&PayPal, 201, r#"{"id":"4JH86294D6297924G","url":"https://x","event_types":[]}"#).unwrap();
        assert_eq!((made.id.as_str(), made.secret.is_none()), ("4JH86294D6297924G", true));
        let taken = r#"{"name":"WEBHOOK_URL_ALREADY_EXISTS","message":"Webhook URL already exists"}"#;
        assert!(changed(&PayPal, 400, taken).unwrap_err().to_string().contains("already exists"));
    }
}
