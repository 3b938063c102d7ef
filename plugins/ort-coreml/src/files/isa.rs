//! The processor's instructions, as far as they decide which file is best and how ONNX Runtime rounds.

/// The best set of instructions that ONNX Runtime's kernels use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// `vpdpbusd` on 512 bits.
    Avx512Vnni,
    /// 512 bits.
    Avx512,
    /// 256 bits.
    Avx2,
    /// Arm's.
    Neon,
    /// Anything else.
    Other,
}

impl Isa {
    /// This processor's.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vnni") {
            Self::Avx512Vnni
        } else if has!("avx512f") {
            Self::Avx512
        } else if has!("avx2") {
            Self::Avx2
        } else {
            Self::Other
        }
    }

    /// This processor's.
    #[must_use]
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Neon
        } else {
            Self::Other
        }
    }

    /// The name in kernels, numerics ids and refusals.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Other => "generic",
        }
    }

    /// Names of quantised graphs that were exported for this processor, best first. One for less serves too; one for more would
    /// run, and saturate where its weights use all 8 bits.
    #[must_use]
    pub fn int8_files(self) -> &'static [&'static str] {
        const X86: [&str; 3] = [
            "model_qint8_avx512_vnni.onnx",
            "model_qint8_avx512.onnx",
            "model_quint8_avx2.onnx",
        ];
        match self {
            Self::Avx512Vnni => &X86,
            Self::Avx512 => &X86[1..],
            Self::Avx2 => &X86[2..],
            Self::Neon => &["model_qint8_arm64.onnx"],
            Self::Other => &[],
        }
    }
}
