//! Registering a next-gen webhook at Mollie, and changing one: `POST /v2/webhooks`, `PATCH …/{id}`.
//!
//! The secret is in the answer to the creation and nowhere else. One that is blocked or disabled is brought back in the
//! dashboard. Classic webhooks are no endpoints: each payment names its URL.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::super::json::{self, Node};
use super::super::{Account, AskError, ChangedEndpoint, EndpointChange, ReadError, WantedEndpoint, answer, ask};
use super::{API, is_of_organisation};
use crate::event::Mode;
use crate::secret::Secret;

/// All that Mollie has of the four kinds that `translate` reads (mollie/openapi, 2026-08).
pub(super) const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "payment.paid",
        "payment.authorized",
        "payment.failed",
        "payment.canceled",
        "payment.expired",
        "payment.pending",
        "refund.queued",
        "refund.pending",
        "refund.processing",
        "refund.refunded",
        "refund.failed",
        "refund.canceled",
        "chargeback.received",
        "chargeback.reversed",
        "capture.succeeded",
        "capture.failed",
    ],
    api_version: None,
    tells_secret: true,
};

pub(super) fn request(change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
    let (method, path, mut document) = match change {
        EndpointChange::Create { url, wanted } => {
            let document = json!({ "name": "Paybell", "url": url, "eventTypes": wanted.events });
            (Method::POST, "/v2/webhooks".to_owned(), document)
        }
        EndpointChange::Update { enable: true, .. } => return Err(AskError::Unsupported),
        EndpointChange::Update { id, url, events, enable: false } => {
            if !ask::is_id(id, b"_") {
                return Err(AskError::MalformedId((*id).to_owned()));
            }
            let mut document = json!({});
            if let Some(url) = url {
                document["url"] = json!(url);
            }
            if let Some(events) = events {
                document["eventTypes"] = json!(events);
            }
            (Method::PATCH, format!("/v2/webhooks/{id}"), document)
        }
    };
    // Other keys have their mode in them, and must not say it.
    if account.mode == Mode::Test && is_of_organisation(account) {
        document["testmode"] = json!(true);
    }
    ask::finish_json(ask::begin(method, account, API, &path, Some(ask::bearer(account)?)), &document)
}

pub(super) fn read(response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
    let value = json::read(answer::changed(response)?)?;
    let webhook = Node::root(&value);
    let secret = webhook.optional_name("webhookSecret")?.map(|secret| Secret::new("webhookSecret", secret));
    Ok(ChangedEndpoint { id: webhook.name("id")?.to_owned(), secret })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{changed, changes};
    use super::super::{Kind, Mollie};
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_read() {
        assert!(WANTED.events.iter().all(|event| Kind::of_event(event).is_some()));
    }

    #[test]
    fn changes_are_documents() {
        insta::assert_snapshot!("mollie-endpoint-changes", changes(&Mollie, WANTED, "hook_B2EyhTH5N4KWUnoYPcgiH"));
        let made = changed(&Mollie, 201, r#"{"resource":"webhook","id":"hook_1","webhookSecret":"hush"}"#).unwrap();
        assert_eq!((made.id.as_str(), made.secret.as_ref().map(Secret::expose)), ("hook_1", Some("hush")));
        let refused = changed(&Mollie, 422, r#"{"status":422,"title":"x","detail":"The URL is invalid"}"#).unwrap_err();
        assert!(refused.to_string().contains("The URL is invalid"), "{refused}");
    }
}
