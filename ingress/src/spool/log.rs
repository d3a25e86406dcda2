//! Segments of records, oldest first: what is appended is on the disk before anybody is told so.
//!
//! A segment is appended to by the process that made it, and never again after a failed write or fsync: what the kernel then
//! holds of it and what the disk does may differ for ever, so the next record begins a new one. It is removed as a whole once
//! all that it holds is on the queue; a crash before that brings it again, which makes duplicates.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::disk::Disk;
use super::record::{self, Scanned};

/// A segment's size, but for its last record: what is read at once when it is drained, and sent again after a crash.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const SUFFIX: &str = ".spool";

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("the spool is full")]
    Full,
    #[error("the spool cannot be written")]
    Disk(#[source] io::Error),
    #[error("too many webhooks wait for the spool's disk")]
    Busy,
    #[error("the spool's disk did not answer in time")]
    Late,
}

pub(super) struct Log<D: Disk> {
    disk: D,
    bytes_max: u64,
    segment_bytes: u64,
    /// Nothing is appended to these; by number, with their sizes.
    sealed: BTreeMap<u64, u64>,
    active: Option<Active<D::File>>,
    next: u64,
}

struct Active<F> {
    number: u64,
    file: F,
    bytes: u64,
}

impl<D: Disk> Log<D> {
    /// Takes over what is there.
    pub fn open(disk: D, bytes_max: u64) -> io::Result<Self> {
        let segments = disk.list()?.into_iter().filter_map(|(name, bytes)| Some((number_of(&name)?, bytes)));
        let sealed: BTreeMap<u64, u64> = segments.collect();
        let next = sealed.last_key_value().map_or(1, |(last, _)| last + 1);
        Ok(Self { disk, bytes_max, segment_bytes: SEGMENT_BYTES, sealed, active: None, next })
    }

    /// The size of all segments.
    pub fn bytes(&self) -> u64 {
        self.sealed.values().sum::<u64>() + self.active.as_ref().map_or(0, |active| active.bytes)
    }

