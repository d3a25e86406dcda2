//! Markers in this process' memory: for one process on one machine.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{Marker, SeenEvents};

/// Markers in each of two generations: at 16 bytes and the set's overhead, about 30 MiB at the most.
const GENERATION_MARKERS_MAX: usize = 250_000;

/// Remembers the last [`GENERATION_MARKERS_MAX`] markers at least, and twice as many at the most.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<Marker>,
    old: HashSet<Marker>,
}

#[async_trait]
impl SeenEvents for Memory {
    async fn known(&self, markers: &[Marker]) -> Vec<bool> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        markers.iter().map(|marker| generations.young.contains(marker) || generations.old.contains(marker)).collect()
    }

    async fn mark(&self, markers: &[Marker]) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for marker in markers {
            if generations.young.len() >= GENERATION_MARKERS_MAX {
                generations.old = std::mem::take(&mut generations.young);
            }
            generations.young.insert(*marker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn remembers_within_its_bound() {
        let memory = Memory::default();
        let marker = |number: usize| Marker((number as u128).to_be_bytes());
        let all: Vec<Marker> = (0..=3 * GENERATION_MARKERS_MAX).map(marker).collect();
        memory.mark(&all).await;
        let first_and_last = memory.known(&[marker(0), marker(3 * GENERATION_MARKERS_MAX)]).await;
        assert_eq!(first_and_last, [false, true]);
        let generations = memory.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_MARKERS_MAX);
    }
}
