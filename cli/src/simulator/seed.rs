//! What ids are made of: always the same for the same object, never the same for another one.

use sha2::{Digest as _, Sha256};

/// A PSP's ids are cut from it, in the PSP's form.
#[derive(Clone, Debug)]
pub struct Seed {
    digest: [u8; 32],
    of: String,
}

const LETTERS_AND_DIGITS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

impl Seed {
    /// `kind` of object, what it belongs to (`of`: an order's id), and its number there.
    #[must_use]
    pub fn new(kind: &str, of: &str, number: usize) -> Self {
        Self { digest: Sha256::digest(format!("{kind}\n{of}\n{number}")).into(), of: of.to_owned() }
    }

    /// What the object belongs to: the order's id, for all but events.
    #[must_use]
    pub fn of(&self) -> &str {
        &self.of
    }

    /// So many lower-case hexadecimal digits, 64 at most.
    #[must_use]
    pub fn hex(&self, length: usize) -> String {
        let mut text = hex::encode(self.digest);
        text.truncate(length);
        text
    }

    /// So many upper-case letters and digits, 32 at most.
    #[must_use]
    pub fn letters(&self, length: usize) -> String {
        self.digest.iter().take(length).map(|byte| char::from(LETTERS_AND_DIGITS[usize::from(byte % 32)])).collect()
    }

    /// A number with so many decimal digits, 18 at most; it does not begin with a zero.
    #[must_use]
    pub fn number(&self, digits: u32) -> u64 {
        let least = 10u64.pow(digits.min(18).saturating_sub(1));
        let mut first = [0; 8];
        first.copy_from_slice(&self.digest[..8]);
        least + u64::from_be_bytes(first) % (least * 9)
    }

    /// In the form of a random UUID (version 4).
    #[must_use]
    pub fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.digest[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = hex::encode(bytes);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_object_has_the_same_id_in_any_form_and_another_another() {
        let (one, two) = (Seed::new("refund", "o", 0), Seed::new("refund", "o", 1));
        assert_eq!(one.hex(24), Seed::new("refund", "o", 0).hex(24));
        assert_ne!(one.hex(24), two.hex(24));
        assert_ne!(one.number(9), two.number(9));
        assert_eq!((one.hex(24).len(), one.letters(16).len(), one.number(9).to_string().len()), (24, 16, 9));
        assert_eq!((one.number(1).to_string().len(), one.number(18).to_string().len()), (1, 18));
        assert_eq!((one.uuid().len(), &one.uuid()[14..15]), (36, "4"));
        assert_eq!(one.of(), "o");
    }
}
