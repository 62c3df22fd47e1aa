//! ARPL+CS: its steps against PyTorch, what it makes, and the open-set metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use recant::artifact::Artifact;
use recant::augment;
use recant::augment::arpl::canvas::Canvas;
use recant::augment::arpl::round::{DISCRIMINATOR, GENERATOR, deceive, discriminate};
use recant::batches::{Batch, Loader};
use recant::data::{Images, Part, Split};
use recant::error::{Error, Result};
use recant::metric::open_set::oscr;
use recant::nn::arch::{Arch, Shape};
use recant::nn::loss::arpl;
use recant::nn::model::{Backend, Model, Pass, gradients};
use recant::nn::optim::Rule;
use recant::nn::schedule::Schedule;
use recant::nn::transform::{self, Transform};
use recant::rng::Rng;
use recant::stage::{Context, Desk, Inputs, NoDesk};
use recant::trainer::{Recipe, Trainer};
use serde_json::json;

use crate::augment::settings;
use crate::support::desk::Halting;
use crate::support::golden;

const BACKENDS: [Backend; 2] = [Backend::Reference, Backend::Fast];
const CPU: Device = Device::Cpu;

fn points(classes: usize, features: usize) -> Model {
    let arch = Arch::build("points", Shape::ReciprocalPoints, classes, [features, 1, 1], &[], &[]).unwrap();
    Model::init(&arch, &Rng::new(1), &CPU).unwrap()
}

#[test]
fn golden_dcgan_step_by_the_steps_of_a_round() {
    for case in golden::of_method("dcgan_step") {
        for backend in BACKENDS {
            let size = |name: &str| case.number(name) as usize;
            let load = |arch: Arch, prefix: &str| {
                let model = Model::from_tensors(&arch, &case.under(prefix), &CPU).unwrap();
                model.with_backend(backend).unwrap()
            };
            let shape = Shape::DcganGenerator { width: size("ngf"), side: 32 };
            let mut g = load(Arch::build("g", shape, 3, [size("nz"), 1, 1], &[], &[]).unwrap(), "init.g.");
            let shape = Shape::DcganDiscriminator { width: size("ndf") };
            let mut d = load(Arch::build("d", shape, 1, [3, 32, 32], &[], &[]).unwrap(), "init.d.");
            let (mut student, mut beside) = (points(2, 3), points(2, 3));
            let before = student.theta().unwrap();
            assert_eq!(case.number("lr_g"), case.number("lr_d"));
            let optimizer = Rule::Adam { betas: [0.5, 0.999], eps: 1e-8, weight_decay: 0.0 };
            let recipe = Recipe { lr: case.number("lr_g"), optimizer, schedule: Schedule::Constant { warmup: 0.0 } };
            let real = case.tensor("real").clone();
            let y = Tensor::zeros(real.dim(0).unwrap(), DType::U32, &CPU).unwrap();
            let loader = Loader::Given(vec![vec![Batch { x: real, y, view: None }]]);
            let mut trainer = Trainer::new(&mut student, &recipe, 1, None, &NoDesk)
                .unwrap()
                .beside("points", &mut beside, &recipe, None)
                .unwrap()
                .beside("generator", &mut g, &recipe, None)
                .unwrap()
                .beside("discriminator", &mut d, &recipe, None)
                .unwrap();
            let number = |loss: f64| Tensor::new(loss, &CPU).unwrap();
            trainer
                .rounds(0, &loader, |crew, batch, _| {
                    let fake = crew.model_mut(GENERATOR).train(case.tensor("z"))?.logits;
                    case.compare("fake", &fake);
                    case.compare("loss.d", &number(discriminate(crew, &batch.x, &fake.detach())?));
                    let loss = deceive(crew, &fake, None)?;
                    case.compare("loss.g", &number(loss));
                    assert_eq!(crew.model(DISCRIMINATOR).arch().name, "d");
                    Ok(loss)
                })
                .unwrap();
            drop(trainer);
            for (letter, model) in [("g", &g), ("d", &d)] {
                for (name, tensor) in model.tensors().unwrap() {
                    case.compare(&format!("final.{letter}.{name}"), &tensor);
                }
            }
            assert_eq!(student.theta().unwrap(), before);
        }
    }
}

