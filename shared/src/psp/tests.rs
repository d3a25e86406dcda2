//! What holds for every adapter, as tables over [`ALL`]; an adapter's own rules are tested in its file.
//!
//! Each adapter's tests say how its PSP signs ([`Specimen`]). Those signers are for these tests only; the simulator has its
//! own, and both answer to the same vectors.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::event::{ANSWER_PREFIX, EventKey, Fact, PaymentState, Reference, ReferenceKind, RefundState};

pub(super) const NOW_S: i64 = 1_790_000_000;
/// All that was until then.
pub(super) const WHOLE: Window = Window { since: Timestamp::from_seconds(0), until: Timestamp::from_seconds(NOW_S) };

/// From a time until [`NOW_S`].
pub(super) const fn since(since: Timestamp) -> Window {
    Window { since, ..WHOLE }
}
const TOLERANCE_S: u32 = 300;

/// The headers and the body of a call.
type Sent = (HeaderMap, Vec<u8>);

/// What the tables must know of an adapter, once for each of its schemes.
pub(super) struct Specimen {
    pub psp: &'static dyn Psp,
    pub scheme: &'static str,
    /// Two that `check` takes.
    pub secret: &'static str,
    pub other_secret: &'static str,
    /// Other settings that the account needs; it may move the secret to where the adapter verifies by it.
    pub settings: fn(&mut Account),
    /// The headers and the body that the PSP would send; the latter differs from what is signed where the signature is in it.
    pub sign: fn(secret: &str, time_s: i64, body: &[u8]) -> Sent,
    /// Something to sign, as the PSP writes it.
    pub body: &'static [u8],
    /// What `verify` says that it is.
    pub event_type: Option<&'static str>,
    /// The signature covers a time, which is judged.
    pub timed: bool,
    /// `sign` takes any bytes: the signature covers the body as it is.
    pub any_body: bool,
    /// A header of which the signature says nothing, though the adapter reads it.
    pub unsigned_headers: &'static [&'static str],
}

/// Headers that a PSP may send more than once, by its id: one line for each secret, any of which may match.
const REPEATED_HEADERS: [(&str, &str); 1] = [("mollie", "x-mollie-signature")];

/// One for each scheme of each adapter. The order is that of [`ALL`].
fn specimens() -> Vec<Specimen> {
    vec![
        super::stripe::tests::specimen(),
        super::adyen::tests::specimen(),
        super::adyen::tests::platform_specimen(),
        super::paypal::tests::specimen(),
        super::square::tests::specimen(),
        super::razorpay::tests::specimen(),
        super::mollie::tests::specimen(),
        super::mollie::tests::classic_specimen(),
        super::checkoutcom::tests::specimen(),
        super::gocardless::tests::specimen(),
        super::paystack::tests::specimen(),
        super::flutterwave::tests::specimen_v3(),
        super::flutterwave::tests::specimen_v4(),
        super::flutterwave::tests::specimen_v4_plain(),
        super::braintree::tests::specimen(),
        super::coinbase_commerce::tests::specimen(),
        super::klarna::tests::specimen(),
        super::standard_webhooks::tests::specimen(),
        super::svix::tests::specimen(),
        super::shopify::tests::specimen(),
        super::github::tests::specimen(),
        super::generic::tests::specimen(),
    ]
}

fn specimen(id: &str) -> Specimen {
    specimens().into_iter().find(|specimen| specimen.name() == id).unwrap()
}

impl Specimen {
    /// The adapter's id, and the scheme's name behind it where it is not the default.
    pub(super) fn name(&self) -> String {
        let default = self.psp.profile().schemes[0].name;
        let scheme = if self.scheme == default { String::new() } else { format!("-{}", self.scheme) };
        format!("{}{scheme}", self.psp.id())
    }

    pub(super) fn account(&self, secrets: &[&str]) -> Account {
        let mut account = account(self.psp, secrets);
        account.keys.scheme = self.psp.profile().scheme(self.scheme).unwrap().name;
        (self.settings)(&mut account);
        account
    }

    fn scheme(&self) -> &'static Scheme {
        self.psp.profile().scheme(self.scheme).unwrap()
    }

    /// It verifies by secrets, and not by one other setting.
    fn has_secrets(&self) -> bool {
        !self.account(&[self.secret]).keys.secrets.is_empty()
    }

    /// What lies where a call says that its certificate is: `fixtures/<psp>/certificates/good.pem`.
    fn certificate(&self) -> Option<Vec<u8>> {
        std::fs::read(fixtures_folder(&self.name()).join("certificates/good.pem")).ok()
    }

    /// With the token, where one stands in the path.
    fn verify_as(&self, secrets: &[&str], token: &str, headers: &HeaderMap, body: &[u8]) -> Result<Verified, Rejection> {
        let token = self.scheme().token_in_path.then_some(token);
        let certificate = self.certificate();
        let request = WebhookRequest { headers, body, token, query: "", certificate: certificate.as_deref() };
        self.psp.verify(&request, &self.account(secrets).keys, Timestamp::from_seconds(NOW_S))
    }

    pub(super) fn verify(&self, secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Result<Verified, Rejection> {
        self.verify_as(secrets, self.secret, headers, body)
    }

    pub(super) fn envelope(&self, body: &[u8]) -> Envelope {
        let (headers, body) = (self.sign)(self.secret, NOW_S, body);
        let verified = self.verify(&[self.secret], &headers, &body).unwrap();
        Envelope::new(&self.account(&[self.secret]), verified, Timestamp::from_seconds(NOW_S), body.into(), None)
    }

    /// The webhook bodies beside the adapter, by name: `fixtures/<psp>`, or `fixtures/<psp>-<scheme>` for another scheme than
    /// the default. As they are before `sign`.
    fn fixtures(&self) -> Vec<(String, Vec<u8>)> {
        fixtures_in(&self.name())
    }
}

