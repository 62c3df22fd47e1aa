//! Reads the golden cases (see tests/golden/README.md) and compares by their own tolerances. The folder comes from
//! `GOLDEN`, default `tests/golden`, so sets made from other seeds run through the same tests.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

pub struct Case {
    pub name: String,
    /// The entry of index.json.
    pub entry: Value,
    pub tensors: HashMap<String, Tensor>,
}

fn folder() -> PathBuf {
    std::env::var_os("GOLDEN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// All cases that `wanted` picks by their index entry; none at all is a failure, so a test cannot pass by absence.
pub fn cases(wanted: impl Fn(&Value) -> bool) -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("index.json")).expect("index.json of the golden cases");
    let index: Value = serde_json::from_str(&text).expect("index.json");
    let found: Vec<Case> = index["cases"]
        .as_array()
        .expect("cases")
        .iter()
        .filter(|entry| wanted(entry))
        .map(|entry| {
            let file = folder().join(entry["file"].as_str().expect("file"));
            Case {
                name: entry["name"].as_str().expect("name").to_owned(),
                entry: entry.clone(),
                tensors: candle_core::safetensors::load(file, &Device::Cpu).expect("golden tensors"),
            }
        })
        .collect();
    assert!(!found.is_empty(), "no golden case fits");
    found
}

/// All cases of a method (several draws or variants of it may exist).
pub fn of_method(method: &str) -> Vec<Case> {
    cases(|entry| entry["method"] == method)
}

/// `prefix*` or a full name.
fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).expect("numbers")
}

impl Case {
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    pub fn hyper(&self, name: &str) -> &Value {
        &self.entry["hyper"][name]
    }

    pub fn number(&self, name: &str) -> f64 {
        self.hyper(name).as_f64().unwrap_or_else(|| panic!("{}: hyper.{name} is no number", self.name))
    }

    /// The tensors whose names begin with the prefix, by the rest of their names.
    pub fn under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
            .collect()
    }

    /// Panics where `got` is further from the stored result than the case's own tolerance; returns the error as a
    /// multiple of the tolerance.
    pub fn compare(&self, name: &str, got: &Tensor) -> f64 {
        let reference = self.tensor(name);
        assert_eq!(reference.elem_count(), got.elem_count(), "{}: {name}: number of elements", self.name);
        let (want, have) = (flat(reference), flat(got));
        let entry = self.entry["tolerances"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| fits(entry["match"].as_str().unwrap_or_default(), name));
        let largest = |values: &[f64]| values.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        let difference = want.iter().zip(&have).fold(0.0_f64, |worst, (w, h)| {
            let d = if w == h { 0.0 } else { (w - h).abs() };
            if d.is_nan() { f64::INFINITY } else { worst.max(d) }
        });
        let exact = !reference.dtype().is_float();
        let kind = entry.map_or("exact", |entry| entry["kind"].as_str().unwrap_or("value"));
        let (rtol, atol) = entry
            .map_or((0.0, 0.0), |entry| (entry["rtol"].as_f64().unwrap_or(0.0), entry["atol"].as_f64().unwrap_or(0.0)));
        let allowed = match kind {
            "exact" => 0.0,
            _ if exact && entry.is_none() => 0.0,
            "levels" => atol,
            "update" => {
                let start = self.tensor(&name.replacen("final.", "init.", 1));
                let moved: Vec<f64> = want.iter().zip(flat(start)).map(|(w, s)| w - s).collect();
                atol + rtol * largest(&moved)
            }
            _ => atol + rtol * largest(&want),
        };
        assert!(
            difference <= allowed,
            "{}: {name}: off by {difference:e}, allowed {allowed:e} ({:.1} x the tolerance)",
            self.name,
            difference / allowed
        );
        if allowed > 0.0 { difference / allowed } else { 0.0 }
    }
}
