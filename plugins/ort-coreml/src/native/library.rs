//! Whether a file is ONNX Runtime, and which version. `ort` panics on some libraries, and takes no second one after the first.

#![allow(unsafe_code)] // Opening a library and calling the two functions by which it tells its version.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use ort::sys::OrtApiBase;
use std::error::Error;
use std::ffi::CStr;
use std::path::Path;

/// The version of the runtime's C interface that `ort` is built for here: of release 1.20, and of all since.
pub const API_VERSION: u32 = ort::MINOR_VERSION;

type GetApiBase = unsafe extern "C" fn() -> *const OrtApiBase;

/// The version of the ONNX Runtime at `path` (a bare name is looked up by the system's loader), such as `1.32.0`.
///
/// The file is mapped and stays mapped, whatever comes of it: it may have started threads.
///
/// # Errors
/// Why it is none that this plugin can use, without its path.
pub fn version(path: &Path) -> Result<String, String> {
    // SAFETY: whoever named the file as ONNX Runtime, or put it where that lies, means it to be run; its constructors are trusted
    // as its other code is.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("it cannot be loaded: {}", last(&error)))?;
    // SAFETY: the name is ONNX Runtime's own, and this has been its type since the first release.
    let symbol: Result<Symbol<GetApiBase>, _> = unsafe { library.get(b"OrtGetApiBase\0") };
    let get_api_base = symbol.map(|symbol| *symbol);
    let _mapped_for_ever = library.into_raw();
    let get_api_base =
        get_api_base.map_err(|_| "not ONNX Runtime: it has no OrtGetApiBase".to_owned())?;
    // SAFETY: takes nothing, and the library is mapped. What it returns is null or lives as long as the library.
    let base = unsafe { get_api_base().as_ref() };
    let base = base.ok_or("not ONNX Runtime: OrtGetApiBase returns nothing")?;
    // SAFETY: `base` is ONNX Runtime's; the text is null or one that lives as long as the library.
    let version = unsafe {
        let text = (base.GetVersionString)();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    let version = version.ok_or("not ONNX Runtime: it tells no version")?;
    // SAFETY: takes a number, and returns null for one that it does not know.
    let api = unsafe { (base.GetApi)(API_VERSION) };
    if api.is_null() {
        return Err(format!(
            "it is ONNX Runtime {version}, and 1.{API_VERSION} or newer is needed"
        ));
    }
    Ok(version)
}

/// What the dynamic loader says, such as the symbol that is missing, is in the last source.
fn last(error: &libloading::Error) -> String {
    let first: &dyn Error = error;
    let all = std::iter::successors(Some(first), |&error| error.source());
    all.last().unwrap_or(first).to_string()
}
