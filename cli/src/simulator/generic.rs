//! In-house senders that sign by an HMAC, in a way of their own, as Shopify does or as GitHub does, and carry Paybell's normalised
//! events.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use paybell_shared::psp::generic::Settings as Rules;

use super::dialect::{Dialect, EventType, Headers, Settings, SignError, SignedCall, Webhook};
use super::ledger::{Event, Object, Step};
use super::seed::Seed;
use super::story::Story;
use super::{mac, normalised};

/// A sender of which `[psp.generic]` says how it signs.
pub struct Generic;

/// A sender that signs as Shopify does.
pub struct Shopify;

/// A sender that signs as GitHub does.
pub struct Github;

/// How the made-up account's sender signs: in much that Shopify and GitHub have not.
static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let text = |text: &str| Some(text.to_owned());
    Rules {
        header: text("x-acme-signature"),
        algorithm: text("sha512"),
        encoding: text("base64"),
        prefix: text("v1="),
        template: text("{timestamp}.{body}"),
        timestamp_header: text("x-acme-timestamp"),
        key_encoding: text("hex"),
        id: text("/id"),
        ..Rules::default()
    }
});

/// Nobody says how such a sender repeats: these are ours.
const RETRIES: [Duration; 5] =
    [Duration::from_mins(1), Duration::from_mins(5), Duration::from_mins(30), Duration::from_hours(2), Duration::from_hours(6)];

/// Shopify publishes "eight times in four hours" and no intervals: these are ours.
const SHOPIFY_RETRIES: [Duration; 8] = [
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(4),
    Duration::from_mins(8),
    Duration::from_mins(15),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(2),
];

impl Dialect for Generic {
    fn id(&self) -> &'static str {
        "generic"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        normalised::object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        &normalised::EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        normalised::told(self, step)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, at: i64) -> Result<SignedCall, SignError> {
        let rules = settings.generic.ok_or(SignError::Missing("generic"))?;
        let mut headers: Headers = vec![("content-type", "application/json".to_owned())];
        headers.push((
            rules.header.as_deref().ok_or(SignError::Missing("generic.header"))?,
            signature(rules, settings, webhook, at)?,
        ));
        if let Some(name) = rules.timestamp_header.as_deref() {
            headers.push((name, at.to_string()));
        }
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "generic", 0)), generic: Some(&RULES), ..Settings::default() }
    }

    /// As the made-up account's rules have it.
    fn signs_time(&self) -> bool {
        true
    }

    fn retries(&self) -> &'static [Duration] {
        &RETRIES
    }

    fn plays(&self, story: Story) -> bool {
        normalised::plays(story)
    }
}

impl Dialect for Shopify {
    fn id(&self) -> &'static str {
        "shopify"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        normalised::object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        &normalised::EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        normalised::told(self, step)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let signature = STANDARD.encode(mac::sha256(settings.secret.as_bytes(), &[&webhook.body]));
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-shopify-topic", webhook.event_type.clone()),
            ("x-shopify-hmac-sha256", signature),
            ("x-shopify-webhook-id", webhook.id.clone()),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn secret(&self, seed: &Seed) -> String {
        format!("shpss_{}", seed.hex(32))
    }

    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "shopify", 0)), ..Settings::default() }
    }

    fn retries(&self) -> &'static [Duration] {
        &SHOPIFY_RETRIES
    }

    fn plays(&self, story: Story) -> bool {
        normalised::plays(story)
    }
}

impl Dialect for Github {
    fn id(&self) -> &'static str {
        "github"
    }

    fn object_id(&self, object: Object, seed: &Seed) -> String {
        normalised::object_id(object, seed)
    }

    fn event_types(&self) -> &'static [EventType] {
        &normalised::EVENT_TYPES
    }

    fn told(&self, step: &Step<'_>) -> Vec<Event> {
        normalised::told(self, step)
    }

    fn sign(&self, settings: &Settings, webhook: &Webhook, _at: i64) -> Result<SignedCall, SignError> {
        let signature = hex::encode(mac::sha256(settings.secret.as_bytes(), &[&webhook.body]));
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-github-delivery", webhook.id.clone()),
            ("x-github-event", webhook.event_type.clone()),
            ("x-hub-signature-256", format!("sha256={signature}")),
        ];
        Ok(SignedCall::by_headers(webhook, headers))
    }

    fn settings(&self) -> Settings {
        Settings { secret: self.secret(&Seed::new("secret", "github", 0)), ..Settings::default() }
    }

    /// It sends once.
    fn retries(&self) -> &'static [Duration] {
        &[]
    }

    fn plays(&self, story: Story) -> bool {
        normalised::plays(story)
    }
}

