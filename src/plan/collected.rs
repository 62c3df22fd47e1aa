//! The rows of a collecting stage: every instance of every model, with the instances of the reference and of the data that
//! agree with it on all axes that they share.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::error::{Mistake, Place};
use crate::recipe::{Axes, Declared, label};

/// More rows of one table are a slip; and more pairs of instances than these are not looked at.
const ROWS: usize = 20_000;
const PAIRS: usize = 100_000_000;

/// One model to be measured. A model without an axis that its reference or its data have is measured once for each of
/// their values.
pub(super) struct Row {
    /// `scrub[seed=0]`: the model with all axes of the row.
    pub name: String,
    /// The instance of the model.
    pub model: String,
    pub data: String,
    /// The instance of the reference, and its own row.
    pub reference_model: String,
    pub reference: String,
    pub base: String,
    pub axes: Axes,
    pub place: Place,
}

impl Row {
    /// As the stage reads it from its settings.
    pub(super) fn to_value(&self) -> Value {
        let axes: serde_json::Map<String, Value> = self.axes.iter().cloned().collect();
        json!({ "name": self.name, "base": self.base, "model": self.model, "reference": self.reference, "axes": axes })
    }
}

pub(super) fn agree(a: &Axes, b: &Axes) -> bool {
    a.iter().all(|(axis, value)| b.iter().all(|(other, theirs)| axis != other || value == theirs))
}

/// Both, in the order of the first, then of the second.
fn union(a: &Axes, b: &Axes) -> Axes {
    let more = b.iter().filter(|(axis, _)| !a.iter().any(|(known, _)| known == axis));
    a.iter().chain(more).cloned().collect()
}

pub(super) fn rows(declared: &Declared, instances: &BTreeMap<&str, Vec<&Declared>>) -> Result<Vec<Row>, Mistake> {
    let of = |base: &str| instances.get(base).map_or(&[][..], Vec::as_slice);
    let setting = |name: &str| declared.settings.get(name).and_then(Value::as_str).unwrap_or_default();
    let (mut references, mut models): (Vec<Row>, Vec<Row>) = (Vec::new(), Vec::new());
    let (mut is_reference, mut pairs) = (BTreeSet::new(), 0_usize);
    for mention in declared.mentions.iter().filter(|mention| mention.role == "models") {
        for model in of(&mention.name) {
            let before = models.len();
            pairs = pairs.saturating_add(of(setting("reference")).len());
            for reference in of(setting("reference")).iter().filter(|it| agree(&it.axes, &model.axes)) {
                let axes = union(&model.axes, &reference.axes);
                pairs = pairs.saturating_add(of(setting("data")).len());
                if models.len() > ROWS || pairs > PAIRS {
                    let what = format!("the axes make more than {ROWS} rows of this table");
                    return Err(Mistake::at(&mention.place, what));
                }
                for data in of(setting("data")).iter().filter(|it| agree(&it.axes, &axes)) {
                    let row = |base: &Declared, axes: Axes, against: &str| Row {
                        name: label(&base.base, &axes),
                        model: base.name.clone(),
                        data: data.name.clone(),
                        reference_model: reference.name.clone(),
                        reference: against.to_owned(),
                        base: base.base.clone(),
                        axes,
                        place: mention.place.clone(),
                    };
                    let against = row(reference, union(&reference.axes, &data.axes), "");
                    let against = Row { reference: against.name.clone(), ..against };
                    models.push(row(model, union(&axes, &data.axes), &against.name));
                    if is_reference.insert(against.name.clone()) {
                        references.push(against);
                    }
                }
            }
            if models.len() == before {
                let what = format!(
                    "no instance of `{}` on `{}` agrees with `{}` on all axes",
                    setting("reference"),
                    setting("data"),
                    model.name
                );
                return Err(Mistake::at(&mention.place, what).label("has nothing to be measured against"));
            }
        }
    }
    models.retain(|row| !is_reference.contains(&row.name));
    let mut seen = BTreeSet::new();
    models.retain(|row| seen.insert(row.name.clone()));
    references.extend(models);
    Ok(references)
}
