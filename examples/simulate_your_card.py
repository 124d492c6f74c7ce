"""What attention would cost on a card that you don't own: its data sheet in, seconds and memory
out.

    python examples/simulate_your_card.py

The command line does the same with a JSON file: `freqformer simulate --hardware card.json --set
efficiency=h200`.
"""

import json
import tempfile
from pathlib import Path

from freqformer.simulate import Result, Routing, scenario, simulate

CARD = {
    "title": "A card of 300 TFLOP/s and 24 GB",
    "element_size": 2,  # bytes: bfloat16
    "matrix_flops": 300e12,  # of dense matrix products, without sparsity
    "vector_flops": 40e12,  # of float32 outside matrix units
    "memory_bandwidth": 1.0e12,  # bytes per second
    "memory_bytes": 24e9,
    "l2_bytes": 64 * 2**20,
    "processors": 100,  # streaming multiprocessors
    "launch_s": 3e-6,  # from one launch to the next
    "interconnect": None,  # or the links of several, see docs/complexity.md
    "sources": {"matrix_flops": "made up for this example; name the data sheet here"},
}


def main() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder, "card.json")
        card.write_text(json.dumps(CARD), encoding="utf-8")
        # A quarter of the heads sees everything compressed, a quarter chosen tiles, half a window.
        routing = Routing(split=(1, 1, 2), schedule="fixed")
        # What share of a data sheet's rates kernels reach is taken from the measured card that is
        # most like it.
        lengths = (32_768, 75_600, 262_144)
        results = [
            simulate(scenario("wan2.1-1.3b", card, tokens, routing=routing, efficiency="h200"))
            for tokens in lengths
        ]
    print(f"Wan2.1 1.3B on {CARD['title']}, one denoising step")
    print(f"{'tokens':>8}  {'dense':>9}  {'frequency':>9}  {'times':>5}  {'memory':>8}")
    for result in results:
        step = result.step
        dense = step.seconds * step.speedup
        memory = step.peak_memory_bytes / 2**30
        print(
            f"{result.scenario.tokens:8,}  {dense:7.2f} s  {step.seconds:7.2f} s  "
            f"{step.speedup:5.1f}  {memory:5.1f} GiB"
        )
    return results


if __name__ == "__main__":
    main()
