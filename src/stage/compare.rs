//! `compare`: the table of models, each number with its gap to the reference, as a rule the retrained oracle. The
//! planner lays out the rows and hands in one `evaluate` result for each, by the roles `scores[NAME]`.

mod groups;

use std::collections::BTreeSet;

use groups::Row;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::evaluate::METRICS;
use super::{Context, Inputs, Makes, Stage, StageKind};
use crate::artifact::{Artifact, Scores};
use crate::error::{Error, Result, listed, nearest};
use crate::kind::Kind;
use crate::metric::{self, Number};
use crate::settings::{Field, SEED, Settings, Type, read};

pub const KIND: StageKind = StageKind {
    name: "compare",
    about: "the table of models against a reference",
    // 3: sizes of all splits, where the rows have several
    version: 3,
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
        Field::optional("rows", Type::List(&Type::Text), "axes that name the rows, in this order; all where not said"),
        Field::optional(
            "over",
            Type::List(&Type::Text),
            "axes to average over, as a rule [\"seed\"]: mean, standard deviation, interval, paired test",
        ),
        SEED,
    ],
    choice: None,
    collects: true,
    make: |settings| Ok(Box::new(read::<Compare>(settings)?)),
    check: gap_is_measured,
};

/// `gap` names numbers of metrics, `accuracy.forget` one of `accuracy`: those metrics must be measured. Numbers that do not
/// tell their metric by their name are looked for when all is measured.
fn gap_is_measured(settings: &Settings) -> Vec<(String, String)> {
    let words =
        |name: &str| settings.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let metric = |number: &str| number.split('.').next().unwrap_or_default().to_owned();
    let left_out = |number: &&str| {
        let metric = metric(number);
        metric::find(&metric).is_ok() && words("metrics").all(|measured| measured != metric)
    };
    let missing = words("gap").find(left_out);
    let what = |number| format!("`gap` has `{number}`, but `metrics` has no `{}`: say both or neither", metric(number));
    missing.map(|number| ("gap".to_owned(), what(number))).into_iter().collect()
}

#[derive(Debug, Deserialize)]
struct Compare {
    gap: Vec<String>,
    rows: Option<Vec<String>>,
    over: Option<Vec<String>>,
    measured: Vec<Measured>,
}

/// One row, as the planner lays it out.
#[derive(Debug, Deserialize)]
struct Measured {
    name: String,
    base: String,
    /// The stage that made the model.
    model: String,
    /// The name of the row that this one is measured against.
    reference: String,
    axes: Map<String, Value>,
}

impl Stage for Compare {
    fn run(&self, inputs: &Inputs, _: &Context) -> Result<Artifact> {
        let first = self.measured.first().ok_or_else(|| Error::invalid("`models` names no model"))?;
        self.check_axes()?;
        let measured = self.measured.iter().map(|row| row.reference.as_str());
        let there = measured.into_iter().find(|name| inputs.by_role.contains_key(&role(name)));
        let (oracle, about) = numbers(inputs, there.unwrap_or(&first.reference))?;
        let known = |name: &String| oracle.iter().any(|number| number.name == *name);
        if let Some(missing) = self.gap.iter().find(|name| !known(name)) {
            let names: Vec<&str> = oracle.iter().map(|number| number.name.as_str()).collect();
            let hint = nearest(missing, names).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(Error::invalid(format!("`gap` names `{missing}`, which `metrics` does not measure{hint}")));
        }
        let column = |number: &Number| {
            let in_gap = self.gap.contains(&number.name);
            json!({ "name": number.name, "unit": number.unit, "aim": number.aim, "in_gap": in_gap })
        };
        let columns: Vec<Value> = oracle.iter().map(column).collect();
        let (mut rows, mut notes) = (Vec::<Row>::new(), Vec::<Value>::new());
        let (mut forget, mut retain) = (BTreeSet::new(), BTreeSet::new());
        for measured in &self.measured {
            let (mine, theirs) = (role(&measured.name), role(&measured.reference));
            if [mine, theirs].iter().any(|role| !inputs.by_role.contains_key(role)) {
                rows.push(measured.failed(oracle.len()));
                continue;
            }
            let (found, scores) = numbers(inputs, &measured.name)?;
            let (against, _) = numbers(inputs, &measured.reference)?;
            let value = |numbers: &[Number], wanted: &str| {
                numbers.iter().find(|number| number.name == wanted).map(|number| number.value)
            };
            let values: Vec<Option<f64>> = oracle.iter().map(|number| value(&found, &number.name)).collect();
            let gap = |number: &Number| Some(value(&found, &number.name)? - value(&against, &number.name)?);
            let gaps: Vec<Option<f64>> = oracle.iter().map(gap).collect();
            let counted = oracle.iter().zip(&gaps).filter(|(number, _)| self.gap.contains(&number.name));
            let counted: Vec<f64> = counted.filter_map(|(_, gap)| gap.map(f64::abs)).collect();
            rows.push(Row {
                name: measured.name.clone(),
                base: measured.base.clone(),
                model: measured.model.clone(),
                reference: measured.reference.clone(),
                axes: measured.axes.clone(),
                values,
                gaps,
                average_gap: Some(counted.iter().sum::<f64>() / counted.len().max(1) as f64),
                trained_on: scores.record["trained_on"].clone(),
                failed: false,
            });
            for (all, key) in [(&mut forget, "forget"), (&mut retain, "retain")] {
                all.extend(scores.record[key].as_u64());
            }
            for note in scores.record["notes"].as_array().into_iter().flatten() {
                if !notes.contains(note) {
                    notes.push(note.clone());
                }
            }
        }
        let groups = match &self.over {
            Some(over) => groups::groups(&rows, over, self.rows.as_deref().unwrap_or_default()),
            None => Vec::new(),
        };
        Ok(Artifact::Table(
            json!({ "data": about.record["data"], "forget": one_or_all(&forget),
                "retain": one_or_all(&retain), "columns": columns, "rows": rows, "over": self.over,
                "groups": groups, "notes": notes })
            .into(),
        ))
    }
}

impl Compare {
    /// `rows` and `over` name axes that some row has.
    fn check_axes(&self) -> Result<()> {
        let mut axes: Vec<&str> = self.measured.iter().flat_map(|row| row.axes.keys()).map(String::as_str).collect();
        axes.sort_unstable();
        axes.dedup();
        for (key, names) in [("rows", &self.rows), ("over", &self.over)] {
            if let Some(wrong) = names.iter().flatten().find(|name| !axes.contains(&name.as_str())) {
                let known = listed(&axes, "and");
                return Err(Error::invalid(format!("`{key}` names the axis `{wrong}`, but the rows have {known}")));
            }
        }
        Ok(())
    }
}

impl Measured {
    /// The row of a model that could not be made or measured.
    fn failed(&self, columns: usize) -> Row {
        Row {
            name: self.name.clone(),
            base: self.base.clone(),
            model: self.model.clone(),
            reference: self.reference.clone(),
            axes: self.axes.clone(),
            values: vec![None; columns],
            gaps: vec![None; columns],
            average_gap: None,
            trained_on: Value::Null,
            failed: true,
        }
    }
}

/// A number where all rows have the same, else a list.
fn one_or_all(counts: &BTreeSet<u64>) -> Value {
    let counts: Vec<u64> = counts.iter().copied().collect();
    if let [one] = counts[..] { json!(one) } else { json!(counts) }
}

fn role(name: &str) -> String {
    format!("scores[{name}]")
}

fn scores_of<'a>(inputs: &'a Inputs, name: &str) -> Result<&'a Scores> {
    match inputs.get(&role(name))? {
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
