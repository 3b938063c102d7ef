//! Where ONNX Runtime is: looked for once, in a stated order, and kept for the process's life.

use crate::native;
use backend_api::guard::fence;
use backend_api::{Fault, FaultCode};
use ort::environment::Environment;
use ort::logging::LogLevel;
use std::cmp::Reverse;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Names ONNX Runtime's library where a folder does not tell.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// How many folders above the program may hold `onnxruntime/`: in a source tree the program lies in target/release, a test in
/// target/debug/deps.
const PARENTS_MAX: usize = 3;

/// How the library is called for the system's loader, which looks in its own folders.
#[cfg(target_os = "macos")]
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.1.dylib", "libonnxruntime.dylib"];
#[cfg(not(target_os = "macos"))]
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so.1", "libonnxruntime.so"];

/// Folders that hold a `lib/python3.*` of their own, beside the active environment.
const PYTHON_PREFIXES: [&str; 4] = ["/usr/local", "/usr", "/opt/homebrew", "/opt/conda"];

/// An ONNX Runtime in this process.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// What sessions are made in.
    pub environment: Environment,
    /// Its version: `1.32.0`.
    pub version: String,
    /// The library's file; a bare name if the system's loader found it.
    pub path: PathBuf,
}

/// A file that may be ONNX Runtime, and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    by: &'static str,
}

/// `ort` loads one library in a process and one environment, whichever comes first.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// The ONNX Runtime of this process, loaded by the first call that finds one. `option` is the file that the plugin's options name,
/// `plugin_dir` the folder in which the plugin was found, empty where nobody knows.
///
/// # Errors
/// `BadRequest` if the options name a file that is none, or another than the one that was loaded before; else `Unsupported` with
/// every place that was looked at, and why each is none.
pub fn load(option: Option<&Path>, plugin_dir: &Path) -> Result<Runtime, Fault> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*loaded {
        return match option {
            Some(path) if !is_same(path, &runtime.path) => Err(Fault::bad_request(format!(
                "options.library = {}: this process has loaded {} already, and takes no second ONNX Runtime; start it again",
                path.display(),
                runtime.path.display()
            ))),
            _ => Ok(runtime.clone()),
        };
    }
    let runtime = find(option, plugin_dir)?;
    *loaded = Some(runtime.clone());
    Ok(runtime)
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn find(option: Option<&Path>, plugin_dir: &Path) -> Result<Runtime, Fault> {
    let mut refusals = String::new();
    for Candidate { path, by } in candidates(option, plugin_dir) {
        match open(&path) {
            Ok(runtime) => return Ok(runtime),
            Err(why) => {
                let _ = write!(refusals, "; {} ({by}): {why}", path.display());
            }
        }
    }
    let code = if option.is_some() {
        FaultCode::BadRequest
    } else {
        FaultCode::Unsupported
    };
    let looked = "options.library, ORT_DYLIB_PATH, libonnxruntime beside the plugin and in onnxruntime/ there, beside the program and \
                  in onnxruntime/ there and above, Python's site-packages, the system's loader";
    Err(Fault::new(
        code,
        format!(
            "no ONNX Runtime was found{refusals}. `make onnxruntime` fetches one, `pip install onnxruntime` installs one; \
             looked for in this order: {looked}"
        ),
    ))
}

/// Loads the library at `path`.
fn open(path: &Path) -> Result<Runtime, String> {
    let version = native::library::version(path)?;
    // Fenced: what `ort` finds wrong with a library beyond that, it says by a panic.
    let environment = fence(|| {
        let builder = ort::init_from(path).map_err(|error| Fault::internal(error.to_string()))?;
        let builder = builder.with_name("crossgate").with_telemetry(false);
        let environment = builder
            .build()
            .map_err(|error| Fault::internal(error.to_string()))?;
        // Errors come back as values. Its own lines on stderr would be among the server's.
        environment.set_log_level(LogLevel::Fatal);
        Ok(environment)
    });
    Ok(Runtime {
        environment: environment.map_err(|fault| fault.text)?,
        version,
        path: path.to_owned(),
    })
}

