//! The configuration: one TOML file, overridden by `PAYBELL_<TABLE>_<KEY>`, over defaults.
//!
//! Everything is checked here, before anything starts; each error names its setting.

mod account;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use self::account::PspTable;
use crate::psp::Account;
use crate::psp::standard_webhooks::Signer;
use crate::queue::QueueSettings;
use crate::secret::{Secret, SecretError, SecretSource};
use crate::serve;

/// The longest that a request whose head is complete may take, body and publish together: it is what a stop waits for.
pub const FINISH_MAX: Duration = Duration::from_secs(30);

/// The account that a route without one means.
pub const DEFAULT_ACCOUNT: &str = "default";

/// Most that may be allowed of what is counted in memory.
const COUNT_MAX: usize = 1_000_000;

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
    pub retention: Retention,
    pub subscribers: Vec<Subscriber>,
    pub accounts: Vec<ConfiguredAccount>,
    /// Variables named like ours that nothing reads: typing errors, most likely.
    pub unread_variables: Vec<String>,
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
    /// Where accounts with `on_queue_down = "spool"` keep what the queue does not take. It must outlive the process.
    pub spool_dir: Option<PathBuf>,
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

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// May carry a password.
    pub url: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// May carry a password.
    pub url: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seen {
    /// May carry a password.
    pub url: String,
}

impl std::fmt::Debug for Subscriber {
    /// Without the URL, whose path may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber").field("name", &self.name).field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(scheme(&self.url))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(scheme(&self.url))
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(scheme(&self.url))
    }
}

/// What of a URL may be printed.
fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("(no URL)", |(scheme, _)| scheme)
}

/// Bounds on what strangers may send and on how long anything may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest body; a PSP's largest (250 events in one call) stays below 256 KiB.
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
    /// What the spool may hold, in bytes.
    pub spool_bytes_max: u64,
    /// Deliveries in one transaction.
    pub batch_max: usize,
    /// How long a batch waits for company.
    pub batch_linger_ms: u64,
    /// Delays of the retry ladder.
    pub retry_steps_s: Vec<u64>,
    /// How long an event may wait for its order before it is on the operators' list.
    pub parked_max_s: u64,
}

/// How long is kept what is not kept for ever. Keys, facts and changes are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The exact bytes of webhooks, which a replay needs.
    pub bodies_days: u32,
    /// How far back a stream may be resumed.
    pub stream_days: u32,
}

/// Who is told of every change of an order by a signed request.
#[derive(Clone)]
pub struct Subscriber {
    /// Names it in the database and in metrics: its host, and a hash of its URL, which may hold a secret.
    pub name: Arc<str>,
    pub url: String,
    /// Each signs, so that they can be rotated.
    pub secrets: Vec<Secret>,
    /// It may be at a private address, and by `http:`.
    pub allow_private: bool,
}

/// An account of a PSP and what the ingress needs to know of its callers.
#[derive(Clone, Debug)]
pub struct ConfiguredAccount {
    pub account: Arc<Account>,
    /// So much more than expected may be captured: tips.
    pub over_capture_percent: u8,
    pub on_queue_down: OnQueueDown,
    /// Empty: from anywhere.
    pub allow_from: Vec<IpNet>,
}

/// What becomes of an account's webhooks while the queue takes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnQueueDown {
    /// They are answered 503, and the PSP sends them again.
    #[default]
    Refuse,
    /// They are kept on the ingress' disk, acknowledged, and put on the queue later.
    Spool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read")]
    Read { path: String, source: std::io::Error },
    /// Of the line only the key is shown: its value may be a secret.
    #[error("the configuration {path}, line {line}{}: {problem}", .key.as_ref().map(|key| format!(", {key}")).unwrap_or_default())]
    Syntax { path: String, line: usize, key: Option<String>, problem: String },
    #[error("{setting}: {problem}")]
    Setting { setting: String, problem: String },
    #[error("{setting}")]
    Secret { setting: String, source: SecretError },
}