pub(super) fn account(psp: &'static dyn Psp, secrets: &[&str]) -> Account {
    let named = |(number, secret): (usize, &&str)| Secret::new(format!("secrets[{number}]"), *secret);
    let secrets = secrets.iter().enumerate().map(named).collect();
    Account {
        psp,
        psp_id: psp.id().into(),
        name: "default".into(),
        mode: Mode::Test,
        keys: Keys { secrets, tolerance_s: TOLERANCE_S, ..Keys::default() },
        api: Api { key: Some(Secret::new("api_key", "sk_test_invented")), ..Api::default() },
        order_reference: None,
        capture: Capture::default(),
    }
}

pub(super) fn verify(psp: &'static dyn Psp, secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Result<Verified, Rejection> {
    let request = WebhookRequest { headers, body, token: None, query: "", certificate: None };
    psp.verify(&request, &account(psp, secrets).keys, Timestamp::from_seconds(NOW_S))
}

/// Headers by their names.
pub(super) fn headers<const N: usize>(pairs: [(&'static str, String); N]) -> HeaderMap {
    let header = |(name, value): (&'static str, String)| (HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
    pairs.into_iter().map(header).collect()
}

fn fixtures_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/psp/fixtures").join(name)
}

fn fixtures_in(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fixtures_folder(folder);
    let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let read = |path: PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
    let mut fixtures: Vec<_> = paths.map(read).collect();
    fixtures.sort();
    assert!(!fixtures.is_empty(), "{} has no fixtures", folder.display());
    fixtures
}

/// `forgery` with the first four of its `?` replaced so that its CRC-32 is that of `original`.
pub(super) fn forged_to_the_same_crc32(original: &[u8], forgery: &[u8]) -> Vec<u8> {
    let place = forgery.windows(4).position(|window| window == b"????").unwrap();
    let with = |patch: u32| {
        let mut bytes = forgery.to_vec();
        bytes[place..place + 4].copy_from_slice(&patch.to_le_bytes());
        bytes
    };
    // CRC-32 is affine: each bit of the patch flips the same bits of the sum, whatever the others are. So the patch is the
    // solution of 32 linear equations.
    let base = crc32fast::hash(&with(0));
    let mut rows: Vec<(u32, u32)> = (0..32).map(|bit| (crc32fast::hash(&with(1 << bit)) ^ base, 1 << bit)).collect();
    let (mut wanted, mut patch) = (base ^ crc32fast::hash(original), 0);
    for bit in 0..32 {
        let pivot = rows.iter().position(|(sum, _)| sum >> bit & 1 == 1).unwrap();
        let (pivot_sum, pivot_patch) = rows.swap_remove(pivot);
        for (sum, patch) in rows.iter_mut().filter(|(sum, _)| sum >> bit & 1 == 1) {
            (*sum, *patch) = (*sum ^ pivot_sum, *patch ^ pivot_patch);
        }
        if wanted >> bit & 1 == 1 {
            (wanted, patch) = (wanted ^ pivot_sum, patch ^ pivot_patch);
        }
    }
    let forged = with(patch);
    assert_eq!((crc32fast::hash(&forged), wanted), (crc32fast::hash(original), 0));
    forged
}

/// The webhook bodies beside the adapter, by name.
pub(super) fn fixtures(psp: &dyn Psp) -> Vec<(String, Vec<u8>)> {
    fixtures_in(psp.id())
}

/// The envelope of a body that the PSP signed, by its default scheme.
pub(super) fn envelope(psp: &'static dyn Psp, body: &[u8]) -> Envelope {
    specimen(psp.id()).envelope(body)
}

/// The requests that make an endpoint and change it in every way, as a person reads them, without credentials.
pub(super) fn changes(psp: &'static dyn Psp, wanted: WantedEndpoint, id: &str) -> String {
    let specimen = specimen(psp.id());
    let account = specimen.account(&[specimen.secret]);
    let url = "https://pay.example/webhooks/here";
    let events = ["one".to_owned(), "two".to_owned()];
    let update = |url, events, enable| EndpointChange::Update { id, url, events, enable };
    let changes = [
        EndpointChange::Create { url, wanted },
        update(Some(url), None, false),
        update(None, Some(&events[..]), false),
        update(None, None, true),
        update(Some(url), Some(&events[..]), true),
    ];
    let mut shown = String::new();
    for change in &changes {
        let EndpointChange::Update { url, events, enable, .. } = change else {
            shown += "create:";
            shown += &show(psp.change_endpoint_request(change, &account), specimen.secret);
            continue;
        };
        let (url, events) = (url.is_some(), events.is_some());
        shown = format!("{shown}update (url: {url}, events: {events}, enable: {enable}):");
        shown += &show(psp.change_endpoint_request(change, &account), specimen.secret);
    }
    shown
}

fn show(request: Result<Request<Bytes>, AskError>, secret: &str) -> String {
    match request {
        Err(error) => format!(" {error}\n\n"),
        Ok(request) => {
            let headers = request.headers().iter().filter(|(_, value)| !value.is_sensitive());
            let headers: Vec<String> = headers.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
            let headers = headers.concat();
            let body = String::from_utf8(request.body().to_vec()).unwrap().replace(secret, "(the secret)");
            format!("\n{} {}\n{headers}{}\n\n", request.method(), request.uri(), body.replace('&', "\n&"))
        }
    }
}

/// Reads what the PSP answers to a change.
pub(super) fn changed(psp: &dyn Psp, status: u16, body: &str) -> Result<ChangedEndpoint, ReadError> {
    let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    psp.read_changed_endpoint(&response)
}

/// The name of any specimen.
fn any_specimen() -> impl Strategy<Value = String> {
    prop::sample::select(specimens().iter().map(Specimen::name).collect::<Vec<_>>())
}

// -------------------------------------------------------------------------------------------------------- tables

#[test]
fn every_adapter_is_found_by_an_id_of_its_own() {
    let ids: BTreeSet<&str> = ALL.iter().map(|psp| psp.id()).collect();
    assert_eq!(ids.len(), ALL.len());
    for psp in ALL {
        assert_eq!(find(psp.id()).unwrap().id(), psp.id());
        let profile = psp.profile();
        assert!(profile.translate_headers.iter().all(|name| *name == name.to_ascii_lowercase()), "{}", psp.id());
        assert!(!profile.schemes.is_empty(), "{}", psp.id());
        assert!(profile.sources.iter().all(|network| network.parse::<ipnet::IpNet>().is_ok()), "{}", psp.id());
        assert!(profile.mapping_version >= 1 && profile.retry_window > profile.timeout, "{}", psp.id());
    }
    assert!(find("unheard-of").is_none());
}

#[test]
fn every_vector_has_its_verdict() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("fixtures/vectors.json")).unwrap();
    let mut tried: BTreeSet<&str> = BTreeSet::new();
    for vector in vectors.as_array().unwrap() {
        let Some(psp) = find(vector["psp"].as_str().unwrap()) else { continue };
        let text = |key: &str| vector[key].as_str().map(str::to_owned);
        let id = vector["id"].as_str().unwrap();
        let mut headers = HeaderMap::new();
        for (name, values) in vector["headers"].as_object().unwrap() {
            let values = values.as_array().cloned().unwrap_or_else(|| vec![values.clone()]);
            for value in values {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
            }
        }
        let secrets: Vec<&str> = vector["secrets"].as_array().unwrap().iter().map(|secret| secret.as_str().unwrap()).collect();
        let mut keys = account(psp, &secrets).keys;
        keys.tolerance_s = vector["tolerance_seconds"].as_u64().map_or(TOLERANCE_S, |seconds| seconds.try_into().unwrap());
        keys.scheme = psp.profile().scheme(&text("scheme").unwrap()).map_or("", |scheme| scheme.name);
        keys.url = text("url");
        keys.webhook_id = text("webhook_id");
        keys.public_key = text("public_key");
        keys.trusted_root = text("trusted_root_pem");
        tried.insert(psp.id());
        if let Some(query) = vector["query"].as_object() {
            let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
            assert_eq!(psp.challenge(&pairs.join("&"), &keys), text("response_body"), "{id}");
            continue;
        }
        let body = STANDARD.decode(vector["body_base64"].as_str().unwrap()).unwrap();
        let now = Timestamp::from_seconds(vector["verify_at"].as_i64().unwrap_or(NOW_S));
        let certificate = text("cert_pem");
        // Where nothing is signed, the token in the path is all that there is.
        let token = psp.profile().scheme(keys.scheme).filter(|scheme| scheme.token_in_path).map(|_| "token");
        keys.secrets.extend(token.map(|token| Secret::new("secrets[0]", token)));
        let request = WebhookRequest {
            headers: &headers,
            body: &body,
            token,
            query: "",
            certificate: certificate.as_ref().map(String::as_bytes),
        };
        let verdict = psp.verify(&request, &keys, now);
        // Stripe's SDKs take any time in the future; we do not.
        let expected = vector["expected"] != "invalid" && id != "stripe-future-600s";
        assert_eq!(verdict.is_ok(), expected, "{id} ({}): {verdict:?}", vector["why"]);
    }
    // The generic adapter's vectors are Shopify's and GitHub's.
    for psp in ALL.iter().filter(|psp| psp.id() != "generic" && psp.id() != "klarna") {
        assert!(tried.contains(&psp.id()), "{} has no vectors", psp.id());
    }
}

