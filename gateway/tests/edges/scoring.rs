//! `crossgate.v1.Scoring` beyond plain scores: forms, pairs, labels, models.

use crate::fixture::Fixture;
use crate::grpc::connect;
use crate::grpc::proto::scoring_client::ScoringClient;
use crate::grpc::proto::{
    Form, ListModelsRequest, Pair, PredictRequest, RerankRequest, ScoreRequest,
};
use tonic::Code;
use tonic::transport::Channel;

async fn client() -> ScoringClient<Channel> {
    ScoringClient::new(connect(&Fixture::new()).await.0)
}

pub(crate) fn pair(query: &str, document: &str) -> Pair {
    Pair {
        query: query.to_owned(),
        document: document.to_owned(),
    }
}

fn of_form(form: Form) -> ScoreRequest {
    ScoreRequest {
        query: "form".to_owned(),
        documents: vec!["a".to_owned()],
        form: Some(form),
        ..ScoreRequest::default()
    }
}

#[tokio::test]
async fn forms_reach_the_core() {
    let mut client = client().await;
    // The core answers the form that it is asked in.
    let form = Form {
        document_tokens_max: 3,
        query_tokens_max: 2,
        row_tokens_max: 64,
        truncation_side: 2,
        overflow: 3,
        instruction: "find".to_owned(),
    };
    let asked = of_form(form.clone());
    let found = client
        .score(asked)
        .await
        .expect("scores")
        .into_inner()
        .model;
    for part in [
        "instruction: Some(\"find\")",
        "query_tokens_max: Some(2)",
        "document_tokens_max: Some(3)",
        "row_tokens_max: Some(64)",
        "side: Some(Left)",
        "windows: true",
    ] {
        assert!(found.contains(part), "{part} in {found}");
    }
    let asked = RerankRequest {
        query: "form".to_owned(),
        documents: vec!["a".to_owned()],
        form: Some(form.clone()),
        ..RerankRequest::default()
    };
    let ranked = client.rerank(asked).await.expect("results").into_inner();
    assert_eq!(ranked.model, found);
    let asked = PredictRequest {
        pairs: vec![pair("form", "a")],
        form: Some(form),
        ..PredictRequest::default()
    };
    let predicted = client.predict(asked).await.expect("labels").into_inner();
    assert_eq!(predicted.model, found);
    let plain = of_form(Form::default());
    let plain = client
        .score(plain)
        .await
        .expect("scores")
        .into_inner()
        .model;
    assert!(
        plain.contains("row_tokens_max: None") && plain.contains("side: None"),
        "{plain}"
    );
}

#[tokio::test]
async fn what_becomes_of_long_texts_is_told() {
    let mut client = client().await;
    let asked = |query: &str, overflow| ScoreRequest {
        query: query.to_owned(),
        documents: vec!["a".to_owned(), "b".to_owned()],
        form: Some(Form {
            overflow,
            ..Form::default()
        }),
        ..ScoreRequest::default()
    };
    let cut = client
        .score(asked("long document", 1))
        .await
        .expect("scores");
    let warnings = cut.into_inner().warnings;
    assert_eq!(warnings, ["cut to the model's length: documents[1]"]);
    let refused = client.score(asked("long document", 2)).await;
    let refused = refused.expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("documents[1]: "), "{refused}");
    let read = client
        .score(asked("windows", 3))
        .await
        .expect("scores")
        .into_inner();
    let windows: Vec<_> = read
        .windows
        .iter()
        .map(|found| (found.index, found.count))
        .collect();
    assert_eq!(windows, [(0, 3)]);
    assert_eq!(
        read.warnings,
        ["scored by the best window: documents[0] of 3"]
    );
}

