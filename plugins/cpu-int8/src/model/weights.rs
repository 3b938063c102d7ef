//! Tensors by name out of `model.safetensors`, or out of the shards of
//! `model.safetensors.index.json`.
//!
//! The headers are read and checked at open: every tensor's range lies inside its file before any
//! is read. A tensor is read when it is asked for, as f32, and its shape and every value are
//! checked then, on whichever thread asks.
//!
//! Files are read by `pread` in pieces, not mapped. A mapped file that somebody else truncates ends
//! the process (SIGBUS) where a read returns an error, and its pages count as the process's memory.
//! A map would save a copy that is cheap, from the page cache into L2, where a piece is then hashed
//! and decoded: reading and adding up 91 MB took 16 ms of a core by `pread`, 13 by a map and 11 by one
//! that is populated at once, of the 85 ms that loading them takes.

use crate::model::LoadError;
use crate::model::decode::{Decoder, decoder, hash, not_finite};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the largest header; `safetensors` has the same bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Dimensions of the largest tensor here.
const RANK_MAX: usize = 8;
/// Bytes that are read at once: with the numbers that they become, they stay in L2.
const PIECE_BYTES: usize = 128 * 1024;

/// The tensors of a model folder.
#[derive(Default)]
pub struct Weights {
    files: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    fingerprint: Fingerprint,
}

/// A 64-bit hash of what was read, to tell models apart; not proof against somebody who forges one.
/// A sum over pieces, each hashed with its name and place: the order of reading does not show.
#[derive(Debug, Default)]
pub struct Fingerprint(AtomicU64);

/// A tensor of the right shape and a known type, not yet read.
pub struct Tensor<'a> {
    weights: &'a Weights,
    name: &'a str,
    entry: &'a Entry,
    decode: Decoder,
    value_bytes: u64,
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
    ///
    /// # Errors
    /// Names the file, and the tensor where one is wrong.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let index = dir.join("model.safetensors.index.json");
        if !dir.join("model.safetensors").exists() && index.exists() {
            return Self::open_shards(dir, &index);
        }
        let mut weights = Self::default();
        weights.add_shard(dir, "model.safetensors", None)?;
        Ok(weights)
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self, LoadError> {
        let bad = |why: String| LoadError::Bad(format!("model.safetensors.index.json: {why}"));
        let text = std::fs::read_to_string(index).map_err(|error| bad(error.to_string()))?;
        let RawIndex { weight_map } =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let names: BTreeSet<_> = weight_map.values().collect();
        let mut weights = Self::default();
        for name in names {
            // A shard lies beside its index: a path that leads elsewhere is not a checkpoint's.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(bad(format!("{name:?} is not a plain file name")));
            }
            weights.add_shard(dir, name, Some(&weight_map))?;
        }
        for (tensor, file) in &weight_map {
            if !weights.tensors.contains_key(tensor) {
                return Err(LoadError::Bad(format!(
                    "{tensor}: not in {file}, where the index has it"
                )));
            }
        }
        Ok(weights)
    }

    /// Reads one file's header; of a shard, only what the index places in it.
    fn add_shard(
        &mut self,
        dir: &Path,
        name: &str,
        index: Option<&BTreeMap<String, String>>,
    ) -> Result<(), LoadError> {
        let bad = |why: String| LoadError::Bad(format!("{name}: {why}"));
        let mut file = File::open(dir.join(name)).map_err(|error| bad(error.to_string()))?;
        let file_len = file
            .metadata()
            .map_err(|error| bad(error.to_string()))?
            .len();
        let header = read_header(&mut file, file_len).map_err(bad)?;
        let data_start = 8 + header.len() as u64;
        let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("its header is not valid: {error}")))?;
        let shard = self.files.len();
        let mut ranges = Vec::new();
        for (tensor, value) in raw {
            let placed_here =
                index.is_none_or(|index| index.get(&tensor).is_some_and(|file| file == name));
            if tensor == "__metadata__" || !placed_here {
                continue;
            }
            let entry = entry(value, shard, data_start, file_len)
                .map_err(|why| LoadError::Bad(format!("{tensor} in {name}: {why}")))?;
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
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// Names the tensor if it is missing.
    pub fn shape(&self, name: &str) -> Result<&[usize], LoadError> {
        Ok(&self.entry(name)?.shape)
    }

    /// A tensor, to be read in parts.
    ///
    /// # Errors
    /// Names the tensor: missing, of another shape, or of a type that is not F32, F16 or
    /// BF16.
    pub fn tensor<'a>(&'a self, name: &'a str, shape: &[usize]) -> Result<Tensor<'a>, LoadError> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(LoadError::Bad(format!(
                "{name}: its shape is {:?}, config.json asks for {shape:?}",
                entry.shape
            )));
        }
        let (value_bytes, decode) = decoder(&entry.dtype).ok_or_else(|| {
            LoadError::Unsupported(format!(
                "{name}: its type is {}, not F32, F16 or BF16",
                entry.dtype
            ))
        })?;
        Ok(Tensor {
            weights: self,
            name,
            entry,
            decode,
            value_bytes,
        })
    }

    /// Reads a tensor as f32, row-major.
    ///
    /// # Errors
    /// Names the tensor: see [`tensor`](Self::tensor) and [`Tensor::read`].
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, shape)?;
        let mut values = Vec::with_capacity(tensor.n_values());
        tensor.read(0..tensor.n_values(), &mut values)?;
        Ok(values)
    }

    /// The hash of everything read so far, names and bytes.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn entry(&self, name: &str) -> Result<&Entry, LoadError> {
        self.tensors
            .get(name)
            .ok_or_else(|| LoadError::Bad(format!("{name}: no such tensor in the model's files")))
    }
}

