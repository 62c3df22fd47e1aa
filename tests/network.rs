//! Networks against PyTorch (golden cases), and the fast kernels against the reference.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use recant::nn::arch::{self, Arch, Shape, Stem};
use recant::nn::loss::binary_cross_entropy;
use recant::nn::model::{Backend, Model, Pass, Statistics, gradients};
use recant::rng::Rng;
use serde_json::{Value, json};

use crate::support::golden::{self, Case};

const BACKENDS: [Backend; 2] = [Backend::Reference, Backend::Fast];
const CPU: Device = Device::Cpu;

fn whole(value: &Value) -> usize {
    value.as_u64().expect("a whole number") as usize
}

/// The network that a case describes.
fn arch_of(case: &Case) -> Arch {
    let model = &case.entry["model"];
    let bottleneck = model["block"] == "bottleneck";
    let stem = match model["stem"].as_str() {
        Some("cifar") => Stem::Cifar,
        Some("seed") => Stem::CifarPool,
        _ => Stem::Imagenet,
    };
    let blocks = model["layers"].as_array().expect("layers").iter().map(whole).collect();
    let shape = Shape::Resnet { bottleneck, blocks, stem, width: whole(&model["width"]) };
    let image = whole(&model["image"]);
    Arch::build("golden", shape, whole(&model["classes"]), [3, image, image], &[0.0; 3], &[1.0; 3]).unwrap()
}

fn load(arch: &Arch, tensors: &BTreeMap<String, Tensor>, backend: Backend) -> Model {
    Model::from_tensors(arch, tensors, &CPU).unwrap().with_backend(backend).unwrap()
}

fn labels(case: &Case, name: &str) -> Tensor {
    case.tensor(name).to_dtype(DType::U32).unwrap()
}

