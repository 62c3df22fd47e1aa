//! Whether time and memory grow with the images as they must: one epoch of training over 1,000 to 1,000,000 of them, random
//! pixels of CIFAR-10's size, from its beginning to its end. `cargo bench --bench growth [-- --largest 1000000]`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use petgraph::graph::NodeIndex;
use recant::artifact::Artifact;
use recant::bench::{Bench, memory, random_images};
use recant::error::{Error, Result};
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::stage::{STAGES, evaluate};

const BATCH: usize = 256;
/// The network, and the most images of which an epoch of it is over in minutes.
const NETWORKS: [(&str, &str, usize); 2] = [
    ("mlp, 64 units", r#"name = "mlp", hidden = [64]"#, 1_000_000),
    ("resnet18, width 4", r#"name = "resnet18", width = 4"#, 100_000),
];

fn recipe(network: &str) -> String {
    format!(
        r#"recipe = 1
[stages.images]
kind = "dataset"
source = "cifar10"
[stages.original]
kind = "train"
data = "images"
arch = {{ {network} }}
epochs = 1
batch = {BATCH}
lr = 0.001
transform = "crop_flip"
"#
    )
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn run(largest: usize) -> Result<()> {
    println!(
        "{:18} {:>9} {:>9} {:>10} {:>9} {:>11} {:>13}",
        "network", "images", "seconds", "us/image", "peak MB", "images' MB", "the rest, MB"
    );
    for (name, network, most) in NETWORKS {
        let text = recipe(network);
        let recipe = Recipe::read(Path::new("growth.toml"), &|_| Ok(text.clone().into_bytes()), &[], STAGES)?;
        let plan = Plan::new(&recipe, &evaluate::KIND, &BTreeMap::new())?;
        let node = |name: &str| -> Result<NodeIndex> {
            let found = plan.targets(&[name.to_owned()])?.first().copied();
            found.ok_or_else(|| Error::invalid(format!("no stage `{name}`")))
        };
        for count in [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|count| *count <= most.min(largest)) {
            let mut bench = Bench::new(&plan, &Device::Cpu, Duration::MAX);
            bench.put(node("images")?, Artifact::Images(Arc::new(random_images(count)?)));
            memory::forget_peak();
            let speed = bench.time(node("original")?)?;
            let (peak, own) = (speed.peak_bytes.unwrap_or_default() as f64 / 1e6, (count * 3072) as f64 / 1e6);
            println!(
                "{name:18} {count:9} {:9.2} {:10.1} {peak:9.0} {own:11.0} {:13.0}",
                speed.stage_seconds,
                speed.stage_seconds / count as f64 * 1e6,
                peak - own
            );
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let at = words.iter().position(|word| word == "--largest");
    let largest = at.and_then(|at| words.get(at + 1)).and_then(|word| word.parse().ok()).unwrap_or(1_000_000);
    match run(largest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
