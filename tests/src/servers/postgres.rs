//! PostgreSQL.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::guardian::Guarded;
use super::{
    Owner, POSTGRES_URL, find_program, free_port, from_environment, runs_as_root, said, shown, temporary_folder, unique_name,
    until_ready,
};

/// Tests run side by side, and each has pools.
const CONNECTIONS_MAX: u32 = 400;

/// Makes the data folder at the first start, then becomes the server. `$0` is initdb, `$1` postgres.
const SCRIPT: &str = r#"
[ -s data/PG_VERSION ] || "$0" -D data -U paybell -A trust -E UTF8 --locale=C --no-sync || exit 1
server=$1
shift
exec "$server" -D data "$@"
"#;

/// A running PostgreSQL. Dropped: killed, if it is a test's own.
#[derive(Debug)]
pub struct Postgres {
    url: Url,
    owner: Owner,
}

impl Postgres {
    /// A PostgreSQL of the test's own, to break.
    ///
    /// # Panics
    /// When it cannot be started; the message says what to install.
    pub async fn start_private() -> Self {
        said(Self::launch(true, false).await)
    }

    /// As [`Postgres::start_private`], and a commit is on the disk before it is answered, as in production: for figures.
    ///
    /// # Panics
    /// As [`Postgres::start_private`].
    pub async fn start_durable() -> Self {
        said(Self::launch(true, true).await)
    }

    pub(super) async fn shared() -> Result<Self> {
        match from_environment(POSTGRES_URL) {
            Some(url) => {
                let url = Url::parse(&url).context(POSTGRES_URL)?;
                answers(&url).await.context(POSTGRES_URL)?;
                Ok(Self { url, owner: Owner { name: "PostgreSQL", process: None, private: false } })
            }
            None => Self::launch(false, false).await,
        }
    }

    async fn launch(private: bool, durable: bool) -> Result<Self> {
        let folders = debian_folders();
        let server = find_program("postgres", &folders, "postgresql")?;
        let initdb = find_program("initdb", &folders, "postgresql")?;
        let folder = temporary_folder("postgres")?;
        let port = free_port();
        let mut command;
        if runs_as_root() {
            // PostgreSQL refuses to be root.
            let (user, group) = (id("-u", "postgres")?, id("-g", "postgres")?);
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).context("the data folder cannot be given to postgres")?;
            command = Command::new("setpriv");
            command.args(["--reuid", &user.to_string(), "--regid", &group.to_string(), "--clear-groups", "sh"]);
        } else {
            command = Command::new("sh");
        }
        command.args(["-c", SCRIPT, &shown(&initdb), &shown(&server)]);
        command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        // A killed process loses nothing that it gave to the kernel; only a power cut asks for fsync.
        let fsync = if durable { "fsync=on" } else { "fsync=off" };
        command.args(["-c", fsync, "-c", &format!("max_connections={CONNECTIONS_MAX}")]);
        let process = Guarded::new(folder, &command)?;
        process.start()?;
        let postgres = Self {
            url: Url::parse(&format!("postgres://paybell@127.0.0.1:{port}/postgres"))?,
            owner: Owner { name: "PostgreSQL", process: Some(process), private },
        };
        postgres.ready().await?;
        Ok(postgres)
    }

    /// The URL of a new, empty database.
    ///
    /// # Panics
    /// When PostgreSQL does not make it.
    pub async fn database(&self) -> String {
        said(self.new_database().await)
    }

    async fn new_database(&self) -> Result<String> {
        let name = unique_name();
        let mut connection = PgConnection::connect(self.url.as_str()).await?;
        // The name is letters and digits: see `unique_name`.
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await?;
        connection.close().await?;
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(url.into())
    }

    /// The URL of the database that every PostgreSQL has, for questions about the server itself.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// Kills all its processes by SIGKILL; its port then refuses connections.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn kill9(&self) {
        self.owner.kill9();
    }

    /// Freezes all its processes: connections stay open and nobody answers.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn stop_process(&self) {
        self.owner.stop();
    }

    /// Thaws them.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn continue_process(&self) {
        self.owner.cont();
    }

    /// Starts it after [`Postgres::kill9`], on the same port, with the same data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&self) {
        said(self.owner.breakable().start());
        said(self.ready().await);
    }

    async fn ready(&self) -> Result<()> {
        match &self.owner.process {
            Some(process) => until_ready(self.owner.name, process, || answers(&self.url)).await,
            None => answers(&self.url).await,
        }
    }

    /// The first process's id, if it was started here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.owner.process.as_ref().map(Guarded::pid)
    }
}

async fn answers(url: &Url) -> Result<()> {
    // On the heap: this future is 20 KiB, and it is part of every caller's.
    Box::pin(async { PgConnection::connect(url.as_str()).await?.close().await }).await?;
    Ok(())
}

/// `/usr/lib/postgresql/<version>/bin`, the newest first.
fn debian_folders() -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let number = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse::<u32>().ok());
    let mut versions: Vec<u32> = versions.flatten().filter_map(|entry| number(&entry.file_name())).collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions.into_iter().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))).collect()
}

fn id(which: &str, user: &str) -> Result<u32> {
    let output = Command::new("id").args([which, user]).output().context("id cannot be run")?;
    ensure!(output.status.success(), "PostgreSQL refuses to run as root, and there is no user {user} to run it as");
    String::from_utf8(output.stdout)?.trim().parse().context("id says something else than a number")
}
