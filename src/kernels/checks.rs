//! What the tests of backends share: networks, and everything that comes out of them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::{Builder, Gradient, Mode, Network, Op, Products, Program, Sink, Window};
use crate::rng::Rng;

/// Every kind of layer, sizes that fill no vector, strides that fit no image.
pub(super) fn program() -> Program {
    program_of([Op::Tanh, Op::Sigmoid])
}

pub(super) fn program_of(curves: [Op; 2]) -> Program {
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

pub(super) fn normal(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.normal() * scale).collect()
}

/// Logits, features, a tap, moments, gradients of input and theta.
pub(super) fn run(network: &dyn Network, program: &Program, batch: usize, dtype: DType) -> Vec<Tensor> {
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
    let stats = Tensor::ones(program.all_statistics(), dtype, device).unwrap();
    let mode = Mode { batch: vec![true, false], branch: 0, rng: Some(Rng::new(3)), taps: vec![4] };
    let sink = Arc::new(Sink::default());
    let pieces: Vec<Tensor> = theta.iter().map(|piece| piece.as_tensor().clone()).collect();
    let done = network.forward(&pieces, &stats, &x, &mode, &sink).unwrap();
    let weights = Tensor::from_vec(normal(batch * 5, 4, 1.0), (batch, 5), device).unwrap();
    let loss = (&done.logits * weights.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
    let loss = (loss + done.features.sqr().unwrap().sum_all().unwrap()).unwrap();
    sink.open();
    let store = loss.backward().unwrap();
    let of_theta: Vec<Tensor> = match sink.close() {
        Some(Gradient::Host(own)) => vec![Tensor::from_slice(&own, own.len(), device).unwrap()],
        Some(Gradient::Device(own)) => vec![own],
        None => pieces.iter().map(|piece| store.get(piece).unwrap().clone()).collect(),
    };
    vec![
        done.logits,
        done.features,
        done.taps[0].clone(),
        done.moments.unwrap().values,
        store.get(&x).unwrap().clone(),
        Tensor::cat(&of_theta, 0).unwrap(),
    ]
}

pub(super) fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Three convolutions with batch norm, the second and the third with a residual, and a linear layer.
pub(super) fn residual() -> Program {
    let mut b = Builder::new([16, 8, 8], 1);
    let conv = Op::Conv { out: 16, window: Window::new(3, 1, 1), bias: false };
    let mut x = b.layer("a", conv, 0).unwrap();
    x = b.layer("b", Op::BatchNorm, x).unwrap();
    x = b.layer("", Op::LeakyRelu(0.1), x).unwrap();
    x = b.layer("c", conv, x).unwrap();
    x = b.layer("d", Op::BatchNorm, x).unwrap();
    x = b.layer("", Op::Add(0), x).unwrap();
    x = b.layer("", Op::Relu, x).unwrap();
    let before = x;
    x = b.layer("f", Op::Conv { out: 16, window: Window::new(1, 1, 0), bias: false }, x).unwrap();
    x = b.layer("g", Op::BatchNorm, x).unwrap();
    x = b.layer("", Op::Add(before), x).unwrap();
    x = b.layer("", Op::Relu, x).unwrap();
    x = b.layer("", Op::GlobalPool, x).unwrap();
    b.layer("e", Op::Linear { out: 5, bias: true }, x).unwrap();
    Program { products: Products::Bf16, ..b.finish(x) }
}

/// Convolutions with batch norm on few channels, by tiles and directly, with channels that fill no vector.
pub(super) fn stem() -> Program {
    let mut b = Builder::new([3, 11, 9], 1);
    let conv = |out: usize, kernel: usize, stride: usize| Op::Conv {
        out,
        window: Window::new(kernel, stride, kernel / 2),
        bias: false,
    };
    let mut x = 0;
    for (name, layer) in [("a", conv(70, 3, 1)), ("c", conv(37, 3, 1)), ("e", conv(41, 5, 2)), ("g", conv(41, 1, 1))] {
        x = b.layer(name, layer, x).unwrap();
        x = b.layer(&format!("{name}n"), Op::BatchNorm, x).unwrap();
        x = b.layer("", Op::Relu, x).unwrap();
    }
    x = b.layer("", Op::GlobalPool, x).unwrap();
    b.layer("i", Op::Linear { out: 5, bias: true }, x).unwrap();
    b.finish(x)
}

/// Logits by running statistics, with the gradient of theta if it is wanted.
pub(super) fn answer(network: &dyn Network, program: &Program, dtype: DType, tracked: bool) -> Vec<f64> {
    let device = &Device::Cpu;
    let theta =
        Tensor::from_vec(normal(program.len(), 1, 0.1), program.len(), device).unwrap().to_dtype(dtype).unwrap();
    let theta: Vec<Tensor> = network.pieces().into_iter().map(|p| theta.narrow(0, p.start, p.len()).unwrap()).collect();
    let theta: Vec<Tensor> = theta
        .into_iter()
        .map(|piece| if tracked { Var::from_tensor(&piece).unwrap().into_inner() } else { piece })
        .collect();
    let [c, h, w] = program.input;
    let x = normal(37 * c * h * w, 2, 1.0);
    let x = Tensor::from_vec(x, (37, c, h, w), device).unwrap().to_dtype(dtype).unwrap();
    let count = program.all_statistics();
    let stats: Vec<f32> = normal(count, 3, 0.3).into_iter().map(|draw| draw.abs() + 0.5).collect();
    let stats = Tensor::from_vec(stats, count, device).unwrap().to_dtype(dtype).unwrap();
    let mode = Mode { batch: vec![false; program.norms.len()], branch: 0, rng: None, taps: Vec::new() };
    numbers(&network.forward(&theta, &stats, &x, &mode, &Arc::default()).unwrap().logits)
}
