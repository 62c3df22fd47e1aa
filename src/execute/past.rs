//! Earlier results of the same stages: what they took in time and room.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error as IoError, ErrorKind};

use petgraph::graph::NodeIndex;

use crate::error::{Error, Result, plural};
use crate::plan::{Plan, Step, differences};
use crate::store::{Manifest, Store, size};

/// Manifests by kind and name of their stages.
pub struct Past {
    by_stage: BTreeMap<(String, String), Vec<Manifest>>,
}

impl Past {
    #[must_use]
    pub fn of(store: &Store) -> Self {
        let mut by_stage: BTreeMap<_, Vec<Manifest>> = BTreeMap::new();
        for manifest in store.manifests() {
            by_stage.entry((manifest.kind.clone(), manifest.stage.clone())).or_default().push(manifest);
        }
        Self { by_stage }
    }

    /// The result of a stage of this kind and name with the fewest differences, of those the latest.
    #[must_use]
    pub fn nearest(&self, step: &Step) -> Option<&Manifest> {
        let same = self.by_stage.get(&(step.kind.name.to_owned(), step.name.clone()))?;
        same.iter().min_by_key(|old| {
            (differences(&old.fields, &step.fields, &step.defaults).len(), std::cmp::Reverse(&old.finished))
        })
    }

    /// Bytes of the results that these steps will write, as far as they ran before. (bytes, number of steps known)
    #[must_use]
    pub fn room(&self, plan: &Plan, steps: &BTreeSet<NodeIndex>) -> (u64, usize) {
        let known: Vec<u64> = steps.iter().filter_map(|&node| Some(self.nearest(plan.step(node))?.bytes)).collect();
        (known.iter().fold(0, |sum, &bytes| bytes.saturating_add(sum)), known.len())
    }
}

/// An error where the results will not fit on the disk, by what earlier ones took.
pub(super) fn fits(plan: &Plan, steps: &BTreeSet<NodeIndex>, store: &Store) -> Result<()> {
    let Some(free) = store.free() else { return Ok(()) };
    let (bytes, known) = Past::of(store).room(plan, steps);
    if bytes <= free {
        return Ok(());
    }
    let why = format!(
        "the disk is too full: {} to run would take {} by past runs, but {} are free; \
         `recant store gc --max-size SIZE --yes` makes room",
        plural(known, "stage"),
        size(bytes),
        size(free)
    );
    Err(Error::io("begin in", store.root())(IoError::new(ErrorKind::StorageFull, why)))
}
