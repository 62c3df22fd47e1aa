//! Self-supervised terms inside unlearning: against the golden cases and the formulas, and what every method that takes
//! them promises.

use candle_core::{Device, Tensor, Var};
use recant::artifact::{Artifact, Encoder, Weights};
use recant::batches::{Drawn, Loader, Views};
use recant::error::{Error, Result};
use recant::method::ssl::Ssl;
use recant::method::{self, METHODS, Scene};
use recant::nn::arch::{Arch, Shape};
use recant::nn::head::{self, project};
use recant::nn::loss::{nt_xent_original, simple_ssl};
use recant::nn::model::{Model, Pass};
use recant::nn::view::View;
use recant::rng::Rng;
use recant::settings::{Default as FieldDefault, Settings};
use recant::stage::{Desk, NoDesk};
use serde_json::{Value, json};

use crate::pretrain::{drawn, network};
use crate::support::desk::Halting;
use crate::support::golden;
use crate::support::place::{Place, err, good, out};

/// The head as a network of ours: projections, and the gradient into features and head.
#[test]
fn golden_simple_ssl_through_a_head() {
    for case in golden::of_method("ssl_simple") {
        let weights: std::collections::BTreeMap<String, Tensor> = case
            .under("head.")
            .into_iter()
            .map(|(name, tensor)| (name.replace("0.", "hidden.0.").replace("2.", "fc."), tensor))
            .collect();
        let ((hidden, features), width) =
            (weights["hidden.0.weight"].dims2().unwrap(), weights["fc.bias"].elem_count());
        let arch = Arch::build("head", Shape::Mlp { hidden: vec![hidden] }, width, [features, 1, 1], &[], &[]).unwrap();
        let head = Model::from_tensors(&arch, &weights, &Device::Cpu).unwrap();
        for batch in ["mixed", "none", "all"] {
            let features = Var::from_tensor(case.tensor("features")).unwrap();
            let marks = case.tensor(&format!("{batch}.is_forget")).to_dtype(candle_core::DType::F32).unwrap();
            let forget: Vec<bool> = marks.to_vec1::<f32>().unwrap().iter().map(|&mark| mark != 0.0).collect();
            let loss = simple_ssl(&project(&head, &features).unwrap(), case.tensor("target"), &forget).unwrap();
            case.compare(&format!("{batch}.loss"), &loss);
            let grads = loss.backward().unwrap();
            case.compare(&format!("{batch}.grad.features"), grads.get(&features).unwrap());
            let slope = head.gradient(&loss).unwrap();
            for span in head.spans() {
                let name = span.name.replace("hidden.0.", "0.").replace("fc.", "2.");
                let part = Tensor::from_slice(&slope[span.range.clone()], span.range.len(), &Device::Cpu).unwrap();
                case.compare(&format!("{batch}.grad.head.{name}"), &part);
            }
        }
    }
}

fn settings(index: usize, more: &Value) -> Settings {
    let mut settings = Settings::new();
    for field in METHODS[index].entry.fields {
        if let FieldDefault::Is(text) = field.default {
            settings.insert(field.name.to_owned(), recant::recipe::default_value(field, text).unwrap());
        }
    }
    settings.extend(more.as_object().unwrap().clone());
    settings
}

/// Methods that take the setting.
fn takers() -> Vec<usize> {
    let takes = |index: &usize| METHODS[*index].entry.fields.iter().any(|field| field.name == "ssl");
    (0..METHODS.len()).filter(takes).collect()
}

fn student() -> Model {
    network(&json!({ "name": "mlp", "hidden": [7] }))
}

fn encoder(scale: f32) -> Artifact {
    let network = Model::init(student().arch(), &Rng::new(6), &Device::Cpu).unwrap();
    let mut head = head::init(&network, 5, &Rng::new(8)).unwrap();
    let theta: Vec<f32> = head.theta().unwrap().iter().map(|weight| weight * scale).collect();
    head.set_theta(&theta).unwrap();
    let weights = |model: &Model| Weights {
        arch: model.arch().to_value().unwrap(),
        tensors: model.tensors().unwrap(),
        trained_on: "tiny".into(),
    };
    Artifact::Encoder(Encoder { network: weights(&network), head: weights(&head) }.into())
}

fn term(mode: &str, head: &str, weight: f64) -> Value {
    json!({ "mode": mode, "head": head, "weight": weight, "temperature": 1.0 })
}

