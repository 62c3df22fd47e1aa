//! `recant run`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::Device;
use petgraph::graph::NodeIndex;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use super::tables::{is_result, kept, print};
use super::{Common, planned_with, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result, plural};
use crate::event::{Event, Quiet, Reporter};
use crate::execute::{self, Options};
use crate::nn::gpu;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::report::Format;
use crate::store::Store;
use crate::terminal::{Bars, Json, Plain};

pub(super) struct How {
    pub(super) force: Vec<String>,
    pub(super) fail_fast: bool,
    pub(super) wait: bool,
    pub(super) jobs: Option<usize>,
    pub(super) device: String,
    pub(super) checkpoint_every: f64,
    pub(super) quiet: bool,
}

/// Who shows events: as JSON, not at all, as bars or as lines.
pub(super) fn reporter(json: bool, quiet: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(Json)
    } else if quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bars::default())
    } else {
        Box::new(Plain::default())
    }
}

pub(super) fn run(path: &Path, names: &[String], common: &Common, how: &How, offline: bool) -> Result<u8> {
    let begun = jiff::Timestamp::now();
    let signals = Signals::listen()?;
    let reporter = reporter(common.json, how.quiet);
    let (recipe, plan, store) = planned_with(path, common, (!offline).then_some(reporter.as_ref()))?;
    let targets = plan.targets(names)?;
    let mut forced: BTreeSet<NodeIndex> = BTreeSet::new();
    let mut ask = if how.force.is_empty() { Vec::new() } else { plan.targets(&how.force)? };
    while let Some(node) = ask.pop() {
        if forced.insert(node) {
            ask.extend(plan.consumers(node));
        }
    }
    let devices = devices(&how.device, how.jobs)?;
    let wait = Duration::try_from_secs_f64(how.checkpoint_every)
        .map_err(|_| Error::Usage("`--checkpoint-every` takes seconds".to_owned()))?;
    let stop = signals.begin();
    let options = Options {
        devices,
        fail_fast: how.fail_fast,
        stop: stop.clone(),
        wait: how.wait,
        checkpoint_every: wait,
        reporter: reporter.as_ref(),
    };
    let mut summary = execute::run(&plan, &targets, &forced, &store, &options)?;
    let results = match results(&plan, &targets, names, &store) {
        // What nothing but the eye reads was not what was written: it is put aside by now.
        Err(error @ Error::Damaged { .. }) => {
            reporter.event(&Event::Warned { message: format!("{error}; it is made again") });
            let again = execute::run(&plan, &targets, &BTreeSet::new(), &store, &options)?;
            summary.take_in(again);
            self::results(&plan, &targets, names, &store)?
        }
        other => other?,
    };
    for (node, artifact) in &results {
        print(&plan, *node, artifact, &store, Format::Text, common.json);
    }
    for (node, artifact) in &summary.partial {
        print(&plan, *node, artifact, &store, Format::Text, common.json);
    }
    if !common.json && summary.ran.is_empty() && summary.failed.is_empty() && !summary.interrupted {
        say(&format!("nothing to run: {} cached", plural(summary.cached, "stage")));
    } else if !common.json && !results.is_empty() {
        say(&next(path, &recipe, &plan));
    }
    let signal = stop.load(Ordering::Relaxed);
    if signal != 0 {
        let _ = writeln!(std::io::stderr(), "stopped; `recant run {}` goes on from here", path.display());
    }
    let code = match signal {
        0 if summary.locked => 4,
        0 => u8::from(!summary.failed.is_empty()),
        signal => code_of(signal as i32),
    };
    if !summary.ran.is_empty() || !summary.failed.is_empty() || summary.interrupted {
        let failed: Vec<Value> =
            summary.failed.iter().map(|(stage, error)| json!({ "stage": stage, "error": error })).collect();
        let seconds = begun.until(jiff::Timestamp::now()).ok().and_then(|span| span.total(jiff::Unit::Second).ok());
        let logged = store.log(&json!({ "begun": begun.to_string(), "seconds": seconds, "name": recipe.name,
            "recipe": path.display().to_string(), "ran": summary.ran, "cached": summary.cached, "failed": failed,
            "skipped": summary.skipped, "exit": code, "version": env!("CARGO_PKG_VERSION") }));
        // What was made stands, whether it is written down or not.
        if let Err(error) = logged {
            reporter.event(&Event::Warned { message: format!("the history lacks this run: {error}") });
        }
    }
    Ok(code)
}

