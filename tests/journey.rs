//! The program as a user meets it: recipes in, tables out, nothing lost on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::place::{Place, SMALL, err, good, objects, out};

#[test]
fn the_quickstart_ends_in_a_table_and_a_second_run_executes_nothing() {
    let place = Place::new(include_str!("../recipes/quickstart.toml"));
    let first = good(place.run(&["run", "r.toml"]));
    for words in ["accuracy.forget", "neggrad_plus", "random_label", "next: "] {
        assert!(out(&first).contains(words), "{}", out(&first));
    }
    let second = good(place.run(&["run", "r.toml"]));
    assert!(out(&second).contains("nothing to run: 16 stages cached"), "{}", out(&second));
    assert!(err(&second).is_empty(), "{}", err(&second));
}

/// Every TOML block of the README and the docs that is a recipe.
#[test]
fn every_recipe_in_the_docs_parses_and_its_wiring_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(root.join("README.md"));
    let mut seen = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let blocks: Vec<&str> = text.split("```toml").skip(1).map(|b| b.split("```").next().unwrap()).collect();
        for block in &blocks {
            // What an example extends is the first one of its page.
            let read =
                |path: &Path| Ok(if path.ends_with("base.toml") { blocks[0] } else { block }.as_bytes().to_vec());
            let recipe = recant::recipe::Recipe::read(&file, &read, &[], recant::stage::STAGES);
            let recipe = recipe.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            recant::plan::Plan::new(&recipe, &recant::stage::evaluate::KIND, &BTreeMap::new()).unwrap();
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// Real checkpoints of the formats that people have: what `train` made, by way of safetensors and of PyTorch's zip.
#[test]
fn a_checkpoint_is_complete_or_names_the_parameter() {
    let place = Place::new(SMALL);
    let weights = |hidden: usize| {
        let tensor = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32).sin()).collect();
            candle_core::Tensor::from_vec(values, (rows, columns), &candle_core::Device::Cpu).unwrap()
        };
        let flat = |count: usize| tensor(1, count).squeeze(0).unwrap();
        std::collections::HashMap::from([
            ("module.hidden.0.weight", tensor(hidden, 64)),
            ("module.hidden.0.bias", flat(hidden)),
            ("module.fc.weight", tensor(10, hidden)),
            ("module.fc.bias", flat(10)),
        ])
    };
    let file = place.folder.path().join("w.safetensors");
    candle_core::safetensors::save(&weights(16), &file).unwrap();
    let stage = "\n[stages.given]\nkind = \"checkpoint\"\npath = \"w.safetensors\"\n\
        arch = { name = \"mlp\", hidden = [16] }\ntrained_on = \"images\"\n";
    let recipe = SMALL.replace("model = \"original\"", "model = \"given\"") + stage;
    place.write(&recipe);
    good(place.run(&["run", "r.toml", "unlearned"]));
    candle_core::safetensors::save(&weights(12), &file).unwrap();
    let wrong = place.run(&["run", "r.toml", "given"]);
    assert!(err(&wrong).contains("`hidden.0.weight` has the shape [12, 64]"), "{}", err(&wrong));
    let mut missing = weights(16);
    missing.remove("module.fc.bias");
    candle_core::safetensors::save(&missing, &file).unwrap();
    assert!(err(&place.run(&["run", "r.toml", "given"])).contains("the checkpoint lacks `fc.bias`"));
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let cut = place.run(&["run", "r.toml", "given"]);
    assert_eq!(cut.status.code(), Some(1));
    assert!(err(&cut).contains("w.safetensors"), "{}", err(&cut));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(place.run(&["run", "r.toml", "given"]).status.code(), Some(1));
}

