//! Plugin files that arrive while the server runs.

use crate::{Swapping, file_name, put};
use serde_json::{Value, json};

#[test]
fn a_file_that_arrives_is_swapped_to() {
    let swapping = Swapping::start(&json!({}), &[("plugins.watch", "true")]);
    let (before, was) = (swapping.scores(), swapping.model());
    // Not a plugin, and half of one: neither is swapped to, nor in the way.
    let dir = swapping.dir.path();
    std::fs::write(dir.join(file_name("text")), "no library").unwrap();
    let good = std::fs::read(dir.join(file_name("fake"))).unwrap();
    std::fs::write(dir.join(file_name("half")), &good[..good.len() / 2]).unwrap();
    // Put into its place at once, as those do who know better than to overwrite it.
    let aside = tempfile::tempdir_in(dir.parent().unwrap()).unwrap();
    put(aside.path(), "fake", "a new build");
    std::fs::rename(
        aside.path().join(file_name("fake")),
        dir.join(file_name("fake")),
    )
    .unwrap();
    swapping
        .server
        .until(|| (swapping.model()["generation"] == 2).then_some(()));
    assert_eq!(swapping.scores(), before);
    assert_ne!(swapping.model()["plugin_sha256"], was["plugin_sha256"]);
    assert_eq!(swapping.model()["last_swap"]["state"], "live");

    // In its probation nothing else is swapped to; afterwards what has come meanwhile is. Under another name.
    put(dir, "newer", "an even newer build");
    assert_eq!(swapping.rollback().status, 200);
    swapping
        .server
        .until(|| (swapping.model()["generation"] == 3).then_some(()));
    assert_eq!(swapping.scores(), before);
}

#[test]
fn nobody_is_swapped_who_did_not_ask_for_it() {
    let swapping = Swapping::start(&json!({}), &[]);
    put(swapping.dir.path(), "fake", "a new build");
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(swapping.model()["generation"], 1);
}

#[test]
fn one_that_was_refused_is_not_tried_again_while_another_one_waits() {
    let settings = [
        ("model.sources", "first=starter,second=starter"),
        ("plugins.watch", "true"),
        // For the one that is there.
        ("plugins.images_max", "1"),
    ];
    let swapping = Swapping::start(&json!({}), &settings);
    let order = |deed: &str| {
        let path = format!("/models/first/{deed}");
        let answer = swapping.server.order(&path, &json!({"probation_s": 600}));
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    order("swap");
    put(swapping.dir.path(), "fake", "a new build");
    let last = |model: &str| {
        let models: Value = serde_json::from_str(&swapping.server.get("/models").text).unwrap();
        models[model]["last_swap"]["state"].clone()
    };
    let until_refused = |model| {
        swapping
            .server
            .until(|| (last(model) == "refused").then_some(()));
    };
    until_refused("second");
    // The other one is in its probation still: the file is looked at again and again.
    std::thread::sleep(std::time::Duration::from_secs(2));
    order("rollback");
    until_refused("first");
    let refused = "outcome=\"refused\"";
    assert_eq!(
        swapping.server.metric_of("crossgate_swaps_total", refused),
        2.0
    );
}
