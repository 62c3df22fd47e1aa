//! The same bytes whatever a run is given that leaves no trace in a fingerprint: threads, jobs, the order of stages, places,
//! language, time zone, environment, what lies in the cache; and what is said of results that differ all the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use recant::store::{Provenance, Store};

use crate::kill::{self, each};
use crate::support::place::{Place, err, good, name, object, objects, out};

/// All kinds of stages and of loops over threads, on few images.
const RECIPE: &str = r#"recipe = 1

[defaults]
batch = 32

[stages.images]
kind = "dataset"
source = "digits"
train_limit = 300
test_limit = 150
validation = 0.1

[stages.split]
kind = "split"
data = "images"
forget = { share = 0.2 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "resnet18", width = 4 }
transform = { name = "flip", cutout = 2 }
epochs = 1

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "resnet18", width = 4 }
optimizer = "adam"
lr = 0.003
epochs = 1

[stages.simclr]
kind = "pretrain"
method = "simclr"
data = "images"
arch = { name = "resnet18", width = 4 }
epochs = 1

[stages.probed]
kind = "probe"
model = "simclr"
data = "images"
iterations = 20

[stages.features]
kind = "features"
model = "original"
data = "split"

[stages.opengan]
kind = "augment"
method = "opengan"
features = "features"
epochs = 2

[stages.arpl]
kind = "augment"
method = "arpl"
data = "split"
arch = { name = "mlp", hidden = [16] }
width = 4
epochs = 1

[stages.simple]
kind = "augment"
method = "simple"
data = "split"
jitter = 0.4
blur = 0.5

[stages.mask]
kind = "saliency"
model = "original"
data = "split"

[stages.scrubbed]
kind = "unlearn"
method = "scrub"
model = "original"
data = "split"
augment = "opengan"
ssl = { mode = "simple", reference = "simclr" }
epochs = 1
msteps = 1

[stages.masked]
kind = "unlearn"
method = "random_label"
model = "original"
data = "split"
mask = "mask"
epochs = 1

[stages.dampened]
kind = "unlearn"
method = "ssd"
model = "original"
data = "split"
alpha = 1.0

[stages.table]
kind = "compare"
data = "split"
reference = "retrained"
models = ["original", "scrubbed", "masked", "dampened"]
metrics = ["accuracy", "loss", "mia_confidence", "mia_probabilities", "mia_loss", "mia_roc", "cka", "zrf", "tsne", "relearn"]
"#;

/// All that the recipe makes.
const ALL: [&str; 4] = ["table", "probed", "arpl", "simple"];

fn run(place: &Place) -> Command {
    place.command(&[&["run", "r.toml"], &ALL[..]].concat())
}

fn plain() -> &'static (Place, BTreeMap<String, Vec<u8>>) {
    static PLAIN: OnceLock<(Place, BTreeMap<String, Vec<u8>>)> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let place = Place::new(RECIPE);
        good(run(&place).output().unwrap());
        let artifacts = place.artifacts();
        assert_eq!(artifacts.len(), 14 + 6);
        (place, artifacts)
    })
}

/// The stages in the opposite order.
fn backwards() -> String {
    let (head, stages) = RECIPE.split_once("[stages.").unwrap();
    let mut stages: Vec<&str> = stages.split("[stages.").collect();
    stages.reverse();
    let stages: Vec<String> = stages.iter().map(|stage| format!("[stages.{}\n", stage.trim_end())).collect();
    head.to_owned() + &stages.concat()
}

/// A folder with some of the results of the plain run: those whose number leaves that rest by three.
fn partly(rest: usize) -> Place {
    let place = Place::new(RECIPE);
    let to = place.folder.path().join(".recant");
    assert!(
        Command::new("cp").arg("-r").arg(plain().0.folder.path().join(".recant")).arg(&to).status().unwrap().success()
    );
    for (number, object) in objects(place.folder.path()).into_iter().enumerate() {
        if number % 3 != rest {
            std::fs::remove_dir_all(object).unwrap();
        }
    }
    place
}

