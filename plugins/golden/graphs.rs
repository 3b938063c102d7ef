//! Folders of models that were exported as graphs. The tests that open those take this file in beside rows.rs.

use super::rows::golden_dir;
use std::path::Path;
use tempfile::TempDir;

/// A folder as users have it: the golden model's config.json, and onnx/ with all that lies in `graphs`.
pub fn folder_with(golden: &str, graphs: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let onnx = dir.path().join("onnx");
    std::fs::create_dir(&onnx).unwrap();
    copy(
        &golden_dir(golden).join("config.json"),
        &dir.path().join("config.json"),
    );
    for entry in std::fs::read_dir(graphs).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &onnx.join(entry.file_name()));
    }
    dir
}

/// The bytes alone: the committed files may be read-only.
pub fn copy(from: &Path, to: &Path) {
    std::fs::write(to, std::fs::read(from).unwrap()).unwrap();
}
