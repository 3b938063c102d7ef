//! The plugins' face: checks the request, opens the model where it is to be computed.

#[cfg(feature = "metal")]
mod metal;
mod rectangles;

use crate::family::FAMILIES;
use crate::loader::Options;
use crate::model::Opened;
use crate::numbers::Dtype;
use backend_api::{Backend, Fault, OpenRequest, PluginCard, RaggedBatch, RowStatus, Scores};
use candle_core::Device;
use rectangles::Rectangles;

/// Counts changes of this crate that change scores; part of the numerics id.
pub(crate) const NUMERICS_VERSION: u32 = 1;
/// Workers share nothing that is written, so any number may run; this only bounds a request.
pub(crate) const WORKERS_MAX: u32 = 1_024;
/// Below what plugins have that say nothing: an engine made for a device and a model is the better choice.
const PREFERENCE: u32 = 50;

/// Where a plugin computes: what its library was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host's processors.
    Cpu,
    /// NVIDIA GPUs.
    #[cfg(feature = "cuda")]
    Cuda,
    /// An Apple GPU.
    #[cfg(feature = "metal")]
    Metal,
}

/// What a plugin of this name and version, built for this place, can do.
pub fn card(name: &str, version: &str, place: Place) -> PluginCard {
    PluginCard {
        name: name.to_owned(),
        version: version.to_owned(),
        devices: vec![place.name().to_owned()],
        dtypes: place
            .dtypes()
            .iter()
            .map(|dtype| dtype.name().to_owned())
            .collect(),
        architectures: FAMILIES
            .each_ref()
            .map(|family| family.architecture.to_owned())
            .to_vec(),
        formats: ["safetensors", "gguf"].map(str::to_owned).to_vec(),
        preference: PREFERENCE,
        ..PluginCard::default()
    }
}

/// Loads a model.
///
/// # Errors
/// `Unsupported` for another device, dtype or architecture, `BadModel` for files that are missing or wrong,
/// `BadRequest` for options, `OutOfMemory` and `DeviceLost` as they say: the text names what was found and what is
/// possible.
pub fn open(name: &str, request: &OpenRequest, place: Place) -> Result<Box<dyn Backend>, Fault> {
    let dtype = place.dtype(&request.dtype)?;
    let options: Options = serde_json::from_str(&request.options)
        .map_err(|error| Fault::bad_request(format!("options {:?}: {error}", request.options)))?;
    let options = options.or_answers(request.yes_token, request.no_token);
    if options.graphs.is_some() && !place.has_graphs() {
        return Err(Fault::bad_request(format!(
            "options: graphs are CUDA's; this plugin computes on {}",
            place.name()
        )));
    }
    for (name, value) in [
        ("rows_max", request.rows_max),
        ("tokens_max", request.tokens_max),
        ("row_tokens_max", request.row_tokens_max),
    ] {
        if value == 0 {
            return Err(Fault::bad_request(format!(
                "{name} = 0: at least 1 is needed"
            )));
        }
    }
    let asked = Asked {
        name,
        request,
        dtype,
        options: &options,
    };
    match place {
        Place::Cpu => {
            place.only(&request.device, "cpu")?;
            let opened = asked.load(&Device::Cpu)?;
            Ok(Box::new(Rectangles::new(&asked, place, opened)))
        }
        #[cfg(feature = "cuda")]
        Place::Cuda => crate::cuda::open(&asked),
        #[cfg(feature = "metal")]
        Place::Metal => {
            place.only(&request.device, "metal")?;
            metal::open(&asked)
        }
    }
}

/// A request that was checked.
pub(crate) struct Asked<'a> {
    /// The plugin's name.
    pub(crate) name: &'a str,
    pub(crate) request: &'a OpenRequest,
    /// `None` for `auto`.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) options: &'a Options,
}

// === impl Asked ===

