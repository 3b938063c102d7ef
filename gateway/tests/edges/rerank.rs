//! Every dialect of `/rerank`: what is taken, what is answered, what is refused.

use crate::fixture::{Fixture, JSON, ask, check, check_all, check_in};
use serde_json::Value;

#[test]
fn canonical_answers() {
    let reply = ask(
        "POST /v2/rerank",
        JSON,
        r#"{"query":"q","documents":["1","0.1","2.5"],"return_documents":true}"#,
    );
    let id = reply.header("x-request-id").to_owned();
    // The whole of it: clients depend on each key.
    let wanted = format!(
        r#"{{"id":"{id}","object":"list","model":"default","results":[
            {{"index":2,"relevance_score":2.5,"document":{{"text":"2.5"}}}},
            {{"index":0,"relevance_score":1.0,"document":{{"text":"1"}}}},
            {{"index":1,"relevance_score":0.1,"document":{{"text":"0.1"}}}}],
            "usage":{{"prompt_tokens":3,"total_tokens":3}},
            "meta":{{"api_version":{{"version":"2"}},"billed_units":{{"search_units":1}},
                     "tokens":{{"input_tokens":3,"output_tokens":0}}}}}}"#
    );
    assert_eq!(
        reply.json(),
        serde_json::from_str::<Value>(&wanted).expect("JSON")
    );
    assert!(
        reply.text.contains(r#""relevance_score":0.1,"#),
        "the shortest digits of an f32: {}",
        reply.text
    );
    assert_eq!(reply.header("x-crossgate-activation"), "identity");
    let timing = reply.header("server-timing");
    assert!(
        timing.starts_with("tokenize;dur=1.500, queue;dur=2.000, inference;dur=30.000, total;dur="),
        "{timing}"
    );
}

#[test]
fn every_name_of_the_route() {
    for path in [
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/reranking",
        "/v1/reranking",
    ] {
        check_all(
            &format!("POST {path}"),
            r#"
{"query":"q","documents":["a"]}
    200 {"results":[{"index":0,"relevance_score":1}]}
{"query":"q","texts":["0"]}
    200 [{"index":0,"score":0.5}]
"#,
        );
    }
}

