//! What weights say about themselves: of safetensors files headers are read, of others names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::hub::check_file_name;
use super::{ModelError, Wanted};

pub(super) mod gguf;

/// A header lists tensors; the safetensors library has the same limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// `model.safetensors.index.json` of the largest models is a few hundred kilobytes.
pub(super) const INDEX_BYTES_MAX: u64 = 16 << 20;
/// Names that a refusal lists of weights that nobody reads.
const NAMES_MAX: usize = 3;
/// Files one model is cut into.
const SHARDS_MAX: usize = 1_000;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// How to get the form of weights that most plugins read.
pub(super) const CONVERT_WEIGHTS: &str = "convert them once with Python: \
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder), \
    or on the hub with https://huggingface.co/spaces/safetensors/convert";

/// The last matrix of a classifier, whose rows are the labels, by the names that transformers
/// gives it: BERT, DeBERTa, DistilBERT, ModernBERT; RoBERTa, ELECTRA; decoders; T5.
const HEADS: [&str; 4] = [
    "classifier.weight",
    "classifier.out_proj.weight",
    "score.weight",
    "classification_head.out_proj.weight",
];

/// Sums over the headers of all shards.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub num_parameters: u64,
    /// Labels by the shape of the classifier, where it has a name that we know.
    pub n_labels: Option<usize>,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// How a model's weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// By name, for plugins that know the architecture.
    Safetensors,
    /// In graphs that compute the model.
    Onnx,
    /// By name, in one file that may hold them quantised.
    Gguf,
}

impl Format {
    /// In the order in which a model that has several is opened, where all will do.
    pub(super) const ALL: [Self; 3] = [Self::Safetensors, Self::Onnx, Self::Gguf];

    /// As plugins' cards spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Onnx => "onnx",
            Self::Gguf => "gguf",
        }
    }
}

/// The weights of a folder.
pub(super) struct Found {
    /// How those are written that will be opened.
    pub format: Format,
    /// By which the model is known, in name order. Graphs and GGUF files were made of the weights by name that are beside
    /// them: whoever opens either serves the same model.
    pub files: Vec<PathBuf>,
    /// Nothing of weights that are not by name.
    pub summary: Summary,
}

/// What is wanted of a folder's weights, else whatever else is there, which is for the plugin to refuse; an error if
/// there are none.
pub(super) fn find(folder: &Path, wanted: &Wanted) -> Result<Found, ModelError> {
    let (place, names) = (folder.display().to_string(), names_in(folder));
    for name in [SINGLE, INDEX] {
        refuse_dangling(&folder.join(name))?;
    }
    let (named, graphs) = (locate(folder), graphs(folder));
    let find = |format: Format| match format {
        Format::Safetensors => named.clone().ok().map(Ok),
        Format::Onnx if graphs.is_empty() => None,
        Format::Onnx => Some(Ok(named.clone().unwrap_or_else(|_| graphs.clone()))),
        Format::Gguf => {
            let file = match wanted.reads(format) {
                true => wanted.gguf(&names, &place).transpose(),
                false => gguf::all(&names).next().map(Ok),
            };
            file.map(|name| {
                let file = folder.join(name?);
                refuse_pointer(&file)?;
                Ok(named.clone().unwrap_or_else(|_| vec![file]))
            })
        }
    };
    let mut formats = Format::ALL;
    formats.sort_by_key(|format| !wanted.reads(*format));
    let found = formats
        .into_iter()
        .find_map(|format| Some((format, find(format)?)));
    let (format, files) = match found {
        Some((format, files)) => (format, files?),
        None => (Format::Safetensors, named.clone()?),
    };
    let summary = match (format, named) {
        (Format::Safetensors | Format::Onnx, Ok(named)) => summarize(&named)?,
        _ => Summary::default(),
    };
    Ok(Found {
        format,
        files,
        summary,
    })
}

/// A link to nothing is not passed over: whatever is opened instead is not what its owner means.
fn refuse_dangling(path: &Path) -> Result<(), ModelError> {
    match fs::read_link(path) {
        Ok(target) if !path.exists() => Err(ModelError::unfit(
            format!(
                "{} is a link to {}, which is not there",
                path.display(),
                target.display()
            ),
            "bring the file back, or remove the link",
        )),
        _ => Ok(()),
    }
}

/// Every graph with the files of its data, in name order.
fn graphs(folder: &Path) -> Vec<PathBuf> {
    let dirs = [folder.join("onnx"), folder.to_owned()];
    let names = dirs.iter().flat_map(|dir| {
        let names = names_in(dir).into_iter();
        names
            .filter(|name| name.contains(".onnx"))
            .map(|name| dir.join(name))
    });
    let mut graphs: Vec<_> = names.filter(|path| path.is_file()).collect();
    graphs.sort_unstable();
    graphs
}

