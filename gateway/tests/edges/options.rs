//! What may be asked beside the question: headers about the body, and fields about long texts.

use crate::fixture::{Fixture, JSON, ask, check, check_all, check_in};

#[test]
fn a_byte_order_mark_is_skipped() {
    let body = "\u{feff}{\"query\":\"q\",\"documents\":[\"a\"]}";
    check("POST /rerank", body, 200, r#"{"results":[{"index":0}]}"#);
    let wanted = r#"{"error":{"code":"empty"}}"#;
    check("POST /rerank", "\u{feff}", 400, wanted);
}

#[test]
fn overflow_is_honoured_or_refused() {
    // The core says of the query "long" that it was cut, and of "long document" that the second was.
    check_all(
        "POST /rerank",
        r#"
{"query":"q","documents":["a","b"],"overflow":"error"}
    200 {"results":[{},{}]}
{"query":"long document","documents":["a","b"],"overflow":"truncate"}
    200 {"meta":{"warnings":["cut to the model's length: documents[1]"]}}
{"query":"long document","documents":["a","b"],"overflow":null}
    200 {"meta":{"warnings":["cut to the model's length: documents[1]"]}}
{"query":"long document","documents":["a","b"],"overflow":"error"}
    422 {"error":{"param":"documents[1]","message":"~which takes 512 tokens"}}
{"query":"long","documents":["a","b"],"overflow":"error"}
    422 {"error":{"param":"query","message":"~which takes 512 tokens"}}
{"query":"windows","documents":["a","b"],"overflow":"chunk_max"}
    200 {"meta":{"warnings":["scored by the best window: documents[0] of 3"]}}
{"query":"q","documents":["a"],"overflow":"bogus"}
    422 {"error":{"param":"overflow","message":"~no \"bogus\"; use \"truncate\", \"error\" or \"chunk_max\""}}
{"query":"q","documents":["a"],"overflow":5}
    422 {"error":{"param":"overflow"}}
"#,
    );
}

/// The core answers the form that it was asked for as the model's name.
#[test]
fn clients_say_how_their_texts_are_to_fit() {
    let form = |said: &str| format!("Form {{ {said} }}");
    let plain = "instruction: None, query_tokens_max: None, document_tokens_max: None, row_tokens_max: None, \
                 side: None, windows: false";
    for (fields, said) in [
        ("", plain.to_owned()),
        (
            r#""max_tokens_per_doc":"100","max_tokens_per_query":64.0,"truncate_prompt_tokens":128"#,
            plain
                .replace("query_tokens_max: None", "query_tokens_max: Some(64)")
                .replace(
                    "document_tokens_max: None",
                    "document_tokens_max: Some(100)",
                )
                .replace("row_tokens_max: None", "row_tokens_max: Some(128)"),
        ),
        // Nothing asked for.
        (
            r#""truncate_prompt_tokens":-1,"priority":0,"max_tokens_per_doc":0"#,
            plain.to_owned(),
        ),
        (
            r#""overflow":null,"max_tokens_per_doc":null,"max_tokens_per_query":null,"instruction":null,
               "truncate_prompt_tokens":null,"truncation_side":null,"chat_template_kwargs":null"#,
            plain.to_owned(),
        ),
        (
            r#""overflow":"chunk_max","truncation_side":"Left""#,
            plain.replace(
                "side: None, windows: false",
                "side: Some(Left), windows: true",
            ),
        ),
        (
            r#""truncation_direction":"left","instruction":" ""#,
            plain.replace("side: None", "side: Some(Left)"),
        ),
        (
            r#""instruction":"find laws","chat_template_kwargs":{"instruction":"no","other":1}"#,
            plain.replace("instruction: None", r#"instruction: Some("find laws")"#),
        ),
        (
            r#""chat_template_kwargs":{"instruction":"find laws"}"#,
            plain.replace("instruction: None", r#"instruction: Some("find laws")"#),
        ),
    ] {
        let comma = if fields.is_empty() { "" } else { "," };
        let body = format!(r#"{{"query":"form","documents":["a"]{comma}{fields}}}"#);
        let reply = ask("POST /rerank", JSON, &body);
        assert_eq!(reply.json()["model"], form(&said), "{body}");
    }
    let tei = r#"{"query":"form","texts":["a"],"truncation_direction":"LEFT"}"#;
    assert!(ask("POST /rerank", JSON, tei).text.contains("\"score\""));
    check_all(
        "POST /rerank",
        r#"
{"query":"q","documents":["a"],"max_tokens_per_doc":"many"}
    422 {"error":{"param":"max_tokens_per_doc","message":"~whole number"}}
{"query":"q","documents":["a"],"truncate_prompt_tokens":-2}
    422 {"error":{"param":"truncate_prompt_tokens","message":"~or -1"}}
{"query":"short rows","documents":["a"],"truncate_prompt_tokens":2}
    422 {"error":{"param":"truncate_prompt_tokens","message":"~no room"}}
{"query":"q","documents":["a"],"truncation_side":"up"}
    422 {"error":{"param":"truncation_side","message":"~use \"right\" or \"left\""}}
{"query":"long document","documents":["a","b"],"max_tokens_per_doc":9}
    200 {"meta":{"warnings":["cut to the tokens allowed: documents[1]"]}}
"#,
    );
}

#[test]
fn a_request_says_how_urgent_it_is() {
    // The core answers so many tokens: 1 for low, 3 for high.
    let is = |headers: &[&str], fields: &str, tokens: u64| {
        let body = format!(r#"{{"query":"priority","documents":["a"]{fields}}}"#);
        let wanted = format!(r#"{{"usage":{{"total_tokens":{tokens}}}}}"#);
        let headers = [JSON, headers].concat();
        let fixture = Fixture::new();
        check_in(&fixture, "POST /rerank", &headers, &body, 200, &wanted);
    };
    for (fields, tokens) in [
        ("", 2),
        (r#","priority":null"#, 2),
        (r#","priority":0"#, 2),
        (r#","priority":"low""#, 1),
        (r#","priority":"Normal""#, 2),
        (r#","priority":"HIGH""#, 3),
        // vLLM's: the lowest is served first.
        (r#","priority":-5"#, 3),
        (r#","priority":"7""#, 1),
    ] {
        is(&[], fields, tokens);
    }
    is(&["x-priority: high"], "", 3);
    is(&["X-Priority: Low"], r#","priority":null"#, 1);
    is(&["x-priority: high"], r#","priority":"low""#, 1);
    for (field, why) in [
        (r#""urgent""#, "none of high, normal and low"),
        ("-5.5", "none of high, normal and low"),
        (r#"{"a":1}"#, "a number or a word"),
    ] {
        let body = format!(r#"{{"query":"q","documents":["a"],"priority":{field}}}"#);
        let wanted = format!(r#"{{"error":{{"param":"priority","message":"~{why}"}}}}"#);
        check("POST /rerank", &body, 422, &wanted);
    }
    let texts = r#"{"query":"priority","texts":["a"]}"#;
    let reply = ask("POST /rerank", &[JSON[0], "x-priority: high"], texts);
    assert_eq!(reply.header("x-compute-tokens"), "3");
    let headers = [JSON[0], "x-priority: urgent"];
    let wanted = r#"{"error":{"param":"x-priority"}}"#;
    check_in(
        &Fixture::new(),
        "POST /rerank",
        &headers,
        r#"{"query":"q","documents":["a"]}"#,
        422,
        wanted,
    );
}

#[test]
fn tei_clients_are_told_what_was_cut() {
    let warnings = |query: &str, fields: &str| {
        let body = format!(r#"{{"query":"{query}","texts":["a","b"]{fields}}}"#);
        let reply = ask("POST /rerank", JSON, &body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text);
        reply.header("x-crossgate-warnings").to_owned()
    };
    let both = "query was cut to leave room for the texts; cut to the model's length: texts[1]";
    assert_eq!(warnings("long", ""), both);
    let asked = r#","truncate":"false","truncation_direction":"Left""#;
    assert_eq!(warnings("q", asked), "");
    let asked = r#","truncate":null,"truncation_direction":null"#;
    assert_eq!(warnings("long", asked), both);
    assert_eq!(warnings("long", r#","truncation_direction":"Right""#), both);
    check_all(
        "POST /rerank",
        r#"
{"query":"q","texts":["a"],"truncation_direction":"up"}
    422 {"error":"~no \"up\"; use \"right\" or \"left\""}
{"query":"long document","texts":["a","b"],"truncate":false}
    413 {"error":"~texts[1]: is too long"}
{"query":"q","texts":["a"],"truncate":"perhaps"}
    422 {"error":"~truncate"}
"#,
    );
}

/// A client that writes every field of its class down says null for all but one name of a thing.
#[test]
fn other_names_of_a_field_may_be_null_beside_it() {
    check_all(
        "POST /rerank",
        r#"
{"query":"q","documents":["a"],"use_activation":null,"activation":null,"softmax":null,"truncation_side":null,"truncation_direction":null}
    200 {"results":[{}]}
{"query":"form","documents":["a"],"truncation_side":null,"truncation_direction":"left"}
    200 {"model":"~side: Some(Left)"}
{"query":"q","documents":["a"],"truncation_side":null,"truncation_direction":"up"}
    422 {"error":{"param":"truncation_direction"}}
{"model":"sigmoid","query":"q","documents":["0"],"use_activation":null,"activation":false}
    200 {"results":[{"relevance_score":0}]}
"#,
    );
    check_all(
        "POST /score",
        r#"
{"queries":"q","documents":["a"],"use_activation":null,"activation":null,"softmax":null}
    200 {"data":[{}]}
"#,
    );
    check_all(
        "POST /classify",
        r#"
{"input":["a"],"activation":null,"use_activation":null,"softmax":null}
    200 {"object":"classify"}
"#,
    );
    check_all(
        "POST /ranking",
        r#"
{"query":{"text":"q"},"passages":[{"text":"a"},{"text":"b"}],"top_n":null,"top_k":1}
    200 {"rankings":[{}]}
{"query":{"text":"q"},"passages":[{"text":"a"}],"top_n":null,"top_k":0}
    422 {"error":{"param":"top_k"}}
"#,
    );
}
