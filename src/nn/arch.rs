//! Architectures: what a recipe may say after `arch =`, and the layers it means.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::layer::{Layers, Op};
use crate::settings::{COUNT, Entry, Field, Type};

/// All that is needed to build a network and to feed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arch {
    pub name: String,
    pub shape: Shape,
    pub classes: usize,
    /// Channels, height, width.
    pub size: [usize; 3],
    /// Per channel; a network sees (pixel / 255 - mean) / std.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Linear layers with ReLU between, on the flattened image.
    Mlp { hidden: Vec<usize> },
    /// He et al., CVPR 2016, <https://arxiv.org/abs/1512.03385>; the bottleneck's stride is in its 3x3, as torchvision's.
    Resnet { bottleneck: bool, blocks: Vec<usize>, stem: Stem, width: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3x3, stride 1.
    Cifar,
    /// 3x3, stride 1, then max-pool.
    CifarPool,
    /// 7x7, stride 2, then max-pool.
    Imagenet,
}

const RESNET: &[Field] = &[
    Field::or(
        "stem",
        Type::Choice(&["cifar", "cifar_pool", "imagenet"]),
        "\"cifar\"",
        "first layers; cifar is 3x3 without max-pool",
    ),
    Field::or("width", COUNT, "64", "channels of the first stage; the others have 2, 4 and 8 times as many"),
];
const HE: &str = "He et al., Deep residual learning, CVPR 2016, https://arxiv.org/abs/1512.03385";

const MLP: Entry = Entry {
    name: "mlp",
    about: "linear layers with ReLU between",
    paper: "",
    version: 1,
    fields: &[Field::or("hidden", Type::List(&COUNT), "[128]", "units of each hidden layer")],
};
const RESNET18: Entry =
    Entry { name: "resnet18", about: "residual network of 18 layers", paper: HE, version: 1, fields: RESNET };
const RESNET34: Entry =
    Entry { name: "resnet34", about: "residual network of 34 layers", paper: HE, version: 1, fields: RESNET };
const RESNET50: Entry = Entry {
    name: "resnet50",
    about: "residual network of 50 layers, with bottlenecks",
    paper: HE,
    version: 1,
    fields: RESNET,
};

/// The architectures, as a recipe names them.
#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    vec![&MLP, &RESNET18, &RESNET34, &RESNET50]
}

#[derive(Deserialize)]
struct Chosen {
    name: String,
    #[serde(default)]
    hidden: Vec<usize>,
    stem: Option<Stem>,
    width: Option<usize>,
}

impl Arch {
    /// From checked settings, `{ name = "resnet18", stem = "cifar", width = 64 }`, and what the data says.
    pub fn new(settings: &Value, classes: usize, size: [usize; 3], mean: &[f32], std: &[f32]) -> Result<Self> {
        let chosen: Chosen = serde_json::from_value(settings.clone())
            .map_err(|error| Error::invalid(format!("the architecture does not fit: {error}")))?;
        let resnet = |bottleneck, blocks: [usize; 4]| Shape::Resnet {
            bottleneck,
            blocks: blocks.to_vec(),
            stem: chosen.stem.unwrap_or(Stem::Cifar),
            width: chosen.width.unwrap_or(64),
        };
        let shape = match chosen.name.as_str() {
            "mlp" => Shape::Mlp { hidden: chosen.hidden.clone() },
            "resnet18" => resnet(false, [2, 2, 2, 2]),
            "resnet34" => resnet(false, [3, 4, 6, 3]),
            "resnet50" => resnet(true, [3, 4, 6, 3]),
            other => return Err(Error::invalid(format!("unknown architecture `{other}`"))),
        };
        Ok(Self { name: chosen.name, shape, classes, size, mean: mean.to_vec(), std: std.to_vec() })
    }

    pub fn from_value(value: &Value) -> Result<Self> {
        serde_json::from_value(value.clone())
            .map_err(|error| Error::invalid(format!("not the description of a network: {error}")))
    }

    pub fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| Error::invalid(error.to_string()))
    }

    /// The number of trained parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.layers().parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    pub(crate) fn layers(&self) -> Layers {
        match &self.shape {
            Shape::Mlp { hidden } => mlp(hidden, self.size.iter().product(), self.classes),
            Shape::Resnet { bottleneck, blocks, stem, width } => {
                resnet(*bottleneck, blocks, *stem, *width, self.size[0], self.classes)
            }
        }
    }
}

fn mlp(hidden: &[usize], input: usize, classes: usize) -> Layers {
    let mut net = Layers::new();
    let mut at = net.push(Op::Flatten, 0);
    let mut wide = input;
    for (index, &units) in hidden.iter().enumerate() {
        at = net.linear(&format!("hidden.{index}"), at, wide, units);
        at = net.push(Op::Relu, at);
        net.tap(&format!("hidden.{index}"), at);
        wide = units;
    }
    net.features = at;
    net.linear("fc", at, wide, classes);
    net
}

fn resnet(bottleneck: bool, blocks: &[usize], stem: Stem, width: usize, channels: usize, classes: usize) -> Layers {
    let mut net = Layers::new();
    let (kernel, stride) = if stem == Stem::Imagenet { (7, 2) } else { (3, 1) };
    let mut at = net.conv("conv1", 0, (channels, width), kernel, stride);
    at = net.batch_norm("bn1", at, width);
    at = net.push(Op::Relu, at);
    if stem != Stem::Cifar {
        at = net.push(Op::MaxPool, at);
    }
    net.tap("stem", at);
    let expansion = if bottleneck { 4 } else { 1 };
    let mut wide = width;
    for (stage, &count) in blocks.iter().enumerate() {
        let planes = width << stage;
        for index in 0..count {
            let name = format!("layer{}.{index}", stage + 1);
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            at = block(&mut net, &name, at, (wide, planes), stride, bottleneck);
            wide = planes * expansion;
        }
        net.tap(&format!("layer{}", stage + 1), at);
    }
    at = net.push(Op::MeanPool, at);
    net.features = at;
    net.linear("fc", at, wide, classes);
    net
}

fn block(net: &mut Layers, name: &str, from: usize, wide: (usize, usize), stride: usize, bottleneck: bool) -> usize {
    let (input, planes) = wide;
    let output = if bottleneck { planes * 4 } else { planes };
    // (kernel, input channels, output channels, stride) of each convolution
    let convs = if bottleneck {
        vec![(1, input, planes, 1), (3, planes, planes, stride), (1, planes, output, 1)]
    } else {
        vec![(3, input, planes, stride), (3, planes, planes, 1)]
    };
    let mut at = from;
    for (index, &(kernel, inner, outer, step)) in convs.iter().enumerate() {
        at = net.conv(&format!("{name}.conv{}", index + 1), at, (inner, outer), kernel, step);
        at = net.batch_norm(&format!("{name}.bn{}", index + 1), at, outer);
        if index + 1 < convs.len() {
            at = net.push(Op::Relu, at);
        }
    }
    let mut shortcut = from;
    if stride != 1 || input != output {
        shortcut = net.conv(&format!("{name}.downsample.0"), from, (input, output), 1, stride);
        shortcut = net.batch_norm(&format!("{name}.downsample.1"), shortcut, output);
    }
    at = net.push(Op::Add { with: shortcut }, at);
    net.push(Op::Relu, at)
}
