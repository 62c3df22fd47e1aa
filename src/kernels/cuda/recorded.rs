//! Forwards that come again, and their ways back, as one launch each. What such a pass asks of the device depends on its key
//! alone: where theta lies, the batch, the mode, what is tracked. So the second time it is taken down, with memory
//! that stays its own, and from then on the device does it without the host (on CUDA: a graph). What goes in and out is copied.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::{DType, Error, Result, Storage, Tensor};

use super::Core;
use super::back::Back;
use super::forth::{Forth, Kept, Made};
use super::machine::{Arg, Convolution, Grid, Kind, Machine, Makes, Memory, Replay};
use crate::kernels::Mode;
use crate::kernels::steps::Work;

/// Of one network, each with the memory of a whole pass.
const MANY: usize = 8;
/// Passes that are remembered as seen once.
const SEEN: usize = 16;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether passes are taken down at all.
pub(super) fn wanted() -> bool {
    std::env::var_os("RECANT_CUDA_GRAPHS").is_none_or(|value| value != "0")
}

/// What a pass depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    theta: u64,
    batch: usize,
    by_batch: Vec<bool>,
    branch: usize,
    taps: Vec<usize>,
    tracked: [bool; 2],
}

/// One pass forward, and its ways back. It may fail to be made: then the pass goes launch by launch.
pub(super) struct Recording {
    key: Key,
    core: Core,
    mode: Mode,
    /// Running statistics, copied here where the pass reads them.
    stats: Tensor,
    shelf: Arc<Shelf>,
    x: Memory,
    forth: Box<dyn Replay>,
    made: Made,
    kept: Option<Kept>,
    /// By what is tracked, and whether features have a gradient.
    backs: Mutex<BTreeMap<[bool; 3], Taken>>,
}

/// A way back.
struct Taken {
    /// Of logits, and of features if they have one.
    above: [Option<Memory>; 2],
    replay: Box<dyn Replay>,
    made: [Option<Memory>; 2],
}

impl Recording {
    /// Of a pass that begins with the input at `x`. An error where there is no memory for it, or where the device does not
    /// take it down.
    fn new(core: &Core, key: Key, mode: &Mode, given: &Tensor, x: u64) -> Result<Self> {
        let shelf = Shelf::new(core.machine.clone());
        let core = Core { machine: shelf.clone(), ..core.clone() };
        let stats = match given.elem_count() {
            0 => given.clone(),
            count => shelf.machine.tensor(shelf.machine.lend(4 * count)?, given.dims())?,
        };
        let own = shelf.lend(4 * core.len(0, key.batch))?;
        into(&core, &key, [given, &stats], [x, own.at])?;
        let forth = || Forth { core: &core, mode, stats: &stats, batch: key.batch, theta: key.theta };
        // Once as always: so the shelf has what it takes.
        forth().run(own.at, key.tracked)?;
        let (replay, (made, kept)) = taken_down(&shelf, || forth().run(own.at, key.tracked))?;
        let (mode, backs) = (mode.clone(), Mutex::default());
        Ok(Self { key, core, mode, stats, shelf, x: own, forth: replay, made, kept, backs })
    }

    /// The pass for the input at that address and those statistics.
    pub(super) fn forth(&self, x: u64, stats: &Tensor) -> Result<Made> {
        let (core, &Key { batch, theta, .. }) = (&self.core, &self.key);
        into(core, &self.key, [stats, &self.stats], [x, self.x.at])?;
        self.forth.replay()?;
        let told = Forth { core, mode: &self.mode, stats: &self.stats, batch, theta }.told();
        let bytes = |value: usize| 4 * core.len(value, batch);
        let Made { logits, features, taps, moments } = &self.made;
        Ok(Made {
            logits: self.copied(logits, bytes(core.program.logits))?,
            features: self.copied(features, bytes(core.program.features))?,
            taps: taps
                .iter()
                .zip(&self.mode.taps)
                .map(|(tap, &value)| self.copied(tap, bytes(value)))
                .collect::<Result<_>>()?,
            moments: moments.as_ref().map(|moments| self.copied(moments, 4 * told)).transpose()?,
        })
    }

