//! Tensors by name out of a model's folder: `model.safetensors`, the shards of `model.safetensors.index.json`, or a
//! GGUF file.
//!
//! Headers are read and checked at open; a tensor is read when it is asked for, and its shape and every value are
//! checked then. Files are read, not mapped: a mapped file that somebody truncates ends the process (SIGBUS), and
//! reading is checked code without `unsafe`.

mod gguf;
mod kinds;
mod le;
mod names;
mod safetensors;

pub(crate) use kinds::Kind;

use crate::loader::made;
use backend_api::Fault;
use names::Names;
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Dimensions of the largest tensor here.
const RANK_MAX: usize = 8;
/// Files of a folder that are looked at for a GGUF file.
const NAMES_MAX: usize = 1_000;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const GGUF: &str = ".gguf";
/// What a folder may hold instead: each is named in the refusal.
const OTHERS: [&str; 3] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
];

/// The tensors of a model folder.
pub(crate) struct Weights {
    files: Vec<(String, File)>,
    tensors: BTreeMap<String, Entry>,
    is_gguf: bool,
    names: Names,
    labels: Vec<String>,
    /// Of everything read so far, names and bytes.
    fingerprint: Cell<u64>,
    /// Values of linear layers that were read, by their types.
    layers: RefCell<BTreeMap<&'static str, usize>>,
}

/// A tensor that a header lists.
struct Entry {
    /// Its place among the files.
    file: usize,
    /// Its type, or the name of one that is not read.
    kind: Result<&'static Kind, String>,
    shape: Vec<usize>,
    /// From the start of the file.
    start: u64,
    len: u64,
}

/// What a file's header says.
#[derive(Default)]
struct Contents {
    tensors: Vec<(String, Entry)>,
    /// llama.cpp's name of the architecture.
    architecture: Option<String>,
    /// What the rows of a head stand for.
    labels: Vec<String>,
}

/// A matrix's rows, or some of them, as a file stores them.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) kind: &'static Kind,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

// === impl Weights ===

