//! Families of networks: settings to layers. Parameter names are torchvision's where it has the network, the authors'
//! where they published code.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::{Builder, Init, Op, Program, Window};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3x3.
    Cifar,
    /// 3x3, then max-pool 3/2/1.
    CifarPool,
    /// 7x7 stride 2, then max-pool 3/2/1.
    Imagenet,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    #[serde(rename_all = "snake_case")]
    Resnet {
        /// Blocks of 1x1, 3x3 (which has the stride: torchvision's version 1.5) and 1x1 to four times the width, in
        /// place of two 3x3.
        bottleneck: bool,
        /// Blocks in each stage; every stage is twice as wide as the one before and half as large.
        blocks: Vec<usize>,
        stem: Stem,
        width: usize,
    },
    Mlp {
        hidden: Vec<usize>,
    },
    Allcnn {
        width: usize,
        dropout: f32,
    },
    /// Noise x 1 x 1 to images of side x side in [0, 1]; the side is 8, 16, 32, ..
    DcganGenerator {
        width: usize,
        side: usize,
    },
    /// Images of such a side to the probability of being real.
    DcganDiscriminator {
        width: usize,
    },
    /// A point for each class among the features, and one radius: parameters without layers.
    ReciprocalPoints,
    /// Noise x 1 x 1 to features, `classes` of them.
    OpenganGenerator {
        width: usize,
    },
    /// Features x 1 x 1 to the probability of being real.
    OpenganDiscriminator {
        width: usize,
    },
}

impl Shape {
    /// The layers, for images of the builder's size. For a generator `classes` is the channels of its images.
    pub(super) fn program(&self, mut builder: Builder, classes: usize, largest: usize) -> Result<Program> {
        let b = &mut builder;
        let features = match self {
            Shape::Resnet { bottleneck, blocks, stem, width } => {
                // Each stage halves the image and doubles the width; a thousand blocks in each of very many would be built.
                within(blocks.len(), 16)?;
                within(*width, largest >> blocks.len())?;
                blocks.iter().try_for_each(|&count| within(count, 1000))?;
                resnet(b, *bottleneck, blocks, *stem, *width, classes)?
            }
            Shape::Mlp { hidden } => {
                hidden.iter().try_for_each(|&width| within(width, largest))?;
                mlp(b, hidden, classes)?
            }
            Shape::Allcnn { width, dropout } => {
                within(*width, largest / 2)?;
                if !(0.0..1.0).contains(dropout) {
                    return Err(Error::invalid(format!("`dropout` must be in [0, 1), not {dropout}")));
                }
                allcnn(b, *width, *dropout, classes)?
            }
            Shape::DcganGenerator { width, side } => {
                let doublings = doublings(*side, *side)?;
                within(*width, largest >> doublings)?;
                generator(b, *width, doublings, classes)?
            }
            Shape::DcganDiscriminator { width } => {
                let [_, height, across] = b.shape(0);
                let doublings = doublings(height, across)?;
                within(*width, largest >> (doublings + 1))?;
                discriminator(b, *width, doublings)?
            }
            Shape::ReciprocalPoints => {
                let [features, ..] = b.shape(0);
                b.free("points", vec![classes, features], Init::Normal { deviation: 0.1 });
                b.free("radius", vec![1], Init::Constant(0.0));
                0
            }
            Shape::OpenganGenerator { width } => {
                within(*width, largest / 8)?;
                feature_generator(b, *width, classes)?
            }
            Shape::OpenganDiscriminator { width } => {
                within(*width, largest / 8)?;
                feature_discriminator(b, *width)?
            }
        };
        Ok(builder.finish(features))
    }
}

fn within(value: usize, largest: usize) -> Result<()> {
    if (1..=largest).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("a network's width or depth must be in [1, {largest}], not {value}")))
}

/// How often a picture of 4 x 4 doubles to be of that size.
fn doublings(height: usize, width: usize) -> Result<usize> {
    if height == width && height.is_power_of_two() && (8..=1 << 12).contains(&height) {
        return Ok(height.ilog2() as usize - 2);
    }
    Err(Error::invalid(format!("a DCGAN makes images of 8 x 8, 16 x 16, 32 x 32, .. pixels, not {height} x {width}")))
}

