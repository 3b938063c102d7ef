//! The Open Inference Protocol over HTTP: what clients of KServe and Triton see.

use crate::fixture::{Fixture, JSON, Reply, block_on, check, check_all, check_in, send};
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use std::sync::atomic::Ordering;
use tower::ServiceExt as _;

/// A request over HTTP.
pub(crate) const INFER: &str = r#"{"inputs":[
    {"name":"query","datatype":"BYTES","shape":[1],"data":["q"]},
    {"name":"documents","datatype":"BYTES","shape":[2],"data":["1","2.5"]}]}"#;
const PATH: &str = "POST /v2/models/default/infer";

#[test]
fn what_serves() {
    let lines = [
        (
            "GET /v2",
            200,
            r#"{"name":"crossgate","version":"0.0.0-test"}"#,
        ),
        ("GET /v2/health/live", 200, r#"{"live":true}"#),
        ("GET /v2/health/ready", 200, r#"{"ready":true}"#),
        ("GET /v2/models/default/ready", 200, r#"{"ready":true}"#),
        (
            "GET /v2/models/default/versions/1/ready",
            200,
            r#"{"ready":true}"#,
        ),
        (
            "GET /v2/models/default/versions/2/ready",
            422,
            r#"{"error":"~leave the version out"}"#,
        ),
        (
            "GET /v2/models/none/ready",
            404,
            r#"{"error":"~there is no model \"none\""}"#,
        ),
        ("GET /v2/models/none", 404, r#"{"error":"~default"}"#),
        (
            "GET /v2/models/hub/none",
            404,
            r#"{"error":"~\"hub/none\""}"#,
        ),
        (
            "GET /v2/models/hub/none/ready",
            404,
            r#"{"error":"~\"hub/none\""}"#,
        ),
        (
            "GET /v2/models/hub%2Fnone/ready",
            404,
            r#"{"error":"~\"hub/none\""}"#,
        ),
        ("GET /v2/models/%ff", 422, r#"{"error":"~id: "}"#),
        (
            "GET /v2/models/default",
            200,
            r#"{"name":"default","versions":["1"],"platform":"crossgate",
                "inputs":[{"name":"query","datatype":"BYTES","shape":[-1]},
                          {"name":"documents","datatype":"BYTES","shape":[-1]}],
                "outputs":[{"name":"scores","datatype":"FP32","shape":[-1]}]}"#,
        ),
        (
            "GET /v2/models/classes/versions/1",
            200,
            r#"{"outputs":[{"name":"scores","datatype":"FP32","shape":[-1,2]}]}"#,
        ),
    ];
    for (line, status, wanted) in lines {
        check(line, "", status, wanted);
    }
}

#[test]
fn readiness_and_neighbours() {
    let fixture = Fixture::new();
    fixture.catalog.is_ready.store(false, Ordering::Relaxed);
    let reply = block_on(send(fixture.http(), "GET /v2/health/ready", &[], ""));
    assert_eq!(
        (reply.status, reply.text.as_str()),
        (503, r#"{"ready":false}"#)
    );
    // The path of another dialect's is its own.
    check(
        "POST /v2/rerank",
        r#"{"query":"q","documents":["a"]}"#,
        200,
        r#"{"object":"list"}"#,
    );
}

#[test]
fn tensors_as_json() {
    check(
        PATH,
        INFER,
        200,
        r#"{"model_name":"default","model_version":"1","parameters":{"activation":"identity"},
            "outputs":[{"name":"scores","datatype":"FP32","shape":[2],"data":[1,2.5]}]}"#,
    );
    let lines = r#"
{"id":"7","inputs":[{"name":"documents","datatype":"BYTES","shape":[2,1],"data":[["3"],["4"]]},{"name":"query","datatype":"BYTES","shape":[2],"data":["p","q"]}],"outputs":[{"name":"scores"}]}
    200 {"id":"7","outputs":[{"shape":[2],"data":[3,4]}]}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"data":["3"]}]}
    200 {"outputs":[{"shape":[1],"data":[3]}]}
{"inputs":[{"name":"query","datatype":"BYTES","shape":[1],"data":["long document"]},{"name":"documents","datatype":"BYTES","shape":[2],"data":["1","2"]}]}
    200 {"parameters":{"warnings":"cut to the model's length: documents[1]"}}
{"parameters":{"overflow":"error"},"inputs":[{"name":"query","datatype":"BYTES","shape":[1],"data":["long document"]},{"name":"documents","datatype":"BYTES","shape":[2],"data":["1","2"]}]}
    422 {"error":"~documents[1]: is too long"}
"#;
    check_all(PATH, lines);
}

#[test]
fn wrong_tensors_are_named() {
    let lines = r#"
{"inputs":[{"name":"query","datatype":"BYTES","shape":[1],"data":["q"]}]}
    422 {"error":"~documents: is missing"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[0],"data":[]}]}
    400 {"error":"~documents: is empty"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[2],"data":["1"]}]}
    422 {"error":"~inputs[0].shape: [2] is not the shape of 1 elements"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[-1],"data":["1"]}]}
    422 {"error":"~inputs[0].shape"}
{"inputs":[{"name":"documents","datatype":"FP32","shape":[1],"data":["1"]}]}
    422 {"error":"~inputs[0].datatype: is \"FP32\"; send \"BYTES\""}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"data":[1]}]}
    422 {"error":"~inputs[0].data: invalid type: integer `1`, expected texts"}
{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["1"]}]}
    422 {"error":"~inputs[0].name: there is no \"text\""}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1]}]}
    422 {"error":"~inputs[0]: has no elements"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"data":["1"]},{"name":"documents","datatype":"BYTES","shape":[1],"data":["1"]}]}
    422 {"error":"~inputs[1].name: stands there twice"}
{"inputs":[{"name":"query","datatype":"BYTES","shape":[2],"data":["p","q"]},{"name":"documents","datatype":"BYTES","shape":[3],"data":["1","2","3"]}]}
    422 {"error":"~query: has 2 elements for 3 documents"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"data":["1"]}],"outputs":[{"name":"logits"}]}
    422 {"error":"~outputs[0].name: there is no \"logits\""}
{"inputs":[["documents","BYTES",[1],null,["1"]]]}
    422 {"error":"~inputs[0]: invalid type: list, expected an object"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"data":["1"],"parameters":[5]}]}
    422 {"error":"~inputs[0].parameters: invalid type: list, expected an object"}
{"inputs":[{"name":"documents","datatype":"BYTES","shape":["1"],"data":["1"]}]}
    422 {"error":"~inputs[0].shape[0]: invalid type: string \"1\", expected a whole number"}
{"parameters":[true],"inputs":[]}
    422 {"error":"~parameters: invalid type: list, expected an object"}
{"inputs":[1,2,3,4,5,6,7,8,9]}
    422 {"error":"~inputs[0]"}
{"inputs":
    400 {"error":"~not valid JSON"}
{"inputs":[{"name":"query","datatype":"BYTES","shape":[1],"data":["overloaded"]},{"name":"documents","datatype":"BYTES","shape":[1],"data":["1"]}]}
    429 {"error":"~the reason"}
"#;
    check_all(PATH, lines);
}

