//! `[matrix]`: an axis multiplies the stages that mention it, and the stages that these feed. A collecting stage takes in
//! all instances and inherits no axis.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::check::suggest;
use super::node::{Key, Node, Room, Val};
use super::{Axes, Declared, label, reference};
use crate::error::{Mistake, Place, nearest, short};

/// More instances of one stage or values of one axis are a slip.
const LIMIT: usize = 10_000;
/// More axes are one too, and more exclusions, and more stages in all.
const AXES: usize = 50;
const EXCLUSIONS: usize = 1000;
pub(super) const STAGES: usize = 2 * LIMIT;
/// Pairs of instances that are looked at, in all.
const PAIRS: usize = 200_000_000;

/// Which value of which axis, by their numbers.
pub(super) type Assignment = BTreeMap<usize, usize>;

/// What a stage gets from `[defaults]`.
pub(super) type Inherited<'a> = &'a mut dyn FnMut(&Node) -> Vec<(Key, Node)>;

#[derive(Debug)]
struct Axis {
    name: String,
    place: Place,
    values: Vec<Point>,
}

/// One value of an axis.
#[derive(Debug)]
struct Point {
    /// What `${matrix.AXIS}` inserts: the value, or the variant's name.
    value: Val,
    /// What `merge` takes in.
    variant: Option<Node>,
}

#[derive(Debug, Default)]
pub(super) struct Matrix {
    axes: Vec<Axis>,
    /// Each: axes with the values that are excluded where all of them meet.
    exclude: Vec<BTreeMap<usize, BTreeSet<usize>>>,
}

impl Matrix {
    pub(super) fn read(root: &Node, mistakes: &mut Vec<Mistake>) -> Self {
        let mut matrix = Self::default();
        let Some(table) = root.get("matrix") else { return matrix };
        if table.entries().len() > AXES + 1 {
            let what = format!("there are {} axes, expected at most {AXES}", table.entries().len());
            mistakes.push(Mistake::at(&table.place, what));
            return matrix;
        }
        for (key, node) in table.entries().iter().filter(|(key, _)| key.name != "exclude") {
            let point = |value: Val, variant| Point { value, variant };
            let values: Vec<Point> = match &node.value {
                Val::List(items) => items.iter().map(|item| point(item.value.clone(), None)).collect(),
                Val::Table(variants) => {
                    let named = |(key, node): &(Key, Node)| {
                        if matches!(node.value, Val::Table(_)) {
                            Some(point(Val::Text(key.name.clone()), Some(node.clone())))
                        } else {
                            let what = format!("the variant `{}` is {}, but must be a table", key.name, node.noun());
                            mistakes.push(Mistake::at(&node.place, what));
                            None
                        }
                    };
                    variants.iter().filter_map(named).collect()
                }
                _ => Vec::new(),
            };
            if values.len() > LIMIT {
                let what = format!("the axis `{}` has {} values, expected at most {LIMIT}", key.name, values.len());
                mistakes.push(Mistake::at(&key.place, what));
                continue;
            }
            let mut seen = BTreeSet::new();
            let twice = values.iter().map(words).find(|value| !seen.insert(value.clone()));
            if values.is_empty() {
                let what = format!("the axis `{}` has no values", key.name);
                mistakes.push(Mistake::at(&key.place, what).label("expected a list of values, or tables of variants"));
            } else if let Some(value) = twice {
                mistakes.push(Mistake::at(&key.place, format!("the axis `{}` has {value} twice", key.name)));
            }
            matrix.axes.push(Axis { name: key.name.clone(), place: key.place.clone(), values });
        }
        if let Some(exclude) = table.get("exclude") {
            matrix.read_exclude(exclude, mistakes);
        }
        matrix
    }

