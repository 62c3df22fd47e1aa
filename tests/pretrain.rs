//! Pretraining without labels: what every method of it promises, and SimCLR against the same step done by hand.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use recant::batches::{Drawn, Loader, Views};
use recant::data::{Images, Part};
use recant::error::Result;
use recant::nn::arch::Arch;
use recant::nn::head;
use recant::nn::model::{Model, Pass, gradients_of};
use recant::nn::transform::Transform;
use recant::nn::view::View;
use recant::pretrain::{self, PRETRAININGS};
use recant::rng::Rng;
use recant::settings::{Default as FieldDefault, Settings};
use recant::stage::{Desk, NoDesk};
use serde_json::{Value, json};

use crate::support::desk::Halting;
use crate::support::place::{Place, err, good};

/// That many images of 3 x 6 x 6, in batches of four.
pub fn drawn(count: usize) -> Drawn {
    let mut rng = Rng::new(3).fork("pixels");
    let pixels = Arc::new((0..count * 108).map(|_| rng.below(256) as u8).collect());
    let train = Part { pixels, labels: Arc::new((0..count as u32).map(|i| i % 3).collect()) };
    let images = Images {
        name: "tiny".into(),
        classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
        size: [3, 6, 6],
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        train: train.clone(),
        validation: Part::default(),
        test: Part::default(),
        unlabelled: Part::default(),
    };
    Drawn {
        images: images.into(),
        part: train,
        indices: (0..count as u32).collect(),
        batch: 4,
        transform: Transform::default(),
        rng: Rng::new(5),
        device: Device::Cpu,
        labels: None,
        views: None,
    }
}

pub fn network(arch: &Value) -> Model {
    let arch = Arch::new(arch, 3, [3, 6, 6], &[0.5; 3], &[0.25; 3]).unwrap();
    Model::init(&arch, &Rng::new(1).fork("init"), &Device::Cpu).unwrap()
}

fn narrow() -> Value {
    json!({ "name": "resnet18", "width": 2 })
}

fn settings(index: usize, more: &Value) -> Settings {
    let mut settings = Settings::new();
    for field in PRETRAININGS[index].entry.fields {
        if let FieldDefault::Is(text) = field.default {
            settings.insert(field.name.to_owned(), recant::recipe::default_value(field, text).unwrap());
        }
    }
    settings.insert("epochs".into(), json!(2));
    settings.extend(more.as_object().unwrap().clone());
    settings
}

/// The weights of network and head.
fn pretrained(index: usize, more: &Value, count: usize, desk: &dyn Desk) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut model = network(&narrow());
    let method = pretrain::make(PRETRAININGS[index].entry.name, &settings(index, more))?;
    let head = method.pretrain(&mut model, drawn(count), &Rng::new(9), desk)?;
    Ok((model.theta()?, head.theta()?))
}

fn bits(both: &(Vec<f32>, Vec<f32>)) -> Vec<u32> {
    both.0.iter().chain(&both.1).map(|w| w.to_bits()).collect()
}

