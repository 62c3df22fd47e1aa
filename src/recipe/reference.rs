//! `${params.lr}` and `${matrix.seed}`, the only references. Alone in a text, one takes the value's type; elsewhere its
//! text is inserted.

use super::node::{Node, Room, Val};
use crate::error::Mistake;

/// The value of a path such as `params.lr`: nothing where it is not yet known, an error with what to do about it where
/// it never will be.
pub type Find<'a> = &'a dyn Fn(&str) -> Result<Option<Val>, String>;

/// Puts values in place of references, everywhere in a tree.
pub fn replace(node: &mut Node, find: Find, room: &mut Room, mistakes: &mut Vec<Mistake>) {
    if room.is_full() {
        // That has been said once, and finding a value makes a copy of it.
        return;
    }
    match &mut node.value {
        Val::List(items) => items.iter_mut().for_each(|item| replace(item, find, room, mistakes)),
        Val::Table(entries) => entries.iter_mut().for_each(|(_, item)| replace(item, find, room, mistakes)),
        Val::Text(text) if text.contains("${") => match replaced(text, find, room) {
            Ok(value) => node.value = value,
            Err((what, help)) => mistakes.push(Mistake::at(&node.place, what).help(help)),
        },
        _ => {}
    }
}

fn too_much() -> (String, String) {
    ("the references insert too much".to_owned(), "long values are referred to too often".to_owned())
}

fn replaced(text: &str, find: Find, room: &mut Room) -> Result<Val, (String, String)> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((path, tail)) = after.split_once('}') else {
            return Err(("`${` without `}`".to_owned(), "a reference is `${params.NAME}`".to_owned()));
        };
        if room.is_full() {
            return Err(too_much());
        }
        let found = find(path).map_err(|help| (format!("`${{{path}}}` refers to nothing"), help))?;
        if found.as_ref().is_some_and(|value| !room.take(value.bytes())) {
            return Err(too_much());
        }
        out += before;
        match found {
            Some(value) if out.is_empty() && tail.is_empty() => return Ok(value),
            Some(Val::Text(words)) => out += &words,
            Some(value) => out += &value.plain().to_string(),
            None => out += &format!("${{{path}}}"),
        }
        rest = tail;
    }
    Ok(Val::Text(out + rest))
}

/// The paths that a tree refers to, in order.
#[must_use]
pub fn paths(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    collect(node, &mut found);
    found
}

fn collect(node: &Node, found: &mut Vec<String>) {
    match &node.value {
        Val::List(items) => items.iter().for_each(|item| collect(item, found)),
        Val::Table(entries) => entries.iter().for_each(|(_, item)| collect(item, found)),
        Val::Text(text) => {
            let inner = text.split("${").skip(1).filter_map(|after| after.split_once('}'));
            found.extend(inner.map(|(path, _)| path.to_owned()));
        }
        _ => {}
    }
}
