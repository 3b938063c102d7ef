//! Compiles `proto/` to Rust without protoc, and keeps the descriptors for gRPC reflection.

use prost::Message as _;
use std::error::Error;
use std::path::Path;

const DIR: &str = "../proto";
const PROTOS: [&str; 3] = [
    "crossgate/v1/scoring.proto",
    "tei/v1/tei.proto",
    "inference/grpc_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DIR}");
    // With the files' comments, which a test reads.
    let mut compiler = protox::Compiler::new([DIR])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(PROTOS)?;
    let files = compiler.file_descriptor_set();
    let out_dir = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out_dir).join("crossgate_descriptor.bin"),
        files.encode_to_vec(),
    )?;
    // Methods are served one by one, where messages can be looked at before they are unpacked.
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
