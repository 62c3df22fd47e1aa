//! Stages before they have fingerprints: names resolved, kinds checked, and one `evaluate` for each model that a collecting
//! stage takes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::collected;
use crate::error::{Error, Mistake, Place, Result};
use crate::recipe::{Declared, Mention, Recipe};
use crate::settings::{Settings, Type};
use crate::stage::StageKind;
use crate::stage::evaluate::wants_reference;

/// A stage before it has a fingerprint; the ones that `compare` implies are made here.
pub(super) struct Draft<'r> {
    pub(super) declared: &'r Declared,
    pub(super) name: String,
    pub(super) kind: &'static StageKind,
    pub(super) settings: Settings,
    /// (role, name of the stage, place of the mention)
    pub(super) inputs: Vec<(String, String, Place)>,
}

impl Draft<'_> {
    /// Whether `compare` implied it.
    pub(super) fn hidden(&self) -> bool {
        self.name != self.declared.name
    }
}

/// Declared stages with their inputs resolved, and one `evaluate` for each model that a collecting stage takes.
pub(super) fn drafts<'r>(recipe: &'r Recipe, evaluate: &'static StageKind) -> Result<Vec<Draft<'r>>> {
    let mut instances: BTreeMap<&str, Vec<&Declared>> = BTreeMap::new();
    let mut one: BTreeMap<&str, &Declared> = BTreeMap::new();
    for stage in &recipe.stages {
        instances.entry(&stage.base).or_default().push(stage);
        one.insert(&stage.name, stage);
    }
    let mut mistakes = wiring(recipe, &instances, &one);
    if !mistakes.is_empty() {
        return Err(Error::Mistakes(mistakes));
    }
    let mut drafts: Vec<Draft> = Vec::new();
    // Two tables may measure one model in two ways.
    let mut hidden: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for declared in &recipe.stages {
        let mut draft = Draft {
            declared,
            name: declared.name.clone(),
            kind: declared.kind,
            settings: declared.settings.clone(),
            inputs: Vec::new(),
        };
        if !declared.kind.collects {
            let input = |mention: &Mention| (mention.role.clone(), mention.name.clone(), mention.place.clone());
            draft.inputs = declared.mentions.iter().map(input).collect();
            drafts.push(draft);
            continue;
        }
        let rows = match collected::rows(declared, &instances) {
            Ok(rows) => rows,
            Err(mistake) => {
                mistakes.push(mistake);
                continue;
            }
        };
        for row in &rows {
            let mut implied = implied(declared, row, evaluate, &instances);
            let same = hidden.entry(implied.name.clone()).or_default();
            if !same.iter().any(|&known: &usize| drafts[known].settings == implied.settings) {
                same.push(drafts.len());
                if same.len() > 1 {
                    implied.name = format!("{} {}", implied.name, same.len());
                }
            }
            let known = same.iter().find(|&&known| drafts.get(known).is_some_and(|d| d.settings == implied.settings));
            let name = known.map_or_else(|| implied.name.clone(), |&known| drafts[known].name.clone());
            if known.is_none() {
                drafts.push(implied);
            }
            draft.inputs.push((format!("scores[{}]", row.name), name, row.place.clone()));
        }
        draft.settings.insert("measured".to_owned(), rows.iter().map(collected::Row::to_value).collect());
        drafts.push(draft);
    }
    if mistakes.is_empty() { Ok(drafts) } else { Err(Error::Mistakes(mistakes)) }
}

/// Mistakes for which a name is sought that may have been meant: it takes as long as there are names.
const SUGGESTED: usize = 100;

/// Names that mean nothing, and stages of the wrong kind.
fn wiring(
    recipe: &Recipe,
    instances: &BTreeMap<&str, Vec<&Declared>>,
    one: &BTreeMap<&str, &Declared>,
) -> Vec<Mistake> {
    let mut mistakes: Vec<Mistake> = Vec::new();
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = instances.keys().copied().collect();
    for mention in recipe.stages.iter().flat_map(|stage| &stage.mentions) {
        let found = one.get(mention.name.as_str()).or_else(|| instances.get(mention.name.as_str())?.first());
        let mistake = match found {
            None => {
                let mistake = Mistake::at(&mention.place, format!("there is no stage `{}`", mention.name));
                if mistakes.len() >= SUGGESTED {
                    mistakes.push(mistake);
                    continue;
                }
                crate::recipe::check::suggest(mistake, &mention.name, &names, "stage")
            }
            Some(stage) if !mention.kinds.contains(&stage.makes()) => {
                let wanted: Vec<&str> = mention.kinds.iter().map(|kind| kind.word()).collect();
                let what = format!(
                    "`{}` must be a stage that makes {}, but `{}` makes {}",
                    mention.role,
                    wanted.join(" or "),
                    stage.base,
                    stage.makes()
                );
                let mistake = Mistake::at(&mention.place, what).label(format!("makes {}", stage.makes()));
                mistake.related(&stage.place, format!("`{}` is declared here", stage.base))
            }
            Some(_) => continue,
        };
        // Instances of one stage make the same mistakes.
        let at = (mention.place.source.name.as_str(), mention.place.span.start);
        if seen.insert((mistake.what.clone(), at)) {
            mistakes.push(mistake);
        }
    }
    mistakes
}

/// The `evaluate` stage that a collecting stage implies for one row.
fn implied<'r>(
    declared: &'r Declared,
    row: &collected::Row,
    evaluate: &'static StageKind,
    instances: &BTreeMap<&str, Vec<&Declared>>,
) -> Draft<'r> {
    let mut settings = Settings::new();
    let mut inputs = Vec::new();
    for field in evaluate.fields {
        let own = declared.settings.get(field.name).cloned();
        let value = match field.name {
            "model" => Some(json!(row.model)),
            "data" => Some(json!(row.data)),
            "reference" => wants_reference(&declared.settings).then(|| json!(row.reference_model)),
            _ if matches!(field.ty, Type::Stage(_)) => {
                let base = own.as_ref().and_then(Value::as_str).and_then(|base| instances.get(base));
                base.and_then(|found| found.iter().find(|stage| collected::agree(&stage.axes, &row.axes)))
                    .map(|stage| json!(stage.name))
            }
            _ => own,
        };
        let Some(value) = value else { continue };
        if matches!(field.ty, Type::Stage(_)) {
            inputs.push((field.name.to_owned(), value.as_str().unwrap_or_default().to_owned(), row.place.clone()));
        }
        settings.insert(field.name.to_owned(), value);
    }
    Draft { declared, name: format!("evaluate({}, {})", row.model, row.data), kind: evaluate, settings, inputs }
}
