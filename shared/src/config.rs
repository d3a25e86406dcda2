//! The configuration: one TOML file, overridden by `PAYBELL_<TABLE>_<KEY>`, over defaults.
//!
//! Everything is checked here, before anything starts; each error names its setting.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::event::Mode;
use crate::psp::{self, Account, Api, Keys};
use crate::queue::QueueSettings;
use crate::secret::{Secret, SecretError, SecretSource};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub ingress: Ingress,
    pub worker: Worker,
    pub api: InternalApi,
    pub orders: Orders,
    pub queue: Queue,
    pub store: Store,
    pub seen: Seen,
    pub limits: Limits,
    pub accounts: Vec<ConfiguredAccount>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ingress {
    pub listen: SocketAddr,
    pub ops_listen: SocketAddr,
    /// What PSPs call us, without the route; for people and for PSPs that sign the URL.
    pub public_url: Option<String>,
    /// Only these may say, by `X-Forwarded-For`, whom they speak for.
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    pub ops_listen: SocketAddr,
    /// `false`: this process only serves the internal API.
    pub consume: bool,
}

#[derive(Clone, Debug)]
pub struct InternalApi {
    pub listen: SocketAddr,
    pub tokens: Vec<ApiToken>,
}

#[derive(Clone, Debug)]
pub struct ApiToken {
    /// For audit lines.
    pub name: String,
    pub secret: Secret,
    pub scopes: HashSet<Scope>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Read,
    Operate,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Orders {
    pub registration: Registration,
}

/// Whether an order may come into being by a PSP's event alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    #[default]
    Optional,
    Required,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    pub url: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub url: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seen {
    pub url: String,
}

/// Bounds on what strangers may send and on how long anything may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest body; a PSP's largest (GoCardless, 250 events) stays below 256 KiB.
    pub body_bytes_max: usize,
    pub headers_max: usize,
    pub header_bytes_max: usize,
    /// For the head of a request; it is also how long a kept connection may be idle.
    pub header_timeout_s: u64,
    pub body_timeout_s: u64,
    pub connections_max: usize,
    /// Webhooks between their last byte and their answer.
    pub in_flight_max: usize,
    /// From the verified webhook to the broker's confirm; below every PSP's time-out.
    pub publish_budget_ms: u64,
    /// Deliveries in one transaction.
    pub batch_max: usize,
    /// How long a batch waits for company.
    pub batch_linger_ms: u64,
    /// Delays of the retry ladder.
    pub retry_steps_s: Vec<u64>,
}

/// An account of a PSP and what the ingress needs to know of its callers.
#[derive(Clone, Debug)]
pub struct ConfiguredAccount {
    pub account: Arc<Account>,
    /// Empty: from anywhere.
    pub allow_from: Vec<IpNet>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read")]
    Read { path: String, source: std::io::Error },
    #[error("the configuration {path} is not as it should be: {source}")]
    Syntax { path: String, source: Box<toml::de::Error> },
    #[error("{setting}: {problem}")]
    Setting { setting: String, problem: String },
    #[error("{setting}")]
    Secret { setting: String, source: SecretError },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct File {
    ingress: Ingress,
    worker: Worker,
    api: ApiTable,
    orders: Orders,
    queue: Queue,
    store: Store,
    seen: Seen,
    limits: Limits,
    psp: Vec<PspTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApiTable {
    listen: SocketAddr,
    token: Option<SecretSource>,
    tokens: Vec<TokenTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenTable {
    name: String,
    secret: SecretSource,
    scopes: Vec<Scope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PspTable {
    id: String,
    #[serde(default = "default_account")]
    account: String,
    mode: Mode,
    secrets: Vec<SecretSource>,
    api_key: Option<SecretSource>,
    api_url: Option<String>,
    order_reference: Option<String>,
    #[serde(default = "default_tolerance_s")]
    tolerance_s: u32,
    #[serde(default)]
    allow_from: Vec<IpNet>,
}

fn default_account() -> String {
    "default".to_owned()
}

/// The tolerance of Stripe's SDKs and of Standard Webhooks.
const fn default_tolerance_s() -> u32 {
    300
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 9080)),
            public_url: None,
            trusted_proxies: Vec::new(),
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self { ops_listen: SocketAddr::from(([127, 0, 0, 1], 9081)), consume: true }
    }
}

impl Default for ApiTable {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8081)), token: None, tokens: Vec::new() }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { url: "sqlite:paybell-data/queue.db".to_owned() }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { url: "sqlite:paybell-data/store.db".to_owned() }
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self { url: "memory:".to_owned() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 512 * 1024,
            headers_max: 64,
            header_bytes_max: 16 * 1024,
            header_timeout_s: 15,
            body_timeout_s: 10,
            connections_max: 16_384,
            in_flight_max: 2_048,
            publish_budget_ms: 2_000,
            batch_max: 256,
            batch_linger_ms: 5,
            retry_steps_s: vec![5, 30, 300, 1_800, 7_200],
        }
    }
}

