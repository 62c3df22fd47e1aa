//! Reporters: bars on a terminal, a line an event in a pipe, JSON for scripts. The only user of indicatif.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::event::{Event, Reporter};

/// One bar a running stage; finished stages leave a line.
#[derive(Debug, Default)]
pub struct Bars {
    all: MultiProgress,
    running: Mutex<BTreeMap<String, Running>>,
}

#[derive(Debug)]
struct Running {
    bar: ProgressBar,
    since: Instant,
    /// Where this attempt began: what an earlier one did says nothing about its speed.
    from: Option<usize>,
}

impl Running {
    fn new(bar: ProgressBar) -> Self {
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, since: Instant::now(), from: None }
    }
}

impl Reporter for Bars {
    fn event(&self, event: &Event) {
        let Ok(mut running) = self.running.lock() else { return };
        match event {
            Event::Started { stage, .. } => {
                let style = "{spinner} {prefix} {wide_bar} {pos}/{len} {msg}";
                let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
                if let Some(waiting) = running.remove(stage) {
                    waiting.bar.finish_and_clear();
                }
                let bar = self.all.add(ProgressBar::new(0).with_style(style).with_prefix(stage.clone()));
                running.insert(stage.clone(), Running::new(bar));
            }
            Event::Progress { stage, done, total, loss, images } => {
                if let Some(Running { bar, since, from }) = running.get_mut(stage) {
                    let from = *from.get_or_insert(*done);
                    bar.set_length(*total as u64);
                    bar.set_position(*done as u64);
                    let seconds = since.elapsed().as_secs_f64().max(1e-3);
                    let speed = *images as f64 / seconds;
                    let loss = loss.map_or(String::new(), |loss| format!("loss {loss:.4} "));
                    let left = total.saturating_sub(*done) as f64 / done.saturating_sub(from).max(1) as f64 * seconds;
                    let left = Duration::try_from_secs_f64(left.round()).unwrap_or_default();
                    let eta = if *done > from { format!(" eta {}", FormattedDuration(left)) } else { String::new() };
                    let speed = if *images > 0 { format!("{speed:.0} images/s") } else { String::new() };
                    bar.set_message(format!("{loss}{speed}{eta}"));
                }
            }
            Event::Waiting { stage, holder } => {
                let waiting = running.entry(stage.clone()).or_insert_with(|| {
                    let style = ProgressStyle::with_template("{spinner} {prefix} {msg}");
                    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
                    Running::new(self.all.add(ProgressBar::new_spinner().with_style(style).with_prefix(stage.clone())))
                });
                waiting.bar.set_message(format!("waits for {holder}"));
            }
            _ => {
                if let Event::Finished { stage, .. }
                | Event::Failed { stage, .. }
                | Event::Stopped { stage }
                | Event::Cached { stage } = event
                    && let Some(done) = running.remove(stage)
                {
                    done.bar.finish_and_clear();
                }
                if let Some(line) = line(event) {
                    // A terminal that is gone is no reason to stop working.
                    let _ = self.all.println(line);
                }
            }
        }
    }
}

/// One line an event on stderr; a stage at work says so every 30 seconds.
#[derive(Debug, Default)]
pub struct Plain {
    last: Mutex<BTreeMap<String, Instant>>,
}

const HEARTBEAT: Duration = Duration::from_secs(30);

impl Reporter for Plain {
    fn event(&self, event: &Event) {
        let Ok(mut last) = self.last.lock() else { return };
        let text = match event {
            Event::Started { stage, .. } => {
                last.insert(stage.clone(), Instant::now());
                line(event)
            }
            Event::Progress { stage, done, total, loss, .. } => {
                let quiet = last.get(stage).is_some_and(|at| at.elapsed() < HEARTBEAT);
                if quiet {
                    return;
                }
                last.insert(stage.clone(), Instant::now());
                let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
                Some(format!("at work  {stage}: {done} of {total}{loss}"))
            }
            Event::Waiting { stage, .. } => {
                if last.get(stage).is_some_and(|at| at.elapsed() < HEARTBEAT) {
                    return;
                }
                last.insert(stage.clone(), Instant::now());
                line(event)
            }
            _ => line(event),
        };
        if let Some(text) = text {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

/// One JSON object a line on stdout.
#[derive(Debug)]
pub struct Json;

impl Reporter for Json {
    fn event(&self, event: &Event) {
        if let Ok(text) = serde_json::to_string(event) {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}

fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Planned { to_run: 0, .. } | Event::Progress { .. } => return None,
        Event::Planned { stages, to_run } => format!("{to_run} of {} to run", crate::error::plural(*stages, "stage")),
        Event::Started { stage, resumed_at: None } => format!("running  {stage}"),
        Event::Started { stage, resumed_at: Some(step) } => format!("resuming {stage} at step {step}"),
        Event::Waiting { stage, holder } => format!("waiting  {stage}: {holder} is at it"),
        Event::Cached { stage } => format!("cached   {stage}"),
        Event::Finished { stage, seconds } => format!("done     {stage}  {seconds:.1} s"),
        Event::Stopped { stage } => format!("stopped  {stage}"),
        Event::Failed { stage, error } => format!("FAILED   {stage}: {error}"),
        Event::Skipped { stage, because } => format!("skipped  {stage}: {because} did not end well"),
        Event::Warned { message } => format!("warning: {message}"),
        Event::Done { ran, cached, failed, skipped, seconds } => {
            format!("{ran} ran, {cached} cached, {failed} failed, {skipped} skipped in {seconds:.1} s")
        }
    })
}
