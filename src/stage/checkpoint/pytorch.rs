//! Tensors of a file that `torch.save` wrote (PyTorch 1.6 and later: a zip with a pickle and one entry a storage).
//! Nothing in the pickle is run. Views are gathered; what does not lie within its storage is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result, listed};
use crate::pickle::{Id, Pickle, Value};

/// Keys under which people keep the weights beside an epoch, an optimiser, a score.
const KEYS: [&str; 6] = ["state_dict", "model_state_dict", "model", "net", "network", "weights"];
/// The pickle holds names and shapes alone.
const LIMIT: u64 = 64 << 20;
/// No tensor has more dimensions, no name of one more bytes.
const DIMENSIONS: usize = 16;
const NAME: usize = 1024;
/// What a tensor takes in memory beside its numbers, about.
const TENSOR: u64 = 256;

/// A tensor as the pickle describes it: a view of a storage.
struct View<'a> {
    storage: &'a str,
    dtype: &'a str,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// All tensors of the file's state dict, by name, on the CPU.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bad = |why: String| Error::bad_file(path, why);
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut start = [0; 4];
    let _ = file.read(&mut start).map_err(Error::io("read", path))?;
    if start == [0x80, 0x02, 0x8a, 0x0a] {
        return Err(bad("it has the format of PyTorch before 1.6; in Python: torch.save(torch.load(FILE, \
            map_location=\"cpu\"), FILE)"
            .to_owned()));
    }
    let zip = File::open(path).map_err(Error::io("open", path))?;
    let mut zip = ZipArchive::new(BufReader::new(zip))
        .map_err(|error| bad(format!("not a PyTorch file in zip format (1.6 and later): {error}")))?;
    let names: Vec<String> = zip.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    if names.iter().any(|name| name.ends_with("constants.pkl")) {
        return Err(bad(
            "it is a TorchScript program, expected weights: torch.save(model.state_dict(), FILE)".to_owned()
        ));
    }
    let main =
        names.iter().find(|name| name.ends_with("data.pkl")).ok_or_else(|| bad("it has no `data.pkl`".into()))?;
    let folder = main.trim_end_matches("data.pkl");
    let order = format!("{folder}byteorder");
    if names.contains(&order) && entry(&mut zip, &order, 16).map_err(bad)? != b"little" {
        return Err(bad("its numbers are big-endian, expected little-endian".to_owned()));
    }
    let bytes = entry(&mut zip, main, LIMIT).map_err(bad)?;
    let pickle = Pickle::parse(&bytes).map_err(bad)?;
    let views = state_dict(&pickle, pickle.root(), 3, &mut BTreeMap::new()).map_err(bad)?;
    if views.is_empty() {
        return Err(bad(instead(&pickle)));
    }
    // Of two of one name the last, as in Python.
    let mut views: Vec<(&str, View)> = views.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
    // Each storage is read once.
    views.sort_by_key(|(_, view)| view.storage);
    let (mut tensors, mut total, mut stored) = (BTreeMap::new(), 0_u64, 0_u64);
    let mut last = (None, Vec::new());
    for (name, view) in views {
        let wrong = |why: String| Error::bad_file(path, format!("`{name}`: {why}"));
        if last.0 != Some(view.storage) {
            let storage = format!("{folder}data/{}", view.storage);
            last = (Some(view.storage), entry(&mut zip, &storage, length).map_err(wrong)?);
            stored += last.1.len() as u64;
        }
        let (dtype, gathered) = view.gather(&last.1).map_err(wrong)?;
        // Tensors may share storages; more than this is no network but a bomb. So are storages that lie on each other.
        total += gathered.len() as u64 + TENSOR;
        if total > 8 * length + 1024 || stored > length {
            let bytes = total.max(stored);
            return Err(bad(format!("its tensors unfold to more than {bytes} bytes, but the file has {length}")));
        }
        tensors.insert(name.to_owned(), Tensor::from_raw_buffer(&gathered, dtype, &view.shape, &Device::Cpu)?);
    }
    Ok(tensors)
}

/// The bytes of an entry, if they are at most `limit`.
fn entry(zip: &mut ZipArchive<BufReader<File>>, name: &str, limit: u64) -> std::result::Result<Vec<u8>, String> {
    let file = zip.by_name(name).map_err(|error| format!("the entry `{name}` cannot be read: {error}"))?;
    if file.compression() != CompressionMethod::Stored || file.size() > limit {
        return Err(format!("the entry `{name}` is compressed or has more than {limit} bytes"));
    }
    let mut bytes = Vec::new();
    let size = file.size();
    file.take(limit).read_to_end(&mut bytes).map_err(|error| format!("the entry `{name}` is damaged: {error}"))?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(format!("the entry `{name}` is cut short")) }
}

