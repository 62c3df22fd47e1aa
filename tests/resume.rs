//! Whatever trains, stopped whenever it can be, goes on to the same bytes: result, weights, statistics and optimisers'
//! states before the last step, losses, notes.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use petgraph::graph::NodeIndex;
use recant::artifact::Artifact;
use recant::error::{Error, Result};
use recant::method::METHODS;
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::settings::Settings;
use recant::stage::{Context, Inputs, STAGES, evaluate};
use recant::store::codec;

use crate::support::desk::Halting;

/// Images for a few steps an epoch, and what the methods need.
const GROUND: &str = r#"recipe = 1

[defaults]
batch = 8

[stages.images]
kind = "dataset"
source = "digits"
train_limit = 40
test_limit = 20
validation = 0.2

[stages.split]
kind = "split"
data = "images"
forget = { count = 10 }

[stages.original]
kind = "train"
data = "images"
arch = ARCH
epochs = 2
transform = { name = "flip", cutout = 2 }

[stages.features]
kind = "features"
model = "original"
data = "split"

[stages.probe]
kind = "probe"
model = "original"
data = "images"

[stages.scores]
kind = "evaluate"
model = "original"
data = "split"
metrics = ["accuracy"]

[stages.mask]
kind = "saliency"
model = "original"
data = "split"

[stages.simclr]
kind = "pretrain"
method = "simclr"
data = "images"
arch = ARCH
epochs = 2

[stages.opengan]
kind = "augment"
method = "opengan"
features = "features"
outliers = "retain"
epochs = 3
batch = 4
width = 4
noise = 5
"#;

const TRAIN: &str = "kind = \"train\"\ndata = \"split\"\non = \"retain\"\narch = ARCH\nepochs = 3\n";
const UNLEARN: &str = "kind = \"unlearn\"\nmodel = \"original\"\ndata = \"split\"\n";

/// What trains, beside the ground: name and table.
fn cases() -> Vec<(String, String)> {
    let mut cases: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, table: String| cases.push((name.to_owned(), table));
    let plateau =
        "schedule = { plateau = { factor = 0.5, patience = 0, threshold = 0.0001, cooldown = 0, floor = 0.0 } }\n";
    add(
        "nesterov",
        format!(
            "{TRAIN}optimizer = {{ name = \"sgd\", nesterov = true }}\nschedule = {{ cosine = {{ warmup = 0.3 }} }}\n"
        ),
    );
    add("adamw", format!("{TRAIN}optimizer = \"adamw\"\nlr = 0.01\n{plateau}"));
    add(
        "arpl",
        "kind = \"augment\"\nmethod = \"arpl\"\ndata = \"split\"\narch = ARCH\nepochs = 2\nnoise = 5\nwidth = 2\n"
            .to_owned(),
    );
    for method in METHODS {
        let name = method.entry.name;
        let has = |field: &str| method.entry.fields.iter().any(|known| known.name == field);
        let epochs = if has("epochs") { "epochs = 3\n" } else { "" };
        // so few batches never differ by the paper's factor of 10, and a network of two parts has one to spare
        let more = match name {
            "ssd" => "alpha = 1.0\n",
            "cf_k" | "eu_k" => "parts = 1\n",
            _ => "",
        };
        let table = format!("{UNLEARN}method = \"{name}\"\n{epochs}{more}");
        if has("ssl") {
            let ssl = "ssl = { mode = \"simple\", reference = \"simclr\", head = \"trained\" }\n";
            add(&format!("{name}_ssl"), format!("{table}lr = 0.01\n{ssl}"));
        }
        if method.teacher {
            add(&format!("{name}_fakes"), format!("{table}augment = \"opengan\"\ncandidates = 3\n"));
        }
        add(name, table);
    }
    add("masked", format!("{UNLEARN}method = \"finetune\"\nepochs = 2\nmask = \"mask\"\n{plateau}"));
    add("rewound", format!("{UNLEARN}method = \"scrub\"\nepochs = 3\nlr = 0.3\nrewind = true\noptimizer = \"adam\"\n"));
    add("soft", format!("{UNLEARN}method = \"salun\"\nepochs = 3\nsoft = true\n"));
    cases
}

/// A recipe with all that trains, and what its stages made.
pub struct Bench {
    pub plan: Plan,
    pub made: BTreeMap<NodeIndex, Artifact>,
}

