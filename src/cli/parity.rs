//! `recant parity`: a model's logits against those that another program wrote.

use std::path::Path;

use serde_json::json;

use super::run::device;
use super::{Common, made, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, listed, plural};
use crate::kind::Kind;
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::nn::parity::parity as compare;
use crate::stage::checkpoint::load;

pub(super) fn parity(path: &Path, name: &str, file: &Path, tolerance: f64, at: &str, common: &Common) -> Result<u8> {
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(Error::Usage(format!("`--tolerance {tolerance}`: expected a number from 0")));
    }
    let device = device(at)?;
    let tensors = load(file)?;
    let get = |wanted: &str| {
        let names: Vec<&String> = tensors.keys().take(8).collect();
        let found = || Error::bad_file(file, format!("it has no tensor `{wanted}`; it has {}", listed(&names, "and")));
        tensors.get(wanted).ok_or_else(found)
    };
    let (x, logits) = (get("x")?, get("logits")?);
    let Artifact::Model(weights) = made(path, name, Kind::Model, common)? else {
        return Err(Error::invalid(format!("`{name}` is no model")));
    };
    let model = Model::from_tensors(&Arch::from_value(&weights.arch)?, &weights.tensors, &device)?;
    let parity = compare(&model, x, logits).map_err(|error| Error::bad_file(file, error.to_string()))?;
    let same = parity.relative <= tolerance;
    if common.json {
        say(&json!({ "stage": name, "file": file.display().to_string(), "images": parity.images, "same": same,
            "absolute": parity.absolute, "relative": parity.relative, "agree": parity.agree, "tolerance": tolerance })
        .to_string());
    } else {
        say(&format!(
            "{}: `{name}` and {} are {}\nlargest difference of logits {:.3e}, {:.3e} of the largest logit (at most \
            {tolerance:e} allowed)\nthe same class for {} of {}",
            plural(parity.images, "image"),
            file.display(),
            if same { "the same" } else { "NOT the same" },
            parity.absolute,
            parity.relative,
            parity.agree,
            parity.images,
        ));
    }
    Ok(u8::from(!same))
}
