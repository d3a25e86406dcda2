//! Simulated PSPs: they sign and send webhooks over real HTTP, and answer status questions from their own books.
//!
//! Part of the product, for `paybell demo` and `paybell send`: a [`story`] is played in the [`ledger`] (the truth, in no PSP's
//! words) → the [`dialect`] of the PSP says what is told of each step, and signs it → [`Sender`] (HTTP, with retries); an
//! [`Account`] serves what reconciliation asks. The signatures are made by this module's own code: it shares test vectors with
//! the adapters that verify them, so that an error of one side cannot hide behind the same error of the other.
//!
//! To add a PSP: a file with a unit struct that implements [`Dialect`], one line in [`ALL`].

mod account;
pub mod adyen;
pub mod braintree;
mod braintree_api;
pub mod checkoutcom;
pub mod coinbase_commerce;
mod decimal;
pub mod dialect;
mod endpoint;
pub mod flutterwave;
pub mod generic;
pub mod gocardless;
mod gocardless_api;
mod http;
pub mod klarna;
pub mod ledger;
mod mac;
pub mod mollie;
mod mollie_api;
mod normalised;
pub mod paypal;
mod paypal_api;
pub mod paystack;
pub mod razorpay;
mod seed;
mod sender;
pub mod square;
mod square_api;
pub mod standard_webhooks;
pub mod story;
pub mod stripe;
mod stripe_api;
pub mod svix;

pub use account::{Account, quoted};
pub use dialect::{Dialect, Forgery, Settings, SignError, SignedCall, Situation, Webhook};
pub use endpoint::Registered;
pub use seed::Seed;
pub use sender::{Answered, SendError, Sender, http_client};

/// Every PSP that can be played, in the order of the adapters.
pub static ALL: &[&dyn Dialect] = &[
    &stripe::Stripe,
    &adyen::Adyen,
    &adyen::AdyenPlatform,
    &paypal::PayPal,
    &square::Square,
    &razorpay::Razorpay,
    &mollie::Mollie,
    &mollie::MollieClassic,
    &checkoutcom::Checkoutcom,
    &gocardless::GoCardless,
    &paystack::Paystack,
    &flutterwave::V3,
    &flutterwave::V4,
    &flutterwave::V4Plain,
    &braintree::Braintree,
    &coinbase_commerce::CoinbaseCommerce,
    &klarna::Klarna,
    &standard_webhooks::StandardWebhooks,
    &svix::Svix,
    &generic::Shopify,
    &generic::Github,
    &generic::Generic,
];

/// The dialect of this name.
#[must_use]
pub fn find(id: &str) -> Option<&'static dyn Dialect> {
    ALL.iter().copied().find(|dialect| dialect.id() == id)
}

/// The dialect in which a PSP speaks to an account of this scheme (`None`: the PSP's default).
#[must_use]
pub fn find_scheme(psp: &str, scheme: Option<&str>) -> Option<&'static dyn Dialect> {
    ALL.iter().copied().find(|dialect| dialect.psp() == psp && dialect.speaks(scheme))
}
