//! The idx format of MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017), gzipped.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dataset, Form, Remote, assemble};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::halt::Halt;

/// Twice the 60,000 images of MNIST.
const LIMIT: u64 = 2 * 60_000 * 28 * 28;

const FILES: &[&str] = &[
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
];

macro_rules! remotes {
    ($base:literal, $($name:literal $md5:literal),*) => { &[$(Remote { url: concat!($base, $name), md5: $md5 }),*] };
}

#[rustfmt::skip]
const ARTICLES: [&str; 10] = [
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
];

pub(super) const MNIST: Dataset = Dataset {
    name: "mnist",
    about: "handwritten digits, 60,000 and 10,000 of 28x28 grey",
    classes: &super::DIGITS,
    counts: [60_000, 10_000, 0],
    forms: &[Form {
        about: "idx files",
        files: FILES,
        folders: &["mnist", "MNIST/raw"],
        origin: remotes!(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "train-images-idx3-ubyte.gz" "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz" "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz" "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz" "ec29112dd5afa0611ce80d1b7f02629c"
        ),
        load: |files, halt| load(files, halt, "MNIST", &super::DIGITS),
    }],
};

pub(super) const FASHION_MNIST: Dataset = Dataset {
    name: "fashion_mnist",
    about: "Zalando's articles, 60,000 and 10,000 of 28x28 grey",
    classes: &ARTICLES,
    counts: [60_000, 10_000, 0],
    forms: &[Form {
        about: "idx files",
        files: FILES,
        folders: &["fashion-mnist", "fashion_mnist", "FashionMNIST/raw"],
        // The publisher's bucket has no HTTPS; its repository holds the same files.
        origin: remotes!(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "train-images-idx3-ubyte.gz" "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz" "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz" "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz" "bb300cfdad3c16e7a12a480ee83cd310"
        ),
        load: |files, halt| load(files, halt, "Fashion-MNIST", &ARTICLES),
    }],
};

fn load(files: &[PathBuf], halt: &Halt, name: &str, classes: &[&str]) -> Result<Images> {
    let [train_images, train_labels, test_images, test_labels] = files else {
        return Err(Error::invalid(format!("{name} has four files, not {}", files.len())));
    };
    let (train, height, width) = part(train_images, train_labels)?;
    halt()?;
    let (test, test_height, test_width) = part(test_images, test_labels)?;
    if (height, width) != (test_height, test_width) {
        let why =
            format!("its images have {test_height}x{test_width} pixels, expected {height}x{width} as in training");
        return Err(Error::bad_file(test_images, why));
    }
    assemble(name.to_owned(), classes, [1, height, width], train, test)
}

fn part(images: &Path, labels: &Path) -> Result<(Part, usize, usize)> {
    let (dims, pixels) = array(images, 3)?;
    let (_, bytes) = array(labels, 1)?;
    if dims[0] != bytes.len() {
        let why = format!("it has {} labels for the {} images of `{}`", bytes.len(), dims[0], images.display());
        return Err(Error::bad_file(labels, why));
    }
    let labels = bytes.into_iter().map(u32::from).collect();
    Ok((Part { pixels: Arc::new(pixels), labels: Arc::new(labels) }, dims[1], dims[2]))
}

/// Dimensions and bytes of an idx file of unsigned bytes.
pub(crate) fn array(path: &Path, rank: u8) -> Result<(Vec<usize>, Vec<u8>)> {
    let broken = |error: std::io::Error| Error::bad_file(path, format!("not a whole gzip file: {error}"));
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut unpacked = flate2::read::GzDecoder::new(BufReader::new(file));
    let mut header = Vec::new();
    (&mut unpacked).take(4 + 4 * u64::from(rank)).read_to_end(&mut header).map_err(broken)?;
    let (kind, sizes) = header.split_at_checked(4).unwrap_or_default();
    if kind != [0, 0, 8, rank] || sizes.len() != 4 * usize::from(rank) {
        return Err(Error::bad_file(path, format!("not an idx file of bytes with {rank} dimensions")));
    }
    let dims: Vec<usize> =
        sizes.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let wanted = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
    let Some(wanted) = wanted.filter(|&wanted| wanted <= LIMIT) else {
        return Err(Error::bad_file(
            path,
            format!("the header says {dims:?}: no such set has more than {LIMIT} bytes"),
        ));
    };
    // No more is unpacked than the header says, but for one byte, which tells that there is more.
    let mut bytes = Vec::new();
    unpacked.take(wanted + 1).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 != wanted {
        let found = if bytes.len() as u64 > wanted { "more".to_owned() } else { bytes.len().to_string() };
        return Err(Error::bad_file(path, format!("the header says {dims:?}, but {found} bytes follow")));
    }
    Ok((dims, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gz(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap();
        file
    }

    #[test]
    fn a_truncated_file_is_named() {
        let good = gz(&[0, 0, 8, 1, 0, 0, 0, 2, 5, 6]);
        assert_eq!(array(good.path(), 1).unwrap(), (vec![2], vec![5, 6]));
        let short = gz(&[0, 0, 8, 1, 0, 0, 0, 3, 5, 6]);
        assert!(array(short.path(), 1).unwrap_err().to_string().contains("2 bytes follow"));
        let huge = gz(&[0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert!(array(huge.path(), 3).is_err());
    }
}
