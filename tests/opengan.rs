//! OpenGAN: its networks and its step against PyTorch, what it learns, and what methods make of it.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use recant::artifact::{Artifact, Features, Generator, Weights};
use recant::augment::opengan::{Shares, round};
use recant::augment::{self, AUGMENTERS};
use recant::batches::{Batch, Loader};
use recant::data::Split;
use recant::error::Result;
use recant::method::fakes::nearest;
use recant::method::{self, Fakes, METHODS, Scene, bad_teaching, scrub_joint};
use recant::nn::arch::{Arch, Shape};
use recant::nn::loss::binary_cross_entropy;
use recant::nn::model::{Backend, Model, gradients};
use recant::nn::schedule::Schedule;
use recant::rng::Rng;
use recant::settings::{Default as FieldDefault, Settings};
use recant::stage::{self, Context, Inputs, NoDesk};
use recant::trainer::{Recipe, Trainer};
use serde_json::json;

use crate::methods::{defaults, tiny};
use crate::numerics::rule;
use crate::support::desk::Halting;
use crate::support::golden::{self, Case};
use crate::support::place::{Place, SMALL};

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
        let trainer = Trainer::new(&mut g, &recipe("lr_g"), 1, None, &NoDesk).unwrap();
        let mut trainer = trainer.beside("discriminator", &mut d, &recipe("lr_d"), None).unwrap();
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

/// The generator's network and weights.
fn generator(features: &Features, more: &serde_json::Value, desk: &Halting) -> Result<Model> {
    let inputs = Inputs { by_role: [("features".to_owned(), Artifact::Features(features.clone().into()))].into() };
    let context = Context { device: &CPU, files: BTreeMap::new(), desk };
    match augment::make("opengan", &settings(more))?.more(&inputs, &context, &Rng::new(2))? {
        Artifact::Generator(made) => {
            assert_eq!(made.of, features.arch);
            Model::from_tensors(&Arch::from_value(&made.network.arch)?, &made.network.tensors, &CPU)
        }
        other => panic!("made {}", other.kind()),
    }
}

/// Mean and standard deviation of each column.
fn moments(rows: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let mean = rows.mean(0).unwrap();
    (mean.to_vec1().unwrap(), rows.var(0).unwrap().sqrt().unwrap().to_vec1().unwrap())
}

/// Averages over the features, since adversaries never come to rest; an untrained generator is 1.7 away and has no spread.
#[test]
fn the_generator_comes_near_mean_and_spread_of_the_forget_features() {
    let features = features(8);
    for outliers in ["none", "retain"] {
        let more = json!({ "outliers": outliers, "epochs": 250, "batch": 50, "lr": 0.002, "noise": 10, "width": 8,
            "select_every": 0 });
        let model = generator(&features, &more, &Halting::never()).unwrap();
        let mut rng = Rng::new(8).fork("noise");
        let noise = (0..2000 * 10).map(|_| rng.normal()).collect();
        let noise = Tensor::from_vec(noise, (2000, 10, 1, 1), &CPU).unwrap();
        let (mean, spread) = moments(&model.logits(&noise).unwrap());
        let (wanted, wide) = moments(&features.parts["forget"].0);
        let average = |values: Vec<f32>| values.iter().sum::<f32>() / values.len() as f32;
        let far = average(mean.iter().zip(&wanted).map(|(m, w)| (m - w).abs()).collect());
        let ratio = average(spread.iter().zip(&wide).map(|(s, w)| s / w).collect());
        assert!(far < 0.4 && (0.5..1.6).contains(&ratio), "{outliers}: {far} away, {ratio} times as wide");
    }
}