#[test]
fn every_scheme_of_every_adapter_has_its_specimen() {
    let schemes: BTreeSet<String> = specimens().iter().map(Specimen::name).collect();
    for psp in ALL.iter().filter(|psp| psp.id() != "standard-webhooks") {
        for scheme in psp.profile().schemes {
            assert!(
                specimens().iter().any(|specimen| specimen.psp.id() == psp.id() && specimen.scheme == scheme.name),
                "{} {} is not tested",
                psp.id(),
                scheme.name
            );
        }
    }
    assert_eq!(schemes.len(), specimens().len());
}

#[test]
fn a_genuine_webhook_is_accepted_under_any_of_the_secrets() {
    for specimen in specimens() {
        let Specimen { psp, secret, other_secret, .. } = specimen;
        let (headers, body) = (specimen.sign)(secret, NOW_S, specimen.body);
        let cases = if specimen.has_secrets() {
            vec![(vec![secret], "secrets[0]"), (vec![other_secret, secret], "secrets[1]")]
        } else {
            vec![(vec![secret], "webhook_id")]
        };
        for (secrets, name) in cases {
            let verified = specimen.verify(&secrets, &headers, &body).unwrap();
            assert_eq!(verified.secret_name(), name, "{}", specimen.name());
            assert_eq!(verified.event_type.as_deref(), specimen.event_type, "{}", specimen.name());
            assert_eq!(verified.proof(), specimen.scheme().proof, "{}", specimen.name());
            let kept: Vec<&str> = verified.headers.iter().map(|(name, _)| name.as_str()).collect();
            assert!(kept.iter().all(|name| psp.profile().translate_headers.contains(name)), "{}", specimen.name());
        }
    }
}