#[test]
fn golden_arpl_with_points_that_live_in_a_model() {
    for case in golden::of_method("arpl_loss") {
        let (stored, radius) = (case.tensor("points"), case.tensor("radius"));
        let (classes, width) = stored.dims2().unwrap();
        for backend in BACKENDS {
            let mut model = points(classes, width).with_backend(backend).unwrap();
            model.set_theta_tensor(&Tensor::cat(&[&stored.flatten_all().unwrap(), radius], 0).unwrap()).unwrap();
            let (points, radius) = (model.parameter("points").unwrap(), model.parameter("radius").unwrap());
            assert_eq!(points.dims(), [classes, width]);
            let knobs = arpl::Arpl {
                temperature: case.number("temp"),
                weight: case.number("weight_pl"),
                margin: case.number("margin"),
            };
            let y = case.tensor("y").to_dtype(DType::U32).unwrap();
            let loss = arpl::loss(case.tensor("features"), &points, &radius, &y, knobs).unwrap();
            case.compare("loss", &loss);
            let [gradient] = gradients(&loss, [&model]).unwrap();
            let (cut, all) = (classes * width, gradient.elem_count());
            case.compare("grad.points", &gradient.narrow(0, 0, cut).unwrap());
            case.compare("grad.radius", &gradient.narrow(0, cut, all - cut).unwrap());
            assert!(model.parameter("centre").unwrap_err().to_string().contains("no parameter `centre`"));
        }
    }
}

/// Constant weights change neither values nor statistics nor the gradient of the input.
#[test]
fn a_pass_through_constant_weights_is_the_same_pass() {
    let shape = Shape::DcganDiscriminator { width: 3 };
    let arch = Arch::build("d", shape, 1, [2, 16, 16], &[], &[]).unwrap();
    for backend in BACKENDS {
        let fresh = || Model::init(&arch, &Rng::new(4), &CPU).unwrap().with_backend(backend).unwrap();
        let (mut one, mut other) = (fresh(), fresh());
        let x = Var::from_tensor(&augment::arpl::round::noise(512, &Rng::new(2), &[0, 1, 2], &CPU).unwrap()).unwrap();
        let seen = x.as_tensor().reshape((3, 2, 16, 16)).unwrap();
        let pass = Pass::train();
        let (plain, through) = (one.train(&seen).unwrap(), other.train_through(&seen, &pass).unwrap());
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let slope = |loss: &Tensor| flat(loss.mean_all().unwrap().backward().unwrap().get(&x).unwrap());
        assert_eq!(flat(&plain.logits), flat(&through.logits));
        assert_eq!(slope(&plain.logits), slope(&through.logits));
        assert_eq!(flat(&one.stats()), flat(&other.stats()));
        assert_ne!(flat(&other.stats()), flat(&fresh().stats()));
        let none = gradients(&through.logits.mean_all().unwrap(), [&other]);
        assert!(matches!(none, Err(Error::NoGradient(_))));
    }
}

#[test]
fn a_canvas_is_black_around_small_images_and_gives_them_back() {
    let images = images([3, 12, 10], GREYS);
    let canvas = Canvas::new(&images, &CPU).unwrap();
    assert_eq!(canvas.side, 16);
    let rng = Rng::new(0);
    let x = transform::batch(&images, &images.train, &[0, 3], Transform::default(), &rng, &CPU).unwrap();
    let pixels = canvas.pixels(&x).unwrap();
    assert_eq!(pixels.dims(), [2, 3, 16, 16]);
    let values = pixels.get(1).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
    for (row, column) in (0..256).map(|at| (at / 16, at % 16)) {
        let inside = (2..14).contains(&row) && (3..13).contains(&column);
        let grey = if inside { f32::from(GREYS[3]) / 255.0 } else { 0.0 };
        assert!((values[row][column] - grey).abs() < 1e-6, "{row} {column}");
    }
    let off = (canvas.seen(&pixels).unwrap() - x).unwrap().abs().unwrap().max_all().unwrap();
    assert!(off.to_scalar::<f32>().unwrap() < 1e-5);
}

