//! Library files before they are plugins: found, looked into, mapped.

use super::Listing;
use backend_api::PluginLibrary;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// What a shared library is called here.
#[cfg(target_os = "macos")]
const EXTENSIONS: [&str; 2] = ["dylib", "so"];
#[cfg(not(target_os = "macos"))]
const EXTENSIONS: [&str; 1] = ["so"];
/// How libraries begin: ELF; Mach-O of 64 bits, for one processor and for several.
const LIBRARY_MAGICS: [&[u8]; 3] = [b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
/// Larger files are no plugins of ours; reading them would only take long.
const IMAGE_BYTES_MAX: u64 = 4 << 30;
/// A folder with more libraries than this is a system folder named by mistake.
const FILES_MAX: usize = 256;

/// The shared libraries in a folder, by name. None is opened for it: opening runs constructors.
pub(super) fn find_in(dir: &Path, listing: Listing) -> Vec<PathBuf> {
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
    if listing == Listing::Named {
        // One that cannot be read is listed, with the reason.
        files.retain(|path| !matches!(look_into(path), Ok(Content::OtherLibrary | Content::Other)));
    }
    files
}

/// The bytes of a file that says that it is one of ours.
///
/// # Errors
/// The file, and what is wrong with it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let named = |what: String| format!("{}: {what}", path.display());
    let bytes = read_whole(path).map_err(named)?;
    let symbol = backend_api::abi::STAMP_SYMBOL;
    match content(&bytes) {
        Content::NamesOurSymbol => Ok(bytes),
        Content::OtherLibrary => Err(named(format!(
            "a library but not a Crossgate plugin: it holds no symbol {symbol}; \
             export_plugin! of backend-api makes it"
        ))),
        Content::Other => Err(named(format!(
            "not a shared library; expected one with the symbol {symbol}, which \
             export_plugin! of backend-api makes"
        ))),
    }
}

/// Maps the library with all its symbols resolved at once and keeps it for ever: `PluginLibrary::load`
/// opens lazily, and a symbol that is missing would then end the process at its first call.
///
/// # Errors
/// The file, and what the dynamic loader or the checks of the interface say.
pub(super) fn open(path: &Path) -> Result<PluginLibrary, String> {
    open_now(path).map_err(|error| {
        format!(
            "{}: not a shared library that can be loaded here: {}",
            path.display(),
            reason(&error)
        )
    })?;
    PluginLibrary::load(path).map_err(|error| error.to_string())
}

/// The error with its sources: what `dlerror` says, such as the symbol that is missing, is in the last.
fn reason(error: &libloading::Error) -> String {
    let first: &dyn Error = error;
    let all = std::iter::successors(Some(first), |&error| error.source());
    let words: Vec<_> = all.map(ToString::to_string).collect();
    let text = words.join(": ");
    // The loader's own words, of glibc and of musl.
    match [
        "cannot open shared object file",
        "Error loading shared library",
    ]
    .iter()
    .any(|words| text.contains(words))
    {
        true => format!(
            "{text}: the plugin needs that library: install it, or name its folder in LD_LIBRARY_PATH"
        ),
        false => text,
    }
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

/// What can be told of a file from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    NamesOurSymbol,
    OtherLibrary,
    Other,
}

fn look_into(path: &Path) -> Result<Content, String> {
    Ok(content(&read_whole(path)?))
}

fn read_whole(path: &Path) -> Result<Vec<u8>, String> {
    let cannot_read = |error: std::io::Error| format!("it cannot be read: {error}");
    let n_bytes = fs::metadata(path).map_err(cannot_read)?.len();
    if IMAGE_BYTES_MAX < n_bytes {
        return Err(format!(
            "{n_bytes} bytes are more than a plugin may have ({IMAGE_BYTES_MAX})"
        ));
    }
    fs::read(path).map_err(cannot_read)
}

fn content(bytes: &[u8]) -> Content {
    let symbol = backend_api::abi::STAMP_SYMBOL.as_bytes();
    if memchr::memmem::find(bytes, symbol).is_some() {
        Content::NamesOurSymbol
    } else if LIBRARY_MAGICS.iter().any(|magic| bytes.starts_with(magic)) {
        Content::OtherLibrary
    } else {
        Content::Other
    }
}
