"""The figures of docs/performance.md are those of the committed result files."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.counters_table import PROBLEMS
from benchmarks.layers_table import table
from benchmarks.peers_table import tables
from benchmarks.quality.report import by_variant, mean, overall, paired, read_results, tokens_of
from benchmarks.quality.variants import VARIANTS
from tests.support.launches import MOST
from tests.support.pages import ROOT, check_says, result, text_of
from typer.testing import CliRunner

from freqformer.cli import app

PAGE = "docs/performance.md"


def check(*parts: str) -> None:
    check_says(PAGE, *parts)


def test_whole_layers() -> None:
    layers = result("layers")
    assert table(layers) in (ROOT / PAGE).read_text(encoding="utf-8")
    size = layers["sizes"]["115,200 x 24"]
    commit = layers["machine"]["commit"][:7]
    forward, both = (size[name]["layer default"] for name in ("forward", "forward and backward"))
    check(
        f"takes {forward['times_windows']:.2f} times as long as windows only, and "
        f"{both['times_windows']:.2f} times with backward",
        f"commit {layers['earlier_commit']}, where the LOW branch was a second call",
        f"{commit}'s default takes {forward['times_earlier']:.2f} times as long as that, and "
        f"{both['times_earlier']:.2f} times with backward",
        f"is {both['peak_bytes'] / 2**30:.1f} GiB, {both['earlier_peak_bytes'] / 2**30:.1f} GiB",
    )


def test_what_is_slower_than_it_was_and_what_was_left_out() -> None:
    layers = result("layers")
    slower = {
        (size, row): round(values["times_earlier"], 2)
        for size, found in layers["sizes"].items()
        for name in ("forward", "forward and backward")
        for row, values in found[name].items()
        if values.get("times_earlier", 1.0) > 1.02
    }
    assert slower == {("65,536 x 8", "operation thirds"): 1.03}
    thirds = layers["sizes"]["65,536 x 8"]["forward"]["operation thirds"]["times_earlier"]
    apart = layers["differences"]["1,048,576 x 8"]["layer paper, forward"]
    check(
        f"at 65,536 × 8, {thirds:.2f} times forward and 1.03 with backward",
        f"differed from f64bcc1's by {apart:.0%}, more than the 2%",
    )


def test_launches() -> None:
    counted = result("layers")["launches"]["today"]
    for row, name in (
        ("layer default", "default"),
        ("layer timestep", '`routing="timestep"`'),
        ("layer frozen", "frozen table, the same at all timesteps"),
        ("layer fixed gates", '`routing="fixed"`'),
        ("layer windows", "windows only"),
    ):
        check(f"| {name} | {counted[row]['beside_projections']} | {MOST[row]} |")


def test_other_kernels() -> None:
    peers = result("peers")
    assert tables(peers) in (ROOT / PAGE).read_text(encoding="utf-8")
    flash, flex = "FlashAttention-4 CuTe, block-sparse", "FlexAttention, FLASH"

    def ours(other: str, name: str, *percents: str, tokens: str = "65,536") -> list[str]:
        """Our rate over another's, at so much of the blocks each."""
        groups = (peers["groups"][f"{tokens} x 8, {percent}% of blocks"] for percent in percents)
        return [f"{1 / group[name][other]['times_reference_rate']:.2f}" for group in groups]

    shares = ("10", "5", "100", "2.5")
    tenth, twentieth, whole, least = ours(flash, "forward", *shares)
    on_flash = ours(flex, "forward", *shares)
    backward = [
        *ours(flash, "backward", "10"),
        *ours(flex, "backward", "10"),
        *ours("cuDNN, block-sparse 128", "backward", "10"),
    ]
    short = {*ours(flash, "forward", "10", tokens="32,768")}
    short |= {*ours(flex, "forward", "10", tokens="32,768")}
    assert short == {"1.04"}
    check(
        f"FlashAttention-4's CuTe kernels ({peers['versions']['flash-attn-4']})",
        f"nvidia-cudnn-frontend {peers['versions']['nvidia-cudnn-frontend']}",
        f"fastvideo-kernel {peers['versions']['fastvideo-kernel']}",
        f"has {tenth} of the rate of FlashAttention-4 at 10% of the blocks, {twentieth} at 5%, "
        f"{whole} with all blocks, and {least} at 2.5%",
        f"on other lists, {', '.join(on_flash[:3])} and {on_flash[3]}. At 32,768",
        f"block-sparse 64 by {ours('cuDNN, block-sparse 64', 'forward', '10')[0]} at 10%",
        f"behind at 10%: {backward[0]} of FlashAttention-4's rate, {backward[1]} of "
        f"FlexAttention's on it, {backward[2]} of cuDNN's 128",
    )
    for group in peers["groups"].values():
        for row, values in group["forward"].items():
            if "FLASH" not in row and "FlashAttention" not in row and "lists" in group["works"]:
                assert row == "ours, gluon" or values.get("times_reference_rate", 0) < 1