    /// Its way back, as `Back::run`.
    pub(super) fn back(&self, above: [u64; 2], tracked: [bool; 2]) -> Result<[Option<Memory>; 2]> {
        let lacks = || Error::msg("the network kept nothing for the way back");
        let kept = self.kept.as_ref().ok_or_else(lacks)?;
        let (core, batch) = (&self.core, self.key.batch);
        let program = &core.program;
        let bytes = [program.logits, program.features].map(|value| 4 * core.len(value, batch));
        let copy = |own: &[Option<Memory>; 2]| {
            let parts = own.iter().zip(above).zip(bytes);
            parts
                .filter_map(|((own, from), bytes)| Some((own.as_ref()?.at, from, bytes)))
                .try_for_each(|(own, from, bytes)| core.machine.copy(from, own, bytes))
        };
        let taken = || -> Result<Taken> {
            let lend = |which: usize| (above[which] != 0).then(|| self.shelf.lend(bytes[which])).transpose();
            let own = [lend(0)?, lend(1)?];
            let at = [0, 1].map(|which: usize| own[which].as_ref().map_or(0, |own| own.at));
            let back = Back { core, mode: &self.mode, batch, kept, theta: self.key.theta, tracked };
            copy(&own)?;
            // once as always, as in `new`
            back.run(at)?;
            let (replay, made) = taken_down(&self.shelf, || back.run(at))?;
            Ok(Taken { above: own, replay, made })
        };
        let mut backs = locked(&self.backs);
        let taken = match backs.entry([tracked[0], tracked[1], above[1] != 0]) {
            Entry::Occupied(taken) => taken.into_mut(),
            Entry::Vacant(place) => match taken() {
                Ok(taken) => place.insert(taken),
                // launch by launch, in memory of the device; an error that is none of taking down comes again
                Err(_) => {
                    let core = &Core { machine: self.shelf.machine.clone(), ..core.clone() };
                    return Back { core, mode: &self.mode, batch, kept, theta: self.key.theta, tracked }.run(above);
                }
            },
        };
        copy(&taken.above)?;
        taken.replay.replay()?;
        let lengths = [program.len(), core.len(0, batch)];
        let [of_theta, of_x] = [0, 1].map(|which| {
            let made = taken.made[which].as_ref();
            made.map(|memory| self.copied(memory, 4 * lengths[which])).transpose()
        });
        Ok([of_theta?, of_x?])
    }

    /// What the pass made, as long as the next one does not overwrite it.
    fn copied(&self, memory: &Memory, bytes: usize) -> Result<Memory> {
        let machine = &self.shelf.machine;
        let fresh = machine.lend(bytes)?;
        machine.copy(memory.at, fresh.at, bytes)?;
        Ok(fresh)
    }
}

/// Copies what a pass reads, beside theta, to where it reads it.
fn into(core: &Core, key: &Key, [given, stats]: [&Tensor; 2], [x, own]: [u64; 2]) -> Result<()> {
    core.machine.copy(x, own, 4 * core.len(0, key.batch))?;
    if key.by_batch.iter().all(|by_batch| *by_batch) {
        return Ok(());
    }
    core.machine.copy(core.machine.place(given)?, core.machine.place(stats)?, 4 * given.elem_count())
}

/// A pass as something to replay, and what it left: places in memory, which hold nothing yet.
fn taken_down<T>(shelf: &Arc<Shelf>, pass: impl Fn() -> Result<T>) -> Result<(Box<dyn Replay>, T)> {
    let mut left = None;
    shelf.closed.store(true, Ordering::Relaxed);
    let replay = shelf.machine.capture(&mut || {
        left = Some(pass()?);
        Ok(())
    });
    shelf.closed.store(false, Ordering::Relaxed);
    Ok((replay?, left.ok_or_else(|| Error::msg("nothing was taken down"))?))
}

/// Those of one network.
#[derive(Default)]
pub(super) struct Recordings(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The one used last at the end.
    all: Vec<Arc<Recording>>,
    seen: VecDeque<Key>,
    /// One more could not be made.
    full: bool,
}

