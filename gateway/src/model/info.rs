//! What the gateway needs to know of a model beyond its weights, read from its folder and checked.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::score::{Activation, Side};

use super::config::{Config, SentenceTransformers, TokenizerConfig};
use super::fingerprint;
use super::prompt::Reading;
use super::weights::{self, Format, gguf, names_in, read_bounded};
use super::{Folder, Geometry, ModelError};

/// Configuration files are a few kilobytes; classifiers with thousands of labels a few hundred.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A model that can be served. Holding one means that its folder has a configuration, a
/// tokenizer and whole weights of a sequence classifier; it does not mean that a plugin knows
/// the architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// As the user called it; see [`Folder::name`].
    pub name: String,
    pub path: PathBuf,
    /// The commit on the hub, where it came from one.
    pub revision: Option<String>,
    /// The class in transformers: `BertForSequenceClassification`.
    pub architecture: String,
    /// The family in transformers: `bert`.
    pub model_type: String,
    /// How it reads a pair, and answers where it generates.
    pub reading: Reading,
    /// In the order of the logits; at least one.
    pub labels: Vec<String>,
    pub activation: Activation,
    /// Tokens of one row, special tokens included; at least 5.
    pub row_tokens_max: usize,
    /// Where texts that are too long are cut; `None` leaves it to tokenizer.json.
    pub truncation_side: Option<Side>,
    pub type_vocab_size: Option<u32>,
    /// Ids that the embedding table has, from 0; `None` if config.json does not say.
    pub vocab_size: Option<u32>,
    /// How its weights are written.
    pub format: Format,
    /// 0 where the weights do not say.
    pub num_parameters: u64,
    /// The encoder's sizes, where its arithmetic can be counted by them.
    pub geometry: Option<Geometry>,
    pub tokenizer_path: PathBuf,
    /// Of configuration, tokenizer and weights: equal files have equal ones.
    pub fingerprint: [u8; 32],
    /// What was guessed or could not be followed; shown at start and with the model.
    pub warnings: Vec<String>,
}

// === impl ModelInfo ===

impl ModelInfo {
    /// Reads small files and the weights' headers, and hashes all of them.
    pub fn read(folder: &Folder) -> Result<Self, ModelError> {
        let path = &folder.path;
        let config = read_config(path)?;
        let (architecture, model_type, reading) = check_config(&config, path, &folder.name)?;
        let tokenizer_path = path.join(TOKENIZER);
        if !tokenizer_path.is_file() {
            let missing = no_tokenizer(&path.display().to_string());
            return Err(gguf::or_needed(missing, &names_in(path)));
        }
        weights::refuse_pointer(&tokenizer_path)?;
        let weights = weights::find(path, &folder.wanted)?;
        let summary = weights.summary;

        let in_config = |why: String| {
            ModelError::unfit(
                format!("{}: {why}", path.join(CONFIG).display()),
                "correct config.json, or name another model",
            )
        };
        let mut warnings = folder.warnings.clone();
        let tokenizer_config: TokenizerConfig = read_if_there(&path.join(TOKENIZER_CONFIG))?;
        let beside: SentenceTransformers =
            read_if_there(&path.join("config_sentence_transformers.json"))?;
        let labels = match reading.answers {
            // One score, whatever config.json says of classes that a language model has not.
            Some(_) => vec!["LABEL_0".to_owned()],
            None => config.labels(summary.n_labels).map_err(in_config)?,
        };
        let activation = config.activation(&beside, labels.len(), &mut warnings);
        let row_tokens_max = config
            .row_tokens_max(&tokenizer_config, &mut warnings)
            .map_err(in_config)?;
        let beside_weights = [CONFIG, TOKENIZER, TOKENIZER_CONFIG].map(|name| path.join(name));
        let files = beside_weights.into_iter().filter(|path| path.is_file());
        let files = files.chain(Reading::files(path)).chain(weights.files);
        let fingerprint = fingerprint::of_files(files.collect())?;
        if let (Some(source), true) = (&reading.source, reading.answers.is_none()) {
            warnings.push(format!("pairs are read in a prompt: {source}"));
        } else if config.is_decoder() && reading.prompt.is_none() {
            warnings.push(
                "it was taught with a prompt, and its folder has none (chat_template.jinja): pairs are joined bare"
                    .to_owned(),
            );
        }
        Ok(Self {
            name: folder.name.clone(),
            revision: folder.revision.clone(),
            labels,
            activation,
            row_tokens_max,
            truncation_side: tokenizer_config.truncation_side(),
            type_vocab_size: config.type_vocab_size,
            vocab_size: config.vocab_size,
            format: weights.format,
            num_parameters: summary.num_parameters,
            geometry: Geometry::of(&read_json(&path.join(CONFIG))?),
            path: path.clone(),
            architecture,
            model_type,
            reading,
            tokenizer_path,
            fingerprint,
            warnings,
        })
    }

    /// Whether both are of the same weights: the same files, or the same commit of a repository, of which different
    /// files may have been fetched.
    pub fn has_weights_of(&self, other: &Self) -> bool {
        let is_same_commit = self.revision.is_some() && self.revision == other.revision;
        self.fingerprint == other.fingerprint || (is_same_commit && self.name == other.name)
    }
}

/// Says no before gigabytes of weights are fetched for nothing.
pub(super) fn check_scores(folder: &Path, name: &str) -> Result<(), ModelError> {
    check_config(&read_config(folder)?, folder, name).map(drop)
}

/// `place` is a folder or a repository.
pub(super) fn no_tokenizer(place: &str) -> ModelError {
    ModelError::unfit(
        format!("{place} holds no {TOKENIZER}, and only fast tokenizers are served"),
        "convert it once with Python: \
         AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)",
    )
}

