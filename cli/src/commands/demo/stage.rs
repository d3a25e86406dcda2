//! What runs in the demo, and where: the simulated PSPs, then Paybell, all on free ports.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use paybell_shared::clock::{Clock, SystemClock, Timestamp};
use paybell_shared::config::{Config, DEFAULT_ACCOUNT};
use paybell_shared::shutdown::Shutdown;
use paybell_shared::telemetry;
use rand::RngExt as _;
use tokio::net::TcpListener;

use crate::api::Api;
use crate::commands::serve::{self, Addresses};
use crate::simulator::ledger::Ledger;
use crate::simulator::{Account, Dialect, Sender, Settings, http_client, quoted};

/// Embedded databases open in less, on any disk.
const READY_MAX: Duration = Duration::from_secs(15);
const READY_EVERY: Duration = Duration::from_millis(20);

/// Everything that runs.
pub struct Stage {
    pub players: Vec<Player>,
    pub api: Api,
    addresses: Addresses,
    config: PathBuf,
}

/// One simulated PSP.
#[derive(Clone)]
pub struct Player {
    pub account: Account,
    /// Of the account, in the configuration.
    pub name: &'static str,
    pub sender: Sender,
    /// Its webhooks prove nothing by themselves.
    pub hints: bool,
}

/// The machine's clock, and the hours that the demo lets pass at once.
#[derive(Default)]
pub struct HastyClock {
    ahead_ms: AtomicU64,
}

impl HastyClock {
    pub fn leap(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn be_right_again(&self) {
        self.ahead_ms.store(0, Ordering::Relaxed);
    }
}

impl Clock for HastyClock {
    fn now(&self) -> Timestamp {
        SystemClock.now().plus(Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed)))
    }
}

impl Stage {
    /// Starts the simulated PSPs with their books, then Paybell.
    ///
    /// # Errors
    /// Something cannot start.
    pub async fn set(
        books: Vec<(&'static dyn Dialect, Ledger)>,
        folder: &Path,
        clock: &Arc<HastyClock>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let mut accounts = Vec::with_capacity(books.len());
        for (dialect, ledger) in books {
            accounts.push(open(dialect, ledger, shutdown).await?);
        }
        let token = hex::encode(rand::rng().random::<[u8; 24]>());
        let any =
            Addresses { ingress: ([127, 0, 0, 1], 0).into(), api: ([127, 0, 0, 1], 0).into(), ops: ([127, 0, 0, 1], 0).into() };
        // The environment is somebody else's configuration.
        let text = configuration(folder, any, &token, &accounts);
        let config = Config::parse(&text, "the demo's configuration", std::iter::empty())?;
        let clock: Arc<dyn Clock> = Arc::<HastyClock>::clone(clock);
        let addresses = serve::start(&config, Arc::clone(&clock), telemetry::init_metrics()?, shutdown).await?;
        let path = folder.join("paybell.toml");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut file, configuration(folder, addresses, &token, &accounts).as_bytes())?;

        let http = http_client()?;
        let api = Api::new(http.clone(), &format!("http://{}", addresses.api), &token);
        let players = accounts.into_iter().map(|account| {
            let name = account_name(account.dialect);
            let url = format!("http://{}/webhooks/{}/{name}", addresses.ingress, account.dialect.psp());
            account.set_endpoint(account.settings.url.as_deref().unwrap_or(&url));
            let sender = Sender::new(http.clone(), account.dialect, url, Arc::clone(&account.settings), Arc::clone(&clock));
            Player { hints: account.dialect.hints(), account, name, sender }
        });
        Ok(Self { players: players.collect(), api, addresses, config: path })
    }

