//! T5, mT5 and UMT5: an encoder and a decoder that looks at it, without position tables; scores depend on
//! the distance of key and query.
//!
//! `transformers`' class that classifies has the decoder read the row once more, one token behind, and a
//! head read the state of its last end-of-sequence token. monoT5 generates: its first token's logits rank.

use super::tokens::Tokens;
use crate::block::activation::Activation;
use crate::block::attention::{Attention, Distances, HeadShape};
use crate::block::embedding::Table;
use crate::block::head::Head;
use crate::block::layer::{FeedForward, Layer, Wanted};
use crate::block::norm::Norm;
use crate::config::{Config, unsupported};
use crate::loader::{Loader, made};
use crate::model::{Model, Sizes};
use crate::raw::RawLinear;
use crate::rows::Rows;
use backend_api::Fault;
use candle_core::{Result as Computed, Tensor};
use serde_json::json;
use std::ops::Range;

/// What `transformers` gives a configuration that does not say.
const BUCKETS: usize = 32;
const DISTANCE_MAX: usize = 128;

struct T5 {
    words: Table,
    encoder: Stack,
    decoder: Stack,
    ending: Ending,
    head: Head,
    /// What the decoder begins with.
    start: u32,
    sizes: Sizes,
}

/// Which of the decoder's states the head reads.
#[derive(Clone, Copy)]
enum Ending {
    /// That of the row's last token of this id.
    AtToken(u32),
    /// The first one: nothing else is decoded.
    AtStart,
}

struct Stack {
    blocks: Vec<Block>,
    last_norm: Norm,
}

struct Block {
    layer: Layer,
    /// A decoder's attention to the encoder, and the norm before it.
    cross: Option<(Norm, Attention)>,
    /// What distances add to the scores of each head. Without them the first block's serve.
    distances: Option<Distances>,
}

/// Which bucket a distance is in.
#[derive(Clone, Copy)]
struct Buckets {
    n: usize,
    /// From here on all share the last.
    distance_max: usize,
    /// Whether keys behind a query have buckets of their own.
    both_ways: bool,
}

impl Model for T5 {
    fn forward(&self, rows: &Rows) -> Computed<Tensor> {
        let x = self.words.look_up(&rows.ids)?;
        let encoded = self.encoder.forward(x, rows, None)?;
        let x = self.words.look_up(&rows.begun)?;
        let decoded = self.decoder.forward(x, rows, Some(&encoded))?;
        let pooled = match self.ending {
            Ending::AtToken(_) => rows.picked(&decoded)?,
            Ending::AtStart => decoded,
        };
        self.head.forward(&pooled)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn why_not(&self, ids: &[u32]) -> Option<String> {
        match self.ending {
            Ending::AtToken(end) if !ids.contains(&end) => Some(format!(
                "its head reads a row at its last token {end} (eos_token_id), and this row has none: have the \
                 post_processor of tokenizer.json add it"
            )),
            Ending::AtToken(_) | Ending::AtStart => None,
        }
    }

    fn pick(&self, ids: &[u32]) -> usize {
        match self.ending {
            Ending::AtToken(end) => ids.iter().rposition(|&id| id == end).unwrap_or(0),
            Ending::AtStart => 0,
        }
    }

    fn begin(&self, ids: &[u32], cells: &[Range<usize>]) -> Vec<u32> {
        match self.ending {
            // Each row one token behind.
            Ending::AtToken(_) => {
                let rows = cells.iter().flat_map(|cells| {
                    let behind = &ids[cells.start..cells.end - 1];
                    std::iter::once(self.start).chain(behind.iter().copied())
                });
                rows.collect()
            }
            Ending::AtStart => vec![self.start; cells.len()],
        }
    }
}

impl Stack {
    /// (cells, hidden); of a decoder, `encoded` are the cells that it looks at.
    fn forward(&self, mut x: Tensor, rows: &Rows, encoded: Option<&Tensor>) -> Computed<Tensor> {
        let mut distances = None;
        for block in &self.blocks {
            distances = block.distances.as_ref().or(distances);
            x = block.layer.attend(x, rows, distances, Wanted::All)?;
            if let (Some((norm, cross)), Some(encoded)) = (&block.cross, encoded) {
                let mixed = cross.mix(&norm.forward(&x)?, encoded, rows, None)?;
                x = cross.output.add_to(x, &mixed)?;
            }
            x = block.layer.feed(x)?;
        }
        self.last_norm.forward(&x)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.blocks.iter().map(|block| &block.layer)
    }