impl Recordings {
    /// One for that pass that nobody uses now: whoever has it uses it. None where the pass is better done as always.
    pub(super) fn of(&self, forth: &Forth, x: u64, tracked: [bool; 2]) -> Option<Arc<Recording>> {
        let Forth { core, mode, stats, batch, theta } = *forth;
        let draws = mode.rng.is_some() && core.steps.iter().any(|step| matches!(step.work, Work::Dropout { .. }));
        if draws {
            return None;
        }
        let (by_batch, branch, taps) = (mode.batch.clone(), mode.branch, mode.taps.clone());
        let key = Key { theta, batch, by_batch, branch, taps, tracked };
        let mut known = locked(&self.0);
        // it is held by the list alone
        let idle = |recording: &Arc<Recording>| Arc::strong_count(recording) == 1;
        if let Some(index) = known.all.iter().position(|recording| recording.key == key && idle(recording)) {
            let recording = known.all.remove(index);
            known.all.push(recording.clone());
            return Some(recording);
        }
        if known.full {
            return None;
        }
        if !known.seen.contains(&key) {
            known.seen.push_back(key);
            if known.seen.len() > SEEN {
                known.seen.pop_front();
            }
            return None;
        }
        if known.all.len() == MANY {
            let index = known.all.iter().position(idle)?;
            let gone = known.all.remove(index);
            // it must come twice again
            known.seen.retain(|key| *key != gone.key);
        }
        // what fails here, and would without, fails again
        let recording = Recording::new(core, key, mode, stats, x).ok().map(Arc::new);
        known.full = recording.is_none();
        known.all.extend(recording.clone());
        recording
    }
}

/// A device whose memory is lent from a shelf and comes back to it, so that a pass gets the same addresses whenever it asks
/// in the same order.
struct Shelf {
    machine: Arc<dyn Machine>,
    own: Weak<Shelf>,
    /// By bytes.
    free: Mutex<HashMap<usize, Vec<Memory>>>,
    /// Whether there is nothing beyond it now.
    closed: AtomicBool,
}

/// Memory of a shelf, which goes back to it.
struct Lent {
    memory: Option<Memory>,
    bytes: usize,
    shelf: Arc<Shelf>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        locked(&self.shelf.free).entry(self.bytes).or_default().extend(self.memory.take());
    }
}

impl Shelf {
    fn new(machine: Arc<dyn Machine>) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            machine,
            own: own.clone(),
            free: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }
}

impl Machine for Shelf {
    fn lend(&self, bytes: usize) -> Result<Memory> {
        let free = locked(&self.free).get_mut(&bytes).and_then(Vec::pop);
        let memory = match free {
            Some(memory) => memory,
            None if self.closed.load(Ordering::Relaxed) => return Err(Error::msg("a pass asks for more than it did")),
            None => self.machine.lend(bytes)?,
        };
        let shelf = self.own.upgrade().ok_or_else(|| Error::msg("the shelf is gone"))?;
        Ok(Memory { at: memory.at, owner: Box::new(Lent { memory: Some(memory), bytes, shelf }) })
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.machine.clear(at, bytes)
    }

    fn upload(&self, _: &[u8]) -> Result<Memory> {
        Err(Error::msg("what is taken down reads nothing of the host"))
    }

    fn launch(&self, name: &'static str, kind: Kind, grid: Grid, args: &[Arg]) -> Result<()> {
        self.machine.launch(name, kind, grid, args)
    }

    fn room(&self, shape: Convolution, makes: Makes) -> Result<usize> {
        self.machine.room(shape, makes)
    }

    fn convolve_in(&self, room: &Memory, shape: Convolution, makes: Makes, at: [u64; 3], add: bool) -> Result<()> {
        self.machine.convolve_in(room, shape, makes, at, add)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        self.machine.capture(work)
    }

    fn resident(&self, bytes: &Arc<Vec<u8>>) -> Result<Arc<Memory>> {
        self.machine.resident(bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.machine.copy(from, to, bytes)
    }

    fn storage(&self, _: Memory, _: usize, _: DType) -> Result<Storage> {
        Err(Error::msg("a pass that is taken down keeps its memory"))
    }

    fn place(&self, tensor: &Tensor) -> Result<u64> {
        self.machine.place(tensor)
    }
}
