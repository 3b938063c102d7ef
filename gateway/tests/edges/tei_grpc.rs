//! `tei.v1`: what clients of Text Embeddings Inference see over gRPC.

use crate::fixture::Fixture;
use crate::grpc::connect;
use gateway::intake::Bounds;
use tokio_stream::StreamExt as _;
use tonic::Code;

pub(crate) mod proto {
    #![allow(
        unreachable_pub,
        unused_qualifications,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("tei.v1");
}

use proto::info_client::InfoClient;
use proto::predict_client::PredictClient;
use proto::rerank_client::RerankClient;
use proto::tokenize_client::TokenizeClient;
use proto::{
    DecodeRequest, EncodeRequest, InfoRequest, ModelType, PredictPairRequest, PredictRequest, Rank,
    RerankRequest, RerankStreamRequest,
};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn places(ranks: &[Rank]) -> Vec<(u32, Option<&str>)> {
    ranks
        .iter()
        .map(|rank| (rank.index, rank.text.as_deref()))
        .collect()
}

#[tokio::test]
async fn what_serves() {
    let (channel, _) = connect(&Fixture::new()).await;
    let info = InfoClient::new(channel).info(InfoRequest {}).await;
    let info = info.expect("a model").into_inner();
    assert_eq!(info.model_id, "hub/default");
    assert_eq!(info.model_type(), ModelType::Reranker);
    assert_eq!(
        (info.max_input_length, info.max_client_batch_size),
        (512, 1_000)
    );
    assert_eq!(
        (info.version.as_str(), info.model_sha),
        ("0.0.0-test", None)
    );
}

#[tokio::test]
async fn ranks_are_theirs() {
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = RerankClient::new(channel);
    let asked = RerankRequest {
        query: "long document".to_owned(),
        texts: texts(&["-1", "1", "0"]),
        return_text: true,
        ..RerankRequest::default()
    };
    let answer = client.rerank(asked.clone()).await.expect("ranks");
    let header = |name| answer.metadata().get(name).map(|value| value.as_bytes());
    assert_eq!(header("x-crossgate-activation"), Some(&b"sigmoid"[..]));
    let warned = Some(&b"cut to the model's length: texts[1]"[..]);
    assert_eq!(header("x-crossgate-warnings"), warned);
    let answer = answer.into_inner();
    assert_eq!(
        places(&answer.ranks),
        [(1, Some("1")), (2, Some("0")), (0, Some("-1"))]
    );
    assert_eq!(answer.ranks[1].score, 0.5);
    let metadata = answer.metadata.expect("metadata");
    assert_eq!(metadata.compute_chars, 3 * 13 + 4);
    assert_eq!(
        (metadata.queue_time_ns, metadata.inference_time_ns),
        (2_000_000, 30_000_000)
    );

    let raw = RerankRequest {
        raw_scores: true,
        return_text: false,
        ..asked.clone()
    };
    let raw = client.rerank(raw).await.expect("ranks").into_inner();
    assert_eq!(
        (raw.ranks[0].score, raw.ranks[0].text.as_deref()),
        (1.0, None)
    );

    let none = RerankRequest {
        texts: Vec::new(),
        ..asked.clone()
    };
    let refused = client.rerank(none).await.expect_err("no texts");
    assert_eq!(refused.message(), "texts: is empty; send at least one text");
    let many = RerankRequest {
        texts: vec![String::new(); 1_001],
        ..asked.clone()
    };
    let refused = client.rerank(many).await.expect_err("too many");
    assert!(
        refused
            .message()
            .starts_with("texts: 1001 documents are more"),
        "{refused}"
    );
    let side = RerankRequest {
        truncation_direction: 7,
        ..asked
    };
    let refused = client.rerank(side).await.expect_err("no such side");
    assert!(
        refused
            .message()
            .starts_with("truncation_direction: has no value 7"),
        "{refused}"
    );
}

#[tokio::test]
async fn texts_may_come_one_by_one() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = RerankClient::new(channel);
    let one = |query: &str, text: &str, return_text| RerankStreamRequest {
        query: query.to_owned(),
        text: text.to_owned(),
        return_text,
        raw_scores: true,
        ..RerankStreamRequest::default()
    };
    // The first one's query and options count.
    let asked = [
        one("q", "1", true),
        one("overloaded", "3", false),
        one("", "2", false),
    ];
    let answer = client.rerank_stream(tokio_stream::iter(asked)).await;
    let ranks = answer.expect("ranks").into_inner().ranks;
    assert_eq!(
        places(&ranks),
        [(1, Some("3")), (2, Some("2")), (0, Some("1"))]
    );
    let refused = client.rerank_stream(tokio_stream::iter([])).await;
    let refused = refused.expect_err("no texts");
    assert_eq!(refused.message(), "texts: is empty; send at least one text");
    let refused = client
        .rerank_stream(tokio_stream::iter([one("overloaded", "1", true)]))
        .await;
    let refused = refused.expect_err("as the query asks");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.metadata().contains_key("retry-after"), "{refused}");
    // All of them are one request, with its bounds.
    let few = Fixture::within(Bounds {
        documents_max: 2,
        ..*fixture.edge.door.bounds()
    });
    let (channel, _) = connect(&few).await;
    let endless = tokio_stream::iter(0..).map(move |_: u32| one("q", "1", true));
    let refused = RerankClient::new(channel).rerank_stream(endless).await;
    let refused = refused.expect_err("too many");
    let said = refused.message();
    assert!(
        said.starts_with("texts: ") && said.contains("intake.documents_max = 2"),
        "{said}"
    );
}

