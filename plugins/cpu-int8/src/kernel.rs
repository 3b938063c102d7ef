//! What the engine asks of an instruction set, and the choice of one at run time.
//!
//! ```text
//! out[r][c] = Σ_k left[r][k] · right[k][c]        r < MR rows of activations, c < NR weight columns
//! ```
//!
//! Kernels whose instruction multiplies vectors run the one loop of [`tile`]; their files say only
//! which registers hold `left` and `right` and which instruction multiplies them. Three
//! departures from the usual packed matrix product, each because a cross-encoder allows it:
//!
//! * `k` is not blocked. K ≤ 4096 here, a panel of 16 columns is at most 128 KiB and streams from
//!   L2 at about 14 B a cycle, below what L2 gives. So a tile is finished in registers and no
//!   partial sum is ever stored.
//! * `left` is not packed. The pass that produces a row (layer norm, GELU) writes it row-major in
//!   the kernel's own element, and the tile broadcasts K_STEP neighbours of a row. Packing it by MR
//!   rows would save address arithmetic that the load ports do for nothing.
//! * f32 is a kernel like the others: its elements encode to themselves with scale 1. The encoder
//!   is therefore written once, and attention uses the f32 kernel of the same instruction set, or the
//!   bf16 one where that has one that is faster (AMX).
//!
//! Rejected on the way (measured, AVX2 on Zen 3): `vpmaddubsw` on a+128 saturates and is wrong; the
//! sign trick (`vpsignb`, `vpmaddubsw`, `vpmaddwd`, `vpaddd`) is exact and holds weights in half the
//! bytes, but needs as many instructions, and a second broadcast for |a| (README, "Kernels").

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod lanes;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod peak;
pub mod proof;
pub mod scalar;
#[cfg(target_arch = "aarch64")]
pub mod smmla;
pub mod tile;
#[cfg(target_arch = "x86_64")]
pub mod vnni;

use crate::quant::narrow::Storage;
use crate::quant::{Code, Plain, Sum};
use lanes::Lanes;

/// Rows of the tallest tile of any kernel.
pub const MR_MAX: usize = 32;
/// Columns of the widest tile of any kernel.
pub const NR_MAX: usize = 32;
/// Input features of the widest linear layer, in elements. BERT-large has 4096.
pub const K_MAX: usize = 65_536;

// The worst sum any integer kernel holds is u8 · i8 with a+128 ≤ 255 and |b| ≤ 127.
const _: () = assert!(K_MAX as i64 * 255 * 127 <= i32::MAX as i64);

/// Work that is compiled once for each instruction set: see [`Kernel::vectorize`].
pub trait Op<K: Kernel> {
    /// What the work returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`: only then do they inherit the
    /// instruction set of the function that they are inlined into.
    fn run(self, inside: &Inside<K>) -> Self::Output;
}

/// The proof that code runs within [`Kernel::vectorize`]: only that makes one, and it can't leave.
pub struct Inside<K>(K);

#[allow(unsafe_code)]
impl<K: Kernel> Inside<K> {
    /// # Safety
    /// The caller is `vectorize` of this kernel: whatever the kernel's `multiply` needs is set up.
    unsafe fn new(kernel: K) -> Self {
        Self(kernel)
    }

    /// The kernel.
    #[inline(always)]
    pub fn kernel(&self) -> K {
        self.0
    }
}

#[allow(unsafe_code)] // `multiply` works on pointers: bounds are checked once a tile.
/// A multiplication instruction, its register tile and its element types. A value of the type is
/// the proof that this CPU executes the instruction: only `detect` makes one.
pub trait Kernel: Copy + Send + Sync + 'static {
    /// Architecture, element type and the instruction that does the work.
    const NAME: &'static str;
    /// Rows of a full tile, at most [`MR_MAX`].
    const MR: usize;
    /// Columns of a tile and of a packed panel, at most [`NR_MAX`].
    const NR: usize;
    /// Neighbours along `k` that one instruction multiplies and adds for each column.
    const K_STEP: usize;
    /// Rows of activations and panels are padded along `k` to a multiple of this; a multiple of
    /// K_STEP.
    const K_ALIGN: usize = Self::K_STEP;
    /// Activations are read in groups of this many rows, whatever a tile's height: a buffer ends on
    /// such a group. What stands in rows that nobody asked for does not matter.
    const ROW_GROUP: usize = 1;

    /// Element of the activations.
    type Left: Code;
    /// Element of the packed weights.
    type Right: Code;
    /// Element of the finished sums.
    type Acc: Sum;
    /// The f32 kernel of the same instruction set: the head, and all arithmetic between products.
    type Float: Kernel<Left = f32, Right = f32, Acc = f32, Element = f32, Float = Self::Float>
        + Lanes;
    /// Element of queries, keys, values and attention weights.
    type Element: Plain;
    /// The kernel that multiplies them.
    type Attend: Kernel<Left = Self::Element, Right = Self::Element, Acc = f32>;

    /// The f32 kernel that this CPU has if it has this one.
    fn float(self) -> Self::Float;

    /// The attention kernel that this CPU has if it has this one.
    fn attend(self) -> Self::Attend;

    /// Runs `op` in a function compiled for this instruction set, so that plain loops over arrays
    /// become its vector instructions and `multiply` has what it needs.
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Output;

    /// Ends a call of many [`vectorize`](Self::vectorize)s: gives back what they set up.
    fn rest(self) {}

    /// Computes a tile.
    ///
    /// # Safety
    /// Within [`vectorize`](Self::vectorize) of this kernel, and with a tile that
    /// [`Tile::compute`](tile::Tile::compute) has checked.
    unsafe fn multiply(self, tile: tile::Tile<'_, Self>);
}

