//! OpenGAN: its networks and its step against PyTorch, what it learns, and what methods make of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use recant::artifact::{Artifact, Encoded, Features};
use recant::augment::opengan::{Shares, round};
use recant::augment::{self, AUGMENTERS};
use recant::batches::{Batch, Loader};
use recant::nn::arch::{Arch, Shape};
use recant::nn::loss::binary_cross_entropy;
use recant::nn::model::{Backend, Model, gradients};
use recant::nn::schedule::Schedule;
use recant::rng::Rng;
use recant::settings::{Default as FieldDefault, Settings};
use recant::stage::{Context, Desk, Inputs, NoDesk, Progress};
use recant::trainer::{Recipe, Trainer};
use serde_json::json;

use crate::numerics::rule;
use crate::support::golden::{self, Case};

const CPU: Device = Device::Cpu;

fn networks(case: &Case, backend: Backend) -> (Model, Model) {
    let widths = |name: &str| -> Vec<usize> { serde_json::from_value(case.hyper(name).clone()).unwrap() };
    let (g, d) = (widths("generator_widths"), widths("discriminator_widths"));
    let width = g[3];
    assert_eq!(g[1..5], [4 * width, 2 * width, width, 2 * width].map(|w| w));
    let width = width / 2;
    assert_eq!(d[1..], [8 * width, 4 * width, 2 * width, width, 1]);
    let load = |shape: Shape, reads: usize, makes: usize, prefix: &str| {
        let arch = Arch::build("golden", shape, makes, [reads, 1, 1], &[], &[]).unwrap();
        Model::from_tensors(&arch, &case.under(prefix), &CPU).unwrap().with_backend(backend).unwrap()
    };
    (
        load(Shape::OpenganGenerator { width }, g[0], g[5], "init.g."),
        load(Shape::OpenganDiscriminator { width }, d[0], 1, "init.d."),
    )
}

fn compare_all(case: &Case, prefix: &str, model: &Model, vector: &Tensor) {
    for span in model.spans() {
        let part = vector.narrow(0, span.range.start, span.range.len()).unwrap();
        case.compare(&format!("{prefix}.{}", span.name), &part);
    }
}

/// Every number of the two steps: outputs, losses and gradients.
#[test]
fn golden_opengan_networks() {
    for case in golden::of_method("opengan_step") {
        for backend in [Backend::Reference, Backend::Fast] {
            let (mut g, mut d) = networks(&case, backend);
            let fake = g.train(case.tensor("z")).unwrap().logits;
            case.compare("fake", &fake);
            let fake = fake.reshape(case.tensor("closed").shape()).unwrap();
            let detached = fake.detach();
            let mut terms = BTreeMap::new();
            for (name, x, target) in
                [("closed", case.tensor("closed"), 1.0), ("open", case.tensor("open"), 0.0), ("fake", &detached, 0.0)]
            {
                let probability = d.train(x).unwrap().logits;
                case.compare(&format!("prob.{name}"), &probability);
                let loss = binary_cross_entropy(&probability, target).unwrap();
                case.compare(&format!("loss.d_{name}"), &loss);
                terms.insert(name, loss);
            }
            let weighted = |name: &str, weight: &str| (&terms[name] * case.number(weight)).unwrap();
            let loss = (&terms["closed"] + weighted("open", "open_weight")).unwrap();
            let loss = (loss + weighted("fake", "fake_weight")).unwrap();
            case.compare("loss.d", &loss);
            let [gradient] = gradients(&loss, [&d]).unwrap();
            compare_all(&case, "grad.d", &d, &gradient);
        }
    }
}

/// The augmenter's own round ends where PyTorch's two steps do.
#[test]
fn golden_opengan_step() {
    for case in golden::of_method("opengan_step") {
        let (mut g, mut d) = networks(&case, Backend::Fast);
        let recipe = |lr: &str| Recipe {
            lr: case.number(lr),
            optimizer: rule(case.hyper("optimizer")),
            schedule: Schedule::Constant { warmup: 0.0 },
        };
        let shares = Shares { open: case.number("open_weight"), fake: case.number("fake_weight") };
        let y = Tensor::zeros(1, DType::U32, &CPU).unwrap();
        let loader = Loader::Given(vec![vec![Batch { x: case.tensor("closed").clone(), y, view: None }]]);
        let mut trainer = Trainer::new(&mut g, &recipe("lr_g"), 1, None, &NoDesk).unwrap().beside(
            "discriminator",
            &mut d,
            &recipe("lr_d"),
            None,
        );
        trainer
            .rounds(0, &loader, |crew, batch, _| {
                let loss = round(crew, &batch.x, Some(case.tensor("open")), case.tensor("z"), shares)?;
                case.compare("loss.g", &Tensor::new(loss, &CPU)?);
                Ok(loss)
            })
            .unwrap();
        drop(trainer);
        for (letter, model) in [("g", &g), ("d", &d)] {
            for (name, tensor) in model.tensors().unwrap() {
                case.compare(&format!("final.{letter}.{name}"), &tensor);
            }
        }
    }
}

