//! What plugins claim: their cards, over the golden models.

use crate::graphs::folder_with;
use crate::rows::{Golden, golden, golden_dir, golden_names, plugins_dir};
use backend_api::{OpenRequest, PluginCard, PluginLibrary};
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Why something is left out: a sentence, or a word of one.
pub(crate) type Reason = &'static str;

/// What graphs of each data type are called.
const GRAPHS: [(&str, &str); 3] = [
    ("f32", "model.onnx"),
    ("f16", "model_fp16.onnx"),
    ("int8", "model_quantized.onnx"),
];
/// Exports that give no logits.
const NO_LOGITS: &str = ".embedder";
/// Exports of one shape, which take its rows alone.
const ONE_SHAPE: &str = ".fixed";

/// A plugin as a server loads it.
pub(crate) struct Plugin {
    pub(crate) name: String,
    pub(crate) library: PluginLibrary,
}

/// A golden model.
pub(crate) struct Folder {
    pub(crate) name: String,
    /// As config.json names it.
    pub(crate) architecture: String,
    pub(crate) golden: Golden,
}

/// A model that a plugin should open in a data type.
pub(crate) struct Claim<'a> {
    pub(crate) plugin: &'a Plugin,
    pub(crate) folder: &'a Folder,
    /// The folder's, or that of a graph exported from it.
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) request: OpenRequest,
    /// The request's folder, where it was made for it.
    made: Option<Arc<TempDir>>,
}

// === impl Plugin ===

impl Plugin {
    /// Loads a library that `cargo build` made.
    pub(crate) fn load(name: &str) -> Self {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let file = format!("{prefix}{}{suffix}", name.replace('-', "_"));
        let path = library_dir().join(file);
        assert!(
            path.is_file(),
            "{} is missing: run `make test`, or `cargo build -p {name}` first",
            path.display()
        );
        let library = PluginLibrary::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(library.card().name, name);
        Self {
            name: name.to_owned(),
            library,
        }
    }

    pub(crate) fn card(&self) -> &PluginCard {
        self.library.card()
    }

    pub(crate) fn reads(&self, format: &str) -> bool {
        self.card().formats.iter().any(|known| known == format)
    }

    fn claims_architecture(&self, name: &str) -> bool {
        let named = &self.card().architectures;
        named.is_empty() || named.iter().any(|known| known == name)
    }

    /// Every model × every data type: golden folders for who reads weights, graphs for who reads those.
    pub(crate) fn claims<'a>(&'a self, folders: &'a [Folder]) -> Vec<Claim<'a>> {
        let fitting = folders
            .iter()
            .filter(|folder| self.claims_architecture(&folder.architecture));
        let mut claims = Vec::new();
        for folder in fitting {
            if self.reads("safetensors") {
                let options = Value::from(folder.golden.options.clone());
                let claim = |dtype: &String| self.claim(folder, &folder.name, dtype, &options);
                claims.extend(self.card().dtypes.iter().map(claim));
            }
            if self.reads("onnx") {
                claims.extend(self.claims_of_graphs(folder));
            }
        }
        claims
    }

    fn claims_of_graphs<'a>(&'a self, folder: &'a Folder) -> Vec<Claim<'a>> {
        let mut claims = Vec::new();
        for (name, dir) in exports(&folder.name) {
            let made = Arc::new(folder_with(&folder.name, &dir.join("onnx")));
            for dtype in &self.card().dtypes {
                let graph = GRAPHS.iter().find(|(known, _)| known == dtype);
                let (_, graph) = graph.unwrap_or_else(|| panic!("no file name for {dtype}"));
                let file = format!("onnx/{graph}");
                if made.path().join(&file).is_file() {
                    let mut claim = self.claim(folder, &name, dtype, &json!({"file": file}));
                    claim.request.model_dir = made.path().to_owned();
                    claim.made = Some(Arc::clone(&made));
                    claims.push(claim);
                }
            }
        }
        claims
    }

    fn claim<'a>(
        &'a self,
        folder: &'a Folder,
        name: &str,
        dtype: &str,
        options: &Value,
    ) -> Claim<'a> {
        Claim {
            plugin: self,
            folder,
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            request: OpenRequest {
                model_dir: golden_dir(&folder.name),
                device: "cpu".to_owned(),
                dtype: dtype.to_owned(),
                options: options.to_string(),
                row_tokens_max: folder.longest() as u32,
                ..OpenRequest::default()
            },
            made: None,
        }
    }
}

// === impl Folder ===

impl Folder {
    /// All that are there.
    pub(crate) fn all() -> Vec<Self> {
        let read = |name: String| {
            let path = golden_dir(&name).join("config.json");
            let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let architecture = config["architectures"][0].as_str().unwrap().to_owned();
            let golden = golden(&name);
            Self {
                name,
                architecture,
                golden,
            }
        };
        golden_names().into_iter().map(read).collect()
    }

    /// Tokens of its longest row.
    pub(crate) fn longest(&self) -> usize {
        let rows = self.golden.rows.iter();
        rows.map(|row| row.input_ids.len()).max().unwrap()
    }
}

// === impl Claim ===

impl Claim<'_> {
    /// Whether rows may be longer than what was opened takes.
    pub(crate) fn has_one_shape(&self) -> bool {
        self.name.ends_with(ONE_SHAPE)
    }
}

impl fmt::Display for Claim<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} in {} by {}",
            self.name, self.dtype, self.plugin.name
        )
    }
}

/// Where `cargo build` puts plugins: beside the folder of this test.
pub(crate) fn library_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().to_owned()
}

/// Graphs that were exported from a golden model: `NAME` and `NAME.SPECIAL`, those that score.
fn exports(golden: &str) -> Vec<(String, PathBuf)> {
    let dir: &Path = &plugins_dir().join("ort-coreml/tests/models");
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| name.split('.').next() == Some(golden) && !name.ends_with(NO_LOGITS))
        .collect();
    names.sort();
    let there = |name: String| (name.clone(), dir.join(name));
    names.into_iter().map(there).collect()
}
