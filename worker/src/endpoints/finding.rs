//! What can be wrong with an endpoint: a closed set of kinds, each with the words for a person.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// A closed set: what a metric is labelled by.
    pub finding: Kind,
    pub severity: Severity,
    pub says: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Webhooks still come.
    Warning,
    /// Webhooks do not come, not all of them, or are refused.
    Error,
}

/// Something that could not be told. It is never taken for "all is well".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Doubt {
    pub about: Side,
    /// What, and why.
    pub says: String,
}

/// Which side was looked at: one may be told while the other cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What the PSP lists.
    Registered,
    /// What the way through the Internet leads to.
    Outside,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $side:ident, $severity:ident;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name, as it is serialised.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }

            #[must_use]
            pub const fn side(self) -> Side {
                match self { $(Self::$kind => Side::$side),+ }
            }

            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$kind => Severity::$severity),+ }
            }
        }
    };
}

kinds! {
    /// The PSP lists no endpoint at all.
    NoneListed = "none_listed", Registered, Error;
    /// Endpoints are listed, and none is ours.
    NotRegistered = "not_registered", Registered, Error;
    /// Ours is registered by another URL on our host.
    OtherUrl = "other_url", Registered, Error;
    /// Our path is registered on another host, and not on ours.
    OtherHost = "other_host", Registered, Error;
    /// Our URL is registered under another id than the setting `webhook_id` says.
    OtherId = "other_id", Registered, Error;
    Disabled = "disabled", Registered, Error;
    MissingEvents = "missing_events", Registered, Error;
    /// It is of the PSP's other mode.
    OtherMode = "other_mode", Registered, Error;
    /// Events are written in another version of the PSP's API than our mapping was made for.
    ApiVersion = "api_version", Registered, Warning;
    /// Our URL is registered more than once.
    Doubled = "doubled", Registered, Warning;
    /// `http:` where money is real.
    PlainHttp = "plain_http", Outside, Error;
    UnresolvedName = "unresolved_name", Outside, Error;
    /// The name leads to addresses that the Internet does not reach.
    PrivateAddress = "private_address", Outside, Warning;
    Unreached = "unreached", Outside, Error;
    CertificateExpired = "certificate_expired", Outside, Error;
    CertificateNotYetValid = "certificate_not_yet_valid", Outside, Error;
    CertificateOfOtherName = "certificate_of_other_name", Outside, Error;
    CertificateUntrusted = "certificate_untrusted", Outside, Error;
    CertificateExpiring = "certificate_expiring", Outside, Warning;
    /// No TLS session comes about, for another reason than the certificate.
    NoTls = "no_tls", Outside, Error;
    Redirect = "redirect", Outside, Error;
    /// Somebody else answers there.
    ForeignAnswer = "foreign_answer", Outside, Error;
    /// A canary was sent and did not come back.
    CanaryLost = "canary_lost", Outside, Error;
}

impl Doubt {
    pub(crate) fn new(about: Side, says: impl Into<String>) -> Self {
        Self { about, says: says.into() }
    }
}

impl Finding {
    pub(crate) fn new(kind: Kind, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { finding: kind, severity: kind.severity(), says: says.into(), remedy: remedy.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_kind_has_one_name_everywhere() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
