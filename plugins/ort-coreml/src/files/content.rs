//! A graph's bytes, read once: their hash, whether they are quantised, and the data files that they name.
//!
//! ONNX is a protobuf message. What is asked here stands in it as short tagged texts, which are found without parsing the rest.

use memchr::memmem::{self, Finder};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// Read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// The end of a piece that is looked at again with the next one: more than any text that is searched.
const OVERLAP_BYTES: usize = 8 << 10;
/// The longest name of a data file.
const LOCATION_BYTES_MAX: usize = 4_096;

const _: () = assert!(LOCATION_BYTES_MAX + 64 < OVERLAP_BYTES && OVERLAP_BYTES < PIECE_BYTES);

/// Operators that only quantised graphs have.
const QUANTIZED: [&str; 9] = [
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DequantizeLinear",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QAttention",
    "MatMulNBits",
];
/// The tag of a node's `op_type`: field 4, a text.
const OPERATOR_TAG: u8 = 0x22;
/// An entry of a tensor's `external_data` up to its value's length: the key (field 1) `location`, then field 2.
const LOCATION: &[u8] = b"\x0a\x08location\x12";

/// What a graph and its data files are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Of all bytes: the graph's, then each data file's by name.
    pub hash: String,
    /// Bytes, data files included.
    pub n_bytes: u64,
    /// An operator that only quantised graphs have, if there is one.
    pub quantized: Option<&'static str>,
    /// The data files, beside the graph.
    pub data_files: BTreeSet<String>,
}

/// The operators by which a quantised graph is known, for refusals.
#[must_use]
pub fn quantized_operators() -> String {
    QUANTIZED.join(", ")
}

impl Content {
    /// Reads the graph and its data files through.
    ///
    /// # Errors
    /// Names the file, and what is wrong with it.
    pub fn read(graph: &Path) -> Result<Self, String> {
        let named = |why: String| format!("{}: {why}", graph.display());
        let mut scan = Scan::default();
        let mut hasher = blake3::Hasher::new();
        let mut n_bytes = 0;
        read_pieces(graph, |piece, is_last| {
            scan.look(piece, is_last)?;
            hasher.update(piece.fresh);
            n_bytes += piece.fresh.len() as u64;
            Ok(())
        })
        .map_err(named)?;
        let Scan {
            quantized,
            data_files,
        } = scan;
        let dir = graph.parent().unwrap_or(Path::new(""));
        for name in &data_files {
            if !is_below(name) {
                return Err(named(format!(
                    "its data file {name:?} is not in the graph's own folder"
                )));
            }
            let path = dir.join(name);
            hasher.update(name.as_bytes());
            read_pieces(&path, |piece, _| {
                hasher.update(piece.fresh);
                n_bytes += piece.fresh.len() as u64;
                Ok(())
            })
            .map_err(|why| named(format!("its data file {}: {why}", path.display())))?;
        }
        let hash = hasher.finalize().to_hex()[..16].to_owned();
        Ok(Self {
            hash,
            n_bytes,
            quantized,
            data_files,
        })
    }
}

/// Whether a path leads down only.
fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// A part of a file: `whole` begins with the last bytes of the part before.
struct Piece<'a> {
    whole: &'a [u8],
    fresh: &'a [u8],
}

/// Hands a file's bytes to `each`, in pieces that overlap.
fn read_pieces(
    path: &Path,
    mut each: impl FnMut(&Piece<'_>, bool) -> Result<(), String>,
) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(OVERLAP_BYTES + PIECE_BYTES);
    loop {
        let carried = bytes.len();
        let n_read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut bytes);
        let is_last = n_read.map_err(|error| error.to_string())? < PIECE_BYTES;
        each(
            &Piece {
                whole: &bytes,
                fresh: &bytes[carried..],
            },
            is_last,
        )?;
        if is_last {
            return Ok(());
        }
        bytes.drain(..bytes.len() - OVERLAP_BYTES);
    }
}

/// What was found in the pieces up to now.
#[derive(Default)]
struct Scan {
    quantized: Option<&'static str>,
    data_files: BTreeSet<String>,
}

