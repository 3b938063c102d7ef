//! NVML's values, by a library that stands in for the driver's: it knows two GPUs, and of one of them nothing but that
//! it is there.
#![cfg(all(feature = "nvml", target_os = "linux"))]

use backend_api::DeviceState;
use candle_plugin::nvml::{Gpu, Library};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What NVML's C interface looks like to its callers, as far as it is called. 0 is success, 3 not supported, 6 not found,
/// 7 too little room.
const STAND_IN: &str = r#"
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

#[repr(C)]
pub struct Memory { version: c_uint, total: c_ulonglong, reserved: c_ulonglong, free: c_ulonglong, used: c_ulonglong }
#[repr(C)]
pub struct Rates { gpu: c_uint, memory: c_uint }
#[repr(C)]
pub struct Process { pid: c_uint, used: c_ulonglong, instance: c_uint, compute: c_uint }

const BUSY: usize = 1;

#[unsafe(no_mangle)] pub extern "C" fn nvmlInit_v2() -> c_int { 0 }
#[unsafe(no_mangle)] pub extern "C" fn nvmlShutdown() -> c_int { 0 }
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) -> c_int {
    let number = match unsafe { CStr::from_ptr(uuid) }.to_str() {
        Ok("GPU-00112233-4455-6677-8899-aabbccddeeff") => BUSY,
        Ok("MIG-ffeeddcc-bbaa-9988-7766-554433221100") => BUSY + 1,
        _ => return 6,
    };
    unsafe { *device = number as *mut c_void };
    0
}
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) -> c_int {
    if device as usize != BUSY { return 3 }
    let memory = unsafe { &mut *memory };
    if memory.version != (size_of::<Memory>() as c_uint | 2 << 24) { return 25 }
    (memory.total, memory.reserved, memory.free, memory.used) = (1000, 100, 300, 600);
    0
}
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: *mut c_void, rates: *mut Rates) -> c_int {
    if device as usize != BUSY { return 3 }
    unsafe { *rates = Rates { gpu: 37, memory: 5 } };
    0
}
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetTemperature(device: *mut c_void, _: c_uint, celsius: *mut c_uint) -> c_int {
    if device as usize != BUSY { return 3 }
    unsafe { *celsius = 41 };
    0
}
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: *mut c_void, milliwatts: *mut c_uint) -> c_int {
    if device as usize != BUSY { return 3 }
    unsafe { *milliwatts = 70_500 };
    0
}
#[unsafe(no_mangle)] pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(device: *mut c_void, n: *mut c_uint, all: *mut Process) -> c_int {
    if device as usize != BUSY { return 3 }
    let (n, room) = unsafe { (&mut *n, *n) };
    *n = 2;
    if room < 2 { return 7 }
    let process = |pid, used| Process { pid, used, instance: 0, compute: 0 };
    unsafe { all.write(process(std::process::id() ^ 1, 500)); all.add(1).write(process(std::process::id(), 400)) };
    0
}
"#;

fn stand_in() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, library) = (
        folder.join("nvml.rs"),
        folder.join("libnvidia-ml-stand-in.so"),
    );
    std::fs::write(&source, STAND_IN).expect("the target directory can be written");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-type=cdylib", "-Adead_code", "-o"]);
    let built = rustc
        .arg(&library)
        .arg(&source)
        .status()
        .expect("rustc starts");
    assert!(built.success(), "the stand-in is not built");
    library
}

const BUSY: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];

#[test]
fn what_nvml_knows_is_told_and_nothing_else() {
    let library = Library::load(&stand_in()).expect("the stand-in is a library");
    let busy = DeviceState {
        name: "cuda:3".to_owned(),
        memory_process_bytes: Some(400),
        memory_used_bytes: Some(600),
        memory_total_bytes: Some(1_000),
        utilization: Some(0.37),
        temperature_celsius: Some(41.0),
        power_watts: Some(70.5),
    };
    assert_eq!(library.state(&Gpu::new("cuda:3".to_owned(), BUSY)), busy);
    // A part of a GPU, of which nothing is known; then one that is not there at all.
    let mut other = BUSY;
    other.reverse();
    let part = Gpu::new("cuda:0".to_owned(), other);
    assert_eq!(library.state(&part), part.unknown());
    let missing = Gpu::new("cuda:1".to_owned(), [7; 16]);
    assert_eq!(library.state(&missing), missing.unknown());
    assert_eq!(missing.unknown().name, "cuda:1");
}

#[test]
fn what_is_no_library_is_named() {
    let why = Library::load(Path::new("/nowhere/libnvidia-ml.so.1"))
        .err()
        .expect("it is not there");
    assert!(why.contains("/nowhere/libnvidia-ml.so.1"), "{why}");
}

/// With a driver or without: nothing is made up, and nobody panics.
#[test]
fn a_gpu_that_the_driver_does_not_know_has_a_name_and_nothing_else() {
    let gpu = Gpu::new("cuda:9".to_owned(), [9; 16]);
    let state = Library::of_driver().map_or_else(|| gpu.unknown(), |library| library.state(&gpu));
    assert_eq!(state, gpu.unknown());
}
