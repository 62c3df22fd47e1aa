//! A loss of several terms, the first of which is what the method is about.

use candle_core::Tensor;

use crate::error::Result;

/// Named terms, weights included.
pub struct Loss {
    pub(super) terms: Vec<(&'static str, Tensor)>,
    pub(super) may_rest: bool,
    pub(super) whose: Option<&'static str>,
}

impl From<Tensor> for Loss {
    fn from(loss: Tensor) -> Self {
        Self { terms: vec![("method", loss)], may_rest: false, whose: None }
    }
}

impl Loss {
    /// With another term, where there is one. Its gradient must be more than zero, or training stops and says so.
    #[must_use]
    pub fn and(mut self, name: &'static str, term: Option<Tensor>) -> Self {
        self.terms.extend(term.map(|term| (name, term)));
        self
    }

    /// Terms may be without a gradient for a while, as those of adversaries are where one of them is sure.
    #[must_use]
    pub fn may_rest(self) -> Self {
        Self { may_rest: true, ..self }
    }

    /// Whose loss it is, for words about one that is no number.
    #[must_use]
    pub fn of(self, who: &'static str) -> Self {
        Self { whose: Some(who), ..self }
    }

    pub(super) fn total(&self) -> Result<Tensor> {
        let mut terms = self.terms.iter().map(|(_, term)| term);
        let first = terms.next().ok_or_else(|| crate::error::Error::invalid("a loss without terms"))?.clone();
        terms.try_fold(first, |sum, term| Ok((sum + term)?))
    }
}