/// The files of weights by name.
pub(super) fn locate(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Err(none_found(&folder.display().to_string(), &names_in(folder)));
    }
    let bytes = read_bounded(&index, INDEX_BYTES_MAX)?;
    let names = shard_names(&bytes).map_err(|why| {
        ModelError::unfit(
            format!("{}: {why}", index.display()),
            "download the file again",
        )
    })?;
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(paths),
        Some(path) => Err(ModelError::unfit(
            format!("{} is missing, which {INDEX} names", path.display()),
            "copy or download the missing file",
        )),
    }
}

/// Says which other weights are there instead. `place` is a folder or a repository.
pub(super) fn none_found(place: &str, names: &[String]) -> ModelError {
    let others = of_weights(names);
    if others.is_empty() {
        return ModelError::unfit(
            format!("{place} holds no {SINGLE} and no {INDEX}"),
            "name a model that has weights in safetensors form",
        );
    }
    ModelError::unfit(
        format!(
            "{place} holds weights only as {}, not as {SINGLE}",
            others.join(", ")
        ),
        CONVERT_WEIGHTS,
    )
}

/// The first few names that are those of weights, in any form.
pub(super) fn of_weights(names: &[String]) -> Vec<&str> {
    const ENDINGS: [&str; 9] = [
        ".safetensors",
        ".bin",
        ".onnx",
        ".h5",
        ".msgpack",
        ".gguf",
        ".pt",
        ".ckpt",
        ".ot",
    ];
    let names = names.iter().map(String::as_str);
    names
        .filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)))
        .take(NAMES_MAX)
        .collect()
}

/// The different shards that an index names, each checked to be a plain file name.
pub(super) fn shard_names(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| format!("not an index: {error}"))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || SHARDS_MAX < names.len() {
        return Err(format!(
            "{} shards, expected 1 to {SHARDS_MAX}",
            names.len()
        ));
    }
    for name in &names {
        check_file_name(name)?;
    }
    Ok(names)
}

/// Reads the headers of all shards.
pub(super) fn summarize(paths: &[PathBuf]) -> Result<Summary, ModelError> {
    let mut summary = Summary::default();
    for path in paths {
        let tensors = read_header(path)?;
        for (name, tensor) in tensors {
            // Buffers that old versions of transformers saved with the parameters.
            if name.ends_with("position_ids") {
                continue;
            }
            if HEADS.contains(&name.as_str()) {
                summary.n_labels = tensor.shape.first().map(|&n| n as usize);
            }
            let n = tensor
                .shape
                .iter()
                .fold(1u64, |n, &side| n.saturating_mul(side));
            summary.num_parameters = summary.num_parameters.saturating_add(n);
        }
    }
    Ok(summary)
}

fn read_header(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let disk = |error: std::io::Error| ModelError::disk("read", path, &error);
    let broken = |why: String| {
        ModelError::unfit(
            format!("{} is no whole safetensors file: {why}", path.display()),
            "copy or download it again",
        )
    };
    let mut file = File::open(path).map_err(disk)?;
    let n_file = file.metadata().map_err(disk)?.len();
    refuse_pointer(path)?;
    let mut length = [0; 8];
    if n_file < 8 {
        return Err(broken(format!("it has {n_file} bytes")));
    }
    file.read_exact(&mut length).map_err(disk)?;
    let n_header = u64::from_le_bytes(length);
    if HEADER_BYTES_MAX < n_header || n_file - 8 < n_header {
        return Err(broken(format!(
            "its header claims {n_header} bytes of {n_file}, at most {HEADER_BYTES_MAX}"
        )));
    }
    let mut header = vec![0; n_header as usize];
    file.read_exact(&mut header).map_err(disk)?;
    let (tensors, n_data) = parse_header(&header).map_err(broken)?;
    let n_here = n_file - 8 - n_header;
    if n_here != n_data {
        return Err(broken(format!(
            "it holds {n_here} bytes of tensors, its header {n_data}"
        )));
    }
    Ok(tensors)
}

/// The tensors and the number of bytes that they take.
fn parse_header(header: &[u8]) -> Result<(BTreeMap<String, Tensor>, u64), String> {
    let entries: Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let mut tensors = BTreeMap::new();
    let mut n_data = 0;
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        let tensor: Tensor = serde_json::from_value(value)
            .map_err(|error| format!("tensor {name} in its header: {error}"))?;
        n_data = n_data.max(tensor.data_offsets[1]);
        tensors.insert(name, tensor);
    }
    Ok((tensors, n_data))
}

