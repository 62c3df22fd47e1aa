//! Inputs of one step that must fit each other: each check looks at a step and what it reads.

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::Value;

use super::Step;
use super::origin::oracle;
use crate::dataset::{self, Dataset};
use crate::error::{Mistake, listed, nearest};
use crate::kind::Kind;
use crate::method::with_teachers;

type Graph = DiGraph<Step, String>;

/// A check of one step: what is wrong with it.
type Check = fn(&Graph, NodeIndex) -> Option<Mistake>;

const CHECKS: &[Check] =
    &[mask, augment, generator, rewind, classes, rest, unlabelled, reference_network, reference_images, oracle];

pub(super) fn mistakes(plan: &Graph) -> Vec<Mistake> {
    plan.node_indices().flat_map(|node| CHECKS.iter().filter_map(move |check| check(plan, node))).collect()
}

/// What a step reads in that role.
pub(super) fn input(plan: &Graph, node: NodeIndex, role: &str) -> Option<NodeIndex> {
    plan.edges_directed(node, Direction::Incoming).find(|edge| edge.weight() == role).map(|edge| edge.source())
}

/// The architecture that a step's settings name, or those of the model that it was made from.
fn network(plan: &Graph, mut node: NodeIndex) -> Option<&Value> {
    loop {
        if let Some(arch) = plan[node].settings.get("arch") {
            return Some(arch);
        }
        node = input(plan, node, "model")?;
    }
}

fn mistake(plan: &Graph, node: NodeIndex, what: String, label: &str, because: NodeIndex) -> Mistake {
    let because = &plan[because];
    let mistake = Mistake::at(&plan[node].place, what).label(label);
    mistake.related(&because.place, format!("`{}` is declared here", because.base))
}

/// A mask is of the model's own network.
fn mask(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let (model, mask) = (input(plan, node, "model")?, input(plan, node, "mask")?);
    if network(plan, model)? == network(plan, mask)? {
        return None;
    }
    let (own, other) = (&plan[model].name, &plan[mask].name);
    let what = format!("the mask `{other}` was made for another network than that of `{own}`");
    Some(mistake(plan, node, what, "the networks differ", mask))
}

/// More images to forget come from the same split.
fn augment(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let (data, more) = (input(plan, node, "data")?, input(plan, node, "augment")?);
    if input(plan, more, "data")? == data {
        return None;
    }
    let (own, other) = (&plan[data].name, &plan[more].name);
    let what = format!("the images of `{other}` were not made from the split `{own}`");
    Some(mistake(plan, node, what, "other images to forget", more))
}

/// A generator is for methods that follow a teacher, and imitates what the last layer of the model that forgets reads.
fn generator(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let made = input(plan, node, "augment").filter(|&made| plan[made].makes == Kind::Generator)?;
    let name = &plan[made].name;
    let teachers = with_teachers();
    if let Some(method) = plan[node].settings.get("method").and_then(Value::as_str).filter(|m| !teachers.contains(m)) {
        let those = listed(&teachers, "and");
        let what = format!("`{method}` follows no teacher, so the generator `{name}` is of no use to it; {those} do");
        return Some(mistake(plan, node, what, "follows no teacher", made));
    }
    let features = input(plan, made, "features")?;
    // An evaluation may look at a generator with any model of that network.
    for role in ["model", "data"].into_iter().skip(usize::from(plan[node].makes == Kind::Scores)) {
        let (own, other) = (input(plan, node, role)?, input(plan, features, role)?);
        if own != other {
            let (own, other) = (&plan[own].name, &plan[other].name);
            let what = format!("the generator `{name}` was trained on features with the {role} `{other}`, not `{own}`");
            return Some(mistake(plan, node, what, "would follow other features", made));
        }
    }
    let layer = plan[features].settings.get("layer")?.as_str().filter(|&layer| layer != "pooled")?;
    let what = format!("the generator `{name}` was trained on the layer `{layer}`, but the last layer reads `pooled`");
    Some(mistake(plan, node, what, "cannot answer for such features", features))
}

