//! How parameters start: PyTorch's defaults and torchvision's rules, drawn by the parameter's name, so that a layer
//! more changes no other layer's start.

use crate::kernels::{Init, Parameter};
use crate::rng::Rng;

/// The first values of a parameter, in PyTorch's order.
pub(super) fn draw(parameter: &Parameter, rng: &Rng) -> Vec<f32> {
    let count = parameter.range.len();
    let mut rng = rng.fork(&parameter.name);
    match parameter.init {
        Init::Normal { deviation } => {
            let mut draws = rng.normals(count);
            for draw in &mut draws {
                *draw *= deviation;
            }
            draws
        }
        Init::Uniform { bound } => (0..count).map(|_| rng.between(-bound, bound)).collect(),
        Init::Constant(value) => vec![value; count],
    }
}
