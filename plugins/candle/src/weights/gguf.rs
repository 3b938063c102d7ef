//! Headers of GGUF files: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Written here, because candle's reader keeps all of the metadata, a tokenizer's vocabulary among them, divides by
//! an alignment of 0, and multiplies dimensions unchecked. Every count, length, offset and size is compared with what
//! the file has before anything is allocated, and what nobody here reads is passed over.

use super::kinds::{KINDS, Kind};
use super::{Contents, Entry};
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::RangeInclusive;

const MAGIC: [u8; 4] = *b"GGUF";
/// Version 1 had other lengths and was replaced within weeks.
const VERSIONS: RangeInclusive<u32> = 2..=3;
/// Tensors of the largest model, and keys of its metadata.
const TENSORS_MAX: u64 = 65_536;
const KEYS_MAX: u64 = 65_536;
/// Bytes of a name or of a text that is kept: ggml's own names have 64, transformers' a few more.
const TEXT_BYTES_MAX: u64 = 1_024;
/// Texts of a list that is kept.
const TEXTS_MAX: u64 = 64;
/// Dimensions of a tensor, ggml's bound.
const RANK_MAX: u32 = 4;
/// Lists within lists within a value.
const DEPTH_MAX: u32 = 4;
/// Between the starts of tensors, where the file does not say.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 65_536;

/// Numbers of the types of metadata.
const U16: u32 = 2;
const U32: u32 = 4;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const U64: u32 = 10;

/// What metadata says that matters here.
#[derive(Debug, Default)]
struct Metadata {
    architecture: Option<String>,
    labels: Vec<String>,
    alignment: Option<u64>,
    n_files: Option<u64>,
}

/// A file from its start on.
struct Reader<'a> {
    file: BufReader<&'a File>,
    at: u64,
    len: u64,
}

/// Reads the header of a file of so many bytes. The error is to follow the file's name.
pub(super) fn read(file: &File, len: u64) -> Result<Contents, String> {
    let mut reader = Reader {
        file: BufReader::new(file),
        at: 0,
        len,
    };
    let (n_tensors, n_keys) = reader.start()?;
    let metadata = reader.metadata(n_keys)?;
    if let Some(n_files) = metadata.n_files.filter(|&n_files| 1 < n_files) {
        return Err(format!(
            "it is one of {n_files} parts: join them (llama.cpp's `llama-gguf-split --merge`)"
        ));
    }
    let alignment = metadata.alignment.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || ALIGNMENT_MAX < alignment {
        return Err(format!(
            "general.alignment = {alignment}: not a power of two up to {ALIGNMENT_MAX}"
        ));
    }
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        let name = reader.text("the name of a tensor")?;
        let entry = reader
            .entry(alignment)
            .map_err(|why| format!("{name}: {why}"))?;
        tensors.push((name, entry));
    }
    let data_start = reader.at.next_multiple_of(alignment);
    for (name, entry) in &mut tensors {
        let end = data_start
            .checked_add(entry.start)
            .and_then(|start| start.checked_add(entry.len));
        if end.is_none_or(|end| len < end) {
            return Err(format!(
                "{name}: {} bytes at {} of the data: the file ends before them, it was cut off",
                entry.len, entry.start
            ));
        }
        entry.start += data_start;
    }
    Ok(Contents {
        tensors,
        architecture: metadata.architecture,
        labels: metadata.labels,
    })
}

// === impl Reader ===

