//! Checks a table of a recipe against its field table: every mistake at once, with defaults filled in.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::node::{Node, Val};
use crate::error::{Mistake, Place, Source, listed, nearest};
use crate::kind::Kind;
use crate::settings::{Default, Entry, Field, Settings, Type};

/// A mention of another stage.
#[derive(Clone, Debug)]
pub struct Mention {
    /// The setting's path: `data`, `models`.
    pub role: String,
    pub name: String,
    pub kinds: &'static [Kind],
    pub place: Place,
}

/// What checking finds on its way.
#[derive(Default)]
pub struct Checker {
    pub mistakes: Vec<Mistake>,
    pub mentions: Vec<Mention>,
    /// Files of `Path` settings, by role.
    pub files: Vec<(String, std::path::PathBuf)>,
}

impl Checker {
    /// The settings of a table. `default` gives a value from the recipe's `[defaults]`.
    pub fn table<'n>(
        &mut self,
        fields: &[&'static Field],
        node: &'n Node,
        path: &str,
        what: &str,
        default: &mut dyn FnMut(&str) -> Option<&'n Node>,
    ) -> Settings {
        let mut settings = Settings::new();
        for (key, _) in node.entries() {
            if !fields.iter().any(|field| field.name == key.name) {
                let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
                let mistake = Mistake::at(&key.place, format!("unknown key `{}` in {what}", key.name));
                self.mistakes.push(suggest(mistake, &key.name, &names, "key"));
            }
        }
        for field in fields {
            let here = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
            let found = node.get(field.name).or_else(|| default(field.name));
            let value = match (found, field.default) {
                (Some(found), _) => self.value(&field.ty, found, &here),
                (None, Default::Is(text)) => default_value(field, text),
                (None, Default::Absent) => None,
                (None, Default::Required) => {
                    let mistake = Mistake::at(&node.place, format!("{what} lacks `{}`", field.name));
                    self.mistakes.push(mistake.label(format!("needs `{}`: {}", field.name, field.about)));
                    None
                }
            };
            if let Some(value) = value {
                settings.insert(field.name.to_owned(), value);
            }
        }
        settings
    }

    fn wrong(&mut self, node: &Node, path: &str, expected: &str) -> Option<Value> {
        let mistake = Mistake::at(&node.place, format!("`{path}` is {}, but must be {expected}", node.noun()));
        self.mistakes.push(mistake.label(format!("expected {expected}")));
        None
    }

