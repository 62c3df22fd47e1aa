//! Convolution without im2col. Values lie as height x width x batch x channels, so for one row of outputs and one place
//! of the window, inputs and outputs are both runs of whole (batch x channels) matrices, and a convolution is a sum of
//! plain matrix products over the places that fall inside the image. Padding costs nothing. Transposed convolution and
//! the gradient of the input are the same loops with the other geometry; linear layers are 1 x 1 windows.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::geometry::Geometry;
use super::number::{Half, Halves, Value, convert_all};
use super::outer::outer;
use super::parallel::{Shared, each};
use super::product::{Fold, Job, Start, cut, narrow, product};
use super::simd::Level;
use super::weights::{Ready, View, Weights, pack, panels, unpack};
use super::winograd::Tiling;
#[cfg(target_arch = "x86_64")]
use super::{finish::End, tiled, tiled_outer, tiles};
use crate::kernels::steps::{Step, Work};
use crate::kernels::{Products, Program, Window};

/// A convolution, a transposed one or a linear layer.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    level: Level,
    geometry: Geometry,
    pub(super) weights: Weights,
    /// Winograd's algorithm for the outputs and for the gradient of the inputs, where it pays.
    forth: Option<Tiling>,
    back: Option<Tiling>,
    half: Bf16,
}

/// How factors come to be bf16, if they do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bf16 {
    /// They stay f32.
    No,
    /// Rounded, then as if they were f32.
    Rounded,
    /// In tile registers.
    #[cfg(target_arch = "x86_64")]
    Tiled,
}

impl Bf16 {
    fn of(level: Level, products: Products) -> Self {
        match (level, products) {
            (_, Products::Winograd | Products::Direct) => Bf16::No,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Products::Bf16) if tiles::available() => Bf16::Tiled,
            (_, Products::Bf16) => Bf16::Rounded,
        }
    }
}

/// Numbers in f32: as they are, or of another kind.
enum Factor<'a> {
    Same(&'a [f32]),
    Made(Buffer),
}

impl Deref for Factor<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Factor::Same(x) => x,
            Factor::Made(x) => x,
        }
    }
}

impl Conv {
    /// That of a step, if it is one.
    pub(super) fn of(program: &Program, step: &Step, level: Level) -> Option<Self> {
        let Work::Conv { window, transposed, .. } = step.work else { return None };
        let [[inputs, height, width], [outputs, out_height, out_width]] =
            [step.from, step.to].map(|value| program.shapes[value]);
        let taps = window.kernel * window.kernel;
        let (input_step, output_step) = if transposed { (outputs * taps, taps) } else { (taps, inputs * taps) };
        let geometry = Geometry { output: [out_height, out_width], input: [height, width], window, transposed };
        let weights = Weights { inputs, outputs, input_step, output_step, taps };
        Some(Self::new(level, geometry, weights, program.products))
    }

    pub(super) fn new(level: Level, geometry: Geometry, weights: Weights, products: Products) -> Self {
        let half = Bf16::of(level, products);
        let winograd = products == Products::Winograd || half == Bf16::Rounded;
        let tiling = |geometry: Geometry, weights| Tiling::of(level, &geometry, weights).filter(|_| winograd);
        let (forth, back) = (tiling(geometry, weights), tiling(geometry.back(), weights.back()));
        Self { level, geometry, weights, forth, back, half }
    }

    #[cfg(test)]
    pub(super) fn is_winograd(&self) -> bool {
        self.forth.is_some() || self.back.is_some()
    }

    /// Of single pixels.
    fn is_linear(&self) -> bool {
        let Geometry { output, input, .. } = self.geometry;
        (output, input, self.weights.taps) == ([1, 1], [1, 1], 1)
    }

    /// Few input channels: the places of a window are gathered into one long row first.
    fn gathers(&self) -> bool {
        self.weights.inputs < 8 && self.weights.taps > 1 && !self.geometry.transposed
    }

