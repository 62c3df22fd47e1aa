//! Images a second of training steps (forward, loss, backward, plain SGD) and of evaluation, for networks large and
//! small: `cargo bench --bench train_step [NAME]`. Peak memory goes with the first line of each network.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use candle_nn::loss::cross_entropy;
use recant::error::Result;
use recant::nn::arch::Arch;
use recant::nn::model::{Backend, Model, Pass};
use recant::rng::Rng;
use serde_json::{Value, json};

/// Most bytes this process ever held, from the system; nothing where it does not say.
fn peak() -> String {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| text.lines().find(|line| line.starts_with("VmHWM")).map(|line| line[6..].trim().to_owned()))
        .unwrap_or_default()
}

/// Median seconds of a call, over about `budget`.
fn seconds(budget: Duration, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < budget || times.len() < 3 {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn measure(label: &str, settings: &Value, size: [usize; 3], batch: usize, backend: Backend) -> Result<()> {
    let arch = Arch::new(settings, 10, size, &vec![0.0; size[0]], &vec![1.0; size[0]])?;
    let mut model = Model::init(&arch, &Rng::new(0), &Device::Cpu)?.with_backend(backend)?;
    let mut rng = Rng::new(1);
    let pixels: Vec<f32> = (0..batch * size.iter().product::<usize>()).map(|_| rng.normal()).collect();
    let x = Tensor::from_vec(pixels, (batch, size[0], size[1], size[2]), &Device::Cpu)?;
    let labels: Vec<u32> = (0..batch as u32).map(|i| i % 10).collect();
    let y = Tensor::from_vec(labels, batch, &Device::Cpu)?;
    let budget = Duration::from_secs(5);
    let train = seconds(budget, || {
        let output = model.train(&x)?;
        let gradient = model.gradient(&cross_entropy(&output.logits, &y)?)?;
        model.update(|theta| {
            theta.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 0.001 * g);
            Ok(())
        })
    })?;
    let forward = seconds(budget, || model.forward(&x, &Pass::train()).map(drop))?;
    let eval = seconds(budget, || model.logits(&x).map(drop))?;
    let rate = |seconds: f64| batch as f64 / seconds;
    println!(
        "{label:32} batch {batch:4}  train {:10.1} img/s  forward {:10.1}  eval {:10.1}  peak {}",
        rate(train),
        rate(forward),
        rate(eval),
        peak()
    );
    Ok(())
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let resnet = |width: usize| json!({"name": "resnet18", "width": width});
    let nets = [
        ("mlp 8x8", json!({"name": "mlp"}), [1, 8, 8], 64),
        ("resnet18 width 8, 8x8", resnet(8), [1, 8, 8], 64),
        ("resnet18 width 8", resnet(8), [3, 32, 32], 64),
        ("resnet18 width 16", resnet(16), [3, 32, 32], 64),
        (
            "resnet18 cifar_pool width 32",
            json!({"name": "resnet18", "stem": "cifar_pool", "width": 32}),
            [3, 32, 32],
            64,
        ),
        ("allcnn", json!({"name": "allcnn"}), [3, 32, 32], 64),
        ("resnet18", resnet(64), [3, 32, 32], 64),
    ];
    for (label, settings, size, batch) in &nets {
        if wanted.is_empty() || wanted.iter().any(|word| word == label) {
            measure(label, settings, *size, *batch, Backend::Fast)?;
        }
    }
    if wanted.iter().any(|word| word == "reference") {
        measure("resnet18, reference", &resnet(64), [3, 32, 32], 16, Backend::Reference)?;
    }
    Ok(())
}
