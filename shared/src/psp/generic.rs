//! Any PSP that signs its webhooks by an HMAC, by configuration alone: `[psp.generic]`.
//!
//! **Signature.** The header `header` holds `prefix` and the HMAC by `algorithm` in `encoding`, both to the letter: hex in lower
//! case, base64 of the standard alphabet with its padding. Signed is `template`, in which `{body}` stands for the exact bytes,
//! `{timestamp}` for the text of `timestamp_header` and `{url}` for the webhook's URL as registered (`url`). The key is the
//! secret, read by `key_encoding`; of a base64 one a leading `whsec_` is left out.
//!
//! | setting | default | |
//! |---|---|---|
//! | `header` | required | |
//! | `algorithm` | `sha256` | or `sha1`, `sha512` |
//! | `encoding` | `hex` | or `base64` |
//! | `prefix` | none | such as `sha256=` |
//! | `template` | `{body}` | must have `{body}`: what else is signed says nothing of it |
//! | `timestamp_header` | none | in Unix seconds, judged by `tolerance_s`; it and `{timestamp}` go together: an unsigned time proves nothing, and one that nobody judges does not end a replay |
//! | `key_encoding` | `utf8` | or `hex`, `base64` |
//!
//! **Body.** Paybell's normalised event, or any JSON by pointers (`normalised.rs`). The event's id is what the pointer `id` leads
//! to, or else the body's SHA-256: never a header, since nothing signs it. Name an `id` if two events may have the same body.
//!
//! Shopify's and GitHub's ways of signing are presets of this one (`shopify.rs`, `github.rs`).

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use http::HeaderName;
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::json::Pointer;
use super::normalised::{self, Pointers};
use super::{
    Abilities, Account, Keys, LateChanges, Profile, Proof, Psp, Rejection, Scheme, SettingError, TranslateError, Verified,
    WebhookRequest, signature, telling,
};
use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::event::PaymentEvent;

/// The adapter.
pub struct Generic;

/// The adapters that read `[psp.generic]`: it would be silent with any other.
pub const READERS: [&str; 5] = ["generic", "shopify", "github", "standard-webhooks", "svix"];

/// The table `[psp.generic]`, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The header that carries the signature.
    pub header: Option<String>,
    /// `sha1`, `sha256` or `sha512`.
    pub algorithm: Option<String>,
    /// Of the signature: `hex` or `base64`.
    pub encoding: Option<String>,
    /// What stands before the signature.
    pub prefix: Option<String>,
    /// What is signed: text around `{body}`, `{timestamp}` and `{url}`.
    pub template: Option<String>,
    pub timestamp_header: Option<String>,
    /// Of the secrets: `utf8`, `hex` or `base64`.
    pub key_encoding: Option<String>,
    /// JSON pointers into the body.
    pub id: Option<String>,
    pub r#type: Option<String>,
    pub order: Option<String>,
    pub payment: Option<String>,
    pub amount: Option<String>,
    pub currency: Option<String>,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `None`: nothing is said of it, as where the adapter knows it.
    pub(super) signing: Option<Signing>,
    pub(super) pointers: Pointers,
    /// As they are written.
    pub settings: Settings,
}

