//! What is told about a change of an order: one content, whichever way it takes.
//!
//! The content is the committed row's, so a repetition says the same, and the id is the change's, so a receiver tells it.

use bytes::Bytes;
use paybell_shared::clock::Timestamp;
use paybell_shared::queue::cloudevents::OrderEvent;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::wire::Order;
use crate::order::OrderStatus;
use crate::store::Change;

/// An order as it was after a change, in the API's form, and where it stood before.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangedOrder {
    #[serde(flatten)]
    pub order: Order,
    /// Null: the order is new.
    pub from: Option<OrderStatus>,
}

/// A change, ready to be told.
#[derive(Debug)]
pub struct Told {
    /// Random and stable.
    pub id: Uuid,
    /// `order.<status>`.
    pub event_type: String,
    pub at: Timestamp,
    pub data: ChangedOrder,
}

impl From<Change> for Told {
    fn from(change: Change) -> Self {
        let Change { id, from, order } = change;
        let (event_type, at) = (format!("order.{}", order.view.status.as_str()), order.updated_at);
        Self { id, event_type, at, data: ChangedOrder { order: Order::from(order), from } }
    }
}

impl Told {
    /// For the topic exchange.
    ///
    /// # Errors
    /// None that is known: all of it can be written as JSON.
    pub fn event(self) -> serde_json::Result<OrderEvent> {
        let body = Bytes::from(serde_json::to_vec(&self.data)?);
        let Self { id, event_type, at, data } = self;
        Ok(OrderEvent { id: id.to_string(), event_type, order_id: data.order.id, at, body })
    }

    /// The body of a notification, in the form that Standard Webhooks recommends.
    ///
    /// # Errors
    /// As [`Told::event`].
    pub fn notification(&self) -> serde_json::Result<Bytes> {
        #[derive(Serialize)]
        struct Notification<'a> {
            #[serde(rename = "type")]
            event_type: &'a str,
            timestamp: Timestamp,
            data: &'a ChangedOrder,
        }
        let notification = Notification { event_type: &self.event_type, timestamp: self.at, data: &self.data };
        serde_json::to_vec(&notification).map(Bytes::from)
    }
}
