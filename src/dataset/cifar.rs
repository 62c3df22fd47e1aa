//! CIFAR-10 and CIFAR-100: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
//! <https://www.cs.toronto.edu/~kriz/cifar.html>. Binary and python batches hold the same pixels; parquet copies are
//! PNG, or JPEG with other pixels.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dataset, Form, Remote, assemble, parquet_images, records};
use crate::data::{Images, Part};
use crate::error::{Error, Result};
use crate::halt::Halt;
use crate::pickle::{Id, Pickle, Value};

const TEN: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
#[rustfmt::skip]
const COARSE: [&str; 20] = [
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
];
#[rustfmt::skip]
const FINE: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
];
/// Bytes of an image: three planes of 32x32, red, green, blue.
const IMAGE: usize = 3072;

pub(super) const CIFAR10: Dataset = Dataset {
    name: "cifar10",
    about: "CIFAR-10, 50,000 and 10,000 of 32x32 RGB",
    classes: &TEN,
    counts: [50_000, 10_000, 0],
    forms: &[
        Form {
            about: "binary batches",
            files: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
                "test_batch.bin",
            ],
            folders: &["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10"],
            origin: &[Remote {
                url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                md5: "c32a1d4ab5d03f1284b67883e8d87530",
            }],
            load: |files, halt| batches(files, halt, "CIFAR-10 (binary batches)", &TEN, &Binary { labels: 1, at: 0 }),
        },
        Form {
            about: "python batches",
            files: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"],
            folders: &["cifar-10-batches-py", "cifar10/cifar-10-batches-py"],
            origin: &[Remote {
                url: "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                md5: "c58f30108f718f92721af3b95e74349a",
            }],
            load: |files, halt| batches(files, halt, "CIFAR-10 (python batches)", &TEN, &Python { labels: "labels" }),
        },
        Form {
            about: "parquet files",
            files: parquet_images::FILES,
            folders: &["cifar10/plain_text", "cifar10", "plain_text"],
            origin: &[
                Remote {
                    url: "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/train-00000-of-00001.parquet",
                    md5: "",
                },
                Remote {
                    url: "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/test-00000-of-00001.parquet",
                    md5: "",
                },
            ],
            load: |files, halt| parquet_images::load(files, halt, "CIFAR-10", &TEN, "label"),
        },
    ],
};

/// The forms of CIFAR-100, with one of its two kinds of labels.
macro_rules! hundred {
    ($name:literal, $classes:expr, $byte:literal, $python:literal, $column:literal) => {
        &[
            Form {
                about: "binary batches",
                files: &["train.bin", "test.bin"],
                folders: &["cifar-100-binary", "cifar100/cifar-100-binary", "cifar100"],
                origin: &[Remote {
                    url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                    md5: "03b5dce01913d631647c71ecec9e9cb8",
                }],
                load: |files, halt| {
                    batches(files, halt, concat!($name, " (binary batches)"), &$classes, &Binary { labels: 2, at: $byte })
                },
            },
            Form {
                about: "python batches",
                files: &["train", "test"],
                folders: &["cifar-100-python", "cifar100/cifar-100-python"],
                origin: &[Remote {
                    url: "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    md5: "eb9058c3a382ffc7106e4002c42a8d85",
                }],
                load: |files, halt| batches(files, halt, concat!($name, " (python batches)"), &$classes, &Python { labels: $python }),
            },
            Form {
                about: "parquet files",
                files: parquet_images::FILES,
                folders: &["cifar100/cifar100", "cifar100"],
                origin: &[
                    Remote {
                        url: "https://huggingface.co/datasets/uoft-cs/cifar100/resolve/main/cifar100/train-00000-of-00001.parquet",
                        md5: "",
                    },
                    Remote {
                        url: "https://huggingface.co/datasets/uoft-cs/cifar100/resolve/main/cifar100/test-00000-of-00001.parquet",
                        md5: "",
                    },
                ],
                load: |files, halt| parquet_images::load(files, halt, $name, &$classes, $column),
            },
        ]
    };
}

pub(super) const CIFAR100: Dataset = Dataset {
    name: "cifar100",
    about: "CIFAR-100, 100 classes, 50,000 and 10,000 of 32x32 RGB",
    classes: &FINE,
    counts: [50_000, 10_000, 0],
    forms: hundred!("CIFAR-100", FINE, 1, "fine_labels", "fine_label"),
};

