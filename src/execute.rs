//! Runs a plan: what is needed and nothing else, independent stages side by side, the longest remaining path first. A
//! stage that fails takes along what depends on it and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use candle_core::Device;
use petgraph::graph::NodeIndex;

use crate::artifact::{Artifact, Encoded};
use crate::error::{Error, Result};
use crate::event::{Event, Reporter};
use crate::plan::{Plan, Step};
use crate::stage::{Context, Desk, Inputs, Progress};
use crate::store::claim::Claim;
use crate::store::{Manifest, Store};

/// How to run: never what.
pub struct Options<'a> {
    pub jobs: usize,
    pub device: Device,
    pub fail_fast: bool,
    /// The signal that asked to stop; 0 for none.
    pub stop: Arc<AtomicUsize>,
    pub wait: bool,
    /// Between checkpoints.
    pub checkpoint_every: Duration,
    pub reporter: &'a dyn Reporter,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Summary {
    pub ran: Vec<String>,
    pub cached: usize,
    /// Stage and error.
    pub failed: Vec<(String, String)>,
    pub skipped: Vec<String>,
    pub interrupted: bool,
    /// A stage was held by another process and waiting was not wanted.
    pub locked: bool,
}

enum Outcome {
    Ran(f64),
    Cached,
    Held(String),
}

/// Runs what the targets need. `forced` steps run even where their results are there.
pub fn run(
    plan: &Plan,
    targets: &[NodeIndex],
    forced: &BTreeSet<NodeIndex>,
    store: &Store,
    options: &Options,
) -> Result<Summary> {
    let begun = Instant::now();
    let mut summary = Summary::default();
    let forced_prints: BTreeSet<&str> = forced.iter().map(|&node| plan.step(node).fingerprint.as_str()).collect();
    let fresh =
        |step: &Step| !forced_prints.contains(step.fingerprint.as_str()) && store.status(&step.fingerprint).is_some();
    let mut needed = plan.needed(targets, &fresh);
    let mut redone: BTreeSet<NodeIndex> = forced.clone();
    let stages = plan.order.len();
    options.reporter.event(&Event::Planned { stages, to_run: needed.len() });
    if !needed.is_empty() {
        store.prepare()?;
    }
    loop {
        let damaged = round(plan, &needed, &redone, store, options, &mut summary);
        if !damaged {
            break;
        }
        // A result that looked whole was not, and is put aside: plan again, with it missing. What ran stays done.
        redone.clear();
        needed = plan.needed(targets, &|step: &Step| store.status(&step.fingerprint).is_some());
        summary.failed.clear();
        summary.skipped.clear();
    }
    let there = |node: &&NodeIndex| {
        let step = plan.step(**node);
        !summary.ran.contains(&step.name) && store.status(&step.fingerprint).is_some()
    };
    summary.cached = plan.order.iter().filter(there).count();
    let seconds = begun.elapsed().as_secs_f64();
    if !summary.ran.is_empty() || !summary.failed.is_empty() {
        options.reporter.event(&Event::Done {
            ran: summary.ran.len(),
            cached: summary.cached,
            failed: summary.failed.len(),
            skipped: summary.skipped.len(),
            seconds,
        });
    }
    Ok(summary)
}

/// One pass over the needed steps; true where a damaged input was found.
fn round(
    plan: &Plan,
    needed: &BTreeSet<NodeIndex>,
    redone: &BTreeSet<NodeIndex>,
    store: &Store,
    options: &Options,
    summary: &mut Summary,
) -> bool {
    let heights = plan.heights();
    let mut waiting: BTreeSet<NodeIndex> = needed.clone();
    let mut unfinished: BTreeSet<NodeIndex> = needed.clone();
    let (send, receive) = mpsc::channel::<(NodeIndex, Result<Outcome>)>();
    let claims: Mutex<BTreeMap<NodeIndex, Arc<Claim>>> = Mutex::new(BTreeMap::new());
    let mut damaged = false;
    std::thread::scope(|scope| {
        let mut running = 0;
        loop {
            let stopping = options.stop.load(Ordering::Relaxed) != 0;
            let halted = stopping || summary.locked || (options.fail_fast && !summary.failed.is_empty());
            while running < options.jobs.max(1) && !halted {
                let ready = waiting.iter().copied().filter(|&node| {
                    let mut before = plan.inputs(node).flat_map(|(_, input)| {
                        std::iter::once(input).chain(plan.inputs(input).map(|(_, carried)| carried))
                    });
                    before.all(|input| !unfinished.contains(&input))
                });
                let Some(node) = ready.max_by_key(|node| (heights.get(node), std::cmp::Reverse(*node))) else { break };
                waiting.remove(&node);
                running += 1;
                let (send, claims) = (send.clone(), &claims);
                let force = redone.contains(&node);
                scope.spawn(move || {
                    let work = || work(plan, node, force, store, options, claims);
                    let result = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
                        Err(Error::invalid(format!("a bug in recant: {}", text.unwrap_or_default())))
                    });
                    // The receiver lives as long as the scope.
                    let _ = send.send((node, result));
                });
            }
            if running == 0 {
                break;
            }
            let Ok((node, result)) = receive.recv_timeout(Duration::from_secs(2)) else {
                if let Ok(claims) = claims.lock() {
                    claims.values().for_each(|claim| claim.beat());
                }
                continue;
            };
            running -= 1;
            if let Ok(mut claims) = claims.lock() {
                claims.remove(&node);
            }
            let stage = plan.step(node).name.clone();
            match result {
                Ok(Outcome::Ran(seconds)) => {
                    unfinished.remove(&node);
                    options.reporter.event(&Event::Finished { stage: stage.clone(), seconds });
                    summary.ran.push(stage);
                }
                Ok(Outcome::Cached) => {
                    unfinished.remove(&node);
                    options.reporter.event(&Event::Cached { stage });
                }
                Ok(Outcome::Held(holder)) => {
                    summary.locked = true;
                    options.reporter.event(&Event::Waiting { stage, holder });
                }
                Err(Error::Interrupted) => summary.interrupted = true,
                Err(error) => {
                    if let Error::Damaged { .. } = &error {
                        damaged = true;
                        options.reporter.event(&Event::Warned { message: format!("{error}; it is made again") });
                    } else {
                        options.reporter.event(&Event::Failed { stage: stage.clone(), error: error.to_string() });
                    }
                    summary.failed.push((stage.clone(), error.to_string()));
                    let mut lost = vec![node];
                    while let Some(from) = lost.pop() {
                        for next in plan.consumers(from).filter(|next| waiting.remove(next)).collect::<Vec<_>>() {
                            let skipped = plan.step(next).name.clone();
                            if !damaged {
                                options
                                    .reporter
                                    .event(&Event::Skipped { stage: skipped.clone(), because: stage.clone() });
                            }
                            summary.skipped.push(skipped);
                            lost.push(next);
                        }
                    }
                }
            }
        }
    });
    summary.interrupted |= options.stop.load(Ordering::Relaxed) != 0;
    for node in waiting {
        summary.skipped.push(plan.step(node).name.clone());
    }
    damaged && !summary.interrupted
}

