//! Named points between the file operations of the store, where a test lets the program die or an operation fail. Only
//! debug builds look: in release builds nothing of it is left.
//!
//! `RECANT_CRASH=NAME[:COUNT]` aborts at the COUNT-th passage of a point. `RECANT_FAIL=NAME[:COUNT]=ERRNO` fails there
//! once with that error of the operating system. `RECANT_HOST`, `RECANT_LAPSE` (milliseconds) and `RECANT_FREE` (bytes)
//! stand for another host, a shorter patience with its heartbeats, and a fuller disk.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// All points, by what was just done there.
pub const POINTS: &[&str] = &[
    // making the folders of a store
    "prepare.folder",
    "prepare.done",
    // a whole file: formats, checkpoints
    "file.created",
    "file.written",
    "file.synced",
    "file.moved",
    // publishing a result
    "save.folder",
    "save.artifact",
    "save.synced",
    "save.manifest",
    "save.parent",
    "save.published",
    "save.done",
    // claims
    "claim.written",
    "claim.linked",
    "claim.told",
    "claim.untold",
    "claim.dropped",
    "take.marked",
    "take.removed",
    "take.done",
    // what a run will read
    "pin.linked",
    "pin.dropped",
    // history
    "log.opened",
    "log.written",
    // reading, and what is found damaged
    "load.read",
    "aside.moved",
    "verify.history",
    // collection
    "gc.claimed",
    "gc.moved",
    "gc.result",
    "gc.leftover",
    "gc.claim",
];

#[derive(Debug)]
struct Fault {
    name: String,
    /// Passages until it strikes.
    left: AtomicI64,
    /// None: the program dies.
    error: Option<i32>,
}

impl Fault {
    /// NAME[:COUNT]
    fn new(text: &str, error: Option<i32>) -> Self {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let left = count.parse().unwrap_or(1);
        Self { name: name.to_owned(), left: AtomicI64::new(left), error }
    }

    fn crash() -> Option<Self> {
        Some(Self::new(&setting("RECANT_CRASH")?, None))
    }

    fn fail() -> Option<Self> {
        let text = setting("RECANT_FAIL")?;
        let (point, error) = text.rsplit_once('=')?;
        Some(Self::new(point, Some(error.parse().ok()?)))
    }
}

/// What only tests may say, in debug builds.
pub(super) fn setting(name: &str) -> Option<String> {
    if cfg!(debug_assertions) { std::env::var(name).ok() } else { None }
}

/// A point between two file operations.
pub(super) fn point(name: &'static str) -> io::Result<()> {
    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    debug_assert!(POINTS.contains(&name), "`{name}` is not in the list of points");
    let faults = FAULTS.get_or_init(|| [Fault::crash(), Fault::fail()].into_iter().flatten().collect());
    for fault in faults.iter().filter(|fault| fault.name == name) {
        if fault.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            match fault.error {
                Some(error) => return Err(io::Error::from_raw_os_error(error)),
                None => std::process::abort(),
            }
        }
    }
    Ok(())
}
