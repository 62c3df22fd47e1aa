//! Rows that differ in a seed alone, as one: mean, standard deviation, interval, and a paired test against the best.

use serde::Serialize;
use serde_json::{Map, Value, json};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// One model on one split.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub name: String,
    pub base: String,
    pub model: String,
    pub reference: String,
    pub axes: Map<String, Value>,
    /// In the order of the columns.
    pub values: Vec<Option<f64>>,
    /// Value less the reference's value.
    pub gaps: Vec<Option<f64>>,
    /// Mean of the absolute gaps that count.
    pub average_gap: Option<f64>,
    pub trained_on: Value,
    /// The model could not be made or measured.
    pub failed: bool,
}

/// Mean and spread of n numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub n: usize,
    pub mean: f64,
    /// Of a sample: divided by n - 1; none for one number.
    pub sd: Option<f64>,
    /// Half the width of the 95 % interval of the mean, by Student's t.
    pub half_width: Option<f64>,
}

pub(super) fn spread(numbers: &[f64]) -> Option<Spread> {
    let n = numbers.len();
    if n == 0 {
        return None;
    }
    let mean = numbers.iter().sum::<f64>() / n as f64;
    let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
    let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
    let student = StudentsT::new(0.0, 1.0, n as f64 - 1.0).ok().filter(|_| n > 1);
    let half_width = student.zip(sd).map(|(student, sd)| student.inverse_cdf(0.975) * sd / (n as f64).sqrt());
    Some(Spread { n, mean, sd, half_width })
}

/// The two-sided p of a paired t-test; none where there are fewer than two pairs or their differences do not spread.
pub(super) fn paired(a: &[f64], b: &[f64]) -> Option<f64> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let Spread { n, mean, sd, .. } = spread(&differences)?;
    let sd = sd.filter(|sd| *sd > 0.0)?;
    let t = mean / (sd / (n as f64).sqrt());
    let student = StudentsT::new(0.0, 1.0, n as f64 - 1.0).ok()?;
    Some(2.0 * student.sf(t.abs()))
}

/// Rows gathered by everything but the axes `over`; the axes in `order` come first in a group's name.
pub(super) fn groups(rows: &[Row], over: &[String], order: &[String]) -> Vec<Value> {
    let mut groups: Vec<(String, Map<String, Value>, Vec<&Row>)> = Vec::new();
    for row in rows {
        let axes: Map<String, Value> =
            row.axes.iter().filter(|(axis, _)| !over.contains(axis)).map(|(a, v)| (a.clone(), v.clone())).collect();
        match groups.iter_mut().find(|(base, known, _)| *base == row.base && *known == axes) {
            Some((.., members)) => members.push(row),
            None => groups.push((row.base.clone(), axes, vec![row])),
        }
    }
    let is_reference = |members: &[&Row]| members.iter().all(|row| row.name == row.reference);
    let gap = |members: &[&Row]| spread(&members.iter().filter_map(|row| row.average_gap).collect::<Vec<_>>());
    let mean_gap = |members: &[&Row]| gap(members).map_or(f64::INFINITY, |spread| spread.mean);
    let best = groups.iter().filter(|(.., members)| !is_reference(members));
    let best = best.min_by(|(.., a), (.., b)| mean_gap(a).total_cmp(&mean_gap(b))).map(|(.., members)| members.clone());
    let against_best = |members: &[&Row]| -> Option<f64> {
        let place = |row: &Row| over.iter().map(|axis| row.axes.get(axis).cloned()).collect::<Vec<_>>();
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for row in members {
            let pair = best.iter().flatten().find(|other| place(other) == place(row))?;
            mine.push(row.average_gap?);
            theirs.push(pair.average_gap?);
        }
        paired(&mine, &theirs)
    };
    let described = |(base, axes, members): &(String, Map<String, Value>, Vec<&Row>)| {
        let column =
            |of: &dyn Fn(&Row) -> Option<f64>| spread(&members.iter().filter_map(|row| of(row)).collect::<Vec<_>>());
        let columns = members.first().map_or(0, |row| row.values.len());
        let values: Vec<_> = (0..columns).map(|c| column(&|row: &Row| row.values[c])).collect();
        let gaps: Vec<_> = (0..columns).map(|c| column(&|row: &Row| row.gaps[c])).collect();
        let is_best =
            best.as_ref().is_some_and(|best| best.first().map(|row| &row.name) == members.first().map(|row| &row.name));
        json!({ "name": name(base, axes, order), "base": base, "axes": axes, "n": members.iter().filter(|row| !row.failed).count(),
            "failed": members.iter().filter(|row| row.failed).count(), "values": values,
            "gaps": gaps, "average_gap": gap(members), "is_reference": is_reference(members), "is_best": is_best,
            "p_against_best": if is_best || is_reference(members) { None } else { against_best(members) },
            "models": members.iter().map(|row| &row.model).collect::<Vec<_>>() })
    };
    groups.iter().map(described).collect()
}

fn name(base: &str, axes: &Map<String, Value>, order: &[String]) -> String {
    let named = order.iter().filter_map(|axis| axes.get(axis).map(|value| (axis, value)));
    let rest = axes.iter().filter(|(axis, _)| !order.contains(axis));
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let words: Vec<String> = named.chain(rest).map(|(axis, value)| format!("{axis}={}", word(value))).collect();
    if words.is_empty() { base.to_owned() } else { format!("{base}[{}]", words.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_and_tests_as_scipy_has_them() {
        // scipy.stats: tstd, t.interval(0.95, ...), ttest_rel.
        let a = [1.0, 2.0, 4.0, 3.5];
        let b = [0.5, 2.5, 3.0, 2.0];
        let found = spread(&a).unwrap();
        assert_eq!((found.n, found.mean), (4, 2.625));
        assert!((found.sd.unwrap() - 1.376_893).abs() < 1e-6, "{found:?}");
        assert!((found.half_width.unwrap() - 2.190_943).abs() < 1e-5, "{found:?}");
        let p = paired(&a, &b).unwrap();
        assert!((p - 0.239_443).abs() < 1e-5, "{p}");
        assert_eq!(spread(&[3.0]).unwrap().sd, None);
        assert_eq!(paired(&[1.0, 2.0], &[2.0, 3.0]), None);
    }
}