#[test]
fn a_secret_counts_only_in_its_time() {
    for specimen in specimens().into_iter().filter(Specimen::has_secrets) {
        let (headers, body) = (specimen.sign)(specimen.secret, NOW_S, specimen.body);
        let now = Timestamp::from_seconds(NOW_S);
        let (before, after) = (Timestamp::from_seconds(NOW_S - 1), Timestamp::from_seconds(NOW_S + 1));
        for (from, until, valid) in
            [(Some(now), Some(after), true), (Some(before), None, true), (None, Some(now), false), (Some(after), None, false)]
        {
            let mut keys = specimen.account(&[specimen.secret]).keys;
            keys.secrets = keys.secrets.into_iter().map(|secret| secret.valid(from, until)).collect();
            let token = specimen.scheme().token_in_path.then_some(specimen.secret);
            let request = WebhookRequest { headers: &headers, body: &body, token, query: "", certificate: None };
            assert_eq!(specimen.psp.verify(&request, &keys, now).is_ok(), valid, "{} {from:?} {until:?}", specimen.name());
        }
    }
}

#[test]
fn what_is_not_genuine_is_refused_for_its_reason() {
    for specimen in specimens() {
        let Specimen { secret, other_secret, .. } = specimen;
        let reason = |secrets: &[&str], headers: &HeaderMap, body: &[u8]| {
            specimen.verify(secrets, headers, body).map_or_else(|rejection| rejection.reason(), |_| "accepted")
        };
        let at = |time_s| (specimen.sign)(secret, time_s, specimen.body);
        let (genuine, body) = at(NOW_S);
        let id = specimen.name();
        let mismatch = if specimen.scheme().token_in_path { "token" } else { "signature_mismatch" };
        assert_eq!(reason(&[other_secret], &genuine, &body), mismatch, "{id}");
        if specimen.any_body {
            assert_eq!(reason(&[secret], &genuine, &body[..body.len() - 1]), mismatch, "{id}");
            assert_eq!(reason(&[secret], &genuine, &[&body, &b"\n"[..]].concat()), mismatch, "{id}");
            assert_eq!(reason(&[secret], &(specimen.sign)(secret, NOW_S, b"").0, b""), "empty_body", "{id}");
        }
        assert_ne!(reason(&[secret], &genuine, b""), "accepted", "{id}");
        if specimen.timed {
            let tolerance = i64::from(TOLERANCE_S);
            for (time_s, expected) in [
                (NOW_S - tolerance, "accepted"),
                (NOW_S + tolerance, "accepted"),
                (NOW_S - tolerance - 1, "too_old"),
                (NOW_S + tolerance + 1, "too_new"),
                (0, "too_old"),
            ] {
                assert_eq!(reason(&[secret], &at(time_s).0, &body), expected, "{id} at {time_s}");
            }
            // A stale time on a forged webhook must not read as "compare the clocks".
            assert_eq!(reason(&[other_secret], &at(0).0, &body), "signature_mismatch", "{id}");
        }
        for (name, value) in &genuine {
            if specimen.unsigned_headers.contains(&name.as_str()) {
                continue;
            }
            let mut missing = genuine.clone();
            missing.remove(name);
            assert_eq!(reason(&[secret], &missing, &body), "missing_header", "{id} without {name}");
            let mut doubled = genuine.clone();
            doubled.append(name, value.clone());
            let may_repeat = REPEATED_HEADERS.contains(&(specimen.psp.id(), name.as_str()));
            let expected = if may_repeat { "accepted" } else { "duplicate_header" };
            assert_eq!(reason(&[secret], &doubled, &body), expected, "{id} with two {name}");
            for malformed in ["", ",", " ", "=", "x", "\u{ff}"] {
                let mut broken = genuine.clone();
                broken.insert(name, HeaderValue::from_bytes(malformed.as_bytes()).unwrap());
                assert_ne!(reason(&[secret], &broken, &body), "accepted", "{id} with {name}: {malformed:?}");
            }
        }
    }
}