impl Rules {
    /// Checks settings.
    ///
    /// # Errors
    /// The setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SettingError> {
        let signing = Signing::read(&settings)?;
        let Settings { id, r#type, order, payment, amount, currency, .. } = &settings;
        let pointers = Pointers {
            id: pointer("generic.id", id.as_deref())?,
            event_type: pointer("generic.type", r#type.as_deref())?,
            order: pointer("generic.order", order.as_deref())?,
            payment: pointer("generic.payment", payment.as_deref())?,
            amount: pointer("generic.amount", amount.as_deref())?,
            currency: pointer("generic.currency", currency.as_deref())?,
        };
        Ok(Self { signing, pointers, settings })
    }
}

/// How a PSP signs.
#[derive(Clone, Debug)]
pub(super) struct Signing {
    pub header: HeaderName,
    /// What a rejection calls the header.
    pub shown: &'static str,
    pub algorithm: Algorithm,
    pub encoding: Encoding,
    pub prefix: Cow<'static, str>,
    pub template: Cow<'static, [Part]>,
    /// There if, and only if, the template has the time.
    pub timestamp_header: Option<HeaderName>,
    pub key_encoding: KeyEncoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Hex,
    Base64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyEncoding {
    Utf8,
    Hex,
    Base64,
}

/// A piece of what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Body,
    Timestamp,
    Url,
}

/// What a rejection calls the header of the setting `timestamp_header`.
const TIMESTAMP: &str = "named by generic.timestamp_header";

static PROFILE: Profile = Profile {
    name: "Generic HMAC",
    translate_headers: &[],
    // Nothing is known of the sender: what most PSPs wait at least, and for how long most send again.
    timeout: Duration::from_secs(5),
    retry_window: Duration::from_hours(24),
    usual_delay: Duration::from_mins(1),
    asks_per_second: 5,
    mapping_version: 1,
    schemes: &[Scheme::signed("generic")],
    can: Abilities { payment_status: false, event_list: false, late_changes: LateChanges::Unlisted, endpoint_list: false },
    list: None,
    sources: &[],
};

impl Psp for Generic {
    fn id(&self) -> &'static str {
        "generic"
    }

    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn check(&self, account: &Account) -> Result<(), SettingError> {
        match signing(&account.keys) {
            Some(signing) => check_account(account, signing),
            None => Err(missing_header()),
        }
    }

    fn verify(&self, request: &WebhookRequest<'_>, keys: &Keys, now: Timestamp) -> Result<Verified, Rejection> {
        verify(signing(keys).ok_or(Rejection::Setting("generic.header"))?, request, keys, now)
    }

    fn translate(&self, envelope: &Envelope, account: &Account) -> Result<Vec<PaymentEvent>, TranslateError> {
        normalised::translate(envelope, account).map(|event| vec![event])
    }
}

// ---------------------------------------------------------------------------------------------------------- settings

fn signing(keys: &Keys) -> Option<&Signing> {
    keys.generic.as_ref()?.signing.as_ref()
}

fn refuse<T>(setting: &'static str, problem: impl Into<String>) -> Result<T, SettingError> {
    Err(SettingError { setting, problem: problem.into() })
}

fn missing_header() -> SettingError {
    SettingError { setting: "generic.header", problem: "is missing: the header that carries the signature".to_owned() }
}

/// Refuses settings of a signature where the adapter knows it: of two rules one would be silent.
pub(super) fn check_pointers_only(account: &Account, known: &str) -> Result<(), SettingError> {
    if signing(&account.keys).is_some() {
        return refuse("generic.header", format!("is of id = \"generic\" only: {known} signs in one way, which is known"));
    }
    normalised::check(account)
}

/// Refuses secrets that are no keys, and a template whose URL nobody knows.
pub(super) fn check_account(account: &Account, signing: &Signing) -> Result<(), SettingError> {
    telling::check_secrets(account)?;
    for secret in &account.keys.secrets {
        if signing.key_encoding.key(secret.expose()).is_none() {
            let form = match signing.key_encoding {
                KeyEncoding::Utf8 => "text",
                KeyEncoding::Hex => "hex",
                KeyEncoding::Base64 => "base64",
            };
            return refuse("secrets", format!("{} is no key in {form}, which generic.key_encoding says", secret.name()));
        }
    }
    if signing.template.contains(&Part::Url) && account.keys.url.is_none() {
        return refuse("url", "is missing: generic.template has {url}, the webhook's URL as it is registered at the PSP");
    }
    normalised::check(account)
}

