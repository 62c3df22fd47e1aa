//! A desk that stops its stage after some steps, and keeps checkpoints and notes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use recant::artifact::Encoded;
use recant::error::{Error, Result};
use recant::stage::{Desk, Progress};

#[derive(Default)]
pub struct Halting {
    /// How often it may still be asked whether to stop.
    left: AtomicUsize,
    told: AtomicUsize,
    kept: Mutex<Option<Encoded>>,
    pub notes: Mutex<Vec<String>>,
    /// Steps done, and bits of the losses.
    pub losses: Mutex<Vec<(usize, Option<u64>)>>,
}

impl Halting {
    /// One that stops its stage when it is asked once more than so often.
    pub fn after(asked: usize) -> Self {
        Self { left: asked.into(), ..Self::default() }
    }

    /// One that never stops it.
    pub fn never() -> Self {
        Self::after(usize::MAX)
    }

    /// From now on never.
    pub fn relent(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
    }

    /// How often a desk that never stops its stage was asked to.
    pub fn asked(&self) -> usize {
        usize::MAX - self.left.load(Ordering::Relaxed)
    }

    /// The last checkpoint.
    pub fn checkpoint(&self) -> Option<Encoded> {
        self.kept.lock().unwrap().clone()
    }

    /// How often it was told of progress.
    pub fn steps(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    /// Does work that is stopped after every so many steps, again and again until it is done, later where it did not get on
    /// since the last time; gives what it made in the end and how often it was stopped.
    pub fn through<T>(steps: usize, mut work: impl FnMut(&Self) -> Result<T>) -> (T, usize) {
        let desk = Self::default();
        let (mut patience, mut told) = (steps, usize::MAX);
        for stopped in 0..1000 {
            patience = if told == desk.steps() { patience + steps } else { steps };
            told = desk.steps();
            desk.left.store(patience, Ordering::Relaxed);
            match work(&desk) {
                Ok(made) => return (made, stopped),
                Err(Error::Interrupted) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it never gets on")
    }
}

impl Desk for Halting {
    fn progress(&self, progress: Progress) {
        assert!(progress.loss.is_none_or(f64::is_finite));
        self.told.fetch_add(1, Ordering::Relaxed);
        self.losses.lock().unwrap().push((progress.done, progress.loss.map(f64::to_bits)));
    }

    fn note(&self, note: &str) {
        self.notes.lock().unwrap().push(note.to_owned());
    }

    fn stop(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }

    /// A desk that never stops its stage has it save at every step.
    fn due(&self, _: usize, _: usize) -> bool {
        self.left.load(Ordering::Relaxed) > usize::MAX / 2
    }

    fn restore(&self) -> Result<Option<Encoded>> {
        Ok(self.kept.lock().unwrap().clone())
    }

    fn save(&self, checkpoint: &Encoded) -> Result<()> {
        *self.kept.lock().unwrap() = Some(checkpoint.clone());
        Ok(())
    }
}
