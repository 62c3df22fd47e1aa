//! Every file of a finished store, damaged in every way: found, put aside, made again, to the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use recant::store::Store;

use crate::kill;
use crate::support::place::{Place, err, good, name, object, objects, out};

/// Tensors, records, scores and a table, with few stages.
const RECIPE: &str = r#"recipe = 1

[stages.images]
kind = "dataset"
source = "digits"
train_limit = 80
test_limit = 40

[stages.split]
kind = "split"
data = "images"
forget = { share = 0.2 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "mlp", hidden = [4] }
epochs = 1

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "mlp", hidden = [4] }
epochs = 1

[stages.table]
kind = "compare"
data = "split"
reference = "retrained"
models = ["original"]
"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    FlipFirst,
    FlipMiddle,
    FlipLast,
    Truncate,
    Empty,
    Delete,
    Swap,
    Lock,
}

const ALL: [Damage; 8] = [
    Damage::FlipFirst,
    Damage::FlipMiddle,
    Damage::FlipLast,
    Damage::Truncate,
    Damage::Empty,
    Damage::Delete,
    Damage::Swap,
    Damage::Lock,
];

/// Damages a file; its time of change stays, and where bytes are flipped its size.
fn damage(how: Damage, file: &Path, other: &Path) {
    let modified = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    let (middle, last) = (bytes.len() / 2, bytes.len() - 1);
    match how {
        Damage::FlipFirst => bytes[0] ^= 1,
        Damage::FlipMiddle => bytes[middle] ^= 4,
        Damage::FlipLast => bytes[last] ^= 1,
        Damage::Truncate => bytes.truncate(middle),
        Damage::Empty => bytes.clear(),
        Damage::Delete => return fs::remove_file(file).unwrap(),
        Damage::Swap => {
            fs::write(file, fs::read(other).unwrap()).unwrap();
            return fs::write(other, bytes).unwrap();
        }
        Damage::Lock => return fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap(),
    }
    fs::write(file, bytes).unwrap();
    fs::File::options().append(true).open(file).unwrap().set_modified(modified).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// A finished store, and the bytes in it.
fn finished() -> &'static (Place, BTreeMap<String, Vec<u8>>) {
    static FINISHED: OnceLock<(Place, BTreeMap<String, Vec<u8>>)> = OnceLock::new();
    FINISHED.get_or_init(|| {
        let place = Place::new(RECIPE);
        good(place.run(&["run", "r.toml"]));
        let artifacts = place.artifacts();
        (place, artifacts)
    })
}

fn another() -> Place {
    let place = Place::new(RECIPE);
    copy(&finished().0.folder.path().join(".recant"), &place.folder.path().join(".recant"));
    place
}