#[test]
fn an_account_that_could_verify_nothing_is_refused_at_start() {
    for specimen in specimens() {
        let Specimen { psp, secret, other_secret, .. } = specimen;
        let account = |secrets: &[&str]| specimen.account(secrets);
        assert_eq!(psp.check(&account(&[secret, other_secret])), Ok(()), "{}", specimen.name());
        let setting = if specimen.has_secrets() { "secrets" } else { "webhook_id" };
        for secrets in [&[][..], &[""], &[secret, ""], &["has a space"], &["whsec_x\n"]] {
            // A setting that is no list has one value.
            if !specimen.has_secrets() && secrets.first() == Some(&secret) {
                continue;
            }
            // Razorpay's are what people type (vector `razorpay-valid`).
            if psp.id() == "razorpay" && secrets == ["has a space"] {
                continue;
            }
            let error = psp.check(&account(secrets)).unwrap_err();
            assert_eq!(error.setting, setting, "{}", specimen.name());
            assert!(!error.to_string().contains("has a space"), "a secret is printed");
        }
    }
}

/// What the adapter makes of an authentic body, whether it is a fact, a hint, or neither.
fn meaning(specimen: &Specimen, envelope: &Envelope) -> serde_json::Value {
    let account = specimen.account(&[specimen.secret]);
    let translated = match envelope.proof {
        Proof::Proven => specimen.psp.translate(envelope, &account).map(|events| serde_json::to_value(events).unwrap()),
        Proof::Hint => specimen.psp.hinted(envelope, &account).map(|payments| serde_json::json!({ "asks about": payments })),
    };
    translated.unwrap_or_else(|error| match error {
        TranslateError::Ignored(reason) => serde_json::json!({ "ignored": reason }),
        TranslateError::Unintelligible { reason, pointer } => serde_json::json!({ "unintelligible": reason, "pointer": pointer }),
    })
}

#[test]
fn every_fixture_translates_as_recorded() {
    for specimen in specimens() {
        for (name, body) in specimen.fixtures() {
            insta::assert_json_snapshot!(format!("{}-{name}", specimen.name()), meaning(&specimen, &specimen.envelope(&body)));
        }
    }
}

#[test]
fn events_are_keyed_by_account_and_webhook_and_lead_to_their_payment() {
    for specimen in specimens() {
        for (name, body) in specimen.fixtures() {
            let envelope = specimen.envelope(&body);
            let events = specimen.psp.translate(&envelope, &specimen.account(&[specimen.secret])).unwrap_or_default();
            let keys: BTreeSet<&EventKey> = events.iter().map(|event| &event.key).collect();
            assert_eq!(keys.len(), events.len(), "{name}: each event has a key of its own");
            for event in &events {
                assert_eq!((&*event.key.psp, &*event.key.account), (specimen.psp.id(), "default"), "{name}");
                assert!(!event.key.event_id.starts_with(ANSWER_PREFIX), "{name}: that is for answers");
                let payment = Reference::new(ReferenceKind::Payment, event.payment_id.as_str());
                assert!(event.references.contains(&payment), "{name}");
                let distinct: BTreeSet<&Reference> = event.references.iter().collect();
                assert_eq!(distinct.len(), event.references.len(), "{name}");
            }
        }
    }
}

/// A type that is new to us is recorded as ignored, whatever PSP invents it: a fixture of each, with its type replaced.
#[test]
fn an_unknown_type_is_ignored() {
    for (name, fixture, kind) in [
        ("stripe", "payment_intent.succeeded", "payment_intent.succeeded"),
        ("adyen", "authorisation", "AUTHORISATION"),
        ("square", "payment.created.pending", "payment.created"),
        ("razorpay", "payment.authorized", "payment.authorized"),
        ("mollie", "payment.paid", "payment.paid"),
        ("checkoutcom", "payment_approved", "payment_approved"),
        ("gocardless", "mandates.cancelled", "mandates"),
        ("paystack", "charge.success", "charge.success"),
        ("flutterwave-v4", "charge.completed", "charge.completed"),
        ("braintree", "transaction_settled", "transaction_settled"),
        ("coinbase-commerce", "charge.confirmed", "charge:confirmed"),
        ("standard-webhooks", "payment.captured", "payment.captured"),
        ("svix", "payment.captured", "payment.captured"),
        ("shopify", "payment.captured", "payment.captured"),
        ("github", "payment.captured", "payment.captured"),
        ("generic", "payment.captured", "payment.captured"),
    ] {
        let specimen = specimen(name);
        let (_, body) = specimen.fixtures().into_iter().find(|(known, _)| known == fixture).unwrap();
        let text = String::from_utf8(body).unwrap();
        assert!(text.contains(kind), "{name}");
        let envelope = specimen.envelope(text.replace(kind, "unheard_of").as_bytes());
        let meaning = meaning(&specimen, &envelope);
        assert!(meaning.get("ignored").is_some(), "{name}: {meaning}");
    }
}

