//! `recant bench`: stages are begun and timed, nothing is made or kept.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::place::{Place, SMALL, err, good, out};

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_stage_that_trains_or_looks_is_timed_and_no_store_is_made() {
    let place = Place::new(SMALL);
    let output = good(place.run(&["bench", "r.toml", "--json", "--seconds", "0", "--device", "cpu"]));
    let all = records(&out(&output));
    let stages: Vec<&str> = all.iter().map(|one| one["stage"].as_str().unwrap()).collect();
    assert_eq!(stages.iter().filter(|stage| ["original", "retrained", "unlearned"].contains(stage)).count(), 3);
    for one in &all {
        assert!(one["stage_seconds"].as_f64().unwrap() > 0.0, "{one}");
        assert!(one["parameters"].as_u64().unwrap() > 0, "{one}");
        if one["kind"] == "train" {
            assert!(one["steps"].as_u64().unwrap() >= 3 && one["images_per_second"].as_f64().unwrap() > 0.0, "{one}");
            let [epoch, stage] = ["epoch_seconds", "stage_seconds"].map(|name| one[name].as_f64().unwrap());
            assert!((3.0 * epoch / stage - 1.0).abs() < 1e-9, "{one}");
        }
    }
    let left: Vec<PathBuf> =
        std::fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [place.folder.path().join("r.toml")], "only the recipe is there");
}

#[test]
fn stages_that_differ_in_their_seed_alone_are_timed_once() {
    let recipe = SMALL.replace("[defaults]", "[matrix]\nseed = [0, 1, 2]\n\n[defaults]");
    let place = Place::new(&recipe.replace("epochs = 2\n", "epochs = 2\nseed = \"${matrix.seed}\"\n"));
    let output = good(place.run(&["bench", "r.toml", "unlearned", "--json", "--seconds", "0", "--device", "cpu"]));
    let all = records(&out(&output));
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["alike"].as_array().unwrap().len(), 3);
}

#[test]
fn a_stage_without_steps_cannot_be_named() {
    let place = Place::new(SMALL);
    let output = place.run(&["bench", "r.toml", "split"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("`split` is a stage of kind `split`: expected one that trains"), "{}", err(&output));
    let output = place.run(&["bench", "r.toml", "--seconds=-1"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_stage_that_fails_says_so_and_the_others_are_timed() {
    let place = Place::new(&format!(
        "{SMALL}\n[stages.wild]\nkind = \"train\"\ndata = \"images\"\nlr = 1e30\nepochs = 2\narch = \"mlp\"\n"
    ));
    let output = place.run(&["bench", "r.toml", "original", "wild", "--seconds", "0", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    assert!(text.contains("FAILED wild: ") && text.contains("mlp"), "{text}");
}

#[test]
fn the_small_twins_of_the_original_recipes_can_all_be_timed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/original/small");
    let place = Place::new(SMALL);
    let mut kinds = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".params.toml") {
            continue;
        }
        let words = ["bench", path.to_str().unwrap(), "--json", "--seconds", "0", "--device", "cpu"];
        for one in records(&out(&good(place.run(&words)))) {
            assert!(one.get("error").is_none(), "{}: {one}", path.display());
            kinds.insert(one["kind"].as_str().unwrap().to_owned());
        }
    }
    let all = ["augment", "evaluate", "features", "pretrain", "saliency", "train", "unlearn"];
    assert!(all.iter().filter(|kind| kinds.contains(**kind)).count() >= 6, "{kinds:?}");
}
