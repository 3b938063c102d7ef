//! Pages that ask from a browser.

use crate::fixture::{Fixture, ask, block_on, send};
use gateway::edge::Origins;

#[test]
fn pages_of_other_origins_may_ask() {
    let asks = [
        "origin: http://a.example",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization",
    ];
    let reply = ask("OPTIONS /rerank", &asks, "");
    assert_eq!(
        (reply.status, reply.header("access-control-allow-origin")),
        (200, "*")
    );
    let allowed = reply.header("access-control-allow-headers");
    for header in ["authorization", "content-encoding"] {
        assert!(allowed.contains(header), "{header}: {allowed}");
    }
    // No page needs to ask again for each of its calls.
    assert_eq!(reply.header("access-control-max-age"), "3600");
    // On errors too, or the page cannot read them.
    assert_eq!(
        ask("GET /nope", &asks[..1], "").header("access-control-allow-origin"),
        "*"
    );
    // Only those of some, or none.
    let mut fixture = Fixture::new();
    let mut allowed = |origins: &[&str]| {
        let origins = origins.iter().map(|&origin| origin.to_owned()).collect();
        fixture.edge.settings.cors_origins = Origins::These(origins);
        let reply = block_on(send(fixture.http(), "OPTIONS /rerank", &asks, ""));
        reply.header("access-control-allow-origin").to_owned()
    };
    assert_eq!(
        allowed(&["https://b.example", "http://a.example"]),
        "http://a.example"
    );
    assert_eq!(allowed(&["https://a.example"]), "");
    assert_eq!(allowed(&[]), "");
}
