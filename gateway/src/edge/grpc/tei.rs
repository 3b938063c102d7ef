//! `tei.v1`: what clients of Text Embeddings Inference call. They name no model: the first one answers.

use super::super::call::Call;
use super::super::classes::labels;
use super::super::overflow::{Overflow, cuts};
use super::super::scoring::ranked;
use super::super::tei::{WORDS, activation, characters, characters_of};
use super::super::wire::Refusal;
use super::super::words::Words;
use super::method::{Answered, Asked, Methods};
use super::options::{Options, Rows, warn, with_activation};
use super::proto::tei as proto;
use super::stream::{Order, or_end};
use crate::load::Piece;
use crate::score::{Form, Priority, ScoreError, ScoreResponse, Side, Texts, ranking};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic_reflection::server::Error;

/// What the core calls otherwise, of one text that stands alone or of two.
const ONE_TEXT: Words = Words(&[
    ("documents[0]", "inputs"),
    ("documents", "inputs"),
    ("query", "inputs[0]"),
]);

/// Adds theirs.
pub(super) fn methods(methods: Methods) -> Result<Methods, Error> {
    let kept = Order::Kept;
    let turns = Arc::new(Semaphore::new(
        methods.edge.settings.tokenizer_workers.max(1),
    ));
    let to_decode = Arc::clone(&turns);
    let tokenize = move |asked| tokenize(asked, Arc::clone(&turns));
    let decode = move |asked| decode(asked, Arc::clone(&to_decode));
    methods
        .tell("/tei.v1.Info/Info", info)?
        .ask("/tei.v1.Rerank/Rerank", rerank)?
        .gather("/tei.v1.Rerank/RerankStream", &WORDS, rerank_stream)?
        .ask("/tei.v1.Predict/Predict", predict)?
        .ask("/tei.v1.Predict/PredictPair", predict_pair)?
        .each("/tei.v1.Predict/PredictStream", kept, predict, or_end)?
        .each(
            "/tei.v1.Predict/PredictPairStream",
            kept,
            predict_pair,
            or_end,
        )?
        .ask("/tei.v1.Tokenize/Tokenize", tokenize.clone())?
        .each("/tei.v1.Tokenize/TokenizeStream", kept, tokenize, or_end)?
        .ask("/tei.v1.Tokenize/Decode", decode.clone())?
        .each("/tei.v1.Tokenize/DecodeStream", kept, decode, or_end)
}

async fn info(asked: Asked<proto::InfoRequest>) -> Answered<proto::InfoResponse> {
    let models = asked.edge.catalog.models();
    let model = models.first().ok_or_else(ScoreError::no_model)?;
    let settings = &asked.edge.settings;
    let model_type = match model.labels.len() {
        0 | 1 => proto::ModelType::Reranker,
        _ => proto::ModelType::Classifier,
    };
    Ok(tonic::Response::new(proto::InfoResponse {
        version: settings.version.to_owned(),
        sha: None,
        docker_label: None,
        model_id: model.source.clone(),
        model_sha: Some(model.revision.clone()).filter(|revision| !revision.is_empty()),
        model_dtype: model.dtype.clone(),
        model_type: model_type.into(),
        max_concurrent_requests: narrow(settings.requests_max),
        max_input_length: narrow(model.row_tokens_max),
        max_batch_tokens: narrow(settings.batch_tokens_max),
        max_batch_requests: None,
        max_client_batch_size: narrow(settings.documents_max),
        tokenization_workers: narrow(settings.tokenizer_workers),
    }))
}

async fn rerank(mut asked: Asked<proto::RerankRequest>) -> Answered<proto::RerankResponse> {
    let proto::RerankRequest {
        query,
        texts,
        truncate: _,
        raw_scores,
        return_text,
        truncation_direction,
    } = std::mem::take(&mut asked.message);
    if texts.is_empty() {
        return Err(Refusal::Empty {
            param: "texts",
            why: "is empty; send at least one text",
        });
    }
    let options = options(truncation_direction)?;
    let n_characters = characters_of(&query, &texts);
    let repeated = return_text.then(|| texts.clone());
    let rows = Rows {
        texts: Texts::of_query(query, texts),
        words: &WORDS,
        name: "texts",
    };
    let response = asked.score(String::new(), rows, &options).await?;
    let activation = activation(&response, raw_scores);
    let scores = response.scores_by(activation);
    let ranks = ranked(&scores, scores.len(), repeated);
    let ranks = ranks.map(|(index, score, text)| proto::Rank {
        index: narrow(index),
        text,
        score,
    });
    let message = proto::RerankResponse {
        ranks: ranks.collect(),
        metadata: Some(metadata(&asked.call, &response, n_characters)),
    };
    let mut answer = with_activation(activation, message);
    warn(&mut answer, &cuts(&response, "texts", &options.form));
    Ok(answer)
}

async fn rerank_stream(
    mut asked: Asked<Vec<proto::RerankStreamRequest>>,
) -> Answered<proto::RerankResponse> {
    let messages = std::mem::take(&mut asked.message);
    let mut whole = proto::RerankRequest::default();
    for (index, message) in messages.into_iter().enumerate() {
        if index == 0 {
            whole.query = message.query;
            whole.raw_scores = message.raw_scores;
            whole.return_text = message.return_text;
            whole.truncation_direction = message.truncation_direction;
        }
        whole.texts.push(message.text);
    }
    rerank(asked.with(whole)).await
}

