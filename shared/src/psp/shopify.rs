//! Shopify's way of signing, for apps and in-house senders that follow it: a preset of the generic adapter.
//!
//! **Signature** (shopify.dev; vectors by `@shopify/shopify-api`). `X-Shopify-Hmac-Sha256`: base64 of the HMAC-SHA256 of the raw
//! body by the app's client secret, as text. No time is signed. After a rotation the old secret signs for up to an hour: keep
//! both in `secrets`.
//!
//! **Body.** Paybell's normalised event, or any JSON by pointers (`normalised.rs`): a bridge's, a Flow's. What Shopify itself
//! says of an order has no type in the body, only in the unsigned `X-Shopify-Topic`, so it is never taken for a payment event:
//! it is kept and quarantined, unless a pointer leads to a type.
//!
//! **Event key.** `X-Shopify-Webhook-Id`, `X-Shopify-Event-Id`, the topic and the time are unsigned, so none of them names the
//! event: whoever caught one genuine call could send it again under any id. The body does, by its SHA-256 or by the pointer
//! `id`; Shopify repeats the same bytes.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderName;

use super::generic::{self, Algorithm, Encoding, KeyEncoding, Part, Signing};
use super::{
    Abilities, Account, Keys, LateChanges, Profile, Psp, Rejection, Scheme, SettingError, TranslateError, Verified,
    WebhookRequest, normalised,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::PaymentEvent;

/// The adapter.
pub struct Shopify;

const SIGNATURE: &str = "x-shopify-hmac-sha256";

static SIGNING: Signing = Signing {
    header: HeaderName::from_static(SIGNATURE),
    shown: SIGNATURE,
    algorithm: Algorithm::Sha256,
    encoding: Encoding::Base64,
    prefix: Cow::Borrowed(""),
    template: Cow::Borrowed(&[Part::Body]),
    timestamp_header: None,
    key_encoding: KeyEncoding::Utf8,
};

static PROFILE: Profile = Profile {
    name: "Shopify",
    translate_headers: &[],
    // 1 s to connect, 5 s in all.
    timeout: Duration::from_secs(5),
    // 8 times in 4 h, since 2024-09-10; then the subscription may be deleted.
    retry_window: Duration::from_hours(4),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("generic-base64-hmac-sha256")],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for Shopify {
    fn id(&self) -> &'static str {
        "shopify"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "Admin: Settings, Notifications, Webhooks; or the app that calls us"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        generic::check_pointers_only(account, "Shopify")?;
        generic::check_account(account, &SIGNING)
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        generic::verify(&SIGNING, request, keys, now)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        normalised::translate(envelope, account).map(|event| vec![event])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::super::generic::{Rules, Settings};
    use super::super::signature;
    use super::super::tests::{self, Specimen, account};
    use super::*;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Shopify,
            scheme: "generic-base64-hmac-sha256",
            secret: "shpss_test_secret_0001",
            other_secret: "shpss_test_secret_OLD",
            settings: |_| {},
            sign: |secret, _, body| {
                let mac = signature::hmac_sha256(secret.as_bytes(), &[body]);
                let topic = ("x-shopify-topic", "orders/paid".to_owned());
                let id = ("x-shopify-webhook-id", "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043".to_owned());
                (tests::headers([(SIGNATURE, STANDARD.encode(mac)), topic, id]), body.to_vec())
            },
            body: br#"{"type":"payment.pending"}"#,
            event_type: Some("payment.pending"),
            timed: false,
            any_body: true,
            unsigned_headers: &["x-shopify-topic", "x-shopify-webhook-id"],
        }
    }

    #[test]
    fn no_unsigned_header_names_an_event() {
        let specimen = specimen();
        let body = br#"{"type":"payment.pending"}"#;
        let (mut headers, _) = (specimen.sign)(specimen.secret, 0, body);
        let id = |headers: &http::HeaderMap| specimen.verify(&[specimen.secret], headers, body).unwrap().webhook_id;
        assert_eq!(id(&headers), signature::body_id(body));
        headers.insert("x-shopify-webhook-id", http::HeaderValue::from_static("another"));
        assert_eq!(id(&headers), signature::body_id(body));
    }

    #[test]
    fn of_the_generic_settings_only_pointers_mean_something() {
        let check = |settings: Settings| {
            let mut account = account(&Shopify, &["shpss_x"]);
            account.keys.generic = Some(Arc::new(Rules::new(settings).unwrap()));
            Shopify.check(&account).map_err(|error| error.setting)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(check(Settings { id: text("/id"), r#type: text("/kind"), ..Settings::default() }), Ok(()));
        assert_eq!(check(Settings { header: text("x-sign"), ..Settings::default() }), Err("generic.header"));
    }
}
