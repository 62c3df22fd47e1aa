//! `recant list` and `recant help`: what a recipe may name.

use super::say;
use crate::dataset;
use crate::error::{Error, Result, listed, nearest};
use crate::settings::{Default, Entry, Field};
use crate::stage::{self, STAGES};

/// Everything that a recipe may name: (heading, name, words).
fn named() -> Vec<(&'static str, &'static str, &'static str)> {
    let entries = |heading, entries: Vec<&'static Entry>| entries.into_iter().map(move |e| (heading, e.name, e.about));
    let mut all: Vec<_> = STAGES.iter().map(|kind| ("stages", kind.name, kind.about)).collect();
    all.extend(entries("methods", crate::method::entries()));
    all.extend(entries("pretraining", crate::pretrain::entries()));
    all.extend(entries("augmenters", crate::augment::entries()));
    all.extend(crate::metric::METRICS.iter().map(|metric| ("metrics", metric.name, metric.about)));
    all.extend(dataset::DATASETS.iter().map(|set| ("datasets", set.name, set.about)));
    all.extend(entries("models", crate::nn::arch::entries()));
    all
}

pub(super) fn list(what: Option<&str>) -> Result<u8> {
    let all = named();
    let mut headings: Vec<&str> = all.iter().map(|(heading, ..)| *heading).collect();
    headings.dedup();
    if let Some(what) = what.filter(|what| !headings.contains(what)) {
        return Err(Error::Usage(format!("there is no list of `{what}`; there are {}", listed(&headings, "and"))));
    }
    let width = all.iter().map(|(_, name, _)| name.len()).max().unwrap_or(0);
    for heading in headings.into_iter().filter(|heading| what.is_none_or(|what| what == *heading)) {
        say(heading);
        for (_, name, about) in all.iter().filter(|(of, ..)| *of == heading) {
            say(&format!("  {name:<width$}  {about}"));
        }
    }
    Ok(0)
}

pub(super) fn help(name: &str) -> Result<u8> {
    let entries = [
        crate::method::entries(),
        crate::pretrain::entries(),
        crate::augment::entries(),
        crate::nn::arch::entries(),
        crate::nn::optim::entries(),
        crate::nn::schedule::entries(),
        crate::nn::transform::entries(),
    ];
    if let Some(entry) = entries.into_iter().flatten().find(|entry| entry.name == name) {
        say(&format!("{name}: {}", entry.about));
        if !entry.paper.is_empty() {
            say(entry.paper);
        }
        entry.fields.iter().for_each(describe);
        return Ok(0);
    }
    if let Some(kind) = stage::find(name) {
        say(&format!("{name}: {}", kind.about));
        if let Some(choice) = &kind.choice {
            say(&format!(
                "  {} = one of {}",
                choice.key,
                listed(&(choice.entries)().iter().map(|e| e.name).collect::<Vec<_>>(), "or")
            ));
        }
        kind.fields.iter().for_each(describe);
        return Ok(0);
    }
    if let Some(metric) = crate::metric::METRICS.iter().find(|metric| metric.name == name) {
        say(&format!("{name}: {}", metric.about));
        if !metric.paper.is_empty() {
            say(metric.paper);
        }
        return Ok(0);
    }
    if let Some((_, name, about)) = named().into_iter().find(|(_, known, _)| *known == name) {
        say(&format!("{name}: {about}"));
        return Ok(0);
    }
    let known = named();
    let hint = nearest(name, known.iter().map(|(_, name, _)| *name))
        .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    Err(Error::Usage(format!("nothing is called `{name}`{hint}")))
}

fn describe(field: &Field) {
    let default = match field.default {
        Default::Required => "required".to_owned(),
        Default::Absent => "optional".to_owned(),
        Default::Is(text) => format!("default {text}"),
    };
    say(&format!("  {:<14} {} ({}; {default})", field.name, field.about, crate::recipe::check::expected(&field.ty)));
}
