//! A layer's attention over packed rows: one product and one kernel, whatever the lengths.

use super::driver::{address, launch, product_by_head, unfilled};
use super::packed::Tiles;
use super::steps::{bias, blocks, gpu, norm_parameters};
use super::twins::{self, ATTENTION_THREADS, HEAD_DIM_MAX, HEADS_OF_BLOCK, NO_WINDOW};
use crate::block::attention::{Attention, Distances, HeadShape};
use crate::block::linear::Linear;
use crate::block::norm::Norm;
use crate::block::relative::Relative;
use crate::rows::Rows;
use candle_core::{Result, Tensor, bail};

/// Columns of the table of relative embeddings come in multiples of this to the tensor cores.
const COLUMNS_MULTIPLE: usize = 8;

/// What one of three layers makes of cells, or some heads of it: in each of a product's cells the values from `first` on.
struct Part {
    product: Tensor,
    first: usize,
}

/// Heads to change, the first of each cell of a product: of queries, of keys, or of queries with keys behind them.
struct Heads<'a> {
    product: &'a Tensor,
    bias: u64,
    /// Those with the first norm, and those behind them with the second.
    n_heads: [usize; 2],
    norms: [Option<&'a Norm>; 2],
    /// Where each cell stands in its row.
    positions: &'a Tensor,
}

/// What a layer's attention looks at, as products, and the biases that are not in them yet.
struct Looks {
    q: Part,
    k: Part,
    v: Part,
    q_bias: u64,
    v_bias: u64,
}

/// What the heads bring together, (queries, heads × dim): `queries` are all cells of x, or one of each row.
pub(crate) fn mix(
    attention: &Attention,
    queries: &Tensor,
    x: &Tensor,
    rows: &Rows,
    distances: Option<&Distances>,
) -> Result<Tensor> {
    let Some(packed) = &rows.packed else {
        bail!("attention on a GPU to rows that are not packed");
    };
    let HeadShape { n_heads, dim, .. } = attention.shape;
    let (n_queries, n_keys) = (queries.dim(0)?, x.dim(0)?);
    let tiles = packed.tiles(n_queries, n_keys)?;
    let positions = [n_queries, n_keys].map(|n_cells| packed.positions(n_cells, rows));
    let looks = Looks::of(attention, queries, x, positions)?;
    let dtype = looks.q.product.dtype();
    let out = unfilled(gpu(x)?, dtype, (n_queries, n_heads * dim))?;
    let mut argument = looks.argument(attention, tiles, &out)?;
    if let Some(distances) = distances {
        add_distances(&mut argument, distances, rows.width)?;
    }
    // They live until the kernel is enqueued.
    let _terms = match &attention.relative {
        Some(relative) => add_terms(&mut argument, relative, &looks, rows.width)?,
        None => [None, None],
    };
    let has_terms = distances.is_some() || attention.relative.is_some();
    let name = kernel(tiles, dim, has_terms)?;
    let grid = (tiles.n * n_heads, ATTENTION_THREADS);
    launch(gpu(x)?, name, dtype, grid, &argument)?;
    Ok(out)
}

// === impl Part ===

impl Part {
    fn address(&self) -> Result<u64> {
        let n_bytes = self.first * self.product.dtype().size_in_bytes();
        Ok(address(&self.product)? + n_bytes as u64)
    }

    /// Values from one cell to the next.
    fn stride(&self) -> Result<usize> {
        self.product.dim(1)
    }
}

// === impl Looks ===