/// `git clone` without git-lfs leaves pointers of about 130 bytes in place of large files.
pub(super) fn refuse_pointer(path: &Path) -> Result<(), ModelError> {
    const START: &[u8] = b"version https://git-lfs";
    let disk = |error: std::io::Error| ModelError::disk("read", path, &error);
    let mut start = Vec::with_capacity(START.len());
    let file = File::open(path).map_err(disk)?;
    file.take(START.len() as u64)
        .read_to_end(&mut start)
        .map_err(disk)?;
    if start != START {
        return Ok(());
    }
    Err(ModelError::unfit(
        format!(
            "{} is a git-lfs pointer, not the file itself",
            path.display()
        ),
        "run `git lfs pull` in the folder",
    ))
}

/// A whole file of outside text, or an error if it is larger than what makes sense.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let disk = |error: std::io::Error| ModelError::disk("read", path, &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(disk)?;
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(disk)?;
    if bytes_max < bytes.len() as u64 {
        return Err(ModelError::unfit(
            format!("{} is larger than {bytes_max} bytes", path.display()),
            "check that this is the right file",
        ));
    }
    Ok(bytes)
}

/// The names in a folder, in order; none where it cannot be read.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .take(1_000)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(header: &str, n_data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + n_data, 0);
        bytes
    }

    #[track_caller]
    fn check_file(bytes: &[u8], want: Result<(u64, Option<usize>), &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SINGLE);
        fs::write(&path, bytes).unwrap();
        match (summarize(&[path]), want) {
            (Ok(got), Ok((num_parameters, n_labels))) => {
                assert_eq!(
                    got,
                    Summary {
                        num_parameters,
                        n_labels
                    }
                );
            }
            (Err(got), Err(want)) => {
                assert!(
                    got.to_string().contains(want),
                    "{got} does not say {want:?}"
                );
            }
            (got, want) => panic!("{got:?}, expected {want:?}"),
        }
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "classifier.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},
        "x.position_ids":{"dtype":"I64","shape":[1,1],"data_offsets":[24,32]},
        "y":{"dtype":"F16","shape":[7,2],"data_offsets":[32,60]}}"#;

    #[test]
    fn headers() {
        check_file(&file_of(TWO, 60), Ok((20, Some(3))));
        check_file(&file_of("{}", 0), Ok((0, None)));
        check_file(
            &file_of(TWO, 59),
            Err("holds 59 bytes of tensors, its header 60"),
        );
        check_file(&file_of(TWO, 61), Err("holds 61 bytes"));
        check_file(&file_of("{", 0), Err("its header: EOF"));
        check_file(&file_of(r#"{"a":1}"#, 0), Err("tensor a in its header"));
        check_file(b"1234567", Err("it has 7 bytes"));
        check_file(&100u64.to_le_bytes(), Err("claims 100 bytes of 8"));
        check_file(&u64::MAX.to_le_bytes(), Err("at most 100000000"));
        check_file(
            b"version https://git-lfs.github.com/spec/v1\noid",
            Err("git lfs pull"),
        );
    }

    #[track_caller]
    fn check_shards(index: &str, want: Result<&[&str], &str>) {
        match (shard_names(index.as_bytes()), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn indexes() {
        check_shards(
            r#"{"metadata":{},"weight_map":{"a":"2","b":"1","c":"2"}}"#,
            Ok(&["1", "2"]),
        );
        check_shards(r#"{"weight_map":{}}"#, Err("0 shards"));
        check_shards(r#"{"weight_map":{"a":"../b"}}"#, Err("../b"));
        check_shards(r#"{"weight_map":{"a":"/b"}}"#, Err("/b"));
        check_shards("[]", Err("not an index"));
    }

    #[test]
    fn links_to_nothing_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.onnx"), "a graph").unwrap();
        assert!(find(folder.path(), &Wanted::default()).is_ok());
        for name in [SINGLE, INDEX] {
            let link = folder.path().join(name);
            std::os::unix::fs::symlink("gone", &link).unwrap();
            let error = find(folder.path(), &Wanted::default())
                .err()
                .unwrap()
                .to_string();
            let words = [name, "is a link to gone", "remove the link"];
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            fs::remove_file(link).unwrap();
        }
    }

    #[test]
    fn other_weights_are_named() {
        let names = ["config.json", "onnx/model.onnx", "pytorch_model.bin"].map(String::from);
        let text = none_found("x", &names).to_string();
        assert!(
            text.contains("onnx/model.onnx, pytorch_model.bin"),
            "{text}"
        );
        assert!(text.contains("save_pretrained"), "{text}");
        assert!(
            none_found("x", &[])
                .to_string()
                .contains("holds no model.safetensors")
        );
    }
}