/// `tests/data/tiny.pth.tar` has the layout of `torch.save({"epoch": 300, "state_dict": ...})` from a wrapped network;
/// element j of a tensor of k elements is j / k.
#[test]
fn a_pytorch_checkpoint_gives_its_own_numbers() {
    let stage = "\n[stages.given]\nkind = \"checkpoint\"\npath = \"tiny.pth.tar\"\n\
        arch = { name = \"mlp\", hidden = [2] }\ntrained_on = \"images\"\n";
    let place = Place::new(&(SMALL.to_owned() + stage));
    let fixture = include_bytes!("data/tiny.pth.tar");
    std::fs::write(place.folder.path().join("tiny.pth.tar"), fixture).unwrap();
    good(place.run(&["run", "r.toml", "given"]));
    let read =
        |path: &PathBuf| candle_core::safetensors::load(path.join("artifact.safetensors"), &candle_core::Device::Cpu);
    let weights =
        objects(place.folder.path()).iter().map(|p| read(p).unwrap()).find(|t| t.contains_key("fc.bias")).unwrap();
    let want: Vec<f32> = (0..10).map(|j| j as f32 / 10.0).collect();
    assert_eq!(weights["fc.bias"].to_vec1::<f32>().unwrap(), want);
    assert_eq!(weights["hidden.0.weight"].to_vec2::<f32>().unwrap()[1][3], 67.0 / 128.0);
    std::fs::write(place.folder.path().join("tiny.pth.tar"), &fixture[..fixture.len() / 2]).unwrap();
    let cut = place.run(&["run", "r.toml", "given"]);
    assert!(err(&cut).contains("not a PyTorch file in zip format"), "{}", err(&cut));
}

#[test]
fn a_renamed_stage_keeps_its_artifact_and_comments_change_nothing() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml", "unlearned"]));
    let renamed =
        SMALL.replace("[stages.images]", "# a comment\n[stages.pictures]").replace("\"images\"", "\"pictures\"");
    place.write(renamed);
    let again = good(place.run(&["run", "r.toml", "unlearned"]));
    assert!(out(&again).contains("nothing to run"), "{}", err(&again));
}

#[test]
fn a_changed_setting_reruns_what_follows_and_plan_says_why() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let set = ["--set", "stages.unlearned.lr=0.002"];
    let plan = good(place.run(&["plan", "r.toml", set[0], set[1]]));
    let text = out(&plan);
    assert!(text.contains("lr 0.01 -> 0.002 (--set:1:1)"), "{text}");
    let explained = out(&good(place.run(&["explain", "r.toml", "unlearned", set[0], set[1]])));
    assert!(explained.contains("unlearned will run") && explained.contains("lr 0.01 -> 0.002"), "{explained}");
    assert!(out(&good(place.run(&["explain", "r.toml", "unlearned"]))).contains("unlearned is cached"));
    assert!(text.contains("3 to run"), "{text}");
    assert_eq!(place.run(&["plan", "r.toml", "--check", set[0], set[1]]).status.code(), Some(10));
    assert_eq!(place.run(&["plan", "r.toml", "--check"]).status.code(), Some(0));
    let run = good(place.run(&["run", "r.toml", set[0], set[1]]));
    assert!(err(&run).contains("3 ran"), "{}", err(&run));
}

#[test]
fn a_default_written_out_is_no_change() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let same = ["--set", "stages.unlearned.lr=0.01", "--set", "stages.original.optimizer={name=\"sgd\",momentum=0.9}"];
    let again = good(place.run(&[&["run", "r.toml"], &same[..]].concat()));
    assert!(out(&again).contains("nothing to run"), "{}", err(&again));
}

#[test]
fn bytes_depend_on_neither_threads_nor_jobs() {
    let places: Vec<Place> = ["1", "3"]
        .iter()
        .map(|count| {
            let place = Place::new(SMALL);
            let mut command = place.command(&["run", "r.toml", "--jobs", count]);
            good(command.env("RAYON_NUM_THREADS", count).output().unwrap());
            place
        })
        .collect();
    assert_eq!(places[0].artifacts().len(), 9);
    assert!(places[0].artifacts() == places[1].artifacts());
}

