//! What to throw away: results that are cheap to make again first, never what a living run needs; and what dead runs
//! left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::claim::{LAPSE, beside_us, identity};
use super::{MANIFEST, Manifest, Store};
use crate::error::{Error, Result};

/// Leftovers younger than this may be somebody's work.
const YOUNG: Duration = Duration::from_secs(3600);
/// What was put aside is kept for a look.
const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a collection would remove, or has removed.
#[derive(Debug, Default)]
pub struct Garbage {
    pub results: Vec<Manifest>,
    /// Files and folders that dead runs left.
    pub leftovers: Vec<PathBuf>,
    /// Bytes of the results.
    pub bytes: u64,
    /// Bytes of all results before.
    pub total: u64,
}

/// The results that a run will read or make, kept from collection while it lives.
#[derive(Debug)]
pub struct Pin {
    path: PathBuf,
}

impl Pin {
    /// Shows that the run lives.
    pub fn beat(&self) {
        if let Ok(file) = fs::File::options().append(true).open(&self.path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// Keeps results from collection as long as the pin lives.
    pub fn pin<'a>(&self, fingerprints: impl IntoIterator<Item = &'a str>) -> Result<Pin> {
        let folder = self.root().join("pins");
        let mut words = identity(std::process::id());
        words.push_str("\n\n");
        words.push_str(&fingerprints.into_iter().collect::<Vec<_>>().join("\n"));
        let file = tempfile::Builder::new().prefix("run-").tempfile_in(&folder).map_err(Error::io("write", &folder))?;
        fs::write(file.path(), words).map_err(Error::io("write", &folder))?;
        let path = file.into_temp_path().keep().map_err(|error| Error::io("keep", &folder)(error.error))?;
        Ok(Pin { path })
    }

    /// What living runs and stages at work need; and the pins of the dead.
    fn pinned(&self) -> (BTreeSet<String>, Vec<PathBuf>) {
        let (mut needed, mut dead) = (BTreeSet::new(), Vec::new());
        for path in list(&self.root().join("pins")) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lives = beside_us(&text).unwrap_or_else(|| age(&path).is_none_or(|age| age < 10 * LAPSE));
            if lives {
                needed.extend(text.split("\n\n").nth(1).into_iter().flat_map(str::lines).map(str::to_owned));
            } else {
                dead.push(path);
            }
        }
        for path in list(&self.root().join("claims")) {
            needed.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
        (needed, dead)
    }

    /// Chooses what to remove: results not used for longer than `older`; then, while the store is larger than `size`,
    /// those that took the fewest seconds a byte. Where neither is said, no result. Removes it where `really`.
    pub fn collect(&self, older: Option<Duration>, size: Option<u64>, really: bool) -> Result<Garbage> {
        let (needed, dead_pins) = self.pinned();
        let mut garbage = Garbage { leftovers: dead_pins, ..Garbage::default() };
        let all = self.manifests();
        garbage.total = all.iter().map(|manifest| manifest.bytes).sum();
        let free = all.into_iter().filter(|manifest| !needed.contains(&manifest.fingerprint));
        let unused = |manifest: &Manifest| {
            let used = age(&self.folder(&manifest.fingerprint).join(MANIFEST));
            older.is_none_or(|older| used.is_some_and(|used| used > older))
        };
        let mut candidates: Vec<Manifest> = free.filter(unused).collect();
        let dear = |manifest: &Manifest| manifest.seconds / manifest.bytes.max(1) as f64;
        candidates.sort_by(|a, b| dear(a).total_cmp(&dear(b)).then(a.finished.cmp(&b.finished)));
        for manifest in candidates {
            let over = size.is_some_and(|size| garbage.total - garbage.bytes > size);
            if over || (size.is_none() && older.is_some()) {
                garbage.bytes += manifest.bytes;
                garbage.results.push(manifest);
            }
        }
        garbage.leftovers.extend(self.leftovers(&needed));
        if really {
            for manifest in &garbage.results {
                // Asked again: a run may have begun meanwhile. What it finds missing all the same, it makes again.
                if !self.pinned().0.contains(&manifest.fingerprint) {
                    self.remove(&manifest.fingerprint)?;
                }
            }
            for path in &garbage.leftovers {
                // Another collection may have been faster.
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
            self.drop_dead_claims();
        }
        Ok(garbage)
    }

    /// Files of runs that died: half-written results, checkpoints that nobody will go on from, what was put aside long ago.
    fn leftovers(&self, needed: &BTreeSet<String>) -> Vec<PathBuf> {
        let old = |path: &PathBuf, limit: Duration| age(path).is_some_and(|age| age > limit);
        let mut found: Vec<PathBuf> =
            list(&self.root().join("temp")).into_iter().filter(|path| old(path, YOUNG)).collect();
        found.extend(list(&self.root().join("quarantine")).into_iter().filter(|path| old(path, QUARANTINE)));
        for path in list(&self.root().join("partial")) {
            let stem = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let done = self.status(&stem).is_some();
            let stray = path.extension().is_none_or(|extension| extension != "checkpoint") && old(&path, YOUNG);
            if !needed.contains(&stem) && (done || stray) {
                found.push(path);
            }
        }
        found
    }

    /// Out of sight in one step, then gone.
    fn remove(&self, fingerprint: &str) -> Result<()> {
        let folder = self.folder(fingerprint);
        let temp = self.root().join("temp");
        let to = tempfile::Builder::new().prefix("gone-").tempdir_in(&temp).map_err(Error::io("create", &temp))?;
        match fs::rename(&folder, to.path().join("result")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", &folder)(error)),
        }
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// Since a file was last touched.
fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()?.elapsed().ok()
}
