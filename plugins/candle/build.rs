//! Compiles the kernels in kernels/ for NVIDIA's GPUs, where the feature `cuda` asks for them.
//!
//! nvcc comes from NVCC, from CUDA_HOME or CUDA_PATH, or from PATH. Each file becomes one image: code for the GPUs of
//! CUDA_COMPUTE_CAP (80 unless it says otherwise) and of later ones of the same generation, and PTX, which the driver
//! compiles when it first loads it on any that came later.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
        let started = sources
            .iter()
            .map(|source| start(&nvcc, source, &image(&out, source), capability));
        // All are waited for, also behind one that failed.
        let outcomes: Vec<_> = started.map(|child| child.and_then(wait)).collect();
        outcomes.into_iter().collect::<Result<(), _>>()?;
    }
    let images = sources.iter().map(|source| {
        let (name, image) = (stem(source), image(&out, source));
        format!("    ({name:?}, include_bytes!({image:?})),\n")
    });
    let list = format!(
        "/// Each file's name and its image.\npub(super) const IMAGES: &[(&str, &[u8])] = &[\n{}];\n",
        images.collect::<String>()
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

fn stem(source: &Path) -> String {
    let stem = source.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn image(out: &Path, source: &Path) -> PathBuf {
    out.join(stem(source)).with_extension("fatbin")
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

fn start(nvcc: &Path, source: &Path, image: &Path, capability: u32) -> Result<Child, String> {
    let target =
        |code: &str| format!("-gencode=arch=compute_{capability},code={code}_{capability}");
    let started = Command::new(nvcc)
        .args(["-fatbin", "-std=c++17", "-O3", "-lineinfo"])
        .args([target("sm"), target("compute")])
        .arg("-o")
        .args([image, source])
        .stdin(Stdio::null())
        .spawn();
    started.map_err(|error| {
        format!(
            "{}: {error}: the feature cuda needs CUDA's compiler: install the CUDA Toolkit (12.4 or later) and put nvcc \
             into PATH, or say where it is by CUDA_HOME",
            nvcc.display()
        )
    })
}

fn wait(mut child: Child) -> Result<(), String> {
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("nvcc: {status}: what it says stands above")),
        Err(error) => Err(format!("nvcc: {error}")),
    }
}
