//! A table artifact as text, markdown or CSV, with the seconds that the store's manifests know.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Csv,
    Json,
}

/// Seconds of work that made a model, by name: none where its manifest is gone.
pub type Seconds<'a> = &'a dyn Fn(&str) -> Option<f64>;

#[must_use]
pub fn render(table: &Value, seconds: Seconds, format: Format) -> String {
    if format == Format::Json {
        return table.to_string();
    }
    let reference = table["reference"].as_str().unwrap_or_default();
    let columns: Vec<&Value> = table["columns"].as_array().into_iter().flatten().collect();
    let rows: Vec<&Value> = table["rows"].as_array().into_iter().flatten().collect();
    // On a terminal the columns that make the average gap; everywhere else all of them.
    let shown: Vec<usize> =
        (0..columns.len()).filter(|&c| format != Format::Text || columns[c]["in_gap"] == true).collect();
    let oracle = rows.iter().find(|row| row["name"] == reference);
    let reference_seconds = seconds(reference);
    let mut head = vec!["model".to_owned()];
    for &c in &shown {
        let unit = columns[c]["unit"].as_str().unwrap_or_default();
        let name = columns[c]["name"].as_str().unwrap_or_default();
        head.push(if unit.is_empty() { name.to_owned() } else { format!("{name} {unit}") });
    }
    head.extend(["average gap".to_owned(), "seconds".to_owned(), format!("of {reference}")]);
    let mut lines = Vec::new();
    for row in &rows {
        let name = row["name"].as_str().unwrap_or_default();
        let mut line = vec![name.to_owned()];
        for &c in &shown {
            let digits = if columns[c]["unit"] == "%" { 2 } else { 3 };
            let value = row["values"][c].as_f64();
            let base = oracle.and_then(|oracle| oracle["values"][c].as_f64());
            line.push(match (value, base) {
                (None, _) => "-".to_owned(),
                (Some(value), Some(base)) if name != reference && format != Format::Csv => {
                    format!("{value:.digits$} ({:+.digits$})", value - base)
                }
                (Some(value), _) => format!("{value:.digits$}"),
            });
        }
        let gap = row["average_gap"].as_f64().filter(|_| name != reference);
        line.push(gap.map_or("-".to_owned(), |gap| format!("{gap:.2}")));
        let took = seconds(name);
        line.push(took.map_or("-".to_owned(), |took| format!("{took:.2}")));
        let share = took.zip(reference_seconds).filter(|(_, whole)| *whole > 0.0);
        line.push(share.map_or("-".to_owned(), |(took, whole)| format!("{:.1} %", 100.0 * took / whole)));
        lines.push(line);
    }
    if format == Format::Csv {
        let quote = |cell: &String| if cell.contains([',', '"']) { format!("{cell:?}") } else { cell.clone() };
        let join = |line: &Vec<String>| line.iter().map(quote).collect::<Vec<_>>().join(",");
        return std::iter::once(&head).chain(&lines).map(|line| join(line) + "\n").collect();
    }
    let mut drawn = Table::new();
    drawn.load_style(if format == Format::Markdown { ASCII_MARKDOWN } else { UTF8_FULL_CONDENSED });
    drawn.set_header(head);
    for line in lines {
        drawn.add_row(line);
    }
    for column in drawn.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let about = format!(
        "{}: {} images to forget, {} to retain; in brackets the distance to `{reference}`",
        table["data"].as_str().unwrap_or_default(),
        table["forget"],
        table["retain"]
    );
    let mut text = format!("{about}\n{drawn}\n");
    for note in table["notes"].as_array().into_iter().flatten() {
        text += &format!("{}\n", note.as_str().unwrap_or_default());
    }
    text
}
