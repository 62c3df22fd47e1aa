//! What the passes over a network want of a device: memory, launches of the kernels in `kernels.cu`, convolutions. They name
//! memory by its address, so that a test can stand in for a device: `emulated` runs the same kernels on the processor.

use std::any::Any;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Storage, Tensor};

use crate::kernels::Window;

/// Memory on the device, free again when it is dropped and what was asked of the device before is done.
pub(in crate::kernels) struct Memory {
    pub(super) at: u64,
    pub(super) owner: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:#x})", self.at)
    }
}

/// What a kernel is called with.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) enum Arg {
    /// An address; 0 for none.
    At(u64),
    Int(i32),
    Count(u64),
    Float(f32),
    Double(f64),
}

/// Whether the values of a kernel are f32 or bf16, if it comes for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kernels) enum Kind {
    Only,
    Full,
    Half,
}

impl Kind {
    pub(super) fn of(half: bool) -> Self {
        if half { Kind::Half } else { Kind::Full }
    }

    /// What the names of its kernels end in.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Kind::Only => "",
            Kind::Full => "_f32",
            Kind::Half => "_bf16",
        }
    }
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: [usize; 2],
}

impl Grid {
    /// Some elements a thread: enough blocks for a large device, and few enough that a thread stays in its channel.
    pub(super) fn of(elements: usize) -> Self {
        Self { blocks: [elements.div_ceil(256).clamp(1, 1 << 10), 1, 1], threads: [256, 1] }
    }

    /// Squares of 32 x 32 columns and rows of each image: for turning rows to columns.
    pub(super) fn turn(batch: usize, rows: usize, columns: usize) -> Self {
        const MOST: usize = (1 << 16) - 1;
        Self { blocks: [columns.div_ceil(32), rows.div_ceil(32).min(MOST), batch.min(MOST)], threads: [32, 8] }
    }

    /// Eight rows a block: for losses of rows.
    pub(super) fn rows(rows: usize) -> Self {
        Self { blocks: [rows.div_ceil(8).clamp(1, 1 << 16), 1, 1], threads: [32, 8] }
    }

    /// Channels across, chunks of rows down: for sums over rows.
    pub(super) fn sums(channels: usize, chunks: usize) -> Self {
        Self { blocks: [channels.div_ceil(32), chunks.min((1 << 16) - 1), 1], threads: [32, 8] }
    }
}

/// A convolution: x is batch x height x width x inputs, y has the outputs, weights are outputs x places x inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kernels) struct Convolution {
    pub(super) batch: usize,
    /// Channels, height, width.
    pub(super) x: [usize; 3],
    pub(super) y: [usize; 3],
    pub(super) window: Window,
    pub(super) half: bool,
    /// Products of f32 are not rounded to TF32.
    pub(super) exact: bool,
}

/// Which of the three is made of the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kernels) enum Makes {
    Y,
    X,
    Weights,
}

pub(in crate::kernels) trait Machine: Send + Sync {
    /// Memory of so many bytes; what it holds is anything.
    fn lend(&self, bytes: usize) -> Result<Memory>;
    /// Makes so many bytes at an address zero.
    fn clear(&self, at: u64, bytes: usize) -> Result<()>;
    /// Memory of zeros.
    fn zeros(&self, bytes: usize) -> Result<Memory> {
        let memory = self.lend(bytes)?;
        self.clear(memory.at, bytes)?;
        Ok(memory)
    }
    /// Memory with a copy of that.
    fn upload(&self, data: &[u8]) -> Result<Memory>;
    fn launch(&self, name: &'static str, kind: Kind, grid: Grid, args: &[Arg]) -> Result<()>;
    /// The bytes that a convolution needs beside its result.
    fn room(&self, shape: Convolution, makes: Makes) -> Result<usize>;
    /// Makes one of x, weights and y, given by their addresses in that order, or adds to it, with that much room.
    fn convolve_in(&self, room: &Memory, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()>;
    /// The same, with room of its own.
    fn convolve(&self, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()> {
        let room = self.lend(self.room(shape, makes)?)?;
        self.convolve_in(&room, shape, makes, at, add)
    }
    /// Takes down what is asked of the device meanwhile, by this thread alone, in place of doing it. All of it must be
    /// launches, convolutions, copies and clearings in memory that is there.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>>;
    /// Memory with those bytes, kept for as long as somebody has them.
    fn resident(&self, bytes: &Arc<Vec<u8>>) -> Result<Arc<Memory>>;
    /// Copies so many bytes from one address to another.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// So many numbers for candle, f32 or f64.
    fn storage(&self, memory: Memory, count: usize, dtype: DType) -> Result<Storage>;
    /// An f32 tensor of that memory.
    fn tensor(&self, memory: Memory, shape: &[usize]) -> Result<Tensor> {
        let storage = self.storage(memory, shape.iter().product(), DType::F32)?;
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }
    /// Where the elements of a contiguous tensor of f32 or u32 lie.
    fn place(&self, tensor: &Tensor) -> Result<u64>;
}

/// What was taken down, to be done again and again in one go.
pub(in crate::kernels) trait Replay: Send + Sync {
    fn replay(&self) -> Result<()>;
}
