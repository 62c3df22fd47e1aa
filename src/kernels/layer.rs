//! A network as a list of nodes, and the parameters that it asks for, with torchvision's names.

/// What a node computes from its input.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The image itself: [B, C, H, W].
    Input,
    Conv {
        name: String,
        input: usize,
        output: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    },
    /// Over channels; eps 1e-5, momentum 0.1.
    BatchNorm {
        name: String,
        channels: usize,
    },
    Relu,
    /// Window 3, stride 2, padding 1.
    MaxPool,
    /// Adds the value of another node.
    Add {
        with: usize,
    },
    /// The mean over height and width: [B, C].
    MeanPool,
    /// [B, C, H, W] to [B, C x H x W].
    Flatten,
    Linear {
        name: String,
        input: usize,
        output: usize,
    },
}

/// A node reads the value of an earlier one.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    pub from: usize,
}

/// A whole network. `features` is the node before the last linear layer; `taps` are nodes with a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    pub nodes: Vec<Node>,
    pub features: usize,
    pub taps: Vec<(String, usize)>,
}

impl Layers {
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: vec![Node { op: Op::Input, from: 0 }], features: 0, taps: Vec::new() }
    }

    /// Adds a node; its number is the name of its value.
    pub fn push(&mut self, op: Op, from: usize) -> usize {
        self.nodes.push(Node { op, from });
        self.nodes.len() - 1
    }

    pub fn conv(&mut self, name: &str, from: usize, channels: (usize, usize), kernel: usize, stride: usize) -> usize {
        let (input, output) = channels;
        self.push(Op::Conv { name: name.to_owned(), input, output, kernel, stride, padding: kernel / 2 }, from)
    }

    pub fn batch_norm(&mut self, name: &str, from: usize, channels: usize) -> usize {
        self.push(Op::BatchNorm { name: name.to_owned(), channels }, from)
    }

    pub fn linear(&mut self, name: &str, from: usize, input: usize, output: usize) -> usize {
        self.push(Op::Linear { name: name.to_owned(), input, output }, from)
    }

    pub fn tap(&mut self, name: &str, node: usize) {
        self.taps.push((name.to_owned(), node));
    }

    /// Names and shapes of the trained parameters, in the order of theta.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for node in &self.nodes {
            match &node.op {
                Op::Conv { name, input, output, kernel, .. } => {
                    all.push((format!("{name}.weight"), vec![*output, *input, *kernel, *kernel]));
                }
                Op::BatchNorm { name, channels } => {
                    all.push((format!("{name}.weight"), vec![*channels]));
                    all.push((format!("{name}.bias"), vec![*channels]));
                }
                Op::Linear { name, input, output } => {
                    all.push((format!("{name}.weight"), vec![*output, *input]));
                    all.push((format!("{name}.bias"), vec![*output]));
                }
                _ => {}
            }
        }
        all
    }

    /// Names and channels of the batch-norm layers.
    #[must_use]
    pub fn batch_norms(&self) -> Vec<(String, usize)> {
        let of = |node: &Node| match &node.op {
            Op::BatchNorm { name, channels } => Some((name.clone(), *channels)),
            _ => None,
        };
        self.nodes.iter().filter_map(of).collect()
    }
}
