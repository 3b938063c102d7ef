//! Copies of golden folders, changed.

use super::golden_dir;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// A copy of a golden folder.
pub fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden_dir(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Rewrites `config.json` with one key set.
pub fn set_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

/// Tensors by name.
pub type Header = BTreeMap<String, Value>;

/// Rewrites `model.safetensors` through `edit`, which gets its header and its data.
pub fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Header, &mut Vec<u8>)) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    edit(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let file = [
        (header.len() as u64).to_le_bytes().as_slice(),
        &header,
        &data,
    ]
    .concat();
    std::fs::write(path, file).unwrap();
}
