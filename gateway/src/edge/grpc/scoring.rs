//! `crossgate.v1.Scoring`: our own service.

use super::super::call::Call;
use super::super::classes::labels;
use super::super::overflow::cuts;
use super::super::scoring::ranked;
use super::super::wire::{Refusal, retry_after_seconds, wire};
use super::method::{Answered, Asked, Methods};
use super::options::{Options, Rows, with_activation};
use super::proto::crossgate as proto;
use super::stream::Order;
use crate::load::ModelState;
use crate::score::{ScoreError, ScoreResponse, ranking};
use std::time::Duration;
use tonic::Status;
use tonic_reflection::server::Error;

/// Adds ours.
pub(super) fn methods(methods: Methods) -> Result<Methods, Error> {
    methods
        .ask("/crossgate.v1.Scoring/Score", score)?
        .ask("/crossgate.v1.Scoring/Rerank", rerank)?
        .ask("/crossgate.v1.Scoring/Predict", predict)?
        .each(
            "/crossgate.v1.Scoring/ScoreStream",
            Order::Free,
            one_of_many,
            outcome,
        )?
        .tell("/crossgate.v1.Scoring/ListModels", list_models)
}

async fn score(mut asked: Asked<proto::ScoreRequest>) -> Answered<proto::ScoreResponse> {
    let message = std::mem::take(&mut asked.message);
    let options = Options::read(message.form, message.priority)?;
    let rows = Rows::scored(message.query, message.documents, message.pairs)?;
    let name = rows.name;
    let response = asked.score(message.model, rows, &options).await?;
    let scored = proto::ScoreResponse {
        model: response.model.to_string(),
        scores: response.scores(message.raw_scores),
        usage: Some(usage(&response)),
        warnings: cuts(&response, name, &options.form),
        windows: windows(&response),
        query_truncated: response.query_truncated,
        truncated: response.truncated.clone(),
    };
    Ok(with_activation(
        response.activation_unless(message.raw_scores),
        scored,
    ))
}

async fn rerank(mut asked: Asked<proto::RerankRequest>) -> Answered<proto::RerankResponse> {
    let message = std::mem::take(&mut asked.message);
    if message.top_n == Some(0) {
        let why = "is 0; send 1 or more, or leave it out for all documents";
        return Err(ScoreError::invalid("top_n", why).into());
    }
    let n_results = message.top_n.map_or(usize::MAX, |n| n as usize);
    let options = Options::read(message.form, message.priority)?;
    let texts = message.return_documents.then(|| message.documents.clone());
    let rows = Rows::scored(message.query, message.documents, Vec::new())?;
    let response = asked.score(message.model, rows, &options).await?;
    let scores = response.scores(message.raw_scores);
    let results = ranked(&scores, n_results, texts);
    let results = results.map(|(index, relevance_score, document)| proto::RerankResult {
        index: index as u32,
        relevance_score,
        document,
    });
    let answer = proto::RerankResponse {
        model: response.model.to_string(),
        results: results.collect(),
        usage: Some(usage(&response)),
        warnings: cuts(&response, "documents", &options.form),
        windows: windows(&response),
        query_truncated: response.query_truncated,
        truncated: response.truncated.clone(),
    };
    Ok(with_activation(
        response.activation_unless(message.raw_scores),
        answer,
    ))
}

async fn predict(mut asked: Asked<proto::PredictRequest>) -> Answered<proto::PredictResponse> {
    let message = std::mem::take(&mut asked.message);
    let options = Options::read(message.form, message.priority)?;
    let rows = Rows::predicted(message.texts, message.pairs)?;
    let name = rows.name;
    let response = asked.score(message.model, rows, &options).await?;
    let activation = response.activation_unless(message.raw_scores);
    let labels = labels(&asked.edge, &response);
    let rows = response.logits.chunks_exact(response.n_labels);
    let predictions = rows.map(|logits| prediction(&labels, &activation.apply(logits)));
    let predicted = proto::PredictResponse {
        model: response.model.to_string(),
        predictions: predictions.collect(),
        usage: Some(usage(&response)),
        warnings: cuts(&response, name, &options.form),
        truncated: response.truncated.clone(),
    };
    Ok(with_activation(activation, predicted))
}

async fn one_of_many(
    mut asked: Asked<proto::ScoreStreamRequest>,
) -> Answered<proto::ScoreResponse> {
    let message = std::mem::take(&mut asked.message);
    let wanted = message.score.ok_or_else(|| {
        ScoreError::invalid("score", "is missing; send a query and its documents in it")
    })?;
    let timeout = Some(message.timeout_ms).filter(|&ms| ms != 0);
    let timeout = timeout.map(|ms| Duration::from_millis(u64::from(ms)));
    let server = asked.edge.settings.request_timeout;
    asked.deadline = asked.deadline.min(asked.call.deadline(server, timeout));
    score(asked.with(wanted)).await
}

/// A refusal is the answer to one request, and the others go on.
fn outcome(
    id: String,
    answered: Answered<proto::ScoreResponse>,
    call: &Call,
) -> Result<proto::ScoreStreamResponse, Status> {
    use proto::score_stream_response::Outcome;
    let outcome = match answered {
        Ok(scored) => Outcome::Score(scored.into_inner()),
        Err(refusal) => Outcome::Failure(failure(&refusal, call)),
    };
    Ok(proto::ScoreStreamResponse {
        id,
        outcome: Some(outcome),
    })
}

fn failure(refusal: &Refusal, call: &Call) -> proto::Failure {
    let seconds = retry_after_seconds(refusal, call).unwrap_or_default();
    proto::Failure {
        code: wire(refusal).grpc as u32,
        message: refusal.message(call),
        retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX),
    }
}

async fn list_models(
    asked: Asked<proto::ListModelsRequest>,
) -> Answered<proto::ListModelsResponse> {
    let models = asked.edge.catalog.models().into_iter().map(model);
    Ok(tonic::Response::new(proto::ListModelsResponse {
        models: models.collect(),
    }))
}

fn model(state: ModelState) -> proto::Model {
    proto::Model {
        name: state.name.to_string(),
        source: state.source,
        state: state.state.to_owned(),
        backend: state.plugin.0,
        device: state.device,
        dtype: state.dtype,
        row_tokens_max: u32::try_from(state.row_tokens_max).unwrap_or(u32::MAX),
        labels: state.labels,
        activation: state.activation.name().to_owned(),
        generation: state.generation,
        numerics_id: state.numerics_id,
        num_parameters: state.num_parameters,
    }
}

fn prediction(labels: &[String], scores: &[f32]) -> proto::Prediction {
    let best = ranking(scores).first().copied().unwrap_or_default();
    let named = labels.iter().zip(scores);
    let named = named.map(|(label, &score)| proto::LabelScore {
        label: label.clone(),
        score,
    });
    proto::Prediction {
        label: labels.get(best).cloned().unwrap_or_default(),
        scores: named.collect(),
    }
}

fn usage(response: &ScoreResponse) -> proto::Usage {
    proto::Usage {
        prompt_tokens: response.n_tokens,
        total_tokens: response.n_tokens,
    }
}

fn windows(response: &ScoreResponse) -> Vec<proto::Windows> {
    let windows = response.windows.iter();
    windows
        .map(|&(index, count)| proto::Windows { index, count })
        .collect()
}
