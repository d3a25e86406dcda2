//! Reading JSON that is authentic but not trusted to be sane: strict, bounded, and every problem with its place.
//!
//! A key that is there twice is refused (two readers would see two truths), and so is nesting beyond [`DEPTH_MAX`].
//! Numbers are integers or nothing: no amount ever passes through a float.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::{ReadError, TranslateError};
use crate::money::{Currency, Money};

/// How deep objects and arrays may nest. A PSP's events stay below ten.
const DEPTH_MAX: usize = 64;

/// The largest amount in minor units: what a double holds exactly, so that no other JSON reader sees another amount.
const AMOUNT_MAX: i64 = 1 << 53;

/// The longest name (id, reference, type) that is read, in bytes: the AMQP short string and the database's keys.
const NAME_BYTES_MAX: usize = 255;

/// The longest pointer that is reported, in bytes; it enters a fingerprint and a log line.
const POINTER_BYTES_MAX: usize = 512;

/// A JSON value that borrows its strings from the bytes where it can.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that is no `i64`: with a fraction or an exponent, or too big.
    OtherNumber,
    String(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    Object(BTreeMap<Cow<'a, str>, Value<'a>>),
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// One of a closed set: it enters fingerprints.
    pub reason: &'static str,
    /// JSON pointer (RFC 6901).
    pub pointer: String,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    value: &'a Value<'a>,
    pointer: String,
}

/// Whether a text may be a name: 1 to 255 bytes, no control characters.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Reads a whole document.
pub(super) fn read(bytes: &[u8]) -> Result<Value<'_>, Problem> {
    let failure = RefCell::new(Failure { reason: "not JSON", trail: Vec::new() });
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = ValueSeed { depth: 0, failure: &failure }.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|_| {
        let Failure { reason, trail } = failure.into_inner();
        let pointer = trail.iter().rev().fold(String::new(), |pointer, key| child_pointer(&pointer, key));
        Problem { reason, pointer }
    })
}

impl<'a> Node<'a> {
    pub(super) const fn root(value: &'a Value<'a>) -> Self {
        Self { value, pointer: String::new() }
    }

    /// The member `key`; a null counts as absent, and so does anything in what is no object.
    pub(super) fn optional(&self, key: &str) -> Option<Self> {
        let Value::Object(members) = self.value else { return None };
        let value = members.get(key).filter(|value| !matches!(value, Value::Null))?;
        Some(Self { value, pointer: child_pointer(&self.pointer, key) })
    }

    pub(super) fn required(&self, key: &str) -> Result<Self, Problem> {
        self.optional(key).ok_or_else(|| Problem { reason: "missing", pointer: child_pointer(&self.pointer, key) })
    }

    /// The member `key`, which must be an object.
    pub(super) fn object(&self, key: &str) -> Result<Self, Problem> {
        let member = self.required(key)?;
        if matches!(member.value, Value::Object(_)) { Ok(member) } else { Err(member.problem("not an object")) }
    }

    /// The elements of the member `key`, which must be an array.
    pub(super) fn array(&self, key: &str) -> Result<Vec<Self>, Problem> {
        let member = self.required(key)?;
        let Value::Array(values) = member.value else { return Err(member.problem("not an array")) };
        let place = |(index, value)| Self { value, pointer: child_pointer(&member.pointer, &format!("{index}")) };
        Ok(values.iter().enumerate().map(place).collect())
    }

