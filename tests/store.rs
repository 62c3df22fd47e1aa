//! The store under damage, failure and neighbours.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::damage::ordinary;
use crate::support::place::{Place, SMALL, err, good, object, objects, out};

/// The claim file of a stage.
fn claim_of(place: &Place, stage: &str) -> PathBuf {
    let plan = out(&good(place.run(&["plan", "r.toml", "--json"])));
    let lines = plan.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["stage"] == stage).unwrap();
    place.folder.path().join(".recant/claims").join(line["fingerprint"].as_str().unwrap())
}

fn change(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A run that must come to an end by itself.
fn bounded(place: &Place, args: &[&str]) -> std::process::Output {
    ends(place.command(args))
}

fn ends(mut command: Command) -> std::process::Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the run does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_changed_manifest_is_a_miss_and_the_same_bytes_are_made_again() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let whole = place.artifacts();
    for (stage, from, to) in [
        ("split", "\"data\": \"", "\"data\": \"0"),
        ("original", "\"stage\": \"original", "\"stage\": \"origin4l"),
        ("images", "\"makes\": \"images", "\"makes\": \"model"),
        ("unlearned", "\"seconds\": ", "\"seconds\": 1"),
    ] {
        change(&object(&place, stage).join("manifest.json"), from, to);
        std::fs::remove_dir_all(object(&place, "table")).unwrap();
        let run = good(bounded(&place, &["run", "r.toml", "--force", "unlearned"]));
        assert!(out(&run).contains("average gap"), "{}", err(&run));
        assert_eq!(place.artifacts(), whole, "{stage}");
    }
}

#[test]
fn a_result_made_from_other_inputs_than_the_plan_says_is_not_used() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let whole = place.artifacts();
    // A forger who also seals: the split of one recipe in the place of another's, digests and all.
    let other = Place::new(&SMALL.replace("share = 0.1", "share = 0.2"));
    good(other.run(&["run", "r.toml", "split"]));
    let (mine, theirs) = (object(&place, "split"), object(&other, "split"));
    for file in ["artifact.safetensors", "manifest.json"] {
        std::fs::copy(theirs.join(file), mine.join(file)).unwrap();
    }
    let run = good(bounded(&place, &["run", "r.toml", "--force", "unlearned"]));
    assert!(out(&run).contains("average gap"));
    assert_eq!(place.artifacts(), whole);
}

#[test]
fn force_holds_although_damage_is_found_on_the_way() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let path = object(&place, "original").join("artifact.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let run = good(bounded(&place, &["run", "r.toml", "--force", "unlearned"]));
    assert!(err(&run).contains("is damaged: its contents are not what was written"), "{}", err(&run));
    for stage in ["original", "unlearned", "table"] {
        assert!(err(&run).contains(&format!("done     {stage}")), "{stage}: {}", err(&run));
    }
    assert!(!err(&run).contains("done     retrained"), "{}", err(&run));
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn damage_that_cannot_be_put_aside_is_an_error_and_no_endless_loop() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    // Nothing can be moved into a folder that may not be written, by a user whom permissions bind.
    let quarantine = place.folder.path().join(".recant/quarantine");
    let allow = |mode| std::fs::set_permissions(&quarantine, std::fs::Permissions::from_mode(mode)).unwrap();
    allow(0o500);
    let path = object(&place, "original").join("artifact.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let Some(command) = ordinary(&place, &["run", "r.toml", "--force", "unlearned"]) else {
        eprintln!("skipped: no ordinary user here");
        return;
    };
    let run = ends(command);
    allow(0o700);
    assert_eq!(run.status.code(), Some(1), "{}", err(&run));
    assert!(err(&run).contains("FAILED   unlearned: `") && err(&run).contains("is damaged"), "{}", err(&run));
}

