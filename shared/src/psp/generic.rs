//! Any PSP that signs its webhooks by an HMAC, by configuration alone.

use serde::Deserialize;

/// The table `[psp.generic]`, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The header that carries the signature.
    pub header: Option<String>,
    /// `sha1`, `sha256` or `sha512`.
    pub algorithm: Option<String>,
    /// Of the signature: `hex` or `base64`.
    pub encoding: Option<String>,
    /// What stands before the signature.
    pub prefix: Option<String>,
    /// What is signed: text around `{body}`, `{timestamp}` and `{url}`.
    pub template: Option<String>,
    pub timestamp_header: Option<String>,
    /// Of the secrets: `utf8`, `hex` or `base64`.
    pub key_encoding: Option<String>,
    /// JSON pointers into the body.
    pub id: Option<String>,
    pub r#type: Option<String>,
    pub order: Option<String>,
    pub payment: Option<String>,
    pub amount: Option<String>,
    pub currency: Option<String>,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Rules {
    pub settings: Settings,
}

impl Rules {
    /// Checks settings.
    ///
    /// # Errors
    /// The setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, super::SettingError> {
        Ok(Self { settings })
    }
}
