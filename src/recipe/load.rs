//! From files to one tree: parsing, inheritance, `--set`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::suggest;
use super::node::{self, Key, Node, Val};
use super::{Reader, reference};
use crate::error::{Error, Mistake, Place, Result, Source};

/// Larger texts are no recipes.
pub const LIMIT: usize = 4 << 20;
/// Nor are so many files, each counted as often as it is extended.
const FILES: usize = 128;
/// Nobody unsets more.
const MOST: usize = 1000;
/// Recipes of recipes of recipes: nobody's are deeper.
const DEPTH: usize = 16;

/// What is read for one recipe, each base as often as it is extended.
#[derive(Default)]
pub(super) struct Reading {
    /// The recipes that extend the one that is read.
    above: Vec<PathBuf>,
    bytes: usize,
    files: usize,
}

/// The text at a path with everything that it extends, merged.
pub(super) fn load(path: &Path, reader: Reader, reading: &mut Reading) -> Result<Node> {
    let bytes = reader(path)?;
    let name = path.display().to_string();
    let nowhere = |what: String| Error::Mistakes(vec![Mistake::nowhere(what)]);
    // Two bases that each extend the next twice double with every file; and each file is laid on all before it.
    reading.bytes += bytes.len();
    reading.files += 1;
    if bytes.len() > LIMIT {
        return Err(nowhere(format!("`{name}` has {} bytes: no recipe is that large", bytes.len())));
    }
    if reading.bytes > 4 * LIMIT || reading.files > FILES {
        let (bytes, files) = (reading.bytes, reading.files);
        let what = format!("up to `{name}`, with all that it extends, the recipe has {bytes} bytes in {files} files");
        return Err(nowhere(format!("{what}, expected at most {} in {FILES}", 4 * LIMIT)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        nowhere(format!("`{name}` is not a text: byte {} is not UTF-8", error.utf8_error().valid_up_to()))
    })?;
    let source = Arc::new(Source { name, text });
    let mut own = node::parse(&source).map_err(Error::Mistakes)?;
    begins_well(&own).map_err(|mistake| Error::Mistakes(vec![mistake]))?;
    let extends = own.get("extends").cloned();
    let mut bases: Vec<(String, Place)> = Vec::new();
    if let Some(extends) = &extends {
        let items = if let Val::List(items) = &extends.value { items.clone() } else { vec![extends.clone()] };
        for item in &items {
            match item.text() {
                Some(text) => bases.push((text.to_owned(), item.place.clone())),
                None => {
                    let mistake = Mistake::at(&item.place, "`extends` takes the path of a recipe, or a list of them");
                    return Err(Error::Mistakes(vec![mistake]));
                }
            }
        }
    }
    reading.above.push(path.to_owned());
    let mut root = Node { value: Val::Table(Vec::new()), place: own.place.clone() };
    for (base, place) in bases {
        let base = path.parent().unwrap_or(Path::new("")).join(base);
        if reading.above.contains(&base) {
            let mistake = Mistake::at(&place, format!("`{}` extends itself", base.display()));
            return Err(Error::Mistakes(vec![mistake]));
        }
        // A way round that names itself otherwise each time (`x/../x/../r.toml`) ends here.
        if reading.above.len() > DEPTH {
            let mistake = Mistake::at(&place, format!("more than {DEPTH} recipes extend one another"));
            return Err(Error::Mistakes(vec![mistake]));
        }
        let inherited = load(&base, reader, reading).map_err(|error| match error {
            Error::Io { source, .. } => {
                Error::Mistakes(vec![Mistake::at(&place, format!("could not read `{}`: {source}", base.display()))])
            }
            other => other,
        })?;
        root.merge(inherited, 2);
    }
    reading.above.pop();
    unset(&mut root, &own)?;
    own.remove("extends");
    own.remove("unset");
    root.merge(own, 2);
    Ok(root)
}

/// Every file says the format first, so that a later format can change everything after it.
fn begins_well(own: &Node) -> std::result::Result<(), Mistake> {
    let first = own.entries().iter().min_by_key(|(key, _)| key.place.span.start);
    match (own.get("recipe"), first) {
        (Some(Node { value: Val::Int(1), .. }), Some((key, _))) if key.name == "recipe" => Ok(()),
        (Some(Node { value: Val::Int(1), .. }), Some((key, _))) => {
            let mistake = Mistake::at(&key.place, format!("`{}` comes before `recipe = 1`", key.name));
            Err(mistake.label("`recipe = 1` comes first"))
        }
        (Some(other), _) => {
            let mistake = Mistake::at(&other.place, format!("recipe format {} is unknown", other.plain()));
            Err(mistake.label("expected 1"))
        }
        (None, _) => Err(Mistake::at(&own.place, "a recipe begins with `recipe = 1`").label("add it here")),
    }
}

fn unset(root: &mut Node, own: &Node) -> Result<()> {
    let Some(list) = own.get("unset") else { return Ok(()) };
    let Val::List(items) = &list.value else {
        return Err(Error::Mistakes(vec![Mistake::at(
            &list.place,
            "`unset` takes a list of paths such as \"stages.x\"",
        )]));
    };
    if items.len() > MOST {
        let what = format!("`unset` has {} paths, expected at most {MOST}", items.len());
        return Err(Error::Mistakes(vec![Mistake::at(&list.place, what)]));
    }
    let mut mistakes = Vec::new();
    for item in items {
        let path: Vec<&str> = item.text().unwrap_or_default().split('.').collect();
        let mut at = Some(&mut *root);
        for step in &path[..path.len() - 1] {
            at = at.and_then(|node| node.child_mut(step));
        }
        if !at.is_some_and(|node| node.remove(path[path.len() - 1])) {
            mistakes.push(Mistake::at(&item.place, format!("nothing inherited is called `{}`", path.join("."))));
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(Error::Mistakes(mistakes)) }
}

/// The references in all that takes them.
fn referred(root: &Node) -> BTreeSet<String> {
    super::REFERRING.iter().filter_map(|part| root.get(part)).flat_map(reference::paths).collect()
}

/// One `--set KEY=VALUE`: the value as TOML, or as a text where it is none.
pub(super) fn assign(root: &mut Node, assignment: &str) -> std::result::Result<(), Mistake> {
    let source = |text: String| Arc::new(Source { name: "--set".to_owned(), text });
    let Some((path, value)) = assignment.split_once('=') else {
        return Err(Mistake::nowhere(format!("`--set {assignment}` is not KEY=VALUE")));
    };
    let toml = source(format!("value = {}", value.trim()));
    let shown = source(assignment.to_owned());
    let place = Place { source: shown, span: 0..path.len() };
    let text = || Node { value: Val::Text(value.trim().to_owned()), place: place.clone() };
    let mut parsed = node::parse(&toml).ok().and_then(|node| node.get("value").cloned()).unwrap_or_else(text);
    let steps: Vec<&str> = path.trim().split('.').collect();
    let (last, parents) = steps.split_last().unwrap_or((&"", &[]));
    // What would change nothing is a slip.
    let lost = match steps.as_slice() {
        [first @ ("recipe" | "extends" | "unset"), ..] => {
            Some(format!("`{first}` is for files alone: it is read before `--set`"))
        }
        ["params", name, ..] if !referred(root).contains(&format!("params.{name}")) => {
            Some(format!("nothing refers to `${{params.{name}}}`"))
        }
        _ => None,
    };
    if let Some(what) = lost {
        return Err(Mistake::at(&place, what));
    }
    let mut at = root;
    for (depth, step) in parents.iter().enumerate() {
        let known: Vec<String> = at.entries().iter().map(|(key, _)| key.name.clone()).collect();
        at = at.child_mut(step).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let mistake = Mistake::at(&place, format!("there is no `{}`", parents[..=depth].join(".")));
            suggest(mistake, step, &known, "table")
        })?;
    }
    if !matches!(at.value, Val::Table(_)) {
        return Err(Mistake::at(&place, format!("`{}` is {}, but must be a table", parents.join("."), at.noun())));
    }
    parsed.place = place.clone();
    at.put(Key { name: (*last).to_owned(), place }, parsed);
    Ok(())
}
