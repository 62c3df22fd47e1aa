//! Metrics against the golden cases.

use candle_core::{DType, Device, Tensor};
use recant::metric::{Answers, classification, membership};

use crate::support::golden;

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

fn tensor(values: Vec<f64>) -> Tensor {
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu).unwrap()
}

#[test]
fn golden_classification() {
    for case in golden::of_method("metric_classification") {
        let logits = case.tensor("logits");
        let classes = logits.dims()[1];
        let labels = numbers(case.tensor("y")).into_iter().map(|label| label as u32).collect();
        let answers = Answers::new(&logits.flatten_all().unwrap().to_vec1::<f32>().unwrap(), labels, classes);
        let guesses: Vec<f64> = classification::predictions(&answers).into_iter().map(f64::from).collect();
        case.compare("prediction", &tensor(guesses));
        case.compare("accuracy", &tensor(vec![classification::accuracy(&answers, |_| true).unwrap()]));
        let by_class = (0..classes as u32).map(|c| classification::accuracy(&answers, |label| label == c).unwrap());
        case.compare("per_class_accuracy", &tensor(by_class.collect()));
        let losses = answers.losses();
        case.compare("loss", &tensor(vec![losses.iter().sum::<f64>() / losses.len() as f64]));
    }
}

#[test]
fn golden_svc_membership_attacks() {
    for case in golden::cases(|entry| entry["method"].as_str().is_some_and(|m| m.starts_with("metric_svc_mia"))) {
        let called = membership::svc(
            &rows(case.tensor("member")),
            &rows(case.tensor("nonmember")),
            &rows(case.tensor("forget")),
        );
        let called: Vec<f64> = called.unwrap().into_iter().map(f64::from).collect();
        let share = called.iter().filter(|&&member| member == 0.0).count() as f64 / called.len() as f64;
        case.compare("prediction", &tensor(called));
        case.compare("forgotten_share", &tensor(vec![share]));
    }
}

#[test]
fn golden_loss_membership_attack() {
    for case in golden::of_method("metric_loss_mia") {
        let member: Vec<bool> = numbers(case.tensor("label")).into_iter().map(|label| label == 1.0).collect();
        let folds: Vec<Vec<usize>> =
            rows(case.tensor("test_rows")).into_iter().map(|f| f.into_iter().map(|i| i as usize).collect()).collect();
        let fits = membership::cross_validate(&numbers(case.tensor("losses")), &member, &folds);
        case.compare("weight", &tensor(fits.iter().map(|fit| fit.weight).collect()));
        case.compare("bias", &tensor(fits.iter().map(|fit| fit.bias).collect()));
        case.compare("split_accuracy", &tensor(fits.iter().map(|fit| fit.accuracy).collect()));
        let mean = fits.iter().map(|fit| fit.accuracy).sum::<f64>() / fits.len() as f64;
        case.compare("accuracy", &tensor(vec![mean]));
    }
}