/// The parts of a vector over theta, by name.
fn parts(model: &Model, vector: &Tensor) -> BTreeMap<String, Tensor> {
    model
        .spans()
        .iter()
        .map(|span| (span.name.clone(), vector.narrow(0, span.range.start, span.range.len()).unwrap()))
        .collect()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn same_bytes(a: &Tensor, b: &Tensor) -> bool {
    let bits = |t: &Tensor| numbers(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    bits(a) == bits(b)
}

#[test]
fn golden_forward() {
    for case in golden::cases(|entry| entry["kind"] == "forward") {
        for backend in BACKENDS {
            let mut model = load(&arch_of(&case), &case.under("init."), backend);
            let (x, y) = (case.tensor("x"), labels(&case, "y"));
            let mut worst: f64 = 0.0;

            let names = ["stem", "layer1", "layer2", "layer3", "layer4", "features", "logits"];
            for (name, tap) in model.taps_of(x, &names).unwrap() {
                worst = worst.max(case.compare(&format!("eval.{name}"), &tap));
            }
            case.compare("eval.logits", &model.logits(x).unwrap());
            case.compare("eval.features", &model.features(x).unwrap());
            case.compare("eval.loss", &cross_entropy(&model.logits(x).unwrap(), &y).unwrap());

            let output = model.train_with(x, &Pass::train()).unwrap();
            worst = worst.max(case.compare("train.logits", &output.logits));
            worst = worst.max(case.compare("train.features", &output.features));
            let loss = cross_entropy(&output.logits, &y).unwrap();
            case.compare("train.loss", &loss);
            let gradient = gradients(&loss, [&model]).unwrap()[0].clone();
            for (name, part) in parts(&model, &gradient) {
                worst = worst.max(case.compare(&format!("grad.{name}"), &part));
            }
            let after = model.tensors().unwrap();
            for name in case.under("after.").keys().filter(|name| !name.ends_with("num_batches_tracked")) {
                worst = worst.max(case.compare(&format!("after.{name}"), &after[name]));
            }
            assert!(worst <= 1.0, "{}: {backend:?}", case.name);
        }
    }
}

#[test]
fn a_mask_of_parameters_that_are_not_there_is_an_error() {
    let case = &golden::of_method("cf_k")[0];
    let model = load(&arch_of(case), &case.under("init."), BACKENDS[0]);
    let fc = model.only(&["fc."]).unwrap();
    assert_eq!(
        fc.iter().filter(|&&keep| keep == 1.0).count(),
        model.spans().iter().filter(|s| s.name.starts_with("fc.")).map(|s| s.range.len()).sum::<usize>()
    );
    let error = model.only(&["fc.", "layr4"]).unwrap_err().to_string();
    assert!(error.starts_with("no parameter begins with `layr4`; there are `bn1`"), "{error}");
}

#[test]
fn golden_cf_k() {
    for case in golden::of_method("cf_k") {
        for backend in BACKENDS {
            let arch = arch_of(&case);
            let start = case.under("init.");
            let mut model = load(&arch, &start, backend);
            let list = case.hyper("trainable").as_array().expect("trainable").clone();
            let trainable: Vec<&str> = list.iter().map(|name| name.as_str().expect("a name")).collect();
            let pass = if case.hyper("frozen_bn") == "eval" { Pass::train_only(&trainable) } else { Pass::train() };
            let keep = model.only(&trainable).unwrap();
            let optimizer = case.hyper("optimizer");
            assert_eq!(optimizer["name"], "sgd");
            let rate = |name: &str| optimizer[name].as_f64().expect("a number") as f32;
            let (momentum, decay, nesterov) = (rate("momentum"), rate("weight_decay"), optimizer["nesterov"] == true);
            assert!(!nesterov);

            let mut buffer: Option<Vec<f32>> = None;
            let (mut losses, mut norms, mut biases) = (Vec::new(), Vec::new(), Vec::new());
            for step in case.entry["steps"].as_array().expect("steps") {
                let x = case.tensor(&format!("batch.{}.x", step["batch"]));
                let y = labels(&case, &format!("batch.{}.y", step["batch"]));
                let lr = step["lr"].as_f64().expect("lr") as f32;
                let output = model.train_with(x, &pass).unwrap();
                let loss = cross_entropy(&output.logits, &y).unwrap();
                let gradient = numbers(&gradients(&loss, [&model]).unwrap()[0]);
                losses.push(numbers(&loss)[0]);
                let trained = gradient.iter().zip(&keep).map(|(g, k)| f64::from(g * k).powi(2));
                norms.push(trained.sum::<f64>().sqrt() as f32);
                model
                    .update(|theta| {
                        let decayed: Vec<f32> = gradient.iter().zip(&*theta).map(|(g, w)| g + decay * w).collect();
                        let moved = match buffer.take() {
                            None => decayed,
                            Some(old) => old.iter().zip(&decayed).map(|(b, g)| momentum * b + g).collect(),
                        };
                        for ((w, v), k) in theta.iter_mut().zip(&moved).zip(&keep) {
                            if *k > 0.0 {
                                *w -= lr * v;
                            }
                        }
                        buffer = Some(moved);
                        Ok(())
                    })
                    .unwrap();
                biases.push(model.tensors().unwrap()["fc.bias"].clone());
            }
            let count = losses.len();
            case.compare("step.loss", &Tensor::from_vec(losses, count, &CPU).unwrap());
            case.compare("step.grad_norm", &Tensor::from_vec(norms, count, &CPU).unwrap());
            case.compare("step.fc_bias", &Tensor::stack(&biases, 0).unwrap());
            let end = model.tensors().unwrap();
            for (name, tensor) in &end {
                case.compare(&format!("final.{name}"), tensor);
                let frozen = !trainable.iter().any(|prefix| name.starts_with(prefix));
                let buffer = name.contains("running_");
                if frozen && (!buffer || case.hyper("frozen_bn") == "eval") {
                    assert!(same_bytes(tensor, &start[name]), "{}: {name} moved", case.name);
                }
            }
            case.compare("probe.logits", &model.logits(case.tensor("batch.0.x")).unwrap());
        }
    }
}

/// One Adam step from rest: both moments start at 0, so only the sizes of lr and eps matter.
fn adam_from_rest(model: &mut Model, gradient: &Tensor, lr: f64, betas: (f64, f64), eps: f64) {
    let gradient = numbers(gradient);
    let step = |w: f32, g: f32| {
        let g = f64::from(g);
        let (m, v) = ((1.0 - betas.0) * g, (1.0 - betas.1) * g * g);
        let (m, v) = (m / (1.0 - betas.0), v / (1.0 - betas.1));
        (f64::from(w) - lr * m / (v.sqrt() + eps)) as f32
    };
    model
        .update(|theta| {
            theta.iter_mut().zip(&gradient).for_each(|(w, &g)| *w = step(*w, g));
            Ok(())
        })
        .unwrap();
}

#[test]
fn golden_dcgan_step() {
    for case in golden::of_method("dcgan_step") {
        for backend in BACKENDS {
            let size = |name: &str| whole(case.hyper(name));
            let generator = Shape::DcganGenerator { width: size("ngf"), side: 32 };
            let noise = [size("nz"), 1, 1];
            let generator = Arch::build("generator", generator, 3, noise, &[], &[]).unwrap();
            let discriminator = Shape::DcganDiscriminator { width: size("ndf") };
            let image = [3, 32, 32];
            let discriminator = Arch::build("discriminator", discriminator, 1, image, &[0.0; 3], &[1.0; 3]).unwrap();
            let mut g = load(&generator, &case.under("init.g."), backend);
            let mut d = load(&discriminator, &case.under("init.d."), backend);
            let optimizer = case.hyper("optimizer");
            let betas = (optimizer["betas"][0].as_f64().unwrap(), optimizer["betas"][1].as_f64().unwrap());
            let eps = optimizer["eps"].as_f64().unwrap();
            let pass = Pass::train();

            let made = g.train_with(case.tensor("z"), &pass).unwrap();
            let fake = &made.logits;
            case.compare("fake", fake);
            let real = d.train_with(case.tensor("real"), &pass).unwrap();
            let false_ = d.train_with(&fake.detach(), &pass).unwrap();
            case.compare("prob.real", &real.logits);
            case.compare("prob.fake", &false_.logits);
            let (loss_real, loss_fake) =
                (binary_cross_entropy(&real.logits, 1.0).unwrap(), binary_cross_entropy(&false_.logits, 0.0).unwrap());
            case.compare("loss.d_real", &loss_real);
            case.compare("loss.d_fake", &loss_fake);
            let loss = (loss_real + loss_fake).unwrap();
            case.compare("loss.d", &loss);
            let both = gradients(&loss, [&g, &d]).unwrap();
            assert!(numbers(&both[0]).iter().all(|&x| x == 0.0), "a detached fake reaches no generator");
            for (name, part) in parts(&d, &both[1]) {
                case.compare(&format!("grad.d.{name}"), &part);
            }
            adam_from_rest(&mut d, &both[1], case.number("lr_d"), betas, eps);

            let judged = d.train_with(fake, &pass).unwrap();
            let loss = binary_cross_entropy(&judged.logits, 1.0).unwrap();
            case.compare("loss.g", &loss);
            let gradient = gradients(&loss, [&g]).unwrap()[0].clone();
            for (name, part) in parts(&g, &gradient) {
                case.compare(&format!("grad.g.{name}"), &part);
            }
            adam_from_rest(&mut g, &gradient, case.number("lr_g"), betas, eps);
            for (letter, model) in [("g", &g), ("d", &d)] {
                for (name, tensor) in model.tensors().unwrap() {
                    case.compare(&format!("final.{letter}.{name}"), &tensor);
                }
            }
        }
    }
}

#[test]
fn parameter_counts_are_those_of_the_model_files() {
    for entry in arch::entries() {
        let promise = arch::promise(entry.name).unwrap();
        let channels = promise.image[0];
        let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
        let arch = Arch::new(&json!({"name": entry.name}), 10, promise.image, &mean, &std).unwrap();
        assert_eq!(arch.parameters(), promise.parameters, "{}", entry.name);
        assert_eq!(Arch::from_value(&arch.to_value().unwrap()).unwrap(), arch);
    }
}

/// Forward, and all gradients but that of the images.
#[test]
fn multiply_adds_are_counted() {
    let mlp = Arch::new(&json!({"name": "mlp", "hidden": [12]}), 10, [1, 8, 8], &[0.0], &[1.0]).unwrap();
    assert_eq!(mlp.multiply_adds(), [64 * 12 + 12 * 10, 64 * 12 + 2 * 12 * 10]);
    // Along a side of n, windows of three places see 3 n - 2 pixels at stride 1, and 3 n / 2 - 1 at stride 2.
    let at_one = |n: usize, inputs: usize, outputs: usize| (3 * n - 2).pow(2) * inputs * outputs;
    let (mut all, first) = (0, at_one(32, 3, 64));
    for (n, channels) in [(32, 64), (16, 128), (8, 256), (4, 512)] {
        all += 3 * at_one(n, channels, channels);
        all += match n {
            32 => at_one(n, 64, 64) + first,
            _ => (3 * n - 1).pow(2) * channels / 2 * channels + n * n * channels / 2 * channels,
        };
    }
    all += 512 * 10;
    let resnet = Arch::new(&json!({"name": "resnet18"}), 10, [3, 32, 32], &[0.0; 3], &[1.0; 3]).unwrap();
    assert_eq!(resnet.multiply_adds(), [all, 2 * all - first]);
}

#[test]
fn settings_reach_the_network() {
    let settings = json!({"name": "resnet18", "stem": "imagenet", "width": 4});
    let arch = Arch::new(&settings, 5, [1, 32, 32], &[0.5], &[0.5]).unwrap();
    assert_eq!(arch.shape, Shape::Resnet { bottleneck: false, blocks: vec![2; 4], stem: Stem::Imagenet, width: 4 });
    let message = |settings: Value, size| Arch::new(&settings, 5, size, &[0.5], &[0.5]).unwrap_err().to_string();
    assert!(message(json!({"name": "resnet19"}), [1, 8, 8]).contains("did you mean"));
    assert!(message(json!({"name": "allcnn", "dropout": 1.0}), [1, 8, 8]).contains("dropout"));
    assert!(message(json!({"name": "mlp", "hidden": [0]}), [1, 8, 8]).contains("width"));
    assert!(message(json!({"name": "mlp", "hiden": [3]}), [1, 8, 8]).contains("hiden"));
    let tiny = Shape::DcganDiscriminator { width: 4 };
    let error = Arch::build("d", tiny, 1, [3, 12, 12], &[0.0; 3], &[1.0; 3]).unwrap_err().to_string();
    assert!(error.contains("not 12 x 12"), "{error}");
}

fn small(name: &str, width: usize, size: [usize; 3]) -> Arch {
    let settings = match name {
        "mlp" => json!({"name": "mlp", "hidden": [width, 7]}),
        "allcnn" => json!({"name": "allcnn", "width": width, "dropout": 0.3}),
        "pool" => json!({"name": "resnet18", "stem": "cifar_pool", "width": width}),
        "imagenet" => json!({"name": "resnet18", "stem": "imagenet", "width": width}),
        _ => json!({"name": name, "width": width}),
    };
    Arch::new(&settings, 5, size, &vec![0.0; size[0]], &vec![1.0; size[0]]).unwrap()
}

fn images(batch: usize, size: [usize; 3], seed: u64) -> Tensor {
    let mut rng = Rng::new(seed).fork("images");
    let values: Vec<f32> = (0..batch * size.iter().product::<usize>()).map(|_| rng.normal()).collect();
    Tensor::from_vec(values, (batch, size[0], size[1], size[2]), &CPU).unwrap()
}

/// Largest difference as a share of the largest of the reference.
fn off(got: &Tensor, want: &Tensor) -> f32 {
    let (got, want) = (numbers(got), numbers(want));
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-3_f32, |a, b| a.max(b.abs()));
    got.iter().zip(&want).fold(0.0_f32, |a, (g, w)| if g.is_finite() { a.max((g - w).abs()) } else { f32::INFINITY })
        / largest
}

/// A loss that reaches logits and features.
fn loss_of(output: &recant::nn::model::Output) -> Tensor {
    let logits = output.logits.sqr().unwrap().mean_all().unwrap();
    let features = output.features.flatten_from(1).unwrap();
    let weights = Tensor::arange(0.0_f32, features.dim(1).unwrap() as f32, &CPU).unwrap();
    let weights = weights.affine(0.7, 0.1).unwrap().sin().unwrap().to_dtype(features.dtype()).unwrap();
    (logits + features.broadcast_mul(&weights).unwrap().mean_all().unwrap()).unwrap()
}

/// Evaluation takes images in batches that suit it.
#[test]
fn an_answer_does_not_depend_on_the_images_beside_it() {
    for (name, width, size) in [("mlp", 9, [1, 8, 8]), ("allcnn", 5, [1, 9, 11]), ("resnet18", 8, [3, 16, 16])] {
        let mut model = Model::init(&small(name, width, size), &Rng::new(1), &CPU).unwrap();
        // running statistics other than 0 and 1
        model.train_with(&images(8, size, 7), &Pass::train()).unwrap();
        let x = images(67, size, 2);
        let bits = |batch: usize| -> Vec<u32> {
            let parts = (0..67).step_by(batch).map(|start| x.narrow(0, start, batch.min(67 - start)).unwrap());
            let logits = parts.map(|x| model.logits(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
            logits.flatten().map(f32::to_bits).collect()
        };
        let all = bits(67);
        assert!([1, 2, 5, 16, 64].into_iter().all(|batch| bits(batch) == all), "{name}");
    }
}

/// The twin in f64 is the truth; the fast path must be as near to it as f32 allows.
#[test]
fn fast_is_like_the_reference_on_odd_shapes() {
    let nets = [
        ("mlp", 9, [1, 8, 8], 1),
        ("mlp", 300, [3, 5, 7], 33),
        ("allcnn", 5, [1, 9, 11], 3),
        ("resnet18", 3, [3, 13, 9], 3),
        ("resnet18", 8, [1, 8, 8], 5),
        ("resnet18", 17, [3, 17, 16], 1),
        ("pool", 5, [2, 15, 18], 2),
        ("imagenet", 6, [3, 37, 33], 3),
        ("resnet34", 2, [3, 16, 16], 2),
        ("resnet50", 3, [3, 32, 33], 6),
    ];
    for (name, width, size, batch) in nets {
        for train in [true, false] {
            let mut pass = if train { Pass::train() } else { Pass::eval() };
            pass.rng = Some(Rng::new(3).fork("dropout"));
            let build = || Model::init(&small(name, width, size), &Rng::new(1), &CPU).unwrap();
            let x = images(batch, size, 2);
            let mut fast = build();
            let mut slow = build().with_dtype(DType::F64).unwrap();
            // running statistics other than 0 and 1
            fast.train_with(&images(8, size, 7), &Pass::train()).unwrap();
            slow.train_with(&images(8, size, 7), &Pass::train()).unwrap();
            let (x32, x64) =
                (Var::from_tensor(&x).unwrap(), Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap());
            let (a, b) = (fast.train_with(&x32, &pass).unwrap(), slow.train_with(&x64, &pass).unwrap());
            let at = format!("{name} {width} {size:?} x {batch}, train {train}");
            let near = |what: &str, got: &Tensor, want: &Tensor, allowed: f32| {
                let off = off(got, want);
                assert!(off < allowed, "{at}: {what} is off by {off:e}");
            };
            near("logits", &a.logits, &b.logits, 1e-4);
            near("features", &a.features, &b.features, 1e-4);
            near("stats", &fast.stats(), &slow.stats(), 1e-4);
            let (loss_a, loss_b) = (loss_of(&a), loss_of(&b));
            let (ga, gb) = (loss_a.backward().unwrap(), loss_b.backward().unwrap());
            near("gradient of the input", ga.get(&x32).unwrap(), gb.get(&x64).unwrap(), 1e-3);
            let (ga, gb) = (gradients(&loss_a, [&fast]).unwrap(), gradients(&loss_b, [&slow]).unwrap());
            let (ga, gb) = (parts(&fast, &ga[0]), parts(&slow, &gb[0]));
            for (name, part) in &gb {
                near(&format!("gradient of {name}"), &ga[name], part, 2e-3);
            }
        }
    }
}

#[test]
fn the_reference_has_the_gradient_of_finite_differences() {
    let arch = small("pool", 2, [2, 8, 8]);
    let mut model = Model::init(&arch, &Rng::new(5), &CPU).unwrap().with_dtype(DType::F64).unwrap();
    let x = images(3, [2, 8, 8], 1).to_dtype(DType::F64).unwrap();
    let loss_at = |model: &Model| loss_of(&model.forward(&x, &Pass::train()).unwrap());
    let gradient = gradients(&loss_at(&model), [&model]).unwrap()[0].to_vec1::<f64>().unwrap();
    let theta = model.theta_tensor().unwrap().to_vec1::<f64>().unwrap();
    let largest = gradient.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let mut rng = Rng::new(9).fork("places");
    for _ in 0..60 {
        let place = rng.below(theta.len() as u64) as usize;
        let mut value = |shift: f64| {
            let mut moved = theta.clone();
            moved[place] += shift;
            model.set_theta_tensor(&Tensor::new(moved, &CPU).unwrap()).unwrap();
            loss_at(&model).to_scalar::<f64>().unwrap()
        };
        let slope = (value(1e-6) - value(-1e-6)) / 2e-6;
        assert!((slope - gradient[place]).abs() < 1e-5 * largest.max(1.0), "{place}: {slope} {}", gradient[place]);
    }
}

#[test]
fn two_forwards_live_at_once_and_are_walked_back_more_than_once() {
    let size = [3, 16, 16];
    for backend in BACKENDS {
        let model = Model::init(&small("resnet18", 4, size), &Rng::new(1), &CPU).unwrap();
        let model = model.with_backend(backend).unwrap();
        let gradient_of = |loss: &Tensor| gradients(loss, [&model]).unwrap()[0].clone();
        let (x, y) = (images(4, size, 1), images(3, size, 2));
        let alone = [&x, &y].map(|x| gradient_of(&loss_of(&model.forward(x, &Pass::train()).unwrap())));
        let (a, b) = (model.forward(&x, &Pass::train()).unwrap(), model.forward(&y, &Pass::train()).unwrap());
        let (a, b) = (loss_of(&a), loss_of(&b));
        for _ in 0..2 {
            assert!(same_bytes(&gradient_of(&a), &alone[0]), "{backend:?}");
            assert!(same_bytes(&gradient_of(&b), &alone[1]), "{backend:?}");
        }
        let together = gradient_of(&(&a + &b).unwrap());
        assert!(off(&together, &(&alone[0] + &alone[1]).unwrap()) < 1e-5, "{backend:?}");
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let nets = [("resnet18", 16, [3, 32, 32], 20), ("allcnn", 12, [3, 24, 20], 7), ("imagenet", 8, [3, 64, 64], 9)];
    for (name, width, size, batch) in nets {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut model = Model::init(&small(name, width, size), &Rng::new(1), &CPU).unwrap();
                let x = Var::from_tensor(&images(batch, size, 2)).unwrap();
                let output = model.train_with(&x, &Pass::train()).unwrap();
                let loss = loss_of(&output);
                let store = loss.backward().unwrap();
                let theta = gradients(&loss, [&model]).unwrap()[0].clone();
                [output.logits.detach(), store.get(&x).unwrap().clone(), theta, model.stats()]
            })
        };
        let one = run(1);
        for threads in [2, 3, 4] {
            for (a, b) in one.iter().zip(&run(threads)) {
                assert!(same_bytes(a, b), "{name} with {threads} threads");
            }
        }
    }
}

#[test]
fn a_loss_that_reaches_nothing_is_an_error() {
    let size = [1, 8, 8];
    let model = Model::init(&small("mlp", 4, size), &Rng::new(1), &CPU).unwrap();
    let loss = model.logits(&images(2, size, 1)).unwrap().sum_all().unwrap();
    assert!(gradients(&loss, [&model]).is_err());
}

#[test]
fn copies_and_teachers_stay_behind() {
    let size = [1, 8, 8];
    for backend in BACKENDS {
        let mut model = Model::init(&small("resnet18", 2, size), &Rng::new(1), &CPU).unwrap();
        model = model.with_backend(backend).unwrap();
        let x = images(4, size, 1);
        let (teacher, copy, theta) = (model.teacher().unwrap(), model.copy().unwrap(), model.theta().unwrap());
        let before = teacher.logits(&x).unwrap();
        model.train_with(&x, &Pass::train()).unwrap();
        model
            .update(|theta| {
                for w in theta {
                    *w += 0.1;
                }
                Ok(())
            })
            .unwrap();
        assert!(!same_bytes(&model.logits(&x).unwrap(), &before));
        assert!(same_bytes(&teacher.logits(&x).unwrap(), &before));
        assert!(same_bytes(&copy.logits(&x).unwrap(), &before));
        assert_eq!(copy.theta().unwrap(), theta);
        model.set_theta(&theta).unwrap();
        model.set_stats(&copy.stats()).unwrap();
        assert!(same_bytes(&model.logits(&x).unwrap(), &before));
    }
}

#[test]
fn weights_survive_a_round_trip_and_say_what_is_wrong() {
    let size = [3, 16, 16];
    let arch = small("resnet18", 2, size);
    let mut model = Model::init(&arch, &Rng::new(1), &CPU).unwrap();
    model.train_with(&images(4, size, 1), &Pass::train()).unwrap();
    let tensors = model.tensors().unwrap();
    let again = Model::from_tensors(&arch, &tensors, &CPU).unwrap();
    let x = images(2, size, 3);
    assert!(same_bytes(&again.logits(&x).unwrap(), &model.logits(&x).unwrap()));
    let message = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        Model::from_tensors(&arch, &tensors, &CPU).unwrap_err().to_string()
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &CPU).unwrap();
    assert!(message(&|t| drop(t.remove("bn1.running_var"))).contains("the checkpoint lacks `bn1.running_var`"));
    let wrong = message(&|t| drop(t.insert("fc.weight".into(), zeros(&[5, 3]))));
    assert!(wrong.contains("`fc.weight` has the shape [5, 3], expected [5, 16]"), "{wrong}");
    assert!(message(&|t| drop(t.insert("fc2.weight".into(), zeros(&[1])))).contains("`fc2.weight`"));
}

