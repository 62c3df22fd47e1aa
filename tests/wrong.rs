//! Numbers that go wrong end a stage and are named: losses, gradients and statistics that are no numbers, terms and whole
//! losses that lead nowhere, oracles that know what is to be forgotten, forget sets that are among the test images.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use recant::artifact::Artifact;
use recant::batches::Batch;
use recant::data::{Images, Part};
use recant::error::{Error, Result};
use recant::method::METHODS;
use recant::nn::loss::cross_entropy;
use recant::nn::model::Model;
use recant::nn::optim::Rule;
use recant::nn::schedule::Schedule;
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::stage::{Context, Inputs, NoDesk, STAGES, evaluate, split};
use recant::trainer::{Crew, Loss, Recipe as Training, Trainer};
use serde_json::json;

use crate::methods::tiny_of;
use crate::resume::Bench;
use crate::support::desk::Halting;
use crate::support::place::SMALL;

/// What comes of three epochs of four steps each with that loss.
fn trained(
    student: &mut Model,
    desk: &Halting,
    late: bool,
    mut loss: impl FnMut(&mut Crew, &Batch, usize) -> Result<Loss>,
) -> Result<()> {
    let (_, _, retain) = tiny_of(&json!({ "name": "mlp", "hidden": [12] }), side(student));
    let optimizer = Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: false };
    let recipe = Training { lr: 0.25, optimizer, schedule: Schedule::Constant { warmup: 0.0 } };
    let steps = retain.steps(3);
    let trainer = Trainer::new(student, &recipe, steps, None, desk)?;
    let mut trainer = if late { trainer.late() } else { trainer };
    (0..3).try_for_each(|epoch| trainer.epoch(epoch, &retain, &mut loss))
}

fn side(student: &Model) -> usize {
    student.arch().size[2]
}

fn mlp() -> Model {
    tiny_of(&json!({ "name": "mlp", "hidden": [12] }), 2).0
}

/// Cross-entropy, and a term that is made of the logits from that step on.
fn with(late: bool, from: usize, term: fn(&Tensor) -> candle_core::Result<Tensor>) -> String {
    let mut steps = 0;
    let ended = trained(&mut mlp(), &Halting::never(), late, |crew, batch, _| {
        let logits = crew.train(&batch.x)?.logits;
        let fine = (logits.sqr()?.mean_all()? * 0.01)?;
        steps += 1;
        let term = if steps > from { term(&logits)? } else { fine };
        Ok(Loss::from(cross_entropy(&logits, &batch.y)?).and("ssl", Some(term)))
    });
    ended.unwrap_err().to_string()
}

#[test]
fn losses_and_gradients_that_are_no_numbers_name_term_step_and_rate() {
    for late in [false, true] {
        let error = with(late, 1, |logits| (logits.sum_all()? * 0.0)? / 0.0);
        assert_eq!(error, "the loss of the term `ssl` is NaN at step 2 (learning rate 0.25): lower the learning rate");
        let error = with(late, 4, |logits| logits.abs()?.sum_all()? * f64::from(f32::MAX));
        assert!(error.starts_with("the loss of the term `ssl` is inf at step 5 "), "{error}");
        // A root of 0 has a value, and no slope. Later, nobody knows whose slope it was.
        let error = with(late, 2, |logits| (logits - logits.detach())?.sqr()?.sum_all()?.sqrt());
        let whose = if late { "" } else { " of the term `ssl`" };
        assert!(error.starts_with(&format!("the gradient{whose} is NaN at step 3 (learning rate 0.25)")), "{error}");
        // One term alone has no name.
        let ended = trained(&mut mlp(), &Halting::never(), late, |crew, batch, _| {
            Ok(Loss::from((cross_entropy(&crew.train(&batch.x)?.logits, &batch.y)? * f64::INFINITY)?))
        });
        let error = ended.unwrap_err().to_string();
        assert!(error.starts_with("the loss is inf at step 1 (learning rate 0.25)"), "{error}");
    }
}

/// Weights so large that a batch's variance is infinite: what batch norm divides by it is 0, and the loss a number.
#[test]
fn statistics_that_are_no_numbers_are_named() {
    for late in [false, true] {
        let arch = json!({ "name": "allcnn", "width": 4, "dropout": 0.0 });
        let (mut student, ..) = tiny_of(&arch, 8);
        let first = student.spans()[0].range.clone();
        let mut theta = student.theta().unwrap();
        theta[first].iter_mut().for_each(|weight| *weight *= 1e25);
        student.set_theta(&theta).unwrap();
        let mut losses = Vec::new();
        let ended = trained(&mut student, &Halting::never(), late, |crew, batch, _| {
            let loss = cross_entropy(&crew.train(&batch.x)?.logits, &batch.y)?;
            losses.push(loss.to_scalar::<f32>()?);
            Ok(loss.into())
        });
        let error = ended.unwrap_err().to_string();
        assert!(losses[0].is_finite() && (late || losses.len() == 1), "{losses:?}");
        assert!(error.contains("running_var` is inf at step 1 (learning rate 0.25)"), "{error}");
    }
}