    fn read_exclude(&mut self, exclude: &Node, mistakes: &mut Vec<Mistake>) {
        let Val::List(items) = &exclude.value else {
            let what = format!("`exclude` is {}, but must be a list of tables", exclude.noun());
            mistakes.push(Mistake::at(&exclude.place, what).label("{ axis = value } or { axis = [values] }"));
            return;
        };
        if items.len() > EXCLUSIONS {
            let what = format!("`exclude` has {} tables, expected at most {EXCLUSIONS}", items.len());
            mistakes.push(Mistake::at(&exclude.place, what));
            return;
        }
        let names: Vec<&str> = self.axes.iter().map(|axis| axis.name.as_str()).collect();
        // By the words of a value: which one it is.
        let numbered = |axis: &Axis| axis.values.iter().map(words).zip(0..).collect();
        let all: Vec<BTreeMap<String, usize>> = self.axes.iter().map(numbered).collect();
        for item in items {
            if item.entries().is_empty() {
                mistakes.push(Mistake::at(&item.place, "an exclusion names axes: { axis = value }"));
            }
            let mut meeting = BTreeMap::new();
            for (key, node) in item.entries() {
                let Some(axis) = names.iter().position(|name| *name == key.name) else {
                    let mistake = Mistake::at(&key.place, format!("there is no axis `{}`", key.name));
                    mistakes.push(suggest(mistake, &key.name, &names, "axis"));
                    continue;
                };
                let wanted =
                    if let Val::List(items) = &node.value { items.as_slice() } else { std::slice::from_ref(node) };
                let values = &self.axes[axis].values;
                let mut told = false;
                for value in wanted {
                    let plain = value.plain();
                    if let Some(&found) = all[axis].get(&plain.to_string()) {
                        meeting.entry(axis).or_insert_with(BTreeSet::new).insert(found);
                        continue;
                    }
                    let mistake =
                        Mistake::at(&value.place, format!("the axis `{}` has no value {plain}", short(&key.name)));
                    // Once: there may be very many.
                    if std::mem::replace(&mut told, true) {
                        mistakes.push(mistake);
                        continue;
                    }
                    let known = values.iter().map(|point| point.value.plain());
                    let some: Vec<Value> = known.take(20).take_while(|value| value.to_string().len() < 200).collect();
                    let more = if some.len() < values.len() { " and more" } else { "" };
                    mistakes.push(mistake.help(format!("its values are {}{more}", Value::from(some))));
                }
            }
            self.exclude.push(meeting);
        }
    }

    fn excluded(&self, at: &Assignment) -> bool {
        let meets =
            |(axis, values): (&usize, &BTreeSet<usize>)| at.get(axis).is_some_and(|value| values.contains(value));
        self.exclude.iter().any(|meeting| !meeting.is_empty() && meeting.iter().all(meets))
    }

    fn axis(&self, path: &str) -> Option<usize> {
        let name = path.strip_prefix("matrix.")?;
        self.axes.iter().position(|axis| axis.name == name)
    }

    /// A stage once for each assignment of the axes that it, its variants or its defaults mention, with variants merged
    /// and references replaced.
    pub(super) fn unfold(
        &self,
        stage: Node,
        inherited: Inherited,
        room: &mut Room,
        mistakes: &mut Vec<Mistake>,
    ) -> Vec<(Assignment, Node)> {
        let place = stage.place.clone();
        let large = || vec![Mistake::at(&place, "the axes multiply this stage to too many bytes")];
        let mut done = Vec::new();
        // (assignment so far, the stage, whether its defaults are laid in)
        let mut open = vec![(Assignment::new(), stage, false)];
        while let Some((at, mut node, complete)) = open.pop() {
            if self.excluded(&at) {
                continue;
            }
            if open.len() + done.len() > LIMIT {
                mistakes.push(Mistake::at(&place, format!("the axes multiply this stage more than {LIMIT} times")));
                return Vec::new();
            }
            let mentioned =
                reference::paths(&node).iter().find_map(|path| self.axis(path).filter(|axis| !at.contains_key(axis)));
            if let Some(axis) = mentioned {
                if !room.take(self.axes[axis].values.len().saturating_mul(node.value.bytes())) {
                    mistakes.extend(large());
                    return Vec::new();
                }
                // The last is taken first: in reverse, so that instances come in the order of values.
                for value in (0..self.axes[axis].values.len()).rev() {
                    let mut at = at.clone();
                    at.insert(axis, value);
                    open.push((at, node.clone(), complete));
                }
            } else if node.get("merge").is_some() {
                match self.merged(node, &at) {
                    Ok(node) if !room.take(node.value.bytes()) => {
                        mistakes.extend(large());
                        return Vec::new();
                    }
                    Ok(node) => open.push((at, node, complete)),
                    Err(mut more) => mistakes.append(&mut more),
                }
            } else {
                reference::replace(&mut node, &|path| self.value(path, &at), room, mistakes);
                if complete {
                    done.push((at, node));
                } else {
                    for (key, default) in inherited(&node) {
                        node.put(key, default);
                    }
                    if !room.take(node.value.bytes()) {
                        mistakes.extend(large());
                        return Vec::new();
                    }
                    open.push((at, node, true));
                }
            }
        }
        done
    }

