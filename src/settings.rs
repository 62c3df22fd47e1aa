//! Field tables: what may be set, of which type, with which default. One table for each stage kind and method drives
//! checking, defaults, help, completion and the editor schema; serde runs after it, on settings known to be good.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::kind::Kind;

/// Checked settings with defaults filled in, by snake_case name.
pub type Settings = Map<String, Value>;

/// What a setting may hold.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    Bool,
    /// A whole number in [min, max].
    Int {
        min: i64,
        max: i64,
    },
    /// A finite number in [min, max]; whole numbers are taken too.
    Float {
        min: f64,
        max: f64,
    },
    /// Free text.
    Text,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// One of some registered names (data sets, metrics).
    Name {
        noun: &'static str,
        names: fn() -> Vec<&'static str>,
    },
    /// A file or folder, relative to the recipe that says it. Never hashed; its contents are.
    Path,
    /// The name of a stage that makes one of these kinds.
    Stage(&'static [Kind]),
    /// Names of stages, each standing for all its instances.
    Stages(&'static [Kind]),
    List(&'static Type),
    /// A table with exactly these keys.
    Table(&'static [Field]),
    /// A name, `"sgd"`, or a table with that name and its own keys, `{ name = "sgd", momentum = 0.9 }`. Settings
    /// always hold the table.
    Named {
        noun: &'static str,
        entries: fn() -> Vec<&'static Entry>,
    },
    /// A name, `"cosine"`, or a table with one key, `{ multi_step = { at = [91] } }`. Settings always hold the table.
    Tagged {
        noun: &'static str,
        entries: fn() -> Vec<&'static Entry>,
    },
    /// Whichever fits, tried in order.
    Either(&'static [Type]),
}

#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Must be said.
    Required,
    /// May be left out, and is then absent from the settings.
    Absent,
    /// As it would stand in a recipe: `0.1`, `"sgd"`, `[]`. A value equal to it leaves no trace in the fingerprint, so
    /// it must never change: raise the version of the kind or method instead.
    Is(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub default: Default,
    /// One line, under 79 columns, no full stop; says unit and range where it is a quantity.
    pub about: &'static str,
}

impl Field {
    #[must_use]
    pub const fn required(name: &'static str, ty: Type, about: &'static str) -> Self {
        Self { name, ty, default: Default::Required, about }
    }

    #[must_use]
    pub const fn optional(name: &'static str, ty: Type, about: &'static str) -> Self {
        Self { name, ty, default: Default::Absent, about }
    }

    #[must_use]
    pub const fn or(name: &'static str, ty: Type, default: &'static str, about: &'static str) -> Self {
        Self { name, ty, default: Default::Is(default), about }
    }
}

/// A registered name with keys of its own: a method, an optimiser, an architecture.
#[derive(Debug)]
pub struct Entry {
    pub name: &'static str,
    /// Under 60 characters, no full stop.
    pub about: &'static str,
    /// Author, venue, year, address; empty where there is no paper.
    pub paper: &'static str,
    /// Raised when the same settings give another result.
    pub version: u32,
    pub fields: &'static [Field],
}

/// Counts: 1 and up.
pub const COUNT: Type = Type::Int { min: 1, max: i64::MAX };
/// 0 and up.
pub const NATURAL: Type = Type::Int { min: 0, max: i64::MAX };
/// A share, in [0, 1].
pub const SHARE: Type = Type::Float { min: 0.0, max: 1.0 };
/// A number that is not negative.
pub const POSITIVE: Type = Type::Float { min: 0.0, max: f64::MAX };
/// What softens outputs: 1 leaves them as they are.
pub const TEMPERATURE: Type = Type::Float { min: 0.01, max: 1000.0 };
pub const SEED: Field = Field::or("seed", NATURAL, "0", "seed of every draw of this stage");

/// Settings into the struct that a stage or method works with. Fields that the struct lacks are ignored: the table has
/// checked the names.
pub fn read<T: DeserializeOwned>(settings: &Settings) -> Result<T> {
    serde_json::from_value(Value::Object(settings.clone()))
        .map_err(|error| Error::invalid(format!("settings do not fit: {error}")))
}
