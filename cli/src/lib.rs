//! One process for everything on one machine, and the operator's commands.
//!
//! [`commands`] holds one file a command; [`simulator`] plays the PSPs for `demo` and `send`; [`api`] asks the internal
//! API as any order service would; [`output`] is how commands speak.

pub mod api;
pub mod commands;
pub mod output;
pub mod simulator;
