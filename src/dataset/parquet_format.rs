//! The structures in a parquet file's headers, as its reader knows them: fields and their kinds, of
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.

pub(super) type Fragment<T> = Result<T, String>;

/// What the reader takes a field for. It does not look at the kind that a file gives a field which it knows; where the two differ,
/// all that follows would be read as something else than was looked at here.
pub(super) enum Shape {
    /// Its value is its kind: 1 or 2.
    Flag,
    /// A whole number of the kind I16, I32 or I64, with a sign; all are written alike.
    Number(u8),
    /// Of another kind without parts.
    Plain(u8),
    List(&'static Shape),
    /// Fields by number. The reader passes over all others.
    Struct(&'static [(i64, &'static Shape)]),
}
use Shape::{Flag, List, Number, Plain, Struct};

const I8: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

const INT: Shape = Number(I32);
const LONG: Shape = Number(I64);
const TEXT: Shape = Plain(BINARY);
const REAL: Shape = Plain(DOUBLE);
const EMPTY: Shape = Struct(&[]);

/// The footer: `FileMetaData`.
pub(super) static FILE: Shape = Struct(&[
    (1, &INT),
    (2, &List(&COLUMN)),
    (3, &LONG),
    (4, &List(&GROUP)),
    (5, &List(&PAIR)),
    (6, &TEXT),
    (7, &List(&ORDER)),
]);
/// `KeyValue`.
static PAIR: Shape = Struct(&[(1, &TEXT), (2, &TEXT)]);
/// `ColumnOrder`.
static ORDER: Shape = Struct(&[(1, &EMPTY), (2, &EMPTY), (3, &EMPTY)]);
/// `SchemaElement`.
static COLUMN: Shape = Struct(&[
    (1, &INT),
    (2, &INT),
    (3, &INT),
    (4, &TEXT),
    (5, &INT),
    (6, &INT),
    (7, &INT),
    (8, &INT),
    (9, &INT),
    (10, &LOGICAL),
]);
/// `LogicalType`.
static LOGICAL: Shape = Struct(&[
    (1, &EMPTY),
    (2, &EMPTY),
    (3, &EMPTY),
    (4, &EMPTY),
    (5, &Struct(&[(1, &INT), (2, &INT)])),
    (6, &EMPTY),
    (7, &TIME),
    (8, &TIME),
    (10, &Struct(&[(1, &Plain(I8)), (2, &Flag)])),
    (11, &EMPTY),
    (12, &EMPTY),
    (13, &EMPTY),
    (14, &EMPTY),
    (15, &EMPTY),
    (16, &Struct(&[(1, &Plain(I8))])),
    (17, &Struct(&[(1, &TEXT)])),
    (18, &Struct(&[(1, &TEXT), (2, &INT)])),
    (19, &EMPTY),
]);
/// `TimeType` and `TimestampType`.
static TIME: Shape = Struct(&[(1, &Flag), (2, &Struct(&[(1, &EMPTY), (2, &EMPTY), (3, &EMPTY)]))]);
/// `RowGroup`.
static GROUP: Shape = Struct(&[
    (1, &List(&CHUNK)),
    (2, &LONG),
    (3, &LONG),
    (4, &List(&Struct(&[(1, &INT), (2, &Flag), (3, &Flag)]))),
    (5, &LONG),
    (7, &Number(I16)),
]);
/// `ColumnChunk`.
static CHUNK: Shape = Struct(&[(1, &TEXT), (2, &LONG), (3, &CONTENT), (4, &LONG), (5, &INT), (6, &LONG), (7, &INT)]);
/// `ColumnMetaData`.
static CONTENT: Shape = Struct(&[
    (1, &INT),
    (2, &List(&INT)),
    (4, &INT),
    (5, &LONG),
    (6, &LONG),
    (7, &LONG),
    (9, &LONG),
    (10, &LONG),
    (11, &LONG),
    (12, &STATISTICS),
    (13, &List(&Struct(&[(1, &INT), (2, &INT), (3, &INT)]))),
    (14, &LONG),
    (15, &INT),
    (16, &Struct(&[(1, &LONG), (2, &List(&LONG)), (3, &List(&LONG))])),
    (17, &Struct(&[(1, &BOX), (2, &List(&INT))])),
]);
/// `Statistics`.
static STATISTICS: Shape = Struct(&[
    (1, &TEXT),
    (2, &TEXT),
    (3, &LONG),
    (4, &LONG),
    (5, &TEXT),
    (6, &TEXT),
    (7, &Flag),
    (8, &Flag),
    (9, &LONG),
]);
/// `BoundingBox`.
static BOX: Shape =
    Struct(&[(1, &REAL), (2, &REAL), (3, &REAL), (4, &REAL), (5, &REAL), (6, &REAL), (7, &REAL), (8, &REAL)]);
/// What stands before each page: `PageHeader`.
pub(super) static PAGE: Shape =
    Struct(&[(1, &INT), (2, &INT), (3, &INT), (4, &INT), (5, &DATA), (6, &EMPTY), (7, &DICTIONARY), (8, &DATA2)]);
/// `DataPageHeader`.
static DATA: Shape = Struct(&[(1, &INT), (2, &INT), (3, &INT), (4, &INT), (5, &STATISTICS)]);
/// `DictionaryPageHeader`.
static DICTIONARY: Shape = Struct(&[(1, &INT), (2, &INT), (3, &Flag)]);
/// `DataPageHeaderV2`.
static DATA2: Shape =
    Struct(&[(1, &INT), (2, &INT), (3, &INT), (4, &INT), (5, &INT), (6, &INT), (7, &Flag), (8, &STATISTICS)]);

impl Shape {
    /// Whether a field of that kind is so. The reader takes numbers of any width.
    pub(super) fn takes(&self, kind: u8) -> Fragment<()> {
        match (self, kind) {
            (Flag, 1 | 2) | (Number(_), I16..=I64) => Ok(()),
            _ if kind == self.kind() => Ok(()),
            _ => Err(format!("a field has the kind {kind}, expected {}", self.kind())),
        }
    }

    /// The kind that a list of such says it has.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Flag => 1,
            Number(kind) | Plain(kind) => *kind,
            List(_) => LIST,
            Struct(_) => STRUCT,
        }
    }

    /// Whether the reader does not cut a number.
    pub(super) fn holds(&self, number: i64) -> bool {
        match self {
            Number(I16) => i16::try_from(number).is_ok(),
            Number(I32) => i32::try_from(number).is_ok(),
            _ => true,
        }
    }
}
