//! What every kind of stage makes of a tiny recipe: a changed result without a raised version fails here. Bytes where no
//! arithmetic of the machine is in them, sums and lengths where the last digits follow the vector width.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use recant::stage::STAGES;

use crate::support::place::{Place, SMALL, good, object, objects};

/// Kind with version, stage, and what it made.
const OUTCOMES: &[(&str, &str, &str)] = &[
    ("augment 1", "generated", "1300 values, sum 108529.000, length 3947.066"),
    ("augment 1", "made", "2080 values, sum 54.689, length 6.927"),
    ("augment 1", "more", "9360 values, sum 893811.000, length 11741.890"),
    ("checkpoint 1", "loaded", "1210 values, sum 0.266, length 9.486"),
    ("compare 3", "table", "\"retrained\" 0.00 \"original\" 1.93 \"unlearned\" 2.68"),
    ("dataset 1", "images", "20031b2adbf04855"),
    ("evaluate 3", "evaluate(original, split)", "17970 values, sum -4020.967, length 816.617"),
    ("evaluate 3", "evaluate(retrained, split)", "17970 values, sum -3690.173, length 906.321"),
    ("evaluate 3", "evaluate(unlearned, split)", "17970 values, sum -4828.229, length 834.582"),
    ("features 1", "seen", "30549 values, sum 46332.183, length 477.991"),
    ("pretrain 1", "simclr", "3658 values, sum 7.016, length 7.798"),
    ("probe 1", "probed", "718 values, sum 3213.000, length 140.346"),
    ("saliency 1", "salient", "1210 values, sum 605.000, length 24.597"),
    ("split 1", "split", "e09088a5f79b6705"),
    ("train 2", "original", "1210 values, sum 0.266, length 9.486"),
    ("train 2", "retrained", "1210 values, sum -0.121, length 9.147"),
    ("unlearn 1", "unlearned", "1210 values, sum 0.229, length 9.500"),
];

fn outcome(kind: &str, path: &std::path::Path) -> String {
    let file = path.join("artifact.safetensors");
    if kind.starts_with("dataset") || kind.starts_with("split") {
        return blake3::hash(&std::fs::read(file).unwrap()).to_hex()[..16].to_owned();
    }
    let tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect();
    if tensors.is_empty() {
        // A table has a record alone.
        let bytes = std::fs::read(path.join("artifact.safetensors")).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..]).unwrap();
        let record = header["__metadata__"].as_object().unwrap().values().next().unwrap().as_str().unwrap();
        let table: serde_json::Value = serde_json::from_str(record).unwrap();
        let gap = |row: &serde_json::Value| format!("{} {:.2}", row["name"], row["average_gap"].as_f64().unwrap());
        return table["rows"].as_array().unwrap().iter().map(gap).collect::<Vec<_>>().join(" ");
    }
    let values: Vec<f32> = tensors
        .values()
        .flat_map(|tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap())
        .collect();
    let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
    let length = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    format!("{} values, sum {sum:.3}, length {length:.3}", values.len())
}

#[test]
fn a_changed_result_needs_a_raised_version_of_its_kind() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    // A checkpoint of what was just trained.
    std::fs::copy(object(&place, "original").join("artifact.safetensors"), place.folder.path().join("m.safetensors"))
        .unwrap();
    place.write(format!(
        "{SMALL}\n[stages.loaded]\nkind = \"checkpoint\"\npath = \"m.safetensors\"\ntrained_on = \"images\"\n\
         arch = {{ name = \"mlp\", hidden = [16] }}\n\
         [stages.more]\nkind = \"augment\"\nmethod = \"simple\"\ndata = \"split\"\n\
         [stages.simclr]\nkind = \"pretrain\"\nmethod = \"simclr\"\ndata = \"images\"\nbatch = 256\nepochs = 1\n\
         arch = {{ name = \"mlp\", hidden = [16] }}\n\
         [stages.probed]\nkind = \"probe\"\nmodel = \"simclr\"\ndata = \"images\"\n\
         [stages.generated]\nkind = \"augment\"\nmethod = \"arpl\"\ndata = \"split\"\nepochs = 10\nlr = 0.01\ngan_lr = 0.01\n\
         arch = {{ name = \"mlp\", hidden = [8] }}\nnoise = 4\nwidth = 2\ncount = 20\nbeta = 3.0\nlabels = \"predicted\"\n\
         [stages.seen]\nkind = \"features\"\nmodel = \"original\"\ndata = \"split\"\n\
         [stages.made]\nkind = \"augment\"\nmethod = \"opengan\"\nfeatures = \"seen\"\nepochs = 2\n\
         [stages.salient]\nkind = \"saliency\"\nmodel = \"original\"\ndata = \"split\"\n"
    ));
    good(place.run(&["run", "r.toml", "loaded", "salient", "more", "probed", "generated", "made"]));
    let mut found: Vec<(String, String, String)> = objects(place.folder.path())
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path.join("manifest.json")).unwrap();
            let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
            let manifest = &manifest["manifest"];
            let kind = manifest["fields"]["kind"].as_str().unwrap().to_owned();
            (kind.clone(), manifest["stage"].as_str().unwrap().to_owned(), outcome(&kind, path))
        })
        .collect();
    found.sort();
    for kind in STAGES {
        assert!(
            found.iter().any(|(known, ..)| known.starts_with(&format!("{} ", kind.name))),
            "{} is not here",
            kind.name
        );
    }
    let shown: Vec<String> = found.iter().map(|all| format!("    {all:?},")).collect();
    let same = found.len() == OUTCOMES.len()
        && found.iter().zip(OUTCOMES).all(|(a, b)| a.0 == b.0 && a.1 == b.1 && near(&a.2, b.2));
    assert!(same, "the outcomes are now:\n{}", shown.join("\n"));
}

/// Equal but for the last digits of numbers.
fn near(a: &str, b: &str) -> bool {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let number = |word: &str| word.trim_end_matches(',').parse::<f64>().ok();
    let close = |(a, b): (&String, &String)| match (number(a), number(b)) {
        (Some(a), Some(b)) => (a - b).abs() <= 2e-3 * (1.0 + b.abs()),
        _ => a == b,
    };
    words(a).len() == words(b).len() && words(a).iter().zip(&words(b)).all(close)
}
