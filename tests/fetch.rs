//! Fetching, against a server of our own on the loopback: whole, cut, deaf to ranges, lying.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use recant::data::Images;
use recant::dataset::{Dataset, Form, Remote};
use recant::error::{Error, Result};
use recant::fetch::{self, How};
use recant::halt::Halt;
use sha2::{Digest, Sha256};

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Does {
    /// Answers ranges.
    Serves,
    /// Ends the connection after that many bytes of the body, the first time.
    Cuts(usize),
    /// Always the whole file.
    IgnoresRanges(usize),
    /// Says nothing more after that many bytes of the body, the first time, and keeps the connection.
    Stalls(usize),
    Refuses,
}

struct Server {
    address: String,
    /// Path and range of each request.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(content: Vec<u8>, does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let asked = log.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let from = head.split_once("range: bytes=").map(|(_, rest)| rest.split('-').next().unwrap());
                let from: Option<usize> = from.map(|from| from.parse().unwrap());
                asked
                    .lock()
                    .unwrap()
                    .push(format!("{path} {}", from.map_or("whole".to_owned(), |from| from.to_string())));
                let all = content.len();
                let (status, from, end) = match (does, from) {
                    (Does::Refuses, _) => ("404 Not Found".to_owned(), all, all),
                    (Does::Cuts(at) | Does::IgnoresRanges(at) | Does::Stalls(at), _) if number == 0 => {
                        ("200 OK".to_owned(), 0, at)
                    }
                    (Does::IgnoresRanges(_), _) | (_, None) => ("200 OK".to_owned(), 0, all),
                    (_, Some(from)) => {
                        (format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}", all - 1), from, all)
                    }
                };
                let length = all - from;
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(&content[from..end]);
                if matches!(does, Does::Stalls(_)) && number == 0 {
                    kept.push(stream);
                }
            }
        });
        Self { address, log }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn no_load(_: &[PathBuf], _: &Halt) -> Result<Images> {
    Err(Error::invalid("not loaded here"))
}

const fn set(forms: &'static [Form]) -> Dataset {
    Dataset { name: "small", about: "", classes: &[], counts: [0; 3], forms }
}

/// `content()`'s MD5, by md5sum.
static KNOWN: Dataset = set(&[Form {
    about: "one file",
    files: &["x.bin"],
    folders: &["small"],
    origin: &[Remote { url: "https://unreachable.invalid/x.bin", md5: "7409c0cadc39c378e2bca7fefd5359b7" }],
    load: no_load,
}]);
const SHA256: &str = "b1cf7538cf80d01efe3e0b8e45dc930048a138c7b6f8c4aff08f478e4695e631";

static UNKNOWN: Dataset = set(&[Form {
    about: "one file",
    files: &["x.bin"],
    folders: &["small"],
    origin: &[Remote { url: "https://unreachable.invalid/x.bin", md5: "" }],
    load: no_load,
}]);

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn fetch(set: &Dataset, folder: &Path, server: &Server, sha256: &[&str]) -> Result<Vec<PathBuf>> {
    let sha256: Vec<String> = sha256.iter().map(|sum| (*sum).to_owned()).collect();
    fetch::fetch(set, folder, &How { mirror: Some(&server.address), sha256: &sha256, tell: &|_, _, _| {} })
}

/// Dying between writing the digest down and moving the file into place.
#[test]
fn a_first_download_is_pinned_before_it_is_there() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Serves));
    let found = fetch(&UNKNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(files(folder.path()), ["SHA256SUMS", "x.bin"]);
    fs::rename(&found[0], found[0].with_extension("bin.part")).unwrap();
    assert_eq!(fetch(&UNKNOWN, folder.path(), &server, &[]).unwrap(), found);
    let pins = fs::read_to_string(folder.path().join("small/SHA256SUMS")).unwrap();
    assert_eq!(pins, format!("{SHA256}  x.bin\n"));
    // And what comes in its place another time is not taken.
    fs::remove_file(&found[0]).unwrap();
    let other = Server::start(vec![1; 1000], Does::Serves);
    let error = fetch(&UNKNOWN, folder.path(), &other, &[]).unwrap_err().to_string();
    assert!(error.contains(&format!("expected {SHA256}")), "{error}");
}

