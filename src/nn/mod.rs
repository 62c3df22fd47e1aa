//! Networks, losses, optimisers, schedules and image transforms: all that methods are written with.

pub mod arch;
pub mod head;
pub mod image;
pub mod init;
pub mod loss;
pub mod model;
pub mod optim;
pub mod parity;
pub mod schedule;
pub mod transform;
pub mod view;

/// The device that a user asks for.
pub use crate::kernels::gpu;
/// Which bits the CPU's kernels give; recorded with every result.
pub use crate::kernels::{VERSION as KERNELS, bf16_tiles};
