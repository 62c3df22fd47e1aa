//! Matrices as squares of one colour.

use super::axes::short;
use super::{Drawn, EDGE, LINE, SIDE, TOP, escaped, longest};

const CELL: &str = "#2f6fb5";

/// Deeper where more; roots, so that the few beside the many can be seen. Names and numbers where there is room.
pub(super) fn draw(axes: [&str; 2], rows: &[String], columns: &[String], values: &[Vec<Option<f64>>]) -> Drawn {
    let most = rows.len().max(columns.len()).max(1) as f64;
    let side = (SIDE / most).clamp(4.0, 34.0);
    let wide = if columns.len() < rows.len() { (SIDE / columns.len().max(1) as f64).clamp(side, 72.0) } else { side };
    let named = side >= 9.0;
    let (row_names, column_names) = if named { (longest(rows), longest(columns)) } else { (0.0, 0.0) };
    let turned = column_names > wide;
    let (left, below) = (EDGE + LINE + row_names + 6.0, if turned { column_names + 8.0 } else { LINE });
    let (width, height) = (wide * columns.len() as f64, side * rows.len() as f64);
    let mut drawn = Drawn::new(left + width + EDGE, TOP + height + below + LINE + EDGE);
    let top_value = values.iter().flatten().flatten().fold(0.0_f64, |top, &value| top.max(value));
    for (row, line) in values.iter().enumerate() {
        for (column, value) in line.iter().enumerate() {
            let Some(value) = *value else { continue };
            let depth = if top_value > 0.0 { (value.max(0.0) / top_value).sqrt() } else { 0.0 };
            let (x, y) = (left + column as f64 * wide, TOP + row as f64 * side);
            let name = |names: &[String], index: usize| names.get(index).map_or(String::new(), |name| escaped(name));
            if depth > 0.0 {
                drawn.add(format_args!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.2}\" height=\"{side:.2}\" fill=\"{CELL}\" \
                     fill-opacity=\"{depth:.3}\"><title>{}, {}: {}</title></rect>",
                    name(rows, row),
                    name(columns, column),
                    short(value)
                ));
            }
            if side >= 18.0 {
                let colour = if depth > 0.6 { " style=\"fill:#fff\"" } else { "" };
                let faint = if value == 0.0 { " opacity=\"0.35\"" } else { "" };
                drawn.add(format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" text-anchor=\"middle\"{colour}{faint}>{}</text>",
                    x + wide / 2.0,
                    y + side / 2.0 + 3.5,
                    short(value)
                ));
            }
        }
    }
    drawn.add(format_args!(
        "<rect x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" \
         stroke=\"currentColor\" stroke-opacity=\"0.4\"/>"
    ));
    for (row, name) in rows.iter().enumerate().filter(|_| named) {
        drawn.text((left - 6.0, TOP + (row as f64 + 0.5) * side + 4.0), "end", name);
    }
    for (column, name) in columns.iter().enumerate().filter(|_| named) {
        let (x, y) = (left + (column as f64 + 0.5) * wide, TOP + height + 12.0);
        if turned {
            drawn.add(format_args!(
                "<text transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"end\">{}</text>",
                x + 4.0,
                y - 6.0,
                escaped(name)
            ));
        } else {
            drawn.text((x, y), "middle", name);
        }
    }
    drawn.text((left + width / 2.0, TOP + height + below + LINE - 2.0), "middle", axes[1]);
    drawn.add(format_args!(
        "<text transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        EDGE + 10.0,
        TOP + height / 2.0,
        escaped(axes[0])
    ));
    drawn
}
