//! Whose webhook a path is about: an exact match, made ready at the start.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use metrics::{Counter, Histogram, counter, histogram};
use paybell_shared::config::{Config, ConfiguredAccount, DEFAULT_ACCOUNT};
use paybell_shared::psp::Account;
use paybell_shared::telemetry::{
    ACCOUNT, OUTCOME, PSP, REASON, SECRET, WEBHOOK_ACKNOWLEDGE_SECONDS, WEBHOOK_PUBLISH_SECONDS, WEBHOOKS_TOTAL,
    WEBHOOKS_VERIFIED_TOTAL,
};

use crate::record::ACCEPTED;

const PREFIX: &str = "/webhooks/";

/// The routes of all accounts, by what follows [`PREFIX`]: `psp/account`, and `psp` alone for the default account.
///
/// A third segment, the token of a PSP that signs nothing, leads nowhere: every adapter so far demands a signature.
pub(crate) struct Routes(HashMap<String, Arc<Route>>);

/// What is needed of an account for each of its webhooks. Its metrics are looked up once, not per webhook.
pub(crate) struct Route {
    pub(crate) account: Arc<Account>,
    pub(crate) allow_from: Vec<IpNet>,
    pub(crate) accepted: Counter,
    pub(crate) acknowledge_seconds: Histogram,
    pub(crate) publish_seconds: Histogram,
    verified: Vec<(Arc<str>, Counter)>,
}

impl Routes {
    pub(crate) fn new(config: &Config) -> Self {
        let mut routes = HashMap::new();
        for configured in &config.accounts {
            let route = Arc::new(Route::new(configured));
            let Account { psp_id, name, .. } = &*configured.account;
            if &**name == DEFAULT_ACCOUNT {
                routes.insert(psp_id.to_string(), Arc::clone(&route));
            }
            routes.insert(format!("{psp_id}/{name}"), route);
        }
        Self(routes)
    }

    /// The path as it came: no decoding, no `..`, no doubled or trailing slash stands for another path.
    pub(crate) fn find(&self, path: &str) -> Option<&Route> {
        self.0.get(path.strip_prefix(PREFIX)?).map(|route| &**route)
    }
}

impl Route {
    fn new(configured: &ConfiguredAccount) -> Self {
        let account = &configured.account;
        let (psp, name) = (&account.psp_id, &account.name);
        // Where there are none, another setting stands in: see `Keys::names`.
        let verified = account.keys.names().map(|secret| {
            let labels = [(PSP, Arc::clone(psp)), (ACCOUNT, Arc::clone(name)), (SECRET, Arc::clone(&secret))];
            (secret, counter!(WEBHOOKS_VERIFIED_TOTAL, &labels))
        });
        Self {
            allow_from: configured.allow_from.clone(),
            accepted: counter!(
                WEBHOOKS_TOTAL, PSP => Arc::clone(psp), ACCOUNT => Arc::clone(name), OUTCOME => ACCEPTED, REASON => ""
            ),
            acknowledge_seconds: histogram!(WEBHOOK_ACKNOWLEDGE_SECONDS, PSP => Arc::clone(psp)),
            publish_seconds: histogram!(WEBHOOK_PUBLISH_SECONDS, PSP => Arc::clone(psp)),
            verified: verified.collect(),
            account: Arc::clone(account),
        }
    }

    /// Counts a verified webhook under the secret that matched.
    pub(crate) fn count_verified(&self, secret_name: &str) {
        if let Some((_, counter)) = self.verified.iter().find(|(name, _)| &**name == secret_name) {
            counter.increment(1);
        }
    }
}
