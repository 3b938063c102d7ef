//! DeBERTa's table of relative embeddings, and each layer's projections of it.

use super::{Loader, Tensors};
use crate::arena::{Codes, TileScratch};
use crate::encoder::pointwise::{NormAndEncode, Stream, layer_norm};
use crate::encoder::relative::Tables;
use crate::encoder::relative::offsets::Offsets;
use crate::gemm::Linear;
use crate::gemm::finish::Finish;
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::kernel::scalar::PortableF32;
use crate::model::LoadError;
use crate::quant::narrow::Storage;
use std::sync::Arc;

/// The table of relative embeddings, which all layers project: a row a rank of the offsets.
pub(in crate::model) struct DistanceTable {
    offsets: Arc<Offsets>,
    rows: Vec<f32>,
}

impl Loader<'_> {
    /// A layer's projections of relative positions. `query` and `key_value` serve where the model has
    /// none of their own.
    pub(super) fn relative<F>(
        &self,
        float: F,
        name: &impl Fn(&str) -> String,
        query: &Tensors,
        key_value: &Tensors,
    ) -> Result<Option<Tables>, LoadError>
    where
        F: Kernel<Left = f32, Element = f32>,
    {
        let (hidden, names) = (self.config.hidden, self.names.relative);
        let (Some(kind), Some(table)) = (self.config.relative, &self.distances) else {
            return Ok(None);
        };
        let project = |wanted: bool, own: &str, shared: &Tensors| {
            let own = match (wanted, kind.shared) {
                (false, _) => return Ok(None),
                (true, true) => None,
                (true, false) => Some(self.tensors(&name(own), hidden, hidden, true)?),
            };
            let tensors = own.as_ref().unwrap_or(shared);
            let (weights, bias) = (&tensors.weights[..hidden * hidden], &tensors.bias[..hidden]);
            Ok(Some(projected(float, table.rows.clone(), weights, bias)))
        };
        let keys = project(kind.keys, names.key, key_value)?;
        let queries = project(kind.queries, names.query, query)?;
        Ok(Some(Tables {
            offsets: Arc::clone(&table.offsets),
            head_dim: hidden / self.config.n_heads,
            keys,
            queries,
        }))
    }

    /// Reads the table of relative embeddings, if the model has one, before any layer is read.
    pub(in crate::model) fn make_distances(&mut self) -> Result<(), LoadError> {
        let Some(kind) = &self.config.relative else {
            return Ok(());
        };
        let (hidden, names) = (self.config.hidden, self.names.relative);
        let name = |part: &str| format!("{}{part}", self.names.prefix);
        let (embeddings, norm) = (
            name(&format!("{}.weight", names.embeddings)),
            name(names.norm),
        );
        let rows = [2 * kind.distances.span, hidden];
        let embeddings = self.weights.read(&embeddings, &rows)?;
        let offsets = Offsets::new(&kind.distances, self.config.row_tokens_max());
        let rows = offsets.rows().iter();
        let mut rows: Vec<f32> = rows
            .flat_map(|row| &embeddings[row * hidden..][..hidden])
            .copied()
            .collect();
        if kind.normed {
            let norm = self.norm(&norm, hidden, Stream::Normed)?;
            for row in rows.chunks_exact_mut(hidden) {
                layer_norm(PortableF32, &norm, row);
            }
        }
        let offsets = Arc::new(offsets);
        self.distances = Some(DistanceTable { offsets, rows });
        Ok(())
    }
}

/// `rows · weights + bias`, in f32: the few products of a load that are worth a kernel.
fn projected<F>(float: F, mut rows: Vec<f32>, weights: &[f32], bias: &[f32]) -> Vec<f32>
where
    F: Kernel<Left = f32, Element = f32>,
{
    let n_in = weights.len() / bias.len();
    let n_rows = rows.len() / n_in;
    let mut left = Codes::<F>::new(n_rows, n_in);
    float.vectorize(NormAndEncode::encode(&mut rows, n_in, n_rows, &mut left));
    let mut out = vec![0.0; n_rows * bias.len()];
    Linear {
        left: &left,
        rows: 0..n_rows,
        weights: &Packed::new(float, Storage::Whole, weights, bias, n_in),
        finish: Finish::Store,
        sums: &mut TileScratch::new(Storage::Whole, 0),
        out: &mut out,
    }
    .run(float);
    out
}
