//! What the tests across processes share: private servers, our services as processes, a shop, PSPs that are played or lie, the
//! worker's parts in this process, conformance suites, and the benchmarks.

pub mod bench;
pub mod conformance;
pub mod front;
pub mod liar;
pub mod played;
pub mod receiver;
pub mod scene;
pub mod servers;
pub mod shop;
pub mod sse;
pub mod worker;
