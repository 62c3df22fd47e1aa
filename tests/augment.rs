//! Changes of pictures against torchvision's, and what augmenters make.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use recant::artifact::Artifact;
use recant::augment::{self, AUGMENTERS};
use recant::data::{Images, Part, Split};
use recant::nn::image::{Picture, Window};
use recant::rng::Rng;
use recant::settings::{Default as FieldDefault, Settings};
use recant::stage::{Context, Inputs, NoDesk};
use serde_json::json;

use crate::support::golden::{self, Case};
use crate::support::place::{Place, SMALL, good};

/// Runs a golden case: each picture changed by the number of its place.
fn check(name: &str, change: impl Fn(&Case, usize, &Picture) -> Picture) {
    for case in golden::of_method(name) {
        let images = case.tensor("image");
        let &[count, channels, height, width] = images.dims() else { panic!() };
        let values = images.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (mut floats, mut bytes) = (Vec::new(), Vec::new());
        for (index, values) in values.chunks(values.len() / count).enumerate() {
            let picture =
                Picture { size: [channels, height, width], values: values.iter().map(|v| v / 255.0).collect() };
            let changed = change(&case, index, &picture);
            let back = Picture::from_bytes(&changed.to_bytes(), changed.size);
            bytes.extend(back.values.iter().map(|v| (v * 255.0).round()));
            floats.extend(changed.values);
        }
        let tensor = |values: Vec<f32>| Tensor::from_vec(values.clone(), values.len(), &Device::Cpu).unwrap();
        case.compare("output", &tensor(floats));
        if case.tensors.contains_key("u8.output") {
            case.compare("u8.output", &tensor(bytes));
        }
    }
}

fn listed(case: &Case, key: &str, index: usize) -> f32 {
    case.hyper(key)[index].as_f64().unwrap() as f32
}

#[test]
fn golden_geometry() {
    check("image_hflip", |_, _, picture| picture.mirrored());
    check("image_crop", |case, index, picture| {
        let size = case.number("size") as usize;
        let place = |axis: usize| case.hyper("offsets_top_left")[index][axis].as_u64().unwrap() as usize;
        let window = Window { top: place(0), left: place(1), height: size, width: size };
        picture.padded(case.number("padding") as usize).cropped(window)
    });
    for (name, antialias) in [("image_resized_crop", false), ("image_resized_crop_antialias", true)] {
        check(name, |case, index, picture| {
            let size = case.number("size") as usize;
            let side = |at: usize| case.hyper("boxes_top_left_height_width")[index][at].as_u64().unwrap() as usize;
            let window = Window { top: side(0), left: side(1), height: side(2), width: side(3) };
            picture.cropped(window).resized(size, size, antialias)
        });
    }
}

#[test]
fn golden_colours() {
    check("image_brightness", |case, index, picture| picture.brightness(listed(case, "factors", index)));
    check("image_contrast", |case, index, picture| picture.contrast(listed(case, "factors", index)));
    check("image_saturation", |case, index, picture| picture.saturation(listed(case, "factors", index)));
    check("image_hue", |case, index, picture| picture.hue(listed(case, "factors", index)));
    check("image_grayscale", |_, _, picture| picture.greyed());
    check("image_jitter_chain", |case, index, picture| {
        let factor = |change: usize| case.hyper("factors_by_operation")[index][change].as_f64().unwrap() as f32;
        let order = case.hyper("orders")[index].as_array().unwrap();
        order.iter().map(|change| change.as_u64().unwrap() as usize).fold(picture.clone(), |picture, change| {
            match change {
                0 => picture.brightness(factor(0)),
                1 => picture.contrast(factor(1)),
                2 => picture.saturation(factor(2)),
                _ => picture.hue(factor(3)),
            }
        })
    });
}

#[test]
fn golden_blur_and_normalisation() {
    check("image_blur", |case, index, picture| {
        picture.blurred(case.number("kernel") as usize, f64::from(listed(case, "sigmas", index)))
    });
    check("image_normalise", |case, _, picture| {
        let all = |key: &str| (0..3).map(|c| listed(case, key, c)).collect::<Vec<f32>>();
        picture.normalised(&all("mean"), &all("std"))
    });
}

fn images(size: [usize; 3]) -> Images {
    let mut rng = Rng::new(3).fork("pixels");
    let length = size.iter().product::<usize>();
    let part = Part {
        pixels: Arc::new((0..12 * length).map(|_| rng.below(256) as u8).collect()),
        labels: Arc::new((0..12).map(|i| i % 4).collect()),
    };
    Images {
        name: "made up".into(),
        classes: (0..4).map(|c| c.to_string()).collect(),
        size,
        mean: vec![0.5; size[0]],
        std: vec![0.25; size[0]],
        train: part,
        validation: Part::default(),
        test: Part::default(),
        unlabelled: Part::default(),
    }
}

/// The defaults of an augmenter, and more.
pub fn settings(name: &str, more: &serde_json::Value) -> Settings {
    let mut settings = Settings::new();
    for field in AUGMENTERS.iter().find(|one| one.entry.name == name).unwrap().entry.fields {
        if let FieldDefault::Is(text) = field.default {
            settings.insert(field.name.to_owned(), recant::recipe::default_value(field, text).unwrap());
        }
    }
    settings.extend(more.as_object().unwrap().clone());
    settings
}

