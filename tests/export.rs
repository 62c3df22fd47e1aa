//! Models out, as files for PyTorch and others, and back in; logits compared with other programs' ones.
//!
//! `original.pth.tar` and `original-logits.safetensors` in `tests/data` were made by PyTorch 2.15 and torchvision 0.29 with
//! this program: a classifier as the research repository that Recant replaces kept it, one channel wide.
//!
//! ```python
//! import sys, torch, torchvision
//! from torch import nn
//! from safetensors.torch import save_file
//!
//! def narrow(module):
//!     for name, part in module.named_children():
//!         if isinstance(part, nn.Conv2d):
//!             sizes = max(1, part.in_channels // 64), part.out_channels // 64
//!             setattr(module, name, nn.Conv2d(*sizes, part.kernel_size, part.stride, part.padding, bias=False))
//!         elif isinstance(part, nn.BatchNorm2d):
//!             setattr(module, name, nn.BatchNorm2d(part.num_features // 64))
//!         else:
//!             narrow(part)
//!
//! class Classifier(nn.Module):
//!     def __init__(self):
//!         super().__init__()
//!         self.base_model = torchvision.models.resnet18()
//!         narrow(self.base_model)
//!         self.base_model.conv1 = nn.Conv2d(1, 1, 3, 1, 1, bias=False)
//!         self.base_model.fc = nn.Sequential()
//!         self.fc = nn.Linear(8, 10)
//!
//!     def forward(self, x):
//!         return self.fc(self.base_model(x))
//!
//! torch.manual_seed(0)
//! net, out = Classifier(), sys.argv[1]
//! optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
//! for _ in range(3):
//!     net(torch.randn(16, 1, 8, 8))
//! torch.save({"epoch": 3, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()},
//!            f"{out}/original.pth.tar")
//! x = torch.randn(5, 1, 8, 8)
//! save_file({"x": x, "logits": net.eval()(x).detach()}, f"{out}/original-logits.safetensors")
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use recant::stage::checkpoint::load;
use serde_json::Value;

use crate::support::golden;
use crate::support::place::{Place, SMALL, err, good, object, out};

/// A checkpoint of a network on the digits.
const RECIPE: &str = r#"recipe = 1
[stages.images]
kind = "dataset"
source = "digits"
[stages.model]
kind = "checkpoint"
path = "PATH"
arch = { name = "resnet18", stem = "cifar_pool", width = 1 }
trained_on = "images"
"#;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A folder with that recipe, run.
fn original() -> Place {
    let place = Place::new(&RECIPE.replace("PATH", &fixture("original.pth.tar").display().to_string()));
    good(place.run(&["run", "r.toml"]));
    place
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    match tensor.dtype() {
        DType::I64 => tensor.flatten_all().unwrap().to_vec1::<i64>().unwrap().iter().map(|v| *v as u64).collect(),
        _ => tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits().into()).collect(),
    }
}

fn assert_same(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) {
    let statistics = |name: &&String| !name.ends_with("num_batches_tracked");
    assert!(ours.keys().filter(statistics).eq(theirs.keys().filter(statistics)));
    for (name, tensor) in ours.iter().filter(|(name, _)| statistics(name)) {
        assert_eq!((tensor.dims(), bits(tensor)), (theirs[name].dims(), bits(&theirs[name])), "{name}");
    }
}

fn path(place: &Place, name: &str) -> PathBuf {
    place.folder.path().join(name)
}

