//! Where a command that changes something finds the internal API, and by which token it is let in.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use paybell_shared::config::{Config, Scope};
use paybell_shared::secret::SecretSource;

use super::config::effective_path;
use super::send::reachable;
use crate::api::Api;
use crate::simulator::http_client;

#[derive(Debug, clap::Args)]
pub struct Door {
    /// The configuration to take address and token from; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// Where the internal API is; default: what the configuration says.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// The internal API's token: `env:NAME`, `file:PATH`, or the token itself; default: the configuration's.
    #[arg(long, value_name = "T")]
    token: Option<String>,
}

impl Door {
    /// # Errors
    /// Address or token is missing.
    pub fn open(&self) -> anyhow::Result<Api> {
        let config = effective_path(self.config.clone()).map(|path| Config::load(Some(&path))).transpose()?;
        let url = match (&self.api, &config) {
            (Some(url), _) => url.clone(),
            (None, Some(config)) => format!("http://{}", reachable(config.api.listen)),
            (None, None) => bail!("where is the internal API? name --config or --api"),
        };
        let operator = |config: &Config| {
            let mut operators = config.api.tokens.iter().filter(|token| token.scopes.contains(&Scope::Operate));
            operators.next().map(|token| token.secret.clone())
        };
        let token = match (&self.token, config.as_ref().and_then(operator)) {
            (Some(text), _) => SecretSource::parse(text).read("--token")?,
            (None, Some(token)) => token,
            (None, None) => bail!("the internal API needs a token with the scope `operate`: name --config or --token"),
        };
        let http = http_client().context("no HTTP client can be made")?;
        Ok(Api::new(http, &url, token.expose()))
    }
}
