//! The commands, one file each.

pub mod audit;
pub mod completeness;
pub mod config;
pub mod dead_letters;
pub mod demo;
mod door;
pub mod endpoints;
pub mod explain;
pub mod psps;
pub mod reading;
pub mod replay;
pub mod send;
pub mod serve;
pub mod sweep;
pub mod unsettled;
pub mod verify;

/// Where `serve` keeps everything on a machine that nobody has configured.
pub const DEVELOPMENT_CONFIG: &str = "paybell-data/paybell.toml";
