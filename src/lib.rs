//! Recant runs machine-unlearning experiments: a recipe in, a table of results against the retrained oracle out.

// ground
pub mod cores;
pub mod error;
pub mod halt;
pub mod indices;
pub mod kind;
pub mod output;
pub mod pickle;
pub mod rng;
pub mod settings;
pub mod tensors;
pub mod wide;
// numerics
pub mod kernels;
pub mod nn;
// things that travel
pub mod artifact;
pub mod batches;
pub mod data;
pub mod trainer;
// the science
pub mod augment;
pub mod dataset;
pub mod method;
pub mod metric;
pub mod pretrain;
// stages
pub mod stage;
// planning, pure
pub mod diagnose;
pub mod plan;
pub mod plot;
pub mod recipe;
pub mod schema;
pub mod show;
// effects
pub mod bench;
pub mod event;
pub mod execute;
pub mod fetch;
pub mod report;
pub mod store;
pub mod terminal;
// what a person types
pub mod cli;
// what a stranger sends
#[doc(hidden)]
pub mod fuzz;
