//! Results as one HTML page that needs nothing beside itself: tables, then each figure of all models side by side.

use super::Sheet;
use crate::metric::figure::Figure;
use crate::plot::{escaped, svg};

/// A result with the figures of what it compares, by model.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: String,
    pub sheet: Sheet,
    pub figures: Vec<(String, Vec<Figure>)>,
}

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fafafa; --card: #fff; --text: #222; --faint: #6a6a6a; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #17181b; --card: #202226; --text: #e2e2e2; --faint: #a0a0a0; --line: #3a3d42; }
}
body { margin: 2rem auto; padding: 0 1.5rem; max-width: 90rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 60rem; } p, li, footer { color: var(--faint); } ul.notes { padding-left: 1.2rem; font-size: 13px; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td small { color: var(--faint); font-size: 12px; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
svg.figure { display: block; max-width: 100%; height: auto; fill: var(--text); color: var(--text); }
svg.figure .ground { fill: var(--card); }
footer { margin-top: 3rem; font-size: 13px; }
";

/// `about` says more under the title, where there is more.
#[must_use]
pub fn page(title: &str, about: &str, sections: &[Section]) -> String {
    let title = escaped(title);
    let about = if about.is_empty() { String::new() } else { format!("<p>{}</p>\n", escaped(about)) };
    let inside: String = sections.iter().map(section).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{about}{inside}<footer>made by recant {}</footer>\n\
         </body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn section(section: &Section) -> String {
    let Section { name, sheet, figures } = section;
    let tagged = |tag: &str, word: &String| format!("<{tag}>{}</{tag}>", escaped(word));
    let head: String = sheet.head.iter().map(|word| tagged("th", word)).collect();
    let line = |line: &Vec<String>| format!("<tr>{}</tr>\n", line.iter().map(|word| cell(word)).collect::<String>());
    let lines: String = sheet.lines.iter().map(line).collect();
    let notes: String = sheet.notes.iter().map(|note| tagged("li", note) + "\n").collect();
    let notes = if notes.is_empty() { notes } else { format!("<ul class=\"notes\">\n{notes}</ul>\n") };
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for figure in figures.iter().flat_map(|(_, all)| all) {
        if !kinds.iter().any(|(name, _)| *name == figure.name) {
            kinds.push((&figure.name, &figure.title));
        }
    }
    let row = |(name, title): (&str, &str)| {
        let of = |(model, all): &(String, Vec<Figure>)| {
            let figure = all.iter().find(|figure| figure.name == name)?;
            Some(format!("<figure>{}</figure>\n", svg(figure, model)))
        };
        let all: String = figures.iter().filter_map(of).collect();
        format!("<h3>{} ({})</h3>\n<div class=\"figures\">\n{all}</div>\n", escaped(title), escaped(name))
    };
    let drawn: String = kinds.into_iter().map(row).collect();
    format!(
        "<h2>{}</h2>\n<p>{}</p>\n<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n\
         </table></div>\n{notes}{drawn}",
        escaped(name),
        escaped(&sheet.about)
    )
}

/// What stands in brackets is set small.
fn cell(word: &str) -> String {
    match word.split_once(" (").and_then(|(value, gap)| Some((value, gap.strip_suffix(')')?))) {
        Some((value, gap)) => format!("<td>{} <small>({})</small></td>", escaped(value), escaped(gap)),
        None => format!("<td>{}</td>", escaped(word)),
    }
}
