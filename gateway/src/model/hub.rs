//! Files from the Hugging Face Hub, or from a server that speaks its protocol, kept in the cache
//! that Python's `huggingface_hub` keeps: what one has fetched the other finds.
//!
//! list the commit's files → choose → for each: metadata, blob (resumed, verified) → link → ref
//!
//! Written here and not taken from `hf-hub` 1.0: that one draws in 285 crates, starts an
//! interrupted file afresh, checks no hash of a plain download, and knows no offline mode.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use super::progress::Progress;
use super::weights::{self, INDEX, gguf};
use super::{Cause, Folder, ModelError, Wanted, info};

mod answers;
mod cache;
mod client;
mod download;
mod names;
mod settings;

pub(super) use names::{check_file_name, check_repo, check_revision};
pub use settings::Settings;

use answers::Listing;
use cache::Cache;
use client::Client;

/// Files besides the weights; the first two are required.
const SMALL_FILES: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The cached commit of `revision` (default `main`), fetched where it lacks what is wanted.
pub(super) fn fetch(
    repo: &str,
    revision: Option<&str>,
    wanted: &Wanted,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Folder, ModelError> {
    let revision = revision.unwrap_or("main");
    let invalid = |why| ModelError::new(Cause::NotFound, why, "correct the model's name");
    check_repo(repo).map_err(invalid)?;
    check_revision(revision).map_err(invalid)?;

    let cache = Cache::new(settings.cache_dir(), repo);
    let cached = cache.complete_commit(revision, wanted);
    let folder = |commit: String, warnings| Folder {
        path: cache.snapshot(&commit),
        name: repo.to_owned(),
        revision: Some(commit),
        wanted: wanted.clone(),
        warnings,
    };
    match cached {
        Some(commit) if settings.is_offline() || cache.is_final(&commit, revision, wanted) => {
            Ok(folder(commit, Vec::new()))
        }
        None if settings.is_offline() => Err(not_cached(repo, revision, wanted, &cache)),
        cached => match online(
            (repo, revision),
            wanted,
            settings,
            &cache,
            cached.is_some(),
            progress,
        ) {
            Ok(commit) => Ok(folder(commit, Vec::new())),
            Err(error) => match cached {
                Some(commit) if may_fall_back(error.cause) => {
                    let warning = format!(
                        "{}; serving commit {commit} of {repo} from the cache",
                        error.problem
                    );
                    tracing::warn!("{warning}");
                    Ok(folder(commit, vec![warning]))
                }
                _ => Err(error),
            },
        },
    }
}

/// Whether what is cached is better than nothing. A hub that says no is obeyed.
fn may_fall_back(cause: Cause) -> bool {
    match cause {
        Cause::Unreachable | Cause::Corrupt | Cause::Disk => true,
        Cause::NotFound | Cause::Denied | Cause::Unfit => false,
    }
}

/// 64 bits that differ from call to call and from process to process; no secret.
pub(super) fn noise() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn not_cached(repo: &str, revision: &str, wanted: &Wanted, cache: &Cache) -> ModelError {
    ModelError::new(
        Cause::NotFound,
        format!(
            "{repo} at {revision} is not complete in the cache {}: it needs config.json, \
             tokenizer.json and {wanted}, and HF_HUB_OFFLINE forbids to fetch what is missing",
            cache.root().display()
        ),
        "start once without HF_HUB_OFFLINE, or copy the model there, or name a folder",
    )
}

/// Makes the snapshot complete and returns its commit.
fn online(
    (repo, revision): (&str, &str),
    wanted: &Wanted,
    settings: &Settings,
    cache: &Cache,
    has_fallback: bool,
    progress: &dyn Progress,
) -> Result<String, ModelError> {
    let client = Client::new(settings, repo)?;
    let listing = client.listing(revision, has_fallback)?;
    let place = format!("{repo} at {revision}");
    let (small, weight) = choose(&listing, wanted, &place)?;
    let commit = &listing.commit;
    let ensure = |name: &str| download::ensure(&client, cache, commit, name, progress);

    for name in &small {
        ensure(name)?;
    }
    info::check_scores(&cache.snapshot(commit), repo)?;
    // A graph that is too large for its own format has its data beside it. They come before it: a graph that is there
    // says that all of it is.
    for name in listing.names.iter().filter(|name| is_data_of(name, weight)) {
        ensure(name)?;
    }
    ensure(weight)?;
    if weight.ends_with(gguf::ENDING) {
        let found = std::fs::metadata(cache.snapshot(commit).join(weight));
        let bytes = found.map_or(0, |found| found.len());
        tracing::info!(repo, file = weight, bytes, "a GGUF file holds the weights");
    }
    if weight == INDEX {
        for name in shards(&cache.snapshot(commit).join(INDEX), &listing, &place)? {
            ensure(&name)?;
        }
    }
    // Last, so that a ref never points to a snapshot that was interrupted.
    cache.write_ref(revision, commit)?;
    Ok(commit.clone())
}

/// The small files and the one that is or names the weights. Everything else stays on the hub:
/// other frameworks' weights, other graphs, pictures.
fn choose<'a>(
    listing: &'a Listing,
    wanted: &'a Wanted,
    place: &str,
) -> Result<(Vec<&'a str>, &'a str), ModelError> {
    let has = |name: &str| listing.names.iter().any(|there| there == name);
    if !has("config.json") {
        return Err(gguf::or_needed(info::no_config(place), &listing.names));
    }
    if !has("tokenizer.json") {
        return Err(gguf::or_needed(info::no_tokenizer(place), &listing.names));
    }
    let weight = wanted.choose(&listing.names, place)?;
    let is_small = |name: &&str| SMALL_FILES.contains(name) || is_module_config(name);
    Ok((
        listing
            .names
            .iter()
            .map(String::as_str)
            .filter(is_small)
            .collect(),
        weight,
    ))
}