    /// Waits for the databases to be open.
    ///
    /// # Errors
    /// They are not, for too long.
    pub async fn wait_until_ready(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.addresses.ops);
        let http = http_client()?;
        let deadline = Instant::now() + READY_MAX;
        loop {
            let answer = http.get(&url).send().await;
            let said = match answer {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            anyhow::ensure!(!shutdown.has_crashed(), "a part of Paybell crashed at its start");
            anyhow::ensure!(Instant::now() < deadline, "Paybell is not ready after {} s: {said}", READY_MAX.as_secs());
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    /// Says what is there to try, and where its keys are.
    pub fn introduce(&self) {
        eprintln!("Everything stays up; Ctrl-C ends it. Keys and tokens are in {}", self.config.display());
        for player in &self.players {
            eprintln!(
                "  webhooks      http://{}/webhooks/{}/{}",
                self.addresses.ingress,
                player.account.dialect.psp(),
                player.name
            );
        }
        eprintln!("  internal API  http://{}/v1/orders", self.addresses.api);
        eprintln!("  operators     http://{}/readyz and /metrics", self.addresses.ops);
        for player in &self.players {
            if let Some(url) = &player.account.settings.api_url {
                eprintln!("  PSP's API     {url} ({})", player.account.dialect.id());
            }
        }
        if let Some(player) = self.players.first() {
            let event = player.account.dialect.event_types().first().map_or("", |event| event.name);
            eprintln!("Try it:\n  {}", serve::send_line(&self.config, player.account.dialect.id(), event, player.name));
        }
    }
}

/// Opens the PSP's account and serves its API, if it has one.
async fn open(dialect: &'static dyn Dialect, ledger: Ledger, shutdown: &Shutdown) -> anyhow::Result<Account> {
    let cannot = || format!("no free port for the simulated {}", dialect.id());
    let listener = TcpListener::bind("127.0.0.1:0").await.with_context(cannot)?;
    let url = format!("http://{}", listener.local_addr().with_context(cannot)?);
    let account = Account::new(dialect, Settings { api_url: Some(url), ..dialect.settings() }, ledger);
    if let Some(router) = account.api() {
        let stopping = shutdown.clone();
        shutdown.spawn("simulated PSP", async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(async move { stopping.stopping().await });
            Ok(served.await?)
        });
    }
    Ok(account)
}

/// One account a PSP; one more for each further way in which the PSP signs.
fn account_name(dialect: &dyn Dialect) -> &'static str {
    if dialect.id() == dialect.psp() { DEFAULT_ACCOUNT } else { dialect.id() }
}

fn configuration(folder: &Path, addresses: Addresses, token: &str, accounts: &[Account]) -> String {
    let database = |name: &str| quoted(&format!("sqlite:{}", folder.join(name).display()));
    let mut text = format!(
        r#"# The demo's; gone with it.
[ingress]
listen = "{ingress}"
ops_listen = "{ops}"

[api]
listen = "{api}"
token = "{token}"

[queue]
url = {queue}

[store]
url = {store}

[seen]
url = "memory:"
"#,
        ingress = addresses.ingress,
        ops = addresses.ops,
        api = addresses.api,
        queue = database("queue.db"),
        store = database("store.db"),
    );
    for account in accounts {
        text.push_str(&account.table(account_name(account.dialect)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::simulator;

    #[test]
    fn the_configuration_is_made_of_the_dialects_and_is_one() {
        let accounts: Vec<Account> = simulator::ALL
            .iter()
            .map(|dialect| {
                let settings = Settings { api_url: Some("http://127.0.0.1:1".to_owned()), ..dialect.settings() };
                Account::new(*dialect, settings, Ledger::new(*dialect, false, 1))
            })
            .collect();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { ingress: address(1), api: address(2), ops: address(3) };
        let text = configuration(Path::new("/tmp/x"), addresses, &"t".repeat(48), &accounts);
        let config = Config::parse(&text, "the demo's configuration", std::iter::empty()).unwrap();
        for account in &accounts {
            let configured = config.account(account.dialect.psp(), account_name(account.dialect)).unwrap();
            let read = Settings::from(&*configured.account);
            assert_eq!(read.scheme, account.settings.scheme, "{}", account.dialect.id());
            assert!(read.secret == account.settings.secret, "{}", account.dialect.id());
            assert_eq!(read.trusted_root, account.settings.trusted_root, "{}", account.dialect.id());
        }
    }

    #[test]
    fn hours_pass_at_once_and_are_given_back() {
        let clock = HastyClock::default();
        let before = SystemClock.now();
        clock.leap(Duration::from_hours(2));
        assert!(clock.now() >= before.plus(Duration::from_hours(2)));
        clock.be_right_again();
        assert!(clock.now() < before.plus(Duration::from_hours(1)));
    }
}