/// The student afterwards, of 16 images of which five are to be forgotten, in batches of `batch`.
fn unlearned(
    index: usize,
    more: &Value,
    ssl: Option<&Value>,
    scale: f32,
    batch: usize,
    desk: &dyn Desk,
) -> Result<Vec<f32>> {
    let mut student = student();
    let ssl = match ssl {
        Some(setting) => Ssl::new(setting, Some(&encoder(scale)), &student, &Rng::new(4))?,
        None => None,
    };
    let side = |indices: std::ops::Range<u32>| {
        let drawn = Drawn { indices: indices.collect(), batch, ..drawn(16) };
        Loader::Drawn(drawn).seen(ssl.as_ref().and_then(Ssl::views))
    };
    let (forget, retain) = (side(0..5), side(5..16));
    let scene = Scene { ssl: ssl.as_ref(), ..Scene::new(&forget, &retain, Rng::new(9), desk) };
    method::make(METHODS[index].entry.name, &settings(index, more))?.unlearn(&mut student, &scene)?;
    student.theta()
}

fn bits(theta: &[f32]) -> Vec<u32> {
    theta.iter().map(|w| w.to_bits()).collect()
}

#[test]
fn every_method_with_the_term_is_changed_by_it_and_repeats_and_resumes_to_the_byte() {
    assert_eq!(takers().len(), 3);
    let more = json!({ "lr": 0.01, "epochs": 3 });
    for index in takers() {
        let name = METHODS[index].entry.name;
        let run = |ssl: Option<&Value>, desk: &dyn Desk| unlearned(index, &more, ssl, 1.0, 4, desk);
        let without = run(None, &NoDesk).unwrap();
        let mut seen = vec![bits(&without)];
        for (mode, head) in
            [("simple", "frozen"), ("simple", "trained"), ("original", "frozen"), ("original", "trained")]
        {
            let ssl = term(mode, head, 0.5);
            let with = run(Some(&ssl), &NoDesk).unwrap();
            assert!(!seen.contains(&bits(&with)), "{name}, {mode}, {head}");
            assert_eq!(bits(&with), bits(&run(Some(&ssl), &NoDesk).unwrap()), "{name}, {mode}, {head}");
            for steps in [1, 4] {
                let (made, stopped) = Halting::through(steps, |desk| run(Some(&ssl), desk));
                assert!(stopped > 0 && bits(&made) == bits(&with), "{name}, {mode}, {head}, by {steps} steps");
            }
            seen.push(bits(&with));
        }
        assert_eq!(bits(&without), bits(&run(Some(&term("original", "trained", 0.0)), &NoDesk).unwrap()), "{name}");
    }
}

#[test]
fn the_norm_of_the_term_is_noted_and_a_term_without_gradient_is_an_error() {
    let more = json!({ "lr": 0.01, "epochs": 3, "msteps": 3 });
    for index in takers() {
        let desk = Halting::never();
        unlearned(index, &more, Some(&term("simple", "frozen", 0.5)), 1.0, 4, &desk).unwrap();
        let notes = desk.notes.lock().unwrap().join("\n");
        let norm = |line: &str| line.split("ssl ").nth(1).and_then(|norm| norm.parse::<f64>().ok());
        assert!(notes.lines().all(|line| norm(line).is_some_and(|norm| norm > 1e-4)), "{notes}");
        assert!(notes.contains("gradient norms in epoch 3: method "), "{notes}");
        let error = unlearned(index, &more, Some(&term("simple", "frozen", 0.5)), 0.0, 4, &NoDesk).unwrap_err();
        assert!(error.to_string().contains("ssl"), "{error}");
    }
}

/// The second view is looked at in train mode and moves no running statistics: at a rate of 0 they end as without it.
#[test]
fn the_view_leaves_running_statistics_alone() {
    let stats = |ssl: Option<&Value>| {
        let mut student = network(&json!({ "name": "resnet18", "width": 2 }));
        let start = student.stats().to_vec1::<f32>().unwrap();
        let ssl = ssl.and_then(|setting| Ssl::new(setting, None, &student, &Rng::new(4)).unwrap());
        let side = |indices: std::ops::Range<u32>| {
            Loader::Drawn(Drawn { indices: indices.collect(), ..drawn(16) }).seen(ssl.as_ref().and_then(Ssl::views))
        };
        let (forget, retain) = (side(0..5), side(5..16));
        let scene = Scene { ssl: ssl.as_ref(), ..Scene::new(&forget, &retain, Rng::new(9), &NoDesk) };
        let index = METHODS.iter().position(|method| method.entry.name == "scrub_joint").unwrap();
        let still = settings(index, &json!({ "lr": 0.0 }));
        method::make("scrub_joint", &still).unwrap().unlearn(&mut student, &scene).unwrap();
        let end = student.stats().to_vec1::<f32>().unwrap();
        assert!(bits(&start) != bits(&end));
        bits(&end)
    };
    assert_eq!(stats(None), stats(Some(&term("original", "frozen", 0.5))));
}