impl Looks {
    /// Queries and keys with their biases, normed and turned where the layer does so; else the kernel adds what it needs.
    fn of(
        attention: &Attention,
        queries: &Tensor,
        x: &Tensor,
        [query_positions, key_positions]: [&Tensor; 2],
    ) -> Result<Self> {
        let HeadShape { n_heads, n_kv, dim } = attention.shape;
        let (q_width, k_width) = (n_heads * dim, n_kv * dim);
        let inputs = &attention.inputs;
        let [query_norm, key_norm] = match &attention.norms {
            Some([query, key]) => [Some(query), Some(key)],
            None => [None, None],
        };
        let is_changed = attention.angles.is_some()
            || attention.norms.is_some()
            || (attention.relative.is_some() && inputs.query.bias().is_some());
        let change = |layer: &Linear, product: &Tensor, n_heads, norms, positions| {
            let heads = Heads {
                product,
                bias: bias(layer.bias(), layer.n_out() as u64)?,
                n_heads,
                norms,
                positions,
            };
            match is_changed {
                true => heads.change(attention),
                false => Ok(()),
            }
        };
        let (query, keys) = match &inputs.together {
            // The last layer has fewer queries than cells, and a decoder looks at others' cells.
            Some(together) if queries.id() == x.id() => {
                let product = together.product(x)?;
                let norms = [query_norm, key_norm];
                change(together, &product, [n_heads, n_kv], norms, key_positions)?;
                ((product.clone(), 0), (product, q_width))
            }
            _ => {
                let (query, key_value) = (&inputs.query, &inputs.key_value);
                let (q, kv) = (query.product(queries)?, key_value.product(x)?);
                change(query, &q, [n_heads, 0], [query_norm; 2], query_positions)?;
                change(key_value, &kv, [n_kv, 0], [key_norm; 2], key_positions)?;
                ((q, 0), (kv, 0))
            }
        };
        let part = |(product, first): &(Tensor, usize), behind| Part {
            product: product.clone(),
            first: first + behind,
        };
        let kv_bias = bias(inputs.key_value.bias(), 2 * k_width as u64)?;
        Ok(Self {
            q: part(&query, 0),
            k: part(&keys, 0),
            v: part(&keys, k_width),
            q_bias: match is_changed {
                true => 0,
                false => bias(inputs.query.bias(), q_width as u64)?,
            },
            v_bias: match kv_bias {
                0 => 0,
                keys => keys + (k_width * size_of::<f32>()) as u64,
            },
        })
    }

    /// What the kernel is given, without terms.
    fn argument(
        &self,
        attention: &Attention,
        tiles: &Tiles,
        out: &Tensor,
    ) -> Result<twins::Attention> {
        let HeadShape { n_heads, n_kv, dim } = attention.shape;
        let stride = |part: &Part| -> Result<u64> { Ok(part.stride()? as u64) };
        Ok(twins::Attention {
            q: self.q.address()?,
            k: self.k.address()?,
            v: self.v.address()?,
            out: address(out)?,
            tiles: address(&tiles.words)?,
            q_bias: self.q_bias,
            v_bias: self.v_bias,
            q_stride: stride(&self.q)?,
            k_stride: stride(&self.k)?,
            v_stride: stride(&self.v)?,
            out_stride: (n_heads * dim) as u64,
            n_tiles: tiles.n as u32,
            n_heads: n_heads as u32,
            n_kv: n_kv as u32,
            dim: dim as u32,
            window: attention.window.map_or(NO_WINDOW, |window| window as u32),
            causal: attention.causal.into(),
            scale: attention.scale,
            ..twins::Attention::default()
        })
    }
}

/// What distances add to scores.
fn add_distances(
    argument: &mut twins::Attention,
    distances: &Distances,
    width: usize,
) -> Result<()> {
    let n_values = argument.n_heads as usize * (2 * distances.reach - 1);
    if distances.reach < width || distances.table.elem_count() != n_values {
        bail!(
            "rows of {width} tokens, and distances of {}",
            distances.reach
        );
    }
    argument.distances = address(&distances.table)?;
    argument.distances_reach = distances.reach as u32;
    Ok(())
}

