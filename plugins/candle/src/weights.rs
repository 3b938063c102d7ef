//! Tensors by name out of `model.safetensors`, or out of the shards of `model.safetensors.index.json`.
//!
//! Headers are read and checked at open; a tensor is read when it is asked for, as f32, and its shape and
//! every value are checked then. Files are read, not mapped: a mapped file that somebody truncates ends the
//! process (SIGBUS), and reading is checked code without `unsafe`.

use backend_api::Fault;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use serde::Deserialize;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Bytes of the largest header; the `safetensors` crate has the same bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Dimensions of the largest tensor here.
const RANK_MAX: usize = 8;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What a folder may hold instead: each is named in the refusal.
const OTHERS: [&str; 4] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.gguf",
    "tf_model.h5",
];

/// The tensors of a model folder.
pub(crate) struct Weights {
    files: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    /// Of everything read so far, names and bytes.
    fingerprint: Cell<u64>,
}

struct Shard {
    name: String,
    file: File,
}

struct Entry {
    shard: usize,
    dtype: String,
    shape: Vec<usize>,
    /// From the start of the file.
    start: u64,
    len: u64,
}

/// A tensor in a safetensors header.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

// === impl Weights ===

impl Weights {
    /// Opens the model's files and reads their headers.
    pub(crate) fn open(dir: &Path) -> Result<Self, Fault> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            fingerprint: Cell::new(0),
        };
        if dir.join(SINGLE).exists() {
            weights.add_shard(dir, SINGLE, None)?;
        } else if dir.join(INDEX).exists() {
            weights.add_shards(dir)?;
        } else {
            return Err(nothing_to_read(dir));
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
        let bad = |why: String| Fault::bad_model(format!("{name}: {why}"));
        let mut file = File::open(dir.join(name)).map_err(|error| bad(error.to_string()))?;
        let metadata = file.metadata().map_err(|error| bad(error.to_string()))?;
        let header = read_header(&mut file, metadata.len()).map_err(bad)?;
        let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("its header is not valid: {error}")))?;
        let (shard, data_start) = (self.files.len(), 8 + header.len() as u64);
        let mut ranges = Vec::new();
        for (tensor, value) in raw {
            let placed_here =
                index.is_none_or(|index| index.get(&tensor).is_some_and(|file| file == name));
            if tensor == "__metadata__" || !placed_here {
                continue;
            }
            let entry = entry(value, shard, data_start, metadata.len())
                .map_err(|why| bad(format!("{tensor}: {why}")))?;
            ranges.push((entry.start, entry.start + entry.len));
            self.tensors.insert(tensor, entry);
        }
        // The format forbids it; and 256 layers of the same 100 MB would be a model of 25 GB.
        ranges.sort_unstable();
        if ranges.array_windows().any(|[a, b]| b.0 < a.1) {
            return Err(bad("tensors share bytes".to_owned()));
        }
        self.files.push(Shard {
            name: name.to_owned(),
            file,
        });
        Ok(())
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize], Fault> {
        Ok(&self.entry(name)?.shape)
    }

    /// Reads a tensor of this shape as f32, row-major.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        self.read_part(name, shape, |len| 0..len)
    }

    /// Reads one row of a matrix of this shape.
    pub(crate) fn read_row(
        &self,
        name: &str,
        shape: &[usize; 2],
        row: usize,
    ) -> Result<Vec<f32>, Fault> {
        self.read_part(name, shape, |len| {
            let row_len = len / shape[0] as u64;
            row as u64 * row_len..(row as u64 + 1) * row_len
        })
    }

    /// Reads those bytes of a tensor that `part` says, given how many it has.
    fn read_part(
        &self,
        name: &str,
        shape: &[usize],
        part: impl Fn(u64) -> Range<u64>,
    ) -> Result<Vec<f32>, Fault> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(Fault::bad_model(format!(
                "{name}: its shape is {:?}, config.json asks for {shape:?}",
                entry.shape
            )));
        }
        let Shard {
            name: file,
            file: from,
        } = &self.files[entry.shard];
        let Range { start, end } = part(entry.len);
        let bytes = read_at(from, entry.start + start, end - start)
            .map_err(|error| Fault::bad_model(format!("{name} in {file}: {error}")))?;
        self.add_to_fingerprint(name.as_bytes());
        self.add_to_fingerprint(&bytes);
        let values = decode(&entry.dtype, &bytes).ok_or_else(|| {
            Fault::unsupported(format!(
                "{name}: its type is {}; this plugin reads F32, F16 and BF16",
                entry.dtype
            ))
        })?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Fault::bad_model(format!(
                "{name} in {file}: value {at} is {}",
                values[at]
            ))),
            None => Ok(values),
        }
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
        self.tensors
            .get(name)
            .ok_or_else(|| Fault::bad_model(format!("{name}: no such tensor in the model's files")))
    }
}

fn nothing_to_read(dir: &Path) -> Fault {
    let mut found = OTHERS.into_iter().filter(|name| dir.join(name).exists());
    match found.next() {
        Some(other) => Fault::bad_model(format!(
            "{}: {other}, but no {SINGLE}: this plugin reads safetensors (convert it: \
             `save_pretrained` of transformers writes them)",
            dir.display()
        )),
        None => Fault::bad_model(format!("{}: no {SINGLE} and no {INDEX}", dir.display())),
    }
}

fn read_header(file: &mut File, file_len: u64) -> Result<Vec<u8>, String> {
    let mut len = [0; 8];
    file.read_exact(&mut len)
        .map_err(|_| "shorter than a header's length".to_owned())?;
    let len = u64::from_le_bytes(len);
    if HEADER_BYTES_MAX < len || file_len - 8 < len {
        return Err(format!(
            "its header is said to be {len} bytes long, in a file of {file_len}"
        ));
    }
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header)
        .map_err(|error| error.to_string())?;
    Ok(header)
}

/// Checks a header's entry: its range lies in the file and is as long as its shape says.
fn entry(
    value: serde_json::Value,
    shard: usize,
    data_start: u64,
    file_len: u64,
) -> Result<Entry, String> {
    let raw: RawEntry = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let (start, end) = raw.data_offsets;
    let data_len = file_len - data_start;
    if end < start || data_len < end {
        return Err(format!(
            "bytes {start}..{end} of {data_len}: the file is cut off or its header wrong"
        ));
    }
    let value_bytes = match raw.dtype.as_str() {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    };
    let n_bytes = raw
        .shape
        .iter()
        .try_fold(value_bytes, |n: u64, &size| n.checked_mul(size as u64));
    if RANK_MAX < raw.shape.len() || n_bytes != Some(end - start) {
        return Err(format!(
            "{} bytes for {:?} values of {}",
            end - start,
            raw.shape,
            raw.dtype
        ));
    }
    Ok(Entry {
        shard,
        dtype: raw.dtype,
        shape: raw.shape,
        start: data_start + start,
        len: end - start,
    })
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

fn decode(dtype: &str, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || -> Vec<u16> {
        let (pairs, _) = bytes.as_chunks::<2>();
        pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect()
    };
    match dtype {
        "F32" => {
            let (values, _) = bytes.as_chunks::<4>();
            Some(
                values
                    .iter()
                    .map(|&value| f32::from_le_bytes(value))
                    .collect(),
            )
        }
        "F16" => Some(halves().reinterpret_into::<f16>().to_f32_vec()),
        "BF16" => Some(halves().reinterpret_into::<bf16>().to_f32_vec()),
        _ => None,
    }
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
