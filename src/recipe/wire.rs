//! Which stage feeds which: mentions followed, kinds checked, cycles found, and instances joined along shared axes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::check::{Mention, a, suggest};
use super::form::{Declared, Form, Ground};
use crate::error::{Mistake, Place, listed};
use crate::expand::{Cell, LIMIT, Matrix};
use crate::kind::Kind;

/// A stage at one point of the matrix.
#[derive(Debug)]
pub struct Instance {
    /// `scrub[seed=0]`.
    pub name: String,
    /// The declared stage: `scrub`. For an implied stage, the one that implies it.
    pub stage: String,
    pub place: Place,
    pub form: Arc<Form>,
    /// Axis to value, in words.
    pub axes: BTreeMap<String, String>,
    /// By role: the index of the instance that feeds it.
    pub inputs: Vec<(String, usize)>,
    /// Inserted by the planner, for a collecting stage.
    pub hidden: bool,
    /// Of a collecting stage: what it collects, in order.
    pub rows: Vec<Row>,
    pub(super) cell: Cell,
}

/// One of the models that a collecting stage collects.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The instance.
    pub name: String,
    pub stage: String,
    pub axes: BTreeMap<String, String>,
    /// The row's reference, by the name of its instance.
    pub reference: Option<String>,
    /// False for a reference that the stage does not list among its models.
    pub listed: bool,
}

/// A thousand stages find each other by name in no time.
pub(super) type ByName<'a> = BTreeMap<&'a str, usize>;

/// Mentions of stages that are not there, or that make something else.
pub(super) fn check_mentions(stages: &[Declared], by_name: &ByName, mistakes: &mut Vec<Mistake>) {
    for stage in stages {
        for mention in stage.forms.iter().flat_map(|(form, _)| &form.mentions) {
            let Some(&target) = by_name.get(mention.name.as_str()) else {
                let names: Vec<&str> = by_name.keys().copied().collect();
                let mistake = Mistake::at(&mention.place, format!("there is no stage `{}`", mention.name));
                mistakes.push(suggest(mistake, &mention.name, &names, "stage"));
                continue;
            };
            let target = &stages[target];
            let mut made: Vec<Kind> = target.forms.iter().filter_map(|(form, _)| form.makes).collect();
            made.dedup();
            let unknown = target.forms.is_empty() || target.forms.iter().any(|(form, _)| form.makes.is_none());
            if !unknown && !made.iter().any(|kind| mention.kinds.contains(kind)) {
                let suited: Vec<&str> = stages
                    .iter()
                    .filter(|other| {
                        other.name != stage.name
                            && other.forms.iter().any(|(f, _)| f.makes.is_some_and(|k| mention.kinds.contains(&k)))
                    })
                    .map(|other| other.name.as_str())
                    .collect();
                let mistake = unsuited(mention, made[0], target);
                mistakes.push(if suited.is_empty() || suited.len() > 12 {
                    mistake
                } else {
                    mistake.help(format!("there {} {}", if suited.len() == 1 { "is" } else { "are" }, listed(&suited, "and")))
                });
            }
        }
    }
}

fn unsuited(mention: &Mention, made: Kind, target: &Declared) -> Mistake {
    let wanted: Vec<&str> = mention.kinds.iter().map(|kind| kind.word()).collect();
    let what = format!(
        "`{}` must be a stage that makes {}, but `{}` makes {made}",
        mention.role,
        wanted.join(" or "),
        mention.name
    );
    let mistake = Mistake::at(&mention.place, what).label(format!("makes {made}"));
    mistake.related(&target.place, format!("`{}` is declared here", target.name))
}

