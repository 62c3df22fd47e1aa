//! Results as text, markdown, CSV or a page: tables, with the seconds that the store's manifests know, and scores.

mod page;
mod scores;

use std::collections::BTreeSet;

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

pub use page::{Section, page};
pub use scores::scores;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Csv,
    Json,
    /// One page with tables and figures
    Html,
}

/// Seconds of work that made a model, by name: none where its manifest is gone.
pub type Seconds<'a> = &'a dyn Fn(&str) -> Option<f64>;

/// A table in words, ready to be set.
#[derive(Clone, Debug)]
pub struct Sheet {
    pub about: String,
    pub head: Vec<String>,
    pub lines: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

impl Sheet {
    /// As text, markdown or CSV; the first column to the left, the others to the right.
    #[must_use]
    pub fn render(self, format: Format) -> String {
        if format == Format::Csv {
            let quote = |cell: &String| {
                if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.clone() }
            };
            let join = |line: &Vec<String>| line.iter().map(quote).collect::<Vec<_>>().join(",");
            return std::iter::once(&self.head).chain(&self.lines).map(|line| join(line) + "\n").collect();
        }
        let mut drawn = Table::new();
        drawn.load_style(if format == Format::Markdown { ASCII_MARKDOWN } else { UTF8_FULL_CONDENSED });
        drawn.set_header(self.head);
        for line in self.lines {
            drawn.add_row(line);
        }
        for column in drawn.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n{drawn}\n{}\n", self.about, self.notes.join("\n"))
    }
}

/// A table artifact in words.
#[must_use]
pub fn table(table: &Value, seconds: Seconds, format: Format) -> Sheet {
    let columns = list(&table["columns"]);
    // On a terminal the columns that make the average gap; everywhere else all of them.
    let shown: Vec<usize> =
        (0..columns.len()).filter(|&c| format != Format::Text || columns[c]["in_gap"] == true).collect();
    let grouped = !list(&table["groups"]).is_empty() && format != Format::Csv;
    let mut head = vec!["model".to_owned()];
    head.extend(shown.iter().map(|&c| heading(&columns[c])));
    head.push("average gap".to_owned());
    if grouped {
        head.extend(["n".to_owned(), "p".to_owned()]);
    }
    head.extend(["seconds".to_owned(), "of reference".to_owned()]);
    let lines: Vec<Vec<String>> = if grouped {
        list(&table["groups"]).iter().map(|group| group_line(group, columns, &shown, table, seconds)).collect()
    } else {
        list(&table["rows"]).iter().map(|row| row_line(row, columns, &shown, table, seconds, format)).collect()
    };
    let references: BTreeSet<&str> = list(&table["rows"]).iter().map(|row| text(&row["reference"])).collect();
    let reference = match references.iter().collect::<Vec<_>>().as_slice() {
        [one] => format!("`{one}`"),
        _ => "its reference".to_owned(),
    };
    let brackets = if grouped {
        let over: Vec<&str> = list(&table["over"]).iter().map(text).collect();
        format!(
            "mean ± standard deviation over {}; p: paired t-test of the average gap with the smallest one",
            over.join(", ")
        )
    } else {
        format!("in brackets the distance to {reference}")
    };
    Sheet { about: format!("{}; {brackets}", data(table)), head, lines, notes: notes(table) }
}

/// What was forgotten of which data; the data alone where nothing was divided.
fn data(record: &Value) -> String {
    if record["forget"].is_null() {
        return text(&record["data"]).to_owned();
    }
    // Splits of several sizes in one table are listed.
    let counts = |key: &str| match &record[key] {
        Value::Array(all) => all.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
        one => one.to_string(),
    };
    format!("{}: {} images to forget, {} to retain", text(&record["data"]), counts("forget"), counts("retain"))
}

fn notes(record: &Value) -> Vec<String> {
    list(&record["notes"]).iter().map(|note| text(note).to_owned()).collect()
}

