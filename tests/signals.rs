//! A cluster's warnings: SIGTERM and SIGUSR1 end a run within five seconds, whatever it is at, training saves its state,
//! and the plain rerun goes on.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::place::{Place, err, good};

/// What a cluster leaves at least.
const GRACE: Duration = Duration::from_secs(5);

/// What the long stages stand on, made beforehand.
const GROUND: &str = r#"recipe = 1

[defaults]
batch = 16

[stages.images]
kind = "dataset"
source = "digits"
validation = 0.1

[stages.split]
kind = "split"
data = "images"
forget = { share = 0.5 }

[stages.original]
kind = "train"
data = "images"
arch = { name = "resnet18", width = 16 }
epochs = 1
batch = 512

[stages.retrained]
kind = "train"
data = "split"
on = "retain"
arch = { name = "resnet18", width = 16 }
epochs = 1
batch = 512

[stages.features]
kind = "features"
model = "original"
data = "split"
"#;

const FOREVER: &str = "epochs = 1000000\n";

/// A stage that would go on for hours. (name, its table, whether it keeps what it has done)
fn stages() -> Vec<(String, String, bool)> {
    let mut all: Vec<(&str, String, bool)> = vec![
        ("trained", format!("kind = \"train\"\ndata = \"images\"\narch = {{ name = \"mlp\" }}\n{FOREVER}"), true),
        (
            "warming",
            "kind = \"train\"\ndata = \"images\"\narch = { name = \"mlp\" }\nepochs = 1000000\n\
             schedule = { cosine = { warmup = 1.0 } }\n"
                .to_owned(),
            true,
        ),
        (
            "simclr",
            format!("kind = \"pretrain\"\nmethod = \"simclr\"\ndata = \"images\"\narch = {{ name = \"mlp\" }}\n{FOREVER}"),
            true,
        ),
        ("arpl", format!("kind = \"augment\"\nmethod = \"arpl\"\ndata = \"split\"\narch = {{ name = \"mlp\" }}\n{FOREVER}"), true),
        ("drawing", "kind = \"augment\"\nmethod = \"arpl\"\ndata = \"split\"\narch = { name = \"mlp\" }\nepochs = 1\ncount = 1000000\n".to_owned(), true),
        ("opengan", format!("kind = \"augment\"\nmethod = \"opengan\"\nfeatures = \"features\"\nselect_every = 0\n{FOREVER}"), true),
        ("simple", "kind = \"augment\"\nmethod = \"simple\"\ndata = \"split\"\ncount = 5000000\n".to_owned(), false),
        ("salient", "kind = \"saliency\"\nmodel = \"original\"\ndata = \"split\"\nbatch = 1\n".to_owned(), false),
        (
            "measured",
            "kind = \"evaluate\"\nmodel = \"original\"\ndata = \"split\"\nreference = \"retrained\"\nmetrics = [\"tsne\", \"cka\", \
             \"mia_confidence\", \"mia_probabilities\", \"relearn\", \"zrf\"]\n"
                .to_owned(),
            false,
        ),
    ];
    for method in recant::method::METHODS {
        let name = method.entry.name;
        if name == recant::method::NOTHING {
            continue;
        }
        let table = format!("kind = \"unlearn\"\nmethod = \"{name}\"\nmodel = \"original\"\ndata = \"split\"\n");
        let trains = method.entry.fields.iter().any(|field| field.name == "epochs");
        let long = if trains { FOREVER } else { "batch = 1\n" };
        all.push((name, table + long, trains));
    }
    all.into_iter().map(|(name, table, keeps)| (name.to_owned(), table, keeps)).collect()
}

