//! What is registered at the PSP against what must be (pure): which of the listed endpoints is ours, and what is wrong with it.
//!
//! An endpoint is ours if it has our URL byte for byte, or the id that the account's setting `webhook_id` names. One that
//! differs from our URL only in its spelling (scheme, port, letters' case, a trailing slash, the default account's name, a
//! query) is ours with a wrong URL. One with our path on another host may be another installation's, such as a staging
//! system's: it is spoken of and never changed, unless somebody names it.

use paybell_shared::event::Mode;
use paybell_shared::psp::{Endpoint, WantedEndpoint};
use reqwest::Url;

use super::finding::{Finding, Kind};

/// What an account wants to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// `psp/account`, for commands.
    pub name: &'a str,
    pub mode: Mode,
    pub url: &'a str,
    /// The endpoint's id, where a setting or an operator names it.
    pub id: Option<Named<'a>>,
    pub wanted: WantedEndpoint,
    /// The URLs of other accounts of this PSP: theirs are no misspellings of ours.
    pub others: &'a [String],
    /// Where a person does what no API does.
    pub by_hand: &'a str,
}

/// Who says which endpoint is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// The setting `webhook_id`.
    Setting(&'a str),
    /// Whoever gave the command.
    Operator(&'a str),
}

impl<'a> Named<'a> {
    const fn id(self) -> &'a str {
        match self {
            Self::Setting(id) | Self::Operator(id) => id,
        }
    }
}

/// How a listed URL differs from ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    None,
    /// In these respects, and it is the same place otherwise.
    Spelling(Vec<&'static str>),
    /// The same path on another host.
    Host(String),
    /// It is another place.
    Other,
}

/// The endpoints that concern us, of those that are listed.
#[derive(Debug, Default)]
pub struct Sorted<'a> {
    /// Ours; of several, the one that works first.
    pub ours: Vec<&'a Endpoint>,
    /// How the first of them differs.
    pub difference: Option<Difference>,
    /// Our path on other hosts.
    pub elsewhere: Vec<(&'a Endpoint, String)>,
}

/// Finds what is ours among what is listed.
#[must_use]
pub fn sort<'a>(listed: &'a [Endpoint], ours: &Ours<'_>) -> Sorted<'a> {
    let differing: Vec<(&Endpoint, Difference)> =
        listed.iter().map(|listed| (listed, difference(ours.url, &listed.url))).collect();
    let elsewhere = differing.iter().filter_map(|(endpoint, difference)| match difference {
        Difference::Host(host) => Some((*endpoint, host.clone())),
        _ => None,
    });
    let elsewhere: Vec<(&Endpoint, String)> = elsewhere.filter(|(endpoint, _)| !ours.others.contains(&endpoint.url)).collect();
    // An operator's word stands above all, the setting's above a URL that leads elsewhere.
    let named = |id: &str| differing.iter().find(|(endpoint, _)| endpoint.id == id);
    if let Some((endpoint, difference)) = ours.id.and_then(|named_by| named(named_by.id())) {
        let difference = (*difference != Difference::None).then(|| difference.clone());
        let mut of_us = vec![*endpoint];
        if difference.is_none() {
            of_us.extend(exact(&differing).filter(|other| other.id != endpoint.id));
        }
        return Sorted { ours: of_us, difference, elsewhere };
    }
    let mut of_us: Vec<&Endpoint> = exact(&differing).collect();
    if !of_us.is_empty() {
        of_us.sort_by_key(|endpoint| (!endpoint.enabled, endpoint.mode.is_some_and(|mode| mode != ours.mode)));
        return Sorted { ours: of_us, difference: None, elsewhere };
    }
    let misspelt = differing
        .into_iter()
        .filter(|(endpoint, difference)| matches!(difference, Difference::Spelling(_)) && !ours.others.contains(&endpoint.url));
    match misspelt.min_by_key(|(endpoint, _)| !endpoint.enabled) {
        Some((endpoint, difference)) => Sorted { ours: vec![endpoint], difference: Some(difference), elsewhere },
        None => Sorted { elsewhere, ..Sorted::default() },
    }
}

fn exact<'a>(differing: &[(&'a Endpoint, Difference)]) -> impl Iterator<Item = &'a Endpoint> {
    differing.iter().filter(|(_, difference)| *difference == Difference::None).map(|(endpoint, _)| *endpoint)
}

