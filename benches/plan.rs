//! Milliseconds of planning: reading a recipe and making its plan, for 100 and 1,000 stages: `cargo bench --bench plan`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use recant::error::Result;
use recant::plan::Plan;
use recant::recipe::Recipe;
use recant::stage::{STAGES, evaluate};

/// An original, an oracle, and `nothing` with its implied evaluation as often as it takes.
fn recipe(stages: usize) -> std::result::Result<String, std::fmt::Error> {
    let count = (stages - 6) / 2;
    let mut text = String::from("recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n");
    let train = "arch = { name = \"mlp\", hidden = [4] }\nepochs = 1";
    writeln!(text, "[stages.split]\nkind = \"split\"\ndata = \"images\"\nforget = {{ count = 100 }}")?;
    writeln!(text, "[stages.original]\nkind = \"train\"\ndata = \"images\"\n{train}")?;
    writeln!(text, "[stages.oracle]\nkind = \"train\"\ndata = \"split\"\non = \"retain\"\n{train}")?;
    for i in 0..count {
        let wiring = "kind = \"unlearn\"\nmethod = \"nothing\"\nmodel = \"original\"\ndata = \"split\"";
        writeln!(text, "[stages.m{i}]\n{wiring}\nseed = {i}")?;
    }
    let models: Vec<String> = (0..count).map(|i| format!("\"m{i}\"")).collect();
    let models = models.join(", ");
    writeln!(
        text,
        "[stages.table]\nkind = \"compare\"\ndata = \"split\"\nreference = \"oracle\"\nmodels = [{models}]"
    )?;
    Ok(text)
}

/// Median milliseconds.
fn timed<T>(mut call: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = Instant::now();
        call()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    for stages in [100, 1000] {
        let text = recipe(stages)?;
        let read = || Recipe::read(Path::new("r.toml"), &|_| Ok(text.clone().into_bytes()), &[], STAGES);
        let known = read()?;
        let plan = || Plan::new(&known, &evaluate::KIND, &BTreeMap::new());
        println!("{stages} stages: recipe {:.2} ms, plan {:.2} ms", timed(read)?, timed(plan)?);
    }
    Ok(())
}