    fn n_bytes(&self) -> usize {
        let blocks = self.blocks.iter();
        let crosses = blocks.clone().filter_map(|block| block.cross.as_ref());
        let distances = blocks.filter_map(|block| block.distances.as_ref());
        crosses
            .map(|(_, attention)| attention.n_bytes())
            .chain(distances.map(Distances::n_bytes))
            .sum()
    }
}

impl Buckets {
    /// What is added at each distance: `biases` are buckets × heads.
    fn distances(&self, loader: &Loader<'_>, biases: &[f32]) -> Result<Distances, Fault> {
        let (n_heads, reach) = (biases.len() / self.n, row_tokens_max(loader)?);
        made(Distances::new(
            loader.numbers,
            n_heads,
            reach,
            |head, offset| biases[self.of(offset) * n_heads + head],
        ))
    }

    /// The bucket of key − query: half of them for one distance each, half for more and more.
    fn of(&self, offset: isize) -> usize {
        let (n, behind) = match self.both_ways {
            true => (self.n / 2, if 0 < offset { self.n / 2 } else { 0 }),
            false => (self.n, 0),
        };
        let distance = match self.both_ways {
            true => offset.unsigned_abs(),
            false => offset.min(0).unsigned_abs(),
        };
        let exact = n / 2;
        if distance < exact {
            return behind + distance;
        }
        // Rounded to f32 at each step, as `transformers` does.
        let log = (f64::from(distance as f32 / exact as f32)).ln() as f32;
        let most = (self.distance_max as f64 / exact as f64).ln() as f32;
        let far = exact + (log / most * (n - exact) as f32) as usize;
        behind + far.min(n - 1)
    }
}

pub(super) fn open_classifier(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    let hidden = loader.config.width(&["d_model"])?;
    let end = loader.config.token("eos_token_id")?.unwrap_or(1);
    let (dense, classifier) = ("classification_head.dense", "classification_head.out_proj");
    let (head, _) = loader.head(dense, Activation::Tanh, classifier, hidden)?;
    open(loader, "transformer.", Ending::AtToken(end), head)
}

pub(super) fn open_yes_no(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    // T5 scales what it decodes; T5 1.1, whose checkpoints have an output of their own, does not.
    let config = loader.config;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    yes_no(loader, config.flag_or("scale_decoder_outputs", tied)?)
}

/// mT5 has T5 1.1's output: it is not scaled, not even where it is saved as the words'.
pub(super) fn open_mt5_yes_no(loader: &Loader<'_>) -> Result<Box<dyn Model>, Fault> {
    yes_no(loader, false)
}

fn yes_no(loader: &Loader<'_>, scaled: bool) -> Result<Box<dyn Model>, Fault> {
    let hidden = loader.config.width(&["d_model"])?;
    let tokens = Tokens::of(loader)?;
    let tied = !loader.weights.has("lm_head.weight");
    let scale = if scaled {
        1.0 / (hidden as f32).sqrt()
    } else {
        1.0
    };
    let table = if tied {
        "shared.weight"
    } else {
        "lm_head.weight"
    };
    let head = tokens.head(loader, table, hidden, scale)?;
    open(loader, "", Ending::AtStart, head)
}

fn open(
    loader: &Loader<'_>,
    prefix: &str,
    ending: Ending,
    head: Head,
) -> Result<Box<dyn Model>, Fault> {
    let config = loader.config;
    let (hidden, vocab) = (config.width(&["d_model"])?, config.vocab()?);
    let start = config.token("decoder_start_token_id")?.unwrap_or(0);
    if vocab <= start as usize {
        return Err(Fault::bad_model(format!(
            "config.json: decoder_start_token_id = {start} is beyond vocab_size = {vocab}"
        )));
    }
    let n_layers = config.n_layers(&["num_layers"])?;
    let n_decoder = match config.find(&["num_decoder_layers"]) {
        Some(_) => config.n_layers(&["num_decoder_layers"])?,
        None => n_layers,
    };
    let words = loader.words(&format!("{prefix}shared.weight"), vocab, hidden)?;
    let encoder = stack(loader, &format!("{prefix}encoder"), n_layers, false)?;
    let decoder = stack(loader, &format!("{prefix}decoder"), n_decoder, true)?;
    let sizes = Sizes {
        vocab,
        row_tokens_max: row_tokens_max(loader)?,
        n_labels: head.classifier.n_out(),
        pad_id: start,
        n_bytes: words.n_bytes() + head.n_bytes() + encoder.n_bytes() + decoder.n_bytes(),
        ..Sizes::default()
    };
    let sizes = sizes.with_layers(encoder.layers().chain(decoder.layers()), hidden);
    Ok(Box::new(T5 {
        words,
        encoder,
        decoder,
        ending,
        head,
        start,
        sizes,
    }))
}

/// Nothing in the model bounds a row.
fn row_tokens_max(loader: &Loader<'_>) -> Result<usize, Fault> {
    let most = loader.row_tokens_max;
    let n = loader.config.positions(&["n_positions"], Some(most))?;
    Ok(n.min(most))
}

fn stack(loader: &Loader<'_>, name: &str, n: usize, decodes: bool) -> Result<Stack, Fault> {
    let config = loader.config;
    let hidden = config.width(&["d_model"])?;
    let buckets = buckets(config, !decodes)?;
    let blocks = (0..n).map(|at| block(loader, &format!("{name}.block.{at}"), decodes, &buckets));
    let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
    if blocks
        .first()
        .is_some_and(|block| block.distances.is_none())
    {
        return Err(Fault::bad_model(format!(
            "{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight: no such tensor in the \
             model's files"
        )));
    }
    let norm = format!("{name}.final_layer_norm");
    Ok(Stack {
        blocks,
        last_norm: loader.rms_norm(&norm, hidden, config.epsilon("layer_norm_epsilon", 1e-6)?)?,
    })
}

fn buckets(config: &Config, both_ways: bool) -> Result<Buckets, Fault> {
    let n = config.width_or(&["relative_attention_num_buckets"], BUCKETS)?;
    let distance_max = config.width_or(&["relative_attention_max_distance"], DISTANCE_MAX)?;
    if n < 4 || distance_max <= n / 2 {
        return Err(Fault::bad_model(format!(
            "config.json: relative_attention_num_buckets = {n} and relative_attention_max_distance = \
             {distance_max}: at least 4 buckets are needed, and distances beyond half of them"
        )));
    }
    Ok(Buckets {
        n,
        distance_max,
        both_ways,
    })
}

fn block(
    loader: &Loader<'_>,
    name: &str,
    decodes: bool,
    buckets: &Buckets,
) -> Result<Block, Fault> {
    let config = loader.config;
    let hidden = config.width(&["d_model"])?;
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-6)?;
    let norm =
        |at: usize| loader.rms_norm(&format!("{name}.layer.{at}.layer_norm"), hidden, epsilon);
    let n_heads = config.n_heads(&["num_heads"], None)?;
    let bias = format!("{name}.layer.0.SelfAttention.relative_attention_bias.weight");
    let distances = match loader.weights.has(&bias) {
        true => {
            let biases = loader.weights.read(&bias, &[buckets.n, n_heads])?;
            Some(buckets.distances(loader, &biases)?)
        }
        false => None,
    };
    let last = if decodes { 2 } else { 1 };
    let layer = Layer {
        attention: attention(loader, &format!("{name}.layer.0.SelfAttention"), decodes)?,
        attention_norm: Some(norm(0)?),
        feed_forward: feed_forward(loader, &format!("{name}.layer.{last}.DenseReluDense"))?,
        output_norm: norm(last)?,
    };
    let cross = match decodes {
        true => {
            let name = format!("{name}.layer.1.EncDecAttention");
            Some((norm(1)?, attention(loader, &name, false)?))
        }
        false => None,
    };
    Ok(Block {
        layer,
        cross,
        distances,
    })
}

