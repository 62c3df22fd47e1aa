//! Losses of rows of logits together with their gradients, on devices that have kernels for them: two launches, of which
//! nothing comes to the host.

use candle_core::{Storage, Tensor};

use crate::error::Result;

/// A mean over rows; formulas are those of `nn::loss`.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Of logits `[B, C]` with labels `[B]` (u32).
    CrossEntropy { labels: &'a Tensor, smoothing: f64 },
    /// KL(p_teacher || p_student) of the student's logits; the teacher has a gradient where it is tracked.
    Distill { teacher: &'a Tensor, temperature: f64 },
    /// KL(target || p_student).
    KlTo { target: &'a Tensor, temperature: f64 },
    /// NT-Xent of cosines `[2B, 2B]` of all views; the positive pair's counts by `signs`, 1 where there are none.
    Contrast { signs: &'a [f64], temperature: f64 },
}

/// A loss as a device told it.
#[derive(Debug)]
pub struct Told {
    /// One f32.
    pub value: Storage,
    /// The gradient of the first input, and of the teacher where it is tracked.
    pub slopes: Vec<Tensor>,
}

/// None where the device has no kernel for it, or `x` is not f32. A row whose label is no class is NaN.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "for devices that there are not"))]
pub fn loss(x: &Tensor, rows: Rows) -> Result<Option<Told>> {
    #[cfg(feature = "cuda")]
    if let (candle_core::Device::Cuda(device), candle_core::DType::F32) = (x.device(), x.dtype()) {
        return Ok(Some(super::cuda::loss(&*super::cuda::of(device)?, x, rows)?));
    }
    Ok(None)
}

/// An f32 tensor times a scalar that lies on the same device.
pub fn scaled(x: &Tensor, by: &Tensor) -> candle_core::Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = x.device() {
        return super::cuda::scaled(&*super::cuda::of(device)?, x, by);
    }
    x.broadcast_mul(by)
}
