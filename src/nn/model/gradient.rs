//! Gradients by whole models: one vector each, as long as theta.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::Model;
use crate::error::{Error, Result};
pub use crate::kernels::Gradient;
use crate::kernels::{self, Buffer};
use crate::wide::wide;

impl Gradient {
    /// Its euclidean length; squares are summed in f64.
    pub fn length(&self) -> Result<f64> {
        self.measure()?.length()
    }

    /// Its length, without waiting for a device.
    pub fn measure(&self) -> Result<Measure> {
        Ok(match self {
            // over pieces of fixed size
            Gradient::Host(values) => Measure::Host(values.par_chunks(1 << 14).map(squares).collect()),
            Gradient::Device(tensor) => Measure::Device(kernels::squares(tensor)?),
        })
    }

    /// In main memory.
    pub fn host(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Gradient::Host(values) => Cow::Borrowed(values),
            Gradient::Device(tensor) => Cow::Owned(tensor.to_vec1()?),
        })
    }

    /// On a device.
    pub fn on(&self, device: &Device) -> Result<Tensor> {
        Ok(match self {
            Gradient::Host(values) => Tensor::from_slice(values, values.len(), device)?,
            Gradient::Device(tensor) => tensor.to_device(device)?,
        })
    }
}

/// The squares of a gradient, summed by pieces.
#[derive(Debug)]
pub enum Measure {
    Host(Vec<f64>),
    Device(Tensor),
}

impl Measure {
    /// The euclidean length. Waits for the device.
    pub fn length(&self) -> Result<f64> {
        Ok(match self {
            // added up in their order
            Measure::Host(parts) => parts.iter().sum::<f64>().sqrt(),
            Measure::Device(parts) => parts.to_vec1::<f64>()?.iter().sum::<f64>().sqrt(),
        })
    }
}

wide! {
    /// Their sum, in lanes, so that an addition need not wait for the one before.
    fn squares(values: &[f32]) -> f64 {
        let (chunks, rest) = values.as_chunks::<16>();
        let mut lanes = [0.0_f64; 16];
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*value) * f64::from(*value);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
    }
}

/// What one backward left for a model: from its own kernels, and by candle's graph.
struct Found {
    own: Option<Gradient>,
    /// One a piece of theta.
    graph: Vec<Option<Tensor>>,
}

impl Found {
    fn is_there(&self) -> bool {
        self.own.is_some() || self.in_graph()
    }

    fn in_graph(&self) -> bool {
        self.graph.iter().any(Option::is_some)
    }

    /// What came by candle's graph, zeros where nothing did.
    fn by_graph(&self, model: &Model) -> Result<Tensor> {
        let parts = self.graph.iter().zip(&model.pieces).map(|(part, piece)| match part {
            Some(gradient) => Ok(gradient.flatten_all()?),
            None => Ok(piece.zeros_like()?),
        });
        let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
        Ok(if let [one] = parts.as_slice() { one.clone() } else { Tensor::cat(&parts, 0)? })
    }
}

/// One backward. Only the models asked for gather gradients.
fn walk(loss: &Tensor, models: &[&Model]) -> Result<Vec<Found>> {
    for model in models {
        model.sink.open();
    }
    let store = loss.backward();
    let owns: Vec<Option<Gradient>> = models.iter().map(|model| model.sink.close()).collect();
    let store = store?;
    let found = models.iter().zip(owns).map(|(model, own)| {
        let graph = model.pieces.iter().map(|piece| store.get(piece.as_tensor()).cloned()).collect();
        Found { own, graph }
    });
    let found: Vec<Found> = found.collect();
    if found.iter().any(Found::is_there) { Ok(found) } else { Err(Error::NoGradient("loss".to_owned())) }
}

impl Model {
    /// The gradient of a loss, as one vector. A loss that reaches no parameter is an error.
    pub fn gradient(&self, loss: &Tensor) -> Result<Vec<f32>> {
        let all = gradients_of(loss, &[self])?;
        all.first().map_or_else(|| Ok(Vec::new()), |gradient| Ok(gradient.host()?.into_owned()))
    }
}

/// One backward; for each model the gradient of the loss as one vector as long as its theta, in the model's own type:
/// zeros where the loss does not reach. An error where it reaches none of them.
pub fn gradients<const N: usize>(loss: &Tensor, models: [&Model; N]) -> Result<[Tensor; N]> {
    let mut all = Vec::with_capacity(N);
    for (found, model) in walk(loss, &models)?.into_iter().zip(models) {
        all.push(match &found.own {
            Some(own) => (found.by_graph(model)? + own.on(&model.device)?)?,
            None => found.by_graph(model)?,
        });
    }
    all.try_into().map_err(|_| Error::invalid("a model has no gradient"))
}

/// `gradients` of any number of models, as f32, each where its model is.
pub fn gradients_of(loss: &Tensor, models: &[&Model]) -> Result<Vec<Gradient>> {
    let mut all = Vec::with_capacity(models.len());
    for (found, model) in walk(loss, models)?.into_iter().zip(models) {
        let rest = match &found.own {
            Some(_) if !found.in_graph() => None,
            _ => Some(found.by_graph(model)?.to_dtype(DType::F32)?),
        };
        all.push(match (found.own, rest) {
            (Some(own), None) => own,
            (Some(Gradient::Host(mut own)), Some(rest)) => {
                own.iter_mut().zip(rest.to_vec1::<f32>()?).for_each(|(sum, part)| *sum += part);
                Gradient::Host(own)
            }
            (Some(Gradient::Device(own)), Some(rest)) => Gradient::Device((own + rest)?),
            (None, Some(rest)) if model.device.is_cpu() => Gradient::Host(Buffer::of(rest.to_vec1()?)),
            (None, Some(rest)) => Gradient::Device(rest),
            (None, None) => return Err(Error::NoGradient("loss".to_owned())),
        });
    }
    Ok(all)
}