/// What is wrong with what is registered. Empty: all is as it must be.
#[must_use]
pub fn compare(listed: &[Endpoint], ours: &Ours<'_>) -> Vec<Finding> {
    let Ours { name, url, by_hand, .. } = ours;
    let register = || format!("paybell endpoints register {name}");
    if listed.is_empty() {
        let says = "the PSP lists no endpoint at all: none is registered, or our key does not see it";
        return vec![Finding::new(Kind::NoneListed, says, register())];
    }
    let Sorted { ours: of_us, difference, elsewhere } = sort(listed, ours);
    let Some(endpoint) = of_us.first() else {
        return vec![nothing_of_ours(listed.len(), elsewhere.first(), ours)];
    };
    let mut findings = Vec::new();
    findings.extend(difference.map(|difference| wrong_url(endpoint, &difference, ours)));
    if let Some(Named::Setting(id)) = ours.id.filter(|named| named.id() != endpoint.id) {
        findings.push(Finding::new(
            Kind::OtherId,
            format!("our URL is registered as {}, and webhook_id is {id}: what the PSP signs does not verify", endpoint.id),
            format!("set webhook_id = \"{}\" of this account", endpoint.id),
        ));
    }
    if !endpoint.enabled {
        let says = format!("{} is registered, and not enabled", endpoint.id);
        findings.push(Finding::new(Kind::Disabled, says, format!("{}, or by hand ({by_hand})", register())));
    }
    let missing = missing_events(endpoint, &ours.wanted);
    if !missing.is_empty() {
        let says = format!("{} is not told of {}", endpoint.id, missing.join(", "));
        findings.push(Finding::new(Kind::MissingEvents, says, register()));
    }
    if let Some(mode) = endpoint.mode.filter(|mode| *mode != ours.mode) {
        let says = format!("{} is of mode {}, the account's is {}", endpoint.id, mode.as_str(), ours.mode.as_str());
        findings.push(Finding::new(Kind::OtherMode, says, "compare mode and api_key of this account"));
    }
    findings.extend(ours.wanted.api_version.and_then(|wanted| other_version(endpoint, wanted, by_hand)));
    let enabled: Vec<&str> = of_us.iter().filter(|endpoint| endpoint.enabled).map(|endpoint| &*endpoint.id).collect();
    if enabled.len() > 1 {
        findings.push(Finding::new(
            Kind::Doubled,
            format!("{url} is registered {} times ({}): each event comes so often", enabled.len(), enabled.join(", ")),
            format!("remove all but the one whose secret is configured, by hand ({by_hand})"),
        ));
    }
    findings
}

fn nothing_of_ours(listed: usize, elsewhere: Option<&(&Endpoint, String)>, ours: &Ours<'_>) -> Finding {
    let (url, register) = (ours.url, format!("paybell endpoints register {}", ours.name));
    if let Some((other, host)) = elsewhere {
        let says = format!("our path is registered on {host} ({}), and {url} is not", other.id);
        let remedy = format!("if {host} was ours: {register} --endpoint {}; else: {register}", other.id);
        return Finding::new(Kind::OtherHost, says, remedy);
    }
    let says = format!("{url} is not among the {} that are registered", count(listed, "endpoint"));
    Finding::new(Kind::NotRegistered, says, register)
}

fn wrong_url(endpoint: &Endpoint, difference: &Difference, ours: &Ours<'_>) -> Finding {
    let (kind, how) = match difference {
        Difference::None => (Kind::OtherUrl, String::new()),
        Difference::Spelling(respects) => (Kind::OtherUrl, format!(" It differs in: {}.", respects.join(", "))),
        Difference::Host(host) => (Kind::OtherHost, format!(" It leads to another host, {host}.")),
        Difference::Other => (Kind::OtherUrl, " It leads elsewhere.".to_owned()),
    };
    let theirs = without_secrets(&endpoint.url);
    let says = format!("{} is registered as {theirs}, and must be {}.{how}", endpoint.id, ours.url);
    let remedy = match ours.id {
        Some(Named::Operator(id)) => format!("paybell endpoints register {} --endpoint {id}", ours.name),
        _ => format!("paybell endpoints register {}", ours.name),
    };
    Finding::new(kind, says, format!("{remedy}; or, if the other is meant: url of this account"))
}

/// Those that our mapping reads and the endpoint is not told of.
#[must_use]
pub fn missing_events(endpoint: &Endpoint, wanted: &WantedEndpoint) -> Vec<&'static str> {
    if endpoint.events.iter().any(|event| event == "*") {
        return Vec::new();
    }
    wanted.events.iter().copied().filter(|event| !endpoint.events.iter().any(|told| told == event)).collect()
}

fn other_version(endpoint: &Endpoint, wanted: &str, by_hand: &str) -> Option<Finding> {
    let id = &endpoint.id;
    let (says, remedy) = match endpoint.api_version.as_deref() {
        Some(version) if version == wanted => return None,
        None => (
            format!("{id} has no version of its own: events are written in the account's default, and {wanted} is what is read"),
            format!("make it anew with version {wanted} ({by_hand})"),
        ),
        Some(version) => {
            // Both begin with their date.
            let age = if version.get(..10) < wanted.get(..10) { "older" } else { "newer" };
            let says = format!("{id} writes events in version {version}, which is {age} than {wanted}, which is what is read");
            let remedy = format!("look at the quarantined events; make it anew with version {wanted} ({by_hand})");
            (says, remedy)
        }
    };
    Some(Finding::new(Kind::ApiVersion, says, remedy))
}

