//! Is our URL right and alive? Over running processes: what is wrong is found by its name, told once, and mended; a canary
//! comes back, or is missed.

use std::future::IntoFuture as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use paybell::simulator::ledger::Ledger;
use paybell::simulator::stripe::Stripe;
use paybell::simulator::{self, Dialect as _, Registered, Settings};
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::psp::{self, Account};
use paybell_tests::front::{Authority, Front, Leads, Says};
use paybell_tests::servers::process::{Service, built};
use paybell_tests::servers::{self, http_client, temporary_folder};
use paybell_tests::shop::{Shop, TOKEN, configuration};
use paybell_tests::worker::accounts;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

const API_KEY: &str = "sk_test_of_the_tests_only";
const CANARY_SECRET: &str = "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=";
const YEAR: Duration = Duration::from_hours(24 * 365);
/// How long anything may take to come about. Not a promise about speed: a bound on a test that would hang.
const SETTLE_LIMIT: Duration = Duration::from_mins(2);

/// A simulated Stripe behind HTTP, which may answer otherwise.
struct Psp {
    account: simulator::Account,
    url: String,
    /// A status in place of every answer.
    instead: Arc<Mutex<Option<u16>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

type Watched = (Arc<Mutex<Option<u16>>>, Arc<Mutex<Vec<String>>>);

async fn watch(State((instead, asked)): State<Watched>, request: Request, next: Next) -> Response {
    asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
    let instead = *instead.lock().unwrap();
    match instead {
        Some(status) => StatusCode::from_u16(status).unwrap().into_response(),
        None => next.run(request).await,
    }
}

impl Psp {
    async fn serve() -> Self {
        let settings = Settings { api_key: Some(API_KEY.to_owned()), ..Stripe.settings() };
        let account = simulator::Account::new(&Stripe, settings, Ledger::new(&Stripe, false, 1));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (instead, asked) = (Arc::default(), Arc::default());
        let watched: Watched = (Arc::clone(&instead), Arc::clone(&asked));
        let router = account.api().unwrap().layer(from_fn_with_state(watched, watch));
        let server = AbortOnDropHandle::new(tokio::spawn(axum::serve(listener, router).into_future()));
        Self { account, url, instead, asked, _server: server }
    }

    fn answers(&self, instead: Option<u16>) {
        *self.instead.lock().unwrap() = instead;
    }

    fn change(&self, change: impl FnOnce(&mut Registered)) {
        change(&mut self.account.endpoints_mut()[0]);
    }

    /// About its endpoints: the sweep reads another list, when it likes.
    fn requests(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.contains("webhook_endpoints")).count()
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A simulated Stripe, a front with a certificate of the tests' authority, and what Paybell is told of both.
struct World {
    folder: Folder,
    authority: Authority,
    front: Front,
    psp: Psp,
    /// Stripe's and the canary's accounts, without queue and database.
    accounts: String,
}

impl World {
    async fn new() -> Self {
        let (folder, authority) = (Folder(temporary_folder("endpoints").unwrap()), Authority::new());
        let front = Front::open(authority.server(Says::localhost_for(YEAR))).await;
        let root = folder.0.join("root.pem");
        std::fs::write(&root, authority.pem()).unwrap();
        let psp = Psp::serve().await;
        let root = format!("trusted_root = \"file:{}\"\n", root.display());
        let accounts = format!(
            "api_key = {API_KEY:?}\napi_url = {:?}\n{root}\
             [[psp]]\nid = \"standard-webhooks\"\naccount = \"canary\"\nmode = \"test\"\nsecrets = [{CANARY_SECRET:?}]\n{root}\
             [ingress]\npublic_url = {:?}\n",
            psp.url,
            front.url()
        );
        Self { folder, authority, front, psp, accounts }
    }

    fn file(&self, name: &str) -> String {
        format!("sqlite:{}", self.folder.0.join(name).display())
    }

    /// The configuration over one queue and one database in files.
    fn embedded(&self) -> String {
        configuration(&self.file("queue.db"), &self.file("store.db"), "memory:") + &self.accounts
    }

    /// Paybell in one process, behind the front, registered as it must be.
    async fn serve(&self) -> Service {
        let service = Service::serve(&self.embedded()).await;
        self.leads_to(&service);
        self.psp.account.set_endpoint(&self.route());
        service
    }

    fn leads_to(&self, service: &Service) {
        let port = service.webhooks_url().rsplit_once(':').unwrap().1.parse().unwrap();
        self.front.lead(Leads::To(port));
    }

    fn route(&self) -> String {
        format!("{}/webhooks/stripe", self.front.url())
    }

