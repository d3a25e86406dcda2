//! What the adapters' `verify` share: headers read strictly, MACs compared without telling anything by time.
//!
//! SDKs are lax here in different ways (first or last of two headers, surplus bytes after a signature); we refuse.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{CONTENT_TYPE, GetAll};
use http::{HeaderMap, HeaderValue};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::{Keys, Rejection};
use crate::clock::Timestamp;
use crate::secret::Secret;

/// The longest header that is read, in bytes: sixteen signatures of the longest kind (`v1a`, 92 bytes) fit twice.
pub(super) const HEADER_BYTES_MAX: usize = 4096;

/// Signatures in one call. PSPs send one per active secret, at most a handful during a rotation.
pub(super) const SIGNATURES_MAX: usize = 16;

/// The most digits that a time in seconds has: enough for thirty million years, and no overflow.
const TIMESTAMP_DIGITS_MAX: usize = 15;

/// The longest content type that is kept, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// Of secrets, which are written with and without padding. Signatures have theirs.
pub(super) const EITHER_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A header that must be there exactly once, in visible ASCII and spaces, within [`HEADER_BYTES_MAX`].
pub(super) fn exactly_one<'h>(headers: &'h HeaderMap, header: &'static str) -> Result<&'h str, Rejection> {
    exactly_one_called(&headers.get_all(header), header)
}

/// The same of a header whose name is a setting: `header` is what a rejection calls it.
pub(super) fn exactly_one_called<'h>(values: &GetAll<'h, HeaderValue>, header: &'static str) -> Result<&'h str, Rejection> {
    let malformed = |problem| Rejection::MalformedHeader { header, problem };
    let mut values = values.iter();
    let value = values.next().ok_or(Rejection::MissingHeader(header))?;
    if values.next().is_some() {
        return Err(Rejection::DuplicateHeader(header));
    }
    let text = value.to_str().map_err(|_| malformed("it is not ASCII text"))?;
    if text.is_empty() {
        return Err(malformed("it is empty"));
    }
    if text.len() > HEADER_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    Ok(text)
}

/// Seconds since the epoch: digits only, no sign, no leading zero. `None` for anything else.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.len() <= TIMESTAMP_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

/// Whether a signed time lies within the tolerance, either way; exactly at it is within. To be asked after the signature
/// holds, so that a rejection for age always speaks of a genuine webhook.
pub(super) fn within_tolerance(signed_s: i64, now: Timestamp, tolerance_s: u32) -> Result<(), Rejection> {
    let age_s = now.seconds().saturating_sub(signed_s);
    if age_s > i64::from(tolerance_s) {
        return Err(Rejection::TooOld { age_s, tolerance_s });
    }
    let ahead_s = age_s.saturating_neg();
    if ahead_s > i64::from(tolerance_s) {
        return Err(Rejection::TooNew { ahead_s, tolerance_s });
    }
    Ok(())
}

/// HMAC over the concatenation of `parts`, which is never built: the body is not copied.
macro_rules! hmac_over {
    ($hash:ty, $key:expr, $parts:expr) => {{
        // HMAC takes keys of any length (RFC 2104); the error exists for other MACs behind the same trait.
        let mut mac = Hmac::<$hash>::new_from_slice($key).expect("HMAC takes keys of any length");
        for part in $parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }};
}

/// HMAC-SHA1 over the concatenation of `parts`.
pub(super) fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    hmac_over!(Sha1, key, parts)
}

/// HMAC-SHA256 over the concatenation of `parts`.
pub(super) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    hmac_over!(Sha256, key, parts)
}

/// HMAC-SHA512 over the concatenation of `parts`.
pub(super) fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> [u8; 64] {
    hmac_over!(Sha512, key, parts)
}

/// Exactly `2 N` lower-case hex digits.
pub(super) fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lowercase = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (lowercase && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

/// `N` bytes in base64 of the standard alphabet, padded, with no bits left over.
pub(super) fn base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Checked before it is decoded: what is longer needs no room.
    (text.len() == N.div_ceil(3) * 4).then(|| STANDARD.decode(text).ok()?.try_into().ok()).flatten()
}

/// The name of the secret by which `equal` holds. All that are valid now are tried, whichever matches.
pub(super) fn matching_secret(
    keys: &Keys,
    now: Timestamp,
    mut equal: impl FnMut(&Secret) -> Choice,
) -> Result<Arc<str>, Rejection> {
    let mut matching = Matching::new();
    for (position, secret) in keys.active(now) {
        matching.note(position, equal(secret));
    }
    matching.secret_name(keys)
}

