//! Stages that wait for each other, as a path with the places that make it.

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::draft::Draft;
use crate::error::{Error, Mistake};

pub(super) fn cycle(graph: &DiGraph<usize, String>, drafts: &[Draft]) -> Error {
    let turning = |component: &Vec<NodeIndex>| {
        component.len() > 1 || component.first().is_some_and(|&node| graph.contains_edge(node, node))
    };
    let mut component = tarjan_scc(graph).into_iter().find(turning).unwrap_or_default();
    component.sort();
    let Some(&start) = component.first() else { return Error::invalid("the stages wait for each other") };
    // Walk along edges inside the component until a stage comes round again.
    let mut path = vec![start];
    loop {
        let here = path[path.len() - 1];
        let next = graph.neighbors(here).filter(|node| component.contains(node)).min().unwrap_or(start);
        if let Some(position) = path.iter().position(|&node| node == next) {
            path.drain(..position);
            break;
        }
        path.push(next);
    }
    let name = |node: NodeIndex| drafts[graph[node]].name.as_str();
    let mut names: Vec<&str> = path.iter().map(|&node| name(node)).collect();
    names.push(names[0]);
    let what = format!("stages wait for each other: {}", names.join(" -> "));
    let mut mistake = Mistake::nowhere(what);
    for &node in &path {
        let draft = &drafts[graph[node]];
        let input = draft.inputs.iter().find(|(_, input, _)| path.iter().any(|&other| name(other) == input));
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
