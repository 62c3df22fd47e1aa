//! Claims: who computes a stage now. A file made by exclusive creation, holding host, boot, process namespace, process
//! and its start, and touched as a heartbeat. A holder that died beside us is taken over at once; one that cannot be
//! asked after (another host, another container) once its heartbeat has stood still for a while by our own clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::Store;
use crate::error::{Error, Result};

/// A heartbeat that stands still for so long is a dead holder's.
pub const LAPSE: Duration = Duration::from_secs(120);
/// A take-over lasts an instant; one that left its mark for so long died in it.
const TAKING: Duration = Duration::from_secs(10);

/// The right to compute one stage; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    mine: String,
}

impl Claim {
    /// Shows that the holder lives.
    pub fn beat(&self) {
        if let Ok(file) = fs::File::options().append(true).open(&self.path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Says how far the work is, for those who wait.
    pub fn tell(&self, done: usize, total: usize) {
        // A torn or missing line is a missing courtesy, nothing more.
        let _ = fs::write(progress_of(&self.path), format!("{done} of {total}"));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.mine) {
            let _ = fs::remove_file(progress_of(&self.path));
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn progress_of(claim: &Path) -> PathBuf {
    claim.with_extension("progress")
}

/// What one who waits remembers of a holder: its heartbeat, and since when it stands still.
#[derive(Debug)]
pub struct Watch {
    lapse: Duration,
    last: Option<(SystemTime, Instant)>,
}

impl Watch {
    #[must_use]
    pub fn new(lapse: Duration) -> Self {
        Self { lapse, last: None }
    }

    /// Whether the heartbeat of this file moved within the lapse, by our own clock: clocks of hosts differ.
    fn beats(&mut self, path: &Path) -> bool {
        let Ok(beat) = fs::metadata(path).and_then(|meta| meta.modified()) else { return true };
        match self.last {
            Some((known, since)) if known == beat => since.elapsed() < self.lapse,
            _ => {
                self.last = Some((beat, Instant::now()));
                true
            }
        }
    }
}

impl Store {
    /// Claims a stage; where a living run holds it, says who and how far it is: "process 123 on zeus, 40 of 900".
    pub fn claim(&self, fingerprint: &str, watch: &mut Watch) -> Result<std::result::Result<Claim, String>> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.root().join("claims").join(fingerprint);
        // No two claims are alike, even of one process.
        let mine = format!("{}\n{}", identity(std::process::id()), COUNT.fetch_add(1, Ordering::Relaxed));
        for _ in 0..3 {
            if link(&path, &mine)? {
                return Ok(Ok(Claim { path, mine }));
            }
            let Ok(holder) = fs::read_to_string(&path) else { continue };
            if alive(&holder, &path, watch) {
                let line = |number: usize| holder.lines().nth(number).unwrap_or("unknown");
                let at = fs::read_to_string(progress_of(&path)).map_or(String::new(), |at| format!(", {at}"));
                return Ok(Err(format!("process {} on {}{at}", line(3), line(0))));
            }
            take_away(&path, &holder);
        }
        Ok(Err("another process".to_owned()))
    }

    /// Removes the claims of the dead. (their number)
    pub(super) fn drop_dead_claims(&self) -> usize {
        let mut dropped = 0;
        for entry in fs::read_dir(self.root().join("claims")).into_iter().flatten().flatten() {
            let path = entry.path();
            let old = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|beat| beat.elapsed().ok());
            let stale = old.is_some_and(|age| age > 10 * LAPSE);
            let dead = path.extension().is_none()
                && fs::read_to_string(&path).is_ok_and(|holder| beside_us(&holder).map_or(stale, |lives| !lives));
            let orphan = path.extension().is_some() && stale;
            if (dead || orphan) && fs::remove_file(&path).is_ok() {
                dropped += 1;
            }
        }
        dropped
    }
}

/// Puts a claim there unless there is one. The words are written first and linked into place, so no one ever reads an
/// empty claim.
fn link(path: &Path, words: &str) -> Result<bool> {
    let parent = path.parent().unwrap_or(Path::new(".")).to_owned();
    let temp = tempfile::Builder::new().prefix("new-").suffix(".claim").tempfile_in(&parent);
    let temp = temp.map_err(Error::io("claim a stage in", &parent))?;
    fs::write(temp.path(), words).map_err(Error::io("write", temp.path()))?;
    match fs::hard_link(temp.path(), path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("claim", path)(error)),
    }
}

/// Takes a dead claim away, one taker at a time: whoever comes second finds the mark, or a claim that is not the dead one.
fn take_away(path: &Path, holder: &str) {
    let mark = path.with_extension("taking");
    match fs::File::create_new(&mark) {
        Ok(_) => {
            if fs::read_to_string(path).is_ok_and(|text| text == holder) {
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_file(&mark);
        }
        Err(_) => {
            let age = fs::metadata(&mark).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > TAKING) {
                let _ = fs::remove_file(&mark);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Host, boot, process namespace, process and when it started: lines that no other process ever has.
pub(super) fn identity(process: u32) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let host = read("/proc/sys/kernel/hostname");
    let boot = read("/proc/sys/kernel/random/boot_id");
    let space = fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{host}\n{boot}\n{space}\n{process}\n{}", start_of(process).unwrap_or_default())
}

/// The 22nd field of /proc/PID/stat: start in ticks since boot.
fn start_of(process: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// Whether a holder lives, where it can be asked after: same boot, same process namespace.
pub(super) fn beside_us(holder: &str) -> Option<bool> {
    let line = |text: &str, number: usize| text.lines().nth(number).map(str::to_owned).filter(|line| !line.is_empty());
    let here = identity(std::process::id());
    let same = |number: usize| line(holder, number).is_some_and(|theirs| line(&here, number) == Some(theirs));
    let process: u32 = line(holder, 3)?.parse().ok()?;
    (same(1) && same(2)).then(|| start_of(process).is_some_and(|start| line(holder, 4) == Some(start)))
}

fn alive(holder: &str, path: &Path, watch: &mut Watch) -> bool {
    beside_us(holder).unwrap_or_else(|| watch.beats(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        (folder, store)
    }

    fn claim(store: &Store) -> std::result::Result<Claim, String> {
        store.claim("ab", &mut Watch::new(LAPSE)).unwrap()
    }

    #[test]
    fn one_holds_a_claim_until_it_is_dropped() {
        let (_folder, store) = store();
        let first = claim(&store).unwrap();
        first.tell(3, 9);
        let holder = claim(&store).unwrap_err();
        assert!(holder.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        assert!(holder.ends_with(", 3 of 9"), "{holder}");
        drop(first);
        assert!(claim(&store).is_ok());
        assert_eq!(fs::read_dir(store.root().join("claims")).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_dead_holder_beside_us_is_taken_over_at_once_and_by_one_alone() {
        let (_folder, store) = store();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let words = identity(child.id());
        child.wait().unwrap();
        for _ in 0..50 {
            fs::write(store.root().join("claims/ab"), &words).unwrap();
            let claims: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| claim(&store))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
        }
    }

    #[test]
    fn a_holder_that_cannot_be_asked_after_is_dead_once_its_heart_stands_still() {
        let (_folder, store) = store();
        let mine = identity(std::process::id());
        // The number of a process that does not exist here, in another container or on another host.
        let elsewhere: Vec<String> = mine
            .lines()
            .enumerate()
            .map(|(number, line)| match number {
                2 => "pid:[1]".to_owned(),
                3 => "4000000".to_owned(),
                _ => line.to_owned(),
            })
            .collect();
        let path = store.root().join("claims/ab");
        fs::write(&path, elsewhere.join("\n")).unwrap();
        // However old the heartbeat looks: the other clock may be wrong.
        fs::File::options().append(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let mut watch = Watch::new(Duration::from_millis(80));
        assert!(store.claim("ab", &mut watch).unwrap().is_err());
        std::thread::sleep(Duration::from_millis(60));
        fs::File::options().append(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
        assert!(store.claim("ab", &mut watch).unwrap().is_err());
        std::thread::sleep(Duration::from_millis(60));
        assert!(store.claim("ab", &mut watch).unwrap().is_err(), "it moved meanwhile");
        std::thread::sleep(Duration::from_millis(60));
        assert!(store.claim("ab", &mut watch).unwrap().is_ok());
    }
}
