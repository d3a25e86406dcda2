//! A simulated account: its books, its settings, and where it sends webhooks.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axum::Router;

use super::dialect::{Dialect, Settings};
use super::ledger::Ledger;

/// Clones share one account.
#[derive(Clone)]
pub struct Account {
    pub dialect: &'static dyn Dialect,
    pub settings: Arc<Settings>,
    ledger: Arc<RwLock<Ledger>>,
    endpoint_url: Arc<RwLock<Option<String>>>,
}

impl Account {
    #[must_use]
    pub fn new(dialect: &'static dyn Dialect, settings: Settings, ledger: Ledger) -> Self {
        Self { dialect, settings: settings.into(), ledger: Arc::new(RwLock::new(ledger)), endpoint_url: Arc::default() }
    }

    /// The books. A panic of another holder does not hide them: each step of the ledger leaves them whole.
    pub fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The books, to write in.
    pub fn ledger_mut(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the one webhook endpoint.
    pub fn set_endpoint(&self, url: &str) {
        *self.endpoint_url.write().unwrap_or_else(PoisonError::into_inner) = Some(url.to_owned());
    }

    /// The registered endpoint, for PSPs that list it.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint_url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The API, to be served anywhere; `None`: the PSP cannot be asked.
    #[must_use]
    pub fn api(&self) -> Option<Router> {
        self.dialect.api(self)
    }
}
