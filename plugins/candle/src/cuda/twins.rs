//! What kernels are given, field by field as `kernels/attention.h` and `kernels/pointwise.h` have it. An address is a
//! device pointer; 0 where the header says "if any" and there is none.

use crate::block::activation::Activation;

/// Threads of a block, and values that one moves at a time.
pub(super) const POINTWISE_THREADS: u32 = 256;
pub(super) const VECTOR_VALUES: usize = 8;
pub(super) const POINTWISE_GRID_MAX: usize = 1 << 20;
pub(super) const ATTENTION_THREADS: u32 = 128;
/// Queries of a tile at most.
pub(super) const TILE_QUERIES: usize = 64;
/// Words of a tile.
pub(super) const TILE_WORDS: usize = 5;
/// Widest head.
pub(super) const HEAD_DIM_MAX: usize = 256;
/// Up to this width norms take a warp for a cell, eight cells a block.
pub(super) const WARP_WIDTH_MAX: usize = 1_024;
pub(super) const WARP_CELLS: usize = 8;
/// Heads of a block of `heads`.
pub(super) const HEADS_OF_BLOCK: usize = 32;
pub(super) const NO_WINDOW: u32 = u32::MAX;

/// A weight of 0 says that there is no norm.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct NormParameters {
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) epsilon: f32,
    pub(super) centred: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Embed {
    pub(super) out: u64,
    pub(super) words: u64,
    pub(super) positions: u64,
    pub(super) types: u64,
    pub(super) ids: u64,
    pub(super) position_ids: u64,
    pub(super) type_ids: u64,
    pub(super) norm: NormParameters,
    pub(super) n_cells: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Add {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) bias: u64,
    pub(super) n_cells: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Activate {
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) n_cells: u64,
    pub(super) width: u64,
    pub(super) activation: u32,
    pub(super) unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Gate {
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) n_cells: u64,
    pub(super) width: u64,
    pub(super) activation: u32,
    pub(super) unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) norm: NormParameters,
    pub(super) n_cells: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AddNorm {
    pub(super) out: u64,
    pub(super) sum: u64,
    pub(super) x: u64,
    pub(super) residual: u64,
    pub(super) bias: u64,
    pub(super) norm: NormParameters,
    pub(super) n_cells: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) norms: [NormParameters; 2],
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) positions: u64,
    pub(super) n_cells: u64,
    pub(super) stride: u64,
    pub(super) n_first: u32,
    pub(super) n_second: u32,
    pub(super) dim: u32,
    pub(super) n_pairs: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Pick {
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) indices: u64,
    pub(super) n_out: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Means {
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) starts: u64,
    pub(super) n_rows: u64,
    pub(super) width: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ToF32 {
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) n: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Attention {
    pub(super) q: u64,
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) out: u64,
    pub(super) tiles: u64,
    pub(super) q_bias: u64,
    pub(super) v_bias: u64,
    pub(super) distances: u64,
    pub(super) rows: u64,
    pub(super) by_query: u64,
    pub(super) by_key: u64,
    pub(super) by_query_cell: u64,
    pub(super) by_query_head: u64,
    pub(super) by_key_cell: u64,
    pub(super) by_key_head: u64,
    pub(super) q_stride: u64,
    pub(super) k_stride: u64,
    pub(super) v_stride: u64,
    pub(super) out_stride: u64,
    pub(super) n_tiles: u32,
    pub(super) n_heads: u32,
    pub(super) n_kv: u32,
    pub(super) dim: u32,
    pub(super) distances_reach: u32,
    pub(super) rows_reach: u32,
    pub(super) window: u32,
    pub(super) causal: u32,
    pub(super) scale: f32,
    pub(super) unused: u32,
}

// As the headers assert it.
const _: () = {
    assert!(
        size_of::<NormParameters>() == 24 && size_of::<Embed>() == 96 && size_of::<Add>() == 40
    );
    assert!(size_of::<Activate>() == 40 && size_of::<Gate>() == 48 && size_of::<Norm>() == 56);
    assert!(size_of::<AddNorm>() == 80 && size_of::<Heads>() == 120 && size_of::<Pick>() == 40);
    assert!(size_of::<Means>() == 40 && size_of::<ToF32>() == 24);
    assert!(size_of::<Attention>() == 11 * 8 + 8 * 8 + 10 * 4);
};

/// A nonlinearity's number.
pub(super) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
        Activation::Tanh => 4,
        Activation::Identity => 5,
    }
}
