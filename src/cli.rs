//! The command line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::Device;
use clap::{Args, Parser, Subcommand};
use petgraph::graph::NodeIndex;
use serde_json::{Value, json};

use crate::artifact::Artifact;
use crate::dataset;
use crate::error::{Error, Result, listed, nearest, plural};
use crate::event::{Quiet, Reporter};
use crate::execute::{self, Options};
use crate::kind::Kind;
use crate::plan::{Files, Plan, Step, differences};
use crate::recipe::Recipe;
use crate::report::{self, Format};
use crate::settings::{Default, Entry, Field};
use crate::stage::{self, STAGES};
use crate::store::{Manifest, Store};
use crate::terminal::{Bars, Json, Plain};

#[derive(Parser)]
#[command(
    name = "recant",
    version,
    about = "Machine-unlearning experiments from recipes",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run what is asked for and not yet there
    Run {
        recipe: PathBuf,
        /// Stages to run, with what they need; all where none is named
        stages: Vec<String>,
        #[command(flatten)]
        common: Common,
        /// Run this stage and what depends on it again
        #[arg(long, value_name = "STAGE")]
        force: Vec<String>,
        /// Stop everything at the first failure
        #[arg(long)]
        fail_fast: bool,
        /// Exit with 4 where another run is at a stage, in place of waiting
        #[arg(long)]
        no_wait: bool,
        /// Stages side by side on the CPU; as many as cores, at most 4, where not said
        #[arg(long)]
        jobs: Option<usize>,
        /// Where to compute
        #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
        device: String,
        /// Seconds of training between checkpoints
        #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
        checkpoint_every: f64,
        /// Show no progress
        #[arg(long)]
        quiet: bool,
    },
    /// Say for each stage whether it is cached or would run, and why
    Plan {
        recipe: PathBuf,
        #[command(flatten)]
        common: Common,
        /// Exit with 10 where anything would run
        #[arg(long)]
        check: bool,
    },
    /// Say what a stage's fingerprint is made of, and what differs from an earlier result
    Explain {
        recipe: PathBuf,
        stage: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the recipe with everything merged, replaced and filled in
    Show {
        recipe: PathBuf,
        /// Say behind every value where it was set
        #[arg(long)]
        origins: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Print the JSON Schema of recipes, for editors
    Schema,
    /// Compare recipes: what differs, which stages they share, where they part
    Diff {
        #[arg(num_args = 2, required = true)]
        recipes: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Draw the graph of stages
    Graph {
        recipe: PathBuf,
        /// DOT in place of mermaid
        #[arg(long)]
        dot: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Print the tables of a recipe
    Report {
        recipe: PathBuf,
        #[arg(long, default_value = "text")]
        format: Format,
        #[command(flatten)]
        common: Common,
    },
    /// List kinds of stages, methods, metrics, data sets and architectures
    List {
        /// stages, methods, metrics, datasets or models
        what: Option<String>,
    },
    /// Explain a kind of stage, a method or an architecture: its settings
    Help { name: String },
    /// Look after the store
    Store {
        #[command(subcommand)]
        action: StoreAction,
        #[arg(long, env = "RECANT_STORE", global = true, value_name = "DIR")]
        store: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum StoreAction {
    /// Check the digest of every result; put damaged ones aside and exit with 3
    Verify,
    /// List results with their sizes
    Size,
}

#[derive(Args)]
struct Common {
    /// Change a value: stages.scrub.lr=0.001
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The store [default: .recant in the nearest folder above that has one]
    #[arg(long, env = "RECANT_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// A folder with data sets
    #[arg(long, env = "RECANT_DATA", value_name = "DIR")]
    data: Vec<PathBuf>,
    /// One JSON object a line on stdout
    #[arg(long)]
    json: bool,
}

/// Parses the command line, runs it and returns the exit code.
#[must_use]
pub fn main() -> u8 {
    let result = match Cli::parse().command {
        Command::Run { recipe, stages, common, force, fail_fast, no_wait, jobs, device, checkpoint_every, quiet } => {
            let how = How { force, fail_fast, wait: !no_wait, jobs, device, checkpoint_every, quiet };
            run(&recipe, &stages, &common, &how)
        }
        Command::Plan { recipe, common, check } => plan(&recipe, &common, check),
        Command::Explain { recipe, stage, common } => explain(&recipe, &stage, &common),
        Command::Show { recipe, origins, common } => read(&recipe, &common.set).map(|recipe| {
            say(&crate::show::text(&recipe, origins));
            0
        }),
        Command::Schema => {
            say(&format!("{:#}", crate::schema::schema(STAGES)));
            Ok(0)
        }
        Command::Diff { recipes, common } => diff(&recipes, &common),
        Command::Graph { recipe, dot, common } => graph(&recipe, dot, &common),
        Command::Report { recipe, format, common } => tables(&recipe, format, &common),
        Command::List { what } => list(what.as_deref()),
        Command::Help { name } => help(&name),
        Command::Store { action, store } => look_after(&action, store.as_deref()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let (text, code) = match &error {
                Error::Mistakes(mistakes) => (crate::diagnose::render(mistakes, colour), 2),
                Error::Usage(_) => (format!("error: {error}"), 2),
                Error::Damaged { .. } => (format!("error: {error}"), 3),
                _ => (format!("error: {error}"), 1),
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            code
        }
    }
}

/// Prints a result; a closed pipe is no error.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

fn read(path: &Path, set: &[String]) -> Result<Recipe> {
    let reader = |path: &Path| std::fs::read(path).map_err(Error::io("read", path));
    match Recipe::read(path, &reader, set, STAGES) {
        Err(Error::Io { doing, path, source }) => {
            Err(Error::Usage(format!("could not {doing} `{}`: {source}", path.display())))
        }
        other => other,
    }
}

/// Where the outside files of each stage are, with their digests.
fn files(recipe: &Recipe, data: &[PathBuf]) -> Result<BTreeMap<String, Files>> {
    let mut all = BTreeMap::new();
    for stage in &recipe.stages {
        let mut files = Files::new();
        if stage.kind.name == "dataset" {
            let source = stage.settings.get("source").and_then(Value::as_str).unwrap_or_default();
            for (number, path) in dataset::find(source)?.locate(data)?.into_iter().enumerate() {
                let digest = Store::digest_of(&path)?;
                files.insert(format!("source.{number}"), (path, digest));
            }
        }
        for (role, path) in &stage.files {
            let digest = Store::digest_of(path)?;
            files.insert(role.clone(), (path.clone(), digest));
        }
        all.insert(stage.name.clone(), files);
    }
    Ok(all)
}

fn planned(path: &Path, common: &Common) -> Result<(Recipe, Plan, Store)> {
    let recipe = read(path, &common.set)?;
    let evaluate = &stage::evaluate::KIND;
    // Wiring first: a mistake in the recipe should show even where the data is not at hand.
    Plan::new(&recipe, evaluate, &BTreeMap::new())?;
    let plan = Plan::new(&recipe, evaluate, &files(&recipe, &common.data)?)?;
    Ok((recipe, plan, Store::open(common.store.as_deref())?))
}

struct How {
    force: Vec<String>,
    fail_fast: bool,
    wait: bool,
    jobs: Option<usize>,
    device: String,
    checkpoint_every: f64,
    quiet: bool,
}

fn run(path: &Path, names: &[String], common: &Common, how: &How) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let targets = plan.targets(names)?;
    let mut forced: BTreeSet<NodeIndex> = BTreeSet::new();
    let mut ask = if how.force.is_empty() { Vec::new() } else { plan.targets(&how.force)? };
    while let Some(node) = ask.pop() {
        if forced.insert(node) {
            ask.extend(plan.consumers(node));
        }
    }
    let reporter: Box<dyn Reporter> = if common.json {
        Box::new(Json)
    } else if how.quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bars::default())
    } else {
        Box::new(Plain::default())
    };
    let stop = Arc::new(AtomicUsize::new(0));
    let device = device(&how.device)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if device.is_cuda() { 1 } else { how.jobs.unwrap_or(cores.min(4)) };
    let wait = Duration::try_from_secs_f64(how.checkpoint_every)
        .map_err(|_| Error::Usage("`--checkpoint-every` takes seconds".to_owned()))?;
    listen(&stop)?;
    let options = Options {
        jobs,
        device,
        fail_fast: how.fail_fast,
        stop: stop.clone(),
        wait: how.wait,
        checkpoint_every: wait,
        reporter: reporter.as_ref(),
    };
    let summary = execute::run(&plan, &targets, &forced, &store, &options)?;
    let mut shown = false;
    for &node in targets.iter().filter(|&&node| plan.step(node).makes == Kind::Table) {
        shown |= show(&plan, node, &store, Format::Text, common.json)?;
    }
    if !common.json && summary.ran.is_empty() && summary.failed.is_empty() && !summary.interrupted {
        say(&format!("nothing to run: {} cached", plural(summary.cached, "stage")));
    } else if !common.json && shown {
        let base = path.display();
        let tried = plan.order.iter().map(|&node| plan.step(node)).find(|step| step.settings.contains_key("method"));
        let name = tried.map_or("NAME", |step| step.name.as_str());
        say(&format!("next: see what another seed would take: recant plan {base} --set stages.{name}.seed=1"));
    }
    let signal = stop.load(Ordering::Relaxed);
    if signal != 0 {
        let _ = writeln!(std::io::stderr(), "stopped; `recant run {}` goes on from here", path.display());
    }
    Ok(match signal {
        0 if summary.locked => 4,
        0 => u8::from(!summary.failed.is_empty()),
        signal if signal == signal_hook::consts::SIGUSR1 as usize => 75,
        signal => 128 + signal as u8,
    })
}

/// First signal: finish the step, save, stop. A second Ctrl-C: stop now.
fn listen(stop: &Arc<AtomicUsize>) -> Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    let again = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        signal_hook::flag::register_conditional_shutdown(SIGINT, 130, again.clone())?;
        signal_hook::flag::register(SIGINT, again.clone())?;
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register_usize(signal, stop.clone(), signal as usize)?;
        }
        Ok(())
    };
    register().map_err(Error::io("listen for signals in", Path::new("this process")))
}

