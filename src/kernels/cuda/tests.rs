//! The passes over a network against the reference in f64, on a stand-in for a GPU.

use candle_core::{CpuStorage, Device, Storage};

use super::*;
use crate::kernels::checks::{answer, normal, numbers, program, residual, run};
use crate::kernels::{Drawn, Numbers, Products, Rows, reference};

/// None where there is no C++ compiler, which is said.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn network(program: &Arc<Program>) -> Option<Cuda> {
    let machine = emulated::machine();
    if machine.is_none() {
        eprintln!("skipped: no `c++` to compile the kernels with");
    }
    Some(Cuda::new(program.clone(), machine?))
}

fn largest(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0_f64, |a, b| a.max(b.abs()))
}

#[test]
fn every_layer_is_like_the_reference_in_f64() {
    let program = Arc::new(program());
    let Some(network) = network(&program) else { return };
    for batch in [1, 2, 7] {
        let fast = run(&network, &program, batch, DType::F32);
        let slow = run(reference(&program).as_ref(), &program, batch, DType::F64);
        for (index, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
            let (fast, slow) = (numbers(fast), numbers(slow));
            let off: Vec<f64> = fast.iter().zip(&slow).map(|(f, s)| f - s).collect();
            assert!(largest(&off) <= 2e-5 * largest(&slow), "batch {batch}, result {index}: {}", largest(&off));
        }
    }
}

#[test]
fn bf16_is_like_the_reference_in_f64() {
    let program = Arc::new(Program { products: Products::Bf16, ..program() });
    let Some(network) = network(&program) else { return };
    // lengths of the differences over those of the results: a value at the edge of ReLU or max-pool goes either way
    let limits = [0.006, 0.005, 0.005, 0.002, 0.12, 0.012];
    let fast = run(&network, &program, 7, DType::F32);
    let slow = run(reference(&program).as_ref(), &program, 7, DType::F64);
    for (index, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
        let (fast, slow) = (numbers(fast), numbers(slow));
        let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let off = length(&mut fast.iter().zip(&slow).map(|(f, s)| f - s)) / length(&mut slow.iter().copied());
        assert!(off <= limits[index], "result {index}: {off}");
    }
}

#[test]
fn running_statistics_and_residuals_answer_like_the_reference() {
    for (products, limit) in [(Products::Direct, 1e-5), (Products::Bf16, 0.01)] {
        let program = Arc::new(Program { products, ..residual() });
        let Some(network) = network(&program) else { return };
        let truth = answer(reference(&program).as_ref(), &program, DType::F64, false);
        for tracked in [false, true] {
            let found = answer(&network, &program, DType::F32, tracked);
            let off: Vec<f64> = found.iter().zip(&truth).map(|(f, t)| f - t).collect();
            assert!(largest(&off) <= limit * largest(&truth), "{products:?}, tracked {tracked}: {}", largest(&off));
        }
    }
}

/// Three steps of plain descent, with two forwards of the same theta in each, then an answer by running statistics: all
/// logits, moments and gradients on the way.
fn trained(network: &Cuda, program: &Program, sizes: &[usize]) -> Vec<Vec<f64>> {
    let device = &Device::Cpu;
    let theta = Tensor::from_vec(normal(program.len(), 1, 0.1), program.len(), device).unwrap();
    let theta = candle_core::Var::from_tensor(&theta).unwrap();
    let rest: usize = program.input.iter().product();
    let x = |batch: usize, seed: u64| {
        let [c, h, w] = program.input;
        Tensor::from_vec(normal(batch * rest, seed, 1.0), (batch, c, h, w), device).unwrap()
    };
    let norms = program.norms.len();
    let by_batch = Mode { batch: vec![true; norms], branch: 0, rng: None, taps: vec![4] };
    let by_running = Mode { batch: vec![false; norms], taps: Vec::new(), ..by_batch.clone() };
    let mut all = Vec::new();
    for (turn, &batch) in sizes.iter().enumerate() {
        let sink = Arc::new(Sink::default());
        let stats = Tensor::ones(program.all_statistics(), DType::F32, device).unwrap();
        let stats = (stats * (1.0 + turn as f64)).unwrap();
        let pieces = [theta.as_tensor().clone()];
        // both are alive until the way back
        let [one, two] = [0, 1].map(|part| {
            let images = x(batch, 10 * turn as u64 + part);
            network.forward(&pieces, &stats, &images, &by_batch, &sink).unwrap()
        });
        let loss = (one.logits.sqr().unwrap().sum_all().unwrap() + two.features.sum_all().unwrap()).unwrap();
        sink.open();
        loss.backward().unwrap();
        let Some(Gradient::Device(gradient)) = sink.close() else { panic!("a gradient on the device") };
        let told = [one.logits, two.logits, one.taps[0].clone(), two.moments.unwrap().values, gradient.clone()];
        all.extend(told.iter().map(numbers));
        theta.set(&(theta.as_tensor() - (gradient * 0.001).unwrap()).unwrap().detach()).unwrap();
        sink.theta_changed();
        let answer =
            network.forward(&pieces.map(|piece| piece.detach()), &stats, &x(2, 99), &by_running, &sink).unwrap();
        all.push(numbers(&answer.logits));
    }
    all
}

