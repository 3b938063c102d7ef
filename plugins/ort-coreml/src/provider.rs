//! What computes: ONNX Runtime's execution providers, and which of them a device means.

use crate::library::Runtime;
use crate::options::Options;
use backend_api::Fault;
use ort::ep::{
    ArbitrarilyConfigurableExecutionProvider as _, CPU, CUDA, CoreML, ExecutionProvider,
    ExecutionProviderDispatch, OpenVINO,
};

/// Workers of the CPU share nothing that is written, so any number may run; this only bounds a request.
const CPU_WORKERS_MAX: u32 = 1_024;

/// An execution provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// Core ML: GPU, neural engine and CPU of Apple's chips.
    CoreMl,
    /// NVIDIA's GPUs.
    Cuda,
    /// Intel's OpenVINO.
    OpenVino,
}

/// A device, and what computes on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What computes.
    pub provider: Provider,
    /// The device as descriptions name it: `cpu`, `metal`, `cuda:0`.
    pub name: String,
    // Of several GPUs.
    number: u32,
}

// === impl Provider ===

impl Provider {
    const ALL: [Self; 4] = [Self::Cpu, Self::CoreMl, Self::Cuda, Self::OpenVino];

    /// The name in options, kernels and numerics ids.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CoreMl => "coreml",
            Self::Cuda => "cuda",
            Self::OpenVino => "openvino",
        }
    }

    /// The kind of device that it computes on, by the words of requests.
    fn device(self) -> &'static str {
        match self {
            Self::Cpu | Self::OpenVino => "cpu",
            Self::CoreMl => "metal",
            Self::Cuda => "cuda",
        }
    }

    /// Workers that may call at the same time. Only the CPU's provider lets several runs into one session.
    #[must_use]
    pub fn n_workers_max(self) -> u32 {
        match self {
            Self::Cpu => CPU_WORKERS_MAX,
            Self::CoreMl | Self::Cuda | Self::OpenVino => 1,
        }
    }

    /// The most tokens of a rectangle, unless the options say otherwise. A core gains nothing from more (README, "Figures"); a
    /// device has many.
    #[must_use]
    pub fn rectangle_tokens(self) -> usize {
        match self {
            Self::Cpu => 256,
            Self::CoreMl | Self::Cuda | Self::OpenVino => 16_384,
        }
    }

    /// What widths are multiples of, unless the options say otherwise. Devices prepare themselves for each shape that they see;
    /// on a CPU a token of padding costs what a token costs.
    #[must_use]
    pub fn width_multiple(self) -> usize {
        match self {
            Self::Cpu => 1,
            Self::CoreMl | Self::Cuda | Self::OpenVino => 32,
        }
    }

    fn is_available(self) -> bool {
        let found = match self {
            Self::Cpu => CPU::is_available(),
            Self::CoreMl => CoreML::is_available(),
            Self::Cuda => CUDA::is_available(),
            Self::OpenVino => OpenVINO::is_available(),
        };
        found.unwrap_or(false)
    }
}

// === impl Device ===

impl Device {
    /// The devices of the card, best first.
    #[must_use]
    pub fn kinds() -> Vec<String> {
        let kinds = if cfg!(target_os = "macos") {
            ["metal", "cpu"]
        } else {
            ["cpu", "cuda"]
        };
        kinds.map(str::to_owned).to_vec()
    }

    /// The device that a request names, and the provider on it. `auto` is Core ML on macOS and the CPU elsewhere.
    ///
    /// # Errors
    /// `Unsupported` for a device that is none of ours, `BadRequest` for a provider that is none, or not this device's.
    pub fn asked(name: &str, options: &Options) -> Result<Self, Fault> {
        let provider = match options.provider.as_deref() {
            None => None,
            Some(asked) => {
                let found = Provider::ALL
                    .into_iter()
                    .find(|provider| provider.name() == asked);
                let names = Provider::ALL.map(Provider::name).join(", ");
                let unknown =
                    || Fault::bad_request(format!("options.provider = {asked:?}: one of {names}"));
                Some(found.ok_or_else(unknown)?)
            }
        };
        let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
        let number = number.parse().ok();
        let of_kind = match (kind, number) {
            ("auto", Some(0)) => provider.unwrap_or(if cfg!(target_os = "macos") {
                Provider::CoreMl
            } else {
                Provider::Cpu
            }),
            ("cpu", Some(0)) => Provider::Cpu,
            ("metal" | "coreml", Some(0)) => Provider::CoreMl,
            ("cuda", Some(_)) => Provider::Cuda,
            _ => {
                return Err(Fault::unsupported(format!(
                    "device {name:?}: this plugin runs on auto, cpu, metal (by Core ML) and cuda:N"
                )));
            }
        };
        let provider = provider.unwrap_or(of_kind);
        if provider.device() != of_kind.device() {
            return Err(Fault::bad_request(format!(
                "options.provider = {:?} computes on {}, and device is {name:?}",
                provider.name(),
                provider.device()
            )));
        }
        let number = number.unwrap_or(0);
        let name = match provider {
            Provider::Cuda => format!("cuda:{number}"),
            _ => provider.device().to_owned(),
        };
        Ok(Self {
            provider,
            name,
            number,
        })
    }