    fn value(&mut self, ty: &Type, node: &Node, path: &str) -> Option<Value> {
        match (ty, &node.value) {
            (Type::Bool, Val::Bool(flag)) => Some(Value::from(*flag)),
            (Type::Int { min, max }, Val::Int(number)) if (min..=max).contains(&number) => Some(Value::from(*number)),
            (Type::Float { min, max }, Val::Float(_) | Val::Int(_)) => {
                let number =
                    if let Val::Int(n) = node.value { n as f64 } else { node.plain().as_f64().unwrap_or(f64::NAN) };
                let inside = number.is_finite() && (*min..=*max).contains(&number);
                if inside { Some(Value::from(number)) } else { self.outside(node, path, &expected(ty)) }
            }
            (Type::Int { .. }, Val::Int(_)) => self.outside(node, path, &expected(ty)),
            (Type::Text, Val::Text(text)) => Some(Value::from(text.as_str())),
            (Type::Choice(words), Val::Text(text)) => self.word(words, "value", node, text, path),
            (Type::Name { noun, names }, Val::Text(text)) => self.word(&names(), noun, node, text, path),
            (Type::Path, Val::Text(text)) => {
                let base = Path::new(&node.place.source.name).parent().unwrap_or(Path::new(""));
                self.files.push((path.to_owned(), base.join(text)));
                Some(Value::from(text.as_str()))
            }
            (Type::Stage(kinds), Val::Text(name)) => {
                self.mention(path, name, kinds, &node.place);
                Some(Value::from(name.as_str()))
            }
            (Type::Stages(kinds), Val::Text(name)) => {
                self.mention(path, name, kinds, &node.place);
                Some(Value::from(vec![name.as_str()]))
            }
            (Type::Stages(kinds), Val::List(items)) => {
                let mut names = Vec::new();
                for item in items {
                    match item.text() {
                        Some(name) => {
                            self.mention(path, name, kinds, &item.place);
                            names.push(Value::from(name));
                        }
                        None => drop(self.wrong(item, path, "the name of a stage")),
                    }
                }
                Some(Value::from(names))
            }
            (Type::List(inner), Val::List(items)) => {
                let values: Vec<Option<Value>> = items.iter().map(|item| self.value(inner, item, path)).collect();
                values.into_iter().collect::<Option<Vec<Value>>>().map(Value::from)
            }
            (Type::Table(fields), Val::Table(_)) => {
                let fields: Vec<&'static Field> = fields.iter().collect();
                Some(Value::Object(self.table(&fields, node, path, &format!("`{path}`"), &mut |_| None)))
            }
            (Type::Named { noun, entries }, Val::Text(name)) => {
                let entry = self.entry(&entries(), noun, node, name)?;
                let empty = Node { value: Val::Table(Vec::new()), place: node.place.clone() };
                Some(self.named(entry, &empty, path))
            }
            (Type::Named { noun, entries }, Val::Table(_)) => {
                let Some(name) = node.get("name") else {
                    let mistake = Mistake::at(&node.place, format!("`{path}` lacks `name`"));
                    self.mistakes.push(mistake.label(format!("which {noun}?")));
                    return None;
                };
                let Some(text) = name.text() else { return self.wrong(name, path, &format!("the name of the {noun}")) };
                let entry = self.entry(&entries(), noun, name, text)?;
                let mut rest = node.clone();
                rest.remove("name");
                Some(self.named(entry, &rest, path))
            }
            (Type::Tagged { noun, entries }, Val::Text(name)) => {
                let entry = self.entry(&entries(), noun, node, name)?;
                let empty = Node { value: Val::Table(Vec::new()), place: node.place.clone() };
                Some(self.tagged(entry, &empty, path))
            }
            (Type::Tagged { noun, entries }, Val::Table(table)) => {
                let [(key, inner)] = table.as_slice() else {
                    return self.wrong(node, path, &format!("a table with one key, the name of the {noun}"));
                };
                let name = Node { value: Val::Text(key.name.clone()), place: key.place.clone() };
                let entry = self.entry(&entries(), noun, &name, &key.name)?;
                Some(self.tagged(entry, inner, path))
            }
            (Type::Either(types), _) => {
                for ty in *types {
                    let mut attempt = Checker::default();
                    if let Some(value) = attempt.value(ty, node, path)
                        && attempt.mistakes.is_empty()
                    {
                        self.mentions.append(&mut attempt.mentions);
                        self.files.append(&mut attempt.files);
                        return Some(value);
                    }
                }
                self.wrong(node, path, &expected(ty))
            }
            _ => self.wrong(node, path, &expected(ty)),
        }
    }

    fn outside(&mut self, node: &Node, path: &str, expected: &str) -> Option<Value> {
        let mistake = Mistake::at(&node.place, format!("`{path}` is {}, but must be {expected}", node.plain()));
        self.mistakes.push(mistake.label(format!("expected {expected}")));
        None
    }

    fn mention(&mut self, role: &str, name: &str, kinds: &'static [Kind], place: &Place) {
        self.mentions.push(Mention { role: role.to_owned(), name: name.to_owned(), kinds, place: place.clone() });
    }