/// `place` is a folder or a repository.
pub(super) fn no_config(place: &str) -> ModelError {
    ModelError::unfit(
        format!("{place} holds no {CONFIG}"),
        "name the folder or repository of a transformers model",
    )
}

fn read_config(folder: &Path) -> Result<Config, ModelError> {
    let path = folder.join(CONFIG);
    // A folder that may not be entered is not an empty one.
    let found = std::fs::metadata(&path);
    if let Err(error) = &found
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(ModelError::disk("read", &path, error));
    }
    if found.is_ok_and(|found| found.is_file()) {
        read_json(&path)
    } else {
        let missing = no_config(&folder.display().to_string());
        Err(gguf::or_needed(missing, &names_in(folder)))
    }
}

/// The architecture and the model type of a model that scores, and how it reads pairs. `name` is what the user
/// called it.
fn check_config(
    config: &Config,
    folder: &Path,
    name: &str,
) -> Result<(String, String, Reading), ModelError> {
    let unfit = |why: String| {
        ModelError::unfit(
            format!("{}: {why}", folder.join(CONFIG).display()),
            "name a cross-encoder or a sequence classifier; embedding models cannot score pairs",
        )
    };
    let architecture = config.scoring_architecture().map_err(unfit)?.to_owned();
    let model_type = config.model_type.clone();
    let model_type = model_type.ok_or_else(|| unfit("`model_type` is missing".into()))?;
    let names: Vec<_> = [Some(name), config.name_or_path()]
        .into_iter()
        .flatten()
        .collect();
    let reading = Reading::of(folder, &names, &architecture, config).map_err(|why| {
        ModelError::unfit(
            format!("{}: {why}", folder.display()),
            "name a reranker; a model that generates becomes one by modules.json with a LogitScore and a chat template, as \
             sentence-transformers saves them",
        )
    })?;
    Ok((architecture, model_type, reading))
}

fn read_if_there<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelError> {
    if path.is_file() {
        read_json(path)
    } else {
        Ok(T::default())
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let bytes = read_bounded(path, CONFIG_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ModelError::unfit(
            format!("{} is not what it should be: {error}", path.display()),
            "correct the file, or copy or download it again",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::Wanted;

    const CONFIG_TEXT: &str = r#"{"architectures":["BertForSequenceClassification"],
        "model_type":"bert","id2label":{"0":"LABEL_0"},"max_position_embeddings":512}"#;

    fn weights_of(n_labels: usize) -> Vec<u8> {
        let header = format!(
            r#"{{"classifier.weight":{{"dtype":"F32","shape":[{n_labels},2],
            "data_offsets":[0,{}]}}}}"#,
            n_labels * 8
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + n_labels * 8, 0);
        bytes
    }

    /// A good model with one file replaced, or removed where `content` is `None`.
    fn read_with(name: &str, content: Option<&[u8]>) -> Result<ModelInfo, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at(CONFIG), CONFIG_TEXT).unwrap();
        fs::write(at(TOKENIZER), "{}").unwrap();
        fs::write(at(weights::SINGLE), weights_of(1)).unwrap();
        match content {
            Some(content) => fs::write(at(name), content).unwrap(),
            None => fs::remove_file(at(name)).unwrap(),
        }
        ModelInfo::read(&Folder {
            path: folder.path().into(),
            name: "m".into(),
            wanted: Wanted::default(),
            revision: None,
            warnings: vec!["from fetch".into()],
        })
    }

    #[track_caller]
    fn check_refused(name: &str, content: Option<&[u8]>, want: &[&str]) {
        let error = read_with(name, content).unwrap_err();
        for want in want {
            assert!(
                error.to_string().contains(want),
                "{error} does not say {want:?}"
            );
        }
    }

    #[test]
    fn a_model_is_described() {
        let info = read_with("README.md", Some(b"")).unwrap();
        assert_eq!(info.architecture, "BertForSequenceClassification");
        assert_eq!((info.row_tokens_max, info.num_parameters), (512, 2));
        assert_eq!(
            (info.labels.as_slice(), info.activation),
            (&["LABEL_0".into()][..], Activation::Sigmoid)
        );
        assert_eq!(info.warnings, ["from fetch"]);
    }

    #[test]
    fn refusals_name_file_finding_and_remedy() {
        check_refused(CONFIG, None, &["holds no config.json", "transformers"]);
        check_refused(CONFIG, Some(b"{"), &["config.json is not what", "EOF"]);
        check_refused(CONFIG, Some(b"{}"), &["`architectures` is missing"]);
        check_refused(
            CONFIG,
            Some(br#"{"architectures":["BertModel"],"model_type":"bert"}"#),
            &[
                "config.json",
                "BertModel",
                "no scoring head",
                "cross-encoder",
            ],
        );
        check_refused(
            CONFIG,
            Some(br#"{"architectures":["XForSequenceClassification"]}"#),
            &["`model_type` is missing"],
        );
        check_refused(
            TOKENIZER,
            None,
            &["tokenizer.json", "fast tokenizers", "use_fast=True"],
        );
        check_refused(
            TOKENIZER,
            Some(b"version https://git-lfs.github.com/spec/v1\n"),
            &["tokenizer.json", "git lfs pull"],
        );
        check_refused(TOKENIZER_CONFIG, Some(b"1"), &["tokenizer_config.json"]);
        check_refused(weights::SINGLE, None, &["holds no model.safetensors"]);
        check_refused(
            weights::SINGLE,
            Some(&weights_of(3)),
            &["1 labels, the classifier 3"],
        );
    }
}
