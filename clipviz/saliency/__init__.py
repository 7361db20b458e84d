"""Saliency: where a model looks, and how far to trust the map.

maps = saliency_maps(method, images, "soap")                             (B, h, w) in [0, 1], and raw values
maps = saliency_maps(method, images, "relevance", target=3, contrast=5)  why class 3 and not class 5
with capture_attention(backbone) as attention: backbone.embed(images)    layer -> (B, heads, L, L), with gradient
table = saliency_table(method, images, regions=bird_regions(parts, target), parts=parts)     kind x metric
register("mine", function, needs="pixels")                               a map of your own
sanity_check(method, images, "relevance")                                does the map depend on the weights?
"""

from clipviz.saliency.attention import capture_attention
from clipviz.saliency.maps import KINDS, SaliencyMaps, available_kinds, register, saliency_maps, unit_maps
from clipviz.saliency.metrics import bird_regions, part_mass, part_rank, pointing_game
from clipviz.saliency.perturbation import deletion_auc, insertion_auc, map_infidelity, map_sensitivity, sanity_check
from clipviz.saliency.question import runner_up
from clipviz.saliency.table import saliency_scores, saliency_table, summarize_scores

__all__ = ["KINDS", "SaliencyMaps", "available_kinds", "bird_regions", "capture_attention", "deletion_auc",
           "insertion_auc", "map_infidelity", "map_sensitivity", "part_mass", "part_rank", "pointing_game",
           "register", "runner_up", "saliency_maps", "saliency_scores", "saliency_table", "sanity_check",
           "summarize_scores", "unit_maps"]  # fmt: skip
