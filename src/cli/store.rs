//! `recant store`.

use std::path::Path;

use super::{StoreAction, say};
use crate::error::{Result, plural};
use crate::store::Store;

pub(super) fn look_after(action: &StoreAction, folder: Option<&Path>) -> Result<u8> {
    let store = Store::open(folder)?;
    match action {
        StoreAction::Verify => {
            let (sound, damaged) = store.verify();
            say(&format!("{} sound, {} damaged", plural(sound, "result"), damaged.len()));
            for print in &damaged {
                say(&format!("  {print} was damaged and is put aside"));
            }
            Ok(if damaged.is_empty() { 0 } else { 3 })
        }
        StoreAction::Size => {
            let all = store.manifests();
            for manifest in &all {
                let (print, bytes) = (&manifest.fingerprint, manifest.bytes as f64 / 1e6);
                say(&format!("{print}  {bytes:>9.3} MB  {:>8.1} s  {}", manifest.seconds, manifest.stage));
            }
            let total = all.iter().map(|manifest| manifest.bytes).sum::<u64>() as f64 / 1e6;
            say(&format!("{} in {}, {total:.3} MB", plural(all.len(), "result"), store.root().display()));
            Ok(0)
        }
    }
}