impl Weights {
    /// Opens the model's files and reads their headers: the GGUF file of this name, or else safetensors, or else
    /// the only GGUF file that there is.
    pub(crate) fn open(dir: &Path, file: Option<&str>) -> Result<Self, Fault> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            is_gguf: false,
            names: Names::default(),
            labels: Vec::new(),
            fingerprint: Cell::new(0),
            layers: RefCell::default(),
        };
        if let Some(name) = file {
            if !name.ends_with(GGUF) || Path::new(name).file_name() != Some(name.as_ref()) {
                let why = "not the plain name of a .gguf file in the model's folder";
                return Err(Fault::bad_request(format!("options: file {name:?}: {why}")));
            }
            weights.add_gguf(dir, name)?;
        } else if dir.join(SINGLE).exists() {
            weights.add_shard(dir, SINGLE, None)?;
        } else if dir.join(INDEX).exists() {
            weights.add_shards(dir)?;
        } else {
            weights.add_gguf(dir, &only_gguf(dir)?)?;
        }
        Ok(weights)
    }

    fn add_shards(&mut self, dir: &Path) -> Result<(), Fault> {
        let bad = |why: String| Fault::bad_model(format!("{INDEX}: {why}"));
        let text =
            std::fs::read_to_string(dir.join(INDEX)).map_err(|error| bad(error.to_string()))?;
        let RawIndex { weight_map } =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let names: BTreeSet<_> = weight_map.values().collect();
        for name in names {
            // A shard lies beside its index: a path that leads elsewhere is not a checkpoint's.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(bad(format!("{name:?} is not a plain file name")));
            }
            self.add_shard(dir, name, Some(&weight_map))?;
        }
        match weight_map
            .iter()
            .find(|(tensor, _)| !self.tensors.contains_key(*tensor))
        {
            Some((tensor, file)) => Err(bad(format!("{tensor} is not in {file}"))),
            None => Ok(()),
        }
    }

    /// Reads one file's header; of a shard, only what the index places in it.
    fn add_shard(
        &mut self,
        dir: &Path,
        name: &str,
        index: Option<&BTreeMap<String, String>>,
    ) -> Result<(), Fault> {
        let is_here = |tensor: &str| {
            index.is_none_or(|index| index.get(tensor).is_some_and(|file| file == name))
        };
        self.add(dir, name, |file, len| safetensors::read(file, len, is_here))
            .map(drop)
    }

    fn add_gguf(&mut self, dir: &Path, name: &str) -> Result<(), Fault> {
        self.is_gguf = true;
        let (architecture, labels) = self.add(dir, name, gguf::read)?;
        self.labels = labels;
        if self.tensors.contains_key(names::MARK) {
            self.names = Names::of_llama_cpp(architecture.as_deref())
                .map_err(|why| Fault::unsupported(format!("{name}: {why}")))?;
        }
        Ok(())
    }

    /// Adds a file's tensors, and returns what else it says: its architecture and the labels of its head.
    fn add(
        &mut self,
        dir: &Path,
        name: &str,
        read: impl FnOnce(&File, u64) -> Result<Contents, String>,
    ) -> Result<(Option<String>, Vec<String>), Fault> {
        let bad = |why: String| Fault::bad_model(format!("{name}: {why}"));
        let file = File::open(dir.join(name)).map_err(|error| bad(error.to_string()))?;
        let metadata = file.metadata().map_err(|error| bad(error.to_string()))?;
        let contents = read(&file, metadata.len()).map_err(bad)?;
        let mut ranges = Vec::new();
        for (tensor, mut entry) in contents.tensors {
            ranges.push((entry.start, entry.start + entry.len));
            entry.file = self.files.len();
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(bad(format!("{tensor} stands in it twice")));
            }
        }
        // The formats forbid it; and 256 layers of the same 100 MB would be a model of 25 GB.
        ranges.sort_unstable();
        if ranges.array_windows().any(|[a, b]| b.0 < a.1) {
            return Err(bad("tensors share bytes".to_owned()));
        }
        self.files.push((name.to_owned(), file));
        Ok((contents.architecture, contents.labels))
    }

    /// Whether the values are in a GGUF file, which may have been quantised.
    pub(crate) fn is_gguf(&self) -> bool {
        self.is_gguf
    }

    /// Whether llama.cpp's converter chose the names, which changes some tensors too.
    pub(crate) fn are_llama_cpp(&self) -> bool {
        self.names.are_llama_cpp()
    }

    /// What the rows of a head stand for, where the file says.
    pub(crate) fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&*self.names.stored(name))
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize], Fault> {
        Ok(&self.entry(name)?.shape)
    }

    /// The type of a tensor.
    pub(crate) fn kind(&self, name: &str) -> Result<&'static Kind, Fault> {
        match &self.entry(name)?.kind {
            Ok(kind) => Ok(kind),
            Err(dtype) => Err(Fault::unsupported(format!(
                "{name}: its type is {dtype}; this plugin reads F32, F16 and BF16"
            ))),
        }
    }

    /// Reads a tensor of this shape as f32, row-major.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        self.read_part(name, shape, |len| 0..len)
            .and_then(|part| part.decoded())
    }

    /// Reads one row of a matrix of this shape.
    pub(crate) fn read_row(
        &self,
        name: &str,
        shape: &[usize; 2],
        row: usize,
    ) -> Result<Vec<f32>, Fault> {
        let part = self.read_part(name, shape, |len| {
            let row_len = len / shape[0] as u64;
            row as u64 * row_len..(row as u64 + 1) * row_len
        });
        part.and_then(|part| part.decoded())
    }

    /// Reads a tensor of this shape as it is stored.
    pub(crate) fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored, Fault> {
        self.read_part(name, shape, |len| 0..len)
    }

    /// Reads those bytes of a tensor that `part` says, given how many it has.
    fn read_part(
        &self,
        name: &str,
        shape: &[usize],
        part: impl Fn(u64) -> Range<u64>,
    ) -> Result<Stored, Fault> {
        let (entry, kind) = (self.entry(name)?, self.kind(name)?);
        if entry.shape != shape {
            return Err(Fault::bad_model(format!(
                "{}: its shape is {:?}, config.json asks for {shape:?}",
                self.both_names(name),
                entry.shape
            )));
        }
        let (file, from) = &self.files[entry.file];
        let Range { start, end } = part(entry.len);
        let bytes = read_at(from, entry.start + start, end - start)
            .map_err(|error| Fault::bad_model(format!("{name} in {file}: {error}")))?;
        self.add_to_fingerprint(name.as_bytes());
        self.add_to_fingerprint(&bytes);
        match kind.not_finite(&bytes) {
            Some(at) => Err(Fault::bad_model(format!(
                "{name} in {file}: value {at} is not finite"
            ))),
            None => Ok(Stored { kind, bytes }),
        }
    }

    /// Counts values of linear layers, by whose types a model is named.
    pub(crate) fn count(&self, kind: &Kind, n_values: usize) {
        *self.layers.borrow_mut().entry(kind.name).or_default() += n_values;
    }

    /// The type of most values that were counted.
    pub(crate) fn most(&self) -> &'static str {
        let layers = self.layers.borrow();
        let most = layers.iter().max_by_key(|(_, n_values)| **n_values);
        most.map_or("f32", |(name, _)| name)
    }

    /// Whether most bytes are of tensors of this type.
    pub(crate) fn are_mostly(&self, kind: &str) -> bool {
        let is_it = |entry: &&Entry| matches!(&entry.kind, Ok(found) if found.name == kind);
        let n_bytes: u64 = self.tensors.values().map(|entry| entry.len).sum();
        let of_it = self.tensors.values().filter(is_it);
        n_bytes < 2 * of_it.map(|entry| entry.len).sum::<u64>()
    }

    /// Adds to the hash of everything read, which tells models apart; it is no proof against forgers.
    pub(crate) fn add_to_fingerprint(&self, bytes: &[u8]) {
        self.fingerprint.set(hash(self.fingerprint.get(), bytes));
    }

    /// The hash of everything read so far.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint.get()
    }

    fn entry(&self, name: &str) -> Result<&Entry, Fault> {
        self.tensors.get(&*self.names.stored(name)).ok_or_else(|| {
            let (why, name) = (self.names.why_missing(name), self.both_names(name));
            Fault::bad_model(format!("{name}: no such tensor in the model's files{why}"))
        })
    }

    /// A tensor's name in transformers, and in the file where that is another.
    fn both_names(&self, name: &str) -> String {
        let stored = self.names.stored(name);
        match *stored == *name {
            true => name.to_owned(),
            false => format!("{name} ({stored} in {})", self.files[0].0),
        }
    }
}

