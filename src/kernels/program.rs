//! A network as plain data: layers in the order they run, with shapes, parameters and batch norms worked out once.

use std::ops::Range;

use crate::error::{Error, Result};

/// A square window that slides over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    #[must_use]
    pub const fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel, stride, padding }
    }

    /// Pairs of a position along an output and a place of the window that sees one of `inputs`.
    fn seen(self, inputs: usize, outputs: usize) -> usize {
        let range = self.padding..self.padding + inputs;
        let places = |at: usize| (0..self.kernel).filter(|place| range.contains(&(at * self.stride + place))).count();
        (0..outputs).map(places).sum()
    }

    /// How often it fits along `size`.
    fn fits(self, size: usize) -> Option<usize> {
        Some((size + 2 * self.padding).checked_sub(self.kernel)? / self.stride + 1)
    }
}

/// What a layer does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Conv {
        out: usize,
        window: Window,
        bias: bool,
    },
    ConvTranspose {
        out: usize,
        window: Window,
        bias: bool,
    },
    Linear {
        out: usize,
        bias: bool,
    },
    BatchNorm,
    Relu,
    LeakyRelu(f32),
    Sigmoid,
    Tanh,
    Dropout(f32),
    MaxPool(Window),
    /// Zeros of the padding count, as in PyTorch.
    AvgPool(Window),
    GlobalPool,
    /// Adds another value of the same shape.
    Add(usize),
    Flatten,
}

/// One layer. Values are numbered: 0 is the input, layer i makes value i + 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Torchvision's name; empty for layers without parameters.
    pub name: String,
    pub op: Op,
    /// The value it reads.
    pub from: usize,
    /// Index of its first parameter.
    pub parameter: usize,
    /// Index of its batch norm.
    pub norm: usize,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal, standard deviation sqrt(2 / fan): Kaiming for ReLU.
    Normal {
        deviation: f32,
    },
    /// Uniform in [-bound, bound].
    Uniform {
        bound: f32,
    },
    Constant(f32),
}

/// A parameter in theta, in PyTorch's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub init: Init,
}

/// A batch norm; its weight and bias on branch b are the parameters `parameter + 2 b` and the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    pub name: String,
    pub channels: usize,
    pub parameter: usize,
}

impl Norm {
    /// The name of its weights and statistics on a branch; branch 0 has torchvision's.
    #[must_use]
    pub fn on(&self, branch: usize) -> String {
        if branch == 0 { self.name.clone() } else { format!("{}.branch{branch}", self.name) }
    }
}

/// How convolutions and linear layers are computed, where the device has a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32, by Winograd's algorithm where that is faster.
    #[default]
    Winograd,
    /// In f32, as plain sums of products.
    Direct,
    /// Both factors rounded to bf16, products and sums in f32; forward and back.
    Bf16,
}

/// A whole network.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Channels, height, width.
    pub input: [usize; 3],
    pub layers: Vec<Layer>,
    /// Of every value: channels, height, width.
    pub shapes: Vec<[usize; 3]>,
    pub parameters: Vec<Parameter>,
    pub norms: Vec<Norm>,
    /// Sets of batch-norm weights and statistics: 1, or 2 with auxiliary batch norm.
    pub branches: usize,
    /// Names of values that may be looked at.
    pub taps: Vec<(String, usize)>,
    pub features: usize,
    pub logits: usize,
    pub products: Products,
}

impl Program {
    /// Number of parameters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range.end)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// Elements of a value, one image.
    #[must_use]
    pub fn size(&self, value: usize) -> usize {
        self.shapes[value].iter().product()
    }

    /// Where the statistics of a batch norm lie in the vector of all, mean before variance. Those of a branch follow each other.
    #[must_use]
    pub fn statistics(&self, norm: usize, branch: usize) -> Range<usize> {
        let length = |norms: &[Norm]| 2 * norms.iter().map(|norm| norm.channels).sum::<usize>();
        let start = branch * length(&self.norms) + length(&self.norms[..norm]);
        start..start + length(&self.norms[norm..=norm])
    }

    /// The length of that vector.
    #[must_use]
    pub fn all_statistics(&self) -> usize {
        2 * self.branches * self.norms.iter().map(|norm| norm.channels).sum::<usize>()
    }

    /// Multiply-adds of convolutions and linear layers as plain sums, an image: forward, and for all parameters' gradients. What is
    /// multiplied by a padding's zero is none.
    #[must_use]
    pub fn multiply_adds(&self) -> [usize; 2] {
        let mut both = [0; 2];
        for (layer, &[outputs, height, width]) in self.layers.iter().zip(self.shapes.iter().skip(1)) {
            let [inputs, high, wide] = self.shapes[layer.from];
            let products = match layer.op {
                Op::Conv { window, .. } => window.seen(high, height) * window.seen(wide, width) * inputs * outputs,
                Op::ConvTranspose { window, .. } => {
                    window.seen(height, high) * window.seen(width, wide) * inputs * outputs
                }
                Op::Linear { out, .. } => self.size(layer.from) * out,
                _ => 0,
            };
            // nobody asks for the gradient of the images
            let of_images =
                layer.from == 0 || matches!(self.layers[layer.from - 1], Layer { op: Op::Flatten, from: 0, .. });
            let back = if of_images { 1 } else { 2 };
            both = [both[0] + products, both[1] + back * products];
        }
        both
    }
}

/// Writes a program, checking shapes as it goes. Every method gives the new value's number.
#[derive(Debug)]
pub struct Builder {
    program: Program,
    /// Standard deviation of convolutions' weights, where it is not Kaiming's.
    pub deviation: Option<f32>,
}

