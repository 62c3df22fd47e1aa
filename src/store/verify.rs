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
            // Behind a link lies something of somebody else's.
            if shard.is_symlink() {
                let name = name(&shard);
                let gone = self.put_link_aside(&shard);
                verdict.damaged.push(if gone { name } else { format!("{name} (cannot be moved)") });
                continue;
            }
            match list(&shard) {
                Ok(folders) => results.extend(folders),
                // A file, or a folder that nobody may read.
                Err(error) if shard.is_dir() && error.kind() != std::io::ErrorKind::PermissionDenied => {
                    verdict.damaged.push(format!("{} (cannot be read: {error})", name(&shard)));
                }
                Err(_) => verdict.damaged.extend(self.move_aside(&shard, &name(&shard))),
            }
        }
        if limit.is_some() {
            results
                .sort_by_cached_key(|folder| fs::metadata(folder.join(ARTIFACT)).and_then(|file| file.modified()).ok());
        }
        for (number, folders) in results.chunks(SIDE_BY_SIDE).enumerate() {
            // Some are looked at in any case, or a slow disk would never let it get anywhere.
            if number > 0 && limit.is_some_and(|limit| begun.elapsed() >= limit) {
                verdict.left = results.len() - number * SIDE_BY_SIDE;
                break;
            }
            // One in the place of another is nobody's.
            let own = |folder: &Path| folder == self.folder(&name(folder));
            let seen: Vec<Option<Vec<u8>>> = folders.iter().map(|folder| self.manifest_of(&name(folder))).collect();
            let sound: Vec<bool> =
                folders.par_iter().map(|folder| own(folder) && self.is_sound(&name(folder))).collect();
            for ((folder, seen), sound) in folders.iter().zip(seen).zip(sound) {
                if sound {
                    touch(&folder.join(ARTIFACT));
                    verdict.sound += 1;
                } else if own(folder) {
                    if folder.symlink_metadata().is_err() {
                        continue;
                    }
                    let name = name(folder);
                    let stays = || folder.symlink_metadata().is_ok() && self.manifest_of(&name) == seen;
                    match self.put_damaged_aside(&name, seen.as_deref(), false) {
                        Some(true) => verdict.damaged.push(name),
                        Some(false) => verdict.damaged.push(format!("{name} (cannot be moved)")),
                        None if stays() && !self.is_sound(&name) => {
                            verdict.damaged.push(format!("{name} (another run holds it)"));
                        }
                        // A run has seen to it meanwhile.
                        None => {}
                    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::artifact::Artifact;
    use crate::kind::Kind;
    use crate::store::Manifest;

    #[test]
    fn a_part_at_a_time_gets_to_all_and_finds_what_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        let prints: Vec<String> = (0..150).map(|number| format!("{number:032x}")).collect();
        for print in &prints {
            let manifest = Manifest { fingerprint: print.clone(), makes: Some(Kind::Table), ..Manifest::default() };
            store.save(&Artifact::Table(Arc::new(json!({ "of": print }))), manifest).unwrap();
        }
        let path = |print: &String| store.folder(print).join(ARTIFACT);
        // The one that was looked at last of all.
        touch(&path(&prints[7]));
        let changed = || prints.iter().map(|print| fs::metadata(path(print)).unwrap().modified().unwrap());
        let before: Vec<_> = changed().collect();
        let verdict = store.verify(Some(Duration::ZERO)).unwrap();
        assert_eq!((verdict.sound, verdict.left), (64, 86));
        let seen: BTreeSet<usize> =
            (0..150).zip(changed()).filter(|(i, now)| before[*i] != *now).map(|(i, _)| i).collect();
        assert_eq!(seen.len(), 64);
        assert!(seen.iter().all(|&i| (0..150).all(|other| seen.contains(&other) || before[i] <= before[other])));
        let mut bytes = fs::read(path(&prints[7])).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let file = fs::File::options().write(true).open(path(&prints[7])).unwrap();
        std::io::Write::write_all(&mut &file, &bytes).unwrap();
        file.set_modified(before[7]).unwrap();
        let verdict = store.verify(Some(Duration::ZERO)).unwrap();
        assert_eq!((verdict.sound, verdict.left, verdict.damaged.len()), (64, 86, 0));
        let verdict = store.verify(Some(Duration::ZERO)).unwrap();
        assert_eq!((verdict.left, verdict.damaged.as_slice()), (22 + 64, [prints[7].clone()].as_slice()));
    }
}
