//! The JSON Schema (draft 7) of recipes, from the same field tables that check them.

use serde_json::{Map, Value, json};

use crate::recipe::RUN;
use crate::settings::{Default, Entry, Field, Type};
use crate::stage::StageKind;

#[must_use]
pub fn schema(kinds: &[&'static StageKind]) -> Value {
    let mut stages = Vec::new();
    let stage = |fields: &[Field], fixed: &[(&str, &str)], about: &str| {
        let mut table = table(fields, fixed, about);
        table["properties"]["run"] = self::table(RUN, &[], "how to run it; leaves no trace in the fingerprint");
        let reference = json!({ "type": "string", "pattern": "\\$\\{matrix\\." });
        let list = json!({ "type": "array", "items": reference });
        table["properties"]["merge"] = json!({ "anyOf": [reference, list], "description": "variants to take in" });
        table
    };
    for kind in kinds {
        match &kind.choice {
            None => stages.push(stage(kind.fields, &[("kind", kind.name)], kind.about)),
            Some(choice) => {
                for entry in (choice.entries)() {
                    let fields: Vec<Field> = kind.fields.iter().chain(entry.fields).copied().collect();
                    stages.push(stage(&fields, &[("kind", kind.name), (choice.key, entry.name)], entry.about));
                }
            }
        }
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "recant recipe",
        "type": "object",
        "required": ["recipe"],
        "additionalProperties": false,
        "properties": {
            "recipe": { "const": 1 },
            "name": { "type": "string" },
            "about": { "type": "string" },
            "extends": { "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] },
            "unset": { "type": "array", "items": { "type": "string" } },
            "params": { "type": "object" },
            "defaults": { "type": "object" },
            "matrix": {
                "type": "object",
                "properties": { "exclude": { "type": "array", "items": { "type": "object" } } },
                "additionalProperties": {
                    "anyOf": [
                        { "type": "array", "minItems": 1 },
                        { "type": "object", "additionalProperties": { "type": "object" } },
                    ],
                },
            },
            // A recipe that extends another may say part of a stage only.
            "stages": { "type": "object", "additionalProperties": { "anyOf": stages } },
        },
    })
}

fn table(fields: &[Field], fixed: &[(&str, &str)], about: &str) -> Value {
    let mut properties = Map::new();
    for (key, value) in fixed {
        properties.insert((*key).to_owned(), json!({ "const": value }));
    }
    for field in fields {
        // Any value may be a reference to a parameter.
        let mut one = json!({ "anyOf": [of(&field.ty), { "type": "string", "pattern": "\\$\\{" }] });
        if let Some(one) = one.as_object_mut() {
            one.insert("description".to_owned(), json!(field.about));
            if let Default::Is(text) = field.default
                && let Some(value) = crate::recipe::default_value(field, text)
            {
                one.insert("default".to_owned(), value);
            }
        }
        properties.insert(field.name.to_owned(), one);
    }
    json!({ "type": "object", "description": about, "properties": properties, "additionalProperties": false })
}

fn of(ty: &Type) -> Value {
    match ty {
        Type::Bool => json!({ "type": "boolean" }),
        Type::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Type::Float { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Type::Text | Type::Path | Type::Stage(_) => json!({ "type": "string" }),
        Type::Choice(words) => json!({ "enum": words }),
        Type::Name { names, .. } => json!({ "enum": names() }),
        Type::Stages(_) => {
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
        }
        Type::List(inner) => json!({ "type": "array", "items": of(inner) }),
        Type::Table(fields) => table(fields, &[], ""),
        Type::Named { entries, .. } => {
            let all = entries();
            let tables = all.iter().map(|entry| table(entry.fields, &[("name", entry.name)], entry.about));
            json!({ "anyOf": std::iter::once(json!({ "enum": names(&all) })).chain(tables).collect::<Vec<_>>() })
        }
        Type::Tagged { entries, .. } => {
            let all = entries();
            let tables = all.iter().map(|entry| {
                let inner = Map::from_iter([(entry.name.to_owned(), table(entry.fields, &[], entry.about))]);
                json!({ "type": "object", "properties": inner, "required": [entry.name], "additionalProperties": false })
            });
            json!({ "anyOf": std::iter::once(json!({ "enum": names(&all) })).chain(tables).collect::<Vec<_>>() })
        }
        Type::Either(types) => json!({ "anyOf": types.iter().map(of).collect::<Vec<_>>() }),
    }
}

fn names(entries: &[&'static Entry]) -> Vec<&'static str> {
    entries.iter().map(|entry| entry.name).collect()
}
