"""The passes that come with onnxcomp, one file each."""

from __future__ import annotations

__all__ = ["BUILTIN"]

BUILTIN: dict[str, str] = {
    "fold-batchnorm": "onnxcomp.passes.fold_batchnorm:FoldBatchnorm",
    "fold-constants": "onnxcomp.passes.fold_constants:FoldConstants",
    "insert-qdq": "onnxcomp.passes.insert_qdq:InsertQdq",
    "prune-filters": "onnxcomp.passes.prune_filters:PruneFilters",
    "remove-dead": "onnxcomp.passes.remove_dead:RemoveDead",
    "split-svd": "onnxcomp.passes.split_svd:SplitSvd",
    "substitute-depthwise": "onnxcomp.passes.substitute_depthwise:SubstituteDepthwise",
}
"""Where each built-in pass is defined, by name. Nothing is imported before it is asked for."""
