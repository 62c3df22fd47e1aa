//! `recant report`, and the tables that end a run.

use std::path::Path;

use petgraph::graph::NodeIndex;
use serde_json::{Value, json};

use super::{Common, planned, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::plan::Plan;
use crate::report::{self, Format};
use crate::store::Store;

/// Prints the table of a compare step, if it is there.
pub(super) fn show(plan: &Plan, node: NodeIndex, store: &Store, format: Format, json: bool) -> Result<bool> {
    let step = plan.step(node);
    if store.status(&step.fingerprint).is_none() {
        return Ok(false);
    }
    let Artifact::Table(table) = store.load(&step.fingerprint, None)? else { return Ok(false) };
    print(plan, node, &table, store, format, json);
    Ok(true)
}

/// Prints a table, kept or not.
pub(super) fn print(plan: &Plan, node: NodeIndex, table: &Value, store: &Store, format: Format, json: bool) {
    let seconds =
        |name: &str| -> Option<f64> { store.status(&plan.named(name)?.fingerprint).map(|manifest| manifest.seconds) };
    if json {
        say(&json!({ "event": "table", "stage": plan.step(node).name, "table": table }).to_string());
    } else {
        say(&report::render(table, &seconds, format));
    }
}

pub(super) fn tables(path: &Path, format: Format, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let mut shown = false;
    for &node in plan.order.iter().filter(|&&node| plan.step(node).makes == Kind::Table) {
        shown |= show(&plan, node, &store, format, common.json)?;
    }
    if shown { Ok(0) } else { Err(Error::invalid(format!("there is no table yet: recant run {}", path.display()))) }
}
