//! Text to `Recipe`: parsing, inheritance, `--set`, references and checking. Pure but for the reader it is handed.

pub mod check;
pub mod node;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use check::{Checker, suggest};
pub use check::{Mention, default_value};
use node::{Key, Node, Val};

use crate::error::{Error, Mistake, Place, Result, Source};
use crate::kind::Kind;
use crate::settings::{Default, Entry, Field, Settings};
use crate::stage::{Makes, StageKind};

/// Larger texts are no recipes.
const LIMIT: usize = 4 << 20;
const TOP: &[&str] = &["recipe", "name", "about", "extends", "unset", "params", "defaults", "stages"];

/// A checked recipe.
#[derive(Debug)]
pub struct Recipe {
    pub name: String,
    pub about: String,
    pub stages: Vec<Declared>,
    /// With everything merged and replaced, for `show`.
    pub resolved: Node,
}

/// One stage as a recipe declares it.
#[derive(Debug)]
pub struct Declared {
    pub name: String,
    pub place: Place,
    pub kind: &'static StageKind,
    /// The method, where the kind has a choice.
    pub choice: Option<&'static Entry>,
    pub settings: Settings,
    pub mentions: Vec<Mention>,
    /// Files of `Path` settings, by role.
    pub files: Vec<(String, PathBuf)>,
}

impl Declared {
    #[must_use]
    pub fn makes(&self) -> Kind {
        match self.kind.makes {
            Makes::Always(kind) => kind,
            Makes::ByChoice(of) => of(self.choice.map_or("", |entry| entry.name)),
        }
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
        let mut root = load(path, reader, &mut Vec::new())?;
        let mut mistakes = Vec::new();
        for assignment in set {
            if let Err(mistake) = assign(&mut root, assignment) {
                mistakes.push(mistake);
            }
        }
        check_top(&root, &mut mistakes);
        let params = root.get("params").cloned();
        replace(&mut root, params.as_ref(), &mut mistakes);
        let stages = check_stages(&root, kinds, &mut mistakes);
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

/// The text at a path with everything that it extends, merged.
fn load(path: &Path, reader: Reader, above: &mut Vec<PathBuf>) -> Result<Node> {
    let bytes = reader(path)?;
    let name = path.display().to_string();
    let nowhere = |what: String| Error::Mistakes(vec![Mistake::nowhere(what)]);
    if bytes.len() > LIMIT {
        return Err(nowhere(format!("`{name}` has {} bytes: no recipe is that large", bytes.len())));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        nowhere(format!("`{name}` is not a text: byte {} is not UTF-8", error.utf8_error().valid_up_to()))
    })?;
    let source = Arc::new(Source { name, text });
    let mut own = node::parse(&source).map_err(Error::Mistakes)?;
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
    above.push(path.to_owned());
    let mut root = Node { value: Val::Table(Vec::new()), place: own.place.clone() };
    for (base, place) in bases {
        let base = path.parent().unwrap_or(Path::new("")).join(base);
        if above.contains(&base) {
            let mistake = Mistake::at(&place, format!("`{}` extends itself", base.display()));
            return Err(Error::Mistakes(vec![mistake]));
        }
        let inherited = load(&base, reader, above).map_err(|error| match error {
            Error::Io { source, .. } => {
                Error::Mistakes(vec![Mistake::at(&place, format!("could not read `{}`: {source}", base.display()))])
            }
            other => other,
        })?;
        root.merge(inherited, 2);
    }
    above.pop();
    unset(&mut root, &own)?;
    own.remove("extends");
    own.remove("unset");
    root.merge(own, 2);
    Ok(root)
}

fn unset(root: &mut Node, own: &Node) -> Result<()> {
    let Some(list) = own.get("unset") else { return Ok(()) };
    let Val::List(items) = &list.value else {
        return Err(Error::Mistakes(vec![Mistake::at(
            &list.place,
            "`unset` takes a list of paths such as \"stages.x\"",
        )]));
    };
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

/// One `--set KEY=VALUE`: the value as TOML, or as a text where it is none.
fn assign(root: &mut Node, assignment: &str) -> std::result::Result<(), Mistake> {
    let source = |text: String| Arc::new(Source { name: "--set".to_owned(), text });
    let Some((path, value)) = assignment.split_once('=') else {
        return Err(Mistake::nowhere(format!("`--set {assignment}` is not KEY=VALUE")));
    };
    let toml = source(format!("value = {}", value.trim()));
    let text = source(format!("value = {:?}", value.trim()));
    let parsed = node::parse(&toml).or_else(|_| node::parse(&text)).ok().and_then(|node| node.get("value").cloned());
    let shown = source(assignment.to_owned());
    let place = Place { source: shown, span: 0..path.len() };
    let steps: Vec<&str> = path.trim().split('.').collect();
    let (last, parents) = steps.split_last().unwrap_or((&"", &[]));
    let mut at = root;
    for (depth, step) in parents.iter().enumerate() {
        let known: Vec<String> = at.entries().iter().map(|(key, _)| key.name.clone()).collect();
        at = at.child_mut(step).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let mistake = Mistake::at(&place, format!("there is no `{}`", parents[..=depth].join(".")));
            suggest(mistake, step, &known, "table")
        })?;
    }
    let Some(mut value) = parsed else {
        return Err(Mistake::at(&place, format!("`{}` cannot be read", value.trim())));
    };
    value.place = place.clone();
    at.put(Key { name: (*last).to_owned(), place }, value);
    Ok(())
}

