//! Everything that can go wrong, worded once.
//!
//! A message is a lowercase fragment without a full stop; what the user typed stands in backticks; where there is
//! something to do about it, the message says so.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub type Result<T> = std::result::Result<T, Error>;

/// A text that mistakes point into: a recipe, a base recipe, a `--set` option.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// As the user would name it: a path, or `--set`.
    pub name: String,
    pub text: String,
}

/// Some bytes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

impl Place {
    /// Line and column, both from 1; the column counts characters.
    #[must_use]
    pub fn line_column(&self) -> (usize, usize) {
        let mut start = self.span.start.min(self.source.text.len());
        while !self.source.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.source.text[..start];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        (line, column)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.name)
    }
}

/// One thing wrong with a recipe.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// What is wrong: "unknown method `scrubb`".
    pub what: String,
    pub place: Option<Place>,
    /// Under the caret: what was expected.
    pub label: String,
    /// What to do: "did you mean `scrub`?".
    pub help: Option<String>,
    /// Other places that belong to it: the stages of a cycle, the variant that sets a key too.
    pub related: Vec<(Place, String)>,
}

impl Mistake {
    pub fn at(place: &Place, what: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), ..Self::nowhere(what) }
    }

    pub fn nowhere(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None, label: String::new(), help: None, related: Vec::new() }
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn related(mut self, place: &Place, what: impl Into<String>) -> Self {
        self.related.push((place.clone(), what.into()));
        self
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is wrong: all its mistakes at once.
    #[error("{}", .0.iter().map(|m| m.what.as_str()).collect::<Vec<_>>().join("; "))]
    Mistakes(Vec<Mistake>),

    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),

    #[error("could not {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },

    /// A file of the store is not what its manifest says.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },

    /// A file from outside (data set, checkpoint, index file) is not what it should be.
    #[error("`{}`: {why}", path.display())]
    BadFile { path: PathBuf, why: String },

    /// A wrong request that only shows at run time; says what was found and expected.
    #[error("{0}")]
    Invalid(String),

    #[error("{term} is {value} at step {step} (learning rate {learning_rate}): lower the learning rate")]
    Diverged { term: String, value: f64, step: usize, learning_rate: f64 },

    #[error("the loss term `{0}` reaches no parameter: its gradient is zero")]
    NoGradient(String),

    /// A checkpoint that is what was written, but not of what goes on from it.
    #[error("the checkpoint does not fit the stage: {0}")]
    Unfit(String),

    /// Asked to stop; what was done is saved.
    #[error("interrupted")]
    Interrupted,

    #[error("{}", innermost(.0))]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// For `map_err`: wraps an input or output error with what was being done to which path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { doing, path: path.to_owned(), source }
    }

    pub fn invalid(what: impl Into<String>) -> Self {
        Error::Invalid(what.into())
    }

    pub fn bad_file(path: &Path, why: impl Into<String>) -> Self {
        Error::BadFile { path: path.to_owned(), why: why.into() }
    }
}

/// Whether a tensor is of another kind or shape than was asked for, whatever the device.
#[must_use]
pub fn misfit(error: &candle_core::Error) -> bool {
    use candle_core::Error as E;
    match error {
        E::WithBacktrace { inner, .. } | E::Context { inner, .. } => misfit(inner),
        other => matches!(
            other,
            E::UnexpectedDType { .. }
                | E::UnexpectedNumberOfDims { .. }
                | E::UnexpectedShape { .. }
                | E::ShapeMismatch { .. }
                | E::ShapeMismatchBinaryOp { .. }
                | E::DTypeMismatchBinaryOp { .. }
        ),
    }
}

/// Candle's message without the backtrace that it appends when `RUST_BACKTRACE` is set.
fn innermost(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => innermost(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {}", innermost(inner)),
        other => other.to_string(),
    }
}

/// An error where a number is infinite or none, which names the first; `what` has it, a plural.
pub fn finite(values: &[f32], what: &str) -> Result<()> {
    let odd = values.iter().find(|value| !value.is_finite());
    odd.map_or(Ok(()), |value| Err(Error::invalid(format!("{what} have {value} in them"))))
}

/// `1 stage`, `2 stages`.
#[must_use]
pub fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// `` `a`, `b` or `c` ``.
#[must_use]
pub fn listed<S: AsRef<str>>(words: &[S], last: &str) -> String {
    let ticked: Vec<String> = words.iter().map(|word| format!("`{}`", word.as_ref())).collect();
    match ticked.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

/// A word, or the beginning of a very long one: it may stand in very many messages.
#[must_use]
pub fn short(word: &str) -> String {
    if word.len() <= LONGEST {
        return word.to_owned();
    }
    word.chars().take(LONGEST / 4).chain("..".chars()).collect()
}

/// Longer words are not compared.
const LONGEST: usize = 200;

/// The nearest of the valid words, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase().replace('-', "_");
    valid
        .into_iter()
        // The distance takes time and memory by both lengths; whose lengths differ by more are not near.
        .filter(|candidate| candidate.len() <= LONGEST)
        .filter(|candidate| candidate.len().abs_diff(wanted.len()) <= 4 * (candidate.len().max(3) / 3))
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one() {
        let source = Arc::new(Source { name: "a.toml".into(), text: "x = 1\nαβ = 2\n".into() });
        let place = Place { source, span: 8..9 };
        assert_eq!(place.to_string(), "a.toml:2:2");
    }

    #[test]
    fn lists_and_plurals_read_like_english() {
        assert_eq!(listed(&["a", "b", "c"], "or"), "`a`, `b` or `c`");
        assert_eq!(listed(&["a"], "or"), "`a`");
        assert_eq!(plural(1, "stage"), "1 stage");
        assert_eq!(plural(0, "stage"), "0 stages");
    }

    #[test]
    fn nearest_is_near() {
        assert_eq!(nearest("scrubb", ["scrub", "salun"]), Some("scrub"));
        assert_eq!(nearest("bad-teaching", ["bad_teaching"]), Some("bad_teaching"));
        assert_eq!(nearest("xyz", ["scrub", "salun"]), None);
    }
}