/// The name of the secret that is the token in the path, for PSPs that sign nothing.
pub(super) fn matching_token(keys: &Keys, now: Timestamp, token: Option<&str>) -> Result<Arc<str>, Rejection> {
    let token = token.ok_or(Rejection::Token)?;
    matching_secret(keys, now, |secret| secret.expose().as_bytes().ct_eq(token.as_bytes())).map_err(|_| Rejection::Token)
}

/// Collects which secret matched while every secret and every signature is tried, without a branch on the outcome.
pub(super) struct Matching {
    /// The position of the matching secret; [`Matching::NONE`] as long as none does.
    position: u32,
}

impl Matching {
    const NONE: u32 = u32::MAX;

    pub(super) const fn new() -> Self {
        Self { position: Self::NONE }
    }

    /// Notes the outcome for the secret at `position`.
    pub(super) fn note(&mut self, position: usize, equal: Choice) {
        let position = u32::try_from(position).unwrap_or(Self::NONE);
        self.position.conditional_assign(&position, equal);
    }

    /// The name of the secret that matched.
    pub(super) fn secret_name(&self, keys: &Keys) -> Result<Arc<str>, Rejection> {
        let secret = usize::try_from(self.position).ok().and_then(|position| keys.secrets.get(position));
        let secret = secret.ok_or(Rejection::SignatureMismatch { secrets: keys.secrets.len() })?;
        Ok(Arc::clone(secret.name()))
    }
}

/// Names a webhook that has no usable id of its own: SHA-256 of the body, in hex.
pub(super) fn body_id(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// The content type as it came, if it came once and is text of a sane length.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next().filter(|value| value.len() <= CONTENT_TYPE_BYTES_MAX)?;
    values.next().is_none().then(|| value.to_str().ok().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_agrees_with_rfc_4231() {
        let mac = hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(hex::encode(mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn headers_are_read_once_or_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(exactly_one(&headers, "x-signature"), Err(Rejection::MissingHeader("x-signature")));
        headers.append("x-signature", HeaderValue::from_static("a"));
        assert_eq!(exactly_one(&headers, "x-signature"), Ok("a"));
        headers.append("x-signature", HeaderValue::from_static("a"));
        assert_eq!(exactly_one(&headers, "x-signature"), Err(Rejection::DuplicateHeader("x-signature")));
        for bad in [&b""[..], b"\xff", "a".repeat(HEADER_BYTES_MAX + 1).as_bytes()] {
            headers.insert("x-signature", HeaderValue::from_bytes(bad).unwrap());
            assert_eq!(exactly_one(&headers, "x-signature").unwrap_err().reason(), "malformed_header");
        }
    }

    #[test]
    fn seconds_are_plain_digits() {
        assert_eq!(seconds("1790000000"), Some(1_790_000_000));
        assert_eq!(seconds("0"), Some(0));
        for bad in ["", "01", "+1", "-1", " 1", "1 ", "1.0", "1e9", "yesterday", "٣", "1000000000000000"] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn tolerance_holds_both_ways_and_includes_its_edge() {
        let now = Timestamp::from_millis(1_000_999);
        assert_eq!(within_tolerance(700, now, 300), Ok(()));
        assert_eq!(within_tolerance(1300, now, 300), Ok(()));
        assert_eq!(within_tolerance(699, now, 300), Err(Rejection::TooOld { age_s: 301, tolerance_s: 300 }));
        assert_eq!(within_tolerance(1301, now, 300), Err(Rejection::TooNew { ahead_s: 301, tolerance_s: 300 }));
        assert_eq!(within_tolerance(999, now, 0).unwrap_err().reason(), "too_old", "zero does not switch the check off");
    }

    #[test]
    fn matching_remembers_which_secret() {
        let keys = Keys { secrets: ["a", "b"].map(|name| Secret::new(name, "x")).to_vec(), ..Keys::default() };
        let mut matching = Matching::new();
        assert_eq!(matching.secret_name(&keys), Err(Rejection::SignatureMismatch { secrets: 2 }));
        matching.note(1, Choice::from(1));
        matching.note(0, Choice::from(0));
        assert_eq!(&*matching.secret_name(&keys).unwrap(), "b");
    }
}