/// The tensors of a dictionary, or of the one that lies under a usual key in it. `empty` are dictionaries that had none,
/// with the depth to which they were searched: a pickle may hold one in many places, and in itself.
fn state_dict<'a>(
    pickle: &'a Pickle,
    dict: Id,
    depth: usize,
    empty: &mut BTreeMap<Id, usize>,
) -> std::result::Result<Vec<(&'a str, View<'a>)>, String> {
    let Value::Dict(entries) = pickle.get(dict) else { return Ok(Vec::new()) };
    if empty.get(&dict).is_some_and(|&searched| searched >= depth) {
        return Ok(Vec::new());
    }
    empty.insert(dict, depth);
    for inner in KEYS.iter().filter(|_| depth > 0).filter_map(|key| pickle.entry(dict, key)) {
        let views = state_dict(pickle, inner, depth - 1, empty)?;
        if !views.is_empty() {
            return Ok(views);
        }
    }
    let mut views = Vec::new();
    for &(key, value) in entries {
        let Some((function, args)) = tensor(pickle, value, 3) else { continue };
        let Some(name) = pickle.name(key, NAME) else { continue };
        let wrong = || format!("`{name}`: `{function}` has arguments of an unknown form");
        views.push((name, view(pickle, args).ok_or_else(wrong)?));
    }
    Ok(views)
}

/// The call that rebuilds a tensor, without the wrappers of parameters and subclasses.
fn tensor<'a>(pickle: &'a Pickle, id: Id, depth: usize) -> Option<(&'a str, &'a [Id])> {
    let (module, name, args) = pickle.call(id)?;
    match (module, name, args) {
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor", _) => Some((name, args)),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", [inner, ..]) if depth > 0 => {
            tensor(pickle, *inner, depth - 1)
        }
        ("torch._tensor", "_rebuild_from_type_v2", [_, _, inner, ..]) => Some((name, pickle.items(*inner)?)),
        _ => None,
    }
}

/// From (("storage", class, key, device, count), offset, shape, strides, ..).
fn view<'a>(pickle: &'a Pickle, args: &[Id]) -> Option<View<'a>> {
    let [storage, offset, shape, strides, ..] = args else { return None };
    let Value::Persistent(storage) = pickle.get(*storage) else { return None };
    let [_, class, key, ..] = pickle.items(*storage)? else { return None };
    let Value::Global(_, dtype) = pickle.get(*class) else { return None };
    let naturals = |id: Id| {
        let items = pickle.items(id).filter(|items| items.len() <= DIMENSIONS)?;
        items.iter().map(|&id| pickle.natural(id)).collect::<Option<Vec<usize>>>()
    };
    let view = View {
        storage: pickle.name(*key, NAME)?,
        dtype,
        offset: pickle.natural(*offset)?,
        shape: naturals(*shape)?,
        strides: naturals(*strides)?,
    };
    (view.shape.len() == view.strides.len()).then_some(view)
}

impl View<'_> {
    /// Its numbers in row-major order, as bytes.
    fn gather(&self, storage: &[u8]) -> std::result::Result<(DType, Vec<u8>), String> {
        let (dtype, size) = match self.dtype {
            "FloatStorage" => (DType::F32, 4),
            "DoubleStorage" => (DType::F64, 8),
            "HalfStorage" => (DType::F16, 2),
            "BFloat16Storage" => (DType::BF16, 2),
            "ByteStorage" | "BoolStorage" => (DType::U8, 1),
            "LongStorage" => (DType::I64, 8),
            "IntStorage" => (DType::I64, 4),
            other => return Err(format!("numbers of the kind `{other}` are not read")),
        };
        let shape = &self.shape;
        // Also where one is 0 the product of the others must be a number: strides are made of it.
        let most = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim.max(1)));
        let count = most.map(|most| if shape.contains(&0) { 0 } else { most });
        let furthest = shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (&dim, &stride)| at.checked_add(dim.saturating_sub(1).checked_mul(stride)?));
        let there = storage.len() / size;
        let count = match (count, furthest) {
            (Some(0), _) => return Ok((dtype, Vec::new())),
            (Some(count), Some(furthest)) if furthest < there && count <= there => count,
            _ => return Err(format!("the shape {shape:?} needs more numbers than the {there} of its storage")),
        };
        let mut index = vec![0; shape.len()];
        let mut bytes = Vec::with_capacity(count * dtype.size_in_bytes());
        for _ in 0..count {
            let at = self.offset + index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>();
            let number = storage.get(at * size..(at + 1) * size).unwrap_or_default();
            if let ("IntStorage", &[a, b, c, d]) = (self.dtype, number) {
                bytes.extend(i64::from(i32::from_le_bytes([a, b, c, d])).to_le_bytes());
            } else {
                bytes.extend_from_slice(number);
            }
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok((dtype, bytes))
    }
}

/// What the file holds in place of a state dict.
fn instead(pickle: &Pickle) -> String {
    let hint = "expected a state dict: torch.save(model.state_dict(), FILE)";
    match pickle.get(pickle.root()) {
        Value::Call { .. } => {
            let class = pickle.call(pickle.root()).filter(|(module, name, _)| module.len() + name.len() < NAME);
            let name = class.map_or("unknown".to_owned(), |(module, name, _)| format!("{module}.{name}"));
            format!("it is a whole Python object of the class `{name}`, {hint}")
        }
        Value::Dict(entries) => {
            let keys: Vec<&str> = entries.iter().filter_map(|(key, _)| pickle.name(*key, NAME)).take(8).collect();
            format!("it has no tensors under {}, nor under {}, {hint}", listed(&keys, "and"), listed(&KEYS, "or"))
        }
        _ => format!("it holds no dictionary, {hint}"),
    }
}