fn device(name: &str) -> Result<Device> {
    let gpu = |index: usize| Device::new_cuda(index);
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(gpu(0).unwrap_or(Device::Cpu)),
        other => {
            let index = other.strip_prefix("cuda:").and_then(|index| index.parse().ok());
            let index =
                index.ok_or_else(|| Error::Usage(format!("`--device {other}`: expected auto, cpu or cuda:N")))?;
            gpu(index).map_err(|error| Error::Usage(format!("`--device {other}`: {}", Error::from(error))))
        }
    }
}

/// Prints the table of a compare step, if it is there.
fn show(plan: &Plan, node: NodeIndex, store: &Store, format: Format, json: bool) -> Result<bool> {
    let step = plan.step(node);
    if store.status(&step.fingerprint).is_none() {
        return Ok(false);
    }
    let Artifact::Table(table) = store.load(&step.fingerprint)? else { return Ok(false) };
    let seconds = |name: &str| -> Option<f64> {
        let made = plan.order.iter().map(|&node| plan.step(node)).find(|step| step.name == name)?;
        store.status(&made.fingerprint).map(|manifest| manifest.seconds)
    };
    if json {
        say(&json!({ "event": "table", "stage": step.name, "table": *table }).to_string());
    } else {
        say(&report::render(&table, &seconds, format));
    }
    Ok(true)
}

