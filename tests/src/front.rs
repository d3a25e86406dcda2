//! What stands before the ingress in the Internet: TLS by a certificate of the tests' own authority, and an address that leads
//! on to the ingress, or elsewhere.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use paybell_shared::clock::{Clock as _, SystemClock, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

const DAY: Duration = Duration::from_hours(24);

/// An authority that nobody trusts but who is told to.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a certificate says.
#[derive(Clone, Copy, Debug)]
pub struct Says {
    pub name: &'static str,
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Says {
    /// For this machine, from yesterday on, for so long from now.
    #[must_use]
    pub fn localhost_for(time: Duration) -> Self {
        let now = SystemClock.now();
        Self { name: "localhost", from: now.minus(DAY), until: now.plus(time) }
    }
}

impl Authority {
    /// # Panics
    /// No key can be made.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "the tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate: the root.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// # Panics
    /// It cannot sign this.
    #[must_use]
    pub fn server(&self, says: Says) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![says.name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (says.from.into(), says.until.into());
        let certificate = params.signed_by(&key, &self.issuer).expect("it signs");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key.into());
        Arc::new(config.expect("the key is the certificate's"))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// What the front does with a call.
#[derive(Clone, Debug)]
pub enum Leads {
    /// On to this port of the loopback.
    To(u16),
    /// To an answer of its own: a whole HTTP response.
    Answer(&'static str),
}

/// Takes calls at `https://localhost:port`.
pub struct Front {
    port: u16,
    shows: Arc<Mutex<Arc<ServerConfig>>>,
    leads: Arc<Mutex<Leads>>,
    _accepts: AbortOnDropHandle<()>,
}

impl Front {
    /// # Panics
    /// No port can be had.
    pub async fn open(shows: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shows = Arc::new(Mutex::new(shows));
        let leads = Arc::new(Mutex::new(Leads::Answer("HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\n\r\n")));
        let (certificate, place) = (Arc::clone(&shows), Arc::clone(&leads));
        let accepts = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&certificate.lock().expect("no panic holds it")));
                let leads = place.lock().expect("no panic holds it").clone();
                tokio::spawn(async move { pass(acceptor, stream, leads).await });
            }
        });
        Self { port, shows, leads, _accepts: AbortOnDropHandle::new(accepts) }
    }

    /// Where it is: `https://localhost:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// From now on it shows another certificate.
    ///
    /// # Panics
    /// Never.
    pub fn show(&self, certificate: Arc<ServerConfig>) {
        *self.shows.lock().expect("no panic holds it") = certificate;
    }

    /// From now on it leads there.
    ///
    /// # Panics
    /// Never.
    pub fn lead(&self, leads: Leads) {
        *self.leads.lock().expect("no panic holds it") = leads;
    }
}

/// Who does not trust the certificate goes away: that is no error here.
async fn pass(acceptor: TlsAcceptor, stream: TcpStream, leads: Leads) -> std::io::Result<()> {
    let mut caller = acceptor.accept(stream).await?;
    match leads {
        Leads::To(port) => {
            let mut behind = TcpStream::connect(("127.0.0.1", port)).await?;
            tokio::io::copy_bidirectional(&mut caller, &mut behind).await.map(drop)
        }
        Leads::Answer(text) => {
            let mut head = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut caller, &mut head).await?;
            caller.write_all(text.as_bytes()).await?;
            caller.shutdown().await
        }
    }
}
