//! Files of data sets from their publishers: streamed beside, resumed where a connection broke, checked against a known
//! digest, renamed into place only then. HTTPS alone, but for a mirror that the user names.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use sha2::Sha256;
use ureq::Agent;

use crate::dataset::{Dataset, Form, Remote};
use crate::error::{Error, Result, listed, plural};

/// Nothing that is fetched or unpacked is larger.
const LIMIT: u64 = 8 << 30;
/// Nor is a list of digests longer.
const PINS: u64 = 1 << 20;
/// Where the files of an archive are until it is known to be whole.
const UNPACKING: &str = ".unpacking";
/// Attempts in a row that may bring nothing, and attempts in all.
const IDLE: usize = 3;
const ATTEMPTS: usize = 50;

/// A data folder that somebody else made may hold links to files of the user's: those are not written to.
const NO_LINK: i32 = libc::O_NOFOLLOW;

/// How to fetch.
pub struct How<'a> {
    /// A server to take in place of the publisher's: its address, to which `/DATASET/FILE` is added. May be plain HTTP.
    pub mirror: Option<&'a str>,
    /// SHA-256 of each download, in place of the known digests; empty for those.
    pub sha256: &'a [String],
    /// Told the file, and bytes done and in all (0 where unknown), about once a megabyte.
    pub tell: &'a dyn Fn(&str, u64, u64),
}

/// What a download must have.
enum Sum {
    Md5(String),
    Sha256(String),
    /// Nothing is known: the first download is pinned.
    Unknown,
}

/// Holds files that are at hand to the digests that a recipe gives, as far as they are downloads as they came: what was
/// unpacked has no digest of its own.
pub fn check(dataset: &Dataset, files: &[PathBuf], sha256: &[String]) -> Result<()> {
    let all: Vec<&Form> = dataset.forms.iter().filter(|form| !form.origin.is_empty()).collect();
    let forms: Vec<&Form> = all.iter().copied().filter(|form| form.origin.len() == sha256.len()).collect();
    if let (Some(form), true) = (all.first(), forms.is_empty()) {
        let (given, wanted) = (sha256.len(), plural(form.origin.len(), "download"));
        return Err(Error::invalid(format!("`sha256` has {given} digests, but `{}` is {wanted}", dataset.name)));
    }
    for (remote, wanted) in forms.iter().flat_map(|form| form.origin.iter().zip(sha256)) {
        let is_it =
            |path: &&PathBuf| path.file_name().is_some_and(|name| remote.url.rsplit('/').next() == name.to_str());
        if let Some(path) = files.iter().find(is_it) {
            there(path, &Sum::Sha256(wanted.to_lowercase()))?;
        }
    }
    Ok(())
}

/// Fetches the first form of a data set that can be had into a data folder. Where its files are then.
pub fn fetch(dataset: &Dataset, data: &Path, how: &How) -> Result<Vec<PathBuf>> {
    let name = dataset.name;
    let form = dataset.forms.iter().find(|form| !form.origin.is_empty() && !form.files.is_empty());
    let form = form.ok_or_else(|| Error::invalid(format!("the data set `{name}` is not one to fetch")))?;
    if !how.sha256.is_empty() && how.sha256.len() != form.origin.len() {
        let (given, wanted) = (how.sha256.len(), plural(form.origin.len(), "download"));
        return Err(Error::invalid(format!("`sha256` has {given} digests, but `{name}` is {wanted}")));
    }
    let folder = data.join(form.folders.first().copied().unwrap_or(name));
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    for (number, remote) in form.origin.iter().enumerate() {
        let file = remote.url.rsplit('/').next().unwrap_or(name);
        let target = folder.join(file);
        let url = how
            .mirror
            .map_or(remote.url.to_owned(), |mirror| format!("{}/{name}/{file}", mirror.trim_end_matches('/')));
        let pins = folder.join("SHA256SUMS");
        let sum = || known(remote, how.sha256.get(number), &pins, file);
        let archive = file.ends_with(".tar.gz");
        let fetched = || -> Result<()> {
            if target.is_file() {
                there(&target, &sum()?)?;
            } else {
                download(&url, how, &target, &sum, &pins)?;
            }
            if archive {
                unpack(&target, &folder, form.files)?;
                fs::remove_file(&target).map_err(Error::io("remove", &target))?;
            }
            Ok(())
        };
        // Another run may have unpacked it since this one looked, and removed the archive from under it.
        let unpacked = || archive && form.files.iter().all(|file| folder.join(file).is_file());
        match if unpacked() { Ok(()) } else { fetched() } {
            Err(_) if unpacked() => {}
            other => other?,
        }
    }
    Ok(form.files.iter().map(|file| folder.join(file)).collect())
}

