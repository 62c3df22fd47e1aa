//! Changes of training images, against a second computation.

use std::sync::Arc;

use candle_core::Device;
use recant::data::{Images, Part};
use recant::nn::transform::{Transform, batch};
use recant::rng::Rng;
use serde_json::json;

const SIDE: usize = 6;

fn images(count: usize) -> Images {
    let mut rng = Rng::new(7);
    // No pixel has the mean: a 0 after normalisation is a hole.
    let pixels: Vec<u8> = (0..count * SIDE * SIDE).map(|_| 128 + rng.below(100) as u8).collect();
    let part = Part { pixels: Arc::new(pixels), labels: Arc::new(vec![0; count]) };
    Images {
        name: "made up".into(),
        classes: vec!["one".into()],
        size: [1, SIDE, SIDE],
        mean: vec![0.25],
        std: vec![0.5],
        train: part,
        validation: Part::default(),
        test: Part::default(),
        unlabelled: Part::default(),
    }
}

fn transformed(images: &Images, indices: &[u32], settings: &serde_json::Value, rng: &Rng) -> Vec<Vec<f32>> {
    let transform = Transform::new(settings).unwrap();
    let all = batch(images, &images.train, indices, transform, rng, &Device::Cpu).unwrap();
    let all = all.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    all.chunks(SIDE * SIDE).map(<[f32]>::to_vec).collect()
}

#[test]
fn cutout_takes_one_square_out_and_leaves_the_rest() {
    let images = images(400);
    let indices: Vec<u32> = (0..400).collect();
    let rng = Rng::new(3);
    let whole = transformed(&images, &indices, &json!({ "name": "crop_flip", "padding": 2 }), &rng);
    let cut = transformed(&images, &indices, &json!({ "name": "crop_flip", "padding": 2, "cutout": 3 }), &rng);
    let mut seen = std::collections::BTreeSet::new();
    for (whole, cut) in whole.iter().zip(&cut) {
        let hole: Vec<usize> = (0..SIDE * SIDE).filter(|&i| cut[i] == 0.0).collect();
        let (rows, columns): (Vec<usize>, Vec<usize>) = hole.iter().map(|i| (i / SIDE, i % SIDE)).unzip();
        let ends = |all: &[usize]| (*all.iter().min().unwrap(), *all.iter().max().unwrap());
        let ((top, bottom), (left, right)) = (ends(&rows), ends(&columns));
        assert_eq!(hole.len(), (bottom - top + 1) * (right - left + 1), "a rectangle");
        for (low, high) in [(top, bottom), (left, right)] {
            // A middle m takes m - 1 ..= m + 1, cut off at the edge.
            assert!(high - low == 2 || (high - low == 1 && (low == 0 || high == SIDE - 1)), "{low} {high}");
        }
        assert!((0..SIDE * SIDE).all(|i| hole.contains(&i) || cut[i] == whole[i]), "the crop is the same");
        seen.insert((top, bottom, left, right));
    }
    assert_eq!(seen.len(), SIDE * SIDE, "every middle is drawn");
}

#[test]
fn what_is_drawn_for_an_image_does_not_depend_on_its_batch() {
    let images = images(10);
    let settings = json!({ "name": "crop_flip", "padding": 1, "cutout": 2 });
    let rng = Rng::new(5);
    let all = transformed(&images, &(0..10).collect::<Vec<u32>>(), &settings, &rng);
    let some = transformed(&images, &[7, 2], &settings, &rng);
    assert_eq!(some, [all[7].clone(), all[2].clone()]);
}

#[test]
fn a_crop_is_a_window_of_the_padded_image_and_padding_is_a_setting() {
    let images = images(300);
    let indices: Vec<u32> = (0..300).collect();
    let rng = Rng::new(11);
    for padding in [0_i64, 1, 3] {
        let cropped = transformed(&images, &indices, &json!({ "name": "crop", "padding": padding }), &rng);
        let mut shifts = std::collections::BTreeSet::new();
        for (index, crop) in cropped.iter().enumerate() {
            let pixels = &images.train.pixels[index * SIDE * SIDE..];
            let window = |down: i64, right: i64| -> Vec<f32> {
                let pixel = |i: usize| {
                    let (row, column) = ((i / SIDE) as i64 + down, (i % SIDE) as i64 + right);
                    let inside = (0..SIDE as i64).contains(&row) && (0..SIDE as i64).contains(&column);
                    let value =
                        if inside { f32::from(pixels[(row * SIDE as i64 + column) as usize]) / 255.0 } else { 0.0 };
                    (value - 0.25) / 0.5
                };
                (0..SIDE * SIDE).map(pixel).collect()
            };
            let all = (-padding..=padding).flat_map(|d| (-padding..=padding).map(move |r| (d, r)));
            let found: Vec<(i64, i64)> = all.filter(|&(d, r)| window(d, r) == *crop).collect();
            assert_eq!(found.len(), 1, "image {index}");
            shifts.insert(found[0]);
        }
        assert_eq!(shifts.len() as i64, (2 * padding + 1).pow(2), "every shift is drawn");
    }
}
