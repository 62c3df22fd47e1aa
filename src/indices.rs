//! Files of indices into the training part: text with one a line, or numpy's `.npy` (one dimension, whole numbers).

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::output;

/// Reads indices below `count`; one that is out of range or comes twice is an error that names its place.
pub fn read(path: &Path, count: usize) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bad = |why: String| Error::bad_file(path, why);
    let (unit, numbered) = if extension(path) == "npy" {
        ("position", npy(&bytes).map_err(bad)?)
    } else {
        ("line", lines(&bytes).map_err(bad)?)
    };
    let mut first: Vec<Option<usize>> = vec![None; count];
    let mut indices = Vec::new();
    for found in numbered {
        let (place, value) = found.map_err(bad)?;
        let seen = usize::try_from(value).ok().and_then(|index| first.get_mut(index));
        let seen = seen.ok_or_else(|| {
            bad(format!("{unit} {place}: {value} is out of range, expected 0 to {}", count.saturating_sub(1)))
        })?;
        if let Some(before) = seen {
            return Err(bad(format!("{unit} {place}: {value} comes twice, first at {unit} {before}")));
        }
        *seen = Some(place);
        indices.push(value as u32);
    }
    Ok(indices)
}

/// Numbers with their places, one by one: no more of them are held than there are images.
type Numbers<'a> = Box<dyn Iterator<Item = Fragment<(usize, i128)>> + 'a>;

/// Writes indices as `.txt` or `.npy` (int64), the whole file or nothing.
pub fn write(path: &Path, indices: &[u32]) -> Result<()> {
    let bytes = match extension(path).as_str() {
        "txt" => indices.iter().flat_map(|index| format!("{index}\n").into_bytes()).collect(),
        "npy" => {
            let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}", indices.len());
            // The header ends at a multiple of 64 bytes, with a newline.
            let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((length as u16).to_le_bytes());
            bytes.extend(format!("{header:<width$}\n", width = length - 1).bytes());
            bytes.extend(indices.iter().flat_map(|&index| i64::from(index).to_le_bytes()));
            bytes
        }
        _ => return Err(Error::Usage(format!("`{}`: expected a name that ends in .txt or .npy", path.display()))),
    };
    output::write(path, |file| file.write_all(&bytes).map_err(Error::io("write", path)))
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

type Fragment<T> = std::result::Result<T, String>;

fn lines(bytes: &[u8]) -> Fragment<Numbers<'_>> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("byte {} is no text", error.valid_up_to()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(Box::new(lines.map(|(number, line)| {
        let line = line.trim();
        let shown = || line.chars().take(40).collect::<String>();
        let value = line.parse().map_err(|_| format!("line {}: `{}` is not an index", number + 1, shown()))?;
        Ok((number + 1, value))
    })))
}

/// The numbers of a `.npy` file, format 1 to 3: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
fn npy(bytes: &[u8]) -> Fragment<Numbers<'_>> {
    let cut = || "it is cut short, expected a numpy file".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("not a numpy file")?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(cut)?;
    let (length, rest) = rest.split_at_checked(if version[0] == 1 { 2 } else { 4 }).ok_or_else(cut)?;
    let length = length.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let lacks = |key: &str| format!("its header lacks `{key}`");
    let kind = after("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\''));
    let kind = kind.ok_or_else(|| lacks("descr"))?.0;
    let shape =
        after("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or_else(|| lacks("shape"))?.0;
    if after("fortran_order").is_none_or(|rest| !rest.starts_with("False")) {
        return Err("it is in Fortran order, expected C order".to_owned());
    }
    let size = match kind {
        "<i4" | "<u4" => 4,
        "<i8" | "<u8" => 8,
        "|b1" => return Err("it is a mask; write its indices: numpy.flatnonzero(mask)".to_owned()),
        other => return Err(format!("its numbers are `{other}`, expected int32, int64, uint32 or uint64")),
    };
    let count = shape.strip_suffix(',').and_then(|count| count.trim().parse::<usize>().ok());
    let count = count.ok_or_else(|| format!("its shape is ({shape}), expected one dimension"))?;
    if count.checked_mul(size) != Some(data.len()) {
        return Err(format!("its header says {count} numbers of {size} bytes, but {} bytes follow", data.len()));
    }
    let signed = kind.starts_with("<i");
    let value = move |bytes: &[u8]| {
        let value = bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        match (signed, size) {
            (true, 4) => i128::from(value as u32 as i32),
            (true, _) => i128::from(value as i64),
            (false, _) => i128::from(value),
        }
    };
    Ok(Box::new(data.chunks_exact(size).map(value).enumerate().map(Ok)))
}