fn known(remote: &Remote, given: Option<&String>, pins: &Path, file: &str) -> Result<Sum> {
    if let Some(given) = given {
        return Ok(Sum::Sha256(given.to_lowercase()));
    }
    if !remote.md5.is_empty() {
        return Ok(Sum::Md5(remote.md5.to_owned()));
    }
    let text = pins_in(pins)?;
    let pinned = text.lines().filter_map(|line| line.split_once("  ")).find(|(_, name)| *name == file);
    Ok(pinned.map_or(Sum::Unknown, |(sum, _)| Sum::Sha256(sum.to_owned())))
}

/// The text of a list of digests; none is empty. No link is followed, no pipe waited for.
fn pins_in(pins: &Path) -> Result<String> {
    let plain = match fs::symlink_metadata(pins) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        found => found.map_err(Error::io("read", pins))?.is_file(),
    };
    if !plain {
        return Err(Error::bad_file(pins, "it is no file, expected a list of digests"));
    }
    let mut text = String::new();
    let file = File::open(pins).map_err(Error::io("open", pins))?;
    let count = file.take(PINS + 1).read_to_string(&mut text).map_err(Error::io("read", pins))?;
    if count as u64 > PINS {
        return Err(Error::bad_file(pins, format!("it has more than {PINS} bytes, expected a list of digests")));
    }
    Ok(text)
}

/// Adds a digest to the list, which is whole at any time.
fn pin(pins: &Path, sha256: &str, file: &str) -> Result<()> {
    let text = format!("{}{sha256}  {file}\n", pins_in(pins)?);
    // One name, so that what a run that died left is written over.
    let new = pins.with_file_name(".SHA256SUMS.new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).custom_flags(NO_LINK).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, pins)
    };
    write().map_err(Error::io("write", pins))
}

/// SHA-256 of a file, its digest of the wanted kind, and the wanted one.
fn compare(path: &Path, sum: &Sum) -> Result<(String, String, String)> {
    let (sha256, md5) = digests(path)?;
    Ok(match sum {
        Sum::Md5(wanted) => (sha256, md5, wanted.clone()),
        Sum::Sha256(wanted) => (sha256.clone(), sha256, wanted.clone()),
        Sum::Unknown => (sha256.clone(), sha256.clone(), sha256),
    })
}

/// The SHA-256 of a file that was there before, which is not trusted by its name.
fn there(path: &Path, sum: &Sum) -> Result<String> {
    let (sha256, found, wanted) = compare(path, sum)?;
    if found == wanted {
        return Ok(sha256);
    }
    Err(Error::bad_file(path, format!("its digest is {found}, expected {wanted}: move it away to fetch the right one")))
}

/// Why a transfer ended early.
enum End {
    /// Worth another attempt.
    Cut(String),
    Failed(Error),
}

