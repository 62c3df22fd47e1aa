//! What a model was trained on must be what it meets: an original trained on other images, or an oracle that kept other
//! images than this split forgets, would make every number about forgetting wrong.

use std::collections::BTreeMap;

use petgraph::graph::{DiGraph, NodeIndex};

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
