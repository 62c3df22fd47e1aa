//! Architectures: what a recipe names, as data (`models/*.toml`) and settings, and the layers each stands for.

mod family;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result, listed, nearest};
use crate::kernels::{Builder, Products, Program};
use crate::settings::{COUNT, Entry, Field, SHARE, Type};
pub use family::{Shape, Stem};

/// How a network is built and what it is fed with: enough to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// As in a recipe: `resnet18`.
    pub name: String,
    pub shape: Shape,
    pub classes: usize,
    /// Of an image: channels, height, width.
    pub size: [usize; 3],
    /// Of pixels scaled to [0, 1], per channel: the network sees (pixel / 255 - mean) / std. Empty where no images go
    /// in.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// Sets of batch-norm weights and statistics; 2 with auxiliary batch norm.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub branches: usize,
    #[serde(default, skip_serializing_if = "Convolution::is_winograd")]
    pub convolution: Convolution,
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
}

/// What convolutions and linear layers multiply. Parameters, sums, batch norms and losses are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    F32,
    /// Both factors rounded to bf16, forward and back: 8 bits of precision and the range of f32.
    Bf16,
}

impl Precision {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// How 3 x 3 convolutions with stride 1 are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convolution {
    /// By Winograd's algorithm where that is faster: a quarter of the products, errors below 2e-5 of the largest value.
    #[default]
    Winograd,
    /// As plain sums of products.
    Direct,
}

impl Convolution {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_winograd(&self) -> bool {
        *self == Self::Winograd
    }
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(branches: &usize) -> bool {
    *branches == 1
}

const STEM: Field = Field::or(
    "stem",
    Type::Choice(&["cifar", "cifar_pool", "imagenet"]),
    "\"cifar\"",
    "first layers: 3x3, 3x3 and max-pool, or 7x7 stride 2 and max-pool",
);
const WIDTH: Field = Field::or("width", COUNT, "64", "channels of the first stage; later stages have 2, 4, 8 times it");
const CONVOLUTION: Field = Field::or(
    "convolution",
    Type::Choice(&["winograd", "direct"]),
    "\"winograd\"",
    "3x3 convolutions on the CPU: Winograd's algorithm where it is faster, or plain sums; on a GPU, `direct` does without TF32",
);
/// Of networks that are part of a stage.
pub const PRECISION: Field = Field::or(
    "precision",
    Type::Choice(&["f32", "bf16"]),
    "\"f32\"",
    "what convolutions and linear layers multiply; parameters, sums and batch norms are f32 either way",
);
/// How the layers are computed, not which they are.
const WAYS: [Field; 2] = [CONVOLUTION, PRECISION];
const RESNET: &[Field] = &[STEM, WIDTH, CONVOLUTION, PRECISION];
const HE: &str = "He et al., CVPR 2016, https://arxiv.org/abs/1512.03385";

static ENTRIES: [Entry; 5] = [
    Entry {
        name: "mlp",
        about: "fully connected layers with ReLU between",
        paper: "",
        version: 1,
        fields: &[Field::or("hidden", Type::List(&COUNT), "[128]", "units of each hidden layer"), PRECISION],
    },
    Entry {
        name: "allcnn",
        about: "convolutions only, strides in place of pooling",
        paper: "Springenberg et al., ICLR workshop 2015, https://arxiv.org/abs/1412.6806",
        version: 1,
        fields: &[
            Field::or("width", COUNT, "96", "channels of the first three layers; the others have twice it"),
            Field::or("dropout", SHARE, "0.0", "share of values dropped after each strided layer, below 1"),
            CONVOLUTION,
            PRECISION,
        ],
    },
    Entry {
        name: "resnet18",
        about: "residual network, 18 layers, basic blocks",
        paper: HE,
        version: 1,
        fields: RESNET,
    },
    Entry {
        name: "resnet34",
        about: "residual network, 34 layers, basic blocks",
        paper: HE,
        version: 1,
        fields: RESNET,
    },
    Entry {
        name: "resnet50",
        about: "residual network, 50 layers, bottlenecks",
        paper: HE,
        version: 1,
        fields: RESNET,
    },
];

/// The architectures a recipe may name.
#[must_use]
pub fn entries() -> Vec<&'static Entry> {
    ENTRIES.iter().collect()
}

