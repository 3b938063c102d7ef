//! Compiles `proto/` to Rust without protoc. The server half is for the tests' look-alike server.

use std::error::Error;

const PROTO: &str = "../proto/crossgate/v1/scoring.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["../proto"])?;
    tonic_prost_build::configure()
        // Methods that nobody measures answer that they are not there.
        .generate_default_stubs(true)
        .compile_fds(files)?;
    Ok(())
}
