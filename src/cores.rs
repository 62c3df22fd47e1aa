//! Where a stage computes. It runs inside a pool of threads of its own, so it goes on with its own part of a step at once and
//! needs to wait for nobody to wake up; two stages never wait inside each other. No result depends on the number of threads.

/// Does work on so many threads.
pub fn on_cores<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().num_threads(count).build() {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// As many as there are cores, or as `RAYON_NUM_THREADS` says.
#[must_use]
pub fn all() -> usize {
    rayon::current_num_threads()
}
