//! A model is the same on however many threads it was loaded, and so is the error of one that cannot
//! be loaded.

mod common;

use backend_api::{Fault, FaultCode, OpenRequest};
use common::{GOLDEN, golden_dir, golden_rows, open, request, score_bits};
use cpu_int8::kernel::{Dtype, available};
use std::path::Path;

const N_THREADS: [usize; 4] = [1, 2, 3, 8];

fn on_threads(dir: &Path, dtype: &str, kernel: &str, n_threads: usize) -> OpenRequest {
    let options = format!("{{\"kernel\":\"{kernel}\",\"load_threads\":{n_threads}}}");
    request(dir, dtype, &options)
}

#[test]
fn a_model_does_not_depend_on_the_threads_that_load_it() {
    for name in GOLDEN {
        let rows = golden_rows(name);
        let rows: Vec<_> = rows.iter().collect();
        for dtype in Dtype::ALL {
            let kernel = available(dtype)[0];
            let of = |n_threads| {
                let request = on_threads(&golden_dir(name), dtype.name(), kernel, n_threads);
                let backend = open(&request).unwrap();
                let mut worker = backend.worker().unwrap();
                let description = backend.description();
                let facts = (description.numerics_id.clone(), description.memory_bytes);
                (facts, score_bits(&mut worker, &rows))
            };
            let first = of(N_THREADS[0]);
            for n_threads in &N_THREADS[1..] {
                assert!(of(*n_threads) == first, "{name}, {kernel}: {n_threads}");
            }
        }
    }
}

/// Several layers and the table of words are wrong: the first in order is named, whoever was faster.
#[test]
fn the_first_error_is_the_one_that_is_told() {
    let golden = golden_dir("modernbert");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden.join("config.json"), dir.path().join("config.json")).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
    for (tensor, expected) in [
        ("model.layers.2.mlp.Wo.weight", "value 5"),
        ("model.layers.1.attn.Wo.weight", "value 5"),
        ("model.layers.1.attn.Wqkv.weight", "value 5"),
        ("model.embeddings.tok_embeddings.weight", "value 5"),
    ] {
        spoil(&mut bytes, tensor, 5);
        std::fs::write(&path, &bytes).unwrap();
        for _ in 0..5 {
            for n_threads in N_THREADS {
                let fault = refused(&on_threads(dir.path(), "int8", "scalar-i8", n_threads));
                assert_eq!(fault.code, FaultCode::BadModel, "{fault}");
                let names = fault.text.contains(tensor) && fault.text.contains(expected);
                assert!(names, "{n_threads}: {fault}, not {tensor}");
            }
        }
    }
}

/// Makes a value NaN.
fn spoil(file: &mut [u8], tensor: &str, value: usize) {
    let (len, rest) = file.split_first_chunk_mut::<8>().unwrap();
    let (header, data) = rest.split_at_mut(u64::from_le_bytes(*len) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let entry = &header[tensor];
    let nan: &[u8] = match entry["dtype"].as_str().unwrap() {
        "F32" => &f32::NAN.to_le_bytes(),
        _ => &[0xFF, 0xFF],
    };
    let start = entry["data_offsets"][0].as_u64().unwrap() as usize;
    data[start + value * nan.len()..][..nan.len()].copy_from_slice(nan);
}

#[track_caller]
fn refused(request: &OpenRequest) -> Fault {
    match open(request) {
        Ok(_) => panic!("accepted"),
        Err(fault) => fault,
    }
}

#[test]
fn a_number_of_threads_has_bounds() {
    let dir = golden_dir("bert");
    for wrong in [0, 65] {
        let fault = refused(&on_threads(&dir, "int8", "scalar-i8", wrong));
        assert_eq!(fault.code, FaultCode::BadRequest);
        let words = format!("load_threads = {wrong}: from 1 to 64");
        assert!(fault.text.contains(&words), "{fault}");
    }
    open(&on_threads(&dir, "int8", "scalar-i8", 64)).unwrap();
}

/// A file that is cut while it is open is an error of the read, not the end of the process: what a
/// mapped file would be.
#[test]
fn a_file_that_shrinks_is_an_error() {
    use cpu_int8::model::weights::Weights;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(golden_dir("bert").join("model.safetensors"), &path).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let name = "classifier.weight";
    let shape = weights.shape(name).unwrap().to_vec();
    weights.read(name, &shape).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1_000).unwrap();
    let error = weights.read(name, &shape).unwrap_err().to_string();
    assert!(error.contains(name), "{error}");
    assert!(error.contains("model.safetensors"), "{error}");
}
