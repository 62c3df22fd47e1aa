//! `recant diff`: what differs between recipes, where their graphs part, what they share, and how their results compare.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};

use super::{Common, planned, say};
use crate::artifact::Artifact;
use crate::error::{Result, listed, plural};
use crate::kind::Kind;
use crate::plan::{Plan, Step};
use crate::store::Store;

/// One setting that differs: stage, setting, and its value in each recipe that has the stage.
struct Difference {
    stage: String,
    setting: String,
    values: Vec<Option<Value>>,
}

pub(super) fn diff(paths: &[PathBuf], common: &Common) -> Result<u8> {
    let mut plans = Vec::new();
    for path in paths {
        let (_, plan, store) = planned(path, common)?;
        plans.push((path.display().to_string(), plan, store));
    }
    let names: Vec<&String> = plans.iter().map(|(name, ..)| name).collect();
    let everywhere = |print: &str| plans.iter().all(|(_, plan, _)| steps(plan).any(|step| step.fingerprint == print));
    let shown = |step: &&Step| !step.name.starts_with("evaluate(");
    let shared: Vec<&str> = steps(&plans[0].1)
        .filter(shown)
        .filter(|step| everywhere(&step.fingerprint))
        .map(|step| step.name.as_str())
        .collect();
    let mut stages: Vec<&str> = Vec::new();
    for step in plans.iter().flat_map(|(_, plan, _)| steps(plan)).filter(shown) {
        if !stages.contains(&step.name.as_str()) {
            stages.push(&step.name);
        }
    }
    let (mut differ, mut follow): (Vec<Difference>, Vec<&str>) = (Vec::new(), Vec::new());
    for stage in &stages {
        let found: Vec<Option<&Step>> = plans.iter().map(|(_, plan, _)| plan.named(stage)).collect();
        let prints: BTreeSet<&str> = found.iter().flatten().map(|step| step.fingerprint.as_str()).collect();
        let own = settings_that_differ(stage, &found);
        if own.is_empty() && prints.len() > 1 {
            follow.push(stage);
        }
        differ.extend(own);
    }
    let only: BTreeMap<&String, Vec<&str>> = plans
        .iter()
        .map(|(name, plan, _)| {
            let alone =
                |step: &&Step| !plans.iter().any(|(other, plan, _)| other != name && plan.named(&step.name).is_some());
            (name, steps(plan).filter(shown).filter(alone).map(|step| step.name.as_str()).collect())
        })
        .filter(|(_, stages): &(_, Vec<&str>)| !stages.is_empty())
        .collect();
    // One setting that changes in the same way in several stages is one factor.
    let factors: BTreeSet<(&str, String)> = differ
        .iter()
        .map(|it| (it.setting.as_str(), format!("{:?}", it.values.iter().flatten().collect::<Vec<_>>())))
        .collect();
    let warning = (factors.len() > 1).then(|| {
        let names: BTreeSet<&str> = factors.iter().map(|(setting, _)| *setting).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let count = plural(factors.len(), "factor");
        format!("{count} differ at once, in {}: a difference in the results has no single cause", listed(&names, "and"))
    });
    let mut results = Vec::new();
    for (name, plan, store) in &plans {
        results.extend(tables(name, plan, store)?);
    }
    results.sort_by_key(|line| line["model"].as_str().unwrap_or_default().to_owned());
    if common.json {
        let differ: Vec<Value> =
            differ.iter().map(|it| json!({ "stage": it.stage, "setting": it.setting, "values": it.values })).collect();
        say(&json!({ "recipes": names, "shared": shared, "differ": differ, "follow": follow, "only": only,
            "warning": warning, "results": results })
        .to_string());
        return Ok(0);
    }
    say(&format!("shared by all: {}", if shared.is_empty() { "nothing".to_owned() } else { shared.join(", ") }));
    for (name, stages) in &only {
        say(&format!("only in {name}: {}", stages.join(", ")));
    }
    if !differ.is_empty() {
        let head = ["stage".to_owned(), "setting".to_owned()].into_iter().chain(names.iter().map(|&name| name.clone()));
        let word = |value: &Option<Value>| {
            value
                .as_ref()
                .map_or("-".to_owned(), |value| if value.is_null() { "not set".to_owned() } else { value.to_string() })
        };
        let lines = differ
            .iter()
            .map(|it| [it.stage.clone(), it.setting.clone()].into_iter().chain(it.values.iter().map(word)).collect());
        say("\nparts at:");
        say(&drawn(head.collect(), lines.collect()));
    }
    if !follow.is_empty() {
        say(&format!("\nother because of that: {}", follow.join(", ")));
    }
    if let Some(warning) = warning {
        say(&format!("\nwarning: {warning}"));
    }
    if !results.is_empty() {
        say("\nresults:");
        let columns: BTreeSet<&String> =
            results.iter().filter_map(|line| line["values"].as_object()).flat_map(|values| values.keys()).collect();
        let head =
            ["model", "recipe"].into_iter().map(str::to_owned).chain(columns.iter().map(|&column| column.clone()));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let lines = results.iter().map(|line| {
            let cells = columns.iter().map(|&column| line["values"].get(column).map_or("-".to_owned(), text));
            [text(&line["model"]), text(&line["recipe"])].into_iter().chain(cells).collect()
        });
        say(&drawn(head.collect(), lines.collect()));
    }
    Ok(0)
}

