//! Message authentication codes, as the simulated PSPs compute them: over parts, one after the other.

use hmac::Hmac;
use hmac::digest::KeyInit;
use sha1::Sha1;
use sha2::{Sha256, Sha512};

pub(super) fn sha1(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    mac::<Hmac<Sha1>>(key, parts)
}

pub(super) fn sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    mac::<Hmac<Sha256>>(key, parts)
}

pub(super) fn sha512(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    mac::<Hmac<Sha512>>(key, parts)
}

fn mac<M: hmac::Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    // A key of any length is a key to HMAC.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}
