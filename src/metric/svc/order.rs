//! The order in which LIBSVM would have its points, which decides between equal candidates.

/// Where LIBSVM would have each point: those that are still in play, then those that are shrunk.
pub(super) struct Order {
    pub(super) points: Vec<usize>,
    /// Where each point is.
    pub(super) place: Vec<u32>,
    pub(super) active: usize,
    /// Whether all have come back once, shortly before the end.
    pub(super) restored: bool,
}

impl Order {
    pub(super) fn new(count: usize) -> Self {
        Self { points: (0..count).collect(), place: (0..count as u32).collect(), active: count, restored: false }
    }

    /// Takes out those that are settled, each place filled by the last that stays; gives those taken out.
    pub(super) fn shrink(&mut self, settled: impl Fn(usize) -> bool) -> Vec<usize> {
        let (before, mut at) = (self.active, 0);
        while at < self.active {
            if settled(self.points[at]) {
                self.active -= 1;
                while self.active > at {
                    if !settled(self.points[self.active]) {
                        self.points.swap(at, self.active);
                        break;
                    }
                    self.active -= 1;
                }
            }
            at += 1;
        }
        for (place, &point) in self.points.iter().enumerate() {
            self.place[point] = place as u32;
        }
        self.points[self.active..before].to_vec()
    }

    /// Takes all back, where they are; gives those that come back.
    pub(super) fn restore(&mut self) -> Vec<usize> {
        let active = std::mem::replace(&mut self.active, self.points.len());
        self.points[active..].to_vec()
    }
}