/// `onnx/model.onnx_data` and `onnx/model.onnx.data` are of `onnx/model.onnx`.
fn is_data_of(name: &str, graph: &str) -> bool {
    let rest = name.strip_prefix(graph);
    graph.ends_with(".onnx") && rest.is_some_and(|rest| rest.starts_with(['_', '.']))
}

/// The configuration of a sentence-transformers module: `1_Dense/config.json`.
fn is_module_config(name: &str) -> bool {
    match name.split_once('/') {
        Some((folder, "config.json")) => folder.starts_with(|c: char| c.is_ascii_digit()),
        _ => false,
    }
}

fn shards(index: &Path, listing: &Listing, place: &str) -> Result<Vec<String>, ModelError> {
    let unfit = |why: String| ModelError::unfit(format!("{place}: {INDEX}: {why}"), "name another");
    let bytes = weights::read_bounded(index, weights::INDEX_BYTES_MAX)?;
    let names = weights::shard_names(&bytes).map_err(unfit)?;
    let listed: BTreeSet<&str> = listing.names.iter().map(String::as_str).collect();
    match names.iter().find(|name| !listed.contains(name.as_str())) {
        None => Ok(names),
        Some(name) => Err(unfit(format!("{name} is not in the repository"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Reads, weights::SINGLE};

    #[track_caller]
    fn check_choice(names: &[&str], want: Result<(&[&str], &str), &str>) {
        let names = names.iter().map(|&name| name.into()).collect();
        let listing = Listing {
            commit: "c".into(),
            names,
        };
        let (formats, files) = (
            ["safetensors", "onnx", "gguf"].map(str::to_owned),
            ["f32:model.onnx".to_owned()],
        );
        let reads = Reads {
            formats: &formats,
            files: &files,
        };
        let wanted = Wanted::by([reads], "auto", "{}");
        match (choose(&listing, &wanted, "a/b at main"), want) {
            (Ok((small, weight)), Ok(want)) => assert_eq!((small.as_slice(), weight), want),
            (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{got}: {want:?}"),
            (got, want) => panic!("{got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn only_what_is_needed_is_chosen() {
        let both: &[&str] = &["config.json", "tokenizer.json"];
        check_choice(
            &[
                "README.md",
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "vocab.txt",
            ],
            Ok((both, SINGLE)),
        );
        check_choice(
            &[
                "config.json",
                "tokenizer.json",
                "model-1.safetensors",
                INDEX,
                "pytorch_model.bin",
            ],
            Ok((both, INDEX)),
        );
        check_choice(
            &["config.json", "tokenizer.json", SINGLE, INDEX],
            Ok((both, SINGLE)),
        );
        check_choice(
            &[
                "config.json",
                "tokenizer.json",
                "1_Dense/config.json",
                "onnx/config.json",
                SINGLE,
            ],
            Ok((
                &["config.json", "tokenizer.json", "1_Dense/config.json"],
                SINGLE,
            )),
        );
        check_choice(
            &["tokenizer.json", SINGLE],
            Err("a/b at main holds no config.json"),
        );
        check_choice(
            &["config.json", "vocab.txt", SINGLE],
            Err("only fast tokenizers"),
        );
        assert!(is_data_of("onnx/model.onnx_data", "onnx/model.onnx"));
        assert!(!is_data_of("onnx/model_int8.onnx", "onnx/model.onnx"));
        assert!(!is_data_of("model.safetensors.index.json", SINGLE));
        check_choice(
            &["config.json", "tokenizer.json", "x.bin"],
            Err("only as x.bin"),
        );
    }

    #[test]
    fn a_gguf_file_is_chosen_where_there_is_nothing_else() {
        let both: &[&str] = &["config.json", "tokenizer.json"];
        check_choice(&[both, &["x.gguf"]].concat(), Ok((both, "x.gguf")));
        check_choice(
            &[both, &["x.gguf", "model.onnx"]].concat(),
            Ok((both, "model.onnx")),
        );
        check_choice(
            &[both, &["x.gguf", "y.gguf"]].concat(),
            Err(r#"{"file": "x.gguf"}"#),
        );
        check_choice(&["x.gguf"], Err("that it was converted from"));
    }
}
