//! A simulated PSP of any dialect behind HTTP, by a clock that the test moves, and our account there as a configuration has it.

use std::future::IntoFuture as _;
use std::sync::Arc;

use axum::middleware::from_fn_with_state;
use paybell::simulator::ledger::Ledger;
use paybell::simulator::{Account as SimulatedAccount, Dialect, Settings};
use paybell_shared::clock::{Clock, ManualClock};
use paybell_shared::psp::Account;
use paybell_worker::consume::Context;
use paybell_worker::policy;
use paybell_worker::reconcile::Reconciler;
use paybell_worker::schedule::Habits;
use paybell_worker::store::Store;
use paybell_worker::transport::HttpTransport;
use tokio_util::task::AbortOnDropHandle;

use crate::scene::{Api, watch};
use crate::shop::TOKEN;
use crate::worker::{config, context, key_of};

/// The PSP.
pub struct Played {
    pub simulated: SimulatedAccount,
    /// Ours.
    pub account: Arc<Account>,
    /// How it is asked; `None`: it cannot be.
    pub habits: Option<Habits>,
    pub api: Arc<Api>,
    _server: Option<AbortOnDropHandle<std::io::Result<()>>>,
}

impl Played {
    /// With empty books.
    ///
    /// # Panics
    /// When nothing can be set up.
    pub async fn new(dialect: &'static dyn Dialect, clock: Arc<dyn Clock>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let settings = Settings { api_url: Some(url), ..dialect.settings() };
        let simulated = SimulatedAccount::new(dialect, settings, Ledger::new(dialect, false, 1));
        let api = Api::new(clock);
        let server = simulated.api().map(|router| {
            let router = router.layer(from_fn_with_state(Arc::clone(&api), watch));
            AbortOnDropHandle::new(tokio::spawn(axum::serve(listener, router).into_future()))
        });
        let text = format!(
            "[queue]\nurl = \"sqlite:q\"\n[store]\nurl = \"sqlite:s\"\n[seen]\nurl = \"memory:\"\n[api]\ntoken = {TOKEN:?}\n{}",
            simulated.table("default")
        );
        let config = config(&text);
        let account = Arc::clone(&config.accounts[0].account);
        let habits = policy(&config).asking.get(&key_of(&account)).copied();
        Self { simulated, account, habits, api, _server: server }
    }

    /// What a worker has that serves this account as it is configured, but that no list is swept: so late changes are looked for.
    ///
    /// # Panics
    /// The store does not answer.
    pub async fn context(&self, store: &Arc<dyn Store>, clock: &Arc<ManualClock>) -> Arc<Context> {
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        let mut context = context(Arc::clone(store), clock, vec![Arc::clone(&self.account)]).await;
        if self.habits.is_none() {
            context.policy.asking.clear();
        }
        Arc::new(context)
    }

    /// One of the workers that share the store.
    ///
    /// # Panics
    /// As [`Played::context`].
    pub async fn reconciler(&self, store: &Arc<dyn Store>, clock: &Arc<ManualClock>) -> Reconciler {
        Reconciler::new(self.context(store, clock).await, Arc::new(HttpTransport::new().unwrap()))
    }
}
