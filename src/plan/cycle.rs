//! Stages that wait for each other, as a path with the places that make it.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::draft::Draft;
use crate::error::{Error, Mistake};

/// Stages of a cycle that are named.
const SHOWN: usize = 50;

pub(super) fn cycle(graph: &DiGraph<usize, String>, drafts: &[Draft]) -> Error {
    let turning = |component: &Vec<NodeIndex>| {
        component.len() > 1 || component.first().is_some_and(|&node| graph.contains_edge(node, node))
    };
    // Kosaraju's way has no recursion: a cycle may be long.
    let mut component = kosaraju_scc(graph).into_iter().find(turning).unwrap_or_default();
    component.sort();
    let Some(&start) = component.first() else { return Error::invalid("the stages wait for each other") };
    // Walk along edges inside the component until a stage comes round again.
    let (mut path, mut places) = (vec![start], BTreeMap::from([(start, 0)]));
    loop {
        let here = path[path.len() - 1];
        let inside = |node: &NodeIndex| component.binary_search(node).is_ok();
        let next = graph.neighbors(here).filter(inside).min().unwrap_or(start);
        if let Some(&position) = places.get(&next) {
            path.drain(..position);
            break;
        }
        places.insert(next, path.len());
        path.push(next);
    }
    let name = |node: NodeIndex| drafts[graph[node]].name.as_str();
    let mut names: Vec<&str> = path.iter().map(|&node| name(node)).collect();
    let inside: BTreeSet<&str> = names.iter().copied().collect();
    let first = names[0];
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("..");
    }
    names.push(first);
    let what = format!("stages wait for each other: {}", names.join(" -> "));
    let mut mistake = Mistake::nowhere(what);
    for &node in path.iter().take(SHOWN) {
        let draft = &drafts[graph[node]];
        let input = draft.inputs.iter().find(|(_, input, _)| inside.contains(input.as_str()));
        if let Some((role, input, place)) = input {
            let words = format!("`{}` reads `{input}` as {role}", draft.name);
            if mistake.place.is_none() {
                mistake.place = Some(place.clone());
                mistake.label = words;
            } else {
                mistake = mistake.related(place, words);
            }
        }
    }
    Error::Mistakes(vec![mistake])
}
