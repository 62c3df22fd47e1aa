//! What goes with one model's theta beside candle's graph. Gradients gather here: candle would make and add up vectors as
//! long as theta for each forward. And where theta stays as it is for several forwards, as in teachers and evaluations,
//! its weights stay here in the order in which the kernels read them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};

use super::Buffer;

/// The gradient of a loss, as long as a model's theta, in f32.
#[derive(Debug)]
pub enum Gradient {
    /// In main memory.
    Host(Buffer),
    /// On the model's device.
    Device(Tensor),
}

/// The gradient of one model's theta, if somebody asks for it, and its packed weights.
#[derive(Debug, Default)]
pub struct Sink {
    state: Mutex<State>,
    changes: AtomicU64,
    packs: Mutex<Packs>,
}

/// Packed weights by step and way. They are kept where they are worth their memory: from the second forward of a theta on,
/// and from the first where the theta before had several. One that trains alone sees each theta once.
#[derive(Debug, Default)]
struct Packs {
    forwards: usize,
    /// Of the theta before.
    before: usize,
    kept: BTreeMap<(usize, Way), Arc<Buffer>>,
}

impl Packs {
    fn are_worth_it(&self) -> bool {
        self.forwards.max(self.before) > 1
    }
}

/// Whom packed weights serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Forth,
    Back,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    sum: Option<Gradient>,
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
    pub fn close(&self) -> Option<Gradient> {
        std::mem::take(&mut *self.state()).sum
    }

    /// Theta is another from now on.
    pub fn theta_changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let mut packs = self.packs();
        *packs = Packs { before: packs.forwards, ..Packs::default() };
    }

    fn packs(&self) -> std::sync::MutexGuard<'_, Packs> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A forward begins.
    pub(super) fn begin(&self) {
        self.packs().forwards += 1;
    }

    /// Whether packed weights of this theta are kept.
    pub(super) fn keeps(&self) -> bool {
        self.packs().are_worth_it()
    }

    /// The packed weights of a step, those kept or fresh ones.
    pub(super) fn packed(&self, step: usize, way: Way, pack: impl FnOnce() -> Buffer) -> Arc<Buffer> {
        if let Some(packed) = self.packs().kept.get(&(step, way)) {
            return packed.clone();
        }
        let packed = Arc::new(pack());
        let mut packs = self.packs();
        if packs.are_worth_it() {
            packs.kept.insert((step, way), packed.clone());
        }
        packed
    }

    /// How often theta changed: the way back is for the theta of the way forth.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    /// What one way back made; `add` changes the first to the sum of both.
    pub(super) fn give(
        &self,
        gradient: Gradient,
        add: impl FnOnce(&mut Gradient, &Gradient) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        match &mut state.sum {
            Some(sum) => add(sum, &gradient),
            empty => {
                *empty = Some(gradient);
                Ok(())
            }
        }
    }
}
