//! Two models that are nobody's.

use gateway::load::{Catalog, Load, ModelState, Piece, Totals};
use gateway::score::{Activation, ScoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Two models; ready or not as told. A letter is a token.
pub(crate) struct FakeCatalog {
    pub(crate) is_ready: AtomicBool,
}

impl Catalog for FakeCatalog {
    fn models(&self) -> Vec<ModelState> {
        vec![
            model("default", &["LABEL_0"], Activation::Identity),
            model("classes", &["no", "yes"], Activation::Softmax),
        ]
    }

    fn not_ready(&self) -> Vec<String> {
        let is_ready = self.is_ready.load(Ordering::Relaxed);
        if is_ready {
            Vec::new()
        } else {
            vec!["model default is loading".to_owned()]
        }
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<Piece>, ScoreError> {
        let piece = |(at, letter): (usize, char)| Piece {
            id: u32::from(letter),
            text: letter.to_string(),
            place: Some((at, at + 1)),
        };
        let end = special.then(|| Piece {
            id: 0,
            text: "[END]".to_owned(),
            place: None,
        });
        Ok(text.chars().enumerate().map(piece).chain(end).collect())
    }

    fn decode(&self, ids: &[u32], plain: bool) -> Result<String, ScoreError> {
        let letters = ids.iter().filter(|&&id| id != 0 || !plain);
        Ok(letters.filter_map(|&id| char::from_u32(id)).collect())
    }
}

fn model(name: &str, labels: &[&str], activation: Activation) -> ModelState {
    ModelState {
        name: name.into(),
        source: format!("hub/{name}"),
        revision: String::new(),
        architecture: "BertForSequenceClassification".to_owned(),
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        activation,
        num_parameters: Some(22_713_601),
        row_tokens_max: 512,
        plugin: ("fake".to_owned(), "0.1.0".to_owned()),
        image: "0".repeat(64),
        last_swap: None,
        proof: None,
        chosen: "named by the configuration".to_owned(),
        device: "cpu".to_owned(),
        dtype: "f32".to_owned(),
        kernel: "scalar".to_owned(),
        numerics_id: "fake-1".to_owned(),
        generation: 1,
        state: "live",
        load: Load {
            requests_in_flight: 1,
            queue_rows: 3,
            queue_tokens: 90,
            workers: 2,
            ..Load::default()
        },
        devices: Arc::default(),
        totals: Totals {
            requests: 4,
            batches: 2,
            rows: 10,
            tokens: 300,
            rectangle_tokens: 400,
            inference: Duration::from_millis(500),
            ..Totals::default()
        },
    }
}
