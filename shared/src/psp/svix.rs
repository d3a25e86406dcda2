//! Svix: Standard Webhooks under its elder names, for senders that use Svix's service or libraries.
//!
//! **Signature** as in `standard_webhooks.rs`, in `svix-id`, `svix-timestamp`, `svix-signature`. Svix's libraries take the
//! `webhook-*` names, too (vector `stdwh-webhook-headers-on-svix-lib`, which the other adapter answers). As with them, a call
//! with all three `svix-*` headers is judged by those alone, and by `webhook-*` only without: the sets are never mixed, so a call
//! has one reading.
//!
//! **Body.** Paybell's normalised event, or any JSON by pointers (`normalised.rs`).

use std::time::Duration;

use super::standard_webhooks::{self, NAMES as WEBHOOK, Names};
use super::{
    Abilities, Account, Keys, LateChanges, Profile, Psp, Rejection, Scheme, SettingError, TranslateError, Verified,
    WebhookRequest, normalised,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::PaymentEvent;

/// The adapter.
pub struct Svix;

const SVIX: Names = Names { id: "svix-id", timestamp: "svix-timestamp", signature: "svix-signature" };

static PROFILE: Profile = Profile {
    name: "Svix",
    // Whichever it was: signed, and not in the body.
    translate_headers: &[SVIX.id, WEBHOOK.id],
    timeout: Duration::from_secs(15),
    // Not captured for Svix's service: what the specification recommends.
    retry_window: Duration::from_mins(75 * 60 + 35),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("svix")],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for Svix {
    fn id(&self) -> &'static str {
        "svix"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        standard_webhooks::check(account, "Svix")
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        let has =
            |names: &Names| [names.id, names.timestamp, names.signature].iter().all(|name| request.headers.contains_key(*name));
        let names = if !has(&SVIX) && has(&WEBHOOK) { &WEBHOOK } else { &SVIX };
        standard_webhooks::verify(names, request, keys, now)
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
    use http::HeaderMap;

    use super::super::generic::{Rules, Settings};
    use super::super::signature;
    use super::super::tests::{self, NOW_S, Specimen, account};
    use super::*;

    const SECRET: &str = "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=";
    const BODY: &[u8] = br#"{"type":"payment.pending"}"#;

    fn signed(names: &Names, secret: &str, id: &str, time_s: i64, body: &[u8]) -> HeaderMap {
        let (key, time) = (STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap(), time_s.to_string());
        let mac = signature::hmac_sha256(&key, &[id.as_bytes(), b".", time.as_bytes(), b".", body]);
        let signature = format!("v1,{}", STANDARD.encode(mac));
        tests::headers([(names.id, id.to_owned()), (names.timestamp, time), (names.signature, signature)])
    }

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Svix,
            scheme: "svix",
            secret: SECRET,
            other_secret: "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktT0xEMDAh",
            settings: |_| {},
            sign: |secret, time_s, body| (signed(&SVIX, secret, "msg_1", time_s, body), body.to_vec()),
            body: BODY,
            event_type: Some("payment.pending"),
            timed: true,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    #[test]
    fn a_call_has_one_set_of_headers() {
        let heard = |headers: HeaderMap| {
            let verdict = tests::verify(&Svix, &[SECRET], &headers, BODY);
            verdict.map(|verified| verified.headers).map_err(|rejection| rejection.reason())
        };
        let (svix, webhook) = (signed(&SVIX, SECRET, "msg_s", NOW_S, BODY), signed(&WEBHOOK, SECRET, "msg_w", NOW_S, BODY));
        let kept = |name: &str, id: &str| Ok(vec![(name.to_owned(), id.to_owned())]);
        assert_eq!(heard(svix.clone()), kept("svix-id", "msg_s"));
        assert_eq!(heard(webhook.clone()), kept("webhook-id", "msg_w"));
        let with = |mut headers: HeaderMap, others: &HeaderMap, names: &[&'static str]| {
            headers.extend(names.iter().map(|name| (http::HeaderName::from_static(name), others[*name].clone())));
            headers
        };
        let both = with(svix.clone(), &webhook, &["webhook-id", "webhook-timestamp", "webhook-signature"]);
        assert_eq!(heard(both), kept("svix-id", "msg_s"), "always the same set");
        for name in ["svix-id", "svix-timestamp", "svix-signature"] {
            assert_eq!(heard(with(webhook.clone(), &svix, &[name])), kept("webhook-id", "msg_w"), "{name} is no set");
            let mut broken = with(webhook.clone(), &svix, &[name]);
            broken.remove("webhook-timestamp");
            assert_eq!(heard(broken), Err("missing_header"), "{name} does not fill the other set's gap");
        }
        let forged =
            with(webhook, &signed(&SVIX, SECRET, "msg_s", NOW_S, b"other"), &["svix-id", "svix-timestamp", "svix-signature"]);
        assert_eq!(heard(forged), Err("signature_mismatch"), "a good signature under the other names does not help");
        assert_eq!(heard(HeaderMap::new()), Err("missing_header"));
    }

    #[test]
    fn of_the_generic_settings_only_pointers_mean_something() {
        let check = |settings: Settings| {
            let mut account = account(&Svix, &[SECRET]);
            account.keys.generic = Some(Arc::new(Rules::new(settings).unwrap()));
            Svix.check(&account).map_err(|error| error.setting)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(check(Settings { payment: text("/id"), ..Settings::default() }), Ok(()));
        assert_eq!(check(Settings { header: text("x-sign"), ..Settings::default() }), Err("generic.header"));
        assert_eq!(check(Settings { id: text("/id"), ..Settings::default() }), Err("generic.id"));
    }
}
