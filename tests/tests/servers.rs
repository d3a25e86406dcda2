//! The harness itself: each server starts, is private, keeps its data over a SIGKILL, and ends with its test.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use paybell_tests::servers::guardian::{Guarded, is_running};
use paybell_tests::servers::process::Service;
use paybell_tests::servers::{self, Postgres, RabbitMq, Redis, free_port};
use redis::AsyncCommands as _;
use sqlx::{Connection as _, PgConnection};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For what takes milliseconds, on a machine that does ten other things.
const LIMIT: Duration = Duration::from_secs(30);

const QUEUE: &str = "kept";

async fn channel(url: &str) -> Result<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    Ok(connection.create_channel().await?)
}

async fn put(channel: &Channel, body: &[u8]) -> Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
    channel.queue_declare(QUEUE.into(), durable, quorum).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let confirm = channel.basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), body, persistent).await?.await?;
    ensure!(matches!(confirm, Confirmation::Ack(None)), "{confirm:?}");
    Ok(())
}

async fn get(channel: &Channel) -> Result<Vec<u8>> {
    let message = channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await?.context("the queue is empty")?;
    Ok(message.delivery.data)
}

#[tokio::test]
async fn a_vhost_is_a_tests_own() -> Result<()> {
    let server = servers::rabbitmq().await;
    let (one, other) = (server.vhost().await, server.vhost().await);
    put(&channel(&one).await?, b"for one").await?;
    let absent = channel(&other).await?.basic_get(QUEUE.into(), BasicGetOptions::default()).await;
    ensure!(absent.is_err(), "the other virtual host has the queue too");
    assert_eq!(get(&channel(&one).await?).await?, b"for one");
    Ok(())
}

#[tokio::test]
async fn a_database_is_a_tests_own() -> Result<()> {
    let server = servers::postgres().await;
    let mut one = PgConnection::connect(&server.database().await).await?;
    let mut other = PgConnection::connect(&server.database().await).await?;
    sqlx::raw_sql("CREATE TABLE kept (value int)").execute(&mut one).await?;
    let absent = sqlx::raw_sql("SELECT value FROM kept").execute(&mut other).await;
    ensure!(absent.is_err(), "the other database has the table too");
    Ok(())
}

#[tokio::test]
async fn a_redis_database_is_a_tests_own() -> Result<()> {
    let server = servers::redis().await;
    let (one, other) = (server.database().await, server.database().await);
    let mut one = redis::Client::open(one)?.get_multiplexed_async_connection().await?;
    let mut other = redis::Client::open(other)?.get_multiplexed_async_connection().await?;
    one.set::<_, _, ()>("kept", 1).await?;
    assert_eq!(other.get::<_, Option<i32>>("kept").await?, None);
    assert_ne!(Redis::prefix(), Redis::prefix());
    Ok(())
}