/// To rewind, a method needs images of the data set that nothing was trained on.
fn rewind(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    if plan[node].settings.get("rewind")? != &Value::Bool(true) {
        return None;
    }
    let images = input(plan, input(plan, node, "data")?, "data")?;
    if plan[images].settings.get("validation")?.as_f64()? > 0.0 {
        return None;
    }
    let what =
        format!("`rewind` needs images that were never trained on, but `{}` keeps none apart", plan[images].name);
    let place = &plan[images].place;
    let mistake = Mistake::at(&plan[node].place, what).label("nothing to compare with");
    Some(mistake.related(place, "give it a share for validation, such as `validation = 0.1`"))
}

/// The data set that a split divides, with the settings of the stage that reads it.
fn divided(plan: &Graph, node: NodeIndex) -> Option<(&'static Dataset, NodeIndex)> {
    let images = input(plan, node, "data").filter(|_| plan[node].settings.contains_key("forget"))?;
    Some((dataset::find(plan[images].settings.get("source")?.as_str()?).ok()?, images))
}

/// The classes to forget are there.
fn classes(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let (dataset, images) = divided(plan, node)?;
    let known = |class: &Value| match class {
        Value::String(name) => dataset.classes.contains(&name.as_str()),
        number => number.as_u64().is_some_and(|number| (number as usize) < dataset.classes.len()),
    };
    let wanted = plan[node].settings["forget"].get("classes")?.as_array()?;
    let unknown = wanted.iter().find(|class| !dataset.classes.is_empty() && !known(class))?;
    let what = format!("`{}` has no class {unknown}", dataset.name);
    let near = unknown.as_str().and_then(|name| nearest(name, dataset.classes.iter().copied()));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            format!("its classes are {}, by these names or by their numbers from 0", listed(dataset.classes, "and"))
        }
    };
    Some(mistake(plan, node, what, "no such class", images).help(help))
}

/// Something is left to retain.
fn rest(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let (dataset, images) = divided(plan, node)?;
    let count = plan[node].settings["forget"].get("count").filter(|_| dataset.counts[0] > 0)?.as_u64()?;
    let limit = plan[images].settings.get("train_limit").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let all = limit.min(dataset.counts[0] as u64);
    if count < all {
        return None;
    }
    let what = format!("{count} images are to be forgotten, but `{}` has {all} to train on", plan[images].name);
    Some(mistake(plan, node, what, "nothing would be left to retain", images))
}

/// There are unlabelled images where they are asked for.
fn unlabelled(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    if plan[node].settings.get("part")? != "unlabelled" {
        return None;
    }
    let images = input(plan, node, "data")?;
    let dataset = dataset::find(plan[images].settings.get("source")?.as_str()?).ok()?;
    if dataset.counts[2] > 0 {
        return None;
    }
    let having = dataset::DATASETS.iter().filter(|known| known.counts[2] > 0).map(|known| known.name);
    let help = format!("{} has one", listed(&having.collect::<Vec<_>>(), "and"));
    let what = format!("`{}` has no unlabelled part", dataset.name);
    Some(mistake(plan, node, what, "nothing to pretrain on", images).help(help))
}

/// The network that self-supervision compares with is built as the student is: projections of other features say nothing.
fn reference_network(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let (model, reference) = (input(plan, node, "model")?, input(plan, node, "ssl.reference")?);
    if network(plan, model)? == network(plan, reference)? {
        return None;
    }
    let (own, other) = (&plan[model].name, &plan[reference].name);
    let what = format!("the reference `{other}` is another network than `{own}`");
    Some(mistake(plan, node, what, "the networks differ", reference))
}

/// It was pretrained on the same data set.
fn reference_images(plan: &Graph, node: NodeIndex) -> Option<Mistake> {
    let images = |node: NodeIndex| {
        let data = input(plan, node, "data")?;
        Some(input(plan, data, "data").unwrap_or(data))
    };
    let reference = input(plan, node, "ssl.reference")?;
    let (own, other) = (images(node)?, images(reference)?);
    if own == other {
        return None;
    }
    let what = format!(
        "the reference `{}` was pretrained on `{}`, but the split is of `{}`",
        plan[reference].name, plan[other].name, plan[own].name
    );
    Some(mistake(plan, node, what, "another data set", reference))
}
