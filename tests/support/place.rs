//! A folder with a recipe in it, and the program run there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Small enough to run many times: an original, an oracle and one method on the digits.
pub const SMALL: &str = r#"recipe = 1

[params]
epochs = 3

[defaults]
batch = 64

[stages.images]
kind = "dataset"
source = "digits"

[stages.split]
kind = "split"
data = "images"
forget = { share = 0.1 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "mlp", hidden = [16] }
epochs = "${params.epochs}"

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "mlp", hidden = [16] }
epochs = "${params.epochs}"

[stages.unlearned]
kind = "unlearn"
method = "neggrad_plus"
model = "original"
data = "split"
epochs = 2

[stages.table]
kind = "compare"
data = "split"
reference = "retrained"
models = ["original", "unlearned"]
"#;

pub struct Place {
    pub folder: TempDir,
}

impl Place {
    pub fn new(recipe: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write(recipe);
        place
    }

    pub fn write(&self, recipe: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join("r.toml"), recipe).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recant"));
        command.args(args).current_dir(self.folder.path());
        command.env_remove("RECANT_STORE").env_remove("RECANT_DATA").env("NO_COLOR", "1");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The bytes of every artifact, by fingerprint.
    pub fn artifacts(&self) -> BTreeMap<String, Vec<u8>> {
        objects(self.folder.path())
            .into_iter()
            .map(|path| (name(&path), std::fs::read(path.join("artifact.safetensors")).unwrap()))
            .collect()
    }
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

pub fn objects(folder: &Path) -> Vec<PathBuf> {
    let list = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = list(folder.join(".recant/objects")).flat_map(list).collect();
    all.sort();
    all
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn good(output: Output) -> Output {
    assert!(output.status.success(), "{}\n{}", out(&output), err(&output));
    output
}

/// The object that a stage of that name made.
pub fn object(place: &Place, stage: &str) -> PathBuf {
    let words = format!("\"stage\": \"{stage}\"");
    let holds = |path: &&PathBuf| std::fs::read_to_string(path.join("manifest.json")).unwrap().contains(&words);
    objects(place.folder.path()).iter().find(holds).unwrap().clone()
}