/// Where some batch norms in the middle are frozen, those behind them take what they saw themselves: weights 1024 times as large
/// make a variance 2^20 times as large, in that one alone.
#[test]
fn statistics_behind_frozen_ones_are_their_own() {
    let size = [1, 16, 16];
    let arch = small("resnet18", 2, size);
    let moved = |factor: f64| {
        let tensors = Model::init(&arch, &Rng::new(1), &CPU).unwrap().tensors().unwrap();
        let scaled = |(name, tensor): (String, Tensor)| {
            let factor = if name == "layer3.0.conv1.weight" { factor } else { 1.0 };
            (name, (tensor * factor).unwrap())
        };
        let mut model = Model::from_tensors(&arch, &tensors.into_iter().map(scaled).collect(), &CPU).unwrap();
        model.train_with(&images(4, size, 1), &Pass::train().frozen(&["layer2."])).unwrap();
        model.tensors().unwrap()
    };
    let (plain, large) = (moved(1.0), moved(1024.0));
    let seen = |tensors: &BTreeMap<String, Tensor>, name: &str| -> Vec<f64> {
        let values = tensors[name].to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(|value| (value - 0.9) / 0.1).collect()
    };
    for name in plain.keys().filter(|name| name.ends_with("running_var")) {
        let factor = if name == "layer3.0.bn1.running_var" { 1024.0 * 1024.0 } else { 1.0 };
        for (one, other) in seen(&plain, name).into_iter().zip(seen(&large, name)) {
            assert!((other - one * factor).abs() <= 0.02 * other.abs(), "{name}: {one} and {other}");
            assert!(!name.starts_with("layer2.") || (one - 1.0).abs() < 1e-5, "{name} moved to {one}");
        }
    }
    let mut other = Model::init(&small("resnet18", 4, size), &Rng::new(1), &CPU).unwrap();
    let output = Model::init(&arch, &Rng::new(1), &CPU).unwrap().train(&images(4, size, 1)).unwrap();
    assert!(other.commit(&output).unwrap_err().to_string().contains("another network"));
}

