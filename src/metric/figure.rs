//! Figures as plain data: what a metric shows beside its numbers. Drawing is another matter.

use serde::{Deserialize, Serialize};

/// Something to look at, kept with the numbers. Its values are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `confusion`: no other figure of the same evaluation has this name.
    pub name: String,
    pub title: String,
    pub shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// `values` row by row; none where there is nothing to say.
    Matrix {
        row_axis: String,
        column_axis: String,
        rows: Vec<String>,
        columns: Vec<String>,
        values: Vec<Vec<Option<f64>>>,
    },
    /// Places whose scale means nothing, by group.
    Points {
        groups: Vec<Series>,
    },
    Curve {
        x_axis: String,
        y_axis: String,
        lines: Vec<Series>,
    },
    Bars {
        axis: String,
        names: Vec<String>,
        values: Vec<f64>,
    },
}

/// Points of one name; `x` and `y` are of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub x: Vec<f64>,
    pub y: Vec<f64>,
}

impl Figure {
    #[must_use]
    pub fn new(name: &str, title: &str, shape: Shape) -> Self {
        Self { name: name.to_owned(), title: title.to_owned(), shape }
    }

    /// Whether every value is a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        match &self.shape {
            Shape::Matrix { values, .. } => values.iter().flatten().flatten().all(|value| value.is_finite()),
            Shape::Points { groups: all } | Shape::Curve { lines: all, .. } => {
                all.iter().flat_map(|one| one.x.iter().chain(&one.y)).all(|value| value.is_finite())
            }
            Shape::Bars { values, .. } => values.iter().all(|value| value.is_finite()),
        }
    }
}

impl Series {
    #[must_use]
    pub fn new(name: &str, x: Vec<f64>, y: Vec<f64>) -> Self {
        Self { name: name.to_owned(), x, y }
    }

    /// At most `count` of its points (2 or more), evenly spaced by number; the first and the last are among them.
    #[must_use]
    pub fn thinned(self, count: usize) -> Self {
        let (all, gaps) = (self.x.len().min(self.y.len()), count.max(2) - 1);
        if all <= gaps + 1 {
            return self;
        }
        let kept = (0..=gaps).map(|k| (k * (all - 1) + gaps / 2) / gaps);
        let (x, y) = kept.map(|index| (self.x[index], self.y[index])).unzip();
        Self { name: self.name, x, y }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_series_keeps_its_ends_and_its_order() {
        let line = |count: usize| {
            let x: Vec<f64> = (0..count).map(|i| i as f64).collect();
            Series::new("", x.clone(), x)
        };
        let few = line(1_000).thinned(10);
        assert_eq!((few.x.len(), few.x[0], few.x[9]), (10, 0.0, 999.0));
        assert!(few.x.windows(2).all(|pair| pair[1] - pair[0] == 111.0), "{:?}", few.x);
        assert_eq!(line(10).thinned(10), line(10));
        assert_eq!(line(11).thinned(10).x.len(), 10);
        assert!(line(0).thinned(10).x.is_empty());
    }

    #[test]
    fn figures_are_read_back_as_they_were_written() {
        let values = vec![vec![Some(0.1), None]];
        let (rows, columns) = (vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]);
        let (row_axis, column_axis) = (String::new(), String::new());
        let figure = Figure::new("m", "M", Shape::Matrix { row_axis, column_axis, rows, columns, values });
        let text = serde_json::to_string(&figure).unwrap();
        assert!(text.contains("\"values\":[[0.1,null]]"), "{text}");
        assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), figure);
    }
}
