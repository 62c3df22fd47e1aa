//! Optimisers and schedules: golden cases, and second computations where there are none.

use std::f64::consts::PI;

use candle_core::{DType, Device, Tensor, Var};
use recant::nn::arch::Arch;
use recant::nn::loss::cross_entropy;
use recant::nn::model::{Gradient, Model, gradients_of};
use recant::nn::optim::{DeviceStepper, Optimizer, Rule, Stepper};
use recant::nn::schedule::{Course, Moment, Plateau, Schedule};
use recant::rng::Rng;
use serde_json::{Value, json};

use crate::numerics::rule;
use crate::support::golden::{self, Case};

fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

fn draws(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed).fork("test");
    (0..count).map(|_| rng.normal()).collect()
}

fn rules() -> Vec<Rule> {
    vec![
        Rule::Sgd { momentum: 0.0, weight_decay: 0.0, nesterov: false },
        Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: false },
        Rule::Sgd { momentum: 0.9, weight_decay: 0.1, nesterov: true },
        Rule::Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
        Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
    ]
}

/// A problem of the optimiser cases: theta is one vector over its parameters in order of their names.
struct Problem<'a> {
    case: &'a Case,
    name: &'a str,
    vars: Vec<(String, Var)>,
}

impl Problem<'_> {
    fn loss(&self) -> Tensor {
        let var = |name: &str| self.vars.iter().find(|(n, _)| n == name).unwrap().1.as_tensor();
        if self.name == "quadratic" {
            let (w, a, b) = (var("w"), self.case.tensor("quadratic.A"), self.case.tensor("quadratic.b"));
            let aw = a.matmul(&w.unsqueeze(1).unwrap()).unwrap().squeeze(1).unwrap();
            return ((w * aw).unwrap() * 0.5).unwrap().sub(&(w * b).unwrap()).unwrap().sum_all().unwrap();
        }
        let layer = |x: &Tensor, n: u8| {
            let wx = x.matmul(&var(&format!("{n}.weight")).t().unwrap()).unwrap();
            wx.broadcast_add(var(&format!("{n}.bias"))).unwrap()
        };
        let hidden = layer(self.case.tensor("mlp.x"), 0).tanh().unwrap();
        cross_entropy(&layer(&hidden, 2), &self.case.tensor("mlp.y").to_dtype(DType::U32).unwrap()).unwrap()
    }

    fn theta(&self) -> Vec<f32> {
        self.vars.iter().flat_map(|(_, v)| v.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    /// A vector over all parameters, cut into named tensors.
    fn cut(&self, values: &[f32]) -> Vec<(String, Tensor)> {
        let mut start = 0;
        self.vars
            .iter()
            .map(|(name, var)| {
                let piece = &values[start..start + var.elem_count()];
                start += piece.len();
                (name.clone(), Tensor::from_slice(piece, var.shape(), &Device::Cpu).unwrap())
            })
            .collect()
    }
}

#[test]
fn golden_optimisers_step_by_step() {
    for case in golden::cases(|entry| entry["kind"] == "optimizer" && entry["hyper"]["optimizer"].is_object()) {
        for name in ["quadratic", "mlp"] {
            let named = case.under(&format!("init.{name}."));
            let vars = named.into_iter().map(|(n, t)| (n, Var::from_tensor(&t).unwrap())).collect();
            let problem = Problem { case: &case, name, vars };
            let mut theta = problem.theta();
            let mut stepper = Stepper::new(rule(case.hyper("optimizer")), theta.len(), None);
            let (mut losses, mut gradients, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            for rate in case.hyper("lr").as_array().unwrap() {
                let loss = problem.loss();
                losses.push(loss.to_scalar::<f32>().unwrap());
                let grads = loss.backward().unwrap();
                let flat = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let gradient: Vec<f32> = problem.vars.iter().flat_map(|(_, v)| flat(v)).collect();
                stepper.step(&mut theta, &gradient, rate.as_f64().unwrap()).unwrap();
                for ((_, var), (_, moved)) in problem.vars.iter().zip(problem.cut(&theta)) {
                    var.set(&moved).unwrap();
                }
                gradients.push(problem.cut(&gradient));
                weights.push(problem.cut(&theta));
            }
            case.compare(&format!("step.loss.{name}"), &vector(&losses));
            for (what, rows) in [("grad", &gradients), ("weight", &weights)] {
                for (index, (parameter, _)) in problem.vars.iter().enumerate() {
                    let steps: Vec<&Tensor> = rows.iter().map(|row| &row[index].1).collect();
                    case.compare(&format!("step.{what}.{name}.{parameter}"), &Tensor::stack(&steps, 0).unwrap());
                }
            }
            for (parameter, value) in problem.cut(&theta) {
                case.compare(&format!("final.{name}.{parameter}"), &value);
            }
            let state = stepper.state().unwrap();
            let mut compared = 0;
            for (ours, theirs) in [("first", "momentum_buffer"), ("first", "exp_avg"), ("second", "exp_avg_sq")] {
                let Some(values) = state.get(ours) else { continue };
                for (parameter, value) in problem.cut(&values.to_vec1::<f32>().unwrap()) {
                    let stored = format!("state.{theirs}.{name}.{parameter}");
                    if case.tensors.contains_key(&stored) {
                        case.compare(&stored, &value);
                        compared += 1;
                    }
                }
            }
            let stateful = !case.under("state.").is_empty();
            assert_eq!(compared > 0, stateful, "{}: state", case.name);
        }
    }
}

#[test]
fn masked_weights_keep_every_bit_and_gather_no_momentum() {
    let count = 40_000;
    let mask: Vec<f32> = (0..count).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
    for rule in rules() {
        let start = draws(1, count);
        let (mut theta, mut free) = (start.clone(), start.clone());
        let mut stepper = Stepper::new(rule.clone(), count, Some(mask.clone()));
        let mut unmasked = Stepper::new(rule.clone(), count, None);
        for step in 0..3 {
            let gradient = draws(10 + step, count);
            stepper.step(&mut theta, &gradient, 0.1).unwrap();
            unmasked.step(&mut free, &gradient, 0.1).unwrap();
        }
        let state = stepper.state().unwrap();
        for values in ["first", "second"].iter().filter_map(|name| state.get(*name)) {
            let values: Vec<f32> = values.to_vec1().unwrap();
            assert!((0..count).all(|i| (values[i] == 0.0) == (mask[i] == 0.0)), "{rule:?}");
        }
        for i in 0..count {
            let want = if mask[i] == 0.0 { start[i] } else { free[i] };
            assert_eq!(theta[i].to_bits(), want.to_bits(), "{rule:?} {i}");
        }
    }
}

#[test]
fn steps_are_the_same_bytes_for_any_number_of_threads() {
    let count = 100_003;
    for rule in rules() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut theta, mut stepper) = (draws(1, count), Stepper::new(rule.clone(), count, None));
                for step in 0..2 {
                    stepper.step(&mut theta, &draws(10 + step, count), 0.1).unwrap();
                }
                theta.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
            })
        };
        assert_eq!(run(1), run(5), "{rule:?}");
    }
}

