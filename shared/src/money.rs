//! Money is integer minor units with its currency, always together. No float touches it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A currency code of three ASCII letters, kept upper-case (PSPs differ in case; ISO 4217 does not).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// An amount in the currency's minor units (cents, yen, fils).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Money {
    #[serde(rename = "amount")]
    pub minor: i64,
    pub currency: Currency,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("{0:?} is not a currency code of three letters")]
    Currency(String),
    #[error("{0:?} is not a decimal amount with at most {1} fraction digits")]
    Decimal(String, u8),
    #[error("{0:?} is larger than an amount may be")]
    TooLarge(String),
}

/// ISO 4217 currencies without minor units, and those with three digits of them; all others have two.
const ZERO_DECIMAL: [&str; 16] =
    ["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"];
const THREE_DECIMAL: [&str; 7] = ["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];

impl Currency {
    /// Reads a code in any case.
    ///
    /// # Errors
    /// It is not three ASCII letters.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_alphabetic) => Ok(Self(code.map(|letter| letter.to_ascii_uppercase()))),
            _ => Err(MoneyError::Currency(text.chars().take(16).collect())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        // The constructor admits ASCII letters only.
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }

    /// Digits of the minor unit by ISO 4217. A PSP may deviate (Stripe sends ISK with two): its adapter says so.
    #[must_use]
    pub fn exponent(&self) -> u8 {
        let code = self.as_str();
        if ZERO_DECIMAL.contains(&code) {
            0
        } else if THREE_DECIMAL.contains(&code) {
            3
        } else {
            2
        }
    }
}

impl Money {
    #[must_use]
    pub const fn new(minor: i64, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// Reads a decimal string such as `49.99` exactly, with `exponent` digits of minor unit. Surplus fraction digits
    /// must be zero: money is never rounded.
    ///
    /// # Errors
    /// The text is not a plain decimal, has a digit that would be rounded away, or does not fit.
    pub fn from_decimal(text: &str, currency: Currency, exponent: u8) -> Result<Self, MoneyError> {
        let shown = || text.chars().take(40).collect::<String>();
        let malformed = || MoneyError::Decimal(shown(), exponent);
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || digits.ends_with('.') {
            return Err(malformed());
        }
        let (kept, surplus) = fraction.split_at(fraction.len().min(usize::from(exponent)));
        if surplus.bytes().any(|byte| byte != b'0') {
            return Err(malformed());
        }
        let mut minor: i64 = 0;
        let padding = usize::from(exponent) - kept.len();
        for digit in whole.bytes().chain(kept.bytes()).chain(std::iter::repeat_n(b'0', padding)) {
            minor = minor
                .checked_mul(10)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                .ok_or_else(|| MoneyError::TooLarge(shown()))?;
        }
        Ok(Self { minor: if negative { -minor } else { minor }, currency })
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::from(self.currency.exponent());
        let sign = if self.minor < 0 { "-" } else { "" };
        let absolute = self.minor.unsigned_abs().to_string();
        if digits == 0 {
            return write!(f, "{sign}{absolute} {}", self.currency);
        }
        let padded = format!("{absolute:0>width$}", width = digits + 1);
        let (whole, fraction) = padded.split_at(padded.len() - digits);
        write!(f, "{sign}{whole}.{fraction} {}", self.currency)
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn currency(code: &str) -> Currency {
        Currency::parse(code).unwrap()
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        let read = |text: &str, code: &str| {
            let currency = currency(code);
            Money::from_decimal(text, currency, currency.exponent()).map(|money| money.minor)
        };
        assert_eq!(read("49.99", "eur"), Ok(4999));
        assert_eq!(read("49.9", "EUR"), Ok(4990));
        assert_eq!(read("0.10", "EUR"), Ok(10));
        assert_eq!(read("-3", "EUR"), Ok(-300));
        assert_eq!(read("1000", "JPY"), Ok(1000));
        assert_eq!(read("1000.00", "JPY"), Ok(1000));
        assert_eq!(read("1.234", "KWD"), Ok(1234));
        for bad in ["", ".", "1.", ".5", "1e3", "1,00", "+1", "1.999", "--1", "1.0.0", "٣", "99999999999999999999"] {
            assert!(read(bad, "EUR").is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn currencies_are_three_letters_in_any_case() {
        assert_eq!(currency("eur"), currency("EUR"));
        for bad in ["", "EU", "EURO", "E1R", "€"] {
            assert!(Currency::parse(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_printed_amount_reads_back(minor in any::<i32>(), code in prop::sample::select(vec!["EUR", "JPY", "KWD"])) {
            let money = Money::new(i64::from(minor), currency(code));
            let printed = money.to_string();
            let number = printed.split(' ').next().unwrap();
            prop_assert_eq!(Money::from_decimal(number, money.currency, money.currency.exponent()), Ok(money));
        }
    }
}
