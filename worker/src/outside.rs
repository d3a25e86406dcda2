//! The way that a PSP takes to us, gone from here: the name, the certificate, and who answers.
//!
//! The only calls of the worker to ourselves. They go where the configuration says that PSPs call us, follow no redirect, use
//! no proxy, and are bounded in time and size. Certificates are verified as a PSP would: chain to a root that this machine
//! trusts, name, dates. An account in `mode = "test"` may add a root (`trusted_root`); a live one cannot.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use paybell_shared::clock::Timestamp;
use paybell_shared::event::Mode;
use paybell_shared::psp::Account;
use reqwest::{Client, Url};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::endpoints::finding::{Finding, Kind};
use crate::notify::is_public;

/// For the name alone.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// One exchange, with its connection.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(8);
/// For all of it.
pub const LOOK_MAX: Duration = Duration::from_secs(16);
/// Of an answer that should be empty.
const ANSWER_BYTES_MAX: usize = 4 * 1024;
/// A certificate that ends sooner should have been renewed: Let's Encrypt's are renewed 30 days before.
pub const EXPIRING: Duration = Duration::from_hours(14 * 24);

const _: () = assert!(RESOLVE_TIMEOUT.as_secs() + EXCHANGE_TIMEOUT.as_secs() < LOOK_MAX.as_secs());

/// What was seen on the way.
#[derive(Debug, Default)]
pub struct Seen {
    pub findings: Vec<Finding>,
    /// Why something could not be told.
    pub doubts: Vec<String>,
    /// The end of the certificate, if one was shown.
    pub certificate_ends: Option<Timestamp>,
}

/// Why there is no way to try.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    #[error("the trusted roots of this machine cannot be read")]
    NoRoots,
    #[error("trusted_root is no PEM of certificates")]
    TrustedRoot,
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("TLS cannot be set up")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("no HTTP client can be made")]
    Client(#[from] reqwest::Error),
}

/// A client that goes as a PSP would, and remembers the certificate that it was shown.
pub struct Way {
    pub client: Client,
    witness: Arc<Witness>,
}

impl Way {
    /// `addresses` stand in for the name's, which were looked up before; without them it is looked up.
    ///
    /// # Errors
    /// There is nothing to verify with.
    pub fn new(account: &Account, now: Timestamp, addresses: Option<(&str, &[SocketAddr])>) -> Result<Self, WayError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(account)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let witness = Arc::new(Witness { verifier, now, shown: Mutex::default() });
        let client = Client::builder()
            .tls_backend_preconfigured(tls(provider, Arc::clone(&witness))?)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXCHANGE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("paybell/", env!("CARGO_PKG_VERSION")));
        let client = addresses.into_iter().fold(client, |client, (name, addresses)| client.resolve_to_addrs(name, addresses));
        Ok(Self { client: client.build()?, witness })
    }
}

fn tls(provider: Arc<CryptoProvider>, witness: Arc<Witness>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    // What rustls calls dangerous is a verifier of one's own: this one asks rustls', and only writes down what it says.
    let mut config = builder.dangerous().with_custom_certificate_verifier(witness).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Those that this machine trusts, and in mode test the account's own.
fn roots(account: &Account) -> Result<RootCertStore, WayError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if let Some(pem) = account.keys.trusted_root.as_ref().filter(|_| account.mode == Mode::Test) {
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| WayError::TrustedRoot)?;
            roots.add(certificate).map_err(|_| WayError::TrustedRoot)?;
            added += 1;
        }
        if added == 0 {
            return Err(WayError::TrustedRoot);
        }
    }
    if roots.is_empty() { Err(WayError::NoRoots) } else { Ok(roots) }
}

/// Verifies as rustls does, and remembers what it saw.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    /// By which dates are judged.
    now: Timestamp,
    shown: Mutex<Option<Shown>>,
}

#[derive(Clone, Debug)]
struct Shown {
    ends: Option<Timestamp>,
    verdict: Result<(), rustls::Error>,
}

impl Witness {
    fn shown(&self) -> MutexGuard<'_, Option<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.now.seconds()).unwrap_or(0)));
        let verdict = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        *self.shown() = Some(Shown { ends: ends(end_entity), verdict: verdict.as_ref().map(drop).map_err(Clone::clone) });
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// The end of a certificate's validity.
fn ends(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Timestamp::from_seconds(certificate.validity().not_after.timestamp()))
}

/// Goes the way of the account's PSP. `url` has no token in it: the account's is added where one belongs.
pub async fn look(account: &Account, url: &str, now: Timestamp) -> Seen {
    let mut seen = Seen::default();
    if timeout(LOOK_MAX, look_into(&mut seen, account, url, now)).await.is_err() {
        seen.doubts.push(format!("the way to {url} took longer than {} s", LOOK_MAX.as_secs()));
    }
    seen
}

