//! First values of parameters, as torchvision's networks and PyTorch's layers draw them: convolutions from He's normal
//! distribution over the fan-out (He et al., ICCV 2015), linear layers uniform in +-1/sqrt(fan-in), batch norm 1 and 0.

use crate::rng::Rng;

/// Values of one parameter, drawn from the stream of its name, so that a layer more changes no other layer's start.
#[must_use]
pub fn parameter(name: &str, shape: &[usize], rng: &Rng) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut rng = rng.fork(name);
    match shape {
        [output, _, height, width] => {
            let std = (2.0 / (output * height * width) as f32).sqrt();
            (0..count).map(|_| rng.normal() * std).collect()
        }
        [_, input] => {
            let bound = 1.0 / (*input as f32).sqrt();
            (0..count).map(|_| rng.between(-bound, bound)).collect()
        }
        // A linear layer's bias and batch norm's have one dimension; the former starts at 0 here, as many do.
        _ if name.ends_with("weight") => vec![1.0; count],
        _ => vec![0.0; count],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_have_the_variance_of_he() {
        let values = parameter("conv1.weight", &[64, 32, 3, 3], &Rng::new(1));
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((variance / (2.0 / (64.0 * 9.0)) - 1.0).abs() < 0.05, "{variance}");
    }
}