impl Limits {
    #[must_use]
    pub const fn publish_budget(&self) -> Duration {
        Duration::from_millis(self.publish_budget_ms)
    }
}

impl Config {
    /// Reads `path` if there is one, then the environment.
    ///
    /// # Errors
    /// The first thing that is missing, empty or contradictory, by the setting's name.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match path {
            None => String::new(),
            Some(path) => {
                std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?
            }
        };
        let shown = path.map_or_else(|| "(defaults)".to_owned(), |path| path.display().to_string());
        let overrides =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::parse(&text, &shown, overrides)
    }

    /// Reads a configuration from its text and the environment's variables; `shown` names the text in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, shown: &str, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let syntax = |source| ConfigError::Syntax { path: shown.to_owned(), source: Box::new(source) };
        // Once as it stands, so that an error shows its line; once more with the overrides.
        let _: File = toml::from_str(text).map_err(syntax)?;
        let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
        override_from(&mut table, environment)?;
        let file = File::deserialize(table).map_err(|source| ConfigError::Syntax {
            path: format!("{shown} with the PAYBELL_ environment variables"),
            source: Box::new(source),
        })?;
        file.check()
    }

    /// The queue's settings under a name that its operators see.
    #[must_use]
    pub fn queue_settings(&self, connection_name: &str) -> QueueSettings {
        QueueSettings {
            url: self.queue.url.clone(),
            publish_budget: self.limits.publish_budget(),
            retry_steps: self.limits.retry_steps_s.iter().map(|seconds| Duration::from_secs(*seconds)).collect(),
            connection_name: connection_name.to_owned(),
        }
    }

    /// The account of a PSP's route.
    #[must_use]
    pub fn account(&self, psp_id: &str, name: &str) -> Option<&ConfiguredAccount> {
        self.accounts.iter().find(|configured| &*configured.account.psp_id == psp_id && &*configured.account.name == name)
    }
}

const TABLES: [&str; 8] = ["INGRESS", "WORKER", "API", "ORDERS", "QUEUE", "STORE", "SEEN", "LIMITS"];

