//! Every service on the whole way, with the starter behind it.

use crate::server::Server;
use crate::starter::ENGINE;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;

mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::enum_variant_names,
        clippy::too_many_lines,
        reason = "generated"
    )]
    pub(super) mod ours {
        tonic::include_proto!("crossgate.v1");
    }
    pub(super) mod tei {
        tonic::include_proto!("tei.v1");
    }
    pub(super) mod kserve {
        tonic::include_proto!("inference");
    }
}

use proto::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use proto::kserve::infer_parameter::ParameterChoice;
use proto::ours::score_stream_response::Outcome;
use proto::ours::scoring_client::ScoringClient;
use proto::tei::info_client::InfoClient;
use proto::tei::predict_client::PredictClient;
use proto::tei::rerank_client::RerankClient;
use proto::tei::tokenize_client::TokenizeClient;
use proto::{kserve, ours, tei};

/// Requests that every service answers.
const REQUESTS: usize = 50;

fn query(n: usize) -> String {
    [
        "how do plants make energy",
        "capital of Germany",
        "what is bread made of",
    ][n % 3]
        .to_owned()
}

fn documents(n: usize) -> Vec<String> {
    let texts = [
        "Photosynthesis turns sunlight, water and carbon dioxide into glucose.",
        "Berlin is the capital of Germany.",
        "Bread is made of flour, water and salt.",
    ];
    (0..=n % 7)
        .map(|idx| {
            format!(
                "{} {}",
                texts[(n + idx) % 3],
                "and so on ".repeat(idx * (n % 5))
            )
        })
        .collect()
}

