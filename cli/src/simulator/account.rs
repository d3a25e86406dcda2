//! A simulated account: its books, its settings, and where it sends webhooks.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axum::Router;

use super::dialect::{Dialect, Settings};
use super::endpoint::{self, Registered};
use super::ledger::Ledger;

/// Clones share one account.
#[derive(Clone)]
pub struct Account {
    pub dialect: &'static dyn Dialect,
    pub settings: Arc<Settings>,
    ledger: Arc<RwLock<Ledger>>,
    endpoints: Arc<RwLock<Vec<Registered>>>,
}

impl Account {
    #[must_use]
    pub fn new(dialect: &'static dyn Dialect, settings: Settings, ledger: Ledger) -> Self {
        Self { dialect, settings: settings.into(), ledger: Arc::new(RwLock::new(ledger)), endpoints: Arc::default() }
    }

    /// The books. A panic of another holder does not hide them: each step of the ledger leaves them whole.
    pub fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The books, to write in.
    pub fn ledger_mut(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers one webhook endpoint, for all events, in place of all others.
    pub fn set_endpoint(&self, url: &str) {
        let mut endpoints = self.endpoints_mut();
        endpoints.clear();
        let _ = endpoint::create(self.dialect, &mut endpoints, url, vec!["*".to_owned()], None);
    }

    /// What is registered.
    pub fn endpoints(&self) -> RwLockReadGuard<'_, Vec<Registered>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is registered, to change it as in the PSP's dashboard, or to have the PSP lie about it.
    pub fn endpoints_mut(&self) -> RwLockWriteGuard<'_, Vec<Registered>> {
        self.endpoints.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API, to be served anywhere; `None`: the PSP cannot be asked.
    #[must_use]
    pub fn api(&self) -> Option<Router> {
        self.dialect.api(self)
    }

    /// Our account there, as a configuration's `[[psp]]` table.
    #[must_use]
    pub fn table(&self, name: &str) -> String {
        let (dialect, settings) = (self.dialect, &self.settings);
        let secrets = if settings.secret.is_empty() { String::new() } else { quoted(&settings.secret) };
        let mut text = format!(
            "\n[[psp]]\nid = {}\naccount = {}\nmode = \"test\"\nsecrets = [{secrets}]\n",
            quoted(dialect.psp()),
            quoted(name)
        );
        let has_api = self.api().is_some();
        let optional = [
            ("scheme", settings.scheme),
            ("url", settings.url.as_deref()),
            ("webhook_id", settings.webhook_id.as_deref()),
            ("public_key", settings.public_key.as_deref()),
            ("trusted_root", settings.trusted_root.as_deref()),
            ("api_key", settings.api_key.as_deref()),
            ("api_url", settings.api_url.as_deref().filter(|_| has_api)),
            ("client_id", settings.client_id.as_deref()),
            ("merchant_id", settings.merchant_id.as_deref()),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                // Writing to a String does not fail.
                let _ = writeln!(text, "{key} = {}", quoted(value));
            }
        }
        if let Some(rules) = settings.generic {
            text.push_str("[psp.generic]\n");
            let rules = [
                ("header", &rules.header),
                ("algorithm", &rules.algorithm),
                ("encoding", &rules.encoding),
                ("prefix", &rules.prefix),
                ("template", &rules.template),
                ("timestamp_header", &rules.timestamp_header),
                ("key_encoding", &rules.key_encoding),
                ("id", &rules.id),
            ];
            for (key, value) in rules {
                if let Some(value) = value {
                    let _ = writeln!(text, "{key} = {}", quoted(value));
                }
            }
        }
        text
    }
}

/// A text as TOML has it.
#[must_use]
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
