//! Names of other people's state dicts: what wrappers put before them, and heads that are no classifiers.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::listed;

/// Put before names by `DataParallel`, `torch.compile`, and by classes that hold a network as a part.
const WRAPPERS: [&str; 5] = ["module.", "_orig_mod.", "base_model.", "backbone.", "base."];
/// Heads of self-supervised training, beside the classifier.
const HEADS: [&str; 3] = ["projection_head.", "pro_head.", "projector."];

/// Without what wrappers put before it; `classifier.fc.weight` is `fc.weight`.
pub(super) fn bare(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name.strip_prefix("classifier.").filter(|rest| rest.starts_with("fc.")).unwrap_or(name)
}

/// Takes heads out that stand beside a classifier; their names.
pub(super) fn without_heads(tensors: &mut BTreeMap<String, Tensor>) -> Vec<String> {
    if !tensors.contains_key("fc.weight") {
        return Vec::new();
    }
    let is_head = |name: &str| HEADS.iter().any(|head| name.starts_with(head));
    let heads = tensors.keys().filter(|name| is_head(name)).cloned().collect();
    tensors.retain(|name, _| !is_head(name));
    heads
}

/// Where a projection head stands in the classifier's place: what to say of it.
pub(super) fn no_classifier(tensors: &BTreeMap<String, Tensor>) -> Option<String> {
    let head = |name: &&String| {
        let of_fc = name.strip_prefix("fc.").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        of_fc || HEADS.iter().any(|head| name.starts_with(head))
    };
    let mut layers: Vec<&str> = tensors
        .keys()
        .filter(head)
        .map(|name| name.rsplit_once('.').map_or(name.as_str(), |(layer, _)| layer))
        .collect();
    layers.dedup();
    if layers.is_empty() || tensors.contains_key("fc.weight") {
        return None;
    }
    Some(format!(
        "it has a projection head ({}), as SimCLR's networks have, and no classifier; for its other layers with a new \
        classifier say `fresh = [\"fc.\"]`",
        listed(&layers, "and")
    ))
}