#[test]
fn a_stepper_on_tensors_goes_the_same_way_and_states_are_exchangeable() {
    let count = 300;
    let mask: Vec<f32> = (0..count).map(|i| f32::from(u8::from(i % 4 != 0))).collect();
    for rule in rules() {
        let mut theta = draws(1, count);
        let mut other = vector(&theta);
        let mut stepper = Stepper::new(rule.clone(), count, Some(mask.clone()));
        let mut device = DeviceStepper::new(rule.clone(), count, Some(&vector(&mask)), &Device::Cpu).unwrap();
        let close = |theta: &[f32], other: &Tensor| {
            let other: Vec<f32> = other.to_vec1().unwrap();
            let worst = theta.iter().zip(&other).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 2e-6, "{rule:?}: {worst}");
            assert!((0..count).all(|i| mask[i] != 0.0 || theta[i].to_bits() == other[i].to_bits()));
        };
        for step in 0..6 {
            let (gradient, momentum) = (draws(10 + step, count), (step == 2).then_some(0.6));
            stepper.step_with(&mut theta, &gradient, 0.05, momentum).unwrap();
            other = device.step(&other, &vector(&gradient), 0.05, momentum).unwrap();
            close(&theta, &other);
            if step == 3 {
                let state = stepper.state().unwrap();
                stepper.load_state(&device.state().unwrap()).unwrap();
                device = DeviceStepper::new(rule.clone(), count, Some(&vector(&mask)), &Device::Cpu).unwrap();
                device.load_state(&state).unwrap();
            }
        }
    }
}