async fn look_into(seen: &mut Seen, account: &Account, url: &str, now: Timestamp) {
    let Some((url, host, port)) = place(account, url, now) else {
        seen.doubts.push(format!("{url} is no URL that can be called"));
        return;
    };
    let live = account.mode == Mode::Live;
    if live && url.scheme() == "http" {
        let says = "PSPs are to call us by http: anybody on the way reads and changes what they say, and most refuse to";
        seen.findings.push(Finding::new(Kind::PlainHttp, says, "set [ingress] public_url (or url of this account) to https:"));
    }
    let found = match timeout(RESOLVE_TIMEOUT, lookup_host((host.trim_matches(['[', ']']), port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(_)) => Vec::new(),
        Err(_) => {
            seen.doubts.push(format!("the name {host} was not looked up within {} s", RESOLVE_TIMEOUT.as_secs()));
            return;
        }
    };
    if found.is_empty() {
        let says = format!("the name {host} leads nowhere");
        seen.findings.push(Finding::new(Kind::UnresolvedName, says, "mend its DNS records, or [ingress] public_url"));
        return;
    }
    if live && !found.iter().any(|address| is_public(address.ip())) {
        let leads = if host.trim_matches(['[', ']']) == found[0].ip().to_string() {
            String::new()
        } else {
            format!("leads to {}, which ", found[0].ip())
        };
        let says = format!("from here, {host} {leads}is an address that the Internet does not reach");
        let remedy =
            "if PSPs see another address, all is well, and this check goes another way than they do; else mend its DNS records";
        seen.findings.push(Finding::new(Kind::PrivateAddress, says, remedy));
    }
    let way = match Way::new(account, now, Some((&host, &found))) {
        Ok(way) => way,
        Err(error) => {
            seen.doubts.push(format!("{:#}", anyhow::Error::new(error)));
            return;
        }
    };
    let answered = exchange(&way.client, Method::GET, &url).await;
    let shown = way.witness.shown().clone();
    seen.certificate_ends = shown.as_ref().and_then(|shown| shown.ends);
    let trouble = shown.as_ref().and_then(|shown| shown.verdict.as_ref().err());
    if let Some(error) = trouble {
        seen.findings.push(certificate_finding(error, &host, seen.certificate_ends));
        return;
    }
    if let Some(ends) = seen.certificate_ends.filter(|ends| *ends < now.plus(EXPIRING)) {
        let days = ends.since(now).as_secs() / 86_400;
        let says = format!("the certificate of {host} ends in {days} days, on {ends}");
        seen.findings.push(Finding::new(Kind::CertificateExpiring, says, "renew it: see why it was not renewed by itself"));
    }
    match answered {
        Err(error) => seen.findings.push(unreached(&error, &host, port, shown.is_some() || url.scheme() == "http")),
        Ok(answer) if is_our_refusal_of_get(&answer) => {}
        // A gateway may let only POST through; what we say to a POST that nobody signed is told from what others say, too.
        Ok(answer) => match exchange(&way.client, Method::POST, &url).await {
            Ok(posted) if is_our_refusal_of_post(&posted, account) => {}
            Ok(_) | Err(_) => seen.findings.push(foreign(&answer, &host)),
        },
    }
}

/// The URL as the PSP calls it, its host and its port.
fn place(account: &Account, url: &str, now: Timestamp) -> Option<(Url, String, u16)> {
    let scheme = account.psp.profile().scheme(account.keys.scheme);
    let token = scheme.filter(|scheme| scheme.token_in_path).and_then(|_| account.keys.active(now).next());
    let url = match token {
        Some((_, token)) => format!("{}/{}", url.trim_end_matches('/'), token.expose()),
        None => url.to_owned(),
    };
    let url: Url = url.parse().ok()?;
    let (host, port) = (url.host_str()?.to_owned(), url.port_or_known_default()?);
    Some((url, host, port))
}

/// What somebody answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    is_empty: bool,
}

async fn exchange(client: &Client, method: Method, url: &Url) -> Result<Answer, reqwest::Error> {
    let mut answer = client.request(method, url.clone()).body(Bytes::new()).send().await.map_err(reqwest::Error::without_url)?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut bytes = 0;
    // Whether there is anything is all that counts.
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes += chunk.len();
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(Answer { status, headers, is_empty: bytes == 0 })
}

/// The ingress answers a GET of a route by 405, says which method there is, and nothing else.
fn is_our_refusal_of_get(answer: &Answer) -> bool {
    let allow = answer.headers.get(ALLOW).is_some_and(|allow| allow == "POST");
    answer.status == StatusCode::METHOD_NOT_ALLOWED && allow && answer.is_empty
}

/// The ingress refuses a POST without signature and body by the PSP's rejection, or by where it comes from.
fn is_our_refusal_of_post(answer: &Answer, account: &Account) -> bool {
    let refused = answer.status == account.psp.rejection_status() || answer.status == StatusCode::FORBIDDEN;
    refused && answer.is_empty && !answer.headers.contains_key(WWW_AUTHENTICATE)
}

