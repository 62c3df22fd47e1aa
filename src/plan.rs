//! Recipe to plan: names resolved, kinds checked, cycles found, fingerprints computed. Pure: what lies on disk comes in
//! as digests, and whether a result is there is asked through a closure.
//!
//! A fingerprint says what was asked for: kind and method with their versions, settings that differ from their
//! defaults, the inputs' fingerprints by role, digests of outside files. Names, paths, comments, the order of keys,
//! device and threads leave no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use petgraph::Direction;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::{Value, json};

use crate::error::{Error, Mistake, Place, Result, nearest};
use crate::kind::Kind;
use crate::recipe::{Declared, Recipe, default_value, is_default};
use crate::settings::{Default, Field, Settings, Type};
use crate::stage::StageKind;

/// Raised when fingerprints are made another way.
const EPOCH: u32 = 1;

/// What a fingerprint is made of, by name: for the fingerprint itself, for manifests and for `explain`.
pub type Fields = BTreeMap<String, Value>;

/// Outside files of a stage: role to path and content digest.
pub type Files = BTreeMap<String, (PathBuf, String)>;

/// One stage to be done.
#[derive(Debug)]
pub struct Step {
    pub name: String,
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

/// A stage before it has a fingerprint; the ones that `compare` implies are made here.
struct Draft<'r> {
    declared: &'r Declared,
    name: String,
    kind: &'static StageKind,
    settings: Settings,
    /// (role, name of the stage, place of the mention)
    inputs: Vec<(String, String, Place)>,
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
        let mut fingerprints: BTreeMap<NodeIndex, String> = BTreeMap::new();
        let mut all_fields: BTreeMap<NodeIndex, Fields> = BTreeMap::new();
        for &node in &order {
            let draft = &drafts[graph[node]];
            let mut fields = own_fields(draft);
            for (role, (_, digest)) in files.get(&draft.name).unwrap_or(&nothing) {
                fields.insert(format!("file {role}"), json!(digest));
            }
            for edge in graph.edges_directed(node, Direction::Incoming) {
                fields.insert(format!("input {}", edge.weight()), json!(fingerprints.get(&edge.source())));
            }
            let text = serde_json::to_string(&(EPOCH, &fields)).map_err(|error| Error::invalid(error.to_string()))?;
            fingerprints.insert(node, blake3::hash(text.as_bytes()).to_hex()[..32].to_owned());
            all_fields.insert(node, fields);
        }
        let mut graph = graph.map(
            |node, &index| {
                let draft = &drafts[index];
                let paths = files.get(&draft.name).unwrap_or(&nothing);
                Step {
                    name: draft.name.clone(),
                    kind: draft.kind,
                    makes: if draft.name == draft.declared.name { draft.declared.makes() } else { Kind::Scores },
                    settings: draft.settings.clone(),
                    files: paths.iter().map(|(role, (path, _))| (role.clone(), path.clone())).collect(),
                    fields: all_fields.remove(&node).unwrap_or_default(),
                    defaults: defaults(draft),
                    fingerprint: fingerprints.get(&node).cloned().unwrap_or_default(),
                    place: draft.declared.place.clone(),
                }
            },
            |_, role| role.clone(),
        );
        graph.shrink_to_fit();
        Ok(Self { graph, order })
    }

    #[must_use]
    pub fn step(&self, node: NodeIndex) -> &Step {
        &self.graph[node]
    }

    /// Inputs of a step by role.
    pub fn inputs(&self, node: NodeIndex) -> impl Iterator<Item = (&str, NodeIndex)> {
        self.graph.edges_directed(node, Direction::Incoming).map(|edge| (edge.weight().as_str(), edge.source()))
    }

    pub fn consumers(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        self.graph.neighbors_directed(node, Direction::Outgoing)
    }

    /// The steps of those names, or, where none is named, those that nothing else reads.
    pub fn targets(&self, names: &[String]) -> Result<Vec<NodeIndex>> {
        if names.is_empty() {
            return Ok(self.order.iter().copied().filter(|&node| self.consumers(node).next().is_none()).collect());
        }
        let find = |name: &String| {
            self.order.iter().copied().find(|&node| self.step(node).name == *name).ok_or_else(|| {
                let known = self.order.iter().map(|&node| self.step(node).name.as_str());
                let hint = nearest(name, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                Error::Usage(format!("the recipe has no stage `{name}`{hint}"))
            })
        };
        names.iter().map(find).collect()
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

/// Declared stages with their inputs resolved, and one `evaluate` for each model that a collecting stage takes.
fn drafts<'r>(recipe: &'r Recipe, evaluate: &'static StageKind) -> Result<Vec<Draft<'r>>> {
    let mut mistakes = Vec::new();
    let names: Vec<&str> = recipe.stages.iter().map(|stage| stage.name.as_str()).collect();
    for mention in recipe.stages.iter().flat_map(|stage| &stage.mentions) {
        match recipe.stages.iter().find(|stage| stage.name == mention.name) {
            None => {
                let mistake = Mistake::at(&mention.place, format!("there is no stage `{}`", mention.name));
                mistakes.push(crate::recipe::check::suggest(mistake, &mention.name, &names, "stage"));
            }
            Some(stage) if !mention.kinds.contains(&stage.makes()) => {
                let wanted: Vec<&str> = mention.kinds.iter().map(|kind| kind.word()).collect();
                let what = format!(
                    "`{}` must be a stage that makes {}, but `{}` makes {}",
                    mention.role,
                    wanted.join(" or "),
                    stage.name,
                    stage.makes()
                );
                let mistake = Mistake::at(&mention.place, what).label(format!("makes {}", stage.makes()));
                mistakes.push(mistake.related(&stage.place, format!("`{}` is declared here", stage.name)));
            }
            Some(_) => {}
        }
    }
    if !mistakes.is_empty() {
        return Err(Error::Mistakes(mistakes));
    }
    let mut drafts: Vec<Draft> = Vec::new();
    for declared in &recipe.stages {
        let mut draft = Draft {
            declared,
            name: declared.name.clone(),
            kind: declared.kind,
            settings: declared.settings.clone(),
            inputs: Vec::new(),
        };
        for mention in &declared.mentions {
            if declared.kind.collects && mention.kinds == [Kind::Model] {
                let mut hidden = implied(declared, &mention.name, evaluate);
                let base = hidden.name.clone();
                let mut number = 1;
                // Two tables may measure one model in two ways.
                while drafts.iter().any(|known| known.name == hidden.name && known.settings != hidden.settings) {
                    number += 1;
                    hidden.name = format!("{base} {number}");
                }
                let role = format!("scores[{}]", mention.name);
                if !draft.inputs.iter().any(|(known, ..)| *known == role) {
                    draft.inputs.push((role, hidden.name.clone(), mention.place.clone()));
                }
                if !drafts.iter().any(|known| known.name == hidden.name) {
                    drafts.push(hidden);
                }
            } else if !declared.kind.collects {
                draft.inputs.push((mention.role.clone(), mention.name.clone(), mention.place.clone()));
            }
        }
        drafts.push(draft);
    }
    Ok(drafts)
}

/// The `evaluate` stage that a collecting stage implies for one model.
fn implied<'r>(declared: &'r Declared, model: &str, evaluate: &'static StageKind) -> Draft<'r> {
    let mut settings = Settings::new();
    let mut inputs = Vec::new();
    for field in evaluate.fields {
        let value = if field.name == "model" { Some(json!(model)) } else { declared.settings.get(field.name).cloned() };
        let Some(value) = value else { continue };
        if matches!(field.ty, Type::Stage(_)) {
            inputs.push((field.name.to_owned(), value.as_str().unwrap_or_default().to_owned(), declared.place.clone()));
        }
        settings.insert(field.name.to_owned(), value);
    }
    let data = settings.get("data").and_then(Value::as_str).unwrap_or_default();
    Draft { declared, name: format!("evaluate({model}, {data})"), kind: evaluate, settings, inputs }
}

fn fields_of(draft: &Draft) -> Vec<&'static Field> {
    let hidden = draft.name != draft.declared.name;
    if hidden { draft.kind.fields.iter().collect() } else { draft.declared.fields().collect() }
}

fn defaults(draft: &Draft) -> Settings {
    let of = |field: &&'static Field| match field.default {
        Default::Is(text) => Some((field.name.to_owned(), default_value(field, text)?)),
        _ => None,
    };
    fields_of(draft).iter().filter_map(of).collect()
}