#[test]
fn verify_finds_every_kind_of_damage() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let all = objects(place.folder.path()).len();
    std::fs::remove_file(object(&place, "original").join("artifact.safetensors")).unwrap();
    let (a, b) = (object(&place, "retrained"), object(&place, "unlearned"));
    let [one, two] = [&a, &b].map(|path| std::fs::read(path.join("artifact.safetensors")).unwrap());
    std::fs::write(a.join("artifact.safetensors"), two).unwrap();
    std::fs::write(b.join("artifact.safetensors"), one).unwrap();
    std::fs::remove_file(object(&place, "table").join("manifest.json")).unwrap();
    let found = place.run(&["store", "verify"]);
    assert_eq!(found.status.code(), Some(3));
    assert!(out(&found).contains(&format!("{} results sound, 4 damaged", all - 4)), "{}", out(&found));
    good(place.run(&["run", "r.toml"]));
    assert!(out(&good(place.run(&["store", "verify"]))).contains("0 damaged"));
}

#[test]
fn a_failed_model_is_a_row_that_says_so_and_the_table_is_not_kept() {
    let broken = SMALL
        .replace("models = [\"original\", \"unlearned\"]", "models = [\"original\", \"unlearned\", \"wild\"]")
        + "\n[stages.wild]\nkind = \"unlearn\"\nmethod = \"finetune\"\nmodel = \"original\"\ndata = \"split\"\nlr = 1e30\nepochs = 2\n";
    let place = Place::new(&broken);
    let run = place.run(&["run", "r.toml"]);
    assert_eq!(run.status.code(), Some(1), "{}", err(&run));
    assert!(out(&run).contains("wild (failed)") && out(&run).contains("unlearned"), "{}", out(&run));
    assert!(err(&run).contains("skipped  evaluate(wild, split)"), "{}", err(&run));
    let again = place.run(&["run", "r.toml"]);
    assert_eq!(again.status.code(), Some(1), "not kept: {}", err(&again));
    let mended = good(place.run(&["run", "r.toml", "--set", "stages.wild.lr=0.01"]));
    assert!(!out(&mended).contains("(failed)"));
}

#[test]
fn a_run_that_waits_for_one_stage_goes_on_with_others_and_takes_over_from_the_dead() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml", "split"]));
    let claim = claim_of(&place, "original");
    let mut holder = Command::new("sleep").arg("100").spawn().unwrap();
    let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    let stat = read(&format!("/proc/{}/stat", holder.id()));
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let words = [
        read("/proc/sys/kernel/hostname"),
        read("/proc/sys/kernel/random/boot_id"),
        space,
        holder.id().to_string(),
        start,
    ];
    std::fs::write(&claim, words.join("\n")).unwrap();
    std::fs::write(claim.with_extension("progress"), "5 of 70").unwrap();
    let locked = place.run(&["run", "r.toml", "--no-wait", "original"]);
    assert_eq!(locked.status.code(), Some(4), "{}", err(&locked));
    let mut child = place.command(&["run", "r.toml", "--jobs", "1"]);
    let child = child.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let done = |stage: &str| {
        let words = format!("\"stage\": \"{stage}\"");
        objects(place.folder.path())
            .iter()
            .any(|path| std::fs::read_to_string(path.join("manifest.json")).is_ok_and(|text| text.contains(&words)))
    };
    let begun = Instant::now();
    while !done("retrained") {
        assert!(begun.elapsed() < Duration::from_secs(30), "waiting holds up what does not depend on it");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!done("original"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let run = good(child.wait_with_output().unwrap());
    let who = format!("waiting  original: process {} on {}, 5 of 70 is at it", holder.id(), words[0]);
    assert!(err(&run).contains(&who), "{}", err(&run));
    assert!(done("original") && out(&run).contains("average gap"));
}

#[test]
fn a_timeout_saves_and_the_next_run_goes_on_to_the_same_bytes() {
    let long =
        SMALL.replace("epochs = \"${params.epochs}\"\n\n[stages.retrained]", "epochs = 60\nRUN\n\n[stages.retrained]");
    let whole = Place::new(&long.replace("RUN", ""));
    good(whole.run(&["run", "r.toml", "original"]));
    let place = Place::new(&long.replace("RUN", "run = { timeout = 0.05, checkpoint_every = { epochs = 7 } }"));
    let mut stopped = 0;
    loop {
        let run = place.run(&["run", "r.toml", "original"]);
        if run.status.success() {
            break;
        }
        assert!(err(&run).contains("stopped after 0.05 s, its `timeout`; its state is saved"), "{}", err(&run));
        stopped += 1;
        assert!(stopped < 1000, "it never gets on");
    }
    assert!(stopped > 0, "the test needs a slower stage");
    assert_eq!(place.artifacts(), whole.artifacts());
}

#[test]
fn a_full_disk_names_the_path_and_loses_nothing() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml", "split"]));
    // Files may not grow beyond 8 blocks of 512 bytes: the model fits no more, what is smaller does.
    let script = format!("trap '' XFSZ; ulimit -f 8; exec {} run r.toml", env!("CARGO_BIN_EXE_recant"));
    let full = Command::new("sh").args(["-c", &script]).current_dir(place.folder.path()).output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", err(&full));
    assert!(err(&full).contains("could not write `") && err(&full).contains("artifact.safetensors"), "{}", err(&full));
    let temp = std::fs::read_dir(place.folder.path().join(".recant/temp")).unwrap().count();
    assert_eq!(temp, 0, "half-written files are gone");
    assert!(out(&good(place.run(&["store", "verify"]))).contains("0 damaged"));
    good(place.run(&["run", "r.toml"]));
}