/// The gradient of the term, from the networks and the losses alone.
fn slope(student: &Model, batch: &recant::batches::Batch, mode: &str, forget: &[bool]) -> Vec<f32> {
    let Artifact::Encoder(reference) = encoder(1.0) else { panic!() };
    let model = |weights: &Weights| {
        Model::from_tensors(&Arch::from_value(&weights.arch).unwrap(), &weights.tensors, &Device::Cpu).unwrap()
    };
    let features = |x: &Tensor| student.forward(x, &Pass::train()).unwrap().features;
    let loss = if mode == "simple" {
        let head = model(&reference.head);
        let target = project(&head, &model(&reference.network).features(&batch.x).unwrap()).unwrap();
        simple_ssl(&project(&head, &features(&batch.x)).unwrap(), &target, forget).unwrap()
    } else {
        let head = head::init(student, 128, &Rng::new(4).fork("head")).unwrap();
        let both = Tensor::cat(&[features(&batch.x), features(batch.view.as_ref().unwrap())], 0).unwrap();
        nt_xent_original(&project(&head, &both).unwrap(), 1.0, forget).unwrap()
    };
    student.gradient(&loss).unwrap()
}

/// With plain steps of one batch a side, the term moves the student by rate x weight x its gradient.
#[test]
fn a_step_with_the_term_is_the_step_of_its_formula() {
    let (rate, weight) = (0.05, 0.7);
    let plain = json!({
        "epochs": 1, "msteps": 1, "lr": rate, "retain_share": 1.0, "gamma": 0.0, "alpha": 0.0,
        "optimizer": { "name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "nesterov": false },
    });
    for index in takers() {
        for mode in ["simple", "original"] {
            let with = unlearned(index, &plain, Some(&term(mode, "frozen", weight)), 1.0, 16, &NoDesk).unwrap();
            // alone, some methods have nowhere to go from here
            let without = match unlearned(index, &plain, None, 1.0, 16, &NoDesk) {
                Err(Error::NoGradient(_)) => student().theta().unwrap(),
                moved => moved.unwrap(),
            };
            let views = (mode == "original").then(|| Views { view: View::default(), both: false });
            let side = |indices: std::ops::Range<u32>| {
                Loader::Drawn(Drawn { indices: indices.collect(), batch: 16, ..drawn(16) }).seen(views)
            };
            let (forget, retain) = (side(0..5), side(5..16));
            let mut model = student();
            // What the term alone does; in scrub the other loss is at rest in both steps.
            let alone: Vec<(Loader, Option<bool>)> = if METHODS[index].entry.name == "scrub" {
                vec![(forget, Some(true)), (retain, Some(false))]
            } else {
                vec![(forget.mixed(&retain), None)]
            };
            for (loader, gone) in alone {
                let batch = loader.epoch(0).batch(0).unwrap();
                let labels = batch.y.to_vec1::<u32>().unwrap();
                let forget: Vec<bool> = labels.iter().map(|&label| gone.unwrap_or(label == 1)).collect();
                let slope = slope(&model, &batch, mode, &forget);
                let moved = model.theta().unwrap();
                let moved: Vec<f32> = moved.iter().zip(slope).map(|(w, s)| w - (rate * weight) as f32 * s).collect();
                model.set_theta(&moved).unwrap();
            }
            let (start, alone) = (student().theta().unwrap(), model.theta().unwrap());
            let apart: Vec<f32> = (0..start.len()).map(|i| (with[i] - without[i]) - (alone[i] - start[i])).collect();
            let far = apart.iter().fold(0.0_f32, |far, d| far.max(d.abs()));
            let most = (0..start.len()).map(|i| (alone[i] - start[i]).abs()).fold(0.0, f32::max);
            assert!(far < 2e-6 && most > 3e-4, "{}, {mode}: {far} of {most}", METHODS[index].entry.name);
        }
    }
}

const RECIPE: &str = r#"recipe = 1
[stages.images]
kind = "dataset"
source = "digits"
train_limit = 200

[stages.others]
kind = "dataset"
source = "digits"
train_limit = 100

[stages.split]
kind = "split"
data = "images"
forget = { count = 20 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "resnet18", stem = "cifar_pool", width = 2 }
epochs = 1

[stages.simclr]
kind = "pretrain"
method = "simclr"
data = "split"
on = "retain"
arch = { name = "resnet18", stem = "cifar_pool", width = 2 }
epochs = 1

[stages.unlearned]
kind = "unlearn"
method = "scrub_joint"
model = "original"
data = "split"
ssl = { mode = "simple", weight = 0.25, reference = "simclr", head = "trained" }
"#;

#[test]
fn what_does_not_go_together_is_a_mistake_of_the_plan() {
    good(Place::new(RECIPE).run(&["plan", "r.toml"]));
    let refused = |from: &str, to: &str, words: &str| {
        let recipe = RECIPE.replace(from, to);
        assert!(recipe != RECIPE);
        let output = Place::new(&recipe).run(&["plan", "r.toml"]);
        assert!(output.status.code() == Some(2) && err(&output).contains(words), "{}", err(&output));
    };
    refused(", reference = \"simclr\"", "", "`mode = \"simple\"` compares with a pretrained network");
    refused("mode = \"simple\"", "mode = \"original\"", "`mode = \"original\"` compares views of one image");
    refused("reference = \"simclr\"", "reference = \"original\"", "`ssl.reference` must be a stage that makes encoder");
    refused("reference = \"simclr\"", "reference = \"simclt\"", "did you mean `simclr`?");
    refused("weight = 0.25", "wight = 0.25", "did you mean `weight`?");
    refused(
        "stem = \"cifar_pool\", width = 2 }\nepochs = 1\n\n[stages.unlearned]",
        "width = 2 }\nepochs = 1\n\n[stages.unlearned]",
        "the reference `simclr` is another network than `original`",
    );
    refused(
        "data = \"split\"\non = \"retain\"",
        "data = \"others\"",
        "the reference `simclr` was pretrained on `others`, but the split is of `images`",
    );
    refused("scrub_joint", "neggrad", "unknown key `ssl`");
}

#[test]
fn a_term_goes_from_recipe_to_result_and_leaves_its_trace() {
    let place = Place::new(RECIPE);
    good(place.run(&["run", "r.toml", "unlearned"]));
    let shown = out(&good(place.run(&["show", "r.toml"])));
    assert!(shown.contains("reference = \"simclr\""), "{shown}");
    place.write(&shown);
    assert!(out(&good(place.run(&["run", "r.toml", "unlearned"]))).contains("nothing to run"));
    place.write(RECIPE);
    let plan = |key: &str| out(&good(place.run(&["plan", "r.toml", "--set", key])));
    // a default written out changes nothing, a temperature that does not matter still is another question
    assert!(
        !plan("stages.unlearned.ssl={mode='simple',weight=0.25,reference='simclr',head='trained',temperature=1.0}")
            .contains("run     unlearned")
    );
    assert!(plan("stages.simclr.temperature=0.1").contains("the input ssl.reference changed"));
    assert!(
        plan("stages.unlearned.ssl={mode='simple',weight=0.75,reference='simclr',head='trained'}").contains("0.75")
    );
    let original = RECIPE.replace(", reference = \"simclr\"", "").replace("mode = \"simple\"", "mode = \"original\"");
    let threads = ["1", "3"].map(|count| {
        let place = Place::new(&original);
        let command = place.command(&["run", "r.toml"]).env("RAYON_NUM_THREADS", count).output().unwrap();
        good(command);
        place.artifacts()
    });
    assert!(threads[0] == threads[1]);
}

/// An axis reaches an input inside a table.
#[test]
fn seeds_of_a_reference_multiply_what_compares_with_it() {
    let recipe = RECIPE
        .replace("\n[stages.images]", "\n[matrix]\nseed = [0, 1]\n\n[stages.images]")
        .replace("epochs = 1\n\n[stages.unlearned]", "epochs = 1\nseed = \"${matrix.seed}\"\n\n[stages.unlearned]");
    let plan = out(&good(Place::new(&recipe).run(&["plan", "r.toml"])));
    assert!(plan.contains("unlearned[seed=1]") && plan.contains("simclr[seed=1]"), "{plan}");
}
