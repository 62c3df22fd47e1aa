//! Files that claim more than they have, unfold to more than they are, or lead elsewhere: errors, at a cost by their size.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use recant::error::Result;
use recant::halt::never;
use recant::nn::arch::Arch;
use recant::stage::checkpoint;
use recant::{dataset, fetch, fuzz, indices};

use crate::support::cost;

/// Every input that a fuzzer was begun with, or found: none ends the program, none costs more than its share.
#[test]
fn every_kept_input_is_survived() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let names = |folder: &Path| {
        let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let known: Vec<PathBuf> = fuzz::TARGETS.iter().map(|(name, _)| corpus.join(name)).collect();
    assert_eq!(names(&corpus), known, "a corpus for each parser and none beside");
    let mut total = 0;
    for (name, parser) in fuzz::TARGETS {
        let inputs = names(&corpus.join(name));
        assert!(inputs.len() > 1, "{name} has {} inputs", inputs.len());
        for path in inputs {
            let bytes = fs::read(&path).unwrap();
            total += bytes.len();
            let (memory, (seconds, ())) = cost::memory(|| cost::seconds(|| parser(&bytes)));
            assert!(memory < (24 << 20) + 1200 * bytes.len(), "{}: {memory} bytes of memory", path.display());
            assert!(seconds < 5.0, "{}: {seconds} s", path.display());
        }
    }
    assert!(total < 1 << 20, "the corpus has {total} bytes: it is kept small");
}

