//! One `[[psp]]` table, from its text to a checked account.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::{ConfigError, ConfiguredAccount, DEFAULT_ACCOUNT, OnQueueDown, check_url, read_secret};
use crate::clock::Timestamp;
use crate::event::Mode;
use crate::psp::{self, Account, Api, Capture, Keys, Proof, Psp, Scheme, generic};
use crate::secret::{Secret, SecretSource};

/// The fewest characters of a token in a URL: 24 of base64url are 144 bits.
const TOKEN_BYTES_MIN: usize = 24;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PspTable {
    id: String,
    #[serde(default = "default_account")]
    account: String,
    mode: Mode,
    /// May be empty only where the PSP has none: its adapter says so.
    #[serde(default)]
    secrets: Vec<SecretTable>,
    scheme: Option<String>,
    url: Option<String>,
    api_key: Option<SecretSource>,
    client_id: Option<String>,
    api_url: Option<String>,
    webhook_id: Option<String>,
    public_key: Option<String>,
    merchant_id: Option<String>,
    trusted_root: Option<SecretSource>,
    order_reference: Option<String>,
    #[serde(default)]
    capture: Capture,
    #[serde(default = "default_tolerance_s")]
    tolerance_s: u32,
    #[serde(default)]
    over_capture_percent: u8,
    #[serde(default)]
    on_queue_down: OnQueueDown,
    #[serde(default)]
    allow_from: Vec<AllowedSource>,
    generic: Option<generic::Settings>,
}

/// A secret of an account: alone, or with the time in which it is valid.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a secret, or { value, from, until }")]
enum SecretTable {
    Always(SecretSource),
    For(SecretWindow),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretWindow {
    value: SecretSource,
    from: Option<String>,
    until: Option<String>,
}

/// Who may call: a network, or all that the PSP publishes.
#[derive(Deserialize)]
#[serde(try_from = "String")]
enum AllowedSource {
    Published,
    Network(IpNet),
}

impl TryFrom<String> for AllowedSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "published" {
            return Ok(Self::Published);
        }
        let network = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        network.map(Self::Network).map_err(|_| "neither a network such as 10.0.0.0/8 nor \"published\"".to_owned())
    }
}

fn default_account() -> String {
    DEFAULT_ACCOUNT.to_owned()
}

/// The tolerance of Stripe's SDKs and of Standard Webhooks.
const fn default_tolerance_s() -> u32 {
    300
}

impl PspTable {
    /// `index` is the table's number, for errors; `public_url` is where PSPs call us.
    pub(super) fn check(self, index: usize, public_url: Option<&str>) -> Result<ConfiguredAccount, ConfigError> {
        let named = |key: &str| format!("psp[{index}].{key}");
        let refuse = |key: &str, problem: String| ConfigError::Setting { setting: named(key), problem };
        let Some(adapter) = psp::find(&self.id) else {
            let known: Vec<&str> = psp::ALL.iter().map(|psp| psp.id()).collect();
            return Err(refuse("id", format!("{:?} is no PSP that is known here: {}", self.id, known.join(", "))));
        };
        self.check_words().map_err(|(key, problem)| refuse(key, problem))?;
        for (key, url) in [("api_url", &self.api_url), ("url", &self.url)] {
            if let Some(url) = url {
                check_url(&named(key), url, &["https", "http"])?;
            }
        }
        if self.generic.is_some() && !generic::READERS.contains(&adapter.id()) {
            let problem = format!("is not read for {}: it is of {}", self.id, generic::READERS.join(", "));
            return Err(refuse("generic", problem));
        }
        let scheme = self.scheme(adapter).map_err(|problem| refuse("scheme", problem))?;
        let allow_from = self.allow_from(adapter).map_err(|problem| refuse("allow_from", problem))?;
        let url = self.registered_url(public_url, scheme);
        let secrets = self.secrets.into_iter().enumerate();
        let secrets = secrets.map(|(number, secret)| secret.read(named(&format!("secrets[{number}]"))));
        let generic = self.generic.map(generic::Rules::new).transpose().map_err(|error| refuse(error.setting, error.problem))?;
        let trusted_root = self.trusted_root.map(|source| read_secret(&source, named("trusted_root"))).transpose()?;
        let account = Account {
            psp: adapter,
            psp_id: adapter.id().into(),
            name: self.account.into(),
            mode: self.mode,
            keys: Keys {
                secrets: secrets.collect::<Result<_, _>>()?,
                tolerance_s: self.tolerance_s,
                scheme: scheme.name,
                url,
                webhook_id: self.webhook_id,
                public_key: self.public_key,
                trusted_root: trusted_root.map(|pem| pem.expose().to_owned()),
                generic: generic.map(Arc::new),
            },
            api: Api {
                key: self.api_key.map(|source| read_secret(&source, named("api_key"))).transpose()?,
                url: self.api_url.map(|url| url.trim_end_matches('/').to_owned()),
                client_id: self.client_id,
                merchant_id: self.merchant_id,
            },
            order_reference: self.order_reference.map(|path| path.split('.').map(str::to_owned).collect()),
            capture: self.capture,
        };
        if scheme.proof == Proof::Hint && account.api.key.is_none() {
            let problem = format!("is missing: webhooks of {} prove nothing, so its API is asked", adapter.id());
            return Err(refuse("api_key", problem));
        }
        if scheme.token_in_path {
            check_tokens(&account.keys.secrets).map_err(|problem| refuse("secrets", problem))?;
        }
        adapter.check(&account).map_err(|error| refuse(error.setting, error.problem))?;
        let Self { over_capture_percent, on_queue_down, .. } = self;
        Ok(ConfiguredAccount { account: Arc::new(account), over_capture_percent, on_queue_down, allow_from })
    }