fn tables(path: &Path, format: Format, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let mut shown = false;
    for &node in plan.order.iter().filter(|&&node| plan.step(node).makes == Kind::Table) {
        shown |= show(&plan, node, &store, format, common.json)?;
    }
    if shown { Ok(0) } else { Err(Error::invalid(format!("there is no table yet: recant run {}", path.display()))) }
}

fn plan(path: &Path, common: &Common, check: bool) -> Result<u8> {
    let (recipe, plan, store) = planned(path, common)?;
    let targets = plan.targets(&[])?;
    let needed = plan.needed(&targets, &|step: &Step| store.status(&step.fingerprint).is_some());
    let past = store.manifests();
    let mut lines = vec![format!("{}: {}", recipe.name, plural(plan.order.len(), "stage"))];
    let (mut running, mut seconds) = (0, 0.0);
    for &node in &plan.order {
        let step = plan.step(node);
        let there = store.status(&step.fingerprint);
        let does = match (&there, needed.contains(&node)) {
            (Some(_), _) => "cached",
            (None, false) => "unused",
            (None, true) if store.checkpoint(&step.fingerprint).is_some() => "resume",
            (None, true) => "run",
        };
        let nearest = nearest_past(step, &past);
        let why = match (does, nearest) {
            ("cached" | "unused", _) => String::new(),
            ("resume", _) => "goes on from its checkpoint".to_owned(),
            (_, Some(old)) => changes(&recipe, step, old).join("; "),
            (_, None) => "new".to_owned(),
        };
        let took = there.as_ref().or(nearest).map(|manifest| manifest.seconds);
        if does == "run" || does == "resume" {
            running += 1;
            seconds += took.unwrap_or(0.0);
        }
        if common.json {
            say(&json!({ "stage": step.name, "fingerprint": step.fingerprint, "does": does, "why": why,
                "seconds": took, "fields": step.fields })
            .to_string());
        }
        let took = took.map_or(String::new(), |took| format!("{took:.1} s"));
        lines.push(format!("  {does:<7} {:<32} {took:>9}  {why}", step.name).trim_end().to_owned());
    }
    lines.push(format!("{running} to run, about {seconds:.1} s by past runs; nothing was executed"));
    if !common.json {
        say(&lines.join("\n"));
    }
    Ok(if check && running > 0 { 10 } else { 0 })
}