impl Reader<'_> {
    /// Magic, version, and the numbers of tensors and of keys.
    fn start(&mut self) -> Result<(u64, u64), String> {
        if self.bytes::<4>("its magic")? != MAGIC {
            return Err("it does not start with GGUF: it is another kind of file".to_owned());
        }
        let version = self.u32("its version")?;
        if VERSIONS.contains(&version.swap_bytes()) {
            return Err("it is big-endian: convert it again, to little-endian".to_owned());
        }
        if !VERSIONS.contains(&version) {
            return Err(format!(
                "version {version} of GGUF; this plugin reads {} and {}",
                VERSIONS.start(),
                VERSIONS.end()
            ));
        }
        let counts = [
            ("tensors", TENSORS_MAX, self.u64("the number of tensors")?),
            ("keys", KEYS_MAX, self.u64("the number of keys")?),
        ];
        for (what, max, n) in counts {
            if max < n {
                return Err(format!("{n} {what}, at most {max}"));
            }
        }
        Ok((counts[0].2, counts[1].2))
    }

    fn metadata(&mut self, n_keys: u64) -> Result<Metadata, String> {
        let mut metadata = Metadata::default();
        for _ in 0..n_keys {
            let key = self.text("a key")?;
            let kind = self.u32(&key)?;
            match (key.as_str(), kind) {
                ("general.architecture", TEXT) => metadata.architecture = Some(self.text(&key)?),
                ("general.alignment", U16 | U32 | U64) => {
                    metadata.alignment = Some(self.number(&key, kind)?);
                }
                ("split.count", U16 | U32 | U64) => {
                    metadata.n_files = Some(self.number(&key, kind)?);
                }
                (labels, LIST) if labels.ends_with(".classifier.output_labels") => {
                    metadata.labels = self.texts(&key)?;
                }
                _ => self.pass_over(&key, kind, 0)?,
            }
        }
        Ok(metadata)
    }

    /// A tensor, whose start is still one within the data.
    fn entry(&mut self, alignment: u64) -> Result<Entry, String> {
        let rank = self.u32("its dimensions")?;
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(format!("{rank} dimensions, not 1 to {RANK_MAX}"));
        }
        let (mut sizes, mut n_values) = (Vec::new(), 1_u64);
        for _ in 0..rank {
            let size = self.u64("its shape")?;
            n_values = n_values
                .checked_mul(size)
                .filter(|&n| n != 0)
                .ok_or_else(|| format!("a side of {size} beside {sizes:?}"))?;
            sizes.push(size as usize);
        }
        let number = self.u32("its type")?;
        let kind = Kind::numbered(number).ok_or_else(|| {
            let names = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>();
            format!(
                "ggml's type number {number}; this plugin reads {}: quantise it to one of them",
                names.join(", ")
            )
        })?;
        // Rows of a matrix are whole blocks.
        let row = kind.n_bytes(sizes[0] as u64);
        let len = row.and_then(|_| kind.n_bytes(n_values)).ok_or_else(|| {
            format!(
                "rows of {} values are not whole blocks of {} ({})",
                sizes[0],
                kind.ggml.block_size(),
                kind.name
            )
        })?;
        let start = self.u64("its place")?;
        if !start.is_multiple_of(alignment) {
            return Err(format!(
                "it starts at {start}, not at a multiple of {alignment}"
            ));
        }
        // ggml writes the innermost side first.
        sizes.reverse();
        Ok(Entry {
            file: 0,
            kind: Ok(kind),
            shape: sizes,
            start,
            len,
        })
    }

    fn texts(&mut self, what: &str) -> Result<Vec<String>, String> {
        let (kind, n) = self.list(what)?;
        if kind != TEXT || TEXTS_MAX < n {
            return Err(format!("{what}: not a list of at most {TEXTS_MAX} texts"));
        }
        (0..n).map(|_| self.text(what)).collect()
    }

    /// The type and the number of a list's values.
    fn list(&mut self, what: &str) -> Result<(u32, u64), String> {
        Ok((self.u32(what)?, self.u64(what)?))
    }

    /// A value that nobody here reads.
    fn pass_over(&mut self, what: &str, kind: u32, depth: u32) -> Result<(), String> {
        if let Some(bytes) = n_bytes(kind) {
            return self.skip(what, bytes);
        }
        match kind {
            TEXT => {
                let n = self.u64(what)?;
                self.skip(what, n)
            }
            LIST if depth < DEPTH_MAX => {
                let (kind, n) = self.list(what)?;
                if let Some(bytes) = n_bytes(kind) {
                    return self.skip(what, n.saturating_mul(bytes));
                }
                // Each takes at least its length, so the file's end ends this.
                for _ in 0..n {
                    self.pass_over(what, kind, depth + 1)?;
                }
                Ok(())
            }
            LIST => Err(format!("{what}: lists within {DEPTH_MAX} lists")),
            _ => Err(format!("{what}: no value has type number {kind}")),
        }
    }

    fn number(&mut self, what: &str, kind: u32) -> Result<u64, String> {
        match kind {
            U16 => self
                .bytes(what)
                .map(|bytes| u16::from_le_bytes(bytes).into()),
            U32 => self.u32(what).map(u64::from),
            _ => self.u64(what),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let n = self.u64(what)?;
        if TEXT_BYTES_MAX < n {
            return Err(format!("{what}: {n} bytes, at most {TEXT_BYTES_MAX}"));
        }
        self.claim(what, n)?;
        let mut bytes = vec![0; n as usize];
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| format!("{what}: not UTF-8"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        self.claim(what, N as u64)?;
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, what: &str, n: u64) -> Result<(), String> {
        self.claim(what, n)?;
        // The file has them, so they are fewer than i64 can say.
        self.file
            .seek_relative(n as i64)
            .map_err(|error| format!("{what}: {error}"))
    }

    /// Moves on by bytes that the file must have.
    fn claim(&mut self, what: &str, n: u64) -> Result<(), String> {
        if self.len - self.at < n {
            return Err(format!(
                "{what}: {n} bytes from {} on, in a file of {}: it was cut off, or its header is wrong",
                self.at, self.len
            ));
        }
        self.at += n;
        Ok(())
    }

    fn fill(&mut self, what: &str, bytes: &mut [u8]) -> Result<(), String> {
        self.file
            .read_exact(bytes)
            .map_err(|error| format!("{what}: {error}"))
    }
}

/// Bytes of a value of a type of metadata that is not a text or a list: u8, i8, u16, i16, u32, i32, f32, bool, then
/// u64, i64 and f64.
fn n_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