    /// What is wrong with a value by itself: its key, and the problem.
    fn check_words(&self) -> Result<(), (&'static str, String)> {
        let begins_well = self.account.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !begins_well || self.account.len() > 64 || !self.account.bytes().all(in_path) {
            let problem = "must be 1 to 64 letters, digits, '-', '_' or '.', a letter or digit first: it is part of the URL";
            return Err(("account", problem.to_owned()));
        }
        if self.order_reference.as_ref().is_some_and(|path| path.split('.').any(str::is_empty)) {
            return Err(("order_reference", "must be names, separated by single dots".to_owned()));
        }
        if self.tolerance_s == 0 {
            return Err(("tolerance_s", "must be at least 1".to_owned()));
        }
        if self.over_capture_percent > 100 {
            return Err(("over_capture_percent", "must be 0 to 100".to_owned()));
        }
        if self.trusted_root.is_some() && self.mode == Mode::Live {
            return Err(("trusted_root", "is for mode = \"test\" only".to_owned()));
        }
        let texts = [
            ("client_id", &self.client_id),
            ("webhook_id", &self.webhook_id),
            ("public_key", &self.public_key),
            ("merchant_id", &self.merchant_id),
        ];
        for (key, text) in texts {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err((key, "is empty".to_owned()));
            }
        }
        Ok(())
    }

    /// The scheme that is named, or the adapter's first.
    fn scheme(&self, adapter: &'static dyn Psp) -> Result<&'static Scheme, String> {
        let schemes = adapter.profile().schemes;
        let wanted = self.scheme.as_deref();
        schemes.iter().find(|scheme| wanted.is_none_or(|name| name == scheme.name)).ok_or_else(|| {
            let known: Vec<&str> = schemes.iter().map(|scheme| scheme.name).collect();
            format!("{:?} is none of {}: {}", wanted.unwrap_or_default(), self.id, known.join(", "))
        })
    }

    fn allow_from(&self, adapter: &'static dyn Psp) -> Result<Vec<IpNet>, String> {
        let published = adapter.profile().sources;
        let mut networks = Vec::new();
        for source in &self.allow_from {
            match source {
                AllowedSource::Network(network) => networks.push(*network),
                AllowedSource::Published if published.is_empty() => {
                    return Err(format!("{} publishes no networks that are known here", self.id));
                }
                // Written in the adapters, where a test reads them all.
                AllowedSource::Published => networks.extend(published.iter().filter_map(|network| network.parse::<IpNet>().ok())),
            }
        }
        Ok(networks)
    }

    /// As it is said, or what our own route makes of the address that PSPs call.
    /// Where a token follows, which is secret and left out, the account is always named.
    fn registered_url(&self, public_url: Option<&str>, scheme: &Scheme) -> Option<String> {
        let is_implied = self.account == DEFAULT_ACCOUNT && !scheme.token_in_path;
        let account = if is_implied { String::new() } else { format!("/{}", self.account) };
        let ours = || Some(format!("{}/webhooks/{}{account}", public_url?.trim_end_matches('/'), self.id));
        self.url.clone().or_else(ours)
    }
}

/// What may stand in a path as it is.
const fn in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn check_tokens(secrets: &[Secret]) -> Result<(), String> {
    let is_token = |text: &str| text.len() >= TOKEN_BYTES_MIN && text.bytes().all(in_path);
    match secrets.iter().find(|secret| !is_token(secret.expose())) {
        None => Ok(()),
        Some(secret) => Err(format!(
            "{} stands in the URL: at least {TOKEN_BYTES_MIN} letters, digits, '-', '_' or '.', chosen at random",
            secret.name()
        )),
    }
}

