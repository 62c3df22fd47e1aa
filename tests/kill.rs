//! Whatever dies, whenever: what is visible is whole, and the plain rerun ends with the bytes of a run that nothing
//! stopped.

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use recant::rng::Rng;
use recant::store::POINTS;

use crate::support::place::{Place, err, good, object, objects, out};

/// Training with a checkpoint every step, stages side by side, a table.
pub const RECIPE: &str = r#"recipe = 1

[defaults]
batch = 32

[stages.images]
kind = "dataset"
source = "digits"
train_limit = 100
test_limit = 60

[stages.split]
kind = "split"
data = "images"
forget = { share = 0.2 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "mlp", hidden = [8] }
epochs = 3
run = { checkpoint_every = { steps = 1 } }

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "mlp", hidden = [8] }
epochs = 2
optimizer = { name = "adam" }
lr = 0.01
run = { checkpoint_every = { steps = 2 } }

[stages.pushed]
kind = "unlearn"
method = "neggrad_plus"
model = "original"
data = "split"
epochs = 2
run = { checkpoint_every = { steps = 1 } }

[stages.taught]
kind = "unlearn"
method = "bad_teaching"
model = "original"
data = "split"

[stages.table]
kind = "compare"
data = "split"
reference = "retrained"
models = ["original", "pushed", "taught"]
"#;

/// The bytes of a run that nothing stopped.
pub fn whole() -> &'static BTreeMap<String, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let place = Place::new(RECIPE);
        good(place.run(&["run", "r.toml"]));
        assert_eq!(place.artifacts().len(), 11);
        place.artifacts()
    })
}

const EVALUATIONS: [&str; 4] =
    ["evaluate(original, split)", "evaluate(retrained, split)", "evaluate(pushed, split)", "evaluate(taught, split)"];

/// Files that a store with finished work alone has no use for.
pub fn strays(place: &Place) -> Vec<PathBuf> {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let place = path.display().to_string();
            let known = ["/artifact.safetensors", "/manifest.json"].iter().any(|end| place.ends_with(end));
            if path.is_dir() && !place.contains("/temp/") {
                files(&path, found);
            } else if !(known && place.contains("/.recant/objects/")) {
                found.push(path);
            }
        }
    }
    let root = place.folder.path().join(".recant");
    let mut found = Vec::new();
    files(&root, &mut found);
    found.retain(|path| *path != root.join("format") && *path != root.join("runs.jsonl"));
    found
}

/// What must hold after anything died: what is visible verifies, the plain rerun ends as if nothing had been, and nothing
/// is left but what it made.
pub fn recovers(place: &Place, how: &str, quarantined: bool) {
    let verify = place.run(&["store", "verify"]);
    assert_eq!(verify.status.code(), Some(0), "{how}: {}{}", out(&verify), err(&verify));
    let again = place.run(&["run", "r.toml"]);
    assert_eq!(again.status.code(), Some(0), "{how}: {}", err(&again));
    assert!(!err(&again).contains("warning"), "{how}: {}", err(&again));
    assert!(out(&again).contains("average gap"), "{how}: {}", out(&again));
    let plain = place.artifacts();
    assert!(plain.iter().all(|(print, bytes)| whole()[print] == *bytes), "{how}: other bytes");
    // Where a finished store was hit, results that nothing needs any more stay away until they are asked for.
    let finished = quarantined || how.starts_with("gc.");
    if finished {
        let all = ["images", "split", "original", "retrained", "pushed", "taught", "table"];
        good(place.run(&[&["run", "r.toml"], &all[..], &EVALUATIONS].concat()));
    }
    assert!(place.artifacts() == *whole(), "{how}: missing\n{}", err(&again));
    good(place.run(&["store", "gc", "--yes"]));
    let strays =
        strays(place).into_iter().filter(|path| !quarantined || !path.to_string_lossy().contains("/quarantine/"));
    let strays: Vec<PathBuf> = strays.collect();
    assert!(strays.is_empty(), "{how}: {strays:?}");
}