#[test]
fn files_at_hand_are_held_to_the_digests_of_a_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    fs::write(&path, content()).unwrap();
    let check = |sum: &str| fetch::check(&KNOWN, std::slice::from_ref(&path), &[sum.to_owned()]);
    check(&SHA256.to_uppercase()).unwrap();
    assert!(fetch::check(&KNOWN, std::slice::from_ref(&path), &[]).is_err(), "as many as downloads");
    let error = check("00").unwrap_err().to_string();
    assert!(error.contains("x.bin") && error.contains("expected 00"), "{error}");
}

#[test]
fn a_list_of_digests_that_is_no_file_is_not_read() {
    let server = Server::start(content(), Does::Serves);
    for pipe in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("small")).unwrap();
        let pins = folder.path().join("small/SHA256SUMS");
        if pipe {
            assert!(std::process::Command::new("mkfifo").arg(&pins).status().unwrap().success());
        } else {
            std::os::unix::fs::symlink("/dev/zero", &pins).unwrap();
        }
        let error = fetch(&UNKNOWN, folder.path(), &server, &[]).unwrap_err().to_string();
        assert!(error.contains("SHA256SUMS") && error.contains("it is no file"), "{error}");
    }
}

#[test]
fn what_one_that_died_had_unpacked_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let (root, path) = (folder.path().join("small"), folder.path().join("a.tar.gz"));
    fs::create_dir_all(root.join(".unpacking/in")).unwrap();
    fs::write(root.join(".unpacking/one"), b"half").unwrap();
    fs::write(&path, archive(&[("in/one", b"1", tar::EntryType::Regular)])).unwrap();
    fetch::unpack(&path, &root, &["one"]).unwrap();
    assert_eq!(files(folder.path()), ["one"]);
    assert_eq!(fs::read(root.join("one")).unwrap(), b"1");
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder.join("small"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_whole_file_is_checked_and_told_of() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Serves));
    let told = Mutex::new(Vec::new());
    let tell = |name: &str, done: u64, all: u64| told.lock().unwrap().push((name.to_owned(), done, all));
    let how = How { mirror: Some(&server.address), sha256: &[], tell: &tell };
    let found = fetch::fetch(&KNOWN, folder.path(), &how).unwrap();
    assert_eq!(found, [folder.path().join("small/x.bin")]);
    assert_eq!(fs::read(&found[0]).unwrap(), content());
    assert_eq!(files(folder.path()), ["x.bin"]);
    assert_eq!(server.log(), ["/small/x.bin whole"]);
    assert_eq!(told.lock().unwrap().last().unwrap(), &("x.bin".to_owned(), 300_000, 300_000));
    // Again: nothing is asked for.
    fetch(&KNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Cuts(100_000)));
    let found = fetch(&KNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(fs::read(&found[0]).unwrap(), content());
    assert_eq!(server.log(), ["/small/x.bin whole", "/small/x.bin 100000"]);
}

#[test]
fn a_part_of_an_earlier_program_is_gone_on_from_where_a_digest_is_known() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Serves));
    fs::create_dir(folder.path().join("small")).unwrap();
    let part = folder.path().join("small/x.bin.part");
    fs::write(&part, &content()[..70_000]).unwrap();
    fetch(&KNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(server.log(), ["/small/x.bin 70000"]);
    fs::remove_file(folder.path().join("small/x.bin")).unwrap();
    fs::write(&part, &content()[..70_000]).unwrap();
    fetch(&UNKNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(server.log()[1], "/small/x.bin whole");
}

#[test]
fn a_server_that_ignores_ranges_is_begun_anew() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::IgnoresRanges(100_000)));
    let found = fetch(&KNOWN, folder.path(), &server, &[]).unwrap();
    assert_eq!(fs::read(&found[0]).unwrap(), content());
    assert_eq!(server.log()[1], "/small/x.bin 100000");
}

