//! What all targets share: memory is counted, and a run that asks for too much in proportion to its input is a finding, as
//! a panic is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use libfuzzer_sys;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(size: usize) {
    let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a parser on some bytes; aborts where it took more memory than some megabytes and so much a byte.
pub fn run(parser: fn(&[u8]), megabytes: usize, each: usize, bytes: &[u8]) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    parser(bytes);
    let took = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(took <= (megabytes << 20) + each * bytes.len(), "{took} bytes of memory for an input of {}", bytes.len());
}

/// `target!(parser, megabytes, a byte)`.
#[macro_export]
macro_rules! target {
    ($name:ident, $megabytes:literal, $each:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run(
            recant::fuzz::$name,
            $megabytes,
            $each,
            bytes
        ));
    };
    // A parser that catches its library's panics.
    ($name:ident, $megabytes:literal, $each:literal, guarded) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: std::panic::set_hook(Box::new(|_| {})),
            |bytes: &[u8]| $crate::run(recant::fuzz::$name, $megabytes, $each, bytes)
        );
    };
}