impl Scan {
    fn look(&mut self, piece: &Piece<'_>, is_last: bool) -> Result<(), String> {
        if self.quantized.is_none() {
            self.quantized = QUANTIZED.into_iter().find(|name| {
                let tagged = [&[OPERATOR_TAG, name.len() as u8], name.as_bytes()].concat();
                memmem::find(piece.whole, &tagged).is_some()
            });
        }
        // What starts in the overlap at the end is found again, whole, with the next piece.
        let end = if is_last {
            piece.whole.len()
        } else {
            piece.whole.len() - OVERLAP_BYTES
        };
        let finder = Finder::new(LOCATION);
        for start in finder
            .find_iter(piece.whole)
            .take_while(|&start| start < end)
        {
            if let Some(name) = text(&piece.whole[start + LOCATION.len()..]) {
                self.data_files.insert(name?);
            }
        }
        Ok(())
    }
}

/// A protobuf text: its length in groups of 7 bits, then its bytes. `None` if what is there is none, by chance.
fn text(bytes: &[u8]) -> Option<Result<String, String>> {
    let (mut len, mut n_bytes) = (0_usize, 0);
    loop {
        let byte = *bytes.get(n_bytes)?;
        len |= usize::from(byte & 0x7f) << (7 * n_bytes);
        n_bytes += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if 2 < n_bytes {
            return None;
        }
    }
    if LOCATION_BYTES_MAX < len {
        return Some(Err(format!(
            "it names a data file in {len} bytes, at most {LOCATION_BYTES_MAX} are read"
        )));
    }
    let text = std::str::from_utf8(bytes.get(n_bytes..n_bytes + len)?).ok()?;
    Some(Ok(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph's bytes around one text, which starts at `at`.
    fn graph(at: usize, text: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = vec![b'.'; at];
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len().max(2 * PIECE_BYTES + 100), b'.');
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn texts_are_found_wherever_they_lie() {
        let data = tempfile::NamedTempFile::new().unwrap();
        let name = data.path().file_name().unwrap().to_str().unwrap();
        let location = [LOCATION, &[name.len() as u8], name.as_bytes()].concat();
        let operator = b"\x22\x0dMatMulInteger";
        let around = |border: usize| (border - 40..border + 1).step_by(20);
        let borders = [PIECE_BYTES - OVERLAP_BYTES, PIECE_BYTES, 2 * PIECE_BYTES];
        for at in borders.into_iter().flat_map(around).chain([0]) {
            let content = Content::read(graph(at, operator).path()).unwrap();
            assert_eq!(content.quantized, Some("MatMulInteger"), "at {at}");
            let content = Content::read(graph(at, &location).path()).unwrap();
            assert_eq!(
                content.data_files,
                BTreeSet::from([name.to_owned()]),
                "at {at}"
            );
            assert_eq!(content.quantized, None);
        }
    }

    #[test]
    fn a_node_that_is_called_like_an_operator_is_none() {
        let content = Content::read(graph(10, b"\x1a\x14MatMulInteger_quants").path()).unwrap();
        assert_eq!(content.quantized, None);
    }

    #[test]
    fn a_data_file_elsewhere_is_refused() {
        for name in ["../secret", "/etc/passwd", ""] {
            let text = [LOCATION, &[name.len() as u8], name.as_bytes()].concat();
            let why = Content::read(graph(10, &text).path()).expect_err(name);
            assert!(why.contains(&format!("{name:?}")), "{why}");
        }
    }

    #[test]
    fn the_hash_is_of_graph_and_data() {
        let dir = tempfile::tempdir().unwrap();
        let (path, data) = (dir.path().join("model.onnx"), dir.path().join("weights"));
        std::fs::write(&path, [LOCATION, b"\x07weights"].concat()).unwrap();
        std::fs::write(&data, "one").unwrap();
        let first = Content::read(&path).unwrap();
        assert_eq!(first.n_bytes, LOCATION.len() as u64 + 8 + 3);
        std::fs::write(&data, "two").unwrap();
        assert_ne!(first.hash, Content::read(&path).unwrap().hash);
        std::fs::remove_file(&data).unwrap();
        let why = Content::read(&path).unwrap_err();
        assert!(
            why.contains("weights") && why.contains("model.onnx"),
            "{why}"
        );
    }
}
