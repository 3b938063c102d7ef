//! Library files before they are plugins: found, looked into, mapped.

use backend_api::PluginLibrary;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::fs;
use std::path::{Path, PathBuf};

/// What a shared library is called here.
#[cfg(target_os = "macos")]
const EXTENSIONS: [&str; 2] = ["dylib", "so"];
#[cfg(not(target_os = "macos"))]
const EXTENSIONS: [&str; 1] = ["so"];
/// Larger files are no plugins of ours; reading them would only take long.
const IMAGE_BYTES_MAX: u64 = 4 << 30;
/// A folder with more libraries than this is a system folder named by mistake.
const FILES_MAX: usize = 256;

/// The shared libraries in a folder that carry the name of our symbol, by name. Libraries are not
/// opened for it: a folder beside the program may hold others, and opening runs their constructors.
pub fn find_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let is_library = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
            && path.is_file()
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_library)
        .collect();
    files.sort();
    files.truncate(FILES_MAX);
    files.retain(|path| names_our_symbol(path).unwrap_or(true));
    files
}

/// Maps the library with all its symbols resolved at once and keeps it for ever: `PluginLibrary::load`
/// opens lazily, and a symbol that is missing would then end the process at its first call.
///
/// # Errors
/// The file, and what the dynamic loader says.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let named = |what: String| format!("{}: {what}", path.display());
    let size = fs::metadata(path)
        .map_err(|error| named(error.to_string()))?
        .len();
    if IMAGE_BYTES_MAX < size {
        return Err(named(format!(
            "{size} bytes are more than a plugin may have ({IMAGE_BYTES_MAX})"
        )));
    }
    if !names_our_symbol(path).map_err(|error| named(error.to_string()))? {
        return Err(named(format!(
            "not a Crossgate plugin: it holds no symbol {}",
            backend_api::abi::STAMP_SYMBOL
        )));
    }
    // The dynamic loader trusts a file's headers: a truncated one would end the process by SIGBUS.
    PluginLibrary::check_file(path).map_err(|error| error.to_string())?;
    open_now(path).map_err(|error| {
        named(format!(
            "not a shared library that can be loaded here: {error}"
        ))
    })
}

#[allow(unsafe_code)]
fn open_now(path: &Path) -> Result<(), libloading::Error> {
    // SAFETY: the file names our symbol, so whoever put it into the plugin folder means it to be run;
    // its constructors are trusted as its other code is.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
    // Unloading a Rust library is not sound: thread-locals and statics may still be in use.
    let _mapped_for_ever = library.into_raw();
    Ok(())
}

fn names_our_symbol(path: &Path) -> std::io::Result<bool> {
    let symbol = backend_api::abi::STAMP_SYMBOL.as_bytes();
    Ok(memchr::memmem::find(&fs::read(path)?, symbol).is_some())
}
