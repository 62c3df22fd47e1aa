//! Losses. Each is one op that works out its value together with its gradient, in f64 inside, as a mean over the batch
//! with natural logarithms: written by hand on the CPU, a kernel where a GPU has one, else composed of candle's operations
//! (`composed`), with the same gradients.

pub mod arpl;
mod bce;
pub mod composed;
mod fused;
pub mod ssl;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::kernels::{self, Rows};

pub use bce::binary_cross_entropy;
pub use ssl::{nt_xent, nt_xent_original, simple_ssl};

/// Mean cross-entropy of logits `[B, C]` with labels `[B]` (u32).
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    smoothed_cross_entropy(logits, labels, 0.0)
}

/// Cross-entropy with targets (1 - smoothing) one-hot + smoothing / C (Szegedy et al., CVPR 2016,
/// <https://arxiv.org/abs/1512.00567>); smoothing in [0, 1].
pub fn smoothed_cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    let (batch, classes) = matrix(logits, "logits")?;
    if labels.dims() != [batch] {
        return Err(Error::invalid(format!("there are {batch} rows of logits, but labels {:?}", labels.dims())));
    }
    if !logits.device().is_cpu() {
        return match kernels::loss(logits, Rows::CrossEntropy { labels, smoothing })? {
            Some(told) => fused::told("cross_entropy", &[logits], told),
            None => composed::cross_entropy(logits, labels, smoothing),
        };
    }
    let labels = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
        return Err(Error::invalid(format!("there is a label {label} among {classes} classes")));
    }
    fused::one("cross_entropy", logits, move |x| {
        let mut gradient = vec![0.0; x.len()];
        let (mut sum, share) = (0.0, 1.0 / batch as f64);
        let rows = x.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
        for ((row, slope), &label) in rows.zip(&labels) {
            log_softmax(row, 1.0, slope);
            let even = if smoothing > 0.0 { slope.iter().sum::<f64>() / classes as f64 } else { 0.0 };
            sum -= (1.0 - smoothing) * slope[label as usize] + smoothing * even;
            for value in &mut *slope {
                *value = (value.exp() - smoothing / classes as f64) * share;
            }
            slope[label as usize] -= (1.0 - smoothing) * share;
        }
        (sum * share, gradient)
    })
}

/// KL(p_teacher || p_student), p = softmax(logits / temperature), logits [B, C] (Hinton et al., 2015,
/// <https://arxiv.org/abs/1503.02531>). Without the factor temperature^2: callers that want it multiply. A tracked
/// teacher gets its gradient too.
pub fn distill(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (batch, classes) = pair(student, teacher, "the teacher's logits")?;
    warm(temperature)?;
    if !student.device().is_cpu() {
        return match kernels::loss(student, Rows::Distill { teacher, temperature })? {
            Some(told) => fused::told("distill", &[student, teacher], told),
            None => composed::distill(student, teacher, temperature),
        };
    }
    fused::two("distill", student, teacher, move |s, t| {
        let (mut slope_s, mut slope_t) = (vec![0.0; s.len()], vec![0.0; t.len()]);
        let (mut sum, share) = (0.0, 1.0 / (batch as f64 * temperature));
        for start in (0..s.len()).step_by(classes) {
            let (log_q, log_p) = (&mut slope_s[start..start + classes], &mut slope_t[start..start + classes]);
            log_softmax(&s[start..start + classes], temperature, log_q);
            log_softmax(&t[start..start + classes], temperature, log_p);
            let kl = divergence(log_p, log_q);
            sum += kl;
            for (q, p) in log_q.iter_mut().zip(log_p) {
                let (gap, power_q, power_p) = (*p - *q, q.exp(), p.exp());
                *q = (power_q - power_p) * share;
                *p = power_p * (gap - kl) * share;
            }
        }
        (sum / batch as f64, slope_s, slope_t)
    })
}

/// KL(target || p_student) for a target [B, C] that is a probability distribution already, such as a mixture of
/// teachers; p_student = softmax(logits / temperature). The target is a constant: no gradient goes into it.
pub fn kl_to(target: &Tensor, student: &Tensor, temperature: f64) -> Result<Tensor> {
    let (batch, classes) = pair(student, target, "the target")?;
    warm(temperature)?;
    if !student.device().is_cpu() {
        return match kernels::loss(student, Rows::KlTo { target, temperature })? {
            Some(told) => fused::told("kl_to", &[student], told),
            None => composed::kl_to(target, student, temperature),
        };
    }
    let target = target.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    fused::one("kl_to", student, move |x| {
        let mut gradient = vec![0.0; x.len()];
        let (mut sum, share) = (0.0, 1.0 / (batch as f64 * temperature));
        let rows = x.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
        for ((row, slope), target) in rows.zip(target.chunks_exact(classes)) {
            log_softmax(row, temperature, slope);
            let mass: f64 = target.iter().sum();
            for (q, &p) in slope.iter_mut().zip(target) {
                sum += if p > 0.0 { p * (p.ln() - *q) } else { 0.0 };
                *q = (mass * q.exp() - p) * share;
            }
        }
        (sum / batch as f64, gradient)
    })
}

/// softmax(logits / temperature), row by row, as a constant: a teacher's answer for `kl_to`.
pub fn softened(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    matrix(logits, "logits")?;
    warm(temperature)?;
    Ok(composed::log_softmax(&logits.detach(), temperature)?.exp()?)
}

/// log softmax(row / temperature) into `out`; finite for all finite rows.
fn log_softmax(row: &[f64], temperature: f64, out: &mut [f64]) {
    let top = row.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(x));
    let sum: f64 = row.iter().map(|x| ((x - top) / temperature).exp()).sum();
    let log = sum.ln();
    for (out, x) in out.iter_mut().zip(row) {
        *out = (x - top) / temperature - log;
    }
}

fn divergence(log_p: &[f64], log_q: &[f64]) -> f64 {
    log_p.iter().zip(log_q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn matrix(tensor: &Tensor, what: &str) -> Result<(usize, usize)> {
    match *tensor.dims() {
        [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        ref other => Err(Error::invalid(format!("{what} must be a matrix that is not empty, not {other:?}"))),
    }
}

fn pair(one: &Tensor, other: &Tensor, what: &str) -> Result<(usize, usize)> {
    let shape = matrix(one, "the student's logits")?;
    if other.dims() == one.dims() {
        Ok(shape)
    } else {
        Err(Error::invalid(format!("{what} has the shape {:?}, the student's logits {:?}", other.dims(), one.dims())))
    }
}

fn warm(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("the temperature is {temperature}, it must be above 0")))
}
