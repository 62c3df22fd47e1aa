//! `recant indices`: a split as a file of indices.

use std::path::Path;

use clap::ValueEnum;

use super::{Common, planned, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, listed, plural};
use crate::indices::write;
use crate::kind::Kind;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Side {
    Forget,
    Retain,
}

pub(super) fn indices(path: &Path, name: &str, side: Side, output: &Path, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let nodes = plan.targets(&[name.to_owned()])?;
    let names: Vec<&str> = nodes.iter().map(|&node| plan.step(node).name.as_str()).collect();
    let [node] = nodes.as_slice() else {
        return Err(Error::Usage(format!("`{name}` stands for {}: name one", listed(&names, "and"))));
    };
    let step = plan.step(*node);
    if step.makes != Kind::Split {
        return Err(Error::Usage(format!("`{name}` makes {}, expected a stage that makes a split", step.makes)));
    }
    if store.status(&step.fingerprint).is_none() {
        return Err(Error::invalid(format!("`{name}` is not there yet: recant run {} '{name}'", path.display())));
    }
    let print = plan.carried(*node).map_or("", |data| plan.step(data).fingerprint.as_str());
    let images = store.load(print, None)?;
    let Artifact::Split(split) = store.load(&step.fingerprint, Some((print, &images)))? else {
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