/// What the augmenter of that name makes of some images to forget.
fn more(name: &str, settings: &Settings, images: &Images, forget: &[u32], seed: u64) -> Part {
    let split = Split::new(Arc::new(images.clone()), forget.to_vec(), Vec::new()).unwrap();
    let inputs = Inputs { by_role: [("data".to_owned(), Artifact::Split(Arc::new(split)))].into() };
    let context = Context { device: &Device::Cpu, files: std::collections::BTreeMap::new(), desk: &NoDesk };
    match augment::make(name, settings).unwrap().more(&inputs, &context, &Rng::new(seed)).unwrap() {
        Artifact::Images(made) => made.train.clone(),
        other => panic!("{name} made {}", other.kind()),
    }
}

/// For each entry of AUGMENTERS that changes images, unasked.
#[test]
fn every_augmenter_goes_round_keeps_labels_and_repeats_to_the_byte() {
    for registered in AUGMENTERS.iter().filter(|one| one.entry.name == "simple") {
        for size in [[3, 12, 10], [1, 8, 8]] {
            let images = images(size);
            let made = |count: usize, seed: u64| {
                let settings = settings(registered.entry.name, &json!({ "count": count }));
                more(registered.entry.name, &settings, &images, &[7, 2, 5], seed)
            };
            let eight = made(8, 1);
            assert_eq!(*eight.labels, [2, 1, 3, 2, 1, 3, 2, 1]);
            assert_eq!(eight, made(8, 1), "{}", registered.entry.name);
            assert_ne!(eight.pixels, made(8, 2).pixels);
            // more of them leaves the first ones as they are; the second round is not the first again
            let length = images.image_len();
            assert_eq!(made(20, 1).pixels[..8 * length], eight.pixels[..]);
            assert_ne!(eight.pixels[..length], eight.pixels[3 * length..4 * length]);
        }
    }
}

#[test]
fn simple_without_strength_leaves_the_bytes() {
    let images = images([3, 12, 10]);
    let none = json!({ "crop": 1.0, "flip": 0.0, "jitter_chance": 0.0, "grayscale": 0.0, "blur": 0.0 });
    let same = more("simple", &settings("simple", &none), &images, &[4, 9], 1);
    let length = images.image_len();
    assert_eq!(same.pixels[..length], images.train.pixels[4 * length..5 * length]);
    let all = json!({ "crop": 1.0, "flip": 1.0, "jitter_chance": 0.0, "grayscale": 1.0, "blur": 0.0 });
    let grey = more("simple", &settings("simple", &all), &images, &[4], 1);
    assert!(grey.pixels.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    // noise of a standard deviation of 0.02 is about 5 levels
    let noise = json!({ "crop": 1.0, "flip": 0.0, "jitter_chance": 0.0, "grayscale": 0.0, "blur": 0.0, "noise": 0.02, "count": 400 });
    let noisy = more("simple", &settings("simple", &noise), &images, &[4], 1);
    let original = &images.train.pixels[4 * length..5 * length];
    let inner = noisy.pixels.iter().zip(original.iter().cycle()).filter(|(_, o)| (30..226).contains(*o));
    let gaps: Vec<f64> = inner.map(|(n, o)| f64::from(*n) - f64::from(*o)).collect();
    let deviation = (gaps.iter().map(|gap| gap * gap).sum::<f64>() / gaps.len() as f64).sqrt();
    assert!((deviation - 5.1).abs() < 0.1, "{deviation}");
}

const MORE: &str = "\n[stages.simple]\nkind = \"augment\"\nmethod = \"simple\"\ndata = \"split\"\ncount = 300\n";

#[test]
fn augmented_images_join_the_forget_set_of_the_same_split() {
    let with = SMALL.replace("epochs = 2\n", "epochs = 2\naugment = \"simple\"\n") + MORE;
    let place = Place::new(&with.replace("neggrad_plus", "random_label"));
    let output = place.run(&["run", "r.toml", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    good(output);
    // 144 forget and 300 new images in batches of 64, then 1,294 retained ones, twice
    let steps = |stage: &str| {
        let line = text.lines().rfind(|line| line.contains("\"progress\"") && line.contains(stage)).unwrap();
        serde_json::from_str::<serde_json::Value>(line).unwrap()["total"].as_u64().unwrap()
    };
    assert_eq!(steps("\"unlearned\""), 2 * (7 + 21));
    let picture = place.folder.path().join("grid.png");
    good(place.run(&["samples", "r.toml", "simple", "-o", "grid.png"]));
    let picture = image::open(picture).unwrap();
    assert_eq!((picture.width(), picture.height()), (10 * 49, 10 * 49));

    let other = with.clone() + "\n[stages.other]\nkind = \"split\"\ndata = \"images\"\nforget = { count = 9 }\n";
    let other = other.replace("method = \"simple\"\ndata = \"split\"", "method = \"simple\"\ndata = \"other\"");
    let output = Place::new(&other).run(&["plan", "r.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("the images of `simple` were not made from the split `split`"), "{words}");
}
