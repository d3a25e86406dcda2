//! Whose webhook a path is about: an exact match, made ready at the start.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use metrics::{Counter, Histogram, counter, histogram};
use paybell_shared::clock::Clock;
use paybell_shared::config::{Config, ConfiguredAccount, DEFAULT_ACCOUNT, OnQueueDown};
use paybell_shared::psp::Account;
use paybell_shared::telemetry::{
    ACCOUNT, OUTCOME, PSP, REASON, SECRET, WEBHOOK_ACKNOWLEDGE_SECONDS, WEBHOOK_PUBLISH_SECONDS, WEBHOOKS_TOTAL,
    WEBHOOKS_VERIFIED_TOTAL,
};

use crate::record::ACCEPTED;

const PREFIX: &str = "/webhooks/";

/// The routes of all accounts, by what follows [`PREFIX`]: `psp/account`, and `psp` alone for the default account.
///
/// Of accounts whose PSP signs nothing, `psp/account/token` alone leads somewhere: their account is named, always, so that a
/// token never stands where an account could.
pub(crate) struct Routes(HashMap<String, Arc<Route>>);

/// What is needed of an account for each of its webhooks. Its metrics are looked up once, not per webhook.
pub(crate) struct Route {
    pub(crate) account: Arc<Account>,
    pub(crate) allow_from: Vec<IpNet>,
    takes_token: bool,
    /// What the queue does not take is kept on our disk.
    pub(crate) spools: bool,
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
            if &**name == DEFAULT_ACCOUNT && !route.takes_token {
                routes.insert(psp_id.to_string(), Arc::clone(&route));
            }
            routes.insert(format!("{psp_id}/{name}"), route);
        }
        Self(routes)
    }

    /// The path as it came: no decoding, no `..`, no doubled or trailing slash stands for another path. With the route comes
    /// the token, not compared yet; without one also where one is needed.
    pub(crate) fn find<'p>(&self, path: &'p str) -> Option<(&Route, Option<&'p str>)> {
        let path = path.strip_prefix(PREFIX)?;
        if let Some(route) = self.0.get(path) {
            return Some((route, None));
        }
        let (account, token) = path.rsplit_once('/')?;
        self.0.get(account).filter(|route| route.takes_token).map(|route| (&**route, Some(token)))
    }
}

impl Route {
    fn new(configured: &ConfiguredAccount) -> Self {
        let account = &configured.account;
        let (psp, name) = (&account.psp_id, &account.name);
        let scheme = account.psp.profile().scheme(account.keys.scheme);
        // Where there are none, another setting stands in: see `Keys::names`.
        let verified = account.keys.names().map(|secret| {
            let labels = [(PSP, Arc::clone(psp)), (ACCOUNT, Arc::clone(name)), (SECRET, Arc::clone(&secret))];
            (secret, counter!(WEBHOOKS_VERIFIED_TOTAL, &labels))
        });
        Self {
            allow_from: configured.allow_from.clone(),
            spools: configured.on_queue_down == OnQueueDown::Spool,
            takes_token: scheme.is_some_and(|scheme| scheme.token_in_path),
            accepted: counter!(
                WEBHOOKS_TOTAL, PSP => Arc::clone(psp), ACCOUNT => Arc::clone(name), OUTCOME => ACCEPTED, REASON => ""
            ),
            acknowledge_seconds: histogram!(WEBHOOK_ACKNOWLEDGE_SECONDS, PSP => Arc::clone(psp)),
            publish_seconds: histogram!(WEBHOOK_PUBLISH_SECONDS, PSP => Arc::clone(psp)),
            verified: verified.collect(),
            account: Arc::clone(account),
        }
    }

    /// Whether a call may go on: without the token that it needs, the route is none. No other check comes before this one, or
    /// its answer would tell that the account is there.
    pub(crate) fn admits(&self, token: Option<&str>, clock: &dyn Clock) -> bool {
        !self.takes_token || self.account.keys.admit(token, clock.now())
    }

    /// Counts a verified webhook under the secret that matched.
    pub(crate) fn count_verified(&self, secret_name: &str) {
        if let Some((_, counter)) = self.verified.iter().find(|(name, _)| &**name == secret_name) {
            counter.increment(1);
        }
    }
}
