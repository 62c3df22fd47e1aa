//! Networks against the golden cases.

use candle_core::{DType, Device, Tensor};
use recant::nn::arch::{Arch, Shape, Stem};
use recant::nn::loss::cross_entropy;
use recant::nn::model::{Model, Pass};
use recant::nn::optim::{Rule, Stepper};
use serde_json::{Value, json};

use crate::support::golden::{self, Case};

pub fn arch(case: &Case) -> Arch {
    let model = &case.entry["model"];
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let stem = match model["stem"].as_str().unwrap() {
        "cifar" => Stem::Cifar,
        "imagenet" => Stem::Imagenet,
        _ => Stem::CifarPool,
    };
    let shape = Shape::Resnet {
        bottleneck: model["block"] == "bottleneck",
        blocks: model["layers"].as_array().unwrap().iter().map(count).collect(),
        stem,
        width: count(&model["width"]),
    };
    let side = count(&model["image"]);
    let classes = count(&model["classes"]);
    Arch::build("golden", shape, classes, [3, side, side], &[0.0; 3], &[1.0; 3]).unwrap()
}

pub fn rule(optimizer: &Value) -> Rule {
    let mut settings = optimizer.clone();
    if settings["name"] != "sgd" {
        settings["eps"] = settings.get("eps").cloned().unwrap_or(json!(1e-8));
    }
    Rule::new(&settings).unwrap()
}

pub fn model(case: &Case) -> Model {
    Model::from_tensors(&arch(case), &case.under("init."), &Device::Cpu).unwrap()
}

pub fn labels(case: &Case, name: &str) -> Tensor {
    case.tensor(name).to_dtype(DType::U32).unwrap()
}

#[test]
fn golden_forward_passes_gradients_and_statistics() {
    for case in golden::cases(|entry| entry["kind"] == "forward") {
        let mut net = model(&case);
        let (x, y) = (case.tensor("x"), labels(&case, "y"));
        for (name, value) in net.taps(x).unwrap() {
            if case.tensors.contains_key(&format!("eval.{name}")) {
                case.compare(&format!("eval.{name}"), &value);
            }
        }
        case.compare("eval.loss", &cross_entropy(&net.logits(x).unwrap(), &y).unwrap());
        let output = net.train(x).unwrap();
        let loss = cross_entropy(&output.logits, &y).unwrap();
        case.compare("train.logits", &output.logits);
        case.compare("train.features", &output.features);
        case.compare("train.loss", &loss);
        let gradient = net.gradient(&loss).unwrap();
        for span in net.spans() {
            let got = Tensor::from_slice(&gradient[span.range.clone()], span.range.len(), &Device::Cpu).unwrap();
            case.compare(&format!("grad.{}", span.name), &got);
        }
        for (name, value) in net.tensors().unwrap() {
            if name.contains("running") {
                case.compare(&format!("after.{name}"), &value);
            }
        }
    }
}

/// CF-k: the last block trains, frozen batch norm in either mode; masked weights keep every bit.
#[test]
fn golden_cf_k() {
    for case in golden::of_method("cf_k") {
        let mut net = model(&case);
        let trainable: Vec<&str> =
            case.hyper("trainable").as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        let mask = net.only(&trainable).unwrap();
        let frozen: Vec<String> = net.spans().iter().map(|span| span.name.clone()).collect();
        let frozen: Vec<&str> =
            frozen.iter().map(String::as_str).filter(|name| !trainable.iter().any(|p| name.starts_with(p))).collect();
        let layers: Vec<&str> = frozen.iter().filter_map(|name| name.rsplit_once('.')).map(|(l, _)| l).collect();
        let pass = if case.hyper("frozen_bn") == "eval" { Pass::train().frozen(&layers) } else { Pass::train() };
        let mut stepper = Stepper::new(rule(case.hyper("optimizer")), net.len(), Some(mask.clone()));
        let before = net.theta().unwrap();
        let mut losses = Vec::new();
        for step in case.entry["steps"].as_array().unwrap() {
            let batch = &step["batch"];
            let output = net.forward(case.tensor(&format!("batch.{batch}.x")), &pass).unwrap();
            net.commit(&output).unwrap();
            let loss = cross_entropy(&output.logits, &labels(&case, &format!("batch.{batch}.y"))).unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
            let gradient = net.gradient(&loss).unwrap();
            let mut theta = net.theta().unwrap();
            stepper.step(&mut theta, &gradient, step["lr"].as_f64().unwrap()).unwrap();
            net.set_theta(&theta).unwrap();
        }
        case.compare("step.loss", &Tensor::new(losses, &Device::Cpu).unwrap());
        finish(&case, &net);
        let moved = |i: usize| net.theta().unwrap()[i].to_bits() != before[i].to_bits();
        assert!((0..mask.len()).step_by(97).all(|i| mask[i] == 1.0 || !moved(i)), "a frozen weight moved");
    }
}

pub fn finish(case: &Case, net: &Model) {
    for (name, value) in net.tensors().unwrap() {
        case.compare(&format!("final.{name}"), &value);
    }
    case.compare("probe.logits", &net.logits(case.tensor("batch.0.x")).unwrap());
}