/// A status that is new to us is pending: never a failure, and never money. A fixture of each PSP whose events leave it to the
/// object's status how it stands, with that replaced.
#[test]
fn an_unknown_status_is_neither_a_failure_nor_money() {
    for (name, fixture, status) in [
        ("stripe", "refund.created", "/data/object/status"),
        ("square", "payment.updated.approved", "/data/object/payment/status"),
        ("mollie", "payment.pending", "/_embedded/entity/status"),
        ("flutterwave-v4", "charge.completed", "/data/status"),
    ] {
        let specimen = specimen(name);
        let (_, body) = specimen.fixtures().into_iter().find(|(known, _)| known == fixture).unwrap();
        let mut document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        *document.pointer_mut(status).unwrap() = "unheard_of".into();
        let envelope = specimen.envelope(document.to_string().as_bytes());
        for event in specimen.psp.translate(&envelope, &specimen.account(&[specimen.secret])).unwrap() {
            let is_open = match &event.fact {
                Fact::Payment(fact) => fact.state == PaymentState::Pending && fact.captured.is_none(),
                Fact::Refund { state, .. } => *state == RefundState::Pending,
                Fact::Capture { .. } | Fact::RefundTotal { .. } | Fact::Dispute { .. } => false,
            };
            assert!(is_open, "{name}: {event:?}");
        }
    }
}

/// What the PSPs' own documentation, specifications or SDKs show to be there (or, where it says `false`, not to be there for a
/// merchant) may not be missing here, nor be claimed.
#[test]
fn every_documented_api_is_supported_and_no_other_is_claimed() {
    for (id, payment_status, event_list, endpoint_list) in [
        ("stripe", true, true, true),
        // No API tells a payment's state by its pspReference; webhooks are listed by the management API.
        ("adyen", false, false, true),
        ("paypal", true, true, true),
        ("square", true, true, true),
        // Endpoints: for partners only.
        ("razorpay", true, true, false),
        ("mollie", true, true, true),
        ("checkoutcom", true, true, true),
        // Endpoints: in the dashboard only; the API lists deliveries.
        ("gocardless", true, true, false),
        ("paystack", true, true, false),
        ("braintree", true, true, false),
        ("coinbase-commerce", true, true, false),
        ("klarna", true, false, false),
        ("standard-webhooks", false, false, false),
    ] {
        let can = find(id).unwrap().profile().can;
        assert_eq!((can.payment_status, can.event_list, can.endpoint_list), (payment_status, event_list, endpoint_list), "{id}");
    }
}

/// Settled payments are left to lists alone as far as these show what becomes of them.
#[test]
fn lists_are_trusted_with_what_they_show() {
    for psp in ALL {
        let (can, list) = (psp.profile().can, psp.profile().list);
        let shows = match psp.id() {
            // Logs of events, objects by their last change, and a list that says whom to ask about.
            "stripe" | "gocardless" | "coinbase-commerce" | "square" | "paypal" => LateChanges::All,
            // Refunds and disputes by when they were made.
            "razorpay" | "mollie" | "paystack" | "braintree" => LateChanges::Begun,
            _ => LateChanges::Unlisted,
        };
        assert_eq!(can.late_changes, shows, "{}", psp.id());
        let is_log = list.is_some_and(|list| list.is_log);
        assert_eq!(is_log, ["stripe", "gocardless", "coinbase-commerce"].contains(&psp.id()), "{}", psp.id());
        if let Some(list) = list {
            assert!(list.lag >= list.every.min(Listing::USUAL.lag) && list.slice.is_none_or(|slice| slice > list.lag * 2));
            assert!(list.reach.is_none_or(|reach| reach >= list.lag * 100), "{}", psp.id());
        }
    }
}

/// What an adapter says that it can be asked builds a request, and what it says that it cannot does not.
#[test]
fn abilities_are_what_requests_can_be_built_for() {
    for specimen in specimens() {
        let mut account = specimen.account(&[specimen.secret]);
        account.api.client_id.get_or_insert_with(|| "client".to_owned());
        account.api.merchant_id.get_or_insert_with(|| "merchant".to_owned());
        let (psp, can) = (specimen.psp, specimen.psp.profile().can);
        let status = psp.status_request("unheard-of", None, &account);
        assert_eq!(status.err() != Some(AskError::Unsupported), can.payment_status, "{}: payment status", specimen.name());
        let events = psp.events_request(WHOLE, None, &account);
        assert_eq!(events.err() != Some(AskError::Unsupported), can.event_list, "{}: event list", specimen.name());
        assert_eq!(psp.profile().list.is_some(), can.event_list, "{}: how its list is read", specimen.name());
        let endpoints = psp.endpoints_request(None, &account);
        assert_eq!(endpoints.err() != Some(AskError::Unsupported), can.endpoint_list, "{}: endpoint list", specimen.name());
    }
}