/// Fetches one file, checks it and moves it into place; its SHA-256. One of which nothing was known is pinned first: whoever
/// dies in between finds that the next try is held to it.
fn download(url: &str, how: &How, target: &Path, sum: &dyn Fn() -> Result<Sum>, pins: &Path) -> Result<String> {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let part = target.with_file_name(format!("{name}.part"));
    let mut file = loop {
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true);
        let file = options.custom_flags(NO_LINK).open(&part).map_err(Error::io("open", &part))?;
        // Two programs may want the same file: the second waits and finds it there,
        file.lock().map_err(Error::io("lock", &part))?;
        if target.is_file() {
            return there(target, &sum()?);
        }
        // or put away as a wrong one.
        let number = |meta: std::io::Result<fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        if number(file.metadata()) == number(fs::symlink_metadata(&part)) {
            break file;
        }
    };
    // What another one pinned meanwhile holds.
    let sum = &sum()?;
    let mut have = file.metadata().map_err(Error::io("read", &part))?.len();
    if matches!(sum, Sum::Unknown) {
        // Nothing could tell whether the two halves belong together.
        have = 0;
    }
    let config = Agent::config_builder()
        .https_only(how.mirror.is_none())
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(600)))
        .build();
    let agent = Agent::new_with_config(config);
    let (mut idle, mut attempts) = (0, 0);
    loop {
        let before = have;
        attempts += 1;
        match transfer(&agent, url, &mut file, &part, &mut have, &|done, all| (how.tell)(&name, done, all)) {
            Ok(()) => break,
            Err(End::Failed(error)) => return Err(error),
            Err(End::Cut(why)) => {
                idle = if have > before { 0 } else { idle + 1 };
                if idle == IDLE || attempts == ATTEMPTS {
                    let why = format!(
                        "`{url}` could not be fetched: {why}; {have} bytes are there, the next try goes on from them"
                    );
                    return Err(Error::bad_file(&part, why));
                }
                std::thread::sleep(Duration::from_millis(200 << idle));
            }
        }
    }
    file.sync_all().map_err(Error::io("write", &part))?;
    let (sha256, found, wanted) = compare(&part, sum)?;
    if found != wanted {
        let away = target.with_file_name(format!("{name}.bad"));
        fs::rename(&part, &away).map_err(Error::io("put away", &part))?;
        let why = format!(
            "fetched from `{url}`, its digest is {found}, expected {wanted}; it is put away under this name; if the \
             publisher has changed the file, say sha256 = \"{sha256}\" in the recipe"
        );
        return Err(Error::bad_file(&away, why));
    }
    if matches!(sum, Sum::Unknown) {
        pin(pins, &sha256, &name)?;
    }
    fs::rename(&part, target).map_err(Error::io("rename", &part))?;
    Ok(sha256)
}

/// One request, which goes on from what is there.
fn transfer(
    agent: &Agent,
    url: &str,
    file: &mut File,
    part: &Path,
    have: &mut u64,
    tell: &dyn Fn(u64, u64),
) -> std::result::Result<(), End> {
    let failed = |error: std::io::Error| End::Failed(Error::io("write", part)(error));
    let mut request = agent.get(url).header("User-Agent", concat!("recant/", env!("CARGO_PKG_VERSION")));
    if *have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let mut response = request.call().map_err(|error| match error {
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => {
            End::Failed(Error::invalid(format!("`{url}` cannot be fetched: {error}")))
        }
        other => End::Cut(other.to_string()),
    })?;
    let header =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    // "bytes 100-199/200", or "bytes */200".
    let range = header("content-range");
    let (span, whole) = range.trim_start_matches("bytes ").split_once('/').unwrap_or_default();
    let whole: u64 = whole.parse().unwrap_or(0);
    let all = match response.status().as_u16() {
        206 if span.split('-').next() == Some(have.to_string().as_str()) => whole,
        416 if whole == *have => return Ok(()),
        206 | 416 => {
            *have = 0;
            return Err(End::Cut(format!("the server answered with the range `{range}`")));
        }
        200 => {
            *have = 0;
            header("content-length").parse().unwrap_or(0)
        }
        status @ (429 | 500..) => return Err(End::Cut(format!("the server answered {status}"))),
        status => {
            return Err(End::Failed(Error::invalid(format!(
                "`{url}` cannot be fetched: the server answered {status}"
            ))));
        }
    };
    file.set_len(*have).and_then(|()| file.seek(SeekFrom::Start(*have))).map_err(failed)?;
    let mut reader = response.body_mut().as_reader();
    let (mut buffer, mut told) = (vec![0; 1 << 16], u64::MAX);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(End::Cut(error.to_string())),
        };
        file.write_all(buffer.get(..count).unwrap_or_default()).map_err(failed)?;
        *have += count as u64;
        if *have > LIMIT || (all > 0 && *have > all) {
            return Err(End::Failed(Error::invalid(format!("`{url}` sends more than it should: {have} bytes"))));
        }
        if told != *have >> 20 {
            told = *have >> 20;
            tell(*have, all);
        }
    }
    if *have < all {
        return Err(End::Cut(format!("the connection ended after {have} of {all} bytes")));
    }
    tell(*have, all);
    Ok(())
}

