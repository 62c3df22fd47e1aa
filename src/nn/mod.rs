//! Networks, losses, optimisers, schedules and image transforms: all that methods are written with.

pub mod arch;
pub mod init;
pub mod loss;
pub mod model;
pub mod optim;
pub mod schedule;
pub mod transform;