/// Whatever is taken down and done again, of however many forwards at a time and sizes in turn, gives the same bits.
#[test]
fn recorded_passes_give_the_same_bits() {
    for (program, sizes) in [(residual(), vec![3, 3, 3, 1, 3, 1, 3]), (program(), vec![2, 1, 2])] {
        let program = Arc::new(program);
        let Some(machine) = emulated::machine() else { return };
        let network = |recordings: bool| Cuda {
            recordings: recordings.then(Recordings::default),
            ..Cuda::new(program.clone(), machine.clone())
        };
        let plain = trained(&network(false), &program, &sizes);
        let [launches, replays] = emulated::counts();
        assert_eq!(replays, 0);
        assert_eq!(trained(&network(true), &program, &sizes), plain);
        // of each size but the first forward, forth and back; and the answers but the first
        let [more, replays] = emulated::counts();
        assert_eq!(replays, 2 * (2 * sizes.len() - 2) + sizes.len() - 1);
        assert!(more < launches, "{more} launches beside them, {launches} without");
    }
}

/// What optimisers and images ask of a device, with the bits of the CPU's.
#[test]
fn steps_lengths_and_images_are_those_of_the_cpu() {
    let Some(machine) = emulated::machine() else { return };
    let vector = |seed: u64| normal(1001, seed, 0.1);
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let parts = squares(&*machine, &tensor(&vector(1))).unwrap().to_vec1::<f64>().unwrap();
    let length = parts.iter().sum::<f64>().sqrt();
    let truth = vector(1).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!((length - truth).abs() < 1e-12 * truth, "{length} {truth}");
    let mask: Vec<f32> = (0..1001).map(|place| f32::from(place % 3 != 0)).collect();
    let sgd = Numbers::Sgd { rate: 0.05, momentum: 0.9, weight_decay: 0.1, nesterov: true };
    let adam = Numbers::Adam { size: 0.05, keep: 0.99, betas: [0.9, 0.99], root: 0.3, eps: 1e-8, decay: 0.1 };
    for numbers in [sgd, adam] {
        let (mut theta, mut first, mut second) = (vector(2), vec![0.0_f32; 1001], vec![0.0_f32; 1001]);
        let on_device = [&theta, &first, &second].map(|values| tensor(values));
        for turn in 1..=3 {
            let gradient = vector(2 + turn);
            for place in (0..1001).filter(|place| place % 3 != 0) {
                let (w, m, v) = (&mut theta[place], &mut first[place], &mut second[place]);
                let g = gradient[place] + 0.1 * *w;
                if matches!(numbers, Numbers::Sgd { .. }) {
                    *m = 0.9 * *m + g;
                    *w -= 0.05 * (g + 0.9 * *m);
                } else {
                    *m = 0.9 * *m + (1.0 - 0.9_f64) as f32 * g;
                    *v = 0.99 * *v + (1.0 - 0.99_f64) as f32 * g * g;
                    *w = *w * 0.99 - 0.05 * *m / (v.sqrt() / 0.3 + 1e-8);
                }
            }
            let [moved, one, two] = &on_device;
            step(&*machine, numbers, moved, [one, two], &tensor(&gradient), Some(&tensor(&mask))).unwrap();
            assert_eq!(moved.to_vec1::<f32>().unwrap(), theta, "{numbers:?}, step {turn}");
        }
    }
    let pixels: Vec<u8> = (0..3 * 5 * 4 * 2).map(|at| (at * 7) as u8).collect();
    let (pixels, size) = (Arc::new(pixels), [2, 5, 4]);
    let drawn = [
        Drawn { index: 2, down: -1, right: 2, flip: true, rows: 0..2, columns: 1..4 },
        Drawn { index: 0, down: 0, right: 0, flip: false, rows: 0..0, columns: 0..0 },
    ];
    let x = images(&*machine, &pixels, &drawn, [&[0.5, 0.4], &[0.2, 0.3]], size).unwrap();
    assert_eq!(x.dims(), [2, 2, 5, 4]);
    // of the first: row 3, column 0 is row 2 and column 3 + 2, outside; column 3 is column 0 + 2
    let at =
        |index: usize, row: usize, column: usize, c: usize| f32::from(pixels[((index * 5 + row) * 4 + column) * 2 + c]);
    let seen = |image: usize, c: usize, row: usize, column: usize| {
        let place = ((image * 2 + c) * 5 + row) * 4 + column;
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()[place]
    };
    assert_eq!(seen(0, 1, 3, 0), (0.0 - 0.4) / 0.3);
    assert_eq!(seen(0, 1, 3, 3), (at(2, 2, 2, 1) / 255.0 - 0.4) / 0.3);
    assert_eq!(seen(0, 0, 1, 2), 0.0);
    assert_eq!(seen(1, 0, 4, 1), (at(0, 4, 1, 0) / 255.0 - 0.5) / 0.2);
}

