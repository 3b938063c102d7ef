//! What may be asked beside the question: headers about the body, and fields about long texts.

use crate::fixture::{Fixture, JSON, ask, check, check_all, check_in};

#[test]
fn packed_bodies_are_refused_by_name() {
    let body = r#"{"query":"q","documents":["a"]}"#;
    let in_encoding = |encoding: &str, status, wanted| {
        let header = format!("content-encoding: {encoding}");
        let headers = [JSON[0], &header];
        check_in(
            &Fixture::new(),
            "POST /rerank",
            &headers,
            body,
            status,
            wanted,
        );
    };
    for plain in ["identity", "Identity", "", "identity, identity"] {
        in_encoding(plain, 200, "{}");
    }
    let refused = r#"{"error":{"code":"unsupported_encoding",
        "message":"~is not taken; send the body as it is, without Content-Encoding"}}"#;
    for packed in ["gzip", "br", "identity, gzip", "x"] {
        in_encoding(packed, 415, refused);
    }
    let reply = ask("POST /rerank", &[JSON[0], "content-encoding: gzip"], body);
    assert!(
        reply.text.contains("Content-Encoding: gzip"),
        "{}",
        reply.text
    );
    assert_eq!(reply.header("accept-encoding"), "identity");
}

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
{"query":"q","documents":["a"],"overflow":"chunk_max"}
    422 {"error":{"param":"overflow","message":"~not supported yet; use \"truncate\" or \"error\""}}
{"query":"q","documents":["a"],"overflow":"bogus"}
    422 {"error":{"param":"overflow","message":"~no \"bogus\"; use \"truncate\" or \"error\""}}
{"query":"q","documents":["a"],"overflow":5}
    422 {"error":{"param":"overflow"}}
"#,
    );
}

#[test]
fn what_is_not_applied_is_told() {
    let quiet = r#"200 {"meta":{"tokens":{"input_tokens":1}}}"#;
    for (fields, wanted) in [
        (
            r#""max_tokens_per_doc":"100""#,
            r#"200 {"meta":{"warnings":["~max_tokens_per_doc = 100 was not applied"]}}"#,
        ),
        (
            r#""max_tokens_per_query":64.0"#,
            r#"200 {"meta":{"warnings":["~max_tokens_per_query = 64 was not applied"]}}"#,
        ),
        (
            r#""truncate_prompt_tokens":128"#,
            r#"200 {"meta":{"warnings":["~the model's 512 tokens"]}}"#,
        ),
        // Kept by the model's own length, or nothing asked for.
        (
            r#""max_tokens_per_doc":4096,"truncate_prompt_tokens":512"#,
            quiet,
        ),
        (
            r#""truncate_prompt_tokens":-1,"priority":0,"max_tokens_per_doc":0"#,
            quiet,
        ),
        (
            r#""overflow":null,"max_tokens_per_doc":null,"max_tokens_per_query":null,
               "truncate_prompt_tokens":null,"priority":null"#,
            quiet,
        ),
        (
            r#""max_tokens_per_doc":"many""#,
            r#"422 {"error":{"param":"max_tokens_per_doc","message":"~whole number"}}"#,
        ),
        (
            r#""truncate_prompt_tokens":-2"#,
            r#"422 {"error":{"param":"truncate_prompt_tokens","message":"~or -1"}}"#,
        ),
    ] {
        let body = format!(r#"{{"query":"q","documents":["a"],{fields}}}"#).replace('\n', "");
        check_all("POST /rerank", &format!("{body}\n{wanted}"));
        let reply = ask("POST /rerank", JSON, &body);
        assert_eq!(
            reply.text.contains("warnings"),
            wanted.contains("warnings"),
            "{body}"
        );
    }
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
    ] {
        is(&[], fields, tokens);
    }
    is(&["x-priority: high"], "", 3);
    is(&["X-Priority: Low"], r#","priority":null"#, 1);
    is(&["x-priority: high"], r#","priority":"low""#, 1);
    for (field, why) in [
        (r#""urgent""#, "none of high, normal and low"),
        ("-5", "none of high, normal and low"),
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
    assert_eq!(
        warnings("long", asked),
        format!(
            "{both}; truncate = false was not applied; \
             truncation_direction = left was not applied: the model's own side was cut"
        )
    );
    let asked = r#","truncate":null,"truncation_direction":null"#;
    assert_eq!(warnings("long", asked), both);
    assert_eq!(warnings("long", r#","truncation_direction":"Right""#), both);
    check_all(
        "POST /rerank",
        r#"
{"query":"q","texts":["a"],"truncation_direction":"up"}
    422 {"error":"~no \"up\"; use \"right\" or \"left\""}
{"query":"q","texts":["a"],"truncate":"perhaps"}
    422 {"error":"~truncate"}
"#,
    );
}
