//! Compiles `proto/` to Rust without protoc, and keeps the descriptors for gRPC reflection.

use prost::Message as _;
use std::error::Error;
use std::path::Path;

const PROTO: &str = "../proto/crossgate/v1/scoring.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["../proto"])?;
    let out_dir = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out_dir).join("crossgate_descriptor.bin"),
        files.encode_to_vec(),
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