#[test]
fn a_wrong_digest_puts_the_file_away_and_names_both() {
    let mut wrong = content();
    wrong[5] ^= 1;
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(wrong.clone(), Does::Serves));
    let error = fetch(&KNOWN, folder.path(), &server, &[]).unwrap_err().to_string();
    assert!(error.contains("expected 7409c0cadc39c378e2bca7fefd5359b7") && error.contains("x.bin.bad"), "{error}");
    assert_eq!(files(folder.path()), ["x.bin.bad"]);
    // The error says how to take it all the same.
    let sum = error.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let found = fetch(&KNOWN, folder.path(), &server, &[&sum]).unwrap();
    assert_eq!(fs::read(&found[0]).unwrap(), wrong);
    // A file that is there is not trusted by its name.
    let error = fetch(&KNOWN, folder.path(), &server, &[SHA256]).unwrap_err().to_string();
    assert!(error.contains(SHA256) && error.contains("move it away"), "{error}");
    assert!(fetch(&KNOWN, folder.path(), &server, &[SHA256, SHA256]).is_err());
}

#[test]
fn what_is_not_known_is_pinned_by_its_first_download() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Serves));
    let found = fetch(&UNKNOWN, folder.path(), &server, &[]).unwrap();
    let pins = fs::read_to_string(folder.path().join("small/SHA256SUMS")).unwrap();
    assert_eq!(pins, format!("{SHA256}  x.bin\n"));
    fs::remove_file(&found[0]).unwrap();
    let other = Server::start(b"another".to_vec(), Does::Serves);
    let error = fetch(&UNKNOWN, folder.path(), &other, &[]).unwrap_err().to_string();
    assert!(error.contains(&format!("expected {SHA256}")), "{error}");
}

#[test]
fn refusals_and_dead_servers_are_errors_that_leave_no_file() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(content(), Does::Refuses));
    let error = fetch(&KNOWN, folder.path(), &server, &[]).unwrap_err().to_string();
    assert!(error.contains("answered 404") && error.contains("/small/x.bin"), "{error}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = Server { address: format!("http://{port}"), log: Arc::default() };
    let error = fetch(&KNOWN, folder.path(), &dead, &[]).unwrap_err().to_string();
    assert!(error.contains("could not be fetched"), "{error}");
    assert_eq!(files(folder.path()), ["x.bin.part"]);
    // Without a mirror, HTTPS alone.
    let plain = Box::leak(Box::new([Form {
        about: "",
        files: &["x"],
        folders: &["small"],
        origin: Box::leak(Box::new([Remote { url: "http://127.0.0.1:9/x", md5: "" }])),
        load: no_load,
    }]));
    let how = How { mirror: None, sha256: &[], tell: &|_, _, _| {} };
    assert!(fetch::fetch(&set(plain), folder.path(), &how).unwrap_err().to_string().contains("http"));
}