    fn value(&self, path: &str, at: &Assignment) -> Result<Option<Val>, String> {
        let found = self.axis(path).and_then(|axis| Some(&self.axes[axis].values.get(*at.get(&axis)?)?.value));
        found.map(|value| Some(value.clone())).ok_or_else(|| {
            let names: Vec<&str> = self.axes.iter().map(|axis| axis.name.as_str()).collect();
            match nearest(path.strip_prefix("matrix.").unwrap_or(path), names.iter().copied()) {
                Some(near) => format!("did you mean `${{matrix.{near}}}`?"),
                None => "a reference is `${params.NAME}` or `${matrix.AXIS}`, with AXIS under [matrix]".to_owned(),
            }
        })
    }

    /// Takes in the variants that `merge` names.
    fn merged(&self, mut stage: Node, at: &Assignment) -> Result<Node, Vec<Mistake>> {
        let Some(merge) = stage.get("merge").cloned() else { return Ok(stage) };
        stage.remove("merge");
        let items = if let Val::List(items) = merge.value { items } else { vec![merge] };
        let mut mistakes = Vec::new();
        let mut taken: BTreeMap<String, (Place, usize)> = BTreeMap::new();
        for item in items {
            let text = item.text().unwrap_or_default();
            let path = text.strip_prefix("${").and_then(|text| text.strip_suffix('}')).unwrap_or_default();
            let point = self.axis(path).and_then(|axis| Some((axis, self.axes[axis].values.get(*at.get(&axis)?)?)));
            let Some((axis, Point { variant: Some(variant), .. })) = point else {
                let what = format!("`merge` takes in variants, but {} names none", item.plain());
                mistakes.push(
                    Mistake::at(&item.place, what)
                        .help("merge = \"${matrix.AXIS}\", with [matrix.AXIS.VARIANT] tables"),
                );
                continue;
            };
            for (key, _) in variant.entries() {
                if ["kind", "run", "merge"].contains(&key.name.as_str()) {
                    let what = format!("`{}` may not come from a variant", key.name);
                    mistakes.push(Mistake::at(&key.place, what));
                }
                match taken.get(&key.name) {
                    Some((other, from)) if *from != axis => {
                        let what = format!("two merged variants set `{}`", key.name);
                        mistakes.push(Mistake::at(&key.place, what).related(other, "the other one"));
                    }
                    _ => drop(taken.insert(key.name.clone(), (key.place.clone(), axis))),
                }
            }
            stage.merge(variant.clone(), 0);
        }
        if mistakes.is_empty() { Ok(stage) } else { Err(mistakes) }
    }

