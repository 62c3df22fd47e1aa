//! `recant report`, and the tables that end a run.

use std::io::Write;
use std::path::Path;

use petgraph::graph::NodeIndex;
use serde_json::json;

use super::figures::{figures_of, label};
use super::{Common, planned, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::output::write;
use crate::plan::Plan;
use crate::report::{self, Format, Section, Sheet};
use crate::store::Store;

/// Whether a run that is asked for these stages ends in showing this one: tables, and scores that no table reads.
pub(super) fn is_result(plan: &Plan, node: NodeIndex, names: &[String]) -> bool {
    let step = plan.step(node);
    let asked = names.iter().any(|name| *name == step.name || step.aliases.contains(name));
    match step.makes {
        Kind::Table => true,
        Kind::Scores => asked || plan.consumers(node).next().is_none(),
        _ => false,
    }
}

/// A result, if it is there.
pub(super) fn kept(plan: &Plan, node: NodeIndex, store: &Store) -> Result<Option<Artifact>> {
    let print = &plan.step(node).fingerprint;
    store.status(print).map(|_| store.load(print, None)).transpose()
}

/// Prints a result, kept or not.
pub(super) fn print(plan: &Plan, node: NodeIndex, artifact: &Artifact, store: &Store, format: Format, json: bool) {
    say(&text(plan, node, artifact, store, format, json));
}

fn text(plan: &Plan, node: NodeIndex, artifact: &Artifact, store: &Store, format: Format, json: bool) -> String {
    let stage = &plan.step(node).name;
    match artifact {
        Artifact::Table(table) if json => json!({ "event": "table", "stage": stage, "table": **table }).to_string(),
        Artifact::Table(table) if format == Format::Json => table.to_string(),
        Artifact::Scores(scores) if json => {
            json!({ "event": "scores", "stage": stage, "scores": scores.record }).to_string()
        }
        Artifact::Scores(scores) if format == Format::Json => scores.record.to_string(),
        _ => sheet(plan, node, artifact, store, format).map_or(String::new(), |sheet| sheet.render(format)),
    }
}

fn sheet(plan: &Plan, node: NodeIndex, artifact: &Artifact, store: &Store, format: Format) -> Option<Sheet> {
    let seconds =
        |name: &str| -> Option<f64> { store.status(&plan.named(name)?.fingerprint).map(|manifest| manifest.seconds) };
    match artifact {
        Artifact::Table(table) => Some(report::table(table, &seconds, format)),
        Artifact::Scores(scores) => Some(report::scores(&plan.step(node).name, &scores.record)),
        _ => None,
    }
}

/// A result with the figures of its models.
fn section(plan: &Plan, node: NodeIndex, artifact: &Artifact, store: &Store) -> Result<Option<Section>> {
    let Some(sheet) = sheet(plan, node, artifact, store, Format::Html) else { return Ok(None) };
    let measured: Vec<(String, NodeIndex)> = match artifact {
        Artifact::Table(_) => plan.inputs(node).map(|(role, input)| (label(role).to_owned(), input)).collect(),
        _ => vec![(plan.step(node).name.clone(), node)],
    };
    let mut figures = Vec::new();
    for (name, node) in measured {
        figures.push((name, figures_of(plan, node, store)?));
    }
    Ok(Some(Section { name: plan.step(node).name.clone(), sheet, figures }))
}

pub(super) fn tables(path: &Path, format: Format, to: Option<&Path>, common: &Common) -> Result<u8> {
    let (recipe, plan, store) = planned(path, common)?;
    let (mut texts, mut sections) = (Vec::new(), Vec::new());
    for &node in plan.order.iter().filter(|&&node| is_result(&plan, node, &[])) {
        let Some(artifact) = kept(&plan, node, &store)? else { continue };
        if format == Format::Html && !common.json {
            sections.extend(section(&plan, node, &artifact, &store)?);
        } else {
            texts.push(text(&plan, node, &artifact, &store, format, common.json));
        }
    }
    if texts.is_empty() && sections.is_empty() {
        return Err(Error::invalid(format!("there is no table yet: recant run {}", path.display())));
    }
    if !sections.is_empty() {
        texts.push(report::page(&recipe.name, &recipe.about, &sections));
    }
    let text = texts.iter().map(|text| text.trim_end().to_owned() + "\n").collect::<Vec<_>>();
    match to {
        None => say(&text.concat()),
        Some(to) => write(to, |file| file.write_all(text.concat().as_bytes()).map_err(Error::io("write", to)))?,
    }
    Ok(0)
}
