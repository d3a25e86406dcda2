//! Where the internal API of a running Paybell is, for commands that read from it.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use paybell_shared::config::{Config, Scope};
use paybell_shared::secret::SecretSource;
use reqwest::StatusCode;

use super::config::effective_path;
use super::send::reachable;
use crate::api::{Api, ApiError};
use crate::output::Failure;
use crate::simulator::http_client;

#[derive(Debug, clap::Args)]
pub struct Reading {
    /// Where the internal API is; default: what the configuration says.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// The internal API's token: `env:NAME`, `file:PATH`, or the token itself; default: the configuration's.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// The configuration to take address and token from; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
}

impl Reading {
    /// A client with a token that may read, and the URL that it asks.
    ///
    /// # Errors
    /// What is missing.
    pub fn api(&self) -> anyhow::Result<(Api, String)> {
        let config = match (&self.api, &self.token, &self.config) {
            // Nothing of it is needed, and nobody named one.
            (Some(_), Some(_), None) => None,
            _ => effective_path(self.config.clone()).map(|path| Config::load(Some(&path))).transpose()?,
        };
        let url = match (&self.api, &config) {
            (Some(url), _) => url.clone(),
            (None, Some(config)) => format!("http://{}", reachable(config.api.listen)),
            (None, None) => bail!("no configuration is there that says where the internal API is: name --config or --api"),
        };
        let parsed = url::Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if parsed.is_none() {
            bail!("--api {url:?} is no URL, such as http://127.0.0.1:8081");
        }
        let configured = config.as_ref().and_then(|config| {
            let readers = config.api.tokens.iter().filter(|token| token.scopes.contains(&Scope::Read));
            readers.map(|token| token.secret.clone()).next()
        });
        let token = match (&self.token, configured) {
            (Some(text), _) => SecretSource::parse(text).read("--token")?,
            (None, Some(secret)) => secret,
            (None, None) => bail!("no token with the scope `read` is there: name --token, or --config with [api] token"),
        };
        let api = Api::new(http_client().context("no HTTP client")?, &url, token.expose());
        Ok((api, url))
    }
}

/// What to do about an answer that is none.
#[must_use]
pub fn failure(error: ApiError, url: &str) -> Failure {
    let advice = match &error {
        ApiError::Unreachable { .. } => {
            "is it running (`paybell serve`), and is this the address of its internal API ([api] listen)?"
        }
        ApiError::Refused { status: StatusCode::UNAUTHORIZED, .. } => {
            "it does not know this token: is it the one of that process's [api]?"
        }
        ApiError::Refused { status: StatusCode::FORBIDDEN, .. } => "this token may not read there",
        ApiError::Refused { status: StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, .. } => {
            "this is not the internal API of this version: is it the address of the ingress, or an older worker?"
        }
        ApiError::Refused { status, .. } if status.is_server_error() => "its database is away, or it is starting: try again",
        ApiError::Refused { .. } | ApiError::Unintelligible(_) => "is something else listening there, a proxy for example?",
    };
    let of_caller = matches!(error, ApiError::Refused { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. });
    let error = anyhow!(error).context(format!("{url}: {advice}"));
    if of_caller { Failure::usage(error) } else { Failure::unknown(error) }
}
