//! How much arithmetic a model needs, from its `config.json`: what a measured time is held against.

use serde_json::Value;

/// Families whose layers are BERT's: four square projections, scaled dot products, two dense layers.
/// Others gate their dense layers or share weights, and the formula would be wrong.
const FAMILIES: [&str; 6] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
];

/// The sizes of a BERT-like encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    layers: u64,
    hidden: u64,
    intermediate: u64,
    embedding: u64,
}

/// Operations, a multiplication and an addition counted as two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Of products with weights.
    pub linear: u64,
    /// Of products between tokens.
    pub attention: u64,
}

// === impl Geometry ===

impl Geometry {
    /// From the content of `config.json`; `None` for a family that the formula does not know, or without
    /// all sizes.
    #[must_use]
    pub fn of(config: &Value) -> Option<Self> {
        let family = config.get("model_type")?.as_str()?;
        // DistilBERT has names of its own.
        let size = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| config.get(*name)?.as_u64());
            found.filter(|&size| size <= u64::from(u16::MAX))
        };
        let hidden = size(["hidden_size", "dim"])?;
        FAMILIES.contains(&family).then_some(Self {
            layers: size(["num_hidden_layers", "n_layers"]).filter(|&layers| layers > 0)?,
            hidden,
            intermediate: size(["intermediate_size", "hidden_dim"])?,
            embedding: size(["embedding_size", "hidden_size"]).unwrap_or(hidden),
        })
    }

    /// What the score of a row of `n` tokens needs.
    ///
    /// With h = hidden, f = intermediate, L = layers, each multiply-add counted as 2 operations, a layer
    /// takes by its definition (Vaswani et al. 2017, §3.2 and §3.3):
    ///
    /// * linear: query, key, value and output projections 4·h², the two dense layers 2·h·f, for each token;
    /// * attention: query·key and weight·value, h each, for each pair of tokens.
    ///
    /// The score is read from the first token, so in the last layer only keys and values (2·h²) are
    /// needed of every token, and all else of the first one alone. A backend that computes more there does
    /// more than is counted here. ELECTRA's projection of the embeddings is e·h a token. Embeddings,
    /// normalization, activations, softmax and the head are left out: together below a hundredth.
    #[must_use]
    pub fn operations(&self, n: u64) -> Operations {
        let Self {
            layers,
            hidden: h,
            intermediate: f,
            embedding: e,
        } = *self;
        let before = layers.saturating_sub(1);
        let projected = if e == h { 0 } else { e * h };
        let token = 4 * h * h + 2 * h * f;
        let last = n * 2 * h * h + 2 * h * h + 2 * h * f;
        Operations {
            linear: 2 * (n * (projected + before * token) + last),
            attention: 2 * (before * n * n + n) * 2 * h,
        }
    }
}

impl std::ops::AddAssign for Operations {
    fn add_assign(&mut self, other: Self) {
        self.linear += other.linear;
        self.attention += other.attention;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn minilm_by_hand() {
        let config = json!({"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
            "intermediate_size": 1536});
        let geometry = Geometry::of(&config).unwrap();
        // A layer is 4·384² + 2·384·1536 = 1,769,472 multiply-adds a token, keys and values 294,912 of
        // them, the rest 1,474,560.
        let linear = 2 * (100 * (5 * 1_769_472 + 294_912) + 1_474_560);
        let attention = 2 * 2 * 384 * (5 * 100 * 100 + 100);
        assert_eq!(geometry.operations(100), Operations { linear, attention });
    }

    #[test]
    fn names_of_distilbert_and_projected_embeddings() {
        let distilbert =
            json!({"model_type": "distilbert", "dim": 8, "n_layers": 1, "hidden_dim": 16});
        let bert = json!({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1,
            "intermediate_size": 16});
        assert_eq!(Geometry::of(&distilbert), Geometry::of(&bert));
        let mut electra = bert.clone();
        electra["embedding_size"] = 4.into();
        let [plain, projected] =
            [bert, electra].map(|config| Geometry::of(&config).unwrap().operations(10).linear);
        assert_eq!(projected - plain, 2 * 10 * 4 * 8);
    }

    #[test]
    fn what_the_formula_does_not_know_is_not_guessed() {
        for config in [
            json!({"model_type": "modernbert", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16}),
            json!({"model_type": "bert", "hidden_size": [8], "num_hidden_layers": 1, "intermediate_size": 16}),
            json!({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 0, "intermediate_size": 16}),
            json!({"model_type": "bert", "hidden_size": 1_u64 << 40, "num_hidden_layers": 1, "intermediate_size": 16}),
            json!({}),
        ] {
            assert_eq!(Geometry::of(&config), None, "{config}");
        }
    }
}