/// What a run of these stages ends in showing, as far as it is there.
fn results(plan: &Plan, targets: &[NodeIndex], names: &[String], store: &Store) -> Result<Vec<(NodeIndex, Artifact)>> {
    let mut found = Vec::new();
    for &node in targets.iter().filter(|&&node| is_result(plan, node, names)) {
        found.extend(kept(plan, node, store)?.map(|artifact| (node, artifact)));
    }
    Ok(found)
}

/// What to try next: another seed, or, where the recipe has several, the table for a paper.
fn next(path: &Path, recipe: &Recipe, plan: &Plan) -> String {
    let base = path.display();
    let tried = plan.order.iter().map(|&node| plan.step(node)).find(|step| step.settings.contains_key("method"));
    match tried.filter(|_| recipe.resolved.get("matrix").is_none()) {
        Some(step) => {
            format!("next: see what another seed would take: recant plan {base} --set stages.{}.seed=1", step.base)
        }
        None => format!("next: the table with all numbers: recant report {base} --format markdown"),
    }
}

/// The exit code where a signal ended the run. That of SIGUSR1, a cluster's warning, asks to be queued again.
fn code_of(signal: i32) -> u8 {
    if signal == SIGUSR1 { 75 } else { 128 + signal as u8 }
}

/// While planning and fetching, a signal ends the program at once: nothing is lost by it. Once stages run, the first
/// one lets them save and stop; a second Ctrl-C ends it at once all the same.
struct Signals {
    /// Whether the next Ctrl-C, and whether any other signal, ends the program at once.
    at_once: [Arc<AtomicBool>; 2],
    /// The one that asked to stop; 0 for none.
    stop: Arc<AtomicUsize>,
}

impl Signals {
    fn listen() -> Result<Self> {
        let own = Self { at_once: [(); 2].map(|()| Arc::new(AtomicBool::new(true))), stop: Arc::default() };
        let [interrupt, other] = &own.at_once;
        let register = || -> std::io::Result<()> {
            for (signal, at_once) in [(SIGINT, interrupt), (SIGTERM, other), (SIGUSR1, other)] {
                flag::register_conditional_shutdown(signal, i32::from(code_of(signal)), at_once.clone())?;
                flag::register_usize(signal, own.stop.clone(), signal as usize)?;
            }
            flag::register(SIGINT, interrupt.clone()).map(drop)
        };
        register().map_err(Error::io("listen for signals in", Path::new("this process")))?;
        Ok(own)
    }

    /// From now on stages run.
    fn begin(&self) -> Arc<AtomicUsize> {
        self.at_once.iter().for_each(|at_once| at_once.store(false, Ordering::SeqCst));
        self.stop.clone()
    }
}

/// One for each of the stages that may run at a time: by default as many as there are cores, at most 4, and one on a GPU.
fn devices(name: &str, jobs: Option<usize>) -> Result<Vec<Device>> {
    let first = device(name)?;
    if !first.is_cuda() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        return Ok(vec![Device::Cpu; jobs.unwrap_or(cores.min(4)).max(1)]);
    }
    // each with a stream of its own
    let name = if name == "auto" { "cuda:0" } else { name };
    let more = (1..jobs.unwrap_or(1)).map(|_| device(name));
    std::iter::once(Ok(first)).chain(more).collect()
}

pub(super) fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(gpu(0).unwrap_or(Device::Cpu)),
        other => {
            let index = other.strip_prefix("cuda:").and_then(|index| index.parse().ok());
            let index =
                index.ok_or_else(|| Error::Usage(format!("`--device {other}`: expected auto, cpu or cuda:N")))?;
            gpu(index).map_err(|error| Error::Usage(format!("`--device {other}`: {error}")))
        }
    }
}
