//! A loss of several terms, the first of which is what the method is about.

use candle_core::Tensor;

use crate::error::Result;

/// Named terms, weights included.
pub struct Loss {
    pub(super) terms: Vec<(&'static str, Tensor)>,
}

impl From<Tensor> for Loss {
    fn from(loss: Tensor) -> Self {
        Self { terms: vec![("method", loss)] }
    }
}

impl Loss {
    /// With another term, where there is one. Its gradient must be more than zero, or training stops and says so.
    #[must_use]
    pub fn and(mut self, name: &'static str, term: Option<Tensor>) -> Self {
        self.terms.extend(term.map(|term| (name, term)));
        self
    }

    pub(super) fn total(&self) -> Result<Tensor> {
        let mut terms = self.terms.iter().map(|(_, term)| term);
        let first = terms.next().ok_or_else(|| crate::error::Error::invalid("a loss without terms"))?.clone();
        terms.try_fold(first, |sum, term| Ok((sum + term)?))
    }
}