/// Keys whose values have a form. Only these are repeated in an error: what stands before a `=` may be part of a secret, if
/// a string goes over several lines.
const KEYS_THAT_MAY_BE_MALFORMED: [&str; 14] = [
    "on_queue_down",
    "allow_private",
    "over_capture_percent",
    "listen",
    "ops_listen",
    "trusted_proxies",
    "consume",
    "scopes",
    "registration",
    "mode",
    "scheme",
    "capture",
    "allow_from",
    "tolerance_s",
];

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
    retention: Retention,
    subscriber: Vec<SubscriberTable>,
    psp: Vec<PspTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscriberTable {
    url: String,
    secrets: Vec<SecretSource>,
    #[serde(default)]
    allow_private: bool,
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

impl Default for Ingress {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 9080)),
            public_url: None,
            trusted_proxies: Vec::new(),
            spool_dir: None,
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
            // 200,000 webhooks of 5 kB: hours of a busy shop's.
            spool_bytes_max: 1024 * 1024 * 1024,
            batch_max: 512,
            batch_linger_ms: 5,
            retry_steps_s: vec![5, 30, 300, 1_800, 7_200],
            parked_max_s: 86_400,
        }
    }
}

impl Default for Retention {
    /// Bodies: longer than any PSP sends again (30 days) and than most disputes take to begin. A stream: over a long weekend.
    fn default() -> Self {
        Self { bodies_days: 90, stream_days: 7 }
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
        let syntax = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
            let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
            let key = key.filter(|key| KEYS_THAT_MAY_BE_MALFORMED.contains(key)).map(str::to_owned);
            ConfigError::Syntax { path: shown.to_owned(), line, key, problem: without_values(error.message()) }
        };
        // From the text itself and not from the table, so that an error knows its line.
        let mut file: File = toml::from_str(text).map_err(syntax)?;
        let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let mut others = Vec::new();
        for (variable, value) in environment {
            let Some((section, key)) = setting_of(&variable) else {
                others.push(variable);
                continue;
            };
            override_one(&mut table, &section, &key, typed(&variable, &section, &key, value)?);
            file = File::deserialize(table.clone())
                .map_err(|error| ConfigError::Setting { setting: variable, problem: without_values(error.message()) })?;
        }
        let mut config = file.check()?;
        others.retain(|variable| is_unread(variable, &config));
        others.sort();
        config.unread_variables = others;
        Ok(config)
    }

    /// Every secret that was read.
    fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let of_accounts = self.accounts.iter().flat_map(|configured| {
            let account = &configured.account;
            account.keys.secrets.iter().chain(&account.api.key)
        });
        let of_subscribers = self.subscribers.iter().flat_map(|subscriber| &subscriber.secrets);
        self.api.tokens.iter().map(|token| &token.secret).chain(of_subscribers).chain(of_accounts)
    }

    /// Says in the log what is odd, but no error.
    pub fn warn(&self) {
        for variable in &self.unread_variables {
            tracing::warn!(variable, "is named like a setting, and is none: see `paybell config check`");
        }
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

const TABLES: [&str; 9] = ["ingress", "worker", "api", "orders", "queue", "store", "seen", "limits", "retention"];

/// The table and key that an environment variable stands for; `None` if it is not one of ours.
fn setting_of(variable: &str) -> Option<(String, String)> {
    let (section, key) = variable.strip_prefix("PAYBELL_")?.split_once('_')?;
    let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
    (TABLES.contains(&section.as_str()) && !is_of_kubernetes(&key)).then_some((section, key))
}

/// Kubernetes tells every pod of a service `paybell-api` by `PAYBELL_API_SERVICE_HOST`, `PAYBELL_API_PORT`,
/// `PAYBELL_API_PORT_8081_TCP` and more; of `paybell-api-eu` the same behind `PAYBELL_API_EU_`.
fn is_of_kubernetes(key: &str) -> bool {
    ["service_host", "service_port", "port"].iter().any(|part| {
        key.match_indices(part).any(|(start, _)| {
            let (before, after) = (&key[..start], &key[start + part.len()..]);
            (before.is_empty() || before.ends_with('_')) && (after.is_empty() || after.starts_with('_'))
        })
    })
}

/// The variable is named like ours, but is no setting, no secret that a setting names, and not another program's business.
fn is_unread(variable: &str, config: &Config) -> bool {
    let Some(name) = variable.strip_prefix("PAYBELL_") else { return false };
    let is_named = config.secrets().any(|secret| secret.name().strip_prefix("env:") == Some(variable));
    variable != "PAYBELL_CONFIG" && !name.starts_with("TEST_") && !is_of_kubernetes(&name.to_ascii_lowercase()) && !is_named
}

/// A variable's text as the type that its setting has; lists are separated by commas.
fn typed(variable: &str, section: &str, key: &str, value: String) -> Result<toml::Value, ConfigError> {
    Ok(match (section, key) {
        ("limits", "retry_steps_s") => integers(variable, &value)?,
        ("limits" | "retention", _) => toml::Value::Integer(integer(variable, &value)?),
        ("worker", "consume") => toml::Value::Boolean(value.trim().parse().map_err(|_| ConfigError::Setting {
            setting: variable.to_owned(),
            problem: format!("{value:?} is neither true nor false"),
        })?),
        ("ingress", "trusted_proxies") => {
            toml::Value::Array(listed(&value).map(|item| toml::Value::String(item.to_owned())).collect())
        }
        _ => toml::Value::String(value),
    })
}

fn override_one(table: &mut toml::Table, section: &str, key: &str, value: toml::Value) {
    let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    // It is a table: the text was read as a `File` before.
    if let toml::Value::Table(inner) = entry {
        inner.insert(key.to_owned(), value);
    }
}

/// An error's message without the text that was found: where a secret stands in the wrong place, that is the secret.
fn without_values(message: &str) -> String {
    match (message.find("string \""), message.rfind('"')) {
        (Some(start), Some(end)) if end > start + 8 => format!("{}a string{}", &message[..start], &message[end + 1..]),
        _ => message.to_owned(),
    }
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
        self.retention.check()?;
        check_url("[queue] url", &self.queue.url, &["amqp", "amqps", "sqlite"])?;
        check_url("[store] url", &self.store.url, &["postgres", "postgresql", "sqlite"])?;
        check_url("[seen] url", &self.seen.url, &["redis", "rediss", "memory"])?;
        let file = |url: &str| url.split('?').next().filter(|path| path.starts_with("sqlite:")).map(str::to_owned);
        if file(&self.queue.url).is_some_and(|queue| file(&self.store.url) == Some(queue)) {
            return Err(ConfigError::Setting {
                setting: "[store] url".to_owned(),
                problem: "is the queue's file: each needs one of its own".to_owned(),
            });
        }
        if let Some(url) = &self.ingress.public_url {
            check_url("[ingress] public_url", url, &["https", "http"])?;
        }
        check_apart(("[ingress] listen", self.ingress.listen), ("[ingress] ops_listen", self.ingress.ops_listen))?;
        check_apart(("[api] listen", self.api.listen), ("[worker] ops_listen", self.worker.ops_listen))?;
        let mut subscribers: Vec<Subscriber> = Vec::with_capacity(self.subscriber.len());
        for (index, table) in self.subscriber.into_iter().enumerate() {
            let subscriber = table.check(index)?;
            if subscribers.iter().any(|other| other.name == subscriber.name) {
                return Err(ConfigError::Setting {
                    setting: format!("subscriber[{index}].url"),
                    problem: "is another subscriber's: it would be told everything twice".to_owned(),
                });
            }
            subscribers.push(subscriber);
        }
        let mut accounts: Vec<ConfiguredAccount> = Vec::with_capacity(self.psp.len());
        for (index, table) in self.psp.into_iter().enumerate() {
            let configured = table.check(index, self.ingress.public_url.as_deref())?;
            let twin = accounts
                .iter()
                .any(|other| other.account.psp_id == configured.account.psp_id && other.account.name == configured.account.name);
            if twin {
                return Err(ConfigError::Setting {
                    setting: format!("psp[{index}].account"),
                    problem: format!("{}/{} is configured twice", configured.account.psp_id, configured.account.name),
                });
            }
            if configured.on_queue_down == OnQueueDown::Spool && self.ingress.spool_dir.is_none() {
                return Err(ConfigError::Setting {
                    setting: "[ingress] spool_dir".to_owned(),
                    problem: format!("is missing: psp[{index}].on_queue_down is \"spool\""),
                });
            }
            let timeout = configured.account.psp.profile().timeout;
            if self.limits.publish_budget() >= timeout {
                return Err(ConfigError::Setting {
                    setting: "[limits] publish_budget_ms".to_owned(),
                    problem: format!("must be below the {} s that {} waits", timeout.as_secs(), configured.account.psp_id),
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
            retention: self.retention,
            subscribers,
            accounts,
            unread_variables: Vec::new(),
        })
    }
}

fn check_url(setting: &str, url: &str, schemes: &[&str]) -> Result<(), ConfigError> {
    let problem = match url.split_once(':') {
        _ if url.is_empty() => "is empty".to_owned(),
        Some((scheme, rest)) if schemes.contains(&scheme) => match bad_port(rest) {
            None => return Ok(()),
            Some(port) => format!("has the port {port:?}, which is not 1 to 65535"),
        },
        _ => {
            format!("must begin with one of {}", schemes.iter().map(|scheme| format!("{scheme}:")).collect::<Vec<_>>().join(", "))
        }
    };
    Err(ConfigError::Setting { setting: setting.to_owned(), problem })
}

/// What stands where a port should, if that is none. Of a URL behind its scheme; a file has no port.
fn bad_port(rest: &str) -> Option<&str> {
    let authority = rest.strip_prefix("//")?.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    // Behind the brackets of an IPv6 address, where there are any.
    let (_, port) = host.rsplit(']').next()?.rsplit_once(':')?;
    port.parse::<u16>().map_or(true, |port| port == 0).then_some(port)
}

/// Two addresses of one process must differ, unless the system chooses their ports.
fn check_apart(one: (&str, SocketAddr), other: (&str, SocketAddr)) -> Result<(), ConfigError> {
    if one.1 == other.1 && one.1.port() != 0 {
        return Err(ConfigError::Setting { setting: other.0.to_owned(), problem: format!("is the address of {}", one.0) });
    }
    Ok(())
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
            ("spool_bytes_max", self.spool_bytes_max),
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
        if self.headers_max > serve::HEADERS_MAX {
            return refuse("headers_max", "must be at most 100, the HTTP parser's table");
        }
        if self.header_bytes_max < 1024 || self.header_bytes_max > 256 * 1024 {
            return refuse("header_bytes_max", "must be 1024 to 262144");
        }
        if self.header_timeout_s > 600 {
            return refuse("header_timeout_s", "must be at most 600");
        }
        if Duration::from_secs(self.body_timeout_s).saturating_add(self.publish_budget()) > FINISH_MAX {
            return refuse("body_timeout_s", "must, with publish_budget_ms, be at most 30 s: a stop waits that long");
        }
        if self.connections_max > COUNT_MAX {
            return refuse("connections_max", "must be at most 1000000");
        }
        if self.in_flight_max > COUNT_MAX {
            return refuse("in_flight_max", "must be at most 1000000");
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
        if !(60..=30 * 86_400).contains(&self.parked_max_s) {
            return refuse("parked_max_s", "must be 60 to 2592000, 30 days");
        }
        if self.retry_steps_s.is_empty() || self.retry_steps_s.contains(&0) || self.retry_steps_s.len() > 16 {
            return refuse("retry_steps_s", "must be 1 to 16 delays of at least one second");
        }
        Ok(())
    }
}

impl Retention {
    fn check(&self) -> Result<(), ConfigError> {
        for (key, days) in [("bodies_days", self.bodies_days), ("stream_days", self.stream_days)] {
            if !(1..=3_650).contains(&days) {
                let problem = "must be 1 to 3650".to_owned();
                return Err(ConfigError::Setting { setting: format!("[retention] {key}"), problem });
            }
        }
        Ok(())
    }
}

impl SubscriberTable {
    fn check(self, index: usize) -> Result<Subscriber, ConfigError> {
        let named = |key: &str| format!("subscriber[{index}].{key}");
        let refuse = |key: &str, problem: &str| ConfigError::Setting { setting: named(key), problem: problem.to_owned() };
        let schemes: &[&str] = if self.allow_private { &["https", "http"] } else { &["https"] };
        check_url(&named("url"), &self.url, schemes)?;
        let uri: http::Uri = self.url.parse().map_err(|_| refuse("url", "is not a URL"))?;
        let authority = uri.authority().ok_or_else(|| refuse("url", "has no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("url", "holds credentials: notifications are signed instead"));
        }
        if self.secrets.is_empty() {
            return Err(refuse("secrets", "is empty: notifications are signed"));
        }
        let secrets = self.secrets.iter().enumerate();
        let secrets = secrets.map(|(number, source)| read_secret(source, named(&format!("secrets[{number}]"))));
        let secrets = secrets.collect::<Result<Vec<_>, _>>()?;
        if let Err((number, problem)) = Signer::new(&secrets) {
            return Err(refuse(&format!("secrets[{number}]"), problem));
        }
        let hash = hex::encode(&Sha256::digest(&self.url)[..4]);
        let name = format!("{}/{hash}", authority.host().to_ascii_lowercase());
        Ok(Subscriber { name: name.into(), url: self.url, secrets, allow_private: self.allow_private })
    }
}

impl ApiTable {
    fn check(self) -> Result<InternalApi, ConfigError> {
        let mut tokens = Vec::new();
        let mut names = HashSet::from(["token".to_owned()]);
        if let Some(source) = self.token {
            let secret = read_secret(&source, "[api] token".to_owned())?;
            tokens.push(ApiToken { name: "token".to_owned(), secret, scopes: HashSet::from([Scope::Read, Scope::Operate]) });
        }
        for (index, table) in self.tokens.into_iter().enumerate() {
            let setting = format!("[api] tokens[{index}]");
            if table.name.is_empty() || !names.insert(table.name.clone()) {
                let problem = "is empty, or another token's: it tells tokens apart in audit lines".to_owned();
                return Err(ConfigError::Setting { setting: format!("{setting}.name"), problem });
            }
            if table.scopes.is_empty() {
                return Err(ConfigError::Setting { setting: format!("{setting}.scopes"), problem: "is empty".to_owned() });
            }
            let secret = read_secret(&table.secret, format!("{setting}.secret"))?;
            tokens.push(ApiToken { name: table.name, secret, scopes: table.scopes.into_iter().collect() });
        }
        Ok(InternalApi { listen: self.listen, tokens })
    }
}

fn read_secret(source: &SecretSource, setting: String) -> Result<Secret, ConfigError> {
    source.read(&setting).map_err(|source| ConfigError::Secret { setting, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::Capture;

    pub(super) const STRIPE: &str = "[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['whsec_hush']\n";

    pub(super) fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, "paybell.toml", environment)
    }

    /// The whole chain, as `main` prints it.
    fn refusal(text: &str, environment: &[(&str, &str)]) -> String {
        let shown = format!("{:#}", anyhow::Error::from(parse(text, environment).expect_err(text)));
        assert!(!shown.contains("hush"), "a secret is printed: {shown}");
        shown
    }

    /// Refused, with these words.
    pub(super) fn check(text: &str, expected: &[&str]) {
        let shown = refusal(text, &[]);
        for words in expected {
            assert!(shown.contains(words), "{words:?} is not in {shown:?}");
        }
    }

    #[test]
    fn nothing_at_all_is_the_embedded_mode() {
        let config = parse("", &[]).unwrap();
        assert_eq!(config.queue.url, "sqlite:paybell-data/queue.db");
        assert_eq!(config.seen.url, "memory:");
        assert_eq!(config.ingress.listen, SocketAddr::from(([0, 0, 0, 0], 8080)));
        assert_eq!(config.ingress.ops_listen, SocketAddr::from(([127, 0, 0, 1], 9080)));
        assert_eq!(config.worker.ops_listen, SocketAddr::from(([127, 0, 0, 1], 9081)));
        assert_eq!(config.api.listen, SocketAddr::from(([127, 0, 0, 1], 8081)));
        assert_eq!(config.orders.registration, Registration::Optional);
        assert!(config.worker.consume && config.accounts.is_empty());
    }

    #[test]
    fn the_environment_stands_above_the_file_and_the_file_above_the_default() {
        let text = "[queue]\nurl = 'amqp://file'\n[store]\nurl = 'postgres://file'\n[limits]\nbatch_max = 10";
        let environment = [
            ("PAYBELL_QUEUE_URL", "amqps://environment"),
            ("PAYBELL_LIMITS_BATCH_MAX", " 20 "),
            ("PAYBELL_LIMITS_RETRY_STEPS_S", "1, 2,3"),
            ("PAYBELL_INGRESS_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8"),
            ("PAYBELL_WORKER_CONSUME", "false"),
            ("PAYBELL_ORDERS_REGISTRATION", "required"),
            ("PAYBELL_API_TOKEN", "hush"),
            // Not ours: other programs', Kubernetes', and what other settings read by `env:`.
            ("PATH", "/bin"),
            ("PAYBELL_CONFIG", "paybell.toml"),
            ("PAYBELL_STRIPE_SECRET", "hush"),
            ("PAYBELL_API_SERVICE_HOST", "10.1.2.3"),
            ("PAYBELL_API_PORT", "tcp://10.1.2.3:8081"),
            ("PAYBELL_API_PORT_8081_TCP", "tcp://10.1.2.3:8081"),
            ("PAYBELL_WORKER_EU_SERVICE_HOST", "10.1.2.3"),
            ("PAYBELL_WORKER_EU_PORT_80_TCP_ADDR", "10.1.2.3"),
        ];
        let config = parse(text, &environment).unwrap();
        assert_eq!(config.unread_variables, ["PAYBELL_STRIPE_SECRET"]);
        assert_eq!(config.queue.url, "amqps://environment");
        assert_eq!(config.store.url, "postgres://file");
        assert_eq!(config.limits.batch_max, 20);
        assert_eq!(config.limits.in_flight_max, Limits::default().in_flight_max);
        assert_eq!(config.limits.retry_steps_s, [1, 2, 3]);
        assert_eq!(config.ingress.trusted_proxies.len(), 2);
        assert_eq!(config.orders.registration, Registration::Required);
        assert!(!config.worker.consume);
        assert!(config.api.tokens[0].secret.matches("hush"));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        check("[queue]\nurl = 'amqp://x'\nurll = 'x'", &["paybell.toml", "line 3", "urll"]);
        check("[quue]\n", &["line 1", "quue"]);
        check(&format!("{STRIPE}secret = 'whsec_hush'"), &["line 5", "secret"]);
        check("[limits]\nbody_bytes_max = 1\nbody_bytes_max = 2", &["line 3"]);
        check("[ingress]\n\n\nlisten = 'here'", &["line 4", "socket address"]);
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_printed() {
        check("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = 'whsec_hush'", &["line 4", "a string", "sequence"]);
        check("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = 'whsec_\\\"hush'", &["line 4", "a string"]);
        check("[[psp]]\nsecrets = ['whsec_hush'", &["line 2"]);
        assert!(refusal("", &[("PAYBELL_API_TOKENS", "hush")]).contains("PAYBELL_API_TOKENS"));
    }

    #[test]
    fn a_variable_that_is_wrong_is_named() {
        for (variable, value) in [
            ("PAYBELL_LIMITS_BATCH_MAX", "many"),
            ("PAYBELL_LIMITS_BATCH_MAX", "-1"),
            ("PAYBELL_LIMITS_RETRY_STEPS_S", "1,x"),
            ("PAYBELL_LIMITS_BODY", "1"),
            ("PAYBELL_WORKER_CONSUME", "perhaps"),
            ("PAYBELL_INGRESS_LISTEN", "8080"),
            ("PAYBELL_INGRESS_TRUSTED_PROXIES", "10.0.0.0/33"),
            ("PAYBELL_QUEUE_URLL", "amqp://x"),
            ("PAYBELL_ORDERS_REGISTRATION", "maybe"),
        ] {
            let shown = refusal("[store]\nurl = 'sqlite:x'", &[("PAYBELL_SEEN_URL", "memory:"), (variable, value)]);
            assert!(shown.starts_with(variable), "{variable}: {shown}");
        }
    }

    #[test]
    fn what_is_missing_empty_or_contradictory_is_named() {
        check("[queue]\nurl = ''", &["[queue] url", "empty"]);
        check("[queue]\nurl = 'http://x'", &["[queue] url", "amqp:"]);
        check("[store]\nurl = 'mysql://root:hush@x'", &["[store] url", "postgres:"]);
        check("[queue]\nurl = 'amqp://a:hush@x:99999/v'", &["[queue] url", "99999"]);
        check("[store]\nurl = 'postgres://a:hush@[::1]:x/paybell'", &["[store] url", "\"x\""]);
        parse("[queue]\nurl = 'amqp://a:1@[::1]:5672/v'\n[store]\nurl = 'postgres://a:b@h/p'", &[]).unwrap();
        check("[seen]\nurl = 'x'", &["[seen] url", "memory:"]);
        check("[ingress]\npublic_url = 'pay.example'", &["[ingress] public_url", "https:"]);
        check("[ingress]\nlisten = '0.0.0.0:1'\nops_listen = '0.0.0.0:1'", &["[ingress] ops_listen", "[ingress] listen"]);
        check("[api]\nlisten = '127.0.0.1:9081'", &["[worker] ops_listen", "[api] listen"]);
        check("[api]\ntoken = ''", &["[api] token", "empty"]);
        check("[api]\ntoken = 'env:PAYBELL_TEST_NOT_SET'", &["[api] token", "PAYBELL_TEST_NOT_SET"]);
        check("[[api.tokens]]\nname = 'a'\nsecret = 'hush'\nscopes = []", &["[api] tokens[0].scopes"]);
        let token = "[[api.tokens]]\nname = 'a'\nsecret = 'hush'\nscopes = ['read']\n";
        check(&token.repeat(2), &["[api] tokens[1].name"]);

        check("[[psp]]\nid = 'nobody'\nmode = 'test'\nsecrets = ['hush']", &["psp[0].id", "nobody", "stripe"]);
        check("[[psp]]\nid = 'stripe'\nmode = 'test'", &["psp[0].secrets", "empty"]);
        check("[[psp]]\nid = 'stripe'\nsecrets = ['hush']", &["line 1", "mode"]);
        check("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = []", &["psp[0].secrets", "empty"]);
        check("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['hush', '']", &["psp[0].secrets[1]", "empty"]);
        check(
            "[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['file:/nonexistent/s']",
            &["psp[0].secrets[0]", "/nonexistent/s"],
        );
        check(&STRIPE.repeat(2), &["psp[1].account", "stripe/default", "twice"]);
        for (extra, named) in [
            ("account = ''", "account"),
            ("account = '..'", "account"),
            ("account = 'a/b'", "account"),
            ("account = 'ä'", "account"),
            ("api_url = 'api.stripe.com'", "api_url"),
            ("api_key = ''", "api_key"),
            ("tolerance_s = 0", "tolerance_s"),
            ("order_reference = 'metadata..order'", "order_reference"),
            ("order_reference = ''", "order_reference"),
        ] {
            check(&format!("{STRIPE}{extra}"), &["psp[0].", named]);
        }
        let capture = |extra: &str| parse(&format!("{STRIPE}{extra}"), &[]).unwrap().accounts[0].account.capture;
        assert_eq!((capture(""), capture("capture = 'automatic'")), (Capture::Manual, Capture::Automatic));
    }

    #[test]
    fn the_rules_of_a_signature_are_checked_where_they_are_read() {
        let table = |id: &str, generic: &str| format!("[[psp]]\nid = '{id}'\nmode = 'test'\nsecrets = ['hush']\n{generic}");
        let rules = "[psp.generic]\nheader = 'X-Acme-Signature'\n";
        let config = parse(&table("generic", rules), &[]).unwrap();
        assert!(config.account("generic", DEFAULT_ACCOUNT).unwrap().account.keys.generic.is_some());
        check(&table("generic", ""), &["psp[0].generic.header", "missing"]);
        check(&table("generic", "[psp.generic]\nprefix = 'v1='"), &["psp[0].generic.header", "missing"]);
        check(&table("generic", &format!("{rules}template = '{{url}}'")), &["psp[0].generic.template", "{body}"]);
        check(&table("generic", &format!("{rules}key_encoding = 'hex'")), &["psp[0].secrets", "hex"]);
        check(&table("generic", &format!("{rules}separator = ','")), &["separator"]);
        check(&table("shopify", rules), &["psp[0].generic.header", "Shopify"]);
        parse(&table("shopify", "[psp.generic]\nid = '/id'"), &[]).unwrap();
        check(&table("stripe", "[psp.generic]\nid = '/id'"), &["psp[0].generic", "stripe"]);
    }

    #[test]
    fn a_subscriber_is_checked() {
        let (url, key) = ("url = 'https://shop.example/hush'", "whsec_aHVzaC1odXNoLWh1c2gtaHVzaC1odXNo");
        let table = |url: &str, secrets: &str| format!("[[subscriber]]\n{url}\nsecrets = [{secrets}]\n");
        let good = table(url, &format!("'{key}', '{}'", &key[6..]));
        let config = parse(&good, &[]).unwrap();
        let [subscriber] = &config.subscribers[..] else { panic!("{config:?}") };
        assert!(subscriber.name.starts_with("shop.example/") && !subscriber.name.contains("hush"), "{}", subscriber.name);
        assert_eq!((subscriber.secrets.len(), subscriber.allow_private), (2, false));
        check(&good.repeat(2), &["subscriber[1].url", "another"]);
        for (secrets, words) in [
            ("", "empty"),
            ("''", "empty"),
            ("'whsec_hush'", "24 to 64 bytes"),
            ("'whsec_hush!'", "base64"),
            ("'whpk_aHVzaC1odXNoLWh1c2gtaHVzaC1odXNoLWh1c2g='", "public key"),
            ("'whsk_hush'", "private key"),
        ] {
            check(&table(url, secrets), &["subscriber[0].secrets", words]);
        }
        check(&table(url, &format!("'{key}', 'hush'")), &["subscriber[0].secrets[1]"]);
        let key = format!("'{key}'");
        for url in
            ["url = ''", "url = 'http://shop.example/hush'", "url = 'https:///hush'", "url = 'https://a:hush@shop.example'"]
        {
            check(&table(url, &key), &["subscriber[0].url"]);
        }
        parse(&format!("{}allow_private = true", table("url = 'http://shop.internal/hook'", &key)), &[]).unwrap();
    }

    #[test]
    fn limits_are_limited() {
        for (text, named) in [
            ("body_bytes_max = 0", "body_bytes_max"),
            ("body_bytes_max = 16777217", "body_bytes_max"),
            ("headers_max = 101", "headers_max"),
            ("header_bytes_max = 100", "header_bytes_max"),
            ("header_timeout_s = 0", "header_timeout_s"),
            ("header_timeout_s = 601", "header_timeout_s"),
            ("body_timeout_s = 29", "body_timeout_s"),
            ("connections_max = 0", "connections_max"),
            ("connections_max = 1000001", "connections_max"),
            ("in_flight_max = 0", "in_flight_max"),
            ("publish_budget_ms = 10001", "publish_budget_ms"),
            ("batch_max = 0", "batch_max"),
            ("batch_max = 1001", "batch_max"),
            ("batch_linger_ms = 1001", "batch_linger_ms"),
            ("retry_steps_s = []", "retry_steps_s"),
            ("retry_steps_s = [0]", "retry_steps_s"),
        ] {
            check(&format!("[limits]\n{text}"), &["[limits] ", named]);
        }
        // Stripe waits five seconds, so the queue must have answered before; alone, the limit is fine.
        parse("[limits]\npublish_budget_ms = 9000", &[]).unwrap();
        let timeout_ms = crate::psp::find("stripe").unwrap().profile().timeout.as_millis();
        check(&format!("[limits]\npublish_budget_ms = {timeout_ms}\n{STRIPE}"), &["[limits] publish_budget_ms", "stripe"]);
        parse(&format!("[limits]\npublish_budget_ms = {}\n{STRIPE}", timeout_ms - 1), &[]).unwrap();
    }

    #[test]
    fn a_configuration_never_prints_a_secret() {
        let text = format!(
            "{STRIPE}api_key = 'sk_hush'\n[queue]\nurl = 'amqp://a:hush@x'\n[store]\nurl = 'postgres://a:hush@x'\n\
             [seen]\nurl = 'redis://:hush@x'\n[api]\ntoken = 'hush'"
        );
        let config = parse(&text, &[]).unwrap();
        assert!(!format!("{config:?}").contains("hush"), "{config:?}");
    }

    #[test]
    fn a_variable_that_nothing_reads_is_named() {
        let text = "[api]\ntoken = 'env:PATH'";
        let environment = [("PAYBELL_STROE_URL", "postgres://x"), ("PAYBELL_TEST_X", "1"), ("PAYBELLX", "1")];
        assert_eq!(parse(text, &environment).unwrap().unread_variables, ["PAYBELL_STROE_URL"]);
    }

    #[test]
    fn a_subscriber_is_named_by_its_host_and_never_by_its_path() {
        let text = "[[subscriber]]\nurl = 'https://Shop.example/hooks/hush'\nsecrets = ['whsec_aHVzaGh1c2hodXNoaHVzaGh1c2hodXNoaHVzaA==']\n";
        let config = parse(text, &[]).unwrap();
        let name = &config.subscribers[0].name;
        assert!(name.starts_with("shop.example/") && name.len() == "shop.example/".len() + 8, "{name}");
        check(&text.repeat(2), &["subscriber[1].url", "another subscriber's"]);
        let with = |url: &str| text.replace("https://Shop.example/hooks/hush", url);
        check(&with("http://shop.example"), &["subscriber[0].url", "https:"]);
        check(&with("https:///path"), &["subscriber[0].url"]);
        check(&with("https://user:hush@shop.example"), &["subscriber[0].url", "credentials"]);
        check("[[subscriber]]\nurl = 'https://shop.example'\nsecrets = []", &["subscriber[0].secrets", "empty"]);
        check("[retention]\nbodies_days = 0", &["[retention] bodies_days"]);
        check("[limits]\nparked_max_s = 1", &["[limits] parked_max_s"]);
        check(&format!("{STRIPE}over_capture_percent = 101"), &["psp[0].over_capture_percent"]);
    }

    #[test]
    fn an_account_is_found_by_its_route() {
        let config = parse(&format!("{STRIPE}{STRIPE}account = 'shop'"), &[]).unwrap();
        assert!(config.account("stripe", "shop").is_some());
        assert!(config.account("stripe", DEFAULT_ACCOUNT).is_some());
        assert!(config.account("stripe", "other").is_none());
        assert!(config.account("adyen", "default").is_none());
    }
}