/// One stage: claim, inputs, work, result.
fn work(
    plan: &Plan,
    node: NodeIndex,
    force: bool,
    store: &Store,
    options: &Options,
    claims: &Mutex<BTreeMap<NodeIndex, Arc<Claim>>>,
) -> Result<Outcome> {
    let step = plan.step(node);
    let fingerprint = step.fingerprint.as_str();
    let mut told = false;
    let claim = loop {
        match store.claim(fingerprint)? {
            Ok(claim) => break Arc::new(claim),
            Err(holder) if !options.wait => return Ok(Outcome::Held(holder)),
            Err(holder) => {
                if !told {
                    options.reporter.event(&Event::Waiting { stage: step.name.clone(), holder });
                    told = true;
                }
                if options.stop.load(Ordering::Relaxed) != 0 {
                    return Err(Error::Interrupted);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    };
    if force && !told {
        store.put_aside(fingerprint);
    } else if store.status(fingerprint).is_some() {
        return Ok(Outcome::Cached);
    }
    if let Ok(mut claims) = claims.lock() {
        claims.insert(node, claim.clone());
    }
    let mut inputs = Inputs::default();
    let mut prints = BTreeMap::new();
    for (role, input) in plan.inputs(node) {
        let artifact: Artifact = store.load(&plan.step(input).fingerprint)?;
        inputs.by_role.insert(role.to_owned(), artifact);
        prints.insert(role.to_owned(), plan.step(input).fingerprint.clone());
    }
    let checkpoint = store.checkpoint(fingerprint);
    let resumed_at = checkpoint.as_ref().and_then(|saved| saved.record["step"].as_u64());
    let before = checkpoint.as_ref().and_then(|saved| saved.record["seconds"].as_f64()).unwrap_or(0.0);
    options.reporter.event(&Event::Started { stage: step.name.clone(), resumed_at });
    let begun = Instant::now();
    let desk = StageDesk {
        step,
        store,
        options,
        checkpoint,
        before,
        begun,
        saved: Mutex::new(begun),
        notes: Mutex::default(),
    };
    let stage = (step.kind.make)(&step.settings)?;
    let context = Context { device: &options.device, files: step.files.clone(), desk: &desk };
    let artifact = stage.run(&inputs, &context)?;
    if artifact.kind() != step.makes {
        return Err(Error::invalid(format!("the stage made {} in place of {}", artifact.kind(), step.makes)));
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
        device: if options.device.is_cuda() { "cuda".to_owned() } else { "cpu".to_owned() },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        finished: jiff::Timestamp::now().to_string(),
        notes: desk.notes.into_inner().unwrap_or_default(),
        ..Manifest::default()
    };
    store.save(&artifact, manifest)?;
    Ok(Outcome::Ran(seconds))
}

struct StageDesk<'a> {
    step: &'a Step,
    store: &'a Store,
    options: &'a Options<'a>,
    checkpoint: Option<Encoded>,
    /// Seconds that earlier, interrupted attempts took.
    before: f64,
    begun: Instant,
    saved: Mutex<Instant>,
    notes: Mutex<Vec<String>>,
}

impl Desk for StageDesk<'_> {
    fn progress(&self, at: Progress) {
        let Progress { done, total, loss, images } = at;
        self.options.reporter.event(&Event::Progress { stage: self.step.name.clone(), done, total, loss, images });
    }

    fn note(&self, note: &str) {
        if let Ok(mut notes) = self.notes.lock() {
            notes.push(note.to_owned());
        }
    }

    fn stop(&self) -> bool {
        self.options.stop.load(Ordering::Relaxed) != 0
    }

    fn due(&self, _: usize, _: usize) -> bool {
        self.saved.lock().is_ok_and(|saved| saved.elapsed() >= self.options.checkpoint_every)
    }

    fn restore(&self) -> Result<Option<Encoded>> {
        Ok(self.checkpoint.clone())
    }

    fn save(&self, checkpoint: &Encoded) -> Result<()> {
        let mut checkpoint = checkpoint.clone();
        if let Some(record) = checkpoint.record.as_object_mut() {
            record.insert("seconds".to_owned(), (self.before + self.begun.elapsed().as_secs_f64()).into());
        }
        self.store.save_checkpoint(&self.step.fingerprint, &checkpoint)?;
        if let Ok(mut saved) = self.saved.lock() {
            *saved = Instant::now();
        }
        Ok(())
    }
}