/// A run, dead after that time or done before, by a signal to the process or to its group.
fn killed(place: &Place, after: Duration, group: bool) -> bool {
    let mut command = place.command(&["run", "r.toml"]);
    if group {
        let run = command;
        command = Command::new("sh");
        command.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(run.get_program()).args(run.get_args());
        command.current_dir(place.folder.path()).env_remove("RECANT_STORE").env_remove("RECANT_DATA");
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    std::thread::sleep(after);
    if group {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
    } else {
        let _ = child.kill();
    }
    child.wait().unwrap().signal() == Some(9)
}

/// The program with a crash at a point, and whether it crashed there.
fn crashed(place: &Place, args: &[&str], point: &str) -> (bool, Output) {
    let output = place.command(args).env("RECANT_CRASH", point).output().unwrap();
    (output.status.signal() == Some(6), output)
}

/// Something that leaves a claim of a dead process behind.
fn with_dead_claims() -> Place {
    let place = Place::new(RECIPE);
    assert!(crashed(&place, &["run", "r.toml"], "claim.linked:2").0);
    place
}

/// All done, an artifact and the history damaged.
fn with_damage() -> Place {
    let place = Place::new(RECIPE);
    good(place.run(&["run", "r.toml"]));
    let path = object(&place, "original").join("artifact.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for stage in ["pushed", "evaluate(pushed, split)", "table"] {
        std::fs::remove_dir_all(object(&place, stage)).unwrap();
    }
    let history = place.folder.path().join(".recant/runs.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    std::fs::write(&history, text.replacen("\"ran\"", "\"rin\"", 1)).unwrap();
    place
}

/// All done, and a run of something else that died.
fn with_leftovers() -> Place {
    let place = with_dead_claims();
    assert!(crashed(&place, &["run", "r.toml"], "file.synced:5").0);
    good(place.run(&["run", "r.toml"]));
    assert!(crashed(&place, &["run", "r.toml", "--set", "stages.images.test_limit=50"], "save.manifest").0);
    place
}

/// Where a point is passed: (place, command, whether something is in quarantine afterwards)
fn scene(point: &str) -> (Place, &'static [&'static str], bool) {
    match point.split('.').next().unwrap() {
        "take" => (with_dead_claims(), &["run", "r.toml"], false),
        "aside" => (with_damage(), &["run", "r.toml"], true),
        "verify" => (with_damage(), &["store", "verify"], true),
        "gc" => (with_leftovers(), &["store", "gc", "--max-size", "0B", "--yes"], false),
        _ => (Place::new(RECIPE), &["run", "r.toml"], false),
    }
}

/// Work by several hands: the trials mostly wait for the disk.
pub fn each<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

/// Does the program die at that passage of the point? Then all is well afterwards.
fn dies_well(point: &str, count: usize) -> bool {
    let (place, args, mut quarantined) = scene(point);
    let at = format!("{point}:{count}");
    let (died, output) = crashed(&place, args, &at);
    if !died {
        assert!(matches!(output.status.code(), Some(0 | 3)), "{at}: {}", err(&output));
    }
    if point.starts_with("verify") || point.starts_with("aside") {
        // What was not found before the crash is found now.
        let verify = place.run(&["store", "verify"]);
        assert!(matches!(verify.status.code(), Some(0 | 3)), "{at}: {}", err(&verify));
        quarantined = true;
    }
    recovers(&place, &at, quarantined);
    died
}

#[test]
fn a_crash_between_any_two_file_operations_loses_nothing() {
    if !cfg!(debug_assertions) {
        return;
    }
    whole();
    each(POINTS, |point| assert!(dies_well(point, 1), "nothing passes `{point}`"));
}

/// Errors of the operating system: EIO, ENOSPC, EROFS.
const ERRORS: [i32; 3] = [5, 28, 30];

fn fails_well(point: &str, count: usize, error: i32) {
    let (place, args, quarantined) = scene(point);
    let at = format!("{point}:{count}={error}");
    let output = place.command(args).env("RECANT_FAIL", &at).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{at}: {}", err(&output));
    assert!(!err(&output).contains("panicked") && !err(&output).contains("a bug in"), "{at}: {}", err(&output));
    if output.status.code() == Some(1) {
        let named = err(&output).contains("could not ") && err(&output).contains(".recant");
        assert!(named, "{at} names no path: {}", err(&output));
    }
    let quarantined = quarantined || point == "load.read";
    if quarantined {
        place.run(&["store", "verify"]);
    }
    recovers(&place, &at, quarantined);
}

#[test]
fn an_error_of_the_disk_at_any_point_is_named_and_loses_nothing() {
    if !cfg!(debug_assertions) {
        return;
    }
    whole();
    let trials: Vec<(usize, &&str)> = POINTS.iter().enumerate().collect();
    each(&trials, |(number, point)| fails_well(point, 1, ERRORS[number % ERRORS.len()]));
}

