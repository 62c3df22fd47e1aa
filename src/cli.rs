//! The command line.

mod bench;
mod diff;
mod explain;
mod export;
mod figures;
mod files;
mod graph;
mod indices;
mod names;
mod parity;
mod plan;
mod run;
mod samples;
mod store;
mod tables;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::artifact::Artifact;
use crate::error::{Error, Result, listed};
use crate::event::{Event, Reporter};
use crate::kind::Kind;
use crate::plan::Plan;
use crate::recipe::{LIMIT, Recipe};
use crate::report::Format;
use crate::stage::{self, STAGES};
use crate::store::Store;

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
        /// Stages side by side; where not said, on the CPU as many as cores, at most 4, and one on a GPU
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
        /// Fetch no data sets
        #[arg(long, env = "RECANT_OFFLINE")]
        offline: bool,
    },
    /// Fetch data sets into the first data folder
    Fetch {
        #[arg(required = true)]
        datasets: Vec<String>,
        /// A folder with data sets [default: recant in $XDG_DATA_HOME or ~/.local/share]
        #[arg(long, env = "RECANT_DATA", value_name = "DIR")]
        data: Vec<PathBuf>,
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
    /// Time the first steps of stages on this machine; nothing is kept
    Bench {
        recipe: PathBuf,
        /// Stages to time; all that train or look at images where none is named
        stages: Vec<String>,
        #[command(flatten)]
        common: Common,
        /// Seconds for each stage, after its first step
        #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
        seconds: f64,
        /// Where to compute
        #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
        device: String,
    },
    /// Say what a stage's fingerprint is made of, what computed it, and what differs from an earlier result
    Explain {
        recipe: PathBuf,
        stage: String,
        #[command(flatten)]
        common: Common,
        /// Another store, of another machine: say why its result has other bytes
        #[arg(long, value_name = "DIR")]
        against: Option<PathBuf>,
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
        #[arg(num_args = 2.., required = true)]
        recipes: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Draw the graph of stages
    Graph {
        recipe: PathBuf,
        #[arg(long, default_value = "mermaid")]
        format: graph::Picture,
        /// Write it to this file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Print the tables of a recipe
    Report {
        recipe: PathBuf,
        #[arg(long, default_value = "text")]
        format: Format,
        /// Write them to this file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Write the figures of evaluations to a folder, as SVG and as JSON
    Figures {
        recipe: PathBuf,
        /// Evaluations, models or tables whose figures are wanted; all where none is named
        stages: Vec<String>,
        /// The folder; made where it is not there
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Write the indices of a split to a file
    Indices {
        recipe: PathBuf,
        /// A stage that makes a split
        stage: String,
        #[arg(long, default_value = "forget")]
        side: indices::Side,
        /// FILE.txt (one a line) or FILE.npy (int64)
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Draw images of a stage: the first hundred, as a PNG file
    Samples {
        recipe: PathBuf,
        /// A stage that makes images
        stage: String,
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Write a model to a file for PyTorch and others
    Export {
        recipe: PathBuf,
        /// A stage that makes a model
        stage: String,
        /// FILE.safetensors, FILE.pth or FILE.pt (a state dict), or FILE.pth.tar (one under `state_dict`)
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Compare a model's logits with another program's; exit with 1 where they differ
    Parity {
        recipe: PathBuf,
        /// A stage that makes a model
        stage: String,
        /// Tensors `x` (images, normalised) and `logits`, as .safetensors or .pth
        file: PathBuf,
        /// The largest difference allowed, as a share of the file's largest logit
        #[arg(long, default_value_t = 1e-4)]
        tolerance: f64,
        /// Where to compute
        #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
        device: String,
        #[command(flatten)]
        common: Common,
    },
    /// List kinds of stages, methods, metrics, data sets and architectures
    List {
        /// stages, methods, augmenters, metrics, datasets or models
        what: Option<String>,
    },
    /// Explain a kind of stage, a method or an architecture: its settings
    Help { name: String },
    /// List what ran in the store, and when
    Runs {
        #[arg(long, env = "RECANT_STORE", value_name = "DIR")]
        store: Option<PathBuf>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
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
    Verify {
        /// Look for so long at most, first at those whose last look is longest ago
        #[arg(long)]
        seconds: Option<f64>,
    },
    /// List results with their sizes
    Size,
    /// Remove what dead runs left and, on wish, results; shows what would go unless --yes
    Gc {
        /// Remove results, those cheapest to make again first, until the store is so small: 10GB
        #[arg(long, value_name = "SIZE")]
        max_size: Option<String>,
        /// Remove results that nothing has read for so long: 30d
        #[arg(long, value_name = "TIME")]
        older_than: Option<String>,
        /// Really do it
        #[arg(long)]
        yes: bool,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
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
        Command::Run {
            recipe,
            stages,
            common,
            force,
            fail_fast,
            no_wait,
            jobs,
            device,
            checkpoint_every,
            quiet,
            offline,
        } => {
            let how = run::How { force, fail_fast, wait: !no_wait, jobs, device, checkpoint_every, quiet };
            run::run(&recipe, &stages, &common, &how, offline)
        }
        Command::Plan { recipe, common, check } => plan::plan(&recipe, &common, check),
        Command::Bench { recipe, stages, common, seconds, device } => {
            bench::bench(&recipe, &stages, &common, seconds, &device)
        }
        Command::Explain { recipe, stage, common, against } => {
            explain::explain(&recipe, &stage, &common, against.as_deref())
        }
        Command::Show { recipe, origins, common } => read(&recipe, &common.set).map(|recipe| {
            say(&crate::show::text(&recipe, origins));
            0
        }),
        Command::Schema => {
            say(&format!("{:#}", crate::schema::schema(STAGES)));
            Ok(0)
        }
        Command::Diff { recipes, common } => diff::diff(&recipes, &common),
        Command::Graph { recipe, format, output, common } => graph::graph(&recipe, format, output.as_deref(), &common),
        Command::Report { recipe, format, output, common } => {
            tables::tables(&recipe, format, output.as_deref(), &common)
        }
        Command::Figures { recipe, stages, output, common } => figures::figures(&recipe, &stages, &output, &common),
        Command::Fetch { datasets, data } => files::fetch(&datasets, &data, run::reporter(false, false).as_ref()),
        Command::Indices { recipe, stage, side, output, common } => {
            indices::indices(&recipe, &stage, side, &output, &common)
        }
        Command::Samples { recipe, stage, output, common } => samples::samples(&recipe, &stage, &output, &common),
        Command::Export { recipe, stage, output, common } => export::export(&recipe, &stage, &output, &common),
        Command::Parity { recipe, stage, file, tolerance, device, common } => {
            parity::parity(&recipe, &stage, &file, tolerance, &device, &common)
        }
        Command::List { what } => names::list(what.as_deref()),
        Command::Help { name } => names::help(&name),
        Command::Runs { store, json } => store::runs(store.as_deref(), json),
        Command::Store { action, store } => store::look_after(&action, store.as_deref()),
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
    // A path may name what never ends.
    let reader = |path: &Path| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).and_then(|file| file.take(LIMIT as u64 + 1).read_to_end(&mut bytes));
        file.map(|_| bytes).map_err(Error::io("read", path))
    };
    match Recipe::read(path, &reader, set, STAGES) {
        Err(Error::Io { doing, path, source }) => {
            Err(Error::Usage(format!("could not {doing} `{}`: {source}", path.display())))
        }
        other => other,
    }
}

fn planned(path: &Path, common: &Common) -> Result<(Recipe, Plan, Store)> {
    planned_with(path, common, None)
}

/// With a reporter, data sets that are not at hand are fetched.
fn planned_with(path: &Path, common: &Common, reporter: Option<&dyn Reporter>) -> Result<(Recipe, Plan, Store)> {
    let (recipe, plan) = wired(path, common, reporter)?;
    let store = Store::open(common.store.as_deref())?;
    if let (Some(reporter), Some(path)) = (reporter, store.passed_over()) {
        let (path, taken) = (path.display(), store.root().display());
        let message =
            format!("the store `{path}` is another user's: `{taken}` is taken; `--store {path}` takes it all the same");
        reporter.event(&Event::Warned { message });
    }
    Ok((recipe, plan, store))
}

/// The same without a store.
fn wired(path: &Path, common: &Common, reporter: Option<&dyn Reporter>) -> Result<(Recipe, Plan)> {
    let recipe = read(path, &common.set)?;
    let evaluate = &stage::evaluate::KIND;
    let files = match files::files(&recipe, &common.data, None) {
        Ok(files) => files,
        Err(absent) => {
            // A mistake in the wiring should show even where the data is not at hand, and before any is fetched.
            Plan::new(&recipe, evaluate, &BTreeMap::new())?;
            if reporter.is_none() {
                return Err(absent);
            }
            files::files(&recipe, &common.data, reporter)?
        }
    };
    let plan = Plan::new(&recipe, evaluate, &files)?;
    Ok((recipe, plan))
}

/// What a stage made, by the name of one instance; an error where it makes something else or has not run.
fn made(path: &Path, name: &str, kind: Kind, common: &Common) -> Result<Artifact> {
    let (_, plan, store) = planned(path, common)?;
    let nodes = plan.targets(&[name.to_owned()])?;
    let names: Vec<&str> = nodes.iter().map(|&node| plan.step(node).name.as_str()).collect();
    let [node] = nodes.as_slice() else {
        return Err(Error::Usage(format!("`{name}` stands for {}: name one", listed(&names, "and"))));
    };
    let step = plan.step(*node);
    if step.makes != kind {
        let others: Vec<&str> =
            plan.graph.node_weights().filter(|step| step.makes == kind).map(|step| step.name.as_str()).collect();
        let hint = if others.is_empty() { String::new() } else { format!(": {}", listed(&others, "or")) };
        let found = step.makes.article();
        return Err(Error::Usage(format!(
            "`{name}` makes {found}, expected a stage that makes {}{hint}",
            kind.article()
        )));
    }
    if store.status(&step.fingerprint).is_none() {
        return Err(Error::invalid(format!("`{name}` is not there yet: recant run {} '{name}'", path.display())));
    }
    let carried = match plan.carried(*node).map(|data| plan.step(data).fingerprint.as_str()) {
        Some(print) => Some((print, store.load(print, None)?)),
        None => None,
    };
    store.load(&step.fingerprint, carried.as_ref().map(|(print, artifact)| (*print, artifact)))
}
