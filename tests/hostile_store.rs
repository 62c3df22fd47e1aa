//! Stores that somebody else made: nothing outside of them is read, written, moved or removed, and nothing is waited for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::place::{Place, SMALL, err, good, object, objects, out};

/// A manifest with a seal that fits.
fn sealed(manifest: &str) -> String {
    format!("{{\"manifest\":{manifest},\"seal\":\"{}\"}}", blake3::hash(manifest.as_bytes()).to_hex())
}

fn manifest(fingerprint: &str, bytes: u64) -> String {
    sealed(&format!(
        "{{\"fingerprint\":{fingerprint:?},\"stage\":\"s\",\"kind\":\"train\",\"makes\":\"model\",\"fields\":{{}},\"inputs\":{{}},\
         \"digest\":\"\",\"bytes\":{bytes},\"seconds\":1.0,\"device\":\"cpu\",\"version\":\"0\",\"finished\":\"\",\"notes\":[]}}"
    ))
}

/// A store with results, and a folder beside it that is nobody's business.
fn place() -> (Place, PathBuf) {
    let place = Place::new(SMALL);
    good(place.run(&["run", "r.toml", "split"]));
    let own = place.folder.path().join("own");
    fs::create_dir_all(own.join("letters")).unwrap();
    fs::write(own.join("letters/one.txt"), "dear").unwrap();
    fs::write(own.join("manifest.json"), manifest("own", 4)).unwrap();
    fs::write(own.join("artifact.safetensors"), "mine").unwrap();
    (place, own)
}

#[track_caller]
fn untouched(own: &Path) {
    assert_eq!(fs::read_to_string(own.join("letters/one.txt")).unwrap(), "dear");
    assert_eq!(fs::read_to_string(own.join("artifact.safetensors")).unwrap(), "mine");
}

const COLLECT: [&str; 5] = ["store", "gc", "--older-than", "0s", "--yes"];

#[test]
fn a_manifest_cannot_have_collected_what_lies_elsewhere() {
    let (place, own) = place();
    let objects = place.folder.path().join(".recant/objects");
    let there = object(&place, "images").file_name().unwrap().to_string_lossy().into_owned();
    let absolute = own.to_string_lossy().into_owned();
    for (number, name) in ["../own", "../../../own", absolute.as_str(), "..", "", "é", &there].into_iter().enumerate()
    {
        let folder = objects.join(format!("z{number}/z{number}"));
        fs::create_dir_all(&folder).unwrap();
        // The result of another name is as large as it can be: what is summed up must not run over.
        fs::write(folder.join("manifest.json"), manifest(name, u64::MAX)).unwrap();
    }
    for name in ["aa", "bb"] {
        let folder = objects.join(format!("{name}/{name}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("manifest.json"), manifest(name, u64::MAX)).unwrap();
    }
    good(place.run(&["store", "gc", "--max-size", "1B"]));
    good(place.run(&["plan", "r.toml"]));
    std::thread::sleep(std::time::Duration::from_millis(20));
    good(place.run(&COLLECT));
    untouched(&own);
    good(place.run(&["run", "r.toml", "split"]));
}

#[test]
fn links_in_a_store_lead_nothing_out_of_it() {
    let (place, own) = place();
    let store = place.folder.path().join(".recant");
    // A shard, a result, a checkpoint, each somebody else's.
    symlink(&own, store.join("objects/zz")).unwrap();
    symlink(own.parent().unwrap(), store.join("objects/ow")).unwrap();
    fs::create_dir_all(store.join("objects/yy")).unwrap();
    symlink(&own, store.join("objects/yy/yyyy")).unwrap();
    symlink(own.join("letters/one.txt"), store.join("partial/yyyy.checkpoint")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    good(place.run(&COLLECT));
    untouched(&own);
    let verify = place.run(&["store", "verify"]);
    assert_eq!(verify.status.code(), Some(3), "{}", out(&verify));
    for name in ["zz", "ow", "yyyy"] {
        assert!(out(&verify).contains(name), "{name}: {}", out(&verify));
    }
    untouched(&own);
    assert_eq!(place.run(&["store", "verify"]).status.code(), Some(0));
}

/// A link where a result is to be written, or is looked for.
#[test]
fn results_are_neither_written_nor_read_through_a_link() {
    let (place, own) = place();
    let objects = place.folder.path().join(".recant/objects");
    for stage in ["original", "split"] {
        let lines = out(&good(place.run(&["plan", "r.toml", "--json"])));
        let mut lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let line = lines.find(|line| line["stage"] == stage).unwrap();
        let shard = objects.join(&line["fingerprint"].as_str().unwrap()[..2]);
        if shard.exists() {
            // The result itself lies behind the link.
            fs::rename(&shard, own.join(stage)).unwrap();
            symlink(own.join(stage), &shard).unwrap();
        } else {
            symlink(&own, &shard).unwrap();
        }
        let before = fs::read_dir(&own).unwrap().count();
        good(place.run(&["run", "r.toml", stage]));
        assert!(!shard.is_symlink(), "{stage}: it is put aside");
        assert_eq!(fs::read_dir(&own).unwrap().count(), before, "{stage}: nothing is written where it leads");
        good(place.run(&["store", "verify"]));
        untouched(&own);
    }
    assert_eq!(fs::read_dir(own.join("split")).unwrap().count(), 1, "nor is anything taken away");
}

/// Sound files, sealed and all, which hold something else than the manifest says.
#[test]
fn a_result_that_nothing_can_be_made_of_is_made_again() {
    let (place, _) = place();
    let (images, split) = (object(&place, "images"), object(&place, "split"));
    let bytes = fs::read(images.join("artifact.safetensors")).unwrap();
    fs::write(split.join("artifact.safetensors"), &bytes).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&fs::read(split.join("manifest.json")).unwrap()).unwrap();
    let mut manifest = text["manifest"].clone();
    manifest["digest"] = blake3::hash(&bytes).to_hex().as_str().into();
    manifest["bytes"] = bytes.len().into();
    fs::write(split.join("manifest.json"), sealed(&manifest.to_string())).unwrap();
    good(place.run(&["store", "verify"]));
    let run = good(place.run(&["run", "r.toml", "retrained"]));
    assert!(err(&run).contains("made again"), "{}", err(&run));
    good(place.run(&["run", "r.toml", "retrained"]));
}

/// Of somebody who may write to a folder above, as everybody may to `/tmp`.
#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn a_store_above_is_taken_only_of_ones_own_or_of_the_folders_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a folder to somebody else");
        return;
    }
    let place = Place::new(SMALL);
    let above = place.folder.path().join(".recant");
    let below = place.folder.path().join("below");
    fs::create_dir(&below).unwrap();
    fs::create_dir(&above).unwrap();
    let run = || good(place.command(&["run", "../r.toml", "split"]).current_dir(&below).output().unwrap());
    let own = |path: &Path, owner: u32| std::os::unix::fs::chown(path, Some(owner), None).unwrap();
    own(&above, 12345);
    run();
    assert!(below.join(".recant/objects").is_dir() && !above.join("objects").exists());
    fs::remove_dir_all(below.join(".recant")).unwrap();
    own(&below, 12345);
    run();
    assert!(above.join("objects").is_dir() && !below.join(".recant").exists());
}

