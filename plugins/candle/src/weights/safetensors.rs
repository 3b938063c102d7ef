//! Headers of safetensors files.

use super::kinds::Kind;
use super::{Contents, Entry, RANK_MAX};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

/// Bytes of the largest header; the `safetensors` crate has the same bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A tensor in a header.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Reads a header of a file of so many bytes, without the tensors that `is_wanted` does not want. The error is to
/// follow the file's name.
pub(super) fn read(
    mut file: &File,
    file_len: u64,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Contents, String> {
    let header = read_header(&mut file, file_len)?;
    let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|error| format!("its header is not valid: {error}"))?;
    let data_start = 8 + header.len() as u64;
    let mut contents = Contents::default();
    for (name, value) in raw {
        if name == "__metadata__" || !is_wanted(&name) {
            continue;
        }
        let entry = entry(value, data_start, file_len).map_err(|why| format!("{name}: {why}"))?;
        contents.tensors.push((name, entry));
    }
    Ok(contents)
}

fn read_header(file: &mut &File, file_len: u64) -> Result<Vec<u8>, String> {
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
fn entry(value: serde_json::Value, data_start: u64, file_len: u64) -> Result<Entry, String> {
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
        file: 0,
        kind: Kind::of_safetensors(&raw.dtype).ok_or(raw.dtype),
        shape: raw.shape,
        start: data_start + start,
        len: end - start,
    })
}
