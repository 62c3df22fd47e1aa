//! The numbers about one model, one below the other.

use serde_json::Value;

use super::{Sheet, data, digits, heading, list, notes, text};

/// The record of scores in words; `name` is the stage that made them.
#[must_use]
pub fn scores(name: &str, record: &Value) -> Sheet {
    let aim = |aim: &Value| match text(aim) {
        "like_oracle" => "the oracle's".to_owned(),
        "" => aim["value"].to_string(),
        other => other.to_owned(),
    };
    let line = |number: &Value| {
        let digits = digits(number);
        let value = number["value"].as_f64().map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        vec![heading(number), value, aim(&number["aim"])]
    };
    Sheet {
        about: format!("{}; `{name}`", data(record)),
        head: ["number", "value", "best"].map(str::to_owned).to_vec(),
        lines: list(&record["numbers"]).iter().map(line).collect(),
        notes: notes(record),
    }
}
