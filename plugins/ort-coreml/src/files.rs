//! Which file of a model's folder is opened, and what it is made of.
//!
//! A folder may hold a dozen graphs of one model. The data type that was asked for decides, then the processor: a quantised file
//! has other scores than the model, so nobody gets one who did not ask for it.

pub mod content;
pub mod isa;

use backend_api::Fault;
use content::Content;
use isa::Isa;
use std::path::{Component, Path, PathBuf};

/// Where graphs lie below a model's folder, best first: sentence-transformers and optimum write into `onnx/`, older exports beside
/// the configuration.
const FOLDERS: [&str; 2] = ["onnx", ""];

/// Graphs in the model's own precision.
const F32: [&str; 1] = ["model.onnx"];
/// Graphs in half precision.
const F16: [&str; 2] = ["model_fp16.onnx", "model_O4.onnx"];
/// Graphs in i8 for no processor in particular, after those for this one.
const INT8: [&str; 5] = [
    "model_quantized.onnx",
    "model_qint8.onnx",
    "model_int8.onnx",
    "model_quint8.onnx",
    "model_uint8.onnx",
];

/// The most files that a refusal lists.
const LISTED_MAX: usize = 16;

/// Data types of graphs. What a provider computes in may be narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// As the model was trained, or nearly.
    F32,
    /// Halves.
    F16,
    /// Weights, and mostly activations, in 8 bits.
    Int8,
}

/// A graph that is to be opened.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The file.
    pub path: PathBuf,
    /// Its name from the model's folder on: `onnx/model.onnx`.
    pub name: String,
    /// What it is in.
    pub dtype: Dtype,
    /// What it is made of, its data files included.
    pub content: Content,
}

// === impl Dtype ===

impl Dtype {
    /// All, as the card lists them: best first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// The name in requests, cards and descriptions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// What a request asks for; `None` leaves it to the file.
    ///
    /// # Errors
    /// `Unsupported`, with what is possible.
    pub fn asked(name: &str) -> Result<Option<Self>, Fault> {
        if name == "auto" {
            return Ok(None);
        }
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        found.map(Some).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Fault::unsupported(format!(
                "dtype {name:?}: this plugin opens graphs in {names}"
            ))
        })
    }

    /// Where graphs in this type lie below a model's folder, best first.
    fn paths(self, isa: Isa) -> impl Iterator<Item = PathBuf> {
        let names = self.file_names(isa).into_iter();
        names.flat_map(|name| FOLDERS.map(|folder| Path::new(folder).join(name)))
    }

    /// The names of files in this type, best first.
    fn file_names(self, isa: Isa) -> Vec<&'static str> {
        match self {
            Self::F32 => F32.to_vec(),
            Self::F16 => F16.to_vec(),
            Self::Int8 => isa.int8_files().iter().chain(&INT8).copied().collect(),
        }
    }
}

/// What [`choose`] takes on this processor, for the card: a host that fetches models fetches that one.
#[must_use]
pub fn on_card() -> Vec<String> {
    let isa = Isa::detect();
    let of_type = |dtype: Dtype| {
        let paths = dtype.paths(isa);
        paths.map(move |path| format!("{}:{}", dtype.name(), path.display()))
    };
    Dtype::ALL.into_iter().flat_map(of_type).collect()
}

/// Picks the graph of a model's folder and reads it through.
///
/// # Errors
/// `Unsupported` if the folder holds none that fits (another plugin may serve the model), `BadRequest` if the options name one
/// that is not there, `BadModel` if a file cannot be read, lacks its data files or is quantised where that was not asked for.
pub fn choose(dir: &Path, file: Option<&Path>, asked: Option<Dtype>) -> Result<Graph, Fault> {
    let path = match file {
        Some(file) => named(dir, file)?,
        None => listed(dir, asked.unwrap_or(Dtype::F32), Isa::detect())?,
    };
    let content = Content::read(&path).map_err(Fault::bad_model)?;
    let name = path
        .strip_prefix(dir)
        .unwrap_or(&path)
        .display()
        .to_string();
    let is_int8 = content.quantized.is_some();
    // Without a name and a type, f32 was meant.
    let asked = if file.is_none() {
        asked.or(Some(Dtype::F32))
    } else {
        asked
    };
    let dtype = match (asked, content.quantized) {
        (Some(Dtype::F32 | Dtype::F16), Some(operator)) => {
            return Err(Fault::bad_model(format!(
                "{name} is quantised (it has {operator}), so its scores are not the model's: ask for dtype int8, or name it in \
                 options.file with dtype auto"
            )));
        }
        (Some(Dtype::Int8), None) => {
            return Err(Fault::bad_model(format!(
                "{name} is not quantised: it has none of {}",
                content::quantized_operators()
            )));
        }
        (Some(dtype), _) => dtype,
        (None, _) if is_int8 => Dtype::Int8,
        (None, _) if F16.iter().any(|known| path.ends_with(known)) => Dtype::F16,
        (None, _) => Dtype::F32,
    };
    Ok(Graph {
        path,
        name,
        dtype,
        content,
    })
}

