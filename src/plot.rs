//! Figures as SVG, with text and lines that a page may recolour: it has its own light ground (`.ground`), everything else
//! takes the colour of the picture (`fill`, `currentColor`) or one that reads on light and on dark.

mod axes;
mod matrix;

use std::fmt::Write;

use crate::metric::figure::{Figure, Series, Shape};
use axes::Axes;

/// Of groups and lines, in their order.
const COLOURS: [&str; 6] = ["#d1495b", "#2f7ed8", "#3a9d5d", "#a26bc2", "#d9902f", "#5f9ea8"];
/// Pixels: the widest square of a figure, around it, of a letter and of a line of text.
const SIDE: f64 = 270.0;
const EDGE: f64 = 12.0;
const LETTER: f64 = 6.1;
const LINE: f64 = 16.0;
/// Below the title.
const TOP: f64 = 36.0;

/// Text that is safe in XML and HTML.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// A picture under that heading, which stands for itself: as a file, or inside a page.
#[must_use]
pub fn svg(figure: &Figure, heading: &str) -> String {
    let Drawn { body, width, height } = match &figure.shape {
        Shape::Matrix { row_axis, column_axis, rows, columns, values } => {
            matrix::draw([row_axis, column_axis], rows, columns, values)
        }
        Shape::Points { groups } => points(groups),
        Shape::Curve { x_axis, y_axis, lines } => curve(x_axis, y_axis, lines),
        Shape::Bars { axis, names, values } => bars(axis, names, values),
    };
    let width = width.max(heading.chars().count() as f64 * 7.6 + 2.0 * EDGE);
    let heading = escaped(heading);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"figure\" role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"11\" \
         fill=\"#222\" color=\"#222\">\n<title>{heading}</title>\n\
         <rect class=\"ground\" width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#fff\"/>\n\
         <text x=\"{EDGE}\" y=\"22\" font-size=\"13\" font-weight=\"600\">{heading}</text>\n{body}</svg>\n"
    )
}

/// The inside of a picture and its size.
struct Drawn {
    body: String,
    width: f64,
    height: f64,
}

impl Drawn {
    fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// `anchor`: start, middle or end.
    fn text(&mut self, (x, y): (f64, f64), anchor: &str, words: &str) {
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(words)));
    }

    /// Names with their colours, one beside the other.
    fn legend(&mut self, left: f64, y: f64, series: &[Series], tell: impl Fn(&Series) -> String) {
        let mut x = left;
        for (index, one) in series.iter().enumerate() {
            let (colour, words) = (COLOURS[index % COLOURS.len()], tell(one));
            self.add(format_args!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", x + 4.0, y - 4.0));
            self.text((x + 12.0, y), "start", &words);
            x += words.chars().count() as f64 * LETTER + 26.0;
        }
        self.width = self.width.max(x);
    }
}

fn longest<'a>(words: impl IntoIterator<Item = &'a String>) -> f64 {
    words.into_iter().map(|word| word.chars().count()).max().unwrap_or(0) as f64 * LETTER
}

/// A square as wide as the points lie; the first group on top.
fn points(groups: &[Series]) -> Drawn {
    let mut drawn = Drawn::new(SIDE + 2.0 * EDGE, TOP + SIDE + LINE + EDGE);
    let all = |pick: fn(&Series) -> &Vec<f64>| groups.iter().flat_map(move |group| pick(group).iter().copied());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((x0, x1), (y0, y1)) = (range(&mut all(|group| &group.x)), range(&mut all(|group| &group.y)));
    let scale = (SIDE - 16.0) / (x1 - x0).max(y1 - y0).max(f64::MIN_POSITIVE);
    drawn.add(format_args!(
        "<rect x=\"{EDGE}\" y=\"{TOP}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"currentColor\" \
         stroke-opacity=\"0.4\"/>"
    ));
    for (index, group) in groups.iter().enumerate().rev() {
        let colour = COLOURS[index % COLOURS.len()];
        drawn.add(format_args!("<g fill=\"{colour}\" fill-opacity=\"0.7\">"));
        for (x, y) in group.x.iter().zip(&group.y) {
            let x = EDGE + SIDE / 2.0 + (x - f64::midpoint(x0, x1)) * scale;
            let y = TOP + SIDE / 2.0 - (y - f64::midpoint(y0, y1)) * scale;
            drawn.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>"));
        }
        drawn.add(format_args!("</g>"));
    }
    drawn.legend(EDGE, TOP + SIDE + LINE + 2.0, groups, |group| format!("{} ({})", group.name, group.x.len()));
    drawn
}

/// The first line drawn through, the others dashed.
fn curve(x_axis: &str, y_axis: &str, lines: &[Series]) -> Drawn {
    let all = |pick: fn(&Series) -> &Vec<f64>| lines.iter().flat_map(move |line| pick(line).iter().copied());
    let axes = Axes::new(all(|line| &line.x), all(|line| &line.y));
    let mut drawn = Drawn::new(axes.left + axes.width + EDGE + 6.0, axes.bottom() + 3.0 * LINE + EDGE);
    axes.draw(&mut drawn, x_axis, y_axis);
    for (index, line) in lines.iter().enumerate() {
        let (colour, dash) = (COLOURS[index % COLOURS.len()], if index > 0 { " stroke-dasharray=\"5 4\"" } else { "" });
        if let ([x], [y]) = (line.x.as_slice(), line.y.as_slice()) {
            let (x, y) = (axes.x(*x), axes.y(*y));
            drawn.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        let places = line.x.iter().zip(&line.y).map(|(&x, &y)| format!("{:.1},{:.1}", axes.x(x), axes.y(y)));
        drawn.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dash}/>",
            places.collect::<Vec<_>>().join(" ")
        ));
    }
    drawn.legend(axes.left, axes.bottom() + 3.0 * LINE, lines, |line| line.name.clone());
    drawn
}

/// One below the other, from 0.
fn bars(axis: &str, names: &[String], values: &[f64]) -> Drawn {
    let row = 24.0;
    let axes = Axes::new(values.iter().copied().chain([0.0]), [0.0])
        .placed(EDGE + longest(names) + 8.0, row * names.len().max(1) as f64);
    let mut drawn = Drawn::new(axes.left + axes.width + 48.0, axes.bottom() + 2.0 * LINE + EDGE);
    axes.draw_x(&mut drawn, axis);
    for (index, (name, &value)) in names.iter().zip(values).enumerate() {
        let (y, zero, end) = (TOP + index as f64 * row, axes.x(0.0), axes.x(value));
        drawn.add(format_args!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
            zero.min(end),
            y + 4.0,
            (end - zero).abs(),
            row - 8.0,
            COLOURS[1]
        ));
        drawn.text((axes.left - 6.0, y + row / 2.0 + 4.0), "end", name);
        drawn.text((zero.max(end) + 5.0, y + row / 2.0 + 4.0), "start", &format!("{value:.3}"));
    }
    drawn
}