#[test]
fn a_restored_stepper_goes_on_with_the_same_bytes() {
    for rule in rules() {
        let (mut theta, mut stepper) = (draws(1, 50), Stepper::new(rule.clone(), 50, None));
        for step in 0..4 {
            if step == 2 {
                let state = stepper.state().unwrap();
                stepper = Stepper::new(rule.clone(), 50, None);
                stepper.load_state(&state).unwrap();
                assert!(Stepper::new(rule.clone(), 51, None).load_state(&state).is_err());
            }
            stepper.step(&mut theta, &draws(10 + step, 50), 0.1).unwrap();
        }
        let (mut whole, mut stepper) = (draws(1, 50), Stepper::new(rule, 50, None));
        for step in 0..4 {
            stepper.step(&mut whole, &draws(10 + step, 50), 0.1).unwrap();
        }
        assert_eq!(theta, whole);
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let mut stepper = Stepper::new(rules().remove(0), 3, Some(vec![1.0; 2]));
    assert!(stepper.step(&mut [0.0; 3], &[0.0; 3], 0.1).is_err());
    assert!(Stepper::new(rules().remove(0), 3, None).step(&mut [0.0; 3], &[0.0; 2], 0.1).is_err());
}

/// A momentum for one step is that step's momentum: SGD by hand.
#[test]
fn a_step_may_have_its_own_momentum() {
    let rule = Rule::Sgd { momentum: 0.9, weight_decay: 0.0, nesterov: false };
    let (mut theta, mut stepper) = ([1.0_f32], Stepper::new(rule, 1, None));
    stepper.step(&mut theta, &[1.0], 0.5).unwrap();
    stepper.step_with(&mut theta, &[1.0], 0.5, Some(0.5)).unwrap();
    assert_eq!(theta[0], 1.0 - 0.5 - 0.5 * (0.5 + 1.0));
    let (mut theta, mut plain) =
        ([1.0_f32], Stepper::new(Rule::Sgd { momentum: 0.0, weight_decay: 0.0, nesterov: false }, 1, None));
    for _ in 0..2 {
        plain.step_with(&mut theta, &[1.0], 0.5, Some(0.5)).unwrap();
    }
    assert_eq!(theta[0], 0.0);
}

fn rates(settings: &Value, base: f64, steps: usize, count: usize) -> Vec<f64> {
    let schedule = Schedule::new(settings).unwrap();
    (0..count).map(|step| schedule.rate(base, Moment { step, steps, epoch: step })).collect()
}

fn tensor(values: Vec<f64>) -> Tensor {
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu).unwrap()
}

#[test]
fn golden_schedules_with_both_shapes_and_momentum() {
    for case in golden::of_method("schedules") {
        let (base, steps) = (case.number("base_lr"), case.number("total_steps") as usize);
        let top = case.number("T_max") as usize;
        case.compare("lr.cosine", &tensor(rates(&json!({"cosine": {"floor": 0.0}}), base, top, top + 1)));
        let floor = json!({"cosine": {"floor": case.hyper("eta_min")}});
        case.compare("lr.cosine_eta_min", &tensor(rates(&floor, base, top, top + 1)));
        let multi = json!({"multi_step": {"at": case.hyper("milestones"), "factor": case.hyper("gamma")}});
        case.compare("lr.multistep", &tensor(rates(&multi, base, steps, steps)));
        for (shape, stored) in [("cosine", "cos"), ("linear", "linear")] {
            let cycle = json!({"one_cycle": {"rise": case.hyper("pct_start"), "div": case.hyper("div_factor"),
                "final_div": case.hyper("final_div_factor"), "shape": shape, "cycle_momentum": true,
                "high_momentum": case.hyper("max_momentum"), "low_momentum": case.hyper("base_momentum")}});
            case.compare(&format!("lr.onecycle_{stored}"), &tensor(rates(&cycle, base, steps, steps)));
            let schedule = Schedule::new(&cycle).unwrap();
            let momentum = |step| schedule.momentum(Moment { step, steps, epoch: 0 }).unwrap();
            case.compare(&format!("lr.onecycle_{stored}_momentum"), &tensor((0..steps).map(momentum).collect()));
        }
    }
}