def test_what_was_asked() -> None:
    peers, layer, layers = result("peers")["groups"], result("layer")["layers"], result("layers")
    other = "FlashAttention-4 CuTe, block-sparse"
    launch = {
        percent: 1
        / peers[f"65,536 x 8, {percent}% of blocks"]["forward"][other]["times_reference_rate"]
        for percent in ("100", "10", "5")
    }
    gradients = peers["65,536 x 8, 10% of blocks"]["backward"]
    best = max(row.get("times_reference_rate", 0) for row in gradients.values())
    assert gradients["FlexAttention, FLASH"]["times_reference_rate"] == best
    unequal = [
        peers["queries of whole layers"][name]["default: ours, gluon"]["share_of_uniform_rate"]
        for name in ("forward", "backward")
    ]
    hunyuan = layer["hunyuan"]
    forward, both = (
        rows["layer dense"]["ms"] / rows["layer default"]["ms"]
        for rows in (
            layers["sizes"]["115,200 x 24"][name] for name in ("forward", "forward and backward")
        )
    )
    dense = layers["sizes"]["262,144 x 8"]["forward"]["layer dense"]["ms"] * 16
    long = dense / layers["sizes"]["1,048,576 x 8"]["forward"]["layer default"]["ms"]
    for asked, measured in (
        ("1", f"{launch['100']:.2f}"),
        ("1", f"{launch['10']:.2f} / {launch['5']:.2f}"),
        ("1", f"{1 / best:.2f}"),
        ("0.95", f"{unequal[0]:.2f} / {unequal[1]:.2f}"),
        ("31", f"{hunyuan['bench']['times_dense']:.1f}"),
        ("9", f"{hunyuan['density 10%']['times_dense']:.1f}"),
        ("12.5 / 13", f"{forward:.1f} / {both:.1f}"),
        ("135", f"{long:.0f}"),
    ):
        check(f"| {asked} | {measured} |")


def test_what_holds_it_back() -> None:
    names = (
        "forward, all blocks",
        "forward, 10% of blocks",
        "gradients of queries, 10%",
        "gradients of keys and values, 10%",
    )
    kernels = result("counters")["kernels"]
    assert [x["problem"] for x in kernels[2:]] == [PROBLEMS[2], *["gradients, 10% of blocks"] * 2]
    for name, found in zip(names, (*kernels[:2], *kernels[3:]), strict=True):
        # The shared one is that of tensor cores and FP64 units, and nothing here is FP64.
        assert found["busiest_pipeline"] in ("Tensor", "Shared")
        (stall,) = found["stalls"]
        assert "barrier" in stall["waiting_for"]
        check(
            f"| {name} | {found['busiest_percent']:.0f}% | {found['cycles_per_instruction']:.1f} | "
            f"{stall['percent']:.0f}% | {found['l2_percent']:.0f}% |"
        )
    tenth = result("layer")["layers"]["hunyuan"]["density 10%"]
    uniform = result("peers")["groups"]["queries of whole layers"]["forward"]
    beside = tenth["share_beside_attention"]
    check(
        f"10% of blocks {beside:.0%} are not, and the launch itself runs at "
        f"{tenth['useful_tflops_per_s'] / (1 - beside):.0f} TFLOP/s",
        f"at that size ran at {uniform['uniform lists: ours, gluon']['tflops_per_s']:.0f}",
    )