/// What differs from an earlier result, with the place where a setting was set.
fn changes(recipe: &Recipe, step: &Step, old: &Manifest) -> Vec<String> {
    let under = |table: &str, key: &str| recipe.resolved.get(table).and_then(|node| node.get(key));
    let placed = |change: String| {
        let setting = change.split(' ').next().unwrap_or_default();
        let found = under("stages", &step.name).and_then(|own| own.get(setting)).or_else(|| under("defaults", setting));
        match found {
            Some(node) => format!("{change} ({})", node.place),
            None => change,
        }
    };
    differences(&old.fields, &step.fields, &step.defaults).into_iter().map(placed).collect()
}

fn explain(path: &Path, name: &str, common: &Common) -> Result<u8> {
    let (recipe, plan, store) = planned(path, common)?;
    for node in plan.targets(&[name.to_owned()])? {
        let step = plan.step(node);
        if let Some(made) = store.status(&step.fingerprint) {
            let (seconds, device, version) = (made.seconds, &made.device, &made.version);
            say(&format!("{name} is cached: {}", step.fingerprint));
            say(&format!(
                "  made {} in {seconds:.1} s on {device} by recant {version}, as `{}`",
                made.finished, made.stage
            ));
        } else {
            say(&format!("{name} will run: {}", step.fingerprint));
            let past = store.manifests();
            match nearest_past(step, &past) {
                None => say("  there is no earlier result of this stage"),
                Some(old) => {
                    say(&format!("  the nearest earlier result is {}, made {}", old.fingerprint, old.finished));
                    for change in changes(&recipe, step, old) {
                        say(&format!("  {change}"));
                    }
                }
            }
        }
        say("  the fingerprint is made of:");
        for (field, value) in &step.fields {
            say(&format!("    {field} = {value}"));
        }
    }
    Ok(0)
}

