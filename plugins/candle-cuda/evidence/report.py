"""What was found, as JSON and as Markdown."""
import json
import statistics
from pathlib import Path


def write(found, out):
    Path(out, "evidence.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Path(out, "evidence.md").write_text(markdown(found), encoding="utf-8")


def markdown(found):
    parts = [about(found), parity(found["parity"]), speed(found), small(found["small"]), server(found["server"]), tokenizers(found),
             memory(found), problems(found)]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(head, lines):
    """Rows of cells; numbers stand right."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def rate(value):
    """Three digits of a rate."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(gpu):
    return "–" if gpu is None else f"{gpu['busy']:.0%}"


def about(found):
    machine, peer, asked = found.get("machine", {}), found.get("peer", {}), found["asked"]
    gpu = f"{machine['name']} ({machine['memory.total']}, driver {machine['driver_version']})" if "name" in machine else "no GPU"
    quick = "**Tiny models and few rounds: these figures say nothing.** " if asked["quick"] else ""
    return (f"# {asked['plugin']} on {gpu}\n\n{quick}{found.get('crossgate', '')}, dtype {asked['dtype']}; "
            f"torch {peer.get('torch')}, transformers {peer.get('transformers')}, scaled_dot_product_attention; "
            f"{machine.get('processors')} processors. Medians of rounds.")


def parity(rows):
    """The largest difference in each dtype."""
    if not rows:
        return None
    dtypes = sorted({dtype for _, dtype, _ in rows}, key=lambda dtype: ("f32", "f16", "bf16").index(dtype))
    by_name = {}
    for name, dtype, off in rows:
        by_name.setdefault(name, {})[dtype] = off
    lines = [[name, *(f"{of[dtype]:.1e}" if dtype in of else "–" for dtype in dtypes)] for name, of in by_name.items()]
    return "## Golden models: largest difference to transformers in f32\n\n" + table(["model", *dtypes], lines)


def speed(found):
    if not found["speed"]:
        return None
    head = ["model", "tokens", "Crossgate, pairs/s", "of default batches", "PyTorch, pairs/s", "batch of", "ratio", "TFLOP/s",
            "GPU busy: PyTorch", "logits off: ours", "theirs", "apart"]
    lines = []
    for line in found["speed"]:
        errors, arithmetic = line["errors"], line["arithmetic"]
        lines.append([
            line["model"], str(line["row_tokens"]), spread(line["ours"]), rate(line["default"]), spread(line["theirs"]),
            f"{line['batch_tokens']:,} tokens", f"{line['ratio']:.2f}",
            "–" if arithmetic is None else f"{arithmetic['total_gop_per_s'] / 1_000:.1f}",
            share(line["peer_gpu"]), *(f"{errors[of]:.1e}" for of in ("ours", "theirs", "apart"))])
    text = ("Rows of one length, so PyTorch pads nothing; its batch is the fastest of several, copies to and from the GPU "
            "count for both. Lowest and highest round in brackets.")
    return f"## Inference\n\n{text}\n\n" + table(head, lines)


def spread(rounds, shown=rate):
    return f"{shown(statistics.median(rounds))} ({shown(min(rounds))}–{shown(max(rounds))})"


def small(lines):
    if not lines:
        return None
    ways = list(lines[0]["ours"])
    rows = [[line["model"], str(line["documents"]), *(spread(line["ours"][way], milliseconds) for way in ways),
             spread(line["theirs"], milliseconds),
             f"{statistics.median(line['theirs']) / statistics.median(line['ours'][ways[0]]):.2f}"] for line in lines]
    text = ("One request after the other, each of so many documents of 74 tokens: milliseconds of one, lowest and highest "
            "round in brackets.")
    head = ["model", "documents", *(f"graphs {way}" for way in ways), "PyTorch", "ratio"]
    return f"## Small requests\n\n{text}\n\n" + table(head, rows)


def milliseconds(seconds):
    return f"{seconds * 1e3:.2f}"


def server(lines):
    if not lines:
        return None
    head = ["model", "tokens", "inference", "pipeline", "HTTP", "gRPC", "gateway's share, HTTP", "gRPC", "GPU busy: HTTP", "gRPC"]
    rows = []
    for line in lines:
        # What one pair takes longer than in inference alone, of all that it takes.
        parts = {name: 1 - line[name] / line["inference"] for name in ("http", "grpc")}
        rows.append([line["model"], str(line["row_tokens"]),
                     *(rate(line[name]) for name in ("inference", "pipeline", "http", "grpc")),
                     *(f"{parts[name]:.1%}" for name in parts), share(line["http_gpu"]), share(line["grpc_gpu"])])
    text = "Pairs a second with default settings and no cache; the clients run on the same processors."
    return f"## The whole server\n\n{text}\n\n" + table(head, rows)


def tokenizers(found):
    lines = found["tokenizers"]
    if not lines:
        return None
    inference = {line["model"]: line["inference"] for line in found["server"]}
    rows = [[line["model"], str(line["tokenizers"]), rate(line["http"]),
             f"{line['http'] / inference[line['model']]:.0%}" if line["model"] in inference else "–", share(line["http_gpu"])]
            for line in lines]
    return "## Tokenizer threads, by HTTP\n\n" + table(["model", "threads", "pairs/s", "of inference", "GPU busy"], rows)


def memory(found):
    rows = []
    for line in found["server"]:
        for of in ("http", "grpc"):
            gpu = line[f"{of}_gpu"]
            if gpu:
                ours = gpu["memory_mib"] - (line["before_mib"] or 0)
                rows.append([f"{line['model']}, {of}", f"{ours:,.0f}", f"{gpu['power_w']:.0f}", f"{gpu['clock_mhz']:.0f}"])
    if not rows:
        return None
    text = "Memory beyond what was in use before, which is the other engine's process."
    return f"## The GPU while the server answers\n\n{text}\n\n" + table(["", "memory, MiB", "power, W", "clock, MHz"], rows)


def problems(found):
    if not found["problems"]:
        return None
    return "## What failed or was left out\n\n" + "\n".join(f"* {problem}" for problem in found["problems"])
