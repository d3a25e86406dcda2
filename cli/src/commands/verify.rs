//! `paybell verify`: the verdict on one webhook, or exactly why not; and the same for a file of test vectors.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use paybell_shared::clock::{Clock, SystemClock, Timestamp};
use paybell_shared::config::Config;
use paybell_shared::event::Mode;
use paybell_shared::psp::{self, Account, Api, Keys, Proof, Psp, Rejection, Verified, WebhookRequest};
use paybell_shared::secret::{Secret, SecretSource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::{self, Exit, Failure, Outcome};

/// The tolerance of Stripe's SDKs and of Standard Webhooks, in seconds.
const TOLERANCE_S: u32 = 300;
/// A webhook is smaller, by far; a mistaken path may not be.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A chain of certificates is a few kB.
const PEM_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell verify stripe --secret env:STRIPE_SECRET --header 'Stripe-Signature: t=…,v1=…' --body webhook.json\n  \
                  curl -s …/last-webhook | paybell verify stripe --secret whsec_… --header '…' --body - --at 1790000000\n  \
                  paybell verify --vectors vectors.json\n\nExit: 0 valid, 1 not valid, 2 wrong usage or unreadable file."
)]
pub struct Args {
    /// The PSP, by its id (stripe, standard-webhooks, …).
    #[arg(required_unless_present = "vectors")]
    psp: Option<String>,
    /// A secret, tried in the order given: `env:NAME`, `file:PATH`, or the secret itself (which other users of the machine can see).
    #[arg(long = "secret", value_name = "S")]
    secrets: Vec<String>,
    /// A header of the webhook, as `Name: value`.
    #[arg(long = "header", value_name = "K: V")]
    headers: Vec<String>,
    /// The file with the exact bytes of the body; `-` is standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "vectors")]
    body: Option<PathBuf>,
    /// The URL as it is registered at the PSP, for PSPs that sign it.
    #[arg(long)]
    url: Option<String>,
    /// How the PSP authenticates, where it has several ways; a wrong one lists them.
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// The webhook's id at the PSP, for PSPs that sign it (PayPal).
    #[arg(long, value_name = "ID")]
    webhook_id: Option<String>,
    /// The name of our key at the PSP, for PSPs that say whose signature it is (Braintree).
    #[arg(long, value_name = "NAME")]
    public_key: Option<String>,
    /// The file with the certificate that the webhook names, in PEM (PayPal); nothing is fetched.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The file with a root to trust in place of the built-in one, in PEM: for tests.
    #[arg(long, value_name = "FILE")]
    trusted_root: Option<PathBuf>,
    /// The token in the path, for PSPs that sign nothing: `env:NAME`, `file:PATH`, or the token itself.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// The query of the URL that was called, for PSPs that say there what it is about (Klarna).
    #[arg(long, value_name = "Q")]
    query: Option<String>,
    /// The configuration whose `[[psp]]` table says all of this; the account is named by --account.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["secrets", "scheme", "url", "webhook_id", "public_key", "trusted_root"])]
    config: Option<PathBuf>,
    /// The account in the configuration.
    #[arg(long, value_name = "NAME", default_value = "default", requires = "config")]
    account: String,
    /// Verify as if it were this Unix time, in seconds; default: now.
    #[arg(long, value_name = "UNIX")]
    at: Option<i64>,
    /// How far the signed timestamp may lie from it, either way, in seconds.
    #[arg(long, value_name = "S", default_value_t = TOLERANCE_S)]
    tolerance: u32,
    /// Verify every vector of a file (a JSON array) instead, and print one JSON line each.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "psp", "secrets", "headers", "body", "url", "at", "scheme", "webhook_id", "public_key", "certificate", "trusted_root", "token",
        "query", "config",
    ])]
    vectors: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` and each vector's line say.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    verdict: Verdict,
    reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Valid,
    Invalid,
    /// The PSP signs nothing: there is nothing that could be proven.
    Unsigned,
}

/// Runs the command.
///
/// # Errors
/// The arguments or the file cannot be used.
pub fn run(args: &Args) -> Outcome {
    if let Some(path) = &args.vectors { vectors(path) } else { one(args) }.map_err(Failure::usage)
}

fn one(args: &Args) -> anyhow::Result<Exit> {
    // Clap has made sure of both.
    let (psp, body) = args.psp.clone().zip(args.body.clone()).context("a PSP and --body are needed")?;
    let adapter = find(&psp)?;
    let mut headers = HeaderMap::new();
    for header in &args.headers {
        let (name, value) = header.split_once(':').with_context(|| format!("--header {header:?} has no colon"))?;
        append(&mut headers, name, value)?;
    }
    let keys = keys(args, adapter)?;
    let token = args.token.as_deref().map(|text| SecretSource::parse(text).read("--token")).transpose()?;
    let case = Case {
        adapter,
        mode: if keys.trusted_root.is_some() { Mode::Test } else { Mode::Live },
        keys,
        headers,
        body: read_body(&body)?,
        token: token.map(|token| token.expose().to_owned()),
        query: args.query.clone().unwrap_or_default(),
        certificate: args.certificate.as_deref().map(|path| read_pem(path, "--certificate")).transpose()?,
        at: args.at.map_or_else(|| SystemClock.now(), Timestamp::from_seconds),
    };
    case.check()?;
    let result = case.verify();
    let report = Report { hints: case.hints(&result), ..case.report(&result) };
    if args.json {
        output::json(&report);
    } else {
        let verdict = match report.verdict {
            Verdict::Valid => "valid",
            Verdict::Invalid => "not valid",
            Verdict::Unsigned => "unsigned",
        };
        output::line(format_args!("{verdict}: {}", output::printable(&report.reason)));
        for hint in &report.hints {
            output::line(format_args!("  hint: {}", output::printable(hint)));
        }
    }
    Ok(if report.verdict == Verdict::Valid { Exit::Yes } else { Exit::No })
}

/// What the account's table says, or the options that stand for it.
fn keys(args: &Args, adapter: &'static dyn Psp) -> anyhow::Result<Keys> {
    if let Some(path) = &args.config {
        let config = Config::load(Some(path))?;
        let configured = config.account(adapter.id(), &args.account);
        let configured =
            configured.with_context(|| format!("{} has no account {}/{}", path.display(), adapter.id(), args.account))?;
        return Ok(configured.account.keys.clone());
    }
    let secrets = args
        .secrets
        .iter()
        .enumerate()
        .map(|(index, text)| Ok(SecretSource::parse(text).read(&format!("--secret {}", index + 1))?));
    Ok(Keys {
        secrets: secrets.collect::<anyhow::Result<_>>()?,
        tolerance_s: args.tolerance,
        scheme: scheme(adapter, args.scheme.as_deref())?,
        url: args.url.clone(),
        webhook_id: args.webhook_id.clone(),
        public_key: args.public_key.clone(),
        trusted_root: args.trusted_root.as_deref().map(|path| read_pem(path, "--trusted-root")).transpose()?,
        generic: None,
    })
}

fn scheme(adapter: &'static dyn Psp, name: Option<&str>) -> anyhow::Result<&'static str> {
    let schemes = adapter.profile().schemes;
    let Some(name) = name else { return Ok(schemes.first().map_or("", |scheme| scheme.name)) };
    let found = adapter.profile().scheme(name).map(|scheme| scheme.name);
    found.with_context(|| {
        let known: Vec<&str> = schemes.iter().map(|scheme| scheme.name).collect();
        format!("--scheme {name:?} is none of {}: {}", adapter.id(), known.join(", "))
    })
}

fn read_pem(path: &Path, option: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("{option} {} cannot be read", path.display()))?;
    file.take(PEM_BYTES_MAX).read_to_string(&mut text).with_context(|| format!("{option} {} is no text", path.display()))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        bail!("{option} {} holds no certificate in PEM", path.display());
    }
    Ok(text)
}

fn find(psp: &str) -> anyhow::Result<&'static dyn Psp> {
    psp::find(psp).ok_or_else(|| {
        let known: Vec<&str> = psp::ALL.iter().map(|psp| psp.id()).collect();
        anyhow!("{psp:?} is no PSP that is known here: {}", known.join(", "))
    })
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) -> anyhow::Result<()> {
    let parsed = HeaderName::from_bytes(name.trim().as_bytes()).with_context(|| format!("{name:?} is no name of a header"))?;
    // Optional white space around a value is not part of it (RFC 9110, 5.5).
    let value = value.trim_matches([' ', '\t']);
    let value =
        HeaderValue::from_bytes(value.as_bytes()).with_context(|| format!("the value of {name} cannot be in a header"))?;
    headers.append(parsed, value);
    Ok(())
}

fn read_body(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    let shown = path.display();
    if path == Path::new("-") {
        std::io::stdin().take(BODY_BYTES_MAX + 1).read_to_end(&mut body).context("standard input cannot be read")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("--body {shown} cannot be read"))?;
        file.take(BODY_BYTES_MAX + 1).read_to_end(&mut body).with_context(|| format!("--body {shown} cannot be read"))?;
    }
    if body.len() as u64 > BODY_BYTES_MAX {
        bail!("{shown} is larger than {BODY_BYTES_MAX} bytes: no webhook is");
    }
    Ok(body)
}

/// A webhook with all that its verification needs.
struct Case {
    adapter: &'static dyn Psp,
    keys: Keys,
    headers: HeaderMap,
    body: Vec<u8>,
    token: Option<String>,
    /// Of the URL that was called.
    query: String,
    /// In PEM.
    certificate: Option<String>,
    mode: Mode,
    at: Timestamp,
}

impl Case {
    /// Refuses, as a start would, a secret that can verify nothing. Without it such a secret just matches nothing.
    fn check(&self) -> anyhow::Result<()> {
        let account = Account {
            psp: self.adapter,
            psp_id: self.adapter.id().into(),
            name: "default".into(),
            mode: self.mode,
            keys: self.keys.clone(),
            api: Api::default(),
            order_reference: None,
            capture: psp::Capture::default(),
        };
        Ok(self.adapter.check(&account)?)
    }

    fn verify(&self) -> Result<Verified, Rejection> {
        self.verify_bytes(&self.body)
    }

    fn verify_bytes(&self, body: &[u8]) -> Result<Verified, Rejection> {
        let request = WebhookRequest {
            headers: &self.headers,
            body,
            token: self.token.as_deref(),
            query: &self.query,
            certificate: self.certificate.as_ref().map(String::as_bytes),
        };
        self.adapter.verify(&request, &self.keys, self.at)
    }

    fn report(&self, result: &Result<Verified, Rejection>) -> Report {
        let signs_nothing = self.adapter.profile().scheme(self.keys.scheme).is_some_and(|scheme| scheme.token_in_path);
        let (verdict, reason) = match result {
            Ok(_) if signs_nothing => (Verdict::Unsigned, "the PSP signs nothing: only asking it proves anything".to_owned()),
            Ok(verified) => {
                let how = match verified.proof() {
                    Proof::Proven => format!("signed with {}", verified.secret_name()),
                    Proof::Hint => format!(
                        "authentic by {}, which does not cover the body: a hint, so the PSP is asked",
                        verified.secret_name()
                    ),
                };
                (Verdict::Valid, format!("{how}, webhook {}", verified.webhook_id()))
            }
            Err(rejection) => (Verdict::Invalid, rejection.to_string()),
        };
        Report { id: None, verdict, reason, hints: Vec::new() }
    }

    /// What a person would try next, tried for them.
    fn hints(&self, result: &Result<Verified, Rejection>) -> Vec<String> {
        match result {
            Ok(verified) if self.keys.secrets.len() > 1 => vec![format!("{} matched", verified.secret_name())],
            Err(Rejection::SignatureMismatch { .. }) => self.mismatch_hints(),
            Err(Rejection::TooOld { age_s, .. }) => vec![
                format!("the webhook was signed at {} (Unix)", self.at.seconds().saturating_sub(*age_s)),
                "to check an old webhook, say when it came in by --at, or allow more by --tolerance".to_owned(),
            ],
            Err(Rejection::TooNew { ahead_s, .. }) => {
                vec![format!(
                    "the webhook was signed at {} (Unix); now is {}",
                    self.at.seconds().saturating_add(*ahead_s),
                    self.at.seconds()
                )]
            }
            Err(Rejection::MissingHeader(header)) if self.headers.is_empty() => {
                vec![format!("no header was given: --header '{header}: …'")]
            }
            _ => Vec::new(),
        }
    }

    fn mismatch_hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        let holds =
            |body: &[u8]| !matches!(self.verify_bytes(body), Err(Rejection::SignatureMismatch { .. } | Rejection::EmptyBody));
        let without_newline = self.body.strip_suffix(b"\r\n").or_else(|| self.body.strip_suffix(b"\n"));
        if without_newline.is_some_and(holds) {
            hints.push("the body ends with a newline that was not signed: without it the signature holds".to_owned());
        } else if holds(&[&self.body[..], b"\n"].concat()) {
            hints.push("a newline at the end of the body was lost: with it the signature holds".to_owned());
        } else if let Some(rest) = self.body.strip_prefix(b"\xef\xbb\xbf").filter(|rest| holds(rest)) {
            hints.push(format!("the body begins with a byte order mark that was not signed ({} bytes follow)", rest.len()));
        } else if let Ok(json) = serde_json::from_slice::<Value>(&self.body) {
            if holds(json.to_string().as_bytes()) {
                hints.push("the body was formatted anew after it was signed: as compact JSON the signature holds".to_owned());
            } else if holds(format!("{json:#}").as_bytes()) {
                hints.push(
                    "the body was formatted anew after it was signed: indented by two spaces the signature holds".to_owned(),
                );
            }
        }
        hints
    }
}

/// A vector's inputs. What it expects, and what an SDK said, is not read.
#[derive(Debug, Deserialize)]
struct Vector {
    id: String,
    psp: String,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    body: Option<String>,
    body_base64: Option<String>,
    scheme: Option<String>,
    url: Option<String>,
    webhook_id: Option<String>,
    cert_pem: Option<String>,
    trusted_root_pem: Option<String>,
    public_key: Option<String>,
    query: Option<Value>,
    response_body: Option<String>,
    verify_at: Option<i64>,
    tolerance_seconds: Option<u32>,
}

fn vectors(path: &Path) -> anyhow::Result<Exit> {
    let text = std::fs::read(path).with_context(|| format!("--vectors {} cannot be read", path.display()))?;
    let vectors: Vec<Vector> =
        serde_json::from_slice(&text).with_context(|| format!("{} is no file of vectors", path.display()))?;
    // All are read before the first is printed: a bad file has no half answer.
    let cases: Vec<(String, String, anyhow::Result<Judged>)> =
        vectors.into_iter().map(|vector| (vector.id.clone(), vector.psp.clone(), vector.judged())).collect();
    for (id, psp, case) in cases {
        let report = match case.with_context(|| format!("the vector {id}"))? {
            Judged::Webhook(case) => case.report(&case.verify()),
            Judged::Challenge { answer, expected } => challenge_report(answer.as_deref(), expected.as_deref()),
            Judged::NoAdapter => invalid(format!("no adapter for {psp}: nothing of it would be accepted")),
        };
        output::json(&Report { id: Some(id), ..report });
    }
    Ok(Exit::Yes)
}

/// What a vector holds.
enum Judged {
    Webhook(Box<Case>),
    /// A GET by which the PSP tries the endpoint: what it hears, and what it wants to hear.
    Challenge {
        answer: Option<String>,
        expected: Option<String>,
    },
    NoAdapter,
}

const fn invalid(reason: String) -> Report {
    Report { id: None, verdict: Verdict::Invalid, reason, hints: Vec::new() }
}

fn challenge_report(answer: Option<&str>, expected: Option<&str>) -> Report {
    match answer {
        Some(answer) if Some(answer) == expected => {
            Report { verdict: Verdict::Valid, ..invalid("the challenge is answered as the PSP wants it".to_owned()) }
        }
        Some(_) => invalid("the challenge is answered, but not as the PSP wants it: is it another key?".to_owned()),
        None => invalid("this is no challenge of the PSP".to_owned()),
    }
}

impl Vector {
    fn judged(self) -> anyhow::Result<Judged> {
        let Some(adapter) = psp::find(&self.psp) else { return Ok(Judged::NoAdapter) };
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            match value {
                Value::String(value) => append(&mut headers, name, value)?,
                Value::Array(values) => {
                    for value in values {
                        append(&mut headers, name, value.as_str().with_context(|| format!("a value of {name} is no text"))?)?;
                    }
                }
                _ => bail!("the value of {name} is neither a text nor a list of texts"),
            }
        }
        let secrets = self.secrets.iter().enumerate();
        let mut keys = Keys {
            secrets: secrets.map(|(index, secret)| Secret::new(format!("secrets[{index}]"), secret.as_str())).collect(),
            tolerance_s: self.tolerance_seconds.unwrap_or(TOLERANCE_S),
            // A scheme's name that is none of the adapter's is the file's own word for the only one that there is.
            scheme: self.scheme.and_then(|name| adapter.profile().scheme(&name)).map_or("", |scheme| scheme.name),
            url: self.url,
            webhook_id: self.webhook_id,
            public_key: self.public_key,
            trusted_root: self.trusted_root_pem,
            generic: None,
        };
        if keys.scheme.is_empty() {
            keys.scheme = scheme(adapter, None)?;
        }
        if let Some(query) = self.query {
            let pairs: Vec<String> = match query {
                Value::String(query) => vec![query],
                Value::Object(members) => {
                    members.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect()
                }
                _ => bail!("the query is neither a text nor an object"),
            };
            return Ok(Judged::Challenge { answer: adapter.challenge(&pairs.join("&"), &keys), expected: self.response_body });
        }
        let body = match (self.body_base64, self.body) {
            (Some(encoded), _) => STANDARD.decode(encoded).context("body_base64 is not Base64")?,
            (None, Some(text)) => text.into_bytes(),
            (None, None) => Vec::new(),
        };
        // Where the PSP signs nothing, a vector has no token; which one it is says nothing about the webhook.
        let token = adapter.profile().scheme(keys.scheme).filter(|scheme| scheme.token_in_path).map(|_| ANY_TOKEN.to_owned());
        keys.secrets.extend(token.iter().map(|token| Secret::new("token", token.as_str())));
        Ok(Judged::Webhook(Box::new(Case {
            adapter,
            keys,
            headers,
            body,
            token,
            query: String::new(),
            certificate: self.cert_pem,
            mode: Mode::Test,
            at: self.verify_at.map_or_else(|| SystemClock.now(), Timestamp::from_seconds),
        })))
    }
}

/// Stands for the token in the path.
const ANY_TOKEN: &str = "any-token-will-do-for-vectors";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::stripe;

    const SECRET: &str = "whsec_Test7Qb1mZx0aVYtqk3RjU2eNw5pLs8dHfGc";

    fn case(body: &[u8], signed: &[u8]) -> Case {
        let mut headers = HeaderMap::new();
        append(&mut headers, "Stripe-Signature", &stripe::signature(SECRET, 1_790_000_000, signed)).unwrap();
        Case {
            adapter: find("stripe").unwrap(),
            keys: Keys {
                secrets: vec![Secret::new("one", "whsec_other_secret_of_ours"), Secret::new("two", SECRET)],
                tolerance_s: 300,
                ..Keys::default()
            },
            headers,
            body: body.to_vec(),
            token: None,
            query: String::new(),
            certificate: None,
            mode: Mode::Test,
            at: Timestamp::from_seconds(1_790_000_010),
        }
    }

    const SIGNED: &[u8] =
        br#"{"data":{"object":{"id":"pi_1","object":"payment_intent"}},"id":"evt_1","object":"event","type":"x"}"#;

    #[test]
    fn says_which_secret_matched() {
        let case = case(SIGNED, SIGNED);
        let result = case.verify();
        assert_eq!(case.report(&result).verdict, Verdict::Valid);
        assert_eq!(case.hints(&result), ["two matched"]);
    }

    #[test]
    fn finds_what_was_done_to_the_body() {
        let with_newline = [SIGNED, b"\n"].concat();
        let indented = format!("{:#}", serde_json::from_slice::<Value>(SIGNED).unwrap());
        for (body, signed, word) in [
            (&with_newline[..], SIGNED, "ends with a newline"),
            (SIGNED, &with_newline[..], "was lost"),
            (indented.as_bytes(), SIGNED, "compact"),
            (SIGNED, indented.as_bytes(), "two spaces"),
        ] {
            let case = case(body, signed);
            let result = case.verify();
            assert!(matches!(result, Err(Rejection::SignatureMismatch { .. })), "{word}: {result:?}");
            assert!(case.hints(&result).concat().contains(word), "{word}: {:?}", case.hints(&result));
        }
    }

    #[test]
    fn a_vector_is_judged_by_its_inputs_only() {
        let header = stripe::signature(SECRET, 1_790_000_000, SIGNED);
        let vector = |headers: Value| {
            serde_json::from_value::<Vector>(serde_json::json!({
                "id": "v", "psp": "stripe", "secrets": [SECRET], "headers": headers, "expected": "invalid", "body": "not this",
                "body_base64": STANDARD.encode(SIGNED), "verify_at": 1_790_000_000, "tolerance_seconds": 300, "why": "planted",
            }))
            .unwrap()
        };
        let verdict = |headers| {
            let Judged::Webhook(case) = vector(headers).judged().unwrap() else { panic!("a webhook") };
            case.report(&case.verify()).verdict
        };
        assert_eq!(verdict(serde_json::json!({ "Stripe-Signature": header })), Verdict::Valid);
        assert_eq!(verdict(serde_json::json!({ "Stripe-Signature": [header, header] })), Verdict::Invalid);
    }
}