fn foreign(answer: &Answer, host: &str) -> Finding {
    let status = answer.status.as_u16();
    if answer.status.is_redirection() {
        let says = format!("{host} answers by a redirect ({status}), which PSPs do not follow");
        return Finding::new(Kind::Redirect, says, "register the URL that it leads to, or take the redirect away for our route");
    }
    let (says, remedy) = match status {
        404 => (
            format!("{host} answers 404: the route is not there"),
            "see whether the proxy passes /webhooks on as it is, and whether the ingress has this account",
        ),
        502..=504 => (format!("{host} answers {status}: the proxy does not reach the ingress"), "see whether the ingress runs"),
        401 | 403 => (
            format!("{host} answers {status}: something before the ingress refuses us, and so it would PSPs"),
            "let POST to /webhooks/… through: PSPs have no credentials but their signatures",
        ),
        _ => (
            format!("{host} answers {status}, which is not what the ingress says"),
            "see what answers there: the proxy must pass /webhooks on to the ingress",
        ),
    };
    Finding::new(Kind::ForeignAnswer, says, remedy)
}

fn unreached(error: &reqwest::Error, host: &str, port: u16, past_tls: bool) -> Finding {
    if error.is_connect() && !past_tls && tls_failed(error) {
        let says = format!("{host}:{port} does not come to terms about TLS");
        return Finding::new(Kind::NoTls, says, "see whether it speaks TLS 1.2 or 1.3 on this port");
    }
    let how = if error.is_timeout() { "does not answer in time" } else { "is not reached" };
    let remedy = "see whether the proxy runs; if PSPs do reach it, let this worker's network reach it as well";
    Finding::new(Kind::Unreached, format!("from here, {host}:{port} {how}"), remedy)
}

/// Somewhere behind the error stands one of TLS.
fn tls_failed(error: &reqwest::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) {
            return true;
        }
        source = error.source();
    }
    false
}

fn certificate_finding(error: &rustls::Error, host: &str, ends: Option<Timestamp>) -> Finding {
    let ended = ends.map(|ends| format!(" on {ends}")).unwrap_or_default();
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            let says = format!("the certificate of {host} expired{ended}: PSPs do not deliver");
            Finding::new(Kind::CertificateExpired, says, "renew it now")
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            let says = format!("the certificate of {host} is not valid yet");
            Finding::new(Kind::CertificateNotYetValid, says, "compare the clocks, or use the one before until it is")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            let says = format!("the certificate that {host} shows is for other names");
            Finding::new(Kind::CertificateOfOtherName, says, "get one for this name, or see which server answers for it")
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            let says = format!("the certificate of {host} leads to no root that is trusted here");
            let remedy = "send the intermediate certificates as well; one of your own authority is no PSP's to trust";
            Finding::new(Kind::CertificateUntrusted, says, remedy)
        }
        other => {
            let says = format!("the certificate of {host} does not verify: {other}");
            Finding::new(Kind::CertificateUntrusted, says, "replace it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, allow: Option<&'static str>, is_empty: bool) -> Answer {
        let mut headers = HeaderMap::new();
        headers.extend(allow.map(|allow| (ALLOW, http::HeaderValue::from_static(allow))));
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, is_empty }
    }

    #[test]
    fn what_answers_a_get_is_told_apart() {
        assert!(is_our_refusal_of_get(&answer(405, Some("POST"), true)));
        for other in [
            answer(405, None, true),
            answer(405, Some("POST"), false),
            answer(405, Some("GET, POST"), true),
            answer(200, Some("POST"), true),
            answer(404, None, true),
        ] {
            assert!(!is_our_refusal_of_get(&other), "{}", other.status);
        }
        for (status, kind) in [
            (301, Kind::Redirect),
            (308, Kind::Redirect),
            (404, Kind::ForeignAnswer),
            (200, Kind::ForeignAnswer),
            (403, Kind::ForeignAnswer),
            (502, Kind::ForeignAnswer),
        ] {
            assert_eq!(foreign(&answer(status, None, false), "pay.example").finding, kind, "{status}");
        }
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_name() {
        let kind = |error| certificate_finding(&rustls::Error::InvalidCertificate(error), "pay.example", None).finding;
        assert_eq!(kind(CertificateError::Expired), Kind::CertificateExpired);
        assert_eq!(kind(CertificateError::NotValidYet), Kind::CertificateNotYetValid);
        assert_eq!(kind(CertificateError::NotValidForName), Kind::CertificateOfOtherName);
        assert_eq!(kind(CertificateError::UnknownIssuer), Kind::CertificateUntrusted);
        assert_eq!(kind(CertificateError::Revoked), Kind::CertificateUntrusted);
    }
}
