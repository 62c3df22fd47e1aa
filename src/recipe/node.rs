//! A TOML text as a tree in which every key and value knows its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Mistake, Place, Source};

#[derive(Clone, Debug)]
pub struct Node {
    pub value: Val,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub enum Val {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub struct Key {
    pub name: String,
    pub place: Place,
}

/// Parses a text; syntax errors come with their places.
pub fn parse(source: &Arc<Source>) -> Result<Node, Vec<Mistake>> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    if errors.is_empty() {
        let place = Place { source: source.clone(), span: 0..0 };
        return table_of(table.get_ref(), source).map(|value| Node { value, place });
    }
    let at = |error: &toml::de::Error| {
        let span = error.span().unwrap_or(0..0);
        Mistake::at(&Place { source: source.clone(), span }, error.message().replace('\n', ", "))
    };
    // One slip often makes several errors: the first few say enough.
    Err(errors.iter().take(3).map(at).collect())
}

fn table_of(table: &DeTable, source: &Arc<Source>) -> Result<Val, Vec<Mistake>> {
    let mut entries = Vec::new();
    for (key, value) in table {
        let place = Place { source: source.clone(), span: key.span() };
        entries.push((Key { name: key.get_ref().to_string(), place }, node_of(value, source)?));
    }
    Ok(Val::Table(entries))
}

fn node_of(value: &Spanned<DeValue>, source: &Arc<Source>) -> Result<Node, Vec<Mistake>> {
    let place = Place { source: source.clone(), span: value.span() };
    let bad = |what: &str| vec![Mistake::at(&place, what)];
    let value = match value.get_ref() {
        DeValue::String(text) => Val::Text(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let parsed = i64::from_str_radix(&digits, number.radix());
            Val::Int(parsed.map_err(|_| bad("this number does not fit 64 bits"))?)
        }
        DeValue::Float(number) => {
            Val::Float(number.as_str().replace('_', "").parse().map_err(|_| bad("this is no number"))?)
        }
        DeValue::Boolean(flag) => Val::Bool(*flag),
        DeValue::Datetime(_) => return Err(bad("a recipe has no use for dates")),
        DeValue::Array(items) => Val::List(items.iter().map(|item| node_of(item, source)).collect::<Result<_, _>>()?),
        DeValue::Table(table) => table_of(table, source)?,
    };
    Ok(Node { value, place })
}

impl Node {
    /// "a number", for messages.
    #[must_use]
    pub fn noun(&self) -> &'static str {
        match self.value {
            Val::Bool(_) => "true or false",
            Val::Int(_) => "a whole number",
            Val::Float(_) => "a number",
            Val::Text(_) => "a text",
            Val::List(_) => "a list",
            Val::Table(_) => "a table",
        }
    }

    #[must_use]
    pub fn entries(&self) -> &[(Key, Node)] {
        if let Val::Table(entries) = &self.value { entries } else { &[] }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if let Val::Text(text) = &self.value { Some(text) } else { None }
    }

    /// Puts a value at a key, in place of what is there.
    pub fn put(&mut self, key: Key, node: Node) {
        if let Val::Table(entries) = &mut self.value {
            match entries.iter_mut().find(|(known, _)| known.name == key.name) {
                Some(entry) => *entry = (key, node),
                None => entries.push((key, node)),
            }
        }
    }

    /// Takes a key out; says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Val::Table(entries) = &mut self.value else { return false };
        let before = entries.len();
        entries.retain(|(key, _)| key.name != name);
        entries.len() < before
    }

    pub fn child_mut(&mut self, name: &str) -> Option<&mut Node> {
        let Val::Table(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Lays `over` on this table, `depth` levels of tables deep; below that, values are replaced whole.
    pub fn merge(&mut self, over: Node, depth: usize) {
        let (Val::Table(own), Val::Table(entries)) = (&mut self.value, over.value) else { return };
        let mut known: BTreeMap<String, usize> =
            own.iter().enumerate().map(|(at, (key, _))| (key.name.clone(), at)).collect();
        for (key, node) in entries {
            match known.get(&key.name).and_then(|&at| own.get_mut(at)) {
                Some((_, own)) if depth > 0 && matches!((&own.value, &node.value), (Val::Table(_), Val::Table(_))) => {
                    own.merge(node, depth - 1);
                }
                Some(entry) => *entry = (key, node),
                None => {
                    known.insert(key.name.clone(), own.len());
                    own.push((key, node));
                }
            }
        }
    }

    /// As plain data, for what the field tables do not check.
    #[must_use]
    pub fn plain(&self) -> Value {
        self.value.plain()
    }
}

/// Bytes by which references and axes may still let a recipe grow: a few lines can ask for any number of them.
#[derive(Debug)]
pub struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(256 << 20)
    }
}

impl Room {
    /// Takes so many; false where there are no more.
    pub fn take(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0 == 0
    }
}

impl Val {
    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<(Key, Node)>()
            + match self {
                Val::Text(text) => text.len(),
                Val::List(items) => items.iter().map(|item| item.value.bytes()).sum(),
                Val::Table(entries) => entries.iter().map(|(key, node)| key.name.len() + node.value.bytes()).sum(),
                Val::Bool(_) | Val::Int(_) | Val::Float(_) => 0,
            }
    }

    #[must_use]
    pub fn plain(&self) -> Value {
        match self {
            Val::Bool(flag) => Value::from(*flag),
            Val::Int(number) => Value::from(*number),
            Val::Float(number) => Value::from(*number),
            Val::Text(text) => Value::from(text.as_str()),
            Val::List(items) => items.iter().map(Node::plain).collect(),
            Val::Table(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.name.clone(), node.plain())).collect())
            }
        }
    }
}
