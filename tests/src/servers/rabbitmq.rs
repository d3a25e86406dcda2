//! A private RabbitMQ.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, sleep};

const BIN: &str = "/usr/lib/rabbitmq/bin";

/// Virtual hosts that a broker is given once it is up: one call, where one each would cost seconds.
const VHOSTS: usize = 64;

const START_TIMEOUT: Duration = Duration::from_mins(2);

/// One node, its own port mapper and cookie.
pub struct RabbitMq {
    folder: PathBuf,
    port: u16,
    distribution_port: u16,
    mapper_port: u16,
    vhosts: AtomicUsize,
    /// Ends the node when its standard input closes, that is with this process.
    guard: Mutex<Option<Child>>,
}

/// The node that all tests of this process share. It must be left running.
///
/// # Panics
/// It does not start.
pub async fn rabbitmq() -> &'static RabbitMq {
    static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
    SHARED.get_or_init(RabbitMq::start_private).await
}

impl RabbitMq {
    /// A node of the caller's own, to be killed and stopped.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_private() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("paybell-rabbitmq-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let node = Self {
            folder,
            port: free_port(),
            distribution_port: free_port(),
            mapper_port: free_port(),
            vhosts: AtomicUsize::new(0),
            guard: Mutex::new(None),
        };
        node.start().await;
        node.create_vhosts().await.expect("virtual hosts");
        node
    }

    /// The URL of a virtual host that nobody else uses.
    ///
    /// # Panics
    /// There are no more.
    #[expect(clippy::unused_async, reason = "a harness that makes them one by one has to wait")]
    pub async fn vhost(&self) -> String {
        let number = self.vhosts.fetch_add(1, Ordering::Relaxed);
        assert!(number < VHOSTS, "raise VHOSTS");
        format!("amqp://guest:guest@127.0.0.1:{}/t{number}", self.port)
    }

    /// Starts the node, and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub async fn start(&self) {
        let _ = std::fs::remove_file(self.pid_file());
        let _ = std::fs::remove_file(self.folder.join("restarts"));
        std::fs::write(
            self.folder.join("rabbitmq.conf"),
            format!("listeners.tcp.1 = 127.0.0.1:{}\nlog.file.level = warning\n", self.port),
        )
        .expect("a configuration");
        // The shell outlives this process by a moment: when the pipe closes it kills its whole group.
        let script = format!(
            "{BIN}/rabbitmq-server <&- >server.out 2>&1 & cat >/dev/null; kill -9 $(cat server.pid) 2>/dev/null; \
             for try in 1 2 3 4 5 6 7 8 9; do ERL_EPMD_PORT={} epmd -kill >/dev/null 2>&1 && break; sleep 0.2; done; \
             test -e restarts || rm -rf \"$PWD\"",
            self.mapper_port
        );
        let mut command = self.command("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = command.spawn().expect("a shell");
        *self.guard.lock().await = Some(guard);
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port);
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let connecting = lapin::Connection::connect(&url, lapin::ConnectionProperties::default());
            if let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(5), connecting).await {
                let _ = connection.close(200, "OK".into()).await;
                return;
            }
            assert!(Instant::now() < until, "RabbitMQ does not start: see {}", self.folder.display());
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Kills the node as a power cut would, and waits until it is gone.
    ///
    /// # Panics
    /// There is no node.
    pub async fn kill9(&self) {
        std::fs::write(self.folder.join("restarts"), "").expect("a mark that the data is needed again");
        self.signal("-KILL").await;
        while std::path::Path::new(&format!("/proc/{}", self.pid())).exists() {
            sleep(Duration::from_millis(20)).await;
        }
        if let Some(mut guard) = self.guard.lock().await.take() {
            drop(guard.stdin.take());
            let _ = guard.wait().await;
        }
    }

    /// Freezes the node: its sockets stay open and nothing answers.
    pub async fn freeze(&self) {
        self.signal("-STOP").await;
    }

    /// Lets a frozen node go on.
    pub async fn thaw(&self) {
        self.signal("-CONT").await;
    }

    /// Runs an expression on the node, or a command of `rabbitmqctl`.
    ///
    /// # Errors
    /// It failed.
    pub async fn control(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(&format!("{BIN}/rabbitmqctl")).args(arguments).output().await.context("rabbitmqctl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "rabbitmqctl: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    async fn create_vhosts(&self) -> anyhow::Result<()> {
        let expression = format!(
            "lists:foreach(fun(N) -> V = list_to_binary(\"t\" ++ integer_to_list(N)), rabbit_vhost:add(V, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>) \
             end, lists:seq(0, {}))",
            VHOSTS - 1
        );
        self.control(&["eval", &format!("{expression}.")]).await.map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env("RABBITMQ_NODENAME", format!("paybell{}@localhost", self.port))
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.mapper_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", format!("{folder}/data"))
            .env("RABBITMQ_LOG_BASE", format!("{folder}/log"))
            .env("RABBITMQ_CONFIG_FILE", format!("{folder}/rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", format!("{folder}/plugins"))
            .env("RABBITMQ_PID_FILE", self.pid_file());
        command
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("server.pid")
    }

    fn pid(&self) -> String {
        std::fs::read_to_string(self.pid_file()).expect("a node that was started").trim().to_owned()
    }

    async fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.pid()).status().await.expect("kill");
        assert!(status.success(), "no such process");
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}
