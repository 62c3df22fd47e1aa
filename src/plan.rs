//! Recipe to plan: names resolved, kinds checked, cycles found, fingerprints computed. Pure: what lies on disk comes in
//! as digests, and whether a result is there is asked through a closure.
//!
//! A fingerprint says what was asked for: kind and method with their versions, settings that differ from their
//! defaults, the inputs' fingerprints by role, digests of outside files. Names, paths, comments, the order of keys,
//! device and threads leave no trace.

mod collected;
mod origin;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use petgraph::Direction;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::{Value, json};

use crate::error::{Error, Mistake, Place, Result, nearest};
use crate::kind::Kind;
use crate::recipe::{Declared, Mention, Recipe, default_value, is_default};
use crate::settings::{Default, Field, Settings, Type};
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

/// A stage before it has a fingerprint; the ones that `compare` implies are made here.
struct Draft<'r> {
    declared: &'r Declared,
    name: String,
    kind: &'static StageKind,
    settings: Settings,
    /// (role, name of the stage, place of the mention)
    inputs: Vec<(String, String, Place)>,
}

impl Draft<'_> {
    /// Whether `compare` implied it.
    fn hidden(&self) -> bool {
        self.name != self.declared.name
    }
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
        let mistakes = origin::mistakes(&plan);
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

/// Declared stages with their inputs resolved, and one `evaluate` for each model that a collecting stage takes.
fn drafts<'r>(recipe: &'r Recipe, evaluate: &'static StageKind) -> Result<Vec<Draft<'r>>> {
    let mut instances: BTreeMap<&str, Vec<&Declared>> = BTreeMap::new();
    let mut one: BTreeMap<&str, &Declared> = BTreeMap::new();
    for stage in &recipe.stages {
        instances.entry(&stage.base).or_default().push(stage);
        one.insert(&stage.name, stage);
    }
    let mut mistakes = wiring(recipe, &instances, &one);
    if !mistakes.is_empty() {
        return Err(Error::Mistakes(mistakes));
    }
    let mut drafts: Vec<Draft> = Vec::new();
    // Two tables may measure one model in two ways.
    let mut hidden: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for declared in &recipe.stages {
        let mut draft = Draft {
            declared,
            name: declared.name.clone(),
            kind: declared.kind,
            settings: declared.settings.clone(),
            inputs: Vec::new(),
        };
        if !declared.kind.collects {
            let input = |mention: &Mention| (mention.role.clone(), mention.name.clone(), mention.place.clone());
            draft.inputs = declared.mentions.iter().map(input).collect();
            drafts.push(draft);
            continue;
        }
        let rows = match collected::rows(declared, &instances) {
            Ok(rows) => rows,
            Err(mistake) => {
                mistakes.push(mistake);
                continue;
            }
        };
        for row in &rows {
            let mut implied = implied(declared, row, evaluate, &instances);
            let same = hidden.entry(implied.name.clone()).or_default();
            if !same.iter().any(|&known: &usize| drafts[known].settings == implied.settings) {
                same.push(drafts.len());
                if same.len() > 1 {
                    implied.name = format!("{} {}", implied.name, same.len());
                }
            }
            let known = same.iter().find(|&&known| drafts.get(known).is_some_and(|d| d.settings == implied.settings));
            let name = known.map_or_else(|| implied.name.clone(), |&known| drafts[known].name.clone());
            if known.is_none() {
                drafts.push(implied);
            }
            draft.inputs.push((format!("scores[{}]", row.name), name, row.place.clone()));
        }
        draft.settings.insert("measured".to_owned(), rows.iter().map(collected::Row::to_value).collect());
        drafts.push(draft);
    }
    if mistakes.is_empty() { Ok(drafts) } else { Err(Error::Mistakes(mistakes)) }
}

/// Names that mean nothing, and stages of the wrong kind.
fn wiring(
    recipe: &Recipe,
    instances: &BTreeMap<&str, Vec<&Declared>>,
    one: &BTreeMap<&str, &Declared>,
) -> Vec<Mistake> {
    let mut mistakes: Vec<Mistake> = Vec::new();
    let names: Vec<&str> = instances.keys().copied().collect();
    for mention in recipe.stages.iter().flat_map(|stage| &stage.mentions) {
        let found = one.get(mention.name.as_str()).or_else(|| instances.get(mention.name.as_str())?.first());
        let mistake = match found {
            None => {
                let mistake = Mistake::at(&mention.place, format!("there is no stage `{}`", mention.name));
                crate::recipe::check::suggest(mistake, &mention.name, &names, "stage")
            }
            Some(stage) if !mention.kinds.contains(&stage.makes()) => {
                let wanted: Vec<&str> = mention.kinds.iter().map(|kind| kind.word()).collect();
                let what = format!(
                    "`{}` must be a stage that makes {}, but `{}` makes {}",
                    mention.role,
                    wanted.join(" or "),
                    stage.base,
                    stage.makes()
                );
                let mistake = Mistake::at(&mention.place, what).label(format!("makes {}", stage.makes()));
                mistake.related(&stage.place, format!("`{}` is declared here", stage.base))
            }
            Some(_) => continue,
        };
        // Instances of one stage make the same mistakes.
        if !mistakes.iter().any(|known| known.what == mistake.what && known.place == mistake.place) {
            mistakes.push(mistake);
        }
    }
    mistakes
}

