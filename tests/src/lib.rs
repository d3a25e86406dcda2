//! What the tests across processes share: private servers, a fake PSP, conformance suites.

pub mod conformance;
