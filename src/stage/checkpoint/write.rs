//! A model as others read it: safetensors, or what `torch.save` of a state dict writes (a zip with a pickle and one entry
//! a storage). Names and layouts are torchvision's, so `load_state_dict` takes them.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::record::ENTRY;
use crate::artifact::Weights;
use crate::error::{Error, Result, listed, nearest};
use crate::nn::arch::Arch;
use crate::nn::model::Model;
use crate::output;
use crate::pickle::write::{Item, write as pickled};

/// Where PyTorch lets storages begin.
const ALIGNMENT: u16 = 64;
const ENDINGS: [&str; 4] = [".safetensors", ".pth", ".pt", ".pth.tar"];

/// How a file is laid out: its name says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Safetensors,
    /// A state dict.
    StateDict,
    /// A dictionary with a state dict under `state_dict`.
    Nested,
}

impl Form {
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        match ENDINGS.iter().rposition(|ending| name.ends_with(ending)) {
            Some(0) => Ok(Form::Safetensors),
            Some(3) => Ok(Form::Nested),
            Some(_) => Ok(Form::StateDict),
            None => {
                let ending = name.split_once('.').map(|(_, rest)| format!(".{rest}")).unwrap_or_default();
                let hint = nearest(&ending, ENDINGS).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                let expected = listed(&ENDINGS, "or");
                Err(Error::Usage(format!("`{}`: expected a name that ends in {expected}{hint}", path.display())))
            }
        }
    }
}

/// Writes a model, the whole file or nothing; returns the number of tensors.
pub fn write(path: &Path, weights: &Weights) -> Result<usize> {
    let form = Form::of(path)?;
    let tensors = state_dict(weights)?;
    match form {
        Form::Safetensors => {
            let about = json!({ "arch": weights.arch, "trained_on": weights.trained_on }).to_string();
            let count = tensors.len();
            let bytes = safetensors::serialize(tensors, Some(HashMap::from([(ENTRY.to_owned(), about)])))
                .map_err(|error| Error::invalid(error.to_string()))?;
            output::write(path, |file| file.write_all(&bytes).map_err(Error::io("write", path)))?;
            Ok(count)
        }
        Form::StateDict | Form::Nested => {
            output::write(path, |file| torch(file, &tensors, form == Form::Nested, path))?;
            Ok(tensors.len())
        }
    }
}

/// The weights in the order of the layers, each batch norm with its statistics and `num_batches_tracked`, which nobody
/// counted: 0.
fn state_dict(weights: &Weights) -> Result<Vec<(String, Tensor)>> {
    let model = Model::from_tensors(&Arch::from_value(&weights.arch)?, &weights.tensors, &Device::Cpu)?;
    let mut named = model.tensors()?;
    let layers: Vec<String> = model.spans().iter().map(|span| layer(&span.name).to_owned()).collect();
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    for layer in layers.into_iter().filter(|layer| seen.insert(layer.clone())) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            let name = format!("{layer}.{part}");
            if let Some(tensor) = named.remove(&name) {
                ordered.push((name, tensor));
                if part == "running_var" {
                    let none = Tensor::zeros((), DType::I64, &Device::Cpu)?;
                    ordered.push((format!("{layer}.num_batches_tracked"), none));
                }
            }
        }
    }
    ordered.extend(named);
    Ok(ordered)
}

/// `layer1.0.bn1` of `layer1.0.bn1.weight`.
fn layer(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(layer, _)| layer)
}

fn torch(file: &mut File, tensors: &[(String, Tensor)], nested: bool, path: &Path) -> Result<()> {
    let keys: Vec<String> = (0..tensors.len()).map(|number| number.to_string()).collect();
    let mut entries = Vec::new();
    for ((name, tensor), key) in tensors.iter().zip(&keys) {
        entries.push((Item::Text(name), rebuild(tensor, key)?));
    }
    let dict = Item::Dict(entries);
    let root = if nested { Item::Dict(vec![(Item::Text("state_dict"), dict)]) } else { dict };
    let io = |error: std::io::Error| Error::io("write", path)(error);
    let zipped = |error: zip::result::ZipError| io(error.into());
    let mut zip = ZipWriter::new(file);
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(ALIGNMENT);
    for (name, bytes) in [("data.pkl", pickled(&root)), ("byteorder", b"little".to_vec()), ("version", b"3\n".to_vec())]
    {
        zip.start_file(format!("archive/{name}"), plain).map_err(zipped)?;
        zip.write_all(&bytes).map_err(io)?;
    }
    for ((_, tensor), key) in tensors.iter().zip(&keys) {
        zip.start_file(format!("archive/data/{key}"), plain).map_err(zipped)?;
        let mut bytes = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
        tensor.write_bytes(&mut bytes)?;
        zip.write_all(&bytes).map_err(io)?;
    }
    zip.finish().map_err(zipped)?;
    Ok(())
}

/// The call that makes the tensor: a storage, offset, shape, strides, whether it has gradients, and no hooks.
fn rebuild<'a>(tensor: &Tensor, key: &'a str) -> Result<Item<'a>> {
    let storage = match tensor.dtype() {
        DType::F32 => "FloatStorage",
        DType::I64 => "LongStorage",
        other => return Err(Error::invalid(format!("numbers of the kind {other:?} are not written"))),
    };
    let naturals = |values: &[usize]| Item::Tuple(values.iter().map(|&value| Item::Int(value as i64)).collect());
    let count = Item::Int(tensor.elem_count() as i64);
    let id = vec![Item::Text("storage"), Item::Global("torch", storage), Item::Text(key), Item::Text("cpu"), count];
    let hooks = Item::Call(Item::Global("collections", "OrderedDict").into(), Vec::new());
    let args = vec![
        Item::Persistent(Item::Tuple(id).into()),
        Item::Int(0),
        naturals(tensor.dims()),
        naturals(tensor.contiguous()?.stride()),
        Item::Bool(false),
        hooks,
    ];
    Ok(Item::Call(Item::Global("torch._utils", "_rebuild_tensor_v2").into(), args))
}
