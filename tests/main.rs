//! One binary for all integration tests.

mod support {
    pub mod cost;
    pub mod desk;
    pub mod golden;
    pub mod place;
}
mod architecture;
mod arpl;
mod augment;
mod bench;
mod checkpoints;
mod cuda_kernels;
mod damage;
mod data;
mod disk;
mod export;
mod fetch;
mod hostile_files;
mod hostile_recipes;
mod hostile_store;
mod journey;
mod kill;
mod losses;
mod matrix;
mod methods;
mod metrics;
mod network;
mod numerics;
mod opengan;
mod optimisers;
mod outcomes;
mod pretrain;
mod probe;
mod races;
mod recipes;
mod report;
mod resume;
mod same;
mod signals;
mod ssl;
mod store;
mod transforms;
mod unlearning;
mod wrong;
