//! RabbitMQ with its management API.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::guardian::Guarded;
use super::{
    AMQP_MANAGEMENT_URL, AMQP_URL, ANSWER_LIMIT, Owner, START_LIMIT, find_program, free_port, from_environment, http_client,
    said, shown, temporary_folder, unique_name, until_ready,
};

/// What a new connection says first: AMQP 0-9-1, section 4.2.2.
const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// The type of the frame that answers it, `connection.start`: a method.
const METHOD_FRAME: u8 = 1;

/// epmd, which tells Erlang nodes where the others are, is a child of this shell and not the daemon that a node would
/// start and leave behind. Its port is the node's own, so no other node is seen or disturbed.
const SCRIPT: &str = r#"epmd -port "$ERL_EPMD_PORT" & exec "$0""#;

/// A running RabbitMQ. Dropped: killed, if it is a test's own.
#[derive(Debug)]
pub struct RabbitMq {
    /// Without a path.
    amqp: Url,
    /// With user and password.
    management: Url,
    owner: Owner,
    /// How `rabbitmqctl` finds the node; none: a server by its URL.
    node: Option<Node>,
}

#[derive(Debug)]
struct Node {
    /// Of RabbitMQ's scripts.
    control: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl RabbitMq {
    /// A RabbitMQ of the test's own, to break. It takes about 10 s to start.
    ///
    /// # Panics
    /// When it cannot be started; the message says what to install.
    pub async fn start_private() -> Self {
        said(Self::launch(true).await)
    }

    pub(super) async fn shared() -> Result<Self> {
        let Some(amqp) = from_environment(AMQP_URL) else { return Self::launch(false).await };
        let mut amqp = Url::parse(&amqp).context(AMQP_URL)?;
        amqp.set_path("");
        let management = from_environment(AMQP_MANAGEMENT_URL);
        let management = management.unwrap_or_else(|| format!("http://{}:15672", amqp.host_str().unwrap_or("127.0.0.1")));
        let mut management = Url::parse(&management).context(AMQP_MANAGEMENT_URL)?;
        let user = if amqp.username().is_empty() { "guest" } else { amqp.username() };
        management.set_username(user).map_err(|()| anyhow!("{AMQP_MANAGEMENT_URL} takes no user"))?;
        management.set_password(Some(amqp.password().unwrap_or("guest"))).map_err(|()| anyhow!("{AMQP_MANAGEMENT_URL}"))?;
        let server = Self { amqp, management, owner: Owner { name: "RabbitMQ", process: None, private: false }, node: None };
        server.ready().await.with_context(|| format!("{AMQP_URL} and {AMQP_MANAGEMENT_URL}"))?;
        Ok(server)
    }

    async fn launch(private: bool) -> Result<Self> {
        // Debian's wrappers in PATH change the user, so its own folder is first.
        let folders = [PathBuf::from("/usr/lib/rabbitmq/bin")];
        let server = find_program("rabbitmq-server", &folders, "rabbitmq-server")?;
        let control = find_program("rabbitmqctl", &folders, "rabbitmq-server")?;
        find_program("epmd", &[], "erlang-base")?;
        let folder = temporary_folder("rabbitmq")?;
        let (amqp, management) = (free_port(), free_port());
        std::fs::write(folder.join("rabbitmq.conf"), configuration(amqp, management))?;
        std::fs::write(folder.join("enabled_plugins"), "[rabbitmq_management].\n")?;
        let place = |name: &str| shown(&folder.join(name));
        let environment = vec![
            // Where the cookie is made that lets rabbitmqctl in.
            ("HOME", shown(&folder)),
            ("RABBITMQ_NODENAME", format!("paybell{amqp}@localhost")),
            ("RABBITMQ_NODE_PORT", amqp.to_string()),
            ("RABBITMQ_DIST_PORT", free_port().to_string()),
            ("ERL_EPMD_PORT", free_port().to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_CONF_ENV_FILE", place("rabbitmq-env.conf")),
            ("RABBITMQ_CONFIG_FILE", place("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", place("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", place("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", place("data")),
            ("RABBITMQ_LOG_BASE", place("log.d")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
            // Were the node's epmd gone, a command would start one of its own and leave it.
            ("RABBITMQ_CTL_ERL_ARGS", "-start_epmd false".to_owned()),
        ];
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, &shown(&server)]).envs(environment.iter().map(|(name, value)| (name, value)));
        let process = Guarded::new(folder, &command)?;
        process.start()?;
        let rabbitmq = Self {
            amqp: Url::parse(&format!("amqp://guest:guest@127.0.0.1:{amqp}"))?,
            management: Url::parse(&format!("http://guest:guest@127.0.0.1:{management}"))?,
            owner: Owner { name: "RabbitMQ", process: Some(process), private },
            node: Some(Node { control, environment }),
        };
        rabbitmq.ready().await?;
        Ok(rabbitmq)
    }

    /// The AMQP URL of a new, empty virtual host.
    ///
    /// # Panics
    /// When RabbitMQ does not make it.
    pub async fn vhost(&self) -> String {
        said(self.new_vhost().await)
    }

    async fn new_vhost(&self) -> Result<String> {
        let name = unique_name();
        let mut management = self.management.clone();
        management.set_path(&format!("/api/vhosts/{name}"));
        // It also lets its maker in.
        let answer = http_client().put(management).send().await?;
        ensure!(answer.status().is_success(), "RabbitMQ makes no virtual host: {}", answer.status());
        let mut url = self.amqp.clone();
        url.set_path(&name);
        Ok(url.into())
    }

    /// `amqp://user:password@host:port`, without a virtual host.
    #[must_use]
    pub fn url(&self) -> String {
        self.amqp.to_string()
    }

    /// The management API's address with user and password, `http://…/`, for what AMQP cannot do: closing somebody's
    /// connection, setting a policy.
    #[must_use]
    pub fn management_url(&self) -> Url {
        self.management.clone()
    }

    /// Runs `rabbitmqctl` with these arguments, for what the management API cannot do: `["set_vm_memory_high_watermark",
    /// "0"]` raises the memory alarm, which blocks publishers. Returns what it printed.
    ///
    /// # Panics
    /// When it fails, or when the server is not a test's own.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.owner.breakable();
        said(self.control(arguments).await)
    }

    /// Writes to disk which quorum queues there are. RabbitMQ does so by itself, but late: killed within the first moments
    /// after a queue's declaration, 3.10.8 forgets that it has the queue's log, and with it what it had confirmed. So a
    /// test calls this between the declarations and the kill, unless that very loss is its subject.
    ///
    /// # Panics
    /// As [`RabbitMq::ctl`].
    pub async fn settle(&self) {
        self.ctl(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]).await;
    }

    async fn control(&self, arguments: &[&str]) -> Result<String> {
        let node = self.node.as_ref().context("a RabbitMQ by its URL has no rabbitmqctl here")?;
        let environment = node.environment.iter().map(|(name, value)| (name, value));
        let mut command = tokio::process::Command::new(&node.control);
        command.args(arguments).envs(environment).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = timeout(START_LIMIT, command.output()).await.context("rabbitmqctl does not end")??;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("rabbitmqctl {}: {printed}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(printed)
    }

    /// Kills it by SIGKILL; its port then refuses connections.
    ///
    /// # Panics
    /// When it is not a test's own.
    pub fn kill9(&self) {
        self.owner.kill9();
    }

    /// Freezes it: connections stay open and nobody answers.
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

    /// Starts it after [`RabbitMq::kill9`], on the same port, with the same data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&self) {
        said(self.owner.breakable().start());
        said(self.ready().await);
    }

    async fn ready(&self) -> Result<()> {
        match &self.owner.process {
            Some(process) => until_ready(self.owner.name, process, || self.answers()).await,
            None => timeout(ANSWER_LIMIT, self.answers()).await.context("no answer")?,
        }
    }

    async fn answers(&self) -> Result<()> {
        let address = (self.amqp.host_str().unwrap_or("127.0.0.1"), self.amqp.port().unwrap_or(5672));
        let mut connection = TcpStream::connect(address).await.context("AMQP")?;
        connection.write_all(&PROTOCOL_HEADER).await?;
        let frame = connection.read_u8().await.context("AMQP")?;
        ensure!(frame == METHOD_FRAME, "AMQP: a frame of type {frame} answers the protocol header");
        let mut management = self.management.clone();
        management.set_path("/api/vhosts");
        let answer = http_client().get(management).send().await.context("the management API")?;
        ensure!(answer.status().is_success(), "the management API answers {}", answer.status());
        Ok(())
    }

    /// The first process's id, if it was started here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.owner.process.as_ref().map(Guarded::pid)
    }
}

fn configuration(amqp: u16, management: u16) -> String {
    format!(
        "listeners.tcp.local = 127.0.0.1:{amqp}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {management}\n\
         log.console = true\n\
         log.file = false\n\
         # Tests need little, and a full disk should not look like a broken broker.\n\
         disk_free_limit.absolute = 50MB\n"
    )
}
