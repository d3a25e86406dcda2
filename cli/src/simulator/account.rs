//! A simulated account: its books, its settings, and where it sends webhooks.

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
}