#[tokio::test]
async fn numbers_without_a_meaning_are_refused() {
    let mut client = client().await;
    let forms = [
        (
            Form {
                overflow: 9,
                ..Form::default()
            },
            "form.overflow: has no value 9",
        ),
        (
            Form {
                truncation_side: -1,
                ..Form::default()
            },
            "form.truncation_side: has no value -1",
        ),
    ];
    for (form, text) in forms {
        let refused = client.score(of_form(form)).await.expect_err(text);
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let short = ScoreRequest {
        query: "short rows".to_owned(),
        documents: vec!["a".to_owned()],
        ..ScoreRequest::default()
    };
    let refused = client.score(short).await.expect_err("no room");
    assert!(
        refused.message().starts_with("form.row_tokens_max: "),
        "{refused}"
    );
}

#[tokio::test]
async fn pairs_have_queries_of_their_own() {
    let mut client = client().await;
    let asked = ScoreRequest {
        pairs: vec![pair("p", "2"), pair("q", "7")],
        ..ScoreRequest::default()
    };
    let scored = client.score(asked.clone()).await.expect("scores");
    assert_eq!(scored.into_inner().scores, [2.0, 7.0]);
    let both = ScoreRequest {
        query: "q".to_owned(),
        ..asked
    };
    let refused = client.score(both).await.expect_err("two kinds of rows");
    assert!(refused.message().starts_with("pairs: "), "{refused}");
    // The core speaks of documents.
    let failed = ScoreRequest {
        pairs: vec![pair("invalid", "1")],
        ..ScoreRequest::default()
    };
    let refused = client.score(failed).await.expect_err("as the query asks");
    assert_eq!(refused.message(), "pairs[2].document: the reason");
    let failed = ScoreRequest {
        pairs: vec![pair("invalid query", "1")],
        ..ScoreRequest::default()
    };
    let refused = client.score(failed).await.expect_err("as the query asks");
    assert_eq!(refused.message(), "pairs[1].query: the reason");
    let many = ScoreRequest {
        pairs: vec![pair("", ""); 1_001],
        ..ScoreRequest::default()
    };
    let refused = client.score(many).await.expect_err("too many");
    assert!(
        refused
            .message()
            .starts_with("pairs: 1001 documents are more"),
        "{refused}"
    );
}

#[tokio::test]
async fn labels_have_names_and_probabilities() {
    let mut client = client().await;
    let asked = PredictRequest {
        model: "classes".to_owned(),
        texts: vec!["0".to_owned(), "-1".to_owned()],
        ..PredictRequest::default()
    };
    let answer = client.predict(asked.clone()).await.expect("labels");
    let activation = answer.metadata().get("x-crossgate-activation").cloned();
    assert_eq!(activation.expect("metadata"), "softmax");
    let found: Vec<_> = answer
        .into_inner()
        .predictions
        .into_iter()
        .map(|one| {
            let scores: Vec<_> = one
                .scores
                .into_iter()
                .map(|found| (found.label, found.score))
                .collect();
            (one.label, scores)
        })
        .collect();
    let low = 1.0 / (1.0 + 1.0_f32.exp());
    assert_eq!(found[0].0, "no", "the first of equals");
    assert_eq!(
        found[0].1,
        [("no".to_owned(), 0.5), ("yes".to_owned(), 0.5)]
    );
    assert_eq!(found[1].0, "yes");
    assert!((found[1].1[0].1 - low).abs() < 1e-6, "{found:?}");
    let raw = PredictRequest {
        raw_scores: true,
        ..asked
    };
    let raw = client.predict(raw).await.expect("labels").into_inner();
    let scores = raw.predictions[1].scores.iter().map(|found| found.score);
    assert_eq!(scores.collect::<Vec<_>>(), [-1.0, 0.0]);
    let none = client
        .predict(PredictRequest::default())
        .await
        .expect_err("nothing");
    assert!(none.message().starts_with("texts: is empty"), "{none}");
    let both = PredictRequest {
        texts: vec!["a".to_owned()],
        pairs: vec![pair("q", "a")],
        ..PredictRequest::default()
    };
    let refused = client.predict(both).await.expect_err("two kinds of rows");
    assert!(refused.message().starts_with("pairs: "), "{refused}");
}

#[tokio::test]
async fn models_are_listed() {
    let fixture = Fixture::with_room_for(0);
    let (channel, _) = connect(&fixture).await;
    let mut client = ScoringClient::new(channel);
    // Nobody needs a pass to see them.
    let listed = client
        .list_models(ListModelsRequest {})
        .await
        .expect("models");
    let models = listed.into_inner().models;
    let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["default", "classes"]);
    assert_eq!(models[1].labels, ["no", "yes"]);
    assert_eq!((models[0].row_tokens_max, models[0].generation), (512, 1));
    assert_eq!(
        (models[0].state.as_str(), models[0].activation.as_str()),
        ("live", "identity")
    );
    let counted = fixture.metrics.0.lock().expect("no panic").clone();
    assert_eq!(counted, [("grpc", "/crossgate.v1.Scoring/ListModels", 0)]);
}
