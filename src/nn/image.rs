//! Changes of one picture, with torchvision's tensor semantics on values in [0, 1]; what is drawn is given by the caller.
//! <https://docs.pytorch.org/vision/stable/transforms.html>

/// Channels x height x width.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub size: [usize; 3],
    pub values: Vec<f32>,
}

/// Top, left, height and width of a part of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// Shares of red, green and blue in grey.
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];

impl Picture {
    /// From bytes, height x width x channels.
    #[must_use]
    pub fn from_bytes(bytes: &[u8], size: [usize; 3]) -> Self {
        let [channels, height, width] = size;
        let at = |i: usize| bytes[i % (height * width) * channels + i / (height * width)];
        Self { size, values: (0..channels * height * width).map(|i| f32::from(at(i)) / 255.0).collect() }
    }

    /// Rounded once, at the end; height x width x channels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let [channels, height, width] = self.size;
        let at = |i: usize| self.values[i % channels * height * width + i / channels];
        (0..self.values.len()).map(|i| (at(i).clamp(0.0, 1.0) * 255.0).round() as u8).collect()
    }

    /// Each value from the one at (channel, row, column) that `from` says.
    fn gather(&self, height: usize, width: usize, from: impl Fn(usize, usize, usize) -> f32) -> Self {
        let channels = self.size[0];
        let mut values = Vec::with_capacity(channels * height * width);
        for channel in 0..channels {
            for row in 0..height {
                values.extend((0..width).map(|column| from(channel, row, column)));
            }
        }
        Self { size: [channels, height, width], values }
    }

    fn at(&self, channel: usize, row: usize, column: usize) -> f32 {
        self.values[(channel * self.size[1] + row) * self.size[2] + column]
    }

    /// Zeros on every side.
    #[must_use]
    pub fn padded(&self, padding: usize) -> Self {
        let [_, height, width] = self.size;
        self.gather(height + 2 * padding, width + 2 * padding, |channel, row, column| {
            let inside = (padding..padding + height).contains(&row) && (padding..padding + width).contains(&column);
            if inside { self.at(channel, row - padding, column - padding) } else { 0.0 }
        })
    }

    /// The part within a window, which lies inside.
    #[must_use]
    pub fn cropped(&self, window: Window) -> Self {
        self.gather(window.height, window.width, |channel, row, column| {
            self.at(channel, window.top + row, window.left + column)
        })
    }

    /// Mirrored sideways.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let [_, height, width] = self.size;
        self.gather(height, width, |channel, row, column| self.at(channel, row, width - 1 - column))
    }

    /// Bilinear; with `antialias` by a triangle that is as wide as the step where the picture shrinks.
    #[must_use]
    pub fn resized(&self, height: usize, width: usize, antialias: bool) -> Self {
        let [_, from_height, from_width] = self.size;
        let columns = taps(from_width, width, antialias);
        let rows = taps(from_height, height, antialias);
        let sum = |taps: &[(usize, f64)], value: &dyn Fn(usize) -> f32| {
            taps.iter().map(|&(at, weight)| weight * f64::from(value(at))).sum::<f64>() as f32
        };
        let wide = self
            .gather(from_height, width, |channel, row, column| sum(&columns[column], &|at| self.at(channel, row, at)));
        wide.gather(height, width, |channel, row, column| sum(&rows[row], &|at| wide.at(channel, at, column)))
    }

    /// factor x + (1 - factor) other, kept in [0, 1].
    fn blended(&self, factor: f32, other: impl Fn(usize) -> f32) -> Self {
        let mixed = self.values.iter().enumerate().map(|(i, x)| factor * x + (1.0 - factor) * other(i));
        Self { size: self.size, values: mixed.map(|x| x.clamp(0.0, 1.0)).collect() }
    }

    #[must_use]
    pub fn brightness(&self, factor: f32) -> Self {
        self.blended(factor, |_| 0.0)
    }

    /// Away from the mean grey of the picture, or towards it.
    #[must_use]
    pub fn contrast(&self, factor: f32) -> Self {
        let grey = self.grey();
        let mean = (grey.iter().map(|&x| f64::from(x)).sum::<f64>() / grey.len().max(1) as f64) as f32;
        self.blended(factor, |_| mean)
    }

    /// Away from each pixel's grey, or towards it. A picture of one channel stays as it is.
    #[must_use]
    pub fn saturation(&self, factor: f32) -> Self {
        if self.size[0] != 3 {
            return self.clone();
        }
        let grey = self.grey();
        self.blended(factor, |i| grey[i % grey.len()])
    }

    /// Turns the hue by a share of the circle, in [-0.5, 0.5]. A picture of one channel stays as it is.
    #[must_use]
    pub fn hue(&self, turn: f32) -> Self {
        let mut changed = self.clone();
        let area = self.size[1] * self.size[2];
        if self.size[0] == 3 {
            for i in 0..area {
                let pixel = turned([self.values[i], self.values[area + i], self.values[2 * area + i]], turn);
                pixel.into_iter().enumerate().for_each(|(channel, value)| changed.values[channel * area + i] = value);
            }
        }
        changed
    }

    /// One grey a pixel; a picture of one channel is grey already.
    fn grey(&self) -> Vec<f32> {
        let area = self.size[1] * self.size[2];
        if self.size[0] != 3 {
            return self.values[..area].to_vec();
        }
        (0..area).map(|i| (0..3).map(|channel| GREY[channel] * self.values[channel * area + i]).sum()).collect()
    }

    /// All channels alike.
    #[must_use]
    pub fn greyed(&self) -> Self {
        let grey = self.grey();
        let values = (0..self.values.len()).map(|i| grey[i % grey.len()]).collect();
        Self { size: self.size, values }
    }

    /// Gaussian, over `kernel` pixels (odd), mirrored at the edges without repeating them.
    #[must_use]
    pub fn blurred(&self, kernel: usize, sigma: f64) -> Self {
        let [_, height, width] = self.size;
        let half = (kernel / 2) as i64;
        let weights: Vec<f64> = (-half..=half).map(|k| (-0.5 * (k as f64 / sigma).powi(2)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mirror = |at: i64, size: usize| -> usize {
            let last = size as i64 - 1;
            let at = if at < 0 { -at } else { at };
            (if at > last { 2 * last - at } else { at }).clamp(0, last) as usize
        };
        let smooth = |value: &dyn Fn(i64) -> f32| {
            let parts = (-half..=half).zip(&weights).map(|(k, weight)| weight / sum * f64::from(value(k)));
            parts.sum::<f64>() as f32
        };
        let wide = self.gather(height, width, |channel, row, column| {
            smooth(&|k| self.at(channel, row, mirror(column as i64 + k, width)))
        });
        wide.gather(height, width, |channel, row, column| {
            smooth(&|k| wide.at(channel, mirror(row as i64 + k, height), column))
        })
    }

    /// (x - mean) / std, by channel.
    #[must_use]
    pub fn normalised(&self, mean: &[f32], std: &[f32]) -> Self {
        let area = (self.size[1] * self.size[2]).max(1);
        let values = self.values.iter().enumerate().map(|(i, x)| (x - mean[i / area]) / std[i / area]);
        Self { size: self.size, values: values.collect() }
    }
}

/// For each place along a side: which places of the old side count, and how much.
fn taps(from: usize, to: usize, antialias: bool) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let plain = |i: usize| {
        let place = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        let share = place - first as f64;
        vec![(first, 1.0 - share), ((first + 1).min(from - 1), share)]
    };
    let smooth = |i: usize| {
        let (middle, reach) = ((i as f64 + 0.5) * scale, scale.max(1.0));
        let first = (middle - reach + 0.5).max(0.0) as usize;
        let end = ((middle + reach + 0.5) as usize).min(from);
        let weight = |at: usize| (1.0 - ((at as f64 - middle + 0.5) / reach).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        (first..end).map(|at| (at, weight(at) / sum)).collect()
    };
    (0..to).map(|i| if antialias { smooth(i) } else { plain(i) }).collect()
}

/// Through hue, saturation, value and back.
fn turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let range = high - low;
    if range == 0.0 {
        return [r, g, b];
    }
    let (from_r, from_g, from_b) = ((high - r) / range, (high - g) / range, (high - b) / range);
    let sixth = if high == r {
        from_b - from_g
    } else if high == g {
        2.0 + from_r - from_b
    } else {
        4.0 + from_g - from_r
    };
    let hue = (sixth / 6.0 + 1.0).fract();
    let hue = (hue + turn).rem_euclid(1.0);
    let saturation = range / high;
    let whole = (hue * 6.0).floor();
    let rest = hue * 6.0 - whole;
    let mix = |share: f32| (high * (1.0 - saturation * share)).clamp(0.0, 1.0);
    let (p, q, t) = (mix(1.0), mix(rest), mix(1.0 - rest));
    match whole as u32 % 6 {
        0 => [high, t, p],
        1 => [q, high, p],
        2 => [p, high, t],
        3 => [p, q, high],
        4 => [t, p, high],
        _ => [high, p, q],
    }
}
