//! Redis, or what speaks its protocol.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::guardian::Guarded;
use super::{Owner, REDIS_URL, find_program, free_port, from_environment, said, temporary_folder, unique_name, until_ready};

/// Databases of a private Redis, one a test; an empty one costs nothing to speak of.
const DATABASES: u32 = 16_384;

/// The key, in database 0, that counts the databases given to tests by every test process.
const GIVEN: &str = "paybell:test:databases";

/// A running Redis. Dropped: killed, if it is a test's own.
#[derive(Debug)]
pub struct Redis {
    url: String,
    owner: Owner,
}

impl Redis {
    /// A Redis of the test's own, to break. It writes every command to its append-only file, so it keeps its data over
    /// [`Redis::kill9`].
    ///
    /// # Panics
    /// When it cannot be started; the message says what to install.
    pub async fn start_private() -> Self {
        said(Self::launch(true).await)
    }

    pub(super) async fn shared() -> Result<Self> {
        match from_environment(REDIS_URL) {
            Some(url) => {
                let mut url = url::Url::parse(&url).context(REDIS_URL)?;
                url.set_path("");
                let url = String::from(url);
                ping(&url).await.context(REDIS_URL)?;
                Ok(Self { url, owner: Owner { name: "Redis", process: None, private: false } })
            }
            None => Self::launch(false).await,
        }
    }

    async fn launch(private: bool) -> Result<Self> {
        let program = find_program("redis-server", &[], "redis-server")?;
        let folder = temporary_folder("redis")?;
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir", "."]);
        command.args(["--databases", &DATABASES.to_string(), "--save", "", "--appendonly", "yes"]);
        let process = Guarded::new(folder, &command)?;
        process.start()?;
        let redis =
            Self { url: format!("redis://127.0.0.1:{port}"), owner: Owner { name: "Redis", process: Some(process), private } };
        redis.ready().await?;
        Ok(redis)
    }

    /// Database 0: `redis://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// A key prefix that no other test has.
    #[must_use]
    pub fn prefix() -> String {
        format!("{}:", unique_name())
    }

    /// The URL of an empty database that no other running test has.
    ///
    /// # Panics
    /// When Redis does not answer.
    pub async fn database(&self) -> String {
        said(self.next_database().await)
    }

    async fn next_database(&self) -> Result<String> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let (_, databases): (String, u32) = redis::cmd("CONFIG").arg("GET").arg("databases").query_async(&mut connection).await?;
        ensure!(databases > 1, "this Redis has one database: tests need one each");
        let given: u32 = redis::cmd("INCR").arg(GIVEN).query_async(&mut connection).await?;
        // Somebody's Redis may have 16: then they go around, and there are still more than tests at a time.
        let number = 1 + (given - 1) % (databases - 1);
        let url = format!("{}/{number}", self.url);
        let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
        redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await?;
        Ok(url)
    }

    /// Kills it by SIGKILL; its port then refuses connections.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn kill9(&self) {
        self.owner.kill9();
    }

    /// Freezes it: it accepts and never answers.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn stop_process(&self) {
        self.owner.stop();
    }

    /// Thaws it.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn continue_process(&self) {
        self.owner.cont();
    }

    /// Starts it after [`Redis::kill9`], on the same port, with the same data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&self) {
        said(self.owner.breakable().start());
        said(self.ready().await);
    }

    async fn ready(&self) -> Result<()> {
        match &self.owner.process {
            Some(process) => until_ready(self.owner.name, process, || ping(&self.url)).await,
            None => ping(&self.url).await,
        }
    }

    /// The process's id, if it was started here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.owner.process.as_ref().map(Guarded::pid)
    }
}

async fn ping(url: &str) -> Result<()> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async::<()>(&mut connection).await?;
    Ok(())
}
