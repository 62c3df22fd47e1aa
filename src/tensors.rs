//! Tensors of a safetensors file that a stranger may have written.

use std::collections::BTreeMap;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

/// All tensors by name, on the CPU; the error is a fragment.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        // Also where one of them is 0: strides are made of the others.
        if view.shape().iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim.max(1))).is_none() {
            return Err(format!("`{name}`: the shape {:?} is too large", view.shape()));
        }
        let tensor = view.load(&Device::Cpu).map_err(|error| format!("`{name}`: {error}"))?;
        // Of numbers of four and six bits a tensor has fewer bytes than it says, and not every use of it looks.
        if let kind @ (DType::F4 | DType::F6E2M3 | DType::F6E3M2 | DType::F8E8M0) = tensor.dtype() {
            return Err(format!("`{name}`: numbers of the kind {kind:?} are not read"));
        }
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}
