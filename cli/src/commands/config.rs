//! `paybell config check`: the configuration that counts, with secrets named only; or the setting that is wrong.

use std::path::{Path, PathBuf};

use paybell_shared::config::{Config, OnQueueDown};
use paybell_shared::event::Mode;
use paybell_shared::secret::Secret;
use serde_json::json;

use crate::output::{self, Exit, Failure, Outcome};

use super::DEVELOPMENT_CONFIG;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  paybell config check --config /etc/paybell.toml\n  PAYBELL_INGRESS_LISTEN=0.0.0.0:80 paybell config check\n\n\
                  Exit: 0 nothing is wrong, 2 something is."
)]
pub struct CheckArgs {
    /// The configuration file; default: `PAYBELL_CONFIG`, else paybell-data/paybell.toml if it is there, else the defaults.
    #[arg(long, value_name = "FILE", env = "PAYBELL_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The file that counts: the one that is named, else the one that `serve` writes for development.
#[must_use]
pub fn effective_path(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from(DEVELOPMENT_CONFIG)).filter(|path| path.exists()))
}

/// Runs the command.
///
/// # Errors
/// The setting that is missing, empty or contradictory.
pub fn check(args: CheckArgs) -> Outcome {
    let path = effective_path(args.config);
    let config = Config::load(path.as_deref()).map_err(Failure::usage)?;
    let settings = settings(&config);
    let warnings = warnings(&config);
    if args.json {
        let settings: serde_json::Map<_, _> = settings.into_iter().map(|[name, value]| (name, value.into())).collect();
        output::json(&json!({ "file": path, "settings": settings, "warnings": warnings }));
        return Ok(Exit::Yes);
    }
    output::line(format_args!("{}: nothing is wrong.", path.as_deref().map_or("the defaults".into(), Path::to_string_lossy)));
    output::line(output::table(["setting", "value"], settings));
    for warning in warnings {
        output::line(format_args!("warning: {warning}"));
    }
    Ok(Exit::Yes)
}

