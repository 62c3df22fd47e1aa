//! A stage's table at one point of the matrix: variants merged, references followed, checked against the field tables of
//! its kind and method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use super::check::{Cache, Checker, Mention, suggest};
use super::node::{How, Key, Node, Val};
use super::origin::{Origin, Origins};
use super::refs::{Piece, axes_in, fill, pieces};
use super::run::{self, RunSettings};
use super::set::Assigned;
use crate::error::{Mistake, Place, listed};
use crate::expand::{At, Cell, LIMIT, Matrix};
use crate::kind::Kind;
use crate::settings::{Entry, Field, Settings};
use crate::stage::{Makes, StageKind};

/// One `[stages.NAME]`, as declared.
#[derive(Debug)]
pub struct Declared {
    pub name: String,
    /// Of the name in the recipe.
    pub place: Place,
    pub(crate) table: Node,
    /// The axes whose variants it takes in.
    merges: Vec<usize>,
    pub(crate) forms: Vec<(std::sync::Arc<Form>, Vec<Mistake>)>,
}

/// A stage at one point of the axes that its table mentions.
#[derive(Debug)]
pub struct Form {
    pub cell: Cell,
    pub kind: &'static StageKind,
    /// The method, where the kind has a choice.
    pub choice: Option<&'static Entry>,
    /// None where the choice that decides it is wrong.
    pub makes: Option<Kind>,
    pub settings: Settings,
    /// Settings that differ from their defaults, by path, without names of stages and paths.
    pub traces: Vec<(String, Value)>,
    /// Versions of nested entries, where they are not 1.
    pub versions: Vec<(String, Value)>,
    pub mentions: Vec<Mention>,
    /// Outside files and folders that settings name, by role.
    pub paths: Vec<(String, PathBuf)>,
    pub run: RunSettings,
    pub origins: Origins,
    /// The table, with references followed.
    pub(crate) table: Node,
}

/// What forms are made from.
pub(super) struct Ground<'a> {
    pub registry: &'a [&'static StageKind],
    pub matrix: &'a Matrix,
    /// `[defaults]`, with parameters in place.
    pub defaults: Option<&'a Node>,
    pub sets: &'a [Assigned],
    pub cache: &'a Cache,
    /// The defaults that some stage has a key for.
    pub reached: BTreeSet<String>,
    /// Axes that some stage mentions.
    pub mentioned: BTreeSet<usize>,
    /// Whether a kind or method is unknown, so that what defaults reach is unknown too.
    pub unknown: bool,
}

impl Declared {
    /// A stage with all its forms; mistakes that belong to no form go to `mistakes`.
    pub(super) fn read(key: &Key, node: &Node, ground: &mut Ground, mistakes: &mut Vec<Mistake>) -> Self {
        let mut table = node.clone();
        table.place = key.place.clone();
        let merges = merges(table.remove("merge"), &key.name, ground.matrix, mistakes);
        let mut stage =
            Self { name: key.name.clone(), place: key.place.clone(), table, merges, forms: Vec::new() };
        stage.check_sets(ground, mistakes);
        let mut axes: BTreeSet<usize> = stage.merges.iter().copied().collect();
        axes.extend(indices(&stage.table, ground.matrix));
        ground.mentioned.extend(&axes);
        let Some(mut cells) = ground.matrix.cells(&axes) else {
            mistakes.push(too_many(&stage));
            return stage;
        };
        cells.reverse();
        while let Some(cell) = cells.pop() {
            match stage.form(&cell, ground) {
                Outcome::Form(form, wrong) => stage.forms.push((std::sync::Arc::new(*form), wrong)),
                Outcome::Wrong(mut wrong) => mistakes.append(&mut wrong),
                Outcome::Wants(axes) => {
                    ground.mentioned.extend(&axes);
                    let more = ground.matrix.cells(&axes).filter(|more| more.len() * cells.len().max(1) <= LIMIT);
                    let Some(more) = more else {
                        mistakes.push(too_many(&stage));
                        return stage;
                    };
                    for more in more.into_iter().rev() {
                        let mut longer: Cell = cell.iter().copied().chain(more).collect();
                        longer.sort_unstable();
                        if !ground.matrix.excludes(&longer) {
                            cells.push(longer);
                        }
                    }
                }
            }
        }
        stage
    }