fn pointer(setting: &'static str, text: Option<&str>) -> Result<Option<Pointer>, SettingError> {
    let Some(text) = text else { return Ok(None) };
    match Pointer::parse(text) {
        Some(pointer) => Ok(Some(pointer)),
        None => refuse(setting, format!("{text:?} is no JSON pointer such as /data/id")),
    }
}

fn header(setting: &'static str, text: &str) -> Result<HeaderName, SettingError> {
    let name = HeaderName::from_bytes(text.as_bytes());
    name.or_else(|_| refuse(setting, format!("{text:?} is no name of a header")))
}

/// One of a few words, or the default.
fn word<T: Copy>(setting: &'static str, text: Option<&str>, default: T, words: &[(&str, T)]) -> Result<T, SettingError> {
    let Some(text) = text else { return Ok(default) };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    refuse(setting, format!("{text:?} is none of {}", known.join(", ")))
}

impl Signing {
    /// `None` if nothing is said of a signature.
    fn read(settings: &Settings) -> Result<Option<Self>, SettingError> {
        let Settings { header: name, algorithm, encoding, prefix, template, timestamp_header, key_encoding, .. } = settings;
        let Some(name) = name else {
            let others = [algorithm, encoding, prefix, template, timestamp_header, key_encoding];
            return if others.iter().any(|other| other.is_some()) { Err(missing_header()) } else { Ok(None) };
        };
        let name = header("generic.header", name)?;
        let prefix = prefix.clone().unwrap_or_default();
        if !prefix.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) || prefix.starts_with(' ') {
            return refuse("generic.prefix", "is no text that a header begins with");
        }
        let template = Part::template(template.as_deref().unwrap_or("{body}"))?;
        let timestamp_header = timestamp_header.as_ref().map(|name| header("generic.timestamp_header", name)).transpose()?;
        match (&timestamp_header, template.contains(&Part::Timestamp)) {
            (Some(_), false) => {
                return refuse("generic.template", "has no {timestamp}: the time of timestamp_header would be unsigned");
            }
            (None, true) => return refuse("generic.timestamp_header", "is missing: the template has {timestamp}"),
            (Some(time), true) if *time == name => return refuse("generic.timestamp_header", "is the signature's header"),
            _ => {}
        }
        Ok(Some(Self {
            header: name,
            shown: "named by generic.header",
            algorithm: word(
                "generic.algorithm",
                algorithm.as_deref(),
                Algorithm::Sha256,
                &[("sha1", Algorithm::Sha1), ("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)],
            )?,
            encoding: word(
                "generic.encoding",
                encoding.as_deref(),
                Encoding::Hex,
                &[("hex", Encoding::Hex), ("base64", Encoding::Base64)],
            )?,
            prefix: prefix.into(),
            template: template.into(),
            timestamp_header,
            key_encoding: word(
                "generic.key_encoding",
                key_encoding.as_deref(),
                KeyEncoding::Utf8,
                &[("utf8", KeyEncoding::Utf8), ("hex", KeyEncoding::Hex), ("base64", KeyEncoding::Base64)],
            )?,
        }))
    }
}

impl Part {
    /// Reads text around `{body}`, `{timestamp}` and `{url}`, each once at most, the body once.
    fn template(text: &str) -> Result<Vec<Self>, SettingError> {
        const SETTING: &str = "generic.template";
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, opened) = rest.split_once('{').map_or((rest, None), |(literal, opened)| (literal, Some(opened)));
            if literal.contains('}') {
                return refuse(SETTING, format!("{text:?} has a brace that was not opened"));
            }
            if !literal.is_empty() {
                parts.push(Self::Text(literal.to_owned()));
            }
            let Some(opened) = opened else { break };
            let Some((name, after)) = opened.split_once('}') else {
                return refuse(SETTING, format!("{text:?} has a brace that is not closed"));
            };
            let part = match name {
                "body" => Self::Body,
                "timestamp" => Self::Timestamp,
                "url" => Self::Url,
                _ => return refuse(SETTING, format!("{name:?} in braces is none of {{body}}, {{timestamp}}, {{url}}")),
            };
            if parts.contains(&part) {
                return refuse(SETTING, format!("{{{name}}} is there twice"));
            }
            parts.push(part);
            rest = after;
        }
        if parts.contains(&Self::Body) {
            Ok(parts)
        } else {
            refuse(SETTING, "has no {body}: the signature would say nothing of it")
        }
    }
}

