//! What to change at the PSP so that what is registered is as it must be (pure).
//!
//! Only what is ours is changed ([`sort`]); nothing is removed, neither an endpoint nor a type of event that somebody added.

use bytes::Bytes;
use http::Request;
use paybell_shared::psp::{Account, AskError, Endpoint, EndpointChange};

use super::compare::{Ours, Sorted, missing_events, sort};

/// A change of what is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    Create,
    Update(Update),
}

/// How an endpoint that is ours must change; nothing that is already right is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub endpoint: Endpoint,
    pub url: Option<String>,
    /// All of them: those that are registered, and those that were missing.
    pub events: Option<Vec<String>>,
    pub enable: bool,
}

/// A request, or what a person must do because the API does not.
#[derive(Debug)]
pub enum Step {
    Send(Box<Request<Bytes>>),
    ByHand(&'static str),
}

/// What is to be changed.
#[must_use]
pub fn plan(listed: &[Endpoint], ours: &Ours<'_>) -> Plan {
    let Sorted { ours: of_us, difference, .. } = sort(listed, ours);
    let Some(endpoint) = of_us.first() else { return Plan::Create };
    let missing = missing_events(endpoint, &ours.wanted);
    let all = || endpoint.events.iter().cloned().chain(missing.iter().map(|event| (*event).to_owned())).collect();
    let update = Update {
        endpoint: (*endpoint).clone(),
        url: difference.map(|_| ours.url.to_owned()),
        events: (!missing.is_empty()).then(all),
        enable: !endpoint.enabled,
    };
    if update.url.is_none() && update.events.is_none() && !update.enable { Plan::Nothing } else { Plan::Update(update) }
}

impl Plan {
    /// The requests that carry it out, in their order. If the PSP's API does not make all changes at once, it is asked for each
    /// by itself.
    ///
    /// # Errors
    /// The account lacks what a request needs, or the PSP has no API for any of it.
    pub fn steps(&self, ours: &Ours<'_>, account: &Account) -> Result<Vec<Step>, AskError> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Create => {
                let create = EndpointChange::Create { url: ours.url, wanted: ours.wanted };
                account.psp.change_endpoint_request(&create, account).map(|request| vec![Step::Send(request.into())])
            }
            Self::Update(update) => update.steps(account),
        }
    }
}

impl Update {
    fn steps(&self, account: &Account) -> Result<Vec<Step>, AskError> {
        let Self { endpoint: Endpoint { id, .. }, url, events, enable } = self;
        let (url, events) = (url.as_deref(), events.as_deref());
        match account.psp.change_endpoint_request(&EndpointChange::Update { id, url, events, enable: *enable }, account) {
            Ok(request) => return Ok(vec![Step::Send(request.into())]),
            Err(AskError::Unsupported) => {}
            Err(error) => return Err(error),
        }
        let singly = [
            url.map(|_| (EndpointChange::Update { id, url, events: None, enable: false }, "its URL")),
            events.map(|_| (EndpointChange::Update { id, url: None, events, enable: false }, "its events")),
            enable.then_some((EndpointChange::Update { id, url: None, events: None, enable: true }, "that it is enabled")),
        ];
        let step =
            |(change, what): (EndpointChange<'_>, &'static str)| match account.psp.change_endpoint_request(&change, account) {
                Ok(request) => Ok(Step::Send(request.into())),
                Err(AskError::Unsupported) => Ok(Step::ByHand(what)),
                Err(error) => Err(error),
            };
        singly.into_iter().flatten().map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use paybell_shared::event::Mode;
    use paybell_shared::psp::{self, Api, Capture, Keys};
    use paybell_shared::secret::Secret;

    use super::super::compare::tests::{URL, endpoint, ours};
    use super::super::compare::{Named, compare};
    use super::*;

    fn account(psp: &str) -> Account {
        let psp = psp::find(psp).unwrap();
        Account {
            psp,
            psp_id: psp.id().into(),
            name: "default".into(),
            mode: Mode::Live,
            keys: Keys { secrets: vec![Secret::new("secrets[0]", "hush")], ..Keys::default() },
            api: Api { key: Some(Secret::new("api_key", "key")), ..Api::default() },
            order_reference: None,
            capture: Capture::default(),
        }
    }

    #[test]
    fn what_is_right_is_left_alone_and_what_is_not_ours_too() {
        let stranger = endpoint("we_2", "https://other.example/hook");
        let staging = endpoint("we_3", "https://staging.example/webhooks/stripe");
        assert_eq!(plan(&[stranger.clone(), endpoint("we_1", URL)], &ours()), Plan::Nothing);
        assert_eq!(plan(&[], &ours()), Plan::Create);
        assert_eq!(plan(&[stranger, staging.clone()], &ours()), Plan::Create);
        // Somebody says that it was ours.
        let named = Ours { id: Some(Named::Operator("we_3")), ..ours() };
        let Plan::Update(update) = plan(&[staging], &named) else { panic!("it is ours now") };
        assert_eq!((update.endpoint.id.as_str(), update.url.as_deref()), ("we_3", Some(URL)));
    }

    #[test]
    fn an_update_has_what_is_wrong_and_takes_nothing_away() {
        let mut listed = endpoint("we_1", &format!("{URL}/"));
        listed.enabled = false;
        listed.events = vec!["payout".to_owned(), "paid".to_owned()];
        let Plan::Update(update) = plan(&[listed.clone()], &ours()) else { panic!("something is wrong") };
        let expected = ["payout", "paid", "refunded"].map(str::to_owned).to_vec();
        assert_eq!((update.url.as_deref(), update.events.clone(), update.enable), (Some(URL), Some(expected), true));
        // Once it is done, nothing is left.
        let after = Endpoint { url: URL.to_owned(), enabled: true, events: update.events.unwrap(), ..listed };
        assert_eq!((plan(std::slice::from_ref(&after), &ours()), compare(&[after], &ours())), (Plan::Nothing, vec![]));
    }

    #[test]
    fn what_an_api_does_not_change_is_for_a_person() {
        let mut listed = endpoint("wf_1/wfa_1", &format!("{URL}/"));
        listed.enabled = false;
        let steps = |psp: &str, listed: &Endpoint| {
            let steps = plan(std::slice::from_ref(listed), &ours()).steps(&ours(), &account(psp)).unwrap();
            let step = |step: Step| match step {
                Step::Send(request) => request.uri().path().to_owned(),
                Step::ByHand(what) => what.to_owned(),
            };
            steps.into_iter().map(step).collect::<Vec<_>>()
        };
        assert_eq!(steps("checkoutcom", &listed), ["its URL", "/workflows/wf_1"]);
        listed.id = "hook_1".to_owned();
        assert_eq!(steps("mollie", &listed), ["/v2/webhooks/hook_1", "that it is enabled"]);
        assert_eq!(steps("square", &listed), ["/v2/webhooks/subscriptions/hook_1"], "all at once");
        let create = Plan::Create.steps(&ours(), &account("razorpay"));
        assert_eq!(create.unwrap_err(), AskError::Unsupported);
    }
}