#[test]
fn collection_takes_the_cheap_first_and_never_what_a_run_needs() {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml"]));
    let before = place.artifacts();
    let dry = out(&good(place.run(&["store", "gc", "--max-size", "0B"])));
    assert!(dry.contains("nothing was removed, say --yes"), "{dry}");
    assert_eq!(place.artifacts(), before);
    // Someone at work on the original.
    let claim = claim_of(&place, "original");
    std::fs::write(&claim, "elsewhere\nboot\nspace\n1\n1").unwrap();
    let json = out(&good(place.run(&["store", "gc", "--max-size", "0B", "--yes", "--json"])));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["results"].as_array().unwrap().len(), before.len() - 1, "{json}");
    let dear = |it: &serde_json::Value| it["seconds"].as_f64().unwrap() / it["bytes"].as_f64().unwrap();
    let order: Vec<f64> = json["results"].as_array().unwrap().iter().map(dear).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(objects(place.folder.path()), [object(&place, "original")]);
    std::fs::remove_file(claim).unwrap();
    good(place.run(&["run", "r.toml"]));
    assert_eq!(place.artifacts(), before);
    let none = out(&good(place.run(&["store", "gc", "--older-than", "1h", "--yes"])));
    assert!(none.starts_with("0 results"), "{none}");
    let wrong = place.run(&["store", "gc", "--max-size", "10 gigs"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
}

#[test]
fn the_history_says_what_ran_and_survives_a_torn_line() {
    let place = Place::new(SMALL);
    assert!(out(&good(place.run(&["runs"]))).contains("nothing ran"));
    good(place.run(&["run", "r.toml"]));
    good(place.run(&["run", "r.toml"]));
    let path = place.folder.path().join(".recant/runs.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{whole}{}", &whole[..whole.len() / 2])).unwrap();
    let lines = out(&good(place.run(&["runs", "--json"])));
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "a run with nothing to do is not history");
    assert_eq!((lines[0]["ran"].as_array().unwrap().len(), &lines[0]["exit"]), (9, &serde_json::json!(0)));
    assert!(out(&good(place.run(&["runs"]))).contains("9 ran, 0 cached, 0 failed, 0 skipped, exit 0"));
}