    /// The account as the worker has it.
    fn account(&self) -> Arc<Account> {
        accounts(&self.embedded()).remove(0)
    }

    /// The command's exit code and what it printed.
    async fn paybell(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(built("paybell").unwrap());
        command.arg("endpoints").args(arguments);
        let output = command.env_remove("PAYBELL_CONFIG").current_dir(&self.folder.0).stdin(Stdio::null()).output();
        let output = output.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    }

    /// `endpoints check`: the exit code, and what it says of each account.
    async fn check(&self, service: &Service, target: &str) -> (i32, Value) {
        let api = service.api_url();
        let (code, text) = self.paybell(&["check", target, "--json", "--api", &api, "--token", TOKEN]).await;
        let line = text.lines().next().unwrap_or_default();
        (code, serde_json::from_str(line).unwrap_or_else(|_| panic!("{code}: {text}")))
    }

    async fn found(&self, service: &Service) -> (i32, Vec<String>) {
        let (code, item) = self.check(service, "stripe").await;
        let findings = item["report"]["findings"].as_array().unwrap();
        (code, findings.iter().map(|finding| finding["finding"].as_str().unwrap().to_owned()).collect())
    }
}

/// Waits until the metrics say so.
async fn shown(service: &Service, line: &str) {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let metrics = http_client().get(format!("{}/metrics", service.ops_url())).send().await.unwrap().text().await.unwrap();
        if metrics.lines().any(|shown| shown.starts_with(line)) {
            return;
        }
        assert!(Instant::now() < deadline, "{line} is not shown:\n{metrics}");
        sleep(Duration::from_millis(200)).await;
    }
}

fn logged(service: &Service, event: &str, finding: &str) -> usize {
    let is_it = |line: &&str| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["event"] == event && line["finding"] == finding
    };
    service.log().lines().filter(is_it).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_registered_wrongly_is_found_by_its_name() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(world.found(&service).await, (0, vec![]));
    let (right, psp) = (world.route(), &world.psp);
    let wanted = |world: &World| world.account().psp.wanted_endpoint(&world.account()).unwrap();
    for (finding, change) in [
        ("other_url", Box::new(|it: &mut Registered| it.url += "/") as Box<dyn Fn(&mut Registered)>),
        ("other_url", Box::new(|it: &mut Registered| it.url = it.url.replace("https:", "http:"))),
        ("other_host", Box::new(|it: &mut Registered| it.url = "https://old-staging.example/webhooks/stripe".to_owned())),
        ("not_registered", Box::new(|it: &mut Registered| it.url = "https://other.example/hook".to_owned())),
        ("disabled", Box::new(|it: &mut Registered| it.enabled = false)),
        ("missing_events", Box::new(|it: &mut Registered| it.events = vec!["payment_intent.succeeded".to_owned()])),
        ("api_version", Box::new(|it: &mut Registered| it.api_version = Some("2020-08-27".to_owned()))),
    ] {
        psp.change(&change);
        assert_eq!(world.found(&service).await, (1, vec![finding.to_owned()]));
        psp.account.set_endpoint(&right);
    }
    psp.account.endpoints_mut().clear();
    assert_eq!(world.found(&service).await, (1, vec!["none_listed".to_owned()]));
    psp.account.set_endpoint(&right);
    psp.change(|it| it.events = wanted(&world).events.iter().map(|event| (*event).to_owned()).collect());
    assert_eq!(world.found(&service).await, (0, vec![]), "what is wanted is enough");

    // A table says what to do.
    psp.change(|it| it.enabled = false);
    let api = service.api_url();
    let (code, text) = world.paybell(&["check", "stripe/default", "--api", &api, "--token", TOKEN]).await;
    assert!(code == 1 && text.contains("not enabled") && text.contains("paybell endpoints register"), "{code}: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    for (arguments, expected) in [
        (&["check", "adyen"][..], 2),
        (&["check", "stripe/shop"], 2),
        (&["check", "a/b/c"], 2),
        (&["check", "stripe", "--token", "wrong"], 2),
    ] {
        let token = if arguments.contains(&"--token") { &[][..] } else { &["--token", TOKEN] };
        let (code, text) = world.paybell(&[arguments, &["--api", &api], token].concat()).await;
        assert_eq!(code, expected, "{arguments:?}: {text}");
    }
    assert_eq!(world.paybell(&["check", "--api", "http://127.0.0.1:1", "--token", TOKEN]).await.0, 3);
}

