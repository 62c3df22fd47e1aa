//! `recant diff`: what differs between recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::json;

use super::tables::show;
use super::{Common, planned, say};
use crate::error::{Result, listed, plural};
use crate::kind::Kind;
use crate::plan::{Plan, differences};
use crate::report::Format;

pub(super) fn diff(paths: &[PathBuf], common: &Common) -> Result<u8> {
    let (_, a, store) = planned(&paths[0], common)?;
    let (_, b, _) = planned(&paths[1], common)?;
    let of = |plan: &Plan| -> BTreeMap<String, String> {
        plan.order.iter().map(|&node| (plan.step(node).fingerprint.clone(), plan.step(node).name.clone())).collect()
    };
    let (prints_a, prints_b) = (of(&a), of(&b));
    let shared: Vec<&String> =
        prints_a.iter().filter(|(print, _)| prints_b.contains_key(*print)).map(|(_, n)| n).collect();
    let mut lines = vec![format!("shared: {}", listed(&shared, "and"))];
    let mut factors = BTreeSet::new();
    for &node in &a.order {
        let one = a.step(node);
        let Some(two) = b.order.iter().map(|&node| b.step(node)).find(|step| step.name == one.name) else {
            lines.push(format!("only in {}: {}", paths[0].display(), one.name));
            continue;
        };
        if one.fingerprint == two.fingerprint {
            continue;
        }
        let changes = differences(&one.fields, &two.fields, &one.defaults);
        let own: Vec<&String> = changes.iter().filter(|change| !change.starts_with("the input")).collect();
        lines.push(format!("parts at {}: {}", one.name, changes.join("; ")));
        factors.extend(own.into_iter().map(|change| format!("{}.{change}", one.name)));
    }
    for &node in &b.order {
        let two = b.step(node);
        if !a.order.iter().any(|&node| a.step(node).name == two.name) {
            lines.push(format!("only in {}: {}", paths[1].display(), two.name));
        }
    }
    if factors.len() > 1 {
        lines.push(format!(
            "warning: {} differ at once: this compares more than one factor",
            plural(factors.len(), "setting")
        ));
    }
    if common.json {
        say(&json!({ "shared": shared, "factors": factors }).to_string());
    } else {
        say(&lines.join("\n"));
        for (path, plan) in paths.iter().zip([&a, &b]) {
            for &node in plan.order.iter().filter(|&&node| plan.step(node).makes == Kind::Table) {
                if store.status(&plan.step(node).fingerprint).is_some() {
                    say(&format!("\n{}", path.display()));
                    show(plan, node, &store, Format::Text, false)?;
                }
            }
        }
    }
    Ok(0)
}