    /// A `--set` must not be silently beaten by a variant.
    pub(super) fn check_set(&self, root: &Node, set: &[String], mistakes: &mut Vec<Mistake>) {
        for assignment in set {
            let path: Vec<&str> = assignment.split('=').next().unwrap_or_default().trim().split('.').collect();
            let ["stages", stage, key, ..] = path.as_slice() else { continue };
            let merge = root.get("stages").and_then(|stages| stages.get(stage)).and_then(|stage| stage.get("merge"));
            let axes = merge.map(reference::paths).unwrap_or_default();
            for axis in axes.iter().filter_map(|path| self.axis(path)) {
                for point in &self.axes[axis].values {
                    let Some(node) = point.variant.as_ref().and_then(|variant| variant.get(key)) else { continue };
                    let (name, variant) = (&self.axes[axis].name, point.value.plain());
                    let variant = variant.as_str().unwrap_or_default().to_owned();
                    let what = format!("`--set {assignment}`: the variant `{variant}` of `{name}` sets `{key}` too");
                    let mistake = Mistake::at(&node.place, what).label("this value would win");
                    mistakes.push(mistake.help(format!("--set matrix.{name}.{variant}.{key}=VALUE")));
                }
            }
        }
    }

    /// An axis that multiplies nothing is a slip.
    pub(super) fn check_used(&self, own: &[(Assignment, Declared)], mistakes: &mut Vec<Mistake>) {
        // Where stages were wrong, the axes may be theirs.
        if !mistakes.is_empty() {
            return;
        }
        for (number, axis) in self.axes.iter().enumerate() {
            if !own.iter().any(|(at, _)| at.contains_key(&number)) {
                let what = format!("the axis `{}` multiplies no stage", axis.name);
                mistakes.push(Mistake::at(&axis.place, what).help(format!("mention `${{matrix.{}}}`", axis.name)));
            }
        }
    }

    /// The stages with the axes of their inputs too, each reading the instances that agree with it.
    pub(super) fn join(
        &self,
        own: &[(Assignment, Declared)],
        room: &mut Room,
        mistakes: &mut Vec<Mistake>,
    ) -> Vec<Declared> {
        let sizes: Vec<usize> = own.iter().map(|(_, stage)| stage.bytes()).collect();
        let mut spread = Spread::new(self, own);
        let mut bases: Vec<&str> = Vec::new();
        for (_, stage) in own {
            if bases.last() != Some(&stage.base.as_str()) {
                bases.push(&stage.base);
                if let Err(mistake) = spread.reach(&stage.base) {
                    mistakes.push(mistake);
                    return Vec::new();
                }
            }
        }
        let mut joined = Vec::new();
        for base in bases {
            for (at, index) in &spread.done[base] {
                let axes = self.axes_of(at);
                // The axes are said in names and by each of the inputs too.
                let said: usize = axes.iter().map(|(axis, value)| axis.len() + value.to_string().len()).sum();
                if !room.take(sizes[*index] + said * (3 + own[*index].1.mentions.len())) {
                    let what = "the axes of its inputs multiply this stage to too many bytes";
                    mistakes.push(Mistake::at(&own[*index].1.place, what));
                    return Vec::new();
                }
                let mut stage = own[*index].1.clone();
                stage.axes = axes;
                stage.name = label(base, &stage.axes);
                if !stage.kind.collects {
                    for mention in &mut stage.mentions {
                        let Some(found) = spread.done.get(mention.name.as_str()) else { continue };
                        let Some((input, _)) = found.iter().find(|(input, _)| agree(input, at)) else { continue };
                        mention.name = label(&mention.name, &self.axes_of(input));
                        put(&mut stage.settings, &mention.role, &mention.name);
                    }
                }
                joined.push(stage);
            }
        }
        joined
    }

    fn axes_of(&self, at: &Assignment) -> Axes {
        let of = |(&axis, &value): (&usize, &usize)| {
            let axis = &self.axes[axis];
            (axis.name.clone(), axis.values[value].value.plain())
        };
        at.iter().map(of).collect()
    }
}

/// A value in words: by these it is told from others.
fn words(point: &Point) -> String {
    point.value.plain().to_string()
}

fn agree(a: &Assignment, b: &Assignment) -> bool {
    a.iter().all(|(axis, value)| b.get(axis).is_none_or(|other| other == value))
}

