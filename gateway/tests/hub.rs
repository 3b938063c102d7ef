//! Fetching from a hub: what lies where, what is asked for, and what happens when it goes wrong.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use gateway::model::hub::Settings;
use gateway::model::progress::{Log, Progress};
use gateway::model::{Cause, Folder, ModelError, ModelInfo, Source, Wanted, fetch};

#[path = "hub/gguf.rs"]
mod gguf;
#[path = "hub/graphs.rs"]
mod graphs;
#[path = "hub/lookalike.rs"]
mod lookalike;

use lookalike::{Asked, COMMIT, CONFIG, Hub, OLDER, WEIGHTS, model, sha256, weights};

/// The model with one file replaced, added, or left out.
fn model_with(name: &'static str, bytes: Option<&[u8]>) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = model();
    files.retain(|file| file.0 != name);
    files.extend(bytes.map(|bytes| (name, bytes.to_vec())));
    files
}

#[track_caller]
fn check_error(got: Result<Folder, ModelError>, cause: Cause, says: &[&str]) {
    let error = got.unwrap_err();
    assert_eq!(error.cause, cause, "{error}");
    for text in says {
        assert!(
            error.to_string().contains(text),
            "{error:?} does not say {text:?}"
        );
    }
}

// === What is fetched, and where it lies ===

#[test]
fn a_model_lies_as_python_expects_it() {
    let hub = Hub::start(&model());
    let folder = hub.fetch(None, &[]).unwrap();
    hub.check_content(&folder);
    assert_eq!(folder.path, hub.repo().join("snapshots").join(COMMIT));
    assert_eq!(
        (folder.name.as_str(), folder.revision.as_deref()),
        ("org/name", Some(COMMIT))
    );
    assert_eq!(
        fs::read_to_string(hub.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.path.join(WEIGHTS)).unwrap(),
        Path::new("../../blobs").join(sha256(&weights()))
    );
    let info = ModelInfo::read(&folder).unwrap();
    assert_eq!((info.row_tokens_max, info.num_parameters), (128, 750_000));

    let asked = hub.asked();
    let fetched = |part: &str| asked.iter().any(|asked| asked.path.contains(part));
    assert!(fetched("tokenizer_config.json"));
    for unneeded in ["README.md", "onnx", "pytorch_model.bin"] {
        assert!(!fetched(unneeded), "{unneeded} was fetched");
    }
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let hub = Hub::start(&model());
    hub.fetch(None, &[]).unwrap();
    hub.asked();
    hub.fetch(None, &[]).unwrap();
    let asked = hub.asked();
    assert_eq!(asked.len(), 1, "only what main means now: {asked:?}");
    // A commit cannot change its meaning.
    hub.fetch(Some(COMMIT), &[]).unwrap();
    assert!(hub.asked().is_empty());
    // Another commit with the same files has its own links to the same blobs.
    let folder = hub.fetch(Some(OLDER), &[]).unwrap();
    hub.check_content(&folder);
    assert!(
        hub.asked()
            .iter()
            .all(|asked| asked.method != "GET" || asked.path.contains("/api/"))
    );
}

#[test]
fn a_revision_is_pinned() {
    let hub = Hub::start(&model());
    let folder = hub.fetch(Some("refs/pr/1"), &[]).unwrap();
    assert_eq!(folder.revision.as_deref(), Some(OLDER));
    assert_eq!(
        fs::read_to_string(hub.repo().join("refs/refs/pr/1")).unwrap(),
        OLDER
    );
    let resolved = format!("/org/name/resolve/{OLDER}/");
    let asked = hub.asked();
    assert!(
        asked.iter().any(|asked| asked.path.starts_with(&resolved)),
        "{asked:?}"
    );
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = br#"{"weight_map":{"a":"b-1.safetensors","c":"b-2.safetensors"}}"#;
    let mut files = model_with(WEIGHTS, None);
    files.push(("model.safetensors.index.json", index.to_vec()));
    for name in ["b-1.safetensors", "b-2.safetensors", "b-3.safetensors"] {
        files.push((name, weights()));
    }
    let hub = Hub::start(&files);
    let folder = hub.fetch(None, &[]).unwrap();
    let n_parameters = ModelInfo::read(&folder).unwrap().num_parameters;
    assert_eq!(n_parameters, 2 * 750_000);
    assert!(!folder.path.join("b-3.safetensors").exists());
}

