//! `recant graph`: the graph of stages as a picture.

use std::path::Path;

use super::{Common, planned, say};
use crate::error::Result;
use crate::plan::Step;

pub(super) fn graph(path: &Path, dot: bool, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let cached = |step: &Step| store.status(&step.fingerprint).is_some();
    let mut text = String::from(if dot { "digraph recipe {\n  rankdir=LR;\n" } else { "flowchart LR\n" });
    for &node in &plan.order {
        let step = plan.step(node);
        let (id, mark) = (node.index(), if cached(step) { " (cached)" } else { "" });
        text += &if dot {
            format!("  n{id} [shape=box, label={:?}];\n", format!("{}{mark}", step.name))
        } else {
            format!("  n{id}[\"{}{mark}\"]\n", step.name)
        };
    }
    for &node in &plan.order {
        for (role, input) in plan.inputs(node) {
            let (from, to) = (input.index(), node.index());
            text += &if dot {
                format!("  n{from} -> n{to} [label={role:?}];\n")
            } else {
                format!("  n{from} -->|\"{role}\"| n{to}\n")
            };
        }
    }
    say(&(text + if dot { "}" } else { "" }));
    Ok(0)
}
