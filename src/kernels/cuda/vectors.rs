//! What else a step does on the device, one launch each: the optimiser's step over all parameters, the length of a gradient,
//! and images out of the bytes of a data set.

use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Tensor};

use super::forth::int;
use super::machine::{Arg, Grid, Kind, Machine};
use crate::kernels::{Drawn, Numbers};

fn at(machine: &dyn Machine, tensor: &Tensor) -> Result<Arg> {
    Ok(Arg::At(machine.place(tensor)?))
}

/// Adds `other` to `sum`, in place.
pub(super) fn add(machine: &dyn Machine, sum: &Tensor, other: &Tensor) -> Result<()> {
    let args = [at(machine, sum)?, at(machine, other)?, Arg::Count(sum.elem_count() as u64)];
    machine.launch("add", Kind::Full, Grid::of(sum.elem_count()), &args)
}

/// One step of an optimiser, in place. `state`: momentum, or Adam's two means.
pub(in crate::kernels) fn step(
    machine: &dyn Machine,
    numbers: Numbers,
    theta: &Tensor,
    state: [&Tensor; 2],
    gradient: &Tensor,
    mask: Option<&Tensor>,
) -> Result<()> {
    let count = Arg::Count(theta.elem_count() as u64);
    let [theta_at, first] = [at(machine, theta)?, at(machine, state[0])?];
    let gradient = at(machine, &gradient.contiguous()?)?;
    let mask = mask.map_or(Ok(Arg::At(0)), |mask| at(machine, mask))?;
    let grid = Grid::of(theta.elem_count());
    match numbers {
        Numbers::Sgd { rate, momentum, weight_decay, nesterov } => {
            let [rate, momentum, decay] = [rate, momentum, weight_decay].map(|number| Arg::Float(number as f32));
            let args = [theta_at, first, gradient, mask, rate, momentum, decay, Arg::Int(i32::from(nesterov)), count];
            machine.launch("sgd", Kind::Only, grid, &args)
        }
        Numbers::Adam { size, keep, betas: [one, two], root, eps, decay } => {
            let second = at(machine, state[1])?;
            let numbers = [size, keep, one, two, 1.0 - one, 1.0 - two, root, eps, decay];
            let numbers = numbers.map(|number| Arg::Float(number as f32));
            let args = [&[theta_at, first, second, gradient, mask], &numbers[..], &[count]].concat();
            machine.launch("adam", Kind::Only, grid, &args)
        }
    }
}

/// Elements of one sum.
const PART: usize = 1 << 14;

/// Sums of the squares of a vector's pieces, in f64 and in a fixed order.
pub(in crate::kernels) fn squares(machine: &dyn Machine, vector: &Tensor) -> Result<Tensor> {
    let vector = vector.contiguous()?;
    let count = vector.elem_count();
    let parts = count.div_ceil(PART).max(1);
    let sums = machine.lend(8 * parts)?;
    let args = [at(machine, &vector)?, Arg::At(sums.at), Arg::Count(count as u64), Arg::Count(PART as u64)];
    machine.launch("squares", Kind::Only, Grid { blocks: [parts, 1, 1], threads: [256, 1] }, &args)?;
    Ok(Tensor::from_storage(machine.storage(sums, parts, DType::F64)?, parts, BackpropOp::none(), false))
}

/// Batch x channels x height x width, out of count x height x width x channels bytes, by what was drawn for each image.
pub(in crate::kernels) fn images(
    machine: &dyn Machine,
    pixels: &Arc<Vec<u8>>,
    drawn: &[Drawn],
    [mean, deviation]: [&[f32]; 2],
    [channels, height, width]: [usize; 3],
) -> Result<Tensor> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let (pixels, mean, deviation) =
        (machine.resident(pixels)?, machine.upload(&bytes(mean))?, machine.upload(&bytes(deviation))?);
    let draws: Vec<u8> = drawn.iter().flat_map(Drawn::numbers).flat_map(i32::to_le_bytes).collect();
    let draws = machine.upload(&draws)?;
    let length = drawn.len() * channels * height * width;
    let x = machine.lend(4 * length)?;
    let places = [pixels.at, draws.at, mean.at, deviation.at, x.at].map(Arg::At);
    let sizes = [drawn.len(), channels, height, width].map(int);
    machine.launch("images", Kind::Only, Grid::of(length), &[&places, &sizes[..]].concat())?;
    machine.tensor(x, &[drawn.len(), channels, height, width])
}
