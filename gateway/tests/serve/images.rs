//! Library files and the copies of them that are mapped.

use crate::server::{Server, plugin_dir};
use crate::{documents, file_name};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// A folder with the fake in it, as often as there are `names`; `grown` ones have another content.
fn folder(names: &[(&str, bool)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, grown) in names {
        let path = dir.path().join(file_name(name));
        std::fs::copy(plugin_dir().join(file_name("fake")), &path).unwrap();
        if *grown {
            // What follows an ELF's last section belongs to nobody.
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"another build").unwrap();
        }
    }
    dir
}

fn start(dir: &Path, settings: &[(&str, &str)]) -> Server {
    let dir = dir.display().to_string();
    let mut all = vec![("plugins.dir", dir.as_str())];
    all.extend(settings);
    Server::start("{}", &all)
}

fn rows(server: &Server) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&server.admin("/plugins").text).unwrap();
    listed.as_array().unwrap().clone()
}

#[test]
fn who_overwrites_a_plugin_that_serves_changes_nothing() {
    let dir = folder(&[("fake", false)]);
    let server = start(dir.path(), &[]);
    let path = dir.path().join(file_name("fake"));
    // In place, as `cp` does: the pages that are mapped would be gone.
    let n_bytes = std::fs::metadata(&path).unwrap().len() as usize;
    std::fs::write(&path, vec![0; n_bytes / 2]).unwrap();
    let answer = server.rerank(&json!({"query": "plants", "documents": documents(40)}));
    assert_eq!((answer.status, answer.results().len()), (200, 40));
}

#[test]
fn the_same_content_is_mapped_once() {
    let dir = folder(&[("fake", false), ("same", false), ("other", true)]);
    let server = start(dir.path(), &[]);
    let rows = rows(&server);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["refused"].is_null()), "{rows:?}");
    let hash = |idx: usize| rows[idx]["sha256"].as_str().unwrap();
    // By name: fake, other, same.
    assert_eq!(hash(0), hash(2));
    assert_ne!(hash(0), hash(1));
    assert_eq!(server.metric("crossgate_plugin_images"), 2.0);
}

#[test]
fn more_images_than_allowed_are_refused() {
    let dir = folder(&[("fake", false), ("other", true)]);
    let server = start(dir.path(), &[("plugins.images_max", "1")]);
    let rows = rows(&server);
    assert!(rows[0]["refused"].is_null(), "{rows:?}");
    let refused = rows[1]["refused"].as_str().unwrap();
    assert!(
        refused.contains("plugins.images_max") && refused.contains("other"),
        "{refused}"
    );
}

#[test]
fn what_the_list_of_hashes_does_not_allow_is_not_opened() {
    let dir = folder(&[("fake", false), ("other", true)]);
    let hash = rows(&start(dir.path(), &[]))[0]["sha256"]
        .as_str()
        .unwrap()
        .to_uppercase();
    let server = start(dir.path(), &[("plugins.sha256", &hash)]);
    let rows = rows(&server);
    assert!(rows[0]["refused"].is_null(), "{rows:?}");
    let refused = rows[1]["refused"].as_str().unwrap();
    let other = rows[1]["sha256"].as_str().unwrap();
    assert!(
        refused.contains("plugins.sha256") && refused.contains(other),
        "{refused}"
    );
    assert_eq!(server.metric("crossgate_plugin_images"), 1.0);
}
