//! `paybell send`: a signed webhook, as the PSP would send it, to a running Paybell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use paybell_shared::clock::{Clock as _, SystemClock};
use paybell_shared::config::Config;
use paybell_shared::event::Mode;
use paybell_shared::secret::SecretSource;
use rand::RngExt as _;
use reqwest::StatusCode;
use serde_json::json;

use crate::api::{Api, ApiError, Registration};
use crate::output::{self, Exit, Failure, Outcome};
use crate::simulator::{self, Answered, Dialect, SendError, Sender, Settings, Situation, Webhook, http_client};

use super::config::effective_path;

/// The most copies of one event: to see duplicates do nothing, not to put load on anything.
const DUPLICATES_MAX: u32 = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  paybell send stripe payment_intent.succeeded --order demo-1 --register\n  \
                  paybell send stripe charge.dispute.closed --order demo-1 --ending won\n  \
                  paybell send stripe refund.updated --order demo-1 --part 1000 --duplicate 3\n  \
                  paybell send standard-webhooks payment.captured --order 42 --amount 1200 --currency USD --secret env:SECRET --to http://127.0.0.1:8080\n\n\
                  Events of one order concern one payment: send several in any order, and watch it come out the same.\n\
                  Exit: 0 every webhook was answered 2xx, 1 one was not, 2 wrong usage or configuration, 3 no answer.")]
pub struct Args {
    /// The PSP to play; a wrong one lists them all.
    psp: String,
    /// The PSP's name of the event; a wrong one lists them all.
    event: String,
    /// The merchant's order that the payment is for.
    #[arg(long, value_name = "ID")]
    order: String,
    /// The payment's amount, in minor units.
    #[arg(long, default_value_t = 4999, value_parser = clap::value_parser!(i64).range(1..))]
    amount: i64,
    /// The payment's currency.
    #[arg(long, default_value = "EUR", value_parser = currency)]
    currency: String,
    /// What is captured, refunded or disputed, where it is not the whole amount, in minor units.
    #[arg(long, value_name = "AMOUNT", value_parser = clap::value_parser!(i64).range(1..))]
    part: Option<i64>,
    /// How it ends in the PSP's word, where the event leaves that open; a wrong one lists them all.
    #[arg(long)]
    ending: Option<String>,
    /// The account, by its name in the configuration.
    #[arg(long, default_value = "default")]
    account: String,
    /// Where Paybell is, with or without the path of the webhook; default: what the configuration says.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// The configuration to take secret, mode and addresses from; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// The secret to sign with, instead of the account's first: `env:NAME`, `file:PATH`, or the secret itself.
    #[arg(long, value_name = "S")]
    secret: Option<String>,
    /// Register the order at the internal API first, as the order service would.
    #[arg(long)]
    register: bool,
    /// Where the internal API is; default: what the configuration says.
    #[arg(long, value_name = "URL", requires = "register")]
    api: Option<String>,
    /// The internal API's token: `env:NAME`, `file:PATH`, or the token itself; default: the configuration's.
    #[arg(long, value_name = "T", requires = "register")]
    token: Option<String>,
    /// Send the same event so many times more, each freshly signed.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(DUPLICATES_MAX)))]
    duplicate: u32,
    /// Wait before sending: 500ms, 3s, 2m.
    #[arg(long, value_name = "D", value_parser = duration)]
    delay: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is missing, or that nobody answers.
pub async fn run(args: Args) -> Outcome {
    let plan = Plan::of(&args).map_err(Failure::usage)?;
    if let Some((api, registration)) = &plan.registration {
        api.register(&args.order, registration).await.map_err(|error| match error {
            ApiError::Refused { status, .. } if !status.is_server_error() => {
                Failure { exit: Exit::No, error: anyhow!(error).context("the order was not registered") }
            }
            error => Failure::unknown(anyhow!(error).context("the order was not registered")),
        })?;
        if !args.json {
            output::line(format_args!("registered {}: {} {}", output::printable(&args.order), args.amount, args.currency));
        }
    }
    if let Some(delay) = args.delay {
        tokio::time::sleep(delay).await;
    }
    let mut accepted = true;
    for copy in 0..=args.duplicate {
        match plan.sender.send(&plan.webhook).await {
            Ok(answered) => {
                accepted &= answered.status.is_success();
                plan.report(copy, &answered, args.json);
            }
            Err(error @ SendError::Sign(_)) => return Err(Failure::usage(error)),
            Err(error @ SendError::Address) => {
                return Err(Failure::usage(anyhow!(error).context(format!("--to {}", plan.url))));
            }
            Err(error) => {
                let hint = "is it running (`paybell serve`), and is this the address of its ingress?";
                return Err(Failure::unknown(anyhow!(error).context(format!("nothing answers at {}: {hint}", plan.url))));
            }
        }
    }
    Ok(if accepted { Exit::Yes } else { Exit::No })
}

/// What will be done, with everything looked up.
struct Plan {
    sender: Sender,
    webhook: Webhook,
    dialect: &'static dyn Dialect,
    is_hint: bool,
    /// Without the token, where one goes behind it.
    url: String,
    registration: Option<(Api, Registration)>,
}

impl Plan {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let dialect = find_dialect(&args.psp)?;
        if args.order.is_empty() {
            bail!("--order is empty");
        }
        let config = effective_path(args.config.clone()).map(|path| Config::load(Some(&path))).transpose()?;
        let configured = config.as_ref().and_then(|config| config.account(dialect.psp(), &args.account));
        let mut settings = match configured {
            Some(configured) => Settings::from(&*configured.account),
            None if args.secret.is_some() => Settings { secret: String::new(), ..dialect.settings() },
            None if config.is_some() => {
                bail!("the configuration has no account {}/{}: name its --secret", dialect.psp(), args.account)
            }
            None => bail!("no configuration is there to take the secret from: name --config or --secret"),
        };
        // The account's scheme says which of the PSP's ways to speak it understands.
        let dialect = if configured.is_some() && !dialect.speaks(settings.scheme) {
            let scheme = settings.scheme.unwrap_or("default");
            simulator::find_scheme(dialect.psp(), settings.scheme)
                .with_context(|| format!("{} cannot be played in the account's scheme {scheme}", dialect.psp()))?
        } else {
            dialect
        };
        if let Some(text) = &args.secret {
            SecretSource::parse(text).read("--secret")?.expose().clone_into(&mut settings.secret);
        }
        let situation = Situation {
            order_id: &args.order,
            amount: args.amount,
            currency: &args.currency,
            part: args.part,
            ending: args.ending.as_deref(),
            live: configured.is_some_and(|configured| configured.account.mode == Mode::Live),
            at: SystemClock.now().seconds(),
            salt: rand::rng().random(),
        };
        let webhook = staged(dialect, &args.event, &situation)?;
        let base = match (&args.to, &config) {
            (Some(url), _) => url.clone(),
            (None, Some(config)) => format!("http://{}", reachable(config.ingress.listen)),
            (None, None) => format!("http://{}", reachable(paybell_shared::config::Ingress::default().listen)),
        };
        let url = webhook_url(&base, dialect, &args.account)?;
        // Where the account does not say how it is registered, it is registered where this goes.
        settings.url.get_or_insert_with(|| url.clone());
        let http = http_client()?;
        let registration = args.register.then(|| registration(args, dialect.psp(), config.as_ref(), &http)).transpose()?;
        let sender = Sender::new(http, dialect, url.clone(), Arc::new(settings), Arc::new(SystemClock));
        Ok(Self { sender, webhook, dialect, is_hint: dialect.hints(), url, registration })
    }

