//! The fast path against the reference in f64, and against itself on other vector instructions.

use candle_core::DType;

use super::buffer::Pool;
use super::conv::Conv;
use super::geometry::Geometry;
use super::number::Value;
use super::weights::{Ready, Weights};
use super::*;
use crate::kernels::checks::{answer, normal, numbers, program, program_of, residual, run, stem};
use crate::kernels::{Op, Products, Window, reference};

#[test]
fn every_layer_is_like_the_reference_in_f64() {
    let program = Arc::new(program());
    for batch in [1, 2, 7, 300] {
        let fast = run(&Cpu::new(program.clone()), &program, batch, DType::F32);
        let slow = run(reference(&program).as_ref(), &program, batch, DType::F64);
        for (index, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
            let (fast, slow) = (numbers(fast), numbers(slow));
            let largest = slow.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            let off = fast.iter().zip(&slow).fold(0.0_f64, |a, (f, s)| a.max((f - s).abs()));
            assert!(off <= 2e-4 * largest, "batch {batch}, result {index}: {off} of {largest}");
        }
    }
}

/// Output, gradient of the input added to what is there, gradient of the weights: as sums in f64.
fn convolved(geometry: &Geometry, batch: usize, [inputs, outputs]: [usize; 2], data: [&[f32]; 4]) -> [Vec<f64>; 3] {
    let [theta, x, above, bias] = data;
    let ([height, width], [out_height, out_width]) = (geometry.input, geometry.output);
    let Window { kernel, stride, padding } = geometry.window;
    let (mut y, mut below) = (vec![0.0; above.len()], vec![1.0; x.len()]);
    let mut of_theta = vec![0.0; theta.len()];
    for (row, column) in (0..out_height).flat_map(|row| (0..out_width).map(move |column| (row, column))) {
        for (image, output) in (0..batch).flat_map(|image| (0..outputs).map(move |output| (image, output))) {
            let to = ((row * out_width + column) * batch + image) * outputs + output;
            y[to] = f64::from(bias[output]);
            for place in 0..kernel * kernel {
                let Some(down) = (row * stride + place / kernel).checked_sub(padding).filter(|&at| at < height) else {
                    continue;
                };
                let Some(right) = (column * stride + place % kernel).checked_sub(padding).filter(|&at| at < width)
                else {
                    continue;
                };
                for input in 0..inputs {
                    let from = ((down * width + right) * batch + image) * inputs + input;
                    let weight = (output * inputs + input) * kernel * kernel + place;
                    y[to] += f64::from(x[from]) * f64::from(theta[weight]);
                    below[from] += f64::from(above[to]) * f64::from(theta[weight]);
                    of_theta[weight] += f64::from(x[from]) * f64::from(above[to]);
                }
            }
        }
    }
    [y, below, of_theta]
}

/// What `convolved` computes, by the kernels; whether the values that are read and those that are made are in bf16.
fn convolve(conv: &Conv, batch: usize, data: [&[f32]; 4], [reads, makes]: [bool; 2]) -> [Vec<f32>; 3] {
    let [theta, x, above, bias] = data;
    let pool = Arc::new(Pool::default());
    let (mut y, mut below) = (Value::of(&vec![9.0; above.len()], makes), Value::of(&vec![1.0; x.len()], makes));
    let mut of_theta = vec![9.0; theta.len()];
    let (x, above) = (Value::of(x, reads), Value::of(above, reads));
    let packed = [conv.pack(theta, &pool), conv.pack_back(theta, &pool)].map(|packed| Ready::Packed(Arc::new(packed)));
    conv.forward(batch, &x, &packed[0], Some(bias), &pool, &mut y);
    conv.backward(batch, &above, &packed[1], true, &pool, &mut below);
    conv.gradient(batch, &x, &above, &pool, &mut of_theta);
    // the same bits where tasks pack what they come to
    let [mut again, mut again_below] =
        [(&data[2], 9.0), (&data[1], 1.0)].map(|(like, value)| Value::of(&vec![value; like.len()], makes));
    if conv.once(batch) {
        conv.forward(batch, &x, &Ready::Theta(theta), Some(bias), &pool, &mut again);
        assert!(again.numbers() == y.numbers(), "batch {batch}: other bits forward");
    }
    if conv.once_back(batch) {
        conv.backward(batch, &above, &Ready::Theta(theta), true, &pool, &mut again_below);
        assert!(again_below.numbers() == below.numbers(), "batch {batch}: other bits back");
    }
    [y.numbers(), below.numbers(), of_theta]
}