    pub(super) fn as_text(&self) -> Option<&'a str> {
        if let Value::String(text) = self.value { Some(text) } else { None }
    }

    /// The member `key`, if it is a string.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.optional(key)?.as_text()
    }

    /// The member `key`, which must be a name.
    pub(super) fn name(&self, key: &str) -> Result<&'a str, Problem> {
        self.required(key)?.into_name()
    }

    /// The member `key`, which may be absent, but if it is there must be a name.
    pub(super) fn optional_name(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        self.optional(key).map(Self::into_name).transpose()
    }

    fn into_name(self) -> Result<&'a str, Problem> {
        match self.as_text() {
            Some(text) if is_name(text) => Ok(text),
            Some(_) => Err(self.problem("not a name of 1 to 255 bytes")),
            None => Err(self.problem("not a string")),
        }
    }

    pub(super) fn optional_bool(&self, key: &str) -> Result<Option<bool>, Problem> {
        let Some(member) = self.optional(key) else { return Ok(None) };
        if let Value::Bool(value) = member.value { Ok(Some(*value)) } else { Err(member.problem("not a boolean")) }
    }

    pub(super) fn optional_integer(&self, key: &str) -> Result<Option<i64>, Problem> {
        self.optional(key).map(Self::into_integer).transpose()
    }

    pub(super) fn integer(&self, key: &str) -> Result<i64, Problem> {
        self.required(key)?.into_integer()
    }

    fn into_integer(self) -> Result<i64, Problem> {
        if let Value::Integer(value) = self.value { Ok(*value) } else { Err(self.problem("not an integer")) }
    }

    /// An amount in minor units at `key`, in the currency at `currency`.
    pub(super) fn money(&self, key: &str) -> Result<Money, Problem> {
        let minor = self.integer(key)?;
        let problem = |reason| Problem { reason, pointer: child_pointer(&self.pointer, key) };
        if minor < 0 {
            return Err(problem("a negative amount"));
        }
        if minor > AMOUNT_MAX {
            return Err(problem("an amount too large"));
        }
        let currency = self.required("currency")?;
        let parsed = currency.as_text().and_then(|code| Currency::parse(code).ok());
        Ok(Money::new(minor, parsed.ok_or_else(|| currency.problem("not a currency"))?))
    }

    /// An amount in major units, as a decimal string at `key` and its currency at `currency`: `"49.99"` and `"EUR"`.
    /// Never negative; digits beyond the currency's minor unit must be zeros.
    pub(super) fn decimal_money(&self, key: &str, currency: &str) -> Result<Money, Problem> {
        let amount = self.required(key)?;
        let text = amount.as_text().ok_or_else(|| amount.problem("not a decimal string"))?;
        let code = self.required(currency)?;
        let currency =
            code.as_text().and_then(|code| Currency::parse(code).ok()).ok_or_else(|| code.problem("not a currency"))?;
        decimal(text, currency).map_err(|reason| amount.problem(reason))
    }

    /// The text at a path of keys, if it is there and is a name.
    pub(super) fn name_at<K: AsRef<str>>(&self, path: &[K]) -> Option<&'a str> {
        let mut value = self.value;
        for key in path {
            let Value::Object(members) = value else { return None };
            value = members.get(key.as_ref())?;
        }
        let Value::String(text) = value else { return None };
        Some(text.as_ref()).filter(|text| is_name(text))
    }

    /// A problem with this value.
    pub(super) fn problem(&self, reason: &'static str) -> Problem {
        Problem { reason, pointer: self.pointer.clone() }
    }
}

impl From<Problem> for TranslateError {
    fn from(Problem { reason, pointer }: Problem) -> Self {
        Self::Unintelligible { reason, pointer }
    }
}

impl From<Problem> for ReadError {
    fn from(Problem { reason, pointer }: Problem) -> Self {
        Self::Unintelligible(format!("{reason} at {pointer:?}"))
    }
}

/// A decimal text in major units, exactly. Digits of the minor unit are ISO 4217's.
pub(super) fn decimal(text: &str, currency: Currency) -> Result<Money, &'static str> {
    let money = Money::from_decimal(text, currency, currency.exponent()).map_err(|_| "not a decimal amount of its currency")?;
    match money.minor {
        ..0 => Err("a negative amount"),
        minor if minor > AMOUNT_MAX => Err("an amount too large"),
        _ => Ok(money),
    }
}

/// The literal text of the number or string at a path of keys, as it stands in the bytes: for amounts that a PSP writes as
/// JSON numbers with a fraction, which no reader may turn into floats. Of a document that [`read`] has accepted.
pub(super) fn literal_at<'a>(bytes: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let mut raw: &'a serde_json::value::RawValue = serde_json::from_slice(bytes).ok()?;
    for key in path {
        let members: BTreeMap<Cow<'a, str>, &'a serde_json::value::RawValue> = serde_json::from_str(raw.get()).ok()?;
        raw = members.get(*key)?;
    }
    Some(raw.get())
}

/// `parent/key`, with the key escaped; cut where it would be longer than what is reported.
fn child_pointer(parent: &str, key: &str) -> String {
    let mut pointer = format!("{parent}/{}", key.replace('~', "~0").replace('/', "~1"));
    if pointer.len() > POINTER_BYTES_MAX {
        pointer.truncate(pointer.floor_char_boundary(POINTER_BYTES_MAX));
    }
    pointer
}

/// Why and where reading stopped; the keys from the innermost to the outermost.
struct Failure {
    reason: &'static str,
    trail: Vec<String>,
}

#[derive(Clone, Copy)]
struct ValueSeed<'f> {
    depth: usize,
    failure: &'f RefCell<Failure>,
}