/// Name and unit of a number.
fn heading(number: &Value) -> String {
    match (text(&number["name"]), text(&number["unit"])) {
        (name, "") => name.to_owned(),
        (name, unit) => format!("{name} {unit}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The name of a row, and whether a model of it failed.
fn marked(row: &Value, failed: bool) -> String {
    format!("{}{}", text(&row["name"]), if failed { " (failed)" } else { "" })
}

fn digits(column: &Value) -> usize {
    if column["unit"] == "%" { 2 } else { 3 }
}

/// Seconds of a model, and their share of what its reference took.
fn times(model: &str, reference: &str, table: &Value, seconds: Seconds) -> (Option<f64>, Option<f64>) {
    let took = seconds(model);
    let row = list(&table["rows"]).iter().find(|row| row["name"] == reference);
    let whole = row.and_then(|row| seconds(text(&row["model"]))).filter(|whole| *whole > 0.0);
    (took, took.zip(whole).map(|(took, whole)| 100.0 * took / whole))
}

fn timed((took, share): (Option<f64>, Option<f64>)) -> [String; 2] {
    let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    [or_dash(took.map(|took| format!("{took:.2}"))), or_dash(share.map(|share| format!("{share:.1} %")))]
}

fn row_line(
    row: &Value,
    columns: &[Value],
    shown: &[usize],
    table: &Value,
    seconds: Seconds,
    format: Format,
) -> Vec<String> {
    let is_reference = row["name"] == row["reference"];
    let mut line = vec![marked(row, row["failed"] == true)];
    for &c in shown {
        let digits = digits(&columns[c]);
        line.push(match (row["values"][c].as_f64(), row["gaps"][c].as_f64()) {
            (None, _) => "-".to_owned(),
            (Some(value), Some(gap)) if !is_reference && format != Format::Csv => {
                format!("{value:.digits$} ({gap:+.digits$})")
            }
            (Some(value), _) => format!("{value:.digits$}"),
        });
    }
    let gap = row["average_gap"].as_f64().filter(|_| !is_reference);
    line.push(gap.map_or("-".to_owned(), |gap| format!("{gap:.2}")));
    line.extend(timed(times(text(&row["model"]), text(&row["reference"]), table, seconds)));
    line
}

fn group_line(group: &Value, columns: &[Value], shown: &[usize], table: &Value, seconds: Seconds) -> Vec<String> {
    let spread = |value: &Value, digits: usize| match (value["mean"].as_f64(), value["sd"].as_f64()) {
        (None, _) => "-".to_owned(),
        (Some(mean), None) => format!("{mean:.digits$}"),
        (Some(mean), Some(sd)) => format!("{mean:.digits$} ± {sd:.digits$}"),
    };
    let is_reference = group["is_reference"] == true;
    let mut line = vec![marked(group, group["failed"].as_u64().is_some_and(|failed| failed > 0))];
    line.extend(shown.iter().map(|&c| spread(&group["values"][c], digits(&columns[c]))));
    line.push(if is_reference { "-".to_owned() } else { spread(&group["average_gap"], 2) });
    line.push(group["n"].to_string());
    line.push(match group["p_against_best"].as_f64() {
        _ if group["is_best"] == true => "best".to_owned(),
        Some(p) if p < 0.001 => "< 0.001".to_owned(),
        Some(p) => format!("{p:.3}"),
        None => "-".to_owned(),
    });
    let models: Vec<&str> = list(&group["models"]).iter().map(text).collect();
    let reference = |model: &str| {
        let row = list(&table["rows"]).iter().find(|row| row["model"] == model);
        row.map_or("", |row| text(&row["reference"]))
    };
    let all: Vec<_> = models.iter().map(|model| times(model, reference(model), table, seconds)).collect();
    let mean =
        |numbers: Option<Vec<f64>>| numbers.filter(|n| !n.is_empty()).map(|n| n.iter().sum::<f64>() / n.len() as f64);
    let took = mean(all.iter().map(|(took, _)| *took).collect());
    let share = mean(all.iter().map(|(_, share)| *share).collect());
    line.extend(timed((took, share)));
    line
}
