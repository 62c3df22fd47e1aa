//! What computed a result: not part of any fingerprint, but why two machines' bytes may differ.

use serde::{Deserialize, Serialize};

/// Program, build and processor, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    pub version: String,
    /// Of the code that computes networks: raised where its last digits change.
    pub kernels: String,
    /// Of the source, by git, where a release was built from a repository.
    pub revision: String,
    /// Target, optimisation, flags.
    pub build: String,
    pub compiler: String,
    /// Those that compute, with their versions.
    pub libraries: String,
    /// What of the processor the code makes use of.
    pub features: String,
    pub processor: String,
    /// `cpu` or `cuda`.
    pub device: String,
}

impl Provenance {
    /// That of this program on this machine.
    #[must_use]
    pub fn here(device: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernels: crate::nn::KERNELS.to_string(),
            revision: option_env!("RECANT_REVISION").unwrap_or_default().to_owned(),
            build: env!("RECANT_BUILD").to_owned(),
            compiler: env!("RECANT_COMPILER").to_owned(),
            libraries: env!("RECANT_LIBRARIES").to_owned(),
            features: features(),
            processor: processor(),
            device: device.to_owned(),
        }
    }

    /// Name and value of all that is known.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("version", &self.version),
            ("kernels", &self.kernels),
            ("revision", &self.revision),
            ("build", &self.build),
            ("compiler", &self.compiler),
            ("libraries", &self.libraries),
            ("CPU features", &self.features),
            ("processor", &self.processor),
            ("device", &self.device),
        ];
        all.into_iter().map(|(name, value)| (name, value.as_str())).filter(|(_, value)| !value.is_empty())
    }

    /// What differs from another one: name, value here, value there. What either does not know does not count.
    #[must_use]
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<(&'static str, &'a str, &'a str)> {
        let theirs = |wanted| other.entries().find(|(name, _)| *name == wanted).map(|(_, value)| value);
        let both = self.entries().filter_map(|(name, mine)| Some((name, mine, theirs(name)?)));
        both.filter(|(_, mine, theirs)| mine != theirs).collect()
    }

    /// Whether another one may make other bytes. A processor of another name with the same features makes the same.
    #[must_use]
    pub fn other_bytes(&self, other: &Self) -> bool {
        self.differences(other).iter().any(|(name, ..)| *name != "processor")
    }
}

/// Those by which code is chosen at run time, here and in libraries.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("bf16 tiles", crate::nn::bf16_tiles()),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found = [(std::env::consts::ARCH, true)];
    found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

/// Its name, where the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_both_know() {
        let here = Provenance::here("cpu");
        assert!(here.differences(&here).is_empty());
        let other = Provenance { kernels: "0".into(), features: String::new(), ..here.clone() };
        assert_eq!(here.differences(&other), [("kernels", here.kernels.as_str(), "0")]);
        // Manifests of older programs know nothing.
        assert!(here.differences(&Provenance::default()).is_empty());
    }

    #[test]
    fn this_build_is_known() {
        let here = Provenance::here("cpu");
        for name in ["version", "kernels", "build", "compiler", "libraries", "device"] {
            assert!(here.entries().any(|(known, _)| known == name), "{name}: {here:?}");
        }
        assert!(here.libraries.contains("candle-core ") && here.compiler.starts_with("rustc "), "{here:?}");
    }
}
