//! Queue and clock to database: consume, apply, reconcile, internal API.
//!
//! In the order of one webhook: [`consume`] (a batch of deliveries) → [`seen`] (was it committed before?) → [`inbox`] (a
//! delivery becomes rows) → [`apply`] (rows become writes; pure) → [`order`] (what facts amount to; pure) → [`store`] (one
//! transaction; two backends). Beside it: [`reconcile`] asks the PSP through [`transport`]; [`api`] is the shop's door;
//! [`ids`] makes random ids.

pub mod api;
pub mod apply;
pub mod consume;
pub mod ids;
pub mod inbox;
pub mod order;
pub mod reconcile;
pub mod seen;
pub mod store;
pub mod transport;