#[test]
fn a_file_of_the_original_repository_answers_as_in_pytorch_and_goes_out_bit_for_bit() {
    let place = original();
    let logits = fixture("original-logits.safetensors").display().to_string();
    let said = out(&good(place.run(&["parity", "r.toml", "model", &logits])));
    assert!(said.starts_with("5 images: `model` and") && said.contains("the same class for 5 of 5"), "{said}");
    for name in ["m.safetensors", "m.pth", "m.pt", "m.pth.tar"] {
        let said = out(&good(place.run(&["export", "r.toml", "model", "-o", name])));
        assert!(said.contains("arch = { name = \"resnet18\", stem = \"cifar_pool\", width = 1 }"), "{said}");
        assert!(said.contains("mean = [") && said.contains("10 classes, images of 1 x 8 x 8"), "{said}");
        let written = load(&path(&place, name)).unwrap();
        assert_same(&written, &load(&fixture("original.pth.tar")).unwrap());
        assert_eq!(written["bn1.num_batches_tracked"].dtype(), DType::I64);
        // In again by another checkpoint stage: what it holds is the same to the last bit.
        place.write(RECIPE.replace("PATH", name));
        good(place.run(&["run", "r.toml"]));
        good(place.run(&["export", "r.toml", "model", "-o", &format!("again.{name}")]));
        assert_eq!(fs::read(path(&place, name)).unwrap(), fs::read(path(&place, &format!("again.{name}"))).unwrap());
    }
    let said = out(&good(place.run(&["export", "r.toml", "model", "-o", "m.pth", "--json"])));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["tensors"], &said["arch"]["width"]), (&122.into(), &1.into()));
    // Nothing beside the files that were asked for.
    let names = fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names.len(), 2 + 2 * 4, "{names:?}");
}

