//! Claims: who computes a stage now. A file made by exclusive creation, holding host, boot, process namespace, process
//! and its start, and touched as a heartbeat. A holder that died beside us is taken over at once; one that cannot be
//! asked after (another host, another container) once its heartbeat has stood still for a while by our own clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::Store;
use super::fault::{self, point};
use super::files::{beat_of, link, list, name, overwrite, touch, words_of};
use super::who::Who;
use crate::error::{Error, Result};

/// A take-over lasts an instant; one that left its mark for so long died in it.
const TAKING: Duration = Duration::from_secs(10);

/// A heartbeat that stands still for so long is a dead holder's.
#[must_use]
pub fn lapse() -> Duration {
    let said = fault::setting("RECANT_LAPSE").and_then(|said| said.parse().ok());
    said.map_or(Duration::from_secs(120), Duration::from_millis)
}

/// Between two heartbeats.
#[must_use]
pub fn beat() -> Duration {
    lapse() / 24
}

/// The right to compute one stage; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    mine: String,
}

impl Claim {
    /// Shows that the holder lives.
    pub fn beat(&self) {
        touch(&self.path);
    }

    /// Shows so while the work is done.
    pub(super) fn beating<T>(&self, work: impl FnOnce() -> T) -> T {
        let (done, over) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while over.recv_timeout(beat()) == Err(RecvTimeoutError::Timeout) {
                    self.beat();
                }
            });
            let made = work();
            drop(done);
            made
        })
    }

    /// Whether it still is ours: one who stood still for long may have been taken over.
    pub(super) fn holds(&self) -> bool {
        words_of(&self.path).is_ok_and(|words| words == self.mine)
    }

    /// Says how far the work is, for those who wait.
    pub fn tell(&self, done: usize, total: usize) {
        // A torn or missing line is a missing courtesy, nothing more.
        let _ = overwrite(&progress_of(&self.path), &format!("{done} of {total}")).and_then(|()| point("claim.told"));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.holds() {
            let _ = fs::remove_file(progress_of(&self.path));
            let _ = point("claim.untold");
            let _ = fs::remove_file(&self.path);
            let _ = point("claim.dropped");
        }
    }
}

fn progress_of(claim: &Path) -> PathBuf {
    claim.with_extension("progress")
}

/// What one who waits remembers of a holder: its heartbeat, and since when it stands still; and the same of the mark of
/// a take-over.
#[derive(Debug)]
pub struct Watch {
    lapse: Duration,
    last: Option<(SystemTime, Instant)>,
    mark: Option<(SystemTime, Instant)>,
}

impl Watch {
    #[must_use]
    pub fn new(lapse: Duration) -> Self {
        Self { lapse, last: None, mark: None }
    }
}

/// Whether the heartbeat of this file moved within the lapse, by our own clock: clocks of hosts differ.
fn beats(last: &mut Option<(SystemTime, Instant)>, path: &Path, lapse: Duration) -> bool {
    let Some(beat) = beat_of(path) else { return true };
    match last {
        Some((known, since)) if *known == beat => since.elapsed() < lapse,
        _ => {
            *last = Some((beat, Instant::now()));
            true
        }
    }
}

