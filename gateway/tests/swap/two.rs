//! Two plugins at once, and one file twice.

use crate::libraries::SHORT;
use crate::serving::{scores, while_serving};
use crate::{Swapping, file_name, put};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Barrier;

/// A model's name, and the plugin that is to serve it.
const BOTH: [(&str, &str); 2] = [("first", "fake"), ("second", "short")];

/// The starter with one byte more in its description: other weights, as far as the server can tell.
fn other_weights(dir: &Path) -> String {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("starter");
    for name in ["tokenizer.json", "model.safetensors"] {
        fs::copy(starter.join(name), dir.join(name)).unwrap();
    }
    let config = fs::read_to_string(starter.join("config.json")).unwrap();
    fs::write(dir.join("config.json"), config + "\n").unwrap();
    dir.display().to_string()
}

/// Another build of a file: what follows an ELF's last section belongs to nobody.
fn rebuild(dir: &Path, plugin: &str) {
    let path = dir.join(file_name(plugin));
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"another build").unwrap();
}

fn state(swapping: &Swapping, model: &str) -> Value {
    let models: Value = serde_json::from_str(&swapping.server.get("/models").text).unwrap();
    models[model].clone()
}

fn order(swapping: &Swapping, model: &str, order: &Value) {
    let answer = swapping
        .server
        .order(&format!("/models/{model}/swap"), order);
    assert_eq!(answer.status, 200, "{model}: {answer:?}");
    swapping.server.until(|| {
        let state = &state(swapping, model)["last_swap"]["state"];
        (state == "confirmed").then_some(())
    });
}

#[test]
fn two_plugins_serve_two_models_and_are_swapped_at_once() {
    const ROUNDS: u64 = 3;
    let settings = [("model.sources", "first=starter,second=starter")];
    let swapping = Swapping::start(&json!({}), &settings);
    let (dir, weights) = (swapping.dir.path(), tempfile::tempdir().unwrap());
    fs::copy(&*SHORT, dir.join(file_name("short"))).unwrap();
    let to_short = json!({"plugin": file_name("short"), "source": other_weights(weights.path()),
        "expect_change": true, "probation_s": 0});
    order(&swapping, "second", &to_short);
    let before = BOTH.map(|(model, _)| scores(&swapping, model));
    assert!(before[0][0] > before[0][1], "{before:?}");
    assert!(before[1][0] < before[1][1], "{before:?}");

    let together = Barrier::new(BOTH.len());
    for _ in 0..ROUNDS {
        while_serving(&swapping, &BOTH.map(|(model, _)| model), || {
            std::thread::scope(|scope| {
                for (model, plugin) in BOTH {
                    let (swapping, together) = (&swapping, &together);
                    scope.spawn(move || {
                        rebuild(dir, plugin);
                        together.wait();
                        let to_new = json!({"plugin": file_name(plugin), "probation_s": 0});
                        order(swapping, model, &to_new);
                    });
                }
            });
        });
    }
    assert_eq!(BOTH.map(|(model, _)| scores(&swapping, model)), before);
    let generations = BOTH.map(|(model, _)| state(&swapping, model)["generation"].clone());
    assert_eq!(generations, [1 + ROUNDS, 2 + ROUNDS]);
    let plugins = BOTH.map(|(model, _)| state(&swapping, model)["backend"].clone());
    assert_eq!(plugins, BOTH.map(|(_, plugin)| plugin));
    // Each began with one image and got one in each round.
    let n_images = swapping.server.metric("crossgate_plugin_images");
    assert_eq!(n_images, 2.0 + 2.0 * ROUNDS as f64);
}

#[test]
fn the_same_file_twice_is_mapped_once() {
    let swapping = Swapping::start(&json!({}), &[]);
    put(swapping.dir.path(), "twin", "");
    for file in ["fake", "twin", "twin"] {
        let order = json!({"plugin": file_name(file), "probation_s": 0});
        while_serving(&swapping, &["starter"], || {
            assert_eq!(swapping.swap(&order).status, 200, "{order}");
            swapping.until("confirmed");
        });
    }
    assert_eq!(swapping.model()["generation"], 4);
    assert_eq!(swapping.server.metric("crossgate_plugin_images"), 1.0);
}