/// A run that tells events, line by line.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn new(place: &Place, stage: &str) -> Self {
        let mut command = place.command(&["run", "r.toml", stage, "--json", "--jobs", "1"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// The first event of that kind about the stage that is wanted.
    fn event(&self, kind: &str, stage: &str, wanted: fn(&Value) -> bool) -> Value {
        loop {
            let line =
                self.lines.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{stage}: no {kind}"));
            let event: Value = serde_json::from_str(&line).unwrap();
            assert!(event["event"] != "failed" && event["event"] != "finished", "{stage}: {line}");
            if event["event"] == kind && event["stage"] == stage && wanted(&event) {
                return event;
            }
        }
    }

    /// Seconds from a signal to the end.
    fn end(mut self, signal: &str, code: i32) -> f64 {
        let id = self.child.id().to_string();
        let sent = Instant::now();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let seconds = sent.elapsed();
        let output = self.child.wait_with_output().unwrap();
        assert_eq!(status.code(), Some(code), "{}", err(&output));
        assert!(err(&output).contains("goes on from here"), "{}", err(&output));
        assert!(seconds < GRACE, "{signal}: {seconds:?}");
        seconds.as_secs_f64()
    }
}

/// Every kind of long work, stopped twice: by the one signal at its beginning, by the other when it went on.
#[test]
#[expect(clippy::print_stderr, reason = "says the longest times")]
fn warnings_end_every_kind_of_long_work_within_seconds_and_it_goes_on() {
    let stages = stages();
    let tables = stages.iter().map(|(name, table, _)| format!("\n[stages.{name}]\n{table}"));
    let place = Place::new(&(GROUND.to_owned() + &tables.collect::<String>()));
    good(place.run(&["run", "r.toml", "original", "retrained", "split", "features"]));
    let partial = |print: &Value| {
        let print = print.as_str().unwrap();
        place.folder.path().join(".recant/partial").join(format!("{print}.checkpoint"))
    };
    let plan = good(place.run(&["plan", "r.toml", "--json"]));
    let plan = String::from_utf8(plan.stdout).unwrap();
    let plan: Vec<Value> = plan.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut times = Vec::new();
    for (name, _, keeps) in &stages {
        let print = &plan.iter().find(|step| step["stage"] == **name).unwrap()["fingerprint"];
        let run = Run::new(&place, name);
        run.event("started", name, |_| true);
        if *keeps {
            // A step of training, not of a look at the data before it.
            run.event("progress", name, |event| event["loss"].is_number());
        }
        std::thread::sleep(Duration::from_millis(300));
        let first = run.end("-TERM", 143);
        assert_eq!(partial(print).exists(), *keeps, "{name}");
        let run = Run::new(&place, name);
        let begun = run.event("started", name, |_| true);
        assert_eq!(begun["resumed_at"].as_u64().is_some_and(|step| step > 0), *keeps, "{name}: {begun}");
        std::thread::sleep(Duration::from_millis(150));
        times.push((first.max(run.end("-USR1", 75)), name));
    }
    times.sort_by(|a, b| b.0.total_cmp(&a.0));
    eprintln!("seconds from the signal to the end: {:.3?}", &times[..5]);
}

/// Before stages run there is nothing to save: the program ends at once, with the same exit codes.
#[test]
fn a_warning_while_planning_ends_the_program_at_once() {
    for (signal, code) in [("-TERM", 143), ("-USR1", 75), ("-INT", 130)] {
        // A recipe that is never read to its end.
        let place = Place::new("");
        let path = place.folder.path().join("r.toml");
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut child = place.command(&["run", "r.toml"]).stderr(Stdio::null()).spawn().unwrap();
        // Opened for writing once the program reads.
        let _writer = std::fs::File::options().write(true).open(&path).unwrap();
        let sent = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(sent.elapsed() < GRACE);
    }
}

/// Data sets that take a while to hash, read and keep. (name of the data set, its folder)
fn large(folder: &Path) -> Vec<(&'static str, &'static str)> {
    // Files with holes: zeros, so images of the first class.
    let hollow = |path: PathBuf, bytes: u64| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
    };
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        hollow(folder.join("cifar").join(format!("{name}.bin")), 10_000 * 3073);
    }
    let batch = crate::data::pickled(&vec![0; 10_000 * 3072], "labels", &[1; 10_000]);
    std::fs::create_dir_all(folder.join("snake")).unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        std::fs::write(folder.join("snake").join(name), &batch).unwrap();
    }
    for set in ["stl", "more"] {
        for (part, images) in [("train", 5000), ("test", 8000)] {
            hollow(folder.join(format!("{set}/{part}_X.bin")), images * 27_648);
            std::fs::write(folder.join(format!("{set}/{part}_y.bin")), vec![1; images as usize]).unwrap();
        }
    }
    hollow(folder.join("more/unlabeled_X.bin"), 40_000 * 27_648);
    let picture = image::RgbImage::from_fn(256, 256, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let class = folder.join("own/train/a");
    std::fs::create_dir_all(&class).unwrap();
    picture.save(class.join("0.png")).unwrap();
    for number in 1..1500 {
        std::fs::hard_link(class.join("0.png"), class.join(format!("{number}.png"))).unwrap();
    }
    let small = image::imageops::thumbnail(&picture, 32, 32);
    let mut png = std::io::Cursor::new(Vec::new());
    small.write_to(&mut png, image::ImageFormat::Png).unwrap();
    // What follows an image is not looked at; it makes each row another one.
    let row = |number: u32| ([png.get_ref().as_slice(), &number.to_le_bytes()].concat(), 1);
    let rows: Vec<(Vec<u8>, i64)> = (0..40_000).map(row).collect();
    std::fs::create_dir_all(folder.join("street")).unwrap();
    for part in ["train", "test"] {
        crate::data::parquet(&folder.join(format!("street/{part}-00000-of-00001.parquet")), "image", "label", &rows);
    }
    let cifar = [("cifar10", "cifar"), ("cifar10", "snake")];
    let stl = [("stl10", "stl"), ("stl10_unlabelled", "more")];
    [cifar, stl, [("folder", "own"), ("svhn", "street")]].concat()
}

#[test]
#[expect(clippy::print_stderr, reason = "says the longest time")]
fn warnings_end_the_reading_of_large_data_within_seconds() {
    let place = Place::new("");
    let mut longest = (0.0, 0, "");
    for (set, folder) in large(place.folder.path()) {
        place.write(format!(
            "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"{set}\"\npath = \"{folder}\"\n"
        ));
        let mut stopped = 0;
        for wait in [100, 300, 600, 1000, 1500, 2500] {
            let mut child = place.command(&["run", "r.toml"]).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(wait));
            let sent = Instant::now();
            assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
            let status = child.wait().unwrap();
            let seconds = sent.elapsed();
            assert!(seconds < GRACE, "{folder} after {wait} ms: {seconds:?}");
            longest = if seconds.as_secs_f64() > longest.0 { (seconds.as_secs_f64(), wait, folder) } else { longest };
            match status.code() {
                Some(143) => stopped += 1,
                // It did not yet listen.
                None => {}
                // It was done before, or has found that images lack.
                Some(_) => break,
            }
        }
        assert!(stopped > 0, "{folder} was read before it could be stopped");
    }
    eprintln!("seconds from the signal to the end, milliseconds before it, data: {longest:?}");
}