fn check_top(root: &Node, mistakes: &mut Vec<Mistake>) {
    match root.get("recipe") {
        Some(Node { value: Val::Int(1), .. }) => {}
        Some(other) => mistakes
            .push(Mistake::at(&other.place, format!("recipe format {} is unknown", other.plain())).label("expected 1")),
        None => mistakes.push(Mistake::at(&root.place, "a recipe begins with `recipe = 1`").label("add it here")),
    }
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

/// Puts parameters in place of `${params.x}`, in stages and defaults.
fn replace(root: &mut Node, params: Option<&Node>, mistakes: &mut Vec<Mistake>) {
    for part in ["stages", "defaults"] {
        if let Some(node) = root.child_mut(part) {
            replace_in(node, params, mistakes);
        }
    }
}

fn replace_in(node: &mut Node, params: Option<&Node>, mistakes: &mut Vec<Mistake>) {
    match &mut node.value {
        Val::List(items) => items.iter_mut().for_each(|item| replace_in(item, params, mistakes)),
        Val::Table(entries) => entries.iter_mut().for_each(|(_, item)| replace_in(item, params, mistakes)),
        Val::Text(text) if text.contains("${") => {
            let Some(value) = reference(text, params, &node.place, mistakes) else { return };
            node.value = value;
        }
        _ => {}
    }
}

fn reference(text: &str, params: Option<&Node>, place: &Place, mistakes: &mut Vec<Mistake>) -> Option<Val> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((path, tail)) = after.split_once('}') else {
            mistakes.push(Mistake::at(place, "`${` without `}`"));
            return None;
        };
        let known: Vec<&str> = params.map_or(&[][..], Node::entries).iter().map(|(key, _)| key.name.as_str()).collect();
        let name = path.strip_prefix("params.").unwrap_or(path);
        let found = path.strip_prefix("params.").and_then(|name| params.and_then(|params| params.get(name)));
        let Some(found) = found else {
            let mistake = Mistake::at(place, format!("`${{{path}}}` refers to nothing"));
            let mistake = match crate::error::nearest(name, known.iter().copied()) {
                Some(near) => mistake.help(format!("did you mean `${{params.{near}}}`?")),
                None => mistake.help("a reference is `${params.NAME}`, with NAME set under [params]"),
            };
            mistakes.push(mistake);
            return None;
        };
        if before.is_empty() && tail.is_empty() && out.is_empty() {
            return Some(found.value.clone());
        }
        out += before;
        out += &found.text().map_or_else(|| found.plain().to_string(), str::to_owned);
        rest = tail;
    }
    Some(Val::Text(out + rest))
}

