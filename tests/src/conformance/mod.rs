//! One suite a port, run against each of its backends.

pub mod queue;
