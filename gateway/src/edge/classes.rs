//! Texts by label: what the routes that classify have in common.

use super::Edge;
use crate::score::{Activation, ScoreResponse, ranking};
use serde::Serialize;
use utoipa::ToSchema;

/// A label, and how sure the model is of it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct Prediction {
    #[schema(example = 0.9987)]
    score: f32,
    #[schema(example = "LABEL_0")]
    label: String,
}

/// Bytes of a prediction, about.
pub(super) const PREDICTION_BYTES: usize = 48;

/// What turns logits into probabilities: the model's own activation, which is a softmax where labels exclude each
/// other and a sigmoid where each is for itself. A model that declares none has its logits turned into
/// probabilities as well, since these routes promise them.
pub(super) fn activation(response: &ScoreResponse, raw: bool) -> Activation {
    match (raw, response.activation, response.n_labels) {
        (true, ..) => Activation::Identity,
        (false, Activation::Identity, 1) => Activation::Sigmoid,
        (false, Activation::Identity, _) => Activation::Softmax,
        (false, own, _) => own,
    }
}

/// The answering model's labels, in the order of its logits.
pub(super) fn labels(edge: &Edge, response: &ScoreResponse) -> Vec<String> {
    let model = edge.model_of(response);
    let labels = model.map_or_else(Vec::new, |model| model.labels);
    if labels.len() == response.n_labels {
        return labels;
    }
    // Replaced in between by a model of other labels: names that transformers gives to those without.
    let numbers = 0..response.n_labels;
    numbers.map(|number| format!("LABEL_{number}")).collect()
}

/// Each row's labels by falling score.
pub(super) fn predictions(
    response: &ScoreResponse,
    activation: Activation,
    labels: &[String],
) -> Vec<Vec<Prediction>> {
    let rows = response.logits.chunks_exact(response.n_labels);
    let row = |logits: &[f32]| {
        let scores = activation.apply(logits);
        let order = ranking(&scores).into_iter();
        let prediction = |index: usize| Prediction {
            score: scores[index],
            label: labels[index].clone(),
        };
        order.map(prediction).collect()
    };
    rows.map(row).collect()
}