// ------------------------------------------------------------------------------------------------------ verification

pub(super) fn verify(
    signing: &Signing,
    request: &WebhookRequest<'_>,
    keys: &Keys,
    now: Timestamp,
) -> Result<Verified, Rejection> {
    let malformed = |problem| Rejection::MalformedHeader { header: signing.shown, problem };
    let text = signature::exactly_one_called(&request.headers.get_all(&signing.header), signing.shown)?;
    let digits = text.strip_prefix(&*signing.prefix).ok_or_else(|| malformed("it does not begin with its prefix"))?;
    let offered = Offered::read(signing.algorithm, signing.encoding, digits)
        .ok_or_else(|| malformed("it is no signature of this algorithm in this encoding"))?;
    let time = match &signing.timestamp_header {
        Some(name) => Some(signature::exactly_one_called(&request.headers.get_all(name), TIMESTAMP)?),
        None => None,
    };
    let no_seconds = Rejection::MalformedHeader { header: TIMESTAMP, problem: "it is no plain number of seconds" };
    let seconds = time.map(|time| signature::seconds(time).ok_or(no_seconds)).transpose()?;
    if request.body.is_empty() {
        return Err(Rejection::EmptyBody);
    }
    let mut signed: Vec<&[u8]> = Vec::with_capacity(signing.template.len());
    for part in signing.template.iter() {
        signed.push(match part {
            Part::Text(text) => text.as_bytes(),
            Part::Body => request.body,
            Part::Timestamp => time.unwrap_or_default().as_bytes(),
            // `check` refuses an account without it at start.
            Part::Url => keys.url.as_ref().ok_or(Rejection::Setting("url"))?.as_bytes(),
        });
    }
    let secret_name = signature::matching_secret(keys, now, |secret| {
        // `check` refuses such a secret at start; here it matches nothing.
        signing.key_encoding.key(secret.expose()).map_or(Choice::from(0), |key| offered.is_made_by(&key, &signed))
    })?;
    if let Some(seconds) = seconds {
        signature::within_tolerance(seconds, now, keys.tolerance_s)?;
    }
    Ok(Verified {
        webhook_id: normalised::event_id(request.body, keys).unwrap_or_else(|| signature::body_id(request.body)),
        event_type: normalised::event_type(request.body, keys),
        subject: None,
        secret_name,
        proof: Proof::Proven,
        content_type: signature::content_type(request.headers),
        headers: Vec::new(),
    })
}