    /// Writes records, all of them or, as far as anybody may rely on, none.
    pub fn append(&mut self, records: &[Vec<u8>]) -> Result<(), SpoolError> {
        let bytes = records.concat();
        let added = bytes.len() as u64;
        if self.bytes() + added > self.bytes_max {
            return Err(SpoolError::Full);
        }
        if self.active.as_ref().is_some_and(|active| active.bytes >= self.segment_bytes) {
            self.seal();
        }
        if self.active.is_none() {
            self.begin().map_err(SpoolError::Disk)?;
        }
        let Some(active) = &mut self.active else { return Err(SpoolError::Busy) };
        let written = self.disk.append(&mut active.file, &bytes).and_then(|()| self.disk.sync(&mut active.file));
        // Also what was not written whole takes its room.
        active.bytes += added;
        if let Err(error) = written {
            self.seal();
            return Err(SpoolError::Disk(error));
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let number = self.next;
        let file = self.disk.create(&name_of(number))?;
        self.next += 1;
        if let Err(error) = self.disk.sync_folder() {
            // It may be there after a power cut, or not: nothing will ever be in it.
            self.sealed.insert(number, 0);
            return Err(error);
        }
        self.active = Some(Active { number, file, bytes: 0 });
        Ok(())
    }

    /// The next record begins a new segment.
    pub fn seal(&mut self) {
        if let Some(Active { number, bytes, .. }) = self.active.take() {
            self.sealed.insert(number, bytes);
        }
    }

    /// The segment to drain next: what is being written too, if it is all there is.
    pub fn oldest(&mut self) -> Option<u64> {
        if self.sealed.is_empty() {
            self.seal();
        }
        self.sealed.keys().next().copied()
    }

    pub fn read(&self, number: u64) -> io::Result<Scanned> {
        Ok(record::scan(&Bytes::from(self.disk.read(&name_of(number))?)))
    }

    /// Forgets a segment, all of which is on the queue. That it may come again after a power cut does no harm.
    pub fn remove(&mut self, number: u64) -> io::Result<()> {
        self.disk.remove(&name_of(number))?;
        self.sealed.remove(&number);
        self.disk.sync_folder()
    }
}

fn name_of(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use paybell_shared::queue::Message;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::power_cut::FragileDisk;
    use super::*;

    fn message(number: u64, bytes: usize) -> Message {
        Message { id: number.to_string(), body: vec![b'x'; bytes].into(), ..Message::default() }
    }

    fn held<D: Disk>(log: &Log<D>) -> BTreeSet<u64> {
        let segments = log.sealed.keys().map(|number| log.read(*number).unwrap());
        segments.flat_map(|scanned| scanned.messages).map(|message| message.id.parse().unwrap()).collect()
    }

    /// Appends and drains at random over a disk that fails at random, until its power is cut; then what was acknowledged and not
    /// drained must be there. Each cut forgets all that was not synced, of files and folder, and tears tails at any byte.
    #[test]
    fn nothing_acknowledged_is_lost_at_any_of_a_thousand_power_cuts() {
        for seed in 0..1_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let disk = FragileDisk::new(seed);
            let (mut acknowledged, mut drained, mut next) = (BTreeSet::new(), BTreeSet::new(), 0);
            for _ in 0..3 {
                let mut log = Log { segment_bytes: 1_000, ..Log::open(disk.clone(), u64::MAX).unwrap() };
                disk.fail_sometimes(true);
                for _ in 0..random.random_range(1..30) {
                    if random.random_bool(0.8) {
                        let batch: Vec<u64> = (0..random.random_range(1..5)).map(|offset| next + offset).collect();
                        next += batch.len() as u64;
                        let size = random.random_range(0..300);
                        let records: Vec<_> = batch.iter().map(|id| record::encode(&message(*id, size)).unwrap()).collect();
                        if log.append(&records).is_ok() {
                            acknowledged.extend(batch);
                        }
                    } else if let Some(oldest) = log.oldest()
                        && let Ok(scanned) = log.read(oldest)
                    {
                        drained.extend(scanned.messages.iter().map(|message| message.id.parse::<u64>().unwrap()));
                        let _ = log.remove(oldest);
                    }
                }
                drop(log);
                disk.fail_sometimes(false);
                disk.cut_power();
                let found = held(&Log::open(disk.clone(), u64::MAX).unwrap());
                let lost: Vec<u64> =
                    acknowledged.iter().copied().filter(|id| !found.contains(id) && !drained.contains(id)).collect();
                assert!(lost.is_empty(), "seed {seed}: {lost:?} were acknowledged, and are gone");
            }
        }
    }

    #[test]
    fn a_full_spool_refuses_until_it_is_drained() {
        let record = || vec![record::encode(&message(1, 400)).unwrap()];
        let mut log = Log::open(FragileDisk::new(1), 1_000).unwrap();
        log.append(&record()).unwrap();
        log.append(&record()).unwrap();
        assert!(matches!(log.append(&record()), Err(SpoolError::Full)));
        let oldest = log.oldest().unwrap();
        assert_eq!(log.read(oldest).unwrap().messages.len(), 2);
        log.remove(oldest).unwrap();
        assert_eq!((log.bytes(), log.oldest()), (0, None));
        log.append(&record()).unwrap();
    }

    #[test]
    fn a_segment_whose_fsync_failed_is_not_appended_to() {
        let disk = FragileDisk::new(1);
        let mut log = Log::open(disk.clone(), u64::MAX).unwrap();
        let record = |id| vec![record::encode(&message(id, 10)).unwrap()];
        log.append(&record(1)).unwrap();
        disk.fail_next_sync();
        assert!(matches!(log.append(&record(2)), Err(SpoolError::Disk(_))));
        log.append(&record(3)).unwrap();
        assert_eq!(disk.list().unwrap().len(), 2);
        disk.cut_power();
        let found = held(&Log::open(disk, u64::MAX).unwrap());
        assert!(found.contains(&1) && found.contains(&3), "{found:?}");
    }
}