    fn word(&mut self, words: &[&'static str], noun: &str, node: &Node, text: &str, path: &str) -> Option<Value> {
        if words.contains(&text) {
            return Some(Value::from(text));
        }
        let mistake = Mistake::at(&node.place, format!("unknown {noun} `{text}` for `{path}`"));
        self.mistakes.push(suggest(mistake, text, words, noun));
        None
    }

    /// The registered entry of that name, or a mistake with a suggestion.
    pub fn entry(&mut self, entries: &[&'static Entry], noun: &str, at: &Node, name: &str) -> Option<&'static Entry> {
        let found = entries.iter().copied().find(|entry| entry.name == name);
        if found.is_none() {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
            self.mistakes.push(suggest(Mistake::at(&at.place, format!("unknown {noun} `{name}`")), name, &names, noun));
        }
        found
    }

    fn inner(&mut self, entry: &'static Entry, node: &Node, path: &str) -> Settings {
        let fields: Vec<&'static Field> = entry.fields.iter().collect();
        self.table(&fields, node, path, &format!("`{path}` ({})", entry.name), &mut |_| None)
    }

    fn named(&mut self, entry: &'static Entry, node: &Node, path: &str) -> Value {
        let mut settings = self.inner(entry, node, path);
        settings.insert("name".to_owned(), Value::from(entry.name));
        Value::Object(settings)
    }

    fn tagged(&mut self, entry: &'static Entry, node: &Node, path: &str) -> Value {
        let settings = self.inner(entry, node, path);
        Value::Object(Settings::from_iter([(entry.name.to_owned(), Value::Object(settings))]))
    }
}

/// Adds the nearest valid choice to a mistake, or the list of all where none is near.
#[must_use]
pub fn suggest(mistake: Mistake, word: &str, valid: &[&str], noun: &str) -> Mistake {
    match nearest(word, valid.iter().copied()) {
        Some(near) => mistake.label(format!("no such {noun}")).help(format!("did you mean `{near}`?")),
        None => mistake.label(format!("no such {noun}")).help(format!("there are {}", some(valid))),
    }
}

/// All of the words, or the first of very many.
fn some(words: &[&str]) -> String {
    let few: Vec<&str> = words.iter().copied().take_while(|word| word.len() < 200).take(60).collect();
    if few.len() == words.len() {
        listed(words, "and")
    } else {
        format!("{} and {} more", listed(&few, ","), words.len() - few.len())
    }
}

/// What a type takes, in words.
#[must_use]
pub fn expected(ty: &Type) -> String {
    match ty {
        Type::Bool => "true or false".to_owned(),
        Type::Int { min, max } if *max == i64::MAX => format!("a whole number of at least {min}"),
        Type::Int { min, max } => format!("a whole number from {min} to {max}"),
        Type::Float { min, max } if *max == f64::MAX => format!("a number of at least {min}"),
        Type::Float { min, max } => format!("a number from {min} to {max}"),
        Type::Text => "a text".to_owned(),
        Type::Choice(words) => listed(words, "or"),
        Type::Name { noun, .. } => format!("the name of a {noun}"),
        Type::Path => "a path".to_owned(),
        Type::Stage(kinds) => {
            let words: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            format!("the name of a stage that makes {}", words.join(" or "))
        }
        Type::Stages(_) => "a list of names of stages".to_owned(),
        Type::List(inner) => format!("a list, each {}", expected(inner)),
        Type::Table(fields) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            format!("a table with keys among {}", listed(&names, "and"))
        }
        Type::Named { noun, .. } => {
            let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            format!("the name of {article} {noun}, or a table with `name`")
        }
        Type::Tagged { noun, .. } => format!("the name of a {noun}, or a table with one key"),
        Type::Either(types) => types.iter().map(expected).collect::<Vec<_>>().join(", or "),
    }
}

/// The default of a field as settings hold it; none where the field table itself is wrong (a test looks).
#[must_use]
pub fn default_value(field: &Field, text: &str) -> Option<Value> {
    let source = Arc::new(Source { name: "default".to_owned(), text: format!("x = {text}") });
    let node = super::node::parse(&source).ok()?;
    let mut checker = Checker::default();
    let value = checker.value(&field.ty, node.get("x")?, field.name)?;
    checker.mistakes.is_empty().then_some(value)
}
