//! `recant explain`: what a result is made of, what computed it, and why another one differs.

use std::cell::OnceCell;
use std::path::Path;

use petgraph::graph::NodeIndex;

use super::plan::changes;
use super::{Common, planned, say};
use crate::error::{Error, Result};
use crate::execute::past::Past;
use crate::plan::Plan;
use crate::store::{Manifest, Provenance, Store};

pub(super) fn explain(path: &Path, name: &str, common: &Common, against: Option<&Path>) -> Result<u8> {
    let (recipe, plan, store) = planned(path, common)?;
    let other = match against {
        Some(folder) if folder.is_dir() => Some(Store::open(Some(folder))?),
        Some(folder) => return Err(Error::Usage(format!("`--against {}`: there is no such store", folder.display()))),
        None => None,
    };
    let past = OnceCell::new();
    for node in plan.targets(&[name.to_owned()])? {
        let step = plan.step(node);
        if let Some(made) = store.status(&step.fingerprint) {
            say(&format!("{name} is cached: {}", step.fingerprint));
            say(&format!("  made {} in {:.1} s, as `{}`", made.finished, made.seconds, made.stage));
            made.notes.iter().for_each(|note| say(&format!("  {note}")));
            computed(&made);
            if let Some(other) = &other {
                compare(&plan, node, &made, [&store, other]);
            }
        } else {
            say(&format!("{name} will run: {}", step.fingerprint));
            match past.get_or_init(|| Past::of(&store)).nearest(step) {
                None => say("  there is no earlier result of this stage"),
                Some(old) => {
                    say(&format!("  the nearest earlier result is {}, made {}", old.fingerprint, old.finished));
                    for change in changes(&recipe, step, old) {
                        say(&format!("  {change}"));
                    }
                }
            }
        }
        say("  the fingerprint is made of:");
        for (field, value) in &step.fields {
            say(&format!("    {field} = {value}"));
        }
    }
    Ok(0)
}

/// What computed a result, and whether this program on this machine would compute the same bytes, as far as is known.
fn computed(made: &Manifest) {
    let theirs = &made.provenance;
    if theirs.entries().next().is_none() {
        say("  an older recant did not say what computed it");
        return;
    }
    say("  it was computed with:");
    for (name, value) in theirs.entries() {
        say(&format!("    {name} = {value}"));
    }
    first_steps(made);
    let here = Provenance::here(&theirs.device);
    let differ = theirs.differences(&here);
    if !differ.is_empty() {
        say("  here it would be computed with other things, so other last digits are possible:");
        for (name, theirs, here) in differ {
            say(&format!("    {name} {theirs} -> {here}"));
        }
    }
}

/// Where a result went on from steps that were computed elsewhere: what was other there.
fn first_steps(made: &Manifest) {
    for earlier in &made.earlier {
        say(&format!("    the first steps of the one made {} were computed elsewhere:", made.finished));
        for (name, theirs, then) in earlier.differences(&made.provenance) {
            say(&format!("      {name} {theirs} -> {then}"));
        }
    }
}

/// Why another store's result of the same stage has other bytes, where it has.
fn compare(plan: &Plan, node: NodeIndex, made: &Manifest, [store, other]: [&Store; 2]) {
    let (print, place) = (&plan.step(node).fingerprint, other.root().display());
    let Some(theirs) = other.status(print) else { return say(&format!("  {place} has no result of it")) };
    if theirs.digest == made.digest {
        return say(&format!("  {place} has the same bytes, made {}", theirs.finished));
    }
    say(&format!("  {place} has other bytes, made {}:", theirs.finished));
    let differ = made.provenance.differences(&theirs.provenance);
    for (name, ours, theirs) in &differ {
        say(&format!("    {name} {ours} -> {theirs}"));
    }
    first_steps(made);
    first_steps(&theirs);
    if differ.is_empty() && made.earlier == theirs.earlier {
        say("    nothing that is known of program, build and machine differs");
    }
    for (role, input) in plan.inputs(node) {
        let step = plan.step(input);
        let digest = |store: &Store| store.status(&step.fingerprint).map(|found| found.digest);
        if let (Some(ours), Some(theirs)) = (digest(store), digest(other))
            && ours != theirs
        {
            say(&format!("    the input {role}, `{}`, has other bytes already", step.name));
        }
    }
}
