//! The stages of a recipe, multiplied by the axes that they mention and checked against the field tables.

use std::collections::{BTreeMap, BTreeSet};

use super::Declared;
use super::check::{Checker, suggest};
use super::matrix::{Assignment, Matrix, STAGES};
use super::node::{Key, Node, Room};
use crate::error::{Mistake, listed, short};
use crate::settings::{Field, Settings, Type};
use crate::stage::StageKind;

/// How a stage is run; leaves no trace in the fingerprint.
pub const RUN: &[Field] = &[
    Field::optional(
        "checkpoint_every",
        Type::Either(&[crate::settings::POSITIVE, Type::Table(EVERY)]),
        "seconds between checkpoints, or { epochs }, { steps } or { seconds }",
    ),
    Field::optional("timeout", crate::settings::POSITIVE, "seconds after which it saves its state and fails"),
];

const EVERY: &[Field] = &[
    Field::optional("epochs", crate::settings::COUNT, "after so many epochs"),
    Field::optional("steps", crate::settings::COUNT, "after so many steps"),
    Field::optional("seconds", crate::settings::POSITIVE, "after so many seconds"),
];

/// Every stage with each of its own assignments of axes.
pub(super) fn check_stages(
    root: &Node,
    kinds: &[&'static StageKind],
    matrix: &Matrix,
    room: &mut Room,
    mistakes: &mut Vec<Mistake>,
) -> Vec<(Assignment, Declared)> {
    let Some(stages) = root.get("stages").filter(|stages| !stages.entries().is_empty()) else {
        mistakes.push(Mistake::at(&root.place, "the recipe has no stages").label("expected [stages.NAME] tables"));
        return Vec::new();
    };
    let defaults = root.get("defaults").map_or(&[][..], Node::entries);
    let by_name: BTreeMap<&str, usize> =
        defaults.iter().enumerate().map(|(number, (key, _))| (key.name.as_str(), number)).collect();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut declared = Vec::new();
    for (key, node) in stages.entries() {
        if !key.name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            let mistake = Mistake::at(&key.place, format!("`{}` is no name for a stage", key.name));
            mistakes.push(mistake.label("expected letters, digits, `_` and `-`"));
        }
        let mut body = node.clone();
        body.place = key.place.clone();
        let mut inherited = |body: &Node| {
            let names = field_names(body, kinds);
            // In the order of the defaults.
            let fitting: BTreeSet<usize> = names.iter().filter_map(|name| by_name.get(name).copied()).collect();
            let fitting = fitting.into_iter().filter_map(|number| defaults.get(number));
            let fitting: Vec<&(Key, Node)> = fitting.collect();
            reached.extend(fitting.iter().map(|(key, _)| key.name.as_str()));
            let fitting = fitting.into_iter();
            fitting.filter(|(key, _)| body.get(&key.name).is_none()).cloned().collect()
        };
        for (at, body) in matrix.unfold(body, &mut inherited, room, mistakes) {
            declared.extend(check_stage(key, body, kinds, mistakes).map(|stage| (at, stage)));
        }
        if declared.len() > STAGES {
            let what = format!("the recipe has more than {STAGES} stages");
            mistakes.push(Mistake::at(&key.place, what));
            return Vec::new();
        }
    }
    for (key, _) in defaults {
        if !reached.contains(key.name.as_str()) {
            mistakes.push(Mistake::at(&key.place, format!("the default `{}` reaches no stage", key.name)));
        }
    }
    declared
}

