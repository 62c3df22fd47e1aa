//! `recant indices`: a split as a file of indices.

use std::path::Path;

use clap::ValueEnum;

use super::{Common, made, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, plural};
use crate::indices::write;
use crate::kind::Kind;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Side {
    Forget,
    Retain,
}

pub(super) fn indices(path: &Path, name: &str, side: Side, output: &Path, common: &Common) -> Result<u8> {
    let Artifact::Split(split) = made(path, name, Kind::Split, common)? else {
        return Err(Error::invalid(format!("`{name}` is no split")));
    };
    let chosen = match side {
        Side::Forget => &split.forget,
        Side::Retain => &split.retain,
    };
    write(output, chosen)?;
    if !common.json {
        say(&format!(
            "{} of `{name}` in {}",
            plural(chosen.len(), "index").replace("indexs", "indices"),
            output.display()
        ));
    }
    Ok(0)
}
