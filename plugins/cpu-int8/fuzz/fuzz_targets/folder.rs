//! A model folder of the fuzzer's making becomes a backend, or a text that says why not: no panic (libFuzzer
//! aborts at one, fence or no fence), no more memory than libFuzzer's limit, no hang. What opens scores a row.
//!
//! The input is a byte of switches and then texts with 0xFF between them, which no text has: config.json and
//! the header of model.safetensors; or config.json, the index, and a header for each shard. The tensors'
//! bytes are the target's, so that an input is 5 KB of what can be wrong and not 200 KB of numbers.

#![no_main]

use backend_api::{OpenRequest, PluginLibrary, RaggedBatch, RowControl};
use cpu_int8::CpuInt8;
use libfuzzer_sys::fuzz_target;
use std::fs::write;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Bytes of tensors in a file; the largest golden file is 200 KB long.
const BODY_BYTES: usize = 200 << 10;
const TOKENS_MAX: u32 = 64;

/// f32, f16 or bf16 of both signs between 2⁻¹⁶ and 2, whichever way they are read.
static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x87 | 0x38
    };
    (0..BODY_BYTES).map(|_| next()).collect()
});
/// Made once: the border's table of functions is never freed, which the leak check would report.
static LIBRARY: LazyLock<PluginLibrary> =
    LazyLock::new(|| PluginLibrary::in_process::<CpuInt8>().unwrap());
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|input: &[u8]| {
    let Some((&switches, texts)) = input.split_first() else {
        return;
    };
    let texts: Vec<&[u8]> = texts.split(|&byte| byte == 0xFF).collect();
    let dir = FOLDER.path();
    for old in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(old.unwrap().path()).unwrap();
    }
    write(dir.join("config.json"), texts[0]).unwrap();
    match &texts[1..] {
        [] => {}
        [header] => tensors(dir, "model.safetensors", header, switches),
        [index, headers @ ..] => {
            write(dir.join("model.safetensors.index.json"), index).unwrap();
            for (i, header) in headers.iter().enumerate().take(9) {
                let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, headers.len());
                tensors(dir, &name, header, switches);
            }
        }
    }
    open_and_score(dir, switches);
});

/// A file with a header. Switches: 2, the header brings its own length; 4, the file is cut.
fn tensors(dir: &Path, name: &str, header: &[u8], switches: u8) {
    let mut bytes = Vec::new();
    if switches & 2 == 0 {
        bytes.extend((header.len() as u64).to_le_bytes());
    }
    bytes.extend(header);
    bytes.extend(&BODY[..if switches & 4 == 0 { BODY_BYTES } else { 999 }]);
    write(dir.join(name), bytes).unwrap();
}

/// Switches: 1, f32 instead of int8; 8, the fastest kernel instead of the one that a sanitizer sees into.
fn open_and_score(dir: &Path, switches: u8) {
    let (dtype, kernel) =
        [("int8", "scalar-i8"), ("f32", "portable-f32")][usize::from(switches & 1)];
    let request = OpenRequest {
        model_dir: dir.to_owned(),
        dtype: dtype.to_owned(),
        options: if switches & 8 == 0 {
            format!("{{\"kernel\":\"{kernel}\"}}")
        } else {
            "{}".to_owned()
        },
        rows_max: 4,
        tokens_max: TOKENS_MAX,
        row_tokens_max: TOKENS_MAX,
        ..OpenRequest::default()
    };
    let Ok(backend) = LIBRARY.open(&request) else {
        return;
    };
    let mut worker = backend.worker().unwrap();
    let limits = worker.limits();
    let n_tokens = limits.row_tokens_max.min(9);
    let ids: Vec<u32> = (0..n_tokens as u32).collect();
    let types = vec![0; ids.len()];
    let wanted = AtomicBool::new(true);
    let controls = [RowControl {
        deadline_us: u64::MAX,
        wanted: &wanted,
    }];
    let offsets = [0, n_tokens as u32];
    let batch = RaggedBatch::check(
        &ids,
        &types,
        &offsets,
        &[],
        &controls,
        &limits,
        Instant::now(),
    )
    .unwrap();
    let (mut logits, mut statuses) = (vec![0.0; worker.n_labels()], [0]);
    worker.score(&batch, &mut logits, &mut statuses).unwrap();
}