#[test]
fn a_flipped_byte_is_found_and_made_again() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let before = place.artifacts();
    for object in objects(place.folder.path()) {
        let file = object.join("artifact.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let again = place.run(&["run", "r.toml", "--set", "stages.unlearned.epochs=1"]);
    assert!(err(&again).contains("warning: "), "{}", err(&again));
    good(again);
    assert_eq!(place.run(&["store", "verify"]).status.code(), Some(3));
    assert_eq!(place.run(&["store", "verify"]).status.code(), Some(0));
    good(place.run(&["run", "r.toml"]));
    for (print, bytes) in place.artifacts() {
        assert!(before.get(&print).is_none_or(|old| *old == bytes), "{print} came out differently");
    }
}

#[test]
fn a_truncated_artifact_is_a_miss() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let before = place.artifacts();
    for object in objects(place.folder.path()) {
        std::fs::write(object.join("artifact.safetensors"), b"short").unwrap();
    }
    let again = good(place.run(&["run", "r.toml"]));
    assert!(err(&again).contains("9 ran"), "{}", err(&again));
    assert!(before == place.artifacts());
}

#[test]
fn a_killed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes() {
    let long = SMALL.replace("epochs = 3", "epochs = 40");
    let (whole, killed) = (Place::new(&long), Place::new(&long));
    good(whole.run(&["run", "r.toml", "original"]));
    let start = || {
        let mut command = killed.command(&["run", "r.toml", "original", "--checkpoint-every", "0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut resumed = 0;
    for _ in 0..3 {
        let mut child = start();
        let partial = killed.folder.path().join(".recant/partial");
        let since = Instant::now();
        let saved = || std::fs::read_dir(&partial).is_ok_and(|mut entries| entries.next().is_some());
        while !saved() && since.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(60));
        child.kill().unwrap();
        child.wait().unwrap();
        resumed += usize::from(saved());
    }
    assert!(resumed > 0, "no kill hit a stage at work");
    let last = good(killed.run(&["run", "r.toml", "original"]));
    assert!(err(&last).contains("resuming original at step"), "{}", err(&last));
    assert!(whole.artifacts() == killed.artifacts());
}

#[test]
fn an_interrupt_saves_and_the_plain_rerun_goes_on() {
    let place = Place::new(&SMALL.replace("epochs = 3", "epochs = 400"));
    let mut command = place.command(&["run", "r.toml", "original"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    crate::races::at_work(&place);
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", err(&output));
    assert!(err(&output).contains("goes on from here"), "{}", err(&output));
    let plan = good(place.run(&["plan", "r.toml"]));
    assert!(out(&plan).contains("resume  original"), "{}", out(&plan));
}

#[test]
fn two_runs_at_once_compute_each_stage_once() {
    let place = Place::new(SMALL);
    let start = || {
        let mut command = place.command(&["run", "r.toml", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let outputs: Vec<Output> =
        [start(), start()].into_iter().map(|child| good(child.wait_with_output().unwrap())).collect();
    let finished: usize = outputs.iter().map(|output| out(output).matches("\"event\":\"finished\"").count()).sum();
    assert_eq!(finished, 9, "{}\n{}", out(&outputs[0]), out(&outputs[1]));
}

#[test]
fn a_failed_stage_fails_only_what_depends_on_it() {
    let place = Place::new(SMALL);
    let output = place.run(&["run", "r.toml", "--set", "stages.unlearned.lr=1e30"]);
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(
        text.contains("FAILED   unlearned: the loss is NaN") || text.contains("FAILED   unlearned: the gradient"),
        "{text}"
    );
    assert!(text.contains("lower the learning rate"), "{text}");
    assert!(text.contains("skipped  evaluate(unlearned, split)"), "{text}");
    assert!(text.contains("FAILED   table: some of its rows failed: the table is shown, but not kept"), "{text}");
    assert!(text.contains("done     evaluate(retrained, split)"), "{text}");
}

/// What `recant run` says about a recipe that is wrong: exit code 2, nothing made.
fn refused(recipe: impl AsRef<[u8]>) -> String {
    let place = Place::new("");
    place.write(recipe);
    let output = place.run(&["run", "r.toml"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(!place.folder.path().join(".recant").exists());
    err(&output)
}

#[test]
fn mistakes_come_all_at_once_with_place_and_suggestion() {
    let wrong = SMALL
        .replace("\"neggrad_plus\"", "\"neggrad_pluss\"")
        .replace("on = \"retain\"", "on = \"retained\"")
        .replace("share = 0.1", "share = 1.5")
        .replace("batch = 64", "batch = 64\nbatchh = 3");
    let text = refused(&wrong);
    assert!(text.contains("unknown method `neggrad_pluss`"), "{text}");
    assert!(text.contains("did you mean `neggrad_plus`?"), "{text}");
    assert!(text.contains("r.toml:34:10"), "{text}");
    assert!(text.contains("unknown value `retained`"), "{text}");
    assert!(text.contains("a number from 0 to 1"), "{text}");
    assert!(text.contains("the default `batchh` reaches no stage"), "{text}");
    assert!(text.contains("4 mistakes; nothing was run"), "{text}");
}

#[test]
fn wiring_is_checked_before_anything_runs() {
    let text = refused(SMALL.replace("model = \"original\"", "model = \"split\""));
    assert!(text.contains("`model` must be a stage that makes model, but `split` makes split"), "{text}");
    let text = refused(SMALL.replace("model = \"original\"", "model = \"originl\""));
    assert!(text.contains("there is no stage `originl`") && text.contains("did you mean `original`?"), "{text}");
    let text = refused(SMALL.replace("model = \"original\"", "model = \"unlearned\""));
    assert!(text.contains("stages wait for each other: unlearned -> unlearned"), "{text}");
}

#[test]
fn bad_texts_get_one_clear_error() {
    assert!(refused("").contains("a recipe begins with `recipe = 1`"));
    assert!(refused(b"\xff\xfe\x00").contains("is not a text"));
    assert!(refused(vec![b'#'; 5 << 20]).contains("no recipe is that large"));
    assert!(refused(&SMALL[..SMALL.len() - 3]).contains("r.toml:42:"));
    let place = Place::new("");
    let output = place.run(&["run", "absent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("absent.toml"));
}

#[test]
fn no_cut_of_a_recipe_makes_the_parser_panic() {
    let reader = |text: Vec<u8>| move |_: &Path| Ok(text.clone());
    for end in (0..SMALL.len()).step_by(3) {
        for text in [SMALL[..end].to_owned(), SMALL[end..].to_owned(), SMALL.replacen(&SMALL[end..=end], "=", 1)] {
            let read = reader(text.into_bytes());
            let _ = recant::recipe::Recipe::read(Path::new("x.toml"), &read, &[], recant::stage::STAGES);
        }
    }
}

#[test]
fn a_base_recipe_is_extended_and_its_mistakes_keep_their_place() {
    let place = Place::new(SMALL);
    let own = "recipe = 1\nextends = \"r.toml\"\nunset = [\"stages.table\"]\n[stages.unlearned]\nepochs = 1\n";
    std::fs::write(place.folder.path().join("own.toml"), own).unwrap();
    good(place.run(&["run", "own.toml"]));
    std::fs::write(place.folder.path().join("own.toml"), own.replace("epochs", "epoch")).unwrap();
    let text = err(&place.run(&["run", "own.toml"]));
    assert!(text.contains("own.toml:5:1") && text.contains("did you mean `epochs`?"), "{text}");
}

#[test]
fn forget_sets_of_none_and_of_all_are_errors_and_of_one_runs() {
    let place = Place::new(SMALL);
    let forget = |what: &str| format!("stages.split.forget={what}");
    assert_eq!(place.run(&["run", "r.toml", "--set", &forget("{count=0}")]).status.code(), Some(2));
    let all = place.run(&["run", "r.toml", "split", "--set", &forget("{share=1.0}")]);
    assert!(err(&all).contains("nothing is left to retain"), "{}", err(&all));
    let gone = place.run(&["run", "r.toml", "split", "--set", &forget("{classes=[12]}")]);
    assert!(err(&gone).contains("has no class 12"), "{}", err(&gone));
    good(place.run(&["run", "r.toml", "--set", &forget("{count=1}")]));
    good(place.run(&["run", "r.toml", "--set", &forget("{classes=[3]}")]));
}

#[test]
fn diff_names_the_factor_and_warns_of_two() {
    let place = Place::new(SMALL);
    let other = |text: &str| std::fs::write(place.folder.path().join("b.toml"), text).unwrap();
    other(&SMALL.replace("epochs = 2", "epochs = 4"));
    let json = |files: &[&str]| -> serde_json::Value {
        let args: Vec<&str> = ["diff", "--json"].iter().chain(files).copied().collect();
        serde_json::from_str(&out(&good(place.run(&args)))).unwrap()
    };
    let found = json(&["r.toml", "b.toml"]);
    assert_eq!(found["shared"].as_array().unwrap().len(), 4, "{found}");
    let differ = serde_json::json!([{ "stage": "unlearned", "setting": "epochs", "values": [2, 4] }]);
    assert_eq!((&found["differ"], &found["warning"]), (&differ, &serde_json::Value::Null));
    assert_eq!(found["follow"], serde_json::json!(["table"]));
    other(&SMALL.replace("epochs = 2", "epochs = 4\nlr = 0.5"));
    let text = out(&good(place.run(&["diff", "r.toml", "b.toml"])));
    assert!(text.contains("warning: 2 factors differ at once, in `epochs` and `lr`"), "{text}");
    // Three recipes, one of them with results, and a stage that one of them lacks.
    good(place.run(&["run", "r.toml"]));
    let less = SMALL.replace("\"original\", \"unlearned\"", "\"original\"");
    let less = less.split("[stages.unlearned]").next().unwrap().to_owned()
        + "[stages.table]"
        + less.split("[stages.table]").nth(1).unwrap();
    std::fs::write(place.folder.path().join("c.toml"), less).unwrap();
    let found = json(&["r.toml", "b.toml", "c.toml"]);
    assert_eq!(found["differ"][0]["values"].as_array().unwrap()[2], serde_json::Value::Null, "{found}");
    assert!(found["results"].as_array().unwrap().iter().all(|line| line["recipe"] == "r.toml"), "{found}");
}

#[test]
fn the_graph_is_drawn_in_three_languages() {
    let place = Place::new(SMALL);
    assert!(out(&good(place.run(&["graph", "r.toml"]))).starts_with("flowchart LR"));
    assert!(out(&good(place.run(&["graph", "r.toml", "--format", "dot"]))).starts_with("digraph recipe {"));
    good(place.run(&["graph", "r.toml", "--format", "svg", "-o", "g.svg"]));
    let svg = std::fs::read_to_string(place.folder.path().join("g.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<g>").count(), 9, "six stages and three evaluations");
    assert_eq!(svg.matches("<path").count(), svg.matches("</path>").count());
}

#[test]
fn lists_and_help_come_from_the_tables() {
    let place = Place::new(SMALL);
    assert!(out(&good(place.run(&["list", "methods"]))).contains("neggrad_plus"));
    assert!(out(&good(place.run(&["help", "neggrad_plus"]))).contains("arxiv.org/abs/2302.09880"));
    let unknown = place.run(&["help", "negrad"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(err(&unknown).contains("did you mean `neggrad`?"));
}

#[test]
fn show_says_where_each_value_was_set_and_is_itself_a_recipe() {
    let place = Place::new(SMALL);
    let set = ["--set", "stages.unlearned.lr=0.002"];
    let text = out(&good(place.run(&["show", "r.toml", "--origins", set[0], set[1]])));
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("lr = 0.002").ends_with("# --set:1:1"), "{text}");
    assert!(line("batch = 64").contains("# [defaults], r.toml:7:9"), "{text}");
    assert!(line("a = 0.95").ends_with("# default of neggrad_plus"), "{text}");
    good(place.run(&["run", "r.toml", set[0], set[1]]));
    place.write(&text);
    let again = good(place.run(&["run", "r.toml"]));
    assert!(out(&again).contains("nothing to run"), "{}", err(&again));
}

#[test]
fn the_schema_knows_every_kind_and_method() {
    let place = Place::new(SMALL);
    let schema: serde_json::Value = serde_json::from_str(&out(&good(place.run(&["schema"])))).unwrap();
    let stages = schema["properties"]["stages"]["additionalProperties"]["anyOf"].as_array().unwrap();
    for method in recant::method::entries() {
        let of = |stage: &&serde_json::Value| stage["properties"]["method"]["const"] == method.name;
        let stage = stages.iter().find(of).unwrap_or_else(|| panic!("no {}", method.name));
        assert_eq!(stage["additionalProperties"], false);
        for field in method.fields {
            assert!(stage["properties"][field.name]["description"].is_string());
        }
    }
}

#[test]
fn two_tables_may_measure_one_model_in_two_ways() {
    let other = "\n[stages.losses]\nkind = \"compare\"\ndata = \"split\"\nreference = \"retrained\"\n\
        models = [\"original\"]\nmetrics = [\"loss\"]\ngap = [\"loss.test\"]\n";
    let place = Place::new(&(SMALL.to_owned() + other));
    let run = good(place.run(&["run", "r.toml"]));
    // three models in the first table, two of them again in the second
    assert!(err(&run).contains("12 ran"), "{}", err(&run));
    assert!(out(&run).contains("loss.test") && out(&run).contains("mia_confidence"), "{}", out(&run));
}

#[test]
fn a_store_that_cannot_be_written_gives_one_clear_error() {
    let place = Place::new(SMALL);
    std::fs::write(place.folder.path().join("file"), "not a folder").unwrap();
    let run = place.run(&["run", "r.toml", "--store", "file/store"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(err(&run).contains("file/store"), "{}", err(&run));
    std::fs::create_dir(place.folder.path().join("old")).unwrap();
    std::fs::write(place.folder.path().join("old/format"), "recant store 99").unwrap();
    let run = place.run(&["run", "r.toml", "--store", "old"]);
    assert_eq!(run.status.code(), Some(3));
    assert!(err(&run).contains("`recant store 99`"), "{}", err(&run));
}

#[test]
fn a_matrix_over_seeds_ends_in_means_and_another_seed_adds_its_own_stages_alone() {
    let recipe = SMALL.replace("forget = { share = 0.1 }", "forget = { share = 0.1 }\nseed = \"${matrix.seed}\"")
        + "over = [\"seed\"]\n\n[matrix]\nseed = [0, 1]\n";
    let place = Place::new(&recipe);
    let first = good(place.run(&["run", "r.toml"]));
    assert!(out(&first).contains(" ± "), "{}", out(&first));
    let json = good(place.run(&["report", "r.toml", "--format", "json"]));
    let table: serde_json::Value = serde_json::from_str(&out(&json)).unwrap();
    let groups = table["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 3);
    for group in groups {
        let rows = table["rows"].as_array().unwrap().iter().filter(|row| row["base"] == group["base"]);
        let values: Vec<f64> = rows.map(|row| row["values"][0].as_f64().unwrap()).collect();
        assert_eq!(values.len(), 2);
        let mean = group["values"][0]["mean"].as_f64().unwrap();
        assert!((mean - values.iter().sum::<f64>() / 2.0).abs() < 1e-12, "{group}");
    }
    place.write(recipe.replace("seed = [0, 1]", "seed = [0, 1, 2]"));
    let more = good(place.run(&["run", "r.toml", "--json"]));
    let started = out(&more).matches("\"event\":\"started\"").count();
    // split, oracle, method, three evaluations and the table; the original and all of the first two seeds are there
    assert_eq!(started, 7, "{}", out(&more));
}
