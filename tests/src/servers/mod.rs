//! Private servers on free ports, with their data in a temporary folder; they end with this process.

mod rabbitmq;

pub use rabbitmq::{RabbitMq, rabbitmq};