#[test]
fn reinit_touches_only_what_it_names() {
    let size = [1, 16, 16];
    let arch = small("resnet18", 2, size);
    let mut model = Model::init(&arch, &Rng::new(1), &CPU).unwrap();
    model.train_with(&images(4, size, 1), &Pass::train()).unwrap();
    let before = model.tensors().unwrap();
    model.reinit(&["layer4.", "fc."], &Rng::new(2)).unwrap();
    for (name, tensor) in model.tensors().unwrap() {
        let named = name.starts_with("layer4.") || name.starts_with("fc.");
        let norm = name.contains("bn") || name.contains("downsample.1");
        let constant = norm && !name.contains("running_");
        assert_eq!(same_bytes(&tensor, &before[&name]), !named || constant, "{name}");
    }
    assert!(model.reinit(&["layer9."], &Rng::new(2)).is_err());
}

#[test]
fn weights_start_by_kaimings_rule_and_by_name() {
    let model = Model::init(&small("resnet18", 32, [3, 32, 32]), &Rng::new(1), &CPU).unwrap();
    let tensors = model.tensors().unwrap();
    let moments = |name: &str| {
        let values = numbers(&tensors[name]);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt())
    };
    for (name, fan_out) in [("layer3.1.conv2.weight", 128.0 * 9.0), ("layer4.0.downsample.0.weight", 256.0)] {
        let (mean, deviation) = moments(name);
        let expected = (2.0_f32 / fan_out).sqrt();
        assert!(mean.abs() < 0.01 * expected.max(0.1), "{name} {mean}");
        assert!((deviation / expected - 1.0).abs() < 0.02, "{name} {deviation} {expected}");
    }
    let bound = 1.0 / 256.0_f32.sqrt();
    let largest = numbers(&tensors["fc.weight"]).iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(largest <= bound && largest > 0.97 * bound);
    let deeper = Model::init(&small("resnet34", 32, [3, 32, 32]), &Rng::new(1), &CPU).unwrap().tensors().unwrap();
    assert!(same_bytes(&deeper["layer1.0.conv1.weight"], &tensors["layer1.0.conv1.weight"]));
    assert!(!same_bytes(&deeper["layer1.0.conv1.weight"], &tensors["layer1.0.conv2.weight"]));
}