/// The latest result of a stage of this kind and name, else of this kind, with the fewest differences.
fn nearest_past<'m>(step: &Step, past: &'m [Manifest]) -> Option<&'m Manifest> {
    let same = past.iter().filter(|old| old.kind == step.kind.name && old.stage == step.name);
    same.min_by_key(|old| {
        (differences(&old.fields, &step.fields, &step.defaults).len(), std::cmp::Reverse(&old.finished))
    })
}

fn diff(paths: &[PathBuf], common: &Common) -> Result<u8> {
    let (_, a, store) = planned(&paths[0], common)?;
    let (_, b, _) = planned(&paths[1], common)?;
    let of = |plan: &Plan| -> BTreeMap<String, String> {
        plan.order.iter().map(|&node| (plan.step(node).fingerprint.clone(), plan.step(node).name.clone())).collect()
    };
    let (prints_a, prints_b) = (of(&a), of(&b));
    let shared: Vec<&String> =
        prints_a.iter().filter(|(print, _)| prints_b.contains_key(*print)).map(|(_, n)| n).collect();
    let mut lines = vec![format!("shared: {}", listed(&shared, "and"))];
    let mut factors = BTreeSet::new();
    for &node in &a.order {
        let one = a.step(node);
        let Some(two) = b.order.iter().map(|&node| b.step(node)).find(|step| step.name == one.name) else {
            lines.push(format!("only in {}: {}", paths[0].display(), one.name));
            continue;
        };
        if one.fingerprint == two.fingerprint {
            continue;
        }
        let changes = differences(&one.fields, &two.fields, &one.defaults);
        let own: Vec<&String> = changes.iter().filter(|change| !change.starts_with("the input")).collect();
        lines.push(format!("parts at {}: {}", one.name, changes.join("; ")));
        factors.extend(own.into_iter().map(|change| format!("{}.{change}", one.name)));
    }
    for &node in &b.order {
        let two = b.step(node);
        if !a.order.iter().any(|&node| a.step(node).name == two.name) {
            lines.push(format!("only in {}: {}", paths[1].display(), two.name));
        }
    }
    if factors.len() > 1 {
        lines.push(format!(
            "warning: {} differ at once: this compares more than one factor",
            plural(factors.len(), "setting")
        ));
    }
    if common.json {
        say(&json!({ "shared": shared, "factors": factors }).to_string());
    } else {
        say(&lines.join("\n"));
        for (path, plan) in paths.iter().zip([&a, &b]) {
            for &node in plan.order.iter().filter(|&&node| plan.step(node).makes == Kind::Table) {
                if store.status(&plan.step(node).fingerprint).is_some() {
                    say(&format!("\n{}", path.display()));
                    show(plan, node, &store, Format::Text, false)?;
                }
            }
        }
    }
    Ok(0)
}

fn graph(path: &Path, dot: bool, common: &Common) -> Result<u8> {
    let (_, plan, store) = planned(path, common)?;
    let cached = |step: &Step| store.status(&step.fingerprint).is_some();
    let mut text = String::from(if dot { "digraph recipe {\n  rankdir=LR;\n" } else { "flowchart LR\n" });
    for &node in &plan.order {
        let step = plan.step(node);
        let (id, mark) = (node.index(), if cached(step) { " (cached)" } else { "" });
        text += &if dot {
            format!("  n{id} [shape=box, label={:?}];\n", format!("{}{mark}", step.name))
        } else {
            format!("  n{id}[\"{}{mark}\"]\n", step.name)
        };
    }
    for &node in &plan.order {
        for (role, input) in plan.inputs(node) {
            let (from, to) = (input.index(), node.index());
            text += &if dot {
                format!("  n{from} -> n{to} [label={role:?}];\n")
            } else {
                format!("  n{from} -->|\"{role}\"| n{to}\n")
            };
        }
    }
    say(&(text + if dot { "}" } else { "" }));
    Ok(0)
}

