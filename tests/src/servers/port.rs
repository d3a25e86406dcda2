//! Ports on 127.0.0.1 that nobody else has.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rand::RngExt as _;

/// Below the ports that the kernel gives to outgoing connections (32768 and up): a server that is down for a while must
/// find its port free again, and a client that keeps trying a port of that range can end up connected to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Ports handed out by this process: their servers may not listen yet.
static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nobody listens on and that this process has not handed out before.
///
/// # Panics
/// When every port is taken.
#[must_use]
pub fn free_port() -> u16 {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_default();
    for _ in 0..PORTS.len() {
        // Random, so that test processes side by side rarely try the same.
        let port = rand::rng().random_range(PORTS);
        // On every address, because some servers listen on all of them.
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no free port in {PORTS:?}")
}
