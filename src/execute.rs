//! Runs a plan: what is needed and nothing else, independent stages side by side, the longest remaining path first. A
//! stage that fails takes along what depends on it and nothing else.

pub mod past;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use candle_core::Device;
use petgraph::graph::NodeIndex;

use work::{Outcome, Resident};

use crate::artifact::Artifact;
use crate::cores::{all, on_cores};
use crate::error::{Error, Result};
use crate::event::{Event, Reporter};
use crate::plan::{Plan, Step};
use crate::store::Store;
use crate::store::claim::{Claim, Watch, beat, lapse};
use crate::store::gc::Pin;

/// Between two looks at stages that other runs hold.
const LOOK: Duration = Duration::from_millis(100);
/// Between two words about a stage that another run holds.
const TELL: Duration = Duration::from_secs(5);

/// How to run: never what.
pub struct Options<'a> {
    /// One a stage that runs at a time: all of a kind.
    pub devices: Vec<Device>,
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
    /// Tables with rows that failed: shown, never kept.
    pub partial: Vec<(NodeIndex, Artifact)>,
    /// Keeps the results from collection until they are read.
    pub pin: Option<Pin>,
}

impl Summary {
    /// What another run of the same plan did after this one.
    pub fn take_in(&mut self, later: Self) {
        self.ran.extend(later.ran);
        self.failed.extend(later.failed);
        self.skipped.extend(later.skipped);
        self.partial.extend(later.partial);
        self.cached = later.cached;
        self.interrupted |= later.interrupted;
        self.locked |= later.locked;
    }
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
    let mut run = Run {
        plan,
        store,
        options,
        heights: plan.heights(),
        forced: forced.clone(),
        failed: BTreeSet::new(),
        summary: Summary::default(),
        resident: Arc::default(),
    };
    let mut needed = run.needed(targets);
    options.reporter.event(&Event::Planned { stages: plan.order.len(), to_run: needed.len() });
    let all = || plan.order.iter().map(|&node| plan.step(node).fingerprint.as_str());
    if needed.is_empty() && store.root().join("pins").is_dir() {
        // Results are to be shown; where the store cannot be written, nobody collects there either.
        run.summary.pin = store.pin(all()).ok();
        needed = run.needed(targets);
    }
    if !needed.is_empty() {
        if store.prepare()? {
            let message = format!("`{}` was damaged and is written again", store.root().join("format").display());
            options.reporter.event(&Event::Warned { message });
        }
        if run.summary.pin.is_none() {
            run.summary.pin = Some(store.pin(all())?);
            // What was there a moment ago may be gone: before the pin, a collection could take it.
            needed = run.needed(targets);
        }
        past::fits(plan, &needed, store)?;
    }
    let mut damaged: BTreeSet<PathBuf> = BTreeSet::new();
    loop {
        let found = run.round(&needed, &damaged);
        if found.is_empty() || run.summary.interrupted || run.summary.locked {
            break;
        }
        // Results that looked whole were not, and are put aside: plan again, with them missing. What ran stays done.
        damaged.extend(found);
        run.summary.skipped.clear();
        needed = run.needed(targets);
    }
    let mut summary = run.summary;
    let ran: BTreeSet<&str> = summary.ran.iter().map(String::as_str).collect();
    let there = |node: &&NodeIndex| {
        let step = plan.step(**node);
        !ran.contains(step.name.as_str()) && store.has(&step.fingerprint)
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

/// A run in progress.
struct Run<'a> {
    plan: &'a Plan,
    store: &'a Store,
    options: &'a Options<'a>,
    heights: BTreeMap<NodeIndex, usize>,
    /// To be run although their results are there.
    forced: BTreeSet<NodeIndex>,
    /// Those that failed, and those that cannot run because of them.
    failed: BTreeSet<NodeIndex>,
    summary: Summary,
    resident: Arc<Resident>,
}

/// A stage that another run is at.
struct Held {
    watch: Watch,
    told: Option<(Instant, String)>,
}

impl Run<'_> {
    fn needed(&self, targets: &[NodeIndex]) -> BTreeSet<NodeIndex> {
        let forced: BTreeSet<&str> =
            self.forced.iter().map(|&node| self.plan.step(node).fingerprint.as_str()).collect();
        let fresh =
            |step: &Step| !forced.contains(step.fingerprint.as_str()) && self.store.status(&step.fingerprint).is_some();
        let mut needed = self.plan.needed(targets, &fresh);
        needed.retain(|node| !self.failed.contains(node));
        needed
    }