#[test]
fn a_term_without_a_gradient_is_named() {
    for late in [false, true] {
        // one that no weight has a part in, and one whose slope is 0 everywhere
        let error = with(late, 0, |logits| logits.detach().sqr()?.sum_all());
        assert_eq!(error, Error::NoGradient("ssl".to_owned()).to_string());
        let error = with(late, 0, |logits| (logits * 0.0)?.sum_all());
        assert_eq!(error, Error::NoGradient("ssl".to_owned()).to_string());
    }
}

#[test]
fn a_loss_that_never_leads_anywhere_is_an_error_through_interruptions_too() {
    // Weight decay moves the weights all the same.
    let nothing = |logits: &Tensor| (logits - logits.detach())?.sqr()?.sum_all();
    let flat = |crew: &mut Crew, batch: &Batch, _: usize| Ok(Loss::from(nothing(&crew.train(&batch.x)?.logits)?));
    for late in [false, true] {
        let error = trained(&mut mlp(), &Halting::never(), late, flat).unwrap_err();
        assert!(matches!(&error, Error::NoGradient(term) if term == "method"), "{error}");
    }
    // Steps that led somewhere before an interruption count after it.
    let mut first = true;
    let mut once = |crew: &mut Crew, batch: &Batch, _: usize| {
        let logits = crew.train(&batch.x)?.logits;
        let loss = if std::mem::take(&mut first) { cross_entropy(&logits, &batch.y)? } else { nothing(&logits)? };
        Ok(Loss::from(loss))
    };
    let ((), stops) = Halting::through(2, |desk| trained(&mut mlp(), desk, false, &mut once));
    assert!(stops > 2);
}

/// What is looked at later changes nothing: weights, statistics, a plateau's rates, and where it is stopped and goes on.
#[test]
fn looking_later_gives_the_same_bytes() {
    let ended = |late: bool, stops: bool| {
        let (mut student, _, retain) = tiny_of(&json!({ "name": "allcnn", "width": 4, "dropout": 0.0 }), 8);
        let begun = student.copy().unwrap();
        let plateau =
            Schedule::Plateau { factor: 0.5, patience: 0, threshold: 0.5, cooldown: 0, floor: 0.0, warmup: 0.0 };
        let optimizer = Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: false };
        let recipe = Training { lr: 0.05, optimizer, schedule: plateau };
        let mut run = |desk: &Halting| {
            student.set_theta_tensor(&begun.theta_tensor()?)?;
            student.set_stats(&begun.stats())?;
            let trainer = Trainer::new(&mut student, &recipe, retain.steps(4), None, desk)?;
            let mut trainer = if late { trainer.late() } else { trainer };
            let mut loss = |crew: &mut Crew, batch: &Batch, _: usize| {
                let logits = crew.train(&batch.x)?.logits;
                Ok(Loss::from(cross_entropy(&logits, &batch.y)?)
                    .and("small", Some((logits.sqr()?.mean_all()? * 0.01)?)))
            };
            (0..4).try_for_each(|epoch| trainer.epoch(epoch, &retain, &mut loss))
        };
        if stops {
            let ((), stops) = Halting::through(2, run);
            assert!(stops > 2);
        } else {
            run(&Halting::never()).unwrap();
        }
        (student.theta().unwrap(), student.stats().to_vec1::<f32>().unwrap())
    };
    let truth = ended(false, false);
    for stops in [false, true] {
        assert_eq!(ended(true, stops), truth, "stops: {stops}");
    }
}

/// Weights that are numbers, but so large that what comes of them is none: every stage that meets them says so.
#[test]
fn a_model_whose_answers_are_no_numbers_ends_every_stage_that_asks_it() {
    let mut bench = Bench::new("{ name = \"mlp\", hidden = [12] }");
    let original = bench.node("original");
    let Artifact::Model(weights) = &bench.made[&original] else { panic!("it is a model") };
    let mut weights = (**weights).clone();
    for tensor in weights.tensors.values_mut() {
        *tensor = (&*tensor * 1e38).unwrap();
    }
    bench.made.insert(original, Artifact::Model(weights.into()));
    let mut asked = 0;
    for &node in &bench.plan.order {
        let name = &bench.plan.step(node).name;
        if name != "nothing" && bench.plan.inputs(node).any(|(_, input)| input == original) {
            let error = bench.run(node, &Halting::never()).expect_err(name).to_string();
            assert!(error.contains("NaN") || error.contains("inf"), "{name}: {error}");
            asked += 1;
        }
    }
    assert!(asked > METHODS.len() + 4, "{asked} stages");
}

