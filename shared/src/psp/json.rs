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

/// A place in a document (RFC 6901), from a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    /// Reads `/a/b/0`; `None` for what is no pointer, and for the empty one, which leads to the whole document.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let escapes = |key: &str| key.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        let keys = text.strip_prefix('/')?.split('/');
        let unescaped = |key: &str| escapes(key).then(|| key.replace("~1", "/").replace("~0", "~"));
        keys.map(unescaped).collect::<Option<_>>().map(Self)
    }
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

    /// The member `key`, or a null in its place.
    pub(super) fn member(&self, key: &str) -> Self {
        static NULL: Value<'static> = Value::Null;
        self.optional(key).unwrap_or_else(|| Self { value: &NULL, pointer: child_pointer(&self.pointer, key) })
    }

    /// What a pointer leads to; a null counts as absent.
    pub(super) fn at(&self, pointer: &Pointer) -> Result<Self, Problem> {
        let mut found = Self { value: self.value, pointer: self.pointer.clone() };
        for key in &pointer.0 {
            let value = match found.value {
                Value::Object(members) => members.get(key.as_str()),
                Value::Array(values) => array_index(key).and_then(|index| values.get(index)),
                _ => None,
            };
            let place = child_pointer(&found.pointer, key);
            match value {
                Some(value) if !matches!(value, Value::Null) => found = Self { value, pointer: place },
                _ => return Err(Problem { reason: "missing", pointer: place }),
            }
        }
        Ok(found)
    }

    /// The member `key`, which must be an object.
    pub(super) fn object(&self, key: &str) -> Result<Self, Problem> {
        let member = self.required(key)?;
        if matches!(member.value, Value::Object(_)) { Ok(member) } else { Err(member.problem("not an object")) }
    }

    /// The elements of the member `key`, which must be an array.
    pub(super) fn array(&self, key: &str) -> Result<Vec<Self>, Problem> {
        self.required(key)?.elements()
    }

    /// The elements of this value, which must be an array.
    pub(super) fn elements(&self) -> Result<Vec<Self>, Problem> {
        let Value::Array(values) = self.value else { return Err(self.problem("not an array")) };
        let place = |(index, value)| Self { value, pointer: child_pointer(&self.pointer, &format!("{index}")) };
        Ok(values.iter().enumerate().map(place).collect())
    }

    /// The names of this value's members; none, of what is no object.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let members = if let Value::Object(members) = self.value { Some(members) } else { None };
        members.into_iter().flat_map(|members| members.keys().map(AsRef::as_ref))
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

    /// This value as a name.
    pub(super) fn into_name(self) -> Result<&'a str, Problem> {
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

    pub(super) fn into_integer(self) -> Result<i64, Problem> {
        if let Value::Integer(value) = self.value { Ok(*value) } else { Err(self.problem("not an integer")) }
    }

    /// This value as an id: a name, or a number that is not negative, in decimal.
    pub(super) fn into_id(self) -> Result<Cow<'a, str>, Problem> {
        match self.value {
            Value::Integer(number @ 0..) => Ok(Cow::Owned(number.to_string())),
            Value::Integer(_) | Value::OtherNumber => Err(self.problem("a number that is no id")),
            _ => self.into_name().map(Cow::Borrowed),
        }
    }

    /// This value as an amount in minor units.
    fn into_minor(self) -> Result<i64, Problem> {
        match self.value {
            Value::Integer(..0) => Err(self.problem("a negative amount")),
            Value::Integer(minor) if *minor > AMOUNT_MAX => Err(self.problem("an amount too large")),
            _ => self.into_integer(),
        }
    }

    /// This value as a currency.
    pub(super) fn into_currency(self) -> Result<Currency, Problem> {
        let parsed = self.as_text().and_then(|code| Currency::parse(code).ok());
        parsed.ok_or_else(|| self.problem("not a currency"))
    }

    /// An amount in minor units at `key`, in the currency at `currency`.
    pub(super) fn money(&self, key: &str) -> Result<Money, Problem> {
        let minor = self.required(key)?.into_minor()?;
        Ok(Money::new(minor, self.required("currency")?.into_currency()?))
    }

    /// This value as an amount, of which the writer chose the form: an integer counts minor units, a decimal string major
    /// ones. A number with a fraction is refused: `50.0` and `50` would be amounts of another size.
    pub(super) fn into_money(self, currency: Currency) -> Result<Money, Problem> {
        match self.as_text() {
            Some(text) => decimal(text, currency).map_err(|reason| self.problem(reason)),
            None => Ok(Money::new(self.into_minor()?, currency)),
        }
    }

    /// An amount in major units, as a decimal string at `key` and its currency at `currency`: `"49.99"` and `"EUR"`.
    /// Never negative; digits beyond the currency's minor unit must be zeros.
    pub(super) fn decimal_money(&self, key: &str, currency: &str) -> Result<Money, Problem> {
        let amount = self.required(key)?;
        let text = amount.as_text().ok_or_else(|| amount.problem("not a decimal string"))?;
        decimal(text, self.required(currency)?.into_currency()?).map_err(|reason| amount.problem(reason))
    }

    /// The integer at `key` as an amount in minor units of a currency that stands elsewhere.
    pub(super) fn minor_money(&self, key: &str, currency: Currency) -> Result<Money, Problem> {
        Ok(Money::new(self.required(key)?.into_minor()?, currency))
    }

    /// An amount in minor units at `key`, as an integer or as a string of digits; its currency is at `currency` of `priced`.
    pub(super) fn minor_units(&self, key: &str, priced: &Self) -> Result<Money, Problem> {
        let amount = self.required(key)?;
        let currency = priced.required("currency")?.into_currency()?;
        let minor = match amount.as_text() {
            Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                let minor = text.parse().ok().filter(|minor| *minor <= AMOUNT_MAX);
                minor.ok_or_else(|| amount.problem("an amount too large"))?
            }
            Some(_) => return Err(amount.problem("not an integer")),
            None => amount.into_minor()?,
        };
        Ok(Money::new(minor, currency))
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

