//! The store: one folder an artifact, addressed by fingerprint, verified whenever it is read. Files are written beside,
//! synced and renamed into place with the manifest inside, so a crash leaves nothing half-visible.

pub mod claim;
pub mod codec;
pub mod gc;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::artifact::{Artifact, Encoded};
use crate::error::{Error, Result};
use crate::kind::Kind;

const FORMAT: &str = "recant store 2\n";
const ARTIFACT: &str = "artifact.safetensors";
const MANIFEST: &str = "manifest.json";
const RUNS: &str = "runs.jsonl";

/// How an artifact came to be: explains, never decides.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    pub fingerprint: String,
    pub stage: String,
    pub kind: String,
    pub makes: Option<Kind>,
    /// What the fingerprint was made of.
    pub fields: BTreeMap<String, Value>,
    /// Role to fingerprint, of what was read.
    pub inputs: BTreeMap<String, String>,
    pub digest: String,
    pub bytes: u64,
    /// Seconds of work, those of interrupted attempts included.
    pub seconds: f64,
    pub device: String,
    pub version: String,
    pub finished: String,
    pub notes: Vec<String>,
}

/// A manifest as it lies on disk: the digest covers the very bytes of the rest.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    seal: String,
}

impl Manifest {
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let wrong = |error: serde_json::Error| Error::invalid(error.to_string());
        let text = serde_json::to_string_pretty(self).map_err(wrong)?;
        let seal = blake3::hash(text.as_bytes()).to_hex().to_string();
        let manifest: &RawValue = serde_json::from_str(&text).map_err(wrong)?;
        serde_json::to_vec(&Sealed { manifest, seal }).map_err(wrong)
    }

    /// None where any byte is not what was written.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let sealed: Sealed = serde_json::from_slice(bytes).ok()?;
        let text = sealed.manifest.get();
        let sound = blake3::hash(text.as_bytes()).to_hex().as_str() == sealed.seal;
        if sound { serde_json::from_str(text).ok() } else { None }
    }
}

