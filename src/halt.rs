//! Long work asks now and then whether it is to go on, many times within the seconds that a cluster leaves after its
//! warning.

use crate::error::Result;

/// An error where the work is to stop now.
pub type Halt<'a> = dyn Fn() -> Result<()> + Sync + 'a;

/// For work that nobody stops.
pub fn never() -> Result<()> {
    Ok(())
}