/// The file that the options name: of the folder, or of its `onnx/`. Whoever may name options may not have the server
/// read whatever file there is.
fn named(dir: &Path, file: &Path) -> Result<PathBuf, Fault> {
    let is_below = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !file.components().all(is_below) {
        return Err(Fault::bad_request(format!(
            "options.file = {}: not a file of the model's folder: name it from there on, as onnx/model.onnx",
            file.display()
        )));
    }
    let places = ["", "onnx"].map(|folder| dir.join(folder).join(file));
    let found = places.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| {
        Fault::bad_request(format!(
            "options.file = {}: there is no such file below {}; {}",
            file.display(),
            dir.display(),
            there_are(dir)
        ))
    })
}

/// The best file in this type.
fn listed(dir: &Path, dtype: Dtype, isa: Isa) -> Result<PathBuf, Fault> {
    let paths = dtype.paths(isa).map(|path| dir.join(path));
    let mut there = paths.filter(|path| path.is_file());
    there.next().ok_or_else(|| {
        Fault::unsupported(format!(
            "{}: no graph in {} for {}: none of {} in onnx/ or beside config.json; {}",
            dir.display(),
            dtype.name(),
            isa.name(),
            dtype.file_names(isa).join(", "),
            there_are(dir)
        ))
    })
}

/// The graphs of a folder, for a refusal.
fn there_are(dir: &Path) -> String {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let entries = std::fs::read_dir(dir.join(folder)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let graphs = names.filter(|name| name.ends_with(".onnx"));
        found.extend(graphs.map(|name| Path::new(folder).join(name).display().to_string()));
    }
    if found.is_empty() {
        return "it holds no .onnx file; `optimum-cli export onnx` or sentence-transformers writes one".to_owned();
    }
    found.sort();
    let n_more = found.len().saturating_sub(LISTED_MAX);
    found.truncate(LISTED_MAX);
    let more = if n_more == 0 {
        String::new()
    } else {
        format!(" and {n_more} more")
    };
    format!(
        "it holds {}{more}, which options.file may name",
        found.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the files that exist is taken.
    #[track_caller]
    fn check(files: &[&str], dtype: Dtype, isa: Isa, expected: Option<&str>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("onnx")).unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let found = listed(dir.path(), dtype, isa)
            .map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string());
        match (found, expected) {
            (Ok(found), Some(expected)) => assert_eq!(found, expected),
            (Err(fault), None) => {
                for file in files {
                    assert!(fault.text.contains(file), "{fault} does not list {file}");
                }
            }
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    const ALL: [&str; 9] = [
        "model.onnx",
        "onnx/model.onnx",
        "onnx/model_O3.onnx",
        "onnx/model_O4.onnx",
        "onnx/model_qint8_arm64.onnx",
        "onnx/model_qint8_avx512.onnx",
        "onnx/model_qint8_avx512_vnni.onnx",
        "onnx/model_quint8_avx2.onnx",
        "onnx/model_fp16.onnx",
    ];

    /// What a host fetches is what is opened then.
    #[test]
    fn the_card_lists_what_is_chosen() {
        let card = on_card();
        assert_eq!(card[..2], ["f32:onnx/model.onnx", "f32:model.onnx"]);
        for dtype in Dtype::ALL {
            let prefix = format!("{}:", dtype.name());
            let files: Vec<_> = card
                .iter()
                .filter_map(|file| file.strip_prefix(&prefix))
                .collect();
            assert!(!files.is_empty());
            // Whatever worse there is beside it.
            for (at, best) in files.iter().enumerate() {
                check(&files[at..], dtype, Isa::detect(), Some(best));
            }
        }
    }

    #[test]
    fn the_folder_of_exports_comes_first() {
        check(&ALL, Dtype::F32, Isa::Avx512Vnni, Some("onnx/model.onnx"));
        check(&["model.onnx"], Dtype::F32, Isa::Avx2, Some("model.onnx"));
    }
    #[test]
    fn no_other_file_is_taken_for_f32() {
        check(
            &["onnx/model_qint8_avx512_vnni.onnx", "onnx/model_O3.onnx"],
            Dtype::F32,
            Isa::Avx512Vnni,
            None,
        );
    }
    #[test]
    fn halves() {
        check(&ALL, Dtype::F16, Isa::Avx2, Some("onnx/model_fp16.onnx"));
        check(&ALL[..4], Dtype::F16, Isa::Avx2, Some("onnx/model_O4.onnx"));
    }
    #[test]
    fn int8_is_for_this_processor() {
        check(
            &ALL,
            Dtype::Int8,
            Isa::Avx512Vnni,
            Some("onnx/model_qint8_avx512_vnni.onnx"),
        );
        check(
            &ALL,
            Dtype::Int8,
            Isa::Avx512,
            Some("onnx/model_qint8_avx512.onnx"),
        );
        check(
            &ALL,
            Dtype::Int8,
            Isa::Avx2,
            Some("onnx/model_quint8_avx2.onnx"),
        );
        check(
            &ALL,
            Dtype::Int8,
            Isa::Neon,
            Some("onnx/model_qint8_arm64.onnx"),
        );
    }
    #[test]
    fn int8_for_another_processor_is_not_taken() {
        check(
            &["onnx/model_qint8_arm64.onnx"],
            Dtype::Int8,
            Isa::Avx512Vnni,
            None,
        );
        check(
            &["onnx/model_qint8_avx512_vnni.onnx"],
            Dtype::Int8,
            Isa::Avx2,
            None,
        );
        let either = ["onnx/model_qint8_arm64.onnx", "onnx/model_quantized.onnx"];
        check(
            &either,
            Dtype::Int8,
            Isa::Other,
            Some("onnx/model_quantized.onnx"),
        );
    }
}
