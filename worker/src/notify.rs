//! Telling a subscriber by a signed request: Standard Webhooks, as a sender.
//!
//! A subscriber's URL is a way out of our network that somebody typed, so it leads to public addresses only, unless its
//! configuration says otherwise. A name is resolved for each request, every address that it has is checked, and the
//! connection goes to one of those that were checked: a name that answers differently the next time gains nothing. No
//! redirect is followed, no proxy is used, and of an answer only the head is read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use paybell_shared::clock::Timestamp;
use paybell_shared::config::Subscriber;
use paybell_shared::psp::standard_webhooks::Signer;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::net::lookup_host;
use uuid::Uuid;

/// From the name's look-up to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The whole exchange. Standard Webhooks recommends 15 to 30 s.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A longer `Retry-After` is not believed.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Sends to one subscriber.
pub struct Notifier {
    name: Arc<str>,
    client: Client,
    url: Url,
    signer: Signer,
}

/// Why a [`Notifier`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    #[error("is not a URL")]
    Url,
    #[error("{0}; if it is meant, set allow_private")]
    Address(#[from] NotPublic),
    #[error("has a secret that does not sign: it {0}")]
    Secret(&'static str),
    #[error("cannot be called: TLS cannot be set up")]
    Tls(#[source] reqwest::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    #[error("not reached")]
    Unreached(#[source] reqwest::Error),
    #[error("answered {}", status.as_u16())]
    Answered { status: StatusCode, retry_after: Option<Duration> },
}

/// An address that strangers must not make us call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its address {0} is not a public one")]
pub struct NotPublic(IpAddr);

impl Notifier {
    /// # Errors
    /// The URL or a secret cannot be used.
    pub fn new(subscriber: &Subscriber) -> Result<Self, NotifierError> {
        let url: Url = subscriber.url.parse().map_err(|_| NotifierError::Url)?;
        let host = url.host_str().ok_or(NotifierError::Url)?;
        // A literal address is not looked up. The parser has brought every way to write one, such as 0x7f.1, to the usual one.
        let literal: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        if let Some(address) = literal.filter(|_| !subscriber.allow_private) {
            check(address)?;
        }
        let signer = Signer::new(&subscriber.secrets).map_err(|(_, problem)| NotifierError::Secret(problem))?;
        // An error means that there is a provider already, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXCHANGE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            // Each request on a connection of its own, to an address that was checked for it.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("paybell/", env!("CARGO_PKG_VERSION")));
        let builder = if subscriber.allow_private { builder } else { builder.dns_resolver(PublicAddresses) };
        Ok(Self { name: Arc::clone(&subscriber.name), client: builder.build().map_err(NotifierError::Tls)?, url, signer })
    }

    /// Safe to print: it has no path.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Any 2xx is success.
    ///
    /// # Errors
    /// The subscriber may have been told all the same, and is to be told again.
    pub async fn notify(&self, id: Uuid, now: Timestamp, body: Bytes) -> Result<(), NotifyError> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        let headers = self.signer.headers(&id.to_string(), now, &body);
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let answer = request.body(body).send().await.map_err(|error| NotifyError::Unreached(error.without_url()))?;
        // The body is never read: the connection is closed with it.
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let may_ask = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let asked = answer.headers().get(RETRY_AFTER).filter(|_| may_ask).and_then(|value| value.to_str().ok());
        Err(NotifyError::Answered { status, retry_after: asked.and_then(|text| retry_after(text, now)) })
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notifier({})", self.name)
    }
}

impl NotifyError {
    /// How long the subscriber asked to be left alone.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreached(_) => None,
            Self::Answered { retry_after, .. } => *retry_after,
        }
    }
}

/// RFC 9110, section 10.2.3: seconds, or a date; at most [`RETRY_AFTER_MAX`].
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let asked = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Timestamp::from(OffsetDateTime::parse(text.trim(), &Rfc2822).ok()?).since(now),
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// Resolves a name and lets it through only if every address of it is public.
struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
            for address in &found {
                check(address.ip())?;
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn check(address: IpAddr) -> Result<(), NotPublic> {
    if is_public(address) { Ok(()) } else { Err(NotPublic(address)) }
}

/// Whether the Internet reaches this address.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// What is not globally reachable by IANA's registry of special-purpose addresses, and what is reachable and yet not the
/// Internet's.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = [
        // This network; 0.0.0.0 reaches the host itself.
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        // Carrier-grade NAT; also Alibaba's metadata, 100.100.100.200.
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        // Link-local; also the metadata of most clouds, 169.254.169.254.
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        // Azure's host, which serves its metadata at an address that looks public.
        ([168, 63, 129, 16], 32),
        // IETF protocols; also Oracle's metadata, 192.0.0.192.
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        // The relays of 6to4.
        ([192, 88, 99, 0], 24),
        ([192, 168, 0, 0], 16),
        // Benchmarks.
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        // Multicast, what is reserved, and broadcast.
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    let bits = address.to_bits();
    !special.iter().any(|(network, length)| (bits ^ Ipv4Addr::from(*network).to_bits()) >> (32 - length) == 0)
}

