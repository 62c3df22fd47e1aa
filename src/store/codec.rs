//! Artifacts as bytes: one safetensors file with the tensors and, in one metadata entry, the record.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError, View};
use serde_json::{Value, json};

use crate::artifact::{Artifact, Encoded, Encoder, Features, Generator, Mask, Scores, Weights};
use crate::data::{Images, Part, Split};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::tensors;

const ENTRY: &str = "recant";

pub fn to_bytes(encoded: &Encoded) -> Result<Vec<u8>> {
    // A map with one entry has but one order.
    let metadata = HashMap::from([(ENTRY.to_owned(), encoded.record.to_string())]);
    safetensors::serialize(&encoded.tensors, Some(metadata)).map_err(|error| Error::invalid(error.to_string()))
}

pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Encoded> {
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(error.to_string()))?;
    let entry = header.metadata().as_ref().and_then(|map| map.get(ENTRY));
    let record = entry.ok_or_else(|| damaged("it has no record".to_owned()))?;
    let record = serde_json::from_str(record).map_err(|error| damaged(error.to_string()))?;
    Ok(Encoded { tensors: tensors::read(bytes).map_err(damaged)?, record })
}

/// A tensor on its way to disk; bytes that lie in memory already go there without a copy.
enum Held<'a> {
    Tensor(Tensor),
    Bytes { dtype: Dtype, shape: Vec<usize>, data: Cow<'a, [u8]> },
}

impl View for Held<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Held::Tensor(tensor) => View::dtype(&tensor),
            Held::Bytes { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Held::Tensor(tensor) => tensor.dims(),
            Held::Bytes { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Held::Tensor(tensor) => Cow::Owned(View::data(&tensor).into_owned()),
            Held::Bytes { data, .. } => Cow::Borrowed(data),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Held::Tensor(tensor) => View::data_len(&tensor),
            Held::Bytes { data, .. } => data.len(),
        }
    }
}