    fn report(&self, copy: u32, answered: &Answered, json: bool) {
        let advice = advice(answered.status, self.dialect, self.is_hint);
        if json {
            output::json(&json!({
                "event_id": self.webhook.id, "event_type": self.webhook.event_type, "copy": copy, "url": self.url,
                "status": answered.status.as_u16(), "took_ms": answered.took.as_secs_f64() * 1e3, "advice": advice,
            }));
            return;
        }
        let copy = if copy == 0 { String::new() } else { format!(" (copy {copy})") };
        let took = answered.took.as_secs_f64() * 1e3;
        output::line(format_args!("{} {}{copy}: {} in {took:.1} ms", self.webhook.event_type, self.webhook.id, answered.status));
        if let Some(advice) = advice {
            output::line(format_args!("  {advice}"));
        }
    }
}

/// What a person does about an answer; nothing about a 2xx that is all there is to it.
fn advice(status: StatusCode, dialect: &dyn Dialect, is_hint: bool) -> Option<String> {
    let id = dialect.psp();
    Some(match status.as_u16() {
        200..300 if is_hint => format!(
            "a hint: {id} signs nothing that could be believed, so the order changes once its API, at the account's api_url, says \
             so when it is asked."
        ),
        200..300 => return None,
        404 if dialect.token_in_path() => {
            format!("nothing there takes webhooks of {id} for this account, or the token, its secret, is another one.")
        }
        refused if refused == 401 || refused == dialect.refused_with() => format!(
            "refused: the signature does not hold there. Is the secret the one of that account and environment, are both clocks \
             right? The ingress counts the reason in paybell_webhooks_total; `paybell verify {id}` names it."
        ),
        403 => "refused: this address is not in the account's allow_from.".to_owned(),
        404 => format!(
            "nothing there takes webhooks of {id} for this account: is it in the configuration, is the address the ingress'?"
        ),
        405 => "the address takes no POST: is it the ingress'?".to_owned(),
        413 | 431 => "larger than [limits] of the ingress allows.".to_owned(),
        429 => "too many at once: send again later.".to_owned(),
        503 => "not durable, so not accepted: its queue is down or full, or it is stopping. A PSP would send again; so may you."
            .to_owned(),
        _ => "not what the ingress answers: is something else listening there, a proxy for example?".to_owned(),
    })
}