#[test]
fn models_and_methods_are_named() {
    check(
        "POST /v2/models/none/infer",
        INFER,
        404,
        r#"{"error":"~there is no model"}"#,
    );
    check(
        "POST /v2/models/hub/none/infer",
        INFER,
        404,
        r#"{"error":"~\"hub/none\""}"#,
    );
    check(
        "POST /v2/models/default/versions/9/infer",
        INFER,
        422,
        r#"{"error":"~serves version 1"}"#,
    );
    check(
        "POST /v2/models/default/versions/1/infer",
        INFER,
        200,
        r#"{"model_version":"1"}"#,
    );
    check(
        "GET /v2/models/default/infer",
        "",
        405,
        r#"{"message":"~send POST"}"#,
    );
    check(
        "GET /v2/models/hub/none/infer",
        "",
        405,
        r#"{"message":"~send POST"}"#,
    );
    let form = &["content-type: text/plain"];
    check_in(
        &Fixture::new(),
        PATH,
        form,
        INFER,
        415,
        r#"{"error":"~text/plain"}"#,
    );
    let many = vec!["\"1\""; 1_001].join(",");
    let many = format!(
        r#"{{"inputs":[{{"name":"documents","datatype":"BYTES","shape":[1001],"data":[{many}]}}]}}"#
    );
    check_in(
        &Fixture::within(crate::fixture::USUAL),
        PATH,
        JSON,
        &many,
        413,
        r#"{"error":"~intake.documents_max = 1000"}"#,
    );
}