async fn predict(mut asked: Asked<proto::PredictRequest>) -> Answered<proto::PredictResponse> {
    let message = std::mem::take(&mut asked.message);
    let n_characters = characters(&message.inputs);
    let rows = Rows {
        texts: Texts::alone([message.inputs]),
        words: &ONE_TEXT,
        name: "inputs",
    };
    let options = options(message.truncation_direction)?;
    classify(asked, rows, &options, message.raw_scores, n_characters).await
}

async fn predict_pair(
    mut asked: Asked<proto::PredictPairRequest>,
) -> Answered<proto::PredictResponse> {
    let message = std::mem::take(&mut asked.message);
    let n_texts = message.inputs.len();
    let Ok([first, second]) = <[String; 2]>::try_from(message.inputs) else {
        let why = format!("has {n_texts} texts; send two");
        return Err(ScoreError::invalid("inputs", why).into());
    };
    let n_characters = characters(&first) + characters(&second);
    let rows = Rows {
        texts: Texts::of_query(first, [second]),
        words: &ONE_TEXT,
        name: "inputs",
    };
    let options = options(message.truncation_direction)?;
    classify(asked, rows, &options, message.raw_scores, n_characters).await
}

async fn classify<D>(
    asked: Asked<D>,
    rows: Rows,
    options: &Options,
    raw: bool,
    n_characters: usize,
) -> Answered<proto::PredictResponse> {
    let name = rows.name;
    let response = asked.score(String::new(), rows, options).await?;
    let activation = activation(&response, raw);
    let scores = activation.apply(&response.logits);
    let labels = labels(&asked.edge, &response);
    let predictions = ranking(&scores).into_iter().map(|index| proto::Prediction {
        score: scores[index],
        label: labels[index].clone(),
    });
    let predicted = proto::PredictResponse {
        predictions: predictions.collect(),
        metadata: Some(metadata(&asked.call, &response, n_characters)),
    };
    let mut answer = with_activation(activation, predicted);
    warn(&mut answer, &cuts(&response, name, &options.form));
    Ok(answer)
}

/// `turns` are for the processors: the texts wait, and go when nobody waits for them any more.
async fn tokenize(
    asked: Asked<proto::EncodeRequest>,
    turns: Arc<Semaphore>,
) -> Answered<proto::EncodeResponse> {
    let message = asked.message;
    if let Some(name) = message.prompt_name {
        let why =
            format!("there is no {name:?}: models here have no prompts by name; leave it out");
        return Err(ScoreError::invalid("prompt_name", why).into());
    }
    let bounds = asked.edge.door.bounds();
    let fits = bounds.check_document(0, message.inputs.len());
    fits.map_err(|error| ONE_TEXT.say(error))?;
    let catalog = Arc::clone(&asked.edge.catalog);
    let turn = turns.acquire_owned().await.map_err(ended)?;
    let work = move || {
        // Kept to the end, whether or not somebody still waits.
        let _turn = turn;
        catalog.encode(&message.inputs, message.add_special_tokens)
    };
    let pieces = asked.runtime.blocking(work).await.map_err(ended)??;
    let tokens = pieces.into_iter().map(token).collect();
    Ok(tonic::Response::new(proto::EncodeResponse { tokens }))
}

async fn decode(
    asked: Asked<proto::DecodeRequest>,
    turns: Arc<Semaphore>,
) -> Answered<proto::DecodeResponse> {
    let message = asked.message;
    let catalog = Arc::clone(&asked.edge.catalog);
    let turn = turns.acquire_owned().await.map_err(ended)?;
    let work = move || {
        let _turn = turn;
        catalog.decode(&message.ids, message.skip_special_tokens)
    };
    let text = asked.runtime.blocking(work).await.map_err(ended)??;
    Ok(tonic::Response::new(proto::DecodeResponse { text }))
}

/// The thread has panicked.
fn ended(error: impl ToString) -> ScoreError {
    ScoreError::Internal {
        why: error.to_string(),
    }
}

fn token(piece: Piece) -> proto::SimpleToken {
    proto::SimpleToken {
        id: piece.id,
        special: piece.place.is_none(),
        start: piece.place.map(|(start, _)| narrow(start)),
        stop: piece.place.map(|(_, stop)| narrow(stop)),
        text: piece.text,
    }
}

fn options(direction: i32) -> Result<Options, ScoreError> {
    let side = match proto::TruncationDirection::try_from(direction) {
        // Also what is left out: then the side counts that the model's tokenizer names.
        Ok(proto::TruncationDirection::Right) => None,
        Ok(proto::TruncationDirection::Left) => Some(Side::Left),
        Err(_) => {
            let why = format!("has no value {direction}; send 0 (right) or 1 (left)");
            return Err(ScoreError::invalid("truncation_direction", why));
        }
    };
    Ok(Options {
        form: Form {
            side,
            ..Form::default()
        },
        overflow: Overflow::Truncate,
        priority: Priority::default(),
    })
}

fn metadata(call: &Call, response: &ScoreResponse, n_characters: usize) -> proto::Metadata {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    proto::Metadata {
        compute_chars: narrow(n_characters),
        compute_tokens: u32::try_from(response.n_tokens).unwrap_or(u32::MAX),
        total_time_ns: ns(call.elapsed()),
        tokenization_time_ns: ns(response.times.tokenize),
        queue_time_ns: ns(response.times.queue),
        inference_time_ns: ns(response.times.inference),
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
