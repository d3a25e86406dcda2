//! A disk in memory whose power can be cut: it then forgets everything since the last successful sync, of each file and of the
//! folder, but for what happened to be written; the tail of a file is torn at any byte, or is noise.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::disk::Disk;

/// Clones are the same disk.
#[derive(Clone)]
pub(super) struct FragileDisk(Arc<Mutex<State>>);

struct State {
    random: StdRng,
    fails_sometimes: bool,
    fails_next_sync: bool,
    /// As the kernel shows it.
    files: BTreeMap<String, Content>,
    /// As of the folder's last sync.
    synced: BTreeMap<String, Content>,
}

#[derive(Clone, Default)]
pub(super) struct Content(Arc<Mutex<Bytes>>);

#[derive(Default)]
struct Bytes {
    all: Vec<u8>,
    /// So many of them are on the disk.
    synced: usize,
}

impl Content {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FragileDisk {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            fails_sometimes: false,
            fails_next_sync: false,
            files: BTreeMap::new(),
            synced: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fail_sometimes(&self, fails: bool) {
        self.state().fails_sometimes = fails;
    }

    pub fn fail_next_sync(&self) {
        self.state().fails_next_sync = true;
    }

    pub fn cut_power(&self) {
        let state = &mut *self.state();
        // What was created or removed since the folder's last sync may be on the disk all the same.
        let mut after: BTreeMap<String, Content> = state.synced.clone();
        for (name, content) in &state.files {
            if !after.contains_key(name) && state.random.random_bool(0.5) {
                after.insert(name.clone(), content.clone());
            }
        }
        let gone: Vec<String> = after.keys().filter(|name| !state.files.contains_key(*name)).cloned().collect();
        for name in gone {
            if state.random.random_bool(0.5) {
                after.remove(&name);
            }
        }
        for content in after.values() {
            let mut bytes = content.lock();
            let unsynced = bytes.all.len() - bytes.synced;
            let kept = bytes.synced + state.random.random_range(0..=unsynced);
            bytes.all.truncate(kept);
            let tail = bytes.synced..kept;
            if state.random.random_bool(0.3) {
                bytes.all[tail].fill_with(|| state.random.random());
            }
            bytes.synced = kept;
        }
        state.files.clone_from(&after);
        state.synced = after;
    }
}

impl State {
    fn fails(&mut self) -> io::Result<()> {
        let fails = self.fails_sometimes && self.random.random_bool(0.05);
        if fails { Err(io::Error::other("the disk fails")) } else { Ok(()) }
    }
}

impl Disk for FragileDisk {
    type File = Content;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        Ok(state.files.iter().map(|(name, content)| (name.clone(), content.lock().all.len() as u64)).collect())
    }

    fn create(&self, name: &str) -> io::Result<Self::File> {
        let mut state = self.state();
        state.fails()?;
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content::default();
        state.files.insert(name.to_owned(), content.clone());
        Ok(content)
    }

    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let failed = state.fails();
        let written = if failed.is_ok() { bytes.len() } else { state.random.random_range(0..=bytes.len()) };
        file.lock().all.extend(&bytes[..written]);
        failed
    }

    fn sync(&self, file: &mut Self::File) -> io::Result<()> {
        let mut state = self.state();
        if std::mem::take(&mut state.fails_next_sync) {
            return Err(io::Error::other("the fsync fails"));
        }
        state.fails()?;
        let mut bytes = file.lock();
        bytes.synced = bytes.all.len();
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        state.synced = state.files.clone();
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.fails()?;
        state.files.get(name).map(|content| content.lock().all.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.fails()?;
        state.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
