//! What a step does beside its networks, for devices that have kernels for it: the optimiser's step over all parameters, the
//! length of a gradient, images out of the bytes of a data set. Where there are none, the functions say so, and whoever
//! asks has another way.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::Result;

/// The numbers of an optimiser's rule at one step.
#[derive(Clone, Copy, Debug)]
pub enum Numbers {
    /// g = gradient + weight_decay w; m = momentum m + g; w -= rate m, or with `nesterov` rate (g + momentum m).
    Sgd { rate: f64, momentum: f64, weight_decay: f64, nesterov: bool },
    /// g = gradient + decay w; w = keep w - size m / (sqrt(v) / root + eps).
    Adam { size: f64, keep: f64, betas: [f64; 2], root: f64, eps: f64, decay: f64 },
}

/// What was drawn for one image.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// In the data set.
    pub index: u32,
    /// How far the crop is moved.
    pub down: i64,
    pub right: i64,
    /// Whether it is mirrored.
    pub flip: bool,
    /// What is cut out.
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Drawn {
    /// As the kernel takes it.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn numbers(&self) -> [i32; 8] {
        let [rows, columns] = [&self.rows, &self.columns].map(|range| [range.start as i32, range.end as i32]);
        let first = [self.index as i32, self.down as i32, self.right as i32, i32::from(self.flip)];
        [first[0], first[1], first[2], first[3], rows[0], rows[1], columns[0], columns[1]]
    }
}

/// A CUDA device, all of whose work is done in the order of one stream.
pub fn gpu(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = &device {
        super::cuda::one_stream(device);
        // now, not while another device's passes are taken down
        super::cuda::of(device)?;
    }
    Ok(device)
}

/// One step in place of an optimiser over f32 vectors of one device; `state` is the momentum, or Adam's two means; nothing
/// moves where the mask is 0. False, and nothing done, where the device has no kernel for it.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "for devices that there are not"))]
pub fn step(
    numbers: Numbers,
    theta: &Tensor,
    state: [&Tensor; 2],
    gradient: &Tensor,
    mask: Option<&Tensor>,
) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = theta.device() {
        super::cuda::step(&*super::cuda::of(device)?, numbers, theta, state, gradient, mask)?;
        return Ok(true);
    }
    Ok(false)
}

/// The squares of an f32 vector, summed in f64, by pieces in their order: `[P]` f64 on its device, P at least 1.
pub fn squares(vector: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = vector.device() {
        return Ok(super::cuda::squares(&*super::cuda::of(device)?, vector)?);
    }
    Ok(vector.to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?.reshape(1)?)
}

/// Images `[B, C, H, W]` in f32 on the device, (pixel / 255 - mean) / deviation, from count x height x width x channels bytes
/// that stay there; `size` is channels, height, width. Nothing where the device has no kernel for it.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "for devices that there are not"))]
pub fn images(
    device: &Device,
    pixels: &Arc<Vec<u8>>,
    drawn: &[Drawn],
    colours: [&[f32]; 2],
    size: [usize; 3],
) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return Ok(Some(super::cuda::images(&*super::cuda::of(device)?, pixels, drawn, colours, size)?));
    }
    Ok(None)
}