fn conv(b: &mut Builder, name: &str, from: usize, out: usize, window: Window) -> Result<usize> {
    b.layer(name, Op::Conv { out, window, bias: false }, from)
}

fn head(b: &mut Builder, name: &str, from: usize, classes: usize) -> Result<()> {
    b.layer(name, Op::Linear { out: classes, bias: true }, from).map(drop)
}

fn mlp(b: &mut Builder, hidden: &[usize], classes: usize) -> Result<usize> {
    let mut x = b.layer("", Op::Flatten, 0)?;
    for (index, &out) in hidden.iter().enumerate() {
        let name = format!("hidden.{index}");
        x = b.layer(&name, Op::Linear { out, bias: true }, x)?;
        x = b.layer("", Op::Relu, x)?;
        b.tap(name, x);
    }
    head(b, "fc", x, classes)?;
    Ok(x)
}

/// Nine convolutions of the paper's All-CNN-C with batch norm, the last one replaced by a mean and a linear layer, as
/// the unlearning literature uses it.
fn allcnn(b: &mut Builder, width: usize, dropout: f32, classes: usize) -> Result<usize> {
    let mut x = 0;
    let layers = [(1, 3, 1), (1, 3, 1), (2, 3, 2), (2, 3, 1), (2, 3, 1), (2, 3, 2), (2, 3, 1), (2, 1, 1)];
    for (index, (times, kernel, stride)) in layers.into_iter().enumerate() {
        let number = index + 1;
        x = conv(b, &format!("conv{number}"), x, times * width, Window::new(kernel, stride, kernel / 2))?;
        x = b.layer(&format!("bn{number}"), Op::BatchNorm, x)?;
        x = b.layer("", Op::Relu, x)?;
        b.tap(format!("conv{number}"), x);
        if stride == 2 && dropout > 0.0 {
            x = b.layer("", Op::Dropout(dropout), x)?;
        }
    }
    x = b.layer("", Op::GlobalPool, x)?;
    head(b, "fc", x, classes)?;
    Ok(x)
}

fn resnet(
    b: &mut Builder,
    bottleneck: bool,
    blocks: &[usize],
    stem: Stem,
    width: usize,
    classes: usize,
) -> Result<usize> {
    let window = if stem == Stem::Imagenet { Window::new(7, 2, 3) } else { Window::new(3, 1, 1) };
    let mut x = conv(b, "conv1", 0, width, window)?;
    x = b.layer("bn1", Op::BatchNorm, x)?;
    x = b.layer("", Op::Relu, x)?;
    if stem != Stem::Cifar {
        x = b.layer("maxpool", Op::MaxPool(Window::new(3, 2, 1)), x)?;
    }
    b.tap("stem", x);
    for (stage, &count) in blocks.iter().enumerate() {
        for index in 0..count {
            let stride = if index == 0 && stage > 0 { 2 } else { 1 };
            x = residual(b, bottleneck, &format!("layer{}.{index}", stage + 1), x, width << stage, stride)?;
        }
        b.tap(format!("layer{}", stage + 1), x);
    }
    x = b.layer("avgpool", Op::GlobalPool, x)?;
    head(b, "fc", x, classes)?;
    Ok(x)
}