/// How `theirs` differs from `ours`.
#[must_use]
pub fn difference(ours: &str, theirs: &str) -> Difference {
    if ours == theirs {
        return Difference::None;
    }
    let (Ok(ours), Ok(theirs)) = (ours.parse::<Url>(), theirs.parse::<Url>()) else { return Difference::Other };
    let (our_path, their_path) = (path(&ours), path(&theirs));
    if !our_path.eq_ignore_ascii_case(their_path) {
        return Difference::Other;
    }
    if ours.host() != theirs.host() {
        return Difference::Host(theirs.host_str().unwrap_or_default().to_owned());
    }
    let respects = [
        (ours.scheme() != theirs.scheme(), if theirs.scheme() == "http" { "http instead of https" } else { "the scheme" }),
        // That of the scheme stands for none.
        (ours.port() != theirs.port(), "the port"),
        (ours.path().ends_with('/') != theirs.path().ends_with('/'), "a slash at the end"),
        (is_named(&ours) != is_named(&theirs), "the default account's name"),
        (our_path != their_path, "the case of letters in the path"),
        (ours.query() != theirs.query(), "the query"),
        (ours.username() != theirs.username() || ours.password() != theirs.password(), "a user name"),
        (ours.fragment() != theirs.fragment(), "what stands behind #"),
    ];
    let respects: Vec<&str> = respects.into_iter().filter_map(|(differs, what)| differs.then_some(what)).collect();
    Difference::Spelling(if respects.is_empty() {
        vec!["the bytes of one address, which count where the PSP signs it"]
    } else {
        respects
    })
}

/// The default account may be named in the path, or left out.
const DEFAULT: &str = "/default";

fn is_named(url: &Url) -> bool {
    url.path().trim_end_matches('/').ends_with(DEFAULT)
}

fn path(url: &Url) -> &str {
    let path = url.path().trim_end_matches('/');
    path.strip_suffix(DEFAULT).unwrap_or(path)
}

