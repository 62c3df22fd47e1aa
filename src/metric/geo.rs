//! The "Geo" of the research repository that Recant replaces (kklusd/Unlearning): the product of two distances of
//! accuracies. There the forget and the test accuracy were measured from constants, 95.77 % and 95.77 %, or 90 % and 80 %
//! with signs; here from the reference's own.

use super::classification::accuracy;
use super::{Aim, Evidence, Measured, Metric, Need, number, reference};
use crate::error::Result;

pub const GEO: Metric = Metric {
    name: "geo",
    about: "product of the accuracy gaps on forget and on test",
    paper: "kklusd, Unlearning, 2024, https://github.com/kklusd/Unlearning",
    needs: &[Need::Reference],
    measure,
};

/// |gap on forget| x |gap on test|, of accuracies in percent; in [0, 10,000].
#[must_use]
pub fn geo(mine: [f64; 2], theirs: [f64; 2]) -> f64 {
    mine.iter().zip(theirs).map(|(mine, theirs)| (mine - theirs).abs()).product()
}

fn measure(evidence: &Evidence) -> Result<Measured> {
    let other = reference(evidence)?;
    let percent = |forget, test| Some([accuracy(forget, |_| true)? * 100.0, accuracy(test, |_| true)? * 100.0]);
    let mine = percent(&evidence.forget, &evidence.test);
    let Some((mine, theirs)) = mine.zip(percent(&other.forget, &other.test)) else {
        return Ok(Measured::nothing("geo: left out, it needs forget and test images"));
    };
    Ok(Measured::numbers(vec![number("geo", geo(mine, theirs), "", Aim::Lower)]))
}
