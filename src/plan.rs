//! Recipe to plan: names resolved, kinds checked, cycles found, fingerprints computed. Pure: what lies on disk comes in
//! as digests, and whether a result is there is asked through a closure.
//!
//! A fingerprint says what was asked for: kind and method with their versions, settings that differ from their
//! defaults, the inputs' fingerprints by role, digests of outside files. Names, paths, comments, the order of keys,
//! device and threads leave no trace.

mod collected;
mod cycle;
mod draft;
mod fits;
mod origin;
mod print;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::{Value, json};

use cycle::cycle;
use draft::drafts;
use print::{defaults, own_fields};

use crate::error::{Error, Place, Result, nearest};
use crate::kind::Kind;
use crate::recipe::Recipe;
use crate::settings::Settings;
use crate::stage::StageKind;

/// Raised when fingerprints are made another way.
const EPOCH: u32 = 2;

/// What a fingerprint is made of, by name: for the fingerprint itself, for manifests and for `explain`.
pub type Fields = BTreeMap<String, Value>;

/// Outside files of a stage: role to path and content digest.
pub type Files = BTreeMap<String, (PathBuf, String)>;

/// One stage to be done.
#[derive(Debug)]
pub struct Step {
    pub name: String,
    /// What the recipe calls it, without axes.
    pub base: String,
    /// Other instances that ask for the very same thing.
    pub aliases: Vec<String>,
    /// How to run it: a table with fields of `recipe::RUN`.
    pub run: Value,
    pub kind: &'static StageKind,
    pub makes: Kind,
    pub settings: Settings,
    pub files: BTreeMap<String, PathBuf>,
    pub fields: Fields,
    /// The defaults of its settings, by name: what leaves no trace in the fields.
    pub defaults: Settings,
    /// Lower-case hex.
    pub fingerprint: String,
    pub place: Place,
}

/// The graph of steps; an edge goes from an input to what reads it and says by which role.
#[derive(Debug)]
pub struct Plan {
    pub graph: DiGraph<Step, String>,
    /// Every step after its inputs.
    pub order: Vec<NodeIndex>,
}

