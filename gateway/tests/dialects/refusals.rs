//! What each dialect refuses, in its own words and shape.

use crate::fixture::{Fixture, JSON, USUAL, ask, block_on, check_all, check_in, send};
use gateway::intake::Bounds;
use serde_json::json;

#[test]
fn score() {
    check_all(
        "POST /score",
        r#"
{"queries":"q"}
    422 {"error":{"param":"queries","message":"~text_1 and text_2"}}
{"queries":["a","b"],"documents":["a"]}
    422 {"error":{"param":"documents","message":"~1 texts beside 2 queries"}}
{"text_1":["a","b"],"text_2":["a","b","c"]}
    422 {"error":{"param":"text_2","message":"~one of text_1"}}
{"data_1":"q","data_2":[]}
    400 {"error":{"param":"data_2","code":"empty"}}
{"text_1":"q","text_2":["a",5]}
    422 {"error":{"param":"text_2[1]"}}
{"text_1":["q",{}],"text_2":["a","b"]}
    422 {"error":{"param":"text_1[1]","message":"~has no text"}}
{"text_1":"invalid","text_2":["a"]}
    422 {"error":{"param":"text_2[2]"}}
{"queries":"invalid","items":["a"]}
    422 {"error":{"param":"items[2]"}}
{"queries":"short rows","items":["a"]}
    422 {"error":{"param":"truncate_prompt_tokens"}}
{"queries":"q","documents":["a"],"model":"none"}
    404 {"error":{"code":"model_not_found"}}
{"queries":"backend","documents":["a"]}
    502 {"error":{"code":"backend_failed"},"id":"~"}
"#,
    );
    let body = r#"{"text_1":"long document","text_2":["a","b"]}"#;
    let reply = ask("POST /score", JSON, body);
    let warning = "cut to the model's length: text_2[1]";
    assert_eq!(reply.header("x-crossgate-warnings"), warning);
}