/// The pointer to the end of a path of keys.
pub(super) fn pointer_to(path: &[&str]) -> String {
    path.iter().fold(String::new(), |pointer, key| child_pointer(&pointer, key))
}

/// The elements of an array, each as its literal text. Of what [`read`] has accepted.
pub(super) fn literals(array: &str) -> Option<Vec<&str>> {
    let elements: Vec<&serde_json::value::RawValue> = serde_json::from_str(array).ok()?;
    Some(elements.into_iter().map(serde_json::value::RawValue::get).collect())
}

/// An array's index as a pointer writes it: digits, no leading zero.
fn array_index(key: &str) -> Option<usize> {
    let plain = key == "0" || (!key.starts_with('0') && key.bytes().all(|byte| byte.is_ascii_digit()));
    plain.then(|| key.parse().ok()).flatten()
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
    fn pointers_lead_where_rfc_6901_says() {
        let document = read(br#"{"a":{"b/c":[{"m~n":7},null]},"":{"":"x"},"0":[1]}"#).unwrap();
        let root = Node::root(&document);
        let at = |text: &str| root.at(&Pointer::parse(text).unwrap()).map(|node| node.pointer);
        for good in ["/a/b~1c/0/m~0n", "/", "//", "/0/0", "/a"] {
            assert_eq!(at(good), Ok(good.to_owned()));
        }
        for absent in ["/a/b~1c/1", "/a/b~1c/00", "/a/b~1c/-", "/a/b~1c/+0", "/a/b~1c/9", "/a/b~1c/0/m~0n/x", "/b", "///"] {
            assert_eq!(at(absent).unwrap_err().reason, "missing", "{absent}");
        }
        for bad in ["", "a", "a/b", "/~", "/~2", "/a~"] {
            assert_eq!(Pointer::parse(bad), None, "{bad}");
        }
        let member = |key: &str| root.member(key).optional("x").is_none() && root.member(key).required("x").is_err();
        assert!(member("nowhere") && root.member("a").optional("b/c").is_some());
    }

    #[test]
    fn ids_and_amounts_may_be_numbers_or_strings_but_never_floats() {
        let id = |text: &str| {
            let value = read(text.as_bytes()).unwrap();
            Node::root(&value).into_id().map(Cow::into_owned).map_err(|problem| problem.reason)
        };
        assert_eq!(id("285959875"), Ok("285959875".to_owned()));
        assert_eq!(id("\"x-1\""), Ok("x-1".to_owned()));
        for bad in ["-1", "1.5", "1e3", "99999999999999999999", "\"\"", "true", "[]"] {
            assert!(id(bad).is_err(), "{bad}");
        }
        let money = |text: &str, currency: &str| {
            let value = read(text.as_bytes()).unwrap();
            let money = Node::root(&value).into_money(Currency::parse(currency).unwrap());
            money.map(|money| money.minor).map_err(|problem| problem.reason)
        };
        for (text, currency, minor) in [
            ("4999", "EUR", 4999),
            ("\"49.99\"", "EUR", 4999),
            ("\"4999\"", "JPY", 4999),
            ("\"1.234\"", "BHD", 1234),
            ("0", "EUR", 0),
        ] {
            assert_eq!(money(text, currency), Ok(minor), "{text} {currency}");
        }
        for bad in ["49.99", "50.0", "5e3", "-1", "\"-1\"", "\"49.999\"", "9007199254740993", "null", "true"] {
            assert!(money(bad, "EUR").is_err(), "{bad}");
        }
        assert_eq!(literals(r#"[ {"a":49.90} , 1 ]"#), Some(vec![r#"{"a":49.90}"#, "1"]));
        assert_eq!(literals("{}"), None);
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
