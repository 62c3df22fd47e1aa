//! A desk that times the steps of a stage, and stops it once it has seen enough.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;

use crate::artifact::Encoded;
use crate::error::Result;
use crate::stage::{Desk, Progress};

/// Fewest steps that are timed, however long they take.
const LEAST: usize = 3;

/// Between two words of progress.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lap {
    pub seconds: f64,
    /// What the stage counts: steps where it trains, images where it only looks.
    pub done: usize,
    pub images: usize,
}

/// What was seen of one phase of a stage: its first word starts the clock and is no lap, as it warms caches up.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    pub laps: Vec<Lap>,
    /// How many laps there were.
    pub steps: usize,
    /// As the stage counts.
    pub total: usize,
    pub(super) first: Option<Instant>,
    pub(super) last: Option<(Instant, Progress)>,
}

/// Times the phase that a stage is in, for about `budget`, and then asks it to stop.
#[derive(Debug)]
pub struct Stopwatch {
    budget: Duration,
    phase: Mutex<Phase>,
}

impl Stopwatch {
    #[must_use]
    pub fn new(budget: Duration) -> Self {
        Self { budget, phase: Mutex::default() }
    }

    /// The last phase that there was.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().clone()
    }

    /// The phase is over, and so is all that a device was asked to do. Its laps say how fast it was asked, so one takes their
    /// place, from the first word until now.
    pub fn end(&self, device: &Device) -> Result<()> {
        device.synchronize()?;
        if !device.is_cpu() {
            self.lock().in_one(Instant::now());
        }
        Ok(())
    }

    /// Does steps, of so many images each, until it has seen enough.
    pub fn steps(&self, images: usize, mut step: impl FnMut(usize) -> Result<()>) -> Result<()> {
        for index in 0..usize::MAX {
            step(index)?;
            let done = index + 1;
            self.progress(Progress { done, total: usize::MAX, loss: None, images: done * images });
            if self.stop() {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    /// Progress at that moment. A total that changes, or work that is done again, begins another phase.
    fn hear(&mut self, now: Instant, progress: Progress) {
        match self.last {
            Some((then, last)) if last.total == progress.total && progress.done >= last.done => {
                // a word of no progress, as after the last step, is no lap
                if progress.done > last.done {
                    self.steps += 1;
                    self.laps.push(Lap {
                        seconds: now.duration_since(then).as_secs_f64(),
                        done: progress.done - last.done,
                        images: progress.images.saturating_sub(last.images),
                    });
                }
            }
            _ => *self = Self { total: progress.total, first: Some(now), ..Self::default() },
        }
        self.last = Some((now, progress));
    }

    /// One lap in place of all, that ends at that moment.
    fn in_one(&mut self, now: Instant) {
        let Some(first) = self.first.filter(|_| self.steps > 0) else { return };
        let sum = |of: fn(&Lap) -> usize| self.laps.iter().map(of).sum();
        let (done, images) = (sum(|lap| lap.done), sum(|lap| lap.images));
        self.laps = vec![Lap { seconds: now.duration_since(first).as_secs_f64(), done, images }];
    }

    fn is_enough(&self, now: Instant, budget: Duration) -> bool {
        self.laps.len() >= LEAST && self.first.is_some_and(|first| now.duration_since(first) >= budget)
    }
}

impl Desk for Stopwatch {
    fn progress(&self, progress: Progress) {
        // Taken before the lock and the sums.
        let now = Instant::now();
        self.lock().hear(now, progress);
    }

    fn note(&self, _: &str) {}

    fn stop(&self) -> bool {
        self.lock().is_enough(Instant::now(), self.budget)
    }

    fn due(&self, _: usize, _: usize) -> bool {
        false
    }

    fn restore(&self) -> Result<Option<Encoded>> {
        Ok(None)
    }

    fn save(&self, _: &Encoded) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: usize, total: usize) -> Progress {
        Progress { done, total, loss: None, images: 10 * done }
    }

    #[test]
    fn the_first_word_starts_the_clock_and_each_other_is_a_lap() {
        let (mut phase, begun) = (Phase::default(), Instant::now());
        for (step, milliseconds) in [(1, 900), (2, 1000), (4, 1500)] {
            phase.hear(begun + Duration::from_millis(milliseconds), at(step, 8));
        }
        assert_eq!(phase.total, 8);
        let lap = |seconds, done| Lap { seconds, done, images: 10 * done };
        assert_eq!(phase.laps, [lap(0.1, 1), lap(0.5, 2)]);
        // a device that was done later
        phase.in_one(begun + Duration::from_millis(2900));
        assert_eq!((phase.steps, phase.laps), (2, vec![lap(2.0, 3)]));
    }

    #[test]
    fn another_total_or_work_done_again_begins_another_phase() {
        for next in [at(3, 9), at(1, 8)] {
            let (mut phase, now) = (Phase::default(), Instant::now());
            phase.hear(now, at(1, 8));
            phase.hear(now, at(2, 8));
            assert_eq!(phase.laps.len(), 1);
            phase.hear(now, next);
            assert_eq!((phase.laps.len(), phase.total), (0, next.total));
        }
    }

    #[test]
    fn a_word_of_no_progress_is_no_lap() {
        let (mut phase, now) = (Phase::default(), Instant::now());
        for done in [1, 8, 8] {
            phase.hear(now, at(done, 8));
        }
        assert_eq!((phase.laps.len(), phase.total), (1, 8));
    }

    #[test]
    fn a_stage_is_stopped_when_the_time_is_over_but_never_before_three_laps() {
        let (mut phase, now) = (Phase::default(), Instant::now());
        let (short, long) = (Duration::ZERO, Duration::from_secs(9));
        for step in 1..=4 {
            assert!(!phase.is_enough(now, short), "after {step}");
            phase.hear(now, at(step, 8));
        }
        assert!(phase.is_enough(now, short) && !phase.is_enough(now, long));
        assert!(phase.is_enough(now + long, long));
    }
}
