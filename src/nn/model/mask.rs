//! Masks over theta: which parameters may move.

use std::collections::BTreeSet;

use super::{Model, begins};
use crate::error::{Error, Result, listed};

impl Model {
    /// Ones where a parameter's name begins so, zeros elsewhere. Each beginning must be that of some name.
    pub fn only(&self, prefixes: &[&str]) -> Result<Vec<f32>> {
        for prefix in prefixes {
            if !self.spans.iter().any(|span| begins(&span.name, &[prefix])) {
                let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
                let known: BTreeSet<String> = self.spans.iter().map(|span| first(&span.name)).collect();
                let known: Vec<String> = known.into_iter().collect();
                return Err(Error::invalid(format!(
                    "no parameter begins with `{prefix}`; there are {}",
                    listed(&known, "and")
                )));
            }
        }
        let mut keep = vec![0.0; self.len()];
        for span in self.spans.iter().filter(|span| begins(&span.name, prefixes)) {
            keep[span.range.clone()].fill(1.0);
        }
        Ok(keep)
    }
}
