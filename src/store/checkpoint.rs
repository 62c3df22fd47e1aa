//! Checkpoints of stages at work.

use std::fs;
use std::path::PathBuf;

use super::files::plain;
use super::{Store, codec};
use crate::artifact::Encoded;
use crate::error::{Error, Result};

/// In a checkpoint's record: of which stage it is. One in another's place would look whole.
const OF: &str = "fingerprint";

impl Store {
    pub(super) fn checkpoint_path(&self, fingerprint: &str) -> PathBuf {
        self.root().join("partial").join(format!("{fingerprint}.checkpoint"))
    }

    /// Keeps the checkpoint of a stage at work; its last 32 bytes are its digest, so a torn one is seen.
    pub fn save_checkpoint(&self, fingerprint: &str, checkpoint: &Encoded) -> Result<()> {
        let mut checkpoint = checkpoint.clone();
        if let Some(record) = checkpoint.record.as_object_mut() {
            record.insert(OF.to_owned(), fingerprint.into());
        }
        let mut bytes = codec::to_bytes(&checkpoint)?;
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        self.write_file(&self.checkpoint_path(fingerprint), &bytes)
    }

    /// The checkpoint of an interrupted stage, if there is one; an error where it is not what was written.
    pub fn checkpoint(&self, fingerprint: &str) -> Result<Option<Encoded>> {
        let path = self.checkpoint_path(fingerprint);
        let damaged = |why: &str| Error::Damaged { path: path.clone(), why: why.to_owned() };
        let bytes = match plain(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(damaged(&error.to_string())),
            Ok(bytes) => bytes,
        };
        let cut = bytes.len().checked_sub(32).and_then(|length| bytes.split_at_checked(length));
        let Some((body, _)) = cut.filter(|(body, digest)| blake3::hash(body).as_bytes() == digest) else {
            return Err(damaged("its contents are not what was written"));
        };
        let encoded = codec::from_bytes(body, &path)?;
        match encoded.record[OF].as_str() {
            Some(of) if of == fingerprint => Ok(Some(encoded)),
            Some(_) => Err(damaged("it is of another stage")),
            None => Err(damaged("it does not say of which stage it is: an older recant wrote it")),
        }
    }

    pub(super) fn forget_checkpoint(&self, fingerprint: &str) {
        // A checkpoint left behind is never read again: its result is there.
        let _ = fs::remove_file(self.checkpoint_path(fingerprint));
    }

    /// Moves a damaged checkpoint out of the way; whether it could be. Where not, the next one takes its place.
    #[must_use]
    pub fn put_checkpoint_aside(&self, fingerprint: &str) -> bool {
        self.aside_with(&self.checkpoint_path(fingerprint), &format!("{fingerprint}.checkpoint"))
    }
}
