//! The history of runs: a line each, sealed, added in one write.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde_json::Value;

use super::Store;
use super::fault::point;
use super::files::plain;
use crate::error::{Error, Result};

const SEAL: &str = ",\"seal\":\"";

/// What is left of the history.
#[derive(Debug, Default)]
pub struct History {
    /// Oldest first.
    pub runs: Vec<Value>,
    /// Lines that a crash tore or that something changed.
    pub damaged: usize,
    sound: Vec<String>,
}

fn seal_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

/// `{"a":1}` as `{"a":1,"seal":"0123456789abcdef"}`.
pub(crate) fn sealed(run: &Value) -> String {
    let text = run.to_string();
    let open = text.strip_suffix('}').unwrap_or(&text);
    format!("{open}{SEAL}{}\"}}", seal_of(&text))
}

/// A run, if the line is what was written. Lines of an older recant have no seal.
pub(crate) fn opened(line: &str) -> Option<Value> {
    let Some(at) = line.rfind(SEAL) else {
        let run: Value = serde_json::from_str(line).ok()?;
        // Or else the word `seal` is what was damaged.
        let old = run.as_object()?.keys().next_back()? == "version";
        return old.then_some(run);
    };
    let text = format!("{}}}", &line[..at]);
    let seal = line[at + SEAL.len()..].strip_suffix("\"}")?;
    if seal_of(&text) == seal { serde_json::from_str(&text).ok() } else { None }
}

impl Store {
    fn history_path(&self) -> PathBuf {
        self.root().join("runs.jsonl")
    }

    /// Adds a run to the history.
    pub fn log(&self, run: &Value) -> Result<()> {
        let path = self.history_path();
        let add = || {
            let mut options = fs::File::options();
            let options = options.create(true).read(true).append(true).custom_flags(libc::O_NOFOLLOW);
            let mut file = options.open(&path)?;
            point("log.opened")?;
            // A line that a crash tore must not take the next one along.
            let mut last = [b'\n'];
            if file.seek(SeekFrom::End(-1)).is_ok() {
                file.read_exact(&mut last)?;
            }
            let before = if last == [b'\n'] { "" } else { "\n" };
            // One write a line: runs that end at once do not mix theirs.
            file.write_all(format!("{before}{}\n", sealed(run)).as_bytes())?;
            point("log.written")
        };
        add().map_err(Error::io("write", &path))
    }

    /// The history, without what is damaged.
    pub fn history(&self) -> Result<History> {
        let (path, mut history) = (self.history_path(), History::default());
        let bytes = match plain(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(Error::io("read", &path))?,
        };
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match std::str::from_utf8(line).ok().and_then(|line| Some((opened(line)?, line))) {
                Some((run, line)) => {
                    history.runs.push(run);
                    history.sound.push(line.to_owned());
                }
                None => history.damaged += 1,
            }
        }
        Ok(history)
    }

    /// Puts a damaged history aside and keeps what is sound of it. (number of damaged lines)
    pub(super) fn mend_history(&self) -> Result<usize> {
        let (history, path) = (self.history()?, self.history_path());
        if history.damaged > 0 {
            let aside = self.aside("runs.jsonl")?;
            fs::hard_link(&path, &aside).map_err(Error::io("put aside", &path))?;
            point("verify.history").map_err(Error::io("put aside", &path))?;
            let text = history.sound.join("\n") + if history.sound.is_empty() { "" } else { "\n" };
            self.write_file(&path, text.as_bytes())?;
        }
        Ok(history.damaged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_history_that_is_cut_anywhere_stays_readable_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        let run = |number: usize| json!({ "begun": "now", "number": number, "recipe": "α\"b" });
        (0..5).for_each(|number| store.log(&run(number)).unwrap());
        let path = store.history_path();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            // A last line without its end of line is whole all the same.
            let ends = whole[..cut].split(|&byte| byte == b'\n').count() - 1
                + usize::from(whole[..=cut].last() == Some(&b'\n') && cut > 0);
            let torn = cut > 0 && whole[cut - 1] != b'\n' && whole[cut] != b'\n';
            let history = store.history().unwrap();
            assert_eq!((history.runs.len(), history.damaged), (ends, usize::from(torn)), "cut at {cut}");
            store.log(&run(9)).unwrap();
            let after = store.history().unwrap();
            assert_eq!((after.runs.len(), after.runs[ends]["number"].as_u64()), (ends + 1, Some(9)), "cut at {cut}");
        }
    }

    #[test]
    fn a_long_history_with_long_lines_loses_the_torn_line_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        let names: Vec<String> = (0..200).map(|stage| format!("evaluate(scrub[seed={stage}], split)")).collect();
        (0..300).for_each(|number| store.log(&json!({ "number": number, "ran": names, "version": "0" })).unwrap());
        let path = store.history_path();
        let whole = fs::read(&path).unwrap();
        let lengths: Vec<usize> = whole.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::len).collect();
        let ends: Vec<usize> =
            lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
        // Spread over all lines and over places in a line.
        for cut in (1..whole.len()).step_by(whole.len() / 97 + 1) {
            fs::write(&path, &whole[..cut]).unwrap();
            let history = store.history().unwrap();
            let begun = ends.iter().filter(|&&start| start < cut).count();
            assert_eq!(history.runs.len() + history.damaged, begun, "cut at {cut}");
            assert!(history.damaged <= 1 && history.runs.iter().zip(0..).all(|(run, number)| run["number"] == number));
        }
    }

    #[test]
    fn a_flipped_bit_of_the_history_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        store.prepare().unwrap();
        (0..3).for_each(|number| store.log(&json!({ "number": number, "exit": 0 })).unwrap());
        let path = store.history_path();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fs::write(&path, bytes).unwrap();
                let history = store.history().unwrap();
                assert!(history.damaged > 0 || at == whole.len() - 1, "bit {bit} of byte {at}");
                assert!(history.runs.iter().all(|run| run["exit"] == 0 && run["number"].as_u64() < Some(3)));
            }
        }
    }
}