/// A network's count of multiply-adds, by what the loops go over.
#[test]
fn multiply_adds_are_what_the_loops_go_over() {
    let program = program();
    let products = program.layers.iter().zip(&program.shapes[1..]).map(|(layer, to)| {
        let from = program.shapes[layer.from];
        let of = |window, transposed| {
            let geometry = Geometry { output: [to[1], to[2]], input: [from[1], from[2]], window, transposed };
            geometry.products() * from[0] * to[0]
        };
        match layer.op {
            Op::Conv { window, .. } => of(window, false),
            Op::ConvTranspose { window, .. } => of(window, true),
            Op::Linear { out, .. } => from.iter().product::<usize>() * out,
            _ => 0,
        }
    });
    let products: Vec<usize> = products.collect();
    assert_eq!(products.iter().filter(|&&count| count > 0).count(), 5);
    let all: usize = products.iter().sum();
    assert_eq!(program.multiply_adds(), [all, 2 * all - products[0]]);
}

#[test]
fn every_way_of_convolving_is_the_plain_sum() {
    let cases = [
        // size, channels, kernel, padding, batch
        ([4, 4], [8, 8], 3, 1, 1),
        ([13, 10], [24, 70], 3, 1, 3),
        ([9, 7], [70, 40], 3, 1, 70),
        ([8, 8], [33, 130], 3, 1, 5),
        ([10, 9], [17, 9], 3, 0, 4),
        ([6, 11], [9, 16], 3, 2, 2),
        // each weight is read by one task, and they are many
        ([4, 4], [260, 460], 3, 1, 2),
        ([3, 2], [300, 48], 1, 0, 7),
        ([3, 2], [19, 160], 1, 0, 2),
        ([1, 1], [140, 64], 1, 0, 100),
        // of 1 x 1 windows too, by several
        ([3, 5], [48, 70], 1, 0, 60),
    ];
    for (size, [inputs, outputs], kernel, padding, batch) in cases {
        let (window, taps) = (Window::new(kernel, 1, padding), kernel * kernel);
        let output = size.map(|size| size + 2 * padding + 1 - kernel);
        let geometry = Geometry { output, input: size, window, transposed: false };
        let weights = Weights { inputs, outputs, input_step: taps, output_step: inputs * taps, taps };
        let theta = normal(inputs * outputs * taps, 1, 0.1);
        let x = normal(size[0] * size[1] * batch * inputs, 2, 1.0);
        let above = normal(output[0] * output[1] * batch * outputs, 3, 1.0);
        let bias = normal(outputs, 4, 1.0);
        let truth = convolved(&geometry, batch, [inputs, outputs], [&theta, &x, &above, &bias]);
        let mut before: Option<[Vec<f32>; 3]> = None;
        for (products, level) in [Products::Direct, Products::Winograd]
            .into_iter()
            .flat_map(|way| simd::Level::all().into_iter().map(move |l| (way, l)))
        {
            let conv = Conv::new(level, geometry, weights, products);
            let direct = products == Products::Direct;
            assert!(direct || kernel == 1 || conv.is_winograd(), "{size:?}");
            let found = convolve(&conv, batch, [&theta, &x, &above, &bias], [false, false]);
            for (index, (found, truth)) in found.iter().zip(&truth).enumerate() {
                let largest = truth.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                let off = found.iter().zip(truth).fold(0.0_f64, |a, (f, t)| a.max((f64::from(*f) - t).abs()));
                let limit = if direct { 2e-6 } else { 2e-5 };
                assert!(
                    off <= limit * largest,
                    "{size:?}, batch {batch}, direct {direct}, result {index}: {}",
                    off / largest
                );
            }
            // the same bits at all levels, each way
            let same = |other: &[Vec<f32>; 3]| other.iter().zip(&found).all(|(a, b)| a == b);
            assert!(level == simd::Level::best() || before.as_ref().is_some_and(same), "{size:?} {direct} {level:?}");
            before = Some(found);
        }
    }
}