fn steps(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.order.iter().map(|&node| plan.step(node))
}

/// Settings, files and versions of a stage that are not the same in all recipes that have it, defaults filled in.
fn settings_that_differ(stage: &str, found: &[Option<&Step>]) -> Vec<Difference> {
    let fields: BTreeSet<&String> = found.iter().flatten().flat_map(|step| step.fields.keys()).collect();
    let mut differ = Vec::new();
    for field in fields.into_iter().filter(|field| !field.starts_with("input ") && *field != "rows") {
        let setting = field.strip_prefix("set ").unwrap_or(field);
        let value = |step: &&Step| {
            step.fields.get(field).or_else(|| step.defaults.get(setting)).cloned().unwrap_or(Value::Null)
        };
        let values: Vec<Option<Value>> = found.iter().map(|step| step.as_ref().map(value)).collect();
        differ.extend(Difference::of(stage, setting, values));
    }
    // An input that only some have, by the name of its stage; one that all have but that differs has reasons of its own.
    let roles: BTreeSet<&str> = found
        .iter()
        .flatten()
        .flat_map(|step| step.fields.keys())
        .filter_map(|field| field.strip_prefix("input "))
        .collect();
    for role in roles.into_iter().filter(|role| !role.contains(['.', '['])) {
        let has = |step: &&Step| step.fields.contains_key(&format!("input {role}"));
        if found.iter().flatten().all(has) {
            continue;
        }
        let name = |step: &&Step| step.settings.get(role).filter(|_| has(step)).cloned().unwrap_or(Value::Null);
        differ.extend(Difference::of(stage, role, found.iter().map(|step| step.as_ref().map(name)).collect()));
    }
    differ
}

impl Difference {
    /// None where all that have the stage have the same.
    fn of(stage: &str, setting: &str, values: Vec<Option<Value>>) -> Option<Self> {
        let known: Vec<&Value> = values.iter().flatten().collect();
        let differs = known.iter().any(|value| *value != known[0]);
        differs.then(|| Self { stage: stage.to_owned(), setting: setting.to_owned(), values })
    }
}

/// The results of a recipe's tables, one line a model, in the numbers that make the average gap.
fn tables(recipe: &str, plan: &Plan, store: &Store) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for step in steps(plan).filter(|step| step.makes == Kind::Table) {
        if store.status(&step.fingerprint).is_none() {
            continue;
        }
        let Artifact::Table(table) = store.load(&step.fingerprint, None)? else { continue };
        let empty = Vec::new();
        let list = |key: &str| table[key].as_array().unwrap_or(&empty).clone();
        let groups = list("groups");
        for row in if groups.is_empty() { list("rows") } else { groups } {
            let number = |value: &Value| match (value["mean"].as_f64().or(value.as_f64()), value["sd"].as_f64()) {
                (None, _) => "-".to_owned(),
                (Some(mean), None) => format!("{mean:.2}"),
                (Some(mean), Some(sd)) => format!("{mean:.2} ± {sd:.2} (n {})", value["n"]),
            };
            let columns = list("columns");
            let counted = columns.iter().enumerate().filter(|(_, column)| column["in_gap"] == true);
            let mut values: serde_json::Map<String, Value> = counted
                .map(|(c, column)| {
                    (column["name"].as_str().unwrap_or_default().to_owned(), json!(number(&row["values"][c])))
                })
                .collect();
            values.insert("average gap".to_owned(), json!(number(&row["average_gap"])));
            lines.push(json!({ "model": row["name"], "recipe": recipe, "values": values }));
        }
    }
    Ok(lines)
}

fn drawn(head: Vec<String>, lines: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(head);
    table.add_rows(lines);
    let lines: Vec<String> = table.lines().map(|line| format!("  {}", line.trim_end())).collect();
    lines.join("\n")
}
