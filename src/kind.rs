//! What stages make and take. Planning knows artifacts by these names alone.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Images,
    Split,
    Model,
    Encoder,
    Mask,
    Features,
    Generator,
    Scores,
    Table,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Kind::Images,
        Kind::Split,
        Kind::Model,
        Kind::Encoder,
        Kind::Mask,
        Kind::Features,
        Kind::Generator,
        Kind::Scores,
        Kind::Table,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Images => "images",
            Kind::Split => "split",
            Kind::Model => "model",
            Kind::Encoder => "encoder",
            Kind::Mask => "mask",
            Kind::Features => "features",
            Kind::Generator => "generator",
            Kind::Scores => "scores",
            Kind::Table => "table",
        }
    }

    /// With its article.
    #[must_use]
    pub fn article(self) -> String {
        match self {
            Kind::Images | Kind::Features | Kind::Scores => self.word().to_owned(),
            Kind::Encoder => "an encoder".to_owned(),
            _ => format!("a {}", self.word()),
        }
    }

    /// The role of the input without which an artifact of this kind cannot be read back: a split holds indices into
    /// its images.
    #[must_use]
    pub fn carries(self) -> Option<&'static str> {
        match self {
            Kind::Split => Some("data"),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