impl Builder {
    #[must_use]
    pub fn new(input: [usize; 3], branches: usize) -> Self {
        let program = Program {
            input,
            layers: Vec::new(),
            shapes: vec![input],
            parameters: Vec::new(),
            norms: Vec::new(),
            branches,
            taps: Vec::new(),
            features: 0,
            logits: 0,
            products: Products::default(),
        };
        Self { program, deviation: None }
    }

    fn parameter(&mut self, name: String, shape: Vec<usize>, init: Init) {
        let start = self.program.len();
        let range = start..start + shape.iter().product::<usize>();
        self.program.parameters.push(Parameter { name, shape, range, init });
    }

    /// A parameter that no layer reads.
    pub fn free(&mut self, name: &str, shape: Vec<usize>, init: Init) {
        self.parameter(name.to_owned(), shape, init);
    }

    #[must_use]
    pub fn shape(&self, value: usize) -> [usize; 3] {
        self.program.shapes[value]
    }

    /// Adds a layer that reads `from`. Convolutions start by Kaiming's rule for ReLU over the fan out, as torchvision's
    /// residual networks do, linear layers and all biases uniform in +-1/sqrt(fan in), batch norms at 1 and 0.
    pub fn layer(&mut self, name: &str, op: Op, mut from: usize) -> Result<usize> {
        if matches!(op, Op::Linear { .. }) && self.shape(from)[1..] != [1, 1] {
            from = self.layer("", Op::Flatten, from)?;
        }
        let [channels, height, width] = self.program.shapes[from];
        let too_small = |window: Window| {
            Error::invalid(format!(
                "the images are too small: `{name}` would slide a window of {0} x {0} over {height} x {width}",
                window.kernel
            ))
        };
        let slide = |out: usize, window: Window| -> Result<[usize; 3]> {
            let fit = |size| window.fits(size).ok_or_else(|| too_small(window));
            Ok([out, fit(height)?, fit(width)?])
        };
        let parameter = self.program.parameters.len();
        let norm = self.program.norms.len();
        let shape = match op {
            Op::Conv { out, window, bias } => {
                let shape = slide(out, window)?;
                let area = window.kernel * window.kernel;
                let deviation = self.deviation.unwrap_or_else(|| (2.0 / (out * area) as f32).sqrt());
                self.parameter(
                    format!("{name}.weight"),
                    vec![out, channels, window.kernel, window.kernel],
                    Init::Normal { deviation },
                );
                if bias {
                    let bound = 1.0 / ((channels * area) as f32).sqrt();
                    self.parameter(format!("{name}.bias"), vec![out], Init::Uniform { bound });
                }
                shape
            }
            Op::ConvTranspose { out, window, bias } => {
                let grow = |size: usize| {
                    ((size - 1) * window.stride + window.kernel)
                        .checked_sub(2 * window.padding)
                        .filter(|&grown| grown > 0)
                        .ok_or_else(|| too_small(window))
                };
                let shape = [out, grow(height)?, grow(width)?];
                let kernel = vec![channels, out, window.kernel, window.kernel];
                let fan_in = (channels * window.kernel * window.kernel) as f32;
                let deviation = self.deviation.unwrap_or_else(|| (2.0 / fan_in).sqrt());
                self.parameter(format!("{name}.weight"), kernel, Init::Normal { deviation });
                if bias {
                    // PyTorch takes the weight's second dimension for the fan in, here too
                    let bound = 1.0 / ((out * window.kernel * window.kernel) as f32).sqrt();
                    self.parameter(format!("{name}.bias"), vec![out], Init::Uniform { bound });
                }
                shape
            }
            Op::Linear { out, bias } => {
                let inputs = channels * height * width;
                let bound = 1.0 / (inputs as f32).sqrt();
                self.parameter(format!("{name}.weight"), vec![out, inputs], Init::Uniform { bound });
                if bias {
                    self.parameter(format!("{name}.bias"), vec![out], Init::Uniform { bound });
                }
                [out, 1, 1]
            }
            Op::BatchNorm => {
                let norm = Norm { name: name.to_owned(), channels, parameter };
                for branch in 0..self.program.branches {
                    let name = norm.on(branch);
                    self.parameter(format!("{name}.weight"), vec![channels], Init::Constant(1.0));
                    self.parameter(format!("{name}.bias"), vec![channels], Init::Constant(0.0));
                }
                self.program.norms.push(norm);
                [channels, height, width]
            }
            Op::MaxPool(window) | Op::AvgPool(window) => {
                if window.kernel > 15 || window.padding >= window.kernel {
                    return Err(Error::invalid(format!("`{name}` pools over a window that no backend has")));
                }
                slide(channels, window)?
            }
            Op::GlobalPool => [channels, 1, 1],
            Op::Flatten => [channels * height * width, 1, 1],
            Op::Add(with) => {
                if self.program.shapes[with] != self.program.shapes[from] {
                    return Err(Error::invalid(format!("`{name}` adds values of different shapes")));
                }
                [channels, height, width]
            }
            Op::Relu | Op::LeakyRelu(_) | Op::Sigmoid | Op::Tanh | Op::Dropout(_) => [channels, height, width],
        };
        self.program.layers.push(Layer { name: name.to_owned(), op, from, parameter, norm });
        self.program.shapes.push(shape);
        Ok(self.program.layers.len())
    }

    /// Lets a value be looked at by name.
    pub fn tap(&mut self, name: impl Into<String>, value: usize) {
        self.program.taps.push((name.into(), value));
    }

    /// The last value is the result; `features` is what the last layer with parameters reads.
    #[must_use]
    pub fn finish(mut self, features: usize) -> Program {
        let logits = self.program.layers.len();
        self.tap("features", features);
        self.tap("logits", logits);
        Program { features, logits, ..self.program }
    }
}
