//! How one forward is done: which statistics batch norm uses, whether dropout draws.

use crate::kernels::{Mode, Program};
use crate::rng::Rng;

/// Which statistics a batch norm normalises with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Those of the batch: PyTorch's train mode.
    Batch,
    /// The running ones: evaluation mode.
    Running,
}

/// How one forward is done. Mode and tracking are separate: an evaluation-mode forward has gradients too.
#[derive(Clone, Debug)]
pub struct Pass {
    pub batch_norm: Statistics,
    /// Batch norms whose names begin so differ; the last one that fits counts.
    pub layers: Vec<(String, Statistics)>,
    /// Whether batch norms in batch mode hand back what moves their running statistics.
    pub update_stats: bool,
    /// Which set of batch-norm weights and statistics: 0, or 1 with auxiliary batch norm.
    pub branch: usize,
    /// Draws of dropout, a fresh fork each step; without it dropout does nothing.
    pub rng: Option<Rng>,
}

impl Pass {
    /// PyTorch's train mode, but for dropout, which needs `with_rng`.
    #[must_use]
    pub fn train() -> Self {
        Self { batch_norm: Statistics::Batch, layers: Vec::new(), update_stats: true, branch: 0, rng: None }
    }

    #[must_use]
    pub fn eval() -> Self {
        Self { batch_norm: Statistics::Running, ..Self::train() }
    }

    /// With dropout, drawn from that generator.
    #[must_use]
    pub fn with_rng(mut self, rng: Rng) -> Self {
        self.rng = Some(rng);
        self
    }

    #[must_use]
    pub fn with_branch(mut self, branch: usize) -> Self {
        self.branch = branch;
        self
    }

    /// Running statistics stay as they are.
    #[must_use]
    pub fn without_update(mut self) -> Self {
        self.update_stats = false;
        self
    }

    /// Batch norms whose names begin with one of the prefixes use those statistics.
    #[must_use]
    pub fn with_layers(mut self, prefixes: &[&str], statistics: Statistics) -> Self {
        self.layers.extend(prefixes.iter().map(|&prefix| (prefix.to_owned(), statistics)));
        self
    }

    /// Running statistics, that do not move, for layers whose names begin so.
    #[must_use]
    pub fn frozen(self, prefixes: &[&str]) -> Self {
        self.with_layers(prefixes, Statistics::Running)
    }

    /// Train mode for the layers whose names begin with one of the prefixes, evaluation mode for the others: the rest
    /// is frozen.
    #[must_use]
    pub fn train_only(prefixes: &[&str]) -> Self {
        Self { batch_norm: Statistics::Running, ..Self::train() }.with_layers(prefixes, Statistics::Batch)
    }

    fn statistics(&self, name: &str) -> Statistics {
        // a prefix may say more than the layer's name: `bn1.` stands for `bn1.weight`
        let fits = |prefix: &String| name.starts_with(prefix.as_str()) || format!("{name}.").starts_with(prefix);
        self.layers.iter().rev().find(|(prefix, _)| fits(prefix)).map_or(self.batch_norm, |(_, statistics)| *statistics)
    }

    pub(super) fn mode(&self, program: &Program) -> Mode {
        let batch = program.norms.iter().map(|norm| self.statistics(&norm.name) == Statistics::Batch).collect();
        Mode { batch, branch: self.branch, rng: self.rng.clone(), taps: Vec::new() }
    }
}
