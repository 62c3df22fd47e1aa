//! Text to `Recipe`: parsing, inheritance, `--set`, references and checking. Pure but for the reader it is handed.

pub mod check;
mod load;
mod matrix;
pub mod node;
mod reference;
mod stages;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use check::suggest;
pub use check::{Mention, default_value};
pub use load::LIMIT;
use node::{Node, Room, Val};
pub use stages::RUN;

use crate::error::{Error, Mistake, Place, Result};
use crate::kind::Kind;
use crate::settings::{Default, Entry, Field, Settings};
use crate::stage::{Makes, StageKind};

const TOP: &[&str] = &["recipe", "name", "about", "extends", "unset", "params", "defaults", "matrix", "stages"];

/// Where references may stand.
const REFERRING: &[&str] = &["stages", "defaults", "matrix"];

/// Names that are looked at, in all, for those that unknown references may have meant.
const COMPARED: usize = 1_000_000;

/// A checked recipe.
#[derive(Debug)]
pub struct Recipe {
    pub name: String,
    pub about: String,
    /// One for each stage and assignment of its axes.
    pub stages: Vec<Declared>,
    /// With everything merged and replaced, for `show`.
    pub resolved: Node,
}

/// One stage as a recipe declares it.
#[derive(Clone, Debug)]
pub struct Declared {
    /// `scrub`, or `scrub[seed=0]` where axes multiply it.
    pub name: String,
    /// As the recipe has it: `scrub`.
    pub base: String,
    /// The axes that multiply it, with its value on each.
    pub axes: Axes,
    pub place: Place,
    pub kind: &'static StageKind,
    /// The method, where the kind has a choice.
    pub choice: Option<&'static Entry>,
    pub settings: Settings,
    pub mentions: Vec<Mention>,
    /// Files of `Path` settings, by role.
    pub files: Vec<(String, PathBuf)>,
    /// How to run it: fields of `RUN`.
    pub run: Settings,
}

/// Axis and value, in the order of the matrix.
pub type Axes = Vec<(String, serde_json::Value)>;

/// About how many bytes of memory a value takes.
fn weight(value: &serde_json::Value) -> usize {
    let inner: usize = match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(weight).sum(),
        serde_json::Value::Object(table) => table.iter().map(|(key, value)| key.len() + weight(value)).sum(),
        _ => 0,
    };
    size_of::<serde_json::Value>() + inner
}

/// `scrub[seed=0]`.
#[must_use]
pub fn label(base: &str, axes: &Axes) -> String {
    let word = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let words: Vec<String> = axes.iter().map(|(axis, value)| format!("{axis}={}", word(value))).collect();
    if words.is_empty() { base.to_owned() } else { format!("{base}[{}]", words.join(",")) }
}

impl Declared {
    #[must_use]
    pub fn makes(&self) -> Kind {
        match self.kind.makes {
            Makes::Always(kind) => kind,
            Makes::ByChoice(of) => of(self.choice.map_or("", |entry| entry.name)),
        }
    }

    /// About how many bytes of memory it takes.
    fn bytes(&self) -> usize {
        let settings: usize = self.settings.values().chain(self.run.values()).map(weight).sum();
        let mentions: usize = self.mentions.iter().map(|mention| size_of::<Mention>() + mention.name.len()).sum();
        let files: usize = self.files.iter().map(|(_, path)| path.as_os_str().len()).sum();
        size_of::<Self>() + settings + mentions + files + self.base.len()
    }

    /// The fields that its settings come from.
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.kind.fields.iter().chain(self.choice.map_or(&[][..], |entry| entry.fields))
    }
}

/// How a text is read: from disk, or from memory in tests.
pub type Reader<'a> = &'a dyn Fn(&Path) -> Result<Vec<u8>>;

impl Recipe {
    /// Reads and checks a recipe; `set` holds the `KEY=VALUE` of `--set`.
    pub fn read(path: &Path, reader: Reader, set: &[String], kinds: &[&'static StageKind]) -> Result<Self> {
        let mut root = load::load(path, reader, &mut load::Reading::default())?;
        let (mut room, mut mistakes) = (Room::default(), Vec::new());
        for assignment in set {
            if let Err(mistake) = load::assign(&mut root, assignment) {
                mistakes.push(mistake);
            }
        }
        check_top(&root, &mut mistakes);
        let params = root.get("params").cloned();
        let params: BTreeMap<&str, &Node> =
            params.iter().flat_map(Node::entries).map(|(key, node)| (key.name.as_str(), node)).collect();
        let unknown = Cell::new(0);
        for part in REFERRING {
            if let Some(node) = root.child_mut(part) {
                reference::replace(node, &|path| param(path, &params, &unknown), &mut room, &mut mistakes);
            }
        }
        let matrix = matrix::Matrix::read(&root, &mut mistakes);
        matrix.check_set(&root, set, &mut mistakes);
        let own = stages::check_stages(&root, kinds, &matrix, &mut room, &mut mistakes);
        matrix.check_used(&own, &mut mistakes);
        let stages = matrix.join(&own, &mut room, &mut mistakes);
        // Instances of one stage make the same mistakes.
        let mut seen = BTreeSet::new();
        mistakes.retain(|mistake| {
            let place = mistake.place.as_ref();
            let place = place.map(|place| (place.source.name.clone(), place.span.start, place.span.end));
            seen.insert((mistake.what.clone(), place))
        });
        if !mistakes.is_empty() {
            return Err(Error::Mistakes(mistakes));
        }
        let word = |key: &str| root.get(key).and_then(Node::text).map(str::to_owned);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: word("name").unwrap_or(stem),
            about: word("about").unwrap_or_default(),
            stages,
            resolved: root,
        })
    }
}

fn check_top(root: &Node, mistakes: &mut Vec<Mistake>) {
    for (key, _) in root.entries() {
        if !TOP.contains(&key.name.as_str()) {
            mistakes.push(suggest(
                Mistake::at(&key.place, format!("unknown key `{}`", key.name)),
                &key.name,
                TOP,
                "key",
            ));
        }
    }
    for key in ["name", "about"] {
        if let Some(node) = root.get(key).filter(|node| node.text().is_none()) {
            mistakes.push(Mistake::at(&node.place, format!("`{key}` is {}, but must be a text", node.noun())));
        }
    }
}

/// The value of `params.NAME`; a reference to the matrix waits.
fn param(
    path: &str,
    params: &BTreeMap<&str, &Node>,
    unknown: &Cell<usize>,
) -> std::result::Result<Option<Val>, String> {
    if path.starts_with("matrix.") {
        return Ok(None);
    }
    let found = path.strip_prefix("params.").and_then(|name| params.get(name));
    if let Some(found) = found {
        return Ok(Some(found.value.clone()));
    }
    let name = path.strip_prefix("params.").unwrap_or(path);
    unknown.set(unknown.get() + 1);
    let few = unknown.get().saturating_mul(params.len()) <= COMPARED;
    let known = params.keys().copied().take(if few { params.len() } else { 0 });
    Err(match crate::error::nearest(name, known) {
        Some(near) => format!("did you mean `${{params.{near}}}`?"),
        None => "a reference is `${params.NAME}`, with NAME set under [params], or `${matrix.AXIS}`".to_owned(),
    })
}

/// Whether a value equals the field's default, and so leaves no trace in a fingerprint.
#[must_use]
pub fn is_default(field: &Field, value: &serde_json::Value) -> bool {
    matches!(field.default, Default::Is(text) if default_value(field, text).as_ref() == Some(value))
}
