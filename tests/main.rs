//! One binary for all integration tests.

mod support {
    pub mod golden;
}
mod journey;
mod methods;
mod metrics;
mod numerics;