#[test]
fn what_cannot_be_served_is_refused_before_its_weights() {
    let bert = br#"{"architectures":["BertModel"],"model_type":"bert"}"#;
    let cases: [(&'static str, Option<&[u8]>, &str); 3] = [
        (
            "config.json",
            Some(bert),
            "BertModel, which has no scoring head",
        ),
        ("config.json", None, "no config.json"),
        ("tokenizer.json", None, "only fast tokenizers"),
    ];
    for (name, bytes, says) in cases {
        let hub = Hub::start(&model_with(name, bytes));
        check_error(hub.fetch(None, &[]), Cause::Unfit, &[says, "name"]);
        assert!(!hub.asked().iter().any(|asked| asked.at == "cdn"));
    }
    let mut files = model_with(WEIGHTS, None);
    files.retain(|(name, _)| *name != "onnx/model.onnx");
    let hub = Hub::start(&files);
    check_error(
        hub.fetch(None, &[]),
        Cause::Unfit,
        &["only as pytorch_model.bin", "name"],
    );
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    // Listed, it is left out.
    let hub = Hub::start(&model_with("../../../evil/config.json", Some(CONFIG)));
    hub.fetch(None, &[]).unwrap();
    assert!(!hub.asked().iter().any(|asked| asked.path.contains("evil")));
    // In an index, it is an error.
    let mut files = model_with(WEIGHTS, None);
    let index = br#"{"weight_map":{"a":"../../evil.safetensors"}}"#;
    files.push(("model.safetensors.index.json", index.to_vec()));
    let hub = Hub::start(&files);
    check_error(hub.fetch(None, &[]), Cause::Unfit, &["leaves its folder"]);
    // As a blob's name, it is an answer that no hub gives.
    let hub = Hub::start(&model());
    hub.state().etag = Some("../../evil".into());
    check_error(hub.fetch(None, &[]), Cause::Unreachable, &["unusable etag"]);
}

// === When it goes wrong on the way ===

#[test]
fn a_broken_connection_is_continued() {
    let hub = Hub::start(&model());
    hub.state().cuts = vec![100_000, 2_000_000];
    hub.check_content(&hub.fetch(None, &[]).unwrap());
    let ranges: Vec<_> = hub
        .asked()
        .into_iter()
        .filter(|asked| asked.at == "cdn")
        .map(|asked| asked.range)
        .collect();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=2000000-".into()),
            Some("bytes=2100000-".into())
        ]
    );
}

#[test]
fn a_download_that_was_given_up_is_continued_by_the_next() {
    let hub = Hub::start(&model());
    // The first brings two megabytes, the next five nothing.
    hub.state().cuts = vec![0, 0, 0, 0, 2_000_000];
    check_error(
        hub.fetch(None, &[]),
        Cause::Unreachable,
        &[WEIGHTS, "HF_HUB_OFFLINE"],
    );
    assert!(!hub.repo().join("refs/main").exists());
    hub.asked();
    hub.check_content(&hub.fetch(None, &[]).unwrap());
    let asked: Vec<Asked> = hub
        .asked()
        .into_iter()
        .filter(|asked| asked.at == "cdn")
        .collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range.as_deref(), Some("bytes=2000000-"));
    assert!(
        !fs::read_dir(hub.repo().join("blobs"))
            .unwrap()
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().ends_with(".incomplete") })
    );
}

/// Waits for nothing.
struct Unwanted;

