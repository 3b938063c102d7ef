//! The plugin's face: checks the request, finds runtime and graph, and says what was opened.

use crate::config::Config;
use crate::files::isa::Isa;
use crate::files::{self, Dtype};
use crate::graph::{Graph, Open};
use crate::library;
use crate::options::Options;
use crate::provider::Device;
use crate::worker::{Cut, OrtWorker, Shared};
use backend_api::{Backend, Description, Fault, Layout, OpenRequest, Plugin, PluginCard, Worker};
use std::sync::Arc;

/// Counts changes of this crate that change scores; part of the numerics id.
const NUMERICS_VERSION: u32 = 1;

/// The plugin.
pub struct OrtCoreMl;

/// A graph opened for a device.
struct OrtBackend {
    shared: Arc<Shared>,
    description: Description,
}

// === impl OrtCoreMl ===

impl Plugin for OrtCoreMl {
    fn card() -> PluginCard {
        PluginCard {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: Device::kinds(),
            dtypes: Dtype::ALL.map(|dtype| dtype.name().to_owned()).to_vec(),
            // Whatever was exported as a classifier.
            architectures: Vec::new(),
            formats: vec!["onnx".to_owned()],
            files: files::on_card(),
            ..PluginCard::default()
        }
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        let options = Options::parse(&request.options)?;
        let device = Device::asked(&request.device, &options)?;
        let dtype = Dtype::asked(&request.dtype)?;
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
        let config = Config::read(&request.model_dir)?;
        let file = files::choose(&request.model_dir, options.file.as_deref(), dtype)?;
        let runtime = library::load(options.library.as_deref(), &request.plugin_dir)?;
        let open = Open {
            runtime: &runtime,
            file: &file,
            device: &device,
            config: &config,
            options: &options,
            n_threads: request.n_threads.max(1) as usize,
        };
        let graphs = open.graphs()?;
        let cut = cut(request, &open, &graphs);
        let shared = Shared {
            graphs,
            config: config.clone(),
            cut,
        };
        let description = describe(request, &open, &shared);
        Ok(Box::new(OrtBackend {
            shared: Arc::new(shared),
            description,
        }))
    }
}

fn cut(request: &OpenRequest, open: &Open<'_>, graphs: &[Graph]) -> Cut {
    let of_graphs = graphs.last().and_then(|widest| widest.width_fixed);
    let limits = [
        open.config.row_tokens_max,
        of_graphs,
        Some(request.tokens_max as usize),
    ];
    let row_tokens_max = request.row_tokens_max as usize;
    let (options, provider) = (open.options, open.device.provider);
    Cut {
        cells_max: options
            .rectangle_tokens
            .unwrap_or(provider.rectangle_tokens()),
        width_multiple: options.width_multiple.unwrap_or(provider.width_multiple()),
        width_max: limits
            .into_iter()
            .flatten()
            .fold(row_tokens_max, usize::min),
    }
}

fn describe(request: &OpenRequest, open: &Open<'_>, shared: &Shared) -> Description {
    let Open {
        file,
        device,
        options,
        ..
    } = open;
    let (provider, isa, dtype) = (
        device.provider.name(),
        Isa::detect().name(),
        file.dtype.name(),
    );
    let tuned = if options.provider_options.is_empty() {
        String::new()
    } else {
        let text = format!("{:?}", options.provider_options);
        format!("+{}", &blake3::hash(text.as_bytes()).to_hex()[..8])
    };
    let n_workers = request
        .n_workers
        .max(1)
        .min(device.provider.n_workers_max());
    let n_labels = shared
        .graphs
        .first()
        .map_or(0, |graph| graph.output.n_labels);
    // Each session has its own copy.
    let weights = file.content.n_bytes * shared.graphs.len() as u64;
    Description {
        device: device.name.clone(),
        dtype: dtype.to_owned(),
        kernel: format!("onnxruntime-{provider}-{isa}"),
        numerics_id: format!(
            "ort-coreml-{NUMERICS_VERSION}/{}/{provider}{tuned}/{isa}/{dtype}/{}/{}/{}",
            open.runtime.version,
            options.optimization.name(),
            file.name,
            file.content.hash
        ),
        n_labels: n_labels as u32,
        rows_max: request.rows_max,
        tokens_max: request.tokens_max,
        row_tokens_max: shared.cut.width_max as u32,
        layout: Layout::Padded,
        preferred_multiple: shared.cut.width_multiple as u32,
        n_workers_max: device.provider.n_workers_max(),
        cancels: true,
        bitwise: false,
        memory_bytes: weights + u64::from(n_workers) * scratch_bytes(shared),
        linear_mop_per_s: 0,
        attention_mop_per_s: 0,
    }
}

/// What a rectangle takes on its way through an encoder, estimated: a layer's states and its inner ones, and the scores of each head,
/// each of them twice; and all of it twice, because ONNX Runtime's arena grows by doubling.
fn scratch_bytes(shared: &Shared) -> u64 {
    let Shared { config, cut, .. } = shared;
    let a_cell = 6 * config.hidden + 2 * config.inner + 2 * config.n_heads * cut.width_max;
    2 * (shared.cells() * a_cell * size_of::<f32>()) as u64
}

// === impl OrtBackend ===

impl Backend for OrtBackend {
    fn description(&self) -> Description {
        self.description.clone()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, Fault> {
        Ok(Box::new(OrtWorker::new(Arc::clone(&self.shared))?))
    }
}
