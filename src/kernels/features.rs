//! Features as the second result of a network's one operation, of which candle knows logits alone. Their gradient is laid
//! aside until the walk comes to the network, where it is taken; a loss without features costs nothing for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Error, Layout, Result, Shape, Storage, Tensor};

/// What passes from one walk's features to its network.
#[derive(Debug, Default)]
pub(super) struct Features {
    gradient: Mutex<Option<Tensor>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Features {
    /// Features beside the logits of one forward.
    pub(super) fn beside(self: Arc<Self>, logits: &Tensor, made: Storage, shape: Shape) -> Result<Tensor> {
        if !logits.track_op() {
            return Ok(Tensor::from_storage(made, shape, BackpropOp::none(), false));
        }
        logits.apply_op1(Beside { made: Mutex::new(Some(made)), shape, features: self })
    }

    /// The gradient that a walk left, if it came by.
    pub(super) fn taken(&self) -> Option<Tensor> {
        locked(&self.gradient).take()
    }
}

struct Beside {
    made: Mutex<Option<Storage>>,
    shape: Shape,
    features: Arc<Features>,
}

impl Beside {
    fn made(&self) -> Result<Storage> {
        locked(&self.made).take().ok_or_else(|| Error::msg("features are taken once"))
    }
}

impl CustomOp1 for Beside {
    fn name(&self) -> &'static str {
        "features"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.made()? {
            Storage::Cpu(made) => Ok((made, self.shape.clone())),
            _ => Err(Error::msg("features lie elsewhere than logits")),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.made()? {
            Storage::Cuda(made) => Ok((made, self.shape.clone())),
            _ => Err(Error::msg("features lie elsewhere than logits")),
        }
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        *locked(&self.features.gradient) = Some(gradient.clone());
        // the walk goes on where logits have a gradient
        Ok(Some(logits.zeros_like()?))
    }
}
