//! A recipe with everything merged, replaced and filled in; on wish with the place behind every value.

use std::fmt::Write;

use serde_json::Value;

use crate::recipe::Recipe;
use crate::recipe::node::Node;

/// The resolved recipe as TOML.
#[must_use]
pub fn text(recipe: &Recipe, origins: bool) -> String {
    let mut lines: Vec<(String, String)> =
        vec![("recipe = 1".to_owned(), String::new()), (format!("name = {:?}", recipe.name), String::new())];
    for stage in &recipe.stages {
        lines.push((String::new(), String::new()));
        let name = if stage.axes.is_empty() { stage.name.clone() } else { format!("{:?}", stage.name) };
        lines.push((format!("[stages.{name}]"), stage.place.to_string()));
        let own = recipe.resolved.get("stages").and_then(|stages| stages.get(&stage.base));
        let kind = own.and_then(|own| own.get("kind"));
        lines.push((format!("kind = {:?}", stage.kind.name), origin(kind)));
        for (name, value) in &stage.settings {
            let given = own.and_then(|own| own.get(name));
            let inherited = recipe.resolved.get("defaults").and_then(|defaults| defaults.get(name));
            let from = match (given, inherited) {
                (Some(given), _) => origin(Some(given)),
                (None, Some(inherited)) => format!("[defaults], {}", origin(Some(inherited))),
                (None, None) => format!("default of {}", stage.choice.map_or(stage.kind.name, |entry| entry.name)),
            };
            lines.push((format!("{name} = {}", toml_of(value)), from));
        }
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(60);
    let mut text = String::new();
    for (line, from) in lines {
        // Writing to a String cannot fail.
        let _ = if origins && !from.is_empty() {
            writeln!(text, "{line:<width$}  # {from}")
        } else {
            writeln!(text, "{line}")
        };
    }
    text
}

fn origin(node: Option<&Node>) -> String {
    node.map_or(String::new(), |node| node.place.to_string())
}

/// A value as TOML writes it.
#[must_use]
pub fn toml_of(value: &Value) -> String {
    match value {
        Value::Object(table) => {
            let inner: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", toml_of(value))).collect();
            if inner.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", inner.join(", ")) }
        }
        Value::Array(items) => format!("[{}]", items.iter().map(toml_of).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