#[tokio::test]
async fn labels_of_texts_and_pairs() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = PredictClient::new(channel);
    let one = |inputs: &str| PredictRequest {
        inputs: inputs.to_owned(),
        ..PredictRequest::default()
    };
    let answer = client.predict(one("0")).await.expect("labels").into_inner();
    let found: Vec<_> = answer
        .predictions
        .iter()
        .map(|one| (one.label.as_str(), one.score))
        .collect();
    assert_eq!(found, [("LABEL_0", 0.5)]);
    let pair = |inputs: &[&str]| PredictPairRequest {
        inputs: texts(inputs),
        raw_scores: true,
        ..PredictPairRequest::default()
    };
    let answer = client
        .predict_pair(pair(&["q", "3"]))
        .await
        .expect("labels")
        .into_inner();
    assert_eq!(answer.predictions[0].score, 3.0);
    assert_eq!(answer.metadata.expect("metadata").compute_chars, 2);
    let refused = client
        .predict_pair(pair(&["q"]))
        .await
        .expect_err("one text");
    assert_eq!(refused.message(), "inputs: has 1 texts; send two");
}

#[tokio::test]
async fn many_texts_are_answered_in_their_order() {
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = PredictClient::new(channel);
    let one = |inputs: &str| PredictRequest {
        inputs: inputs.to_owned(),
        ..PredictRequest::default()
    };
    let pair = |inputs: &[&str]| PredictPairRequest {
        inputs: texts(inputs),
        raw_scores: true,
        ..PredictPairRequest::default()
    };
    // And the first failure is the end.
    let requests = (0..100).map(move |n: i32| one(&n.to_string()));
    let mut answers = client
        .predict_stream(tokio_stream::iter(requests))
        .await
        .expect("a stream")
        .into_inner();
    let mut last = 0.0;
    for n in 0..100 {
        let answer = answers
            .message()
            .await
            .expect("an answer")
            .expect("an answer");
        let score = answer.predictions[0].score;
        assert!(score >= last, "{n}: {score} after {last}");
        last = score;
    }
    assert!(answers.message().await.expect("the end").is_none());
    let requests = [
        pair(&["q", "1"]),
        pair(&["invalid", "2"]),
        pair(&["q", "3"]),
    ];
    let mut answers = client
        .predict_pair_stream(tokio_stream::iter(requests))
        .await
        .expect("a stream")
        .into_inner();
    let first = answers
        .message()
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!(first.predictions[0].score, 1.0);
    let end = answers.message().await.expect_err("as the query asks");
    assert_eq!(end.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn tokens_and_their_text() {
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = TokenizeClient::new(channel);
    let asked = |inputs: &str| EncodeRequest {
        inputs: inputs.to_owned(),
        add_special_tokens: true,
        prompt_name: None,
    };
    let tokens = client
        .tokenize(asked("aß"))
        .await
        .expect("tokens")
        .into_inner()
        .tokens;
    let found: Vec<_> = tokens
        .iter()
        .map(|token| {
            (
                token.id,
                token.text.as_str(),
                token.special,
                token.start,
                token.stop,
            )
        })
        .collect();
    let wanted = [
        (97, "a", false, Some(0), Some(1)),
        (223, "ß", false, Some(1), Some(2)),
        (0, "[END]", true, None, None),
    ];
    assert_eq!(found, wanted);
    let named = EncodeRequest {
        prompt_name: Some("query".to_owned()),
        ..asked("a")
    };
    let refused = client
        .tokenize(named)
        .await
        .expect_err("no prompts by name");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let ids = DecodeRequest {
        ids: vec![97, 223, 0],
        skip_special_tokens: true,
    };
    let text = client
        .decode(ids.clone())
        .await
        .expect("text")
        .into_inner()
        .text;
    assert_eq!(text, "aß");
}

#[tokio::test]
async fn tokens_of_many_texts() {
    let (channel, _) = connect(&Fixture::new()).await;
    let mut client = TokenizeClient::new(channel);
    let asked = |inputs: &str| EncodeRequest {
        inputs: inputs.to_owned(),
        add_special_tokens: true,
        prompt_name: None,
    };
    let ids = DecodeRequest {
        ids: vec![97, 223, 0],
        skip_special_tokens: true,
    };
    let requests = [asked("a"), asked("bc")];
    let mut answers = client
        .tokenize_stream(tokio_stream::iter(requests))
        .await
        .expect("a stream")
        .into_inner();
    let lengths = [answers.message().await, answers.message().await]
        .map(|answer| answer.expect("an answer").expect("an answer").tokens.len());
    assert_eq!(lengths, [2, 3]);
    let mut answers = client
        .decode_stream(tokio_stream::iter([ids]))
        .await
        .expect("a stream")
        .into_inner();
    assert_eq!(
        answers
            .message()
            .await
            .expect("an answer")
            .expect("an answer")
            .text,
        "aß"
    );
}

#[tokio::test]
async fn tokens_have_bounds() {
    // A list of numbers, too.
    let fixture = Fixture::new();
    let (channel, _) = connect(&fixture).await;
    let mut client = TokenizeClient::new(channel);
    let many = DecodeRequest {
        ids: vec![1; 3_000],
        skip_special_tokens: true,
    };
    assert!(client.decode(many).await.is_ok());
    let wide = Fixture::within(crate::fixture::USUAL);
    let (channel, _) = connect(&wide).await;
    let many = DecodeRequest {
        ids: vec![1; 65_537],
        skip_special_tokens: true,
    };
    let refused = TokenizeClient::new(channel)
        .decode(many)
        .await
        .expect_err("too many");
    assert!(
        refused
            .message()
            .starts_with("ids: 65537 elements of lists are more than 65536"),
        "{refused}"
    );
    // To tokenize needs a pass.
    let (channel, _) = connect(&Fixture::with_room_for(0)).await;
    let refused = TokenizeClient::new(channel)
        .tokenize(EncodeRequest::default())
        .await
        .expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted);
}