/// Rates at which no training holds: what goes wrong is named, with its step.
#[test]
fn whatever_trains_says_where_it_went_wrong() {
    let bench = Bench::new("{ name = \"mlp\", hidden = [12] }");
    for (name, rate) in
        [("original", "lr"), ("simclr", "lr"), ("arpl", "lr"), ("arpl", "gan_lr"), ("opengan", "lr"), ("scrub", "lr")]
    {
        let node = bench.node(name);
        let mut settings = bench.plan.step(node).settings.clone();
        assert!(settings.insert(rate.to_owned(), json!(1e36)).is_some(), "{name} has no {rate}");
        let error = bench.run_with(node, &settings, &Halting::never()).expect_err(name);
        assert!(matches!(error, Error::Diverged { .. }), "{name}, {rate}: {error}");
    }
}

fn mistakes(text: &str) -> String {
    let recipe = Recipe::read(Path::new("r.toml"), &|_| Ok(text.as_bytes().to_vec()), &[], STAGES).unwrap();
    match Plan::new(&recipe, &evaluate::KIND, &BTreeMap::new()) {
        Err(Error::Mistakes(mistakes)) => {
            let found: Vec<String> = mistakes.iter().map(|m| format!("{}: {}", m.what, m.label)).collect();
            found.concat()
        }
        Err(error) => error.to_string(),
        Ok(_) => String::new(),
    }
}

#[test]
fn an_oracle_that_has_seen_the_forget_set_is_a_mistake_of_the_plan() {
    assert_eq!(mistakes(SMALL), "");
    let against = |reference: &str, more: &str| {
        mistakes(&(SMALL.replace("reference = \"retrained\"", &format!("reference = \"{reference}\"")) + more))
    };
    let whole = "has seen the forget set: `original` was trained on all of `images`";
    assert_eq!(against("original", ""), format!("the reference `original` {whole}"));
    // What is made of it has seen what it has seen.
    assert!(against("unlearned", "").starts_with("the reference `unlearned` has seen the forget set"));
    let forget =
        "\n[stages.reversed]\nkind = \"train\"\ndata = \"split\"\non = \"forget\"\narch = \"mlp\"\nepochs = 1\n";
    assert!(against("reversed", forget).contains("`reversed` was trained on the forget set of `split`"));
    let given = |on: &str| {
        format!("\n[stages.given]\nkind = \"checkpoint\"\npath = \"x.pth\"\narch = \"mlp\"\ntrained_on = \"{on}\"\n")
    };
    assert!(against("given", &given("images")).contains("`given` was trained on all of `images`"));
    assert_eq!(against("given", &given("split")), "");
    // Made of the oracle, it has not.
    let tuned =
        "\n[stages.tuned]\nkind = \"unlearn\"\nmethod = \"finetune\"\nmodel = \"retrained\"\ndata = \"split\"\n";
    assert_eq!(against("tuned", tuned), "");
}

/// Twelve images of 2x2; some test images are training images.
fn overlapping(test: &[u8]) -> Arc<Images> {
    let part = |greys: &[u8]| Part {
        pixels: Arc::new(greys.iter().flat_map(|&grey| [grey, 0, 7, grey]).collect()),
        labels: Arc::new(greys.iter().map(|&grey| u32::from(grey % 2)).collect()),
    };
    Arc::new(Images {
        name: "tiny".into(),
        classes: vec!["even".into(), "odd".into()],
        size: [1, 2, 2],
        mean: vec![0.5],
        std: vec![0.25],
        train: part(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        validation: Part::default(),
        test: part(test),
        unlabelled: Part::default(),
    })
}

#[test]
fn a_forget_set_among_the_test_images_is_an_error_unless_it_is_allowed() {
    let split = |test: &[u8], settings: serde_json::Value| {
        let inputs = Inputs { by_role: BTreeMap::from([("data".to_owned(), Artifact::Images(overlapping(test)))]) };
        let context = Context { device: &Device::Cpu, files: BTreeMap::new(), desk: &NoDesk };
        (split::KIND.make)(settings.as_object().unwrap()).unwrap().run(&inputs, &context)
    };
    let odd = json!({ "forget": { "classes": [1] }, "seed": 0 });
    assert!(split(&[20, 2, 4], odd.clone()).is_ok(), "what is kept may be there");
    let error = split(&[20, 4, 7, 3], odd).unwrap_err().to_string();
    assert!(error.contains("training image 3, which is to be forgotten, is test image 3 too"), "{error}");
    assert!(error.contains("2 images in all are"), "{error}");
    assert!(split(&[3], json!({ "forget": { "classes": [1] }, "seed": 0, "overlap": "allow" })).is_ok());
}