// === impl Stored ===

impl Stored {
    /// The values.
    pub(crate) fn decoded(&self) -> Result<Vec<f32>, Fault> {
        made(self.kind.decode(&self.bytes))
    }
}

/// The name of the only GGUF file in a folder without safetensors.
fn only_gguf(dir: &Path) -> Result<String, Fault> {
    let names = gguf_names(dir);
    match names.as_slice() {
        [] => Err(nothing_to_read(dir)),
        [name] => Ok(name.clone()),
        _ => Err(Fault::bad_model(format!(
            "{}: {} GGUF files ({}): name one by the option file, as {{\"file\": {:?}}}, or leave only one there",
            dir.display(),
            names.len(),
            names.join(", "),
            names[0]
        ))),
    }
}

/// The names of a folder's GGUF files, in order.
pub(crate) fn gguf_names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries
        .take(NAMES_MAX)
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(GGUF)).collect();
    names.sort_unstable();
    names
}

fn nothing_to_read(dir: &Path) -> Fault {
    let mut found = OTHERS.into_iter().filter(|name| dir.join(name).exists());
    match found.next() {
        Some(other) => Fault::bad_model(format!(
            "{}: {other}, but no {SINGLE}: this plugin reads safetensors and GGUF (convert it: \
             `save_pretrained` of transformers writes safetensors)",
            dir.display()
        )),
        None => Fault::bad_model(format!(
            "{}: no {SINGLE}, no {INDEX} and no GGUF file",
            dir.display()
        )),
    }
}

fn read_at(mut file: &File, start: u64, len: u64) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::with_capacity(len as usize);
    let n_read = file.take(len).read_to_end(&mut bytes)?;
    if (n_read as u64) < len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Eight bytes at a time, multiplied and folded.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(FACTOR);
        product ^ (product >> 29)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = mix(seed, bytes.len() as u64);
    for &word in words {
        hash = mix(hash, u64::from_le_bytes(word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}