fn check_stages(root: &Node, kinds: &[&'static StageKind], mistakes: &mut Vec<Mistake>) -> Vec<Declared> {
    let Some(stages) = root.get("stages").filter(|stages| !stages.entries().is_empty()) else {
        mistakes.push(Mistake::at(&root.place, "the recipe has no stages").label("expected [stages.NAME] tables"));
        return Vec::new();
    };
    let defaults = root.get("defaults");
    let mut reached: Vec<String> = Vec::new();
    let mut declared = Vec::new();
    for (key, node) in stages.entries() {
        if !key.name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            let mistake = Mistake::at(&key.place, format!("`{}` is no name for a stage", key.name));
            mistakes.push(mistake.label("expected letters, digits, `_` and `-`"));
        }
        declared.extend(check_stage(key, node, kinds, defaults, &mut reached, mistakes));
    }
    for (key, _) in defaults.map_or(&[][..], Node::entries) {
        if !reached.contains(&key.name) {
            mistakes.push(Mistake::at(&key.place, format!("the default `{}` reaches no stage", key.name)));
        }
    }
    declared
}

fn check_stage(
    key: &Key,
    node: &Node,
    kinds: &[&'static StageKind],
    defaults: Option<&Node>,
    reached: &mut Vec<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Declared> {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let Some(kind_node) = node.get("kind") else {
        let mistake = Mistake::at(&key.place, format!("the stage `{}` lacks `kind`", key.name));
        mistakes.push(mistake.help(format!("the kinds are {}", crate::error::listed(&names, "and"))));
        return None;
    };
    let kind_name = kind_node.text().unwrap_or_default();
    let Some(kind) = kinds.iter().copied().find(|kind| kind.name == kind_name) else {
        let mistake = Mistake::at(&kind_node.place, format!("unknown kind `{kind_name}`"));
        mistakes.push(suggest(mistake, kind_name, &names, "kind"));
        return None;
    };
    let mut checker = Checker::default();
    let mut rest = node.clone();
    rest.place = key.place.clone();
    rest.remove("kind");
    let mut fields: Vec<&'static Field> = kind.fields.iter().collect();
    let mut choice = None;
    if let Some(choose) = &kind.choice {
        let entries = (choose.entries)();
        match node.get(choose.key) {
            Some(named) => choice = checker.entry(&entries, choose.noun, named, named.text().unwrap_or_default()),
            None => {
                let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
                let mistake = Mistake::at(&key.place, format!("the stage `{}` lacks `{}`", key.name, choose.key));
                mistakes.push(mistake.help(format!("there are {}", crate::error::listed(&names, "and"))));
            }
        }
        rest.remove(choose.key);
        let Some(entry) = choice else {
            mistakes.append(&mut checker.mistakes);
            return None;
        };
        fields.extend(entry.fields);
    }
    let what = format!("the stage `{}` ({})", key.name, choice.map_or(kind.name, |entry| entry.name));
    let mut default = |name: &str| {
        let found = defaults.and_then(|defaults| defaults.get(name));
        found.inspect(|_| reached.push(name.to_owned()))
    };
    let mut settings = checker.table(&fields, &rest, "", &what, &mut default);
    // A default counts as reaching a stage that overrides it.
    for field in fields.iter().filter(|field| rest.get(field.name).is_some()) {
        reached.push(field.name.to_owned());
    }
    if let (Some(choose), Some(entry)) = (&kind.choice, choice) {
        settings.insert(choose.key.to_owned(), entry.name.into());
    }
    if checker.mistakes.is_empty() {
        for (path, wrong) in (kind.check)(&settings) {
            let place = rest.get(&path).map_or(&key.place, |node| &node.place);
            mistakes.push(Mistake::at(place, wrong));
        }
    }
    mistakes.append(&mut checker.mistakes);
    Some(Declared {
        name: key.name.clone(),
        place: key.place.clone(),
        kind,
        choice,
        settings,
        mentions: checker.mentions,
        files: checker.files,
    })
}

/// Whether a value equals the field's default, and so leaves no trace in a fingerprint.
#[must_use]
pub fn is_default(field: &Field, value: &serde_json::Value) -> bool {
    matches!(field.default, Default::Is(text) if default_value(field, text).as_ref() == Some(value))
}
