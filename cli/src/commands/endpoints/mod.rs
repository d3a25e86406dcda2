//! `paybell endpoints`: is what PSPs have registered ours, does it lead to us, and making it so.

pub mod check;
pub mod register;

use clap::Subcommand;

use crate::output::Outcome;

#[derive(Debug, Subcommand)]
pub enum EndpointsCommand {
    /// Compare what each PSP has registered with what must be, and go the way that it would take to us
    Check(check::Args),
    /// Register our URL at a PSP, or mend what is registered: shows the difference first
    Register(register::Args),
}

/// Runs the command.
///
/// # Errors
/// What is missing, or who does not answer.
pub async fn run(command: EndpointsCommand) -> Outcome {
    match command {
        EndpointsCommand::Check(args) => check::run(args).await,
        EndpointsCommand::Register(args) => register::run(args).await,
    }
}

/// `stripe`, or `stripe/shop`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    psp: String,
    account: Option<String>,
}

fn target(text: &str) -> Result<Target, String> {
    let (psp, account) = text.split_once('/').map_or((text, None), |(psp, account)| (psp, Some(account)));
    let is_word = |text: &str| !text.is_empty() && !text.contains('/');
    if !is_word(psp) || account.is_some_and(|account| !is_word(account)) {
        return Err("an account is PSP/ACCOUNT, such as stripe/default; PSP alone means its accounts".to_owned());
    }
    Ok(Target { psp: psp.to_owned(), account: account.map(str::to_owned) })
}

impl Target {
    fn means(&self, psp: &str, account: &str) -> bool {
        self.psp == psp && self.account.as_deref().is_none_or(|wanted| wanted == account)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.psp)?;
        self.account.iter().try_for_each(|account| write!(f, "/{account}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_by_its_psp_and_its_name() {
        let shop = target("stripe/shop").unwrap();
        assert!(shop.means("stripe", "shop") && !shop.means("stripe", "default"));
        let all = target("stripe").unwrap();
        assert!(all.means("stripe", "shop") && !all.means("adyen", "shop"));
        assert_eq!((shop.to_string(), all.to_string()), ("stripe/shop".to_owned(), "stripe".to_owned()));
        for wrong in ["", "/", "stripe/", "/shop", "a/b/c"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