/// The nearest bf16, by another way than the kernels': what is cut off decides.
fn to_bf16(x: &[f32]) -> Vec<f32> {
    let nearest = |x: &f32| {
        let down = f32::from_bits(x.to_bits() & 0xffff_0000);
        let up = f32::from_bits((x.to_bits() & 0xffff_0000).wrapping_add(0x1_0000));
        let (below, above) = ((x - down).abs(), (up - x).abs());
        let even = down.to_bits() >> 16 & 1 == 0;
        if below < above || (below == above && even) { down } else { up }
    };
    x.iter().map(nearest).collect()
}

#[test]
fn bf16_is_the_plain_sum_of_rounded_factors() {
    let cases = [
        // size, channels, kernel, stride, padding, batch
        ([4, 4], [8, 8], 3, 1, 1, 1),
        ([8, 9], [64, 64], 3, 1, 1, 64),
        ([9, 7], [3, 40], 3, 1, 1, 33),
        ([8, 8], [33, 130], 3, 2, 1, 5),
        ([7, 6], [100, 48], 1, 1, 0, 40),
        ([9, 8], [16, 20], 1, 2, 0, 16),
        ([11, 12], [5, 17], 5, 3, 2, 70),
        ([1, 1], [130, 10], 1, 1, 0, 100),
    ];
    for (size, [inputs, outputs], kernel, stride, padding, batch) in cases {
        let window = Window::new(kernel, stride, padding);
        let output = size.map(|size| (size + 2 * padding - kernel) / stride + 1);
        let geometry = Geometry { output, input: size, window, transposed: false };
        let taps = kernel * kernel;
        let weights = Weights { inputs, outputs, input_step: taps, output_step: inputs * taps, taps };
        let theta = normal(inputs * outputs * taps, 1, 0.1);
        let x = normal(size[0] * size[1] * batch * inputs, 2, 1.0);
        let above = normal(output[0] * output[1] * batch * outputs, 3, 1.0);
        let bias = normal(outputs, 4, 1.0);
        let rounded = [&theta, &x, &above].map(|x| to_bf16(x));
        let truth = convolved(&geometry, batch, [inputs, outputs], [&rounded[0], &rounded[1], &rounded[2], &bias]);
        let ways = simd::Level::all().into_iter().flat_map(|level| [false, true].map(|reads| (level, reads)));
        for (level, reads, makes) in ways.flat_map(|(level, reads)| [false, true].map(|makes| (level, reads, makes))) {
            let conv = Conv::new(level, geometry, weights, Products::Bf16);
            let [y, below, of_theta] = convolve(&conv, batch, [&theta, &x, &above, &bias], [reads, makes]);
            // a transposed convolution is a convolution's way back
            let turned = Conv::new(level, geometry.back(), weights.back(), Products::Bf16);
            let ones = vec![1.0; inputs];
            // Winograd's algorithm has limits of its own
            let exact = if conv.is_winograd() { 2e-5 } else { 2e-6 };
            let [wide, _, of_turned] = convolve(&turned, batch, [&theta, &above, &x, &ones], [reads, makes]);
            let results = [(&y, &truth[0], makes), (&below, &truth[1], makes), (&of_theta, &truth[2], false)];
            let results = results.into_iter().chain([(&wide, &truth[1], makes), (&of_turned, &truth[2], false)]);
            for (index, (found, truth, rounded)) in results.enumerate() {
                let largest = truth.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                for (found, truth) in found.iter().zip(truth) {
                    // half a unit in the last of eight binary places
                    let limit = exact * largest + if rounded { truth.abs() / 256.0 } else { 0.0 };
                    let off = (f64::from(*found) - truth).abs();
                    assert!(off <= limit, "{size:?} {level:?} {reads} {makes}, batch {batch}, result {index}: {off}");
                }
            }
        }
    }
}

#[test]
fn an_image_has_the_same_bits_in_any_batch() {
    [Products::Direct, Products::Winograd, Products::Bf16].into_iter().for_each(same_bits_in_any_batch);
}