/// PyTorch's SequentialLR of LinearLR(start_factor = 1/W, total_iters = W - 1) for W steps and then the schedule,
/// computed by its rule of steps: each rate from the one before.
#[test]
fn warm_up_is_linear_and_the_cosine_begins_after_it() {
    let (base, steps, warming) = (0.4, 50, 5);
    let got = rates(&json!({"cosine": {"floor": 0.01, "warmup": 0.1}}), base, steps, steps);
    let mut rate = base / warming as f64;
    for (step, got) in got.iter().enumerate() {
        if (1..warming).contains(&step) {
            // LinearLR's recurrence.
            let (start, iters) = (1.0 / warming as f64, (warming - 1) as f64);
            rate *= 1.0 + (1.0 - start) / (iters * start + (step as f64 - 1.0) * (1.0 - start));
        } else if step >= warming {
            let length = (steps - warming) as f64;
            let t = (step - warming) as f64;
            // CosineAnnealingLR's recurrence.
            rate = if step == warming {
                base
            } else {
                (1.0 + (PI * t / length).cos()) / (1.0 + (PI * (t - 1.0) / length).cos()) * (rate - 0.01) + 0.01
            };
        }
        assert!((rate - got).abs() < 1e-12, "step {step}: {got} is not {rate}");
    }
    let flat = rates(&json!({"constant": {"warmup": 1.0}}), 1.0, 4, 5);
    assert_eq!(flat, [0.25, 0.5, 0.75, 1.0, 1.0]);
    let steps = rates(&json!({"multi_step": {"at": [1], "factor": 0.1, "warmup": 0.5}}), 1.0, 4, 4);
    assert!((steps[1] - 0.1).abs() < 1e-12 && (steps[0] - 0.5).abs() < 1e-12);
}

#[test]
fn every_rate_is_finite_for_trainings_of_any_length() {
    for steps in 0..12 {
        for rise in [0.0, 0.1, 0.25, 0.5, 1.0] {
            let cycle = json!({"one_cycle": {"rise": rise, "div": 25.0, "final_div": 1e4, "cycle_momentum": true,
                "high_momentum": 0.95, "low_momentum": 0.85}});
            assert!(rates(&cycle, 0.1, steps, steps).iter().all(|r| (0.0..=0.1).contains(r)), "{steps} {rise}");
        }
        let cosine = rates(&json!({"cosine": {"floor": 0.0, "warmup": 0.3}}), 0.1, steps, steps);
        assert!(cosine.iter().all(|r| (0.0..=0.1).contains(r)));
    }
}

/// The documented rule of ReduceLROnPlateau, read backwards over the whole history instead of kept as a state: an epoch
/// is good if it beats every good value before it; the rate is cut once the epochs since the last good one, cut or end
/// of a cooldown are more than the patience.
#[test]
fn a_plateau_cuts_where_the_documented_rule_cuts() {
    let mut cuts = 0;
    for seed in 0..40 {
        let mut rng = Rng::new(seed).fork("plateau");
        let (patience, cooldown) = (rng.below(4) as usize, rng.below(4) as usize);
        let values: Vec<f64> =
            (0..60).map(|i| 1.0 / (1.0 + f64::from(i) * 0.05) + f64::from(rng.unit()) * 0.4).collect();
        let (threshold, factor, floor) = (0.01, 0.5, 0.02);
        let mut plateau = Plateau::new(0.1, factor, patience, threshold, cooldown, floor);
        let (mut good, mut cut_at): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for now in 0..values.len() {
            plateau.observe(values[now]);
            if good.last().is_none_or(|&best| values[now] < values[best] * (1.0 - threshold)) {
                good.push(now);
            }
            let since_good = good.last().copied();
            let since_cut = cut_at.last().map(|cut| cut + cooldown);
            let reset = since_good.max(since_cut).unwrap_or(0);
            if now > reset && now - reset > patience {
                cut_at.push(now);
            }
            let want = (0..cut_at.len()).fold(0.1_f64, |rate, _| (rate * factor).max(floor));
            assert!((plateau.rate() - want).abs() < 1e-15, "seed {seed}, epoch {now}");
        }
        cuts += cut_at.len();
    }
    assert!(cuts > 100, "{cuts} cuts");
}

