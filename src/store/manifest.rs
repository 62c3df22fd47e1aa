//! How an artifact came to be, sealed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Provenance;
use crate::error::{Error, Result};
use crate::kind::Kind;

/// How an artifact came to be: explains, never decides.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    pub fingerprint: String,
    pub stage: String,
    pub kind: String,
    pub makes: Option<Kind>,
    /// What the fingerprint was made of.
    pub fields: BTreeMap<String, Value>,
    /// Role to fingerprint, of what was read.
    pub inputs: BTreeMap<String, String>,
    pub digest: String,
    pub bytes: u64,
    /// Seconds of work, those of interrupted attempts included.
    pub seconds: f64,
    /// Program, build, processor and device that computed it.
    #[serde(default)]
    pub provenance: Provenance,
    /// What else computed its first steps, oldest first, where it went on from a checkpoint that came from elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Provenance>,
    pub finished: String,
    pub notes: Vec<String>,
}

/// A manifest as it lies on disk: the digest covers the very bytes of the rest.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    seal: String,
}

/// With the seal around it.
pub(crate) fn sealed(text: &str) -> Result<Vec<u8>> {
    let wrong = |error: serde_json::Error| Error::invalid(error.to_string());
    let seal = blake3::hash(text.as_bytes()).to_hex().to_string();
    let manifest: &RawValue = serde_json::from_str(text).map_err(wrong)?;
    serde_json::to_vec(&Sealed { manifest, seal }).map_err(wrong)
}

impl Manifest {
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::invalid(error.to_string()))?;
        sealed(&text)
    }

    /// None where any byte is not what was written.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let sealed: Sealed = serde_json::from_slice(bytes).ok()?;
        let text = sealed.manifest.get();
        let sound = blake3::hash(text.as_bytes()).to_hex().as_str() == sealed.seal;
        if sound { serde_json::from_str(text).ok() } else { None }
    }
}
