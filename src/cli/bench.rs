//! `recant bench`: how fast a recipe's stages are on this machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use petgraph::graph::NodeIndex;
use serde_json::{Value, json};

use super::run::device;
use super::{Common, say, wired};
use crate::artifact::Artifact;
use crate::bench::{Bench, Speed, is_timed};
use crate::error::{Error, Result, plural};
use crate::nn::arch::Arch;
use crate::plan::Plan;
use crate::report::{Format, Sheet};

/// Instances of a stage that differ in nothing that takes time: the first is timed for all.
struct Alike {
    node: NodeIndex,
    key: String,
    names: Vec<String>,
}

pub(super) fn bench(path: &Path, names: &[String], common: &Common, seconds: f64, at: &str) -> Result<u8> {
    let budget = Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::Usage(format!("`--seconds {seconds}`: expected a number of seconds")))?;
    let device = device(at)?;
    let (recipe, plan) = wired(path, common, None)?;
    let mut bench = Bench::new(&plan, &device, budget);
    let (mut lines, mut failed, mut sum) = (Vec::new(), Vec::new(), 0.0);
    for Alike { node, names, .. } in alike(&plan, &mut bench, &wanted(&plan, names)?)? {
        let speed = bench.time(node);
        let record = record(&plan, node, &names, &mut bench, &speed)?;
        if common.json {
            say(&record.to_string());
        }
        match speed {
            Ok(speed) => sum += speed.stage_seconds * names.len() as f64,
            Err(error) => failed.push(format!("{}: {error}", names[0])),
        }
        lines.push(line(&record));
    }
    if !common.json {
        let head = ["stage", "what", "network", "batch", "images/s", "ms/step", "s/epoch", "s", "peak MB"];
        let where_to = if device.is_cuda() { "cuda" } else { "cpu" };
        let mut notes = vec![format!("about {sum:.0} s of these stages in all, one after the other")];
        notes.extend(failed.iter().map(|failure| format!("FAILED {failure}")));
        let about = format!("{}: first steps on {where_to}, nothing kept", recipe.name);
        let sheet = Sheet { about, head: head.map(str::to_owned).into(), lines, notes };
        say(&sheet.render(Format::Text));
    }
    Ok(u8::from(!failed.is_empty()))
}

/// The stages to time: those named, or all of the kinds that are timed.
fn wanted(plan: &Plan, names: &[String]) -> Result<Vec<NodeIndex>> {
    let all = if names.is_empty() { plan.order.clone() } else { plan.targets(names)? };
    if let Some(&node) = all.iter().find(|&&node| !names.is_empty() && !is_timed(plan.step(node))) {
        let step = plan.step(node);
        return Err(Error::Usage(format!(
            "`{}` is a stage of kind `{}`: expected one that trains or looks at images",
            step.name, step.kind.name
        )));
    }
    Ok(all.into_iter().filter(|&node| is_timed(plan.step(node))).collect())
}

/// Stages by what takes time: kind, settings but for seeds, network and how many images.
fn alike(plan: &Plan, bench: &mut Bench, nodes: &[NodeIndex]) -> Result<Vec<Alike>> {
    let mut all: Vec<Alike> = Vec::new();
    for &node in nodes {
        let step = plan.step(node);
        let roles: BTreeSet<&str> = plan.inputs(node).map(|(role, _)| role).collect();
        let mut settings = step.settings.clone();
        settings.retain(|name, _| name != "seed" && !roles.contains(name.as_str()));
        let data = plan.inputs(node).find(|(role, _)| *role == "data").map(|(_, data)| data);
        let images = match data.map(|data| bench.artifact(data)).transpose()? {
            Some(Artifact::Images(images)) => vec![images.train.len()],
            Some(Artifact::Split(split)) => vec![split.forget.len(), split.retain.len()],
            _ => Vec::new(),
        };
        let network = bench.network(node)?.map(|arch| arch.to_value()).transpose()?;
        let key = json!([step.kind.name, settings, network, images]).to_string();
        match all.iter_mut().find(|one| one.key == key) {
            Some(one) => one.names.push(step.name.clone()),
            None => all.push(Alike { node, key, names: vec![step.name.clone()] }),
        }
    }
    Ok(all)
}

fn record(plan: &Plan, node: NodeIndex, names: &[String], bench: &mut Bench, speed: &Result<Speed>) -> Result<Value> {
    let step = plan.step(node);
    let network = bench.network(node)?;
    let mut record = json!({
        "stage": names[0],
        "alike": names,
        "kind": step.kind.name,
        "method": step.settings.get("method"),
        "network": network.as_ref().and_then(Arch::settings),
        "parameters": network.as_ref().map(Arch::parameters),
        "batch": step.settings.get("batch"),
    });
    let more = match speed {
        Ok(speed) => serde_json::to_value(speed).map_err(|error| Error::invalid(error.to_string()))?,
        Err(error) => json!({ "error": error.to_string() }),
    };
    if let (Value::Object(record), Value::Object(more)) = (&mut record, more) {
        record.extend(more);
    }
    Ok(record)
}

/// A record in words.
fn line(record: &Value) -> Vec<String> {
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str, factor: f64, digits: usize| {
        record[key].as_f64().map_or("-".to_owned(), |value| format!("{:.digits$}", value * factor))
    };
    let alike = record["alike"].as_array().map_or(1, Vec::len);
    let stage = if alike > 1 { format!("{} and {}", text("stage"), plural(alike - 1, "other")) } else { text("stage") };
    let what = if record["method"].is_string() { text("method") } else { text("kind") };
    let network = record["network"].as_object().map_or(String::new(), |settings| {
        let words = settings.values().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        words.collect::<Vec<_>>().join(" ")
    });
    vec![
        stage,
        what,
        network,
        number("batch", 1.0, 0),
        number("images_per_second", 1.0, 1),
        number("step_seconds", 1000.0, 1),
        number("epoch_seconds", 1.0, 2),
        number("stage_seconds", 1.0, 2),
        number("peak_bytes", 1e-6, 0),
    ]
}
