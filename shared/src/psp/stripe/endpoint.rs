//! Registering a webhook endpoint at Stripe, and changing one: `POST /v1/webhook_endpoints[/{id}]`, as a form.
//!
//! The signing secret is in the answer to the creation and nowhere else. An endpoint's version of the API is fixed when it is
//! made; URL, events and whether it is enabled can be changed, and its secret stays.

use bytes::Bytes;
use http::{Method, Request, Response};

use super::super::json::{self, Node};
use super::super::{Account, AskError, ChangedEndpoint, EndpointChange, ReadError, WantedEndpoint, answer, ask};
use super::{API, API_VERSION, is_stripe_id};
use crate::secret::Secret;

/// What `translate` reads, without what only repeats: a charge's own events, where an intent made it, those that say that an
/// intent is still pending, and `charge.refund.updated`, which is `refund.updated` by its older name.
pub(super) const WANTED: WantedEndpoint = WantedEndpoint {
    events: &[
        "payment_intent.created",
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
        "payment_intent.payment_failed",
        "payment_intent.canceled",
        "charge.expired",
        "charge.refunded",
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.closed",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
        "refund.created",
        "refund.updated",
        "refund.failed",
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
        "checkout.session.expired",
    ],
    api_version: Some(API_VERSION),
    tells_secret: true,
};

pub(super) fn request(change: &EndpointChange<'_>, account: &Account) -> Result<Request<Bytes>, AskError> {
    let mut fields: Vec<(&str, &str)> = Vec::new();
    let path = match change {
        EndpointChange::Create { url, wanted } => {
            fields.extend([("url", *url), ("description", "Paybell")]);
            fields.extend(wanted.api_version.map(|version| ("api_version", version)));
            fields.extend(wanted.events.iter().map(|event| ("enabled_events[]", *event)));
            "/v1/webhook_endpoints".to_owned()
        }
        EndpointChange::Update { id, url, events, enable } => {
            if !is_stripe_id(id) {
                return Err(AskError::MalformedId((*id).to_owned()));
            }
            fields.extend(url.map(|url| ("url", url)));
            fields.extend(events.unwrap_or_default().iter().map(|event| ("enabled_events[]", event.as_str())));
            fields.extend(enable.then_some(("disabled", "false")));
            format!("/v1/webhook_endpoints/{id}")
        }
    };
    let request = ask::begin(Method::POST, account, API, &path, Some(ask::bearer(account)?));
    ask::finish_form(request.header("stripe-version", API_VERSION), &fields)
}

pub(super) fn read(response: &Response<Bytes>) -> Result<ChangedEndpoint, ReadError> {
    let value = json::read(answer::changed(response)?)?;
    let endpoint = Node::root(&value);
    let secret = endpoint.optional_name("secret")?.map(|secret| Secret::new("secret", secret));
    Ok(ChangedEndpoint { id: endpoint.name("id")?.to_owned(), secret })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{changed, changes};
    use super::super::{Family, SWEPT_TYPES, Stripe};
    use super::*;

    #[test]
    fn what_is_wanted_is_read_and_what_tells_a_state_is_swept() {
        // A list of the swept takes twenty types; these two say nothing that the dispute's others do not.
        let within_a_state = ["charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated"];
        for event in WANTED.events {
            assert!(Family::of(event).is_some(), "{event}");
            assert_eq!(SWEPT_TYPES.contains(event), !within_a_state.contains(event), "{event}");
        }
    }

    #[test]
    fn changes_are_forms() {
        insta::assert_snapshot!("stripe-endpoint-changes", changes(&Stripe, WANTED, "we_1PbA"));
        let update = EndpointChange::Update { id: "we_1/../x", url: None, events: None, enable: true };
        let account = super::super::super::tests::account(&Stripe, &["whsec_1"]);
        assert!(matches!(request(&update, &account), Err(AskError::MalformedId(_))));
    }

    #[test]
    fn the_secret_is_in_the_answer_to_a_creation_and_in_no_print() {
        let made = changed(&Stripe, 200, r#"{"id":"we_1","object":"webhook_endpoint","secret":"whsec_hush","status":"enabled"}"#);
        let made = made.unwrap();
        assert_eq!((made.id.as_str(), made.secret.as_ref().map(Secret::expose)), ("we_1", Some("whsec_hush")));
        assert!(!format!("{made:?}").contains("hush"));
        assert!(changed(&Stripe, 200, r#"{"id":"we_1","url":"https://x"}"#).unwrap().secret.is_none());
        let refused = changed(&Stripe, 400, r#"{"error":{"message":"Invalid URL: must be https"}}"#).unwrap_err();
        assert!(refused.to_string().contains("Invalid URL: must be https"), "{refused}");
        assert_eq!(changed(&Stripe, 401, "{}").unwrap_err(), ReadError::Unauthorized(401));
    }
}
