//! Seconds that a store of 100,000 results takes to open, plan, verify and collect: `cargo bench --bench store`, or
//! `cargo bench --bench store -- 10000`. The results lie where temporary files do.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use recant::store::{Manifest, Store};

const RECIPE: &str = include_str!("../recipes/quickstart.toml");
/// Stages of that recipe, and their kinds: a run looks for earlier results of its own.
const STAGES: [(&str, &str); 8] = [
    ("original", "train"),
    ("retrained", "train"),
    ("random_label", "unlearn"),
    ("neggrad_plus", "unlearn"),
    ("finetune", "unlearn"),
    ("evaluate(finetune, split)", "evaluate"),
    ("evaluate(retrained, split)", "evaluate"),
    ("table", "compare"),
];

/// A result of a few bytes whose manifest is sealed as the store's own are.
fn write(root: &Path, number: usize) -> Result<(), Box<dyn Error>> {
    let artifact = format!("artifact {number}");
    let fingerprint = blake3::hash(artifact.as_bytes()).to_hex()[..32].to_owned();
    let (stage, kind) = STAGES[number % STAGES.len()];
    let manifest = Manifest {
        fingerprint: fingerprint.clone(),
        stage: stage.to_owned(),
        kind: kind.to_owned(),
        makes: Some(recant::kind::Kind::Model),
        fields: (0..12).map(|field| (format!("set field{field}"), serde_json::json!(number * field))).collect(),
        digest: blake3::hash(artifact.as_bytes()).to_hex().to_string(),
        bytes: artifact.len() as u64,
        seconds: (number % 977) as f64,
        finished: "2026-01-01T00:00:00Z".to_owned(),
        ..Manifest::default()
    };
    let text = serde_json::to_string_pretty(&manifest)?;
    let seal = blake3::hash(text.as_bytes()).to_hex().to_string();
    let folder = root.join("objects").join(&fingerprint[..2]).join(&fingerprint);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("artifact.safetensors"), artifact)?;
    std::fs::write(folder.join("manifest.json"), format!("{{\"manifest\":{text},\"seal\":\"{seal}\"}}"))?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("store");
    Store::open(Some(&root))?.prepare()?;
    for number in 0..count {
        write(&root, number)?;
    }
    std::fs::write(folder.path().join("r.toml"), RECIPE)?;
    println!("a store of {count} results");
    let timed = |what: &str, args: &[&str]| -> Result<(), Box<dyn Error>> {
        let mut command = Command::new("sh");
        command.args(["-c", "\"$0\" \"$@\" || exit $?; times", env!("CARGO_BIN_EXE_recant")]);
        command.args(args).arg("--store").arg(&root).current_dir(folder.path());
        let begun = Instant::now();
        let output = command.output()?;
        let seconds = begun.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The shell says last what time of processors its children took, in programs and in the system.
        let (text, cpu) = text.trim_end().rsplit_once('\n').unwrap_or_default();
        let text = text.trim_end().rsplit_once('\n').map_or("", |(text, _)| text);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        println!("{what:<24} {seconds:>7.3} s ({cpu})  {}", text.lines().last().unwrap_or_default());
        Ok(())
    };
    let begun = Instant::now();
    let store = Store::open(Some(&root))?;
    println!("{:<24} {:>7.3} s", "open", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let found = store.manifests().len();
    println!("{:<24} {:>7.3} s  {found} found", "reading all manifests", begun.elapsed().as_secs_f64());
    drop(store);
    timed("plan", &["plan", "r.toml"])?;
    timed("run of 16 new stages", &["run", "r.toml"])?;
    timed("run of nothing", &["run", "r.toml"])?;
    timed("verify", &["store", "verify"])?;
    timed("verify for a second", &["store", "verify", "--seconds", "1"])?;
    timed("what would be collected", &["store", "gc", "--max-size", "500kB"])?;
    timed("collection", &["store", "gc", "--max-size", "500kB", "--yes"])?;
    Ok(())
}