// === impl Tensor ===

impl Tensor<'_> {
    /// Its number of values.
    pub fn n_values(&self) -> usize {
        (self.entry.len / self.value_bytes) as usize
    }

    /// Appends some of its values to `out`.
    ///
    /// # Errors
    /// Names the tensor: a value is not finite, or the file ends before it, as one does that was
    /// truncated since it was opened.
    pub fn read(&self, values: Range<usize>, out: &mut Vec<f32>) -> Result<(), LoadError> {
        assert!(values.start <= values.end && values.end <= self.n_values());
        let Entry { shard, start, .. } = *self.entry;
        let shard = &self.weights.files[shard];
        let piece_len = PIECE_BYTES / self.value_bytes as usize;
        let mut bytes = vec![0; PIECE_BYTES.min(values.len() * self.value_bytes as usize)];
        for first in values.clone().step_by(piece_len) {
            let n_values = piece_len.min(values.end - first);
            let bytes = &mut bytes[..n_values * self.value_bytes as usize];
            let place = first as u64 * self.value_bytes;
            shard
                .file
                .read_exact_at(bytes, start + place)
                .map_err(|error| {
                    LoadError::Bad(format!("{} in {}: {error}", self.name, shard.name))
                })?;
            self.weights.fingerprint.add(self.name, place, bytes);
            let done = out.len();
            (self.decode)(bytes, out);
            if let Some(at) = not_finite(&out[done..]) {
                return Err(LoadError::Bad(format!(
                    "{}: value {} is {}, not a finite number",
                    self.name,
                    first + at,
                    out[done + at]
                )));
            }
        }
        Ok(())
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Adds the `bytes` at `place` of what is called `name`.
    pub fn add(&self, name: &str, place: u64, bytes: &[u8]) {
        self.0
            .fetch_add(hash(name, place, bytes), Ordering::Relaxed);
    }

    /// The hash.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn read_header(file: &mut File, file_len: u64) -> Result<Vec<u8>, String> {
    let mut len = [0; 8];
    file.read_exact(&mut len)
        .map_err(|_| format!("{file_len} bytes are too few for a safetensors file"))?;
    let len = u64::from_le_bytes(len);
    if HEADER_BYTES_MAX.min(file_len.saturating_sub(8)) < len {
        return Err(format!(
            "it is {file_len} bytes long, its header says it has {len} bytes: truncated or not safetensors"
        ));
    }
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header)
        .map_err(|error| error.to_string())?;
    Ok(header)
}

fn entry(
    value: serde_json::Value,
    shard: usize,
    data_start: u64,
    file_len: u64,
) -> Result<Entry, String> {
    let raw: RawEntry = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let (begin, end) = raw.data_offsets;
    let data_len = file_len.saturating_sub(data_start);
    if end < begin || data_len < end {
        return Err(format!(
            "its bytes {begin}..{end} are not within the file's {data_len} bytes of data: truncated?"
        ));
    }
    if RANK_MAX < raw.shape.len() {
        return Err(format!(
            "it has {} dimensions, at most {RANK_MAX} are known",
            raw.shape.len()
        ));
    }
    // Types that are not read here may be of any width; theirs is checked by nobody and never used.
    if let Some((width, _)) = decoder(&raw.dtype) {
        let n_bytes = raw
            .shape
            .iter()
            .try_fold(width, |n, &dim| n.checked_mul(dim as u64));
        if n_bytes != Some(end - begin) {
            return Err(format!(
                "its shape {:?} of {} does not fill its {} bytes",
                raw.shape,
                raw.dtype,
                end - begin
            ));
        }
    }
    Ok(Entry {
        shard,
        dtype: raw.dtype,
        shape: raw.shape,
        start: data_start + begin,
        len: end - begin,
    })
}
