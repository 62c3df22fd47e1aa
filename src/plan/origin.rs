//! What a model was trained on must be what it meets: an original trained on other images, or an oracle that kept other
//! images than this split forgets, would make every number about forgetting wrong.

use std::collections::BTreeMap;

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::Step;
use super::fits::input;
use crate::error::Mistake;
use crate::kind::Kind;

/// Complaints about steps that put a model and a split together that have nothing to do with each other.
pub(super) fn mistakes(plan: &DiGraph<Step, String>) -> Vec<Mistake> {
    let input = |node: NodeIndex, role: &str| input(plan, node, role);
    // Nodes stand after their inputs: the origin of what a model was made from is known.
    let mut origins: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
    let mut mistakes: Vec<Mistake> = Vec::new();
    for node in plan.node_indices() {
        let model = input(node, "model");
        let origin = model.and_then(|model| origins.get(&model).copied());
        if plan[node].makes == Kind::Model
            && let Some(own) = origin.or_else(|| input(node, "trained_on")).or_else(|| input(node, "data"))
        {
            origins.insert(node, own);
        }
        let (Some(model), Some(origin), Some(data)) = (model, origin, input(node, "data")) else { continue };
        if plan[data].makes != Kind::Split {
            continue;
        }
        let (model, trained, met) = (&plan[model], &plan[origin], &plan[data]);
        let fits = match trained.makes {
            Kind::Images => input(data, "data") == Some(origin),
            _ => origin == data,
        };
        if !fits {
            let what =
                format!("`{}` was trained on `{}`, but meets the split `{}`", model.name, trained.name, met.name);
            let label = match trained.makes {
                Kind::Images => "a split of other images",
                _ => "another split: it would have seen what this one forgets",
            };
            let mistake = Mistake::at(&plan[node].place, what).label(label);
            mistakes.push(mistake.related(&model.place, format!("`{}` is declared here", model.base)));
        }
    }
    mistakes
}

/// A table measures against a model that never saw what is to be forgotten: an error where its reference was trained on
/// all images, or on those to forget.
pub(super) fn oracle(plan: &DiGraph<Step, String>, node: NodeIndex) -> Option<Mistake> {
    let settings = plan[node].settings.get("measured").filter(|_| plan[node].kind.collects)?;
    let rows = settings.as_array()?.iter();
    // The row of a reference names itself.
    let mut own = rows.filter(|row| row["name"] == row["reference"]).filter_map(|row| row["name"].as_str());
    let edges = plan.edges_directed(node, Direction::Incoming);
    let scores: BTreeMap<&str, NodeIndex> = edges.map(|edge| (edge.weight().as_str(), edge.source())).collect();
    own.find_map(|row| {
        let model = input(plan, *scores.get(format!("scores[{row}]").as_str())?, "model")?;
        let (seen, what) = seen(plan, model)?;
        let (name, seen) = (&plan[model].name, &plan[seen]);
        let mistake = Mistake::at(&plan[node].place, format!("the reference `{name}` has seen the forget set"))
            .label(format!("`{name}` was trained on {what} `{}`", seen.name))
            .help("measure against a model that is retrained without it: `data` the split, `on = \"retain\"`");
        Some(mistake.related(&plan[model].place, format!("`{}` is declared here", plan[model].base)))
    })
}

/// What a model was first trained on, where images to forget are among it.
fn seen(plan: &DiGraph<Step, String>, mut node: NodeIndex) -> Option<(NodeIndex, &'static str)> {
    while let Some(from) = input(plan, node, "model") {
        node = from;
    }
    let data = input(plan, node, "trained_on").or_else(|| input(plan, node, "data"))?;
    match plan[data].makes {
        Kind::Images => Some((data, "all of")),
        _ if plan[node].settings.get("on").is_some_and(|on| on == "forget") => Some((data, "the forget set of")),
        _ => None,
    }
}
