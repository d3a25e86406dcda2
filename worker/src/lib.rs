//! Queue and clock to database: consume, apply, reconcile, internal API.
//!
//! In the order of one webhook: [`inbox`] (a delivery becomes rows), [`apply`] (rows become writes; pure), [`order`] (what
//! facts amount to; pure), [`store`] (one transaction; two backends). [`ids`] makes random ids.

pub mod apply;
pub mod ids;
pub mod inbox;
pub mod order;
pub mod store;
