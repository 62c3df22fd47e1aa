//! Memory that is used again: activations of one forward serve the next, so a training loop allocates nothing large.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that nobody uses just now.
#[derive(Debug, Default)]
pub(super) struct Pool {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Vec<f32>>,
    /// Elements lying idle, lent, and the most that ever were lent at once.
    resting: usize,
    lent: usize,
    peak: usize,
}

impl Pool {
    /// A buffer of that length; what it holds is anything.
    pub(super) fn lend(self: &Arc<Self>, length: usize) -> Buffer {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |have: usize| have >= length && have <= 2 * length + 1024;
        let found = shelf
            .idle
            .iter()
            .enumerate()
            .filter(|(_, idle)| fits(idle.capacity()))
            .min_by_key(|(_, idle)| idle.capacity())
            .map(|(index, _)| index);
        let mut data = match found {
            Some(index) => {
                let data = shelf.idle.swap_remove(index);
                shelf.resting -= data.capacity();
                data
            }
            None => Vec::with_capacity(length),
        };
        shelf.lent += data.capacity();
        shelf.peak = shelf.peak.max(shelf.lent);
        drop(shelf);
        data.resize(length, 0.0);
        Buffer { data, pool: self.clone() }
    }

    /// Elements that somebody uses just now.
    #[cfg(test)]
    pub(super) fn lent(&self) -> usize {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).lent
    }
}

/// Some f32 that go back to the pool when they are dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    data: Vec<f32>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut shelf = self.pool.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.lent = shelf.lent.saturating_sub(data.capacity());
        // not more than was ever in use at once, so that other batch sizes do not add up
        if shelf.resting + shelf.lent + data.capacity() <= shelf.peak {
            shelf.resting += data.capacity();
            shelf.idle.push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back() {
        let pool = Arc::new(Pool::default());
        let first = pool.lend(1000).as_ptr();
        assert_eq!(pool.lend(900).as_ptr(), first);
        let (a, b) = (pool.lend(10), pool.lend(10));
        assert_ne!(a.as_ptr(), b.as_ptr());
    }
}
