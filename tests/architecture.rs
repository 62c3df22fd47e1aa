//! The house keeps its order: a module may use what lies on floors below its own, not its neighbours, not above; some
//! crates have a home outside of which nobody names them.

use std::path::{Path, PathBuf};

/// From the ground up; modules of one floor do not see each other.
const FLOORS: &[&[&str]] = &[
    &["cores", "error", "kind", "pickle", "rng", "tensors", "wide"],
    &["settings", "diagnose", "halt", "output"],
    &["indices"],
    &["kernels"],
    &["data"],
    &["nn"],
    &["artifact", "batches", "dataset", "metric"],
    &["trainer"],
    &["augment", "method", "pretrain"],
    &["stage"],
    &["recipe"],
    &["plan", "plot", "schema", "show"],
    &["bench", "store", "event", "report"],
    &["execute", "fetch", "terminal"],
    &["cli"],
    &["fuzz"],
];

const HOMES: &[(&str, &[&str])] = &[
    ("petgraph", &["bench.rs", "plan", "execute", "cli/"]),
    ("indicatif", &["terminal.rs"]),
    ("signal_hook", &["cli/run.rs"]),
    ("crate::kernels", &["nn/", "kernels/"]),
    ("safetensors::", &["store/codec.rs", "stage/checkpoint", "tensors.rs"]),
    ("ureq::", &["fetch.rs"]),
    ("zip::", &["stage/checkpoint/"]),
    ("toml::", &["recipe/node.rs", "nn/arch.rs"]),
    ("cfg(feature", &["kernels/"]),
    ("SystemTime", &["store/"]),
    (
        "Instant::",
        &[
            "bench",
            "cli/files.rs",
            "execute",
            "kernels/cpu/layers.rs",
            "store/claim.rs",
            "store/verify.rs",
            "terminal.rs",
        ],
    ),
];

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
}

/// Complaints about one file.
fn complaints(file: &str, text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let module = file.split(['/', '.']).next().unwrap_or_default();
    // `stage/mod.rs` holds the seam that trainers, augmenters and methods see; the kinds beside it lie higher.
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let own = floor(module);
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for rest in line.split("crate::").skip(1) {
            let used: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if rest.starts_with('{') {
                found.push(format!("src/{file}:{}: grouped imports from the crate hide what is used", number + 1));
            }
            let seam = used == "stage" && ["trainer", "augment", "method", "pretrain", "execute"].contains(&module);
            if used != module && !seam && own.is_some() && floor(&used).is_some() && floor(&used) >= own {
                found.push(format!("src/{file}:{}: `{module}` may not use `{used}`", number + 1));
            }
        }
        for (name, homes) in HOMES {
            if line.contains(name) && !homes.iter().any(|home| file.starts_with(home)) {
                found.push(format!("src/{file}:{}: `{name}` belongs in {homes:?}", number + 1));
            }
        }
    }
    found
}

#[test]
fn modules_use_only_the_floors_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30);
    let of = |path: &PathBuf| {
        let file = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        complaints(&file, &std::fs::read_to_string(path).unwrap())
    };
    let all: Vec<String> = files.iter().flat_map(of).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_floors_test_can_fail() {
    assert_eq!(complaints("method/scrub.rs", "use crate::plan::Plan;\n").len(), 1);
    assert_eq!(complaints("metric/x.rs", "use indicatif::ProgressBar;\n").len(), 1);
    assert!(complaints("method/scrub.rs", "use crate::nn::model::Model;\n").is_empty());
}