/// Without a user, a query and a fragment, which may be secrets.
fn without_secrets(url: &str) -> String {
    let Ok(mut url) = url.parse::<Url>() else { return "(no URL)".to_owned() };
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    if cleared.is_ok() { url.to_string() } else { "(no URL)".to_owned() }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const URL: &str = "https://pay.example/webhooks/stripe";
    pub(crate) const WANTED: WantedEndpoint =
        WantedEndpoint { events: &["paid", "refunded"], api_version: Some("2026-10-28.endive"), tells_secret: true };

    pub(crate) fn ours() -> Ours<'static> {
        Ours { name: "stripe/default", mode: Mode::Live, url: URL, id: None, wanted: WANTED, others: &[], by_hand: "here" }
    }

    pub(crate) fn endpoint(id: &str, url: &str) -> Endpoint {
        Endpoint {
            id: id.to_owned(),
            url: url.to_owned(),
            enabled: true,
            events: vec!["paid".to_owned(), "refunded".to_owned(), "payout".to_owned()],
            api_version: Some("2026-10-28.endive".to_owned()),
            mode: Some(Mode::Live),
        }
    }

    fn kinds(listed: &[Endpoint], ours: &Ours<'_>) -> Vec<&'static str> {
        compare(listed, ours).iter().map(|finding| finding.finding.as_str()).collect()
    }

    #[test]
    fn urls_differ_in_ways_that_a_person_understands() {
        let spelling = |respect: &'static str| Difference::Spelling(vec![respect]);
        for (theirs, expected) in [
            (URL, Difference::None),
            ("https://pay.example/webhooks/stripe/", spelling("a slash at the end")),
            ("http://pay.example/webhooks/stripe", spelling("http instead of https")),
            ("https://pay.example:8443/webhooks/stripe", spelling("the port")),
            ("https://pay.example/webhooks/stripe?x=1", spelling("the query")),
            ("https://pay.example/Webhooks/Stripe", spelling("the case of letters in the path")),
            ("https://pay.example/webhooks/stripe/default", spelling("the default account's name")),
            ("https://u:p@pay.example/webhooks/stripe", spelling("a user name")),
            ("https://PAY.example/webhooks/stripe", spelling("the bytes of one address, which count where the PSP signs it")),
            ("https://pay.example:443/webhooks/stripe", spelling("the bytes of one address, which count where the PSP signs it")),
            ("https://staging.example/webhooks/stripe", Difference::Host("staging.example".to_owned())),
            ("https://staging.example/webhooks/stripe/", Difference::Host("staging.example".to_owned())),
            ("https://pay.example/webhooks/stripe/shop", Difference::Other),
            ("https://pay.example/hook", Difference::Other),
            ("https://other.example/hook", Difference::Other),
            ("not a url", Difference::Other),
            ("", Difference::Other),
        ] {
            assert_eq!(difference(URL, theirs), expected, "{theirs}");
        }
        let both = difference(URL, "http://pay.example/webhooks/stripe/");
        assert_eq!(both, Difference::Spelling(vec!["http instead of https", "a slash at the end"]));
    }

    #[test]
    fn each_fault_is_found_by_its_name() {
        let good = || endpoint("we_1", URL);
        let other = || endpoint("we_2", "https://other.example/hook");
        let with = |change: fn(&mut Endpoint)| {
            let mut changed = good();
            change(&mut changed);
            vec![other(), changed]
        };
        for (listed, expected) in [
            (vec![good()], &[][..]),
            (vec![other(), good(), endpoint("we_3", "https://staging.example/webhooks/stripe")], &[]),
            (with(|it| it.events = vec!["*".to_owned()]), &[]),
            (vec![], &["none_listed"]),
            (vec![other()], &["not_registered"]),
            (vec![other(), endpoint("we_3", "https://staging.example/webhooks/stripe")], &["other_host"]),
            (with(|it| it.url += "/"), &["other_url"]),
            (with(|it| it.url = it.url.replace("https", "http")), &["other_url"]),
            (with(|it| it.enabled = false), &["disabled"]),
            (with(|it| it.events = vec!["paid".to_owned()]), &["missing_events"]),
            (with(|it| it.events.clear()), &["missing_events"]),
            (with(|it| it.mode = Some(Mode::Test)), &["other_mode"]),
            (with(|it| it.mode = None), &[]),
            (with(|it| it.api_version = Some("2025-01-01.acacia".to_owned())), &["api_version"]),
            (with(|it| it.api_version = Some("2027-01-01.fig".to_owned())), &["api_version"]),
            (with(|it| it.api_version = None), &["api_version"]),
            (vec![good(), endpoint("we_2", URL)], &["doubled"]),
            // Of two, the one that works counts.
            (
                {
                    let mut off = good();
                    off.enabled = false;
                    vec![off, endpoint("we_2", URL)]
                },
                &[],
            ),
            (
                with(|it| {
                    it.url += "/";
                    it.enabled = false;
                    it.events.clear();
                }),
                &["other_url", "disabled", "missing_events"],
            ),
        ] {
            assert_eq!(kinds(&listed, &ours()), expected, "{listed:?}");
        }
    }

    #[test]
    fn words_say_what_differs_and_what_to_do() {
        let mut listed = vec![endpoint("we_1", "https://hush:hush@pay.example/webhooks/stripe/?token=hush")];
        listed[0].events = vec!["payout".to_owned()];
        listed[0].api_version = Some("2025-01-01.acacia".to_owned());
        let findings = compare(&listed, &ours());
        let shown = format!("{findings:?}");
        assert!(!shown.contains("hush"), "{shown}");
        for words in
            ["a slash at the end", "not told of paid, refunded", "older than 2026", "paybell endpoints register stripe/default"]
        {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        listed[0].api_version = Some("2027-01-01.fig".to_owned());
        assert!(format!("{:?}", compare(&listed, &ours())).contains("newer than 2026"));
        let elsewhere = [endpoint("we_9", "https://staging.example/webhooks/stripe")];
        assert!(format!("{:?}", compare(&elsewhere, &ours())).contains("--endpoint we_9"));
    }

    /// `webhook_id` names ours, whatever its URL; and a URL under another id does not verify.
    #[test]
    fn an_id_that_a_setting_names_is_ours() {
        let named = |id| Ours { id: Some(Named::Setting(id)), ..ours() };
        let listed = [endpoint("WH1", "https://old.example/hook"), endpoint("WH2", "https://other.example/")];
        assert_eq!(kinds(&listed, &named("WH1")), ["other_url"]);
        assert_eq!(kinds(&[endpoint("WH1", URL)], &named("WH1")), [""; 0]);
        assert_eq!(kinds(&[endpoint("WH2", URL)], &named("WH1")), ["other_id"]);
        assert_eq!(kinds(&listed, &named("WH3")), ["not_registered"]);
        // Another one with our URL is told beside ours.
        assert_eq!(kinds(&[endpoint("WH2", URL), endpoint("WH1", URL)], &named("WH1")), ["doubled"]);
    }

    #[test]
    fn another_accounts_endpoint_is_no_misspelling_of_ours() {
        let others = ["https://pay.example/webhooks/stripe/".to_owned()];
        let with_others = Ours { others: &others, ..ours() };
        assert_eq!(kinds(&[endpoint("we_1", &others[0])], &with_others), ["not_registered"]);
    }
}
