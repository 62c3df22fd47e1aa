//! The outside files that a recipe's stages read: where they are, and their digests; data sets are fetched where that is
//! wanted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::say;
use crate::dataset::{self, Dataset};
use crate::error::{Error, Result};
use crate::event::{Event, Reporter};
use crate::fetch::{self, How};
use crate::plan::Files;
use crate::recipe::{Declared, Recipe};
use crate::store::Store;

/// Role to path and digest, for each stage. What is not at hand is fetched where there is someone to tell of it.
pub(super) fn files(
    recipe: &Recipe,
    data: &[PathBuf],
    reporter: Option<&dyn Reporter>,
) -> Result<BTreeMap<String, Files>> {
    let data = folders(data);
    let mut all = BTreeMap::new();
    // Instances of one stage read the same files.
    let mut known: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut digest = |path: &Path| -> Result<String> {
        if let Some(digest) = known.get(path) {
            return Ok(digest.clone());
        }
        let mut of_file = |path: &Path| {
            let file = std::fs::metadata(path).map_err(Error::io("open", path))?.is_file();
            // A device or a pipe may never end.
            if file { Store::digest_of(path) } else { Err(Error::bad_file(path, "it is no file, expected one")) }
        };
        let digest = if path.is_dir() { dataset::folder::digest(path, &mut of_file)? } else { of_file(path)? };
        known.insert(path.to_owned(), digest.clone());
        Ok(digest)
    };
    for stage in &recipe.stages {
        let mut files = Files::new();
        if stage.kind.name == "dataset" {
            for (number, path) in found(stage, &data, reporter)?.into_iter().enumerate() {
                let digest = digest(&path)?;
                files.insert(format!("source.{number}"), (path, digest));
            }
        } else {
            for (role, path) in &stage.files {
                let digest = digest(path)?;
                files.insert(role.clone(), (path.clone(), digest));
            }
        }
        all.insert(stage.name.clone(), files);
    }
    Ok(all)
}

/// The given folders, and the user's own; what is fetched goes into the first.
fn folders(given: &[PathBuf]) -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    given.iter().cloned().chain(own.map(|own| own.join("recant"))).collect()
}

/// The files of a data set.
fn found(stage: &Declared, data: &[PathBuf], reporter: Option<&dyn Reporter>) -> Result<Vec<PathBuf>> {
    let text = |key: &str| stage.settings.get(key).and_then(Value::as_str);
    let own = stage.files.iter().find(|(role, _)| role == "path").map(|(_, path)| path.as_path());
    let dataset = dataset::find(text("source").unwrap_or_default())?;
    let sums: Vec<String> = match stage.settings.get("sha256") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    };
    if let Some(files) = dataset.locate(own, data)? {
        if !sums.is_empty() {
            fetch::check(dataset, &files, &sums)?;
        }
        return Ok(files);
    }
    match (reporter, own, data.first()) {
        (Some(reporter), None, Some(folder)) => obtain(dataset, folder, &sums, reporter),
        _ => Err(dataset.absent(own, data)),
    }
}

fn obtain(dataset: &Dataset, folder: &Path, sha256: &[String], reporter: &dyn Reporter) -> Result<Vec<PathBuf>> {
    let stage = format!("fetch {} (MB)", dataset.name);
    let since = Instant::now();
    reporter.event(&Event::Started { stage: stage.clone(), resumed_at: None });
    let tell = |_: &str, done: u64, all: u64| {
        let (done, total) = ((done / 1_000_000) as usize, (all / 1_000_000) as usize);
        reporter.event(&Event::Progress { stage: stage.clone(), done, total, loss: None, images: 0 });
    };
    let mirror = std::env::var("RECANT_MIRROR").ok().filter(|mirror| !mirror.is_empty());
    let fetched = fetch::fetch(dataset, folder, &How { mirror: mirror.as_deref(), sha256, tell: &tell });
    reporter.event(&match &fetched {
        Ok(_) => Event::Finished { stage: stage.clone(), seconds: since.elapsed().as_secs_f64() },
        Err(error) => Event::Failed { stage: stage.clone(), error: error.to_string() },
    });
    fetched
}

/// `recant fetch`.
pub(super) fn fetch(names: &[String], data: &[PathBuf], reporter: &dyn Reporter) -> Result<u8> {
    let folders = folders(data);
    for name in names {
        let dataset = dataset::find(name)?;
        let files = match (dataset.locate(None, &folders)?, folders.first()) {
            (Some(files), _) => files,
            (None, Some(folder)) => obtain(dataset, folder, &[], reporter)?,
            (None, None) => return Err(dataset.absent(None, &folders)),
        };
        for file in files {
            say(&file.display().to_string());
        }
    }
    Ok(0)
}
