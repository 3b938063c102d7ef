//! Every dialect as its clients speak it: exchanges with a fake core, as they were recorded or as the clients' sources
//! have them, and the same logits for the same question however it is asked.

#[path = "edges/counts.rs"]
mod counts;
#[path = "edges/fixture.rs"]
#[allow(dead_code, reason = "tests/edges.rs uses the rest")]
mod fixture;
#[path = "dialects/logits.rs"]
mod logits;
#[path = "dialects/refusals.rs"]
mod refusals;
#[path = "serve/server.rs"]
mod server;

use fixture::{Fixture, JSON, block_on, holds, send};
use serde::Deserialize;
use serde_json::Value;

/// What a client sends, and what of the answer it reads.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    /// Its name and version; for what was read in its sources its name alone.
    client: String,
    /// A method and a path.
    line: String,
    #[serde(default)]
    headers: Vec<String>,
    /// Whether the server is set to Voyage's dialect.
    #[serde(default)]
    voyage: bool,
    body: Value,
    #[serde(default = "fine")]
    status: u16,
    /// A part of the answer.
    answer: Value,
}

fn fine() -> u16 {
    200
}

#[test]
fn clients_are_answered_as_they_read_it() {
    let exchanges: Vec<Exchange> =
        serde_json::from_str(include_str!("dialects/exchanges.json")).expect("exchanges");
    let mut wrong = Vec::new();
    for exchange in exchanges {
        let mut fixture = Fixture::new();
        fixture.edge.settings.voyage = exchange.voyage;
        let headers = exchange.headers.iter().map(String::as_str);
        let headers: Vec<&str> = headers
            .filter(|header| !header.starts_with("content-type"))
            .chain([JSON[0]])
            .collect();
        let body = exchange.body.to_string();
        let reply = block_on(send(fixture.http(), &exchange.line, &headers, body));
        let is_right = reply.status == exchange.status && holds(&reply.json(), &exchange.answer);
        if !is_right {
            wrong.push(format!(
                "{}: {} {}\n  found  {} {}\n  wanted {} {}",
                exchange.client,
                exchange.line,
                exchange.body,
                reply.status,
                reply.text,
                exchange.status,
                exchange.answer
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_voyages_route_is_voyages() {
    let body = r#"{"query":"q","documents":["1"]}"#;
    for (voyage, line, key) in [
        (true, "POST /v1/rerank", "data"),
        (true, "POST /v2/rerank", "results"),
        (true, "POST /rerank", "results"),
        (false, "POST /v1/rerank", "results"),
    ] {
        let mut fixture = Fixture::new();
        fixture.edge.settings.voyage = voyage;
        let reply = block_on(send(fixture.http(), line, JSON, body));
        assert!(reply.json()[key].is_array(), "{line}: {}", reply.text);
    }
}
