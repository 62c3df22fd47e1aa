//! What a parquet file claims of itself, looked at before its reader believes it: a small file may say that it has pages,
//! dictionaries and schemas of any size. Its headers are Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>).

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::parquet_format::{FILE, Fragment, LIST, PAGE, STRUCT, Shape};

/// An image set has a few columns; a schema that nests deep takes as much of the stack.
const COLUMNS: i64 = 200;
/// Snappy makes at most 64 bytes of three.
const RATIO: i64 = 32;
/// Structures in structures.
const DEPTH: usize = 16;

/// The footer, before anything is made of it.
pub(super) fn footer(file: &mut File, size: u64) -> Fragment<()> {
    let wrong = |error: std::io::Error| error.to_string();
    let Some(end) = size.checked_sub(8) else { return Err("it has no footer".to_owned()) };
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut tail)).map_err(wrong)?;
    let [a, b, c, d, ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let start = end.checked_sub(length).ok_or("its footer is longer than it")?;
    file.seek(SeekFrom::Start(start)).map_err(wrong)?;
    let mut thrift = Thrift { reader: BufReader::new(file).take(length), used: 0 };
    let mut columns = 0;
    thrift.walk(&FILE, &mut Vec::new(), &mut |path, value| match path {
        [2] if value > COLUMNS => Err(format!("it has {value} columns, expected at most {COLUMNS}")),
        [2] => {
            columns = value;
            Ok(())
        }
        // how many of the columns that follow are parts of this one
        [2, 5] if !(0..columns).contains(&value) => {
            Err(format!("one of its {columns} columns says that {value} are parts of it"))
        }
        _ => Ok(()),
    })
}

/// The headers of a column's pages, which lie within `start..start + length`.
pub(super) fn pages(file: &mut File, start: u64, length: u64) -> Fragment<()> {
    file.seek(SeekFrom::Start(start)).map_err(|error| error.to_string())?;
    let mut thrift = Thrift { reader: BufReader::new(file).take(length), used: 0 };
    while thrift.used < length {
        let (mut plain, mut packed, mut entries) = (0, 0, 0);
        thrift.walk(&PAGE, &mut Vec::new(), &mut |path, value| {
            match path {
                [2] => plain = value,
                [3] => packed = value,
                // how many values a dictionary has
                [7, 1] => entries = value,
                _ => {}
            }
            Ok(())
        })?;
        if packed < 0 || plain < 0 || plain > RATIO.saturating_mul(packed).saturating_add(64) {
            return Err(format!("a page of {packed} bytes says that it unpacks to {plain}"));
        }
        // A value takes four bytes at least: its own, or how long it is.
        if entries < 0 || entries > plain / 4 {
            return Err(format!("a dictionary of {plain} bytes says that it has {entries} values"));
        }
        thrift.pass(packed as u64)?;
    }
    Ok(())
}

/// Structures, read one after the other.
struct Thrift<R> {
    reader: R,
    used: u64,
}

impl<R: Read> Thrift<R> {
    fn byte(&mut self) -> Fragment<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).map_err(|_| "it is cut short")?;
        self.used += 1;
        Ok(byte[0])
    }

    fn pass(&mut self, count: u64) -> Fragment<()> {
        let passed = std::io::copy(&mut (&mut self.reader).take(count), &mut std::io::sink());
        self.used = self.used.saturating_add(count);
        if passed.is_ok_and(|passed| passed == count) { Ok(()) } else { Err("it is cut short".to_owned()) }
    }

    fn number(&mut self) -> Fragment<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number is too long".to_owned())
    }

    fn signed(&mut self) -> Fragment<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// How many items, of which kind.
    fn list(&mut self) -> Fragment<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
        Ok((count, head & 15))
    }

    /// Calls `field` with the number and kind of each field of a structure; it reads what the field holds.
    fn each(&mut self, field: &mut dyn FnMut(&mut Self, i64, u8) -> Fragment<()>) -> Fragment<()> {
        let mut id = 0_i64;
        loop {
            let head = self.byte()?;
            let kind = head & 15;
            if kind == 0 {
                return Ok(());
            }
            id = if head >> 4 == 0 { self.signed()? } else { id.saturating_add(i64::from(head >> 4)) };
            // Larger ones the reader would cut to a known one.
            if i16::try_from(id).is_err() {
                return Err(format!("a field has the number {id}"));
            }
            field(self, id, kind)?;
        }
    }

    /// Reads what has this shape, and calls `see` with each whole number in it and the length of each list, after the numbers of the
    /// fields that lead there.
    fn walk(
        &mut self,
        shape: &Shape,
        path: &mut Vec<i64>,
        see: &mut dyn FnMut(&[i64], i64) -> Fragment<()>,
    ) -> Fragment<()> {
        match shape {
            Shape::Flag => Ok(()),
            Shape::Number(_) => match self.signed()? {
                number if shape.holds(number) => see(path, number),
                number => Err(format!("a field has the number {number}, too large for it")),
            },
            Shape::Plain(kind) => self.skip(*kind, 1),
            Shape::List(of) => {
                let (count, kind) = self.list()?;
                see(path, i64::try_from(count).unwrap_or(i64::MAX))?;
                if count > 0 && kind != of.kind() {
                    return Err(format!("a list has items of the kind {kind}, expected {}", of.kind()));
                }
                (0..count).try_for_each(|_| self.walk(of, path, see))
            }
            Shape::Struct(fields) => self.each(&mut |thrift, id, kind| {
                let Some((_, shape)) = fields.iter().find(|(known, _)| *known == id) else {
                    return thrift.skip(kind, DEPTH);
                };
                shape.takes(kind)?;
                path.push(id);
                thrift.walk(shape, path, see)?;
                path.pop();
                Ok(())
            }),
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Fragment<()> {
        let deeper = depth.checked_sub(1).ok_or("it nests too deep")?;
        match kind {
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.number().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.number()?;
                self.pass(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                // Of flags each would be no byte, or one: nothing that is read here has a list of them.
                if kind < 3 && count > 0 {
                    return Err("it has a list of an unknown kind".to_owned());
                }
                (0..count).try_for_each(|_| self.skip(kind, deeper))
            }
            STRUCT => self.each(&mut |thrift, _, kind| thrift.skip(kind, deeper)),
            other => Err(format!("it has a field of the unknown kind {other}")),
        }
    }
}
