//! The certificate that a webhook is signed by: its chain, its time, its name, and the signature under it.
//!
//! The chain is checked as a TLS client would (webpki), against the roots that PayPal's certificates are under, and none of
//! the hundred others that a system trusts. Revocation is not checked: to ask for it would be a call to someone else.

use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::ring::RSA_PKCS1_2048_8192_SHA256;
use webpki::{EndEntityCert, KeyUsage};

use super::super::Rejection;
use crate::clock::Timestamp;

/// `DigiCert High Assurance EV Root CA`, under which the certificate of 2024 was (the vectors have it), `DigiCert Global Root
/// G2`, to which PayPal announced to move from October 2024 on, and `DigiCert Global Root CA`, from the system's certificates.
const ROOTS: &[u8] = include_bytes!("roots.pem");
/// `DigiCert SHA2 Extended Validation Server CA` and `DigiCert EV RSA CA G2`, which issue PayPal's certificates: what PayPal
/// publishes is the leaf alone. They are trusted for nothing but as links to a root.
const INTERMEDIATES: &[u8] = include_bytes!("intermediates.pem");

/// Certificates in one file. PayPal's has one; a whole chain has three or four.
const CERTIFICATES_MAX: usize = 8;

/// PayPal's SDK wants the common name to end so.
const DOMAIN: &str = ".paypal.com";

/// The attribute type of a common name (2.5.4.3), in DER.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const DER_SEQUENCE: u8 = 0x30;
const DER_SET: u8 = 0x31;
const DER_OBJECT_ID: u8 = 0x06;

/// Whether the first certificate in `pem` is PayPal's now, and made `signature` (PKCS #1 v1.5 with SHA-256) over `message`.
pub(super) fn verify(
    pem: &[u8],
    trusted_root: Option<&str>,
    now: Timestamp,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Rejection> {
    let sent = read(pem).ok_or(Rejection::Certificate("it is no PEM of a few certificates"))?;
    let (leaf, others) = sent.split_first().ok_or(Rejection::Certificate("it is no PEM of a few certificates"))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| Rejection::Certificate("it is no X.509 certificate"))?;

    let roots = read(trusted_root.map_or(ROOTS, str::as_bytes)).ok_or(Rejection::Setting("trusted_root"))?;
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root))
        .collect::<Result<_, _>>()
        .map_err(|_| Rejection::Setting("trusted_root"))?;
    let known = read(INTERMEDIATES).unwrap_or_default();
    let intermediates: Vec<CertificateDer<'_>> = others.iter().chain(&known).cloned().collect();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.seconds()).unwrap_or(0)));
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &intermediates, at, KeyUsage::server_auth(), None, None)
        .map_err(|error| Rejection::Certificate(problem(&error)))?;
    if !is_paypals(&leaf) {
        return Err(Rejection::Certificate("its name is not PayPal's"));
    }
    leaf.verify_signature(RSA_PKCS1_2048_8192_SHA256, message, signature).map_err(|_| Rejection::SignatureMismatch { secrets: 1 })
}

/// Whether `pem` can be a `trusted_root`.
pub(super) fn is_trust_anchor(pem: &str) -> bool {
    read(pem.as_bytes())
        .is_some_and(|roots| !roots.is_empty() && roots.iter().all(|root| webpki::anchor_from_trusted_cert(root).is_ok()))
}

/// All certificates of a PEM file; other sections are passed over.
fn read(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).take(CERTIFICATES_MAX + 1).collect::<Result<_, _>>().ok()?;
    (certificates.len() <= CERTIFICATES_MAX).then_some(certificates)
}

fn problem(error: &webpki::Error) -> &'static str {
    match error {
        webpki::Error::CertExpired { .. } => "it has expired, or one above it has",
        webpki::Error::CertNotValidYet { .. } => "it is not valid yet",
        webpki::Error::UnknownIssuer => "it leads to no trusted root",
        _ => "it is not sound",
    }
}