/// Everything that a recipe may name: (heading, name, words).
fn named() -> Vec<(&'static str, &'static str, &'static str)> {
    let entries = |heading, entries: Vec<&'static Entry>| entries.into_iter().map(move |e| (heading, e.name, e.about));
    let mut all: Vec<_> = STAGES.iter().map(|kind| ("stages", kind.name, kind.about)).collect();
    all.extend(entries("methods", crate::method::entries()));
    all.extend(crate::metric::METRICS.iter().map(|metric| ("metrics", metric.name, metric.about)));
    all.extend(dataset::DATASETS.iter().map(|set| ("datasets", set.name, set.about)));
    all.extend(entries("models", crate::nn::arch::entries()));
    all
}

fn list(what: Option<&str>) -> Result<u8> {
    let all = named();
    let mut headings: Vec<&str> = all.iter().map(|(heading, ..)| *heading).collect();
    headings.dedup();
    if let Some(what) = what.filter(|what| !headings.contains(what)) {
        return Err(Error::Usage(format!("there is no list of `{what}`; there are {}", listed(&headings, "and"))));
    }
    for heading in headings.into_iter().filter(|heading| what.is_none_or(|what| what == *heading)) {
        say(heading);
        for (_, name, about) in all.iter().filter(|(of, ..)| *of == heading) {
            say(&format!("  {name:<16} {about}"));
        }
    }
    Ok(0)
}

fn help(name: &str) -> Result<u8> {
    let entries = [
        crate::method::entries(),
        crate::nn::arch::entries(),
        crate::nn::optim::entries(),
        crate::nn::schedule::entries(),
    ];
    if let Some(entry) = entries.into_iter().flatten().find(|entry| entry.name == name) {
        say(&format!("{name}: {}", entry.about));
        if !entry.paper.is_empty() {
            say(entry.paper);
        }
        entry.fields.iter().for_each(describe);
        return Ok(0);
    }
    if let Some(kind) = stage::find(name) {
        say(&format!("{name}: {}", kind.about));
        if let Some(choice) = &kind.choice {
            say(&format!(
                "  {} = one of {}",
                choice.key,
                listed(&(choice.entries)().iter().map(|e| e.name).collect::<Vec<_>>(), "or")
            ));
        }
        kind.fields.iter().for_each(describe);
        return Ok(0);
    }
    if let Some((_, name, about)) = named().into_iter().find(|(_, known, _)| *known == name) {
        say(&format!("{name}: {about}"));
        return Ok(0);
    }
    let known = named();
    let hint = nearest(name, known.iter().map(|(_, name, _)| *name))
        .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    Err(Error::Usage(format!("nothing is called `{name}`{hint}")))
}

fn describe(field: &Field) {
    let default = match field.default {
        Default::Required => "required".to_owned(),
        Default::Absent => "optional".to_owned(),
        Default::Is(text) => format!("default {text}"),
    };
    say(&format!("  {:<14} {} ({}; {default})", field.name, field.about, crate::recipe::check::expected(&field.ty)));
}

fn look_after(action: &StoreAction, folder: Option<&Path>) -> Result<u8> {
    let store = Store::open(folder)?;
    match action {
        StoreAction::Verify => {
            let (sound, damaged) = store.verify();
            say(&format!("{} sound, {} damaged", plural(sound, "result"), damaged.len()));
            for print in &damaged {
                say(&format!("  {print} was damaged and is put aside"));
            }
            Ok(if damaged.is_empty() { 0 } else { 3 })
        }
        StoreAction::Size => {
            let all = store.manifests();
            for manifest in &all {
                let (print, bytes) = (&manifest.fingerprint, manifest.bytes as f64 / 1e6);
                say(&format!("{print}  {bytes:>9.3} MB  {:>8.1} s  {}", manifest.seconds, manifest.stage));
            }
            let total = all.iter().map(|manifest| manifest.bytes).sum::<u64>() as f64 / 1e6;
            say(&format!("{} in {}, {total:.3} MB", plural(all.len(), "result"), store.root().display()));
            Ok(0)
        }
    }
}
