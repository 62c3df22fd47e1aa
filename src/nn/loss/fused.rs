//! Candle ops that work out a scalar and its gradients in one go. The gradients are kept in the op, so that backward
//! only scales them; it may be walked more than once. Knows nothing about losses.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};

use crate::error::Result;

/// From the inputs, flat, to the value and the gradient of each input.
type Work = Box<dyn Fn(&[Vec<f64>]) -> (f64, Vec<Vec<f64>>) + Send + Sync>;

struct Fused {
    name: &'static str,
    work: Work,
    gradients: OnceLock<Vec<Vec<f64>>>,
}

impl Fused {
    fn new(name: &'static str, work: Work) -> Self {
        Self { name, work, gradients: OnceLock::new() }
    }

    fn forward(&self, inputs: &[(&CpuStorage, &Layout)]) -> candle_core::Result<(CpuStorage, Shape)> {
        let values =
            inputs.iter().map(|(storage, layout)| read(storage, layout)).collect::<candle_core::Result<Vec<_>>>()?;
        let (value, gradients) = (self.work)(&values);
        // Filled once: a forward pass of the same op over the same inputs gives the same gradients.
        let _ = self.gradients.set(gradients);
        let value = match inputs.first() {
            Some((CpuStorage::F64(_), _)) => CpuStorage::F64(vec![value]),
            _ => CpuStorage::F32(vec![value as f32]),
        };
        Ok((value, Shape::from(())))
    }

    /// The gradient of input `index`, none where nothing tracks it.
    fn backward(&self, index: usize, input: &Tensor, above: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(values) = self.gradients.get().and_then(|all| all.get(index)).filter(|_| input.track_op()) else {
            return Ok(None);
        };
        let slope = Tensor::from_slice(values, input.shape(), input.device())?;
        let scaled = slope.broadcast_mul(&above.to_dtype(DType::F64)?)?;
        Ok(Some(scaled.to_dtype(input.dtype())?))
    }
}

fn read(storage: &CpuStorage, layout: &Layout) -> candle_core::Result<Vec<f64>> {
    let (start, end) = layout.contiguous_offsets().ok_or(candle_core::Error::RequiresContiguous { op: "loss" })?;
    match storage {
        CpuStorage::F32(all) => Ok(all[start..end].iter().copied().map(f64::from).collect()),
        CpuStorage::F64(all) => Ok(all[start..end].to_vec()),
        _ => Err(candle_core::Error::Msg("a loss takes f32 or f64".to_owned())),
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, above: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.backward(0, a, above)
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        above: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.backward(0, a, above)?, self.backward(1, b, above)?))
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        above: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((self.backward(0, a, above)?, self.backward(1, b, above)?, self.backward(2, c, above)?))
    }
}

/// Laid out flat, and half precision widened; the gradient is narrowed on its way back.
fn wide(tensor: &Tensor) -> Result<Tensor> {
    let flat = tensor.contiguous()?;
    Ok(match flat.dtype() {
        DType::F32 | DType::F64 => flat,
        _ => flat.to_dtype(DType::F32)?,
    })
}

/// A scalar of one input.
pub(super) fn one(
    name: &'static str,
    input: &Tensor,
    work: impl Fn(&[f64]) -> (f64, Vec<f64>) + Send + Sync + 'static,
) -> Result<Tensor> {
    let work = move |inputs: &[Vec<f64>]| {
        let (value, slope) = work(&inputs[0]);
        (value, vec![slope])
    };
    Ok(wide(input)?.apply_op1(Fused::new(name, Box::new(work)))?)
}

/// A scalar of two inputs.
pub(super) fn two(
    name: &'static str,
    a: &Tensor,
    b: &Tensor,
    work: impl Fn(&[f64], &[f64]) -> (f64, Vec<f64>, Vec<f64>) + Send + Sync + 'static,
) -> Result<Tensor> {
    let work = move |inputs: &[Vec<f64>]| {
        let (value, one, two) = work(&inputs[0], &inputs[1]);
        (value, vec![one, two])
    };
    Ok(wide(a)?.apply_op2(&wide(b)?, Fused::new(name, Box::new(work)))?)
}

/// A scalar of three inputs.
pub(super) fn three(
    name: &'static str,
    inputs: [&Tensor; 3],
    work: impl Fn(&[Vec<f64>]) -> (f64, Vec<Vec<f64>>) + Send + Sync + 'static,
) -> Result<Tensor> {
    let [a, b, c] = inputs;
    Ok(wide(a)?.apply_op3(&wide(b)?, &wide(c)?, Fused::new(name, Box::new(work)))?)
}
