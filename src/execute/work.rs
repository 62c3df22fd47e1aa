//! One stage at work: its inputs, its desk, its result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use candle_core::Device;
use petgraph::graph::NodeIndex;
use serde_json::{Value, json};

use super::Options;
use crate::artifact::{Artifact, Encoded};
use crate::data::Images;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::kind::Kind;
use crate::plan::{Plan, Step};
use crate::stage::{Context, Desk, Inputs, Progress};
use crate::store::claim::Claim;
use crate::store::{Manifest, Provenance, Store};

/// Between two words to those who wait for this stage.
const TELL: Duration = Duration::from_secs(2);

/// In a checkpoint's record: what computed its steps, oldest first.
const PROVENANCE: &str = "provenance";

pub(super) enum Outcome {
    Ran(f64),
    Cached,
    /// Made without the inputs that failed: not kept.
    Partial(Artifact),
}

/// Images in memory, by the step that made them: stages side by side share them.
pub(super) type Resident = Mutex<BTreeMap<NodeIndex, Weak<Images>>>;

/// One claimed stage: inputs, work, result. `without` are inputs that failed.
pub(super) fn work(
    plan: &Plan,
    node: NodeIndex,
    force: bool,
    without: &BTreeSet<NodeIndex>,
    store: &Store,
    options: &Options,
    (claim, resident, device): (&Claim, &Resident, &Device),
) -> Result<Outcome> {
    let step = plan.step(node);
    let fingerprint = step.fingerprint.as_str();
    if force {
        store.put_aside(fingerprint);
    } else if store.status(fingerprint).is_some() {
        return Ok(Outcome::Cached);
    } else if let Some(error) = store.wreck(fingerprint) {
        store.put_aside(fingerprint);
        options.reporter.event(&Event::Warned { message: format!("{error}; it is made again") });
    }
    let mut inputs = Inputs::default();
    let mut prints = BTreeMap::new();
    let mut read = BTreeMap::new();
    for (role, input) in plan.inputs(node).filter(|(_, input)| !without.contains(input)) {
        // What lies there is read in one go; a large data set takes its time.
        if options.stop.load(Ordering::Relaxed) != 0 {
            return Err(Error::Interrupted);
        }
        inputs.by_role.insert(role.to_owned(), load(plan, input, store, resident, &mut read)?);
        prints.insert(role.to_owned(), plan.step(input).fingerprint.clone());
    }
    let checkpoint = half_done(fingerprint, store, options);
    let resumed_at = checkpoint.as_ref().and_then(|saved| saved.record["step"].as_u64());
    let before = checkpoint.as_ref().and_then(|saved| saved.record["seconds"].as_f64()).unwrap_or(0.0);
    options.reporter.event(&Event::Started { stage: step.name.clone(), resumed_at });
    let here = Provenance::here(kind_of_device(options));
    let earlier = earlier(checkpoint.as_ref(), &here);
    let begun = Instant::now();
    let every = &step.run["checkpoint_every"];
    let seconds = every.as_f64().or(every["seconds"].as_f64()).and_then(|s| Duration::try_from_secs_f64(s).ok());
    let counted = !every["steps"].is_null() || !every["epochs"].is_null();
    let desk = StageDesk {
        step,
        store,
        options,
        claim,
        checkpoint,
        before,
        begun,
        saved: Mutex::new(begun),
        told: Mutex::new(None),
        notes: Mutex::default(),
        provenance: earlier.iter().chain([&here]).cloned().collect(),
        every: if counted { None } else { seconds.or(Some(options.checkpoint_every)) },
        timeout: step.run["timeout"].as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()),
        late: AtomicBool::new(false),
    };
    for theirs in &earlier {
        if theirs.other_bytes(&here) {
            let differ = theirs.differences(&here).into_iter();
            let differ: Vec<String> = differ.map(|(name, theirs, here)| format!("{name} {theirs} -> {here}")).collect();
            let message = format!(
                "`{}` goes on from steps that were computed elsewhere ({}): its last digits may differ from those of an \
                 uninterrupted run",
                step.name,
                differ.join(", ")
            );
            desk.note(&message);
            options.reporter.event(&Event::Warned { message });
        }
    }
    let stage = (step.kind.make)(&step.settings)?;
    let context = Context { device, files: step.files.clone(), desk: &desk };
    let artifact = match stage.run(&inputs, &context) {
        Err(Error::Interrupted) if desk.late.load(Ordering::Relaxed) => {
            let limit = &step.run["timeout"];
            return Err(Error::invalid(format!(
                "stopped after {limit} s, its `timeout`; its state is saved, and the next run goes on from there"
            )));
        }
        Err(error @ Error::Unfit(_)) if desk.checkpoint.is_some() && store.put_checkpoint_aside(fingerprint) => {
            let message = format!("`{}`: {error}; the stage begins again", step.name);
            options.reporter.event(&Event::Warned { message });
            drop((desk, inputs, read));
            return work(plan, node, force, without, store, options, (claim, resident, device));
        }
        other => other?,
    };
    if artifact.kind() != step.makes {
        return Err(Error::invalid(format!("the stage made {} in place of {}", artifact.kind(), step.makes)));
    }
    if !without.is_empty() {
        return Ok(Outcome::Partial(artifact));
    }
    let seconds = before + begun.elapsed().as_secs_f64();
    let manifest = Manifest {
        fingerprint: fingerprint.to_owned(),
        stage: step.name.clone(),
        kind: step.kind.name.to_owned(),
        makes: Some(step.makes),
        fields: step.fields.clone(),
        inputs: prints,
        seconds,
        provenance: here,
        earlier,
        finished: jiff::Timestamp::now().to_string(),
        notes: desk.notes.into_inner().unwrap_or_default(),
        ..Manifest::default()
    };
    store.save(&artifact, manifest)?;
    Ok(Outcome::Ran(seconds))
}

