//! Losses: against the golden cases, against finite differences in f64, and op against composition.

use candle_core::{DType, Device, Tensor, Var};
use recant::error::Result;
use recant::nn::loss::{self, arpl, composed, distill, kl_to, nt_xent, nt_xent_original, simple_ssl};
use recant::rng::Rng;

use crate::support::golden::{self, Case};

fn var(case: &Case, name: &str) -> Var {
    Var::from_tensor(case.tensor(name)).unwrap()
}

fn marks(tensor: &Tensor) -> Vec<bool> {
    tensor.to_vec1::<u8>().unwrap().into_iter().map(|mark| mark == 1).collect()
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Values in (-spread, spread), f64.
fn random(seed: u64, shape: (usize, usize), spread: f32) -> Tensor {
    let mut rng = Rng::new(seed).fork("test");
    let values: Vec<f64> = (0..shape.0 * shape.1).map(|_| f64::from(rng.between(-spread, spread))).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

type Loss<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The op's gradient of every input is that of central differences, and so is the twin's; their values agree. The loss
/// is scaled, so that a gradient that ignores what comes from above shows.
fn check(name: &str, inputs: &[Tensor], op: Loss, twin: Loss) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let slopes = |loss: Loss| -> (f64, Vec<Vec<f64>>) {
        let value = (loss(&tensors).unwrap() * 3.0).unwrap();
        let grads = value.backward().unwrap();
        let flat = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        (scalar(&value), vars.iter().map(flat).collect())
    };
    let ((value, by_op), (other, by_twin)) = (slopes(op), slopes(twin));
    assert!((value - other).abs() < 1e-9 * (1.0 + value.abs()), "{name}: {value} is not {other}");
    for (index, input) in inputs.iter().enumerate() {
        let start = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for at in 0..start.len() {
            let shifted = |step: f64| {
                let mut moved = start.clone();
                moved[at] += step;
                let mut all = inputs.to_vec();
                all[index] = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
                3.0 * scalar(&op(&all).unwrap())
            };
            let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            for (who, got) in [("op", by_op[index][at]), ("twin", by_twin[index][at])] {
                let off = (got - slope).abs();
                assert!(off < 1e-7 * (1.0 + slope.abs()), "{name}: {who}'s slope {index}.{at} is {got}, not {slope}");
            }
        }
    }
}

fn labels() -> Tensor {
    Tensor::new(&[2_u32, 0, 3, 2], &Device::Cpu).unwrap()
}

const GONE: [bool; 4] = [true, false, false, true];

#[test]
fn gradients_are_those_of_finite_differences() {
    let (a, b) = (random(1, (4, 5), 4.0), random(2, (4, 5), 4.0));
    let y = labels();
    for smoothing in [0.0, 0.1, 1.0] {
        check(
            "smoothed_cross_entropy",
            std::slice::from_ref(&a),
            &|x| loss::smoothed_cross_entropy(&x[0], &y, smoothing),
            &|x| composed::cross_entropy(&x[0], &y, smoothing),
        );
    }
    let p = candle_nn::ops::sigmoid(&a).unwrap();
    for target in [0.0, 0.3, 1.0] {
        check("binary_cross_entropy", std::slice::from_ref(&p), &|x| loss::binary_cross_entropy(&x[0], target), &|x| {
            composed::binary_cross_entropy(&x[0], target)
        });
    }
    for t in [1.0, 2.5] {
        check("distill", &[a.clone(), b.clone()], &|x| distill(&x[0], &x[1], t), &|x| {
            composed::distill(&x[0], &x[1], t)
        });
        let target = candle_nn::ops::softmax(&b, 1).unwrap();
        check("kl_to", std::slice::from_ref(&a), &|x| kl_to(&target, &x[0], t), &|x| {
            composed::kl_to(&target, &x[0], t)
        });
        check("nt_xent", std::slice::from_ref(&a), &|x| nt_xent(&x[0], t), &|x| {
            composed::contrast(&x[0], t, &[1.0; 4])
        });
        let signs = [-1.0, 1.0, -1.0, 1.0];
        check("nt_xent_original", std::slice::from_ref(&a), &|x| nt_xent_original(&x[0], t, &[true, false]), &|x| {
            composed::contrast(&x[0], t, &signs)
        });
    }
    let w = loss::ssl::simple_weight(&GONE);
    let shares: Vec<f64> = GONE.iter().map(|&gone| if gone { 1.0 - w } else { -w } / 4.0).collect();
    check("simple_ssl", std::slice::from_ref(&a), &|x| simple_ssl(&x[0], &b, &GONE), &|x| {
        composed::cosines(&x[0], &b, &shares)
    });
    let knobs = arpl::Arpl { temperature: 0.7, weight: 0.4, margin: 1.0 };
    let radius = Tensor::new(&[3.3_f64], &Device::Cpu).unwrap();
    check("arpl", &[a.clone(), b.clone(), radius], &|x| arpl::loss(&x[0], &x[1], &x[2], &labels(), knobs), &|x| {
        composed::arpl(&x[0], &x[1], &x[2], &labels(), knobs)
    });
    for released in [false, true] {
        check(
            "arpl_fake",
            &[(&a * 0.3).unwrap(), (&b * 0.3).unwrap()],
            &|x| arpl::fake_loss(&x[0], &x[1], released),
            &|x| composed::arpl_fake(&x[0], &x[1], released),
        );
    }
}

#[test]
fn extreme_logits_give_finite_losses_and_gradients() {
    let logits = Tensor::new(&[[1e30_f32, -1e30, 0.0], [-3e4, 3e4, 5e4]], &Device::Cpu).unwrap();
    let other = Tensor::new(&[[-1e30_f32, 1e30, 1e30], [7e4, 7e4, -7e4]], &Device::Cpu).unwrap();
    let y = Tensor::new(&[1_u32, 2], &Device::Cpu).unwrap();
    let student = Var::from_tensor(&logits).unwrap();
    let target = Tensor::new(&[[0.0_f32, 1.0, 0.0], [0.5, 0.0, 0.5]], &Device::Cpu).unwrap();
    for loss in [
        loss::cross_entropy(&student, &y),
        distill(&student, &other, 2.0),
        kl_to(&target, &student, 0.5),
        nt_xent(&Tensor::cat(&[student.as_tensor(), &other], 0).unwrap(), 0.01),
    ] {
        let loss = loss.unwrap();
        assert!(scalar(&loss).is_finite());
        let slope = loss.backward().unwrap().get(&student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(slope.iter().all(|x| x.is_finite()), "{slope:?}");
    }
}

#[test]
fn constants_get_no_gradient_and_graphs_may_be_walked_twice() {
    let (student, teacher) = (Var::from_tensor(&random(3, (4, 5), 2.0)).unwrap(), random(4, (4, 5), 2.0));
    let loss = distill(&student, &teacher, 1.0).unwrap();
    let once = loss.backward().unwrap();
    assert!(once.get(&teacher).is_none());
    let flat = |grads: &candle_core::backprop::GradStore| {
        grads.get(&student).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    assert_eq!(flat(&once), flat(&loss.backward().unwrap()));
    assert!(!distill(&student.as_detached_tensor(), &teacher, 1.0).unwrap().track_op());
}

#[test]
fn strided_and_half_precision_logits_are_understood() {
    let plain = random(5, (5, 4), 2.0);
    let turned = Var::from_tensor(&plain).unwrap();
    let y = labels();
    let loss = loss::cross_entropy(&turned.t().unwrap(), &y).unwrap();
    let want = loss::cross_entropy(&plain.t().unwrap().contiguous().unwrap(), &y).unwrap();
    assert_eq!(scalar(&loss), scalar(&want));
    assert_eq!(loss.backward().unwrap().get(&turned).unwrap().dims(), [5, 4]);
    let half = Var::from_tensor(&plain.t().unwrap().to_dtype(DType::BF16).unwrap()).unwrap();
    let loss = loss::cross_entropy(&half, &y).unwrap();
    assert!((scalar(&loss) - scalar(&want)).abs() < 0.05);
    assert_eq!(loss.backward().unwrap().get(&half).unwrap().dtype(), DType::BF16);
}

#[test]
fn wrong_shapes_labels_and_temperatures_are_errors() {
    let (a, b) = (random(1, (4, 5), 1.0), random(1, (4, 6), 1.0));
    let far = Tensor::new(&[0_u32, 0, 0, 5], &Device::Cpu).unwrap();
    assert!(loss::cross_entropy(&a, &far).unwrap_err().to_string().contains("label 5"));
    assert!(loss::cross_entropy(&a, &Tensor::new(&[0_u32], &Device::Cpu).unwrap()).is_err());
    assert!(distill(&a, &b, 1.0).is_err() && distill(&a, &a, 0.0).is_err());
    assert!(nt_xent(&random(1, (3, 5), 1.0), 1.0).is_err());
    assert!(loss::cross_entropy(&Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap(), &far).is_err());
}

#[test]
fn golden_nt_xent() {
    for case in golden::cases(|e| e["method"].as_str().is_some_and(|m| m.starts_with("ssl_nt_xent"))) {
        let z = var(&case, "z");
        let loss = nt_xent(&z, case.number("temperature")).unwrap();
        case.compare("loss", &loss);
        case.compare("grad.z", loss.backward().unwrap().get(&z).unwrap());
    }
}

#[test]
fn golden_nt_xent_original() {
    for case in golden::of_method("ssl_original") {
        for batch in ["mixed", "none", "all"] {
            let z = var(&case, "z");
            let forget = marks(case.tensor(&format!("{batch}.is_forget")));
            let loss = nt_xent_original(&z, case.number("temperature"), &forget).unwrap();
            case.compare(&format!("{batch}.loss"), &loss);
            case.compare(&format!("{batch}.grad.z"), loss.backward().unwrap().get(&z).unwrap());
        }
    }
}

#[test]
fn golden_simple_ssl() {
    for case in golden::of_method("ssl_simple") {
        for batch in ["mixed", "none", "all"] {
            let features = var(&case, "features");
            let head: Vec<(String, Var)> =
                case.under("head.").into_iter().map(|(n, t)| (n, Var::from_tensor(&t).unwrap())).collect();
            let get = |name: &str| head.iter().find(|(n, _)| n == name).unwrap().1.as_tensor();
            let layer = |x: &Tensor, n: u8| {
                let wx = x.matmul(&get(&format!("{n}.weight")).t().unwrap()).unwrap();
                wx.broadcast_add(get(&format!("{n}.bias"))).unwrap()
            };
            let hidden = layer(&features, 0);
            let open = hidden.gt(0.0).unwrap().to_dtype(DType::F32).unwrap();
            let projection = layer(&(hidden * open).unwrap(), 2);
            let forget = marks(case.tensor(&format!("{batch}.is_forget")));
            let loss = simple_ssl(&projection, case.tensor("target"), &forget).unwrap();
            case.compare(&format!("{batch}.loss"), &loss);
            let weight = loss::ssl::simple_weight(&forget);
            case.compare(&format!("{batch}.weight"), &Tensor::new(&[weight], &Device::Cpu).unwrap());
            let grads = loss.backward().unwrap();
            case.compare(&format!("{batch}.grad.features"), grads.get(&features).unwrap());
            for (name, var) in &head {
                case.compare(&format!("{batch}.grad.head.{name}"), grads.get(var).unwrap());
            }
        }
    }
}

#[test]
fn golden_arpl() {
    for case in golden::of_method("arpl_loss") {
        let (features, points, radius) = (var(&case, "features"), var(&case, "points"), var(&case, "radius"));
        let y = case.tensor("y").to_dtype(DType::U32).unwrap();
        let knobs = |weight| arpl::Arpl { temperature: case.number("temp"), weight, margin: case.number("margin") };
        let part = |weight| arpl::loss(&features, &points, &radius, &y, knobs(weight)).unwrap();
        case.compare("logits", &arpl::logits(&features, &points).unwrap());
        case.compare("ce", &part(0.0));
        case.compare("margin", &(part(1.0) - part(0.0)).unwrap());
        let loss = part(case.number("weight_pl"));
        case.compare("loss", &loss);
        let grads = loss.backward().unwrap();
        for (name, var) in [("features", &features), ("points", &points), ("radius", &radius)] {
            case.compare(&format!("grad.{name}"), grads.get(var).unwrap());
        }
    }
    for case in golden::of_method("arpl_fake_loss") {
        for kind in ["released", "posterior"] {
            let (features, points) = (var(&case, "features"), var(&case, "points"));
            let loss = arpl::fake_loss(&features, &points, kind == "released").unwrap();
            case.compare(&format!("{kind}.loss"), &loss);
            let grads = loss.backward().unwrap();
            case.compare(&format!("{kind}.grad.features"), grads.get(&features).unwrap());
            case.compare(&format!("{kind}.grad.points"), grads.get(&points).unwrap());
        }
    }
}
