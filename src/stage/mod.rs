//! Stages: each turns artifacts into one artifact. Planning reads `StageKind`; execution calls `Stage::run`.

pub mod augment;
pub mod checkpoint;
pub mod compare;
pub mod dataset;
pub mod evaluate;
pub mod features;
pub mod pretrain;
pub mod probe;
pub mod saliency;
pub mod split;
pub mod train;
pub mod unlearn;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use candle_core::Device;

use crate::artifact::{Artifact, Encoded};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::settings::{Entry, Field, Settings};

/// A kind of stage, as a recipe names it.
#[derive(Debug)]
pub struct StageKind {
    pub name: &'static str,
    pub about: &'static str,
    /// Raised when the same settings give another result.
    pub version: u32,
    pub makes: Makes,
    /// Its settings. A field of type `Stage` or `Stages` is an input; its role is the field's path: `data`,
    /// `ssl.reference`.
    pub fields: &'static [Field],
    /// The setting whose value brings settings of its own into the same table: `method`.
    pub choice: Option<Choice>,
    /// Whether the planner multiplies it by axes of its inputs (false: it collects, as `compare` does).
    pub collects: bool,
    /// Builds the stage from checked settings.
    pub make: fn(&Settings) -> Result<Box<dyn Stage>>,
    /// Mistakes that only several settings together show: the setting's path and what is wrong.
    pub check: fn(&Settings) -> Vec<(String, String)>,
}

#[derive(Debug)]
pub enum Makes {
    Always(Kind),
    /// Depends on the name chosen.
    ByChoice(fn(&str) -> Kind),
}

/// `method = "scrub"` brings in scrub's fields.
#[derive(Debug)]
pub struct Choice {
    pub key: &'static str,
    pub noun: &'static str,
    pub entries: fn() -> Vec<&'static Entry>,
}

pub trait Stage: Debug + Send + Sync {
    fn run(&self, inputs: &Inputs, context: &Context) -> Result<Artifact>;
}

/// The artifacts a stage asked for, by role. A collecting stage gets one role an instance: `models[scrub[seed=0]]`.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub by_role: BTreeMap<String, Artifact>,
}

impl Inputs {
    pub fn get(&self, role: &str) -> Result<&Artifact> {
        self.by_role.get(role).ok_or_else(|| Error::invalid(format!("the input `{role}` is missing")))
    }
}

/// Where a stage is in its work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    pub done: usize,
    pub total: usize,
    /// The latest loss, where there is one.
    pub loss: Option<f64>,
    /// Images seen since the stage began in this process.
    pub images: usize,
}

/// The world as a stage may see it.
pub struct Context<'a> {
    pub device: &'a Device,
    /// Files and folders of the stage's `Path` settings and of its data set, by role, already found.
    pub files: BTreeMap<String, PathBuf>,
    /// Whatever else goes with the stage's inputs that a stage may print with its results: role -> words.
    pub desk: &'a dyn Desk,
}

/// What execution offers to a stage at work.
pub trait Desk: Send + Sync {
    /// Shows where the stage is. Cheap; may be called at every step.
    fn progress(&self, progress: Progress);
    /// Something the user should know about this stage; kept with the result.
    fn note(&self, note: &str);
    /// Whether the stage should save and stop now: a first Ctrl-C, a cluster's warning.
    fn stop(&self) -> bool;
    /// The same as an error, for work that has nothing to save.
    fn halt(&self) -> Result<()> {
        if self.stop() { Err(Error::Interrupted) } else { Ok(()) }
    }
    /// Whether it is time to save a checkpoint, `steps` steps and `epochs` whole epochs after the last one.
    fn due(&self, steps: usize, epochs: usize) -> bool;
    /// The checkpoint of an earlier, interrupted run of this very stage, if there is a sound one.
    fn restore(&self) -> Result<Option<Encoded>>;
    /// Keeps a checkpoint, replacing the one before.
    fn save(&self, checkpoint: &Encoded) -> Result<()>;
}

/// A desk that shows nothing and keeps nothing, for tests and benchmarks.
#[derive(Debug, Default)]
pub struct NoDesk;

impl Desk for NoDesk {
    fn progress(&self, _: Progress) {}
    fn note(&self, _: &str) {}
    fn stop(&self) -> bool {
        false
    }
    fn due(&self, _: usize, _: usize) -> bool {
        false
    }
    fn restore(&self) -> Result<Option<Encoded>> {
        Ok(None)
    }
    fn save(&self, _: &Encoded) -> Result<()> {
        Ok(())
    }
}

/// All kinds of stage, in the order they are listed to users.
pub static STAGES: &[&StageKind] = &[
    &dataset::KIND,
    &split::KIND,
    &checkpoint::KIND,
    &train::KIND,
    &pretrain::KIND,
    &features::KIND,
    &augment::KIND,
    &saliency::KIND,
    &unlearn::KIND,
    &evaluate::KIND,
    &probe::KIND,
    &compare::KIND,
];

/// The kind of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static StageKind> {
    STAGES.iter().copied().find(|kind| kind.name == name)
}