impl Bench {
    /// All stages made, by desks that never stop.
    pub fn new(arch: &str) -> Self {
        let tables = cases().into_iter().map(|(name, table)| format!("\n[stages.{name}]\n{table}"));
        let text = (GROUND.to_owned() + &tables.collect::<String>()).replace("ARCH", arch);
        let recipe = Recipe::read(Path::new("r.toml"), &|_| Ok(text.clone().into_bytes()), &[], STAGES).unwrap();
        let plan = Plan::new(&recipe, &evaluate::KIND, &BTreeMap::new()).unwrap();
        let mut bench = Self { plan, made: BTreeMap::new() };
        for node in bench.plan.order.clone() {
            let artifact = bench.run(node, &Halting::never()).unwrap();
            bench.made.insert(node, artifact);
        }
        bench
    }

    pub fn node(&self, name: &str) -> NodeIndex {
        *self.plan.order.iter().find(|&&node| self.plan.step(node).name == name).expect(name)
    }

    pub fn run(&self, node: NodeIndex, desk: &Halting) -> Result<Artifact> {
        self.run_with(node, &self.plan.step(node).settings, desk)
    }

    /// With other settings than the recipe's.
    pub fn run_with(&self, node: NodeIndex, settings: &Settings, desk: &Halting) -> Result<Artifact> {
        let step = self.plan.step(node);
        let inputs = self.plan.inputs(node);
        let by_role = inputs.map(|(role, input)| (role.to_owned(), self.made[&input].clone())).collect();
        let context = Context { device: &Device::Cpu, files: BTreeMap::new(), desk };
        (step.kind.make)(settings)?.run(&Inputs { by_role }, &context)
    }

    /// Stops a stage at every moment at which it can be, and lets it go on. How many moments there were.
    fn every_stop(&self, node: NodeIndex) -> usize {
        let name = &self.plan.step(node).name;
        let whole = Halting::never();
        let wanted = bytes(&self.run(node, &whole).unwrap());
        let end = |desk: &Halting| desk.checkpoint().map(|checkpoint| codec::to_bytes(&checkpoint).unwrap());
        let all = whole.asked();
        for asked in 0..all {
            let how = format!("{name} stopped when it asked for the {}th time of {all}", asked + 1);
            let desk = Halting::after(asked);
            match self.run(node, &desk) {
                Err(Error::Interrupted) => {}
                other => panic!("{how}: {:?}", other.map(|artifact| artifact.kind())),
            }
            let first = std::mem::take(&mut *desk.losses.lock().unwrap());
            desk.notes.lock().unwrap().clear();
            desk.relent();
            assert!(bytes(&self.run(node, &desk).unwrap()) == wanted, "{how}: another result");
            // Where it was stopped after the last step, there is none to be done.
            if !trained(&desk.losses.lock().unwrap()).is_empty() {
                assert!(end(&desk) == end(&whole), "{how}: another state before the last step");
            }
            assert_eq!(*desk.notes.lock().unwrap(), *whole.notes.lock().unwrap(), "{how}");
            if desk.checkpoint().is_some() {
                let both = [first, desk.losses.lock().unwrap().clone()].concat();
                assert_eq!(trained(&both), trained(&whole.losses.lock().unwrap()), "{how}");
            }
        }
        all
    }
}

/// Steps of training among what a desk was told: they have losses.
fn trained(told: &[(usize, Option<u64>)]) -> Vec<(usize, u64)> {
    told.iter().filter_map(|&(step, loss)| Some((step, loss?))).collect()
}

fn bytes(artifact: &Artifact) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    codec::write(artifact, &path).unwrap();
    std::fs::read(path).unwrap()
}

fn everything(arch: &str) {
    let bench = Bench::new(arch);
    let mut trains = 0;
    for &node in &bench.plan.order {
        let step = bench.plan.step(node);
        if ["train", "pretrain", "augment", "unlearn"].contains(&step.kind.name) {
            let moments = bench.every_stop(node);
            assert!(moments > 5 || step.name == "nothing", "{}: {moments}", step.name);
            trains += 1;
        }
    }
    assert!(trains > METHODS.len() + 10);
}

#[test]
fn whatever_trains_goes_on_from_every_stop_to_the_same_bytes() {
    everything("{ name = \"mlp\", hidden = [12] }");
}

#[test]
fn so_do_networks_with_batch_norm() {
    everything("{ name = \"allcnn\", width = 4, dropout = 0.0 }");
}
