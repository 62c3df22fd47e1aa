//! One attack or map on the data of a file, for `benches/attacks.py`: `cargo bench --bench attacks -- svc|tsne IN OUT`. IN has
//! `members`, `strangers` and `asked`, or `x`, f64 and row by row; OUT gets the decision values, or the places. Prints one
//! line of JSON.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use recant::halt::never;
use recant::metric::svc::Svc;
use recant::metric::tsne;
use recant::rng::Rng;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let [what, from, to] = words.as_slice() else {
        println!("nothing to do: this is a part of benches/attacks.py");
        return Ok(());
    };
    let data = candle_core::safetensors::load(Path::new(from), &Device::Cpu)?;
    let rows = |name: &str| -> Result<Vec<Vec<f64>>> {
        Ok(data.get(name).ok_or_else(|| format!("{from} has no `{name}`"))?.to_vec2::<f64>()?)
    };
    let (line, made) = if what == "tsne" {
        let x = rows("x")?;
        let begun = Instant::now();
        let places = tsne::map(&x, Rng::new(0), &never)?;
        let line = json!({"what": what, "points": x.len(), "seconds": begun.elapsed().as_secs_f64()});
        (line, Tensor::from_vec(places.concat(), (x.len(), 2), &Device::Cpu)?)
    } else {
        let (members, strangers, asked) = (rows("members")?, rows("strangers")?, rows("asked")?);
        let gamma = 1.0 / members.first().map_or(1, Vec::len) as f64;
        let begun = Instant::now();
        let svc = Svc::fit(&members, &strangers, (3.0, gamma), &never)?;
        let fit = begun.elapsed().as_secs_f64();
        let values = svc.decide(&asked, &never)?;
        let seconds = begun.elapsed().as_secs_f64();
        let points = members.len() + strangers.len();
        let line = json!({"what": what, "points": points, "seconds": seconds, "fit": fit, "steps": svc.steps});
        (line, Tensor::from_vec(values, asked.len(), &Device::Cpu)?)
    };
    println!("{line}");
    candle_core::safetensors::save(&HashMap::from([("made".to_owned(), made)]), to)?;
    Ok(())
}