    /// A `--set` on a key that a variant sets too.
    fn check_sets(&self, ground: &Ground, mistakes: &mut Vec<Mistake>) {
        for set in ground.sets {
            let [top, stage, key, ..] = set.path.as_slice() else { continue };
            if top != "stages" || *stage != self.name {
                continue;
            }
            for axis in self.merges.iter().filter_map(|&axis| ground.matrix.axes.get(axis)) {
                for (label, variant) in axis.labels.iter().zip(&axis.values) {
                    if let Some((found, _)) = variant.entries().iter().find(|(found, _)| found.name == *key) {
                        let path = set.path.join(".");
                        let name = format!("{}.{label}", axis.name);
                        let what = format!("`--set {path}` cannot beat the variant `{name}`, which sets `{key}` too");
                        let mistake = Mistake::at(&set.place, what).related(&found.place, "the variant sets it here");
                        mistakes.push(mistake.help(format!("set it there: --set matrix.{name}.{key}=VALUE")));
                        return;
                    }
                }
            }
        }
    }

    fn form(&self, cell: &Cell, ground: &mut Ground) -> Outcome {
        let mut mistakes = Vec::new();
        let mut table = self.table.clone();
        self.merge_variants(&mut table, cell, ground.matrix, &mut mistakes);
        let wants = |node: &Node| -> BTreeSet<usize> {
            let mentioned = indices(node, ground.matrix).into_iter();
            mentioned.filter(|axis| !cell.iter().any(|(known, _)| known == axis)).collect()
        };
        let wanted = wants(&table);
        if !wanted.is_empty() {
            return Outcome::Wants(wanted);
        }
        let at = At { matrix: ground.matrix, cell };
        fill(&mut table, &at, &mut mistakes);
        let kind = match self.kind(&mut table, ground, &mut mistakes) {
            Some(kind) => kind,
            None => return Outcome::Wrong(mistakes),
        };
        // The defaults that reach this stage, with what axes hold here.
        let mut defaults: BTreeMap<&str, Node> = BTreeMap::new();
        let mut reach = |name: &'static str, table: &Node, reached: &mut BTreeSet<String>| -> BTreeSet<usize> {
            let Some(default) = ground.defaults.and_then(|defaults| defaults.get(name)) else { return BTreeSet::new() };
            reached.insert(name.to_owned());
            if table.get(name).is_some() {
                return BTreeSet::new();
            }
            let wanted = wants(default);
            if wanted.is_empty() {
                let mut default = default.clone();
                fill(&mut default, &at, &mut mistakes);
                defaults.insert(name, default);
            }
            wanted
        };
        let mut reached = BTreeSet::new();
        let mut wanted = reach("run", &table, &mut reached);
        let mut fields: Vec<&'static Field> = kind.fields.iter().collect();
        if let Some(choose) = &kind.choice {
            wanted.append(&mut reach(choose.key, &table, &mut reached));
        }
        for field in kind.fields {
            wanted.append(&mut reach(field.name, &table, &mut reached));
        }
        if !wanted.is_empty() {
            ground.reached.append(&mut reached);
            return Outcome::Wants(wanted);
        }
        let mut checker = Checker::new(ground.cache);
        let run = table.remove("run").or_else(|| defaults.get("run").cloned());
        let kept = table.clone();
        let mut choice = None;
        if let Some(choose) = &kind.choice {
            let chosen = table.remove(choose.key).or_else(|| defaults.get(choose.key).cloned());
            choice = self.choose(chosen, choose, &mut checker);
            if let Some(entry) = choice {
                for field in entry.fields {
                    let mut reach_more = |name: &'static str| {
                        let default = ground.defaults.and_then(|defaults| defaults.get(name))?;
                        reached.insert(name.to_owned());
                        (table.get(name).is_none()).then_some(default)
                    };
                    if let Some(default) = reach_more(field.name) {
                        wanted.append(&mut wants(default));
                        let mut default = default.clone();
                        fill(&mut default, &at, &mut checker.mistakes);
                        defaults.insert(field.name, default);
                    }
                }
                if !wanted.is_empty() {
                    ground.reached.append(&mut reached);
                    return Outcome::Wants(wanted);
                }
                fields.extend(entry.fields);
            } else {
                // The method's keys are unknown; what is not the kind's own is left alone.
                ground.unknown = true;
                if let Val::Table(entries) = &mut table.value {
                    entries.retain(|(key, _)| kind.fields.iter().any(|field| field.name == key.name));
                }
            }
        }
        ground.reached.append(&mut reached);
        let what = format!("the stage `{}` ({})", self.name, choice.map_or(kind.name, |entry| entry.name));
        let mut settings = Settings::new();
        if let (Some(choose), Some(entry)) = (&kind.choice, choice) {
            settings.insert(choose.key.to_owned(), entry.name.into());
        }
        settings.extend(checker.table(&fields, &table, "", &what, &|name| defaults.get(name)));
        let undecided = kind.choice.is_some() && choice.is_none();
        if checker.mistakes.is_empty() && !undecided {
            for (path, wrong) in (kind.check)(&settings) {
                let place = find(&table, &path).or_else(|| find(defaults.get(path.as_str())?, ""));
                checker.mistakes.push(place.map_or_else(|| Mistake::at(&self.place, &wrong), |node| node.mistake(&wrong)));
            }
        }
        let mut kept_traces = (std::mem::take(&mut checker.traces), std::mem::take(&mut checker.versions));
        let run = run.map_or_else(RunSettings::default, |run| run::check(&run, &what, &mut checker));
        std::mem::swap(&mut checker.traces, &mut kept_traces.0);
        checker.versions = kept_traces.1;
        mistakes.append(&mut checker.mistakes);
        let makes = match kind.makes {
            Makes::Always(makes) => Some(makes),
            Makes::ByChoice(of) => choice.map(|entry| of(entry.name)),
        };
        let Checker { mentions, paths, traces, versions, origins, .. } = checker;
        let form = Form {
            cell: cell.clone(),
            kind,
            choice,
            makes,
            settings,
            traces,
            versions,
            mentions,
            paths,
            run,
            origins,
            table: kept,
        };
        Outcome::Form(Box::new(form), mistakes)
    }

    fn merge_variants(&self, table: &mut Node, cell: &Cell, matrix: &Matrix, mistakes: &mut Vec<Mistake>) {
        let mut set_by: BTreeMap<&str, (String, &Place)> = BTreeMap::new();
        for &index in &self.merges {
            let value = cell.iter().find(|(axis, _)| *axis == index).map(|(_, value)| *value);
            let (Some(axis), Some(value)) = (matrix.axes.get(index), value) else { continue };
            let (Some(variant), Some(label)) = (axis.values.get(value), axis.labels.get(value)) else { continue };
            let name = format!("{}.{label}", axis.name);
            let how = How::Variant(name.as_str().into());
            for (key, node) in variant.entries() {
                if let Some((other, place)) = set_by.get(key.name.as_str()) {
                    let what = format!(
                        "the variants `{other}` and `{name}` both set `{}` in the stage `{}`",
                        key.name, self.name
                    );
                    mistakes.push(Mistake::at(&key.place, what).related(place, format!("`{other}` sets it here")));
                    continue;
                }
                set_by.insert(&key.name, (name.clone(), &key.place));
                let mut node = node.clone();
                node.mark(&how);
                table.put(key.clone(), node);
            }
        }
    }

    fn kind(&self, table: &mut Node, ground: &mut Ground, mistakes: &mut Vec<Mistake>) -> Option<&'static StageKind> {
        let names: Vec<&str> = ground.registry.iter().map(|kind| kind.name).collect();
        let Some(said) = table.remove("kind") else {
            let mistake = Mistake::at(&self.place, format!("the stage `{}` lacks `kind`", self.name));
            mistakes.push(mistake.label("needs `kind`").help(format!("the kinds are {}", listed(&names, "and"))));
            ground.unknown = true;
            return None;
        };
        let found = said.text().and_then(|text| ground.registry.iter().copied().find(|kind| kind.name == text));
        if found.is_none() {
            ground.unknown = true;
            mistakes.push(match said.text() {
                Some(text) => suggest(said.mistake(format!("unknown kind `{text}`")), text, &names, "kind"),
                None => said.mistake(format!("`kind` is {}", said.noun())).label("expected the name of a kind"),
            });
        }
        found
    }

    fn choose(
        &self,
        chosen: Option<Node>,
        choose: &crate::stage::Choice,
        checker: &mut Checker,
    ) -> Option<&'static Entry> {
        let entries = (choose.entries)();
        let Some(node) = chosen else {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
            let mistake = Mistake::at(&self.place, format!("the stage `{}` lacks `{}`", self.name, choose.key));
            let mistake = mistake.label(format!("needs `{}`", choose.key));
            checker.mistakes.push(mistake.help(format!("there are {}", listed(&names, "and"))));
            return None;
        };
        let Some(text) = node.text() else {
            let mistake = node.mistake(format!("`{}` is {}", choose.key, node.noun()));
            checker.mistakes.push(mistake.label(format!("expected the name of {}", super::check::a(choose.noun))));
            return None;
        };
        checker.origins.insert(choose.key.to_owned(), Origin::of(&node));
        checker.entry(&entries, choose.noun, &node, text)
    }
}