type Way = (&'static str, fn() -> (Place, Command));

fn fresh(change: impl Fn(&Place, &mut Command)) -> (Place, Command) {
    let place = Place::new(RECIPE);
    let mut command = run(&place);
    change(&place, &mut command);
    (place, command)
}

fn with(name: &'static str, value: &'static str) -> (Place, Command) {
    fresh(|_, command| {
        command.env(name, value);
    })
}

const WAYS: &[Way] = &[
    ("one thread", || with("RAYON_NUM_THREADS", "1")),
    ("two threads", || with("RAYON_NUM_THREADS", "2")),
    ("eight threads", || with("RAYON_NUM_THREADS", "8")),
    ("one job", || {
        fresh(|_, command| {
            command.args(["--jobs", "1"]);
        })
    }),
    ("five jobs, three threads", || {
        fresh(|_, command| {
            command.args(["--jobs", "5"]).env("RAYON_NUM_THREADS", "3");
        })
    }),
    ("a checkpoint at every step", || {
        fresh(|_, command| {
            command.args(["--checkpoint-every", "0"]);
        })
    }),
    ("stages in another order", || fresh(|place, _| place.write(backwards()))),
    ("another working folder", || {
        let (place, _) = fresh(|_, _| {});
        let (root, elsewhere) = (place.folder.path().to_owned(), place.folder.path().join("a b/ü"));
        std::fs::create_dir_all(&elsewhere).unwrap();
        let mut command = place.command(&["run", "../../r.toml"]);
        command.args(ALL).current_dir(elsewhere).arg("--store").arg(root.join(".recant"));
        (place, command)
    }),
    ("another language", || {
        fresh(|_, command| {
            command.env("LC_ALL", "tr_TR.UTF-8").env("LANG", "de_DE.UTF-8").env("LANGUAGE", "ar");
        })
    }),
    ("another time zone", || with("TZ", "Pacific/Chatham")),
    ("hardly any environment", || {
        fresh(|_, command| {
            command.env_clear();
        })
    }),
    ("much environment", || {
        fresh(|_, command| {
            command.envs((0..500).map(|i| (format!("EXTRA_{i}"), "x".repeat(i))));
            command.env("OMP_NUM_THREADS", "3").env("MKL_NUM_THREADS", "3").env("CUDA_VISIBLE_DEVICES", "");
            command.env("PYTHONHASHSEED", "7").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
        })
    }),
    ("one stage after the other", || {
        fresh(|place, _| {
            for stage in ["simclr", "scrubbed", "mask", "retrained"] {
                good(place.run(&["run", "r.toml", stage]));
            }
        })
    }),
    ("a third of the results there", || {
        let place = partly(0);
        let command = run(&place);
        (place, command)
    }),
    ("another third there", || {
        let place = partly(1);
        let command = run(&place);
        (place, command)
    }),
    ("the last third there", || {
        let place = partly(2);
        let command = run(&place);
        (place, command)
    }),
];

#[test]
fn what_leaves_no_trace_in_a_fingerprint_leaves_none_in_the_bytes() {
    let wanted = &plain().1;
    each(WAYS, |(how, way)| {
        let (place, mut command) = way();
        good(command.output().unwrap());
        // What nothing needs any more is not made again; on wish all is.
        let names: Vec<String> = objects(plain().0.folder.path()).iter().map(|object| stage(object)).collect();
        let mut rest = vec!["run", "r.toml"];
        rest.extend(names.iter().map(String::as_str));
        good(place.run(&rest));
        let found = place.artifacts();
        let differ = |(print, bytes): &(&String, &Vec<u8>)| found.get(*print) != Some(bytes);
        let differ: Vec<&String> = wanted.iter().filter(differ).map(|(print, _)| print).collect();
        assert!(differ.is_empty() && found.len() == wanted.len(), "{how}: {differ:?} of {}", found.len());
    });
}

fn manifest(object: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(object.join("manifest.json")).unwrap()).unwrap()
}

fn stage(object: &Path) -> String {
    manifest(object)["manifest"]["stage"].as_str().unwrap().to_owned()
}

/// Changes what a manifest says, and seals it again.
fn rewrite(object: &Path, change: impl FnOnce(&mut Value)) {
    let mut inner = manifest(object)["manifest"].take();
    change(&mut inner);
    let text = serde_json::to_string_pretty(&inner).unwrap();
    let seal = blake3::hash(text.as_bytes()).to_hex().to_string();
    std::fs::write(object.join("manifest.json"), format!("{{\"manifest\":{text},\"seal\":\"{seal}\"}}")).unwrap();
}

const SHORT: &str = "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\ntrain_limit = 60\n\
    [stages.first]\nkind = \"train\"\ndata = \"images\"\narch = \"mlp\"\nepochs = 1\n\
    [stages.seen]\nkind = \"probe\"\nmodel = \"first\"\ndata = \"images\"\n";