fn find_dialect(id: &str) -> anyhow::Result<&'static dyn Dialect> {
    simulator::find(id).with_context(|| {
        let known: Vec<&str> = simulator::ALL.iter().map(|dialect| dialect.id()).collect();
        format!("{id:?} cannot be played here: {}", known.join(", "))
    })
}

/// The webhook, or what the dialect has instead.
fn staged(dialect: &dyn Dialect, event: &str, situation: &Situation<'_>) -> anyhow::Result<Webhook> {
    let known = dialect.event_types().iter().find(|known| known.name == event).with_context(|| {
        let names: Vec<&str> = dialect.event_types().iter().map(|known| known.name).collect();
        format!("{} has no event {event:?}; it has:\n  {}", dialect.id(), names.join("\n  "))
    })?;
    if let Some(ending) = situation.ending {
        let endings: Vec<&str> = known.endings.iter().map(|(name, _)| *name).collect();
        if endings.is_empty() {
            bail!("--ending {ending:?}: {event} has none");
        }
        if !endings.contains(&ending) {
            bail!("--ending {ending:?}: {event} has {}", endings.join(", "));
        }
    }
    dialect.staged(event, situation).with_context(|| format!("{} does not tell {event} of such an order", dialect.id()))
}

fn registration(args: &Args, psp: &str, config: Option<&Config>, http: &reqwest::Client) -> anyhow::Result<(Api, Registration)> {
    let url = match (&args.api, config) {
        (Some(url), _) => url.clone(),
        (None, Some(config)) => format!("http://{}", reachable(config.api.listen)),
        (None, None) => bail!("--register needs to know where the internal API is: name --config or --api"),
    };
    let token = match (&args.token, config.and_then(|config| config.api.tokens.first())) {
        (Some(text), _) => SecretSource::parse(text).read("--token")?,
        (None, Some(token)) => token.secret.clone(),
        (None, None) => bail!("--register needs the internal API's token: name --config or --token"),
    };
    let registration = Registration {
        psp: psp.to_owned(),
        account: Some(args.account.clone()),
        payment_id: None,
        amount: args.amount,
        currency: args.currency.clone(),
    };
    Ok((Api::new(http.clone(), &url, token.expose()), registration))
}

/// An address to connect to: "all addresses" is one to listen on only.
pub(super) fn reachable(mut listen: std::net::SocketAddr) -> std::net::SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    listen
}

/// The address of the webhook: as it stands if it has a path, else with ours. Of a PSP that puts a token into the path, the
/// account stands in it, too.
fn webhook_url(base: &str, dialect: &dyn Dialect, account: &str) -> anyhow::Result<String> {
    let url = url::Url::parse(base).with_context(|| format!("--to {base:?} is no URL, such as http://127.0.0.1:8080"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        bail!("--to {base:?} is no URL, such as http://127.0.0.1:8080");
    }
    if url.path() != "/" {
        return Ok(base.to_owned());
    }
    let account = if account == "default" && !dialect.token_in_path() { String::new() } else { format!("/{account}") };
    Ok(format!("{}/webhooks/{}{account}", base.trim_end_matches('/'), dialect.psp()))
}

fn currency(text: &str) -> Result<String, String> {
    if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        Ok(text.to_ascii_uppercase())
    } else {
        Err("a currency is three letters, such as EUR".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no duration, such as 500ms, 3s or 2m");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::stripe::Stripe;

    #[test]
    fn the_webhook_goes_to_its_route_unless_the_url_names_one() {
        let url = |base| webhook_url(base, &Stripe, "default").unwrap();
        assert_eq!(url("http://127.0.0.1:8080"), "http://127.0.0.1:8080/webhooks/stripe");
        assert_eq!(url("http://127.0.0.1:8080/"), "http://127.0.0.1:8080/webhooks/stripe");
        assert_eq!(url("https://pay.example/hooks/x"), "https://pay.example/hooks/x");
        assert_eq!(webhook_url("http://h", &Stripe, "shop-2").unwrap(), "http://h/webhooks/stripe/shop-2");
        for wrong in ["127.0.0.1:8080", "ftp://x", "nonsense", ""] {
            assert!(webhook_url(wrong, &Stripe, "default").is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!((duration("3"), duration("3s")), (Ok(Duration::from_secs(3)), Ok(Duration::from_secs(3))));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for wrong in ["", "s", "-1s", "1h", "1.5s", "99999999999999999999s", "18446744073709551615m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_refusal_of_the_ingress_has_its_advice() {
        for status in [400, 401, 403, 404, 405, 413, 415, 429, 431, 500, 502, 503] {
            assert!(advice(StatusCode::from_u16(status).unwrap(), &Stripe, false).is_some(), "{status}");
        }
        assert!(advice(StatusCode::OK, &Stripe, false).is_none());
    }
}
