//! A sender that uses Svix: the scheme of Standard Webhooks under `svix-*`, with Paybell's normalised events.

use std::time::Duration;

use super::dialect::{Dialect, EventType, Settings, SignError, SignedCall, Webhook};
use super::ledger::{Event, Object, Step};
use super::seed::Seed;
use super::story::Story;
use super::{normalised, standard_webhooks};

/// Svix's service, or its libraries in a sender of one's own.
pub struct Svix;

impl Dialect for Svix {
    fn id(&self) -> &'static str {
        "svix"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        normalised::object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        &normalised::EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        normalised::told(self, step)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("svix-id", webhook.id.clone()),
            ("svix-timestamp", at.to_string()),
            ("svix-signature", standard_webhooks::signature(&settings.secret, &webhook.id, at, &webhook.body)?),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        standard_webhooks::key(seed)
    }

    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "svix", 0)), ..Settings::default() }
    }

    fn signs_time(&self) -> bool {
        true
    }

    fn retries(&self) -> &'static [Duration] {
        &standard_webhooks::RETRIES
    }

    fn plays(&self, story: Story) -> bool {
        normalised::plays(story)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_official_library_does() {
        // Vector svix-valid.
        let body = r#"{"type":"payment.succeeded","timestamp":"2026-09-21T13:33:10Z","data":{"id":"pay_1001","order_id":"ORD-1001","amount":4999,"currency":"EUR","status":"succeeded"}}"#;
        let settings =
            Settings { secret: "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=".to_owned(), ..Settings::default() };
        let webhook =
            Webhook { id: "msg_2KWPTestMessage0001".to_owned(), event_type: "payment.succeeded".to_owned(), body: body.into() };
        let call = Svix.sign(&settings, &webhook, 1_789_999_995).unwrap();
        assert_eq!(
            call.headers[1..],
            [
                ("svix-id", "msg_2KWPTestMessage0001".to_owned()),
                ("svix-timestamp", "1789999995".to_owned()),
                ("svix-signature", "v1,vWQIIsgKcKe3eRP7/yYMyWUk9dTOgWX7mdho2XOfYgk=".to_owned()),
            ]
        );
    }
}
