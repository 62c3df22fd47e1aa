//! What the stages around a method refuse and respect, from a recipe.

use candle_core::Device;

use crate::support::place::{Place, SMALL, good, object};

const SALIENT: &str = r#"
[stages.wide]
kind = "train"
data = "images"
arch = { name = "mlp", hidden = [8] }
epochs = 1

[stages.salient]
kind = "saliency"
model = "original"
data = "split"
keep = 0.25
"#;

fn with_mask() -> String {
    SMALL.replace("epochs = 2\n", "epochs = 2\nmask = \"salient\"\n") + SALIENT
}

/// What the program says of a recipe that it refuses.
fn refusal(recipe: &str) -> String {
    let output = Place::new(recipe).run(&["plan", "r.toml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    words
}

#[test]
fn a_mask_holds_from_stage_to_stage() {
    let place = Place::new(&with_mask());
    good(place.run(&["run", "r.toml"]));
    let weights = |name: &str| {
        let file = object(&place, name).join("artifact.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let mut names: Vec<&String> = tensors.keys().collect();
        names.sort();
        let values = |name: &&String| tensors[*name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        names.iter().flat_map(values).collect::<Vec<f32>>()
    };
    let (before, after) = (weights("original"), weights("unlearned"));
    let moved = before.iter().zip(&after).filter(|(b, a)| b.to_bits() != a.to_bits()).count();
    assert!(moved > before.len() / 5 && moved <= before.len() / 4, "{moved} of {}", before.len());
    assert_eq!(weights("salient").iter().sum::<f32>() as usize, before.len() / 4);
}

#[test]
fn a_mask_of_another_network_is_a_mistake_of_the_plan() {
    let words = refusal(
        &with_mask()
            .replace("model = \"original\"\ndata = \"split\"\nkeep", "model = \"wide\"\ndata = \"split\"\nkeep"),
    );
    assert!(words.contains("the mask `salient` was made for another network than that of `original`"), "{words}");
    let words = refusal(&SMALL.replace("epochs = 2\n", "epochs = 2\nmask = \"retrained\"\n"));
    assert!(words.contains("`mask` must be a stage that makes mask, but `retrained` makes model"), "{words}");
}

#[test]
fn settings_that_do_not_go_together_are_mistakes() {
    let scrub = |more: &str| SMALL.replace("method = \"neggrad_plus\"", &format!("method = \"scrub\"\n{more}"));
    let words = refusal(&scrub("msteps = 4"));
    assert!(words.contains("`msteps` is 4, but there are 2 epochs") && words.contains("r.toml:"), "{words}");
    // the default of 3 as well
    assert!(refusal(&scrub("")).contains("`msteps` is 3, but there are 2 epochs"));
    let words = refusal(&scrub("msteps = 2\ntemperature = 0"));
    assert!(words.contains("`temperature`") && words.contains("0.01"), "{words}");
    good(Place::new(&scrub("msteps = 2")).run(&["plan", "r.toml"]));
}

#[test]
fn forget_sets_that_cannot_be_are_mistakes_of_the_plan() {
    let forget = |what: &str| SMALL.replace("forget = { share = 0.1 }", &format!("forget = {what}"));
    let words = refusal(&forget("{ classes = [3, 10] }"));
    assert!(words.contains("`digits` has no class 10") && words.contains("by their numbers from 0"), "{words}");
    let cifar = forget("{ classes = [\"dogs\"] }").replace("source = \"digits\"", "source = \"cifar10\"\npath = \".\"");
    let words = refusal(&cifar);
    assert!(words.contains("`cifar10` has no class \"dogs\"") && words.contains("did you mean `dog`?"), "{words}");
    let words = refusal(&forget("{ count = 1438 }"));
    assert!(words.contains("1438 images are to be forgotten, but `images` has 1438 to train on"), "{words}");
    good(Place::new(&forget("{ count = 1437 }")).run(&["plan", "r.toml"]));
}

#[test]
fn scrub_goes_back_to_the_epoch_that_forgot_like_unseen_images() {
    let scrub = SMALL.replace(
        "method = \"neggrad_plus\"\nmodel = \"original\"\ndata = \"split\"\nepochs = 2",
        "method = \"scrub\"\nmodel = \"original\"\ndata = \"split\"\nepochs = 6\nmsteps = 6\nlr = 0.02\nrewind = true",
    );
    let words = refusal(&scrub);
    assert!(
        words.contains("`rewind` needs images that were never trained on, but `images` keeps none apart"),
        "{words}"
    );
    let place = Place::new(&scrub.replace("source = \"digits\"", "source = \"digits\"\nvalidation = 0.2"));
    good(place.run(&["run", "r.toml"]));
    let manifest = std::fs::read_to_string(object(&place, "unlearned").join("manifest.json")).unwrap();
    let note = manifest.split("rewound to epoch ").nth(1).unwrap().split('"').next().unwrap();
    let numbers: Vec<f64> =
        note.split(|c: char| c != '.' && !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let [epoch, 6.0, forget, unseen] = numbers[..] else { panic!("{note}") };
    assert!((1.0..=6.0).contains(&epoch) && forget <= 100.0 && unseen > 0.0, "{note}");
    // what was kept is what the table measures: the forget accuracy is that of the epoch chosen
    let table = good(place.run(&["report", "r.toml", "--format", "json"]));
    let table: serde_json::Value = serde_json::from_slice(&table.stdout).unwrap();
    let row = table["rows"].as_array().unwrap().iter().find(|row| row["name"] == "unlearned").unwrap();
    let column = table["columns"].as_array().unwrap().iter().position(|c| c["name"] == "accuracy.forget").unwrap();
    assert!((row["values"][column].as_f64().unwrap() - (100.0 - forget)).abs() < 0.01, "{row} {note}");
}

#[test]
fn a_method_that_changes_nothing_is_an_error() {
    let wiring = "epochs = 2\n";
    let lazy = SMALL.replace(wiring, &format!("{wiring}lr = 0.0\n"));
    let output = Place::new(&lazy).run(&["run", "r.toml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("`neggrad_plus` changed no weight: with these settings it forgets nothing"), "{words}");
    let nothing = SMALL.replace("neggrad_plus", "nothing").replace(wiring, "");
    good(Place::new(&nothing).run(&["run", "r.toml"]));
}