fn override_from(table: &mut toml::Table, environment: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (variable, value) in environment {
        let Some(rest) = variable.strip_prefix("PAYBELL_") else { continue };
        let Some((section, key)) = rest.split_once('_').filter(|(section, _)| TABLES.contains(section)) else { continue };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let typed = match (section.as_str(), key.as_str()) {
            ("limits", "retry_steps_s") => integers(&variable, &value)?,
            ("limits", _) => toml::Value::Integer(integer(&variable, &value)?),
            ("worker", "consume") => toml::Value::Boolean(value.parse().map_err(|_| ConfigError::Setting {
                setting: variable.clone(),
                problem: format!("{value:?} is neither true nor false"),
            })?),
            ("ingress", "trusted_proxies") => {
                toml::Value::Array(listed(&value).map(|item| toml::Value::String(item.to_owned())).collect())
            }
            _ => toml::Value::String(value),
        };
        let entry = table.entry(section.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let toml::Value::Table(inner) = entry {
            inner.insert(key, typed);
        }
    }
    Ok(())
}

fn listed(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn integer(variable: &str, value: &str) -> Result<i64, ConfigError> {
    value
        .trim()
        .parse()
        .map_err(|_| ConfigError::Setting { setting: variable.to_owned(), problem: format!("{value:?} is not a whole number") })
}

fn integers(variable: &str, value: &str) -> Result<toml::Value, ConfigError> {
    listed(value).map(|item| integer(variable, item).map(toml::Value::Integer)).collect::<Result<_, _>>().map(toml::Value::Array)
}

impl File {
    fn check(self) -> Result<Config, ConfigError> {
        self.limits.check()?;
        let mut accounts: Vec<ConfiguredAccount> = Vec::with_capacity(self.psp.len());
        for (index, table) in self.psp.into_iter().enumerate() {
            let configured = table.check(index)?;
            let twin = accounts
                .iter()
                .any(|other| other.account.psp_id == configured.account.psp_id && other.account.name == configured.account.name);
            if twin {
                return Err(ConfigError::Setting {
                    setting: format!("psp[{index}].account"),
                    problem: format!("{}/{} is configured twice", configured.account.psp_id, configured.account.name),
                });
            }
            accounts.push(configured);
        }
        Ok(Config {
            ingress: self.ingress,
            worker: self.worker,
            api: self.api.check()?,
            orders: self.orders,
            queue: self.queue,
            store: self.store,
            seen: self.seen,
            limits: self.limits,
            accounts,
        })
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("body_bytes_max", self.body_bytes_max as u64),
            ("headers_max", self.headers_max as u64),
            ("header_timeout_s", self.header_timeout_s),
            ("body_timeout_s", self.body_timeout_s),
            ("connections_max", self.connections_max as u64),
            ("in_flight_max", self.in_flight_max as u64),
            ("publish_budget_ms", self.publish_budget_ms),
            ("batch_max", self.batch_max as u64),
        ];
        let refuse = |key: &str, problem: &str| {
            Err(ConfigError::Setting { setting: format!("[limits] {key}"), problem: problem.to_owned() })
        };
        for (key, value) in positive {
            if value == 0 {
                return refuse(key, "must be at least 1");
            }
        }
        if self.header_bytes_max < 8192 {
            return refuse("header_bytes_max", "must be at least 8192, the smallest buffer of the HTTP server");
        }
        if self.body_bytes_max > 16 * 1024 * 1024 {
            return refuse("body_bytes_max", "must be at most 16 MiB, the largest message of RabbitMQ 4");
        }
        if self.publish_budget_ms > 10_000 {
            return refuse("publish_budget_ms", "must be at most 10000: PSPs wait no longer for an answer");
        }
        if self.batch_max > 1_000 {
            return refuse("batch_max", "must be at most 1000: a batch is one transaction");
        }
        if self.batch_linger_ms > 1_000 {
            return refuse("batch_linger_ms", "must be at most 1000");
        }
        if self.retry_steps_s.is_empty() || self.retry_steps_s.contains(&0) || self.retry_steps_s.len() > 16 {
            return refuse("retry_steps_s", "must be 1 to 16 delays of at least one second");
        }
        Ok(())
    }
}

impl ApiTable {
    fn check(self) -> Result<InternalApi, ConfigError> {
        let mut tokens = Vec::new();
        if let Some(source) = self.token {
            let secret = read_secret(&source, "[api] token".to_owned())?;
            tokens.push(ApiToken { name: "token".to_owned(), secret, scopes: HashSet::from([Scope::Read, Scope::Operate]) });
        }
        for (index, table) in self.tokens.into_iter().enumerate() {
            let setting = format!("[api] tokens[{index}]");
            if table.scopes.is_empty() {
                return Err(ConfigError::Setting { setting: format!("{setting}.scopes"), problem: "is empty".to_owned() });
            }
            let secret = read_secret(&table.secret, format!("{setting}.secret"))?;
            tokens.push(ApiToken { name: table.name, secret, scopes: table.scopes.into_iter().collect() });
        }
        Ok(InternalApi { listen: self.listen, tokens })
    }
}

impl PspTable {
    fn check(self, index: usize) -> Result<ConfiguredAccount, ConfigError> {
        let named = |key: &str| format!("psp[{index}].{key}");
        let refuse = |key: &str, problem: String| ConfigError::Setting { setting: named(key), problem };
        let Some(adapter) = psp::find(&self.id) else {
            let known: Vec<&str> = psp::ALL.iter().map(|psp| psp.id()).collect();
            return Err(refuse("id", format!("{:?} is no PSP that is known here: {}", self.id, known.join(", "))));
        };
        let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.account.is_empty() || self.account.len() > 64 || !self.account.bytes().all(in_path) {
            return Err(refuse("account", "must be 1 to 64 letters, digits, '-', '_' or '.': it is part of the URL".to_owned()));
        }
        if self.secrets.is_empty() {
            return Err(refuse("secrets", "is empty: without a secret nothing can be verified".to_owned()));
        }
        let secrets = self.secrets.iter().enumerate();
        let secrets = secrets.map(|(number, source)| read_secret(source, named(&format!("secrets[{number}]"))));
        let account = Account {
            psp: adapter,
            psp_id: adapter.id().into(),
            name: self.account.into(),
            mode: self.mode,
            keys: Keys { secrets: secrets.collect::<Result<_, _>>()?, tolerance_s: self.tolerance_s },
            api: Api {
                key: self.api_key.map(|source| read_secret(&source, named("api_key"))).transpose()?,
                url: self.api_url.map(|url| url.trim_end_matches('/').to_owned()),
            },
            order_reference: self.order_reference.map(|path| path.split('.').map(str::to_owned).collect()),
        };
        adapter.check(&account).map_err(|error| refuse(error.setting, error.problem))?;
        Ok(ConfiguredAccount { account: Arc::new(account), allow_from: self.allow_from })
    }
}

fn read_secret(source: &SecretSource, setting: String) -> Result<Secret, ConfigError> {
    source.read(&setting).map_err(|source| ConfigError::Secret { setting, source })
}
