//! Values of a network on the device: batch x height x width x channels, in f32 or bf16.

use candle_core::Result;

use super::machine::{Arg, Grid, Kind, Machine, Memory};

#[derive(Debug)]
pub(super) struct Value {
    memory: Memory,
    pub(super) half: bool,
    pub(super) len: usize,
}

impl Value {
    pub(super) fn new(machine: &dyn Machine, len: usize, half: bool) -> Result<Self> {
        Ok(Self { memory: machine.lend(len * if half { 2 } else { 4 })?, half, len })
    }

    pub(super) fn at(&self) -> Arg {
        Arg::At(self.memory.at)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.at
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::of(self.half)
    }

    pub(super) fn count(&self) -> Arg {
        Arg::Count(self.len as u64)
    }

    fn bytes(&self) -> usize {
        self.len * if self.half { 2 } else { 4 }
    }

    /// Copies it to one of the same kind.
    pub(super) fn copy(&self, machine: &dyn Machine, to: &Self) -> Result<()> {
        machine.copy(self.memory.at, to.memory.at, self.bytes())
    }

    /// The same numbers of the other kind.
    fn turned(&self, machine: &dyn Machine) -> Result<Self> {
        let other = Self::new(machine, self.len, !self.half)?;
        self.convert(machine, &other)?;
        Ok(other)
    }

    /// Writes the same numbers to one of the other kind.
    pub(super) fn convert(&self, machine: &dyn Machine, other: &Self) -> Result<()> {
        let name = if self.half { "widen" } else { "narrow" };
        machine.launch(name, Kind::Only, Grid::of(self.len), &[self.at(), other.at(), self.count()])
    }

    /// As that kind.
    pub(super) fn seen(&self, machine: &dyn Machine, half: bool) -> Result<Seen<'_>> {
        Ok(if self.half == half { Seen::Same(self) } else { Seen::Made(self.turned(machine)?) })
    }
}

/// A value as it is, or of the other kind.
pub(super) enum Seen<'a> {
    Same(&'a Value),
    Made(Value),
}

impl std::ops::Deref for Seen<'_> {
    type Target = Value;

    fn deref(&self) -> &Value {
        match self {
            Seen::Same(value) => value,
            Seen::Made(value) => value,
        }
    }
}
