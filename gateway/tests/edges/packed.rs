//! Bodies that come packed, and answers that are packed for those who accept it.

use crate::fixture::{BODY_BYTES_MAX, Fixture, JSON, Reply, USUAL, block_on, check_in, send};
use crate::grpc::{connect, score};
use async_compression::Level;
use async_compression::tokio::bufread::{GzipDecoder, GzipEncoder, ZstdDecoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use axum::Router;
use axum::http::Request;
use gateway::intake::Bounds;
use http_body_util::BodyExt as _;
use tokio::io::AsyncReadExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tower::ServiceExt as _;

use crate::grpc::proto::scoring_client::ScoringClient;

const QUESTION: &str = r#"{"query":"q","documents":["a"]}"#;
const BOTH: [CompressionEncoding; 2] = [CompressionEncoding::Gzip, CompressionEncoding::Zstd];

async fn pack(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let done = match name {
        "gzip" => GzipEncoder::new(bytes).read_to_end(&mut packed).await,
        _ => ZstdEncoder::new(bytes).read_to_end(&mut packed).await,
    };
    done.expect("in memory");
    packed
}

async fn unpack(name: &str, bytes: &[u8]) -> String {
    let mut text = String::new();
    let done = match name {
        "gzip" => GzipDecoder::new(bytes).read_to_string(&mut text).await,
        _ => ZstdDecoder::new(bytes).read_to_string(&mut text).await,
    };
    done.unwrap_or_else(|error| panic!("{name}: {error}"));
    text
}

fn packed(fixture: &Fixture, name: &str, body: Vec<u8>) -> Reply {
    let header = format!("content-encoding: {name}");
    let length = format!("content-length: {}", body.len());
    let headers = [JSON[0], &header, &length];
    block_on(send(fixture.http(), "POST /rerank", &headers, body))
}

#[test]
fn a_packed_body_is_read_as_it_was() {
    for (header, name) in [
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZip", "gzip"),
        ("identity, zstd", "zstd"),
    ] {
        let body = block_on(pack(name, QUESTION.as_bytes()));
        let reply = packed(&Fixture::new(), header, body);
        assert_eq!(reply.status, 200, "{header}: {}", reply.text);
    }
    // A gzip file to which another one was appended.
    let (first, second) = QUESTION.split_at(9);
    let mut body = block_on(pack("gzip", first.as_bytes()));
    body.extend(block_on(pack("gzip", second.as_bytes())));
    assert_eq!(packed(&Fixture::new(), "gzip", body).status, 200);
}

#[test]
fn other_packings_are_refused_by_name() {
    let refused =
        r#"{"error":{"code":"unsupported_encoding","message":"~packed by gzip or zstd"}}"#;
    for name in ["br", "gzip, zstd", "deflate", "x"] {
        let header = format!("content-encoding: {name}");
        let headers = [JSON[0], &header];
        check_in(
            &Fixture::new(),
            "POST /rerank",
            &headers,
            QUESTION,
            415,
            refused,
        );
        let reply = packed(&Fixture::new(), name, Vec::new());
        let message = format!("Content-Encoding: {name} is not taken");
        assert!(reply.text.contains(&message), "{}", reply.text);
        assert_eq!(reply.header("accept-encoding"), "gzip, zstd, identity");
    }
}

#[test]
fn a_body_that_is_not_what_it_says_broke_off() {
    for name in ["gzip", "zstd"] {
        let mut cut = block_on(pack(name, QUESTION.as_bytes()));
        cut.truncate(cut.len() - 4);
        for body in [QUESTION.into(), cut] {
            let reply = packed(&Fixture::new(), name, body);
            assert_eq!(reply.status, 400, "{name}: {}", reply.text);
        }
    }
}

#[test]
fn what_is_packed_small_and_is_large_is_refused_at_the_bound() {
    const BOMB_BYTES: usize = 32 << 20;
    let fixture = Fixture::within(Bounds {
        document_bytes_max: 64 << 10,
        body_bytes_max: 64 << 10,
        ..USUAL
    });
    for name in ["gzip", "zstd"] {
        let bomb = block_on(pack(name, &vec![b' '; BOMB_BYTES]));
        // What announces more than the bound would be refused for that.
        assert!(bomb.len() < BOMB_BYTES / 500, "{name}: {}", bomb.len());
        let cut = &bomb[..bomb.len().min(60 << 10)];
        let reply = packed(&fixture, name, cut.to_vec());
        assert_eq!(reply.status, 413, "{name}: {}", reply.text);
        assert!(
            reply.text.contains("body_bytes_max = 65536"),
            "{}",
            reply.text
        );
        assert!(fixture.edge.door.is_idle());
    }
}

#[test]
fn a_zstd_body_may_not_ask_for_much_memory() {
    let packed_with = |window_log: u32| {
        let params = [CParameter::window_log(window_log)];
        let mut packed = Vec::new();
        block_on(async {
            let bytes = QUESTION.as_bytes();
            let mut encoder = ZstdEncoder::with_quality_and_params(bytes, Level::Default, &params);
            encoder.read_to_end(&mut packed).await.expect("in memory");
        });
        packed
    };
    for (window_log, status) in [(23, 200), (24, 400), (27, 400)] {
        let reply = packed(&Fixture::new(), "zstd", packed_with(window_log));
        assert_eq!(reply.status, status, "2^{window_log}: {}", reply.text);
    }
}

/// A frame of one block that is stored as it is, which asks for so large a window.
fn frame(window_log: u8, content: &[u8]) -> Vec<u8> {
    let block = 1 | (content.len() as u32) << 3;
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    [&head, &block.to_le_bytes()[..3], content].concat()
}

#[tokio::test]
async fn a_zstd_message_may_not_ask_for_much_memory() {
    // `crossgate.v1.ScoreRequest` with the query "q" and the document "2".
    let message = b"\x12\x01q\x1a\x012";
    let headers = ["content-type: application/grpc", "grpc-encoding: zstd"];
    let line = "POST /crossgate.v1.Scoring/Score";
    let fixture = Fixture::within(USUAL);
    let ask = async |packed: Vec<u8>| {
        let length = (packed.len() as u32).to_be_bytes();
        let (router, _) = crate::grpc::router(&fixture).await;
        send(
            router,
            line,
            &headers,
            [&[1], &length[..], &packed].concat(),
        )
        .await
    };
    for window_log in [10, 27] {
        let reply = ask(frame(window_log, message)).await;
        assert!(reply.text.contains("default"), "2^{window_log}: {reply:?}");
    }
    let mut cut = frame(10, message);
    cut.pop();
    for wrong in [
        frame(28, message),
        frame(31, message),
        cut,
        message.to_vec(),
    ] {
        let reply = ask(wrong).await;
        let code = (Code::InvalidArgument as i32).to_string();
        assert_eq!(reply.header("grpc-status"), code, "{reply:?}");
        assert!(
            reply.header("grpc-message").contains("grpc-encoding"),
            "{reply:?}"
        );
    }
}

#[test]
fn a_packed_body_weighs_what_it_is() {
    let fixture = Fixture::within(Bounds {
        bytes_max: 80 << 10,
        ..USUAL
    });
    let body = format!(r#"{{"query":"q","documents":["{}"]}}"#, "x".repeat(100_000));
    let body = block_on(pack("zstd", body.as_bytes()));
    let reply = packed(&fixture, "zstd", body);
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(reply.text.contains("intake.bytes_max"), "{}", reply.text);
    assert!(fixture.edge.door.is_idle());
}

/// The answer's encoding, and its body as it was.
async fn asked(router: Router, path: &str, accept: &str) -> (String, String) {
    let request = Request::get(path).header("accept-encoding", accept);
    let request = request.body(axum::body::Body::empty()).expect("a request");
    let answer = router.oneshot(request).await.expect("an answer");
    let name = answer.headers().get("content-encoding");
    let name = name
        .map_or("", |name| name.to_str().expect("ASCII"))
        .to_owned();
    let bytes = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let text = match name.as_str() {
        "" => String::from_utf8(bytes.to_vec()).expect("a text"),
        name => unpack(name, &bytes).await,
    };
    (name, text)
}

/// Members and frames follow each other; what is neither breaks off.
#[test]
fn a_body_in_two_parts_is_read_whole() {
    let (first, second) = (r#"{"query":"q","docu"#, r#"ments":["a","b"]}"#);
    for name in ["gzip", "zstd"] {
        let parts = [first, second].map(|part| block_on(pack(name, part.as_bytes())));
        let reply = packed(&Fixture::new(), name, parts.concat());
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        let whole = block_on(pack(name, format!("{first}{second}").as_bytes()));
        let reply = packed(&Fixture::new(), name, [&whole[..], b"JUNKJUNK"].concat());
        assert_eq!(reply.status, 400, "{name}: {}", reply.text);
    }
}

#[test]
fn who_refuses_plain_answers_gets_them_where_nothing_else_is_left() {
    for (accept, packing) in [
        ("identity;q=0", ""),
        ("br;q=1, *;q=0", ""),
        ("gzip, identity; q=0.0", "gzip"),
    ] {
        let (name, text) = block_on(asked(Fixture::new().http(), "/openapi.json", accept));
        assert_eq!(name, packing, "{accept}");
        assert!(text.contains("openapi"), "{accept}: {text:.80}");
    }
}

#[test]
fn large_answers_are_packed_for_those_who_accept_it() {
    for (accept, wanted) in [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip;q=0.5, zstd", "zstd"),
        ("br, gzip", "gzip"),
        ("identity", ""),
        ("br", ""),
        ("gzip;q=0", ""),
    ] {
        let (name, text) = block_on(asked(Fixture::new().http(), "/openapi.json", accept));
        assert_eq!(name, wanted, "{accept}");
        assert_eq!(text, gateway::edge::openapi(), "{accept}");
    }
    // A small one is not worth it.
    let (name, text) = block_on(asked(Fixture::new().http(), "/v1/models", "gzip, zstd"));
    assert_eq!((name.as_str(), text.starts_with('{')), ("", true));
}

#[tokio::test]
async fn grpc_messages_may_come_and_go_packed() {
    let (channel, _) = connect(&Fixture::new()).await;
    for packing in BOTH {
        let mut client = ScoringClient::new(channel.clone())
            .send_compressed(packing)
            .accept_compressed(packing);
        let small = client.score(score("q", &["1"])).await.expect("scores");
        assert!(small.metadata().get("grpc-encoding").is_some());
        assert_eq!(small.into_inner().scores, [1.0]);
        let documents = vec!["2"; 900];
        let large = client.score(score("q", &documents)).await.expect("scores");
        let name = large.metadata().get("grpc-encoding");
        let wanted = packing.to_string();
        assert_eq!(name.and_then(|name| name.to_str().ok()), Some(&*wanted));
        assert_eq!(large.into_inner().scores, vec![2.0; 900]);
    }
}

#[tokio::test]
async fn a_grpc_message_is_bound_by_what_it_is() {
    let fixture = Fixture::within(Bounds {
        bytes_max: 80 << 10,
        ..USUAL
    });
    let (roomless, _) = connect(&fixture).await;
    let (bounded, _) = connect(&Fixture::new()).await;
    let document = "x".repeat(100_000);
    for packing in BOTH {
        for (channel, code, word) in [
            (&bounded, Code::InvalidArgument, "body_bytes_max"),
            (&roomless, Code::ResourceExhausted, "intake.bytes_max"),
        ] {
            let error = ScoringClient::new(channel.clone())
                .send_compressed(packing)
                .score(score("q", &[&document]))
                .await
                .expect_err("too large");
            assert_eq!(error.code(), code, "{packing}: {error}");
            assert!(error.message().contains(word), "{packing}: {error}");
        }
        assert!(fixture.edge.door.is_idle());
    }
    assert!(BODY_BYTES_MAX < document.len());
}
