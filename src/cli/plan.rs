//! `recant plan`: what would run, and why.

use std::path::Path;

use serde_json::json;

use super::{Common, planned, say};
use crate::error::{Result, plural};
use crate::execute::past::Past;
use crate::plan::{Step, differences};
use crate::recipe::Recipe;
use crate::store::{Manifest, size};

pub(super) fn plan(path: &Path, common: &Common, check: bool) -> Result<u8> {
    let (recipe, plan, store) = planned(path, common)?;
    let targets = plan.targets(&[])?;
    let needed = plan.needed(&targets, &|step: &Step| store.status(&step.fingerprint).is_some());
    let past = Past::of(&store);
    let mut lines = vec![format!("{}: {}", recipe.name, plural(plan.order.len(), "stage"))];
    let (mut running, mut unknown, mut seconds) = (0, 0, 0.0);
    let longest = plan.order.iter().map(|&node| plan.step(node).name.chars().count()).max().unwrap_or(0);
    let width = longest.clamp(12, 60);
    for &node in &plan.order {
        let step = plan.step(node);
        let there = store.status(&step.fingerprint);
        let does = match (&there, needed.contains(&node)) {
            (Some(_), _) => "cached",
            (None, false) => "unused",
            (None, true) => "run",
        };
        let half_done = if does == "run" { store.checkpoint(&step.fingerprint).ok().flatten() } else { None };
        let does = if half_done.is_some() { "resume" } else { does };
        let nearest = past.nearest(step);
        let why = match (does, nearest) {
            ("cached" | "unused", _) => String::new(),
            ("resume", _) => {
                let step = half_done.map(|checkpoint| checkpoint.record["step"].to_string());
                format!("goes on after step {}", step.unwrap_or_default())
            }
            (_, Some(old)) => changes(&recipe, step, old).join("; "),
            (_, None) => "new".to_owned(),
        };
        let took = there.as_ref().or(nearest).map(|manifest| manifest.seconds);
        if does == "run" || does == "resume" {
            running += 1;
            seconds += took.unwrap_or(0.0);
            unknown += usize::from(took.is_none());
        }
        if common.json {
            say(&json!({ "stage": step.name, "fingerprint": step.fingerprint, "does": does, "why": why,
                "seconds": took, "fields": step.fields })
            .to_string());
        }
        let took = took.map_or(String::new(), |took| format!("{took:.1} s"));
        lines.push(format!("  {does:<7} {:<width$} {took:>9}  {why}", step.name).trim_end().to_owned());
    }
    let estimate = match (running - unknown, unknown) {
        (0, _) => String::new(),
        (_, 0) => format!(", about {seconds:.1} s by past runs"),
        (_, new) => format!(", about {seconds:.1} s by past runs and {} that never ran", plural(new, "stage")),
    };
    let room = match (past.room(&plan, &needed), store.free()) {
        ((_, 0), _) | (_, None) => String::new(),
        ((bytes, _), Some(free)) => format!(", {} on disk of {} free", size(bytes), size(free)),
    };
    lines.push(format!("{running} to run{estimate}{room}; nothing was executed"));
    if !common.json {
        say(&lines.join("\n"));
    }
    Ok(if check && running > 0 { 10 } else { 0 })
}

/// What differs from an earlier result, with the place where a setting was set.
pub(super) fn changes(recipe: &Recipe, step: &Step, old: &Manifest) -> Vec<String> {
    let under = |table: &str, key: &str| recipe.resolved.get(table).and_then(|node| node.get(key));
    let placed = |change: String| {
        let setting = change.split(' ').next().unwrap_or_default();
        let found = under("stages", &step.base).and_then(|own| own.get(setting)).or_else(|| under("defaults", setting));
        match found {
            Some(node) => format!("{change} ({})", node.place),
            None => change,
        }
    };
    differences(&old.fields, &step.fields, &step.defaults).into_iter().map(placed).collect()
}