/// Against the definition, threshold by threshold, and against pairs.
#[test]
fn oscr_is_the_area_by_two_other_ways() {
    let mut rng = Rng::new(5).fork("scores");
    for _ in 0..50 {
        // few values, so that there are ties
        let known: Vec<(f64, bool)> = (0..23).map(|_| (rng.below(7) as f64, rng.chance(0.7))).collect();
        let unknown: Vec<f64> = (0..17).map(|_| rng.below(6) as f64).collect();
        let by_pairs = |&(score, right): &(f64, bool)| {
            let beats = |other: &f64| if score > *other { 1.0 } else { f64::from(score == *other) / 2.0 };
            if right { unknown.iter().map(beats).sum::<f64>() } else { 0.0 }
        };
        let pairs = known.iter().map(by_pairs).sum::<f64>() / (23.0 * 17.0);
        let (mut area, mut last) = (0.0, (0.0, 0.0));
        for threshold in (0..=7).rev().map(f64::from) {
            let rate = known.iter().filter(|(score, right)| *right && *score >= threshold).count() as f64 / 23.0;
            let alarms = unknown.iter().filter(|score| **score >= threshold).count() as f64 / 17.0;
            area += (alarms - last.1) * (rate + last.0) / 2.0;
            last = (rate, alarms);
        }
        let value = oscr(&known, &unknown);
        assert!((value - pairs).abs() < 1e-12 && (value - area).abs() < 1e-12, "{value} {pairs} {area}");
    }
    assert_eq!(oscr(&[(1.0, true), (2.0, true), (3.0, false)], &[0.0, 0.5]), 2.0 / 3.0);
    assert_eq!((oscr(&[], &[1.0]), oscr(&[(1.0, true)], &[])), (0.0, 0.0));
}

/// Images of one grey a class, 40 to train on and 20 to test; images `i` has the class `i % 4`.
fn images(size: [usize; 3], greys: [u8; 4]) -> Images {
    let length = size.iter().product::<usize>();
    let part = |count: usize| Part {
        pixels: Arc::new((0..count * length).map(|at| greys[at / length % 4]).collect()),
        labels: Arc::new((0..count as u32).map(|i| i % 4).collect()),
    };
    Images {
        name: "greys".into(),
        classes: (0..4).map(|c| c.to_string()).collect(),
        size,
        mean: vec![0.4; size[0]],
        std: vec![0.25; size[0]],
        train: part(40),
        validation: Part::default(),
        test: part(20),
        unlabelled: Part::default(),
    }
}

const GREYS: [u8; 4] = [20, 90, 160, 230];

/// A run of `arpl` on some images to forget.
fn run(images: &Images, forget: &[u32], more: &serde_json::Value, desk: &dyn Desk) -> Result<Part> {
    let mut all = json!({ "arch": { "name": "mlp", "hidden": [6] }, "epochs": 2, "batch": 4, "lr": 0.05,
        "noise": 5, "width": 2, "count": 9 });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let split = Split::new(Arc::new(images.clone()), forget.to_vec(), Vec::new()).unwrap();
    let inputs = Inputs { by_role: [("data".to_owned(), Artifact::Split(Arc::new(split)))].into() };
    let context = Context { device: &CPU, files: BTreeMap::new(), desk };
    match augment::make("arpl", &settings("arpl", &all)).unwrap().more(&inputs, &context, &Rng::new(3))? {
        Artifact::Images(made) => Ok(made.train.clone()),
        other => panic!("arpl made {}", other.kind()),
    }
}

const FORGET: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 8, 10];

#[test]
fn arpl_repeats_to_the_byte_and_goes_on_where_it_was_stopped() {
    let images = images([1, 8, 8], GREYS);
    let resnet = json!({ "arch": { "name": "resnet18", "width": 2 }, "transform": { "name": "flip", "cutout": 0 } });
    for more in [json!({}), resnet] {
        let whole = run(&images, &FORGET, &more, &NoDesk).unwrap();
        assert_eq!(whole.len(), 9);
        assert!(run(&images, &FORGET, &more, &NoDesk).unwrap() == whole);
        // nine images in batches of four: three steps a pass, the last with one image; two passes in each of two epochs
        for patience in [1, 2, 4, 5, 7, 10] {
            let (made, stopped) = Halting::through(patience, |desk| run(&images, &FORGET, &more, desk));
            // in the end it makes images and looks at test images, in one go
            assert!(stopped >= 11 / patience && made == whole, "every {patience} steps: {stopped}");
        }
    }
    // the first images stay what they are where there are more
    let (few, many) =
        (run(&images, &FORGET, &json!({}), &NoDesk).unwrap(), run(&images, &FORGET, &json!({"count": 30}), &NoDesk));
    let many = many.unwrap();
    assert_eq!((&many.pixels[..few.pixels.len()], &many.labels[..9]), (&few.pixels[..], &few.labels[..]));
    assert_ne!(many.pixels[..64], many.pixels[64..128]);
    // every setting of the losses counts
    for more in [
        json!({ "beta": 0.5 }),
        json!({ "beta": 0.0 }),
        json!({ "weight": 2.0 }),
        json!({ "margin": 0.0 }),
        json!({ "temperature": 2.0 }),
        json!({ "fake": "posterior" }),
        json!({ "gan_lr": 0.01 }),
        json!({ "lr": 0.01 }),
        json!({ "second_pass": false }),
    ] {
        let mut all = json!({ "epochs": 20, "gan_lr": 0.005, "labels": "predicted", "count": 60 });
        let plain = run(&images, &FORGET, &all, &NoDesk).unwrap();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert!(run(&images, &FORGET, &all, &NoDesk).unwrap() != plain, "{more} changes nothing");
    }
}

