//! Configurations with every key set to odd values, one at a time: whatever they say, a model opens and scores
//! or is refused with a reason, and nothing panics.

mod common;

use backend_api::{FaultCode, OpenRequest};
use common::edit::{copy, set_config};
use common::{GoldenRow, golden, golden_request, open, try_score};
use serde_json::{Value, json};

const MODELS: [&str; 12] = [
    "bert-sharded-3-labels",
    "roberta",
    "electra-projected",
    "distilbert",
    "jina-bert-reglu",
    "jina-embeddings-v3",
    "gte",
    "modernbert-mean-older-keys",
    "deberta-v2-c2p",
    "qwen3-3-labels",
    "qwen2-yes-no",
    "t5",
];

fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(7.5),
        json!(1e300),
        json!(119),
        json!(4_294_967_295_u64),
        json!(u64::MAX),
        json!(true),
        json!(""),
        json!("gelu"),
        json!([]),
        json!(["c2p", 4]),
        json!({"rope_theta": 2.5, "rope_type": null, "x": {}}),
    ]
}

#[test]
fn no_configuration_panics() {
    let mut n_opened = 0;
    for model in MODELS {
        let dir = copy(model);
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let rows = golden(model).rows;
        let rows: Vec<&GoldenRow> = rows.iter().collect();
        let request = OpenRequest {
            model_dir: dir.path().to_owned(),
            row_tokens_max: 256,
            ..golden_request(model, "f32")
        };
        for key in config.keys() {
            for value in odd_values() {
                std::fs::write(&path, &text).unwrap();
                set_config(dir.path(), key, value.clone());
                let backend = match open(&request) {
                    Ok(backend) => backend,
                    Err(fault) => {
                        let code = fault.code;
                        let known = [
                            FaultCode::BadModel,
                            FaultCode::Unsupported,
                            FaultCode::BadRequest,
                        ];
                        assert!(known.contains(&code), "{model}: {key} = {value}: {fault}");
                        continue;
                    }
                };
                n_opened += 1;
                let longest = backend.limits().row_tokens_max;
                let fitting = rows[..5]
                    .iter()
                    .filter(|row| row.input_ids.len() <= longest);
                // A row may fail, as its tokens or types may be beyond a smaller table; and all of them together, as none
                // may have the token that says where it ends.
                let scored = try_score(
                    &mut backend.worker().unwrap(),
                    &fitting.copied().collect::<Vec<_>>(),
                );
                if let Err(fault) = scored {
                    let is_known = fault.code == FaultCode::BadModel;
                    assert!(is_known, "{model}: {key} = {value}: {fault}");
                }
            }
        }
    }
    // Most keys are not read by most models.
    assert!(1_000 < n_opened, "{n_opened} configurations opened");
}
