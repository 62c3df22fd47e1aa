//! Networks, optimisers and schedules against the golden cases.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use recant::nn::arch::{Arch, Shape, Stem};
use recant::nn::loss::cross_entropy;
use recant::nn::model::{Model, Pass};
use recant::nn::optim::{Rule, Stepper};
use recant::nn::schedule::{Moment, Schedule};
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
    Arch { name: "golden".into(), shape, classes, size: [3, side, side], mean: vec![0.0; 3], std: vec![1.0; 3] }
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
        let mask = net.only(&trainable);
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

#[test]
fn golden_optimisers() {
    for case in golden::cases(|entry| entry["kind"] == "optimizer" && entry["hyper"]["optimizer"].is_object()) {
        let rates: Vec<f64> = case.hyper("lr").as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
        let names: Vec<String> = case.under("init.").into_keys().collect();
        assert!(names.len() > 1);
        for problem in ["quadratic", "mlp"] {
            let prefix = format!("init.{problem}.");
            let vars: BTreeMap<String, Var> =
                case.under(&prefix).into_iter().map(|(n, t)| (n, Var::from_tensor(&t).unwrap())).collect();
            let mut steppers: BTreeMap<String, Stepper> = vars
                .iter()
                .map(|(n, v)| (n.clone(), Stepper::new(rule(case.hyper("optimizer")), v.elem_count(), None)))
                .collect();
            for (step, &rate) in rates.iter().enumerate() {
                let loss = loss_of(&case, problem, &vars);
                let stored = case.tensor(&format!("step.loss.{problem}")).get(step).unwrap();
                let off = (stored.to_scalar::<f32>().unwrap() - loss.to_scalar::<f32>().unwrap()).abs();
                assert!(off < 1e-4, "{} {problem} step {step}: loss off by {off}", case.name);
                let grads = loss.backward().unwrap();
                for (name, var) in &vars {
                    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let (gradient, mut theta) = (flat(grads.get(var).unwrap()), flat(var));
                    steppers.get_mut(name).unwrap().step(&mut theta, &gradient, rate).unwrap();
                    var.set(&Tensor::from_vec(theta, var.shape(), &Device::Cpu).unwrap()).unwrap();
                }
            }
            for (name, var) in &vars {
                case.compare(&format!("final.{problem}.{name}"), var);
            }
        }
    }
}

fn loss_of(case: &Case, problem: &str, vars: &BTreeMap<String, Var>) -> Tensor {
    let var = |name: &str| vars.get(name).unwrap_or_else(|| panic!("{:?} lacks {name}", vars.keys())).as_tensor();
    if problem == "quadratic" {
        let w = vars.values().next().unwrap().as_tensor();
        let (a, b) = (case.tensor("quadratic.A"), case.tensor("quadratic.b"));
        let half = (w * a.matmul(&w.unsqueeze(1).unwrap()).unwrap().squeeze(1).unwrap()).unwrap();
        ((half * 0.5).unwrap() - (w * b).unwrap()).unwrap().sum_all().unwrap()
    } else {
        let layer = |x: &Tensor, n: &str| {
            let wx = x.matmul(&var(&format!("{n}.weight")).t().unwrap()).unwrap();
            wx.broadcast_add(var(&format!("{n}.bias"))).unwrap()
        };
        let hidden = layer(case.tensor("mlp.x"), "0").tanh().unwrap();
        cross_entropy(&layer(&hidden, "2"), &labels(case, "mlp.y")).unwrap()
    }
}

#[test]
fn golden_schedules() {
    for case in golden::of_method("schedules") {
        let base = case.number("base_lr");
        let steps = case.number("total_steps") as usize;
        let curve = |settings: Value, count: usize, total: usize| {
            let schedule = Schedule::new(&settings).unwrap();
            let rates: Vec<f64> =
                (0..count).map(|step| schedule.rate(base, Moment { step, steps: total, epoch: step })).collect();
            Tensor::new(rates, &Device::Cpu).unwrap()
        };
        let top = case.number("T_max") as usize;
        case.compare("lr.cosine", &curve(json!({"cosine": {"floor": 0.0}}), top + 1, top));
        case.compare("lr.cosine_eta_min", &curve(json!({"cosine": {"floor": case.hyper("eta_min")}}), top + 1, top));
        let multi = json!({"multi_step": {"at": case.hyper("milestones"), "factor": case.hyper("gamma")}});
        case.compare("lr.multistep", &curve(multi, case.tensor("lr.multistep").elem_count(), steps));
        let cycle = json!({"one_cycle": {"rise": case.hyper("pct_start"), "div": case.hyper("div_factor"),
            "final_div": case.hyper("final_div_factor")}});
        case.compare("lr.onecycle_cos", &curve(cycle, steps, steps));
    }
}
