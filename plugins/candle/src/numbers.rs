//! In which numbers a model is held and computed.

use backend_api::Fault;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result as Computed, Shape, Tensor};

/// A data type by the name that a request gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    /// Linear layers in GGUF's Q8_0: 32 values of 8 bits with a common scale.
    Int8,
    /// Linear layers in 4 bits: Q4_K where a layer is a multiple of 256 wide, else Q4_1, 32 values with a
    /// scale and a least one.
    Int4,
    /// As the file stores them: of a GGUF file. It has no name, it is what `auto` means there.
    Stored,
}

/// How a linear layer of the encoder is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Float(DType),
    Blocks(GgmlDType),
}

/// The numbers of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// What was asked for.
    pub(crate) dtype: Dtype,
    /// What is multiplied and added. On CPUs always f32, but for the reference: candle has no products of bf16
    /// there, and gemm widens those of f16 itself.
    pub(crate) compute: DType,
    /// Where.
    pub(crate) device: Device,
}

impl Dtype {
    pub(crate) const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Stored => "auto",
        }
    }

    /// The dtype of a request; `None` for `auto`, which is what the files decide.
    pub(crate) fn named(name: &str) -> Result<Option<Self>, Fault> {
        if name == "auto" {
            return Ok(None);
        }
        let mut all = Self::ALL.into_iter();
        let found = all.find(|dtype| dtype.name() == name);
        found.map(Some).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Fault::unsupported(format!("dtype {name:?}: this plugin computes in {names}"))
        })
    }

    /// How a linear layer that is `n_in` wide is held.
    pub(crate) fn held(self, n_in: usize) -> Held {
        match self {
            // What is stored in blocks stays in them; there is nothing else to hold.
            Self::F32 | Self::Stored => Held::Float(DType::F32),
            Self::F16 => Held::Float(DType::F16),
            Self::Bf16 => Held::Float(DType::BF16),
            Self::Int8 => Held::Blocks(GgmlDType::Q8_0),
            Self::Int4 if n_in.is_multiple_of(GgmlDType::Q4K.block_size()) => {
                Held::Blocks(GgmlDType::Q4K)
            }
            Self::Int4 => Held::Blocks(GgmlDType::Q4_1),
        }
    }

    /// What is multiplied and added on a device, where linear layers are held as this says.
    pub(crate) fn computed_on(self, device: &Device) -> DType {
        match self {
            _ if device.is_cpu() => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::F32 | Self::Int8 | Self::Int4 | Self::Stored => DType::F32,
        }
    }

    /// Whether blocks of this kind are what this dtype means.
    pub(crate) fn is_of(self, kind: GgmlDType) -> bool {
        match self {
            Self::Int8 => kind == GgmlDType::Q8_0,
            Self::Int4 => matches!(kind, GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q4K),
            _ => false,
        }
    }

    /// How a table of words is held: its rows are looked up, not multiplied, and in halves they lose
    /// less than what quantised layers do.
    pub(crate) fn words(self) -> DType {
        match self {
            Self::F32 | Self::Stored => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 | Self::Int8 | Self::Int4 => DType::F16,
        }
    }
}

impl Numbers {
    /// What norms, biases, angles and heads are held and computed in: on CUDA the steps between products read them in
    /// f32, whatever is multiplied.
    pub(crate) fn exact(&self) -> DType {
        match self.device.is_cuda() {
            true => DType::F32,
            false => self.compute,
        }
    }

    /// A tensor of these values for the steps between products.
    pub(crate) fn exact_tensor(&self, values: &[f32], shape: impl Into<Shape>) -> Computed<Tensor> {
        Tensor::from_slice(values, shape, &Device::Cpu)?
            .to_dtype(self.exact())?
            .to_device(&self.device)
    }

    /// A tensor of these values in the type that is computed in.
    pub(crate) fn tensor_of(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Computed<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.compute)?
            .to_device(&self.device)
    }
}