/// Only global unicast, `2000::/3`, is public, without its special parts. An address that stands for one of IPv4 is as public
/// as that one.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [.., high, low] = segments;
    let embedded = || Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match segments {
        // Mapped: ::ffff:0:0/96. Translated by the network, where it has no IPv4: 64:ff9b::/96.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded()),
        // IETF protocols (2001::/23: Teredo, benchmarks, ORCHID) and documentation, 6to4, documentation.
        [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use paybell_shared::secret::Secret;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const SECRET: &str = "whsec_dGhlLXRlc3RzLW93bi1zZWNyZXQtMDEy";

    fn subscriber(url: &str, allow_private: bool) -> Subscriber {
        Subscriber { name: "it".into(), url: url.to_owned(), secrets: vec![Secret::new("first", SECRET)], allow_private }
    }

    #[test]
    fn only_public_addresses_are_called() {
        for public in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"]
            .into_iter()
            .chain(["169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "168.63.129.15", "168.63.129.17"])
            .chain(["191.255.255.255", "192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255"])
            .chain(["198.20.0.0", "198.51.99.255", "203.0.114.0", "223.255.255.255"])
            .chain(["2606:4700:4700::1111", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2a00:1450:4001::1"])
            .chain(["::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "3fff:1000::1"])
        {
            assert_eq!(check(public.parse().unwrap()), Ok(()), "{public}");
        }
        for special in ["0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255"]
            .into_iter()
            .chain(["127.0.0.1", "127.255.255.255", "169.254.0.1", "169.254.169.254", "172.16.0.0", "172.31.255.255"])
            .chain(["168.63.129.16", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255"])
            .chain(["198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"])
            .chain(["240.0.0.1", "255.255.255.255"])
            .chain([
                "::",
                "::1",
                "::7f00:1",
                "::10.0.0.1",
                "fe80::1",
                "febf::1",
                "fec0::1",
                "fc00::1",
                "fd00:ec2::254",
                "ff02::1",
            ])
            .chain(["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"])
            .chain(["64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1.1.1.1", "64:ff9b:1::10.0.0.1"])
            .chain(["2002:7f00:1::", "2002:a00:1::", "2002:101:101::", "2001::1", "2001:0:7f00:1::", "2001:1ff::1", "2001:2::1"])
            .chain(["2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1", "3fff:fff::1", "100::1", "5f00::1", "4000::1"])
        {
            let address = special.parse().unwrap();
            assert_eq!(check(address), Err(NotPublic(address)), "{special}");
        }
    }

    #[test]
    fn an_address_in_the_url_is_checked_however_it_is_written() {
        for url in ["https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1:8443/"]
            .into_iter()
            .chain(["https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://[fe80::1]/", "https://169.254.169.254/latest"])
            .chain(["https://0/", "https://１２７.0.0.1/", "https://127.0.0.1./"])
        {
            let refused = Notifier::new(&subscriber(url, false));
            assert!(matches!(refused, Err(NotifierError::Address(_))), "{url}: {refused:?}");
            Notifier::new(&subscriber(url, true)).unwrap();
        }
        Notifier::new(&subscriber("https://1.1.1.1/", false)).unwrap();
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_refused_at_each_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // `http:` only so that what a connection would look like is plain; the configuration demands `https:` here.
        let notifier = Notifier::new(&subscriber(&format!("http://localhost:{port}/hook"), false)).unwrap();
        for _ in 0..2 {
            let error = notifier.notify(Uuid::nil(), NOW, Bytes::from_static(b"{}")).await.unwrap_err();
            let shown = format!("{:#}", anyhow::Error::new(error));
            assert!(shown.contains("is not a public one") && !shown.contains("/hook"), "{shown}");
        }
        let called = tokio::time::timeout(Duration::from_millis(10), listener.accept()).await;
        assert!(called.is_err(), "it was called all the same");
    }

    #[test]
    fn a_wish_to_be_left_alone_is_heard_within_limits() {
        assert_eq!(retry_after("120", NOW), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(" 0 ", NOW), Some(Duration::ZERO));
        assert_eq!(retry_after("99999999999", NOW), Some(RETRY_AFTER_MAX));
        // NOW is Mon, 21 Sep 2026 14:13:20 GMT.
        assert_eq!(retry_after("Mon, 21 Sep 2026 14:14:20 GMT", NOW), Some(Duration::from_mins(1)));
        assert_eq!(retry_after("Mon, 21 Sep 2026 14:12:20 GMT", NOW), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(retry_after(nonsense, NOW), None, "{nonsense}");
        }
    }

    #[test]
    fn a_notifier_prints_neither_secret_nor_path() {
        let notifier = Notifier::new(&subscriber("https://shop.example/hush", false)).unwrap();
        assert_eq!(format!("{notifier:?}"), "Notifier(it)");
    }
}
