//! Disks that are full, read only, elsewhere, and paths that are no texts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::damage::ordinary;
use crate::kill;
use crate::support::place::{Place, err, good, out};

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn a_full_disk_says_how_much_is_to_be_written_and_how_much_is_free() {
    let place = Place::new(&kill::RECIPE.replace("hidden = [8]", "hidden = [4000]"));
    let disk = place.folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    // A disk of half a megabyte, in a namespace of its own.
    let mount = "mount -t tmpfs -o size=500k none disk && exec \"$@\"";
    let within = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount, "sh"]).args(args).current_dir(place.folder.path());
        command.env_remove("RECANT_STORE").env_remove("RECANT_DATA");
        command
    };
    if !within(&["true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let script = format!(
        "{} run r.toml --store disk; echo \"exit $?\"; ls disk/temp; {0} store verify --store disk",
        env!("CARGO_BIN_EXE_recant")
    );
    let full = within(&["sh", "-c", &script]).output().unwrap();
    assert!(out(&full).contains("exit 1\n"), "{}", err(&full));
    // The images and the split fit, the models do not.
    assert!(err(&full).contains("FAILED   original: could not write `"), "{}", err(&full));
    assert!(err(&full).contains(" MB are to be written, ") && err(&full).contains(" MB are free"), "{}", err(&full));
    assert!(err(&full).contains("FAILED   retrained") && err(&full).contains("done     split"), "{}", err(&full));
    assert!(out(&full).contains("2 results sound, 0 damaged") && !out(&full).contains("new."), "{}", out(&full));
}

#[test]
fn a_run_that_will_not_fit_by_what_earlier_ones_took_does_not_begin() {
    if !cfg!(debug_assertions) {
        return;
    }
    let place = Place::new(kill::RECIPE);
    good(place.run(&["run", "r.toml"]));
    let other = ["--set", "stages.original.seed=5"];
    let free = |args: &[&str], bytes: &str| place.command(args).args(other).env("RECANT_FREE", bytes).output().unwrap();
    let run = free(&["run", "r.toml"], "1000");
    assert_eq!(run.status.code(), Some(1));
    let text = err(&run);
    let named = [".recant", "the disk is too full", "0.001 MB are free", "would take 0.0"];
    assert!(named.iter().all(|words| text.contains(words)), "{text}");
    assert!(!text.contains("running"), "{text}");
    let plan = out(&good(free(&["plan", "r.toml"], "1000")));
    assert!(plan.contains(" on disk of 0.001 MB free"), "{plan}");
    // What is there needs no room, and what never ran is not known to need any.
    good(place.command(&["run", "r.toml"]).env("RECANT_FREE", "1000").output().unwrap());
    good(free(&["run", "r.toml"], "100000000"));
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn a_store_that_may_only_be_read_shows_what_it_has_and_says_what_it_cannot_write() {
    let place = Place::new(kill::RECIPE);
    good(place.run(&["run", "r.toml"]));
    let Some(mut show) = ordinary(&place, &["run", "r.toml"]) else {
        eprintln!("skipped: no ordinary user here");
        return;
    };
    let lock = |mode: u32| {
        let mut all = vec![place.folder.path().join(".recant")];
        while let Some(path) = all.pop() {
            if path.is_dir() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    };
    lock(0o555);
    let shown = good(show.output().unwrap());
    assert!(out(&shown).contains("average gap") && out(&shown).contains("nothing to run"), "{}", out(&shown));
    for args in [&["plan", "r.toml"][..], &["report", "r.toml"], &["store", "verify"], &["runs"], &["store", "size"]] {
        good(ordinary(&place, args).unwrap().output().unwrap());
    }
    let other = ["run", "r.toml", "--set", "stages.original.seed=5"];
    let run = ordinary(&place, &other).unwrap().output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(err(&run).contains("could not ") && err(&run).contains(".recant"), "{}", err(&run));
    assert!(err(&run).contains("Permission denied"), "{}", err(&run));
    lock(0o755);
    good(ordinary(&place, &other).unwrap().output().unwrap());
}

#[test]
fn paths_need_not_be_texts() {
    for folder in [&b"with spaces and \"quotes\""[..], b"\xff\xfe not a text", "ümläut\nand a line".as_bytes()] {
        let place = Place::new("");
        let inner = place.folder.path().join(OsStr::from_bytes(folder));
        fs::create_dir(&inner).unwrap();
        let recipe = inner.join(OsStr::from_bytes(b"r \xfe.toml"));
        fs::write(&recipe, kill::RECIPE).unwrap();
        let run = |action: &[&str], here: bool| {
            let mut command = place.command(action);
            if here {
                command.current_dir(&inner).env("RECANT_STORE", OsStr::from_bytes(b"st\xffre"));
            } else {
                command.arg("--store").arg(inner.join(OsStr::from_bytes(b"st\xffre")));
            }
            if action[0] != "store" && action[0] != "runs" {
                command.arg(&recipe);
            }
            good(command.output().unwrap())
        };
        run(&["run"], true);
        assert!(out(&run(&["run"], false)).contains("nothing to run: 11 stages cached"));
        run(&["plan"], false);
        run(&["report"], true);
        assert!(out(&run(&["store", "verify"], false)).contains("11 results sound, 0 damaged"));
        assert!(out(&run(&["store", "gc", "--max-size", "0B", "--yes"], true)).contains("11 results"));
        assert_eq!(out(&run(&["runs", "--json"], false)).lines().count(), 1);
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn the_folder_for_temporary_files_may_lie_on_another_disk() {
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: there is no /dev/shm");
        return;
    };
    let place = Place::new(kill::RECIPE);
    good(place.command(&["run", "r.toml"]).env("TMPDIR", elsewhere.path()).output().unwrap());
    assert!(place.artifacts() == *kill::whole());
    // The other way round: a store there, temporary files here.
    let store = elsewhere.path().join("store");
    let store = store.to_str().unwrap();
    good(place.run(&["run", "r.toml", "--store", store]));
    assert!(out(&good(place.run(&["store", "verify", "--store", store]))).contains("11 results sound"));
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1, "nothing else is left there");
}

/// What one user makes, others may read where the user's mask allows it.
#[test]
fn others_may_read_a_shared_store() {
    let place = Place::new(kill::RECIPE);
    let script = format!("umask 022; exec {} run r.toml", env!("CARGO_BIN_EXE_recant"));
    good(Command::new("sh").args(["-c", &script]).current_dir(place.folder.path()).output().unwrap());
    let mut all = vec![place.folder.path().join(".recant")];
    while let Some(path) = all.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o755 } else { 0o644 }, "{}", path.display());
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}
