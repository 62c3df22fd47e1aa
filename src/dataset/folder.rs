//! A folder of images by class: `train/CLASS/*.png` or `*.jpg`, and if there are, `validation/` and `test/` alike. Classes
//! and images count in the order of their names. All images have one size; they are grey where all of them are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::{Dataset, Form, assemble, picture};
use crate::data::{Images, Part};
use crate::error::{Error, Result, listed};
use crate::halt::Halt;

pub const DATASET: Dataset = Dataset {
    name: "folder",
    about: "your own images: PATH/train/CLASS/*.png or *.jpg, PATH/test/..",
    classes: &[],
    counts: [0; 3],
    forms: &[Form { about: "folder", files: &[], folders: &[], origin: &[], load }],
};

pub(super) fn locate(own: Option<&Path>) -> Result<Vec<PathBuf>> {
    let own = own.ok_or_else(|| Error::invalid("the data set `folder` needs a `path`"))?;
    if own.is_dir() {
        Ok(vec![own.to_owned()])
    } else {
        Err(Error::bad_file(own, "no such folder, expected one with train/CLASS/*.png or *.jpg"))
    }
}

/// What a folder has, in the order of names; names that begin with a dot are passed over.
fn entries(folder: &Path, root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if entry.file_type().map_err(Error::io("read", &path))?.is_symlink() {
            inside(&path, root)?;
        }
        found.push(path);
    }
    found.sort();
    Ok(found)
}

/// A link must not lead out of the folder that the user named.
fn inside(path: &Path, root: &Path) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::io("read", path));
    if real(path)?.starts_with(real(root)?) {
        return Ok(());
    }
    let root = root.display();
    Err(Error::bad_file(path, format!("it is a link that leads out of `{root}`, expected files and folders in there")))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Images of a part of the folder with their class names.
fn list(part: &Path, root: &Path) -> Result<Vec<(PathBuf, String)>> {
    inside(part, root)?;
    let mut all = Vec::new();
    for class in entries(part, root)? {
        if !class.is_dir() {
            return Err(Error::bad_file(&class, "it is a file, expected a folder named by a class"));
        }
        for image in entries(&class, root)? {
            let kind = image.extension().map(|kind| kind.to_string_lossy().to_lowercase()).unwrap_or_default();
            if !["png", "jpg", "jpeg"].contains(&kind.as_str()) {
                return Err(Error::bad_file(&image, "expected a PNG or JPEG image (.png, .jpg, .jpeg)"));
            }
            // A pipe would be waited for.
            if !image.is_file() {
                return Err(Error::bad_file(&image, "it is no file, expected a PNG or JPEG image"));
            }
            all.push((image, name(&class)));
        }
    }
    Ok(all)
}

const PARTS: [&str; 3] = ["train", "validation", "test"];

/// One digest of the names and contents of all images.
pub fn digest(folder: &Path, of_file: &mut dyn FnMut(&Path) -> Result<String>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for part in PARTS.iter().map(|part| folder.join(part)).filter(|part| part.is_dir()) {
        for (image, class) in list(&part, folder)? {
            // Length first, so that no two lists of names look alike.
            for text in [name(&part), class, name(&image), of_file(&image)?] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io("read", path))
}

fn load(files: &[PathBuf], halt: &Halt) -> Result<Images> {
    let [root] = files else { return Err(Error::invalid("the data set `folder` is one folder")) };
    let [train, validation, test] = PARTS.map(|part| {
        let folder = root.join(part);
        if folder.is_dir() { list(&folder, root) } else { Ok(Vec::new()) }
    });
    let (train, validation, test) = (train?, validation?, test?);
    let mut classes: Vec<&str> = train.iter().map(|(_, class)| class.as_str()).collect();
    classes.dedup();
    let Some((first, _)) = train.first() else {
        return Err(Error::bad_file(root, "no images, expected train/CLASS/*.png or *.jpg"));
    };
    let all: Vec<&PathBuf> = [&train, &validation, &test].into_iter().flatten().map(|(path, _)| path).collect();
    let looks: Vec<(usize, usize, bool)> = all
        .par_iter()
        .map(|path| {
            halt()?;
            picture::look(&read(path)?).map_err(|why| Error::bad_file(path, why))
        })
        .collect::<Vec<Result<_>>>()
        .into_iter()
        .collect::<Result<_>>()?;
    let (height, width, _) = looks.first().copied().unwrap_or_default();
    if let Some((odd, found)) = all.iter().zip(&looks).find(|(_, look)| (look.0, look.1) != (height, width)) {
        let first = first.display();
        let why = format!("it has {}x{} pixels, expected {height}x{width} as `{first}` has", found.0, found.1);
        return Err(Error::bad_file(odd, why));
    }
    let channels = if looks.iter().any(|look| look.2) { 3 } else { 1 };
    let size = [channels, height, width];
    let part = |images: &[(PathBuf, String)]| -> Result<Part> {
        let number = |(path, class): &(PathBuf, String)| {
            let found = classes.iter().position(|known| known == class).map(|number| number as u32);
            let why = || format!("no training images of the class `{class}`; there are {}", listed(&classes, "and"));
            found.ok_or_else(|| Error::bad_file(path, why()))
        };
        let labels = images.iter().map(number).collect::<Result<_>>()?;
        let length = channels * height * width;
        let mut pixels = vec![0; images.len() * length];
        let wrong = pixels.par_chunks_mut(length.max(1)).zip(images).find_map_first(|(out, (path, _))| {
            let decoded = halt().and_then(|()| read(path)).map(|bytes| picture::decode(&bytes, size, out));
            decoded.and_then(|done| done.map_err(|why| Error::bad_file(path, why))).err()
        });
        wrong.map_or(Ok(()), Err)?;
        Ok(Part { pixels: Arc::new(pixels), labels: Arc::new(labels) })
    };
    let mut images = assemble(name(root), &classes, size, part(&train)?, part(&test)?)?;
    images.validation = part(&validation)?;
    images.check()?;
    Ok(images)
}