#[test]
fn every_pretraining_leaves_the_last_layer_to_the_bit_and_repeats() {
    for index in 0..PRETRAININGS.len() {
        let decay = json!({ "optimizer": { "name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "nesterov": false } });
        let before = network(&narrow());
        let made = pretrained(index, &decay, 9, &NoDesk).unwrap();
        for span in before.spans() {
            let old = &before.theta().unwrap()[span.range.clone()];
            let same = old.iter().zip(&made.0[span.range.clone()]).all(|(b, a)| b.to_bits() == a.to_bits());
            assert_eq!(same, span.name.starts_with("fc."), "{}", span.name);
        }
        assert_eq!(bits(&made), bits(&pretrained(index, &decay, 9, &NoDesk).unwrap()));
    }
}

/// Nine images in batches of four: three steps an epoch, the last of them with one image.
#[test]
fn every_pretraining_that_is_stopped_goes_on_to_the_same_bytes() {
    for index in 0..PRETRAININGS.len() {
        let whole = pretrained(index, &json!({}), 9, &NoDesk).unwrap();
        for steps in [1, 2, 4] {
            let (made, stopped) = Halting::through(steps, |desk| pretrained(index, &json!({}), 9, desk));
            assert_eq!(stopped, (6 - 1) / steps, "after every {steps} steps");
            assert_eq!(bits(&made), bits(&whole), "stopped after every {steps} steps");
        }
    }
}

#[test]
fn one_image_alone_has_nothing_to_be_told_from_and_is_an_error() {
    let plain = json!({ "optimizer": { "name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "nesterov": false } });
    let error = pretrained(0, &plain, 1, &NoDesk).unwrap_err();
    assert!(error.to_string().contains("its gradient is zero"), "{error}");
}

/// The mean over rows i of -log(exp(s_ip / t) / sum over k != i of exp(s_ik / t)), as it is written.
fn nt_xent(z: &Tensor, temperature: f64) -> Tensor {
    let rows = z.dims()[0];
    let unit = z.broadcast_div(&z.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
    let s = (unit.matmul(&unit.t().unwrap()).unwrap() / temperature).unwrap();
    let terms: Vec<Tensor> = (0..rows)
        .map(|i| {
            let others: Vec<u32> = (0..rows as u32).filter(|&k| k as usize != i).collect();
            let others = s.get(i).unwrap().index_select(&Tensor::new(others, &Device::Cpu).unwrap(), 0).unwrap();
            let pair = s.get(i).unwrap().get((i + rows / 2) % rows).unwrap();
            (others.exp().unwrap().sum_all().unwrap().log().unwrap() - pair).unwrap()
        })
        .collect();
    Tensor::stack(&terms, 0).unwrap().mean_all().unwrap()
}

#[test]
fn a_step_of_simclr_is_the_step_of_its_formula() {
    let rate = 0.05;
    let plain = json!({
        "epochs": 1, "lr": rate, "schedule": { "constant": { "warmup": 0.0 } }, "temperature": 0.3, "projection": 5,
        "crop": 0.3, "blur": 1.0,
        "optimizer": { "name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "nesterov": false },
    });
    let mut model = network(&json!({ "name": "mlp", "hidden": [7] }));
    let fresh = model.copy().unwrap();
    let own = pretrain::make("simclr", &settings(0, &plain)).unwrap();
    let head = own.pretrain(&mut model, drawn(4), &Rng::new(9), &NoDesk).unwrap();

    let first = head::init(&fresh, 5, &Rng::new(9).fork("head")).unwrap();
    assert_eq!(first.arch().features().unwrap(), 7);
    let view = View { crop: 0.3, jitter: 0.4, blur: 1.0, ..View::default() };
    let loader = Loader::Drawn(Drawn { views: Some(Views { view, both: true }), ..drawn(4) });
    let batch = loader.epoch(0).batch(0).unwrap();
    let project = |x: &Tensor| {
        let features = fresh.forward(x, &Pass::train()).unwrap().features;
        first.forward(&features.reshape((4, 7, 1, 1)).unwrap(), &Pass::train()).unwrap().logits
    };
    let both = Tensor::cat(&[project(&batch.x), project(&batch.view.unwrap())], 0).unwrap();
    let loss = nt_xent(&both.to_dtype(DType::F64).unwrap(), 0.3);
    let slopes = gradients_of(&loss, &[&fresh, &first]).unwrap();
    for (slope, (before, after)) in slopes.iter().zip([(&fresh, &model), (&first, &head)]) {
        let slope = slope.host().unwrap().into_owned();
        let moved = before.theta().unwrap().into_iter().zip(after.theta().unwrap()).map(|(b, a)| b - a);
        let far = moved.zip(&slope).map(|(moved, s)| (moved - rate as f32 * s).abs()).fold(0.0, f32::max);
        assert!(slope.iter().any(|s| s.abs() > 1e-2) && far < 1e-6, "{far}");
    }
}

pub const SIMCLR: &str = "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\ntrain_limit = 200\n\n\
    [stages.split]\nkind = \"split\"\ndata = \"images\"\nforget = { count = 20 }\n\n\
    [stages.simclr]\nkind = \"pretrain\"\nmethod = \"simclr\"\ndata = \"images\"\narch = { name = \"mlp\", hidden = [16] }\n\
    epochs = 2\nbatch = 64\n";

#[test]
fn what_is_pretrained_on_is_named_and_slips_are_refused() {
    good(Place::new(SIMCLR).run(&["run", "r.toml"]));
    good(
        Place::new(&SIMCLR.replace("data = \"images\"\narch", "data = \"split\"\non = \"retain\"\narch"))
            .run(&["run", "r.toml"]),
    );
    let refused = |from: &str, to: &str, code: i32, words: &str| {
        let output = Place::new(&SIMCLR.replace(from, to)).run(&["run", "r.toml"]);
        assert!(output.status.code() == Some(code) && err(&output).contains(words), "{}", err(&output));
    };
    refused("epochs = 2", "epochs = 2\npart = \"unlabelled\"", 2, "`digits` has no unlabelled part");
    refused("data = \"images\"\narch", "data = \"split\"\narch", 1, "say `on = \"retain\"`");
    refused("epochs = 2", "epochs = 2\non = \"forget\"\npart = \"unlabelled\"", 2, "`on` needs `part = \"train\"`");
    refused("method = \"simclr\"", "method = \"simclf\"", 2, "did you mean `simclr`?");
}
