//! Which inputs an output of a convolution sees: forward, transposed, and for the gradient of the input.

use std::ops::Range;

use crate::kernels::Window;

/// Which inputs an output sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    /// Height and width.
    pub(super) output: [usize; 2],
    pub(super) input: [usize; 2],
    pub(super) window: Window,
    /// False: input = output x stride + place - padding. True: the other way round.
    pub(super) transposed: bool,
}

/// For one row of outputs and one place of the window: output column `to + j to_step` sees input column
/// `from + j from_step`, for j below `count`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) row: usize,
    pub(super) count: usize,
    pub(super) to: usize,
    pub(super) to_step: usize,
    pub(super) from: usize,
    pub(super) from_step: usize,
}

impl Geometry {
    /// The geometry of the gradient of the input.
    pub(super) fn back(self) -> Self {
        Self { output: self.input, input: self.output, window: self.window, transposed: !self.transposed }
    }

    /// Where each output sees the one input at its own place, all pixels in one row.
    pub(super) fn flat(self) -> Self {
        if self.by_pixel() {
            let row = [1, self.output[0] * self.output[1]];
            return Self { output: row, input: row, ..self };
        }
        self
    }

    /// Whether each output sees the one input at its own place.
    pub(super) fn by_pixel(&self) -> bool {
        self.window == Window::new(1, 1, 0)
    }

    /// Products of two numbers that one image takes, for each pair of channels.
    pub(super) fn products(&self) -> usize {
        let all = |row: usize, place: usize| self.run(row, place, &(0..self.output[1])).map_or(0, |run| run.count);
        (0..self.output[0]).flat_map(|row| (0..self.taps()).map(move |place| all(row, place))).sum()
    }

    pub(super) fn taps(&self) -> usize {
        self.window.kernel * self.window.kernel
    }

    /// What the outputs of a row in `columns` see through a place of the window.
    pub(super) fn run(&self, row: usize, place: usize, columns: &Range<usize>) -> Option<Run> {
        let Window { kernel, stride, padding } = self.window;
        let (down, across) = (place / kernel, place % kernel);
        if self.transposed {
            // output = input x stride + place - padding
            let seen = (row + padding).checked_sub(down)?;
            if seen % stride != 0 || seen / stride >= self.input[0] {
                return None;
            }
            let first = (columns.start + padding).saturating_sub(across).div_ceil(stride);
            let end = (columns.end + padding).saturating_sub(across).div_ceil(stride).min(self.input[1]);
            let count = end.checked_sub(first).filter(|&count| count > 0)?;
            let to = first * stride + across - padding;
            Some(Run { row: seen / stride, count, to, to_step: stride, from: first, from_step: 1 })
        } else {
            let seen = (row * stride + down).checked_sub(padding).filter(|&seen| seen < self.input[0])?;
            let first = columns.start.max(padding.saturating_sub(across).div_ceil(stride));
            let end = columns.end.min((self.input[1] + padding).saturating_sub(across).div_ceil(stride));
            let count = end.checked_sub(first).filter(|&count| count > 0)?;
            let from = first * stride + across - padding;
            Some(Run { row: seen, count, to: first, to_step: 1, from, from_step: stride })
        }
    }
}