/// Kills at random instants until that many hit a run at work. (kills of a process, kills of a group, crashes at a point)
fn at_random(kills: usize, seed: u64) -> [usize; 3] {
    let begun = Instant::now();
    let place = Place::new(RECIPE);
    good(place.run(&["run", "r.toml"]));
    let takes = begun.elapsed().as_secs_f64();
    whole();
    let hits = Mutex::new([0; 3]);
    let trials: Vec<u64> = (0..10 * kills as u64).collect();
    each(&trials, |&trial| {
        let mut draws = Rng::new(seed).fork(&format!("trial {trial}"));
        let mut draw = |below: usize| draws.below(below as u64) as usize;
        if hits.lock().unwrap().iter().sum::<usize>() >= kills {
            return;
        }
        let place = Place::new(RECIPE);
        let mut how = format!("seed {seed}, trial {trial}");
        // One run after the other dies, on what the last one left.
        for _ in 0..=draw(3) {
            let kind = draw(if cfg!(debug_assertions) { 3 } else { 2 });
            let hit = if kind == 2 {
                let plain: Vec<&&str> = POINTS.iter().filter(|point| scene_is_plain(point)).collect();
                let at = format!("{}:{}", plain[draw(plain.len())], 1 + draw(12));
                how += &format!(", crash at {at}");
                crashed(&place, &["run", "r.toml"], &at).0
            } else {
                let after = Duration::from_secs_f64(takes * 1.1 * draw(10_000) as f64 / 1e4);
                how += &format!(", {} dead after {after:?}", ["process", "group"][kind]);
                killed(&place, after, kind == 1)
            };
            hits.lock().unwrap()[kind] += usize::from(hit);
        }
        recovers(&place, &how, false);
    });
    hits.into_inner().unwrap()
}

fn scene_is_plain(point: &str) -> bool {
    !["aside", "verify", "gc"].contains(&point.split('.').next().unwrap())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |said| said.parse().unwrap())
}

#[test]
fn kills_at_random_instants_lose_nothing() {
    at_random(12, number("RECANT_SEED", 1));
}

/// `cargo test kill:: -- --ignored --nocapture`; RECANT_KILLS and RECANT_SEED say how many and which.
#[test]
#[ignore = "takes one to twelve minutes"]
#[expect(clippy::print_stderr, reason = "says the seed, and what was done")]
fn a_thousand_kills_at_random_instants_lose_nothing() {
    let seed = number("RECANT_SEED", u64::from(std::process::id()));
    let kills = number("RECANT_KILLS", 1000) as usize;
    eprintln!("RECANT_SEED={seed}");
    let begun = Instant::now();
    let [process, group, points] = at_random(kills, seed);
    let seconds = begun.elapsed().as_secs();
    eprintln!("{process} kills of the process, {group} of its group, {points} crashes at points, in {seconds} s");
}

/// Every point at every passage that a run makes.
#[test]
#[ignore = "takes minutes"]
#[expect(clippy::print_stderr, reason = "says what was done")]
fn a_crash_and_an_error_at_every_passage_of_every_point_lose_nothing() {
    whole();
    let total = AtomicUsize::new(0);
    each(POINTS, |point| {
        let mut count = 1;
        while dies_well(point, count) {
            fails_well(point, count, ERRORS[count % ERRORS.len()]);
            count += 1;
        }
        total.fetch_add(count - 1, Ordering::Relaxed);
    });
    eprintln!("{} passages of {} points", total.into_inner(), POINTS.len());
}

#[test]
fn a_release_build_has_no_points_to_die_at() {
    let text = include_str!("../src/store/fault.rs");
    for function in ["fn setting", "fn point"] {
        let body = text.split(function).nth(1).unwrap().split("\n}").next().unwrap();
        assert!(body.contains("cfg!(debug_assertions)"), "{function}");
    }
    // In a release build this is asked of the program itself.
    let place = Place::new(RECIPE);
    let run = place.command(&["run", "r.toml", "images"]).env("RECANT_CRASH", "prepare.done").output().unwrap();
    assert_eq!(run.status.signal().is_some(), cfg!(debug_assertions));
    let program = std::fs::read(env!("CARGO_BIN_EXE_recant")).unwrap();
    for name in ["RECANT_CRASH", "RECANT_FAIL", "RECANT_LAPSE", "RECANT_HOST", "RECANT_FREE"] {
        let known = program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        assert_eq!(known, cfg!(debug_assertions), "{name}");
    }
    assert_eq!(objects(place.folder.path()).len(), usize::from(!cfg!(debug_assertions)));
}