/// Writes an artifact into a new file.
pub fn write(artifact: &Artifact, path: &Path) -> Result<()> {
    let (tensors, record) = encode(artifact);
    let metadata = HashMap::from([(ENTRY.to_owned(), record.to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => Error::io("write", path)(error),
        other => Error::invalid(other.to_string()),
    })
}

/// About how many bytes an artifact takes on disk.
#[must_use]
pub fn bytes(artifact: &Artifact) -> u64 {
    let (tensors, record) = encode(artifact);
    (tensors.iter().map(|(_, held)| held.data_len()).sum::<usize>() + record.to_string().len()) as u64
}

fn encode(artifact: &Artifact) -> (Vec<(String, Held<'_>)>, Value) {
    let numbers = |values: &[u32]| Held::Bytes {
        dtype: Dtype::U32,
        shape: vec![values.len()],
        data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let named = |tensors: &BTreeMap<String, Tensor>| {
        tensors.iter().map(|(name, tensor)| (name.clone(), Held::Tensor(tensor.clone()))).collect()
    };
    match artifact {
        Artifact::Images(images) => {
            let [channels, height, width] = images.size;
            let mut tensors = Vec::new();
            for (name, part) in parts(images) {
                let shape = vec![part.len(), height, width, channels];
                let pixels = Held::Bytes { dtype: Dtype::U8, shape, data: Cow::Borrowed(&part.pixels) };
                tensors.push((format!("{name}.pixels"), pixels));
                tensors.push((format!("{name}.labels"), numbers(&part.labels)));
            }
            let record = json!({ "name": images.name, "classes": images.classes, "size": images.size,
                "mean": images.mean, "std": images.std });
            (tensors, record)
        }
        Artifact::Split(split) => (
            vec![("forget".to_owned(), numbers(&split.forget))],
            json!({ "classes": split.classes, "retain": split.retain.len() }),
        ),
        Artifact::Model(weights) => {
            (named(&weights.tensors), json!({ "arch": weights.arch, "trained_on": weights.trained_on }))
        }
        Artifact::Encoder(encoder) => {
            let Encoder { network, head } = &**encoder;
            let under = |name: &str, weights: &Weights| {
                let all = weights.tensors.iter();
                all.map(|(key, tensor)| (format!("{name}.{key}"), Held::Tensor(tensor.clone()))).collect::<Vec<_>>()
            };
            let tensors = under("network", network).into_iter().chain(under("head", head)).collect();
            (tensors, json!({ "arch": network.arch, "head": head.arch, "trained_on": network.trained_on }))
        }
        Artifact::Features(features) => {
            let mut tensors = Vec::new();
            for (name, (values, labels)) in &features.parts {
                tensors.push((format!("{name}.features"), Held::Tensor(values.clone())));
                tensors.push((format!("{name}.labels"), numbers(labels)));
            }
            (tensors, json!({ "arch": features.arch, "layer": features.layer }))
        }
        Artifact::Generator(generator) => {
            let Weights { arch, tensors, trained_on } = &generator.network;
            (named(tensors), json!({ "arch": arch, "of": generator.of, "trained_on": trained_on }))
        }
        Artifact::Mask(mask) => {
            (vec![("keep".to_owned(), Held::Tensor(mask.keep.clone()))], json!({ "arch": mask.arch }))
        }
        Artifact::Scores(scores) => (named(&scores.tensors), scores.record.clone()),
        Artifact::Table(table) => (Vec::new(), (**table).clone()),
    }
}

fn parts(images: &Images) -> [(&'static str, &Part); 4] {
    [
        ("train", &images.train),
        ("validation", &images.validation),
        ("test", &images.test),
        ("unlabelled", &images.unlabelled),
    ]
}

/// Back from bytes; a split needs the images that it indexes.
pub fn decode(kind: Kind, encoded: Encoded, carried: Option<&Artifact>) -> Result<Artifact> {
    let Encoded { mut tensors, record } = encoded;
    let mut take = |name: &str| {
        tensors.remove(name).ok_or_else(|| Error::invalid(format!("the artifact lacks the tensor `{name}`")))
    };
    Ok(match kind {
        Kind::Images => {
            let mut part = |name: &str| -> Result<Part> {
                let pixels = take(&format!("{name}.pixels"))?.flatten_all()?.to_vec1::<u8>()?;
                let labels = take(&format!("{name}.labels"))?.to_vec1::<u32>()?;
                Ok(Part { pixels: Arc::new(pixels), labels: Arc::new(labels) })
            };
            let images = Images {
                name: field(&record, "name")?,
                classes: field(&record, "classes")?,
                size: field(&record, "size")?,
                mean: field(&record, "mean")?,
                std: field(&record, "std")?,
                train: part("train")?,
                validation: part("validation")?,
                test: part("test")?,
                unlabelled: part("unlabelled")?,
            };
            images.check()?;
            Artifact::Images(images.into())
        }
        Kind::Split => {
            let Some(Artifact::Images(images)) = carried else {
                return Err(Error::invalid("a split cannot be read without its images"));
            };
            let split = Split::new(images.clone(), take("forget")?.to_vec1()?, field(&record, "classes")?)?;
            Artifact::Split(split.into())
        }
        Kind::Model => {
            let (arch, trained_on) = (record["arch"].clone(), field(&record, "trained_on")?);
            Artifact::Model(Weights { arch, tensors, trained_on }.into())
        }
        Kind::Encoder => {
            let under = |name: &str, key: &str| -> Result<Weights> {
                let prefix = format!("{name}.");
                let own =
                    tensors.iter().filter_map(|(key, t)| Some((key.strip_prefix(&prefix)?.to_owned(), t.clone())));
                let (arch, trained_on) = (record[key].clone(), field(&record, "trained_on")?);
                Ok(Weights { arch, tensors: own.collect(), trained_on })
            };
            Artifact::Encoder(Encoder { network: under("network", "arch")?, head: under("head", "head")? }.into())
        }
        Kind::Features => {
            let names: Vec<String> =
                tensors.keys().filter_map(|key| Some(key.strip_suffix(".features")?.to_owned())).collect();
            let mut parts = BTreeMap::new();
            for name in names {
                let missing = || Error::invalid(format!("the artifact lacks the features or labels of `{name}`"));
                let values = tensors.remove(&format!("{name}.features")).ok_or_else(missing)?;
                let labels: Vec<u32> = tensors.remove(&format!("{name}.labels")).ok_or_else(missing)?.to_vec1()?;
                if values.rank() != 2 || values.dim(0)? != labels.len() {
                    let (shape, count) = (values.dims(), labels.len());
                    let why = format!("the features of `{name}` have the shape {shape:?} for {count} labels");
                    return Err(Error::invalid(why));
                }
                parts.insert(name, (values, labels));
            }
            let (arch, layer) = (record["arch"].clone(), field(&record, "layer")?);
            Artifact::Features(Features { arch, layer, parts }.into())
        }
        Kind::Generator => {
            let (arch, trained_on) = (record["arch"].clone(), field(&record, "trained_on")?);
            let of = record["of"].clone();
            Artifact::Generator(Generator { network: Weights { arch, tensors, trained_on }, of }.into())
        }
        Kind::Mask => Artifact::Mask(Mask { arch: record["arch"].clone(), keep: take("keep")? }.into()),
        Kind::Scores => Artifact::Scores(Scores { record, tensors }.into()),
        Kind::Table => Artifact::Table(record.into()),
    })
}

fn field<T: serde::de::DeserializeOwned>(record: &Value, name: &str) -> Result<T> {
    serde_json::from_value(record[name].clone())
        .map_err(|error| Error::invalid(format!("the artifact's `{name}` cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that is read and written again keeps every bit of its numbers.
    #[test]
    fn numbers_of_a_record_come_back_to_the_bit() {
        let mut rng = crate::rng::Rng::new(1).fork("numbers");
        let mut numbers = vec![0.242_826_282_978_057_86, 0.1, 1e300];
        numbers.extend((0..1000).map(|_| f64::from(rng.normal())));
        let bytes = to_bytes(&Encoded { record: json!(numbers), ..Encoded::default() }).unwrap();
        let record = from_bytes(&bytes, Path::new("artifact")).unwrap().record;
        let back: Vec<f64> = serde_json::from_value(record).unwrap();
        let bits = |all: &[f64]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&numbers));
    }
}