fn attention(loader: &Loader<'_>, name: &str, causal: bool) -> Result<Attention, Fault> {
    let config = loader.config;
    let hidden = config.width(&["d_model"])?;
    let (n_heads, dim) = (
        config.n_heads(&["num_heads"], None)?,
        config.width(&["d_kv"])?,
    );
    let raw = |part: &str| loader.raw(&format!("{name}.{part}"), n_heads * dim, hidden, false);
    Ok(Attention {
        inputs: loader.query_key_value(raw("q")?, RawLinear::join([raw("k")?, raw("v")?]))?,
        output: loader.linear(&format!("{name}.o"), hidden, n_heads * dim, false)?,
        shape: HeadShape {
            n_heads,
            n_kv: n_heads,
            dim,
        },
        norms: None,
        angles: None,
        window: None,
        causal,
        // T5's weights are made so that none is needed.
        scale: 1.0,
        relative: None,
    })
}

fn feed_forward(loader: &Loader<'_>, name: &str) -> Result<FeedForward, Fault> {
    let config = loader.config;
    let (hidden, inner) = (config.width(&["d_model"])?, config.width(&["d_ff"])?);
    let kind = config.text(&["feed_forward_proj"])?.unwrap_or("relu");
    let (gated, activation) = match kind.strip_prefix("gated-") {
        // Google's checkpoints were trained with the approximation.
        Some("gelu") => (true, Some(Activation::GeluTanh)),
        Some(name) => (true, Activation::named(name)),
        None => (false, Activation::named(kind)),
    };
    let activation = activation.ok_or_else(|| {
        let known = Activation::NAMES.join(", ");
        unsupported(
            "feed_forward_proj",
            &json!(kind),
            &format!("these and \"gated-\" before them: {known}"),
        )
    })?;
    let raw = |part: &str| loader.raw(&format!("{name}.{part}"), inner, hidden, false);
    Ok(FeedForward {
        inner: loader.held(match gated {
            true => RawLinear::join([raw("wi_0")?, raw("wi_1")?]),
            false => raw("wi")?,
        })?,
        outer: loader.linear(&format!("{name}.wo"), hidden, inner, false)?,
        activation,
        gated,
    })
}