impl ValueSeed<'_> {
    fn fail<E: serde::de::Error>(&self, reason: &'static str) -> E {
        self.failure.borrow_mut().reason = reason;
        E::custom(reason)
    }

    /// The seed of a child, unless that is too deep.
    fn inner<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(self.fail("nested too deep"));
        }
        Ok(Self { depth: self.depth + 1, failure: self.failure })
    }

    fn note(&self, key: &str) {
        self.failure.borrow_mut().trail.push(key.to_owned());
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::OtherNumber, Value::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value<'de>, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = elements.next_element_seed(inner).inspect_err(|_| self.note(&values.len().to_string()))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value<'de>, A::Error> {
        let inner = self.inner()?;
        let mut values = BTreeMap::new();
        while let Some(key) = members.next_key_seed(KeySeed)? {
            if values.contains_key(&key) {
                self.note(&key);
                return Err(self.fail("a key that is there twice"));
            }
            let value = members.next_value_seed(inner).inspect_err(|_| self.note(&key))?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

/// Reads a key without copying it where it has no escapes.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(text: &str) -> (&'static str, String) {
        let problem = read(text.as_bytes()).unwrap_err();
        (problem.reason, problem.pointer)
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        assert_eq!(problem(r#"{"a":{"b/c":[0,{"x":1,"x":2}]}}"#), ("a key that is there twice", "/a/b~1c/1/x".to_owned()));
        assert_eq!(problem(r#"{"x":1,"\u0078":2}"#), ("a key that is there twice", "/x".to_owned()));
        for bad in ["", " ", "{", "{}{}", "{} x", "nul", "{\"a\":1e999}", "\u{feff}{}", "{'a':1}", "[1,]"] {
            assert_eq!(problem(bad).0, "not JSON", "{bad:?}");
        }
        assert_eq!(read(b"{\"a\":\"\xff\"}").unwrap_err().pointer, "/a");
    }

    #[test]
    fn depth_is_bounded_at_its_limit() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(problem(&nested(DEPTH_MAX + 1)).0, "nested too deep");
        assert_eq!(problem(&"[".repeat(200_000)).0, "nested too deep");
        assert!(problem(&"{\"averylongkey\":".repeat(200_000)).1.len() <= POINTER_BYTES_MAX);
    }

    #[test]
    fn money_is_a_sane_integer_with_a_currency() {
        let read_money = |text: &str| {
            let value = read(text.as_bytes()).unwrap();
            Node::root(&value).money("amount").map(|money| money.minor).map_err(|problem| (problem.reason, problem.pointer))
        };
        assert_eq!(read_money(r#"{"amount":4999,"currency":"eur"}"#), Ok(4999));
        assert_eq!(read_money(r#"{"amount":9007199254740992,"currency":"eur"}"#), Ok(AMOUNT_MAX));
        for (text, reason, pointer) in [
            (r#"{"amount":9007199254740993,"currency":"eur"}"#, "an amount too large", "/amount"),
            (r#"{"amount":-1,"currency":"eur"}"#, "a negative amount", "/amount"),
            (r#"{"amount":49.99,"currency":"eur"}"#, "not an integer", "/amount"),
            (r#"{"amount":1e3,"currency":"eur"}"#, "not an integer", "/amount"),
            (r#"{"amount":18446744073709551615,"currency":"eur"}"#, "not an integer", "/amount"),
            (r#"{"amount":99999999999999999999999999,"currency":"eur"}"#, "not an integer", "/amount"),
            (r#"{"amount":"4999","currency":"eur"}"#, "not an integer", "/amount"),
            (r#"{"amount":4999,"currency":"euro"}"#, "not a currency", "/currency"),
            (r#"{"amount":4999,"currency":null}"#, "missing", "/currency"),
            (r#"{"currency":"eur"}"#, "missing", "/amount"),
            ("[]", "missing", "/amount"),
        ] {
            assert_eq!(read_money(text), Err((reason, pointer.to_owned())), "{text}");
        }
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        let read_money = |amount: &str, currency: &str| {
            let text = format!(r#"{{"value":"{amount}","code":"{currency}"}}"#);
            let value = read(text.as_bytes()).unwrap();
            Node::root(&value).decimal_money("value", "code").map(|money| money.minor).map_err(|problem| problem.reason)
        };
        for (amount, currency, minor) in
            [("49.99", "EUR", 4999), ("0.07", "eur", 7), ("500", "JPY", 500), ("500.00", "JPY", 500), ("1.234", "TND", 1234)]
        {
            assert_eq!(read_money(amount, currency), Ok(minor), "{amount} {currency}");
        }
        for bad in ["49.999", "-1.00", "1e2", "", ".5", "5.", "1,000.00", " 1", "99999999999999999.00"] {
            assert!(read_money(bad, "EUR").is_err(), "{bad}");
        }
        let text = br#"{"data":{"amount": 49.90 ,"n":"x"}}"#;
        assert_eq!(literal_at(text, &["data", "amount"]), Some("49.90"));
        assert_eq!(literal_at(text, &["data", "n"]), Some("\"x\""));
        assert_eq!(literal_at(text, &["data", "none"]), None);
    }

    #[test]
    fn names_are_bounded_at_their_limit() {
        assert!(is_name(&"a".repeat(255)) && is_name("ORD 1001/é"));
        for bad in ["", "a\nb", "a\0", "\u{85}", &"a".repeat(256)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_agrees_with_serde_json_on_what_is_json(text in "[\\[\\]{}:,\"a0-9e.\\-\\\\ ]{0,40}") {
            if read(text.as_bytes()).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