/// A signature as it came.
enum Offered {
    Sha1([u8; 20]),
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Offered {
    fn read(algorithm: Algorithm, encoding: Encoding, text: &str) -> Option<Self> {
        fn digest<const N: usize>(encoding: Encoding, text: &str) -> Option<[u8; N]> {
            match encoding {
                Encoding::Hex => signature::lower_hex(text),
                Encoding::Base64 => signature::base64(text),
            }
        }
        match algorithm {
            Algorithm::Sha1 => digest(encoding, text).map(Self::Sha1),
            Algorithm::Sha256 => digest(encoding, text).map(Self::Sha256),
            Algorithm::Sha512 => digest(encoding, text).map(Self::Sha512),
        }
    }

    fn is_made_by(&self, key: &[u8], signed: &[&[u8]]) -> Choice {
        match self {
            Self::Sha1(offered) => offered.ct_eq(&signature::hmac_sha1(key, signed)),
            Self::Sha256(offered) => offered.ct_eq(&signature::hmac_sha256(key, signed)),
            Self::Sha512(offered) => offered.ct_eq(&signature::hmac_sha512(key, signed)),
        }
    }
}

impl KeyEncoding {
    /// `None` for what is no key in this encoding, and for an empty one. Wiped after use.
    fn key(self, secret: &str) -> Option<Zeroizing<Vec<u8>>> {
        let key = match self {
            Self::Utf8 => secret.as_bytes().to_vec(),
            Self::Hex => hex::decode(secret).ok()?,
            Self::Base64 => signature::EITHER_PADDING.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?,
        };
        (!key.is_empty()).then(|| Zeroizing::new(key))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use base64::engine::general_purpose::STANDARD;
    use http::{HeaderMap, HeaderValue};

    use super::super::tests::{self, NOW_S, Specimen, account};
    use super::*;

    /// With a time and with pointers, so that the tables meet all that there is.
    pub(in super::super) fn specimen() -> Specimen {
        Specimen {
            psp: &Generic,
            scheme: "generic",
            secret: "generic-secret-Test-01",
            other_secret: "generic-secret-Test-OLD",
            settings: |account| {
                let settings = Settings {
                    header: text("X-Acme-Signature"),
                    prefix: text("v1="),
                    template: text("{timestamp}.{body}"),
                    timestamp_header: text("X-Acme-Time"),
                    r#type: text("/kind"),
                    id: text("/number"),
                    amount: text("/sum/value"),
                    currency: text("/sum/unit"),
                    order: text("/orders/0"),
                    payment: text("/charge"),
                    ..Settings::default()
                };
                account.keys.generic = Some(Arc::new(Rules::new(settings).unwrap()));
            },
            sign: |secret, time_s, body| {
                let time = time_s.to_string();
                let mac = signature::hmac_sha256(secret.as_bytes(), &[time.as_bytes(), b".", body]);
                let signed = format!("v1={}", hex::encode(mac));
                (tests::headers([("x-acme-signature", signed), ("x-acme-time", time)]), body.to_vec())
            },
            body: br#"{"kind":"payment.pending"}"#,
            event_type: Some("payment.pending"),
            timed: true,
            any_body: true,
            unsigned_headers: &[],
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "settings are options")]
    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn signed_by(header: &str) -> Settings {
        Settings { header: text(header), ..Settings::default() }
    }

    const BODY: &[u8] = br#"{"type":"payment.pending"}"#;
    const SECRET: &str = "2b7e151628aed2a6abf7158809cf4f3c";

    /// What `verify` says of these headers, by the reason.
    fn reason(settings: Settings, secret: &str, pairs: &[(&'static str, String)]) -> &'static str {
        let mut account = account(&Generic, &[secret]);
        account.keys.url = text("https://shop.test/hooks");
        account.keys.generic = Some(Arc::new(Rules::new(settings).unwrap()));
        assert_eq!(Generic.check(&account), Ok(()));
        let header =
            |(name, value): &(&'static str, String)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        let headers: HeaderMap = pairs.iter().map(header).collect();
        let request = WebhookRequest { headers: &headers, body: BODY, token: None, query: "", certificate: None };
        let verdict = Generic.verify(&request, &account.keys, Timestamp::from_seconds(NOW_S));
        verdict.map_or_else(|rejection| rejection.reason(), |_| "accepted")
    }

    #[test]
    fn every_algorithm_encoding_and_key_form_is_read() {
        type Mac<'m> = &'m dyn Fn(&[u8]) -> Vec<u8>;
        let sha1 = |key: &[u8]| signature::hmac_sha1(key, &[BODY]).to_vec();
        let sha256 = |key: &[u8]| signature::hmac_sha256(key, &[BODY]).to_vec();
        let sha512 = |key: &[u8]| signature::hmac_sha512(key, &[BODY]).to_vec();
        let macs: [(&str, Mac<'_>); 3] = [("sha1", &sha1), ("sha256", &sha256), ("sha512", &sha512)];
        let base64_key = STANDARD.encode([7; 25]);
        let keys: [(&str, &str, Vec<u8>); 5] = [
            ("utf8", SECRET, SECRET.as_bytes().to_vec()),
            ("hex", SECRET, hex::decode(SECRET).unwrap()),
            ("base64", &base64_key, vec![7; 25]),
            ("base64", base64_key.trim_end_matches('='), vec![7; 25]),
            ("base64", &format!("whsec_{base64_key}"), vec![7; 25]),
        ];
        for (algorithm, mac) in macs {
            for (key_encoding, secret, key) in &keys {
                let settings = |encoding: &str| Settings {
                    algorithm: text(algorithm),
                    encoding: text(encoding),
                    key_encoding: text(key_encoding),
                    ..signed_by("x-sign")
                };
                let (hex, base64) = (hex::encode(mac(key)), STANDARD.encode(mac(key)));
                let heard =
                    |encoding: &str, signature: &str| reason(settings(encoding), secret, &[("x-sign", signature.to_owned())]);
                assert_eq!((heard("hex", &hex), heard("base64", &base64)), ("accepted", "accepted"), "{algorithm} {secret}");
                for (encoding, odd) in [
                    ("hex", base64.clone()),
                    ("base64", hex.clone()),
                    ("hex", hex.to_uppercase()),
                    ("hex", format!("{hex}00")),
                    ("hex", hex[2..].to_owned()),
                    ("hex", format!("sha256={hex}")),
                    ("base64", format!("{base64}=")),
                    ("base64", format!(" {base64}")),
                ] {
                    assert_eq!(heard(encoding, &odd), "malformed_header", "{algorithm} {encoding} {odd}");
                }
                assert_eq!(heard("hex", &"0".repeat(hex.len())), "signature_mismatch");
            }
        }
    }

    #[test]
    fn the_template_says_what_is_signed() {
        for (template, signed) in [
            ("{body}", [&b""[..], BODY, b""].concat()),
            ("{url}{body}", [&b"https://shop.test/hooks"[..], BODY].concat()),
            ("{timestamp}.{body}", [&b"1790000000."[..], BODY].concat()),
            ("v0:{timestamp}:{body}", [&b"v0:1790000000:"[..], BODY].concat()),
            ("{body}|{url}|{timestamp}!", [BODY, b"|https://shop.test/hooks|1790000000!"].concat()),
        ] {
            let timestamp_header = template.contains("{timestamp}").then(|| "x-time".to_owned());
            let settings =
                || Settings { template: text(template), timestamp_header: timestamp_header.clone(), ..signed_by("x-sign") };
            let mac = hex::encode(signature::hmac_sha256(SECRET.as_bytes(), &[&signed]));
            let pairs = [("x-sign", mac), ("x-time", "1790000000".to_owned())];
            assert_eq!(reason(settings(), SECRET, &pairs), "accepted", "{template}");
            if template.contains("{timestamp}") {
                let at = |time: &str| reason(settings(), SECRET, &[pairs[0].clone(), ("x-time", time.to_owned())]);
                assert_eq!(
                    (at("1790000001"), at("01790000000"), at("soon")),
                    ("signature_mismatch", "malformed_header", "malformed_header")
                );
                assert_eq!(reason(settings(), SECRET, &pairs[..1]), "missing_header");
            }
        }
    }

    #[test]
    fn settings_that_prove_nothing_are_refused_by_name() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = signed_by("x-sign");
            change(&mut settings);
            Rules::new(settings).map(|_| ()).map_err(|error| error.setting)
        };
        assert_eq!(with(|_| ()), Ok(()));
        for (change, setting) in [
            ((|s| s.header = None) as fn(&mut Settings), None),
            (|s| *s = Settings { algorithm: text("sha256"), ..Settings::default() }, Some("generic.header")),
            (|s| *s = Settings { prefix: text("x"), ..Settings::default() }, Some("generic.header")),
            (|s| s.header = text(""), Some("generic.header")),
            (|s| s.header = text("x sign"), Some("generic.header")),
            (|s| s.algorithm = text("md5"), Some("generic.algorithm")),
            (|s| s.algorithm = text("SHA256"), Some("generic.algorithm")),
            (|s| s.encoding = text("base64url"), Some("generic.encoding")),
            (|s| s.key_encoding = text(""), Some("generic.key_encoding")),
            (|s| s.prefix = text("\n"), Some("generic.prefix")),
            (|s| s.template = text(""), Some("generic.template")),
            (|s| s.template = text("body"), Some("generic.template")),
            (|s| s.template = text("{url}"), Some("generic.template")),
            (|s| s.template = text("{body"), Some("generic.template")),
            (|s| s.template = text("{body}}"), Some("generic.template")),
            (|s| s.template = text("{body}{body}"), Some("generic.template")),
            (|s| s.template = text("{body}{id}"), Some("generic.template")),
            (|s| s.template = text("{timestamp}.{body}"), Some("generic.timestamp_header")),
            (|s| s.timestamp_header = text("x-time"), Some("generic.template")),
            (
                |s| (s.timestamp_header, s.template) = (text("X-SIGN"), text("{timestamp}{body}")),
                Some("generic.timestamp_header"),
            ),
            (|s| s.id = text("id"), Some("generic.id")),
            (|s| s.r#type = text(""), Some("generic.type")),
            (|s| s.order = text("/~"), Some("generic.order")),
            (|s| s.payment = text("$.id"), Some("generic.payment")),
            (|s| s.amount = text("amount"), Some("generic.amount")),
            (|s| s.currency = text(" /x"), Some("generic.currency")),
        ] {
            assert_eq!(with(change), setting.map_or(Ok(()), Err));
        }
    }

    #[test]
    fn an_account_lacks_nothing_that_its_rules_need() {
        let check = |settings: Option<Settings>, secret: &str, change: fn(&mut Account)| {
            let mut account = account(&Generic, &[secret]);
            account.keys.generic = settings.map(|settings| Arc::new(Rules::new(settings).unwrap()));
            change(&mut account);
            Generic.check(&account).map_err(|error| error.setting)
        };
        assert_eq!(check(None, "x", |_| ()), Err("generic.header"));
        assert_eq!(check(Some(Settings { id: text("/id"), ..Settings::default() }), "x", |_| ()), Err("generic.header"));
        assert_eq!(check(Some(signed_by("x-sign")), "x", |_| ()), Ok(()));
        let by = |key_encoding: &str| Some(Settings { key_encoding: text(key_encoding), ..signed_by("x-sign") });
        for (key_encoding, bad) in [("hex", "abc"), ("hex", "xx"), ("base64", "@@@@"), ("base64", "whsec_"), ("base64", "a")] {
            assert_eq!(check(by(key_encoding), bad, |_| ()), Err("secrets"), "{key_encoding} {bad}");
        }
        let url = || Some(Settings { template: text("{url}{body}"), ..signed_by("x-sign") });
        assert_eq!(check(url(), "x", |_| ()), Err("url"));
        assert_eq!(check(url(), "x", |account| account.keys.url = text("https://shop.test")), Ok(()));
        let order = Some(Settings { order: text("/order"), ..signed_by("x-sign") });
        let both = |account: &mut Account| account.order_reference = Some(vec!["order".to_owned()]);
        assert_eq!(check(order, "x", both), Err("generic.order"));
    }

    #[test]
    fn an_event_is_named_by_what_is_signed() {
        let body = br#"{"kind":"payment.pending","number":77,"charge":"ch_1"}"#;
        let specimen = specimen();
        assert_eq!(specimen.envelope(body).webhook_id, "77");
        for unnamed in [&br#"{"kind":"payment.pending"}"#[..], br#"{"number":[]}"#, b"no json"] {
            assert_eq!(specimen.envelope(unnamed).webhook_id, signature::body_id(unnamed));
        }
    }
}