#[tokio::test]
async fn rabbitmq_keeps_its_messages_over_a_kill_and_leaves_nothing() -> Result<()> {
    let server = RabbitMq::start_private().await;
    let vhost = server.vhost().await;
    put(&channel(&vhost).await?, b"kept").await?;
    server.settle().await;
    let before = below(server.pid().context("a process")?);
    // The shell, Erlang, what Erlang starts, and epmd.
    ensure!(before.len() >= 4, "{before:?}");

    server.kill9();
    gone(&before);
    ensure!(channel(&vhost).await.is_err(), "a killed broker takes connections");

    server.start_again().await;
    assert_eq!(get(&channel(&vhost).await?).await?, b"kept");
    ensure!(server.ctl(&["list_vhosts"]).await.contains(vhost.rsplit('/').next().context("a path")?));

    let after = below(server.pid().context("a process")?);
    drop(server);
    gone(&after);
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_its_rows_over_a_kill_and_leaves_nothing() -> Result<()> {
    let server = Postgres::start_private().await;
    let database = server.database().await;
    let mut connection = PgConnection::connect(&database).await?;
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 1 AS value").execute(&mut connection).await?;
    let before = below(server.pid().context("a process")?);
    ensure!(before.len() >= 2, "{before:?}");

    server.kill9();
    gone(&before);
    ensure!(PgConnection::connect(&database).await.is_err(), "a killed server takes connections");

    server.start_again().await;
    let mut connection = PgConnection::connect(&database).await?;
    let value: i32 = sqlx::query_scalar("SELECT value FROM kept").fetch_one(&mut connection).await?;
    assert_eq!(value, 1);

    let after = below(server.pid().context("a process")?);
    drop(server);
    gone(&after);
    Ok(())
}

#[tokio::test]
async fn redis_keeps_its_keys_over_a_kill_and_can_be_frozen() -> Result<()> {
    let server = Redis::start_private().await;
    let client = redis::Client::open(server.url())?;
    client.get_multiplexed_async_connection().await?.set::<_, _, ()>("kept", 1).await?;

    server.kill9();
    ensure!(client.get_multiplexed_async_connection().await.is_err(), "a killed server takes connections");
    server.start_again().await;
    let mut connection = client.get_multiplexed_async_connection().await?;
    assert_eq!(connection.get::<_, Option<i32>>("kept").await?, Some(1));

    server.stop_process();
    let state = std::fs::read_to_string(format!("/proc/{}/stat", server.pid().context("a process")?))?;
    ensure!(state.contains(") T "), "frozen processes are in state T: {state}");
    server.continue_process();
    assert_eq!(timeout(LIMIT, connection.get::<_, Option<i32>>("kept")).await??, Some(1));
    Ok(())
}

#[tokio::test]
#[should_panic(expected = "start_private")]
async fn what_is_shared_cannot_be_broken() {
    servers::redis().await.kill9();
}

#[tokio::test]
async fn free_ports_are_free_and_given_once() -> Result<()> {
    let (one, other) = (free_port(), free_port());
    assert_ne!(one, other);
    ensure!(TcpStream::connect(("127.0.0.1", one)).await.is_err());
    Ok(())
}

#[test]
fn a_guarded_process_is_asked_frozen_and_told_of() -> Result<()> {
    let guarded =
        Guarded::new(folder()?, Command::new("sh").args(["-c", "trap 'exit 7' TERM; echo on; while :; do sleep 0.01; done"]))?;
    guarded.start()?;
    let deadline = std::time::Instant::now() + LIMIT;
    while guarded.log_tail() != "on\n" {
        ensure!(std::time::Instant::now() < deadline, "it says nothing");
        std::thread::yield_now();
    }
    ensure!(guarded.exit_status().is_err(), "it has no exit status while it runs");
    guarded.terminate()?;
    while guarded.is_running() {
        ensure!(std::time::Instant::now() < deadline, "it does not end by SIGTERM");
        std::thread::yield_now();
    }
    assert_eq!(guarded.exit_status()?, 7);

    guarded.start()?;
    ensure!(guarded.is_running());
    let folder = guarded.folder().to_owned();
    drop(guarded);
    ensure!(!folder.exists(), "the folder is left");
    Ok(())
}

#[tokio::test]
async fn a_services_end_and_its_log_are_told() -> Result<()> {
    // A binary of this package, called as it does not want to be; its start needs no server.
    let service = Service::start_unready("with-servers", &[], "[ingress]\n", &[]);
    assert_eq!(service.exit_status().await, 1);
    ensure!(service.log().contains("usage"), "{}", service.log());
    Ok(())
}

#[tokio::test]
#[should_panic(expected = "cargo build --workspace --bins")]
async fn a_service_that_is_not_built_fails_its_test() {
    let _ = Service::start_unready("paybell-absent", &[], "", &[]);
}

/// Set in the environment of the process that [`nothing_is_left_of_a_killed_test`] kills.
const VICTIM: &str = "PAYBELL_TEST_HARNESS_VICTIM";

/// Not a test of its own: started by the next one, it prints what it has started and waits to be killed.
#[tokio::test]
#[ignore = "waits to be killed"]
async fn victim() -> Result<()> {
    if std::env::var_os(VICTIM).is_none() {
        return Ok(());
    }
    let postgres = Postgres::start_private().await;
    let redis = Redis::start_private().await;
    let pids = [postgres.pid(), redis.pid()].into_iter().flatten().flat_map(below);
    let pids: Vec<String> = pids.map(|pid| pid.to_string()).collect();
    // Not by println!, which the test runner keeps.
    writeln!(std::io::stderr(), "started {}", pids.join(" "))?;
    std::future::pending().await
}

#[test]
fn nothing_is_left_of_a_killed_test() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(victim.stderr.take().context("its standard error")?).lines();
    let pids = said.map_while(Result::ok).find_map(|line| line.strip_prefix("started ").map(str::to_owned));
    let pids = pids.context("the victim started nothing")?;
    let pids = pids.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    ensure!(pids.len() >= 3, "{pids:?}");
    ensure!(pids.iter().all(|pid| is_running(*pid)));

    victim.kill()?;
    victim.wait()?;
    gone(&pids);
    Ok(())
}

fn folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("paybell-harness-{}", servers::unique_name()));
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

/// A process and all below it.
fn below(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Waits for the end of processes that were killed.
fn gone(pids: &[u32]) {
    let deadline = std::time::Instant::now() + LIMIT;
    while let Some(left) = pids.iter().find(|pid| is_running(**pid)) {
        assert!(std::time::Instant::now() < deadline, "process {left} is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}
