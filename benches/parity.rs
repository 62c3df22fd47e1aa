//! Every kind of network on a GPU against the CPU: logits, features, running statistics and gradients of the same weights and
//! images, and the same bytes in two runs: `cargo bench --features cuda --bench parity [-- cuda:0]`. Prints one line a
//! network and precision; ends with 1 where one is too far off.

use std::io::Write;
use std::process::ExitCode;

use candle_core::{DType, Device, Tensor};
use recant::error::{Error, Result};
use recant::nn::arch::{Arch, Convolution, Precision, Shape};
use recant::nn::gpu;
use recant::nn::model::{Model, Pass, gradients};
use recant::rng::Rng;
use serde_json::json;

/// Precision, and how far off lengths of differences may be, over lengths: sums in another order, products of numbers with
/// 11 bits, of numbers with 8 bits forth and back through some twenty layers.
const WAYS: [(&str, f64); 3] = [("f32, direct", 2e-4), ("f32", 2e-2), ("bf16", 1.5e-1)];

fn networks() -> Result<Vec<(&'static str, Arch)>> {
    let mut all = Vec::new();
    for (name, arch) in [
        ("resnet18", json!({"name": "resnet18", "width": 16})),
        ("resnet18, pool", json!({"name": "resnet18", "width": 16, "stem": "cifar_pool"})),
        ("resnet18, imagenet", json!({"name": "resnet18", "width": 16, "stem": "imagenet"})),
        ("resnet50", json!({"name": "resnet50", "width": 16})),
        ("allcnn", json!({"name": "allcnn", "width": 24})),
        ("mlp", json!({"name": "mlp", "hidden": [70]})),
    ] {
        all.push((name, Arch::new(&arch, 10, [3, 32, 32], &[0.5; 3], &[0.25; 3])?));
    }
    for (name, shape, makes, size) in [
        ("dcgan generator", Shape::DcganGenerator { width: 16, side: 32 }, 3, [100, 1, 1]),
        ("dcgan discriminator", Shape::DcganDiscriminator { width: 16 }, 1, [3, 32, 32]),
        ("opengan generator", Shape::OpenganGenerator { width: 16 }, 128, [100, 1, 1]),
        ("opengan discriminator", Shape::OpenganDiscriminator { width: 16 }, 1, [128, 1, 1]),
    ] {
        all.push((name, Arch::build(name, shape, makes, size, &[], &[])?));
    }
    Ok(all)
}

/// In that way, as `WAYS` calls it.
fn by(arch: &Arch, way: &str) -> Arch {
    let mut arch = arch.clone().with_precision(if way == "bf16" { Precision::Bf16 } else { Precision::F32 });
    if way == "f32, direct" {
        arch.convolution = Convolution::Direct;
    }
    arch
}

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed).fork("parity");
    (0..count).map(|_| rng.normal()).collect()
}

/// What comes of a forward in training, of its way back, and of an answer in evaluation, the last time of several: a GPU
/// takes down what comes again.
fn results(arch: &Arch, batch: usize, device: &Device, times: usize) -> Result<Vec<Vec<f32>>> {
    let mut model = Model::init(arch, &Rng::new(1), device)?;
    let [channels, height, width] = arch.size;
    let x = Tensor::from_vec(normal(batch * channels * height * width, 2), (batch, channels, height, width), device)?;
    for _ in 1..times {
        let output = model.forward(&x, &Pass::train())?;
        gradients(&output.logits.sum_all()?, [&model])?;
        model.logits(&x)?;
    }
    let output = model.forward(&x, &Pass::train())?;
    let weights = Tensor::from_vec(normal(output.logits.elem_count(), 3), output.logits.shape(), device)?;
    let loss = ((&output.logits * weights)?.sum_all()? + output.features.sqr()?.sum_all()?)?;
    let [gradient] = gradients(&loss, [&model])?;
    model.commit(&output)?;
    let all = [output.logits, output.features, model.stats(), gradient, model.logits(&x)?];
    all.iter().map(|one| Ok(one.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)).collect()
}

fn apart(found: &[f32], truth: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = length(&mut found.iter().zip(truth).map(|(f, t)| f64::from(f - t)));
    if off == 0.0 { 0.0 } else { off / length(&mut truth.iter().map(|&t| f64::from(t))) }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn run(device: &Device) -> Result<bool> {
    let mut good = true;
    for (name, arch) in networks()? {
        for (way, limit) in WAYS {
            let arch = by(&arch, way);
            let (truth, found) = (results(&arch, 24, &Device::Cpu, 1)?, results(&arch, 24, device, 1)?);
            let off: Vec<f64> = found.iter().zip(&truth).map(|(found, truth)| apart(found, truth)).collect();
            let repeats = results(&arch, 24, device, 4)? == found;
            let fits = off.iter().all(|off| *off <= limit);
            good &= fits && repeats;
            let said = off.iter().map(|off| format!("{off:.1e}")).collect::<Vec<_>>().join(" ");
            println!(
                "{} {name}, {way}: logits, features, statistics, gradient, answers off by {said}; {}",
                if fits { "ok " } else { "FAR" },
                if repeats { "the same bytes twice" } else { "OTHER BYTES the second time" }
            );
        }
    }
    Ok(good)
}

fn main() -> ExitCode {
    let named = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let index = named.as_deref().unwrap_or("cuda:0").strip_prefix("cuda:").and_then(|index| index.parse().ok());
    let device = match (named.as_deref(), index) {
        (Some("cpu"), _) => Ok(Device::Cpu),
        (_, Some(index)) => gpu(index),
        _ => Err(Error::Usage("name a device: cuda:N, or cpu to see the CPU agree with itself".to_owned())),
    };
    match device.and_then(|device| run(&device)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