#[test]
fn a_path_that_is_almost_right_is_put_right() {
    for (line, wanted) in [
        ("POST /rerank/", "~call /rerank"),
        ("POST //v1/rerank", "~call /v1/rerank"),
        ("POST /V2/Rerank", "~call /v2/rerank"),
        ("GET /readyz/", "~call /readyz"),
        ("POST /v1/rank", "~POST /rerank, /v1/rerank and /v2/rerank"),
    ] {
        check(line, "", 404, &format!(r#"{{"message":"{wanted}"}}"#));
    }
}

#[test]
fn fields_are_taken_as_they_are_meant() {
    // Equal scores keep the documents' order.
    let all = r#"200 {"results":[{"index":1},{"index":3},{"index":2},{"index":0}]}"#;
    let two = r#"200 {"results":[{"index":1},{"index":3}]}"#;
    for (fields, wanted) in [
        ("", all),
        (r#","top_n":2"#, two),
        (r#","top_n":"2""#, two),
        (r#","top_n":2.0"#, two),
        (r#","top_n":99"#, all),
        (
            r#","top_n":null,"model":null,"raw_scores":null,"texts":null"#,
            all,
        ),
        (r#","return_documents":null,"rank_fields":null"#, all),
        (
            r#","model":"","max_chunks_per_doc":10,"other":{"a":[1]}"#,
            all,
        ),
        (r#","return_documents":"false","raw_scores":"True""#, all),
    ] {
        let body = format!(r#"{{"query":"q","documents":["1","3","2","3"]{fields}}}"#);
        check_all("POST /rerank", &format!("{body}\n{wanted}"));
    }
    // JSON under another name, and under none.
    let other = ["content-type: application/vnd.api+json; charset=utf-8"];
    let body = r#"{"query":"q","documents":["a"]}"#;
    for headers in [&other[..], &[]] {
        check_in(&Fixture::new(), "POST /rerank", headers, body, 200, "{}");
    }
}

#[test]
fn documents_models_and_activations() {
    check_all(
        "POST /rerank",
        r#"
{"query":"q","documents":[{"text":"7","title":"t"}]}
    200 {"results":[{"relevance_score":7}]}
{"query":"q","documents":[{"a":"x","b":"y"}],"rank_fields":["b","a"],"return_documents":"True"}
    200 {"results":[{"document":{"text":"b: y\na: x"}}]}
{"query":"q","documents":[""]}
    200 {"results":[{"relevance_score":0}]}
{"query":"q","documents":["0"],"model":"sigmoid"}
    200 {"model":"sigmoid","results":[{"relevance_score":0.5}]}
{"query":"q","documents":["0"],"model":"sigmoid","raw_scores":1}
    200 {"results":[{"relevance_score":0.0}]}
{"query":"long","documents":["a","b"]}
    200 {"meta":{"warnings":["~query was cut","cut to the model's length: documents[1]"]}}
"#,
    );
    let documents = r#""a","#.repeat(200);
    let many = format!(r#"{{"query":"q","documents":[{documents}"a"]}}"#);
    let wanted = r#"{"meta":{"billed_units":{"search_units":3}}}"#;
    check("POST /rerank", &many, 200, wanted);
}

#[test]
fn what_makes_no_sense_is_named() {
    check_all(
        "POST /v1/rerank",
        r#"
{"query":"q","documents":["a","b",5]}
    422 {"error":{"param":"documents[2]","message":"~expected a string or an object"}}
{"query":"q","documents":["a",{"text":5}]}
    422 {"error":{"param":"documents[1].text","message":"~is not a string"}}
{"query":"q","documents":["a",{}]}
    422 {"error":{"param":"documents[1]","message":"~has no text"}}
{"query":"q","documents":"a"}
    422 {"error":{"param":"documents","message":"~expected a list"}}
{"query":7,"documents":["a"]}
    422 {"error":{"param":"query","message":"~expected a string"}}
{"documents":["a"]}
    422 {"error":{"param":"query","message":"~is missing"}}
{"query":"q"}
    422 {"error":{"param":"documents","message":"~send `documents`"}}
{"query":"q","document":["a"]}
    422 {"error":{"param":"documents","message":"~`texts` as TEI's"}}
{"query":"q","documents":{}}
    422 {"error":{"param":"documents","message":"~invalid type: object, expected a list"}}
{"query":"q","documents":["a"],"chat_template_kwargs":["find this"]}
    422 {"error":{"param":"chat_template_kwargs","message":"~invalid type: list, expected an object"}}
{"query":"q","documents":[{"text":"\ud800"}]}
    422 {"error":{"param":"documents[0].text","message":"~half a character"}}
{"query":"q","documents":[{"title":"\udc00"}]}
    422 {"error":{"param":"documents[0].title","message":"~half a character"}}
{"query":"\ud800","documents":["a"]}
    400 {"error":{"message":"~a \\u escape there is half of a character","code":"bad_json"}}
{"query":"q","documents":["a"],"top_n":0}
    200 {"results":[{"index":0}]}
{"query":"q","documents":["a"],"top_n":-1}
    422 {"error":{"param":"top_n","message":"~whole number"}}
{"query":"q","documents":["a"],"return_documents":"perhaps"}
    422 {"error":{"param":"return_documents","message":"~true or false"}}
["q"]
    422 {"error":{"param":"body","message":"~invalid type: list, expected an object"}}
{"query":"q","documents":[]}
    400 {"error":{"param":"documents","message":"~send at least one","code":"empty"}}
{"query":"q","documents" ["a"]}
    400 {"error":{"param":null,"message":"~not valid JSON: expected `:` at line 1 column 26"}}
{"query":"q","documents":["a"]
    400 {"error":{"message":"~EOF while parsing an object at line 1 column 30"}}
"#,
    );
    let wanted = r#"{"error":{"param":"body","message":"~is empty","type":"invalid_request_error"},
        "message":"~is empty","detail":"~is empty","id":"~"}"#;
    check("POST /rerank", "", 400, wanted);
}

/// Query, HTTP's status, type, code; then status and type for TEI's clients.
const ERRORS: &str = "
    invalid         422 invalid_request_error invalid_value   422 Validation
    too_large       413 invalid_request_error too_large       413 Validation
    unknown_model   404 not_found_error       model_not_found 404 Validation
    overloaded      429 overloaded_error      overloaded      429 Overloaded
    unavailable     503 overloaded_error      unavailable     503 Unhealthy
    deadline_passed 504 timeout_error         deadline_passed 504 Overloaded
    backend         502 server_error          backend_failed  424 Backend
    cancelled       499 invalid_request_error cancelled       499 Validation
    internal        500 server_error          internal        500 Backend
    nan             502 server_error          backend_failed  424 Backend
";

#[test]
fn every_error_of_the_core() {
    for line in ERRORS.trim().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [query, status, kind, code, tei_status, tei] = words[..] else {
            panic!("{line}")
        };
        let canonical = format!(
            r#"{{"query":"{query}","documents":["a"]}}
            {status} {{"error":{{"message":"~","type":"{kind}","code":"{code}"}},"id":"~"}}"#
        );
        check_all("POST /rerank", &canonical);
        let tei = format!(
            r#"{{"query":"{query}","texts":["a"]}}
            {tei_status} {{"error":"~","error_type":"{tei}"}}"#
        );
        check_all("POST /rerank", &tei);
    }
}

#[test]
fn refusals_say_when_to_come_back() {
    for (query, status) in [("overloaded", 429), ("unavailable", 503)] {
        let reply = ask(
            "POST /rerank",
            JSON,
            &format!(r#"{{"query":"{query}","documents":["a"]}}"#),
        );
        let seconds: u64 = reply.header("retry-after").parse().expect("an integer");
        assert_eq!(reply.status, status);
        assert!(
            (3..=5).contains(&seconds),
            "2.3 s rounded up, and a little by the id: {seconds}"
        );
        let told = format!("the reason; try again in {seconds} s");
        assert_eq!(reply.json()["message"], told);
    }
    let reply = ask(
        "POST /rerank",
        JSON,
        r#"{"query":"backend","documents":["a"]}"#,
    );
    assert_eq!(reply.header("retry-after"), "");
}

#[test]
fn what_is_ours_to_know_stays_in_the_log() {
    let reply = ask(
        "POST /rerank",
        JSON,
        r#"{"query":"internal","documents":["a"]}"#,
    );
    assert!(!reply.text.contains("the reason"), "{}", reply.text);
    // A panic, caught.
    check(
        "POST /rerank",
        r#"{"query":"panic","documents":["a"]}"#,
        500,
        r#"{"error":{"code":"internal"}}"#,
    );
}

#[test]
fn tei_answers() {
    let body = r#"{"query":"ab","texts":["0","-200","3"],"return_text":true,
        "truncate":false,"truncation_direction":"Right"}"#;
    let reply = ask("POST /rerank", JSON, body);
    let wanted = concat!(
        r#"[{"index":2,"score":0.95257413,"text":"3"},{"index":0,"score":0.5,"text":"0"},"#,
        r#"{"index":1,"score":0.0,"text":"-200"}]"#
    );
    assert_eq!(reply.text, wanted);
    for (name, value) in [
        ("x-compute-type", "cpu"),
        ("x-compute-characters", "12"),
        ("x-compute-tokens", "3"),
        ("x-tokenization-time", "1"),
        ("x-queue-time", "2"),
        ("x-inference-time", "30"),
        ("x-crossgate-activation", "sigmoid"),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
    for name in ["x-total-time", "x-compute-time"] {
        assert!(reply.header(name).parse::<u64>().is_ok(), "{name}");
    }
}

#[test]
fn tei_activations_and_errors() {
    // The core says documents; these clients sent texts.
    check_all(
        "POST /rerank",
        r#"
{"query":"q","texts":["-2","3"],"raw_scores":true}
    200 [{"index":1,"score":3},{"index":0,"score":-2}]
{"query":"q","texts":["0"],"model":"classes"}
    200 [{"score":0.5}]
{"query":"q","texts":["2","1"],"top_n":1}
    200 [{"index":0}]
{"query":"q","texts":[]}
    400 {"error":"~texts","error_type":"Empty"}
{"query":"q","texts":["a",5]}
    422 {"error":"~texts[1]","error_type":"Validation"}
{"texts":["a"]}
    422 {"error":"~query","error_type":"Validation"}
{"query":"invalid","texts":["a"]}
    422 {"error":"~texts[2]"}
"#,
    );
}
