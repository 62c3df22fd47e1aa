//! Networks as plain data, and what computes them. Nothing outside `nn/` names this module.

pub mod layer;
pub mod reference;
