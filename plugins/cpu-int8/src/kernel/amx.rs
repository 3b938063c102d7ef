//! AMX on x86-64 (Sapphire Rapids and later): `tdpbssd` for i8, `tdpbf16ps` for bf16.
//!
//! One instruction multiplies 16 rows × 64 B of activations by 64 B × 16 columns of weights into 16
//! × 16 sums, in 16 cycles. The tile is 2 × 2 of those, 32 × 32: four accumulators, two tiles of
//! rows, two of columns, all eight registers. Each step of 64 B along `k` loads four tiles of 1 KiB
//! for four products: 64 B a cycle, just what L1 gives, so operands want to be there. A load that
//! crosses cache lines takes six times as long, hence K_ALIGN of a line.
//!
//! A panel `[k / K_STEP][32][K_STEP]` is what a tile load wants: the first 16 columns are the first
//! 64 B of each 128. Full-range i8 needs no zero point: `tdpbssd` multiplies signed by signed.
//!
//! std has neither the intrinsics nor the detection on stable Rust: hence assembly and `cpuid`.

#![allow(unsafe_code)] // Assembly; the token proves the CPU and the kernel have AMX.

use crate::kernel::avx512::Avx512F32;
use crate::kernel::tile::Tile;
use crate::kernel::{Inside, Kernel, Op};
use crate::quant::Bf16;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::LazyLock;

/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;
/// Rows, and columns of sums, of a tile register.
const ROWS: usize = 16;

/// Eight tiles of 16 rows × 64 B, as `ldtilecfg` reads them: palette 1, bytes a row from byte 16,
/// rows from byte 48.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = ROW_BYTES as u8;
        bytes[48 + tile] = ROWS as u8;
        tile += 1;
    }
    Config(bytes)
};

/// What this CPU and its operating system let us use.
#[derive(Clone, Copy, Default)]
struct Found {
    i8: bool,
    bf16: bool,
}

static FOUND: LazyLock<Found> = LazyLock::new(find);

fn find() -> Found {
    // Leaf 7: EDX bit 22 bf16, 24 tiles, 25 int8 (Intel SDM, CPUID).
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return Found::default();
    }
    let features = __cpuid_count(7, 0).edx;
    let has = |bit: u32| features & (1 << bit) != 0;
    if !has(24) || !os_saves_tiles() {
        return Found::default();
    }
    Found {
        i8: has(25),
        bf16: has(22),
    }
}

/// Whether XCR0 has both tile states (bits 17 and 18) and the system grants this process their use.
fn os_saves_tiles() -> bool {
    let low: u32;
    // SAFETY: the caller has seen OSXSAVE, with which `xgetbv` of register 0 is allowed.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack)) };
    low & (0b11 << 17) == 0b11 << 17 && tiles_permitted()
}

/// Asks Linux for the tile state: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`
/// (Documentation/arch/x86/xstate.rst). Threads that start later have it too.
#[cfg(target_os = "linux")]
fn tiles_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that takes two integers and touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn tiles_permitted() -> bool {
    false
}

/// Sets the eight tiles up. 45 ns, so once for a whole linear layer.
///
/// # Safety
/// The CPU has AMX and the system permits it.
#[inline(always)]
unsafe fn configure() {
    // SAFETY: the caller's; CONFIG is 64 aligned bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
}

/// Frees the tile state: a thread that holds it has 8 KiB more to save at a switch.
///
/// # Safety
/// As [`configure`].
unsafe fn release() {
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nomem, nostack)) };
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_amx<K: Kernel, O: Op<K>>(inside: &Inside<K>, op: O) -> O::Output {
    op.run(inside)
}