type Of<'a> = &'a dyn Fn(&[f64]) -> f64;

/// Losses with their gradients, against the same formulas in f64 on the host.
#[test]
fn losses_of_rows_are_those_of_their_definitions() {
    let Some(machine) = emulated::machine() else { return };
    let tensor = |seed: u64, rows: usize, columns: usize| {
        Tensor::from_vec(normal(rows * columns, seed, 2.0), (rows, columns), &Device::Cpu).unwrap()
    };
    // of f64, so that slopes can be had by differences
    let soft = |row: &[f64], t: f64| -> Vec<f64> {
        let sum = row.iter().map(|x| (x / t).exp()).sum::<f64>().ln();
        row.iter().map(|x| x / t - sum).collect()
    };
    for (rows, columns) in [(1, 1), (2, 10), (9, 33), (40, 100)] {
        let (x, other) = (tensor(1, rows, columns), candle_core::Var::from_tensor(&tensor(2, rows, columns)).unwrap());
        let target = candle_nn::ops::softmax(&tensor(3, rows, columns), 1).unwrap();
        let labels: Vec<u32> = (0..rows).map(|row| (row * 7 % columns) as u32).collect();
        let labels_of = Tensor::from_slice(&labels, rows, &Device::Cpu).unwrap();
        let (teacher, mix) = (numbers(other.as_tensor()), numbers(&target));
        let of = |matrix: &[f64], row: usize| matrix[row * columns..(row + 1) * columns].to_vec();
        let divergence = |p: &[f64], log_p: &[f64], log_q: &[f64]| -> f64 {
            p.iter().zip(log_p).zip(log_q).map(|((p, log_p), log_q)| p * (log_p - log_q)).sum()
        };
        let cross = |x: &[f64]| -> f64 {
            let row = |(row, label): (usize, &u32)| {
                let log = soft(&of(x, row), 1.0);
                -0.9 * log[*label as usize] - 0.1 * log.iter().sum::<f64>() / columns as f64
            };
            labels.iter().enumerate().map(row).sum::<f64>() / rows as f64
        };
        let distilled = |x: &[f64], teacher: &[f64]| -> f64 {
            let row = |row: usize| {
                let (p, q) = (soft(&of(teacher, row), 1.5), soft(&of(x, row), 1.5));
                divergence(&p.iter().map(|p| p.exp()).collect::<Vec<_>>(), &p, &q)
            };
            (0..rows).map(row).sum::<f64>() / rows as f64
        };
        let drawn = |x: &[f64]| -> f64 {
            let row = |row: usize| {
                let p = of(&mix, row);
                divergence(&p, &p.iter().map(|p| p.ln()).collect::<Vec<_>>(), &soft(&of(x, row), 2.0))
            };
            (0..rows).map(row).sum::<f64>() / rows as f64
        };
        let by_teacher = |t: &[f64]| distilled(&numbers(&x), t);
        let by_student = |x: &[f64]| distilled(x, &teacher);
        let cases: [(Rows, &[Of]); 3] = [
            (Rows::CrossEntropy { labels: &labels_of, smoothing: 0.1 }, &[&cross]),
            (Rows::Distill { teacher: other.as_tensor(), temperature: 1.5 }, &[&by_student, &by_teacher]),
            (Rows::KlTo { target: &target, temperature: 2.0 }, &[&drawn]),
        ];
        for (which, truths) in cases {
            let told = loss(&*machine, &x, which).unwrap();
            let Storage::Cpu(CpuStorage::F32(value)) = told.value else { panic!() };
            let truth = truths[0](&numbers(&x));
            assert!((f64::from(value[0]) - truth).abs() < 1e-6 * (1.0 + truth), "{which:?}: {value:?}, not {truth}");
            assert_eq!(told.slopes.len(), truths.len());
            for ((slope, truth), start) in told.slopes.iter().zip(truths).zip([numbers(&x), teacher.clone()]) {
                let slope = numbers(slope);
                for at in (0..rows * columns).step_by(7) {
                    let moved = |by: f64| {
                        let mut moved = start.clone();
                        moved[at] += by;
                        truth(&moved)
                    };
                    let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((slope[at] - expected).abs() < 1e-7, "{which:?}, {at}: {}, not {expected}", slope[at]);
                }
            }
        }
    }
    // NT-Xent of cosines, one pair pushed apart
    let (rows, signs) = (6, [1.0, -1.0, 1.0, 1.0, -1.0, 1.0]);
    let x = tensor(4, rows, rows);
    let contrast = |x: &[f64], signs: &[f64]| -> f64 {
        let row = |i: usize| {
            let pair = (i + 3) % rows;
            let at = |k: usize| if k == pair { signs[i] } else { 1.0 } * x[i * rows + k] / 0.5;
            (0..rows).filter(|k| *k != i).map(|k| at(k).exp()).sum::<f64>().ln() - at(pair)
        };
        (0..rows).map(row).sum::<f64>() / rows as f64
    };
    for signs in [signs, [1.0; 6]] {
        let told = loss(&*machine, &x, Rows::Contrast { signs: &signs, temperature: 0.5 }).unwrap();
        let Storage::Cpu(CpuStorage::F32(value)) = told.value else { panic!() };
        assert!((f64::from(value[0]) - contrast(&numbers(&x), &signs)).abs() < 1e-6);
        let slope = numbers(&told.slopes[0]);
        for (at, slope) in slope.iter().enumerate() {
            let moved = |by: f64| {
                let mut moved = numbers(&x);
                moved[at] += by;
                contrast(&moved, &signs)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - expected).abs() < 1e-7, "contrast, {at}: {slope}, not {expected}");
        }
        let three = Tensor::new(3.0_f32, &Device::Cpu).unwrap();
        let thrice = numbers(&scaled(&*machine, &told.slopes[0], &three).unwrap());
        assert!(
            thrice.iter().zip(&slope).all(|(thrice, once)| (thrice - 3.0 * once).abs() < 1e-6 * once.abs() + 1e-12)
        );
    }
    // a label that is no class
    let labels = Tensor::new(&[0_u32, 9], &Device::Cpu).unwrap();
    let told = loss(&*machine, &tensor(5, 2, 3), Rows::CrossEntropy { labels: &labels, smoothing: 0.0 }).unwrap();
    let Storage::Cpu(CpuStorage::F32(value)) = told.value else { panic!() };
    assert!(value[0].is_nan());
}