/// Silence, refusal and nonsense are not "fine"; what was known to be wrong stays so, and is said once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_is_never_fine() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(world.found(&service).await, (0, vec![]));
    for status in [500, 503, 404, 401, 403, 204, 302] {
        world.psp.answers(Some(status));
        let (code, item) = world.check(&service, "stripe").await;
        assert_eq!((code, &item["verdict"]), (3, &json!("unknown")), "{status}: {item}");
        assert_eq!(item["report"]["doubts"].as_array().unwrap().len(), 1, "{status}");
    }
    world.psp.answers(None);
    world.psp.change(|it| it.enabled = false);
    let deadline = Instant::now() + SETTLE_LIMIT;
    // It failed so often that it is left alone for a while.
    while world.found(&service).await.1 != ["disabled"] {
        assert!(Instant::now() < deadline, "it is never asked again");
        sleep(Duration::from_millis(200)).await;
    }
    shown(&service, r#"paybell_endpoint_findings{psp="stripe",account="default",finding="disabled"} 1"#).await;
    world.psp.answers(Some(404));
    assert_eq!(world.check(&service, "stripe").await.0, 3);
    let (_, kept) = Shop::of(&service, &service).get("/v1/endpoints").await;
    assert_eq!(kept["items"][1]["report"]["findings"][0]["finding"], "disabled", "{kept}");
    world.psp.answers(None);
    assert_eq!(world.found(&service).await, (1, vec!["disabled".to_owned()]));
    assert_eq!(logged(&service, "endpoint.wrong", "disabled"), 1, "said once");
    world.psp.change(|it| it.enabled = true);
    assert_eq!(world.found(&service).await, (0, vec![]));
    assert_eq!(logged(&service, "endpoint.mended", "disabled"), 1);
    shown(&service, r#"paybell_endpoint_findings{psp="stripe",account="default",finding="disabled"} 0"#).await;
    // A refusal to list endpoints is no refusal of the account.
    let metrics = http_client().get(format!("{}/metrics", service.ops_url())).send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains(r#"paybell_psp_credentials_refused{psp="stripe",account="default"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_on_the_way_to_us_is_found_by_its_name() {
    const DAY: Duration = Duration::from_hours(24);
    let world = World::new().await;
    let service = world.serve().await;
    let (now, authority) = (SystemClock.now(), &world.authority);
    let good = || authority.server(Says::localhost_for(YEAR));
    for (finding, certificate) in [
        ("certificate_expired", authority.server(Says { until: now.minus(DAY / 2), ..Says::localhost_for(YEAR) })),
        ("certificate_not_yet_valid", authority.server(Says { from: now.plus(DAY), ..Says::localhost_for(YEAR) })),
        ("certificate_of_other_name", authority.server(Says { name: "other.example", ..Says::localhost_for(YEAR) })),
        ("certificate_untrusted", Authority::new().server(Says::localhost_for(YEAR))),
        ("certificate_expiring", authority.server(Says::localhost_for(13 * DAY))),
    ] {
        world.front.show(certificate);
        assert_eq!(world.found(&service).await, (1, vec![finding.to_owned()]));
    }
    world.front.show(good());
    for (finding, answer) in [
        ("redirect", "HTTP/1.1 301 Moved Permanently\r\nlocation: https://localhost/\r\ncontent-length: 0\r\n\r\n"),
        ("foreign_answer", "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found"),
        ("foreign_answer", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nwelcome"),
        ("foreign_answer", "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\ncontent-length: 0\r\n\r\n"),
        ("foreign_answer", "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"),
        ("unreached", "nonsense\r\n\r\n"),
    ] {
        world.front.lead(Leads::Answer(answer));
        assert_eq!(world.found(&service).await, (1, vec![finding.to_owned()]), "{answer}");
    }
    world.leads_to(&service);
    let (code, item) = world.check(&service, "stripe").await;
    assert_eq!((code, &item["report"]["findings"]), (0, &json!([])), "{item}");
    let ends = item["report"]["certificate_ends_at"].as_str().unwrap().to_owned();
    assert!(ends.starts_with(&now.plus(YEAR).to_string()[..10]), "{ends}");
    shown(&service, r#"paybell_public_certificate_expiry_seconds{psp="stripe",account="default"} "#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_comes_through_and_touches_no_order() {
    let world = World::new().await;
    let service = world.serve().await;
    let shop = Shop::of(&service, &service);
    let (code, item) = world.check(&service, "standard-webhooks").await;
    assert_eq!(code, 0, "{item}");
    let canary = &item["report"]["canary"];
    assert!(canary["round_trip_ms"].is_u64() && canary["lost_since"].is_null(), "{item}");
    shown(&service, "paybell_canary_lost 0").await;
    shown(&service, "paybell_canary_round_trip_seconds ").await;
    shown(&service, "paybell_canary_last_success_timestamp_seconds 1").await;
    let (_, orders) = shop.get("/v1/orders").await;
    assert_eq!(orders["items"], json!([]));
    let (_, balance) = shop.get("/v1/balance").await;
    let events = balance["events"].as_array().unwrap();
    assert!(events.len() == 1 && events[0]["outcome"] == "ignored" && events[0]["psp"] == "standard-webhooks", "{balance}");
    let metrics = http_client().get(format!("{}/metrics", service.ops_url())).send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains(CANARY_SECRET) && !service.log().contains(&CANARY_SECRET[6..]));
}

/// The ingress takes it and puts it on a queue that this worker does not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_the_queue_holds_up_is_missed() {
    let world = World::new().await;
    let (queue, other) = (servers::rabbitmq().await.vhost().await, servers::rabbitmq().await.vhost().await);
    let of_queue = |queue: &str| configuration(queue, &world.file("store.db"), "memory:") + &world.accounts;
    let worker = Service::worker(&of_queue(&queue)).await;
    let cut = Service::ingress(&of_queue(&other)).await;
    world.leads_to(&cut);
    let lost = async |words: &str| {
        let (code, item) = world.check(&worker, "standard-webhooks").await;
        let findings = item["report"]["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["finding"] == "canary_lost");
        assert!(code == 1 && finding.is_some_and(|it| it["says"].as_str().unwrap().contains(words)), "{code}: {item}");
    };
    lost("acknowledged, and is not in the database").await;
    shown(&worker, "paybell_canary_lost 1").await;
    world.front.lead(Leads::Answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"));
    lost("answered 503").await;
    let whole = Service::ingress(&of_queue(&queue)).await;
    world.leads_to(&whole);
    let (code, item) = world.check(&worker, "standard-webhooks").await;
    assert_eq!((code, &item["report"]["canary"]["lost_since"]), (0, &Value::Null), "{item}");
    shown(&worker, "paybell_canary_lost 0").await;
    let events = worker.log().lines().filter(|line| line.contains("canary.lost")).count();
    assert_eq!(events, 1, "said once");
}

/// Through RabbitMQ and PostgreSQL, with two workers: one of them sends, and one looks at each account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_of_two_looks_and_sends() {
    let world = World::new().await;
    let queue = servers::rabbitmq().await.vhost().await;
    let text = configuration(&queue, &servers::postgres().await.database().await, "memory:") + &world.accounts;
    let ingress = Service::ingress(&text).await;
    world.leads_to(&ingress);
    world.psp.account.set_endpoint(&world.route());
    let (one, two) = tokio::join!(Service::worker(&text), Service::worker(&text));
    for worker in [&one, &two] {
        shown(worker, "paybell_canary_lost 0").await;
        shown(worker, r#"paybell_endpoint_findings{psp="stripe",account="default",finding="disabled"} 0"#).await;
    }
    assert_eq!(world.psp.requests(), 1, "{:?}", world.psp.asked.lock().unwrap());
    let (_, balance) = Shop::of(&ingress, &one).get("/v1/balance").await;
    let counts: Vec<i64> = balance["events"].as_array().unwrap().iter().map(|line| line["count"].as_i64().unwrap()).collect();
    assert_eq!(counts, [1], "{balance}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_shows_the_difference_makes_and_mends_and_then_has_nothing_to_do() {
    let world = World::new().await;
    // Its database must be there; who runs on it does not matter.
    let service = world.serve().await;
    world.psp.account.endpoints_mut().clear();
    let others = "https://other.example/hook";
    world.psp.account.set_endpoint(others);
    let config = world.folder.0.join("paybell.toml");
    std::fs::write(&config, world.embedded()).unwrap();
    let (config, kept) = (config.to_str().unwrap().to_owned(), world.folder.0.join("stripe-secret"));
    let kept_text = kept.to_str().unwrap().to_owned();
    let register = async |more: &[&str]| world.paybell(&[&["register", "stripe", "--config", &config], more].concat()).await;
    let with_secret = ["--secret-file", kept_text.as_str()];

    let (code, text) = register(&with_secret).await;
    assert!(code == 1 && text.contains(&world.route()) && text.contains("Nothing was changed"), "{code}: {text}");
    let (code, text) = register(&["--yes"]).await;
    assert!(code == 2 && text.contains("--secret-file"), "{code}: {text}");
    std::fs::write(&kept, "somebody's").unwrap();
    let (code, text) = register(&[&with_secret[..], &["--yes"]].concat()).await;
    assert!(code == 2 && text.contains("must not be there yet"), "{code}: {text}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "somebody's");
    std::fs::remove_file(&kept).unwrap();
    world.psp.answers(Some(503));
    assert_eq!(register(&[&with_secret[..], &["--yes"]].concat()).await.0, 3);
    world.psp.answers(None);
    assert!(!kept.exists() && world.psp.account.endpoints().len() == 1, "nothing was made so far");

    let (code, made) = register(&[&with_secret[..], &["--yes"]].concat()).await;
    assert!(code == 0 && made.contains("we_simulated1") && made.contains(&format!("file:{kept_text}")), "{code}: {made}");
    let secret = world.psp.account.endpoints()[1].secret.clone();
    assert_eq!(
        (std::fs::read_to_string(&kept).unwrap(), kept.metadata().unwrap().mode() & 0o777),
        (format!("{secret}\n"), 0o600)
    );
    let database = std::fs::read(world.folder.0.join("store.db")).unwrap();
    let log = std::fs::read(world.folder.0.join("store.db-wal")).unwrap_or_default();
    let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    assert!(!made.contains(&secret) && !holds(&database) && !holds(&log) && !service.log().contains(&secret));

    // Repeated, it has nothing to do, and sends nothing but the question.
    let before = world.psp.requests();
    let (code, text) = register(&["--yes"]).await;
    assert!(code == 0 && text.contains("Nothing is to be changed"), "{code}: {text}");
    assert_eq!(world.psp.requests() - before, 1);

    // What somebody broke is mended, in place, and its secret stays.
    {
        let mut endpoints = world.psp.account.endpoints_mut();
        endpoints[1].enabled = false;
        endpoints[1].url += "/";
        endpoints[1].events = vec!["payment_intent.succeeded".to_owned(), "payout.paid".to_owned()];
    }
    let (code, text) = register(&["--json"]).await;
    assert!(code == 1 && text.contains("not_agreed"), "{code}: {text}");
    let (code, text) = register(&["--yes"]).await;
    assert!(code == 0 && text.contains("charge.refunded") && text.contains("enabled"), "{code}: {text}");
    let endpoints = world.psp.account.endpoints().clone();
    let mended = &endpoints[1];
    assert_eq!((endpoints.len(), &mended.url, mended.enabled, &mended.secret), (2, &world.route(), true, &secret));
    assert!(mended.events.contains(&"payout.paid".to_owned()) && mended.events.contains(&"charge.refunded".to_owned()));
    assert_eq!((endpoints[0].url.as_str(), &endpoints[0].events[..]), (others, &["*".to_owned()][..]), "it is not ours");
    assert_eq!(world.found(&service).await, (0, vec![]));

    // Unless somebody says that it is.
    world.psp.account.endpoints_mut().remove(1);
    let (code, text) = register(&["--yes", "--endpoint", "we_simulated0"]).await;
    assert!(code == 0 && text.contains(others), "{code}: {text}");
    assert_eq!(world.psp.account.endpoints()[0].url, world.route());
    let (code, text) = register(&["--yes", "--endpoint", "we_unheard_of"]).await;
    assert!(code == 2 && text.contains("no such endpoint"), "{code}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_api_registers_a_person_is_told_what_to_do() {
    let world = World::new().await;
    let razorpay = "[[psp]]\nid = \"razorpay\"\nmode = \"test\"\nsecrets = [\"hush\"]\n";
    let config = world.folder.0.join("paybell.toml");
    let write = |text: &str| std::fs::write(&config, text).unwrap();
    write(&(world.embedded() + razorpay));
    let register =
        async |more: &[&str]| world.paybell(&[&["register", "--config", config.to_str().unwrap()], more].concat()).await;
    let (code, text) = register(&["razorpay"]).await;
    let route = format!("{}/webhooks/razorpay", world.front.url());
    assert!(
        code == 1 && text.contains(&route) && text.contains(psp::find("razorpay").unwrap().endpoint_by_hand()),
        "{code}: {text}"
    );
    for (arguments, words) in [
        (&["adyen"][..], "not configured"),
        (&["stripe/shop"], "not configured"),
        // Nobody made a database: this command does not.
        (&["stripe"], "store"),
    ] {
        let (code, text) = register(arguments).await;
        assert!(code == 2 && text.contains(words), "{arguments:?} {code}: {text}");
    }
    write(&world.embedded().replace(&format!("api_key = {API_KEY:?}\n"), ""));
    let (code, text) = register(&["stripe"]).await;
    assert!(code == 2 && text.contains("api_key") && text.contains("Developers"), "{code}: {text}");
}