impl SecretTable {
    fn read(self, setting: String) -> Result<Secret, ConfigError> {
        let SecretWindow { value, from, until } = match self {
            Self::Always(source) => return read_secret(&source, setting),
            Self::For(window) => window,
        };
        let time = |key: &str, text: Option<String>| {
            text.map(|text| {
                Timestamp::parse_rfc3339(&text).map_err(|_| ConfigError::Setting {
                    setting: format!("{setting}.{key}"),
                    problem: "is no time such as 2026-12-01T00:00:00Z".to_owned(),
                })
            })
            .transpose()
        };
        let (from, until) = (time("from", from)?, time("until", until)?);
        if let (Some(from), Some(until)) = (from, until)
            && from >= until
        {
            return Err(ConfigError::Setting {
                setting: format!("{setting}.until"),
                problem: "is not after its from".to_owned(),
            });
        }
        Ok(read_secret(&value, setting)?.valid(from, until))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{STRIPE, check, parse};
    use super::*;

    const TOKEN: &str = "hush-0123456789-abcdefgh";

    fn account(text: &str) -> Arc<Account> {
        Arc::clone(&parse(text, &[]).unwrap().accounts[0].account)
    }

    #[test]
    fn a_scheme_is_one_of_the_psps() {
        let mollie = format!("[[psp]]\nid = 'mollie'\nmode = 'test'\napi_key = 'test_hush'\nsecrets = ['{TOKEN}']\n");
        assert_eq!(account(&mollie).keys.scheme, "mollie-nextgen", "the default");
        for scheme in ["mollie-nextgen", "mollie-classic-unsigned"] {
            assert_eq!(account(&format!("{mollie}scheme = '{scheme}'")).keys.scheme, scheme);
        }
        for scheme in ["stripe-v1", "Mollie-nextgen", ""] {
            check(&format!("{mollie}scheme = '{scheme}'"), &["psp[0].scheme", "mollie-nextgen, mollie-classic-unsigned"]);
        }
        let keyless = mollie.replace("api_key = 'test_hush'\n", "");
        assert_eq!(account(&keyless).keys.scheme, "mollie-nextgen");
        check(&format!("{keyless}scheme = 'mollie-classic-unsigned'"), &["psp[0].api_key", "is missing"]);
    }

    #[test]
    fn a_token_in_a_url_cannot_be_guessed_nor_changed() {
        let klarna = |secrets: &str| {
            format!("[[psp]]\nid = 'klarna'\nmode = 'test'\nclient_id = 'K'\napi_key = 'hush'\nsecrets = [{secrets}]\n")
        };
        assert_eq!(account(&klarna(&format!("'{TOKEN}', 'hush.ABC_xyz-0123456789.'"))).keys.secrets.len(), 2);
        for bad in [&TOKEN[1..], &format!("{TOKEN}/x"), &format!("{TOKEN}%41"), &format!("{TOKEN}é"), &format!("{TOKEN}~")] {
            check(&klarna(&format!("'{TOKEN}', '{bad}'")), &["psp[0].secrets", "psp[0].secrets[1]", "24"]);
        }
        // A signature's key is in no URL.
        parse("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['whsec_/hush']", &[]).unwrap();
    }

    #[test]
    fn the_url_is_as_registered_or_else_the_public_one_and_the_route() {
        let public = "[ingress]\npublic_url = 'https://pay.example/hooks/'\n";
        let url = |text: &str| account(text).keys.url.clone();
        assert_eq!(url(STRIPE), None);
        assert_eq!(url(&format!("{public}{STRIPE}")).as_deref(), Some("https://pay.example/hooks/webhooks/stripe"));
        let shop = format!("{public}{STRIPE}account = 'shop'");
        assert_eq!(url(&shop).as_deref(), Some("https://pay.example/hooks/webhooks/stripe/shop"));
        let registered = format!("{public}{STRIPE}url = 'https://Pay.example:443/x?y=z'");
        assert_eq!(url(&registered).as_deref(), Some("https://Pay.example:443/x?y=z"), "byte for byte");
        let classic = format!(
            "{public}[[psp]]\nid = 'mollie'\nmode = 'test'\nscheme = 'mollie-classic-unsigned'\napi_key = 'test_hush'\n\
             secrets = ['{TOKEN}']"
        );
        assert_eq!(url(&classic).as_deref(), Some("https://pay.example/hooks/webhooks/mollie/default"), "a token follows");
        for bad in ["", " ", "pay.example", "ftp://pay.example"] {
            check(&format!("{STRIPE}url = '{bad}'"), &["psp[0].url"]);
        }
    }

    #[test]
    fn a_secret_may_have_its_time() {
        let with = |secret: &str| format!("[[psp]]\nid = 'stripe'\nmode = 'test'\nsecrets = ['whsec_hush', {secret}]\n");
        let text = with("{ value = 'whsec_hush_2', from = '2026-01-01T00:00:00Z', until = '2026-12-01T00:00:00+01:00' }");
        let keys = account(&text).keys.clone();
        let active = |at: &str| {
            let now = Timestamp::parse_rfc3339(at).unwrap();
            keys.active(now).map(|(position, secret)| format!("{position} {}", secret.name())).collect::<Vec<_>>()
        };
        let both = ["0 psp[0].secrets[0]", "1 psp[0].secrets[1]"];
        assert_eq!(active("2025-12-31T23:59:59.999Z"), both[..1]);
        assert_eq!(active("2026-01-01T00:00:00Z"), both);
        assert_eq!(active("2026-11-30T22:59:59.999Z"), both);
        assert_eq!(active("2026-11-30T23:00:00Z"), both[..1]);
        for open in ["{ value = 'hush' }", "{ value = 'hush', from = '2026-01-01T00:00:00Z' }"] {
            parse(&with(open), &[]).unwrap();
        }
        check(&with("{ value = 'hush', from = 'January' }"), &["psp[0].secrets[1].from", "2026-12-01T00:00:00Z"]);
        check(&with("{ value = 'hush', until = '2026-12-01' }"), &["psp[0].secrets[1].until"]);
        let never = "{ value = 'hush', from = '2026-01-01T00:00:00Z', until = '2026-01-01T00:00:00Z' }";
        check(&with(never), &["psp[0].secrets[1].until", "not after"]);
        check(&with("{ value = '' }"), &["psp[0].secrets[1]", "empty"]);
        for odd in ["{ from = '2026-01-01T00:00:00Z' }", "{ value = 'hush', since = '2026-01-01T00:00:00Z' }", "7"] {
            check(&with(odd), &["line 4", "a secret, or { value, from, until }"]);
        }
    }

    #[test]
    fn callers_may_be_networks_addresses_or_what_the_psp_publishes() {
        let allowed = |text: &str| parse(&format!("{STRIPE}allow_from = [{text}]"), &[]).unwrap().accounts[0].allow_from.clone();
        assert_eq!(allowed(""), []);
        let published = allowed("'published'");
        assert_eq!(published.len(), psp::find("stripe").unwrap().profile().sources.len());
        assert!(published.contains(&"3.18.12.63/32".parse().unwrap()));
        let own = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap(), "192.0.2.7/32".parse().unwrap()];
        assert_eq!(allowed("'10.0.0.0/8', '::1', '192.0.2.7'"), own);
        assert_eq!(allowed("'published', '10.0.0.0/8'").len(), published.len() + 1);
        for bad in ["10.0.0.0/33", "everyone", "Published", ""] {
            check(&format!("{STRIPE}allow_from = ['{bad}']"), &["line 5", "allow_from", "published"]);
        }
        let unknown = format!("[[psp]]\nid = 'mollie'\nmode = 'test'\nsecrets = ['{TOKEN}']\nallow_from = ['published']");
        check(&unknown, &["psp[0].allow_from", "mollie publishes no networks"]);
    }

    #[test]
    fn every_published_network_is_one() {
        for psp in psp::ALL {
            for network in psp.profile().sources {
                assert!(network.parse::<IpNet>().is_ok(), "{} {network}", psp.id());
            }
        }
    }

    #[test]
    fn another_root_of_trust_is_for_tests_only() {
        let with = |mode: &str| format!("[[psp]]\nid = 'stripe'\nmode = '{mode}'\nsecrets = ['hush']\ntrusted_root = 'PEM hush'");
        assert_eq!(account(&with("test")).keys.trusted_root.as_deref(), Some("PEM hush"));
        check(&with("live"), &["psp[0].trusted_root", "test"]);
        check(
            &with("test").replace("'PEM hush'", "'file:/nonexistent/root.pem'"),
            &["psp[0].trusted_root", "/nonexistent/root.pem"],
        );
    }

    #[test]
    fn unknown_rules_of_the_generic_adapter_are_refused() {
        for (rules, named) in [("heador = 'x-signature'", "heador"), ("header = 7", "string")] {
            check(&format!("{STRIPE}[psp.generic]\n{rules}"), &["line 6", named]);
        }
    }
}
