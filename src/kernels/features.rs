//! Features as the second result of a network's one operation, of which candle knows logits alone. Their gradient is laid
//! aside until the walk comes to the network, where it is taken; a loss without features costs nothing for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{Result, Shape, Storage, Tensor};

use super::given::given;

/// What passes from one walk's features to its network.
#[derive(Debug, Default)]
pub(super) struct Features {
    gradient: Mutex<Option<Tensor>>,
}

impl Features {
    fn gradient(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Features beside the logits of one forward.
    pub(super) fn beside(self: Arc<Self>, logits: &Tensor, made: Storage, shape: Shape) -> Result<Tensor> {
        if !logits.track_op() {
            return Ok(Tensor::from_storage(made, shape, BackpropOp::none(), false));
        }
        given("features", &[logits], made, shape, move |inputs, above| {
            *self.gradient() = Some(above.clone());
            // the walk goes on where logits have a gradient
            inputs.iter().map(|logits| logits.zeros_like().map(Some)).collect()
        })
    }

    /// The gradient that a walk left, if it came by.
    pub(super) fn taken(&self) -> Option<Tensor> {
        self.gradient().take()
    }
}
