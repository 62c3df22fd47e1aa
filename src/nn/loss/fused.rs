//! Losses as operations that work out their value and their gradients in one go; backward only scales them, and may be
//! walked more than once. On the CPU in f64, by a closure over plain numbers. Knows nothing about losses.

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::error::Result;
use crate::kernels::{self, Told};

/// A scalar of some inputs, by `work`: from them, flat, to the value and the gradient of each.
fn scalar<const N: usize>(
    name: &'static str,
    inputs: [&Tensor; N],
    work: impl FnOnce([Vec<f64>; N]) -> (f64, [Vec<f64>; N]),
) -> Result<Tensor> {
    let mut flat = [(); N].map(|()| Vec::new());
    for (flat, input) in flat.iter_mut().zip(inputs) {
        *flat = input.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    }
    let (value, slopes) = work(flat);
    // f64 as such, everything else as f32
    let made = match inputs.first().map(|input| input.dtype()) {
        Some(DType::F64) => CpuStorage::F64(vec![value]),
        _ => CpuStorage::F32(vec![value as f32]),
    };
    Ok(kernels::given(name, &inputs, Storage::Cpu(made), (), move |inputs, above| {
        let above = above.to_dtype(DType::F64)?;
        let gradient = |(input, slopes): (&&Tensor, &Vec<f64>)| {
            if !input.track_op() {
                return Ok(None);
            }
            let slopes = Tensor::from_slice(slopes, input.shape(), input.device())?;
            slopes.broadcast_mul(&above)?.to_dtype(input.dtype()).map(Some)
        };
        inputs.iter().zip(&slopes).map(gradient).collect()
    })?)
}

/// A scalar of one input.
pub(super) fn one(name: &'static str, input: &Tensor, work: impl FnOnce(&[f64]) -> (f64, Vec<f64>)) -> Result<Tensor> {
    scalar(name, [input], |[input]| {
        let (value, slope) = work(&input);
        (value, [slope])
    })
}

/// A scalar of two inputs.
pub(super) fn two(
    name: &'static str,
    a: &Tensor,
    b: &Tensor,
    work: impl FnOnce(&[f64], &[f64]) -> (f64, Vec<f64>, Vec<f64>),
) -> Result<Tensor> {
    scalar(name, [a, b], |[a, b]| {
        let (value, one, two) = work(&a, &b);
        (value, [one, two])
    })
}

/// A scalar of three inputs.
pub(super) fn three(
    name: &'static str,
    inputs: [&Tensor; 3],
    work: impl FnOnce(&[Vec<f64>]) -> (f64, [Vec<f64>; 3]),
) -> Result<Tensor> {
    scalar(name, inputs, |inputs| work(&inputs))
}

/// A scalar that a device worked out, with the gradients of as many inputs as it told.
pub(super) fn told(name: &'static str, inputs: &[&Tensor], Told { value, slopes }: Told) -> Result<Tensor> {
    Ok(kernels::given(name, inputs, value, (), move |inputs, above| {
        let gradient = |(index, input): (usize, &&Tensor)| {
            let slopes = slopes.get(index).filter(|_| input.track_op());
            slopes.map(|slopes| kernels::scaled(slopes, above)).transpose()
        };
        inputs.iter().enumerate().map(gradient).collect()
    })?)
}
