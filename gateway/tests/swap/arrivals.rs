//! Plugin files that arrive while the server runs.

use crate::{Swapping, file_name, put};
use serde_json::json;

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