/// A .tar.gz with these members; a name may be one that a well-meant program would not write.
fn archive(members: &[(&str, &[u8], tar::EntryType)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes, kind) in members {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        if *kind != tar::EntryType::Regular {
            header.as_gnu_mut().unwrap().linkname[..5].copy_from_slice(b"/etc/");
        }
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn archives_are_unpacked_whole_or_not_at_all_and_never_outside() {
    use tar::EntryType::{Regular, Symlink};
    let folder = tempfile::tempdir().unwrap();
    let (root, path) = (folder.path().join("small"), folder.path().join("a.tar.gz"));
    fs::create_dir(&root).unwrap();
    let (one, two) = (("in/one", &b"1"[..], Regular), ("in/two", &b"22"[..], Regular));
    for (members, words) in [
        (vec![one, ("../two", b"x", Regular)], "leads out of it"),
        (vec![one, ("/two", b"x", Regular)], "leads out of it"),
        (vec![one, ("in/two", b"", Symlink)], "is a link"),
        (vec![one], "it lacks `two`"),
    ] {
        fs::write(&path, archive(&members)).unwrap();
        let error = fetch::unpack(&path, &root, &["one", "two"]).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("a.tar.gz"), "{error}");
        assert!(files(folder.path()).is_empty() && !folder.path().join("two").exists());
    }
    let good = archive(&[one, ("in/other", b"x", Regular), two]);
    for cut in [0, 10, good.len() / 2, good.len() - 9] {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(fetch::unpack(&path, &root, &["one", "two"]).is_err(), "{cut}");
        assert!(files(folder.path()).is_empty());
    }
    fs::write(&path, good).unwrap();
    fetch::unpack(&path, &root, &["one", "two"]).unwrap();
    assert_eq!(files(folder.path()), ["one", "two"]);
    assert_eq!(fs::read(root.join("two")).unwrap(), b"22");
}

const CIFAR: &str = "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"cifar10\"\n";

/// CIFAR-10's archive, of one image a file.
fn small_cifar() -> Vec<u8> {
    let record = vec![3_u8; 3073];
    let names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    let names: Vec<String> = names.iter().map(|name| format!("cifar-10-batches-bin/{name}.bin")).collect();
    let members: Vec<_> = names.iter().map(|name| (name.as_str(), &record[..], tar::EntryType::Regular)).collect();
    archive(&members)
}

/// The program with `r.toml`, whose downloads come from that server.
fn recant(place: &Path, server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recant"));
    command.args(args).current_dir(place).env("NO_COLOR", "1").env("RECANT_MIRROR", &server.address);
    for name in ["RECANT_STORE", "RECANT_DATA", "RECANT_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(name);
    }
    command.env("XDG_DATA_HOME", place.join("own"));
    command
}

/// What the program says, which ends with an error.
fn complaint(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fetched, pinned by the recipe, unpacked, and then refused for its count of images.
#[test]
fn a_run_fetches_what_is_missing_and_nothing_else_does() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(small_cifar(), Does::Serves);
    fs::write(place.path().join("r.toml"), CIFAR).unwrap();
    let complaint = |args: &[&str]| complaint(recant(place.path(), &server, args));
    for args in [&["plan", "r.toml"][..], &["run", "r.toml", "--offline"]] {
        let text = complaint(args);
        assert!(text.contains("is not at hand") && text.contains("cifar-10-binary.tar.gz"), "{text}");
    }
    assert!(server.log().is_empty());
    let text = complaint(&["run", "r.toml"]);
    assert!(text.contains("expected c32a1d4ab5d03f1284b67883e8d87530"), "{text}");
    let sum = text.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(place.path().join("r.toml"), format!("{CIFAR}sha256 = \"{sum}\"\n")).unwrap();
    let text = complaint(&["run", "r.toml"]);
    assert!(text.contains("5 training, 1 test and 0 unlabelled images, expected 50000"), "{text}");
    assert!(place.path().join("own/recant/cifar-10-batches-bin/test_batch.bin").is_file());
    assert_eq!(server.log(), ["/cifar10/cifar-10-binary.tar.gz whole"; 2]);
}

/// A cluster's warning in the middle of a download that stands still: it ends at once, and the next run goes on from there.
#[test]
fn a_warning_ends_a_download_and_the_next_run_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let content = small_cifar();
    let half = content.len() / 2;
    let sum = format!("{:x}", Sha256::digest(&content));
    fs::write(place.path().join("r.toml"), format!("{CIFAR}sha256 = \"{sum}\"\n")).unwrap();
    for (signal, code) in [("-TERM", 143), ("-USR1", 75)] {
        let server = Server::start(content.clone(), Does::Stalls(half));
        let own = place.path().join("own");
        let mut child = recant(place.path(), &server, &["run", "r.toml"]).stderr(Stdio::null()).spawn().unwrap();
        let arrived =
            || files_under(&own).iter().any(|path| fs::metadata(path).is_ok_and(|of| of.len() == half as u64));
        let begun = Instant::now();
        while !arrived() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing arrives");
            std::thread::sleep(Duration::from_millis(10));
        }
        let sent = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(sent.elapsed() < Duration::from_secs(5));
        let text = complaint(recant(place.path(), &server, &["run", "r.toml"]));
        assert!(text.contains("5 training, 1 test and 0 unlabelled images, expected 50000"), "{text}");
        let name = "/cifar10/cifar-10-binary.tar.gz";
        assert_eq!(server.log(), [format!("{name} whole"), format!("{name} {half}")]);
        fs::remove_dir_all(own).unwrap();
    }
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}