    /// Whether all that a step reads is there. A collecting step does without what failed.
    fn is_ready(&self, node: NodeIndex, unfinished: &BTreeSet<NodeIndex>) -> bool {
        let collects = self.plan.step(node).kind.collects;
        self.plan.inputs(node).all(|(_, input)| {
            let there = |node: NodeIndex| !unfinished.contains(&node);
            (there(input) && self.plan.carried(input).is_none_or(there)) || (collects && self.failed.contains(&input))
        })
    }

    /// One pass over the needed steps. (paths of results that turned out damaged; those of `known` were found before,
    /// so making them again did not help)
    fn round(&mut self, needed: &BTreeSet<NodeIndex>, known: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let (plan, store, options) = (self.plan, self.store, self.options);
        let mut waiting: BTreeSet<NodeIndex> = needed.clone();
        let mut unfinished: BTreeSet<NodeIndex> = needed.clone();
        let mut held: BTreeMap<NodeIndex, Held> = BTreeMap::new();
        let mut claims: BTreeMap<NodeIndex, (Arc<Claim>, Device)> = BTreeMap::new();
        let mut free = options.devices.clone();
        let mut damaged = Vec::new();
        let (beat, mut beaten) = (beat(), Instant::now());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (send, receive) = mpsc::channel::<(NodeIndex, Result<Outcome>)>();
        std::thread::scope(|scope| {
            loop {
                let stopping = options.stop.load(Ordering::Relaxed) != 0;
                let halted = stopping || self.summary.locked || (options.fail_fast && !self.summary.failed.is_empty());
                let mut ready: Vec<NodeIndex> =
                    waiting.iter().copied().filter(|&node| self.is_ready(node, &unfinished)).collect();
                ready.sort_by_key(|node| (std::cmp::Reverse(self.heights.get(node)), *node));
                let many = ready.len();
                for (index, node) in ready.into_iter().enumerate() {
                    if halted || self.summary.locked || free.is_empty() {
                        break;
                    }
                    if plan.inputs(node).all(|(_, input)| self.failed.contains(&input)) && plan.inputs(node).count() > 0
                    {
                        // Not even a table of failures: there is nothing to show.
                        waiting.remove(&node);
                        self.failed.insert(node);
                        self.summary.skipped.push(plan.step(node).name.clone());
                        continue;
                    }
                    match self.claim(node, &mut held) {
                        Ok(Some(claim)) => {
                            waiting.remove(&node);
                            let Some(device) = free.pop() else { break };
                            let claim = Arc::new(claim);
                            claims.insert(node, (claim.clone(), device.clone()));
                            let send = send.clone();
                            let force = self.forced.contains(&node) && !held.contains_key(&node);
                            let resident = self.resident.clone();
                            let failed = &self.failed;
                            let without: BTreeSet<NodeIndex> =
                                plan.inputs(node).map(|(_, input)| input).filter(|it| failed.contains(it)).collect();
                            // Where more stages wait than there are cores, each gets on faster on one core than all do
                            // on all.
                            let threads = if many - index > cores { 1 } else { all() };
                            scope.spawn(move || {
                                let own = (&*claim, &*resident, &device);
                                let work = || work::work(plan, node, force, &without, store, options, own);
                                let result = std::panic::catch_unwind(AssertUnwindSafe(|| on_cores(threads, work)));
                                let result = result.unwrap_or_else(|panic| {
                                    let text = panic.downcast_ref::<String>().cloned();
                                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
                                    Err(Error::invalid(format!("a bug in recant: {}", text.unwrap_or_default())))
                                });
                                // The receiver lives as long as the scope.
                                let _ = send.send((node, result));
                            });
                        }
                        Ok(None) => {}
                        Err(error) => {
                            waiting.remove(&node);
                            self.fail(node, &error, &mut waiting);
                        }
                    }
                }
                if beaten.elapsed() > beat {
                    beaten = Instant::now();
                    for (claim, _) in claims.values() {
                        claim.beat();
                    }
                    if let Some(pin) = &self.summary.pin {
                        pin.beat();
                    }
                }
                let idle = waiting.iter().all(|&node| !self.is_ready(node, &unfinished));
                let halted = halted || self.summary.locked;
                if claims.is_empty() && (halted || idle) {
                    break;
                }
                let Ok((node, result)) = receive.recv_timeout(if held.is_empty() { beat } else { LOOK }) else {
                    continue;
                };
                free.extend(claims.remove(&node).map(|(_, device)| device));
                let stage = plan.step(node).name.clone();
                match result {
                    Ok(Outcome::Ran(seconds)) => {
                        unfinished.remove(&node);
                        self.forced.remove(&node);
                        options.reporter.event(&Event::Finished { stage: stage.clone(), seconds });
                        self.summary.ran.push(stage);
                    }
                    Ok(Outcome::Partial(artifact)) => {
                        let error = Error::invalid("some of its rows failed: the table is shown, but not kept");
                        self.summary.partial.push((node, artifact));
                        self.fail(node, &error, &mut waiting);
                    }
                    Ok(Outcome::Cached) => {
                        unfinished.remove(&node);
                        options.reporter.event(&Event::Cached { stage });
                    }
                    Err(Error::Interrupted) => {
                        self.summary.interrupted = true;
                        options.reporter.event(&Event::Stopped { stage });
                    }
                    Err(Error::Damaged { path, why }) if !known.contains(&path) => {
                        let error = Error::Damaged { path: path.clone(), why };
                        damaged.push(path);
                        options.reporter.event(&Event::Warned { message: format!("{error}; it is made again") });
                    }
                    Err(error) => {
                        self.fail(node, &error, &mut waiting);
                    }
                }
            }
        });
        self.summary.interrupted |= options.stop.load(Ordering::Relaxed) != 0;
        if damaged.is_empty() {
            self.summary.skipped.extend(waiting.into_iter().map(|node| plan.step(node).name.clone()));
        }
        damaged
    }