#[test]
fn classes_and_parameters() {
    let infer = |parameters: &str| {
        let inputs = INFER.replacen('{', &format!(r#"{{"parameters":{parameters},"#), 1);
        let reply = block_on(send(
            Fixture::new().http(),
            "POST /v2/models/classes/infer",
            JSON,
            inputs,
        ));
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["outputs"][0].clone()
    };
    let raw = infer(r#"{"raw_scores":true}"#);
    assert_eq!(raw["shape"], serde_json::json!([2, 2]));
    assert_eq!(raw["data"], serde_json::json!([1.0, 0.0, 2.5, 0.0]));
    let whole = infer(r#"{"timeout":5000000,"priority":1,"unknown":[1]}"#);
    let first = &whole["data"];
    let sum = first[0].as_f64().expect("a number") + first[1].as_f64().expect("a number");
    assert!((sum - 1.0).abs() < 1e-6, "{first}");
    // What the core is asked.
    let asked = |query: &str, parameters: &str| {
        let body = INFER.replace("\"q\"", &format!("\"{query}\""));
        let body = body.replacen('{', &format!(r#"{{"parameters":{parameters},"#), 1);
        block_on(send(Fixture::new().http(), PATH, JSON, body)).json()
    };
    let form = asked(
        "form",
        r#"{"max_tokens_per_doc":3,"max_tokens_per_query":"2","truncate_prompt_tokens":64,
            "truncation_side":"left","overflow":"chunk_max","instruction":"find"}"#,
    );
    let name = form["model_name"].as_str().expect("the form");
    for part in [
        "Some(2)",
        "Some(3)",
        "Some(64)",
        "side: Some(Left)",
        "windows: true",
        "Some(\"find\")",
    ] {
        assert!(name.contains(part), "{part} in {name}");
    }
}

/// A body whose tensors stand after its JSON, and the length of that.
fn packed(tail: &str, texts: &[&str]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let head = format!(
        r#"{{"inputs":[{{"name":"query","datatype":"BYTES","shape":[1],"data":["q"]}},
            {{"name":"documents","datatype":"BYTES","shape":[{}],"parameters":{{"binary_data_size":{}}}}}]{tail}}}"#,
        texts.len(),
        bytes.len(),
    );
    let length = head.len();
    ([head.into_bytes(), bytes].concat(), length)
}

async fn post(body: Vec<u8>, length: usize) -> (axum::http::response::Parts, bytes::Bytes) {
    let request = Request::post("/v2/models/default/infer")
        .header("content-type", "application/octet-stream")
        .header("inference-header-content-length", length.to_string());
    let request = request.body(Body::from(body)).expect("a request");
    let response = Fixture::new()
        .http()
        .oneshot(request)
        .await
        .expect("an answer");
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.expect("a body").to_bytes())
}

#[tokio::test]
async fn tensors_as_bytes() {
    let (body, length) = packed(
        r#","parameters":{"binary_data_output":true}"#,
        &["1", "", "2.5"],
    );
    let (parts, answer) = post(body.clone(), length).await;
    assert_eq!(parts.status, 200, "{answer:?}");
    assert_eq!(parts.headers["content-type"], "application/octet-stream");
    let split = parts.headers["inference-header-content-length"]
        .to_str()
        .expect("ASCII");
    let (head, tail) = answer.split_at(split.parse().expect("a length"));
    let head: serde_json::Value = serde_json::from_slice(head).expect("JSON");
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 12);
    assert!(head["outputs"][0].get("data").is_none(), "{head}");
    let scores: Vec<f32> = tail
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")))
        .collect();
    assert_eq!(scores, [1.0, 0.0, 2.5]);
    // The output's own word counts more.
    let one = r#","parameters":{"binary_data_output":true},"outputs":[{"name":"scores","parameters":{"binary_data":false}}]"#;
    let (body, length) = packed(one, &["1"]);
    let (parts, answer) = post(body, length).await;
    assert_eq!(parts.headers["content-type"], "application/json");
    assert!(answer.ends_with(br#""data":[1.0]}]}"#), "{answer:?}");

    let (body, length) = packed("", &["1", "2"]);
    let cut = body[..body.len() - 1].to_vec();
    let more = [&body[..], b"more"].concat();
    let more_said = format!(
        "inference-header-content-length: {} bytes follow the JSON, and the tensors' binary_data_size take {} of them",
        more.len() - length,
        body.len() - length
    );
    let wrong = [
        (more, length, more_said.as_str()),
        (cut, length, "inputs[1].parameters.binary_data_size: "),
        (
            body.clone(),
            body.len() + 1,
            "inference-header-content-length: ",
        ),
        (body, 10, "the body is not valid JSON"),
    ];
    for (body, length, text) in wrong {
        let (parts, answer) = post(body, length).await;
        assert!(parts.status.is_client_error(), "{text}");
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        assert!(
            answer["error"].as_str().expect("a text").starts_with(text),
            "{answer}"
        );
    }
    // Lengths that lie, and bytes that are no text.
    let head = r#"{"inputs":[{"name":"documents","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}]}"#;
    for (tail, text) in [
        (b"\x02\0\0\0x", "ends within an element"),
        (b"\x01\0\0\0\xff", "is not UTF-8"),
    ] {
        let body = [head.as_bytes(), tail].concat();
        let (parts, answer) = post(body, head.len()).await;
        assert_eq!(parts.status, 422);
        assert!(
            String::from_utf8_lossy(&answer).contains(text),
            "{answer:?}"
        );
    }
}

/// Every answer has an id, errors too.
#[test]
fn ids_are_in_headers() {
    let reply: Reply = block_on(send(
        Fixture::new().http(),
        PATH,
        &[JSON[0], "x-request-id: mine"],
        "{}",
    ));
    assert_eq!((reply.status, reply.header("x-request-id")), (422, "mine"));
}
