//! GitHub's way of signing, which many in-house senders follow: a preset of the generic adapter.
//!
//! **Signature** (docs.github.com; vectors by `@octokit/webhooks-methods`). `X-Hub-Signature-256: sha256=<64 lower-case hex>`:
//! HMAC-SHA256 of the raw body by the secret, as text. No time is signed. A sender without a secret leaves the header out,
//! which is refused.
//!
//! **Body.** Paybell's normalised event, or any JSON by pointers (`normalised.rs`), as `application/json`: in GitHub's other
//! form (`payload=…`) it is kept, but not understood.
//!
//! **Event key.** `X-GitHub-Delivery` and `X-GitHub-Event` are unsigned, so they name nothing; the body does, by its SHA-256 or by
//! the pointer `id`.

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
pub struct Github;

const SIGNATURE: &str = "x-hub-signature-256";

static SIGNING: Signing = Signing {
    header: HeaderName::from_static(SIGNATURE),
    shown: SIGNATURE,
    algorithm: Algorithm::Sha256,
    encoding: Encoding::Hex,
    prefix: Cow::Borrowed("sha256="),
    template: Cow::Borrowed(&[Part::Body]),
    timestamp_header: None,
    key_encoding: KeyEncoding::Utf8,
};

static PROFILE: Profile = Profile {
    name: "GitHub style",
    translate_headers: &[],
    timeout: Duration::from_secs(10),
    // GitHub sends nothing again by itself; followers may, and by hand anybody can. What comes later than this is late.
    retry_window: Duration::from_mins(5),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("generic-sha256-prefix-hex")],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for Github {
    fn id(&self) -> &'static str {
        "github"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn endpoint_by_hand(&self) -> &'static str {
        "the repository or organisation: Settings, Webhooks"
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        generic::check_pointers_only(account, "GitHub")?;
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
    use super::super::signature;
    use super::super::tests::{self, Specimen};
    use super::*;

    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Github,
            scheme: "generic-sha256-prefix-hex",
            secret: "gh_test_secret_0001",
            other_secret: "gh_test_secret_OLD",
            settings: |_| {},
            sign: |secret, _, body| {
                let mac = signature::hmac_sha256(secret.as_bytes(), &[body]);
                let delivery = ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned());
                (tests::headers([(SIGNATURE, format!("sha256={}", hex::encode(mac))), delivery]), body.to_vec())
            },
            body: br#"{"type":"payment.pending"}"#,
            event_type: Some("payment.pending"),
            timed: false,
            any_body: true,
            unsigned_headers: &["x-github-delivery"],
        }
    }

    #[test]
    fn the_header_has_one_grammar() {
        let specimen = specimen();
        let (headers, body) = (specimen.sign)(specimen.secret, 0, specimen.body);
        let good = headers[SIGNATURE].to_str().unwrap().to_owned();
        let reason = |text: &str| {
            let headers = tests::headers([(SIGNATURE, text.to_owned())]);
            let verdict = specimen.verify(&[specimen.secret], &headers, &body);
            verdict.map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        assert_eq!(reason(&good), "accepted");
        let digits = good.strip_prefix("sha256=").unwrap();
        for bad in [
            digits.to_owned(),
            format!("SHA256={digits}"),
            format!("sha1={digits}"),
            format!("sha256={}", digits.to_uppercase()),
            format!("sha256= {digits}"),
            format!("{good},{good}"),
            format!("{good}0"),
            "sha256=".to_owned(),
        ] {
            assert_eq!(reason(&bad), "malformed_header", "{bad}");
        }
    }
}