    /// What a session is told to compute with, for a graph of this hash and, where it is fixed, this shape. Operators that the
    /// provider has not are the CPU's.
    ///
    /// # Errors
    /// `Unsupported` if this ONNX Runtime was built without the provider.
    pub fn dispatch(
        &self,
        runtime: &Runtime,
        options: &Options,
        hash: &str,
        shape: Option<[usize; 2]>,
    ) -> Result<ExecutionProviderDispatch, Fault> {
        if !self.provider.is_available() {
            let has = Provider::ALL
                .into_iter()
                .filter(|provider| provider.is_available());
            let has: Vec<_> = has.map(Provider::name).collect();
            return Err(Fault::unsupported(format!(
                "{} on {}: ONNX Runtime {} ({}) was built without it; of this plugin's providers it has {}",
                self.provider.name(),
                self.name,
                runtime.version,
                runtime.path.display(),
                has.join(", ")
            )));
        }
        // The provider's own options come last, so that they win.
        let more = &options.provider_options;
        let dispatch = match self.provider {
            Provider::Cpu => CPU::default()
                .with_arena_allocator(options.memory_arena.unwrap_or(true))
                .build(),
            Provider::CoreMl => {
                use ort::ep::coreml::{ComputeUnits, ModelFormat};
                let mut provider = CoreML::default()
                    // The older format lacks operators of encoders, which would then cross to the CPU and back.
                    .with_model_format(ModelFormat::MLProgram)
                    .with_compute_units(ComputeUnits::All)
                    .with_static_input_shapes(shape.is_some());
                if let Some(dir) = &options.cache_dir {
                    let dir = dir.join(cache_name(hash, shape));
                    std::fs::create_dir_all(&dir).map_err(|error| {
                        Fault::bad_request(format!("options.cache_dir: {}: {error}", dir.display()))
                    })?;
                    provider = provider.with_model_cache_dir(dir.display());
                }
                more.iter()
                    .fold(provider, |it, (key, value)| {
                        it.with_arbitrary_config(key, value)
                    })
                    .build()
            }
            Provider::Cuda => {
                let provider =
                    CUDA::default().with_device_id(i32::try_from(self.number).unwrap_or(i32::MAX));
                more.iter()
                    .fold(provider, |it, (key, value)| {
                        it.with_arbitrary_config(key, value)
                    })
                    .build()
            }
            Provider::OpenVino => {
                let provider = OpenVINO::default();
                more.iter()
                    .fold(provider, |it, (key, value)| {
                        it.with_arbitrary_config(key, value)
                    })
                    .build()
            }
        };
        Ok(dispatch.error_on_failure())
    }
}

/// A folder for what Core ML compiled. ONNX Runtime knows a graph by its path, and would give its successor what was made of it.
fn cache_name(hash: &str, shape: Option<[usize; 2]>) -> String {
    match shape {
        Some([rows, width]) => format!("{hash}-{rows}x{width}"),
        None => hash.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::FaultCode;

    fn asked(device: &str, options: &str) -> Result<(Provider, String), Fault> {
        let options = Options::parse(options).unwrap();
        Device::asked(device, &options).map(|device| (device.provider, device.name))
    }

    #[test]
    fn devices_mean_providers() {
        let cases = [
            ("cpu", "{}", Provider::Cpu, "cpu"),
            (
                "cpu",
                r#"{"provider":"openvino"}"#,
                Provider::OpenVino,
                "cpu",
            ),
            ("auto", r#"{"provider":"cuda"}"#, Provider::Cuda, "cuda:0"),
            ("cuda:3", "{}", Provider::Cuda, "cuda:3"),
            ("metal", "{}", Provider::CoreMl, "metal"),
            (
                "coreml",
                r#"{"provider":"coreml"}"#,
                Provider::CoreMl,
                "metal",
            ),
        ];
        for (device, options, provider, name) in cases {
            assert_eq!(
                asked(device, options),
                Ok((provider, name.to_owned())),
                "{device} {options}"
            );
        }
        let usual = if cfg!(target_os = "macos") {
            Provider::CoreMl
        } else {
            Provider::Cpu
        };
        assert_eq!(asked("auto", "{}").map(|(provider, _)| provider), Ok(usual));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            ("tpu", "{}", FaultCode::Unsupported, "tpu"),
            ("cuda:x", "{}", FaultCode::Unsupported, "cuda:x"),
            ("cpu:1", "{}", FaultCode::Unsupported, "cpu:1"),
            (
                "cpu",
                r#"{"provider":"cuda"}"#,
                FaultCode::BadRequest,
                "computes on cuda",
            ),
            (
                "cpu",
                r#"{"provider":"abacus"}"#,
                FaultCode::BadRequest,
                "openvino",
            ),
        ];
        for (device, options, code, word) in cases {
            let fault = asked(device, options).expect_err(device);
            assert!(fault.code == code && fault.text.contains(word), "{fault}");
        }
    }
}