/// What comes of looking at a stage at a point.
enum Outcome {
    Form(Box<Form>, Vec<Mistake>),
    /// Too wrong to be one.
    Wrong(Vec<Mistake>),
    /// It mentions more axes than the point has.
    Wants(BTreeSet<usize>),
}

fn too_many(stage: &Declared) -> Mistake {
    Mistake::at(&stage.place, format!("the matrix makes more than {LIMIT} instances of `{}`", stage.name))
        .help("fewer axes, or fewer values on them")
}

fn indices(node: &Node, matrix: &Matrix) -> BTreeSet<usize> {
    if matrix.axes.is_empty() {
        return BTreeSet::new();
    }
    let mut names = BTreeSet::new();
    axes_in(node, &mut names);
    names.into_iter().filter_map(|name| matrix.find(name)).collect()
}

fn find<'n>(node: &'n Node, path: &str) -> Option<&'n Node> {
    path.split('.').filter(|step| !step.is_empty()).try_fold(node, |node, step| node.get(step))
}

/// `merge`: one reference to a variant axis, or a list of them.
fn merges(node: Option<Node>, stage: &str, matrix: &Matrix, mistakes: &mut Vec<Mistake>) -> Vec<usize> {
    let Some(node) = node else { return Vec::new() };
    let mut merges = Vec::new();
    for item in node.items().unwrap_or(std::slice::from_ref(&node)) {
        let path = match item.text().map(pieces).as_deref() {
            Some([Piece::Reference(path)]) => *path,
            _ => "",
        };
        let axis = path.strip_prefix("matrix.").and_then(|name| matrix.find(name));
        let variants: Vec<String> =
            matrix.axes.iter().filter(|axis| axis.variants).map(|axis| format!("${{matrix.{}}}", axis.name)).collect();
        let expected = match variants.is_empty() {
            true => "the matrix has no axis of named variants".to_owned(),
            false => format!("expected {}", listed(&variants, "or")),
        };
        match axis.and_then(|axis| matrix.axes.get(axis).map(|found| (axis, found))) {
            None => {
                let mistake = item.mistake(format!("`merge` of `{stage}` has `{}`", item.words())).label(expected);
                let near = item.text().and_then(|text| crate::error::nearest(text, variants.iter().map(String::as_str)));
                mistakes.push(match near {
                    Some(near) => mistake.help(format!("did you mean `{near}`?")),
                    None => mistake,
                });
            }
            Some((_, axis)) if !axis.variants => {
                let what = format!("the axis `{}` has plain values, which cannot be merged", axis.name);
                mistakes.push(item.mistake(what).label(expected).related(&axis.key.place, "its values"));
            }
            Some((index, axis)) if merges.contains(&index) => {
                mistakes.push(item.mistake(format!("`merge` has `{}` twice", axis.name)));
            }
            Some((index, _)) => merges.push(index),
        }
    }
    merges
}