/// Writes the name of an instance where the setting at a path, `ssl.reference`, named the stage.
fn put(settings: &mut crate::settings::Settings, path: &str, name: &str) {
    match path.split_once('.') {
        None => drop(settings.insert(path.to_owned(), Value::from(name))),
        Some((first, rest)) => {
            if let Some(Value::Object(inner)) = settings.get_mut(first) {
                put(inner, rest, name);
            }
        }
    }
}

/// Instances of stages, found inputs first.
struct Spread<'a> {
    matrix: &'a Matrix,
    own: &'a [(Assignment, Declared)],
    /// By base: which of `own` are its.
    of: BTreeMap<&'a str, Vec<usize>>,
    /// By base: assignments, and which of `own` each comes from.
    done: BTreeMap<&'a str, Vec<(Assignment, usize)>>,
    count: usize,
    pairs: usize,
}

impl<'a> Spread<'a> {
    fn new(matrix: &'a Matrix, own: &'a [(Assignment, Declared)]) -> Self {
        let mut of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, (_, stage)) in own.iter().enumerate() {
            of.entry(&stage.base).or_default().push(index);
        }
        Self { matrix, own, of, done: BTreeMap::new(), count: 0, pairs: 0 }
    }

    /// Finds the instances of a stage, those of its inputs first; without recursion, as a chain may be long.
    fn reach(&mut self, base: &'a str) -> Result<(), Mistake> {
        let mut open = vec![(base, false)];
        while let Some((base, ready)) = open.pop() {
            let mine = self.of.get(base).cloned().unwrap_or_default();
            if ready {
                let found = self.instances(&mine)?;
                self.done.insert(base, found);
            } else if !self.done.contains_key(base) {
                // Inside a cycle a stage counts without its inputs' axes; the plan will name the cycle.
                let alone = mine.iter().map(|&index| (self.own[index].0.clone(), index)).collect();
                self.done.insert(base, alone);
                open.push((base, true));
                let inputs = mine.iter().flat_map(|&index| self.inputs(index));
                open.extend(inputs.filter(|input| !self.done.contains_key(input)).map(|input| (input, false)));
            }
        }
        Ok(())
    }

    /// The stages that one mentions, unless it collects.
    fn inputs(&self, index: usize) -> impl Iterator<Item = &'a str> + use<'a> {
        let stage = &self.own[index].1;
        let mentions = if stage.kind.collects { &[] } else { stage.mentions.as_slice() };
        mentions.iter().map(|mention| mention.name.as_str())
    }

    fn instances(&mut self, mine: &[usize]) -> Result<Vec<(Assignment, usize)>, Mistake> {
        let mut found = Vec::new();
        for &index in mine {
            let (at, stage) = &self.own[index];
            let mut partial = vec![at.clone()];
            for input in self.inputs(index) {
                let Some(inputs) = self.done.get(input).filter(|inputs| !inputs.is_empty()) else { continue };
                self.pairs = self.pairs.saturating_add(partial.len() * inputs.len());
                let (mut wider, mut seen) = (Vec::new(), BTreeSet::new());
                for at in &partial {
                    for (input, _) in inputs.iter().filter(|(input, _)| agree(input, at)) {
                        let mut both = at.clone();
                        both.extend(input);
                        if seen.insert(both.clone()) {
                            wider.push(both);
                        }
                    }
                    if wider.len() > LIMIT || self.pairs > PAIRS {
                        let what = format!("the axes of its inputs multiply this stage more than {LIMIT} times");
                        return Err(Mistake::at(&stage.place, what));
                    }
                }
                partial = wider;
            }
            // With the axes of the inputs, an instance may be excluded that was not by its own.
            found.extend(partial.into_iter().filter(|at| !self.matrix.excluded(at)).map(|at| (at, index)));
            if found.len() > LIMIT || self.count + found.len() > STAGES {
                let what = format!("the axes multiply this stage more than {LIMIT} times, or all more than {STAGES}");
                return Err(Mistake::at(&stage.place, what));
            }
        }
        self.count += found.len();
        Ok(found)
    }
}