fn same_bits_in_any_batch(products: Products) {
    let weights = Weights { inputs: 20, outputs: 70, input_step: 9, output_step: 180, taps: 9 };
    let geometry = Geometry { output: [9, 8], input: [9, 8], window: Window::new(3, 1, 1), transposed: false };
    let pool = Arc::new(Pool::default());
    let theta = normal(20 * 70 * 9, 1, 0.1);
    let image = normal(72 * 20, 2, 1.0);
    let conv = Conv::new(simd::Level::best(), geometry, weights, products);
    let packed = Ready::Packed(Arc::new(conv.pack(&theta, &pool)));
    let half = products == Products::Bf16;
    let forward = |batch: usize, x: &[f32]| {
        let mut y = Value::of(&vec![0.0; 72 * 70 * batch], half);
        conv.forward(batch, &Value::of(x, half), &packed, None, &pool, &mut y);
        y.numbers()
    };
    let alone = forward(1, &image);
    for batch in [2, 37, 150] {
        let mut x = normal(72 * 20 * batch, 3, 1.0);
        for (pixel, values) in image.chunks_exact(20).enumerate() {
            x[(pixel * batch + batch - 1) * 20..][..20].copy_from_slice(values);
        }
        let y = forward(batch, &x);
        for (pixel, values) in alone.chunks_exact(70).enumerate() {
            assert_eq!(&y[(pixel * batch + batch - 1) * 70..][..70], values, "batch {batch}, {products:?}");
        }
    }
}

#[test]
fn a_network_in_bf16_is_like_the_reference_in_f64() {
    let program = Arc::new(Program { products: Products::Bf16, ..program() });
    // lengths of the differences over those of the results: a value at the edge of ReLU or max-pool goes either way
    let limits = [0.006, 0.005, 0.005, 0.002, 0.12, 0.012];
    let slow = run(reference(&program).as_ref(), &program, 7, DType::F64);
    for level in simd::Level::all() {
        let fast = run(&Cpu::at(program.clone(), level), &program, 7, DType::F32);
        for (index, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
            let (fast, slow) = (numbers(fast), numbers(slow));
            let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = length(&mut fast.iter().zip(&slow).map(|(f, s)| f - s)) / length(&mut slow.iter().copied());
            assert!(off <= limits[index], "{level:?}, result {index}: {off}");
        }
    }
}

#[test]
fn folded_batch_norms_answer_like_others() {
    let program = Arc::new(residual());
    let truth = answer(reference(&program).as_ref(), &program, DType::F64, false);
    let largest = truth.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    for level in simd::Level::all() {
        let network = Cpu::at(program.clone(), level);
        for tracked in [false, true] {
            let found = answer(&network, &program, DType::F32, tracked);
            let off = found.iter().zip(&truth).fold(0.0_f64, |a, (f, t)| a.max((f - t).abs()));
            assert!(off <= 0.005 * largest, "{level:?}, tracked {tracked}: {off} of {largest}");
        }
    }
}

#[test]
fn folded_batch_norms_of_f32_have_the_same_bits() {
    for products in [Products::Direct, Products::Winograd] {
        for program in [residual(), stem()].map(|program| Arc::new(Program { products, ..program })) {
            for level in simd::Level::all() {
                let network = Cpu::at(program.clone(), level);
                let [folded, apart] = [false, true].map(|tracked| answer(&network, &program, DType::F32, tracked));
                assert!(folded == apart, "{products:?} {level:?}");
            }
        }
    }
}

#[test]
fn images_go_through_in_parts_with_the_same_bits() {
    let device = &candle_core::Device::Cpu;
    for products in [Products::Winograd, Products::Bf16] {
        let program = Arc::new(Program { products, ..stem() });
        let network = Cpu::new(program.clone());
        let theta = Tensor::from_vec(normal(program.len(), 1, 0.1), program.len(), device).unwrap();
        let x = Tensor::from_vec(normal(37 * 3 * 99, 2, 1.0), (37, 3, 11, 9), device).unwrap();
        let stats = Tensor::ones(program.all_statistics(), DType::F32, device).unwrap();
        let mode = Mode { batch: vec![false; program.norms.len()], branch: 0, rng: None, taps: vec![1, 3] };
        let sink = Arc::new(Sink::default());
        assert!(network.core.images().is_none_or(|images| images > 37), "the whole goes in one");
        let whole = network.forward(std::slice::from_ref(&theta), &stats, &x, &mode, &sink).unwrap();
        let parts = network.in_parts(&theta, &stats, &x, &mode, &sink, 16).unwrap();
        let all = |done: &Done| -> Vec<Vec<f64>> {
            [&done.logits, &done.features].into_iter().chain(&done.taps).map(numbers).collect()
        };
        assert!(all(&parts) == all(&whole), "{products:?}");
        let shapes =
            |done: &Done| [done.logits.dims().to_vec(), done.features.dims().to_vec(), done.taps[1].dims().to_vec()];
        assert_eq!(shapes(&parts), shapes(&whole));
    }
    // where an image sees others, they go together
    let program = Program { products: Products::Bf16, ..program() };
    let mode = Mode { batch: vec![false, true], branch: 0, rng: None, taps: Vec::new() };
    assert!(mode.mixes(&program));
    assert!(Mode { batch: vec![false, false], rng: Some(crate::rng::Rng::new(1)), ..mode.clone() }.mixes(&program));
    assert!(!Mode { batch: vec![false, false], ..mode }.mixes(&program));
}

