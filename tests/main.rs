//! One binary for all integration tests.

mod support {
    pub mod golden;
}
mod architecture;
mod journey;
mod losses;
mod matrix;
mod methods;
mod metrics;
mod network;
mod numerics;
mod optimisers;
