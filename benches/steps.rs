//! One row of the benchmark matrix: steps as a recipe runs them, on random pixels of CIFAR-10's size. Prints one JSON
//! object a measurement: `cargo bench --bench steps -- ROW [--batch 64] [--width 64] [--precision f32] [--seconds 4]
//! [--device cpu]`. benches/compare.py runs it and PyTorch in turn.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use petgraph::graph::NodeIndex;
use recant::artifact::Artifact;
use recant::augment::arpl::canvas::Canvas;
use recant::augment::arpl::round::{GENERATOR, deceive, discriminate, noise};
use recant::batches::{Drawn, Loader};
use recant::bench::{Bench, Speed, Stopwatch, memory, random_images};
use recant::cores::{all, on_cores};
use recant::data::Images;
use recant::error::{Error, Result, listed};
use recant::nn::arch::{Arch, Precision, Shape};
use recant::nn::gpu;
use recant::nn::model::Model;
use recant::nn::optim::Rule;
use recant::nn::schedule::Schedule;
use recant::nn::transform::Transform;
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::rng::Rng;
use recant::stage::{STAGES, evaluate};
use recant::trainer::{Recipe as Training, Trainer};
use serde_json::json;

const RESNET18: &str = r#"name = "resnet18""#;
/// Rows that are stages of the recipe below: row, stage and network.
const ROWS: [(&str, &str, &str); 9] = [
    ("resnet18", "original", RESNET18),
    ("resnet18_pool", "original", r#"name = "resnet18", stem = "cifar_pool""#),
    ("resnet18_imagenet", "original", r#"name = "resnet18", stem = "imagenet""#),
    ("resnet50", "original", r#"name = "resnet50""#),
    ("allcnn", "original", r#"name = "allcnn""#),
    ("simclr", "simclr", RESNET18),
    ("scrub", "scrub", RESNET18),
    ("bad_teaching", "bad_teaching", RESNET18),
    ("opengan", "opengan", RESNET18),
];
/// The one that is part of a stage: generator and discriminator of ARPL+CS.
const DCGAN: &str = "dcgan";

/// Far more epochs than are ever done, at a rate that does no harm.
fn recipe(network: &str, options: &Options, width: usize, forget: usize) -> String {
    let precision = if options.bf16 { "bf16" } else { "f32" };
    let arch = format!("{{ {network}, width = {width}, precision = \"{precision}\" }}");
    let training = format!("batch = {}\nepochs = 1000000\nlr = 0.001", options.batch);
    format!(
        r#"recipe = 1
[stages.images]
kind = "dataset"
source = "cifar10"
[stages.split]
kind = "split"
data = "images"
forget = {{ count = {forget} }}
[stages.original]
kind = "train"
data = "images"
arch = {arch}
{training}
[stages.simclr]
kind = "pretrain"
method = "simclr"
data = "images"
arch = {arch}
{training}
[stages.scrub]
kind = "unlearn"
method = "scrub"
model = "original"
data = "split"
msteps = 0
{training}
[stages.bad_teaching]
kind = "unlearn"
method = "bad_teaching"
model = "original"
data = "split"
retain_share = 1.0
optimizer = "sgd"
{training}
[stages.features]
kind = "features"
model = "original"
data = "split"
[stages.opengan]
kind = "augment"
method = "opengan"
features = "features"
select_every = 0
precision = "{precision}"
{training}
"#
    )
}

struct Options {
    batch: usize,
    width: usize,
    bf16: bool,
    budget: Duration,
    device: Device,
}

fn batches(images: &Arc<Images>, options: &Options) -> Loader {
    Loader::Drawn(Drawn {
        part: images.train.clone(),
        images: images.clone(),
        indices: (0..images.train.len() as u32).collect(),
        batch: options.batch,
        transform: Transform::default(),
        rng: Rng::new(2),
        device: options.device.clone(),
        labels: None,
        views: None,
    })
}

/// A stage of the recipe, and evaluation of the network where the stage only trains it.
fn of_recipe(row: &str, stage: &str, network: &str, options: &Options) -> Result<()> {
    let images = Arc::new(random_images(8 * options.batch)?);
    // its own width is 96 where that of the others is 64
    let width = if row == "allcnn" { 3 * options.width / 2 } else { options.width };
    let text = recipe(network, options, width, images.train.len() / 2);
    let recipe = Recipe::read(Path::new("steps.toml"), &|_| Ok(text.clone().into_bytes()), &[], STAGES)?;
    let plan = Plan::new(&recipe, &evaluate::KIND, &BTreeMap::new())?;
    let node = |name: &str| -> Result<NodeIndex> {
        plan.targets(&[name.to_owned()])?.first().copied().ok_or_else(|| Error::invalid(format!("no stage `{name}`")))
    };
    let mut bench = Bench::new(&plan, &options.device, options.budget);
    bench.put(node("images")?, Artifact::Images(images.clone()));
    let speed = bench.time(node(stage)?)?;
    let mut work = None;
    let parameters = match bench.artifact(node(stage)?)? {
        Artifact::Model(model) => {
            let arch = Arch::from_value(&model.arch)?;
            let [forth, back] = arch.multiply_adds();
            let teachers = match row {
                "scrub" => 1,
                "bad_teaching" => 2,
                _ => 0,
            };
            work = Some((1 + teachers) * forth + back);
            arch.parameters()
        }
        Artifact::Encoder(encoder) => {
            let [network, head] = [&encoder.network, &encoder.head].map(|weights| Arch::from_value(&weights.arch));
            let (network, head) = (network?, head?);
            // two views of an image; a head's gradient goes on to what it reads
            let [[forth, back], [on_forth, _]] = [network.multiply_adds(), head.multiply_adds()];
            work = Some(2 * (forth + back + 3 * on_forth));
            network.parameters() + head.parameters()
        }
        Artifact::Generator(generator) => {
            let generator = Arch::from_value(&generator.network.arch)?;
            let (features, width) = (generator.classes, (generator.classes / 8).max(1));
            let judge = Shape::OpenganDiscriminator { width };
            generator.parameters() + Arch::build("discriminator", judge, 1, [features, 1, 1], &[], &[])?.parameters()
        }
        other => return Err(Error::invalid(format!("`{stage}` makes {}", other.kind().article()))),
    };
    say((row, "train"), (parameters, work), &speed, options);
    if stage == "original" {
        let Some(arch) = bench.network(node(stage)?)? else { return Ok(()) };
        evaluation(row, &Model::init(&arch, &Rng::new(0), &options.device)?, &images, options)?;
    }
    Ok(())
}

fn evaluation(row: &str, model: &Model, images: &Arc<Images>, options: &Options) -> Result<()> {
    memory::forget_peak();
    let loader = batches(images, options);
    let watch = Stopwatch::new(options.budget);
    let epoch = loader.epoch(0);
    let mut answer = |step| {
        let batch = epoch.batch(step)?;
        // read, as whoever asks reads them
        model.logits(&batch.x)?.flatten_all()?.to_vec1::<f32>().map(drop).map_err(Error::from)
    };
    on_cores(all(), || watch.steps(options.batch, &mut answer))?;
    let speed = Speed { peak_bytes: memory::peak(), ..Speed::of(&watch.phase(), None, None) };
    say((row, "eval"), (model.len(), Some(model.arch().multiply_adds()[0])), &speed, options);
    Ok(())
}

/// A step of the discriminator, then one of the generator, as ARPL+CS has them, on a batch of real images.
fn dcgan(options: &Options) -> Result<()> {
    let images = Arc::new(random_images(8 * options.batch)?);
    let fresh = |name: &str, shape, classes, size| -> Result<Model> {
        let precision = if options.bf16 { Precision::Bf16 } else { Precision::F32 };
        let arch = Arch::build(name, shape, classes, size, &[], &[])?.with_precision(precision);
        Model::init(&arch, &Rng::new(3).fork(name), &options.device)
    };
    let mut points = fresh("points", Shape::ReciprocalPoints, 10, [1, 1, 1])?;
    let shape = Shape::DcganGenerator { width: options.width, side: 32 };
    let generator = fresh("generator", shape, 3, [100, 1, 1])?;
    let discriminator = fresh("discriminator", Shape::DcganDiscriminator { width: options.width }, 1, [3, 32, 32])?;
    let parameters = generator.len() + discriminator.len();
    let optimizer = Rule::Adam { betas: [0.5, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let training = Training { lr: 0.0002, optimizer, schedule: Schedule::Constant { warmup: 0.0 } };
    let (loader, watch, noises) = (batches(&images, options), Stopwatch::new(options.budget), Rng::new(4));
    let canvas = Canvas::new(&images, &options.device)?;
    memory::forget_peak();
    // the crew's order is the augmenter's: a classifier with its points come first, and rest here
    let mut trainer = Trainer::new(&mut points, &training, usize::MAX, None, &watch)?
        .with("points", fresh("points", Shape::ReciprocalPoints, 10, [1, 1, 1])?, &training)?
        .with("generator", generator, &training)?
        .with("discriminator", discriminator, &training)?;
    let numbers: Vec<u64> = (0..options.batch as u64).collect();
    let mut epoch = |epoch| {
        trainer.rounds(epoch, &loader, |crew, batch, index| {
            let noise = noise(100, &noises.at(epoch as u64).at(index as u64), &numbers, &options.device)?;
            let fake = crew.model_mut(GENERATOR).train(&noise)?.logits;
            discriminate(crew, &canvas.pixels(&batch.x)?, &fake.detach())?;
            deceive(crew, &fake, None)
        })
    };
    match on_cores(all(), || (0..usize::MAX).try_for_each(&mut epoch)) {
        Ok(()) | Err(Error::Interrupted) => {}
        Err(error) => return Err(error),
    }
    watch.end(&options.device)?;
    let speed = Speed { peak_bytes: memory::peak(), ..Speed::of(&watch.phase(), None, None) };
    say((DCGAN, "train"), (parameters, None), &speed, options);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn say((row, what): (&str, &str), (parameters, work): (usize, Option<usize>), speed: &Speed, options: &Options) {
    let line = json!({
        "row": row,
        "what": what,
        "batch": options.batch,
        "width": options.width,
        "precision": if options.bf16 { "bf16" } else { "f32" },
        "parameters": parameters,
        "images_per_second": speed.images_per_second,
        // of plain sums, a multiply-add as two; of GANs it is not counted
        "gflops": work.zip(speed.images_per_second).map(|(work, speed)| 2e-9 * work as f64 * speed),
        "step_seconds": speed.step_seconds,
        "steps": speed.steps,
        // of main memory
        "peak_bytes": speed.peak_bytes.filter(|_| options.device.is_cpu()),
    });
    println!("{line}");
}

fn run(words: &[String]) -> Result<()> {
    let budget = Duration::from_secs(4);
    let (mut row, mut options) = (None, Options { batch: 64, width: 64, bf16: false, budget, device: Device::Cpu });
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--device" {
            options.device = match words.next().map(|name| name.split(':').collect::<Vec<_>>()).as_deref() {
                Some(["cpu"]) => Device::Cpu,
                Some(["cuda"]) => gpu(0)?,
                Some(["cuda", index]) => gpu(index.parse().unwrap_or(0))?,
                _ => return Err(Error::Usage("`--device` takes cpu or cuda:N".to_owned())),
            };
            continue;
        }
        if word == "--precision" {
            options.bf16 = match words.next().map(String::as_str) {
                Some("f32") => false,
                Some("bf16") => true,
                _ => return Err(Error::Usage("`--precision` takes f32 or bf16".to_owned())),
            };
            continue;
        }
        let mut number = || -> Result<f64> {
            let value = words.next().and_then(|value| value.parse().ok());
            value.ok_or_else(|| Error::Usage(format!("`{word}` takes a number")))
        };
        match word.as_str() {
            "--batch" => options.batch = number()? as usize,
            "--width" => options.width = number()? as usize,
            "--seconds" => {
                options.budget = Duration::try_from_secs_f64(number()?)
                    .map_err(|error| Error::Usage(format!("`--seconds`: {error}")))?;
            }
            // cargo says so itself
            "--bench" => {}
            name => row = Some(name.to_owned()),
        }
    }
    let known: Vec<&str> = ROWS.iter().map(|(row, ..)| *row).chain([DCGAN]).collect();
    match row.as_deref() {
        Some(DCGAN) => dcgan(&options),
        Some(name) => match ROWS.iter().find(|(row, ..)| *row == name) {
            Some((row, stage, network)) => of_recipe(row, stage, network, &options),
            None => Err(Error::Usage(format!("there is no row `{name}`: expected {}", listed(&known, "or")))),
        },
        None => Err(Error::Usage(format!("name a row: {}", listed(&known, "or")))),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
