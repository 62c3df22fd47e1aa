//! What a parquet file claims of itself, looked at before its reader believes it: a small file may say that it has pages,
//! dictionaries and schemas of any size. Its headers are Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>), its structures those of
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// An image set has a few columns; a schema that nests deep takes as much of the stack.
const COLUMNS: u64 = 200;
/// Snappy makes at most 64 bytes of three.
const RATIO: i64 = 32;
/// Structures in structures.
const DEPTH: usize = 16;

type Fragment<T> = Result<T, String>;

/// The footer's list of columns, before anything is made of it.
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
    thrift.each(&mut |thrift, id, kind| match (id, kind) {
        (2, _) => {
            of(kind, LIST)?;
            let (count, kind) = thrift.list()?;
            if count > COLUMNS {
                return Err(format!("it has {count} columns, expected at most {COLUMNS}"));
            }
            of(kind, STRUCT)?;
            (0..count).try_for_each(|_| thrift.each(&mut |thrift, id, kind| children(thrift, id, kind, count)))
        }
        _ => thrift.skip(kind, DEPTH),
    })
}

/// A field of a column's description. That of its children is how many columns follow that are parts of it.
fn children(thrift: &mut Thrift<impl Read>, id: i64, kind: u8, count: u64) -> Fragment<()> {
    if id != 5 {
        return thrift.skip(kind, DEPTH);
    }
    of(kind, I32)?;
    let parts = thrift.signed()?;
    if u64::try_from(parts).is_ok_and(|parts| parts < count) {
        return Ok(());
    }
    Err(format!("one of its {count} columns says that {parts} are parts of it"))
}

/// The headers of a column's pages, which lie within `start..start + length`.
pub(super) fn pages(file: &mut File, start: u64, length: u64) -> Fragment<()> {
    file.seek(SeekFrom::Start(start)).map_err(|error| error.to_string())?;
    let mut thrift = Thrift { reader: BufReader::new(file).take(length), used: 0 };
    while thrift.used < length {
        let (mut plain, mut packed, mut entries) = (0, 0, 0);
        thrift.each(&mut |thrift, id, kind| {
            match id {
                1 | 4 => of(kind, I32).and_then(|()| thrift.skip(kind, DEPTH))?,
                2 => plain = of(kind, I32).and_then(|()| thrift.signed())?,
                3 => packed = of(kind, I32).and_then(|()| thrift.signed())?,
                // Of data, of an index, of a dictionary, of data in the second form.
                5 => header(thrift, kind, 4, 0).map(drop)?,
                6 => header(thrift, kind, 0, 0).map(drop)?,
                7 => entries = header(thrift, kind, 2, 3)?,
                8 => header(thrift, kind, 6, 7).map(drop)?,
                _ => thrift.skip(kind, DEPTH)?,
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

/// The header of one sort of page: so many whole numbers, of which the first is how many values it has, then perhaps a flag,
/// then statistics. That number, 0 where there is none.
fn header(thrift: &mut Thrift<impl Read>, kind: u8, numbers: i64, flag: i64) -> Fragment<i64> {
    of(kind, STRUCT)?;
    let mut values = 0;
    thrift.each(&mut |thrift, id, kind| {
        match id {
            _ if id == flag && !matches!(kind, 1 | 2) => return of(kind, 1),
            1.. if id <= numbers => of(kind, I32)?,
            _ if numbers > 0 && id == numbers.max(flag) + 1 => of(kind, STRUCT)?,
            _ => {}
        }
        if id == 1 && numbers > 0 {
            values = thrift.signed()?;
            return Ok(());
        }
        thrift.skip(kind, DEPTH)
    })?;
    Ok(values)
}

const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// The reader does not look at the kind of a field that it knows.
fn of(kind: u8, wanted: u8) -> Fragment<()> {
    if kind == wanted { Ok(()) } else { Err(format!("a field has the kind {kind}, expected {wanted}")) }
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
        self.used += count;
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