/// What is said of a file that is read; the memory that it takes is at most `times` its size and a megabyte.
#[track_caller]
fn refused<T: Send>(path: &Path, times: usize, words: &str, read: impl FnOnce() -> Result<T> + Send) {
    let (memory, (seconds, read)) = cost::memory(|| cost::seconds(read));
    let error = read.err().expect(words).to_string();
    assert!(error.contains(words), "{}", error.chars().take(1000).collect::<String>());
    assert!(error.len() < 5000, "{} bytes of words", error.len());
    let size = fs::metadata(path).unwrap().len() as usize;
    assert!(memory <= times * size + (1 << 20), "{memory} bytes of memory for a file of {size}");
    assert!(seconds < 10.0, "{seconds} s for a file of {size} bytes");
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn safetensors_that_claim_too_much_are_errors() {
    let claims = [
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        [&(1_u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        safetensors(r#"{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#, &[0; 16]),
        safetensors(r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, &[]),
        safetensors(r#"{"w":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}"#, &[]),
        safetensors(r#"{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#, &[0; 4]),
        safetensors(&"[".repeat(100_000), &[]),
    ];
    for bytes in claims {
        let (_folder, path) = file("x.safetensors", &bytes);
        refused(&path, 10, "x.safetensors", || checkpoint::load(&path));
    }
}

/// A zip as PyTorch writes it, its entries as they are given.
fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn text(words: &[u8]) -> Vec<u8> {
    [&[b'X'][..], &(words.len() as u32).to_le_bytes(), words].concat()
}

fn remembered(what: &[u8], key: u8) -> Vec<u8> {
    [what, &[b'q', key, b'0']].concat()
}

/// Remembers as 0 the function that makes a tensor, as 1 and 2 the storages `0` and `1`.
fn begun() -> Vec<u8> {
    let storage = |name: &[u8]| {
        [b"(X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec(), text(name), b"X\x03\0\0\0cpuK\x04tQ".to_vec()].concat()
    };
    [
        b"\x80\x02".to_vec(),
        remembered(b"ctorch._utils\n_rebuild_tensor_v2\n", 0),
        remembered(&storage(b"0"), 1),
        remembered(&storage(b"1"), 2),
    ]
    .concat()
}

/// `name: tensor` on a storage that is remembered, with shape and strides that are.
fn entry(name: &[u8], storage: u8, shape: u8, strides: u8) -> Vec<u8> {
    [text(name), vec![b'h', 0, b'(', b'h', storage, b'K', 0, b'h', shape, b'h', strides, 0x89, b'}', b't', b'R']]
        .concat()
}

#[test]
fn a_pickle_that_says_the_same_often_costs_what_it_is_long() {
    let long = "n".repeat(1 << 20);
    // A name of a megabyte, made of two others a hundred thousand times.
    let global =
        [b"\x80\x04".to_vec(), remembered(&text(long.as_bytes()), 0), b"h\x00h\x00\x93".repeat(100_000), b".".to_vec()];
    // The same as the key of every entry, as bytes that would be checked for being text each time.
    let key = [vec![b'B'], (long.len() as u32).to_le_bytes().to_vec(), long.as_bytes().to_vec()].concat();
    let keys = [remembered(&key, 0), b"}(".to_vec(), b"h\x00N".repeat(1_000_000), b"u.".to_vec()];
    // A dictionary under each of the usual keys of itself.
    let inside: Vec<u8> = ["state_dict", "model_state_dict", "model", "net", "network", "weights"]
        .iter()
        .flat_map(|key| [text(key.as_bytes()), b"h\x00s".to_vec()].concat())
        .collect();
    let itself = [b"}q\x00(".to_vec(), b"NN".repeat(200_000), b"u".to_vec(), inside, b".".to_vec()];
    for pickle in [global.concat(), keys.concat(), itself.concat()] {
        let (_folder, path) = file("x.pth", &zipped(&[("a/data.pkl", &pickle)]));
        refused(&path, 120, "expected a state dict", || checkpoint::load(&path));
    }
    let shape = [b"(".to_vec(), b"K\x01".repeat(100_000), b"t".to_vec()].concat();
    let tensors: Vec<u8> = (0..20_000).flat_map(|number| entry(format!("{number}").as_bytes(), 1, 3, 3)).collect();
    let pickle = [begun(), remembered(&shape, 3), b"}(".to_vec(), tensors, b"u.".to_vec()].concat();
    let (_folder, path) = file("x.pth", &zipped(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]));
    refused(&path, 60, "arguments of an unknown form", || checkpoint::load(&path));
}

#[test]
fn the_storages_of_a_checkpoint_are_read_once() {
    let one = remembered(b"(K\x01t", 3);
    // Forty thousand tensors of one number, now of the one, now of the other of two large storages.
    let tensors: Vec<u8> =
        (0..40_000).flat_map(|n| entry(format!("{n}").as_bytes(), 1 + (n % 2) as u8, 3, 3)).collect();
    let pickle = [begun(), one.clone(), b"}(".to_vec(), tensors, b"u.".to_vec()].concat();
    let storage = vec![0; 4 << 20];
    let bytes = zipped(&[("a/data.pkl", &pickle), ("a/data/0", &storage), ("a/data/1", &storage)]);
    let (_folder, path) = file("x.pth", &bytes);
    let (seconds, read) = cost::seconds(|| checkpoint::load(&path));
    assert_eq!(read.unwrap().len(), 40_000);
    assert!(seconds < 10.0, "{seconds} s");
    // A directory with many entries of which each is the same large storage.
    let storages: Vec<u8> = (0..2000)
        .flat_map(|n| {
            let name = format!("{n}");
            let storage = [
                b"(X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec(),
                text(name.as_bytes()),
                b"X\x03\0\0\0cpuK\x04tQ".to_vec(),
            ];
            [remembered(&storage.concat(), 1), entry(name.as_bytes(), 1, 3, 3)].concat()
        })
        .collect();
    let pickle = [begun(), one, b"}(".to_vec(), storages, b"u.".to_vec()].concat();
    let bytes = overlapping(&zipped(&[("a/data.pkl", &pickle), ("a/data/0", &storage)]), 2000);
    let (_folder, path) = file("x.pth", &bytes);
    refused(&path, 20, "unfold to more than", || checkpoint::load(&path));
}

/// The archive with the last entry of its directory said again under the names `a/data/1`, `a/data/2`, ..
fn overlapping(bytes: &[u8], count: usize) -> Vec<u8> {
    let number =
        |at: usize, length: usize| bytes[at..at + length].iter().rev().fold(0, |n, &byte| n << 8 | usize::from(byte));
    let end = bytes.len() - 22;
    let (start, second) = (number(end + 16, 4), number(end + 16, 4));
    let second = second + 46 + number(start + 28, 2) + number(start + 30, 2) + number(start + 32, 2);
    let mut directory = bytes[start..end].to_vec();
    for copy in 1..count {
        let name = format!("a/data/{copy}");
        let mut head = bytes[second..second + 46].to_vec();
        head[28..30].copy_from_slice(&(name.len() as u16).to_le_bytes());
        head[30..34].fill(0);
        directory.extend([head, name.into_bytes()].concat());
    }
    let mut tail = bytes[end..].to_vec();
    let entries = (count as u16 + 1).to_le_bytes();
    tail[8..10].copy_from_slice(&entries);
    tail[10..12].copy_from_slice(&entries);
    tail[12..16].copy_from_slice(&(directory.len() as u32).to_le_bytes());
    [&bytes[..start], &directory, &tail].concat()
}

#[test]
fn a_tensor_without_numbers_may_not_have_every_shape() {
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    let shape = [b"(K\x00".to_vec(), huge.to_vec(), huge.to_vec(), b"t".to_vec()].concat();
    let pickle = [begun(), remembered(&shape, 3), b"}".to_vec(), entry(b"w", 1, 3, 3), b"s.".to_vec()].concat();
    let (_folder, path) = file("x.pth", &zipped(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]));
    refused(&path, 20, "needs more numbers", || checkpoint::load(&path));
    let empty = [begun(), remembered(b"(K\x00K\x03t", 3), b"}".to_vec(), entry(b"w", 1, 3, 3), b"s.".to_vec()].concat();
    let (_folder, path) = file("x.pth", &zipped(&[("a/data.pkl", &empty), ("a/data/0", &[0; 16])]));
    let tensors = checkpoint::load(&path).unwrap();
    assert_eq!(tensors.get("w").map(Tensor::dims), Some(&[0, 3][..]));
}

#[test]
fn index_files_hold_no_more_than_there_are_images() {
    let header = format!("{:<117}\n", "{'descr': '<i4', 'fortran_order': False, 'shape': (1000000,), }");
    let bytes = [b"\x93NUMPY\x01\x00\x76\x00".to_vec(), header.into_bytes(), vec![0; 4_000_000]].concat();
    let (_folder, path) = file("x.npy", &bytes);
    refused(&path, 1, "position 1: 0 comes twice, first at position 0", || indices::read(&path, 10));
    let claims = String::from_utf8_lossy(&bytes[..128]).replace("(1000000,)", "(9223372036854775807,)").into_bytes();
    let (_folder, path) = file("x.npy", &[b"\x93NUMPY\x01\x00\x76\x00", &claims[12..]].concat());
    refused(&path, 1, "x.npy", || indices::read(&path, 10));
    let (_folder, path) = file("x.txt", "7\n".repeat(1_000_000).as_bytes());
    refused(&path, 1, "line 2: 7 comes twice, first at line 1", || indices::read(&path, 10));
}

fn gzip(parts: &[&[u8]]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for part in parts {
        encoder.write_all(part).unwrap();
    }
    encoder.finish().unwrap()
}

fn form(set: &str, about: &str) -> &'static dataset::Form {
    dataset::find(set).unwrap().forms.iter().find(|form| form.about.starts_with(about)).unwrap()
}

#[test]
fn what_unpacks_to_more_than_its_header_says_is_not_unpacked() {
    let zeros = vec![0; 300 << 20];
    let load =
        |path: &PathBuf| (form("mnist", "idx").load)(&[path.clone(), path.clone(), path.clone(), path.clone()], &never);
    let (_folder, path) = file("x.gz", &gzip(&[&[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2], &zeros]));
    refused(&path, 1, "the header says [1, 2, 2], but more bytes follow", || load(&path));
    let (_folder, path) = file("x.gz", &gzip(&[&[0, 0, 8, 3, 0x10, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2], &zeros]));
    refused(&path, 1, "no such set has more than", || load(&path));
    let (_folder, path) = file("x.gz", &gzip(&[&zeros]));
    refused(&path, 1, "not an idx file", || load(&path));
    // A name of 300 MB in an archive, which a reader of archives would take into memory.
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(zeros.len() as u64);
    header.set_cksum();
    let (folder, path) = file("x.tar.gz", &gzip(&[header.as_bytes(), &zeros, &[0; 1024]]));
    refused(&path, 1, "it lacks `a.bin`", || fetch::unpack(&path, folder.path(), &["a.bin"]));
}

#[test]
fn the_description_of_a_network_names_no_more_layers_than_it_can_have() {
    let arch = |blocks: Vec<usize>| {
        serde_json::json!({ "name": "x", "shape": { "resnet": { "bottleneck": false, "blocks": blocks, "stem": "cifar",
            "width": 1 } }, "classes": 10, "size": [3, 32, 32], "mean": [], "std": [] })
    };
    let (memory, read) = cost::memory(|| Arch::from_value(&arch(vec![1000; 5000])));
    assert!(read.unwrap_err().to_string().contains("must be in [1, 16], not 5000"));
    assert!(memory < 8 << 20, "{memory} bytes of memory");
    assert!(Arch::from_value(&arch(vec![2; 4])).is_ok());
}

/// Files of one or two rows, written by hand, and the same with claims that their reader would believe.
#[test]
fn what_a_parquet_file_claims_is_looked_at_before_it_is_read() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parquet");
    let load = |name: &str| {
        let path = corpus.join(name);
        (form("svhn", "parquet").load)(&[path.clone(), path], &never)
    };
    for (name, rows) in [("plain", 2), ("snappy", 1), ("dictionary", 1), ("jpeg", 1), ("other-width", 2)] {
        assert_eq!(load(name).unwrap().train.len(), rows, "{name}");
    }
    for (name, words) in [
        ("many-rows", "too many for its"),
        ("dictionary-claims", "says that it has 2147483647 values"),
        ("page-claims", "says that it unpacks to 2147483647"),
        ("deep", "6002 columns, expected at most 200"),
        ("many-children", "says that 671088637 are parts of it"),
        ("shared-pages", "its columns lie on each other"),
        // Of which the reader takes the lower half.
        ("too-wide", "a field has the number 4294967297, too large for it"),
        // The reader takes this flag for a number, and two billion empty values, which hold nothing here, for a list.
        ("flag-for-number", "a field has the kind 1, expected 5"),
    ] {
        // The reader's own room is a megabyte, whatever it reads.
        refused(&corpus.join(name), 1200, words, || load(name));
    }
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(1, 1).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

fn images(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn load_folder(root: &Path) -> Result<recant::data::Images> {
    let set = dataset::find("folder").unwrap();
    set.locate(Some(root), &[]).and_then(|found| set.load(&found.unwrap(), &never))
}

#[test]
fn images_that_claim_to_be_huge_are_errors_before_anything_is_set_aside() {
    for (width, height, words) in [
        (0x7fff_ffff, 0x7fff_ffff, "limit"),
        (100_000, 100_000, "pixels, more than its"),
        (20_000, 200, "pixels, more than its"),
    ] {
        let folder = images(&[("train/a/1.png", png(width, height)), ("train/b/2.png", png(width, height))]);
        let path = folder.path().join("train/a/1.png");
        refused(&path, 10, words, || load_folder(folder.path()));
    }
    assert_eq!(load_folder(images(&[("train/a/1.png", png(1, 1))]).path()).unwrap().train.len(), 1);
}

#[test]
fn links_in_a_folder_of_images_do_not_lead_out_of_it() {
    let link = |to: &Path, at: &Path| {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, at).unwrap();
    };
    let other = images(&[("train/a/1.png", png(1, 1)), ("one.png", png(1, 1))]);
    for (to, at) in [("one.png", "train/a/2.png"), ("train/a", "train/b"), ("train", "test")] {
        let folder = images(&[("train/a/1.png", png(1, 1))]);
        link(&other.path().join(to), &folder.path().join(at));
        let error = load_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a link that leads out of") && error.contains(at), "{error}");
        let digest = dataset::folder::digest(folder.path(), &mut |_| Ok(String::new())).unwrap_err().to_string();
        assert!(digest.contains("a link that leads out of"), "{digest}");
    }
    let folder = images(&[("train/a/1.png", png(1, 1)), ("all/2.png", png(1, 1))]);
    link(Path::new("../../all/2.png"), &folder.path().join("train/a/2.png"));
    assert_eq!(load_folder(folder.path()).unwrap().train.len(), 2);
    // Nor is a pipe waited for.
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("train/a/3.png")).status().unwrap();
    assert!(made.success());
    assert!(load_folder(folder.path()).unwrap_err().to_string().contains("it is no file"));
}

#[test]
fn a_download_is_not_written_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.txt");
    fs::write(&own, "mine").unwrap();
    let set = folder.path().join("data/cifar-10-batches-bin");
    fs::create_dir_all(&set).unwrap();
    std::os::unix::fs::symlink(&own, set.join("cifar-10-binary.tar.gz.part")).unwrap();
    let how = fetch::How { mirror: Some("http://127.0.0.1:9"), sha256: &[], tell: &|_, _, _| {} };
    let error = fetch::fetch(dataset::find("cifar10").unwrap(), &folder.path().join("data"), &how).unwrap_err();
    assert!(error.to_string().contains("could not open"), "{error}");
    assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
}