impl Store {
    /// Claims a stage; where a living run holds it, says who and how far it is: "process 123 on zeus, 40 of 900".
    pub fn claim(&self, fingerprint: &str, watch: &mut Watch) -> Result<std::result::Result<Claim, String>> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.root().join("claims").join(fingerprint);
        // No two claims are alike, even of one process.
        let mine = format!("{}\n{}", Who::me().words(), COUNT.fetch_add(1, Ordering::Relaxed));
        for _ in 0..3 {
            if !path.exists() && link(self, &path, &mine, "claim")? {
                let claim = Claim { path, mine };
                point("claim.linked").map_err(Error::io("claim", &claim.path))?;
                return Ok(Ok(claim));
            }
            let Ok(words) = words_of(&path) else { continue };
            let holder = Who::from_words(&words);
            if holder.lives().unwrap_or_else(|| beats(&mut watch.last, &path, watch.lapse)) {
                let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
                let at = words_of(&progress_of(&path)).map_or(String::new(), |at| format!(", {at}"));
                return Ok(Err(format!("process {} on {}{at}", known(&holder.process), known(&holder.host))));
            }
            self.take_away(&path, &words, &mut watch.mark)?;
        }
        Ok(Err("another process".to_owned()))
    }

    /// Claims a stage once nobody else holds it; none where that is of no use any more, or takes longer than to take over from
    /// one who died, whose taker died.
    pub(super) fn claim_unless(&self, fingerprint: &str, useless: impl Fn() -> bool) -> Result<Option<Claim>> {
        let (mut watch, begun) = (Watch::new(lapse()), Instant::now());
        loop {
            match self.claim(fingerprint, &mut watch)? {
                Ok(claim) => return Ok(Some(claim)),
                Err(_) if useless() || begun.elapsed() > lapse() + beat() + 2 * TAKING => return Ok(None),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Takes a dead claim away, one taker at a time: whoever comes second finds the mark, or a claim that is not the dead
    /// one.
    fn take_away(&self, path: &Path, words: &str, seen: &mut Option<(SystemTime, Instant)>) -> Result<()> {
        let mark = path.with_extension("taking");
        if link(self, &mark, &Who::me().words(), "take over")? {
            let _ = point("take.marked");
            let same = words_of(path).is_ok_and(|now| now == words);
            let cleared = if same { self.clear(path) } else { Ok(()) };
            let _ = point("take.removed");
            let _ = fs::remove_file(&mark);
            let _ = point("take.done");
            cleared?;
        } else if let Ok(taker) = words_of(&mark) {
            if !Who::from_words(&taker).lives().unwrap_or_else(|| beats(seen, &mark, TAKING)) {
                self.clear(&mark)?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Removes a file; what is none, a folder in its place, is put aside.
    fn clear(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(_) if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) && self.aside_with(path, &name(path)) => {
                Ok(())
            }
            // In a folder that others share, it may be theirs alone to remove.
            removed => removed.map_err(Error::io("remove", path)),
        }
    }

    /// Removes the claims of the dead, with what they left beside.
    pub(super) fn drop_dead_claims(&self, now: SystemTime) -> Result<()> {
        let claims = list(&self.root().join("claims")).unwrap_or_default();
        let (beside, own): (Vec<PathBuf>, Vec<PathBuf>) = claims.into_iter().partition(|path| name(path).contains('.'));
        let stale = |path: &Path| age(path, now).is_some_and(|age| age > 10 * lapse());
        let dead = |path: &Path| {
            let words = words_of(path).ok()?;
            let lives = Who::from_words(&words).lives().unwrap_or_else(|| !stale(path));
            (!lives).then_some(words)
        };
        // Claims first, so that what lies beside a dead one is seen to have none.
        for path in own {
            if let Some(words) = dead(&path) {
                // Where it cannot be removed, it stays.
                let _ = self.take_away(&path, &words, &mut None);
                point("gc.claim").map_err(Error::io("remove", &path))?;
            }
        }
        for path in beside {
            let gone = match path.extension().and_then(|end| end.to_str()) {
                // How far the work is, of a claim that is not there.
                Some("progress") => !path.with_extension("").exists(),
                Some("taking") => dead(&path).is_some(),
                _ => stale(&path),
            };
            if gone {
                let _ = self.clear(&path);
            }
        }
        Ok(())
    }
}

/// Since a file was last touched.
pub(super) fn age(path: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(beat_of(path)?).ok()
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
        store.claim("ab", &mut Watch::new(lapse())).unwrap()
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
        let words = Who::of(child.id()).words();
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
        let mine = Who::me().words();
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
        let mut watch = Watch::new(Duration::from_secs(100));
        let later = |watch: &mut Watch, seconds: u64| later(&mut watch.last, seconds);
        assert!(store.claim("ab", &mut watch).unwrap().is_err());
        later(&mut watch, 60);
        fs::File::options().append(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
        assert!(store.claim("ab", &mut watch).unwrap().is_err());
        later(&mut watch, 60);
        assert!(store.claim("ab", &mut watch).unwrap().is_err(), "it moved meanwhile");
        later(&mut watch, 60);
        assert!(store.claim("ab", &mut watch).unwrap().is_ok());
    }

    fn later(slot: &mut Option<(SystemTime, Instant)>, seconds: u64) {
        let (beat, since) = slot.unwrap();
        *slot = Some((beat, since.checked_sub(Duration::from_secs(seconds)).unwrap()));
    }

    /// Damaged, or put there by somebody else: nobody can be asked after, but it does not stand for ever.
    #[test]
    fn a_claim_that_cannot_be_read_is_a_dead_ones_once_it_stands_still() {
        let ways: [fn(&Path); 4] = [
            |path| fs::write(path, b"\xff\xfe").unwrap(),
            |path| fs::write(path, b"").unwrap(),
            |path| fs::create_dir_all(path.join("in")).unwrap(),
            |path| std::os::unix::fs::symlink("/nowhere", path).unwrap(),
        ];
        for (number, way) in ways.into_iter().enumerate() {
            for name in ["ab", "ab.taking"] {
                let (_folder, store) = store();
                let path = store.root().join("claims").join(name);
                way(&path);
                if name != "ab" {
                    // A claim of the dead, whose taker died too.
                    fs::write(store.root().join("claims/ab"), "").unwrap();
                }
                let mut watch = Watch::new(lapse());
                assert!(store.claim("ab", &mut watch).unwrap().is_err(), "{number} {name}");
                later(&mut watch.last, 200);
                if name != "ab" {
                    assert!(store.claim("ab", &mut watch).unwrap().is_err(), "{number} {name}");
                    later(&mut watch.mark, 200);
                }
                assert!(store.claim("ab", &mut watch).unwrap().is_ok(), "{number} {name}");
                let left = fs::read_dir(store.root().join("claims")).unwrap().count();
                assert_eq!(left, 0, "{number} {name}");
            }
        }
    }
}
