//! The files under the spool: a folder, or, in tests, one whose power is cut.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What a log needs of a folder. Durable is what was synced: of a file its bytes, of the folder which files there are.
pub(super) trait Disk {
    type File;

    /// Names and sizes.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// A new file; one that is there already is an error.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;
    fn sync_folder(&self) -> io::Result<()>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A folder that no other process has as its spool.
pub(super) struct Folder {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, and shows that it can be written to.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process has it as its spool")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        let probe = path.join("probe");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&probe)?;
        file.write_all(b"paybell")?;
        file.sync_all()?;
        fs::remove_file(probe)?;
        folder.sync_folder()?;
        Ok(folder)
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let entries = fs::read_dir(&self.path)?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        });
        entries.collect()
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().create_new(true).append(true).open(self.path.join(name))
    }

    fn append(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }
}