fn kind_of_device(options: &Options) -> &'static str {
    if options.devices.first().is_some_and(Device::is_cuda) { "cuda" } else { "cpu" }
}

/// Whoever goes on from a checkpoint must compute as the one who wrote it did.
fn by(options: &Options) -> Value {
    json!({ "device": kind_of_device(options), "kernels": crate::nn::KERNELS })
}

/// The checkpoint to go on from. One that is damaged, or that others computed, is put aside, and the stage begins again.
fn half_done(fingerprint: &str, store: &Store, options: &Options) -> Option<Encoded> {
    let why = match store.checkpoint(fingerprint) {
        Ok(None) => return None,
        Ok(Some(saved)) if saved.record["by"] == by(options) => return Some(saved),
        Ok(Some(saved)) => {
            let (theirs, ours) = (&saved.record["by"], by(options));
            format!("the checkpoint of {fingerprint} was computed with {theirs}, not {ours}")
        }
        Err(error) => error.to_string(),
    };
    // Where it stays, the next one takes its place.
    let _ = store.put_checkpoint_aside(fingerprint);
    options.reporter.event(&Event::Warned { message: format!("{why}; the stage begins again") });
    None
}

/// What else than this program here computed the steps of a checkpoint; of an older program's nothing is known.
fn earlier(checkpoint: Option<&Encoded>, here: &Provenance) -> Vec<Provenance> {
    let said = checkpoint.and_then(|saved| serde_json::from_value(saved.record[PROVENANCE].clone()).ok());
    let mut all: Vec<Provenance> = said.unwrap_or_default();
    all.retain(|one| one != here);
    all
}

/// A result with what it is read with, each read once.
fn load(
    plan: &Plan,
    node: NodeIndex,
    store: &Store,
    resident: &Resident,
    read: &mut BTreeMap<NodeIndex, Artifact>,
) -> Result<Artifact> {
    if let Some(known) = read.get(&node) {
        return Ok(known.clone());
    }
    let print = &plan.step(node).fingerprint;
    let artifact = if plan.step(node).makes == Kind::Images {
        // Under the lock: of two stages that want the same images, one reads them and the other finds them.
        let mut resident = resident.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(images) = resident.get(&node).and_then(Weak::upgrade) {
            Artifact::Images(images)
        } else {
            let artifact = store.load(print, None)?;
            if let Artifact::Images(images) = &artifact {
                resident.insert(node, Arc::downgrade(images));
            }
            artifact
        }
    } else {
        let carried = match plan.carried(node) {
            Some(carried) => Some((carried, load(plan, carried, store, resident, read)?)),
            None => None,
        };
        let with = carried.as_ref().map(|(node, artifact)| (plan.step(*node).fingerprint.as_str(), artifact));
        store.load(print, with)?
    };
    read.insert(node, artifact.clone());
    Ok(artifact)
}

struct StageDesk<'a> {
    step: &'a Step,
    store: &'a Store,
    options: &'a Options<'a>,
    claim: &'a Claim,
    checkpoint: Option<Encoded>,
    /// Seconds that earlier, interrupted attempts took.
    before: f64,
    begun: Instant,
    saved: Mutex<Instant>,
    told: Mutex<Option<Instant>>,
    notes: Mutex<Vec<String>>,
    /// What computed the steps so far, this program here last.
    provenance: Vec<Provenance>,
    /// Between checkpoints; none where steps or epochs count.
    every: Option<Duration>,
    timeout: Option<Duration>,
    late: AtomicBool,
}

impl Desk for StageDesk<'_> {
    fn progress(&self, at: Progress) {
        let Progress { done, total, loss, images } = at;
        if let Ok(mut told) = self.told.lock()
            && told.is_none_or(|at| at.elapsed() > TELL)
        {
            *told = Some(Instant::now());
            self.claim.tell(done, total);
        }
        self.options.reporter.event(&Event::Progress { stage: self.step.name.clone(), done, total, loss, images });
    }

    fn note(&self, note: &str) {
        if let Ok(mut notes) = self.notes.lock() {
            notes.push(note.to_owned());
        }
    }

    fn stop(&self) -> bool {
        let late = self.timeout.is_some_and(|timeout| self.begun.elapsed() > timeout);
        self.late.fetch_or(late, Ordering::Relaxed);
        late || self.options.stop.load(Ordering::Relaxed) != 0
    }

    fn due(&self, steps: usize, epochs: usize) -> bool {
        let counted = &self.step.run["checkpoint_every"];
        let reached = |key: &str, count: usize| counted[key].as_u64().is_some_and(|limit| count as u64 >= limit);
        let timed = self.every.is_some_and(|every| self.saved.lock().is_ok_and(|saved| saved.elapsed() >= every));
        timed || reached("steps", steps) || reached("epochs", epochs)
    }

    fn restore(&self) -> Result<Option<Encoded>> {
        Ok(self.checkpoint.clone())
    }

    fn save(&self, checkpoint: &Encoded) -> Result<()> {
        let mut checkpoint = checkpoint.clone();
        if let Some(record) = checkpoint.record.as_object_mut() {
            record.insert("by".to_owned(), by(self.options));
            record.insert(PROVENANCE.to_owned(), json!(self.provenance));
            record.insert("seconds".to_owned(), (self.before + self.begun.elapsed().as_secs_f64()).into());
        }
        self.store.save_checkpoint(&self.step.fingerprint, &checkpoint)?;
        if let Ok(mut saved) = self.saved.lock() {
            *saved = Instant::now();
        }
        Ok(())
    }
}