fn residual(b: &mut Builder, bottleneck: bool, name: &str, from: usize, width: usize, stride: usize) -> Result<usize> {
    let convolutions = if bottleneck {
        vec![(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
    } else {
        vec![(width, 3, stride), (width, 3, 1)]
    };
    let mut x = from;
    let mut out = width;
    for (index, &(channels, kernel, stride)) in convolutions.iter().enumerate() {
        if index > 0 {
            x = b.layer("", Op::Relu, x)?;
        }
        let number = index + 1;
        x = conv(b, &format!("{name}.conv{number}"), x, channels, Window::new(kernel, stride, kernel / 2))?;
        x = b.layer(&format!("{name}.bn{number}"), Op::BatchNorm, x)?;
        out = channels;
    }
    let mut shortcut = from;
    if stride != 1 || b.shape(from)[0] != out {
        shortcut = conv(b, &format!("{name}.downsample.0"), from, out, Window::new(1, stride, 0))?;
        shortcut = b.layer(&format!("{name}.downsample.1"), Op::BatchNorm, shortcut)?;
    }
    x = b.layer(name, Op::Add(shortcut), x)?;
    b.layer("", Op::Relu, x)
}

/// Radford et al., ICLR 2016, <https://arxiv.org/abs/1511.06434>, with a sigmoid and, at 32 x 32, the layers of Chen et
/// al., TPAMI 2021, <https://arxiv.org/abs/2103.00953>.
fn generator(b: &mut Builder, width: usize, doublings: usize, channels: usize) -> Result<usize> {
    b.deviation = Some(0.02);
    let (first, next) = (Window::new(4, 1, 0), Window::new(4, 2, 1));
    let mut x = 0;
    for index in 0..doublings {
        let (at, out) = (3 * index, width << (doublings - index));
        let window = if index == 0 { first } else { next };
        x = b.layer(&format!("main.{at}"), Op::ConvTranspose { out, window, bias: false }, x)?;
        x = b.layer(&format!("main.{}", at + 1), Op::BatchNorm, x)?;
        x = b.layer("", Op::Relu, x)?;
    }
    let features = x;
    let last = format!("main.{}", 3 * doublings);
    x = b.layer(&last, Op::ConvTranspose { out: channels, window: next, bias: false }, x)?;
    b.layer("", Op::Sigmoid, x)?;
    Ok(features)
}

/// The generator's opponent; the same papers.
fn discriminator(b: &mut Builder, width: usize, doublings: usize) -> Result<usize> {
    b.deviation = Some(0.02);
    let slope = Op::LeakyRelu(0.2);
    let halve = Window::new(4, 2, 1);
    let mut x = conv(b, "main.0", 0, 2 * width, halve)?;
    x = b.layer("", slope, x)?;
    for index in 1..doublings {
        let at = 3 * index - 1;
        x = conv(b, &format!("main.{at}"), x, (2 * width) << index, halve)?;
        x = b.layer(&format!("main.{}", at + 1), Op::BatchNorm, x)?;
        x = b.layer("", slope, x)?;
    }
    let last = format!("main.{}", 3 * doublings - 1);
    x = conv(b, &last, x, (2 * width) << doublings, Window::new(4, 1, 0))?;
    x = b.layer("", Op::Sigmoid, x)?;
    let features = b.layer("", Op::GlobalPool, x)?;
    head(b, "classifier.0", features, 1)?;
    let logits = features + 1;
    b.layer("", Op::Sigmoid, logits)?;
    Ok(features)
}

/// Kong and Ramanan, ICCV 2021, <https://arxiv.org/abs/2104.02939>: 1 x 1 windows on features, as if they were images of one
/// pixel; the widths of their code for features of 512 are those of `width` 64.
fn feature_generator(b: &mut Builder, width: usize, features: usize) -> Result<usize> {
    b.deviation = Some(0.02);
    let point = Window::new(1, 1, 0);
    let mut x = 0;
    for (index, times) in [8, 4, 2, 4].into_iter().enumerate() {
        let at = 3 * index;
        x = conv(b, &format!("main.{at}"), x, times * width, point)?;
        x = b.layer(&format!("main.{}", at + 1), Op::BatchNorm, x)?;
        x = b.layer("", Op::Relu, x)?;
    }
    b.layer("main.12", Op::Conv { out: features, window: point, bias: true }, x)?;
    Ok(x)
}

/// The generator's opponent; the same paper.
fn feature_discriminator(b: &mut Builder, width: usize) -> Result<usize> {
    b.deviation = Some(0.02);
    let point = Window::new(1, 1, 0);
    let slope = Op::LeakyRelu(0.2);
    let mut x = conv(b, "main.0", 0, 8 * width, point)?;
    x = b.layer("", slope, x)?;
    for (at, times) in [(2, 4), (5, 2), (8, 1)] {
        x = conv(b, &format!("main.{at}"), x, times * width, point)?;
        x = b.layer(&format!("main.{}", at + 1), Op::BatchNorm, x)?;
        x = b.layer("", slope, x)?;
    }
    let features = x;
    x = conv(b, "main.11", x, 1, point)?;
    b.layer("", Op::Sigmoid, x)?;
    Ok(features)
}
