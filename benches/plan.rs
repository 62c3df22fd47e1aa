//! Milliseconds of planning: reading a recipe and making its plan, for 100, 1,000 and 10,000
//! stages: `cargo bench --bench plan`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use recant::bench::memory;
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

/// The same with one method, over seeds: everything but the images once a seed.
fn matrix(stages: usize) -> String {
    let seeds: Vec<String> = (0..(stages - 1) / 9).map(|seed| seed.to_string()).collect();
    let train = "kind = \"train\"\narch = { name = \"mlp\", hidden = [4] }\nepochs = 1\nseed = \"${matrix.seed}\"";
    format!(
        "recipe = 1\n[matrix]\nseed = [{}]\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n\
         [stages.split]\nkind = \"split\"\ndata = \"images\"\nforget = {{ count = 100 }}\nseed = \"${{matrix.seed}}\"\n\
         [stages.original]\n{train}\ndata = \"images\"\n[stages.oracle]\n{train}\ndata = \"split\"\non = \"retain\"\n\
         [stages.control]\nkind = \"unlearn\"\nmethod = \"nothing\"\nmodel = \"original\"\ndata = \"split\"\n\
         [stages.tuned]\nkind = \"unlearn\"\nmethod = \"finetune\"\nmodel = \"original\"\ndata = \"split\"\n\
         [stages.table]\nkind = \"compare\"\ndata = \"split\"\nreference = \"oracle\"\n\
         models = [\"original\", \"control\", \"tuned\"]\nover = [\"seed\"]\n",
        seeds.join(", ")
    )
}

/// Median milliseconds.
fn timed<T>(mut call: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        call()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let forms = |stages| -> std::result::Result<_, std::fmt::Error> {
        Ok([("named", recipe(stages)?), ("of a matrix", matrix(stages))])
    };
    for (stages, (form, text)) in [100, 1000, 10_000]
        .map(|stages| forms(stages).map(|all| all.map(|form| (stages, form))))
        .into_iter()
        .flatten()
        .flatten()
    {
        memory::forget_peak();
        let read = || Recipe::read(Path::new("r.toml"), &|_| Ok(text.clone().into_bytes()), &[], STAGES);
        let known = read()?;
        let plan = || Plan::new(&known, &evaluate::KIND, &BTreeMap::new());
        let made = plan()?.order.len();
        let (read, plan, peak) = (timed(read)?, timed(plan)?, memory::peak().unwrap_or(0) as f64 / 1e6);
        println!("{stages} stages {form} ({made}): recipe {read:.2} ms, plan {plan:.2} ms, {peak:.0} MB at most");
    }
    Ok(())
}