/// PyTorch draws biases uniform in +-1/sqrt(fan in); a uniform draw's deviation is its bound over sqrt(3).
#[test]
fn biases_start_as_pytorch_draws_them() {
    let wide = Arch::new(&json!({"name": "mlp", "hidden": [4000]}), 3000, [1, 4, 4], &[0.5], &[0.5]).unwrap();
    let tensors = Model::init(&wide, &Rng::new(1), &CPU).unwrap().tensors().unwrap();
    for (name, inputs) in [("hidden.0.bias", 16.0_f64), ("fc.bias", 4000.0)] {
        let values: Vec<f64> = numbers(&tensors[name]).into_iter().map(f64::from).collect();
        let bound = 1.0 / inputs.sqrt();
        let deviation = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!(values.iter().all(|v| v.abs() <= bound * 1.000001), "{name}");
        assert!((deviation / bound * 3.0_f64.sqrt() - 1.0).abs() < 0.04 && mean.abs() < 0.05 * bound, "{name}");
    }
}

#[test]
fn branches_have_weights_and_statistics_of_their_own() {
    let size = [3, 16, 16];
    let arch = small("resnet18", 2, size).with_branches(2).unwrap();
    for backend in BACKENDS {
        let mut model = Model::init(&arch, &Rng::new(1), &CPU).unwrap().with_backend(backend).unwrap();
        let x = images(4, size, 1);
        let before = model.tensors().unwrap();
        let output = model.train_with(&x, &Pass::train().with_branch(1)).unwrap();
        let gradient = parts(&model, &gradients(&loss_of(&output), [&model]).unwrap()[0]);
        assert!(numbers(&gradient["bn1.weight"]).iter().all(|&g| g == 0.0));
        assert!(numbers(&gradient["bn1.branch1.weight"]).iter().any(|&g| g != 0.0));
        let after = model.tensors().unwrap();
        assert!(same_bytes(&before["bn1.running_mean"], &after["bn1.running_mean"]));
        assert!(!same_bytes(&before["bn1.branch1.running_mean"], &after["bn1.branch1.running_mean"]));
        assert!(model.forward(&x, &Pass::train().with_branch(2)).is_err());
    }
}