    /// The claim of a step that may start; none where another run holds it.
    fn claim(&mut self, node: NodeIndex, held: &mut BTreeMap<NodeIndex, Held>) -> Result<Option<Claim>> {
        let step = self.plan.step(node);
        let mut fresh = Watch::new(lapse());
        let watch = held.get_mut(&node).map_or(&mut fresh, |held| &mut held.watch);
        let holder = match self.store.claim(&step.fingerprint, watch)? {
            Ok(claim) => return Ok(Some(claim)),
            Err(holder) => holder,
        };
        let entry = held.entry(node).or_insert(Held { watch: fresh, told: None });
        let news = entry.told.as_ref().is_none_or(|(at, words)| *words != holder && at.elapsed() > TELL);
        if news || !self.options.wait {
            entry.told = Some((Instant::now(), holder.clone()));
            self.options.reporter.event(&Event::Waiting { stage: step.name.clone(), holder });
        }
        self.summary.locked |= !self.options.wait;
        Ok(None)
    }

    /// Takes along what depends on a failed step, but for collecting steps: they show it as a failed row.
    fn fail(&mut self, node: NodeIndex, error: &Error, waiting: &mut BTreeSet<NodeIndex>) {
        let stage = self.plan.step(node).name.clone();
        self.options.reporter.event(&Event::Failed { stage: stage.clone(), error: error.to_string() });
        self.summary.failed.push((stage.clone(), error.to_string()));
        self.failed.insert(node);
        let mut lost = vec![node];
        while let Some(from) = lost.pop() {
            for next in self.plan.consumers(from).collect::<BTreeSet<_>>() {
                if self.plan.step(next).kind.collects || !waiting.remove(&next) {
                    continue;
                }
                let skipped = self.plan.step(next).name.clone();
                self.options.reporter.event(&Event::Skipped { stage: skipped.clone(), because: stage.clone() });
                self.summary.skipped.push(skipped);
                self.failed.insert(next);
                lost.push(next);
            }
        }
    }
}