/// The stages, each after those that it mentions, in the order of the recipe where that is free. None where they wait
/// for each other.
pub(super) fn order(stages: &[Declared], by_name: &ByName, mistakes: &mut Vec<Mistake>) -> Option<Vec<usize>> {
    let mut graph: DiGraph<usize, ()> = DiGraph::new();
    let nodes: Vec<NodeIndex> = (0..stages.len()).map(|index| graph.add_node(index)).collect();
    let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); stages.len()];
    for (index, stage) in stages.iter().enumerate() {
        for mention in stage.forms.iter().flat_map(|(form, _)| &form.mentions) {
            if let Some(&target) = by_name.get(mention.name.as_str())
                && before[index].insert(target)
            {
                graph.add_edge(nodes[target], nodes[index], ());
            }
        }
    }
    let mut cycles: Vec<BTreeSet<usize>> = tarjan_scc(&graph)
        .into_iter()
        .map(|component| component.into_iter().map(NodeIndex::index).collect::<BTreeSet<usize>>())
        .filter(|found| found.len() > 1 || found.iter().any(|&one| before[one].contains(&one)))
        .collect();
    if !cycles.is_empty() {
        cycles.sort();
        mistakes.extend(cycles.iter().map(|component| cycle(component, stages, by_name, &before)));
        return None;
    }
    let mut waiting: Vec<usize> = before.iter().map(BTreeSet::len).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        waiting.iter().enumerate().filter(|(_, count)| **count == 0).map(|(index, _)| Reverse(index)).collect();
    let mut order = Vec::with_capacity(stages.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for next in graph.neighbors(nodes[index]).map(NodeIndex::index) {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    Some(order)
}

/// The shortest way round from the first stage of a component, by what each reads.
fn cycle(component: &BTreeSet<usize>, stages: &[Declared], by_name: &ByName, before: &[BTreeSet<usize>]) -> Mistake {
    let start = component.first().copied().unwrap_or_default();
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    'search: while let Some(here) = queue.pop_front() {
        for &next in before[here].intersection(component) {
            if next == start {
                came_from.insert(start, here);
                break 'search;
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = came_from.entry(next) {
                entry.insert(here);
                queue.push_back(next);
            }
        }
    }
    // Read backwards: each stage of the path feeds the next.
    let mut path = vec![start];
    let mut at = came_from.get(&start).copied().unwrap_or(start);
    while at != start && path.len() <= component.len() {
        path.push(at);
        at = came_from.get(&at).copied().unwrap_or(start);
    }
    path.push(start);
    let names: Vec<&str> = path.iter().map(|&index| stages[index].name.as_str()).collect();
    let mut mistake = Mistake::nowhere(format!("stages wait for each other: {}", names.join(" -> ")));
    for pair in path.windows(2) {
        let [from, to] = pair else { continue };
        let reads = |mention: &&Mention| by_name.get(mention.name.as_str()) == Some(from);
        let Some(mention) = stages[*to].forms.iter().flat_map(|(form, _)| &form.mentions).find(reads) else { continue };
        let words = format!("`{}` reads `{}` as `{}`", stages[*to].name, mention.name, mention.role);
        if mistake.place.is_none() {
            mistake.place = Some(mention.place.clone());
            mistake.label = words;
        } else {
            mistake = mistake.related(&mention.place, words);
        }
    }
    mistake
}

/// The instances of one stage, found by what they hold on some axes.
#[derive(Debug, Default)]
struct Group {
    /// By the axes that they have: all of them.
    members: BTreeMap<Vec<usize>, Vec<usize>>,
    /// By those axes and the shared ones: values on the shared ones to instances.
    index: BTreeMap<(Vec<usize>, Vec<usize>), BTreeMap<Vec<usize>, Vec<usize>>>,
}

/// Joins stages into instances.
pub(super) struct Joiner<'a> {
    pub matrix: &'a Matrix,
    pub stages: &'a [Declared],
    pub by_name: &'a ByName<'a>,
    pub instances: Vec<Instance>,
    pub mistakes: Vec<Mistake>,
    groups: Vec<Group>,
    names: BTreeSet<String>,
    evaluations: BTreeMap<(usize, Vec<(String, usize)>), usize>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(matrix: &'a Matrix, stages: &'a [Declared], by_name: &'a ByName<'a>) -> Self {
        Self {
            matrix,
            stages,
            by_name,
            instances: Vec::new(),
            mistakes: Vec::new(),
            groups: stages.iter().map(|_| Group::default()).collect(),
            names: BTreeSet::new(),
            evaluations: BTreeMap::new(),
        }
    }

    /// All instances of a stage whose inputs have theirs. Mistakes of a form that `exclude` leaves no instance do not
    /// count.
    pub(super) fn stage(&mut self, index: usize, ground: &mut Ground, mistakes: &mut Vec<Mistake>) {
        let stage = &self.stages[index];
        let first = self.instances.len();
        for (form, wrong) in &stage.forms {
            let before = self.instances.len();
            self.form(index, form, ground);
            if self.instances.len() > before {
                mistakes.extend(wrong.iter().cloned());
            }
            if self.instances.len() > LIMIT {
                let what = format!("the matrix makes more than {LIMIT} instances of stages");
                self.mistakes.push(Mistake::at(&stage.place, what));
                return;
            }
        }
        if self.instances.len() == first && self.mistakes.is_empty() && mistakes.is_empty() {
            let what = format!("no instance of `{}` is left", stage.name);
            let help = "`exclude` removes all of them, or its inputs have no values in common on the axes they share";
            self.mistakes.push(Mistake::at(&stage.place, what).help(help));
        }
    }

    fn form(&mut self, index: usize, form: &Arc<Form>, ground: &mut Ground) {
        if form.kind.collects {
            self.collect(index, form, ground);
            return;
        }
        let mut joined: Vec<(Cell, Vec<(String, usize)>)> = vec![(form.cell.clone(), Vec::new())];
        for mention in &form.mentions {
            let Some(&target) = self.by_name.get(mention.name.as_str()) else { return };
            if mention.all {
                let all: Vec<(String, usize)> = self
                    .all(target)
                    .into_iter()
                    .map(|one| (format!("{}[{}]", mention.role, self.instances[one].name), one))
                    .collect();
                all.iter().for_each(|(_, one)| self.suits(mention, target, *one));
                joined.iter_mut().for_each(|(_, inputs)| inputs.extend(all.iter().cloned()));
                continue;
            }
            let mut longer = Vec::new();
            for (cell, inputs) in joined {
                for one in self.agreeing(target, &cell) {
                    self.suits(mention, target, one);
                    let cell = union(&cell, &self.instances[one].cell);
                    if !self.matrix.excludes(&cell) {
                        let more = (mention.role.clone(), one);
                        longer.push((cell, inputs.iter().cloned().chain([more]).collect()));
                    }
                }
                if longer.len() > LIMIT {
                    break;
                }
            }
            joined = longer;
        }
        joined.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (cell, inputs) in joined {
            self.push(index, form, cell, inputs, Vec::new());
        }
    }

    fn push(&mut self, index: usize, form: &Arc<Form>, cell: Cell, inputs: Vec<(String, usize)>, rows: Vec<Row>) {
        let stage = &self.stages[index];
        let name = format!("{}{}", stage.name, self.matrix.suffix(&cell));
        let axes: Vec<usize> = cell.iter().map(|(axis, _)| *axis).collect();
        self.groups[index].members.entry(axes).or_default().push(self.instances.len());
        self.names.insert(name.clone());
        self.instances.push(Instance {
            name,
            stage: stage.name.clone(),
            place: stage.place.clone(),
            form: form.clone(),
            axes: self.matrix.labels(&cell),
            inputs,
            hidden: false,
            rows,
            cell,
        });
    }

    fn suits(&mut self, mention: &Mention, target: usize, one: usize) {
        if let Some(made) = self.instances[one].form.makes
            && !mention.kinds.contains(&made)
        {
            let known = |mistake: &Mistake| mistake.place.as_ref() == Some(&mention.place);
            if !self.mistakes.iter().any(known) {
                self.mistakes.push(unsuited(mention, made, &self.stages[target]));
            }
        }
    }

    fn all(&self, target: usize) -> Vec<usize> {
        let mut all: Vec<usize> = self.groups[target].members.values().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    /// The instances of a stage that agree with a point on all axes they share.
    fn agreeing(&mut self, target: usize, cell: &Cell) -> Vec<usize> {
        let group = &mut self.groups[target];
        let mut found = Vec::new();
        for (axes, members) in &group.members {
            let shared: Vec<usize> =
                axes.iter().copied().filter(|axis| cell.iter().any(|(known, _)| known == axis)).collect();
            if shared.is_empty() {
                found.extend(members);
                continue;
            }
            let values_of = |cell: &Cell| -> Vec<usize> {
                cell.iter().filter(|(axis, _)| shared.contains(axis)).map(|(_, value)| *value).collect()
            };
            let index = group.index.entry((axes.clone(), shared.clone())).or_insert_with(|| {
                let mut index: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
                for &member in members {
                    index.entry(values_of(&self.instances[member].cell)).or_default().push(member);
                }
                index
            });
            found.extend(index.get(&values_of(cell)).into_iter().flatten());
        }
        found.sort_unstable();
        found
    }

    /// A collecting stage: all instances of what it lists, each measured by an implied stage of its own against the
    /// instances of `data` and `reference` that agree with it.
    fn collect(&mut self, index: usize, form: &Arc<Form>, ground: &mut Ground) {
        let stage = &self.stages[index];
        let by = format!("{}{}", stage.name, self.matrix.suffix(&form.cell));
        let Some(evaluate) = ground.registry.iter().copied().find(|kind| kind.name == "evaluate") else {
            self.mistakes.push(Mistake::at(&stage.place, "a bug in recant: no kind is called `evaluate`"));
            return;
        };
        let (implied, mut wrong) = super::form::implied(form, evaluate, ground, &stage.place);
        if !wrong.is_empty() && stage.forms.iter().all(|(_, own)| own.is_empty()) {
            self.mistakes.append(&mut wrong);
        }
        let implied = Arc::new(implied);
        let with: Vec<&Mention> = form.mentions.iter().filter(|mention| !mention.all).collect();
        let has = |name: &str| implied.kind.fields.iter().any(|field| field.name == name);
        let (mut inputs, mut rows): (Vec<(String, usize)>, Vec<Row>) = (Vec::new(), Vec::new());
        let mut references: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for mention in form.mentions.iter().filter(|mention| mention.all) {
            let Some(&target) = self.by_name.get(mention.name.as_str()) else { return };
            for model in self.all(target) {
                self.suits(mention, target, model);
                if !mention.kinds.contains(&Kind::Model) {
                    inputs.push((format!("{}[{}]", mention.role, self.instances[model].name), model));
                    continue;
                }
                let Some(chosen) = self.beside(model, mention, &with) else { break };
                let part = |chosen: &[(String, usize)]| -> Vec<(String, usize)> {
                    chosen.iter().filter(|(role, _)| has(role)).cloned().collect()
                };
                let score = self.evaluation(&implied, model, part(&chosen), &by, index);
                let reference = chosen.iter().find(|(role, _)| role == "reference").map(|(_, one)| *one);
                let name = self.instances[model].name.clone();
                inputs.push((format!("scores[{name}]"), score));
                if let Some(reference) = reference {
                    let score = self.evaluation(&implied, reference, part(&chosen), &by, index);
                    inputs.push((format!("reference[{name}]"), score));
                    references.entry(reference).or_default().insert(score);
                }
                rows.push(self.row(model, reference, true));
            }
        }
        for (reference, scores) in references {
            // One that is measured on several splits has no row of its own.
            if let (1, Some(&score)) = (scores.len(), scores.first())
                && !rows.iter().any(|row| row.name == self.instances[reference].name)
            {
                inputs.push((format!("scores[{}]", self.instances[reference].name), score));
                rows.push(self.row(reference, Some(reference), false));
            }
        }
        self.push(index, form, form.cell.clone(), inputs, rows);
    }

    fn row(&self, model: usize, reference: Option<usize>, listed: bool) -> Row {
        let Instance { name, stage, axes, .. } = &self.instances[model];
        let reference = reference.map(|one| self.instances[one].name.clone());
        Row { name: name.clone(), stage: stage.clone(), axes: axes.clone(), reference, listed }
    }

    /// The instances that a row is measured with, by role: those that agree with it, and with each other, on all axes
    /// that they share. None or several is a mistake.
    fn beside(&mut self, model: usize, row: &Mention, with: &[&Mention]) -> Option<Vec<(String, usize)>> {
        let mut joined: Vec<(Cell, Vec<(String, usize)>)> = vec![(self.instances[model].cell.clone(), Vec::new())];
        for mention in with {
            let &target = self.by_name.get(mention.name.as_str())?;
            let mut longer = Vec::new();
            for (cell, chosen) in &joined {
                for one in self.agreeing(target, cell) {
                    self.suits(mention, target, one);
                    let more = (mention.role.clone(), one);
                    let cell = union(cell, &self.instances[one].cell);
                    longer.push((cell, chosen.iter().cloned().chain([more]).collect()));
                }
            }
            let name = &self.instances[model].name;
            if longer.is_empty() {
                let what = format!("no instance of `{}` agrees with the row `{name}`", mention.name);
                let mistake = Mistake::at(&mention.place, what).label("on the axes that they share");
                self.mistakes.push(mistake.related(&row.place, "the row"));
                return None;
            }
            if longer.len() > 1 && longer.len() > joined.len() {
                let names: Vec<&str> = longer
                    .iter()
                    .filter_map(|(_, chosen)| chosen.last())
                    .map(|(_, one)| self.instances[*one].name.as_str())
                    .collect();
                let shown = if names.len() > 3 {
                    format!("{} and {} more", names[..3].iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "), names.len() - 3)
                } else {
                    listed(&names, "and")
                };
                let what = format!("the row `{name}` could be measured against several instances: {shown}");
                let label = format!("{} must be one", a(&mention.role));
                let mistake = Mistake::at(&mention.place, what).label(label).related(&row.place, "the row");
                self.mistakes.push(mistake.help("give both the same axes, or leave the row out"));
                return None;
            }
            joined = longer;
        }
        joined.pop().map(|(_, chosen)| chosen)
    }

    /// The implied stage that measures a model: one for the same model, companions and settings.
    fn evaluation(
        &mut self,
        form: &Arc<Form>,
        model: usize,
        chosen: Vec<(String, usize)>,
        by: &str,
        index: usize,
    ) -> usize {
        let mut inputs = vec![("model".to_owned(), model)];
        inputs.extend(chosen.into_iter().map(|(role, one)| if role == "reference" && false { (role, model) } else { (role, one) }));
        let key = (Arc::as_ptr(form) as usize, inputs.clone());
        if let Some(&known) = self.evaluations.get(&key) {
            return known;
        }
        let of = self.instances[model].name.clone();
        let kind = form.kind.name;
        let data = inputs.iter().find(|(role, _)| role == "data").map_or("", |(_, one)| &self.instances[*one].name);
        let names = [format!("{kind}({of})"), format!("{kind}({of},{by})"), format!("{kind}({of},{by},{data})")];
        let name = names.iter().find(|name| !self.names.contains(*name)).unwrap_or(&names[2]).clone();
        self.names.insert(name.clone());
        let instance = Instance {
            name,
            stage: self.stages[index].name.clone(),
            place: self.stages[index].place.clone(),
            form: form.clone(),
            axes: self.instances[model].axes.clone(),
            inputs,
            hidden: true,
            rows: Vec::new(),
            cell: self.instances[model].cell.clone(),
        };
        self.instances.push(instance);
        self.evaluations.insert(key, self.instances.len() - 1);
        self.instances.len() - 1
    }
}

fn union(a: &Cell, b: &Cell) -> Cell {
    let all: BTreeMap<usize, usize> = a.iter().chain(b).copied().collect();
    all.into_iter().collect()
}