def test_the_layer() -> None:
    layers, scaling = result("layer")["layers"], result("layer")["scaling"]
    for name, place in (
        ("hunyuan", "115,200 (30 × 48 × 80) × 24"),
        ("wan", "75,600 (21 × 45 × 80) × 40"),
    ):
        for kind in ("bench", "learned summaries", "density 10%"):
            row = layers[name][kind]
            times = (
                f"{row['layer_ms']:.2f} | {layers[name]['dense_ms']:.0f} | "
                f"{row['times_dense']:.1f} |"
            )
            check(f"| {place} | {kind} | {100 * row['density']:.1f}% | {times}")
    bench = layers["hunyuan"]["bench"]
    beside = 100 * bench["share_beside_attention"]
    check(
        f"takes {bench['num_launches']} launches, spends {beside:.0f}% of its time outside",
        f"a workspace of {bench['workspace_of_inputs_and_output']:.2f} times",
        f"Time grows with tokens to the power {scaling['exponent']:.2f}.",
    )
    for point in scaling["points"]:
        check(
            f"| {point['tokens']:,} | {point['layer_ms']:.2f} | "
            f"{point['dense_ms'] / point['layer_ms']:.0f} "
        )
    routers = [result("router")["cases"][name] for name in ("hunyuan", "64K")]
    microseconds, shares = (
        [scale * router[key] for router in routers]
        for scale, key in ((1e3, "launches_ms"), (100, "share_of_layer"))
    )
    check(
        f"{microseconds[0]:.0f} µs together ({shares[0]:.1f}%)",
        f"{microseconds[1]:.0f} µs ({shares[1]:.1f}%) at 65,536 tokens × 8 heads, where 1% was the",
    )
    case = result("router")["cases"]["64K"]
    timed, statistics = case["weighing"]["timestep"], dict(case["launches"])["sum_tiles"] / 1e3
    soft = (timed["added_to_layer_ms"] + statistics) / timed["layer_in_graph_ms"]
    check(
        f"two branches takes {soft:.1%} of a `FreqAttention`'s time",
        f"or {timed['added_share_of_layer']:.1%} by timestep only",
    )


def test_the_attention_launch() -> None:
    kernel = result("kernel")
    dense = kernel["dense"]["tflops_per_s"]
    check(f"of cuDNN's dense rate ({dense:.0f} TFLOP/s)")
    for row in kernel["launch"].values():
        check(
            f"| {row['ms']:.2f} | {row['tflops_per_s']:.0f} | {row['tflops_per_s'] / dense:.2f} |"
        )


def test_training() -> None:
    backward, steps, losses = result("backward"), result("train_step")["sizes"], result("loss_run")
    layer, long = (
        backward["layers"][name]["forward_and_backward_ms"] for name in ("hunyuan", "1M tokens")
    )
    own, flex = (
        backward["launches"]["0.1"][name]["tflops_per_s"] for name in ("launches", "FlexAttention")
    )
    check(
        f"runs at {own:.0f} TFLOP/s at 10% of blocks, FlexAttention's at {flex:.0f}",
        f"take {layer:.1f} ms, {backward['dense_ms'] / layer:.0f} times less than dense",
        f"and at 1,048,576 tokens × 8 heads {long:.0f} ms",
        f"in {100 * losses['steps_within_range_after_warmup']:.1f}% of the steps after warm-up",
    )
    for tokens, size in steps.items():
        dense, *others = (size["rows"][name]["step_ms"] for name in ("dense", "fixed", "router"))
        row = " | ".join(f"{ms:,.0f} | {dense / ms:.1f}" for ms in others)
        assert any(
            f"| {int(tokens):,}{note} | {dense:,.0f} | {row} |" in text_of(PAGE)
            for note in ("", ", with gradient checkpointing")
        )
    fixed = steps["65536"]["rows"]["fixed"]
    share = (
        100 * (fixed["attention_forward_ms"] + fixed["attention_backward_ms"]) / fixed["step_ms"]
    )
    check(
        f"attention takes {share:.0f}% of the step with fixed bands, linear layers and the rest "
        f"{100 - share:.0f}%"
    )


def test_the_cpu() -> None:
    forward, both = (
        result("eager_cpu")["speed"][name] for name in ("forward", "forward and backward")
    )
    check(
        f"takes {forward['frequency_wall_s']:.2f} s where dense takes "
        f"{forward['dense_wall_s']:.1f} s",
        f"{both['frequency_wall_s']:.1f} s with its backward where dense takes "
        f"{both['dense_wall_s']:.1f} s",
        f"{forward['speedup_wall']:.1f} and {both['speedup_wall']:.1f} times less",
    )


