//! Secrets: read from `env:NAME`, `file:PATH` or a literal; compared in constant time; never printed.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::clock::Timestamp;

/// The most that a secret's file may hold, in bytes: a PEM bundle fits, a mistaken path to a log does not.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A secret and the name under which it may be spoken of. Its bytes are wiped when the last copy goes.
#[derive(Clone)]
pub struct Secret {
    name: Arc<str>,
    value: Arc<Zeroizing<String>>,
    /// From when on, and until before when, it may be used; for ever, where it is not said.
    window: (Option<Timestamp>, Option<Timestamp>),
}

/// A secret as a configuration names it, not read yet.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    Env(String),
    File(String),
    /// For files that are not for production.
    Literal(Zeroizing<String>),
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the environment variable {0} is not set, or is not UTF-8")]
    Env(String),
    #[error("the secret's file {path} cannot be read: {source}")]
    File { path: String, source: std::io::Error },
    #[error("the secret from {0} is empty")]
    Empty(String),
}

impl Secret {
    /// A secret under a name that is safe to print.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Arc::new(Zeroizing::new(value.into())), window: (None, None) }
    }

    /// Names the secret in metrics and logs: where it was read from, never what it is.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The secret itself. Every caller is a place to review.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// The same secret, valid from the first time on and until before the second.
    #[must_use]
    pub fn valid(self, from: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self { window: (from, until), ..self }
    }

    /// Whether it may be used at this time.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        let (from, until) = self.window;
        from.is_none_or(|from| from <= now) && until.is_none_or(|until| now < until)
    }

    /// Compares in time that depends on the lengths only.
    #[must_use]
    pub fn matches(&self, offered: &str) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.expose().as_bytes(), offered.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

impl SecretSource {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if let Some(name) = text.strip_prefix("env:") {
            Self::Env(name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            Self::File(path.to_owned())
        } else {
            Self::Literal(Zeroizing::new(text.to_owned()))
        }
    }

    /// Reads the secret. `fallback_name` names a literal, which has no name of its own. One trailing newline of a file
    /// is not part of the secret, since editors and `kubectl create secret` users add it.
    ///
    /// # Errors
    /// The variable or file is missing, unreadable or empty.
    pub fn read(&self, fallback_name: &str) -> Result<Secret, SecretError> {
        let (name, value) = match self {
            Self::Env(variable) => {
                let value = std::env::var(variable).map_err(|_| SecretError::Env(variable.clone()))?;
                (format!("env:{variable}"), Zeroizing::new(value))
            }
            Self::File(path) => {
                let value = read_limited(path).map_err(|source| SecretError::File { path: path.clone(), source })?;
                let text = value.strip_suffix('\n').unwrap_or(&value);
                let text = text.strip_suffix('\r').unwrap_or(text);
                (format!("file:{path}"), Zeroizing::new(text.to_owned()))
            }
            Self::Literal(value) => (fallback_name.to_owned(), value.clone()),
        };
        if value.is_empty() {
            return Err(SecretError::Empty(name));
        }
        Ok(Secret { name: name.into(), value: Arc::new(value), window: (None, None) })
    }
}

fn read_limited(path: &str) -> std::io::Result<Zeroizing<String>> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {SECRET_FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
            Self::Literal(_) => f.write_str("(literal)"),
        }
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints() {
        let secret = Secret::new("env:STRIPE", "whsec_very_private");
        let source = SecretSource::parse("whsec_very_private");
        assert!(!format!("{secret:?} {source:?} {:?}", source.read("psp[0].secrets[0]").unwrap()).contains("private"));
    }

    #[test]
    fn empty_and_missing_are_errors_with_a_name() {
        assert!(SecretSource::parse("").read("psp[0].secrets[0]").unwrap_err().to_string().contains("psp[0].secrets[0]"));
        assert!(SecretSource::parse("env:PAYBELL_NOT_SET_ANYWHERE").read("x").unwrap_err().to_string().contains("NOT_SET"));
        assert!(SecretSource::parse("file:/nonexistent/x").read("x").unwrap_err().to_string().contains("/nonexistent/x"));
    }
}