/// Candle's own reader, and the crate's safetensors, as second opinions.
#[test]
fn other_readers_agree() {
    let place = original();
    for name in ["m.pth", "m.pth.tar", "m.safetensors"] {
        good(place.run(&["export", "r.toml", "model", "-o", name]));
    }
    let ours = load(&path(&place, "m.pth")).unwrap();
    for (name, key) in [("m.pth", None), ("m.pth.tar", Some("state_dict"))] {
        let theirs = candle_core::pickle::PthTensors::new(path(&place, name), key).unwrap();
        assert_eq!(theirs.tensor_infos().len(), ours.len());
        for (name, tensor) in &ours {
            assert_eq!(bits(&theirs.get(name).unwrap().unwrap()), bits(tensor), "{name}");
        }
    }
    let bytes = fs::read(path(&place, "m.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let entries = header.metadata().clone().unwrap();
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["recant"]);
    let about: Value = serde_json::from_str(&entries["recant"]).unwrap();
    assert_eq!(about["arch"]["size"], serde_json::json!([1, 8, 8]));
    assert!(about["arch"]["mean"].is_array() && about["trained_on"].is_string());
}

#[test]
fn other_layouts_of_the_original_repository_load_or_say_why_not() {
    let net = load(&fixture("original.pth.tar")).unwrap();
    let named = |name: &dyn Fn(&str) -> String| -> HashMap<String, Tensor> {
        net.iter().map(|(old, tensor)| (name(old), tensor.clone())).collect()
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let head = |prefix: &str| {
        [("0.weight", vec![8, 8]), ("0.bias", vec![8]), ("2.weight", vec![4, 8]), ("2.bias", vec![4])]
            .map(|(name, shape)| (format!("{prefix}{name}"), zeros(&shape)))
    };
    let place = Place::new(&RECIPE.replace("PATH", "x.safetensors"));
    let write = |tensors: &HashMap<String, Tensor>| {
        candle_core::safetensors::save(tensors, path(&place, "x.safetensors")).unwrap();
    };

    // The student of the distilling methods: a network, a classifier, a projection head beside it.
    let mut student = named(&|old| match old.strip_prefix("fc.") {
        Some(rest) => format!("classifier.fc.{rest}"),
        None => format!("base_model.base.{old}"),
    });
    student.extend(head("projection_head.pro_head."));
    write(&student);
    good(place.run(&["run", "r.toml"]));
    let manifest = fs::read_to_string(object(&place, "model").join("manifest.json")).unwrap();
    let words = "left out, as heads beside the classifier: `projection_head.pro_head.0.bias`";
    assert!(manifest.contains(words), "{manifest}");
    good(place.run(&["export", "r.toml", "model", "-o", "m.pth"]));
    assert_same(&load(&path(&place, "m.pth")).unwrap(), &net);

    // Compiled, and in `DataParallel`.
    write(&named(&|old| format!("_orig_mod.module.base_model.{old}")));
    good(place.run(&["run", "r.toml"]));
    good(place.run(&["export", "r.toml", "model", "-o", "m.pth"]));
    assert_same(&load(&path(&place, "m.pth")).unwrap(), &net);

    // SimCLR's network: the projection head stands where the classifier was.
    let mut simclr = named(&|old| format!("backbone.{old}"));
    simclr.retain(|name, _| !name.starts_with("backbone.fc."));
    simclr.extend(head("backbone.fc."));
    write(&simclr);
    let run = place.run(&["run", "r.toml"]);
    let said = err(&run);
    assert_eq!(run.status.code(), Some(1));
    assert!(said.contains("a projection head (`fc.0` and `fc.2`)") && said.contains("no classifier"), "{said}");
    // What the error says to do works.
    place.write(RECIPE.replace("PATH", "x.safetensors") + "fresh = [\"fc.\"]\n");
    good(place.run(&["run", "r.toml"]));
    good(place.run(&["export", "r.toml", "model", "-o", "m.pth"]));
    let loaded = load(&path(&place, "m.pth")).unwrap();
    assert_eq!(bits(&loaded["layer4.1.bn2.running_var"]), bits(&net["layer4.1.bn2.running_var"]));
    assert_eq!(loaded["fc.weight"].dims(), [10, 8]);
}

#[test]
fn what_cannot_be_exported_is_refused_before_anything_is_written() {
    let place = Place::new(SMALL);
    let refused = |args: &[&str], code: i32, words: &str| {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(code), "{}", err(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
    };
    let export = |stage: &'static str, file: &'static str| ["export", "r.toml", stage, "-o", file];
    refused(&export("original", "m.pth"), 1, "`original` is not there yet: recant run r.toml 'original'");
    good(place.run(&["run", "r.toml", "original"]));
    refused(
        &export("split", "m.pth"),
        2,
        "`split` makes a split, expected a stage that makes a model: `original`, `unlearned` or `retrained`",
    );
    refused(&export("orignal", "m.pth"), 2, "did you mean `original`?");
    refused(&export("original", "m.safetensor"), 2, "did you mean `.safetensors`?");
    refused(&export("original", "m"), 2, "expected a name that ends in `.safetensors`, `.pth`, `.pt` or `.pth.tar`");
    refused(&export("original", "no/where/m.pth"), 1, "could not write `no/where/m.pth`");
    fs::create_dir(path(&place, "folder.pth")).unwrap();
    fs::write(path(&place, "folder.pth/mine"), "mine").unwrap();
    refused(&export("original", "folder.pth"), 1, "could not write `folder.pth`");
    assert_eq!(fs::read(path(&place, "folder.pth/mine")).unwrap(), b"mine");
    // An older file is replaced.
    fs::write(path(&place, "folder.pth/m.pth"), "old").unwrap();
    good(place.run(&export("original", "folder.pth/m.pth")));
    assert_eq!(load(&path(&place, "folder.pth/m.pth")).unwrap().len(), 4);
    // A damaged result is no model to hand out, and no reason to lose an older file.
    fs::write(path(&place, "x.pth"), "old").unwrap();
    let object = object(&place, "original").join("artifact.safetensors");
    let mut bytes = fs::read(&object).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&object, bytes).unwrap();
    refused(&export("original", "x.pth"), 3, "damaged");
    assert_eq!(fs::read(path(&place, "x.pth")).unwrap(), b"old");
}

/// A stem without parameters and a normalisation leave no trace in tensors: the record does.
#[test]
fn a_file_that_says_what_its_network_is_loads_as_nothing_else() {
    let place = original();
    good(place.run(&["export", "r.toml", "model", "-o", "m.safetensors"]));
    let recipe = RECIPE.replace("PATH", "m.safetensors");
    let refused = |recipe: String, words: &str| {
        place.write(recipe);
        let output = place.run(&["run", "r.toml"]);
        assert!(output.status.code() == Some(1) && err(&output).contains(words), "{}", err(&output));
    };
    let words = r#"the architecture {"name":"resnet18","stem":"cifar_pool","width":1}, expected {"name":"resnet18","stem":"cifar""#;
    refused(recipe.replace("cifar_pool", "cifar"), words);
    for class in 0..10 {
        let folder = path(&place, &format!("images/train/{class}"));
        fs::create_dir_all(&folder).unwrap();
        image::GrayImage::from_pixel(8, 8, image::Luma([class as u8])).save(folder.join("a.png")).unwrap();
    }
    let other = recipe.replace("source = \"digits\"", "source = \"folder\"\npath = \"images\"");
    refused(other, "that of the data in `trained_on`");
    place.write(recipe);
    good(place.run(&["run", "r.toml"]));
}

fn save(place: &Place, name: &str, tensors: &[(&str, &Tensor)]) {
    let tensors: HashMap<&str, Tensor> = tensors.iter().map(|&(name, tensor)| (name, tensor.clone())).collect();
    candle_core::safetensors::save(&tensors, path(place, name)).unwrap();
}

/// The golden forward cases through recipes and the command line: a folder of images says how many classes and which size.
#[test]
fn golden_forward_cases_are_parity_files() {
    let basic = golden::cases(|entry| entry["kind"] == "forward" && entry["model"]["block"] == "basic");
    assert!(basic.len() >= 3);
    for case in basic {
        let model = &case.entry["model"];
        let whole = |key: &str| model[key].as_u64().unwrap() as u32;
        let stem = if model["stem"] == "seed" { "cifar_pool" } else { model["stem"].as_str().unwrap() };
        let place = Place::new(&format!(
            "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"folder\"\npath = \"images\"\n\
             [stages.model]\nkind = \"checkpoint\"\npath = \"w.safetensors\"\ntrained_on = \"images\"\n\
             arch = {{ name = \"resnet18\", stem = \"{stem}\", width = {} }}\n",
            whole("width")
        ));
        for (part, class) in
            ["train", "test"].into_iter().flat_map(|part| (0..whole("classes")).map(move |c| (part, c)))
        {
            let folder = path(&place, &format!("images/{part}/{class}"));
            fs::create_dir_all(&folder).unwrap();
            let colour = image::Rgb([class as u8, 7, 200]);
            image::RgbImage::from_pixel(whole("image"), whole("image"), colour).save(folder.join("a.png")).unwrap();
        }
        let weights = case.under("init.");
        save(
            &place,
            "w.safetensors",
            &weights.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>(),
        );
        let (x, logits) = (case.tensor("x"), case.tensor("eval.logits"));
        save(&place, "p.safetensors", &[("x", x), ("logits", logits)]);
        good(place.run(&["run", "r.toml"]));
        let said = out(&good(place.run(&["parity", "r.toml", "model", "p.safetensors", "--json"])));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said["same"] == true && said["images"] == said["agree"], "{}: {said}", case.name);
        assert!(said["relative"].as_f64().unwrap() < 1e-5, "{}: {said}", case.name);
        // One logit of one image off by a thousandth of the largest.
        let mut values = logits.to_vec2::<f32>().unwrap();
        let largest = values.iter().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
        values[1][2] += 1e-3 * largest;
        save(&place, "p.safetensors", &[("x", x), ("logits", &Tensor::new(values, &Device::Cpu).unwrap())]);
        let off = place.run(&["parity", "r.toml", "model", "p.safetensors"]);
        assert!(off.status.code() == Some(1) && out(&off).contains("are NOT the same"), "{}", out(&off));
        good(place.run(&["parity", "r.toml", "model", "p.safetensors", "--tolerance", "0.01"]));
    }
}

#[test]
fn parity_files_that_do_not_fit_say_what_is_wrong() {
    let place = original();
    let file = fixture("original-logits.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let (x, logits) = (&tensors["x"], &tensors["logits"]);
    let refused = |given: &[(&str, &Tensor)], words: &str| {
        save(&place, "p.safetensors", given);
        let output = place.run(&["parity", "r.toml", "model", "p.safetensors"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(err(&output).contains(words) && err(&output).contains("p.safetensors"), "{}", err(&output));
    };
    refused(&[("x", x)], "it has no tensor `logits`; it has `x`");
    refused(&[("inputs", x), ("logits", logits)], "it has no tensor `x`; it has `inputs` and `logits`");
    refused(
        &[("x", &x.narrow(0, 0, 4).unwrap()), ("logits", logits)],
        "`logits` has the shape [5, 10], expected 4 x 10",
    );
    refused(&[("x", &x.narrow(2, 0, 4).unwrap()), ("logits", logits)], "expected images x 1 x 8 x 8");
    refused(&[("x", &x.flatten_all().unwrap()), ("logits", logits)], "`x` has the shape [320]");
    refused(&[("x", x), ("logits", &logits.narrow(1, 0, 9).unwrap())], "expected 5 x 10");
    refused(
        &[("x", &x.to_dtype(DType::U8).unwrap()), ("logits", logits)],
        "of the kind u8, expected normalised floats",
    );
    let whole = fs::read(&file).unwrap();
    fs::write(path(&place, "p.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let output = place.run(&["parity", "r.toml", "model", "p.safetensors"]);
    assert!(output.status.code() == Some(1) && err(&output).contains("p.safetensors"), "{}", err(&output));
    // Numbers that are none are never the same.
    save(&place, "p.safetensors", &[("x", x), ("logits", &(logits / 0.0).unwrap())]);
    let output = place.run(&["parity", "r.toml", "model", "p.safetensors", "--tolerance", "1e30"]);
    assert!(output.status.code() == Some(1) && out(&output).contains("NOT"), "{}", out(&output));
    let output = place.run(&["parity", "r.toml", "model", "p.safetensors", "--tolerance=-1"]);
    assert!(output.status.code() == Some(2), "{}", err(&output));
}

/// Checksums of both files as PyTorch reads them, and the logits of torchvision's own ResNet with these weights.
const PYTHON: &str = r#"
import json, sys, torch, torchvision
from torch import nn
from safetensors.torch import load_file, save_file

def narrow(module):
    for name, part in module.named_children():
        if isinstance(part, nn.Conv2d):
            sizes = max(1, part.in_channels // 64), part.out_channels // 64
            setattr(module, name, nn.Conv2d(*sizes, part.kernel_size, part.stride, part.padding, bias=False))
        elif isinstance(part, nn.BatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(part.num_features // 64))
        else:
            narrow(part)

def checksum(tensor):
    bits = tensor.view(torch.int32).to(torch.int64) if tensor.dtype == torch.float32 else tensor
    bits = bits.flatten() & 0xffffffff
    return int((bits * torch.arange(1, 1 + bits.numel())).sum())

files = {name: torch.load(name, weights_only=True) for name in ["m.pth", "m.pth.tar"]}
files["m.pth.tar"] = files["m.pth.tar"]["state_dict"]
files["m.safetensors"] = load_file("m.safetensors")
for name, tensors in files.items():
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values()), name
net = torchvision.models.resnet18(num_classes=10)
narrow(net)
net.conv1, net.fc = nn.Conv2d(1, 1, 3, 1, 1, bias=False), nn.Linear(8, 10)
assert list(net.state_dict()) == list(files["m.pth"])
torch.manual_seed(1)
x = torch.randn(70, 1, 8, 8)
logits = {}
for name, tensors in files.items():
    net.load_state_dict(tensors, strict=True)
    logits[name] = net.eval()(x).detach()
assert all(torch.equal(logits["m.pth"], other) for other in logits.values())
save_file({"x": x, "logits": logits["m.pth"]}, "p.safetensors")
print(json.dumps({file: {name: [list(tensor.shape), str(tensor.dtype), checksum(tensor)]
                  for name, tensor in tensors.items()} for file, tensors in files.items()}))
"#;

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
#[test]
fn pytorch_reads_what_is_exported() {
    let python = std::env::var("RECANT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let there = Command::new(&python).args(["-c", "import torch, torchvision, safetensors.torch"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: `{python}` has no torch, torchvision and safetensors (RECANT_PYTHON names another one)");
        return;
    }
    let place = original();
    for name in ["m.pth", "m.pth.tar", "m.safetensors"] {
        good(place.run(&["export", "r.toml", "model", "-o", name]));
    }
    let said = Command::new(&python).args(["-c", PYTHON]).current_dir(place.folder.path()).output().unwrap();
    let said: Value = serde_json::from_str(&out(&good(said))).unwrap();
    let kept = load(&fixture("original.pth.tar")).unwrap();
    for file in ["m.pth", "m.pth.tar", "m.safetensors"] {
        assert_eq!(said[file].as_object().unwrap().len(), kept.len());
        for (name, tensor) in kept.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
            let sum = bits(tensor).iter().zip(1..).fold(0_i64, |sum, (&bits, at)| sum.wrapping_add(bits as i64 * at));
            assert_eq!(said[file][name], serde_json::json!([tensor.dims(), "torch.float32", sum]), "{file}: {name}");
        }
        assert_eq!(said[file]["bn1.num_batches_tracked"], serde_json::json!([[], "torch.int64", 0]));
    }
    let same = out(&good(place.run(&["parity", "r.toml", "model", "p.safetensors"])));
    assert!(same.contains("the same class for 70 of 70"), "{same}");
}