#[test]
fn bf16_has_the_same_bits_for_any_number_of_threads() {
    let program = Arc::new(Program { products: Products::Bf16, ..program() });
    let results: Vec<Vec<Vec<f64>>> = [1, 2, 8]
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&Cpu::new(program.clone()), &program, 70, DType::F32).iter().map(numbers).collect())
        })
        .into();
    assert!(results[1] == results[0] && results[2] == results[0]);
}

#[test]
fn all_levels_give_the_same_bits() {
    let program = Arc::new(program());
    let results: Vec<Vec<Vec<f64>>> = simd::Level::all()
        .into_iter()
        .map(|level| run(&Cpu::at(program.clone(), level), &program, 5, DType::F32).iter().map(numbers).collect())
        .collect();
    for other in &results[1..] {
        for (index, (a, b)) in other.iter().zip(&results[0]).enumerate() {
            assert!(a == b, "result {index}");
        }
    }
}

/// A convolution by Winograd's algorithm, weights, and three images.
fn winograd(level: simd::Level, products: Products) -> (Conv, Vec<f32>, Vec<f32>) {
    let geometry = Geometry { output: [9, 8], input: [9, 8], window: Window::new(3, 1, 1), transposed: false };
    let weights = Weights { inputs: 20, outputs: 20, input_step: 9, output_step: 180, taps: 9 };
    (Conv::new(level, geometry, weights, products), normal(3600, 1, 0.1), normal(72 * 20 * 3, 2, 1.0))
}

/// Of all results of a network, without the curves, whose last bit is the C library's, and of some numbers more.
fn hash(level: simd::Level, products: Products, more: &[f32]) -> String {
    let program = Arc::new(Program { products, ..program_of([Op::Relu, Op::LeakyRelu(0.5)]) });
    let results = run(&Cpu::at(program.clone(), level), &program, 5, DType::F32);
    let results = results.iter().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let mut hasher = blake3::Hasher::new();
    for value in results.chain(more.iter().copied()) {
        hasher.update(&value.to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The bits of every kernel: other bits need a raised `kernels::VERSION`.
#[test]
fn changed_bits_need_a_raised_version() {
    const VERSION: u32 = 3;
    let more = |level: simd::Level, products: Products| -> Vec<f32> {
        let (conv, theta, data) = winograd(level, products);
        let half = products == Products::Bf16;
        let (pool, data, mut of_theta) = (Arc::new(Pool::default()), Value::of(&data, half), theta.clone());
        let mut y = Value::of(&data.numbers(), half);
        conv.forward(3, &data, &Ready::Packed(Arc::new(conv.pack(&theta, &pool))), None, &pool, &mut y);
        conv.gradient(3, &data, &y, &pool, &mut of_theta);
        y.numbers().into_iter().chain(of_theta).collect()
    };
    let best = simd::Level::best();
    let more_of_f32 = more(best, Products::Winograd);
    assert_eq!(
        (crate::kernels::VERSION, &*hash(best, Products::Winograd, &more_of_f32)),
        (VERSION, "bcb0dd5bb7b9c4a7")
    );
    let portable = simd::Level::Portable;
    let rounded = hash(portable, Products::Bf16, &more(portable, Products::Bf16));
    assert_eq!((crate::kernels::VERSION, &*rounded), (VERSION, "7baefcc3d8911ec4"));
    #[cfg(target_arch = "x86_64")]
    if tiles::available() {
        assert_eq!((crate::kernels::VERSION, &*hash(best, Products::Bf16, &[])), (VERSION, "339bbdd19ea2a4d6"));
    }
}

#[test]
fn activations_go_back_when_the_graph_is_dropped() {
    let program = Arc::new(program());
    let network = Cpu::new(program.clone());
    for _ in 0..2 {
        run(&network, &program, 4, DType::F32);
        assert_eq!(network.core.pool.lent(), 0);
    }
}