/// Whoever lists endpoints knows what ours must be like, in each scheme whose webhooks come to an endpoint; nobody else claims to.
#[test]
fn what_an_endpoint_must_be_like_is_known_where_endpoints_are_listed() {
    for specimen in specimens() {
        let wanted = specimen.psp.wanted_endpoint(&specimen.account(&[specimen.secret]));
        let without = ["adyen-adyen-platform-header", "mollie-mollie-classic-unsigned"];
        let expected = specimen.psp.profile().can.endpoint_list && !without.contains(&specimen.name().as_str());
        assert_eq!(wanted.is_some(), expected, "{}", specimen.name());
        if let Some(wanted) = wanted {
            let distinct: BTreeSet<&&str> = wanted.events.iter().collect();
            assert!(distinct.len() == wanted.events.len() && !wanted.events.is_empty(), "{}", specimen.name());
            assert!(wanted.api_version.is_none_or(|version| version.as_bytes()[..4].iter().all(u8::is_ascii_digit)));
        }
        assert!(!specimen.psp.endpoint_by_hand().is_empty());
    }
}

#[test]
fn the_order_is_found_where_the_setting_says() {
    for (psp, body, path) in [
        (
            find("stripe").unwrap(),
            r#"{"id":"evt_1","type":"payment_intent.created","created":1,"data":{"object":{"id":"pi_1","metadata":{"shop":{"ref":"A 7"},"order_id":"B"}}}}"#,
            "metadata.shop.ref",
        ),
        (
            find("standard-webhooks").unwrap(),
            r#"{"type":"payment.pending","timestamp":"2026-01-01T00:00:00Z","data":{"payment_id":"p","order_id":"B","shop":{"ref":"A 7"}}}"#,
            "shop.ref",
        ),
    ] {
        let orders = |path: Option<&str>, body: &str| {
            let order_reference = path.map(|path| path.split('.').map(str::to_owned).collect());
            let specimen = specimen(psp.id());
            let account = Account { order_reference, ..specimen.account(&[specimen.secret]) };
            let events = psp.translate(&envelope(psp, body.as_bytes()), &account).unwrap();
            let orders = events[0].references.iter().filter(|reference| reference.kind == ReferenceKind::Order);
            orders.map(|reference| reference.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(orders(Some(path), body), ["A 7"]);
        assert_eq!(orders(None, body), ["B"]);
        assert_eq!(orders(Some("nowhere.at.all"), body), [""; 0]);
        for absurd in [String::new(), "a".repeat(256), "a\\u0000".to_owned()] {
            assert_eq!(orders(Some(path), &body.replace("A 7", &absurd)), [""; 0]);
        }
        assert_eq!(orders(Some(path), &body.replace("\"A 7\"", "7")), [""; 0]);
    }
}

// ---------------------------------------------------------------------------------------------------------- laws

#[test]
fn no_bit_of_the_headers_may_differ() {
    for specimen in specimens() {
        let (genuine, body) = (specimen.sign)(specimen.secret, NOW_S, specimen.body);
        for (name, value) in &genuine {
            if specimen.unsigned_headers.contains(&name.as_str()) {
                continue;
            }
            for bit in 0..value.len() * 8 {
                let mut bytes = value.as_bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // What is no header value cannot arrive.
                let Ok(altered) = HeaderValue::from_bytes(&bytes) else { continue };
                let mut headers = genuine.clone();
                headers.insert(name, altered);
                assert!(specimen.verify(&[specimen.secret], &headers, &body).is_err(), "{} {name} bit {bit}", specimen.name());
            }
        }
    }
}

#[test]
fn deep_and_huge_bodies_are_kept_and_quarantined() {
    for specimen in specimens().into_iter().filter(|specimen| specimen.any_body) {
        for body in [
            "[".repeat(200_000),
            "{\"a\":".repeat(100_000),
            format!("{{\"id\":{}}}", "9".repeat(100_000)),
            format!("{{\"id\":1e{}}}", "9".repeat(1000)),
            format!("{{\"type\":\"{}\"}}", "a".repeat(100_000)),
            "\u{feff}{}".to_owned(),
            "null".to_owned(),
        ] {
            let envelope = specimen.envelope(body.as_bytes());
            assert!(envelope.webhook_id.len() <= 255 && envelope.event_type.is_none());
            let meaning = meaning(&specimen, &envelope);
            assert!(meaning.get("unintelligible").is_some(), "{} {meaning}", specimen.name());
        }
    }
}

/// JSON that an adapter did not expect where it stands.
fn odd_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "(pi|ch|re|dp|cs|evt)_[a-zA-Z0-9]{0,300}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            inner.prop_map(|inner| json!({ "id": inner, "object": "charge", "data": [] })),
        ]
    })
}

/// Every pointer into a document.
fn pointers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                pointers(value, &format!("{at}/{key}"), found);
            }
        }
        serde_json::Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// A fixture with one or two of its values replaced.
fn odd_body(folder: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let documents: Vec<serde_json::Value> =
        fixtures_in(folder).iter().filter_map(|(_, body)| serde_json::from_slice(body).ok()).collect();
    // What is no JSON has no values to replace.
    let documents = if documents.is_empty() { vec![serde_json::Value::Null] } else { documents };
    let change = (any::<prop::sample::Index>(), odd_json());
    (prop::sample::select(documents), prop::collection::vec(change, 1..3)).prop_map(|(mut document, changes)| {
        for (index, odd) in changes {
            let mut places = Vec::new();
            pointers(&document, "", &mut places);
            *document.pointer_mut(&places[index.index(places.len())]).unwrap() = odd;
        }
        serde_json::to_vec(&document).unwrap()
    })
}

