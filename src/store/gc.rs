//! What to throw away: results that are cheap to make again first, never what a living run needs; and what dead runs
//! left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;

use super::claim::{Claim, Watch, age, lapse};
use super::fault::point;
use super::files::{link, name, plain, touch};
use super::who::{Who, writer_lives};
use super::{MANIFEST, Manifest, Store};
use crate::error::{Error, Result};

/// Leftovers younger than this may be somebody's work.
const YOUNG: Duration = Duration::from_secs(3600);
/// The claim of a collection: no two at once, and none while a run says what it will read.
const COLLECTION: &str = "collection";
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
        touch(&self.path);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = point("pin.dropped");
    }
}

impl Store {
    /// Keeps results from collection as long as the pin lives. A collection that has already chosen is waited for: what
    /// is there afterwards stays.
    pub fn pin<'a>(&self, fingerprints: impl IntoIterator<Item = &'a str>) -> Result<Pin> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let prints: Vec<&str> = fingerprints.into_iter().collect();
        let words = format!("{}\n\n{}", Who::me().words(), prints.join("\n"));
        let words = format!("{words}\n{}", blake3::hash(words.as_bytes()));
        let name = format!("run.{}.{}", Who::me().tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.root().join("pins").join(name);
        // Nobody else writes that name; one that is there is of a process that had all our numbers.
        let _ = fs::remove_file(&path);
        link(self, &path, &words, "keep from collection, in")?;
        let pin = Pin { path };
        point("pin.linked").map_err(Error::io("write", &pin.path))?;
        let mut watch = Watch::new(lapse());
        while self.root().join("claims").join(COLLECTION).exists() {
            match self.claim(COLLECTION, &mut watch)? {
                Ok(_claim) => break,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(pin)
    }

    /// What living runs and stages at work need; and the pins of the dead. An error where that cannot be known.
    fn pinned(&self, now: SystemTime) -> Result<(BTreeSet<String>, Vec<PathBuf>)> {
        let (mut needed, mut dead) = (BTreeSet::new(), Vec::new());
        let (pins, claims) = (self.root().join("pins"), self.root().join("claims"));
        for path in super::files::list(&pins).map_err(Error::io("read", &pins))? {
            let old = || age(&path, now).is_some_and(|age| age >= 10 * lapse());
            let text = match plain(&path) {
                Err(_) if path.symlink_metadata().is_err() => continue,
                read => read.ok().and_then(|bytes| String::from_utf8(bytes).ok()),
            };
            match text.as_deref().and_then(kept) {
                Some((who, prints)) if who.lives().unwrap_or_else(|| !old()) => needed.extend(prints),
                None if !old() => {
                    let why = "what it keeps from collection cannot be read: remove it once no run is at work";
                    return Err(Error::Damaged { path, why: why.to_owned() });
                }
                _ => dead.push(path),
            }
        }
        for path in super::files::list(&claims).map_err(Error::io("read", &claims))? {
            needed.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
        Ok((needed, dead))
    }

    /// Chooses what to remove: results not used for longer than `older`; then, while the store is larger than `size`,
    /// those that took the fewest seconds a byte. Where neither is said, no result. Removes it where `really`.
    pub fn collect(&self, older: Option<Duration>, size: Option<u64>, really: bool) -> Result<Garbage> {
        // While this is held, no run begins: either it sees the claim and waits, or its pin is seen here.
        let claim = if really && self.root().join("claims").is_dir() { Some(self.collection()?) } else { None };
        point("gc.claimed").map_err(Error::io("collect in", self.root()))?;
        match &claim {
            Some(claim) => claim.beating(|| self.collect_under(older, size, really, Some(claim))),
            None => self.collect_under(older, size, really, None),
        }
    }

    fn collect_under(
        &self,
        older: Option<Duration>,
        size: Option<u64>,
        really: bool,
        claim: Option<&Claim>,
    ) -> Result<Garbage> {
        let now = if really { self.now() } else { SystemTime::now() };
        if really {
            // First: the claim of a dead run must not keep what it left.
            self.drop_dead_claims(now)?;
        }
        let (needed, dead_pins) = self.pinned(now)?;
        let mut garbage = Garbage { leftovers: dead_pins, ..Garbage::default() };
        let all = self.manifests();
        garbage.total = all.iter().fold(0, |sum, manifest| manifest.bytes.saturating_add(sum));
        let free = all.into_iter().filter(|manifest| !needed.contains(&manifest.fingerprint));
        let used = |manifest: &Manifest| age(&self.folder(&manifest.fingerprint).join(MANIFEST), now);
        let unused = |manifest: &Manifest| older.is_none_or(|older| used(manifest).is_some_and(|used| used > older));
        let mut candidates: Vec<Manifest> = free.filter(unused).collect();
        let dear = |manifest: &Manifest| manifest.seconds / manifest.bytes.max(1) as f64;
        candidates.sort_by(|a, b| dear(a).total_cmp(&dear(b)).then(a.finished.cmp(&b.finished)));
        for manifest in candidates {
            let over = size.is_some_and(|size| garbage.total.saturating_sub(garbage.bytes) > size);
            if over || (size.is_none() && older.is_some()) {
                garbage.bytes = garbage.bytes.saturating_add(manifest.bytes);
                garbage.results.push(manifest);
            }
        }
        garbage.leftovers.extend(self.leftovers(&needed, now));
        if really {
            self.remove(&garbage.results, claim)?;
            for path in &garbage.leftovers {
                // Another collection may have been faster.
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                point("gc.leftover").map_err(Error::io("collect in", self.root()))?;
            }
        }
        Ok(garbage)
    }

    /// The claim of a collection, once no other collects.
    fn collection(&self) -> Result<Claim> {
        let mut watch = Watch::new(lapse());
        loop {
            match self.claim(COLLECTION, &mut watch)? {
                Ok(claim) => return Ok(claim),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Files of runs that died: half-written results, checkpoints that nobody will go on from, what was put aside long
    /// ago. The name of a file in `temp` says whose it is.
    fn leftovers(&self, needed: &BTreeSet<String>, now: SystemTime) -> Vec<PathBuf> {
        let old = |path: &PathBuf, limit: Duration| age(path, now).is_some_and(|age| age > limit);
        let dead = |path: &PathBuf| writer_lives(&name(path)).map_or_else(|| old(path, YOUNG), |lives| !lives);
        let mut found: Vec<PathBuf> = list(&self.temp()).into_iter().filter(dead).collect();
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

    /// Each out of sight in one step, then gone.
    fn remove(&self, results: &[Manifest], claim: Option<&Claim>) -> Result<()> {
        if results.is_empty() {
            return Ok(());
        }
        // One folder for all; if this process dies, it is a leftover with what is still in it.
        let gone = self.temp_folder("gone")?;
        results.par_iter().enumerate().try_for_each(|(number, manifest)| {
            if claim.is_some_and(|claim| !claim.holds()) {
                let why = "stood still for so long that another process went on without it: nothing more is removed";
                return Err(Error::invalid(format!("the collection {why}")));
            }
            let folder = self.folder(&manifest.fingerprint);
            let to = gone.path().join(number.to_string());
            match fs::rename(&folder, &to) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                moved => moved.and_then(|()| point("gc.moved")).map_err(Error::io("remove", &folder))?,
            }
            // What cannot be removed is tried again with the folder of all, and by the next collection.
            let _ = fs::remove_dir_all(&to);
            point("gc.result").map_err(Error::io("collect in", self.root()))
        })
    }
}

/// Whose pin it is, and the results that it keeps; none where it is not what was written. That of an older recant has no
/// seal, and is believed to be of the dead alone.
fn kept(words: &str) -> Option<(Who, Vec<String>)> {
    let (text, seal) = words.rsplit_once('\n')?;
    let who = Who::from_words(words);
    let sealed = blake3::hash(text.as_bytes()).to_hex().as_str() == seal;
    let old = seal.len() < 64 && who.lives() == Some(false);
    (sealed || old).then(|| (who, text.lines().skip(6).map(str::to_owned).collect()))
}

/// What cannot be looked at stays.
fn list(folder: &Path) -> Vec<PathBuf> {
    super::files::list(folder).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::artifact::Artifact;
    use crate::kind::Kind;

    const PRINTS: [&str; 2] = ["aa00", "bb00"];

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        for print in PRINTS {
            let manifest = Manifest { fingerprint: print.to_owned(), makes: Some(Kind::Table), ..Manifest::default() };
            store.save(&Artifact::Table(Arc::new(json!({ "of": print }))), manifest).unwrap();
        }
        (folder, store)
    }

    fn left(store: &Store) -> Vec<&'static str> {
        PRINTS.into_iter().filter(|print| store.status(print).is_some()).collect()
    }

    fn of_old(path: &Path) {
        let file = fs::File::open(path).unwrap();
        file.set_modified(SystemTime::now() - 20 * lapse()).unwrap();
    }

    #[test]
    fn a_pin_keeps_its_results() {
        let (_folder, store) = store();
        let pin = store.pin(["aa00"]).unwrap();
        store.collect(None, Some(0), true).unwrap();
        assert_eq!(left(&store), ["aa00"]);
        drop(pin);
        store.collect(None, Some(0), true).unwrap();
        assert!(left(&store).is_empty());
    }

    #[test]
    fn nothing_is_collected_while_a_pin_cannot_be_read() {
        let ways: [fn(&Path); 3] = [
            |path| {
                let mut bytes = fs::read(path).unwrap();
                // In the name of a result that it keeps.
                let at = bytes.windows(4).position(|word| word == b"aa00").unwrap();
                bytes[at] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            |path| fs::write(path, b"\xff").unwrap(),
            |path| {
                fs::remove_file(path).unwrap();
                symlink("/nowhere", path).unwrap();
            },
        ];
        for (number, way) in ways.into_iter().enumerate() {
            let (_folder, store) = store();
            let pin = store.pin(["aa00"]).unwrap();
            way(&pin.path);
            let error = store.collect(None, Some(0), true).unwrap_err().to_string();
            assert!(error.contains("pins/run."), "{number}: {error}");
            assert_eq!(left(&store), PRINTS, "{number}");
            if number < 2 {
                // Its run would have shown that it lives.
                of_old(&pin.path);
                store.collect(None, Some(0), true).unwrap();
                assert!(left(&store).is_empty(), "{number}");
            }
        }
        let (_folder, store) = store();
        fs::remove_dir(store.root().join("pins")).unwrap();
        fs::write(store.root().join("pins"), "").unwrap();
        assert!(store.collect(None, Some(0), true).is_err());
        assert_eq!(left(&store), PRINTS);
    }

    #[test]
    fn a_collection_that_was_taken_over_removes_nothing_more() {
        let (_folder, store) = store();
        let claim = store.collection().unwrap();
        let all = store.manifests();
        fs::write(store.root().join("claims").join(COLLECTION), "somebody else").unwrap();
        let error = store.remove(&all, Some(&claim)).unwrap_err().to_string();
        assert!(error.contains("nothing more is removed"), "{error}");
        assert_eq!(left(&store), PRINTS);
    }

    #[test]
    fn a_claim_beats_while_the_work_is_done() {
        let (_folder, store) = store();
        let claim = store.collection().unwrap();
        let path = store.root().join("claims").join(COLLECTION);
        of_old(&path);
        let begun = std::time::Instant::now();
        let moved = || age(&path, store.now()).is_some_and(|age| age < lapse());
        claim.beating(|| {
            while !moved() && begun.elapsed() < 3 * super::super::claim::beat() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(moved());
    }
}