fn settings(config: &Config) -> Vec<[String; 2]> {
    let names = |secrets: &[Secret]| secrets.iter().map(|secret| secret.name().to_string()).collect::<Vec<_>>().join(", ");
    let limits = &config.limits;
    let mut rows: Vec<(String, String)> = [
        ("[ingress] listen", config.ingress.listen.to_string()),
        ("[ingress] ops_listen", config.ingress.ops_listen.to_string()),
        ("[ingress] public_url", config.ingress.public_url.clone().unwrap_or_else(|| "(none)".to_owned())),
        ("[ingress] trusted_proxies", listed(&config.ingress.trusted_proxies)),
        (
            "[ingress] spool_dir",
            config.ingress.spool_dir.as_ref().map_or_else(|| "(none)".to_owned(), |folder| folder.display().to_string()),
        ),
        ("[worker] ops_listen", config.worker.ops_listen.to_string()),
        ("[worker] consume", config.worker.consume.to_string()),
        ("[api] listen", config.api.listen.to_string()),
        ("[orders] registration", format!("{:?}", config.orders.registration).to_ascii_lowercase()),
        ("[queue] url", without_password(&config.queue.url)),
        ("[store] url", without_password(&config.store.url)),
        ("[seen] url", without_password(&config.seen.url)),
        ("[limits] body_bytes_max", limits.body_bytes_max.to_string()),
        ("[limits] headers_max", limits.headers_max.to_string()),
        ("[limits] header_bytes_max", limits.header_bytes_max.to_string()),
        ("[limits] header_timeout_s", limits.header_timeout_s.to_string()),
        ("[limits] body_timeout_s", limits.body_timeout_s.to_string()),
        ("[limits] connections_max", limits.connections_max.to_string()),
        ("[limits] in_flight_max", limits.in_flight_max.to_string()),
        ("[limits] publish_budget_ms", limits.publish_budget_ms.to_string()),
        ("[limits] spool_bytes_max", limits.spool_bytes_max.to_string()),
        ("[limits] batch_max", limits.batch_max.to_string()),
        ("[limits] batch_linger_ms", limits.batch_linger_ms.to_string()),
        ("[limits] retry_steps_s", listed(&limits.retry_steps_s)),
        ("[limits] parked_max_s", limits.parked_max_s.to_string()),
        ("[retention] bodies_days", config.retention.bodies_days.to_string()),
        ("[retention] stream_days", config.retention.stream_days.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for token in &config.api.tokens {
        let mut scopes: Vec<String> = token.scopes.iter().map(|scope| format!("{scope:?}").to_ascii_lowercase()).collect();
        scopes.sort();
        rows.push((format!("[api] token {}", token.name), format!("{} ({})", token.secret.name(), scopes.join(", "))));
    }
    for (index, subscriber) in config.subscribers.iter().enumerate() {
        let mut row = |key: &str, value: String| rows.push((format!("subscriber[{index}] {key}"), value));
        row("name", subscriber.name.to_string());
        row("secrets", names(&subscriber.secrets));
        row("allow_private", subscriber.allow_private.to_string());
    }
    for (index, configured) in config.accounts.iter().enumerate() {
        let account = &configured.account;
        let mut row = |key: &str, value: String| rows.push((format!("psp[{index}] {key}"), value));
        row("account", format!("{account:?}"));
        if account.psp.profile().schemes.len() > 1 {
            row("scheme", account.keys.scheme.to_owned());
        }
        row("secrets", names(&account.keys.secrets));
        row("tolerance_s", account.keys.tolerance_s.to_string());
        let texts = [
            ("url", &account.keys.url),
            ("webhook_id", &account.keys.webhook_id),
            ("public_key", &account.keys.public_key),
            ("client_id", &account.api.client_id),
            ("merchant_id", &account.api.merchant_id),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                row(key, text.clone());
            }
        }
        if let Some(key) = &account.api.key {
            row("api_key", key.name().to_string());
        }
        if let Some(url) = &account.api.url {
            row("api_url", without_password(url));
        }
        if let Some(path) = &account.order_reference {
            row("order_reference", path.join("."));
        }
        if configured.on_queue_down == OnQueueDown::Spool {
            row("on_queue_down", "spool".to_owned());
        }
        if configured.over_capture_percent > 0 {
            row("over_capture_percent", configured.over_capture_percent.to_string());
        }
        if !configured.allow_from.is_empty() {
            row("allow_from", listed(&configured.allow_from));
        }
    }
    rows.into_iter().map(|(name, value)| [name, value]).collect()
}

fn warnings(config: &Config) -> Vec<String> {
    let unread = |variable: &String| format!("{variable}: is named like a setting, and is none");
    let mut warnings: Vec<String> = config.unread_variables.iter().map(unread).collect();
    let is_literal = |secret: &Secret| !secret.name().starts_with("env:") && !secret.name().starts_with("file:");
    for (index, configured) in config.accounts.iter().enumerate() {
        let account = &configured.account;
        if account.mode != Mode::Live {
            continue;
        }
        for secret in account.keys.secrets.iter().chain(&account.api.key).filter(|secret| is_literal(secret)) {
            warnings.push(format!(
                "psp[{index}] ({account:?}): {} stands in the file itself; in production name it as env:NAME or file:PATH",
                secret.name()
            ));
        }
    }
    if config.accounts.is_empty() {
        warnings.push("no [[psp]] is configured: every webhook would be answered 404".to_owned());
    }
    if config.api.tokens.is_empty() {
        warnings.push("[api] token is not set: the internal API lets nobody in".to_owned());
    }
    warnings
}

fn listed<T: ToString>(items: &[T]) -> String {
    if items.is_empty() { "(none)".to_owned() } else { items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") }
}

/// A URL as it may be printed. What cannot be read as a URL is not printed beyond its scheme, since it may hide anything.
fn without_password(text: &str) -> String {
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    if scheme == "sqlite" || scheme == "memory" {
        return format!("{scheme}:{rest}");
    }
    match url::Url::parse(text) {
        Ok(mut url) => {
            if url.password().is_some() {
                let _ = url.set_password(Some("***"));
            }
            // PostgreSQL and Redis also take passwords as parameters.
            if url.query_pairs().any(|(key, _)| key.to_ascii_lowercase().contains("password")) {
                url.set_query(Some("***"));
            }
            url.into()
        }
        Err(_) => format!("{scheme}:(not shown)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_not_shown() {
        assert_eq!(without_password("amqp://guest:hidden@mq:5672/%2f"), "amqp://guest:***@mq:5672/%2f");
        assert_eq!(without_password("postgres://db/x?user=u&password=hidden"), "postgres://db/x?***");
        assert_eq!(without_password("sqlite:paybell-data/store.db"), "sqlite:paybell-data/store.db");
        assert!(!without_password("postgres://user:hid den@[broken").contains("hid den"));
    }
}