fn read_everything(specimen: &Specimen, status: u16, headers: HeaderMap, body: Vec<u8>, cursor: Option<&str>) {
    let (psp, account) = (specimen.psp, specimen.account(&[specimen.secret]));
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = headers;
    let asked = Asked { payment_id: "pi_3PbA", cursor, at: Timestamp::from_seconds(NOW_S), look_id: "look-1" };
    let _ = psp.read_status(&asked, &response, &account);
    let _ = psp.read_events(WHOLE, &asked, &response, &account);
    let _ = psp.read_endpoints(&response);
    let _ = psp.read_endpoints_at(cursor, &response);
    let _ = psp.read_changed_endpoint(&response);
    let _ = psp.read_token(&response);
    let _ = psp.status_request(cursor.unwrap_or("pi_3PbA"), cursor, &account);
    let _ = psp.events_request(since(asked.at), cursor, &account);
    let _ = psp.endpoints_request(cursor, &account);
    let change = EndpointChange::Update { id: cursor.unwrap_or_default(), url: cursor, events: None, enable: status == 200 };
    let _ = psp.change_endpoint_request(&change, &account);
    let _ = psp.token_request(&account);
    let _ = psp.challenge(cursor.unwrap_or_default(), &account.keys);
}

proptest! {
    #[test]
    fn no_bit_of_the_body_may_differ(name in any_specimen(), body in prop::collection::vec(any::<u8>(), 1..300), bit in any::<prop::sample::Index>()) {
        let specimen = specimen(&name);
        if !specimen.any_body || specimen.scheme().proof == Proof::Hint { return Ok(()) }
        let (headers, body) = (specimen.sign)(specimen.secret, NOW_S, &body);
        prop_assert!(specimen.verify(&[specimen.secret], &headers, &body).is_ok());
        let bit = bit.index(body.len() * 8);
        let mut altered = body.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(
            specimen.verify(&[specimen.secret], &headers, &altered),
            Err(Rejection::SignatureMismatch { secrets: 1 })
        );
    }

    #[test]
    fn arbitrary_calls_are_refused_and_nothing_panics(
        name in any_specimen(),
        values in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..120)), 0..5),
        text in "[tv01a=,. wA-F]{0,80}",
        secret in any::<String>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let specimen = specimen(&name);
        let (genuine, _) = (specimen.sign)(specimen.secret, NOW_S, specimen.body);
        let names: Vec<&HeaderName> = genuine.keys().collect();
        let mut map = HeaderMap::new();
        for (index, value) in &values {
            if let Ok(value) = HeaderValue::from_bytes(value) && !names.is_empty() {
                map.append(names[index.index(names.len())].clone(), value);
            }
        }
        for name in names {
            map.append(name.clone(), HeaderValue::from_str(&text).unwrap());
        }
        let secrets = [specimen.secret, secret.as_str()];
        prop_assert!(specimen.verify_as(&secrets, "not the token", &map, &body).is_err());
        let _ = specimen.psp.check(&specimen.account(&[&secret]));
        read_everything(&specimen, 200, map, body, Some(&text));
    }

    #[test]
    fn an_authentic_body_is_accepted_and_translation_never_panics(name in any_specimen(), body in prop::collection::vec(any::<u8>(), 1..200)) {
        let specimen = specimen(&name);
        if !specimen.any_body { return Ok(()) }
        let meaning = meaning(&specimen, &specimen.envelope(&body));
        prop_assert!(meaning.is_object(), "{}", meaning);
    }

    #[test]
    fn odd_events_never_panic_and_stay_within_bounds((name, body) in any_specimen().prop_flat_map(|name| { let bodies = odd_body(&name); (Just(name), bodies) })) {
        let specimen = specimen(&name);
        if !specimen.any_body { return Ok(()) }
        let envelope = specimen.envelope(&body);
        prop_assert!(!envelope.webhook_id.is_empty() && envelope.webhook_id.len() <= 255);
        prop_assert_eq!(meaning(&specimen, &envelope), meaning(&specimen, &envelope), "the same bytes, another meaning");
        for event in specimen.psp.translate(&envelope, &specimen.account(&[specimen.secret])).unwrap_or_default() {
            prop_assert!(json::is_name(&event.key.event_id) && json::is_name(&event.payment_id));
            prop_assert!(event.references.iter().all(|reference| json::is_name(&reference.value)));
        }
    }

    #[test]
    fn odd_answers_never_panic(
        body in odd_body("stripe"),
        list in any::<bool>(),
        status in 100_u16..600,
        retry_after in "[0-9A-Za-z,: ]{0,40}",
        cursor in prop::option::of(prop_oneof![Just("refunds".to_owned()), Just("disputes:dp_1".to_owned()), any::<String>()]),
    ) {
        let body = if list { [&br#"{"object":"list","has_more":true,"data":["#[..], &body, b"]}"].concat() } else { body };
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_str(&retry_after).unwrap());
        headers.insert("date", HeaderValue::from_str(&retry_after).unwrap());
        read_everything(&specimen("stripe"), status, headers.clone(), body.clone(), cursor.as_deref());
        read_everything(&specimen("stripe"), 200, headers, body, cursor.as_deref());
    }
}