/// SHA-256 and MD5 of a file.
fn digests(path: &Path) -> Result<(String, String)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut sha256, mut md5, mut buffer) = (Sha256::new(), Md5::new(), vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
            return Ok((hex(&sha256.finalize()), hex(&md5.finalize())));
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        sha256.update(bytes);
        md5.update(bytes);
    }
}

/// Takes the named files out of an archive, all or none, whatever folder they are in there. Nothing else is unpacked.
pub fn unpack(archive: &Path, folder: &Path, files: &[&str]) -> Result<()> {
    let bad = |why: String| Error::bad_file(archive, why);
    let broken = |error: std::io::Error| bad(format!("not a whole .tar.gz archive: {error}"));
    // Where it may be written, for that: not every network's locks take what may only be read.
    let file = OpenOptions::new().read(true).write(true).open(archive).or_else(|_| File::open(archive));
    let file = file.map_err(Error::io("open", archive))?;
    // One at a time, so that what lies in its folder is of one that died.
    file.lock().map_err(Error::io("lock", archive))?;
    let left = folder.join(UNPACKING);
    if left.symlink_metadata().is_ok() {
        fs::remove_dir_all(&left).map_err(Error::io("remove", &left))?;
    }
    let temp = tempfile::Builder::new().prefix(UNPACKING).rand_bytes(0).tempdir_in(folder);
    let temp = temp.map_err(Error::io("create", &left))?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&file).take(LIMIT));
    // Raw: what extends names and sizes is not taken into memory, however long it is.
    for entry in tar.entries().map_err(broken)?.raw(true) {
        let entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
        {
            continue;
        }
        let path = entry.path().map_err(broken)?.into_owned();
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(bad(format!("it holds `{}`, which leads out of it: nothing is unpacked", path.display())));
        }
        let Some(name) = path.file_name().and_then(|name| files.iter().find(|file| name == **file)) else { continue };
        if !kind.is_file() {
            // A folder or a link of that name.
            if kind.is_dir() {
                continue;
            }
            return Err(bad(format!("`{}` in it is a link, expected a file: nothing is unpacked", path.display())));
        }
        let size = entry.size();
        let to = temp.path().join(name);
        let mut out = File::create_new(&to).map_err(Error::io("write", &to))?;
        let written = std::io::copy(&mut entry.take(LIMIT), &mut out).map_err(broken)?;
        if written != size {
            return Err(bad(format!("`{}` in it is cut short: {written} of {size} bytes", path.display())));
        }
        out.sync_all().map_err(Error::io("write", &to))?;
    }
    // To the very end, where the archive's own checksum stands.
    std::io::copy(&mut tar.into_inner(), &mut std::io::sink()).map_err(broken)?;
    let missing: Vec<&&str> = files.iter().filter(|file| !temp.path().join(file).is_file()).collect();
    if !missing.is_empty() {
        return Err(bad(format!("it lacks {}", listed(&missing, "and"))));
    }
    for file in files {
        let to = folder.join(file);
        fs::rename(temp.path().join(file), &to).map_err(Error::io("write", &to))?;
    }
    Ok(())
}
