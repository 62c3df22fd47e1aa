//! `recant store` and `recant runs`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{StoreAction, say};
use crate::error::{Error, Result, plural};
use crate::store::{Store, Verdict};

pub(super) fn look_after(action: &StoreAction, folder: Option<&Path>) -> Result<u8> {
    let store = Store::open(folder)?;
    match action {
        StoreAction::Verify { seconds } => {
            let limit = seconds.map(Duration::try_from_secs_f64).transpose();
            let limit = limit.map_err(|error| Error::Usage(format!("`--seconds`: {error}")))?;
            let Verdict { sound, damaged, left } = store.verify(limit)?;
            let rest = if left == 0 { String::new() } else { format!("; time is up, {left} were not looked at") };
            say(&format!("{} sound, {} damaged{rest}", plural(sound, "result"), damaged.len()));
            for what in &damaged {
                say(&format!("  {what} was damaged and is put aside"));
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
        StoreAction::Gc { max_size, older_than, yes, json } => {
            let size = max_size.as_deref().map(bytes).transpose()?;
            let older = older_than.as_deref().map(duration).transpose()?;
            gc(&store, older, size, *yes, *json)
        }
    }
}

fn gc(store: &Store, older: Option<Duration>, size: Option<u64>, yes: bool, as_json: bool) -> Result<u8> {
    let garbage = store.collect(older, size, yes)?;
    if as_json {
        let result = |manifest: &crate::store::Manifest| {
            json!({ "fingerprint": manifest.fingerprint, "stage": manifest.stage, "bytes": manifest.bytes,
                "seconds": manifest.seconds })
        };
        let results: Vec<Value> = garbage.results.iter().map(result).collect();
        let leftovers: Vec<String> = garbage.leftovers.iter().map(|path| path.display().to_string()).collect();
        say(&json!({ "removed": yes, "results": results, "leftovers": leftovers, "bytes": garbage.bytes,
            "total": garbage.total })
        .to_string());
        return Ok(0);
    }
    for manifest in &garbage.results {
        let bytes = manifest.bytes as f64 / 1e6;
        say(&format!("{}  {bytes:>9.3} MB  {:>8.1} s  {}", manifest.fingerprint, manifest.seconds, manifest.stage));
    }
    for path in &garbage.leftovers {
        say(&format!("left by a dead run: {}", path.display()));
    }
    say(&format!(
        "{} of {:.3} MB and {} {}; the store has {:.3} MB{}",
        plural(garbage.results.len(), "result"),
        garbage.bytes as f64 / 1e6,
        plural(garbage.leftovers.len(), "leftover"),
        if yes { "removed" } else { "would go" },
        garbage.total.saturating_sub(if yes { garbage.bytes } else { 0 }) as f64 / 1e6,
        if yes { "" } else { "; nothing was removed, say --yes" },
    ));
    Ok(0)
}

/// "10GB" in bytes.
fn bytes(text: &str) -> Result<u64> {
    let units = [("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("B", 1.0)];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let number = found.and_then(|(number, factor)| Some(number.trim().parse::<f64>().ok()? * factor));
    let number = number.filter(|bytes| bytes.is_finite() && *bytes >= 0.0);
    number
        .map(|bytes| bytes as u64)
        .ok_or_else(|| Error::Usage(format!("`--max-size {text}`: expected a size such as 500MB, 10GB or 1.5TB")))
}

/// "30d" as a duration.
fn duration(text: &str) -> Result<Duration> {
    let parsed =
        text.parse::<jiff::Span>().and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()));
    let parsed = parsed.ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| Error::Usage(format!("`--older-than {text}`: expected a time such as 30d, 12h or 90m")))
}

/// `recant runs`: the history of the store.
pub(super) fn runs(folder: Option<&Path>, as_json: bool) -> Result<u8> {
    let store = Store::open(folder)?;
    let history = store.history()?;
    for run in &history.runs {
        if as_json {
            say(&run.to_string());
            continue;
        }
        let text = |key: &str| run[key].as_str().unwrap_or("-").to_owned();
        let count = |key: &str| run[key].as_array().map_or(0, Vec::len);
        let begun = text("begun").chars().take(19).collect::<String>().replace('T', " ");
        say(&format!(
            "{begun}  {:>9.1} s  {:<24} {} ran, {} cached, {} failed, {} skipped, exit {}",
            run["seconds"].as_f64().unwrap_or(f64::NAN),
            text("name"),
            count("ran"),
            run["cached"],
            count("failed"),
            count("skipped"),
            run["exit"]
        ));
    }
    if history.damaged > 0 && !as_json {
        say(&format!("{} not what was written, and left out", plural(history.damaged, "more line")));
    }
    if history.runs.is_empty() && !as_json {
        say(&format!("nothing ran in {} yet", store.root().display()));
    }
    Ok(0)
}
