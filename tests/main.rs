//! One binary for all integration tests.

mod support {
    pub mod golden;
    pub mod place;
}
mod architecture;
mod augment;
mod checkpoints;
mod data;
mod export;
mod fetch;
mod journey;
mod losses;
mod matrix;
mod methods;
mod metrics;
mod network;
mod numerics;
mod opengan;
mod optimisers;
mod outcomes;
mod recipes;
mod resume;
mod store;
mod transforms;
mod unlearning;
