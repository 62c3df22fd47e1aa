//! `recant export`: a model as a file for other programs.

use std::path::Path;

use serde_json::json;

use super::{Common, made, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, plural};
use crate::kind::Kind;
use crate::nn::arch::Arch;
use crate::show::toml_of;
use crate::stage::checkpoint::{Form, write};

pub(super) fn export(path: &Path, name: &str, output: &Path, common: &Common) -> Result<u8> {
    // Before anything is read: a name without a form is no use.
    Form::of(output)?;
    let Artifact::Model(weights) = made(path, name, Kind::Model, common)? else {
        return Err(Error::invalid(format!("`{name}` is no model")));
    };
    let arch = Arch::from_value(&weights.arch)?;
    let count = write(output, &weights)?;
    let settings = arch.settings();
    let file = output.display().to_string();
    if common.json {
        say(&json!({ "stage": name, "file": file, "tensors": count, "arch": settings, "classes": arch.classes,
            "size": arch.size, "mean": arch.mean, "std": arch.std, "trained_on": weights.trained_on })
        .to_string());
        return Ok(0);
    }
    say(&format!("{} of `{name}` in {file}", plural(count, "tensor")));
    if let Some(settings) = settings {
        say(&format!("kind = \"checkpoint\"\npath = {file:?}\narch = {}", toml_of(&settings)));
    }
    let [channels, height, width] = arch.size;
    say(&format!(
        "# {} classes, images of {channels} x {height} x {width}, trained on {}",
        arch.classes, weights.trained_on
    ));
    say(&format!("# it sees (pixel / 255 - mean) / std, mean = {:?}, std = {:?}", arch.mean, arch.std));
    Ok(0)
}