    fn factor<'a>(&self, x: &'a Value, pool: &Arc<Pool>) -> Factor<'a> {
        match (x, self.half) {
            (Value::Full(x), Bf16::No) => Factor::Same(x),
            (Value::Full(x), _) => Factor::Made(rounded(x, pool)),
            (Value::Half(x), _) => Factor::Made(widened(x, pool)),
        }
    }

    fn packed(&self, weights: Weights, tiling: Option<Tiling>, theta: &[f32], pool: &Arc<Pool>) -> Buffer {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            return tiled::right(weights, theta, pool);
        }
        let theta = if self.half == Bf16::No { Factor::Same(theta) } else { Factor::Made(rounded(theta, pool)) };
        pack(self.level, weights, tiling, &theta, pool)
    }

    /// Weights for `forward`.
    pub(super) fn pack(&self, weights: &[f32], pool: &Arc<Pool>) -> Buffer {
        self.packed(self.weights, self.forth, weights, pool)
    }

    /// Weights for `backward`.
    pub(super) fn pack_back(&self, weights: &[f32], pool: &Arc<Pool>) -> Buffer {
        self.packed(self.weights.back(), self.back, weights, pool)
    }

    /// Whether in `forward` of so many images one task alone reads each weight, so that it may pack its own.
    pub(super) fn once(&self, batch: usize) -> bool {
        self.reads_once(&self.geometry, self.weights, self.forth, batch)
    }

    /// The same of `backward`.
    pub(super) fn once_back(&self, batch: usize) -> bool {
        self.reads_once(&self.geometry.back(), self.weights.back(), self.back, batch)
    }

    fn reads_once(&self, geometry: &Geometry, weights: Weights, tiling: Option<Tiling>, batch: usize) -> bool {
        let geometry = geometry.flat();
        let whole = weights.outputs.is_multiple_of(self.level.lanes());
        self.half == Bf16::No
            && match tiling {
                Some(tiling) => tiling.once(batch),
                None => geometry.by_pixel() && whole && geometry.output[0] * cut(geometry.output[1], batch).1 == 1,
            }
    }

    /// `output` = x * weights + bias. x: input height x width x batch x inputs.
    pub(super) fn forward(
        &self,
        batch: usize,
        x: &Value,
        weights: &Ready,
        bias: Option<&[f32]>,
        pool: &Arc<Pool>,
        output: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let (Bf16::Tiled, Ready::Packed(packed)) = (self.half, weights) {
            return tiled::product(&self.geometry, batch, x, (self.weights, packed), &End::Bias(bias), pool, output);
        }
        self.sums(batch, x, weights, (bias, None), pool, output);
    }

    /// Without tile registers.
    fn sums(
        &self,
        batch: usize,
        x: &Value,
        weights: &Ready,
        (bias, fold): (Option<&[f32]>, Option<Fold>),
        pool: &Arc<Pool>,
        output: &mut Value,
    ) {
        if let (Value::Half(x), Value::Half(output), true) = (x, &mut *output, self.geometry.by_pixel()) {
            let view = View::of(weights, self.weights);
            return narrow(self.level, x, view, (&Start::Bias(bias), fold), output);
        }
        let x = &self.factor(x, pool);
        full(output, false, pool, |output| self.direct(batch, x, weights, (bias, fold), output));
    }

    fn direct(
        &self,
        batch: usize,
        x: &[f32],
        weights: &Ready,
        (bias, fold): (Option<&[f32]>, Option<Fold>),
        output: &mut [f32],
    ) {
        let start = Start::Bias(bias);
        if self.gathers() {
            self.gathered(batch, x, weights, (bias, fold), output);
        } else if let Some(tiling) = self.forth {
            tiling.product(batch, x, weights, (&start, fold), output);
        } else {
            let view = View::of(weights, self.weights);
            product(self.level, &self.geometry.flat(), batch, x, view, (&start, fold), output);
        }
    }

    fn is_tiled(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.half == Bf16::Tiled;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// `forward` of a convolution without bias, with the batch norm that follows it: sums are not rounded before they are
    /// normalised.
    pub(super) fn folded(
        &self,
        batch: usize,
        x: &Value,
        weights: &Ready,
        fold: Fold,
        pool: &Arc<Pool>,
        output: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let (Bf16::Tiled, Ready::Packed(packed)) = (self.half, weights) {
            return tiled::product(&self.geometry, batch, x, (self.weights, packed), &End::Fold(fold), pool, output);
        }
        self.sums(batch, x, weights, (None, Some(fold)), pool, output);
    }

    /// `gradient` (of the input) = or += that of the output * weights transposed.
    pub(super) fn backward(
        &self,
        batch: usize,
        above: &Value,
        weights: &Ready,
        add: bool,
        pool: &Arc<Pool>,
        gradient: &mut Value,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let (Bf16::Tiled, Ready::Packed(packed)) = (self.half, weights) {
            let end = if add { End::Add } else { End::Bias(None) };
            return tiled::product(
                &self.geometry.back(),
                batch,
                above,
                (self.weights.back(), packed),
                &end,
                pool,
                gradient,
            );
        }
        let start = if add { Start::Keep } else { Start::Bias(None) };
        if let (Value::Half(above), Value::Half(gradient), true) = (above, &mut *gradient, self.geometry.by_pixel()) {
            let view = View::of(weights, self.weights.back());
            return narrow(self.level, above, view, (&start, None), gradient);
        }
        let above = self.factor(above, pool);
        full(gradient, add, pool, |gradient| {
            if let Some(tiling) = self.back {
                return tiling.product(batch, &above, weights, (&start, None), gradient);
            }
            let view = View::of(weights, self.weights.back());
            product(self.level, &self.geometry.back().flat(), batch, &above, view, (&start, None), gradient);
        });
    }

    fn gathered(
        &self,
        batch: usize,
        x: &[f32],
        weights: &Ready,
        (bias, fold): (Option<&[f32]>, Option<Fold>),
        output: &mut [f32],
    ) {
        let Weights { inputs, outputs, taps, .. } = self.weights;
        let [height, width] = self.geometry.output;
        let long = inputs * taps;
        let (across, chunks) = cut(width, batch);
        let shared = Shared::new(output);
        // one row of windows as a 1 x 1 convolution
        let seen = View::of(weights, self.weights).joined();
        each(height * chunks, height * width * batch * long * outputs, |task| {
            let (row, start) = (task / chunks, task % chunks * across);
            let columns = start..(start + across).min(width);
            let count = columns.len();
            let mut rows = vec![0.0; count * batch * long];
            self.gather(batch, x, row, &columns, &mut rows);
            let geometry =
                Geometry { output: [1, count], input: [1, count], window: Window::new(1, 1, 0), transposed: false };
            let home = (row * width + columns.start) * batch;
            // SAFETY: each task has its own row and columns of the output.
            let part = unsafe { shared.part(home * outputs, count * batch * outputs) };
            let job = Job { level: self.level, geometry: &geometry, batch, a: &rows, weights: seen };
            job.run(0, &(0..count), &panels(self.level, outputs), &Start::Bias(bias), &Shared::new(part));
            if let Some(fold) = fold {
                fold.end(home..home + count * batch, 0..outputs, &shared);
            }
        });
    }

    /// The windows of some outputs of a row, each a row of place x input channel.
    fn gather(&self, batch: usize, x: &[f32], row: usize, columns: &Range<usize>, rows: &mut [f32]) {
        let Weights { inputs, taps, .. } = self.weights;
        let width = self.geometry.input[1];
        let long = inputs * taps;
        rows.fill(0.0);
        for place in 0..taps {
            let Some(run) = self.geometry.run(row, place, columns) else { continue };
            for j in 0..run.count {
                let to = (run.to + j * run.to_step - columns.start) * batch * long + place * inputs;
                let from = (run.row * width + run.from + j * run.from_step) * batch * inputs;
                for b in 0..batch {
                    rows[to + b * long..][..inputs].copy_from_slice(&x[from + b * inputs..][..inputs]);
                }
            }
        }
    }

    /// Writes the gradient of the weights into theta's layout. `above`: gradient of the output.
    pub(super) fn gradient(&self, batch: usize, x: &Value, above: &Value, pool: &Arc<Pool>, gradient: &mut [f32]) {
        let Weights { inputs, outputs, input_step, .. } = self.weights;
        if self.is_linear() {
            // the factors in the order in which theta has them
            let outputs_first = input_step == 1;
            let (factors, channels) =
                if outputs_first { ([above, x], [outputs, inputs]) } else { ([x, above], [inputs, outputs]) };
            return self.outer(batch, factors, channels, pool, gradient);
        }
        if !self.is_tiled()
            && let Some(tiling) = self.forth.filter(|_| !self.geometry.transposed)
        {
            return tiling.gradient(batch, &self.factor(x, pool), &self.factor(above, pool), pool, gradient);
        }
        let mut sums = pool.lend(gradient.len());
        self.outer(batch, [x, above], [inputs, outputs], pool, &mut sums);
        unpack(&sums, self.weights, gradient);
    }

    fn outer(&self, batch: usize, [x, above]: [&Value; 2], channels: [usize; 2], pool: &Arc<Pool>, sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.half == Bf16::Tiled {
            return tiled_outer::outer(&self.geometry, batch, x, above, channels, pool, sums);
        }
        if let ([Value::Half(x), Value::Half(above)], false) = ([x, above], self.gathers()) {
            return outer(self.level, &self.geometry, batch, [x, above], channels, pool, sums);
        }
        let (x, above) = (&*self.factor(x, pool), &*self.factor(above, pool));
        if self.gathers() {
            let ([inputs, outputs], taps) = (channels, self.weights.taps);
            let [height, width] = self.geometry.output;
            let long = inputs * taps;
            let mut rows = pool.lend(height * width * batch * long);
            let (shared, line) = (Shared::new(&mut rows), width * batch * long);
            each(height, height * line, |row| {
                // SAFETY: each task has its own row.
                self.gather(batch, x, row, &(0..width), unsafe { shared.part(row * line, line) });
            });
            let geometry = Geometry {
                output: [height, width],
                input: [height, width],
                window: Window::new(1, 1, 0),
                transposed: false,
            };
            outer(self.level, &geometry, batch, [&rows, above], [long, outputs], pool, sums);
        } else {
            outer(self.level, &self.geometry, batch, [x, above], channels, pool, sums);
        }
    }
}

/// Lets `act` write what is stored otherwise in f32, or change it where it `reads` what is there.
fn full(value: &mut Value, reads: bool, pool: &Arc<Pool>, act: impl FnOnce(&mut [f32])) {
    match value {
        Value::Full(value) => act(value),
        Value::Half(value) => {
            let mut wide = if reads { widened(value, pool) } else { pool.lend(value.len()) };
            act(&mut wide);
            convert_all::<f32, Half>(&wide, value);
        }
    }
}

/// In f32, each the nearest bf16.
fn rounded(x: &[f32], pool: &Arc<Pool>) -> Buffer {
    let mut half = Halves::new(pool, x.len());
    convert_all::<f32, Half>(x, &mut half);
    widened(&half, pool)
}

fn widened(x: &[Half], pool: &Arc<Pool>) -> Buffer {
    let mut wide = pool.lend(x.len());
    convert_all::<Half, f32>(x, &mut wide);
    wide
}