/// The files to try, best first. Who names a file means that one: nothing else is tried then.
fn candidates(option: Option<&Path>, plugin_dir: &Path) -> Vec<Candidate> {
    let only = |path: PathBuf, by| vec![Candidate { path, by }];
    if let Some(path) = option {
        return only(path.to_owned(), "options.library");
    }
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return only(path.into(), VARIABLE);
    }
    let mut found = Vec::new();
    let mut add = |dir: &Path, by| {
        found.extend(
            libraries_in(dir)
                .into_iter()
                .map(|path| Candidate { path, by }),
        );
    };
    if !plugin_dir.as_os_str().is_empty() {
        add(plugin_dir, "beside the plugin");
        add(&plugin_dir.join("onnxruntime"), "beside the plugin");
    }
    let program = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    if let Some(dir) = program.as_deref().and_then(Path::parent) {
        add(dir, "beside the program");
        for above in dir.ancestors().take(PARENTS_MAX) {
            add(&above.join("onnxruntime"), "beside the program");
        }
    }
    for prefix in python_prefixes() {
        for packages in site_packages(&prefix) {
            add(&packages.join("onnxruntime/capi"), "a Python package");
        }
    }
    let by = "the system's loader";
    found.extend(SYSTEM_NAMES.map(|name| Candidate {
        path: name.into(),
        by,
    }));
    found
}

/// Files called `libonnxruntime.so`, `libonnxruntime.so.1.32.0` or `libonnxruntime.1.32.0.dylib` in a folder, newest first.
fn libraries_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = library_version(path.file_name()?.to_str()?)?;
            path.is_file().then_some((Reverse(version), path))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The version in a library's name, empty where there is none; `None` for another file.
fn library_version(name: &str) -> Option<Vec<u32>> {
    let rest = name.strip_prefix("libonnxruntime.")?;
    let version = match rest.strip_suffix("dylib") {
        Some(version) => version.trim_end_matches('.'),
        None => rest.strip_prefix("so")?.trim_start_matches('.'),
    };
    let numbers = version.split('.').filter(|number| !number.is_empty());
    numbers.map(|number| number.parse().ok()).collect()
}

/// The active environment, the user's own packages, the usual places.
fn python_prefixes() -> Vec<PathBuf> {
    let named = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(std::env::var_os);
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let usual = PYTHON_PREFIXES.map(PathBuf::from);
    named.map(PathBuf::from).chain(own).chain(usual).collect()
}

/// Python's folders for packages below a prefix; Debian calls its own `dist-packages`. Newest Python first.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else {
        return Vec::new();
    };
    let mut pythons: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.strip_prefix("python3")?;
            let minor: u32 = version.trim_start_matches('.').parse().unwrap_or(0);
            Some((Reverse(minor), path))
        })
        .collect();
    pythons.sort();
    pythons
        .into_iter()
        .flat_map(|(_, python)| ["site-packages", "dist-packages"].map(|name| python.join(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_libraries() {
        let cases: [(&str, Option<&[u32]>); 8] = [
            ("libonnxruntime.so", Some(&[])),
            ("libonnxruntime.so.1", Some(&[1])),
            ("libonnxruntime.so.1.32.0", Some(&[1, 32, 0])),
            ("libonnxruntime.1.32.0.dylib", Some(&[1, 32, 0])),
            ("libonnxruntime.dylib", Some(&[])),
            ("libonnxruntime_providers_shared.so", None),
            ("libonnxruntime.so.old", None),
            ("libonnxruntime.a", None),
        ];
        for (name, expected) in cases {
            assert_eq!(library_version(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn the_newest_library_of_a_folder_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "libonnxruntime.so",
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.32.0",
            "other.so",
        ];
        for name in names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = libraries_in(dir.path());
        let found: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(found, [names[2], names[1], names[0]]);
    }

    #[test]
    fn packages_of_the_newest_python_come_first() {
        let prefix = tempfile::tempdir().unwrap();
        for name in ["python3.9", "python3.11", "python3", "node"] {
            std::fs::create_dir_all(prefix.path().join("lib").join(name)).unwrap();
        }
        let found = site_packages(prefix.path());
        assert_eq!(found.len(), 6);
        assert_eq!(found[0], prefix.path().join("lib/python3.11/site-packages"));
        assert_eq!(found[3], prefix.path().join("lib/python3.9/dist-packages"));
    }

    #[test]
    fn who_is_named_is_the_only_one() {
        let named = Path::new("/some/libonnxruntime.so");
        let found = candidates(Some(named), Path::new("/plugins"));
        assert_eq!(
            found,
            [Candidate {
                path: named.to_owned(),
                by: "options.library"
            }]
        );
    }
}
