//! `recant graph`: the graph of stages as a picture.

use std::collections::BTreeMap;
use std::path::Path;

use petgraph::graph::NodeIndex;

use super::{Common, planned, say};
use crate::error::{Error, Result};
use crate::plan::{Plan, Step};
use crate::plot::escaped;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Picture {
    Mermaid,
    Dot,
    Svg,
}

pub(super) fn graph(path: &Path, picture: Picture, to: Option<&Path>, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let cached = |step: &Step| store.status(&step.fingerprint).is_some();
    let text = match picture {
        Picture::Mermaid => mermaid(&plan, &cached),
        Picture::Dot => dot(&plan, &cached),
        Picture::Svg => svg(&plan, &cached),
    };
    match to {
        None => say(&text),
        Some(to) => std::fs::write(to, text).map_err(Error::io("write", to))?,
    }
    Ok(0)
}

fn mermaid(plan: &Plan, cached: &dyn Fn(&Step) -> bool) -> String {
    let mut text = String::from("flowchart LR\n");
    for &node in &plan.order {
        let mark = if cached(plan.step(node)) { " (cached)" } else { "" };
        text += &format!("  n{}[\"{}{mark}\"]\n", node.index(), plan.step(node).name);
    }
    for (from, role, to) in edges(plan) {
        text += &format!("  n{} -->|\"{role}\"| n{}\n", from.index(), to.index());
    }
    text
}

fn dot(plan: &Plan, cached: &dyn Fn(&Step) -> bool) -> String {
    let mut text = String::from("digraph recipe {\n  rankdir=LR;\n");
    for &node in &plan.order {
        let mark = if cached(plan.step(node)) { " (cached)" } else { "" };
        text += &format!("  n{} [shape=box, label={:?}];\n", node.index(), format!("{}{mark}", plan.step(node).name));
    }
    for (from, role, to) in edges(plan) {
        text += &format!("  n{} -> n{} [label={role:?}];\n", from.index(), to.index());
    }
    text + "}"
}

fn edges(plan: &Plan) -> impl Iterator<Item = (NodeIndex, &str, NodeIndex)> {
    plan.order.iter().flat_map(|&node| plan.inputs(node).map(move |(role, input)| (input, role, node)))
}

/// Pixels.
const BOX_HEIGHT: f64 = 26.0;
const ROW: f64 = 38.0;
const GAP: f64 = 60.0;
const CHARACTER: f64 = 7.3;

/// Columns by the longest way from a source; in each, stages near the middle of what they read.
fn svg(plan: &Plan, cached: &dyn Fn(&Step) -> bool) -> String {
    let mut column: BTreeMap<NodeIndex, usize> = BTreeMap::new();
    for &node in &plan.order {
        let before = plan.inputs(node).filter_map(|(_, input)| column.get(&input)).max();
        column.insert(node, before.map_or(0, |before| before + 1));
    }
    let mut columns: Vec<Vec<NodeIndex>> = vec![Vec::new(); column.values().max().map_or(0, |last| last + 1)];
    for &node in &plan.order {
        columns[column[&node]].push(node);
    }
    let width = |node: NodeIndex| plan.step(node).name.chars().count() as f64 * CHARACTER + 16.0;
    let height = columns.iter().map(Vec::len).max().unwrap_or(0) as f64 * ROW + 24.0;
    let mut places: BTreeMap<NodeIndex, (f64, f64)> = BTreeMap::new();
    let mut x = 12.0;
    for nodes in &mut columns {
        let middle = |node: NodeIndex| {
            let read: Vec<f64> = plan.inputs(node).filter_map(|(_, input)| Some(places.get(&input)?.1)).collect();
            read.iter().sum::<f64>() / read.len().max(1) as f64
        };
        nodes.sort_by(|&a, &b| middle(a).total_cmp(&middle(b)).then(a.cmp(&b)));
        let top = (height - nodes.len() as f64 * ROW) / 2.0;
        for (row, &node) in nodes.iter().enumerate() {
            places.insert(node, (x, top + row as f64 * ROW));
        }
        x += nodes.iter().map(|&node| width(node)).fold(0.0, f64::max) + GAP;
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" width=\"{:.0}\" height=\"{height:.0}\" \
         font-family=\"ui-monospace, monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        x - GAP + 12.0,
        x - GAP + 12.0
    );
    for (from, role, to) in edges(plan) {
        let ((x1, y1), (x2, y2)) = (places[&from], places[&to]);
        let (x1, y1, y2) = (x1 + width(from), y1 + BOX_HEIGHT / 2.0, y2 + BOX_HEIGHT / 2.0);
        let bend = (x2 - x1) / 2.0;
        text += &format!(
            "<path d=\"M{x1:.1} {y1:.1} C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}\" fill=\"none\" stroke=\"#999\">\
             <title>{}</title></path>\n",
            x1 + bend,
            x2 - bend,
            escaped(role)
        );
    }
    for (&node, (x, y)) in &places {
        let step = plan.step(node);
        let (fill, state) = if cached(step) { ("#d8f0d8", "cached") } else { ("#f4f4f4", "to run") };
        text += &format!(
            "<g><title>{} ({}), {state}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BOX_HEIGHT}\" \
             rx=\"4\" fill=\"{fill}\" stroke=\"#555\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>\n",
            escaped(&step.name),
            step.kind.name,
            width(node),
            x + 8.0,
            y + 17.0,
            escaped(&step.name)
        );
    }
    text + "</svg>\n"
}