/// As an ordinary user, whom permissions bind; None where that cannot be.
pub fn ordinary(place: &Place, args: &[&str]) -> Option<Command> {
    if !root() {
        return Some(place.command(args));
    }
    let program = env!("CARGO_BIN_EXE_recant");
    let drop = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let can = Command::new("setpriv").args(drop).args([program, "--version"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let all = Command::new("chown").args(["-R", "65534:65534"]).arg(place.folder.path()).status();
    assert!(all.unwrap().success());
    let mut command = Command::new("setpriv");
    command.args(drop).arg(program).args(args).current_dir(place.folder.path());
    command.env_remove("RECANT_STORE").env_remove("RECANT_DATA").env("NO_COLOR", "1");
    Some(command)
}

fn root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    out(&id).trim() == "0"
}

/// Without what was made from it, a result is needed, so it is read.
fn drop_readers(place: &Place, fingerprint: &str) {
    for path in objects(place.folder.path()) {
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(path.join("manifest.json")).unwrap();
        let text: serde_json::Value = serde_json::from_str(&text).unwrap();
        let inputs = text["manifest"]["inputs"].as_object().unwrap();
        if inputs.values().any(|input| input == fingerprint) {
            fs::remove_dir_all(&path).unwrap();
            drop_readers(place, &name(&path));
        }
    }
}

/// Runs something as a user whom permissions bind where that matters.
fn run(place: &Place, args: &[&str], how: Damage) -> Option<Output> {
    let command = if how == Damage::Lock { ordinary(place, args)? } else { place.command(args) };
    Some({ command }.output().unwrap())
}

/// One damage to one file, met by a run and by `verify`. False where it could not be tried.
fn trial(file: &Path, how: Damage) -> bool {
    let what = format!("{how:?} of {}", file.display());
    let fingerprint = name(file.parent().unwrap());
    let others = |place: &Place| {
        let all = objects(place.folder.path()).into_iter().map(|path| path.join(file.file_name().unwrap()));
        all.filter(|path| !path.ends_with(file)).collect::<Vec<PathBuf>>()
    };
    // Found by a run that reads it.
    let place = another();
    let path = place.folder.path().join(".recant").join(file);
    drop_readers(&place, &fingerprint);
    let other = others(&place).first().cloned();
    let Some(other) = other.or_else(|| (how != Damage::Swap).then(PathBuf::new)) else { return false };
    damage(how, &path, &other);
    let Some(found) = run(&place, &["run", "r.toml"], how) else { return false };
    assert_eq!(found.status.code(), Some(0), "{what}: {}", err(&found));
    assert!(err(&found).contains("warning: ") && err(&found).contains("made again"), "{what}: {}", err(&found));
    let aside = fs::read_dir(place.folder.path().join(".recant/quarantine")).unwrap();
    let aside = aside.filter(|entry| name(&entry.as_ref().unwrap().path()).starts_with(&fingerprint)).count();
    assert_eq!(aside, 1, "{what}: not put aside");
    assert!(place.artifacts() == finished().1 || how == Damage::Swap, "{what}: other bytes");
    // Found by `verify`, once.
    let place = another();
    damage(how, &place.folder.path().join(".recant").join(file), &others(&place)[0]);
    let found = run(&place, &["store", "verify"], how).unwrap();
    let count = if how == Damage::Swap { 2 } else { 1 };
    assert_eq!(found.status.code(), Some(3), "{what}: {}", out(&found));
    assert!(out(&found).contains(&format!(" {count} damaged")) && out(&found).contains(&fingerprint), "{what}");
    assert_eq!(run(&place, &["store", "verify"], how).unwrap().status.code(), Some(0), "{what}");
    assert_eq!(run(&place, &["run", "r.toml", "original", "table"], how).unwrap().status.code(), Some(0), "{what}");
    good(place.run(&["run", "r.toml", "images", "split", "original", "retrained"]));
    for (print, bytes) in place.artifacts() {
        assert!(finished().1[&print] == bytes, "{what}: {print} came out differently");
    }
    true
}

#[test]
#[expect(clippy::print_stderr, reason = "says what could not be tried")]
fn every_damage_to_every_file_of_a_result_is_found_and_made_again() {
    let root = finished().0.folder.path().join(".recant");
    let of = |path: PathBuf| ["artifact.safetensors", "manifest.json"].map(|file| path.join(file));
    let files = objects(finished().0.folder.path()).into_iter().flat_map(of);
    let trials: Vec<(PathBuf, Damage)> =
        files.flat_map(|file| ALL.map(|how| (file.strip_prefix(&root).unwrap().to_owned(), how))).collect();
    assert_eq!(trials.len(), 7 * 2 * ALL.len());
    let skipped = AtomicUsize::new(0);
    kill::each(&trials, |(file, how)| {
        skipped.fetch_add(usize::from(!trial(file, *how)), Ordering::Relaxed);
    });
    let skipped = skipped.into_inner();
    if skipped > 0 {
        eprintln!("skipped {skipped} of {} trials: no ordinary user here, or nothing to swap with", trials.len());
    }
    assert!(skipped <= 7 * 2 + 2, "only locked files, and swaps without a partner, may be skipped");
}

#[test]
fn a_damaged_checkpoint_is_found_and_the_stage_begins_again() {
    let recipe = kill::RECIPE;
    let point = [("RECANT_CRASH", "file.moved:8")];
    for how in ALL {
        let place = Place::new(recipe);
        // Two stages of one shape at work at once, each with a checkpoint.
        place.command(&["run", "r.toml", "--jobs", "3"]).envs(point).output().unwrap();
        let partial = place.folder.path().join(".recant/partial");
        let mut found: Vec<PathBuf> = fs::read_dir(&partial).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        // One whose result is there is on its way out.
        let done: Vec<String> = objects(place.folder.path()).iter().map(|path| name(path)).collect();
        found.retain(|path| !done.contains(&path.file_stem().unwrap().to_string_lossy().into_owned()));
        if !cfg!(debug_assertions) {
            return;
        }
        assert!(!found.is_empty(), "{how:?}: no stage was at work");
        let own = name(&found[0]);
        let other = found.get(1).cloned().unwrap_or_else(|| {
            let path = partial.join("00000000000000000000000000000000.checkpoint");
            fs::copy(&found[0], &path).unwrap();
            path
        });
        if how == Damage::Swap && name(&other).starts_with("0000") {
            continue;
        }
        damage(how, &found[0], &other);
        let Some(run) = run(&place, &["run", "r.toml"], how) else { continue };
        assert_eq!(run.status.code(), Some(0), "{how:?}: {}", err(&run));
        let warned = err(&run).contains("warning: ") && err(&run).contains("the stage begins again");
        assert_eq!(warned, how != Damage::Delete, "{how:?} of {own}: {}", err(&run));
        assert!(place.artifacts() == *kill::whole(), "{how:?}: other bytes");
    }
}

/// Sealed and of the right stage, but not of this network, or of more steps than there are.
#[test]
fn a_checkpoint_that_does_not_fit_is_not_gone_on_from() {
    if !cfg!(debug_assertions) {
        return;
    }
    for way in 0..3 {
        let place = Place::new(kill::RECIPE);
        place.command(&["run", "r.toml", "original"]).env("RECANT_CRASH", "file.moved:5").output().unwrap();
        let folder = place.folder.path().join(".recant");
        let found = fs::read_dir(folder.join("partial")).unwrap().next().unwrap().unwrap().path();
        let fingerprint = found.file_stem().unwrap().to_string_lossy().into_owned();
        let store = Store::open(Some(&folder)).unwrap();
        let mut checkpoint = store.checkpoint(&fingerprint).unwrap().unwrap();
        let theta = &checkpoint.tensors["theta"];
        let other = match way {
            0 => theta.narrow(0, 0, 3).unwrap().force_contiguous().unwrap(),
            1 => theta.to_dtype(candle_core::DType::F64).unwrap(),
            _ => theta.clone(),
        };
        checkpoint.tensors.insert("theta".to_owned(), other);
        if way == 2 {
            checkpoint.record["step"] = 1_000_000.into();
        }
        store.save_checkpoint(&fingerprint, &checkpoint).unwrap();
        let run = good(place.run(&["run", "r.toml"]));
        assert!(err(&run).contains("the checkpoint does not fit the stage"), "{}", err(&run));
        assert!(err(&run).contains("the stage begins again"), "{}", err(&run));
        assert!(place.artifacts() == *kill::whole());
    }
}

#[test]
fn a_checkpoint_of_another_stage_is_not_gone_on_from() {
    if !cfg!(debug_assertions) {
        return;
    }
    // One network, one data set, other seeds: nothing but the fingerprint tells their checkpoints apart.
    let place = Place::new(kill::RECIPE);
    let seeds = ["1", "2"].map(|seed| {
        let set = format!("stages.original.seed={seed}");
        let mut command = place.command(&["run", "r.toml", "original", "--set", &set]);
        command.env("RECANT_CRASH", "file.moved:5").output().unwrap();
        set
    });
    let partial = place.folder.path().join(".recant/partial");
    let found: Vec<PathBuf> = fs::read_dir(&partial).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [a, b] = found.as_slice() else { panic!("{found:?}") };
    damage(Damage::Swap, a, b);
    for set in &seeds {
        let run = good(place.run(&["run", "r.toml", "original", "--set", set]));
        assert!(err(&run).contains("it is of another stage; the stage begins again"), "{}", err(&run));
    }
    let whole = Place::new(kill::RECIPE);
    for set in &seeds {
        good(whole.run(&["run", "r.toml", "original", "--set", set]));
    }
    assert!(place.artifacts() == whole.artifacts());
}

#[test]
fn a_damaged_history_loses_what_is_damaged_and_no_more() {
    for how in ALL {
        let place = another();
        good(place.run(&["run", "r.toml", "--set", "stages.original.seed=3"]));
        let path = place.folder.path().join(".recant/runs.jsonl");
        let Some(command) = ordinary(&place, &["store", "verify"]).filter(|_| how == Damage::Lock) else {
            if how == Damage::Lock || how == Damage::Swap || how == Damage::FlipLast {
                // The last byte is an end of line: its flip takes one line, as any other.
                continue;
            }
            damage(how, &path, Path::new(""));
            let left = match how {
                Damage::Delete | Damage::Empty => 0,
                Damage::Truncate => fs::read_to_string(&path).unwrap().matches('\n').count(),
                _ => 1,
            };
            let verify = place.run(&["store", "verify"]);
            let gone = matches!(how, Damage::Delete | Damage::Empty);
            assert_eq!(verify.status.code(), Some(if gone { 0 } else { 3 }), "{how:?}: {}", out(&verify));
            assert_eq!(place.run(&["store", "verify"]).status.code(), Some(0), "{how:?}");
            assert_eq!(out(&good(place.run(&["runs", "--json"]))).lines().count(), left, "{how:?}");
            good(place.run(&["run", "r.toml", "--set", "stages.original.seed=4"]));
            assert_eq!(out(&good(place.run(&["runs", "--json"]))).lines().count(), left + 1, "{how:?}");
            continue;
        };
        damage(how, &path, Path::new(""));
        let locked = { command }.output().unwrap();
        assert!(err(&locked).contains("runs.jsonl"), "{}", err(&locked));
    }
}

#[test]
fn a_damaged_format_is_mended_and_another_one_refused() {
    let format = |place: &Place| place.folder.path().join(".recant/format");
    for words in [&b"xecant store 2\n"[..], b"recant st", b"", b"\xff\xfe"] {
        let place = another();
        fs::write(format(&place), words).unwrap();
        let verify = place.run(&["store", "verify"]);
        assert_eq!(verify.status.code(), Some(3), "{words:?}: {}{}", out(&verify), err(&verify));
        assert_eq!(place.run(&["store", "verify"]).status.code(), Some(0));
        fs::write(format(&place), words).unwrap();
        fs::remove_dir_all(object(&place, "table")).unwrap();
        let run = good(place.run(&["run", "r.toml"]));
        assert!(err(&run).contains("format` was damaged and is written again"), "{}", err(&run));
        assert!(place.artifacts() == finished().1);
    }
    let place = another();
    fs::remove_file(format(&place)).unwrap();
    assert_eq!(place.run(&["store", "verify"]).status.code(), Some(3));
    for words in ["recant store 1\n", "recant store 3\n"] {
        fs::write(format(&place), words).unwrap();
        for args in [&["run", "r.toml"][..], &["store", "verify"], &["store", "gc", "--yes"], &["runs"]] {
            let refused = place.run(args);
            assert_eq!(refused.status.code(), Some(3), "{args:?}");
            assert!(err(&refused).contains(words.trim()), "{}", err(&refused));
        }
    }
    // A folder of somebody else, who calls a file `format` too.
    let place = Place::new(RECIPE);
    fs::write(place.folder.path().join("format"), "mine").unwrap();
    assert_eq!(place.run(&["run", "r.toml", "--store", "."]).status.code(), Some(3));
    assert_eq!(fs::read_to_string(place.folder.path().join("format")).unwrap(), "mine");
}
