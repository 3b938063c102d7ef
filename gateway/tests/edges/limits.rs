//! What a small request can make of itself: memory, error texts, room at the door.

use crate::fixture::{Fixture, JSON, Reply, USUAL, ask, block_on, check, core_for, send};
use axum::body::Body;
use axum::http::Request;
use gateway::intake::Bounds;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

#[test]
fn rank_fields_are_few_and_count_once() {
    let body = |names: &str| {
        format!(
            r#"{{"query":"q","documents":[{{"a":"x"}}],"rank_fields":[{names}],"return_documents":true}}"#
        )
    };
    let twice = r#"{"results":[{"document":{"text":"a: x"}}]}"#;
    check("POST /rerank", &body(r#""a","a""#), 200, twice);
    let many = vec![r#""a""#; 65].join(",");
    let refused = r#"{"error":{"param":"rank_fields","message":"rank_fields: has more than 64 names; send fewer"}}"#;
    check("POST /rerank", &body(&many), 422, refused);
    let longest = vec![r#""a""#; 64].join(",");
    check("POST /rerank", &body(&longest), 200, twice);
    // The list is not repeated.
    let none = r#"{"error":{"param":"documents[0]",
        "message":"documents[0]: has none of the 1 rank_fields; send one of them"}}"#;
    check("POST /rerank", &body(r#""b""#), 422, none);
}

#[test]
fn documents_are_counted_before_they_are_unpacked() {
    let many = vec![r#""""#; 1_001].join(",");
    for (key, wanted) in [
        (
            "documents",
            r#"{"error":{"param":"documents","code":"too_large",
                "message":"~1001 documents are more than intake.documents_max = 1000"}}"#,
        ),
        (
            "texts",
            r#"{"error":"~texts: 1001 documents are more than intake.documents_max = 1000"}"#,
        ),
    ] {
        let body = format!(r#"{{"query":"q","{key}":[{many}]}}"#);
        check("POST /rerank", &body, 413, wanted);
    }
    let fields = vec![r#""a":0"#; 257].join(",");
    check(
        "POST /rerank",
        &format!(r#"{{"query":"q","documents":["a",{{{fields}}}]}}"#),
        422,
        r#"{"error":{"param":"documents[1]","message":"~has more than 256 fields; send fewer"}}"#,
    );
}

#[test]
fn a_document_is_not_written_out_beyond_its_bound() {
    let fixture = Fixture::within(Bounds {
        document_bytes_max: 10,
        ..USUAL
    });
    let body = r#"{"query":"q","documents":[{"a":"12345","b":"12345"}]}"#;
    let reply = block_on(send(fixture.http(), "POST /rerank", JSON, body));
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, error["param"].as_str()),
        (413, Some("documents[0]"))
    );
    assert!(reply.text.contains("intake.document_bytes_max = 10"));
}

#[test]
fn errors_do_not_repeat_whole_bodies() {
    #[track_caller]
    fn check(reply: &Reply) {
        let error = &reply.json()["error"];
        for text in [&error["message"], &error["param"]] {
            let bytes = text.as_str().map_or(0, str::len);
            assert!(bytes <= 1_024 + '…'.len_utf8(), "{bytes}");
        }
        assert!(
            reply.json()["message"]
                .as_str()
                .expect("a text")
                .ends_with('…')
        );
    }
    // Two bytes a letter: a cut in the middle of one would be no text at all.
    let long = "é".repeat(1_500);
    for (status, body) in [
        (
            404,
            format!(r#"{{"query":"q","documents":["a"],"model":"{long}"}}"#),
        ),
        (422, format!(r#"{{"query":"q","documents":"{long}"}}"#)),
        (
            422,
            format!(r#"{{"query":"q","documents":["a"],"top_n":"{long}"}}"#),
        ),
    ] {
        let reply = ask("POST /rerank", JSON, &body);
        assert_eq!(reply.status, status, "{}", reply.text);
        check(&reply);
    }
    check(&ask(&format!("GET /{}", "x".repeat(2_000)), &[], ""));
}

fn in_pieces(text: &str) -> Body {
    let (first, second) = text.split_at(text.len() / 2);
    let pieces = [first, second].map(|piece| Ok::<_, std::io::Error>(piece.to_owned()));
    Body::from_stream(tokio_stream::iter(pieces))
}

#[test]
fn bodies_of_no_announced_length_weigh_what_they_are() {
    const CALLS: usize = 64;
    let mut fixture = Fixture::within(USUAL);
    fixture.edge.core = core_for(CALLS);
    block_on(async {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CALLS {
            let body = in_pieces(r#"{"query":"q","documents":["a"]}"#);
            calls.spawn(send(fixture.http(), "POST /rerank", JSON, body));
        }
        while let Some(reply) = calls.join_next().await {
            assert_eq!(reply.expect("no panic").status, 200);
        }
    });
    let door = &fixture.edge.door;
    assert!(door.is_idle());
    // Nor is anybody kept out by those of whose body nothing has come yet.
    let passes: Result<Vec<_>, _> = (0..USUAL.requests_max).map(|_| door.enter(None)).collect();
    assert!(passes.is_ok());
}

#[test]
fn a_body_that_outgrows_the_room_is_refused() {
    let fixture = Fixture::within(Bounds {
        bytes_max: 80 << 10,
        ..USUAL
    });
    let body = format!(r#"{{"query":"q","documents":["{}"]}}"#, "x".repeat(100_000));
    let announced = format!("content-length: {}", body.len());
    for (headers, body) in [
        (&[JSON[0]][..], in_pieces(&body)),
        (&[JSON[0], &announced], Body::from(body.clone())),
    ] {
        let reply = block_on(send(fixture.http(), "POST /rerank", headers, body));
        assert_eq!(reply.status, 429, "{}", reply.text);
        assert!(reply.text.contains("intake.bytes_max"), "{}", reply.text);
        assert!(fixture.edge.door.is_idle());
    }
}

#[test]
fn an_answer_weighs_until_it_has_been_sent() {
    let fixture = Fixture::within(USUAL);
    let door = &fixture.edge.door;
    block_on(async {
        let request = Request::post("/rerank").body(Body::from(
            r#"{"query":"q","documents":["a"],"return_documents":true}"#,
        ));
        let answer = fixture.http().oneshot(request.expect("a request")).await;
        let answer = answer.expect("an answer");
        // Whoever reads slowly keeps nobody out, but what is kept for him is counted.
        assert_eq!((door.inside(), door.is_idle()), (0, false));
        let bytes = answer
            .into_body()
            .collect()
            .await
            .expect("bytes")
            .to_bytes();
        assert!(!door.is_idle());
        drop(bytes);
        assert!(door.is_idle());
    });
}

#[test]
fn health_shows_what_the_door_sees() {
    let fixture = Fixture::with_room_for(4);
    let passes: Vec<_> = (0..3)
        .map(|_| fixture.edge.door.enter(Some(1)).expect("room"))
        .collect();
    let slots = || {
        let reply = block_on(send(fixture.http(), "GET /health", &[], ""));
        let controller = &reply.json()["controller"];
        (
            controller["active"].as_u64(),
            controller["available_slots"].as_u64(),
        )
    };
    assert_eq!(slots(), (Some(3), Some(1)));
    drop(passes);
    assert_eq!(slots(), (Some(0), Some(4)));
}
