//! What the `tokenizers` library does alone, for comparison with the whole server: `encode_batch_fast` of
//! every pair of a workload, on all cores, after one pass to warm up.
//!
//! ```text
//! cargo bench -p gateway --bench tokenizers -- MODEL_DIR WORKLOAD.jsonl [ROUNDS]
//! ```
#![allow(clippy::print_stdout)] // A figure on stdout is what it is for.

use serde_json::Value;
use std::time::Instant;
use tokenizers::{EncodeInput, Tokenizer, TruncationParams};

// As the server has it: a fifth of a tokenizer's time is the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tokens of a row, as of most models.
const ROW_TOKENS_MAX: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // `cargo bench` adds a flag of its own.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (Some(model), Some(workload)) = (args.next(), args.next()) else {
        println!(
            "usage: cargo bench -p gateway --bench tokenizers -- MODEL_DIR WORKLOAD.jsonl [ROUNDS]"
        );
        return Ok(());
    };
    let n_rounds: usize = args.next().map_or(Ok(7), |text| text.parse())?;
    let mut tokenizer = Tokenizer::from_file(format!("{model}/tokenizer.json"))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(Some(TruncationParams {
        max_length: ROW_TOKENS_MAX,
        ..TruncationParams::default()
    }))?;
    let pairs = pairs(&std::fs::read_to_string(workload)?)?;
    let mut rates = Vec::with_capacity(n_rounds);
    let mut n_tokens = 0;
    for round in 0..=n_rounds {
        let inputs: Vec<EncodeInput<'_>> = pairs
            .iter()
            .map(|(query, document)| (query.as_str(), document.as_str()).into())
            .collect();
        let started = Instant::now();
        let encodings = tokenizer.encode_batch_fast(inputs, true)?;
        let took = started.elapsed();
        n_tokens = encodings.iter().map(|encoding| encoding.len()).sum();
        if 0 < round {
            rates.push(pairs.len() as f64 / took.as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    let shown: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    println!(
        "{:.0} pairs/s (median of {n_rounds}: {}), {} pairs of {:.1} tokens",
        rates[rates.len() / 2],
        shown.join(" "),
        pairs.len(),
        n_tokens as f64 / pairs.len() as f64,
    );
    Ok(())
}

/// Every query with each of its documents.
fn pairs(workload: &str) -> Result<Vec<(String, String)>, serde_json::Error> {
    let mut pairs = Vec::new();
    for line in workload.lines() {
        let request: Value = serde_json::from_str(line)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let query = text(&request["query"]);
        let documents = request["documents"].as_array();
        pairs.extend(
            documents
                .into_iter()
                .flatten()
                .map(|document| (query.clone(), text(document))),
        );
    }
    Ok(pairs)
}
