//! Work on all cores of the current rayon pool. Tasks write disjoint places and each element is computed by one task
//! in one order, so the number of threads changes nothing but time.

use rayon::prelude::*;

/// Below so many elementary operations a second thread costs more than it saves.
const WORTH: usize = 1 << 20;

/// Runs the tasks, which together cost about `work` multiply-adds.
pub(super) fn each(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if tasks < 2 || work < WORTH || rayon::current_num_threads() < 2 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// The start of a buffer that several tasks write to, each its own places.
#[derive(Clone, Copy)]
pub(super) struct Shared<T = f32> {
    start: *mut T,
    length: usize,
}

// SAFETY: tasks write disjoint places (each caller says why) while the buffer's owner waits for them.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(buffer: &mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), length: buffer.len() }
    }

    /// A part of the buffer.
    ///
    /// # Safety
    /// No other task touches that part at the same time.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of one buffer")]
    pub(super) unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start + length <= self.length, "a task writes within its buffer");
        // SAFETY: within the buffer, and by the caller's promise nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }

    pub(super) fn at(&self, place: usize) -> *mut T {
        debug_assert!(place <= self.length);
        self.start.wrapping_add(place)
    }
}
