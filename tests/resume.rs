//! Training that is stopped at any step goes on to the same bytes: weights, statistics and what a method carries along.

use recant::error::{Error, Result};
use recant::method::{self, METHODS, Scene};
use recant::rng::Rng;
use recant::settings::Settings;
use serde_json::{Value, json};

use crate::methods::{defaults, tiny_of};
use crate::support::desk::Halting;

/// Bits of weights and statistics of what a method makes, and how often the desk was asked to stop.
fn unlearn(name: &str, settings: &Settings, (arch, side): (&Value, usize), desk: &Halting) -> Result<Vec<u32>> {
    let (mut student, forget, retain) = tiny_of(arch, side);
    let scene = Scene { validation: Some(&retain), ..Scene::new(&forget, &retain, Rng::new(9), desk) };
    method::make(name, settings)?.unlearn(&mut student, &scene)?;
    let stats = student.stats()?.to_vec1::<f32>()?;
    Ok(student.theta()?.into_iter().chain(stats).map(f32::to_bits).collect())
}

/// Every method that is registered, unasked, and the variants that carry something along.
fn cases() -> Vec<(&'static str, Settings)> {
    let mut cases: Vec<(&str, Settings)> = (0..METHODS.len()).map(|i| (METHODS[i].entry.name, defaults(i))).collect();
    let variants = [
        ("scrub", json!({ "rewind": true, "lr": 0.3 })),
        ("salun", json!({ "soft": true })),
        (
            "finetune",
            json!({ "schedule": { "plateau": { "factor": 0.5, "patience": 0, "threshold": 0.0001,
            "cooldown": 0, "floor": 0.0 } } }),
        ),
        ("scrub", json!({ "optimizer": { "name": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0 } })),
    ];
    for (name, more) in variants {
        let (_, mut settings) = cases.iter().find(|case| case.0 == name).unwrap().clone();
        settings.extend(more.as_object().unwrap().clone());
        cases.push((name, settings));
    }
    for (_, settings) in &mut cases {
        // all of them short
        if settings.contains_key("epochs") {
            settings.insert("epochs".into(), json!(3));
        }
    }
    cases
}

fn every_stop(network: (&Value, usize), stride: usize) {
    for (name, settings) in cases() {
        let whole = Halting::never();
        let wanted = unlearn(name, &settings, network, &whole).unwrap();
        // somewhere between the first step and the last
        for calls in (1..whole.steps()).step_by(stride) {
            let desk = Halting::after(calls);
            match unlearn(name, &settings, network, &desk) {
                Err(Error::Interrupted) => {}
                other => panic!("{name} did not stop: {:?}", other.map(|bits| bits.len())),
            }
            desk.relent();
            let found = unlearn(name, &settings, network, &desk).unwrap();
            assert!(found == wanted, "{name} stopped at step {calls} of {} differs", whole.steps());
        }
    }
}

#[test]
fn every_method_that_is_stopped_at_any_step_goes_on_to_the_same_bytes() {
    every_stop((&json!({ "name": "mlp", "hidden": [12] }), 2), 1);
}

#[test]
fn so_do_networks_with_batch_norm() {
    every_stop((&json!({ "name": "allcnn", "width": 4, "dropout": 0.0 }), 8), 3);
}
