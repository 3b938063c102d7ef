//! DeBERTa-v2 and v3: scores with terms of relative positions; embeddings may be projected.

use super::bert::wanted;
use crate::block::attention::{Attention, HeadShape};
use crate::block::embedding::{Embeddings, PositionRule};
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer};
use crate::block::linear::Linear;
use crate::block::norm::Norm;
use crate::block::relative::{Buckets, Lookup, Relative};
use crate::config::{Config, bad, unsupported};
use crate::loader::{Loader, made};
use crate::model::{Model, Sizes};
use crate::raw::RawLinear;
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Device, Result as Computed, Tensor};
use serde_json::json;
use std::sync::Arc;

/// Half of the rows that a table of relative embeddings may have: 512 is the most that exists. Its rows
/// are projected for each layer, so a large one would make much of a small file.
const SPAN_MAX: usize = 2_048;

struct Deberta {
    embeddings: Embeddings,
    project: Option<Linear>,
    /// Behind the projection.
    norm: Norm,
    layers: Vec<Layer>,
    head: Head,
    sizes: Sizes,
}

impl Model for Deberta {
    fn forward(&self, rows: &Rows) -> Computed<Tensor> {
        let mut x = self.embeddings.forward(rows)?;
        if let Some(project) = &self.project {
            x = project.forward(&x)?;
        }
        x = self.norm.forward(&x)?;
        for (layer, wanted) in wanted(&self.layers) {
            x = layer.post(&x, rows, None, wanted)?;
        }
        self.head.forward(&x)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn position_rule(&self) -> PositionRule {
        self.embeddings.position_rule()
    }
}

/// What a family of layers shares.
struct Shape {
    hidden: usize,
    n_heads: usize,
    epsilon: f32,
    /// Terms of a score, whether computed or not: what it is divided by grows with them.
    score_terms: usize,
    distances: Option<Distances>,
}

/// The terms beyond the product of query and key, and what they are made from.
struct Distances {
    lookup: Arc<Lookup>,
    /// The table, normed: (2 · span, hidden).
    table: Tensor,
    /// Whether queries meet it ("c2p").
    keys: bool,
    /// Whether keys do ("p2c").
    queries: bool,
    /// Whether tokens' projections serve it, too.
    shared: bool,
}

pub(super) fn open(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    if let Some(size @ 1..) = config.integer("conv_kernel_size")? {
        let known = "DeBERTas without a convolution";
        return Err(unsupported("conv_kernel_size", &json!(size), known));
    }
    let hidden = config.width(&["hidden_size"])?;
    let n_heads = config.n_heads(&["num_attention_heads"], None)?;
    let dim = config.head_dim(hidden, n_heads)?;
    for (key, only) in [("attention_head_size", dim), ("pooler_hidden_size", hidden)] {
        let said = config.width_or(&[key], only)?;
        if said != only {
            let what = format!("with hidden_size = {hidden} it can only be {only}");
            return Err(bad(key, &json!(said), &what));
        }
    }
    let positions = config.positions(&["max_position_embeddings"], None)?;
    let epsilon = config.epsilon("layer_norm_eps", 1e-7)?;
    let activation = config.activation(&["pooler_hidden_act"], "gelu")?;
    let (head, n_labels) = loader.head("pooler.dense", activation, "classifier", hidden)?;
    let (embeddings, project) = embeddings(loader, hidden, positions)?;
    let row_tokens_max = positions.min(loader.row_tokens_max);
    let shape = shape(loader, hidden, n_heads, epsilon, positions, row_tokens_max)?;
    let layers = (0..config.n_layers(&["num_hidden_layers"])?).map(|at| layer(loader, &shape, at));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let sizes = Sizes {
        vocab: config.vocab()?,
        types: config.types_or(0)?,
        row_tokens_max,
        n_labels,
        n_bytes: embeddings.n_bytes() + head.n_bytes(),
        ..Sizes::default()
    };
    Ok(Box::new(Deberta {
        sizes: sizes.with_layers(&layers, hidden),
        norm: loader.layer_norm("deberta.embeddings.LayerNorm", hidden, epsilon, true)?,
        embeddings,
        project,
        layers,
        head,
    }))
}

fn embeddings(
    loader: &Loader<'_>,
    hidden: usize,
    positions: usize,
) -> Result<(Embeddings, Option<Linear>), Fault> {
    let config = loader.config;
    let width = config.width_or(&["embedding_size"], hidden)?;
    let name = |part: &str| format!("deberta.embeddings.{part}");
    let table = |part: &str, n| loader.table(&name(part), n, width);
    let embeddings = Embeddings {
        words: loader.words(&name("word_embeddings.weight"), config.vocab()?, width)?,
        positions: match config.flag_or("position_biased_input", true)? {
            true => {
                let table = table("position_embeddings.weight", positions)?;
                Some((table, PositionRule::FromZero))
            }
            false => None,
        },
        types: match config.types_or(0)? {
            0 => None,
            types => Some(table("token_type_embeddings.weight", types)?),
        },
        norm: None,
    };
    let project = match width == hidden {
        true => None,
        false => Some(loader.linear(&name("embed_proj"), hidden, width, false)?),
    };
    Ok((embeddings, project))
}

fn shape(
    loader: &Loader<'_>,
    hidden: usize,
    n_heads: usize,
    epsilon: f32,
    positions: usize,
    row_tokens_max: usize,
) -> Result<Shape, Fault> {
    let config = loader.config;
    let terms = config.words("pos_att_type")?;
    if let Some(other) = terms
        .iter()
        .find(|term| !matches!(term.as_str(), "c2p" | "p2c"))
    {
        return Err(unsupported(
            "pos_att_type",
            &json!(other),
            "\"c2p\" and \"p2c\"",
        ));
    }
    let has = |term: &str| terms.iter().any(|found| found == term);
    let (keys, queries) = (has("c2p"), has("p2c"));
    let mut shape = Shape {
        hidden,
        n_heads,
        epsilon,
        score_terms: 1 + usize::from(keys) + usize::from(queries),
        distances: None,
    };
    if !config.flag_or("relative_attention", false)? || !(keys || queries) {
        return Ok(shape);
    }
    let buckets = buckets(config, positions)?;
    let name = "deberta.encoder.rel_embeddings.weight";
    let table = loader.weights.read(name, &[2 * buckets.span, hidden])?;
    let mut table = made(loader.numbers.tensor_of(table, (2 * buckets.span, hidden)))?;
    if normed(config)? {
        let norm = loader.layer_norm("deberta.encoder.LayerNorm", hidden, epsilon, true)?;
        table = made(norm.forward(&table))?;
    }
    shape.distances = Some(Distances {
        lookup: Arc::new(made(Lookup::new(loader.numbers, &buckets, row_tokens_max))?),
        table,
        keys,
        queries,
        shared: config.flag_or("share_att_key", false)?,
    });
    Ok(shape)
}

fn normed(config: &Config) -> Result<bool, Fault> {
    let words = config.words("norm_rel_ebd")?;
    match words.iter().find(|word| *word != "layer_norm") {
        Some(other) => {
            let known = "\"layer_norm\" and \"none\"";
            Err(unsupported("norm_rel_ebd", &json!(other), known))
        }
        None => Ok(!words.is_empty()),
    }
}

fn buckets(config: &Config, positions: usize) -> Result<Buckets, Fault> {
    let within = |key: &str, value: i64, least: usize, most: usize| {
        let found = usize::try_from(value).ok();
        found
            .filter(|value| (least..=most).contains(value))
            .ok_or_else(|| bad(key, &json!(value), &format!("not within {least}..={most}")))
    };
    let most = match config.integer("max_relative_positions")? {
        None | Some(..1) => positions,
        Some(most) => within("max_relative_positions", most, 1, 1 << 16)?,
    };
    let Some(buckets @ 1..) = config.integer("position_buckets")? else {
        let span = within("max_relative_positions", most as i64, 1, SPAN_MAX)?;
        return Ok(Buckets {
            span,
            logarithmic: None,
        });
    };
    let span = within("position_buckets", buckets, 2, SPAN_MAX)?;
    // Otherwise no distance is far enough for a logarithm.
    let far = span / 2 < positions - 1;
    if far && most - 1 <= span / 2 {
        let what = format!(
            "with position_buckets = {span} at least {} is needed",
            span / 2 + 2
        );
        return Err(bad("max_relative_positions", &json!(most), &what));
    }
    Ok(Buckets {
        span,
        logarithmic: far.then(|| most - 1),
    })
}

fn layer(loader: &Loader<'_>, shape: &Shape, at: usize) -> Result<Layer, Fault> {
    let &Shape {
        hidden,
        n_heads,
        epsilon,
        score_terms,
        ..
    } = shape;
    let (config, dim) = (loader.config, hidden / n_heads);
    let name = |part: &str| format!("deberta.encoder.layer.{at}.{part}");
    let norm = |part: &str| loader.layer_norm(&name(part), hidden, epsilon, true);
    let raw = |part: &str| loader.raw(&name(part), hidden, hidden, true);
    let linear = |part: &str| loader.held(raw(part)?);
    let key_value = [
        raw("attention.self.key_proj")?,
        raw("attention.self.value_proj")?,
    ];
    let relative = match &shape.distances {
        None => None,
        Some(distances) => {
            let table = |wanted: bool, shared: &str, own: &str| -> Result<Option<Tensor>, Fault> {
                if !wanted {
                    return Ok(None);
                }
                let projection = linear(if distances.shared { shared } else { own })?;
                Ok(Some(made(by_head(&projection, &distances.table, n_heads))?))
            };
            let (key, query) = ("attention.self.key_proj", "attention.self.query_proj");
            Some(Relative {
                lookup: Arc::clone(&distances.lookup),
                keys: table(distances.keys, key, "attention.self.pos_key_proj")?,
                queries: table(distances.queries, query, "attention.self.pos_query_proj")?,
            })
        }
    };
    let inner = config.width(&["intermediate_size"])?;
    Ok(Layer {
        attention: Attention {
            inputs: loader.query_key_value(
                raw("attention.self.query_proj")?,
                RawLinear::join(key_value),
            )?,
            output: linear("attention.output.dense")?,
            shape: HeadShape {
                n_heads,
                n_kv: n_heads,
                dim,
            },
            norms: None,
            angles: None,
            window: None,
            causal: false,
            scale: 1.0 / ((dim * score_terms) as f32).sqrt(),
            relative,
        },
        attention_norm: Some(norm("attention.output.LayerNorm")?),
        feed_forward: FeedForward {
            inner: loader.linear(&name("intermediate.dense"), inner, hidden, true)?,
            outer: loader.linear(&name("output.dense"), hidden, inner, true)?,
            activation: config.activation(&["hidden_act"], "gelu")?,
            gated: false,
        },
        output_norm: norm("output.LayerNorm")?,
    })
}

/// A projected table as (heads, dim, rows).
fn by_head(projection: &Linear, table: &Tensor, n_heads: usize) -> Computed<Tensor> {
    let projected = projection.forward(table)?;
    let (n_rows, hidden) = projected.dims2()?;
    // Turned on the host: it is done once.
    projected
        .to_device(&Device::Cpu)?
        .reshape((n_rows, n_heads, hidden / n_heads))?
        .permute((1, 2, 0))?
        .contiguous()?
        .to_device(table.device())
}
