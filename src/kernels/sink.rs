//! Where gradients of theta gather, beside candle's graph: candle would make and add up vectors as long as theta for each
//! forward.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Buffer;

/// The gradient of one model's theta, if somebody asks for it.
#[derive(Debug, Default)]
pub struct Sink {
    state: Mutex<State>,
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    sum: Option<Buffer>,
}

impl Sink {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on gradients are wanted, beginning at nothing.
    pub fn open(&self) {
        *self.state() = State { open: true, sum: None };
    }

    /// What came in; nothing more is wanted.
    pub fn close(&self) -> Option<Buffer> {
        std::mem::take(&mut *self.state()).sum
    }

    /// Theta is another from now on.
    pub fn theta_changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often theta changed: the way back is for the theta of the way forth.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    pub(super) fn give(&self, gradient: Buffer, add: impl FnOnce(&mut Buffer, &Buffer)) {
        let mut state = self.state();
        match &mut state.sum {
            Some(sum) => add(sum, &gradient),
            empty => *empty = Some(gradient),
        }
    }
}
