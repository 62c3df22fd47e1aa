//! Memory that is used again: activations of one forward serve the next, so a training loop allocates nothing large.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

/// Elements of a cache line; a vector that lies across two costs twice.
const LINE: usize = 16;

/// Elements up to the next line.
fn offset(data: &[f32]) -> usize {
    data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE)
}

/// An empty vector with room for so many. Large ones ask the system for large pages: faster to get, and matrices that lie
/// far apart need fewer of them.
fn fresh(room: usize) -> Vec<f32> {
    let data: Vec<f32> = Vec::with_capacity(room);
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let start = (data.as_ptr() as usize).next_multiple_of(PAGE);
        let end = (data.as_ptr() as usize + room * size_of::<f32>()) / PAGE * PAGE;
        if end > start {
            // SAFETY: whole pages within the vector's own memory; this is advice, and does nothing where it is not taken.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    data
}

/// Buffers that nobody uses just now.
#[derive(Debug, Default)]
pub struct Pool {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The longest idle first.
    idle: Vec<Vec<f32>>,
    /// Elements lying idle, lent, and the most that ever were lent at once.
    resting: usize,
    lent: usize,
    peak: usize,
}

impl Pool {
    /// A buffer of that length, on whole cache lines; what it holds is anything.
    pub(super) fn lend(self: &Arc<Self>, length: usize) -> Buffer {
        let room = length + LINE;
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |have: usize| have >= room && have <= 2 * room + 1024;
        let found = shelf
            .idle
            .iter()
            .enumerate()
            // the last to come back may still be in a cache
            .rev()
            .filter(|(_, idle)| fits(idle.capacity()))
            .min_by_key(|(_, idle)| idle.capacity())
            .map(|(index, _)| index);
        let mut data = match found {
            Some(index) => {
                let data = shelf.idle.remove(index);
                shelf.resting -= data.capacity();
                data
            }
            None => fresh(room),
        };
        shelf.lent += data.capacity();
        shelf.peak = shelf.peak.max(shelf.lent);
        drop(shelf);
        if data.len() < room {
            data.resize(room, 0.0);
        }
        let start = offset(&data);
        Buffer { data, range: start..start + length, pool: self.clone() }
    }

    /// Elements that somebody uses just now.
    #[cfg(test)]
    pub(super) fn lent(&self) -> usize {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).lent
    }
}

/// Some f32 that go back to the pool when they are dropped.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<f32>,
    /// The part on whole lines.
    range: Range<usize>,
    pool: Arc<Pool>,
}

impl Buffer {
    /// Of no pool.
    pub(crate) fn of(data: Vec<f32>) -> Self {
        Self { range: 0..data.len(), data, pool: Arc::default() }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.range.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.range.clone()]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut shelf = self.pool.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.lent = shelf.lent.saturating_sub(data.capacity());
        shelf.resting += data.capacity();
        shelf.idle.push(data);
        // little more than was ever in use at once, so that other batch sizes do not add up: the longest idle goes first
        while shelf.resting + shelf.lent > shelf.peak + shelf.peak / 4 {
            let oldest = shelf.idle.remove(0);
            shelf.resting -= oldest.capacity();
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Memory for one task, of that length, on whole cache lines; what it holds is anything. The thread keeps it for the next task.
pub(super) fn scratch<R>(length: usize, act: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut data = SCRATCH.take();
    if data.len() < length + LINE {
        data = fresh(length + LINE);
        data.resize(length + LINE, 0.0);
    }
    let start = offset(&data);
    let result = act(&mut data[start..start + length]);
    SCRATCH.set(data);
    result
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
