//! What a fingerprint is made of.

use serde_json::{Value, json};

use super::Fields;
use super::draft::Draft;
use crate::recipe::{default_value, is_default};
use crate::settings::{Default, Field, Settings, Type};

fn fields_of(draft: &Draft) -> Vec<&'static Field> {
    if draft.hidden() { draft.kind.fields.iter().collect() } else { draft.declared.fields().collect() }
}

pub(super) fn defaults(draft: &Draft) -> Settings {
    let of = |field: &&'static Field| match field.default {
        Default::Is(text) => Some((field.name.to_owned(), default_value(field, text)?)),
        _ => None,
    };
    fields_of(draft).iter().filter_map(of).collect()
}

/// Kind, method and settings, without inputs and files.
pub(super) fn own_fields(draft: &Draft) -> Fields {
    let mut fields = Fields::new();
    fields.insert("kind".to_owned(), json!(format!("{} {}", draft.kind.name, draft.kind.version)));
    if let (Some(choice), Some(entry), false) = (&draft.kind.choice, draft.declared.choice, draft.hidden()) {
        fields.insert(choice.key.to_owned(), json!(format!("{} {}", entry.name, entry.version)));
    }
    for field in fields_of(draft) {
        let Some(value) = draft.settings.get(field.name) else { continue };
        if let Some(version) = inner_version(&field.ty, value).filter(|&version| version > 1) {
            fields.insert(format!("version {}", field.name), json!(version));
        }
        if !elsewhere(&field.ty) && !is_default(field, value) {
            fields.insert(format!("set {}", field.name), trace(&field.ty, value));
        }
    }
    if let Some(rows) = draft.settings.get("measured") {
        fields.insert("rows".to_owned(), rows.clone());
    }
    fields
}

/// What a fingerprint has elsewhere: files as digests, stages as fingerprints.
fn elsewhere(ty: &Type) -> bool {
    matches!(ty, Type::Path | Type::Stage(_) | Type::Stages(_))
}

/// A value without what a fingerprint has elsewhere, and without inner settings that equal their defaults.
fn trace(ty: &Type, value: &Value) -> Value {
    let table = |fields: &[Field], value: &Value| -> Settings {
        let mut kept = Settings::new();
        for field in fields.iter().filter(|field| !elsewhere(&field.ty)) {
            if let Some(inner) = value.get(field.name).filter(|inner| !is_default(field, inner)) {
                kept.insert(field.name.to_owned(), trace(&field.ty, inner));
            }
        }
        kept
    };
    match (ty, value) {
        (Type::Table(fields), Value::Object(_)) => Value::Object(table(fields, value)),
        (Type::List(inner), Value::Array(items)) => items.iter().map(|item| trace(inner, item)).collect(),
        (Type::Named { entries, .. }, Value::Object(all)) => {
            let entry = entries().into_iter().find(|entry| Some(entry.name) == all.get("name").and_then(Value::as_str));
            entry.map_or_else(
                || value.clone(),
                |entry| {
                    let mut kept = table(entry.fields, value);
                    kept.insert("name".to_owned(), json!(entry.name));
                    Value::Object(kept)
                },
            )
        }
        (Type::Tagged { entries, .. }, Value::Object(all)) => {
            let entry = entries().into_iter().find(|entry| all.contains_key(entry.name));
            entry.map_or_else(|| value.clone(), |entry| json!({ entry.name: table(entry.fields, &value[entry.name]) }))
        }
        (Type::Either(types), Value::Object(_)) => {
            let table = types.iter().find(|ty| matches!(ty, Type::Table(_) | Type::Named { .. } | Type::Tagged { .. }));
            table.map_or_else(|| value.clone(), |ty| trace(ty, value))
        }
        _ => value.clone(),
    }
}

/// The version of the optimiser, schedule or architecture that a setting names: even a default one must leave a trace
/// once it computes something else.
fn inner_version(ty: &Type, value: &Value) -> Option<u32> {
    let (entries, name) = match ty {
        Type::Named { entries, .. } => (entries(), value.get("name")?.as_str()?),
        Type::Tagged { entries, .. } => (entries(), value.as_object()?.keys().next()?.as_str()),
        _ => return None,
    };
    entries.into_iter().find(|entry| entry.name == name).map(|entry| entry.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Entry;

    const NEW: Entry = Entry { name: "sgd", about: "", paper: "", version: 2, fields: &[] };

    #[test]
    fn a_raised_version_of_a_named_setting_is_seen() {
        let named = Type::Named { noun: "optimizer", entries: || vec![&NEW] };
        assert_eq!(inner_version(&named, &json!({ "name": "sgd" })), Some(2));
        let tagged = Type::Tagged { noun: "schedule", entries: || vec![&NEW] };
        assert_eq!(inner_version(&tagged, &json!({ "sgd": {} })), Some(2));
        assert_eq!(inner_version(&Type::Text, &json!("sgd")), None);
    }
}
