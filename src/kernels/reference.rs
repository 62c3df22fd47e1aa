//! The slow, obvious twin: candle_nn's layers over a `VarBuilder`, and plain candle operations where candle's own have
//! other gradients than PyTorch (ReLU at 0, max-pool with ties, padding or overlap). The truth in tests, and the path
//! for f64 and for devices without kernels of our own.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::{
    BatchNormConfig, Conv2dConfig, ConvTranspose2dConfig, Module, ModuleT, VarBuilder, batch_norm, conv_transpose2d,
    conv_transpose2d_no_bias, conv2d, conv2d_no_bias, linear, linear_no_bias,
};

use super::{Done, EPSILON, Layer, Mode, Moments, Network, Op, Program, Sink, Window, check, dropout};
use crate::error::{Error, Result};

pub(super) struct Reference {
    program: Arc<Program>,
}

impl Reference {
    pub(super) fn new(program: Arc<Program>) -> Self {
        Self { program }
    }

    /// Parameters and statistics by name; tracked parameters stay tracked.
    fn source(&self, theta: &[Tensor], stats: &Tensor, x: &Tensor) -> Result<VarBuilder<'static>> {
        let program = &self.program;
        if theta.len() != program.parameters.len() {
            return Err(Error::invalid("the parameters do not belong to this network"));
        }
        let mut named = HashMap::new();
        for (parameter, piece) in program.parameters.iter().zip(theta) {
            named.insert(parameter.name.clone(), piece.reshape(parameter.shape.as_slice())?);
        }
        for (index, norm) in program.norms.iter().enumerate() {
            for branch in 0..program.branches {
                let (name, start) = (norm.on(branch), program.statistics(index, branch).start);
                named.insert(format!("{name}.running_mean"), stats.narrow(0, start, norm.channels)?);
                named.insert(format!("{name}.running_var"), stats.narrow(0, start + norm.channels, norm.channels)?);
            }
        }
        Ok(VarBuilder::from_tensors(named, x.dtype(), x.device()))
    }

    fn layer(
        &self,
        layer: &Layer,
        index: usize,
        values: &[Tensor],
        source: &VarBuilder,
        mode: &Mode,
        moments: &mut Vec<(usize, Tensor)>,
    ) -> Result<Tensor> {
        let x = &values[layer.from];
        let (batch, channels, height, width) = x.dims4()?;
        let here = source.pp(&layer.name);
        Ok(match layer.op {
            Op::Conv { out, window, bias } => {
                let Window { kernel, stride, padding } = window;
                let unseen = |size: usize| (size + 2 * padding - kernel) % stride;
                let make = if bias { conv2d } else { conv2d_no_bias };
                let config = Conv2dConfig { stride, ..Conv2dConfig::default() };
                if unseen(height) == 0 && unseen(width) == 0 {
                    make(channels, out, kernel, Conv2dConfig { padding, ..config }, here)?.forward(x)?
                } else {
                    // candle walks back with one output padding for both sides: let it see what the window sees alone
                    let padded = pad(x, padding, 0.0)?;
                    let (rows, columns) = (padded.dim(2)? - unseen(height), padded.dim(3)? - unseen(width));
                    let seen = padded.narrow(2, 0, rows)?.narrow(3, 0, columns)?.contiguous()?;
                    make(channels, out, kernel, config, here)?.forward(&seen)?
                }
            }
            Op::ConvTranspose { out, window, bias } => {
                let Window { kernel, stride, padding } = window;
                let config = ConvTranspose2dConfig { padding, stride, ..ConvTranspose2dConfig::default() };
                let make = if bias { conv_transpose2d } else { conv_transpose2d_no_bias };
                make(channels, out, kernel, config, here)?.forward(x)?
            }
            Op::Linear { out, bias } => {
                let make = if bias { linear } else { linear_no_bias };
                let inputs = channels * height * width;
                make(inputs, out, here)?.forward(&x.reshape((batch, inputs))?)?.reshape((batch, out, 1, 1))?
            }
            Op::BatchNorm => {
                let norm = &self.program.norms[layer.norm];
                let train = mode.batch[layer.norm];
                // momentum 1 turns the running statistics into the batch's own; who commits them decides on momentum
                let config = BatchNormConfig { eps: EPSILON, momentum: 1.0, ..BatchNormConfig::default() };
                let built = batch_norm(channels, config, source.pp(norm.on(mode.branch)))?;
                let y = built.forward_t(x, train)?.contiguous()?;
                if train && batch * height * width > 1 {
                    let values = Tensor::cat(&[built.running_mean(), built.running_var()], 0)?.detach();
                    moments.push((layer.norm, values));
                }
                y
            }
            Op::Relu => leaky(x, 0.0)?,
            Op::LeakyRelu(slope) => leaky(x, f64::from(slope))?,
            Op::Sigmoid => candle_nn::ops::sigmoid(x)?,
            Op::Tanh => x.tanh()?,
            Op::Dropout(p) => match &mode.rng {
                Some(rng) => {
                    let factors = dropout(rng, index, p, batch, channels * height * width);
                    let factors = Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?;
                    x.mul(&factors)?
                }
                None => x.clone(),
            },
            Op::MaxPool(window) => {
                let mut best: Option<Tensor> = None;
                for seen in slide(x, window, f64::NEG_INFINITY)? {
                    best = Some(match best {
                        None => seen,
                        // strictly greater: of equal values the first keeps the gradient
                        Some(best) => seen.gt(&best)?.where_cond(&seen, &best)?,
                    });
                }
                best.ok_or_else(|| Error::invalid("a pooling window is empty"))?
            }
            Op::AvgPool(window) => {
                let area = (window.kernel * window.kernel) as f64;
                let mut sum: Option<Tensor> = None;
                for seen in slide(x, window, 0.0)? {
                    sum = Some(match sum {
                        None => seen,
                        Some(sum) => (sum + seen)?,
                    });
                }
                (sum.ok_or_else(|| Error::invalid("a pooling window is empty"))? / area)?
            }
            Op::GlobalPool => x.flatten_from(2)?.mean_keepdim(2)?.reshape((batch, channels, 1, 1))?,
            Op::Add(with) => (x + &values[with])?,
            Op::Flatten => x.reshape((batch, channels * height * width, 1, 1))?,
        })
    }
}

