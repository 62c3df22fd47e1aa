//! Parts of theta by the first letters of their names: which parameters may move.

use std::collections::BTreeSet;

use super::Model;
use crate::error::{Error, Result, listed};

impl Model {
    /// Ones where a parameter's name begins so, zeros elsewhere. Each beginning must be that of some name.
    pub fn only(&self, prefixes: &[&str]) -> Result<Vec<f32>> {
        self.known(prefixes)?;
        let mut keep = vec![0.0; self.len()];
        for span in self.spans.iter().filter(|span| begins(&span.name, prefixes)) {
            keep[span.range.clone()].fill(1.0);
        }
        Ok(keep)
    }

    /// Every prefix stands for at least one parameter.
    pub(super) fn known(&self, prefixes: &[&str]) -> Result<()> {
        let unknown = prefixes.iter().find(|prefix| !self.spans.iter().any(|span| begins(&span.name, &[prefix])));
        let Some(prefix) = unknown else { return Ok(()) };
        let parts: BTreeSet<&str> = self.spans.iter().filter_map(|span| span.name.split('.').next()).collect();
        let parts: Vec<&str> = parts.into_iter().collect();
        Err(Error::invalid(format!("no parameter begins with `{prefix}`; there are {}", listed(&parts, "and"))))
    }
}

pub(super) fn begins(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}
