//! How fast the stages of a plan are on this machine: each is begun as a run would begin it, on the same code, and is
//! stopped after some steps. Nothing is read from a store or written to one: models that a stage needs have random
//! weights, and what an augmenter would make is stood in for.

pub mod memory;
mod stopwatch;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use petgraph::graph::NodeIndex;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::artifact::{Artifact, Encoder, Features, Generator, Mask, Weights};
use crate::cores::{all, on_cores};
use crate::data::{Images, Part, Split};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::arch::{Arch, Shape};
use crate::nn::head;
use crate::nn::model::Model;
use crate::plan::{Plan, Step};
use crate::rng::Rng;
use crate::stage::{Context, Inputs, NoDesk};
pub use stopwatch::{Lap, Phase, Stopwatch};

/// Kinds of stages whose time grows with images and network.
const TIMED: [&str; 7] = ["train", "pretrain", "features", "augment", "saliency", "unlearn", "evaluate"];

/// Whether a step is of a kind that is timed.
#[must_use]
pub fn is_timed(step: &Step) -> bool {
    TIMED.contains(&step.kind.name)
}

/// How fast a stage is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// How many steps were timed; 0 where the stage was over before there was one.
    pub steps: usize,
    /// Median seconds of one: a batch of training, or of images that are looked at.
    pub step_seconds: Option<f64>,
    pub images_per_second: Option<f64>,
    /// Of the whole stage, were all its steps like those that were timed; measured where the stage was over before.
    pub stage_seconds: f64,
    pub epoch_seconds: Option<f64>,
    /// The most memory held meanwhile.
    pub peak_bytes: Option<u64>,
}

impl Speed {
    /// From what a stopwatch saw; `whole` is the time that the stage took where it ran to its end.
    #[must_use]
    pub fn of(phase: &Phase, whole: Option<f64>, epochs: Option<u64>) -> Self {
        let median = |of: &dyn Fn(&Lap) -> f64| {
            let mut all: Vec<f64> = phase.laps.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        // one lap of many steps, or as many laps as steps
        let share = phase.laps.len() as f64 / phase.steps.max(1) as f64;
        let step_seconds = median(&|lap| lap.seconds).map(|seconds| seconds * share);
        let of_one = median(&|lap| lap.seconds / lap.done as f64);
        let of_image = median(&|lap| lap.seconds / lap.images as f64);
        let stage_seconds = whole.or_else(|| Some(of_one? * phase.total as f64)).unwrap_or_default();
        Self {
            steps: phase.steps,
            step_seconds,
            images_per_second: of_image.map(|seconds| 1.0 / seconds).filter(|speed| speed.is_finite()),
            stage_seconds,
            epoch_seconds: epochs.map(|epochs| stage_seconds / epochs.max(1) as f64),
            peak_bytes: None,
        }
    }
}

/// Times stages of one plan.
pub struct Bench<'a> {
    plan: &'a Plan,
    device: &'a Device,
    budget: Duration,
    /// What stages need, by the step that would make it.
    made: BTreeMap<NodeIndex, Artifact>,
}

impl<'a> Bench<'a> {
    /// `budget` is for each stage, after its first step; three steps are timed however long they take.
    #[must_use]
    pub fn new(plan: &'a Plan, device: &'a Device, budget: Duration) -> Self {
        Self { plan, device, budget, made: BTreeMap::new() }
    }

    /// Gives an artifact in place of what that step would make.
    pub fn put(&mut self, node: NodeIndex, artifact: Artifact) {
        self.made.insert(node, artifact);
    }

    /// Begins a stage and times it.
    pub fn time(&mut self, node: NodeIndex) -> Result<Speed> {
        let step = self.plan.step(node);
        let inputs = self.inputs(node)?;
        let watch = Stopwatch::new(self.budget);
        let context = Context { device: self.device, files: step.files.clone(), desk: &watch };
        let stage = (step.kind.make)(&step.settings)?;
        memory::forget_peak();
        let begun = Instant::now();
        // as a run has them
        let whole = match on_cores(all(), || stage.run(&inputs, &context)) {
            Ok(_) => Some(begun.elapsed().as_secs_f64()),
            Err(Error::Interrupted) => None,
            Err(error) => return Err(error),
        };
        watch.end(self.device)?;
        let epochs = step.settings.get("epochs").and_then(Value::as_u64);
        Ok(Speed { peak_bytes: memory::peak(), ..Speed::of(&watch.phase(), whole, epochs) })
    }

    /// The network that a stage trains or looks at, where it makes or reads one.
    pub fn network(&mut self, node: NodeIndex) -> Result<Option<Arch>> {
        let model = self.plan.inputs(node).find(|(role, _)| *role == "model").map(|(_, model)| model);
        let known = [Kind::Model, Kind::Encoder].contains(&self.plan.step(node).makes).then_some(node);
        let Some(source) = model.or(known) else { return Ok(None) };
        match self.artifact(source)? {
            Artifact::Model(weights) => Arch::from_value(&weights.arch).map(Some),
            Artifact::Encoder(encoder) => Arch::from_value(&encoder.network.arch).map(Some),
            _ => Ok(None),
        }
    }