pub(super) const CIFAR100_COARSE: Dataset = Dataset {
    name: "cifar100_coarse",
    about: "CIFAR-100 by its 20 superclasses",
    classes: &COARSE,
    counts: [50_000, 10_000, 0],
    forms: hundred!("CIFAR-100 superclasses", COARSE, 0, "coarse_labels", "coarse_label"),
};

/// How the images of one file are appended.
trait Batch {
    fn read(&self, path: &Path, into: (&mut Vec<u8>, &mut Vec<u32>), classes: usize, halt: &Halt) -> Result<()>;
}

/// All files but the last are the training part.
fn batches(files: &[PathBuf], halt: &Halt, name: &str, classes: &[&str], batch: &dyn Batch) -> Result<Images> {
    let (test, train) = files.split_last().ok_or_else(|| Error::invalid(format!("{name} has no files")))?;
    let part = |files: &[PathBuf]| -> Result<Part> {
        let count: usize = files.iter().map(|file| records::count(file, IMAGE)).sum();
        let (mut pixels, mut labels) = (Vec::with_capacity(count * IMAGE), Vec::new());
        for file in files {
            batch.read(file, (&mut pixels, &mut labels), classes.len(), halt)?;
        }
        Ok(Part { pixels: Arc::new(pixels), labels: Arc::new(labels) })
    };
    assemble(name.to_owned(), classes, [3, 32, 32], part(train)?, part(std::slice::from_ref(test))?)
}

/// Records of one or two label bytes and the planes.
struct Binary {
    labels: usize,
    /// Which of them counts.
    at: usize,
}

impl Batch for Binary {
    fn read(&self, path: &Path, into: (&mut Vec<u8>, &mut Vec<u32>), classes: usize, halt: &Halt) -> Result<()> {
        let what = format!("{} and {IMAGE} bytes of pixels", crate::error::plural(self.labels, "label"));
        let (pixels, labels) = into;
        records::each(path, self.labels + IMAGE, &what, halt, |number, record| {
            let (head, planes) = record.split_at(self.labels);
            labels.push(class(path, number, i64::from(head[self.at]), classes)?);
            records::push_planes(pixels, planes, 3);
            Ok(())
        })
    }
}

fn class(path: &Path, number: usize, label: i64, classes: usize) -> Result<u32> {
    u32::try_from(label).ok().filter(|&label| (label as usize) < classes).ok_or_else(|| {
        Error::bad_file(path, format!("image {number} has the label {label}, expected 0 to {}", classes - 1))
    })
}

/// A pickled dictionary of a numpy array `data`, images x 3072, and a list of labels.
struct Python {
    labels: &'static str,
}

impl Batch for Python {
    fn read(&self, path: &Path, into: (&mut Vec<u8>, &mut Vec<u32>), classes: usize, halt: &Halt) -> Result<()> {
        halt()?;
        let (pixels, labels) = into;
        let bad = |why: String| Error::bad_file(path, why);
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let pickle = Pickle::parse(&bytes).map_err(bad)?;
        let entry = |key: &str| {
            pickle.entry(pickle.root(), key).ok_or_else(|| bad(format!("no `{key}`, expected a python batch of CIFAR")))
        };
        let found = pickle.items(entry(self.labels)?).unwrap_or_default();
        let data = array(&pickle, entry("data")?).filter(|data| data.len() == found.len() * IMAGE);
        let data = data.ok_or_else(|| {
            let count = found.len();
            bad(format!(
                "`data` is no array of {count} x {IMAGE} bytes for its {count} labels; take the binary batches"
            ))
        })?;
        for (number, (planes, &label)) in data.chunks_exact(IMAGE).zip(found).enumerate() {
            let label = pickle.natural(label).map_or(-1, |label| label as i64);
            labels.push(class(path, number, label, classes)?);
            records::push_planes(pixels, planes, 3);
        }
        Ok(())
    }
}

/// The bytes of a numpy array of uint8 in C order.
fn array<'a>(pickle: &Pickle<'a>, id: Id) -> Option<&'a [u8]> {
    let Value::Call { state: Some(state), .. } = pickle.get(id) else { return None };
    let [_, _, dtype, fortran, data] = pickle.items(*state)? else { return None };
    let (_, _, [kind, ..]) = pickle.call(*dtype)? else { return None };
    let Value::Bytes(data) = pickle.get(*data) else { return None };
    (pickle.name(*kind, 8) == Some("u1") && pickle.get(*fortran) == &Value::Bool(false)).then_some(data)
}
