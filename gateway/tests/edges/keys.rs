//! Who may call the admin listener: those who show its key, by whatever name they call it.

use crate::fixture::{Fixture, Reply, block_on, send};
use axum::Router;
use gateway::edge::{Key, PluginRow};

const KEY: &str = "0123456789abcdefABCDEF";
const HERE: &str = "host: 127.0.0.1:9001";

impl Fixture {
    /// For everybody.
    pub(crate) fn admin(&self) -> Router {
        self.admin_for(None)
    }

    /// For those who show the key.
    pub(crate) fn admin_for(&self, key: Option<Key>) -> Router {
        gateway::edge::admin(self.edge.clone(), key, || {
            vec![PluginRow {
                name: "fake".to_owned(),
                version: "0.1.0".to_owned(),
                path: "built in".to_owned(),
                sha256: Some("0".repeat(64)),
                devices: vec!["cpu".to_owned()],
                dtypes: vec!["f32".to_owned()],
                architectures: Vec::new(),
                refused: None,
            }]
        })
    }
}

fn reply(fixture: &Fixture, line: &str, headers: &[&str]) -> Reply {
    let router = fixture.admin_for(Some(Key::new(KEY)));
    block_on(send(router, line, headers, ""))
}

fn with(shown: &str) -> String {
    format!("authorization: {shown}")
}

#[test]
fn without_the_key_no_route_does_anything() {
    let fixture = Fixture::new();
    for line in [
        "GET /plugins",
        "GET /models",
        "GET /health",
        "POST /cache/clear",
        "POST /models/default/swap",
        "POST /models/default/rollback",
        "POST /models/other/load",
        "POST /models/default/unload",
        "POST /health",
        "GET /nowhere",
    ] {
        for (headers, found) in [
            (vec![HERE], "is missing"),
            (vec![HERE, "authorization: Bearer nonsense"], "is wrong"),
        ] {
            let refused = reply(&fixture, line, &headers);
            assert_eq!(refused.status, 401, "{line}: {}", refused.text);
            assert_eq!(refused.header("www-authenticate"), "Bearer realm=\"admin\"");
            let said = refused.json();
            assert_eq!(said["error"]["code"], "invalid_key", "{line}");
            let message = said["message"].as_str().expect("a text");
            for word in [found, "Authorization: Bearer KEY", "server.admin_key"] {
                assert!(message.contains(word), "{message} does not say {word}");
            }
        }
    }
    let counted = fixture.metrics.0.lock().expect("no panic").clone();
    assert!(counted.contains(&("admin", "/plugins", 401)), "{counted:?}");
    // The cache was not cleared.
    let health = reply(&fixture, "GET /health", &[HERE, &with(KEY)]).json();
    assert_eq!(health["model"]["cache_size"], 3);
}

#[test]
fn the_key_opens_however_it_is_shown() {
    let fixture = Fixture::new();
    let status = |shown: &str| reply(&fixture, "GET /models", &[HERE, &with(shown)]).status;
    for shown in [
        format!("Bearer {KEY}"),
        format!("bearer {KEY}"),
        format!("BEARER   {KEY} "),
        KEY.to_owned(),
    ] {
        assert_eq!(status(&shown), 200, "{shown:?}");
    }
    for shown in [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {KEY}"),
        format!("Bearer{KEY}"),
        format!("Bearer {KEY}x"),
        format!("Bearer {KEY} {KEY}"),
        format!("Bearer {}", &KEY[1..]),
        format!("Bearer {}", &KEY[..KEY.len() - 1]),
        format!("Bearer {}", KEY.to_lowercase()),
    ] {
        assert_eq!(status(&shown), 401, "{shown:?}");
    }
    // A key that nobody set opens nothing, and is not asked for.
    let open = block_on(send(fixture.admin(), "GET /models", &[HERE], ""));
    assert_eq!(open.status, 200);
}

#[test]
fn who_has_the_key_may_call_by_any_name_but_for_no_page() {
    let fixture = Fixture::new();
    let status = |headers: &[&str]| reply(&fixture, "GET /plugins", headers).status;
    let (name, key) = ("host: crossgate-1:9001", with(KEY));
    assert_eq!(status(&[name, &key]), 200);
    assert_eq!(status(&[name]), 401);
    assert_eq!(status(&[name, &key, "origin: http://evil.example"]), 403);
    assert_eq!(status(&[HERE, &key, "origin: http://localhost:9001"]), 200);
}