#[test]
fn dropout_draws_by_step_and_not_in_evaluation() {
    let size = [1, 12, 12];
    let model = Model::init(&small("allcnn", 4, size), &Rng::new(1), &CPU).unwrap();
    let x = images(3, size, 1);
    let with = |rng: Option<Rng>| {
        let pass = Pass { rng, ..Pass::eval().with_layers(&["bn1"], Statistics::Running) };
        model.forward(&x, &pass).unwrap().logits
    };
    let rng = Rng::new(4);
    assert!(same_bytes(&with(None), &model.logits(&x).unwrap()));
    assert!(same_bytes(&with(Some(rng.at(1))), &with(Some(rng.at(1)))));
    assert!(!same_bytes(&with(Some(rng.at(1))), &with(Some(rng.at(2)))));
    assert!(!same_bytes(&with(Some(rng.at(1))), &with(None)));
}

#[test]
fn a_way_back_for_other_parameters_is_an_error() {
    let arch = Arch::new(&json!({"name": "mlp", "hidden": [3]}), 2, [1, 2, 2], &[0.0], &[1.0]).unwrap();
    let mut model = Model::init(&arch, &Rng::new(0), &Device::Cpu).unwrap();
    let x = Tensor::ones((2, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let loss = model.train(&x).unwrap().logits.sqr().unwrap().sum_all().unwrap();
    assert!(model.gradient(&loss).is_ok());
    model
        .update(|theta| {
            theta[0] += 1.0;
            Ok(())
        })
        .unwrap();
    let error = model.gradient(&loss).unwrap_err().to_string();
    assert!(error.contains("walk back first"), "{error}");
}

#[test]
fn a_named_tensor_holds_its_own_numbers_alone() {
    let model = Model::init(&small("resnet18", 2, [1, 8, 8]), &Rng::new(1), &CPU).unwrap();
    for (name, tensor) in model.tensors().unwrap() {
        let (storage, _) = tensor.storage_and_layout();
        let candle_core::Storage::Cpu(candle_core::CpuStorage::F32(data)) = &*storage else { panic!("{name}") };
        assert_eq!(data.len(), tensor.elem_count(), "{name}");
    }
}

#[test]
fn answers_and_gradients_are_those_of_the_present_parameters_however_often_asked() {
    let size = [3, 12, 12];
    let mut model = Model::init(&small("resnet18", 8, size), &Rng::new(1), &CPU).unwrap();
    let x = images(3, size, 2);
    for _ in 0..2 {
        for _ in 0..3 {
            // a copy has never answered before
            let fresh = model.copy().unwrap();
            assert!(same_bytes(&model.logits(&x).unwrap(), &fresh.logits(&x).unwrap()));
            let gradient_of =
                |model: &Model| model.gradient(&loss_of(&model.forward(&x, &Pass::train()).unwrap())).unwrap();
            assert_eq!(gradient_of(&model), gradient_of(&fresh));
        }
        model
            .update(|theta| {
                for weight in theta {
                    *weight *= -1.5;
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn a_single_value_a_channel_leaves_the_statistics_alone() {
    // layer4 sees 1 x 1: with one image PyTorch refuses; here the layer gives its bias
    let size = [1, 8, 8];
    for backend in BACKENDS {
        let mut model = Model::init(&small("resnet18", 2, size), &Rng::new(1), &CPU).unwrap();
        model = model.with_backend(backend).unwrap();
        let before = model.tensors().unwrap();
        let output = model.train_with(&images(1, size, 1), &Pass::train()).unwrap();
        let gradient = gradients(&loss_of(&output), [&model]).unwrap();
        assert!(numbers(&gradient[0]).iter().all(|g| g.is_finite()));
        let after = model.tensors().unwrap();
        for kind in ["running_mean", "running_var"] {
            let layer4 = format!("layer4.0.bn1.{kind}");
            assert!(same_bytes(&before[&layer4], &after[&layer4]));
            assert!(!same_bytes(&before[&format!("bn1.{kind}")], &after[&format!("bn1.{kind}")]));
        }
    }
}
