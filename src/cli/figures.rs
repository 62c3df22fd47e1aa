//! `recant figures`: what metrics have to show, as pictures and as data.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use petgraph::graph::NodeIndex;
use serde_json::json;

use super::{Common, planned, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, plural};
use crate::kind::Kind;
use crate::metric::figure::Figure;
use crate::output::write;
use crate::plan::Plan;
use crate::plot::svg;
use crate::store::Store;

/// The figures of scores; none where they are not there yet.
pub(super) fn figures_of(plan: &Plan, node: NodeIndex, store: &Store) -> Result<Vec<Figure>> {
    let step = plan.step(node);
    if step.makes != Kind::Scores || store.status(&step.fingerprint).is_none() {
        return Ok(Vec::new());
    }
    match store.load(&step.fingerprint, None)? {
        Artifact::Scores(scores) if !scores.record["figures"].is_null() => {
            serde_json::from_value(scores.record["figures"].clone())
                .map_err(|error| Error::invalid(format!("the figures of `{}` cannot be read: {error}", step.name)))
        }
        _ => Ok(Vec::new()),
    }
}

/// The row that scores are of, from the role in which a table reads them.
pub(super) fn label(role: &str) -> &str {
    role.strip_prefix("scores[").and_then(|rest| rest.strip_suffix(']')).unwrap_or(role)
}

/// What scores are called: the row of the first table that reads them, or their own stage.
fn named(plan: &Plan, node: NodeIndex) -> String {
    let reader = plan.consumers(node).next();
    let role = reader.and_then(|reader| plan.inputs(reader).find(|(_, input)| *input == node));
    role.map_or_else(|| plan.step(node).name.clone(), |(role, _)| label(role).to_owned())
}

/// Without what file systems and shells take amiss, and unlike all before.
fn file_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "._=-".contains(c) { c } else { '-' };
    let base: String = name.chars().map(safe).collect();
    let base = base.trim_matches(['-', '.']);
    let mut wanted = base.to_owned();
    let mut number = 2;
    while !taken.insert(wanted.clone()) {
        wanted = format!("{base}-{number}");
        number += 1;
    }
    wanted
}

pub(super) fn figures(path: &Path, names: &[String], folder: &Path, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let asked = if names.is_empty() { Vec::new() } else { plan.targets(names)? };
    // Scores are asked for by their own name, by that of their model or by that of a table that reads them.
    let wanted = |node: NodeIndex| {
        let model = plan.inputs(node).filter(|(role, _)| *role == "model").map(|(_, input)| input);
        names.is_empty() || model.chain(plan.consumers(node)).chain([node]).any(|node| asked.contains(&node))
    };
    std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    let (mut taken, mut count) = (BTreeSet::new(), 0);
    for &node in plan.order.iter().filter(|&&node| plan.step(node).makes == Kind::Scores && wanted(node)) {
        let figures = figures_of(&plan, node, &store)?;
        let name = named(&plan, node);
        let base = file_name(&name, &mut taken);
        for figure in figures {
            let data = serde_json::to_string(&figure).map_err(|error| Error::invalid(error.to_string()))?;
            let picture = svg(&figure, &format!("{}: {name}", figure.title));
            for (end, text) in [("svg", picture), ("json", data + "\n")] {
                let file = folder.join(format!("{base}.{}.{end}", figure.name));
                write(&file, |out| out.write_all(text.as_bytes()).map_err(Error::io("write", &file)))?;
                if common.json {
                    let (stage, file) = (&plan.step(node).name, file.display().to_string());
                    say(&json!({ "event": "figure", "stage": stage, "figure": figure.name, "file": file }).to_string());
                }
            }
            count += 1;
        }
    }
    if count == 0 {
        let what = "there are no figures: have metrics with figures, as `confusion`, measured by `recant run` first";
        return Err(Error::invalid(what));
    }
    if !common.json {
        say(&format!("{} in {}, as SVG and as JSON", plural(count, "figure"), folder.display()));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_safe_and_unlike() {
        let mut taken = BTreeSet::new();
        let mut name = |name: &str| file_name(name, &mut taken);
        assert_eq!(name("scrub[seed=0,lr=0.1]"), "scrub-seed=0-lr=0.1");
        assert_eq!(name("scrub-seed=0-lr=0.1"), "scrub-seed=0-lr=0.1-2");
        assert_eq!(name("../../etc/passwd"), "etc-passwd");
        assert_eq!(label("scores[scrub[seed=0]]"), "scrub[seed=0]");
    }
}