/// The `evaluate` stage that a collecting stage implies for one row.
fn implied<'r>(
    declared: &'r Declared,
    row: &collected::Row,
    evaluate: &'static StageKind,
    instances: &BTreeMap<&str, Vec<&Declared>>,
) -> Draft<'r> {
    let mut settings = Settings::new();
    let mut inputs = Vec::new();
    for field in evaluate.fields {
        let own = declared.settings.get(field.name).cloned();
        let value = match field.name {
            "model" => Some(json!(row.model)),
            "data" => Some(json!(row.data)),
            "reference" => Some(json!(row.reference_model)),
            _ if matches!(field.ty, Type::Stage(_)) => {
                let base = own.as_ref().and_then(Value::as_str).and_then(|base| instances.get(base));
                base.and_then(|found| found.iter().find(|stage| collected::agree(&stage.axes, &row.axes)))
                    .map(|stage| json!(stage.name))
            }
            _ => own,
        };
        let Some(value) = value else { continue };
        if matches!(field.ty, Type::Stage(_)) {
            inputs.push((field.name.to_owned(), value.as_str().unwrap_or_default().to_owned(), row.place.clone()));
        }
        settings.insert(field.name.to_owned(), value);
    }
    Draft { declared, name: format!("evaluate({}, {})", row.model, row.data), kind: evaluate, settings, inputs }
}

fn fields_of(draft: &Draft) -> Vec<&'static Field> {
    if draft.hidden() { draft.kind.fields.iter().collect() } else { draft.declared.fields().collect() }
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
    let mut fields = Fields::new();
    fields.insert("kind".to_owned(), json!(format!("{} {}", draft.kind.name, draft.kind.version)));
    if let (Some(choice), Some(entry), false) = (&draft.kind.choice, draft.declared.choice, draft.hidden()) {
        fields.insert(choice.key.to_owned(), json!(format!("{} {}", entry.name, entry.version)));
    }
    for field in fields_of(draft) {
        let Some(value) = draft.settings.get(field.name) else { continue };
        if let Some(version) = inner_version(&field.ty, value).filter(|&version| version > 1) {
            fields.insert(format!("version {}", field.name), json!(version));
        }
        if !elsewhere(&field.ty) && !is_default(field, value) {
            fields.insert(format!("set {}", field.name), trace(&field.ty, value));
        }
    }
    if let Some(rows) = draft.settings.get("measured") {
        fields.insert("rows".to_owned(), rows.clone());
    }
    fields
}

/// What a fingerprint has elsewhere: files as digests, stages as fingerprints.
fn elsewhere(ty: &Type) -> bool {
    matches!(ty, Type::Path | Type::Stage(_) | Type::Stages(_))
}

/// A value without what a fingerprint has elsewhere, and without inner settings that equal their defaults.
fn trace(ty: &Type, value: &Value) -> Value {
    let table = |fields: &[Field], value: &Value| -> Settings {
        let mut kept = Settings::new();
        for field in fields.iter().filter(|field| !elsewhere(&field.ty)) {
            if let Some(inner) = value.get(field.name).filter(|inner| !is_default(field, inner)) {
                kept.insert(field.name.to_owned(), trace(&field.ty, inner));
            }
        }
        kept
    };
    match (ty, value) {
        (Type::Table(fields), Value::Object(_)) => Value::Object(table(fields, value)),
        (Type::List(inner), Value::Array(items)) => items.iter().map(|item| trace(inner, item)).collect(),
        (Type::Named { entries, .. }, Value::Object(all)) => {
            let entry = entries().into_iter().find(|entry| Some(entry.name) == all.get("name").and_then(Value::as_str));
            entry.map_or_else(
                || value.clone(),
                |entry| {
                    let mut kept = table(entry.fields, value);
                    kept.insert("name".to_owned(), json!(entry.name));
                    Value::Object(kept)
                },
            )
        }
        (Type::Tagged { entries, .. }, Value::Object(all)) => {
            let entry = entries().into_iter().find(|entry| all.contains_key(entry.name));
            entry.map_or_else(|| value.clone(), |entry| json!({ entry.name: table(entry.fields, &value[entry.name]) }))
        }
        (Type::Either(types), Value::Object(_)) => {
            let table = types.iter().find(|ty| matches!(ty, Type::Table(_) | Type::Named { .. } | Type::Tagged { .. }));
            table.map_or_else(|| value.clone(), |ty| trace(ty, value))
        }
        _ => value.clone(),
    }
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
