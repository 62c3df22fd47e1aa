//! From layers to steps, for backends of our own: batch norm takes the residual and the ReLU that follow it along, linear
//! layers become 1 x 1 convolutions.

use super::{Layer, Op, Products, Program, Window};

/// What follows a normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum After {
    Nothing,
    /// Slope below 0; plain ReLU has 0.
    Leaky(f32),
}

impl After {
    /// Below 0; nothing has 1.
    pub(super) fn slope(self) -> f32 {
        if let After::Leaky(slope) = self { slope } else { 1.0 }
    }
}

/// An activation, by its value alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    Leaky(f32),
    Sigmoid,
    Tanh,
}

/// A sliding window over one image. A window has at most 255 places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slide {
    /// Height and width.
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) window: Window,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Index of the weight, outputs x inputs x places, where transposed inputs x outputs x places; the bias is the next
    /// parameter.
    Conv {
        window: Window,
        transposed: bool,
        weight: usize,
        bias: bool,
    },
    Norm {
        norm: usize,
        residual: Option<usize>,
        after: After,
    },
    Activation(Activation),
    Dropout {
        layer: usize,
        p: f32,
    },
    MaxPool(Slide),
    AvgPool(Slide),
    GlobalPool,
    Add(usize),
    Flatten,
}

/// One step: reads a value, makes a value.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) work: Work,
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Step {
    /// The values it reads.
    pub(super) fn reads(&self) -> impl Iterator<Item = usize> + use<> {
        let second = match self.work {
            Work::Norm { residual, .. } => residual,
            Work::Add(with) => Some(with),
            _ => None,
        };
        std::iter::once(self.from).chain(second)
    }
}

fn leaky(op: Op) -> Option<f32> {
    match op {
        Op::Relu => Some(0.0),
        Op::LeakyRelu(slope) => Some(slope),
        _ => None,
    }
}

pub(super) fn steps(program: &Program) -> Vec<Step> {
    let layers = &program.layers;
    let looked_at = |value: usize| {
        value == program.features || value == program.logits || program.taps.iter().any(|(_, tap)| *tap == value)
    };
    let readers = |value: usize| -> Vec<usize> {
        let reads = |layer: &Layer| layer.from == value || layer.op == Op::Add(value);
        (0..layers.len()).filter(|&index| reads(&layers[index])).collect()
    };
    // the one layer that reads the value, if nobody else sees it
    let only = |value: usize| match readers(value).as_slice() {
        [one] if !looked_at(value) => Some(*one),
        _ => None,
    };
    let mut done = vec![false; layers.len()];
    let mut steps = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        if done[index] {
            continue;
        }
        let (from, mut to) = (layer.from, index + 1);
        let [_, height, width] = program.shapes[from];
        let [_, out_height, out_width] = program.shapes[to];
        let slide = |window: Window| Slide { input: [height, width], output: [out_height, out_width], window };
        let weight = layer.parameter;
        let work = match layer.op {
            Op::Conv { window, bias, .. } => Work::Conv { window, transposed: false, weight, bias },
            Op::ConvTranspose { window, bias, .. } => Work::Conv { window, transposed: true, weight, bias },
            // the builder flattens images first
            Op::Linear { bias, .. } => Work::Conv { window: Window::new(1, 1, 0), transposed: false, weight, bias },
            Op::BatchNorm => {
                let (mut residual, mut after) = (None, After::Nothing);
                let mut next = only(to);
                if let Some(add) = next
                    && let Op::Add(with) = layers[add].op
                {
                    let other = if layers[add].from == to { with } else { layers[add].from };
                    // only if the other summand is there already, and a ReLU follows
                    next = only(add + 1).filter(|&relu| other < to && leaky(layers[relu].op).is_some());
                    if next.is_some() {
                        (residual, to) = (Some(other), add + 1);
                        done[add] = true;
                    }
                }
                if let Some(relu) = next
                    && let Some(slope) = leaky(layers[relu].op)
                {
                    (after, to) = (After::Leaky(slope), relu + 1);
                    done[relu] = true;
                }
                Work::Norm { norm: layer.norm, residual, after }
            }
            Op::Relu => Work::Activation(Activation::Leaky(0.0)),
            Op::LeakyRelu(slope) => Work::Activation(Activation::Leaky(slope)),
            Op::Sigmoid => Work::Activation(Activation::Sigmoid),
            Op::Tanh => Work::Activation(Activation::Tanh),
            Op::Dropout(p) => Work::Dropout { layer: index, p },
            Op::MaxPool(window) => Work::MaxPool(slide(window)),
            Op::AvgPool(window) => Work::AvgPool(slide(window)),
            Op::GlobalPool => Work::GlobalPool,
            Op::Add(with) => Work::Add(with),
            Op::Flatten => Work::Flatten,
        };
        steps.push(Step { work, from, to });
    }
    steps
}

/// For each value, the last step that reads it.
pub(super) fn last_readers(program: &Program, steps: &[Step]) -> Vec<usize> {
    let mut last = vec![0; program.shapes.len()];
    for (index, step) in steps.iter().enumerate() {
        step.reads().for_each(|value| last[value] = index);
    }
    last
}

/// Which values have a gradient, where theta or the input are tracked: those that depend on something that is.
pub(super) fn needed(program: &Program, steps: &[Step], [theta, x]: [bool; 2]) -> Vec<bool> {
    let mut needed = vec![false; program.shapes.len()];
    needed[0] = x;
    for step in steps {
        let own = matches!(step.work, Work::Conv { .. } | Work::Norm { .. });
        needed[step.to] = (theta && own) || step.reads().any(|value| needed[value]);
    }
    needed
}

/// For each value, whether it is in bf16, in a network that computes so: images are, and what becomes of them up to where
/// they are pooled or flattened to vectors. Those stay f32, and so do logits, whose least differences count.
pub(super) fn half(program: &Program, steps: &[Step]) -> Vec<bool> {
    let image = |value: usize| program.shapes[value][1..] != [1, 1];
    let mut half = vec![false; program.shapes.len()];
    if program.products != Products::Bf16 {
        return half;
    }
    half[0] = image(0);
    for step in steps {
        half[step.to] = match step.work {
            Work::Conv { .. } => (half[step.from] || image(step.to)) && step.to != program.logits,
            Work::GlobalPool | Work::Flatten => false,
            _ => half[step.from],
        };
    }
    // whatever adds two of different kinds is no network of ours: all f32, then
    let mixed = |step: &Step| {
        !matches!(step.work, Work::Conv { .. }) && step.reads().any(|value| half[value] != half[step.from])
    };
    if steps.iter().any(mixed) { vec![false; half.len()] } else { half }
}
