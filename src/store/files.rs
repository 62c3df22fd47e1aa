//! Files that appear whole or not at all: written under `temp/` with their writer in the name, synced, moved into place.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, futimens};
use tempfile::{Builder, NamedTempFile, TempDir};

use super::Store;
use super::fault::{self, point};
use super::who::Who;
use crate::error::{Error, Result};

impl Store {
    pub(super) fn temp(&self) -> PathBuf {
        self.root().join("temp")
    }

    fn made_temp(&self) -> Result<PathBuf> {
        let temp = self.temp();
        fs::create_dir_all(&temp).map_err(Error::io("create", &temp))?;
        Ok(temp)
    }

    /// A new file that goes when dropped. What the user's mask takes off is taken off: others may share the store.
    pub(super) fn temp_file(&self) -> Result<NamedTempFile> {
        let temp = self.made_temp()?;
        let made = Builder::new()
            .prefix(&format!("file.{}.", Who::me().tag()))
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&temp);
        made.map_err(Error::io("write in", &temp))
    }

    /// A new folder that goes when dropped, with all that is in it.
    pub(super) fn temp_folder(&self, prefix: &str) -> Result<TempDir> {
        let temp = self.made_temp()?;
        let made = Builder::new()
            .prefix(&format!("{prefix}.{}.", Who::me().tag()))
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&temp);
        made.map_err(Error::io("create a folder in", &temp))
    }

    /// What time it is by the clock of whoever keeps the files, which heartbeats are of.
    pub(super) fn now(&self) -> SystemTime {
        let made = || {
            // Nothing is made where there is no store, nor in one that may only be read.
            let file = self.temp().is_dir().then(|| self.temp_file().ok())??;
            file.as_file().metadata().and_then(|meta| meta.modified()).ok()
        };
        made().unwrap_or_else(SystemTime::now)
    }

    /// Writes a whole file or nothing.
    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let parent = path.parent().unwrap_or(self.root());
        let mut file = self.temp_file()?;
        let mut write = || {
            point("file.created")?;
            file.write_all(bytes)?;
            point("file.written")?;
            file.as_file().sync_all()?;
            point("file.synced")
        };
        write().map_err(|error| self.full(error, bytes.len() as u64)).map_err(Error::io("write", path))?;
        file.persist(path).map_err(|error| Error::io("write", path)(error.error))?;
        point("file.moved").map_err(Error::io("write", path))?;
        sync_folder(parent);
        Ok(())
    }

    /// Bytes that may still be written where the store lies; none where that cannot be known.
    #[must_use]
    pub fn free(&self) -> Option<u64> {
        if let Some(said) = fault::setting("RECANT_FREE") {
            return said.parse().ok();
        }
        // The store itself may not be there yet.
        let there = self.root().ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        let space = rustix::fs::statvfs(there).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Adds to a full disk's error how much was to be written and how much can be.
    pub(super) fn full(&self, error: io::Error, bytes: u64) -> io::Error {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if !full.contains(&error.kind()) {
            return error;
        }
        let free = self.free().map_or_else(|| "an unknown number".to_owned(), size);
        io::Error::new(error.kind(), format!("{error}: {} are to be written, {free} are free", size(bytes)))
    }
}

/// `12.3 MB`
#[must_use]
pub fn size(bytes: u64) -> String {
    format!("{:.3} MB", bytes as f64 / 1e6)
}

/// Puts a file with these words there unless there is one. The words are written first and linked into place, so no one
/// ever reads an empty file. Whether it was put there.
pub(super) fn link(store: &Store, path: &Path, words: &str, doing: &'static str) -> Result<bool> {
    let temp = store.temp_file()?;
    fs::write(temp.path(), words)
        .and_then(|()| point("claim.written"))
        .map_err(|error| store.full(error, words.len() as u64))
        .map_err(Error::io("write", temp.path()))?;
    match fs::hard_link(temp.path(), path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io(doing, path)(error)),
    }
}

/// The bytes of a file. No link is followed, and no pipe waited for: a store may come from somebody else.
pub(super) fn plain(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
    }
    fs::read(path)
}

/// What a claim or a mark says. One that is damaged says something all the same; one that nobody may read, or that is no
/// file, says whose it is by no word, but is told from others. Only where there is none it is an error.
pub(super) fn words_of(path: &Path) -> io::Result<String> {
    match plain(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            let meta = fs::symlink_metadata(path)?;
            Ok(format!("\n\n\n\n\n{} {}.{}", meta.ino(), meta.mtime(), meta.mtime_nsec()))
        }
    }
}

/// When a file was last touched. No link is followed.
pub(super) fn beat_of(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Puts words in the place of what a file has. Again no link is followed.
pub(super) fn overwrite(path: &Path, words: &str) -> io::Result<()> {
    let mut options = fs::File::options();
    let file = options.create(true).truncate(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    file?.write_all(words.as_bytes())
}

/// Sets the time of last change to now, by the clock of whoever keeps the files: those of hosts that share them may differ.
pub(super) fn touch(path: &Path) {
    // Heartbeats and collection alone look at it, and a store may be read only.
    if let Ok(file) = fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
        let _ = futimens(&file, &times);
    }
}

pub(super) fn sync_folder(path: &Path) {
    // Not every file system can sync a folder; the files themselves are synced.
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}

/// What lies in a folder, in order of names; nothing where there is none.
pub(super) fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