/// By the common name, as PayPal's SDK, and by the alternative names, as everyone since: where it has either, it must be
/// PayPal's.
fn is_paypals(leaf: &EndEntityCert<'_>) -> bool {
    let Some(common) = common_names(leaf.subject()) else { return false };
    let alternative: Vec<&str> = leaf.valid_dns_names().collect();
    let all_common = common.iter().all(|name| std::str::from_utf8(name).is_ok_and(is_in_domain));
    let any_alternative = alternative.iter().any(|name| is_in_domain(name));
    all_common && (any_alternative || (alternative.is_empty() && !common.is_empty()))
}

/// A host of PayPal's; no pattern, and not the domain itself.
fn is_in_domain(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    name.strip_suffix(DOMAIN).is_some_and(|host| host.split('.').all(is_label))
}

/// The common names in the contents of a subject (X.501: a sequence of sets of pairs). `None`: it is no such thing.
fn common_names(mut subject: &[u8]) -> Option<Vec<&[u8]>> {
    let mut names = Vec::new();
    while !subject.is_empty() {
        let (mut set, rest) = element(subject, Some(DER_SET))?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, Some(DER_SEQUENCE))?;
            set = rest;
            let (attribute, value) = element(pair, Some(DER_OBJECT_ID))?;
            if attribute == COMMON_NAME {
                // Of whatever string type: what is not ASCII in it is no host.
                names.push(element(value, None)?.0);
            }
        }
    }
    Some(names)
}

/// The contents of the first DER element, which has this tag, and what is behind it.
fn element(der: &[u8], tag: Option<u8>) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    if tag.is_some_and(|tag| tag != *found) {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_hosts_of_paypal_are_paypals() {
        for good in ["messageverificationcerts.paypal.com", "messageverificationcerts.sandbox.PayPal.com", "a.paypal.com"] {
            assert!(is_in_domain(good), "{good}");
        }
        for bad in [
            "paypal.com",
            ".paypal.com",
            "evilpaypal.com",
            "x.paypal.com.evil.example",
            "*.paypal.com",
            "a..paypal.com",
            "",
            "a\0.paypal.com",
        ] {
            assert!(!is_in_domain(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_bundled_certificates_are_whole() {
        assert_eq!(read(ROOTS).unwrap().len(), 3);
        assert!(is_trust_anchor(std::str::from_utf8(ROOTS).unwrap()));
        let (roots, intermediates) = (read(ROOTS).unwrap(), read(INTERMEDIATES).unwrap());
        let anchors: Vec<_> = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
        assert_eq!(intermediates.len(), 2);
        for intermediate in &intermediates {
            // As if it were a leaf: that it is a CA is all that must be wrong with it.
            let cert = EndEntityCert::try_from(intermediate).unwrap();
            let at = UnixTime::since_unix_epoch(Duration::from_secs(1_790_000_000));
            let result =
                cert.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], at, KeyUsage::server_auth(), None, None);
            assert!(matches!(result, Err(webpki::Error::CaUsedAsEndEntity)), "{:?}", result.err());
        }
    }

    #[test]
    fn common_names_are_found_wherever_they_stand() {
        let set = |pairs: &[&[u8]]| {
            let body = pairs.concat();
            [&[DER_SET, u8::try_from(body.len()).unwrap()], &body[..]].concat()
        };
        let pair = |kind: u8, value: &[u8]| {
            let text = [&[0x0c, u8::try_from(value.len()).unwrap()], value].concat();
            let oid = [DER_OBJECT_ID, 3, 0x55, 0x04, kind];
            let length = u8::try_from(oid.len() + text.len()).unwrap();
            [&[DER_SEQUENCE, length][..], &oid, &text].concat()
        };
        let subject =
            [set(&[&pair(6, b"US")]), set(&[&pair(10, b"PayPal"), &pair(3, b"one")]), set(&[&pair(3, b"two")])].concat();
        assert_eq!(common_names(&subject), Some(vec![&b"one"[..], b"two"]));
        assert_eq!(common_names(b""), Some(Vec::new()));
        for broken in [&subject[..subject.len() - 1], b"\x31\x80", b"\x31\x02\x30", b"\x30\x00"] {
            assert_eq!(common_names(broken), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = common_names(&bytes);
            let _ = verify(&bytes, None, Timestamp::from_seconds(0), b"", b"");
        }
    }
}
