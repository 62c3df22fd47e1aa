//! Image sets in the parquet layout of Hugging Face: a column of {bytes, path} with one encoded image each, and a
//! column of labels. The pixels of JPEG and PNG copies differ, so each has its own name in results. And SVHN (Netzer et
//! al. 2011), whose cropped digits are published so.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use rayon::prelude::*;

use super::{Dataset, Form, Remote, assemble, parquet_claims, picture};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::halt::Halt;

pub(super) const FILES: &[&str] = &["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"];
/// Rows decoded at once.
const ROWS: usize = 2048;
/// No such set has more rows.
const MOST: usize = 200_000;

pub(super) const SVHN: Dataset = Dataset {
    name: "svhn",
    about: "street view house numbers, cropped, 73,257 and 26,032 of 32x32 RGB",
    classes: &super::DIGITS,
    counts: [73_257, 26_032, 0],
    forms: &[Form {
        about: "parquet files",
        files: FILES,
        folders: &["svhn/cropped_digits", "svhn"],
        origin: &[
            Remote {
                url: "https://huggingface.co/datasets/ufldl-stanford/svhn/resolve/main/cropped_digits/train-00000-of-00001.parquet",
                md5: "",
            },
            Remote {
                url: "https://huggingface.co/datasets/ufldl-stanford/svhn/resolve/main/cropped_digits/test-00000-of-00001.parquet",
                md5: "",
            },
        ],
        load: |files, halt| load(files, halt, "SVHN", &super::DIGITS, "label"),
    }],
};

pub(super) fn load(files: &[PathBuf], halt: &Halt, name: &str, classes: &[&str], labels: &str) -> Result<Images> {
    let [train, test] = files else {
        return Err(Error::invalid(format!("{name} has two files, not {}", files.len())));
    };
    let size = [3, 32, 32];
    let (train, format) = guarded(train, size, (labels, classes.len()), halt)?;
    let (test, _) = guarded(test, size, (labels, classes.len()), halt)?;
    assemble(format!("{name} ({format} copy)"), classes, size, train, test)
}

/// The parquet reader asserts some of what a file says of itself; a damaged file must not end the program.
fn guarded(path: &Path, size: [usize; 3], labels: (&str, usize), halt: &Halt) -> Result<(Part, &'static str)> {
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| part(path, size, labels, halt)));
    done.unwrap_or_else(|_| Err(Error::bad_file(path, "not a whole parquet file: its pages are damaged")))
}

