//! Looks at all that a store has.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::files::{list, name, touch};
use super::{ARTIFACT, Store};
use crate::error::{Error, Result};

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Results that are what was written.
    pub sound: usize,
    /// In words: what was not, and is put aside.
    pub damaged: Vec<String>,
    /// Results that were not looked at, as the time was up.
    pub left: usize,
}

/// Results looked at side by side; between them it is asked whether the time is up.
const SIDE_BY_SIDE: usize = 64;

impl Store {
    /// Checks the digests of all results and checkpoints, the history and the format; what is damaged is put aside. With
    /// a limit, results in the order of their last look, as long as there is time: again and again, it gets to all.
    /// The time of change of a result's file is when its bytes were last known to be right.
    pub fn verify(&self, limit: Option<Duration>) -> Result<Verdict> {
        let begun = Instant::now();
        let mut verdict = Verdict::default();
        let mut results = Vec::new();
        let objects = self.root().join("objects");
        for shard in list(&objects).map_err(Error::io("read", &objects))? {
            match list(&shard) {
                Ok(folders) => results.extend(folders),
                // A file, or a folder that nobody may read: either way nothing of ours.
                Err(_) => verdict.damaged.extend(self.move_aside(&shard, &name(&shard))),
            }
        }
        if limit.is_some() {
            results
                .sort_by_cached_key(|folder| fs::metadata(folder.join(ARTIFACT)).and_then(|file| file.modified()).ok());
        }
        for (number, folders) in results.chunks(SIDE_BY_SIDE).enumerate() {
            if limit.is_some_and(|limit| begun.elapsed() >= limit) {
                verdict.left = results.len() - number * SIDE_BY_SIDE;
                break;
            }
            let sound: Vec<bool> = folders.par_iter().map(|folder| self.is_sound(&name(folder))).collect();
            for (folder, sound) in folders.iter().zip(sound) {
                if sound {
                    touch(&folder.join(ARTIFACT));
                    verdict.sound += 1;
                } else {
                    verdict.damaged.extend(self.move_aside(folder, &name(folder)));
                }
            }
        }
        for path in list(&self.root().join("partial")).unwrap_or_default() {
            let Some(fingerprint) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else { continue };
            if path.extension().is_some_and(|end| end == "checkpoint") && self.checkpoint(&fingerprint).is_err() {
                verdict.damaged.extend(self.move_aside(&path, &name(&path)));
            }
        }
        let lines = self.mend_history()?;
        if lines > 0 {
            verdict.damaged.push(format!("runs.jsonl ({})", crate::error::plural(lines, "line")));
        }
        if self.mend_format()? {
            verdict.damaged.push("format".to_owned());
        }
        Ok(verdict)
    }

    /// Whether a result's bytes are what its manifest says.
    pub(super) fn is_sound(&self, fingerprint: &str) -> bool {
        let digest = || Self::digest_of(&self.folder(fingerprint).join(ARTIFACT)).ok();
        self.status(fingerprint).is_some_and(|manifest| digest().is_some_and(|digest| digest == manifest.digest))
    }

    /// What to say of something damaged; nothing where it is gone meanwhile.
    fn move_aside(&self, path: &Path, name: &str) -> Option<String> {
        if path.symlink_metadata().is_err() {
            return None;
        }
        Some(if self.aside_with(path, name) { name.to_owned() } else { format!("{name} (cannot be moved)") })
    }
}