#[test]
fn a_store_whose_folders_are_links_is_refused() {
    for folder in ["objects", "temp", "partial", "claims", "pins", "quarantine"] {
        let (place, own) = place();
        let path = place.folder.path().join(".recant").join(folder);
        fs::rename(&path, place.folder.path().join("moved")).unwrap();
        symlink(&own, &path).unwrap();
        for args in [&["run", "r.toml"][..], &["store", "verify"], &COLLECT] {
            let refused = place.run(args);
            assert_eq!(refused.status.code(), Some(3), "{folder}: {}", err(&refused));
            assert!(err(&refused).contains(&format!("{folder}` is damaged: it is a link")), "{}", err(&refused));
        }
        untouched(&own);
    }
}

#[test]
fn nothing_is_written_or_read_through_a_link() {
    let (place, own) = place();
    let store = place.folder.path().join(".recant");
    let letter = own.join("letters/one.txt");
    fs::remove_file(store.join("runs.jsonl")).unwrap();
    symlink(&letter, store.join("runs.jsonl")).unwrap();
    for line in out(&good(place.run(&["plan", "r.toml", "--json"]))).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(fingerprint) = line["fingerprint"].as_str() {
            symlink(&letter, store.join(format!("claims/{fingerprint}.progress"))).unwrap();
        }
    }
    // Endless, if it were read.
    let images = object(&place, "images").join("artifact.safetensors");
    fs::remove_file(&images).unwrap();
    symlink("/dev/zero", &images).unwrap();
    let run = place.run(&["run", "r.toml", "original"]);
    untouched(&own);
    assert!(err(&run).contains("runs.jsonl"), "{}", err(&run));
    assert!(err(&run).contains("made again"), "{}", err(&run));
    // A manifest that waits for somebody to write it.
    let split = object(&place, "split");
    fs::remove_file(split.join("manifest.json")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(split.join("manifest.json")).status().unwrap().success());
    fs::remove_file(store.join("runs.jsonl")).unwrap();
    good(place.run(&["run", "r.toml", "split"]));
    assert!(objects(place.folder.path()).contains(&split));
}
