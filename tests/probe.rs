//! The probe of features: neighbours against all pairs sorted, the linear layer against its own optimum.

use recant::error::Error;
use recant::halt::never;
use recant::rng::Rng;
use recant::stage::probe::linear::Linear;
use recant::stage::probe::{Rows, knn};
use serde_json::Value;

use crate::pretrain::SIMCLR;
use crate::support::place::{Place, err, good, object};

/// Classes around centres of their own, far enough that most are told apart.
fn rows(seed: u64, count: usize, width: usize, classes: usize) -> Rows {
    let centre = |class: usize, at: usize| 1.5 * Rng::new(1).fork("centre").at((class * width + at) as u64).normal();
    let mut noise = Rng::new(seed).fork("noise");
    let labels: Vec<u32> = (0..count).map(|i| (i % classes) as u32).collect();
    let values = labels
        .iter()
        .flat_map(|&label| (0..width).map(|at| centre(label as usize, at) + noise.normal()).collect::<Vec<f32>>())
        .collect();
    Rows { values, width, labels }
}

fn share(answers: &[u32], labels: &[u32]) -> f64 {
    answers.iter().zip(labels).filter(|(a, b)| a == b).count() as f64 / labels.len() as f64
}

#[test]
fn neighbours_are_those_of_all_pairs_sorted() {
    let (train, test) = (rows(1, 403, 6, 4), rows(2, 300, 6, 4));
    let mut right = Vec::new();
    for (k, temperature) in [(1, 0.07), (7, 0.07), (7, 5.0), (200, 0.3), (5000, 0.07)] {
        let found = knn::vote(&train, &test, 4, (k, temperature), &never).unwrap();
        for (row, answer) in test.each().zip(&found) {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let cosine = |other: &[f32]| dot(row, other) / (dot(row, row) * dot(other, other)).sqrt();
            let mut near: Vec<(f64, u32)> = train.each().map(cosine).zip(train.labels.iter().copied()).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let votes = |class: u32| {
                let own = near.iter().take(k).filter(|(_, label)| *label == class);
                own.map(|(cosine, _)| (cosine / temperature).exp()).sum::<f64>()
            };
            let most = (0..4).max_by(|&a, &b| votes(a).total_cmp(&votes(b))).unwrap();
            assert_eq!(*answer, most, "k = {k}, temperature = {temperature}");
        }
        right.push(share(&found, &test.labels));
    }
    assert!(right.iter().all(|share| (0.7..1.0).contains(share)), "{right:?}");
}

/// Mean cross-entropy and half the squared weights, with slopes, written out on the layer's own scale.
fn loss(layer: &Linear, theta: &[f64], train: &Rows, l2: f64) -> (f64, Vec<f64>) {
    let (width, n) = (train.width, train.labels.len() as f64);
    let (mut value, mut slope) = (0.0, vec![0.0; theta.len()]);
    for (row, &label) in train.each().zip(&train.labels) {
        let x: Vec<f64> = row.iter().zip(&layer.moments).map(|(x, (m, d))| (f64::from(*x) - m) / d).collect();
        let logit = |class: usize| {
            let own = &theta[class * (width + 1)..][..=width];
            own.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + own[width]
        };
        let all: f64 = (0..layer.classes).map(|class| logit(class).exp()).sum();
        value -= (logit(label as usize).exp() / all).ln() / n;
        for class in 0..layer.classes {
            let gap = logit(class).exp() / all - if class == label as usize { 1.0 } else { 0.0 };
            for at in 0..=width {
                slope[class * (width + 1) + at] += gap / n * if at < width { x[at] } else { 1.0 };
            }
        }
    }
    for (index, weight) in theta.iter().enumerate().filter(|(index, _)| index % (width + 1) < width) {
        value += l2 / 2.0 * weight * weight;
        slope[index] += l2 * weight;
    }
    (value, slope)
}