/// Kind, method and settings, without inputs and files.
fn own_fields(draft: &Draft) -> Fields {
    let hidden = draft.name != draft.declared.name;
    let mut fields = Fields::new();
    fields.insert("kind".to_owned(), json!(format!("{} {}", draft.kind.name, draft.kind.version)));
    if let (Some(choice), Some(entry), false) = (&draft.kind.choice, draft.declared.choice, hidden) {
        fields.insert(choice.key.to_owned(), json!(format!("{} {}", entry.name, entry.version)));
    }
    for field in fields_of(draft) {
        let Some(value) = draft.settings.get(field.name) else { continue };
        if let Some(version) = inner_version(&field.ty, value).filter(|&version| version > 1) {
            fields.insert(format!("version {}", field.name), json!(version));
        }
        let elsewhere = matches!(field.ty, Type::Path | Type::Stage(_) | Type::Stages(_)) && !draft.kind.collects;
        if !elsewhere && !is_default(field, value) {
            let value = if let Type::Table(inner) = field.ty { without_paths(inner, value) } else { value.clone() };
            fields.insert(format!("set {}", field.name), value);
        }
    }
    fields
}

/// The version of the optimiser, schedule or architecture that a setting names: even a default one must leave a trace
/// once it computes something else.
fn inner_version(ty: &Type, value: &Value) -> Option<u32> {
    let (entries, name) = match ty {
        Type::Named { entries, .. } => (entries(), value.get("name")?.as_str()?),
        Type::Tagged { entries, .. } => (entries(), value.as_object()?.keys().next()?.as_str()),
        _ => return None,
    };
    entries.into_iter().find(|entry| entry.name == name).map(|entry| entry.version)
}

fn without_paths(fields: &[Field], value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(table) = value.as_object_mut() {
        table.retain(|name, _| !fields.iter().any(|f| f.name == name && matches!(f.ty, Type::Path)));
    }
    value
}

fn cycle(graph: &DiGraph<usize, String>, drafts: &[Draft]) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Entry;

    const NEW: Entry = Entry { name: "sgd", about: "", paper: "", version: 2, fields: &[] };

    #[test]
    fn a_raised_version_of_a_named_setting_is_seen() {
        let named = Type::Named { noun: "optimizer", entries: || vec![&NEW] };
        assert_eq!(inner_version(&named, &json!({ "name": "sgd" })), Some(2));
        let tagged = Type::Tagged { noun: "schedule", entries: || vec![&NEW] };
        assert_eq!(inner_version(&tagged, &json!({ "sgd": {} })), Some(2));
        assert_eq!(inner_version(&Type::Text, &json!("sgd")), None);
    }
}