/// The 2 × 2 loop over `k`, for one instruction. A tile of at most 16 rows leaves the lower two
/// products out.
macro_rules! multiply {
    ($instruction:literal, $tile:expr) => {{
        let tile = $tile;
        let (left, right, out) = (
            tile.left.as_ptr().cast::<u8>(),
            tile.right.as_ptr().cast::<u8>(),
            tile.out.as_mut_ptr().cast::<u8>(),
        );
        let left_stride = size_of_val(&tile.left[0]) * tile.stride;
        let out_stride = size_of_val(&tile.out[0]) * tile.out_stride;
        // A step is 16 rows of 2 × 64 B of the panel.
        let n_steps = size_of_val(tile.right) / (2 * ROWS * ROW_BYTES);
        if tile.n_rows <= ROWS {
            // SAFETY: the caller's bounds: 16 rows of `n_steps` lines of `left`, the whole panel, 16
            // rows of 32 sums.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm4, [{left} + {left_stride}]",
                    "tileloadd tmm6, [{right} + {right_stride}]",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{right} + {right_stride} + 64]",
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    "add {left}, 64",
                    "add {right}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{out} + {out_stride}], tmm0",
                    "tilestored [{out} + {out_stride} + 64], tmm1",
                    left = inout(reg) left => _,
                    left_stride = in(reg) left_stride,
                    right = inout(reg) right => _,
                    right_stride = in(reg) 2 * ROW_BYTES,
                    out = in(reg) out,
                    out_stride = in(reg) out_stride,
                    n = inout(reg) n_steps => _,
                    options(nostack)
                );
            }
        } else {
            // SAFETY: as above, with 32 rows of both.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm4, [{left} + {left_stride}]",
                    "tileloadd tmm6, [{right} + {right_stride}]",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{right} + {right_stride} + 64]",
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    // A panel comes from L2, whose latency a tile load does not hide: its lines are called
                    // for four steps ahead, beyond its end those of the next panel.
                    ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                    "prefetcht0 [{right} + 8192 + \\line]",
                    "prefetcht0 [{right} + 9216 + \\line]",
                    ".endr",
                    "tileloadd tmm5, [{below} + {left_stride}]",
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "add {left}, 64",
                    "add {below}, 64",
                    "add {right}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{out} + {out_stride}], tmm0",
                    "tilestored [{out} + {out_stride} + 64], tmm1",
                    "tilestored [{out_below} + {out_stride}], tmm2",
                    "tilestored [{out_below} + {out_stride} + 64], tmm3",
                    left = inout(reg) left => _,
                    below = inout(reg) left.wrapping_add(ROWS * left_stride) => _,
                    left_stride = in(reg) left_stride,
                    right = inout(reg) right => _,
                    right_stride = in(reg) 2 * ROW_BYTES,
                    out = in(reg) out,
                    out_below = in(reg) out.wrapping_add(ROWS * out_stride),
                    out_stride = in(reg) out_stride,
                    n = inout(reg) n_steps => _,
                    options(nostack)
                );
            }
        }
    }};
}

macro_rules! kernel {
    ($kernel:ident, $name:literal, $instruction:literal, $element:ty, $acc:ty, $step:literal) => {
        impl Kernel for $kernel {
            const NAME: &'static str = $name;
            const MR: usize = 2 * ROWS;
            const NR: usize = 2 * ROWS;
            const K_STEP: usize = $step;
            const K_ALIGN: usize = ROWS * $step;
            const ROW_GROUP: usize = ROWS;
            type Left = $element;
            type Right = $element;
            type Acc = $acc;
            type Float = Avx512F32;
            type Element = Bf16;
            type Attend = AmxBf16;

            fn float(self) -> Avx512F32 {
                self.0
            }
            fn attend(self) -> AmxBf16 {
                AmxBf16(self.0)
            }
            #[inline(always)]
            fn vectorize<O: Op<Self>>(self, op: O) -> O::Output {
                // SAFETY: the token proves AMX and every feature that `with_amx` enables; this is
                // `vectorize`. All kernels of this file share one configuration, so a nested one
                // disturbs nothing but sums, and those never live across a call.
                unsafe {
                    configure();
                    with_amx(&Inside::new(self), op)
                }
            }
            fn rest(self) {
                // SAFETY: the token proves AMX.
                unsafe { release() }
            }
            #[inline(always)]
            unsafe fn multiply(self, tile: Tile<'_, Self>) {
                multiply!($instruction, tile);
            }
        }
    };
}

/// i8 · i8 → i32.
#[derive(Clone, Copy)]
pub struct AmxInt8(Avx512F32);

/// bf16 · bf16 → f32.
#[derive(Clone, Copy)]
pub struct AmxBf16(Avx512F32);

impl AmxInt8 {
    /// The token, if this CPU has AMX with int8 and, for attention, bf16, and the system permits it.
    pub fn detect() -> Option<Self> {
        detect().filter(|_| FOUND.i8 && FOUND.bf16).map(Self)
    }
}

impl AmxBf16 {
    /// The token, if this CPU has AMX with bf16 and the system permits it.
    pub fn detect() -> Option<Self> {
        detect().filter(|_| FOUND.bf16).map(Self)
    }
}

/// What stands beside the tiles.
fn detect() -> Option<Avx512F32> {
    Avx512F32::detect().filter(|_| std::arch::is_x86_feature_detected!("avx512vnni"))
}

kernel!(AmxInt8, "x86_64-i8-amx-tdpbssd", "tdpbssd", i8, i32, 4);
kernel!(
    AmxBf16,
    "x86_64-bf16-amx-tdpbf16ps",
    "tdpbf16ps",
    Bf16,
    f32,
    2
);
