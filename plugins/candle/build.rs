//! Compiles the kernels in kernels/ for NVIDIA's GPUs, where the feature `cuda` asks for them.
//!
//! nvcc comes from NVCC, from CUDA_HOME or CUDA_PATH, or from PATH. Each file becomes code for GPUs of CUDA_COMPUTE_CAP
//! (80 unless it says otherwise) and later ones of the same generation, and PTX, which the driver compiles when it first
//! loads it on any that came later.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Ampere: the first GPUs that have what the kernels use.
const CAPABILITY_MIN: u32 = 80;
const KERNELS: &str = "kernels";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(why) = build() {
        println!("cargo::error={}", why.replace('\n', " "));
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?);
    let (nvcc, capability) = (nvcc(), capability()?);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let sources = sources()?;
    for sources in sources.chunks(jobs.unwrap_or(1).max(1)) {
        std::thread::scope(|scope| {
            let start = |source: &PathBuf| {
                let (nvcc, out) = (&nvcc, &out);
                let source = source.clone();
                scope.spawn(move || compile(nvcc, &source, out, capability))
            };
            let compiled: Vec<_> = sources.iter().map(start).collect();
            compiled.into_iter().try_for_each(|one| match one.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
    }
    let lines = sources.iter().map(|source| {
        let [ptx, cubin] = images(&out, source);
        format!("    [include_bytes!({cubin:?}), include_bytes!({ptx:?})],\n")
    });
    let list = format!(
        "/// Of each file: code, and PTX.\npub(super) const IMAGES: &[[&[u8]; 2]] = &[\n{}];\n",
        lines.collect::<String>()
    );
    let path = out.join("images.rs");
    fs::write(&path, list).map_err(|error| format!("{}: {error}", path.display()))
}

fn sources() -> Result<Vec<PathBuf>, String> {
    let bad = |error: std::io::Error| format!("{KERNELS}: {error}");
    let mut sources = Vec::new();
    for entry in fs::read_dir(KERNELS).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// Where a source's PTX and its code go.
fn images(out: &Path, source: &Path) -> [PathBuf; 2] {
    let stem = out.join(source.file_stem().unwrap_or_default());
    ["ptx", "cubin"].map(|extension| stem.with_extension(extension))
}

/// The compiler: where somebody says that CUDA is, or by its name.
fn nvcc() -> PathBuf {
    if let Some(path) = env::var_os("NVCC") {
        return path.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let mut found = homes.map(|home| Path::new(&home).join("bin/nvcc"));
    found
        .find(|path| path.exists())
        .unwrap_or_else(|| "nvcc".into())
}

fn capability() -> Result<u32, String> {
    let Ok(said) = env::var("CUDA_COMPUTE_CAP") else {
        return Ok(CAPABILITY_MIN);
    };
    match said.parse() {
        Ok(capability) if CAPABILITY_MIN <= capability => Ok(capability),
        _ => Err(format!(
            "CUDA_COMPUTE_CAP = {said:?}: a number from {CAPABILITY_MIN} on is needed, such as 90 for a compute capability \
             of 9.0"
        )),
    }
}

fn compile(nvcc: &Path, source: &Path, out: &Path, capability: u32) -> Result<(), String> {
    let [ptx, cubin] = images(out, source);
    let compute = format!("-arch=compute_{capability}");
    let options = ["-ptx", "-std=c++17", "-O3", &compute];
    run(nvcc, &options, source, &ptx)?;
    // A string of C's: the driver looks for its end.
    let mut text = fs::read(&ptx).map_err(|error| format!("{}: {error}", ptx.display()))?;
    run(
        nvcc,
        &["-cubin", &format!("-arch=sm_{capability}")],
        &ptx,
        &cubin,
    )?;
    text.push(0);
    fs::write(&ptx, text).map_err(|error| format!("{}: {error}", ptx.display()))
}

fn run(nvcc: &Path, options: &[&str], from: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(options).arg("-o").args([to, from]);
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "{}: nvcc: {status}: what it says stands above",
            from.display()
        )),
        Err(error) => Err(format!(
            "{}: {error}: the feature cuda needs CUDA's compiler: install the CUDA Toolkit (12.4 or later) and put nvcc \
             into PATH, or say where it is by CUDA_HOME",
            nvcc.display()
        )),
    }
}
