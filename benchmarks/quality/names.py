"""Names of variants: those of today, and the shorter ones in earlier results."""

from __future__ import annotations

OLD_NAMES = {
    "window_summaries": "window_and_summaries",
    "window_quiet": "window_and_quiet_summaries",
    "topk_summaries": "best_tiles_and_summaries",
    "vsa": "video_sparse_attention",
    "gated_window": "window_with_summaries_and_low",
    "gated_plain": "window_and_low",
    "window_gate": "window_times_gate",
    "window_weighed": "window_and_weighed_summaries",
    "window_weighed_gate": "weighed_summaries_times_gate",
    "window_few": "window_and_few_summaries",
    "freq_full": "thirds",
    "freq_values": "thirds_high_pass_values",
    "freq_gains": "thirds_band_gains",
    "freq_strict": "thirds_own_band",
    "freq_105_quiet": "one_low_and_five_windows",
    "prior": "thirds_moved_by_prior",
    "schedule": "thirds_by_schedule",
    "router": "paper",
    "router_114_quiet": "hard_routing_from_1_1_4",
    "router_window": "hard_routing_from_window",
    "beside_routed": "soft_routing_alone",
    "beside_both": "soft_routing",
    "beside_timed": "timestep_routing",
    "gated_fine": "window_and_fine_low",
    "router_beside": "hard_routing_and_low",
    "gated_mixed": "mixed_windows_and_low",
    "router_mixed": "hard_routing_of_mixed_windows",
}
"""Today's name of every name that result files before it hold."""


def current_name(name: str) -> str:
    """Today's name of a variant that a result file calls `name`."""
    return OLD_NAMES.get(name, name)
