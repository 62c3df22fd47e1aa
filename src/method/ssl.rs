//! Self-supervised terms beside a method's own loss, as the research repository that Recant replaces meant them (its code
//! computed them without gradients, so that they changed nothing). Both look at the student's features through a
//! projection head, frozen or trained beside the student by the method's own recipe.
//!
//! `simple`: away from a pretrained network's projections of the images to forget, towards those of the others (see
//! `simple_ssl`); the head is that network's. `original`: the image and a view of it as SimCLR draws them, drawn together
//! for images to keep and pushed apart for those to forget (see `nt_xent_original`); the head is drawn afresh. The view goes
//! through batch norm in train mode and leaves its running statistics as they are.

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use crate::artifact::Artifact;
use crate::batches::{Batch, Views};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::arch::Arch;
use crate::nn::head::{self, project};
use crate::nn::loss::{nt_xent_original, simple_ssl};
use crate::nn::model::{Model, Output, Pass, Teacher};
use crate::nn::view::View;
use crate::rng::Rng;
use crate::settings::{Field, POSITIVE, TEMPERATURE, Type};
use crate::trainer::Crew;

const FIELDS: &[Field] = &[
    Field::required(
        "mode",
        Type::Choice(&["simple", "original"]),
        "against a pretrained network's projections, or between two views",
    ),
    Field::or("weight", POSITIVE, "0.5", "times the term; 0 for none"),
    Field::optional("reference", Type::Stage(&[Kind::Encoder]), "what `simple` compares with; `original` takes none"),
    Field::or("head", Type::Choice(&["frozen", "trained"]), "\"frozen\"", "whether the head trains beside the student"),
    Field::or("temperature", TEMPERATURE, "1.0", "cosines of `original` are divided by it"),
];

/// The setting of methods that take such a term.
pub(super) const FIELD: Field = Field::optional("ssl", Type::Table(FIELDS), "a self-supervised term beside the loss");

/// Which images of a batch are to be forgotten.
#[derive(Clone, Copy, Debug)]
pub enum Gone {
    All,
    Nothing,
    /// Those with the label 1, in mixed batches.
    Marked,
}

#[derive(Clone, Debug, Deserialize)]
struct Setting {
    mode: Mode,
    weight: f64,
    head: Head,
    temperature: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Simple,
    Original,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Frozen,
    Trained,
}

/// A term with all that it looks at.
#[derive(Debug)]
pub struct Ssl {
    setting: Setting,
    /// The pretrained network, where the mode is `simple`.
    reference: Option<Teacher>,
    /// The head as it is at first, which makes the reference's projections for ever.
    head: Model,
}

/// What mode and reference do not fit each other in checked settings.
#[must_use]
pub fn mistake(settings: &Value) -> Option<String> {
    match (settings["mode"].as_str(), settings.get("reference")) {
        (Some("simple"), None) => {
            Some("`mode = \"simple\"` compares with a pretrained network: say `reference = \"..\"`".to_owned())
        }
        (Some("original"), Some(_)) => {
            Some("`mode = \"original\"` compares views of one image: leave `reference` out".to_owned())
        }
        _ => None,
    }
}

impl Ssl {
    /// From checked settings, for that student; none where the weight is 0.
    pub fn new(settings: &Value, reference: Option<&Artifact>, student: &Model, rng: &Rng) -> Result<Option<Self>> {
        let setting: Setting = serde_json::from_value(settings.clone())
            .map_err(|error| Error::invalid(format!("the settings of `ssl` do not fit: {error}")))?;
        if setting.weight == 0.0 {
            return Ok(None);
        }
        let (reference, head) = match (setting.mode, reference) {
            (Mode::Simple, Some(Artifact::Encoder(encoder))) => {
                let arch = Arch::from_value(&encoder.network.arch)?;
                if arch != *student.arch() {
                    return Err(Error::invalid("the reference of `ssl` is another network than the student"));
                }
                let network = Model::from_tensors(&arch, &encoder.network.tensors, student.device())?.teacher()?;
                let head = Arch::from_value(&encoder.head.arch)?;
                (Some(network), Model::from_tensors(&head, &encoder.head.tensors, student.device())?)
            }
            (Mode::Simple, _) => return Err(Error::invalid("`ssl` in the mode `simple` needs a reference")),
            (Mode::Original, _) => (None, head::init(student, head::WIDTH, &rng.fork("head"))?),
        };
        Ok(Some(Self { setting, reference, head }))
    }

    /// The views that loaders must draw.
    #[must_use]
    pub fn views(&self) -> Option<Views> {
        (self.setting.mode == Mode::Original).then(|| Views { view: View::default(), both: false })
    }

    /// The head, where it trains beside the student: number 1 of the crew.
    pub(super) fn trained(&self) -> Option<&Model> {
        (self.setting.head == Head::Trained).then_some(&self.head)
    }

    /// The weighted term of a batch whose images gave that output; none for one image alone, which has no other to be
    /// told from.
    pub(super) fn term(&self, crew: &Crew, output: &Output, batch: &Batch, gone: Gone) -> Result<Option<Tensor>> {
        let rows = batch.y.elem_count();
        let forget = match gone {
            Gone::All => vec![true; rows],
            Gone::Nothing => vec![false; rows],
            Gone::Marked => batch.y.to_vec1::<u32>()?.into_iter().map(|side| side == 1).collect(),
        };
        let head = if self.trained().is_some() { crew.model(1) } else { &self.head };
        let term = if let Some(reference) = &self.reference {
            let target = project(&self.head, &reference.features(&batch.x)?)?;
            simple_ssl(&project(head, &output.features)?, &target, &forget)?
        } else if rows > 1 {
            let view = batch.view.as_ref().ok_or_else(|| Error::invalid("the batch has no second view"))?;
            let other = crew.forward(view, &Pass::train())?.features;
            let both = Tensor::cat(&[&output.features, &other], 0)?;
            nt_xent_original(&project(head, &both)?, self.setting.temperature, &forget)?
        } else {
            return Ok(None);
        };
        Ok(Some((term * self.setting.weight)?))
    }
}
