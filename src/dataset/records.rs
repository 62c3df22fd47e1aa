//! Files of records of one length, read one by one, so that no more than the images is held.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::halt::Halt;

/// Calls `each` with the number and the bytes of every record. `what` says what a record is made of.
pub(super) fn each(
    path: &Path,
    length: usize,
    what: &str,
    halt: &Halt,
    mut each: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    if size == 0 || size % length as u64 != 0 {
        let why = format!("it has {size} bytes, expected a multiple of {length} ({what})");
        return Err(Error::bad_file(path, why));
    }
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut record = vec![0; length];
    for number in 0..(size / length as u64) as usize {
        if number % 1024 == 0 {
            halt()?;
        }
        file.read_exact(&mut record).map_err(Error::io("read", path))?;
        each(number, &record)?;
    }
    Ok(())
}

/// For how many records of that length space is set aside: a file with holes is longer than it is large.
pub(super) fn count(path: &Path, length: usize) -> usize {
    std::fs::metadata(path).map_or(0, |file| (file.len() as usize / length).min(100_000))
}

/// Appends an image that is stored plane by plane, row by row, as height x width x channels.
pub(super) fn push_planes(pixels: &mut Vec<u8>, planes: &[u8], channels: usize) {
    let area = planes.len() / channels;
    for at in 0..area {
        pixels.extend((0..channels).map(|channel| planes[channel * area + at]));
    }
}
