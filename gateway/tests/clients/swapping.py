"""Swaps under load: fifty builds of the plugin, one after the other, while requests are answered. See overload.py."""
import json
import shutil
import sys
import time
import urllib.error
import urllib.request

from measure import ROOT, counters, lines_of, measure_capacity, median, quantiles, say, total, watch_memory

SWAPS = 50
LOAD_SHARE = 0.7
# Between Found and Live, beside the steady one.
P99_FACTOR_MAX = 2.0
STEADY_RUNS = 3
RSS_A_SWAP_MAX_MIB = 12


def order(admin, model, body):
    """The end of a swap: (status, answer)."""
    request = urllib.request.Request(f"http://{admin}/models/{model}/swap", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def confirmed(http, model):
    """Waits for the end of the probation, and says what it was."""
    for _ in range(1200):
        with urllib.request.urlopen(f"{http}/models", timeout=10) as response:
            last = json.load(response)[model]["last_swap"]
        if last["state"] in ("confirmed", "rolled_back", "refused"):
            return last
        time.sleep(0.05)
    raise SystemExit("FAILED: a swap does not end")


def swap(bench, _):
    """70 % of the capacity, open loop: steady, and while one swap follows the other."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    plugins = bench.folder / "plugins"
    plugins.mkdir()
    name, built = f"libcpu_int8{suffix}", ROOT / f"target/release/libcpu_int8{suffix}"
    shutil.copy(built, plugins / name)
    documents = sum(len(line["documents"]) for line in lines_of(bench.workload)) / len(lines_of(bench.workload))
    with bench.serve("--plugin-dir", plugins, "--plugin-images-max", str(SWAPS + 1), "--threads", "2") as (http, _, _, process):
        with urllib.request.urlopen(f"{http}/models", timeout=10) as response:
            model = next(iter(json.load(response)))
        capacity, _ = measure_capacity(bench, http, process.pid, rounds=2)
        rate = LOAD_SHARE * capacity / documents
        say(f"capacity {capacity:.0f} pairs/s; {rate:.1f} requests/s are offered, {LOAD_SHARE:.0%} of it")
        load = ["--mode", "open", "--rate", f"{rate:.2f}", "--warmup", "1s"]
        steady = [bench.run(http, *load, "--duration", "10s") for _ in range(STEADY_RUNS)]
        for report in steady:
            say(f"steady: {quantiles(report['latency_us'])}")
        to_live_s, states = [], {}
        with watch_memory(process.pid) as mib:
            began = time.monotonic()
            seconds = 0
            running = bench.start(http, *load, "--duration", "45s")
            time.sleep(2)
            for number in range(SWAPS):
                shutil.copy(built, plugins / "next")
                with open(plugins / "next", "ab") as file:
                    file.write(b"build %d" % number)
                (plugins / "next").rename(plugins / name)
                at = time.monotonic()
                status, answer = order(process.admin, model, {"plugin": "cpu-int8", "probation_s": 0})
                to_live_s.append(time.monotonic() - at)
                if status != 200:
                    bench.check(f"swap {number}: {answer}", False)
                    break
                for step in answer["steps"]:
                    states.setdefault(step["state"], []).append(step["seconds"])
                last = confirmed(http, model)
                if last["state"] != "confirmed":
                    bench.check(f"swap {number}: {last}", False)
                    break
            seconds = time.monotonic() - began
            report = bench.finish(running)
        with open(plugins / name, "ab") as file:
            file.write(b"one too many")
        refused, answer = order(process.admin, model, {"plugin": "cpu-int8"})
        images = total(counters(http), "crossgate_plugin_images")
    say(f"{len(to_live_s)} swaps in {seconds:.1f} s, from order to live {median(to_live_s) * 1e3:.0f} ms "
        f"({min(to_live_s) * 1e3:.0f} to {max(to_live_s) * 1e3:.0f})")
    say("reached after, median ms: " + ", ".join(f"{state} {median(at) * 1e3:.0f}" for state, at in states.items()))
    say(f"while swapping: {quantiles(report['latency_us'])}")
    outcomes = report["outcomes"]
    failed = {outcome: n for outcome, n in outcomes.items() if outcome != "ok" and n}
    bench.check(f"no request failed: {outcomes['ok']} ok, {failed or 'nothing else'}", not failed and report["lost"] == 0)
    steady_p99 = median([report["latency_us"]["p99"] for report in steady])
    ratio = report["latency_us"]["p99"] / steady_p99
    bench.check(f"p99 while swapping is {ratio:.2f} times the steady one (<= {P99_FACTOR_MAX})", ratio <= P99_FACTOR_MAX)
    growth = (mib[-1] - mib[0]) / SWAPS
    bench.check(f"memory: {mib[0]:.0f} MiB before, at most {max(mib):.0f}, {mib[-1]:.0f} after: {growth:.1f} MiB a swap "
                f"(<= {RSS_A_SWAP_MAX_MIB})", growth <= RSS_A_SWAP_MAX_MIB)
    bench.check(f"{images:.0f} images are mapped, and one more is refused: {answer.get('message', answer)}",
                images == SWAPS + 1 and refused == 409 and "images_max" in str(answer))
