//! The recipes that come with Recant: every one can be read, and those made small for it run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn recipes(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "toml") && !name.ends_with(".params") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn recant(words: &[&str], recipe: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_recant")).args(words).arg(recipe).output().unwrap()
}

#[test]
fn every_recipe_that_ships_parses_and_its_wiring_holds() {
    let all = [recipes("recipes"), recipes("benches")].concat();
    assert!(all.len() > 15, "{}", all.len());
    for path in all {
        let reader = |path: &Path| std::fs::read(path).map_err(recant::error::Error::io("read", path));
        let recipe = recant::recipe::Recipe::read(&path, &reader, &[], recant::stage::STAGES);
        let recipe = recipe.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        recant::plan::Plan::new(&recipe, &recant::stage::evaluate::KIND, &BTreeMap::new()).unwrap();
    }
}

/// One store for all: the original is trained once, an oracle once for each forget set.
#[test]
fn the_small_twins_run_and_share_what_they_can() {
    let store = tempfile::tempdir().unwrap();
    let at = store.path().to_str().unwrap();
    let (mut trained, mut pretrained, mut unlearned) = (0, 0, 0);
    for path in recipes("recipes/original/small") {
        let output = recant(&["run", "--json", "--store", at], &path);
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let done = |stage: &str| text.matches(&format!("\"finished\",\"stage\":\"{stage}\"")).count();
        trained += done("original") + done("retrained");
        pretrained += done("simclr");
        unlearned += done("unlearned");
        // What has no original has no table: SimCLR's own and the classifier.
        let alone =
            ["simclr-cifar10", "simclr-stl10", "supervised"].iter().any(|name| path.ends_with(format!("{name}.toml")));
        assert!(alone != text.contains("\"event\":\"table\""), "{text}");
        // Again, and nothing is executed.
        let again = recant(&["plan", "--check", "--store", at], &path);
        assert_eq!(again.status.code(), Some(0), "{}", path.display());
    }
    assert_eq!((trained, pretrained, unlearned), (3, 2, recipes("recipes/original/small").len() - 4));
}

/// Two command lines that differ in one thing are two recipes that differ in one thing.
#[test]
fn diff_shows_the_factor_between_two_of_the_originals() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/original/small");
    let output = Command::new(env!("CARGO_BIN_EXE_recant"))
        .arg("diff")
        .args([folder.join("scrub.toml"), folder.join("scrub-class.toml")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("forget") && text.contains("lr") && !text.contains("stages.original"), "{text}");
}

/// An input that only one of them has is a factor too.
#[test]
fn diff_shows_an_input_that_only_one_has() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/original/small");
    let diff = |a: &str, b: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_recant"))
            .args(["diff", "--json"])
            .args([folder.join(a), folder.join(b)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let found = diff("scrub.toml", "scrub-opengan.toml");
    let wanted = serde_json::json!([{ "stage": "unlearned", "setting": "augment", "values": [null, "opengan"] }]);
    assert_eq!((&found["differ"], &found["warning"]), (&wanted, &serde_json::Value::Null));
    let found = diff("scrub-simple.toml", "scrub-arpl.toml");
    assert!(found["differ"].as_array().unwrap().is_empty() && found["follow"][0] == "unlearned", "{found}");
}

/// A recipe of images with one `--set`.
fn set(assignment: &str) -> recant::error::Result<recant::recipe::Recipe> {
    let text = "recipe = 1\n[params]\nseed = 1\nlimit = 9\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n\
        seed = \"${params.seed}\"\ntrain_limit = \"${params.limit}\"\n";
    let reader = |_: &Path| Ok(text.as_bytes().to_vec());
    recant::recipe::Recipe::read(Path::new("r.toml"), &reader, &[assignment.to_owned()], recant::stage::STAGES)
}

#[test]
fn a_set_takes_any_text() {
    for text in ["e\u{301}te\u{301}", "a\u{7f}b", "\u{200b}", "it's \"so\" \\ here"] {
        assert_eq!(set(&format!("about={text}")).unwrap().about, text);
    }
    assert_eq!(set("params.seed=5").unwrap().stages[0].settings["seed"], 5);
}

#[test]
fn a_set_that_would_change_nothing_is_a_mistake() {
    for (assignment, words) in [
        ("params.sead=5", "nothing refers to `${params.sead}`"),
        ("extends=other.toml", "`extends` is for files alone"),
        ("unset=[\"stages.images\"]", "`unset` is for files alone"),
        ("recipe=2", "`recipe` is for files alone"),
        ("stages.images.seed.x=5", "`stages.images.seed` is a text, but must be a table"),
    ] {
        let said = set(assignment).unwrap_err().to_string();
        assert!(said.contains(words), "{assignment}: {said}");
    }
}

#[test]
fn two_ways_to_count_checkpoints_are_a_mistake_where_they_stand() {
    let text = "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n[stages.images.run]\ntimeout = 5.0\n\
        checkpoint_every = { steps = 1, epochs = 2 }\n";
    let reader = |_: &Path| Ok(text.as_bytes().to_vec());
    let read = recant::recipe::Recipe::read(Path::new("r.toml"), &reader, &[], recant::stage::STAGES);
    let Err(recant::error::Error::Mistakes(mistakes)) = read else { panic!("{read:?}") };
    let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    assert!(mistake.what.contains("takes one of"), "{}", mistake.what);
    assert_eq!(mistake.place.as_ref().unwrap().to_string(), "r.toml:7:20");
}
