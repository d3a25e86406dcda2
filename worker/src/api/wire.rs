//! The API's JSON, as `design.md` fixes it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::order::{LastFailure, OrderStatus, PaymentView, ReviewReason};
use crate::store::StoredOrder;

/// A JSON object. Derived readers of a struct also take an array of its fields, by their places.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Which books.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BalanceQuery {
    /// `hour`: the books' own lines too.
    pub by: Option<Period>,
    /// The first hour: the one that this lies in; a day before `until` if absent.
    #[param(format = DateTime)]
    pub since: Option<String>,
    /// Hours that begin before it; now, if absent.
    #[param(format = DateTime)]
    pub until: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Hour,
}

/// An order's payment, as the shop expects it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterOrder {
    /// The PSP's id, as in the webhook's URL.
    #[schema(example = "stripe")]
    pub psp: String,
    /// The account's name in the configuration; `default` if absent.
    pub account: Option<String>,
    /// The PSP's id of the payment, if it is known already.
    #[schema(min_length = 1, max_length = 255)]
    pub payment_id: Option<String>,
    /// In minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_000_i64, example = 4999)]
    pub amount: i64,
    /// ISO 4217, in any case.
    #[schema(pattern = "^[A-Za-z]{3}$", example = "EUR")]
    pub currency: String,
    /// When the shop gives the order up if nothing is paid.
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrdersQuery {
    /// Only orders that stand so.
    pub status: Option<OrderStatus>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// How many, at most 500; 50 if absent.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OrderPage {
    pub items: Vec<Order>,
    /// There is more: ask again with this cursor.
    pub next_cursor: Option<String>,
}

/// Where an order stands. Amounts are in minor units of `currency`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Order {
    pub id: String,
    pub status: OrderStatus,
    /// What the shop registered; null for an order that is known only from webhooks.
    pub expected: Option<Expected>,
    pub authorized: i64,
    /// Gross: refunds do not lower it.
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    pub currency: Option<String>,
    pub last_failure: Option<LastFailure>,
    pub review: Option<Review>,
    pub payments: Vec<Payment>,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Raised by one with every visible change.
    pub version: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Expected {
    pub amount: i64,
    pub currency: String,
}

/// A person must look.
#[derive(Debug, Serialize, ToSchema)]
pub struct Review {
    pub reason: ReviewReason,
    #[schema(format = DateTime)]
    pub since: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the API's word is `payment_id`")]
pub struct Payment {
    pub psp: String,
    pub account: String,
    pub payment_id: String,
    pub status: OrderStatus,
    pub currency: Option<String>,
    pub authorized: i64,
    pub captured: i64,
    pub refunded: i64,
    pub disputed: i64,
    pub last_failure: Option<LastFailure>,
    pub review: Option<Review>,
}

impl From<StoredOrder> for Order {
    fn from(stored: StoredOrder) -> Self {
        let StoredOrder { id, view, review_since, version, updated_at } = stored;
        let since = review_since.unwrap_or(updated_at).to_string();
        let review = |reason: Option<ReviewReason>| reason.map(|reason| Review { reason, since: since.clone() });
        Self {
            id,
            status: view.status,
            expected: view.expected.map(|money| Expected { amount: money.minor, currency: money.currency.to_string() }),
            authorized: view.authorized,
            captured: view.captured,
            refunded: view.refunded,
            disputed: view.disputed,
            currency: view.currency.map(|currency| currency.to_string()),
            last_failure: view.last_failure,
            review: review(view.review),
            payments: view.payments.into_iter().map(|payment| payment_of(payment, review)).collect(),
            updated_at: updated_at.to_string(),
            version,
        }
    }
}

fn payment_of(view: PaymentView, review: impl Fn(Option<ReviewReason>) -> Option<Review>) -> Payment {
    Payment {
        psp: view.account.psp.to_string(),
        account: view.account.account.to_string(),
        payment_id: view.payment_id,
        status: view.status,
        currency: view.currency.map(|currency| currency.to_string()),
        authorized: view.authorized,
        captured: view.captured,
        refunded: view.refunded,
        disputed: view.disputed,
        last_failure: view.last_failure,
        review: review(view.review),
    }
}
