//! The webhook endpoints that are registered at a simulated PSP: in no PSP's words; the dialects' APIs list and change them.

use super::dialect::Dialect;
use super::seed::Seed;

/// More than any PSP takes (Stripe: 16).
const ENDPOINTS_MAX: usize = 16;

/// A registered endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// What its id is made of; the first is 0.
    pub number: usize,
    pub url: String,
    pub enabled: bool,
    /// The PSP's names; `*` for all.
    pub events: Vec<String>,
    /// `None`: the PSP's newest.
    pub api_version: Option<String>,
    /// What its webhooks are signed by, as far as the PSP makes that up.
    pub secret: String,
}

/// A change of one: what is `None` stays.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub url: Option<String>,
    pub events: Option<Vec<String>>,
    pub enabled: Option<bool>,
}

/// Why the PSP takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Url,
    Taken,
    TooMany,
}

impl Refusal {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Url => "Invalid URL: a publicly accessible URL must be given.",
            Self::Taken => "The URL is registered already.",
            Self::TooMany => "You have reached the maximum of webhook endpoints.",
        }
    }
}

/// Makes one, which is enabled.
pub(super) fn create(
    dialect: &dyn Dialect,
    endpoints: &mut Vec<Registered>,
    url: &str,
    events: Vec<String>,
    api_version: Option<String>,
) -> Result<Registered, Refusal> {
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(Refusal::Url);
    }
    if endpoints.iter().any(|known| known.url == url) {
        return Err(Refusal::Taken);
    }
    if endpoints.len() >= ENDPOINTS_MAX {
        return Err(Refusal::TooMany);
    }
    let number = endpoints.iter().map(|known| known.number + 1).max().unwrap_or(0);
    let secret = dialect.secret(&Seed::new("endpoint", url, number));
    let made = Registered { number, url: url.to_owned(), enabled: true, events, api_version, secret };
    endpoints.push(made.clone());
    Ok(made)
}

/// Changes one; `None`: there is none of this number.
pub(super) fn change(endpoints: &mut [Registered], number: Option<usize>, change: Change) -> Option<Registered> {
    let found = endpoints.iter_mut().find(|known| Some(known.number) == number)?;
    if let Some(url) = change.url {
        found.url = url;
    }
    if let Some(events) = change.events {
        found.events = events;
    }
    found.enabled = change.enabled.unwrap_or(found.enabled);
    Some(found.clone())
}

/// The texts of a list in JSON.
pub(super) fn texts(value: &serde_json::Value) -> Option<Vec<String>> {
    value.as_array().map(|list| list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
}