/// Over REST, in the documents' order.
fn logits(server: &Server, n: usize) -> Vec<f32> {
    let body = json!({"query": query(n), "documents": documents(n), "raw_scores": true});
    let answer = server.rerank(&body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut results = answer.results();
    results.sort_by_key(|result| result["index"].as_u64());
    let scores = results.iter().map(|result| &result["relevance_score"]);
    scores.map(|score| score.as_f64().unwrap() as f32).collect()
}

fn score_request(n: usize) -> ours::ScoreRequest {
    ours::ScoreRequest {
        query: query(n),
        documents: documents(n),
        raw_scores: true,
        ..ours::ScoreRequest::default()
    }
}

/// By indices in any order.
fn in_order(ranked: impl IntoIterator<Item = (u32, f32)>) -> Vec<f32> {
    let by_index: BTreeMap<u32, f32> = ranked.into_iter().collect();
    by_index.into_values().collect()
}

async fn of_ours(channel: &Channel, n: usize) -> [Vec<f32>; 4] {
    let mut client = ScoringClient::new(channel.clone());
    let scored = client.score(score_request(n)).await.unwrap().into_inner();
    let pairs: Vec<_> = documents(n)
        .into_iter()
        .map(|document| ours::Pair {
            query: query(n),
            document,
        })
        .collect();
    let of_pairs = ours::ScoreRequest {
        pairs: pairs.clone(),
        raw_scores: true,
        ..ours::ScoreRequest::default()
    };
    let of_pairs = client.score(of_pairs).await.unwrap().into_inner();
    let ranked = ours::RerankRequest {
        query: query(n),
        documents: documents(n),
        raw_scores: true,
        ..ours::RerankRequest::default()
    };
    let ranked = client.rerank(ranked).await.unwrap().into_inner().results;
    let predicted = ours::PredictRequest {
        pairs,
        raw_scores: true,
        ..ours::PredictRequest::default()
    };
    let predicted = client.predict(predicted).await.unwrap().into_inner();
    let predicted = predicted.predictions.iter().map(|one| one.scores[0].score);
    [
        scored.scores,
        of_pairs.scores,
        in_order(ranked.iter().map(|one| (one.index, one.relevance_score))),
        predicted.collect(),
    ]
}

async fn of_tei(channel: &Channel, n: usize) -> [Vec<f32>; 3] {
    let asked = tei::RerankRequest {
        query: query(n),
        texts: documents(n),
        raw_scores: true,
        ..tei::RerankRequest::default()
    };
    let mut client = RerankClient::new(channel.clone());
    let ranked = client.rerank(asked).await.unwrap().into_inner().ranks;
    let one_by_one = documents(n)
        .into_iter()
        .map(|text| tei::RerankStreamRequest {
            query: query(n),
            text,
            raw_scores: true,
            ..tei::RerankStreamRequest::default()
        });
    let one_by_one: Vec<_> = one_by_one.collect();
    let streamed = client.rerank_stream(tokio_stream::iter(one_by_one)).await;
    let streamed = streamed.unwrap().into_inner().ranks;
    let pairs = documents(n)
        .into_iter()
        .map(|text| tei::PredictPairRequest {
            inputs: vec![query(n), text],
            raw_scores: true,
            ..tei::PredictPairRequest::default()
        });
    let pairs: Vec<_> = pairs.collect();
    let mut client = PredictClient::new(channel.clone());
    let predicted = client.predict_pair_stream(tokio_stream::iter(pairs)).await;
    let predicted = predicted.unwrap().into_inner();
    let predicted = predicted.map(|answer| answer.unwrap().predictions[0].score);
    let places = |ranks: &[tei::Rank]| in_order(ranks.iter().map(|rank| (rank.index, rank.score)));
    [
        places(&ranked),
        places(&streamed),
        predicted.collect().await,
    ]
}

async fn of_kserve(channel: &Channel, n: usize) -> Vec<f32> {
    let tensor = |name: &str, texts: Vec<String>| kserve::model_infer_request::InferInputTensor {
        name: name.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![texts.len() as i64],
        contents: Some(kserve::InferTensorContents {
            bytes_contents: texts.into_iter().map(String::into_bytes).collect(),
            ..kserve::InferTensorContents::default()
        }),
        ..kserve::model_infer_request::InferInputTensor::default()
    };
    let raw = kserve::InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    let asked = kserve::ModelInferRequest {
        model_name: "starter".to_owned(),
        inputs: vec![
            tensor("query", vec![query(n)]),
            tensor("documents", documents(n)),
        ],
        parameters: [("raw_scores".to_owned(), raw)].into(),
        ..kserve::ModelInferRequest::default()
    };
    let mut client = GrpcInferenceServiceClient::new(channel.clone());
    let answer = client.model_infer(asked).await.unwrap().into_inner();
    let contents = answer.outputs.into_iter().next().unwrap().contents;
    contents.unwrap().fp32_contents
}

fn of_kserve_http(server: &Server, n: usize) -> Vec<f32> {
    let documents = documents(n);
    let body = json!({"parameters": {"raw_scores": true}, "inputs": [
        {"name": "query", "datatype": "BYTES", "shape": [1], "data": [query(n)]},
        {"name": "documents", "datatype": "BYTES", "shape": [documents.len()], "data": documents},
    ]});
    let answer = server.post("/v2/models/starter/infer", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer: Value = serde_json::from_str(&answer.text).unwrap();
    let scores = answer["outputs"][0]["data"].as_array().unwrap().iter();
    scores.map(|score| score.as_f64().unwrap() as f32).collect()
}

#[test]
fn every_service_gives_the_same_logits() {
    let server = Server::start("{}", &ENGINE);
    let channel = server.channel();
    let wanted: Vec<Vec<f32>> = (0..REQUESTS).map(|n| logits(&server, n)).collect();
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| a != b);
    assert!(differ(&wanted[0], &wanted[1]), "requests that differ");
    for (n, wanted) in wanted.iter().enumerate() {
        let found = server.wait(async {
            let kserve = of_kserve(&channel, n).await;
            let (ours, tei) = (of_ours(&channel, n).await, of_tei(&channel, n).await);
            [ours.to_vec(), tei.to_vec(), vec![kserve]].concat()
        });
        for found in found.into_iter().chain([of_kserve_http(&server, n)]) {
            assert_eq!(found, *wanted, "request {n}");
        }
    }
    // All of them on one stream.
    let requests = (0..REQUESTS).map(|n| ours::ScoreStreamRequest {
        id: n.to_string(),
        score: Some(score_request(n)),
        timeout_ms: 0,
    });
    let requests: Vec<_> = requests.collect();
    let answers: Vec<_> = server.wait(async {
        let mut client = ScoringClient::new(channel.clone());
        let answers = client.score_stream(tokio_stream::iter(requests)).await;
        answers.unwrap().into_inner().collect().await
    });
    assert_eq!(answers.len(), REQUESTS);
    for answer in answers {
        let answer = answer.unwrap();
        let n: usize = answer.id.parse().unwrap();
        match answer.outcome {
            Some(Outcome::Score(scored)) => assert_eq!(scored.scores, wanted[n], "request {n}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_model_behind_the_services() {
    let server = Server::start("{}", &ENGINE);
    let channel = server.channel();
    server.wait(async {
        let listed = ScoringClient::new(channel.clone())
            .list_models(ours::ListModelsRequest {})
            .await
            .unwrap();
        let models = listed.into_inner().models;
        assert_eq!((models.len(), models[0].name.as_str()), (1, "starter"));
        let info = InfoClient::new(channel.clone())
            .info(tei::InfoRequest {})
            .await;
        assert_eq!(
            info.unwrap().into_inner().max_input_length,
            models[0].row_tokens_max
        );
        // The tokenizer is the model's own.
        let text = "How do plants make energy?";
        let asked = tei::EncodeRequest {
            inputs: text.to_owned(),
            add_special_tokens: true,
            prompt_name: None,
        };
        let mut client = TokenizeClient::new(channel.clone());
        let tokens = client.tokenize(asked).await.unwrap().into_inner().tokens;
        assert!(tokens.len() > 6, "{tokens:?}");
        let (first, last) = (&tokens[0], &tokens[tokens.len() - 1]);
        assert!(
            first.special && last.special && first.start.is_none(),
            "{tokens:?}"
        );
        let plants = tokens.iter().find(|token| token.text == "plants").unwrap();
        assert_eq!((plants.start, plants.stop), (Some(7), Some(13)));
        let asked = tei::DecodeRequest {
            ids: tokens.iter().map(|token| token.id).collect(),
            skip_special_tokens: true,
        };
        let decoded = client.decode(asked).await.unwrap().into_inner().text;
        assert!(
            decoded.to_lowercase().contains("how do plants make energy"),
            "{decoded:?}"
        );
        let ready = kserve::ModelReadyRequest {
            name: "starter".to_owned(),
            version: "1".to_owned(),
        };
        let ready = GrpcInferenceServiceClient::new(channel)
            .model_ready(ready)
            .await;
        assert!(ready.unwrap().into_inner().ready);
    });
    let metrics = server.get("/metrics").text;
    for route in [
        "/tei.v1.Tokenize/Decode",
        "/inference.GRPCInferenceService/ModelReady",
    ] {
        assert!(metrics.contains(route), "{route} is not counted");
    }
}

/// What nobody waits for is not computed: the end of a stream is the end of all that it asked for.
#[test]
fn a_stream_that_ends_leaves_nothing_behind() {
    let server = Server::start("{}", &[("threads.total", "1")]);
    let hold = server.hold();
    let channel = server.channel();
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let answers = server.wait(async {
        for n in 0..4 {
            let score = ours::ScoreRequest {
                query: "q".to_owned(),
                documents: vec!["a long story".to_owned(); 200],
                ..ours::ScoreRequest::default()
            };
            let asked = ours::ScoreStreamRequest {
                id: n.to_string(),
                score: Some(score),
                timeout_ms: 0,
            };
            send.send(asked).await.unwrap();
        }
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        ScoringClient::new(channel.clone())
            .score_stream(requests)
            .await
            .unwrap()
    });
    server.until(|| (server.metric("crossgate_queue_rows") > 100.0).then_some(()));
    drop((answers, send));
    server.until(|| (server.metric("crossgate_queue_rows") == 0.0).then_some(()));
    drop(hold);
    let answer = server.rerank(&json!({"query": "q", "documents": ["x"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    // The rows of a batch that was on its way were passed over.
    assert_eq!(server.metric("crossgate_rows_total"), 1.0);
}

/// A server that stops does not wait for streams on which nothing is asked.
#[test]
fn a_stream_without_requests_does_not_hold_a_server_that_stops() {
    let server = Server::start("{}", &[]);
    let channel = server.channel();
    let (send, requests) = tokio::sync::mpsc::channel::<ours::ScoreStreamRequest>(1);
    let mut answers = server.wait(async {
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let opened = ScoringClient::new(channel).score_stream(requests).await;
        opened.unwrap().into_inner()
    });
    let began = Instant::now();
    server.shut_down_later().join().unwrap();
    // Not until the time for draining has passed, which is 30 s.
    assert!(began.elapsed() < Duration::from_secs(15));
    let end = server.wait(answers.message());
    assert!(matches!(end, Ok(None)) || end.is_err_and(|end| end.code() != Code::Ok));
    drop(send);
}