fn part(path: &Path, size: [usize; 3], (label, classes): (&str, usize), halt: &Halt) -> Result<(Part, &'static str)> {
    let bad = |why: String| Error::bad_file(path, why);
    let broken = |error: parquet::errors::ParquetError| bad(format!("not a whole parquet file: {error}"));
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let end = file.metadata().map_err(Error::io("read", path))?.len();
    let claims = |why: String| bad(format!("not a whole parquet file: {why}"));
    parquet_claims::footer(&mut file, end).map_err(claims)?;
    let again = file.try_clone().map_err(Error::io("read", path))?;
    let reader = SerializedFileReader::new(again).map_err(broken)?;
    let lies = |start: i64, length: i64| {
        let end_of = u64::try_from(start).ok().zip(u64::try_from(length).ok()).and_then(|(a, b)| a.checked_add(b));
        end_of.is_none_or(|at| at > end)
    };
    let chunks = reader.metadata().row_groups().iter().flat_map(parquet::file::metadata::RowGroupMetaData::columns);
    for chunk in chunks {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        if lies(start, chunk.compressed_size()) || lies(chunk.data_page_offset(), 0) {
            return Err(bad(format!("not a whole parquet file: a column lies outside of its {end} bytes")));
        }
    }
    let schema = reader.metadata().file_metadata().schema_descr();
    let column = |names: &[&str]| {
        let found = (0..schema.num_columns()).find(|&i| names.contains(&schema.column(i).path().string().as_str()));
        found.ok_or_else(|| {
            let there: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
            bad(format!("it has the columns {}, expected {}", crate::error::listed(&there, "and"), names.join(" or ")))
        })
    };
    let (image_column, label_column) = (column(&["img.bytes", "image.bytes"])?, column(&[label])?);
    let length: usize = size.iter().product();
    let mut scanned = 0_u64;
    for group in reader.metadata().row_groups() {
        halt()?;
        for chunk in [image_column, label_column].iter().filter_map(|&number| group.columns().get(number)) {
            let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
            // row groups that share their pages would have them looked at, and unpacked, again and again
            scanned = scanned.saturating_add(chunk.compressed_size() as u64);
            if scanned > end {
                return Err(bad(format!("not a whole parquet file: its columns lie on each other in its {end} bytes")));
            }
            parquet_claims::pages(&mut file, start as u64, chunk.compressed_size() as u64).map_err(claims)?;
        }
    }
    // One image, packed once, can stand in any number of rows.
    let most = MOST.min((picture::most(end as usize) / length as u64) as usize);
    let rows = usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
    let mut pixels = Vec::with_capacity(rows.min(most) * length);
    let mut labels: Vec<u32> = Vec::new();
    let mut jpeg = None;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(broken)?;
        let mut columns = Columns::of(group.as_ref(), image_column, label_column).map_err(bad)?;
        loop {
            halt()?;
            let (images, numbers) = columns.next().map_err(|why| bad(format!("after row {}: {why}", labels.len())))?;
            if images.is_empty() {
                break;
            }
            let first = labels.len();
            if first + images.len() > most {
                return Err(bad(format!(
                    "it has more than {most} rows, too many for its {end} bytes or for such a set"
                )));
            }
            for (row, number) in numbers.iter().enumerate() {
                let class = u32::try_from(*number).ok().filter(|&class| (class as usize) < classes);
                let wrong = || bad(format!("row {}: the label {number}, expected 0 to {}", first + row, classes - 1));
                labels.push(class.ok_or_else(wrong)?);
            }
            let begins = |image: &ByteArray| image.data().starts_with(&[0xff, 0xd8]);
            let jpeg = *jpeg.get_or_insert_with(|| images.first().is_some_and(begins));
            pixels.resize(labels.len() * length, 0);
            let new = pixels.get_mut(first * length..).unwrap_or_default();
            let wrong = new.par_chunks_mut(length).zip(&images).enumerate().find_map_first(|(row, (out, image))| {
                let same = begins(image) == jpeg;
                let mixed = || Err("JPEG and PNG are mixed, expected one of them".to_owned());
                let done = if same { picture::decode(image.data(), size, out) } else { mixed() };
                done.err().map(|why| bad(format!("the image of row {}: {why}", first + row)))
            });
            wrong.map_or(Ok(()), Err)?;
        }
    }
    let format = if jpeg == Some(true) { "JPEG" } else { "PNG" };
    Ok((Part { pixels: Arc::new(pixels), labels: Arc::new(labels) }, format))
}

/// Images and labels of a row group, side by side.
struct Columns {
    images: ColumnReader,
    labels: ColumnReader,
}

impl Columns {
    fn of(group: &dyn RowGroupReader, images: usize, labels: usize) -> std::result::Result<Self, String> {
        let column = |number| group.get_column_reader(number).map_err(|error| error.to_string());
        Ok(Self { images: column(images)?, labels: column(labels)? })
    }

    /// The next rows; none at the end.
    fn next(&mut self) -> std::result::Result<(Vec<ByteArray>, Vec<i64>), String> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        let (mut levels, mut label_levels) = (Vec::new(), Vec::new());
        let (ColumnReader::ByteArrayColumnReader(image_column), ColumnReader::Int64ColumnReader(label_column)) =
            (&mut self.images, &mut self.labels)
        else {
            return Err("the columns hold no bytes and 64-bit labels".to_owned());
        };
        let text = |error: parquet::errors::ParquetError| error.to_string();
        let (rows, ..) = image_column.read_records(ROWS, Some(&mut levels), None, &mut images).map_err(text)?;
        if rows > 0 {
            label_column.read_records(rows, Some(&mut label_levels), None, &mut labels).map_err(text)?;
        }
        if images.len() != rows || labels.len() != rows {
            return Err(format!(
                "{} images and {} labels in {rows} rows, expected one each",
                images.len(),
                labels.len()
            ));
        }
        Ok((images, labels))
    }
}
