//! Looks at all that a store has.

use std::path::Path;

use super::files::{list, name};
use super::{ARTIFACT, Store};
use crate::error::{Error, Result};

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Results that are what was written.
    pub sound: usize,
    /// In words: what was not, and is put aside.
    pub damaged: Vec<String>,
}

impl Store {
    /// Checks the digests of all results and checkpoints, the history and the format; what is damaged is put aside.
    pub fn verify(&self) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let objects = self.root().join("objects");
        for shard in list(&objects).map_err(Error::io("read", &objects))? {
            let linked = shard.is_symlink();
            let Some(results) = list(&shard).ok().filter(|_| !linked) else {
                // A file, a folder that nobody may read, or a link, behind which lies something of somebody else's.
                verdict.damaged.extend(self.move_aside(&shard, &name(&shard)));
                continue;
            };
            for folder in results {
                let fingerprint = name(&folder);
                if self.is_sound(&fingerprint) {
                    verdict.sound += 1;
                } else {
                    verdict.damaged.extend(self.move_aside(&folder, &fingerprint));
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
