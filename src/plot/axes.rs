//! Axes with round numbers, and where values lie between them.

use super::{Drawn, EDGE, LETTER, LINE, SIDE, TOP, escaped};

/// Pixels of the plot's area, and the values at its sides.
pub(super) struct Axes {
    pub(super) left: f64,
    pub(super) width: f64,
    height: f64,
    x_ticks: Vec<f64>,
    y_ticks: Vec<f64>,
}

impl Axes {
    /// Wide enough for all these values.
    pub(super) fn new(x: impl IntoIterator<Item = f64>, y: impl IntoIterator<Item = f64>) -> Self {
        let (x_ticks, y_ticks) = (ticks(x), ticks(y));
        let longest = labels(&y_ticks).map(|label| label.chars().count()).max().unwrap_or(0);
        let left = EDGE + LINE + longest as f64 * LETTER + 8.0;
        Self { left, width: SIDE, height: SIDE * 0.7, x_ticks, y_ticks }
    }

    /// The same elsewhere and of another height.
    pub(super) fn placed(self, left: f64, height: f64) -> Self {
        Self { left, height, ..self }
    }

    pub(super) fn bottom(&self) -> f64 {
        TOP + self.height
    }

    pub(super) fn x(&self, value: f64) -> f64 {
        self.left + share(&self.x_ticks, value) * self.width
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.bottom() - share(&self.y_ticks, value) * self.height
    }

    pub(super) fn draw_x(&self, drawn: &mut Drawn, name: &str) {
        for (&tick, label) in self.x_ticks.iter().zip(labels(&self.x_ticks)) {
            let x = self.x(tick);
            drawn.add(format_args!("{}", grid((x, TOP), (x, self.bottom()))));
            drawn.text((x, self.bottom() + 14.0), "middle", &label);
        }
        drawn.text((self.left + self.width / 2.0, self.bottom() + 2.0 * LINE), "middle", name);
    }

    pub(super) fn draw(&self, drawn: &mut Drawn, x_name: &str, y_name: &str) {
        self.draw_x(drawn, x_name);
        for (&tick, label) in self.y_ticks.iter().zip(labels(&self.y_ticks)) {
            let y = self.y(tick);
            drawn.add(format_args!("{}", grid((self.left, y), (self.left + self.width, y))));
            drawn.text((self.left - 6.0, y + 4.0), "end", &label);
        }
        drawn.add(format_args!(
            "<text transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            EDGE + 10.0,
            TOP + self.height / 2.0,
            escaped(y_name)
        ));
    }
}

fn grid((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/>"
    )
}

/// Where a value lies between the first and the last tick.
fn share(ticks: &[f64], value: f64) -> f64 {
    match ticks {
        [first, .., last] => (value - first) / (last - first),
        _ => 0.5,
    }
}

/// Some five round numbers around all values, rising; 0 and 1 where there is no finite value.
fn ticks(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let (mut low, mut high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        (low, high) = (0.0, 1.0);
    } else if low == high {
        (low, high) = (low.min(0.0), if high > 0.0 { high } else { low + 1.0 });
    }
    let rough = (high - low) / 4.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough);
    let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
    (0..=(last - first) as usize).map(|k| (first + k as f64) * step).collect()
}

/// As many digits as tell one tick from the next.
fn labels(ticks: &[f64]) -> impl Iterator<Item = String> {
    let step = if let [first, second, ..] = ticks { second - first } else { 1.0 };
    let digits = (0..12).find(|&digits| (step * 10.0_f64.powi(digits) + 1e-6).fract() < 1e-5);
    let plain = ticks.iter().all(|tick| tick.abs() < 1e6);
    ticks.iter().map(move |&tick| match digits.filter(|_| plain) {
        // no "-0"
        Some(digits) => format!("{:.*}", digits as usize, if tick == 0.0 { 0.0 } else { tick }),
        None => short(tick),
    })
}

/// A number in few characters.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 1e6 => return format!("{value:.1e}"),
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 => 2,
        _ if size >= 0.001 => 3,
        _ if size == 0.0 => 0,
        _ => return format!("{value:.0e}"),
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        assert_eq!(ticks([0.0, 1.0]), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks([3.0, 98.0]), [0.0, 25.0, 50.0, 75.0, 100.0]);
        assert_eq!(ticks([-7.0, 12.0]), [-10.0, -5.0, 0.0, 5.0, 10.0, 15.0]);
        assert_eq!(ticks([0.0, 0.0]).first(), Some(&0.0));
        assert_eq!(ticks([]).len(), 5);
        for high in [1e-7, 0.3, 1.0, 7.0, 1234.5, 9e9] {
            let ticks = ticks([0.0, high]);
            assert!((2..=7).contains(&ticks.len()) && *ticks.last().unwrap() >= high * 0.999, "{high}: {ticks:?}");
        }
    }

    #[test]
    fn neighbours_have_other_labels() {
        let words = |values: [f64; 2]| labels(&ticks(values)).collect::<Vec<_>>().join(" ");
        assert_eq!(words([0.0041, 0.0057]), "0.0040 0.0045 0.0050 0.0055 0.0060");
        assert_eq!(words([0.0, 1.0]), "0.00 0.25 0.50 0.75 1.00");
        assert_eq!(words([-3.0, 14.0]), "-5 0 5 10 15");
        assert_eq!(words([0.0, 4e6]), "0 1.0e6 2.0e6 3.0e6 4.0e6");
    }

    #[test]
    fn numbers_are_short() {
        let words: Vec<String> = [0.0, 36.0, 97.22222, 100.0, 0.5, -0.25, 0.00012, 2.5e7].map(short).to_vec();
        assert_eq!(words, ["0", "36", "97.2", "100", "0.5", "-0.25", "1e-4", "2.5e7"]);
    }
}