#[test]
fn binary_cross_entropy_is_pytorchs_at_the_ends_and_stays_no_number() {
    let at = |p: f32, target: f64| {
        let p = Var::from_slice(&[p], 1, &CPU).unwrap();
        let loss = binary_cross_entropy(&p, target).unwrap();
        let slope = loss.backward().unwrap().get(&p).unwrap().to_vec1::<f32>().unwrap()[0];
        (loss.to_scalar::<f32>().unwrap(), slope)
    };
    assert_eq!(at(0.0, 1.0), (100.0, -1e12));
    assert_eq!(at(1.0, 0.0), (100.0, 1e12));
    assert_eq!(at(1.0, 1.0), (0.0, 0.0));
    let (value, slope) = at(f32::NAN, 1.0);
    assert!(value.is_nan() && slope.is_nan());
    assert!(binary_cross_entropy(&Tensor::zeros(0, DType::F32, &CPU).unwrap(), 1.0).is_err());
    assert!(binary_cross_entropy(&Tensor::zeros(1, DType::F32, &CPU).unwrap(), 1.5).is_err());
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_generator_whose_training_is_stopped_ends_with_the_same_bytes() {
    let features = features(6);
    let more = json!({ "outliers": "retain", "epochs": 3, "batch": 60, "lr": 0.002, "noise": 5, "width": 4 });
    let [whole, again] = [(); 2].map(|()| generator(&features, &more, &Halting::never()).unwrap());
    let (stopped, halts) = Halting::through(1, |desk| generator(&features, &more, desk));
    assert!(halts > 10, "{halts}");
    for other in [again, stopped] {
        assert_eq!(bits(&whole.theta_tensor().unwrap()), bits(&other.theta_tensor().unwrap()));
        assert_eq!(bits(&whole.stats()), bits(&other.stats()));
    }
}

/// The epoch that the note names is the one whose generator comes out.
#[test]
fn the_epoch_is_chosen_on_validation_features() {
    let mut features = features(6);
    let made = |features: &Features, epochs: usize, every: usize| {
        let desk = Halting::never();
        let more =
            json!({ "epochs": epochs, "batch": 150, "lr": 0.0005, "noise": 5, "width": 2, "select_every": every });
        let made = generator(features, &more, &desk).unwrap();
        let all = Tensor::cat(&[made.theta_tensor().unwrap(), made.stats()], 0).unwrap();
        (bits(&all), desk.notes.lock().unwrap().concat())
    };
    // validation features that turn the rule round: the worse the discriminator, the better the score
    let (rows, labels) = features.parts["validation"].clone();
    features.parts.insert("validation".into(), (rows, labels.iter().map(|label| 1 - label).collect()));
    let (chosen, note) = made(&features, 12, 2);
    let epoch: usize = note.split("epoch ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(epoch.is_multiple_of(2) && epoch < 12, "{note}");
    assert_eq!(chosen, made(&features, epoch, 0).0, "{note}");
    assert_ne!(chosen, made(&features, 12, 0).0);
    features.parts.remove("validation");
    let (last, note) = made(&features, 12, 2);
    assert!(note.contains("the last epoch"), "{note}");
    assert_eq!(last, made(&features, 12, 0).0);
}

#[test]
fn golden_opengan_select() {
    for case in golden::of_method("opengan_select") {
        let (cosines, selected) = nearest(case.tensor("features"), case.tensor("candidates")).unwrap();
        case.compare("similarity", &cosines);
        case.compare("index", &cosines.argmax(1).unwrap());
        case.compare("selected", &selected);
        let (_, width) = selected.dims2().unwrap();
        let classes = case.tensor("fc.bias").elem_count();
        let shape = Shape::Mlp { hidden: vec![width] };
        let arch = Arch::build("mlp", shape, classes, [1, 2, 2], &[0.0], &[1.0]).unwrap();
        let mut tensors = Model::init(&arch, &Rng::new(1), &CPU).unwrap().tensors().unwrap();
        tensors.extend(case.under("fc.").into_iter().map(|(name, tensor)| (format!("fc.{name}"), tensor)));
        let head = Model::from_tensors(&arch, &tensors, &CPU).unwrap().teacher().unwrap().head().unwrap();
        case.compare("logits", &head.logits(&selected.reshape(((), width, 1, 1)).unwrap()).unwrap());
    }
}

/// The losses of bad teaching and of joint SCRUB with a second teacher.
#[test]
fn golden_opengan_targets() {
    for case in golden::of_method("opengan_targets") {
        let t = case.number("T");
        let forget = case.tensor("is_forget").to_dtype(DType::U32).unwrap();
        let [good, bad, augmented] = ["good", "bad", "augmented"].map(|name| case.tensor(name));
        let student = Var::from_tensor(case.tensor("student")).unwrap();
        let joint = [good.clone(), augmented.clone()];
        for (name, loss) in [
            ("bad_teaching", bad_teaching::loss(&student, [bad, good], Some(augmented), &forget, t)),
            ("scrub_joint", scrub_joint::loss(&student, &joint, &forget, t)),
        ] {
            let loss = loss.unwrap();
            case.compare(&format!("{name}.loss"), &loss);
            case.compare(&format!("{name}.grad.student"), loss.backward().unwrap().get(&student).unwrap());
        }
    }
}

#[test]
fn the_last_layer_alone_is_the_network_after_its_features() {
    for (name, size) in [("mlp", [3, 4, 4]), ("allcnn", [3, 8, 8]), ("resnet18", [3, 8, 8])] {
        let settings = if name == "mlp" { json!({ "name": name }) } else { json!({ "name": name, "width": 4 }) };
        let arch = Arch::new(&settings, 5, size, &[0.5; 3], &[0.5; 3]).unwrap();
        let model = Model::init(&arch, &Rng::new(3), &CPU).unwrap();
        let x = Tensor::randn(0.0_f32, 1.0, (2, 3, size[1], size[2]), &CPU).unwrap();
        let features = model.features(&x).unwrap().reshape((2, (), 1, 1)).unwrap();
        let through = model.head().unwrap().logits(&features).unwrap();
        let gap = (through - model.logits(&x).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-5, "{name}: {gap}");
    }
    let shape = Shape::OpenganDiscriminator { width: 1 };
    let arch = Arch::build("judge", shape, 1, [4, 1, 1], &[], &[]).unwrap();
    let error = Model::init(&arch, &Rng::new(1), &CPU).unwrap().head().unwrap_err().to_string();
    assert!(error.contains("`judge` has no linear layer"), "{error}");
}

/// A generator that nothing was learned by, for that network.
pub fn fakes(of: &Arch, features: usize) -> Fakes {
    let arch = Arch::build("generator", Shape::OpenganGenerator { width: 2 }, features, [5, 1, 1], &[], &[]).unwrap();
    // weights of 0.02 make features that hardly differ
    let mut model = Model::init(&arch, &Rng::new(6), &CPU).unwrap();
    model.set_theta_tensor(&(model.theta_tensor().unwrap() * 30.0).unwrap()).unwrap();
    let network =
        Weights { arch: arch.to_value().unwrap(), tensors: model.tensors().unwrap(), trained_on: "nothing".into() };
    Fakes::new(&Generator { network, of: of.to_value().unwrap() }, 9, of, &CPU).unwrap()
}

/// Bits of theta after a method.
fn unlearned(index: usize, with: bool, more: serde_json::Value, desk: &Halting) -> Result<Vec<u32>> {
    let mut settings = defaults(index);
    settings.extend(more.as_object().unwrap().clone());
    let (mut student, forget, retain) = tiny();
    let fakes = fakes(student.arch(), 12);
    let scene = Scene { fakes: with.then_some(&fakes), ..Scene::new(&forget, &retain, Rng::new(9), desk) };
    method::make(METHODS[index].entry.name, &settings)?.unlearn(&mut student, &scene)?;
    Ok(bits(&student.theta_tensor()?))
}

/// For each entry of METHODS that says it follows a teacher, unasked.
#[test]
fn every_method_with_a_teacher_listens_to_a_second_one_and_repeats_to_the_byte() {
    for (index, registered) in METHODS.iter().enumerate() {
        let name = registered.entry.name;
        let whole = |with: bool| unlearned(index, with, json!({}), &Halting::never()).unwrap();
        let (with, without) = (whole(true), whole(false));
        assert_eq!(with != without, registered.teacher, "{name}");
        if registered.teacher {
            assert_eq!(with, whole(true), "{name} differs from run to run");
            let (resumed, stopped) = Halting::through(1, |desk| unlearned(index, true, json!({}), desk));
            assert!(stopped > 0 && with == resumed, "{name} ends elsewhere after {stopped} stops");
        }
    }
}

#[test]
fn the_bad_teacher_may_answer_for_made_up_features() {
    let index = METHODS.iter().position(|method| method.entry.name == "bad_teaching").unwrap();
    let with = |more: serde_json::Value| unlearned(index, true, more, &Halting::never()).unwrap();
    let by = |teacher: &str| with(json!({ "fake_teacher": teacher }));
    assert_ne!(by("original"), by("bad"));
    assert_eq!(by("original"), with(json!({})));
}

#[test]
fn a_generator_of_another_network_is_refused() {
    let student = tiny().0;
    let other = Arch { classes: 7, ..student.arch().clone() };
    let arch = Arch::build("g", Shape::OpenganGenerator { width: 2 }, 12, [5, 1, 1], &[], &[]).unwrap();
    let network = Weights { arch: arch.to_value().unwrap(), tensors: BTreeMap::new(), trained_on: String::new() };
    let generator = Generator { network, of: other.to_value().unwrap() };
    let error = Fakes::new(&generator, 9, student.arch(), &CPU).unwrap_err().to_string();
    assert!(error.contains("another network"), "{error}");
}

#[test]
fn features_are_those_of_the_layer_image_by_image() {
    let (model, forget, _) = tiny();
    let Loader::Drawn(drawn) = &forget else { panic!() };
    let weights = Weights {
        arch: model.arch().to_value().unwrap(),
        tensors: model.tensors().unwrap(),
        trained_on: String::new(),
    };
    let split = Split::new(drawn.images.clone(), vec![2, 7], Vec::new()).unwrap();
    let run = |layer: &str| {
        let settings = json!({ "layer": layer }).as_object().unwrap().clone();
        let inputs =
            [("model", Artifact::Model(weights.clone().into())), ("data", Artifact::Split(split.clone().into()))];
        let inputs = Inputs { by_role: inputs.map(|(role, artifact)| (role.to_owned(), artifact)).into() };
        let context = Context { device: &CPU, files: BTreeMap::new(), desk: &NoDesk };
        let stage = (stage::find("features").unwrap().make)(&settings).unwrap();
        stage.run(&inputs, &context).map(|made| match made {
            Artifact::Features(made) => made.parts.clone(),
            other => panic!("made {}", other.kind()),
        })
    };
    let batch = Loader::Drawn(recant::batches::Drawn { indices: vec![7], ..drawn.clone() }).epoch(0).batch(0).unwrap();
    let parts = run("pooled").unwrap();
    let shapes: Vec<_> = parts.iter().map(|(name, (rows, _))| (name.as_str(), rows.dims().to_vec())).collect();
    let wanted = [("forget", 2), ("retain", 14), ("test", 0), ("validation", 0)];
    assert_eq!(shapes, wanted.map(|(name, count)| (name, vec![count, 12])));
    assert_eq!(parts["forget"].1, [2, 3]);
    assert_eq!(bits(&parts["forget"].0.get(1).unwrap()), bits(&model.features(&batch.x).unwrap()));
    assert_eq!(bits(&run("logits").unwrap()["forget"].0.get(1).unwrap()), bits(&model.logits(&batch.x).unwrap()));
    let error = run("layer9").unwrap_err().to_string();
    assert!(error.contains("no layer `layer9`") && error.contains("hidden.0"), "{error}");
}

const GENERATOR: &str = r#"
[stages.seen]
kind = "features"
model = "original"
data = "split"

[stages.made]
kind = "augment"
method = "opengan"
features = "seen"
epochs = 2
"#;

/// What the plan says of a generator with that method, after a change of the recipe.
fn refusal(from: &str, to: &str) -> String {
    let recipe = SMALL.replace("epochs = 2\n", "epochs = 2\naugment = \"made\"\n") + GENERATOR;
    let recipe = recipe.replace("neggrad_plus", "scrub_joint");
    assert!(from.is_empty() || recipe.contains(from), "{from}");
    let output = Place::new(&recipe.replacen(from, to, 1)).run(&["plan", "r.toml"]);
    assert_eq!(output.status.code(), Some(if from.is_empty() { 0 } else { 2 }));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_generator_that_does_not_fit_is_a_mistake_of_the_plan() {
    refusal("", "");
    let words = refusal("scrub_joint", "neggrad_plus");
    assert!(words.contains("`neggrad_plus` follows no teacher, so the generator `made` is of no use"), "{words}");
    assert!(words.contains("`scrub`, `bad_teaching` and `scrub_joint` do"), "{words}");
    let words = refusal("features\"\nmodel = \"original\"", "features\"\nmodel = \"retrained\"");
    assert!(words.contains("`made` was trained on features with the model `retrained`, not `original`"), "{words}");
    let other = "\n[stages.other]\nkind = \"split\"\ndata = \"images\"\nforget = { count = 9 }\n[stages.seen]\n";
    let split = GENERATOR.replace("\n[stages.seen]\n", other).replace("data = \"split\"", "data = \"other\"");
    let words = refusal(GENERATOR, &split);
    assert!(words.contains("`made` was trained on features with the data `other`, not `split`"), "{words}");
    let words = refusal("data = \"split\"\n\n[stages.made]", "data = \"split\"\nlayer = \"hidden.0\"\n\n[stages.made]");
    assert!(words.contains("`made` was trained on the layer `hidden.0`"), "{words}");
}
