//! One binary for all integration tests.

mod support {
    pub mod golden;
}
mod numerics;
mod methods;
mod metrics;
