//! What a file that Recant wrote says of its network beside the tensors.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::nn::arch::Arch;

/// The entry of metadata.
pub(super) const ENTRY: &str = "recant";
/// The largest header that the format allows.
const LIMIT: u64 = 100_000_000;

/// An error where the file has a record of another network than the recipe's, or of one that sees images normalised
/// otherwise: both load without a word and answer wrongly.
pub(super) fn check(path: &Path, arch: &Arch) -> Result<()> {
    let Some(recorded) = read(path).and_then(|record| Arch::from_value(&record["arch"]).ok()) else { return Ok(()) };
    let differ = |what: &str, theirs: String, ours: String| {
        Err(Error::bad_file(path, format!("its network has {what} {theirs}, expected {ours}")))
    };
    let settings = |arch: &Arch| arch.settings().unwrap_or_default().to_string();
    if recorded.shape != arch.shape {
        return differ("the architecture", settings(&recorded), settings(arch));
    }
    for (what, theirs, ours) in [("the mean", &recorded.mean, &arch.mean), ("the deviation", &recorded.std, &arch.std)]
    {
        if theirs != ours {
            return differ(what, format!("{theirs:?}"), format!("{ours:?}, that of the data in `trained_on`"));
        }
    }
    Ok(())
}

/// The record, where there is one.
pub(crate) fn read(path: &Path) -> Option<Value> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(LIMIT)).read_to_end(&mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    serde_json::from_str(header["__metadata__"][ENTRY].as_str()?).ok()
}