    fn inputs(&mut self, node: NodeIndex) -> Result<Inputs> {
        let roles: Vec<(String, NodeIndex)> =
            self.plan.inputs(node).map(|(role, input)| (role.to_owned(), input)).collect();
        let read = |(role, input)| Ok((role, self.artifact(input)?));
        Ok(Inputs { by_role: roles.into_iter().map(read).collect::<Result<_>>()? })
    }

    /// What a step makes, or something of its shape where that takes long.
    pub fn artifact(&mut self, node: NodeIndex) -> Result<Artifact> {
        if let Some(known) = self.made.get(&node) {
            return Ok(known.clone());
        }
        let step = self.plan.step(node);
        let inputs = self.inputs(node)?;
        let artifact = match step.kind.name {
            "dataset" | "split" | "checkpoint" => {
                let context = Context { device: self.device, files: step.files.clone(), desk: &NoDesk };
                (step.kind.make)(&step.settings)?.run(&inputs, &context)?
            }
            _ => stand_in(step, &inputs)?,
        };
        self.made.insert(node, artifact.clone());
        Ok(artifact)
    }
}

/// So many random training images of CIFAR-10's size, of ten classes in turn.
pub fn random_images(count: usize) -> Result<Images> {
    let mut pixels = vec![0_u8; count * 3 * 32 * 32];
    let root = Rng::new(1).fork("pixels");
    pixels.par_chunks_mut(4096).enumerate().for_each(|(index, chunk)| {
        let mut rng = root.at(index as u64);
        chunk.chunks_mut(4).for_each(|four| four.copy_from_slice(&rng.next_u32().to_le_bytes()[..four.len()]));
    });
    let labels: Vec<u32> = (0..count as u32).map(|index| index % 10).collect();
    let images = Images {
        name: "random pixels".to_owned(),
        classes: (0..10).map(|class| class.to_string()).collect(),
        size: [3, 32, 32],
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        train: Part { pixels: pixels.into(), labels: labels.into() },
        validation: Part::default(),
        test: Part::default(),
        unlabelled: Part::default(),
    };
    images.check()?;
    Ok(images)
}

/// An artifact like the one that the step would make of those inputs.
fn stand_in(step: &Step, inputs: &Inputs) -> Result<Artifact> {
    let rng = Rng::new(0).fork("stand-in");
    let fresh = |arch: &Arch| Model::init(arch, &rng, &Device::Cpu);
    let weights = |model: &Model| Weights::of(model, "nothing".to_owned());
    let of_settings = |images: &Images| {
        let arch = step.settings.get("arch").unwrap_or(&Value::Null);
        Arch::new(arch, images.classes.len(), images.size, &images.mean, &images.std)
    };
    Ok(match step.makes {
        // what was unlearned has the shape of what it was before
        Kind::Model if inputs.by_role.contains_key("model") => inputs.get("model")?.clone(),
        Kind::Model => Artifact::Model(weights(&fresh(&of_settings(images(inputs)?)?)?)?.into()),
        Kind::Encoder => {
            let network = fresh(&of_settings(images(inputs)?)?)?;
            let width = count(step, "projection").unwrap_or(head::WIDTH);
            let head = head::init(&network, width, &rng.fork("head"))?;
            Artifact::Encoder(Encoder { network: weights(&network)?, head: weights(&head)? }.into())
        }
        Kind::Mask => {
            let arch = read(inputs)?;
            let keep = Tensor::ones(arch.parameters(), candle_core::DType::F32, &Device::Cpu)?;
            Artifact::Mask(Mask { arch: arch.to_value()?, keep }.into())
        }
        Kind::Features => {
            let (split, model) = (split(inputs)?, fresh(&read(inputs)?)?);
            let layer = step.settings.get("layer").and_then(Value::as_str).unwrap_or_default().to_owned();
            Artifact::Features(features(split, &model, layer, rng)?.into())
        }
        Kind::Generator => {
            let Artifact::Features(features) = inputs.get("features")? else {
                return Err(Error::invalid("`features` is not features"));
            };
            let wide = features.parts.get("forget").map_or(Ok(1), |(forget, _)| forget.dim(1))?;
            let width = count(step, "width").unwrap_or((wide / 8).max(1));
            let noise = count(step, "noise").unwrap_or(1);
            let shape = Shape::OpenganGenerator { width };
            let network = fresh(&Arch::build("generator", shape, wide, [noise, 1, 1], &[], &[])?)?;
            Artifact::Generator(Generator { network: weights(&network)?, of: features.arch.clone() }.into())
        }
        Kind::Images => {
            let split = split(inputs)?;
            let made = count(step, "count").unwrap_or(split.forget.len());
            Artifact::Images(again(split, made).into())
        }
        other => return Err(Error::invalid(format!("nothing stands in for {}", other.article()))),
    })
}