#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at that folder, else `.recant` in the nearest folder above that has one, else in the working folder.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let root = match folder {
            Some(folder) => folder.to_owned(),
            None => {
                let here = std::env::current_dir().map_err(Error::io("find", Path::new(".")))?;
                let found = here.ancestors().map(|above| above.join(".recant")).find(|path| path.is_dir());
                found.unwrap_or_else(|| here.join(".recant"))
            }
        };
        let format = root.join("format");
        match fs::read_to_string(&format) {
            Ok(text) if text == FORMAT => {}
            Ok(text) => {
                let found = text.trim().to_owned();
                return Err(Error::Damaged {
                    path: root,
                    why: format!(
                        "its format is `{found}`, but this recant keeps `{}`: use another --store",
                        FORMAT.trim()
                    ),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &format)(error)),
        }
        Ok(Self { root })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the folders; only a run that writes does so.
    pub fn prepare(&self) -> Result<()> {
        for folder in ["objects", "temp", "partial", "claims", "pins", "quarantine"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let format = self.root.join("format");
        if !format.exists() {
            self.write_file(&format, FORMAT.as_bytes())?;
        }
        Ok(())
    }

    fn folder(&self, fingerprint: &str) -> PathBuf {
        self.root.join("objects").join(fingerprint.get(..2).unwrap_or("__")).join(fingerprint)
    }

    /// The manifest of a result that looks whole: its file is there with the right size. Contents are checked on `load`.
    #[must_use]
    pub fn status(&self, fingerprint: &str) -> Option<Manifest> {
        let folder = self.folder(fingerprint);
        let manifest = Manifest::from_bytes(&fs::read(folder.join(MANIFEST)).ok()?)?;
        let size = fs::metadata(folder.join(ARTIFACT)).ok()?.len();
        (manifest.fingerprint == fingerprint && manifest.bytes == size).then_some(manifest)
    }

    /// Whether there is a result at all, sound or not: for counting, without reading it.
    #[must_use]
    pub fn has(&self, fingerprint: &str) -> bool {
        let folder = self.folder(fingerprint);
        folder.join(MANIFEST).exists() && folder.join(ARTIFACT).exists()
    }

    /// Reads an artifact and verifies its digest. `carried` is what its kind is read with, by fingerprint: it must be
    /// what the artifact was made from. What is damaged is put aside, and the error says so.
    pub fn load(&self, fingerprint: &str, carried: Option<(&str, &Artifact)>) -> Result<Artifact> {
        let path = self.folder(fingerprint).join(ARTIFACT);
        let damaged = |why: &str| Error::Damaged { path: path.clone(), why: why.to_owned() };
        let read = || -> Result<Artifact> {
            let manifest = self.status(fingerprint).ok_or_else(|| damaged("its manifest does not fit it"))?;
            let bytes = fs::read(&path).map_err(|error| damaged(&error.to_string()))?;
            if blake3::hash(&bytes).to_hex().as_str() != manifest.digest {
                return Err(damaged("its contents are not what was written"));
            }
            let kind = manifest.makes.ok_or_else(|| damaged("its manifest says no kind"))?;
            if let Some(role) = kind.carries() {
                let made_from = manifest.inputs.get(role).map(String::as_str);
                if made_from != carried.map(|(print, _)| print) {
                    return Err(damaged("it was made from something else"));
                }
            }
            let encoded = codec::from_bytes(&bytes, &path)?;
            // A data set is large: not three times in memory.
            drop(bytes);
            codec::decode(kind, encoded, carried.map(|(_, artifact)| artifact))
        };
        let result = read();
        match &result {
            Err(Error::Damaged { .. }) => self.put_aside(fingerprint),
            // The time of last use, for collection.
            Ok(_) => touch(&self.folder(fingerprint).join(MANIFEST)),
            Err(_) => {}
        }
        result
    }

    /// Moves a damaged result out of the way.
    pub fn put_aside(&self, fingerprint: &str) {
        let to = self.root.join("quarantine").join(format!("{fingerprint}-{}", std::process::id()));
        // Where even that fails, the result stays damaged and is found damaged again.
        let _ = fs::remove_dir_all(&to);
        let _ = fs::create_dir_all(self.root.join("quarantine"));
        let _ = fs::rename(self.folder(fingerprint), &to);
        touch(&to);
    }

    /// Publishes a result. Where another run was first, its result stands.
    pub fn save(&self, artifact: &Artifact, mut manifest: Manifest) -> Result<()> {
        let temp = self.root.join("temp");
        let made = tempfile::Builder::new().prefix("new-").tempdir_in(&temp).map_err(Error::io("create", &temp))?;
        let path = made.path().join(ARTIFACT);
        codec::write(artifact, &path)?;
        let file = fs::File::open(&path).and_then(|file| file.sync_all().map(|()| file));
        let size = file.and_then(|file| file.metadata()).map_err(Error::io("write", &path))?.len();
        (manifest.digest, manifest.bytes) = (Self::digest_of(&path)?, size);
        write_synced(&made.path().join(MANIFEST), &manifest.to_bytes()?)?;
        sync_folder(made.path());
        let folder = self.folder(&manifest.fingerprint);
        let parent = folder.parent().unwrap_or(&self.root).to_owned();
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        if self.status(&manifest.fingerprint).is_some() {
            return Ok(());
        }
        if folder.exists() {
            self.put_aside(&manifest.fingerprint);
        }
        match fs::rename(made.path(), &folder) {
            Ok(()) => drop(made.keep()),
            Err(_) if self.status(&manifest.fingerprint).is_some() => {}
            Err(error) => return Err(Error::io("publish", &folder)(error)),
        }
        sync_folder(&parent);
        self.forget_checkpoint(&manifest.fingerprint);
        Ok(())
    }

    fn checkpoint_path(&self, fingerprint: &str) -> PathBuf {
        self.root.join("partial").join(format!("{fingerprint}.checkpoint"))
    }

    /// Keeps the checkpoint of a stage at work; its last 32 bytes are its digest, so a torn one is seen.
    pub fn save_checkpoint(&self, fingerprint: &str, checkpoint: &Encoded) -> Result<()> {
        let mut bytes = codec::to_bytes(checkpoint)?;
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        self.write_file(&self.checkpoint_path(fingerprint), &bytes)
    }

    /// The checkpoint of an interrupted stage, if there is a sound one.
    #[must_use]
    pub fn checkpoint(&self, fingerprint: &str) -> Option<Encoded> {
        let path = self.checkpoint_path(fingerprint);
        let bytes = fs::read(&path).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if blake3::hash(body).as_bytes() != digest {
            return None;
        }
        codec::from_bytes(body, &path).ok()
    }

    fn forget_checkpoint(&self, fingerprint: &str) {
        // A checkpoint left behind is never read again: its result is there.
        let _ = fs::remove_file(self.checkpoint_path(fingerprint));
    }

    /// Writes a whole file or nothing.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let parent = path.parent().unwrap_or(&self.root);
        let mut file = tempfile::NamedTempFile::new_in(parent).map_err(Error::io("write", path))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", path))?;
        file.persist(path).map_err(|error| Error::io("write", path)(error.error))?;
        sync_folder(parent);
        Ok(())
    }

    /// Every manifest in the store, in the order of fingerprints.
    #[must_use]
    pub fn manifests(&self) -> Vec<Manifest> {
        let list = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            paths
        };
        let folders = list(&self.root.join("objects")).into_iter().flat_map(|folder| list(&folder));
        folders.filter_map(|folder| Manifest::from_bytes(&fs::read(folder.join(MANIFEST)).ok()?)).collect()
    }

    /// Checks the digest of every result; what is damaged is put aside. (number of sound ones, names of damaged ones)
    #[must_use]
    pub fn verify(&self) -> (usize, Vec<String>) {
        let (mut sound, mut damaged) = (0, Vec::new());
        for folder in fs::read_dir(self.root.join("objects")).into_iter().flatten().flatten() {
            for object in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let fingerprint = object.file_name().to_string_lossy().into_owned();
                let digest =
                    fs::read(object.path().join(ARTIFACT)).map(|bytes| blake3::hash(&bytes).to_hex().to_string());
                match (self.status(&fingerprint), digest) {
                    (Some(manifest), Ok(digest)) if manifest.digest == digest => sound += 1,
                    _ => {
                        self.put_aside(&fingerprint);
                        damaged.push(fingerprint);
                    }
                }
            }
        }
        damaged.sort();
        (sound, damaged)
    }

    /// Adds a run to the history.
    pub fn log(&self, run: &Value) -> Result<()> {
        let path = self.root.join(RUNS);
        let mut file = fs::File::options().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        // One write a line: runs that end at once do not mix theirs.
        file.write_all(format!("{run}\n").as_bytes()).map_err(Error::io("write", &path))
    }

    /// The history, oldest first; a line that a crash tore is left out.
    #[must_use]
    pub fn runs(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.root.join(RUNS)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The digest of an outside file.
    pub fn digest_of(path: &Path) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let file = fs::File::open(path).map_err(Error::io("open", path))?;
        hasher.update_reader(file).map_err(Error::io("read", path))?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = fs::File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

fn touch(path: &Path) {
    // Only collection looks at it.
    if let Ok(file) = fs::File::open(path) {
        let _ = file.set_modified(std::time::SystemTime::now());
    }
}

fn sync_folder(path: &Path) {
    // Not every file system can sync a folder; the files themselves are synced.
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}
