//! What each kind of layer costs, beside the machine's multiply-add peak measured in the same run:
//! `cargo test --release --lib layers -- --ignored --nocapture`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use super::buffer::Pool;
use super::conv::Conv;
use super::geometry::Geometry;
use super::norm;
use super::number::{Half, Number, Value};
use super::simd::{Level, Strided};
use super::weights::Weights;
use crate::kernels::steps::After;
use crate::kernels::{Products, Window};

/// Least seconds of several calls.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Multiply-adds count two: 6 x 64 sums in registers, operands in a first-level cache, on all threads.
fn peak(level: Level) -> f64 {
    const DEPTH: usize = 128;
    const TIMES: usize = 10_000;
    let wide = level.panel();
    let (rows, kernel) = level.block(wide / level.lanes())[0];
    let threads = rayon::current_num_threads();
    let spent = seconds(|| {
        rayon::broadcast(|_| {
            let (a, b, mut c) = (vec![1.0_f32; rows * DEPTH], vec![1.0_f32; DEPTH * wide], vec![0.0_f32; rows * wide]);
            for _ in 0..TIMES {
                // SAFETY: the sizes are those above.
                unsafe { kernel(DEPTH, Strided(a.as_ptr(), DEPTH), b.as_ptr(), (c.as_mut_ptr(), wide), true) };
            }
            black_box(c);
        });
    });
    (2 * threads * TIMES * rows * DEPTH * wide) as f64 / spent
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement prints")]
fn layers() {
    let level = Level::best();
    let batch = std::env::var("BATCH").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    let peak = peak(level);
    println!("{level:?}, batch {batch}, peak {:.0} GFLOP/s; ms and share of the peak (direct products)", peak / 1e9);
    let kinds = [
        (3, 64, 32, 3, 1),
        (16, 16, 32, 3, 1),
        (32, 32, 16, 3, 1),
        (64, 64, 32, 3, 1),
        (64, 128, 32, 3, 2),
        (64, 128, 32, 1, 2),
        (128, 128, 16, 3, 1),
        (128, 256, 16, 3, 2),
        (256, 256, 8, 3, 1),
        (256, 512, 8, 3, 2),
        (512, 512, 4, 3, 1),
        (96, 96, 32, 3, 1),
        (192, 192, 16, 3, 1),
        (64, 256, 32, 1, 1),
        (256, 64, 32, 1, 1),
        (512, 512, 1, 1, 1),
        (256, 128, 1, 1, 1),
    ];
    let wanted: Option<usize> = std::env::var("CHANNELS").ok().and_then(|text| text.parse().ok());
    for (inputs, outputs, size, kernel, stride) in kinds {
        if wanted.is_some_and(|wanted| wanted != inputs) {
            continue;
        }
        let window = Window::new(kernel, stride, kernel / 2);
        let out = (size + 2 * window.padding - kernel) / stride + 1;
        let geometry = Geometry { output: [out, out], input: [size, size], window, transposed: false };
        let taps = kernel * kernel;
        let weights = Weights { inputs, outputs, input_step: taps, output_step: inputs * taps, taps };
        let pool = Arc::new(Pool::default());
        let theta = vec![0.01; inputs * outputs * taps];
        let (reads, makes) = (vec![0.5; size * size * batch * inputs], vec![0.5; out * out * batch * outputs]);
        let mut own = theta.clone();
        let flops = 2.0 * (geometry.products() * batch * inputs * outputs) as f64;
        for products in [Products::Direct, Products::Winograd, Products::Bf16] {
            let conv = Conv::new(level, geometry, weights, products);
            if products == Products::Winograd && !conv.is_winograd() {
                continue;
            }
            // as a network has them: images in bf16 where it computes so
            let [x, mut below] = [(); 2].map(|()| Value::of(&reads, products == Products::Bf16));
            let [above, mut y] = [(); 2].map(|()| Value::of(&makes, products == Products::Bf16));
            let (forth, back) = (conv.pack(&theta, &pool), conv.pack_back(&theta, &pool));
            let times = [
                seconds(|| drop(black_box(conv.pack(&theta, &pool)))),
                seconds(|| conv.forward(batch, &x, &forth, None, &pool, &mut y)),
                seconds(|| conv.backward(batch, &above, &back, false, &pool, &mut below)),
                seconds(|| conv.gradient(batch, &x, &above, &pool, &mut own)),
            ];
            print!("{inputs:4} to {outputs:4} at {size:2}, {kernel} x {kernel} / {stride} ");
            print!("{:8}", format!("{products:?}").to_lowercase());
            print!("  pack {:6.2}", times[0] * 1e3);
            for (name, spent) in ["forward", "backward", "gradient"].into_iter().zip(&times[1..]) {
                print!("  {name} {:6.2} {:4.2}", spent * 1e3, flops / spent / peak);
            }
            println!("  all {:6.2}", (times.iter().sum::<f64>() + times[0]) * 1e3);
        }
    }
    for (channels, size) in [(64, 32), (128, 16), (256, 8), (512, 4)] {
        norms::<f32>(channels, size * size * batch, "f32 ");
        norms::<Half>(channels, size * size * batch, "bf16");
    }
}

#[expect(clippy::print_stdout, reason = "a measurement prints")]
fn norms<N: Number>(channels: usize, rows: usize, kind: &str) {
    let x = vec![N::nearest(0.5); rows * channels];
    let (mut y, mut g, mut below) = (x.clone(), x.clone(), x.clone());
    let per = vec![1.0; channels];
    let moments = seconds(|| drop(black_box(norm::moments(&x, channels))));
    let forward = seconds(|| norm::forward(&x, [&per; 4].map(|v| &v[..]), Some(&g), After::Leaky(0.0), &mut y));
    let backward = seconds(|| {
        let below = Some(&mut below[..]);
        drop(black_box(norm::backward(
            &x,
            Some(&y),
            [&per; 4].map(|v| &v[..]),
            true,
            After::Leaky(0.0),
            &mut g,
            below,
        )));
    });
    let plain = seconds(|| {
        let below = Some(&mut below[..]);
        drop(black_box(norm::backward(&x, None, [&per; 4].map(|v| &v[..]), true, After::Leaky(0.0), &mut g, below)));
    });
    let bytes = (size_of::<N>() * x.len()) as f64 / 1e9;
    println!(
        "batch norm {kind} {channels:3}: moments {:5.2} ms {:4.1} GB/s  forward {:5.2} {:4.1}  backward {:5.2} {:4.1}, without residual {:5.2} {:4.1}",
        moments * 1e3,
        bytes / moments,
        forward * 1e3,
        3.0 * bytes / forward,
        backward * 1e3,
        7.0 * bytes / backward,
        plain * 1e3,
        5.0 * bytes / plain
    );
}
