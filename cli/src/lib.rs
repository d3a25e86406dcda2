//! One process for everything on one machine, and the operator's commands.

pub mod simulator;