impl Asked<'_> {
    /// The model on a device.
    pub(crate) fn load(&self, device: &Device) -> Result<Opened, Fault> {
        Opened::load(self, device, self.row_tokens_max() as usize)
    }

    /// Tokens of the longest row that can come.
    pub(crate) fn row_tokens_max(&self) -> u32 {
        self.request.row_tokens_max.min(self.request.tokens_max)
    }

    /// What equal scores are promised by.
    pub(crate) fn numerics_id(&self, dtype: &str, kernel: &str, opened: &Opened) -> String {
        format!(
            "{}-{NUMERICS_VERSION}/{dtype}/{kernel}{}/{:016x}",
            self.name,
            self.tokens(),
            opened.fingerprint
        )
    }

    /// Which tokens were compared, if the request says.
    fn tokens(&self) -> String {
        match (&self.options.yes_token, &self.options.no_token) {
            (Some(yes), Some(no)) => format!("/yes-{yes}-no-{no}"),
            (Some(yes), None) => format!("/yes-{yes}"),
            (None, _) => String::new(),
        }
    }
}

// === impl Place ===

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda => "cuda",
            #[cfg(feature = "metal")]
            Self::Metal => "metal",
        }
    }

    fn has_graphs(self) -> bool {
        #[cfg(feature = "cuda")]
        return self == Self::Cuda;
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// What it computes in, best first.
    fn dtypes(self) -> &'static [Dtype] {
        match self {
            Self::Cpu => &Dtype::ALL,
            #[cfg(any(feature = "cuda", feature = "metal"))]
            _ => &[Dtype::F16, Dtype::Bf16, Dtype::F32],
        }
    }

    /// The dtype of a request.
    fn dtype(self, asked: &str) -> Result<Option<Dtype>, Fault> {
        let dtype = Dtype::named(asked)?;
        match dtype {
            Some(dtype) if !self.dtypes().contains(&dtype) => {
                let names: Vec<_> = self.dtypes().iter().map(|dtype| dtype.name()).collect();
                Err(Fault::unsupported(format!(
                    "dtype {asked:?}: on {} this plugin computes in {}; quantised weights are computed by cpu-int8 and \
                     candle-cpu, and a GGUF file is widened to one of these types",
                    self.name(),
                    names.join(", ")
                )))
            }
            dtype => Ok(dtype),
        }
    }

    /// Refuses other devices than this one.
    fn only(self, asked: &str, name: &str) -> Result<(), Fault> {
        match asked {
            "auto" => Ok(()),
            asked if asked == name => Ok(()),
            _ => Err(Fault::unsupported(format!(
                "device {asked:?}: this plugin runs on {}",
                self.name()
            ))),
        }
    }
}

/// The rows of a batch that can be scored; others get their status.
///
/// # Errors
/// `BadModel` if none can, for a reason that a status has no word for.
pub(crate) fn scorable(
    opened: &Opened,
    batch: &RaggedBatch<'_>,
    out: &mut Scores<'_>,
) -> Result<Vec<usize>, Fault> {
    let sizes = &opened.sizes;
    let (mut rows, mut why_not) = (Vec::new(), None);
    for row in 0..batch.n_rows() {
        let tokens = batch.row(row);
        let known = tokens
            .input_ids
            .iter()
            .all(|&id| (id as usize) < sizes.vocab)
            && (sizes.types <= 1
                || tokens
                    .type_ids
                    .iter()
                    .all(|&kind| (kind as usize) < sizes.types));
        match batch.state(row) {
            RowStatus::Scored if known => match opened.model.why_not(tokens.input_ids) {
                None => rows.push(row),
                Some(why) => {
                    out.fail(row, RowStatus::Failed);
                    why_not = Some(why);
                }
            },
            RowStatus::Scored => out.fail(row, RowStatus::Failed),
            nobody_waits => out.fail(row, nobody_waits),
        }
    }
    match why_not {
        Some(why) if rows.is_empty() => Err(Fault::bad_model(why)),
        _ => Ok(rows),
    }
}