/// The split's forget images again and again, so many in all.
fn again(split: &Split, count: usize) -> Images {
    let (images, length) = (&split.images, split.images.image_len());
    let chosen: Vec<usize> = split.forget.iter().cycle().take(count).map(|&index| index as usize).collect();
    let pixels = chosen.iter().flat_map(|&index| &images.train.pixels[index * length..][..length]);
    let labels = chosen.iter().map(|&index| images.train.labels[index]);
    let train = Part { pixels: pixels.copied().collect::<Vec<u8>>().into(), labels: labels.collect::<Vec<_>>().into() };
    let (nothing, all) = (Part::default, images.as_ref().clone());
    Images { train, validation: nothing(), test: nothing(), unlabelled: nothing(), ..all }
}

/// Normal numbers, as wide as the layer is.
fn features(split: &Split, model: &Model, layer: String, mut rng: Rng) -> Result<Features> {
    let arch = model.arch();
    let width = if layer == "pooled" {
        arch.features()?
    } else {
        let [channels, height, width] = arch.size;
        let x = Tensor::zeros((1, channels, height, width), candle_core::DType::F32, &Device::Cpu)?;
        model.taps_of(&x, &[layer.as_str()])?.values().map(Tensor::elem_count).sum()
    };
    let mut parts = BTreeMap::new();
    for (name, part, indices) in split.parts() {
        let values: Vec<f32> = rng.normals(indices.len() * width);
        let labels = indices.iter().map(|&index| part.labels[index as usize]).collect();
        let values = Tensor::from_vec(values, (indices.len(), width), &Device::Cpu)?;
        parts.insert(name.to_owned(), (values, labels));
    }
    Ok(Features { arch: arch.to_value()?, layer, parts })
}

fn count(step: &Step, name: &str) -> Option<usize> {
    step.settings.get(name).and_then(Value::as_u64).map(|count| count as usize)
}

/// The network of the input `model`.
fn read(inputs: &Inputs) -> Result<Arch> {
    match inputs.get("model")? {
        Artifact::Model(weights) => Arch::from_value(&weights.arch),
        Artifact::Encoder(encoder) => Arch::from_value(&encoder.network.arch),
        other => Err(Error::invalid(format!("`model` is {}", other.kind().article()))),
    }
}

fn images(inputs: &Inputs) -> Result<&Images> {
    match inputs.get("data")? {
        Artifact::Images(images) => Ok(images),
        Artifact::Split(split) => Ok(&split.images),
        other => Err(Error::invalid(format!("`data` is {}", other.kind().article()))),
    }
}

fn split(inputs: &Inputs) -> Result<&Split> {
    match inputs.get("data")? {
        Artifact::Split(split) => Ok(split),
        other => Err(Error::invalid(format!("`data` is {}, not a split", other.kind().article()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(seconds: &[f64], done: usize, images: usize, total: usize) -> Phase {
        let laps = seconds.iter().map(|&seconds| Lap { seconds, done, images }).collect();
        Phase { laps, steps: seconds.len(), total, ..Phase::default() }
    }

    #[test]
    fn a_stage_is_as_long_as_all_its_steps_at_the_median() {
        let speed = Speed::of(&phase(&[0.5, 9.0, 0.25], 1, 64, 40), None, Some(4));
        assert_eq!((speed.steps, speed.step_seconds), (3, Some(0.5)));
        assert_eq!(speed.images_per_second, Some(128.0));
        assert_eq!((speed.stage_seconds, speed.epoch_seconds), (20.0, Some(5.0)));
    }

    #[test]
    fn many_steps_in_one_lap_are_as_long_as_each_other() {
        let speed = Speed::of(&Phase { steps: 5, ..phase(&[2.0], 5, 320, 40) }, None, None);
        assert_eq!((speed.steps, speed.step_seconds, speed.images_per_second), (5, Some(0.4), Some(160.0)));
        assert_eq!(speed.stage_seconds, 16.0);
    }

    #[test]
    fn where_a_stage_counts_images_its_time_goes_by_them() {
        let speed = Speed::of(&phase(&[2.0; 3], 256, 256, 1024), None, None);
        assert_eq!((speed.stage_seconds, speed.epoch_seconds), (8.0, None));
    }

    #[test]
    fn a_stage_that_was_over_before_took_what_it_took() {
        let speed = Speed::of(&phase(&[], 1, 64, 1), Some(0.75), Some(1));
        assert_eq!((speed.steps, speed.step_seconds, speed.images_per_second), (0, None, None));
        assert_eq!((speed.stage_seconds, speed.epoch_seconds), (0.75, Some(0.75)));
    }
}