def test_what_the_low_branch_is_predicted_to_take(tmp_path: Path) -> None:
    windows = ["--tokens", "115200", "--set", "routing=fixed", "--set", "split=0,0,1"]
    seconds = []
    for more in ([], ["--set", "low_branch=true"]):
        done = CliRunner().invoke(
            app, ["simulate", *windows, *more, "--json", str(tmp_path / "out.json")]
        )
        assert done.exit_code == 0, done.output
        (case,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["scenarios"]
        seconds.append(case["time_s"])
    check(
        f"predicts {seconds[1] / seconds[0] - 1:.0%} more time with a LOW branch",
        f"simulate {' '.join(windows)}`",
    )


def test_import() -> None:
    found = result("import_time")
    names, model = (
        found["cases"][f"import freqformer, {what}"]["beyond_torch"]
        for what in ("every name", "the model too")
    )
    check(
        f"On {found['cores']} cores `import freqformer`",
        f"takes {names:.2f} s of processor time beyond `import torch`",
        f"diffusers, {model:.1f} s",
    )


def test_quality() -> None:
    groups = by_variant(read_results(), 700)
    check(
        f"trains {len(groups)} variants for 700 steps, and front runners for 2,800 with one to five"
    )
    longer = by_variant(read_results(), 2800)
    assert {len(seeds) for seeds in longer.values()} == {1, 2, 3, 4, 5}
    gain = paired(longer["dense"], longer["soft_routing"])
    assert gain is not None
    seeds = longer["dense"].keys() & longer["soft_routing"].keys()
    ours, dense = (
        mean([overall(longer[name][seed]["losses"]) for seed in seeds]).value
        for name in ("soft_routing", "dense")
    )
    check(
        f"has {ours / dense:.3f} times the loss of dense attention (lower by {gain.text(4)}, three "
        "paired"
    )
    assert len(seeds) == 3
    assert round(1 / longer["soft_routing"][0]["density"]) == 7
    order = list(longer)
    assert order[0] == "soft_routing"
    choosing = [name for name in longer if VARIANTS[name].learned]
    assert len(choosing) == 2
    assert all(order.index(name) > order.index("window_and_low") for name in choosing)
    gain = paired(longer["window_and_low"], longer["soft_routing"])
    assert gain is not None
    fixed = mean([overall(run["losses"]) for run in longer["window_and_low"].values()])
    share = gain.value / fixed.value
    check(f"makes {gain.text(4)} ({share:.1%})")
    long = {
        run["variant"]: run
        for run in read_results()
        if tokens_of(run) == 65_536 and run["seed"] == 0
    }
    timed, dense = long["timestep_routing"], long["dense"]
    (loss, step), (dense_loss, dense_step) = (
        (overall(run["losses"]), run["step_ms"]) for run in (timed, dense)
    )
    check(
        f"At 65,536 tokens and equal steps ({dense['steps']}, one seed) "
        '`routing="timestep"` has the '
        f"loss {loss:.4f} where",
        f"where dense attention has {dense_loss:.4f}, and a training step takes {step:.0f} ms "
        "where dense",
        f"where dense takes {dense_step:.0f}, in the same memory (H100).",
    )
    assert abs(timed["peak_gib"] / dense["peak_gib"] - 1) < 0.01


def test_without_training() -> None:
    rows = result("training_free_density")["rows"]["0.2"]["0.1"]
    patterns = ("vsa_selection", "threshold", "radial", "topk", "window")
    published = max(rows[name]["psnr"] for name in patterns)
    check(
        f"keeps {rows['calibrated']['psnr']:.1f} dB of PSNR",
        f"90% less attention compute in all steps but the first fifth, which is dense; the "
        f"plug-in's preset keeps {rows['preset']['psnr']:.1f}, the best published pattern of five "
        f"{published:.1f} (",
    )


def test_its_figure_is_the_benchmarks() -> None:
    shown, made = ROOT / "docs/figures/layer.png", ROOT / "benchmarks/results/layer.png"
    assert shown.read_bytes() == made.read_bytes()
