//! Several runs at once, on one host and on two that share a folder; collection beside them.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::kill;
use crate::support::place::{Place, err, good, object, out};

/// Long enough that runs which start together meet in it.
fn slow(epochs: usize) -> String {
    kill::RECIPE.replacen("epochs = 3\nrun = { checkpoint_every = { steps = 1 } }", &format!("epochs = {epochs}"), 1)
}

fn start(place: &Place, recipe: &str, envs: &[(&str, &str)]) -> Child {
    let mut command = place.command(&["run", recipe, "--json"]);
    command.envs(envs.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The events of that name, each with its stage.
fn told(outputs: &[Output], event: &str) -> Vec<serde_json::Value> {
    let lines = outputs.iter().flat_map(|output| out(output).lines().map(str::to_owned).collect::<Vec<_>>());
    let events = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
    events.filter(|value| value["event"] == event).collect()
}

/// Waits, but not forever; what a run tells is short enough for its pipes.
fn end(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn all(children: Vec<Child>) -> Vec<Output> {
    // Read side by side: a run whose pipe is full would stand still.
    let waiting: Vec<_> =
        children.into_iter().map(|child| std::thread::spawn(|| child.wait_with_output().unwrap())).collect();
    waiting.into_iter().map(|thread| good(thread.join().unwrap())).collect()
}

/// How often each stage was computed.
fn computed(outputs: &[Output]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in told(outputs, "finished") {
        *counts.entry(event["stage"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn two_four_and_eight_runs_of_one_recipe_compute_each_stage_once_and_the_others_wait() {
    let recipe = slow(300);
    let whole = Place::new(&recipe);
    good(whole.run(&["run", "r.toml"]));
    for count in [2, 4, 8] {
        let place = Place::new(&recipe);
        let outputs = all((0..count).map(|_| start(&place, "r.toml", &[])).collect());
        let computed = computed(&outputs);
        assert_eq!(computed.len(), 11, "{computed:?}");
        assert!(computed.values().all(|&times| times == 1), "{count} runs: {computed:?}");
        assert!(place.artifacts() == whole.artifacts());
        assert!(outputs.iter().all(|output| out(output).contains("\"event\":\"table\"")));
        let waits = told(&outputs, "waiting");
        let holders: Vec<&str> = waits.iter().filter_map(|wait| wait["holder"].as_str()).collect();
        let says = |holder: &&str| holder.starts_with("process ") && holder.contains(" on ");
        assert!(!holders.is_empty() && holders.iter().all(says), "{holders:?}");
        assert!(kill::strays(&place).is_empty(), "{:?}", kill::strays(&place));
    }
}

#[test]
fn runs_of_overlapping_recipes_share_what_they_have_in_common() {
    for many in [2, 4, 8] {
        let place = Place::new("");
        let names: Vec<String> = (0..many).map(|number| format!("r{number}.toml")).collect();
        for (number, name) in names.iter().enumerate() {
            let own = slow(200).replace("epochs = 2\nrun", &format!("epochs = 2\nseed = {number}\nrun"));
            std::fs::write(place.folder.path().join(name), own).unwrap();
        }
        let outputs = all(names.iter().map(|name| start(&place, name, &[])).collect());
        let computed = computed(&outputs);
        // `pushed` has the seed of its recipe; a table has what was measured of it.
        for (stage, times) in &computed {
            let own = stage.contains("pushed") || stage == "table";
            assert_eq!(*times, if own { many } else { 1 }, "{stage}: {computed:?}");
        }
        assert_eq!(computed.len(), 11);
    }
}

/// Waits until a claim on that stage says how far it is.
pub fn at_work(place: &Place) {
    let begun = Instant::now();
    let claims = place.folder.path().join(".recant/claims");
    let far = || {
        let entries = std::fs::read_dir(&claims).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "progress")).count() > 0
    };
    while !far() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody begins");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One run on `hosts.0` dies in a stage while another, on `hosts.1`, waits for it. (seconds from the death to the end)
fn orphaned(hosts: [&[(&str, &str)]; 2]) -> f64 {
    let recipe = slow(2500);
    let place = Place::new(&recipe);
    let run = |envs: &[(&str, &str)]| {
        let mut command = place.command(&["run", "r.toml", "original"]);
        command.envs(envs.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = run(hosts[0]);
    at_work(&place);
    let second = run(hosts[1]);
    std::thread::sleep(Duration::from_millis(300));
    first.kill().unwrap();
    let dead = Instant::now();
    // Nobody asks yet how it died, as in a container without an init.
    let output = end(second);
    let seconds = dead.elapsed().as_secs_f64();
    assert_eq!(first.wait().unwrap().signal(), Some(9), "the test needs a slower stage");
    let text = err(&good(output));
    assert!(text.contains(&format!("waiting  original: process {}", first.id())), "{text}");
    assert!(text.contains(" of 10000 is at it"), "{text}");
    assert!(text.contains("done     original"), "{text}");
    let whole = Place::new(&recipe);
    good(whole.run(&["run", "r.toml", "original"]));
    assert!(place.artifacts() == whole.artifacts());
    seconds
}

#[test]
fn waiting_ends_when_the_holder_dies() {
    orphaned([&[], &[]]);
}

const LAPSE: (&str, &str) = ("RECANT_LAPSE", "3000");

#[test]
fn on_another_host_waiting_ends_when_the_heartbeat_stands_still() {
    if !cfg!(debug_assertions) {
        return;
    }
    let seconds = orphaned([&[("RECANT_HOST", "zeus"), LAPSE], &[("RECANT_HOST", "hera"), LAPSE]]);
    assert!(seconds > 2.0, "taken over after {seconds} s: it could not know yet");
}

#[test]
fn two_hosts_that_share_a_folder_compute_each_stage_once() {
    if !cfg!(debug_assertions) {
        return;
    }
    let place = Place::new(&slow(300));
    let host = |name| start(&place, "r.toml", &[("RECANT_HOST", name), ("RECANT_LAPSE", "6000")]);
    let outputs = all(["zeus", "hera", "zeus", "ares"].map(host).into());
    let computed = computed(&outputs);
    assert!(computed.len() == 11 && computed.values().all(|&times| times == 1), "{computed:?}");
}

/// Whether processes can be put into a namespace of their own here.
fn unshare(args: &[&str]) -> Option<Command> {
    let mut command = Command::new("unshare");
    command.args(args);
    let works = Command::new("unshare").args(args).arg("true").stderr(Stdio::null()).status();
    works.is_ok_and(|status| status.success()).then_some(command)
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn containers_that_share_a_folder_compute_each_stage_once() {
    let program = env!("CARGO_BIN_EXE_recant");
    // With its own /proc, as containers have, and with that of the host, where numbers of processes mislead.
    for args in [&["--pid", "--fork", "--mount-proc"][..], &["--pid", "--fork"]] {
        let place = Place::new(&slow(300));
        let run = || {
            let mut command = unshare(args)?;
            command.args([program, "run", "r.toml", "--json"]).current_dir(place.folder.path());
            command.env_remove("RECANT_STORE").env_remove("RECANT_DATA");
            Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        };
        let Some(children) = (0..3).map(|_| run()).collect::<Option<Vec<Child>>>() else {
            eprintln!("skipped: no process namespaces here");
            return;
        };
        let outputs = all(children.into_iter().chain([start(&place, "r.toml", &[])]).collect());
        let computed = computed(&outputs);
        assert!(computed.len() == 11 && computed.values().all(|&times| times == 1), "{args:?}: {computed:?}");
    }
}

/// Many clusters hide other users' processes (`hidepid`): not to be seen is not to be dead.
#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn a_run_that_another_user_may_not_see_is_not_taken_for_dead() {
    let hidden = |words: &str| {
        let mount = "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 --clear-groups ";
        let mut command = unshare(&["--mount"])?;
        command.args(["sh", "-c", &(mount.to_owned() + words), env!("CARGO_BIN_EXE_recant")]);
        command.env_remove("RECANT_STORE").env_remove("RECANT_DATA");
        Some(command)
    };
    // As nobody, who sees this process where nothing is hidden.
    let sees = format!("test ! -e /proc/{}", std::process::id());
    if !hidden(&sees).is_some_and(|mut command| command.output().is_ok_and(|output| output.status.success())) {
        eprintln!("skipped: nobody can be hidden from here");
        return;
    }
    let place = Place::new(&slow(100_000));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.folder.path(), open).unwrap();
    let mut run = start(&place, "r.toml", &[]);
    at_work(&place);
    let mut command = hidden("\"$0\" store gc --max-size 0B").unwrap();
    let output = command.current_dir(place.folder.path()).output();
    run.kill().unwrap();
    run.wait().unwrap();
    let output = good(output.unwrap());
    assert!(out(&output).contains("0 results of 0.000 MB and 0 leftovers would go"), "{}", out(&output));
}

/// Sets what it holds when it goes, also where an assertion failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn collection_beside_runs_takes_nothing_that_they_read() {
    let place = Place::new(kill::RECIPE);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collect = || {
            let mut times = 0;
            while !stop.load(Ordering::Relaxed) {
                good(place.run(&["store", "gc", "--max-size", "0B", "--yes"]));
                times += 1;
            }
            times
        };
        let ends = Ends(&stop);
        let collectors = [scope.spawn(collect), scope.spawn(collect)];
        for _ in 0..6 {
            let outputs = all((0..3).map(|_| start(&place, "r.toml", &[])).collect());
            for output in &outputs {
                assert!(told(std::slice::from_ref(output), "warned").is_empty(), "{}", out(output));
                assert!(out(output).contains("\"event\":\"table\""), "{}", out(output));
            }
        }
        drop(ends);
        let times: usize = collectors.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(times > 6, "the collections did not run beside the runs");
    });
    good(place.run(&["run", "r.toml"]));
    assert!(place.artifacts() == *kill::whole());
}

#[test]
fn runs_that_find_the_same_damage_at_once_make_it_again_once_and_fail_nowhere() {
    let place = Place::new(&slow(30));
    good(place.run(&["run", "r.toml"]));
    let whole = place.artifacts();
    let evaluations = ["original", "retrained", "pushed", "taught"].map(|model| format!("evaluate({model}, split)"));
    let readers: Vec<&str> = evaluations.iter().map(String::as_str).chain(["table"]).collect();
    for _ in 0..5 {
        for stage in ["images", "split", "original", "retrained"] {
            let path = object(&place, stage).join("artifact.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        for stage in ["pushed", "taught"].iter().chain(&readers) {
            std::fs::remove_dir_all(object(&place, stage)).unwrap();
        }
        let outputs = all((0..4).map(|_| start(&place, "r.toml", &[])).collect());
        assert!(!told(&outputs, "warned").is_empty());
        let computed = computed(&outputs);
        assert!(computed.values().all(|&times| times == 1), "{computed:?}");
        assert!(place.artifacts() == whole);
    }
}
