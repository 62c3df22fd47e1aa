//! One binary for all integration tests.

mod support {
    pub mod golden;
}
mod methods;
mod metrics;
mod numerics;