impl Progress for Unwanted {
    fn begin(&self, _name: &str, _bytes_total: Option<u64>) {}
    fn at(&self, _bytes_done: u64) {}
    fn end(&self) {}
    fn is_wanted(&self) -> bool {
        false
    }
}

#[test]
fn a_download_that_nobody_waits_for_ends_and_keeps_what_it_has() {
    let hub = Hub::start(&model());
    let source = Source::Hub {
        repo: "org/name".into(),
        revision: None,
    };
    let got = fetch(&source, &Wanted::default(), &hub.settings(&[]), &Unwanted);
    let says = ["config.json is not wanted any more", "order it again"];
    check_error(got, Cause::Unreachable, &says);
    assert_eq!(
        hub.asked()
            .iter()
            .filter(|asked| asked.method == "GET")
            .count(),
        2
    );
    hub.check_content(&hub.fetch(None, &[]).unwrap());
}

#[test]
fn a_server_without_ranges_starts_afresh() {
    let hub = Hub::start(&model());
    hub.state().ignores_range = true;
    hub.state().cuts = vec![2_000_000];
    hub.check_content(&hub.fetch(None, &[]).unwrap());
}

#[test]
fn more_than_announced_is_not_continued() {
    let hub = Hub::start(&model());
    let blobs = hub.repo().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let incomplete = blobs.join(format!("{}.incomplete", sha256(&weights())));
    fs::write(incomplete, vec![0; 4_000_000]).unwrap();
    hub.check_content(&hub.fetch(None, &[]).unwrap());
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_of_it_stays() {
    let hub = Hub::start(&model());
    hub.state().etag = Some("0".repeat(64));
    check_error(
        hub.fetch(None, &[]),
        Cause::Corrupt,
        &[WEIGHTS, "sha256", &"0".repeat(64)],
    );
    let left: Vec<String> = fs::read_dir(hub.repo().join("blobs"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!left.iter().any(|name| name.starts_with("000")), "{left:?}");
    hub.state().etag = None;
    hub.check_content(&hub.fetch(None, &[]).unwrap());
}

#[test]
fn a_failing_hub_is_asked_again_but_not_forever() {
    let hub = Hub::start(&model());
    hub.state().failures = vec![(503, "retry-after: 0"), (500, ""), (429, "retry-after: 0")];
    hub.fetch(None, &[]).unwrap();
    let hub = Hub::start(&model());
    hub.state().failures = vec![(503, ""); 9];
    check_error(
        hub.fetch(None, &[]),
        Cause::Unreachable,
        &["org/name at main", "HTTP 503"],
    );
    assert_eq!(hub.asked().len(), 5);
}

#[test]
fn two_at_once_fetch_once() {
    let hub = Hub::start(&model());
    thread::scope(|scope| {
        let both = [(), ()].map(|()| scope.spawn(|| hub.fetch(None, &[])));
        for one in both {
            hub.check_content(&one.join().unwrap().unwrap());
        }
    });
    assert_eq!(
        hub.asked().iter().filter(|asked| asked.at == "cdn").count(),
        1
    );
}

// === Without the hub, and without the right to it ===

#[test]
fn offline_serves_what_is_cached_and_nothing_else() {
    let hub = Hub::start(&model());
    let offline = [("HF_HUB_OFFLINE", "1")];
    let cache = hub.cache.path().display().to_string();
    let says = ["org/name at main", &cache, "HF_HUB_OFFLINE"];
    check_error(hub.fetch(None, &offline), Cause::NotFound, &says);
    assert!(hub.asked().is_empty());
    let online = hub.fetch(None, &[]).unwrap();
    hub.asked();
    assert_eq!(hub.fetch(None, &offline).unwrap(), online);
    assert_eq!(hub.fetch(Some(COMMIT), &offline).unwrap(), online);
    assert!(hub.asked().is_empty());
    fs::remove_file(online.path.join(WEIGHTS)).unwrap();
    check_error(
        hub.fetch(None, &offline),
        Cause::NotFound,
        &["not complete"],
    );
}

#[test]
fn an_unreachable_hub_is_replaced_by_the_cache_with_a_warning() {
    let hub = Hub::start(&model());
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nowhere = format!("http://{nobody}");
    let nowhere = [("HF_ENDPOINT", nowhere.as_str())];
    check_error(
        hub.fetch(None, &nowhere),
        Cause::Unreachable,
        &[nowhere[0].1],
    );
    let online = hub.fetch(None, &[]).unwrap();
    let folder = hub.fetch(None, &nowhere).unwrap();
    assert_eq!(folder.path, online.path);
    assert!(
        folder.warnings[0].contains("from the cache"),
        "{:?}",
        folder.warnings
    );
}

#[test]
fn a_cache_that_cannot_be_written_serves_what_it_has() {
    let hub = Hub::start(&model());
    let older = hub.fetch(Some("refs/pr/1"), &[]).unwrap();
    fs::write(hub.repo().join("refs/main"), OLDER).unwrap();
    // A file in place of a folder stops even root, whom permissions do not.
    let locks = hub.cache.path().join("hub/.locks");
    fs::remove_dir_all(&locks).unwrap();
    fs::write(&locks, "").unwrap();
    let folder = hub.fetch(None, &[]).unwrap();
    assert_eq!(folder.path, older.path);
    assert!(
        folder.warnings[0].contains(".locks"),
        "{:?}",
        folder.warnings
    );
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let hub = Hub::start(&model());
    hub.state().token = Some("secret");
    hub.fetch(None, &[("HF_TOKEN", "secret")]).unwrap();
    for asked in hub.asked() {
        assert_eq!(asked.token.is_some(), asked.at == "hub", "{asked:?}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::start(&model());
    hub.state().token = Some("secret");
    check_error(
        hub.fetch(None, &[]),
        Cause::Denied,
        &["gated", "set HF_TOKEN", "/org/name"],
    );
    let wrong = hub.fetch(None, &[("HF_TOKEN", "wrong")]);
    check_error(wrong, Cause::Denied, &["another token that may read it"]);
    hub.state().token = None;
    check_error(
        hub.fetch(Some("v9"), &[]),
        Cause::NotFound,
        &["v9", "no such revision"],
    );
    hub.state().failures = vec![(404, "x-error-code: RepoNotFound")];
    check_error(
        hub.fetch(None, &[]),
        Cause::NotFound,
        &["no such repository", "spelling"],
    );
    hub.state().failures = vec![(418, "")];
    check_error(
        hub.fetch(None, &[]),
        Cause::Unreachable,
        &["HTTP 418", "HF_ENDPOINT"],
    );
}

#[test]
fn a_folder_is_taken_as_it_is() {
    let hub = Hub::start(&model());
    let fetched = hub.fetch(None, &[]).unwrap();
    let settings = Settings::from_env(|_| None).unwrap();
    let any = Wanted::default();
    let source = Source::Folder(fetched.path.clone());
    let folder = fetch(&source, &any, &settings, &Log).unwrap();
    let (by_name, by_path) = (
        ModelInfo::read(&fetched).unwrap(),
        ModelInfo::read(&folder).unwrap(),
    );
    assert_eq!(by_name.labels, by_path.labels);
    assert_eq!(by_name.num_parameters, by_path.num_parameters);
    let nowhere = Source::Folder("/no/such/folder".into());
    check_error(
        fetch(&nowhere, &any, &settings, &Log),
        Cause::NotFound,
        &["/no/such/folder"],
    );
    let file = Source::Folder(fetched.path.join("config.json"));
    check_error(
        fetch(&file, &any, &settings, &Log),
        Cause::NotFound,
        &["is a file"],
    );
    let file = Source::Folder("./model.gguf".into());
    check_error(
        fetch(&file, &any, &settings, &Log),
        Cause::NotFound,
        &["model.gguf", "make a folder"],
    );
}
