//! Claims: who computes a stage now. A file made by exclusive creation, holding host boot, process and its start, and
//! touched as a heartbeat. A holder that died on this host is taken over at once, elsewhere once its heartbeat lapses.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Store;
use crate::error::{Error, Result};

/// A heartbeat older than this is a dead holder's, where the process itself cannot be asked after.
const LAPSE: Duration = Duration::from_secs(120);

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
}

impl Drop for Claim {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.mine) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Claims a stage; where a living run holds it, says who: "process 123".
    pub fn claim(&self, fingerprint: &str) -> Result<std::result::Result<Claim, String>> {
        let path = self.root().join("claims").join(fingerprint);
        let mine = identity(std::process::id());
        for _ in 0..3 {
            // The words are written first and linked into place, so no one ever reads an empty claim.
            let parent = path.parent().unwrap_or(Path::new(".")).to_owned();
            let temp = tempfile::NamedTempFile::new_in(&parent).map_err(Error::io("claim a stage in", &parent))?;
            fs::write(temp.path(), &mine).map_err(Error::io("write", temp.path()))?;
            match fs::hard_link(temp.path(), &path) {
                Ok(()) => return Ok(Ok(Claim { path, mine })),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("claim", &path)(error)),
            }
            let Ok(holder) = fs::read_to_string(&path) else { continue };
            if alive(&holder, &path) {
                let process = holder.lines().nth(1).unwrap_or("unknown").to_owned();
                return Ok(Err(format!("process {process}")));
            }
            // Take the dead claim away under a name of our own, and look at what was taken: another run may have been
            // faster and put a living claim in its place.
            let taken = path.with_extension(format!("dead-{}", std::process::id()));
            if fs::rename(&path, &taken).is_ok() {
                let text = fs::read_to_string(&taken).unwrap_or_default();
                if text != holder {
                    let _ = fs::hard_link(&taken, &path);
                }
                let _ = fs::remove_file(&taken);
            }
        }
        Ok(Err("another process".to_owned()))
    }
}

/// Boot, process and when it started: three lines that no other process ever has.
fn identity(process: u32) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{}\n{process}\n{}", boot.trim(), start_of(process).unwrap_or_default())
}

/// The 22nd field of /proc/PID/stat: start in ticks since boot.
fn start_of(process: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

fn alive(holder: &str, path: &Path) -> bool {
    let process = holder.lines().nth(1).and_then(|line| line.parse().ok());
    let boot = |text: &str| text.lines().next().map(str::to_owned).filter(|boot| !boot.is_empty());
    let here = identity(std::process::id());
    if let (Some(process), Some(theirs)) = (process, boot(holder))
        && boot(&here) == Some(theirs)
    {
        return start_of(process).is_some() && identity(process) == holder;
    }
    let beat = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    beat.and_then(|beat| beat.elapsed().ok()).is_none_or(|age| age < LAPSE)
}
