//! Every parser of bytes that a stranger may have written, each behind one function of bytes. Fuzzers call these, and so
//! does the test that plays back what they found; nothing else does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use crate::artifact::Artifact;
use crate::dataset::{self, idx, picture};
use crate::diagnose;
use crate::error::Error;
use crate::fetch;
use crate::indices;
use crate::nn::arch::Arch;
use crate::pickle::Pickle;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::report;
use crate::stage::{self, checkpoint};
use crate::store::codec;
use crate::store::history::{opened, sealed};
use crate::store::manifest::{self, Manifest};
use crate::store::who::{Who, writer_lives};

/// Ends well whatever the bytes are; what it makes of them is of no interest.
pub type Parser = fn(&[u8]);

/// By the names of their corpora.
pub const TARGETS: &[(&str, Parser)] = &[
    ("arch", arch),
    ("artifact", artifact),
    ("cifar_binary", cifar_binary),
    ("cifar_python", cifar_python),
    ("idx", read_idx),
    ("indices", read_indices),
    ("parquet", parquet),
    ("pickle", pickle),
    ("picture", read_picture),
    ("pytorch", pytorch),
    ("recipe", recipe),
    ("safetensors", safetensors),
    ("store", store),
    ("table", table),
    ("tar", tar),
];

/// A file of that name with those bytes, in a folder of this thread, in memory where the system has such a place.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    thread_local! {
        static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let memory = Path::new("/dev/shm");
        let make = || if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        if folder.is_none() {
            *folder = make().ok();
        }
        let path = folder.as_ref().map(|folder| folder.path().join(name)).unwrap_or_default();
        // Without a file the parser says so: nothing is hidden by that.
        let _ = std::fs::write(&path, bytes);
        path
    })
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// Bytes that are no gzip are packed, so that a fuzzer need not guess a checksum.
fn as_gzip(bytes: &[u8]) -> Vec<u8> {
    if bytes.starts_with(&[0x1f, 0x8b]) { bytes.to_vec() } else { gzipped(bytes) }
}

/// A description of a network, as models carry it.
pub fn arch(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    if let Ok(arch) = Arch::from_value(&value) {
        let _ = (arch.settings(), arch.parameters(), arch.to_value());
    }
}

/// An artifact of the store, read as each kind.
pub fn artifact(bytes: &[u8]) {
    let Ok(encoded) = codec::from_bytes(bytes, Path::new("artifact")) else { return };
    let images = codec::decode(crate::kind::Kind::Images, encoded.clone(), None).ok();
    for kind in crate::kind::Kind::ALL {
        let Ok(artifact) = codec::decode(kind, encoded.clone(), images.as_ref()) else { continue };
        let _ = codec::bytes(&artifact);
        if let Artifact::Model(weights) = &artifact
            && let Ok(arch) = Arch::from_value(&weights.arch)
        {
            let _ = crate::nn::model::Model::from_tensors(&arch, &weights.tensors, &candle_core::Device::Cpu);
        }
    }
}

fn load(set: &str, about: &str, files: &[PathBuf]) {
    let form = dataset::find(set).ok().and_then(|set| set.forms.iter().find(|form| form.about.starts_with(about)));
    if let Some(form) = form {
        let _ = (form.load)(files, &crate::halt::never);
    }
}

pub fn cifar_binary(bytes: &[u8]) {
    let file = file("batch.bin", bytes);
    load("cifar100", "binary", &[file.clone(), file]);
}

pub fn cifar_python(bytes: &[u8]) {
    let file = file("batch", bytes);
    load("cifar100", "python", &[file.clone(), file]);
}

/// The first byte is the number of dimensions.
pub fn read_idx(bytes: &[u8]) {
    if let [rank, rest @ ..] = bytes {
        let _ = idx::array(&file("images.gz", &as_gzip(rest)), rank % 4);
    }
}

/// Indices into a thousand images, as text and as numpy's file.
pub fn read_indices(bytes: &[u8]) {
    let _ = indices::read(&file("indices.txt", bytes), 1000);
    let _ = indices::read(&file("indices.npy", bytes), 1000);
}

pub fn parquet(bytes: &[u8]) {
    let file = file("images.parquet", bytes);
    load("svhn", "parquet", &[file.clone(), file]);
}

pub fn pickle(bytes: &[u8]) {
    let Ok(pickle) = Pickle::parse(bytes) else { return };
    let root = pickle.root();
    let _ = (pickle.entry(root, "data"), pickle.items(root), pickle.call(root), pickle.natural(root));
}

/// An image of whatever size it says it has, as `folder` reads it.
pub fn read_picture(bytes: &[u8]) {
    let Ok((height, width, colour)) = picture::look(bytes) else { return };
    let size = [if colour { 3 } else { 1 }, height, width];
    let mut pixels = vec![0; size.iter().product()];
    let _ = picture::decode(bytes, size, &mut pixels);
}

pub fn pytorch(bytes: &[u8]) {
    let _ = checkpoint::load(&file("model.pth", bytes));
}

pub fn safetensors(bytes: &[u8]) {
    let path = file("model.safetensors", bytes);
    let _ = checkpoint::load(&path);
    let _ = checkpoint::record::read(&path);
}

/// A recipe with those that it extends, parted by lines of `#--- NAME`: read, planned, and its mistakes drawn.
pub fn recipe(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for (number, part) in text.split("#--- ").enumerate() {
        let (name, part) = if number == 0 { ("r.toml", part) } else { part.split_once('\n').unwrap_or_default() };
        files.insert(name.into(), part.as_bytes().to_vec());
    }
    let reader = |path: &Path| {
        files.get(path).cloned().ok_or_else(|| Error::io("read", path)(std::io::ErrorKind::NotFound.into()))
    };
    let planned = Recipe::read(Path::new("r.toml"), &reader, &[], stage::STAGES)
        .and_then(|recipe| Plan::new(&recipe, &stage::evaluate::KIND, &BTreeMap::new()));
    if let Err(Error::Mistakes(mistakes)) = planned {
        let _ = diagnose::render(&mistakes, false);
    }
}

/// What lies in a store beside artifacts: manifests, history, claims.
pub fn store(bytes: &[u8]) {
    let _ = Manifest::from_bytes(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = manifest::sealed(text).ok().and_then(|bytes| Manifest::from_bytes(&bytes));
    let _ = opened(text);
    if let Ok(run) = serde_json::from_str(text) {
        let _ = opened(&sealed(&run));
    }
    let _ = (Who::from_words(text).lives(), writer_lives(text));
}

/// A table or scores of the store, drawn.
pub fn table(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    for format in [report::Format::Text, report::Format::Csv] {
        let _ = report::table(&value, &|_| Some(1.0), format).render(format);
    }
    let _ = report::scores("x", &value).render(report::Format::Markdown);
    if let Ok(figure) = serde_json::from_value(value) {
        let _ = crate::plot::svg(&figure, "x");
    }
}

/// An archive that holds a data set's files.
pub fn tar(bytes: &[u8]) {
    let archive = file("set.tar.gz", &as_gzip(bytes));
    let Some(folder) = archive.parent() else { return };
    let _ = fetch::unpack(&archive, folder, &["a.bin", "b.bin"]);
}