impl Network for Reference {
    fn pieces(&self) -> Vec<Range<usize>> {
        self.program.parameters.iter().map(|parameter| parameter.range.clone()).collect()
    }

    fn is_reference(&self) -> bool {
        true
    }

    fn forward(&self, theta: &[Tensor], stats: &Tensor, x: &Tensor, mode: &Mode, _sink: &Arc<Sink>) -> Result<Done> {
        check(&self.program, stats, x, mode)?;
        let source = self.source(theta, stats, x)?;
        let mut values = vec![x.contiguous()?];
        let mut moments = Vec::new();
        for (index, layer) in self.program.layers.iter().enumerate() {
            let y = self.layer(layer, index, &values, &source, mode, &mut moments)?;
            values.push(y);
        }
        let flat = |value: usize| -> Result<Tensor> {
            let y = &values[value];
            Ok(if self.program.shapes[value][1..] == [1, 1] { y.flatten_from(1)? } else { y.clone() })
        };
        let taps = mode.taps.iter().map(|&value| Ok(flat(value)?.detach())).collect::<Result<_>>()?;
        let (norms, values): (Vec<usize>, Vec<Tensor>) = moments.into_iter().unzip();
        let all = |values| Tensor::cat(values, 0).map(|values| Moments { norms, branch: mode.branch, values });
        let moments = if values.is_empty() { None } else { Some(all(&values)?) };
        Ok(Done { logits: flat(self.program.logits)?, features: flat(self.program.features)?, taps, moments })
    }
}

/// x where x > 0, slope times x elsewhere; the gradient at 0 is the slope, as in PyTorch.
fn leaky(x: &Tensor, slope: f64) -> Result<Tensor> {
    let positive = x.detach().gt(0.0)?.to_dtype(x.dtype())?;
    let factor = positive.affine(1.0 - slope, slope)?;
    Ok(x.mul(&factor)?)
}

/// A border around each image.
fn pad(x: &Tensor, border: usize, fill: f64) -> Result<Tensor> {
    let mut padded = x.clone();
    for dim in [2, 3] {
        if border > 0 {
            let mut shape = padded.dims().to_vec();
            shape[dim] = border;
            let edge = Tensor::full(fill, shape, x.device())?.to_dtype(x.dtype())?;
            padded = Tensor::cat(&[&edge, &padded, &edge], dim)?;
        }
    }
    Ok(padded)
}

/// What each place of a window sees as the window slides, places in reading order; `fill` stands in the padding.
fn slide(x: &Tensor, window: Window, fill: f64) -> Result<Vec<Tensor>> {
    let Window { kernel, stride, padding } = window;
    let padded = pad(x, padding, fill)?;
    let along = |dim: usize, start: usize| -> Result<Tensor> {
        let fits = (padded.dim(dim)? - kernel) / stride + 1;
        let places: Vec<u32> = (0..fits).map(|place| (start + place * stride) as u32).collect();
        Ok(Tensor::new(places, x.device())?)
    };
    let mut seen = Vec::with_capacity(kernel * kernel);
    for row in 0..kernel {
        let rows = padded.index_select(&along(2, row)?, 2)?;
        for column in 0..kernel {
            seen.push(rows.index_select(&along(3, column)?, 3)?);
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    /// 4 x 4 with ties, window 3, stride 2, padding 1: gradients by hand.
    #[test]
    fn max_pool_gives_ties_to_the_first() {
        let pixels: Vec<f64> = [1., 1., 0., 0., 1., 1., 0., 5., 2., 0., 3., 3., 0., 2., 3., 0.].into();
        let x = Var::from_tensor(&Tensor::from_vec(pixels, (1, 1, 4, 4), &Device::Cpu).unwrap()).unwrap();
        let mut best: Option<Tensor> = None;
        for seen in slide(&x, Window::new(3, 2, 1), f64::NEG_INFINITY).unwrap() {
            best = Some(best.map_or(seen.clone(), |b| seen.gt(&b).unwrap().where_cond(&seen, &b).unwrap()));
        }
        let y = best.unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [1., 5., 2., 5.]);
        let gradient = y.sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
        let expected = [1., 0., 0., 0., 0., 0., 0., 2., 1., 0., 0., 0., 0., 0., 0., 0.];
        assert_eq!(gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap(), expected);
        assert_eq!(x.dtype(), DType::F64);
    }

    #[test]
    fn relu_at_zero_has_no_gradient() {
        let x = Var::from_tensor(&Tensor::new(&[-1.0_f64, 0.0, 2.0], &Device::Cpu).unwrap()).unwrap();
        let gradient = leaky(&x, 0.0).unwrap().sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
        assert_eq!(gradient.to_vec1::<f64>().unwrap(), [0., 0., 1.]);
    }
}