/// The least kernel that is wide enough.
fn kernel(tiles: &Tiles, dim: usize, has_terms: bool) -> Result<&'static str> {
    if HEAD_DIM_MAX < dim {
        bail!("heads of {dim} values: the kernels take up to {HEAD_DIM_MAX}");
    }
    Ok(match (tiles.of_one, has_terms, dim) {
        (true, _, _) => "attention_one",
        (false, false, ..=32) => "attention_32",
        (false, false, ..=64) => "attention_64",
        (false, false, ..=128) => "attention_128",
        (false, false, _) => "attention_256",
        (false, true, ..=32) => "attention_terms_32",
        (false, true, ..=64) => "attention_terms_64",
        (false, true, ..=128) => "attention_terms_128",
        (false, true, _) => "attention_terms_256",
    })
}

// === impl Heads ===

impl Heads<'_> {
    /// Adds the bias, norms heads and turns them, where they lie.
    fn change(&self, attention: &Attention) -> Result<()> {
        let dim = attention.shape.dim;
        let (n_cells, stride) = self.product.dims2()?;
        let angles = attention.angles.as_deref();
        let [cos, sin] = match angles {
            Some(angles) => [address(&angles.tables[0])?, address(&angles.tables[1])?],
            None => [0, 0],
        };
        let [first, second] = self.norms.map(|norm| norm_parameters(norm, dim as u64));
        let [n_first, n_second] = self.n_heads;
        let argument = twins::Heads {
            x: address(self.product)?,
            bias: self.bias,
            norms: [first?, second?],
            cos,
            sin,
            positions: address(self.positions)?,
            n_cells: n_cells as u64,
            stride: stride as u64,
            n_first: n_first as u32,
            n_second: n_second as u32,
            dim: dim as u32,
            n_pairs: angles.map_or(0, |angles| angles.n_pairs as u32),
        };
        let n_heads = n_cells * (n_first + n_second);
        let grid = blocks(n_heads.div_ceil(HEADS_OF_BLOCK));
        let dtype = self.product.dtype();
        launch(gpu(self.product)?, "heads", dtype, grid, &argument)
    }
}

/// DeBERTa's terms, of the rows of the table that distances below `width` look up.
fn add_terms(
    argument: &mut twins::Attention,
    relative: &Relative,
    looks: &Looks,
    width: usize,
) -> Result<[Option<Tensor>; 2]> {
    let lookup = &relative.lookup;
    if lookup.reach < width {
        bail!("rows of {width} tokens, and distances of {}", lookup.reach);
    }
    let (first, n_rows) = lookup.range(width);
    let end = first + n_rows;
    let first = first / COLUMNS_MULTIPLE * COLUMNS_MULTIPLE;
    let columns = |table: &Tensor| -> Result<(usize, usize)> {
        let end = end.next_multiple_of(COLUMNS_MULTIPLE).min(table.dim(2)?);
        Ok((first, end - first))
    };
    argument.rows = address(&lookup.table)?;
    argument.rows_reach = lookup.reach as u32;
    // Kernels count rows from the table's first on, so the matrices are said to begin that much earlier.
    let origin = |terms: &Tensor| -> Result<u64> {
        let before = (first * terms.dtype().size_in_bytes()) as u64;
        Ok(address(terms)?.wrapping_sub(before))
    };
    let strides = |terms: &Tensor| -> Result<(u64, u64)> {
        let (_, n_cells, n_columns) = terms.dims3()?;
        Ok((n_columns as u64, (n_cells * n_columns) as u64))
    };
    let terms_of = |part: &Part, table: Option<&Tensor>| -> Result<Option<Tensor>> {
        let Some(table) = table else {
            return Ok(None);
        };
        product_by_head(&part.product, part.first, table, columns(table)?).map(Some)
    };
    let by_query = terms_of(&looks.q, relative.keys.as_ref())?;
    if let Some(terms) = &by_query {
        argument.by_query = origin(terms)?;
        (argument.by_query_cell, argument.by_query_head) = strides(terms)?;
    }
    let by_key = terms_of(&looks.k, relative.queries.as_ref())?;
    if let Some(terms) = &by_key {
        argument.by_key = origin(terms)?;
        (argument.by_key_cell, argument.by_key_head) = strides(terms)?;
    }
    Ok([by_query, by_key])
}
