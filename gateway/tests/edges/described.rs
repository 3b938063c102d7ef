//! The description that is committed, and that it is true: its examples are sent, and what comes back is what it
//! says.

use crate::fixture::{JSON, Reply, ask};
use serde_json::{Map, Value, json};
use std::path::Path;

#[test]
fn the_description_is_the_committed_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json");
    let generated = ask("GET /openapi.json", &[], "").text;
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &generated).expect("a writable file");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} is stale; review, then run with BLESS=1",
        path.display()
    );
    assert!(generated.contains(r#""openapi": "3.1.0""#));
}

/// The description itself.
fn api() -> Value {
    serde_json::from_str(gateway::edge::openapi()).expect("JSON")
}

/// Every documented route: method and path, and what is said of it.
fn operations(api: &Value) -> Vec<(String, Value)> {
    let paths = api["paths"].as_object().expect("paths").iter();
    let of_path = |(path, item): (&String, &Value)| -> Vec<(String, Value)> {
        let path = path
            .replace("{id}", "default")
            .replace("{model}", "default");
        let methods = item.as_object().expect("methods").iter();
        let line = |(method, operation): (&String, &Value)| {
            (
                format!("{} {path}", method.to_uppercase()),
                operation.clone(),
            )
        };
        methods.map(line).collect()
    };
    paths.flat_map(of_path).collect()
}

/// What a schema is, or each of those that it may be, by name.
fn alternatives(api: &Value, schema: &Value) -> Vec<Value> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        let named = &api["components"]["schemas"][name];
        assert!(named.is_object(), "{name} is not described");
        return alternatives(api, named);
    }
    match schema["oneOf"].as_array() {
        Some(list) if schema["example"].is_null() => {
            list.iter().flat_map(|one| alternatives(api, one)).collect()
        }
        _ => vec![schema.clone()],
    }
}

/// Whether a value is what the schema says; the schema may name others of the description.
#[track_caller]
fn conforms(api: &Value, schema: &Value, value: &Value, what: &str) {
    let mut whole = schema.as_object().cloned().unwrap_or_else(Map::new);
    whole.insert("components".to_owned(), api["components"].clone());
    let validator = jsonschema::draft202012::new(&Value::Object(whole));
    let validator = validator.unwrap_or_else(|error| panic!("{what}: {error}"));
    let wrong: Vec<_> = validator.iter_errors(value).collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{value}");
}

/// Whether the status is documented, and the answer is as documented.
#[track_caller]
fn answers_as_said(api: &Value, line: &str, operation: &Value, reply: &Reply) {
    let said = &operation["responses"][reply.status.to_string()];
    let is_fine = said.is_object() && reply.status < 400;
    assert!(is_fine, "{line}: {} {}", reply.status, reply.text);
    let media_type = reply.header("content-type").split(';').next();
    if media_type == Some("application/json") {
        let schema = &said["content"]["application/json"]["schema"];
        conforms(api, schema, &reply.json(), line);
    }
}

#[test]
fn every_route_answers_as_described() {
    let api = api();
    let operations = operations(&api);
    assert!(operations.len() > 25, "{}", operations.len());
    let mut n_examples = 0;
    for (line, operation) in operations {
        let asked = &operation["requestBody"]["content"]["application/json"]["schema"];
        if !asked.is_object() {
            answers_as_said(&api, &line, &operation, &ask(&line, JSON, ""));
            continue;
        }
        for alternative in alternatives(&api, asked) {
            let example = &alternative["example"];
            assert!(example.is_object(), "{line}: no example in {alternative}");
            conforms(&api, &alternative, example, &format!("{line}: its example"));
            let reply = ask(&line, JSON, &example.to_string());
            answers_as_said(&api, &line, &operation, &reply);
            n_examples += 1;
        }
    }
    assert!(n_examples > 25, "{n_examples}");
}

#[test]
fn every_example_is_what_it_stands_for() {
    let api = api();
    let schemas = api["components"]["schemas"].as_object().expect("schemas");
    for (name, schema) in schemas {
        if schema["example"].is_object() {
            conforms(&api, schema, &schema["example"], name);
        }
        for reference in references(schema) {
            let found = reference.strip_prefix("#/components/schemas/");
            let found = found.is_some_and(|name| schemas.contains_key(name));
            assert!(
                found,
                "{name} speaks of {reference}, which is not described"
            );
        }
    }
    // The check itself can fail.
    let texts = json!({"type": "array", "items": {"type": "string"}});
    let validator = jsonschema::draft202012::new(&texts).expect("a schema");
    assert!(validator.is_valid(&json!(["a"])) && !validator.is_valid(&json!([5])));
}

fn references(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str);
            own.into_iter()
                .chain(fields.values().flat_map(references))
                .collect()
        }
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
