//! Registering a webhook subscription at Square, and changing one: `POST`, `PUT /v2/webhooks/subscriptions[/{id}]`.
//!
//! The signature key is in the answer to the creation. A change of the URL keeps it, and changes what is signed.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::super::json::{self, Node};
use super::super::{Account, AskError, ChangedEndpoint, EndpointChange, ReadError, WantedEndpoint, answer, ask};
use super::{API_LIVE, API_TEST, API_VERSION, is_square_id};
use crate::event::Mode;
use crate::secret::Secret;

/// What `translate` reads; `dispute.state.changed` is of versions before 2020-11-18.
pub(super) const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "payment.created",
        "payment.updated",
        "refund.created",
        "refund.updated",
        "dispute.created",
        "dispute.state.updated",
    ],
    api_version: Some(API_VERSION),
    tells_secret: true,
};

pub(super) fn request(change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
    let (method, path, subscription) = match change {
        EndpointChange::Create { url, wanted } => {
            let subscription = json!({
                "name": "Paybell", "enabled": true, "event_types": wanted.events, "notification_url": url,
                "api_version": wanted.api_version,
            });
            (Method::POST, String::new(), subscription)
        }
        EndpointChange::Update { id, url, events, enable } => {
            if !is_square_id(id) {
                return Err(AskError::MalformedId((*id).to_owned()));
            }
            let mut subscription = json!({});
            if let Some(url) = url {
                subscription["notification_url"] = json!(url);
            }
            if let Some(events) = events {
                subscription["event_types"] = json!(events);
            }
            if *enable {
                subscription["enabled"] = json!(true);
            }
            (Method::PUT, format!("/{id}"), subscription)
        }
    };
    let host = if account.mode == Mode::Live { API_LIVE } else { API_TEST };
    let path = format!("/v2/webhooks/subscriptions{path}");
    let request = ask::begin(method, account, host, &path, Some(ask::bearer(account)?));
    ask::finish_json(request.header("square-version", API_VERSION), &json!({ "subscription": subscription }))
}

pub(super) fn read(response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
    let value = json::read(answer::changed(response)?)?;
    let subscription = Node::root(&value).object("subscription")?;
    let secret = subscription.optional_name("signature_key")?.map(|key| Secret::new("signature_key", key));
    Ok(ChangedEndpoint { id: subscription.name("id")?.to_owned(), secret })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{changed, changes};
    use super::super::{Kind, Square};
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_read() {
        assert!(WANTED.events.iter().all(|event| Kind::of(event).is_some()));
    }

    #[test]
    fn changes_are_subscriptions() {
        insta::assert_snapshot!("square-endpoint-changes", changes(&Square, WANTED, "wbhk_b35f6b"));
        let made = changed(&Square, 200, r#"{"subscription":{"id":"wbhk_1","signature_key":"hush"}}"#).unwrap();
        assert_eq!((made.id.as_str(), made.secret.as_ref().map(Secret::expose)), ("wbhk_1", Some("hush")));
        let refused = changed(&Square, 400, r#"{"errors":[{"code":"BAD_REQUEST","detail":"URL is not valid"}]}"#).unwrap_err();
        assert!(refused.to_string().contains("URL is not valid"), "{refused}");
    }
}