/// What stands in the header by these rules.
fn signature(rules: &Rules, settings: &Settings, webhook: &Webhook, at: i64) -> Result<String, SignError> {
    let secret = settings.secret.as_str();
    let no_key = |form: &str| SignError::Secret(format!("it is not {form}, as generic.key_encoding says"));
    let key = match rules.key_encoding.as_deref() {
        Some("hex") => hex::decode(secret).map_err(|_| no_key("hex"))?,
        Some("base64") => {
            let digits = secret.strip_prefix("whsec_").unwrap_or(secret);
            STANDARD_PAD_INDIFFERENT.decode(digits).map_err(|_| no_key("Base64"))?
        }
        _ => secret.as_bytes().to_vec(),
    };
    let template = rules.template.as_deref().unwrap_or("{body}");
    let url = settings.url.as_deref();
    if template.contains("{url}") && url.is_none() {
        return Err(SignError::Missing("url"));
    }
    // The body is left as it is, whatever it may say in braces.
    let filled = |text: &str| text.replace("{timestamp}", &at.to_string()).replace("{url}", url.unwrap_or_default());
    let (before, after) = template.split_once("{body}").ok_or(SignError::Missing("generic.template"))?;
    let (before, after) = (filled(before), filled(after));
    let signed: [&[u8]; 3] = [before.as_bytes(), &webhook.body, after.as_bytes()];
    let mac = match rules.algorithm.as_deref() {
        Some("sha1") => mac::sha1(&key, &signed),
        Some("sha512") => mac::sha512(&key, &signed),
        _ => mac::sha256(&key, &signed),
    };
    let text = if rules.encoding.as_deref() == Some("base64") { STANDARD.encode(mac) } else { hex::encode(mac) };
    Ok(format!("{}{text}", rules.prefix.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(call: &SignedCall, name: &str) -> String {
        call.headers.iter().find(|(known, _)| *known == name).unwrap().1.clone()
    }

    fn webhook(body: &'static str) -> Webhook {
        Webhook { id: "1".to_owned(), event_type: "ping".to_owned(), body: body.into() }
    }

    #[test]
    fn signs_as_the_official_libraries_do() {
        let with = |secret: &str| Settings { secret: secret.to_owned(), ..Settings::default() };
        // Vector shopify-valid.
        let body = r##"{"id":820982911946154508,"name":"#1001","total_price":"49.99","currency":"EUR","financial_status":"paid","note_attributes":[{"name":"order_id","value":"ORD-1001"}]}"##;
        let call = Shopify.sign(&with("shpss_test_secret_0001"), &webhook(body), 0).unwrap();
        assert_eq!(header(&call, "x-shopify-hmac-sha256"), "JvthFpFEikBs2rM8ng8ZQ33KzfTfMp1ouweBagOUqZo=");
        // Vector github-rotation-fallback.
        let body = r#"{"action":"completed","order":{"id":"ORD-1001","amount":"49.99","currency":"EUR"}}"#;
        let call = Github.sign(&with("gh_test_secret_OLD"), &webhook(body), 0).unwrap();
        let expected = "sha256=d2a978770d97035ff4736cf46482a0490d613bbf2e1de761eca0ef21ad96968e";
        assert_eq!(header(&call, "x-hub-signature-256"), expected);
    }

    #[test]
    fn any_rules_are_followed() {
        let text = |text: &str| Some(text.to_owned());
        let github = Rules { header: text("x-hub-signature-256"), prefix: text("sha256="), ..Rules::default() };
        let settings = |rules: Rules, secret: &str| Settings {
            secret: secret.to_owned(),
            generic: Some(Box::leak(Box::new(rules))),
            ..Settings::default()
        };
        let body = webhook(r#"{"action":"completed","order":{"id":"ORD-1001","amount":"49.99","currency":"EUR"}}"#);
        let expected = "sha256=d2a978770d97035ff4736cf46482a0490d613bbf2e1de761eca0ef21ad96968e";
        let call = Generic.sign(&settings(github, "gh_test_secret_OLD"), &body, 0).unwrap();
        assert_eq!(header(&call, "x-hub-signature-256"), expected);

        // Vector svix-valid: the scheme is one that rules can say.
        let svix = Rules {
            header: text("svix-signature"),
            encoding: text("base64"),
            prefix: text("v1,"),
            template: text("msg_2KWPTestMessage0001.{timestamp}.{body}"),
            timestamp_header: text("svix-timestamp"),
            key_encoding: text("base64"),
            ..Rules::default()
        };
        let body = webhook(
            r#"{"type":"payment.succeeded","timestamp":"2026-09-21T13:33:10Z","data":{"id":"pay_1001","order_id":"ORD-1001","amount":4999,"currency":"EUR","status":"succeeded"}}"#,
        );
        let settings = settings(svix, "whsec_dGVzdC1zdGFuZGFyZC13ZWJob29rcy1rZXktMDAwMSE=");
        let call = Generic.sign(&settings, &body, 1_789_999_995).unwrap();
        assert_eq!(header(&call, "svix-signature"), "v1,vWQIIsgKcKe3eRP7/yYMyWUk9dTOgWX7mdho2XOfYgk=");
        assert_eq!(header(&call, "svix-timestamp"), "1789999995");
    }

    #[test]
    fn what_the_rules_need_is_named() {
        let refused = |settings: &Settings| Generic.sign(settings, &webhook("{}"), 0).map(|_| ()).unwrap_err();
        assert_eq!(refused(&Settings::default()), SignError::Missing("generic"));
        let odd = Settings { secret: "not hex".to_owned(), ..Generic.settings() };
        assert!(refused(&odd).to_string().contains("hex"));
    }
}