#[test]
fn ranking() {
    check_all(
        "POST /v1/ranking",
        r#"
{"query":{"text":"q"}}
    422 {"error":{"param":"passages"}}
{"query":{},"passages":["a"]}
    422 {"error":{"param":"query","message":"~has no text"}}
{"query":{"text":5},"passages":["a"]}
    422 {"error":{"param":"query.text"}}
{"query":{"text":"q"},"passages":[]}
    400 {"error":{"param":"passages"},"detail":"~at least one"}
{"query":{"text":"q"},"passages":[{"text":"a"},{}]}
    422 {"error":{"param":"passages[1]"}}
{"query":{"text":"invalid"},"passages":["a"]}
    422 {"error":{"param":"passages[2]"}}
{"query":{"text":"long document"},"passages":["a","b"],"truncate":"none"}
    422 {"error":{"param":"passages[1]","message":"~takes 512 tokens"}}
{"query":{"text":"q"},"passages":["a"],"truncate":"START"}
    422 {"error":{"param":"truncate","message":"~use \"END\" or \"NONE\""}}
{"query":{"text":"q"},"passages":["a"],"top_n":0}
    422 {"error":{"param":"top_n"}}
"#,
    );
    let body = r#"{"query":{"text":"q"},"passages":["a"]}"#;
    for (path, name) in [("none", "none"), ("nvidia/none", "nvidia/none")] {
        let line = format!("POST /v1/retrieval/{path}/reranking");
        let wanted = format!(r#"{{"message":"~there is no model \"{name}\""}}"#);
        check_in(&Fixture::new(), &line, JSON, body, 404, &wanted);
    }
    // A body's own model counts more than the path's.
    let body = r#"{"model":"sigmoid","query":{"text":"q"},"passages":["1"]}"#;
    let line = "POST /v1/retrieval/nvidia/reranking";
    check_in(
        &Fixture::new(),
        line,
        JSON,
        body,
        200,
        r#"{"rankings":[{"logit":1}]}"#,
    );
}

#[test]
fn rerank_by_other_names() {
    check_all(
        "POST /v1/rerank",
        r#"
{"query":"q","input":[]}
    400 {"error":{"param":"input"}}
{"query":"q","input":["a",{}]}
    422 {"error":{"param":"input[1]"}}
{"query":"invalid","input":["a"]}
    422 {"error":{"param":"input[2]"}}
{"query":"q","input":["a"],"top_k":0}
    422 {"error":{"param":"top_k"}}
{"query":"q","documents":[],"property":""}
    422 {"error":"~documents: is empty, and so is property","error_type":"Validation"}
{"query":"unavailable","documents":["a"],"property":""}
    503 {"error":"~the reason","error_type":"Unhealthy"}
"#,
    );
}

#[test]
fn classes() {
    check_all(
        "POST /classify",
        r#"
{"model":"default"}
    422 {"error":{"param":"input"}}
{"input":[]}
    400 {"error":{"param":"input"}}
{"input":["a",5]}
    422 {"error":{"param":"input[1]"}}
{"input":["a"],"truncation_side":"up"}
    422 {"error":{"param":"truncation_side"}}
"#,
    );
    check_all(
        "POST /predict",
        r#"
{}
    422 {"error":{"param":"texts"}}
{"inputs":null}
    422 {"error":{"param":"texts","message":"~or `inputs`"}}
{"inputs":["a","b"],"parameters":["softmax"]}
    422 {"error":"~parameters: invalid type: list, expected an object"}
{"texts":[]}
    400 {"error":{"param":"texts"}}
{"texts":["a",5]}
    422 {"error":{"param":"texts[1]"}}
{"texts":["a","b"],"text_pairs":["c"]}
    422 {"error":{"param":"text_pairs","message":"~1 texts beside 2 texts"}}
{"texts":"invalid","text_pairs":["c"]}
    422 {"error":{"param":"text_pairs[2]"}}
{"texts":"a","model_name":"none"}
    404 {"error":{"code":"model_not_found"}}
{"inputs":[]}
    400 {"error":"~inputs","error_type":"Empty"}
{"inputs":[["a","b","c"]]}
    422 {"error":"~inputs[0]: has more than two texts","error_type":"Validation"}
{"inputs":"a","parameters":{"function_to_apply":"tanh"}}
    422 {"error":"~parameters.function_to_apply"}
{"inputs":[["backend","b"]]}
    424 {"error":"~the reason","error_type":"Backend"}
"#,
    );
}

/// One document more than a request may have, by every name. The list is not unpacked: what is wrong in it
/// does not come to light.
#[test]
fn documents_are_counted_first() {
    let fixture = Fixture::within(Bounds {
        documents_max: 2,
        ..USUAL
    });
    for (line, body, param) in [
        (
            "/rerank",
            r#"{"query":"q","documents":[5,5,5]}"#,
            "documents",
        ),
        ("/rerank", r#"{"query":"q","input":[5,5,5]}"#, "input"),
        (
            "/score",
            r#"{"queries":"q","documents":[5,5,5]}"#,
            "documents",
        ),
        ("/score", r#"{"queries":[5,5,5],"items":["a"]}"#, "queries"),
        ("/score", r#"{"text_1":"q","text_2":[5,5,5]}"#, "text_2"),
        (
            "/ranking",
            r#"{"query":"q","passages":[5,5,5]}"#,
            "passages",
        ),
        ("/classify", r#"{"input":[5,5,5]}"#, "input"),
        ("/predict", r#"{"texts":[5,5,5]}"#, "texts"),
        (
            "/predict",
            r#"{"texts":"q","text_pairs":[5,5,5]}"#,
            "text_pairs",
        ),
    ] {
        let wanted =
            format!(r#"{{"error":{{"param":"{param}","message":"~intake.documents_max = 2"}}}}"#);
        check_in(&fixture, &format!("POST {line}"), JSON, body, 413, &wanted);
    }
    for (line, body) in [
        ("/rerank", r#"{"query":"q","texts":[5,5,5]}"#),
        (
            "/rerank",
            r#"{"query":"q","documents":[5,5,5],"property":""}"#,
        ),
        ("/predict", r#"{"inputs":[5,5,5]}"#),
    ] {
        let wanted = r#"{"error":"~intake.documents_max = 2","error_type":"Validation"}"#;
        check_in(&fixture, &format!("POST {line}"), JSON, body, 413, wanted);
    }
}

/// A long text beside many pairs comes back in none of their results.
#[test]
fn answers_do_not_repeat_what_all_results_share() {
    let text = "long ".repeat(1_000);
    let pairs = vec!["1"; 100];
    let body = json!({"texts": text, "text_pairs": pairs}).to_string();
    let reply = block_on(send(
        Fixture::within(USUAL).http(),
        "POST /predict",
        JSON,
        body,
    ));
    assert_eq!(reply.json()["results"].as_array().map(Vec::len), Some(100));
    assert!(!reply.text.contains("long"), "{} bytes", reply.text.len());
}
