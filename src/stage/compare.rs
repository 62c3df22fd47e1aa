//! `compare`: the table of models, each number with its gap to the reference, as a rule the retrained oracle. The
//! planner hands in one `evaluate` result a model, by the roles `scores[NAME]`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::evaluate::METRICS;
use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Scores};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::metric::Number;
use crate::settings::{Field, SEED, Type, read};

pub const KIND: StageKind = StageKind {
    name: "compare",
    about: "the table of models against a reference",
    version: 1,
    makes: Makes::Always(Kind::Table),
    fields: &[
        Field::required("data", Type::Stage(&[Kind::Split]), "the split to measure on"),
        Field::required("reference", Type::Stage(&[Kind::Model]), "the model that the others are measured against"),
        Field::required("models", Type::Stages(&[Kind::Model]), "the rows"),
        METRICS,
        Field::or(
            "gap",
            Type::List(&Type::Text),
            "[\"accuracy.forget\", \"accuracy.retain\", \"accuracy.test\", \"mia_confidence\"]",
            "the numbers whose distance to the reference makes the average gap",
        ),
        SEED,
    ],
    choice: None,
    collects: true,
    make: |settings| Ok(Box::new(read::<Compare>(settings)?)),
    check: |_| Vec::new(),
};

#[derive(Debug, Deserialize)]
struct Compare {
    reference: String,
    models: Vec<String>,
    gap: Vec<String>,
}

impl Stage for Compare {
    fn run(&self, inputs: &Inputs, _: &Context) -> Result<Artifact> {
        let oracle = numbers(inputs, &self.reference)?.0;
        let mut names = vec![self.reference.clone()];
        names.extend(self.models.iter().filter(|name| **name != self.reference).cloned());
        let (mut rows, mut columns, mut notes) = (Vec::<Value>::new(), Vec::<Value>::new(), Vec::<Value>::new());
        for number in &oracle {
            let in_gap = self.gap.contains(&number.name);
            columns.push(json!({ "name": number.name, "unit": number.unit, "aim": number.aim, "in_gap": in_gap }));
        }
        let known = |name: &String| oracle.iter().any(|number| number.name == *name);
        if let Some(missing) = self.gap.iter().find(|name| !known(name)) {
            return Err(Error::invalid(format!("`gap` names `{missing}`, which `metrics` does not measure")));
        }
        for name in &names {
            let (found, scores) = numbers(inputs, name)?;
            let value = |wanted: &str| found.iter().find(|number| number.name == wanted).map(|number| number.value);
            let values: Vec<Value> = oracle.iter().map(|number| json!(value(&number.name))).collect();
            let mut gaps = Vec::new();
            for number in oracle.iter().filter(|number| self.gap.contains(&number.name)) {
                gaps.extend(value(&number.name).map(|mine| (mine - number.value).abs()));
            }
            let average = gaps.iter().sum::<f64>() / gaps.len().max(1) as f64;
            rows.push(json!({ "name": name, "values": values, "average_gap": average,
                "trained_on": scores.record["trained_on"] }));
            for note in scores.record["notes"].as_array().into_iter().flatten() {
                if !notes.contains(note) {
                    notes.push(note.clone());
                }
            }
        }
        let about = &scores_of(inputs, &self.reference)?.record;
        Ok(Artifact::Table(
            json!({ "reference": self.reference, "data": about["data"], "forget": about["forget"],
                "retain": about["retain"], "columns": columns, "rows": rows, "notes": notes })
            .into(),
        ))
    }
}

fn scores_of<'a>(inputs: &'a Inputs, name: &str) -> Result<&'a Scores> {
    match inputs.get(&format!("scores[{name}]"))? {
        Artifact::Scores(scores) => Ok(scores),
        other => Err(Error::invalid(format!("`{name}` has {}, not scores", other.kind()))),
    }
}

fn numbers<'a>(inputs: &'a Inputs, name: &str) -> Result<(Vec<Number>, &'a Scores)> {
    let scores = scores_of(inputs, name)?;
    let numbers = serde_json::from_value(scores.record["numbers"].clone())
        .map_err(|error| Error::invalid(format!("the scores of `{name}` cannot be read: {error}")))?;
    Ok((numbers, scores))
}
