//! The store: one folder an artifact, addressed by fingerprint, verified whenever it is read. Files are written beside,
//! synced and renamed into place with the manifest inside, so a crash leaves nothing half-visible.

mod checkpoint;
pub mod claim;
pub mod codec;
mod fault;
mod files;
pub mod gc;
pub(crate) mod history;
pub(crate) mod manifest;
mod provenance;
mod verify;
pub(crate) mod who;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use fault::POINTS;
use fault::point;
pub use files::size;
use files::{list, plain, sync_folder, touch};
pub use history::History;
pub use manifest::Manifest;
pub use provenance::Provenance;
pub use verify::Verdict;

use rayon::prelude::*;

use crate::artifact::Artifact;
use crate::error::{Error, Result};

const FOLDERS: [&str; 6] = ["objects", "temp", "partial", "claims", "pins", "quarantine"];
const FORMAT: &str = "recant store 2\n";
const ARTIFACT: &str = "artifact.safetensors";
const MANIFEST: &str = "manifest.json";

#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// One that lies nearer above the working folder, but is somebody else's.
    passed_over: Option<PathBuf>,
}

/// What the file `format` says.
enum Format {
    Ours,
    /// No file: a new store, or one that lost it.
    Absent,
    Damaged,
}

impl Store {
    /// The store at that folder, else `.recant` in the working folder, else in the nearest folder above that has one of the
    /// user's or of the working folder's owner: who may write to `/tmp` has no say in what others run below it. Else a new
    /// one in the working folder.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let mut passed_over = None;
        let root = match folder {
            Some(folder) => folder.to_owned(),
            None => {
                let here = std::env::current_dir().map_err(Error::io("find", Path::new(".")))?;
                let owner = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| meta.uid());
                let ours = [owner(&here), Some(rustix::process::geteuid().as_raw())];
                let own = |path: &PathBuf| path.starts_with(&here) || ours.contains(&owner(path));
                let mut there = here.ancestors().map(|above| above.join(".recant")).filter(|path| path.is_dir());
                let found = there.find(|path| {
                    let own = own(path);
                    if !own {
                        passed_over.get_or_insert_with(|| path.clone());
                    }
                    own
                });
                found.unwrap_or_else(|| here.join(".recant"))
            }
        };
        let store = Self { root, passed_over };
        store.format()?;
        Ok(store)
    }

    /// An error where another recant keeps another format there.
    fn format(&self) -> Result<Format> {
        // Of a store that somebody else made, a link in place of a folder would have files outside moved and removed.
        if let Some(path) = FOLDERS.iter().map(|name| self.root.join(name)).find(|path| path.is_symlink()) {
            return Err(Error::Damaged { path, why: "it is a link, expected a folder of the store's own".to_owned() });
        }
        let path = self.root.join("format");
        let text = match plain(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Format::Absent),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let number = text.trim().strip_prefix("recant store ").and_then(|number| number.parse::<u32>().ok());
        match number {
            _ if text == FORMAT => Ok(Format::Ours),
            // Words of no recant at all, beside results: damage. A folder without results is somebody else's.
            None if self.root.join("objects").is_dir() => Ok(Format::Damaged),
            _ => Err(Error::Damaged {
                path: self.root.clone(),
                why: format!(
                    "its format is `{}`, but this recant keeps `{}`: use another --store",
                    text.trim(),
                    FORMAT.trim()
                ),
            }),
        }
    }

    /// A store above the working folder that would be taken if it were the user's.
    #[must_use]
    pub fn passed_over(&self) -> Option<&Path> {
        self.passed_over.as_deref()
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the folders; only a run that writes does so. Whether the format was damaged.
    pub fn prepare(&self) -> Result<bool> {
        for folder in FOLDERS {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).and_then(|()| point("prepare.folder")).map_err(Error::io("create", &path))?;
        }
        let damaged = self.mend_format()?;
        if let Format::Absent = self.format()? {
            self.write_file(&self.root.join("format"), FORMAT.as_bytes())?;
        }
        point("prepare.done").map_err(Error::io("prepare", &self.root))?;
        Ok(damaged)
    }

    /// Writes the format again where it is damaged, or lost beside results. Whether it was.
    fn mend_format(&self) -> Result<bool> {
        let path = self.root.join("format");
        let lost = match self.format()? {
            Format::Ours => return Ok(false),
            Format::Damaged => {
                self.aside_with(&path, "format");
                true
            }
            Format::Absent => list(&self.root.join("objects")).is_ok_and(|found| !found.is_empty()),
        };
        if lost {
            self.write_file(&path, FORMAT.as_bytes())?;
        }
        Ok(lost)
    }

    /// What is no fingerprint (`../x`, `/x`) must not lead out of the store.
    fn folder(&self, fingerprint: &str) -> PathBuf {
        let plain = fingerprint.len() >= 2 && fingerprint.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (shard, name) = if plain { (&fingerprint[..2], fingerprint) } else { ("__", "__") };
        self.root.join("objects").join(shard).join(name)
    }

    /// The folder above that of a result, where it is a link: what it leads to is not the store's.
    fn linked(&self, fingerprint: &str) -> Option<PathBuf> {
        self.folder(fingerprint).parent().filter(|shard| shard.is_symlink()).map(Path::to_owned)
    }

    /// The manifest of a result that looks whole: its file is there with the right size. Contents are checked on `load`.
    #[must_use]
    pub fn status(&self, fingerprint: &str) -> Option<Manifest> {
        if self.linked(fingerprint).is_some() {
            return None;
        }
        let folder = self.folder(fingerprint);
        let manifest = Manifest::from_bytes(&plain(&folder.join(MANIFEST)).ok()?)?;
        let size = fs::symlink_metadata(folder.join(ARTIFACT)).ok().filter(fs::Metadata::is_file)?.len();
        (manifest.fingerprint == fingerprint && manifest.bytes == size).then_some(manifest)
    }

    /// Whether there is a result at all, sound or not: for counting, without reading it.
    #[must_use]
    pub fn has(&self, fingerprint: &str) -> bool {
        let folder = self.folder(fingerprint);
        folder.join(MANIFEST).exists() && folder.join(ARTIFACT).exists()
    }

    /// What is wrong with a result that is there but does not look whole.
    #[must_use]
    pub fn wreck(&self, fingerprint: &str) -> Option<Error> {
        let folder = self.folder(fingerprint);
        if folder.symlink_metadata().is_err() || self.status(fingerprint).is_some() {
            return None;
        }
        let why = if self.linked(fingerprint).is_some() {
            "the folder above it is a link"
        } else {
            "its files do not fit its manifest"
        };
        Some(Error::Damaged { path: folder, why: why.to_owned() })
    }

    /// Reads an artifact and verifies its digest. `carried` is what its kind is read with, by fingerprint: it must be
    /// what the artifact was made from. What is damaged is put aside, and the error says so.
    pub fn load(&self, fingerprint: &str, carried: Option<(&str, &Artifact)>) -> Result<Artifact> {
        let path = self.folder(fingerprint).join(ARTIFACT);
        let damaged = |why: &str| Error::Damaged { path: path.clone(), why: why.to_owned() };
        let seen = self.manifest_of(fingerprint);
        let mut whole = false;
        let mut read = || -> Result<Artifact> {
            let manifest = self.status(fingerprint).ok_or_else(|| damaged("its manifest does not fit it"))?;
            let bytes = plain(&path).and_then(|bytes| point("load.read").map(|()| bytes));
            let bytes = bytes.map_err(|error| damaged(&error.to_string()))?;
            if blake3::hash(&bytes).to_hex().as_str() != manifest.digest {
                return Err(damaged("its contents are not what was written"));
            }
            whole = true;
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
            // A sound file that this recant makes nothing of is made again, like a damaged one.
            codec::decode(kind, encoded, carried.map(|(_, artifact)| artifact)).map_err(|error| match error {
                Error::Io { .. } | Error::Damaged { .. } => error,
                other => damaged(&other.to_string()),
            })
        };
        let result = read();
        match &result {
            Err(Error::Damaged { .. }) => {
                self.put_damaged_aside(fingerprint, seen.as_deref(), whole);
            }
            // The time of last use, for collection.
            Ok(_) => touch(&self.folder(fingerprint).join(MANIFEST)),
            Err(_) => {}
        }
        result
    }

    /// Moves a result out of the way, or the link behind which it is said to be. Where that fails, a damaged one stays and is
    /// found damaged again.
    pub fn put_aside(&self, fingerprint: &str) {
        self.moves_aside(fingerprint);
    }

    /// Whether it could be moved.
    fn moves_aside(&self, fingerprint: &str) -> bool {
        match self.linked(fingerprint) {
            Some(shard) => self.put_link_aside(&shard),
            None => self.aside_with(&self.folder(fingerprint), fingerprint),
        }
    }

    /// A link alone is taken away: if another run has put a folder in its place meanwhile, that stays.
    fn put_link_aside(&self, path: &Path) -> bool {
        let kept = self.aside(&files::name(path)).map(|to| fs::hard_link(path, to));
        // Not every file system can have two names for a link.
        drop(kept);
        fs::remove_file(path).and_then(|()| point("aside.moved")).is_ok()
    }

    /// Moves a result out of the way if it is damaged, or, where it is `unfit`, as it is; `seen` is its manifest when it was looked
    /// at. Another run may have made it again since; whoever does so holds its claim, so it is looked at again, and
    /// moved, under that. Whether it could be moved; none where it needed none, or another run sees to it.
    fn put_damaged_aside(&self, fingerprint: &str, seen: Option<&[u8]>, unfit: bool) -> Option<bool> {
        let changed = || self.manifest_of(fingerprint).as_deref() != seen;
        let look = || (unfit || !self.is_sound(fingerprint)) && !changed();
        match self.claim_unless(fingerprint, || changed() || self.status(fingerprint).is_none()) {
            Ok(None) => None,
            // A large result takes long to look at.
            Ok(Some(claim)) => {
                let damaged = claim.beating(look);
                (damaged && claim.holds()).then(|| self.moves_aside(fingerprint))
            }
            // Where no claim can be written, nobody makes anything.
            Err(_) => look().then(|| self.moves_aside(fingerprint)),
        }
    }

    fn manifest_of(&self, fingerprint: &str) -> Option<Vec<u8>> {
        plain(&self.folder(fingerprint).join(MANIFEST)).ok()
    }

    /// Whether it could be moved.
    fn aside_with(&self, path: &Path, name: &str) -> bool {
        let Ok(to) = self.aside(name) else { return false };
        let moved = || fs::rename(path, &to);
        // A folder that may not be written cannot be moved to another one.
        // Rights are those of what a link leads to.
        let open = || fs::set_permissions(path, fs::Permissions::from_mode(0o700)).and_then(|()| moved());
        let done = moved().or_else(|error| if path.is_dir() && !path.is_symlink() { open() } else { Err(error) });
        touch(&to);
        done.and_then(|()| point("aside.moved")).is_ok()
    }

    /// A name in quarantine that nothing has.
    fn aside(&self, name: &str) -> Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = self.root.join("quarantine");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(folder.join(format!("{name}.{}.{count}", who::Who::me().tag())))
    }

    /// Publishes a result. Where another run was first, its result stands.
    pub fn save(&self, artifact: &Artifact, mut manifest: Manifest) -> Result<()> {
        let made = self.temp_folder("new")?;
        let path = made.path().join(ARTIFACT);
        let wrong = |error| Error::io("write", &path)(error);
        point("save.folder").map_err(wrong)?;
        codec::write(artifact, &path).map_err(|error| match error {
            Error::Io { source, .. } => wrong(self.full(source, codec::bytes(artifact))),
            other => other,
        })?;
        point("save.artifact").map_err(wrong)?;
        // Whoever may enter the folder may read what lies there.
        let mode = fs::metadata(made.path()).map_err(wrong)?.permissions().mode() & 0o666;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(wrong)?;
        let file = fs::File::open(&path).and_then(|file| file.sync_all().map(|()| file));
        let size = file.and_then(|file| file.metadata()).map_err(wrong)?.len();
        point("save.synced").map_err(wrong)?;
        (manifest.digest, manifest.bytes) = (Self::digest_of(&path)?, size);
        let words = manifest.to_bytes()?;
        write_synced(&made.path().join(MANIFEST), &words)
            .and_then(|()| point("save.manifest"))
            .map_err(|error| wrong(self.full(error, words.len() as u64)))?;
        sync_folder(made.path());
        let folder = self.folder(&manifest.fingerprint);
        let parent = folder.parent().unwrap_or(&self.root).to_owned();
        if self.linked(&manifest.fingerprint).is_some() {
            self.put_aside(&manifest.fingerprint);
            if let Some(path) = self.linked(&manifest.fingerprint) {
                return Err(Error::Damaged { path, why: "it is a link, and cannot be moved away".to_owned() });
            }
        }
        fs::create_dir_all(&parent).and_then(|()| point("save.parent")).map_err(Error::io("create", &parent))?;
        if self.status(&manifest.fingerprint).is_some() {
            return Ok(());
        }
        if folder.symlink_metadata().is_ok() {
            self.put_aside(&manifest.fingerprint);
        }
        match fs::rename(made.path(), &folder) {
            Ok(()) => drop(made.keep()),
            Err(_) if self.status(&manifest.fingerprint).is_some() => {}
            Err(error) => return Err(Error::io("publish", &folder)(error)),
        }
        point("save.published").map_err(Error::io("publish", &folder))?;
        sync_folder(&parent);
        self.forget_checkpoint(&manifest.fingerprint);
        point("save.done").map_err(Error::io("publish", &folder))
    }

    /// Every manifest in the store, in the order of fingerprints.
    #[must_use]
    pub fn manifests(&self) -> Vec<Manifest> {
        let shards = list(&self.root.join("objects")).unwrap_or_default();
        let own = shards.into_iter().filter(|shard| !shard.is_symlink());
        let folders: Vec<PathBuf> = own.flat_map(|shard| list(&shard).unwrap_or_default()).collect();
        // One that says it is of another result would have that one collected in its place.
        let read = |folder: &PathBuf| {
            let manifest = Manifest::from_bytes(&plain(&folder.join(MANIFEST)).ok()?)?;
            (*folder == self.folder(&manifest.fingerprint)).then_some(manifest)
        };
        folders.par_iter().filter_map(read).collect()
    }

    /// The digest of an outside file.
    pub fn digest_of(path: &Path) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let file = fs::File::open(path).map_err(Error::io("open", path))?;
        hasher.update_reader(file).map_err(Error::io("read", path))?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