impl Form {
    /// The settings' fields: those of the kind, then those of the method.
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.kind.fields.iter().chain(self.choice.map_or(&[][..], |entry| entry.fields))
    }
}

/// The form of the stage that a collecting stage implies for each of its models: it takes from the collecting stage the
/// settings that both have by name.
pub(super) fn implied(
    by: &Form,
    kind: &'static StageKind,
    ground: &mut Ground,
    place: &Place,
) -> (Form, Vec<Mistake>) {
    let mut table = Node::table(place);
    for field in kind.fields {
        let key = Key { name: field.name.to_owned(), place: place.clone() };
        let shared = by.fields().find(|own| own.name == field.name);
        let said = by.table.get(field.name).cloned();
        let default = || ground.defaults.and_then(|defaults| defaults.get(field.name)).cloned();
        let built_in = || match shared?.default {
            crate::settings::Default::Is(text) => super::check::parsed(text),
            _ => None,
        };
        let node = match field.ty {
            crate::settings::Type::Stage(_) if matches!(field.default, crate::settings::Default::Required) => {
                Some(Node::new(Val::Text(field.name.to_owned()), place.clone()))
            }
            crate::settings::Type::Stage(_) => None,
            _ => said.or_else(default).or_else(built_in),
        };
        if let Some(mut node) = node {
            fill(&mut node, &At { matrix: ground.matrix, cell: &by.cell }, &mut Vec::new());
            table.put(key, node);
        }
    }
    let mut checker = Checker::new(ground.cache);
    let fields: Vec<&'static Field> = kind.fields.iter().collect();
    let settings = checker.table(&fields, &table, "", &format!("the implied `{}`", kind.name), &|_| None);
    let Checker { mistakes, traces, versions, origins, .. } = checker;
    let makes = if let Makes::Always(makes) = kind.makes { Some(makes) } else { None };
    let form = Form {
        cell: Cell::new(),
        kind,
        choice: None,
        makes,
        settings,
        traces,
        versions,
        mentions: Vec::new(),
        paths: Vec::new(),
        run: by.run.clone(),
        origins,
        table,
    };
    (form, mistakes)
}