#[test]
fn arpl_labels_are_of_the_classes_it_trained_on() {
    let images = images([3, 12, 10], GREYS);
    let labels = |forget: &[u32], more: serde_json::Value| {
        let mut seen = run(&images, forget, &more, &NoDesk).unwrap().labels.to_vec();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    let two = [1, 3, 5, 7, 9, 11];
    assert_eq!(labels(&two, json!({ "count": 40 })), [1, 3]);
    assert_eq!(labels(&two, json!({ "count": 40, "on": "all" })), [0, 1, 2, 3]);
    let predicted = labels(&two, json!({ "count": 40, "labels": "predicted" }));
    assert!(predicted.iter().all(|label| [1, 3].contains(label)), "{predicted:?}");
    // one class: its images and nothing to confuse; fewer images than a batch; one image alone
    assert_eq!(labels(&[2, 6, 10], json!({ "batch": 64 })), [2]);
    assert_eq!(labels(&[2], json!({ "arch": { "name": "resnet18", "width": 2 } })), [2]);
}

#[test]
fn arpl_says_what_its_classifier_knows() {
    let images = images([1, 8, 8], GREYS);
    let note = |forget: &[u32], on: &str| {
        let desk = Halting::never();
        run(&images, forget, &json!({ "on": on, "epochs": 60, "lr": 0.02 }), &desk).unwrap();
        desk.notes.lock().unwrap().last().unwrap().clone()
    };
    // class 3 is forgotten whole, and nobody has told the classifier of it
    let third: Vec<u32> = (0..40).filter(|i| i % 4 == 3).collect();
    let words = note(&third, "retain");
    assert!(words.contains("over 15 known and 5 unknown images"), "{words}");
    let oscr: f64 = words.split("OSCR ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let auroc: f64 = words.split("AUROC ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(oscr <= auroc && auroc <= 100.0, "{words}");
    let words = note(&FORGET, "forget");
    assert!(words.contains("over 20 known and 9 generated images"), "{words}");
}

/// A generator that is never shown anything but one grey comes to make it.
#[test]
fn arpl_generates_what_it_is_shown() {
    for grey in [25, 215] {
        let images = images([1, 8, 8], [grey; 4]);
        let mean = |epochs: usize| {
            let more = json!({ "epochs": epochs, "gan_lr": 0.002, "width": 4, "on": "all", "batch": 20, "count": 50 });
            let made = run(&images, &FORGET, &more, &NoDesk).unwrap();
            made.pixels.iter().map(|&pixel| f64::from(pixel)).sum::<f64>() / made.pixels.len() as f64
        };
        let (begun, learnt) = (mean(1), mean(60));
        assert!((begun - 127.5).abs() < 20.0, "{begun}");
        assert!(
            (learnt - f64::from(grey)).abs() < 0.5 * (begun - f64::from(grey)).abs(),
            "{grey}: {begun} to {learnt}"
        );
    }
}

#[test]
fn arpl_stops_where_a_loss_is_no_number_and_says_whose() {
    let images = images([1, 8, 8], GREYS);
    let error = |more: serde_json::Value| run(&images, &FORGET, &more, &NoDesk).unwrap_err().to_string();
    let words = error(json!({ "lr": 1e30, "epochs": 20 }));
    assert!(words.contains("of the classifier is"), "{words}");
    let words = error(json!({ "gan_lr": 1e38, "epochs": 20 }));
    assert!(words.contains("of the discriminator is") || words.contains("of the generator is"), "{words}");
}