/// What may be set in this stage, as far as its kind and method are right.
fn field_names(body: &Node, kinds: &[&'static StageKind]) -> Vec<&'static str> {
    let word = |key: &str| body.get(key).and_then(Node::text).unwrap_or_default();
    let Some(kind) = kinds.iter().find(|kind| kind.name == word("kind")) else { return Vec::new() };
    let mut names: Vec<&str> = kind.fields.iter().map(|field| field.name).collect();
    if let Some(choose) = &kind.choice
        && let Some(entry) = (choose.entries)().into_iter().find(|entry| entry.name == word(choose.key))
    {
        names.extend(entry.fields.iter().map(|field| field.name));
    }
    names
}

fn check_stage(
    key: &Key,
    mut node: Node,
    kinds: &[&'static StageKind],
    mistakes: &mut Vec<Mistake>,
) -> Option<Declared> {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let run = run_table(&mut node, &key.name, mistakes);
    let Some(kind_node) = node.get("kind") else {
        let mistake = Mistake::at(&key.place, format!("the stage `{}` lacks `kind`", key.name));
        mistakes.push(mistake.help(format!("the kinds are {}", listed(&names, "and"))));
        return None;
    };
    let kind_name = kind_node.text().unwrap_or_default();
    let Some(kind) = kinds.iter().copied().find(|kind| kind.name == kind_name) else {
        let mistake = Mistake::at(&kind_node.place, format!("unknown kind `{kind_name}`"));
        mistakes.push(suggest(mistake, kind_name, &names, "kind"));
        return None;
    };
    let mut checker = Checker::default();
    let mut rest = node.clone();
    rest.remove("kind");
    let mut fields: Vec<&'static Field> = kind.fields.iter().collect();
    let mut choice = None;
    if let Some(choose) = &kind.choice {
        let entries = (choose.entries)();
        match node.get(choose.key) {
            Some(named) => choice = checker.entry(&entries, choose.noun, named, named.text().unwrap_or_default()),
            None => {
                let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
                let mistake = Mistake::at(&key.place, format!("the stage `{}` lacks `{}`", key.name, choose.key));
                mistakes.push(mistake.help(format!("there are {}", listed(&names, "and"))));
            }
        }
        rest.remove(choose.key);
        let Some(entry) = choice else {
            mistakes.append(&mut checker.mistakes);
            return None;
        };
        fields.extend(entry.fields);
    }
    let what = format!("the stage `{}` ({})", short(&key.name), choice.map_or(kind.name, |entry| entry.name));
    let mut settings = checker.table(&fields, &rest, "", &what, &mut |_| None);
    if let (Some(choose), Some(entry)) = (&kind.choice, choice) {
        settings.insert(choose.key.to_owned(), entry.name.into());
    }
    if checker.mistakes.is_empty() {
        for (path, wrong) in (kind.check)(&settings) {
            let place = rest.get(&path).map_or(&key.place, |node| &node.place);
            mistakes.push(Mistake::at(place, wrong));
        }
    }
    mistakes.append(&mut checker.mistakes);
    Some(Declared {
        name: key.name.clone(),
        base: key.name.clone(),
        axes: Vec::new(),
        run,
        place: key.place.clone(),
        kind,
        choice,
        settings,
        mentions: checker.mentions,
        files: checker.files,
    })
}

/// Takes the `run` table out of a stage and checks it.
fn run_table(node: &mut Node, stage: &str, mistakes: &mut Vec<Mistake>) -> Settings {
    let Some(run) = node.get("run").cloned() else { return Settings::new() };
    node.remove("run");
    let mut checker = Checker::default();
    let fields: Vec<&'static Field> = RUN.iter().collect();
    let what = format!("`run` of the stage `{}`", short(stage));
    if run.entries().is_empty() {
        mistakes.push(Mistake::at(&run.place, format!("{what} is {}, but must be a table of settings", run.noun())));
    }
    let settings = checker.table(&fields, &run, "run", &what, &mut |_| None);
    let every = settings.get("checkpoint_every").and_then(|every| every.as_object());
    if every.is_some_and(|every| every.len() != 1) {
        let place = run.get("checkpoint_every").map_or(&run.place, |node| &node.place);
        let mistake = Mistake::at(place, "`checkpoint_every` takes one of `epochs`, `steps` and `seconds`");
        mistakes.push(mistake);
    }
    mistakes.append(&mut checker.mistakes);
    settings
}
