//! The control: what every table is measured against at the other end from the oracle.

use super::{Method, Registered, Scene};
use crate::error::Result;
use crate::nn::model::Model;
use crate::settings::Entry;

pub(super) const METHOD: Registered = Registered {
    entry: Entry { name: "nothing", about: "the original as it is, a control", paper: "", version: 1, fields: &[] },
    teacher: false,
    make: |_| Ok(Box::new(Nothing)),
};

#[derive(Debug)]
struct Nothing;

impl Method for Nothing {
    fn unlearn(&self, _: &mut Model, _: &Scene) -> Result<()> {
        Ok(())
    }
}
