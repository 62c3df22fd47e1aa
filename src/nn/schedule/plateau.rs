//! PyTorch's ReduceLROnPlateau (mode `min`, relative threshold): the rate is cut after more than `patience` epochs in a
//! row whose value was not lower than the best by a share.

/// Cuts smaller than this are not made.
const EPS: f64 = 1e-8;

#[derive(Clone, Debug, PartialEq)]
pub struct Plateau {
    pub factor: f64,
    pub patience: usize,
    pub threshold: f64,
    pub cooldown: usize,
    pub floor: f64,
    pub(super) rate: f64,
    pub(super) best: f64,
    pub(super) bad: usize,
    pub(super) cooling: usize,
}

impl Plateau {
    #[must_use]
    pub fn new(base: f64, factor: f64, patience: usize, threshold: f64, cooldown: usize, floor: f64) -> Self {
        let best = f64::INFINITY;
        Self { factor, patience, threshold, cooldown, floor, rate: base, best, bad: 0, cooling: 0 }
    }

    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes in the value of one epoch; lower is better.
    pub fn observe(&mut self, value: f64) {
        if value < self.best * (1.0 - self.threshold) {
            self.best = value;
            self.bad = 0;
        } else {
            self.bad += 1;
        }
        if self.cooling > 0 {
            self.cooling -= 1;
            self.bad = 0;
        }
        if self.bad > self.patience {
            let cut = (self.rate * self.factor).max(self.floor);
            if self.rate - cut > EPS {
                self.rate = cut;
            }
            self.cooling = self.cooldown;
            self.bad = 0;
        }
    }
}
