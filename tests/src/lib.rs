//! What the tests across processes share: private servers, our services as processes, a shop, conformance suites, and the
//! benchmarks.

pub mod bench;
pub mod conformance;
pub mod servers;
pub mod shop;