/// The model file of each entry.
const FILES: [(&str, &str); 5] = [
    ("mlp", include_str!("../../models/mlp.toml")),
    ("allcnn", include_str!("../../models/allcnn.toml")),
    ("resnet18", include_str!("../../models/resnet18.toml")),
    ("resnet34", include_str!("../../models/resnet34.toml")),
    ("resnet50", include_str!("../../models/resnet50.toml")),
];

/// What a model file says beside the family: checked by a test.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Number of parameters with 10 classes and images of that size.
    pub parameters: usize,
    pub image: [usize; 3],
}

/// The shape and the promise of a model file; the settings given replace the file's.
fn model(name: &str, settings: &Map<String, Value>) -> Result<(Shape, Promise)> {
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    let text = FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| {
        let hint = nearest(name, names.iter().copied())
            .map_or_else(|| format!("expected {}", listed(&names, "or")), |near| format!("did you mean `{near}`?"));
        Error::invalid(format!("unknown architecture `{name}`: {hint}"))
    })?;
    let wrong = |error: &dyn std::fmt::Display| Error::invalid(format!("models/{name}.toml: {error}"));
    let mut table: Map<String, Value> = toml::from_str(text).map_err(|error| wrong(&error))?;
    let mut promise = Map::new();
    for key in ["parameters", "image"] {
        promise.insert(key.to_owned(), table.remove(key).unwrap_or(Value::Null));
    }
    let promise = serde_json::from_value(Value::Object(promise)).map_err(|error| wrong(&error))?;
    let Some(Value::String(kind)) = table.remove("family") else {
        return Err(wrong(&"no `family`"));
    };
    let of_shape = |key: &str| key != "name" && WAYS.iter().all(|way| way.name != key);
    for (key, value) in settings.iter().filter(|(key, _)| of_shape(key)) {
        table.insert(key.clone(), value.clone());
    }
    let shape = serde_json::from_value(serde_json::json!({ kind: table }))
        .map_err(|error| Error::invalid(format!("the settings of `{name}` do not fit: {error}")))?;
    Ok((shape, promise))
}

/// What the model file of an architecture promises.
pub fn promise(name: &str) -> Result<Promise> {
    Ok(model(name, &Map::new())?.1)
}

impl Arch {
    /// From checked settings, `{"name": "resnet18", "stem": .., "width": ..}`; what is left out is the model file's.
    /// An error where the images are too small for the layers.
    pub fn new(settings: &Value, classes: usize, size: [usize; 3], mean: &[f32], std: &[f32]) -> Result<Self> {
        let table = settings.as_object().ok_or_else(|| Error::invalid("an architecture is a table with a `name`"))?;
        let name = table.get("name").and_then(Value::as_str).unwrap_or_default();
        let (shape, _) = model(name, table)?;
        let mut arch = Self::build(name, shape, classes, size, mean, std)?;
        let wrong = |error| Error::invalid(format!("the settings of `{name}` do not fit: {error}"));
        if let Some(value) = table.get(CONVOLUTION.name) {
            arch.convolution = serde_json::from_value(value.clone()).map_err(wrong)?;
        }
        if let Some(value) = table.get(PRECISION.name) {
            arch.precision = serde_json::from_value(value.clone()).map_err(wrong)?;
        }
        Ok(arch)
    }

    /// From a shape, for networks that are no recipe's to name: generators, discriminators, heads.
    pub fn build(
        name: &str,
        shape: Shape,
        classes: usize,
        size: [usize; 3],
        mean: &[f32],
        std: &[f32],
    ) -> Result<Self> {
        let (mean, std) = (mean.to_vec(), std.to_vec());
        let arch = Self {
            name: name.to_owned(),
            shape,
            classes,
            size,
            mean,
            std,
            branches: 1,
            convolution: Convolution::default(),
            precision: Precision::default(),
        };
        arch.program()?;
        Ok(arch)
    }

