//! The commands, one file each.

pub mod audit;
pub mod config;
pub mod demo;
mod door;
pub mod explain;
pub mod psps;
pub mod replay;
pub mod send;
pub mod serve;
pub mod sweep;
pub mod verify;

/// Where `serve` keeps everything on a machine that nobody has configured.
pub const DEVELOPMENT_CONFIG: &str = "paybell-data/paybell.toml";