#[test]
fn explain_says_what_computed_a_result_and_why_another_machines_differs() {
    let (here, there) = (Place::new(SHORT), Place::new(SHORT));
    good(here.run(&["run", "r.toml"]));
    good(there.run(&["run", "r.toml"]));
    let store = there.folder.path().join(".recant");
    let explain = |stage: &str| {
        let command = here.command(&["explain", "r.toml", stage, "--against"]).arg(&store).output().unwrap();
        out(&good(command))
    };
    let text = explain("first");
    for known in ["version = ", "kernels = ", "compiler = rustc ", "libraries = candle-core ", "device = cpu"] {
        assert!(text.contains(known), "{known}: {text}");
    }
    assert!(text.contains("has the same bytes, made 20"), "{text}");
    assert!(!text.contains("would be computed with other things"), "{text}");
    // A machine with other vectors and older kernels; its bytes are made up.
    for stage in ["first", "seen"] {
        rewrite(&object(&there, stage), |manifest| {
            manifest["provenance"]["kernels"] = "0".into();
            manifest["provenance"]["features"] = "none".into();
            manifest["digest"] = "0".repeat(64).into();
        });
    }
    let text = explain("first");
    assert!(text.contains("has other bytes, made 20"), "{text}");
    assert!(text.contains(" -> 0\n") && text.contains(" -> none\n"), "{text}");
    assert!(!text.contains("has other bytes already"), "{text}");
    assert!(explain("seen").contains("the input model, `first`, has other bytes already"));
    // What an older program made here.
    rewrite(&object(&here, "first"), |manifest| manifest["provenance"]["kernels"] = "0".into());
    let text = explain("first");
    assert!(text.contains("here it would be computed with other things") && text.contains("kernels 0 -> "), "{text}");
    rewrite(&object(&here, "first"), |manifest| drop(manifest.as_object_mut().unwrap().remove("provenance")));
    assert!(explain("first").contains("an older recant did not say what computed it"));
    assert!(name(&object(&here, "first")).len() == 32);
}

#[test]
fn a_result_that_goes_on_from_another_machines_steps_says_so() {
    if !cfg!(debug_assertions) {
        return;
    }
    // What is said of the machine that began, and whether its bytes may be others.
    for (features, warns) in [(Some("none"), true), (None, false)] {
        let place = Place::new(kill::RECIPE);
        let crash = || {
            let mut command = place.command(&["run", "r.toml", "original"]);
            assert!(!command.env("RECANT_CRASH", "file.moved:5").output().unwrap().status.success());
        };
        crash();
        let partial = place.folder.path().join(".recant/partial");
        let path = std::fs::read_dir(partial).unwrap().next().unwrap().unwrap().path();
        let print = path.file_stem().unwrap().to_str().unwrap();
        let store = Store::open(Some(&place.folder.path().join(".recant"))).unwrap();
        let mut saved = store.checkpoint(print).unwrap().unwrap();
        let said = saved.record["provenance"].as_array_mut().unwrap();
        assert_eq!(said.len(), 1);
        said[0]["processor"] = "Elsewhere".into();
        if let Some(features) = features {
            said[0]["features"] = features.into();
        }
        store.save_checkpoint(print, &saved).unwrap();
        // It is kept over more than one stop.
        crash();
        let run = good(place.run(&["run", "r.toml", "original"]));
        let text = err(&run);
        assert_eq!(text.contains("`original` goes on from steps that were computed elsewhere"), warns, "{text}");
        assert_eq!(text.contains("CPU features none -> "), warns, "{text}");
        let made = manifest(&object(&place, "original"));
        let (made, here) = (&made["manifest"], Provenance::here("cpu"));
        assert_eq!(made["provenance"]["processor"], here.processor);
        assert_eq!(made["earlier"].as_array().unwrap().len(), 1);
        assert_eq!(made["earlier"][0]["processor"], "Elsewhere");
        assert_eq!(made["notes"].as_array().unwrap().len(), usize::from(warns), "{made}");
        let text = out(&good(place.run(&["explain", "r.toml", "original"])));
        assert!(text.contains("were computed elsewhere:\n") && text.contains("processor Elsewhere -> "), "{text}");
    }
    // Whoever goes on where it stopped has nothing to say.
    let place = Place::new(kill::RECIPE);
    place.command(&["run", "r.toml", "original"]).env("RECANT_CRASH", "file.moved:5").output().unwrap();
    let text = err(&good(place.run(&["run", "r.toml", "original"])));
    assert!(text.contains("resuming original"), "{text}");
    assert!(!text.contains("elsewhere"), "{text}");
    assert!(manifest(&object(&place, "original"))["manifest"]["earlier"].is_null());
}