    /// The same layers, computed in that precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// With so many sets of batch-norm weights and statistics.
    pub fn with_branches(self, branches: usize) -> Result<Self> {
        let arch = Self { branches, ..self };
        arch.program()?;
        Ok(arch)
    }

    pub fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| Error::invalid(error.to_string()))
    }

    /// What `to_value` gave; an error where it describes no network.
    pub fn from_value(value: &Value) -> Result<Self> {
        let arch: Self = serde_json::from_value(value.clone())
            .map_err(|error| Error::invalid(format!("not the description of a network: {error}")))?;
        arch.program()?;
        Ok(arch)
    }

    /// As a recipe writes it, `{"name": "resnet18", "stem": .., "width": ..}`: what `new` takes. None where no recipe
    /// can name it.
    #[must_use]
    pub fn settings(&self) -> Option<Value> {
        let entry = ENTRIES.iter().find(|entry| entry.name == self.name)?;
        // Through text, where an f32 has no more digits than it needs.
        let shape: Value = serde_json::from_str(&serde_json::to_string(&self.shape).ok()?).ok()?;
        let (_, shape) = shape.as_object()?.iter().next()?;
        let mut table = Map::new();
        table.insert("name".to_owned(), self.name.clone().into());
        for field in entry.fields {
            if WAYS.iter().any(|way| way.name == field.name) {
                continue;
            }
            table.insert(field.name.to_owned(), shape.get(field.name)?.clone());
        }
        // how it is computed is said only where it is not as usual
        if self.convolution != Convolution::default() {
            table.insert(CONVOLUTION.name.to_owned(), serde_json::to_value(self.convolution).ok()?);
        }
        if self.precision != Precision::default() {
            table.insert(PRECISION.name.to_owned(), serde_json::to_value(self.precision).ok()?);
        }
        let table = Value::Object(table);
        let again = Self::new(&table, self.classes, self.size, &self.mean, &self.std).ok()?;
        (again == *self).then_some(table)
    }

    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Number of parameters; batch-norm statistics are none.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.program().map_or(0, |program| program.len())
    }

    /// Multiply-adds of plain sums that an image takes: forward, and for the gradients of all parameters.
    #[must_use]
    pub fn multiply_adds(&self) -> [usize; 2] {
        self.program().map_or([0; 2], |program| program.multiply_adds())
    }

    /// Width of the features, which the last layer reads.
    pub fn features(&self) -> Result<usize> {
        let program = self.program()?;
        Ok(program.size(program.features))
    }

    /// The layers.
    pub(super) fn program(&self) -> Result<Program> {
        /// Nobody's network is wider; a damaged description must not ask for all the memory there is.
        const LARGEST: usize = 1 << 20;
        /// Nor has anybody's image more numbers,
        const IMAGE: usize = 1 << 32;
        /// or more sets of statistics.
        const BRANCHES: usize = 16;
        let [channels, height, width] = self.size;
        let odd = [channels, height, width, self.classes, self.branches].iter().any(|&n| n == 0 || n > LARGEST);
        if self.branches > BRANCHES {
            return Err(Error::invalid(format!(
                "`{}` has {} sets of batch-norm statistics, expected at most {BRANCHES}",
                self.name, self.branches
            )));
        }
        if odd || channels * height * width > IMAGE {
            return Err(Error::invalid(format!(
                "`{}` cannot be built for {} classes and images of {channels} x {height} x {width}",
                self.name, self.classes
            )));
        }
        let given = !self.mean.is_empty() || !self.std.is_empty();
        if given && (self.mean.len() != channels || self.std.len() != channels) {
            return Err(Error::invalid(format!(
                "`{}` takes {channels} channels, but mean and std have {} and {}",
                self.name,
                self.mean.len(),
                self.std.len()
            )));
        }
        let program = self.shape.program(Builder::new(self.size, self.branches), self.classes, LARGEST)?;
        let products = match (self.precision, self.convolution) {
            (Precision::Bf16, _) => Products::Bf16,
            (Precision::F32, Convolution::Winograd) => Products::Winograd,
            (Precision::F32, Convolution::Direct) => Products::Direct,
        };
        Ok(Program { products, ..program })
    }
}