/// Normal features: the forget part and, further on, the retain part, each in classes of its own.
fn features(width: usize) -> Features {
    let mut rng = Rng::new(4).fork("features");
    let mut part = |count: usize, far: f32, label: u32| {
        let values = (0..count * width).map(|i| far + (i % width) as f32 * 0.2 + 0.5 * rng.normal()).collect();
        (Tensor::from_vec(values, (count, width), &CPU).unwrap(), vec![label; count])
    };
    let (forget, retain) = (part(300, 1.0, 0), part(400, -1.0, 1));
    let (like, unlike) = (part(40, 1.0, 0), part(60, -1.0, 1));
    let validation = (Tensor::cat(&[like.0, unlike.0], 0).unwrap(), [like.1, unlike.1].concat());
    let parts = [("forget", forget), ("retain", retain), ("validation", validation)];
    let parts = parts.map(|(name, part)| (name.to_owned(), part)).into();
    Features { arch: json!({ "name": "made up" }), layer: "pooled".into(), parts }
}

/// A desk that stops its stage at every second question, keeps its checkpoint and its notes.
#[derive(Default)]
struct Halting {
    halts: bool,
    asked: AtomicUsize,
    kept: Mutex<Option<Encoded>>,
    notes: Mutex<Vec<String>>,
}

impl Desk for Halting {
    fn progress(&self, _: Progress) {}
    fn note(&self, note: &str) {
        self.notes.lock().unwrap().push(note.to_owned());
    }
    fn stop(&self) -> bool {
        self.halts && self.asked.fetch_add(1, Ordering::Relaxed) % 3 == 2
    }
    fn due(&self, _: usize, _: usize) -> bool {
        false
    }
    fn restore(&self) -> recant::error::Result<Option<Encoded>> {
        Ok(self.kept.lock().unwrap().clone())
    }
    fn save(&self, checkpoint: &Encoded) -> recant::error::Result<()> {
        *self.kept.lock().unwrap() = Some(checkpoint.clone());
        Ok(())
    }
}

fn settings(more: &serde_json::Value) -> Settings {
    let registered = AUGMENTERS.iter().find(|one| one.entry.name == "opengan").unwrap();
    let mut settings = Settings::new();
    for field in registered.entry.fields {
        if let FieldDefault::Is(text) = field.default {
            settings.insert(field.name.to_owned(), recant::recipe::default_value(field, text).unwrap());
        }
    }
    settings.extend(more.as_object().unwrap().clone());
    settings
}

/// The generator's network and weights, the work begun again as often as the desk stops it.
fn generator(features: &Features, more: &serde_json::Value, desk: &Halting) -> (Model, usize) {
    let inputs = Inputs { by_role: [("features".to_owned(), Artifact::Features(features.clone().into()))].into() };
    let augmenter = augment::make("opengan", &settings(more)).unwrap();
    let mut halts = 0;
    loop {
        let context = Context { device: &CPU, files: BTreeMap::new(), desk };
        match augmenter.more(&inputs, &context, &Rng::new(2)) {
            Ok(Artifact::Generator(made)) => {
                assert_eq!(made.of, features.arch);
                let arch = Arch::from_value(&made.network.arch).unwrap();
                return (Model::from_tensors(&arch, &made.network.tensors, &CPU).unwrap(), halts);
            }
            Ok(other) => panic!("made {}", other.kind()),
            Err(recant::error::Error::Interrupted) => halts += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Mean and standard deviation of each column.
fn moments(rows: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let mean = rows.mean(0).unwrap();
    (mean.to_vec1().unwrap(), rows.var(0).unwrap().sqrt().unwrap().to_vec1().unwrap())
}

#[test]
fn the_generator_learns_mean_and_spread_of_the_forget_features() {
    let features = features(8);
    for outliers in ["none", "retain"] {
        let more = json!({ "outliers": outliers, "epochs": 120, "batch": 50, "lr": 0.002, "noise": 10, "width": 8,
            "select_every": 0 });
        let desk = Halting::default();
        let (model, _) = generator(&features, &more, &desk);
        let mut rng = Rng::new(8).fork("noise");
        let noise = (0..2000 * 10).map(|_| rng.normal()).collect();
        let noise = Tensor::from_vec(noise, (2000, 10, 1, 1), &CPU).unwrap();
        let (mean, spread) = moments(&model.logits(&noise).unwrap());
        let (wanted, wide) = moments(&features.parts["forget"].0);
        println!("{outliers}: {mean:?} {wanted:?} {spread:?} {wide:?} {:?}", desk.notes.lock().unwrap());
        for at in 0..8 {
            assert!((mean[at] - wanted[at]).abs() < 0.3, "{outliers}: {mean:?}, not {wanted:?}");
            assert!((0.5..1.6).contains(&(spread[at] / wide[at])), "{outliers}: {spread:?}, not {wide:?}");
        }
    }
}
