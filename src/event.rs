//! What a run tells: the only channel from work to screen.

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Planned {
        stages: usize,
        to_run: usize,
    },
    Started {
        stage: String,
        resumed_at: Option<u64>,
    },
    Progress {
        stage: String,
        done: usize,
        total: usize,
        loss: Option<f64>,
        images: usize,
    },
    /// Another run is at it: who, and how far. Told again as it goes on.
    Waiting {
        stage: String,
        holder: String,
    },
    /// The result was there, or another run made it meanwhile.
    Cached {
        stage: String,
    },
    Finished {
        stage: String,
        seconds: f64,
    },
    Failed {
        stage: String,
        error: String,
    },
    /// Asked to stop; a training stage has saved its state.
    Stopped {
        stage: String,
    },
    /// Not run because of another stage.
    Skipped {
        stage: String,
        because: String,
    },
    Warned {
        message: String,
    },
    Done {
        ran: usize,
        cached: usize,
        failed: usize,
        skipped: usize,
        seconds: f64,
    },
}

/// Shows events. Called from several threads.
pub trait Reporter: Send + Sync {
    fn event(&self, event: &Event);
}

/// Shows nothing.
#[derive(Debug)]
pub struct Quiet;

impl Reporter for Quiet {
    fn event(&self, _: &Event) {}
}