#[test]
fn the_linear_layer_is_where_its_loss_is_flat() {
    let (train, test) = (rows(1, 410, 6, 4), rows(2, 300, 6, 4));
    for l2 in [1e-3, 0.1] {
        let layer = Linear::fit(&train, 4, l2, 500, &never).unwrap();
        assert!(layer.slope < 1e-6 && (5..200).contains(&layer.steps), "{} after {}", layer.slope, layer.steps);
        let (value, slope) = loss(&layer, &layer.theta, &train, l2);
        // features are rounded to f32 after they are scaled
        assert!(slope.iter().all(|slope| slope.abs() < 2e-6), "{slope:?}");
        let mut away = Rng::new(7).fork("away");
        for _ in 0..20 {
            let other: Vec<f64> = layer.theta.iter().map(|w| w + 0.01 * f64::from(away.normal())).collect();
            assert!(loss(&layer, &other, &train, l2).0 > value);
        }
        let right = share(&layer.answers(&test), &test.labels);
        assert!(right > 0.85, "{right}");
    }
    let early = Linear::fit(&train, 4, 1e-3, 3, &never).unwrap();
    assert!(early.steps == 3 && early.slope > 1e-4);
    assert!(Linear::fit(&train, 4, 1e-3, 3, &|| Err(Error::Interrupted)).is_err());
}

#[test]
fn constant_features_and_one_class_are_no_trouble() {
    let mut train = rows(1, 40, 3, 4);
    train.values.chunks_mut(3).for_each(|row| row[1] = 0.25);
    assert!(Linear::fit(&train, 4, 1e-3, 500, &never).unwrap().theta.iter().all(|w| w.is_finite()));
    train.labels.fill(2);
    let layer = Linear::fit(&train, 4, 1e-3, 500, &never).unwrap();
    assert_eq!(share(&layer.answers(&train), &train.labels), 1.0);
    let nothing = Rows { values: vec![0.0; 120], ..train };
    assert!(knn::vote(&nothing, &nothing, 4, (5, 0.07), &never).unwrap().iter().all(|&answer| answer == 2));
}

fn numbers(place: &Place, stage: &str) -> Vec<recant::metric::Number> {
    let bytes = std::fs::read(object(place, stage).join("artifact.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let record = header["__metadata__"].as_object().unwrap().values().find_map(|text| {
        serde_json::from_str::<Value>(text.as_str()?).ok().filter(|record| record.get("numbers").is_some())
    });
    serde_json::from_value(record.unwrap()["numbers"].clone()).unwrap()
}

/// Pretraining on digits teaches something, and labels teach more.
#[test]
fn a_probe_measures_encoders_and_models() {
    let recipe =
        SIMCLR.replace("train_limit = 200\n", "").replace("epochs = 2\nbatch = 64", "epochs = EPOCHS\nbatch = 256")
            + "jitter_chance = 0.0\ngrayscale = 0.0\ncrop = 0.5\nflip = 0.0\nlr = 0.01\n\
        [stages.probe]\nkind = \"probe\"\nmodel = \"simclr\"\ndata = \"images\"\nk = 20\n\
        [stages.trained]\nkind = \"train\"\ndata = \"images\"\narch = { name = \"mlp\", hidden = [16] }\nepochs = 15\n\
        [stages.other]\nkind = \"probe\"\nmodel = \"trained\"\ndata = \"images\"\nk = 20\n";
    let place = Place::new(&recipe.replace("EPOCHS", "30"));
    let text = String::from_utf8_lossy(&good(place.run(&["run", "r.toml"])).stdout).into_owned();
    assert!(text.contains("probe.knn %") && text.contains("UCI digits; `") && !text.contains("null"), "{text}");
    let barely = Place::new(&recipe.replace("EPOCHS", "1").replace("lr = 0.01", "lr = 1e-6"));
    good(barely.run(&["run", "r.toml", "probe"]));
    let values = |place: &Place, stage: &str| {
        let found = numbers(place, stage);
        let names: Vec<&str> = found.iter().map(|number| number.name.as_str()).collect();
        assert_eq!(names, ["probe.knn", "probe.linear"]);
        assert!(found.iter().all(|number| number.unit == "%" && number.aim == recant::metric::Aim::Higher));
        [found[0].value, found[1].value]
    };
    let (before, after, labels) = (values(&barely, "probe"), values(&place, "probe"), values(&place, "other"));
    assert!(after[0] > before[0] && labels[0] > after[0], "{before:?} {after:?} {labels:?}");
    assert!(labels.iter().chain(&after).chain(&before).all(|value| (50.0..100.0).contains(value)));

    let split = recipe.replace("model = \"trained\"\ndata = \"images\"", "model = \"trained\"\ndata = \"split\"");
    let output = Place::new(&split.replace("EPOCHS", "1")).run(&["plan", "r.toml"]);
    assert!(err(&output).contains("`data` must be a stage that makes images"), "{}", err(&output));
}