impl Plan {
    pub fn new(recipe: &Recipe, evaluate: &'static StageKind, files: &BTreeMap<String, Files>) -> Result<Self> {
        let drafts = drafts(recipe, evaluate)?;
        let mut graph: DiGraph<usize, String> = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..drafts.len()).map(|index| graph.add_node(index)).collect();
        let by_name: BTreeMap<&str, NodeIndex> =
            drafts.iter().map(|d| d.name.as_str()).zip(nodes.iter().copied()).collect();
        for (draft, &node) in drafts.iter().zip(&nodes) {
            for (role, input, _) in &draft.inputs {
                if let Some(&from) = by_name.get(input.as_str()) {
                    graph.add_edge(from, node, role.clone());
                }
            }
        }
        let order = toposort(&graph, None).map_err(|_| cycle(&graph, &drafts))?;
        let nothing = Files::new();
        let mut plan: DiGraph<Step, String> = DiGraph::new();
        let mut by_print: BTreeMap<String, NodeIndex> = BTreeMap::new();
        let mut placed: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
        for &node in &order {
            let draft = &drafts[graph[node]];
            let of = if draft.hidden() { &nothing } else { files.get(&draft.name).unwrap_or(&nothing) };
            let inputs: Vec<(NodeIndex, &String)> = graph
                .edges_directed(node, Direction::Incoming)
                .filter_map(|edge| Some((*placed.get(&edge.source())?, edge.weight())))
                .collect();
            let mut fields = own_fields(draft);
            fields.extend(of.iter().map(|(role, (_, digest))| (format!("file {role}"), json!(digest))));
            fields
                .extend(inputs.iter().map(|(input, role)| (format!("input {role}"), json!(plan[*input].fingerprint))));
            let text = serde_json::to_string(&(EPOCH, &fields)).map_err(|error| Error::invalid(error.to_string()))?;
            let fingerprint = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
            if let Some(&same) = by_print.get(&fingerprint) {
                plan[same].aliases.push(draft.name.clone());
                placed.insert(node, same);
                continue;
            }
            let step = plan.add_node(Step {
                name: draft.name.clone(),
                base: if draft.hidden() { draft.name.clone() } else { draft.declared.base.clone() },
                aliases: Vec::new(),
                run: Value::Object(draft.declared.run.clone()),
                kind: draft.kind,
                makes: if draft.hidden() { Kind::Scores } else { draft.declared.makes() },
                settings: draft.settings.clone(),
                files: of.iter().map(|(role, (path, _))| (role.clone(), path.clone())).collect(),
                fields,
                defaults: defaults(draft),
                fingerprint: fingerprint.clone(),
                place: draft.declared.place.clone(),
            });
            for (input, role) in inputs {
                plan.add_edge(input, step, role.clone());
            }
            by_print.insert(fingerprint, step);
            placed.insert(node, step);
        }
        let mut mistakes = origin::mistakes(&plan);
        mistakes.extend(fits::mistakes(&plan));
        if !mistakes.is_empty() {
            return Err(Error::Mistakes(mistakes));
        }
        let order = plan.node_indices().collect();
        Ok(Self { graph: plan, order })
    }

    #[must_use]
    pub fn step(&self, node: NodeIndex) -> &Step {
        &self.graph[node]
    }

    /// Inputs of a step by role.
    pub fn inputs(&self, node: NodeIndex) -> impl Iterator<Item = (&str, NodeIndex)> {
        self.graph.edges_directed(node, Direction::Incoming).map(|edge| (edge.weight().as_str(), edge.source()))
    }

    /// What a result is read with: a split with its images.
    #[must_use]
    pub fn carried(&self, node: NodeIndex) -> Option<NodeIndex> {
        let role = self.step(node).makes.carries()?;
        self.inputs(node).find(|(known, _)| *known == role).map(|(_, input)| input)
    }

    pub fn consumers(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        self.graph.neighbors_directed(node, Direction::Outgoing)
    }

    /// The steps of those names, all instances where a name has several, or, where none is named, those that nothing
    /// else reads.
    pub fn targets(&self, names: &[String]) -> Result<Vec<NodeIndex>> {
        if names.is_empty() {
            return Ok(self.order.iter().copied().filter(|&node| self.consumers(node).next().is_none()).collect());
        }
        let mut found = Vec::new();
        for name in names {
            let before = found.len();
            found.extend(self.order.iter().copied().filter(|&node| self.step(node).is_called(name)));
            if found.len() == before {
                let known = self.order.iter().map(|&node| self.step(node).name.as_str());
                let hint = nearest(name, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Err(Error::Usage(format!("the recipe has no stage `{name}`{hint}")));
            }
        }
        Ok(found)
    }

    /// The step that does what that one instance asks for.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Step> {
        self.graph.node_weights().find(|step| step.name == name || step.aliases.iter().any(|alias| alias == name))
    }

    /// What must run so that the targets are there. A fresh result never wakes what it was made from; a step that runs
    /// needs its inputs, and those that they are read with.
    #[must_use]
    pub fn needed(&self, targets: &[NodeIndex], is_fresh: &dyn Fn(&Step) -> bool) -> BTreeSet<NodeIndex> {
        let mut needed = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut ask: Vec<NodeIndex> = targets.to_vec();
        while let Some(node) = ask.pop() {
            if !seen.insert(node) || is_fresh(self.step(node)) {
                continue;
            }
            needed.insert(node);
            for (_, input) in self.inputs(node) {
                ask.push(input);
                if let Some(carried) = self.step(input).makes.carries() {
                    ask.extend(self.inputs(input).filter(|(role, _)| *role == carried).map(|(_, node)| node));
                }
            }
        }
        needed
    }

    /// The longest way from each step to an end, itself included: what to start first.
    #[must_use]
    pub fn heights(&self) -> BTreeMap<NodeIndex, usize> {
        let mut heights = BTreeMap::new();
        for &node in self.order.iter().rev() {
            let above = self.consumers(node).filter_map(|next| heights.get(&next)).max().copied().unwrap_or(0);
            heights.insert(node, above + 1);
        }
        heights
    }
}

impl Step {
    /// Whether a user who says this name means this step.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let base = |full: &str| full.split('[').next().unwrap_or_default() == name;
        self.base == name || self.name == name || self.aliases.iter().any(|alias| alias == name || base(alias))
    }
}

/// Why a step is not what an earlier result of the same stage was: each field that differs, old and new. A setting
/// that left no trace had its default.
#[must_use]
pub fn differences(old: &Fields, new: &Fields, defaults: &Settings) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let absent = json!(null);
    let mut found = Vec::new();
    for name in names {
        let default = name.strip_prefix("set ").and_then(|setting| defaults.get(setting)).unwrap_or(&absent);
        let (before, after) = (old.get(name).unwrap_or(default), new.get(name).unwrap_or(default));
        if before == after {
            continue;
        }
        found.push(match name.split_once(' ') {
            Some(("set", setting)) => format!("{setting} {before} -> {after}"),
            Some(("input", role)) => format!("the input {role} changed"),
            Some(("file", role)) => format!("the file {role} has other contents"),
            _ => format!("{name} {before} -> {after}"),
        });
    }
    found
}
