//! Checkpoints that PyTorch itself wrote, and files that only look like them.
//!
//! The files in `tests/data` were made by PyTorch 2.15 with this program:
//!
//! ```python
//! import sys, torch
//! from torch import nn
//!
//! def net():
//!     net = nn.Sequential()
//!     net.add_module("conv1", nn.Conv2d(1, 2, 3, bias=False))
//!     net.add_module("bn1", nn.BatchNorm2d(2))
//!     net.add_module("fc", nn.Linear(2, 3))
//!     with torch.no_grad():
//!         for number, tensor in enumerate(net.state_dict().values()):
//!             if tensor.dtype == torch.float32:
//!                 tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) / 8 + number)
//!     return net
//!
//! wrapped = nn.DataParallel(net())
//! optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9)
//! wrapped.module.fc(wrapped.module.bn1(wrapped.module.conv1(torch.ones(1, 1, 4, 4))).mean((2, 3))).sum().backward()
//! optimizer.step()
//! with torch.no_grad():
//!     wrapped.load_state_dict({"module." + name: tensor for name, tensor in net().state_dict().items()})
//! out = sys.argv[1]
//! torch.save({"epoch": 7, "arch": "small", "state_dict": wrapped.state_dict(), "best": 93.5,
//!             "optimizer": optimizer.state_dict()}, f"{out}/nested.pth.tar")
//! base = torch.arange(24, dtype=torch.float32)
//! torch.save({"whole": base.reshape(4, 6), "turned": base.reshape(4, 6).t(), "middle": base[6:12].reshape(2, 3),
//!             "every_other": base[::2], "scalar": torch.tensor(5.5), "empty": torch.zeros(0, 3),
//!             "half": torch.tensor([0.5, -2.0]).half(), "brain": torch.tensor([0.5, -2.0]).bfloat16(),
//!             "double": torch.tensor([0.1], dtype=torch.float64), "int": torch.tensor([-3, 70000], dtype=torch.int32),
//!             "bool": torch.tensor([True, False]), "parameter": nn.Parameter(torch.tensor([1.25]))}, f"{out}/kinds.bin")
//! torch.save(nn.Linear(1, 1), f"{out}/object.pth")
//! torch.save({"w": torch.ones(1)}, f"{out}/legacy.pth", _use_new_zipfile_serialization=False)
//! torch.jit.save(torch.jit.script(nn.Linear(1, 1)), f"{out}/script.pt")
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use recant::stage::checkpoint::load;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn numbers(tensors: &BTreeMap<String, Tensor>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let tensor = tensors.get(name).unwrap_or_else(|| panic!("no `{name}`"));
    (tensor.dims().to_vec(), tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap())
}

fn refusal(name: &str) -> String {
    load(&fixture(name)).unwrap_err().to_string()
}

#[test]
fn a_training_checkpoint_of_pytorch_gives_its_weights_and_statistics() {
    let tensors = load(&fixture("nested.pth.tar")).unwrap();
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    let expected = [
        "bn1.bias",
        "bn1.num_batches_tracked",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.weight",
        "conv1.weight",
        "fc.bias",
        "fc.weight",
    ];
    assert_eq!(names, expected);
    // The order of a state dict in PyTorch, and the numbers that the program put there.
    let order = [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "fc.weight",
        "fc.bias",
    ];
    for (number, name) in order.into_iter().enumerate().filter(|(_, name)| !name.ends_with("tracked")) {
        let (shape, values) = numbers(&tensors, name);
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let wanted: Vec<f64> = (0..values.len()).map(|i| i as f64 / 8.0 + number as f64).collect();
        assert_eq!(values, wanted, "{name}");
    }
    assert_eq!(numbers(&tensors, "conv1.weight").0, [2, 1, 3, 3]);
    assert_eq!(tensors["bn1.num_batches_tracked"].dtype(), DType::I64);
}