/// A piece of code that wants to know the kernel as a type: the one place where a run-time choice
/// becomes a compile-time one.
pub trait Visitor {
    /// What each visit returns.
    type Output;
    /// Called with a kernel that this CPU has.
    fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output;
}

/// The arithmetic a model is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// i8 weights and activations, i32 sums.
    Int8,
    /// The same, with weights held in 4 bits.
    Int4,
    /// bf16 weights and activations, f32 sums.
    Bf16,
    /// f32, with weights held in half precision.
    F16,
    /// f32 throughout.
    F32,
}

impl Dtype {
    /// All of them, the fastest first.
    pub const ALL: [Self; 5] = [Self::Int8, Self::Int4, Self::Bf16, Self::F16, Self::F32];
}

impl Dtype {
    /// The name used in options and descriptions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// How its kernels' weights are held.
    pub fn storage(self) -> Storage {
        match self {
            Self::Int8 | Self::Bf16 | Self::F32 => Storage::Whole,
            Self::Int4 | Self::F16 => Storage::Narrow,
        }
    }
}

/// Visits every kernel of `dtype` that this CPU has, fastest first, until `enough` says so.
fn visit_while<V: Visitor>(
    dtype: Dtype,
    visitor: &mut V,
    mut enough: impl FnMut(V::Output) -> bool,
) {
    macro_rules! offer {
        ($token:expr) => {
            if let Some(kernel) = $token {
                if enough(visitor.visit(kernel)) {
                    return;
                }
            }
        };
    }
    match dtype {
        Dtype::Int8 | Dtype::Int4 => {
            #[cfg(target_arch = "x86_64")]
            {
                offer!(amx::AmxInt8::detect());
                offer!(vnni::Avx512Vnni::detect());
                offer!(vnni::AvxVnni::detect());
                offer!(avx2::Avx2Int8::detect());
            }
            #[cfg(target_arch = "aarch64")]
            {
                offer!(smmla::NeonMatrix::detect());
                offer!(neon::NeonDot::detect());
            }
            offer!(Some(scalar::ScalarInt8));
            offer!(Some(scalar::EmulatedDpbusd));
        }
        Dtype::Bf16 => {
            #[cfg(target_arch = "x86_64")]
            {
                offer!(amx::AmxBf16::detect());
                offer!(avx512::Avx512Bf16::detect());
            }
            offer!(Some(scalar::PortableBf16));
        }
        Dtype::F32 | Dtype::F16 => {
            #[cfg(target_arch = "x86_64")]
            {
                offer!(avx512::Avx512F32::detect());
                offer!(avx2::Avx2F32::detect());
            }
            #[cfg(target_arch = "aarch64")]
            offer!(Some(neon::NeonF32));
            offer!(Some(scalar::PortableF32));
        }
    }
}

/// Visits every kernel of `dtype` that this CPU has, fastest first.
pub fn visit_all<V: Visitor>(dtype: Dtype, visitor: &mut V) -> Vec<V::Output> {
    let mut outputs = Vec::new();
    visit_while(dtype, visitor, |output| {
        outputs.push(output);
        false
    });
    outputs
}

/// Visits the kernel called `name`, or the fastest one if there is no name, if it multiplies right on
/// this CPU ([`proof`]). `None`: this CPU, or this build, has no such kernel for `dtype`.
pub fn visit_one<V: Visitor>(
    dtype: Dtype,
    name: Option<&str>,
    visitor: &mut V,
) -> Option<V::Output> {
    struct Pick<'a, V> {
        name: Option<&'a str>,
        inner: &'a mut V,
    }
    impl<V: Visitor> Visitor for Pick<'_, V> {
        type Output = Option<V::Output>;
        fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
            let wanted = self.name.is_none_or(|name| name == K::NAME);
            (wanted && proof::is_exact(kernel)).then(|| self.inner.visit(kernel))
        }
    }
    let mut picked = None;
    visit_while(
        dtype,
        &mut Pick {
            name,
            inner: visitor,
        },
        |output| {
            picked = output;
            picked.is_some()
        },
    );
    picked
}

/// Names of the kernels of `dtype` that this CPU has, fastest first.
pub fn available(dtype: Dtype) -> Vec<&'static str> {
    struct Name;
    impl Visitor for Name {
        type Output = &'static str;
        fn visit<K: Kernel>(&mut self, _: K) -> &'static str {
            K::NAME
        }
    }
    visit_all(dtype, &mut Name)
}
