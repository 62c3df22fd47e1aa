//! The fast path against the reference in f64, and against itself on other vector instructions.

use candle_core::{DType, Device, Var};

use super::*;
use crate::kernels::{Builder, Op, Window, reference};
use crate::rng::Rng;

/// Every kind of layer, sizes that fill no vector, strides that fit no image.
fn program() -> Program {
    program_of([Op::Tanh, Op::Sigmoid])
}

fn program_of(curves: [Op; 2]) -> Program {
    let mut b = Builder::new([3, 13, 10], 1);
    let conv = |out: usize, kernel: usize, stride: usize, bias: bool| Op::Conv {
        out,
        window: Window::new(kernel, stride, kernel / 2),
        bias,
    };
    let mut x = b.layer("a", conv(70, 3, 1, true), 0).unwrap();
    x = b.layer("b", Op::BatchNorm, x).unwrap();
    x = b.layer("", Op::LeakyRelu(0.2), x).unwrap();
    let first = b.layer("", Op::MaxPool(Window::new(3, 2, 1)), x).unwrap();
    x = b.layer("c", conv(70, 3, 1, false), first).unwrap();
    x = b.layer("d", Op::BatchNorm, x).unwrap();
    x = b.layer("", Op::Add(first), x).unwrap();
    x = b.layer("", Op::Relu, x).unwrap();
    x = b.layer("e", conv(37, 5, 3, false), x).unwrap();
    x = b.layer("", curves[0], x).unwrap();
    let window = Window::new(4, 2, 1);
    x = b.layer("f", Op::ConvTranspose { out: 9, window, bias: true }, x).unwrap();
    x = b.layer("", Op::Add(x), x).unwrap();
    x = b.layer("", Op::AvgPool(Window::new(2, 1, 1)), x).unwrap();
    x = b.layer("", curves[1], x).unwrap();
    x = b.layer("", Op::Dropout(0.25), x).unwrap();
    b.layer("g", Op::Linear { out: 5, bias: true }, x).unwrap();
    b.finish(x)
}

fn normal(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.normal() * scale).collect()
}

/// Logits, features, a tap, moments, gradients of input and theta.
fn run(network: &dyn Network, program: &Program, batch: usize, dtype: DType) -> Vec<Tensor> {
    let device = &Device::Cpu;
    let flat = Tensor::from_vec(normal(program.len(), 1, 0.1), program.len(), device).unwrap();
    let theta: Vec<Var> = network
        .pieces()
        .into_iter()
        .map(|piece| {
            let part = flat.narrow(0, piece.start, piece.len()).unwrap().to_dtype(dtype).unwrap();
            Var::from_tensor(&part).unwrap()
        })
        .collect();
    let [c, h, w] = program.input;
    let x = Tensor::from_vec(normal(batch * c * h * w, 2, 1.0), (batch, c, h, w), device).unwrap();
    let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
    let stats = Tensor::ones((2, 70), dtype, device).unwrap();
    let mode = Mode { batch: vec![true, false], branch: 0, rng: Some(Rng::new(3)), taps: vec![4] };
    let pieces: Vec<Tensor> = theta.iter().map(|piece| piece.as_tensor().clone()).collect();
    let done = network.forward(&pieces, &[stats.clone(), stats], &x, &mode).unwrap();
    let weights = Tensor::from_vec(normal(batch * 5, 4, 1.0), (batch, 5), device).unwrap();
    let loss = (&done.logits * weights.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
    let loss = (loss + done.features.sqr().unwrap().sum_all().unwrap()).unwrap();
    let store = loss.backward().unwrap();
    let of_theta: Vec<Tensor> = pieces.iter().map(|piece| store.get(piece).unwrap().clone()).collect();
    vec![
        done.logits,
        done.features,
        done.taps[0].clone(),
        done.moments[0].values.clone(),
        store.get(&x).unwrap().clone(),
        Tensor::cat(&of_theta, 0).unwrap(),
    ]
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

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

/// The bits of every kernel: other bits need a raised `kernels::VERSION`. Without the curves, whose last bit is the C
/// library's.
#[test]
fn changed_bits_need_a_raised_version() {
    const BITS: (u32, &str) = (1, "2dbaa6254e64f735");
    let program = Arc::new(program_of([Op::Relu, Op::LeakyRelu(0.5)]));
    let mut hasher = blake3::Hasher::new();
    for tensor in run(&Cpu::new(program.clone()), &program, 5, DType::F32) {
        for value in tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
            hasher.update(&value.to_le_bytes());
        }
    }
    let found = (crate::kernels::VERSION, &hasher.finalize().to_hex()[..16]);
    assert_eq!(found, BITS);
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