#[test]
fn views_and_kinds_of_numbers_are_read_as_pytorch_means_them() {
    let tensors = load(&fixture("kinds.bin")).unwrap();
    let turned: Vec<f64> = (0..6).flat_map(|column| (0..4).map(move |row| f64::from(6 * row + column))).collect();
    assert_eq!(numbers(&tensors, "turned"), (vec![6, 4], turned));
    assert_eq!(numbers(&tensors, "middle"), (vec![2, 3], vec![6., 7., 8., 9., 10., 11.]));
    assert_eq!(numbers(&tensors, "every_other").1[..3], [0., 2., 4.]);
    assert_eq!(numbers(&tensors, "scalar"), (vec![], vec![5.5]));
    assert_eq!(numbers(&tensors, "empty"), (vec![0, 3], vec![]));
    for name in ["half", "brain"] {
        assert_eq!(numbers(&tensors, name).1, [0.5, -2.0]);
    }
    assert_eq!(numbers(&tensors, "double").1, [0.1]);
    assert_eq!(numbers(&tensors, "int").1, [-3., 70000.]);
    assert_eq!(numbers(&tensors, "bool").1, [1., 0.]);
    assert_eq!(numbers(&tensors, "parameter"), (vec![1], vec![1.25]));
}

/// Candle's own reader as a second opinion on what it can read.
#[test]
fn candles_reader_agrees() {
    let path = fixture("nested.pth.tar");
    let ours = load(&path).unwrap();
    let theirs = candle_core::pickle::PthTensors::new(&path, Some("state_dict")).unwrap();
    assert_eq!(theirs.tensor_infos().len(), ours.len());
    for (name, tensor) in &ours {
        let other = theirs.get(&format!("module.{name}")).unwrap().unwrap();
        let flat = |tensor: &Tensor| -> Vec<f64> {
            tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!((other.dims(), flat(&other)), (tensor.dims(), flat(tensor)), "{name}");
    }
}

#[test]
fn what_is_no_state_dict_is_refused_with_the_way_out() {
    let object = refusal("object.pth");
    assert!(object.contains("`torch.nn.modules.linear.Linear`") && object.contains("model.state_dict()"), "{object}");
    let legacy = refusal("legacy.pth");
    assert!(legacy.contains("before 1.6") && legacy.contains("legacy.pth"), "{legacy}");
    assert!(refusal("script.pt").contains("TorchScript"), "{}", refusal("script.pt"));
}

/// Cut anywhere, or with any one byte of its directory and pickle changed: an error or the weights, never a panic.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    for name in ["nested.pth.tar", "kinds.bin"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for cut in (0..whole.len()).step_by(97) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("x.pth"), "{error}");
        }
        for at in (0..whole.len()).step_by(3) {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                std::fs::write(&path, &bytes).unwrap();
                if let Err(error) = load(&path) {
                    assert!(error.to_string().contains("x.pth"), "{error}");
                }
            }
        }
    }
}

/// A well-formed zip around a pickle of our own.
fn zipped(path: &Path, pickle: &[u8], storage: &[u8]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        zip.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// {"w": tensor of that shape and those strides over a storage of four floats}
fn tensor_pickle(offset: i32, shape: [i32; 2], strides: [i32; 2]) -> Vec<u8> {
    let int = |value: i32| [&b"J"[..], &value.to_le_bytes()].concat();
    let pair = |[a, b]: [i32; 2]| [int(a), int(b), vec![0x86]].concat();
    [
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec(),
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ".to_vec(),
        int(offset),
        pair(shape),
        pair(strides),
        b"\x89}tRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn hostile_shapes_are_errors_that_name_the_parameter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let storage: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    zipped(&path, &tensor_pickle(0, [2, 2], [1, 2]), &storage);
    assert_eq!(numbers(&load(&path).unwrap(), "w"), (vec![2, 2], vec![1., 3., 2., 4.]));
    let huge = i32::MAX;
    for (offset, shape, strides) in [
        (0, [2, 3], [3, 1]),
        (1, [2, 2], [2, 1]),
        (huge, [2, 2], [2, 1]),
        (0, [huge, huge], [huge, huge]),
        (0, [huge, huge], [0, 0]),
        (0, [-1, 2], [2, 1]),
    ] {
        zipped(&path, &tensor_pickle(offset, shape, strides), &storage);
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("`w`"), "{error}");
    }
    zipped(&path, b"\x80\x02}X\x05\0\0\0epochK\x03s.", &storage);
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("no tensors under `epoch`"), "{error}");
}
