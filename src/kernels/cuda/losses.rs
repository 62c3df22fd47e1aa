//! Losses of rows with their gradients: a launch over all rows, and one that takes the mean.

use candle_core::{DType, Error, Result, Tensor};

use super::forth::int;
use super::machine::{Arg, Grid, Kind, Machine, Memory};
use crate::kernels::{Rows, Told};

pub(in crate::kernels) fn loss(machine: &dyn Machine, x: &Tensor, rows: Rows) -> Result<Told> {
    let (count, columns) = x.dims2()?;
    let x = x.contiguous()?;
    let slope = || machine.lend(4 * x.elem_count());
    let (losses, of_x) = (machine.lend(8 * count)?, slope()?);
    let [x_at, losses_at, of_x_at] = [machine.place(&x)?, losses.at, of_x.at].map(Arg::At);
    let [count_of, columns_of] = [int(count), int(columns)];
    let beside = |other: &Tensor, dtype: DType| -> Result<(Tensor, Arg)> {
        if other.dims().first() != Some(&count) {
            return Err(Error::msg("a loss takes one row beside each row of logits"));
        }
        let other = other.to_dtype(dtype)?.contiguous()?;
        let at = machine.place(&other)?;
        Ok((other, Arg::At(at)))
    };
    let run = |name: &'static str, args: &[Arg]| machine.launch(name, Kind::Only, Grid::rows(count), args);
    let mut slopes = vec![of_x];
    match rows {
        Rows::CrossEntropy { labels, smoothing } => {
            let (_labels, at) = beside(labels, DType::U32)?;
            run("cross_entropy", &[x_at, at, Arg::Double(smoothing), losses_at, of_x_at, count_of, columns_of])?;
        }
        Rows::Distill { teacher, temperature } => {
            let (_teacher, at) = beside(&teacher.detach(), DType::F32)?;
            slopes.extend(teacher.track_op().then(slope).transpose()?);
            let of_teacher = Arg::At(slopes.get(1).map_or(0, |memory| memory.at));
            let args = [x_at, at, Arg::Double(temperature), losses_at, of_x_at, of_teacher, count_of, columns_of];
            run("distill", &args)?;
        }
        Rows::KlTo { target, temperature } => {
            let (_target, at) = beside(&target.detach(), DType::F32)?;
            run("kl_to", &[x_at, at, Arg::Double(temperature), losses_at, of_x_at, count_of, columns_of])?;
        }
        Rows::Contrast { signs, temperature } => {
            let plain = signs.iter().all(|sign| *sign == 1.0);
            let signs: Vec<u8> = signs.iter().flat_map(|sign| (*sign as f32).to_le_bytes()).collect();
            let signs = if plain { None } else { Some(machine.upload(&signs)?) };
            let at = Arg::At(signs.as_ref().map_or(0, |memory: &Memory| memory.at));
            run("contrast", &[x_at, at, Arg::Double(temperature), losses_at, of_x_at, count_of])?;
        }
    }
    let value = machine.lend(4)?;
    let grid = Grid { blocks: [1, 1, 1], threads: [256, 1] };
    machine.launch("mean", Kind::Only, grid, &[losses_at, Arg::At(value.at), count_of])?;
    let slopes = slopes.into_iter().map(|slope| machine.tensor(slope, x.dims())).collect::<Result<_>>()?;
    Ok(Told { value: machine.storage(value, 1, DType::F32)?, slopes })
}

/// x times the one number of `by`.
pub(in crate::kernels) fn scaled(machine: &dyn Machine, x: &Tensor, by: &Tensor) -> Result<Tensor> {
    let (x, by) = (x.contiguous()?, by.to_dtype(DType::F32)?.contiguous()?);
    let count = x.elem_count();
    let y = machine.lend(4 * count)?;
    let args = [machine.place(&x)?, machine.place(&by)?, y.at].map(Arg::At);
    machine.launch("scaled", Kind::Only, Grid::of(count), &[&args[..], &[Arg::Count(count as u64)]].concat())?;
    machine.tensor(y, x.dims())
}