#[test]
fn a_course_feeds_its_plateau_and_can_be_saved_in_the_middle_of_an_epoch() {
    let settings = json!({"plateau": {"factor": 0.5, "patience": 1, "threshold": 0.0, "cooldown": 0, "floor": 0.0}});
    let schedule = Schedule::new(&settings).unwrap();
    let at = Moment { step: 0, steps: 100, epoch: 0 };
    let mut course = Course::new(&schedule, 1.0);
    let mut rates = Vec::new();
    // Means by epoch: 2, 3, 3, 1.
    for (step, loss) in [1.0, 3.0, 3.0, 3.0, 2.0, 4.0, 1.0, 1.0].into_iter().enumerate() {
        let state = course.state().unwrap();
        course = Course::new(&schedule, 1.0);
        course.load_state(&state).unwrap();
        course.saw(loss);
        if step % 2 == 1 {
            course.end_epoch();
            rates.push(course.rate(at));
        }
    }
    assert_eq!(rates, [1.0, 1.0, 0.5, 0.5]);
    assert!(Course::new(&schedule, 1.0).load_state(&std::collections::BTreeMap::new()).is_err());
}

/// A model's optimiser moves it alike in main memory and by the operations of a device.
#[test]
fn models_move_alike_wherever_they_live() {
    let arch = Arch::new(&json!({"name": "mlp", "hidden": [7]}), 3, [1, 2, 2], &[0.0], &[1.0]).unwrap();
    let x = Tensor::from_vec(draws(3, 20), (5, 1, 2, 2), &Device::Cpu).unwrap();
    for rule in rules() {
        let mut models = [0, 1].map(|_| Model::init(&arch, &Rng::new(1), &Device::Cpu).unwrap());
        let length = models[0].len();
        let mask: Vec<f32> = (0..length).map(|place| f32::from(place % 3 != 0)).collect();
        let on_device = DeviceStepper::new(rule.clone(), length, Some(&vector(&mask)), &Device::Cpu).unwrap();
        let host = Optimizer::new(rule, &models[0], Some(mask)).unwrap();
        for (model, mut optimizer) in models.iter_mut().zip([host, Optimizer::Device(on_device)]) {
            for step in 0..3 {
                let loss = model.train(&x).unwrap().logits.sqr().unwrap().sum_all().unwrap();
                let gradients = gradients_of(&loss, &[model]).unwrap();
                let length = gradients[0].length().unwrap();
                let on = Gradient::Device(gradients[0].on(&Device::Cpu).unwrap());
                assert!((on.length().unwrap() - length).abs() < 1e-9 * length, "step {step}");
                optimizer.step(model, &gradients[0], 0.01, None).unwrap();
            }
        }
        let [host, on_device] = models.map(|model| model.theta().unwrap());
        let start = Model::init(&arch, &Rng::new(1), &Device::Cpu).unwrap().theta().unwrap();
        assert!(host.iter().zip(&start).any(|(a, b)| (a - b).abs() > 1e-3));
        for (place, ((a, b), start)) in host.iter().zip(&on_device).zip(&start).enumerate() {
            assert!((a - b).abs() < 1e-6, "{place}: {a} {b}");
            assert!(place % 3 != 0 || (a == start && b == start), "{place} moved");
        }
    }
}
